// Which commands may run without asking (§7.10): the gateway's own file, and those of nodes.

import { RpcError } from "../../rpc/error.ts";
import { anything, boolean, nonEmpty, nullable, object, optional, text } from "../../rpc/shape.ts";
import { type NodeRules, platformClass, refuseCommand } from "../command_policy.ts";
import { type Gateway, method, nameOf } from "../gateway.ts";
import {
  ApprovalsError,
  type ApprovalsFault,
  ApprovalsFile,
  approvalsPaths,
  ApprovalsStore,
} from "../node/approvals_file.ts";

const NODE_TIMEOUT_MS = 30_000;

const Snapshot = object({ path: text(), exists: boolean(), hash: text(), file: ApprovalsFile });

const FAULTS: Record<ApprovalsFault, string> = {
  "file required": "exec approvals file is required",
  "file invalid": "exec approvals file is not valid",
  "base hash required": "exec approvals base hash required; re-run exec.approvals.get and retry",
  "changed": "exec approvals changed since last load; re-run exec.approvals.get and retry",
};

export const execApprovalsMethods = [
  method({
    name: "exec.approvals.get",
    summary: "Which commands may run on the gateway's own machine",
    scope: "operator.admin",
    params: object({}),
    result: Snapshot,
    handle: (_, { gateway }) => storeOf(gateway).snapshot(),
  }),
  method({
    name: "exec.approvals.set",
    summary: "Replace the rules of the gateway's own machine, on top of what was read",
    scope: "operator.admin",
    params: object({ file: anything(), baseHash: optional(nullable(text())) }),
    result: Snapshot,
    async handle({ file, baseHash }, { gateway, caller }) {
      try {
        const snapshot = await storeOf(gateway).replace(file, baseHash ?? undefined);
        const facts = { by: nameOf(caller), reason: "exec approvals of the gateway" };
        gateway.audit.record("config.changed", facts);
        return snapshot;
      } catch (cause) {
        if (!(cause instanceof ApprovalsError)) throw cause;
        const detail = cause.fault === "file invalid" ? `: ${cause.message}` : "";
        throw new RpcError("INVALID_REQUEST", `${FAULTS[cause.fault]}${detail}`, { cause });
      }
    },
  }),
  method({
    name: "exec.approvals.node.get",
    summary: "Which commands may run on a node",
    scope: "operator.admin",
    params: object({ nodeId: nonEmpty() }),
    result: anything(),
    handle: ({ nodeId }, { gateway }) => askNode(gateway, nodeId, "system.execApprovals.get", {}),
  }),
  method({
    name: "exec.approvals.node.set",
    summary: "Replace the rules of a node, on top of what was read",
    scope: "operator.admin",
    params: object({
      nodeId: nonEmpty(),
      file: anything(),
      baseHash: optional(nullable(text())),
    }),
    result: anything(),
    async handle({ nodeId, file, baseHash }, { gateway, caller }) {
      const params = { file, ...(baseHash && { baseHash }) };
      const answer = await askNode(gateway, nodeId, "system.execApprovals.set", params);
      const facts = { by: nameOf(caller), deviceId: nodeId, reason: "exec approvals of a node" };
      gateway.audit.record("config.changed", facts);
      return answer;
    },
  }),
];

function storeOf({ paths }: Gateway): ApprovalsStore {
  return new ApprovalsStore(approvalsPaths(paths));
}

/** @throws {RpcError} as `node.invoke` words it (§7.8) */
async function askNode(
  gateway: Gateway,
  nodeId: string,
  command: string,
  params: unknown,
): Promise<unknown> {
  const node = gateway.nodes.find(nodeId);
  if (node) {
    const { platform = "", deviceFamily } = node.connection.client ?? {};
    const rules: NodeRules = gateway.config.reading.config.gateway?.nodes ?? {};
    const kind = platformClass(platform, deviceFamily);
    const reason = refuseCommand(command, node.commands, kind, rules);
    if (reason) {
      throw new RpcError("INVALID_REQUEST", "node command not allowed", {
        details: { reason, command },
      });
    }
  }
  const { payload } = await gateway.nodes.invoke({
    nodeId,
    command,
    params,
    timeoutMs: NODE_TIMEOUT_MS,
    idempotencyKey: crypto.randomUUID(),
  });
  return payload;
}
