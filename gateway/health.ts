// Health and status of the gateway (§7.2): the shapes that command lines and dashboards read.

import {
  anything,
  boolean,
  type Infer,
  integer,
  list,
  mapOf,
  nullable,
  number,
  object,
  oneOf,
  open,
  optional,
  text,
} from "../rpc/shape.ts";
import { agentsOf, durationMs, sessionDefaults } from "./agents.ts";
import type { CurrentConfig } from "./gateway.ts";
import type { SystemEvents } from "./system_events.ts";

const SessionsHealth = object({
  path: text(),
  count: integer({ min: 0 }),
  recent: list(object({
    key: text(),
    updatedAt: nullable(integer()),
    age: nullable(integer()),
  })),
});

const AgentHeartbeat = object({
  enabled: boolean(),
  every: text(),
  everyMs: nullable(integer()),
  prompt: text(),
  target: text(),
  model: optional(text()),
  ackMaxChars: optional(integer()),
});

export const Health = object({
  ok: oneOf([true]),
  ts: integer(),
  durationMs: integer({ min: 0 }),
  channels: mapOf(anything()),
  channelOrder: list(text()),
  channelLabels: mapOf(text()),
  heartbeatSeconds: integer({ min: 0 }),
  defaultAgentId: text(),
  agents: list(object({
    agentId: text(),
    name: optional(text()),
    isDefault: boolean(),
    heartbeat: AgentHeartbeat,
    sessions: SessionsHealth,
  })),
  sessions: SessionsHealth,
});
export type Health = Infer<typeof Health>;

export const SessionRow = open({
  agentId: optional(text()),
  key: text(),
  kind: oneOf(["direct", "group", "global", "unknown"]),
  sessionId: optional(text()),
  updatedAt: nullable(integer()),
  age: nullable(integer()),
  totalTokens: nullable(number()),
  remainingTokens: nullable(number()),
  percentUsed: nullable(number()),
  model: nullable(text()),
  contextTokens: nullable(number()),
  flags: list(text()),
});

export const Status = object({
  runtimeVersion: text(),
  linkChannel: optional(object({
    id: text(),
    label: text(),
    linked: boolean(),
    authAgeMs: nullable(integer()),
  })),
  heartbeat: object({
    defaultAgentId: text(),
    agents: list(object({
      agentId: text(),
      enabled: boolean(),
      every: text(),
      everyMs: nullable(integer()),
    })),
  }),
  channelSummary: list(text()),
  queuedSystemEvents: list(text()),
  sessions: object({
    paths: list(text()),
    count: integer({ min: 0 }),
    defaults: object({ model: nullable(text()), contextTokens: nullable(number()) }),
    recent: list(SessionRow),
    byAgent: list(object({
      agentId: text(),
      path: text(),
      count: integer({ min: 0 }),
      recent: list(SessionRow),
    })),
  }),
});
export type Status = Infer<typeof Status>;

/** A cached snapshot younger than this is good enough for `health` without a probe. */
const CACHE_MS = 60_000;

export interface HealthSources {
  version: string;
  config: CurrentConfig;
  /** The database that holds the sessions (D10). */
  sessionsPath: string;
  heartbeats: { areEnabled: boolean };
  systemEvents: SystemEvents;
  now?: () => number;
}

export class HealthMonitor {
  readonly #sources: HealthSources;
  readonly #now: () => number;
  #cached?: Health;
  #json = "{}";
  #version = 1;

  constructor(sources: HealthSources) {
    this.#sources = sources;
    this.#now = sources.now ?? Date.now;
  }

  /** Rises with every snapshot that differs from the one before. */
  get version(): number {
    return this.#version;
  }

  /** The last snapshot as JSON text, `{}` before the first. */
  get json(): string {
    return this.#json;
  }

  /** The cached snapshot, if it is young enough. */
  cached(): Health | undefined {
    const isYoung = this.#cached && this.#now() - this.#cached.ts < CACHE_MS;
    return isYoung ? this.#cached : undefined;
  }

  /** @returns the fresh snapshot, and whether it says anything new */
  refresh(): { health: Health; isNews: boolean } {
    const begin = performance.now();
    const health = { ...this.#take(), durationMs: Math.round(performance.now() - begin) };
    const isNews = !this.#cached || essence(health) !== essence(this.#cached);
    if (isNews && this.#cached) this.#version++;
    this.#cached = health;
    this.#json = JSON.stringify(health);
    return { health, isNews };
  }

  status(): Status {
    const { config, version, sessionsPath, systemEvents } = this.#sources;
    const { agents, defaultAgentId } = this.#take();
    const sessions = { path: sessionsPath, count: 0, recent: [] };
    const { mainSessionKey } = sessionDefaults(config.reading.config);
    return {
      runtimeVersion: version,
      heartbeat: {
        defaultAgentId,
        agents: agents.map(({ agentId, heartbeat: { enabled, every, everyMs } }) => ({
          agentId,
          enabled,
          every,
          everyMs,
        })),
      },
      channelSummary: [],
      queuedSystemEvents: systemEvents.queued(mainSessionKey),
      sessions: {
        paths: [sessionsPath],
        count: 0,
        defaults: { model: null, contextTokens: null },
        recent: [],
        byAgent: agents.map(({ agentId }) => ({ agentId, ...sessions })),
      },
    };
  }

  #take(): Health {
    const { config, sessionsPath, heartbeats } = this.#sources;
    const agents = agentsOf(config.reading.config);
    const sessions = { path: sessionsPath, count: 0, recent: [] };
    const described = agents.map(({ agentId, name, isDefault, every }) => {
      const everyMs = durationMs(every);
      return {
        agentId,
        ...(name && { name }),
        isDefault,
        heartbeat: {
          enabled: heartbeats.areEnabled && everyMs !== null,
          every: every ?? "0m",
          everyMs,
          prompt: "",
          target: "none",
        },
        sessions,
      };
    });
    return {
      ok: true,
      ts: this.#now(),
      durationMs: 0,
      channels: {},
      channelOrder: [],
      channelLabels: {},
      heartbeatSeconds: Math.round((described[0].heartbeat.everyMs ?? 0) / 1_000),
      defaultAgentId: agents[0].agentId,
      agents: described,
      sessions,
    };
  }
}

/** What a snapshot says, without when it was taken. */
function essence({ ts: _, durationMs: __, ...rest }: Health): string {
  return JSON.stringify(rest);
}
