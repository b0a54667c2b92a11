import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Json, TestClient } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import { REMOTE, startTestGateway, TOKEN } from "../support/gateway.ts";

/** Params that each method refuses, with the problem it names. */
const BAD_PARAMS: [string, unknown, string][] = [
  ["health", { probe: 1 }, "invalid health params: at /probe: must be boolean"],
  ["status", 1, "invalid status params: must be object"],
  ["system-presence", [], "invalid system-presence params: must be object"],
  ["system-event", {}, "invalid system-event params: must have required property 'text'"],
  ["system-event", { text: 1 }, "invalid system-event params: at /text: must be string"],
  [
    "system-event",
    { text: "t", tags: "a" },
    "invalid system-event params: at /tags: must be array",
  ],
  ["system-event", { text: "  " }, "text required"],
  ["wake", { text: "t" }, "invalid wake params: must have required property 'mode'"],
  [
    "wake",
    { mode: "later", text: "" },
    "invalid wake params: at /mode: must be equal to one of the allowed values; " +
    "at /text: must NOT have fewer than 1 characters",
  ],
  ["last-heartbeat", "x", "invalid last-heartbeat params: must be object"],
  ["set-heartbeats", {}, "invalid set-heartbeats params: enabled (boolean) required"],
  [
    "set-heartbeats",
    { enabled: "no" },
    "invalid set-heartbeats params: enabled (boolean) required",
  ],
  ["logs.tail", { limit: 0 }, "invalid logs.tail params: at /limit: must be >= 1"],
  ["logs.tail", { limit: 5_001 }, "invalid logs.tail params: at /limit: must be <= 5000"],
  ["logs.tail", { cursor: -1 }, "invalid logs.tail params: at /cursor: must be >= 0"],
  [
    "logs.tail",
    { maxBytes: 2_000_000 },
    "invalid logs.tail params: at /maxBytes: must be <= 1000000",
  ],
  ["voicewake.get", null, "invalid voicewake.get params: must be object"],
  ["voicewake.set", {}, "voicewake.set requires triggers: string[]"],
  ["voicewake.set", { triggers: [1] }, "voicewake.set requires triggers: string[]"],
  ["talk.mode", {}, "invalid talk.mode params: must have required property 'enabled'"],
  ["talk.mode", { enabled: true, phase: 1 }, "invalid talk.mode params: at /phase: must be string"],
  ["rpc.discover", 1, "invalid rpc.discover params: must be object"],
  ["gateway.call", {}, "invalid gateway.call params: must have required property 'method'"],
  ["gateway.call", { method: "gateway.call" }, "gateway.call cannot call itself"],
];

Deno.test("bad params are refused with what is wrong, on both versions and in JSON-RPC", async () => {
  await using gateway = await startTestGateway();
  const native = [
    await gateway.connect({ protocol: 3 }),
    await gateway.connect({ protocol: 4 }),
  ];
  const jsonRpc = await gateway.connect({ jsonrpc: true });

  for (const [method, params, message] of BAD_PARAMS) {
    for (const client of native) {
      assertEquals(await client.refused(method, params), { code: "INVALID_REQUEST", message });
    }
    const error = await jsonRpc.refused(method, params);
    assertEquals([error.message, error.data.code], [message, "INVALID_REQUEST"]);
    const isParams = message !== "text required" && !message.includes("itself");
    assertEquals(error.code, isParams ? -32602 : -32000, method);
    if (isParams) assert(error.data.issues.length > 0);
  }
});

Deno.test("health is answered from the cache until a probe is asked for", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect({ scopes: ["operator.read"] });

  const first = await client.call("health", {});
  const cached = await client.call("health", { other: "ignored" });
  const probed = await client.call("health", { probe: true });

  assertEquals([first.ok, first.defaultAgentId, first.channels], [true, "main", {}]);
  assertEquals(cached.ok, true);
  assert(probed.ts >= cached.ts);
});

Deno.test("every new connection has the health told to all", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();

  const frame = await operator.eventFrame("health");

  assertEquals(frame.payload.ok, true);
  assert(Number.isInteger(frame.stateVersion.presence) && Number.isInteger(frame.seq));
});

Deno.test("status shows version, heartbeats, sessions and what waits to be told", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();
  await client.call("wake", { mode: "now", text: " Door bell " });

  const status = await client.call("status", {});

  assertEquals(status.runtimeVersion, "0.0.0-test");
  assertEquals(status.queuedSystemEvents, ["Door bell"]);
  assertEquals(status.sessions.paths, [gateway.paths.database]);
  assertEquals(status.heartbeat.defaultAgentId, "main");
});

Deno.test("wake with nothing but blanks says so and queues nothing", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();

  assertEquals(await client.call("wake", { mode: "now", text: "  " }), { ok: false });
  assertEquals(await client.call("wake", { mode: "next-heartbeat", text: "x" }), { ok: true });

  assertEquals((await client.call("status", {})).queuedSystemEvents, ["x"]);
});

Deno.test("an event is told to the main session, and its sender to everybody at once", async () => {
  await using gateway = await startTestGateway();
  const admin = await gateway.connect();
  const other = await gateway.connect({ scopes: [] });
  const line = "Node: mac (10.0.0.2) · app 2 · last input 5s ago · mode ui · reason launch";

  assertEquals(
    await admin.call("system-event", { text: line, tags: ["a"], secret: "not for all" }),
    { ok: true },
  );
  const isThere = (one: Json) => one.host === "mac";
  const { presence } = await other.event("presence", (one) => one.presence.some(isThere));
  const listed = await admin.call("system-presence", {});
  await admin.call("system-event", { text: line });
  await admin.call("system-event", { text: "Battery low", host: "mac" });

  const entry = presence.find(isThere);
  assertEquals([entry.ip, entry.version, entry.lastInputSeconds, entry.tags], [
    "10.0.0.2",
    "2",
    5,
    ["a"],
  ]);
  assert(!JSON.stringify(listed).includes("not for all"));
  const { queuedSystemEvents } = await admin.call("status", {});
  assertEquals(queuedSystemEvents, [line, "Battery low"]);
});

Deno.test("clients are listed while they are there and when they left, command lines never", async () => {
  await using gateway = await startTestGateway();
  const device = await newDevice();
  const watcher = await gateway.connect({ client: { mode: "cli", id: "cli" } });
  const ui = await gateway.connect({
    device,
    client: { id: "zero-macos", mode: "ui", displayName: "My Mac", platform: "macos 15.1" },
  });

  const { presence } = await watcher.event("presence", (one) => one.presence.length === 2);
  await ui.close();
  const after = await watcher.event(
    "presence",
    (one) => one.presence.some(({ reason }: Json) => reason === "disconnect"),
  );
  const listed = await watcher.call("system-presence", {});

  const [self, mac] = presence;
  assertEquals([self.mode, self.reason], ["gateway", "self"]);
  assertEquals([mac.host, mac.deviceId, mac.reason, mac.roles, "ip" in mac], [
    "My Mac",
    device.deviceId,
    "connect",
    ["operator"],
    false,
  ]);
  assertEquals(after.presence.length, 2);
  assertEquals(listed.map((one: Json) => one.host), [self.host, "My Mac"]);
});

Deno.test("the address of a client elsewhere is shown", async () => {
  await using gateway = await startTestGateway({
    config: { gateway: { trustedProxies: ["127.0.0.1"], auth: { token: TOKEN } } },
  });
  await gateway.connect({ headers: REMOTE, client: { displayName: "far" } });
  const client = await gateway.connect({ client: { displayName: "near" } });

  const listed = await client.call("system-presence", {});

  const ip = (host: string) => listed.find((one: Json) => one.host === host).ip;
  assertEquals([ip("far"), ip("near")], [REMOTE["x-forwarded-for"], undefined]);
});

Deno.test("many clients that come together are told of in few events", async () => {
  await using gateway = await startTestGateway();
  const watcher = await gateway.connect({ client: { mode: "cli", id: "cli" } });

  const many = await Promise.all(
    Array.from({ length: 60 }, () => gateway.connect({ client: { mode: "ui" } })),
  );
  await watcher.event("presence", (one) => one.presence.length === many.length + 1);

  const events = watcher.socket.waiting.filter(({ event }) => event === "presence");
  assert(events.length < 20, `${events.length} presence events for ${many.length} clients`);
});

Deno.test("heartbeats can be switched off and on, which health shows", async () => {
  await using gateway = await startTestGateway({
    config: { agents: { list: [{ id: "main", heartbeat: { every: "30m" } }] } },
  });
  const client = await gateway.connect();
  const isEnabled = async () =>
    (await client.call("health", { probe: true })).agents[0].heartbeat.enabled;

  assertEquals(await isEnabled(), true);
  assertEquals(await client.call("set-heartbeats", { enabled: false }), {
    ok: true,
    enabled: false,
  });
  assertEquals(await isEnabled(), false);
  assertEquals(await client.call("last-heartbeat", {}), null);
});

Deno.test("the log is read from a cursor on, and holds no secret", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect({ scopes: ["operator.read"] });
  const device = await newDevice();
  const { auth: { deviceToken } } = await gateway.connect({ device });
  await gateway.refused({ auth: { token: "wrong-secret-canary" } });
  await gateway.refused({ device, auth: { token: "x", deviceToken: "wrong-token-canary" } });
  await gateway.rpc({}, { authorization: "Bearer wrong-bearer-canary" });

  const first = await client.call("logs.tail", {});
  await gateway.refused({ params: { role: "admin" } });
  const next = await client.call("logs.tail", { cursor: first.cursor });
  const last = await client.call("logs.tail", { limit: 1 });

  const text = first.lines.join("\n");
  for (const secret of [TOKEN, deviceToken, "canary"]) assert(!text.includes(secret), secret);
  assert(text.includes("AUTH_TOKEN_MISMATCH") && text.includes(`"connected"`));
  assertEquals([first.file, first.cursor, first.reset], [gateway.paths.logFile, first.size, false]);
  assert(next.lines.length > 0 && next.lines.every((line: string) => !text.includes(line)));
  assert(next.lines.some((line: string) => line.includes("INVALID_ROLE")));
  assertEquals([last.lines.length, last.truncated], [1, true]);
  assertEquals((await client.call("logs.tail", { cursor: last.size + 1_000 })).reset, true);
});

Deno.test("wake words are set for everybody, and told to a node as soon as it is in", async () => {
  await using gateway = await startTestGateway();
  const writer = await gateway.connect({ scopes: ["operator.write"] });
  const reader = await gateway.connect({ scopes: ["operator.read"] });
  const before = await reader.call("voicewake.get", {});

  const set = await writer.call("voicewake.set", { triggers: [" hey zero ", ""] });
  const told = await reader.event("voicewake.changed");
  const node = await gateway.connect({ role: "node" });
  const greeting = await node.eventFrame("voicewake.changed");

  assertEquals(before, { triggers: ["zero", "claude", "computer"] });
  assertEquals([set, told, greeting.payload], Array(3).fill({ triggers: ["hey zero"] }));
  assertEquals("seq" in greeting, false);
  assertEquals(await reader.call("voicewake.get", {}), { triggers: ["hey zero"] });
});

Deno.test("talk mode is told to all, nodes included; a chat page needs a phone for it", async () => {
  await using gateway = await startTestGateway();
  const page = await gateway.connect({ client: { id: "webchat-ui", mode: "webchat" } });
  const linux = await gateway.connect({ role: "node" });

  const refused = await page.refused("talk.mode", { enabled: true });
  const client = await gateway.connect({ scopes: ["operator.write"] });
  const mode = await client.call("talk.mode", { enabled: true, phase: "listening" });
  const told = await linux.event("talk.mode");
  await gateway.connect({ role: "node", client: { platform: "iOS 18.2", id: "zero-ios" } });
  const off = await page.call("talk.mode", { enabled: false });

  assertEquals([refused.code, refused.message], [
    "UNAVAILABLE",
    "talk disabled: no connected iOS/Android nodes",
  ]);
  assertEquals([mode.enabled, mode.phase, told], [true, "listening", mode]);
  assertEquals([off.enabled, off.phase], [false, null]);
});

Deno.test("nodes get neither presence nor health nor pairing, and operators no pairing without its scope", async () => {
  await using gateway = await startTestGateway();
  const node = await gateway.connect({ role: "node" });
  const reader = await gateway.connect({ scopes: ["operator.read"] });
  const admin = await gateway.connect();

  await gateway.requestPairing();
  await admin.call("system-event", { text: "hello" });
  await admin.call("talk.mode", { enabled: true });
  await Promise.all([node, reader, admin].map((one) => one.event("talk.mode")));

  for (const name of ["presence", "health", "device.pair.requested"]) {
    assert(!node.untakenEvents.includes(name), name);
  }
  assert(reader.untakenEvents.includes("presence"));
  assert(!reader.untakenEvents.includes("device.pair.requested"));
  assert(admin.untakenEvents.includes("device.pair.requested"));
});

Deno.test("each connection counts its events from 1 without a gap", async () => {
  await using gateway = await startTestGateway();
  const connect = (...scopes: string[]) => gateway.connect({ scopes });
  const clients = [await connect("operator.pairing"), await connect("operator.read")];
  const admin = await gateway.connect();

  await gateway.requestPairing();
  for (let count = 0; count < 3; count++) await admin.call("talk.mode", { enabled: true });
  await gateway.requestPairing();
  await admin.call("talk.mode", { enabled: false });

  for (const client of [...clients, admin]) {
    const last = await client.eventFrame("talk.mode", ({ enabled }) => !enabled);
    const numbers = [...client.socket.waiting, last].map(({ seq }) => seq)
      .filter((seq) => seq !== undefined).sort((a, b) => a - b);
    assertEquals(numbers, Array.from(numbers, (_, index) => index + 1));
  }
});

Deno.test("every method also answers under gateway., and through gateway.call with its own scope", async () => {
  await using gateway = await startTestGateway();
  const reader = await gateway.connect({ scopes: ["operator.read"] });

  const health = await reader.call("gateway.health", {});
  const called = await reader.call("gateway.call", { method: "voicewake.get" });
  const twice = await reader.call("gateway.call", {
    method: "gateway.voicewake.get",
    params: {},
  });
  const wake = { mode: "now", text: "t" };
  const missing = await reader.refused("gateway.call", { method: "wake", params: wake });
  const bad = await reader.refused("gateway.call", { method: "logs.tail", params: { limit: 0 } });
  const second = await reader.refused("gateway.call", { method: "connect" });

  assertEquals(health.ok, true);
  assertEquals([called, twice], Array(2).fill({ triggers: ["zero", "claude", "computer"] }));
  assertEquals([missing.code, missing.message], ["FORBIDDEN", "missing scope: operator.write"]);
  assertEquals(bad.message, "invalid logs.tail params: at /limit: must be >= 1");
  assertEquals(second.message, "connect is only valid as the first request");
});

Deno.test("rpc.discover lists every method with scope and JSON schemas, for anybody", async () => {
  await using gateway = await startTestGateway();
  const nobody = await gateway.connect({ scopes: [] });
  const old = await gateway.connect({ protocol: 3 });

  const { version, methods } = await nobody.call("rpc.discover", {});
  const onV3 = (await old.call("rpc.discover", {})).methods;

  assertEquals(version, "0.0.0-test");
  const names = methods.map((one: Json) => one.name);
  assertEquals(names, [...names].sort());
  assertEquals(
    names,
    nobody.hello.features.methods.filter((name: string) => names.includes(name)).sort(),
  );
  const find = (list: Json[], name: string) => list.find((one) => one.name === name);
  assertEquals(find(methods, "wake"), {
    name: "wake",
    summary: find(methods, "wake").summary,
    scope: "operator.write",
    params: {
      type: "object",
      properties: {
        mode: { enum: ["now", "next-heartbeat"] },
        text: { type: "string", minLength: 1 },
      },
      required: ["mode", "text"],
      additionalProperties: false,
    },
    result: {
      type: "object",
      properties: { ok: { type: "boolean" } },
      required: ["ok"],
      additionalProperties: false,
    },
  });
  assertEquals([find(methods, "config.get").scope, find(onV3, "config.get").scope], [
    "operator.read",
    "operator.admin",
  ]);
});

Deno.test("a fault is answered with an id under which the log has all of it", async () => {
  await using gateway = await startTestGateway();
  const client: TestClient = await gateway.connect();
  // The directory of the wake words cannot be made where a file is.
  await Deno.writeTextFile(`${gateway.paths.stateDir}/settings`, "");

  const { code, message } = await client.refused("voicewake.set", { triggers: ["a"] });

  assertEquals(code, "UNAVAILABLE");
  assertMatch(message, /^internal error in voicewake\.set \(id [0-9a-f-]{36}\)$/);
  const [, id] = /id ([0-9a-f-]+)/.exec(message)!;
  const line = (await gateway.log()).split("\n").find((one) => one.includes(id))!;
  assert(line.includes("a method failed") && line.includes("voicewake"));
});
