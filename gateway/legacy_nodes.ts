// The older store of nodes (§7.8): pairing by node id and token, independent of devices. Kept for
// peers of protocol 3 that still ask for it; it lets nobody in.

import { createHash, randomUUID } from "node:crypto";
import {
  boolean,
  type Infer,
  integer,
  list,
  nonEmpty,
  object,
  optional,
  text,
} from "../rpc/shape.ts";
import type { Store } from "./store.ts";

export const nodeDescription = {
  nodeId: nonEmpty(),
  displayName: optional(nonEmpty()),
  platform: optional(nonEmpty()),
  version: optional(nonEmpty()),
  coreVersion: optional(nonEmpty()),
  uiVersion: optional(nonEmpty()),
  deviceFamily: optional(nonEmpty()),
  modelIdentifier: optional(nonEmpty()),
  remoteIp: optional(nonEmpty()),
  caps: optional(list(nonEmpty())),
  commands: optional(list(nonEmpty())),
};
const NodeDescription = object(nodeDescription);
type NodeDescription = Infer<typeof NodeDescription>;

export const LegacyRequest = object({
  requestId: text(),
  ...nodeDescription,
  silent: optional(boolean()),
  isRepair: boolean(),
  ts: integer(),
});
export type LegacyRequest = Infer<typeof LegacyRequest>;

export const LegacyNode = object({
  ...nodeDescription,
  createdAtMs: integer(),
  approvedAtMs: integer(),
});
export type LegacyNode = Infer<typeof LegacyNode>;

const PENDING_TTL_MS = 300_000;

export class LegacyNodes {
  readonly #store: Store;
  readonly #now: () => number;
  readonly #sql;

  constructor(store: Store, now: () => number = Date.now) {
    this.#store = store;
    this.#now = now;
    this.#sql = {
      expire: store.prepare("DELETE FROM legacy_node_requests WHERE ts < ?"),
      requests: store.prepare("SELECT request FROM legacy_node_requests ORDER BY ts DESC"),
      requestOf: store.prepare("SELECT request FROM legacy_node_requests WHERE node_id = ?"),
      request: store.prepare("SELECT request FROM legacy_node_requests WHERE request_id = ?"),
      addRequest: store.prepare(
        "INSERT INTO legacy_node_requests (request_id, node_id, request, ts) VALUES (?, ?, ?, ?)",
      ),
      removeRequest: store.prepare("DELETE FROM legacy_node_requests WHERE request_id = ?"),
      nodes: store.prepare("SELECT node FROM legacy_nodes ORDER BY approved_at_ms DESC"),
      node: store.prepare("SELECT node, hash FROM legacy_nodes WHERE node_id = ?"),
      putNode: store.prepare(
        `INSERT INTO legacy_nodes (node_id, node, hash, approved_at_ms) VALUES (?, ?, ?, ?)
         ON CONFLICT (node_id) DO UPDATE SET node = excluded.node, hash = excluded.hash,
           approved_at_ms = excluded.approved_at_ms`,
      ),
      removeNode: store.prepare("DELETE FROM legacy_nodes WHERE node_id = ?"),
    };
  }

  /** The request of a node: the one that waits, or a new one. */
  ask(
    description: NodeDescription & { silent?: boolean },
  ): { request: LegacyRequest; created: boolean } {
    const ts = this.#now();
    this.#sql.expire.run(ts - PENDING_TTL_MS);
    const waiting = this.#sql.requestOf.get(description.nodeId);
    if (waiting) return { request: JSON.parse(String(waiting.request)), created: false };
    const request: LegacyRequest = {
      ...description,
      requestId: randomUUID(),
      isRepair: this.#sql.node.get(description.nodeId) !== undefined,
      ts,
    };
    const { requestId, nodeId } = request;
    this.#sql.addRequest.run(requestId, nodeId, JSON.stringify(request), ts);
    return { request, created: true };
  }

  pending(): LegacyRequest[] {
    this.#sql.expire.run(this.#now() - PENDING_TTL_MS);
    return this.#sql.requests.all().map(({ request }) => JSON.parse(String(request)));
  }

  paired(): LegacyNode[] {
    return this.#sql.nodes.all().map(({ node }) => JSON.parse(String(node)));
  }

  /** @returns the node with its token, which is known only now */
  approve(requestId: string): (LegacyNode & { token: string }) | undefined {
    return this.#store.transaction(() => {
      const request = this.#take(requestId);
      if (!request) return undefined;
      const { requestId: _, silent: __, isRepair: ___, ts: ____, ...description } = request;
      const approvedAtMs = this.#now();
      const before = this.#sql.node.get(request.nodeId);
      const createdAtMs = before ? JSON.parse(String(before.node)).createdAtMs : approvedAtMs;
      const node = { ...description, createdAtMs, approvedAtMs };
      const token = randomUUID().replaceAll("-", "");
      this.#sql.putNode.run(node.nodeId, JSON.stringify(node), hashOf(token), approvedAtMs);
      return { ...node, token };
    });
  }

  reject(requestId: string): LegacyRequest | undefined {
    return this.#take(requestId);
  }

  verify(nodeId: string, token: string): LegacyNode | undefined {
    const row = this.#sql.node.get(nodeId);
    return row && row.hash === hashOf(token) ? JSON.parse(String(row.node)) : undefined;
  }

  rename(nodeId: string, displayName: string): boolean {
    const row = this.#sql.node.get(nodeId);
    if (!row) return false;
    const node: LegacyNode = { ...JSON.parse(String(row.node)), displayName };
    this.#sql.putNode.run(nodeId, JSON.stringify(node), row.hash, node.approvedAtMs);
    return true;
  }

  remove(nodeId: string): boolean {
    return Number(this.#sql.removeNode.run(nodeId).changes) > 0;
  }

  #take(requestId: string): LegacyRequest | undefined {
    this.#sql.expire.run(this.#now() - PENDING_TTL_MS);
    const row = this.#sql.request.get(requestId);
    if (row) this.#sql.removeRequest.run(requestId);
    return row && JSON.parse(String(row.request));
  }
}

function hashOf(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}
