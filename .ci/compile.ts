// Makes the single executable: for this machine, or with --all for every platform that is released.
//
//   deno task compile [--all] [--output DIR]
//
// DENO_COMPILE names another Deno to compile with; DENORT_BIN, which Deno itself reads, the runtime
// to put the program into.

import project from "../deno.json" with { type: "json" };
import { FAMILIES } from "../main.ts";

const TARGETS = [
  "x86_64-unknown-linux-gnu",
  "aarch64-unknown-linux-gnu",
  "x86_64-apple-darwin",
  "aarch64-apple-darwin",
];

const isAll = Deno.args.includes("--all");
const at = Deno.args.indexOf("--output");
const output = at < 0 ? "dist" : Deno.args[at + 1];
const compiler = Deno.env.get("DENO_COMPILE") ?? Deno.execPath();
const runtimeFlags = project.tasks.start.split(" ").filter((word) =>
  /^--(allow-|v8-flags=)/.test(word)
);

const excluded = (await deadWeight()).flatMap((path) => ["--exclude", path]);

await Deno.mkdir(output, { recursive: true });
for (const target of isAll ? TARGETS : [undefined]) {
  const file = `${output}/${target ? `zero-${project.version}-${target}` : "zero"}`;
  const { success, code } = await new Deno.Command(compiler, {
    args: [
      "compile",
      "--quiet",
      "--no-check",
      // A lock file of this Deno's version may be too new for another one.
      ...(compiler === Deno.execPath() ? ["--frozen"] : ["--no-lock"]),
      ...runtimeFlags,
      ...(target ? ["--target", target] : []),
      ...excluded,
      ...FAMILIES.flatMap(({ file }) => file ? ["--include", file] : []),
      "--output",
      file,
      "main.ts",
    ],
    stdin: "null",
  }).output().then((result) => {
    Deno.stderr.writeSync(result.stderr);
    return result;
  });
  if (!success) Deno.exit(code);
  const { size } = await Deno.stat(file);
  console.log(`${file}  ${(size / 1_048_576).toFixed(1)} MiB`);
}

/**
 * What the packages bring that no program reads: their sources, documents and declarations. The
 * executable would carry it, and its runtime keep it in memory.
 */
async function deadWeight(): Promise<string[]> {
  const { stdout } = await new Deno.Command(compiler, { args: ["info", "--json"] }).output();
  const { npmCache } = JSON.parse(new TextDecoder().decode(stdout)) as { npmCache: string };
  const { packages } = await readLock();
  const found: string[] = [];
  for await (const { name: registry } of Deno.readDir(npmCache)) {
    for (const folder of packages) await collect(`${npmCache}/${registry}/${folder}`, found);
  }
  return found;
}

async function collect(folder: string, found: string[]): Promise<void> {
  try {
    for await (const { name, isDirectory } of Deno.readDir(folder)) {
      const path = `${folder}/${name}`;
      const isDead = isDirectory
        ? /^(src|docs?|tests?|examples?|__tests__)$/.test(name)
        : /\.(map|md|d\.[cm]?ts)$/.test(name);
      if (isDead && !isLoaded(path)) found.push(path);
      else if (isDirectory) await collect(path, found);
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error; // a package this program never loads
  }
}

/** Some packages keep in `src` what they load. */
function isLoaded(path: string): boolean {
  return /\/(debug|ms|dns-packet|thunky)\//.test(path);
}

/** Folders of the packages below a registry: `name/1.2.3`. */
async function readLock(): Promise<{ packages: string[] }> {
  const { npm } = JSON.parse(await Deno.readTextFile("deno.lock")) as {
    npm: Record<string, unknown>;
  };
  return {
    packages: Object.keys(npm).map((key) => {
      const at = key.indexOf("@", 1);
      return `${key.slice(0, at)}/${key.slice(at + 1).replace(/_.*$/, "")}`;
    }),
  };
}
