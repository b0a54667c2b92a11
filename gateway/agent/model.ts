// What answers a turn: a model behind an API, or the built-in agent. A model says text and asks for
// tools; running the tools and keeping the transcript is the run's business.

import type { JsonSchema } from "../../rpc/shape.ts";
import type { Message } from "../sessions.ts";

export interface AgentModel {
  /** `<provider>/<model>` as the configuration names it. */
  readonly id: string;
  /** Tokens of the context window, where known. */
  readonly contextTokens?: number;
  /**
   * One turn. The iteration ends with an `end` part, or throws: a {@link ModelError} for what the
   * provider said, the signal's reason when it was aborted.
   */
  respond(turn: Turn): AsyncIterable<TurnPart>;
}

export interface Turn {
  system: string;
  /** Oldest first; the last one is of the user or the result of a tool. */
  messages: readonly Message[];
  tools: readonly ToolSpec[];
  /** off, minimal, low, medium, high, …; providers that do not reason ignore it. */
  thinking?: string;
  signal: AbortSignal;
}

/** A tool as a model is told of it. */
export interface ToolSpec {
  name: string;
  description: string;
  parameters: JsonSchema;
}

export type TurnPart =
  | { type: "text"; delta: string }
  | {
    type: "toolCall";
    id: string;
    name: string;
    args: Record<string, unknown>;
    /** Why it cannot be run as it was asked for; the model is told. */
    problem?: string;
  }
  | { type: "usage"; inputTokens: number; outputTokens: number }
  | { type: "end"; stopReason: "stop" | "length" | "toolUse" | "other" };

/** Why a provider gave no answer. */
export class ModelError extends Error {
  override name = "ModelError";

  constructor(
    readonly kind: "auth" | "rateLimit" | "overloaded" | "badRequest" | "network" | "protocol",
    message: string,
    /** Whether the next model of the fallback list should be asked. */
    readonly isTransient: boolean,
    /** One command or one sentence that mends it. */
    readonly fix: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}
