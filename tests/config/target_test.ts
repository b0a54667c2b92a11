import { assertEquals, assertThrows } from "@std/assert";
import { UsageError } from "../../config/command.ts";
import type { Config } from "../../config/schema.ts";
import {
  credentialLine,
  explainTarget,
  isLoopbackUrl,
  localTarget,
  resolveTarget,
  type Target,
  type TargetFlags,
  targetLines,
} from "../../config/target.ts";

const MADE = { token: "made-secret", file: "/home/me/.zero/gateway.token" };
const REMOTE: Config = {
  gateway: {
    mode: "remote",
    remote: {
      url: "wss://gw.example:443/",
      token: "remote-secret",
      tlsFingerprint: "SHA256:" + "AB".repeat(32),
    },
    auth: { token: "local-secret", password: "local-password" },
  },
};

function decide(
  {
    flags = {},
    env = {},
    config = {},
    valid = true,
    made = MADE,
    ...rest
  }: {
    flags?: TargetFlags;
    env?: Record<string, string>;
    config?: Config;
    valid?: boolean;
    made?: typeof MADE | null;
    tailnetAddress?(): string | undefined;
    localFingerprint?: string;
  } = {},
): Target {
  const reading = {
    path: "/home/me/.zero/zero.json",
    valid,
    config,
    issues: valid ? [] : [{ path: "gateway", message: "must be object", file: "zero.json" }],
  };
  return resolveTarget({ flags, env, reading, made: made ?? undefined, ...rest });
}

/** What decides: address, why, and which secret from where. */
function essence({ url, urlSource, token, tokenSource, password, passwordSource }: Target) {
  return [url, urlSource, token, tokenSource, password, passwordSource];
}

Deno.test("without any configuration the target is the own gateway with the token it made", () => {
  const target = decide();

  assertEquals(essence(target), [
    "ws://127.0.0.1:18789",
    "local loopback",
    "made-secret",
    "file /home/me/.zero/gateway.token",
    undefined,
    undefined,
  ]);
  assertEquals(
    [target.isRemote, target.bind, target.way],
    [false, "loopback", "ws://127.0.0.1:18789"],
  );
});

Deno.test("a local secret is taken from flag, environment, configuration and the made token, in this order", () => {
  const config: Config = { gateway: { auth: { token: "from-config" } } };
  const env = { ZERO_GATEWAY_TOKEN: "from-env" };

  const sources = [
    decide({ flags: { token: "from-flag" }, env, config }),
    decide({ env, config }),
    decide({ config }),
    decide({ env: { ZERO_GATEWAY_TOKEN: "  " } }),
    decide({ made: null }),
  ].map(({ token, tokenSource }) => [token, tokenSource]);

  assertEquals(sources, [
    ["from-flag", "flag --token"],
    ["from-env", "env ZERO_GATEWAY_TOKEN"],
    ["from-config", "config gateway.auth.token"],
    ["made-secret", "file /home/me/.zero/gateway.token"],
    [undefined, undefined],
  ]);
});

Deno.test("a typed credential goes alone, whatever else is configured", () => {
  const env = { ZERO_GATEWAY_TOKEN: "from-env", ZERO_GATEWAY_PASSWORD: "env-password" };

  const target = decide({ flags: { password: "typed", passwordSource: "prompt" }, env });

  assertEquals(essence(target).slice(2), [undefined, undefined, "typed", "prompt"]);
});

Deno.test("the made token is for gateways in mode token that have no other secret", () => {
  const tokens = [
    { gateway: { auth: { mode: "password", password: "p" } } } as Config,
    { gateway: { auth: { mode: "none" } } } as Config,
    { gateway: { auth: { password: "p" } } } as Config,
    { gateway: { auth: { mode: "token" } } } as Config,
  ].map((config) => decide({ config }).token);

  assertEquals(tokens, [undefined, undefined, undefined, "made-secret"]);
});

Deno.test("the local port comes from environment, configuration and default, in this order", () => {
  const config: Config = { gateway: { port: 4000 } };

  assertEquals(decide({ env: { ZERO_GATEWAY_PORT: "5000" }, config }).url, "ws://127.0.0.1:5000");
  assertEquals(decide({ config }).url, "ws://127.0.0.1:4000");
  assertThrows(() => decide({ env: { ZERO_GATEWAY_PORT: "many" } }));
});

Deno.test("the local address follows bind and TLS", () => {
  const tailnet: Config = { gateway: { bind: "tailnet" } };
  const custom: Config = { gateway: { bind: "custom", customBindHost: "10.0.0.5" } };
  const tls: Config = { gateway: { tls: { enabled: true } } };

  const withTailnet = decide({ config: tailnet, tailnetAddress: () => "100.64.1.2" });
  const withoutTailnet = decide({ config: tailnet, tailnetAddress: () => undefined });
  const withTls = decide({ config: tls, localFingerprint: "AB:".repeat(32) });

  assertEquals(essence(withTailnet).slice(0, 2), [
    "ws://100.64.1.2:18789",
    "local tailnet 100.64.1.2",
  ]);
  assertEquals(withTailnet.bind, "tailnet");
  assertEquals(withoutTailnet.urlSource, "local loopback");
  assertEquals(decide({ config: custom }).url, "ws://10.0.0.5:18789");
  assertEquals(
    [withTls.url, withTls.pins, withTls.way],
    ["wss://127.0.0.1:18789", ["ab".repeat(32)], `tls:${"ab".repeat(32)}`],
  );
});

Deno.test("remote mode sends its own secret and no local one", () => {
  const target = decide({ config: REMOTE });
  const bare = decide({
    config: { gateway: { ...REMOTE.gateway, remote: { url: "wss://gw.example" } } },
  });

  assertEquals(essence(target), [
    "wss://gw.example:443/",
    "config gateway.remote.url",
    "remote-secret",
    "config gateway.remote.token",
    undefined,
    undefined,
  ]);
  assertEquals([target.isRemote, target.bind], [true, undefined]);
  assertEquals(target.pins, ["ab".repeat(32)]);
  assertEquals(essence(bare).slice(2), [undefined, undefined, undefined, undefined]);
});

Deno.test("in remote mode the configuration stands above the environment", () => {
  const env = { ZERO_GATEWAY_TOKEN: "from-env", ZERO_GATEWAY_PASSWORD: "env-password" };

  const { tokenSource, passwordSource } = decide({ env, config: REMOTE });

  assertEquals(
    [tokenSource, passwordSource],
    ["config gateway.remote.token", "env ZERO_GATEWAY_PASSWORD"],
  );
});

Deno.test("the users' sample of remote mode leads to its gateway although that is on loopback", () => {
  const target = decide({
    config: {
      gateway: { mode: "remote", remote: { url: "ws://127.0.0.1:18789", token: "seu-token" } },
    },
  });

  assertEquals(
    [target.urlSource, target.token, target.isRemote],
    ["config gateway.remote.url", "seu-token", true],
  );
});

Deno.test("remote mode without an address leads nowhere, and shows what would be local", () => {
  const target = decide({ config: { gateway: { mode: "remote" } } });

  assertEquals(
    target.problem?.message,
    [
      "gateway remote mode misconfigured: gateway.remote.url missing",
      "Config: /home/me/.zero/zero.json",
      "Fix: set gateway.remote.url, or set gateway.mode=local.",
    ].join("\n"),
  );
  assertEquals(essence(target), [
    "ws://127.0.0.1:18789",
    "missing gateway.remote.url (fallback local)",
    undefined,
    undefined,
    undefined,
    undefined,
  ]);
});

Deno.test("--url to another host takes no secret but a typed one", () => {
  const env = { ZERO_GATEWAY_TOKEN: "from-env" };
  const flags = { url: "wss://elsewhere.example" };

  const without = decide({ flags, env, config: REMOTE });
  const typed = decide({ flags: { ...flags, token: "typed" }, env, config: REMOTE });

  assertEquals(
    without.problem?.message,
    "gateway url override requires explicit credentials\nFix: pass --token or --password",
  );
  assertEquals(without.token, undefined);
  assertEquals(essence(typed), [
    "wss://elsewhere.example",
    "cli --url",
    "typed",
    "flag --token",
    undefined,
    undefined,
  ]);
  assertEquals([typed.problem, typed.isRemote], [undefined, true]);
});

Deno.test("--url of a loopback host takes the local secret, of the configured remote the remote one", () => {
  const loopback = decide({ flags: { url: "ws://localhost:4711" }, config: REMOTE });
  const remote = decide({ flags: { url: "wss://gw.example" }, config: REMOTE });

  assertEquals(
    [loopback.token, loopback.tokenSource, loopback.isRemote],
    ["local-secret", "config gateway.auth.token", false],
  );
  assertEquals([remote.token, remote.urlSource, remote.pins.length], [
    "remote-secret",
    "cli --url",
    1,
  ]);
});

Deno.test("a blank --url is no --url", () => {
  assertEquals(decide({ flags: { url: "  " } }).urlSource, "local loopback");
});

Deno.test("--port is the gateway on this machine, also in remote mode", () => {
  const target = decide({ flags: { port: 4711 }, config: REMOTE });

  assertEquals(essence(target).slice(0, 4), [
    "ws://127.0.0.1:4711",
    "cli --port",
    "local-secret",
    "config gateway.auth.token",
  ]);
});

Deno.test("ZERO_GATEWAY_URL takes secrets of the environment only, and stands above the configuration", () => {
  const env = { ZERO_GATEWAY_URL: "wss://from-env.example" };

  const bare = decide({ env, config: REMOTE });
  const withToken = decide({ env: { ...env, ZERO_GATEWAY_TOKEN: "from-env" }, config: REMOTE });
  const flagWins = decide({ flags: { port: 1 }, env, config: REMOTE });

  assertEquals(essence(bare).slice(0, 4), [
    "wss://from-env.example",
    "env ZERO_GATEWAY_URL",
    undefined,
    undefined,
  ]);
  assertEquals([bare.password, bare.isRemote], [undefined, true]);
  assertEquals(withToken.tokenSource, "env ZERO_GATEWAY_TOKEN");
  assertEquals(flagWins.urlSource, "cli --port");
});

Deno.test("an address with a secret in it, or of another kind, is refused without being quoted", () => {
  for (
    const url of [
      "http://127.0.0.1",
      "127.0.0.1:18789",
      "ws://h/?token=canary",
      "ws://canary:canary@h/",
      "wss://h/?password=canary",
    ]
  ) {
    const error = assertThrows(() => decide({ flags: { url, token: "t" } }), UsageError);
    assertEquals(error.message.includes("canary"), false);
    const fromEnv = decide({ env: { ZERO_GATEWAY_URL: url } });
    assertEquals(fromEnv.problem?.code, "URL_INVALID");
    assertEquals(JSON.stringify([fromEnv.url, fromEnv.problem?.message]).includes("canary"), false);
  }
});

Deno.test("a configuration with mistakes chooses no gateway, unless the command line does", () => {
  const broken = decide({ valid: false });
  const named = decide({ flags: { port: 1 }, valid: false });

  assertEquals(
    broken.problem?.message,
    "Cannot choose a gateway: zero.json: gateway: must be object",
  );
  assertEquals(named.problem, undefined);
});

Deno.test("localTarget is the own gateway even in remote mode", () => {
  const target = localTarget({
    flags: {},
    env: {},
    reading: { path: "/c", valid: true, config: REMOTE, issues: [] },
  });

  assertEquals(essence(target).slice(0, 3), [
    "ws://127.0.0.1:18789",
    "local loopback",
    "local-secret",
  ]);
});

Deno.test("an explained target tells sources and keeps secrets", () => {
  const target = decide({ config: { gateway: { auth: { token: "canary", password: "canary" } } } });
  const remote = decide({ config: REMOTE });

  assertEquals(explainTarget(target).split("\n"), [
    "Gateway target: ws://127.0.0.1:18789",
    "Source: local loopback",
    "Config: /home/me/.zero/zero.json",
    "Bind: loopback",
    "Credential: token from config gateway.auth.token, password from config gateway.auth.password",
  ]);
  assertEquals(explainTarget(remote).includes("secret"), false);
  assertEquals(targetLines(remote).length, 3);
  assertEquals(credentialLine(decide({ made: null })), "Credential: none configured");
});

Deno.test("a loopback URL is told by its literal host", () => {
  for (const url of ["ws://127.0.0.1", "ws://127.1:80", "ws://localhost:1", "wss://[::1]:2"]) {
    assertEquals(isLoopbackUrl(url), true, url);
  }
  for (
    const url of ["", "ws://127.0.0.1.nip.io", "ws://localhost.evil", "ws://10.0.0.1", "ws://[::2]"]
  ) {
    assertEquals(isLoopbackUrl(url), false, url);
  }
});
