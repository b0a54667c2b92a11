// Invocations that wait for a node to come back: nothing lost, nothing twice, and every end told.

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import type { Log } from "../../config/log.ts";
import { type DeviceClaim, DeviceStore } from "../../gateway/devices.ts";
import { NodeQueue, type NodeQueueOptions, type QueueEntry } from "../../gateway/node_queue.ts";
import { Store } from "../../gateway/store.ts";
import { RpcError } from "../../rpc/error.ts";
import type { Json, TestClient } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import { startTestGateway, type TestGateway } from "../support/gateway.ts";
import { asked, connectNode, reply } from "../support/node.ts";

const HOUR = { ttlMs: 3_600_000 };
const WHICH = { command: "system.which", params: { bins: ["sh"] } };

/** A paired node that is not there, and how it comes back. */
async function sleepingNode(gateway: TestGateway, options: { commands?: string[] } = {}) {
  const device = await newDevice();
  const node = await connectNode(gateway, { device, name: "laptop", ...options });
  await node.client.close();
  const operator = await gateway.connect();
  await offline(operator, node.nodeId);
  return {
    nodeId: node.nodeId,
    operator,
    wake: (more: { commands?: string[] } = {}) =>
      connectNode(gateway, { device, name: "laptop", ...options, ...more }),
  };
}

async function offline(operator: TestClient, nodeId: string) {
  for (;;) {
    const { nodes } = await operator.call("node.list", {});
    if (nodes.some((one: Json) => one.nodeId === nodeId && !one.connected)) return;
  }
}

function enqueue(operator: TestClient, nodeId: string, more: Json = {}): Promise<Json> {
  const call = { nodeId, ...WHICH, idempotencyKey: crypto.randomUUID(), queue: HOUR, ...more };
  return operator.call("node.invoke", call);
}

function refused(operator: TestClient, nodeId: string, more: Json = {}) {
  const call = { nodeId, ...WHICH, idempotencyKey: crypto.randomUUID(), queue: HOUR, ...more };
  return operator.refused("node.invoke", call);
}

async function stateOf(operator: TestClient, queueId: string): Promise<Json> {
  return (await operator.call("node.queue.list", { queueId })).entries[0];
}

/** The event that tells of a state of an entry. */
function told(operator: TestClient, queueId: string, state: string): Promise<Json> {
  return operator.event(
    "node.queue.changed",
    (entry) => entry.queueId === queueId && entry.state === state,
  );
}

Deno.test("what is queued for a sleeping node is sent in order when it connects, one by one", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator, wake } = await sleepingNode(gateway);
  const ids: string[] = [];
  for (const bin of ["a", "b", "c"]) {
    const answer = await enqueue(operator, nodeId, { params: { bins: [bin] }, timeoutMs: 9_000 });
    assertEquals({ ...answer, queueId: "", expiresAtMs: 0 }, {
      ok: true,
      nodeId,
      command: "system.which",
      queued: true,
      queueId: "",
      expiresAtMs: 0,
      payload: null,
      payloadJSON: null,
    });
    assert(answer.expiresAtMs > Date.now());
    ids.push(answer.queueId);
  }

  await using node = await wake();
  const order: string[] = [];
  for (const queueId of ids) {
    const one = await asked(node);
    order.push(one.params.bins[0]);
    assertEquals(one.timeoutMs, 9_000);
    // The next one waits until this one has ended.
    const states = (await operator.call("node.queue.list", {})).entries.map((e: Json) => e.state);
    assertEquals(states.filter((state: string) => state === "sent").length, 1);
    await reply(node, one, { payloadJSON: `{"bins":{"${one.params.bins[0]}":"/x"}}` });
    await told(operator, queueId, "done");
  }

  assertEquals(order, ["a", "b", "c"]);
  const { payload, state, delivery } = await stateOf(operator, ids[2]);
  assertEquals([payload, state, delivery], [{ bins: { c: "/x" } }, "done", "done"]);
});

Deno.test("with queue, a node that is there is asked at once and answers as ever", async () => {
  await using gateway = await startTestGateway();
  await using node = await connectNode(gateway);
  const operator = await gateway.connect();

  const invoking = enqueue(operator, node.nodeId);
  await reply(node, await asked(node), { payload: { a: 1 } });

  const { queued, payload } = await invoking;
  assertEquals([queued, payload], [undefined, { a: 1 }]);
  assertEquals((await operator.call("node.queue.list", {})).entries, []);
});

Deno.test("without queue, a node that is not there is not connected, and nothing waits for it", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator } = await sleepingNode(gateway);

  const error = await refused(operator, nodeId, { queue: undefined });

  assertEquals([error.message, error.details.delivery], ["node not connected", "not-sent"]);
  assertEquals((await operator.call("node.queue.list", {})).entries, []);
});

Deno.test("what comes while the queue is being sent goes behind it", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator, wake } = await sleepingNode(gateway);
  await enqueue(operator, nodeId, { params: { bins: ["first"] } });
  await using node = await wake();
  const first = await asked(node);

  const second = await enqueue(operator, nodeId, { params: { bins: ["second"] } });
  const direct = enqueue(operator, nodeId, { params: { bins: ["direct"] }, queue: undefined });

  assertEquals(second.queued, true);
  const unqueued = await asked(node);
  assertEquals(unqueued.params.bins, ["direct"]);
  await reply(node, unqueued, {});
  await direct;
  await reply(node, first, {});
  const behind = await asked(node);
  assertEquals(behind.params.bins, ["second"]);
  await reply(node, behind, {});
  await told(operator, second.queueId, "done");
});

Deno.test("the same caller and key are one invocation, however often it is asked for", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator, wake } = await sleepingNode(gateway);
  const again = { idempotencyKey: "once" };

  const first = await enqueue(operator, nodeId, again);
  const second = await enqueue(operator, nodeId, again);
  const other = await refused(operator, nodeId, { ...again, command: "system.run" });
  await using node = await wake();
  await reply(node, await asked(node), {});
  await told(operator, first.queueId, "done");
  const third = await enqueue(operator, nodeId, again);

  assertEquals([second.queueId, third.queueId], [first.queueId, first.queueId]);
  assertEquals(other.message, "idempotencyKey was used for another invocation");
  assertEquals((await operator.call("node.queue.list", {})).entries.length, 1);
});

Deno.test("what waits can be cancelled once, and is then not sent", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator, wake } = await sleepingNode(gateway);
  const first = await enqueue(operator, nodeId, { params: { bins: ["cancelled"] } });
  const second = await enqueue(operator, nodeId, { params: { bins: ["sent"] } });

  const { entry } = await operator.call("node.queue.cancel", { queueId: first.queueId });
  const again = await operator.refused("node.queue.cancel", { queueId: first.queueId });
  const unknown = await operator.refused("node.queue.cancel", { queueId: "none" });
  await using node = await wake();
  const one = await asked(node);
  const sent = await operator.refused("node.queue.cancel", { queueId: second.queueId });
  await reply(node, one, {});

  assertEquals([entry.state, entry.delivery], ["cancelled", "not-sent"]);
  assertEquals(again.message, "Cannot cancel the invocation: it is cancelled");
  assertEquals(unknown.message, "unknown queueId");
  assertEquals([sent.message, sent.details.delivery], [
    "Cannot cancel the invocation: it is sent",
    "unknown",
  ]);
  assertEquals(one.params.bins, ["sent"]);
});

Deno.test("what nobody came for expires by itself and is told", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator } = await sleepingNode(gateway);

  const { queueId } = await enqueue(operator, nodeId, { queue: { ttlMs: 1 } });
  const { delivery, endedAtMs } = await told(operator, queueId, "expired");

  assertEquals(delivery, "not-sent");
  assertEquals(typeof endedAtMs, "number");
  assertEquals((await stateOf(operator, queueId)).state, "expired");
});

Deno.test("a node that goes away with an invocation leaves it unknown; it is not sent again", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator, wake } = await sleepingNode(gateway);
  const lost = await enqueue(operator, nodeId, { params: { bins: ["lost"] } });
  const next = await enqueue(operator, nodeId, { params: { bins: ["next"] } });

  const first = await wake();
  await asked(first);
  await first.client.socket.terminate();
  const { delivery, error } = await told(operator, lost.queueId, "failed");
  await using second = await wake();
  const one = await asked(second);
  await reply(second, one, {});
  await told(operator, next.queueId, "done");

  assertEquals(delivery, "unknown");
  assertStringIncludes(error.message, "node disconnected (system.which)");
  assertEquals(one.params.bins, ["next"]);
});

Deno.test("what a node could not do is kept with the reason", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator, wake } = await sleepingNode(gateway);
  const { queueId } = await enqueue(operator, nodeId);

  await using node = await wake();
  await reply(node, await asked(node), { ok: false, error: { code: "X", message: "no luck" } });
  const { delivery, error } = await told(operator, queueId, "failed");

  assertEquals([delivery, error.code, error.message], ["done", "UNAVAILABLE", "no luck"]);
  assertEquals(error.details.nodeError, { code: "X", message: "no luck" });
});

Deno.test("the rules are asked when it is queued, and again when it is sent", async () => {
  await using gateway = await startTestGateway({
    config: { gateway: { nodes: { allowCommands: ["fs.read"] } } },
  });
  const { nodeId, operator, wake } = await sleepingNode(gateway);

  const notAllowed = await refused(operator, nodeId, { command: "fs.write" });
  const rules = await refused(operator, nodeId, { command: "system.execApprovals.set" });
  const unnamed = await refused(operator, nodeId, { command: " " });
  const unknown = await refused(operator, "f".repeat(64));
  const undeclared = await enqueue(operator, nodeId, { command: "fs.read" });
  const good = await enqueue(operator, nodeId);
  await using node = await wake();
  const one = await asked(node);
  await reply(node, one, {});
  await told(operator, good.queueId, "done");

  assertEquals([notAllowed.message, notAllowed.details.reason], [
    "node command not allowed",
    "command not allowlisted",
  ]);
  assertEquals(rules.message, "Cannot queue the invocation: rules are replaced at once");
  assertEquals(unnamed.details.reason, "command required");
  assertEquals([unknown.code, unknown.message], ["INVALID_REQUEST", "unknown nodeId"]);
  const { state, delivery, error } = await stateOf(operator, undeclared.queueId);
  assertEquals([state, delivery, error.details.reason], [
    "failed",
    "not-sent",
    "command not declared by node",
  ]);
  assertEquals(one.command, "system.which");
});

Deno.test("a command that was forbidden meanwhile is not sent", async () => {
  await using gateway = await startTestGateway({ config: {} });
  const { nodeId, operator, wake } = await sleepingNode(gateway);
  const { queueId } = await enqueue(operator, nodeId);
  const { hash } = await operator.call("config.get", {});
  await operator.call("config.patch", {
    baseHash: hash,
    raw: JSON.stringify({ gateway: { nodes: { denyCommands: ["system.which"] } } }),
  });

  await using _node = await wake();
  const { delivery, error } = await told(operator, queueId, "failed");

  assertEquals([delivery, error.details.reason], ["not-sent", "command not allowlisted"]);
});

Deno.test("an approval is looked for when it is sent, and the caller's own word for it counts for nothing", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator, wake } = await sleepingNode(gateway);
  const run = (argv: string[], more: Json = {}) =>
    enqueue(operator, nodeId, { command: "system.run", params: { command: argv, ...more } });
  const mismatch = await refused(operator, nodeId, {
    command: "system.run",
    params: { command: ["rm", "-rf", "/"], rawCommand: "ls" },
  });
  await run(["uname"], { approved: true, approvalDecision: "allow-always" });
  await run(["date"], { approved: true });
  // Somebody approves the second one, and just that one.
  const id = crypto.randomUUID();
  const asking = operator.call("exec.approval.request", {
    id,
    command: "date",
    nodeId,
    argv: ["date"],
  });
  await operator.event("exec.approval.requested", (one) => one.id === id);
  await operator.call("exec.approval.resolve", { id, decision: "allow-once" });
  await asking;

  await using node = await wake();
  const params: Json[] = [];
  for (let count = 0; count < 2; count++) {
    const one = await asked(node);
    params.push(one.params);
    await reply(node, one, {});
  }

  assertEquals(mismatch.message, "rawCommand does not match command");
  assertEquals(params, [
    { command: ["uname"] },
    { command: ["date"], approved: true, approvalDecision: "allow-once" },
  ]);
});

Deno.test("what a device queued is void once that device may not ask for it any more", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator, wake } = await sleepingNode(gateway);
  const [kept, removed, revoked] = [await newDevice(), await newDevice(), await newDevice()];
  const ids: string[] = [];
  for (const device of [removed, revoked, kept]) {
    const client = await gateway.connect({ device, scopes: ["operator.write"] });
    ids.push((await enqueue(client, nodeId)).queueId);
  }
  await operator.call("device.pair.remove", { deviceId: removed.deviceId });
  await operator.call("device.token.revoke", { deviceId: revoked.deviceId, role: "operator" });

  await using node = await wake();
  await reply(node, await asked(node), {});
  await told(operator, ids[2], "done");

  for (const queueId of ids.slice(0, 2)) {
    const { state, delivery, error } = await stateOf(operator, queueId);
    assertEquals([state, delivery, error.code], ["failed", "not-sent", "FORBIDDEN"]);
  }
});

Deno.test("the answer is for who queued it and for admins; params are shown to nobody", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator, wake } = await sleepingNode(gateway);
  const device = await newDevice();
  const author = await gateway.connect({ device, scopes: ["operator.write"] });
  const reader = await gateway.connect({ device: true, scopes: ["operator.read"] });
  const { queueId } = await enqueue(author, nodeId, { params: { bins: ["a-secret-word"] } });
  await using node = await wake();
  const one = await asked(node);
  const during = await operator.call("node.queue.list", {});
  await reply(node, one, { payloadJSON: '{"found":1}' });
  await told(operator, queueId, "done");

  const answers = [];
  for (const client of [author, operator, reader]) {
    answers.push((await stateOf(client, queueId)).payload);
  }

  assertEquals(answers, [{ found: 1 }, { found: 1 }, undefined]);
  const list = await operator.call("node.queue.list", { nodeId });
  assertEquals([list.entries.length, list.entries[0].payload], [1, undefined]);
  assert(!JSON.stringify([during, list]).includes("a-secret-word"));
  assertEquals((await operator.call("node.queue.list", { nodeId: "other" })).entries, []);
});

Deno.test("a node that is removed takes what waits for it along", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator, wake } = await sleepingNode(gateway);
  await enqueue(operator, nodeId);

  await operator.call("node.pair.remove", { nodeId });
  await using node = await wake();
  const invoking = enqueue(operator, nodeId, { params: { bins: ["new"] } });
  const one = await asked(node);
  await reply(node, one, {});

  assertEquals(one.params.bins, ["new"]);
  assertEquals((await invoking).queued, undefined);
  assertEquals((await operator.call("node.queue.list", {})).entries, []);
});

Deno.test("the methods say what is wrong with their params", async () => {
  await using gateway = await startTestGateway();
  const { nodeId, operator } = await sleepingNode(gateway);

  for (const queue of [{}, { ttlMs: 0 }, { ttlMs: 604_800_001 }, { ttlMs: 0.5 }, true]) {
    assertMatch(
      (await refused(operator, nodeId, { queue })).message,
      /^invalid node\.invoke params/,
    );
  }
  for (const method of ["node.queue.list", "node.queue.cancel"]) {
    const error = await operator.refused(method, { queueId: "" });
    assertMatch(error.message, new RegExp(`^invalid ${method} params`));
  }
  const unknown = await operator.refused("node.queue.list", { queueId: "none" });
  assertEquals(unknown.message, "unknown queueId");
});

// The queue by itself, with a clock and a node that do as they are told.

interface Bench extends Disposable {
  queue: NodeQueue;
  store: Store;
  /** Invocations as they were sent. */
  sent: Json[];
  news: QueueEntry[];
  clock: { nowMs: number };
  /** The node is there; answers as told. */
  node: { isThere: boolean; answer: () => Promise<Json> };
  restart(): NodeQueue;
}

const CLAIM: DeviceClaim = { deviceId: "n", publicKey: "k", role: "node", scopes: [] };
const ASKED = {
  nodeId: "n",
  command: "system.which",
  params: { a: 1 },
  timeoutMs: 1_000,
  caller: "shared secret",
  by: "somebody",
};

function bench(options: Partial<NodeQueueOptions> = {}): Bench {
  const store = Store.open(":memory:");
  const devices = new DeviceStore(store);
  for (const deviceId of ["n", "m"]) devices.pair({ ...CLAIM, deviceId });
  const sent: Json[] = [];
  const news: QueueEntry[] = [];
  const clock = { nowMs: 1_000_000 };
  const node = { isThere: false, answer: () => Promise.resolve({ payload: 1, payloadJSON: "1" }) };
  const make = () =>
    new NodeQueue({
      store,
      log: { error() {} } as unknown as Log,
      nodes: {
        find: () => (node.isThere ? {} : undefined) as never,
        invoke: (invocation) => {
          sent.push(invocation.params);
          return node.answer() as never;
        },
      },
      clear: (queued) => queued,
      changed: (entry) => news.push(entry),
      now: () => clock.nowMs,
      ...options,
    });
  let queue = make();
  return {
    get queue() {
      return queue;
    },
    store,
    sent,
    news,
    clock,
    node,
    restart() {
      queue[Symbol.dispose]();
      return queue = make();
    },
    [Symbol.dispose]() {
      queue[Symbol.dispose]();
      store[Symbol.dispose]();
    },
  };
}

function add({ queue }: Bench, key: string, more: Json = {}, ttlMs = 60_000) {
  return queue.add({ ...ASKED, idempotencyKey: key, ...more }, ttlMs);
}

/** The text of the refusal. */
function full(work: () => unknown): [string, unknown] {
  try {
    work();
  } catch (error) {
    if (error instanceof RpcError) return [error.message, (error.details as Json)?.code];
  }
  throw new Error("it was not refused");
}

const settled = () => new Promise((resolve) => setTimeout(resolve));

Deno.test("the queue is bounded: per node, in total, and in size", () => {
  using one = bench({ limits: { perNode: 2, inTotal: 3, paramsSize: 100, totalSize: 150 } });
  add(one, "1");
  add(one, "2");

  const perNode = full(() => add(one, "3"));
  const tooLarge = full(() => add(one, "4", { nodeId: "m", params: "x".repeat(99) }));
  add(one, "5", { nodeId: "m", params: "x".repeat(98) });
  const inTotal = full(() => add(one, "6", { nodeId: "m" }));
  one.queue.cancel(one.queue.list()[0].queueId);
  const together = full(() => add(one, "7", { params: "x".repeat(90) }));
  add(one, "8");

  assertEquals(perNode, [
    "Cannot queue the invocation: 2 wait for this node already",
    "QUEUE_FULL",
  ]);
  assertEquals(tooLarge, [
    "Cannot queue the invocation: its params have 101 characters, 100 may wait",
    undefined,
  ]);
  assertEquals(inTotal, ["Cannot queue the invocation: 3 wait already", "QUEUE_FULL"]);
  assertEquals(together, [
    "Cannot queue the invocation: what waits already is too large together",
    "QUEUE_FULL",
  ]);
});

Deno.test("a gateway that starts again has what waited, and reports what was sent as unknown", async () => {
  using one = bench();
  one.node.isThere = true;
  one.node.answer = () => new Promise(() => {});
  const sent = add(one, "1", { params: "sent" });
  const waiting = add(one, "2", { params: "waiting" });

  one.node.answer = () => Promise.resolve({ payload: 2, payloadJSON: "2" });
  const again = one.restart();
  const before = again.list().map(({ queueId, state, delivery }) => [queueId, state, delivery]);
  again.flush("n");
  await settled();

  assertEquals(before, [
    [sent.queueId, "failed", "unknown"],
    [waiting.queueId, "waiting", "not-sent"],
  ]);
  assertEquals(one.sent, ["sent", "waiting"]);
  assertEquals(again.describe(waiting.queueId, () => true)?.payload, 2);
  assertEquals(
    again.describe(sent.queueId, () => true)?.error?.message,
    "gateway stopped before " +
      "the node answered",
  );
});

Deno.test("what could not be sent goes on waiting, and what is overdue expires before it is sent", async () => {
  using one = bench();
  one.node.isThere = true;
  one.node.answer = () =>
    Promise.reject(new RpcError("UNAVAILABLE", "x", { details: { delivery: "not-sent" } }));
  const { queueId } = add(one, "1");
  await settled();
  const waiting = one.queue.list();
  one.clock.nowMs += 60_000;
  one.queue.flush("n");
  await settled();

  assertEquals([waiting[0].state, waiting[0].delivery, waiting[0].sentAtMs], [
    "waiting",
    "not-sent",
    undefined,
  ]);
  assertEquals(one.queue.describe(queueId, () => true)?.state, "expired");
  assertEquals(one.sent.length, 1);
  assertEquals(one.news.map(({ state }) => state), ["waiting", "sent", "waiting", "expired"]);
});

Deno.test("what has ended is kept for a while, without its params, and not without bound", async () => {
  using one = bench({ limits: { ended: 2, answerSize: 40, endedTtlMs: 1_000 } });
  one.node.isThere = true;
  for (const key of ["1", "2", "3"]) {
    add(one, key);
    await settled();
  }
  const kept = one.queue.list().length;
  one.node.answer = () => Promise.resolve({ payload: "x".repeat(50), payloadJSON: null });
  const { queueId } = add(one, "4");
  await settled();
  const large = one.queue.describe(queueId, () => true);
  const params = one.store.prepare("SELECT count(params) AS kept FROM node_queue").get()?.kept;
  one.clock.nowMs += 1_001;
  add(one, "5");
  await settled();

  assertEquals(kept, 2);
  assertEquals([large?.state, large?.payload], ["done", undefined]);
  assertMatch(large?.error?.message ?? "", /^the answer is too large to be kept/);
  assertEquals(params, 0);
  assertEquals(one.queue.list().length, 1);
});
