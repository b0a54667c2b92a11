// The structured log: one JSON object a line, in a file that rotates. Secrets are kept out by
// construction (fields hold no objects, and one function scrubs whatever is written), equal lines are
// sampled, and nothing here ever waits for the disk or throws into the caller.

import { printable, type Style } from "./terminal.ts";

export type LogLevel = "debug" | "info" | "warn" | "error";
/** What `logging.level` may be: `trace` lets through what `debug` does, `silent` nothing. */
export type LogThreshold = LogLevel | "trace" | "silent";

/** No objects: neither a frame nor a configuration can be handed to the log by mistake. */
export type LogValue = string | number | boolean | null | undefined;
/** What varies between two lines with the same message. */
export type LogFields =
  & { readonly [name: string]: LogValue }
  & {
    readonly [name in ReservedName | "token" | "password" | "secret"]?: undefined;
  };
type ReservedName = "time" | "level" | "subsystem" | "message";

export interface Log {
  /** The message is a constant text, so that equal lines are seen to be equal; the rest is fields. */
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  /** The same log under a name below this one's: `gateway` has `gateway/ws`. */
  child(subsystem: string): Log;
  /** From now on this text is never written. For the few secrets of a process, not one per peer. */
  addSecret(text: string): void;
  /** Resolves when everything logged so far is in the file, or could not be written. */
  flush(): Promise<void>;
}

/** The log as its owner holds it; disposing writes what is left. */
export interface OpenLog extends Log, AsyncDisposable {
  /** Lines below it are not written; may be changed at any time. */
  level: LogThreshold;
  /** What has happened since the log was opened. */
  readonly counts: Readonly<LogCounts>;
}

export interface LogCounts {
  /** Lines in the file. */
  written: number;
  /** Lines left out because an equal one was written ten times within ten seconds. */
  sampled: number;
  /** Lines lost because the disk did not keep up. */
  dropped: number;
  /** Attempts to write that failed. */
  failures: number;
}

export interface LogOptions {
  /** Without it lines go to `mirror` alone. */
  file?: string;
  /** `info` */
  level?: LogThreshold;
  /** What the root of the log is called: `zero`. */
  subsystem?: string;
  /** Bytes of one file (10 MiB). */
  maxBytes?: number;
  /** Older files kept beside it, as `<file>.1` (the newest) to `<file>.<maxFiles>` (5). */
  maxFiles?: number;
  /** Texts that are never written. Give the same array as long as nothing changed. */
  secrets?: () => readonly string[];
  /** Sees each line as it is written, without the line end. */
  mirror?: (line: string) => void;
  /** How long equal lines are counted together, after the first ten (10 s). */
  sampleWindowMs?: number;
  /** Told once when the file cannot be written, and again only after it could. */
  warn?: (text: string) => void;
  /** Milliseconds since the epoch. */
  now?: () => number;
}

/** Protocol §7.2, the result of `logs.tail`. */
export interface LogTail {
  file: string;
  /** Byte offset to go on from. */
  cursor: number;
  /** Bytes of the file. */
  size: number;
  lines: string[];
  /** Older lines were left out to keep to `maxBytes` or `limit`. */
  truncated: boolean;
  /** The cursor lay beyond the file or too far back: the lines do not follow the ones before. */
  reset: boolean;
}

export const REDACTED = "[redacted]";
const MAX_FILE_BYTES = 10 * 1_048_576;
const MAX_FILES = 5;
const SAMPLE_WINDOW_MS = 10_000;
const SAMPLE_LINES = 10;
/** Distinct lines watched for repetition, twice: beyond that the oldest are forgotten. */
const SAMPLE_KEYS = 2_000;
const MAX_CACHED_NAMES = 1_000;
const BATCH_MS = 100;
const BATCH_CHARS = 65_536;
/** Queued characters from which on only warnings and errors are taken, and then nothing. */
const QUEUE_CHARS = 4 * 1_048_576;
const QUEUE_HARD_CHARS = 2 * QUEUE_CHARS;
const RETRY_MS = 1_000;
const MAX_TEXT_CHARS = 8_192;
/** A shorter secret is only recognised where a value is nothing else. */
const MIN_SECRET_CHARS = 4;

const RANK: Record<LogThreshold, number> = {
  trace: 0,
  debug: 0,
  info: 1,
  warn: 2,
  error: 3,
  silent: 4,
};
const RESERVED = new Set<string>(
  ["time", "level", "subsystem", "message"] satisfies ReservedName[],
);
const SECRET_NAME = new RegExp(
  "(?:token|password|passwd|passphrase|secret|authorization|cookie|credential" +
    "|api[-_]?key|private[-_]?key)(s?)$",
  "i",
);
/** Secrets that are known by what stands before them; the group is the secret. */
const SECRET_SHAPES = new RegExp(
  [
    String.raw`[#?&][\w-]*(?:token|password|secret|key)=([^\s&#"'\\<>]+)`,
    String.raw`\bBearer\s+([\w.~+/=-]+)`,
    String.raw`\bauthorization["'\\]*\s*[:=]\s*["'\\]*(?:[a-z]+\s+)?([^\s"'\\]+)`,
  ].join("|"),
  "gi",
);

/** Opens the log. Nothing is created before the first line is written. */
export function openLog(options: LogOptions): OpenLog {
  const core = new LogCore(options);
  const root = new NamedLog(core, options.subsystem ?? "zero");
  return {
    debug: (message, fields) => root.debug(message, fields),
    info: (message, fields) => root.info(message, fields),
    warn: (message, fields) => root.warn(message, fields),
    error: (message, fields) => root.error(message, fields),
    child: (subsystem) => new NamedLog(core, subsystem),
    addSecret: (text) => core.addSecret(text),
    flush: () => core.flush(),
    get level() {
      return core.level;
    },
    set level(level) {
      core.level = level;
    },
    counts: core.counts,
    [Symbol.asyncDispose]: () => core.close(),
  };
}

/**
 * The last lines of a log file, or those after a cursor (protocol §7.2, `logs.tail`). A file that is
 * not there reads as an empty one. Only whole lines are given: what a writer is in the middle of
 * comes with the next call.
 *
 * @param cursor byte offset a former call ended at
 * @param limit most lines to give
 * @param maxBytes most bytes to read
 * @throws the error of the file system when the file is there and cannot be read
 */
export async function tailLog(
  { file, cursor, limit = 500, maxBytes = 250_000 }: {
    file: string;
    cursor?: number;
    limit?: number;
    maxBytes?: number;
  },
): Promise<LogTail> {
  using handle = await openIfThere(file);
  if (!handle) return { file, cursor: 0, size: 0, lines: [], truncated: false, reset: false };
  const { size } = await handle.stat();
  const tail = Math.max(0, size - maxBytes);
  const reset = cursor !== undefined && (cursor > size || cursor < tail);
  const start = cursor === undefined || reset ? tail : cursor;
  // One byte before, to see whether the first line is whole.
  const from = Math.max(0, start - 1);
  const bytes = await readRange(handle, from, size);
  const firstLine = start === 0 ? 0 : bytes.indexOf(LINE_END) + 1;
  const afterLastLine = bytes.lastIndexOf(LINE_END) + 1;
  const isWhole = afterLastLine > firstLine && (start === 0 || firstLine > 0);
  const text = new TextDecoder().decode(bytes.subarray(firstLine, afterLastLine));
  const lines = isWhole ? text.slice(0, -1).split("\n") : [];
  const isLongLine = start === tail && tail > 0 && afterLastLine === 0;
  return {
    file,
    cursor: afterLastLine > 0 ? from + afterLastLine : isLongLine ? size : start,
    size,
    lines: lines.slice(-limit),
    truncated: lines.length > limit || (start > 0 && (cursor === undefined || reset)),
    reset,
  };
}

/**
 * A log line for people: time, level, subsystem, message, then the fields as `name=value`. A line
 * that is none of ours is given as it is. Control characters are made visible.
 */
export function formatLogLine(line: string, style?: Style): string {
  const entry = parseLine(line);
  if (!entry) return printable(line);
  const { time, level, subsystem, message, ...fields } = entry;
  const paint = level === "error" ? style?.red : level === "warn" ? style?.yellow : undefined;
  const dim = style?.dim ?? String;
  const mark = String(level).padEnd(5);
  const pairs = Object.entries(fields).map(([name, value]) => {
    const text = typeof value === "string" && /^[^\s"=]+$/.test(value)
      ? value
      : JSON.stringify(value);
    return dim(printable(`${name}=${text}`));
  });
  const head = [
    dim(printable(String(time))),
    paint?.(mark) ?? mark,
    dim(printable(`${subsystem}:`)),
  ];
  return [...head, printable(String(message)), ...pairs].join(" ");
}

const LINE_END = "\n".charCodeAt(0);

/** A subsystem's view of the log; made per connection, so it holds nothing but a name. */
class NamedLog implements Log {
  readonly #core: LogCore;
  readonly #subsystem: string;

  constructor(core: LogCore, subsystem: string) {
    this.#core = core;
    this.#subsystem = subsystem;
  }

  debug(message: string, fields?: LogFields): void {
    this.#core.log("debug", this.#subsystem, message, fields);
  }

  info(message: string, fields?: LogFields): void {
    this.#core.log("info", this.#subsystem, message, fields);
  }

  warn(message: string, fields?: LogFields): void {
    this.#core.log("warn", this.#subsystem, message, fields);
  }

  error(message: string, fields?: LogFields): void {
    this.#core.log("error", this.#subsystem, message, fields);
  }

  child(subsystem: string): Log {
    return new NamedLog(this.#core, `${this.#subsystem}/${subsystem}`);
  }

  addSecret(text: string): void {
    this.#core.addSecret(text);
  }

  flush(): Promise<void> {
    return this.#core.flush();
  }
}

/** Equal lines that came within a short time. */
interface SampleWindow {
  level: LogLevel;
  subsystem: string;
  message: string;
  startMs: number;
  count: number;
  /** Lines left out so far. */
  more: number;
}

/** Filters, words and queues lines; a `LogWriter` brings them to the disk. */
class LogCore {
  level: LogThreshold;
  readonly counts: LogCounts = { written: 0, sampled: 0, dropped: 0, failures: 0 };
  readonly #scrubber: Scrubber;
  readonly #mirror?: (line: string) => void;
  readonly #now: () => number;
  readonly #windowMs: number;
  readonly #writer?: LogWriter;
  /** The newest, and those before them: to forget half of all at once costs less than one by one. */
  #windows = new Map<string, SampleWindow>();
  #olderWindows = new Map<string, SampleWindow>();
  #sweepTimer?: ReturnType<typeof setTimeout>;
  #isClosed = false;
  #timeMs = NaN;
  #timeText = "";

  constructor(options: LogOptions) {
    this.level = options.level ?? "info";
    this.#scrubber = new Scrubber(options.secrets);
    this.#mirror = options.mirror;
    this.#now = options.now ?? Date.now;
    this.#windowMs = options.sampleWindowMs ?? SAMPLE_WINDOW_MS;
    if (options.file !== undefined) {
      this.#writer = new LogWriter({
        file: options.file,
        maxBytes: options.maxBytes ?? MAX_FILE_BYTES,
        maxFiles: options.maxFiles ?? MAX_FILES,
        warn: options.warn ?? ((text) => console.error(text)),
        counts: this.counts,
        lostLine: (dropped) =>
          this.#word(
            "warn",
            "log",
            "Lines were lost because the log could not be written",
            { dropped },
          ),
      });
    }
  }

  log(level: LogLevel, subsystem: string, message: string, fields?: LogFields): void {
    if (RANK[level] < RANK[this.level] || this.#isClosed) return;
    if (!this.#isSampled(level, subsystem, message)) return;
    this.#emit(level, this.#word(level, subsystem, message, fields));
  }

  addSecret(text: string): void {
    this.#scrubber.add(text);
  }

  async flush(): Promise<void> {
    await this.#writer?.flush();
  }

  async close(): Promise<void> {
    for (const windows of [this.#olderWindows, this.#windows]) {
      for (const window of windows.values()) this.#report(window);
      windows.clear();
    }
    this.#isClosed = true;
    clearTimeout(this.#sweepTimer);
    await this.#writer?.close();
  }

  /** Whether a line goes through: the first ten equal ones of ten seconds do. */
  #isSampled(level: LogLevel, subsystem: string, message: string): boolean {
    const nowMs = this.#now();
    const key = `${level}\0${subsystem}\0${message}`;
    const known = this.#windows.get(key) ?? this.#olderWindows.get(key);
    if (known && this.#isOpen(known, nowMs)) {
      if (known.count < SAMPLE_LINES) {
        known.count++;
        return true;
      }
      known.more++;
      this.counts.sampled++;
      this.#sweepTimer ??= this.#startSweep();
      return false;
    }
    if (known) this.#forget(key, known);
    if (this.#windows.size >= SAMPLE_KEYS) {
      for (const window of this.#olderWindows.values()) this.#report(window);
      this.#olderWindows = this.#windows;
      this.#windows = new Map();
    }
    this.#windows.set(key, { level, subsystem, message, startMs: nowMs, count: 1, more: 0 });
    return true;
  }

  #isOpen({ startMs }: SampleWindow, nowMs: number): boolean {
    const elapsedMs = nowMs - startMs;
    // A clock that was set back must not silence a line until it has caught up.
    return elapsedMs >= 0 && elapsedMs < this.#windowMs;
  }

  #startSweep(): ReturnType<typeof setTimeout> {
    const timer = setTimeout(() => {
      this.#sweepTimer = undefined;
      const nowMs = this.#now();
      for (const [key, window] of [...this.#olderWindows, ...this.#windows]) {
        if (!this.#isOpen(window, nowMs)) this.#forget(key, window);
        else if (window.more > 0) this.#sweepTimer ??= this.#startSweep();
      }
    }, this.#windowMs);
    Deno.unrefTimer(timer);
    return timer;
  }

  #forget(key: string, window: SampleWindow): void {
    this.#windows.delete(key);
    this.#olderWindows.delete(key);
    this.#report(window);
  }

  #report({ level, subsystem, message, more }: SampleWindow): void {
    if (more === 0) return;
    const seconds = this.#windowMs / 1_000;
    const text = `${message} (${more} more in the last ${seconds} s)`;
    this.#emit(level, this.#word(level, subsystem, text));
  }

  /** The one place where a line comes to be: whatever leaves it has been scrubbed. */
  #word(level: LogLevel, subsystem: string, message: string, fields?: LogFields): string {
    this.#scrubber.refresh();
    let line = `{"time":"${this.#time()}","level":"${level}"` +
      `,"subsystem":${this.#scrubber.name(subsystem).json},"message":${this.#text(message)}`;
    if (fields) {
      for (const name in fields) {
        const value = fields[name];
        if (value === undefined || RESERVED.has(name)) continue;
        const known = this.#scrubber.name(name);
        line += `,${known.json}:${this.#value(known, value)}`;
      }
    }
    return `${line}}`;
  }

  #time(): string {
    const nowMs = this.#now();
    if (nowMs !== this.#timeMs) {
      this.#timeMs = nowMs;
      this.#timeText = new Date(nowMs).toISOString();
    }
    return this.#timeText;
  }

  #value({ isSecret, isPlural }: FieldName, value: LogValue): string {
    if (typeof value === "boolean" || value === null) return String(value);
    const isNumber = typeof value === "number";
    if (isSecret && !(isPlural && isNumber)) return JSON.stringify(REDACTED);
    if (isNumber) {
      const isPlain = Number.isFinite(value) && !this.#scrubber.isSecretNumber(value);
      return isPlain ? String(value) : this.#text(String(value));
    }
    // The types say there is nothing else; a caller that went around them gets its name at most.
    return typeof value === "string" ? this.#text(value) : JSON.stringify(`[${typeof value}]`);
  }

  #text(text: string): string {
    const clean = this.#scrubber.scrub(text);
    if (clean.length <= MAX_TEXT_CHARS) return JSON.stringify(clean);
    const more = clean.length - MAX_TEXT_CHARS;
    return JSON.stringify(`${clean.slice(0, MAX_TEXT_CHARS)}… (${more} more characters)`);
  }

  #emit(level: LogLevel, line: string): void {
    try {
      this.#mirror?.(line);
    } catch {
      // Whoever read the mirror is gone; the file has the line.
    }
    this.#writer?.push(level, line);
  }
}

/** What is known of the name of a field, or of a subsystem. */
interface FieldName {
  json: string;
  /** A value of this name is not written, a number only if the name is a plural. */
  isSecret: boolean;
  isPlural: boolean;
}

/** Takes known secrets, and what looks like one, out of texts. */
class Scrubber {
  readonly #source?: () => readonly string[];
  readonly #added = new Set<string>();
  /** Secrets too short to be searched for inside other text. */
  #short = new Set<string>();
  #pattern?: RegExp;
  #hasNumbers = false;
  /** There are few names, and they come with every line. */
  readonly #names = new Map<string, FieldName>();
  #known?: readonly string[];

  constructor(source?: () => readonly string[]) {
    this.#source = source;
  }

  add(text: string): void {
    this.#added.add(text);
    this.#compile();
  }

  /** Takes up secrets that changed. Costs a comparison while nothing does. */
  refresh(): void {
    const current = this.#source?.();
    if (current === this.#known) return;
    const isEqual = current?.length === this.#known?.length &&
      current?.every((secret, index) => secret === this.#known?.[index]);
    this.#known = current;
    if (!isEqual) {
      // A secret that was replaced is still one: lines under way may hold it.
      for (const secret of current ?? []) this.#added.add(secret);
      this.#compile();
    }
  }

  scrub(text: string): string {
    if (this.#short.has(text)) return REDACTED;
    const clean = this.#pattern ? text.replace(this.#pattern, REDACTED) : text;
    return clean.replace(SECRET_SHAPES, (found: string, ...groups: unknown[]) => {
      const secret = groups.find((group) => group !== undefined) as string;
      return found.slice(0, -secret.length) + REDACTED;
    });
  }

  name(text: string): FieldName {
    const known = this.#names.get(text);
    if (known) return known;
    if (this.#names.size >= MAX_CACHED_NAMES) this.#names.clear();
    const [isSecret, plural] = SECRET_NAME.exec(text) ?? [];
    const json = JSON.stringify(this.scrub(text));
    const name = { json, isSecret: Boolean(isSecret), isPlural: Boolean(plural) };
    this.#names.set(text, name);
    return name;
  }

  isSecretNumber(value: number): boolean {
    if (!this.#hasNumbers) return false;
    const text = String(value);
    return this.scrub(text) !== text;
  }

  #compile(): void {
    this.#names.clear();
    const secrets = [...this.#added].filter((secret) => secret !== "");
    this.#short = new Set(secrets.filter((secret) => secret.length < MIN_SECRET_CHARS));
    this.#hasNumbers = secrets.some((secret) => /^[-+.e\d]+$/i.test(secret));
    const forms = secrets.filter((secret) => secret.length >= MIN_SECRET_CHARS).flatMap(formsOf);
    const longestFirst = [...new Set(forms)].sort((one, other) => other.length - one.length);
    const known = longestFirst.map((form) => form.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
    // Of any case, because the digits of `%2f` are.
    this.#pattern = known.length > 0 ? new RegExp(known.join("|"), "gi") : undefined;
  }
}

/** Everything a secret looks like inside JSON, JSON inside JSON, or a URL. */
function formsOf(secret: string): string[] {
  const once = JSON.stringify(secret).slice(1, -1);
  const ascii = once.replace(
    /[^\x00-\x7f]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  const url = new URLSearchParams({ "": secret }).toString().slice(1);
  const forms = [secret, once, ascii, once.replaceAll("/", "\\/")];
  const twice = forms.map((form) => JSON.stringify(form).slice(1, -1));
  return [...forms, ...twice, url, encodeURIComponent(secret.toWellFormed())];
}

interface LogWriterOptions {
  file: string;
  maxBytes: number;
  maxFiles: number;
  warn: (text: string) => void;
  counts: LogCounts;
  /** Words the line that tells of lost ones. */
  lostLine: (dropped: number) => string;
}

/**
 * Appends lines in batches. The file is opened anew for each batch: deleted or moved from outside, it
 * simply comes back, and no state of ours can be wrong about it.
 */
class LogWriter {
  readonly #options: LogWriterOptions;
  readonly #encoder = new TextEncoder();
  #queue: string[] = [];
  #queuedChars = 0;
  /** The rest of a batch that was written in part: it goes first, into the same file. */
  #rest?: Uint8Array;
  #lost = 0;
  #timer?: ReturnType<typeof setTimeout>;
  #writing?: Promise<void>;
  #isFailing = false;
  #isChecked = false;

  constructor(options: LogWriterOptions) {
    this.#options = options;
  }

  push(level: LogLevel, line: string): void {
    const limit = RANK[level] >= RANK.warn ? QUEUE_HARD_CHARS : QUEUE_CHARS;
    if (this.#queuedChars + line.length > limit) {
      this.#lose(1);
      return;
    }
    this.#queue.push(line);
    this.#queuedChars += line.length + 1;
    if (this.#isFailing) return;
    if (level === "error" || this.#queuedChars >= BATCH_CHARS) void this.#start();
    else this.#startTimer(BATCH_MS);
  }

  async flush(): Promise<void> {
    // The first may be a run that was just about to end without the last lines.
    await this.#start();
    if (this.#queue.length > 0 && !this.#isFailing) await this.#start();
  }

  async close(): Promise<void> {
    await this.flush();
    clearTimeout(this.#timer);
    this.#lose(this.#queue.length);
    this.#queue = [];
  }

  #startTimer(delayMs: number): void {
    if (this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      void this.#start();
    }, delayMs);
    Deno.unrefTimer(this.#timer);
  }

  /** Never rejects. */
  #start(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#writing ??= this.#drain().finally(() => {
      this.#writing = undefined;
      if (this.#queue.length > 0) this.#startTimer(this.#isFailing ? RETRY_MS : BATCH_MS);
    });
    return this.#writing;
  }

  async #drain(): Promise<void> {
    while (this.#queue.length > 0 || this.#rest) {
      try {
        await this.#writeBatch();
        this.#isFailing = false;
      } catch (error) {
        this.#fail(error);
        return;
      }
      if (this.#lost > 0) {
        const line = this.#options.lostLine(this.#lost);
        this.#lost = 0;
        this.#queue.push(line);
        this.#queuedChars += line.length + 1;
      }
    }
  }

  async #writeBatch(): Promise<void> {
    const { maxBytes, counts } = this.#options;
    const batchChars = Math.min(BATCH_CHARS, maxBytes);
    let chars = 0;
    let count = 0;
    while (count < this.#queue.length && !this.#rest) {
      chars += this.#queue[count].length + 1;
      if (count > 0 && chars > batchChars) break;
      count++;
    }
    const bytes = this.#rest ??
      this.#encoder.encode(`${this.#queue.slice(0, count).join("\n")}\n`);
    using file = await this.#openFor(bytes);
    let done = 0;
    try {
      while (done < bytes.length) done += await file.write(bytes.subarray(done));
      this.#rest = undefined;
    } catch (error) {
      if (done > 0) this.#rest = bytes.subarray(done);
      throw error;
    } finally {
      // Once a byte of a batch is in the file the batch is never written again from the start.
      if (done > 0) {
        for (const line of this.#queue.splice(0, count)) this.#queuedChars -= line.length + 1;
        counts.written += count;
      }
    }
  }

  /** The file to append to, rotated where the bytes would make it too big. */
  async #openFor(bytes: Uint8Array): Promise<Deno.FsFile> {
    const file = await this.#open();
    try {
      const { size, isFile, mode } = await file.stat();
      if (!isFile) return file;
      if (!this.#isChecked) {
        if (mode !== null && (mode & 0o077) !== 0) await Deno.chmod(this.#options.file, 0o600);
        if (size > 0) await endTornLine(file, size);
        this.#isChecked = true;
      }
      if (this.#rest || size === 0 || size + bytes.length <= this.#options.maxBytes) return file;
      await this.#rotate();
    } catch (error) {
      file.close();
      throw error;
    }
    file.close();
    return await this.#open();
  }

  async #open(): Promise<Deno.FsFile> {
    const { file } = this.#options;
    const options = { read: true, append: true, create: true, mode: 0o600 };
    try {
      return await Deno.open(file, options);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      await Deno.mkdir(directoryOf(file), { recursive: true, mode: 0o700 });
      return await Deno.open(file, options);
    }
  }

  async #rotate(): Promise<void> {
    const { file, maxFiles } = this.#options;
    if (maxFiles === 0) {
      await Deno.remove(file);
      return;
    }
    for (let age = maxFiles - 1; age >= 0; age--) {
      try {
        await Deno.rename(age === 0 ? file : `${file}.${age}`, `${file}.${age + 1}`);
      } catch (error) {
        // There are not that many old files yet.
        if (!(error instanceof Deno.errors.NotFound)) throw error;
      }
    }
  }

  #fail(error: unknown): void {
    const { file, counts, warn } = this.#options;
    counts.failures++;
    if (!this.#isFailing) {
      this.#isFailing = true;
      const reason = error instanceof Error ? error.message : String(error);
      try {
        warn(`Cannot write the log ${file}: ${reason}`);
      } catch {
        // There is nobody left to tell.
      }
    }
  }

  #lose(count: number): void {
    this.#lost += count;
    this.#options.counts.dropped += count;
  }
}

/** Ends the line a killed process left unfinished, so that the next one stands alone. */
async function endTornLine(file: Deno.FsFile, size: number): Promise<void> {
  const last = await readRange(file, size - 1, size);
  if (last.length === 1 && last[0] !== LINE_END) await file.write(new Uint8Array([LINE_END]));
}

function directoryOf(file: string): string {
  const end = Math.max(file.lastIndexOf("/"), file.lastIndexOf("\\"));
  return end < 0 ? "." : file.slice(0, Math.max(end, 1));
}

async function openIfThere(file: string): Promise<Deno.FsFile | null> {
  try {
    return await Deno.open(file, { read: true });
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  }
}

async function readRange(file: Deno.FsFile, from: number, to: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(to - from);
  await file.seek(from, Deno.SeekMode.Start);
  let done = 0;
  while (done < bytes.length) {
    const count = await file.read(bytes.subarray(done));
    if (count === null) break;
    done += count;
  }
  return bytes.subarray(0, done);
}

function parseLine(line: string): Record<string, unknown> | undefined {
  try {
    const entry = JSON.parse(line);
    return typeof entry === "object" && entry !== null && "level" in entry && "message" in entry
      ? entry
      : undefined;
  } catch {
    // A line of another program, or one that was cut.
    return undefined;
  }
}
