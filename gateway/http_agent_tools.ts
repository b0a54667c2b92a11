// `POST /tools/invoke` (§13): one tool of the agent, called by a program with the shared secret. There
// is no model and no conversation; what the tool may do is what its caller may do.

import type { Context, Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { RpcError } from "../rpc/error.ts";
import {
  anything,
  boolean,
  explain,
  type Infer,
  mapOf,
  nonEmpty,
  object,
  optional,
  problems,
  text,
} from "../rpc/shape.ts";
import type { RunOrigin } from "./agent/runs.ts";
import type { AgentTool, ToolContext, ToolResult } from "./agent/tools.ts";
import { chatFor } from "./delivery.ts";
import type { Gateway } from "./gateway.ts";
import { authorize, callerNameOf, type HttpEnv, notAllowed } from "./http_auth.ts";

const PATH = "/tools/invoke";
const MAX_BODY_BYTES = 2_097_152;
const MAX_TOOL_MS = 600_000;

const Invocation = object({
  tool: nonEmpty(),
  /** For tools whose arguments have one. */
  action: optional(text()),
  args: optional(mapOf(anything())),
  sessionKey: optional(text()),
  /** Only checks whether it could be called like that. */
  dryRun: optional(boolean()),
});
type Invocation = Infer<typeof Invocation>;

/** Whoever is let in has every scope, and so may do what an owner may. */
function originOf(context: Context<HttpEnv>): RunOrigin {
  return { kind: "http", isOwner: true, callerName: callerNameOf(context) };
}

export function serveTools(app: Hono<HttpEnv>, gateway: Gateway) {
  app.post(
    PATH,
    async (context, next) => await authorize(context, gateway) ?? await next(),
    bodyLimit({
      maxSize: MAX_BODY_BYTES,
      onError: (context) => failed(context, 413, "too_large", `Body over ${MAX_BODY_BYTES} bytes`),
    }),
    (context) => invoke(context, gateway),
  );
  app.all(PATH, (context) => notAllowed(context, "POST"));
}

async function invoke(context: Context<HttpEnv>, gateway: Gateway): Promise<Response> {
  const read = readInvocation(await context.req.text());
  if (typeof read === "string") return failed(context, 400, "invalid_request", read);
  const { tool: name, dryRun } = read;
  const tool = gateway.tools.find((one) => one.name === name);
  if (!tool || tool.isThere?.() === false) {
    return failed(context, 404, "not_found", `Tool not available: ${name}`);
  }
  const args = argsOf(read, tool);
  const wrong = tool.check?.(args);
  if (wrong !== undefined) return failed(context, 400, "tool_error", wrong);
  if (dryRun) return context.json({ ok: true, result: { dryRun: true, tool: name, args } });
  const stopper = new AbortController();
  const ended = Promise.withResolvers<void>();
  const { outgoing } = context.env;
  const leave = () => stopper.abort(new Error("the caller went away"));
  outgoing.once("close", leave);
  const timer = setTimeout(
    () => stopper.abort(new RpcError("UNAVAILABLE", `${name} took too long`)),
    MAX_TOOL_MS,
  );
  try {
    const toolContext = contextOf(read, context, gateway, stopper.signal, ended.promise);
    const result = await orAborted(tool.run(args, toolContext), stopper.signal);
    if (result.isError) return failed(context, 400, "tool_error", result.text);
    return context.json({ ok: true, result: shown(result) });
  } catch (error) {
    if (error instanceof RpcError) return failed(context, 400, "tool_error", error.message);
    if (stopper.signal.aborted) return failed(context, 400, "tool_error", "aborted");
    const id = crypto.randomUUID();
    const trace = error instanceof Error ? error.stack ?? error.message : String(error);
    gateway.log.error("a tool failed", { id, tool: name, error: trace });
    return failed(context, 500, "tool_error", `${name} failed inside the gateway (id ${id})`);
  } finally {
    clearTimeout(timer);
    outgoing.off("close", leave);
    ended.resolve();
  }
}

/** @returns what is wrong with it, as text */
function readInvocation(body: string): Invocation | string {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch {
    return "The body is no JSON";
  }
  const wrong = problems(value, Invocation, { max: 5 });
  return wrong.length > 0 ? explain(wrong) : value as Invocation;
}

function argsOf({ action, args = {} }: Invocation, { parameters }: AgentTool) {
  const { properties = {} } = parameters as { properties?: Record<string, unknown> };
  const takesAction = action !== undefined && Object.hasOwn(properties, "action");
  return takesAction && args.action === undefined ? { ...args, action } : args;
}

/** @throws {RpcError} a session key that cannot be one */
function contextOf(
  { sessionKey = "main" }: Invocation,
  context: Context<HttpEnv>,
  { sessions, outbox }: Gateway,
  signal: AbortSignal,
  ended: Promise<void>,
): ToolContext {
  const { req } = context;
  const { key, agentId } = sessions.canonicalKey(sessionKey);
  const runId = `tool:${crypto.randomUUID()}`;
  const channel = req.header("x-zero-message-channel")?.trim().toLowerCase();
  const accountId = req.header("x-zero-account-id")?.trim();
  const last = channel ? chatFor({}, key, sessions) : undefined;
  const isThat = last?.channel === channel && (!accountId || last?.accountId === accountId);
  const deliverTo = isThat ? last : undefined;
  return {
    runId,
    sessionKey: key,
    agentId,
    origin: originOf(context),
    deliverTo,
    hops: 0,
    signal,
    ended,
    update() {},
    say(message, name) {
      if (deliverTo) outbox.enqueue(deliverTo, message, `${runId}:${name}`);
    },
  };
}

function shown({ text: words, images = [] }: ToolResult) {
  const details = parsed(words);
  return {
    content: [
      { type: "text", text: words },
      ...images.map(({ mimeType, content }) => ({ type: "image", mimeType, data: content })),
    ],
    ...(details !== undefined && { details }),
  };
}

/** Tools answer models in JSON; programs need not parse it a second time. */
function parsed(words: string): unknown {
  try {
    return JSON.parse(words);
  } catch {
    return undefined; // words for people
  }
}

function failed(
  context: Context<HttpEnv>,
  status: 400 | 404 | 413 | 500,
  type: string,
  message: string,
): Response {
  return context.json({ ok: false, error: { type, message } }, status);
}

/** A tool that hangs is left behind. */
function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}
