// What a command says and asks: lines, tables, JSON, colours, progress and hidden questions. The
// streams come in by argument, so a test reads what a user would have seen.

// @ts-types="./std_cli.d.ts"
import { bold, cyan, dim, green, red, yellow } from "@std/fmt/colors";

/** A file-like sink: `Deno.stdout` and `Deno.stderr` are ones. */
export interface Output {
  writeSync(bytes: Uint8Array): number;
  isTerminal(): boolean;
}

/** A file-like source: `Deno.stdin` is one. */
export interface Input {
  read(buffer: Uint8Array): Promise<number | null>;
  isTerminal(): boolean;
}

export interface TerminalOptions {
  stdin: Input;
  stdout: Output;
  stderr: Output;
  /** `--no-color` was given or `NO_COLOR` is set to anything but the empty text. */
  isColorless?: boolean;
  /** Columns of the terminal; asked anew for each help text or table. */
  columns?: () => number;
}

/** Marks text for the eye; each is the identity where colours are off. */
export interface Style {
  bold(text: string): string;
  dim(text: string): string;
  red(text: string): string;
  green(text: string): string;
  yellow(text: string): string;
  cyan(text: string): string;
}

/** The reader of our output went away (`zero logs | head`): nothing is left to do, nor to say. */
export class OutputClosed extends Error {
  override name = "OutputClosed";
}

/** A line on stderr that turns while something takes longer than a second. */
export interface Progress extends Disposable {
  update(text: string): void;
}

/** Text is at most this wide, however wide the terminal. */
export const MAX_WIDTH = 100;
const PROGRESS_AFTER_MS = 1_000;
const PROGRESS_EVERY_MS = 120;
const PROGRESS_FRAMES = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const GAP = "  ";
const COLOR = /(\x1b\[[\d;]*m)/g;
/** C0, C1, line and paragraph separators, and what turns the direction of writing. */
const CONTROL = /[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]/g;

const COLORED: Style = { bold, dim, red, green, yellow, cyan };
const COLORLESS: Style = {
  bold: asIs,
  dim: asIs,
  red: asIs,
  green: asIs,
  yellow: asIs,
  cyan: asIs,
};

export class Terminal {
  /** For stdout. */
  readonly style: Style;
  /** For stderr. */
  readonly errStyle: Style;
  readonly #options: TerminalOptions;
  readonly #encoder = new TextEncoder();
  /** What was read of stdin beyond the line that was asked for. */
  #unread = "";
  #progress?: ProgressLine;

  constructor(options: TerminalOptions) {
    this.#options = options;
    const { stdout, stderr, isColorless } = options;
    this.style = stdout.isTerminal() && !isColorless ? COLORED : COLORLESS;
    this.errStyle = stderr.isTerminal() && !isColorless ? COLORED : COLORLESS;
  }

  /** Whether a person reads stdout. */
  get isInteractive(): boolean {
    return this.#options.stdout.isTerminal();
  }

  /** Whether a person can be asked: stdin and stderr are both a terminal. */
  get canAsk(): boolean {
    return this.#options.stdin.isTerminal() && this.#options.stderr.isTerminal();
  }

  /** Columns to write in: the terminal's, at most 100; 100 where stdout is no terminal. */
  get width(): number {
    const columns = this.isInteractive ? this.#options.columns?.() || 80 : MAX_WIDTH;
    return Math.max(40, Math.min(MAX_WIDTH, columns));
  }

  /**
   * Writes one line, or several, to stdout.
   *
   * @throws {OutputClosed} when nobody reads it any more
   */
  out(text = ""): void {
    this.write(`${text}\n`);
  }

  /** Writes text to stdout as it is, without a line end of its own. */
  write(text: string): void {
    this.#progress?.clear();
    this.#writeAll(this.#options.stdout, text);
  }

  /** Writes one line, or several, to stderr. A stderr that is gone is no reason to fail. */
  err(text = ""): void {
    this.writeErr(`${text}\n`);
  }

  /** Writes text to stderr as it is, without a line end of its own. */
  writeErr(text: string): void {
    this.#progress?.clear();
    try {
      this.#writeAll(this.#options.stderr, text);
    } catch (error) {
      if (!(error instanceof OutputClosed)) throw error;
    }
  }

  /** One JSON document on stdout, indented by 2. */
  json(value: unknown): void {
    this.out(JSON.stringify(value, null, 2));
  }

  /** Rows as aligned columns; nothing at all for no rows. */
  table(rows: readonly (readonly string[])[], { header }: { header?: readonly string[] } = {}) {
    if (rows.length === 0) return;
    const lines = alignColumns(header ? [header, ...rows] : rows);
    if (header) lines[0] = this.style.dim(lines[0]);
    this.out(lines.join("\n"));
  }

  /** `name  value` lines with aligned values; a pair whose value is undefined is left out. */
  fields(pairs: readonly (readonly [name: string, value: string | undefined])[]): void {
    const rows = pairs.flatMap(([name, value]) =>
      value === undefined ? [] : [[this.style.dim(name), value]]
    );
    this.table(rows);
  }

  /** Shows that something is going on, on a terminal and once it took a second. */
  progress(text: string): Progress {
    this.#progress?.[Symbol.dispose]();
    const { stderr } = this.#options;
    const show = (line: string) => {
      try {
        this.#writeAll(stderr, line);
      } catch {
        // A spinner nobody can see is no reason to fail.
      }
    };
    const line = new ProgressLine(text, stderr.isTerminal() ? show : undefined);
    this.#progress = line;
    return line;
  }

  /** Asks for a line; null at the end of input or where nobody can be asked. */
  async ask(question: string): Promise<string | null> {
    if (!this.canAsk) return null;
    this.#progress?.clear();
    this.#writeAll(this.#options.stderr, `${question} `);
    return await this.readLine();
  }

  /** Asks for a secret without showing it; null where stdin or stdout is no terminal. */
  async askSecret(question: string): Promise<string | null> {
    if (!this.isInteractive || !this.#options.stdin.isTerminal()) return null;
    this.#progress?.clear();
    // @ts-types="./std_cli.d.ts"
    const { promptSecret } = await import("@std/cli/prompt-secret");
    // Before the question is there: what is typed at once would be shown otherwise.
    Deno.stdin.setRaw(true, { cbreak: true });
    try {
      return promptSecret(question, { mask: "", clear: true });
    } finally {
      Deno.stdin.setRaw(false);
    }
  }

  /**
   * All of stdin as text, without the line end at its end.
   *
   * @throws {RangeError} when it is longer than `maxBytes`
   */
  async readStdin({ maxBytes = 26_214_400 } = {}): Promise<string> {
    const chunks: Uint8Array<ArrayBuffer>[] = [];
    let size = 0;
    const buffer = new Uint8Array(65_536);
    for (let count; (count = await this.#options.stdin.read(buffer)) !== null;) {
      size += count;
      if (size > maxBytes) {
        throw new RangeError(`Cannot read standard input: it is longer than ${maxBytes} bytes`);
      }
      chunks.push(buffer.slice(0, count));
    }
    const text = this.#unread + await new Blob(chunks).text();
    this.#unread = "";
    return text.replace(/\r?\n$/, "");
  }

  /** The next line of stdin, trimmed; null at its end. */
  async readLine(): Promise<string | null> {
    const decoder = new TextDecoder();
    const buffer = new Uint8Array(1_024);
    while (!this.#unread.includes("\n")) {
      const count = await this.#options.stdin.read(buffer);
      if (count === null) break;
      this.#unread += decoder.decode(buffer.subarray(0, count), { stream: true });
    }
    if (this.#unread === "") return null;
    const [line, ...rest] = this.#unread.split("\n");
    this.#unread = rest.join("\n");
    return line.trim();
  }

  #writeAll(output: Output, text: string): void {
    const bytes = this.#encoder.encode(text);
    try {
      for (let done = 0; done < bytes.length;) done += output.writeSync(bytes.subarray(done));
    } catch (error) {
      if (error instanceof Deno.errors.BrokenPipe) {
        throw new OutputClosed("The output was closed", { cause: error });
      }
      throw error;
    }
  }
}

/** Rows as lines with aligned columns; the last column is not padded. */
export function alignColumns(rows: readonly (readonly string[])[]): string[] {
  const clean = rows.map((row) => row.map(printableCell));
  const widths: number[] = [];
  for (const row of clean) {
    row.slice(0, -1).forEach((cell, column) => {
      widths[column] = Math.max(widths[column] ?? 0, textWidth(cell));
    });
  }
  return clean.map((row) =>
    row.map((cell, column) =>
      column === row.length - 1 ? cell : cell + " ".repeat(widths[column] - textWidth(cell))
    ).join(GAP).trimEnd()
  );
}

/** Columns a text takes on a terminal; escape sequences take none. */
export function textWidth(text: string): number {
  let width = 0;
  for (const character of text.replace(COLOR, "")) {
    if (/[\p{Mn}\p{Me}\p{Cf}]/u.test(character)) continue;
    width += isWide(character.codePointAt(0)!) ? 2 : 1;
  }
  return width;
}

/**
 * Text from elsewhere, made safe to print: control characters become `�`, so that a name cannot move
 * the cursor or forge a line.
 */
export function printable(text: string): string {
  return text.replace(CONTROL, "\ufffd");
}

/** As {@link printable}, but what spans lines, or is indented, may. */
export function printableLines(text: string): string {
  return text.split("\n").map((line) => line.split("\t").map(printable).join("\t")).join("\n");
}

/** How long, to the unit that matters: `12 s`, `3 min`, `5 h`, `2 d`. */
export function formatDuration(ms: number): string {
  const seconds = Math.round(ms / 1_000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3_600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

class ProgressLine implements Progress {
  #text: string;
  #frame = 0;
  #isShown = false;
  #delay?: ReturnType<typeof setTimeout>;
  #interval?: ReturnType<typeof setInterval>;
  readonly #write?: (text: string) => void;

  constructor(text: string, write?: (text: string) => void) {
    this.#text = text;
    this.#write = write;
    if (!write) return;
    this.#delay = setTimeout(() => {
      this.#draw();
      this.#interval = setInterval(() => this.#draw(), PROGRESS_EVERY_MS);
      Deno.unrefTimer(this.#interval);
    }, PROGRESS_AFTER_MS);
    Deno.unrefTimer(this.#delay);
  }

  update(text: string): void {
    this.#text = text;
    if (this.#isShown) this.#draw();
  }

  /** Makes room for a line of output; the next turn draws it again. */
  clear(): void {
    if (!this.#isShown) return;
    this.#write?.("\r\x1b[K");
    this.#isShown = false;
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#delay);
    clearInterval(this.#interval);
    this.clear();
  }

  #draw(): void {
    const frame = PROGRESS_FRAMES[this.#frame++ % PROGRESS_FRAMES.length];
    this.#write?.(`\r\x1b[K${frame} ${this.#text}`);
    this.#isShown = true;
  }
}

/** A cell may hold the colours of its command. */
function printableCell(text: string): string {
  return text.split(COLOR).map((part, index) => index % 2 === 0 ? printable(part) : part).join("");
}

function isWide(code: number): boolean {
  return code >= 0x1100 && (code <= 0x115f || (code >= 0x2e80 && code <= 0xa4cf) ||
    (code >= 0xac00 && code <= 0xd7a3) || (code >= 0xf900 && code <= 0xfaff) ||
    (code >= 0xfe30 && code <= 0xfe6f) || (code >= 0xff00 && code <= 0xff60) ||
    (code >= 0xffe0 && code <= 0xffe6) || (code >= 0x1f300 && code <= 0x1faff) ||
    (code >= 0x20000 && code <= 0x3fffd));
}

function asIs(text: string): string {
  return text;
}
