// When a job is due (§7.11): a point in time, an interval, or a cron expression in a time zone. The
// expressions are read by a library that is loaded when the first one comes.

import type { Cron } from "croner";
import { RpcError } from "../rpc/error.ts";
import {
  type Infer,
  integer,
  nonEmpty,
  object,
  oneOf,
  optional,
  rule,
  text,
} from "../rpc/shape.ts";

/** As callers write it; which fields it takes is up to its kind. */
export const ScheduleParams = rule(
  object({
    kind: oneOf(["at", "every", "cron"]),
    atMs: optional(integer({ min: 0, max: 8.64e15 })),
    everyMs: optional(integer({ min: 1, max: 8.64e15 })),
    anchorMs: optional(integer({ min: 0, max: 8.64e15 })),
    expr: optional(nonEmpty()),
    tz: optional(text()),
  }),
  ({ kind, atMs, everyMs, expr }) => {
    const needed = { at: "atMs", every: "everyMs", cron: "expr" }[kind];
    const isThere = { at: atMs, every: everyMs, cron: expr }[kind] !== undefined;
    return isThere || `must have required property '${needed}'`;
  },
);

export type Schedule =
  | { kind: "at"; atMs: number }
  | { kind: "every"; everyMs: number; anchorMs: number }
  | { kind: "cron"; expr: string; tz?: string };

/** A job begins at most once in this time. */
const MIN_GAP_MS = 1_000;

/** @param nowMs an interval without an anchor is counted from here */
export function readSchedule(
  { kind, atMs, everyMs = 1, anchorMs, expr, tz }: Infer<typeof ScheduleParams>,
  nowMs: number,
): Schedule {
  switch (kind) {
    case "at":
      return { kind, atMs: atMs! };
    case "every":
      // Whatever the clock may be set to later, this anchor is never yet to come.
      return { kind, everyMs, anchorMs: anchorMs ?? nowMs % everyMs };
    case "cron":
      return { kind, expr: expr!.trim(), ...(tz?.trim() && { tz: tz.trim() }) };
  }
}

export class Schedules {
  #library?: Promise<typeof Cron>;

  /**
   * The first time after a moment.
   *
   * @returns undefined when there is none
   * @throws {RpcError} an expression or a time zone that cannot be read
   */
  async next(schedule: Schedule, afterMs: number): Promise<number | undefined> {
    switch (schedule.kind) {
      case "at":
        return schedule.atMs > afterMs ? schedule.atMs : undefined;
      case "every": {
        const { everyMs, anchorMs } = schedule;
        const fromMs = afterMs + (everyMs < MIN_GAP_MS ? MIN_GAP_MS : 1);
        return anchorMs + Math.max(0, Math.ceil((fromMs - anchorMs) / everyMs)) * everyMs;
      }
      case "cron":
        return await this.#nextOfExpression(schedule.expr, schedule.tz, afterMs);
    }
  }

  async #nextOfExpression(expr: string, tz: string | undefined, afterMs: number) {
    const Cron = await (this.#library ??= import("croner").then((module) => module.Cron));
    if (expr.split(/\s+/).length > 7 || expr.length > 200) throw unreadable(expr, tz);
    if (tz !== undefined && !isTimeZone(tz)) throw unreadable(expr, tz);
    try {
      return new Cron(expr, { paused: true, timezone: tz }).nextRun(new Date(afterMs))?.getTime();
    } catch (cause) {
      throw unreadable(expr, tz, cause);
    }
  }
}

function isTimeZone(name: string): boolean {
  try {
    new Intl.DateTimeFormat("en", { timeZone: name });
    return true;
  } catch {
    return false; // a name the platform does not know
  }
}

function unreadable(expr: string, tz: string | undefined, cause?: unknown): RpcError {
  const isZone = tz !== undefined && !isTimeZone(tz);
  const what = isZone ? `time zone "${tz}"` : `cron expression "${expr.slice(0, 100)}"`;
  const fix = isZone
    ? "Use a name such as Europe/Berlin"
    : 'Use five fields: minute hour day month weekday, such as "0 9 * * 1-5"';
  return new RpcError("INVALID_REQUEST", `invalid ${what}`, { cause, details: { fix } });
}
