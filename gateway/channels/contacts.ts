// People who wrote to a channel without being known: each has a code that somebody with access to the
// gateway approves (`zero pairing approve`), and from then on is listened to.

import type { Store } from "../store.ts";

export interface Account {
  channel: string;
  accountId: string;
}

/** A person who waits to be let in, or was. */
export interface Contact extends Account {
  senderId: string;
  name: string;
  /** While nobody has approved it. */
  code?: string;
  askedAtMs: number;
  approvedAtMs?: number;
  approvedBy?: string;
}

/** A code is good for so long. */
export const CODE_TTL_MS = 3_600_000;
/** Strangers who wait at a time, per account; more are not answered. */
const MAX_WAITING = 50;
/** A stranger is told the code again after so long. */
const TELL_AGAIN_MS = 600_000;
/** Letters and digits that cannot be taken for one another. */
const ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789";
const CODE_LENGTH = 8;

export class Contacts {
  readonly #store: Store;
  readonly #now: () => number;
  readonly #sql;

  constructor(store: Store, now: () => number = Date.now) {
    this.#store = store;
    this.#now = now;
    const key = "channel = ? AND account_id = ? AND sender_id = ?";
    this.#sql = {
      find: store.prepare(`SELECT * FROM channel_contacts WHERE ${key}`),
      add: store.prepare(
        `INSERT INTO channel_contacts
           (channel, account_id, sender_id, name, code, asked_at_ms, told_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET name = excluded.name, code = excluded.code,
           asked_at_ms = excluded.asked_at_ms, told_at_ms = excluded.told_at_ms`,
      ),
      told: store.prepare(`UPDATE channel_contacts SET told_at_ms = ? WHERE ${key}`),
      list: store.prepare("SELECT * FROM channel_contacts ORDER BY asked_at_ms"),
      approve: store.prepare(
        `UPDATE channel_contacts SET code = NULL, approved_at_ms = ?, approved_by = ? WHERE ${key}`,
      ),
      remove: store.prepare(`DELETE FROM channel_contacts WHERE ${key}`),
      expire: store.prepare(
        "DELETE FROM channel_contacts WHERE approved_at_ms IS NULL AND asked_at_ms < ?",
      ),
      waiting: store.prepare(
        `SELECT count(*) AS count FROM channel_contacts
         WHERE channel = ? AND account_id = ? AND approved_at_ms IS NULL`,
      ),
    };
  }

  isApproved({ channel, accountId }: Account, senderId: string): boolean {
    return this.#sql.find.get(channel, accountId, senderId)?.approved_at_ms != null;
  }

  /**
   * Somebody who is not known has written.
   *
   * @returns who is to be told the code; undefined when that was done a moment ago or too many wait
   * already
   */
  ask(
    { channel, accountId }: Account,
    sender: { id: string; name: string },
  ): { contact: Contact; isNew: boolean } | undefined {
    const now = this.#now();
    return this.#store.transaction(() => {
      this.#sql.expire.run(now - CODE_TTL_MS);
      const found = this.#sql.find.get(channel, accountId, sender.id);
      if (found?.code != null) {
        if (now - Number(found.told_at_ms) < TELL_AGAIN_MS) return undefined;
        this.#sql.told.run(now, channel, accountId, sender.id);
        return { contact: contactOf(found), isNew: false };
      }
      const { count } = this.#sql.waiting.get(channel, accountId) as { count: number };
      if (count >= MAX_WAITING) return undefined;
      const code = newCode();
      this.#sql.add.run(channel, accountId, sender.id, sender.name, code, now, now);
      const contact = { channel, accountId, senderId: sender.id, name: sender.name, code };
      return { contact: { ...contact, askedAtMs: now }, isNew: true };
    });
  }

  /** Those who wait, then those who were let in, each oldest first. */
  list(): Contact[] {
    this.#sql.expire.run(this.#now() - CODE_TTL_MS);
    const all = this.#sql.list.all().map(contactOf);
    return [
      ...all.filter(({ approvedAtMs }) => approvedAtMs === undefined),
      ...all.filter(({ approvedAtMs }) => approvedAtMs !== undefined),
    ];
  }

  /** @returns whom the code belonged to; undefined when there is no such code (any more) */
  approve(channel: string, code: string, approvedBy: string): Contact | undefined {
    const wanted = code.trim().toUpperCase();
    const found = this.list().find((one) => one.channel === channel && one.code === wanted);
    if (!found) return undefined;
    this.#sql.approve.run(this.#now(), approvedBy, channel, found.accountId, found.senderId);
    return found;
  }

  /** @returns whether there was such a contact */
  remove({ channel, accountId, senderId }: Account & { senderId: string }): boolean {
    return this.#sql.remove.run(channel, accountId, senderId).changes > 0;
  }
}

function contactOf(row: Record<string, unknown>): Contact {
  return {
    channel: String(row.channel),
    accountId: String(row.account_id),
    senderId: String(row.sender_id),
    name: String(row.name),
    ...(row.code != null && { code: String(row.code) }),
    askedAtMs: Number(row.asked_at_ms),
    ...(row.approved_at_ms != null && { approvedAtMs: Number(row.approved_at_ms) }),
    ...(row.approved_by != null && { approvedBy: String(row.approved_by) }),
  };
}

function newCode(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(CODE_LENGTH));
  return [...bytes].map((byte) => ALPHABET[byte % ALPHABET.length]).join("");
}
