// TLS pins: a certificate is accepted because it is the one that was expected, not because an
// authority signed it. Several pins may stand side by side while a certificate is being replaced.

import { normalizedFingerprint } from "../config/schema.ts";
import { TunnelError } from "./error.ts";

/** SHA-256 of a certificate's DER form: 64 lower-case hex digits. */
export type Fingerprint = string;

/**
 * Reads pins as people write them: upper or lower case, colons, a `sha256:` in front.
 *
 * @throws {TunnelError} for a pin that is no SHA-256, so that a typo never means "no pin"
 */
export function readPins(texts: readonly string[]): Fingerprint[] {
  return texts.map((text) => {
    const pin = normalizedFingerprint(text);
    if (pin.length === FINGERPRINT_DIGITS) return pin;
    throw new TunnelError(
      "tls",
      "gateway tls fingerprint missing",
      "Set the fingerprint to the 64 hex digits of the certificate's SHA-256",
    );
  });
}

/**
 * Compares the certificate a server showed.
 *
 * @param shown as the TLS library words it; undefined when it showed none
 * @param pins one of them must match, see {@link readPins}
 * @throws {TunnelError} with the texts of protocol.md §11.2
 */
export function checkPin(shown: string | undefined, pins: readonly Fingerprint[]): void {
  if (!shown) {
    throw new TunnelError(
      "tls",
      "gateway tls fingerprint unavailable",
      "Check that the address is the one of the gateway itself",
    );
  }
  if (pins.includes(normalizedFingerprint(shown))) return;
  throw new TunnelError(
    "tls",
    "gateway tls fingerprint mismatch",
    "Compare the fingerprint with the gateway's owner before you change the pin",
  );
}

/**
 * The fingerprint of the first certificate in a PEM text, or undefined when there is none.
 */
export async function fingerprintOf(pem: string): Promise<Fingerprint | undefined> {
  const body = /-----BEGIN CERTIFICATE-----([\s\S]*?)-----END CERTIFICATE-----/.exec(pem)?.[1];
  if (!body) return undefined;
  const digest = await crypto.subtle.digest("SHA-256", Uint8Array.fromBase64(body));
  return new Uint8Array(digest).toHex();
}

const FINGERPRINT_DIGITS = 64;
