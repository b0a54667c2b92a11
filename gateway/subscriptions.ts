// Connections that asked for something by name, until they ask no more or end.

/** A connection as far as it is told things. */
export interface Listener {
  readonly id: string;
  readonly protocol: number;
  readonly bufferedBytes: number;
  /** Settles when it has ended. */
  readonly closed: Promise<void>;
  /** Directly, without a number (§1.1). @returns false when it has ended */
  sendEvent(name: string, payload: unknown): boolean;
}

/** Topics one connection may have. */
const MAX_TOPICS = 1_000;

export class Subscriptions {
  /** Topic → connections by id. */
  readonly #listeners = new Map<string, Map<string, Listener>>();
  /** Connection id → its topics. */
  readonly #topics = new Map<string, Set<string>>();

  /** @returns false when it has too many already */
  add(topic: string, listener: Listener): boolean {
    let topics = this.#topics.get(listener.id);
    if (!topics) {
      this.#topics.set(listener.id, topics = new Set());
      listener.closed.then(() => this.#forget(listener.id));
    }
    if (topics.size >= MAX_TOPICS && !topics.has(topic)) return false;
    topics.add(topic);
    const listeners = this.#listeners.get(topic) ?? new Map<string, Listener>();
    this.#listeners.set(topic, listeners.set(listener.id, listener));
    return true;
  }

  remove(topic: string, connId: string) {
    this.#topics.get(connId)?.delete(topic);
    const listeners = this.#listeners.get(topic);
    listeners?.delete(connId);
    if (listeners?.size === 0) this.#listeners.delete(topic);
  }

  of(topic: string): Iterable<Listener> {
    return this.#listeners.get(topic)?.values() ?? [];
  }

  has(topic: string): boolean {
    return this.#listeners.has(topic);
  }

  #forget(connId: string) {
    for (const topic of this.#topics.get(connId) ?? []) this.remove(topic, connId);
    this.#topics.delete(connId);
  }
}
