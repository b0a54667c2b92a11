// May a gateway start with these settings? (§5.2, D4, D6) Nothing is opened here: the same questions
// are asked before a start and before a restart that a changed file would cause.

import type { Config } from "../config/schema.ts";
import type { GatewaySettings } from "../config/settings.ts";
import { isLoopbackAddress } from "./network.ts";

/** A reason not to start that starting again would not mend: exit code 78 (D20). */
export class StartRefusal extends Error {
  override name = "StartRefusal";

  /** @param fix one command or one sentence */
  constructor(message: string, readonly fix: string, options?: ErrorOptions) {
    super(message, options);
  }
}

/** @param host the address the gateway is to listen on */
export function refuseUnsafeStart(
  { gateway }: Config,
  settings: GatewaySettings,
  host: string,
) {
  const { auth, bind, tailscale, trustedProxies, port } = settings;
  const mode = auth.mode.value;
  // The address in the tailnet may come at any time; what it asks for is asked for now.
  const isLoopback = isLoopbackAddress(host) && bind.value !== "tailnet";
  const where = isLoopbackAddress(host) && !isLoopback ? "tailnet" : host;
  const isExposed = tailscale.mode.value !== "off";
  if (gateway?.mode === "remote") {
    throw new StartRefusal(
      "Gateway start blocked: set gateway.mode=local (current: remote)",
      "zero config set gateway.mode local",
    );
  }
  if (mode === "password" && !auth.password.value) {
    throw new StartRefusal(
      "gateway.auth.mode is password, and there is no password",
      "Set ZERO_GATEWAY_PASSWORD, or gateway.auth.password with `zero config edit`",
    );
  }
  if (tailscale.mode.value === "funnel" && mode !== "password") {
    throw new StartRefusal(
      "tailscale funnel makes the gateway public and needs gateway.auth.mode=password",
      "zero config set gateway.auth.mode password",
    );
  }
  if (isExposed && !isLoopback) {
    throw new StartRefusal(
      `tailscale ${tailscale.mode.value} needs gateway.bind=loopback (current: ${where})`,
      "zero config set gateway.bind loopback",
    );
  }
  const isOpen = mode === "none" || (mode === "token" && !auth.token.value);
  if (!isLoopback && isOpen) {
    throw new StartRefusal(
      `refusing to bind gateway to ${where}:${port.value} without auth ` +
        "(set gateway.auth.token or ZERO_GATEWAY_TOKEN, or pass --token)",
      "zero config set gateway.auth.token",
    );
  }
  if (mode !== "none") return;
  if (isExposed || trustedProxies.value.length > 0) {
    const what = isExposed ? "Tailscale" : "gateway.trustedProxies";
    throw new StartRefusal(
      `gateway.auth.mode=none cannot stand beside ${what}: it would let everybody in`,
      "zero config set gateway.auth.mode token",
    );
  }
}
