// Pairing requests, paired devices and their tokens (§4.8). Nobody grants more than they hold.

import { RpcError } from "../../rpc/error.ts";
import { coversScopes, hasScope } from "../../rpc/scope.ts";
import {
  boolean,
  integer,
  list,
  nonEmpty,
  object,
  oneOf,
  optional,
  text,
} from "../../rpc/shape.ts";
import { AuditEntry } from "../audit.ts";
import { PairedDevice, type PairingRequest } from "../devices.ts";
import { type Caller, type Gateway, method, nameOf } from "../gateway.ts";
import { DEFAULT_TTL_MS, Invite, MAX_OPEN, MAX_TTL_MS } from "../invites.ts";

const RoleName = oneOf(["operator", "node"]);
const RequestId = object({ requestId: nonEmpty() });
const TokenOf = object({ deviceId: nonEmpty(), role: RoleName });

const Pending = object({
  requestId: text(),
  deviceId: text(),
  publicKey: text(),
  displayName: optional(text()),
  platform: optional(text()),
  clientId: optional(text()),
  clientMode: optional(text()),
  role: optional(text()),
  roles: optional(list(text())),
  scopes: optional(list(text())),
  remoteIp: optional(text()),
  silent: optional(boolean()),
  isRepair: boolean(),
  ts: integer(),
});

export const deviceMethods = [
  method({
    name: "device.pair.list",
    summary: "Devices that wait for approval, and devices that have it",
    scope: "operator.pairing",
    params: object({}),
    result: object({ pending: list(Pending), paired: list(PairedDevice) }),
    handle: (_, { gateway: { devices } }) => ({
      pending: devices.pending().map((one) => ({ ...one, scopes: [...one.scopes] })),
      paired: devices.list(),
    }),
  }),
  method({
    name: "device.pair.approve",
    summary: "Let a waiting device in, with exactly what it asked for",
    scope: "operator.pairing",
    params: RequestId,
    result: object({ requestId: text(), device: PairedDevice }),
    handle: ({ requestId }, { gateway, caller }) => ({
      requestId,
      device: approveRequest(gateway, caller, requestId),
    }),
  }),
  method({
    name: "device.pair.reject",
    summary: "Turn a waiting device away",
    scope: "operator.pairing",
    params: RequestId,
    result: object({ requestId: text(), deviceId: text() }),
    handle: ({ requestId }, { gateway, caller }) => ({
      requestId,
      deviceId: rejectRequest(gateway, caller, requestId).deviceId,
    }),
  }),
  method({
    name: "device.pair.remove",
    summary: "Forget a device and close its connections",
    scope: "operator.pairing",
    params: object({ deviceId: nonEmpty() }),
    result: object({ deviceId: text() }),
    handle({ deviceId }, { gateway, caller }) {
      const device = gateway.devices.find(deviceId);
      if (!device) throw new RpcError("INVALID_REQUEST", "unknown deviceId");
      mustHold(caller, device.scopes);
      if (device.roles.includes("node")) mustHold(caller, ["operator.admin"]);
      gateway.devices.remove(deviceId);
      gateway.connections.closeDevice(deviceId, "device removed", { callerId: caller.connId });
      gateway.audit.record("device.removed", { by: nameOf(caller), deviceId });
      return { deviceId };
    },
  }),
  method({
    name: "device.token.rotate",
    summary: "Make a new token for a device; the old one works until the new one is used",
    scope: "operator.pairing",
    params: object({
      deviceId: nonEmpty(),
      role: RoleName,
      scopes: optional(list(nonEmpty())),
    }),
    result: object({
      deviceId: text(),
      role: text(),
      token: optional(text()),
      scopes: list(text()),
      rotatedAtMs: integer(),
    }),
    handle({ deviceId, role, scopes }, { gateway: { devices, audit }, caller }) {
      const held = devices.scopesOf(deviceId, role);
      if (!held) throw new RpcError("INVALID_REQUEST", "unknown deviceId/role");
      mustHold(caller, scopes ?? held);
      if (role === "node") mustHold(caller, ["operator.admin"]);
      const issued = devices.rotate(deviceId, role, scopes)!;
      audit.record("token.rotated", {
        by: nameOf(caller),
        deviceId,
        role,
        scopes: issued.scopes,
      });
      // Only the device itself, and the owner of the shared secret, may learn the text.
      const mayLearn = caller.deviceId === deviceId ||
        (caller.isSharedSecret && hasScope(caller.scopes, "operator.admin"));
      return {
        deviceId,
        role,
        ...(mayLearn && { token: issued.token }),
        scopes: issued.scopes,
        rotatedAtMs: issued.issuedAtMs,
      };
    },
  }),
  method({
    name: "device.token.revoke",
    summary: "Void a device's tokens for a role and close its connections",
    scope: "operator.pairing",
    params: TokenOf,
    result: object({ deviceId: text(), role: text(), revokedAtMs: integer() }),
    handle({ deviceId, role }, { gateway, caller }) {
      const held = gateway.devices.scopesOf(deviceId, role);
      if (!held) throw new RpcError("INVALID_REQUEST", "unknown deviceId/role");
      mustHold(caller, held);
      if (role === "node") mustHold(caller, ["operator.admin"]);
      const revokedAtMs = gateway.devices.revoke(deviceId, role)!;
      gateway.connections.closeDevice(deviceId, "device token revoked", {
        role,
        callerId: caller.connId,
      });
      gateway.audit.record("token.revoked", { by: nameOf(caller), deviceId, role });
      return { deviceId, role, revokedAtMs };
    },
  }),
  method({
    name: "device.invite.create",
    summary: "Make a single-use invitation that pairs one device without asking again",
    scope: "operator.pairing",
    params: object({
      role: optional(RoleName),
      scopes: optional(list(nonEmpty())),
      ttlMs: optional(integer({ min: 10_000, max: MAX_TTL_MS })),
    }),
    result: object({
      inviteId: text(),
      secret: text(),
      role: text(),
      scopes: list(text()),
      createdAtMs: integer(),
      expiresAtMs: integer(),
    }),
    handle({ role = "operator", scopes, ttlMs = DEFAULT_TTL_MS }, { gateway, caller }) {
      const granted = scopes ?? (role === "operator" ? [...caller.scopes] : []);
      mustHold(caller, granted);
      if (role === "node") mustHold(caller, ["operator.admin"]);
      const invite = gateway.invites.create(role, granted, ttlMs);
      if (!invite) {
        throw new RpcError(
          "UNAVAILABLE",
          `more than ${MAX_OPEN} invitations are open; revoke some`,
        );
      }
      const { inviteId } = invite;
      gateway.audit.record("invite.created", {
        by: nameOf(caller),
        inviteId,
        role,
        scopes: granted,
      });
      return { ...invite };
    },
  }),
  method({
    name: "device.invite.list",
    summary: "Invitations that are open, were used, or have expired",
    scope: "operator.pairing",
    params: object({}),
    result: object({ invites: list(Invite) }),
    handle: (_, { gateway }) => ({ invites: gateway.invites.list() }),
  }),
  method({
    name: "device.invite.revoke",
    summary: "Void an invitation that was not used yet",
    scope: "operator.pairing",
    params: object({ inviteId: nonEmpty() }),
    result: object({ inviteId: text() }),
    handle({ inviteId }, { gateway: { invites, audit }, caller }) {
      if (!invites.revoke(inviteId)) throw new RpcError("INVALID_REQUEST", "unknown inviteId");
      audit.record("invite.revoked", { by: nameOf(caller), inviteId });
      return { inviteId };
    },
  }),
  method({
    name: "audit.list",
    summary: "Who was let in, approved, rotated or refused, why, and from where; newest first",
    scope: "operator.admin",
    params: object({
      sinceMs: optional(integer({ min: 0 })),
      limit: optional(integer({ min: 1, max: 5_000 })),
    }),
    result: object({ ts: integer(), entries: list(AuditEntry) }),
    handle: (filter, { gateway: { audit } }) => ({ ts: Date.now(), entries: audit.list(filter) }),
  }),
];

/** Grants what a request asks for, if the caller holds that much; a node takes an admin. */
export function approveRequest(gateway: Gateway, caller: Caller, requestId: string): PairedDevice {
  const request = gateway.devices.findPending(requestId);
  if (!request) throw new RpcError("INVALID_REQUEST", "unknown requestId");
  mustHold(caller, request.scopes);
  if (request.role === "node") mustHold(caller, ["operator.admin"]);
  const device = gateway.devices.approve(requestId)!;
  resolved(gateway, caller, request, "approved");
  return device;
}

export function rejectRequest(gateway: Gateway, caller: Caller, requestId: string): PairingRequest {
  const request = gateway.devices.reject(requestId);
  if (!request) throw new RpcError("INVALID_REQUEST", "unknown requestId");
  resolved(gateway, caller, request, "rejected");
  return request;
}

/** @throws {RpcError} the caller lacks some of the scopes */
export function mustHold({ scopes }: Caller, wanted: readonly string[]) {
  if (coversScopes(scopes, wanted)) return;
  const missing = wanted.filter((scope) => !coversScopes(scopes, [scope]));
  throw new RpcError("FORBIDDEN", `missing scope: ${missing[0]}`, {
    details: { code: "MISSING_SCOPE", missingScope: missing[0], requiredScopes: [...wanted] },
  });
}

function resolved(
  { events, audit }: Gateway,
  caller: Caller,
  { requestId, deviceId, displayName, clientId, role, scopes, remoteIp }: PairingRequest,
  decision: "approved" | "rejected",
) {
  events.publish("device.pair.resolved", { requestId, deviceId, decision, ts: Date.now() });
  audit.record(`device.${decision}`, {
    by: nameOf(caller),
    requestId,
    deviceId,
    displayName,
    clientId,
    role,
    scopes: [...scopes],
    ip: remoteIp,
  });
}
