// A gateway that does what a test tells it to, one script for each connection: for faults and odd
// answers that a real gateway does not produce on demand.

// @ts-types="npm:@types/ws@8.18.1"
import { type WebSocket as ServerSocket, WebSocketServer } from "ws";
import type { WireError } from "../../rpc/error.ts";

export const NONCE = "5c1f4c0e-0b1d-4f57-9a53-0d7f0b6e0a11";
export const CHALLENGE = { nonce: NONCE, ts: 1_760_000_000_000, gatewayId: "gateway-1" };

// deno-lint-ignore no-explicit-any
type Frame = any;

/** The client left while its script was waiting for a frame: the script ends there. */
class PeerGone extends Error {}

/** The gateway's end of one connection. */
export class Peer {
  /** From 1, in the order of arrival. */
  readonly number: number;
  readonly closed: Promise<{ code: number; reason: string }>;
  readonly #socket: ServerSocket;
  readonly #frames: Frame[] = [];
  #isGone = false;
  #wake = Promise.withResolvers<void>();

  constructor(socket: ServerSocket, number: number) {
    this.#socket = socket;
    this.number = number;
    const closed = Promise.withResolvers<{ code: number; reason: string }>();
    this.closed = closed.promise;
    socket.on("message", (data) => {
      this.#frames.push(JSON.parse(String(data)));
      this.#wake.resolve();
    });
    socket.on("close", (code, reason) => {
      this.#isGone = true;
      this.#wake.resolve();
      closed.resolve({ code, reason: String(reason) });
    });
    socket.on("error", () => {}); // `close` follows and tells it
  }

  send(frame: unknown): void {
    this.#socket.send(typeof frame === "string" ? frame : JSON.stringify(frame));
  }

  event(event: string, payload: unknown, rest: Record<string, unknown> = {}): void {
    this.send({ type: "event", event, payload, ...rest });
  }

  answer(id: string, payload: unknown): void {
    this.send({ type: "res", id, ok: true, payload });
  }

  refuse(id: string, error: WireError): void {
    this.send({ type: "res", id, ok: false, error });
  }

  /** The next frame of the client. */
  async receive(): Promise<Frame> {
    while (this.#frames.length === 0) {
      if (this.#isGone) throw new PeerGone();
      this.#wake = Promise.withResolvers();
      await this.#wake.promise;
    }
    return this.#frames.shift();
  }

  /** Challenge, `connect`, `hello-ok`; returns the connect params. */
  async welcome(
    { challenge = CHALLENGE, hello = {} }: { challenge?: unknown; hello?: object } = {},
  ): Promise<Frame> {
    this.event("connect.challenge", challenge);
    const { id, params } = await this.receive();
    this.answer(id, helloOk(hello));
    return params;
  }

  /** Challenge, `connect`, a refusal and its close frame; returns the connect params. */
  async turnAway(error: WireError, code = 1008): Promise<Frame> {
    this.event("connect.challenge", CHALLENGE);
    const { id, params } = await this.receive();
    this.refuse(id, error);
    this.close(code, error.message);
    return params;
  }

  close(code: number, reason = ""): void {
    this.#socket.close(code, reason);
  }

  /** Drops the connection without a close frame. */
  terminate(): void {
    this.#socket.terminate();
  }
}

export interface ScriptedGateway extends AsyncDisposable {
  url: string;
  port: number;
  /** How many connections there were. */
  readonly connections: number;
}

/** What a script throws fails the test when the gateway is disposed of. */
export async function startScriptedGateway(
  script: (peer: Peer) => Promise<unknown> | unknown,
): Promise<ScriptedGateway> {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  await new Promise<void>((resolve) => server.on("listening", () => resolve()));
  const { port } = server.address() as { port: number };
  const runs: Promise<unknown>[] = [];
  server.on("connection", (socket: ServerSocket) => {
    const peer = new Peer(socket, runs.length + 1);
    const run = Promise.resolve(peer).then(script);
    runs.push(run.catch((error) => {
      if (!(error instanceof PeerGone)) throw error;
    }));
  });
  return {
    url: `ws://127.0.0.1:${port}`,
    port,
    get connections() {
      return runs.length;
    },
    async [Symbol.asyncDispose]() {
      for (const socket of server.clients) socket.terminate();
      await new Promise((resolve) => server.close(resolve));
      await Promise.all(runs);
    },
  };
}

export function helloOk(overrides: object = {}): object {
  return {
    type: "hello-ok",
    protocol: 4,
    server: { version: "9.9.9", host: "scripted", connId: "c1" },
    features: { methods: ["health"], events: ["tick"] },
    snapshot: { presence: [], health: {}, stateVersion: { presence: 1, health: 1 }, uptimeMs: 1 },
    policy: { maxPayload: 26_214_400, maxBufferedBytes: 52_428_800, tickIntervalMs: 30_000 },
    ...overrides,
  };
}
