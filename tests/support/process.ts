// A gateway as a child process, as its users run it: a home and a state directory of its own, a port
// that stays the same over restarts, everything it prints kept, and nothing left behind when a test
// fails.

/** Where a gateway lives; it outlives the processes that are started in it. */
export interface Place extends AsyncDisposable {
  /** The temporary directory: HOME of the child. */
  home: string;
  stateDir: string;
  configPath: string;
  lockFile: string;
  database: string;
  logFile: string;
  port: number;
  /** The configuration file is written as it is given, or as JSON. */
  configure(config: unknown): Promise<void>;
  /** Everything in the log files, oldest first. */
  log(): Promise<string>;
}

export interface ProcessOptions {
  place: Place;
  /** The shared secret, from the environment; null lets the gateway make its own. */
  token?: string | null;
  /** Beside `gateway --port N`. */
  args?: readonly string[];
  /** The configuration names the port, not the command line. */
  isPortInFile?: boolean;
  env?: Readonly<Record<string, string>>;
  /** How many files and sockets it may have open. */
  maxFiles?: number;
  /** The network namespace it lives in. */
  namespace?: string;
}

export interface Ended {
  code: number;
  signal: Deno.Signal | null;
  stdout: string;
  stderr: string;
}

export const TOKEN = "test-token-1f6e0c2b9a7d";

/** How long a gateway may take to start or to end on a machine that is busy. */
const DEADLINE_MS = 20_000;
const MAIN = new URL("../../main.ts", import.meta.url).pathname;
const CONFIG = new URL("../../deno.json", import.meta.url).pathname;
/** Below the range from which the system takes ports for clients. */
const [FIRST_PORT, LAST_PORT] = [12_000, 32_000];

/** A temporary home for one gateway; removed when it is disposed of. */
export async function makePlace(
  { config, stateDir }: { config?: unknown; stateDir?: string } = {},
): Promise<Place> {
  const home = await Deno.makeTempDir({ prefix: "zero-process-" });
  const state = stateDir ?? `${home}/.zero`;
  const place: Place = {
    home,
    stateDir: state,
    configPath: `${home}/zero.json`,
    lockFile: `${state}/gateway.lock`,
    database: `${state}/zero.sqlite`,
    logFile: `${state}/logs/gateway.log`,
    port: freePort(),
    configure: (value) =>
      Deno.writeTextFile(
        place.configPath,
        typeof value === "string" ? value : JSON.stringify(value),
      ),
    async log() {
      let text = "";
      for (const age of [".5", ".4", ".3", ".2", ".1", ""]) {
        text += await Deno.readTextFile(place.logFile + age).catch(() => "");
      }
      return text;
    },
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
  if (config !== undefined) await place.configure(config);
  return place;
}

/** A port nobody listens on, and that no client socket will get meanwhile. */
export function freePort(): number {
  for (;;) {
    const port = FIRST_PORT + Math.floor(Math.random() * (LAST_PORT - FIRST_PORT));
    try {
      Deno.listen({ hostname: "127.0.0.1", port }).close();
      return port;
    } catch {
      // Taken: the next one.
    }
  }
}

export class GatewayProcess implements AsyncDisposable {
  readonly place: Place;
  /** The shared secret; empty when the gateway made its own. */
  readonly token: string;
  readonly ended: Promise<Ended>;
  readonly #child: Deno.ChildProcess;
  readonly #stdout: Output;
  readonly #stderr: Output;
  #isOver = false;

  constructor(options: ProcessOptions) {
    const { place, token = TOKEN } = options;
    this.place = place;
    this.token = token ?? "";
    this.#child = commandOf(options).spawn();
    this.#stdout = new Output(this.#child.stdout);
    this.#stderr = new Output(this.#child.stderr);
    this.ended = this.#end();
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Whether it has ended. */
  get isOver(): boolean {
    return this.#isOver;
  }

  get port(): number {
    return this.place.port;
  }

  get url(): string {
    return `ws://127.0.0.1:${this.port}`;
  }

  get stdout(): string {
    return this.#stdout.text;
  }

  get stderr(): string {
    return this.#stderr.text;
  }

  /** Resolves when it has printed `pattern` so often. */
  async printed(pattern: RegExp, { times = 1 } = {}): Promise<void> {
    const count = () => [...this.stdout.matchAll(new RegExp(pattern, "g"))].length;
    const isOver = this.ended.then(() => true);
    while (count() < times) {
      const isEnd = await before(DEADLINE_MS, Promise.race([isOver, this.#stdout.next()]), () => {
        return `the gateway printed ${pattern} ${count()} times, not ${times}:\n${this.#all()}`;
      });
      if (isEnd === true && count() < times) {
        throw new Error(`the gateway ended before it printed ${pattern}:\n${this.#all()}`);
      }
    }
  }

  /** Sends a signal and waits for the end. */
  stop(signal: Deno.Signal = "SIGTERM", deadlineMs = DEADLINE_MS): Promise<Ended> {
    this.signal(signal);
    return before(deadlineMs, this.ended, () => `the gateway outlived ${signal}:\n${this.#all()}`);
  }

  signal(signal: Deno.Signal) {
    if (!this.#isOver) this.#child.kill(signal);
  }

  /** Resident memory: bytes now, and the most there ever were. */
  memory(): { bytes: number; peakBytes: number } {
    const status = Deno.readTextFileSync(`/proc/${this.pid}/status`);
    const kilobytes = (name: string) => Number(new RegExp(`${name}:\\s+(\\d+)`).exec(status)?.[1]);
    return { bytes: kilobytes("VmRSS") * 1_024, peakBytes: kilobytes("VmHWM") * 1_024 };
  }

  /** Forgets the memory peak so far. */
  resetPeak() {
    Deno.writeTextFileSync(`/proc/${this.pid}/clear_refs`, "5");
  }

  /** Open files and sockets. */
  descriptors(): number {
    return [...Deno.readDirSync(`/proc/${this.pid}/fd`)].length;
  }

  async [Symbol.asyncDispose]() {
    this.signal("SIGKILL");
    await this.ended;
  }

  async #end(): Promise<Ended> {
    const { code, signal } = await this.#child.status;
    this.#isOver = true;
    await Promise.all([this.#stdout.done, this.#stderr.done]);
    return { code, signal, stdout: this.stdout, stderr: this.stderr };
  }

  #all(): string {
    return `stdout: ${this.stdout}\nstderr: ${this.stderr}`;
  }
}

/** Starts a gateway and waits until it listens. */
export async function startGatewayProcess(options: ProcessOptions): Promise<GatewayProcess> {
  const gateway = new GatewayProcess(options);
  try {
    await gateway.printed(/listening/);
  } catch (error) {
    await gateway[Symbol.asyncDispose]();
    throw error;
  }
  return gateway;
}

/** A start that is expected to be refused: waits for its end. */
export async function startRefused(options: ProcessOptions): Promise<Ended> {
  await using gateway = new GatewayProcess(options);
  return await before(DEADLINE_MS, gateway.ended, () => `the gateway runs:\n${gateway.stdout}`);
}

/**
 * Asks again and again until the answer is yes.
 *
 * @param what the answer waited for, as a sentence
 */
export async function eventually(
  what: string,
  isSo: () => unknown,
  { deadlineMs = DEADLINE_MS, everyMs = 25 } = {},
): Promise<void> {
  const begin = performance.now();
  while (!await isSo()) {
    if (performance.now() - begin > deadlineMs) throw new Error(`Waited in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}

/** @param problem says what has not happened */
export async function before<T>(
  deadlineMs: number,
  promise: Promise<T>,
  problem: () => string,
): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(problem())), deadlineMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

function commandOf(
  { place, token = TOKEN, args = [], isPortInFile = false, env = {}, maxFiles, namespace }:
    ProcessOptions,
): Deno.Command {
  const inherited = Deno.env.toObject();
  const cache = inherited.DENO_DIR ??
    `${inherited.XDG_CACHE_HOME ?? `${inherited.HOME}/.cache`}/deno`;
  const limit = maxFiles === undefined ? "" : `ulimit -n ${maxFiles};`;
  return new Deno.Command("sh", {
    args: [
      "-c",
      `${limit} exec "$0" "$@"`,
      ...namespace ? ["ip", "netns", "exec", namespace] : [],
      Deno.execPath(),
      "run",
      "-A",
      "--no-check",
      "--config",
      CONFIG,
      MAIN,
      "gateway",
      ...isPortInFile ? [] : ["--port", String(place.port)],
      ...args,
    ],
    cwd: place.home,
    clearEnv: true,
    env: {
      PATH: inherited.PATH ?? "/usr/bin:/bin",
      HOME: place.home,
      DENO_DIR: cache,
      NO_COLOR: "1",
      ZERO_STATE_DIR: place.stateDir,
      ZERO_CONFIG_PATH: place.configPath,
      ...(token !== null && { ZERO_GATEWAY_TOKEN: token }),
      ...env,
    },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  });
}

/** A stream of a child, as text. */
class Output {
  text = "";
  readonly done: Promise<void>;
  #more = Promise.withResolvers<void>();

  constructor(stream: ReadableStream<Uint8Array<ArrayBuffer>>) {
    this.done = this.#read(stream);
  }

  /** Resolves at the next piece, and at the end. */
  next(): Promise<void> {
    return this.#more.promise;
  }

  async #read(stream: ReadableStream<Uint8Array<ArrayBuffer>>) {
    const decoder = new TextDecoder();
    for await (const chunk of stream) {
      this.text += decoder.decode(chunk, { stream: true });
      this.#more.resolve();
      this.#more = Promise.withResolvers();
    }
    this.#more.resolve();
  }
}

/** Pauses; for tests in which time itself is what is asked about. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** `bytes` as a person reads it. */
export function megabytes(bytes: number): string {
  return `${(bytes / 1_048_576).toFixed(1)} MB`;
}
