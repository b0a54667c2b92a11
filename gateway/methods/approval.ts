// Asking a person whether a command may run, and answering (§7.10).

import { RpcError } from "../../rpc/error.ts";
import {
  boolean,
  integer,
  list,
  mapOf,
  nonEmpty,
  nullable,
  object,
  optional,
  text,
} from "../../rpc/shape.ts";
import {
  ApprovalAnswer,
  ApprovalList,
  type ApprovalRequest,
  type Decision,
  DECISIONS,
} from "../approvals.ts";
import { callerKey, method, nameOf } from "../gateway.ts";

const DEFAULT_TIMEOUT_MS = 120_000;

const maybe = () => optional(nullable(text()));

export const approvalMethods = [
  method({
    name: "exec.approval.request",
    summary: "Ask a person whether a command may run, and wait for the answer",
    scope: "operator.approvals",
    params: object({
      id: optional(nonEmpty()),
      command: nonEmpty(),
      cwd: maybe(),
      host: maybe(),
      security: maybe(),
      ask: maybe(),
      agentId: maybe(),
      resolvedPath: maybe(),
      sessionKey: maybe(),
      timeoutMs: optional(integer({ min: 1, max: 2_147_483_647 })),
      nodeId: optional(text()),
      argv: optional(list(text())),
      env: optional(mapOf(text())),
      runId: optional(text()),
    }),
    result: ApprovalAnswer,
    handle(params, { gateway, caller }) {
      const { id = crypto.randomUUID(), command, timeoutMs = DEFAULT_TIMEOUT_MS } = params;
      const request = {
        command,
        cwd: params.cwd ?? null,
        host: params.host ?? null,
        security: params.security ?? null,
        ask: params.ask ?? null,
        agentId: params.agentId ?? null,
        resolvedPath: params.resolvedPath ?? null,
        sessionKey: params.sessionKey ?? null,
        nodeId: params.nodeId,
        argv: params.argv,
        env: params.env,
        runId: params.runId,
      };
      return gateway.approvals.ask(id, {
        request,
        binding: {
          caller: callerKey(caller),
          command,
          cwd: request.cwd,
          nodeId: params.nodeId,
          argv: params.argv,
          env: params.env,
          sessionKey: request.sessionKey,
          agentId: request.agentId,
        },
        timeoutMs,
        askerLeft: caller.closed,
      });
    },
  }),
  method({
    name: "exec.approval.resolve",
    summary: "Answer whether a command may run",
    scope: "operator.approvals",
    params: object({ id: nonEmpty(), decision: nonEmpty() }),
    result: object({ ok: boolean() }),
    handle({ id, decision }, { gateway, caller }) {
      if (!isDecision(decision)) throw new RpcError("INVALID_REQUEST", "invalid decision");
      const { client } = caller;
      const request = gateway.approvals.find(id)?.request;
      if (!request || !gateway.approvals.resolve(id, decision, client.displayName ?? client.id)) {
        throw new RpcError("APPROVAL_NOT_FOUND", "unknown approval id");
      }
      if (decision === "allow-always") {
        gateway.audit.record("approvals.changed", {
          by: nameOf(caller),
          deviceId: request.nodeId,
          reason: `always allowed: ${programOf(request)}`,
        });
      }
      return { ok: true };
    },
  }),
  method({
    name: "exec.approval.list",
    summary: "Commands that wait for a person's answer, oldest first",
    scope: "operator.approvals",
    params: object({}),
    result: ApprovalList,
    handle: (_, { gateway }) => ({ pending: gateway.approvals.list() }),
  }),
];

/** Of a command only the program: what follows may hold a secret. */
function programOf({ argv, command }: ApprovalRequest): string {
  return (argv?.[0] ?? command.trim().split(/\s/)[0]).slice(0, 200);
}

function isDecision(text: string): text is Decision {
  return (DECISIONS as readonly string[]).includes(text);
}
