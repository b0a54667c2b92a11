// Which gateway a command talks to, with which credential, and why (protocol.md D15, §11.2). The one
// place that decides it: every command asks here, and every failure prints what was decided.

import { UsageError } from "./command.ts";
import { type ConfigReading, formatIssue } from "./load.ts";
import type { Env } from "./paths.ts";
import {
  type Config,
  fingerprintIn,
  formatKey,
  formatPin,
  isSshTarget,
  type KeyPath,
  LOCAL_NAME,
  type Pin,
  pinsIn,
  type SecretRef,
  secretSourceOf,
} from "./schema.ts";
import { explainKey } from "./settings.ts";

/** What was typed for this command alone. */
export interface TargetFlags {
  url?: string;
  port?: number;
  /** `[user@]host[:port]`: through a tunnel that lasts as long as the command. */
  ssh?: string;
  sshIdentity?: string;
  /** Port of the gateway on the machine that `ssh` names. */
  remotePort?: number;
  /** Trust the host key of a machine that ssh does not know yet. */
  sshAcceptNew?: boolean;
  /** A name in `remotes`, or `local`. */
  remote?: string;
  /** Fingerprints as `pinsIn` reads them, instead of the configured ones. */
  tlsFingerprint?: string;
  token?: string;
  /** Where `token` was typed; `flag --token` unless told. */
  tokenSource?: "flag --token" | "flag --token-file" | "prompt";
  password?: string;
  passwordSource?: "flag --password" | "prompt";
}

export interface TargetInput {
  flags: TargetFlags;
  env: Env;
  reading: Pick<ConfigReading, "path" | "valid" | "config" | "issues">;
  /** What the gateway of this state directory made for itself, and where it keeps it (D6). */
  made?: { token: string; file: string };
  /** Fingerprint of the certificate of the gateway on this machine, where it serves TLS. */
  localFingerprint?: string | string[];
  /** The first tailnet IPv4 of this machine; asked only for bind `tailnet`. */
  tailnetAddress?(): string | undefined;
}

export interface Target {
  /** To be dialled as it stands; with `ssh`, at the port the tunnel got. */
  url: string;
  /** The tunnel it is reached through. */
  ssh?: SshWay;
  /** `cli --url`, `env ZERO_GATEWAY_URL`, `config gateway.remote.url`, `local loopback`, … */
  urlSource: string;
  /** Text is the secret itself; anything else says where it stands, and is read before it is sent. */
  token?: SecretRef;
  tokenSource?: string;
  password?: SecretRef;
  passwordSource?: string;
  /** Headers for the proxy in front of exactly this address. */
  edge?: { name: string; value: SecretRef; source: string }[];
  /** Certificate fingerprints one of which must match; empty: the authorities decide. */
  pins: Pin[];
  configPath: string;
  /** Bind mode of the gateway on this machine, when that is the target. */
  bind?: string;
  /** Not the gateway of this installation: nothing local is read for it, written, or repaired. */
  isRemote: boolean;
  /** The way to the gateway, under which device tokens are kept; absent: none are. */
  way?: string;
  /** Why it may not be dialled. What is shown is then what it would have been. */
  problem?: TargetError;
}

/** The tunnel to a gateway that listens on loopback of another machine. */
export interface SshWay {
  /** What the tunnel is called: the remote's name, `default` for `gateway.remote`. */
  name: string;
  /** `[user@]host[:port]`, or an alias of the user's own ssh configuration. */
  target: string;
  identity?: string;
  remotePort: number;
  /** Wanted on this machine; another one will do. */
  localPort?: number;
  acceptNew: boolean;
  /** Stays up for the commands that follow, instead of ending with this one. */
  isKept: boolean;
}

/** A command line and configuration that lead to no gateway. */
export class TargetError extends Error {
  override name = "TargetError";

  constructor(
    readonly code:
      | "CONFIG_INVALID"
      | "REMOTE_URL_MISSING"
      | "REMOTE_UNKNOWN"
      | "CREDENTIALS_REQUIRED"
      | "SECRET_UNAVAILABLE"
      | "URL_INVALID",
    message: string,
    readonly fix: string,
  ) {
    super(message);
  }
}

/**
 * Decides target and credential.
 *
 * @returns with `problem` set where nothing may be dialled
 * @throws {UsageError} a `--url` that is no WebSocket address or has a secret in it, a `--ssh` that
 *   is no host, a `--remote` that is not configured
 * @throws {ConfigError} an environment variable that does not fit its setting
 */
export function resolveTarget(input: TargetInput): Target {
  const target = chooseTarget(input);
  // A blank one is a pin that is missing, not a wish for none.
  const pins = pinsIn(input.flags.tlsFingerprint);
  if (pins.length === 0) return target;
  if (!target.ssh) return { ...target, pins, way: wayOf(target.url, pins) };
  return { ...target, pins, url: target.url.replace(/^ws:/, "wss:") };
}

function chooseTarget(input: TargetInput): Target {
  const { flags, env, reading } = input;
  const { mode, remote = {} } = reading.config.gateway ?? {};
  const flagUrl = filled(flags.url);
  if (flagUrl) return byFlagUrl(flagUrl, input);
  if (flags.port !== undefined) {
    return local(input, { url: `ws://127.0.0.1:${flags.port}`, urlSource: "cli --port" });
  }
  if (flags.ssh !== undefined) return byFlagSsh(flags.ssh, input);
  if (flags.remote !== undefined) {
    const target = byName(flags.remote, input, "cli --remote");
    const { problem } = target;
    if (problem?.code !== "REMOTE_UNKNOWN") return target;
    throw new UsageError(problem.message, { hint: problem.fix });
  }
  const envUrl = filled(env.ZERO_GATEWAY_URL);
  if (envUrl) return byEnvironment(envUrl, input);
  const envName = filled(env.ZERO_REMOTE);
  if (envName) return byName(envName, input, "env ZERO_REMOTE");
  if (!reading.valid) return byBrokenConfig(input);
  if (mode !== "remote") return local(input);
  if (remote.name) return byName(remote.name, input, "config gateway.remote.name");
  return byRemote({ fields: remote, path: ["gateway", "remote"] }, input);
}

/** The gateway of this installation, wherever commands go otherwise: for `zero gateway status`. */
export function localTarget(input: TargetInput): Target {
  return local(input);
}

/** The lines of §11.2 that stand below a failure. */
export function targetLines({ url, urlSource, configPath, bind, ssh }: Target): string[] {
  return [
    `Gateway target: ${url}`,
    ...ssh ? [`Through: ssh ${ssh.target}, port ${ssh.remotePort} there`] : [],
    `Source: ${urlSource}`,
    `Config: ${configPath}`,
    ...bind ? [`Bind: ${bind}`] : [],
  ];
}

/** Where the credential came from, never what it is. */
export function credentialLine({ tokenSource, passwordSource }: Target): string {
  const parts = [
    ...tokenSource ? [`token from ${tokenSource}`] : [],
    ...passwordSource ? [`password from ${passwordSource}`] : [],
  ];
  return `Credential: ${parts.join(", ") || "none configured"}`;
}

/** Target and credential with their sources, for `--verbose`; no secrets. */
export function explainTarget(target: Target): string {
  const { pins, edge = [] } = target;
  return [
    ...targetLines(target),
    credentialLine(target),
    ...edge.length > 0 ? [`Proxy headers: ${edge.map(({ name }) => name).join(", ")}`] : [],
    ...pins.length > 0 ? [`TLS fingerprint: ${pins.map(formatPin).join(", ")}`] : [],
  ].join("\n");
}

/** Whether a `ws://` or `wss://` URL names this machine, by a literal or `localhost`. */
export function isLoopbackUrl(url: string): boolean {
  if (!URL.canParse(url)) return false;
  const host = new URL(url).hostname.replace(/^\[|\]$/g, "");
  return host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host);
}

type Credentials = Pick<Target, "token" | "tokenSource" | "password" | "passwordSource">;
type Candidate = [value: SecretRef | undefined, source: string];

/** How a gateway elsewhere is reached, and where the configuration says so. */
export interface Remote {
  fields: RemoteFields;
  path: KeyPath;
  /** In `remotes`. */
  name?: string;
}
export type RemoteFields = NonNullable<NonNullable<Config["remotes"]>[string]>;

const DEFAULT_PORT = 18_789;
const NO_CREDENTIALS: Credentials = {
  token: undefined,
  tokenSource: undefined,
  password: undefined,
  passwordSource: undefined,
};

function byFlagUrl(url: string, input: TargetInput): Target {
  const fault = urlFault(url);
  if (fault) throw new UsageError(`Cannot use --url: ${fault.message}`, { hint: fault.fix });
  const fields = input.reading.config.gateway?.remote ?? {};
  const remoteUrl = filled(fields.url);
  if (remoteUrl && isSameUrl(url, remoteUrl)) {
    // Whoever names the address dials it, and opens no tunnel.
    const direct: Remote = {
      fields: { ...fields, transport: "direct" },
      path: ["gateway", "remote"],
    };
    return byRemote(direct, input, "cli --url");
  }
  if (isLoopbackUrl(url)) {
    return { ...local(input, { url, urlSource: "cli --url" }), bind: undefined };
  }
  const typed = typedCredentials(input.flags);
  return {
    url,
    urlSource: "cli --url",
    ...typed ?? NO_CREDENTIALS,
    pins: [],
    configPath: input.reading.path,
    isRemote: true,
    way: wayOf(url, []),
    ...!typed && {
      problem: new TargetError(
        "CREDENTIALS_REQUIRED",
        "gateway url override requires explicit credentials\nFix: pass --token or --password",
        "pass --token or --password",
      ),
    },
  };
}

function byEnvironment(url: string, input: TargetInput): Target {
  const { flags, env, reading } = input;
  const fault = urlFault(url);
  return {
    url: fault ? "" : url,
    urlSource: "env ZERO_GATEWAY_URL",
    ...typedCredentials(flags) ?? firstOf([envToken(env)], [envPassword(env)]),
    pins: [],
    configPath: reading.path,
    isRemote: true,
    way: wayOf(url, []),
    ...fault && {
      problem: new TargetError(
        "URL_INVALID",
        `Cannot use ZERO_GATEWAY_URL: ${fault.message}`,
        fault.fix,
      ),
    },
  };
}

/** Named for one command: no secret goes to a machine it was not configured for. */
function byFlagSsh(text: string, input: TargetInput): Target {
  const { flags, env, reading } = input;
  const target = sshTargetOf(text);
  const remotePort = flags.remotePort ?? DEFAULT_PORT;
  const known = remotesOf(reading.config).find(({ fields }) =>
    fields.sshTarget === target &&
    (fields.remotePort ?? DEFAULT_PORT) === remotePort
  );
  const { fields = {}, path = [] } = known ?? {};
  const ssh: SshWay = {
    name: `ssh ${target}`,
    target,
    identity: flags.sshIdentity ?? fields.sshIdentity,
    remotePort,
    acceptNew: flags.sshAcceptNew ?? fields.sshHostKeyPolicy === "accept-new",
    isKept: false,
  };
  return {
    ...throughSsh(ssh, fields),
    urlSource: "cli --ssh",
    ...typedCredentials(flags) ?? remoteCredentials({ fields, path }, env),
    configPath: reading.path,
    isRemote: true,
  };
}

function byName(name: string, input: TargetInput, urlSource: string): Target {
  if (name === LOCAL_NAME) return local(input);
  if (!input.reading.valid) return byBrokenConfig(input);
  const { remotes = {} } = input.reading.config;
  if (Object.hasOwn(remotes, name)) {
    return byRemote({ fields: remotes[name], path: ["remotes", name], name }, input, urlSource);
  }
  const names = Object.keys(remotes);
  return nowhere(input, {
    urlSource,
    problem: new TargetError(
      "REMOTE_UNKNOWN",
      `Cannot use the remote ${JSON.stringify(name)} (${urlSource}): it is not configured`,
      names.length > 0 ? `One of: ${[...names, LOCAL_NAME].join(", ")}` : `zero remote add ${name}`,
    ),
  });
}

/** @param urlSource where the choice came from; the setting that holds the address unless told */
function byRemote(remote: Remote, input: TargetInput, urlSource?: string): Target {
  const { flags, env, reading } = input;
  const { fields, path } = remote;
  const given = {
    ...typedCredentials(flags) ?? remoteCredentials(remote, env),
    configPath: reading.path,
    isRemote: true,
  };
  const ssh = sshWayOf(remote, flags);
  if (ssh) {
    const at = fields.sshTarget ? "sshTarget" : "url";
    const source = urlSource ?? `config ${formatKey([...path, at])}`;
    return { ...throughSsh(ssh, fields), urlSource: source, ...given };
  }
  const key = formatKey([...path, "url"]);
  const url = filled(fields.url);
  if (!url) {
    return nowhere(input, {
      urlSource: `missing ${key} (fallback local)`,
      problem: new TargetError(
        "REMOTE_URL_MISSING",
        `gateway remote mode misconfigured: ${key} missing\n` +
          `Config: ${reading.path}\nFix: set ${key}, or set gateway.mode=local.`,
        `set ${key}, or set gateway.mode=local.`,
      ),
    });
  }
  const pins = pinsOf(fields);
  const fault = urlFault(url);
  const headers = Object.entries(fields.edgeAuth?.headers ?? {});
  return {
    url: fault ? "" : url,
    urlSource: urlSource ?? `config ${key}`,
    ...given,
    pins,
    way: wayOf(url, pins),
    ...headers.length > 0 && {
      edge: headers.map(([name, value]) => ({
        name,
        value: secretSourceOf(value) ?? value,
        source: formatKey([...path, "edgeAuth", "headers", name]),
      })),
    },
    ...fault && {
      problem: new TargetError("URL_INVALID", `Cannot use ${key}: ${fault.message}`, fault.fix),
    },
  };
}

/** The tunnel a remote is reached through; undefined where it is dialled directly. */
export function sshWayOf(
  { fields, name = "default" }: Remote,
  flags: Pick<TargetFlags, "sshIdentity" | "sshAcceptNew"> = {},
): SshWay | undefined {
  const url = filled(fields.url);
  const isSsh = (fields.transport ?? (fields.sshTarget && !url ? "ssh" : "direct")) === "ssh";
  if (!isSsh) return undefined;
  const isForward = url !== undefined && isLoopbackUrl(url);
  // Who says ssh and names only the gateway's own address means the machine it is on.
  const host = url && !isForward && URL.canParse(url) ? new URL(url).hostname : undefined;
  const target = fields.sshTarget ?? host;
  if (!target) return undefined;
  const localPort = isForward ? Number(new URL(url).port) || undefined : undefined;
  return {
    name,
    target,
    identity: flags.sshIdentity ?? fields.sshIdentity,
    remotePort: fields.remotePort ?? DEFAULT_PORT,
    ...localPort !== undefined && { localPort },
    acceptNew: flags.sshAcceptNew ?? fields.sshHostKeyPolicy === "accept-new",
    isKept: true,
  };
}

/** `gateway.remote` where it says anything, and every named remote. */
export function remotesOf({ gateway, remotes = {} }: Config): Remote[] {
  const { remote } = gateway ?? {};
  return [
    ...remote ? [{ fields: remote, path: ["gateway", "remote"] }] : [],
    ...Object.entries(remotes).map(([name, fields]) => ({ fields, path: ["remotes", name], name })),
  ];
}

function throughSsh(
  ssh: SshWay,
  fields: RemoteFields,
): Pick<Target, "url" | "ssh" | "pins" | "way"> {
  const pins = pinsOf(fields);
  const url = filled(fields.url);
  // Behind the tunnel is the gateway itself: another scheme in front of it says nothing of it.
  const hasTls = pins.length > 0 || (url !== undefined && isLoopbackUrl(url) && /^wss:/i.test(url));
  return {
    url: `${hasTls ? "wss" : "ws"}://127.0.0.1:${ssh.localPort ?? ssh.remotePort}`,
    ssh,
    pins,
    way: `ssh:${ssh.target}:${ssh.remotePort}`,
  };
}

function pinsOf({ tlsFingerprint }: RemoteFields): Pin[] {
  return pinsIn(tlsFingerprint);
}

function remoteCredentials({ fields, path }: Remote, env: Env): Credentials {
  const at = (key: "token" | "password"): Candidate => [
    fields[key] && secretSourceOf(fields[key]),
    `config ${formatKey([...path, key])}`,
  ];
  return firstOf([at("token"), envToken(env)], [at("password"), envPassword(env)]);
}

/** What is shown of a target that is none. */
function nowhere(
  input: TargetInput,
  { urlSource, problem }: Required<Pick<Target, "urlSource" | "problem">>,
): Target {
  return { ...local(input), ...NO_CREDENTIALS, urlSource, way: undefined, problem };
}

function byBrokenConfig(input: TargetInput): Target {
  const { issues: [issue], path } = input.reading;
  const problem = new TargetError(
    "CONFIG_INVALID",
    `Cannot choose a gateway: ${issue ? formatIssue(issue) : `${path} is not valid`}`,
    "zero config validate",
  );
  return { ...local(input), problem };
}

/** @param named the address, where a flag names it */
function local(input: TargetInput, named?: { url: string; urlSource: string }): Target {
  const { flags, env, reading } = input;
  const setting = (key: string) => explainKey(key, { env, reading }).value;
  const hasTls = setting("gateway.tls.enabled") === true;
  const bind = String(setting("gateway.bind"));
  const { url, urlSource } = named ?? localAddress(input, { bind, hasTls });
  const pins = hasTls && url.startsWith("wss:") && input.localFingerprint
    ? pinsIn(input.localFingerprint)
    : [];
  return {
    url,
    urlSource,
    ...typedCredentials(flags) ?? localCredentials(input),
    pins,
    configPath: reading.path,
    bind,
    isRemote: false,
    way: wayOf(url, pins),
  };
}

function localAddress(
  { env, reading, tailnetAddress }: TargetInput,
  { bind, hasTls }: { bind: string; hasTls: boolean },
): { url: string; urlSource: string } {
  const port = explainKey("gateway.port", { env, reading }).value;
  const at = (host: string) => `${hasTls ? "wss" : "ws"}://${host}:${port}`;
  const tailnet = bind === "tailnet" ? tailnetAddress?.() : undefined;
  if (tailnet) return { url: at(tailnet), urlSource: `local tailnet ${tailnet}` };
  // Bound to one address of its own the gateway does not listen on loopback.
  const custom = bind === "custom" ? reading.config.gateway?.customBindHost : undefined;
  if (custom && custom !== "0.0.0.0") {
    return { url: at(custom), urlSource: `local custom ${custom}` };
  }
  return { url: at("127.0.0.1"), urlSource: "local loopback" };
}

function localCredentials({ env, reading, made }: TargetInput): Credentials {
  const { mode, token, password } = reading.config.gateway?.auth ?? {};
  const found = firstOf(
    [envToken(env), [token, "config gateway.auth.token"]],
    [envPassword(env), [password, "config gateway.auth.password"]],
  );
  const needsMade = !found.token && !found.password && (mode ?? "token") === "token";
  return needsMade && made ? { token: made.token, tokenSource: `file ${made.file}` } : found;
}

/** A credential that was typed stands alone: nothing configured goes along with it. */
function typedCredentials(flags: TargetFlags): Credentials | undefined {
  const { token, tokenSource = "flag --token" } = flags;
  const { password, passwordSource = "flag --password" } = flags;
  if (!token && !password) return undefined;
  return {
    ...token && { token, tokenSource },
    ...password && { password, passwordSource },
  };
}

/** The first token and the first password that are set. */
function firstOf(tokens: Candidate[], passwords: Candidate[]): Credentials {
  const [token, tokenSource] = tokens.find(([value]) => value) ?? [];
  const [password, passwordSource] = passwords.find(([value]) => value) ?? [];
  return {
    ...token && { token, tokenSource },
    ...password && { password, passwordSource },
  };
}

function envToken(env: Env): Candidate {
  return [filled(env.ZERO_GATEWAY_TOKEN), "env ZERO_GATEWAY_TOKEN"];
}

function envPassword(env: Env): Candidate {
  return [filled(env.ZERO_GATEWAY_PASSWORD), "env ZERO_GATEWAY_PASSWORD"];
}

/**
 * The value of `--ssh` as people paste it: with `ssh` in front or not.
 *
 * @throws {UsageError} nothing that ssh could be given as a machine
 */
export function sshTargetOf(text: string): string {
  const target = text.trim().replace(/^ssh\s+/, "");
  if (isSshTarget(target)) return target;
  throw new UsageError("Cannot use --ssh: it is no machine that ssh could reach", {
    hint: "Write it like user@host",
  });
}

/** What is wrong with an address; the answer never quotes it, it may hold a secret (D19). */
export function urlFault(url: string): { message: string; fix: string } | undefined {
  const isSocket = URL.canParse(url) && /^wss?:$/.test(new URL(url).protocol);
  if (!isSocket) {
    return {
      message: "it is no ws:// or wss:// address",
      fix: "Write it like ws://127.0.0.1:18789",
    };
  }
  const { username, password, searchParams } = new URL(url);
  const hasSecret = username || password ||
    ["token", "password", "auth"].some((name) => searchParams.has(name));
  if (!hasSecret) return undefined;
  return { message: "a secret in an address ends up in logs", fix: "Pass it with --token-file" };
}

/** The way to a gateway, under which its device tokens are kept (D15). */
export function wayOf(url: string, pins: readonly Pin[]): string | undefined {
  if (pins.length > 0) return `tls:${fingerprintIn(pins[0])}`;
  return URL.canParse(url) ? new URL(url).href.replace(/\/$/, "") : undefined;
}

function isSameUrl(one: string, other: string): boolean {
  return URL.canParse(other) && new URL(one).href === new URL(other).href;
}

function filled(text: string | undefined): string | undefined {
  return text?.trim() || undefined;
}
