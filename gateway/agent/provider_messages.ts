// The transcript as providers want it: tool calls with the results they ask for, images where they
// may stand, and no more than the model can read.

import type { ModelMessage } from "ai";
import type { Message, MessagePart } from "../sessions.ts";

/** Characters of a token, about. */
const CHARS_A_TOKEN = 4;
/** Images that providers take; any other would have the whole conversation refused. */
const READABLE = ["image/png", "image/jpeg", "image/gif", "image/webp"];
/** What an image costs, about, whatever its size. */
const IMAGE_CHARS = 6_000;
/** Left for the system prompt, the tools and the answer. */
const SHARE_FOR_TRANSCRIPT = 0.7;

/** @param contextTokens what the model can read at once */
export function providerMessages(
  messages: readonly Message[],
  contextTokens: number,
): ModelMessage[] {
  const budget = contextTokens * CHARS_A_TOKEN * SHARE_FOR_TRANSCRIPT;
  return [...translated(fitting(messages, budget))];
}

/** The newest messages within the budget, beginning with one of the user; the last turn always. */
function fitting(messages: readonly Message[], budget: number): readonly Message[] {
  let used = 0;
  let from = messages.length;
  for (let index = messages.length - 1; index >= 0; index--) {
    used += sizeOf(messages[index]);
    const isFirstTurn = !messages.slice(index + 1).some(({ role }) => role === "user");
    if (used > budget && !isFirstTurn) break;
    if (messages[index].role === "user") from = index;
  }
  return messages.slice(from);
}

function* translated(messages: readonly Message[]): Generator<ModelMessage> {
  for (let index = 0; index < messages.length; index++) {
    const message = messages[index];
    const parts = message.content;
    if (message.role === "user") {
      const content = parts.flatMap(userPart);
      if (content.length > 0) yield { role: "user", content };
      continue;
    }
    if (message.role !== "assistant") continue; // results are taken with their calls
    const calls = parts.filter((part) => part.type === "toolCall");
    const text = textOf(parts);
    if (text === "" && calls.length === 0) continue;
    yield {
      role: "assistant",
      content: [
        ...(text === "" ? [] : [{ type: "text" as const, text }]),
        ...calls.map(({ id, name, arguments: input }) => ({
          type: "tool-call" as const,
          toolCallId: id,
          toolName: name,
          input,
        })),
      ],
    };
    if (calls.length === 0) continue;
    const results = resultsAfter(messages, index);
    yield {
      role: "tool",
      content: calls.map(({ id, name }) => ({
        type: "tool-result" as const,
        toolCallId: id,
        toolName: name,
        output: { type: "text" as const, value: resultText(results.get(id)) },
      })),
    };
    const images = [...results.values()].flatMap(({ content }) => content).filter(({ type }) =>
      type === "image"
    );
    if (images.length > 0) {
      const said = { type: "text" as const, text: "Images of the results above:" };
      yield { role: "user", content: [said, ...images.flatMap(userPart)] };
    }
  }
}

/** Results between a message with calls and the next message that is none. */
function resultsAfter(messages: readonly Message[], index: number): Map<string, Message> {
  const results = new Map<string, Message>();
  for (const message of messages.slice(index + 1)) {
    if (message.role !== "toolResult") break;
    if (message.toolCallId !== undefined) results.set(message.toolCallId, message);
  }
  return results;
}

/** A call without a result was cut off by a stop or a crash; providers insist on one. */
function resultText(result: Message | undefined): string {
  if (!result) return "error: it was interrupted, and whether it was done is not known";
  const text = textOf(result.content);
  return result.isError ? `error: ${text}` : text || "(nothing)";
}

type UserPart = { type: "text"; text: string } | { type: "file"; data: string; mediaType: string };

function userPart(part: MessagePart): UserPart[] {
  if (part.type === "text") return part.text === "" ? [] : [{ type: "text", text: part.text }];
  if (part.type !== "image") return [];
  if (!READABLE.includes(part.mimeType)) {
    return [{ type: "text", text: `[an image that cannot be read: ${part.mimeType}]` }];
  }
  return [{ type: "file", data: part.data, mediaType: part.mimeType }];
}

function textOf(parts: readonly MessagePart[]): string {
  return parts.flatMap((part) => part.type === "text" ? [part.text] : []).join("\n");
}

function sizeOf(message: Message): number {
  const chars = (part: MessagePart) =>
    part.type === "text"
      ? part.text.length
      : part.type === "image"
      ? IMAGE_CHARS
      : JSON.stringify(part).length;
  return message.content.reduce((sum, part) => sum + chars(part), 0);
}
