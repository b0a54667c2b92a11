// One gateway per state directory (D20): an advisory lock, which the kernel frees however the holder
// ends, and a note in the file that says who holds it.

import { NotedLock } from "../config/file_lock.ts";
import { StartRefusal } from "./preflight.ts";

export interface LockNote {
  pid: number;
  /** Where it listens; absent until it does. */
  url?: string;
  startedAtMs: number;
}

export type InstanceLock = NotedLock<LockNote>;

/** @throws {StartRefusal} another gateway holds the state directory */
export async function acquireInstanceLock(path: string): Promise<InstanceLock> {
  const lock = await NotedLock.acquire(
    path,
    { pid: Deno.pid, startedAtMs: Date.now() } as LockNote,
  );
  if (lock) return lock;
  const holder = readLock(path);
  const who = holder ? ` (pid ${holder.pid})` : "";
  const where = holder?.url ? ` on ${holder.url}` : "";
  throw new StartRefusal(
    `gateway already running${who}${where}; it holds ${path}`,
    "Use that one (zero gateway status), stop it, or start this one with --profile NAME --port N",
  );
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
