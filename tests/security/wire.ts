// Two ends of the wire for attacks and for those who watch them: a raw socket that says whatever a
// test likes, byte by byte, and a member, an ordinary client that calls and counts events.

import { Buffer } from "node:buffer";
import { connect, type Socket } from "node:net";
// @ts-types="npm:@types/ws@8.18.1"
import { WebSocket } from "ws";
import { type Identity, sign, signedText } from "../../rpc/identity.ts";
import { before, TOKEN } from "../support/process.ts";

const DEADLINE_MS = 30_000;
/** More of what comes without an upgrade is not kept. */
const MAX_HEAD_BYTES = 4_096;

export interface Close {
  code: number;
  reason: string;
}

// deno-lint-ignore no-explicit-any
export type Json = any;

export interface Frame {
  opcode: number;
  payload: Buffer;
}

export const OPCODE = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 };

/** A TCP connection and, after `upgrade`, a WebSocket without any rules. */
export class RawSocket implements Disposable {
  /** Resolves when the connection is gone. */
  readonly gone: Promise<void>;
  readonly frames: Frame[] = [];
  /** The first bytes of everything that came before the upgrade. */
  head = "";
  /** What the other end said in its close frame. */
  close?: Close;
  isGone = false;
  readonly #socket: Socket;
  #isUpgraded = false;
  #rest: Buffer = Buffer.alloc(0);
  #wake = Promise.withResolvers<void>();

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (chunk: Buffer) => this.#receive(chunk));
    socket.on("error", (e) => {
      if (Deno.env.get("DBG")) console.log("CLIERR", e);
    });
    socket.on("end", () => {
      if (Deno.env.get("DBG")) console.log("CLIEND");
    });
    this.gone = new Promise((resolve) =>
      socket.on("close", () => {
        this.isGone = true;
        this.#wake.resolve();
        resolve();
      })
    );
  }

  /** @param from a loopback address to come from */
  static async open(port: number, { from }: { from?: string } = {}): Promise<RawSocket> {
    const socket = connect({ port, host: "127.0.0.1", localAddress: from });
    const raw = new RawSocket(socket);
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", () => resolve());
      socket.once("error", reject);
    });
    return raw;
  }

  /** Opens a WebSocket, up to the challenge. */
  static async upgraded(
    port: number,
    { from, headers = {} }: { from?: string; headers?: Record<string, string> } = {},
  ): Promise<RawSocket> {
    const raw = await RawSocket.open(port, { from });
    raw.write(upgradeRequest(port, headers));
    await raw.until("the challenge", () => raw.frames.length > 0);
    return raw;
  }

  get bytesRead(): number {
    return this.#socket.bytesRead;
  }

  write(bytes: string | Uint8Array) {
    if (!this.isGone) this.#socket.write(bytes);
  }

  /** Writes, and resolves when the system took it or the connection is gone. */
  push(bytes: string | Uint8Array): Promise<void> {
    if (this.isGone) return this.gone;
    return Promise.race([
      this.gone,
      // After an error `gone` is about to come.
      new Promise<void>((resolve) => this.#socket.write(bytes, (error) => error || resolve())),
    ]);
  }

  send(frame: Json) {
    this.write(encodeFrame({ payload: JSON.stringify(frame) }));
  }

  pause() {
    this.#socket.pause();
  }

  resume() {
    this.#socket.resume();
  }

  /** @param what is waited for, for the message */
  async until(what: string, isSo: () => boolean, deadlineMs = DEADLINE_MS): Promise<void> {
    while (!isSo()) {
      if (this.isGone) throw new Error(`the connection ended before ${what}: ${this.head}`);
      await before(deadlineMs, this.#wake.promise, () => `waited in vain for ${what}`);
    }
  }

  /** Waits for the end and says how it came. */
  async end(deadlineMs = DEADLINE_MS): Promise<Close | undefined> {
    await before(deadlineMs, this.gone, () => "the connection was not ended");
    return this.close;
  }

  /** The JSON texts that came so far. */
  texts(): Json[] {
    return this.frames.filter(({ opcode }) => opcode === OPCODE.text)
      .map(({ payload }) => JSON.parse(payload.toString()));
  }

  [Symbol.dispose]() {
    this.#socket.destroy();
  }

  #receive(chunk: Buffer) {
    this.#rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    if (!this.#isUpgraded) this.#readHead();
    if (this.#isUpgraded) this.#readFrames();
    else this.#rest = this.#rest.subarray(0, MAX_HEAD_BYTES);
    this.#wake.resolve();
    this.#wake = Promise.withResolvers();
  }

  #readHead() {
    this.head = this.#rest.toString("latin1");
    const end = this.#rest.indexOf("\r\n\r\n");
    if (end < 0 || !this.head.startsWith("HTTP/1.1 101")) return;
    this.#isUpgraded = true;
    this.#rest = this.#rest.subarray(end + 4);
  }

  #readFrames() {
    for (;;) {
      const bytes = this.#rest;
      if (bytes.length < 2) return;
      const short = bytes[1] & 0x7f;
      const start = short === 127 ? 10 : short === 126 ? 4 : 2;
      if (bytes.length < start) return;
      const length = short === 127
        ? Number(bytes.readBigUInt64BE(2))
        : short === 126
        ? bytes.readUInt16BE(2)
        : short;
      if (bytes.length < start + length) return;
      const payload = bytes.subarray(start, start + length);
      this.#rest = bytes.subarray(start + length);
      const opcode = bytes[0] & 0x0f;
      this.frames.push({ opcode, payload });
      if (opcode !== OPCODE.close) continue;
      const code = payload.length >= 2 ? payload.readUInt16BE(0) : 1005;
      this.close = { code, reason: payload.subarray(2).toString() };
      this.#socket.end();
    }
  }
}

/** The request that asks for a WebSocket. */
export function upgradeRequest(port: number, headers: Record<string, string> = {}): string {
  const lines = {
    Host: `127.0.0.1:${port}`,
    Connection: "Upgrade",
    Upgrade: "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    ...headers,
  };
  const text = Object.entries(lines).map(([name, value]) => `${name}: ${value}\r\n`).join("");
  return `GET / HTTP/1.1\r\n${text}\r\n`;
}

export interface FrameOptions {
  payload?: string | Uint8Array;
  opcode?: number;
  isLast?: boolean;
  isMasked?: boolean;
  /** The three reserved bits, 0 to 7. */
  reserved?: number;
  /** What the header says; otherwise the truth. */
  announcedBytes?: bigint;
}

/** A frame as a client sends it, or as it should not. */
export function encodeFrame(
  { payload = "", opcode = 1, isLast = true, isMasked = true, reserved = 0, announcedBytes }:
    FrameOptions,
): Buffer {
  const body = typeof payload === "string" ? Buffer.from(payload) : Buffer.from(payload);
  const length = announcedBytes ?? BigInt(body.length);
  const header = Buffer.alloc(length > 65_535n ? 10 : length > 125n ? 4 : 2);
  header[0] = (isLast ? 0x80 : 0) | (reserved << 4) | opcode;
  if (header.length === 10) header.writeBigUInt64BE(length, 2);
  if (header.length === 4) header.writeUInt16BE(Number(length), 2);
  const short = header.length === 10 ? 127 : header.length === 4 ? 126 : Number(length);
  header[1] = (isMasked ? 0x80 : 0) | short;
  // A mask of zeros leaves the payload as it is.
  return Buffer.concat(isMasked ? [header, Buffer.alloc(4), body] : [header, body]);
}

export interface MemberOptions {
  port: number;
  from?: string;
  headers?: Record<string, string>;
  auth?: Record<string, string>;
  scopes?: readonly string[];
  role?: "operator" | "node";
  client?: Record<string, string>;
  identity?: Identity;
  /** How far its clock is ahead. */
  skewMs?: number;
  protocol?: 3 | 4;
  /** Sees each event as its text, before it is read. */
  onText?: (text: Buffer) => void;
  /** Further members of `connect.params`. */
  extra?: Record<string, unknown>;
}

/** What a gateway answered to `connect`, and what it closed with. */
export class ConnectRefused extends Error {
  override name = "ConnectRefused";

  constructor(readonly error: Json, readonly close: Close) {
    super(`${error?.message ?? "no answer"} (closed ${close.code} ${close.reason})`);
  }
}

/** A client that got through the handshake. */
export class Member implements AsyncDisposable {
  readonly hello: Json;
  readonly closed: Promise<Close>;
  readonly events: Json[];
  isClosed = false;
  readonly #socket: WebSocket;
  readonly #calls = new Map<string, (frame: Json) => void>();
  #next = 1;

  private constructor(socket: WebSocket, hello: Json, closed: Promise<Close>, events: Json[]) {
    this.#socket = socket;
    this.hello = hello;
    this.events = events;
    this.closed = closed.then((close) => {
      this.isClosed = true;
      for (const settle of this.#calls.values()) settle({ ok: false, error: close });
      return close;
    });
  }

  /** @throws {ConnectRefused} */
  static async join(options: MemberOptions): Promise<Member> {
    const { port, from, headers = {}, onText } = options;
    const settings = { headers, localAddress: from, perMessageDeflate: false, maxPayload: 1 << 28 };
    const socket = new WebSocket(`ws://127.0.0.1:${port}`, settings);
    const events: Json[] = [];
    const joined = Promise.withResolvers<Member>();
    // Whoever waits for it may have been told otherwise already.
    joined.promise.catch(() => {});
    let member: Member | undefined;
    let refusal: Json;
    const closed = new Promise<Close>((resolve) =>
      socket.on("close", (code: number, reason: Buffer) => {
        const close = { code, reason: reason.toString() };
        joined.reject(new ConnectRefused(refusal, close));
        resolve(close);
      })
    );
    socket.on("error", (error: Error) => joined.reject(error));
    socket.on("message", (data: Buffer) => {
      if (member && onText && data.subarray(0, 15).includes('"event"')) return onText(data);
      const frame = JSON.parse(data.toString());
      if (frame.event === "connect.challenge") {
        return void connectParams(options, frame.payload).then((params) =>
          socket.send(JSON.stringify({ type: "req", id: "connect", method: "connect", params }))
        );
      }
      if (frame.type === "event") return void events.push(frame);
      if (member) return member.#answered(frame);
      if (!frame.ok) return void (refusal = frame.error);
      member = new Member(socket, frame.payload, closed, events);
      joined.resolve(member);
    });
    return await before(DEADLINE_MS, joined.promise, () => "the handshake was not answered");
  }

  /** The payload of the answer. @throws {Error} with the wire error as its cause */
  async call(method: string, params: unknown = {}): Promise<Json> {
    const frame = await this.ask(method, params);
    if (frame.ok) return frame.payload;
    throw new Error(frame.error?.message ?? "closed", { cause: frame.error });
  }

  /** The whole answer. */
  async ask(method: string, params: unknown = {}): Promise<Json> {
    const id = String(this.#next++);
    const answer = new Promise<Json>((resolve) => this.#calls.set(id, resolve));
    this.#socket.send(JSON.stringify({ type: "req", id, method, params }));
    return await before(DEADLINE_MS, answer, () => `${method} was not answered`);
  }

  /** Sends without waiting for an answer; resolves when the system took it. */
  push(text: string | Uint8Array): Promise<void> {
    return new Promise((resolve) => this.#socket.send(text, () => resolve()));
  }

  pause() {
    this.#socket.pause();
  }

  resume() {
    this.#socket.resume();
  }

  async [Symbol.asyncDispose]() {
    this.#socket.terminate();
    await this.closed;
  }

  #answered(frame: Json) {
    const settle = this.#calls.get(frame.id);
    this.#calls.delete(frame.id);
    settle?.(frame);
  }
}

/** The params of `connect`, signed where there is an identity. */
export async function connectParams(
  options: Omit<MemberOptions, "port">,
  challenge: { nonce: string; ts: number },
): Promise<Json> {
  const { auth = { token: TOKEN }, scopes, role, identity, protocol = 4, skewMs = 0 } = options;
  const client = { id: "cli", mode: "cli", version: "1.0", platform: "linux", ...options.client };
  const asked = scopes ?? (role === "node" ? undefined : ["operator.admin"]);
  const params = {
    minProtocol: 3,
    maxProtocol: protocol,
    client,
    auth,
    ...(role && { role }),
    ...(asked && { scopes: asked }),
    ...options.extra,
  };
  if (!identity) return params;
  const signedAt = challenge.ts + skewMs;
  const text = signedText(3, {
    deviceId: identity.deviceId,
    clientId: client.id,
    clientMode: client.mode,
    role: role ?? "operator",
    scopes: asked,
    signedAtMs: signedAt,
    token: auth.token ?? auth.deviceToken ?? auth.bootstrapToken,
    nonce: challenge.nonce,
    platform: client.platform,
  });
  return {
    ...params,
    device: {
      id: identity.deviceId,
      publicKey: identity.publicKey,
      signature: await sign(identity, text),
      signedAt,
      nonce: challenge.nonce,
    },
  };
}
