// Which addresses the gateway listens on (§12, `gateway.bind`), what this machine is called, and what
// happens when its tailnet address comes, goes or changes while the gateway runs.

import { isIP } from "node:net";
import type { Log } from "../config/log.ts";
import type { BindMode, GatewaySettings } from "../config/settings.ts";
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
 * The address to bind to. For `tailnet` on a machine that has no such address now: loopback.
 *
 * @throws {StartRefusal} a custom address that this machine does not have
 */
export function bindHost(
  { bind, customBindHost }: Pick<GatewaySettings, "bind" | "customBindHost">,
  interfaces: Interfaces,
): { host: string } {
  switch (bind.value) {
    case "loopback":
      return { host: LOOPBACK };
    case "lan":
      return { host: EVERYWHERE };
    case "auto":
      return { host: interfaces.addresses.includes(LOOPBACK) ? LOOPBACK : EVERYWHERE };
    case "tailnet":
      return { host: tailnetHost(interfaces) ?? LOOPBACK };
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

/** The address of this machine in its tailnet that a gateway bound to the tailnet listens on. */
function tailnetHost(interfaces: Interfaces): string | undefined {
  return tailnetAddresses(interfaces).find((one) => isIP(one) === 4);
}

/**
 * The main address first; loopback is served under IPv6 too where that can be had. Bound to the
 * tailnet a gateway begins with loopback, which it keeps, and {@link TailnetFollower} does the rest.
 */
export function listenHosts(bind: BindMode, host: string): string[] {
  if (bind === "tailnet") return [LOOPBACK, "::1"];
  return host === LOOPBACK || host === EVERYWHERE ? [host, "::1"] : [host];
}

/** What can be told to listen on one address more, or less. */
export interface Listening {
  /** @throws {Error} with a `code`, when the address cannot be had */
  add(host: string): Promise<void>;
  drop(host: string): Promise<void>;
}

export interface FollowerOptions {
  listener: Listening;
  read(): Interfaces;
  log: Log;
  /** Told what is wrong, and with undefined that nothing is. */
  report(trouble: { message: string; fix: string } | undefined): void;
  /** Told of every change of the interfaces it saw. */
  saw?(interfaces: Interfaces): void;
  everyMs?: number;
}

const LOOK_EVERY_MS = 2_000;

/** Keeps a gateway with bind `tailnet` on the tailnet address of its machine, whichever that is. */
export class TailnetFollower implements AsyncDisposable {
  readonly #options: FollowerOptions;
  /** The address it listens on beside loopback. */
  #host?: string;
  #timer?: ReturnType<typeof setTimeout>;
  #looking: Promise<void> = Promise.resolve();
  #isOver = false;

  constructor(options: FollowerOptions) {
    this.#options = options;
  }

  /** Looks now, and from then on regularly. Resolves after the first look. */
  start(): Promise<void> {
    this.#looking = this.#look().finally(() => {
      if (this.#isOver) return;
      this.#timer = setTimeout(() => this.start(), this.#options.everyMs ?? LOOK_EVERY_MS);
    });
    return this.#looking;
  }

  async [Symbol.asyncDispose]() {
    this.#isOver = true;
    clearTimeout(this.#timer);
    await this.#looking;
  }

  async #look() {
    const { listener, read, log, report, saw } = this.#options;
    const interfaces = read();
    saw?.(interfaces);
    const host = tailnetHost(interfaces);
    if (this.#host !== undefined && this.#host !== host) {
      const gone = this.#host;
      this.#host = undefined;
      await listener.drop(gone);
      log.info("left a tailnet address", { host: gone });
    }
    if (host === undefined) {
      return report({
        message: "gateway.bind is tailnet, and this machine has no tailnet address: " +
          "listening on loopback only",
        fix: "tailscale up",
      });
    }
    if (this.#host === host) return;
    try {
      await listener.add(host);
    } catch (error) {
      return report({
        message: `cannot listen on the tailnet address ${host}: ${(error as Error).message}`,
        fix: "See what has the port there, or choose another: zero config set gateway.port",
      });
    }
    this.#host = host;
    log.info("listening on a tailnet address", { host });
    report(undefined);
  }
}
