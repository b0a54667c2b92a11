// A TCP connection that speaks HTTP and WebSocket by the byte: for what no client library would send.

import { within } from "./client.ts";

export interface RawFrame {
  /** 1 text, 2 binary, 8 close, 9 ping, 10 pong; 0 continues a message. */
  opcode?: number;
  payload?: string | Uint8Array;
  isFinal?: boolean;
  isMasked?: boolean;
  /** The three reserved bits, 0 to 7. */
  reserved?: number;
  /** The length the header announces; that of the payload unless given. */
  announcedBytes?: number;
}

export interface ReceivedFrame {
  opcode: number;
  isFinal: boolean;
  isMasked: boolean;
  payload: Uint8Array;
  text: string;
}

export interface ReceivedHead {
  status: number;
  headers: Headers;
}

const KEY = "dGhlIHNhbXBsZSBub25jZQ==";
const MASK = [0x37, 0xfa, 0x21, 0x3d];

export class RawSocket implements AsyncDisposable {
  readonly #connection: Deno.TcpConn;
  #unread = new Uint8Array();
  #isEnded = false;
  #isClosed = false;

  private constructor(connection: Deno.TcpConn) {
    this.#connection = connection;
  }

  static async open(port: number, hostname = "127.0.0.1"): Promise<RawSocket> {
    return new RawSocket(await Deno.connect({ port, hostname }));
  }

  /** A WebSocket whose challenge has not been read yet. */
  static async upgraded(port: number, headers: Record<string, string> = {}): Promise<RawSocket> {
    const socket = await RawSocket.open(port);
    const { status } = await socket.upgrade({ headers });
    if (status !== 101) throw new Error(`no upgrade: ${status}`);
    return socket;
  }

  async write(data: string | Uint8Array) {
    const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
    for (let at = 0; at < bytes.length;) at += await this.#connection.write(bytes.subarray(at));
  }

  /** @param lines headers as they stand, beside those of the upgrade; may repeat a name */
  async upgrade(
    { headers = {}, lines = [], target = "/", host = "127.0.0.1" }: {
      headers?: Record<string, string>;
      lines?: string[];
      target?: string;
      host?: string | null;
    } = {},
  ): Promise<ReceivedHead> {
    const all = [
      ...host === null ? [] : [`Host: ${host}`],
      "Connection: Upgrade",
      "Upgrade: websocket",
      "Sec-WebSocket-Version: 13",
      `Sec-WebSocket-Key: ${KEY}`,
      ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`),
      ...lines,
    ];
    await this.write(`GET ${target} HTTP/1.1\r\n${all.join("\r\n")}\r\n\r\n`);
    return await this.readHead();
  }

  async send(frame: RawFrame | string) {
    await this.write(frameBytes(typeof frame === "string" ? { payload: frame } : frame));
  }

  async readHead(): Promise<ReceivedHead> {
    const decoder = new TextDecoder();
    let end = -1;
    while ((end = decoder.decode(this.#unread).indexOf("\r\n\r\n")) < 0) {
      if (!await this.#readMore()) throw new Error("the connection ended before a response head");
    }
    const [first, ...lines] = decoder.decode(this.#take(end + 4)).trim().split("\r\n");
    const headers = new Headers(lines.map((line) => {
      const [name, ...value] = line.split(":");
      return [name, value.join(":").trim()] as [string, string];
    }));
    return { status: Number(first.split(" ")[1]), headers };
  }

  /** The rest of what comes, up to the end of the connection. */
  async readAll(): Promise<string> {
    while (await this.#readMore());
    return new TextDecoder().decode(this.#take(this.#unread.length));
  }

  /** The next frame, or undefined when the connection ends without one. */
  async readFrame(): Promise<ReceivedFrame | undefined> {
    const head = await this.#takeExactly(2);
    if (!head) return undefined;
    let length = head[1] & 0x7f;
    if (length >= 126) {
      const size = length === 126 ? 2 : 8;
      const bytes = (await this.#takeExactly(size))!;
      length = bytes.reduce((sum, byte) => sum * 256 + byte, 0);
    }
    const payload = (await this.#takeExactly(length))!;
    return {
      opcode: head[0] & 0x0f,
      isFinal: (head[0] & 0x80) !== 0,
      isMasked: (head[1] & 0x80) !== 0,
      payload,
      text: new TextDecoder().decode(payload),
    };
  }

  /** The next text frame as JSON. */
  // deno-lint-ignore no-explicit-any
  async readJson(): Promise<any> {
    const frame = await this.readFrame();
    if (frame?.opcode !== 1) throw new Error(`no text frame, but ${JSON.stringify(frame)}`);
    return JSON.parse(frame.text);
  }

  /** Skips to the close frame; 1006 when the connection ends without one. */
  async readClose(): Promise<{ code: number; reason: string }> {
    for (let frame; (frame = await this.readFrame());) {
      if (frame.opcode !== 8) continue;
      const [high = 0x03, low = 0xed] = frame.payload; // 1005: no code was sent
      const reason = new TextDecoder().decode(frame.payload.subarray(2));
      return { code: high * 256 + low, reason };
    }
    return { code: 1006, reason: "" };
  }

  close() {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#connection.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.close();
    return Promise.resolve();
  }

  #take(length: number): Uint8Array {
    const taken = this.#unread.slice(0, length);
    this.#unread = this.#unread.slice(length);
    return taken;
  }

  async #takeExactly(length: number): Promise<Uint8Array | undefined> {
    while (this.#unread.length < length) if (!await this.#readMore()) return undefined;
    return this.#take(length);
  }

  async #readMore(): Promise<boolean> {
    if (this.#isEnded) return false;
    const buffer = new Uint8Array(65_536);
    const count = await within(this.#connection.read(buffer), "data from the gateway")
      .catch((error) => {
        // A reset is an end like any other.
        if (error instanceof Deno.errors.ConnectionReset) return null;
        throw error;
      });
    if (count === null) this.#isEnded = true;
    else this.#unread = joined(this.#unread, buffer.subarray(0, count));
    return !this.#isEnded;
  }
}

/** A WebSocket frame as bytes (RFC 6455, section 5.2). */
export function frameBytes(
  {
    opcode = 1,
    payload = "",
    isFinal = true,
    isMasked = true,
    reserved = 0,
    announcedBytes,
  }: RawFrame,
): Uint8Array {
  const data = typeof payload === "string" ? new TextEncoder().encode(payload) : payload;
  const length = announcedBytes ?? data.length;
  const first = (isFinal ? 0x80 : 0) | reserved << 4 | opcode;
  const mask = isMasked ? 0x80 : 0;
  const head = new DataView(new ArrayBuffer(10));
  head.setUint8(0, first);
  let size = 2;
  if (length < 126) head.setUint8(1, mask | length);
  else if (length < 65_536) {
    head.setUint8(1, mask | 126);
    head.setUint16(2, length);
    size = 4;
  } else {
    head.setUint8(1, mask | 127);
    head.setBigUint64(2, BigInt(length));
    size = 10;
  }
  const body = isMasked ? data.map((byte, index) => byte ^ MASK[index % 4]) : data;
  return joined(
    new Uint8Array(head.buffer, 0, size),
    isMasked ? Uint8Array.from(MASK) : new Uint8Array(),
    body,
  );
}

function joined(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
