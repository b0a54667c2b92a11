// Who watches sessions: `sessions.changed` for those who watch all of them, `session.message` for
// those who watch one. Copies go to single connections, hence without a number (§1.1).

import { MAX_BUFFERED_BYTES } from "../rpc/frame.ts";
import { RpcError } from "../rpc/error.ts";
import type { Connections } from "./connections.ts";
import type { Caller } from "./gateway.ts";
import type { Appended, ChangeReason, Message, Session, SessionNews } from "./sessions.ts";
import { sessionRow } from "./sessions_rows.ts";
import { Subscriptions } from "./subscriptions.ts";

/** No canonical key. */
const ALL = "*";

export class SessionWatchers implements SessionNews {
  readonly #subscriptions = new Subscriptions();

  /** @throws {RpcError} a caller without a connection */
  watchAll(caller: Caller, connections: Connections) {
    this.watch(ALL, caller, connections);
  }

  /**
   * @param key canonical
   * @throws {RpcError} a caller without a connection, or with too many sessions
   */
  watch(key: string, { connId }: Caller, connections: Connections) {
    const connection = connections.find(connId);
    if (!connection) {
      throw new RpcError("INVALID_REQUEST", "Cannot subscribe: this call has no connection", {
        details: { fix: "Call it over a WebSocket" },
      });
    }
    if (!this.#subscriptions.add(key, connection)) {
      throw new RpcError("INVALID_REQUEST", "Cannot subscribe: this connection watches too many", {
        details: { fix: "sessions.subscribe tells of all of them" },
      });
    }
  }

  /** @param key canonical */
  unwatch(key: string, { connId }: Caller) {
    this.#subscriptions.remove(key, connId);
  }

  appended(session: Session, { messageId, seq }: Appended, message: Message) {
    const { key: sessionKey } = session;
    this.#send(sessionKey, "session.message", { sessionKey, messageId, messageSeq: seq, message });
    this.#announce(sessionKey, "message", session);
  }

  changed(key: string, reason: ChangeReason, session: Session | undefined) {
    this.#announce(key, reason, session);
  }

  #announce(sessionKey: string, reason: ChangeReason | "message", session: Session | undefined) {
    if (!this.#subscriptions.has(ALL)) return;
    const row = session ? sessionRow(session) : null;
    this.#send(ALL, "sessions.changed", { sessionKey, reason, ts: Date.now(), session: row });
  }

  /** A copy less is what a connection that is behind can do without. */
  #send(topic: string, event: string, payload: unknown) {
    for (const listener of this.#subscriptions.of(topic)) {
      if (listener.bufferedBytes <= MAX_BUFFERED_BYTES) listener.sendEvent(event, payload);
    }
  }
}
