// What can be said of a request before anybody has said who they are: the client's address, whether
// it is local, and whether its Host and Origin may talk to this gateway at all. Pure functions.

import { BlockList, isIP } from "node:net";

/** Header names in lower case, as `node:http` gives them. */
export type Headers = Record<string, string | string[] | undefined>;

/** The addresses this host and its operator stand for. */
export interface Surroundings {
  /** `gateway.trustedProxies`: addresses and CIDR blocks. */
  trustedProxies: AddressSet;
  /** This host's own addresses, beside loopback, that count as itself: tailnet, and a custom bind. */
  ownAddresses: readonly string[];
}

/** Where a request comes from (§5.1, D2, D4). */
export interface Provenance {
  /** The TCP peer. */
  peer: string;
  /** The client's address; absent when an untrusted peer forwards for somebody. */
  client?: string;
  /** Through a proxy: a forwarding header is there, whether or not the peer is trusted. */
  isForwarded: boolean;
  /** A trusted proxy passed it on: what its headers say counts. */
  isFromProxy: boolean;
  /** Paired silently, and excused from the nonce on protocol 3. */
  isLocal: boolean;
  /** On this very machine with a loopback Host: never locked out, never asked for Tailscale. */
  isLocalDirect: boolean;
  hasOrigin: boolean;
  /** The bucket in which its failed logins are counted. */
  limiterKey: string;
}

const ADDRESS_HEADERS = ["x-forwarded-for", "x-real-ip"];
/** Any of these says that the peer is not the client (D4). */
const FORWARDING_HEADERS = [
  ...ADDRESS_HEADERS,
  "x-forwarded-host",
  "x-forwarded-proto",
  "forwarded",
  "via",
  "cf-connecting-ip",
  "true-client-ip",
];
const LOOPBACK_NAMES = new Set(["localhost", "127.0.0.1", "::1", "0.0.0.0"]);

/** A set of addresses and CIDR blocks. Entries that are neither are ignored; the config names them. */
export class AddressSet {
  readonly size: number;
  readonly #blocks = new BlockList();

  constructor(entries: readonly string[] = []) {
    let size = 0;
    for (const entry of entries) {
      const [address, prefix] = entry.trim().split("/");
      const plain = normalizeAddress(address);
      const family = familyOf(plain);
      if (!family) continue;
      if (prefix === undefined) this.#blocks.addAddress(plain, family);
      else this.#blocks.addSubnet(plain, Number(prefix), family);
      size++;
    }
    this.size = size;
  }

  has(address: string): boolean {
    const family = familyOf(address);
    return this.size > 0 && family !== undefined && this.#blocks.check(address, family);
  }
}

/** Lower case, without brackets, IPv4-mapped prefix and zone. */
export function normalizeAddress(address: string): string {
  const plain = address.trim().toLowerCase().replace(/^\[|\]$/g, "").replace(/%.*$/, "");
  return plain.startsWith("::ffff:") && plain.includes(".") ? plain.slice(7) : plain;
}

export function isLoopbackAddress(address: string): boolean {
  return address === "::1" || (isIP(address) === 4 && address.startsWith("127."));
}

const tailnet = new AddressSet(["100.64.0.0/10", "fd7a:115c:a1e0::/48"]);

export function isTailnetAddress(address: string): boolean {
  return tailnet.has(address);
}

export function provenanceOf(
  peerAddress: string | undefined,
  headers: Headers,
  { trustedProxies, ownAddresses }: Surroundings,
): Provenance {
  const peer = normalizeAddress(peerAddress ?? "");
  const isTrusted = trustedProxies.has(peer);
  const isForwarded = FORWARDING_HEADERS.some((name) => headers[name] !== undefined);
  const client = !isForwarded
    ? peer
    : isTrusted
    ? forwardedClient(headers, trustedProxies) ?? peer
    : undefined;
  const isLoopback = client !== undefined && isLoopbackAddress(client);
  const isOwn = client !== undefined && ownAddresses.includes(client);
  const hostName = splitHost(one(headers.host) ?? "")?.name ?? "";
  const hasOrigin = headers.origin !== undefined;
  // Whoever forwarded it: what stands behind a proxy on this machine need not be on this machine.
  const isLocalDirect = !isForwarded && isLoopback &&
    (isLoopbackName(hostName) || hostName.endsWith(".ts.net"));
  return {
    peer,
    client,
    isForwarded,
    isFromProxy: isForwarded && isTrusted,
    isLocal: isLocalDirect || (!isForwarded && isOwn),
    isLocalDirect,
    hasOrigin,
    // Pages can guess from this machine; that must not slow down the programs on it.
    limiterKey: client === undefined
      ? "forwarded"
      : `${isLoopback && hasOrigin ? "browser " : ""}${networkOf(client)}`,
  };
}

/** The last hop that a proxy added itself, whatever stands in front of it; for Serve and Funnel. */
export function lastHop(headers: Headers): string | undefined {
  const last = hops(headers).at(-1);
  return last === undefined || isIP(last) === 0 ? undefined : last;
}

export type Verdict = { allowed: true } | { allowed: false; status: 403 | 421; message: string };

export interface NameRules {
  /** The configured bind host. */
  bindHost: string;
  /** `gateway.allowedHosts`. */
  allowedHosts: readonly string[];
  /** `gateway.controlUi.allowedOrigins`. */
  allowedOrigins: readonly string[];
  /** This machine's name, without domain. */
  hostname: string;
  /** This machine's name in its tailnet, where it is known. */
  tailnetName?: string;
}

/** Whether Host and Origin may talk to this gateway (D5). Decided before the upgrade and any route. */
export function judgeNames(headers: Headers, rules: NameRules): Verdict {
  const host = splitHost(one(headers.host) ?? "");
  if (!host || !isHostAllowed(host.name, rules)) {
    return {
      allowed: false,
      status: 421,
      message: "This Host is not served here; list it in gateway.allowedHosts",
    };
  }
  const origin = one(headers.origin);
  if (origin !== undefined && !isOriginAllowed(origin, host, rules.allowedOrigins)) {
    return {
      allowed: false,
      status: 403,
      message: "This Origin may not connect; list it in gateway.controlUi.allowedOrigins",
    };
  }
  return { allowed: true };
}

function isHostAllowed(name: string, rules: NameRules): boolean {
  if (isLoopbackName(name) || isIP(name) !== 0 || name === rules.bindHost) return true;
  if (rules.allowedHosts.some((allowed) => allowed.toLowerCase() === name)) return true;
  const own = rules.hostname.toLowerCase();
  if (name === `${own}.local` || name === rules.tailnetName?.toLowerCase()) return true;
  const [first, ...domain] = name.split(".");
  return first === own && domain.length === 3 && name.endsWith(".ts.net");
}

function isOriginAllowed(
  origin: string,
  host: { name: string; port?: string },
  allowed: readonly string[],
): boolean {
  let url: URL;
  try {
    url = new URL(origin);
  } catch {
    return false;
  }
  if (url.origin !== origin.toLowerCase() || !["http:", "https:"].includes(url.protocol)) {
    return allowed.includes(origin);
  }
  if (allowed.some((one) => one.toLowerCase() === url.origin)) return true;
  const usual = url.protocol === "https:" ? "443" : "80";
  const name = normalizeAddress(url.hostname);
  const isSameName = name === host.name || (isLoopbackName(name) && isLoopbackName(host.name));
  return isSameName && (url.port || usual) === (host.port ?? usual);
}

/** `name[:port]` or `[v6][:port]`; undefined for anything else. */
function splitHost(host: string): { name: string; port?: string } | undefined {
  const match = /^(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d{1,5}))?$/i.exec(host);
  if (!match) return undefined;
  return { name: match[1].toLowerCase().replace(/^\[|\]$/g, ""), port: match[2] };
}

function isLoopbackName(name: string): boolean {
  return LOOPBACK_NAMES.has(name) || isLoopbackAddress(name);
}

/** From right to left the first address that is no trusted proxy (§5.1). */
function forwardedClient(headers: Headers, trusted: AddressSet): string | undefined {
  const list = hops(headers);
  const client = list.findLast((hop) => !trusted.has(hop)) ?? list[0] ??
    normalizeAddress(one(headers["x-real-ip"]) ?? "");
  return isIP(client) === 0 ? undefined : client;
}

function hops(headers: Headers): string[] {
  const value = headers["x-forwarded-for"];
  const text = Array.isArray(value) ? value.join(",") : value ?? "";
  return text.split(",").map((hop) => withoutPort(hop.trim())).filter((hop) => hop !== "");
}

function withoutPort(hop: string): string {
  const bracketed = /^\[([^\]]+)\](?::\d+)?$/.exec(hop);
  const plain = bracketed ? bracketed[1] : /^[\d.]+:\d+$/.test(hop) ? hop.split(":")[0] : hop;
  return normalizeAddress(plain);
}

/** Hosts of one IPv6 network share a bucket: a single machine owns a whole /64. */
function networkOf(address: string): string {
  if (isIP(address) !== 6 || address === "::1") return address;
  const [head, tail] = address.split("::");
  const groups = head.split(":").filter(Boolean);
  if (tail !== undefined) {
    const rest = tail.split(":").filter(Boolean);
    while (groups.length + rest.length < 8) groups.push("0");
    groups.push(...rest);
  }
  return `${groups.slice(0, 4).join(":")}::/64`;
}

function familyOf(address: string): "ipv4" | "ipv6" | undefined {
  const family = isIP(address);
  return family === 4 ? "ipv4" : family === 6 ? "ipv6" : undefined;
}

function one(value: string | string[] | undefined): string | undefined {
  return Array.isArray(value) ? value[0] : value;
}
