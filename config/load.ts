// Reads the configuration file: JSON5, `$include`, `${VAR}`, checked as a whole. Each mistake names
// file, line and key, and what would be right. A file with mistakes is a reading like any other.

import { type Problem, problems } from "../rpc/shape.ts";
import { nearest } from "./command.ts";
import { MeasuredText, parseText, type Position, TextError } from "./document.ts";
import { type Env, resolvePath } from "./paths.ts";
import {
  Config,
  crossFieldIssues,
  formatKey,
  type KeyPath,
  schemaAt,
  settingNames,
} from "./schema.ts";

/** One mistake in a configuration. */
export interface ConfigIssue {
  /** Dotted: `gateway.bind`, `agents.list[0].id`; "" for the file as a whole. */
  path: string;
  message: string;
  /** The file it stands in, which an `$include` may have brought; or the flag or variable. */
  file: string;
  /** From 1. */
  line?: number;
  /** From 1. */
  column?: number;
  /** What would be right. */
  fix?: string;
}

/** What a configuration file says, or why it says nothing. */
export interface ConfigReading {
  path: string;
  exists: boolean;
  /** The text as it stands in the file; null without a file that can be read. */
  raw: string | null;
  /** The text as JSON5, before `$include` and `${VAR}`; null after a syntax error. */
  parsed: unknown;
  /** Empty unless `valid`. */
  config: Config;
  valid: boolean;
  /** SHA-256 of `raw`, 64 hex digits; of "" without a file. */
  hash: string;
  issues: ConfigIssue[];
  warnings: string[];
  /** The files it was read from: its own, then those it includes. */
  files: string[];
}

/** Why a configuration cannot be used; `issues` says it key by key where there are keys. */
export class ConfigError extends Error {
  override name = "ConfigError";
  readonly issues: ConfigIssue[];
  /** `changed`: somebody else wrote the file meanwhile. `unwritable`: nothing is wrong with it. */
  readonly reason: "invalid" | "changed" | "unwritable";

  constructor(
    problem: string | ConfigIssue[],
    { reason = "invalid", cause }: { reason?: ConfigError["reason"]; cause?: unknown } = {},
  ) {
    super(typeof problem === "string" ? problem : problem.map(formatIssue).join("\n"), { cause });
    this.issues = typeof problem === "string" ? [] : problem;
    this.reason = reason;
  }
}

/** Reads a whole text file; null when there is none. */
export type ReadText = (path: string) => Promise<string | null>;

export interface ReadOptions {
  path: string;
  /** For `${VAR}` and, through HOME, for `~` in `$include`. */
  env: Env;
  readText?: ReadText;
}

/** A configuration is text that people write. */
export const MAX_FILE_BYTES = 1024 * 1024;
const MAX_INCLUDE_DEPTH = 10;
const MAX_INCLUDES = 100;
/** Nobody reads more, and each has to be looked up in its text. */
const MAX_ISSUES = 100;

/** What the file says. Never throws for what is in it, nor for a file that cannot be read. */
export async function readConfig(options: ReadOptions): Promise<ConfigReading> {
  const { path, readText = readTextFile } = options;
  let raw: string | null;
  try {
    raw = await readText(path);
  } catch (cause) {
    const reading = await emptyReading(path);
    return invalid({ ...reading, exists: true }, [unreadable(path, cause)]);
  }
  return raw === null ? emptyReading(path) : parseConfig(raw, options);
}

/** What a text would say if it stood at `path`. */
export async function parseConfig(raw: string, options: ReadOptions): Promise<ConfigReading> {
  const { path, env, readText = readTextFile } = options;
  const sources = new Sources({ env, readText });
  const reading: ConfigReading = {
    ...await emptyReading(path),
    exists: true,
    raw,
    parsed: null,
    hash: await sha256(raw),
  };
  const tree = sources.parse(raw, path);
  if (!tree) return invalid(reading, sources.issues);
  reading.parsed = tree.value;

  const root = { file: path, path: [] };
  const resolved = await sources.resolve(tree.value, root, [resolvePath(path, {})]);
  const files = [...new Set([path, ...sources.files])];
  const config = plain(resolved);
  const issues = inReadingOrder(
    [...sources.issues, ...check(config, resolved, sources).take(MAX_ISSUES)],
    files,
  );
  if (issues.length > 0) return invalid({ ...reading, files }, issues);
  const warnings = [...unknownKeys(config).take(MAX_ISSUES)];
  return { ...reading, config: config as Config, files, warnings };
}

/**
 * As `readConfig`, of a file that must be right.
 *
 * @throws {ConfigError} with every mistake in it
 */
export async function loadConfig(options: ReadOptions): Promise<ConfigReading> {
  const reading = await readConfig(options);
  if (!reading.valid) throw new ConfigError(reading.issues);
  return reading;
}

/** One line: `file:line: key: what is wrong; what would be right`. */
export function formatIssue({ file, line, path, message, fix }: ConfigIssue): string {
  const place = line === undefined ? file : `${file}:${line}`;
  return `${[place, path, message].filter((part) => part !== "").join(": ")}${
    fix === undefined ? "" : `; ${fix}`
  }`;
}

/** The words for a value that does not fit its setting; never the value itself. */
export function describeProblem({ message, path, unexpected, missing, schema }: Problem): {
  message: string;
  fix?: string;
} {
  if (unexpected !== undefined) {
    const near = nearest(unexpected, settingNames(path));
    return {
      message: "unknown key",
      fix: near === undefined ? "remove it" : `did you mean ${formatKey([...path, near])}?`,
    };
  }
  if (missing !== undefined) return { message: "missing", fix: `add it as ${wanted(schema)}` };
  return { message, ...(schema && { fix: `use ${wanted(schema)}` }) };
}

/** SHA-256 of a text in UTF-8, 64 hex digits. */
export async function sha256(text: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Reads a whole text file; null when there is none.
 *
 * @throws {Error} larger than `MAX_FILE_BYTES`, not UTF-8, or what the system says
 */
export async function readTextFile(path: string): Promise<string | null> {
  let file: Deno.FsFile;
  try {
    file = await Deno.open(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  }
  using _ = file;
  // Not by its size: a pipe has none, and a file may grow.
  let buffer = new Uint8Array(16 * 1024);
  let length = 0;
  while (true) {
    const read = await file.read(buffer.subarray(length));
    if (read === null) break;
    length += read;
    if (length > MAX_FILE_BYTES) throw new TooLarge();
    if (length < buffer.length) continue;
    const larger = new Uint8Array(buffer.length * 2);
    larger.set(buffer);
    buffer = larger;
  }
  // The mark at the beginning stays, so that the hash is that of the file.
  return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
    .decode(buffer.subarray(0, length));
}

class TooLarge extends Error {}

/** Where in which file a value stands. */
interface Origin {
  file: string;
  path: KeyPath;
}

/** A value that remembers where each of its parts came from. */
interface Sourced {
  origin: Origin;
  content: Map<string, Sourced> | Sourced[] | { scalar: unknown };
}

/** The files one configuration is made of, and what is wrong with them. */
class Sources {
  readonly issues: ConfigIssue[] = [];
  readonly files: string[] = [];
  readonly #texts = new Map<string, MeasuredText>();
  readonly #env: Env;
  readonly #readText: ReadText;

  constructor({ env, readText }: { env: Env; readText: ReadText }) {
    this.#env = env;
    this.#readText = readText;
  }

  /** @returns undefined after a syntax error, which is then in `issues` */
  parse(raw: string, file: string): { value: unknown } | undefined {
    this.#texts.set(file, new MeasuredText(raw));
    try {
      return { value: parseText(raw) };
    } catch (error) {
      if (!(error instanceof TextError)) throw error;
      const { message, position, fix } = error;
      this.issues.push({ path: "", message, file, ...position, fix });
      return undefined;
    }
  }

  /** @param chain the files that led here, this one last */
  async resolve(value: unknown, origin: Origin, chain: string[]): Promise<Sourced> {
    if (typeof value === "string") {
      return { origin, content: { scalar: this.#substitute(value, origin) } };
    }
    if (typeof value !== "object" || value === null) return { origin, content: { scalar: value } };
    if (Array.isArray(value)) {
      const items: Sourced[] = [];
      for (const [index, item] of value.entries()) {
        items.push(await this.resolve(item, within(origin, index), chain));
      }
      return { origin, content: items };
    }
    const { $include: include, ...own } = value as Record<string, unknown>;
    const entries = new Map<string, Sourced>();
    for (const [key, one] of Object.entries(own)) {
      entries.set(key, await this.resolve(one, within(origin, key), chain));
    }
    const here: Sourced = { origin, content: entries };
    if (include === undefined) return here;
    return await this.#include(include, here, chain);
  }

  place({ file, path }: Origin): { file: string } & Partial<Position> {
    const text = this.#texts.get(file);
    return { file, ...text?.locate(path) };
  }

  fail(origin: Origin, message: string, fix: string): void {
    if (this.issues.length >= MAX_ISSUES) return;
    this.issues.push({ path: formatKey(origin.path), message, ...this.place(origin), fix });
  }

  async #include(include: unknown, here: Sourced, chain: string[]): Promise<Sourced> {
    const origin = within(here.origin, "$include");
    const names = Array.isArray(include) ? include : [include];
    if (!names.every((name) => typeof name === "string" && name.trim() !== "")) {
      this.fail(origin, "must be a file name or a list of them", 'write "./other.json5"');
      return here;
    }
    let merged: Sourced | undefined;
    for (const [index, name] of (names as string[]).entries()) {
      const at = Array.isArray(include) ? within(origin, index) : origin;
      const included = await this.#load(name, at, chain);
      if (!included) continue;
      const isAlone = names.length === 1 && (here.content as Map<string, Sourced>).size === 0;
      if (!isAlone && !(included.content instanceof Map)) {
        this.fail(
          at,
          `${included.origin.file} does not hold an object`,
          "only an object can be merged with others",
        );
        continue;
      }
      merged = merged ? merge(merged, included) : included;
    }
    return merged ? merge(merged, here) : here;
  }

  async #load(name: string, origin: Origin, chain: string[]): Promise<Sourced | undefined> {
    const refuse = (message: string, fix: string) => void this.fail(origin, message, fix);
    const written = this.#substitute(name, origin);
    const folder = origin.file.slice(0, origin.file.lastIndexOf("/") + 1) || "./";
    let file: string;
    try {
      const path = resolvePath(written, { home: this.#env.HOME });
      file = path.startsWith("/") ? path : resolvePath(`${folder}${path}`, {});
    } catch {
      return refuse(
        `cannot include ${written}: there is no home directory`,
        "write the whole path",
      );
    }
    if (chain.includes(file)) {
      return refuse(
        `cannot include ${file}: the includes go in a circle`,
        `break ${[...chain, file].join(" → ")}`,
      );
    }
    if (chain.length > MAX_INCLUDE_DEPTH) {
      return refuse(
        `cannot include ${file}: includes are nested more than ${MAX_INCLUDE_DEPTH} deep`,
        "include it from a file further up",
      );
    }
    if (this.files.length >= MAX_INCLUDES) {
      return refuse(
        `cannot include ${file}: more than ${MAX_INCLUDES} includes`,
        "put their contents into fewer files",
      );
    }
    this.files.push(file);
    let raw: string | null;
    try {
      raw = await this.#readText(file);
    } catch (cause) {
      const { message, fix } = unreadable(file, cause);
      return refuse(`cannot include ${file}: ${message}`, fix!);
    }
    if (raw === null) {
      return refuse(`cannot include ${file}: there is no such file`, "correct the name");
    }
    const tree = this.parse(raw, file);
    return tree && await this.resolve(tree.value, { file, path: [] }, [...chain, file]);
  }

  /** `${VAR}` is the variable's value, `$${VAR}` is the text `${VAR}`. */
  #substitute(text: string, origin: Origin): string {
    return text.replace(/(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)\}/g, (whole, escape, name) => {
      if (escape !== "") return whole.slice(1);
      const value = Object.hasOwn(this.#env, name) ? this.#env[name] : undefined;
      if (value !== undefined) return value;
      this.fail(
        origin,
        `environment variable ${name} is not set`,
        `set ${name}, or write $\${${name}} for the text itself`,
      );
      return whole;
    });
  }
}

function inReadingOrder(issues: ConfigIssue[], files: string[]): ConfigIssue[] {
  return issues.toSorted((a, b) =>
    files.indexOf(a.file) - files.indexOf(b.file) || (a.line ?? 0) - (b.line ?? 0) ||
    (a.column ?? 0) - (b.column ?? 0)
  );
}

/** Everything wrong with the values, at the place where each was written. */
function* check(config: unknown, root: Sourced, sources: Sources): Generator<ConfigIssue> {
  const known = new Set(sources.issues.map(({ path }) => path));
  const wrong = problems(config, Config);
  for (const problem of wrong) {
    const { path, unexpected, missing } = problem;
    const key = [...path, ...[unexpected ?? missing ?? []].flat()];
    if (known.has(formatKey(key))) continue; // what is wrong with it was said already
    const place = sources.place(originOf(root, key));
    yield { path: formatKey(key), ...place, ...describeProblem(problem) };
  }
  if (wrong.length > 0) return;
  for (const { path, message, fix } of crossFieldIssues(config as Config)) {
    yield { path: formatKey(path), message, ...sources.place(originOf(root, path)), fix };
  }
}

/** Where the value at a path was written, or the nearest that holds it. */
function originOf(root: Sourced, path: KeyPath): Origin {
  let at = root;
  for (const key of path) {
    const { content } = at;
    const next = content instanceof Map
      ? content.get(String(key))
      : Array.isArray(content)
      ? content[Number(key)]
      : undefined;
    if (!next) break;
    at = next;
  }
  return at.origin;
}

/** Objects are merged key by key; of everything else the one on top stays. */
function merge(under: Sourced, over: Sourced): Sourced {
  if (!(under.content instanceof Map) || !(over.content instanceof Map)) {
    const isEmpty = over.content instanceof Map && over.content.size === 0;
    return isEmpty ? under : over;
  }
  const content = new Map(under.content);
  for (const [key, value] of over.content) {
    const below = content.get(key);
    content.set(
      key,
      below?.content instanceof Map && value.content instanceof Map ? merge(below, value) : value,
    );
  }
  return { origin: over.origin, content };
}

function plain({ content }: Sourced): unknown {
  if (content instanceof Map) {
    return Object.fromEntries([...content].map(([key, value]) => [key, plain(value)]));
  }
  return Array.isArray(content) ? content.map(plain) : content.scalar;
}

function within({ file, path }: Origin, key: string | number): Origin {
  return { file, path: [...path, key] };
}

/** Where the specification keeps and ignores keys it does not know (§12). */
const LENIENT_SECTIONS = ["gateway", "discovery", "browser", "nodeHost"];

/** A misspelt key in a lenient section has no effect, which its author should know. */
function* unknownKeys(config: unknown, path: KeyPath = []): Generator<string> {
  if (typeof config !== "object" || config === null || Array.isArray(config)) return;
  const { properties, additionalProperties } = schemaAt(path) ?? {};
  if (!properties || additionalProperties) return;
  for (const [key, value] of Object.entries(config)) {
    if (path.length === 0 && !LENIENT_SECTIONS.includes(key)) continue;
    const at = [...path, key];
    if (Object.hasOwn(properties, key)) {
      yield* unknownKeys(value, at);
      continue;
    }
    const near = nearest(key, settingNames(path));
    yield `${formatKey(at)} is not a setting and has no effect` +
      (near === undefined ? "" : `; did you mean ${formatKey([...path, near])}?`);
  }
}

/** What a schema takes, for people. */
function wanted(schema: Problem["schema"] = {}): string {
  const { type, enum: values, minimum, maximum, examples, default: usual } = schema;
  const example = usual === undefined || typeof usual === "object" ? "" : `, such as ${usual}`;
  if (Array.isArray(values)) return `one of ${values.map((one) => JSON.stringify(one)).join(", ")}`;
  switch (type) {
    case "boolean":
      return "true or false";
    case "integer":
    case "number": {
      const range = minimum === undefined
        ? ""
        : maximum === undefined
        ? ` from ${minimum} up`
        : ` from ${minimum} to ${maximum}`;
      return `a ${type === "integer" ? "whole " : ""}number${range}${example}`;
    }
    case "array":
      return "a list: [ … ]";
    case "object":
      return "an object: { … }";
    default:
      return Array.isArray(examples)
        ? `${typeof examples[0] === "string" ? "text like " : ""}${JSON.stringify(examples[0])}`
        : "text in quotes";
  }
}

async function emptyReading(path: string): Promise<ConfigReading> {
  return {
    path,
    exists: false,
    raw: null,
    parsed: {},
    config: {},
    valid: true,
    hash: await sha256(""),
    issues: [],
    warnings: [],
    files: [path],
  };
}

function invalid(reading: ConfigReading, issues: ConfigIssue[]): ConfigReading {
  return { ...reading, config: {}, valid: false, issues };
}

function unreadable(file: string, cause: unknown): ConfigIssue {
  const issue = (message: string, fix: string) => ({ path: "", message, file, fix });
  if (cause instanceof TooLarge) {
    return issue("larger than 1 MiB", "a configuration is smaller; look what is in it");
  }
  if (cause instanceof TypeError) return issue("not UTF-8 text", "save it as UTF-8");
  if (cause instanceof Deno.errors.PermissionDenied) {
    return issue("no permission to read it", "let it belong to you: chown, and chmod 600");
  }
  if (cause instanceof Deno.errors.IsADirectory) {
    return issue("it is a directory", "name a file");
  }
  return issue(
    `cannot be read: ${cause instanceof Error ? cause.message : cause}`,
    "look at the file and the disk it is on",
  );
}
