// Every socket of the gateway: those still at the door and those that are in. One clock serves them
// all: handshake deadlines, pings, ticks.

import type { Socket } from "node:net";
import type { Log } from "../config/log.ts";
import { HANDSHAKE_TIMEOUT_MS, TICK_INTERVAL_MS } from "../rpc/frame.ts";
import type { Connection } from "./connection.ts";
import type { EventHub } from "./events.ts";

/** How often deadlines are looked at. */
const SWEEP_MS = 500;
/** An idle connection is pinged this often; proxies cut at 60 s. */
const PING_INTERVAL_MS = 20_000;
/** Sockets at the door; beyond it the oldest silent one makes room for the newcomer. */
const MAX_AT_DOOR = 8_192;
/** What is left of the files a process may have open: without any the runtime accepts nobody more. */
const [SPARE_SHARE, LEAST_SPARE] = [0.2, 128];

export class Connections {
  readonly #events: EventHub;
  readonly #log: Log;
  readonly #pingIntervalMs: number;
  /** In the order they came, which is the order of their deadlines. */
  readonly #waiting = new Set<Connection>();
  readonly #open = new Map<string, Connection>();
  /** What is not in, oldest first: plain HTTP, sockets that say nothing, and those in `#waiting`. */
  readonly #door = new Map<Socket, Connection | undefined>();
  #maxSockets = Infinity;
  readonly #timer: ReturnType<typeof setInterval>;
  #sweptAtMs = performance.now();
  #pingedAtMs = performance.now();
  #tickedAtMs = performance.now();

  constructor(events: EventHub, log: Log, pingIntervalMs = PING_INTERVAL_MS) {
    this.#events = events;
    this.#log = log;
    this.#pingIntervalMs = pingIntervalMs;
    this.#timer = setInterval(() => this.#sweep(), SWEEP_MS);
  }

  /** @param maxFiles how many files this process may have open */
  limitTo(maxFiles: number) {
    this.#maxSockets = maxFiles - Math.max(LEAST_SPARE, Math.ceil(maxFiles * SPARE_SHARE));
  }

  /** A socket that has just been accepted. */
  arrive(socket: Socket) {
    this.#door.set(socket, undefined);
    socket.on("close", () => this.#door.delete(socket));
    if (this.#door.size > MAX_AT_DOOR) this.#dropOldest();
    if (this.#door.size + this.#open.size > this.#maxSockets) this.#dropOldest();
  }

  /** The handshake of TLS is done: from here on the socket inside stands for it. */
  secured(raw: Socket, socket: Socket) {
    if (!this.#door.delete(raw)) return;
    this.#door.set(socket, undefined);
    socket.on("close", () => this.#door.delete(socket));
  }

  /** A socket that has just been upgraded. */
  await(connection: Connection) {
    this.#waiting.add(connection);
    if (this.#door.has(connection.stream)) this.#door.set(connection.stream, connection);
  }

  /** A connection that got through the handshake. */
  admit(connection: Connection) {
    this.#waiting.delete(connection);
    this.#door.delete(connection.stream);
    this.#open.set(connection.id, connection);
    this.#events.add(connection);
  }

  remove(connection: Connection) {
    this.#waiting.delete(connection);
    if (this.#open.delete(connection.id)) this.#events.remove(connection);
  }

  /** A connection that is in. */
  find(connId: string): Connection | undefined {
    return this.#open.get(connId);
  }

  /** Connections that are in. */
  [Symbol.iterator](): IterableIterator<Connection> {
    return this.#open.values();
  }

  get size(): number {
    return this.#open.size;
  }

  /**
   * Closes the connections of a device, of one role of it if that is given.
   *
   * @param callerId the connection that asks for it, which gets its answer first
   */
  closeDevice(
    deviceId: string,
    reason: string,
    { role, callerId }: { role?: string; callerId: string },
  ) {
    for (const connection of this.#open.values()) {
      if (connection.deviceId !== deviceId) continue;
      if (role !== undefined && connection.role !== role) continue;
      if (connection.id !== callerId) connection.close(4001, reason);
      else setTimeout(() => connection.close(4001, reason));
    }
  }

  /** Says goodbye to everybody and resolves when all are gone, or after `graceMs` by force. */
  async closeAll(code: number, reason: string, graceMs: number) {
    clearInterval(this.#timer);
    const all = [...this.#waiting, ...this.#open.values()];
    for (const connection of all) connection.close(code, reason);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const grace = new Promise<void>((resolve) => timer = setTimeout(resolve, graceMs));
    await Promise.race([Promise.all(all.map((connection) => connection.closed)), grace]);
    clearTimeout(timer);
    for (const connection of all) connection.terminate();
  }

  /** Makes room for a newcomer; where all are in or about to be, the newcomer itself goes. */
  #dropOldest() {
    for (const [socket, connection] of this.#door) {
      if (connection?.isSilent === false) continue;
      this.#log.warn("dropped the oldest silent socket", { atDoor: this.#door.size });
      this.#door.delete(socket);
      socket.destroy();
      return;
    }
  }

  #sweep() {
    const now = performance.now();
    // A stall of our own must not expire anybody's deadline.
    const stallMs = Math.max(0, now - this.#sweptAtMs - 2 * SWEEP_MS);
    this.#sweptAtMs = now;
    for (const connection of this.#waiting) {
      if (stallMs > 0) connection.openedAtMs += stallMs;
      else if (now - connection.openedAtMs < HANDSHAKE_TIMEOUT_MS) break;
      else connection.expire();
    }
    if (now - this.#tickedAtMs >= TICK_INTERVAL_MS) {
      this.#tickedAtMs += TICK_INTERVAL_MS;
      this.#events.publish("tick", { ts: Date.now() });
    }
    if (stallMs > 0 || now - this.#pingedAtMs < this.#pingIntervalMs) return;
    this.#pingedAtMs = now;
    for (const connection of this.#open.values()) connection.checkAlive();
  }
}
