// Conversations and their transcripts (§7.4, §7.6), kept in the database (D10): what each session is
// called, what was settled about it, and every message of it in order. What is said, and when, is
// for runs to decide; who is told of it, for the one who listens.

import type { StatementSync } from "node:sqlite";
import type { Config } from "../config/schema.ts";
import { RpcError } from "../rpc/error.ts";
import { agentsOf, mainKeyOf, normalizeAgentId } from "./agents.ts";
import type { CurrentConfig } from "./gateway.ts";
import type { Store } from "./store.ts";

export type TextPart = { type: "text"; text: string };
/** `data` is base64 without a `data:` prefix. */
export type ImagePart = { type: "image"; mimeType: string; data: string };
export type ToolCallPart = {
  type: "toolCall";
  id: string;
  name: string;
  arguments: Record<string, unknown>;
};
export type MessagePart = TextPart | ImagePart | ToolCallPart;

export interface Usage {
  inputTokens: number;
  outputTokens: number;
  totalTokens?: number;
}

/** One entry of a transcript, as it goes over the wire (§7.4). */
export interface Message {
  role: "user" | "assistant" | "toolResult" | "system";
  content: MessagePart[];
  /** Milliseconds since the epoch. */
  timestamp: number;
  stopReason?: string;
  usage?: Usage;
  /** `<provider>/<model>` that wrote it. */
  model?: string;
  /** Of a `toolResult`: the call it answers. */
  toolCallId?: string;
  toolName?: string;
  isError?: boolean;
  /** Of a `user` message: who wrote it, where that was not plainly the owner. */
  sender?: Sender;
}

export interface Sender {
  /** How it came: `channel`, `node`, `cron`, `hook`, `http` or another `session`. */
  kind: string;
  name?: string;
  isOwner: boolean;
}

/** Where a conversation was last answered. */
export interface DeliveryContext {
  channel: string;
  to: string;
  accountId?: string;
  threadId?: string;
}

/** What callers of `sessions.patch` settle. */
export interface SessionSettings {
  label?: string;
  thinkingLevel?: string;
  verboseLevel?: string;
  reasoningLevel?: string;
  responseUsage?: string;
  elevatedLevel?: string;
  execHost?: string;
  execSecurity?: string;
  execAsk?: string;
  execNode?: string;
  /** `<provider>/<model>`, instead of the configured one. */
  model?: string;
  spawnedBy?: string;
  sendPolicy?: string;
  groupActivation?: string;
}

/** A change of settings; `null` clears. */
export type SessionPatch = { [Name in keyof SessionSettings]?: string | null };

/** What channels and runs note about a session. */
export interface SessionFacts {
  displayName?: string;
  channel?: string;
  subject?: string;
  groupChannel?: string;
  space?: string;
  chatType?: "direct" | "group" | "channel";
  origin?: Record<string, unknown>;
  deliveryContext?: DeliveryContext;
  systemSent?: boolean;
  abortedLastRun?: boolean;
}

/** A session as `sessions.patch` and `sessions.reset` answer it (`entry`). */
export interface SessionEntry extends SessionSettings, SessionFacts {
  sessionId: string;
  /** Milliseconds since the epoch. */
  updatedAt: number;
  /** Sums since the last reset. */
  inputTokens: number;
  outputTokens: number;
  /** Of the context after the last turn. */
  totalTokens: number;
  /** Size of the context window of the model that took it. */
  contextTokens?: number;
}

export type SessionKind = "direct" | "group" | "global" | "unknown";

export interface Session {
  /** Canonical: `agent:<agentId>:<rest>`, `global` or `unknown`. */
  key: string;
  agentId: string;
  kind: SessionKind;
  entry: SessionEntry;
  /** Messages of the conversation as it is, without what was compacted away. */
  messageCount: number;
  /** Beginning of the first thing a user said in it. */
  firstText?: string;
  /** Beginning of the last thing said in it. */
  lastText?: string;
}

export interface Appended {
  /** 8 hex digits, unique in this database. */
  messageId: string;
  sessionId: string;
  /** Place in the transcript, from 1. */
  seq: number;
}

export interface History {
  /** As it was asked for. */
  sessionKey: string;
  sessionId?: string;
  /** Oldest first. */
  messages: Message[];
  thinkingLevel?: string;
}

export interface TurnUsage {
  inputTokens: number;
  outputTokens: number;
  /** `<provider>/<model>` */
  model: string;
  /** Size of its context window, where known. */
  contextTokens?: number;
}

/** Tokens of one model in one session on one day (UTC, `2026-01-31`). */
export interface UsageRow {
  day: string;
  key: string;
  model: string;
  inputTokens: number;
  outputTokens: number;
  turns: number;
}

/** Which sessions `sessions.list` asks for; newest first. */
export interface SessionQuery {
  limit?: number;
  activeMinutes?: number;
  includeGlobal?: boolean;
  includeUnknown?: boolean;
  label?: string;
  spawnedBy?: string;
  agentId?: string;
  /** Any part, in any case, of displayName, label, subject, sessionId or key. */
  search?: string;
}

export interface PreviewItem {
  role: "user" | "assistant" | "tool" | "system" | "other";
  text: string;
}

/** A message that a search found. */
export interface Hit {
  key: string;
  sessionId: string;
  messageId: string;
  seq: number;
  role: string;
  timestamp: number;
  snippet: string;
}

/** A piece of a transcript as JSON lines (§7.6). */
export interface TranscriptPage {
  key: string;
  sessionId: string;
  lines: string[];
  /** `after` of the next page; null when this was the last. */
  next: number | null;
}

export type ChangeReason = "create" | "patch" | "reset" | "delete" | "compact";

/** Who is told of sessions; called when what happened is durable. */
export interface SessionNews {
  appended(session: Session, appended: Appended, message: Message): void;
  /** `session` is undefined when it was deleted. */
  changed(key: string, reason: ChangeReason, session: Session | undefined): void;
}

export const DEFAULT_HISTORY_MESSAGES = 200;
/** Of the JSON of all messages in one `chat.history` (§7.4). */
export const MAX_HISTORY_BYTES = 6_291_456;
/** What one page of an export holds, about. */
const PAGE_BYTES = 4 * 1_048_576;
const PAGE_MESSAGES = 1_000;
const MAX_KEY_CHARS = 512;
const MAX_LABEL_CHARS = 64;
const PREVIEW_CHARS = 240;
const SNIPPET_CHARS = 160;

/** What `sessions.patch` takes, field by field; the others take any text. */
const CHOICES: Partial<Record<keyof SessionSettings, readonly string[]>> = {
  thinkingLevel: ["off", "minimal", "low", "medium", "high", "xhigh"],
  verboseLevel: ["off", "on", "full"],
  reasoningLevel: ["off", "on", "stream"],
  responseUsage: ["off", "tokens", "full", "on"],
  elevatedLevel: ["off", "on", "ask", "full"],
  execHost: ["sandbox", "gateway", "node"],
  execSecurity: ["deny", "allowlist", "full"],
  execAsk: ["off", "on-miss", "always"],
  sendPolicy: ["allow", "deny"],
  groupActivation: ["mention", "always"],
};

const SILENT: SessionNews = { appended() {}, changed() {} };

/** A row of the table `sessions`; COLUMNS names what is read of it. */
interface Row {
  session_key: string;
  agent_id: string;
  session_id: string;
  transcript_id: number;
  label: string | null;
  spawned_by: string | null;
  facts: string;
  updated_at_ms: number;
  input_tokens: number;
  output_tokens: number;
  total_tokens: number;
  context_tokens: number | null;
  first_seq: number;
  last_seq: number;
  first_text: string | null;
  last_text: string | null;
}

const COLUMNS = `session_key, agent_id, session_id, transcript_id, label, spawned_by, facts,
  updated_at_ms, input_tokens, output_tokens, total_tokens, context_tokens, first_seq, last_seq,
  first_text, last_text`;

/** Settings and facts that have no column of their own. */
type Facts = Omit<SessionSettings, "label" | "spawnedBy"> & SessionFacts;

/**
 * The canonical form of a session key (§7.6), and the agent it belongs to.
 *
 * @throws {RpcError} a key that is longer than any real one
 */
export function canonicalKey(key: string, config: Config): { key: string; agentId: string } {
  const given = key.trim().toLowerCase();
  if (given.length > MAX_KEY_CHARS) {
    throw new RpcError(
      "INVALID_REQUEST",
      `invalid session key (at most ${MAX_KEY_CHARS} characters)`,
    );
  }
  const [{ agentId: defaultAgentId }] = agentsOf(config);
  if (given === "global" || given === "unknown") return { key: given, agentId: defaultAgentId };
  const [, agent, rest] = /^agent:([^:]+):(.+)$/s.exec(given) ?? [undefined, undefined, given];
  const agentId = agent === undefined ? defaultAgentId : normalizeAgentId(agent);
  const mainKey = mainKeyOf(config);
  if (rest !== "main" && rest !== mainKey) return { key: `agent:${agentId}:${rest}`, agentId };
  if (config.session?.scope === "global") return { key: "global", agentId: defaultAgentId };
  return { key: `agent:${agentId}:${mainKey}`, agentId };
}

/** What a message says, without images and tool calls. */
export function textOf({ content }: Pick<Message, "content">): string {
  return content.flatMap((part) => part.type === "text" ? [part.text] : []).join("\n");
}

/** Every method takes a key in any of its forms; what it changes is durable when it returns. */
export class Sessions {
  /** The database (D10). */
  readonly path: string;
  readonly #store: Store;
  readonly #config: CurrentConfig;
  readonly #news: SessionNews;
  readonly #now: () => number;
  readonly #sql;
  /** Statements of lists, by their text: which conditions there are varies. */
  readonly #lists = new Map<string, StatementSync>();

  constructor(
    store: Store,
    config: CurrentConfig,
    news: SessionNews = SILENT,
    now: () => number = Date.now,
  ) {
    this.path = store.path;
    this.#store = store;
    this.#config = config;
    this.#news = news;
    this.#now = now;
    this.#sql = prepareAll(store);
  }

  canonicalKey(key: string): { key: string; agentId: string } {
    return canonicalKey(key, this.#config.reading.config);
  }

  /** Of the default agent, unless one is named; `global` where all share one session. */
  mainKey(agentId?: string): string {
    return this.canonicalKey(agentId === undefined ? "main" : `agent:${agentId}:main`).key;
  }

  get(key: string): Session | undefined {
    const row = this.#row(this.canonicalKey(key).key);
    return row && sessionOf(row);
  }

  findById(sessionId: string): Session | undefined {
    const row = this.#sql.byId.get(sessionId) as Row | undefined;
    return row && sessionOf(row);
  }

  findByLabel(label: string): Session | undefined {
    const row = this.#sql.byLabel.get(label) as Row | undefined;
    return row && sessionOf(row);
  }

  /** Makes the session if there is none, and notes what is said about it. */
  ensure(key: string, facts?: SessionFacts): Session {
    return this.#store.transaction(() => {
      const row = this.#rowOrNew(key);
      if (!facts || Object.keys(facts).length === 0) return sessionOf(row);
      return this.#write(row, { ...readFacts(row), ...facts });
    });
  }

  /**
   * Settles something about a session, and makes it if there is none.
   *
   * @throws {RpcError} with the texts of §7.6
   */
  patch(key: string, patch: SessionPatch): Session {
    return this.#store.transaction(() => {
      const row = this.#rowOrNew(key);
      const facts: Facts & SessionSettings = readFacts(row);
      for (const [name, value] of Object.entries(patch) as [keyof SessionSettings, string][]) {
        if (value === undefined) continue;
        const wanted = value === null ? null : readSetting(name, value);
        if (name === "label") this.#label(row, wanted);
        else if (name === "spawnedBy") this.#setParent(row, wanted);
        else if (wanted === null) delete facts[name];
        else facts[name] = wanted;
      }
      const session = this.#write(row, facts, this.#stamp(row));
      this.#tell(row.session_key, "patch");
      return session;
    });
  }

  /** A new conversation under the same key: settings stay, the transcript is put away. */
  reset(key: string): Session {
    return this.#store.transaction(() => {
      const found = this.#row(this.canonicalKey(key).key);
      if (!found) {
        const made = this.#rowOrNew(key);
        this.#tell(made.session_key, "reset");
        return sessionOf(made);
      }
      const now = this.#stamp(found);
      this.#sql.archive.run(now, "reset", found.transcript_id);
      const { sessionId, transcriptId } = this.#newTranscript(found.session_key, now);
      const { systemSent: _, abortedLastRun: __, ...facts } = readFacts(found);
      this.#sql.restart.run(sessionId, transcriptId, now, found.session_key);
      const session = this.#write(this.#row(found.session_key)!, facts, now);
      this.#tell(found.session_key, "reset");
      return session;
    });
  }

  /**
   * Takes a session off the lists. Its transcript stays in the database, marked as deleted unless
   * it shall be left as it is.
   *
   * @returns whether there was one
   * @throws {RpcError} for the main session
   */
  delete(key: string, { deleteTranscript = true } = {}): boolean {
    const { key: canonical } = this.canonicalKey(key);
    this.refuseMain(canonical);
    return this.#store.transaction(() => {
      const row = this.#row(canonical);
      if (!row) return false;
      if (deleteTranscript) this.#sql.archive.run(this.#now(), "deleted", row.transcript_id);
      this.#sql.remove.run(canonical);
      this.#tell(canonical, "delete");
      return true;
    });
  }

  /** @throws {RpcError} when that is the main session, which cannot be deleted */
  refuseMain(key: string) {
    const { key: canonical } = this.canonicalKey(key);
    if (canonical !== this.mainKey()) return;
    throw new RpcError("INVALID_REQUEST", `Cannot delete the main session (${canonical}).`);
  }

  /** Leaves only the last messages in the conversation; what came before stays in the export. */
  compact(key: string, maxMessages = 400): { compacted: boolean; kept: number; reason?: string } {
    return this.#store.transaction(() => {
      const row = this.#row(this.canonicalKey(key).key);
      if (!row) return { compacted: false, kept: 0, reason: "no sessionId" };
      const count = row.last_seq - row.first_seq + 1;
      if (count === 0) return { compacted: false, kept: 0, reason: "no transcript" };
      if (count <= maxMessages) return { compacted: false, kept: count };
      this.#sql.forget.run(row.last_seq - maxMessages + 1, this.#stamp(row), row.session_key);
      this.#tell(row.session_key, "compact");
      return { compacted: true, kept: maxMessages };
    });
  }

  /**
   * Adds to the transcript; the session is made if there is none.
   *
   * @param sessionId the conversation it belongs to, for one that may have been reset or deleted
   *   meanwhile: the message then goes to the transcript that was put away
   */
  append(key: string, message: Message, { sessionId }: { sessionId?: string } = {}): Appended {
    const json = JSON.stringify(message);
    const bytes = new TextEncoder().encode(json).length;
    const lean = hasImages(message) ? JSON.stringify(withoutImages(message)) : null;
    const text = textOf(message);
    return this.#store.transaction(() => {
      const current = sessionId === undefined ? this.#rowOrNew(key) : this.#rowById(sessionId);
      const transcriptId = current?.transcript_id ?? this.#transcriptOf(sessionId!);
      const seq = current
        ? current.last_seq + 1
        : Number(this.#sql.lastSeq.get(transcriptId)!.seq) + 1;
      const { lastInsertRowid } = this.#sql.append.run(transcriptId, seq, bytes, lean, json);
      if (text !== "") this.#sql.index.run(lastInsertRowid, text);
      const appended = {
        messageId: messageIdOf(Number(lastInsertRowid)),
        sessionId: sessionId ?? current!.session_id,
        seq,
      };
      if (!current) return appended;
      const beginning = text.slice(0, PREVIEW_CHARS) || null;
      const firstText = message.role === "user" ? beginning : null;
      const isSaid = message.role === "user" || message.role === "assistant";
      const lastText = isSaid ? beginning : null;
      const now = this.#stamp(current);
      this.#sql.advance.run(seq, now, firstText, lastText, current.session_key);
      this.#store.afterCommit(() => {
        const session = this.#row(current.session_key);
        if (session) this.#news.appended(sessionOf(session), appended, message);
      });
      return appended;
    });
  }

  /**
   * An assistant message of somebody else's making.
   *
   * @throws {RpcError} "session not found"
   */
  inject(key: string, text: string, label?: string): Appended & { message: Message } {
    if (!this.get(key)) throw new RpcError("INVALID_REQUEST", "session not found");
    const message: Message = {
      role: "assistant",
      content: [{ type: "text", text: label ? `[${label}]\n\n${text}` : text }],
      timestamp: this.#now(),
      stopReason: "injected",
    };
    return { ...this.append(key, message), message };
  }

  /**
   * The last messages of the conversation. Where their JSON is more than `maxBytes` the oldest are
   * left out; a single message above it loses its images, and is left out when that is not enough.
   *
   * @param maxImageBytes messages with images count against this instead: those beyond it stay, and
   *   lose their images
   */
  history(
    sessionKey: string,
    { limit = DEFAULT_HISTORY_MESSAGES, maxBytes = MAX_HISTORY_BYTES, maxImageBytes }: {
      limit?: number;
      maxBytes?: number;
      maxImageBytes?: number;
    } = {},
  ): History {
    const row = this.#row(this.canonicalKey(sessionKey).key);
    if (!row) return { sessionKey, messages: [] };
    const { thinkingLevel } = readFacts(row);
    return {
      sessionKey,
      sessionId: row.session_id,
      messages: maxImageBytes === undefined
        ? this.#last(row, limit, maxBytes)
        : this.#lastTexts(row, { limit, maxBytes, maxImageBytes }),
      ...(thinkingLevel !== undefined && { thinkingLevel }),
    };
  }

  /** The beginnings of the last messages; undefined where there is no session. */
  preview(key: string, limit: number, maxChars: number): PreviewItem[] | undefined {
    const row = this.#row(this.canonicalKey(key).key);
    if (!row) return undefined;
    const whole = { limit, maxBytes: MAX_HISTORY_BYTES, maxImageBytes: 0 };
    return this.#lastTexts(row, whole).flatMap((message) => {
      const text = previewOf(message);
      if (text === "") return [];
      return [{ role: previewRole(message), text: shorten(text, maxChars) }];
    });
  }

  /** Newest first. */
  list(query: SessionQuery = {}): Session[] {
    const conditions: string[] = [];
    const values: (string | number)[] = [];
    const add = (condition: string, value: string | number) => {
      conditions.push(condition);
      values.push(value);
    };
    if (!query.includeGlobal) add("session_key <> ?", "global");
    if (!query.includeUnknown) add("session_key <> ?", "unknown");
    if (query.agentId !== undefined) add("agent_id = ?", normalizeAgentId(query.agentId));
    if (query.label !== undefined) add("label = ?", query.label.trim());
    if (query.spawnedBy !== undefined) add("spawned_by = ?", query.spawnedBy);
    if (query.activeMinutes !== undefined) {
      add("updated_at_ms >= ?", this.#now() - query.activeMinutes * 60_000);
    }
    const search = query.search?.trim().toLowerCase();
    if (search) add("instr(names, ?) > 0", search);
    const where = conditions.length > 0 ? `WHERE ${conditions.join(" AND ")}` : "";
    const sql =
      `SELECT ${COLUMNS} FROM sessions ${where} ORDER BY updated_at_ms DESC, rowid DESC LIMIT ?`;
    let statement = this.#lists.get(sql);
    if (!statement) this.#lists.set(sql, statement = this.#store.prepare(sql));
    return (statement.all(...values, query.limit ?? -1) as unknown as Row[]).map(sessionOf);
  }

  /** How many there are, of one agent if it is named; `global` and `unknown` are not counted. */
  count(agentId?: string): number {
    const row = agentId === undefined
      ? this.#sql.count.get()
      : this.#sql.countOf.get(normalizeAgentId(agentId));
    return Number(row!.count);
  }

  /**
   * Messages that hold every word of the query, the last one also as the beginning of a word; the
   * newest first. Conversations that were reset or deleted are not looked through.
   */
  search(query: string, { key, limit = 20 }: { key?: string; limit?: number } = {}): Hit[] {
    const words = query.split(/\s+/).filter((word) => /[\p{L}\p{N}]/u.test(word));
    if (words.length === 0) return [];
    const terms = words.map((word) => `"${word.replaceAll('"', '""')}"`).join(" ") + "*";
    const rows = key === undefined
      ? this.#sql.search.all(terms, limit)
      : this.#sql.searchIn.all(terms, this.canonicalKey(key).key, limit);
    return rows.map((row) => {
      const message = JSON.parse(String(row.message)) as Message;
      return {
        key: String(row.session_key),
        sessionId: String(row.session_id),
        messageId: messageIdOf(Number(row.message_row)),
        seq: Number(row.seq),
        role: message.role,
        timestamp: message.timestamp,
        snippet: snippetOf(textOf(message), words),
      };
    });
  }

  /**
   * A transcript as JSON lines, a piece at a time: all of it, also what was compacted away.
   *
   * @param which a session, or the id of any conversation there was
   * @param after `next` of the piece before
   * @returns undefined where there is none
   */
  exportPage(
    which: { key: string } | { sessionId: string },
    after?: number,
  ): TranscriptPage | undefined {
    const row = "key" in which
      ? this.#sql.transcriptOfKey.get(this.canonicalKey(which.key).key)
      : this.#sql.transcript.get(which.sessionId);
    if (!row) return undefined;
    const sessionId = String(row.session_id);
    const lines: string[] = [];
    if (after === undefined) {
      lines.push(JSON.stringify({
        type: "session",
        version: 1,
        id: sessionId,
        timestamp: new Date(Number(row.created_at_ms)).toISOString(),
        cwd: this.path.replace(/\/[^/]*$/, ""),
      }));
    }
    let next: number | null = null;
    let bytes = 0;
    let count = 0;
    for (const one of this.#sql.following.iterate(Number(row.transcript_id), after ?? 0)) {
      if (count++ === PAGE_MESSAGES || bytes > PAGE_BYTES) {
        next = Number(one.seq) - 1;
        break;
      }
      bytes += Number(one.bytes);
      const message = String(one.message);
      const { timestamp } = JSON.parse(message) as Message;
      const id = messageIdOf(Number(one.message_row));
      const time = new Date(timestamp).toISOString();
      lines.push(`{"type":"message","id":"${id}","timestamp":"${time}","message":${message}}`);
    }
    return { key: String(row.session_key), sessionId, lines, next };
  }

  /**
   * Counts what a turn took, for `usage` and for the session, if it is still there.
   *
   * @param sessionId the conversation it was taken in, for one that may have been reset meanwhile
   */
  recordUsage(
    key: string,
    { inputTokens, outputTokens, model, contextTokens }: TurnUsage,
    { sessionId }: { sessionId?: string } = {},
  ) {
    this.#store.transaction(() => {
      const { key: canonical } = this.canonicalKey(key);
      const total = inputTokens + outputTokens;
      const context = contextTokens ?? null;
      const id = sessionId ?? this.#row(canonical)?.session_id ?? null;
      this.#sql.spend.run(inputTokens, outputTokens, total, context, id);
      const day = new Date(this.#now()).toISOString().slice(0, 10);
      this.#sql.count1.run(day, canonical, model, inputTokens, outputTokens);
    });
  }

  /** What was used since then, oldest day first; of sessions that are gone, too. */
  usage(sinceMs: number): UsageRow[] {
    const since = new Date(sinceMs).toISOString().slice(0, 10);
    return this.#sql.usage.all(since).map((row) => ({
      day: String(row.day),
      key: String(row.session_key),
      model: String(row.model),
      inputTokens: Number(row.input_tokens),
      outputTokens: Number(row.output_tokens),
      turns: Number(row.turns),
    }));
  }

  #row(canonical: string): Row | undefined {
    return this.#sql.byKey.get(canonical) as Row | undefined;
  }

  #rowById(sessionId: string): Row | undefined {
    return this.#sql.byId.get(sessionId) as Row | undefined;
  }

  #transcriptOf(sessionId: string): number {
    const row = this.#sql.transcript.get(sessionId);
    if (!row) throw new Error(`no conversation ${sessionId}`);
    return Number(row.transcript_id);
  }

  #rowOrNew(key: string): Row {
    const { key: canonical, agentId } = this.canonicalKey(key);
    const found = this.#row(canonical);
    if (found) return found;
    const now = this.#now();
    const { sessionId, transcriptId } = this.#newTranscript(canonical, now);
    const names = namesOf({ key: canonical, sessionId });
    this.#sql.create.run(canonical, agentId, sessionId, transcriptId, names, now, now);
    this.#tell(canonical, "create");
    return this.#row(canonical)!;
  }

  #newTranscript(key: string, now: number): { sessionId: string; transcriptId: number } {
    const sessionId = crypto.randomUUID();
    const { lastInsertRowid } = this.#sql.newTranscript.run(sessionId, key, now);
    return { sessionId, transcriptId: Number(lastInsertRowid) };
  }

  /** Writes what a row carries beside its counters. */
  #write(row: Row, facts: Facts, updatedAt = row.updated_at_ms): Session {
    const { session_key: key, session_id: sessionId, label, spawned_by } = row;
    const json = JSON.stringify(facts);
    const { displayName, subject } = JSON.parse(json) as Facts;
    const names = namesOf({ key, sessionId, label: label ?? undefined, displayName, subject });
    this.#sql.write.run(label, spawned_by, json, names, updatedAt, key);
    return sessionOf({ ...row, facts: json, updated_at_ms: updatedAt });
  }

  /** A clock that goes back must not send a session down the list. */
  #stamp({ updated_at_ms }: Row): number {
    return Math.max(updated_at_ms, this.#now());
  }

  #label(row: Row, label: string | null) {
    const owner = label === null ? undefined : this.findByLabel(label);
    if (owner && owner.key !== row.session_key) {
      throw new RpcError("INVALID_REQUEST", `label already in use: ${label}`);
    }
    row.label = label;
  }

  #setParent(row: Row, spawnedBy: string | null) {
    if (row.spawned_by !== null && row.spawned_by !== spawnedBy) {
      throw new RpcError("INVALID_REQUEST", "spawnedBy cannot be changed once set");
    }
    row.spawned_by = spawnedBy;
  }

  /** Oldest first. */
  #last({ transcript_id, first_seq }: Row, limit: number, maxBytes: number): Message[] {
    const messages: Message[] = [];
    let bytes = 2;
    for (const row of this.#sql.last.iterate(transcript_id, first_seq, limit)) {
      bytes += Number(row.bytes) + 1;
      if (bytes > maxBytes && messages.length > 0) break;
      const message = JSON.parse(String(row.message)) as Message;
      if (bytes <= maxBytes) {
        messages.push(message);
        continue;
      }
      const plain = withoutImages(message);
      bytes = 3 + new TextEncoder().encode(JSON.stringify(plain)).length;
      if (bytes > maxBytes) break;
      messages.push(plain);
    }
    return messages.reverse();
  }

  /** Oldest first; images are read only where they are wanted. */
  #lastTexts(
    { transcript_id, first_seq }: Row,
    { limit, maxBytes, maxImageBytes }: { limit: number; maxBytes: number; maxImageBytes: number },
  ): Message[] {
    const messages: Message[] = [];
    let [chars, imageBytes] = [0, 0];
    for (const row of this.#sql.lastTexts.iterate(transcript_id, first_seq, limit)) {
      let json = String(row.message);
      chars += json.length;
      if (chars > maxBytes && messages.length > 0) break;
      if (row.has_images && imageBytes + Number(row.bytes) <= maxImageBytes) {
        imageBytes += Number(row.bytes);
        json = String(this.#sql.message.get(Number(row.message_row))!.message);
      }
      messages.push(JSON.parse(json) as Message);
    }
    return messages.reverse();
  }

  #tell(key: string, reason: ChangeReason) {
    this.#store.afterCommit(() => this.#news.changed(key, reason, this.get(key)));
  }
}

function prepareAll(store: Store) {
  const found = `SELECT m.message_row, m.seq, m.message, s.session_key, s.session_id
    FROM message_text f JOIN messages m ON m.message_row = f.rowid
    JOIN sessions s ON s.transcript_id = m.transcript_id
    WHERE message_text MATCH ?`;
  const newest = "ORDER BY f.rowid DESC LIMIT ?";
  return {
    byKey: store.prepare(`SELECT ${COLUMNS} FROM sessions WHERE session_key = ?`),
    byId: store.prepare(`SELECT ${COLUMNS} FROM sessions WHERE session_id = ?`),
    byLabel: store.prepare(`SELECT ${COLUMNS} FROM sessions WHERE label = ?`),
    // Both parts are read from an index alone.
    count: store.prepare(
      `SELECT (SELECT count(*) FROM sessions) - (SELECT count(*) FROM sessions
         WHERE session_key IN ('global', 'unknown')) AS count`,
    ),
    countOf: store.prepare(
      `SELECT (SELECT count(*) FROM sessions WHERE agent_id = ?1) - (SELECT count(*) FROM sessions
         WHERE session_key IN ('global', 'unknown') AND agent_id = ?1) AS count`,
    ),
    create: store.prepare(
      `INSERT INTO sessions
         (session_key, agent_id, session_id, transcript_id, facts, names, created_at_ms,
          updated_at_ms)
       VALUES (?, ?, ?, ?, '{}', ?, ?, ?)`,
    ),
    write: store.prepare(
      `UPDATE sessions SET label = ?, spawned_by = ?, facts = ?, names = ?, updated_at_ms = ?
       WHERE session_key = ?`,
    ),
    restart: store.prepare(
      `UPDATE sessions SET session_id = ?, transcript_id = ?, updated_at_ms = ?, input_tokens = 0,
         output_tokens = 0, total_tokens = 0, first_seq = 1, last_seq = 0, first_text = NULL,
         last_text = NULL
       WHERE session_key = ?`,
    ),
    remove: store.prepare("DELETE FROM sessions WHERE session_key = ?"),
    forget: store.prepare(
      "UPDATE sessions SET first_seq = ?, updated_at_ms = ? WHERE session_key = ?",
    ),
    advance: store.prepare(
      `UPDATE sessions SET last_seq = ?, updated_at_ms = ?,
         first_text = coalesce(first_text, ?), last_text = coalesce(?, last_text)
       WHERE session_key = ?`,
    ),
    spend: store.prepare(
      `UPDATE sessions SET input_tokens = input_tokens + ?, output_tokens = output_tokens + ?,
         total_tokens = ?, context_tokens = coalesce(?, context_tokens)
       WHERE session_id = ?`,
    ),
    count1: store.prepare(
      `INSERT INTO session_usage (day, session_key, model, input_tokens, output_tokens, turns)
       VALUES (?, ?, ?, ?, ?, 1)
       ON CONFLICT DO UPDATE SET input_tokens = input_tokens + excluded.input_tokens,
         output_tokens = output_tokens + excluded.output_tokens, turns = turns + 1`,
    ),
    usage: store.prepare("SELECT * FROM session_usage WHERE day >= ? ORDER BY day, session_key"),
    newTranscript: store.prepare(
      "INSERT INTO transcripts (session_id, session_key, created_at_ms) VALUES (?, ?, ?)",
    ),
    transcript: store.prepare("SELECT * FROM transcripts WHERE session_id = ?"),
    transcriptOfKey: store.prepare(
      `SELECT t.* FROM sessions s JOIN transcripts t USING (transcript_id)
       WHERE s.session_key = ?`,
    ),
    archive: store.prepare(
      "UPDATE transcripts SET archived_at_ms = ?, archived_as = ? WHERE transcript_id = ?",
    ),
    append: store.prepare(
      "INSERT INTO messages (transcript_id, seq, bytes, lean, message) VALUES (?, ?, ?, ?, ?)",
    ),
    index: store.prepare("INSERT INTO message_text (rowid, text) VALUES (?, ?)"),
    lastSeq: store.prepare(
      "SELECT coalesce(max(seq), 0) AS seq FROM messages WHERE transcript_id = ?",
    ),
    last: store.prepare(
      `SELECT bytes, message FROM messages WHERE transcript_id = ? AND seq >= ?
       ORDER BY seq DESC LIMIT ?`,
    ),
    lastTexts: store.prepare(
      `SELECT message_row, bytes, lean IS NOT NULL AS has_images, coalesce(lean, message) AS message
       FROM messages WHERE transcript_id = ? AND seq >= ? ORDER BY seq DESC LIMIT ?`,
    ),
    message: store.prepare("SELECT message FROM messages WHERE message_row = ?"),
    following: store.prepare(
      `SELECT message_row, seq, bytes, message FROM messages WHERE transcript_id = ? AND seq > ?
       ORDER BY seq`,
    ),
    search: store.prepare(`${found} ${newest}`),
    searchIn: store.prepare(`${found} AND s.session_key = ? ${newest}`),
  };
}

/** Once for each row of a list, hence without the conditional spreads that cost more than the row. */
function sessionOf(row: Row): Session {
  const entry: SessionEntry = {
    sessionId: row.session_id,
    updatedAt: row.updated_at_ms,
    inputTokens: row.input_tokens,
    outputTokens: row.output_tokens,
    totalTokens: row.total_tokens,
  };
  if (row.facts !== "{}") Object.assign(entry, readFacts(row));
  if (row.label !== null) entry.label = row.label;
  if (row.spawned_by !== null) entry.spawnedBy = row.spawned_by;
  if (row.context_tokens !== null) entry.contextTokens = row.context_tokens;
  return {
    key: row.session_key,
    agentId: row.agent_id,
    kind: kindOf(row.session_key, entry.chatType),
    entry,
    messageCount: row.last_seq - row.first_seq + 1,
    firstText: row.first_text ?? undefined,
    lastText: row.last_text ?? undefined,
  };
}

function readFacts({ facts }: Row): Facts {
  return JSON.parse(facts) as Facts;
}

function kindOf(key: string, chatType: string | undefined): SessionKind {
  if (key === "global" || key === "unknown") return key;
  const isGroup = chatType === "group" || chatType === "channel" ||
    key.includes(":group:") || key.includes(":channel:");
  return isGroup ? "group" : "direct";
}

/** What `search` of the list looks through. */
function namesOf(
  { key, sessionId, label, displayName, subject }: {
    key: string;
    sessionId: string;
    label?: string;
    displayName?: string;
    subject?: string;
  },
): string {
  return [displayName, label, subject, sessionId, key].filter(Boolean).join("\n").toLowerCase();
}

/** @throws {RpcError} "invalid <field> (use …)" */
function readSetting(name: keyof SessionSettings, given: string): string {
  const choices = CHOICES[name];
  const value = given.trim();
  if (choices) {
    const choice = value.toLowerCase();
    if (choices.includes(choice)) return choice;
    throw new RpcError("INVALID_REQUEST", `invalid ${name} (use ${choices.join("|")})`);
  }
  if (name === "label" && value.length > MAX_LABEL_CHARS) {
    throw new RpcError("INVALID_REQUEST", `invalid label (use 1 to ${MAX_LABEL_CHARS} characters)`);
  }
  if (value === "") throw new RpcError("INVALID_REQUEST", `invalid ${name} (use a text or null)`);
  return value;
}

/** Row numbers are unique, and this maps each of 2^32 to another number. */
function messageIdOf(row: number): string {
  return (Math.imul(row, 0x9e3779b1) >>> 0).toString(16).padStart(8, "0");
}

const LEFT_OUT = /\[image left out: [^\]\n]*\]/g;

function hasImages({ content }: Message): boolean {
  return content.some(({ type }) => type === "image");
}

export function withoutImages(message: Message): Message {
  const content = message.content.map((part): MessagePart =>
    part.type === "image" ? { type: "text", text: `[image left out: ${part.mimeType}]` } : part
  );
  return { ...message, content };
}

function previewOf(message: Message): string {
  const text = textOf(message).trim().replace(LEFT_OUT, "[image]");
  if (text !== "") return text;
  const calls = message.content.flatMap((part) => part.type === "toolCall" ? [part.name] : []);
  if (calls.length > 0) return `call ${calls.join(", ")}`;
  return message.content.some(({ type }) => type === "image") ? "[image]" : "";
}

function previewRole({ role, content }: Message): PreviewItem["role"] {
  if (role === "toolResult") return "tool";
  if (role === "assistant") {
    const isCall = content.length > 0 && content.every(({ type }) => type === "toolCall");
    return isCall ? "tool" : "assistant";
  }
  return role === "user" || role === "system" ? role : "other";
}

/** At most so many characters, the last a mark when something is missing. */
export function shorten(text: string, maxChars: number): string {
  if (text.length <= maxChars) return text;
  return `${text.slice(0, maxChars - 1).replace(/[\uD800-\uDBFF]$/, "")}…`;
}

/** The surroundings of the first word that was found, on one line. */
function snippetOf(text: string, words: string[]): string {
  const plain = text.replace(/\s+/g, " ").trim();
  const lower = plain.toLowerCase();
  const at = Math.max(0, ...words.map((word) => lower.indexOf(word.toLowerCase())).slice(0, 1));
  const from = at < SNIPPET_CHARS / 2 ? 0 : at - SNIPPET_CHARS / 4;
  const piece = shorten(plain.slice(from), SNIPPET_CHARS);
  return from > 0 ? `…${piece.replace(/^[\uDC00-\uDFFF]/, "")}` : piece;
}
