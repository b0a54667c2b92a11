// `zero approvals`: commands that wait for a person's answer, and giving it (protocol.md §7.10).

import { type Command, command, EXIT_FAILURE, RPC_FLAGS } from "../config/command.ts";
import { formatDuration, printable, type Terminal } from "../config/terminal.ts";
import type { Client } from "../rpc/client.ts";
import { RpcError } from "../rpc/error.ts";
import { calling } from "./calling.ts";
import type { CallFlags, CallWorld } from "./reach.ts";

/** A question as `exec.approval.list` tells of it. */
interface Approval {
  id: string;
  request: {
    command: string;
    cwd?: string | null;
    host?: string | null;
    agentId?: string | null;
    sessionKey?: string | null;
    resolvedPath?: string | null;
    nodeId?: string;
    argv?: string[];
    env?: Record<string, string>;
  };
  createdAtMs: number;
  expiresAtMs: number;
}

type Decision = "allow-once" | "allow-always" | "deny";

/** What an id must have of its beginning to be found by it. */
const MIN_PREFIX = 4;

export function approvalsCommands(world: CallWorld): Command[] {
  return [
    command({
      path: ["approvals", "list"],
      aliases: [["approvals"]],
      summary: "Commands that wait for an answer, oldest first",
      flags: RPC_FLAGS,
      run: ({ flags }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const list = await listApprovals(client, flags);
          if (flags.json) return terminal.json(list);
          showApprovals(list.pending, terminal);
        }),
    }),

    command({
      path: ["approvals", "allow"],
      summary: "Let a waiting command run",
      usage: "ID",
      flags: {
        ...RPC_FLAGS,
        always: { kind: "boolean", summary: "And from now on without asking" },
      },
      details:
        "ID may be the beginning of the id. What is allowed is exactly the command that was " +
        "asked about, on that node, in that directory and with that environment.",
      examples: ["zero approvals allow 3f2a9c1e", "zero approvals allow 3f2a9c1e --always"],
      run: ({ flags, args: [query] }, terminal) =>
        answer(query, flags.always ? "allow-always" : "allow-once", flags, world, terminal),
    }),

    command({
      path: ["approvals", "deny"],
      summary: "Refuse a waiting command",
      usage: "ID",
      flags: RPC_FLAGS,
      run: ({ flags, args: [query] }, terminal) => answer(query, "deny", flags, world, terminal),
    }),

    command({
      path: ["approvals", "watch"],
      summary: "Wait for commands that need an answer, and ask about each",
      flags: RPC_FLAGS,
      details: "On a terminal each is asked about: y lets it run once, a for good, n refuses it. " +
        "Elsewhere they are only shown. With --json every question and every answer is one " +
        "document on a line of its own.",
      examples: ["zero approvals watch"],
      run: ({ flags }, terminal) =>
        calling(flags, world, terminal, (client) => watch(client, flags, terminal)),
    }),
  ];
}

function answer(
  query: string,
  decision: Decision,
  flags: CallFlags,
  world: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  return calling(flags, world, terminal, async (client) => {
    const { id, request } = findApproval((await listApprovals(client, flags)).pending, query);
    const told = await resolve(client, id, decision, flags) as object;
    if (flags.json) return terminal.json({ ...told, id, decision });
    terminal.out(`${await outcomeOf(decision, request)}: ${printable(request.command)}`);
  });
}

/** What an answer comes to; "always" is not kept for what would allow everything. */
async function outcomeOf(decision: Decision, { argv }: Approval["request"]): Promise<string> {
  if (decision !== "allow-always" || !argv) return DONE[decision];
  const { isNeverRemembered } = await import("./node/remember.ts");
  return isNeverRemembered(argv)
    ? "Allowed now, and to be asked about again, because it can run anything"
    : DONE[decision];
}

const DONE: Record<Decision, string> = {
  "allow-once": "Allowed once",
  "allow-always": "Allowed for good",
  deny: "Denied",
};

async function resolve(client: Client, id: string, decision: Decision, { timeout }: CallFlags) {
  return await client.call("exec.approval.resolve", { id, decision }, { timeoutMs: timeout });
}

async function listApprovals(client: Client, { timeout }: CallFlags) {
  const list = await client.call("exec.approval.list", {}, { timeoutMs: timeout });
  return list as { pending: Approval[] };
}

/** By id or the beginning of it. */
function findApproval(pending: readonly Approval[], query: string): Approval {
  const wanted = query.trim();
  const matches = pending.filter(({ id }) =>
    id === wanted || (wanted.length >= MIN_PREFIX && id.startsWith(wanted))
  );
  const [first] = matches.toSorted((one, other) => one.id.length - other.id.length);
  if (matches.length === 1 || first?.id === wanted) return first;
  throw new RpcError(
    matches.length > 1 ? "INVALID_REQUEST" : "APPROVAL_NOT_FOUND",
    `${matches.length > 1 ? "ambiguous" : "unknown"} approval id: ${printable(query)}`,
    { details: { fix: "zero approvals list" } },
  );
}

async function watch(client: Client, flags: CallFlags, terminal: Terminal): Promise<number | void> {
  const open = new Map<string, Approval>();
  let wake = Promise.withResolvers<void>();
  const isAsking = terminal.canAsk && !flags.json;
  const add = (approval: Approval) => {
    if (open.has(approval.id)) return;
    open.set(approval.id, approval);
    if (flags.json) terminal.out(JSON.stringify(approval));
    else if (!isAsking) showApproval(approval, terminal);
    wake.resolve();
  };
  client.on("exec.approval.requested", (payload) => add(payload as Approval));
  client.on("exec.approval.resolved", (payload) => {
    const { id, decision } = payload as { id: string; decision: string | null };
    open.delete(id);
    if (flags.json) terminal.out(JSON.stringify(payload));
    else if (!isAsking) terminal.out(`${id}  ${decision ?? "lapsed"}`);
  });
  for (const approval of (await listApprovals(client, flags)).pending) add(approval);
  if (open.size === 0 && !flags.json) terminal.err("Waiting for commands that need an answer");
  if (!isAsking) throw await client.closed;

  for (;;) {
    wake = Promise.withResolvers();
    const [next] = open.values();
    if (!next) {
      const end = await Promise.race([client.closed, wake.promise]);
      if (end) throw end;
      continue;
    }
    showApproval(next, terminal);
    const typed = await Promise.race([client.closed, askDecision(terminal)]);
    if (typed instanceof Error) throw typed;
    if (typed === null) return EXIT_FAILURE;
    // What was typed for one question is never the answer to another.
    if (!open.delete(next.id)) {
      terminal.out("It was answered elsewhere, or lapsed");
      continue;
    }
    try {
      await resolve(client, next.id, typed, flags);
      terminal.out(await outcomeOf(typed, next.request));
    } catch (error) {
      if (!(error instanceof RpcError)) throw error;
      terminal.err(error.message);
    }
  }
}

/** @returns null at the end of the input */
async function askDecision(terminal: Terminal): Promise<Decision | null> {
  for (;;) {
    const typed = await terminal.ask("Run it? [y once / a always / n deny]");
    if (typed === null) return null;
    const decision = ANSWERS[typed.toLowerCase()];
    if (decision) return decision;
  }
}

const ANSWERS: Record<string, Decision | undefined> = {
  y: "allow-once",
  yes: "allow-once",
  a: "allow-always",
  always: "allow-always",
  n: "deny",
  no: "deny",
};

function showApprovals(pending: readonly Approval[], terminal: Terminal) {
  if (pending.length === 0) return terminal.out("No command waits for an answer");
  const now = Date.now();
  const hasMore = pending.some((one) => surroundingsOf(one) !== "");
  terminal.table(
    pending.map((one) => [
      one.id,
      placeOf(one),
      `${formatDuration(Math.max(0, now - one.createdAtMs))} ago`,
      formatDuration(Math.max(0, one.expiresAtMs - now)),
      ...hasMore ? [surroundingsOf(one)] : [],
      printable(one.request.command),
    ]),
    { header: ["WAITING", "WHERE", "ASKED", "LAPSES IN", ...hasMore ? ["WITH"] : [], "COMMAND"] },
  );
}

/** In which directory and with which variables a command runs, as far as the asker said so. */
function surroundingsOf({ request: { cwd, env } }: Approval): string {
  return [...cwd ? [`cwd=${printable(cwd)}`] : [], ...variablesOf(env)].join(" ");
}

function variablesOf(env: Record<string, string> = {}): string[] {
  return Object.entries(env).map(([name, value]) => printable(`${name}=${value}`));
}

/** Everything an answer is bound to. */
function showApproval(one: Approval, terminal: Terminal) {
  const { command, cwd, env, agentId, sessionKey, resolvedPath } = one.request;
  const text = (value: string | null | undefined) => value ? printable(value) : undefined;
  terminal.out(terminal.style.bold(printable(command)));
  terminal.fields([
    ["  id", one.id],
    ["  where", placeOf(one)],
    ["  directory", text(cwd)],
    ["  program", text(resolvedPath)],
    ["  environment", variablesOf(env).join(" ") || undefined],
    ["  agent", text(agentId)],
    ["  session", text(sessionKey)],
    ["  lapses in", formatDuration(Math.max(0, one.expiresAtMs - Date.now()))],
  ]);
}

function placeOf({ request: { nodeId, host } }: Approval): string {
  if (nodeId) return `node ${printable(nodeId.slice(0, 12))}`;
  return printable(host ?? "not known");
}
