// Which agents the configuration names, and the session that stands for each (§7.6).

import type { Config } from "../config/schema.ts";
import { ACK_MAX_CHARS } from "./agent/quiet.ts";

export interface Agent {
  agentId: string;
  name?: string;
  isDefault: boolean;
  /** `heartbeat.every` as written, absent when the agent does not wake by itself. */
  every?: string;
}

/** The agents by name, the default one first; a configuration without any has `main`. */
export function agentsOf({ agents }: Config): Agent[] {
  const listed = agents?.list ?? [];
  const usual = agents?.defaults?.heartbeat?.every;
  if (listed.length === 0) {
    return [{ agentId: "main", isDefault: true, ...(usual !== undefined && { every: usual }) }];
  }
  const chosen = Math.max(0, listed.findIndex((one) => one.default === true));
  const all = listed.map(({ id, name, heartbeat }, index): Agent => {
    const every = heartbeat?.every ?? usual;
    return {
      agentId: normalizeAgentId(id),
      ...(name && { name }),
      isDefault: index === chosen,
      ...(every !== undefined && { every }),
    };
  });
  return [all[chosen], ...all.filter((one) => !one.isDefault)];
}

/** How an agent wakes by itself. */
export interface Heartbeat {
  /** Null where it does not. */
  everyMs: number | null;
  /** What it is told then; "" where it wakes only for something that happened. */
  prompt: string;
  /** Where what it says goes: the last chat of its main session, or nowhere. */
  target: "last" | "none";
  model?: string;
  /** Characters beside HEARTBEAT_OK that still count as nothing. */
  ackMaxChars: number;
}

export function heartbeatOf({ agents }: Config, agentId: string): Heartbeat {
  const own = agents?.list?.find(({ id }) => normalizeAgentId(id) === agentId)?.heartbeat;
  const { every, prompt = "", target = "last", model, ackMaxChars = ACK_MAX_CHARS } = {
    ...agents?.defaults?.heartbeat,
    ...own,
  };
  return { everyMs: durationMs(every), prompt, target, ...(model && { model }), ackMaxChars };
}

/** Lower case, runs of foreign characters as one dash, at most 64 characters. */
export function normalizeAgentId(id: string): string {
  const plain = id.toLowerCase().replace(/[^a-z0-9_-]+/g, "-").replace(/^[-_]+|-+$/g, "");
  return plain.slice(0, 64) || "main";
}

/** What ends the key of a main session: `agent:<agentId>:<mainKey>`. */
export function mainKeyOf({ session }: Config): string {
  return session?.mainKey?.trim().toLowerCase() || "main";
}

export interface SessionDefaults {
  defaultAgentId: string;
  mainKey: string;
  mainSessionKey: string;
  scope: string;
}

export function sessionDefaults(config: Config): SessionDefaults {
  const [{ agentId: defaultAgentId }] = agentsOf(config);
  const mainKey = mainKeyOf(config);
  const scope = config.session?.scope ?? "per-sender";
  const mainSessionKey = scope === "global" ? "global" : `agent:${defaultAgentId}:${mainKey}`;
  return { defaultAgentId, mainKey, mainSessionKey, scope };
}

/**
 * Milliseconds of a duration such as `30m`, `1h`, `45s`; a bare number counts minutes.
 *
 * @returns null for 0 and for what is no duration
 */
export function durationMs(text: string | undefined): number | null {
  const [, count, unit = "m"] = /^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*$/.exec(text ?? "") ?? [];
  const factor = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }[unit]!;
  return Math.round(Number(count ?? 0) * factor) || null;
}
