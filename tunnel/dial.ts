// Opens the WebSocket to a gateway: which endpoints may be dialled without encryption (protocol.md
// D9), and a certificate that is compared with a pin before a byte of HTTP is sent (§11.2).

import type { TLSSocket } from "node:tls";
import { normalizedFingerprint } from "../config/schema.ts";
import { TunnelError } from "./error.ts";
import { checkPin, type Fingerprint, type Pin, readPins } from "./pin.ts";

/** What a caller does with an open connection; `WebSocket` and that of `ws` are such. */
export interface DialledSocket {
  readonly readyState: number;
  send(text: string): void;
  close(code?: number, reason?: string): void;
  terminate?(): void;
  // deno-lint-ignore no-explicit-any
  addEventListener(type: string, listener: (event: any) => void): void;
}

export interface DialOptions {
  /** Fingerprints one of which the certificate must have; the authorities then do not matter. */
  pins?: readonly Pin[];
  /** Sent with the upgrade, for a proxy in front of the gateway; never without encryption. */
  headers?: Readonly<Record<string, string>>;
  /** `ZERO_ALLOW_INSECURE_WS=1`: dial plain text to anywhere, with a warning. */
  allowInsecure?: boolean;
  warn?(message: string): void;
  /** Every address of a name, as the system resolves it. */
  resolve?(name: string): Promise<string[]>;
  /** Told what answered the upgrade, before the socket opens or closes. */
  onAnswer?(answer: HttpAnswer): void;
  signal?: AbortSignal;
}

/** The answer to an upgrade request: 101, or what something said that does not upgrade. */
export interface HttpAnswer {
  status: number;
  /** Names in lower case. */
  headers: Readonly<Record<string, string | string[] | undefined>>;
  /** The beginning of its body; "" for 101. */
  text: string;
}

/**
 * @returns a socket none of whose events has been delivered yet
 * @throws {TunnelError} before anything was sent
 */
export async function dial(url: string, options: DialOptions = {}): Promise<DialledSocket> {
  const target = readUrl(url);
  const pins = readPins(options.pins ?? []);
  if (target.protocol === "wss:") {
    const { headers, onAnswer } = options;
    if (pins.length > 0) return await dialPinned(target, pins, options);
    // A redirect is not followed: no header goes anywhere else.
    return onAnswer
      ? await openSocket(target, options)
      : new WebSocket(target, headers && { headers: { ...headers } });
  }
  if (options.headers && Object.keys(options.headers).length > 0) {
    throw new TunnelError(
      "address",
      `Cannot dial ${target.origin}: headers for a proxy are not sent over ws://`,
      "Use a wss:// address",
    );
  }
  if (pins.length > 0) {
    throw new TunnelError(
      "tls",
      "gateway tls fingerprint requires wss:// gateway url",
      "Use a wss:// address, or remove the fingerprint",
    );
  }
  const endpoint = await plainEndpoint(target, options);
  return options.onAnswer ? await openSocket(endpoint, options) : new WebSocket(endpoint);
}

/**
 * The URL to dial for a plain `ws://` one: literal addresses and `localhost` as they are, a name with
 * the address in its place that was found to be private.
 *
 * @throws {TunnelError} when the endpoint is neither this machine nor a private network
 */
export async function plainEndpoint(
  target: URL,
  { allowInsecure = false, warn, resolve = resolveName }: DialOptions = {},
): Promise<URL> {
  const host = hostOf(target);
  if (host === "localhost" || isPrivateAddress(host)) return target;
  if (!isAddress(host) && /\.(local|ts\.net)$/.test(host)) {
    const addresses = await resolved(host, resolve);
    // A zone (fe80::1%eth0) has no place in a URL, so such an address cannot be dialled as checked.
    const address = addresses.find((one) => isPrivateAddress(one) && !one.includes("%"));
    // One answer that leads elsewhere is enough for a name not to be trusted.
    if (address && addresses.every(isPrivateAddress)) return withHost(target, address);
  }
  if (allowInsecure) {
    warn?.(`ZERO_ALLOW_INSECURE_WS: talking to ${target.host} without encryption`);
    return target;
  }
  throw new TunnelError(
    "address",
    `Cannot dial ${target.origin}: ws:// is not encrypted and ${host} is not on this machine or ` +
      "a private network",
    "Use a wss:// address",
  );
}

/** Loopback, RFC 1918, link-local, ULA or CGNAT; false for everything that is no IP literal. */
export function isPrivateAddress(text: string): boolean {
  const octets = ipv4Octets(text);
  if (octets) return isPrivateIpv4(octets);
  const groups = ipv6Groups(text);
  if (!groups) return false;
  const isMapped = groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff;
  if (isMapped) {
    const [high, low] = groups.slice(6);
    return isPrivateIpv4([high >> 8, high & 255, low >> 8, low & 255]);
  }
  const isLoopback = groups.slice(0, 7).every((group) => group === 0) && groups[7] === 1;
  const isUniqueLocal = (groups[0] & 0xfe00) === 0xfc00;
  const isLinkLocal = (groups[0] & 0xffc0) === 0xfe80;
  return isLoopback || isUniqueLocal || isLinkLocal;
}

const MAX_FRAME_BYTES = 26_214_400;
const MAX_ANSWER_CHARS = 1_024;

function readUrl(url: string): URL {
  if (URL.canParse(url)) {
    const parsed = new URL(url);
    if (parsed.protocol === "ws:" || parsed.protocol === "wss:") {
      parsed.username = parsed.password = parsed.hash = "";
      return parsed;
    }
  }
  throw new TunnelError(
    "address",
    "Cannot dial the gateway: its address is no ws:// or wss:// URL",
    "Write it like ws://127.0.0.1:18789",
  );
}

/** TLS first, compared, and only then the upgrade request on the same connection. */
async function dialPinned(
  target: URL,
  pins: readonly Pin[],
  options: DialOptions,
): Promise<DialledSocket> {
  const [stream] = await Promise.all([
    openPinned(target, pins, options.signal),
    // Loaded meanwhile, for what follows.
    import("ws"),
  ]);
  return await openSocket(target, options, stream);
}

/**
 * An encrypted connection to whoever has one of the certificates; nothing was said on it yet.
 *
 * @param pins see {@link readPins}
 * @throws {TunnelError} another certificate was shown
 * @throws {DialFailure} nobody speaks TLS there
 */
export async function openPinned(
  target: URL,
  pins: readonly Pin[],
  signal?: AbortSignal,
): Promise<TLSSocket> {
  const { stream, fingerprint } = await openTls(target, signal);
  try {
    checkPin(fingerprint, pins);
    return stream;
  } catch (error) {
    stream.destroy();
    throw error;
  }
}

/** A socket of `ws`: over a connection that is there already, and with a look at the answer. */
async function openSocket(
  target: URL,
  { headers, onAnswer }: DialOptions,
  stream?: TLSSocket,
): Promise<DialledSocket> {
  // @ts-types="npm:@types/ws@8.18.1"
  const { WebSocket: Socket } = await import("ws");
  const socket = new Socket(target.href, {
    ...stream && { createConnection: () => stream },
    perMessageDeflate: false,
    maxPayload: MAX_FRAME_BYTES,
    headers,
  });
  if (!onAnswer) return socket as DialledSocket;
  socket.on("upgrade", ({ headers }) => onAnswer({ status: 101, headers, text: "" }));
  socket.on("unexpected-response", (_request, response) => {
    const { statusCode: status = 0, headers } = response;
    let isTold = false;
    const tell = (text = "") => {
      if (isTold) return;
      isTold = true;
      onAnswer({ status, headers, text: String(text).slice(0, MAX_ANSWER_CHARS) });
      socket.terminate();
    };
    response.on("data", tell);
    response.on("close", () => tell());
  });
  return socket as DialledSocket;
}

/**
 * The certificate that is shown at a `wss://` address; nothing is said inside the encryption.
 *
 * @returns undefined when it shows none
 * @throws {DialFailure} nobody speaks TLS there
 */
export async function shownFingerprint(
  url: string,
  signal?: AbortSignal,
): Promise<Fingerprint | undefined> {
  const { stream, fingerprint } = await openTls(readUrl(url), signal);
  stream.destroy();
  return fingerprint && normalizedFingerprint(fingerprint);
}

async function openTls(target: URL, signal?: AbortSignal) {
  const tls = await import("node:tls");
  const host = hostOf(target);
  const stream = tls.connect({
    host,
    port: Number(target.port || 443),
    ALPNProtocols: ["http/1.1"],
    minVersion: "TLSv1.2",
    rejectUnauthorized: false, // the pin stands in the place of the authorities
    ...(!isAddress(host) && { servername: host }),
  });
  const abort = () => stream.destroy();
  signal?.addEventListener("abort", abort);
  if (signal?.aborted) abort();
  try {
    await new Promise<void>((resolve, reject) => {
      stream.once("secureConnect", resolve);
      stream.once("error", reject);
      stream.once("close", () => reject(new Error("the connection was closed")));
    });
    stream.on("error", () => {}); // told by whoever uses it; given up, it adds nothing
    return { stream, fingerprint: stream.getPeerCertificate()?.fingerprint256 };
  } catch (error) {
    stream.on("error", () => {}); // it is given up: what it says now adds nothing
    stream.destroy();
    throw new DialFailure(target, error);
  } finally {
    signal?.removeEventListener("abort", abort);
  }
}

/** The TLS connection did not come to be: another attempt may fare better. */
export class DialFailure extends Error {
  override name = "DialFailure";
  readonly isTransient = true;

  constructor(target: URL, cause: unknown) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    super(`Cannot dial ${target.origin}: ${reason}`, { cause });
  }
}

async function resolved(name: string, resolve: (name: string) => Promise<string[]>) {
  try {
    return await resolve(name);
  } catch (cause) {
    throw new TunnelError(
      "address",
      `Cannot dial ${name}: the name has no address`,
      "Check the name, or use the address itself",
      { cause },
    );
  }
}

/** Every address of a name, as the system resolves it. @throws {Error} it has none */
export async function resolveName(name: string): Promise<string[]> {
  const { lookup } = await import("node:dns/promises");
  return (await lookup(name, { all: true })).map(({ address }) => address);
}

/** Lower-case name or address, without brackets. */
function hostOf(url: URL): string {
  return url.hostname.toLowerCase().replace(/^\[|\]$/g, "");
}

function withHost(url: URL, address: string): URL {
  const copy = new URL(url);
  copy.hostname = address.includes(":") ? `[${address}]` : address;
  return copy;
}

function isAddress(host: string): boolean {
  return ipv4Octets(host) !== undefined || ipv6Groups(host) !== undefined;
}

function ipv4Octets(text: string): number[] | undefined {
  const parts = text.split(".");
  const isIpv4 = parts.length === 4 &&
    parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part) && Number(part) <= 255);
  return isIpv4 ? parts.map(Number) : undefined;
}

function isPrivateIpv4([first, second]: number[]): boolean {
  return first === 127 || first === 10 ||
    (first === 172 && second >= 16 && second <= 31) ||
    (first === 192 && second === 168) ||
    (first === 169 && second === 254) ||
    (first === 100 && second >= 64 && second <= 127);
}

/** The eight groups of an IPv6 address, read by the URL parser. */
function ipv6Groups(text: string): number[] | undefined {
  if (!text.includes(":")) return undefined;
  const url = `ws://[${text.replace(/%.*$/, "")}]/`;
  if (!URL.canParse(url)) return undefined;
  const [head, tail] = new URL(url).hostname.slice(1, -1).split("::");
  const left = head ? head.split(":") : [];
  const right = tail ? tail.split(":") : [];
  const zeros = tail === undefined ? 0 : 8 - left.length - right.length;
  return [...left, ...Array(zeros).fill("0"), ...right].map((group) => parseInt(group, 16));
}
