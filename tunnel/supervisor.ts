// One tunnel over time: ssh is started, asked through whether the gateway answers, killed when nothing
// comes through, and started again, until it is stopped or only a person can help. Nothing here knows
// of files or of other tunnels.

import { pause } from "../config/pause.ts";
import type { Log } from "../config/log.ts";
import type { Env } from "../config/paths.ts";
import { TunnelError } from "./error.ts";
import { NO_TLS, type Probe, probeGateway, type ProbeOptions } from "./health.ts";
import type { Pin } from "./pin.ts";
import { findPortHolder, isOthersPort, type PortHolder } from "./port_holder.ts";
import {
  classify,
  type Forward,
  isOpenFailure,
  isProhibited,
  localPortFailure,
  readTarget,
  type SshFailure,
  SshProcess,
  typedTarget,
} from "./ssh.ts";
import type { TunnelStatus } from "./state.ts";

export interface SupervisorOptions {
  name: string;
  target: string;
  identity?: string;
  remotePort: number;
  /** The port wanted on this machine; absent: any free one. */
  localPort?: number;
  /** Take a free port where the wanted one is taken. */
  anyPort?: boolean;
  acceptNew?: boolean;
  /** Certificates the gateway is expected to have: it is asked inside TLS, and nobody else is. */
  pins?: readonly Pin[];
  /** Asked when another certificate was shown: what is expected may have changed meanwhile. */
  currentPins?(): Promise<readonly Pin[]>;
  /** The first ssh may ask on the terminal of this process; later ones have to do without. */
  isInteractive: boolean;
  env: Env;
  /** Told whatever there is to know whenever some of it has changed. */
  onChange?(status: TunnelStatus): void;
  log?: Log;
  /** The number of the last ssh that was started under this name. */
  lastGeneration?: number;
  timings?: Partial<Timings>;
  clocks?: Clocks;
}

/** Milliseconds, unless the name says otherwise. */
export interface Timings {
  /** Between two questions to a gateway that answers. */
  probeEveryMs: number;
  /** What an answer may take, and what the second try gets when the first had none. */
  probeTimeoutMs: number;
  secondTimeoutMs: number;
  /** Between two questions while the gateway does not answer, and while ssh is connecting. */
  downEveryMs: number;
  pollEveryMs: number;
  /** The longest pause before ssh is started again. */
  maxBackoffMs: number;
  /** For ssh to connect, for the first time and later. */
  connectTimeoutS: number;
  reconnectTimeoutS: number;
  /** For ssh to log in, beside the time to connect. */
  loginMs: number;
  /** A tunnel that was up so long begins anew with short pauses. */
  stableMs: number;
  /** How often the clocks are compared, and by how much they may differ. */
  tickMs: number;
  jumpMs: number;
}

export const TIMINGS: Timings = {
  probeEveryMs: 15_000,
  probeTimeoutMs: 4_000,
  secondTimeoutMs: 3_000,
  downEveryMs: 1_000,
  pollEveryMs: 100,
  maxBackoffMs: 3_000,
  connectTimeoutS: 10,
  reconnectTimeoutS: 4,
  loginMs: 10_000,
  stableMs: 20_000,
  tickMs: 1_000,
  jumpMs: 5_000,
};

/** A clock of the day, and one that stands still while the machine sleeps. */
export interface Clocks {
  wallMs(): number;
  monotonicMs(): number;
}

const SYSTEM_CLOCKS: Clocks = { wallMs: Date.now, monotonicMs: () => performance.now() };
/** Where the other side does not answer, trying seldom would only add to the outage. */
const UNREACHABLE_BACKOFF_MS = 1_000;
const FIRST_BACKOFF_MS = 250;
/** Every so many attempts a slow path gets the time of a first attempt. */
const PATIENT_ATTEMPT = 3;
/** Empty answers in a row before a gateway counts as stopped: ssh may not have told why yet. */
const CLOSED_TIMES = 3;
const PORT_TRIES = 5;
const DEFAULT_PORT = 18_789;
const PORT_WAIT_MS = 1_500;

export class Supervisor implements AsyncDisposable {
  readonly #options: SupervisorOptions;
  readonly #timings: Timings;
  readonly #clocks: Clocks;
  readonly #stopping = new AbortController();
  #status: TunnelStatus;
  #ssh?: SshProcess;
  #run?: Promise<void>;
  #mayAsk: boolean;
  #pins: readonly Pin[];
  /** Aborted when the machine woke up, then replaced. */
  #wake = new AbortController();
  #changed = Promise.withResolvers<void>();

  /** @throws {TunnelError} kind `target` */
  constructor(options: SupervisorOptions) {
    readTarget(options.target);
    this.#options = options;
    this.#timings = { ...TIMINGS, ...options.timings };
    this.#clocks = options.clocks ?? SYSTEM_CLOCKS;
    this.#mayAsk = options.isInteractive;
    this.#pins = options.pins ?? [];
    this.#status = {
      name: options.name,
      target: options.target,
      state: "connecting",
      localPort: options.localPort ?? 0,
      remotePort: options.remotePort,
      pid: Deno.pid,
      generation: options.lastGeneration ?? 0,
      since: this.#clocks.wallMs(),
      restarts: 0,
      lastProbe: null,
      lastError: null,
    };
  }

  get status(): TunnelStatus {
    return this.#status;
  }

  /** The process id of the ssh that runs at the moment. */
  get sshPid(): number | undefined {
    return this.#ssh?.pid;
  }

  start(): void {
    this.#run ??= this.#supervise();
  }

  /** Resolves when it was stopped, or gave up. */
  async ended(): Promise<void> {
    await this.#run;
  }

  /** Resolves at the next change of the status. */
  changed(): Promise<void> {
    return this.#changed.promise;
  }

  /**
   * Waits until the gateway has answered through the tunnel.
   *
   * @param isPatient wait on for what may mend itself; else the first thing that is wrong is thrown
   * @throws {TunnelError} what stands in the way; or the reason of the signal
   */
  async whenUp(
    { isPatient = false, signal }: { isPatient?: boolean; signal?: AbortSignal } = {},
  ): Promise<void> {
    for (;;) {
      signal?.throwIfAborted();
      const { state, lastError } = this.#status;
      if (state === "up") return;
      if (lastError && (state === "failed" || !isPatient)) throw asError(lastError);
      if (this.#stopping.signal.aborted) throw stopped(this.#status.target);
      await withAbort(this.#changed.promise, signal);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort();
    await this.#ssh?.stop();
    await this.#run;
    this.#changed.resolve();
  }

  async #supervise(): Promise<void> {
    const watch = setInterval(this.#clockWatch(), this.#timings.tickMs);
    let failures = 0;
    try {
      while (!this.#stopping.signal.aborted) {
        const begin = this.#clocks.monotonicMs();
        const { failure, wasUp } = await this.#attempt(failures);
        if (this.#stopping.signal.aborted) break;
        const { kind, message, fix, isFinal } = failure;
        // Taken in the moment between choosing and listening: the next attempt chooses another one.
        const isMoving = kind === "local-port" && this.#mayMove;
        const lastError = isMoving ? this.#status.lastError : { kind, message, fix };
        this.#options.log?.warn("the tunnel broke off", { kind, reason: message, isFinal });
        if (isFinal) return this.#update({ state: "failed", lastError });
        const isStable = wasUp && this.#clocks.monotonicMs() - begin >= this.#timings.stableMs;
        failures = isStable ? 0 : failures + 1;
        this.#update({
          state: "connecting",
          restarts: this.#status.restarts + 1,
          lastError,
        });
        await this.#pause(this.#backoffMs(failures, failure));
      }
    } catch (error) {
      const lastError = {
        kind: "lost",
        message: `Cannot keep up the tunnel to ${this.#options.target}: ${
          (error as Error).message
        }`,
        fix: `zero tunnel up ${this.#options.name}`,
      };
      this.#options.log?.error("the tunnel cannot be kept up", { reason: lastError.message });
      this.#update({ state: "failed", lastError });
    } finally {
      clearInterval(watch);
    }
  }

  /** No particular port is asked for. */
  get #mayMove(): boolean {
    const { localPort, anyPort = false } = this.#options;
    return anyPort || localPort === undefined;
  }

  #backoffMs(failures: number, { kind }: SshFailure): number {
    const ceiling = Math.min(
      FIRST_BACKOFF_MS * 2 ** Math.min(failures, 10),
      kind === "timeout" ? UNREACHABLE_BACKOFF_MS : Infinity,
      this.#timings.maxBackoffMs,
    );
    return ceiling * (0.5 + Math.random() / 2);
  }

  /** One ssh, from its start to its end. */
  async #attempt(failures: number): Promise<{ failure: SshFailure; wasUp: boolean }> {
    const { target, identity, remotePort, acceptNew, env } = this.#options;
    const taken = await this.#choosePort();
    if (taken) return { failure: taken, wasUp: false };
    if (this.#stopping.signal.aborted) return { failure: this.#stoppedFailure(), wasUp: false };
    const isInteractive = this.#mayAsk;
    const isPatient = this.#status.restarts === 0 ||
      failures % PATIENT_ATTEMPT === PATIENT_ATTEMPT - 1;
    const { connectTimeoutS, reconnectTimeoutS } = this.#timings;
    const forward: Forward = {
      target,
      identity,
      localPort: this.#status.localPort,
      remotePort,
      acceptNew,
      isInteractive,
      connectTimeoutS: isPatient ? connectTimeoutS : reconnectTimeoutS,
    };
    const ssh = new SshProcess(forward, {
      env,
      cwd: env.HOME,
      onText: isInteractive ? tellOnTerminal : undefined,
    });
    this.#ssh = ssh;
    this.#update({ state: "connecting", generation: this.#status.generation + 1 });
    this.#options.log?.info("ssh started", { sshPid: ssh.pid, localPort: forward.localPort });
    try {
      return await this.#watch(ssh, forward);
    } finally {
      ssh.kill();
      await ssh.ended;
      this.#ssh = undefined;
    }
  }

  /** Asks through the tunnel, again and again, until ssh has ended or must be ended. */
  async #watch(
    ssh: SshProcess,
    forward: Forward,
  ): Promise<{ failure: SshFailure; wasUp: boolean }> {
    const timings = this.#timings;
    const { monotonicMs } = this.#clocks;
    const gone = new AbortController();
    let end: { code: number | null; stderr: string } | undefined;
    void ssh.ended.then((ended) => {
      end = ended;
      gone.abort();
    });
    const loginBy = forward.isInteractive
      ? Infinity
      : monotonicMs() + forward.connectTimeoutS * 1_000 + timings.loginMs;
    let wasUp = false;
    /** ssh took a connection at the local port: it is logged in. */
    let isListening = false;
    let silences = 0;
    let closed = 0;
    let timeoutMs = timings.probeTimeoutMs;
    for (;;) {
      const wake = this.#wake.signal;
      const probe = await this.#ask(forward.localPort, { timeoutMs, signal: gone.signal });
      if (end) return { failure: classify(end, forward), wasUp };
      if (this.#stopping.signal.aborted) return { failure: this.#stoppedFailure(), wasUp };
      const { verdict } = probe;
      if (verdict !== "refused") isListening = true;
      if (verdict !== "closed") closed = 0;
      if (verdict !== "timeout") silences = 0;
      timeoutMs = timings.probeTimeoutMs;
      let waitMs = timings.downEveryMs;
      if (verdict === "answered") {
        // Before ssh is logged in, whoever is quick could listen in its place, and be told secrets.
        if (!wasUp && await isOthersPort(forward.localPort)) {
          const holder = "another user of this machine";
          return { failure: localPortFailure(forward.target, forward.localPort, holder), wasUp };
        }
        wasUp = true;
        this.#isUp(ssh, probe);
        waitMs = timings.probeEveryMs;
      } else if (verdict === "refused") {
        if (isListening) {
          // Most likely it has just ended, and says why.
          await pause(timings.downEveryMs, gone.signal);
          return {
            failure: end ? classify(end, forward) : this.#silent("ssh stopped listening"),
            wasUp,
          };
        }
        if (monotonicMs() > loginBy) return { failure: this.#loginTooLong(), wasUp };
        waitMs = timings.pollEveryMs;
      } else if (verdict === "timeout") {
        this.#keepProbe(probe);
        // One answer may be lost; a second one in a row says that the path is, or that ssh is frozen.
        if (++silences > 1) return { failure: this.#silent("nothing comes through it"), wasUp };
        timeoutMs = timings.secondTimeoutMs;
        continue;
      } else {
        if (isProhibited(ssh.stderr)) {
          return { failure: classify({ code: null, stderr: ssh.stderr }, forward), wasUp };
        }
        const isSure = verdict !== "closed" || isOpenFailure(ssh.stderr) ||
          ++closed >= CLOSED_TIMES;
        if (isSure) this.#isDown(probe, ssh);
        else waitMs = timings.pollEveryMs;
        ssh.forget();
      }
      await pause(waitMs, gone.signal, wake);
      if (end) return { failure: classify(end, forward), wasUp };
      // A connection that was under way when the machine fell asleep is not worth waiting for.
      if (wake.aborted && !isListening && !forward.isInteractive) {
        return { failure: this.#silent("this machine has slept meanwhile"), wasUp };
      }
      if (wake.aborted) timeoutMs = timings.secondTimeoutMs;
    }
  }

  async #ask(port: number, options: ProbeOptions): Promise<Probe> {
    const probe = await probeGateway(port, { ...options, pins: this.#pins });
    if (probe.verdict !== "stranger") return probe;
    const pins = await this.#options.currentPins?.() ?? [];
    if (pins.length === 0 || JSON.stringify(pins) === JSON.stringify(this.#pins)) return probe;
    this.#pins = pins;
    return await probeGateway(port, { ...options, pins });
  }

  #isUp(ssh: SshProcess, probe: Probe): void {
    ssh.forget();
    this.#mayAsk = false;
    const isNew = this.#status.state !== "up";
    this.#update({ state: "up", lastProbe: this.#probeOf(probe), lastError: null });
    if (!isNew) return;
    const { localPort, latencyMs = probe.latencyMs } = { ...this.#status };
    this.#options.log?.info("the gateway answers through the tunnel", { localPort, latencyMs });
  }

  /** ssh does its part; it is the gateway that does not. */
  #isDown(probe: Probe, ssh: SshProcess): void {
    const { verdict } = probe;
    const lastError = this.#troubleOf(probe, ssh);
    if (this.#status.lastError?.kind !== lastError.kind) {
      this.#options.log?.warn("the gateway does not answer through the tunnel", { verdict });
    }
    this.#update({ state: "down", lastProbe: this.#probeOf(probe), lastError });
  }

  #troubleOf(
    { verdict, trouble }: Probe,
    { stderr }: SshProcess,
  ): NonNullable<TunnelStatus["lastError"]> {
    // Somebody takes connections there, and ends those that begin with TLS.
    const hasNoTls = verdict === "closed" && this.#pins.length > 0 && !isOpenFailure(stderr);
    if (trouble || hasNoTls) return { kind: "tls", ...trouble ?? NO_TLS };
    const { target, remotePort } = this.#options;
    const what = verdict === "closed"
      ? "no gateway listens"
      : "something that is no gateway answers";
    return {
      kind: "gateway-down",
      message: `Cannot reach the gateway through the tunnel to ${target}: ${what} on port ` +
        `${remotePort} there`,
      fix: verdict === "closed"
        ? `Start it: ssh ${typedTarget(target)} zero gateway` +
          (remotePort === DEFAULT_PORT ? "" : ` --port ${remotePort}`)
        : "Name the gateway's port with --remote-port N",
    };
  }

  #keepProbe(probe: Probe): void {
    this.#update({ lastProbe: this.#probeOf(probe) });
  }

  #probeOf({ verdict, latencyMs }: Probe): TunnelStatus["lastProbe"] {
    return { ok: verdict === "answered", latencyMs, atMs: this.#clocks.wallMs() };
  }

  #silent(reason: string): SshFailure {
    const { target } = this.#options;
    return {
      kind: "no-answer",
      message: `Cannot reach the gateway through the tunnel to ${target}: ${reason}`,
      fix: `See whether that machine is well: ssh ${typedTarget(target)} zero health`,
      isFinal: false,
    };
  }

  #loginTooLong(): SshFailure {
    const { target } = this.#options;
    return {
      kind: "timeout",
      message: `Cannot keep up the tunnel to ${target}: the login takes too long`,
      fix: `See what it waits for: ssh -v ${typedTarget(target)} exit`,
      isFinal: false,
    };
  }

  #stoppedFailure(): SshFailure {
    const { kind, message, fix } = stopped(this.#options.target);
    return { kind: kind as "lost", message, fix, isFinal: true };
  }

  /** @returns why there is none; nothing when `localPort` of the status is free */
  async #choosePort(): Promise<SshFailure | undefined> {
    const { target } = this.#options;
    const port = this.#status.localPort;
    // The last ssh of this name may be in the middle of its end.
    const waitUntil = this.#status.generation > 0 ? this.#clocks.monotonicMs() + PORT_WAIT_MS : 0;
    for (;;) {
      if (port !== 0 && isFree(port)) return undefined;
      if (this.#clocks.monotonicMs() >= waitUntil || port === 0) break;
      await pause(this.#timings.pollEveryMs, this.#stopping.signal);
      if (this.#stopping.signal.aborted) return undefined;
    }
    if (port === 0 || this.#mayMove) {
      for (let tries = 0; tries < PORT_TRIES; tries++) {
        const free = freePort();
        if (free === port) continue;
        this.#update({ localPort: free });
        return undefined;
      }
    }
    const holder = await findPortHolder("127.0.0.1", port);
    return localPortFailure(target, port, holderName(holder));
  }

  /** Sees by two clocks that the machine has slept, or that this process was stopped. */
  #clockWatch(): () => void {
    const { tickMs, jumpMs } = this.#timings;
    let wall = this.#clocks.wallMs();
    let monotonic = this.#clocks.monotonicMs();
    return () => {
      const [wallNow, monotonicNow] = [this.#clocks.wallMs(), this.#clocks.monotonicMs()];
      const [byWall, byMonotonic] = [wallNow - wall, monotonicNow - monotonic];
      [wall, monotonic] = [wallNow, monotonicNow];
      const isJump = Math.abs(byWall - byMonotonic) > jumpMs || byMonotonic > tickMs + jumpMs;
      if (!isJump) return;
      this.#options.log?.info("the clock jumped: the tunnel is looked at", {
        jumpMs: Math.round(byWall),
      });
      this.#wake.abort();
      this.#wake = new AbortController();
    };
  }

  async #pause(ms: number): Promise<void> {
    await pause(ms, this.#stopping.signal, this.#wake.signal);
  }

  #update(change: Partial<TunnelStatus>): void {
    const isOther = change.state !== undefined && change.state !== this.#status.state;
    this.#status = {
      ...this.#status,
      ...change,
      ...isOther && { since: this.#clocks.wallMs() },
    };
    this.#options.onChange?.(this.#status);
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}

export function asError(
  { kind, message, fix }: NonNullable<TunnelStatus["lastError"]>,
): TunnelError {
  return new TunnelError(kind as TunnelError["kind"], message, fix);
}

/** A port of 127.0.0.1 nobody listens on. */
export function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

export function isFree(port: number): boolean {
  try {
    Deno.listen({ hostname: "127.0.0.1", port }).close();
    return true;
  } catch {
    // Taken, or not for this user: ssh would not get it either.
    return false;
  }
}

function holderName({ isGateway, pid, program }: PortHolder): string | undefined {
  const who = isGateway ? "a gateway or another tunnel to one" : program;
  if (who === undefined) return pid === undefined ? undefined : `process ${pid}`;
  const details = [isGateway ? program : undefined, pid === undefined ? undefined : `pid ${pid}`]
    .filter((one) => one !== undefined);
  return details.length > 0 ? `${who} (${details.join(", ")})` : who;
}

function stopped(target: string): TunnelError {
  return new TunnelError("lost", `Cannot keep up the tunnel to ${target}: it was stopped`, "");
}

/** What ssh says beside its questions, such as which code a second factor wants. */
function tellOnTerminal(text: string): void {
  try {
    using terminal = Deno.openSync("/dev/tty", { write: true });
    terminal.writeSync(new TextEncoder().encode(text));
  } catch {
    // No terminal after all, or none that may be written to: ssh asks there by itself.
  }
}

/** @throws the reason of the signal */
export async function withAbort<T>(promise: Promise<T>, signal?: AbortSignal): Promise<T> {
  if (!signal) return await promise;
  const aborted = Promise.withResolvers<never>();
  const abort = () => aborted.reject(signal.reason);
  signal.addEventListener("abort", abort);
  try {
    if (signal.aborted) throw signal.reason;
    return await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}
