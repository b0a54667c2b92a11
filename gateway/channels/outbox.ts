// Messages on their way out (requirement 30): durable before anybody is told they will be sent, sent
// in order within a chat, tried again as long as it is certain that they did not arrive, and never
// sent twice. What may or may not have arrived when the process died is left, and said once.

import { pause } from "../../config/pause.ts";
import type { Log } from "../../config/log.ts";
import type { Store } from "../store.ts";
import {
  type Address,
  type Channel,
  type Delivered,
  DeliveryError,
  type OutgoingMessage,
} from "./channel.ts";

export interface OutboxOptions {
  store: Store;
  log: Log;
  /** Undefined while the channel is not running: its messages wait. */
  sender(channel: string, accountId: string): Sender | undefined;
  /** @param ms since the epoch */
  now?(): number;
}

export type Sender = Pick<Channel, "send">;

/** What became of a message. */
export type Fate =
  | { state: "sent"; delivered: Delivered }
  | { state: "failed" | "unknown"; error: string };

interface Row {
  id: number;
  key: string;
  address: Address;
  message: OutgoingMessage;
  attempts: number;
  partsSent: number;
  nextAtMs: number;
  createdAtMs: number;
}

/** After it a message that could not be sent is given up. */
const MAX_AGE_MS = 24 * 3_600_000;
/** How long messages that were dealt with are remembered, so that their keys are taken once. */
const KEPT_MS = 7 * 24 * 3_600_000;
/** How long a stopping gateway waits for messages on their way. */
const GRACE_MS = 3_000;
const FIRST_RETRY_MS = 1_000;
const MAX_RETRY_MS = 300_000;
/** Messages that wait for one chat; a chat that takes nothing any more must not fill the disk. */
const MAX_WAITING = 500;

export const MAYBE_LOST =
  "My last message may not have arrived: I was interrupted while sending it. " +
  "/last shows it again.";

export class Outbox implements AsyncDisposable {
  readonly #options: OutboxOptions;
  readonly #now: () => number;
  readonly #sql;
  /** Chats with a message on its way. */
  readonly #busy = new Set<string>();
  #isNotifying = false;
  readonly #sending = new Set<Promise<void>>();
  readonly #watchers = new Map<string, PromiseWithResolvers<Fate>>();
  readonly #stop = new AbortController();
  #timer?: ReturnType<typeof setTimeout>;
  #isStarted = false;

  constructor(options: OutboxOptions) {
    const { store } = options;
    this.#options = options;
    this.#now = options.now ?? Date.now;
    this.#sql = {
      add: store.prepare(
        `INSERT INTO outbox
           (key, chat, address, message, state, attempts, parts_sent, next_at_ms, created_at_ms)
         VALUES (?, ?, ?, ?, 'waiting', 0, 0, ?, ?) ON CONFLICT (key) DO NOTHING`,
      ),
      /** The oldest of each chat that waits. */
      due: store.prepare(
        `SELECT id, key, chat, address, message, attempts, parts_sent, next_at_ms, created_at_ms
         FROM outbox
         WHERE id IN (SELECT min(id) FROM outbox WHERE state = 'waiting' GROUP BY chat)
         ORDER BY id`,
      ),
      waiting: store.prepare(
        "SELECT count(*) AS count FROM outbox WHERE state = 'waiting' AND chat = ?",
      ),
      begin: store.prepare(
        "UPDATE outbox SET state = 'sending', attempts = attempts + 1 WHERE id = ?",
      ),
      part: store.prepare("UPDATE outbox SET parts_sent = ? WHERE id = ?"),
      sent: store.prepare(
        `UPDATE outbox SET state = 'sent', result = ?, message = '', done_at_ms = ? WHERE id = ?`,
      ),
      retry: store.prepare(
        "UPDATE outbox SET state = 'waiting', next_at_ms = ?, error = ? WHERE id = ?",
      ),
      giveUp: store.prepare(
        "UPDATE outbox SET state = ?, error = ?, done_at_ms = ? WHERE id = ?",
      ),
      interrupted: store.prepare(
        `SELECT id, key, address, message, attempts, parts_sent, next_at_ms, created_at_ms
         FROM outbox WHERE state = 'sending' ORDER BY id`,
      ),
      byKey: store.prepare("SELECT state, result, error FROM outbox WHERE key = ?"),
      prune: store.prepare("DELETE FROM outbox WHERE done_at_ms < ?"),
    };
  }

  /**
   * Takes a message; durable when it returns, or with the transaction around it. An equal key is taken
   * once.
   *
   * @throws {Error} the chat has too many waiting already
   */
  enqueue(to: Address, message: OutgoingMessage, key: string): void {
    const chat = chatOf(to);
    const { count } = this.#sql.waiting.get(chat) as { count: number };
    if (count >= MAX_WAITING) {
      throw new Error(`Cannot send to ${to.channel}: ${count} messages wait for this chat already`);
    }
    this.#add(to, message, key);
  }

  /** Resolves when it is known what became of a message; what waits for its channel keeps waiting. */
  async fate(key: string, signal?: AbortSignal): Promise<Fate> {
    const known = this.#known(key);
    if (known) return known;
    let watcher = this.#watchers.get(key);
    if (!watcher) this.#watchers.set(key, watcher = Promise.withResolvers<Fate>());
    if (!signal) return await watcher.promise;
    const { promise, reject } = Promise.withResolvers<never>();
    const give = () => reject(signal.reason);
    if (signal.aborted) give();
    signal.addEventListener("abort", give);
    try {
      return await Promise.race([watcher.promise, promise]);
    } finally {
      signal.removeEventListener("abort", give);
    }
  }

  /** Begins to send, first of all settling what was on its way when the process died. */
  start() {
    const { store, log } = this.#options;
    store.transaction(() => {
      const told = new Set<string>();
      for (const row of this.#sql.interrupted.all().map(rowOf)) {
        const error = "the gateway stopped while sending it";
        this.#sql.giveUp.run("unknown", error, this.#now(), row.id);
        const { address: { channel }, key } = row;
        log.warn(`a message may not have arrived: ${error}`, { channel, key });
        const chat = chatOf(row.address);
        if (row.message.ifUnsure !== "tell" || told.has(chat)) continue;
        told.add(chat);
        this.#tellUnsure(row);
      }
      this.#sql.prune.run(this.#now() - KEPT_MS);
    });
    this.#isStarted = true;
    this.poke();
  }

  /** Looks for messages that can go now; to be called when a channel has come up. */
  poke() {
    if (!this.#isStarted || this.#stop.signal.aborted) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const now = this.#now();
    let nextAtMs = Infinity;
    for (const found of this.#sql.due.all()) {
      const chat = String(found.chat);
      if (this.#busy.has(chat)) continue;
      const row = rowOf(found);
      if (now - row.createdAtMs > MAX_AGE_MS) {
        this.#settle(row, "failed", "it could not be sent within a day");
        queueMicrotask(() => this.poke());
        continue;
      }
      // A clock that was set back must not hold a message for longer than a retry takes.
      if (row.nextAtMs > now && row.nextAtMs - now <= MAX_AGE_MS) {
        nextAtMs = Math.min(nextAtMs, row.nextAtMs);
        continue;
      }
      const sender = this.#options.sender(row.address.channel, row.address.accountId);
      if (!sender) continue; // told by the channel when it is there
      const { isNotice = false } = row.message;
      if (isNotice && this.#isNotifying) continue;
      this.#isNotifying ||= isNotice;
      this.#busy.add(chat);
      const work = this.#send(row, sender).finally(() => {
        this.#busy.delete(chat);
        if (isNotice) this.#isNotifying = false;
        this.#sending.delete(work);
        this.poke();
      });
      this.#sending.add(work);
    }
    if (nextAtMs < Infinity) {
      this.#timer = setTimeout(() => this.poke(), Math.min(nextAtMs - now, MAX_RETRY_MS));
    }
  }

  /** Lets what is on its way arrive, for a while; what did not is told of at the next start. */
  async [Symbol.asyncDispose]() {
    clearTimeout(this.#timer);
    this.#stop.abort(new Error("the gateway is stopping"));
    const late = Promise.withResolvers<void>();
    const timer = setTimeout(late.resolve, GRACE_MS);
    await Promise.race([Promise.allSettled(this.#sending), late.promise]);
    clearTimeout(timer);
  }

  async #send(row: Row, sender: Sender): Promise<void> {
    const { log } = this.#options;
    let isRefused = false;
    let hasBegun = false;
    try {
      const delivered = await sender.send(row.address, row.message, {
        sent: row.partsSent,
        begin: () => {
          isRefused = true;
          this.#sql.begin.run(row.id);
          isRefused = false;
          hasBegun = true;
        },
        note: (sent) => this.#note(() => this.#sql.part.run(sent, row.id)),
      });
      this.#note(() => this.#sql.sent.run(JSON.stringify(delivered), this.#now(), row.id));
      this.#tell(row.key, { state: "sent", delivered });
    } catch (error) {
      if (!isRefused) return this.#failed(row, error, hasBegun);
      // A full disk: what cannot be noted is not sent, or it might be sent again and again.
      log.error("cannot note that a message is being sent; it waits", {
        error: (error as Error).message,
      });
      await pause(FIRST_RETRY_MS, this.#stop.signal);
    }
  }

  #failed(row: Row, error: unknown, hasBegun: boolean) {
    const { log } = this.#options;
    const text = error instanceof Error ? error.message : String(error);
    const { outcome, isTransient, retryAfterMs } = error instanceof DeliveryError
      ? error.details
      : {
        outcome: hasBegun ? "unknown" as const : "not-sent" as const,
        isTransient: false,
        retryAfterMs: undefined,
      };
    const facts = { channel: row.address.channel, key: row.key, error: text };
    const { ifUnsure } = row.message;
    if (outcome === "unknown" && !(ifUnsure === "again" && isTransient)) {
      log.warn("a message may not have arrived", facts);
      this.#settle(row, "unknown", text);
      return;
    }
    if (!isTransient) {
      log.error("a message cannot be delivered", facts);
      this.#settle(row, "failed", text);
      return;
    }
    const waitMs = retryAfterMs ?? Math.min(FIRST_RETRY_MS * 2 ** row.attempts, MAX_RETRY_MS);
    log.info("a message will be sent again", { ...facts, inMs: waitMs });
    this.#note(() => this.#sql.retry.run(this.#now() + waitMs, text, row.id));
  }

  #settle(row: Row, state: "failed" | "unknown", error: string) {
    this.#note(() => {
      this.#options.store.transaction(() => {
        this.#sql.giveUp.run(state, error, this.#now(), row.id);
        if (state === "unknown" && row.message.ifUnsure === "tell") this.#tellUnsure(row);
      });
    });
    this.#tell(row.key, { state, error });
  }

  /** Once at most: what becomes of the notice itself is not told. */
  #tellUnsure({ address, key }: Row) {
    this.#add(address, { text: MAYBE_LOST, isNotice: true }, `maybe-lost:${key}`);
  }

  #add(to: Address, message: OutgoingMessage, key: string) {
    const now = this.#now();
    this.#sql.add.run(key, chatOf(to), JSON.stringify(to), JSON.stringify(message), now, now);
    this.#options.store.afterCommit(() => this.poke());
  }

  /** What was sent stays sent, also where that cannot be written down. */
  #note(write: () => void) {
    try {
      write();
    } catch (error) {
      this.#options.log.error("cannot note what became of a message", {
        error: (error as Error).message,
      });
    }
  }

  #tell(key: string, fate: Fate) {
    this.#watchers.get(key)?.resolve(fate);
    this.#watchers.delete(key);
  }

  #known(key: string): Fate | undefined {
    const row = this.#sql.byKey.get(key);
    if (row?.state === "sent") {
      return { state: "sent", delivered: JSON.parse(String(row.result)) };
    }
    if (row?.state === "failed" || row?.state === "unknown") {
      return { state: row.state, error: String(row.error) };
    }
    return undefined;
  }
}

/** Messages of one chat go out in order. */
function chatOf({ channel, accountId, to }: Address): string {
  return JSON.stringify([channel, accountId, to]);
}

function rowOf(found: Record<string, unknown>): Row {
  return {
    id: Number(found.id),
    key: String(found.key),
    address: JSON.parse(String(found.address)),
    message: JSON.parse(String(found.message)),
    attempts: Number(found.attempts),
    partsSent: Number(found.parts_sent),
    nextAtMs: Number(found.next_at_ms),
    createdAtMs: Number(found.created_at_ms),
  };
}
