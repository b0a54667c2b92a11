// A node that does what a test tells it to.

import type { Json, TestClient } from "./client.ts";
import type { TestConnectOptions, TestGateway } from "./gateway.ts";
import { type Identity, newDevice } from "./device.ts";

/** What a node is asked to do: `node.invoke.request`, with the params read. */
export interface Asked {
  id: string;
  nodeId: string;
  command: string;
  params: Json;
  timeoutMs: number;
  /** Its caller wants to see what it writes while it runs. */
  progress?: boolean;
}

/** What it answers beside `id` and `nodeId`; undefined: nothing at all. */
export type Reply = Record<string, unknown> | undefined;

export interface TestNode extends AsyncDisposable {
  readonly client: TestClient;
  readonly nodeId: string;
  /** Everything it was asked, in order. */
  readonly asked: Asked[];
}

export type NodeOptions = TestConnectOptions & {
  device?: Identity;
  name?: string;
  commands?: readonly string[];
};

/** Connects a node of a new device, unless told of one. */
export async function connectNode(
  gateway: TestGateway,
  { name, commands = ["system.run", "system.which"], device, ...options }: NodeOptions = {},
): Promise<TestNode> {
  const identity = device ?? await newDevice();
  const client = await gateway.connect({
    role: "node",
    device: identity,
    ...options,
    client: { ...(name && { displayName: name }), ...options.client },
    params: { commands, caps: ["system"], ...options.params },
  });
  return {
    client,
    nodeId: identity.deviceId,
    asked: [],
    [Symbol.asyncDispose]: () => client[Symbol.asyncDispose](),
  };
}

/** The next invocation. */
export async function asked(node: TestNode): Promise<Asked> {
  const { id, nodeId, command, paramsJSON, timeoutMs, progress } = await node.client.event(
    "node.invoke.request",
  );
  const params = paramsJSON === null ? undefined : JSON.parse(paramsJSON);
  const one = { id, nodeId, command, params, timeoutMs, progress };
  node.asked.push(one);
  return one;
}

/** Answers one invocation. @returns what the gateway makes of it */
export function reply(node: TestNode, { id }: Asked, answer: Record<string, unknown>) {
  return node.client.call("node.invoke.result", { id, nodeId: node.nodeId, ok: true, ...answer });
}

/** Tells what a command writes while it runs. @returns what the gateway makes of it */
export function write(
  node: TestNode,
  { id, nodeId }: Asked,
  piece: { seq: number; stream: "stdout" | "stderr"; data: string },
) {
  return node.client.call("node.invoke.progress", { id, nodeId, ...piece });
}

/** A node that answers whatever it is asked, until it is disposed. */
export async function serveNode(
  gateway: TestGateway,
  answer: (one: Asked) => Reply | Promise<Reply>,
  options: NodeOptions = {},
): Promise<TestNode> {
  const node = await connectNode(gateway, options);
  const serving = (async () => {
    while (!node.client.socket.isClosed) {
      // A deadline that passes while nobody asks anything is not a failure.
      const one = await asked(node).catch(() => undefined);
      if (!one) continue;
      const said = await answer(one);
      if (said) reply(node, one, said).catch(() => {});
    }
  })();
  return {
    ...node,
    async [Symbol.asyncDispose]() {
      await node[Symbol.asyncDispose]();
      await serving;
    },
  };
}

/** A successful answer. */
export function payload(value: unknown): Reply {
  return { ok: true, payloadJSON: JSON.stringify(value) };
}

/** The answer of a node that did not do it. */
export function failure(message: string, code = "UNAVAILABLE"): Reply {
  return { ok: false, error: { code, message } };
}

/** The nodes of `node.list` once they are as they must come to be: closing takes both ends a moment. */
export async function nodesOnce(
  operator: TestClient,
  fits: (nodes: Json[]) => boolean,
): Promise<Json[]> {
  const begin = performance.now();
  for (;;) {
    const { nodes } = await operator.call("node.list", {});
    if (fits(nodes)) return nodes;
    if (performance.now() - begin > 15_000) throw new Error(`still: ${JSON.stringify(nodes)}`);
  }
}
