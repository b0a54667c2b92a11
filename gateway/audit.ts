// The audit trail: who was let in, approved, rotated or refused, why, and from where. Kept in the
// database, bounded in size, and never by a flood of refusals slower than the refusals themselves.

import { type Infer, integer, list, object, oneOf, optional, text } from "../rpc/shape.ts";
import type { Store } from "./store.ts";

/** What can happen, as the trail names it. */
export const AUDIT_EVENTS = [
  "connect.refused",
  "device.requested",
  "device.paired",
  "device.approved",
  "device.rejected",
  "device.renamed",
  "device.removed",
  "token.rotated",
  "token.revoked",
  "invite.created",
  "invite.used",
  "invite.revoked",
  "config.changed",
  "channel.added",
  "channel.requested",
  "channel.paired",
  "channel.unpaired",
  "channel.removed",
  /** What may run on the gateway or on a node (`deviceId`) without asking. */
  "approvals.changed",
] as const;
export type AuditEvent = (typeof AUDIT_EVENTS)[number];

const facts = {
  /** Who did it: a device, the shared secret, or an invite. */
  by: optional(text()),
  /** Whom a proxy or Tailscale vouched for. */
  user: optional(text()),
  deviceId: optional(text()),
  displayName: optional(text()),
  clientId: optional(text()),
  role: optional(text()),
  scopes: optional(list(text())),
  requestId: optional(text()),
  inviteId: optional(text()),
  /** Of a refusal. */
  code: optional(text()),
  reason: optional(text()),
  ip: optional(text()),
  channel: optional(text()),
  senderId: optional(text()),
};

export const AuditEntry = object({
  auditId: integer(),
  ts: integer(),
  event: oneOf(AUDIT_EVENTS),
  ...facts,
  /** How often the same happened, and when last. */
  count: integer({ min: 1 }),
  lastTs: integer(),
});
export type AuditEntry = Infer<typeof AuditEntry>;

export type AuditFacts = Omit<AuditEntry, "auditId" | "ts" | "event" | "count" | "lastTs">;

/** Entries kept, beside refusals; the oldest give way. */
const MAX_ENTRIES = 20_000;
const MAX_REFUSALS = 10_000;
/** Equal refusals within this time are one entry. */
const MERGE_MS = 60_000;
/** Counts of merged refusals are written this often. */
const FLUSH_MS = 2_000;
/** Different refusals remembered at a time; beyond it they are counted together. */
const MAX_MERGED = 500;

interface Merged {
  auditId: number;
  firstMs: number;
  lastMs: number;
  count: number;
  isDirty: boolean;
}

export class AuditTrail {
  readonly #store: Store;
  readonly #now: () => number;
  readonly #sql;
  readonly #merged = new Map<string, Merged>();
  #timer?: ReturnType<typeof setTimeout>;

  constructor(store: Store, now: () => number = Date.now) {
    this.#store = store;
    this.#now = now;
    this.#sql = {
      add: store.prepare(
        "INSERT INTO audit (ts, event, facts, count, last_ts) VALUES (?, ?, ?, 1, ?)",
      ),
      count: store.prepare("UPDATE audit SET count = ?, last_ts = ? WHERE audit_id = ?"),
      trim: store.prepare(
        `DELETE FROM audit WHERE event <> 'connect.refused' AND audit_id <= (
           SELECT audit_id FROM audit WHERE event <> 'connect.refused'
           ORDER BY audit_id DESC LIMIT 1 OFFSET ${MAX_ENTRIES})`,
      ),
      // Strangers can cause refusals without end; they must not push out what was decided.
      trimRefusals: store.prepare(
        `DELETE FROM audit WHERE event = 'connect.refused' AND audit_id <= (
           SELECT audit_id FROM audit WHERE event = 'connect.refused'
           ORDER BY audit_id DESC LIMIT 1 OFFSET ${MAX_REFUSALS})`,
      ),
      list: store.prepare(
        "SELECT * FROM audit WHERE last_ts >= ? ORDER BY audit_id DESC LIMIT ?",
      ),
    };
  }

  /** Durable when it returns. */
  record(event: AuditEvent, facts: AuditFacts): number {
    const ts = this.#now();
    const { lastInsertRowid } = this.#sql.add.run(ts, event, JSON.stringify(facts), ts);
    const auditId = Number(lastInsertRowid);
    if (auditId % 100 === 0) {
      this.#sql.trim.run();
      this.#sql.trimRefusals.run();
    }
    return auditId;
  }

  /** A refused connect. Equal ones within a minute are one entry that counts them. */
  refuse(facts: AuditFacts & { code: string }) {
    const now = this.#now();
    const { code, ip = "", deviceId = "", user = "" } = facts;
    let key = [code, ip, deviceId, user].join(" ");
    let known = this.#merged.get(key);
    if (!known && this.#merged.size >= MAX_MERGED) {
      key = `${code} from many`;
      known = this.#merged.get(key);
    }
    if (known && now - known.firstMs < MERGE_MS) {
      known.count++;
      known.lastMs = now;
      known.isDirty = true;
      this.#timer ??= setTimeout(() => this.flush(), FLUSH_MS);
      return;
    }
    const shown = key.endsWith(" from many") ? { code, reason: "from many addresses" } : facts;
    const auditId = this.#store.attempt(() => this.record("connect.refused", shown));
    if (auditId === undefined) return;
    this.#merged.set(key, { auditId, firstMs: now, lastMs: now, count: 1, isDirty: false });
    this.#timer ??= setTimeout(() => this.flush(), FLUSH_MS);
  }

  /** @returns newest first */
  list({ sinceMs = 0, limit = 200 }: { sinceMs?: number; limit?: number } = {}): AuditEntry[] {
    this.flush();
    return this.#sql.list.all(sinceMs, limit).map((row) => ({
      auditId: Number(row.audit_id),
      ts: Number(row.ts),
      event: String(row.event) as AuditEvent,
      ...JSON.parse(String(row.facts)),
      count: Number(row.count),
      lastTs: Number(row.last_ts),
    }));
  }

  /** Writes the counts of merged refusals. */
  flush() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const now = this.#now();
    for (const [key, one] of this.#merged) {
      if (one.isDirty) {
        this.#store.attempt(() => this.#sql.count.run(one.count, one.lastMs, one.auditId));
      }
      one.isDirty = false;
      if (now - one.firstMs >= MERGE_MS) this.#merged.delete(key);
    }
    if (this.#merged.size > 0) this.#timer = setTimeout(() => this.flush(), FLUSH_MS);
  }

  [Symbol.dispose]() {
    this.flush();
    clearTimeout(this.#timer);
  }
}
