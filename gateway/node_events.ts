// What nodes say of their own accord (`node.event`, §7.9): one entry for each name there is. An entry
// says what its payload must look like and what becomes of it; names that nobody knows are accepted
// and have no effect.

import {
  explain,
  nonEmpty,
  number,
  open,
  optional,
  problems,
  type Shape,
  text,
} from "../rpc/shape.ts";
import type { RunRequest } from "./agent/runs.ts";
import { type Call, nameOf } from "./gateway.ts";

/** Where an event came from: the connection says which node, never the payload. */
export interface NodeCall extends Call {
  nodeId: string;
}

interface NodeEvent<Payload> {
  name: string;
  /** Open shapes: nodes of other makes send more than they must. */
  payload: Shape<Payload>;
  /** Returns as soon as the event is taken care of; what takes longer goes on by itself. */
  handle(payload: Payload, call: NodeCall): void | Promise<void>;
}

/** What a node is told of its event (§7.9). */
export type EventAnswer = { handled: true } | { handled: false; reason: string };

/** Longest output of a command that goes into a session, in characters. */
const MAX_OUTPUT = 20_000;
const MAX_SHOWN = 2_000;
const MAX_PROBLEMS = 20;
/** Characters of what a node may tell the agent. */
const MAX_MESSAGE = 20_000;
const MAX_KEY = 200;

const NODE_EVENTS: ReadonlyMap<string, NodeEvent<unknown>> = new Map(
  [
    execEvent("exec.started", ({ command }, id) => `Exec started (${id}): ${shown(command)}`),
    execEvent("exec.finished", ({ exitCode, timedOut, output }, id) => {
      const end = timedOut === true ? "timeout" : `code ${shown(exitCode)}`;
      const tail = typeof output === "string" ? output.slice(-MAX_OUTPUT) : "";
      return `Exec finished (${id}, ${end})${tail === "" ? "" : `\n${tail}`}`;
    }),
    execEvent(
      "exec.denied",
      ({ command, reason }, id) => `Exec denied (${id}, ${shown(reason)}): ${shown(command)}`,
    ),
    nodeEvent({
      name: "chat.subscribe",
      payload: open({ sessionKey: nonEmpty() }),
      handle({ sessionKey }, { gateway: { audience, connections, sessions }, caller }) {
        const connection = connections.find(caller.connId);
        if (connection) audience.subscribe(sessions.canonicalKey(sessionKey).key, connection);
      },
    }),
    nodeEvent({
      name: "chat.unsubscribe",
      payload: open({ sessionKey: nonEmpty() }),
      handle({ sessionKey }, { gateway: { audience, sessions }, caller: { connId } }) {
        audience.unsubscribe(sessions.canonicalKey(sessionKey).key, connId);
      },
    }),
    nodeEvent({
      name: "voice.transcript",
      payload: open({ text: text({ min: 1, max: MAX_MESSAGE }), sessionKey: optional(text()) }),
      handle({ text: message, sessionKey }, call) {
        const key = sessionKey || call.gateway.sessions.mainKey();
        startRun({ message, sessionKey: key, thinking: "low" }, call);
      },
    }),
    nodeEvent({
      name: "agent.request",
      payload: open({
        message: text({ min: 1, max: MAX_MESSAGE }),
        sessionKey: optional(text()),
        thinking: optional(text()),
        timeoutSeconds: optional(number({ min: 0, max: 86_400 })),
        key: optional(text({ max: MAX_KEY })),
      }),
      handle({ message, sessionKey, thinking, timeoutSeconds, key }, call) {
        startRun({
          message,
          sessionKey: sessionKey || `node-${call.nodeId}`,
          thinking,
          timeoutMs: timeoutSeconds ? timeoutSeconds * 1_000 : undefined,
          key,
        }, call);
      },
    }),
  ].map((event) => [event.name, event]),
);

/** @param payload and @param payloadJSON as they came; the text wins */
export async function handleNodeEvent(
  { event, payload, payloadJSON }: {
    event: string;
    payload?: unknown;
    payloadJSON?: string | null;
  },
  call: NodeCall,
): Promise<EventAnswer> {
  const facts = readPayload(payload, payloadJSON);
  if (!facts) return { handled: false, reason: "payload is no JSON object" };
  const known = NODE_EVENTS.get(event);
  if (!known) return { handled: false, reason: "unknown event" };
  const wrong = problems(facts, known.payload, { max: MAX_PROBLEMS });
  if (wrong.length > 0) {
    return { handled: false, reason: `invalid ${event} payload: ${explain(wrong)}` };
  }
  await known.handle(facts, call);
  return { handled: true };
}

/**
 * What a node wants of the agent. A node is not its owner: it gets words, and no tools.
 *
 * @throws {RpcError} too much waits in that session
 */
function startRun(
  { key, ...wanted }: Pick<RunRequest, "message" | "sessionKey" | "thinking" | "timeoutMs"> & {
    key?: string;
  },
  { gateway, caller, nodeId }: NodeCall,
) {
  gateway.runs.start({
    ...wanted,
    runId: key ? `node:${nodeId}:${key}` : crypto.randomUUID(),
    origin: { kind: "node", isOwner: false, callerName: nameOf(caller) },
  });
}

/** An entry of the table; its handler's type comes from its shape. */
function nodeEvent<Payload>(event: NodeEvent<Payload>): NodeEvent<unknown> {
  return event as NodeEvent<unknown>;
}

/** Of a command that a node ran, or did not: its session is told in words. */
function execEvent(
  name: string,
  describe: (facts: Record<string, unknown>, id: string) => string,
): NodeEvent<unknown> {
  return nodeEvent({
    name,
    payload: open({}) as Shape<Record<string, unknown>>,
    handle(facts, { gateway, nodeId }) {
      const { sessionKey, runId } = facts;
      // A run of the agent has the result itself.
      if (typeof runId === "string" && gateway.runs.find(runId)) return;
      const isNamed = typeof sessionKey === "string" && sessionKey !== "" && sessionKey !== "node";
      gateway.systemEvents.enqueue(
        isNamed ? gateway.sessions.canonicalKey(sessionKey).key : gateway.sessions.mainKey(),
        describe(facts, `node=${nodeId} id=${shown(runId)}`),
      );
    },
  });
}

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

function shown(value: unknown): string {
  return typeof value === "string" || typeof value === "number"
    ? String(value).slice(0, MAX_SHOWN)
    : "unknown";
}
