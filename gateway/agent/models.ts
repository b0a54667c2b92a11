// Which model answers: the one of the session, of the agent or of all agents, and those that step in
// for it. Providers and their models are configuration; nothing is asked of a provider until a run.

import { type Config, defaultAt } from "../../config/schema.ts";
import type { Env } from "../../config/paths.ts";
import type { Log } from "../../config/log.ts";
import { resolveSecret } from "../../config/secrets.ts";
import { normalizeAgentId } from "../agents.ts";
import type { CurrentConfig } from "../gateway.ts";
import { type AgentModel, ModelError } from "./model.ts";
import { ApiModel, type ApiModelOptions, type ModelTraits, type Provider } from "./provider.ts";

type Providers = NonNullable<NonNullable<Config["models"]>["providers"]>;
type ProviderConfig = Providers[string];
type ModelConfig = NonNullable<ProviderConfig["models"]>[number];

/** A model as `models.list` names it (§7.11). */
export interface ModelInfo {
  id: string;
  name: string;
  provider: string;
  contextWindow?: number;
  reasoning?: boolean;
}

export interface ModelChoice {
  agentId: string;
  /** `<provider>/<model>` that the session or the call asks for. */
  sessionModel?: string;
}

/** As the schema says. */
const PROVIDER = ["models", "providers", "*"];
const DEFAULT_CONTEXT_TOKENS = Number(defaultAt([...PROVIDER, "models", 0, "contextWindow"]));
const DEFAULT_IDLE_SECONDS = Number(defaultAt([...PROVIDER, "idleTimeoutSeconds"]));

export class Models {
  readonly #config: CurrentConfig;
  readonly #env: Env;
  readonly #log: Log;
  readonly #options: ApiModelOptions;
  /** Keys as they were last read, by provider; a changed configuration has other objects. */
  readonly #keys = new WeakMap<ProviderConfig, Promise<string>>();

  constructor(
    { config, env, log }: { config: CurrentConfig; env: Env; log: Log },
    options: ApiModelOptions = {},
  ) {
    this.#config = config;
    this.#env = env;
    this.#log = log;
    this.#options = options;
  }

  /**
   * The model to ask, and after it those to ask when it fails; none = the built-in agent. A fallback
   * that is not configured is left out.
   *
   * @throws {ModelError} the model itself is not configured
   */
  pick({ agentId, sessionModel }: ModelChoice): AgentModel[] {
    const { fallbacks = [] } = this.#config.reading.config.agents?.defaults ?? {};
    const first = sessionModel ?? this.defaultModel(agentId);
    if (first === undefined) return [];
    const others = [...new Set(fallbacks)].filter((id) => id !== first);
    return [this.#model(first), ...others.flatMap((id) => this.#fallback(id))];
  }

  /** `<provider>/<model>` of an agent; undefined = the built-in agent. */
  defaultModel(agentId?: string): string | undefined {
    const { list = [], defaults } = this.#config.reading.config.agents ?? {};
    const own = list.find(({ id }) => normalizeAgentId(id) === agentId);
    return own?.model ?? defaults?.model;
  }

  /** What the configuration names, in its order. */
  list(): ModelInfo[] {
    return Object.entries(this.#providers()).flatMap(([provider, { models = [] }]) =>
      models.map(({ id, name, contextWindow, reasoning }) => ({
        id,
        name: name ?? id,
        provider,
        contextWindow: contextWindow ?? DEFAULT_CONTEXT_TOKENS,
        ...(reasoning !== undefined && { reasoning }),
      }))
    );
  }

  /** US dollars; undefined where the configuration names no price. */
  cost(id: string, tokens: { inputTokens: number; outputTokens: number }): number | undefined {
    const [provider, name] = split(id);
    const cost = this.#configured(provider, name)?.cost;
    if (cost?.input === undefined && cost?.output === undefined) return undefined;
    const { input = 0, output = 0 } = cost;
    return (tokens.inputTokens * input + tokens.outputTokens * output) / 1_000_000;
  }

  #providers(): Providers {
    return this.#config.reading.config.models?.providers ?? {};
  }

  #configured(provider: string, model: string): ModelConfig | undefined {
    return this.#providers()[provider]?.models?.find(({ id }) => id === model);
  }

  #fallback(id: string): AgentModel[] {
    try {
      return [this.#model(id)];
    } catch (error) {
      if (!(error instanceof ModelError)) throw error;
      this.#log.warn("a fallback cannot be used", { error: error.message, fix: error.fix });
      return [];
    }
  }

  #model(id: string): AgentModel {
    const [name, model] = split(id);
    if (model === "") {
      throw new ModelError(
        "badRequest",
        `Cannot use the model ${id}: its provider is not named, as in openai/${id}`,
        false,
        "zero models",
      );
    }
    const settings = this.#providers()[name];
    if (!settings) {
      throw new ModelError(
        "badRequest",
        `Cannot use the model ${id}: no provider ${name} is configured`,
        false,
        `zero auth add ${name}`,
      );
    }
    const known = this.#configured(name, model);
    const traits: ModelTraits = {
      id: model,
      contextTokens: known?.contextWindow ?? DEFAULT_CONTEXT_TOKENS,
      maxTokens: known?.maxTokens,
      isReasoning: known?.reasoning,
    };
    return new ApiModel(this.#provider(name, settings), traits, this.#options);
  }

  #provider(name: string, settings: ProviderConfig): Provider {
    const { api = "openai-completions", baseUrl, idleTimeoutSeconds } = settings;
    if (baseUrl === undefined) {
      throw new ModelError(
        "badRequest",
        `Cannot use ${name}: it has no address`,
        false,
        `zero config set models.providers.${name}.baseUrl https://…`,
      );
    }
    return {
      name,
      api,
      baseUrl,
      idleTimeoutMs: (idleTimeoutSeconds ?? DEFAULT_IDLE_SECONDS) * 1000,
      key: () => this.#key(name, settings),
      forgetKey: () => this.#keys.delete(settings),
    };
  }

  async #key(name: string, settings: ProviderConfig) {
    if (settings.apiKey === undefined) return undefined;
    let reading = this.#keys.get(settings);
    if (!reading) {
      reading = resolveSecret(settings.apiKey, {
        env: this.#env,
        name: `models.providers.${name}.apiKey`,
        warn: (message) => this.#log.warn(message),
      });
      this.#keys.set(settings, reading);
    }
    try {
      const key = await reading;
      this.#log.addSecret(key);
      return key;
    } catch (cause) {
      this.#keys.delete(settings);
      throw new ModelError("auth", (cause as Error).message, false, `zero auth add ${name}`, {
        cause,
      });
    }
  }
}

/** Provider and model; the name of a model may hold further slashes. */
function split(id: string): [provider: string, model: string] {
  const at = id.indexOf("/");
  return at < 0 ? [id, ""] : [id.slice(0, at), id.slice(at + 1)];
}
