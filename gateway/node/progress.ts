// Output of an invocation while it still runs (`node.invoke.progress`): sent in the order it was
// written, as fast as the gateway takes it. What has not been sent when the command ends is in its
// result, which is always whole.

/** A node that declares it sends progress to a gateway that asks for it. */
export const PROGRESS_CAP = "invoke.progress";
/** The method it calls, and the event that callers get. */
export const PROGRESS = "node.invoke.progress";

export type Stream = "stdout" | "stderr";

/** A part of what a command writes. */
export interface Piece {
  /** Counts the pieces of one invocation, from 0. */
  seq: number;
  stream: Stream;
  /** Whole characters. */
  data: string;
}

/** Characters of one message: at six bytes each they fit into every frame. */
export const MAX_PIECE = 16_384;

export class ProgressSender {
  readonly #send: (piece: Piece) => Promise<unknown>;
  /** Not sent yet; what one stream writes in a row is one entry. */
  readonly #waiting: { stream: Stream; data: string }[] = [];
  #seq = 0;
  #isSending = false;
  #isOver = false;

  /** @param send resolves with what the gateway says of a piece */
  constructor(send: (piece: Piece) => Promise<unknown>) {
    this.#send = send;
  }

  /** Takes note of what was written, and returns at once. */
  write(stream: Stream, data: string): void {
    if (this.#isOver || data === "") return;
    const last = this.#waiting.at(-1);
    if (last?.stream === stream) last.data += data;
    else this.#waiting.push({ stream, data });
    if (!this.#isSending) void this.#sendAll();
  }

  /** Sends nothing more: the result is about to tell everything. */
  end(): void {
    this.#isOver = true;
    this.#waiting.length = 0;
  }

  /** One piece at a time: a slow link is not filled with what the result repeats. */
  async #sendAll(): Promise<void> {
    this.#isSending = true;
    for (let piece = this.#next(); piece; piece = this.#next()) {
      try {
        const answer = await this.#send(piece);
        if ((answer as { ignored?: unknown } | undefined)?.ignored === true) this.end();
      } catch {
        this.end(); // the result says it all, or there is nobody left to say it to
      }
    }
    this.#isSending = false;
  }

  #next(): Piece | undefined {
    const first = this.#waiting[0];
    if (!first) return undefined;
    const { stream, data } = first;
    const end = endOfPiece(data);
    if (end === data.length) this.#waiting.shift();
    else first.data = data.slice(end);
    return { seq: this.#seq++, stream, data: data.slice(0, end) };
  }
}

/** Where to cut a text that is too long: never inside a pair of surrogates. */
function endOfPiece(data: string): number {
  if (data.length <= MAX_PIECE) return data.length;
  const isHigh = (data.charCodeAt(MAX_PIECE - 1) & 0xfc00) === 0xd800;
  return isHigh ? MAX_PIECE - 1 : MAX_PIECE;
}
