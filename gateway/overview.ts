// What the status commands say: this installation, its gateway as configured and as it answers
// (protocol.md §11.3). JSON for machines and lines for people are made from the same findings.

import { EXIT_FAILURE } from "../config/command.ts";
import { ConfigError, type ConfigReading, readConfig } from "../config/load.ts";
import type { Paths } from "../config/paths.ts";
import { explainKey, gatewaySettings, sharedMode } from "../config/settings.ts";
import { explainTarget, type Target } from "../config/target.ts";
import { formatDuration, printable, type Terminal } from "../config/terminal.ts";
import type { HelloOk } from "../rpc/client.ts";
import { RpcError } from "../rpc/error.ts";
import {
  type Aim,
  aimLocally,
  type CallFlags,
  type CallWorld,
  describeFailure,
  type Failure,
  reach,
  tailnetAddress,
  takeAim,
  tellFailure,
} from "./reach.ts";

/** Who a gateway says it is, from its own line in the presence list (§7.2). */
export interface GatewaySelf {
  host?: string;
  ip?: string;
  version?: string;
  platform?: string;
}

interface HealthLike {
  ok?: boolean;
  durationMs?: number;
  channels?: Record<string, { configured?: boolean; linked?: boolean }>;
  channelOrder?: string[];
  channelLabels?: Record<string, string>;
  heartbeatSeconds?: number;
  agents?: { agentId: string; isDefault?: boolean }[];
  sessions?: { count?: number };
  degraded?: { part: string; message: string; fix: string }[];
}

interface StatusLike {
  heartbeat?: { defaultAgentId?: string; agents?: { agentId: string; every?: string }[] };
  channelSummary?: string[];
  queuedSystemEvents?: string[];
  sessions?: {
    count?: number;
    recent?: { key: string; age?: number | null; model?: string | null }[];
  };
}

/** What a call to a gateway found, or why it found nothing. */
interface Findings {
  connectLatencyMs: number | null;
  hello?: HelloOk;
  status?: StatusLike;
  self: GatewaySelf | null;
  presence?: unknown[];
  health?: HealthLike;
  failure?: Failure;
}

/** `zero health` for people. */
export function showHealth(
  { health, hello, latencyMs }: { health: unknown; hello: HelloOk; latencyMs: number },
  terminal: Terminal,
): void {
  const { ok, heartbeatSeconds, sessions, ...rest } = health as HealthLike;
  const { green, red } = terminal.style;
  terminal.fields([
    ["Gateway", `${ok ? green("ok") : red("not ok")}, answered in ${latencyMs} ms`],
    ["Version", versionLine(hello)],
    ["Agents", agentsLine(rest)],
    ["Channels", channelsLine(rest)],
    ["Sessions", String(sessions?.count ?? 0)],
    ["Heartbeat", heartbeatSeconds ? `every ${heartbeatSeconds} s` : "off"],
    ...degradedLines(rest, terminal),
  ]);
}

/** `zero status`: exit code 0 also without a gateway, unless `deep`. */
export async function runStatus(
  flags: CallFlags & { deep: boolean; all: boolean },
  world: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const aim = await takeAim(flags, world, terminal);
  if (flags.verbose) terminal.err(explainTarget(aim.target));
  const found = await askGateway(aim, flags, world, terminal);
  const isFailed = flags.deep && !found.health;
  if (flags.json) {
    if (isFailed && found.failure) {
      tellFailure(found.failure, aim.target, { isJson: true }, terminal);
    } else terminal.json(statusDocument(aim, found, flags));
    return isFailed ? EXIT_FAILURE : undefined;
  }
  showStatus(aim, found, flags, world, terminal);
  return isFailed ? EXIT_FAILURE : undefined;
}

/** `zero gateway status`: the gateway of this machine, wherever commands go. */
export async function runGatewayStatus(
  flags: CallFlags & { "no-probe": boolean; deep: boolean },
  world: CallWorld,
  terminal: Terminal,
): Promise<void> {
  const chosen = await takeAim(flags, world, terminal);
  const isNamed = chosen.target.urlSource.startsWith("cli ");
  const aim = isNamed ? chosen : aimLocally(chosen);
  if (flags.verbose) terminal.err(explainTarget(aim.target));
  const { paths } = aim;
  const reading = await readConfig({ path: paths.configPath, env: paths.env });
  const { findPortHolder } = await import("../tunnel/port_holder.ts");
  const { hostname, port } = new URL(aim.target.url);
  const host = hostname.replace(/^\[|\]$/g, "");
  const [holder, found] = await Promise.all([
    aim.target.isRemote ? undefined : findPortHolder(host, Number(port), { pins: aim.target.pins }),
    flags["no-probe"] ? undefined : askGateway(aim, flags, world, terminal),
  ]);
  const document = gatewayStatusDocument({ aim, reading, holder, found });
  const health = flags.deep ? found?.health : undefined;
  if (flags.json) return terminal.json({ ...document, ...health && { health } });
  showGatewayStatus(document, aim, chosen, found, terminal);
  if (!health) return;
  terminal.out(`\n${terminal.style.bold("Health")}`);
  showHealth({ health, hello: found!.hello!, latencyMs: health.durationMs ?? 0 }, terminal);
}

/** The token a gateway on this machine asks for, by the order the gateway itself uses (D6, D15). */
export async function findToken(
  { configPath, env, tokenFile }: Paths,
): Promise<
  | { token: string; source: string }
  | { token?: undefined; problem: string; fix: string }
> {
  const reading = await readConfig({ path: configPath, env });
  if (!reading.valid) throw new ConfigError(reading.issues);
  const { mode, token, password } = gatewaySettings({ env, config: reading.config }).auth;
  const isShared = mode.value === "trusted-proxy" && token.value !== undefined &&
    sharedMode(mode.value, password.value) === "token";
  if (mode.value !== "token" && !isShared) {
    return {
      problem: `Cannot print a token: the gateway of this machine asks for ` +
        (mode.value === "password"
          ? "a password"
          : mode.value === "trusted-proxy"
          ? "what its proxy says"
          : "no secret"),
      fix: "zero config get gateway.auth.mode",
    };
  }
  if (token.value) {
    const source = token.source === "file" ? "config gateway.auth.token" : token.source;
    return { token: token.value, source };
  }
  try {
    const made = (await Deno.readTextFile(tokenFile)).trim();
    if (made) return { token: made, source: `file ${tokenFile}` };
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return {
    problem: "Cannot print a token: no gateway has been started here yet, so none was made",
    fix: "zero gateway",
  };
}

/** The gateway's own entry in a presence list. */
export function selfOf(presence: unknown): GatewaySelf | null {
  const entries = Array.isArray(presence) ? presence as Record<string, string>[] : [];
  const self = entries.find(({ mode, reason }) => mode === "gateway" && reason === "self");
  if (!self) return null;
  const { host, ip, version, platform } = self;
  return { host, ip, version, platform };
}

async function askGateway(
  aim: Aim,
  flags: CallFlags & { deep?: boolean },
  { version }: CallWorld,
  terminal: Terminal,
): Promise<Findings> {
  const findings: Findings = { connectLatencyMs: null, self: null };
  try {
    const begin = performance.now();
    await using client = await reach(aim, { timeout: flags.timeout, version }, terminal);
    findings.connectLatencyMs = Math.round(performance.now() - begin);
    findings.hello = client.hello;
    const options = { timeoutMs: flags.timeout };
    const [status, presence, health] = await Promise.all([
      client.call("status", {}, options),
      client.call("system-presence", {}, options),
      client.call("health", flags.deep ? { probe: true } : {}, options),
    ]);
    findings.status = status as StatusLike;
    findings.presence = presence as unknown[];
    findings.self = selfOf(presence);
    findings.health = health as HealthLike;
  } catch (error) {
    findings.failure = await describeFailure(error, aim, flags.timeout) ?? callFailure(error);
  }
  return findings;
}

/** A gateway that lets nobody in, or not this far, is a finding like any other. */
function callFailure(error: unknown): Failure {
  if (!(error instanceof RpcError)) throw error;
  const { code, message, details } = error;
  return { code, message, details, layer: "scope", retryable: false };
}

function statusDocument(
  { target, input, paths }: Aim,
  { status, connectLatencyMs, self, failure, health }: Findings,
  { deep }: { deep: boolean },
) {
  const { problem } = target;
  const agents = status?.heartbeat?.agents ?? [];
  return {
    ...EMPTY_STATUS,
    ...status,
    os: { platform: Deno.build.os, arch: Deno.build.arch, release: Deno.osRelease() },
    update: null,
    updateChannel: null,
    updateChannelSource: null,
    memory: null,
    memoryPlugin: null,
    gateway: {
      mode: input.reading.config.gateway?.mode ?? "local",
      url: target.url,
      urlSource: target.urlSource,
      misconfigured: problem?.code === "REMOTE_URL_MISSING" || problem?.code === "CONFIG_INVALID",
      reachable: failure === undefined,
      connectLatencyMs,
      self,
      error: failure?.message ?? null,
      ...failure && {
        errorCode: failure.code,
        errorLayer: failure.layer ?? null,
        errorFix: failure.fix ?? null,
      },
    },
    gatewayService: null,
    nodeService: null,
    agents: {
      defaultId: status?.heartbeat?.defaultAgentId ?? null,
      agents: agents.map(({ agentId }) => ({ id: agentId })),
    },
    securityAudit: null,
    degraded: health?.degraded ?? [],
    stateDir: target.isRemote ? null : paths.stateDir,
    ...deep && { health },
  };
}

/** What there is to say of a gateway that does not answer. */
const EMPTY_STATUS = {
  heartbeat: { defaultAgentId: null, agents: [] },
  channelSummary: [],
  queuedSystemEvents: [],
  sessions: {
    paths: [],
    count: 0,
    defaults: { model: null, contextTokens: null },
    recent: [],
    byAgent: [],
  },
};

function showStatus(
  { target, input, paths }: Aim,
  found: Findings,
  { all, deep }: { all: boolean; deep: boolean },
  { version }: CallWorld,
  terminal: Terminal,
): void {
  const { bold, dim, green, red } = terminal.style;
  const { failure, hello, status, health, self, presence } = found;
  terminal.out(bold(`ZERO ${version}`) + dim(`  ${Deno.build.os} ${Deno.build.arch}`));
  const state = failure ? red("not reached") : green(`reached in ${found.connectLatencyMs} ms`);
  const mode = input.reading.config.gateway?.mode ?? "local";
  terminal.fields([
    ["Gateway", `${state}  ${target.url}`],
    ["Source", `${target.urlSource}, mode ${mode}`],
    ["Version", hello && versionLine(hello)],
    ["Host", self ? hostLine(self) : undefined],
    ["Agents", health && agentsLine(health)],
    ["Sessions", status && sessionsLine(status)],
    ["Channels", status && (status.channelSummary?.join("; ") || "none configured")],
    ["Waiting", status && waitingLine(status)],
    ["Config", `${target.configPath}${configNote(input.reading, paths)}`],
    ...health ? degradedLines(health, terminal) : [],
  ]);
  if (all && hello) showDetails(found, presence ?? [], terminal);
  if (deep && health) {
    terminal.out(`\n${bold("Health")}`);
    showHealth({ health, hello: hello!, latencyMs: health.durationMs ?? 0 }, terminal);
  }
  if (failure) {
    terminal.out();
    tellFailure(failure, target, { isJson: false }, terminal);
  }
}

function showDetails({ hello, status }: Findings, presence: unknown[], terminal: Terminal): void {
  const { bold } = terminal.style;
  const { server, snapshot, features, policy, auth } = hello!;
  terminal.out(`\n${bold("Connection")}`);
  terminal.fields([
    ["Protocol", String(hello!.protocol)],
    ["Let in by", auth?.method],
    ["Scopes", auth?.scopes?.join(", ")],
    ["Id", server.connId],
    ["Methods", String(features.methods?.length ?? 0)],
    ["Largest frame", `${policy.maxPayload ?? "?"} bytes`],
    ["Its config", text(snapshot.configPath)],
    ["Its state", text(snapshot.stateDir)],
    ["Up for", formatDuration(Number(snapshot.uptimeMs ?? 0))],
  ]);
  terminal.out(`\n${bold("Present")}`);
  terminal.table(
    presence.map((entry) => {
      const { host, ip, mode, version, reason } = entry as Record<string, string | undefined>;
      return [host ?? "?", ip ?? "", mode ?? "", version ?? "", reason ?? ""];
    }),
    { header: ["HOST", "ADDRESS", "MODE", "VERSION", "REASON"] },
  );
  const recent = status?.sessions?.recent ?? [];
  if (recent.length === 0) return;
  terminal.out(`\n${bold("Recent sessions")}`);
  terminal.table(
    recent.map(({ key, age, model }) => [key, age == null ? "" : formatDuration(age), model ?? ""]),
    { header: ["SESSION", "ACTIVE", "MODEL"] },
  );
}

function gatewayStatusDocument(
  { aim, reading, holder, found }: {
    aim: Aim;
    reading: ConfigReading;
    holder?: { isGateway: boolean; pid?: number; program?: string };
    found?: Findings;
  },
) {
  const { target, paths } = aim;
  const { env } = paths;
  const setting = (key: string) => explainKey(key, { env, reading });
  const bindMode = String(setting("gateway.bind").value);
  const port = setting("gateway.port");
  const controlUi = setting("gateway.controlUi.enabled").value === true;
  const config = {
    path: reading.path,
    exists: reading.exists,
    valid: reading.valid,
    ...reading.issues.length > 0 && {
      issues: reading.issues.map(({ path, message }) => ({ path, message })),
    },
    controlUi: {
      enabled: controlUi,
      basePath: String(setting("gateway.controlUi.basePath").value ?? ""),
    },
  };
  const isTaken = holder && (holder.isGateway || holder.pid !== undefined);
  const custom = reading.config.gateway?.customBindHost;
  const isRemoteMode = reading.config.gateway?.mode === "remote";
  return {
    service: {
      label: "zero-gateway",
      loaded: false,
      loadedText: "loaded",
      notLoadedText: "not installed",
      command: null,
      runtime: {
        status: holder?.isGateway ? "running" : holder ? "stopped" : "unknown",
        ...holder?.isGateway && holder.pid !== undefined && { pid: holder.pid },
      },
      configAudit: { ok: reading.valid, issues: [] },
    },
    // Without a service the command line's own configuration is the one that counts.
    config: { cli: config, daemon: config },
    gateway: {
      bindMode,
      bindHost: bindHost(bindMode, custom),
      ...custom && { customBindHost: custom },
      port: Number(port.value),
      portSource: port.source,
      probeUrl: target.url,
      ...isRemoteMode && {
        probeNote: "gateway.mode is remote: commands go to gateway.remote.url, not here",
      },
    },
    ...holder && {
      port: {
        port: Number(new URL(target.url).port),
        status: isTaken ? "busy" : "free",
        listeners: isTaken ? [{ pid: holder.pid ?? null, command: holder.program ?? null }] : [],
        hints: isTaken && !holder.isGateway
          ? ["Another program has the port: stop it, or use another one with --port N"]
          : [],
      },
    },
    ...found?.failure && { lastError: found.failure.message },
    ...found && {
      rpc: {
        ok: found.failure === undefined,
        ...found.failure && { error: found.failure.message },
        url: target.url,
      },
    },
    legacyServices: [],
    extraServices: [],
  };
}

function showGatewayStatus(
  document: ReturnType<typeof gatewayStatusDocument>,
  { target }: Aim,
  chosen: Aim,
  found: Findings | undefined,
  terminal: Terminal,
): void {
  const { green, red, yellow } = terminal.style;
  const { service, config, gateway, port } = document;
  const { runtime } = service;
  const running = runtime.status === "running"
    ? green(`running${runtime.pid === undefined ? "" : ` (pid ${runtime.pid})`}`)
    : runtime.status === "stopped"
    ? yellow("not running")
    : "not known from here";
  const answer = found === undefined
    ? undefined
    : found.failure
    ? red((found.failure.layer ?? "network") === "network" ? "no answer" : "refused")
    : green(`answered in ${found.connectLatencyMs} ms`);
  const [listener] = port?.listeners ?? [];
  const stranger = listener && runtime.status !== "running"
    ? `${listener.command ?? "another program"}${
      listener.pid === null ? "" : ` (pid ${listener.pid})`
    }`
    : undefined;
  terminal.fields([
    ["Process", running],
    ["Service", service.notLoadedText],
    ["Address", `${gateway.probeUrl}  bind ${gateway.bindMode}, port from ${gateway.portSource}`],
    ["Port", stranger && red(`taken by ${stranger}`)],
    ["Answer", answer],
    ["Version", found?.hello && versionLine(found.hello)],
    ["Config", `${config.cli.path}${describeConfig(config.cli)}`],
  ]);
  const remote: Target | undefined = chosen.target.isRemote && !target.isRemote
    ? chosen.target
    : undefined;
  if (remote) terminal.out(`\nCommands go elsewhere: ${remote.url} (${remote.urlSource})`);
  for (const hint of port?.hints ?? []) terminal.err(hint);
  if (found?.failure) tellFailure(found.failure, target, { isJson: false }, terminal);
}

function bindHost(mode: string, custom: string | undefined): string {
  if (mode === "lan") return "0.0.0.0";
  if (mode === "custom") return custom ?? "0.0.0.0";
  return mode === "tailnet" ? tailnetAddress() ?? "127.0.0.1" : "127.0.0.1";
}

function describeConfig({ exists, valid }: { exists: boolean; valid: boolean }): string {
  if (!exists) return " (none: defaults)";
  return valid ? "" : " (not valid: zero config validate)";
}

function configNote(
  { valid }: Pick<ConfigReading, "valid">,
  { configPath }: Paths,
): string {
  try {
    Deno.statSync(configPath);
  } catch {
    return describeConfig({ exists: false, valid });
  }
  return describeConfig({ exists: true, valid });
}

function versionLine({ server, protocol }: HelloOk): string {
  return `${server.version ?? "unknown"} (protocol ${protocol})`;
}

function hostLine({ host, ip, platform }: GatewaySelf): string {
  return [host ?? "unknown", ip && `(${ip})`, platform].filter(Boolean).join(" ");
}

function waitingLine({ queuedSystemEvents: { length } = [] }: StatusLike): string | undefined {
  return length === 0 ? undefined : `${length} system event${length === 1 ? "" : "s"}`;
}

function agentsLine({ agents = [] }: HealthLike): string {
  const names = agents.map(({ agentId, isDefault }) =>
    isDefault ? `${agentId} (default)` : agentId
  );
  return names.join(", ") || "none";
}

function sessionsLine({ sessions }: StatusLike): string {
  const [latest] = sessions?.recent ?? [];
  const age = latest?.age == null ? "" : `, last ${latest.key} ${formatDuration(latest.age)} ago`;
  return `${sessions?.count ?? 0}${age}`;
}

function channelsLine(
  { channels = {}, channelOrder = [], channelLabels = {} }: HealthLike,
): string {
  const parts = channelOrder.map((id) => {
    const { configured, linked } = channels[id] ?? {};
    const state = linked === true
      ? "linked"
      : linked === false
      ? "not linked"
      : configured
      ? "configured"
      : "not configured";
    return `${channelLabels[id] ?? id} ${state}`;
  });
  return parts.join(", ") || "none configured";
}

/** What works less well than configured, and what mends it. */
function degradedLines({ degraded = [] }: HealthLike, terminal: Terminal): [string, string][] {
  const { yellow, dim } = terminal.style;
  return degraded.flatMap(({ part, message, fix }): [string, string][] => [
    [yellow("Degraded"), `${printable(part)}: ${printable(message)}`],
    [dim("Fix"), printable(fix)],
  ]);
}

function text(value: unknown): string | undefined {
  return typeof value === "string" ? value : undefined;
}
