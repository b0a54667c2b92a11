// The tunnels of an installation: one that lasts as long as this process wants it, and one that is
// kept up in the background by a process of its own. What a tunnel does over time is in supervisor.ts.

import { pause } from "../config/pause.ts";
import { openLog } from "../config/log.ts";
import { type Paths, resolvePath } from "../config/paths.ts";
import { formatPin } from "../config/schema.ts";
import { TunnelError } from "./error.ts";
import { probeGateway } from "./health.ts";
import type { Pin } from "./pin.ts";
import { readTarget, withoutSecrets } from "./ssh.ts";
import {
  checkName,
  OwnedRecord,
  readTunnel,
  readTunnels,
  tunnelFiles,
  type TunnelRecord,
  type TunnelStatus,
} from "./state.ts";
import { asError, Supervisor, type SupervisorOptions, type Timings } from "./supervisor.ts";

export type { TunnelState, TunnelStatus } from "./state.ts";

export interface TunnelSpec {
  name: string;
  /** `[user@]host[:port]`, or an alias of the user's ssh configuration. */
  target: string;
  /** A private key file. */
  identity?: string;
  /** Port of the gateway on the machine ssh reaches. */
  remotePort: number;
  /** The port wanted on this machine; absent: any free one. */
  localPort?: number;
  /** Take a free port where the wanted one is taken. */
  anyPort?: boolean;
  /** Accept the host key of a machine that was never met (D8). */
  acceptNew?: boolean;
  /** Certificates the gateway is expected to have, where it speaks TLS behind the tunnel. */
  pins?: readonly Pin[];
}

export interface TunnelOptions {
  paths: Paths;
  version: string;
  /** ssh may ask its questions (host key, passphrase) on the terminal of this process. */
  isInteractive: boolean;
  /** Told once what was opened or reused. */
  say(message: string): void;
  signal?: AbortSignal;
  /** Wait on for what may mend itself (no network yet), instead of giving up at the first trouble. */
  isPatient?: boolean;
  timings?: Partial<Timings>;
  /** Starts this program, for the process in the background; absent: as this one was started. */
  program?: readonly string[];
}

/** A way to a gateway: `ws://127.0.0.1:<localPort>`. */
export interface OpenTunnel {
  readonly localPort: number;
  /** It was up already, and stays so. */
  readonly isReused: boolean;
}

/** How often a waiting command looks at what the process in the background has written. */
const LOOK_EVERY_MS = 50;
/** For a last question to a tunnel that is about to be reused. */
const REUSE_TIMEOUT_MS = 3_000;

/**
 * Opens a tunnel that is gone when it is disposed of; where the background has one to the same gateway
 * that answers, that one is used and left as it is.
 *
 * @returns `localPort` is the current one, should the tunnel have to move; `pid` is the ssh process, or
 *   the one in the background that has the tunnel
 * @throws {TunnelError} what stands in the way, with its fix; the reason of the signal when aborted
 */
export async function openTunnel(
  given: TunnelSpec,
  options: TunnelOptions,
): Promise<OpenTunnel & AsyncDisposable & { readonly pid: number | null }> {
  const spec = readSpec(given, options.paths);
  const found = await findUp(spec, options.paths);
  if (found) {
    options.say(`Using the tunnel ${found.name} to ${spec.target} on port ${found.localPort}`);
    const { localPort, pid } = found;
    return { localPort, pid, isReused: true, [Symbol.asyncDispose]: () => Promise.resolve() };
  }
  const { isInteractive, signal, timings, isPatient, paths: { env } } = options;
  await using stack = new AsyncDisposableStack();
  const supervisor = stack.use(new Supervisor({ ...spec, isInteractive, env, timings }));
  supervisor.start();
  await supervisor.whenUp({ signal, isPatient });
  options.say(`Opened a tunnel to ${spec.target} on port ${supervisor.status.localPort}`);
  const owned = stack.move();
  return {
    get localPort() {
      return supervisor.status.localPort;
    },
    get pid() {
      return supervisor.sshPid ?? null;
    },
    isReused: false,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/**
 * Makes sure that the background keeps a tunnel up and that a gateway has answered through it.
 *
 * @throws {TunnelError} what stands in the way, with its fix; the reason of the signal when aborted
 */
export async function ensureTunnel(given: TunnelSpec, options: TunnelOptions): Promise<OpenTunnel> {
  const { paths, say } = options;
  const spec = readSpec(given, paths);
  checkName(spec.name);
  const found = await findUp(spec, paths);
  if (found) {
    say(`Using the tunnel ${found.name} to ${spec.target} on port ${found.localPort}`);
    return { localPort: found.localPort, isReused: true };
  }
  const record = await readTunnel(paths, spec.name);
  if (record && record.status.pid !== null && record.status.state !== "failed") {
    // It is being kept up, but does not answer now: another one would fare no better.
    return await useKept(record, spec, options);
  }
  const child = spawnKeeper(spec, options);
  const exited = child.status.then(({ code }) => code);
  child.unref();
  try {
    const status = await answerOf(child.pid, { spec, options, exited });
    say(`Opened the tunnel ${spec.name} to ${spec.target} on port ${status.localPort}`);
    return { localPort: status.localPort, isReused: false };
  } catch (error) {
    try {
      child.kill("SIGTERM");
    } catch {
      // It has ended by itself.
    }
    child.ref();
    await exited;
    // Another command was quicker: what it has started serves this one, too.
    const winner = await readTunnel(paths, spec.name);
    const isOther = winner !== undefined && winner.status.pid !== null &&
      winner.status.pid !== child.pid;
    if (isOther && !options.signal?.aborted) return await useKept(winner, spec, options);
    throw error;
  }
}

/** Waits for a tunnel that another process keeps up. */
async function useKept(
  record: TunnelRecord,
  spec: TunnelSpec,
  options: TunnelOptions,
): Promise<OpenTunnel> {
  const { target, remotePort, localPort, pid } = record.status;
  if (!isSameWay(record, spec) || !hasWantedPort(record.status, spec)) {
    throw new TunnelError(
      "state",
      `Cannot open the tunnel ${spec.name} to ${spec.target}: one of that name goes to ` +
        `${target}, port ${remotePort}, from port ${localPort} of this machine`,
      `zero tunnel down ${spec.name}`,
    );
  }
  const status = await answerOf(pid!, { spec, options });
  options.say(`Using the tunnel ${spec.name} to ${spec.target} on port ${status.localPort}`);
  return { localPort: status.localPort, isReused: true };
}

/** Keeps a tunnel up in this process until the signal or trouble that only a person can mend. */
export async function keepTunnel(
  spec: TunnelSpec,
  { paths, isInteractive, version, signal, timings, say, mirror, currentPins }:
    & Pick<TunnelOptions, "paths" | "isInteractive" | "version" | "say" | "timings">
    & Pick<SupervisorOptions, "currentPins">
    & { signal: AbortSignal; mirror?: (line: string) => void },
): Promise<TunnelStatus> {
  const { name, target, identity, localPort, anyPort, acceptNew } = spec;
  readTarget(target);
  const wish = { identity, wantedPort: localPort, anyPort, acceptNew };
  using record = await OwnedRecord.claim(paths, name, wish);
  await using log = openLog({
    file: tunnelFiles(paths, name).log,
    subsystem: "tunnel",
    mirror,
    warn: say,
  });
  log.info("keeping a tunnel up", { name, target, remotePort: spec.remotePort, version });
  const onChange = (status: TunnelStatus) => {
    try {
      record.write(status);
    } catch (error) {
      // A full disk is no reason to let the tunnel go.
      log.error("cannot write what the tunnel does", { reason: (error as Error).message });
    }
  };
  await using supervisor = new Supervisor({
    ...spec,
    isInteractive,
    env: paths.env,
    onChange,
    log,
    currentPins,
    lastGeneration: record.lastGeneration,
    timings,
  });
  onChange(supervisor.status);
  supervisor.start();
  let said = "";
  const stop = Promise.withResolvers<void>();
  const abort = () => stop.resolve();
  signal.addEventListener("abort", abort);
  if (signal.aborted) abort();
  const ended = supervisor.ended();
  while (!signal.aborted && supervisor.status.state !== "failed") {
    const { state, localPort, lastError } = supervisor.status;
    const line = state === "up"
      ? `The tunnel ${name} to ${target} is up on port ${localPort}`
      : lastError?.message ?? "";
    if (line !== "" && line !== said) say(said = line);
    await Promise.race([supervisor.changed(), stop.promise, ended]);
  }
  signal.removeEventListener("abort", abort);
  await supervisor[Symbol.asyncDispose]();
  const { status } = supervisor;
  const isFailed = status.state === "failed";
  const last: TunnelStatus = {
    ...status,
    pid: null,
    ...!isFailed && { state: "down", since: Date.now() },
  };
  onChange(last);
  log.info("the tunnel is no longer kept up", { state: last.state });
  return last;
}

/** All tunnels, by name. */
export async function tunnelStatus(paths: Paths): Promise<TunnelStatus[]> {
  return (await readTunnels(paths)).map(({ status }) => status);
}

/** As this process was started, whether it was compiled or is run from its sources. */
export function ownProgram(): string[] {
  return Deno.build.standalone
    ? [Deno.execPath()]
    : [Deno.execPath(), "run", "-A", "--no-check", Deno.mainModule];
}

/** The words behind `zero` that keep a tunnel up. */
export function keeperArguments(spec: TunnelSpec): string[] {
  const { name, target, identity, remotePort, localPort, anyPort, acceptNew, pins = [] } = spec;
  return [
    "tunnel",
    "up",
    name,
    "--foreground",
    `--ssh=${target}`,
    `--remote-port=${remotePort}`,
    // Without a wanted port any one is wanted.
    `--local-port=${localPort ?? 0}`,
    ...identity === undefined ? [] : [`--identity=${identity}`],
    ...anyPort ? ["--any-port"] : [],
    ...acceptNew ? ["--ssh-accept-new"] : [],
    ...pins.length > 0 ? [`--tls-fingerprint=${pins.map(formatPin).join()}`] : [],
  ];
}

/** @throws {TunnelError} kind `target` */
function readSpec(spec: TunnelSpec, { env }: Paths): TunnelSpec {
  readTarget(spec.target);
  if (spec.identity === undefined) return spec;
  // The process in the background runs in another directory.
  return { ...spec, identity: resolvePath(spec.identity, { home: env.HOME, cwd: Deno.cwd() }) };
}

/** A background tunnel to the same gateway that answers at this moment. */
async function findUp(spec: TunnelSpec, paths: Paths): Promise<TunnelStatus | undefined> {
  const records = await readTunnels(paths);
  const candidates = records.filter((record) =>
    record.status.state === "up" && isSameWay(record, spec) && hasWantedPort(record.status, spec)
  );
  // The one of the same name first.
  candidates.sort((one, other) =>
    Number(other.status.name === spec.name) - Number(one.status.name === spec.name)
  );
  for (const { status } of candidates) {
    const { verdict } = await probeGateway(status.localPort, {
      timeoutMs: REUSE_TIMEOUT_MS,
      pins: spec.pins,
    });
    if (verdict === "answered") return status;
  }
}

function isSameWay({ status, wish }: TunnelRecord, spec: TunnelSpec): boolean {
  return status.target === spec.target && status.remotePort === spec.remotePort &&
    (wish.identity ?? "") === (spec.identity ?? "");
}

function hasWantedPort({ localPort }: TunnelStatus, spec: TunnelSpec): boolean {
  return spec.anyPort === true || spec.localPort === undefined || spec.localPort === localPort;
}

/** Waits for what the process `pid` writes of its tunnel. */
async function answerOf(
  pid: number,
  { spec, options, exited }: {
    spec: TunnelSpec;
    options: TunnelOptions;
    exited?: Promise<number>;
  },
): Promise<TunnelStatus> {
  const { paths, signal, isPatient = false } = options;
  const gone = new AbortController();
  let exitCode: number | undefined;
  void exited?.then((code) => {
    exitCode = code;
    gone.abort();
  });
  for (;;) {
    signal?.throwIfAborted();
    const record = await readTunnel(paths, spec.name);
    const status = record?.status;
    if (status?.pid === pid) {
      if (status.state === "up") return status;
      if (status.lastError && (!isPatient || status.state === "failed")) {
        throw asError(status.lastError);
      }
    }
    const hasEnded = exited ? exitCode !== undefined : status?.pid !== pid;
    if (hasEnded) {
      if (status?.pid === null && status.lastError) throw asError(status.lastError);
      throw new TunnelError(
        "lost",
        `Cannot open the tunnel to ${spec.target}: the process that keeps it up has ended` +
          (exitCode === undefined ? "" : ` with code ${exitCode}`),
        `zero tunnel logs ${spec.name}`,
      );
    }
    await pause(LOOK_EVERY_MS, gone.signal, ...signal ? [signal] : []);
  }
}

/** A process that outlives this one. */
function spawnKeeper(spec: TunnelSpec, options: TunnelOptions): Deno.ChildProcess {
  const { paths, isInteractive, program = ownProgram() } = options;
  const [command, ...args] = program;
  const { env, stateDir, configPath } = paths;
  return new Deno.Command(command, {
    args: [...args, ...keeperArguments(spec), ...isInteractive ? ["--may-ask"] : []],
    clearEnv: true,
    env: { ...withoutSecrets(env), ZERO_STATE_DIR: stateDir, ZERO_CONFIG_PATH: configPath },
    cwd: env.HOME ?? "/",
    // In the session of the terminal as long as ssh may have to ask there.
    detached: !isInteractive,
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
}
