// Sessions: listing, settling, putting away, watching, searching and exporting them (§7.6), and the
// transcript as chats read it (`chat.history`, `chat.inject` of §7.4).

import { RpcError } from "../../rpc/error.ts";
import {
  anything,
  boolean,
  type Infer,
  integer,
  list,
  nonEmpty,
  nullable,
  object,
  oneOf,
  open,
  optional,
  text,
} from "../../rpc/shape.ts";
import { type Gateway, method } from "../gateway.ts";
import type { PreviewItem, Session } from "../sessions.ts";
import { modelDefaults, SessionRow, sessionRow } from "../sessions_rows.ts";

const MAX_PREVIEWS = 64;
const [DEFAULT_PREVIEW_ITEMS, MAX_PREVIEW_ITEMS] = [12, 50];

const Entry = open({ sessionId: text(), updatedAt: integer() });
/** `agentId` counts for keys that do not name their agent. */
const Keyed = object({ key: nonEmpty(), agentId: optional(nonEmpty()) });
const Preview = object({
  key: text(),
  status: oneOf(["ok", "empty", "missing", "error"]),
  items: list(object({
    role: oneOf(["user", "assistant", "tool", "system", "other"]),
    text: text(),
  })),
});
type Preview = Infer<typeof Preview>;

const setting = () => optional(nullable(text()));

export const sessionMethods = [
  method({
    name: "sessions.list",
    summary: "The conversations there are, the newest first",
    scope: "operator.read",
    params: object({
      limit: optional(integer({ min: 1 })),
      activeMinutes: optional(integer({ min: 1 })),
      includeGlobal: optional(boolean()),
      includeUnknown: optional(boolean()),
      includeDerivedTitles: optional(boolean()),
      includeLastMessage: optional(boolean()),
      label: optional(text()),
      spawnedBy: optional(text()),
      agentId: optional(text()),
      search: optional(text()),
    }),
    result: object({
      ts: integer(),
      path: text(),
      count: integer({ min: 0 }),
      defaults: object({
        modelProvider: nullable(text()),
        model: nullable(text()),
        contextTokens: nullable(integer()),
      }),
      sessions: list(SessionRow),
    }),
    handle({ includeDerivedTitles, includeLastMessage, ...query }, { gateway }) {
      const found = gateway.sessions.list(query);
      const shown = { withTitle: includeDerivedTitles, withLastMessage: includeLastMessage };
      return {
        ts: Date.now(),
        path: gateway.sessions.path,
        count: found.length,
        defaults: modelDefaults(gateway.config.reading.config),
        sessions: found.map((session) => sessionRow(session, shown)),
      };
    },
  }),
  method({
    name: "sessions.preview",
    summary: "The beginnings of the last messages of some conversations",
    scope: "operator.read",
    params: object({
      keys: list(nonEmpty(), { min: 1 }),
      limit: optional(integer({ min: 1 })),
      maxChars: optional(integer({ min: 20 })),
    }),
    result: object({ ts: integer(), previews: list(Preview) }),
    handle({ keys, limit = DEFAULT_PREVIEW_ITEMS, maxChars = 240 }, { gateway }) {
      const most = Math.min(limit, MAX_PREVIEW_ITEMS);
      const previews = keys.slice(0, MAX_PREVIEWS).map((key): Preview => {
        const items = previewOf(gateway, key, most, maxChars);
        if (items === "error" || !items) return { key, status: items ?? "missing", items: [] };
        return { key, status: items.length > 0 ? "ok" : "empty", items };
      });
      return { ts: Date.now(), previews };
    },
  }),
  method({
    name: "sessions.resolve",
    summary: "The key of the conversation that a key, id or label stands for",
    scope: "operator.admin",
    scopeOnV4: "operator.read",
    params: object({
      key: optional(text()),
      sessionId: optional(text()),
      label: optional(text()),
      agentId: optional(text()),
      spawnedBy: optional(text()),
      includeGlobal: optional(boolean()),
      includeUnknown: optional(boolean()),
    }),
    result: object({ ok: oneOf([true]), key: text() }),
    handle({ key, sessionId, label, agentId, spawnedBy }, { gateway: { sessions } }) {
      const ways: [string | undefined, (given: string) => Session | undefined][] = [
        [key?.trim(), (given) => sessions.get(keyFor({ key: given, agentId }))],
        [sessionId?.trim(), (given) => sessions.findById(given)],
        [label?.trim(), (given) => sessions.findByLabel(given)],
      ];
      const given = ways.filter(([value]) => value);
      if (given.length === 0) {
        throw new RpcError("INVALID_REQUEST", "Either key, sessionId, or label is required");
      }
      if (given.length > 1) {
        const message = "Provide either key, sessionId, or label (not multiple)";
        throw new RpcError("INVALID_REQUEST", message);
      }
      const [[value, find]] = given as [string, (given: string) => Session | undefined][];
      const found = find(value);
      const isWanted = found &&
        (!agentId || found.agentId === sessions.canonicalKey(`agent:${agentId}:x`).agentId) &&
        (!spawnedBy || found.entry.spawnedBy === spawnedBy);
      if (!isWanted) throw new RpcError("INVALID_REQUEST", `No session found: ${value}`);
      return { ok: true, key: found.key } as const;
    },
  }),
  method({
    name: "sessions.describe",
    summary: "One conversation, or null where there is none",
    scope: "operator.read",
    params: Keyed,
    result: object({ session: nullable(SessionRow) }),
    handle(params, { gateway }) {
      const session = gateway.sessions.get(keyFor(params));
      const shown = { withTitle: true, withLastMessage: true };
      return { session: session ? sessionRow(session, shown) : null };
    },
  }),
  method({
    name: "sessions.patch",
    summary: "Settle something about a conversation; null clears it",
    scope: "operator.admin",
    params: object({
      key: nonEmpty(),
      label: setting(),
      thinkingLevel: setting(),
      verboseLevel: setting(),
      reasoningLevel: setting(),
      responseUsage: setting(),
      elevatedLevel: setting(),
      execHost: setting(),
      execSecurity: setting(),
      execAsk: setting(),
      execNode: setting(),
      model: setting(),
      spawnedBy: setting(),
      sendPolicy: setting(),
      groupActivation: setting(),
    }),
    result: object({ ok: oneOf([true]), path: text(), key: text(), entry: Entry }),
    handle({ key, ...patch }, { gateway: { sessions } }) {
      const session = sessions.patch(key, patch);
      return { ok: true, path: sessions.path, key: session.key, entry: session.entry } as const;
    },
  }),
  method({
    name: "sessions.reset",
    summary: "Begin a conversation anew under its key, with its settings",
    scope: "operator.admin",
    params: object({ key: nonEmpty() }),
    result: object({ ok: oneOf([true]), key: text(), entry: Entry }),
    handle({ key }, { gateway }) {
      stopRuns(key, gateway);
      const session = gateway.sessions.reset(key);
      return { ok: true, key: session.key, entry: session.entry } as const;
    },
  }),
  method({
    name: "sessions.delete",
    summary: "Take a conversation off the list; its transcript is put away",
    scope: "operator.admin",
    params: object({ key: nonEmpty(), deleteTranscript: optional(boolean()) }),
    result: object({ ok: oneOf([true]), key: text(), deleted: boolean(), archived: list(text()) }),
    handle({ key: given, deleteTranscript }, { gateway }) {
      const { sessions } = gateway;
      sessions.refuseMain(given);
      stopRuns(given, gateway);
      const { key } = sessions.canonicalKey(given);
      const deleted = sessions.delete(key, { deleteTranscript });
      return { ok: true as const, key, deleted, archived: [] };
    },
  }),
  method({
    name: "sessions.compact",
    summary: "Leave only the last messages in a conversation",
    scope: "operator.admin",
    params: object({ key: nonEmpty(), maxLines: optional(integer({ min: 1 })) }),
    result: open({ ok: oneOf([true]), key: text(), compacted: boolean() }),
    handle({ key: given, maxLines }, { gateway: { sessions } }) {
      const { key } = sessions.canonicalKey(given);
      const { compacted, kept, reason } = sessions.compact(key, maxLines);
      return {
        ok: true,
        key,
        compacted,
        ...(reason ? { reason } : { kept }),
        ...(compacted && { archived: [] }),
      } as const;
    },
  }),
  method({
    name: "sessions.search",
    summary: "Messages that hold all the given words, the newest first",
    scope: "operator.read",
    params: object({
      query: nonEmpty(),
      key: optional(nonEmpty()),
      limit: optional(integer({ min: 1, max: 200 })),
    }),
    result: object({
      ts: integer(),
      hits: list(object({
        key: text(),
        sessionId: text(),
        messageId: text(),
        seq: integer({ min: 1 }),
        role: text(),
        timestamp: integer(),
        snippet: text(),
      })),
    }),
    handle: ({ query, ...where }, { gateway }) => ({
      ts: Date.now(),
      hits: gateway.sessions.search(query, where),
    }),
  }),
  method({
    name: "sessions.export",
    summary: "A transcript as JSON lines, a page at a time",
    scope: "operator.read",
    params: object({
      key: optional(nonEmpty()),
      sessionId: optional(nonEmpty()),
      after: optional(integer({ min: 0 })),
    }),
    result: object({
      key: text(),
      sessionId: text(),
      lines: list(text()),
      next: nullable(integer()),
    }),
    handle({ key, sessionId, after }, { gateway: { sessions } }) {
      if ((key === undefined) === (sessionId === undefined)) {
        throw new RpcError("INVALID_REQUEST", "Provide either key or sessionId");
      }
      const page = sessions.exportPage(
        sessionId === undefined ? { key: key! } : { sessionId },
        after,
      );
      if (!page) {
        throw new RpcError("INVALID_REQUEST", `No session found: ${key ?? sessionId}`, {
          details: { fix: "zero sessions list" },
        });
      }
      return page;
    },
  }),
  method({
    name: "sessions.subscribe",
    summary: "Hear of every change of a conversation: sessions.changed",
    scope: "operator.read",
    params: object({}),
    result: object({ subscribed: oneOf([true]) }),
    handle(_, { gateway, caller }) {
      gateway.sessionWatchers.watchAll(caller, gateway.connections);
      return { subscribed: true } as const;
    },
  }),
  method({
    name: "sessions.messages.subscribe",
    summary: "Hear of every message of one conversation: session.message",
    scope: "operator.read",
    params: Keyed,
    result: object({ key: text() }),
    handle(params, { gateway, caller }) {
      const { key } = gateway.sessions.canonicalKey(keyFor(params));
      gateway.sessionWatchers.watch(key, caller, gateway.connections);
      return { key };
    },
  }),
  method({
    name: "sessions.messages.unsubscribe",
    summary: "Hear no more of the messages of one conversation",
    scope: "operator.read",
    params: Keyed,
    result: object({ key: text() }),
    handle(params, { gateway, caller }) {
      const { key } = gateway.sessions.canonicalKey(keyFor(params));
      gateway.sessionWatchers.unwatch(key, caller);
      return { key };
    },
  }),
  method({
    name: "sessions.send",
    summary: "Say something in a conversation, as chat.send does",
    scope: "operator.write",
    params: object({
      key: nonEmpty(),
      message: nonEmpty(),
      idempotencyKey: optional(nonEmpty()),
    }),
    result: anything(),
    async handle({ key, message, idempotencyKey = crypto.randomUUID() }, call) {
      const params = { sessionKey: key, message, idempotencyKey };
      const outcome = await call.gateway.dispatcher.dispatch("chat.send", params, call);
      if (!outcome.ok) throw outcome.error;
      return outcome.payload;
    },
  }),
  method({
    name: "chat.history",
    summary: "The last messages of a conversation, oldest first",
    scope: "operator.read",
    params: object({
      sessionKey: nonEmpty(),
      limit: optional(integer({ min: 1, max: 1_000 })),
    }),
    result: object({
      sessionKey: text(),
      sessionId: optional(text()),
      messages: list(open({ role: text(), content: anything(), timestamp: integer() })),
      thinkingLevel: optional(text()),
    }),
    handle: ({ sessionKey, limit }, { gateway }) => gateway.sessions.history(sessionKey, { limit }),
  }),
  method({
    name: "chat.inject",
    summary: "Put words into the mouth of the agent",
    scope: "operator.admin",
    params: object({
      sessionKey: nonEmpty(),
      message: nonEmpty(),
      label: optional(text({ max: 100 })),
    }),
    result: object({ ok: oneOf([true]), messageId: text() }),
    handle({ sessionKey, message: words, label }, { gateway }) {
      const { messageId, message } = gateway.sessions.inject(sessionKey, words, label);
      const event = { runId: `inject-${messageId}`, sessionKey, seq: 0, state: "final", message };
      gateway.audience.tell("chat", gateway.sessions.canonicalKey(sessionKey).key, () => event);
      return { ok: true, messageId } as const;
    },
  }),
];

function keyFor({ key, agentId }: { key: string; agentId?: string }): string {
  const isPlain = agentId !== undefined && !/^(agent:|global$|unknown$)/i.test(key.trim());
  return isPlain ? `agent:${agentId}:${key.trim()}` : key;
}

/** @throws {RpcError} when something goes on in the session all the same (§7.6) */
function stopRuns(given: string, { runs, sessions }: Gateway) {
  const { key } = sessions.canonicalKey(given);
  runs.abort({ sessionKey: key }, "rpc");
  if (!runs.isBusy(key)) return;
  const message = `Session ${key} is still active; try again in a moment.`;
  throw new RpcError("UNAVAILABLE", message, { retryable: true });
}

/** @returns undefined where there is no session, "error" for a key that cannot be one */
function previewOf(
  { sessions }: Gateway,
  key: string,
  limit: number,
  maxChars: number,
): PreviewItem[] | "error" | undefined {
  try {
    return sessions.preview(key, limit, maxChars);
  } catch (error) {
    if (error instanceof RpcError) return "error";
    throw error;
  }
}
