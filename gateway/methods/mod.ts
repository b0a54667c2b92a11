// The method table: every method there is, one family a file.

import type { Method } from "../../rpc/method.ts";
import type { Call } from "../gateway.ts";
import { agentMethods } from "./agent.ts";
import { approvalMethods } from "./approval.ts";
import { chatMethods } from "./chat.ts";
import { channelMethods } from "./channel.ts";
import { configMethods } from "./config.ts";
import { cronMethods } from "./cron.ts";
import { deviceMethods } from "./device.ts";
import { execApprovalsMethods } from "./exec_approvals.ts";
import { gatewayMethods } from "./gateway.ts";
import { modelMethods } from "./model.ts";
import { nodeMethods } from "./node.ts";
import { nodeQueueMethods } from "./node_queue.ts";
import { sessionMethods } from "./sessions.ts";
import { systemMethods } from "./system.ts";
import { voiceMethods } from "./voice.ts";

export const METHODS: readonly Method<Call>[] = [
  ...systemMethods,
  ...voiceMethods,
  ...configMethods,
  ...deviceMethods,
  ...approvalMethods,
  ...execApprovalsMethods,
  ...nodeMethods,
  ...nodeQueueMethods,
  ...sessionMethods,
  ...agentMethods,
  ...chatMethods,
  ...modelMethods,
  ...channelMethods,
  ...cronMethods,
  ...gatewayMethods,
];
