// Hooks (§13): other programs tell the agent something over HTTP. They prove a token of their own,
// which opens nothing else; unless the configuration trusts them, what they start has no tools and
// stays in sessions of hooks.

import type { Context, Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import type { Config } from "../config/schema.ts";
import { RpcError } from "../rpc/error.ts";
import {
  boolean,
  explain,
  type Infer,
  integer,
  nonEmpty,
  oneOf,
  open,
  optional,
  problems,
  type Shape,
  text,
} from "../rpc/shape.ts";
import { isSecret } from "./admission.ts";
import { ACK_MAX_CHARS } from "./agent/quiet.ts";
import { sessionDefaults } from "./agents.ts";
import { chatFor, isKnownChannel } from "./delivery.ts";
import type { Gateway } from "./gateway.ts";
import { bearerOf, checkSecret, type HttpEnv, noteRefusal } from "./http_auth.ts";

type HooksConfig = NonNullable<Config["hooks"]>;
type Mapping = NonNullable<HooksConfig["mappings"]>[number];

const DEFAULT_PATH = "/hooks";
const DEFAULT_MAX_BODY_BYTES = 262_144;
/** Sessions that hooks may name unless they are trusted. */
const HOOK_SESSION = /^(agent:[^:]+:)?hook:./i;
const FIX_URL = "Send it as Authorization: Bearer, or in the header x-zero-token";

const wakeMode = optional(oneOf(["now", "next-heartbeat"]));

const WakeCall = open({ text: optional(text()), mode: wakeMode });

const AgentCall = open({
  message: optional(text()),
  name: optional(nonEmpty()),
  wakeMode,
  sessionKey: optional(nonEmpty()),
  deliver: optional(boolean()),
  channel: optional(nonEmpty()),
  to: optional(nonEmpty()),
  model: optional(nonEmpty()),
  thinking: optional(nonEmpty()),
  timeoutSeconds: optional(integer({ min: 0, max: 86_400 })),
});
type AgentCall = Infer<typeof AgentCall>;

/** Answered as it is; the message is for the caller. */
class BadCall extends Error {}

/** Reads the configuration at every request, so that a change of it counts at once. */
export function serveHooks(app: Hono<HttpEnv>, gateway: Gateway) {
  app.use(async (context, next) => {
    const { hooks } = gateway.config.reading.config;
    const name = hooks?.enabled ? nameIn(context.req.path, hooks) : undefined;
    if (hooks?.token === undefined || name === undefined) return await next();
    const refusal = await admit(context, gateway, hooks.token);
    if (refusal) return refusal;
    if (context.req.method !== "POST") {
      return context.text("Method Not Allowed", 405, { Allow: "POST" });
    }
    const maxSize = hooks.maxBodyBytes ?? DEFAULT_MAX_BODY_BYTES;
    const limit = bodyLimit({
      maxSize,
      onError: () => context.json({ ok: false, error: `body over ${maxSize} bytes` }, 413),
    });
    let answer: Response | undefined;
    const refused = await limit(context, async () => {
      answer = await serve(context, gateway, name, hooks);
    });
    return refused ?? answer;
  });
}

/** What follows the path of the hooks; undefined for what is none of them. */
function nameIn(path: string, { path: configured = DEFAULT_PATH }: HooksConfig) {
  const base = `/${configured.trim().replace(/^\/+|\/+$/g, "")}`;
  if (path === base) return "";
  return path.startsWith(`${base}/`) ? path.slice(base.length + 1).replace(/\/$/, "") : undefined;
}

async function admit(
  context: Context<HttpEnv>,
  gateway: Gateway,
  token: string,
): Promise<Response | undefined> {
  if (context.req.query("token") !== undefined) {
    noteRefusal(context, gateway, "SECRET_IN_URL");
    const error = "Secrets do not belong in URLs";
    return context.json({ ok: false, error, fix: FIX_URL }, 403);
  }
  const given = bearerOf(context) || context.req.header("x-zero-token") || "";
  const turned = await checkSecret(context, gateway, () => {
    if (given === "") return "missing";
    return isSecret(given, token) ? "ok" : "mismatch";
  });
  if (!turned) return undefined;
  if (turned.status === 401) return context.text("Unauthorized", 401);
  return context.text("Too Many Requests", 429, {
    "Retry-After": String(turned.retryAfterSeconds),
  });
}

async function serve(
  context: Context<HttpEnv>,
  gateway: Gateway,
  name: string,
  hooks: HooksConfig,
): Promise<Response> {
  const mapping = hooks.mappings?.find(({ path }) => path === name);
  if (name !== "wake" && name !== "agent" && !mapping) return context.text("Not Found", 404);
  try {
    const body = readBody(await context.req.text());
    if (name === "wake") return wake(context, gateway, checked(body, WakeCall));
    const call = mapping ? mapped(mapping, body) : checked(body, AgentCall);
    if (mapping?.action !== "wake") {
      if (mapping && !call.message?.trim()) return context.body(null, 204);
      return runAgent(context, gateway, call, hooks);
    }
    if (!call.message?.trim()) return context.body(null, 204);
    const words = `${call.name}: ${call.message.trim()}`;
    return wake(context, gateway, { text: words, mode: call.wakeMode });
  } catch (error) {
    if (error instanceof BadCall) return context.json({ ok: false, error: error.message }, 400);
    if (error instanceof RpcError) {
      const status = error.code === "INVALID_REQUEST" ? 400 : 503;
      return context.json({ ok: false, error: error.message }, status);
    }
    const id = crypto.randomUUID();
    const trace = error instanceof Error ? error.stack ?? error.message : String(error);
    gateway.log.error("a hook failed", { id, hook: name, error: trace });
    const text = mapping ? "hook mapping failed" : "hook failed";
    return context.json({ ok: false, error: text, id }, 500);
  }
}

/** @throws {BadCall} */
function readBody(body: string): Record<string, unknown> {
  if (body.trim() === "") return {};
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch {
    throw new BadCall("the body is no JSON");
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    return value as Record<string, unknown>;
  }
  throw new BadCall("the body must be a JSON object");
}

/** @throws {BadCall} */
function checked<T>(body: unknown, shape: Shape<T>): T {
  const wrong = problems(body, shape, { max: 5 });
  if (wrong.length > 0) throw new BadCall(explain(wrong));
  return body as T;
}

/** What a request says in the words of a mapping. */
function mapped(mapping: Mapping, body: unknown): AgentCall {
  const { path, action: _, message, name = path, sessionKey, ...rest } = mapping;
  return {
    ...rest,
    name,
    message: filled(message, body),
    ...(sessionKey !== undefined && { sessionKey: filled(sessionKey, body) }),
  };
}

/**
 * Puts fields of the request in the place of `{{a.b.0}}`, and all of it in the place of `{{.}}`; what is
 * not there leaves nothing.
 */
export function filled(template: string, body: unknown): string {
  return template.replace(/\{\{\s*([^{}]*?)\s*\}\}/g, (_, path: string) => {
    const value = path === "." ? body : fieldOf(body, path);
    if (value === undefined || value === null) return "";
    return typeof value === "string" ? value : JSON.stringify(value);
  });
}

function fieldOf(body: unknown, path: string): unknown {
  let value = body;
  for (const key of path.split(".")) {
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, key)) return undefined;
    value = (value as Record<string, unknown>)[key];
  }
  return value;
}

function wake(
  context: Context<HttpEnv>,
  { config, systemEvents, heartbeats }: Gateway,
  { text: words = "", mode = "now" }: Infer<typeof WakeCall>,
): Response {
  if (words.trim() === "") throw new BadCall("text required");
  systemEvents.enqueue(sessionDefaults(config.reading.config).mainSessionKey, words.trim());
  if (mode === "now") heartbeats.wake();
  return context.json({ ok: true, mode });
}

/** @throws {BadCall | RpcError} */
function runAgent(
  context: Context<HttpEnv>,
  gateway: Gateway,
  call: AgentCall,
  { trusted = false }: HooksConfig,
): Response {
  const { config, sessions, runs } = gateway;
  const { name = "Hook", deliver = true, channel = "last", to, timeoutSeconds } = call;
  if (!call.message?.trim()) throw new BadCall("message required");
  if (!isKnownChannel(channel, config.reading.config)) {
    throw new BadCall(`unknown channel: ${channel}`);
  }
  const sessionKey = call.sessionKey ?? `hook:${crypto.randomUUID()}`;
  if (!trusted && !HOOK_SESSION.test(sessionKey)) {
    throw new BadCall("sessionKey must begin with hook: unless hooks.trusted is set");
  }
  const chat = deliver ? chatFor({ channel, to }, sessions.mainKey(), sessions) : undefined;
  const run = runs.start({
    runId: `hook:${crypto.randomUUID()}`,
    sessionKey,
    message: call.message.trim(),
    origin: {
      kind: "hook",
      isOwner: trusted,
      mayApprove: false,
      senderName: name,
      callerName: `hook ${name}`,
    },
    model: call.model,
    thinking: call.thinking,
    timeoutMs: timeoutSeconds ? timeoutSeconds * 1_000 : undefined,
    deliverTo: chat,
    quiet: { ackMaxChars: ACK_MAX_CHARS },
    report: {
      sessionKey: sessions.mainKey(),
      title: name,
      isUrgent: call.wakeMode !== "next-heartbeat",
    },
  });
  return context.json({ ok: true, runId: run.runId }, 202);
}
