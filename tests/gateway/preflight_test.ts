import { assert, assertEquals, assertThrows } from "@std/assert";
import type { Config } from "../../config/schema.ts";
import { type GatewayFlags, gatewaySettings } from "../../config/settings.ts";
import { refuseUnsafeStart, StartRefusal } from "../../gateway/preflight.ts";

interface Start {
  gateway?: Config["gateway"];
  flags?: GatewayFlags;
  env?: Record<string, string>;
  host?: string;
}

function start({ gateway, flags = {}, env = {}, host = "127.0.0.1" }: Start) {
  const config: Config = gateway ? { gateway } : {};
  const settings = gatewaySettings({ flags, env, config });
  refuseUnsafeStart(config, settings, { host, ownAddresses: ["10.0.0.7"] });
}

const PROOF = "a-proof-of-the-proxy-that-nobody-guesses";

/** A gateway that believes its proxy, with changes. */
function behind(
  trustedProxies: string[],
  trustedProxy: Record<string, unknown> = {},
  rest: Record<string, unknown> = {},
): Start {
  const auth = {
    mode: "trusted-proxy",
    trustedProxy: { userHeader: "X-Forwarded-User", allowUsers: ["ada"], ...trustedProxy },
  };
  return { gateway: { trustedProxies, auth, ...rest } as Start["gateway"] };
}

Deno.test("what is safe may start", () => {
  const starts: Start[] = [
    {},
    { gateway: { mode: "local" } },
    { host: "::1" },
    { gateway: { auth: { mode: "none" } } },
    { flags: { auth: "none" } },
    { gateway: { auth: { mode: "password", password: "p" } } },
    { gateway: { auth: { mode: "password" } }, env: { ZERO_GATEWAY_PASSWORD: "p" } },
    { gateway: { auth: { token: "t" } }, host: "0.0.0.0" },
    { env: { ZERO_GATEWAY_TOKEN: "t" }, host: "10.0.0.5" },
    { flags: { token: "t" }, host: "100.64.0.1" },
    { flags: { password: "p" }, host: "0.0.0.0" },
    { gateway: { trustedProxies: ["10.0.0.1"] } },
    { gateway: { tailscale: { mode: "serve" } } },
    { gateway: { tailscale: { mode: "funnel" }, auth: { password: "p" } } },
    { gateway: { bind: "tailnet", auth: { token: "t" } } },
    behind(["10.0.0.5"]),
    { ...behind(["10.0.0.5"]), host: "0.0.0.0" },
    behind(["10.0.0.5"], { allowUsers: ["*"] }),
    behind(["10.0.0.5"], {}, { tailscale: { mode: "serve" } }),
    behind(["127.0.0.1"], { requiredHeaders: { "X-Proxy-Secret": PROOF, "X-Other": true } }),
    { gateway: { auth: { trustedProxy: { userHeader: "X-Forwarded-User" } } } },
  ];

  for (const one of starts) start(one);
});

Deno.test("what is unsafe is refused with what stands in the way and what mends it", () => {
  const noAuth = (host: string) =>
    `refusing to bind gateway to ${host}:18789 without auth ` +
    "(set gateway.auth.token or ZERO_GATEWAY_TOKEN, or pass --token)";
  const rows: [Start, string, string][] = [
    [
      { gateway: { mode: "remote" } },
      "Gateway start blocked: set gateway.mode=local (current: remote)",
      "zero config set gateway.mode local",
    ],
    [
      { gateway: { bind: "tailnet" } },
      noAuth("tailnet"),
      "zero config set gateway.auth.token",
    ],
    [
      { gateway: { bind: "tailnet", tailscale: { mode: "serve" }, auth: { token: "t" } } },
      "tailscale serve needs gateway.bind=loopback (current: tailnet)",
      "zero config set gateway.bind loopback",
    ],
    [{ gateway: { auth: { mode: "password" } } }, "there is no password", "ZERO_GATEWAY_PASSWORD"],
    [{ flags: { auth: "password" } }, "there is no password", "ZERO_GATEWAY_PASSWORD"],
    [
      { gateway: { tailscale: { mode: "funnel" } } },
      "needs gateway.auth.mode=password",
      "zero config set gateway.auth.mode password",
    ],
    [
      { gateway: { tailscale: { mode: "funnel" }, auth: { token: "t" } } },
      "needs gateway.auth.mode=password",
      "zero config set gateway.auth.mode password",
    ],
    [
      { gateway: { tailscale: { mode: "serve" }, auth: { token: "t" } }, host: "0.0.0.0" },
      "tailscale serve needs gateway.bind=loopback (current: 0.0.0.0)",
      "zero config set gateway.bind loopback",
    ],
    [
      { flags: { tailscale: "funnel", password: "p" }, host: "10.0.0.5" },
      "tailscale funnel needs gateway.bind=loopback (current: 10.0.0.5)",
      "zero config set gateway.bind loopback",
    ],
    [{ host: "0.0.0.0" }, noAuth("0.0.0.0"), "zero config set gateway.auth.token"],
    [{ host: "10.0.0.5" }, noAuth("10.0.0.5"), "zero config set gateway.auth.token"],
    [{ host: "::" }, noAuth("::"), "zero config set gateway.auth.token"],
    [
      { gateway: { auth: { mode: "none" } }, host: "0.0.0.0" },
      noAuth("0.0.0.0"),
      "zero config set gateway.auth.token",
    ],
    [
      { flags: { auth: "none", token: "t" }, host: "0.0.0.0" },
      noAuth("0.0.0.0"),
      "zero config set gateway.auth.token",
    ],
    [
      { gateway: { auth: { mode: "none" }, tailscale: { mode: "serve" } } },
      "gateway.auth.mode=none cannot stand beside Tailscale",
      "zero config set gateway.auth.mode token",
    ],
    [
      { gateway: { auth: { mode: "none" }, trustedProxies: ["127.0.0.1"] } },
      "gateway.auth.mode=none cannot stand beside gateway.trustedProxies",
      "zero config set gateway.auth.mode token",
    ],
    [
      { ...behind([]), flags: { auth: "none" } },
      "gateway.auth.mode=none cannot stand beside gateway.auth.trustedProxy",
      "zero config set gateway.auth.mode token",
    ],
    [
      { flags: { auth: "trusted-proxy" } },
      "gateway.auth.trustedProxy.userHeader is not set",
      "zero config set gateway.auth.trustedProxy.userHeader",
    ],
    [behind([]), "gateway.trustedProxies is empty", "zero config set gateway.trustedProxies"],
    ...[undefined, []].map((allowUsers): [Start, string, string] => [
      behind(["10.0.0.5"], { allowUsers }),
      "gateway.auth.trustedProxy.allowUsers names nobody",
      "zero config set gateway.auth.trustedProxy.allowUsers",
    ]),
    [
      behind(["10.0.0.5"], { allowUsers: ["ada", "*"] }),
      'gateway.auth.trustedProxy.allowUsers holds "*" beside names',
      "zero config set gateway.auth.trustedProxy.allowUsers",
    ],
    ...["127.0.0.1", "::1", "127.0.0.0/8", "0.0.0.0/0", "10.0.0.7", "10.0.0.0/24"].map(
      (own): [Start, string, string] => [
        behind(["10.0.1.5", own]),
        `gateway.trustedProxies holds this machine (${own}): any program on it could name any user`,
        "gateway.auth.trustedProxy.requiredHeaders",
      ],
    ),
    ...[["X-Proxy-Secret"], { "X-Proxy-Secret": true }, { "X-Proxy-Secret": "too short" }].map(
      (requiredHeaders): [Start, string, string] => [
        behind(["127.0.0.1"], { requiredHeaders }),
        "any program on it could name any user",
        "a secret of 20 characters or more",
      ],
    ),
    [
      behind(
        ["127.0.0.1"],
        { requiredHeaders: { "X-Proxy-Secret": PROOF } },
        { tailscale: { mode: "serve" } },
      ),
      "what comes through tailscale serve would look like the proxy's (127.0.0.1)",
      "zero config set gateway.tailscale.mode off",
    ],
  ];

  for (const [one, message, fix] of rows) {
    const refusal = assertThrows(() => start(one), StartRefusal, message) as StartRefusal;
    assert(refusal.fix.includes(fix), `${JSON.stringify(one)}: ${refusal.fix}`);
  }
});

Deno.test("the port of a refusal is the one that was asked for", () => {
  const refusal = assertThrows(
    () => start({ flags: { port: 4_711 }, host: "0.0.0.0" }),
    StartRefusal,
  ) as StartRefusal;

  assertEquals(refusal.message.includes("0.0.0.0:4711"), true);
});
