// Paired devices, what asks to be paired, and device tokens (§4.4–4.8, D10). Tokens are kept only as
// SHA-256. Everything here is synchronous: one change is one transaction, done when the call returns.

import { Buffer } from "node:buffer";
import { createHash, randomUUID, timingSafeEqual } from "node:crypto";
import { coversScopes, type Role, unionScopes } from "../rpc/scope.ts";
import { type Infer, integer, list, object, optional, text } from "../rpc/shape.ts";
import type { Store } from "./store.ts";

/** How a device describes itself. */
const description = {
  displayName: optional(text()),
  platform: optional(text()),
  clientId: optional(text()),
  clientMode: optional(text()),
  remoteIp: optional(text()),
};

/** A device token as it is shown: never its text. */
export const TokenSummary = object({
  role: text(),
  scopes: list(text()),
  createdAtMs: integer(),
  rotatedAtMs: optional(integer()),
  revokedAtMs: optional(integer()),
  lastUsedAtMs: optional(integer()),
});
export type TokenSummary = Infer<typeof TokenSummary>;

export const PairedDevice = object({
  deviceId: text(),
  publicKey: text(),
  ...description,
  roles: list(text()),
  scopes: list(text()),
  tokens: list(TokenSummary),
  createdAtMs: integer(),
  approvedAtMs: integer(),
});
export type PairedDevice = Infer<typeof PairedDevice>;

/** What a device says of itself when it connects; `role` and `scopes` are what it asks for. */
export interface DeviceClaim {
  deviceId: string;
  /** 32 raw bytes, unpadded base64url. */
  publicKey: string;
  role: Role;
  scopes: readonly string[];
  displayName?: string;
  platform?: string;
  clientId?: string;
  clientMode?: string;
  remoteIp?: string;
}

export interface PairingRequest extends DeviceClaim {
  requestId: string;
  roles: Role[];
  /** The client is local, so it is approved at once. */
  silent?: boolean;
  /** A paired record of this device exists already. */
  isRepair: boolean;
  ts: number;
}

/** Why a device must be approved (§4.4). */
export type PairingReason = "not-paired" | "role-upgrade" | "scope-upgrade";

/** A token just made, with its text: the only moment it is known here. */
export interface IssuedToken {
  token: string;
  role: Role;
  scopes: string[];
  issuedAtMs: number;
}

export type TokenVerdict =
  | { ok: true; scopes: string[]; issuedAtMs: number }
  | {
    ok: false;
    reason:
      | "device-not-paired"
      | "role-missing"
      | "token-revoked"
      | "token-mismatch"
      | "scope-mismatch";
  };

/** How far a token has come: minted by an operator, given to its device in a hello-ok, used by it. */
const [MINTED, GIVEN, USED] = [0, 1, 2];

/** Pending requests live this long after the device last asked. */
export const PENDING_TTL_MS = 300_000;

type Row = Record<string, string | number | null>;

export class DeviceStore {
  readonly #store: Store;
  readonly #now: () => number;
  readonly #sql;

  constructor(store: Store, now: () => number = Date.now) {
    this.#store = store;
    this.#now = now;
    const prepare = (sql: string) => store.prepare(sql);
    this.#sql = {
      device: prepare("SELECT * FROM devices WHERE device_id = ?"),
      devices: prepare("SELECT * FROM devices ORDER BY approved_at_ms DESC, rowid DESC"),
      putDevice: prepare(
        `INSERT INTO devices (device_id, public_key, display_name, platform, client_id, client_mode,
           remote_ip, roles, scopes, created_at_ms, approved_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (device_id) DO UPDATE SET public_key = excluded.public_key,
           display_name = excluded.display_name, platform = excluded.platform,
           client_id = excluded.client_id, client_mode = excluded.client_mode,
           remote_ip = excluded.remote_ip, roles = excluded.roles, scopes = excluded.scopes,
           approved_at_ms = excluded.approved_at_ms`,
      ),
      rename: prepare("UPDATE devices SET given_name = ? WHERE device_id = ?"),
      setRoles: prepare("UPDATE devices SET roles = ? WHERE device_id = ?"),
      removeRole: prepare("DELETE FROM device_roles WHERE device_id = ? AND role = ?"),
      removeDevice: prepare("DELETE FROM devices WHERE device_id = ?"),
      role: prepare("SELECT * FROM device_roles WHERE device_id = ? AND role = ?"),
      roles: prepare("SELECT * FROM device_roles WHERE device_id = ? ORDER BY role"),
      putRole: prepare(
        `INSERT INTO device_roles (device_id, role, scopes, created_at_ms, rotated_at_ms)
         VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (device_id, role) DO UPDATE SET scopes = excluded.scopes,
           rotated_at_ms = coalesce(excluded.rotated_at_ms, rotated_at_ms), revoked_at_ms = NULL`,
      ),
      revokeRole: prepare(
        "UPDATE device_roles SET revoked_at_ms = ? WHERE device_id = ? AND role = ?",
      ),
      useRole: prepare(
        "UPDATE device_roles SET last_used_at_ms = ? WHERE device_id = ? AND role = ?",
      ),
      tokens: prepare(
        `SELECT token_id, hash, scopes, stage FROM device_tokens
         WHERE device_id = ? AND role = ? ORDER BY token_id DESC`,
      ),
      addToken: prepare(
        "INSERT INTO device_tokens (device_id, role, hash, scopes, stage) VALUES (?, ?, ?, ?, ?)",
      ),
      useToken: prepare(`UPDATE device_tokens SET stage = ${USED} WHERE token_id = ?`),
      removeOtherTokens: prepare(
        "DELETE FROM device_tokens WHERE device_id = ? AND role = ? AND token_id <> ?",
      ),
      keepTokens: prepare(
        `DELETE FROM device_tokens WHERE device_id = ? AND role = ?
           AND token_id <> coalesce(?, 0) AND token_id <> coalesce(?, 0)`,
      ),
      removeTokens: prepare("DELETE FROM device_tokens WHERE device_id = ? AND role = ?"),
      removeAllTokens: prepare("DELETE FROM device_tokens WHERE device_id = ?"),
      pendingOf: prepare("SELECT * FROM pairing_requests WHERE device_id = ?"),
      pendingById: prepare("SELECT * FROM pairing_requests WHERE request_id = ?"),
      pending: prepare("SELECT * FROM pairing_requests ORDER BY ts DESC, rowid DESC"),
      putPending: prepare(
        "INSERT INTO pairing_requests (request_id, device_id, request, ts) VALUES (?, ?, ?, ?)",
      ),
      removePending: prepare("DELETE FROM pairing_requests WHERE request_id = ?"),
      removePendingOf: prepare("DELETE FROM pairing_requests WHERE device_id = ?"),
      expirePending: prepare("DELETE FROM pairing_requests WHERE ts < ?"),
    };
  }

  /** Runs `work` so that either all of its changes happen or none. */
  atomically<T>(work: () => T): T {
    return this.#store.transaction(work);
  }

  /** Why the device must be approved before it may have what it asks for; undefined = it need not. */
  pairingReason({ deviceId, publicKey, role, scopes }: DeviceClaim): PairingReason | undefined {
    const row = this.#sql.device.get(deviceId) as Row | undefined;
    if (!row || row.public_key !== publicKey) return "not-paired";
    if (!parse(row.roles).includes(role)) return "role-upgrade";
    if (!coversScopes(parse(row.scopes), scopes)) return "scope-upgrade";
    return undefined;
  }

  /**
   * The pending request of a device: the one it has, refreshed, or a new one when it asks for
   * something else (§4.5).
   *
   * @returns `superseded` is the id of a request that was thereby withdrawn
   */
  request(
    claim: DeviceClaim,
  ): { request: PairingRequest; isNew: boolean; superseded?: string } {
    return this.#store.transaction(() => {
      const ts = this.#now();
      this.#sql.expirePending.run(ts - PENDING_TTL_MS);
      const row = this.#sql.pendingOf.get(claim.deviceId) as Row | undefined;
      const before = row && readPending(row);
      const isSame = before?.role === claim.role && before.publicKey === claim.publicKey &&
        JSON.stringify(before.scopes) === JSON.stringify(claim.scopes);
      if (before) this.#sql.removePending.run(before.requestId);
      const request: PairingRequest = {
        ...claim,
        requestId: before && isSame ? before.requestId : randomUUID(),
        roles: [claim.role],
        isRepair: this.#sql.device.get(claim.deviceId) !== undefined,
        ts,
      };
      this.#sql.putPending.run(request.requestId, claim.deviceId, JSON.stringify(request), ts);
      const superseded = before && !isSame ? before.requestId : undefined;
      return { request, isNew: !before || !isSame, ...(superseded && { superseded }) };
    });
  }

  /** Pending requests, newest first. */
  pending(): PairingRequest[] {
    this.#sql.expirePending.run(this.#now() - PENDING_TTL_MS);
    return (this.#sql.pending.all() as Row[]).map(readPending);
  }

  findPending(requestId: string): PairingRequest | undefined {
    this.#sql.expirePending.run(this.#now() - PENDING_TTL_MS);
    const row = this.#sql.pendingById.get(requestId) as Row | undefined;
    return row && readPending(row);
  }

  /** Grants exactly what the request says, and no longer pends. */
  approve(requestId: string): PairedDevice | undefined {
    const request = this.findPending(requestId);
    if (!request) return undefined;
    this.pair(request);
    return this.find(request.deviceId);
  }

  reject(requestId: string): PairingRequest | undefined {
    const request = this.findPending(requestId);
    if (request) this.#sql.removePending.run(requestId);
    return request;
  }

  /** Records a device as approved for what it asks, beside what it was approved for before. */
  pair(claim: DeviceClaim) {
    this.#store.transaction(() => {
      const now = this.#now();
      const row = this.#sql.device.get(claim.deviceId) as Row | undefined;
      const isSameKey = row?.public_key === claim.publicKey;
      if (row && !isSameKey) this.#sql.removeAllTokens.run(claim.deviceId);
      const before = row && isSameKey ? row : undefined;
      const displayName = claim.displayName ?? textOf(before?.display_name ?? null);
      this.#putDevice({ ...claim, displayName }, {
        roles: unionScopes(parse(before?.roles), [claim.role]),
        scopes: unionScopes(parse(before?.scopes), claim.scopes),
        createdAtMs: Number(row?.created_at_ms ?? now),
        approvedAtMs: now,
      });
      const role = this.#sql.role.get(claim.deviceId, claim.role) as Row | undefined;
      const scopes = unionScopes(isSameKey ? parse(role?.scopes) : [], claim.scopes);
      this.#putRole(claim.deviceId, claim.role, scopes, now, null);
      this.#sql.removePendingOf.run(claim.deviceId);
    });
  }

  /** Notes what a paired device says of itself now, where that differs from what is known. */
  touch(claim: DeviceClaim) {
    const row = this.#sql.device.get(claim.deviceId) as Row | undefined;
    if (!row) return;
    const isKnown = (row.platform ?? undefined) === claim.platform &&
      (row.client_id ?? undefined) === claim.clientId &&
      (row.client_mode ?? undefined) === claim.clientMode &&
      (row.remote_ip ?? undefined) === claim.remoteIp &&
      (claim.displayName === undefined || row.display_name === claim.displayName);
    if (isKnown) return;
    const now = { ...claim, displayName: claim.displayName ?? textOf(row.display_name) };
    this.#store.attempt(() =>
      this.#putDevice(now, {
        roles: parse(row.roles),
        scopes: parse(row.scopes),
        createdAtMs: Number(row.created_at_ms),
        approvedAtMs: Number(row.approved_at_ms),
      })
    );
  }

  find(deviceId: string): PairedDevice | undefined {
    const row = this.#sql.device.get(deviceId) as Row | undefined;
    return row && this.#readDevice(row);
  }

  /** Paired devices, last approved first. */
  list(): PairedDevice[] {
    return (this.#sql.devices.all() as Row[]).map((row) => this.#readDevice(row));
  }

  /** Gives a device a name that stands above the one it calls itself. */
  rename(deviceId: string, name: string): boolean {
    return Number(this.#sql.rename.run(name, deviceId).changes) > 0;
  }

  /** @returns whether there was such a device */
  remove(deviceId: string): boolean {
    return this.#store.transaction(() => {
      this.#sql.removePendingOf.run(deviceId);
      return Number(this.#sql.removeDevice.run(deviceId).changes) > 0;
    });
  }

  /** Takes one role from a device; without any left it is forgotten. */
  removeRole(deviceId: string, role: Role): boolean {
    const device = this.find(deviceId);
    if (!device?.roles.includes(role)) return false;
    if (device.roles.length === 1) return this.remove(deviceId);
    return this.#store.transaction(() => {
      const roles = JSON.stringify(device.roles.filter((one) => one !== role));
      this.#sql.setRoles.run(roles, deviceId);
      this.#sql.removeRole.run(deviceId, role);
      return true;
    });
  }

  /**
   * Makes a new token for a paired device and role. Of those before it the last that was used stays
   * valid until this one is used, or the newest when none was; and, when an operator asked for this
   * one, the one that the device was given last.
   *
   * @param isRotation an operator asked for it
   */
  issue(
    deviceId: string,
    role: Role,
    scopes: readonly string[],
    { isRotation = false } = {},
  ): IssuedToken {
    return this.#store.transaction(() => {
      const now = this.#now();
      const token = randomUUID().replaceAll("-", "");
      const sorted = unionScopes(scopes);
      const held = this.#sql.tokens.all(deviceId, role) as Row[];
      const used = held.find((one) => one.stage === USED) ?? held[0];
      // An operator's rotation must not void what the device itself was given last.
      const given = isRotation ? held.find((one) => one.stage !== MINTED) : undefined;
      const kept = [used?.token_id ?? null, given?.token_id ?? null];
      if (used) this.#sql.keepTokens.run(deviceId, role, ...kept);
      this.#putRole(deviceId, role, sorted, now, isRotation || used ? now : null);
      const stage = isRotation ? MINTED : GIVEN;
      this.#sql.addToken.run(deviceId, role, hashOf(token), JSON.stringify(sorted), stage);
      return { token, role, scopes: sorted, issuedAtMs: now };
    });
  }

  /** The token of a device that connects without one; none when it cannot be kept. */
  issueAtConnect(
    deviceId: string,
    role: Role,
    scopes: readonly string[],
  ): IssuedToken | undefined {
    return this.#store.attempt(() => this.issue(deviceId, role, scopes));
  }

  /**
   * A new token on an operator's word.
   *
   * @param scopes default: those of the role's last token
   */
  rotate(deviceId: string, role: Role, scopes?: readonly string[]): IssuedToken | undefined {
    const held = this.scopesOf(deviceId, role);
    if (!held) return undefined;
    if (scopes) this.#addScopes(deviceId, scopes);
    return this.issue(deviceId, role, scopes ?? held, { isRotation: true });
  }

  /** The scopes of the role's last token; undefined when the device has no such role. */
  scopesOf(deviceId: string, role: Role): string[] | undefined {
    const row = this.#sql.role.get(deviceId, role) as Row | undefined;
    return row && parse(row.scopes);
  }

  /** @returns when, or undefined when the device has no such role */
  revoke(deviceId: string, role: Role): number | undefined {
    return this.#store.transaction(() => {
      const now = this.#now();
      this.#sql.removeTokens.run(deviceId, role);
      const { changes } = this.#sql.revokeRole.run(now, deviceId, role);
      return Number(changes) > 0 ? now : undefined;
    });
  }

  /** Checks a presented token (§4.7) and notes its use: the newest one, once used, voids the rest. */
  verify({ deviceId, publicKey, role, scopes }: DeviceClaim, token: string): TokenVerdict {
    const device = this.#sql.device.get(deviceId) as Row | undefined;
    if (!device || device.public_key !== publicKey) {
      return { ok: false, reason: "device-not-paired" };
    }
    const entry = this.#sql.role.get(deviceId, role) as Row | undefined;
    if (!entry) return { ok: false, reason: "role-missing" };
    if (entry.revoked_at_ms !== null) return { ok: false, reason: "token-revoked" };
    const candidates = this.#sql.tokens.all(deviceId, role) as Row[];
    const presented = hashOf(token);
    const index = candidates.findIndex((one) => isEqual(String(one.hash), presented));
    const found = candidates[index];
    if (!found) return { ok: false, reason: "token-mismatch" };
    if (!coversScopes(parse(found.scopes), scopes)) return { ok: false, reason: "scope-mismatch" };
    this.#store.attempt(() =>
      this.#store.transaction(() => {
        if (found.stage !== USED) this.#sql.useToken.run(found.token_id);
        if (index === 0 && candidates.length > 1) {
          this.#sql.removeOtherTokens.run(deviceId, role, found.token_id);
        }
        this.#sql.useRole.run(this.#now(), deviceId, role);
      })
    );
    return {
      ok: true,
      scopes: parse(found.scopes),
      issuedAtMs: Number(entry.rotated_at_ms ?? entry.created_at_ms),
    };
  }

  #addScopes(deviceId: string, scopes: readonly string[]) {
    const row = this.#sql.device.get(deviceId) as Row;
    this.#putDevice(claimOf(row), {
      roles: parse(row.roles),
      scopes: unionScopes(parse(row.scopes), scopes),
      createdAtMs: Number(row.created_at_ms),
      approvedAtMs: Number(row.approved_at_ms),
    });
  }

  #putDevice(
    claim: Omit<DeviceClaim, "role" | "scopes">,
    { roles, scopes, createdAtMs, approvedAtMs }: {
      roles: string[];
      scopes: string[];
      createdAtMs: number;
      approvedAtMs: number;
    },
  ) {
    this.#sql.putDevice.run(
      claim.deviceId,
      claim.publicKey,
      claim.displayName ?? null,
      claim.platform ?? null,
      claim.clientId ?? null,
      claim.clientMode ?? null,
      claim.remoteIp ?? null,
      JSON.stringify(roles),
      JSON.stringify(scopes),
      createdAtMs,
      approvedAtMs,
    );
  }

  /** @param rotatedAtMs null keeps what is there */
  #putRole(
    deviceId: string,
    role: Role,
    scopes: string[],
    createdAtMs: number,
    rotatedAtMs: number | null,
  ) {
    this.#sql.putRole.run(deviceId, role, JSON.stringify(scopes), createdAtMs, rotatedAtMs);
  }

  #readDevice(row: Row): PairedDevice {
    const tokens = (this.#sql.roles.all(String(row.device_id)) as Row[]).map((one) => ({
      role: String(one.role),
      scopes: parse(one.scopes),
      createdAtMs: Number(one.created_at_ms),
      ...time("rotatedAtMs", one.rotated_at_ms),
      ...time("revokedAtMs", one.revoked_at_ms),
      ...time("lastUsedAtMs", one.last_used_at_ms),
    }));
    return {
      ...claimOf(row),
      ...(row.given_name !== null && { displayName: String(row.given_name) }),
      roles: parse(row.roles),
      scopes: parse(row.scopes),
      tokens,
      createdAtMs: Number(row.created_at_ms),
      approvedAtMs: Number(row.approved_at_ms),
    };
  }
}

function claimOf(row: Row): Omit<DeviceClaim, "role" | "scopes"> {
  const claim: Omit<DeviceClaim, "role" | "scopes"> = {
    deviceId: String(row.device_id),
    publicKey: String(row.public_key),
  };
  if (row.display_name !== null) claim.displayName = String(row.display_name);
  if (row.platform !== null) claim.platform = String(row.platform);
  if (row.client_id !== null) claim.clientId = String(row.client_id);
  if (row.client_mode !== null) claim.clientMode = String(row.client_mode);
  if (row.remote_ip !== null) claim.remoteIp = String(row.remote_ip);
  return claim;
}

function readPending(row: Row): PairingRequest {
  return JSON.parse(String(row.request));
}

function parse(value: string | number | null | undefined): string[] {
  return value === null || value === undefined ? [] : JSON.parse(String(value));
}

function textOf(value: string | number | null): string | undefined {
  return value === null ? undefined : String(value);
}

function time<K extends string>(key: K, value: string | number | null): { [P in K]?: number } {
  return value === null ? {} : { [key]: Number(value) } as { [P in K]: number };
}

function hashOf(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}

function isEqual(left: string, right: string): boolean {
  return timingSafeEqual(Buffer.from(left), Buffer.from(right));
}
