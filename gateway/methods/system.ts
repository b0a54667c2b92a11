// Health, status, presence, heartbeats, and the log (§7.2).

import { tailLog } from "../../config/log.ts";
import { RpcError } from "../../rpc/error.ts";
import {
  boolean,
  integer,
  list,
  nullable,
  object,
  oneOf,
  open,
  optional,
  text,
} from "../../rpc/shape.ts";
import { sessionDefaults } from "../agents.ts";
import { method } from "../gateway.ts";
import { Health, Status } from "../health.ts";
import { PresenceEntry, SystemEvent } from "../presence.ts";

const Ok = object({ ok: boolean() });

const HeartbeatNews = object({
  ts: integer(),
  status: oneOf(["sent", "ok-empty", "ok-token", "skipped", "failed"]),
  to: optional(text()),
  channel: optional(text()),
  preview: optional(text()),
  durationMs: optional(integer()),
  hasMedia: optional(boolean()),
  reason: optional(text()),
  indicatorType: optional(oneOf(["ok", "alert", "error"])),
});

export const systemMethods = [
  method({
    name: "health",
    summary: "Whether the gateway and its channels are well",
    scope: "operator.read",
    params: open({ probe: optional(boolean()) }),
    result: Health,
    handle({ probe }, { gateway: { health, healthNews } }) {
      const cached = probe ? undefined : health.cached();
      if (!cached) return health.refresh().health;
      // Takes a new look for the next caller, and tells everybody if something changed.
      queueMicrotask(() => health.refresh().isNews && healthNews.schedule());
      return cached;
    },
  }),
  method({
    name: "status",
    summary: "Sessions, heartbeats, channels and queued events at a glance",
    scope: "operator.read",
    params: object({}),
    result: Status,
    handle: (_, { gateway }) => gateway.health.status(),
  }),
  method({
    name: "system-presence",
    summary: "Who is here: the gateway, connected clients and nodes",
    scope: "operator.read",
    params: object({}),
    result: list(PresenceEntry),
    handle: (_, { gateway }) => gateway.presence.list(),
  }),
  method({
    name: "system-event",
    summary: "Report a presence line, or tell the main session something",
    scope: "operator.admin",
    params: SystemEvent,
    result: Ok,
    handle(event, { gateway }) {
      if (event.text.trim() === "") throw new RpcError("INVALID_REQUEST", "text required");
      const { config, presence, presenceNews, systemEvents } = gateway;
      const said = presence.report(event);
      if (said !== undefined) {
        systemEvents.enqueue(sessionDefaults(config.reading.config).mainSessionKey, said);
      }
      presenceNews.now();
      return { ok: true };
    },
  }),
  method({
    name: "wake",
    summary: "Tell the main session something, now or at its next heartbeat",
    scope: "operator.write",
    params: object({ mode: oneOf(["now", "next-heartbeat"]), text: text({ min: 1 }) }),
    result: Ok,
    handle({ mode, text: said }, { gateway: { config, heartbeats, systemEvents } }) {
      const isBlank = said.trim() === "";
      if (!isBlank) {
        systemEvents.enqueue(sessionDefaults(config.reading.config).mainSessionKey, said.trim());
        if (mode === "now") heartbeats.wake();
      }
      return { ok: !isBlank };
    },
  }),
  method({
    name: "last-heartbeat",
    summary: "The last heartbeat of an agent, null before the first",
    scope: "operator.read",
    params: object({}),
    result: nullable(HeartbeatNews),
    handle: (_, { gateway }) => gateway.heartbeats.last,
  }),
  method({
    name: "set-heartbeats",
    summary: "Let agents wake by themselves, or not",
    scope: "operator.admin",
    params: object({ enabled: boolean() }),
    badParams: "invalid set-heartbeats params: enabled (boolean) required",
    result: object({ ok: boolean(), enabled: boolean() }),
    handle({ enabled }, { gateway }) {
      gateway.heartbeats.areEnabled = enabled;
      gateway.healthNews.schedule();
      return { ok: true, enabled };
    },
  }),
  method({
    name: "logs.tail",
    summary: "The end of the gateway's log, or what came after a cursor",
    scope: "operator.read",
    params: object({
      cursor: optional(integer({ min: 0 })),
      limit: optional(integer({ min: 1, max: 5_000 })),
      maxBytes: optional(integer({ min: 1, max: 1_000_000 })),
    }),
    result: object({
      file: text(),
      cursor: integer(),
      size: integer(),
      lines: list(text()),
      truncated: boolean(),
      reset: boolean(),
    }),
    async handle({ cursor, limit = 500, maxBytes = 250_000 }, { gateway: { log, logFile } }) {
      await log.flush();
      try {
        return await tailLog({ file: logFile, cursor, limit, maxBytes });
      } catch (error) {
        throw new RpcError("UNAVAILABLE", `log read failed: ${(error as Error).message}`, {
          cause: error,
        });
      }
    },
  }),
];
