// Which commands may run without asking (§7.10): the gateway's own file, and those of nodes.

import { RpcError } from "../../rpc/error.ts";
import { anything, boolean, nonEmpty, nullable, object, optional, text } from "../../rpc/shape.ts";
import type { AuditTrail } from "../audit.ts";
import { type Call, callerKey, type Gateway, method, nameOf } from "../gateway.ts";
import { cleared } from "../invocation.ts";
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
        recordRules(gateway.audit, { by: nameOf(caller) });
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
    handle: ({ nodeId }, call) => askNode(call, nodeId, "system.execApprovals.get", {}),
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
    async handle({ nodeId, file, baseHash }, call) {
      const params = { file, ...(baseHash && { baseHash }) };
      const answer = await askNode(call, nodeId, "system.execApprovals.set", params);
      recordRules(call.gateway.audit, { by: nameOf(call.caller), deviceId: nodeId });
      return answer;
    },
  }),
];

/** Notes that somebody replaced the rules of the gateway, or of a node. */
export function recordRules(audit: AuditTrail, who: { by: string; deviceId?: string }) {
  audit.record("approvals.changed", { ...who, reason: "rules replaced" });
}

function storeOf({ paths }: Gateway): ApprovalsStore {
  return new ApprovalsStore(approvalsPaths(paths));
}

/** @throws {RpcError} as `node.invoke` words it (§7.8) */
async function askNode(
  { gateway, caller }: Pick<Call, "gateway" | "caller">,
  nodeId: string,
  command: string,
  params: unknown,
): Promise<unknown> {
  const invocation = {
    nodeId,
    command,
    params,
    timeoutMs: NODE_TIMEOUT_MS,
    idempotencyKey: crypto.randomUUID(),
  };
  const { payload } = await gateway.nodes.invoke(cleared(invocation, gateway, callerKey(caller)));
  return payload;
}
