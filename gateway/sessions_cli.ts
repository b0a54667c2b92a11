// `zero sessions`: the conversations of a gateway; looking through them, and putting them away.

import { type Command, command, type Flags, RPC_FLAGS } from "../config/command.ts";
import { formatDuration, printable, type Terminal } from "../config/terminal.ts";
import type { Client } from "../rpc/client.ts";
import { RpcError } from "../rpc/error.ts";
import { calling } from "./calling.ts";
import type { CallFlags, CallWorld } from "./reach.ts";

/** A row of `sessions.list`, as far as it is shown. */
interface Row {
  key: string;
  kind: string;
  label?: string;
  derivedTitle?: string;
  lastMessagePreview?: string;
  updatedAt: number | null;
  sessionId: string;
  modelProvider?: string;
  model?: string;
  inputTokens: number;
  outputTokens: number;
}

interface Message {
  role: string;
  content: string | Part[];
  timestamp?: number;
  toolName?: string;
  isError?: boolean;
}

interface Part {
  type: string;
  text?: string;
  mimeType?: string;
  name?: string;
  arguments?: unknown;
}

interface Hit {
  key: string;
  role: string;
  timestamp: number;
  snippet: string;
}

interface Page {
  key: string;
  sessionId: string;
  lines: string[];
  next: number | null;
}

/** Waiting for a run to stop takes up to 15 s (§7.6). */
const PATIENT_FLAGS = {
  ...RPC_FLAGS,
  timeout: { ...RPC_FLAGS.timeout, default: 20_000 },
} as const satisfies Flags;

const [TITLE_CHARS, SNIPPET_CHARS] = [50, 100];

export function sessionsCommands(world: CallWorld): Command[] {
  return [
    command({
      path: ["sessions", "list"],
      aliases: [["sessions"]],
      summary: "Conversations, the newest first",
      flags: {
        ...RPC_FLAGS,
        agent: { kind: "text", placeholder: "ID", summary: "Only those of this agent" },
        active: {
          kind: "integer",
          min: 1,
          placeholder: "MINUTES",
          summary: "Only those in which something happened since",
        },
        search: {
          kind: "text",
          placeholder: "TEXT",
          summary: "Only those with this in their name, label, subject, id or key",
        },
        limit: { kind: "integer", min: 1, default: 50, summary: "How many" },
      },
      examples: ["zero sessions list --active 60", "zero sessions list --search phone --json"],
      run: ({ flags }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const { agent: agentId, active: activeMinutes, search, limit } = flags;
          const answer = await client.call("sessions.list", {
            ...{ agentId, activeMinutes, search, limit },
            includeGlobal: true,
            includeUnknown: true,
            includeDerivedTitles: true,
          });
          if (flags.json) return terminal.json(answer);
          showRows((answer as { sessions: Row[] }).sessions, terminal);
        }),
    }),

    command({
      path: ["sessions", "show"],
      summary: "What was said in a conversation",
      usage: "SESSION",
      flags: {
        ...RPC_FLAGS,
        limit: {
          kind: "integer",
          min: 1,
          max: 1_000,
          default: 50,
          summary: "How many messages, the last ones",
        },
      },
      details: "SESSION is a key, a label or the id of a conversation.",
      examples: ["zero sessions show main", "zero sessions show main --limit 5 --json"],
      run: ({ flags, args: [query] }, terminal) =>
        onSession(query, flags, world, terminal, async (client, session) => {
          const { limit } = flags;
          const history = await client.call("chat.history", { sessionKey: session.key, limit });
          if (flags.json) return terminal.json({ session, history });
          const { messages } = history as { messages: Message[] };
          showSession(session, terminal);
          for (const message of messages) showMessage(message, terminal);
        }),
    }),

    command({
      path: ["sessions", "search"],
      summary: "Messages that hold all these words, the newest first",
      usage: "WORD...",
      flags: {
        ...RPC_FLAGS,
        session: { kind: "text", placeholder: "SESSION", summary: "Only in this conversation" },
        limit: { kind: "integer", min: 1, max: 200, default: 20, summary: "How many" },
      },
      details: "The last word may be the beginning of one. Case and accents do not matter.",
      examples: ["zero sessions search kernel version", "zero sessions search ping --session main"],
      run: ({ flags, args }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const { session, limit } = flags;
          const key = session === undefined ? undefined : (await findSession(client, session)).key;
          const answer = await client.call("sessions.search", {
            query: args.join(" "),
            ...(key && { key }),
            limit,
          });
          if (flags.json) return terminal.json(answer);
          showHits((answer as { hits: Hit[] }).hits, terminal);
        }),
    }),

    command({
      path: ["sessions", "export"],
      summary: "Write a transcript as JSON lines",
      usage: "SESSION",
      flags: {
        ...RPC_FLAGS,
        out: { kind: "text", placeholder: "FILE", summary: "Write FILE, which must not exist" },
      },
      details: "All of it, also what was compacted away. SESSION may also be the id of a " +
        "conversation that was reset or deleted. With --json it is one document.",
      examples: [
        "zero sessions export main > main.jsonl",
        "zero sessions export main --out a.jsonl",
      ],
      run: ({ flags, args: [query] }, terminal) =>
        calling(flags, world, terminal, (client) => exportTo(client, query, flags, terminal)),
    }),

    command({
      path: ["sessions", "rename"],
      summary: "Give a conversation a label of its own; without LABEL it loses it",
      usage: "SESSION [LABEL]",
      flags: RPC_FLAGS,
      run: ({ flags, args: [query, label = null] }, terminal) =>
        onSession(query, flags, world, terminal, async (client, { key }) => {
          const answer = await client.call("sessions.patch", { key, label });
          if (flags.json) return terminal.json(answer);
          terminal.out(
            label === null
              ? `${printable(key)} has no label now`
              : `${printable(key)} is labelled ${printable(label)}`,
          );
        }),
    }),

    command({
      path: ["sessions", "reset"],
      summary: "Begin a conversation anew, with its settings",
      usage: "SESSION",
      flags: PATIENT_FLAGS,
      details: "What runs in it is stopped. The transcript so far stays in the database: zero " +
        "sessions export takes its id, which is printed.",
      run: ({ flags, args: [query] }, terminal) =>
        onSession(query, flags, world, terminal, async (client, { key, sessionId }) => {
          const answer = await client.call("sessions.reset", { key });
          if (flags.json) return terminal.json(answer);
          terminal.out(`Reset ${printable(key)}; what was said is in ${sessionId}`);
        }),
    }),

    command({
      path: ["sessions", "delete"],
      summary: "Take a conversation off the list",
      usage: "SESSION",
      flags: PATIENT_FLAGS,
      details: "What runs in it is stopped. The main conversation cannot be deleted. The " +
        "transcript stays in the database: zero sessions export takes its id, which is printed.",
      run: ({ flags, args: [query] }, terminal) =>
        onSession(query, flags, world, terminal, async (client, { key, sessionId }) => {
          const answer = await client.call("sessions.delete", { key });
          if (flags.json) return terminal.json(answer);
          terminal.out(`Deleted ${printable(key)}; what was said is in ${sessionId}`);
        }),
    }),

    command({
      path: ["sessions", "compact"],
      summary: "Leave only the last messages in a conversation",
      usage: "SESSION",
      flags: {
        ...RPC_FLAGS,
        keep: { kind: "integer", min: 1, default: 400, summary: "How many messages stay" },
      },
      details:
        "The others are no longer shown or told to the model; zero sessions export has them.",
      run: ({ flags, args: [query] }, terminal) =>
        onSession(query, flags, world, terminal, async (client, { key }) => {
          const answer = await client.call("sessions.compact", { key, maxLines: flags.keep });
          if (flags.json) return terminal.json(answer);
          const { compacted, kept = 0 } = answer as { compacted: boolean; kept?: number };
          terminal.out(
            compacted
              ? `Compacted ${printable(key)} to its last ${kept} messages`
              : `${printable(key)} has ${kept} messages: nothing to compact`,
          );
        }),
    }),
  ];
}

function onSession(
  query: string,
  flags: CallFlags,
  world: CallWorld,
  terminal: Terminal,
  use: (client: Client, session: Row) => Promise<number | void>,
): Promise<number | void> {
  return calling(
    flags,
    world,
    terminal,
    async (client) => await use(client, await findSession(client, query)),
  );
}

/** By key, label or the id of its conversation. */
async function findSession(client: Client, query: string): Promise<Row> {
  const { session } = await client.call("sessions.describe", { key: query }) as {
    session: Row | null;
  };
  if (session) return session;
  const all = { includeGlobal: true, includeUnknown: true };
  for (const params of [{ ...all, label: query }, { ...all, search: query }]) {
    const { sessions } = await client.call("sessions.list", params) as { sessions: Row[] };
    const found = sessions.find(({ label, sessionId }) => label === query || sessionId === query);
    if (found) return found;
  }
  throw notFound(query);
}

function notFound(query: string): RpcError {
  return new RpcError("INVALID_REQUEST", `No session found: ${query}`, {
    details: { fix: "zero sessions list" },
  });
}

async function exportTo(
  client: Client,
  query: string,
  { out, json }: { out?: string; json: boolean },
  terminal: Terminal,
): Promise<void> {
  const isId = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(query);
  const which = isId ? { sessionId: query } : { key: (await findSession(client, query)).key };
  const documents: unknown[] = [];
  let count = 0;
  let after: number | null | undefined;
  do {
    const { lines, next } = await client.call("sessions.export", {
      ...which,
      ...(after !== undefined && { after }),
    }) as Page;
    const text = lines.map((line) => `${line}\n`).join("");
    if (out !== undefined) await save(out, text, { isNew: count === 0 });
    else if (json) documents.push(...lines.map((line) => JSON.parse(line)));
    else terminal.write(text);
    count += lines.length;
    after = next;
  } while (after !== null);
  if (json) terminal.json(out === undefined ? documents : { file: out, messages: count - 1 });
  else if (out !== undefined) terminal.out(`Wrote ${count - 1} messages to ${out}`);
}

async function save(file: string, text: string, { isNew }: { isNew: boolean }) {
  try {
    const how = isNew ? { createNew: true, mode: 0o600 } : { append: true };
    await Deno.writeTextFile(file, text, how);
  } catch (cause) {
    throw new Error(`Cannot write ${file}: ${(cause as Error).message}`, { cause });
  }
}

function showRows(rows: readonly Row[], terminal: Terminal) {
  if (rows.length === 0) return terminal.out("No conversations");
  const now = Date.now();
  terminal.table(
    rows.map(({ key, label, derivedTitle, updatedAt, inputTokens, outputTokens }) => [
      printable(key),
      printable(label ?? ""),
      updatedAt === null ? "" : `${formatDuration(now - updatedAt)} ago`,
      String(inputTokens + outputTokens),
      cut(derivedTitle ?? "", TITLE_CHARS),
    ]),
    { header: ["SESSION", "LABEL", "ACTIVE", "TOKENS", "ABOUT"] },
  );
}

function showSession(
  { key, label, sessionId, modelProvider, model }: Row,
  terminal: Terminal,
) {
  const { bold, dim } = terminal.style;
  const name = [key, ...label ? [`(${label})`] : []].join(" ");
  const chosen = model && [modelProvider, model].filter(Boolean).join("/");
  terminal.out(bold(printable(name)));
  terminal.out(dim([sessionId, ...chosen ? [printable(chosen)] : []].join(" · ")));
}

function showMessage(message: Message, terminal: Terminal) {
  const { role, content, timestamp, toolName, isError } = message;
  const time = timestamp === undefined ? [] : [new Date(timestamp).toISOString()];
  const who = role === "toolResult" ? `result of ${toolName ?? "a tool"}` : role;
  const head = [who, ...isError ? ["failed"] : [], ...time].map(printable).join(" · ");
  terminal.out(`\n${terminal.style.cyan(head)}`);
  const parts = typeof content === "string" ? [{ type: "text", text: content }] : content;
  for (const part of parts) terminal.out(safeLines(describe(part)));
}

function describe({ type, text, mimeType, name, arguments: args }: Part): string {
  if (type === "text") return text ?? "";
  if (type === "image") return `[image ${mimeType ?? ""}]`;
  if (type === "toolCall") return `[calls ${name} ${JSON.stringify(args ?? {})}]`;
  return `[${type}]`;
}

function showHits(hits: readonly Hit[], terminal: Terminal) {
  if (hits.length === 0) return terminal.out("Nothing found");
  const now = Date.now();
  terminal.table(
    hits.map(({ key, role, timestamp, snippet }) => [
      printable(key),
      role,
      `${formatDuration(now - timestamp)} ago`,
      cut(snippet, SNIPPET_CHARS),
    ]),
    { header: ["SESSION", "WHO", "WHEN", "WHAT"] },
  );
}

/** On one line, and not too long for a table. */
function cut(text: string, maxChars: number): string {
  const line = printable(text.replace(/\s+/g, " ").trim());
  return line.length > maxChars ? `${line.slice(0, maxChars - 1)}…` : line;
}

/** Several lines from elsewhere, each safe to print. */
function safeLines(text: string): string {
  return text.replaceAll("\t", "  ").split(/\r?\n/).map(printable).join("\n");
}
