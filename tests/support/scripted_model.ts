// A model that says what a test tells it to, and keeps what it was asked.

import type { AgentModel, Turn, TurnPart } from "../../gateway/agent/model.ts";
import type { ModelSource } from "../../gateway/agent/runs.ts";

type Parts = Iterable<TurnPart> | AsyncIterable<TurnPart>;

export interface ScriptedModel extends AgentModel {
  /** Every turn it was asked for, in order. */
  readonly turns: Turn[];
}

/**
 * @param script what the model does in a turn; `turns` counts from 0
 */
export function scriptedModel(
  script: (turn: Turn, turns: number) => Parts,
  id = "test/scripted",
): ScriptedModel {
  const turns: Turn[] = [];
  return {
    id,
    turns,
    async *respond(turn) {
      turns.push({ ...turn, messages: [...turn.messages] });
      yield* script(turn, turns.length - 1);
    },
  };
}

/** A gateway's models: these, in this order. */
export function only(...models: AgentModel[]): ModelSource {
  return { pick: () => models };
}

/** A whole message. */
export function says(text: string): TurnPart[] {
  return [
    { type: "text", delta: text },
    { type: "usage", inputTokens: 10, outputTokens: 5 },
    { type: "end", stopReason: "stop" },
  ];
}

/** A message that asks for one tool. */
export function calls(name: string, args: Record<string, unknown>, text = ""): TurnPart[] {
  return [
    ...text === "" ? [] : [{ type: "text" as const, delta: text }],
    { type: "toolCall", id: `call-${crypto.randomUUID().slice(0, 8)}`, name, args },
    { type: "end", stopReason: "toolUse" },
  ];
}

/** Says something and then nothing more until it is aborted. */
export async function* hangs(signal: AbortSignal, text = ""): AsyncGenerator<TurnPart> {
  if (text !== "") yield { type: "text", delta: text };
  await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
}

/** The last thing the model was told, as text. */
export function lastText({ messages }: Turn): string {
  return messages.at(-1)!.content.map((part) => part.type === "text" ? part.text : "").join("\n");
}
