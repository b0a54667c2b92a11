// Scheduled jobs: what there is, changing it, and what came of it (§7.11).

import { invalidParams } from "../../rpc/dispatch.ts";
import {
  boolean,
  integer,
  list,
  nonEmpty,
  object,
  oneOf,
  open,
  optional,
  text,
} from "../../rpc/shape.ts";
import { JobParams, JobPatch } from "../cron.ts";
import { method } from "../gateway.ts";

const Job = open({
  id: text(),
  name: text(),
  enabled: boolean(),
  schedule: open({ kind: oneOf(["at", "every", "cron"]) }),
  sessionTarget: oneOf(["main", "isolated"]),
  wakeMode: oneOf(["now", "next-heartbeat"]),
  payload: open({ kind: oneOf(["systemEvent", "agentTurn"]) }),
  createdAtMs: integer(),
  updatedAtMs: integer(),
  state: object({
    nextRunAtMs: optional(integer()),
    runningAtMs: optional(integer()),
    lastRunAtMs: optional(integer()),
    lastStatus: optional(oneOf(["ok", "error", "skipped"])),
    lastError: optional(text()),
    lastDurationMs: optional(integer()),
  }),
});

const RunEntry = object({
  ts: integer(),
  jobId: text(),
  action: oneOf(["finished"]),
  status: oneOf(["ok", "error", "skipped"]),
  error: optional(text()),
  summary: optional(text()),
  runAtMs: integer(),
  durationMs: integer(),
  nextRunAtMs: optional(integer()),
});

/** A job goes by either name. */
const JOB_ID = { id: optional(nonEmpty()), jobId: optional(nonEmpty()) };

export const cronMethods = [
  method({
    name: "cron.list",
    summary: "Scheduled jobs, the next one first",
    scope: "operator.read",
    params: object({ includeDisabled: optional(boolean()) }),
    result: object({ jobs: list(Job) }),
    handle: ({ includeDisabled }, { gateway }) => ({
      jobs: gateway.cron.list({ includeDisabled }),
    }),
  }),
  method({
    name: "cron.status",
    summary: "Whether jobs run, how many there are, and when the next is due",
    scope: "operator.read",
    params: object({}),
    result: object({
      enabled: boolean(),
      storePath: text(),
      jobs: integer(),
      nextWakeAtMs: optional(integer()),
    }),
    handle: (_, { gateway: { cron, paths } }) => ({
      enabled: cron.isEnabled,
      storePath: paths.database,
      jobs: cron.size,
      nextWakeAtMs: cron.isEnabled ? cron.nextWakeAtMs : undefined,
    }),
  }),
  method({
    name: "cron.add",
    summary: "Schedule a job",
    scope: "operator.admin",
    params: JobParams,
    result: Job,
    handle: (params, { gateway }) => gateway.cron.add(params),
  }),
  method({
    name: "cron.update",
    summary: "Change a scheduled job",
    scope: "operator.admin",
    params: object({ ...JOB_ID, patch: JobPatch }),
    result: Job,
    handle: ({ patch, ...which }, { gateway }) =>
      gateway.cron.update(idOf("cron.update", which), patch),
  }),
  method({
    name: "cron.remove",
    summary: "Forget a scheduled job",
    scope: "operator.admin",
    params: object(JOB_ID),
    result: object({ ok: boolean(), removed: boolean() }),
    handle: (which, { gateway }) => ({
      ok: true,
      removed: gateway.cron.remove(idOf("cron.remove", which)),
    }),
  }),
  method({
    name: "cron.run",
    summary: "Run a job now; answers when it has begun",
    scope: "operator.admin",
    params: object({ ...JOB_ID, mode: optional(oneOf(["due", "force"])) }),
    result: object({ ok: boolean(), ran: boolean(), reason: optional(text()) }),
    async handle({ mode = "due", ...which }, { gateway }) {
      const id = idOf("cron.run", which);
      return { ok: true, ...await gateway.cron.run(id, { isForced: mode === "force" }) };
    },
  }),
  method({
    name: "cron.runs",
    summary: "What came of the last runs of a job",
    scope: "operator.read",
    params: object({ ...JOB_ID, limit: optional(integer({ min: 1, max: 5_000 })) }),
    result: object({ entries: list(RunEntry) }),
    handle: ({ limit, ...which }, { gateway }) => ({
      entries: gateway.cron.runs(idOf("cron.runs", which), limit),
    }),
  }),
];

/** @throws {RpcError} neither name is there */
function idOf(method: string, { id, jobId }: { id?: string; jobId?: string }): string {
  const found = id ?? jobId;
  if (found !== undefined) return found;
  const message = "must have required property 'id'";
  throw invalidParams(method, [{ path: [], message, missing: "id" }]);
}
