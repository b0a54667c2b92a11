// Talking to the agent from a terminal: one message, or a conversation (protocol.md D14).

import {
  type Command,
  command,
  EXIT_FAILURE,
  type Flags,
  RPC_FLAGS,
  UsageError,
} from "../config/command.ts";
import { printable, printableLines, type Terminal } from "../config/terminal.ts";
import type { Client } from "../rpc/client.ts";
import { calling } from "./calling.ts";
import type { CallFlags, CallWorld } from "./reach.ts";

/** How long `agent --wait` waits unless told: the longest run, and some more (§7.3). */
const AGENT_TIMEOUT_MS = 630_000;

const SESSION = {
  session: { kind: "text", placeholder: "KEY", summary: "The conversation it belongs to" },
} as const satisfies Flags;

export function agentCommands(world: CallWorld): Command[] {
  return [
    command({
      path: ["agent"],
      aliases: [["gateway", "agent"]],
      summary: "Give the agent a message",
      flags: {
        ...RPC_FLAGS,
        ...SESSION,
        message: { kind: "text", summary: "What to tell the agent" },
        agent: { kind: "text", placeholder: "ID", summary: "Which agent" },
        wait: { kind: "boolean", summary: "Wait for the answer and print it" },
        "expect-final": { kind: "boolean", hidden: true, summary: "Same as --wait" },
        "idempotency-key": {
          kind: "text",
          placeholder: "KEY",
          summary: "Run at most once for this key",
        },
      },
      details: "Without --wait it prints the id of the run as soon as the gateway has taken it.",
      examples: ['zero agent --message "What is on today?" --wait'],
      run: async ({ flags, given }, terminal) => {
        if (!flags.message?.trim()) {
          throw new UsageError("Cannot go on: --message is missing", {
            hint: "Write --message TEXT",
          });
        }
        const params = {
          message: flags.message,
          sessionKey: flags.session,
          agentId: flags.agent,
          idempotencyKey: flags["idempotency-key"] ?? crypto.randomUUID(),
        };
        const expectFinal = flags.wait || flags["expect-final"];
        const timeout = expectFinal && !given.has("timeout") ? AGENT_TIMEOUT_MS : flags.timeout;
        return await calling({ ...flags, timeout }, world, terminal, async (client) => {
          const answer = await client.call("agent", params, { timeoutMs: timeout, expectFinal });
          if (flags.json) return terminal.json(answer);
          terminal.out(expectFinal ? replyOf(answer) : `Accepted: ${runIdOf(answer)}`);
        });
      },
    }),

    command({
      path: ["chat"],
      summary: "Talk with the agent",
      flags: { ...RPC_FLAGS, ...SESSION },
      details: "Each line is a message; what is answered is shown as it comes. /help lists what " +
        "works without a model, /stop stops an answer, and the end of the input ends the chat. " +
        "From a pipe, each line waits for the answer to the one before. With --json every answer " +
        "is one line of JSON. The exit code is 1 when a message found no answer.",
      examples: ["zero chat", "zero chat --session work", 'echo "/nodes" | zero chat'],
      run: ({ flags }, terminal) =>
        calling(flags, world, terminal, (client) => talk(client, flags, terminal)),
    }),
  ];
}

/** A `chat` event (§8.3). */
interface ChatEvent {
  runId: string;
  state: "delta" | "final" | "aborted" | "error";
  message?: { content: { type: string; text?: string }[] };
  errorMessage?: string;
  stopReason?: string;
}

interface ApprovalEvent {
  id: string;
  request: { command: string; sessionKey: string | null };
}

/** What is being answered, and how much of it has been shown. */
class Answer {
  readonly ended = Promise.withResolvers<void>();
  #shown = "";

  constructor(readonly runId: string, readonly terminal: Terminal, readonly isJson: boolean) {}

  /** @returns whether the message found its answer */
  take(event: ChatEvent): boolean {
    const { state, errorMessage, stopReason } = event;
    const text = textOf(event);
    if (this.isJson) {
      if (state === "delta") return true;
      const { runId } = this;
      this.terminal.out(JSON.stringify({ runId, state, text, errorMessage, stopReason }));
    } else {
      if (text !== undefined) this.#show(text);
      if (state === "delta") return true;
      if (this.#shown !== "" && !this.#shown.endsWith("\n")) this.terminal.out();
      const { red, dim } = this.terminal.errStyle;
      if (state === "error") {
        this.terminal.err(`${red("error:")} ${printableLines(errorMessage ?? "")}`);
      }
      if (state === "aborted") this.terminal.err(dim(`stopped (${stopReason ?? "unknown"})`));
    }
    this.ended.resolve();
    return state === "final";
  }

  /** What is new of it; a text that does not go on from the last begins on a line of its own. */
  #show(text: string) {
    const goesOn = text.startsWith(this.#shown);
    const isFresh = this.#shown === "" || this.#shown.endsWith("\n");
    if (!goesOn && !isFresh) this.terminal.out();
    this.terminal.write(printableLines(goesOn ? text.slice(this.#shown.length) : text));
    this.#shown = text;
  }
}

async function talk(
  client: Client,
  { session, timeout, json }: CallFlags & { session?: string },
  terminal: Terminal,
): Promise<number | void> {
  const sessionKey = session?.trim() || mainKeyOf(client);
  const isAttended = terminal.canAsk && terminal.isInteractive && !json;
  const answers = new Map<string, Answer>();
  let hasFailed = false;
  client.on("chat", (payload) => {
    const event = payload as ChatEvent;
    const answer = answers.get(event.runId);
    if (!answer) return;
    if (!answer.take(event)) hasFailed = true;
    if (event.state !== "delta") answers.delete(event.runId);
  });
  client.on("exec.approval.requested", (payload) => {
    const { id, request } = payload as ApprovalEvent;
    if (answers.size === 0 || !isSameSession(request.sessionKey, sessionKey)) return;
    terminal.err(
      `The agent wants to run: ${printable(request.command)}\n` +
        `Answer with: /approve ${id} allow-once, allow-always or deny`,
    );
  });
  const prompt = terminal.errStyle.dim("> ");
  for (;;) {
    if (isAttended) terminal.writeErr(prompt);
    const line = await Promise.race([terminal.readLine(), client.closed]);
    if (line instanceof Error) throw line;
    if (line === null) break;
    if (line === "") continue;
    const runId = crypto.randomUUID();
    const answer = new Answer(runId, terminal, json);
    answers.set(runId, answer);
    const sent = await client.call("chat.send", {
      sessionKey,
      message: line,
      idempotencyKey: runId,
    }, { timeoutMs: timeout }) as { runId?: string; runIds?: string[] };
    if (sent.runId === undefined) {
      // A word that stops what runs; that run says so itself.
      answers.delete(runId);
      if (!json && !sent.runIds?.length) terminal.err("There is nothing to stop");
      continue;
    }
    // Whoever sits at a terminal may go on typing: to approve something, or to stop it.
    const isDone = Promise.race([answer.ended.promise, client.closed]);
    const end = isAttended ? await Promise.race([isDone, soon()]) : await isDone;
    if (end instanceof Error) throw end;
  }
  if (isAttended) terminal.err();
  const rest = Promise.all([...answers.values()].map(({ ended }) => ended.promise));
  const end = await Promise.race([rest, client.closed]);
  if (end instanceof Error) throw end;
  return hasFailed ? EXIT_FAILURE : undefined;
}

/** Most commands are answered within it, and then the prompt comes below the answer. */
const SOON_MS = 300;

function soon(): Promise<undefined> {
  return new Promise((resolve) => setTimeout(() => resolve(undefined), SOON_MS));
}

function mainKeyOf({ hello }: Client): string {
  const { sessionDefaults } = hello.snapshot as { sessionDefaults?: { mainSessionKey?: string } };
  return sessionDefaults?.mainSessionKey ?? "main";
}

/** The gateway tells the canonical form of a key. */
function isSameSession(told: string | null, sessionKey: string): boolean {
  const key = sessionKey.toLowerCase();
  return told === key || told?.endsWith(`:${key}`) === true;
}

function textOf({ message }: ChatEvent): string | undefined {
  return message?.content.map(({ text = "" }) => text).join("");
}

/** What a run answered, as text. */
function replyOf(answer: unknown): string {
  const { result, summary } = (answer ?? {}) as {
    result?: { payloads?: { text?: string; mediaUrl?: string }[] };
    summary?: string;
  };
  const texts = (result?.payloads ?? []).flatMap(({ text, mediaUrl }) => text ?? mediaUrl ?? []);
  return texts.join("\n\n") || summary || "The agent gave no answer";
}

function runIdOf(answer: unknown): string {
  return String((answer as { runId?: string } | undefined)?.runId ?? "no run id");
}
