// What stands between wanting something of a node and sending it: whether the node may be asked for
// that command (§9.5), and whether a person approved exactly this run (D18).

import { RpcError } from "../rpc/error.ts";
import { list, mapOf, nullable, open, optional, text } from "../rpc/shape.ts";
import { type BoundCall, isTextOf } from "./approvals.ts";
import { type NodeRules, platformClass, refuseCommand } from "./command_policy.ts";
import type { Gateway } from "./gateway.ts";
import type { ConnectedNode, InvokeOptions } from "./nodes.ts";

/** The part of the params of `system.run` that says what runs (§9.4). */
const Words = list(text());
const RunParams = open({
  command: Words,
  rawCommand: optional(nullable(text())),
  cwd: optional(nullable(text())),
  env: optional(nullable(mapOf(text()))),
  sessionKey: optional(nullable(text())),
  agentId: optional(nullable(text())),
});

type Judge = Pick<Gateway, "nodes" | "config" | "approvals">;

/**
 * An invocation as it may be sent to a node that is connected; for one that is not it stays as it is,
 * and sending it fails.
 *
 * @param caller whose approvals count, see `callerKey`
 * @throws {RpcError} the node may not be asked for this, or its text is not what its argv would run
 */
export function cleared<I extends InvokeOptions>(invocation: I, gateway: Judge, caller: string): I {
  const { nodeId, command, params } = invocation;
  const node = gateway.nodes.find(nodeId);
  if (!node) return invocation;
  mustBeAllowed(command, node.commands, kindOf(node), rulesOf(gateway));
  return { ...invocation, params: withApproval(command, params, node, gateway, caller) };
}

/** @throws {RpcError} as §7.8 words it */
export function mustBeAllowed(
  command: string,
  declared: readonly string[],
  kind: ReturnType<typeof platformClass>,
  rules: NodeRules,
) {
  const reason = refuseCommand(command, declared, kind, rules);
  if (!reason) return;
  throw new RpcError("INVALID_REQUEST", "node command not allowed", {
    details: { reason, command },
  });
}

export function kindOf({ connection: { client } }: ConnectedNode) {
  return platformClass(client?.platform ?? "", client?.deviceFamily);
}

export function rulesOf({ config }: Pick<Gateway, "config">): NodeRules {
  return config.reading.config.gateway?.nodes ?? {};
}

/**
 * The params without what only the gateway may say (D18).
 *
 * @throws {RpcError} when a text is sent along that is not what the argv would run
 */
export function withoutApproval(command: string, params: unknown): unknown {
  if (!isRecord(params)) return params;
  const { approved: _, approvalDecision: __, ...rest } = params;
  // A node that copies its params would find there what was taken out here.
  if (Object.hasOwn(rest, "__proto__")) delete rest["__proto__"];
  if (command !== "system.run") return rest;
  const { command: argv, rawCommand } = rest;
  // The node judges the text and runs the argv: they must say the same.
  if (Words.is(argv) && typeof rawCommand === "string" && !isTextOf(rawCommand, argv)) {
    throw new RpcError("INVALID_REQUEST", "rawCommand does not match command");
  }
  return rest;
}

/** … and with what the gateway has to say: that exactly this command was approved. */
function withApproval(
  command: string,
  params: unknown,
  { nodeId, commands }: ConnectedNode,
  { approvals }: Judge,
  caller: string,
): unknown {
  const rest = withoutApproval(command, params);
  if (command !== "system.run" || !isRecord(rest)) return rest;
  const call = readRun(rest);
  // Nodes that prepare their runs take no approval from outside.
  if (!call || commands.includes("system.run.prepare")) return rest;
  const decision = approvals.take({ ...call, caller, nodeId });
  return decision ? { ...rest, approved: true, approvalDecision: decision } : rest;
}

/** What an approval is bound to. @returns undefined for what no approval fits */
function readRun(
  params: Record<string, unknown>,
): Omit<BoundCall, "caller" | "nodeId"> | undefined {
  if (!RunParams.is(params)) return undefined;
  const { command: argv, rawCommand, cwd, env, sessionKey, agentId } = params;
  return {
    argv,
    rawCommand: rawCommand ?? undefined,
    cwd: cwd ?? null,
    env: env ?? {},
    sessionKey: sessionKey ?? null,
    agentId: agentId ?? null,
  };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
