// The queue for nodes that are not connected: asked for with `node.invoke {queue}`, and looked at and
// cancelled here (D23).

import { RpcError } from "../../rpc/error.ts";
import { hasScope } from "../../rpc/scope.ts";
import { boolean, integer, list, nonEmpty, object, optional, text } from "../../rpc/shape.ts";
import { platformClass } from "../command_policy.ts";
import { type Call, callerKey, type Gateway, method, nameOf } from "../gateway.ts";
import { cleared, mustBeAllowed, rulesOf, withoutApproval } from "../invocation.ts";
import { AnsweredEntry, MAX_TTL_MS, type QueuedInvocation, QueueEntry } from "../node_queue.ts";
import type { InvokeOptions } from "../nodes.ts";

/** `queue` of `node.invoke`: how long it may wait for its node. */
export const QueueWish = object({ ttlMs: integer({ min: 1, max: MAX_TTL_MS }) });

/** What `node.invoke` answers beside `payload: null`, for an invocation that was queued. */
export const queuedAnswer = {
  queued: optional(boolean()),
  queueId: optional(text()),
  expiresAtMs: optional(integer()),
};

export const nodeQueueMethods = [
  method({
    name: "node.queue.list",
    summary: "Invocations that wait for their node, and what became of the last ones",
    scope: "operator.read",
    params: object({ nodeId: optional(nonEmpty()), queueId: optional(nonEmpty()) }),
    result: object({ ts: integer(), entries: list(AnsweredEntry) }),
    handle({ nodeId, queueId }, { gateway: { nodeQueue }, caller }) {
      const ts = Date.now();
      if (queueId === undefined) return { ts, entries: nodeQueue.list(nodeId) };
      const isAdmin = hasScope(caller.scopes, "operator.admin");
      const entry = nodeQueue.describe(queueId, (who) => isAdmin || who === callerKey(caller));
      if (!entry || (nodeId !== undefined && entry.nodeId !== nodeId)) {
        throw new RpcError("INVALID_REQUEST", "unknown queueId");
      }
      return { ts, entries: [entry] };
    },
  }),
  method({
    name: "node.queue.cancel",
    summary: "Take an invocation back that has not been sent yet",
    scope: "operator.write",
    params: object({ queueId: nonEmpty() }),
    result: object({ entry: QueueEntry }),
    handle: ({ queueId }, { gateway }) => ({ entry: gateway.nodeQueue.cancel(queueId) }),
  }),
];

/** What became of an invocation that may wait. */
type Answer = { payload: unknown; payloadJSON: string | null } & {
  queued?: boolean;
  queueId?: string;
  expiresAtMs?: number;
};

/**
 * Sends an invocation to a node that is there, and queues it for one that is not, or that is still
 * being sent what was queued before.
 *
 * @throws {RpcError} as §7.8 words it, or why it cannot be queued
 */
export async function sendOrQueue(
  invocation: InvokeOptions,
  { ttlMs }: { ttlMs: number },
  { gateway, caller }: Pick<Call, "gateway" | "caller">,
  send: () => Promise<Answer>,
): Promise<Answer> {
  const { nodes, nodeQueue } = gateway;
  const { nodeId } = invocation;
  const queued = {
    ...invocation,
    caller: callerKey(caller),
    callerDevice: caller.deviceId,
    by: nameOf(caller),
  };
  // A caller that did not hear the first answer asks again.
  const isKnown = nodeQueue.find(queued) !== undefined;
  if (!isKnown && nodes.find(nodeId) && !nodeQueue.isBusy(nodeId)) {
    try {
      return await send();
    } catch (error) {
      if (!wasNotSent(error)) throw error;
    }
  }
  const { queueId, expiresAtMs } = nodeQueue.add(admissible(queued, gateway), ttlMs);
  return { queued: true, queueId, expiresAtMs, payload: null, payloadJSON: null };
}

/**
 * A queued invocation as it may be sent now: by the rules of now, with the approvals of now, and only
 * if who wanted it might still ask for it.
 *
 * @throws {RpcError} why it may not be sent
 */
export function clearQueued(queued: QueuedInvocation, gateway: Gateway): InvokeOptions {
  const { callerDevice, caller } = queued;
  if (callerDevice !== undefined) {
    const device = gateway.devices.find(callerDevice);
    const token = device?.tokens.find(({ role }) => role === "operator");
    const mayStill = device !== undefined && token !== undefined &&
      token.revokedAtMs === undefined && hasScope(device.scopes, "operator.write");
    if (!mayStill) {
      throw new RpcError("FORBIDDEN", "the device that queued this may not invoke nodes any more");
    }
  }
  return cleared(queued, gateway, caller);
}

/**
 * What is checked before the node is there to say what it offers; approvals are not taken yet: what
 * waits must not outlive them.
 *
 * @throws {RpcError} as for a node that is connected
 */
function admissible(queued: QueuedInvocation, gateway: Gateway): QueuedInvocation {
  const { nodeId, command, params } = queued;
  const device = gateway.devices.find(nodeId);
  if (!device?.roles.includes("node")) throw new RpcError("INVALID_REQUEST", "unknown nodeId");
  const connected = gateway.nodes.find(nodeId);
  const platform = connected?.connection.client?.platform ?? device.platform ?? "";
  mustBeAllowed(command, [command], platformClass(platform), rulesOf(gateway));
  if (command === "system.execApprovals.set") {
    throw new RpcError(
      "INVALID_REQUEST",
      "Cannot queue the invocation: rules are replaced at once",
      {
        details: { command, fix: "Wait until the node is connected" },
      },
    );
  }
  return { ...queued, params: withoutApproval(command, params) };
}

function wasNotSent(error: unknown): boolean {
  return error instanceof RpcError &&
    (error.details as { delivery?: unknown } | undefined)?.delivery === "not-sent";
}
