// Scheduled jobs (§7.11): kept in the database, run when they are due, and once when they were due
// while the gateway was down. A job either tells the main session something, or has the agent work in a
// session of the job's own.

import type { StatementSync } from "node:sqlite";
import type { Log } from "../config/log.ts";
import { RpcError } from "../rpc/error.ts";
import {
  boolean,
  type Infer,
  integer,
  nonEmpty,
  object,
  oneOf,
  optional,
  rule,
  text,
} from "../rpc/shape.ts";
import { COMMANDS, readCommand } from "./agent/builtin.ts";
import { ACK_MAX_CHARS, worthSaying } from "./agent/quiet.ts";
import type { ModelSource, Run, RunOutcome, Runs } from "./agent/runs.ts";
import { agentsOf, normalizeAgentId } from "./agents.ts";
import type { Address } from "./channels/channel.ts";
import { readSchedule, type Schedule, ScheduleParams, Schedules } from "./cron_schedule.ts";
import { chatFor, isKnownChannel } from "./delivery.ts";
import type { CurrentConfig } from "./gateway.ts";
import type { After } from "./limiter.ts";
import type { Sessions } from "./sessions.ts";
import type { Store } from "./store.ts";
import type { SystemEvents } from "./system_events.ts";

const payloadFields = {
  text: optional(nonEmpty()),
  message: optional(nonEmpty()),
  model: optional(nonEmpty()),
  thinking: optional(nonEmpty()),
  timeoutSeconds: optional(integer({ min: 0, max: 86_400 })),
  deliver: optional(boolean()),
  channel: optional(nonEmpty()),
  to: optional(nonEmpty()),
  bestEffortDeliver: optional(boolean()),
};
const PayloadPatch = object({ kind: oneOf(["systemEvent", "agentTurn"]), ...payloadFields });
const Payload = rule(PayloadPatch, payloadVerdict);
type Payload = Infer<typeof Payload>;

const Isolation = object({
  /** What stands before it where the main session is told. */
  postToMainPrefix: optional(text()),
  postToMainMode: optional(oneOf(["summary", "full"])),
  postToMainMaxChars: optional(integer({ min: 0 })),
});

/** What `cron.add` takes. */
export const JobParams = object({
  name: nonEmpty(),
  schedule: ScheduleParams,
  sessionTarget: oneOf(["main", "isolated"]),
  wakeMode: oneOf(["now", "next-heartbeat"]),
  payload: Payload,
  agentId: optional(text()),
  description: optional(text()),
  enabled: optional(boolean()),
  deleteAfterRun: optional(boolean()),
  isolation: optional(Isolation),
});
export type JobParams = Infer<typeof JobParams>;

/** What `cron.update` takes; a payload of the same kind keeps what is not named. */
export const JobPatch = object({
  name: optional(nonEmpty()),
  schedule: optional(ScheduleParams),
  sessionTarget: optional(oneOf(["main", "isolated"])),
  wakeMode: optional(oneOf(["now", "next-heartbeat"])),
  payload: optional(PayloadPatch),
  agentId: optional(text()),
  description: optional(text()),
  enabled: optional(boolean()),
  deleteAfterRun: optional(boolean()),
  isolation: optional(Isolation),
});
export type JobPatch = Infer<typeof JobPatch>;

export type RunStatus = "ok" | "error" | "skipped";

export interface Job extends Omit<JobParams, "schedule" | "enabled"> {
  id: string;
  enabled: boolean;
  schedule: Schedule;
  createdAtMs: number;
  updatedAtMs: number;
  state: {
    nextRunAtMs?: number;
    runningAtMs?: number;
    lastRunAtMs?: number;
    lastStatus?: RunStatus;
    lastError?: string;
    lastDurationMs?: number;
  };
}

/** One run of a job that has ended. */
export interface RunEntry {
  ts: number;
  jobId: string;
  action: "finished";
  status: RunStatus;
  error?: string;
  summary?: string;
  runAtMs: number;
  durationMs: number;
  nextRunAtMs?: number;
}

/** The event `cron` (§8.1). */
export interface CronNews {
  jobId: string;
  action: "added" | "updated" | "removed" | "started" | "finished";
  runAtMs?: number;
  durationMs?: number;
  status?: RunStatus;
  error?: string;
  summary?: string;
  nextRunAtMs?: number;
}

export interface CronOptions {
  store: Store;
  config: CurrentConfig;
  sessions: Sessions;
  systemEvents: SystemEvents;
  models: ModelSource;
  /** Asked for when a job runs. */
  runs(): Runs;
  /** Has an agent look at what its main session is to be told. */
  wake(agentId: string): void;
  publish(news: CronNews): void;
  log: Log;
  /** @returns milliseconds since the epoch, as the clock on the wall shows them */
  now?(): number;
  after?: After;
}

const MAX_JOBS = 1_000;
/** Jobs the agent works at together; the others wait for their turn. */
const MAX_RUNNING = 8;
/** Runs remembered of a job, and of all. */
const MAX_ENTRIES_OF_JOB = 1_000;
const MAX_ENTRIES = 20_000;
/** The clock is looked at this often at least: it may be set, and the machine may sleep. */
const MAX_WAIT_MS = 60_000;
/** A clock that goes back further was set, and what was planned by it is planned anew. */
const CLOCK_SLACK_MS = 60_000;
/** A time that has just passed still counts as now. */
const LATE_MS = 60_000;
const SUMMARY_CHARS = 2_000;
const FULL_CHARS = 8_000;

export class CronJobs implements AsyncDisposable {
  readonly #options: CronOptions;
  readonly #now: () => number;
  readonly #after: After;
  readonly #schedules = new Schedules();
  readonly #jobs = new Map<string, Job>();
  /** Jobs at work, by id. */
  readonly #running = new Set<string>();
  readonly #working = new Set<Promise<void>>();
  readonly #put: StatementSync;
  readonly #drop: StatementSync;
  readonly #addRun: StatementSync;
  readonly #prune: StatementSync;
  readonly #pruneOfJob: StatementSync;
  readonly #runsOf: StatementSync;
  #cancelTimer = () => {};
  #lastLookMs: number;
  #isStarted = false;

  constructor(options: CronOptions) {
    const { store } = options;
    this.#options = options;
    this.#now = options.now ?? Date.now;
    this.#after = options.after ?? afterTimeout;
    this.#lastLookMs = this.#now();
    this.#put = store.prepare(
      `INSERT INTO cron_jobs (job_id, job) VALUES (?, ?)
       ON CONFLICT DO UPDATE SET job = excluded.job`,
    );
    this.#drop = store.prepare("DELETE FROM cron_jobs WHERE job_id = ?");
    this.#addRun = store.prepare("INSERT INTO cron_runs (job_id, entry) VALUES (?, ?)");
    this.#prune = store.prepare(
      `DELETE FROM cron_runs WHERE run_row <= (SELECT max(run_row) FROM cron_runs) - ${MAX_ENTRIES}`,
    );
    this.#pruneOfJob = store.prepare(
      `DELETE FROM cron_runs WHERE job_id = ? AND run_row <= (
         SELECT run_row FROM cron_runs WHERE job_id = ? ORDER BY run_row DESC
         LIMIT 1 OFFSET ${MAX_ENTRIES_OF_JOB})`,
    );
    this.#runsOf = store.prepare(
      "SELECT entry FROM cron_runs WHERE job_id = ? ORDER BY run_row DESC LIMIT ?",
    );
    for (const row of store.prepare("SELECT job FROM cron_jobs ORDER BY rowid").all()) {
      const job = JSON.parse(String(row.job)) as Job;
      this.#jobs.set(job.id, job);
    }
  }

  get isEnabled(): boolean {
    return this.#options.config.reading.config.cron?.enabled !== false;
  }

  /** When the next job is due. */
  get nextWakeAtMs(): number | undefined {
    const times = [...this.#jobs.values()].flatMap(({ enabled, state }) =>
      enabled && state.nextRunAtMs !== undefined ? [state.nextRunAtMs] : []
    );
    return times.length > 0 ? Math.min(...times) : undefined;
  }

  get size(): number {
    return this.#jobs.size;
  }

  /** The next one first; those without a next time last. */
  list({ includeDisabled = false } = {}): Job[] {
    const timeOf = ({ state }: Job) => state.nextRunAtMs ?? Infinity;
    return [...this.#jobs.values()]
      .filter(({ enabled }) => enabled || includeDisabled)
      .sort((a, b) => timeOf(a) === timeOf(b) ? 0 : timeOf(a) - timeOf(b));
  }

  /** The last runs of a job, the oldest of them first; also of one that is gone. */
  runs(jobId: string, limit = 200): RunEntry[] {
    return this.#runsOf.all(jobId, limit).map((row) => JSON.parse(String(row.entry)) as RunEntry)
      .reverse();
  }

  /** @throws {RpcError} a job that could never run */
  async add(params: JobParams): Promise<Job> {
    if (this.#jobs.size >= MAX_JOBS) {
      throw new RpcError("INVALID_REQUEST", `there are ${MAX_JOBS} jobs already`, {
        details: { fix: "zero cron rm JOB" },
      });
    }
    const nowMs = this.#now();
    const { schedule, agentId, enabled = true, ...rest } = params;
    const job: Job = {
      id: crypto.randomUUID(),
      ...rest,
      ...(agentId?.trim() && { agentId: normalizeAgentId(agentId) }),
      enabled,
      schedule: readSchedule(schedule, nowMs),
      createdAtMs: nowMs,
      updatedAtMs: nowMs,
      state: {},
    };
    this.#check(job);
    const nextRunAtMs = await this.#firstRun(job.schedule);
    const added = { ...job, state: enabled ? { nextRunAtMs } : {} };
    this.#save(added);
    this.#tell(added, "added");
    this.#look();
    return added;
  }

  /** @throws {RpcError} an unknown job, or one that could never run */
  async update(jobId: string, patch: JobPatch): Promise<Job> {
    const nowMs = this.#now();
    const planned = patch.schedule && readSchedule(patch.schedule, nowMs);
    const { enabled: was, schedule: old } = this.#get(jobId);
    const enabled = patch.enabled ?? was;
    const isPlanned = enabled && (planned !== undefined || !was);
    const nextRunAtMs = isPlanned ? await this.#firstRun(planned ?? old) : undefined;
    // What happened while the library was loaded counts.
    const current = this.#get(jobId);
    const { schedule: _, payload, agentId, ...rest } = patch;
    const job: Job = {
      ...current,
      ...withoutUndefined(rest),
      ...(planned && { schedule: planned }),
      ...(payload && { payload: patched(current.payload, payload) }),
      ...(agentId !== undefined && { agentId: agentId.trim() && normalizeAgentId(agentId) }),
      updatedAtMs: nowMs,
    };
    if (job.agentId === "") delete job.agentId;
    if (!enabled || isPlanned) job.state = { ...job.state, nextRunAtMs };
    if (job.state.nextRunAtMs === undefined) delete job.state.nextRunAtMs;
    this.#check(job);
    this.#save(job);
    this.#tell(job, "updated");
    this.#look();
    return job;
  }

  /** What it is at goes on. @returns whether there was such a job */
  remove(jobId: string): boolean {
    const job = this.#jobs.get(jobId);
    if (!job) return false;
    this.#drop.run(jobId);
    this.#jobs.delete(jobId);
    this.#tell({ ...job, state: {} }, "removed");
    return true;
  }

  /**
   * Runs a job now; resolves when it has begun.
   *
   * @throws {RpcError} an unknown job
   */
  async run(
    jobId: string,
    { isForced }: { isForced: boolean },
  ): Promise<{ ran: boolean; reason?: string }> {
    const job = this.#get(jobId);
    if (this.#running.has(jobId)) return { ran: false, reason: "already-running" };
    if (!isForced && !isDue(job, this.#now())) return { ran: false, reason: "not-due" };
    await this.#begin(job);
    return { ran: true };
  }

  /** To be called once, after the runs that were under way have been taken up again. */
  start() {
    this.#isStarted = true;
    for (const job of this.#jobs.values()) {
      if (job.state.runningAtMs !== undefined) this.#resume(job, job.state.runningAtMs);
    }
    this.#replan();
    this.#look();
  }

  /** Brings what is planned in line with the configuration. */
  refresh() {
    this.#look();
  }

  /** Jobs at work go on after the next start. */
  async [Symbol.asyncDispose]() {
    this.#isStarted = false;
    this.#cancelTimer();
    await Promise.all(this.#working);
  }

  /** Begins what is due, and sets the timer for what comes next. */
  #look() {
    this.#cancelTimer();
    if (!this.#isStarted || !this.isEnabled) return;
    const nowMs = this.#now();
    if (nowMs < this.#lastLookMs - CLOCK_SLACK_MS) this.#replan();
    this.#lastLookMs = nowMs;
    for (const job of this.list()) {
      if (this.#running.size >= MAX_RUNNING || !isDue(job, nowMs)) break;
      if (!this.#running.has(job.id)) this.#keep(this.#begin(job));
    }
    const next = this.list().find(({ id }) => !this.#running.has(id))?.state.nextRunAtMs;
    const waitMs = Math.max(1, Math.min((next ?? Infinity) - nowMs, MAX_WAIT_MS));
    // What is due and waits for others is looked at when one of them has ended.
    const isFull = this.#running.size >= MAX_RUNNING;
    this.#cancelTimer = this.#after(isFull ? MAX_WAIT_MS : waitMs, () => this.#look());
  }

  /** Work that must have ended before the database is closed. */
  #keep(work: Promise<void>) {
    const kept = work.catch((error) => {
      this.#options.log.error("a job could not be dealt with", { error: String(error) });
    }).finally(() => this.#working.delete(kept));
    this.#working.add(kept);
  }

  /** Plans anew what depends on the clock: it was set, or the gateway was down. */
  #replan() {
    this.#keep((async () => {
      for (const { id } of this.list()) {
        const job = this.#jobs.get(id);
        if (!job || !job.enabled || job.schedule.kind === "at") continue;
        const nowMs = this.#now();
        if (isDue(job, nowMs)) continue;
        const nextRunAtMs = await this.#schedules.next(job.schedule, nowMs).catch((error) => {
          this.#options.log.warn("a job cannot be planned", { jobId: id, error: error.message });
          return undefined;
        });
        const current = this.#jobs.get(id);
        if (!this.#isStarted || current !== job || nextRunAtMs === job.state.nextRunAtMs) continue;
        this.#save({ ...job, state: { ...job.state, nextRunAtMs } });
      }
      this.#look();
    })());
  }

  async #begin({ id }: Job): Promise<void> {
    this.#running.add(id);
    let isUnderWay = false;
    try {
      const runAtMs = this.#now();
      const plan = await this.#nextAfter(this.#get(id), runAtMs).then(
        (nextRunAtMs) => ({ nextRunAtMs, problem: undefined }),
        (error: Error) => ({ nextRunAtMs: undefined, problem: error.message }),
      );
      const current = this.#jobs.get(id);
      if (!current || !this.#isStarted) return;
      const state = { ...current.state, runningAtMs: runAtMs, nextRunAtMs: plan.nextRunAtMs };
      const begun: Job = { ...current, state };
      if (plan.problem === undefined) isUnderWay = this.#work(begun, runAtMs);
      else this.#finish(begun, runAtMs, { status: "error", error: plan.problem });
    } catch (error) {
      // What cannot be written down must not be tried over and over.
      const job = this.#jobs.get(id);
      const nextRunAtMs = this.#now() + MAX_WAIT_MS;
      if (job) this.#jobs.set(id, { ...job, state: { ...job.state, nextRunAtMs } });
      throw error;
    } finally {
      if (!isUnderWay) this.#ended(id);
    }
  }

  /** A job that is run before its time keeps it, but for one that runs only once. */
  async #nextAfter({ schedule, state, enabled }: Job, nowMs: number) {
    if (schedule.kind === "at" || !enabled) return undefined;
    const { nextRunAtMs = 0 } = state;
    return nextRunAtMs > nowMs ? nextRunAtMs : await this.#schedules.next(schedule, nowMs);
  }

  /** @returns whether it goes on; else it has ended already */
  #work(job: Job, runAtMs: number): boolean {
    const { store, systemEvents, sessions } = this.#options;
    const agentId = this.#agentOf(job);
    if (job.payload.kind === "systemEvent") {
      const words = job.payload.text!;
      store.transaction(() => {
        systemEvents.enqueue(sessions.mainKey(agentId), words);
        store.afterCommit(() => this.#tell(job, "started", { runAtMs }));
        this.#finish(job, runAtMs, { status: "ok", summary: words });
      });
      if (job.wakeMode === "now") this.#options.wake(agentId);
      return false;
    }
    let run: Run;
    try {
      if (this.#isUnanswerable(job, agentId)) {
        const error = "there is no model to think with: zero auth add <provider>";
        this.#finish(job, runAtMs, { status: "skipped", error });
        return false;
      }
      run = store.transaction(() => {
        this.#save(job);
        return this.#startRun(job, agentId, runAtMs);
      });
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      this.#options.log.warn("a job could not run", { jobId: job.id, error: message });
      this.#finish(job, runAtMs, { status: "error", error: message });
      return false;
    }
    this.#tell(job, "started", { runAtMs });
    this.#await(job, runAtMs, run);
    return true;
  }

  #startRun(job: Job, agentId: string, runAtMs: number): Run {
    const { sessions } = this.#options;
    const { message = "", model, thinking, timeoutSeconds } = job.payload;
    const sessionKey = `agent:${agentId}:cron:${job.id}`;
    // Each run is a conversation of its own; those before it stay in the database.
    if (sessions.get(sessionKey)) sessions.reset(sessionKey);
    return this.#options.runs().start({
      runId: runIdOf(job, runAtMs),
      sessionKey,
      message,
      origin: { kind: "cron", isOwner: true, mayApprove: false, callerName: `job ${job.name}` },
      model,
      thinking,
      timeoutMs: timeoutSeconds ? timeoutSeconds * 1_000 : undefined,
      deliverTo: this.#chatOf(job, agentId),
      quiet: { ackMaxChars: ACK_MAX_CHARS },
    });
  }

  /** A run that was under way when the gateway stopped. */
  #resume(job: Job, runAtMs: number) {
    this.#running.add(job.id);
    const run = this.#options.runs().find(runIdOf(job, runAtMs));
    if (run) return this.#await(job, runAtMs, run);
    const error = "the gateway stopped before its end was noted";
    this.#finish(job, runAtMs, { status: "error", error });
    this.#ended(job.id);
  }

  #await(job: Job, runAtMs: number, run: Run) {
    // What a stop cuts short ends after the next start.
    run.done.then((outcome) => this.#conclude(job, runAtMs, outcome))
      .catch((error) => {
        this.#options.log.error("the end of a job could not be kept", {
          jobId: job.id,
          error: String(error),
        });
      }).finally(() => this.#ended(job.id));
  }

  async #conclude({ id }: Job, runAtMs: number, outcome: RunOutcome) {
    if (!this.#isStarted) return;
    const nowMs = this.#now();
    const job = this.#jobs.get(id);
    // What became due meanwhile is not made up for.
    const isPassed = job !== undefined && isDue(job, nowMs);
    const next = isPassed ? await this.#schedules.next(job.schedule, nowMs) : undefined;
    const current = this.#jobs.get(id);
    if (!this.#isStarted || !current) return;
    const base = isPassed && current === job
      ? { ...job, state: { ...job.state, nextRunAtMs: next } }
      : current;
    this.#finish(base, runAtMs, this.#resultOf(base, outcome));
  }

  #ended(jobId: string) {
    this.#running.delete(jobId);
    this.#look();
  }

  #resultOf(job: Job, outcome: RunOutcome) {
    const { status, text: said, error, stopReason } = outcome;
    const summary = said === "" ? undefined : said.slice(0, SUMMARY_CHARS);
    if (status === "aborted") {
      return { status: "error" as const, error: `aborted (${stopReason})`, summary, said };
    }
    if (status === "error") return { status: "error" as const, error: error ?? "the run failed" };
    const { deliver, channel = "last", to, bestEffortDeliver } = job.payload;
    const isMissed = deliver === true && !bestEffortDeliver &&
      this.#chatOf(job, this.#agentOf(job)) === undefined;
    if (!isMissed) return { status: "ok" as const, summary, said };
    const chat = to ? `${channel} ${to}` : channel;
    return {
      status: "error" as const,
      error: `there is no chat to deliver to: ${chat}`,
      summary,
      said,
    };
  }

  /**
   * History, state and what the main session is told change together.
   *
   * @param job as it is now, or as it becomes with this change
   */
  #finish(
    job: Job,
    runAtMs: number,
    { status, error, summary, said = "" }: {
      status: RunStatus;
      error?: string;
      summary?: string;
      /** All of it. */
      said?: string;
    },
  ) {
    const { store, systemEvents, sessions } = this.#options;
    const ts = this.#now();
    const durationMs = Math.max(0, ts - runAtMs);
    const { id, payload, isolation, name, wakeMode } = job;
    const after = afterRun(job, { runAtMs, durationMs, status, error });
    const nextRunAtMs = after?.state.nextRunAtMs;
    const entry: RunEntry = {
      ts,
      jobId: id,
      action: "finished",
      status,
      ...(error !== undefined && { error }),
      ...(summary !== undefined && { summary }),
      runAtMs,
      durationMs,
      ...(nextRunAtMs !== undefined && { nextRunAtMs }),
    };
    const agentId = this.#agentOf(job);
    const isToldElsewhere = payload.kind === "systemEvent" ||
      this.#chatOf(job, agentId) !== undefined;
    const report = isToldElsewhere || status === "skipped"
      ? ""
      : reportOf({ name, isolation, status, error, said });
    store.transaction(() => {
      if (after) this.#save(after);
      else {
        this.#drop.run(id);
        store.afterCommit(() => this.#jobs.delete(id));
      }
      this.#addRun.run(id, JSON.stringify(entry));
      this.#pruneOfJob.run(id, id);
      this.#prune.run();
      if (report !== "") systemEvents.enqueue(sessions.mainKey(agentId), report);
      store.afterCommit(() => {
        const { ts: _, ...news } = entry;
        this.#options.publish(news);
        if (!after) this.#tell({ ...job, state: {} }, "removed");
        if (report !== "" && wakeMode === "now") this.#options.wake(agentId);
      });
    });
  }

  /** Without a model only commands are understood, and nobody wants to be told so every morning. */
  #isUnanswerable({ payload: { message = "", model } }: Job, agentId: string): boolean {
    const { models } = this.#options;
    return !readCommand(message, COMMANDS) &&
      models.pick({ agentId, sessionModel: model }).length === 0;
  }

  #chatOf({ payload }: Job, agentId: string): Address | undefined {
    const { sessions } = this.#options;
    const { deliver, channel, to } = payload;
    if (!(deliver ?? to !== undefined)) return undefined;
    return chatFor({ channel, to }, sessions.mainKey(agentId), sessions);
  }

  #agentOf({ agentId }: Job): string {
    return agentId ?? agentsOf(this.#options.config.reading.config)[0].agentId;
  }

  #get(jobId: string): Job {
    const job = this.#jobs.get(jobId);
    if (job) return job;
    throw new RpcError("INVALID_REQUEST", `unknown cron job: ${jobId}`, {
      details: { fix: "zero cron list" },
    });
  }

  /** @throws {RpcError} parts that do not go together */
  #check({ sessionTarget, payload, agentId }: Job) {
    const refuse = (message: string) => new RpcError("INVALID_REQUEST", message);
    const verdict = payloadVerdict(payload);
    if (verdict !== true) throw refuse(`payload ${verdict}`);
    if (sessionTarget === "main" && payload.kind !== "systemEvent") {
      throw refuse('main cron jobs require payload.kind="systemEvent"');
    }
    if (sessionTarget === "isolated" && payload.kind !== "agentTurn") {
      throw refuse('isolated cron jobs require payload.kind="agentTurn"');
    }
    const { config } = this.#options.config.reading;
    if (agentId !== undefined && !agentsOf(config).some((one) => one.agentId === agentId)) {
      throw refuse(`unknown agent id "${agentId}"`);
    }
    if (payload.channel !== undefined && !isKnownChannel(payload.channel, config)) {
      throw refuse(`unknown channel: ${payload.channel}`);
    }
  }

  /** @throws {RpcError} a schedule that never comes */
  async #firstRun(schedule: Schedule): Promise<number> {
    const nowMs = this.#now();
    if (schedule.kind === "at" && schedule.atMs > nowMs - LATE_MS) return schedule.atMs;
    const next = await this.#schedules.next(schedule, nowMs);
    if (next !== undefined) return next;
    throw new RpcError("INVALID_REQUEST", "the schedule lies in the past, or never comes", {
      details: { fix: "Choose a time to come" },
    });
  }

  #save(job: Job) {
    const { store } = this.#options;
    this.#put.run(job.id, JSON.stringify(job));
    store.afterCommit(() => this.#jobs.set(job.id, job));
  }

  #tell(
    { id, state: { nextRunAtMs } }: Job,
    action: CronNews["action"],
    facts: Partial<CronNews> = {},
  ) {
    this.#options.publish({
      jobId: id,
      action,
      ...facts,
      ...(nextRunAtMs !== undefined && { nextRunAtMs }),
    });
  }
}

function isDue({ enabled, state: { nextRunAtMs } }: Job, nowMs: number): boolean {
  return enabled && nextRunAtMs !== undefined && nextRunAtMs <= nowMs;
}

/** The same for the same run, also after a restart. */
function runIdOf({ id }: Job, runAtMs: number): string {
  return `cron:${id}:${runAtMs}`;
}

/** How a job goes on after a run; undefined: not at all. */
function afterRun(
  job: Job,
  { runAtMs, durationMs, status, error }: {
    runAtMs: number;
    durationMs: number;
    status: RunStatus;
    error?: string;
  },
): Job | undefined {
  if (job.deleteAfterRun && status === "ok") return undefined;
  const { nextRunAtMs } = job.state;
  return {
    ...job,
    enabled: job.enabled && job.schedule.kind !== "at",
    state: {
      ...(nextRunAtMs !== undefined && { nextRunAtMs }),
      lastRunAtMs: runAtMs,
      lastStatus: status,
      ...(error !== undefined && { lastError: error }),
      lastDurationMs: durationMs,
    },
  };
}

/** What the main session is told of a run that nobody else was told of; "" for nothing. */
function reportOf(
  { name, isolation = {}, status, error, said }: {
    name: string;
    isolation?: Job["isolation"];
    status: RunStatus;
    error?: string;
    said: string;
  },
): string {
  const { postToMainPrefix = "Cron", postToMainMode, postToMainMaxChars } = isolation;
  const maxChars = postToMainMode === "full" ? postToMainMaxChars ?? FULL_CHARS : SUMMARY_CHARS;
  const words = worthSaying(said, { ackMaxChars: ACK_MAX_CHARS }).slice(0, maxChars);
  const failure = status === "error" ? `failed: ${error}` : "";
  const text = [failure, words].filter(Boolean).join("\n");
  return text === "" ? "" : `${postToMainPrefix}: ${name}: ${text}`;
}

function payloadVerdict({ kind, text, message }: Infer<typeof PayloadPatch>): true | string {
  const [needed, value] = kind === "systemEvent" ? ["text", text] : ["message", message];
  return value !== undefined || `must have required property '${needed}'`;
}

function patched(current: Payload, patch: Payload): Payload {
  return patch.kind === current.kind ? { ...current, ...withoutUndefined(patch) } : patch;
}

function withoutUndefined<T extends object>(value: T): T {
  return Object.fromEntries(Object.entries(value).filter(([, one]) => one !== undefined)) as T;
}

function afterTimeout(ms: number, wake: () => void): () => void {
  const timer = setTimeout(wake, ms);
  return () => clearTimeout(timer);
}
