import { assert, assertEquals } from "@std/assert";
import { parseConfig } from "../../config/load.ts";
import type { Admission } from "../../gateway/admission.ts";
import { sessionDefaults } from "../../gateway/agents.ts";
import { HealthMonitor } from "../../gateway/health.ts";
import { Hello } from "../../gateway/hello.ts";
import { METHODS } from "../../gateway/methods/mod.ts";
import { Presence } from "../../gateway/presence.ts";
import { Sessions } from "../../gateway/sessions.ts";
import { Store } from "../../gateway/store.ts";
import { SystemEvents } from "../../gateway/system_events.ts";

const OPERATOR: Admission = { role: "operator", scopes: ["operator.read"], method: "token" };
const WITH_DEVICE: Admission = {
  ...OPERATOR,
  method: "device-token",
  deviceId: "d",
  deviceToken: { token: "t".repeat(32), scopes: ["operator.read"], issuedAtMs: 7 },
};

async function helloOf() {
  const store = Store.open(":memory:");
  const config = { reading: await parseConfig("{}", { path: "/zero.json", env: {} }) };
  const health = new HealthMonitor({
    version: "1.2.3",
    config,
    sessions: new Sessions(store, config),
    heartbeats: { areEnabled: true },
    systemEvents: new SystemEvents(store),
  });
  health.refresh();
  const hello = new Hello({
    version: "1.2.3",
    host: "box",
    methods: METHODS.flatMap(({ name }) => [name, `gateway.${name}`]),
    startedAtMs: Date.now() - 5_000,
    configPath: "/zero.json",
    stateDir: "/state",
    authMode: "token",
    sessionDefaults: () => sessionDefaults(config.reading.config),
  }, health);
  const read = (protocol: number, admission: Admission) =>
    JSON.parse(hello.json("conn-1", protocol, admission));
  return { hello, read, [Symbol.dispose]: () => store[Symbol.dispose]() };
}

Deno.test("hello-ok on protocol 4 says everything, and always what was granted", async () => {
  using at = await helloOf();

  const { features, snapshot, ...rest } = at.read(4, OPERATOR);

  assertEquals(rest, {
    type: "hello-ok",
    protocol: 4,
    server: { version: "1.2.3", host: "box", connId: "conn-1" },
    auth: { method: "token", role: "operator", scopes: ["operator.read"] },
    policy: { maxPayload: 26_214_400, maxBufferedBytes: 52_428_800, tickIntervalMs: 30_000 },
  });
  assertEquals(features.capabilities, []);
  assert(features.methods.includes("health") && features.events.includes("tick"));
  const { uptimeMs, health, ...facts } = snapshot;
  assert(uptimeMs >= 5_000);
  assertEquals(health.ok, true);
  assertEquals(facts, {
    presence: [],
    stateVersion: { presence: 0, health: 1 },
    configPath: "/zero.json",
    stateDir: "/state",
    sessionDefaults: {
      defaultAgentId: "main",
      mainKey: "main",
      mainSessionKey: "agent:main:main",
      scope: "per-sender",
    },
    authMode: "token",
  });
});

Deno.test("protocol 3 has auth only with a device token, and no auth mode", async () => {
  using at = await helloOf();

  const without = at.read(3, OPERATOR);
  const withToken = at.read(3, WITH_DEVICE);

  assertEquals(["auth" in without, "authMode" in without.snapshot], [false, false]);
  assertEquals(withToken.auth, {
    deviceToken: "t".repeat(32),
    role: "operator",
    scopes: ["operator.read"],
    issuedAtMs: 7,
  });
});

Deno.test("protocol 4 adds the device token to what was granted", async () => {
  using at = await helloOf();

  assertEquals(at.read(4, WITH_DEVICE).auth, {
    method: "device-token",
    role: "operator",
    scopes: ["operator.read"],
    deviceToken: "t".repeat(32),
    issuedAtMs: 7,
  });
});

Deno.test("newcomers see the presence that was told to everybody last", async () => {
  using at = await helloOf();
  const entry = { text: "Node: a · mode ui", ts: 1 };

  at.hello.showPresence([entry], 5);
  const first = at.read(4, OPERATOR).snapshot;
  at.hello.showPresence([], 6);
  const second = at.read(4, OPERATOR).snapshot;

  assertEquals([first.presence, first.stateVersion.presence], [[entry], 5]);
  assertEquals([second.presence, second.stateVersion.presence], [[], 6]);
});

Deno.test("hello-ok stays under 64 KiB when 5,000 clients are present, the newest of them listed", async () => {
  using at = await helloOf();
  const presence = new Presence({ host: "box", ip: "10.0.0.1", version: "1", platform: "linux" });
  for (let count = 1; count <= 5_000; count++) {
    presence.join(`client-${count}`, {
      host: `Client number ${count} with a name that is not short`,
      version: "2026.9.1",
      platform: "macos 15.1",
      mode: "backend",
      deviceId: String(count).padStart(64, "0"),
      roles: ["operator"],
      scopes: ["operator.admin", "operator.approvals", "operator.pairing"],
      instanceId: crypto.randomUUID(),
    });
  }

  at.hello.showPresence(presence.list(), presence.version);
  const text = at.hello.json("c", 4, WITH_DEVICE);

  assert(new TextEncoder().encode(text).length < 65_536, `${text.length}`);
  const [self, newest] = JSON.parse(text).snapshot.presence;
  assertEquals(self.mode, "gateway");
  assert(newest.host.startsWith("Client number 5000"));
});

Deno.test("an entry of characters that take many bytes does not make it larger", async () => {
  using at = await helloOf();
  const wide = Array.from({ length: 200 }, () => ({ text: "😀".repeat(400), ts: 1 }));

  at.hello.showPresence(wide, 1);
  const text = at.hello.json("c", 4, OPERATOR);

  const bytes = new TextEncoder().encode(text).length;
  assert(bytes < 65_536, `${bytes} bytes`);
});
