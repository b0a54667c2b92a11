// One accepted socket, from the upgrade to the close: handshake, then requests and events, in native
// frames or as JSON-RPC (§1–3). Who gets in is decided in admission.ts, what a call does in rpc/.

import type { IncomingMessage } from "node:http";
// @ts-types="npm:@types/ws@8.18.1"
import type { WebSocket } from "ws";
import { Buffer } from "node:buffer";
import type { Socket } from "node:net";
import { CLIENT_ID, type ClientInfo, ConnectParams, negotiate } from "../rpc/connect.ts";
import { invalidParams, lastOutcome, MAX_PROBLEMS, type Outcome } from "../rpc/dispatch.ts";
import {
  closeReason,
  encodeError,
  encodeEvent,
  encodeResponse,
  encodeResponseJson,
  MAX_BUFFERED_BYTES,
  MAX_PAYLOAD_BYTES,
  MAX_PREAUTH_BYTES,
  readRequest,
} from "../rpc/frame.ts";
import {
  answerJsonRpc,
  encodeAnswer,
  encodeResultJson,
  isJsonRpc,
  type JsonRpcId,
  readCall,
} from "../rpc/jsonrpc.ts";
import type { Role } from "../rpc/scope.ts";
import { problems } from "../rpc/shape.ts";
import { type Admission, admit, Refusal } from "./admission.ts";
import type { PreparedEvent, Subscriber } from "./events.ts";
import type { Call, Gateway } from "./gateway.ts";
import { LARGE_MESSAGE_BYTES } from "./memory.ts";
import type { Headers, Provenance } from "./network.ts";
import type { Declaration } from "./nodes.ts";

type Phase = "waiting" | "connecting" | "open" | "closing";

/** A connection refused this many calls within the window is closed (D16). */
const MAX_REFUSED_CALLS = 50;
const REFUSED_WINDOW_MS = 60_000;
/** A peer that is given up has this long to read its close frame. */
const LAST_WORD_MS = 500;
/** What a stranger's frame costs beside its bytes: a flood of empty ones is a flood too. */
const FRAME_COST_BYTES = 64;

export class Connection implements Subscriber {
  readonly id = crypto.randomUUID();
  readonly closed: Promise<void>;
  /** On the monotonic clock; the handshake deadline counts from here. */
  openedAtMs = performance.now();
  role: Role = "operator";
  scopes: readonly string[] = [];
  deviceId?: string;
  client?: ClientInfo;
  /** How long the last ping took there and back; absent until one was answered. */
  latencyMs?: number;
  /** What the WebSocket reads from and writes to. */
  readonly stream: Socket;

  readonly #gateway: Gateway;
  readonly #socket: WebSocket;
  readonly #provenance: Provenance;
  readonly #nonce = crypto.randomUUID();
  #headers?: Headers;
  #rawHeaders?: readonly string[];
  #phase: Phase = "waiting";
  #isJsonRpc = false;
  #call?: Call;
  #protocol = 3;
  #seq = 0;
  #isAlive = true;
  #pingedAtMs = 0;
  /** Frames are being held back until the end of the turn. */
  #isGathering = false;
  /** Of the connect request, until it is answered. */
  #connectId?: string | JsonRpcId;
  #presenceKey?: string;
  /** What a node offers, until it is registered. */
  #declaration?: Declaration;
  /** Frames that came behind the connect, until it is decided. */
  #early: string[] = [];
  /** What has come beside the connect before that was decided (D1). */
  #strayBytes = 0;
  #refusedCalls = 0;
  #refusedSinceMs = 0;

  constructor(
    gateway: Gateway,
    socket: WebSocket,
    request: IncomingMessage,
    provenance: Provenance,
  ) {
    this.stream = request.socket;
    this.#gateway = gateway;
    this.#socket = socket;
    this.#headers = request.headers;
    this.#rawHeaders = request.rawHeaders;
    this.#provenance = provenance;
    this.closed = new Promise((resolve) =>
      socket.on("close", () => {
        this.#end();
        resolve();
      })
    );
    socket.on("error", (error) => this.#giveUp(error));
    socket.on("message", (data: Buffer, isBinary: boolean) => {
      try {
        this.#receive(data, isBinary);
      } catch (error) {
        this.#lose(error);
      }
    });
    socket.on("pong", () => {
      this.#isAlive = true;
      this.latencyMs = performance.now() - this.#pingedAtMs;
    });
    gateway.connections.await(this);
    const challenge = { nonce: this.#nonce, ts: Date.now(), gatewayId: gateway.id };
    socket.send(encodeEvent("connect.challenge", challenge));
  }

  /** Has not even said connect. */
  get isSilent(): boolean {
    return this.#phase === "waiting";
  }

  get bufferedBytes(): number {
    return this.#socket.bufferedAmount;
  }

  /** The negotiated version, 3 or 4. */
  get protocol(): number {
    return this.#protocol;
  }

  nextSeq(): number {
    return ++this.#seq;
  }

  deliver(event: PreparedEvent, seq: number) {
    if (this.#phase !== "open") return;
    const bytes = this.#isJsonRpc ? event.notification() : event.frame(seq);
    this.#socket.send(bytes, { binary: false });
  }

  /** An event for this connection alone, without a number. @returns false when it has ended */
  sendEvent(name: string, payload: unknown): boolean {
    if (this.#phase !== "open" || this.#isGone()) return false;
    this.#send(
      this.#isJsonRpc
        ? JSON.stringify({ jsonrpc: "2.0", method: name, params: payload })
        : encodeEvent(name, payload),
    );
    return true;
  }

  closeAsSlow() {
    this.#gateway.log.warn("closed a slow consumer", {
      connId: this.id,
      client: this.client?.id,
      bufferedBytes: this.bufferedBytes,
    });
    this.close(1008, "slow consumer");
  }

  close(code: number, reason: string) {
    if (this.#phase === "closing") return;
    this.#phase = "closing";
    this.#socket.close(code, closeReason(reason));
  }

  /** Drops the socket without a close frame. */
  terminate() {
    this.#phase = "closing";
    this.#socket.terminate();
  }

  /** The handshake took too long; who waits for a late refusal gets one now (D2, D13). */
  expire() {
    this.#gateway.log.debug("handshake timeout", { connId: this.id });
    if (this.#phase !== "connecting" || this.#connectId === undefined) return this.close(1000, "");
    const message = "unauthorized: too many failed authentication attempts (retry later)";
    const refusal = new Refusal("INVALID_REQUEST", message, {
      code: "AUTH_RATE_LIMITED",
      layer: "auth",
      retryable: false,
      fix: "Wait some minutes, then connect with the right secret",
    });
    this.#answerConnect(this.#connectId, refusal);
    this.close(refusal.closeCode, refusal.closeReason);
  }

  /** Drops a peer that sent nothing since the last ping, and pings it otherwise. */
  checkAlive() {
    if (!this.#isAlive) {
      this.#gateway.log.info("dropped a silent peer", { connId: this.id, client: this.client?.id });
      return this.terminate();
    }
    this.#isAlive = false;
    this.#ping();
  }

  #ping() {
    this.#pingedAtMs = performance.now();
    this.#socket.ping();
  }

  #receive(data: Buffer, isBinary: boolean) {
    this.#isAlive = true;
    if (data.length >= LARGE_MESSAGE_BYTES) {
      // The pieces it came in, before it is copied once more; later, all of it.
      this.#gateway.garbage.now();
      setImmediate(() => this.#gateway.garbage.now());
    }
    if (this.#phase === "closing") return;
    // Binary frames are voice audio, which is not spoken here (§1).
    if (this.#phase === "open") return isBinary ? undefined : this.#serve(data.toString());
    if (this.#phase === "waiting" && !isBinary) return this.#begin(data.toString());
    this.#strayBytes += data.length + FRAME_COST_BYTES;
    if (this.#strayBytes <= MAX_PREAUTH_BYTES) {
      if (!isBinary) this.#early.push(data.toString());
      return;
    }
    this.close(1009, "preauth payload too large");
    this.#cutOff();
  }

  #begin(text: string) {
    this.#phase = "connecting";
    this.#handshake(text).catch((error) => {
      this.#gateway.log.error("handshake failed", { connId: this.id, error: String(error) });
      this.close(1011, "internal error");
    });
  }

  async #handshake(text: string) {
    const first = readFirst(text);
    if (typeof first === "string") {
      return this.close(first === "" ? 1000 : 1008, first);
    }
    this.#isJsonRpc = first.isJsonRpc;
    this.#connectId = first.id;
    try {
      if (first.method !== "connect") throw notConnect();
      const { params, protocol } = this.#readParams(first.params);
      this.#protocol = protocol;
      const admission = await admit({
        params,
        protocol,
        nonce: this.#nonce,
        provenance: this.#provenance,
        headers: this.#headers ?? {},
        rawHeaders: this.#rawHeaders ?? [],
        nowMs: Date.now(),
      }, this.#gateway.admission);
      if (this.#isGone()) return;
      const json = this.#enter(params, admission);
      this.#send(
        first.isJsonRpc
          ? encodeResultJson(first.id as JsonRpcId, json)
          : encodeResponseJson(first.id as string, json),
      );
      this.#settleIn();
    } catch (thrown) {
      const error = thrown instanceof Refusal ? thrown : this.#fault(thrown);
      this.#logRefusal(error, first.params);
      if (error.isSilent || this.#isGone()) return this.terminate();
      this.#answerConnect(first.id, error);
      this.close(error.closeCode, error.closeReason);
    }
  }

  /** What went wrong is for the log; the client learns where to look. */
  #fault(error: unknown, where = "connect"): Refusal {
    const id = crypto.randomUUID();
    const text = error instanceof Error ? error.stack ?? error.message : String(error);
    this.#gateway.log.error("a connection failed", { id, connId: this.id, where, error: text });
    return new Refusal("UNAVAILABLE", `internal error in ${where} (id ${id})`, {
      code: "INTERNAL_ERROR",
      layer: "protocol",
      retryable: true,
      fix: `On the gateway's host: zero logs, and look for ${id}`,
    }, { closeCode: 1011, closeReason: "internal error" });
  }

  #readParams(given: unknown): { params: ConnectParams; protocol: number } {
    const raw = (typeof given === "object" && given !== null ? given : {}) as ConnectParams;
    const wanted = Number(raw.maxProtocol);
    // Until a version is agreed on, the highest the client offers says how strict to be.
    this.#protocol = wanted >= 4 ? 4 : 3;
    const found = problems(given ?? {}, ConnectParams, {
      ignoreUnknown: wanted >= 4,
      max: MAX_PROBLEMS,
    });
    if (found.length > 0) {
      const { message } = invalidParams("connect", found);
      throw new Refusal("INVALID_REQUEST", message, {
        code: "INVALID_CONNECT_PARAMS",
        layer: "protocol",
        retryable: false,
        fix: "Send connect.params as protocol 3 or 4 describes them",
      });
    }
    const protocol = negotiate(raw.minProtocol, raw.maxProtocol);
    if (protocol === undefined) throw versionMismatch(raw.minProtocol, raw.maxProtocol);
    return { params: raw, protocol };
  }

  /** Becomes a member: from here on there are calls and events. @returns hello-ok as JSON text */
  #enter(params: ConnectParams, admission: Admission): string {
    const { client, device, caps = [], commands = [], pathEnv, permissions } = params;
    const gateway = this.#gateway;
    this.role = admission.role;
    this.scopes = admission.scopes;
    this.deviceId = admission.deviceId;
    this.client = client;
    if (this.role === "node") this.#declaration = { caps, commands, pathEnv, permissions };
    this.#call = {
      gateway,
      caller: {
        role: admission.role,
        scopes: admission.scopes,
        protocol: this.#protocol,
        connId: this.id,
        closed: this.closed,
        client,
        ...(admission.deviceId && { deviceId: admission.deviceId }),
        ...(admission.user !== undefined && { user: admission.user }),
        isSharedSecret: !device &&
          (admission.method === "token" || admission.method === "password"),
      },
    };
    if (client.mode !== "cli") {
      // An instance id is what a client says it is; it must not stand in for a device.
      const isTaken = gateway.devices.find(client.instanceId ?? "") !== undefined;
      this.#presenceKey = admission.deviceId ?? (isTaken ? this.id : client.instanceId ?? this.id);
      const { isLocal, client: ip } = this.#provenance;
      gateway.presence.join(this.#presenceKey, {
        host: client.displayName ?? client.id,
        user: admission.user,
        ip: isLocal ? undefined : ip,
        version: client.version,
        platform: client.platform,
        deviceFamily: client.deviceFamily,
        modelIdentifier: client.modelIdentifier,
        mode: client.mode,
        deviceId: admission.deviceId,
        roles: [admission.role],
        scopes: [...admission.scopes],
        instanceId: client.instanceId,
      });
      gateway.presenceNews.schedule();
    }
    gateway.log.info("connected", {
      connId: this.id,
      client: client.id,
      mode: client.mode,
      role: admission.role,
      protocol: this.#protocol,
      method: admission.method,
      user: admission.user,
      ip: this.#provenance.client ?? this.#provenance.peer,
    });
    return gateway.hello.json(this.id, this.#protocol, admission);
  }

  /** After hello-ok is on its way. */
  #settleIn() {
    const gateway = this.#gateway;
    this.#phase = "open";
    raisePayloadLimit(this.#socket);
    gateway.connections.admit(this);
    if (this.#declaration) gateway.nodes.register(this.#nodeId, this, this.#declaration);
    this.#declaration = undefined;
    this.#headers = undefined;
    this.#rawHeaders = undefined;
    gateway.healthNews.schedule();
    if (this.role === "node") {
      this.sendEvent("voicewake.changed", { triggers: gateway.voicewake.triggers });
      this.#ping();
    }
    const early = this.#early;
    this.#early = [];
    for (const text of early) if (!this.#isGone()) this.#serve(text);
  }

  #serve(text: string) {
    if (this.#isJsonRpc) return this.#serveJsonRpc(text);
    let frame: unknown;
    try {
      frame = JSON.parse(text);
    } catch {
      return this.#gateway.log.warn("ignored a frame that is no JSON", { connId: this.id });
    }
    const request = readRequest(frame);
    if ("problem" in request) {
      const message = `invalid request frame: ${request.problem}`;
      return this.#send(encodeError(request.id, { code: "INVALID_REQUEST", message }));
    }
    const outcome = this.#gateway.dispatcher.dispatch(request.method, request.params, this.#call!);
    if (!(outcome instanceof Promise)) return this.#answer(request.id, outcome);
    outcome.then((later) => this.#answer(request.id, later)).catch((error) => this.#lose(error));
  }

  #serveJsonRpc(text: string) {
    const dispatcher = this.#gateway.dispatcher;
    const outcomes: Outcome[] = [];
    answerJsonRpc(text, async ({ method, params }) => {
      const outcome = await lastOutcome(dispatcher.dispatch(method, params, this.#call!));
      outcomes.push(outcome);
      return outcome;
    }).then((answer) => {
      if (answer !== undefined) this.#send(answer);
      for (const outcome of outcomes) this.#note(outcome);
    }).catch((error) => this.#lose(error));
  }

  #answer(id: string, outcome: Outcome) {
    this.#send(this.#encode(id, outcome));
    this.#note(outcome);
    if (!outcome.ok || !outcome.final) return;
    outcome.final.then((last) => this.#answer(id, last)).catch((error) => this.#lose(error));
  }

  /** What cannot be written as JSON (a peer's payload nested too deep) is a fault of that one call. */
  #encode(id: string, outcome: Outcome): string {
    try {
      return outcome.ok
        ? encodeResponse(id, outcome.payload)
        : encodeError(id, outcome.error.toWire(this.#protocol), outcome.payload);
    } catch (error) {
      const { message } = this.#fault(error, "an answer");
      return encodeError(id, { code: "UNAVAILABLE", message });
    }
  }

  /** The last resort: one connection ends, and not the process. */
  #lose(error: unknown) {
    this.#fault(error, "an answer");
    this.close(1011, "internal error");
  }

  #answerConnect(id: string | JsonRpcId, error: Refusal) {
    this.#send(
      this.#isJsonRpc
        ? encodeAnswer(id as JsonRpcId, { ok: false, error, refused: true })
        : encodeError(id as string, error.toWire(this.#protocol)),
    );
  }

  /** Counts calls that were not let through, and ends a connection that does not stop (D16). */
  #note(outcome: Outcome) {
    if (outcome.ok || !outcome.refused) return;
    const now = performance.now();
    if (now - this.#refusedSinceMs > REFUSED_WINDOW_MS) {
      this.#refusedSinceMs = now;
      this.#refusedCalls = 0;
    }
    this.#gateway.log.warn("refused a call", {
      connId: this.id,
      client: this.client?.id,
      reason: outcome.error.message.slice(0, 200),
    });
    if (++this.#refusedCalls >= MAX_REFUSED_CALLS) this.close(1008, "repeated unauthorized calls");
  }

  #send(text: string) {
    if (this.#socket.readyState !== this.#socket.OPEN) return;
    this.#gather();
    this.stream.write(frameOf(text));
    if (this.bufferedBytes > MAX_BUFFERED_BYTES && this.#phase === "open") this.closeAsSlow();
  }

  /** What is said in one turn goes out in one write: that is most of what an answer costs. */
  #gather() {
    if (this.#isGathering) return;
    this.#isGathering = true;
    this.stream.cork();
    queueMicrotask(() => {
      this.#isGathering = false;
      this.stream.uncork();
    });
  }

  /** A node is its device; without one, its client id (§4.6). */
  get #nodeId(): string {
    return this.deviceId ?? this.client?.id ?? this.id;
  }

  #isGone(): boolean {
    return this.#phase === "closing" || this.#socket.readyState !== this.#socket.OPEN;
  }

  /** A peer that broke the rules of WebSocket: `ws` has sent the close frame that says which. */
  #giveUp(error: Error) {
    this.#gateway.log.debug("socket error", { connId: this.id, error: error.message });
    this.#gateway.garbage.soon();
    this.#phase = "closing";
    this.#cutOff();
  }

  /** Reads nothing more, or what a peer goes on sending would pass through memory (D1). */
  #cutOff() {
    setImmediate(() => this.stream.pause());
    setTimeout(() => this.terminate(), LAST_WORD_MS);
  }

  #logRefusal({ details, message }: Refusal, params: unknown) {
    const { device, client, role } = (params ?? {}) as Partial<ConnectParams>;
    this.#gateway.audit.refuse({
      code: details.code,
      // What is wrong with the params names keys that the stranger made up.
      ...(details.layer !== "protocol" && { reason: message.slice(0, 200) }),
      ip: this.#provenance.client ?? this.#provenance.peer,
      ...(typeof details.user === "string" && { user: details.user }),
      ...wellFormed("deviceId", device?.id, /^[0-9a-f]{64}$/),
      ...wellFormed("clientId", client?.id, CLIENT_ID),
      ...wellFormed("role", role, /^(operator|node)$/),
    });
    this.#gateway.log.warn("refused a connect", {
      code: details.code,
      reason: message.slice(0, 200),
      connId: this.id,
      ip: this.#provenance.client ?? this.#provenance.peer,
    });
  }

  #end() {
    const gateway = this.#gateway;
    this.#phase = "closing";
    gateway.connections.remove(this);
    if (this.role === "node") gateway.nodes.unregister(this.#nodeId, this.id);
    if (this.#call) {
      gateway.log.info("disconnected", { connId: this.id, client: this.client?.id });
    }
    if (this.#presenceKey === undefined) return;
    gateway.presence.leave(this.#presenceKey);
    gateway.presenceNews.schedule();
  }
}

type First = { isJsonRpc: boolean; id: string | JsonRpcId; method: string; params?: unknown };

/** Reads the first frame. @returns the reason to close with instead */
function readFirst(text: string): First | string {
  let frame: unknown;
  try {
    frame = JSON.parse(text);
  } catch {
    return "";
  }
  if (isJsonRpc(frame)) {
    const call = readCall(frame);
    if ("problem" in call) return "invalid request frame";
    return { isJsonRpc: true, ...call, id: call.id ?? null };
  }
  const request = readRequest(frame);
  if ("problem" in request) return "invalid request frame";
  return { isJsonRpc: false, ...request };
}

/**
 * What a stranger says of itself, where it looks like what it should be: a secret in the wrong place
 * is not kept.
 */
function wellFormed<K extends string>(
  key: K,
  value: unknown,
  pattern: RegExp,
): { [P in K]?: string } {
  const isFine = typeof value === "string" && value.length <= 80 && pattern.test(value);
  return isFine ? { [key]: value } as { [P in K]: string } : {};
}

function notConnect(): Refusal {
  const message = "invalid handshake: first request must be connect";
  return new Refusal("INVALID_REQUEST", message, {
    code: "CONNECT_REQUIRED",
    layer: "protocol",
    retryable: false,
    fix: "Answer connect.challenge with the method connect before anything else",
  });
}

/** §3.4 */
function versionMismatch(clientMinProtocol: number, clientMaxProtocol: number): Refusal {
  const isTooOld = clientMaxProtocol < 3;
  return new Refusal("INVALID_REQUEST", "protocol mismatch", {
    code: "PROTOCOL_MISMATCH",
    layer: "protocol",
    retryable: false,
    fix: isTooOld
      ? "Update this client: the gateway speaks protocol 3 and 4"
      : "Let this client speak protocol 4, or update the gateway",
    expectedProtocol: isTooOld ? 3 : 4,
    clientMinProtocol,
    clientMaxProtocol,
    minimumProbeProtocol: 3,
  }, { closeCode: 1002 });
}

/** `ws` fixes the limit when the socket is made; strangers get 64 KiB, members the full size (D1). */
function raisePayloadLimit(socket: WebSocket) {
  const { _receiver: receiver } = socket as unknown as { _receiver: { _maxPayload: number } };
  receiver._maxPayload = MAX_PAYLOAD_BYTES;
}

/**
 * A text frame (RFC 6455 §5.2) in one piece; `ws` would write its head and its text as two. The two
 * ways of writing may be mixed: without compression `ws` keeps nothing back.
 */
function frameOf(text: string): Buffer {
  const length = Buffer.byteLength(text);
  const headBytes = length < 126 ? 2 : length < 65_536 ? 4 : 10;
  const frame = Buffer.allocUnsafe(headBytes + length);
  frame[0] = 0x81;
  if (headBytes === 2) frame[1] = length;
  else if (headBytes === 4) {
    frame[1] = 126;
    frame.writeUInt16BE(length, 2);
  } else {
    frame[1] = 127;
    frame.writeBigUInt64BE(BigInt(length), 2);
  }
  frame.write(text, headBytes);
  return frame;
}
