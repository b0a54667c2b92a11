import { assert, assertEquals, assertRejects } from "@std/assert";
import { setImmediate } from "node:timers";
import { openLog } from "../../config/log.ts";
import { Audience } from "../../gateway/agent/audience.ts";
import { COMMANDS } from "../../gateway/agent/builtin.ts";
import { type ModelSource, Runs } from "../../gateway/agent/runs.ts";
import { CronJobs, type CronNews, type JobParams } from "../../gateway/cron.ts";
import { readSchedule, type Schedule, Schedules } from "../../gateway/cron_schedule.ts";
import { EventHub } from "../../gateway/events.ts";
import { Sessions } from "../../gateway/sessions.ts";
import { SessionWatchers } from "../../gateway/sessions_events.ts";
import { Store } from "../../gateway/store.ts";
import { SystemEvents } from "../../gateway/system_events.ts";
import { RpcError } from "../../rpc/error.ts";
import { hangs, only, says, scriptedModel } from "../support/scripted_model.ts";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
/** A Monday. */
const START = Date.parse("2026-03-02T08:00:00Z");
const MAIN = "agent:main:main";

/** The clock on the wall, set by a test; it fires whatever it has passed. */
class Clock {
  nowMs = START;
  readonly #timers = new Set<{ atMs: number; wake: () => void }>();

  readonly now = () => this.nowMs;

  readonly after = (ms: number, wake: () => void) => {
    const timer = { atMs: this.nowMs + ms, wake };
    this.#timers.add(timer);
    return () => void this.#timers.delete(timer);
  };

  /** Moves on and rings once, as a machine does that slept. */
  async jump(ms: number) {
    this.nowMs += ms;
    const due = [...this.#timers].filter(({ atMs }) => atMs <= this.nowMs || ms < 0);
    for (const timer of due) {
      this.#timers.delete(timer);
      timer.wake();
    }
    await settled();
  }

  /** Moves on from timer to timer. */
  async pass(ms: number) {
    const endMs = this.nowMs + ms;
    while (this.nowMs < endMs) {
      const next = Math.min(endMs, ...[...this.#timers].map(({ atMs }) => atMs));
      await this.jump(Math.max(0, next - this.nowMs));
    }
  }
}

/** Whatever can go on without the clock has gone on. */
async function settled() {
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** The parts of a gateway that jobs need. */
async function bench(
  { models = { pick: () => [] }, path = ":memory:", clock = new Clock(), config = {} }: {
    models?: ModelSource;
    path?: string;
    clock?: Clock;
    config?: Record<string, unknown>;
  } = {},
) {
  // The first expression loads the library; the clock of a test does not wait for that.
  await import("croner");
  await using parts = new AsyncDisposableStack();
  const store = parts.use(Store.open(path));
  const dir = await Deno.makeTempDir();
  parts.defer(() => Deno.remove(dir, { recursive: true }));
  const log = parts.use(openLog({ file: `${dir}/log`, level: "debug" }));
  const current = { reading: { config } } as never;
  const sessions = new Sessions(store, current, new SessionWatchers());
  const systemEvents = new SystemEvents(store);
  const sent: string[] = [];
  const runs = parts.use(
    new Runs({
      store,
      sessions,
      config: current,
      systemEvents,
      audience: new Audience(new EventHub()),
      models,
      tools: [],
      commands: COMMANDS,
      callGateway: () => Promise.reject(new Error("no gateway is here")),
      replies: () => ({ enqueue: (to, { text }) => void sent.push(`${to.to}: ${text}`) }),
      version: "test",
      log,
    }),
  );
  const news: CronNews[] = [];
  const watchers = new Set<() => void>();
  const woken: string[] = [];
  const jobs = parts.use(
    new CronJobs({
      store,
      config: current,
      sessions,
      systemEvents,
      models,
      runs: () => runs,
      wake: (agentId) => void woken.push(agentId),
      publish(one) {
        news.push(one);
        for (const look of watchers) look();
      },
      log,
      now: clock.now,
      after: clock.after,
    }),
  );
  runs.recover();
  jobs.start();
  await settled();
  const owned = parts.move();
  return {
    ...{ store, sessions, systemEvents, runs, jobs, news, woken, clock, sent },
    told: () => systemEvents.queued(MAIN),
    /** Resolves when so many runs have ended. */
    finished: (count: number) =>
      new Promise<CronNews[]>((resolve) => {
        const look = () => {
          const found = news.filter(({ action }) => action === "finished");
          if (found.length >= count) resolve(found);
        };
        watchers.add(look);
        look();
      }),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function event(schedule: JobParams["schedule"], more: Partial<JobParams> = {}): JobParams {
  return {
    name: "job",
    schedule,
    sessionTarget: "main",
    wakeMode: "next-heartbeat",
    payload: { kind: "systemEvent", text: "ding" },
    ...more,
  };
}

function turn(
  payload: Partial<JobParams["payload"]> = {},
  more: Partial<JobParams> = {},
): JobParams {
  return {
    ...event({ kind: "every", everyMs: HOUR }),
    sessionTarget: "isolated",
    payload: { kind: "agentTurn", message: "look", ...payload },
    ...more,
  };
}

Deno.test("the next time after a moment, of each kind of schedule", async () => {
  const schedules = new Schedules();
  const at = (text: string) => Date.parse(text);
  const every = (everyMs: number, anchorMs?: number) =>
    readSchedule({ kind: "every", everyMs, anchorMs }, START);
  const cron = (expr: string, tz?: string): Schedule => ({ kind: "cron", expr, tz });
  const rows: [Schedule, number, number | undefined][] = [
    [{ kind: "at", atMs: START + 1 }, START, START + 1],
    [{ kind: "at", atMs: START }, START, undefined],
    [every(HOUR), START, START + HOUR],
    [every(HOUR), START + 10 * HOUR + 1, START + 11 * HOUR],
    [every(HOUR, START + DAY), START, START + DAY],
    [every(1), START, START + 1_000],
    // An interval goes on where it was when the clock is set back.
    [every(HOUR), START - DAY, START - DAY + HOUR],
    [cron("0 9 * * 1-5", "UTC"), START, at("2026-03-02T09:00:00Z")],
    [cron("0 9 * * 1-5", "UTC"), at("2026-03-06T09:00:00Z"), at("2026-03-09T09:00:00Z")],
    [cron("0 9 * * *", "Europe/Berlin"), at("2026-03-28T12:00:00Z"), at("2026-03-29T07:00:00Z")],
    [cron("0 9 * * *", "Europe/Berlin"), at("2026-03-27T12:00:00Z"), at("2026-03-28T08:00:00Z")],
    [cron("30 2 * * *", "Europe/Berlin"), at("2026-10-24T12:00:00Z"), at("2026-10-25T00:30:00Z")],
    [cron("30 2 * * *", "Europe/Berlin"), at("2026-10-25T00:30:00Z"), at("2026-10-26T01:30:00Z")],
    [cron("0 0 30 2 *", "UTC"), START, undefined],
  ];

  for (const [schedule, after, expected] of rows) {
    assertEquals(await schedules.next(schedule, after), expected, JSON.stringify(schedule));
  }
});

Deno.test("a schedule that cannot be read or never comes is refused", async () => {
  await using at = await bench();
  const rows: [JobParams["schedule"], string][] = [
    [{ kind: "cron", expr: "every day" }, 'invalid cron expression "every day"'],
    [{ kind: "cron", expr: "61 * * * *" }, 'invalid cron expression "61 * * * *"'],
    [{ kind: "cron", expr: "0 9 * * *", tz: "Mars/Olympus" }, 'invalid time zone "Mars/Olympus"'],
    [{ kind: "cron", expr: "0 0 30 2 *" }, "the schedule lies in the past, or never comes"],
    [{ kind: "at", atMs: START - HOUR }, "the schedule lies in the past, or never comes"],
  ];

  for (const [schedule, message] of rows) {
    await assertRejects(() => at.jobs.add(event(schedule)), RpcError, message);
  }
  assertEquals(at.jobs.size, 0);
});

Deno.test("a job tells the main session at its time, and the world that it did", async () => {
  await using at = await bench();

  const job = await at.jobs.add(event({ kind: "at", atMs: START + HOUR }, { wakeMode: "now" }));
  await at.clock.pass(HOUR - 10_000);
  const before = at.told();
  await at.clock.pass(10_000);

  assertEquals([before, at.told(), at.woken], [[], ["ding"], ["main"]]);
  assertEquals(at.news.map(({ action, status, runAtMs }) => [action, status, runAtMs]), [
    ["added", undefined, undefined],
    ["started", undefined, START + HOUR],
    ["finished", "ok", START + HOUR],
  ]);
  const [done] = at.jobs.list({ includeDisabled: true });
  assertEquals([done.enabled, done.state.lastStatus, done.state.nextRunAtMs], [
    false,
    "ok",
    undefined,
  ]);
  assertEquals(at.jobs.runs(job.id).map(({ status, summary }) => [status, summary]), [
    ["ok", "ding"],
  ]);
  await at.clock.pass(HOUR);
  assertEquals(at.told(), ["ding"]);
});

Deno.test("intervals and expressions go on; a job that is to go after its run is gone", async () => {
  await using at = await bench();
  const named = (text: string) => ({ payload: { kind: "systemEvent", text } as const });

  await at.jobs.add(event({ kind: "every", everyMs: 30 * MINUTE }, named("half")));
  await at.jobs.add(event({ kind: "cron", expr: "0 * * * *", tz: "UTC" }, named("hour")));
  await at.jobs.add(
    event({ kind: "at", atMs: START + MINUTE }, { ...named("once"), deleteAfterRun: true }),
  );
  await at.clock.pass(2 * HOUR);

  const counts = Map.groupBy(at.told(), (text) => text);
  assertEquals(["half", "hour", "once"].map((text) => counts.get(text)?.length), [4, 2, 1]);
  assertEquals(at.jobs.size, 2);
  assertEquals(at.news.filter(({ action }) => action === "removed").length, 1);
});

Deno.test("what was due while the gateway was down runs once when it is back", async () => {
  const dir = await Deno.makeTempDir();
  const path = `${dir}/zero.sqlite`;
  const clock = new Clock();
  const named = (text: string) => ({ payload: { kind: "systemEvent", text } as const });
  {
    await using at = await bench({ path, clock });
    await at.jobs.add(event({ kind: "at", atMs: START + HOUR }, named("at")));
    await at.jobs.add(event({ kind: "every", everyMs: MINUTE }, named("every")));
    await at.jobs.add(event({ kind: "cron", expr: "*/5 * * * *", tz: "UTC" }, named("cron")));
    await at.jobs.add(event({ kind: "at", atMs: START + 2 * DAY }, named("later")));
    await at.jobs.add(
      event({ kind: "at", atMs: START + HOUR }, { ...named("off"), enabled: false }),
    );
  }
  clock.nowMs += DAY;

  await using at = await bench({ path, clock });
  await at.finished(3);

  assertEquals(at.told().toSorted(), ["at", "cron", "every"]);
  const next = at.jobs.list().map(({ state }) => state.nextRunAtMs! - START);
  assertEquals(next, [DAY + MINUTE, DAY + 5 * MINUTE, 2 * DAY]);
  await Deno.remove(dir, { recursive: true });
});

Deno.test("a clock that jumps forward runs what it passed once, set back it does not stall", async () => {
  await using at = await bench();
  await at.jobs.add(event({ kind: "every", everyMs: MINUTE }));
  const hourly = await at.jobs.add(
    event({ kind: "cron", expr: "0 * * * *", tz: "UTC" }, { enabled: true }),
  );

  await at.clock.jump(10 * DAY + 5_000);
  const forward = at.told().length;
  await at.clock.jump(-10 * DAY);
  await at.clock.pass(5 * MINUTE);

  assertEquals(forward, 2);
  assertEquals(at.told().length, 2 + 5);
  const { state } = at.jobs.list().find(({ id }) => id === hourly.id)!;
  assertEquals(state.nextRunAtMs, START + HOUR);
});

Deno.test("the agent works in a session of the job's own, anew each time, and the main session is told", async () => {
  const model = scriptedModel((_, turns) => says(turns === 2 ? "HEARTBEAT_OK" : `said ${turns}`));
  await using at = await bench({ models: only(model) });
  const job = await at.jobs.add(turn({}, { name: "watch", wakeMode: "now" }));

  for (let count = 1; count <= 3; count++) {
    await at.clock.pass(HOUR);
    await at.finished(count);
  }

  assertEquals(at.told(), ["Cron: watch: said 0", "Cron: watch: said 1"]);
  assertEquals(at.woken, ["main", "main"]);
  assertEquals(model.turns.map(({ messages }) => messages.length), [1, 1, 1]);
  const key = `agent:main:cron:${job.id}`;
  assertEquals(at.sessions.history(key).messages.length, 2);
  assertEquals(at.jobs.runs(job.id).map(({ summary }) => summary), [
    "said 0",
    "said 1",
    "HEARTBEAT_OK",
  ]);
  assertEquals(at.jobs.runs(job.id, 1).map(({ summary }) => summary), ["HEARTBEAT_OK"]);
});

Deno.test("an answer goes to the chat that is named or the last one; without one the job says so", async () => {
  const model = scriptedModel(() => says("news"));
  await using at = await bench({ models: only(model) });
  const run = async (payload: Partial<JobParams["payload"]>, count: number) => {
    const { id } = await at.jobs.add(turn(payload));
    await at.jobs.run(id, { isForced: true });
    return (await at.finished(count)).at(-1)!;
  };

  const nowhere = await run({ deliver: true }, 1);
  const anyway = await run({ deliver: true, bestEffortDeliver: true }, 2);
  at.sessions.ensure(MAIN, {
    deliveryContext: { channel: "telegram", accountId: "default", to: "7" },
  });
  await run({ deliver: true }, 3);
  await run({ channel: "telegram", to: "9" }, 4);
  await run({ channel: "telegram", to: "9", deliver: false }, 5);

  assertEquals([nowhere.status, nowhere.error], ["error", "there is no chat to deliver to: last"]);
  assertEquals(anyway.status, "ok");
  assertEquals(at.sent, ["7: news", "9: news"]);
});

Deno.test("without a model a job with commands works, and another one disturbs nobody", async () => {
  await using at = await bench();
  const plain = await at.jobs.add(turn({ deliver: true }));
  const command = await at.jobs.add(turn({ message: "/whoami" }));

  await at.jobs.run(plain.id, { isForced: true });
  await at.jobs.run(command.id, { isForced: true });
  const [skipped, worked] = await at.finished(2);

  assertEquals([skipped.jobId, skipped.status, worked.status], [plain.id, "skipped", "ok"]);
  assert(skipped.error!.includes("zero auth add <provider>"));
  assert(worked.summary!.includes("an owner of this gateway"));
  assertEquals(at.sent, []);
});

Deno.test("a job at work is not begun again, and what it missed is not made up for", async () => {
  const gate = Promise.withResolvers<void>();
  const model = scriptedModel(async function* (_, turns) {
    if (turns === 0) await gate.promise;
    yield* says("done");
  });
  await using at = await bench({ models: only(model) });
  const { id } = await at.jobs.add(turn({}, { schedule: { kind: "every", everyMs: MINUTE } }));

  await at.clock.pass(5 * MINUTE + 10_000);
  const busy = await at.jobs.run(id, { isForced: true });
  gate.resolve();
  await at.finished(1);

  assertEquals(busy, { ran: false, reason: "already-running" });
  assertEquals(model.turns.length, 1);
  assertEquals(at.jobs.list()[0].state.nextRunAtMs, START + 6 * MINUTE);
});

Deno.test("a job that was at work when the gateway stopped ends after the next start", async () => {
  const dir = await Deno.makeTempDir();
  const path = `${dir}/zero.sqlite`;
  const clock = new Clock();
  let id: string;
  {
    const model = scriptedModel(({ signal }) => hangs(signal));
    await using at = await bench({ path, clock, models: only(model) });
    ({ id } = await at.jobs.add(turn()));
    await at.jobs.run(id, { isForced: true });
  }

  const model = scriptedModel(() => says("at last"));
  await using at = await bench({ path, clock, models: only(model) });
  const [{ status, summary }] = await at.finished(1);

  assertEquals([status, summary], ["ok", "at last"]);
  assertEquals(at.jobs.runs(id).length, 1);
  assertEquals(at.jobs.list()[0].state.runningAtMs, undefined);
  await Deno.remove(dir, { recursive: true });
});

Deno.test("a few jobs are at work at a time, the others have their turn", async () => {
  const gate = Promise.withResolvers<void>();
  const full = Promise.withResolvers<void>();
  let [working, most] = [0, 0];
  const model = scriptedModel(async function* () {
    most = Math.max(most, ++working);
    if (working === 8) full.resolve();
    await gate.promise;
    working--;
    yield* says("done");
  });
  await using at = await bench({ models: only(model) });
  for (let count = 0; count < 20; count++) {
    await at.jobs.add(turn({}, { schedule: { kind: "at", atMs: START + MINUTE } }));
  }

  await at.clock.pass(MINUTE);
  await full.promise;
  gate.resolve();
  const all = await at.finished(20);

  assertEquals([most, all.every(({ status }) => status === "ok")], [8, true]);
  assertEquals(new Set(all.map(({ jobId }) => jobId)).size, 20);
});

Deno.test("a change is kept, plans anew, and lets the state be", async () => {
  await using at = await bench();
  const { id } = await at.jobs.add(event({ kind: "every", everyMs: HOUR }));
  await at.clock.pass(HOUR);

  const off = await at.jobs.update(id, { enabled: false });
  const on = await at.jobs.update(id, { enabled: true, name: "renamed" });
  const moved = await at.jobs.update(id, { schedule: { kind: "every", everyMs: DAY } });
  const text = await at.jobs.update(id, { payload: { kind: "systemEvent", text: "dong" } });

  assertEquals([off.enabled, off.state.nextRunAtMs, off.state.lastStatus], [
    false,
    undefined,
    "ok",
  ]);
  assertEquals([on.name, on.state.nextRunAtMs], ["renamed", START + 2 * HOUR]);
  assertEquals(moved.state.nextRunAtMs, START + HOUR + DAY);
  assertEquals(text.payload, { kind: "systemEvent", text: "dong" });
  await assertRejects(
    () => at.jobs.update(id, { payload: { kind: "agentTurn", message: "x" } }),
    RpcError,
    'main cron jobs require payload.kind="systemEvent"',
  );
  await assertRejects(() => at.jobs.update("x", {}), RpcError, "unknown cron job: x");
});

Deno.test("switched off, jobs wait; whoever asks for one still gets it", async () => {
  await using at = await bench({ config: { cron: { enabled: false } } });
  const { id } = await at.jobs.add(event({ kind: "every", everyMs: MINUTE }));

  await at.clock.pass(10 * MINUTE);
  const quiet = at.told();
  await at.jobs.run(id, { isForced: true });

  assertEquals([quiet, at.told(), at.jobs.isEnabled], [[], ["ding"], false]);
});

Deno.test("the history of a job is bounded", async () => {
  await using at = await bench();
  const { id } = await at.jobs.add(event({ kind: "every", everyMs: DAY }));

  for (let count = 0; count < 1_010; count++) await at.jobs.run(id, { isForced: true });

  assertEquals(at.jobs.runs(id, 5_000).length, 1_000);
});
