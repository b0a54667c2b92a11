// What holds for a command on this machine (§10.2), and whether it may run (§9.4). Pure functions.

import type { Config } from "../../config/schema.ts";
import { type AllowEntry, type ApprovalsFile, ASKS, SECURITIES } from "./approvals_file.ts";
import type { Evaluation } from "./allowlist.ts";

export type Security = typeof SECURITIES[number];
export type Ask = typeof ASKS[number];

export interface Policy {
  security: Security;
  ask: Ask;
  /** What an asker goes by when nobody answers. */
  askFallback: Security;
  autoAllowSkills: boolean;
  /** Those of every agent, then those of this one. */
  allowlist: readonly AllowEntry[];
}

/** Whose wishes are combined: each may make it stricter. */
export type Strictness = Pick<Policy, "security" | "ask">;

export const MAIN_AGENT = "main";

/** What a node says when a person has to decide (§9.4). */
export const MISSES: readonly string[] = [
  "SYSTEM_RUN_DENIED: approval required",
  "SYSTEM_RUN_DENIED: allowlist miss",
];

/** Programs that may only ever look at what they are given. */
export const SAFE_BINS = ["jq", "grep", "cut", "sort", "uniq", "head", "tail", "tr", "wc"];

/** @param file undefined for a file that cannot be understood: then nothing runs */
export function effectivePolicy(
  file: ApprovalsFile | undefined,
  config: Config,
  agentId = MAIN_AGENT,
): Policy {
  const configured = agentExec(config, agentId);
  const own = ownRules(file, agentId);
  const everyone = ownRules(file, "*");
  const layers = [own, everyone, file?.defaults ?? {}];
  const first = <K extends "security" | "ask" | "askFallback" | "autoAllowSkills">(key: K) =>
    layers.map((layer) => layer[key]).find((value) => value !== undefined);
  return {
    security: file
      ? first("security") ?? configured?.security ?? config.tools?.exec?.security ?? "allowlist"
      : "deny",
    ask: first("ask") ?? configured?.ask ?? config.tools?.exec?.ask ?? "on-miss",
    askFallback: first("askFallback") ?? "deny",
    autoAllowSkills: first("autoAllowSkills") ?? false,
    allowlist: [...everyone.allowlist ?? [], ...agentId === "*" ? [] : own.allowlist ?? []],
  };
}

/** The least that any of them lets run, and the most that any of them asks. */
export function strictest(...policies: Strictness[]): Strictness {
  const least = Math.min(...policies.map(({ security }) => SECURITIES.indexOf(security)));
  const most = Math.max(...policies.map(({ ask }) => ASKS.indexOf(ask)));
  return { security: SECURITIES[least], ask: ASKS[most] };
}

/** `tools.exec.safeBins`, of the agent before that of all. */
export function safeBinsOf(config: Config, agentId = MAIN_AGENT): ReadonlySet<string> {
  return new Set(
    agentExec(config, agentId)?.safeBins ?? config.tools?.exec?.safeBins ?? SAFE_BINS,
  );
}

/** What came with the command that a person was asked about. */
export interface Consent {
  approved?: boolean;
  decision?: "allow-once" | "allow-always";
}

export interface Denial {
  /** `reason` of the event `exec.denied`. */
  reason: string;
  /** Of the result's error. */
  message: string;
}

/** @returns undefined for a command that may run */
export function refusal(
  { security, ask }: Policy,
  { isAnalysed, isSatisfied }: Pick<Evaluation, "isAnalysed" | "isSatisfied">,
  { approved = false, decision }: Consent,
): Denial | undefined {
  const isConsented = approved || decision !== undefined;
  const isMiss = !isAnalysed || !isSatisfied;
  const mustAsk = ask === "always" || (ask === "on-miss" && security === "allowlist" && isMiss);
  if (security === "deny") {
    return { reason: "security=deny", message: "SYSTEM_RUN_DISABLED: security=deny" };
  }
  if (mustAsk && !isConsented) {
    return { reason: "approval-required", message: "SYSTEM_RUN_DENIED: approval required" };
  }
  if (security === "allowlist" && isMiss && !isConsented) {
    return { reason: "allowlist-miss", message: "SYSTEM_RUN_DENIED: allowlist miss" };
  }
}

function ownRules(file: ApprovalsFile | undefined, agentId: string) {
  const agents = file?.agents ?? {};
  return Object.hasOwn(agents, agentId) ? agents[agentId] : {};
}

function agentExec({ agents }: Config, agentId: string) {
  return agents?.list?.find(({ id }) => id.toLowerCase() === agentId)?.tools?.exec;
}
