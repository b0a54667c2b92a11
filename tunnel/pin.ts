// TLS pins: a certificate is accepted because it is the one that was expected, not because an
// authority signed it. Several pins may stand side by side while a certificate is being replaced.

import { fingerprintIn, normalizedFingerprint, type Pin } from "../config/schema.ts";
import { TunnelError } from "./error.ts";

export type { Pin };
/** SHA-256 of a certificate's DER form: 64 lower-case hex digits. */
export type Fingerprint = string;

/**
 * Reads pins as people write them: upper or lower case, colons, a `sha256:` in front.
 *
 * @throws {TunnelError} for a pin that is no SHA-256, so that a typo never means "no pin"
 */
export function readPins(given: readonly Pin[]): Pin[] {
  return given.map((pin) => {
    const sha256 = normalizedFingerprint(fingerprintIn(pin));
    const isGood = sha256.length === FINGERPRINT_DIGITS &&
      (typeof pin === "string" || !Number.isNaN(Date.parse(pin.until ?? "1970-01-01")));
    if (isGood) return typeof pin === "string" ? sha256 : { ...pin, sha256 };
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
 * @param pins one of them must match, see {@link readPins}; those that have expired do not count
 * @throws {TunnelError} with the texts of protocol.md §11.2
 */
export function checkPin(
  shown: string | undefined,
  pins: readonly Pin[],
  nowMs: number = Date.now(),
): void {
  if (!shown) {
    throw new TunnelError(
      "tls",
      "gateway tls fingerprint unavailable",
      "Check that the address is the one of the gateway itself",
    );
  }
  const fingerprint = normalizedFingerprint(shown);
  const counting = pins.filter((pin) => !hasExpired(pin, nowMs));
  if (counting.some((pin) => fingerprintIn(pin) === fingerprint)) return;
  const expired = pins.filter((pin) => hasExpired(pin, nowMs)).map((pin) =>
    `sha256:${fingerprintIn(pin)} counted until ${(pin as { until: string }).until}`
  );
  throw new TunnelError(
    "tls",
    "gateway tls fingerprint mismatch",
    `It showed sha256:${fingerprint}. Before you change the pin, compare that with ` +
      `"zero gateway cert show" on the gateway's machine` +
      (expired.length > 0 ? `; no longer expected here: ${expired.join(", ")}` : ""),
  );
}

function hasExpired(pin: Pin, nowMs: number): boolean {
  return typeof pin !== "string" && pin.until !== undefined && nowMs >= Date.parse(pin.until);
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
