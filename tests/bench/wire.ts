// The load generator's end of a WebSocket: as little work as a client can do, and the same for both
// servers. Frames are masked once, when they are made; what comes in is found, not decoded.

const MASK = [0x5a, 0xa5, 0x3c, 0xc3];
const OPCODE_TEXT = 0x1;
const OPCODE_CLOSE = 0x8;
const FIRST_BUFFER_BYTES = 2_048;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

export class Wire {
  /** Bytes that came in, the answer to the upgrade included. */
  receivedBytes = 0;
  /** Size of the message that made the connection ready. */
  greetingBytes = 0;
  readonly #socket: Deno.TcpConn;
  #buffer = new Uint8Array(FIRST_BUFFER_BYTES);
  #start = 0;
  #end = 0;

  private constructor(socket: Deno.TcpConn) {
    this.#socket = socket;
  }

  /** @throws {Error} when the server does not switch protocols */
  static async open(port: number, path = "/"): Promise<Wire> {
    const socket = await Deno.connect({ hostname: "127.0.0.1", port });
    socket.setNoDelay(true);
    const wire = new Wire(socket);
    await wire.send(encoder.encode(
      `GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nUpgrade: websocket\r\n` +
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n" +
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    ));
    await wire.#skipHead();
    return wire;
  }

  async send(bytes: Uint8Array) {
    let sent = 0;
    while (sent < bytes.length) sent += await this.#socket.write(bytes.subarray(sent));
  }

  /** The payload of the next frame if it is there; to be read before the next `fill`. */
  take(): Uint8Array | undefined {
    const has = this.#end - this.#start;
    if (has < 2) return undefined;
    const view = this.#buffer;
    const short = view[this.#start + 1];
    const headBytes = short < 126 ? 2 : short === 126 ? 4 : 10;
    if (has < headBytes) return undefined;
    let length = short < 126 ? short : 0;
    for (let at = 2; at < headBytes; at++) length = length * 256 + view[this.#start + at];
    if (has < headBytes + length) return undefined;
    const opcode = view[this.#start] & 0x0f;
    if (opcode === OPCODE_CLOSE) throw new Error("The server closed the connection");
    const begin = this.#start + headBytes;
    this.#start = begin + length;
    // Pings of the server need no answer within the time a run takes.
    return opcode === OPCODE_TEXT ? view.subarray(begin, this.#start) : this.take();
  }

  /** Waits for bytes. @returns false at the end of the connection */
  async fill(): Promise<boolean> {
    if (this.#start === this.#end) this.#start = this.#end = 0;
    if (this.#end === this.#buffer.length) this.#makeRoom();
    const count = await this.#socket.read(this.#buffer.subarray(this.#end));
    if (count === null) return false;
    this.#end += count;
    this.receivedBytes += count;
    return true;
  }

  /** The next frame, which must come. */
  async next(): Promise<Uint8Array> {
    for (;;) {
      const frame = this.take();
      if (frame) return frame;
      if (!await this.fill()) throw new Error("The server hung up");
    }
  }

  async nextText(): Promise<string> {
    return decoder.decode(await this.next());
  }

  /** Reads and forgets, until the connection ends. */
  async drain() {
    this.#buffer = new Uint8Array(FIRST_BUFFER_BYTES);
    do this.#start = this.#end = 0; while (await this.fill().catch(() => false));
  }

  close() {
    try {
      this.#socket.close();
    } catch {
      // The server was faster.
    }
  }

  #makeRoom() {
    const rest = this.#buffer.subarray(this.#start, this.#end);
    const isFull = rest.length > this.#buffer.length / 2;
    const roomy = isFull ? new Uint8Array(this.#buffer.length * 2) : this.#buffer;
    roomy.set(rest);
    this.#buffer = roomy;
    this.#end -= this.#start;
    this.#start = 0;
  }

  async #skipHead() {
    for (;;) {
      if (!await this.fill()) throw new Error("The server hung up during the upgrade");
      const text = decoder.decode(this.#buffer.subarray(0, this.#end));
      const end = text.indexOf("\r\n\r\n");
      if (end < 0) continue;
      if (!text.startsWith("HTTP/1.1 101")) throw new Error(text.slice(0, 200));
      // The head is ASCII, so characters are bytes; a first frame may follow at once.
      this.#start = end + 4;
      return;
    }
  }
}

/** A masked text frame. */
export function textFrame(text: string): Uint8Array {
  const payload = encoder.encode(text);
  const isLong = payload.length > 125;
  const headBytes = isLong ? 8 : 6;
  const frame = new Uint8Array(headBytes + payload.length);
  frame[0] = 0x80 | OPCODE_TEXT;
  frame[1] = 0x80 | (isLong ? 126 : payload.length);
  if (isLong) frame.set([payload.length >> 8, payload.length & 0xff], 2);
  frame.set(MASK, headBytes - 4);
  for (let at = 0; at < payload.length; at++) frame[headBytes + at] = payload[at] ^ MASK[at & 3];
  return frame;
}

/** Equal frames in a row whose ids, all of `ID_DIGITS` digits, can be changed in place. */
export class RequestBlock {
  readonly #bytes: Uint8Array;
  readonly #frameBytes: number;

  constructor(count: number, method: string) {
    const frame = textFrame(requestText("0".repeat(ID_DIGITS), method));
    this.#frameBytes = frame.length;
    this.#bytes = new Uint8Array(count * frame.length);
    for (let index = 0; index < count; index++) this.#bytes.set(frame, index * frame.length);
  }

  /** @returns `count` requests with the ids from `first` on; valid until the next call */
  numbered(first: number, count: number): Uint8Array {
    for (let index = 0; index < count; index++) {
      let rest = first + index;
      for (let digit = ID_DIGITS - 1; digit >= 0; digit--) {
        const at = ID_AT + digit;
        this.#bytes[index * this.#frameBytes + FRAME_HEAD_BYTES + at] = (48 + rest % 10) ^
          MASK[at & 3];
        rest = Math.floor(rest / 10);
      }
    }
    return this.#bytes.subarray(0, count * this.#frameBytes);
  }
}

/** News that nobody asked for, told apart by the first letter of the type. */
export function isEvent(payload: Uint8Array): boolean {
  return payload[TYPE_AT] === EVENT_LETTER;
}

/** The id that stands in an answer or an echo, both of which have it where the request had it. */
export function idOf(payload: Uint8Array): number {
  let id = 0;
  for (let at = ID_AT; at < ID_AT + ID_DIGITS; at++) id = id * 10 + payload[at] - 48;
  return id;
}

export function requestText(id: string, method: string, params: unknown = {}): string {
  return JSON.stringify({ type: "req", id, method, params });
}

const ID_DIGITS = 8;
/** Where the id begins in a request, and in a response: `{"type":"req","id":"`. */
const ID_AT = 20;
/** Where the type begins: `{"type":"`. */
const TYPE_AT = 9;
const EVENT_LETTER = 0x65;
const FRAME_HEAD_BYTES = 6;
