// The built-in agent: commands that work without any model, and with one as well.

import { RpcError } from "../../rpc/error.ts";
import { formatDuration } from "../../config/terminal.ts";
import { DECISIONS } from "../approvals.ts";
import { splitLine } from "../node/splitter.ts";
import { fenced } from "./node_run.ts";
import type { RunOrigin } from "./runs.ts";
import type { ToolResult } from "./tools.ts";

/** What a command is given. */
export interface CommandCall {
  /** What stands behind the command. */
  rest: string;
  origin: RunOrigin;
  /** Canonical. */
  sessionKey: string;
  /** Whether several people share the session. */
  isGroup: boolean;
  use(tool: string, args: Record<string, unknown>): Promise<ToolResult>;
  /** @throws {RpcError} */
  gateway(method: string, params: unknown): Promise<unknown>;
  /** Ends what runs and waits in the session; returns how many runs that were. */
  stop(): number;
  /** Begins the conversation anew. */
  reset(): void;
  lastReply(): string | undefined;
}

export interface Command {
  name: string;
  /** What may stand behind it. */
  usage?: string;
  summary: string;
  isOwnerOnly: boolean;
  /**
   * Whether it waits until the runs before it have ended: those that look at or end what runs must
   * not, and are no part of the conversation then.
   */
  waits: "in-turn" | "unless-busy" | "never";
  run(call: CommandCall): Promise<string>;
}

export const NO_MODEL =
  "I have no model to think with, so I only understand commands: /help lists " +
  "them. To give me one, run this on the gateway's machine: zero auth add <provider>";

/** What §7.4 takes for a stop, beside the command. */
const STOP_WORDS = ["stop", "esc", "abort", "wait", "exit", "interrupt"];

/** Whether a message says nothing but that everything of its session shall stop. */
export function isStop(message: string): boolean {
  const word = message.trim().toLowerCase();
  return /^\/stop(?:@\w+)?$/.test(word) || STOP_WORDS.includes(word);
}

/** The command a message is; undefined for what is none. */
export function readCommand(
  message: string,
  commands: readonly Command[],
): { command: Command; rest: string } | undefined {
  const [, name, rest = ""] = /^\s*\/([a-z]+)(?:@\w+)?(?:\s+([\s\S]*))?$/i.exec(message) ?? [];
  const command = commands.find((one) => one.name === name?.toLowerCase());
  return command && { command, rest: rest.trim() };
}

export const COMMANDS: readonly Command[] = [
  {
    name: "help",
    summary: "What you can tell me",
    isOwnerOnly: false,
    waits: "unless-busy",
    run: ({ origin }) => {
      const lines = COMMANDS.filter(({ isOwnerOnly }) => origin.isOwner || !isOwnerOnly).map(
        ({ name, usage, summary }) => `/${name}${usage ? ` ${usage}` : ""} – ${summary}`,
      );
      return Promise.resolve(lines.join("\n"));
    },
  },
  {
    name: "status",
    summary: "How the gateway is",
    isOwnerOnly: true,
    waits: "unless-busy",
    run: async (call) => {
      const { text, isError } = await call.use("gateway_status", {});
      return isError ? text : `Gateway: ${describeStatus(JSON.parse(text))}`;
    },
  },
  {
    name: "nodes",
    summary: "Machines I can reach",
    isOwnerOnly: true,
    waits: "unless-busy",
    run: async (call) => {
      const { text, isError } = await call.use("node_list", {});
      return isError ? text : describeNodes(JSON.parse(text));
    },
  },
  {
    name: "run",
    usage: "<node> <command…>",
    summary: "Run a program on a node",
    isOwnerOnly: true,
    waits: "in-turn",
    run: async (call) => {
      const [node, line] = firstWord(call.rest);
      const argv = readArgv(line);
      if (!node || !argv) return "Write it like this: /run n1 uname -a";
      const { text, isError } = await call.use("node_run", { node, argv });
      return isError ? text : fenced(text);
    },
  },
  {
    name: "invoke",
    usage: "<node> <command> [json]",
    summary: "Have a node do something else it offers",
    isOwnerOnly: true,
    waits: "in-turn",
    run: async (call) => {
      const [node, behind] = firstWord(call.rest);
      const [command, json] = firstWord(behind);
      const params = readJson(json);
      if (!node || !command || !params) {
        return 'Write it like this: /invoke n1 system.which {"bins":["git"]}';
      }
      const { text, images, isError } = await call.use("node_invoke", {
        node,
        command,
        params: params.value,
      });
      return isError || images ? text : fenced(text);
    },
  },
  {
    name: "new",
    summary: "Begin a new conversation",
    isOwnerOnly: false,
    waits: "never",
    run: (call) => {
      const refusal = notYours(call);
      if (refusal) return Promise.resolve(refusal);
      call.stop();
      call.reset();
      return Promise.resolve("This is a new conversation.");
    },
  },
  {
    name: "stop",
    summary: "Stop what I am doing here",
    isOwnerOnly: false,
    waits: "never",
    run: (call) => {
      const refusal = notYours(call);
      if (refusal) return Promise.resolve(refusal);
      return Promise.resolve(call.stop() > 0 ? "Stopped." : "There is nothing to stop.");
    },
  },
  {
    name: "last",
    summary: "Repeat my last answer",
    isOwnerOnly: false,
    waits: "never",
    run: (call) =>
      Promise.resolve(
        notYours(call, { inGroups: true }) ?? call.lastReply() ??
          "I have not said anything here yet.",
      ),
  },
  {
    name: "whoami",
    summary: "Who you are to me",
    isOwnerOnly: false,
    waits: "unless-busy",
    run: ({ origin, sessionKey }) => {
      const { kind, address, senderName, isOwner } = origin;
      const name = senderName ?? origin.callerName ?? kind;
      const who = address ? `${name} (${address.channel}, chat ${address.to})` : name;
      return Promise.resolve(
        `You are ${isOwner ? "" : "not "}an owner of this gateway: ${who}. ` +
          `Conversation: ${sessionKey}`,
      );
    },
  },
  {
    name: "approve",
    usage: `<id> ${DECISIONS.join("|")}`,
    summary: "Answer whether a program may run",
    isOwnerOnly: true,
    waits: "never",
    run: async (call) => {
      if (call.origin.mayApprove === false) return "Answering that takes operator.approvals.";
      const [id, decision] = call.rest.split(/\s+/);
      if (!id || !(DECISIONS as readonly string[]).includes(decision)) {
        return `Write it like this: /approve <id> ${DECISIONS.join(" | ")}`;
      }
      try {
        await call.gateway("exec.approval.resolve", { id, decision });
      } catch (error) {
        if (!(error instanceof RpcError) || error.code !== "APPROVAL_NOT_FOUND") throw error;
        return "Nobody waits for that answer any more.";
      }
      return decision === "deny" ? "It will not run." : "It may run.";
    },
  },
];

/**
 * Why a conversation is not the sender's to end or to look back at: in a group it is everybody's, and
 * nodes and programs may write into any.
 */
function notYours(
  { isGroup, origin }: CommandCall,
  { inGroups = false } = {},
): string | undefined {
  if (origin.isOwner) return undefined;
  if (origin.kind !== "channel") return "That is for the owner of this gateway.";
  return isGroup && !inGroups ? "In a group that is for the owner of this gateway." : undefined;
}

interface NodeLine {
  node: string;
  connected: boolean;
  platform?: string;
  commands: string[];
  lastConnectedAtMs?: number;
}

function describeNodes({ nodes }: { nodes: NodeLine[] }): string {
  if (nodes.length === 0) return "No node is paired. Add one on its machine: zero node run";
  return nodes.map(({ node, connected, platform, commands, lastConnectedAtMs }) => {
    const since = lastConnectedAtMs === undefined
      ? ""
      : `, last seen ${formatDuration(Date.now() - lastConnectedAtMs)} ago`;
    const state = connected ? `online, ${commands.length} commands` : `offline${since}`;
    return `• ${node}${platform ? ` (${platform})` : ""}: ${state}`;
  }).join("\n");
}

interface StatusFacts {
  version: string;
  uptimeMs: number;
  nodes: { connected: number; known: number };
  runs: number;
  model: string | null;
  sessions: number;
}

function describeStatus({ version, uptimeMs, nodes, runs, model, sessions }: StatusFacts): string {
  return [
    `ZERO ${version}, up ${formatDuration(uptimeMs)}`,
    `Model: ${model ?? "none (built-in agent)"}`,
    `Nodes: ${nodes.connected} of ${nodes.known} online`,
    `Conversations: ${sessions}, runs now: ${runs}`,
  ].join("\n");
}

function firstWord(text: string): [word: string, rest: string] {
  const [, word = "", rest = ""] = /^(\S+)\s*([\s\S]*)$/.exec(text.trim()) ?? [];
  return [word, rest.trim()];
}

/**
 * The words of a command line. Quotes group, and nothing is put in the place of anything: no shell
 * will see them.
 *
 * @returns undefined for a line without words, or one that only a shell could read
 */
function readArgv(line: string): string[] | undefined {
  const segments = splitLine(line);
  if (segments?.length !== 1 || segments[0].length === 0) return undefined;
  return segments[0].map(({ text }) => text);
}

function readJson(text: string): { value: unknown } | undefined {
  if (text === "") return { value: {} };
  try {
    return { value: JSON.parse(text) };
  } catch {
    return undefined;
  }
}
