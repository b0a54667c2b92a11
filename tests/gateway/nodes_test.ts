import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import type { Connection } from "../../gateway/connection.ts";
import { NodeRegistry } from "../../gateway/nodes.ts";
import { RpcError } from "../../rpc/error.ts";
import type { Json } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import { startTestGateway } from "../support/gateway.ts";
import { asked, connectNode, nodesOnce, reply, serveNode, write } from "../support/node.ts";
import { droppedNodes, resultsBeforeClose } from "../soak/nodes.ts";

const WHICH = { command: "system.which", idempotencyKey: "key-1" };

/** A connection that takes what it is sent, and notes it. */
function fakeConnection(id: string, { isGone = false } = {}) {
  const sent: Json[] = [];
  const closes: number[] = [];
  const connection = {
    id,
    sendEvent: (_: string, payload: unknown) => !isGone && sent.push(payload) > 0,
    close: (code: number) => closes.push(code),
  };
  return { connection: connection as unknown as Connection, sent, closes };
}

const OFFER = { caps: [], commands: ["system.which"] };
const INVOKE = {
  nodeId: "n",
  command: "system.which",
  params: {},
  timeoutMs: 60_000,
  idempotencyKey: "1",
};

Deno.test("an invocation reaches the node with its params, and its result the caller", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  await using node = await connectNode(gateway);
  const { nodeId } = node;
  const results: [Record<string, unknown>, unknown, string | null][] = [
    [{ payloadJSON: '{"bins":{}}' }, { bins: {} }, '{"bins":{}}'],
    [{ payloadJSON: "not json" }, { payloadJSON: "not json" }, "not json"],
    [{ payloadJSON: '"a"', payload: "b" }, "a", '"a"'],
    [{ payload: { a: 1 } }, { a: 1 }, null],
    [{ payload: { a: 1 }, payloadJSON: null, error: null }, { a: 1 }, null],
    [{ payloadJSON: { a: 1 } }, { a: 1 }, null],
    [{}, null, null],
  ];

  for (const [result, payload, payloadJSON] of results) {
    const invoking = operator.call("node.invoke", {
      nodeId,
      ...WHICH,
      params: { bins: ["sh"] },
      timeoutMs: 9_000,
    });
    const event = await node.client.event("node.invoke.request");
    await reply(node, event, result);

    const { id, ...rest } = event;
    assert(typeof id === "string" && id !== "");
    assertEquals(rest, {
      nodeId,
      command: "system.which",
      paramsJSON: '{"bins":["sh"]}',
      timeoutMs: 9_000,
      idempotencyKey: "key-1",
    });
    const { command } = WHICH;
    assertEquals(await invoking, { ok: true, nodeId, command, payload, payloadJSON });
  }
});

Deno.test("without params paramsJSON is null, and the deadline is 30 s", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  await using node = await connectNode(gateway);
  const invoking = operator.call("node.invoke", { nodeId: node.nodeId, ...WHICH });

  const event = await node.client.event("node.invoke.request");
  await reply(node, event, {});
  await invoking;

  assertEquals([event.paramsJSON, event.timeoutMs], [null, 30_000]);
});

Deno.test("every failure of an invocation says whether it was delivered", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  await using node = await connectNode(gateway);
  const { nodeId } = node;
  const invoke = (more = {}) => operator.refused("node.invoke", { nodeId, ...WHICH, ...more });

  const absent = await invoke({ nodeId: "f".repeat(64) });
  const late = await invoke({ timeoutMs: 30 });
  await asked(node);
  const failing = invoke();
  await reply(node, await asked(node), { ok: false, error: { code: "X", message: "no luck" } });
  const wordless = invoke();
  await reply(node, await asked(node), { ok: false });
  const leaving = invoke();
  await asked(node);
  await node.client.socket.terminate();

  assertEquals([absent.code, absent.message, absent.details], [
    "UNAVAILABLE",
    "node not connected",
    { code: "NOT_CONNECTED", delivery: "not-sent" },
  ]);
  assertEquals([late.code, late.message, late.details], ["UNAVAILABLE", "node invoke timed out", {
    nodeError: { code: "TIMEOUT", message: "node invoke timed out" },
    delivery: "unknown",
  }]);
  const failed = await failing;
  assertEquals([failed.message, failed.details], ["no luck", {
    nodeError: { code: "X", message: "no luck" },
    delivery: "done",
  }]);
  assertEquals([(await wordless).message, (await wordless).details], [
    "node invoke failed",
    { nodeError: null, delivery: "done" },
  ]);
  const left = await leaving;
  assertEquals([left.code, left.details.delivery], ["UNAVAILABLE", "unknown"]);
  assertStringIncludes(left.message, "node disconnected (system.which)");
});

Deno.test("an invocation that cannot be sent says so, and leaves nothing behind", async () => {
  using nodes = new NodeRegistry();
  nodes.register("n", fakeConnection("c1", { isGone: true }).connection, OFFER);

  const error = await assertRejects(() => nodes.invoke(INVOKE), RpcError);

  assertEquals([error.message, error.details], ["failed to send invoke to node", {
    nodeError: { code: "UNAVAILABLE", message: "failed to send invoke to node" },
    delivery: "not-sent",
  }]);
});

Deno.test("an invocation settles once; what comes later is ignored and counted", async () => {
  using nodes = new NodeRegistry();
  const { connection, sent } = fakeConnection("c1");
  nodes.register("n", connection, OFFER);
  const settle = (payload: unknown, nodeId = "n") =>
    nodes.settle(sent[0].id, nodeId, { ok: true, payload });

  const invoking = nodes.invoke(INVOKE);
  const foreign = settle("foreign", "m");
  const first = settle("first");
  const second = settle("second");
  nodes.unregister("n", "c1");

  assertEquals([foreign, first, second], [false, true, false]);
  assertEquals((await invoking).payload, "first");
  assertEquals(nodes.lateResults, 2);
});

Deno.test("a result after the deadline is answered as ignored, and the caller has one outcome", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  await using node = await connectNode(gateway);
  const { nodeId } = node;

  const outcome = await operator.request("node.invoke", { nodeId, ...WHICH, timeoutMs: 20 });
  const event = await asked(node);
  const late = await reply(node, event, { payload: 1 });
  const unknown = await reply(node, { ...event, id: "never" }, {});
  await operator.call("health", {});

  assertEquals(outcome.error.details.nodeError.code, "TIMEOUT");
  assertEquals([late, unknown], [{ ok: true, ignored: true }, { ok: true, ignored: true }]);
  assertEquals(operator.socket.waiting.filter(({ id }) => id === outcome.id), []);
  assertStringIncludes(await gateway.log(), `"lateResults":2`);
});

Deno.test("a node answers for itself alone", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  await using one = await connectNode(gateway);
  await using other = await connectNode(gateway);
  const invoking = operator.call("node.invoke", { nodeId: one.nodeId, ...WHICH });
  const event = await asked(one);

  const posing = await other.client.refused("node.invoke.result", {
    id: event.id,
    nodeId: one.nodeId,
    ok: true,
  });
  const stealing = await reply(other, event, { payload: "stolen" });
  await reply(one, event, { payload: "own" });

  assertEquals(posing.message, "nodeId mismatch");
  assertEquals(stealing, { ok: true, ignored: true });
  assertEquals((await invoking).payload, "own");
});

Deno.test("a result sent just before the node leaves still counts, every time", async () => {
  assertEquals((await resultsBeforeClose({ rounds: 300 })).successes, 300);
});

Deno.test("a result sent just before the node leaves counts on JSON-RPC as well", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const device = await newDevice();
  const { deviceId: nodeId } = device;
  for (let round = 0; round < 50; round++) {
    const node = await connectNode(gateway, { device, jsonrpc: true });
    const invoking = operator.call("node.invoke", { nodeId, ...WHICH });
    const { id } = await asked(node);
    const params = { id, nodeId, ok: true, payload: round };
    const call = { jsonrpc: "2.0", id: 1, method: "node.invoke.result", params };
    node.client.socket.send(call);
    await node.client.socket.terminate();

    assertEquals((await invoking).payload, round);
  }
});

Deno.test("200 nodes that drop and come back have one registration each, and no ghost", async () => {
  assertEquals((await droppedNodes({ nodes: 200, times: 1 })).registrations, 200);
});

Deno.test("the end of a replaced connection ends what was sent over it, and nothing else", async () => {
  using nodes = new NodeRegistry();
  const old = fakeConnection("c1");
  const next = fakeConnection("c2");
  nodes.register("n", old.connection, OFFER);
  const before = nodes.invoke(INVOKE);
  nodes.register("n", next.connection, OFFER);
  const after = nodes.invoke(INVOKE);

  nodes.unregister("n", "c1");
  nodes.settle(next.sent[0].id, "n", { ok: true, payload: 1 });

  assertEquals(old.closes, [4000]);
  assertEquals(nodes.find("n")?.connection.id, "c2");
  const error = await assertRejects(() => before, RpcError, "node disconnected");
  assertEquals((error.details as Json).delivery, "unknown");
  assertEquals((await after).payload, 1);
});

Deno.test("a result that comes over the new connection settles what went over the old one", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const device = await newDevice();
  const old = await connectNode(gateway, { device });
  old.client.socket.pause();
  const invoking = operator.call("node.invoke", { nodeId: old.nodeId, ...WHICH });
  // Once this is answered the invocation is on its way.
  await operator.call("health", {});
  old.client.socket.resume();
  const event = await asked(old);
  old.client.socket.pause();
  await using fresh = await connectNode(gateway, { device });

  const answer = await reply(fresh, event, { payload: "still" });

  assertEquals(answer, { ok: true });
  assertEquals((await invoking).payload, "still");
  await old.client.socket.terminate();
});

Deno.test("a gateway that stops ends what is in flight", async () => {
  const nodes = new NodeRegistry();
  nodes.register("n", fakeConnection("c1").connection, OFFER);
  const invoking = nodes.invoke(INVOKE);

  nodes[Symbol.dispose]();

  const error = await assertRejects(() => invoking, RpcError, "gateway stopping");
  assertEquals((error.details as Json).delivery, "unknown");
});

Deno.test("node.list has connected nodes first, then by name; those that left offer nothing", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const gone = await connectNode(gateway, { name: "Attic" });
  await using _b = await connectNode(gateway, { name: "beta" });
  await using a = await connectNode(gateway, { name: "Alpha", commands: ["system.which"] });
  const leftAtMs = Date.now();
  await gone.client.close();

  const nodes = await nodesOnce(operator, (all) =>
    all.some(({ connected }) => !connected) &&
    all.every(({ connected, latencyMs }) => !connected || latencyMs !== undefined));
  const { ts } = await operator.call("node.list", {});
  const described = await operator.call("node.describe", { nodeId: a.nodeId });
  const unknown = await operator.refused("node.describe", { nodeId: "nobody" });

  assertEquals(nodes.map((one: Json) => [one.displayName, one.connected, one.paired]), [
    ["Alpha", true, true],
    ["beta", true, true],
    ["Attic", false, true],
  ]);
  const [first, , last] = nodes;
  assertEquals([first.caps, first.commands, first.platform], [
    ["system"],
    ["system.which"],
    "linux",
  ]);
  assert(first.connectedAtMs <= ts && first.latencyMs >= 0, JSON.stringify(first));
  assertEquals([last.caps, last.commands, last.connectedAtMs], [[], [], undefined]);
  assert(last.lastConnectedAtMs <= leftAtMs, JSON.stringify(last));
  assert(last.lastSeenAtMs >= leftAtMs && last.lastSeenAtMs <= ts, JSON.stringify(last));
  assertEquals(first.lastSeenAtMs, undefined);
  assertEquals({ ...described, ts: 0, latencyMs: 0 }, { ...first, ts: 0, latencyMs: 0 });
  assertEquals(unknown.message, "unknown nodeId");
});

Deno.test("a node without a device goes by its client id", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  await gateway.connect({ role: "node", client: { id: "node-host" } });

  const { nodes } = await operator.call("node.list", {});

  assertEquals(nodes.map((one: Json) => [one.nodeId, one.paired]), [["node-host", false]]);
});

Deno.test("a name somebody gave a node stands above its own, also after it reconnects", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const device = await newDevice();
  const node = await connectNode(gateway, { device, name: "own name" });
  const { nodeId } = node;

  const answer = await operator.call("node.rename", { nodeId, displayName: "  Kitchen  " });
  await node.client.close();
  await using _again = await connectNode(gateway, { device, name: "own name" });
  const { nodes } = await operator.call("node.list", {});
  const blank = await operator.refused("node.rename", { nodeId, displayName: " " });
  const unknown = await operator.refused("node.rename", { nodeId: "x", displayName: "y" });

  assertEquals(answer, { nodeId, displayName: "Kitchen" });
  assertEquals(nodes[0].displayName, "Kitchen");
  assertEquals([blank.message, unknown.message], ["displayName required", "unknown nodeId"]);
});

Deno.test("a node that calls what is for operators is told its role, and stays", async () => {
  await using gateway = await startTestGateway();
  await using node = await connectNode(gateway);

  const list = await node.client.refused("node.list", {});
  const invoke = await node.client.refused("node.invoke", { nodeId: node.nodeId, ...WHICH });
  const unknown = await node.client.refused("node.skills.update", {});
  const bins = await node.client.call("skills.bins", {});

  assertEquals(list.message, "unauthorized role: node");
  assertEquals(invoke.message, "unauthorized role: node");
  assertEquals(unknown.message, "unknown method: node.skills.update");
  assertEquals(bins, { bins: [] });
});

Deno.test("what a node runs is told to the session, and unknown events are accepted", async () => {
  await using gateway = await startTestGateway();
  await using node = await connectNode(gateway);
  const tell = (event: string, more: Record<string, unknown>) =>
    node.client.call("node.event", { event, ...more });
  const facts = { runId: "r1", command: "uname", exitCode: 3, output: "Linux" };

  const finished = await tell("exec.finished", { payloadJSON: JSON.stringify(facts) });
  const preferred = await tell("exec.denied", {
    payload: { runId: "no" },
    payloadJSON: JSON.stringify({ ...facts, reason: "allowlist-miss" }),
  });
  const unknown = await tell("node.host.stats", { payload: {} });
  const broken = await tell("exec.finished", { payloadJSON: "{half" });

  assertEquals(finished, { ok: true, event: "exec.finished", handled: true });
  assertEquals(preferred.handled, true);
  assertEquals([unknown.ok, unknown.handled], [true, false]);
  assertEquals([broken.ok, broken.handled], [true, false]);
});

Deno.test("a removed node is disconnected and forgotten", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const node = await connectNode(gateway);
  const { nodeId } = node;

  const answer = await operator.call("node.pair.remove", { nodeId });
  const { code, reason } = await node.client.closed;
  const again = await operator.refused("node.pair.remove", { nodeId });

  assertEquals(answer, { nodeId });
  assertEquals([code, reason], [4001, "node removed"]);
  assertEquals((await operator.call("node.list", {})).nodes, []);
  assertEquals(again.message, "unknown nodeId");
});

const STREAMING = { params: { caps: ["system", "invoke.progress"] } };
const OUT = { seq: 0, stream: "stdout" as const, data: "a\nß" };
const ERR = { seq: 1, stream: "stderr" as const, data: "oh" };
const IGNORED = { ok: true, ignored: true };

Deno.test("what a command writes while it runs reaches the connection that asked, and no other", async () => {
  await using gateway = await startTestGateway();
  for (const jsonrpc of [false, true]) {
    const device = await newDevice();
    const operator = await gateway.connect({ device, jsonrpc });
    const other = await gateway.connect({ device });
    await using node = await connectNode(gateway, STREAMING);
    const { nodeId } = node;
    const invoking = operator.call("node.invoke", { nodeId, ...WHICH, progress: true });

    const request = await asked(node);
    const answers = [await write(node, request, OUT), await write(node, request, ERR)];
    const pieces = [
      await operator.event("node.invoke.progress"),
      await operator.event("node.invoke.progress"),
    ];
    await reply(node, request, { payload: 1 });
    await other.call("health", {});

    assertEquals(request.progress, true);
    assertEquals(answers, [{ ok: true }, { ok: true }]);
    assertEquals(pieces, [
      { idempotencyKey: "key-1", nodeId, ...OUT },
      { idempotencyKey: "key-1", nodeId, ...ERR },
    ]);
    assertEquals((await invoking).payload, 1);
    assert(!other.untakenEvents.includes("node.invoke.progress"));
  }
});

Deno.test("gateways say among methods and events that they pass on what commands write", async () => {
  await using gateway = await startTestGateway();

  const { hello: { features } } = await gateway.connect();

  assert(features.methods.includes("node.invoke.progress"));
  assert(features.events.includes("node.invoke.progress"));
});

Deno.test("what nobody asked for, or what comes too late or from elsewhere, is ignored", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  await using node = await connectNode(gateway, STREAMING);
  await using plain = await connectNode(gateway);
  const invoke = (nodeId: string, progress?: boolean) =>
    operator.call("node.invoke", { nodeId, ...WHICH, progress });

  const unasked = invoke(node.nodeId);
  const unaskedRequest = await asked(node);
  const answers = [await write(node, unaskedRequest, OUT)];
  await reply(node, unaskedRequest, {});
  const unable = invoke(plain.nodeId, true);
  const unableRequest = await asked(plain);
  answers.push(await write(plain, unableRequest, OUT));
  await reply(plain, unableRequest, {});
  const ended = invoke(node.nodeId, true);
  const endedRequest = await asked(node);
  const stolen = { ...endedRequest, nodeId: plain.nodeId };
  answers.push(await write(plain, stolen, OUT));
  await reply(node, endedRequest, {});
  answers.push(await write(node, endedRequest, OUT));
  await Promise.all([unasked, unable, ended]);
  await operator.call("health", {});

  assertEquals(answers, [IGNORED, IGNORED, IGNORED, IGNORED]);
  assertEquals([unaskedRequest.progress, unableRequest.progress], [undefined, undefined]);
  assert(!operator.untakenEvents.includes("node.invoke.progress"));
});

Deno.test("progress counts only over the connection that the invocation went over", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const device = await newDevice();
  const old = await connectNode(gateway, { device, ...STREAMING });
  const invoking = operator.call("node.invoke", {
    nodeId: old.nodeId,
    ...WHICH,
    progress: true,
  });
  const request = await asked(old);
  // It does not read that it is replaced, and so stays half open.
  old.client.socket.pause();
  await using fresh = await connectNode(gateway, { device, ...STREAMING });

  const answer = await write(fresh, request, OUT);
  await reply(fresh, request, { payload: 1 });

  assertEquals(answer, IGNORED);
  assertEquals((await invoking).payload, 1);
  await old.client.socket.terminate();
});

Deno.test("progress has a form: a stream, a number, and so much text at most", async () => {
  await using gateway = await startTestGateway();
  await using node = await connectNode(gateway, STREAMING);
  const tell = (change: Record<string, unknown>) =>
    node.client.refused("node.invoke.progress", {
      id: "i",
      nodeId: node.nodeId,
      ...OUT,
      ...change,
    });

  const posing = await tell({ nodeId: "somebody" });
  const stream = await tell({ stream: "stdin" });
  const seq = await tell({ seq: -1 });
  const long = await tell({ data: "x".repeat(16_385) });

  assertEquals(posing.message, "nodeId mismatch");
  assertStringIncludes(stream.message, "at /stream: must be equal to one of the allowed values");
  assertStringIncludes(seq.message, "at /seq: must be >= 0");
  assertStringIncludes(long.message, "at /data: must NOT have more than 16384 characters");
});

Deno.test("a caller that does not read misses progress, and never the result", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  await using node = await connectNode(gateway, STREAMING);
  const { nodeId } = node;
  const { socket } = operator;
  socket.send({
    type: "req",
    id: "invoke",
    method: "node.invoke",
    params: { nodeId, ...WHICH, progress: true },
  });
  const request = await asked(node);
  socket.pause();
  const data = "\u0001".repeat(16_384);

  let seq = 0;
  const piece = () => ({ seq: seq++, stream: "stdout" as const, data });
  while (!(await write(node, request, piece())).ignored) assert(seq < 5_000, "all were taken");
  const further = await write(node, request, piece());
  await reply(node, request, { payload: "whole" });
  socket.resume();
  const { payload } = await socket.take(({ id }) => id === "invoke");

  assertEquals([further, payload.payload], [IGNORED, "whole"]);
  const seqs = socket.waiting.filter(({ event }) => event === "node.invoke.progress")
    .map(({ payload }) => payload.seq);
  assertEquals(seqs, seqs.map((_, index) => index));
  assert(seqs.length > 0 && seqs.length < seq);
});

Deno.test("a node that falls silent is given up, and what it was asked fails at once", async () => {
  await using gateway = await startTestGateway({ pingIntervalMs: 500 });
  const operator = await gateway.connect();
  const node = await connectNode(gateway);
  const { nodeId } = node;
  node.client.socket.pause();

  const error = await operator.refused("node.invoke", { nodeId, ...WHICH, timeoutMs: 600_000 });
  const [{ connected }] = await nodesOnce(operator, ([one]) => !one.connected);

  assertEquals([error.code, error.details.delivery], ["UNAVAILABLE", "unknown"]);
  assertStringIncludes(error.message, "node disconnected (system.which)");
  assertEquals(connected, false);
  await node.client.socket.terminate();
});

Deno.test("many invocations at once each get their own answer, in whatever order", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  await using node = await serveNode(gateway, async ({ params }) => {
    await operator.call("health", {});
    return { payload: params.number };
  });
  const { nodeId } = node;

  const answers = await Promise.all(
    Array.from(
      { length: 40 },
      (_, number) => operator.call("node.invoke", { nodeId, ...WHICH, params: { number } }),
    ),
  );

  assertEquals(answers.map(({ payload }) => payload), answers.map((_, number) => number));
});

Deno.test("who may only write cannot replace a node's rules by invoking their command", async () => {
  await using gateway = await startTestGateway();
  await using node = await connectNode(gateway, { commands: ["system.execApprovals.set"] });
  await using writer = await gateway.connect({ scopes: ["operator.read", "operator.write"] });

  const refusal = await writer.refused("node.invoke", {
    nodeId: node.nodeId,
    command: "system.execApprovals.set",
    params: { file: { version: 1, defaults: { security: "full", ask: "off" } } },
    idempotencyKey: "k",
  });

  assertEquals(refusal.message, "missing scope: operator.admin");
});
