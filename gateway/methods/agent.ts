// Giving the agent something to do, and waiting for it (§7.3); which agents there are.

import { RpcError } from "../../rpc/error.ts";
import { type Answer, TwoAnswers } from "../../rpc/method.ts";
import { hasScope } from "../../rpc/scope.ts";
import {
  anything,
  boolean,
  integer,
  list,
  nonEmpty,
  object,
  oneOf,
  optional,
  text,
} from "../../rpc/shape.ts";
import { Attachments, readImages } from "../agent/attachments.ts";
import type { Run, RunOrigin, RunOutcome } from "../agent/runs.ts";
import { agentsOf, normalizeAgentId, sessionDefaults } from "../agents.ts";
import type { Address } from "../channels/channel.ts";
import { chatFor, isKnownChannel } from "../delivery.ts";
import { type Call, type Gateway, method, nameOf } from "../gateway.ts";

const MAX_WAIT_MS = 86_400_000;
const DEFAULT_WAIT_MS = 30_000;

export const agentMethods = [
  method({
    name: "agent",
    summary: "Give the agent a message; answers at once, and again when the run has ended",
    scope: "operator.write",
    params: object({
      message: nonEmpty(),
      idempotencyKey: nonEmpty(),
      agentId: optional(text()),
      sessionKey: optional(text()),
      sessionId: optional(text()),
      to: optional(text()),
      replyTo: optional(text()),
      channel: optional(text()),
      replyChannel: optional(text()),
      accountId: optional(text()),
      replyAccountId: optional(text()),
      threadId: optional(text()),
      thinking: optional(text()),
      deliver: optional(boolean()),
      bestEffortDeliver: optional(boolean()),
      attachments: optional(Attachments),
      groupId: optional(text()),
      groupChannel: optional(text()),
      groupSpace: optional(text()),
      /** Seconds. */
      timeout: optional(integer({ min: 0, max: 86_400 })),
      lane: optional(text()),
      extraSystemPrompt: optional(text()),
      label: optional(text({ min: 1, max: 64 })),
      spawnedBy: optional(text()),
      provider: optional(text()),
      model: optional(text()),
    }),
    result: object({
      runId: text(),
      status: oneOf(["accepted", "ok", "error"]),
      acceptedAt: optional(integer()),
      summary: optional(text()),
      result: optional(object({
        payloads: list(object({
          text: optional(text()),
          mediaUrl: optional(text()),
          mediaUrls: optional(list(text())),
        })),
        meta: anything(),
      })),
    }),
    handle(params, call) {
      const { gateway, caller } = call;
      const { message, idempotencyKey: runId, thinking, extraSystemPrompt } = params;
      const known = gateway.idempotency.find("agent", runId);
      if (known) return again(known, runId, gateway);
      const images = readImages(params.attachments, dropped(gateway));
      const sessionKey = sessionOf(params, gateway);
      const entry = gateway.sessions.get(sessionKey)?.entry;
      if (entry?.sendPolicy === "deny") throw sendBlocked();
      const { label, spawnedBy } = params;
      if (label || spawnedBy) gateway.sessions.patch(sessionKey, { label, spawnedBy });
      const run = gateway.runs.start({
        runId,
        sessionKey,
        message,
        images,
        origin: originOf(call),
        timeoutMs: params.timeout ? params.timeout * 1_000 : undefined,
        thinking,
        extraSystemPrompt,
        model: modelOf(params),
        deliverTo: params.deliver ? addressOf(params, sessionKey, gateway) : undefined,
      });
      gateway.log.debug("run accepted", { runId, by: nameOf(caller) });
      const first = { runId, status: "accepted" as const, acceptedAt: Date.now() };
      gateway.idempotency.remember("agent", runId, { ok: true, payload: first });
      return new TwoAnswers(
        first,
        run.done.then((outcome) => {
          const answer = finalOf(run, outcome);
          gateway.idempotency.remember("agent", runId, answer);
          return answer;
        }),
      );
    },
  }),
  method({
    name: "agent.wait",
    summary: "Wait for the end of a run",
    scope: "operator.write",
    params: object({ runId: nonEmpty(), timeoutMs: optional(integer({ min: 0 })) }),
    result: object({
      runId: text(),
      status: oneOf(["ok", "error", "timeout"]),
      startedAt: optional(integer()),
      endedAt: optional(integer()),
      error: optional(text()),
    }),
    async handle({ runId, timeoutMs = DEFAULT_WAIT_MS }, { gateway: { runs } }) {
      const outcome = await runs.end(runId, Math.min(timeoutMs, MAX_WAIT_MS));
      if (!outcome) return { runId, status: "timeout" as const };
      const { status, startedAtMs, endedAtMs } = outcome;
      const times = { startedAt: startedAtMs, endedAt: endedAtMs };
      if (status === "ok") return { runId, status, ...times };
      return { runId, status: "error" as const, ...times, error: reasonOf(outcome) };
    },
  }),
  method({
    name: "agent.identity.get",
    summary: "What an agent is called, and its picture",
    scope: "operator.read",
    params: object({ agentId: optional(text()), sessionKey: optional(text()) }),
    result: object({ agentId: text(), name: optional(text()), avatar: optional(text()) }),
    handle(params, { gateway }) {
      const agentId = agentOf("agent.identity.get", params, gateway);
      const { name, identity } = described(agentId, gateway);
      return { agentId, name: identity?.name ?? name, avatar: identity?.avatar };
    },
  }),
  method({
    name: "agents.list",
    summary: "The agents of this gateway",
    scope: "operator.read",
    params: object({}),
    result: object({
      defaultId: text(),
      mainKey: text(),
      scope: oneOf(["per-sender", "global"]),
      agents: list(object({
        id: text(),
        name: optional(text()),
        identity: optional(object({
          name: optional(text()),
          theme: optional(text()),
          emoji: optional(text()),
          avatar: optional(text()),
          avatarUrl: optional(text()),
        })),
      })),
    }),
    handle(_, { gateway }) {
      const { config } = gateway.config.reading;
      const { defaultAgentId, mainKey, scope } = sessionDefaults(config);
      return {
        defaultId: defaultAgentId,
        mainKey,
        scope: scope === "global" ? "global" as const : "per-sender" as const,
        agents: agentsOf(config).map(({ agentId }) => ({
          id: agentId,
          ...described(agentId, gateway),
        })),
      };
    },
  }),
  method({
    name: "system.panic",
    summary: "Stop everything that agents do, at once",
    scope: "operator.write",
    params: object({}),
    result: object({ ok: boolean(), abortedCount: integer() }),
    handle(_, { gateway, caller }) {
      const reason = "EMERGENCY PANIC";
      const abortedCount = gateway.runs.abortAll(reason);
      gateway.log.warn("panic: all runs were stopped", { by: nameOf(caller), abortedCount });
      gateway.events.publish("system.panic", { timestamp: Date.now(), reason, abortedCount });
      return { ok: true, abortedCount };
    },
  }),
];

/** Who a run is started by, as far as an operator's call says. */
export function originOf({ caller }: Pick<Call, "caller">): RunOrigin {
  return {
    kind: "operator",
    isOwner: true,
    mayApprove: hasScope(caller.scopes, "operator.approvals"),
    callerName: nameOf(caller),
  };
}

/** A call that came before, answered from memory; one whose run goes on is told its end, too. */
function again(known: Answer, runId: string, { runs }: Gateway) {
  if (!known.ok) throw known.error;
  const payload = known.payload as { runId: string; status: "accepted" | "ok" };
  const run = runs.find(runId);
  if (payload.status !== "accepted" || !run) return payload;
  return new TwoAnswers(payload, run.done.then((outcome) => finalOf(run, outcome)));
}

/** What a run came to, as the second answer of `agent`. */
function finalOf({ runId }: Run, outcome: RunOutcome): Answer {
  const { status, texts, media = [], usage, stopReason, startedAtMs, endedAtMs } = outcome;
  if (status !== "ok") {
    const summary = reasonOf(outcome);
    return {
      ok: false,
      payload: { runId, status: "error", summary },
      error: new RpcError("UNAVAILABLE", summary),
    };
  }
  const said = texts.map((words) => ({ text: words }));
  const payloads = media.length > 0
    ? [...said.slice(0, -1), { ...said.at(-1), mediaUrls: media.map(({ url }) => url) }]
    : said;
  const durationMs = endedAtMs - (startedAtMs ?? endedAtMs);
  return {
    ok: true,
    payload: {
      runId,
      status: "ok",
      summary: "completed",
      result: { payloads, meta: { durationMs, usage, stopReason } },
    },
  };
}

/** Why a run did not come to an answer. */
export function reasonOf({ status, error, stopReason }: RunOutcome): string {
  return status === "aborted" ? `aborted (${stopReason})` : error ?? "the run failed";
}

export function sendBlocked(): RpcError {
  return new RpcError("INVALID_REQUEST", "send blocked by session policy");
}

export function dropped({ log }: Gateway) {
  return (label: string, mimeType: string | undefined) =>
    log.warn("an attachment is no image, and was left out", { label, mimeType });
}

interface SessionParams {
  agentId?: string;
  sessionKey?: string;
  sessionId?: string;
  to?: string;
  channel?: string;
  replyChannel?: string;
  accountId?: string;
  replyAccountId?: string;
  replyTo?: string;
  threadId?: string;
  provider?: string;
  model?: string;
}

/**
 * The session a message is for, as the caller names it.
 *
 * @throws {RpcError} in the order and with the texts of §7.3
 */
function sessionOf(params: SessionParams, gateway: Gateway): string {
  const { sessionKey, sessionId, to, agentId } = params;
  const { config } = gateway.config.reading;
  for (const channel of [params.channel, params.replyChannel]) {
    if (channel && !isKnownChannel(channel, config)) {
      throw new RpcError("INVALID_REQUEST", `invalid agent params: unknown channel: ${channel}`);
    }
  }
  const agent = agentOf("agent", params, gateway);
  if (sessionKey?.trim()) return sessionKey;
  const bySession = sessionId ? gateway.sessions.findById(sessionId)?.key : undefined;
  if (bySession) return bySession;
  if (to?.trim() && !agentId?.trim()) return `agent:${agent}:${to.trim()}`;
  return gateway.sessions.mainKey(agent);
}

/** @throws {RpcError} an agent that is not there, or not that of the session */
function agentOf(
  name: string,
  { agentId, sessionKey }: Pick<SessionParams, "agentId" | "sessionKey">,
  { config, sessions }: Gateway,
): string {
  const agents = agentsOf(config.reading.config);
  const given = agentId?.trim() ? normalizeAgentId(agentId) : undefined;
  if (given !== undefined && !agents.some((one) => one.agentId === given)) {
    throw new RpcError("INVALID_REQUEST", `invalid ${name} params: unknown agent id "${agentId}"`);
  }
  const ofSession = sessionKey?.trim() ? sessions.canonicalKey(sessionKey).agentId : undefined;
  if (given !== undefined && ofSession !== undefined && given !== ofSession) {
    throw new RpcError(
      "INVALID_REQUEST",
      `invalid ${name} params: agent "${given}" does not match session key agent "${ofSession}"`,
    );
  }
  return given ?? ofSession ?? agents[0].agentId;
}

function modelOf({ provider, model }: SessionParams): string | undefined {
  if (!model?.trim()) return undefined;
  return provider?.trim() && !model.includes("/") ? `${provider}/${model}` : model;
}

/** Where a reply is to go: where the call says, else where the session was last answered. */
function addressOf(
  params: SessionParams,
  sessionKey: string,
  { sessions }: Gateway,
): Address | undefined {
  const channel = params.replyChannel ?? params.channel;
  const to = params.replyTo ?? params.to;
  const accountId = params.replyAccountId ?? params.accountId;
  return chatFor({ channel, to, accountId, threadId: params.threadId }, sessionKey, sessions);
}

/** What the configuration says an agent is called. */
function described(agentId: string, { config }: Gateway) {
  const listed = config.reading.config.agents?.list?.find(({ id }) =>
    normalizeAgentId(id) === agentId
  );
  const given = (listed?.identity ?? {}) as Record<string, unknown>;
  const names = ["name", "theme", "emoji", "avatar", "avatarUrl"] as const;
  const identity: { [name in typeof names[number]]?: string } = {};
  for (const name of names) {
    const value = given[name];
    if (typeof value === "string" && value !== "") identity[name] = value;
  }
  return {
    ...(listed?.name && { name: listed.name }),
    ...(Object.keys(identity).length > 0 && { identity }),
  };
}
