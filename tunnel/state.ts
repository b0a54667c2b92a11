// What is known of each tunnel of an installation: a file per name that its owner writes and others
// read, and a lock that says whether the owner lives. A process is only ever signalled when lock, id
// and age agree that it is the one that wrote the file.

import { tryLock } from "../config/file_lock.ts";
import type { Paths } from "../config/paths.ts";
import { TunnelError } from "./error.ts";
import { type ProcessRunner, systemRunner } from "./process.ts";

export type TunnelState = "up" | "connecting" | "down" | "failed";

/** `zero tunnel status --json` */
export interface TunnelStatus {
  name: string;
  target: string;
  /**
   * `up`: the gateway answered the last question. `connecting`: ssh is being started, or will be in a
   * moment. `down`: the gateway does not answer, or nobody keeps the tunnel up. `failed`: a person has
   * to do something first.
   */
  state: TunnelState;
  /** On 127.0.0.1; 0 until one was chosen. */
  localPort: number;
  remotePort: number;
  /** The process that keeps it up; null when there is none. */
  pid: number | null;
  /** Grows with every ssh that is started under this name: another number, another connection. */
  generation: number;
  /** Since when it is in this state: milliseconds since the epoch. */
  since: number;
  /** How often its owner had to start ssh anew. */
  restarts: number;
  lastProbe: { ok: boolean; latencyMs: number; atMs: number } | null;
  lastError: { kind: string; message: string; fix: string } | null;
}

/** What a tunnel was asked to be; kept so that it can be brought up again by its name. */
export interface Wish {
  identity?: string;
  /** The port that was asked for; absent: any. */
  wantedPort?: number;
  anyPort?: boolean;
  acceptNew?: boolean;
}

/** The file. */
export interface TunnelRecord {
  status: TunnelStatus;
  wish: Wish;
  /** Absent where it cannot be told. */
  ownerStart?: ProcessStart;
}

/** When a process began, by the clock that counts from the start of the machine. */
export interface ProcessStart {
  afterBootS: number;
  /** Rounded start of the machine, to tell one boot from the next: seconds since the epoch. */
  bootS: number;
}

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const PS_TIMEOUT_MS = 2_000;
/** `ps` and the system's uptime are rounded. */
const START_SLACK_S = 3;
/** The clock of the day may be set while the machine runs. */
const BOOT_SLACK_S = 300;
/** Others look at the lock, too, for a moment. */
const CLAIM_TRIES = 20;
const CLAIM_EVERY_MS = 25;

/** @throws {TunnelError} kind `state` */
export function checkName(name: string): string {
  if (NAME.test(name)) return name;
  throw new TunnelError(
    "state",
    `Cannot use ${JSON.stringify(name.slice(0, 80))} as the name of a tunnel: a name is 1 to 64 ` +
      'letters, digits, ".", "_" or "-", and begins with a letter or digit',
    "Give it a name: zero tunnel up NAME --ssh TARGET",
  );
}

/** A name for a target that was given none: its host, as far as a name may hold it. */
export function nameOf(target: string): string {
  const host = target.replace(/^ssh:\/\//, "").replace(/^.*@/, "");
  const name = host.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 64);
  return NAME.test(name) ? name : "tunnel";
}

export function tunnelFiles({ stateDir }: Pick<Paths, "stateDir">, name: string) {
  return {
    record: `${stateDir}/tunnels/${name}.json`,
    lock: `${stateDir}/tunnels/${name}.lock`,
    log: `${stateDir}/logs/tunnel-${name}.log`,
  };
}

/** The file of a tunnel in the hands of the process that keeps it up. */
export class OwnedRecord implements Disposable {
  readonly #file: string;
  readonly #lock: Deno.FsFile;
  readonly #wish: Wish;
  readonly #ownerStart?: ProcessStart;
  /** Of the last ssh anybody started under this name. */
  readonly lastGeneration: number;

  private constructor(
    file: string,
    lock: Deno.FsFile,
    rest: { wish: Wish; ownerStart?: ProcessStart; lastGeneration: number },
  ) {
    this.#file = file;
    this.#lock = lock;
    this.#wish = rest.wish;
    this.#ownerStart = rest.ownerStart;
    this.lastGeneration = rest.lastGeneration;
  }

  /** @throws {TunnelError} kind `state`: another process keeps this tunnel up */
  static async claim(paths: Paths, name: string, wish: Wish): Promise<OwnedRecord> {
    const files = tunnelFiles(paths, checkName(name));
    await Deno.mkdir(`${paths.stateDir}/tunnels`, { recursive: true, mode: 0o700 });
    let lock: Deno.FsFile | undefined;
    for (let tries = 1; !(lock = await lockFile(files.lock)); tries++) {
      if (tries < CLAIM_TRIES) {
        await new Promise((resolve) => setTimeout(resolve, CLAIM_EVERY_MS));
        continue;
      }
      const { target, pid } = (await readRecord(files.record))?.status ?? {};
      const details = [target && `to ${target}`, pid && `pid ${pid}`].filter(Boolean).join(", ");
      throw new TunnelError(
        "state",
        `Cannot open the tunnel ${name}: it is being kept up already${
          details ? ` (${details})` : ""
        }`,
        `zero tunnel down ${name}`,
      );
    }
    const before = await readRecord(files.record);
    // With the lock held, what an owner left that was killed would pass for what is true.
    if (before) writeRecord(files.record, { ...before, status: ownerless(before.status) });
    const lastGeneration = before?.status.generation ?? 0;
    const ownerStart = await startOf(Deno.pid);
    return new OwnedRecord(files.record, lock, { wish, ownerStart, lastGeneration });
  }

  /** Replaces the file in one step. */
  write(status: TunnelStatus): void {
    writeRecord(this.#file, { status, wish: this.#wish, ownerStart: this.#ownerStart });
  }

  [Symbol.dispose](): void {
    this.#lock.close();
  }
}

/** Every tunnel this installation has had, by name; one without an owner is `down` or `failed`. */
export async function readTunnels(paths: Paths): Promise<TunnelRecord[]> {
  const names: string[] = [];
  try {
    for await (const { name } of Deno.readDir(`${paths.stateDir}/tunnels`)) {
      if (name.endsWith(".json")) names.push(name.slice(0, -".json".length));
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  const records = await Promise.all(names.sort().map((name) => readTunnel(paths, name)));
  return records.filter((record) => record !== undefined);
}

/** @returns undefined when there never was a tunnel of this name */
export async function readTunnel(paths: Paths, name: string): Promise<TunnelRecord | undefined> {
  const files = tunnelFiles(paths, name);
  // The lock first: an owner that ends between the two has said its last word by then.
  const isOwned = await isLocked(files.lock);
  const record = await readRecord(files.record);
  if (!record || isOwned) return record;
  return { ...record, status: ownerless(record.status) };
}

function ownerless(status: TunnelStatus): TunnelStatus {
  if (status.state === "failed" || status.pid === null) return { ...status, pid: null };
  return {
    ...status,
    state: "down",
    pid: null,
    lastError: {
      kind: "lost",
      message: `Cannot keep up the tunnel to ${status.target}: the process that did is gone`,
      fix: `zero tunnel up ${status.name}`,
    },
  };
}

/**
 * Ends the process that keeps a tunnel up, if it is the one that wrote so.
 *
 * @returns whether there was one
 * @throws {TunnelError} kind `state`: it cannot be told apart from another process, or will not end
 */
export async function stopOwner(
  paths: Paths,
  name: string,
  { graceMs = 5_000, runner = systemRunner }: { graceMs?: number; runner?: ProcessRunner } = {},
): Promise<boolean> {
  const files = tunnelFiles(paths, checkName(name));
  const record = await readRecord(files.record);
  if (!record || !await isLocked(files.lock)) return false;
  const { pid } = record.status;
  const start = pid === null ? undefined : await startOf(pid, runner);
  if (pid === null || !isSameStart(record.ownerStart, start)) {
    throw new TunnelError(
      "state",
      `Cannot stop the tunnel ${name}: process ${pid ?? "unknown"} is not the one that started it`,
      `Find and end the process that holds ${files.lock}`,
    );
  }
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    try {
      Deno.kill(pid, signal);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
    const deadlineMs = performance.now() + graceMs;
    while (performance.now() < deadlineMs) {
      if (!await isLocked(files.lock)) return true;
      await new Promise((resolve) => setTimeout(resolve, CLAIM_EVERY_MS));
    }
  }
  throw new TunnelError(
    "state",
    `Cannot stop the tunnel ${name}: process ${pid} does not end`,
    `kill -9 ${pid}`,
  );
}

/** Forgets a tunnel nobody keeps up; one that somebody does meanwhile is left. */
export async function forgetTunnel(paths: Paths, name: string): Promise<void> {
  const files = tunnelFiles(paths, checkName(name));
  using lock = await readRecord(files.record) && await lockFile(files.lock);
  if (!lock) return;
  for (const file of [files.record, files.lock]) {
    try {
      await Deno.remove(file);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
}

/** When a process began; undefined where it is gone or `ps` is not there. */
async function startOf(
  pid: number,
  runner: ProcessRunner = systemRunner,
): Promise<ProcessStart | undefined> {
  const result = await runner.run("ps", ["-o", "etime=", "-p", String(pid)], {
    timeoutMs: PS_TIMEOUT_MS,
  });
  const parts = /^\s*(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)\s*$/.exec(result?.stdout ?? "");
  if (!parts) return undefined;
  const [days, hours, minutes, seconds] = parts.slice(1).map((part) => Number(part ?? 0));
  const ageS = ((days * 24 + hours) * 60 + minutes) * 60 + seconds;
  const uptimeS = Deno.osUptime();
  return {
    afterBootS: Math.round(uptimeS - ageS),
    bootS: Math.round(Date.now() / 1_000 - uptimeS),
  };
}

/** With neither known, the lock alone has to do: where there is no `ps`. */
function isSameStart(one: ProcessStart | undefined, other: ProcessStart | undefined): boolean {
  if (!one || !other) return one === other;
  return Math.abs(one.afterBootS - other.afterBootS) <= START_SLACK_S &&
    Math.abs(one.bootS - other.bootS) <= BOOT_SLACK_S;
}

/** @returns undefined when another process has it, or it was thrown away meanwhile */
async function lockFile(path: string): Promise<Deno.FsFile | undefined> {
  const file = await Deno.open(path, { read: true, write: true, create: true, mode: 0o600 });
  if (await tryLock(file) && await isAt(path, file)) return file;
  file.close();
}

/** Whether a file that was opened is still the one of that name. */
async function isAt(path: string, file: Deno.FsFile): Promise<boolean> {
  try {
    const [{ dev, ino }, there] = await Promise.all([file.stat(), Deno.stat(path)]);
    return dev === there.dev && ino === there.ino;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

async function isLocked(path: string): Promise<boolean> {
  let file: Deno.FsFile;
  try {
    file = await Deno.open(path, { read: true, write: true });
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
  try {
    return !await tryLock(file, { isShared: true });
  } finally {
    file.close();
  }
}

function writeRecord(file: string, record: TunnelRecord): void {
  const part = `${file}.part`;
  Deno.writeTextFileSync(part, `${JSON.stringify(record, null, 2)}\n`, { mode: 0o600 });
  Deno.renameSync(part, file);
}

async function readRecord(file: string): Promise<TunnelRecord | undefined> {
  try {
    const record = JSON.parse(await Deno.readTextFile(file)) as TunnelRecord;
    return typeof record?.status?.name === "string" && typeof record.wish === "object"
      ? record
      : undefined;
  } catch {
    // Not there, or no record of ours: as if nobody had been there.
    return undefined;
  }
}
