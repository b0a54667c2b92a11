// The certificate of the gateway's own port, as files: where they are, how one is made, and how the
// next one takes the place of the current one. Who serves it is in tls.ts.

import { writePrivateFile } from "../config/private_file.ts";
import { createPrivateKey, generateKeyPair, randomBytes, X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import { promisify } from "node:util";
import type { GatewaySettings } from "../config/settings.ts";
import { normalizedFingerprint } from "../config/schema.ts";
import type { Interfaces } from "./bind.ts";
import type { Degradation } from "./degraded.ts";
import { isLoopbackAddress } from "./network.ts";

/** What is made is valid this long (§12). */
const VALID_MS = 3_650 * 86_400_000;
/** A client whose clock is behind must not refuse it. */
const BACKDATED_MS = 86_400_000;
const COMMON_NAME = "zero-gateway";
const KEY_BITS = 2_048;
const SERIAL_BYTES = 16;
/** From so long before its end a certificate is worth a warning. */
const EXPIRY_WARNING_MS = 30 * 86_400_000;

/** Where the certificates of a gateway are. */
export interface CertificateFiles {
  cert: string;
  key: string;
  /** Further certificates of the chain. */
  ca?: string;
  /** The user's own: never written, never replaced. */
  isOwn: boolean;
  /** What `zero gateway cert rotate` makes, until it is activated. */
  nextCert: string;
  nextKey: string;
  /** What was served before, without its key: commands on this machine go on trusting it. */
  previousCert: string;
}

/** A certificate and its key, as PEM. */
export interface KeyPair {
  cert: string;
  key: string;
}

/** What a certificate says, as far as its owner cares. */
export interface CertificateInfo {
  /** SHA-256 of the DER form: 64 lower-case hex digits. */
  fingerprint: string;
  subject: string;
  /** DNS names and addresses. */
  names: string[];
  notBeforeMs: number;
  notAfterMs: number;
  /** No authority stands behind it: clients need the pin. */
  isSelfSigned: boolean;
}

/** A certificate that cannot be served. */
export class CertificateError extends Error {
  override name = "CertificateError";

  /** @param fix one command or one sentence */
  constructor(message: string, readonly fix: string, options?: ErrorOptions) {
    super(message, options);
  }
}

export function certificateFiles(
  { certPath, keyPath, caPath }: Pick<GatewaySettings["tls"], "certPath" | "keyPath" | "caPath">,
  stateDir: string,
): CertificateFiles {
  const directory = `${stateDir}/gateway/tls`;
  const own = certPath.value && keyPath.value
    ? { cert: certPath.value, key: keyPath.value, isOwn: true }
    : undefined;
  return {
    cert: `${directory}/gateway-cert.pem`,
    key: `${directory}/gateway-key.pem`,
    isOwn: false,
    ...own,
    ca: caPath.value,
    nextCert: `${directory}/next-cert.pem`,
    nextKey: `${directory}/next-key.pem`,
    previousCert: `${directory}/previous-cert.pem`,
  };
}

/**
 * The certificate to serve, checked: the key is that of the certificate. A rotation that was cut off
 * between its two files is finished.
 *
 * @returns undefined when there is none yet
 * @throws {CertificateError} there is one, and it cannot be served
 */
export async function loadCertificate(files: CertificateFiles): Promise<KeyPair | undefined> {
  const [cert, key] = await Promise.all([readIfThere(files.cert), readIfThere(files.key)]);
  if (cert === undefined && key === undefined) return undefined;
  if (cert === undefined || key === undefined) {
    throw new CertificateError(
      "gateway tls: cert/key missing",
      `Put ${cert === undefined ? files.cert : files.key} back, or remove the other one as well`,
    );
  }
  if (fits({ cert, key })) return { cert, key };
  const nextKey = files.isOwn ? undefined : await readIfThere(files.nextKey);
  if (nextKey !== undefined && fits({ cert, key: nextKey })) {
    await Deno.rename(files.nextKey, files.key);
    return { cert, key: nextKey };
  }
  throw new CertificateError(
    `gateway tls: failed to load cert (the key in ${files.key} is not that of ${files.cert})`,
    `Put a certificate in ${files.cert} and its key in ${files.key}, both as PEM`,
  );
}

/** What is sent to clients: the certificate, and what leads from it to an authority. */
export async function chainOf({ cert }: KeyPair, { ca }: CertificateFiles): Promise<string> {
  if (ca === undefined) return cert;
  const further = await readIfThere(ca);
  if (further !== undefined) return `${cert.trimEnd()}\n${further}`;
  throw new CertificateError(
    `gateway tls: failed to load cert (there is no ${ca})`,
    `Put the chain in ${ca}, or: zero config unset gateway.tls.caPath`,
  );
}

/** The next certificate; undefined when none was made. */
export async function loadNext({ nextCert, nextKey }: CertificateFiles) {
  const [cert, key] = await Promise.all([readIfThere(nextCert), readIfThere(nextKey)]);
  return cert !== undefined && key !== undefined && fits({ cert, key }) ? { cert, key } : undefined;
}

/** The certificate that was served before, if it was replaced here. */
export function loadPrevious({ previousCert }: CertificateFiles): Promise<string | undefined> {
  return readIfThere(previousCert);
}

/** @throws {Error} text that is no certificate */
export function describeCertificate(pem: string): CertificateInfo {
  const certificate = new X509Certificate(pem);
  const { fingerprint256, subject, issuer, subjectAltName = "", validFrom, validTo } = certificate;
  return {
    fingerprint: normalizedFingerprint(fingerprint256),
    subject: subject.split("\n").join(", "),
    names: subjectAltName.split(", ").filter(Boolean).map((name) =>
      name.replace(/^(DNS|IP Address):/, "")
    ),
    notBeforeMs: Date.parse(validFrom),
    notAfterMs: Date.parse(validTo),
    isSelfSigned: subject === issuer,
  };
}

/** What is wrong with how long a certificate still holds. */
export function expiryTrouble(
  { notAfterMs }: Pick<CertificateInfo, "notAfterMs">,
  { isOwn, cert }: Pick<CertificateFiles, "isOwn" | "cert">,
  nowMs: number,
): Omit<Degradation, "part"> | undefined {
  if (notAfterMs - nowMs > EXPIRY_WARNING_MS) return undefined;
  const day = new Date(notAfterMs).toISOString().slice(0, 10);
  return {
    message: notAfterMs <= nowMs
      ? `The TLS certificate expired on ${day}`
      : `The TLS certificate expires on ${day}`,
    fix: isOwn ? `Renew the certificate in ${cert}` : "zero gateway cert rotate",
  };
}

/** Names and addresses by which clients may come to this machine. */
export function ownNames(
  { addresses, hostname }: Interfaces,
  { tailnetName, allowedHosts }: { tailnetName?: string; allowedHosts: readonly string[] },
): { dns: string[]; ip: string[] } {
  const host = hostname.toLowerCase();
  const dns = ["localhost", host, `${host}.local`, tailnetName?.toLowerCase(), ...allowedHosts];
  // An address that holds on one link alone means nothing in a certificate.
  const routable = addresses.filter((one) => !isLoopbackAddress(one) && !/^fe[89ab]/i.test(one));
  return {
    dns: [...new Set(dns.filter((name) => name !== undefined && name !== ""))] as string[],
    ip: [...new Set(["127.0.0.1", "::1", ...routable])],
  };
}

/** Names and addresses, with those that a certificate already has. */
export function namesOf(
  { dns, ip }: { dns: readonly string[]; ip: readonly string[] },
  further: readonly string[],
): { dns: string[]; ip: string[] } {
  return {
    dns: [...new Set([...dns, ...further.filter((name) => isIP(name) === 0)])],
    ip: [...new Set([...ip, ...further.filter((name) => isIP(name) !== 0)])],
  };
}

/** A self-signed certificate: RSA 2048, SHA-256, for a server of these names (§12). */
export async function makeCertificate(
  { dns, ip }: { dns: readonly string[]; ip: readonly string[] },
  nowMs: number,
): Promise<KeyPair> {
  // @ts-types="npm:@types/node-forge@1.3.14"
  const { default: forge } = await import("node-forge");
  const { publicKey, privateKey } = await promisify(generateKeyPair)("rsa", {
    modulusLength: KEY_BITS,
    publicKeyEncoding: { type: "spki", format: "pem" },
    privateKeyEncoding: { type: "pkcs8", format: "pem" },
  });
  const certificate = forge.pki.createCertificate();
  certificate.publicKey = forge.pki.publicKeyFromPem(publicKey);
  // A first byte of zero keeps the number positive (RFC 5280 §4.1.2.2).
  certificate.serialNumber = `00${randomBytes(SERIAL_BYTES).toString("hex")}`;
  certificate.validity.notBefore = new Date(nowMs - BACKDATED_MS);
  certificate.validity.notAfter = new Date(nowMs + VALID_MS);
  const name = [{ name: "commonName", value: COMMON_NAME }];
  certificate.setSubject(name);
  certificate.setIssuer(name);
  certificate.setExtensions([
    { name: "basicConstraints", cA: false, critical: true },
    { name: "keyUsage", digitalSignature: true, keyEncipherment: true, critical: true },
    { name: "extKeyUsage", serverAuth: true },
    {
      name: "subjectAltName",
      altNames: [
        ...dns.map((value) => ({ type: 2, value })),
        ...ip.map((address) => ({ type: 7, ip: address })),
      ],
    },
    { name: "subjectKeyIdentifier" },
  ]);
  certificate.sign(forge.pki.privateKeyFromPem(privateKey), forge.md.sha256.create());
  const cert = forge.pki.certificateToPem(certificate).replaceAll("\r\n", "\n");
  return { cert, key: privateKey };
}

/** Writes a pair where the current one belongs. */
export async function storeCertificate({ cert, key }: CertificateFiles, pair: KeyPair) {
  await writePrivateFile(key, pair.key);
  await writePrivateFile(cert, pair.cert);
}

/** Writes a pair beside the current one. */
export async function storeNext({ nextCert, nextKey }: CertificateFiles, pair: KeyPair) {
  await writePrivateFile(nextKey, pair.key);
  await writePrivateFile(nextCert, pair.cert);
}

/** Puts the next certificate in the place of the current one. */
export async function activateNext(files: CertificateFiles) {
  const current = await readIfThere(files.cert);
  if (current !== undefined) await writePrivateFile(files.previousCert, current);
  // In this order: `loadCertificate` can tell a rotation that ended here, and finish it.
  await Deno.rename(files.nextCert, files.cert);
  await Deno.rename(files.nextKey, files.key);
}

function fits({ cert, key }: KeyPair): boolean {
  try {
    return new X509Certificate(cert).checkPrivateKey(createPrivateKey(key));
  } catch {
    // One of them is no PEM at all: they do not belong together either.
    return false;
  }
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await Deno.readTextFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw new CertificateError(
      `gateway tls: failed to load cert (${path}: ${(error as Error).message})`,
      `Let this user read ${path}`,
      { cause: error },
    );
  }
}
