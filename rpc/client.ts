// The calling end of the wire: handshake with the challenge signed, calls with deadlines, events,
// the stall rule, and reconnecting with backoff (protocol.md §1, §3, §4.7). How a socket comes to
// be is the matter of whoever passes `open`.

import { type ErrorCode, type RefusalDetails, RpcError, type WireError } from "./error.ts";
import { closeReason, type EventFrame } from "./frame.ts";
import { type Identity, sign, signedText, signedToken } from "./identity.ts";
import type { Role } from "./scope.ts";

/** What the client needs of a `WebSocket`; the platform's own and that of `ws` both fit. */
export interface Socket {
  readonly readyState: number;
  send(text: string): void;
  close(code?: number, reason?: string): void;
  /** Drops the connection without a closing handshake, where the socket can do that. */
  terminate?(): void;
  // deno-lint-ignore no-explicit-any
  addEventListener(type: string, listener: (event: any) => void): void;
}

/** `client` of the connect params (§3.2). */
export interface ClientInfo {
  id: string;
  mode: string;
  version: string;
  platform: string;
  displayName?: string;
  deviceFamily?: string;
  modelIdentifier?: string;
  instanceId?: string;
}

export interface Credential {
  token?: string;
  password?: string;
  /** The secret of an invitation. */
  bootstrapToken?: string;
}

/** A token a gateway gave to this device for one role. */
export interface DeviceToken {
  token: string;
  role: string;
  scopes: string[];
}

/** Where device tokens are kept. A gateway that tells no id is known by its address alone. */
export interface DeviceTokens {
  find(gatewayId: string | undefined, role: string): Promise<DeviceToken | undefined>;
  /** Tells of its own failures: the connection does without. */
  keep(gatewayId: string | undefined, token: DeviceToken): Promise<void>;
  drop(gatewayId: string | undefined, role: string): Promise<void>;
}

/** `hello-ok` (§3.6); members that this client does not read itself are as they came. */
export interface HelloOk {
  type: "hello-ok";
  protocol: 3 | 4;
  server: { version?: string; host?: string; connId?: string };
  features: { methods?: string[]; events?: string[] };
  snapshot: Record<string, unknown>;
  auth?: { method?: string; role?: string; scopes?: string[]; deviceToken?: string };
  policy: { tickIntervalMs?: number; maxPayload?: number; maxBufferedBytes?: number };
}

export interface ConnectOptions {
  /** Returns a socket none of whose events has been delivered yet. */
  open(signal: AbortSignal): Socket | Promise<Socket>;
  /** What the connection runs through: disposed when the client has ended, or never came to be. */
  owned?: AsyncDisposable;
  client: ClientInfo;
  /** Awaited once the gateway has asked for proof. */
  identity?: Identity | Promise<Identity | undefined>;
  /** What was configured or typed. Without it a stored device token is presented. */
  auth?: Credential;
  tokens?: DeviceTokens;
  /** Whether a stored token may follow a refused `auth` that was not typed for the occasion. */
  retriesWithDeviceToken?: boolean;
  role?: Role;
  scopes?: readonly string[];
  caps?: readonly string[];
  commands?: readonly string[];
  permissions?: Readonly<Record<string, boolean>>;
  pathEnv?: string;
  minProtocol?: number;
  maxProtocol?: number;
  /** Deadline from dialling to `hello-ok`; more than the 10 s a gateway gives itself. */
  timeoutMs?: number;
  reconnect?: boolean | ReconnectOptions;
  /** Ends the client, and a first connect that is still trying. */
  signal?: AbortSignal;
  /** Called with every `hello-ok`, before `connect` resolves and before any event. */
  onHello?(hello: HelloOk): void;
  /** Called with every event, also with those that come before `connect` has resolved. */
  onEvent?(frame: EventFrame): void;
  /** Called when a connection was lost or refused; `retryInMs` is undefined after the last one. */
  onDown?(error: Error, retryInMs: number | undefined): void;
  /** Called when broadcasts were missed: refresh what was built from them (§1.1). */
  onGap?(gap: { expected: number; received: number }): void;
  /** Milliseconds since the epoch. */
  now?(): number;
}

export interface ReconnectOptions {
  /**
   * How long to wait before the next attempt, or undefined to give up.
   *
   * @param attempt failures since the last stable session, from 0
   */
  delayMs?(error: Error, attempt: number): number | undefined;
  /** How long a session must have lived to start the backoff anew. */
  stableAfterMs?: number;
}

export interface CallOptions {
  timeoutMs?: number;
  /** Wait on while the answer says `status: "accepted"` (§7.3). */
  expectFinal?: boolean;
}

/** The connection ended, or never came to be. */
export class ClosedError extends Error {
  override name = "ClosedError";
  readonly code: number;
  readonly reason: string;
  readonly hint?: string;
  /** Whether the WebSocket was open at all; if not, nobody speaks this protocol there. */
  readonly wasOpen: boolean;
  /** What the gateway answered to `connect`, when it answered at all. */
  readonly refusal?: RpcError;

  constructor(
    code: number,
    reason: string,
    { wasOpen = true, refusal, cause }: {
      wasOpen?: boolean;
      refusal?: RpcError;
      cause?: unknown;
    } = {},
  ) {
    const hint = CLOSE_HINTS[code];
    super(`gateway closed (${hint ? `${code} ${hint}` : code}): ${reason || "no close reason"}`, {
      cause: refusal ?? cause,
    });
    this.code = code;
    this.reason = reason;
    this.hint = hint;
    this.wasOpen = wasOpen;
    this.refusal = refusal;
  }

  /** What the refusal says of itself (D13), as far as it says anything. */
  get details(): Partial<RefusalDetails> {
    const details = this.refusal?.details;
    return typeof details === "object" && details !== null ? details : {};
  }
}

/** The gateway did not answer in time. */
export class GatewayTimeoutError extends Error {
  override name = "GatewayTimeoutError";

  constructor(readonly timeoutMs: number) {
    super(`gateway timeout after ${timeoutMs}ms`);
  }
}

/** How long a client waits for the challenge before it signs without a nonce (§3.1). */
export const CHALLENGE_WAIT_MS = 750;
/** A refusal that the same credentials will meet again is not repeated sooner than this. */
export const REFUSED_WAIT_MS = 60_000;

/**
 * When to try again: 1 s to 30 s, growing, anywhere within the range so that clients of a gateway
 * that restarted do not return together. A refusal of what this client presents waits a minute at
 * least. What `open` throws is final (a wrong certificate) unless it says `isTransient`.
 *
 * @param random in [0, 1)
 */
export function reconnectDelayMs(
  error: Error,
  attempt: number,
  random: () => number = Math.random,
): number | undefined {
  if (!isTransient(error)) return undefined;
  const ceilingMs = Math.min(MAX_DELAY_MS, MIN_DELAY_MS * 2 ** (attempt + 1));
  const backoffMs = MIN_DELAY_MS + random() * (ceilingMs - MIN_DELAY_MS);
  if (!(error instanceof ClosedError) || !error.refusal) return Math.round(backoffMs);
  const leastMs = error.refusal.retryAfterMs ?? 0;
  const waitMs = isFutile(error) ? REFUSED_WAIT_MS + backoffMs : backoffMs;
  return Math.round(Math.max(waitMs, leastMs));
}

type Listener = (payload: unknown, frame: EventFrame) => void;

/** One caller of one gateway, over one connection after the other. */
export class Client implements AsyncDisposable {
  /** Resolves, never rejects, when the client has ended for good. */
  readonly closed: Promise<Error>;
  readonly #options: ConnectOptions;
  readonly #listeners = new Map<string, Set<Listener>>();
  readonly #stop = new AbortController();
  readonly #end = Promise.withResolvers<Error>();
  #kept: Promise<void> = Promise.resolve();
  #session?: Session;
  #hello?: HelloOk;
  #last: Error = new Error("Cannot call the gateway: not connected yet");

  private constructor(options: ConnectOptions) {
    this.#options = options;
    this.closed = this.#end.promise;
  }

  /**
   * Connects and waits for `hello-ok`. With `reconnect`, until there is one.
   *
   * @throws {ClosedError} with the refusal, or with what stood in the way
   * @throws {GatewayTimeoutError}
   */
  static async connect(options: ConnectOptions): Promise<Client> {
    const client = new Client(options);
    const { signal } = options;
    const abort = () => client.#stop.abort(signal?.reason);
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort);
    client.closed.then(() => signal?.removeEventListener("abort", abort));
    await client.#start();
    return client;
  }

  /** The last `hello-ok`. */
  get hello(): HelloOk {
    return this.#hello!;
  }

  /**
   * @throws {RpcError} with what the gateway answered
   * @throws {ClosedError} when the connection is down or goes down
   * @throws {GatewayTimeoutError}
   */
  call(method: string, params: unknown = {}, options: CallOptions = {}): Promise<unknown> {
    return this.#session?.request(method, params, options) ?? Promise.reject(this.#last);
  }

  /** Listens to an event, or to all with `*`; the result stops that. */
  on(event: string, listener: Listener): () => void {
    const listeners = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #start(): Promise<void> {
    const started = Promise.withResolvers<void>();
    this.#run(started.resolve).then(async (error) => {
      // A token that could not be kept costs the next client a new one, and this one nothing.
      await this.#kept.catch(() => {});
      await this.#options.owned?.[Symbol.asyncDispose]();
      this.#last = error;
      started.reject(error);
      this.#end.resolve(error);
    });
    return started.promise;
  }

  /** Holds one session after the other; resolves with why there will be no further one. */
  async #run(onFirst: () => void): Promise<Error> {
    const { reconnect, onDown, now = Date.now } = this.#options;
    const { delayMs = reconnectDelayMs, stableAfterMs = STABLE_AFTER_MS } =
      typeof reconnect === "object" ? reconnect : {};
    const { signal } = this.#stop;
    for (let attempt = 0;; attempt++) {
      let error: Error;
      try {
        const session = await this.#establish();
        const sinceMs = now();
        onFirst();
        error = await session.closed;
        if (now() - sinceMs >= stableAfterMs) attempt = 0;
      } catch (caught) {
        error = caught as Error;
      }
      this.#session = undefined;
      this.#last = error;
      if (signal.aborted) return error;
      const retryInMs = reconnect ? delayMs(error, attempt) : undefined;
      onDown?.(error, retryInMs);
      if (retryInMs === undefined) return error;
      await pause(retryInMs, signal);
      if (signal.aborted) return error;
    }
  }

  /** Connects with what was configured, and once more with a stored token if that may help. */
  async #establish(): Promise<Session> {
    try {
      return await this.#connectOnce(false);
    } catch (error) {
      const { tokens, retriesWithDeviceToken = true } = this.#options;
      const isWorthRetrying = error instanceof ClosedError && tokens && retriesWithDeviceToken &&
        error.details.canRetryWithDeviceToken === true && this.#hasCredential;
      if (!isWorthRetrying) throw error;
      try {
        return await this.#connectOnce(true);
      } catch {
        // The first refusal tells the owner what is wrong with the credential they configured.
        throw error;
      }
    }
  }

  get #hasCredential(): boolean {
    const { token, password, bootstrapToken } = this.#options.auth ?? {};
    return Boolean(token || password || bootstrapToken);
  }

  async #connectOnce(withStoredToken: boolean): Promise<Session> {
    const { tokens, role = "operator", timeoutMs = CONNECT_TIMEOUT_MS } = this.#options;
    const deadline = new Deadline(timeoutMs, this.#stop.signal);
    let session: Session | undefined;
    try {
      const socket = await deadline.race(
        Promise.resolve(this.#options.open(deadline.signal)).then((opened) => {
          if (deadline.signal.aborted) closeQuietly(opened, 1000, "");
          return opened;
        }),
      );
      session = new Session(socket, {
        onEvent: (frame) => this.#emit(frame),
        onGap: this.#options.onGap,
      });
      await deadline.race(session.opened);
      const challenge = await deadline.race(session.challenge(CHALLENGE_WAIT_MS));
      const stored = withStoredToken || !this.#hasCredential
        ? await tokens?.find(challenge?.gatewayId, role)
        : undefined;
      if (withStoredToken && !stored) throw new Error("no stored token");
      const auth = stored ? { token: stored.token } : this.#options.auth ?? {};
      // A token opens no more than it was made for.
      const scopes = stored?.scopes.length ? stored.scopes : this.#options.scopes;
      const params = await connectParams({ ...this.#options, scopes }, auth, challenge);
      const hello = readHello(await deadline.race(session.connect(params, timeoutMs)));
      session.watchTicks(hello.policy.tickIntervalMs);
      this.#session = session;
      this.#hello = hello;
      this.#keepToken(hello, challenge?.gatewayId, stored);
      this.#options.onHello?.(hello);
      session.releaseEvents();
      const stop = session.close.bind(session, 1000, "");
      this.#stop.signal.addEventListener("abort", stop);
      session.closed.then(() => this.#stop.signal.removeEventListener("abort", stop));
      if (this.#stop.signal.aborted) stop();
      return session;
    } catch (error) {
      session?.close(1008, "connect failed");
      await session?.closed;
      await this.#dropRefusedToken(error, session, withStoredToken);
      throw error;
    } finally {
      deadline.clear();
    }
  }

  /** Goes on beside the first calls; the client does not end before it is done. */
  #keepToken(
    { auth }: HelloOk,
    gatewayId: string | undefined,
    presented: DeviceToken | undefined,
  ): void {
    const { tokens, role = "operator" } = this.#options;
    if (!tokens || !auth?.deviceToken || auth.deviceToken === presented?.token) return;
    const token = {
      token: auth.deviceToken,
      role: auth.role ?? role,
      scopes: [...auth.scopes ?? []].sort(),
    };
    this.#kept = this.#kept.then(() => tokens.keep(gatewayId, token));
  }

  /** A stored token that the gateway says is wrong will not get better. */
  async #dropRefusedToken(
    error: unknown,
    session: Session | undefined,
    withStoredToken: boolean,
  ): Promise<void> {
    const { tokens, role = "operator" } = this.#options;
    const isOurs = withStoredToken || !this.#hasCredential;
    if (!isOurs || !(error instanceof ClosedError)) return;
    if (error.details.code === "AUTH_TOKEN_MISMATCH") {
      await tokens?.drop(session?.gatewayId, role);
    }
  }

  #emit(frame: EventFrame): void {
    this.#options.onEvent?.(frame);
    for (const name of [frame.event, "*"]) {
      for (const listener of this.#listeners.get(name) ?? []) listener(frame.payload, frame);
    }
  }
}

/** Hint texts of §1.3. */
const CLOSE_HINTS: Record<number, string | undefined> = {
  1000: "normal closure",
  1006: "abnormal closure (no close frame)",
  1008: "policy violation",
  1012: "service restart",
};
const MIN_DELAY_MS = 1_000;
const MAX_DELAY_MS = 30_000;
/** A session this long has shown that the gateway is well, whatever ended it. */
const STABLE_AFTER_MS = 30_000;
const CONNECT_TIMEOUT_MS = 15_000;
const CALL_TIMEOUT_MS = 30_000;
/** How long a refused client waits for the close frame that follows the refusal. */
const CLOSE_FRAME_WAIT_MS = 1_000;
/** How long a closing handshake may take before the client stops caring. */
const CLOSE_WAIT_MS = 250;

interface Challenge {
  nonce?: string;
  ts?: number;
  gatewayId?: string;
}

interface Pending {
  resolve(payload: unknown): void;
  reject(error: Error): void;
  expectFinal: boolean;
  timeoutMs: number;
  /** On the monotonic clock. */
  deadlineMs: number;
}

interface SessionEvents {
  onEvent(frame: EventFrame): void;
  onGap?(gap: { expected: number; received: number }): void;
}

/** One socket: calls in flight, the order of events, and the stall rule. */
class Session {
  readonly opened: Promise<void>;
  readonly closed: Promise<ClosedError>;
  gatewayId?: string;
  readonly #socket: Socket;
  readonly #events: SessionEvents;
  readonly #opened = Promise.withResolvers<void>();
  readonly #closed = Promise.withResolvers<ClosedError>();
  readonly #challenge = Promise.withResolvers<Challenge>();
  readonly #pending = new Map<string, Pending>();
  #nextId = 1;
  /** Events that came before the owner knew of the connection. */
  #held?: EventFrame[] = [];
  #lastSeq?: number;
  #failure?: unknown;
  #isOpen = false;
  #end?: ClosedError;
  #isClosing = false;
  /** When the calls in flight are looked through for late ones; Infinity: not at all. */
  #sweepAtMs = Infinity;
  #cancelStall = () => {};
  #tickIntervalMs = 0;

  constructor(socket: Socket, events: SessionEvents) {
    this.#socket = socket;
    this.#events = events;
    this.opened = this.#opened.promise;
    this.closed = this.#closed.promise;
    // Both are awaited only while they matter; the end of the session is told by `closed`.
    this.opened.catch(() => {});
    socket.addEventListener("open", () => {
      this.#isOpen = true;
      this.#opened.resolve();
    });
    socket.addEventListener("message", ({ data }) => this.#receive(data));
    socket.addEventListener("error", (event) => this.#failure = event.error ?? event.message);
    socket.addEventListener("close", ({ code, reason }) =>
      // Deno says 0 where the standard says 1006.
      this.#finish(code || 1006, reason));
  }

  /** @returns undefined when none came in time */
  async challenge(timeoutMs: number): Promise<Challenge | undefined> {
    const found = await within(timeoutMs, Promise.race([this.#challenge.promise, this.closed]));
    if (found instanceof ClosedError) throw found;
    return found;
  }

  /** Sends `connect`. A refusal is told once the close frame that follows it is there. */
  async connect(params: unknown, timeoutMs: number): Promise<unknown> {
    try {
      return await this.request("connect", params, { timeoutMs });
    } catch (refusal) {
      if (!(refusal instanceof RpcError)) throw refusal;
      const end = await within(CLOSE_FRAME_WAIT_MS, this.closed);
      throw new ClosedError(end?.code ?? 1008, end?.reason || refusal.message, { refusal });
    }
  }

  request(
    method: string,
    params: unknown,
    { timeoutMs = CALL_TIMEOUT_MS, expectFinal = false }: CallOptions,
  ): Promise<unknown> {
    if (this.#end) return Promise.reject(this.#end);
    const id = String(this.#nextId++);
    return new Promise((resolve, reject) => {
      const deadlineMs = performance.now() + timeoutMs;
      this.#pending.set(id, { resolve, reject, expectFinal, timeoutMs, deadlineMs });
      if (deadlineMs < this.#sweepAtMs) this.#sweepAt(deadlineMs);
      this.#socket.send(JSON.stringify({ type: "req", id, method, params }));
    });
  }

  releaseEvents(): void {
    const held = this.#held ?? [];
    this.#held = undefined;
    for (const frame of held) this.#events.onEvent(frame);
  }

  /** @param tickIntervalMs what the gateway promised; without it nothing is watched */
  watchTicks(tickIntervalMs: number | undefined): void {
    if (!tickIntervalMs || this.#end) return;
    this.#tickIntervalMs = tickIntervalMs;
    this.#cancelStall();
    this.#cancelStall = after(2 * tickIntervalMs, () => {
      closeQuietly(this.#socket, 4000, "tick timeout");
      this.#socket.terminate?.();
      // A peer that is silent will not answer the close frame either.
      this.#finish(4000, "tick timeout");
    });
  }

  /** Idempotent; `closed` resolves with the answer of the other end, or without it soon after. */
  close(code: number, reason: string): void {
    if (this.#end || this.#isClosing) return;
    this.#isClosing = true;
    closeQuietly(this.#socket, code, reason);
    after(CLOSE_WAIT_MS, () => this.#finish(code, reason));
  }

  /** One timer for all calls in flight: most are answered long before it fires. */
  #sweepAt(atMs: number): void {
    this.#sweepAtMs = atMs;
    after(Math.max(0, Math.ceil(atMs - performance.now())), () => {
      if (this.#sweepAtMs !== atMs) return;
      let nextMs = Infinity;
      const nowMs = performance.now();
      for (const [id, { deadlineMs, timeoutMs, reject }] of this.#pending) {
        if (deadlineMs > nowMs) {
          nextMs = Math.min(nextMs, deadlineMs);
          continue;
        }
        this.#pending.delete(id);
        reject(new GatewayTimeoutError(timeoutMs));
      }
      this.#sweepAtMs = Infinity;
      if (nextMs < Infinity) this.#sweepAt(nextMs);
    });
  }

  #receive(data: unknown): void {
    if (typeof data !== "string" || this.#end) return;
    const frame = parseFrame(data);
    if (frame?.type === "res") this.#settle(frame as unknown as ResponseLike);
    else if (frame?.type === "event") this.#deliver(frame as unknown as EventFrame);
  }

  #settle({ id, ok, payload, error }: ResponseLike): void {
    const pending = this.#pending.get(id);
    if (!pending) return;
    const isAccepted = (payload as { status?: unknown } | undefined)?.status === "accepted";
    if (ok && pending.expectFinal && isAccepted) return;
    this.#pending.delete(id);
    if (ok) pending.resolve(payload);
    else pending.reject(fromWire(error));
  }

  #deliver(frame: EventFrame): void {
    if (frame.event === "connect.challenge") {
      const challenge = readChallenge(frame.payload);
      this.gatewayId = challenge.gatewayId;
      this.#challenge.resolve(challenge);
      return;
    }
    if (frame.event === "tick") this.watchTicks(this.#tickIntervalMs);
    if (typeof frame.seq === "number") {
      const last = this.#lastSeq;
      this.#lastSeq = frame.seq;
      if (last !== undefined && frame.seq > last + 1) {
        this.#events.onGap?.({ expected: last + 1, received: frame.seq });
      }
    }
    if (this.#held) this.#held.push(frame);
    else this.#events.onEvent(frame);
  }

  #finish(code: number, reason: string): void {
    if (this.#end) return;
    this.#cancelStall();
    const failure = this.#failure;
    const text = failure instanceof Error ? failure.message : String(failure ?? "");
    this.#end = new ClosedError(code, reason || (this.#isOpen ? "" : text), {
      wasOpen: this.#isOpen,
      cause: failure,
    });
    for (const { reject } of this.#pending.values()) reject(this.#end);
    this.#pending.clear();
    this.#opened.reject(this.#end);
    this.#closed.resolve(this.#end);
  }
}

/** As a response came, before anything is known of it. */
interface ResponseLike {
  id: string;
  ok: unknown;
  payload?: unknown;
  error?: Partial<WireError>;
}

/** One deadline over several steps, also ended by a signal. */
class Deadline {
  readonly signal: AbortSignal;
  readonly #controller = new AbortController();
  readonly #expired = Promise.withResolvers<never>();
  readonly #cancel: () => void;
  readonly #stop: AbortSignal;
  readonly #onStop = () => this.#expire(new ClosedError(1000, "closed by the client"));

  constructor(timeoutMs: number, stop: AbortSignal) {
    this.signal = this.#controller.signal;
    this.#stop = stop;
    this.#expired.promise.catch(() => {}); // told through `race` alone
    this.#cancel = after(timeoutMs, () => this.#expire(new GatewayTimeoutError(timeoutMs)));
    stop.addEventListener("abort", this.#onStop);
    if (stop.aborted) this.#onStop();
  }

  race<T>(step: Promise<T>): Promise<T> {
    return Promise.race([step, this.#expired.promise]);
  }

  clear(): void {
    this.#cancel();
    this.#stop.removeEventListener("abort", this.#onStop);
  }

  #expire(error: Error): void {
    this.#expired.reject(error);
    this.#controller.abort(error);
  }
}

async function connectParams(
  options: ConnectOptions,
  auth: Credential,
  challenge: Challenge | undefined,
): Promise<Record<string, unknown>> {
  const { client, role = "operator", scopes = [], caps = [], now = Date.now } = options;
  const { commands, permissions, pathEnv } = options;
  const params: Record<string, unknown> = {
    minProtocol: options.minProtocol ?? 3,
    maxProtocol: options.maxProtocol ?? 4,
    client,
    caps,
    commands,
    permissions,
    pathEnv,
    role,
    scopes,
    auth: auth.token || auth.password || auth.bootstrapToken ? auth : undefined,
  };
  const identity = await options.identity;
  if (!identity) return params;
  const { deviceId, publicKey } = identity;
  const { nonce } = challenge ?? {};
  const signedAt = challenge?.ts ?? now();
  const signature = await sign(
    identity,
    signedText(nonce ? 2 : 1, {
      deviceId,
      clientId: client.id,
      clientMode: client.mode,
      role,
      scopes,
      signedAtMs: signedAt,
      token: signedToken(auth),
      nonce,
    }),
  );
  return { ...params, device: { id: deviceId, publicKey, signature, signedAt, nonce } };
}

function readChallenge(payload: unknown): Challenge {
  const { nonce, ts, gatewayId } = (payload ?? {}) as Record<string, unknown>;
  return {
    nonce: typeof nonce === "string" && nonce.trim() !== "" ? nonce : undefined,
    ts: Number.isSafeInteger(ts) && ts as number >= 0 ? ts as number : undefined,
    gatewayId: typeof gatewayId === "string" && gatewayId !== "" ? gatewayId : undefined,
  };
}

function readHello(payload: unknown): HelloOk {
  const hello = payload as Partial<HelloOk> | undefined;
  if (hello?.type !== "hello-ok" || (hello.protocol !== 3 && hello.protocol !== 4)) {
    throw new ClosedError(1002, "the answer to connect is no hello-ok of protocol 3 or 4");
  }
  const { server = {}, features = {}, snapshot = {}, policy = {} } = hello;
  return { ...hello, server, features, snapshot, policy } as HelloOk;
}

/** A frame that cannot be read is left out: nothing waits for what cannot be known. */
function parseFrame(text: string): Record<string, unknown> | undefined {
  try {
    const frame = JSON.parse(text);
    return typeof frame === "object" && frame !== null ? frame : undefined;
  } catch {
    return undefined;
  }
}

function fromWire(error: Partial<WireError> | undefined): RpcError {
  const { code = "UNAVAILABLE", message = "no error message", ...rest } = error ?? {};
  return new RpcError(code as ErrorCode, message, rest);
}

function isTransient(error: Error): boolean {
  return error instanceof ClosedError || error instanceof GatewayTimeoutError ||
    (error as { isTransient?: unknown }).isTransient === true;
}

/** Whether the same credentials will meet the same refusal. */
function isFutile({ refusal, details }: ClosedError): boolean {
  if (details.layer === "auth" || details.layer === "device") return true;
  return !(details.retryable ?? refusal?.retryable ?? refusal?.code === "UNAVAILABLE");
}

/** Closes with a code that the platform's own `WebSocket` may not send as 4000 + its last digits. */
function closeQuietly(socket: Socket, code: number, reason: string): void {
  try {
    socket.close(code, closeReason(reason));
  } catch {
    // InvalidAccessError: only 1000 and 3000–4999 are for programs to send (§1.3).
    socket.close(4000 + code % 1000, closeReason(reason));
  }
}

function within<T>(timeoutMs: number, promise: Promise<T>): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    const cancel = after(timeoutMs, () => resolve(undefined));
    promise.then(resolve, reject).finally(cancel);
  });
}

/**
 * Runs something later; the result takes that back. Stands in the place of `setTimeout`, whose first
 * use makes Deno load a good part of `node:timers`: 10 ms that every command would pay. It does not
 * keep the program running; the socket that is waited for does.
 */
function after(ms: number, act: () => void): () => void {
  const signal = AbortSignal.timeout(ms);
  signal.addEventListener("abort", act, { once: true });
  return () => signal.removeEventListener("abort", act);
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const wake = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", wake);
      resolve();
    };
    const timer = setTimeout(wake, ms);
    signal.addEventListener("abort", wake);
  });
}
