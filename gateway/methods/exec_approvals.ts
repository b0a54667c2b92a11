// Which commands may run without asking (§7.10): the gateway's own file, and those of nodes.

import { RpcError } from "../../rpc/error.ts";
import {
  anything,
  boolean,
  integer,
  list,
  nonEmpty,
  nullable,
  object,
  open,
  optional,
  text,
} from "../../rpc/shape.ts";
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
