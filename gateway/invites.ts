// Invitations: a single-use secret that pairs one device with what its maker chose, without asking
// again. Only the SHA-256 of the secret is kept.

import { createHash, randomBytes, randomUUID } from "node:crypto";
import { coversScopes, type Role } from "../rpc/scope.ts";
import { type Infer, integer, list, object, oneOf, optional, text } from "../rpc/shape.ts";
import type { Store } from "./store.ts";

export const Invite = object({
  inviteId: text(),
  role: oneOf(["operator", "node"]),
  scopes: list(text()),
  createdAtMs: integer(),
  expiresAtMs: integer(),
  usedAtMs: optional(integer()),
  /** The device that used it. */
  usedBy: optional(text()),
});
export type Invite = Infer<typeof Invite>;

export const DEFAULT_TTL_MS = 600_000;
export const MAX_TTL_MS = 7 * 86_400_000;
const SECRET_BYTES = 24;
/** Used and expired ones are listed this long. */
const REMEMBER_MS = 86_400_000;
/** Open invitations at a time. */
export const MAX_OPEN = 100;

type Row = Record<string, string | number | null>;

export class InviteStore {
  readonly #now: () => number;
  readonly #sql;

  constructor(store: Store, now: () => number = Date.now) {
    this.#now = now;
    this.#sql = {
      add: store.prepare(
        `INSERT INTO invites (invite_id, hash, role, scopes, created_at_ms, expires_at_ms)
         VALUES (?, ?, ?, ?, ?, ?)`,
      ),
      byHash: store.prepare("SELECT * FROM invites WHERE hash = ?"),
      list: store.prepare("SELECT * FROM invites ORDER BY created_at_ms DESC, rowid DESC"),
      use: store.prepare(
        `UPDATE invites SET used_at_ms = ?, used_by = ?
         WHERE invite_id = ? AND used_at_ms IS NULL`,
      ),
      remove: store.prepare("DELETE FROM invites WHERE invite_id = ? AND used_at_ms IS NULL"),
      forget: store.prepare(
        "DELETE FROM invites WHERE max(expires_at_ms, coalesce(used_at_ms, 0)) < ?",
      ),
    };
  }

  /** @returns the invitation with its secret, which is known only now; undefined = too many open */
  create(
    role: Role,
    scopes: readonly string[],
    ttlMs: number,
  ): Invite & { secret: string } | undefined {
    const now = this.#now();
    this.#sql.forget.run(now - REMEMBER_MS);
    if (this.list().filter((one) => isOpen(one, now)).length >= MAX_OPEN) return undefined;
    const invite: Invite = {
      inviteId: randomUUID(),
      role,
      scopes: [...scopes],
      createdAtMs: now,
      expiresAtMs: now + ttlMs,
    };
    const secret = randomBytes(SECRET_BYTES).toString("base64url");
    const { inviteId, createdAtMs, expiresAtMs } = invite;
    this.#sql.add.run(
      inviteId,
      hashOf(secret),
      role,
      JSON.stringify(scopes),
      createdAtMs,
      expiresAtMs,
    );
    return { ...invite, secret };
  }

  /** Newest first: open ones, and for a day those that were used or have expired. */
  list(): Invite[] {
    return (this.#sql.list.all() as Row[]).map(read);
  }

  /** The open invitation that a secret belongs to, if it allows what is asked for. */
  find(secret: string, role: Role, scopes: readonly string[]): Invite | undefined {
    const row = this.#sql.byHash.get(hashOf(secret)) as Row | undefined;
    const invite = row && read(row);
    const fits = invite && isOpen(invite, this.#now()) && invite.role === role &&
      coversScopes(invite.scopes, scopes);
    return fits ? invite : undefined;
  }

  /** @returns false when it was used meanwhile */
  use(inviteId: string, deviceId: string): boolean {
    return Number(this.#sql.use.run(this.#now(), deviceId, inviteId).changes) > 0;
  }

  /** @returns whether there was such an invitation, not used yet */
  revoke(inviteId: string): boolean {
    return Number(this.#sql.remove.run(inviteId).changes) > 0;
  }
}

function isOpen({ usedAtMs, expiresAtMs }: Invite, nowMs: number): boolean {
  return usedAtMs === undefined && expiresAtMs > nowMs;
}

function read(row: Row): Invite {
  return {
    inviteId: String(row.invite_id),
    role: row.role as Role,
    scopes: JSON.parse(String(row.scopes)),
    createdAtMs: Number(row.created_at_ms),
    expiresAtMs: Number(row.expires_at_ms),
    ...(row.used_at_ms !== null && { usedAtMs: Number(row.used_at_ms) }),
    ...(row.used_by !== null && { usedBy: String(row.used_by) }),
  };
}

function hashOf(secret: string): string {
  return createHash("sha256").update(secret).digest("hex");
}
