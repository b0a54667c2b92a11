// Who hears of runs (§8.1): operators who may read, and the nodes that asked for a session.

import { MAX_BUFFERED_BYTES } from "../../rpc/frame.ts";
import type { EventHub } from "../events.ts";
import { type Listener, Subscriptions } from "../subscriptions.ts";

export class Audience {
  readonly #events: EventHub;
  /** By canonical session key. */
  readonly #nodes = new Subscriptions();

  constructor(events: EventHub) {
    this.#events = events;
  }

  /**
   * A node hears of the runs of a session until its connection ends.
   *
   * @param key canonical
   * @returns false when it listens to too many already
   */
  subscribe(key: string, listener: Listener): boolean {
    return this.#nodes.add(key, listener);
  }

  unsubscribe(key: string, connId: string) {
    this.#nodes.remove(key, connId);
  }

  /**
   * @param key canonical key of the session it is about
   * @param payloadOf undefined for a version of the protocol that does not get it
   */
  tell(
    name: "agent" | "chat",
    key: string,
    payloadOf: (protocol: number) => unknown,
    { isDroppable = false } = {},
  ) {
    this.#events.publishByVersion(name, payloadOf, { isDroppable });
    for (const listener of this.#nodes.of(key)) {
      if (isDroppable && listener.bufferedBytes > MAX_BUFFERED_BYTES) continue;
      const payload = payloadOf(listener.protocol);
      if (payload !== undefined) listener.sendEvent(name, payload);
    }
  }
}
