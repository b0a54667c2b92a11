import { assert, assertEquals } from "@std/assert";
import type { ConfigReading } from "../../config/load.ts";
import { gatewaySettings } from "../../config/settings.ts";
import { type Facts, type Finding, judge } from "../../gateway/security.ts";
import { zero } from "../support/cli.ts";

const NOW_MS = Date.parse("2026-11-22T12:00:00Z");
const LONG = "a-secret-of-more-than-twenty-characters";

interface Given {
  gateway?: Record<string, unknown>;
  config?: Record<string, unknown>;
  env?: Record<string, string>;
  files?: Facts["files"];
  units?: Facts["units"];
  certificate?: Facts["certificate"];
}

/** Facts of an installation in which nothing is wrong but what a test puts there. */
function factsOf(
  { gateway = {}, config = {}, env = {}, files = [], units = [], certificate }: Given,
): Facts {
  const reading = { config: { gateway, ...config } } as unknown as ConfigReading;
  const settings = gatewaySettings({ env, config: reading.config });
  return { reading, settings, env, files, units, certificate, nowMs: NOW_MS };
}

function judged(given: Given): Finding[] {
  return judge(factsOf(given));
}

function file(change: Partial<Facts["files"][number]>): Facts["files"][number] {
  return { path: "/s/f", isDirectory: false, mode: 0o600, isOwn: true, isLink: false, ...change };
}

/** A certificate that ends so many days from now. */
function certificateFor(days: number): NonNullable<Facts["certificate"]> {
  const info = {
    fingerprint: "ab".repeat(32),
    subject: "CN=zero-gateway",
    names: ["localhost"],
    notBeforeMs: 0,
    notAfterMs: NOW_MS + days * 86_400_000,
    isSelfSigned: true,
  };
  return { path: "/s/gateway-cert.pem", info };
}

/** A gateway that believes its proxy. */
function behind(trustedProxies: string[], trustedProxy: Record<string, unknown> = {}): Given {
  const auth = {
    mode: "trusted-proxy",
    silentPairing: false,
    trustedProxy: { userHeader: "X-Forwarded-User", allowUsers: ["ada"], ...trustedProxy },
  };
  return { gateway: { trustedProxies, auth } };
}

Deno.test("nothing is found where nothing is wrong", () => {
  const unit = { path: "/etc/systemd/system/zero.service", text: "ExecStart=zero gateway" };
  const fine: Given[] = [
    {},
    { gateway: { auth: { mode: "token", token: LONG } } },
    { gateway: { auth: { rateLimit: { maxAttempts: 100 } } } },
    { gateway: { trustedProxies: ["10.0.0.5", "10.1.0.0/16"], auth: { silentPairing: false } } },
    { gateway: { controlUi: { allowedOrigins: ["https://a.example", "http://localhost:3000"] } } },
    { gateway: { tailscale: { mode: "serve" }, auth: { allowTailscale: false } } },
    { files: [file({}), file({ isDirectory: true, mode: 0o700 }), file({ mode: 0o400 })] },
    { units: [unit, { ...unit, text: "Environment=ZERO_GATEWAY_PORT=18789" }] },
    { env: { ZERO_ALLOW_INSECURE_WS: "0" } },
    { certificate: certificateFor(31) },
    { certificate: { path: "/s/gateway-cert.pem" } },
    { gateway: { bind: "lan", auth: { token: LONG }, tls: { enabled: true } } },
    behind(["10.0.0.5"]),
    behind(["127.0.0.1"], { requiredHeaders: { "X-Proxy-Secret": LONG } }),
    { config: { browser: { controlUrl: "http://127.0.0.1:18791" } } },
    { config: { browser: { controlUrl: "http://10.0.0.7:18791", controlToken: LONG } } },
  ];

  for (const given of fine) assertEquals(judged(given), [], JSON.stringify(given));
});

Deno.test("each mistake has a name, a level, what was seen and a fix", () => {
  const until = (date: string) => ({
    gateway: { controlUi: { allowInsecureAuth: true, allowInsecureAuthUntil: date } },
  });
  const auth = (settings: Record<string, unknown>) => ({ gateway: { auth: settings } });
  const quiet = { silentPairing: false };
  const path = "/etc/systemd/system/zero.service";
  const problem = "gateway tls: cert/key missing";
  const rows: [Given, id: string, level: string, detail: string][] = [
    [{ certificate: certificateFor(30) }, "tls.expires", "warn", "/s/gateway-cert.pem"],
    [{ certificate: certificateFor(-1) }, "tls.expired", "critical", "/s/gateway-cert.pem"],
    [{ certificate: { path: "/s/c", problem } }, "tls.unusable", "critical", problem],
    [
      { gateway: { bind: "lan", auth: { token: LONG } } },
      "bind.plaintext",
      "warn",
      "gateway.bind is lan, and the port speaks plain ws://",
    ],
    [
      { gateway: { tailscale: { mode: "funnel" }, auth: { password: LONG } } },
      "tailscale.funnel",
      "warn",
      "gateway.tailscale.mode is funnel",
    ],
    [auth({ mode: "none" }), "auth.none", "critical", "gateway.auth.mode is none (file)"],
    [
      auth({ token: "nineteen characters" }),
      "auth.short-token",
      "warn",
      "gateway.auth.token (file) has 19 characters",
    ],
    [
      { env: { ZERO_GATEWAY_PASSWORD: "hunter2" } },
      "auth.short-password",
      "warn",
      "gateway.auth.password (env ZERO_GATEWAY_PASSWORD) has 7 characters",
    ],
    [
      auth({ rateLimit: { maxAttempts: 101 } }),
      "auth.rate-limit",
      "warn",
      "gateway.auth.rateLimit.maxAttempts is 101",
    ],
    [
      { gateway: { tailscale: { mode: "serve" } } },
      "auth.tailscale-shared-host",
      "info",
      "gateway.auth.allowTailscale trusts every user of the gateway's host",
    ],
    [
      { gateway: { trustedProxies: ["10.0.0.0/8"], auth: quiet } },
      "proxies.wide",
      "critical",
      "gateway.trustedProxies holds 10.0.0.0/8",
    ],
    ...[
      behind(["127.0.0.1"]),
      behind(["10.0.0.7", "127.0.0.1"], { requiredHeaders: ["X-Proxy-Secret"] }),
      behind(["127.0.0.1"], { requiredHeaders: { "X-Forwarded-Proto": "https" } }),
    ].map((given): [Given, string, string, string] => [
      given,
      "proxies.forgeable",
      "critical",
      "gateway.trustedProxies holds 127.0.0.1, and no header in " +
      "gateway.auth.trustedProxy.requiredHeaders has a value of 20 characters",
    ]),
    [
      behind(["10.0.0.5"], { allowUsers: ["*"] }),
      "proxies.everybody",
      "warn",
      'gateway.auth.trustedProxy.allowUsers is ["*"]',
    ],
    [
      behind(["10.0.0.5"], { scopes: ["operator.admin"] }),
      "proxies.admin",
      "warn",
      "gateway.auth.trustedProxy.scopes holds operator.admin",
    ],
    [
      { gateway: { trustedProxies: ["::/0"], auth: quiet } },
      "proxies.wide",
      "critical",
      "gateway.trustedProxies holds ::/0",
    ],
    [
      { gateway: { trustedProxies: ["127.0.0.1"] } },
      "proxies.silent-pairing",
      "warn",
      "gateway.trustedProxies is set, and local devices are paired without asking",
    ],
    [
      { gateway: { controlUi: { allowedOrigins: ["http://ui.example"] } } },
      "origins.plaintext",
      "warn",
      "gateway.controlUi.allowedOrigins holds http://ui.example",
    ],
    [
      { gateway: { controlUi: { allowedOrigins: ["http://localhost.example"] } } },
      "origins.plaintext",
      "warn",
      "gateway.controlUi.allowedOrigins holds http://localhost.example",
    ],
    [
      until("2026-12-01"),
      "break-glass.open",
      "critical",
      "gateway.controlUi.allowInsecureAuth holds until 2026-12-01",
    ],
    [
      until("2027-06-01"),
      "break-glass.open",
      "critical",
      "gateway.controlUi.allowInsecureAuth holds until 2027-06-01, more than 30 days from now",
    ],
    [
      until("2026-11-22T11:59:59Z"),
      "break-glass.expired",
      "warn",
      "gateway.controlUi.allowInsecureAuth ended 2026-11-22T11:59:59Z",
    ],
    [
      { env: { ZERO_ALLOW_INSECURE_WS: "1" } },
      "break-glass.insecure-ws",
      "warn",
      "ZERO_ALLOW_INSECURE_WS is 1",
    ],
    [{ files: [file({ isOwn: false })] }, "files.owner", "critical", "/s/f"],
    [{ files: [file({ mode: 0o644 })] }, "files.mode", "critical", "/s/f has mode 0644"],
    [{ files: [file({ mode: 0o610 })] }, "files.mode", "critical", "/s/f has mode 0610"],
    [
      { files: [file({ isDirectory: true, mode: 0o755 })] },
      "files.mode",
      "critical",
      "/s/f has mode 0755",
    ],
    [{ files: [file({ isLink: true })] }, "files.link", "warn", "/s/f"],
    [
      { units: [{ path, text: `Environment="ZERO_GATEWAY_TOKEN=${LONG}"` }] },
      "units.secret",
      "critical",
      `${path} sets ZERO_GATEWAY_TOKEN or ZERO_GATEWAY_PASSWORD`,
    ],
    [
      {
        units: [{ path, text: `<key>ZERO_GATEWAY_PASSWORD</key>\n<string>${LONG}</string>` }],
      },
      "units.secret",
      "critical",
      `${path} sets ZERO_GATEWAY_TOKEN or ZERO_GATEWAY_PASSWORD`,
    ],
    [
      { config: { browser: { controlUrl: "http://10.0.0.7:18791" } } },
      "browser.no-token",
      "critical",
      "browser.controlUrl is not on this machine, and there is no browser.controlToken",
    ],
    [
      { config: { browser: { controlUrl: "http://localhost.example:18791" } } },
      "browser.no-token",
      "critical",
      "browser.controlUrl is not on this machine, and there is no browser.controlToken",
    ],
  ];

  for (const [given, ...expected] of rows) {
    const found = judged(given);
    assertEquals(found.map(({ id, level, detail }) => [id, level, detail]), [expected]);
    const [{ title, fix }] = found;
    assert(title !== "" && fix !== "");
    assert(!JSON.stringify(found).includes(LONG) && !JSON.stringify(found).includes("hunter2"));
  }
});

Deno.test("the worst comes first, and only modes are mended", () => {
  const found = judged({
    gateway: { bind: "lan", tailscale: { mode: "serve" }, auth: { token: "short" } },
    files: [
      file({ mode: 0o666 }),
      file({ path: "/s", isDirectory: true, mode: 0o755 }),
      file({ path: "/s/x", isOwn: false, mode: 0o666 }),
    ],
  });

  assertEquals(found.map(({ level, repair }) => [level, repair]), [
    ["critical", { path: "/s/f", mode: 0o600 }],
    ["critical", { path: "/s", mode: 0o700 }],
    ["critical", undefined],
    ["warn", undefined],
    ["warn", undefined],
    ["info", undefined],
  ]);
});

/** An installation in a temporary home directory, as a gateway leaves it. */
async function installation(config?: unknown) {
  const home = await Deno.makeTempDir({ prefix: "zero-audit-" });
  const state = `${home}/.zero`;
  await Deno.mkdir(`${state}/logs`, { recursive: true, mode: 0o700 });
  await Deno.chmod(state, 0o700);
  const write = async (path: string, text: string, mode = 0o600) => {
    await Deno.writeTextFile(path, text);
    await Deno.chmod(path, mode);
  };
  await Deno.chmod(`${state}/logs`, 0o700);
  await write(`${state}/gateway.token`, `${LONG}\n`);
  await write(`${state}/zero.sqlite`, "");
  await write(`${state}/logs/gateway.log`, "");
  if (config !== undefined) await write(`${state}/zero.json`, JSON.stringify(config));
  return {
    home,
    state,
    write,
    audit: (...args: string[]) =>
      zero(["security", "audit", ...args], { home, env: { ZERO_STATE_DIR: state } }),
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
}

Deno.test("zero security audit finds nothing in a fresh installation", async () => {
  await using at = await installation();

  const { code, stdout, stderr } = await at.audit("--level", "info");
  const { json } = await at.audit("--json");

  assertEquals([code, stdout, stderr], [0, "Nothing found\n", ""]);
  assertEquals(json, { ok: true, findings: [], repaired: [] });
});

Deno.test("what it prints is what the documentation shows, and the exit code is 1", async () => {
  await using at = await installation({ gateway: { bind: "lan", auth: { token: LONG } } });
  await Deno.chmod(`${at.state}/gateway.token`, 0o644);

  const { code, stdout } = await at.audit();

  const page = await Deno.readTextFile(new URL("../../docs/security.md", import.meta.url));
  const shown = /\$ zero security audit\n([\s\S]*?)\$ echo \$\?\n1\n/.exec(page)?.[1];
  assertEquals(stdout.replaceAll(at.state, "/home/ada/.zero"), shown);
  assertEquals(code, 1);
});

Deno.test("--fix mends the modes and nothing else, and says so", async () => {
  await using at = await installation({ gateway: { bind: "lan", auth: { token: LONG } } });
  await Deno.chmod(`${at.state}/gateway.token`, 0o644);
  await Deno.chmod(`${at.state}/logs`, 0o755);
  const configBefore = await Deno.readTextFile(`${at.state}/zero.json`);

  const fixed = await at.audit("--fix", "--json");
  const later = await at.audit("--json");

  assertEquals(fixed.code, 1);
  assertEquals(fixed.json.repaired.sort(), [`${at.state}/gateway.token`, `${at.state}/logs`]);
  const finding = {
    id: "bind.plaintext",
    level: "warn",
    title: "Others on the network can read what is sent",
    detail: "gateway.bind is lan, and the port speaks plain ws://",
    fix: "zero config set gateway.tls.enabled true, or gateway.bind loopback and an SSH tunnel",
    fixable: false,
  };
  assertEquals(fixed.json, { ok: false, findings: [finding], repaired: fixed.json.repaired });
  assertEquals(later.json, { ok: false, findings: [finding], repaired: [] });
  const modes = ["gateway.token", "logs"].map((name) =>
    (Deno.statSync(`${at.state}/${name}`).mode ?? 0) & 0o777
  );
  assertEquals(modes, [0o600, 0o700]);
  assertEquals(await Deno.readTextFile(`${at.state}/zero.json`), configBefore);
});

Deno.test("the level decides the exit code, not what is shown", async () => {
  await using at = await installation({ gateway: { auth: { token: "short" } } });

  const codes: number[] = [];
  for (const level of ["info", "warn", "critical"]) {
    const { code, json } = await at.audit("--json", "--level", level);
    assertEquals(json.ok, code === 0);
    assertEquals(json.findings.length, 1);
    codes.push(code);
  }

  assertEquals(codes, [1, 1, 0]);
});

Deno.test("links, unit files and secrets in them are looked at, and no secret is shown", async () => {
  await using at = await installation();
  const elsewhere = `${at.home}/elsewhere.json`;
  await at.write(elsewhere, JSON.stringify({ gateway: { auth: { token: LONG } } }), 0o640);
  await Deno.symlink(elsewhere, `${at.state}/zero.json`);
  const units = `${at.home}/.config/systemd/user`;
  await Deno.mkdir(`${units}/zero.service.d`, { recursive: true });
  const secret = `[Service]\nEnvironment=ZERO_GATEWAY_TOKEN=${LONG}\n`;
  await at.write(`${units}/zero.service`, secret);
  await at.write(`${units}/zero.service.d/override.conf`, secret);
  await at.write(`${units}/other.service`, secret);

  const { code, json, stdout } = await at.audit("--json");

  assertEquals(code, 1);
  assertEquals(json.findings.map(({ id }: Finding) => id).sort(), [
    "files.link",
    "files.mode",
    "units.secret",
    "units.secret",
  ]);
  assert(!stdout.includes(LONG));
});

Deno.test("a configuration that cannot be read ends the audit with the mistake, not with an all-clear", async () => {
  await using at = await installation({ gateway: { port: "many" } });

  const { code, stdout, stderr } = await at.audit();

  assertEquals([code, stdout], [1, ""]);
  assert(stderr.includes("gateway.port"), stderr);
});
