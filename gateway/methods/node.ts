// What nodes say to the gateway of their own accord (§7.9).

import {
  anything,
  boolean,
  list,
  nonEmpty,
  nullable,
  object,
  optional,
  text,
} from "../../rpc/shape.ts";
import { sessionDefaults } from "../agents.ts";
import { type Call, method } from "../gateway.ts";

/** Longest text of an event that goes into a session, in characters. */
const MAX_OUTPUT = 20_000;

export const nodeMethods = [
  method({
    name: "node.event",
    summary: "Something happened on a node",
    scope: "node",
    params: object({
      event: nonEmpty(),
      payload: anything(),
      payloadJSON: optional(nullable(text())),
    }),
    result: object({
      ok: boolean(),
      event: text(),
      handled: boolean(),
      reason: optional(text()),
    }),
    handle({ event, payload, payloadJSON }, call) {
      const facts = readPayload(payload, payloadJSON);
      if (!facts) return { ok: true, event, handled: false, reason: "payload is no JSON object" };
      const said = describeExec(event, facts, nodeIdOf(call));
      if (said === undefined) return { ok: true, event, handled: false, reason: "unknown event" };
      const { gateway } = call;
      const { mainSessionKey } = sessionDefaults(gateway.config.reading.config);
      const key = facts.sessionKey;
      const isNamed = typeof key === "string" && key !== "" && key !== "node";
      gateway.systemEvents.enqueue(isNamed ? key : mainSessionKey, said);
      return { ok: true, event, handled: true };
    },
  }),
  method({
    name: "skills.bins",
    summary: "Programs that skills bring along, which a node may run without asking",
    scope: "node",
    params: object({}),
    result: object({ bins: list(text()) }),
    handle: () => ({ bins: [] }),
  }),
];

/** A node is its device; without one, its client id (§4.6). */
export function nodeIdOf({ caller: { deviceId, client } }: Call): string {
  return deviceId ?? client.id;
}

/** `payloadJSON` wins over `payload`. */
function readPayload(payload: unknown, json?: string | null): Record<string, unknown> | undefined {
  let value = payload ?? {};
  if (typeof json === "string") {
    try {
      value = JSON.parse(json);
    } catch {
      return undefined;
    }
  }
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? value as Record<string, unknown>
    : undefined;
}

/** What the session is told of a command that a node ran, or did not. */
function describeExec(
  event: string,
  { runId, command, exitCode, timedOut, output, reason }: Record<string, unknown>,
  nodeId: string,
): string | undefined {
  const id = `node=${nodeId} id=${shown(runId)}`;
  switch (event) {
    case "exec.started":
      return `Exec started (${id}): ${shown(command)}`;
    case "exec.finished": {
      const end = timedOut === true ? "timeout" : `code ${shown(exitCode)}`;
      const tail = typeof output === "string" ? output.slice(-MAX_OUTPUT) : "";
      return `Exec finished (${id}, ${end})${tail === "" ? "" : `\n${tail}`}`;
    }
    case "exec.denied":
      return `Exec denied (${id}, ${shown(reason)}): ${shown(command)}`;
  }
}

function shown(value: unknown): string {
  return typeof value === "string" || typeof value === "number"
    ? String(value).slice(0, 2_000)
    : "unknown";
}
