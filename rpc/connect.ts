// The first request of every connection (§3): what it may hold, and which version both ends speak.

import {
  boolean,
  type Infer,
  integer,
  list,
  mapOf,
  nonEmpty,
  object,
  oneOf,
  optional,
  text,
} from "./shape.ts";

/** Versions this implementation speaks, lowest and highest. */
export const MIN_PROTOCOL = 3;
export const MAX_PROTOCOL = 4;

const CLIENT_IDS = [
  "webchat-ui",
  "webchat",
  "cli",
  "gateway-client",
  "node-host",
  "test",
  "fingerprint",
];
/** Names of the family's apps (§3.3). */
const FAMILY_ID = "(zero|clawdbot|openclaw)-[a-z-]+";
export const CLIENT_ID = new RegExp(`^(?:${CLIENT_IDS.join("|")}|${FAMILY_ID})$`);

export const ClientInfo = object({
  id: text({
    pattern: CLIENT_ID,
    what: "equal to one of the allowed values",
  }),
  displayName: optional(nonEmpty()),
  version: nonEmpty(),
  platform: nonEmpty(),
  deviceFamily: optional(nonEmpty()),
  modelIdentifier: optional(nonEmpty()),
  mode: oneOf(["webchat", "cli", "ui", "backend", "node", "probe", "test", "worker"]),
  instanceId: optional(nonEmpty()),
});
export type ClientInfo = Infer<typeof ClientInfo>;

export const DeviceProof = object({
  id: nonEmpty(),
  publicKey: nonEmpty(),
  signature: nonEmpty(),
  signedAt: integer({ min: 0 }),
  nonce: optional(text()),
});
export type DeviceProof = Infer<typeof DeviceProof>;

export const ConnectParams = object({
  minProtocol: integer({ min: 1 }),
  maxProtocol: integer({ min: 1 }),
  client: ClientInfo,
  caps: optional(list(nonEmpty())),
  commands: optional(list(nonEmpty())),
  permissions: optional(mapOf(boolean())),
  pathEnv: optional(text()),
  role: optional(nonEmpty()),
  scopes: optional(list(nonEmpty())),
  device: optional(DeviceProof),
  auth: optional(object({
    token: optional(text()),
    password: optional(text()),
    deviceToken: optional(text()),
    bootstrapToken: optional(text()),
    approvalRuntimeToken: optional(text()),
    agentRuntimeIdentityToken: optional(text()),
  })),
  locale: optional(text()),
  userAgent: optional(text()),
});
export type ConnectParams = Infer<typeof ConnectParams>;

/**
 * The version both ends speak (§3.4).
 *
 * @returns undefined when there is none
 */
export function negotiate(minProtocol: number, maxProtocol: number): number | undefined {
  const agreed = Math.min(maxProtocol, MAX_PROTOCOL);
  return agreed >= MIN_PROTOCOL && agreed >= minProtocol ? agreed : undefined;
}

/** The Control UI under each of its names (§4.6). */
export function isControlUi(clientId: string): boolean {
  return /^(zero|clawdbot|openclaw)-control-ui$/.test(clientId);
}

/** Browser chats, which get their own hints (§5.4). */
export function isWebchat({ id, mode }: Pick<ClientInfo, "id" | "mode">): boolean {
  return mode === "webchat" || id === "webchat-ui";
}
