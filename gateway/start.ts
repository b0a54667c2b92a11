// One run of the gateway: the object graph, built once and taken down in reverse.

import type { ConfigReading } from "../config/load.ts";
import type { Log } from "../config/log.ts";
import type { Config } from "../config/schema.ts";
import type { Paths } from "../config/paths.ts";
import type { GatewayFlags, GatewaySettings } from "../config/settings.ts";
import { gatewaySettings } from "../config/settings.ts";
import { Dispatcher } from "../rpc/dispatch.ts";
import { type ProcessRunner, systemRunner } from "../tunnel/process.ts";
import { rememberedWhois } from "../tunnel/tailscale.ts";
import type { AdmissionRules, PairingNews } from "./admission.ts";
import { Approvals } from "./approvals.ts";
import { type AuditFacts, AuditTrail } from "./audit.ts";
import { sessionDefaults } from "./agents.ts";
import {
  bindHost,
  type Interfaces,
  listenHosts,
  primaryAddress,
  readInterfaces,
  tailnetAddresses,
  TailnetFollower,
} from "./bind.ts";
import { Connections } from "./connections.ts";
import { CronJobs } from "./cron.ts";
import { Degradations } from "./degraded.ts";
import { type DeviceClaim, DeviceStore } from "./devices.ts";
import { announcementOf, Announcer } from "./discovery.ts";
import { Coalescer, EventHub } from "./events.ts";
import type { Call, Gateway } from "./gateway.ts";
import { HealthMonitor } from "./health.ts";
import { Heartbeats } from "./heartbeat.ts";
import { Hello } from "./hello.ts";
import { InviteStore } from "./invites.ts";
import { LegacyNodes } from "./legacy_nodes.ts";
import { LoginLimiter } from "./limiter.ts";
import { listen } from "./listen.ts";
import { METHODS } from "./methods/mod.ts";
import { clearQueued } from "./methods/node_queue.ts";
import { Collector } from "./memory.ts";
import { AddressSet } from "./network.ts";
import { NodeQueue } from "./node_queue.ts";
import { NodeRegistry } from "./nodes.ts";
import { refuseUnsafeStart } from "./preflight.ts";
import { Presence } from "./presence.ts";
import { proofsIn, proxyRules } from "./proxy_user.ts";
import { ConfigWatcher } from "./reload.ts";
import { ownToken } from "./secret.ts";
import { Audience } from "./agent/audience.ts";
import { COMMANDS } from "./agent/builtin.ts";
import { gatewayCall, gatewayTools } from "./agent/gateway_tools.ts";
import { Models } from "./agent/models.ts";
import { Channels } from "./channels/channels.ts";
import { Contacts } from "./channels/contacts.ts";
import { Outbox } from "./channels/outbox.ts";
import { ChannelSetup } from "./channels/setup.ts";
import { type ModelSource, Runs } from "./agent/runs.ts";
import { IdempotencyCache } from "./idempotency.ts";
import { Sessions } from "./sessions.ts";
import { SessionWatchers } from "./sessions_events.ts";
import { Store } from "./store.ts";
import { SystemEvents } from "./system_events.ts";
import type { ServedCertificate } from "./tls.ts";
import { TailscaleRoute } from "./tailscale.ts";
import { VoiceWake } from "./voicewake.ts";

export interface StartOptions {
  version: string;
  paths: Paths;
  flags: GatewayFlags;
  reading: ConfigReading;
  log: Log;
  logFile: string;
  interfaces: Interfaces;
  /** Told of a configuration that is current from now on. */
  adopted?(reading: ConfigReading): void;
  /** Asks the process for a restart. */
  restart(reason: string, delayMs: number): void;
  /** How many files this process may have open, as soon as that is known. */
  maxFiles?: Promise<number | undefined>;
  /** How children are started; tests hand in a scripted one. */
  runner?: ProcessRunner;
  /** Which models answer, in place of the configured ones; tests hand in scripted ones. */
  models?: ModelSource;
  /** How often a silent peer is pinged, for tests; one that stays silent until the next is dropped. */
  pingIntervalMs?: number;
  /** Check every result against its shape. */
  checkResults?: boolean;
}

/** Why a gateway goes away, as it tells its clients (§8.1). */
export type Farewell =
  | { reason: "gateway stopping"; restartExpectedMs: null }
  | { reason: "gateway restarting"; restartExpectedMs: number };

export interface RunningGateway extends AsyncDisposable {
  readonly port: number;
  /** The addresses it listens on, the main one first. */
  readonly hosts: string[];
  readonly settings: GatewaySettings;
  /** SHA-256 of the certificate it serves; undefined: none, the port is a plain one. */
  readonly fingerprint?: string;
  /** The configuration as it is now; it may have been reloaded. */
  readonly reading: ConfigReading;
  /** What works less well than configured, one sentence each. */
  readonly warnings: string[];
  /** Says goodbye; what is left after `graceMs` is dropped when it is disposed. */
  farewell(farewell: Farewell, graceMs: number): Promise<void>;
}

/**
 * Builds the object graph and listens. Disposing the result takes it down in reverse.
 *
 * @throws {StartRefusal} unsafe settings
 * @throws {Error} with `code` EADDRINUSE, when the port is taken
 */
export async function startGateway(options: StartOptions): Promise<RunningGateway> {
  const { version, paths, flags, reading, log, interfaces } = options;
  const env = paths.env;
  const settings = gatewaySettings({ flags, env, config: reading.config });
  const { host } = bindHost(settings, interfaces);
  refuseUnsafeStart(reading.config, settings, { host, ownAddresses: interfaces.addresses });

  await using parts = new AsyncDisposableStack();
  await Deno.mkdir(paths.stateDir, { recursive: true, mode: 0o700 });
  const mode = settings.auth.mode.value;
  const password = settings.auth.password.value;
  const chosen = settings.auth.token.value;
  const token = mode === "token" && !chosen ? await ownToken(paths.tokenFile) : chosen;
  const proofs = proofsIn(settings.auth.trustedProxy.requiredHeaders.value);
  for (const secret of [token, password, ...proofs]) if (secret) log.addSecret(secret);
  hideHookToken(reading.config, log);

  const store = parts.use(
    Store.open(
      paths.database,
      ({ message }) =>
        log.warn("cannot write the database; going on without", {
          error: message,
          fix: `Make room on the disk of ${paths.database}`,
        }),
    ),
  );
  const events = new EventHub();
  const limiter = parts.use(new LoginLimiter(settings.auth.rateLimit.value));
  const devices = new DeviceStore(store);
  const invites = new InviteStore(store);
  const audit = parts.use(new AuditTrail(store));
  const approvals = parts.use(
    new Approvals({
      requested: (approval) => events.publish("exec.approval.requested", approval),
      resolved: (id, decision, resolvedBy) =>
        events.publish("exec.approval.resolved", {
          id,
          decision,
          ...(resolvedBy && { resolvedBy }),
          ts: Date.now(),
        }),
    }),
  );
  const nodes = parts.use(new NodeRegistry((nodeId) => nodeQueue.flush(nodeId)));
  const nodeQueue = parts.use(
    new NodeQueue({
      store,
      nodes,
      log: log.child("queue"),
      clear: (queued) => clearQueued(queued, gateway),
      changed: (entry) => events.publish("node.queue.changed", entry),
    }),
  );
  const systemEvents = new SystemEvents(store);
  const preflight = (next: ConfigReading) => {
    const wanted = gatewaySettings({ flags, env, config: next.config });
    const { host } = bindHost(wanted, interfaces);
    refuseUnsafeStart(next.config, wanted, { host, ownAddresses: interfaces.addresses });
  };
  const config = parts.use(
    new ConfigWatcher({
      reading,
      env,
      log: log.child("config"),
      settings: (next) => {
        const { reload } = gatewaySettings({ flags, env, config: next.config });
        return { mode: reload.mode.value, debounceMs: reload.debounceMs.value };
      },
      preflight,
      adopted: (next) => {
        options.adopted?.(next);
        void channels.refresh();
        heartbeats.refresh();
        cron.refresh();
        hideHookToken(next.config, log);
      },
      restart: options.restart,
    }),
  );
  const sessionWatchers = new SessionWatchers();
  const sessions = new Sessions(store, config, sessionWatchers);
  const models = new Models({ config, env, log: log.child("models") });
  const audience = new Audience(events);
  const callGateway = gatewayCall(() => gateway);
  const contacts = new Contacts(store);
  const outbox = parts.use(
    new Outbox({
      store,
      log: log.child("outbox"),
      sender: (channel, accountId) => channels.sender(channel, accountId),
    }),
  );
  const tools = gatewayTools({
    call: callGateway,
    config,
    sessions,
    runs: () => runs,
    knows: (name) => METHODS.some((one) => one.name === name),
  });
  const runs: Runs = parts.use(
    new Runs({
      store,
      sessions,
      config,
      systemEvents,
      audience,
      models: options.models ?? models,
      tools,
      commands: COMMANDS,
      callGateway,
      wake: (agentId) => heartbeats.wake(agentId),
      replies: () => outbox,
      version,
      log: log.child("agent"),
    }),
  );
  const channels: Channels = parts.use(
    new Channels({
      store,
      config,
      env,
      log,
      sessions,
      contacts,
      outbox,
      runs: () => runs,
      onChange: () => {
        health.refresh();
        healthNews.schedule();
      },
      onRequest: ({ askedAtMs: _, approvedAtMs: __, ...who }) => {
        events.publish("channel.pair.requested", { ...who, ts: Date.now() });
        const { channel, senderId, name } = who;
        store.attempt(() =>
          audit.record("channel.requested", { channel, senderId, displayName: name })
        );
      },
    }),
  );
  const schedulable = {
    config,
    sessions,
    systemEvents,
    models: options.models ?? models,
    runs: () => runs,
  };
  const heartbeats: Heartbeats = parts.use(
    new Heartbeats({
      ...schedulable,
      publish: (news) => events.publish("heartbeat", news),
      log: log.child("heartbeat"),
    }),
  );
  const cron: CronJobs = parts.use(
    new CronJobs({
      ...schedulable,
      store,
      wake: (agentId) => heartbeats.wake(agentId),
      publish: (news) => events.publish("cron", news),
      log: log.child("cron"),
    }),
  );
  const channelSetup = new ChannelSetup({
    paths,
    adopt: (next, reason) => config.adopt(next, reason, 0),
  });
  const startedAtMs = Date.now();
  const dispatcher = new Dispatcher<Call>(METHODS, {
    checkResults: options.checkResults,
    onFault(error, method) {
      const id = crypto.randomUUID();
      const text = error instanceof Error ? error.stack ?? error.message : String(error);
      log.error("a method failed", { id, method, error: text });
      return id;
    },
  });
  const presence = new Presence({
    host: interfaces.hostname,
    ip: primaryAddress(interfaces),
    version,
    platform: Deno.build.os,
  });
  let tls: ServedCertificate | undefined;
  const degraded = new Degradations(log, () => {
    health.refresh();
    healthNews.schedule();
  });
  const health: HealthMonitor = new HealthMonitor({
    version,
    config,
    sessions,
    heartbeats,
    systemEvents,
    degraded,
    channels: () => channels.status(),
    tls: () => tls?.health,
  });
  health.refresh();
  const hello = new Hello({
    version,
    host: interfaces.hostname,
    methods: dispatcher.names,
    startedAtMs,
    configPath: paths.configPath,
    stateDir: paths.stateDir,
    authMode: mode,
    sessionDefaults: () => sessionDefaults(config.reading.config),
  }, health);
  hello.showPresence(presence.list(), presence.version);
  const versions = () => ({ presence: presence.version, health: health.version });
  const presenceNews = parts.use(
    new Coalescer(() => {
      const list = presence.list();
      hello.showPresence(list, presence.version);
      return events.publish("presence", { presence: list }, versions());
    }),
  );
  const healthNews = parts.use(
    new Coalescer(() => {
      const { health: snapshot } = health.refresh();
      return events.publish("health", snapshot, versions());
    }),
  );
  const admission: AdmissionRules = {
    auth: {
      mode,
      token,
      password,
      proxy: proxyRules(settings.auth),
      allowTailscale: settings.auth.allowTailscale.value,
      silentPairing: settings.auth.silentPairing.value,
    },
    get allowInsecureControlUi() {
      const { allowInsecureAuth, allowInsecureAuthUntil } = settings.controlUi;
      return allowInsecureAuth.value && Date.now() < Date.parse(allowInsecureAuthUntil.value ?? "");
    },
    devices,
    invites,
    limiter,
    whois: rememberedWhois(options.runner ?? systemRunner),
    onPairing: (news) => announce(news, events, audit),
  };
  let isReady = false;
  let ownAddresses = [...tailnetAddresses(interfaces), host];
  let tailscale: TailscaleRoute | undefined = undefined;
  const gateway: Gateway = {
    version,
    id: store.meta("gatewayId", () => crypto.randomUUID()),
    startedAtMs,
    paths,
    settings,
    config,
    log,
    logFile: options.logFile,
    surroundings: {
      trustedProxies: new AddressSet(settings.trustedProxies.value),
      // Bound to one address, this machine reaches itself from that address.
      get ownAddresses() {
        return ownAddresses;
      },
    },
    names: {
      bindHost: host,
      allowedHosts: settings.allowedHosts.value,
      allowedOrigins: settings.allowedOrigins.value,
      hostname: interfaces.hostname,
      get tailnetName() {
        return env.ZERO_TAILNET_DNS ?? tailscale?.name;
      },
    },
    admission,
    devices,
    invites,
    audit,
    approvals,
    nodes,
    nodeQueue,
    legacyNodes: new LegacyNodes(store),
    events,
    connections: new Connections(events, log.child("ws"), options.pingIntervalMs),
    presence,
    presenceNews,
    health,
    healthNews,
    hello,
    systemEvents,
    sessions,
    models,
    runs,
    contacts,
    outbox,
    channels,
    channelSetup,
    audience,
    idempotency: new IdempotencyCache(),
    sessionWatchers,
    voicewake: await VoiceWake.open(paths.voicewakeFile),
    heartbeats,
    cron,
    tools,
    store,
    dispatcher,
    garbage: parts.use(new Collector()),
    get isReady() {
      return isReady;
    },
    preflight,
    adoptConfig: (next, reason, delayMs) => config.adopt(next, reason, delayMs),
  };
  options.maxFiles?.then((count) => count && gateway.connections.limitTo(count));
  parts.defer(() => gateway.connections.closeAll(1012, "service restart", 0));
  const hosts = listenHosts(settings.bind.value, host);
  const { tls: tlsSettings } = settings;
  if (tlsSettings.enabled.value) {
    const { ServedCertificate } = await import("./tls.ts");
    const { certificateFiles, ownNames } = await import("./tls_certificate.ts");
    tls = parts.use(
      await ServedCertificate.open({
        settings: tlsSettings,
        files: certificateFiles(tlsSettings, paths.stateDir),
        names: ownNames(interfaces, {
          tailnetName: env.ZERO_TAILNET_DNS,
          allowedHosts: settings.allowedHosts.value,
        }),
        log: log.child("tls"),
        report: (trouble) => degraded.report("tls", trouble),
        changed: () => {
          health.refresh();
          healthNews.schedule();
        },
      }),
    );
    health.refresh();
  }
  const listener = parts.use(await listen(gateway, hosts, settings.port.value, tls));
  const { port } = listener;
  if (settings.bind.value === "tailnet") {
    const follower = parts.use(
      new TailnetFollower({
        listener,
        read: readInterfaces,
        log,
        report: (trouble) => degraded.report("bind", trouble),
        saw: (now) => ownAddresses = tailnetAddresses(now),
      }),
    );
    await follower.start();
  }
  tailscale = parts.use(
    new TailscaleRoute({
      runner: options.runner ?? systemRunner,
      mode: settings.tailscale.mode.value,
      port,
      hasTls: settings.tls.enabled.value,
      resetOnExit: settings.tailscale.resetOnExit.value,
      stateFile: `${paths.stateDir}/tailscale.json`,
      log,
      report: (trouble) => degraded.report("tailscale", trouble),
    }),
  );
  const { hostname } = interfaces;
  const announcer = parts.use(
    new Announcer(
      announcementOf({
        settings,
        env,
        host: listener.hosts[0],
        port,
        hostname,
        fingerprint: tls?.health.fingerprint,
      }),
      (trouble) => degraded.report("discovery", trouble),
    ),
  );
  // Neither holds up the start: whatever is in their way, the gateway is there.
  tailscale.start();
  announcer.start();
  runs.recover();
  cron.start();
  heartbeats.start();
  outbox.start();
  void channels.refresh();
  isReady = true;

  const owned = parts.move();
  return {
    port,
    hosts: listener.hosts,
    settings,
    get fingerprint() {
      return tls?.health.fingerprint;
    },
    get reading() {
      return config.reading;
    },
    warnings: [...settings.warnings, ...reading.warnings],
    async farewell(farewell, graceMs) {
      isReady = false;
      events.publish("shutdown", farewell);
      await gateway.connections.closeAll(1012, "service restart", graceMs);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** A token of other programs must not be logged, whatever they send. */
function hideHookToken({ hooks }: Config, log: Log) {
  if (hooks?.token !== undefined) log.addSecret(hooks.token);
}

/** Tells operators of pairings, and the audit trail. */
function announce(news: PairingNews, events: EventHub, audit: AuditTrail) {
  const ts = Date.now();
  switch (news.kind) {
    case "requested": {
      events.publish("device.pair.requested", news.request);
      const { request, user } = news;
      return audit.record("device.requested", factsOf(request, { ...request, user }));
    }
    case "superseded": {
      const { requestId, deviceId } = news;
      events.publish("device.pair.resolved", { requestId, deviceId, decision: "rejected", ts });
      const reason = "replaced by a request for something else";
      return audit.record("device.rejected", { requestId, deviceId, reason });
    }
    case "approved": {
      const { requestId, claim, inviteId, user } = news;
      const { deviceId } = claim;
      events.publish("device.pair.resolved", { requestId, deviceId, decision: "approved", ts });
      const facts = factsOf(claim, { inviteId, user });
      return inviteId
        ? audit.record("invite.used", facts)
        : audit.record("device.paired", { ...facts, reason: "on the gateway's own machine" });
    }
  }
}

function factsOf(
  { deviceId, displayName, clientId, role, scopes, remoteIp }: DeviceClaim,
  ids: { requestId?: string; inviteId?: string; user?: string },
): AuditFacts {
  const { requestId, inviteId, user } = ids;
  return {
    user,
    deviceId,
    displayName,
    clientId,
    role,
    scopes: [...scopes],
    ip: remoteIp,
    requestId,
    inviteId,
  };
}
