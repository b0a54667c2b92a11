// The native frames of the protocol (§2): request, response, event, one JSON object a text frame.

import type { WireError } from "./error.ts";

export interface RequestFrame {
  type: "req";
  id: string;
  method: string;
  params?: unknown;
}

export interface ResponseFrame {
  type: "res";
  id: string;
  ok: boolean;
  payload?: unknown;
  error?: WireError;
}

export interface StateVersion {
  presence: number;
  health: number;
}

export interface EventFrame {
  type: "event";
  event: string;
  payload?: unknown;
  seq?: number;
  stateVersion?: StateVersion;
}

/** Limits every connection works with (D1), in bytes. */
export const MAX_PAYLOAD_BYTES = 26_214_400;
export const MAX_BUFFERED_BYTES = 52_428_800;
export const MAX_PREAUTH_BYTES = 65_536;
export const TICK_INTERVAL_MS = 30_000;
export const HANDSHAKE_TIMEOUT_MS = 10_000;
/** Close reasons are cut to this many bytes of UTF-8 (§1.3). */
export const MAX_REASON_BYTES = 120;

/** What a frame that is no request says of itself: the problem, and the id to answer to. */
export interface MalformedFrame {
  id: string;
  problem: string;
}

/** Reads a parsed frame as a request. A malformed one is told apart by its `problem`. */
export function readRequest(value: unknown): RequestFrame | MalformedFrame {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    return { id: "invalid", problem: "must be object" };
  }
  const { type, id, method } = value as Record<string, unknown>;
  const hasId = typeof id === "string" && id !== "";
  const answerTo = hasId ? id : "invalid";
  if (type !== "req") return { id: answerTo, problem: "at /type: must be 'req'" };
  if (!hasId) return { id: answerTo, problem: "at /id: must be a non-empty string" };
  if (typeof method !== "string" || method === "") {
    return { id: answerTo, problem: "at /method: must be a non-empty string" };
  }
  return value as RequestFrame;
}

export function encodeResponse(id: string, payload: unknown): string {
  return encodeResponseJson(id, JSON.stringify(payload));
}

/** @param json the payload as JSON text; undefined for none */
export function encodeResponseJson(id: string, json: string | undefined): string {
  const payload = json === undefined ? "" : `,"payload":${json}`;
  return `{"type":"res","id":${JSON.stringify(id)},"ok":true${payload}}`;
}

/** @param payload sent beside the error where a method answers twice (§7.3) */
export function encodeError(id: string, error: WireError, payload?: unknown): string {
  const start = `{"type":"res","id":${JSON.stringify(id)},"ok":false`;
  return `${start}${member("payload", payload)},"error":${JSON.stringify(error)}}`;
}

/** An event without `seq`: the challenge, and what is addressed to one connection. */
export function encodeEvent(event: string, payload: unknown): string {
  return `{"type":"event","event":${JSON.stringify(event)}${member("payload", payload)}}`;
}

/** Cuts a close reason to what a close frame may hold, never inside a character. */
export function closeReason(text: string): string {
  const bytes = new TextEncoder().encode(text);
  if (bytes.length <= MAX_REASON_BYTES) return text;
  let end = MAX_REASON_BYTES;
  while ((bytes[end] & 0b1100_0000) === 0b1000_0000) end--;
  return new TextDecoder().decode(bytes.subarray(0, end));
}

function member(name: string, value: unknown): string {
  const json = JSON.stringify(value);
  return json === undefined ? "" : `,"${name}":${json}`;
}
