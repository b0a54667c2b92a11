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
