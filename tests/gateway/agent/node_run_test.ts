import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { runOnNode } from "../../../gateway/agent/node_run.ts";
import type { GatewayCall, ToolContext } from "../../../gateway/agent/tools.ts";
import type { OutgoingMessage } from "../../../gateway/channels/channel.ts";
import { RpcError } from "../../../rpc/error.ts";

/** A run of a program on a node that wants every program approved, and what the chat is told of it. */
function setup(decision: "deny" | null) {
  const said: OutgoingMessage[] = [];
  const called: [method: string, params: unknown][] = [];
  const call: GatewayCall = (method, params) => {
    called.push([method, params]);
    if (method === "exec.approval.request") return Promise.resolve({ decision });
    return Promise.resolve({
      file: { version: 1, defaults: { security: "allowlist", ask: "always" } },
    });
  };
  const context: ToolContext = {
    runId: "r",
    sessionKey: "agent:main:main",
    agentId: "main",
    origin: { kind: "channel", isOwner: true },
    hops: 0,
    signal: new AbortController().signal,
    ended: new Promise(() => {}),
    update: () => {},
    say: (message) => void said.push(message),
  };
  const node = { nodeId: "id", name: "n1\u202e", commands: ["system.execApprovals.get"] };
  const run = (argv: string[], cwd?: string) =>
    runOnNode({ node, argv, cwd, timeoutMs: 1_000 }, { config: {} }, { call, context });
  return { said, called, run };
}

Deno.test("who is asked in a chat sees the command and its directory, and nothing that hides them", async () => {
  const { said, run } = setup("deny");

  await assertRejects(
    () => run(["./build\u202e", "a\u001b[2Jb"], "/srv/other"),
    RpcError,
    "denied",
  );

  const [{ text }] = said;
  assertStringIncludes(text, "in /srv/other");
  assertStringIncludes(text, "./build");
  assert(!/[\u001b\u202e]/.test(text), text);
});

Deno.test("what is asked for is bound to node, arguments, directory, environment and session", async () => {
  const { called, run } = setup(null);

  await assertRejects(() => run(["id"], "/srv"), RpcError, "nobody answered");

  const [, asked] = called.find(([method]) => method === "exec.approval.request")!;
  const { nodeId, argv, cwd, env, sessionKey } = asked as Record<string, unknown>;
  assertEquals([nodeId, argv, cwd, env, sessionKey], ["id", ["id"], "/srv", {}, "agent:main:main"]);
  assert(!called.some(([method]) => method === "node.invoke"));
});
