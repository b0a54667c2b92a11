// Gateways on the local network (§14): this one made known by multicast DNS, and `zero gateway
// discover`, which shows what others say. A name, an address or a fingerprint heard this way is a
// claim of whoever sent it: it is shown, and nothing is dialled, kept or trusted because of it.

import { EXIT_FAILURE } from "../config/command.ts";
import type { Env } from "../config/paths.ts";
import { normalizedFingerprint } from "../config/schema.ts";
import type { GatewaySettings } from "../config/settings.ts";
import { printable, type Terminal } from "../config/terminal.ts";
import type { Announcement, Claim, MdnsOptions } from "../tunnel/mdns.ts";
import { isLoopbackAddress, isTailnetAddress } from "./network.ts";

export const SERVICE = "_zero-gw._tcp";
const DEFAULT_SSH_PORT = 22;

export interface AnnouncedGateway {
  settings: Pick<GatewaySettings, "discovery" | "tls">;
  env: Env;
  /** The main address it listens on. */
  host: string;
  port: number;
  hostname: string;
  /** SHA-256 of its certificate, where it serves TLS. */
  fingerprint?: string;
}

/**
 * What a gateway says of itself. With mode `minimal` only one that the network can reach says
 * anything; with `full` one on loopback does too, for who comes by ssh, and it says more.
 *
 * @returns undefined where it says nothing
 */
export function announcementOf(
  { settings, env, host, port, hostname, fingerprint }: AnnouncedGateway,
): Announcement | undefined {
  const mode = settings.discovery.mode.value;
  const isFull = mode === "full";
  const isOnLan = !isLoopbackAddress(host) && !isTailnetAddress(host);
  if (mode === "off" || env.ZERO_DISABLE_BONJOUR?.trim() === "1") return undefined;
  if (!isOnLan && !isFull) return undefined;
  const lanHost = `${hostname}.local`;
  const tailnet = env.ZERO_TAILNET_DNS?.trim();
  const hasTls = settings.tls.enabled.value;
  return {
    service: SERVICE,
    instance: `${hostname} (ZERO)`,
    host: lanHost,
    port,
    txt: {
      role: "gateway",
      transport: "gateway",
      gatewayPort: String(port),
      lanHost,
      displayName: hostname,
      ...hasTls && { gatewayTls: "1" },
      ...hasTls && fingerprint && { gatewayTlsSha256: normalizedFingerprint(fingerprint) },
      ...isFull && {
        sshPort: env.ZERO_SSH_PORT?.trim() || String(DEFAULT_SSH_PORT),
        ...tailnet && { tailnetDns: tailnet },
        ...env.ZERO_CLI_PATH?.trim() && { cliPath: env.ZERO_CLI_PATH.trim() },
      },
    },
  };
}

/** Makes a gateway known until it is disposed of; does nothing where there is nothing to say. */
export class Announcer implements AsyncDisposable {
  readonly #announcement: Announcement | undefined;
  readonly #report: (trouble: { message: string; fix: string } | undefined) => void;
  readonly #options: MdnsOptions;
  readonly #end = new AbortController();
  #announced: Promise<AsyncDisposable | undefined> = Promise.resolve(undefined);

  constructor(
    announcement: Announcement | undefined,
    report: (trouble: { message: string; fix: string } | undefined) => void,
    options: MdnsOptions = {},
  ) {
    this.#announcement = announcement;
    this.#report = report;
    this.#options = options;
  }

  /** Resolves when it is known, or cannot be. */
  async start(): Promise<void> {
    if (!this.#announcement) return;
    this.#announced = this.#announce(this.#announcement);
    await this.#announced;
  }

  async #announce(announcement: Announcement): Promise<AsyncDisposable | undefined> {
    try {
      const { announce } = await import("../tunnel/mdns.ts");
      return await announce(announcement, { ...this.#options, signal: this.#end.signal });
    } catch (error) {
      if (this.#end.signal.aborted) return undefined;
      this.#report({
        message: `cannot be found on the local network: ${(error as Error).message}`,
        fix: "If nobody needs to find it: zero config set discovery.mdns.mode off",
      });
      return undefined;
    }
  }

  async [Symbol.asyncDispose]() {
    this.#end.abort();
    await (await this.#announced)?.[Symbol.asyncDispose]();
  }
}

/** What a gateway on the network claims of itself (§11.3, `gateway discover`). */
export interface Beacon {
  instanceName: string;
  displayName?: string;
  domain: "local.";
  host?: string;
  port?: number;
  lanHost?: string;
  tailnetDns?: string;
  gatewayPort?: number;
  sshPort?: number;
  gatewayTls?: boolean;
  gatewayTlsFingerprintSha256?: string;
  cliPath?: string;
  role?: string;
  transport?: string;
  wsUrl: string | null;
}

/** A claim made safe to show: names that are names, ports that are ports, no control characters. */
export function beaconOf({ instance, host, port, txt }: Claim): Beacon {
  const shown = (text: string | undefined) => text ? printable(text) : undefined;
  const lanHost = hostName(txt.lanHost, ".local");
  const tailnetDns = hostName(txt.tailnetDns, ".ts.net");
  const own = hostName(host, ".local");
  const gatewayPort = portOf(txt.gatewayPort);
  const servedPort = portOf(String(port));
  const hasTls = txt.gatewayTls === "1";
  const digest = txt.gatewayTlsSha256?.replaceAll(":", "").toLowerCase() ?? "";
  const at = tailnetDns ?? lanHost ?? own;
  const on = gatewayPort ?? servedPort;
  return {
    instanceName: printable(instance),
    ...shown(txt.displayName) && { displayName: shown(txt.displayName) },
    domain: "local.",
    ...own && { host: own },
    ...servedPort && { port: servedPort },
    ...lanHost && { lanHost },
    ...tailnetDns && { tailnetDns },
    ...gatewayPort && { gatewayPort },
    ...portOf(txt.sshPort) && { sshPort: portOf(txt.sshPort) },
    ...hasTls && { gatewayTls: true },
    ...hasTls && /^[0-9a-f]{64}$/.test(digest) && { gatewayTlsFingerprintSha256: digest },
    ...shown(txt.cliPath) && { cliPath: shown(txt.cliPath) },
    ...shown(txt.role) && { role: shown(txt.role) },
    ...shown(txt.transport) && { transport: shown(txt.transport) },
    wsUrl: at && on ? `${hasTls ? "wss" : "ws"}://${at}:${on}` : null,
  };
}

/** @throws {Error} where this machine has no multicast */
export async function discover(timeoutMs: number, options: MdnsOptions = {}): Promise<Beacon[]> {
  const { browse } = await import("../tunnel/mdns.ts");
  const claims = await browse(SERVICE, { ...options, timeoutMs });
  return claims.map(beaconOf).sort((a, b) => a.instanceName < b.instanceName ? -1 : 1);
}

/** `zero gateway discover` */
export async function runDiscover(
  { timeout: timeoutMs, json }: { timeout: number; json: boolean },
  terminal: Terminal,
): Promise<number | void> {
  let beacons: Beacon[];
  try {
    beacons = await discover(timeoutMs);
  } catch (error) {
    const message = `Cannot look for gateways: ${(error as Error).message}`;
    const fix = "Connect this machine to a network, and let the port 5353 be shared";
    terminal.err(`${terminal.errStyle.red("error:")} ${message}\nfix:   ${fix}`);
    if (json) terminal.json({ ok: false, error: { code: "NO_MULTICAST", message, fix } });
    return EXIT_FAILURE;
  }
  if (json) {
    return terminal.json({ timeoutMs, domains: ["local."], count: beacons.length, beacons });
  }
  if (beacons.length === 0) {
    return terminal.err("No gateway on the local network made itself known");
  }
  terminal.table(
    beacons.map(({ instanceName, wsUrl, sshPort, gatewayTlsFingerprintSha256 }) => [
      instanceName,
      wsUrl ?? "no address",
      sshPort ? String(sshPort) : "",
      gatewayTlsFingerprintSha256 ? `${gatewayTlsFingerprintSha256.slice(0, 16)}…` : "",
    ]),
    { header: ["NAME", "ADDRESS", "SSH PORT", "FINGERPRINT"] },
  );
  terminal.err(
    "Nobody has checked these claims: compare a fingerprint with what zero gateway cert show " +
      "prints on the gateway itself",
  );
}

/** A DNS name below a domain in which no stranger can have one. */
function hostName(text: string | undefined, domain: ".local" | ".ts.net"): string | undefined {
  const name = text?.replace(/\.$/, "").toLowerCase() ?? "";
  const isName = /^(?!-)[a-z0-9_-]{1,63}(\.(?!-)[a-z0-9_-]{1,63})*$/.test(name);
  return isName && name.length <= 253 && name.endsWith(domain) ? name : undefined;
}

function portOf(text: string | undefined): number | undefined {
  if (!text || !/^\d{1,5}$/.test(text)) return undefined;
  const port = Number(text);
  return port >= 1 && port <= 65_535 ? port : undefined;
}
