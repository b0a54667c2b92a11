// Which gateway a command talks to, with which credential, and why (protocol.md D15, §11.2). The one
// place that decides it: every command asks here, and every failure prints what was decided.

import { UsageError } from "./command.ts";
import { type ConfigReading, formatIssue } from "./load.ts";
import type { Env } from "./paths.ts";
import { normalizedFingerprint } from "./schema.ts";
import { explainKey } from "./settings.ts";

/** What was typed for this command alone. */
export interface TargetFlags {
  url?: string;
  port?: number;
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
  localFingerprint?: string;
  /** The first tailnet IPv4 of this machine; asked only for bind `tailnet`. */
  tailnetAddress?(): string | undefined;
}

export interface Target {
  /** To be dialled as it stands. */
  url: string;
  /** `cli --url`, `env ZERO_GATEWAY_URL`, `config gateway.remote.url`, `local loopback`, … */
  urlSource: string;
  token?: string;
  tokenSource?: string;
  password?: string;
  passwordSource?: string;
  /** Certificate fingerprints one of which must match; empty: the authorities decide. */
  pins: string[];
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

/** A command line and configuration that lead to no gateway. */
export class TargetError extends Error {
  override name = "TargetError";

  constructor(
    readonly code: "CONFIG_INVALID" | "REMOTE_URL_MISSING" | "CREDENTIALS_REQUIRED" | "URL_INVALID",
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
 * @throws {UsageError} a `--url` that is no WebSocket address, or has a secret in it
 * @throws {ConfigError} an environment variable that does not fit its setting
 */
export function resolveTarget(input: TargetInput): Target {
  const { flags, env, reading } = input;
  const { mode, remote } = reading.config.gateway ?? {};
  const flagUrl = filled(flags.url);
  if (flagUrl) return byFlagUrl(flagUrl, input);
  if (flags.port !== undefined) {
    return local(input, { url: `ws://127.0.0.1:${flags.port}`, urlSource: "cli --port" });
  }
  const envUrl = filled(env.ZERO_GATEWAY_URL);
  if (envUrl) return byEnvironment(envUrl, input);
  if (!reading.valid) {
    const [issue] = reading.issues;
    const problem = new TargetError(
      "CONFIG_INVALID",
      `Cannot choose a gateway: ${issue ? formatIssue(issue) : `${reading.path} is not valid`}`,
      "zero config validate",
    );
    return { ...local(input), problem };
  }
  if (mode !== "remote") return local(input);
  const remoteUrl = filled(remote?.url);
  if (remoteUrl) return byConfig(remoteUrl, input, "config gateway.remote.url");
  return {
    ...local(input),
    ...NO_CREDENTIALS,
    urlSource: "missing gateway.remote.url (fallback local)",
    way: undefined,
    problem: new TargetError(
      "REMOTE_URL_MISSING",
      "gateway remote mode misconfigured: gateway.remote.url missing\n" +
        `Config: ${reading.path}\nFix: set gateway.remote.url, or set gateway.mode=local.`,
      "set gateway.remote.url, or set gateway.mode=local.",
    ),
  };
}

/** The gateway of this installation, wherever commands go otherwise: for `zero gateway status`. */
export function localTarget(input: TargetInput): Target {
  return local(input);
}

/** The lines of §11.2 that stand below a failure. */
export function targetLines({ url, urlSource, configPath, bind }: Target): string[] {
  return [
    `Gateway target: ${url}`,
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
  const { pins } = target;
  return [
    ...targetLines(target),
    credentialLine(target),
    ...pins.length > 0 ? [`TLS fingerprint: ${pins.join(", ")}`] : [],
  ].join("\n");
}

/** Whether a `ws://` or `wss://` URL names this machine, by a literal or `localhost`. */
export function isLoopbackUrl(url: string): boolean {
  if (!URL.canParse(url)) return false;
  const host = new URL(url).hostname.replace(/^\[|\]$/g, "");
  return host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host);
}

type Credentials = Pick<Target, "token" | "tokenSource" | "password" | "passwordSource">;
type Candidate = [value: string | undefined, source: string];

const NO_CREDENTIALS: Credentials = {
  token: undefined,
  tokenSource: undefined,
  password: undefined,
  passwordSource: undefined,
};

function byFlagUrl(url: string, input: TargetInput): Target {
  const fault = urlFault(url);
  if (fault) throw new UsageError(`Cannot use --url: ${fault.message}`, { hint: fault.fix });
  const remoteUrl = filled(input.reading.config.gateway?.remote?.url);
  if (remoteUrl && isSameUrl(url, remoteUrl)) return byConfig(url, input, "cli --url");
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

function byConfig(url: string, { flags, env, reading }: TargetInput, urlSource: string): Target {
  const { token, password, tlsFingerprint } = reading.config.gateway?.remote ?? {};
  const pins = tlsFingerprint ? [normalizedFingerprint(tlsFingerprint)] : [];
  const fault = urlFault(url);
  return {
    url: fault ? "" : url,
    urlSource,
    ...typedCredentials(flags) ?? firstOf(
      [[token, "config gateway.remote.token"], envToken(env)],
      [[password, "config gateway.remote.password"], envPassword(env)],
    ),
    pins,
    configPath: reading.path,
    isRemote: true,
    way: wayOf(url, pins),
    ...fault && {
      problem: new TargetError(
        "URL_INVALID",
        `Cannot use gateway.remote.url: ${fault.message}`,
        fault.fix,
      ),
    },
  };
}

/** @param named the address, where a flag names it */
function local(input: TargetInput, named?: { url: string; urlSource: string }): Target {
  const { flags, env, reading } = input;
  const setting = (key: string) => explainKey(key, { env, reading }).value;
  const hasTls = setting("gateway.tls.enabled") === true;
  const bind = String(setting("gateway.bind"));
  const { url, urlSource } = named ?? localAddress(input, { bind, hasTls });
  const pins = hasTls && url.startsWith("wss:") && input.localFingerprint
    ? [normalizedFingerprint(input.localFingerprint)]
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

/** What is wrong with an address; the answer never quotes it, it may hold a secret (D19). */
function urlFault(url: string): { message: string; fix: string } | undefined {
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
export function wayOf(url: string, pins: readonly string[]): string | undefined {
  if (pins.length > 0) return `tls:${pins[0]}`;
  return URL.canParse(url) ? new URL(url).href.replace(/\/$/, "") : undefined;
}

function isSameUrl(one: string, other: string): boolean {
  return URL.canParse(other) && new URL(one).href === new URL(other).href;
}

function filled(text: string | undefined): string | undefined {
  return text?.trim() || undefined;
}
