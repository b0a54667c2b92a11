// `node.json` (§9.1): what a node host goes by the next time it is started.

import { writePrivateFile } from "../../config/private_file.ts";
import {
  boolean,
  type Infer,
  integer,
  nonEmpty,
  oneOf,
  open,
  optional,
  problems,
  text,
} from "../../rpc/shape.ts";

const SavedSsh = open({
  /** `[user@]host[:port]` or an alias. */
  target: nonEmpty(),
  identity: optional(nonEmpty()),
  remotePort: optional(integer({ min: 1, max: 65_535 })),
  acceptNew: optional(boolean()),
});
export type SavedSsh = Infer<typeof SavedSsh>;

const SavedGateway = open({
  host: nonEmpty(),
  port: integer({ min: 1, max: 65_535 }),
  tls: optional(boolean()),
  tlsFingerprint: optional(text()),
  /** The machine the gateway is on, which ssh reaches. */
  ssh: optional(SavedSsh),
  /** What the configuration calls the gateway. */
  remote: optional(nonEmpty()),
  /** Only what was typed counts the next time; the rest is looked up anew. */
  from: optional(oneOf(["flags", "config"])),
});
export type SavedGateway = Infer<typeof SavedGateway>;

const NodeFile = open({
  version: oneOf([1]),
  /** Sent as `client.instanceId`. */
  nodeId: nonEmpty(),
  displayName: optional(text()),
  gateway: optional(SavedGateway),
});
export type NodeFile = Infer<typeof NodeFile>;

/** @returns undefined without a file, or for one that cannot be used; `warn` is told of the latter */
export async function readNodeFile(
  file: string,
  warn: (message: string) => void,
): Promise<NodeFile | undefined> {
  let raw: string;
  try {
    raw = await Deno.readTextFile(file);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
  try {
    const value = JSON.parse(raw);
    if (problems(value, NodeFile).length === 0) return value;
  } catch {
    // Not even JSON: said below, like any other content that is not ours.
  }
  warn(`Cannot use ${file}: it is damaged; a new one is made`);
}

export async function writeNodeFile(file: string, content: NodeFile): Promise<void> {
  await writePrivateFile(file, `${JSON.stringify(content, null, 2)}\n`);
}
