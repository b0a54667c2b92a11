import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { decodeLink, encodeLink, type Link } from "../../gateway/join.ts";
import { type CliResult, zero } from "../support/cli.ts";
import { startTestGateway, type TestGateway, type TestGatewayOptions } from "../support/gateway.ts";
import { eventually } from "../support/process.ts";
import { hasScript, zeroOnTerminal } from "../support/pty.ts";

const LINK: Link = {
  v: 1,
  url: "ws://10.0.0.5:18789",
  secret: "a-secret",
  role: "operator",
  scopes: ["operator.read"],
};

/** A home directory on another machine: nothing in it, and no secret in its environment. */
class Machine implements AsyncDisposable {
  constructor(readonly home: string, readonly env: Record<string, string> = {}) {}

  static async make(): Promise<Machine> {
    return new Machine(await Deno.makeTempDir({ prefix: "zero-join-" }));
  }

  run(args: string[], stdin?: string): Promise<CliResult> {
    return zero(args, { home: this.home, env: this.env, stdin });
  }

  config(): Promise<string> {
    return Deno.readTextFile(`${this.home}/state/zero.json`);
  }

  async configure(text: string) {
    await Deno.mkdir(`${this.home}/state`, { mode: 0o700 });
    await Deno.writeTextFile(`${this.home}/state/zero.json`, text, { mode: 0o600 });
  }

  async [Symbol.asyncDispose]() {
    await Deno.remove(this.home, { recursive: true });
  }
}

/** A gateway and its own machine. */
async function host(options: TestGatewayOptions = {}) {
  const gateway = await startTestGateway(options);
  const { port, token } = gateway;
  const home = await Deno.makeTempDir({ prefix: "zero-host-" });
  const machine = new Machine(home, {
    ZERO_GATEWAY_PORT: String(port),
    ZERO_GATEWAY_TOKEN: token,
  });
  return {
    gateway,
    machine,
    async invite(...flags: string[]): Promise<{ link: string; inviteId: string }> {
      return (await machine.run(["devices", "invite", "--json", ...flags])).json;
    },
    async [Symbol.asyncDispose]() {
      await gateway[Symbol.asyncDispose]();
      await machine[Symbol.asyncDispose]();
    },
  };
}

async function paired(gateway: TestGateway, name: string) {
  await using operator = await gateway.connect();
  const { paired } = await operator.call("device.pair.list", {});
  return paired.find((one: { displayName?: string }) => one.displayName === name);
}

Deno.test("zero devices invite prints one line, and zero join reads it and needs nothing else afterwards", async () => {
  await using at = await host();
  await using laptop = await Machine.make();
  const { url } = at.gateway;

  const invited = await at.machine.run(["devices", "invite", "--scopes", "operator.read"]);
  const joined = await laptop.run(["join", "--name", "laptop"], invited.stdout);
  const health = await laptop.run(["call", "health"]);

  assert(/^zero:\/\/join#[\w-]+\n$/.test(invited.stdout), invited.stdout);
  assertEquals(invited.stderr.split("\n").slice(0, 2), [
    "Works once, within 10 min; on the other machine: zero join",
    `It leads to ${url}, which the other machine reaches only through a tunnel; ` +
    "--address names another way",
  ]);
  assertEquals([joined.code, joined.stderr], [0, ""]);
  assertEquals(joined.stdout.split("\n"), [
    `Joined ${Deno.hostname()} as operator`,
    `Commands here now go to ${url} (${laptop.home}/state/zero.json)`,
    "",
  ]);
  assertEquals(JSON.parse(await laptop.config()), {
    gateway: { mode: "remote", remote: { url } },
  });
  assertEquals([health.code, health.stderr], [0, ""]);
  assertEquals((await paired(at.gateway, "laptop")).scopes, ["operator.read"]);
});

Deno.test("who joined with few scopes can use those and no others", async () => {
  await using at = await host();
  await using laptop = await Machine.make();
  const { link } = await at.invite("--scopes", "operator.read");
  await laptop.run(["join"], link);

  const health = await laptop.run(["health"]);
  const { code, json } = await laptop.run(["devices", "list", "--json"]);

  assertEquals([health.code, code], [0, 1]);
  assertEquals([json.error.code, json.error.message], [
    "FORBIDDEN",
    "missing scope: operator.pairing",
  ]);
});

Deno.test("a link works once: the second machine is refused, and nothing is written there", async () => {
  await using at = await host();
  await using first = await Machine.make();
  await using second = await Machine.make();
  const { link } = await at.invite();
  await first.run(["join"], link);

  const plain = await second.run(["join"], link);
  const json = await second.run(["join", "--json"], link);

  assertEquals([plain.code, plain.stdout], [1, ""]);
  assertStringIncludes(
    plain.stderr,
    "error: gateway closed (1008 policy violation): unauthorized: invitation unknown, used or " +
      "expired",
  );
  assertStringIncludes(plain.stderr, "code:  INVITE_INVALID");
  assertStringIncludes(
    plain.stderr,
    "fix:   Make another invitation on the gateway's host: zero devices invite",
  );
  assertEquals([json.code, json.json.ok, json.json.error.code], [1, false, "INVITE_INVALID"]);
  const files = [...Deno.readDirSync(`${second.home}/state`)].map(({ name }) => name);
  assertEquals(files, ["identity"]);
});

Deno.test("neither link nor secret is in any file or output of the machine that joined", async () => {
  await using at = await host();
  await using laptop = await Machine.make();
  const { link } = await at.invite();
  const { secret } = decodeLink(link)!;

  const outputs = [
    await laptop.run(["join", "--json", "--verbose"], link),
    await laptop.run(["join", "--json", "--verbose"], link),
    await laptop.run(["status", "--json"]),
    await laptop.run(["config", "get"]),
  ];

  assertEquals(outputs.map(({ code }) => code), [0, 1, 0, 0]);
  const texts = outputs.flatMap(({ stdout, stderr }) => [stdout, stderr]);
  texts.push(await laptop.config());
  for (const name of ["device.json", "device-auth.json"]) {
    const path = `${laptop.home}/state/identity/${name}`;
    texts.push(await Deno.readTextFile(path));
    assertEquals((await Deno.stat(path)).mode! & 0o777, 0o600);
  }
  for (const text of texts) assert(!text.includes(secret) && !text.includes(link), text);
});

Deno.test("zero join does not replace another gateway without --force, and keeps the rest", async () => {
  await using at = await host();
  await using laptop = await Machine.make();
  const { link } = await at.invite();
  const before = '{\n  // mine\n  gateway: { mode: "remote", remote: { url: "wss://10.9.9.9:1", ' +
    'token: "old-secret", remotePort: 7, edgeAuth: { headers: { "X-Key": "old-secret" } } } },\n' +
    '  logging: { level: "debug" },\n}\n';
  await laptop.configure(before);

  const refused = await laptop.run(["join"], link);
  assertEquals([refused.code, await laptop.config()], [2, before]);
  assertStringIncludes(
    refused.stderr,
    `error: Cannot join ${at.gateway.url}: commands here go to wss://10.9.9.9:1 already\n` +
      "Pass --force to replace it, or --profile NAME to keep both",
  );

  const forced = await laptop.run(["join", "--force"], link);
  const health = await laptop.run(["health"]);

  assertEquals([forced.code, health.code], [0, 0], forced.stderr);
  const after = await laptop.config();
  assertStringIncludes(after, "// mine");
  assertStringIncludes(after, 'level: "debug"');
  assertStringIncludes(after, at.gateway.url);
  assert(!/old-secret|10\.9\.9\.9|edgeAuth|remotePort/.test(after), after);
});

Deno.test("a link for a node pairs a node", async () => {
  await using at = await host();
  await using workshop = await Machine.make();
  const { link } = await at.invite("--role", "node");

  const { code, stdout } = await workshop.run(["join", "--name", "workshop"], link);

  assertEquals(code, 0);
  assertStringIncludes(stdout, " as node\n");
  const { roles, scopes, clientId } = await paired(at.gateway, "workshop");
  assertEquals([roles, scopes, clientId], [["node"], [], "node-host"]);
});

Deno.test("what is no link is wrong usage, and is not repeated", async () => {
  await using laptop = await Machine.make();
  const encoded = (value: unknown) => `zero://join#${btoa(JSON.stringify(value))}`;
  const wrong = [
    "",
    "hello-secret",
    "zero://join#",
    "zero://join#%%%",
    encoded("text"),
    encoded({ ...LINK, v: 2 }),
    encoded({ ...LINK, url: "http://10.0.0.5" }),
    encoded({ ...LINK, secret: "" }),
    encoded({ ...LINK, role: "admin" }),
    encoded({ ...LINK, more: 1 }),
  ];
  for (const text of wrong) assertEquals(decodeLink(text), undefined, text);

  const { code, stdout, stderr } = await laptop.run(["join"], "hello-secret");

  assertEquals([code, stdout], [2, ""]);
  assertEquals(stderr.split("\n").slice(0, 2), [
    "error: Cannot join: that is no link from zero devices invite",
    "It begins with zero://join# and is one line",
  ]);
});

Deno.test("a link survives being wrapped, and carries address, secret, role, scopes and pin", () => {
  const whole: Link = { ...LINK, pin: "ab".repeat(32) };
  const text = encodeLink(whole);
  const wrapped = text.replace(/(.{40})/g, "$1\r\n  ");

  assertEquals(decodeLink(text), whole);
  assertEquals(decodeLink(`  ${wrapped}\n`), whole);
  assert(/^zero:\/\/join#[\w-]+$/.test(text));
});

Deno.test("invitations are listed, revoked, and made for another address and time", async () => {
  await using at = await host();
  await using laptop = await Machine.make();
  const { run } = at.machine;
  const devices = (...args: string[]) => run.call(at.machine, ["devices", "invite", ...args]);

  const empty = await devices("--list");
  const made = await devices(
    ...["--json", "--ttl", "90s", "--scopes", "operator.read, operator.write"],
    ...["--address", "wss://zero.example.org"],
  );
  const list = await devices("--list");
  const { inviteId, link, createdAtMs, expiresAtMs, ...rest } = made.json;
  const revoked = await devices("--revoke", inviteId);
  const again = await devices("--revoke", inviteId);

  assertEquals(empty.stdout, "No invitations\n");
  assertEquals(rest, {
    role: "operator",
    scopes: ["operator.read", "operator.write"],
    url: "wss://zero.example.org",
  });
  assertEquals(expiresAtMs - createdAtMs, 90_000);
  assertEquals(decodeLink(link)?.url, "wss://zero.example.org");
  const [header, row] = list.stdout.trimEnd().split("\n").map((line) => line.split(/ {2,}/));
  assertEquals(header, ["INVITATION", "ROLE", "SCOPES", "STATE"]);
  assertEquals(row.slice(0, 3), [inviteId, "operator", "read, write"]);
  assert(/^open for (\d\d s|1 min)$/.test(row[3]), row[3]);
  assertEquals([revoked.code, revoked.stdout, again.code], [0, "Revoked\n", 1]);
  assertStringIncludes(again.stderr, "unknown inviteId");
  for (const flags of [["--ttl", "soon"], ["--ttl", "10"], ["--address", "http://x"]]) {
    assertEquals((await devices(...flags)).code, 2, flags.join(" "));
  }
  const { link: usable } = await at.invite();
  await laptop.run(["join"], usable);
  assert(/ {2}used by [0-9a-f]{12} \d+ s ago$/m.test((await devices("--list")).stdout));
});

Deno.test("on a terminal the link is drawn as a QR code too, and zero join asks for it", {
  ignore: !hasScript,
}, async () => {
  await using at = await host();
  await using laptop = await Machine.make();

  const shown = await zeroOnTerminal(["devices", "invite"], at.machine, []);
  const bare = await zeroOnTerminal(["devices", "invite", "--no-qr"], at.machine, []);
  const [link] = /zero:\/\/join#[\w-]+/.exec(bare.output)!;
  const joined = await zeroOnTerminal(["join"], laptop, [
    ["The link from zero devices invite:", `${link}\n`],
  ]);

  assert(/[█▀▄]{10}/.test(shown.output), shown.output);
  assert(!/[█▀▄]/.test(bare.output));
  assertEquals(joined.code, 0, joined.output);
  assertStringIncludes(joined.output, `Joined ${Deno.hostname()} as operator`);
});

Deno.test("an invitation to a gateway with TLS carries its certificate, and the next one", async () => {
  await using at = await host({ config: { gateway: { tls: { enabled: true } } } });
  await using laptop = await Machine.make();
  await using other = await Machine.make();
  const { fingerprint, port } = at.gateway.running;
  const own = new Machine(at.gateway.paths.stateDir, {
    ...at.machine.env,
    ZERO_STATE_DIR: at.gateway.paths.stateDir,
  });
  const invite = async (...flags: string[]) => {
    const { json, stderr } = await own.run(["devices", "invite", "--json", ...flags]);
    const link = decodeLink(json?.link ?? "");
    assert(link, stderr);
    return { ...link, text: json.link };
  };

  const plain = await invite();
  const elsewhere = await invite("--address", `wss://gateway.example:${port}`);
  const proxied = await invite("--address", "wss://gateway.example");
  const joined = await laptop.run(["join"], plain.text);
  const health = await laptop.run(["health"]);
  const { json: made } = await own.run(["gateway", "cert", "rotate", "--json"]);
  await using operator = await at.gateway.connect();
  await eventually("it is announced", async () => {
    const { tls } = await operator.call("health", { probe: true });
    return tls.nextFingerprint !== undefined;
  });
  const both = await invite();
  const second = await other.run(["join"], both.text);
  const next = made.next.fingerprint;

  assertEquals([plain.pin, plain.nextPin, elsewhere.pin], [fingerprint, undefined, fingerprint]);
  assertEquals([proxied.pin, proxied.nextPin], [undefined, undefined]);
  assertEquals([joined.code, health.code], [0, 0], joined.stderr + health.stderr);
  assertEquals(
    JSON.parse(await laptop.config()).gateway.remote.tlsFingerprint,
    fingerprint,
  );
  assertEquals([both.pin, both.nextPin], [fingerprint, next]);
  assertEquals(second.code, 0, second.stderr);
  assertEquals(
    JSON.parse(await other.config()).gateway.remote.tlsFingerprint,
    [fingerprint, next],
  );

  await own.run(["gateway", "cert", "rotate", "--activate"]);
  await eventually("it is served", () => at.gateway.running.fingerprint === next);
  const after = await other.run(["health"]);
  const stale = await laptop.run(["health"]);

  assertEquals(after.code, 0, after.stderr);
  assertEquals(stale.code, 1);
  assertStringIncludes(stale.stderr, "gateway tls fingerprint mismatch");
});
