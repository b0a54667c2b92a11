import { assert, assertEquals } from "@std/assert";
import { problems } from "../../rpc/shape.ts";
import {
  Config,
  configSchema,
  crossFieldIssues,
  defaultAt,
  defaults,
  formatKey,
  formatPin,
  isSecret,
  type KeyPath,
  normalizedFingerprint,
  parseKey,
  pinsIn,
  redact,
  REDACTED,
  schemaAt,
  sensitivePaths,
  uiHints,
} from "../../config/schema.ts";

Deno.test("the top level takes the keys of the specification and no other", () => {
  const names = "gateway agents models channels session tools browser nodeHost discovery " +
    "canvasHost hooks cron logging ui commands messages talk skills remotes identity";

  const { properties, additionalProperties } = configSchema();

  assertEquals(
    Object.keys(properties as object).sort(),
    [...names.split(" "), "$schema", "$include"].sort(),
  );
  assertEquals(additionalProperties, false);
  assertEquals(problems({ plugins: {} }, Config).map(({ unexpected }) => unexpected), ["plugins"]);
});

Deno.test("keys that are not known are kept inside gateway, discovery, browser and nodeHost", () => {
  for (const section of ["gateway", "discovery", "browser", "nodeHost"]) {
    assertEquals(problems({ [section]: { someday: { a: 1 } } }, Config), [], section);
  }
  assertEquals(problems({ gateway: { auth: { someday: 1 } } }, Config), []);
});

Deno.test("defaults come from the annotations and are themselves a valid configuration", () => {
  const all = defaults();

  assertEquals(problems(all, Config), []);
  assertEquals(all.gateway?.port, 18789);
  assertEquals(all.gateway?.auth, {
    silentPairing: true,
    rateLimit: { maxAttempts: 10, windowMs: 60_000, lockoutMs: 300_000 },
  });
  assertEquals(all.gateway?.mode, undefined);
  assertEquals(defaultAt(["gateway", "reload"]), { mode: "hybrid", debounceMs: 300 });
  assertEquals(defaultAt(["gateway", "auth", "token"]), undefined);
});

Deno.test("changing what defaults gave does not change the schema", () => {
  defaults().gateway!.allowedHosts!.push("changed");

  assertEquals(defaults().gateway?.allowedHosts, []);
});

Deno.test("every setting has a description of one line", () => {
  for (const [path, { help, label, group }] of Object.entries(uiHints())) {
    assert(help && !help.includes("\n") && help.length <= 100, path);
    assert(label && group, path);
  }
  assertEquals(uiHints()["gateway.auth.rateLimit.maxAttempts"], {
    label: "Max attempts",
    help: "Wrong secrets allowed within windowMs",
    group: "gateway",
    order: uiHints()["gateway.auth.rateLimit.maxAttempts"].order,
    placeholder: "10",
  });
  assertEquals(uiHints()["gateway.auth.token"].sensitive, true);
});

Deno.test("each secret of the schema is known to be one", () => {
  assertEquals(sensitivePaths(), [
    "gateway.auth.token",
    "gateway.auth.password",
    "gateway.auth.trustedProxy.requiredHeaders.*",
    "gateway.remote.token",
    "gateway.remote.password",
    "gateway.remote.edgeAuth.headers.*",
    "browser.controlToken",
    "models.providers.*.apiKey",
    "channels.telegram.botToken",
    "hooks.token",
    "talk.apiKey",
    "remotes.*.token",
    "remotes.*.password",
    "remotes.*.edgeAuth.headers.*",
  ]);
});

Deno.test("redact leaves no secret, wherever it stands, and changes nothing else", () => {
  const config = {
    gateway: {
      port: 1,
      auth: {
        mode: "token",
        token: "s1",
        rateLimit: { maxAttempts: 1 },
        trustedProxy: { requiredHeaders: { "X-Proxy": "s8" }, allowUsers: ["ada"] },
      },
      remote: { password: "s2", tlsFingerprint: "public" },
    },
    browser: { controlToken: "s3" },
    channels: { telegram: { botToken: "s4", allowFrom: [1] }, x: { list: [{ secret: ["s5"] }] } },
    models: { providers: { p: { apiKey: { exec: "s6" } } } },
    remotes: { home: { Token: "s7" } },
    ui: { password: null },
  };
  const before = structuredClone(config);

  const shown = redact(config);

  assertEquals(/s\d/.test(JSON.stringify(shown)), false);
  assertEquals(shown.gateway.auth.token, REDACTED);
  assertEquals(shown.gateway.remote.tlsFingerprint, "public");
  assertEquals(shown.gateway.auth.trustedProxy, {
    requiredHeaders: { "X-Proxy": REDACTED },
    allowUsers: ["ada"],
  });
  const names = { gateway: { auth: { trustedProxy: { requiredHeaders: ["X-Proxy"] } } } };
  assertEquals(redact(names), names);
  assertEquals(shown.channels.telegram.allowFrom, [1]);
  assertEquals(shown.ui.password, null);
  assertEquals(config, before);
});

Deno.test("redact of a part knows where the part stands", () => {
  assertEquals(redact("s1", ["browser", "controlToken"]), REDACTED);
  assertEquals(redact(["s1"], ["hooks", "token"]), REDACTED);
  assertEquals(redact("18789", ["gateway", "port"]), "18789");
  assertEquals(isSecret(["channels", "list", 0, "botToken", 3]), true);
});

Deno.test("keys are written as they are read", () => {
  const cases: [string, KeyPath][] = [
    ["gateway.bind", ["gateway", "bind"]],
    ["agents.list[0].id", ["agents", "list", 0, "id"]],
    ['remotes["my.host"].url', ["remotes", "my.host", "url"]],
    ['["a b"]["c\\"d"]', ["a b", 'c"d']],
    ['remotes[""]', ["remotes", ""]],
    ["a[0][1]", ["a", 0, 1]],
    ["$schema", ["$schema"]],
    ["channels.my-bot", ["channels", "my-bot"]],
  ];
  for (const [text, path] of cases) {
    assertEquals(formatKey(path), text);
    assertEquals(parseKey(text), path);
  }
});

Deno.test("what is not a key is not read as one", () => {
  for (
    const text of ["", " ", ".", "a.", ".a", "a..b", "a[", "a[x]", "a]", 'a["b]', "a b", "a.[0]"]
  ) {
    assertEquals(parseKey(text), undefined, JSON.stringify(text));
  }
});

Deno.test("the schema is found for entries of lists and maps too, not for inherited names", () => {
  assertEquals(schemaAt(["agents", "list", 3, "id"])?.type, "string");
  assertEquals(schemaAt(["remotes", "any", "remotePort"])?.default, 18789);
  assertEquals(schemaAt(["gateway", "nothing"]), undefined);
  assertEquals(schemaAt(["constructor"]), undefined);
});

Deno.test("rules over several keys", async (t) => {
  const pin = "0".repeat(64);
  const cases: [string, Config, string[]][] = [
    ["an empty configuration keeps them all", {}, []],
    ["the defaults keep them all", defaults(), []],
    ["custom needs a host", { gateway: { bind: "custom" } }, ["gateway.bind"]],
    ["custom with a host", { gateway: { bind: "custom", customBindHost: "10.0.0.1" } }, []],
    ["a certificate needs its key", { gateway: { tls: { certPath: "c" } } }, [
      "gateway.tls.certPath",
    ]],
    ["a key needs its certificate", { gateway: { tls: { keyPath: "k" } } }, [
      "gateway.tls.keyPath",
    ]],
    ["TLS needs a certificate from somewhere", {
      gateway: { tls: { enabled: true, autoGenerate: false } },
    }, ["gateway.tls.autoGenerate"]],
    ["a pin needs wss", { gateway: { remote: { url: "ws://a", tlsFingerprint: pin } } }, [
      "gateway.remote.tlsFingerprint",
    ]],
    ["a pin with wss", { gateway: { remote: { url: "WSS://a", tlsFingerprint: pin } } }, []],
    ["ssh needs a host", { gateway: { remote: { transport: "ssh" } } }, [
      "gateway.remote.transport",
    ]],
    ["named remotes too", { remotes: { "a.b": { transport: "ssh" } } }, [
      'remotes["a.b"].transport',
    ]],
    ["a name has to be one of remotes", {
      gateway: { remote: { name: "home" } },
      remotes: { work: { url: "wss://work.example" } },
    }, ["gateway.remote.name"]],
    ["local is no name for a remote", { remotes: { local: { url: "wss://work.example" } } }, [
      "remotes.local",
    ]],
    ["headers for a proxy need wss, and are not the WebSocket's own", {
      gateway: { remote: { url: "ws://10.0.0.1", edgeAuth: { headers: { "X-A": "a" } } } },
      remotes: {
        ssh: { transport: "ssh", sshTarget: "h", edgeAuth: { headers: { "X-A": "a" } } },
        own: { url: "wss://h", edgeAuth: { headers: { "Sec-WebSocket-Key": "a", "X-A": "b" } } },
      },
    }, [
      "gateway.remote.edgeAuth",
      "remotes.ssh.edgeAuth",
      "remotes.own.edgeAuth.headers.Sec-WebSocket-Key",
    ]],
    ["hooks need a token", { hooks: { enabled: true } }, ["hooks.enabled"]],
    ["hooks need a path of their own", { hooks: { path: "//" } }, ["hooks.path"]],
    ["a placeholder is no secret", { ui: { a: [REDACTED] } } as Config, ["ui.a[0]"]],
  ];
  for (const [name, config, paths] of cases) {
    await t.step(name, () => {
      const issues = crossFieldIssues(config);

      assertEquals(issues.map(({ path }) => formatKey(path)), paths);
      assert(issues.every(({ message, fix }) => message !== "" && fix !== ""));
    });
  }
});

Deno.test("addresses, origins, URLs and targets are checked", async (t) => {
  const remote = (key: string) => (value: unknown) => ({ gateway: { remote: { [key]: value } } });
  const cases: [string, (value: unknown) => unknown, unknown[], unknown[]][] = [
    [
      "customBindHost",
      (customBindHost) => ({ gateway: { customBindHost } }),
      ["0.0.0.0", "255.255.255.255"],
      ["256.1.1.1", "1.2.3", "01.2.3.4", "::1", "host", ""],
    ],
    [
      "trustedProxies",
      (one) => ({ gateway: { trustedProxies: [one] } }),
      ["10.0.0.1", "10.0.0.0/8", "::1", "fd00::/8", "::ffff:10.0.0.1"],
      ["10.0.0.0/33", "fd00::/129", "10.0.0.1/8/8", "proxy", "1:2", "10.0.0.1/"],
    ],
    [
      "trustedProxy.userHeader",
      (userHeader) => ({ gateway: { auth: { trustedProxy: { userHeader } } } }),
      ["X-Forwarded-User", "x_user", "Cf-Access-Authenticated-User-Email"],
      ["", "X Forwarded", "X-User:", "Host", "Origin", "Sec-WebSocket-Key", "X-Ü"],
    ],
    [
      "trustedProxy.requiredHeaders",
      (requiredHeaders) => ({ gateway: { auth: { trustedProxy: { requiredHeaders } } } }),
      [["X-A"], { "X-A": "value" }, { "X-A": true, "X-B": "value" }],
      [[], {}, "X-A", ["Host"], { "X-A": false }, { "X-A": "" }, { "X A": "value" }, { "X-A": 1 }],
    ],
    [
      "trustedProxy.scopes",
      (scopes) => ({ gateway: { auth: { trustedProxy: { scopes } } } }),
      [[], ["operator.read", "operator.admin"]],
      [["read"], "operator.read"],
    ],
    [
      "allowedHosts",
      (one) => ({ gateway: { allowedHosts: [one] } }),
      ["zero.example", "Zero", "a_b.example"],
      ["zero.example:80", "http://zero", "*.example", "-a", ""],
    ],
    [
      "allowedOrigins",
      (one) => ({ gateway: { controlUi: { allowedOrigins: [one] } } }),
      ["https://a.example", "http://localhost:5173", "https://a.example/", "https://A.example"],
      ["a.example", "https://a.example/x", "null", "*", "file:///x", "https://a.example:443"],
    ],
    [
      "remote.url",
      remote("url"),
      ["ws://127.0.0.1:1", "wss://a.example/base", "ws://[::1]:1"],
      ["http://a", "a.example:18789", "ws://", "ws://a:99999"],
    ],
    [
      "remote.tlsFingerprint",
      remote("tlsFingerprint"),
      [
        "ab".repeat(32),
        `sha256:${"AB:".repeat(31)}AB`,
        `SHA-256 ${"ab ".repeat(32)}`,
        ["ab".repeat(32), { sha256: "cd".repeat(32), until: "2027-01-31" }],
        { sha256: "ab".repeat(32), until: "2027-01-31T12:00:00Z" },
      ],
      [
        "ab".repeat(31),
        "ab".repeat(33),
        "sha256:",
        [],
        ["ab"],
        [{ sha256: "ab".repeat(32), until: "soon" }],
        [{ sha256: "ab".repeat(32), until: "2027-13-31" }],
        [{ until: "2027-01-31" }],
      ],
    ],
    [
      "remote.sshTarget",
      remote("sshTarget"),
      ["host", "me@host:22", "alias.with.dots"],
      ["-oProxyCommand=x", "a b", "a\nb", "a\u0000", ""],
    ],
    [
      "browser.controlUrl",
      (controlUrl) => ({ browser: { controlUrl } }),
      ["http://127.0.0.1:18791", "https://a.ts.net"],
      ["ws://127.0.0.1", "http://a:99999", "a"],
    ],
  ];
  for (const [name, config, good, bad] of cases) {
    await t.step(name, () => {
      for (const value of good) assertEquals(problems(config(value), Config), [], value);
      for (const value of bad) assertEquals(problems(config(value), Config).length, 1, value);
    });
  }
});

Deno.test("the texts about browser.controlUrl are those of the specification", () => {
  const said = (controlUrl: string) => problems({ browser: { controlUrl } }, Config)[0].message;

  assertEquals(said("ftp://a"), "browser.controlUrl must be http(s), got: ftp");
  assertEquals(said("http://a:99999"), "browser.controlUrl has invalid port: 99999");
});

Deno.test("a fingerprint is the same however it is written", () => {
  const hex = "0123456789abcdef".repeat(4);
  const pairs = hex.toUpperCase().match(/../g)!;

  for (const text of [hex, `sha256:${hex}`, `SHA-256 ${pairs.join(":")}`, ` ${pairs.join(" ")} `]) {
    assertEquals(normalizedFingerprint(text), hex);
  }
});

Deno.test("pins are read from text, with commas between, and from lists with dates", () => {
  const [a, b] = ["ab".repeat(32), "cd".repeat(32)];

  assertEquals(pinsIn(undefined), []);
  assertEquals(pinsIn(`sha256:${a.toUpperCase()}`), [a]);
  assertEquals(pinsIn(`${a}, sha256:${b}`), [a, b]);
  assertEquals(pinsIn(`SHA-256 ${a} until 2027-01-31,${b}`), [
    { sha256: a, until: "2027-01-31" },
    b,
  ]);
  // Nothing is a pin that is missing, not none.
  assertEquals([pinsIn(""), pinsIn(`${a},`)], [[""], [a, ""]]);
  for (const pin of [a, { sha256: a, until: "2027-01-31" }]) {
    assertEquals(pinsIn(formatPin(pin)), [pin]);
  }
  assertEquals(pinsIn({ sha256: `sha256:${a}` }), [{ sha256: a }]);
  assertEquals(pinsIn([a, { sha256: b, until: "2027-01-31" }]), [
    a,
    { sha256: b, until: "2027-01-31" },
  ]);
});

Deno.test("docs/configuration.md tells of every setting, with its default and description", async () => {
  const docs = await Deno.readTextFile(new URL("../../docs/configuration.md", import.meta.url));
  const rows = docs.split("\n").filter((line) => line.startsWith("| `"))
    .map((line) => line.split("|").slice(1, -1).map((cell) => cell.trim()));
  const [, later] = docs.split("### Checked, but without effect in this version");
  const hints = uiHints();

  const names = Object.keys(hints);
  const leaves = names.filter((name) =>
    !names.some((other) => [".", "["].includes(other[name.length]) && other.startsWith(name))
  );
  for (const name of leaves) {
    const usual = schemaAt(name.replaceAll("[]", ".0").split("."))?.default;
    const row = rows.find(([key]) => key === `\`${name}\``);
    const isLater = later.includes(`\`${name}\``);
    assert(isLater === (row === undefined), `${name} stands in one of the two places`);
    if (!row) continue;
    const shown = usual === undefined ? "" : `\`${JSON.stringify(usual)}\``;
    assertEquals(row, [`\`${name}\``, shown, hints[name].help]);
  }
  for (const [key] of rows.filter(([key]) => /^`[a-z]+\./.test(key))) {
    assert(leaves.includes(key.slice(1, -1)), `${key} is a setting`);
  }
});
