// Where programs are: the search a shell makes along PATH, and `system.which` (§9.3).

import { resolvePath } from "../../config/paths.ts";

export interface Search {
  /** PATH: directories with `:` between them. */
  path: string;
  /** Absolute; what relative names and relative entries of PATH are relative to. */
  cwd: string;
}

/** The absolute path of an executable file; a name with a `/` is not looked for along PATH. */
export async function findProgram(
  name: string,
  { path, cwd }: Search,
): Promise<string | undefined> {
  if (name === "" || name.includes("\0")) return undefined;
  if (name.includes("/")) return await executable(await absolute(name, cwd));
  for (const directory of path.split(":")) {
    // An empty entry is the working directory, as in every shell.
    const found = await executable(await absolute(`${directory || "."}/${name}`, cwd));
    if (found) return found;
  }
}

/** Of the names asked for, those that are programs on PATH. */
export async function which(
  bins: readonly string[],
  search: Search,
): Promise<Record<string, string>> {
  const found: Record<string, string> = Object.create(null);
  for (const name of new Set(bins.map((one) => one.trim()))) {
    if (/[/\\]/.test(name)) continue;
    const path = await findProgram(name, search);
    if (path) found[name] = path;
  }
  return found;
}

/** Lexical where that says the same as the file system; behind a `..` a link may lead elsewhere. */
async function absolute(path: string, cwd: string): Promise<string> {
  const full = path.startsWith("/") ? path : `${cwd}/${path}`;
  if (!full.split("/").includes("..")) return resolvePath(full, {});
  const [, directory, name] = /^(.*)\/([^/]*)$/.exec(full)!;
  try {
    return `${await Deno.realPath(directory || "/")}/${name}`.replace(/^\/\//, "/");
  } catch {
    return resolvePath(full, {}); // not there: nor is the program
  }
}

async function executable(path: string): Promise<string | undefined> {
  try {
    const { isFile, mode } = await Deno.stat(path);
    return isFile && ((mode ?? 0) & 0o111) !== 0 ? path : undefined;
  } catch {
    return undefined; // not there, or not for us to see: either way it will not be run
  }
}
