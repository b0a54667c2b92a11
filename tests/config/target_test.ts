import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
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
    localFingerprint?: string | string[];
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

Deno.test("the gateway of this machine may have several certificates while one replaces the other", () => {
  const [now, next] = ["ab".repeat(32), "cd".repeat(32)];

  const target = decide({
    config: { gateway: { tls: { enabled: true } } },
    localFingerprint: [now, next],
  });

  assertEquals([target.pins, target.way], [[now, next], `tls:${now}`]);
});

Deno.test("--tls-fingerprint stands above the configured pins", () => {
  const [a, b] = ["12".repeat(32), "34".repeat(32)];

  const typed = decide({ config: REMOTE, flags: { tlsFingerprint: `sha256:${a},${b}` } });
  const ssh = decide({ flags: { ssh: "me@vps.example", tlsFingerprint: a } });
  const dated = decide({
    config: {
      gateway: {
        mode: "remote",
        remote: {
          url: "wss://gw.example",
          tlsFingerprint: [a, { sha256: b, until: "2027-01-31" }],
        },
      },
    },
  });

  assertEquals([typed.pins, typed.way], [[a, b], `tls:${a}`]);
  // A variable of a script that is empty must not mean that any certificate will do.
  assertEquals(decide({ config: REMOTE, flags: { tlsFingerprint: "" } }).pins, [""]);
  assertEquals([ssh.url, ssh.pins, ssh.way], [
    "wss://127.0.0.1:18789",
    [a],
    "ssh:me@vps.example:18789",
  ]);
  assertEquals(dated.pins, [a, { sha256: b, until: "2027-01-31" }]);
  assertStringIncludes(explainTarget(dated), `TLS fingerprint: ${a}, ${b} until 2027-01-31`);
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

const REMOTES: Config = {
  gateway: {
    auth: { token: "local-secret" },
    remote: { url: "wss://gw.example", token: "remote-secret" },
  },
  remotes: {
    home: { transport: "ssh", sshTarget: "me@home.example", token: { env: "HOME_TOKEN" } },
    work: { url: "wss://work.example", password: "exec:pass show work" },
  },
};

/** Where a command goes with flags, environment and configuration that all have a wish. */
function order(flags: TargetFlags, env: Record<string, string>, gateway: Config["gateway"]) {
  const config = { ...REMOTES, gateway: { ...REMOTES.gateway, ...gateway } };
  const { url, urlSource, ssh } = decide({ flags, env, config });
  return [ssh?.target ?? url, urlSource];
}

Deno.test("flags, ZERO_GATEWAY_URL, ZERO_REMOTE and remote mode choose the gateway in this order", () => {
  const env = { ZERO_GATEWAY_URL: "wss://env.example", ZERO_REMOTE: "work" };
  const { ZERO_REMOTE } = env;
  const named: Config["gateway"] = { mode: "remote", remote: { name: "home" } };
  const remote: Config["gateway"] = { mode: "remote" };

  const table = [
    order({ url: "ws://127.0.0.1:1" }, env, named),
    order({ port: 2 }, env, named),
    order({ ssh: "me@else.example" }, env, named),
    order({ remote: "work" }, env, named),
    order({ remote: "local" }, env, named),
    order({}, env, named),
    order({}, { ZERO_REMOTE }, named),
    order({}, { ZERO_REMOTE: "local" }, named),
    order({}, { ZERO_REMOTE: " " }, named),
    order({}, {}, remote),
    order({}, {}, {}),
  ];

  assertEquals(table, [
    ["ws://127.0.0.1:1", "cli --url"],
    ["ws://127.0.0.1:2", "cli --port"],
    ["me@else.example", "cli --ssh"],
    ["wss://work.example", "cli --remote"],
    ["ws://127.0.0.1:18789", "local loopback"],
    ["wss://env.example", "env ZERO_GATEWAY_URL"],
    ["wss://work.example", "env ZERO_REMOTE"],
    ["ws://127.0.0.1:18789", "local loopback"],
    ["me@home.example", "config gateway.remote.name"],
    ["wss://gw.example", "config gateway.remote.url"],
    ["ws://127.0.0.1:18789", "local loopback"],
  ]);
});

Deno.test("a named remote sends its own secrets, then those of the environment, never another's", () => {
  const env = { ZERO_GATEWAY_TOKEN: "from-env" };

  const home = decide({ flags: { remote: "home" }, env, config: REMOTES });
  const work = decide({ flags: { remote: "work" }, env, config: REMOTES });
  const typed = decide({ flags: { remote: "work", token: "env:TYPED" }, env, config: REMOTES });

  assertEquals(essence(home).slice(2), [
    { env: "HOME_TOKEN" },
    "config remotes.home.token",
    undefined,
    undefined,
  ]);
  assertEquals(essence(work).slice(2), [
    "from-env",
    "env ZERO_GATEWAY_TOKEN",
    { exec: ["pass", "show", "work"] },
    "config remotes.work.password",
  ]);
  // What was typed is the secret itself, whatever it looks like.
  assertEquals(essence(typed).slice(2), ["env:TYPED", "flag --token", undefined, undefined]);
});

Deno.test("a remote that is not configured is a usage error, from the environment a problem", () => {
  const error = assertThrows(
    () => decide({ flags: { remote: "hom" }, config: REMOTES }),
    UsageError,
    'Cannot use the remote "hom" (cli --remote): it is not configured',
  );
  const fromEnv = decide({ env: { ZERO_REMOTE: "constructor" }, config: REMOTES });

  assertEquals(error.hint, "One of: home, work, local");
  assertEquals([fromEnv.problem?.code, fromEnv.way, fromEnv.token], [
    "REMOTE_UNKNOWN",
    undefined,
    undefined,
  ]);
  assertEquals(
    decide({ flags: { remote: "home" }, valid: false }).problem?.code,
    "CONFIG_INVALID",
  );
});

Deno.test("a remote behind ssh is dialled at its tunnel and known by the way to it", () => {
  const ssh = (remote: object) =>
    decide({ config: { gateway: { mode: "remote", remote: { transport: "ssh", ...remote } } } });
  const pin = "ab".repeat(32);

  const plain = ssh({ sshTarget: "me@vps" });
  const full = ssh({
    sshTarget: "vps",
    sshIdentity: "~/.ssh/zero",
    remotePort: 4711,
    sshHostKeyPolicy: "accept-new",
    url: "ws://127.0.0.1:19000",
  });
  const inferred = ssh({ url: "wss://gw.example" });
  const pinned = ssh({ sshTarget: "vps", tlsFingerprint: pin });
  const unsaid = decide({
    config: { gateway: { mode: "remote", remote: { sshTarget: "me@vps" } } },
  });

  assertEquals(
    [plain.url, plain.urlSource, plain.way, plain.isRemote],
    ["ws://127.0.0.1:18789", "config gateway.remote.sshTarget", "ssh:me@vps:18789", true],
  );
  assertEquals(plain.ssh, {
    name: "default",
    target: "me@vps",
    identity: undefined,
    remotePort: 18_789,
    acceptNew: false,
    isKept: true,
  });
  assertEquals(full.ssh, {
    name: "default",
    target: "vps",
    identity: "~/.ssh/zero",
    remotePort: 4711,
    localPort: 19_000,
    acceptNew: true,
    isKept: true,
  });
  assertEquals([full.url, full.way], ["ws://127.0.0.1:19000", "ssh:vps:4711"]);
  assertEquals([inferred.ssh?.target, inferred.url], ["gw.example", "ws://127.0.0.1:18789"]);
  assertEquals([pinned.url, pinned.pins, pinned.way], [
    "wss://127.0.0.1:18789",
    [pin],
    "ssh:vps:18789",
  ]);
  assertEquals(unsaid.ssh?.target, "me@vps");
});

Deno.test("--ssh takes the secrets of a remote only when it is that very machine and port", () => {
  const env = { HOME_TOKEN: "never read here" };
  const to = (flags: TargetFlags) => {
    const { token, tokenSource, way, ssh } = decide({ flags, env, config: REMOTES });
    return [token, tokenSource, way, ssh?.isKept];
  };

  assertEquals(to({ ssh: "me@home.example" }), [
    { env: "HOME_TOKEN" },
    "config remotes.home.token",
    "ssh:me@home.example:18789",
    false,
  ]);
  for (
    const flags of [
      { ssh: "home.example" },
      { ssh: "me@home.example", remotePort: 4711 },
      { ssh: "me@home.example.evil" },
      { ssh: "gw.example" },
    ]
  ) assertEquals(to(flags).slice(0, 2), [undefined, undefined], flags.ssh);
});

Deno.test("a --ssh that ssh would take for an option or for two words is refused", () => {
  for (const ssh of ["-oProxyCommand=x", "a b", "a\nb", "", "ssh -v"]) {
    assertThrows(() => decide({ flags: { ssh, token: "t" } }), UsageError, "Cannot use --ssh");
  }
  assertEquals(decide({ flags: { ssh: "ssh me@vps" } }).ssh?.target, "me@vps");
});

Deno.test("--url of a remote behind ssh dials that address and opens no tunnel", () => {
  const url = "ws://127.0.0.1:18789";
  const config: Config = {
    gateway: { mode: "remote", remote: { transport: "ssh", sshTarget: "vps", url, token: "r" } },
  };

  const target = decide({ flags: { url }, config });

  assertEquals([target.ssh, target.token, target.urlSource], [undefined, "r", "cli --url"]);
});
