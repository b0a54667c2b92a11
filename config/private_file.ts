// Files of the state directory: put in place whole or not at all, and for their owner alone from the
// first byte on.

/** Writes a text in the place of a file; its folder is made. */
export async function writePrivateFile(path: string, text: string): Promise<void> {
  await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), { recursive: true, mode: 0o700 });
  const part = `${path}.${crypto.randomUUID()}.part`;
  try {
    await Deno.writeTextFile(part, text, { mode: 0o600, createNew: true });
    await Deno.rename(part, path);
  } catch (error) {
    await Deno.remove(part).catch(() => {}); // it may never have been made
    throw error;
  }
}
