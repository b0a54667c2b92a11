// JSON5 text as a document: where each key and value stands. The values themselves come from json5;
// this only measures a text json5 has accepted, so that mistakes can name their line (load.ts) and
// edits can touch nothing but what they change (edit.ts).

import JSON5 from "json5";
import type { KeyPath } from "./schema.ts";

/** Offsets are UTF-16 code units from the beginning of the text; `end` is the first one after. */
export interface Span {
  start: number;
  end: number;
}

export interface ValueSpan extends Span {
  kind: "object" | "array" | "scalar";
  members: MemberSpan[];
}

/** An entry of an object or an item of an array. */
export interface MemberSpan {
  key: string | number;
  /** Where the key begins; of an item, its value. */
  start: number;
  value: ValueSpan;
  /** The first offset after its comma, if it has one. */
  afterComma?: number;
}

/** From 1. */
export interface Position {
  line: number;
  column: number;
}

/** A text that is no configuration whatever its values. */
export class TextError extends Error {
  override name = "TextError";

  constructor(message: string, readonly position: Position, readonly fix: string) {
    super(message);
  }
}

/** Deeper than any configuration; keeps recursion over one within the stack. */
const MAX_DEPTH = 64;

/**
 * The value of a text; a text without a value is an empty configuration.
 *
 * @throws {TextError} not JSON5, nested more than 64 deep, or a key `__proto__`
 */
export function parseText(text: string): unknown {
  if (skipTrivia(text, 0) === text.length && isClosed(text)) return {};
  let value: unknown;
  try {
    value = JSON5.parse(text);
  } catch (cause) {
    throw syntaxError(text, cause);
  }
  checkFit(value, (path) => new MeasuredText(text).locate(path));
  return value;
}

/**
 * Refuses a value that no text of a configuration can say.
 *
 * @throws {TextError} nested more than 64 deep, or a key `__proto__`
 */
export function checkFit(value: unknown, place?: (path: KeyPath) => Position): void {
  const unfit = findUnfit(value, []);
  if (!unfit) return;
  // What is too deep cannot be measured; its first line will do.
  const isTooDeep = unfit.path.length >= MAX_DEPTH;
  const position = place && !isTooDeep ? place(unfit.path) : { line: 1, column: 1 };
  throw new TextError(unfit.message, position, unfit.fix);
}

/**
 * Where everything in a text stands.
 *
 * @param text one that `parseText` accepts
 * @returns undefined when there is no value, but at most comments
 */
export function measure(text: string): ValueSpan | undefined {
  const start = skipTrivia(text, 0);
  return start === text.length ? undefined : measureValue(text, start);
}

/** A text in which several places are looked up. */
export class MeasuredText {
  readonly #text: string;
  #root?: ValueSpan;

  /** @param text one that `parseText` accepts by the time of the first question */
  constructor(text: string) {
    this.#text = text;
  }

  /** Where the key at a path stands, or the nearest thing that would contain it. */
  locate(path: KeyPath): Position {
    this.#root ??= measure(this.#text);
    let at = this.#root?.start ?? 0;
    let value = this.#root;
    for (const key of path) {
      const member = value && memberOf(value, key);
      if (!member) break;
      at = member.start;
      value = member.value;
    }
    return positionOf(this.#text, at);
  }
}

/** The last one counts where a key is repeated, as in json5. */
export function memberOf(value: ValueSpan, key: string | number): MemberSpan | undefined {
  const wanted = value.kind === "array" ? Number(key) : String(key);
  return value.members.findLast((member) => member.key === wanted);
}

export function positionOf(text: string, offset: number): Position {
  const lines = text.slice(0, offset).split(/\r\n|[\n\r]/);
  return { line: lines.length, column: lines.at(-1)!.length + 1 };
}

/** The first offset from `at` on that is neither white space nor comment. */
export function skipTrivia(text: string, at: number): number {
  while (at < text.length) {
    if (isSpace(text[at])) at++;
    else if (text.startsWith("//", at)) at = endOfLine(text, at);
    else if (text.startsWith("/*", at)) at = endOfBlockComment(text, at);
    else break;
  }
  return at;
}

export function endOfLine(text: string, at: number): number {
  while (at < text.length && !isLineEnd(text[at])) at++;
  return at;
}

export function endOfBlockComment(text: string, at: number): number {
  const end = text.indexOf("*/", at + 2);
  return end === -1 ? text.length : end + 2;
}

export function isLineEnd(char: string): boolean {
  return char === "\n" || char === "\r" || char === "\u2028" || char === "\u2029";
}

export function isSpace(char: string): boolean {
  if (char > " " && char < "\u00a0") return false;
  return /\s/.test(char); // what JavaScript calls white space is what JSON5 does
}

function measureValue(text: string, start: number): ValueSpan {
  const open = text[start];
  if (open === "{" || open === "[") return measureStructure(text, start);
  const end = open === '"' || open === "'" ? endOfString(text, start) : endOfWord(text, start);
  return { kind: "scalar", start, end, members: [] };
}

function measureStructure(text: string, start: number): ValueSpan {
  const kind = text[start] === "{" ? "object" : "array";
  const close = kind === "object" ? "}" : "]";
  const members: MemberSpan[] = [];
  let at = skipTrivia(text, start + 1);
  while (text[at] !== close) {
    const memberStart = at;
    let key: string | number = members.length;
    if (kind === "object") {
      const keyEnd = text[at] === '"' || text[at] === "'"
        ? endOfString(text, at)
        : endOfWord(text, at);
      key = keyOf(text.slice(at, keyEnd));
      at = skipTrivia(text, skipTrivia(text, keyEnd) + 1);
    }
    const value = measureValue(text, at);
    const member: MemberSpan = { key, start: memberStart, value };
    at = skipTrivia(text, value.end);
    if (text[at] === ",") {
      member.afterComma = at + 1;
      at = skipTrivia(text, at + 1);
    }
    members.push(member);
  }
  return { kind, start, end: at + 1, members };
}

function keyOf(written: string): string {
  if (/^[\w$]+$/.test(written)) return written;
  return Object.keys(JSON5.parse(`{${written}:0}`))[0];
}

function endOfString(text: string, start: number): number {
  let at = start + 1;
  while (text[at] !== text[start]) at += text[at] === "\\" ? 2 : 1;
  return at + 1;
}

function endOfWord(text: string, start: number): number {
  const end = /[\s,:/\]}]/g;
  end.lastIndex = start;
  return end.exec(text)?.index ?? text.length;
}

/** A text of nothing but comments must close the last one. */
function isClosed(text: string): boolean {
  let at = 0;
  while (at < text.length) {
    const isBlock = text.startsWith("/*", at);
    if (isBlock && text.indexOf("*/", at + 2) === -1) return false;
    if (isBlock) at = endOfBlockComment(text, at);
    else if (text.startsWith("//", at)) at = endOfLine(text, at);
    else at++;
  }
  return true;
}

function findUnfit(
  value: unknown,
  path: KeyPath,
): { path: KeyPath; message: string; fix: string } | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  if (path.length >= MAX_DEPTH) {
    return {
      path,
      message: `nested more than ${MAX_DEPTH} deep`,
      fix: "write the configuration flatter",
    };
  }
  const isList = Array.isArray(value);
  for (const key of Object.keys(value)) {
    const at = [...path, isList ? Number(key) : key];
    if (key === "__proto__") {
      return { path: at, message: "__proto__ is not a key", fix: "remove it" };
    }
    const found = findUnfit((value as Record<string, unknown>)[key], at);
    if (found) return found;
  }
  return undefined;
}

function syntaxError(text: string, cause: unknown): TextError {
  const { message, lineNumber = 1, columnNumber = 1 } = cause as Error & {
    lineNumber?: number;
    columnNumber?: number;
  };
  const isAtEnd = message.includes("end of input");
  // json5 counts a line end as the beginning of the next line.
  const isLineEnd = columnNumber < 1;
  const place = { line: lineNumber - (isLineEnd ? 1 : 0), column: Math.max(1, columnNumber) };
  return new TextError(
    isAtEnd ? "the text ends too early" : "the text is not JSON5 from here on",
    isAtEnd ? positionOf(text, text.length) : place,
    isAtEnd
      ? "close every brace, bracket, quote and comment"
      : "look for a missing comma, colon or quote just before this place",
  );
}
