// Changes to the configuration file that leave the rest of it as its author wrote it: comments,
// layout, `$include` and `${VAR}`. An edit is worked out as the value the text shall have, and only
// what differs is replaced in the text; the result is read again before anybody sees it.

import JSON5 from "json5";
import {
  checkFit,
  endOfBlockComment,
  endOfLine,
  isLineEnd,
  isSpace,
  measure,
  memberOf,
  type MemberSpan,
  parseText,
  TextError,
  type ValueSpan,
} from "./document.ts";
import { tryLock } from "./file_lock.ts";
import {
  ConfigError,
  type ConfigReading,
  MAX_FILE_BYTES,
  parseConfig,
  readTextFile,
  sha256,
} from "./load.ts";
import type { Env } from "./paths.ts";
import { formatKey, type KeyPath, redact, REDACTED } from "./schema.ts";

/**
 * The text with one key set; objects on the way are made where they are missing.
 *
 * @param value anything JSON5 can say
 * @throws {ConfigError} the text is not JSON5, or the path leads through something else
 */
export function setKey(raw: string, path: KeyPath, value: unknown): string {
  const have = valueOf(raw);
  return rewritten(raw, have, withKey(have, path, value, path));
}

/** The text without one key; unchanged where the key is not there. */
export function unsetKey(raw: string, path: KeyPath): string {
  const have = valueOf(raw);
  return rewritten(raw, have, withoutKey(have, path));
}

/**
 * The text after a merge patch (RFC 7396): `null` deletes, arrays replace.
 *
 * @param patch an object
 */
export function mergePatch(raw: string, patch: unknown): string {
  const have = valueOf(raw);
  textErrorsAsConfigErrors(() => checkFit(patch));
  return rewritten(raw, have, patched(have, patch));
}

/** The text with every secret replaced; null where the text is not JSON5 and nobody can tell. */
export function redactText(raw: string): string | null {
  try {
    const have = parseText(raw);
    return rewritten(raw, have, redact(have));
  } catch (error) {
    if (error instanceof TextError) return null;
    throw error;
  }
}

/** The text with the secrets it was shown without, taken from the text it was made from. */
export function restoreSecrets(raw: string, original: string): string {
  const have = valueOf(raw);
  return rewritten(raw, have, restored(have, valueOf(original)));
}

export interface WriteOptions {
  env: Env;
  /** The `hash` of the reading the new text is based on; another one in the file is refused. */
  expectedHash?: string;
  /** Keep the text that is replaced as `<path>.bak`. */
  backup?: boolean;
}

/**
 * Puts a whole new text in the place of the file. It is checked first, in full; the last valid text
 * before it stays as `<path>.last-good`. Readers see the old text or the new one, never half of it.
 *
 * @throws {ConfigError} the text is invalid, the file changed meanwhile, or it is a symbolic link;
 *   nothing is written then
 */
export async function writeConfig(
  path: string,
  text: string,
  { env, expectedHash, backup = false }: WriteOptions,
): Promise<ConfigReading> {
  if (new TextEncoder().encode(text).length > MAX_FILE_BYTES) {
    throw new ConfigError(`Cannot write ${path}: the text is larger than 1 MiB`);
  }
  const reading = await parseConfig(text, { path, env });
  if (!reading.valid) throw new ConfigError(reading.issues);
  try {
    await putInPlace(path, text, { env, expectedHash, backup });
  } catch (cause) {
    if (cause instanceof ConfigError) throw cause;
    const why = cause instanceof Error ? cause.message : cause;
    throw new ConfigError(`Cannot write ${path}: ${why}`, { reason: "unwritable", cause });
  }
  return reading;
}

async function putInPlace(
  path: string,
  text: string,
  { env, expectedHash, backup }: WriteOptions,
): Promise<void> {
  const folder = path.slice(0, path.lastIndexOf("/")) || (path.startsWith("/") ? "/" : ".");
  await Deno.mkdir(folder, { recursive: true, mode: 0o700 });
  await using _ = await lockFolder(folder, path);
  await refuseLink(path);
  const before = await readTextFile(path);
  const hash = await sha256(before ?? "");
  if (expectedHash !== undefined && expectedHash !== hash) {
    throw new ConfigError("config changed since last load; re-run config.get and retry", {
      reason: "changed",
    });
  }
  if (before === text) return;
  if (before !== null) {
    const wasValid = (await parseConfig(before, { path, env })).valid;
    if (wasValid) await replaceFile(`${path}.last-good`, before);
    if (backup || !wasValid) await replaceFile(`${path}.bak`, before);
  }
  await replaceFile(path, text);
}

/** How long a writer waits for another one, which takes milliseconds. */
const LOCK_DEADLINE_MS = 5_000;
const LOCK_RETRY_MS = 20;

/** Programs that write in one folder take turns; the kernel frees the lock of one that died. */
async function lockFolder(folder: string, path: string): Promise<AsyncDisposable> {
  const handle = await Deno.open(folder);
  for (let waitedMs = 0; !(await tryLock(handle)); waitedMs += LOCK_RETRY_MS) {
    if (waitedMs >= LOCK_DEADLINE_MS) {
      handle.close();
      throw new ConfigError(`Cannot write ${path}: another program holds ${folder}`, {
        reason: "unwritable",
      });
    }
    await new Promise((resolve) => setTimeout(resolve, LOCK_RETRY_MS));
  }
  return {
    async [Symbol.asyncDispose]() {
      // A rename counts once the folder is on disk; a file system that cannot promise it still did it.
      await handle.sync().catch(() => {});
      handle.close();
    },
  };
}

/** A link may lead out of the folder that only its owner can write. */
async function refuseLink(path: string): Promise<void> {
  let target: string;
  try {
    target = await Deno.readLink(path);
  } catch {
    return; // no link: a file, or nothing yet
  }
  throw new ConfigError(
    `Cannot write ${path}: it is a symbolic link to ${target}; ` +
      `edit that file, or set ZERO_CONFIG_PATH to it`,
    { reason: "unwritable" },
  );
}

async function replaceFile(path: string, text: string): Promise<void> {
  const temporary = `${path}.${crypto.randomUUID()}.tmp`;
  try {
    {
      using file = await Deno.open(temporary, { write: true, createNew: true, mode: 0o600 });
      const bytes = new TextEncoder().encode(text);
      for (let done = 0; done < bytes.length;) done += await file.write(bytes.subarray(done));
      await file.sync();
    }
    await Deno.rename(temporary, path);
  } catch (error) {
    await Deno.remove(temporary).catch(() => {}); // it may never have been made
    throw error;
  }
}

function valueOf(raw: string): unknown {
  return textErrorsAsConfigErrors(() => parseText(raw));
}

function textErrorsAsConfigErrors<T>(work: () => T): T {
  try {
    return work();
  } catch (cause) {
    if (!(cause instanceof TextError)) throw cause;
    const { message, position: { line }, fix } = cause;
    throw new ConfigError(`Cannot edit the configuration: line ${line}: ${message}; ${fix}`, {
      cause,
    });
  }
}

// What the value shall be.

function withKey(have: unknown, [key, ...rest]: KeyPath, value: unknown, whole: KeyPath): unknown {
  if (key === undefined) return value;
  if (have === undefined || have === null) have = typeof key === "number" ? [] : {};
  if (Array.isArray(have)) {
    const index = Number(key);
    if (!Number.isInteger(index) || index < 0 || index > have.length) {
      throw new ConfigError(
        `Cannot set ${formatKey(whole)}: the list has ${have.length} items, so ` +
          `${key} is not one of them`,
      );
    }
    return have.toSpliced(index, 1, withKey(have[index], rest, value, whole));
  }
  if (!isObject(have)) {
    const at = formatKey(whole.slice(0, whole.length - rest.length - 1));
    throw new ConfigError(`Cannot set ${formatKey(whole)}: ${at || "the file"} is not an object`);
  }
  const below = Object.hasOwn(have, key) ? have[key] : undefined;
  return { ...have, [key]: withKey(below, rest, value, whole) };
}

function withoutKey(have: unknown, [key, ...rest]: KeyPath): unknown {
  if (key === undefined || typeof have !== "object" || have === null) return have;
  if (!Object.hasOwn(have, key)) return have;
  if (Array.isArray(have)) {
    const index = Number(key);
    return rest.length === 0
      ? have.toSpliced(index, 1)
      : have.with(index, withoutKey(have[index], rest));
  }
  const { [key]: one, ...others } = have as Record<string, unknown>;
  return rest.length === 0 ? others : { ...have, [key]: withoutKey(one, rest) };
}

function patched(have: unknown, patch: unknown): unknown {
  if (!isObject(patch)) return patch;
  const result: Record<string, unknown> = isObject(have) ? { ...have } : {};
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete result[key];
    else result[key] = patched(Object.hasOwn(result, key) ? result[key] : undefined, value);
  }
  return result;
}

function restored(have: unknown, original: unknown): unknown {
  if (have === REDACTED && original !== undefined) return original;
  if (Array.isArray(have)) {
    return have.map((one, index) =>
      restored(one, Array.isArray(original) ? original[index] : undefined)
    );
  }
  if (!isObject(have)) return have;
  return Object.fromEntries(
    Object.entries(have).map(([key, one]) => {
      const below = isObject(original) && Object.hasOwn(original, key) ? original[key] : undefined;
      return [key, restored(one, below)];
    }),
  );
}

// How the text comes to say it.

/** The text that says `want` where it said `have`, and is otherwise the same. */
function rewritten(raw: string, have: unknown, want: unknown): string {
  if (!isObject(want)) throw new ConfigError("Cannot edit the configuration: it is no object");
  textErrorsAsConfigErrors(() => checkFit(want));
  const text = new Editor(raw).change(have, want);
  if (!isEqual(parseText(text), want)) {
    throw new Error("an edit of the configuration did not say what was wanted");
  }
  return text;
}

/** Larger things are written anew when they change: each step reads the whole text. */
const MAX_STEPS = 1_000;

/** How the author of a text writes. */
interface Style {
  indent: string;
  lineEnd: string;
  quote: '"' | "'";
  /** Keys stand in quotes even where they need not. */
  hasQuotedKeys: boolean;
  /** The last entry of an object over several lines has a comma too. */
  hasTrailingCommas: boolean;
  /** An object whose layout nothing else decides goes over several lines. */
  isMultiLine: boolean;
}

/** One text on its way to another value. Every step measures the text anew, so none is stale. */
class Editor {
  #text: string;
  readonly #style: Style;

  constructor(text: string) {
    this.#text = text;
    this.#style = styleOf(text);
  }

  change(have: unknown, want: Record<string, unknown>): string {
    if (!measure(this.#text)) {
      if (Object.keys(want).length > 0) this.#begin(want);
    } else this.#reconcile([], have, want);
    return this.#text;
  }

  #begin(want: unknown): void {
    const { lineEnd } = this.#style;
    const hasOpenLine = this.#text !== "" && this.#text !== "\ufeff" &&
      !isLineEnd(this.#text.at(-1)!);
    this.#text += `${hasOpenLine ? lineEnd : ""}${written(want, "", this.#style)}${lineEnd}`;
  }

  #reconcile(path: KeyPath, have: unknown, want: unknown): void {
    if (isEqual(have, want)) return;
    if (Array.isArray(have) && Array.isArray(want)) return this.#reconcileItems(path, have, want);
    if (!isObject(have) || !isObject(want)) return this.#replace(path, want);
    if (Object.keys(have).length + Object.keys(want).length > MAX_STEPS) {
      return this.#replace(path, want);
    }
    for (const key of Object.keys(have)) {
      if (!Object.hasOwn(want, key)) this.#remove(path, key);
    }
    for (const [key, value] of Object.entries(want)) {
      if (Object.hasOwn(have, key)) this.#reconcile([...path, key], have[key], value);
      else this.#add(path, key, value);
    }
  }

  /** Items that are still wanted stay with their comments; others are changed, go, or come. */
  #reconcileItems(path: KeyPath, have: unknown[], want: unknown[]): void {
    if (have.length + want.length > MAX_STEPS) return this.#replace(path, want);
    const occurs = (value: unknown, list: unknown[], from: number) =>
      list.slice(from).some((one) => isEqual(one, value));
    let old = 0;
    let at = 0;
    while (old < have.length || at < want.length) {
      const isOldWanted = old < have.length && occurs(have[old], want, at);
      const isNew = at < want.length && !occurs(want[at], have, old);
      if (old < have.length && at < want.length && isEqual(have[old], want[at])) old++, at++;
      else if (old < have.length && !isOldWanted && isNew) {
        this.#reconcile([...path, at], have[old++], want[at++]);
      } else if (old < have.length && !isOldWanted) {
        this.#remove(path, at);
        old++;
      } else {
        this.#add(path, at, want[at]);
        at++;
      }
    }
  }

  #replace(path: KeyPath, want: unknown): void {
    const { start, end } = this.#valueAt(path);
    const style = { ...this.#style, isMultiLine: this.#isMultiLineAt(path) };
    this.#splice(start, end, written(want, this.#indentAt(start), style));
  }

  /** Removes an entry, its comma, and what is said about it at the end of its line. */
  #remove(path: KeyPath, key: string | number): void {
    const isRepeated = () => memberOf(this.#valueAt(path), key) !== undefined;
    do this.#removeOne(path, key); while (typeof key === "string" && isRepeated());
  }

  #removeOne(path: KeyPath, key: string | number): void {
    const container = this.#valueAt(path);
    const member = memberOf(container, key)!;
    const index = container.members.indexOf(member);
    const before = container.members[index - 1];
    const isLast = index === container.members.length - 1;
    // Between the value and its comma there may be a comment, which goes with the entry.
    let end = member.afterComma ?? member.value.end;
    const lineStart = this.#lineStart(member.start);
    const isAlone = this.#text.slice(lineStart, member.start).trim() === "";
    const restEnd = this.#endOfRemarks(end);
    const endsLine = restEnd < this.#text.length && isLineEnd(this.#text[restEnd]);

    let start = member.start;
    if (isAlone && endsLine) {
      start = lineStart;
      end = restEnd + (this.#text.startsWith("\r\n", restEnd) ? 2 : 1);
    } else if (!isLast) {
      while (end < this.#text.length && /[ \t]/.test(this.#text[end])) end++;
    } else if (before) {
      const from = before.afterComma ?? before.value.end;
      if (this.#text.slice(from, start).trim() === "") start = from;
    }
    this.#splice(start, end, "");
    const dangling = isLast && before?.afterComma !== undefined && member.afterComma === undefined;
    if (dangling) this.#splice(before.afterComma! - 1, before.afterComma!, "");
    if (container.members.length === 1) this.#collapse(path);
  }

  /** A container that has become empty, without even a comment, closes up. */
  #collapse(path: KeyPath): void {
    const { start, end } = this.#valueAt(path);
    if (this.#text.slice(start + 1, end - 1).trim() === "") this.#splice(start + 1, end - 1, "");
  }

  /** @param key of an entry, which goes to the end; or the index an item will have */
  #add(path: KeyPath, key: string | number, value: unknown): void {
    const container = this.#valueAt(path);
    const { members } = container;
    if (members.length === 0) this.#addFirst(path, container, key, value);
    else if (key === 0) this.#addBefore(container, members[0], key, value);
    else {this.#addAfter(container, typeof key === "number" ? members[key - 1] : members.at(-1)!, {
        key,
        value,
      });}
  }

  #addAfter(
    container: ValueSpan,
    member: MemberSpan,
    { key, value }: { key: string | number; value: unknown },
  ): void {
    const indent = this.#ownLineIndent(container, member);
    const end = member.afterComma ?? member.value.end;
    const hasComma = member.afterComma !== undefined;
    const comma = hasComma ? "," : "";
    if (indent === undefined) {
      const entry = this.#entry(container, key, value, this.#indentAt(member.start), false);
      this.#splice(end, end, `${hasComma ? "" : ","} ${entry}${comma}`);
      return;
    }
    const entry = this.#entry(container, key, value, indent, true);
    const at = this.#endOfRemarks(end);
    this.#splice(at, at, `${this.#style.lineEnd}${indent}${entry}${comma}`);
    if (!hasComma) this.#splice(end, end, ",");
  }

  #addBefore(
    container: ValueSpan,
    member: MemberSpan,
    key: string | number,
    value: unknown,
  ): void {
    const indent = this.#ownLineIndent(container, member);
    if (indent === undefined) {
      const entry = this.#entry(container, key, value, this.#indentAt(member.start), false);
      this.#splice(member.start, member.start, `${entry}, `);
      return;
    }
    const at = this.#endOfRemarks(container.start + 1);
    const entry = this.#entry(container, key, value, indent, true);
    this.#splice(at, at, `${this.#style.lineEnd}${indent}${entry},`);
  }

  /** What a member's line begins with; undefined where it shares the line with others. */
  #ownLineIndent(container: ValueSpan, member: MemberSpan): string | undefined {
    const lineStart = this.#lineStart(member.start);
    const before = this.#text.slice(lineStart, member.start);
    return lineStart > container.start && before.trim() === "" ? before : undefined;
  }

  #addFirst(path: KeyPath, container: ValueSpan, key: string | number, value: unknown): void {
    const { lineEnd, indent, hasTrailingCommas } = this.#style;
    const isArray = container.kind === "array";
    const inner = this.#text.slice(container.start + 1, container.end - 1);
    const isMultiLine = /[\n\r]/.test(inner) ||
      this.#isMultiLineAt(path) && (!isArray || isObject(value));
    const outer = this.#indentAt(container.start);
    const entry = this.#entry(container, key, value, outer + indent, isMultiLine);
    const remarks = inner.trimEnd();
    const comma = hasTrailingCommas ? "," : "";
    const replacement = isMultiLine
      ? `${remarks}${lineEnd}${outer}${indent}${entry}${comma}${lineEnd}${outer}`
      : isArray
      ? `${remarks}${remarks === "" ? "" : " "}${entry}`
      : `${remarks} ${entry} `;
    this.#splice(container.start + 1, container.end - 1, replacement);
  }

  #entry(
    container: ValueSpan,
    key: string | number,
    value: unknown,
    indent: string,
    isMultiLine: boolean,
  ): string {
    const style = { ...this.#style, isMultiLine };
    const text = written(value, indent, style);
    return container.kind === "array" ? text : `${writtenKey(String(key), style)}: ${text}`;
  }

  #valueAt(path: KeyPath): ValueSpan {
    let value = measure(this.#text)!;
    for (const key of path) value = memberOf(value, key)!.value;
    return value;
  }

  /** Whether an object at this place goes over several lines: when the one around it does. */
  #isMultiLineAt(path: KeyPath): boolean {
    if (path.length === 0) return this.#style.isMultiLine;
    const { start, end } = this.#valueAt(path.slice(0, -1));
    return /[\n\r]/.test(this.#text.slice(start, end));
  }

  /** After the comments that stand behind an entry on its own line. */
  #endOfRemarks(from: number): number {
    let at = from;
    let end = from;
    while (at < this.#text.length && !isLineEnd(this.#text[at])) {
      if (this.#text.startsWith("//", at)) return endOfLine(this.#text, at);
      if (this.#text.startsWith("/*", at)) {
        const after = endOfBlockComment(this.#text, at);
        if (/[\n\r]/.test(this.#text.slice(at, after))) return end; // speaks of what follows
        at = end = after;
      } else if (isSpace(this.#text[at])) at++;
      else return end;
    }
    return at;
  }

  #lineStart(at: number): number {
    while (at > 0 && !isLineEnd(this.#text[at - 1])) at--;
    return at;
  }

  /** The white space that the line of an offset begins with. */
  #indentAt(at: number): string {
    return /^[\t ]*/.exec(this.#text.slice(this.#lineStart(at), at))![0];
  }

  #splice(start: number, end: number, replacement: string): void {
    this.#text = this.#text.slice(0, start) + replacement + this.#text.slice(end);
  }
}

function styleOf(text: string): Style {
  const lineEnd = /\r\n|[\n\r]/.exec(text)?.[0] ?? "\n";
  const root = measure(text);
  if (!root) {
    return {
      indent: "  ",
      lineEnd,
      quote: '"',
      hasQuotedKeys: true,
      hasTrailingCommas: false,
      isMultiLine: true,
    };
  }
  const members = [...membersOf(root)];
  const isQuoted = ({ start }: MemberSpan) => text[start] === '"' || text[start] === "'";
  const entries = members.filter(({ key }) => typeof key === "string");
  const lastOnes = structuresOf(root).filter(({ start, end }) =>
    /[\n\r]/.test(text.slice(start, end))
  ).flatMap(({ members }) => members.slice(-1));
  const quotes = [...entries, ...members.map(({ value }) => value)]
    .map(({ start }) => text[start]).filter((char) => char === '"' || char === "'");
  const body = text.slice(root.start, root.end);
  return {
    lineEnd,
    indent: /[\n\r]([\t ]+)(?=[^\s/])/.exec(body)?.[1] ?? "  ",
    quote: quotes.filter((char) => char === "'").length > quotes.length / 2 ? "'" : '"',
    hasQuotedKeys: entries.length === 0 || entries.filter(isQuoted).length > entries.length / 2,
    hasTrailingCommas: lastOnes.some(({ afterComma }) => afterComma !== undefined),
    isMultiLine: /[\n\r]/.test(body) || entries.length === 0,
  };
}

function* membersOf(value: ValueSpan): Generator<MemberSpan> {
  for (const member of value.members) {
    yield member;
    yield* membersOf(member.value);
  }
}

function structuresOf(root: ValueSpan): ValueSpan[] {
  return [root, ...membersOf(root).map(({ value }) => value)]
    .filter(({ kind }) => kind !== "scalar");
}

/** @param indent of the line the value begins on */
function written(value: unknown, indent: string, style: Style): string {
  if (typeof value === "string") return writtenText(value, style);
  if (Array.isArray(value)) {
    const items = value.map((item) => written(item, indent + style.indent, style));
    const isShort = items.join(", ").length <= 72 && !value.some((item) => isObject(item));
    if (!style.isMultiLine || isShort) return `[${items.join(", ")}]`;
    return block("[", "]", items, indent, style);
  }
  if (isObject(value)) {
    const entries = Object.entries(value).map(([key, one]) =>
      `${writtenKey(key, style)}: ${written(one, indent + style.indent, style)}`
    );
    if (entries.length === 0) return "{}";
    return style.isMultiLine
      ? block("{", "}", entries, indent, style)
      : `{ ${entries.join(", ")} }`;
  }
  const text = JSON5.stringify(value);
  if (text === undefined) throw new ConfigError("Cannot write a value that JSON5 cannot say");
  return text;
}

function block(
  open: string,
  close: string,
  lines: string[],
  indent: string,
  { indent: step, lineEnd, hasTrailingCommas }: Style,
): string {
  const inner = lines.map((line) => `${lineEnd}${indent}${step}${line}`).join(",");
  return `${open}${inner}${hasTrailingCommas ? "," : ""}${lineEnd}${indent}${close}`;
}

function writtenKey(key: string, style: Style): string {
  const needsQuotes = !/^[A-Za-z_$][\w$]*$/.test(key);
  return style.hasQuotedKeys || needsQuotes ? writtenText(key, style) : key;
}

function writtenText(text: string, { quote }: Style): string {
  return quote === '"' ? JSON.stringify(text) : JSON5.stringify(text, { quote });
}

function isEqual(a: unknown, b: unknown): boolean {
  if (a === b || Number.isNaN(a) && Number.isNaN(b)) return true;
  if (Array.isArray(a)) {
    return Array.isArray(b) && a.length === b.length &&
      a.every((one, index) => isEqual(one, b[index]));
  }
  if (!isObject(a) || !isObject(b)) return false;
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length &&
    keys.every((key) => Object.hasOwn(b, key) && isEqual(a[key], b[key]));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
