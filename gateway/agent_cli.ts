// Talking to the agent from a terminal: one message, or a conversation (protocol.md D14).

import {
  type Command,
  command,
  EXIT_FAILURE,
  type Flags,
  RPC_FLAGS,
  UsageError,
} from "../config/command.ts";
import { printable, printableLines, type Progress, type Terminal } from "../config/terminal.ts";
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
      details: "Without --wait it prints the id of the run as soon as the gateway has taken it. " +
        "With it, Ctrl-C stops the run.",
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
          if (expectFinal) return await waitFor(client, params, { ...flags, timeout }, terminal);
          const answer = await client.call("agent", params, { timeoutMs: timeout });
          if (flags.json) return terminal.json(answer);
          terminal.out(`Accepted: ${runIdOf(answer)}`);
        });
      },
    }),

    command({
      path: ["chat"],
      summary: "Talk with the agent",
      flags: { ...RPC_FLAGS, ...SESSION },
      details: "Each line is a message; what is answered is shown as it comes. /help lists what " +
        "works without a model, /stop or Ctrl-C stops an answer, and the end of the input ends the " +
        "chat. " +
        "From a pipe, each line waits for the answer to the one before. With --json every answer " +
        "is one line of JSON. The exit code is 1 when a message found no answer.",
      examples: ["zero chat", "zero chat --session work", 'echo "/nodes" | zero chat'],
      run: ({ flags }, terminal) =>
        calling(flags, world, terminal, (client) => talk(client, flags, terminal)),
    }),
  ];
}

/** Waits for the end of a run; an interrupt stops the run, not just the waiting. */
async function waitFor(
  client: Client,
  params: { message: string; sessionKey?: string; agentId?: string; idempotencyKey: string },
  { timeout, json }: CallFlags,
  terminal: Terminal,
): Promise<number | void> {
  const { sessionKey, agentId, idempotencyKey: runId } = params;
  const of = sessionKey ?? (agentId === undefined ? mainKeyOf(client) : `agent:${agentId}:main`);
  let isInterrupted = false;
  using _interrupts = onInterrupt(() => {
    if (isInterrupted) return false;
    isInterrupted = true;
    abort(client, of, runId);
    return true;
  });
  let answer: unknown;
  try {
    using _progress = terminal.progress("Waiting for the agent (Ctrl-C stops it)");
    answer = await client.call("agent", params, { timeoutMs: timeout, expectFinal: true });
  } catch (error) {
    if (!isInterrupted) throw error;
    terminal.err("Stopped");
    return EXIT_INTERRUPTED;
  }
  if (json) return terminal.json(answer);
  terminal.out(printableLines(replyOf(answer)));
}

/** As a shell reports a program that Ctrl-C ended. */
const EXIT_INTERRUPTED = 130;

/** @param react what Ctrl-C does; false: nothing any more, the next one ends the program */
function onInterrupt(react: () => boolean): Disposable {
  const stop = () => Deno.removeSignalListener("SIGINT", listener);
  const listener = () => {
    if (!react()) stop();
  };
  Deno.addSignalListener("SIGINT", listener);
  return { [Symbol.dispose]: stop };
}

/** How it ends is told by the run itself. */
function abort(client: Client, sessionKey: string, runId: string) {
  client.call("chat.abort", { sessionKey, runId }).catch(() => {});
}

/** A `chat` event (§8.3). */
interface ChatEvent {
  runId: string;
  state: "delta" | "final" | "aborted" | "error";
  message?: { content: { type: string; text?: string }[] };
  errorMessage?: string;
  stopReason?: string;
}

/** An `agent` event, as far as it says what the agent is at (§8.2). */
interface AgentEvent {
  runId: string;
  stream: string;
  data: { phase?: string; name?: string };
}

interface ApprovalEvent {
  id: string;
  request: { command: string; cwd: string | null; sessionKey: string | null };
}

function where({ cwd }: ApprovalEvent["request"]): string {
  return cwd === null ? "" : ` (in ${printable(cwd)})`;
}

/** What is being answered, and how much of it has been shown. */
class Answer {
  readonly ended = Promise.withResolvers<void>();
  #shown = "";
  readonly #progress: Progress;

  constructor(readonly runId: string, readonly terminal: Terminal, readonly isJson: boolean) {
    this.#progress = terminal.progress("Thinking (Ctrl-C stops it)");
  }

  /** The agent makes use of something, which may take a while. */
  uses(tool: string) {
    this.#progress.update(`Using ${printable(tool)} (Ctrl-C stops it)`);
  }

  /** Something else is on the terminal now. */
  isSeen() {
    this.#progress[Symbol.dispose]();
  }

  /** @returns whether the message found its answer */
  take(event: ChatEvent): boolean {
    const { state, errorMessage, stopReason } = event;
    const text = textOf(event);
    if (!this.isJson || state !== "delta") this.isSeen();
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
  const over = Promise.withResolvers<Error | "interrupted">();
  const prompt = () => {
    if (isAttended && answers.size === 0) terminal.writeErr(terminal.errStyle.dim("> "));
  };
  let hasFailed = false;
  client.closed.then(over.resolve);
  client.on("chat", (payload) => {
    const event = payload as ChatEvent;
    const answer = answers.get(event.runId);
    if (!answer) return;
    try {
      if (!answer.take(event)) hasFailed = true;
    } catch (error) {
      // Nobody reads it any more.
      return over.resolve(error as Error);
    }
    if (event.state === "delta") return;
    answers.delete(event.runId);
    prompt();
  });
  client.on("agent", (payload) => {
    const { runId, stream, data: { phase, name } } = payload as AgentEvent;
    if (stream === "tool" && phase === "start" && name) answers.get(runId)?.uses(name);
  });
  client.on("exec.approval.requested", (payload) => {
    const { id, request } = payload as ApprovalEvent;
    if (answers.size === 0 || !isSameSession(request.sessionKey, sessionKey)) return;
    for (const answer of answers.values()) answer.isSeen();
    terminal.err(
      `The agent wants to run: ${printable(request.command)}${where(request)}\n` +
        `Answer with: /approve ${id} allow-once, allow-always or deny`,
    );
  });
  let isStopping = false;
  using _interrupts = onInterrupt(() => {
    const isOver = answers.size === 0 || isStopping;
    isStopping = !isAttended;
    for (const runId of answers.keys()) abort(client, sessionKey, runId);
    if (isOver) over.resolve("interrupted");
    return !isOver;
  });
  prompt();
  while (!isStopping) {
    const line = await Promise.race([terminal.readLine().then((line) => ({ line })), over.promise]);
    if (line instanceof Error) throw line;
    if (line === "interrupted") return EXIT_INTERRUPTED;
    if (line.line === null) break;
    if (line.line === "") {
      prompt();
      continue;
    }
    const runId = crypto.randomUUID();
    const answer = new Answer(runId, terminal, json);
    answers.set(runId, answer);
    const sent = await client.call("chat.send", {
      sessionKey,
      message: line.line,
      idempotencyKey: runId,
    }, { timeoutMs: timeout }) as { runId?: string; runIds?: string[] };
    if (sent.runId === undefined) {
      // A word that stops what runs; that run says so itself.
      answer.isSeen();
      answers.delete(runId);
      if (!json && !sent.runIds?.length) terminal.err("There is nothing to stop");
      prompt();
      continue;
    }
    // Whoever sits at a terminal may go on typing: to approve something, or to stop it.
    if (isAttended) continue;
    const end = await Promise.race([answer.ended.promise, over.promise]);
    if (end instanceof Error) throw end;
  }
  if (isAttended) terminal.err();
  const rest = Promise.all([...answers.values()].map(({ ended }) => ended.promise));
  const end = await Promise.race([rest, over.promise]);
  if (end instanceof Error) throw end;
  if (isStopping || end === "interrupted") return EXIT_INTERRUPTED;
  return hasFailed ? EXIT_FAILURE : undefined;
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
    result?: { payloads?: { text?: string; mediaUrls?: string[] }[] };
    summary?: string;
  };
  const payloads = result?.payloads ?? [];
  const texts = payloads.flatMap(({ text }) => text || []);
  const images = payloads.flatMap(({ mediaUrls = [] }) => mediaUrls).length;
  if (images > 0) texts.push(`[${images} ${images === 1 ? "image" : "images"}: see --json]`);
  return texts.join("\n\n") || summary || "The agent gave no answer";
}

function runIdOf(answer: unknown): string {
  return String((answer as { runId?: string } | undefined)?.runId ?? "no run id");
}
