// A terminal whose output a test reads, and whose input it writes.

import { type Input, type Output, Terminal, type TerminalOptions } from "../../config/terminal.ts";

export interface CapturedTerminal {
  terminal: Terminal;
  streams: Required<Pick<TerminalOptions, "stdin" | "stdout" | "stderr" | "columns">>;
  /** Everything written to stdout so far. */
  stdout(): string;
  /** Everything written to stderr so far. */
  stderr(): string;
}

/** @param isTerminal whether all three streams claim to be a terminal */
export function captureTerminal(
  { isTerminal = false, stdin = "", columns = 80, isColorless = true } = {},
): CapturedTerminal {
  const out = new Sink(isTerminal);
  const err = new Sink(isTerminal);
  const streams = {
    stdin: new Source(stdin, isTerminal),
    stdout: out,
    stderr: err,
    columns: () => columns,
  };
  const terminal = new Terminal({ ...streams, isColorless });
  return { terminal, streams, stdout: () => out.text(), stderr: () => err.text() };
}

class Sink implements Output {
  readonly #chunks: Uint8Array[] = [];
  readonly #isTerminal: boolean;

  constructor(isTerminal: boolean) {
    this.#isTerminal = isTerminal;
  }

  /** Takes at most 7 bytes at a time, as a pipe may. */
  writeSync(bytes: Uint8Array): number {
    const taken = bytes.slice(0, 7);
    this.#chunks.push(taken);
    return taken.length;
  }

  isTerminal(): boolean {
    return this.#isTerminal;
  }

  text(): string {
    const decoder = new TextDecoder();
    return this.#chunks.map((chunk) => decoder.decode(chunk, { stream: true })).join("");
  }
}

class Source implements Input {
  #rest: Uint8Array;
  readonly #isTerminal: boolean;

  constructor(text: string, isTerminal: boolean) {
    this.#rest = new TextEncoder().encode(text);
    this.#isTerminal = isTerminal;
  }

  read(buffer: Uint8Array): Promise<number | null> {
    if (this.#rest.length === 0) return Promise.resolve(null);
    const chunk = this.#rest.subarray(0, buffer.length);
    buffer.set(chunk);
    this.#rest = this.#rest.subarray(chunk.length);
    return Promise.resolve(chunk.length);
  }

  isTerminal(): boolean {
    return this.#isTerminal;
  }
}
