import { assert, assertEquals, assertThrows } from "@std/assert";
import { ConfigError } from "../../config/load.ts";
import type { Config } from "../../config/schema.ts";
import {
  explainKey,
  type GatewayFlags,
  gatewaySettings,
  OVERRIDES,
  sharedMode,
} from "../../config/settings.ts";

type Env = Record<string, string>;

function settings(config: Config = {}, env: Env = {}, flags: GatewayFlags = {}) {
  return gatewaySettings({ config, env, flags });
}

Deno.test("without anything said, a gateway runs on loopback with the token it makes", () => {
  const { port, bind, auth, tailscale, controlUi, tls, reload, warnings, ...rest } = settings();

  assertEquals(port, { value: 18789, source: "default" });
  assertEquals(bind, { value: "loopback", source: "default" });
  assertEquals(auth, {
    mode: { value: "token", source: "default" },
    token: { value: undefined, source: "unset" },
    password: { value: undefined, source: "unset" },
    trustedProxy: {
      userHeader: { value: undefined, source: "unset" },
      requiredHeaders: { value: undefined, source: "unset" },
      allowUsers: { value: undefined, source: "unset" },
      scopes: { value: undefined, source: "unset" },
    },
    allowTailscale: { value: false, source: "derived from gateway.tailscale.mode" },
    silentPairing: { value: true, source: "default" },
    rateLimit: {
      value: { maxAttempts: 10, windowMs: 60_000, lockoutMs: 300_000 },
      source: "default",
    },
  });
  assertEquals(tailscale.mode.value, "off");
  assertEquals([controlUi.enabled.value, controlUi.basePath.value], [true, ""]);
  assertEquals([tls.enabled.value, tls.certPath.value], [false, undefined]);
  assertEquals([reload.mode.value, reload.debounceMs.value], ["hybrid", 300]);
  assertEquals(rest.trustedProxies.value, []);
  assertEquals(rest.allowedHosts.value, []);
  assertEquals(rest.allowedOrigins.value, []);
  assertEquals(rest.commands.restart.value, false);
  assertEquals(rest.logging.level.value, "info");
  assertEquals(warnings, []);
});

Deno.test("flag wins over environment, environment over file, file over default", async (t) => {
  for (const { key, flag, env } of OVERRIDES) {
    await t.step(key, () => {
      const values: Record<string, unknown[]> = {
        "gateway.port": ["1", "2", 3],
        "gateway.bind": ["lan", , "tailnet"],
        "gateway.auth.mode": ["password", , "none"],
        "gateway.tailscale.mode": ["serve", , "funnel"],
        "gateway.tailscale.resetOnExit": [true, , false],
      };
      const [inFlag, inEnv, inFile] = values[key] ?? ["one", "two", "three"];
      const config = key.split(".").reduceRight<unknown>(
        (inner, name) => ({ [name]: inner }),
        inFile,
      );
      const reading = { config: config as Config };
      const flags = { [flag!]: inFlag };
      const variables: Env = env ? { [env]: String(inEnv) } : {};
      const isNumber = key === "gateway.port";

      assertEquals(explainKey(key, { flags, env: variables, reading }), {
        value: isNumber ? Number(inFlag) : inFlag,
        source: `flag --${flag === "tailscaleResetOnExit" ? "tailscale-reset-on-exit" : flag}`,
      });
      if (env) {
        assertEquals(explainKey(key, { env: variables, reading }), {
          value: isNumber ? Number(inEnv) : inEnv,
          source: `env ${env}`,
        });
      }
      assertEquals(explainKey(key, { env: {}, reading }), { value: inFile, source: "file" });
    });
  }
});

Deno.test("the mode follows from the secrets where it is not set", () => {
  const mode = (config: Config, env: Env = {}, flags: GatewayFlags = {}) =>
    settings(config, env, flags).auth.mode;
  const withAuth = (auth: NonNullable<Config["gateway"]>["auth"]): Config => ({
    gateway: { auth },
  });

  assertEquals(mode(withAuth({ token: "t" })), {
    value: "token",
    source: "derived from gateway.auth.token",
  });
  assertEquals(mode(withAuth({ token: "t", password: "p" })), {
    value: "password",
    source: "derived from gateway.auth.password",
  });
  assertEquals(mode({}, { ZERO_GATEWAY_PASSWORD: "p" }).value, "password");
  assertEquals(mode(withAuth({ password: "p", mode: "token" })), {
    value: "token",
    source: "file",
  });
  assertEquals(mode(withAuth({ mode: "token" }), {}, { auth: "none" }), {
    value: "none",
    source: "flag --auth",
  });
});

Deno.test("Tailscale's identity counts when serving, unless a password is asked for", () => {
  const allow = (config: Config, flags: GatewayFlags = {}) =>
    settings(config, {}, flags).auth.allowTailscale.value;

  assertEquals(allow({}, { tailscale: "serve" }), true);
  assertEquals(allow({}, { tailscale: "serve", password: "p" }), false);
  assertEquals(allow({}, { tailscale: "funnel" }), false);
  assertEquals(
    allow({ gateway: { auth: { allowTailscale: false } } }, { tailscale: "serve" }),
    false,
  );
  assertEquals(allow({ gateway: { auth: { allowTailscale: true } } }), true);
});

Deno.test("a secret on the command line that has no effect is told of", () => {
  const config: Config = { gateway: { auth: { password: "in the file" } } };

  const { warnings } = settings(config, {}, { token: "t0ken" });

  assertEquals(warnings, [
    "--token has no effect: gateway.auth.mode is password " +
    "(derived from gateway.auth.password); add --auth token",
  ]);
  assertEquals(settings(config, {}, { token: "t", auth: "token" }).warnings, []);
});

Deno.test("beside a proxy that names users a secret counts, of two the password", () => {
  const flags = { auth: "trusted-proxy", token: "t" };
  const told = (config: Config, given: GatewayFlags = flags) =>
    settings(config, {}, given).warnings;

  assertEquals(told({}), []);
  assertEquals(told({}, { ...flags, password: "p" }), [
    "--token has no effect: gateway.auth.mode is trusted-proxy (flag --auth); add --auth token",
  ]);
  assertEquals(told({ gateway: { auth: { trustedProxy: { userHeader: "X" } } } }, {}), [
    "gateway.auth.trustedProxy has no effect: gateway.auth.mode is token (default)",
  ]);
  assertEquals(sharedMode("trusted-proxy", undefined), "token");
  assertEquals(sharedMode("trusted-proxy", "p"), "password");
  assertEquals(sharedMode("token", "p"), "token");
});

Deno.test("a proxy that names users is the one way in: Tailscale is another only where it is named", () => {
  const allow = (auth: NonNullable<Config["gateway"]>["auth"]) =>
    settings({ gateway: { tailscale: { mode: "serve" }, auth } }).auth.allowTailscale.value;

  assertEquals(allow({}), true);
  assertEquals(allow({ mode: "trusted-proxy" }), false);
  assertEquals(allow({ mode: "trusted-proxy", allowTailscale: true }), true);
});

Deno.test("a flag or variable that does not fit is refused by name, without its value", () => {
  const cases: [Env, GatewayFlags, string][] = [
    [{ ZERO_GATEWAY_PORT: "moon" }, {}, "env ZERO_GATEWAY_PORT: gateway.port: must be integer"],
    [{ ZERO_GATEWAY_PORT: "0" }, {}, "env ZERO_GATEWAY_PORT: gateway.port: must be >= 1"],
    [{}, { port: "70000" }, "flag --port: gateway.port: must be <= 65535"],
    [{}, { bind: "moon" }, "flag --bind: gateway.bind: must be equal to one of the allowed"],
    [{}, { auth: "moon" }, "flag --auth: gateway.auth.mode: must be equal to one of the allowed"],
    [{}, { token: "" }, "flag --token: gateway.auth.token: must NOT have fewer than 1"],
  ];
  for (const [env, flags, message] of cases) {
    const error: ConfigError = assertThrows(() => settings({}, env, flags), ConfigError);
    assert(error.message.startsWith(message), error.message);
    assert(!error.message.includes("moon"), error.message);
  }
});

Deno.test("~ in the path of a file is the home directory", () => {
  const config: Config = { logging: { file: "~/zero.log" }, gateway: { tls: { caPath: "ca" } } };

  const { logging, tls } = settings(config, { HOME: "/home/me" });

  assertEquals(logging.file, { value: "/home/me/zero.log", source: "file" });
  assertEquals(tls.caPath.value, "ca");
  assertThrows(() => settings(config), ConfigError, "Cannot use logging.file");
});

Deno.test("a variable that is blank is not set", () => {
  const env = { ZERO_GATEWAY_PORT: " ", ZERO_GATEWAY_TOKEN: "" };

  assertEquals(settings({}, env).port.source, "default");
  assertEquals(settings({}, env).auth.token.source, "unset");
});

Deno.test("the base path has a slash in front and none behind", () => {
  const cases = [["", ""], ["/", ""], ["ui", "/ui"], ["/a/b/", "/a/b"], [" //a// ", "/a"]];
  for (const [basePath, said] of cases) {
    assertEquals(settings({ gateway: { controlUi: { basePath } } }).controlUi.basePath, {
      value: said,
      source: "file",
    });
  }
});

Deno.test("a key that holds others is explained with all of them", () => {
  const env = { ZERO_GATEWAY_TOKEN: "t" };
  const config: Config = { gateway: { auth: { rateLimit: { maxAttempts: 3 } } } };

  assertEquals(explainKey("gateway.auth", { env, reading: { config } }), {
    value: {
      mode: "token",
      token: "t",
      allowTailscale: false,
      silentPairing: true,
      rateLimit: { maxAttempts: 3, windowMs: 60_000, lockoutMs: 300_000 },
    },
    source: "mixed",
  });
  assertEquals(explainKey("gateway.reload", { env, reading: { config } }), {
    value: { mode: "hybrid", debounceMs: 300 },
    source: "default",
  });
});

Deno.test("keys the schema does not name are read from the file, and inherited names are not", () => {
  const reading = {
    config: { gateway: { someday: [{ a: 1 }] }, remotes: { "a.b": { url: "ws://a" } } } as Config,
  };
  const said = (key: string) => explainKey(key, { env: {}, reading });

  assertEquals(said("gateway.someday[0].a"), { value: 1, source: "file" });
  assertEquals(said('remotes["a.b"].url'), { value: "ws://a", source: "file" });
  assertEquals(said('remotes["a.b"].remotePort'), { value: 18789, source: "default" });
  assertEquals(said("gateway.constructor"), { value: undefined, source: "unset" });
  assertEquals(said("no.such.key"), { value: undefined, source: "unset" });
  assertThrows(() => said("a..b"), ConfigError, "not a key");
});
