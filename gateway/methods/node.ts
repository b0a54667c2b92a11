// Nodes as operators see them, and what nodes say of their own accord (§7.8, §7.9).

import { missingScope } from "../../rpc/dispatch.ts";
import { RpcError } from "../../rpc/error.ts";
import { MAX_BUFFERED_BYTES } from "../../rpc/frame.ts";
import { hasScope } from "../../rpc/scope.ts";
import {
  anything,
  boolean,
  type Infer,
  integer,
  list,
  mapOf,
  nonEmpty,
  nullable,
  number,
  object,
  oneOf,
  optional,
  text,
} from "../../rpc/shape.ts";
import { type NodeRules, permittedCommands } from "../command_policy.ts";
import type { PairedDevice } from "../devices.ts";
import { type Call, callerKey, type Gateway, method, nameOf } from "../gateway.ts";
import { cleared, kindOf, rulesOf } from "../invocation.ts";
import { LegacyNode, LegacyRequest, nodeDescription } from "../legacy_nodes.ts";
import { MAX_PIECE, type Piece, PROGRESS } from "../node/progress.ts";
import { handleNodeEvent } from "../node_events.ts";
import { approveRequest, mustHold, rejectRequest } from "./device.ts";
import { recordRules } from "./exec_approvals.ts";
import { queuedAnswer, QueueWish, sendOrQueue } from "./node_queue.ts";

/** How long an invocation may take unless told. */
const DEFAULT_TIMEOUT_MS = 30_000;
const MAX_TIMEOUT_MS = 86_400_000;
/** Replaces what a node runs without asking. */
const RULES_COMMAND = "system.execApprovals.set";
/** Characters of a name somebody gives a node. */
const MAX_NAME = 100;

const node = {
  nodeId: text(),
  displayName: optional(text()),
  platform: optional(text()),
  version: optional(text()),
  coreVersion: optional(text()),
  uiVersion: optional(text()),
  deviceFamily: optional(text()),
  modelIdentifier: optional(text()),
  remoteIp: optional(text()),
  caps: list(text()),
  commands: list(text()),
  pathEnv: optional(text()),
  permissions: optional(mapOf(boolean())),
  connectedAtMs: optional(integer()),
  /** When it last came in; beside `connectedAtMs` for nodes that are gone. */
  lastConnectedAtMs: optional(integer()),
  /** When a node that is gone went, as far as this gateway saw it; else when it last came in. */
  lastSeenAtMs: optional(integer()),
  /** Round trip of the last ping. */
  latencyMs: optional(number()),
  paired: boolean(),
  connected: boolean(),
};
export const Node = object(node);
export type Node = Infer<typeof Node>;

const RequestId = object({ requestId: nonEmpty() });

export const nodeMethods = [
  method({
    name: "node.list",
    summary: "Nodes that are connected or paired, and what each offers",
    scope: "operator.read",
    params: object({}),
    result: object({ ts: integer(), nodes: list(Node) }),
    handle: (_, { gateway }) => ({ ts: Date.now(), nodes: listNodes(gateway) }),
  }),
  method({
    name: "node.describe",
    summary: "One node",
    scope: "operator.read",
    params: object({ nodeId: nonEmpty() }),
    result: object({ ts: integer(), ...node }),
    handle({ nodeId }, { gateway }) {
      const device = gateway.devices.find(nodeId);
      const isKnown = gateway.nodes.find(nodeId) || device?.roles.includes("node");
      if (!isKnown) throw unknownNode();
      return { ts: Date.now(), ...describe(nodeId, device, gateway, rulesOf(gateway)) };
    },
  }),
  method({
    name: "node.rename",
    summary: "Give a node, or any other device, a name of your own",
    scope: "operator.pairing",
    params: object({ nodeId: nonEmpty(), displayName: nonEmpty() }),
    result: object({ nodeId: text(), displayName: text() }),
    handle({ nodeId, displayName }, { gateway: { devices, legacyNodes, audit }, caller }) {
      const name = displayName.trim().slice(0, MAX_NAME);
      if (name === "") throw new RpcError("INVALID_REQUEST", "displayName required");
      const isDevice = devices.rename(nodeId, name);
      const isLegacy = legacyNodes.rename(nodeId, name);
      if (!isDevice && !isLegacy) throw unknownNode();
      audit.record("device.renamed", { by: nameOf(caller), deviceId: nodeId, displayName: name });
      return { nodeId, displayName: name };
    },
  }),
  method({
    name: "node.invoke",
    summary: "Have a node run one of its commands, and wait for the result",
    scope: "operator.write",
    params: object({
      nodeId: nonEmpty(),
      command: text(),
      params: anything(),
      timeoutMs: optional(integer({ min: 0, max: MAX_TIMEOUT_MS })),
      idempotencyKey: nonEmpty(),
      /** Tell this connection what the command writes while it runs, where the node can. */
      progress: optional(boolean()),
      /** Let it wait for a node that is not connected, at most so long. */
      queue: optional(QueueWish),
    }),
    result: object({
      ok: boolean(),
      nodeId: text(),
      command: text(),
      payload: anything(),
      payloadJSON: nullable(text()),
      ...queuedAnswer,
    }),
    async handle({ queue, timeoutMs, progress, ...asked }, { gateway, caller }) {
      const { nodeId, command } = asked;
      // Whoever writes a node's rules decides what runs there without being asked.
      if (command === RULES_COMMAND && !hasScope(caller.scopes, "operator.admin")) {
        throw missingScope("operator.admin");
      }
      const invocation = {
        ...asked,
        params: asked.params,
        timeoutMs: timeoutMs || DEFAULT_TIMEOUT_MS,
      };
      const onProgress = progress ? progressTo(asked, { gateway, caller }) : undefined;
      const send = async () =>
        await gateway.nodes.invoke({
          ...cleared(invocation, gateway, callerKey(caller)),
          onProgress,
        });
      const result = queue
        ? await sendOrQueue(invocation, queue, { gateway, caller }, send)
        : await send();
      if (command === RULES_COMMAND && !("queued" in result)) {
        recordRules(gateway.audit, { by: nameOf(caller), deviceId: nodeId });
      }
      return { ok: true, nodeId, command, ...result };
    },
  }),
  method({
    name: "node.invoke.result",
    summary: "What became of an invocation",
    scope: "node",
    params: object({
      id: nonEmpty(),
      nodeId: nonEmpty(),
      ok: boolean(),
      payload: anything(),
      payloadJSON: anything(),
      error: optional(nullable(object({
        code: optional(nonEmpty()),
        message: optional(nonEmpty()),
      }))),
    }),
    result: object({ ok: boolean(), ignored: optional(boolean()) }),
    handle({ id, nodeId, ok, payload, payloadJSON, error }, call) {
      if (nodeId !== nodeIdOf(call)) throw new RpcError("INVALID_REQUEST", "nodeId mismatch");
      const isText = typeof payloadJSON === "string";
      const isSettled = call.gateway.nodes.settle(id, nodeId, {
        ok,
        payload: isText || payloadJSON === undefined || payloadJSON === null
          ? payload
          : payloadJSON,
        ...(isText && { payloadJSON }),
        ...(error && { error }),
      });
      if (isSettled) return { ok: true };
      const { log, nodes: { lateResults } } = call.gateway;
      log.info("a result came too late", { nodeId, id, lateResults });
      return { ok: true, ignored: true };
    },
  }),
  method({
    name: PROGRESS,
    summary: "What an invocation writes while it runs",
    scope: "node",
    params: object({
      id: nonEmpty(),
      nodeId: nonEmpty(),
      seq: integer({ min: 0 }),
      stream: oneOf(["stdout", "stderr"]),
      data: text({ max: MAX_PIECE }),
    }),
    result: object({ ok: boolean(), ignored: optional(boolean()) }),
    handle({ id, nodeId, seq, stream, data }, call) {
      if (nodeId !== nodeIdOf(call)) throw new RpcError("INVALID_REQUEST", "nodeId mismatch");
      const { gateway: { nodes }, caller: { connId } } = call;
      const isWanted = nodes.progress(id, connId, { seq, stream, data });
      return isWanted ? { ok: true } : { ok: true, ignored: true };
    },
  }),
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
    async handle(told, call) {
      const answer = await handleNodeEvent(told, { ...call, nodeId: nodeIdOf(call) });
      return { ok: true, event: told.event, ...answer };
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
  method({
    name: "node.pair.request",
    summary: "Ask for a node to be paired, in the older store of nodes",
    scope: "operator.pairing",
    params: object({ ...nodeDescription, silent: optional(boolean()) }),
    result: object({ status: text(), request: LegacyRequest, created: boolean() }),
    handle(description, { gateway: { legacyNodes, events } }) {
      const { request, created } = legacyNodes.ask(description);
      if (created) events.publish("node.pair.requested", request);
      return { status: "pending", request, created };
    },
  }),
  method({
    name: "node.pair.list",
    summary: "Nodes that wait for approval, and nodes that have it",
    scope: "operator.pairing",
    params: object({}),
    result: object({ pending: list(anything()), paired: list(anything()) }),
    handle: (_, { gateway: { devices, legacyNodes } }) => ({
      pending: [
        ...legacyNodes.pending(),
        ...devices.pending().filter(({ role }) => role === "node").map((request) => ({
          requestId: request.requestId,
          nodeId: request.deviceId,
          displayName: request.displayName,
          platform: request.platform,
          remoteIp: request.remoteIp,
          isRepair: request.isRepair,
          ts: request.ts,
        })),
      ],
      paired: [
        ...legacyNodes.paired(),
        ...devices.list().filter(({ roles }) => roles.includes("node")).map((device) => ({
          nodeId: device.deviceId,
          displayName: device.displayName,
          platform: device.platform,
          remoteIp: device.remoteIp,
          createdAtMs: device.createdAtMs,
          approvedAtMs: device.approvedAtMs,
          lastConnectedAtMs: lastUseOf(device),
        })),
      ],
    }),
  }),
  method({
    name: "node.pair.approve",
    summary: "Let a waiting node in",
    scope: "operator.pairing",
    params: RequestId,
    result: object({ requestId: text(), node: anything() }),
    handle({ requestId }, { gateway, caller }) {
      if (gateway.devices.findPending(requestId)) {
        const device = approveRequest(gateway, caller, requestId);
        return { requestId, node: { ...device, nodeId: device.deviceId } };
      }
      const approved = gateway.legacyNodes.approve(requestId);
      if (!approved) throw new RpcError("INVALID_REQUEST", "unknown requestId");
      resolved(gateway, requestId, approved.nodeId, "approved");
      return { requestId, node: approved };
    },
  }),
  method({
    name: "node.pair.reject",
    summary: "Turn a waiting node away",
    scope: "operator.pairing",
    params: RequestId,
    result: object({ requestId: text(), nodeId: text() }),
    handle({ requestId }, { gateway, caller }) {
      if (gateway.devices.findPending(requestId)) {
        return { requestId, nodeId: rejectRequest(gateway, caller, requestId).deviceId };
      }
      const rejected = gateway.legacyNodes.reject(requestId);
      if (!rejected) throw new RpcError("INVALID_REQUEST", "unknown requestId");
      resolved(gateway, requestId, rejected.nodeId, "rejected");
      return { requestId, nodeId: rejected.nodeId };
    },
  }),
  method({
    name: "node.pair.verify",
    summary: "Whether a token is that of a node in the older store",
    scope: "operator.pairing",
    params: object({ nodeId: nonEmpty(), token: nonEmpty() }),
    result: object({ ok: boolean(), node: optional(LegacyNode) }),
    handle({ nodeId, token }, { gateway }) {
      const found = gateway.legacyNodes.verify(nodeId, token);
      return { ok: found !== undefined, ...(found && { node: found }) };
    },
  }),
  method({
    name: "node.pair.remove",
    summary: "Forget a node and disconnect it",
    scope: "operator.pairing",
    params: object({ nodeId: nonEmpty() }),
    result: object({ nodeId: text() }),
    handle({ nodeId }, { gateway, caller }) {
      if (gateway.devices.find(nodeId)) mustHold(caller, ["operator.admin"]);
      const isLegacy = gateway.legacyNodes.remove(nodeId);
      const isDevice = gateway.devices.removeRole(nodeId, "node");
      if (!isLegacy && !isDevice) throw unknownNode();
      if (isDevice) {
        const facts = { by: nameOf(caller), deviceId: nodeId, role: "node" };
        gateway.audit.record("device.removed", facts);
      }
      gateway.nodes.find(nodeId)?.connection.close(4001, "node removed");
      return { nodeId };
    },
  }),
];

/**
 * Passes pieces on to the connection that made the call, and to nobody else.
 *
 * @returns undefined for a call that came without a connection
 */
function progressTo(
  { nodeId, idempotencyKey }: { nodeId: string; idempotencyKey: string },
  { gateway, caller }: Pick<Call, "gateway" | "caller">,
): ((piece: Piece) => boolean) | undefined {
  const connection = gateway.connections.find(caller.connId);
  return connection && ((piece) =>
    // Who is behind does without: the room that is left is for what must not be missed (§1.2).
    connection.bufferedBytes <= MAX_BUFFERED_BYTES / 2 &&
    connection.sendEvent(PROGRESS, { idempotencyKey, nodeId, ...piece }));
}

/** A node is its device; without one, its client id (§4.6). */
export function nodeIdOf({ caller: { deviceId, client } }: Pick<Call, "caller">): string {
  return deviceId ?? client.id;
}

/** Connected ones first, then by name. */
function listNodes(gateway: Gateway): Node[] {
  const rules = rulesOf(gateway);
  const paired = gateway.devices.list().filter(({ roles }) => roles.includes("node"));
  const known = new Map(paired.map((device) => [device.deviceId, device]));
  const ids = new Set([...known.keys(), ...gateway.nodes.list().map(({ nodeId }) => nodeId)]);
  const nodes = [...ids].map((nodeId) => describe(nodeId, known.get(nodeId), gateway, rules));
  const name = ({ displayName, nodeId }: Node) => (displayName ?? nodeId).toLowerCase();
  return nodes.sort((a, b) =>
    Number(b.connected) - Number(a.connected) || (name(a) < name(b) ? -1 : 1)
  );
}

function describe(
  nodeId: string,
  device: PairedDevice | undefined,
  { nodes }: Pick<Gateway, "nodes">,
  rules: NodeRules,
): Node {
  const connected = nodes.find(nodeId);
  const client = connected?.connection.client;
  const latency = connected?.connection.latencyMs;
  const described: Node = {
    nodeId,
    displayName: device?.displayName ?? client?.displayName,
    platform: client?.platform ?? device?.platform,
    version: client?.version,
    deviceFamily: client?.deviceFamily,
    modelIdentifier: client?.modelIdentifier,
    remoteIp: device?.remoteIp,
    caps: [...new Set(connected?.caps ?? [])].sort(),
    commands: connected && client
      ? permittedCommands(connected.commands, kindOf(connected), rules)
      : [],
    pathEnv: connected?.pathEnv,
    permissions: connected?.permissions && { ...connected.permissions },
    connectedAtMs: connected?.connectedAtMs,
    lastConnectedAtMs: connected?.connectedAtMs ?? lastUseOf(device),
    lastSeenAtMs: connected ? undefined : nodes.lastSeenAtMs(nodeId) ?? lastUseOf(device),
    latencyMs: latency === undefined ? undefined : Math.round(latency * 10) / 10,
    paired: device !== undefined,
    connected: connected !== undefined,
  };
  return described;
}

function lastUseOf(device: PairedDevice | undefined): number | undefined {
  const token = device?.tokens.find(({ role }) => role === "node");
  return token?.lastUsedAtMs ?? token?.createdAtMs;
}

function resolved(
  { events }: Gateway,
  requestId: string,
  nodeId: string,
  decision: "approved" | "rejected",
) {
  events.publish("node.pair.resolved", { requestId, nodeId, decision, ts: Date.now() });
}

function unknownNode(): RpcError {
  return new RpcError("INVALID_REQUEST", "unknown nodeId");
}
