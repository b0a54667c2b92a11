// A device that signs its connects: of any payload version, and wrongly where a test wants that.

import {
  generateIdentity,
  type Identity,
  identityFromSeed,
  sign,
  signedText,
  signedToken,
  type SignedVersion,
} from "../../rpc/identity.ts";

export { type Identity, identityFromSeed };

/** A device nobody has seen before. */
export function newDevice(): Promise<Identity> {
  return generateIdentity();
}

/** What a connect says that its signature covers. */
export interface Signed {
  client: { id: string; mode: string; platform?: string; deviceFamily?: string };
  role?: string;
  scopes?: readonly string[];
  auth?: { token?: string; password?: string; deviceToken?: string; bootstrapToken?: string };
  signedAtMs: number;
  /** Absent: sent and signed without one. */
  nonce?: string;
}

/**
 * `connect.params.device`.
 *
 * @param version payload version (§4.2); 2 with a nonce and 1 without, unless given
 */
export async function proofOf(
  device: Identity,
  { client, role = "operator", scopes, auth, signedAtMs, nonce }: Signed,
  version: SignedVersion = nonce === undefined ? 1 : 2,
): Promise<Record<string, unknown>> {
  const text = signedText(version, {
    deviceId: device.deviceId,
    clientId: client.id,
    clientMode: client.mode,
    role,
    scopes,
    signedAtMs,
    token: signedToken(auth),
    nonce,
    platform: client.platform,
    deviceFamily: client.deviceFamily,
  });
  return {
    id: device.deviceId,
    publicKey: device.publicKey,
    signature: await sign(device, text),
    signedAt: signedAtMs,
    ...(nonce !== undefined && { nonce }),
  };
}
