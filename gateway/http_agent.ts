// `POST /v1/chat/completions` (§13): the agent behind the API that programs written for OpenAI speak. A
// request is one run; what a program sends along as the conversation so far is its beginning.

import type { Context, Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { RpcError } from "../rpc/error.ts";
import {
  anything,
  boolean,
  explain,
  type Infer,
  list,
  nullable,
  open,
  optional,
  problems,
  text,
} from "../rpc/shape.ts";
import { readImages } from "./agent/attachments.ts";
import type { Run, RunOutcome } from "./agent/runs.ts";
import { agentsOf, normalizeAgentId } from "./agents.ts";
import type { Gateway } from "./gateway.ts";
import { authorize, callerNameOf, type HttpEnv, notAllowed } from "./http_auth.ts";
import type { Message, MessagePart } from "./sessions.ts";

const PATH = "/v1/chat/completions";
const MAX_BODY_BYTES = 1_048_576;
/** A proxy in between must not take a tool that works for a connection that died. */
const KEEP_ALIVE_MS = 15_000;

const ChatRequest = open({
  model: optional(nullable(text())),
  messages: list(open({ role: text(), content: anything() }), { max: 10_000 }),
  stream: optional(nullable(boolean())),
  stream_options: optional(nullable(open({ include_usage: optional(boolean()) }))),
  user: optional(nullable(text())),
});
type ChatRequest = Infer<typeof ChatRequest>;

/** What the messages of a request are to a run. */
interface Prompt {
  /** The conversation before the newest message. */
  history: Message[];
  message: string;
  images: { mimeType: string; content: string }[];
  system?: string;
}

type Usage = { inputTokens: number; outputTokens: number };

export function serveChatCompletions(app: Hono<HttpEnv>, gateway: Gateway) {
  app.post(
    PATH,
    async (context, next) => await authorize(context, gateway) ?? await next(),
    bodyLimit({
      maxSize: MAX_BODY_BYTES,
      onError: (context) =>
        context.json(
          { error: { message: `Body over ${MAX_BODY_BYTES} bytes`, type: "too_large" } },
          413,
        ),
    }),
    (context) => complete(context, gateway),
  );
  app.all(PATH, (context) => notAllowed(context, "POST"));
}

async function complete(context: Context<HttpEnv>, gateway: Gateway): Promise<Response> {
  let request: ChatRequest;
  let run: Run;
  const stream = new CompletionStream(gateway);
  try {
    request = readRequest(await context.req.text());
    run = begin(request, context, gateway, stream);
  } catch (error) {
    stream.end();
    if (!(error instanceof RpcError)) throw error;
    const { code, message, retryAfterMs } = error;
    if (code === "INVALID_REQUEST") return invalid(context, message);
    const wait = Math.ceil((retryAfterMs ?? 1_000) / 1_000);
    const answer = { error: { message, type: "unavailable" } };
    return context.json(answer, 503, { "Retry-After": String(wait) });
  }
  const { outgoing } = context.env;
  // Whoever went away waits for nothing any more.
  outgoing.once("close", () => {
    if (!outgoing.writableFinished) gateway.runs.abort(run, "rpc");
  });
  const facts = {
    id: `chatcmpl-${run.runId}`,
    created: Math.floor(Date.now() / 1_000),
    model: request.model || "zero",
  };
  if (request.stream) {
    const withUsage = request.stream_options?.include_usage === true;
    return stream.respond(facts, run, { withUsage });
  }
  const outcome = await run.done;
  stream.end();
  if (outcome.status !== "ok") return context.json(failureOf(outcome), 500);
  return context.json({
    ...facts,
    object: "chat.completion",
    choices: [{
      index: 0,
      message: { role: "assistant", content: outcome.texts.join("\n\n") },
      finish_reason: finishOf(outcome),
    }],
    usage: usageOf(outcome.usage),
  });
}

/** @throws {RpcError} */
function readRequest(body: string): ChatRequest {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch {
    throw new RpcError("INVALID_REQUEST", "The body is no JSON");
  }
  const wrong = problems(value, ChatRequest, { max: 5 });
  if (wrong.length > 0) throw new RpcError("INVALID_REQUEST", explain(wrong));
  return value as ChatRequest;
}

/** @throws {RpcError} */
function begin(
  request: ChatRequest,
  context: Context<HttpEnv>,
  gateway: Gateway,
  stream: CompletionStream,
): Run {
  const { sessions, runs, store } = gateway;
  const prompt = promptOf(request);
  const sessionKey = sessionOf(request, context, gateway);
  const { key } = sessions.canonicalKey(sessionKey);
  const known = sessions.get(key)?.entry;
  if (known?.sendPolicy === "deny") {
    throw new RpcError("INVALID_REQUEST", "send blocked by session policy");
  }
  const runId = crypto.randomUUID();
  stream.listen(key, runId);
  return store.transaction(() => {
    // A session that goes on has its own memory of what was said.
    if (!known) { for (const message of prompt.history) sessions.append(key, message); }
    return runs.start({
      runId,
      sessionKey,
      message: prompt.message,
      images: prompt.images,
      extraSystemPrompt: prompt.system,
      origin: { kind: "http", isOwner: true, callerName: callerNameOf(context) },
    });
  });
}

/**
 * What stands after the last answer is new, and what stands before it the conversation so far.
 *
 * @throws {RpcError} nobody says anything
 */
function promptOf({ messages }: ChatRequest): Prompt {
  const isSystem = (role: string) => role === "system" || role === "developer";
  const system = messages.filter(({ role }) => isSystem(role)).map(({ content }) => textIn(content))
    .filter(Boolean).join("\n\n");
  const said = messages.filter(({ role }) => role === "user" || role === "assistant");
  const from = said.findLastIndex(({ role }) => role === "assistant") + 1;
  const fresh = said.slice(from);
  const images = fresh.flatMap(({ content }) => imagesIn(content));
  const message = fresh.map(({ content }) => textIn(content)).filter(Boolean).join("\n\n");
  if (message === "" && images.length === 0) {
    throw new RpcError("INVALID_REQUEST", "Missing user message in `messages`.");
  }
  const history = said.slice(0, from).flatMap(({ role, content }): Message[] => {
    const parts: MessagePart[] = [
      ...textParts(textIn(content)),
      ...imagesIn(content).map(({ mimeType, content: data }) => ({
        type: "image" as const,
        mimeType,
        data,
      })),
    ];
    if (parts.length === 0) return [];
    return [{ role: role as "user" | "assistant", content: parts, timestamp: Date.now() }];
  });
  return { history, message, images, ...(system && { system }) };
}

function textParts(words: string): MessagePart[] {
  return words === "" ? [] : [{ type: "text", text: words }];
}

function textIn(content: unknown): string {
  if (typeof content === "string") return content;
  return partsIn(content).flatMap(({ type, text }) =>
    (type === "text" || type === "input_text") && typeof text === "string" ? [text] : []
  ).join("\n");
}

/** @throws {RpcError} an image that is not in the request itself */
function imagesIn(content: unknown): { mimeType: string; content: string }[] {
  return readImages(
    partsIn(content).flatMap(({ type, image_url }) => {
      if (type !== "image_url") return [];
      const url = typeof image_url === "string"
        ? image_url
        : (image_url as { url?: unknown } | undefined)?.url;
      if (typeof url === "string" && url.startsWith("data:")) return [{ content: url }];
      throw new RpcError("INVALID_REQUEST", "image_url must be a data: URL");
    }),
  );
}

function partsIn(content: unknown): Record<string, unknown>[] {
  return Array.isArray(content)
    ? content.filter((part) => typeof part === "object" && part !== null)
    : [];
}

/**
 * The session that a header names, that of the user, or one of its own.
 *
 * @throws {RpcError} an agent that is not there
 */
function sessionOf(
  { model, user }: ChatRequest,
  { req }: Context<HttpEnv>,
  { config }: Gateway,
): string {
  const agents = agentsOf(config.reading.config);
  const named = req.header("x-zero-agent-id")?.trim() || req.header("x-zero-agent")?.trim() ||
    agentIn(model ?? "");
  const agentId = named ? normalizeAgentId(named) : agents[0].agentId;
  if (!agents.some((one) => one.agentId === agentId)) {
    throw new RpcError("INVALID_REQUEST", `unknown agent id "${named}"`);
  }
  const key = req.header("x-zero-session-key")?.trim();
  if (key) return key.startsWith("agent:") || key === "global" ? key : `agent:${agentId}:${key}`;
  if (user?.trim()) return `agent:${agentId}:openai-user:${user.trim()}`;
  return `agent:${agentId}:openai:${crypto.randomUUID()}`;
}

/** The agent in the name of a model; any other name means the default agent. */
function agentIn(model: string): string | undefined {
  return /^(?:zero[:/]|agent:)(.+)$/.exec(model.trim())?.[1];
}

/** What a run says, as it says it. */
class CompletionStream {
  readonly #gateway: Gateway;
  readonly #closed = Promise.withResolvers<void>();
  #hasSpoken = false;
  #waiting: string[] = [];
  #send: (delta: string) => void = (delta) => this.#waiting.push(delta);

  constructor(gateway: Gateway) {
    this.#gateway = gateway;
  }

  /** @param key canonical */
  listen(key: string, runId: string) {
    this.#gateway.audience.subscribe(key, {
      id: `http:${runId}`,
      protocol: 4,
      bufferedBytes: 0,
      closed: this.#closed.promise,
      sendEvent: (name, payload) => {
        const event = payload as { runId: string; stream?: string; data?: Said };
        const isMine = name === "agent" && event.runId === runId && event.stream === "assistant";
        if (isMine && event.data) this.#hear(event.data);
        return true;
      },
    });
  }

  end() {
    this.#closed.resolve();
  }

  respond(
    facts: { id: string; created: number; model: string },
    { done }: Run,
    { withUsage }: { withUsage: boolean },
  ): Response {
    const encoder = new TextEncoder();
    let timer: ReturnType<typeof setInterval>;
    let isOpen = true;
    const stop = () => {
      isOpen = false;
      clearInterval(timer);
      this.end();
    };
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => {
        const write = (line: string) => {
          if (isOpen) controller.enqueue(encoder.encode(`${line}\n\n`));
        };
        const chunk = (choices: unknown[], usage?: unknown) =>
          write(`data: ${
            JSON.stringify({
              ...facts,
              object: "chat.completion.chunk",
              choices,
              ...(usage !== undefined && { usage }),
            })
          }`);
        const choice = (delta: unknown, finish: string | null = null) =>
          chunk([{ index: 0, delta, finish_reason: finish }]);
        timer = setInterval(() => write(": keep-alive"), KEEP_ALIVE_MS);
        choice({ role: "assistant", content: "" });
        for (const delta of this.#waiting) choice({ content: delta });
        this.#send = (delta) => choice({ content: delta });
        done.then((outcome) => {
          if (outcome.status !== "ok") write(`data: ${JSON.stringify(failureOf(outcome))}`);
          else choice({}, finishOf(outcome));
          if (withUsage) chunk([], usageOf(outcome.usage));
          write("data: [DONE]");
          if (isOpen) controller.close();
          stop();
        });
      },
      cancel: stop,
    });
    const headers = {
      "Content-Type": "text/event-stream; charset=utf-8",
      "Cache-Control": "no-cache",
      "X-Accel-Buffering": "no",
    };
    return new Response(body, { headers });
  }

  #hear({ text: all, delta }: Said) {
    // A message that begins after another one is told apart from it.
    const isNext = all === delta && this.#hasSpoken;
    this.#hasSpoken = true;
    this.#send(isNext ? `\n\n${delta}` : delta);
  }
}

interface Said {
  text: string;
  delta: string;
}

function finishOf({ stopReason }: RunOutcome): string {
  return stopReason === "length" ? "length" : "stop";
}

function usageOf({ inputTokens, outputTokens }: Usage = { inputTokens: 0, outputTokens: 0 }) {
  return {
    prompt_tokens: inputTokens,
    completion_tokens: outputTokens,
    total_tokens: inputTokens + outputTokens,
  };
}

function failureOf({ status, error, stopReason }: RunOutcome) {
  const message = status === "aborted" ? `aborted (${stopReason})` : error ?? "the run failed";
  return { error: { message, type: "api_error" } };
}

function invalid(context: Context<HttpEnv>, message: string): Response {
  return context.json({ error: { message, type: "invalid_request_error" } }, 400);
}
