// What the agent can do beside talking (D21): its tools, and what they need of the gateway.

import type { JsonSchema } from "../../rpc/shape.ts";
import type { Address, OutgoingMessage } from "../channels/channel.ts";
import type { RunOrigin } from "./runs.ts";

export interface AgentTool {
  name: string;
  description: string;
  parameters: JsonSchema;
  /** Not even offered to runs whose origin is no owner. */
  isOwnerOnly: boolean;
  /** False where this gateway has nothing to do it with. */
  isThere?(): boolean;
  /** What is wrong with these arguments; undefined: nothing. */
  check?(args: Record<string, unknown>): string | undefined;
  /**
   * Ends soon after `signal` aborts, or is left behind. What it throws goes back to the model as an
   * error with the tool's name.
   */
  run(args: Record<string, unknown>, context: ToolContext): Promise<ToolResult>;
}

export interface ToolResult {
  text: string;
  /** `content` is base64. */
  images?: readonly { mimeType: string; content: string }[];
  isError?: boolean;
}

export interface ToolContext {
  runId: string;
  /** Canonical key of the session. */
  sessionKey: string;
  agentId: string;
  origin: RunOrigin;
  /** The chat that waits for the reply; approval questions go there, too. */
  deliverTo?: Address;
  /** How many sessions have passed the message on. */
  hops: number;
  signal: AbortSignal;
  /** Settles when the run has ended, however it ended. */
  ended: Promise<void>;
  /** Tells listeners how far it is (`phase: "update"` of §8.2). */
  update(partialResult: unknown): void;
  /** Says something in the chat that waits for the reply; once per `name` and run. */
  say(message: OutgoingMessage, name: string): void;
}

/**
 * Calls a method of the gateway on behalf of a run, with every scope: what may be asked for is decided
 * by which tools a run is offered.
 *
 * @throws {RpcError}
 */
export type GatewayCall = (
  method: string,
  params: unknown,
  context: ToolContext,
) => Promise<unknown>;
