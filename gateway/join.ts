// Invitations at both ends: the line that `zero devices invite` prints, and what `zero join` makes of
// it. The line holds a single-use secret; it is read from a prompt or standard input, never from the
// command line, and never logged.

import { EXIT_FAILURE, UsageError } from "../config/command.ts";
import { ConfigError, type ConfigReading, readConfig } from "../config/load.ts";
import type { Paths } from "../config/paths.ts";
import { fingerprintIn } from "../config/schema.ts";
import { isLoopbackUrl, type Target, wayOf } from "../config/target.ts";
import { formatDuration, type Terminal } from "../config/terminal.ts";
import type { HelloOk } from "../rpc/client.ts";
import { decodeBase64, encodeBase64Url } from "../rpc/identity.ts";
import {
  type Infer,
  list,
  nonEmpty,
  object,
  oneOf,
  optional,
  problems,
  text,
} from "../rpc/shape.ts";
import { readDuration, showInvites } from "./devices_cli.ts";
import type { Health } from "./health.ts";
import {
  type CallFlags,
  type CallWorld,
  describeFailure,
  ownIdentity,
  reach,
  tellFailure,
  withGateway,
} from "./reach.ts";

/** What an invitation carries. */
const Link = object({
  v: oneOf([1]),
  url: text({ pattern: /^wss?:\/\/[^\s]+$/, what: "a ws:// or wss:// address" }),
  secret: nonEmpty(),
  role: oneOf(["operator", "node"]),
  scopes: list(nonEmpty()),
  /** SHA-256 of the certificate to expect. */
  pin: optional(nonEmpty()),
  /** The one that will take its place. */
  nextPin: optional(nonEmpty()),
});
export type Link = Infer<typeof Link>;

/** What follows the `#` of an address is sent to nobody (D19). */
const PREFIX = "zero://join#";
const MAX_LINK_BYTES = 4_096;

export function encodeLink(link: Link): string {
  return PREFIX + encodeBase64Url(new TextEncoder().encode(JSON.stringify(link)));
}

/** Reads an invitation as it was pasted; undefined for anything else. */
export function decodeLink(pasted: string): Link | undefined {
  const line = pasted.replace(/\s+/g, "");
  const bytes = line.startsWith(PREFIX) ? decodeBase64(line.slice(PREFIX.length)) : undefined;
  try {
    const link = JSON.parse(new TextDecoder().decode(bytes));
    return problems(link, Link).length === 0 ? link : undefined;
  } catch {
    return undefined;
  }
}

export interface InviteFlags extends CallFlags {
  role?: "operator" | "node";
  scopes?: string;
  ttl: string;
  address?: string;
  "no-qr": boolean;
  list: boolean;
  revoke?: string;
}

export function runInvite(
  flags: InviteFlags,
  world: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const ttlMs = readDuration(flags.ttl, "--ttl");
  const { role, address } = flags;
  const scopes = readScopes(flags.scopes, role);
  if (address !== undefined && !/^wss?:\/\//.test(address)) {
    throw new UsageError("Cannot use --address: it is no ws:// or wss:// address");
  }
  return withGateway(flags, world, terminal, async (client, { target }) => {
    if (flags.revoke !== undefined) {
      const answer = await client.call("device.invite.revoke", { inviteId: flags.revoke });
      return flags.json ? terminal.json(answer) : terminal.out("Revoked");
    }
    if (flags.list) {
      const { invites } = await client.call("device.invite.list", {}) as {
        invites: Parameters<typeof showInvites>[0];
      };
      return flags.json ? terminal.json({ invites }) : showInvites(invites, terminal);
    }
    const invite = await client.call("device.invite.create", { role, scopes, ttlMs }) as {
      inviteId: string;
      secret: string;
      role: "operator" | "node";
      scopes: string[];
      expiresAtMs: number;
    };
    const url = address ?? target.url;
    const { pin, nextPin } = pinsFor(url, target, client.hello);
    const link = encodeLink({
      v: 1,
      url,
      secret: invite.secret,
      role: invite.role,
      scopes: invite.scopes,
      ...(pin && { pin }),
      ...(nextPin && { nextPin }),
    });
    const { secret: _, ...shown } = invite;
    if (flags.json) return terminal.json({ ...shown, url, link });
    await showLink(link, { url, ttlMs, withQr: !flags["no-qr"] }, terminal);
  });
}

/**
 * What the other machine is to expect: the gateway's own certificate wherever the address leads to its
 * own port. In front of another port may stand a proxy with a certificate of its own.
 */
function pinsFor(
  url: string,
  { url: known, pins }: Target,
  { snapshot }: HelloOk,
): { pin?: string; nextPin?: string } {
  const isOwnPort = /^wss:/i.test(url) && portOf(url) === portOf(known);
  if (!isOwnPort) return {};
  const { tls } = (snapshot.health ?? {}) as Partial<Health>;
  const isOwnCertificate = tls && pins.some((pin) => fingerprintIn(pin) === tls.fingerprint);
  if (isOwnCertificate) return { pin: tls.fingerprint, nextPin: tls.nextFingerprint };
  return pins.length > 0 ? { pin: fingerprintIn(pins[0]) } : {};
}

function portOf(url: string): string {
  const { port, protocol } = new URL(url);
  return port || (protocol === "wss:" ? "443" : "80");
}

const SCOPES = [
  "admin",
  "read",
  "write",
  "approvals",
  "pairing",
  "questions",
  "talk",
  "talk.secrets",
];

/** Scopes as people write them: `read` is `operator.read`. */
function readScopes(text: string | undefined, role?: string): string[] | undefined {
  if (text === undefined) return undefined;
  if (role === "node") throw new UsageError("Cannot give a node scopes: leave --scopes out");
  return text.split(",").map((one) => one.trim()).filter(Boolean).map((one) => {
    const name = one.replace(/^operator\./, "");
    if (SCOPES.includes(name)) return `operator.${name}`;
    throw new UsageError(`Cannot use the scope ${JSON.stringify(one)}: there is no such scope`, {
      hint: `One of: ${SCOPES.join(", ")}`,
    });
  });
}

export interface JoinFlags {
  timeout: number;
  json: boolean;
  verbose: boolean;
  name?: string;
  force: boolean;
}

export async function runJoin(
  flags: JoinFlags,
  world: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const paths = world.place();
  const reading = await readConfig({ path: paths.configPath, env: paths.env });
  if (!reading.valid) throw new ConfigError(reading.issues);
  const pasted = terminal.canAsk
    ? await terminal.askSecret("The link from zero devices invite:")
    : await terminal.readStdin({ maxBytes: MAX_LINK_BYTES });
  const link = decodeLink(pasted ?? "");
  if (!link) {
    throw new UsageError("Cannot join: that is no link from zero devices invite", {
      hint: "It begins with zero://join# and is one line",
    });
  }
  const { mode, remote } = reading.config.gateway ?? {};
  const there = remote?.name ?? remote?.url ?? remote?.sshTarget;
  const isElsewhere = mode === "remote" && there !== undefined && there !== link.url;
  if (isElsewhere && !flags.force) {
    throw new UsageError(`Cannot join ${link.url}: commands here go to ${there} already`, {
      hint: "Pass --force to replace it, or --profile NAME to keep both",
    });
  }
  const target = targetOf(link, reading.path);
  const identity = ownIdentity(paths, (message) => terminal.err(message));
  const aim = { paths, target, identity, input: { flags: {}, env: paths.env, reading } };
  const isNode = link.role === "node";
  try {
    await using client = await reach(aim, {
      timeout: flags.timeout,
      version: world.version,
      extra: {
        auth: { bootstrapToken: link.secret },
        retriesWithDeviceToken: false,
        role: link.role,
        scopes: link.scopes,
        client: {
          id: isNode ? "node-host" : "cli",
          mode: isNode ? "node" : "cli",
          displayName: flags.name ?? Deno.hostname(),
          version: world.version,
          platform: Deno.build.os,
        },
      },
    }, terminal);
    const { server } = client.hello;
    await writeRemote(link, paths, reading);
    const { url, role, scopes } = link;
    const result = { ok: true, url, role, scopes, host: server.host, config: paths.configPath };
    if (flags.json) return terminal.json(result);
    terminal.out(`Joined ${server.host ?? url} as ${role}`);
    terminal.out(`Commands here now go to ${url} (${paths.configPath})`);
  } catch (error) {
    const failure = await describeFailure(error, aim, flags.timeout);
    if (!failure) throw error;
    tellFailure(failure, target, { isJson: flags.json }, terminal);
    return EXIT_FAILURE;
  }
}

function targetOf({ url, pin, nextPin }: Link, configPath: string): Target {
  const pins = [pin, nextPin].filter((one) => one !== undefined);
  return {
    url,
    urlSource: "invitation",
    tokenSource: "invitation",
    pins,
    configPath,
    isRemote: true,
    way: wayOf(url, pins),
  };
}

/** From now on the commands of this machine go there. */
async function writeRemote(
  { url, pin, nextPin }: Link,
  { configPath, env }: Paths,
  { raw, hash, config }: ConfigReading,
) {
  const { mergePatch, writeConfig } = await import("../config/edit.ts");
  const before = config.gateway?.remote ?? {};
  // Nothing of another gateway goes to this one, the headers for the proxy in front of it least.
  const gone = Object.keys(before).filter((key) => key !== "edgeAuth" || before.url !== url);
  const remote = {
    ...Object.fromEntries(gone.map((key) => [key, null])),
    url,
    tlsFingerprint: pin && nextPin ? [pin, nextPin] : pin ?? null,
  };
  const next = mergePatch(raw ?? "", { gateway: { mode: "remote", remote } });
  await writeConfig(configPath, next, { env, expectedHash: hash });
}

async function showLink(
  link: string,
  { url, ttlMs, withQr }: { url: string; ttlMs: number; withQr: boolean },
  terminal: Terminal,
) {
  terminal.out(link);
  if (withQr && terminal.isInteractive) {
    const { renderUnicodeCompact } = await import("uqr");
    terminal.out(`\n${renderUnicodeCompact(link, { ecc: "L", border: 2 })}`);
  }
  terminal.err(`Works once, within ${formatDuration(ttlMs)}; on the other machine: zero join`);
  if (!isLoopbackUrl(url)) return;
  terminal.err(
    `It leads to ${url}, which the other machine reaches only through a tunnel; ` +
      "--address names another way",
  );
}
