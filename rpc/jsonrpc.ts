// The same calls as JSON-RPC 2.0 (https://www.jsonrpc.org/specification), over WebSocket and over
// `POST /rpc` (D12): single calls, batches, notifications.

import { JSON_RPC } from "./error.ts";
import type { Outcome } from "./dispatch.ts";

export type JsonRpcId = string | number | null;

/** A call read from a message; a notification has no `id` and gets no answer. */
export interface JsonRpcCall {
  id?: JsonRpcId;
  method: string;
  params?: unknown;
}

/** More calls than this in one batch are refused as a whole. */
export const MAX_BATCH = 1_000;

export type Invoke = (call: JsonRpcCall) => Outcome | Promise<Outcome>;

/**
 * Answers one message: a call or a batch.
 *
 * @returns the text to send back, `undefined` when nothing but notifications came
 */
export async function answerJsonRpc(text: string, invoke: Invoke): Promise<string | undefined> {
  let message: unknown;
  try {
    message = JSON.parse(text);
  } catch {
    return failure(null, JSON_RPC.PARSE_ERROR, "parse error");
  }
  if (!Array.isArray(message)) return await answerOne(message, invoke);
  if (message.length === 0 || message.length > MAX_BATCH) {
    const problem = message.length === 0
      ? "empty batch"
      : `more than ${MAX_BATCH} calls in a batch`;
    return failure(null, JSON_RPC.INVALID_REQUEST, `invalid request: ${problem}`);
  }
  const answers = await Promise.all(message.map((one) => answerOne(one, invoke)));
  const given = answers.filter((answer) => answer !== undefined);
  return given.length > 0 ? `[${given.join(",")}]` : undefined;
}

/** Whether a parsed first message opens a JSON-RPC connection. */
export function isJsonRpc(message: unknown): boolean {
  return typeof message === "object" && message !== null &&
    (message as { jsonrpc?: unknown }).jsonrpc === "2.0";
}

/** Reads one call. An invalid one is told apart by its `problem`. */
export function readCall(message: unknown): JsonRpcCall | { id: JsonRpcId; problem: string } {
  if (typeof message !== "object" || message === null || Array.isArray(message)) {
    return { id: null, problem: "must be object" };
  }
  const { jsonrpc, id, method, params } = message as Record<string, unknown>;
  const isIdValid = typeof id === "string" || typeof id === "number" || id === null;
  const answerTo = isIdValid ? id as JsonRpcId : null;
  if (jsonrpc !== "2.0") return { id: answerTo, problem: "jsonrpc must be '2.0'" };
  if (typeof method !== "string" || method === "") {
    return { id: answerTo, problem: "method must be a non-empty string" };
  }
  if (id !== undefined && !isIdValid) {
    return { id: null, problem: "id must be string, number or null" };
  }
  return { ...(id !== undefined && { id: answerTo }), method, params };
}

export function encodeAnswer(id: JsonRpcId, outcome: Outcome): string {
  return outcome.ok
    ? encodeResultJson(id, JSON.stringify(outcome.payload))
    : `{"jsonrpc":"2.0","id":${JSON.stringify(id)},` +
      `"error":${JSON.stringify(outcome.error.toJsonRpc())}}`;
}

/** @param json the result as JSON text; undefined for none */
export function encodeResultJson(id: JsonRpcId, json: string | undefined): string {
  return `{"jsonrpc":"2.0","id":${JSON.stringify(id)},"result":${json ?? "null"}}`;
}

async function answerOne(message: unknown, invoke: Invoke): Promise<string | undefined> {
  const call = readCall(message);
  if ("problem" in call) {
    return failure(call.id, JSON_RPC.INVALID_REQUEST, `invalid request: ${call.problem}`);
  }
  const outcome = await invoke(call);
  return call.id === undefined ? undefined : encodeAnswer(call.id, outcome);
}

function failure(id: JsonRpcId, code: number, message: string): string {
  return JSON.stringify({ jsonrpc: "2.0", id, error: { code, message } });
}
