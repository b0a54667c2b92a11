// `zero cron`: jobs that the gateway runs at a time, or time and again.

import { type Command, command, type Flags, RPC_FLAGS, UsageError } from "../config/command.ts";
import { formatDuration, printable, type Terminal } from "../config/terminal.ts";
import type { Client } from "../rpc/client.ts";
import { calling } from "./calling.ts";
import { findNamed } from "./choice.ts";
import { readDuration } from "./devices_cli.ts";
import type { CallFlags, CallWorld } from "./reach.ts";

/** A job of `cron.list`, as far as it is shown. */
interface JobInfo {
  id: string;
  name: string;
  enabled: boolean;
  schedule:
    | { kind: "at"; atMs: number }
    | { kind: "every"; everyMs: number }
    | { kind: "cron"; expr: string; tz?: string };
  state: { nextRunAtMs?: number; runningAtMs?: number; lastStatus?: string; lastError?: string };
}

interface RunInfo {
  status: string;
  error?: string;
  summary?: string;
  runAtMs: number;
  durationMs: number;
}

const ADD_FLAGS = {
  ...RPC_FLAGS,
  name: { kind: "text", summary: "What it is called" },
  at: {
    kind: "text",
    placeholder: "TIME",
    summary: "Once: 2026-05-01T09:00, or 20m for in twenty minutes",
    excludes: ["every", "cron"],
  },
  every: {
    kind: "text",
    placeholder: "DURATION",
    summary: "Time and again: 10m, 2h",
    excludes: ["cron"],
  },
  cron: {
    kind: "text",
    placeholder: "EXPR",
    summary: 'Minute hour day month weekday: "0 9 * * 1-5"',
  },
  tz: { kind: "text", placeholder: "ZONE", summary: "Time zone of --cron, such as Europe/Berlin" },
  message: {
    kind: "text",
    placeholder: "TEXT",
    summary: "What the agent is to do, in a conversation of the job's own",
    excludes: ["event"],
  },
  event: { kind: "text", placeholder: "TEXT", summary: "What the main conversation is told" },
  wake: {
    kind: "text",
    choices: ["now", "next-heartbeat"],
    default: "now",
    summary: "When the agent looks at what the main conversation is told",
  },
  agent: { kind: "text", placeholder: "ID", summary: "Which agent" },
  model: { kind: "text", placeholder: "NAME", summary: "Its model, with --message" },
  "run-timeout": {
    kind: "integer",
    min: 1,
    max: 86_400,
    placeholder: "SECONDS",
    summary: "Deadline of a run, with --message",
  },
  deliver: { kind: "boolean", summary: "Send the answer to the chat used last, or to --to" },
  channel: { kind: "text", placeholder: "NAME", summary: "Channel of --to" },
  to: { kind: "text", placeholder: "CHAT", summary: "Chat that gets the answer" },
  "delete-after-run": { kind: "boolean", summary: "Forget it after a run that went well" },
  disabled: { kind: "boolean", summary: "Do not run it yet" },
} as const satisfies Flags;

export function cronCommands(world: CallWorld): Command[] {
  return [
    command({
      path: ["cron", "list"],
      aliases: [["cron"]],
      summary: "Scheduled jobs, the next one first",
      flags: RPC_FLAGS,
      run: ({ flags }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const answer = await client.call("cron.list", { includeDisabled: true });
          if (flags.json) return terminal.json(answer);
          const { enabled } = await client.call("cron.status") as { enabled: boolean };
          if (!enabled) terminal.out("Jobs do not run: cron.enabled is false");
          showJobs((answer as { jobs: JobInfo[] }).jobs, terminal);
        }),
    }),

    command({
      path: ["cron", "add"],
      summary: "Schedule a job",
      flags: ADD_FLAGS,
      details: "One of --at, --every and --cron says when, one of --message and --event what. An " +
        "answer that is HEARTBEAT_OK reaches no chat.",
      examples: [
        'zero cron add --name news --cron "0 8 * * *" --message "Any news?" --deliver',
        "zero cron add --name tea --at 5m --event 'The tea is ready'",
        "zero cron add --name disk --every 1h --message '/run n1 df -h'",
      ],
      run: ({ flags, given }, terminal) => {
        const params = jobOf(flags, given);
        return calling(flags, world, terminal, async (client) => {
          const job = await client.call("cron.add", params) as JobInfo;
          if (flags.json) return terminal.json(job);
          terminal.out(`Added ${printable(job.name)} (${short(job)}): ${nextOf(job)}`);
        });
      },
    }),

    command({
      path: ["cron", "run"],
      summary: "Run a job now",
      usage: "JOB",
      flags: RPC_FLAGS,
      details:
        "JOB is a name, an id or the beginning of one. What comes of it: zero cron runs JOB.",
      run: ({ flags, args: [query] }, terminal) =>
        onJob(query, flags, world, terminal, async (client, job) => {
          const answer = await client.call("cron.run", { id: job.id, mode: "force" });
          if (flags.json) return terminal.json(answer);
          const { ran, reason } = answer as { ran: boolean; reason?: string };
          terminal.out(ran ? `Running ${printable(job.name)}` : `Not run: ${reason}`);
        }),
    }),

    command({
      path: ["cron", "runs"],
      summary: "What came of the last runs of a job",
      usage: "JOB",
      flags: {
        ...RPC_FLAGS,
        limit: { kind: "integer", min: 1, max: 5_000, default: 20, summary: "How many" },
      },
      run: ({ flags, args: [query] }, terminal) =>
        onJob(query, flags, world, terminal, async (client, job) => {
          const answer = await client.call("cron.runs", { id: job.id, limit: flags.limit });
          if (flags.json) return terminal.json(answer);
          showRuns((answer as { entries: RunInfo[] }).entries, terminal);
        }),
    }),

    command({
      path: ["cron", "rm"],
      summary: "Forget a job",
      usage: "JOB",
      flags: RPC_FLAGS,
      run: ({ flags, args: [query] }, terminal) =>
        onJob(query, flags, world, terminal, async (client, job) => {
          const answer = await client.call("cron.remove", { id: job.id });
          if (flags.json) return terminal.json(answer);
          terminal.out(`Removed ${printable(job.name)}`);
        }),
    }),

    ...([["enable", true], ["disable", false]] as const).map(([word, enabled]) =>
      command({
        path: ["cron", word],
        summary: enabled ? "Let a job run again" : "Keep a job, and do not run it",
        usage: "JOB",
        flags: RPC_FLAGS,
        run: ({ flags, args: [query] }, terminal) =>
          onJob(query, flags, world, terminal, async (client, { id }) => {
            const job = await client.call("cron.update", { id, patch: { enabled } }) as JobInfo;
            if (flags.json) return terminal.json(job);
            terminal.out(`${printable(job.name)}: ${nextOf(job)}`);
          }),
      })
    ),
  ];
}

function onJob(
  query: string,
  flags: CallFlags,
  world: CallWorld,
  terminal: Terminal,
  use: (client: Client, job: JobInfo) => Promise<number | void>,
): Promise<number | void> {
  return calling(flags, world, terminal, async (client) => {
    const { jobs } = await client.call("cron.list", { includeDisabled: true }) as {
      jobs: JobInfo[];
    };
    const job = findNamed(jobs, query, "job", (one) => ({
      id: one.id,
      name: one.name,
      shown: `${printable(one.name)} (${short(one)})`,
    }));
    return await use(client, job);
  });
}

interface AddValues {
  name?: string;
  at?: string;
  every?: string;
  cron?: string;
  tz?: string;
  message?: string;
  event?: string;
  wake: "now" | "next-heartbeat";
  agent?: string;
  model?: string;
  "run-timeout"?: number;
  deliver: boolean;
  channel?: string;
  to?: string;
  "delete-after-run": boolean;
  disabled: boolean;
}

/** @throws {UsageError} what is missing, or cannot be read */
function jobOf(flags: AddValues, given: ReadonlySet<string>) {
  const { message, event, agent, model, deliver, channel, to } = flags;
  const name = flags.name?.trim();
  if (!name) throw missing("--name");
  if (message === undefined && event === undefined) throw missing("--message or --event");
  const onlyWithMessage = ["model", "run-timeout", "deliver", "channel", "to"].find((flag) =>
    given.has(flag)
  );
  if (event !== undefined && onlyWithMessage) {
    throw new UsageError(`Cannot use --${onlyWithMessage} with --event`, {
      hint: "Write --message TEXT instead",
    });
  }
  return {
    name,
    schedule: scheduleOf(flags),
    sessionTarget: event === undefined ? "isolated" : "main",
    wakeMode: flags.wake,
    payload: event === undefined
      ? {
        kind: "agentTurn",
        message,
        model,
        timeoutSeconds: flags["run-timeout"],
        ...(deliver && { deliver }),
        channel,
        to,
      }
      : { kind: "systemEvent", text: event },
    agentId: agent,
    ...(flags["delete-after-run"] && { deleteAfterRun: true }),
    ...(flags.disabled && { enabled: false }),
  };
}

function scheduleOf({ at, every, cron, tz }: AddValues) {
  if (tz !== undefined && cron === undefined) {
    throw new UsageError("Cannot use --tz without --cron");
  }
  if (at !== undefined) return { kind: "at", atMs: readTime(at) };
  if (every !== undefined) return { kind: "every", everyMs: readDuration(every, "--every") };
  if (cron !== undefined) return { kind: "cron", expr: cron, tz };
  throw missing("--at, --every or --cron");
}

/** A point in time, in the time zone of this machine unless it names one; or a time from now. */
function readTime(text: string): number {
  if (/^\d+(s|m|h|d)$/.test(text.trim())) return Date.now() + readDuration(text, "--at");
  const time = /^\d{4}-\d\d-\d\d/.test(text.trim()) ? Date.parse(text.trim()) : NaN;
  if (Number.isNaN(time)) {
    throw new UsageError(
      `Cannot read --at ${JSON.stringify(text)}: use 20m, or a time such as 2026-05-01T09:00`,
    );
  }
  return time;
}

function missing(flag: string): UsageError {
  return new UsageError(`Cannot go on: ${flag} is missing`, { hint: "zero cron add --help" });
}

function showJobs(jobs: readonly JobInfo[], terminal: Terminal) {
  if (jobs.length === 0) return terminal.out("No jobs. Add one: zero cron add --help tells how");
  terminal.table(
    jobs.map((job) => [
      short(job),
      printable(job.name),
      printable(whenOf(job)),
      nextOf(job),
      printable([job.state.lastStatus, job.state.lastError].filter(Boolean).join(": ")),
    ]),
    { header: ["JOB", "NAME", "WHEN", "NEXT", "LAST"] },
  );
}

function showRuns(runs: readonly RunInfo[], terminal: Terminal) {
  if (runs.length === 0) return terminal.out("It has not run yet");
  terminal.table(
    runs.map(({ runAtMs, durationMs, status, error, summary = "" }) => [
      secondOf(runAtMs),
      formatDuration(durationMs),
      status,
      printable((error ?? summary).replace(/\s+/g, " ").slice(0, 100)),
    ]),
    { header: ["BEGAN (UTC)", "TOOK", "RESULT", "WHAT"] },
  );
}

function whenOf({ schedule }: JobInfo): string {
  switch (schedule.kind) {
    case "at":
      return `at ${secondOf(schedule.atMs)} UTC`;
    case "every":
      return `every ${exactly(schedule.everyMs)}`;
    case "cron":
      return [schedule.expr, schedule.tz].filter(Boolean).join(" ");
  }
}

/** In UTC, as the audit trail shows it. */
function secondOf(ms: number): string {
  return new Date(ms).toISOString().slice(0, 19).replace("T", " ");
}

/** As `--every` takes it. */
function exactly(ms: number): string {
  const units = [["d", 86_400_000], ["h", 3_600_000], ["m", 60_000], ["s", 1_000]] as const;
  const [unit, size] = units.find(([, size]) => ms % size === 0) ?? ["ms", 1];
  return `${ms / size}${unit}`;
}

function nextOf({ enabled, state: { nextRunAtMs, runningAtMs } }: JobInfo): string {
  if (runningAtMs !== undefined) return "running";
  if (!enabled) return "off";
  if (nextRunAtMs === undefined) return "never";
  const inMs = nextRunAtMs - Date.now();
  return inMs <= 0 ? "now" : `in ${formatDuration(inMs)}`;
}

function short({ id }: JobInfo): string {
  return id.slice(0, 8);
}
