// Who asks a person before a program runs on a node, and when (§10.4, D18): one and the same for the
// command line and for the agent, who differ only in how they call the gateway.

import type { Config } from "../config/schema.ts";
import { RpcError } from "../rpc/error.ts";
import { ApprovalsFile } from "./node/approvals_file.ts";
import { effectivePolicy, MISSES, type Policy, strictest, type Strictness } from "./node/policy.ts";

/** What a node answers to `system.run`. */
export interface RunPayload {
  exitCode?: number | null;
  timedOut?: boolean;
  success?: boolean;
  stdout?: string;
  stderr?: string;
  error?: string | null;
}

export const APPROVAL_TIMEOUT_MS = 120_000;
/** For a command that ends at its own deadline, to tell of it. */
export const REPORT_MS = 5_000;

export interface ApprovedRun<T> {
  config: Config;
  agentId: string;
  /** What this caller asks for; it can only make it stricter. */
  wish: Strictness;
  /** Of the node; undefined where they stay unknown. */
  theirs?: Policy;
  /** Runs it, once. @throws {RpcError} */
  attempt(): Promise<T>;
  /** Asks. @returns false when nobody answered @throws {RpcError} when the answer is no */
  request(policy: Strictness): Promise<boolean>;
  /** Why nobody answered, in a few words. */
  unanswered: string;
}

/** @throws {RpcError} it may not run, or the node did not do it */
export async function runApproved<T>(
  { config, agentId, wish, theirs, attempt, request, unanswered }: ApprovedRun<T>,
): Promise<T> {
  const policy = strictest(
    effectivePolicy({ version: 1 }, config, agentId),
    wish,
    ...theirs ? [theirs] : [],
  );
  if (policy.security === "deny") {
    throw new RpcError("FORBIDDEN", "exec denied: host=node security=deny");
  }
  const nobodyAnswered = () =>
    new RpcError("FORBIDDEN", `exec denied: approval required (${unanswered})`, {
      details: { fix: "Ask again while somebody answers: zero approvals watch" },
    });
  // A node that keeps a list of what may run is the one to say whether this is on it. One that lets
  // everything run, or says nothing, would not ask on behalf of whoever wants it stricter.
  const isJudge = theirs?.security === "allowlist";
  const asksFirst = policy.ask === "always" ||
    (policy.ask === "on-miss" && policy.security === "allowlist" && !isJudge);
  const isApproved = asksFirst && await request(policy);
  if (asksFirst && !isApproved && (theirs?.askFallback ?? "deny") === "deny") {
    throw nobodyAnswered();
  }
  try {
    return await attempt();
  } catch (error) {
    if (!isMiss(error) || isApproved || policy.ask === "off") throw error;
    if (asksFirst || !await request(policy)) throw nobodyAnswered();
    return await attempt();
  }
}

/** The rules in an answer to `exec.approvals.node.get`. */
export function policyIn(answer: unknown, agentId: string): Policy {
  const { file } = (answer ?? {}) as { file?: unknown };
  return effectivePolicy(ApprovalsFile.is(file) ? file : undefined, {}, agentId);
}

function isMiss(error: unknown): boolean {
  const { nodeError } = (error instanceof RpcError ? error.details ?? {} : {}) as {
    nodeError?: { message?: string } | null;
  };
  return MISSES.includes(nodeError?.message ?? "");
}
