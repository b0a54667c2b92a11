import { assert, assertEquals } from "@std/assert";
import { parseConfig } from "../../config/load.ts";
import { Health, HealthMonitor, Status } from "../../gateway/health.ts";
import { Sessions } from "../../gateway/sessions.ts";
import { Store } from "../../gateway/store.ts";
import { SystemEvents } from "../../gateway/system_events.ts";
import { explain, problems } from "../../rpc/shape.ts";

const AGENTS = `{ agents: { list: [
  { id: "main" }, { id: "anna", name: "Anna", default: true, heartbeat: { every: "30m" } },
] } }`;

async function monitorOf(raw: string) {
  const clock = { nowMs: 1_000_000 };
  const store = Store.open(":memory:");
  const systemEvents = new SystemEvents(store);
  const heartbeats = { areEnabled: true };
  const config = { reading: await parseConfig(raw, { path: "/zero.json", env: {} }) };
  assert(config.reading.valid, JSON.stringify(config.reading.issues));
  const monitor = new HealthMonitor({
    version: "1.2.3",
    config,
    sessions: new Sessions(store, config),
    heartbeats,
    systemEvents,
    now: () => clock.nowMs,
  });
  return {
    ...{ clock, config, heartbeats, monitor, systemEvents },
    [Symbol.dispose]: () => store[Symbol.dispose](),
  };
}

Deno.test("health has the shape of the protocol, for a gateway that has nothing yet", async () => {
  using at = await monitorOf("{}");
  const sessions = { path: ":memory:", count: 0, recent: [] };

  const { health } = at.monitor.refresh();

  assertEquals(explain(problems(health, Health)), "");
  assertEquals({ ...health, durationMs: 0 }, {
    ok: true,
    ts: 1_000_000,
    durationMs: 0,
    channels: {},
    channelOrder: [],
    channelLabels: {},
    heartbeatSeconds: 0,
    defaultAgentId: "main",
    agents: [{
      agentId: "main",
      isDefault: true,
      heartbeat: { enabled: false, every: "0m", everyMs: null, prompt: "", target: "none" },
      sessions,
    }],
    sessions,
  });
});

Deno.test("health and status name the agents of the configuration, the default one first", async () => {
  using at = await monitorOf(AGENTS);

  const { health } = at.monitor.refresh();
  const status = at.monitor.status();

  assertEquals(health.defaultAgentId, "anna");
  assertEquals(health.heartbeatSeconds, 1_800);
  assertEquals(health.agents.map(({ agentId, name }) => [agentId, name]), [
    ["anna", "Anna"],
    ["main", undefined],
  ]);
  assertEquals(health.agents[0].heartbeat.enabled, true);
  assertEquals(explain(problems(JSON.parse(JSON.stringify(status)), Status)), "");
  assertEquals(status.heartbeat, {
    defaultAgentId: "anna",
    agents: [
      { agentId: "anna", enabled: true, every: "30m", everyMs: 1_800_000 },
      { agentId: "main", enabled: false, every: "0m", everyMs: null },
    ],
  });
  assertEquals(status.runtimeVersion, "1.2.3");
});

Deno.test("heartbeats that are switched off are shown as such", async () => {
  using at = await monitorOf(AGENTS);
  at.heartbeats.areEnabled = false;

  assertEquals(at.monitor.refresh().health.agents[0].heartbeat.enabled, false);
});

Deno.test("status shows what the main session was not told yet", async () => {
  using at = await monitorOf(AGENTS);

  at.systemEvents.enqueue("agent:anna:main", "Battery low");
  at.systemEvents.enqueue("agent:main:main", "not shown");

  assertEquals(at.monitor.status().queuedSystemEvents, ["Battery low"]);
});

Deno.test("a snapshot is good for a minute", async () => {
  using at = await monitorOf("{}");
  assertEquals(at.monitor.cached(), undefined);

  at.monitor.refresh();
  at.clock.nowMs += 59_999;
  assertEquals(at.monitor.cached()?.ts, 1_000_000);
  at.clock.nowMs += 1;

  assertEquals(at.monitor.cached(), undefined);
});

Deno.test("the version rises only when a snapshot says something new", async () => {
  using at = await monitorOf("{}");
  const refresh = () => {
    at.clock.nowMs += 1_000;
    return [at.monitor.refresh().isNews, at.monitor.version];
  };

  assertEquals(refresh(), [true, 1]);
  assertEquals(refresh(), [false, 1]);
  at.config.reading = await parseConfig(AGENTS, { path: "/zero.json", env: {} });
  assertEquals(refresh(), [true, 2]);
  assertEquals(refresh(), [false, 2]);
});

Deno.test("the text for newcomers is the last snapshot", async () => {
  using at = await monitorOf("{}");
  assertEquals(at.monitor.json, "{}");

  const { health } = at.monitor.refresh();

  assertEquals(JSON.parse(at.monitor.json), health);
});
