// One gateway per state directory (D20): an advisory lock, which the kernel frees however the holder
// ends, and a note in the file that says who holds it.

import { tryLock } from "../config/file_lock.ts";
import { StartRefusal } from "./preflight.ts";

export interface LockNote {
  pid: number;
  /** Where it listens; absent until it does. */
  url?: string;
  startedAtMs: number;
}

export class InstanceLock {
  readonly #file: Deno.FsFile;

  private constructor(file: Deno.FsFile) {
    this.#file = file;
  }

  /** @throws {StartRefusal} another gateway holds the state directory */
  static async acquire(path: string): Promise<InstanceLock> {
    const file = await Deno.open(path, { read: true, write: true, create: true, mode: 0o600 });
    if (await tryLock(file)) {
      const lock = new InstanceLock(file);
      lock.note({ pid: Deno.pid, startedAtMs: Date.now() });
      return lock;
    }
    file.close();
    const holder = readLock(path);
    const who = holder ? ` (pid ${holder.pid})` : "";
    const where = holder?.url ? ` on ${holder.url}` : "";
    throw new StartRefusal(
      `gateway already running${who}${where}; it holds ${path}`,
      "Use that one (zero gateway status), stop it, or start this one with --profile NAME --port N",
    );
  }

  /** Leaves word for whoever finds the lock taken. */
  note(note: LockNote) {
    this.#file.truncateSync();
    this.#file.seekSync(0, Deno.SeekMode.Start);
    this.#file.writeSync(new TextEncoder().encode(`${JSON.stringify(note)}\n`));
  }

  [Symbol.dispose]() {
    this.#file.truncateSync();
    this.#file.close();
  }
}

/** What the holder of a lock said of itself; undefined when it said nothing. */
export function readLock(path: string): LockNote | undefined {
  try {
    return JSON.parse(Deno.readTextFileSync(path));
  } catch {
    // Not there, or between two writes.
    return undefined;
  }
}
