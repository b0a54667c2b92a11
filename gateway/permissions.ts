// Is the state directory ours alone? Looked at before anything in it is read (X26).

import { StartRefusal } from "./preflight.ts";

/** What a gateway keeps there that others must not read. */
const PRIVATE_FILES = [
  "gateway.token",
  "zero.sqlite",
  "zero.sqlite-wal",
  "identity/device.json",
  "gateway/tls/gateway-key.pem",
];

/**
 * A directory that holds nothing of a gateway yet is closed to others; one that does may have been
 * read already, which its owner should know.
 *
 * @throws {StartRefusal} others can look into it, or it belongs to somebody else
 */
export async function refuseForeignState(stateDir: string) {
  const directory = await Deno.stat(stateDir);
  const files = await Promise.all(
    PRIVATE_FILES.map(async (name) => {
      const path = `${stateDir}/${name}`;
      const info = await Deno.stat(path).catch(() => undefined);
      return info ? [{ path, ...info }] : [];
    }),
  );
  const found = files.flat();
  for (const { path, uid, mode } of [{ path: stateDir, ...directory }, ...found]) {
    if (uid !== null && uid !== Deno.uid()) {
      throw new StartRefusal(
        `${path} belongs to another user (uid ${uid})`,
        `sudo chown -R "$(id -u)" ${stateDir}, or use a state directory of your own: --profile NAME`,
      );
    }
    if (mode === null || (mode & 0o077) === 0) continue;
    if (found.length === 0) {
      await Deno.chmod(stateDir, 0o700);
      continue;
    }
    const shown = (mode & 0o777).toString(8).padStart(4, "0");
    throw new StartRefusal(
      `others on this machine may look at ${path} (mode ${shown})`,
      `chmod -R go-rwx ${stateDir}`,
    );
  }
}
