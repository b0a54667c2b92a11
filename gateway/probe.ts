// `zero gateway probe`: every gateway the configuration knows of is tried, and those of the local
// network are listed (protocol.md §11.4). What the network claims is shown; nothing of it is dialled,
// unless --ssh-auto asks for it, and then ssh decides whether the machine is the one it says it is.

import { EXIT_FAILURE } from "../config/command.ts";
import {
  explainTarget,
  isLoopbackUrl,
  localTarget,
  resolveTarget,
  type SshWay,
  type Target,
} from "../config/target.ts";
import type { Terminal } from "../config/terminal.ts";
import { ClosedError } from "../rpc/client.ts";
import { TunnelError } from "../tunnel/error.ts";
import type { Beacon } from "./discovery.ts";
import { type GatewaySelf, selfOf } from "./overview.ts";
import {
  type Aim,
  type CallFlags,
  type CallWorld,
  describeFailure,
  reach,
  tailnetAddress,
  takeAim,
} from "./reach.ts";

type Kind = "explicit" | "sshTunnel" | "configRemote" | "localLoopback";

interface Candidate {
  kind: Kind;
  target: Target;
  active: boolean;
}

type PinnedWay = SshWay & Pick<Target, "pins">;

/** Protocol.md §11.4; the process is that of ssh, or of the background tunnel that is used. */
interface Tunnel {
  kind: "ssh";
  target: string;
  localPort: number;
  remotePort: number;
  pid: number | null;
}

interface Warning {
  code: "ssh_tunnel_failed" | "multiple_gateways";
  message: string;
  targetIds?: string[];
}

export interface ProbeFlags extends CallFlags {
  "ssh-auto": boolean;
}

interface TargetReport {
  id: string;
  kind: Kind;
  url: string;
  active: boolean;
  tunnel: Tunnel | null;
  connect: {
    ok: boolean;
    latencyMs: number | null;
    error: string | null;
    close: { code: number; reason: string; hint?: string } | null;
  };
  self: GatewaySelf | null;
  config: unknown;
  health: unknown;
  summary: unknown;
  presence: unknown;
}

const LOOPBACK_BUDGET_MS = 800;
const BUDGET_MS = 1_500;
const TUNNEL_BUDGET_MS = 2_000;
const DISCOVERY_MS = 1_200;
const LEAST_BUDGET_MS = 250;
/** The target a person most probably means comes first. */
const PREFERENCE: readonly Kind[] = ["explicit", "sshTunnel", "configRemote", "localLoopback"];

export async function runProbe(
  flags: ProbeFlags,
  world: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const startedAtMs = Date.now();
  const begin = performance.now();
  const aim = await takeAim(flags, world, terminal);
  const warnings: Warning[] = [];
  const discovering = discoverBriefly(aim, flags);
  const candidates = candidatesOf(aim);
  if (flags["ssh-auto"] && !candidates.some(({ kind }) => kind === "sshTunnel")) {
    const found = autoCandidate(await discovering, aim);
    if (found) candidates.unshift(found);
  }
  if (flags.verbose) {
    for (const { target } of candidates) terminal.err(explainTarget(target));
  }
  const reports = await Promise.all(
    candidates.map((candidate) => probe(candidate, aim, flags, world, terminal, warnings)),
  );
  const targets = reports.filter((report) => report !== undefined);
  const beacons = await discovering;
  const answering = targets.filter(({ connect, health }) => connect.ok && health !== null);
  const primary = PREFERENCE.flatMap((kind) => answering.filter((one) => one.kind === kind))[0];
  if (answering.length > 1) {
    warnings.push({
      code: "multiple_gateways",
      message: "Several gateways answer; commands go to one of them only",
      targetIds: answering.map(({ id }) => id),
    });
  }
  const url = loopbackUrl(aim);
  const tailnet = tailnetAddress();
  const tailnetUrl = tailnet && new URL(url);
  if (tailnetUrl) tailnetUrl.hostname = tailnet;
  const document = {
    ok: answering.length > 0,
    ts: startedAtMs,
    durationMs: Math.round(performance.now() - begin),
    timeoutMs: flags.timeout,
    primaryTargetId: primary?.id ?? null,
    warnings,
    network: {
      localLoopbackUrl: url,
      localTailnetUrl: tailnetUrl ? tailnetUrl.href.replace(/\/$/, "") : null,
      tailnetIPv4: tailnet ?? null,
    },
    discovery: { timeoutMs: discoveryMs(aim, flags), count: beacons.length, beacons },
    targets,
  };
  if (flags.json) terminal.json(document);
  else show(document, terminal);
  return document.ok ? undefined : EXIT_FAILURE;
}

/** Deduplicated by URL, the better one kept. */
function candidatesOf({ input, target }: Aim): Candidate[] {
  const { gateway } = input.reading.config;
  const isRemoteMode = gateway?.mode === "remote";
  // For what the configuration says, flags and environment are out of the way.
  const { token, tokenSource, password, passwordSource } = input.flags;
  const secrets = { token, tokenSource, password, passwordSource };
  const local = localTarget({ ...input, flags: secrets });
  const all: Candidate[] = [];
  if (target.urlSource.startsWith("cli ") || target.urlSource.startsWith("env ")) {
    all.push({ kind: target.ssh ? "sshTunnel" : "explicit", target, active: true });
  }
  const { url: remoteUrl, sshTarget, name } = gateway?.remote ?? {};
  if (remoteUrl ?? sshTarget ?? name) {
    const remote = resolveTarget({
      ...input,
      flags: secrets,
      env: { ...input.env, ZERO_GATEWAY_URL: undefined, ZERO_REMOTE: undefined },
      reading: {
        ...input.reading,
        config: { ...input.reading.config, gateway: { ...gateway, mode: "remote" } },
      },
    });
    all.push({
      kind: remote.ssh ? "sshTunnel" : "configRemote",
      target: remote,
      active: isRemoteMode,
    });
    const inferred = remote.ssh ? undefined : inferredSsh(remote, input);
    if (inferred) all.unshift({ kind: "sshTunnel", target: inferred, active: false });
  }
  const url = loopbackUrl({ input });
  all.push({ kind: "localLoopback", target: { ...local, url }, active: !isRemoteMode });
  // Two tunnels may begin at one port of this machine, and lead to different ones.
  const keyOf = ({ target }: Candidate) => target.ssh ? target.way : target.url.replace(/\/$/, "");
  const isFirst = (one: Candidate, at: number) =>
    all.findIndex((other) => keyOf(other) === keyOf(one)) === at;
  const isFirstTunnel = ({ kind }: Candidate, at: number) =>
    kind !== "sshTunnel" || all.findIndex((other) => other.kind === kind) === at;
  return all.filter((one, at) => isFirst(one, at) && isFirstTunnel(one, at));
}

/**
 * A tunnel beside a remote that is dialled directly: to the host that is configured for ssh, or to the
 * one the remote's address names, unless the configuration says that there is no tunnel to it.
 */
function inferredSsh(remote: Target, input: Aim["input"]): Target | undefined {
  const { gateway } = input.reading.config;
  const { sshTarget, transport } = gateway?.remote ?? {};
  if (!remote.url || (!sshTarget && (transport === "direct" || isLoopbackUrl(remote.url)))) return;
  const fields = {
    ...gateway?.remote,
    name: undefined,
    url: undefined,
    transport: "ssh" as const,
    sshTarget: sshTarget ?? asUser(new URL(remote.url).hostname, input.env),
  };
  const { token, tokenSource, password, passwordSource } = input.flags;
  return resolveTarget({
    ...input,
    flags: { token, tokenSource, password, passwordSource },
    env: { ...input.env, ZERO_GATEWAY_URL: undefined, ZERO_REMOTE: undefined },
    reading: {
      ...input.reading,
      config: { ...input.reading.config, gateway: { ...gateway, mode: "remote", remote: fields } },
    },
  });
}

/** The first gateway of the network, for ssh: no secret goes there that was not typed for it. */
function autoCandidate(beacons: readonly Beacon[], { input }: Aim): Candidate | undefined {
  const found = beacons.find(({ wsUrl }) => wsUrl !== null);
  if (!found) return undefined;
  const { hostname, port } = new URL(found.wsUrl!);
  const { token, tokenSource, password, passwordSource } = input.flags;
  const at = asUser(hostname, input.env);
  const target = resolveTarget({
    ...input,
    flags: {
      token,
      tokenSource,
      password,
      passwordSource,
      ssh: found.sshPort ? `${at}:${found.sshPort}` : at,
      remotePort: Number(port),
    },
    env: { ...input.env, ZERO_GATEWAY_TOKEN: undefined, ZERO_GATEWAY_PASSWORD: undefined },
  });
  return { kind: "sshTunnel", target, active: false };
}

function asUser(host: string, { USER, LOGNAME }: Aim["input"]["env"]): string {
  const user = (USER ?? LOGNAME)?.trim();
  return user ? `${user}@${host}` : host;
}

function discoveryMs({ paths: { env } }: Aim, { timeout }: ProbeFlags): number {
  if (env.ZERO_DISABLE_BONJOUR?.trim() === "1") return 0;
  return Math.max(LEAST_BUDGET_MS, Math.min(DISCOVERY_MS, timeout));
}

async function discoverBriefly(aim: Aim, flags: ProbeFlags): Promise<Beacon[]> {
  const timeoutMs = discoveryMs(aim, flags);
  if (timeoutMs === 0) return [];
  try {
    const { discover } = await import("./discovery.ts");
    return await discover(timeoutMs);
  } catch {
    return []; // no multicast here: the targets are what was asked for
  }
}

/**
 * Opens the tunnel of a candidate, or finds one that the background keeps.
 *
 * @throws {TunnelError} the tunnel does not come up
 */
async function openWay(
  { name, target, identity, remotePort, localPort, acceptNew, pins }: PinnedWay,
  flags: ProbeFlags,
  { paths, version }: { paths: Aim["paths"]; version: string },
  terminal: Terminal,
): Promise<AsyncDisposable & { report: Tunnel }> {
  const { openTunnel } = await import("../tunnel/tunnels.ts");
  const wanted = { name, target, identity, remotePort, localPort, acceptNew, pins, anyPort: true };
  const tunnel = await openTunnel(wanted, {
    paths,
    version,
    // The budget leaves no time for questions.
    isInteractive: false,
    say: (message) => flags.verbose && terminal.err(message),
    signal: AbortSignal.timeout(Math.max(LEAST_BUDGET_MS, flags.timeout)),
  });
  const { localPort: port, pid } = tunnel;
  return {
    report: { kind: "ssh", target, localPort: port, remotePort, pid },
    [Symbol.asyncDispose]: () => tunnel[Symbol.asyncDispose](),
  };
}

/** @returns undefined after a warning, where the tunnel did not come up */
async function openOrWarn(
  ssh: PinnedWay,
  flags: ProbeFlags,
  where: { paths: Aim["paths"]; version: string },
  terminal: Terminal,
  warnings: Warning[],
) {
  try {
    return await openWay(ssh, flags, where, terminal);
  } catch (error) {
    const isLate = error instanceof DOMException && error.name === "TimeoutError";
    if (!isLate && !(error instanceof TunnelError)) throw error;
    const message = isLate
      ? `Cannot open the tunnel to ${ssh.target}: it took more than ${flags.timeout} ms`
      : `${error.message}; ${(error as TunnelError).fix}`;
    warnings.push({ code: "ssh_tunnel_failed", message });
    return undefined;
  }
}

function atPort(address: string, port: number): string {
  const url = new URL(address);
  url.port = String(port);
  return url.href.replace(/\/$/, "");
}

function loopbackUrl({ input }: Pick<Aim, "input">): string {
  const url = new URL(localTarget({ ...input, flags: {} }).url);
  url.hostname = "127.0.0.1";
  return url.href.replace(/\/$/, "");
}

async function probe(
  { kind, target: wanted, active }: Candidate,
  chosen: Aim,
  flags: ProbeFlags,
  { version }: CallWorld,
  terminal: Terminal,
  warnings: Warning[],
): Promise<TargetReport | undefined> {
  const { ssh, ...direct } = wanted;
  const where = { paths: chosen.paths, version };
  const pinned = ssh && { ...ssh, pins: wanted.pins };
  await using way = pinned && await openOrWarn(pinned, flags, where, terminal, warnings);
  if (ssh && !way) return undefined;
  const target: Target = way
    ? { ...direct, url: atPort(direct.url, way.report.localPort) }
    : wanted;
  const most = kind === "localLoopback"
    ? LOOPBACK_BUDGET_MS
    : kind === "sshTunnel"
    ? TUNNEL_BUDGET_MS
    : BUDGET_MS;
  const timeout = Math.max(LEAST_BUDGET_MS, Math.min(most, flags.timeout));
  const report: TargetReport = {
    id: kind,
    kind,
    url: target.url,
    active,
    tunnel: way?.report ?? null,
    connect: { ok: false, latencyMs: null, error: null, close: null },
    self: null,
    config: null,
    health: null,
    summary: null,
    presence: null,
  };
  const aim = { ...chosen, target };
  try {
    const begin = performance.now();
    await using client = await reach(aim, { timeout, version, mode: "probe" }, terminal);
    report.connect = {
      ok: true,
      latencyMs: Math.round(performance.now() - begin),
      error: null,
      close: null,
    };
    const ask = (method: string) =>
      // One answer that is refused leaves the others as they are.
      client.call(method, {}, { timeoutMs: timeout }).catch(() => null);
    const [health, summary, presence, config] = await Promise.all([
      ask("health"),
      ask("status"),
      ask("system-presence"),
      ask("config.get"),
    ]);
    Object.assign(report, { health, summary, presence, self: selfOf(presence) });
    report.config = config === null ? null : configSummary(config as ConfigAnswer);
  } catch (error) {
    const failure = await describeFailure(error, aim, timeout);
    if (!failure) throw error;
    const isTimeout = failure.code === "GATEWAY_TIMEOUT";
    report.connect.error = isTimeout ? "timeout" : `connect failed: ${failure.message}`;
    if (error instanceof ClosedError) {
      const { code, reason, hint } = error;
      report.connect.close = { code, reason, ...hint && { hint } };
    }
  }
  return report;
}

interface ConfigAnswer {
  path?: string;
  exists?: boolean;
  valid?: boolean;
  issues?: unknown[];
  legacyIssues?: unknown[];
  // deno-lint-ignore no-explicit-any
  config?: any;
}

/** What a configuration says of the gateway; of secrets only whether there are any. */
function configSummary({ path, exists, valid, issues, legacyIssues, config }: ConfigAnswer) {
  const { gateway = {}, discovery = {} } = config ?? {};
  const { auth = {}, controlUi = {}, remote = {}, tailscale = {} } = gateway;
  return {
    path: path ?? null,
    exists: exists ?? false,
    valid: valid ?? false,
    issues: issues ?? [],
    legacyIssues: legacyIssues ?? [],
    gateway: {
      mode: gateway.mode ?? null,
      bind: gateway.bind ?? null,
      port: gateway.port ?? null,
      controlUiEnabled: controlUi.enabled ?? null,
      controlUiBasePath: controlUi.basePath ?? null,
      authMode: auth.mode ?? null,
      authTokenConfigured: Boolean(auth.token),
      authPasswordConfigured: Boolean(auth.password),
      remoteUrl: remote.url ?? null,
      remoteTokenConfigured: Boolean(remote.token),
      remotePasswordConfigured: Boolean(remote.password),
      tailscaleMode: tailscale.mode ?? null,
    },
    discovery: { wideAreaEnabled: discovery.wideArea?.enabled ?? null },
  };
}

function show(
  { targets, primaryTargetId, warnings, discovery }: {
    targets: TargetReport[];
    primaryTargetId: string | null;
    warnings: Warning[];
    discovery: { beacons: Beacon[] };
  },
  terminal: Terminal,
): void {
  const { green, red, dim } = terminal.style;
  const rows = targets.map(({ id, url, active, connect, self }) => [
    id === primaryTargetId ? `${id} *` : id,
    url,
    connect.ok ? green(`answered in ${connect.latencyMs} ms`) : red("no answer"),
    self ? [self.host, self.version].filter(Boolean).join(" ") : "",
    active ? "" : dim("not used by commands"),
  ]);
  terminal.table(rows, { header: ["TARGET", "ADDRESS", "RESULT", "GATEWAY", ""] });
  for (const { id, connect } of targets) {
    if (connect.error) terminal.err(`${id}: ${connect.error}`);
  }
  for (const { message } of warnings) terminal.err(message);
  const heard = discovery.beacons.map(({ instanceName }) => instanceName);
  if (heard.length > 0) {
    terminal.err(`On the network: ${heard.join(", ")}; see: zero gateway discover`);
  }
}
