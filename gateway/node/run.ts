// The node host as a process (`zero node run`, §9.1): one per state directory, connected for ever, and
// saying on the terminal what its owner has to do.

import { pause } from "../../config/pause.ts";
import { EXIT_FAILURE, EXIT_OK, EXIT_REFUSED, UsageError } from "../../config/command.ts";
import { NotedLock } from "../../config/file_lock.ts";
import { ConfigError, readConfig } from "../../config/load.ts";
import type { Paths } from "../../config/paths.ts";
import type { Config } from "../../config/schema.ts";
import { printable as cleaned, type Terminal } from "../../config/terminal.ts";
import {
  type Client,
  ClosedError,
  type ConnectOptions,
  reconnectDelayMs,
  REFUSED_WAIT_MS,
} from "../../rpc/client.ts";
import { approvalsPaths, ApprovalsStore } from "./approvals_file.ts";
import { pathOf } from "./env.ts";
import { NodeFiles } from "./fs.ts";
import { NodeHost, type Offer } from "./host.ts";
import {
  type NodeFile,
  readNodeFile,
  type SavedGateway,
  type SavedSsh,
  writeNodeFile,
} from "./node_file.ts";

/** A gateway that was named, not looked up: by its address, the machine it is on, or a remote. */
export type NamedGateway =
  | { url: string; tlsFingerprint?: string; ssh?: undefined; remote?: undefined }
  | { ssh: SavedSsh; url?: undefined; remote?: undefined }
  | { remote: string; url?: undefined; ssh?: undefined };

/** How to come to a gateway. */
export interface Way {
  /** Once connected, the address that was dialled. */
  readonly url: string;
  /** What it leads through: `ssh me@host`. */
  through?: string;
  /** SHA-256 of the certificate to expect. */
  tlsFingerprint?: string;
  /** @throws why it cannot be reached, or refused */
  connect(options: Partial<ConnectOptions>): Promise<Client>;
}

export interface NodeFlags {
  host?: string;
  port?: number;
  tls?: boolean;
  tlsFingerprint?: string;
  ssh?: SavedSsh;
  remote?: string;
  nodeId?: string;
  displayName?: string;
}

export interface RunNodeOptions {
  version: string;
  paths: Paths;
  flags: NodeFlags;
  terminal: Terminal;
  /** What relative paths of commands are relative to. */
  cwd: string;
  /** Asked before every attempt: configuration and credentials may have changed. */
  findWay(named: NamedGateway | undefined): Promise<Way>;
  /** Ends the node; the process is told by signals beside it. */
  signal?: AbortSignal;
  /** How often a browser that comes or goes is looked for. */
  browserCheckMs?: number;
  /** How often changed credentials are looked for while a refusal is waited out. */
  newsCheckMs?: number;
  /** In [0, 1). */
  random?(): number;
}

/** What a running node host says of itself, in its lock file. */
export interface NodeNote {
  pid: number;
  startedAtMs: number;
  state: "starting" | "connecting" | "connected" | "waiting" | "stopping";
  sinceMs: number;
  url?: string;
  commands?: string[];
  /** Why it is not connected. */
  problem?: string;
  /** What its owner can do about that. */
  fix?: string;
}

const DEFAULT_PORT = 18_789;
const BROWSER_CHECK_MS = 30_000;
const NEWS_CHECK_MS = 1_000;
const CONNECT_TIMEOUT_MS = 15_000;
/** A session this long has shown that the gateway is well, whatever ended it. */
const STABLE_AFTER_MS = 30_000;
/** A node has no flag for a secret: what the gateway advises is for other commands. */
const SECRET_FIX =
  'Let it in with a link: "zero devices invite --role node" on the gateway\'s host, "zero join" ' +
  "here; or start it with ZERO_GATEWAY_TOKEN or ZERO_GATEWAY_PASSWORD";
/** What a stop may take before the process leaves anyway. */
const STOP_DEADLINE_MS = 4_000;

export function nodeFiles({ stateDir }: Pick<Paths, "stateDir">) {
  return { nodeFile: `${stateDir}/node.json`, lockFile: `${stateDir}/node.lock` };
}

/** Runs until it is told to stop. @returns the exit code */
export async function runNode(options: RunNodeOptions): Promise<number> {
  const { paths, terminal, flags } = options;
  const { nodeFile, lockFile } = nodeFiles(paths);
  await Deno.mkdir(paths.stateDir, { recursive: true, mode: 0o700 });
  const now = Date.now();
  // A second one with the same device would throw the first out.
  using lock = await NotedLock.acquire<NodeNote>(lockFile, {
    pid: Deno.pid,
    startedAtMs: now,
    state: "starting",
    sinceMs: now,
  });
  if (!lock) {
    const holder = await readNodeNote(lockFile);
    const who = holder ? ` (pid ${holder.pid})` : "";
    terminal.err(`Node host failed to start: one is already running${who}; it holds ${lockFile}`);
    terminal.err("Fix: Use that one (zero node status), stop it, or pass --profile NAME");
    return EXIT_REFUSED;
  }
  const config = await currentConfig(paths);
  const known = await readNodeFile(nodeFile, (message) => terminal.err(message));
  const named = nameGateway(flags, known?.gateway, await config());
  const way = await options.findWay(named);
  const self = describeSelf(known, named, way, flags);
  await writeNodeFile(nodeFile, self);
  return await new NodeProcess(options, { lock, named, self, config }).run();
}

/** What a node host said of itself; undefined when none runs. */
export async function readNodeNote(lockFile: string): Promise<NodeNote | undefined> {
  try {
    return JSON.parse(await Deno.readTextFile(lockFile));
  } catch {
    return undefined; // not there, or between two writes
  }
}

/**
 * When to try again: 1 s to 30 s with jitter; a minute at least where the same credentials would meet
 * the same refusal. Never not at all: what stands in the way may be mended without a restart.
 *
 * @param attempt failures since the last stable session, from 0
 */
export function retryDelayMs(error: Error, attempt: number, random?: () => number): number {
  const backoffMs = reconnectDelayMs(new ClosedError(1006, ""), attempt, random)!;
  if (isPairingRequired(error)) return backoffMs;
  return reconnectDelayMs(error, attempt, random) ?? REFUSED_WAIT_MS + backoffMs;
}

class NodeProcess {
  readonly #options: RunNodeOptions;
  readonly #lock: NotedLock<NodeNote>;
  readonly #named: NamedGateway | undefined;
  readonly #self: NodeFile;
  readonly #host: NodeHost;
  readonly #startedAtMs = Date.now();
  /** Ends connections and waits; aborted once what ran has been ended. */
  readonly #end = new AbortController();
  #isStopping = false;
  /** The last that was said of a failure: it is said once. */
  #lastTold = "";

  constructor(
    options: RunNodeOptions,
    { lock, named, self, config }: {
      lock: NotedLock<NodeNote>;
      named: NamedGateway | undefined;
      self: NodeFile;
      config: () => Promise<Config>;
    },
  ) {
    this.#options = options;
    this.#lock = lock;
    this.#named = named;
    this.#self = self;
    const { paths } = options;
    const approvals = approvalsPaths(paths);
    this.#host = new NodeHost({
      env: paths.env,
      cwd: options.cwd,
      approvals: new ApprovalsStore(approvals),
      files: new NodeFiles({
        roots: async () => (await config()).nodeHost?.fs?.roots ?? [],
        home: paths.env.HOME,
        kept: [paths.stateDir, paths.configPath, approvals.file, approvals.socket],
      }),
      config,
      warn: (message) => options.terminal.err(message),
    });
  }

  async run(): Promise<number> {
    using _listening = this.#listen();
    const { terminal, paths, random } = this.#options;
    terminal.out(`node host PATH: ${pathOf(paths.env)}`);
    let attempt = 0;
    while (!this.#isStopping) {
      const session: { sinceMs?: number } = {};
      let error: Error;
      try {
        error = await this.#holdSession(() => session.sinceMs = performance.now());
      } catch (caught) {
        error = caught as Error;
      }
      if (this.#isStopping) break;
      const { sinceMs = Infinity } = session;
      const isOver = error instanceof OfferChanged;
      if (isOver || performance.now() - sinceMs >= STABLE_AFTER_MS) attempt = 0;
      if (isOver) continue;
      const waitMs = retryDelayMs(error, attempt++, random);
      this.#tell(error);
      await this.#wait(waitMs);
    }
    await this.#host[Symbol.asyncDispose]();
    terminal.out("node host stopped");
    return EXIT_OK;
  }

  /** One connect and what comes of it. @returns why it is over */
  async #holdSession(onConnected: () => void): Promise<Error> {
    const { findWay, version, terminal, paths } = this.#options;
    const { displayName, nodeId } = this.#self;
    this.#note({ state: "connecting" });
    const [way, offer] = await Promise.all([findWay(this.#named), this.#host.offer()]);
    const connecting = way.connect({
      client: {
        id: "node-host",
        mode: "node",
        displayName,
        version,
        platform: Deno.build.os,
        instanceId: nodeId,
      },
      role: "node",
      scopes: [],
      caps: offer.caps,
      commands: offer.commands,
      pathEnv: pathOf(paths.env),
      timeoutMs: CONNECT_TIMEOUT_MS,
      signal: this.#end.signal,
      // The first invocation may come before the connect has returned.
      onEvent: ({ event, payload }) => {
        if (event !== "node.invoke.request") return;
        connecting.then((client) => this.#host.take(payload, client), () => {});
      },
    });
    await using client = await connecting;
    onConnected();
    this.#lastTold = "";
    this.#note({ state: "connected", url: way.url, commands: offer.commands });
    const through = way.through ? ` through ${way.through}` : "";
    terminal.out(`node host connected to ${way.url}${through} as ${displayName}`);
    const over = new AbortController();
    try {
      return await Promise.race([client.closed, this.#offerChange(offer, over.signal)]);
    } finally {
      over.abort();
    }
  }

  /** Resolves when a browser came or went, and nothing is being done: it takes a new connect. */
  async #offerChange(offer: Offer, over: AbortSignal): Promise<OfferChanged> {
    const { browserCheckMs = BROWSER_CHECK_MS } = this.#options;
    for (;;) {
      await pause(browserCheckMs, over);
      if (over.aborted) return new OfferChanged();
      const { commands } = await this.#host.offer();
      if (commands.join() !== offer.commands.join() && this.#host.isIdle) return new OfferChanged();
    }
  }

  /** What stands in the way, and what its owner can do: each once, however often it is tried. */
  #tell(error: Error) {
    const { terminal } = this.#options;
    const { refusal, details } = error instanceof ClosedError
      ? error
      : { refusal: undefined, details: {} };
    const fix = isAboutSecret(details.code)
      ? SECRET_FIX
      : details.fix ?? (error as { fix?: unknown }).fix;
    const problem = refusal?.message ?? error.message;
    this.#note({
      state: "waiting",
      problem: printable(problem),
      ...(typeof fix === "string" && { fix: printable(fix) }),
    });
    const isLost = error instanceof ClosedError && error.wasOpen;
    const lines = [
      ...refusal || !isLost ? [`node host gateway connect failed: ${problem}`] : [],
      ...isLost ? [`node host gateway closed (${error.code}): ${error.reason}`] : [],
      ...typeof fix === "string" ? [fix] : [],
    ].map(printable);
    const text = lines.join("\n");
    if (text === this.#lastTold) return;
    this.#lastTold = text;
    terminal.err(text);
  }

  /** Until the time is up, or until what was refused may have been mended. */
  async #wait(waitMs: number): Promise<void> {
    const { newsCheckMs = NEWS_CHECK_MS, paths } = this.#options;
    const { signal } = this.#end;
    if (waitMs < REFUSED_WAIT_MS) return await pause(waitMs, signal);
    const files = [paths.configPath, paths.tokenFile];
    const before = await stampOf(files);
    const untilMs = performance.now() + waitMs;
    while (!signal.aborted && performance.now() < untilMs) {
      await pause(Math.min(newsCheckMs, untilMs - performance.now()), signal);
      if (await stampOf(files) !== before) return;
    }
  }

  #listen(): Disposable {
    const stop = () => {
      if (this.#isStopping && !this.#options.signal) Deno.exit(EXIT_FAILURE);
      this.#stop();
    };
    const stack = new DisposableStack();
    const { signal } = this.#options;
    if (signal) {
      signal.addEventListener("abort", stop);
      stack.defer(() => signal.removeEventListener("abort", stop));
      if (signal.aborted) stop();
      return stack;
    }
    for (const name of ["SIGTERM", "SIGINT"] as const) {
      Deno.addSignalListener(name, stop);
      stack.defer(() => Deno.removeSignalListener(name, stop));
    }
    return stack;
  }

  /** Ends what runs; what came of it still goes out where there is a gateway to tell. */
  #stop() {
    if (this.#isStopping) return;
    this.#isStopping = true;
    this.#note({ state: "stopping" });
    const deadline = new AbortController();
    const ended = this.#host[Symbol.asyncDispose]().finally(() => deadline.abort());
    Promise.race([ended, pause(STOP_DEADLINE_MS, deadline.signal)]).then(() => this.#end.abort());
  }

  #note(note: Omit<NodeNote, "pid" | "startedAtMs" | "sinceMs">) {
    const { pid } = Deno;
    this.#lock.note({ pid, startedAtMs: this.#startedAtMs, sinceMs: Date.now(), ...note });
  }
}

/** The node has something else to offer than it declared when it connected. */
class OfferChanged extends Error {
  override name = "OfferChanged";
}

/** The configuration as it is now, or the last one that was valid. @throws {ConfigError} never was */
async function currentConfig(
  { configPath, env }: Paths,
): Promise<() => Promise<Config>> {
  const first = await readConfig({ path: configPath, env });
  if (!first.valid) throw new ConfigError(first.issues);
  let last = first;
  return async () => {
    const reading = await readConfig({ path: configPath, env });
    if (reading.valid) last = reading;
    return last.config;
  };
}

/**
 * The gateway that flags name, or named when the node was last started with some; undefined where the
 * configuration decides.
 *
 * @throws {UsageError} a host that is none
 */
export function nameGateway(
  { host, port, tls, tlsFingerprint, ssh, remote }: NodeFlags,
  saved: SavedGateway | undefined,
  config: Config,
): NamedGateway | undefined {
  if (ssh) return { ssh };
  if (remote !== undefined) return { remote };
  const known = saved && (saved.from ?? "flags") === "flags" ? saved : undefined;
  const isTyped = [host, port, tls || undefined, tlsFingerprint].some((one) => one !== undefined);
  if (!isTyped && !known) return undefined;
  if (!isTyped && known?.ssh) return { ssh: known.ssh };
  if (!isTyped && known?.remote !== undefined) return { remote: known.remote };
  const pin = tlsFingerprint ??
    (host === undefined || host === known?.host ? known?.tlsFingerprint : undefined);
  const hasTls = tls || tlsFingerprint !== undefined ||
    (known?.tls ?? config.gateway?.tls?.enabled ?? false);
  const name = host?.trim() ?? known?.host ?? "127.0.0.1";
  const authority = name.includes(":") && !name.startsWith("[") ? `[${name}]` : name;
  const url = `${hasTls ? "wss" : "ws"}://${authority}:${port ?? known?.port ?? DEFAULT_PORT}`;
  if (!/^[^\s/@?#\\]+$/.test(name) || !URL.canParse(url)) {
    throw new UsageError("Cannot use --host: it is neither a name nor an address", {
      hint: "Write the host alone; the port goes to --port",
    });
  }
  return { url, ...(pin !== undefined && { tlsFingerprint: pin }) };
}

function describeSelf(
  known: NodeFile | undefined,
  named: NamedGateway | undefined,
  { url, tlsFingerprint }: Way,
  flags: NodeFlags,
): NodeFile {
  const machine = Deno.hostname().replace(/\.local$/i, "") || "node";
  const { hostname, port, protocol } = new URL(url || "ws://127.0.0.1");
  const tls = protocol === "wss:";
  return {
    ...known,
    version: 1,
    nodeId: flags.nodeId?.trim() || known?.nodeId || crypto.randomUUID(),
    displayName: flags.displayName?.trim() || known?.displayName || machine,
    gateway: {
      host: hostname.replace(/^\[|\]$/g, ""),
      port: Number(port) || (tls ? 443 : 80),
      tls,
      ...(tlsFingerprint && { tlsFingerprint }),
      ...(named?.ssh && { ssh: named.ssh }),
      ...(named?.remote !== undefined && { remote: named.remote }),
      from: named ? "flags" : "config",
    },
  };
}

function isPairingRequired(error: Error): boolean {
  if (!(error instanceof ClosedError)) return false;
  const { details, refusal } = error;
  return details.code === "PAIRING_REQUIRED" ||
    (refusal?.code === "NOT_PAIRED" && typeof details.requestId === "string");
}

/** Whether the gateway wants a secret, or another one. */
function isAboutSecret(code: unknown): boolean {
  return typeof code === "string" && /^AUTH_(?:TOKEN|PASSWORD)_MIS(?:SING|MATCH)$/.test(code);
}

/** Changes when one of the files does. */
async function stampOf(files: readonly string[]): Promise<string> {
  const stamps = await Promise.all(
    files.map((file) =>
      Deno.stat(file).then(({ mtime, size, ino }) => [mtime?.getTime(), size, ino], () => [])
    ),
  );
  return JSON.stringify(stamps);
}

/** On one line, whatever a gateway wrote into it. */
function printable(text: string): string {
  return cleaned(text.replace(/\s+/g, " ").trim());
}
