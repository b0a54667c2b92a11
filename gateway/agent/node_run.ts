// A program on a node, for the agent: under the rules of the configuration, of the session and of the
// node, and with the approval of a person where these want one (§10.4, D18).

import type { Config } from "../../config/schema.ts";
import { RpcError } from "../../rpc/error.ts";
import { type Decision, DECISIONS } from "../approvals.ts";
import { ApprovalsFile, ASKS, SECURITIES } from "../node/approvals_file.ts";
import {
  effectivePolicy,
  MISSES,
  type Policy,
  strictest,
  type Strictness,
} from "../node/policy.ts";
import { printable, printableLines } from "../../config/terminal.ts";
import { joinArgv } from "../node/splitter.ts";
import type { GatewayCall, ToolContext } from "./tools.ts";

const APPROVAL_TIMEOUT_MS = 120_000;
/** For a command that ends at its own deadline, to tell of it. */
const REPORT_MS = 5_000;

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

export interface RunPayload {
  exitCode?: number | null;
  timedOut?: boolean;
  success?: boolean;
  stdout?: string;
  stderr?: string;
  error?: string | null;
}

/** @throws {RpcError} it was not allowed, or the node did not do it */
export async function runOnNode(
  run: NodeRun,
  rules: RunRules,
  { call, context }: { call: GatewayCall; context: ToolContext },
): Promise<RunPayload> {
  const { agentId } = context;
  const theirs = await policyOfNode(run, { call, context });
  const policy = strictest(
    effectivePolicy({ version: 1 }, rules.config, agentId),
    sessionRules(rules.session),
    ...theirs ? [theirs] : [],
  );
  if (policy.security === "deny") {
    throw new RpcError("FORBIDDEN", "exec denied: host=node security=deny");
  }
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
  // A node that keeps a list of what may run is the one to say whether this is on it.
  const isJudge = theirs?.security === "allowlist";
  const asksFirst = policy.ask === "always" ||
    (policy.ask === "on-miss" && policy.security === "allowlist" && !isJudge);
  const request = () => approve(run, policy, { call, context });
  const isApproved = asksFirst && await request();
  if (asksFirst && !isApproved && (theirs?.askFallback ?? "deny") === "deny") {
    throw nobodyAnswered();
  }
  try {
    return await attempt();
  } catch (error) {
    if (!isMiss(error) || isApproved || policy.ask === "off") throw error;
    if (asksFirst || !await request()) throw nobodyAnswered();
    return await attempt();
  }
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
  const answer = await call("exec.approvals.node.get", { nodeId }, context);
  const { file } = (answer ?? {}) as { file?: unknown };
  return effectivePolicy(ApprovalsFile.is(file) ? file : undefined, {}, context.agentId);
}

function sessionRules({ execSecurity, execAsk }: RunRules["session"] = {}): Strictness {
  return {
    security: SECURITIES.find((one) => one === execSecurity) ?? "full",
    ask: ASKS.find((one) => one === execAsk) ?? "off",
  };
}

function isMiss(error: unknown): boolean {
  const { nodeError } = (error instanceof RpcError ? error.details ?? {} : {}) as {
    nodeError?: { message?: string } | null;
  };
  return MISSES.includes(nodeError?.message ?? "");
}

function nobodyAnswered(): RpcError {
  return new RpcError(
    "FORBIDDEN",
    "exec denied: approval required (nobody answered the question)",
  );
}

/** A block of Markdown that shows a text as it is, whatever it looks like. */
export function fenced(text: string): string {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([ticks]) => ticks.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text}\n${fence}`;
}
