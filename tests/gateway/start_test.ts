import { assert, assertEquals, assertRejects } from "@std/assert";
import { StartRefusal } from "../../gateway/preflight.ts";
import { startTestGateway, TOKEN } from "../support/gateway.ts";

Deno.test("a gateway that stops tells everybody why, and closes with 1012", async () => {
  await using gateway = await startTestGateway();
  const clients = [
    await gateway.connect({ scopes: [] }),
    await gateway.connect({ protocol: 3 }),
    await gateway.connect({ jsonrpc: true }),
    await gateway.connect({ role: "node" }),
  ];
  const stranger = await gateway.open();

  const gone = gateway.farewell({ reason: "gateway stopping", restartExpectedMs: null });

  for (const client of clients) {
    assertEquals(await client.event("shutdown"), {
      reason: "gateway stopping",
      restartExpectedMs: null,
    });
    assertEquals(await client.closed, { code: 1012, reason: "service restart" });
  }
  assertEquals((await stranger.end()).code, 1012);
  await gone;
});

Deno.test("a gateway that restarts says when it expects to be back", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();

  const gone = gateway.farewell({ reason: "gateway restarting", restartExpectedMs: 1_500 });

  assertEquals(await client.event("shutdown"), {
    reason: "gateway restarting",
    restartExpectedMs: 1_500,
  });
  assertEquals((await client.closed).code, 1012);
  await gone;
});

Deno.test("a client that answers no close does not hold up the end", async () => {
  const gateway = await startTestGateway();
  const client = await gateway.connect();
  client.socket.pause();

  await gateway[Symbol.asyncDispose]();

  await client.socket.terminate();
});

Deno.test("unsafe settings are refused before anything listens or is written", async () => {
  const stateDir = await Deno.makeTempDir();

  const refusal = await assertRejects(
    () => startTestGateway({ stateDir, flags: { bind: "lan", auth: "token" } }),
    StartRefusal,
    "refusing to bind gateway to 0.0.0.0:0 without auth",
  ) as StartRefusal;

  assert(refusal.fix.length > 0);
  const files = [...Deno.readDirSync(stateDir)].map(({ name }) => name);
  await Deno.remove(stateDir, { recursive: true });
  assertEquals(files.filter((name) => name !== "logs"), []);
});

Deno.test("a port that is taken is an error with its code, and leaves nothing behind", async () => {
  await using first = await startTestGateway();

  const error = await assertRejects(() =>
    startTestGateway({ flags: { port: first.port, token: TOKEN } })
  ) as Error & { code?: string };

  assertEquals(error.code, "EADDRINUSE");
  assertEquals((await (await first.connect()).call("health")).ok, true);
});

Deno.test("loopback is served under IPv6 on the same port, where there is any", async () => {
  await using gateway = await startTestGateway();
  const { hosts } = gateway.running;
  assertEquals(hosts[0], "127.0.0.1");
  if (!hosts.includes("::1")) return;

  const answer = await fetch(`http://[::1]:${gateway.port}/healthz`);

  assertEquals(await answer.json(), { ok: true, status: "live" });
});

Deno.test("state is for the owner alone: the database, the token, the log", async () => {
  const stateDir = await Deno.makeTempDir();
  const umask = Deno.umask(0o077);
  try {
    await using gateway = await startTestGateway({ stateDir, config: "{ /* no auth */ }" });
    await gateway.connect({ device: true });
    await gateway.log();
    for (const file of ["zero.sqlite", "gateway.token", "logs/gateway.log"]) {
      assertEquals((await Deno.stat(`${stateDir}/${file}`)).mode! & 0o077, 0, file);
    }
  } finally {
    Deno.umask(umask);
    await Deno.remove(stateDir, { recursive: true });
  }
});

Deno.test("a running gateway takes over a changed file, and never a broken one", async () => {
  await using gateway = await startTestGateway({ config: { logging: { level: "debug" } } });
  const client = await gateway.connect();
  const agents = async () =>
    (await client.call("health", { probe: true })).agents.map(
      (one: { agentId: string }) => one.agentId,
    );

  await Deno.writeTextFile(gateway.paths.configPath, `{ agents: { list: [{ id: "anna" }`);
  const broken = await agents();
  const { hash } = await client.call("config.get", {});
  await client.call("config.apply", {
    raw: `{ agents: { list: [{ id: "anna" }] } }`,
    baseHash: hash,
  });

  assertEquals([broken, await agents()], [["main"], ["anna"]]);
  assertEquals(gateway.restarts, []);
});

Deno.test("a reader that stops reading misses droppable events, then is closed as slow; others lose nothing", async () => {
  await using gateway = await startTestGateway();
  const admin = await gateway.connect();
  const reader = await gateway.connect({ scopes: [] });
  const slow = await gateway.connect();
  await Promise.all([reader, slow].map((one) => one.event("health")));
  slow.socket.pause();
  const tags = ["x".repeat(8_000_000)];
  const report = (text: string) => admin.call("system-event", { text, host: "big", tags });

  for (let count = 1; count <= 9; count++) {
    await report(`event ${count}`);
    await reader.event("presence", ({ presence }) => presence[1]?.text === `event ${count}`);
  }
  assert(!slow.socket.isClosed);
  await gateway.connect({ client: { id: "cli", mode: "cli" } });
  await reader.event("health");
  slow.socket.resume();

  assertEquals(await slow.closed, { code: 1008, reason: "slow consumer" });
  const seen = slow.socket.waiting.filter(({ event }) => event === "presence")
    .map(({ payload }) => payload.presence[1]?.text);
  assert(seen.includes("event 1") && !seen.includes("event 9"), `${seen}`);
  assert((await gateway.log()).includes("closed a slow consumer"));
});
