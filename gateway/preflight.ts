// May a gateway start with these settings? (§5.2, D4, D6) Nothing is opened here: the same questions
// are asked before a start and before a restart that a changed file would cause.

import type { Config } from "../config/schema.ts";
import type { GatewaySettings } from "../config/settings.ts";
import { isLoopbackAddress } from "./network.ts";
import { ownAddressAmong, proofsIn, SHORTEST_PROOF } from "./proxy_user.ts";

/** A reason not to start that starting again would not mend: exit code 78 (D20). */
export class StartRefusal extends Error {
  override name = "StartRefusal";

  /** @param fix one command or one sentence */
  constructor(message: string, readonly fix: string, options?: ErrorOptions) {
    super(message, options);
  }
}

/**
 * @param host the address the gateway is to listen on
 * @param ownAddresses of this machine, beside loopback
 */
export function refuseUnsafeStart(
  { gateway }: Config,
  settings: GatewaySettings,
  { host, ownAddresses = [] }: { host: string; ownAddresses?: readonly string[] },
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
  if (mode === "trusted-proxy") return refuseUnsafeProxy(settings, ownAddresses);
  if (mode !== "none") return;
  const namesUsers = Object.values(auth.trustedProxy).some(({ value }) => value !== undefined);
  if (isExposed || namesUsers || trustedProxies.value.length > 0) {
    const what = isExposed
      ? "Tailscale"
      : namesUsers
      ? "gateway.auth.trustedProxy"
      : "gateway.trustedProxies";
    throw new StartRefusal(
      `gateway.auth.mode=none cannot stand beside ${what}: it would let everybody in`,
      "zero config set gateway.auth.mode token",
    );
  }
}

/** A proxy whose word opens the gateway must be one, be known, and be the only one to have it. */
function refuseUnsafeProxy(
  { auth: { trustedProxy }, tailscale, trustedProxies }: GatewaySettings,
  ownAddresses: readonly string[],
) {
  const { userHeader, requiredHeaders, allowUsers } = trustedProxy;
  const refuse = (what: string, fix: string) =>
    new StartRefusal(`gateway.auth.mode is trusted-proxy, and ${what}`, fix);
  if (!userHeader.value) {
    throw refuse(
      "gateway.auth.trustedProxy.userHeader is not set",
      "zero config set gateway.auth.trustedProxy.userHeader X-Forwarded-User",
    );
  }
  if (trustedProxies.value.length === 0) {
    throw refuse(
      "gateway.trustedProxies is empty: no proxy could let anybody in",
      `Name the address of the proxy: zero config set gateway.trustedProxies '["10.0.0.5"]'`,
    );
  }
  const users = allowUsers.value ?? [];
  if (users.length === 0 || (users.length > 1 && users.includes("*"))) {
    throw refuse(
      users.length === 0
        ? "gateway.auth.trustedProxy.allowUsers names nobody"
        : 'gateway.auth.trustedProxy.allowUsers holds "*" beside names',
      `Name the users, or everybody with ["*"]: ` +
        `zero config set gateway.auth.trustedProxy.allowUsers '["ada@example.org"]'`,
    );
  }
  const own = ownAddressAmong(trustedProxies.value, ownAddresses);
  if (own === undefined) return;
  if (proofsIn(requiredHeaders.value).length === 0) {
    throw refuse(
      `gateway.trustedProxies holds this machine (${own}): any program on it could name any user`,
      `Let the proxy send a secret of ${SHORTEST_PROOF} characters or more in a header, and put ` +
        "both into gateway.auth.trustedProxy.requiredHeaders with `zero config edit`",
    );
  }
  if (tailscale.mode.value !== "off") {
    throw refuse(
      `what comes through tailscale ${tailscale.mode.value} would look like the proxy's (${own})`,
      "zero config set gateway.tailscale.mode off",
    );
  }
}
