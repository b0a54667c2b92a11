// Which addresses the gateway listens on (§12, `gateway.bind`), and what this machine is called.

import { isIP } from "node:net";
import type { GatewaySettings } from "../config/settings.ts";
import { isLoopbackAddress, isTailnetAddress, normalizeAddress } from "./network.ts";
import { StartRefusal } from "./preflight.ts";

const LOOPBACK = "127.0.0.1";
const EVERYWHERE = "0.0.0.0";

export interface Interfaces {
  /** Every address of this machine. */
  addresses: readonly string[];
  hostname: string;
}

/** What the operating system says of this machine now. */
export function readInterfaces(): Interfaces {
  const addresses = Deno.networkInterfaces().map(({ address }) => normalizeAddress(address));
  return { addresses, hostname: Deno.hostname().replace(/\.local$/, "") };
}

export function tailnetAddresses({ addresses }: Interfaces): string[] {
  return addresses.filter(isTailnetAddress);
}

/** The address others reach this machine at, for display. */
export function primaryAddress({ addresses }: Interfaces): string {
  return addresses.find((one) => isIP(one) === 4 && !isLoopbackAddress(one)) ?? LOOPBACK;
}

/**
 * The address to bind to.
 *
 * @throws {StartRefusal} a custom address that this machine does not have
 */
export function bindHost(
  { bind, customBindHost }: Pick<GatewaySettings, "bind" | "customBindHost">,
  interfaces: Interfaces,
): { host: string; warning?: string } {
  switch (bind.value) {
    case "loopback":
      return { host: LOOPBACK };
    case "lan":
      return { host: EVERYWHERE };
    case "auto":
      return { host: interfaces.addresses.includes(LOOPBACK) ? LOOPBACK : EVERYWHERE };
    case "tailnet": {
      const own = tailnetAddresses(interfaces).find((one) => isIP(one) === 4);
      if (own) return { host: own };
      return {
        host: LOOPBACK,
        warning: "gateway.bind is tailnet, and this machine has no tailnet address: " +
          "listening on loopback only",
      };
    }
    case "custom": {
      const host = customBindHost.value ?? "";
      const isOwn = host === EVERYWHERE || isLoopbackAddress(host) ||
        interfaces.addresses.includes(host);
      if (isOwn) return { host };
      // Listening everywhere instead would expose what was meant for one network.
      throw new StartRefusal(
        `gateway.customBindHost is ${host || "not set"}, which is no address of this machine`,
        `zero config set gateway.customBindHost ${primaryAddress(interfaces)}`,
      );
    }
  }
}

/** The main address first; loopback is served under IPv6 too where that can be had. */
export function listenHosts(host: string): string[] {
  return host === LOOPBACK || host === EVERYWHERE ? [host, "::1"] : [host];
}
