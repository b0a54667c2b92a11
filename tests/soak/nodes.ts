// Nodes that come and go: results sent on the way out, many dropped at once, one that stops answering.

import { assert, assertEquals } from "@std/assert";
import { spawnZero } from "../support/cli.ts";
import type { Json } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import { startTestGateway } from "../support/gateway.ts";
import { asked, connectNode, nodesOnce, type TestNode } from "../support/node.ts";

/** A node that sends its result and closes at once, again and again. */
export async function resultsBeforeClose({ rounds }: { rounds: number }) {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const device = await newDevice();
  const begin = performance.now();
  for (let round = 0; round < rounds; round++) {
    const node = await connectNode(gateway, { device });
    const { nodeId } = node;
    const invoking = operator.call("node.invoke", {
      nodeId,
      command: "system.which",
      idempotencyKey: "1",
    });
    const { id } = await asked(node);
    const params = { id, nodeId, ok: true, payload: { round } };
    node.client.socket.send({ type: "req", id: "r", method: "node.invoke.result", params });
    // Every third goes without a word.
    const gone = round % 3 === 0 ? node.client.socket.terminate() : node.client.close();
    assertEquals((await invoking).payload, { round }, `round ${round}`);
    await gone;
    // What the operator was told of presence meanwhile is of no interest.
    if (round % 100 === 0) (operator.socket.waiting as Json[]).length = 0;
  }
  const ms = performance.now() - begin;
  return { rounds, successes: rounds, "rounds a second": Math.round(rounds / ms * 1_000) };
}

/** Nodes that all drop and all come back, before their old sockets are known to be gone. */
export async function droppedNodes({ nodes, times }: { nodes: number; times: number }) {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const devices = await Promise.all(Array.from({ length: nodes }, newDevice));
  const connectAll = () => Promise.all(devices.map((device) => connectNode(gateway, { device })));
  let current: TestNode[] = await connectAll();
  for (let time = 0; time < times; time++) {
    const old = current;
    current = await connectAll();
    const ends = await Promise.all(old.map(({ client }) => client.closed));
    assert(ends.every(({ code }) => code === 4000), JSON.stringify(ends[0]));
  }
  const list = (await operator.call("node.list", {})).nodes as Json[];
  const ids = list.map(({ nodeId }) => nodeId);
  assertEquals(ids.toSorted(), devices.map(({ deviceId }) => deviceId).toSorted());
  assert(list.every(({ connected }) => connected));
  await Promise.all(current.map(async (node) => {
    const invoking = operator.call("node.invoke", {
      nodeId: node.nodeId,
      command: "system.which",
      idempotencyKey: "1",
    });
    const { id } = await asked(node);
    const result = { id, nodeId: node.nodeId, ok: true, payload: node.nodeId };
    await node.client.call("node.invoke.result", result);
    assertEquals((await invoking).payload, node.nodeId);
  }));
  await Promise.all(current.map(({ client }) => client.close()));
  await nodesOnce(operator, (all) => all.every(({ connected }) => !connected));
  return { nodes, "times dropped": times, registrations: ids.length };
}

/** A real `zero node run` that is stopped by SIGSTOP, so that its socket stays open: found by its silence. */
export async function silentNode() {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const home = await Deno.makeTempDir({ prefix: "zero-silent-" });
  const child = spawnZero(["node", "run", "--port", String(gateway.port)], {
    home,
    env: { ZERO_GATEWAY_TOKEN: gateway.token },
  });
  const output = child.output();
  try {
    const [{ nodeId }] = await nodesOnce(operator, ([node]) => node?.connected);
    const begin = performance.now();
    child.kill("SIGSTOP");
    const { socket } = operator;
    socket.send({
      type: "req",
      id: "invoke",
      method: "node.invoke",
      params: { nodeId, command: "system.which", idempotencyKey: "1", timeoutMs: 120_000 },
    });
    while (!socket.waiting.some(({ id }) => id === "invoke")) {
      // Some answer comes well within every deadline: ticks and our own calls keep coming.
      await operator.call("health", {});
      await new Promise((resolve) => setTimeout(resolve, 250));
      assert(performance.now() - begin < 45_000, "the node was not given up within 45 s");
    }
    const { error } = await socket.take(({ id }) => id === "invoke");
    const seconds = (performance.now() - begin) / 1_000;
    assertEquals([error.code, error.details.delivery], ["UNAVAILABLE", "unknown"]);
    const [{ connected }] = (await operator.call("node.list", {})).nodes;
    assertEquals(connected, false);
    child.kill("SIGCONT");
    await nodesOnce(operator, ([node]) => node.connected);
    const backAfter = (performance.now() - begin) / 1_000 - seconds;
    return {
      "given up after": `${seconds.toFixed(1)} s`,
      "back after SIGCONT within": `${backAfter.toFixed(1)} s`,
    };
  } finally {
    child.kill("SIGKILL");
    await output;
    await Deno.remove(home, { recursive: true });
  }
}
