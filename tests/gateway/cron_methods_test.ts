import { assert, assertEquals } from "@std/assert";
import { startTestGateway } from "../support/gateway.ts";
import { only, says, scriptedModel } from "../support/scripted_model.ts";

const EVERY = { kind: "every", everyMs: 3_600_000 };
const EVENT = {
  name: "bell",
  schedule: EVERY,
  sessionTarget: "main",
  wakeMode: "next-heartbeat",
  payload: { kind: "systemEvent", text: "ding" },
};

Deno.test("jobs are added, changed, run and removed over the wire, and everybody hears of it", async () => {
  await using gateway = await startTestGateway();
  const admin = await gateway.connect();
  const watcher = await gateway.connect({ scopes: ["operator.read"] });

  const job = await admin.call("cron.add", EVENT);
  const added = await watcher.event("cron");
  const listed = await watcher.call("cron.list", {});
  const status = await watcher.call("cron.status", {});
  const early = await admin.call("cron.run", { id: job.id });
  const forced = await admin.call("cron.run", { jobId: job.id, mode: "force" });
  const finished = await watcher.event("cron", ({ action }) => action === "finished");
  const { entries } = await watcher.call("cron.runs", { id: job.id, limit: 1 });
  const changed = await admin.call("cron.update", { id: job.id, patch: { enabled: false } });
  const hidden = await watcher.call("cron.list", {});
  const shown = await watcher.call("cron.list", { includeDisabled: true });
  const removed = await admin.call("cron.remove", { id: job.id });
  const again = await admin.call("cron.remove", { id: job.id });

  assertEquals(added, {
    jobId: job.id,
    action: "added",
    nextRunAtMs: job.state.nextRunAtMs,
  });
  assertEquals(listed.jobs, [job]);
  assertEquals(status, {
    enabled: true,
    storePath: gateway.paths.database,
    jobs: 1,
    nextWakeAtMs: job.state.nextRunAtMs,
  });
  assertEquals(early, { ok: true, ran: false, reason: "not-due" });
  assertEquals(forced, { ok: true, ran: true });
  assertEquals([finished.jobId, finished.status, finished.summary], [job.id, "ok", "ding"]);
  assertEquals([entries.length, entries[0].action, entries[0].summary], [1, "finished", "ding"]);
  assertEquals([changed.enabled, hidden.jobs.length, shown.jobs.length], [false, 0, 1]);
  assertEquals([removed, again], [{ ok: true, removed: true }, { ok: true, removed: false }]);
  assertEquals((await admin.call("status", {})).queuedSystemEvents, ["ding"]);
});

Deno.test("a job that is due runs by itself, with the model of the gateway", async () => {
  const model = scriptedModel(() => says("The sun shines"));
  await using gateway = await startTestGateway({ models: only(model) });
  const client = await gateway.connect();

  await client.call("cron.add", {
    name: "weather",
    schedule: { kind: "at", atMs: Date.now() + 20 },
    sessionTarget: "isolated",
    wakeMode: "next-heartbeat",
    payload: { kind: "agentTurn", message: "How is the weather?" },
    deleteAfterRun: true,
  });
  const { status, summary } = await client.event("cron", ({ action }) => action === "finished");

  assertEquals([status, summary], ["ok", "The sun shines"]);
  assertEquals((await client.call("cron.list", { includeDisabled: true })).jobs, []);
  assertEquals((await client.call("status", {})).queuedSystemEvents, [
    "Cron: weather: The sun shines",
  ]);
});

Deno.test("jobs that make no sense are refused with what is wrong", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect({ protocol: 3 });
  const turn = { kind: "agentTurn", message: "x" };
  const rows: [string, unknown, string][] = [
    ["cron.add", {}, "invalid cron.add params: must have required property 'name'; "],
    [
      "cron.add",
      { ...EVENT, schedule: { kind: "every" } },
      "invalid cron.add params: at /schedule: must have required property 'everyMs'",
    ],
    [
      "cron.add",
      { ...EVENT, schedule: { kind: "every", everyMs: 0 } },
      "invalid cron.add params: at /schedule/everyMs: must be >= 1",
    ],
    [
      "cron.add",
      { ...EVENT, payload: { kind: "systemEvent" } },
      "invalid cron.add params: at /payload: must have required property 'text'",
    ],
    ["cron.add", { ...EVENT, payload: turn }, 'main cron jobs require payload.kind="systemEvent"'],
    [
      "cron.add",
      { ...EVENT, sessionTarget: "isolated" },
      'isolated cron jobs require payload.kind="agentTurn"',
    ],
    ["cron.add", { ...EVENT, agentId: "nobody" }, 'unknown agent id "nobody"'],
    [
      "cron.add",
      { ...EVENT, sessionTarget: "isolated", payload: { ...turn, channel: "pigeon" } },
      "unknown channel: pigeon",
    ],
    ["cron.add", { ...EVENT, extra: 1 }, "invalid cron.add params: at root: unexpected property"],
    ["cron.update", { patch: {} }, "invalid cron.update params: must have required property 'id'"],
    ["cron.update", { id: "x", patch: {} }, "unknown cron job: x"],
    ["cron.remove", {}, "invalid cron.remove params: must have required property 'id'"],
    ["cron.run", { id: "x" }, "unknown cron job: x"],
    ["cron.run", { id: "x", mode: "now" }, "invalid cron.run params: at /mode: must be equal to"],
    ["cron.runs", { id: "x", limit: 0 }, "invalid cron.runs params: at /limit: must be >= 1"],
    ["cron.list", { includeDisabled: 1 }, "invalid cron.list params: at /includeDisabled: "],
    ["cron.status", 1, "invalid cron.status params: must be object"],
  ];

  for (const [method, params, message] of rows) {
    const error = await client.refused(method, params);
    assertEquals(error.code, "INVALID_REQUEST");
    assert(error.message.startsWith(message), `${method}: ${error.message}`);
  }
  assertEquals((await client.call("cron.status", {})).jobs, 0);
});
