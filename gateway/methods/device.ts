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
import { PairedDevice, type PairingRequest } from "../devices.ts";
import { type Caller, type Gateway, method } from "../gateway.ts";

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
    handle({ requestId }, { gateway, caller }) {
      const request = gateway.devices.findPending(requestId);
      if (!request) throw new RpcError("INVALID_REQUEST", "unknown requestId");
      mustHold(caller, request.scopes);
      if (request.role === "node") mustHold(caller, ["operator.admin"]);
      const device = gateway.devices.approve(requestId)!;
      announce(gateway, request, "approved");
      return { requestId, device };
    },
  }),
  method({
    name: "device.pair.reject",
    summary: "Turn a waiting device away",
    scope: "operator.pairing",
    params: RequestId,
    result: object({ requestId: text(), deviceId: text() }),
    handle({ requestId }, { gateway }) {
      const request = gateway.devices.reject(requestId);
      if (!request) throw new RpcError("INVALID_REQUEST", "unknown requestId");
      announce(gateway, request, "rejected");
      return { requestId, deviceId: request.deviceId };
    },
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
      gateway.devices.remove(deviceId);
      gateway.connections.closeDevice(deviceId, "device removed");
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
    handle({ deviceId, role, scopes }, { gateway: { devices }, caller }) {
      const held = devices.scopesOf(deviceId, role);
      if (!held) throw new RpcError("INVALID_REQUEST", "unknown deviceId/role");
      mustHold(caller, scopes ?? held);
      const issued = devices.rotate(deviceId, role, scopes)!;
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
      const revokedAtMs = gateway.devices.revoke(deviceId, role)!;
      gateway.connections.closeDevice(deviceId, "device token revoked", role);
      return { deviceId, role, revokedAtMs };
    },
  }),
];

function mustHold({ scopes }: Caller, wanted: readonly string[]) {
  if (coversScopes(scopes, wanted)) return;
  const missing = wanted.filter((scope) => !coversScopes(scopes, [scope]));
  throw new RpcError("FORBIDDEN", `missing scope: ${missing[0]}`, {
    details: { code: "MISSING_SCOPE", missingScope: missing[0], requiredScopes: [...wanted] },
  });
}

function announce(
  { events }: Gateway,
  { requestId, deviceId }: PairingRequest,
  decision: "approved" | "rejected",
) {
  events.publish("device.pair.resolved", { requestId, deviceId, decision, ts: Date.now() });
}
