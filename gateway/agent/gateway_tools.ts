// The tools of D21. Each calls methods of the gateway, as an operator would, and puts the answer into
// words that a model can use.

import { formatDuration } from "../../config/terminal.ts";
import {
  anything,
  explain,
  integer,
  list,
  nonEmpty,
  object,
  optional,
  problems,
  schemaOf,
  type Shape,
  text,
} from "../../rpc/shape.ts";
import { normalizeAgentId } from "../agents.ts";
import { findNamed } from "../choice.ts";
import type { CurrentConfig, Gateway } from "../gateway.ts";
import { type Message, type Sessions, withoutImages } from "../sessions.ts";
import type { RunPayload } from "../approved_run.ts";
import { runOnNode } from "./node_run.ts";
import type { Runs } from "./runs.ts";
import type { AgentTool, GatewayCall, ToolContext, ToolResult } from "./tools.ts";

export interface ToolOptions {
  call: GatewayCall;
  config: CurrentConfig;
  sessions: Sessions;
  /** Asked for when a tool runs. */
  runs(): Runs;
  /** Whether the gateway has a method. */
  knows(method: string): boolean;
}

/** How long a node may take unless told. */
const INVOKE_TIMEOUT_MS = 30_000;
const RUN_TIMEOUT_MS = 60_000;
const MAX_TIMEOUT_MS = 600_000;
/** A longer text without a space is taken for a file. */
const MAX_FILE_CHARS = 4_096;
/** How often a message may be passed on from session to session. */
const MAX_HOPS = 3;
/** What `node_invoke` is not for: running programs, and deciding which may run. */
const GUARDED = /^system\.(run|execApprovals)(\.|$)/;
const IMAGES: Record<string, string> = {
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  png: "image/png",
  webp: "image/webp",
  gif: "image/gif",
};

const timeoutMs = () => optional(integer({ min: 1_000, max: MAX_TIMEOUT_MS }));

export function gatewayTools(options: ToolOptions): AgentTool[] {
  const { call, config, sessions, runs, knows } = options;
  return [
    tool({
      name: "node_list",
      description: "Lists the machines (nodes) that can be reached, and whether each is online",
      params: object({}),
      run: async (_, context) => {
        const nodes = await nodesOf(call, context);
        return json({ nodes: nodes.map(summaryOf) });
      },
    }),
    tool({
      name: "node_describe",
      description: "Tells everything known about one node: platform, commands, permissions",
      params: object({ node: nonEmpty() }),
      run: async ({ node }, context) => {
        const { nodeId } = nodeNamed(await nodesOf(call, context), node);
        return json(await call("node.describe", { nodeId }, context));
      },
    }),
    tool({
      name: "node_invoke",
      description: "Has a node run one of the commands it offers, other than programs: for these " +
        "there is node_run",
      params: object({
        node: nonEmpty(),
        command: nonEmpty(),
        params: anything(),
        timeoutMs: timeoutMs(),
      }),
      run: async ({ node, command, params, timeoutMs = INVOKE_TIMEOUT_MS }, context) => {
        if (GUARDED.test(command)) {
          return failed(`node_invoke does not do ${command}. Programs run with node_run`);
        }
        const found = nodeNamed(await nodesOf(call, context), node);
        if (!found.connected) return offline(found);
        const { payload } = await call("node.invoke", {
          nodeId: found.nodeId,
          command,
          params: params ?? {},
          timeoutMs,
          idempotencyKey: crypto.randomUUID(),
        }, context) as { payload: unknown };
        return withImage(payload, found);
      },
    }),
    tool({
      name: "node_run",
      description: "Runs a program on a node and gives its output. argv is the program and its " +
        "arguments; no shell reads them. A person may be asked first, which takes a while",
      params: object({
        node: nonEmpty(),
        argv: list(text(), { min: 1, max: 1_000 }),
        cwd: optional(nonEmpty()),
        timeoutMs: timeoutMs(),
      }),
      run: async ({ node, argv, cwd, timeoutMs = RUN_TIMEOUT_MS }, context) => {
        const found = nodeNamed(await nodesOf(call, context), node);
        if (!found.connected) return offline(found);
        const payload = await runOnNode(
          {
            node: { nodeId: found.nodeId, name: nameOf(found), commands: found.commands },
            argv,
            cwd,
            timeoutMs,
          },
          { config: config.reading.config, session: sessions.get(context.sessionKey)?.entry },
          { call, context },
        );
        return ranOf(payload);
      },
    }),
    tool({
      name: "gateway_status",
      description: "Tells how this gateway is: version, nodes, conversations, what runs",
      params: object({}),
      run: async (_, context) => json(await statusOf(options, context)),
    }),
    tool({
      name: "message_send",
      description:
        "Sends a message to a person or group through a channel, such as telegram. The " +
        "answer to the current message needs no tool",
      params: object({ channel: nonEmpty(), to: nonEmpty(), message: nonEmpty() }),
      isThere: () => knows("send"),
      run: async (params, context) =>
        json(await call("send", { ...params, idempotencyKey: crypto.randomUUID() }, context)),
    }),
    tool({
      name: "session_list",
      description: "Lists conversations, newest first",
      params: object({
        search: optional(text()),
        limit: optional(integer({ min: 1, max: 100 })),
      }),
      run: async ({ search, limit = 20 }, context) =>
        json(await call("sessions.list", { search, limit, includeLastMessage: true }, context)),
    }),
    tool({
      name: "session_history",
      description: "Gives the last messages of another conversation",
      params: object({ session: nonEmpty(), limit: optional(integer({ min: 1, max: 100 })) }),
      run: async ({ session, limit = 20 }, context) => {
        const history = await call("chat.history", { sessionKey: session, limit }, context) as {
          messages: Message[];
        };
        return json({ ...history, messages: history.messages.map(withoutImages) });
      },
    }),
    tool({
      name: "session_send",
      description: "Gives another conversation a message to work on; its answer stays there",
      params: object({ session: nonEmpty(), message: nonEmpty() }),
      run: ({ session, message }, { origin, hops }) => {
        if (hops >= MAX_HOPS) {
          return Promise.resolve(failed("it has been passed on too often; answer here instead"));
        }
        const { runId, key } = runs().start({
          runId: crypto.randomUUID(),
          sessionKey: session,
          message,
          origin,
          hops: hops + 1,
        });
        return Promise.resolve(json({ accepted: true, runId, session: key }));
      },
    }),
  ];
}

/** Calls the methods of a gateway that is being put together. */
export function gatewayCall(gateway: () => Gateway): GatewayCall {
  return async (method, params, { runId, sessionKey, origin, ended }) => {
    const whole = gateway();
    const { senderName, callerName } = origin;
    const outcome = await whole.dispatcher.dispatch(method, params, {
      gateway: whole,
      caller: {
        role: "operator",
        scopes: ["operator.admin"],
        protocol: 4,
        connId: `run:${runId}`,
        client: {
          id: "agent",
          displayName: senderName ?? callerName,
          version: whole.version,
          platform: Deno.build.os,
          mode: "backend",
        },
        closed: ended,
        isSharedSecret: false,
        agentSession: sessionKey,
      },
    });
    if (!outcome.ok) throw outcome.error;
    return outcome.payload;
  };
}

interface Node {
  nodeId: string;
  displayName?: string;
  platform?: string;
  remoteIp?: string;
  commands: string[];
  connected: boolean;
  lastConnectedAtMs?: number;
}

/** A tool whose arguments are checked against the shape it declares. */
function tool<Params>({ name, description, params, isThere, run }: {
  name: string;
  description: string;
  params: Shape<Params>;
  isThere?(): boolean;
  run(params: Params, context: ToolContext): Promise<ToolResult>;
}): AgentTool {
  const check = (args: Record<string, unknown>) => {
    const wrong = problems(args, params, { max: 10 });
    return wrong.length > 0 ? `invalid ${name} arguments: ${explain(wrong)}` : undefined;
  };
  return {
    name,
    description,
    parameters: schemaOf(params),
    isOwnerOnly: true,
    ...(isThere && { isThere }),
    check,
    async run(args, context) {
      const wrong = check(args);
      return wrong === undefined ? await run(args as Params, context) : failed(wrong);
    },
  };
}

async function nodesOf(call: GatewayCall, context: ToolContext): Promise<Node[]> {
  const { nodes } = await call("node.list", {}, context) as { nodes: Node[] };
  return nodes;
}

function nodeNamed(nodes: readonly Node[], query: string): Node {
  return findNamed(nodes, query, "node", (node) => ({
    id: node.nodeId,
    name: node.displayName,
    address: node.remoteIp,
    shown: nameOf(node),
  }));
}

function nameOf({ nodeId, displayName }: Node): string {
  return displayName ?? nodeId.slice(0, 12);
}

function summaryOf(node: Node) {
  const { nodeId, platform, connected, commands, lastConnectedAtMs } = node;
  return { node: nameOf(node), nodeId, platform, connected, commands, lastConnectedAtMs };
}

/** A machine that sleeps is nothing to be alarmed about. */
function offline(node: Node): ToolResult {
  const { lastConnectedAtMs } = node;
  const since = lastConnectedAtMs === undefined
    ? ""
    : ` It was last seen ${formatDuration(Math.max(0, Date.now() - lastConnectedAtMs))} ago.`;
  return failed(`${nameOf(node)} is offline, so nothing was done there.${since}`);
}

/** What a node answered; a picture in it becomes one. */
function withImage(payload: unknown, node: Node): ToolResult {
  const { base64, format, ...rest } = (payload ?? {}) as Record<string, unknown>;
  const mimeType = typeof format === "string" ? IMAGES[format.toLowerCase()] : undefined;
  if (typeof base64 !== "string" || !mimeType) return json(payload ?? null);
  return {
    text: `An image from ${nameOf(node)}: ${JSON.stringify({ format, ...rest })}`,
    images: [{ mimeType, content: base64 }],
  };
}

function ranOf({ exitCode, timedOut, success, stdout = "", stderr = "", error }: RunPayload) {
  const isFine = exitCode === 0 || (exitCode === undefined && success === true);
  const end = timedOut ? "it ran out of time" : `exit code ${exitCode ?? "unknown"}`;
  const parts = [
    ...isFine ? [] : [`(${end})`],
    ...error ? [error] : [],
    ...stdout ? [stdout.trimEnd()] : [],
    ...stderr ? [`[stderr]\n${stderr.trimEnd()}`] : [],
  ];
  return { text: parts.join("\n") || "(no output)" };
}

async function statusOf({ call, runs, sessions, config }: ToolOptions, context: ToolContext) {
  const nodes = await nodesOf(call, context);
  const status = await call("status", {}, context) as {
    runtimeVersion?: string;
    sessions: { count: number };
  };
  const { list = [], defaults } = config.reading.config.agents ?? {};
  const model = sessions.get(context.sessionKey)?.entry.model ??
    list.find(({ id }) => normalizeAgentId(id) === context.agentId)?.model ?? defaults?.model;
  return {
    version: status.runtimeVersion ?? "unknown",
    uptimeMs: Math.round(performance.now()),
    nodes: { connected: nodes.filter(({ connected }) => connected).length, known: nodes.length },
    runs: runs().size,
    model: model ?? null,
    sessions: status.sessions.count,
  };
}

function json(value: unknown): ToolResult {
  return { text: JSON.stringify(value, (_, member) => isFile(member) ? leftOut(member) : member) };
}

/** A video or so, as base64: no model can read it. */
function isFile(member: unknown): member is string {
  return typeof member === "string" && member.length > MAX_FILE_CHARS &&
    /^[A-Za-z0-9+/_-]+$/.test(member.slice(0, MAX_FILE_CHARS));
}

function leftOut({ length }: string): string {
  return `[${Math.round(length * 3 / 4)} bytes of base64 left out]`;
}

function failed(text: string): ToolResult {
  return { text, isError: true };
}
