// How a command calls a gateway without costing those that do not: what a call needs is loaded here.

import type { Terminal } from "../config/terminal.ts";
import type { Client } from "../rpc/client.ts";
import type { CallFlags, CallWorld } from "./reach.ts";

/** Loads what a call needs, connects, and does something. @returns the exit code; nothing is 0 */
export async function calling(
  flags: CallFlags,
  world: CallWorld,
  terminal: Terminal,
  use: (client: Client) => Promise<number | void>,
): Promise<number | void> {
  const { withGateway } = await import("./reach.ts");
  return await withGateway(flags, world, terminal, use);
}
