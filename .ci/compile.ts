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
