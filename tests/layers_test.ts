import { assertEquals } from "@std/assert";
import { dirname, join, relative } from "node:path";
import { FAMILIES } from "../main.ts";

const ROOT = join(import.meta.dirname!, "..");
const FOLDERS = ["gateway", "tunnel", "config", "rpc"] as const;
type Folder = typeof FOLDERS[number];

/** What a folder may import, beside itself. A file in place of a folder allows just that one. */
const ARROWS: Record<Folder, readonly string[]> = {
  gateway: ["tunnel", "config", "rpc"],
  tunnel: ["config"],
  config: ["rpc/shape.ts"],
  rpc: [],
};
const REASONS: Record<Folder, string> = {
  gateway: "main.ts stands above it and hands it what it needs",
  tunnel: "a tunnel knows neither the gateway nor the protocol it carries",
  config: "it is below everything; of rpc/ it may use the shapes alone",
  rpc: "it is used at both ends of the wire and knows nothing else of the program",
};
/** What a command that only calls a gateway must not load before it has dialled. */
const SLOW = ["ws", "hono", "@hono/node-server", "@croct/json5-parser", "node:http", "node:sqlite"];

interface Import {
  specifier: string;
  /** Gone when the program runs. */
  isTypeOnly: boolean;
  /** Loaded when the line is reached. */
  isDynamic: boolean;
}

function importsOf(source: string): Import[] {
  const code = source.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
  const found: Import[] = [];
  const statement = /^(?:import|export)\b(?:(\s+type)\b)?[^;"'`]*?["']([^"']+)["']/gm;
  for (const [text, type, specifier] of code.matchAll(statement)) {
    if (text.startsWith("export") && !/\bfrom\s*["']/.test(text)) continue;
    found.push({ specifier, isTypeOnly: type !== undefined, isDynamic: false });
  }
  for (const [, specifier] of code.matchAll(/\bimport\(\s*["']([^"']+)["']/g)) {
    found.push({ specifier, isTypeOnly: false, isDynamic: true });
  }
  return found;
}

async function* sourceFiles(folder: string): AsyncGenerator<string> {
  for await (const entry of Deno.readDir(join(ROOT, folder))) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory) yield* sourceFiles(path);
    else if (/(?<!\.d)\.ts$/.test(entry.name)) yield path;
  }
}

function resolved(file: string, specifier: string): string {
  return relative(ROOT, join(ROOT, dirname(file), specifier));
}

/** @returns why an import is wrong, undefined for one that is right */
function objection(file: string, specifier: string): string | undefined {
  if (!specifier.startsWith(".")) return undefined;
  const from = file.split("/")[0] as Folder;
  const target = resolved(file, specifier);
  const isAllowed = [from, ...ARROWS[from]].some((one) =>
    one === target || target.startsWith(`${one}/`)
  );
  return isAllowed ? undefined : `${file} imports ${target}: ${from}/ must not, ${REASONS[from]}`;
}

Deno.test("imports follow the arrows: main, gateway, tunnel, config, and gateway to rpc", async () => {
  const wrong: string[] = [];
  let count = 0;
  for (const folder of FOLDERS) {
    for await (const file of sourceFiles(folder)) {
      for (const { specifier } of importsOf(await Deno.readTextFile(join(ROOT, file)))) {
        count++;
        const why = objection(file, specifier);
        if (why) wrong.push(why);
      }
    }
  }

  assertEquals(wrong, []);
  assertEquals(count > 100, true, `only ${count} imports were found: the reader of them is broken`);
});

Deno.test("a wrong arrow is told apart from a right one", () => {
  const wrong = [
    ["rpc/frame.ts", "../config/log.ts"],
    ["config/load.ts", "../rpc/frame.ts"],
    ["config/load.ts", "../gateway/run.ts"],
    ["tunnel/ssh.ts", "../rpc/error.ts"],
    ["tunnel/ssh.ts", "../gateway/gateway.ts"],
    ["gateway/run.ts", "../main.ts"],
    ["gateway/methods/mod.ts", "../../main.ts"],
  ];
  const right = [
    ["rpc/frame.ts", "./error.ts"],
    ["config/load.ts", "../rpc/shape.ts"],
    ["tunnel/ssh.ts", "../config/log.ts"],
    ["gateway/methods/mod.ts", "../../rpc/method.ts"],
    ["gateway/run.ts", "../tunnel/process.ts"],
    ["gateway/run.ts", "node:http"],
  ];

  for (const [file, specifier] of wrong) {
    assertEquals(typeof objection(file, specifier), "string", `${file} → ${specifier}`);
  }
  for (const [file, specifier] of right) {
    assertEquals(objection(file, specifier), undefined, `${file} → ${specifier}`);
  }
});

Deno.test("every way of importing is seen, and what only looks like one is not", () => {
  const source = `
import project from "./a.json" with { type: "json" };
import {
  type One,
  two,
} from "./b.ts";
import type { Three } from "./c.ts";
import "./d.ts";
export { four } from "./e.ts";
export type { Five } from "./f.ts";
export * from "./g.ts";
const later = await import("./h.ts");
// import { not } from "./comment.ts";
/* import "./block.ts"; */
export const text = "from ./text.ts";
export function plain() { return "./function.ts"; }
`;

  assertEquals(
    importsOf(source).map((one) => [one.specifier, one.isTypeOnly, one.isDynamic]),
    [
      ["./a.json", false, false],
      ["./b.ts", false, false],
      ["./c.ts", true, false],
      ["./d.ts", false, false],
      ["./e.ts", false, false],
      ["./f.ts", true, false],
      ["./g.ts", false, false],
      ["./h.ts", false, true],
    ],
  );
});

Deno.test("rpc uses web standards alone: nothing of Deno, of Node or of npm but superstruct", async () => {
  const wrong: string[] = [];
  for await (const file of sourceFiles("rpc")) {
    const source = await Deno.readTextFile(join(ROOT, file));
    if (/\bDeno\./.test(source)) wrong.push(`${file} uses Deno: it must run in any web runtime`);
    for (const { specifier } of importsOf(source)) {
      const isOurs = specifier.startsWith(".");
      const isShapes = file === "rpc/shape.ts" && specifier === "superstruct";
      if (!isOurs && !isShapes) wrong.push(`${file} imports ${specifier}: it must need nothing`);
    }
  }

  assertEquals(wrong, []);
});

Deno.test("superstruct is imported by rpc/shape.ts alone", async () => {
  const users: string[] = [];
  for (const folder of FOLDERS) {
    for await (const file of sourceFiles(folder)) {
      const imports = importsOf(await Deno.readTextFile(join(ROOT, file)));
      if (imports.some(({ specifier }) => specifier === "superstruct")) users.push(file);
    }
  }

  assertEquals(users, ["rpc/shape.ts"]);
});

Deno.test("a command line that calls a gateway loads no server and no slow package", async () => {
  const roots = ["main.ts", ...FAMILIES.flatMap(({ file }) => file?.replace("./", "") ?? [])];
  const seen = new Map<string, string>(roots.map((root) => [root, root]));
  const wrong: string[] = [];
  for (const [file, way] of seen) {
    for (const one of importsOf(await Deno.readTextFile(join(ROOT, file)))) {
      if (one.isTypeOnly || one.isDynamic) continue;
      const { specifier } = one;
      const isSlow = specifier.startsWith("node:") || SLOW.some((name) => specifier === name);
      if (isSlow) wrong.push(`${way} → ${specifier}: load it with import() where it is needed`);
      if (!specifier.startsWith(".") || !specifier.endsWith(".ts")) continue;
      const target = resolved(file, specifier);
      if (!seen.has(target)) seen.set(target, `${way} → ${target}`);
    }
  }

  assertEquals(wrong, []);
  assertEquals(seen.has("gateway/start.ts"), false, seen.get("gateway/start.ts"));
  assertEquals(seen.size > 5, true, "the graph of main.ts was not followed");
});
