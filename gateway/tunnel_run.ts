// What `zero tunnel` does: from flags and configuration to a tunnel, and from its file to a terminal.

import { EXIT_REFUSED, UsageError } from "../config/command.ts";
import { readConfig } from "../config/load.ts";
import { formatLogLine, tailLog } from "../config/log.ts";
import { type Paths, resolvePath } from "../config/paths.ts";
import { fingerprintIn, type Pin, pinsIn } from "../config/schema.ts";
import { remotesOf, sshTargetOf, type SshWay, sshWayOf } from "../config/target.ts";
import { formatDuration, type Terminal } from "../config/terminal.ts";
import { TunnelError } from "../tunnel/error.ts";
import { readPins } from "../tunnel/pin.ts";
import { systemRunner } from "../tunnel/process.ts";
import { installService, type ServiceWorld, uninstallService } from "../tunnel/service.ts";
import { readTarget } from "../tunnel/ssh.ts";
import {
  checkName,
  forgetTunnel,
  nameOf,
  readTunnel,
  readTunnels,
  stopOwner,
  tunnelFiles,
  type TunnelStatus,
} from "../tunnel/state.ts";
import {
  ensureTunnel,
  keeperArguments,
  keepTunnel,
  ownProgram,
  type TunnelSpec,
} from "../tunnel/tunnels.ts";
import type { CallWorld } from "./reach.ts";

export interface WishFlags {
  ssh?: string;
  identity?: string;
  "remote-port"?: number;
  "local-port"?: number;
  "any-port": boolean;
  "ssh-accept-new": boolean;
  "tls-fingerprint"?: string;
}

interface UpFlags extends WishFlags {
  foreground: boolean;
  "may-ask": boolean;
  json: boolean;
  verbose: boolean;
}

const DEFAULT_PORT = 18_789;
/** What `gateway.remote` is called where it has no name. */
const DEFAULT_NAME = "default";
const FOLLOW_EVERY_MS = 500;
/** From here on a person wants to know that something is going on. */
const TELL_AFTER_MS = 1_000;

export async function tunnelUp(
  name: string | undefined,
  flags: UpFlags,
  { place, version }: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const paths = place();
  const spec = await chooseSpec(name, flags, paths);
  const stop = new AbortController();
  const canAsk = terminal.canAsk && !flags.json;
  using _signals = onSignals(() => stop.abort(), { ignoresHangup: flags["may-ask"] });
  if (flags.foreground) {
    const { state, lastError } = await keepTunnel(spec, {
      paths,
      version,
      isInteractive: canAsk || flags["may-ask"],
      signal: stop.signal,
      say: (message) => terminal.err(message),
      currentPins: () => configuredPins(spec, paths),
      ...flags.verbose && {
        mirror: (line: string) => terminal.err(formatLogLine(line, terminal.errStyle)),
      },
    });
    if (state !== "failed" || !lastError) return;
    const { red, dim } = terminal.errStyle;
    terminal.err(`${red("error:")} ${lastError.message}\n${dim(`fix:   ${lastError.fix}`)}`);
    return EXIT_REFUSED;
  }
  // A line that turns would write over a question of ssh: where one may come, it is said once.
  const text = `Connecting to ${spec.target}…`;
  using _progress = canAsk ? later(() => terminal.err(text)) : terminal.progress(text);
  const said: string[] = [];
  const { isReused } = await ensureTunnel(spec, {
    paths,
    version,
    isInteractive: canAsk,
    signal: stop.signal,
    say: (message) => said.push(message),
  }).catch((error) => {
    if (!stop.signal.aborted) throw error;
    throw new TunnelError(
      "lost",
      `Cannot open the tunnel to ${spec.target}: it was interrupted`,
      `zero tunnel up ${spec.name}`,
    );
  });
  _progress[Symbol.dispose]();
  const tunnel = await findUsed(spec, paths);
  if (flags.json) return terminal.json({ ok: true, isReused, tunnel });
  for (const message of said) terminal.out(message);
  if (tunnel) terminal.out(`Reach the gateway with ${flagsTo(tunnel, spec)}`);
}

function flagsTo({ localPort }: TunnelStatus, { pins = [] }: TunnelSpec): string {
  if (pins.length === 0) return `--port ${localPort}`;
  const fingerprints = pins.map((pin) => `sha256:${fingerprintIn(pin)}`).join();
  return `--url wss://127.0.0.1:${localPort} --tls-fingerprint ${fingerprints}`;
}

export async function tunnelDown(
  name: string | undefined,
  flags: { all: boolean; json: boolean },
  { place }: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  if (name !== undefined && flags.all) {
    throw new UsageError("Cannot take NAME and --all together: give one of them");
  }
  const paths = place();
  const names = flags.all
    ? (await readTunnels(paths)).map(({ status }) => status.name)
    : [await chooseName(name, paths)];
  const closed: string[] = [];
  const failures: unknown[] = [];
  for (const one of names) {
    try {
      if (await stopOwner(paths, one)) closed.push(one);
      // Asked for again, a tunnel that is down is forgotten.
      else await forgetTunnel(paths, one);
    } catch (error) {
      // The others are closed all the same.
      failures.push(error);
    }
  }
  if (failures.length > 0) throw failures[0];
  if (flags.json) return terminal.json({ ok: true, closed });
  for (const one of names) {
    terminal.out(closed.includes(one) ? `The tunnel ${one} is closed` : `${one} was not up`);
  }
  if (names.length === 0) terminal.err("There is no tunnel");
}

export async function showTunnels(
  name: string | undefined,
  { json }: { json: boolean },
  { place }: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const paths = place();
  const chosen = name === undefined ? undefined : await chooseName(name, paths);
  const all = (await readTunnels(paths)).map(({ status }) => status);
  const tunnels = all.filter((one) => chosen === undefined || one.name === chosen);
  if (json) return terminal.json({ tunnels });
  if (tunnels.length === 0) {
    return terminal.err("There is no tunnel; open one: zero tunnel up NAME --ssh TARGET");
  }
  tellTunnels(tunnels, terminal);
}

export async function listTunnels(
  { json }: { json: boolean },
  { place }: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const paths = place();
  const opened = (await readTunnels(paths)).map(({ status }) => status);
  const { config } = await readConfig({ path: paths.configPath, env: paths.env });
  const possible = remotesOf(config).flatMap((remote) => sshWayOf(remote) ?? [])
    .filter(({ name }) => !opened.some((one) => one.name === name))
    .map(unopened);
  const tunnels = [...opened, ...possible];
  if (json) return terminal.json({ tunnels });
  if (tunnels.length === 0) {
    return terminal.err("There is no tunnel; open one: zero tunnel up NAME --ssh TARGET");
  }
  terminal.table(tunnels.map(rowOf), { header: HEADER });
}

export async function showTunnelLog(
  name: string | undefined,
  { follow, limit }: { follow: boolean; limit: number },
  { place }: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const paths = place();
  const { log: file } = tunnelFiles(paths, await chooseName(name, paths));
  const show = (lines: readonly string[]) => {
    if (lines.length === 0) return;
    const { isInteractive, style } = terminal;
    terminal.out(
      lines.map((line) => isInteractive ? formatLogLine(line, style) : line).join("\n"),
    );
  };
  let part = await tailLog({ file, limit });
  show(part.lines);
  if (!follow && part.lines.length === 0) terminal.err(`The log is empty: ${file}`);
  while (follow) {
    await new Promise((resolve) => setTimeout(resolve, FOLLOW_EVERY_MS));
    part = await tailLog({ file, cursor: part.cursor });
    show(part.lines);
  }
}

export async function installTunnel(
  name: string | undefined,
  flags: WishFlags & { json: boolean },
  { place }: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const paths = place();
  const spec = await chooseSpec(name, flags, paths);
  readTarget(spec.target);
  const { stateDir, configPath, profile } = paths;
  // The unit takes its place.
  const wasUp = await stopOwner(paths, spec.name);
  // What the configuration expects is read anew at each start.
  const pins = flags["tls-fingerprint"] === undefined ? undefined : spec.pins;
  const argv = [...ownProgram(), ...keeperArguments({ ...spec, pins })];
  const env = { ZERO_STATE_DIR: stateDir, ZERO_CONFIG_PATH: configPath };
  const { file, isEnabled, next } = await installService(
    { name: spec.name, profile, argv, env },
    serviceWorld(paths),
  );
  if (flags.json) return terminal.json({ ok: true, name: spec.name, file, isEnabled, next });
  terminal.out(`Written: ${file}`);
  terminal.out(
    isEnabled
      ? `The tunnel ${spec.name} to ${spec.target} runs now and after each login`
      : `It could not be started from here${wasUp ? ", and the tunnel is closed until it is" : ""}`,
  );
  for (const line of next) terminal.out(`Next: ${line}`);
  if (isEnabled) terminal.out(`See how it does: zero tunnel status ${spec.name}`);
}

export async function uninstallTunnel(
  name: string | undefined,
  { json }: { json: boolean },
  { place }: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const paths = place();
  const chosen = checkName(name ?? DEFAULT_NAME);
  const file = await uninstallService(
    { name: chosen, profile: paths.profile },
    serviceWorld(paths),
  );
  if (file === undefined) {
    throw new TunnelError(
      "state",
      `Cannot uninstall the tunnel ${chosen}: it is not installed`,
      "Name the one that zero tunnel install was given",
    );
  }
  if (json) return terminal.json({ ok: true, name: chosen, file });
  terminal.out(`Removed: ${file}`);
}

/**
 * What a command line asks for: by --ssh, by the name of a remote, or by that of a tunnel that was
 * opened before.
 *
 * @throws {UsageError} nothing says where it leads
 */
export async function chooseSpec(
  name: string | undefined,
  flags: WishFlags,
  paths: Paths,
): Promise<TunnelSpec> {
  const base = flags.ssh === undefined
    ? await findSpec(name, paths)
    : wayBySsh(name, sshTargetOf(flags.ssh));
  const wanted = flags["local-port"] ?? base.localPort ?? DEFAULT_PORT;
  const key = flags.identity ?? base.identity;
  // Whoever keeps the tunnel up runs in another directory.
  const identity = key && resolvePath(key, { home: paths.env.HOME, cwd: Deno.cwd() });
  const { name: named, target } = base;
  const way = { name: named, target, remotePort: flags["remote-port"] ?? base.remotePort };
  const pin = flags["tls-fingerprint"];
  const pins = pin === undefined ? await configuredPins(way, paths) : readPins(pinsIn(pin));
  checkName(named);
  return {
    ...way,
    ...pins.length > 0 && { pins },
    ...identity !== undefined && { identity },
    ...wanted !== 0 && { localPort: wanted },
    anyPort: flags["any-port"] || base.anyPort === true,
    acceptNew: flags["ssh-accept-new"] || base.acceptNew === true,
  };
}

/** What the configuration expects of the gateway at the end of a tunnel. */
async function configuredPins(
  { name, target, remotePort }: Pick<TunnelSpec, "name" | "target" | "remotePort">,
  { configPath, env }: Paths,
): Promise<Pin[]> {
  const { config } = await readConfig({ path: configPath, env });
  const found = remotesOf(config).flatMap((remote) => {
    const way = sshWayOf(remote);
    const isIt = way?.target === target && way.remotePort === remotePort;
    return isIt ? [{ ...remote.fields, name: way.name }] : [];
  });
  const remote = found.find((one) => one.name === name) ?? found[0];
  return pinsIn(remote?.tlsFingerprint);
}

function wayBySsh(name: string | undefined, target: string): TunnelSpec {
  readTarget(target);
  return { name: name ?? nameOf(target), target, remotePort: DEFAULT_PORT };
}

async function findSpec(name: string | undefined, paths: Paths): Promise<TunnelSpec> {
  const { config } = await readConfig({ path: paths.configPath, env: paths.env });
  const ways = remotesOf(config).flatMap((remote) => sshWayOf(remote) ?? []);
  const wanted = name ?? paths.env.ZERO_REMOTE?.trim() ??
    config.gateway?.remote?.name ?? DEFAULT_NAME;
  const way = ways.find((one) => one.name === wanted);
  if (way) return way;
  const record = name === undefined ? undefined : await readTunnel(paths, checkName(name));
  if (record) {
    const { status: { target, remotePort, localPort }, wish } = record;
    const { wantedPort, ...rest } = wish;
    // Any port was wanted: the one it had is as good as another, and known to whoever used it.
    const port = wantedPort ?? localPort;
    const anyPort = rest.anyPort || wantedPort === undefined;
    return { name: record.status.name, target, remotePort, ...rest, localPort: port, anyPort };
  }
  throw name === undefined
    ? new UsageError("Cannot open a tunnel: nothing says which machine it leads to", {
      hint: "zero tunnel up --ssh [user@]host",
    })
    : new UsageError(
      `Cannot open the tunnel ${JSON.stringify(name)}: no remote of that name is reached ` +
        "through ssh, and no tunnel had that name before",
      { hint: `zero tunnel up ${checkName(name)} --ssh [user@]host` },
    );
}

/** @throws {TunnelError} there is none of that name, or none at all; {UsageError} there are several */
async function chooseName(name: string | undefined, paths: Paths): Promise<string> {
  if (name !== undefined) {
    if (await readTunnel(paths, checkName(name))) return name;
    throw new TunnelError(
      "state",
      `Cannot find the tunnel ${name}: none of that name was opened`,
      "zero tunnel list",
    );
  }
  const names = (await readTunnels(paths)).map(({ status }) => status.name);
  if (names.length === 1) return names[0];
  if (names.includes(DEFAULT_NAME)) return DEFAULT_NAME;
  if (names.length === 0) {
    throw new TunnelError(
      "state",
      "Cannot find a tunnel: none was opened",
      "zero tunnel up NAME --ssh TARGET",
    );
  }
  throw new UsageError("Cannot choose a tunnel: there are several", {
    hint: `Name one of ${names.join(", ")}`,
  });
}

/** The tunnel that serves a wish: its own, or another one to the same gateway. */
async function findUsed(spec: TunnelSpec, paths: Paths): Promise<TunnelStatus | undefined> {
  const all = (await readTunnels(paths)).map(({ status }) => status);
  const up = all.filter((one) =>
    one.state === "up" && one.target === spec.target && one.remotePort === spec.remotePort
  );
  return up.find(({ name }) => name === spec.name) ?? up[0];
}

const HEADER = ["NAME", "STATE", "PORT", "TARGET", "REMOTE PORT"];

function rowOf({ name, state, localPort, target, remotePort }: TunnelStatus): string[] {
  return [name, state, localPort === 0 ? "-" : String(localPort), target, String(remotePort)];
}

function tellTunnels(tunnels: readonly TunnelStatus[], terminal: Terminal): void {
  const now = Date.now();
  terminal.table(
    tunnels.map((one) => {
      const { since, restarts, lastProbe } = one;
      const answer = lastProbe
        ? `${lastProbe.ok ? `${lastProbe.latencyMs} ms` : "none"}, ${
          formatDuration(now - lastProbe.atMs)
        } ago`
        : "-";
      return [...rowOf(one), formatDuration(now - since), String(restarts), answer];
    }),
    { header: [...HEADER, "SINCE", "RESTARTS", "ANSWER"] },
  );
  const { yellow, dim } = terminal.style;
  for (const { name, state, lastError } of tunnels) {
    if (!lastError || state === "up") continue;
    terminal.out(`\n${yellow(`${name}:`)} ${lastError.message}\n${dim(`fix: ${lastError.fix}`)}`);
  }
}

/** A remote nobody has opened a tunnel to yet. */
function unopened({ name, target, localPort, remotePort }: SshWay): TunnelStatus {
  return {
    name,
    target,
    state: "down",
    localPort: localPort ?? 0,
    remotePort,
    pid: null,
    generation: 0,
    since: 0,
    restarts: 0,
    lastProbe: null,
    lastError: null,
  };
}

function serviceWorld({ env }: Paths): ServiceWorld {
  return { os: Deno.build.os, env, uid: Deno.uid(), runner: systemRunner };
}

function later(tell: () => void): Disposable {
  const timer = setTimeout(tell, TELL_AFTER_MS);
  return { [Symbol.dispose]: () => clearTimeout(timer) };
}

/** @param ignoresHangup the terminal may go, the process stays */
function onSignals(stop: () => void, { ignoresHangup }: { ignoresHangup: boolean }): Disposable {
  const listeners: [Deno.Signal, () => void][] = [
    ["SIGINT", stop],
    ["SIGTERM", stop],
    ["SIGHUP", ignoresHangup ? () => {} : stop],
  ];
  for (const [signal, listener] of listeners) Deno.addSignalListener(signal, listener);
  return {
    [Symbol.dispose]() {
      for (const [signal, listener] of listeners) Deno.removeSignalListener(signal, listener);
    },
  };
}
