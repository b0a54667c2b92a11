// Broadcasts: who gets which event, how it is numbered, and what happens to those who do not read
// (§1.1, §1.2, §8.1). An event is turned into bytes once, however many connections get it.

import { Buffer } from "node:buffer";
import { MAX_BUFFERED_BYTES, type StateVersion } from "../rpc/frame.ts";
import { hasScope, type Role, type Scope } from "../rpc/scope.ts";

interface EventKind {
  /** Operators need it; absent = every operator. */
  scope?: Scope;
  /** Nodes get it too. */
  forNodes?: boolean;
  /** Skipped for a connection that is behind, which is otherwise closed. */
  isDroppable?: boolean;
}

/** The catalogue of §8.1. */
const EVENTS = {
  "connect.challenge": { forNodes: true },
  "agent": { scope: "operator.read" },
  "chat": { scope: "operator.read" },
  "presence": { isDroppable: true },
  "tick": { forNodes: true, isDroppable: true },
  "talk.mode": { forNodes: true, isDroppable: true },
  "shutdown": { forNodes: true },
  "health": {},
  "heartbeat": { forNodes: true, isDroppable: true },
  "cron": { forNodes: true, isDroppable: true },
  "node.pair.requested": { scope: "operator.pairing", isDroppable: true },
  "node.pair.resolved": { scope: "operator.pairing", isDroppable: true },
  "node.invoke.request": { forNodes: true },
  "node.queue.changed": { scope: "operator.read", isDroppable: true },
  "node.invoke.progress": { scope: "operator.write", isDroppable: true },
  "device.pair.requested": { scope: "operator.pairing", isDroppable: true },
  "device.pair.resolved": { scope: "operator.pairing", isDroppable: true },
  "channel.pair.requested": { scope: "operator.admin", isDroppable: true },
  "channel.pair.resolved": { scope: "operator.admin", isDroppable: true },
  "voicewake.changed": { forNodes: true, isDroppable: true },
  "exec.approval.requested": { scope: "operator.approvals", isDroppable: true },
  "exec.approval.resolved": { scope: "operator.approvals", isDroppable: true },
  "system.panic": { forNodes: true },
} satisfies Record<string, EventKind>;

export type EventName = keyof typeof EVENTS;
export const EVENT_NAMES = Object.keys(EVENTS) as EventName[];

/** A connection as a broadcast sees it. */
export interface Subscriber {
  readonly role: Role;
  readonly scopes: readonly string[];
  /** The negotiated version, 3 or 4. */
  readonly protocol: number;
  /** Bytes accepted for sending and not sent yet. */
  readonly bufferedBytes: number;
  /** Counts an event this connection is entitled to, also one that it then does not get. */
  nextSeq(): number;
  deliver(event: PreparedEvent, seq: number): void;
  closeAsSlow(): void;
}

/** An event on its way to many: each form of it is made when first needed, and then shared. */
export class PreparedEvent {
  readonly #name: string;
  readonly #payload: string;
  readonly #stateVersion: string;
  readonly #frames = new Map<number, Buffer>();
  #notification?: Buffer;

  constructor(name: string, payload: unknown, stateVersion?: StateVersion) {
    this.#name = JSON.stringify(name);
    this.#payload = JSON.stringify(payload);
    this.#stateVersion = stateVersion ? `,"stateVersion":${JSON.stringify(stateVersion)}` : "";
  }

  /** The native frame. Connections that came together mostly share their number, and so the bytes. */
  frame(seq: number): Buffer {
    let frame = this.#frames.get(seq);
    if (!frame) {
      frame = Buffer.from(
        `{"type":"event","event":${this.#name},"payload":${this.#payload}` +
          `${this.#stateVersion},"seq":${seq}}`,
      );
      this.#frames.set(seq, frame);
    }
    return frame;
  }

  /** The JSON-RPC notification (D12). */
  notification(): Buffer {
    return this.#notification ??= Buffer.from(
      `{"jsonrpc":"2.0","method":${this.#name},"params":${this.#payload}}`,
    );
  }

  /** Bytes one receiver gets, about. */
  get size(): number {
    return this.#payload.length;
  }
}

export class EventHub {
  readonly #subscribers = new Set<Subscriber>();

  add(subscriber: Subscriber) {
    this.#subscribers.add(subscriber);
  }

  remove(subscriber: Subscriber) {
    this.#subscribers.delete(subscriber);
  }

  get size(): number {
    return this.#subscribers.size;
  }

  /**
   * An event that reads differently on the two versions of the protocol.
   *
   * @param payloadOf undefined for a version that does not get it
   * @param isDroppable in place of what the catalogue says
   */
  publishByVersion(
    name: EventName,
    payloadOf: (protocol: number) => unknown,
    { isDroppable }: { isDroppable: boolean },
  ) {
    const events = new Map<number, PreparedEvent | undefined>();
    for (const subscriber of this.#subscribers) {
      if (!isEntitled(subscriber, EVENTS[name])) continue;
      const { protocol } = subscriber;
      if (!events.has(protocol)) {
        const payload = payloadOf(protocol);
        events.set(protocol, payload === undefined ? undefined : new PreparedEvent(name, payload));
      }
      const event = events.get(protocol);
      if (!event) continue;
      const seq = subscriber.nextSeq();
      if (subscriber.bufferedBytes <= MAX_BUFFERED_BYTES) subscriber.deliver(event, seq);
      else if (!isDroppable) subscriber.closeAsSlow();
    }
  }

  /** @returns bytes handed over, about: what a broadcast of this size costs */
  publish(name: EventName, payload: unknown, stateVersion?: StateVersion): number {
    if (this.#subscribers.size === 0) return 0;
    const kind: EventKind = EVENTS[name];
    const event = new PreparedEvent(name, payload, stateVersion);
    let receivers = 0;
    for (const subscriber of this.#subscribers) {
      if (!isEntitled(subscriber, kind)) continue;
      receivers++;
      const seq = subscriber.nextSeq();
      if (subscriber.bufferedBytes <= MAX_BUFFERED_BYTES) subscriber.deliver(event, seq);
      else if (!kind.isDroppable) subscriber.closeAsSlow();
    }
    return receivers * event.size;
  }
}

/**
 * Sends what changes often at most once a second, and less often the more it costs: the state goes
 * out as it is when the time comes, however many changes led to it.
 */
export class Coalescer {
  readonly #publish: () => number;
  #timer?: ReturnType<typeof setTimeout>;
  #notBeforeMs = 0;

  /** @param publish sends the current state and returns the bytes that took */
  constructor(publish: () => number) {
    this.#publish = publish;
  }

  /** Sends within {@link COALESCE_MS}, or as soon as the budget allows. */
  schedule() {
    if (this.#timer !== undefined) return;
    const waitMs = Math.max(FIRST_WAIT_MS, this.#notBeforeMs - performance.now());
    this.#timer = setTimeout(() => this.now(), waitMs);
  }

  /** Sends at once, in place of anything scheduled. */
  now() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const bytes = this.#publish();
    this.#notBeforeMs = performance.now() + Math.max(COALESCE_MS, bytes / BYTES_PER_MS);
  }

  [Symbol.dispose]() {
    clearTimeout(this.#timer);
  }
}

const COALESCE_MS = 1_000;
/** Changes that come together go out together. */
const FIRST_WAIT_MS = 20;
/** What broadcasts of one kind may cost on average: 8 MB a second. */
const BYTES_PER_MS = 8_000;

function isEntitled({ role, scopes }: Subscriber, { scope, forNodes }: EventKind): boolean {
  if (role === "node") return forNodes === true && scope === undefined;
  return scope === undefined || hasScope(scopes, scope);
}
