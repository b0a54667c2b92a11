// Connected nodes, what each offers, and invocations in flight (§7.8, §9.3). An invocation settles
// exactly once, and says whether it was delivered (D22). Nothing here touches the disk.

import { RpcError } from "../rpc/error.ts";
import { type Piece, PROGRESS_CAP } from "./node/progress.ts";
import type { Connection } from "./connection.ts";

/** What a node declared when it connected. */
export interface Declaration {
  caps: readonly string[];
  commands: readonly string[];
  pathEnv?: string;
  permissions?: Readonly<Record<string, boolean>>;
}

export interface ConnectedNode extends Declaration {
  nodeId: string;
  connection: Connection;
  connectedAtMs: number;
}

/** What a node answers, as it is passed on. */
export interface InvokeResult {
  ok: boolean;
  payload?: unknown;
  payloadJSON?: string;
  error?: { code?: string; message?: string };
}

/** Whether an invocation that failed reached the node (D22). */
export type Delivery = "not-sent" | "unknown" | "done";

interface Invocation {
  nodeId: string;
  connId: string;
  command: string;
  /** On the monotonic clock. */
  deadlineMs: number;
  /** Gone as soon as the caller misses a piece: what follows a gap is of no use. */
  onProgress?(piece: Piece): boolean;
  resolve(result: { payload: unknown; payloadJSON: string | null }): void;
  reject(error: RpcError): void;
}

export interface InvokeOptions {
  nodeId: string;
  command: string;
  params: unknown;
  timeoutMs: number;
  idempotencyKey: string;
  /**
   * Takes what the command writes while it runs, where the node can tell.
   *
   * @returns false for a caller that cannot take it, who is then told nothing more
   */
  onProgress?(piece: Piece): boolean;
}

/** Nodes that are gone, and remembered when they were last there. */
const MAX_GONE = 1_000;

export class NodeRegistry {
  readonly #nodes = new Map<string, ConnectedNode>();
  readonly #invocations = new Map<string, Invocation>();
  /** When nodes that are gone were last there; the first to go first. */
  readonly #lastSeen = new Map<string, number>();
  readonly #onRegistered: (nodeId: string) => void;
  #lateResults = 0;
  /** One for all: most invocations are answered long before it fires. */
  #timer?: ReturnType<typeof setTimeout>;
  /** When it fires; Infinity where it is not set. */
  #sweepAtMs = Infinity;

  /** @param onRegistered told of a node that can be asked for something from now on */
  constructor(onRegistered: (nodeId: string) => void = () => {}) {
    this.#onRegistered = onRegistered;
  }

  /** Makes a connection the way to its node; one that was before it is closed and forgotten. */
  register(nodeId: string, connection: Connection, declaration: Declaration) {
    const old = this.#nodes.get(nodeId);
    this.#lastSeen.delete(nodeId);
    this.#nodes.set(nodeId, { ...declaration, nodeId, connection, connectedAtMs: Date.now() });
    if (old) old.connection.close(4000, "replaced by a newer connection of this node");
    this.#onRegistered(nodeId);
  }

  /** Ends what a connection had in flight; the node stays if another connection has taken over. */
  unregister(nodeId: string, connId: string) {
    if (this.#nodes.get(nodeId)?.connection.id === connId) {
      this.#nodes.delete(nodeId);
      this.#noteGone(nodeId);
    }
    for (const [id, invocation] of this.#invocations) {
      if (invocation.connId !== connId) continue;
      this.#invocations.delete(id);
      invocation.reject(
        unavailable(`node disconnected (${invocation.command})`, {
          nodeError: null,
          delivery: "unknown",
        }),
      );
    }
  }

  find(nodeId: string): ConnectedNode | undefined {
    return this.#nodes.get(nodeId);
  }

  /** When a node that is gone was last there, as far as this gateway saw it go. */
  lastSeenAtMs(nodeId: string): number | undefined {
    return this.#lastSeen.get(nodeId);
  }

  /** In the order they connected. */
  list(): ConnectedNode[] {
    return [...this.#nodes.values()];
  }

  /** Results that came after their invocation had ended. */
  get lateResults(): number {
    return this.#lateResults;
  }

  /**
   * Sends an invocation and waits for its result.
   *
   * @throws {RpcError} as §7.8 words it
   */
  invoke(
    { nodeId, command, params, timeoutMs, idempotencyKey, onProgress }: InvokeOptions,
  ): Promise<{ payload: unknown; payloadJSON: string | null }> {
    const node = this.#nodes.get(nodeId);
    if (!node) {
      throw unavailable("node not connected", { code: "NOT_CONNECTED", delivery: "not-sent" });
    }
    const id = crypto.randomUUID();
    const { promise, resolve, reject } = Promise.withResolvers<
      { payload: unknown; payloadJSON: string | null }
    >();
    const deadlineMs = performance.now() + timeoutMs;
    const connId = node.connection.id;
    const hasProgress = onProgress !== undefined && node.caps.includes(PROGRESS_CAP);
    this.#invocations.set(id, {
      nodeId,
      connId,
      command,
      deadlineMs,
      onProgress: hasProgress ? onProgress : undefined,
      resolve,
      reject,
    });
    if (deadlineMs < this.#sweepAtMs) this.#sweepAt(deadlineMs);
    const isSent = node.connection.sendEvent("node.invoke.request", {
      id,
      nodeId,
      command,
      paramsJSON: params === undefined ? null : JSON.stringify(params),
      timeoutMs,
      idempotencyKey,
      progress: hasProgress || undefined,
    });
    if (!isSent) {
      this.#invocations.delete(id);
      const nodeError = { code: "UNAVAILABLE", message: "failed to send invoke to node" };
      reject(unavailable(nodeError.message, { nodeError, delivery: "not-sent" }));
    }
    return promise;
  }

  /** @returns whether anybody was still waiting for it */
  settle(id: string, nodeId: string, { ok, payload, payloadJSON, error }: InvokeResult): boolean {
    const invocation = this.#invocations.get(id);
    if (!invocation || invocation.nodeId !== nodeId) {
      this.#lateResults++;
      return false;
    }
    this.#invocations.delete(id);
    if (ok) {
      invocation.resolve({
        payload: payloadJSON === undefined ? payload ?? null : parsed(payloadJSON),
        payloadJSON: payloadJSON ?? null,
      });
    } else {
      invocation.reject(
        unavailable(error?.message || "node invoke failed", {
          nodeError: error ?? null,
          delivery: "done",
        }),
      );
    }
    return true;
  }

  /**
   * Passes on what an invocation writes while it runs.
   *
   * @param connId of the connection it came over, which must be the one the invocation went over
   * @returns whether anybody wants to know
   */
  progress(id: string, connId: string, piece: Piece): boolean {
    const invocation = this.#invocations.get(id);
    if (!invocation?.onProgress || invocation.connId !== connId) return false;
    if (invocation.onProgress(piece)) return true;
    invocation.onProgress = undefined;
    return false;
  }

  [Symbol.dispose]() {
    for (const [id, { reject }] of this.#invocations) {
      this.#invocations.delete(id);
      reject(unavailable("gateway stopping", { nodeError: null, delivery: "unknown" }));
    }
    this.#nodes.clear();
    clearTimeout(this.#timer);
  }

  #noteGone(nodeId: string) {
    this.#lastSeen.delete(nodeId);
    this.#lastSeen.set(nodeId, Date.now());
    if (this.#lastSeen.size <= MAX_GONE) return;
    const [oldest] = this.#lastSeen.keys();
    this.#lastSeen.delete(oldest);
  }

  #sweepAt(atMs: number) {
    clearTimeout(this.#timer);
    this.#sweepAtMs = atMs;
    this.#timer = setTimeout(() => this.#sweep(), Math.max(0, Math.ceil(atMs - performance.now())));
  }

  /** Ends what is late. */
  #sweep() {
    const nowMs = performance.now();
    let nextMs = Infinity;
    for (const [id, { deadlineMs, reject }] of this.#invocations) {
      if (deadlineMs > nowMs) {
        nextMs = Math.min(nextMs, deadlineMs);
        continue;
      }
      this.#invocations.delete(id);
      const nodeError = { code: "TIMEOUT", message: "node invoke timed out" };
      reject(unavailable(nodeError.message, { nodeError, delivery: "unknown" }));
    }
    this.#sweepAtMs = Infinity;
    if (nextMs < Infinity) this.#sweepAt(nextMs);
  }
}

function unavailable(
  message: string,
  details: { delivery: Delivery; [key: string]: unknown },
): RpcError {
  return new RpcError("UNAVAILABLE", message, { details });
}

/** Text that is no JSON is passed on as the text it is. */
function parsed(payloadJSON: string): unknown {
  try {
    return JSON.parse(payloadJSON);
  } catch {
    return { payloadJSON };
  }
}
