// `zero gateway probe`: every gateway the configuration knows of is tried (protocol.md §11.4).

import { EXIT_FAILURE } from "../config/command.ts";
import { explainTarget, localTarget, resolveTarget, type Target } from "../config/target.ts";
import type { Terminal } from "../config/terminal.ts";
import { ClosedError } from "../rpc/client.ts";
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

type Kind = "explicit" | "configRemote" | "localLoopback";

interface Candidate {
  kind: Kind;
  target: Target;
  active: boolean;
}

interface TargetReport {
  id: string;
  kind: Kind;
  url: string;
  active: boolean;
  tunnel: null;
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
const LEAST_BUDGET_MS = 250;
/** The target a person most probably means comes first. */
const PREFERENCE: readonly Kind[] = ["explicit", "configRemote", "localLoopback"];

export async function runProbe(
  flags: CallFlags,
  world: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const startedAtMs = Date.now();
  const begin = performance.now();
  const aim = await takeAim(flags, world, terminal);
  const candidates = candidatesOf(aim);
  if (flags.verbose) {
    for (const { target } of candidates) terminal.err(explainTarget(target));
  }
  const targets = await Promise.all(
    candidates.map((candidate) => probe(candidate, aim, flags, world, terminal)),
  );
  const answering = targets.filter(({ connect, health }) => connect.ok && health !== null);
  const primary = PREFERENCE.flatMap((kind) => answering.filter((one) => one.kind === kind))[0];
  const isSeveral = answering.length > 1;
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
    warnings: isSeveral
      ? [{
        code: "multiple_gateways",
        message: "Several gateways answer; commands go to one of them only",
        targetIds: answering.map(({ id }) => id),
      }]
      : [],
    network: {
      localLoopbackUrl: url,
      localTailnetUrl: tailnetUrl ? tailnetUrl.href.replace(/\/$/, "") : null,
      tailnetIPv4: tailnet ?? null,
    },
    discovery: { timeoutMs: 0, count: 0, beacons: [] },
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
    all.push({ kind: "explicit", target, active: true });
  }
  if (gateway?.remote?.url) {
    const remote = resolveTarget({
      ...input,
      flags: secrets,
      env: { ...input.env, ZERO_GATEWAY_URL: undefined },
      reading: {
        ...input.reading,
        config: { ...input.reading.config, gateway: { ...gateway, mode: "remote" } },
      },
    });
    all.push({ kind: "configRemote", target: remote, active: isRemoteMode });
  }
  const url = loopbackUrl({ input });
  all.push({ kind: "localLoopback", target: { ...local, url }, active: !isRemoteMode });
  const keyOf = ({ target }: Candidate) => target.url.replace(/\/$/, "");
  return all.filter((one, at) => all.findIndex((other) => keyOf(other) === keyOf(one)) === at);
}

function loopbackUrl({ input }: Pick<Aim, "input">): string {
  const url = new URL(localTarget({ ...input, flags: {} }).url);
  url.hostname = "127.0.0.1";
  return url.href.replace(/\/$/, "");
}

async function probe(
  { kind, target, active }: Candidate,
  chosen: Aim,
  flags: CallFlags,
  { version }: CallWorld,
  terminal: Terminal,
): Promise<TargetReport> {
  const most = kind === "localLoopback" ? LOOPBACK_BUDGET_MS : BUDGET_MS;
  const timeout = Math.max(LEAST_BUDGET_MS, Math.min(most, flags.timeout));
  const report: TargetReport = {
    id: kind,
    kind,
    url: target.url,
    active,
    tunnel: null,
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
  { targets, primaryTargetId, warnings }: {
    targets: TargetReport[];
    primaryTargetId: string | null;
    warnings: { message: string }[];
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
  terminal.table(rows, { header: ["target", "address", "result", "gateway", ""] });
  for (const { id, connect } of targets) {
    if (connect.error) terminal.err(`${id}: ${connect.error}`);
  }
  for (const { message } of warnings) terminal.err(message);
}
