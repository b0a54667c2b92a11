// Whether a command is on the allowlist (§10.3): which programs it would start, where they are, and
// whether every one of them is an entry, a safe use of a safe program, or brought along by a skill.

import { resolvePath } from "../../config/paths.ts";
import type { AllowEntry } from "./approvals_file.ts";
import { type Segment, splitLine, type Word } from "./splitter.ts";
import { findProgram, type Search } from "./which.ts";

/** An argv that is started as it stands, or a line for `/bin/sh`. */
export type CommandText = { argv: readonly string[] } | { line: string };

export interface AllowRules {
  allowlist: readonly AllowEntry[];
  safeBins: ReadonlySet<string>;
  /** Asked only when it matters; absent: skills bring nothing along. */
  skillBins?(): Promise<ReadonlySet<string>>;
}

export interface Surroundings extends Search {
  /** PATH of the node itself: what a caller put in front of it makes no program safe. */
  ownPath: string;
  /** What `~` stands for. */
  home: string;
}

export interface EvaluatedSegment {
  /** Absent when there is no such program. */
  path?: string;
  /** The entry it matches. */
  entry?: AllowEntry;
  isAllowed: boolean;
}

export interface Evaluation {
  /** Whether it could be told which programs would run. */
  isAnalysed: boolean;
  isSatisfied: boolean;
  segments: readonly EvaluatedSegment[];
}

const UNREADABLE: Evaluation = { isAnalysed: false, isSatisfied: false, segments: [] };

export async function evaluate(
  command: CommandText,
  rules: AllowRules,
  surroundings: Surroundings,
): Promise<Evaluation> {
  const isLine = "line" in command;
  const found = isLine ? splitLine(command.line) : [command.argv.map(literal)];
  if (!found) return UNREADABLE;
  const segments: EvaluatedSegment[] = [];
  for (const words of found) {
    segments.push(await evaluateSegment(words, { isLine }, rules, surroundings));
  }
  return { isAnalysed: true, isSatisfied: segments.every((one) => one.isAllowed), segments };
}

/**
 * Whether a pattern stands for a path. One without `/`, `\` or `~` stands for nothing: the name of a
 * program says nothing of where it is.
 */
export function matchesPattern(pattern: string, path: string, home: string): boolean {
  const trimmed = pattern.trim();
  if (!/[/\\~]/.test(trimmed)) return false;
  const full = trimmed === "~" || trimmed.startsWith("~/") ? `${home}${trimmed.slice(1)}` : trimmed;
  const source = full.replace(
    /\*{2,}|[*?]|[.+^${}()|[\]\\]/g,
    (part) =>
      part.startsWith("**") ? ".*" : part === "*" ? "[^/]*" : part === "?" ? "[^/]" : `\\${part}`,
  );
  return new RegExp(`^${source}$`, "isu").test(path);
}

async function evaluateSegment(
  words: Segment,
  { isLine }: { isLine: boolean },
  { allowlist, safeBins, skillBins }: AllowRules,
  surroundings: Surroundings,
): Promise<EvaluatedSegment> {
  const name = programName(words, { isLine }, surroundings.home);
  const path = name === undefined ? undefined : await findProgram(name, surroundings);
  if (path === undefined) return { isAllowed: false };
  if (isLine && doesMore(words)) return { path, isAllowed: false };
  const entry = allowlist.find(({ pattern }) => matchesPattern(pattern, path, surroundings.home));
  if (entry) return { path, entry, isAllowed: true };
  const base = path.slice(path.lastIndexOf("/") + 1);
  const isOwn = await isOnOwnPath(base, path, surroundings);
  const isSafe = isOwn && safeBins.has(base) &&
    await isSafeUse(base, words.slice(1), surroundings);
  return { path, isAllowed: isSafe || (isOwn && (await skillBins?.())?.has(base) === true) };
}

/** What is looked for on PATH; undefined for what only a shell could tell. */
function programName(
  [first]: Segment,
  { isLine }: { isLine: boolean },
  home: string,
): string | undefined {
  if (!first?.isLiteral) return undefined;
  if (first.hasTilde) return `${home}${first.text.slice(1)}`;
  // An assignment: the program is the next word, and what it does depends on the variable.
  return isLine && /^[A-Za-z_]\w*(\[.*\])?\+?=/s.test(first.text) ? undefined : first.text;
}

/**
 * Words that a shell does not look for on PATH, and that start something else, or change what the
 * words after them mean. Some systems have programs of these names.
 */
const SHELL_WORDS = new Set(
  [
    ". : [[ alias autoload bg bind break builtin bye case cd chdir command coproc declare dirs disown",
    "do done elif else emulate enable esac eval exec export fc fg fi for function getopts hash history",
    "if in integer jobs let local mapfile noglob popd pushd read readarray readonly repeat return",
    "rehash select set setopt shift shopt source suspend then time times trap type typeset ulimit",
    "umask unalias unset unsetopt until wait while ! { }",
  ].join(" ").split(" "),
);
/** Programs a shell has a version of its own of, which reads a command out of some words. */
const EXPANDING_BUILTINS = new Set(["[", "kill", "printf", "test"]);

function doesMore([first, ...rest]: Segment): boolean {
  if (SHELL_WORDS.has(first.text)) return true;
  return EXPANDING_BUILTINS.has(first.text) && rest.some(({ text }) => /\$\(|`/.test(text));
}

/** Whether the node itself, in no particular directory, would find this very file. */
async function isOnOwnPath(base: string, path: string, { ownPath }: Surroundings) {
  const absolute = ownPath.split(":").filter((entry) => entry.startsWith("/")).join(":");
  return absolute !== "" && await findProgram(base, { path: absolute, cwd: "/" }) === path;
}

/**
 * Options of the safe programs that read or write files, go through directories, or start a program:
 * letters of short options, and beginnings of long ones.
 */
const UNSAFE_OPTIONS: Record<string, { letters: string; long: readonly string[] }> = {
  sort: {
    letters: "oT",
    long: ["output", "temporary-directory", "compress-program", "files0-from"],
  },
  wc: { letters: "", long: ["files0-from"] },
  grep: {
    letters: "frRdD",
    long: ["file", "recursive", "dereference-recursive", "directories", "devices", "exclude-from"],
  },
  jq: {
    letters: "fL",
    long: ["from-file", "library-path", "argfile", "rawfile", "slurpfile"],
  },
};
/** Words of jq's language that reach beyond its input. */
const JQ_REACHES_OUT = /\b(?:env|ENV|import|include|input_filename|get_search_list|modulemeta)\b/;

async function isSafeUse(base: string, words: Segment, { cwd }: Search): Promise<boolean> {
  let inputs = 0;
  for (const { text, isLiteral, hasTilde } of words) {
    if (!isLiteral || hasTilde || isUnsafeOption(base, text)) return false;
    if (base === "jq" && JQ_REACHES_OUT.test(text)) return false;
    if (text === "-") continue;
    const isOption = text.startsWith("-");
    if (!isOption) inputs++;
    // `-e/path` and `--file=/path` name files as well.
    const values = isOption ? [text.slice(2), text.slice(text.indexOf("=") + 1)] : [text];
    for (const value of values) {
      if (looksLikePath(value) || await isFile(value, cwd)) return false;
    }
  }
  // The second operand of uniq is the file it writes.
  return base !== "uniq" || inputs === 0;
}

function isUnsafeOption(base: string, text: string): boolean {
  const unsafe = Object.hasOwn(UNSAFE_OPTIONS, base) ? UNSAFE_OPTIONS[base] : undefined;
  if (!unsafe || !/^-./.test(text)) return false;
  const isLong = text.startsWith("--");
  const name = text.replace(/^--?/, "").replace(/=.*$/s, "");
  if (isLong && name === "") return false;
  // GNU programs take beginnings of long options; jq takes whole ones only, also behind one dash.
  const isNamed = base === "jq"
    ? unsafe.long.includes(name)
    : isLong && unsafe.long.some((one) => one.startsWith(name));
  return isNamed || (!isLong && [...unsafe.letters].some((letter) => text.includes(letter)));
}

function looksLikePath(text: string): boolean {
  return /^(?:\.\.?\/|~|\/|[A-Za-z]:[\\/])/.test(text) || text === "..";
}

async function isFile(text: string, cwd: string): Promise<boolean> {
  if (text === "" || text.includes("\0")) return false;
  try {
    return !(await Deno.stat(resolvePath(text, { home: "/", cwd }))).isDirectory;
  } catch {
    return false; // there is nothing of that name
  }
}

function literal(text: string): Word {
  return { text, isLiteral: true, hasTilde: false };
}
