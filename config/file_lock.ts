// Advisory locks on files: the kernel frees them however their holder ends.

/** How long a runtime that can only wait for a lock waits before it counts as taken. */
const WAIT_MS = 250;

/**
 * Takes the lock if nobody has it. It is held until the file is closed.
 *
 * @param isShared do not mind others who only look, nor be minded by them
 */
export async function tryLock(
  file: Deno.FsFile,
  { isShared = false }: { isShared?: boolean } = {},
): Promise<boolean> {
  // Runtimes before Deno 2.7, which the program may be compiled into, know only `lock`.
  if (typeof file.tryLock === "function") return await file.tryLock(!isShared);
  let timer: ReturnType<typeof setTimeout> | undefined;
  const tooLong = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), WAIT_MS);
  });
  try {
    return await Promise.race([file.lock(!isShared).then(() => true), tooLong]);
  } finally {
    clearTimeout(timer);
  }
}

/** Whether somebody holds the lock of a file. */
export async function isLocked(path: string): Promise<boolean> {
  try {
    using file = await Deno.open(path, { read: true, write: true });
    return !await tryLock(file);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** A lock with a word in its file of who holds it, for whoever finds it taken. */
export class NotedLock<Note> {
  readonly #file: Deno.FsFile;

  private constructor(file: Deno.FsFile) {
    this.#file = file;
  }

  /** @returns undefined when somebody else has it */
  static async acquire<Note>(path: string, note: Note): Promise<NotedLock<Note> | undefined> {
    const file = await Deno.open(path, { read: true, write: true, create: true, mode: 0o600 });
    if (!await tryLock(file)) {
      file.close();
      return undefined;
    }
    const lock = new NotedLock<Note>(file);
    lock.note(note);
    return lock;
  }

  note(note: Note) {
    this.#file.truncateSync();
    this.#file.seekSync(0, Deno.SeekMode.Start);
    this.#file.writeSync(new TextEncoder().encode(`${JSON.stringify(note)}\n`));
  }

  [Symbol.dispose]() {
    this.#file.truncateSync();
    this.#file.close();
  }
}
