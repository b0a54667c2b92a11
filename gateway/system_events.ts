// What the main session is to be told at its next turn: accepted here, kept until an agent reads it.

import type { Store } from "./store.ts";

/** Beyond it the oldest give way. */
const MAX_EVENTS = 1_000;

export class SystemEvents {
  readonly #now: () => number;
  readonly #add;
  readonly #trim;
  readonly #list;
  readonly #last;
  readonly #clear;

  constructor(store: Store, now: () => number = Date.now) {
    this.#now = now;
    this.#add = store.prepare("INSERT INTO system_events (session_key, text, ts) VALUES (?, ?, ?)");
    this.#trim = store.prepare(
      `DELETE FROM system_events WHERE event_id <=
         (SELECT max(event_id) FROM system_events) - ${MAX_EVENTS}`,
    );
    this.#list = store.prepare(
      "SELECT text FROM system_events WHERE session_key = ? ORDER BY event_id",
    );
    this.#last = store.prepare(
      "SELECT max(event_id) AS event_id FROM system_events WHERE session_key = ?",
    );
    this.#clear = store.prepare(
      "DELETE FROM system_events WHERE session_key = ? AND event_id <= ?",
    );
  }

  /** Durable when it returns. */
  enqueue(sessionKey: string, text: string) {
    this.#add.run(sessionKey, text, this.#now());
    this.#trim.run();
  }

  /** Oldest first. */
  queued(sessionKey: string): string[] {
    return this.#list.all(sessionKey).map((row) => String(row.text));
  }

  /** What a turn of the session is told, and up to where that is. */
  pending(sessionKey: string): { events: string[]; upTo: number } {
    const upTo = Number(this.#last.get(sessionKey)?.event_id ?? 0);
    return { events: upTo === 0 ? [] : this.queued(sessionKey), upTo };
  }

  /** Forgets what a turn was told. */
  clear(sessionKey: string, upTo: number) {
    this.#clear.run(sessionKey, upTo);
  }
}
