// The gateway as a process (`zero gateway`): lock, log, signals, restarts, and what it says on the
// terminal. One start is in start.ts.

import { ConfigError, type ConfigReading, formatIssue, readConfig } from "../config/load.ts";
import { formatLogLine, type OpenLog, openLog } from "../config/log.ts";
import { inProfile, type Paths } from "../config/paths.ts";
import { type GatewayFlags, gatewaySettings, sharedMode } from "../config/settings.ts";
import type { Terminal } from "../config/terminal.ts";
import { readInterfaces } from "./bind.ts";
import { readFileLimit } from "./file_limit.ts";
import { acquireInstanceLock, type InstanceLock, readLock } from "./lock.ts";
import { refuseForeignState } from "./permissions.ts";
import { findPortHolder } from "../tunnel/port_holder.ts";
import { StartRefusal } from "./preflight.ts";
import { type Farewell, type RunningGateway, startGateway } from "./start.ts";

export interface RunOptions {
  version: string;
  paths: Paths;
  flags: GatewayFlags;
  terminal: Terminal;
  /** Show every log line, not only warnings. */
  isVerbose?: boolean;
  /** Stop whichever gateway holds the port or the state directory first. */
  isForced?: boolean;
  checkResults?: boolean;
}

const EXIT_STOPPED = 0;
const EXIT_CUT_SHORT = 1;
/** Starting again would not help (D20). */
const EXIT_REFUSED = 78;
/** What clients get to read their goodbye, and what a stop may take in all. */
const GRACE_MS = 2_000;
const STOP_DEADLINE_MS = 5_000;
const RESTART_EXPECTED_MS = 1_500;
/** A gateway in the way gets this long to stop before it is killed. */
const FORCE_GRACE_MS = 700;
const FORCE_DEADLINE_MS = 2_000;

type Wish = { kind: "stop" } | { kind: "restart"; reason: string };

/** Runs until it is told to stop. @returns the exit code */
export async function runGateway(options: RunOptions): Promise<number> {
  const { paths, terminal } = options;
  Deno.umask(0o077);
  try {
    await Deno.mkdir(paths.stateDir, { recursive: true, mode: 0o700 });
    await refuseForeignState(paths.stateDir);
    if (options.isForced) await stopHolder(options);
    using lock = await acquireInstanceLock(paths.lockFile);
    const reading = await readConfig({ path: paths.configPath, env: paths.env });
    if (!reading.valid) throw new ConfigError(reading.issues);
    const { logging } = gatewaySettings({
      flags: options.flags,
      env: paths.env,
      config: reading.config,
    });
    const logFile = logging.file.value ?? paths.logFile;
    await using log = openLog({
      file: logFile,
      level: logging.level.value,
      maxBytes: logging.maxBytes.value,
      maxFiles: logging.maxFiles.value,
      subsystem: "gateway",
      mirror: (line) => show(line, options),
      warn: (text) => terminal.err(text),
    });
    return await new Process(options, lock, log, logFile).run(reading);
  } catch (error) {
    const refusal = refusalOf(error, paths);
    if (!refusal) throw error;
    terminal.err(`Gateway failed to start: ${refusal.message}`);
    terminal.err(`Fix: ${inProfile(refusal.fix, paths.profile)}`);
    return EXIT_REFUSED;
  }
}

/** One process that may start its gateway several times. */
class Process {
  readonly #options: RunOptions;
  readonly #lock: InstanceLock;
  readonly #log: OpenLog;
  readonly #logFile: string;
  readonly #maxFiles = readFileLimit();
  #wish = Promise.withResolvers<Wish>();
  #isStopping = false;
  #running?: RunningGateway;
  #restartTimer?: ReturnType<typeof setTimeout>;

  constructor(options: RunOptions, lock: InstanceLock, log: OpenLog, logFile: string) {
    this.#options = options;
    this.#lock = lock;
    this.#log = log;
    this.#logFile = logFile;
  }

  async run(first: ConfigReading): Promise<number> {
    using signals = new DisposableStack();
    const on = (signal: Deno.Signal, react: () => void) => {
      Deno.addSignalListener(signal, react);
      signals.defer(() => Deno.removeSignalListener(signal, react));
    };
    let lastGood = first;
    on("SIGTERM", () => this.#stop());
    on("SIGINT", () => this.#stop());
    if (Deno.build.os !== "windows") on("SIGUSR1", () => this.#signalled());

    let reading = first;
    let flags = this.#options.flags;
    for (let isRestart = false;; isRestart = true) {
      const begin = performance.now();
      const gateway = await this.#start(reading, flags).catch(async (error) => {
        const explained = await this.#explain(error, reading, flags);
        if (reading === lastGood) throw explained;
        this.#log.error("cannot start with the changed configuration; using the last good one", {
          error: explained.message,
        });
        // What ran a moment ago runs again.
        reading = lastGood;
        return await this.#start(lastGood, flags).catch(async (again) => {
          throw await this.#explain(again, lastGood, flags);
        });
      });
      this.#running = gateway;
      lastGood = reading;
      if (gateway.settings.port.value === 0) flags = { ...flags, port: gateway.port };
      this.#announce(gateway, reading, isRestart, performance.now() - begin);
      const wish = await this.#wish.promise;
      clearTimeout(this.#restartTimer);
      this.#wish = Promise.withResolvers();
      await this.#end(gateway, wish);
      if (wish.kind === "stop") return EXIT_STOPPED;
      const { paths } = this.#options;
      const next = await readConfig({ path: paths.configPath, env: paths.env });
      reading = next.valid ? next : lastGood;
    }
  }

  #start(reading: ConfigReading, flags: GatewayFlags): Promise<RunningGateway> {
    const { version, paths, checkResults } = this.#options;
    return startGateway({
      version,
      paths,
      flags,
      reading,
      log: this.#log,
      logFile: this.#logFile,
      // Again at each start: addresses come and go.
      interfaces: readInterfaces(),
      maxFiles: this.#maxFiles,
      adopted: ({ config }) => {
        const { logging } = gatewaySettings({ flags, env: paths.env, config });
        this.#log.level = logging.level.value;
      },
      restart: (reason, delayMs) => this.#restartLater(reason, delayMs),
      checkResults,
    });
  }

  /** Turns a port that is taken into who has taken it. */
  async #explain(error: Error, reading: ConfigReading, flags: GatewayFlags): Promise<Error> {
    if ((error as { code?: string }).code !== "EADDRINUSE") return error;
    const { paths } = this.#options;
    const { port, tls } = gatewaySettings({ flags, env: paths.env, config: reading.config });
    const host = "127.0.0.1";
    const pins = await ownPins(reading, paths);
    const { isGateway, pid, program } = await findPortHolder(host, port.value, { pins });
    const url = urlOf(host, port.value, tls.enabled.value);
    const who = [program, pid && `pid ${pid}`].filter(Boolean).join(", ");
    const named = who && ` (${who})`;
    const other = `start this one elsewhere: zero gateway --port ${port.value + 20}`;
    return isGateway
      ? new StartRefusal(
        `another gateway instance is already listening on ${url}${named}`,
        `Use that one (zero gateway status --port ${port.value}), or ${other}`,
      )
      : new StartRefusal(
        `port ${port.value} is taken by another program${named}`,
        `Stop that program, or ${other}`,
      );
  }

  async #end(gateway: RunningGateway, wish: Wish) {
    const deadline = setTimeout(() => {
      this.#log.error("stopping took too long; leaving by force");
      Deno.exit(EXIT_CUT_SHORT);
    }, STOP_DEADLINE_MS);
    const farewell: Farewell = wish.kind === "stop"
      ? { reason: "gateway stopping", restartExpectedMs: null }
      : { reason: "gateway restarting", restartExpectedMs: RESTART_EXPECTED_MS };
    this.#log.info(farewell.reason, wish.kind === "restart" ? { reason: wish.reason } : {});
    await gateway.farewell(farewell, GRACE_MS);
    await gateway[Symbol.asyncDispose]();
    await this.#log.flush();
    clearTimeout(deadline);
  }

  #announce(gateway: RunningGateway, reading: ConfigReading, isRestart: boolean, ms: number) {
    const { paths, version, terminal } = this.#options;
    const hasTls = gateway.settings.tls.enabled.value;
    const url = urlOf(gateway.hosts[0], gateway.port, hasTls);
    this.#lock.note({ pid: Deno.pid, url, startedAtMs: Date.now() });
    this.#log.info(isRestart ? "gateway restarted" : "gateway started", {
      url,
      version,
      pid: Deno.pid,
      auth: gateway.settings.auth.mode.value,
    });
    for (const warning of gateway.warnings) this.#log.warn(warning);
    const { bold, dim, green } = terminal.style;
    const rows = [
      ["listening", gateway.hosts.map((host) => urlOf(host, gateway.port, hasTls)).join("  ")],
      ...gateway.fingerprint ? [["pin", `sha256:${gateway.fingerprint}`]] : [],
      ["auth", describeAuth(gateway, paths)],
      ["config", reading.exists ? paths.configPath : `${paths.configPath} (none yet)`],
      ["log", this.#logFile],
    ];
    const took = dim(`${isRestart ? "restarted" : "ready"} in ${Math.round(ms)} ms`);
    terminal.out(`${green("●")} ${bold(`ZERO ${version}`)}  ${took}`);
    for (const [name, value] of rows) terminal.out(`  ${dim(name.padEnd(10))} ${value}`);
  }

  #stop() {
    if (this.#isStopping) Deno.exit(EXIT_CUT_SHORT);
    this.#isStopping = true;
    this.#wish.resolve({ kind: "stop" });
  }

  /** SIGUSR1 from outside restarts only where that is allowed (§12.1). */
  #signalled() {
    const isAllowed = this.#running?.reading.config.commands?.restart === true;
    if (isAllowed) return this.#restartLater("SIGUSR1", 0);
    this.#log.warn("ignored SIGUSR1", { fix: "zero config set commands.restart true" });
  }

  #restartLater(reason: string, delayMs: number) {
    clearTimeout(this.#restartTimer);
    this.#restartTimer = setTimeout(
      () => this.#wish.resolve({ kind: "restart", reason }),
      delayMs,
    );
  }
}

async function ownPins({ config }: ConfigReading, paths: Paths): Promise<string[]> {
  const { localFingerprint } = await import("./reach.ts");
  return await localFingerprint(config.gateway?.tls, paths);
}

function urlOf(host: string, port: number, hasTls: boolean): string {
  return `${hasTls ? "wss" : "ws"}://${host.includes(":") ? `[${host}]` : host}:${port}`;
}

function describeAuth({ settings: { auth } }: RunningGateway, { tokenFile }: Paths): string {
  if (auth.mode.value === "none") return "none: every program on this machine may connect";
  if (auth.mode.value === "trusted-proxy") {
    const shared = auth[sharedMode("trusted-proxy", auth.password.value)];
    return `trusted-proxy (${auth.trustedProxy.userHeader.value}), and past the proxy ` +
      (shared.value
        ? `the shared secret (${shared.source})`
        : "nobody; for commands on this machine: zero config set gateway.auth.token");
  }
  if (auth.mode.value === "password") return `password (${auth.password.source})`;
  return auth.token.value
    ? `token (${auth.token.source})`
    : `token kept in ${tokenFile}; zero gateway token prints it`;
}

/** Log lines a person at the terminal should see. */
function show(line: string, { terminal, isVerbose }: RunOptions) {
  const isWorthIt = /^\{"time":"[^"]*","level":"(warn|error)"/.test(line);
  if (isVerbose || isWorthIt) terminal.err(formatLogLine(line, terminal.errStyle));
}

/** What the file system says when it takes nothing more, or nothing from us. */
const DISK_ERRORS = new Set(["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO"]);

function refusalOf(error: unknown, { configPath, stateDir }: Paths): StartRefusal | undefined {
  if (error instanceof StartRefusal) return error;
  const { code, syscall, message } = error as Error & { code?: string; syscall?: string };
  if (DISK_ERRORS.has(code ?? "") && syscall === undefined) {
    return new StartRefusal(
      `cannot write the state directory ${stateDir}: ${message}`,
      "Make room there and make it writable for this user, or set ZERO_STATE_DIR to another place",
    );
  }
  if (!(error instanceof ConfigError)) return undefined;
  const lines = error.issues.map((issue) => `\n  ${formatIssue(issue)}`);
  return new StartRefusal(
    lines.length > 0 ? `the configuration is not valid${lines.join("")}` : error.message,
    `Mend ${configPath} and check it with: zero config validate`,
  );
}

/** `--force`: asks the gateway in the way to stop, then makes it. */
async function stopHolder({ paths, flags, terminal }: RunOptions) {
  const reading = await readConfig({ path: paths.configPath, env: paths.env });
  const { port } = gatewaySettings({ flags, env: paths.env, config: reading.config });
  const pins = await ownPins(reading, paths);
  const holder = await findPortHolder("127.0.0.1", port.value, { pins });
  const pid = holder.isGateway ? holder.pid ?? readLock(paths.lockFile)?.pid : undefined;
  if (pid === undefined || pid === Deno.pid) return;
  terminal.err(`Stopping the gateway in the way (pid ${pid})`);
  const begin = performance.now();
  signal(pid, "SIGTERM");
  let isKilled = false;
  while (isAlive(pid) && performance.now() - begin < FORCE_DEADLINE_MS) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    if (isKilled || performance.now() - begin < FORCE_GRACE_MS) continue;
    isKilled = true;
    signal(pid, "SIGKILL");
  }
}

function signal(pid: number, name: Deno.Signal) {
  try {
    Deno.kill(pid, name);
  } catch {
    // It has gone, which is what was wanted.
  }
}

function isAlive(pid: number): boolean {
  try {
    Deno.kill(pid, "SIGCONT");
    return true;
  } catch {
    return false;
  }
}
