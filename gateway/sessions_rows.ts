// Sessions as lists show them: `SessionRow` of §7.6, and what stands in health and status of §7.2.

import type { Config } from "../config/schema.ts";
import {
  anything,
  boolean,
  type Infer,
  integer,
  nullable,
  oneOf,
  open,
  optional,
  text,
} from "../rpc/shape.ts";
import { type Session, shorten } from "./sessions.ts";

const TITLE_CHARS = 60;

/** Protocol §7.6; settings and facts of a session stand beside these. */
export const SessionRow = open({
  key: text(),
  kind: oneOf(["direct", "group", "global", "unknown"]),
  label: optional(text()),
  displayName: optional(text()),
  channel: optional(text()),
  subject: optional(text()),
  groupChannel: optional(text()),
  space: optional(text()),
  chatType: optional(text()),
  origin: optional(anything()),
  updatedAt: nullable(integer()),
  sessionId: optional(text()),
  systemSent: optional(boolean()),
  abortedLastRun: optional(boolean()),
  thinkingLevel: optional(text()),
  verboseLevel: optional(text()),
  reasoningLevel: optional(text()),
  elevatedLevel: optional(text()),
  sendPolicy: optional(text()),
  inputTokens: optional(integer()),
  outputTokens: optional(integer()),
  totalTokens: integer(),
  responseUsage: optional(text()),
  modelProvider: optional(text()),
  model: optional(text()),
  contextTokens: optional(integer()),
  deliveryContext: optional(anything()),
  lastChannel: optional(text()),
  lastTo: optional(text()),
  lastAccountId: optional(text()),
  derivedTitle: optional(text()),
  lastMessagePreview: optional(text()),
});
export type SessionRow = Infer<typeof SessionRow>;

/** A row of a list; its title and last message only where they are asked for. */
export function sessionRow(
  { key, kind, entry, firstText, lastText }: Session,
  { withTitle = false, withLastMessage = false } = {},
): SessionRow {
  const row: SessionRow = { key, kind, ...entry };
  if (entry.model !== undefined) Object.assign(row, modelOf(entry.model));
  if (entry.deliveryContext) {
    const { channel, to, accountId } = entry.deliveryContext;
    row.lastChannel = channel;
    row.lastTo = to;
    if (accountId !== undefined) row.lastAccountId = accountId;
  }
  const title = withTitle && (entry.displayName ?? entry.subject ?? firstText);
  if (title) row.derivedTitle = shorten(title.replace(/\s+/g, " ").trim(), TITLE_CHARS);
  if (withLastMessage && lastText) row.lastMessagePreview = lastText;
  return row;
}

/** `<provider>/<model>` as its two parts; the model may have slashes in its own name. */
export function modelOf(name: string): { modelProvider?: string; model: string } {
  const at = name.indexOf("/");
  if (at <= 0) return { model: name };
  return { modelProvider: name.slice(0, at), model: name.slice(at + 1) };
}

/** What a session has that settles nothing else (`defaults` of `sessions.list`). */
export function modelDefaults({ agents, models }: Config): {
  modelProvider: string | null;
  model: string | null;
  contextTokens: number | null;
} {
  const chosen = agents?.defaults?.model;
  if (chosen === undefined) return { modelProvider: null, model: null, contextTokens: null };
  const { modelProvider = null, model } = modelOf(chosen);
  const offered = models?.providers?.[modelProvider ?? ""]?.models;
  const contextTokens = offered?.find(({ id }) => id === model)?.contextWindow ?? null;
  return { modelProvider, model, contextTokens };
}
