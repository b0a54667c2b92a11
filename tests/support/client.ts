// A client of the gateway as tests need one: it sends what it is told, also what no real client would,
// and every wait of it ends, with the answer or with a failure that says what did not come.

// @ts-types="npm:@types/ws@8.18.1"
import { WebSocket } from "ws";
import type { WireError } from "../../rpc/error.ts";
import type { SignedVersion } from "../../rpc/identity.ts";
import { type Identity, proofOf } from "./device.ts";

// What comes from outside has no shape; each test says what it expects.
// deno-lint-ignore no-explicit-any
export type Json = any;

export interface Closed {
  code: number;
  reason: string;
}

/** A refused connect: the error of the response, and the close after it. */
export interface Refused {
  /** On JSON-RPC connections the error object of that standard. */
  error: Json;
  closed: Closed;
}

export interface OpenOptions {
  /** Headers of the upgrade. */
  headers?: Record<string, string>;
  path?: string;
}

export interface ConnectOptions extends OpenOptions {
  /** Offered as the only version, 4 unless given. */
  protocol?: 3 | 4;
  role?: "operator" | "node";
  scopes?: readonly string[];
  /** Absent: no `auth` at all. */
  auth?: { token?: string; password?: string; deviceToken?: string; bootstrapToken?: string };
  /** Changes to `client`. */
  client?: Partial<ClientInfo>;
  device?: Identity;
  /** Payload version the device signs. */
  signs?: SignedVersion;
  /** Send and sign without the nonce of the challenge. */
  withoutNonce?: boolean;
  /** Changes to the device block after it was signed. */
  proof?: Record<string, unknown>;
  /** When the device says it signed; the challenge's time unless given. */
  signedAtMs?: number;
  /** Further members of the connect params, or replacements. */
  params?: Record<string, unknown>;
  /** Speak JSON-RPC 2.0. */
  jsonrpc?: boolean;
}

interface ClientInfo {
  id: string;
  mode: string;
  version: string;
  platform: string;
  displayName: string;
  deviceFamily: string;
  modelIdentifier: string;
  instanceId: string;
}

const CLIENT = { id: "gateway-client", mode: "backend", version: "0.0.0", platform: "test" };
/** Nothing takes this long on a machine that works. */
const DEADLINE_MS = 15_000;

/** Resolves with what is awaited, or rejects when it does not come. */
export async function within<T>(awaited: Promise<T>, what: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} did not come`)), DEADLINE_MS);
  });
  try {
    return await Promise.race([awaited, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** A WebSocket, and everything that came over it in order. */
export class TestSocket implements AsyncDisposable {
  readonly closed: Promise<Closed>;
  readonly #socket: WebSocket;
  readonly #frames: Json[] = [];
  #arrived = Promise.withResolvers<void>();
  #isClosed = false;

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    this.closed = new Promise((resolve) => {
      socket.on("close", (code: number, reason: unknown) => {
        this.#isClosed = true;
        this.#wake();
        resolve({ code, reason: String(reason) });
      });
    });
    socket.on("message", (data: unknown) => {
      this.#frames.push(JSON.parse(String(data)));
      this.#wake();
    });
    socket.on("error", () => {}); // `close` follows and tells it
  }

  /** @throws {Error} with `status` and `body` when the gateway does not upgrade */
  static async open(url: string, { headers, path = "" }: OpenOptions = {}): Promise<TestSocket> {
    const socket = new WebSocket(`${url}${path}`, {
      headers,
      maxPayload: 26_214_400,
      // Whose certificate it is, is looked at where that is the question.
      rejectUnauthorized: false,
    });
    const opened = new Promise<void>((resolve, reject) => {
      socket.once("open", () => resolve());
      socket.once("unexpected-response", (_request: unknown, response: Json) => {
        let body = "";
        response.on("data", (chunk: unknown) => body += chunk);
        response.on("end", () => {
          const status: number = response.statusCode;
          reject(Object.assign(new Error(`HTTP ${status}: ${body.trim()}`), { status, body }));
        });
      });
      socket.once("error", (error: Error) => reject(error));
    });
    const test = new TestSocket(socket);
    try {
      await within(opened, "the upgrade");
    } catch (error) {
      socket.terminate();
      throw error;
    }
    return test;
  }

  /** Frames that came and were not taken. */
  get waiting(): readonly Json[] {
    return this.#frames;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  send(frame: unknown) {
    this.#socket.send(typeof frame === "string" ? frame : JSON.stringify(frame));
  }

  sendBinary(bytes: Uint8Array) {
    this.#socket.send(bytes);
  }

  ping() {
    const pong = new Promise<void>((resolve) => this.#socket.once("pong", () => resolve()));
    this.#socket.ping();
    return within(pong, "the pong");
  }

  /** Stops reading, so that what is sent to this client piles up. */
  pause() {
    this.#socket.pause();
  }

  resume() {
    this.#socket.resume();
  }

  /** Takes the first frame that fits, now or when it comes. */
  async take(fits: (frame: Json) => boolean, what = "a frame"): Promise<Json> {
    const wish = { isGivenUp: false };
    try {
      return await within(this.#take(fits, what, wish), what);
    } finally {
      // Else it would take a frame that somebody else waits for by then.
      wish.isGivenUp = true;
    }
  }

  /** Whoever waits looks again: all of them, for several may wait at once. */
  #wake() {
    const arrived = this.#arrived;
    this.#arrived = Promise.withResolvers();
    arrived.resolve();
  }

  async #take(
    fits: (frame: Json) => boolean,
    what: string,
    wish: { isGivenUp: boolean },
  ): Promise<Json> {
    while (!wish.isGivenUp) {
      const index = this.#frames.findIndex(fits);
      if (index >= 0) return this.#frames.splice(index, 1)[0];
      if (this.#isClosed) {
        const { code, reason } = await this.closed;
        throw new Error(`closed (${code} ${reason}) before ${what} came`);
      }
      await this.#arrived.promise;
    }
    throw new Error(`${what} is waited for no longer`);
  }

  /** The close frame of the gateway. */
  end(): Promise<Closed> {
    return within(this.closed, "the close frame");
  }

  /** The other end is asked to close; what it answers is returned. */
  async close(code = 1000, reason = ""): Promise<Closed> {
    if (!this.#isClosed) this.#socket.close(code, reason);
    return await this.end();
  }

  /** Gone without a word. */
  async terminate(): Promise<void> {
    this.#socket.terminate();
    await this.end();
  }

  async [Symbol.asyncDispose]() {
    if (!this.#isClosed) await this.terminate();
  }
}

/** The `connect` of a client that was sent this challenge. */
export async function connectParams(
  options: ConnectOptions,
  challenge: { nonce: string; ts: number },
): Promise<Record<string, unknown>> {
  const { protocol = 4, role = "operator", auth, device, withoutNonce, signs } = options;
  const scopes = options.scopes ?? (role === "node" ? [] : ["operator.admin"]);
  const isNode = role === "node";
  const client = {
    ...CLIENT,
    ...(isNode && { id: "node-host", mode: "node", platform: "linux" }),
    ...options.client,
  };
  const params = {
    minProtocol: protocol,
    maxProtocol: protocol,
    client,
    role,
    scopes,
    ...(auth && { auth }),
  };
  const proof = device && await proofOf(device, {
    client,
    role,
    scopes,
    auth,
    signedAtMs: options.signedAtMs ?? challenge.ts,
    ...(!withoutNonce && { nonce: challenge.nonce }),
  }, signs);
  return { ...params, ...(proof && { device: { ...proof, ...options.proof } }), ...options.params };
}

/** Opens a socket, answers the challenge, and returns what became of it. */
export async function handshake(
  url: string,
  options: ConnectOptions,
): Promise<TestClient | Refused> {
  const socket = await TestSocket.open(url, options);
  try {
    const challenge = (await socket.take(isEvent("connect.challenge"), "the challenge")).payload;
    const params = await connectParams(options, challenge);
    const { jsonrpc = false } = options;
    socket.send(
      jsonrpc
        ? { jsonrpc: "2.0", id: "connect", method: "connect", params }
        : { type: "req", id: "connect", method: "connect", params },
    );
    const answer = await socket.take(({ id }) => id === "connect", "the answer to connect");
    if (answer.error === undefined) {
      const hello = jsonrpc ? answer.result : answer.payload;
      return new TestClient(socket, hello, { jsonrpc, challenge });
    }
    return { error: answer.error, closed: await socket.end() };
  } catch (error) {
    await socket.terminate();
    throw error;
  }
}

/** A connection that is in. */
export class TestClient implements AsyncDisposable {
  readonly hello: Json;
  readonly challenge: Json;
  readonly socket: TestSocket;
  readonly #isJsonRpc: boolean;
  #nextId = 1;

  constructor(
    socket: TestSocket,
    hello: Json,
    { jsonrpc, challenge }: { jsonrpc: boolean; challenge: Json },
  ) {
    this.socket = socket;
    this.hello = hello;
    this.challenge = challenge;
    this.#isJsonRpc = jsonrpc;
  }

  /** `hello-ok.auth`. */
  get auth(): Json {
    return this.hello.auth ?? {};
  }

  /** The whole answer, as it came. */
  async request(method: string, params?: unknown): Promise<Json> {
    const id = `r${this.#nextId++}`;
    this.socket.send(
      this.#isJsonRpc
        ? { jsonrpc: "2.0", id, method, params }
        : { type: "req", id, method, params },
    );
    return await this.socket.take((frame) => frame.id === id, `the answer to ${method}`);
  }

  /** @throws {Error} with `wire`, the error, when the call is refused */
  async call(method: string, params?: unknown): Promise<Json> {
    const answer = await this.request(method, params);
    if (answer.error === undefined) return this.#isJsonRpc ? answer.result : answer.payload;
    const message = `${method} failed: ${answer.error.message}`;
    throw Object.assign(new Error(message), { wire: answer.error });
  }

  /** The error of a call that must fail. */
  async refused(method: string, params?: unknown): Promise<WireError & Json> {
    const answer = await this.request(method, params);
    if (answer.error === undefined) throw new Error(`${method} was not refused`);
    return answer.error;
  }

  /** The payload of the next event of that name which was not taken yet. */
  async event(name: string, fits: (payload: Json) => boolean = () => true): Promise<Json> {
    const frame = await this.eventFrame(name, fits);
    return this.#isJsonRpc ? frame.params : frame.payload;
  }

  async eventFrame(name: string, fits: (payload: Json) => boolean = () => true): Promise<Json> {
    return await this.socket.take(
      (frame) =>
        this.#isJsonRpc
          ? frame.method === name && fits(frame.params)
          : isEvent(name)(frame) && fits(frame.payload),
      `the event ${name}`,
    );
  }

  /** Events that came and were not taken: their names. */
  get untakenEvents(): string[] {
    return this.socket.waiting.map((frame) => frame.event ?? frame.method).filter(Boolean);
  }

  get closed(): Promise<Closed> {
    return this.socket.end();
  }

  close(): Promise<Closed> {
    return this.socket.close();
  }

  async [Symbol.asyncDispose]() {
    await this.socket[Symbol.asyncDispose]();
  }
}

function isEvent(name: string): (frame: Json) => boolean {
  return (frame) => frame.type === "event" && frame.event === name;
}
