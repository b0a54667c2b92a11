// A program on a node, for the agent: under the rules of the configuration, of the session and of the
// node, and with the approval of a person where these want one (§10.4, D18).

import type { Config } from "../../config/schema.ts";
import { RpcError } from "../../rpc/error.ts";
import { type Decision, DECISIONS } from "../approvals.ts";
import {
  APPROVAL_TIMEOUT_MS,
  policyIn,
  REPORT_MS,
  runApproved,
  type RunPayload,
} from "../approved_run.ts";
import { ASKS, SECURITIES } from "../node/approvals_file.ts";
import type { Policy, Strictness } from "../node/policy.ts";
import { printable, printableLines } from "../../config/terminal.ts";
import { joinArgv } from "../node/splitter.ts";
import type { GatewayCall, ToolContext } from "./tools.ts";

export interface NodeRun {
  node: { nodeId: string; name: string; commands: readonly string[] };
  argv: readonly string[];
  cwd?: string;
  timeoutMs: number;
}

/** What settles how strict it is, beside the node. */
export interface RunRules {
  config: Config;
  /** `execSecurity` and `execAsk` of the session. */
  session?: { execSecurity?: string; execAsk?: string };
}

/** @throws {RpcError} it was not allowed, or the node did not do it */
export async function runOnNode(
  run: NodeRun,
  rules: RunRules,
  { call, context }: { call: GatewayCall; context: ToolContext },
): Promise<RunPayload> {
  const { agentId } = context;
  const attempt = async () => {
    const { payload } = await call("node.invoke", {
      nodeId: run.node.nodeId,
      command: "system.run",
      params: {
        command: run.argv,
        ...(run.cwd !== undefined && { cwd: run.cwd }),
        agentId,
        sessionKey: context.sessionKey,
        runId: context.runId,
        timeoutMs: run.timeoutMs,
      },
      timeoutMs: run.timeoutMs + REPORT_MS,
      idempotencyKey: crypto.randomUUID(),
    }, context) as { payload: RunPayload };
    return payload;
  };
  return await runApproved({
    config: rules.config,
    agentId,
    wish: sessionRules(rules.session),
    theirs: await policyOfNode(run, { call, context }),
    attempt,
    request: (policy) => approve(run, policy, { call, context }),
    unanswered: "nobody answered the question",
  });
}

/**
 * Asks operators, and the chat that waits for the reply, about exactly this run.
 *
 * @returns false when nobody answered
 * @throws {RpcError} when the answer is no
 */
async function approve(
  { node, argv, cwd }: NodeRun,
  { security, ask }: Strictness,
  { call, context }: { call: GatewayCall; context: ToolContext },
): Promise<boolean> {
  const id = crypto.randomUUID();
  const command = joinArgv(argv);
  const shown = [command, ...cwd === undefined ? [] : [`in ${cwd}`]].map(printableLines);
  const asking = call("exec.approval.request", {
    id,
    command,
    cwd: cwd ?? null,
    host: "node",
    security,
    ask,
    agentId: context.agentId,
    sessionKey: context.sessionKey,
    nodeId: node.nodeId,
    argv,
    env: {},
    runId: context.runId,
    timeoutMs: APPROVAL_TIMEOUT_MS,
  }, context) as Promise<{ decision: Decision | null }>;
  context.update({ approval: { id, command, node: node.name } });
  context.say({
    text: `May this run on ${printable(node.name)}?\n\n${fenced(shown.join("\n\n"))}\n\n` +
      `It lapses in ${APPROVAL_TIMEOUT_MS / 60_000} minutes.`,
    buttons: [DECISIONS.map((decision) => ({
      label: LABELS[decision],
      command: `/approve ${id} ${decision}`,
    }))],
    ifUnsure: "again",
  }, `approval:${id}`);
  const { decision } = await asking;
  if (decision === "deny") throw new RpcError("FORBIDDEN", "exec denied: user denied");
  return decision !== null;
}

const LABELS: Record<Decision, string> = {
  "allow-once": "Allow once",
  "allow-always": "Always allow",
  "deny": "Deny",
};

/** @returns undefined where the node does not tell its rules */
async function policyOfNode(
  { node: { nodeId, commands } }: NodeRun,
  { call, context }: { call: GatewayCall; context: ToolContext },
): Promise<Policy | undefined> {
  if (!commands.includes("system.execApprovals.get")) return undefined;
  return policyIn(await call("exec.approvals.node.get", { nodeId }, context), context.agentId);
}

function sessionRules({ execSecurity, execAsk }: RunRules["session"] = {}): Strictness {
  return {
    security: SECURITIES.find((one) => one === execSecurity) ?? "full",
    ask: ASKS.find((one) => one === execAsk) ?? "off",
  };
}

/** A block of Markdown that shows a text as it is, whatever it looks like. */
export function fenced(text: string): string {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([ticks]) => ticks.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text}\n${fence}`;
}
