// What calls that start runs were answered (§7.1): the same idempotency key again gets the same answer,
// and nothing is done twice. Kept in memory; the runs themselves know their ids for longer, and what is
// sent is known by its key to the outbox.

import type { Answer } from "../rpc/method.ts";

/** Methods that share the memory, each with a name space of its own. */
export type KeySpace = "agent" | "chat";

const TTL_MS = 300_000;
const MAX_ENTRIES = 1_000;

interface Entry {
  atMs: number;
  answer: Answer;
}

export class IdempotencyCache {
  /** Oldest first. */
  readonly #entries = new Map<string, Entry>();
  readonly #now: () => number;

  /** @param now monotonic milliseconds */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  find(space: KeySpace, key: string): Answer | undefined {
    this.#sweep();
    return this.#entries.get(`${space}:${key}`)?.answer;
  }

  /** In place of what was known; the time a key is remembered starts anew. */
  remember(space: KeySpace, key: string, answer: Answer) {
    const name = `${space}:${key}`;
    this.#entries.delete(name);
    this.#entries.set(name, { atMs: this.#now(), answer });
    this.#sweep();
  }

  #sweep() {
    const sinceMs = this.#now() - TTL_MS;
    for (const [name, { atMs }] of this.#entries) {
      if (atMs > sinceMs && this.#entries.size <= MAX_ENTRIES) break;
      this.#entries.delete(name);
    }
  }
}
