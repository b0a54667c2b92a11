// The gateway as its parts see each other: what a handler is given, and `method` bound to it.

import type { ConfigReading } from "../config/load.ts";
import type { Log } from "../config/log.ts";
import type { Paths } from "../config/paths.ts";
import type { GatewaySettings } from "../config/settings.ts";
import type { ClientInfo } from "../rpc/connect.ts";
import type { Dispatcher } from "../rpc/dispatch.ts";
import type { CallContext, Method, MethodSpec, Requester } from "../rpc/method.ts";
import type { AdmissionRules } from "./admission.ts";
import type { Approvals } from "./approvals.ts";
import type { AuditTrail } from "./audit.ts";
import type { Connections } from "./connections.ts";
import type { CronJobs } from "./cron.ts";
import type { DeviceStore } from "./devices.ts";
import type { Coalescer, EventHub } from "./events.ts";
import type { HealthMonitor } from "./health.ts";
import type { Heartbeats } from "./heartbeat.ts";
import type { Hello } from "./hello.ts";
import type { IdempotencyCache } from "./idempotency.ts";
import type { InviteStore } from "./invites.ts";
import type { LegacyNodes } from "./legacy_nodes.ts";
import type { Collector } from "./memory.ts";
import type { Audience } from "./agent/audience.ts";
import type { Models } from "./agent/models.ts";
import type { Runs } from "./agent/runs.ts";
import type { AgentTool } from "./agent/tools.ts";
import type { Channels } from "./channels/channels.ts";
import type { Contacts } from "./channels/contacts.ts";
import type { Outbox } from "./channels/outbox.ts";
import type { ChannelSetup } from "./channels/setup.ts";
import type { NameRules, Surroundings } from "./network.ts";
import type { NodeQueue } from "./node_queue.ts";
import type { NodeRegistry } from "./nodes.ts";
import type { Presence } from "./presence.ts";
import type { Sessions } from "./sessions.ts";
import type { SessionWatchers } from "./sessions_events.ts";
import type { Store } from "./store.ts";
import type { SystemEvents } from "./system_events.ts";
import type { VoiceWake } from "./voicewake.ts";

/** Everything that one run of the gateway is made of. */
export interface Gateway {
  readonly version: string;
  /** Random, kept in the state directory; clients keep their tokens under it (D15). */
  readonly id: string;
  readonly startedAtMs: number;
  readonly paths: Paths;
  /** What this run was started with. A change of these is a restart. */
  readonly settings: GatewaySettings;
  /** The configuration file as last read; always valid. */
  readonly config: CurrentConfig;
  readonly log: Log;
  /** Where the log goes, for `logs.tail`. */
  readonly logFile: string;
  readonly surroundings: Surroundings;
  readonly names: NameRules;
  readonly admission: AdmissionRules;
  readonly devices: DeviceStore;
  readonly invites: InviteStore;
  readonly audit: AuditTrail;
  readonly approvals: Approvals;
  readonly nodes: NodeRegistry;
  readonly nodeQueue: NodeQueue;
  readonly legacyNodes: LegacyNodes;
  readonly events: EventHub;
  readonly connections: Connections;
  readonly presence: Presence;
  readonly presenceNews: Coalescer;
  readonly health: HealthMonitor;
  readonly healthNews: Coalescer;
  readonly hello: Hello;
  readonly systemEvents: SystemEvents;
  readonly sessions: Sessions;
  readonly models: Models;
  readonly runs: Runs;
  readonly contacts: Contacts;
  readonly outbox: Outbox;
  readonly channels: Channels;
  readonly channelSetup: ChannelSetup;
  /** Who hears of runs. */
  readonly audience: Audience;
  readonly idempotency: IdempotencyCache;
  readonly sessionWatchers: SessionWatchers;
  readonly voicewake: VoiceWake;
  readonly heartbeats: Heartbeats;
  readonly cron: CronJobs;
  /** What agents can do, and `POST /tools/invoke`. */
  readonly tools: readonly AgentTool[];
  readonly store: Store;
  readonly dispatcher: Dispatcher<Call>;
  readonly garbage: Collector;
  /** Whether calls are being served: not while starting or stopping. */
  readonly isReady: boolean;
  /** @throws {StartRefusal} what would stand in the way of a start with this configuration */
  preflight(reading: ConfigReading): void;
  /**
   * Makes a configuration that was just written the current one, now instead of when the file is
   * next looked at.
   *
   * @returns whether it takes a restart, which then happens after the delay
   */
  adoptConfig(reading: ConfigReading, reason: string, delayMs: number): boolean;
}

export interface CurrentConfig {
  readonly reading: ConfigReading;
}

/** Who calls. */
export interface Caller extends Requester {
  connId: string;
  client: ClientInfo;
  deviceId?: string;
  /** Whom a proxy or Tailscale vouches for. */
  user?: string;
  /** Settles when its connection ends; absent for a caller without one. */
  closed?: Promise<void>;
  /** Whether the shared secret let it in, and no device stands behind it. */
  isSharedSecret: boolean;
  /** Session of the agent that calls, where it is one. */
  agentSession?: string;
}

/** Whom the audit trail names as the one who did it. */
export function nameOf(caller: Caller): string {
  const { client, deviceId, user } = caller;
  const at = client.displayName ?? client.id;
  return `${callerKey(caller)} (${deviceId && user ? `${user} at ${at}` : at})`;
}

/** One and the same for all connections of a device, and for all that bring only the secret. */
export function callerKey({ deviceId, user, agentSession }: Caller): string {
  if (agentSession !== undefined) return `agent ${agentSession}`;
  if (deviceId) return `device ${deviceId}`;
  return user === undefined ? "shared secret" : `user ${user}`;
}

export interface Call extends CallContext {
  gateway: Gateway;
  caller: Caller;
}

/** An entry of the method table; its handler's types come from its shapes. */
export function method<Params, Result>(
  spec: MethodSpec<Call, Params, Result>,
): Method<Call> {
  return spec;
}
