import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Json, TestClient } from "../support/client.ts";
import { startTestGateway, type TestGateway, TOKEN } from "../support/gateway.ts";

const TEXT = `// mine
{
  gateway: { auth: { token: "${TOKEN}" } }, // the secret
  logging: { level: "debug" },
}
`;

async function withConfig(): Promise<
  { gateway: TestGateway; client: TestClient; hash: () => Promise<string> }
> {
  const gateway = await startTestGateway({ config: TEXT });
  const client = await gateway.connect();
  return { gateway, client, hash: async () => (await client.call("config.get", {})).hash };
}

function onDisk({ paths }: TestGateway): Promise<string> {
  return Deno.readTextFile(paths.configPath);
}

Deno.test("config.get shows the file as it is, its value and its hash", async () => {
  const { gateway, client } = await withConfig();
  await using _gateway = gateway;

  const got = await client.call("config.get", {});

  assertEquals([got.path, got.exists, got.valid, got.raw], [
    gateway.paths.configPath,
    true,
    true,
    TEXT,
  ]);
  assertEquals(got.config.logging.level, "debug");
  assertMatch(got.hash, /^[0-9a-f]{64}$/);
  assertEquals([got.issues, got.legacyIssues], [[], []]);
});

Deno.test("config.get without a file is an empty configuration", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();

  const got = await client.call("config.get", {});

  assertEquals([got.exists, got.raw, got.valid, got.config], [false, null, true, {}]);
  assertEquals(
    got.hash,
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
  );
});

Deno.test("config.get names the mistakes of a file that was broken since", async () => {
  const { gateway, client } = await withConfig();
  await using _gateway = gateway;
  await Deno.writeTextFile(gateway.paths.configPath, `{ gateway: { port: "x" } }`);

  const got = await client.call("config.get", {});

  assertEquals([got.valid, got.issues.map((one: Json) => one.path)], [false, ["gateway.port"]]);
});

Deno.test("whoever may only read gets the configuration without its secrets", async () => {
  const { gateway } = await withConfig();
  await using _gateway = gateway;
  const reader = await gateway.connect({ scopes: ["operator.read"] });

  const got = await reader.call("config.get", {});

  assert(!JSON.stringify(got).includes(TOKEN));
  assertEquals(got.config.logging.level, "debug");
  assert(got.raw.includes("logging"));
});

Deno.test("config.schema describes the file for editors, and marks what is secret", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();

  const { schema, uiHints, version, generatedAt } = await client.call("config.schema", {});

  assertEquals(schema.properties.gateway.properties.port.minimum, 1);
  assertEquals(uiHints["gateway.auth.token"].sensitive, true);
  assertEquals(version, "0.0.0-test");
  assert(Date.parse(generatedAt) > 0);
});

Deno.test("config.patch merges, keeps comments, and says whether a restart follows", async () => {
  const { gateway, client, hash } = await withConfig();
  await using _gateway = gateway;

  const hot = await client.call("config.patch", {
    raw: `{ logging: { level: "warn" } }`,
    baseHash: await hash(),
  });
  const restart = await client.call("config.patch", {
    raw: `{ logging: null, gateway: { port: 20001 } }`,
    baseHash: await hash(),
    note: "moved",
    restartDelayMs: 90_000,
  });

  assertEquals([hot.ok, hot.config.logging.level, hot.restart.mode], [true, "warn", "none"]);
  assertEquals(hot.restart.delayMs, 0);
  assertEquals(restart.restart, {
    ok: true,
    pid: Deno.pid,
    signal: "SIGUSR1",
    delayMs: 60_000,
    reason: "config.patch",
    mode: "in-process",
  });
  assertEquals([restart.sentinel.path, restart.sentinel.payload.note], [null, "moved"]);
  assertEquals(gateway.restarts, [{ reason: "config.patch", delayMs: 60_000 }]);
  const text = await onDisk(gateway);
  assert(text.startsWith("// mine") && text.includes("// the secret"), text);
  assert(text.includes("20001") && !text.includes("logging"), text);
});

Deno.test("a restart comes after two seconds unless another delay is asked for", async () => {
  const { gateway, client, hash } = await withConfig();
  await using _gateway = gateway;
  const patch = async (port: number, restartDelayMs?: number) =>
    await client.call("config.patch", {
      raw: `{ gateway: { port: ${port} } }`,
      baseHash: await hash(),
      restartDelayMs,
    });

  await patch(20_001);
  await patch(20_002, 0);

  assertEquals(gateway.restarts.map(({ delayMs }) => delayMs), [2_000, 0]);
});

Deno.test("config.apply replaces the whole file", async () => {
  const { gateway, client, hash } = await withConfig();
  await using _gateway = gateway;
  const raw = `{ gateway: { auth: { token: "${TOKEN}" }, port: 20001 } } // all of it\n`;

  const applied = await client.call("config.apply", { raw, baseHash: await hash() });

  assertEquals([applied.restart.mode, applied.restart.reason], ["in-process", "config.apply"]);
  assertEquals(await onDisk(gateway), raw);
  assertEquals(gateway.restarts.map(({ reason }) => reason), ["config.apply"]);
});

Deno.test("config.set writes and leaves the rest to whoever watches the file", async () => {
  const { gateway, client, hash } = await withConfig();
  await using _gateway = gateway;
  const raw = `{ gateway: { auth: { token: "${TOKEN}" }, port: 20001 } }`;

  const written = await client.call("config.set", { raw, baseHash: await hash() });
  const restartsBefore = [...gateway.restarts];

  assertEquals([written.ok, written.config.gateway.port], [true, 20_001]);
  assertEquals(restartsBefore, []);
  assertEquals((await gateway.restart).reason, "the configuration file changed");
});

Deno.test("the first configuration needs no hash", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();

  await client.call("config.set", { raw: `{ logging: { level: "warn" } }` });

  assertEquals(await onDisk(gateway), `{ logging: { level: "warn" } }`);
  assertEquals((await Deno.stat(gateway.paths.configPath)).mode! & 0o777, 0o600);
});

Deno.test("a change is refused with its reason, and the file stays as it is", async () => {
  const { gateway, client, hash } = await withConfig();
  await using _gateway = gateway;
  const baseHash = await hash();
  const stale = "config changed since last load; re-run config.get and retry";
  const missing = "config base hash required; re-run config.get and retry";
  const rows: [string, Record<string, unknown>, string | RegExp][] = [
    ["config.set", { raw: "{}" }, missing],
    ["config.patch", { raw: "{}", baseHash: "" }, missing],
    ["config.apply", { raw: "{}", baseHash: "0".repeat(64) }, stale],
    ["config.set", { raw: "{}", baseHash: "0".repeat(64) }, stale],
    ["config.patch", { raw: "[1]", baseHash }, "config.patch raw must be an object"],
    ["config.patch", { raw: "7", baseHash }, "config.patch raw must be an object"],
    ["config.patch", { raw: "{ a: ", baseHash }, /JSON5: invalid end of input/],
    ["config.set", { raw: "{ a: ", baseHash }, /./],
    ["config.set", { raw: "{ gateway: { port: 0 } }", baseHash }, "invalid config"],
    ["config.apply", { raw: "{ unknownKey: 1 }", baseHash }, "invalid config"],
    ["config.patch", { raw: "{ gateway: { bind: 'x' } }", baseHash }, "invalid config"],
    ["config.set", { baseHash }, "invalid config.set params: must have required property 'raw'"],
    [
      "config.patch",
      { raw: "", restartDelayMs: -1, baseHash },
      "invalid config.patch params: at /raw: must NOT have fewer than 1 characters; " +
      "at /restartDelayMs: must be >= 0",
    ],
    ["config.apply", { raw: {} }, "invalid config.apply params: at /raw: must be string"],
  ];

  for (const [method, params, expected] of rows) {
    const { code, message } = await client.refused(method, params);
    assertEquals(code, "INVALID_REQUEST");
    if (typeof expected === "string") assertEquals(message, expected);
    else assertMatch(message, expected);
    assert(!message.includes(TOKEN));
  }
  assertEquals(await onDisk(gateway), TEXT);
  assertEquals(gateway.restarts, []);
});

Deno.test("an invalid change names every mistake by its path", async () => {
  const { gateway, client, hash } = await withConfig();
  await using _gateway = gateway;

  const { details } = await client.refused("config.set", {
    raw: `{ gateway: { port: 0, bind: "moon" }, lgging: {} }`,
    baseHash: await hash(),
  });

  assertEquals(details.issues.map((one: Json) => one.path).sort(), [
    "gateway.bind",
    "gateway.port",
    "lgging",
  ]);
});

Deno.test("a file that is broken already is to be mended before it can be patched", async () => {
  const { gateway, client, hash } = await withConfig();
  await using _gateway = gateway;
  await Deno.writeTextFile(gateway.paths.configPath, `{ gateway: { port: "x" } }`);

  const { message, details } = await client.refused("config.patch", {
    raw: `{ logging: null }`,
    baseHash: await hash(),
  });
  await client.call("config.set", { raw: TEXT, baseHash: await hash() });

  assertEquals(message, "invalid config; fix before patching");
  assertEquals(details.issues.length, 1);
});

Deno.test("a configuration that was shown without secrets can be given back without losing them", async () => {
  const { gateway, client, hash } = await withConfig();
  await using _gateway = gateway;
  const reader = await gateway.connect({ scopes: ["operator.read"] });
  const { raw } = await reader.call("config.get", {});

  await client.call("config.set", { raw: raw.replace("debug", "warn"), baseHash: await hash() });

  assertEquals(await onDisk(gateway), TEXT.replace("debug", "warn"));
});

Deno.test("of two that change the same file the second is told that it changed", async () => {
  const { gateway, client, hash } = await withConfig();
  await using _gateway = gateway;
  const baseHash = await hash();
  const other = await gateway.connect();
  const patch = (one: TestClient, level: string) =>
    one.request("config.patch", { raw: `{ logging: { level: "${level}" } }`, baseHash });

  const answers = await Promise.all([patch(client, "warn"), patch(other, "error")]);

  assertEquals(answers.filter(({ ok }) => ok).length, 1);
  const { error } = answers.find(({ ok }) => !ok);
  assertEquals([error.code, /changed/.test(error.message)], ["INVALID_REQUEST", true]);
});
