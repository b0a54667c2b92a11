// The conversation as chat clients have it: sending into it, and stopping what answers (§7.4).

import { invalidParams } from "../../rpc/dispatch.ts";
import { RpcError } from "../../rpc/error.ts";
import type { Answer } from "../../rpc/method.ts";
import {
  boolean,
  integer,
  list,
  nonEmpty,
  object,
  oneOf,
  optional,
  text,
} from "../../rpc/shape.ts";
import { Attachments, readImages } from "../agent/attachments.ts";
import { isStop } from "../agent/builtin.ts";
import type { RunOutcome } from "../agent/runs.ts";
import { type Gateway, method } from "../gateway.ts";
import { dropped, originOf, reasonOf, sendBlocked } from "./agent.ts";

/** A run may take this much longer than its caller means to wait, and at least, and at most so long. */
const GRACE_MS = 60_000;
const [MIN_EXPIRY_MS, MAX_EXPIRY_MS] = [120_000, 86_400_000];
const DEFAULT_TIMEOUT_SECONDS = 600;

const aborted = { ok: boolean(), aborted: boolean(), runIds: list(text()) };

export const chatMethods = [
  method({
    name: "chat.send",
    summary: "Say something in a conversation; what is answered comes as events",
    scope: "operator.write",
    params: object({
      sessionKey: nonEmpty(),
      message: nonEmpty(),
      /** Needed on protocol 3; made up where a client of protocol 4 leaves it out. */
      idempotencyKey: optional(nonEmpty()),
      thinking: optional(text()),
      deliver: optional(boolean()),
      attachments: optional(Attachments),
      timeoutMs: optional(integer({ min: 0 })),
    }),
    result: object({
      runId: optional(text()),
      status: optional(oneOf(["started", "in_flight", "ok"])),
      ok: optional(boolean()),
      aborted: optional(boolean()),
      runIds: optional(list(text())),
    }),
    handle(params, call) {
      const { gateway, caller } = call;
      const { sessionKey, message, thinking, deliver } = params;
      if (params.idempotencyKey === undefined && caller.protocol < 4) throw keyMissing();
      if (isStop(message)) return stopped(gateway.runs.abort({ sessionKey }, "stop"));
      const runId = params.idempotencyKey ?? crypto.randomUUID();
      const known = gateway.idempotency.find("chat", runId);
      if (known) return again(known);
      const images = readImages(params.attachments, dropped(gateway));
      const entry = gateway.sessions.get(sessionKey)?.entry;
      if (entry?.sendPolicy === "deny") throw sendBlocked();
      const last = deliver ? entry?.deliveryContext : undefined;
      const run = gateway.runs.start({
        runId,
        sessionKey,
        message,
        images,
        origin: originOf(call),
        timeoutMs: expiryOf(params.timeoutMs, gateway),
        thinking,
        deliverTo: last && { ...last, accountId: last.accountId ?? "default" },
      });
      if (run.outcome) return again(answerOf(runId, run.outcome));
      const flying: Answer = { ok: true, payload: { runId, status: "in_flight" } };
      gateway.idempotency.remember("chat", runId, flying);
      run.done.then((outcome) =>
        gateway.idempotency.remember("chat", runId, answerOf(runId, outcome))
      );
      return { runId, status: run.isNew ? "started" as const : "in_flight" as const };
    },
  }),
  method({
    name: "chat.abort",
    summary: "Stop what answers in a conversation",
    scope: "operator.write",
    params: object({ sessionKey: nonEmpty(), runId: optional(nonEmpty()) }),
    result: object(aborted),
    handle: (params, { gateway }) => stopped(gateway.runs.abort(params, "rpc")),
  }),
];

function stopped(runIds: string[]) {
  return { ok: true, aborted: runIds.length > 0, runIds };
}

/** @throws {RpcError} what the run before came to */
function again(known: Answer) {
  if (!known.ok) throw known.error;
  return known.payload as { runId: string; status: "in_flight" | "ok" };
}

/** What the same key is answered from now on. */
function answerOf(runId: string, outcome: RunOutcome): Answer {
  if (outcome.status !== "error") return { ok: true, payload: { runId, status: "ok" } };
  return { ok: false, error: new RpcError("UNAVAILABLE", reasonOf(outcome)) };
}

function expiryOf(timeoutMs: number | undefined, { config }: Gateway): number {
  const { agents } = config.reading.config;
  const usualMs = (agents?.defaults?.timeoutSeconds ?? DEFAULT_TIMEOUT_SECONDS) * 1_000;
  return Math.min(Math.max((timeoutMs || usualMs) + GRACE_MS, MIN_EXPIRY_MS), MAX_EXPIRY_MS);
}

function keyMissing(): RpcError {
  const message = "must have required property 'idempotencyKey'";
  return invalidParams("chat.send", [{ path: [], message, missing: "idempotencyKey" }]);
}
