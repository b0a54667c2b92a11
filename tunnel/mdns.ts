// Multicast DNS (RFC 6762, 6763) on the networks of this machine: one service made known, or those of
// others looked for. Everything that is heard is somebody's claim; nothing is believed here.

import { pause } from "../config/pause.ts";
/** The part of `multicast-dns` that is used; it publishes no types of its own. */
interface Mdns {
  on(event: "query" | "response", heard: (packet: Packet, from: Peer) => void): void;
  on(event: "ready" | "networkInterface", happened: () => void): void;
  on(event: "error" | "warning", failed: (error: Error) => void): void;
  query(questions: Question[]): void;
  respond(
    packet: { answers: DnsRecord[]; additionals?: DnsRecord[] },
    to?: { address: string; port: number } | null,
    done?: (error?: Error) => void,
  ): void;
  destroy(done: () => void): void;
}

interface Packet {
  questions: Question[];
  answers: DnsRecord[];
  additionals: DnsRecord[];
}

interface Question {
  name: string;
  type: string;
}

interface DnsRecord {
  name: string;
  type: string;
  ttl?: number;
  flush?: boolean;
  data: unknown;
}

interface Peer {
  address: string;
  port: number;
}

export interface MdnsOptions {
  /** IPv4 addresses of the interfaces to use; unset: all but loopback, or that if there is no other. */
  interfaces?: readonly string[];
  /** 5353 */
  port?: number;
  /** Ends an announcement that is still looking for a free name. */
  signal?: AbortSignal;
}

/** What is to be made known. */
export interface Announcement {
  /** `_zero-gw._tcp` */
  service: string;
  /** What people see. Another one of that name on the network has a number added to this. */
  instance: string;
  /** `box.local` */
  host: string;
  port: number;
  txt: Readonly<Record<string, string>>;
}

/** What somebody on the network says of a service. */
export interface Claim {
  instance: string;
  host: string;
  port: number;
  txt: Record<string, string>;
  /** Where `host` is said to be. */
  addresses: string[];
}

const PORT = 5_353;
const SERVICE_TTL_S = 4_500;
const HOST_TTL_S = 120;
const SERVICES = "_services._dns-sd._udp.local";
/** How often, and how far apart, a name is asked for before it is taken (RFC 6762 §8.1). */
const PROBES = 3;
const PROBE_MS = 250;
const MAX_RENAMES = 20;
const REANNOUNCE_MS = 1_000;
/** Answers wait for each other: a crowd that asks gets one answer. */
const ANSWER_DELAY_MS = 50;
const GOODBYE_MS = 500;
const MAX_TXT_BYTES = 255;
/** A network full of claims is not worth more. */
const MAX_CLAIMS = 200;

/**
 * Makes a service known until it is disposed of, which says goodbye.
 *
 * @throws {Error} no multicast on this machine, or the port cannot be shared
 */
export async function announce(
  announcement: Announcement,
  options: MdnsOptions = {},
): Promise<AsyncDisposable & { instance: string }> {
  await using parts = new AsyncDisposableStack();
  const sockets = parts.use(await openSockets(options));
  const instance = await freeName(announcement, sockets.list, options.signal);
  const timers = new Set<ReturnType<typeof setTimeout>>();
  parts.defer(() => timers.forEach(clearTimeout));
  const later = (ms: number, act: () => void) => {
    const timer = setTimeout(() => {
      timers.delete(timer);
      act();
    }, ms);
    timers.add(timer);
  };
  for (const { mdns, address } of sockets.list) {
    const records = recordsOf({ ...announcement, instance }, address);
    const names = new Set(records.map(({ name }) => name.toLowerCase()));
    let isDue = false;
    mdns.on("query", ({ questions }, from) => {
      if (!questions.some(({ name }) => names.has(name.toLowerCase()))) return;
      // Who asks from a port of its own is no full peer and hears no multicast (RFC 6762 §6.7).
      if (from.port !== (options.port ?? PORT)) mdns.respond({ answers: records }, { ...from });
      if (isDue) return;
      isDue = true;
      later(ANSWER_DELAY_MS, () => {
        isDue = false;
        mdns.respond({ answers: records });
      });
    });
    mdns.respond({ answers: records });
    later(REANNOUNCE_MS, () => mdns.respond({ answers: records }));
  }
  const owned = parts.move();
  return {
    instance,
    async [Symbol.asyncDispose]() {
      await Promise.all(sockets.list.map(({ mdns, address }) => {
        const answers = recordsOf({ ...announcement, instance }, address)
          .filter(({ name }) => name !== SERVICES)
          .map((record) => ({ ...record, ttl: 0 }));
        return sent(mdns, answers);
      }));
      await owned.disposeAsync();
    },
  };
}

/**
 * Collects what is said of a service.
 *
 * @throws {Error} no multicast on this machine, or the port cannot be shared
 */
export async function browse(
  service: string,
  { timeoutMs, ...options }: MdnsOptions & { timeoutMs: number },
): Promise<Claim[]> {
  await using sockets = await openSockets(options);
  const type = `${service}.local`;
  const heard = new Map<string, DnsRecord>();
  for (const { mdns } of sockets.list) {
    mdns.on("response", ({ answers, additionals }) => {
      for (const record of [...answers, ...additionals]) {
        const { name, data } = record;
        const isMany = ["PTR", "A", "AAAA"].includes(record.type);
        const key = `${record.type} ${name.toLowerCase()} ${isMany ? data : ""}`;
        if (record.ttl === 0) heard.delete(key);
        else if (heard.has(key) || heard.size < 8 * MAX_CLAIMS) heard.set(key, record);
      }
    });
  }
  const ask = () => {
    const missing = claimsOf(type, heard).missing.map((name) => ({ name, type: "ANY" }));
    for (const { mdns } of sockets.list) mdns.query([{ name: type, type: "PTR" }, ...missing]);
  };
  // Multicast is lost now and then.
  const timer = setInterval(ask, Math.max(100, timeoutMs / 4));
  ask();
  await new Promise((resolve) => setTimeout(resolve, timeoutMs));
  clearInterval(timer);
  return claimsOf(type, heard).claims;
}

function claimsOf(type: string, heard: Map<string, DnsRecord>) {
  const all = [...heard.values()];
  const isNamed = (record: DnsRecord, name: string) =>
    record.name.toLowerCase() === name.toLowerCase();
  const claims: Claim[] = [];
  const missing: string[] = [];
  for (const pointer of all) {
    if (pointer.type !== "PTR" || !isNamed(pointer, type)) continue;
    const name = String(pointer.data);
    if (!name.toLowerCase().endsWith(`.${type}`) || claims.length >= MAX_CLAIMS) continue;
    const server = all.find((one) => one.type === "SRV" && isNamed(one, name));
    if (!server) {
      missing.push(name);
      continue;
    }
    const { target, port } = server.data as { target: string; port: number };
    const text = all.find((one) => one.type === "TXT" && isNamed(one, name));
    claims.push({
      instance: name.slice(0, -type.length - 1),
      host: target,
      port,
      txt: textOf(text?.data),
      addresses: all
        .filter((one) => ["A", "AAAA"].includes(one.type) && isNamed(one, target))
        .map((one) => String(one.data)),
    });
  }
  return { claims, missing };
}

/** `key=value` strings; of a key said twice the first counts (RFC 6763 §6.4). */
function textOf(data: unknown): Record<string, string> {
  const entries: Record<string, string> = Object.create(null);
  for (const part of Array.isArray(data) ? data : [data]) {
    if (!(part instanceof Uint8Array)) continue;
    const text = new TextDecoder().decode(part);
    const at = text.indexOf("=");
    if (at > 0) entries[text.slice(0, at)] ??= text.slice(at + 1);
  }
  return entries;
}

function recordsOf(
  { service, instance, host, port, txt }: Announcement,
  address: string,
): DnsRecord[] {
  const type = `${service}.local`;
  const name = `${instance}.${type}`;
  const encoder = new TextEncoder();
  const strings = Object.entries(txt)
    .map(([key, value]) => `${key}=${value}`)
    .filter((entry) => encoder.encode(entry).length <= MAX_TXT_BYTES);
  return [
    { name: type, type: "PTR", ttl: SERVICE_TTL_S, data: name },
    { name: SERVICES, type: "PTR", ttl: SERVICE_TTL_S, data: type },
    {
      name,
      type: "SRV",
      ttl: HOST_TTL_S,
      flush: true,
      data: { priority: 0, weight: 0, port, target: host },
    },
    { name, type: "TXT", ttl: SERVICE_TTL_S, flush: true, data: strings },
    { name: host, type: "A", ttl: HOST_TTL_S, flush: false, data: address },
  ];
}

/** The instance name, or that with a number, that nobody else on the network has. */
async function freeName(
  { service, instance, host, port }: Announcement,
  sockets: readonly Socket[],
  signal: AbortSignal | undefined,
): Promise<string> {
  // A label holds 63 bytes, and a dot would end it.
  const base = shortened(instance.replaceAll(".", "-"), 58);
  for (let number = 1; number < MAX_RENAMES; number++) {
    const candidate = number === 1 ? base : `${base} ${number}`;
    const name = `${candidate}.${service}.local`;
    let isTaken = false;
    const stops = sockets.map(({ mdns }) =>
      listen(mdns, ({ answers, additionals }) => {
        isTaken ||= [...answers, ...additionals].some((record) => {
          if (record.type !== "SRV" || record.name.toLowerCase() !== name.toLowerCase()) return;
          const { target, port: other } = record.data as { target: string; port: number };
          // What a gateway said here before a restart is no other gateway.
          return record.ttl !== 0 &&
            (target.toLowerCase() !== host.toLowerCase() || other !== port);
        });
      })
    );
    for (let probe = 0; probe < PROBES && !isTaken; probe++) {
      for (const { mdns } of sockets) mdns.query([{ name, type: "ANY" }]);
      await pause(PROBE_MS, ...signal ? [signal] : []);
    }
    for (const stop of stops) stop();
    signal?.throwIfAborted();
    if (!isTaken) return candidate;
  }
  throw new Error(`the network has too many services called ${base}`);
}

function shortened(text: string, maxBytes: number): string {
  const bytes = new TextEncoder().encode(text).subarray(0, maxBytes);
  return new TextDecoder().decode(bytes).replace(/\ufffd+$/, "");
}

/** @returns ends the listening */
function listen(mdns: Mdns, heard: (packet: Packet) => void): () => void {
  let isOver = false;
  mdns.on("response", (packet) => {
    if (!isOver) heard(packet);
  });
  return () => {
    isOver = true;
  };
}

/** Resolves when the system has taken it, or has not for a while. */
async function sent(mdns: Mdns, answers: DnsRecord[]) {
  const over = Promise.withResolvers<void>();
  const timer = setTimeout(over.resolve, GOODBYE_MS);
  mdns.respond({ answers }, null, () => over.resolve());
  await over.promise;
  clearTimeout(timer);
}

interface Socket {
  mdns: Mdns;
  /** The address of its interface. */
  address: string;
}

async function openSockets({ interfaces = ownInterfaces(), port }: MdnsOptions) {
  await using parts = new AsyncDisposableStack();
  const { default: createMdns } = await import("multicast-dns") as unknown as {
    default: (options: object) => Mdns;
  };
  const list: Socket[] = [];
  let obstacle = new Error("this machine has no network with IPv4");
  for (const address of interfaces) {
    const mdns = createMdns({ interface: address, bind: "0.0.0.0", port: port ?? PORT });
    parts.defer(() => new Promise((resolve) => mdns.destroy(() => resolve())));
    let isJoined = false;
    mdns.on("networkInterface", () => isJoined = true);
    // An interface without multicast, packets nobody can read: the others go on.
    mdns.on("warning", (error) => obstacle = error);
    await new Promise<void>((resolve, reject) => {
      mdns.on("ready", resolve);
      mdns.on("error", reject);
    });
    if (isJoined) list.push({ mdns, address });
  }
  if (list.length === 0) throw obstacle;
  const owned = parts.move();
  return { list, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

function ownInterfaces(): string[] {
  const all = Deno.networkInterfaces().filter(({ family }) => family === "IPv4");
  const isLoopback = ({ address }: Deno.NetworkInterfaceInfo) => address.startsWith("127.");
  const others = all.filter((one) => !isLoopback(one));
  return (others.length > 0 ? others : all.filter(isLoopback)).map(({ address }) => address);
}
