import { assert, assertEquals, assertMatch } from "@std/assert";
import { LegacyNodes } from "../../gateway/legacy_nodes.ts";
import { Store } from "../../gateway/store.ts";
import type { Json } from "../support/client.ts";
import { REMOTE, startTestGateway } from "../support/gateway.ts";

const OLD = { nodeId: "old-node", displayName: "Old", caps: ["canvas"], commands: ["camera.snap"] };

async function withStore(use: (nodes: LegacyNodes, clock: { nowMs: number }) => void) {
  const directory = await Deno.makeTempDir({ prefix: "zero-legacy-" });
  const clock = { nowMs: 1_000_000 };
  try {
    using store = Store.open(`${directory}/zero.sqlite`, () => {});
    use(new LegacyNodes(store, () => clock.nowMs), clock);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("a node asks once, and again when its request has lapsed", () =>
  withStore((nodes, clock) => {
    const first = nodes.ask(OLD);
    clock.nowMs += 300_000;
    const same = nodes.ask(OLD);
    clock.nowMs += 1;
    const lapsed = nodes.approve(first.request.requestId);
    const next = nodes.ask(OLD);

    assertEquals([first.created, same.created, next.created], [true, false, true]);
    assertEquals(same.request, first.request);
    assert(next.request.requestId !== first.request.requestId);
    assertEquals(lapsed, undefined);
    assertEquals(nodes.pending().map(({ requestId }) => requestId), [next.request.requestId]);
  }));

Deno.test("an approved node has a token that only approval tells, and a new one when repaired", () =>
  withStore((nodes, clock) => {
    const approved = nodes.approve(nodes.ask(OLD).request.requestId)!;
    clock.nowMs += 5;
    const repair = nodes.ask(OLD).request;
    const again = nodes.approve(repair.requestId)!;

    assertMatch(approved.token, /^[0-9a-f]{32}$/);
    assertEquals([repair.isRepair, again.createdAtMs, again.approvedAtMs], [
      true,
      approved.createdAtMs,
      clock.nowMs,
    ]);
    assertEquals(nodes.verify("old-node", approved.token), undefined);
    assertEquals(nodes.verify("old-node", again.token)?.nodeId, "old-node");
    assertEquals(nodes.verify("other", again.token), undefined);
    assert(!JSON.stringify(nodes.paired()).includes(again.token));
  }));

Deno.test("a paired node can be renamed and removed, and keeps its token in between", () =>
  withStore((nodes) => {
    const { token } = nodes.approve(nodes.ask(OLD).request.requestId)!;

    const isRenamed = nodes.rename("old-node", "Kitchen");
    const names = nodes.paired().map(({ displayName }) => displayName);
    const verified = nodes.verify("old-node", token);
    const isRemoved = nodes.remove("old-node");

    assertEquals([isRenamed, names, verified?.displayName], [true, ["Kitchen"], "Kitchen"]);
    assertEquals([isRemoved, nodes.remove("old-node"), nodes.paired()], [true, false, []]);
    assertEquals(nodes.rename("old-node", "x"), false);
  }));

Deno.test("node.pair.* tells of requests, approves, verifies and removes", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect({ scopes: ["operator.pairing"] });

  const { status, request, created } = await operator.call("node.pair.request", OLD);
  const requested = await operator.event("node.pair.requested");
  const listed = await operator.call("node.pair.list", {});
  const { requestId } = request;
  const { node } = await operator.call("node.pair.approve", { requestId });
  const resolved = await operator.event("node.pair.resolved");
  const good = await operator.call("node.pair.verify", { nodeId: "old-node", token: node.token });
  const bad = await operator.call("node.pair.verify", { nodeId: "old-node", token: "x" });
  await operator.call("node.rename", { nodeId: "old-node", displayName: "Kitchen" });
  const { paired } = await operator.call("node.pair.list", {});
  await operator.call("node.pair.remove", { nodeId: "old-node" });
  const unknown = await operator.refused("node.pair.approve", { requestId });

  assertEquals([status, created, requested.requestId], ["pending", true, requestId]);
  assertEquals(listed.pending.map((one: Json) => one.requestId), [requestId]);
  assertEquals([resolved.nodeId, resolved.decision], ["old-node", "approved"]);
  assertEquals([good.ok, good.node.nodeId, bad], [true, "old-node", { ok: false }]);
  assertEquals([paired[0].displayName, paired[0].token], ["Kitchen", undefined]);
  assertEquals(unknown.message, "unknown requestId");
  assertEquals((await operator.call("node.pair.list", {})).paired, []);
});

Deno.test("a device that asks to be a node is listed, approved and rejected like one", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect({ scopes: ["operator.pairing", "operator.admin"] });
  const wanted = await gateway.requestPairing({ name: "wanted", role: "node" });
  const unwanted = await gateway.requestPairing({ name: "unwanted", role: "node" });

  const { pending } = await operator.call("node.pair.list", {});
  const approved = await operator.call("node.pair.approve", { requestId: wanted.requestId });
  const rejected = await operator.call("node.pair.reject", { requestId: unwanted.requestId });
  const node = await gateway.connect({ role: "node", device: wanted.device, headers: REMOTE });

  assertEquals(
    pending.map((one: Json) => [one.requestId, one.nodeId]).toSorted(),
    [
      [wanted.requestId, wanted.device.deviceId],
      [unwanted.requestId, unwanted.device.deviceId],
    ].toSorted(),
  );
  assertEquals(approved.node.nodeId, wanted.device.deviceId);
  assertEquals(rejected.nodeId, unwanted.device.deviceId);
  assert(!JSON.stringify(approved).includes(node.auth.deviceToken));
  const list = await operator.call("node.pair.list", {});
  assertEquals(list.paired.map((one: Json) => one.nodeId), [wanted.device.deviceId]);
});
