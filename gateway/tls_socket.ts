// TLS on a socket that was accepted, without giving up what holds for plain ones: a peer that says
// nothing is dropped, and nothing more is read than somebody takes. The platform's own TLS socket
// reads on while it is paused; here it gets its bytes through a stream that can be held back.

import type { Socket } from "node:net";
import { Duplex } from "node:stream";
import { type SecureContext, TLSSocket } from "node:tls";
import type { Buffer } from "node:buffer";

/** The first byte of a TLS handshake record (RFC 8446 §5.1). */
const HANDSHAKE_RECORD = 0x16;
/** A peer that speaks plain HTTP has this long to read the answer. */
const LAST_WORD_MS = 500;
/** What the socket inside says of itself as the one below it. */
const ADDRESSES = ["remoteAddress", "remotePort", "remoteFamily", "localAddress"] as const;
const PLAIN_ANSWER = answer("This port speaks TLS: use https:// or wss://\n");

export interface SecureOptions {
  context: SecureContext;
  /** How long the handshake may take. */
  timeoutMs: number;
  /** Told of the socket inside, as soon as the handshake is done. */
  secured(socket: Socket): void;
}

/** Waits for a handshake, and drops a peer that does not manage one. */
export function secure(raw: Socket, { context, timeoutMs, secured }: SecureOptions) {
  const timer = setTimeout(() => raw.destroy(), timeoutMs);
  const giveUp = () => raw.destroy();
  raw.once("close", () => clearTimeout(timer));
  raw.once("end", giveUp);
  raw.on("error", giveUp);
  raw.once("data", (first: Buffer) => {
    if (first[0] !== HANDSHAKE_RECORD) return refusePlain(raw, first);
    raw.pause();
    const wire = new Wire(raw);
    const socket = new AcceptedTlsSocket(wire, context);
    socket.once("secure", () => {
      clearTimeout(timer);
      raw.off("end", giveUp);
      secured(socket);
    });
    // Whoever takes the socket over listens, too; until then a failed handshake ends it quietly.
    socket.on("error", () => socket.destroy());
    // The platform starts its side a tick from now, and breaks where that has ended by then.
    setImmediate(() => wire.begin(first));
  });
}

function refusePlain(raw: Socket, first: Buffer) {
  const isHttp = /^[A-Z]+ /.test(first.toString("latin1", 0, 16));
  if (!isHttp) return raw.destroy();
  raw.resume(); // a peer whose request is not read would not see the answer
  raw.end(PLAIN_ANSWER);
  const timer = setTimeout(() => raw.destroy(), LAST_WORD_MS);
  raw.once("close", () => clearTimeout(timer));
}

function answer(text: string): string {
  return `HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: ${text.length}` +
    `\r\nConnection: close\r\n\r\n${text}`;
}

/** What goes over the network, between the socket and its encryption. */
class Wire extends Duplex {
  readonly raw: Socket;
  /** Whether the side inside takes more. */
  isWanted = () => true;
  #hasBegun = false;

  constructor(raw: Socket) {
    super({ allowHalfOpen: true });
    this.raw = raw;
  }

  /** @param first what was read before anybody knew what it is */
  begin(first: Buffer) {
    const { raw } = this;
    if (raw.destroyed) return void this.destroy();
    this.#hasBegun = true;
    raw.on("data", (bytes: Buffer) => this.#pass(bytes));
    raw.on("end", () => this.push(null));
    raw.on("error", (error) => this.destroy(error));
    raw.on("close", () => this.destroy());
    raw.resume();
    this.#pass(first);
  }

  /** Reads on: the side inside takes more. */
  goOn() {
    if (this.#hasBegun) this.raw.resume();
  }

  override _read() {
    if (this.isWanted()) this.goOn();
  }

  override _write(bytes: Buffer, _encoding: string, done: (error?: Error | null) => void) {
    this.raw.write(bytes, done);
  }

  override _final(done: () => void) {
    this.raw.end(done);
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void) {
    this.raw.destroy();
    done(error);
  }

  #pass(bytes: Buffer) {
    this.push(bytes);
    if (!this.isWanted()) this.raw.pause();
  }
}

class AcceptedTlsSocket extends TLSSocket {
  readonly #wire: Wire;

  constructor(wire: Wire, secureContext: SecureContext) {
    const options = { isServer: true, secureContext, ALPNProtocols: ["http/1.1"] };
    super(wire as unknown as Socket, options);
    this.#wire = wire;
    for (const name of ADDRESSES) Object.defineProperty(this, name, { get: () => wire.raw[name] });
    wire.isWanted = () => this.readableLength < this.readableHighWaterMark;
  }

  override _read(size: number) {
    // Called once while the base class is being built, before there is a wire.
    if (#wire in this) this.#wire.goOn();
    super._read(size);
  }
}
