// `zero devices` and `zero audit`: who may come in, who asks to, and what became of it.

import { type Command, command, EXIT_FAILURE, RPC_FLAGS, UsageError } from "../config/command.ts";
import { formatDuration, printable, type Terminal } from "../config/terminal.ts";
import type { Client } from "../rpc/client.ts";
import { calling } from "./calling.ts";
import { findNamed, findRequest } from "./choice.ts";
import type { CallFlags, CallWorld } from "./reach.ts";

/** What `device.pair.list` says, as far as it is shown. */
interface DeviceList {
  pending: Pending[];
  paired: Paired[];
}

interface Described {
  deviceId: string;
  displayName?: string;
  clientId?: string;
  platform?: string;
  remoteIp?: string;
  scopes?: string[];
}

interface Pending extends Described {
  requestId: string;
  role?: string;
  isRepair: boolean;
  ts: number;
}

interface Paired extends Described {
  roles: string[];
  approvedAtMs: number;
  tokens: { role: string; scopes: string[]; lastUsedAtMs?: number; revokedAtMs?: number }[];
}

interface Invite {
  inviteId: string;
  secret: string;
  role: "operator" | "node";
  scopes: string[];
  expiresAtMs: number;
  usedAtMs?: number;
  usedBy?: string;
}

const ROLE_FLAGS = {
  role: { kind: "text", choices: ["operator", "node"], summary: "Role of the device" },
} as const;

export function devicesCommands(world: CallWorld): Command[] {
  return [
    command({
      path: ["devices", "list"],
      aliases: [["devices"]],
      summary: "Devices that are paired, and devices that ask to be",
      flags: RPC_FLAGS,
      run: ({ flags }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const list = await listDevices(client);
          if (flags.json) return terminal.json(list);
          showPending(list.pending, terminal);
          showPaired(list.paired, terminal);
        }),
    }),

    command({
      path: ["devices", "pending"],
      summary: "Devices that wait for approval",
      flags: {
        ...RPC_FLAGS,
        watch: { kind: "boolean", short: "w", summary: "Go on with new ones until stopped" },
      },
      details: "With --watch and --json every request is one document on a line of its own.",
      run: ({ flags }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const { pending } = await listDevices(client);
          if (!flags.watch) {
            if (flags.json) return terminal.json({ pending });
            return showPending(pending, terminal, { isAlways: true });
          }
          await watchPending(client, pending, flags, terminal);
        }),
    }),

    command({
      path: ["devices", "approve"],
      summary: "Let a waiting device in, with exactly what it asks for",
      usage: "[REQUEST]",
      flags: {
        ...RPC_FLAGS,
        yes: { kind: "boolean", short: "y", summary: "Approve the single waiting one unasked" },
      },
      details:
        "REQUEST is the id of a request or its beginning. Without it the one that waits is " +
        "shown and asked about; when several wait, you choose.",
      examples: ["zero devices approve", "zero devices approve 3f2a9c1e"],
      run: ({ flags, args: [query] }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const { pending } = await listDevices(client);
          const request = query === undefined
            ? await chooseRequest(pending, flags, terminal)
            : findRequest(pending, query, "zero devices pending");
          if (!request) return EXIT_FAILURE;
          const { requestId } = request;
          const answer = await client.call("device.pair.approve", { requestId });
          if (flags.json) return terminal.json(answer);
          terminal.out(`Approved ${nameOf(request)} as ${request.role}: ${scopesOf(request)}`);
        }),
    }),

    command({
      path: ["devices", "reject"],
      summary: "Turn a waiting device away",
      usage: "REQUEST",
      flags: RPC_FLAGS,
      run: ({ flags, args: [query] }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const request = findRequest(
            (await listDevices(client)).pending,
            query,
            "zero devices pending",
          );
          const { requestId } = request;
          const answer = await client.call("device.pair.reject", { requestId });
          if (flags.json) return terminal.json(answer);
          terminal.out(`Rejected ${nameOf(request)}`);
        }),
    }),

    command({
      path: ["devices", "rename"],
      summary: "Give a device a name of your own",
      usage: "DEVICE NAME",
      flags: RPC_FLAGS,
      run: ({ flags, args: [query, displayName] }, terminal) =>
        onDevice(query, flags, world, terminal, async (client, { deviceId: nodeId }) => {
          const answer = await client.call("node.rename", { nodeId, displayName });
          if (flags.json) return terminal.json(answer);
          terminal.out(`Renamed ${short(nodeId)} to ${printable(displayName)}`);
        }),
    }),

    command({
      path: ["devices", "remove"],
      summary: "Forget a device and close its connections",
      usage: "DEVICE",
      flags: RPC_FLAGS,
      run: ({ flags, args: [query] }, terminal) =>
        onDevice(query, flags, world, terminal, async (client, device) => {
          const { deviceId } = device;
          const answer = await client.call("device.pair.remove", { deviceId });
          if (flags.json) return terminal.json(answer);
          terminal.out(`Removed ${nameOf(device)}`);
        }),
    }),

    command({
      path: ["devices", "rotate"],
      summary: "Make a new token for a device; the old one works until the new one is used",
      usage: "DEVICE",
      flags: {
        ...RPC_FLAGS,
        ...ROLE_FLAGS,
        scope: {
          kind: "list",
          placeholder: "SCOPE",
          summary: "Its scopes, instead of the old ones",
        },
      },
      details: "The new token is shown only to the device itself and to whoever comes with the " +
        "gateway's own secret and no device (--json prints it).",
      run: ({ flags, args: [query] }, terminal) =>
        onDevice(query, flags, world, terminal, async (client, device) => {
          const { deviceId } = device;
          const role = flags.role ?? soleRole(device);
          const scopes = flags.scope.length > 0 ? flags.scope : undefined;
          const answer = await client.call("device.token.rotate", { deviceId, role, scopes });
          if (flags.json) return terminal.json(answer);
          terminal.out(`Rotated the ${role} token of ${nameOf(device)}`);
        }),
    }),

    command({
      path: ["devices", "revoke"],
      summary: "Void the tokens of a device for a role and close its connections",
      usage: "DEVICE",
      flags: { ...RPC_FLAGS, ...ROLE_FLAGS },
      run: ({ flags, args: [query] }, terminal) =>
        onDevice(query, flags, world, terminal, async (client, device) => {
          const { deviceId } = device;
          const role = flags.role ?? soleRole(device);
          const answer = await client.call("device.token.revoke", { deviceId, role });
          if (flags.json) return terminal.json(answer);
          terminal.out(`Revoked the ${role} tokens of ${nameOf(device)}`);
        }),
    }),

    command({
      path: ["devices", "invite"],
      summary: "Make a link that pairs one device without asking again",
      flags: {
        ...RPC_FLAGS,
        ...ROLE_FLAGS,
        scopes: {
          kind: "text",
          placeholder: "A,B",
          summary: "What it may do; unless told, as much as you",
        },
        ttl: {
          kind: "text",
          placeholder: "10m",
          default: "10m",
          summary: "How long the link can be used: 90s, 10m, 2h, 7d",
        },
        address: {
          kind: "text",
          placeholder: "URL",
          summary: "Where the new device reaches the gateway; unless told, where you reach it",
        },
        "no-qr": { kind: "boolean", summary: "Print the line alone" },
        list: { kind: "boolean", summary: "List the invitations instead" },
        revoke: { kind: "text", placeholder: "ID", summary: "Void an invitation instead" },
      },
      details:
        "The link works once. It holds a secret: hand it over as you would a password, and " +
        'give it to "zero join" on the other machine.',
      examples: [
        "zero devices invite",
        "zero devices invite --role node --ttl 1h",
        "zero devices invite --scopes operator.read --address wss://zero.example.org",
      ],
      async run({ flags }, terminal) {
        const { runInvite } = await import("./join.ts");
        return await runInvite(flags, world, terminal);
      },
    }),

    command({
      path: ["join"],
      summary: "Pair this machine, by a link from zero devices invite",
      flags: {
        timeout: RPC_FLAGS.timeout,
        json: RPC_FLAGS.json,
        name: { kind: "text", placeholder: "NAME", summary: "What this machine calls itself" },
        force: { kind: "boolean", summary: "Replace the remote gateway that is configured" },
      },
      details:
        "Asks for the link, or reads it from standard input; it is never an argument, which " +
        "others on this machine could see. Afterwards every command here goes to that gateway.",
      examples: ["zero join", "zero join < link.txt"],
      async run({ flags }, terminal) {
        const { runJoin } = await import("./join.ts");
        return await runJoin(flags, world, terminal);
      },
    }),

    command({
      path: ["audit"],
      summary: "Who was let in, approved, rotated or refused, why, and from where",
      flags: {
        ...RPC_FLAGS,
        since: { kind: "text", placeholder: "1d", summary: "Only what happened since: 30m, 1d" },
        limit: {
          kind: "integer",
          min: 1,
          max: 5_000,
          default: 50,
          summary: "How many entries, the newest first",
        },
      },
      examples: ["zero audit --since 1h", "zero audit --json --limit 1000"],
      run: ({ flags }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const since = flags.since === undefined
            ? undefined
            : readDuration(flags.since, "--since");
          const { limit } = flags;
          const sinceMs = since === undefined ? undefined : Date.now() - since;
          const answer = await client.call("audit.list", { sinceMs, limit }) as AuditAnswer;
          if (flags.json) return terminal.json(answer);
          showAudit(answer, terminal);
        }),
    }),
  ];
}

/** @throws {UsageError} what is no duration */
export function readDuration(text: string, flag: string): number {
  const [, count, unit] = /^(\d+)(s|m|h|d)$/.exec(text.trim()) ?? [];
  const factor = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }[unit];
  if (factor === undefined) {
    throw new UsageError(`Cannot read ${flag} ${JSON.stringify(text)}: use 90s, 10m, 2h or 7d`);
  }
  return Number(count) * factor;
}

/** Open invitations and what became of the others. */
export function showInvites(invites: readonly Invite[], terminal: Terminal) {
  if (invites.length === 0) return terminal.out("No invitations");
  const now = Date.now();
  terminal.table(
    invites.map((one) => [
      one.inviteId,
      one.role,
      scopesOf(one),
      one.usedAtMs !== undefined
        ? `used by ${short(one.usedBy ?? "")} ${formatDuration(now - one.usedAtMs)} ago`
        : one.expiresAtMs > now
        ? `open for ${formatDuration(one.expiresAtMs - now)}`
        : "expired",
    ]),
    { header: ["INVITATION", "ROLE", "SCOPES", "STATE"] },
  );
}

function onDevice(
  query: string,
  flags: CallFlags,
  world: CallWorld,
  terminal: Terminal,
  use: (client: Client, device: Paired) => Promise<number | void>,
): Promise<number | void> {
  return calling(flags, world, terminal, async (client) => {
    const { paired } = await listDevices(client);
    return await use(client, findDevice(paired, query));
  });
}

async function listDevices(client: Client): Promise<DeviceList> {
  return await client.call("device.pair.list", {}) as DeviceList;
}

function findDevice(devices: readonly Paired[], query: string): Paired {
  return findNamed(devices, query, "device", (one) => ({
    id: one.deviceId,
    name: one.displayName,
    address: one.remoteIp,
    shown: nameOf(one),
  }));
}

/** Offers the single request, or lets choose among several. @returns undefined for none */
async function chooseRequest(
  pending: readonly Pending[],
  { yes, json }: { yes: boolean; json: boolean },
  terminal: Terminal,
): Promise<Pending | undefined> {
  if (pending.length === 0) {
    terminal.err("No device waits for approval");
    return undefined;
  }
  if (pending.length === 1 && yes) return pending[0];
  if (!json) showPending(pending, terminal);
  if (!terminal.canAsk) {
    const [{ requestId }] = pending;
    throw new UsageError(
      `Cannot ask which device to approve: this is no terminal; name it: ` +
        `zero devices approve ${pending.length === 1 ? requestId : "REQUEST"}`,
    );
  }
  if (pending.length === 1) {
    const answer = await terminal.ask("Approve it? [y/N]");
    return /^y(es)?$/i.test(answer ?? "") ? pending[0] : undefined;
  }
  const answer = await terminal.ask("Which one? (the beginning of its id)");
  return answer ? findRequest(pending, answer, "zero devices pending") : undefined;
}

async function watchPending(
  client: Client,
  pending: readonly Pending[],
  { json }: { json: boolean },
  terminal: Terminal,
) {
  const show = (one: Pending) => {
    if (json) return terminal.out(JSON.stringify(one));
    const from = one.remoteIp ? ` from ${printable(one.remoteIp)}` : "";
    terminal.out(`${one.requestId}  ${nameOf(one)}${from}  ${one.role}: ${scopesOf(one)}`);
  };
  pending.forEach(show);
  if (pending.length === 0 && !json) terminal.err("Waiting for devices that ask to be paired");
  client.on("device.pair.requested", (payload) => show(payload as Pending));
  client.on("device.pair.resolved", (payload) => {
    const { requestId, decision } = payload as { requestId: string; decision: string };
    if (json) terminal.out(JSON.stringify(payload));
    else terminal.out(`${requestId}  ${decision}`);
  });
  throw await client.closed;
}

function showPending(pending: readonly Pending[], terminal: Terminal, { isAlways = false } = {}) {
  if (pending.length === 0) {
    if (isAlways) terminal.out("No device waits for approval");
    return;
  }
  const now = Date.now();
  terminal.table(
    pending.map((one) => [
      one.requestId,
      nameOf(one),
      one.role ?? "operator",
      scopesOf(one),
      printable(one.remoteIp ?? "not known"),
      `${formatDuration(now - one.ts)} ago${one.isRepair ? ", known device" : ""}`,
    ]),
    { header: ["WAITING", "DEVICE", "ROLE", "SCOPES", "FROM", "ASKED"] },
  );
  terminal.out();
}

function showPaired(paired: readonly Paired[], terminal: Terminal) {
  if (paired.length === 0) return terminal.out("No paired devices");
  const now = Date.now();
  terminal.table(
    paired.map((one) => {
      const used = Math.max(0, ...one.tokens.map(({ lastUsedAtMs = 0 }) => lastUsedAtMs));
      const isRevoked = one.tokens.length > 0 &&
        one.tokens.every(({ revokedAtMs }) => revokedAtMs !== undefined);
      return [
        short(one.deviceId),
        printable(one.displayName ?? one.clientId ?? "unnamed"),
        one.roles.join(", "),
        scopesOf(one),
        isRevoked ? "revoked" : used === 0 ? "never" : `${formatDuration(now - used)} ago`,
        printable(one.remoteIp ?? ""),
      ];
    }),
    { header: ["PAIRED", "NAME", "ROLES", "SCOPES", "TOKEN USED", "FROM"] },
  );
}

interface AuditAnswer {
  entries: {
    ts: number;
    event: string;
    by?: string;
    user?: string;
    deviceId?: string;
    displayName?: string;
    clientId?: string;
    code?: string;
    reason?: string;
    ip?: string;
    role?: string;
    scopes?: string[];
    channel?: string;
    senderId?: string;
    count: number;
  }[];
}

function showAudit({ entries }: AuditAnswer, terminal: Terminal) {
  if (entries.length === 0) return terminal.out("Nothing happened");
  terminal.table(
    entries.map((one) => [
      new Date(one.ts).toISOString().replace("T", " ").slice(0, 19),
      one.count > 1 ? `${one.event} ×${one.count}` : one.event,
      printable(whoIn(one)),
      printable(one.ip ?? ""),
      printable(one.code ?? one.reason ?? (one.by ? `by ${one.by}` : "")),
    ]),
    { header: ["WHEN (UTC)", "WHAT", "WHO", "FROM", "WHY"] },
  );
}

function whoIn(entry: AuditAnswer["entries"][number]) {
  const { user, displayName, deviceId, clientId, senderId, channel = "" } = entry;
  const what = displayName ?? (deviceId ? short(deviceId) : clientId ?? senderId ?? channel);
  return user === undefined ? what : `${user} (${what || "no device"})`;
}

function soleRole({ roles, deviceId }: Paired): string {
  if (roles.length === 1) return roles[0];
  throw new UsageError(`Cannot tell which role of ${short(deviceId)} is meant: pass --role`);
}

function scopesOf({ scopes = [] }: { scopes?: readonly string[] }): string {
  return scopes.map((scope) => printable(scope.replace(/^operator\./, ""))).join(", ") || "none";
}

function nameOf({ displayName, clientId, deviceId }: Described): string {
  return printable(`${displayName ?? clientId ?? "unnamed"} (${short(deviceId)})`);
}

function short(deviceId: string): string {
  return printable(deviceId.slice(0, 12));
}
