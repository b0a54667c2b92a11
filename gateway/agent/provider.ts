// A model behind an API, through the `ai` library: one turn in, its text and tool calls out as they
// come. The library costs a third of a second to load, so it is loaded with the first turn.

import { pause } from "../../config/pause.ts";
import { type AgentModel, ModelError, type Turn, type TurnPart } from "./model.ts";
import { providerMessages } from "./provider_messages.ts";

export type ProviderApi = "openai-completions" | "anthropic-messages";

export interface Provider {
  name: string;
  api: ProviderApi;
  /** As far as the version, such as `https://api.example/v1`. */
  baseUrl: string;
  /** Undefined: none is sent. */
  key(): Promise<string | undefined>;
  /** It was refused: the next one is read anew. */
  forgetKey(): void;
  /** Silence after which an answer is given up. */
  idleTimeoutMs: number;
}

export interface ModelTraits {
  id: string;
  contextTokens: number;
  maxTokens?: number;
  isReasoning?: boolean;
}

export interface ApiModelOptions {
  /** Waits before another attempt; tests do not. */
  pause?(ms: number, signal: AbortSignal): Promise<void>;
}

/** Attempts at a turn of which nothing has been heard yet. */
const ATTEMPTS = 3;
const FIRST_PAUSE_MS = 500;
/** A provider that asks for more is left to the next model of the list. */
const MAX_PAUSE_MS = 20_000;
/** What is kept of a provider's own words. */
const MAX_REASON_CHARS = 300;
/** Every model of Anthropic can write as much. */
const ANTHROPIC_MAX_TOKENS = 4_096;
/** Thinking budgets of Anthropic models, in tokens. */
const BUDGETS: Record<string, number> = { minimal: 1024, low: 2048, medium: 8192, high: 16_384 };

export class ApiModel implements AgentModel {
  readonly id: string;
  readonly contextTokens: number;
  readonly #provider: Provider;
  readonly #traits: ModelTraits;
  readonly #pause: NonNullable<ApiModelOptions["pause"]>;

  constructor(
    provider: Provider,
    traits: ModelTraits,
    { pause: wait = pause }: ApiModelOptions = {},
  ) {
    this.id = `${provider.name}/${traits.id}`;
    this.contextTokens = traits.contextTokens;
    this.#provider = provider;
    this.#traits = traits;
    this.#pause = wait;
  }

  async *respond(turn: Turn): AsyncIterable<TurnPart> {
    for (let attempt = 1;; attempt++) {
      let isHeard = false;
      try {
        for await (const part of this.#attempt(turn)) {
          isHeard = true;
          yield part;
        }
        return;
      } catch (error) {
        turn.signal.throwIfAborted();
        const failure = await asModelError(error, this.#provider);
        if (failure.kind === "auth") this.#provider.forgetKey();
        const waitMs = failure.retryAfterMs ?? FIRST_PAUSE_MS * 2 ** (attempt - 1);
        const isWorthIt = failure.isTransient && !isHeard && waitMs <= MAX_PAUSE_MS;
        if (!isWorthIt || attempt === ATTEMPTS) throw failure;
        await this.#pause(waitMs, turn.signal);
        turn.signal.throwIfAborted();
      }
    }
  }

  async *#attempt(turn: Turn): AsyncIterable<TurnPart> {
    const { streamText, jsonSchema, tool } = await loadLibrary();
    const idle = new AbortController();
    const { idleTimeoutMs, name } = this.#provider;
    const silent = new ModelError(
      "network",
      `${name} said nothing for ${Math.round(idleTimeoutMs / 1000)} s`,
      true,
      `See how ${name} is doing, or give it longer: models.providers.${name}.idleTimeoutSeconds`,
    );
    let timer = setTimeout(() => idle.abort(silent), idleTimeoutMs);
    try {
      const result = streamText({
        model: await this.#languageModel(),
        system: turn.system,
        messages: providerMessages(turn.messages, this.contextTokens),
        tools: Object.fromEntries(
          turn.tools.map(({ name, description, parameters }) => [
            name,
            tool({ description, inputSchema: jsonSchema(parameters) }),
          ]),
        ),
        maxOutputTokens: this.#traits.maxTokens ?? this.#defaultMaxTokens(),
        providerOptions: this.#thinkingOptions(turn),
        abortSignal: AbortSignal.any([turn.signal, idle.signal]),
        maxRetries: 0, // the attempts are counted here
        onError() {}, // told by the stream as well
      });
      for await (const part of result.fullStream) {
        clearTimeout(timer);
        timer = setTimeout(() => idle.abort(silent), idleTimeoutMs);
        if (part.type === "error") throw part.error;
        if (part.type === "abort") break;
        yield* translated(part, name);
      }
      turn.signal.throwIfAborted();
      if (idle.signal.aborted) throw silent;
    } catch (error) {
      turn.signal.throwIfAborted();
      throw idle.signal.aborted ? silent : error;
    } finally {
      clearTimeout(timer);
    }
  }

  async #languageModel() {
    const { name, api, baseUrl, key } = this.#provider;
    const apiKey = await key();
    if (api === "anthropic-messages") {
      const { createAnthropic } = await import("@ai-sdk/anthropic");
      // Without a key the library would look into the environment for one that is not meant.
      return createAnthropic({ baseURL: baseUrl, apiKey: apiKey ?? "none", name })(this.#traits.id);
    }
    const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
    return createOpenAICompatible({ name, baseURL: baseUrl, apiKey, includeUsage: true })(
      this.#traits.id,
    );
  }

  /** Anthropic wants to be told; others have a default of their own. */
  #defaultMaxTokens(): number | undefined {
    return this.#provider.api === "anthropic-messages" ? ANTHROPIC_MAX_TOKENS : undefined;
  }

  #thinkingOptions({ thinking, messages }: Turn) {
    const { isReasoning, maxTokens = ANTHROPIC_MAX_TOKENS } = this.#traits;
    if (!isReasoning || !thinking || thinking === "off") return undefined;
    if (this.#provider.api === "openai-completions") {
      return { [this.#provider.name]: { reasoningEffort: thinking } };
    }
    // It wants the thoughts that led to its tool calls back, and they are not kept.
    if (messages.at(-1)?.role === "toolResult") return undefined;
    const budgetTokens = Math.min(BUDGETS[thinking] ?? BUDGETS.high, maxTokens - 1);
    return budgetTokens < BUDGETS.minimal
      ? undefined
      : { anthropic: { thinking: { type: "enabled" as const, budgetTokens } } };
  }
}

async function loadLibrary() {
  // Its remarks would go to the terminal, past the log.
  Object.assign(globalThis, { AI_SDK_LOG_WARNINGS: false });
  return await import("ai");
}

/** The parts of the library's stream that matter here. */
type StreamPart =
  | { type: "text-delta"; text: string }
  | {
    type: "tool-call";
    toolCallId: string;
    toolName: string;
    input: unknown;
    invalid?: boolean;
  }
  | {
    type: "finish-step";
    finishReason: string;
    rawFinishReason?: string;
    usage: { inputTokens?: number; outputTokens?: number };
  };

function* translated(part: { type: string }, provider: string): Iterable<TurnPart> {
  const known = part as StreamPart;
  if (known.type === "text-delta") {
    if (known.text !== "") yield { type: "text", delta: known.text };
  } else if (known.type === "tool-call") {
    const { toolCallId: id, toolName: name, input } = known;
    const isObject = typeof input === "object" && input !== null && !Array.isArray(input);
    yield {
      type: "toolCall",
      id,
      name,
      args: isObject ? input as Record<string, unknown> : {},
      ...!isObject && { problem: "its arguments are not a JSON object" },
    };
  } else if (known.type === "finish-step") {
    const { inputTokens = 0, outputTokens = 0 } = known.usage;
    yield { type: "usage", inputTokens, outputTokens };
    if (known.rawFinishReason === undefined) throw brokenOff(provider);
    yield { type: "end", stopReason: STOP_REASONS[known.finishReason] ?? "other" };
  }
}

const STOP_REASONS: Record<string, "stop" | "length" | "toolUse"> = {
  "stop": "stop",
  "length": "length",
  "tool-calls": "toolUse",
};

function brokenOff(provider: string): ModelError {
  return new ModelError(
    "network",
    `${provider} broke off in the middle of its answer`,
    true,
    "Ask again",
  );
}

interface Failure extends ModelError {
  retryAfterMs?: number;
}

/**
 * What went wrong with a provider, without a character of what was sent to it: the library's errors
 * carry the whole request and providers quote the key they refuse, so they are no cause to keep.
 */
async function asModelError(error: unknown, { name, key }: Provider): Promise<Failure> {
  if (error instanceof ModelError) return error;
  const { APICallError } = await loadLibrary();
  if (APICallError.isInstance(error) && error.statusCode !== undefined) {
    const { statusCode, responseBody, responseHeaders } = error;
    if (statusCode < 400) return brokenOff(name);
    const secret = await key().catch(() => undefined);
    const reason = reasonIn(responseBody, secret);
    if (statusCode === 401 || statusCode === 403) {
      return new ModelError(
        "auth",
        `${name} refused the key (HTTP ${statusCode})`,
        false,
        `zero auth add ${name}`,
      );
    }
    const told = `${name} answered HTTP ${statusCode}${reason}`;
    if (statusCode === 429) {
      const failure: Failure = new ModelError(
        "rateLimit",
        told,
        true,
        "Wait a while, or add another model: zero config set agents.defaults.fallbacks",
      );
      failure.retryAfterMs = retryAfterMs(responseHeaders);
      return failure;
    }
    if (statusCode >= 500 || statusCode === 408) {
      return new ModelError("overloaded", told, true, `See how ${name} is doing, and ask again`);
    }
    const isTooLong = statusCode === 413 || /context|too long|too many tokens/i.test(reason);
    const fix = statusCode === 404
      ? `Look at the models of this provider: zero models ${name}`
      : isTooLong
      ? "Begin a new conversation: /new"
      : "Look at models.providers in the configuration: zero config get models.providers";
    return new ModelError("badRequest", told, false, fix);
  }
  if (isBrokenStream(error)) return brokenOff(name);
  if (APICallError.isInstance(error)) {
    return new ModelError(
      "network",
      `Cannot reach ${name}: ${networkReason(error)}`,
      true,
      `Check its address: zero config get models.providers.${name}.baseUrl`,
    );
  }
  return new ModelError(
    "protocol",
    `${name} answered with something that is not its protocol`,
    true,
    `Check its address and protocol: zero config get models.providers.${name}`,
  );
}

/** The provider's sentence, where its body has one. */
function reasonIn(body: string | undefined, secret: string | undefined): string {
  let text: unknown;
  try {
    const parsed = JSON.parse(body ?? "");
    text = parsed?.error?.message ?? parsed?.message ?? parsed?.error;
  } catch {
    return ""; // a page for people, of a proxy or so
  }
  if (typeof text !== "string") return "";
  const clean = (secret ? text.replaceAll(secret, "[redacted]") : text)
    .replace(/[\u0000-\u001f\u007f]+/g, " ").slice(0, MAX_REASON_CHARS);
  return clean.trim() === "" ? "" : `: ${clean.trim()}`;
}

function retryAfterMs(headers: Record<string, string> | undefined): number | undefined {
  const text = headers?.["retry-after-ms"];
  if (text && Number.isFinite(Number(text))) return Number(text);
  const after = headers?.["retry-after"];
  if (!after) return undefined;
  const ms = Number.isFinite(Number(after)) ? Number(after) * 1000 : Date.parse(after) - Date.now();
  return Number.isFinite(ms) ? Math.max(0, ms) : undefined;
}

function isBrokenStream(error: unknown): boolean {
  return error instanceof Error &&
    /error reading a body|connection (closed|reset)|unexpected (eof|end)|body from connection/i
      .test(`${error.message} ${(error.cause as Error | undefined)?.message ?? ""}`);
}

/** The system's own words: an address holds no secret, but what the library adds might. */
function networkReason(error: unknown): string {
  let deepest: unknown = error;
  while (deepest instanceof Error && deepest.cause instanceof Error) deepest = deepest.cause;
  const text = deepest instanceof Error ? deepest.message : String(deepest);
  if (/refused/i.test(text)) return "nobody listens there";
  if (/dns|lookup|resolve|not known/i.test(text)) return "its name has no address";
  if (/certificate|tls/i.test(text)) return "its certificate is not to be trusted";
  return "the connection failed";
}
