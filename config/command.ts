// What a command is: words, flags, help text and behaviour in one entry. This file reads the command
// line against such entries and words the help; what commands do lives with them, and what becomes of
// an exit code or an error in main.ts.

// @ts-types="./std_cli.d.ts"
import { parseArgs } from "@std/cli/parse-args";
import { MAX_WIDTH, type Terminal, textWidth } from "./terminal.ts";

/** Exit codes (D20). */
export const EXIT_OK = 0;
export const EXIT_FAILURE = 1;
export const EXIT_USAGE = 2;
/** A start refused for a reason that a restart cannot mend. */
export const EXIT_REFUSED = 78;

/** The command line is not one this program takes: exit code 2. */
export class UsageError extends Error {
  override name = "UsageError";
  /** What to type instead, or where to read on. */
  readonly hint?: string;

  constructor(message: string, { hint, cause }: { hint?: string; cause?: unknown } = {}) {
    super(message, { cause });
    this.hint = hint;
  }
}

interface FlagBase {
  summary: string;
  /** One letter: `h` for `-h`. */
  short?: string;
  /** What stands for the value in the help: `--port N`. */
  placeholder?: string;
  /** Names of flags that cannot be given beside this one. */
  excludes?: readonly string[];
  /** Accepted, but left out of help and completions. */
  hidden?: boolean;
}

/** `--json`: false unless given. */
export interface BooleanFlag extends FlagBase {
  kind: "boolean";
}

export interface TextFlag extends FlagBase {
  kind: "text";
  choices?: readonly string[];
  default?: string;
}

export interface IntegerFlag extends FlagBase {
  kind: "integer";
  min?: number;
  max?: number;
  default?: number;
}

/** May be given more than once. */
export interface ListFlag extends FlagBase {
  kind: "list";
  choices?: readonly string[];
}

export type Flag = BooleanFlag | TextFlag | IntegerFlag | ListFlag;
/** Flags by name, without the dashes. */
export type Flags = Readonly<Record<string, Flag>>;

/** What a flag table parses to; a flag without default is undefined where it was not given. */
export type Values<F extends Flags> = { readonly [Name in keyof F]: ValueOf<F[Name]> };

type ValueOf<F> = F extends { kind: "boolean" } ? boolean
  : F extends { kind: "list" } ? string[]
  : F extends { kind: "integer" } ? number | (F extends { default: number } ? never : undefined)
  : F extends { kind: "text" } ? TextOf<F> | (F extends { default: string } ? never : undefined)
  : never;
type TextOf<F> = F extends { choices: readonly (infer Choice extends string)[] } ? Choice : string;

/** What a command is run with. */
export interface Invocation<F extends Flags = Flags> {
  /** The words that chose the command, as they were typed. */
  path: readonly string[];
  flags: Values<F> & Values<typeof GLOBAL_FLAGS>;
  /** Positionals, then whatever followed `--`, as it was typed. */
  args: readonly string[];
  /** Names of the flags that were given, not merely defaulted. */
  given: ReadonlySet<string>;
}

/** One command, with everything there is to know of it. */
export interface Command<F extends Flags = Flags> {
  /** The words after `zero`. */
  path: readonly string[];
  /** Other words for the same: `zero call` is `zero gateway call`. */
  aliases?: readonly (readonly string[])[];
  /** One line without a full stop. */
  summary: string;
  /** Positionals: `KEY [VALUE]`, `[ARG...]`. Their number is checked; none are taken without it. */
  usage?: string;
  /** The first positional begins the command line of another program: nothing behind it is ours. */
  takesArgv?: boolean;
  flags: F;
  /** Paragraphs below the summary. */
  details?: string;
  examples?: readonly string[];
  /**
   * Does it. Loads what it needs itself, so that the table of commands costs nothing.
   *
   * @returns the exit code; nothing is 0
   */
  run(invocation: Invocation<F>, terminal: Terminal): Promise<number | void>;
}

/** The program: what `zero --help` tells. */
export interface Program {
  name: string;
  summary: string;
  version: string;
  /** What the words mean that stand for several commands: `{ config: "Read and change …" }`. */
  groups?: Readonly<Record<string, string>>;
  /** What to type first, and what it does. */
  firstSteps?: readonly (readonly [line: string, what: string])[];
  /** First words by what they are about, in the order of the help. */
  sections?: readonly { title: string; words: readonly string[] }[];
  commands: readonly Command[];
}

/** Options of every command; they may also stand before it (§11.1). */
export const GLOBAL_FLAGS = {
  profile: {
    kind: "text",
    placeholder: "NAME",
    summary: "Use the state and configuration of ~/.zero-NAME",
    excludes: ["dev"],
  },
  dev: { kind: "boolean", summary: "Same as --profile dev, on port 19001" },
  verbose: { kind: "boolean", summary: "Say more: why a target was chosen, stacks of faults" },
  "no-color": { kind: "boolean", summary: "Print without colours" },
  help: { kind: "boolean", short: "h", summary: "Show this help" },
  version: { kind: "boolean", short: "V", summary: "Show the version" },
} as const satisfies Flags;

/** Machine-readable output (§11.1). */
export const JSON_FLAG = {
  json: { kind: "boolean", summary: "Print one JSON document" },
} as const satisfies Flags;

/** Flags that lead to a gateway on another machine (D15, D8). */
export const REMOTE_FLAGS = {
  remote: {
    kind: "text",
    placeholder: "NAME",
    summary: "Gateway that zero remote add gave this name; local is the one of this machine",
    excludes: ["ssh"],
  },
  ssh: {
    kind: "text",
    placeholder: "TARGET",
    summary: "Gateway on [user@]host[:port], through ssh for as long as the command runs",
  },
  "ssh-identity": {
    kind: "text",
    placeholder: "FILE",
    summary: "Private key for ssh, instead of those it finds itself",
  },
  "ssh-accept-new": {
    kind: "boolean",
    summary: "Trust the host key of a machine that ssh does not know yet",
  },
  "remote-port": {
    kind: "integer",
    min: 1,
    max: 65_535,
    placeholder: "N",
    summary: "Port of the gateway on the machine that --ssh names; 18789 unless told",
  },
} as const satisfies Flags;

/** Flags of every command that calls a gateway (D14, D15, §11.3). */
export const RPC_FLAGS = {
  url: {
    kind: "text",
    placeholder: "URL",
    summary: "Gateway to talk to: ws://host:port or wss://host:port",
    excludes: ["port", "ssh", "remote"],
  },
  port: {
    kind: "integer",
    min: 1,
    max: 65_535,
    placeholder: "N",
    summary: "Gateway on this machine: same as --url ws://127.0.0.1:N",
    excludes: ["ssh", "remote"],
  },
  ...REMOTE_FLAGS,
  "tls-fingerprint": {
    kind: "text",
    placeholder: "SHA256",
    summary: "The certificate to expect with wss://, or several with commas between",
  },
  token: {
    kind: "text",
    placeholder: "TOKEN",
    summary: "Token of the gateway (other users of this machine can see it: see --token-file)",
    excludes: ["token-file"],
  },
  "token-file": {
    kind: "text",
    placeholder: "FILE",
    summary: "Read the token from FILE; - is standard input",
  },
  password: { kind: "text", placeholder: "TEXT", summary: "Password of the gateway" },
  timeout: {
    kind: "integer",
    min: 1,
    max: 2_147_483_647,
    placeholder: "MS",
    default: 10_000,
    summary: "Longest time to wait, in milliseconds",
  },
  ...JSON_FLAG,
} as const satisfies Flags;

/** Writes a command down with the types of its own flags, to stand in a table of commands. */
export function command<const F extends Flags>(entry: Command<F>): Command {
  return entry as Command<Flags>;
}

/**
 * Does what the command line asks for.
 *
 * @returns the exit code
 * @throws {UsageError} as `readCommandLine`; and whatever the command throws
 */
export async function runProgram(
  program: Program,
  argv: readonly string[],
  terminal: Terminal,
): Promise<number> {
  const request = readCommandLine(program, ownWords(program, argv));
  switch (request.kind) {
    case "version":
      terminal.out(`${program.name} ${program.version}`);
      return EXIT_OK;
    case "help": {
      const { width, style: { bold } } = terminal;
      terminal.out(helpText(program, request.path, { width, bold }));
      return EXIT_OK;
    }
    case "run":
      return await request.command.run(request.invocation, terminal) ?? EXIT_OK;
  }
}

/** What the command line asks for. */
export type Request =
  | { kind: "run"; command: Command; invocation: Invocation }
  | { kind: "help"; path: readonly string[] }
  | { kind: "version" };

/**
 * Reads a command line.
 *
 * @throws {UsageError} on an unknown command or flag, a value that does not fit, or too few or too
 *   many positionals
 */
export function readCommandLine(program: Program, argv: readonly string[]): Request {
  const { command, path, rest } = findCommand(program, argv);
  if (!command) {
    const [first] = rest;
    const isHelp = path.length === 0 && first === "help";
    if (first && !first.startsWith("-") && !isHelp) throw unknownCommand(program, [...path, first]);
    const flags = Object.assign({}, ...flagTablesBelow(program, path));
    const { values, args } = parseFlags(flags, rest, [program.name, ...path]);
    if (values.version) return { kind: "version" };
    if (isHelp) return { kind: "help", path: args.slice(1) };
    if (args.length > 0) throw unknownCommand(program, [...path, args[0]]);
    if (path.length === 0 || values.help) return { kind: "help", path };
    throw new UsageError(`Cannot run "${program.name} ${path.join(" ")}": which of its commands?`, {
      hint: `One of: ${nextWords(program, path).join(", ")}`,
    });
  }
  const flags = { ...command.flags, ...GLOBAL_FLAGS };
  const words = [program.name, ...path];
  const { values, args, given } = parseFlags(flags, rest, words);
  if (values.help) return { kind: "help", path };
  if (values.version) return { kind: "version" };
  if (args.length > 0 && !command.usage && nextWords(program, path).length > 0) {
    throw unknownCommand(program, [...path, args[0]]);
  }
  checkCount(command, words, args);
  const invocation = { path, flags: values, args, given } as unknown as Invocation;
  return { kind: "run", command, invocation };
}

/**
 * The command line with `--` in front of what belongs to another program, so that its options are
 * not taken for ours.
 */
export function ownWords(program: Program, argv: readonly string[]): readonly string[] {
  const { command, path, rest } = findCommand(program, argv);
  if (!command?.takesArgv) return argv;
  const flags: Flags = { ...command.flags, ...GLOBAL_FLAGS };
  for (let index = 0; index < rest.length; index++) {
    const word = rest[index];
    if (word === "--") return argv;
    if (!word.startsWith("-") || word === "-") {
      return [...path, ...rest.slice(0, index), "--", ...rest.slice(index)];
    }
    const [name, value] = splitFlag(flags, word);
    if (name !== undefined && value === undefined && flags[name].kind !== "boolean") index++;
  }
  return argv;
}

/**
 * Reads the options that decide where state lives, before there is a table of commands. A word equal
 * to one of them is never the value of another flag: `parseFlags` refuses that.
 *
 * @throws {UsageError} when `--profile` has no value
 */
export function readGlobals(argv: readonly string[]): { profile?: string; dev: boolean } {
  const words = beforeDashes(argv);
  const dev = words.includes("--dev");
  const at = words.findLastIndex((word) => word === "--profile" || word.startsWith("--profile="));
  if (at < 0) return { dev };
  const profile = words[at] === "--profile" ? words[at + 1] : words[at].slice("--profile=".length);
  if (profile === undefined) throw missingValue("profile", GLOBAL_FLAGS.profile);
  return { profile, dev };
}

/** Whether a switch is given, on a command line that may turn out to be wrong. */
export function hasSwitch(argv: readonly string[], name: string): boolean {
  return beforeDashes(argv).includes(`--${name}`);
}

function beforeDashes(argv: readonly string[]): readonly string[] {
  const end = argv.indexOf("--");
  return end < 0 ? argv : argv.slice(0, end);
}

/**
 * Finds the command with the longest path that the words begin with. Flags may stand between them.
 *
 * @returns no command where the words name none; `rest` is the command line without the path
 */
export function findCommand(
  program: Program,
  argv: readonly string[],
): { command?: Command; path: string[]; rest: string[] } {
  const path: string[] = [];
  const rest: string[] = [];
  for (let index = 0; index < argv.length; index++) {
    const word = argv[index];
    if (word === "--") {
      rest.push(...argv.slice(index));
      break;
    }
    if (word.startsWith("-") && word !== "-") {
      rest.push(word);
      const flag = word.includes("=") ? undefined : anyFlag(program, path, word);
      if (flag && flag.kind !== "boolean" && index + 1 < argv.length) rest.push(argv[++index]);
      continue;
    }
    if (!nextWords(program, path).includes(word)) {
      rest.push(...argv.slice(index));
      break;
    }
    path.push(word);
  }
  const command = program.commands.find((one) => pathsOf(one).some((words) => isSame(words, path)));
  return { command, path, rest };
}

/**
 * The help of a command, of a group of commands, or of the whole program.
 *
 * @throws {UsageError} when the path names nothing
 */
export function helpText(
  program: Program,
  path: readonly string[],
  { width = MAX_WIDTH, bold = (text: string) => text } = {},
): string {
  const found = program.commands.find((one) => pathsOf(one).some((words) => isSame(words, path)));
  const words = nextWords(program, path);
  if (!found && words.length === 0) throw unknownCommand(program, path);
  const called = [program.name, ...path].join(" ");
  const parts: string[] = [];
  const summary = found?.summary ?? (path.length === 0 ? program.summary : groupOf(program, path));
  if (summary) parts.push(fill(summary, width));

  const synopses = [
    ...found?.takesArgv ? [`${called} [OPTIONS] ${found.usage}`] : [],
    ...found && !found.takesArgv
      ? [`${called}${found.usage ? ` ${found.usage}` : ""} [OPTIONS]`]
      : [],
    ...words.length > 0 ? [`${called} COMMAND [OPTIONS]`] : [],
  ];
  parts.push(`${bold("Usage")}\n${synopses.map((line) => `  ${line}`).join("\n")}`);
  if (found?.details) {
    parts.push(found.details.split("\n\n").map((text) => fill(text, width)).join("\n\n"));
  }
  if (words.length > 0) {
    if (path.length === 0 && program.firstSteps) {
      parts.push(`${bold("First steps")}\n${columns(program.firstSteps, width)}`);
    }
    const widest = Math.max(...words.map((word) => word.length));
    for (const section of sectionsOf(program, path, words)) {
      const rows = section.words.map((word) =>
        [word.padEnd(widest), summaryOf(program, [...path, word])] as const
      );
      parts.push(`${bold(section.title)}\n${columns(rows, width)}`);
    }
  }
  if (found) {
    const own = flagRows(found.flags);
    if (own.length > 0) parts.push(`${bold("Options")}\n${columns(own, width)}`);
  }
  const own = new Set(Object.keys(found?.flags ?? {}));
  const globals = Object.fromEntries(
    Object.entries(GLOBAL_FLAGS).filter(([name]) => !own.has(name)),
  );
  parts.push(`${bold("Global options")}\n${columns(flagRows(globals), width)}`);
  if (found?.examples) {
    parts.push(`${bold("Examples")}\n${found.examples.map((line) => `  ${line}`).join("\n")}`);
  }
  if (words.length > 0) {
    parts.push(fill(`"${called} COMMAND --help" tells more about a command.`, width));
  }
  return parts.join("\n\n");
}

/** The words below a path under their headings; all that have none under one. */
function sectionsOf(
  { sections = [] }: Program,
  path: readonly string[],
  words: readonly string[],
): { title: string; words: readonly string[] }[] {
  if (path.length > 0) return [{ title: "Commands", words }];
  const titled = sections.map(({ title, words: own }) => ({
    title,
    words: own.filter((word) => words.includes(word)),
  }));
  const placed = new Set(sections.flatMap((one) => one.words));
  const others = words.filter((word) => !placed.has(word));
  const title = titled.length > 0 ? "Other commands" : "Commands";
  return [...titled, { title, words: others }].filter((one) => one.words.length > 0);
}

/** The words that may follow a path, in the order of the table. */
export function nextWords(program: Program, path: readonly string[]): string[] {
  const words = program.commands.flatMap(pathsOf)
    .filter((one) => one.length > path.length && isSame(one.slice(0, path.length), path))
    .map((one) => one[path.length]);
  return [...new Set(words)];
}

/** Every path a command answers to. */
export function pathsOf(command: Command): readonly (readonly string[])[] {
  return [command.path, ...command.aliases ?? []];
}

/** The candidate that was probably meant, if one is near enough. */
export function nearest(word: string, candidates: Iterable<string>): string | undefined {
  const limit = Math.max(1, Math.min(3, Math.floor(word.length / 2)));
  let best: { candidate: string; distance: number } | undefined;
  for (const candidate of candidates) {
    const distance = candidate.startsWith(word) && word.length >= 3
      ? 1
      : editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance <= limit && distance < (best?.distance ?? Infinity)) {
      best = { candidate, distance };
    }
  }
  return best?.candidate;
}

/** One line of help for a word below a path: its group's, its command's, or its own words. */
export function summaryOf(program: Program, path: readonly string[]): string {
  const found = program.commands.find((one) => pathsOf(one).some((words) => isSame(words, path)));
  return program.groups?.[path.join(" ")] ?? found?.summary ?? groupOf(program, path);
}

function groupOf(program: Program, path: readonly string[]): string {
  return program.groups?.[path.join(" ")] ?? nextWords(program, path).join(", ");
}

interface Parsed {
  values: Record<string, unknown>;
  args: string[];
  given: Set<string>;
}

/**
 * Which word is a value is decided here, by the table: parse-args would guess by the look of the next
 * word, take `true` for the value of a switch, and a token that begins with `-` for a flag.
 */
function parseFlags(flags: Flags, words: readonly string[], called: readonly string[]): Parsed {
  const names = Object.keys(flags);
  const given = new Set<string>();
  const positionals: string[] = [];
  const options: string[] = [];
  const end = words.indexOf("--");
  const rest = end < 0 ? [] : words.slice(end);
  const head = end < 0 ? words : words.slice(0, end);
  for (let index = 0; index < head.length; index++) {
    const word = head[index];
    if (!word.startsWith("-") || word === "-") {
      positionals.push(word);
      continue;
    }
    const [name, value] = splitFlag(flags, word);
    const flag = name === undefined ? undefined : flags[name];
    if (!flag || name === undefined) throw unknownFlag(word, names, called);
    given.add(name);
    if (flag.kind === "boolean") {
      if (value !== undefined) {
        throw new UsageError(`Cannot read --${name}=${value}: --${name} takes no value`);
      }
      options.push(`--${name}`);
      continue;
    }
    const next = value ?? head[++index];
    if (next === undefined) throw missingValue(name, flag);
    if (value === undefined && splitFlag(flags, next)[0] !== undefined) {
      throw missingValue(name, flag, next);
    }
    options.push(`--${name}=${next}`);
  }
  const ofKind = (...kinds: string[]) => names.filter((name) => kinds.includes(flags[name].kind));
  const parsed = parseArgs([...options, ...rest], {
    "--": true,
    boolean: ofKind("boolean"),
    string: ofKind("text", "integer", "list"),
    collect: ofKind("list"),
  });
  const values: Record<string, unknown> = {};
  for (const [name, flag] of Object.entries(flags)) {
    values[name] = given.has(name) || flag.kind === "list"
      ? checkValue(name, flag, parsed[name])
      : defaultOf(flag);
  }
  checkExclusions(flags, given);
  return { values, args: [...positionals, ...parsed["--"] ?? []], given };
}

/** Name and `=value` of a word that names a flag; no name where it names none. */
function splitFlag(flags: Flags, word: string): [name?: string, value?: string] {
  const match = /^--([^=]+)(?:=(.*))?$/s.exec(word);
  if (match) return Object.hasOwn(flags, match[1]) ? [match[1], match[2]] : [];
  const short = /^-([A-Za-z])$/.exec(word)?.[1];
  const name = short && Object.keys(flags).find((one) => flags[one].short === short);
  return name ? [name] : [];
}

function checkValue(name: string, flag: Flag, value: unknown): unknown {
  if (flag.kind === "integer") return readInteger(name, flag, String(value));
  if (flag.kind === "boolean" || !flag.choices) return value;
  for (const one of flag.kind === "list" ? value as string[] : [String(value)]) {
    if (flag.choices.includes(one)) continue;
    const near = nearest(one, flag.choices);
    throw new UsageError(
      `Cannot read --${name} ${quote(one)}: it must be one of ${flag.choices.join(", ")}`,
      { hint: near && `Did you mean --${name} ${near}?` },
    );
  }
  return value;
}

function readInteger(name: string, { min, max }: IntegerFlag, text: string): number {
  const value = /^[+-]?\d+$/.test(text) ? Number(text) : NaN;
  if (!Number.isSafeInteger(value) || value < (min ?? -Infinity) || value > (max ?? Infinity)) {
    const range = min !== undefined && max !== undefined
      ? ` from ${min} to ${max}`
      : min !== undefined
      ? ` of at least ${min}`
      : max !== undefined
      ? ` of at most ${max}`
      : "";
    throw new UsageError(`Cannot read --${name} ${quote(text)}: it must be a whole number${range}`);
  }
  return value;
}

function defaultOf(flag: Flag): unknown {
  if (flag.kind === "boolean") return false;
  return flag.kind === "list" ? [] : flag.default;
}

function checkExclusions(flags: Flags, given: ReadonlySet<string>): void {
  for (const name of given) {
    const other = flags[name].excludes?.find((one) => given.has(one));
    if (other === undefined) continue;
    throw new UsageError(`Cannot take --${name} and --${other} together: give one of them`);
  }
}

function checkCount(command: Command, called: readonly string[], args: readonly string[]): void {
  const slots = command.usage?.split(/\s+/) ?? [];
  const required = slots.filter((slot) => !slot.startsWith("["));
  const isOpen = slots.some((slot) => slot.includes("..."));
  const hint = `Usage: ${[...called, ...slots].join(" ")}`;
  if (args.length < required.length) {
    const missing = required[args.length].replace("...", "");
    throw new UsageError(`Cannot run "${called.join(" ")}": ${missing} is missing`, { hint });
  }
  if (!isOpen && args.length > slots.length) {
    // Not the argument itself: it may be half of a secret with a space in it.
    const most = slots.length === 0
      ? "no arguments"
      : `at most ${slots.length} argument${slots.length === 1 ? "" : "s"}`;
    throw new UsageError(
      `Cannot run "${called.join(" ")}": it takes ${most}, ${args.length} given`,
      { hint },
    );
  }
}

function unknownCommand(program: Program, path: readonly string[]): UsageError {
  const parent = path.slice(0, -1);
  const word = path.at(-1) ?? "";
  const near = nearest(word, nextWords(program, parent));
  const called = [program.name, ...parent].join(" ");
  return new UsageError(`Unknown command: ${called} ${printableWord(word)}`, {
    hint: near
      ? `Did you mean "${called} ${near}"?`
      : `"${called} --help" lists the commands there are`,
  });
}

function unknownFlag(word: string, names: string[], called: readonly string[]): UsageError {
  const [name] = word.split("=");
  const near = name.startsWith("--") ? nearest(name.slice(2), names) : undefined;
  return new UsageError(`Unknown option: ${printableWord(name)}`, {
    hint: near
      ? `Did you mean --${near}?`
      : /^-\d/.test(word)
      ? `To pass ${name} as it is, write -- before it`
      : `"${called.join(" ")} --help" lists the options there are`,
  });
}

function missingValue(name: string, flag: Flag, next?: string): UsageError {
  return new UsageError(`Cannot read --${name}: its value is missing`, {
    hint: next === undefined
      ? `Write --${name} ${placeholderOf(flag)}`
      : `If ${next} is the value, write --${name}=${next}`,
  });
}

/** The flag a word names in any command below a path, to know whether it takes the next word. */
function anyFlag(program: Program, path: readonly string[], word: string): Flag | undefined {
  for (const flags of flagTablesBelow(program, path)) {
    const [name] = splitFlag(flags, word);
    if (name !== undefined) return flags[name];
  }
}

function flagTablesBelow(program: Program, path: readonly string[]): Flags[] {
  const below = program.commands.filter((one) =>
    pathsOf(one).some((words) => isSame(words.slice(0, path.length), path))
  );
  return [...below.map(({ flags }) => flags), GLOBAL_FLAGS];
}

function flagRows(flags: Flags): (readonly [string, string])[] {
  return Object.entries(flags).filter(([, flag]) => !flag.hidden).map(([name, flag]) => {
    const placeholder = placeholderOf(flag);
    const short = flag.short ? `-${flag.short}, ` : "    ";
    const notes = [
      ...hasLongChoices(flag) ? [`one of ${choicesOf(flag).join(", ")}`] : [],
      ...flag.kind === "list" ? ["may be repeated"] : [],
      ...(flag.kind === "text" || flag.kind === "integer") && flag.default !== undefined
        ? [`default ${flag.default}`]
        : [],
    ];
    const summary = notes.length > 0 ? `${flag.summary} (${notes.join("; ")})` : flag.summary;
    return [`${short}--${name}${placeholder ? ` ${placeholder}` : ""}`, summary] as const;
  });
}

function placeholderOf(flag: Flag): string {
  if (flag.kind === "boolean") return "";
  if (flag.placeholder) return flag.placeholder;
  if (flag.kind === "integer") return "N";
  return choicesOf(flag).length > 0 && !hasLongChoices(flag) ? choicesOf(flag).join("|") : "TEXT";
}

/** The only values a flag takes; none where it takes any. */
export function choicesOf(flag: Flag): readonly string[] {
  return "choices" in flag ? flag.choices ?? [] : [];
}

function hasLongChoices(flag: Flag): boolean {
  return choicesOf(flag).join("|").length > 24;
}

/** Two columns below a heading; a first cell that is too long gets a line of its own. */
function columns(rows: readonly (readonly [string, string])[], width: number): string {
  const widest = Math.max(...rows.map(([first]) => textWidth(first)));
  const start = Math.min(widest, Math.floor(width * 0.4)) + 4;
  return rows.map(([first, second]) => {
    const lines = fill(second, width - start).split("\n");
    const isFitting = textWidth(first) <= start - 4;
    const head = isFitting ? `  ${first.padEnd(start - 2)}${lines.shift()}` : `  ${first}`;
    return [head, ...lines.map((line) => " ".repeat(start) + line)].join("\n").trimEnd();
  }).join("\n");
}

/** Breaks text into lines of at most `width` columns. */
function fill(text: string, width: number): string {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(/\s+/)) {
    if (line !== "" && textWidth(line) + 1 + textWidth(word) > width) {
      lines.push(line);
      line = "";
    }
    line += line === "" ? word : ` ${word}`;
  }
  return [...lines, line].join("\n");
}

/** Edits between two words: a letter added, lost, changed, or swapped with its neighbour. */
function editDistance(from: string, to: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (let row = 1; row <= from.length; row++) {
    const line = [row];
    for (let column = 1; column <= to.length; column++) {
      const cost = from[row - 1] === to[column - 1] ? 0 : 1;
      line[column] = Math.min(last[column] + 1, line[column - 1] + 1, last[column - 1] + cost);
      const isSwapped = row > 1 && column > 1 && from[row - 1] === to[column - 2] &&
        from[row - 2] === to[column - 1];
      if (isSwapped) line[column] = Math.min(line[column], beforeLast[column - 2] + 1);
    }
    beforeLast = last;
    last = line;
  }
  return last[to.length];
}

function isSame(one: readonly string[], other: readonly string[]): boolean {
  return one.length === other.length && one.every((word, index) => word === other[index]);
}

function quote(text: string): string {
  return JSON.stringify(printableWord(text));
}

/** A word of the command line as it may stand in a message: short, and without control characters. */
function printableWord(word: string): string {
  const clean = word.replace(/[\x00-\x1f\x7f-\x9f]/g, "\ufffd");
  return clean.length > 60 ? `${clean.slice(0, 60)}…` : clean;
}
