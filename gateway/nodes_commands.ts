// What the `zero nodes` commands do, but for `run`; and how a node is found by what people call it.

import { UsageError } from "../config/command.ts";
import { formatDuration, printable, type Terminal } from "../config/terminal.ts";
import type { Client } from "../rpc/client.ts";
import { RpcError } from "../rpc/error.ts";
import { findByBeginning, findNamed, findRequest } from "./choice.ts";
import { readDuration } from "./devices_cli.ts";
import { type CallFlags, type CallWorld, withGateway } from "./reach.ts";

/** A node as `node.list` tells of it, as far as it is shown. */
export interface NodeInfo {
  nodeId: string;
  displayName?: string;
  platform?: string;
  version?: string;
  remoteIp?: string;
  caps?: string[];
  commands?: string[];
  connectedAtMs?: number;
  lastConnectedAtMs?: number;
  lastSeenAtMs?: number;
  latencyMs?: number;
  paired?: boolean;
  connected?: boolean;
}

interface PendingNode {
  requestId: string;
  nodeId: string;
  displayName?: string;
  platform?: string;
  remoteIp?: string;
  isRepair?: boolean;
  ts: number;
}

interface PairedNode {
  nodeId: string;
  displayName?: string;
  platform?: string;
  remoteIp?: string;
  approvedAtMs?: number;
  lastConnectedAtMs?: number;
}

interface PairList {
  pending: PendingNode[];
  paired: PairedNode[];
}

interface FilterFlags {
  connected: boolean;
  "last-connected"?: string;
}

type NodeFlags = CallFlags & { node?: string };

/** Beyond what a node may take, for the way there and back. */
const TRAVEL_MS = 5_000;

export function runStatus(flags: CallFlags & FilterFlags, world: CallWorld, terminal: Terminal) {
  const fits = filterOf(flags);
  return withGateway(flags, world, terminal, async (client) => {
    const answer = await client.call("node.list", {}, deadline(flags)) as { nodes: NodeInfo[] };
    const nodes = answer.nodes.filter(fits);
    if (flags.json) return terminal.json({ ...answer, nodes });
    showNodes(nodes, terminal);
  });
}

export function runList(flags: CallFlags & FilterFlags, world: CallWorld, terminal: Terminal) {
  const fits = filterOf(flags);
  return withGateway(flags, world, terminal, async (client) => {
    const [list, nodes] = await Promise.all([pairList(client, flags), nodeList(client, flags)]);
    const live = new Map(nodes.map((node) => [node.nodeId, node]));
    const paired = list.paired.filter((one) => fits({ ...live.get(one.nodeId), ...one }));
    if (flags.json) return terminal.json({ pending: list.pending, paired });
    showPending(list.pending, terminal);
    showPaired(paired, live, terminal);
  });
}

export function runDescribe(
  flags: NodeFlags,
  args: readonly string[],
  world: CallWorld,
  terminal: Terminal,
) {
  const [query] = takeWords(args, [["NODE", flags.node]]);
  return withGateway(flags, world, terminal, async (client) => {
    const { nodeId } = findNode(await nodeList(client, flags), query);
    const node = await client.call("node.describe", { nodeId }, deadline(flags)) as NodeInfo;
    if (flags.json) return terminal.json(node);
    showNode(node, terminal);
  });
}

export function runPending(flags: CallFlags, world: CallWorld, terminal: Terminal) {
  return withGateway(flags, world, terminal, async (client) => {
    const { pending } = await pairList(client, flags);
    if (flags.json) return terminal.json({ pending });
    if (pending.length === 0) return terminal.out("No node waits for approval");
    showPending(pending, terminal);
  });
}

export function runDecision(
  decision: "approve" | "reject",
  query: string,
  flags: CallFlags,
  world: CallWorld,
  terminal: Terminal,
) {
  return withGateway(flags, world, terminal, async (client) => {
    const { requestId } = findRequest(
      (await pairList(client, flags)).pending,
      query,
      "zero nodes pending",
    );
    terminal.json(await client.call(`node.pair.${decision}`, { requestId }, deadline(flags)));
  });
}

export function runRename(
  flags: NodeFlags & { name?: string },
  args: readonly string[],
  world: CallWorld,
  terminal: Terminal,
) {
  const [query, displayName] = takeWords(args, [["NODE", flags.node], ["NAME", flags.name]]);
  return withGateway(flags, world, terminal, async (client) => {
    const { nodeId } = findNode(await knownNodes(client, flags), query);
    const answer = await client.call("node.rename", { nodeId, displayName }, deadline(flags));
    if (flags.json) return terminal.json(answer);
    terminal.out(`Renamed ${short(nodeId)} to ${printable(displayName)}`);
  });
}

export function runRemove(
  flags: NodeFlags,
  args: readonly string[],
  world: CallWorld,
  terminal: Terminal,
) {
  const [query] = takeWords(args, [["NODE", flags.node]]);
  return withGateway(flags, world, terminal, async (client) => {
    const node = findNode(await knownNodes(client, flags), query);
    const { nodeId } = node;
    const answer = await client.call("node.pair.remove", { nodeId }, deadline(flags));
    if (flags.json) return terminal.json(answer);
    terminal.out(`Removed ${nameOf(node)}`);
  });
}

export async function runInvoke(
  flags: NodeFlags & {
    command?: string;
    params?: string;
    "invoke-timeout": number;
    "idempotency-key"?: string;
    queue?: string;
  },
  args: readonly string[],
  world: CallWorld,
  terminal: Terminal,
) {
  const [query, command, given] = takeWords(args, [
    ["NODE", flags.node],
    ["COMMAND", flags.command],
    ["PARAMS", flags.params, "{}"],
  ]);
  const ttlMs = flags.queue === undefined ? undefined : readDuration(flags.queue, "--queue");
  const params = readParams(given === "-" ? await terminal.readStdin() : given);
  return await withGateway(flags, world, terminal, async (client) => {
    const node = findNode(await nodeList(client, flags), query);
    using _ = terminal.progress(`Waiting for ${nameOf(node)}`);
    const answer = await invoke(client, {
      nodeId: node.nodeId,
      command,
      params,
      timeoutMs: flags["invoke-timeout"],
      idempotencyKey: flags["idempotency-key"],
      ...(ttlMs !== undefined && { queue: { ttlMs } }),
    }, flags);
    terminal.json(answer);
  });
}

export function runNotify(
  flags: NodeFlags & {
    title?: string;
    body?: string;
    sound?: string;
    priority?: string;
    delivery: string;
    "invoke-timeout": number;
  },
  args: readonly string[],
  world: CallWorld,
  terminal: Terminal,
) {
  const [query] = takeWords(args, [["NODE", flags.node]]);
  const { title, body, sound, priority, delivery } = flags;
  if (!title?.trim() && !body?.trim()) {
    throw new UsageError("Cannot notify: there is nothing to show", {
      hint: "Write --title TEXT, --body TEXT or both",
    });
  }
  return withGateway(flags, world, terminal, async (client) => {
    const node = findNode(await nodeList(client, flags), query);
    using _ = terminal.progress(`Waiting for ${nameOf(node)}`);
    const answer = await invoke(client, {
      nodeId: node.nodeId,
      command: "system.notify",
      params: { title: title ?? "", body: body ?? "", sound, priority, delivery },
      timeoutMs: flags["invoke-timeout"],
    }, flags);
    if (flags.json) return terminal.json(answer);
    terminal.out(`Shown on ${nameOf(node)}`);
  });
}

/** An entry of `node.queue.list`, as far as it is shown. */
interface Queued {
  queueId: string;
  nodeId: string;
  command: string;
  state: string;
  delivery: string;
  by: string;
  createdAtMs: number;
  expiresAtMs: number;
  sentAtMs?: number;
  endedAtMs?: number;
  error?: { message: string };
}

/** Without ID all of them; with one that entry and what its node answered. */
export function runQueueList(
  flags: NodeFlags,
  query: string | undefined,
  world: CallWorld,
  terminal: Terminal,
) {
  return withGateway(flags, world, terminal, async (client) => {
    const nodes = await nodeList(client, flags);
    const nodeId = flags.node === undefined ? undefined : findNode(nodes, flags.node).nodeId;
    const answer = await queueList(client, { nodeId }, flags);
    if (query === undefined) {
      if (flags.json) return terminal.json(answer);
      return showQueue(answer.entries, nodes, terminal);
    }
    const { queueId } = findQueued(answer.entries, query);
    terminal.json((await queueList(client, { queueId }, flags)).entries[0]);
  });
}

export function runQueueCancel(
  flags: CallFlags,
  query: string,
  world: CallWorld,
  terminal: Terminal,
) {
  return withGateway(flags, world, terminal, async (client) => {
    const { entries } = await queueList(client, {}, flags);
    const { queueId, command } = findQueued(entries, query);
    const answer = await client.call("node.queue.cancel", { queueId }, deadline(flags));
    if (flags.json) return terminal.json(answer);
    terminal.out(`Cancelled ${printable(command)}`);
  });
}

/** What `node.invoke` answers. */
export interface Invoked {
  ok: boolean;
  nodeId: string;
  command: string;
  payload: unknown;
  payloadJSON: string | null;
}

/** @throws {RpcError} as §7.8 words it */
export async function invoke(
  client: Client,
  { idempotencyKey = crypto.randomUUID(), ...invocation }: {
    nodeId: string;
    command: string;
    params: unknown;
    timeoutMs: number;
    idempotencyKey?: string;
    /** Events tell what the command writes while it runs. */
    progress?: true;
    /** It may wait for a node that is not connected. */
    queue?: { ttlMs: number };
  },
  flags: Pick<CallFlags, "timeout">,
): Promise<Invoked> {
  try {
    return await client.call("node.invoke", { ...invocation, idempotencyKey }, {
      timeoutMs: Math.max(flags.timeout, invocation.timeoutMs + TRAVEL_MS),
    }) as Invoked;
  } catch (error) {
    const fix = error instanceof RpcError ? fixFor(error) : undefined;
    if (!fix) throw error;
    const { code, message, details } = error as RpcError;
    throw new RpcError(code, message, { details: { ...details as object, fix }, cause: error });
  }
}

/** What whoever typed the command can do; the gateway does not know that there is one. */
function fixFor({ details }: RpcError): string | undefined {
  const { code, reason, nodeError } = (details ?? {}) as {
    code?: unknown;
    reason?: unknown;
    nodeError?: { code?: unknown } | null;
  };
  if (code === "NOT_CONNECTED") {
    return 'zero node run on that machine; "zero nodes invoke --queue 10m" waits for it';
  }
  if (nodeError?.code === "TIMEOUT") return "--invoke-timeout MS waits longer";
  if (reason === "command not allowlisted") {
    return "gateway.nodes.allowCommands and .denyCommands in the gateway's configuration";
  }
  if (reason === "command not declared by node" || reason === "node did not declare commands") {
    return "zero nodes describe NODE lists the commands it has";
  }
}

export async function nodeList(
  client: Client,
  flags: Pick<CallFlags, "timeout">,
): Promise<NodeInfo[]> {
  const answer = await client.call("node.list", {}, deadline(flags));
  return (answer as { nodes: NodeInfo[] }).nodes;
}

/** @throws {RpcError} with the texts of §11.3 when none fits, or several do */
export function findNode<N extends NodeInfo>(nodes: readonly N[], query: string): N {
  return findNamed(nodes, query, "node", (node) => ({
    id: node.nodeId,
    name: node.displayName,
    address: node.remoteIp,
    shown: nameOf(node),
  }));
}

/** `Kitchen (3f2a9c1e77b0)`. */
export function nameOf({ nodeId, displayName }: NodeInfo): string {
  return displayName ? `${printable(displayName)} (${short(nodeId)})` : short(nodeId);
}

/**
 * Reads what may be given as an option or by its place.
 *
 * @param slots name, value of the option, and what holds when neither is given
 * @throws {UsageError} when one is missing, or there are too many
 */
export function takeWords(
  args: readonly string[],
  slots: readonly (readonly [name: string, flag: string | undefined, fallback?: string])[],
): string[] {
  const rest = [...args];
  const words = slots.map(([name, flag, fallback]) => {
    const word = flag ?? rest.shift() ?? fallback;
    if (word === undefined || word.trim() === "") {
      throw new UsageError(`Cannot go on: --${name.toLowerCase()} is missing`, {
        hint: `Write --${name.toLowerCase()} ${name}`,
      });
    }
    return word;
  });
  if (rest.length > 0) {
    throw new UsageError("Cannot go on: there are arguments left over", {
      hint: `What is given as an option is not given again by its place`,
    });
  }
  return words;
}

function readParams(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new UsageError("Cannot read the params: they are not valid JSON", {
      hint: `Write them like '{"bins":["sh"]}'`,
      cause,
    });
  }
}

/** @throws {UsageError} what is no duration */
function filterOf(flags: FilterFlags): (node: Partial<NodeInfo>) => boolean {
  const within = flags["last-connected"] === undefined
    ? Infinity
    : readDuration(flags["last-connected"], "--last-connected");
  const sinceMs = Date.now() - within;
  return ({ connected, connectedAtMs, lastConnectedAtMs }) =>
    (connected || !flags.connected) &&
    (within === Infinity || connected === true ||
      (connectedAtMs ?? lastConnectedAtMs ?? -Infinity) >= sinceMs);
}

function deadline({ timeout }: Pick<CallFlags, "timeout">) {
  return { timeoutMs: timeout };
}

async function pairList(client: Client, flags: CallFlags): Promise<PairList> {
  return await client.call("node.pair.list", {}, deadline(flags)) as PairList;
}

/** Those of `node.list`, and those that only the older store has. */
async function knownNodes(client: Client, flags: CallFlags): Promise<NodeInfo[]> {
  const [nodes, { paired }] = await Promise.all([nodeList(client, flags), pairList(client, flags)]);
  const ids = new Set(nodes.map(({ nodeId }) => nodeId));
  return [...nodes, ...paired.filter(({ nodeId }) => !ids.has(nodeId))];
}

async function queueList(
  client: Client,
  params: { nodeId?: string; queueId?: string },
  flags: CallFlags,
): Promise<{ entries: Queued[] }> {
  return await client.call("node.queue.list", params, deadline(flags)) as { entries: Queued[] };
}

function findQueued(entries: readonly Queued[], query: string): Queued {
  const words = { what: "invocation", idName: "queueId", fix: "zero nodes queue" };
  return findByBeginning(entries, query, ({ queueId }) => queueId, words);
}

function showQueue(
  entries: readonly Queued[],
  nodes: readonly NodeInfo[],
  terminal: Terminal,
) {
  if (entries.length === 0) return terminal.out("Nothing is queued");
  const names = new Map(nodes.map((node) => [node.nodeId, nameOf(node)]));
  terminal.table(
    entries.map((one) => [
      one.queueId.slice(0, 8),
      names.get(one.nodeId) ?? short(one.nodeId),
      printable(one.command),
      progressOf(one),
      printable(one.by),
    ]),
    { header: ["QUEUED", "NODE", "COMMAND", "STATE", "BY"] },
  );
}

function progressOf({ state, delivery, expiresAtMs, sentAtMs, endedAtMs, error }: Queued): string {
  const now = Date.now();
  const ago = (ms = now) => `${formatDuration(Math.max(0, now - ms))} ago`;
  switch (state) {
    case "waiting":
      return `waiting, ${formatDuration(Math.max(0, expiresAtMs - now))} left`;
    case "sent":
      return `sent ${ago(sentAtMs)}, no answer yet`;
    case "failed":
      return `failed ${ago(endedAtMs)}, delivery: ${delivery}: ${printable(error?.message ?? "")}`;
    default:
      return `${state} ${ago(endedAtMs)}`;
  }
}

function showNodes(nodes: readonly NodeInfo[], terminal: Terminal) {
  if (nodes.length === 0) return terminal.out("No nodes");
  const { green, dim } = terminal.style;
  terminal.table(
    nodes.map((node) => [
      short(node.nodeId),
      printable(node.displayName ?? "unnamed"),
      printable(node.platform ?? ""),
      printable(node.remoteIp ?? ""),
      node.connected ? green(stateOf(node)) : dim(stateOf(node)),
      node.commands?.length ? node.commands.map(printable).join(", ") : "none",
    ]),
    { header: ["NODE", "NAME", "PLATFORM", "FROM", "STATE", "COMMANDS"] },
  );
}

function showNode(node: NodeInfo, terminal: Terminal) {
  const list = (texts: readonly string[] = []) => texts.map(printable).join(", ") || "none";
  terminal.fields([
    ["Node", node.nodeId],
    ["Name", node.displayName && printable(node.displayName)],
    ["State", stateOf(node)],
    ["Paired", node.paired ? "yes" : "no"],
    ["Platform", node.platform && printable(node.platform)],
    ["Version", node.version && printable(node.version)],
    ["Address", node.remoteIp],
    ["Latency", node.latencyMs === undefined ? undefined : `${node.latencyMs} ms`],
    ["Capabilities", list(node.caps)],
    ["Commands", list(node.commands)],
  ]);
}

function showPending(pending: readonly PendingNode[], terminal: Terminal) {
  const now = Date.now();
  terminal.table(
    pending.map((one) => [
      one.requestId,
      nameOf(one),
      printable(one.platform ?? ""),
      printable(one.remoteIp ?? "not known"),
      `${formatDuration(now - one.ts)} ago${one.isRepair ? ", known node" : ""}`,
    ]),
    { header: ["WAITING", "NODE", "PLATFORM", "FROM", "ASKED"] },
  );
  if (pending.length > 0) terminal.out();
}

function showPaired(
  paired: readonly PairedNode[],
  live: ReadonlyMap<string, NodeInfo>,
  terminal: Terminal,
) {
  if (paired.length === 0) return terminal.out("No paired nodes");
  terminal.table(
    paired.map((one) => [
      short(one.nodeId),
      printable(one.displayName ?? "unnamed"),
      printable(one.platform ?? ""),
      printable(one.remoteIp ?? ""),
      stateOf({ ...live.get(one.nodeId), ...one }),
    ]),
    { header: ["PAIRED", "NAME", "PLATFORM", "FROM", "STATE"] },
  );
}

function stateOf(
  { connected, connectedAtMs, lastConnectedAtMs, lastSeenAtMs }: Partial<NodeInfo>,
): string {
  const ago = (ms: number | undefined) => formatDuration(Math.max(0, Date.now() - (ms ?? 0)));
  if (connected) return connectedAtMs ? `connected for ${ago(connectedAtMs)}` : "connected";
  if (lastSeenAtMs) return `offline, last seen ${ago(lastSeenAtMs)} ago`;
  return lastConnectedAtMs ? `offline, connected ${ago(lastConnectedAtMs)} ago` : "offline";
}

function short(nodeId: string): string {
  return printable(nodeId.slice(0, 12));
}
