// What `zero remote` does: named gateways in the configuration file, written whole and checked first.

import { EXIT_FAILURE, UsageError } from "../config/command.ts";
import { isLocked } from "../config/file_lock.ts";
import { ConfigError, type ConfigReading, readConfig } from "../config/load.ts";
import type { Paths } from "../config/paths.ts";
import {
  fingerprintIn,
  formatPin,
  formatSecretRef,
  type KeyPath,
  LOCAL_NAME,
  type Pin,
  pinsIn,
  type SecretRef,
  secretSourceOf,
} from "../config/schema.ts";
import {
  credentialLine,
  explainTarget,
  type RemoteFields,
  sshTargetOf,
  sshWayOf,
  type Target,
  urlFault,
} from "../config/target.ts";
import type { Terminal } from "../config/terminal.ts";
import { readLock } from "./lock.ts";
import { absolute, type CallWorld, readTokenFile, takeAim, withGateway } from "./reach.ts";

export interface AddFlags {
  url?: string;
  ssh?: string;
  "ssh-identity"?: string;
  "ssh-accept-new": boolean;
  "remote-port"?: number;
  "tls-fingerprint"?: string;
  "token-file"?: string;
  "token-from"?: string;
  "password-from"?: string;
  "no-token": boolean;
  use: boolean;
  force: boolean;
  json: boolean;
}

interface JsonFlags {
  json: boolean;
}

type Edit = (raw: string, edit: typeof import("../config/edit.ts")) => string;

export async function addRemote(
  name: string,
  flags: AddFlags,
  paths: Paths,
  terminal: Terminal,
): Promise<number | void> {
  checkName(name);
  const reading = await readValid(paths);
  if (Object.hasOwn(reading.config.remotes ?? {}, name) && !flags.force) {
    throw new UsageError(`Cannot add ${name}: there is a remote of this name`, {
      hint: "Pass --force to replace it",
    });
  }
  if (flags.use) await refuseBesideGateway(name, { ...flags, force: false }, paths);
  const fields = await readFields(name, flags, paths, terminal);
  await change(paths, reading, (raw, { setKey, mergePatch }) => {
    const added = setKey(raw, ["remotes", name], fields);
    return flags.use ? mergePatch(added, usePatch(name)) : added;
  });
  if (flags.json) {
    return terminal.json({ ok: true, name, used: flags.use, config: paths.configPath });
  }
  terminal.out(`Added ${name}: ${addressOf(fields)}`);
  if (flags.use) terminal.out(`Commands here now go to ${name} (${paths.configPath})`);
  else terminal.err(`Try it: zero remote test ${name}; go there always: zero remote use ${name}`);
}

/** A row of `zero remote list`. */
interface Listed {
  name: string;
  address: string;
  credential: string;
  isCurrent: boolean;
}

export async function listRemotes(
  { json }: JsonFlags,
  paths: Paths,
  terminal: Terminal,
): Promise<void> {
  const { config } = await readValid(paths);
  const { current, source } = currentOf(config, paths);
  const { remote } = config.gateway ?? {};
  const isUnnamed = remote !== undefined && (remote.url ?? remote.sshTarget) !== undefined;
  const rows: Listed[] = [
    { name: LOCAL_NAME, address: "this machine", credential: "" },
    ...isUnnamed ? [{ name: UNNAMED, ...describe(remote) }] : [],
    ...Object.entries(config.remotes ?? {}).map(([name, one]) => ({ name, ...describe(one) })),
  ].map((row) => ({ ...row, isCurrent: row.name === current }));
  if (json) return terminal.json({ current, source, remotes: rows });
  const { green } = terminal.style;
  terminal.table(
    rows.map(({ name, address, credential, isCurrent }) => [
      isCurrent ? green("*") : " ",
      name,
      address,
      credential,
    ]),
    { header: ["", "NAME", "GATEWAY", "CREDENTIAL"] },
  );
  if (source.startsWith("env ")) terminal.err(`${source} decides where commands go`);
}

export async function useRemote(
  name: string,
  flags: JsonFlags & { force: boolean },
  paths: Paths,
  terminal: Terminal,
): Promise<void> {
  const reading = await readValid(paths);
  if (name !== LOCAL_NAME) {
    findRemote(name, reading);
    await refuseBesideGateway(name, flags, paths);
  }
  await change(paths, reading, (raw, { mergePatch }) => mergePatch(raw, usePatch(name)));
  const override = ["ZERO_GATEWAY_URL", "ZERO_REMOTE"].find((one) => paths.env[one]?.trim());
  if (override) terminal.err(`${override} is set and stands above it`);
  if (flags.json) return terminal.json({ ok: true, current: name, config: paths.configPath });
  const where = name === LOCAL_NAME ? "the gateway of this machine" : name;
  terminal.out(`Commands here now go to ${where} (${paths.configPath})`);
}

export async function showRemote(
  name: string | undefined,
  { json }: JsonFlags,
  world: CallWorld,
  terminal: Terminal,
): Promise<void> {
  const { target } = await takeAim({ ...QUIET, remote: name }, world, terminal);
  if (target.problem) throw new UsageError(target.problem.message, { hint: target.problem.fix });
  if (!json) return terminal.out(explainTarget(target));
  const { url, urlSource, ssh, edge, pins, way, tokenSource, passwordSource, configPath } = target;
  terminal.json({
    url,
    urlSource,
    ssh: ssh && { target: ssh.target, remotePort: ssh.remotePort, identity: ssh.identity },
    headers: edge?.map(({ name }) => name),
    tlsFingerprints: pins.map(formatPin),
    way,
    token: credentialOf(target.token, tokenSource),
    password: credentialOf(target.password, passwordSource),
    config: configPath,
  });
}

export async function removeRemote(
  name: string,
  { json, force }: JsonFlags & { force: boolean },
  paths: Paths,
  terminal: Terminal,
): Promise<void> {
  const reading = await readValid(paths);
  findRemote(name, reading);
  const { mode, remote } = reading.config.gateway ?? {};
  const isNamed = remote?.name === name;
  if (isNamed && mode === "remote" && !force) {
    throw new UsageError(`Cannot remove ${name}: commands go there`, {
      hint: "Choose another one first (zero remote use local), or pass --force",
    });
  }
  await change(paths, reading, (raw, { mergePatch, unsetKey }) => {
    const free = isNamed ? mergePatch(raw, usePatch(LOCAL_NAME)) : raw;
    return unsetKey(free, ["remotes", name]);
  });
  if (json) return terminal.json({ ok: true, name, config: paths.configPath });
  terminal.out(`Removed ${name}`);
  if (isNamed) terminal.out("Commands here now go to the gateway of this machine");
}

export async function testRemote(
  name: string | undefined,
  { json, timeout, verbose }: JsonFlags & { timeout: number; verbose: boolean },
  world: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const flags = { json, timeout, verbose, remote: name };
  return await withGateway(flags, world, terminal, async (client, { target }) => {
    const begin = performance.now();
    const health = await client.call("health", {}, { timeoutMs: timeout }) as { ok?: boolean };
    const latencyMs = Math.round(performance.now() - begin);
    const { server, auth } = client.hello;
    const isWell = health.ok !== false;
    const { url, ssh } = target;
    if (json) {
      const { host, version } = server;
      const { scopes, method } = auth ?? {};
      const gateway = { url, ssh: ssh?.target, host, version };
      terminal.json({ ok: isWell, latencyMs, gateway, auth: { method, scopes } });
    } else {
      const through = ssh ? ` through ssh ${ssh.target}` : "";
      terminal.out(
        `${server.host ?? url} (ZERO ${server.version ?? "?"}) answers in ${latencyMs} ms: ` +
          `${url}${through}`,
      );
      terminal.out(credentialLine(target));
    }
    return isWell ? undefined : EXIT_FAILURE;
  });
}

/** What `gateway.remote` is called beside those that have a name of their own. */
const UNNAMED = "gateway.remote";
const QUIET = { timeout: 10_000, json: true, verbose: false };
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

function checkName(name: string) {
  if (NAME.test(name) && name !== LOCAL_NAME) return;
  throw new UsageError(`Cannot use the name ${JSON.stringify(name)}`, {
    hint: name === LOCAL_NAME
      ? `${LOCAL_NAME} is the gateway of this machine`
      : 'A name is 1 to 64 letters, digits, ".", "_" or "-", and begins with a letter or digit',
  });
}

/** The remote as it stands in the file. */
async function readFields(
  name: string,
  flags: AddFlags,
  { env }: Paths,
  terminal: Terminal,
): Promise<RemoteFields> {
  const { url, ssh } = flags;
  if ((url === undefined) === (ssh === undefined)) {
    throw new UsageError(`Cannot add ${name}: how is it reached?`, {
      hint: "Write --ssh user@host, or --url wss://host",
    });
  }
  const fault = url === undefined ? undefined : urlFault(url);
  if (fault) throw new UsageError(`Cannot use --url: ${fault.message}`, { hint: fault.fix });
  const sshTarget = ssh === undefined ? undefined : sshTargetOf(ssh);
  const pins = readPins(flags["tls-fingerprint"]);
  const password = readRef("password-from", flags["password-from"]);
  const token = await readToken(name, flags, { isNeeded: password === undefined }, terminal);
  const fields: RemoteFields = {
    ...sshTarget === undefined ? { url } : { transport: "ssh", sshTarget },
    sshIdentity: await absolute(flags["ssh-identity"], env),
    sshHostKeyPolicy: flags["ssh-accept-new"] ? "accept-new" : undefined,
    remotePort: flags["remote-port"],
    tlsFingerprint: pins.length > 1 ? pins : pins[0],
    token,
    password,
  };
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined),
  ) as RemoteFields;
}

function readPins(text: string | undefined): Pin[] {
  const pins = pinsIn(text);
  const isGood = (pin: Pin) =>
    fingerprintIn(pin).length === 64 &&
    (typeof pin === "string" || !Number.isNaN(Date.parse(pin.until ?? "")));
  if (pins.every(isGood)) return pins;
  throw new UsageError("Cannot use --tls-fingerprint: it is no SHA-256", {
    hint: "Write its 64 hex digits; several have commas between",
  });
}

async function readToken(
  name: string,
  flags: AddFlags,
  { isNeeded }: { isNeeded: boolean },
  terminal: Terminal,
): Promise<SecretRef | undefined> {
  const file = flags["token-file"];
  const given = file === undefined
    ? undefined
    : plainSecret(await readTokenFile(file, terminal), "--token-file");
  const ref = given ?? readRef("token-from", flags["token-from"]);
  const canAsk = terminal.isInteractive && terminal.canAsk && !flags.json;
  if (ref !== undefined || flags["no-token"] || !isNeeded || !canAsk) return ref;
  const asked = await terminal.askSecret(`Token of ${name} (empty: none):`);
  const typed = asked?.trim();
  return typed ? plainSecret(typed, "this token") : undefined;
}

/** A secret that looks like a reference would be taken for one when it is read again. */
function plainSecret(text: string, what: string): string {
  if (secretSourceOf(text) === text) return text;
  throw new UsageError(`Cannot take ${what}: a secret in the configuration may not begin so`, {
    hint: "Keep it in a file and pass --token-from file:/path",
  });
}

function readRef(flag: string, text: string | undefined): SecretRef | undefined {
  if (text === undefined) return undefined;
  const source = secretSourceOf(text);
  if (typeof source === "object") return source;
  throw new UsageError(`Cannot use --${flag}: it is no reference`, {
    hint: "Write env:NAME, file:/path or exec:PROGRAM ARGUMENT",
  });
}

async function readValid({ configPath, env }: Paths): Promise<ConfigReading> {
  const reading = await readConfig({ path: configPath, env });
  if (!reading.valid) throw new ConfigError(reading.issues);
  return reading;
}

async function change({ configPath, env }: Paths, { raw, hash }: ConfigReading, edit: Edit) {
  const edits = await import("../config/edit.ts");
  const text = edit(raw ?? "", edits);
  await edits.writeConfig(configPath, text, { env, expectedHash: hash });
}

function usePatch(name: string) {
  return name === LOCAL_NAME
    ? { gateway: { mode: "local", remote: { name: null } } }
    : { gateway: { mode: "remote", remote: { name } } };
}

function findRemote(name: string, { config: { remotes = {} } }: ConfigReading): RemoteFields {
  if (Object.hasOwn(remotes, name)) return remotes[name];
  const names = Object.keys(remotes);
  throw new UsageError(`Cannot find the remote ${JSON.stringify(name)}: it is not configured`, {
    hint: names.length > 0 ? `One of: ${names.join(", ")}` : `zero remote add ${name}`,
  });
}

/** @throws {UsageError} a gateway runs here that could not start again in mode remote */
async function refuseBesideGateway(
  name: string,
  { force }: { force: boolean },
  { lockFile }: Paths,
) {
  if (force || !await isLocked(lockFile)) return;
  const pid = readLock(lockFile)?.pid;
  const who = pid === undefined ? "" : ` (pid ${pid})`;
  throw new UsageError(
    `Cannot let all commands go to ${name}: a gateway runs on this machine${who}, and in mode ` +
      "remote it would not start again",
    { hint: `Use --remote ${name} or ZERO_REMOTE=${name}, or pass --force` },
  );
}

function currentOf(
  { gateway = {} }: ConfigReading["config"],
  { env }: Paths,
): { current: string | null; source: string } {
  if (env.ZERO_GATEWAY_URL?.trim()) return { current: null, source: "env ZERO_GATEWAY_URL" };
  const named = env.ZERO_REMOTE?.trim();
  if (named) return { current: named, source: "env ZERO_REMOTE" };
  if (gateway.mode !== "remote") return { current: LOCAL_NAME, source: "config gateway.mode" };
  const { name } = gateway.remote ?? {};
  return name
    ? { current: name, source: "config gateway.remote.name" }
    : { current: UNNAMED, source: "config gateway.remote" };
}

function describe(fields: RemoteFields): Pick<Listed, "address" | "credential"> {
  const { token, password } = fields;
  const parts = [
    ...token ? [refText("token", token)] : [],
    ...password ? [refText("password", password)] : [],
  ];
  return { address: addressOf(fields), credential: parts.join(", ") || "device" };
}

function addressOf(fields: RemoteFields): string {
  const ssh = sshWayOf({ fields, path: [] as KeyPath });
  if (!ssh) return fields.url ?? "no address";
  return `ssh ${ssh.target}, port ${ssh.remotePort} there`;
}

function refText(what: string, ref: SecretRef): string {
  const source = secretSourceOf(ref);
  return typeof source === "object" ? `${what} from ${formatSecretRef(source)}` : what;
}

function credentialOf(ref: Target["token"], source: string | undefined) {
  if (ref === undefined) return null;
  return { source, from: typeof ref === "object" ? formatSecretRef(ref) : undefined };
}
