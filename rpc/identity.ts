// A device's Ed25519 key pair: its encodings (protocol.md §4.1), the texts a device signs when it
// connects (§4.2), and how a signature is made and checked. Both ends of the wire use these.

/** A device as it speaks for itself. */
export interface Identity {
  /** SHA-256 of the raw public key, 64 lower-case hex digits. */
  readonly deviceId: string;
  /** The raw public key as base64url without padding, 43 characters. */
  readonly publicKey: string;
  readonly privateKey: CryptoKey;
}

/** The two keys as PEM texts: SPKI and PKCS#8. */
export interface IdentityPem {
  publicKeyPem: string;
  privateKeyPem: string;
}

/** What a connect signs; `token` is what {@link signedToken} says of its `auth`. */
export interface SignedFields {
  deviceId: string;
  clientId: string;
  clientMode: string;
  /** After defaulting: `operator` or `node`. */
  role: string;
  /** Exactly as sent, not as the server defaults them. */
  scopes?: readonly string[];
  signedAtMs: number;
  token?: string;
  /** Versions 2 and 3. */
  nonce?: string;
  /** Version 3: `client.platform` and `client.deviceFamily` as sent. */
  platform?: string;
  deviceFamily?: string;
}

export type SignedVersion = 1 | 2 | 3;

/** A new device with a random, exportable key. */
export function generateIdentity(): Promise<Identity> {
  return identityFromSeed(crypto.getRandomValues(new Uint8Array(SEED_BYTES)));
}

/** @param seed the 32 bytes an Ed25519 key is made from (RFC 8032) */
export function identityFromSeed(seed: Uint8Array): Promise<Identity> {
  return fromPkcs8(concat(PKCS8_PREFIX, seed));
}

/**
 * Reads a private key. The public one is derived from it, so the two can never disagree.
 *
 * @throws {TypeError} when the text is no Ed25519 key in PKCS#8 PEM
 */
export function identityFromPem(privateKeyPem: string): Promise<Identity> {
  const der = pemBytes(privateKeyPem);
  if (!der || der.length !== PKCS8_PREFIX.length + SEED_BYTES || !startsWith(der, PKCS8_PREFIX)) {
    return Promise.reject(new TypeError("Cannot read the private key: not Ed25519 in PKCS#8 PEM"));
  }
  return fromPkcs8(der);
}

/** The keys of a device made by this module; other private keys may not be exportable. */
export async function exportPem({ publicKey, privateKey }: Identity): Promise<IdentityPem> {
  const { d = "" } = await crypto.subtle.exportKey("jwk", privateKey);
  return {
    publicKeyPem: toPem("PUBLIC KEY", concat(SPKI_PREFIX, decodeBase64(publicKey)!)),
    privateKeyPem: toPem("PRIVATE KEY", concat(PKCS8_PREFIX, decodeBase64(d)!)),
  };
}

/** @param publicKey as {@link normalizePublicKey} gives it */
export async function deviceIdOf(publicKey: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", decodeBase64(publicKey)!);
  return new Uint8Array(digest).toHex();
}

/** The text a device signs (§4.2): parts joined by `|`, nothing escaped. */
export function signedText(version: SignedVersion, fields: SignedFields): string {
  const { deviceId, clientId, clientMode, role, scopes = [], signedAtMs, token = "" } = fields;
  const parts = [
    `v${version}`,
    deviceId,
    clientId,
    clientMode,
    role,
    scopes.join(","),
    String(signedAtMs),
    token,
  ];
  if (version >= 2) parts.push((fields.nonce ?? "").trim());
  if (version >= 3) {
    parts.push(normalizeForSigning(fields.platform), normalizeForSigning(fields.deviceFamily));
  }
  return parts.join("|");
}

/** Which of the secrets of `auth` is signed; the password never is. */
export function signedToken(
  auth: { token?: string; deviceToken?: string; bootstrapToken?: string } = {},
): string {
  return auth.token ?? auth.deviceToken ?? auth.bootstrapToken ?? "";
}

/** Trimmed, ASCII letters in lower case, empty when absent. */
export function normalizeForSigning(text: string | undefined): string {
  return (text ?? "").trim().replace(/[A-Z]/g, (letter) => letter.toLowerCase());
}

/** @returns base64url without padding, 86 characters */
export async function sign({ privateKey }: Identity, text: string): Promise<string> {
  return encodeBase64Url(
    new Uint8Array(await crypto.subtle.sign("Ed25519", privateKey, encoder.encode(text))),
  );
}

/**
 * Whether a signature is one over any of the texts; the first that fits ends the search.
 *
 * @param publicKey as {@link normalizePublicKey} gives it
 * @param signature 64 bytes, see {@link decodeSignature}
 */
export async function verify(
  publicKey: string,
  signature: Bytes,
  ...texts: string[]
): Promise<boolean> {
  const raw = decodeBase64(publicKey);
  if (raw?.length !== KEY_BYTES) return false;
  const key = await crypto.subtle.importKey("raw", raw, "Ed25519", false, ["verify"]);
  for (const text of texts) {
    if (await crypto.subtle.verify("Ed25519", key, signature, encoder.encode(text))) return true;
  }
  return false;
}

/**
 * Reads a public key as base64url, standard base64 or SPKI PEM.
 *
 * @returns base64url without padding of the 32 raw bytes, or undefined for anything else
 */
export function normalizePublicKey(text: string): string | undefined {
  const bytes = text.includes("BEGIN") ? rawFromSpki(text) : decodeBase64(text);
  return bytes?.length === KEY_BYTES ? encodeBase64Url(bytes) : undefined;
}

/** Reads a signature as base64url or standard base64; undefined unless it has 64 bytes. */
export function decodeSignature(text: string): Bytes | undefined {
  const bytes = decodeBase64(text);
  return bytes?.length === SIGNATURE_BYTES ? bytes : undefined;
}

export function encodeBase64Url(bytes: Uint8Array): string {
  return bytes.toBase64({ alphabet: "base64url", omitPadding: true });
}

/** Reads either alphabet, padded or not; undefined for text that is neither. */
export function decodeBase64(text: string): Bytes | undefined {
  const standard = text.trim().replaceAll("-", "+").replaceAll("_", "/").replace(/={1,2}$/, "");
  if (!/^[A-Za-z0-9+/]*$/.test(standard) || standard.length % 4 === 1) return undefined;
  return Uint8Array.fromBase64(standard);
}

/** Bytes in a buffer of their own, as web crypto takes them. */
type Bytes = Uint8Array<ArrayBuffer>;

const KEY_BYTES = 32;
const SEED_BYTES = 32;
const SIGNATURE_BYTES = 64;
const SPKI_PREFIX = Uint8Array.fromHex("302a300506032b6570032100");
const PKCS8_PREFIX = Uint8Array.fromHex("302e020100300506032b657004220420");
const encoder = new TextEncoder();

async function fromPkcs8(der: Bytes): Promise<Identity> {
  const privateKey = await crypto.subtle.importKey("pkcs8", der, "Ed25519", true, ["sign"]);
  const { x: publicKey } = await crypto.subtle.exportKey("jwk", privateKey);
  if (!publicKey) throw new TypeError("Cannot read the private key: it has no public half");
  return { deviceId: await deviceIdOf(publicKey), publicKey, privateKey };
}

function rawFromSpki(pem: string): Bytes | undefined {
  const der = pemBytes(pem);
  return der && startsWith(der, SPKI_PREFIX) ? der.slice(SPKI_PREFIX.length) : undefined;
}

function pemBytes(pem: string): Bytes | undefined {
  const body = /-----BEGIN [A-Z ]+-----([\s\S]*?)-----END [A-Z ]+-----/.exec(pem)?.[1];
  return body === undefined ? undefined : decodeBase64(body.replace(/\s+/g, ""));
}

function toPem(label: string, der: Uint8Array): string {
  const lines = der.toBase64().match(/.{1,64}/g) ?? [];
  return [`-----BEGIN ${label}-----`, ...lines, `-----END ${label}-----`, ""].join("\n");
}

function startsWith(bytes: Uint8Array, prefix: Uint8Array): boolean {
  return prefix.every((byte, index) => bytes[index] === byte);
}

function concat(head: Uint8Array, tail: Uint8Array): Bytes {
  const joined = new Uint8Array(head.length + tail.length);
  joined.set(head);
  joined.set(tail, head.length);
  return joined;
}
