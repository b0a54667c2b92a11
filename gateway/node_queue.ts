// Invocations that wait for a node to come back (`node.invoke` with `queue`). Each is in the database
// before it is acknowledged, and marked as sent before it is sent: whatever kills the gateway, none is
// lost and none is sent twice. Of one that was sent and not answered nobody can say whether it was
// done, so that is what is reported (D22).

import type { Log } from "../config/log.ts";
import { RpcError } from "../rpc/error.ts";
import {
  anything,
  type Infer,
  integer,
  nullable,
  object,
  oneOf,
  optional,
  text,
} from "../rpc/shape.ts";
import type { Delivery, InvokeOptions, NodeRegistry } from "./nodes.ts";
import type { Store } from "./store.ts";

/** The longest an invocation may wait. */
export const MAX_TTL_MS = 7 * 86_400_000;

export const QUEUE_STATES = ["waiting", "sent", "done", "failed", "expired", "cancelled"] as const;
export type QueueState = (typeof QUEUE_STATES)[number];

const entry = {
  queueId: text(),
  nodeId: text(),
  command: text(),
  /** `done` and `failed` as `node.invoke` would have answered; `sent` until the node answers. */
  state: oneOf(QUEUE_STATES),
  /** Whether it reached the node (D22). */
  delivery: oneOf(["not-sent", "unknown", "done"]),
  /** Who wanted it. */
  by: text(),
  /** What the node may take once it has been sent. */
  timeoutMs: integer(),
  createdAtMs: integer(),
  /** Until when it waits to be sent. */
  expiresAtMs: integer(),
  sentAtMs: optional(integer()),
  endedAtMs: optional(integer()),
  error: optional(object({ code: text(), message: text(), details: anything() })),
};
export const QueueEntry = object(entry);
export type QueueEntry = Infer<typeof QueueEntry>;

/** An entry with what the node answered. */
export const AnsweredEntry = object({
  ...entry,
  payload: anything(),
  payloadJSON: optional(nullable(text())),
});
export type AnsweredEntry = Infer<typeof AnsweredEntry>;

/** What is to be done, and on whose behalf. */
export interface QueuedInvocation extends InvokeOptions {
  /** Whose approvals count, and who may see the answer; see `callerKey`. */
  caller: string;
  /** The device behind the caller. */
  callerDevice?: string;
  /** As people are shown it. */
  by: string;
}

/** What bounds the queue. */
export interface QueueLimits {
  /** Invocations that wait. */
  perNode: number;
  inTotal: number;
  /** Of the params of one, as JSON, in characters. */
  paramsSize: number;
  /** Of the params of all that wait. */
  totalSize: number;
  /** Of an answer, as JSON, in characters; a larger one is not kept. */
  answerSize: number;
  /** How many that have ended are kept, and for how long. */
  ended: number;
  endedTtlMs: number;
}

export const QUEUE_LIMITS: QueueLimits = {
  perNode: 100,
  inTotal: 1_000,
  paramsSize: 262_144,
  totalSize: 16_777_216,
  answerSize: 262_144,
  ended: 200,
  endedTtlMs: 86_400_000,
};

export interface NodeQueueOptions {
  store: Store;
  nodes: Pick<NodeRegistry, "find" | "invoke">;
  log: Log;
  /**
   * Asked right before one is sent: the rules and the approvals of that moment count.
   *
   * @returns what to send
   * @throws {RpcError} why it may not be sent
   */
  clear(queued: QueuedInvocation): InvokeOptions;
  /** Told of each change of an entry. */
  changed(entry: QueueEntry): void;
  limits?: Partial<QueueLimits>;
  now?(): number;
}

type Row = Record<string, string | number | null>;
/** What became of one. */
interface Outcome {
  state: Exclude<QueueState, "waiting" | "sent">;
  delivery: Delivery;
  answer?: { payload: unknown; payloadJSON: string | null };
  error?: { code: string; message: string; details?: unknown };
}

const COLUMNS = `queue_id, node_id, command, state, delivery, error, queued_by, caller, timeout_ms,
  created_at_ms, expires_at_ms, sent_at_ms, ended_at_ms`;
/** What an error may say that is kept. */
const MAX_ERROR_SIZE = 4_096;
const MAX_TIMER_MS = 2_147_483_647;
const RETRY_MS = 1_000;

export class NodeQueue {
  readonly #options: NodeQueueOptions;
  readonly #limits: QueueLimits;
  readonly #now: () => number;
  readonly #sql;
  /** Nodes whose entries are being sent, one after the other. */
  readonly #busy = new Set<string>();
  #timer?: ReturnType<typeof setTimeout>;
  #isStopped = false;

  constructor(options: NodeQueueOptions) {
    const { store } = options;
    this.#options = options;
    this.#limits = { ...QUEUE_LIMITS, ...options.limits };
    this.#now = options.now ?? Date.now;
    this.#sql = {
      add: store.prepare(
        `INSERT INTO node_queue (queue_id, node_id, role, command, params, timeout_ms,
           idempotency_key, caller, caller_device, queued_by, state, delivery, created_at_ms,
           expires_at_ms)
         VALUES (?, ?, 'node', ?, ?, ?, ?, ?, ?, ?, 'waiting', 'not-sent', ?, ?)`,
      ),
      find: store.prepare(`SELECT ${COLUMNS} FROM node_queue WHERE queue_id = ?`),
      answer: store.prepare("SELECT caller, answer FROM node_queue WHERE queue_id = ?"),
      sameKey: store.prepare(
        `SELECT ${COLUMNS} FROM node_queue WHERE caller = ? AND idempotency_key = ?`,
      ),
      list: store.prepare(
        `SELECT ${COLUMNS} FROM node_queue WHERE ?1 IS NULL OR node_id = ?1 ORDER BY entry_id`,
      ),
      next: store.prepare(
        `SELECT * FROM node_queue WHERE node_id = ? AND state = 'waiting'
         ORDER BY entry_id LIMIT 1`,
      ),
      load: store.prepare(
        `SELECT count(*) AS count, coalesce(sum(length(params)), 0) AS size,
           coalesce(sum(node_id = ?), 0) AS of_node
         FROM node_queue WHERE state = 'waiting'`,
      ),
      setState: store.prepare(
        "UPDATE node_queue SET state = ?, delivery = ?, sent_at_ms = ? WHERE queue_id = ?",
      ),
      end: store.prepare(
        `UPDATE node_queue SET state = ?, delivery = ?, error = ?, answer = ?, ended_at_ms = ?,
           params = NULL
         WHERE queue_id = ? AND state IN ('waiting', 'sent')`,
      ),
      overdue: store.prepare(
        "SELECT queue_id FROM node_queue WHERE state = 'waiting' AND expires_at_ms <= ?",
      ),
      firstExpiry: store.prepare(
        "SELECT min(expires_at_ms) AS at_ms FROM node_queue WHERE state = 'waiting'",
      ),
      interrupted: store.prepare("SELECT queue_id FROM node_queue WHERE state = 'sent'"),
      trim: store.prepare(
        `DELETE FROM node_queue WHERE ended_at_ms < ?1 OR entry_id IN (
           SELECT entry_id FROM node_queue WHERE ended_at_ms IS NOT NULL
           ORDER BY ended_at_ms DESC, entry_id DESC LIMIT -1 OFFSET ?2)`,
      ),
    };
    store.attempt(() => this.#recover());
    this.#watch();
  }

  /**
   * Keeps an invocation until its node is there. Durable when it returns.
   *
   * @returns the entry; of the same caller and key there is only ever one
   * @throws {RpcError} the queue is full, or the invocation is too large
   */
  add(invocation: QueuedInvocation, ttlMs: number): QueueEntry {
    const { nodeId, command, timeoutMs, idempotencyKey, caller, callerDevice, by } = invocation;
    this.#expire();
    const known = this.find(invocation);
    if (known) return known;
    const params = invocation.params === undefined ? null : JSON.stringify(invocation.params);
    this.#mustHaveRoom(nodeId, params?.length ?? 0);
    const queueId = crypto.randomUUID();
    const now = this.#now();
    this.#sql.add.run(
      queueId,
      nodeId,
      command,
      params,
      timeoutMs,
      idempotencyKey,
      caller,
      callerDevice ?? null,
      by,
      now,
      now + ttlMs,
    );
    const entry = this.#read(queueId)!;
    this.#options.changed(entry);
    this.#watch();
    // It may have come back meanwhile.
    this.flush(nodeId);
    return entry;
  }

  /**
   * What the same caller has queued under the same key.
   *
   * @throws {RpcError} when that is something else
   */
  find(
    { caller, idempotencyKey, nodeId, command }: Omit<QueuedInvocation, "params" | "timeoutMs">,
  ): QueueEntry | undefined {
    const row = this.#sql.sameKey.get(caller, idempotencyKey) as Row | undefined;
    if (row && (row.node_id !== nodeId || row.command !== command)) {
      throw new RpcError("INVALID_REQUEST", "idempotencyKey was used for another invocation");
    }
    return row && readEntry(row);
  }

  /** Whether something waits for a node, or is on its way to it. */
  isBusy(nodeId: string): boolean {
    return this.#busy.has(nodeId) || this.#sql.next.get(nodeId) !== undefined;
  }

  /** In the order they came, those that have ended included. */
  list(nodeId?: string): QueueEntry[] {
    this.#expire();
    return (this.#sql.list.all(nodeId ?? null) as Row[]).map(readEntry);
  }

  /**
   * One entry, with the answer of the node.
   *
   * @param maySee whether the answer may be shown, given who wanted it
   */
  describe(queueId: string, maySee: (caller: string) => boolean): AnsweredEntry | undefined {
    this.#expire();
    const entry = this.#read(queueId);
    if (!entry) return undefined;
    const { caller, answer } = this.#sql.answer.get(queueId) as Row;
    return answer !== null && maySee(String(caller))
      ? { ...entry, ...JSON.parse(String(answer)) }
      : entry;
  }

  /** @throws {RpcError} when there is no such entry, or it does not wait any more */
  cancel(queueId: string): QueueEntry {
    this.#expire();
    const entry = this.#read(queueId);
    if (!entry) throw new RpcError("INVALID_REQUEST", "unknown queueId");
    if (entry.state !== "waiting") {
      throw new RpcError("INVALID_REQUEST", `Cannot cancel the invocation: it is ${entry.state}`, {
        details: { state: entry.state, delivery: entry.delivery },
      });
    }
    this.#end(queueId, { state: "cancelled", delivery: "not-sent" });
    return this.#read(queueId)!;
  }

  /** Sends what waits for a node that is there: one after the other, each when the last has ended. */
  flush(nodeId: string) {
    if (this.#isStopped || this.#busy.has(nodeId) || !this.#sql.next.get(nodeId)) return;
    this.#send(nodeId).catch(({ message: error }: Error) =>
      this.#options.log.error("cannot go on with the queue of a node", { nodeId, error })
    );
  }

  /** What is on its way is not waited for: the next start reports it as unknown. */
  [Symbol.dispose]() {
    this.#isStopped = true;
    clearTimeout(this.#timer);
  }

  async #send(nodeId: string): Promise<void> {
    this.#busy.add(nodeId);
    try {
      for (;;) {
        this.#expire();
        const row = this.#sql.next.get(nodeId) as Row | undefined;
        if (!row || !this.#options.nodes.find(nodeId)) return;
        const queueId = String(row.queue_id);
        const outcome = await this.#deliver(queueId, readInvocation(row));
        if (this.#isStopped) return;
        if (outcome) {
          this.#end(queueId, outcome);
          continue;
        }
        // It never left: it goes on waiting for the next connection of the node.
        this.#setState(queueId, "waiting", "not-sent", null);
        return this.#watch();
      }
    } finally {
      // In the same turn as the last look for more: what is added from now on starts anew.
      this.#busy.delete(nodeId);
    }
  }

  /** @returns undefined when it could not be sent */
  async #deliver(queueId: string, queued: QueuedInvocation): Promise<Outcome | undefined> {
    let cleared: InvokeOptions;
    try {
      cleared = this.#options.clear(queued);
    } catch (error) {
      if (!(error instanceof RpcError)) throw error;
      return { state: "failed", delivery: "not-sent", error: describe(error) };
    }
    // Before it is sent: a gateway that dies in between must not send it again.
    this.#setState(queueId, "sent", "unknown", this.#now());
    try {
      const answer = await this.#options.nodes.invoke(cleared);
      return { state: "done", delivery: "done", answer };
    } catch (error) {
      if (!(error instanceof RpcError)) throw error;
      const { delivery = "unknown" } = (error.details ?? {}) as { delivery?: Delivery };
      if (delivery === "not-sent") return undefined;
      return { state: "failed", delivery, error: describe(error) };
    }
  }

  #setState(queueId: string, state: QueueState, delivery: Delivery, sentAtMs: number | null) {
    this.#sql.setState.run(state, delivery, sentAtMs, queueId);
    this.#tell(queueId);
  }

  #end(queueId: string, { state, delivery, answer, error }: Outcome) {
    const now = this.#now();
    let kept = answer && JSON.stringify(answer);
    if (kept !== undefined && kept.length > this.#limits.answerSize) {
      kept = undefined;
      error = {
        code: "UNAVAILABLE",
        message: `the answer is too large to be kept (${this.#limits.answerSize} characters)`,
      };
    }
    const said = error && JSON.stringify(error);
    const { changes } = this.#sql.end.run(
      state,
      delivery,
      said ?? null,
      kept ?? null,
      now,
      queueId,
    );
    // Its node may have been removed meanwhile, and what was queued for it.
    if (Number(changes) === 0) return;
    this.#tell(queueId);
    this.#sql.trim.run(now - this.#limits.endedTtlMs, this.#limits.ended);
  }

  #tell(queueId: string) {
    const entry = this.#read(queueId);
    if (entry) this.#options.changed(entry);
  }

  #read(queueId: string): QueueEntry | undefined {
    const row = this.#sql.find.get(queueId) as Row | undefined;
    return row && readEntry(row);
  }

  #mustHaveRoom(nodeId: string, size: number) {
    const { paramsSize, perNode, inTotal, totalSize } = this.#limits;
    if (size > paramsSize) {
      throw new RpcError(
        "INVALID_REQUEST",
        `Cannot queue the invocation: its params have ${size} characters, ${paramsSize} may wait`,
      );
    }
    const load = this.#sql.load.get(nodeId) as { count: number; size: number; of_node: number };
    const problem = load.of_node >= perNode
      ? `${perNode} wait for this node already`
      : load.count >= inTotal
      ? `${inTotal} wait already`
      : load.size + size > totalSize
      ? `what waits already is too large together`
      : undefined;
    if (problem) {
      throw new RpcError("UNAVAILABLE", `Cannot queue the invocation: ${problem}`, {
        details: { code: "QUEUE_FULL", delivery: "not-sent", fix: "zero nodes queue" },
      });
    }
  }

  /** What the last run of the gateway sent and got no answer to. */
  #recover() {
    const error = { code: "UNAVAILABLE", message: "gateway stopped before the node answered" };
    for (const { queue_id } of this.#sql.interrupted.all() as Row[]) {
      this.#end(String(queue_id), { state: "failed", delivery: "unknown", error });
    }
  }

  #expire() {
    for (const { queue_id } of this.#sql.overdue.all(this.#now()) as Row[]) {
      this.#end(String(queue_id), { state: "expired", delivery: "not-sent" });
    }
  }

  /** Sees to it that what is overdue ends without being asked for. */
  #watch(atLeastMs = 0) {
    clearTimeout(this.#timer);
    const { at_ms: atMs } = this.#sql.firstExpiry.get() as { at_ms: number | null };
    if (atMs === null || this.#isStopped) return;
    const waitMs = Math.min(Math.max(atLeastMs, atMs - this.#now()), MAX_TIMER_MS);
    this.#timer = setTimeout(() => {
      this.#options.store.attempt(() => this.#expire());
      // On a full disk it is overdue still.
      this.#watch(RETRY_MS);
    }, waitMs);
  }
}

function readEntry(row: Row): QueueEntry {
  return {
    queueId: String(row.queue_id),
    nodeId: String(row.node_id),
    command: String(row.command),
    state: row.state as QueueState,
    delivery: row.delivery as Delivery,
    by: String(row.queued_by),
    timeoutMs: Number(row.timeout_ms),
    createdAtMs: Number(row.created_at_ms),
    expiresAtMs: Number(row.expires_at_ms),
    ...(row.sent_at_ms !== null && { sentAtMs: Number(row.sent_at_ms) }),
    ...(row.ended_at_ms !== null && { endedAtMs: Number(row.ended_at_ms) }),
    ...(row.error !== null && { error: JSON.parse(String(row.error)) }),
  };
}

function readInvocation(row: Row): QueuedInvocation {
  return {
    nodeId: String(row.node_id),
    command: String(row.command),
    params: row.params === null ? undefined : JSON.parse(String(row.params)),
    timeoutMs: Number(row.timeout_ms),
    idempotencyKey: String(row.idempotency_key),
    caller: String(row.caller),
    ...(row.caller_device !== null && { callerDevice: String(row.caller_device) }),
    by: String(row.queued_by),
  };
}

/** An error as it is kept: what a node says is as long as it likes. */
function describe({ code, message, details }: RpcError): Outcome["error"] {
  const said = { code, message, details };
  return JSON.stringify(said).length <= MAX_ERROR_SIZE
    ? said
    : { code, message: message.slice(0, MAX_ERROR_SIZE / 4) };
}
