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
import { agentsOf, heartbeatOf, sessionDefaults } from "./agents.ts";
import type { AccountStatus } from "./channels/channels.ts";
import { Degradation } from "./degraded.ts";
import type { CurrentConfig } from "./gateway.ts";
import type { Session, Sessions } from "./sessions.ts";
import { modelDefaults, modelOf } from "./sessions_rows.ts";
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

/** The certificate of the gateway's own port. */
export const TlsHealth = object({
  /** SHA-256 of the certificate: 64 hex digits. */
  fingerprint: text(),
  notAfterMs: integer(),
  /** The one that will take its place. */
  nextFingerprint: optional(text()),
});
export type TlsHealth = Infer<typeof TlsHealth>;

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
  /** What works less well than configured; absent where nothing does. */
  degraded: optional(list(Degradation)),
  tls: optional(TlsHealth),
});
export type Health = Infer<typeof Health>;

const StatusRow = open({
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
    recent: list(StatusRow),
    byAgent: list(object({
      agentId: text(),
      path: text(),
      count: integer({ min: 0 }),
      recent: list(StatusRow),
    })),
  }),
});
export type Status = Infer<typeof Status>;

/** A cached snapshot younger than this is good enough for `health` without a probe. */
const CACHE_MS = 60_000;
/** Sessions in a snapshot and in a status, of each agent and of all. */
const [HEALTH_SESSIONS, STATUS_SESSIONS] = [5, 10];

export interface HealthSources {
  version: string;
  config: CurrentConfig;
  sessions: Sessions;
  heartbeats: { areEnabled: boolean };
  systemEvents: SystemEvents;
  degraded?: { readonly list: readonly Degradation[] };
  channels?(): readonly AccountStatus[];
  /** Undefined: the port is a plain one. */
  tls?(): TlsHealth | undefined;
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
    const { config, version, sessions, systemEvents } = this.#sources;
    const { agents, defaultAgentId } = this.#take();
    const { path } = sessions;
    const defaults = modelDefaults(config.reading.config);
    const recent = (agentId?: string) =>
      sessions.list({ limit: STATUS_SESSIONS, agentId })
        .map((session) => statusRow(session, defaults, this.#now()));
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
        paths: [path],
        count: sessions.count(),
        defaults: { model: defaults.model, contextTokens: defaults.contextTokens },
        recent: recent(),
        byAgent: agents.map(({ agentId }) => ({
          agentId,
          path,
          count: sessions.count(agentId),
          recent: recent(agentId),
        })),
      },
    };
  }

  #take(): Health {
    const { config, heartbeats, degraded } = this.#sources;
    const tls = this.#sources.tls?.();
    const agents = agentsOf(config.reading.config);
    const described = agents.map(({ agentId, name, isDefault, every }) => {
      const heartbeat = heartbeatOf(config.reading.config, agentId);
      const { everyMs } = heartbeat;
      return {
        agentId,
        ...(name && { name }),
        isDefault,
        heartbeat: {
          enabled: heartbeats.areEnabled && everyMs !== null,
          every: every ?? "0m",
          ...(everyMs === null ? { everyMs, prompt: "", target: "none" } : heartbeat),
        },
        sessions: this.#sessions(agentId),
      };
    });
    return {
      ok: true,
      ts: this.#now(),
      durationMs: 0,
      ...channelsIn(this.#sources.channels?.() ?? []),
      heartbeatSeconds: Math.round((described[0].heartbeat.everyMs ?? 0) / 1_000),
      defaultAgentId: agents[0].agentId,
      agents: described,
      sessions: this.#sessions(),
      ...degraded && degraded.list.length > 0 && { degraded: [...degraded.list] },
      ...tls && { tls },
    };
  }

  #sessions(agentId?: string): Health["sessions"] {
    const { sessions } = this.#sources;
    const now = this.#now();
    const recent = sessions.list({ limit: HEALTH_SESSIONS, agentId }).map(({ key, entry }) => ({
      key,
      updatedAt: entry.updatedAt,
      age: now - entry.updatedAt,
    }));
    return { path: sessions.path, count: sessions.count(agentId), recent };
  }
}

function statusRow(
  { key, agentId, kind, entry }: Session,
  defaults: ReturnType<typeof modelDefaults>,
  nowMs: number,
): Infer<typeof StatusRow> {
  const { model: chosen, contextTokens = defaults.contextTokens, totalTokens, ...rest } = entry;
  return {
    ...rest,
    agentId,
    key,
    kind,
    age: nowMs - entry.updatedAt,
    totalTokens,
    remainingTokens: contextTokens === null ? null : Math.max(0, contextTokens - totalTokens),
    percentUsed: contextTokens === null ? null : Math.round(100 * totalTokens / contextTokens),
    model: chosen === undefined ? defaults.model : modelOf(chosen).model,
    contextTokens,
    flags: flagsOf(entry),
  };
}

/** What is out of the ordinary about a session, in words. */
function flagsOf(entry: Session["entry"]): string[] {
  const { thinkingLevel, verboseLevel, reasoningLevel, elevatedLevel } = entry;
  return [
    ...thinkingLevel ? [`think:${thinkingLevel}`] : [],
    ...verboseLevel ? [`verbose:${verboseLevel}`] : [],
    ...reasoningLevel ? [`reasoning:${reasoningLevel}`] : [],
    ...elevatedLevel ? [`elevated:${elevatedLevel}`] : [],
    ...entry.systemSent ? ["system"] : [],
    ...entry.abortedLastRun ? ["aborted"] : [],
  ];
}

/** What a snapshot says, without when it was taken. */
function essence({ ts: _, durationMs: __, ...rest }: Health): string {
  return JSON.stringify(rest, (key, value) => key === "age" ? undefined : value);
}

function channelsIn(accounts: readonly AccountStatus[]) {
  return {
    channels: Object.fromEntries(accounts.map(({ channel, label: _, ...account }) => [channel, {
      ...account,
      linked: account.running,
      accounts: { [account.accountId]: account },
    }])),
    channelOrder: accounts.map(({ channel }) => channel),
    channelLabels: Object.fromEntries(accounts.map(({ channel, label }) => [channel, label])),
  };
}
