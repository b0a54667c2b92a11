// The signature of a device, checked synchronously: web crypto hands each check to another thread,
// which costs a handshake more than the check itself. What is signed is the matter of rpc/identity.ts.

import { Buffer } from "node:buffer";
import { createHash, createPublicKey, verify } from "node:crypto";

const SPKI_PREFIX = Buffer.from("302a300506032b6570032100", "hex");

/** @param publicKey 32 raw bytes, unpadded base64url. @returns the device id, 64 hex digits (§4.1) */
export function deviceIdOf(publicKey: string): string {
  return createHash("sha256").update(Buffer.from(publicKey, "base64url")).digest("hex");
}

/** Whether an Ed25519 signature (RFC 8032) is one over any of the texts. */
export function isSignedBy(
  publicKey: string,
  signature: Uint8Array,
  texts: readonly string[],
): boolean {
  try {
    const der = Buffer.concat([SPKI_PREFIX, Buffer.from(publicKey, "base64url")]);
    const key = createPublicKey({ key: der, format: "der", type: "spki" });
    return texts.some((text) => verify(null, Buffer.from(text), key, signature));
  } catch {
    // 32 bytes that are no point of the curve have signed nothing.
    return false;
  }
}
