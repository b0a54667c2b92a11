// Which value of a setting counts, and where it came from: flag, environment, file or default
// (D15, §5.2). Whether a gateway may start with these values is for the gateway to say.

import { problems } from "../rpc/shape.ts";
import { ConfigError, type ConfigReading, describeProblem } from "./load.ts";
import { type Env, resolvePath } from "./paths.ts";
import { Config, defaultAt, formatKey, type KeyPath, parseKey, schemaAt } from "./schema.ts";

/**
 * Where a value came from: `flag --port`, `env ZERO_GATEWAY_PORT`, `file`, `default`,
 * `derived from <key>`, `unset`, or for several keys at once `mixed`.
 */
export type Source =
  | `flag --${string}`
  | `env ${string}`
  | `derived from ${string}`
  | "file"
  | "default"
  | "unset"
  | "mixed";

export interface Setting<T> {
  value: T;
  source: Source;
}

/** Flags of `zero gateway run` that stand above the environment and the file. */
export interface GatewayFlags {
  /** 0: any port that is free. */
  port?: number | string;
  bind?: string;
  token?: string;
  password?: string;
  /** `--auth`, sets `gateway.auth.mode`. */
  auth?: string;
  /** `--tailscale`, sets `gateway.tailscale.mode`. */
  tailscale?: string;
  tailscaleResetOnExit?: boolean;
}

export type BindMode = "loopback" | "lan" | "tailnet" | "auto" | "custom";
export type AuthMode = "token" | "password" | "trusted-proxy" | "none";
export type TailscaleMode = "off" | "serve" | "funnel";
export type MdnsMode = "off" | "minimal" | "full";
export type ReloadMode = "off" | "restart" | "hot" | "hybrid";
export type LogLevel = "trace" | "debug" | "info" | "warn" | "error" | "silent";

export interface RateLimit {
  maxAttempts: number;
  windowMs: number;
  lockoutMs: number;
}

/** What a gateway runs with. */
export interface GatewaySettings {
  port: Setting<number>;
  bind: Setting<BindMode>;
  customBindHost: Setting<string | undefined>;
  allowedHosts: Setting<string[]>;
  allowedOrigins: Setting<string[]>;
  trustedProxies: Setting<string[]>;
  auth: {
    mode: Setting<AuthMode>;
    /** Unset in mode token: the gateway makes one (D6). */
    token: Setting<string | undefined>;
    password: Setting<string | undefined>;
    /** What a proxy says of its users, for mode `trusted-proxy`. */
    trustedProxy: {
      userHeader: Setting<string | undefined>;
      requiredHeaders: Setting<string[] | Record<string, string | true> | undefined>;
      allowUsers: Setting<string[] | undefined>;
      scopes: Setting<string[] | undefined>;
    };
    allowTailscale: Setting<boolean>;
    silentPairing: Setting<boolean>;
    rateLimit: Setting<RateLimit>;
  };
  tailscale: { mode: Setting<TailscaleMode>; resetOnExit: Setting<boolean> };
  discovery: { mode: Setting<MdnsMode> };
  controlUi: {
    enabled: Setting<boolean>;
    /** "" or "/path" without a slash at the end. */
    basePath: Setting<string>;
    allowInsecureAuth: Setting<boolean>;
    /** It holds until this date. */
    allowInsecureAuthUntil: Setting<string | undefined>;
  };
  tls: {
    enabled: Setting<boolean>;
    autoGenerate: Setting<boolean>;
    certPath: Setting<string | undefined>;
    keyPath: Setting<string | undefined>;
    caPath: Setting<string | undefined>;
  };
  reload: { mode: Setting<ReloadMode>; debounceMs: Setting<number> };
  commands: { restart: Setting<boolean> };
  logging: {
    level: Setting<LogLevel>;
    file: Setting<string | undefined>;
    maxBytes: Setting<number>;
    maxFiles: Setting<number>;
  };
  /** What the user set that has no effect, one sentence each. */
  warnings: string[];
}

export interface SettingsInput {
  flags?: GatewayFlags;
  env: Env;
  config: Config;
}

/** Which flag and which environment variable stand above which key of the file. */
export const OVERRIDES: readonly { key: string; flag?: keyof GatewayFlags; env?: string }[] = [
  { key: "gateway.port", flag: "port", env: "ZERO_GATEWAY_PORT" },
  { key: "gateway.bind", flag: "bind" },
  { key: "gateway.auth.mode", flag: "auth" },
  { key: "gateway.auth.token", flag: "token", env: "ZERO_GATEWAY_TOKEN" },
  { key: "gateway.auth.password", flag: "password", env: "ZERO_GATEWAY_PASSWORD" },
  { key: "gateway.tailscale.mode", flag: "tailscale" },
  { key: "gateway.tailscale.resetOnExit", flag: "tailscaleResetOnExit" },
];

/**
 * The effective settings of a gateway start.
 *
 * @throws {ConfigError} a flag or environment variable that does not fit its setting
 */
export function gatewaySettings({ flags = {}, env, config }: SettingsInput): GatewaySettings {
  const input = { flags, env, config };
  const get = <T>(key: string) => lookUp(key.split("."), input) as Setting<T>;
  const file = (key: string) => atHome(key, get<string | undefined>(key), env.HOME);
  const group = <T>(key: string) => gather(key.split("."), input) as Setting<unknown> as Setting<T>;
  const token = get<string | undefined>("gateway.auth.token");
  const password = get<string | undefined>("gateway.auth.password");
  const mode = authMode(input);
  const trustedProxy = {
    userHeader: get<string | undefined>("gateway.auth.trustedProxy.userHeader"),
    requiredHeaders: get<string[] | Record<string, string | true> | undefined>(
      "gateway.auth.trustedProxy.requiredHeaders",
    ),
    allowUsers: get<string[] | undefined>("gateway.auth.trustedProxy.allowUsers"),
    scopes: get<string[] | undefined>("gateway.auth.trustedProxy.scopes"),
  };
  const basePath = get<string>("gateway.controlUi.basePath");

  return {
    port: get("gateway.port"),
    bind: get("gateway.bind"),
    customBindHost: get("gateway.customBindHost"),
    allowedHosts: get("gateway.allowedHosts"),
    allowedOrigins: get("gateway.controlUi.allowedOrigins"),
    trustedProxies: get("gateway.trustedProxies"),
    auth: {
      mode,
      token,
      password,
      trustedProxy,
      allowTailscale: allowTailscale(input),
      silentPairing: get("gateway.auth.silentPairing"),
      rateLimit: group<RateLimit>("gateway.auth.rateLimit"),
    },
    tailscale: {
      mode: get("gateway.tailscale.mode"),
      resetOnExit: get("gateway.tailscale.resetOnExit"),
    },
    discovery: { mode: get("discovery.mdns.mode") },
    controlUi: {
      enabled: get("gateway.controlUi.enabled"),
      basePath: { ...basePath, value: normalizedBasePath(basePath.value) },
      allowInsecureAuth: get("gateway.controlUi.allowInsecureAuth"),
      allowInsecureAuthUntil: get("gateway.controlUi.allowInsecureAuthUntil"),
    },
    tls: {
      enabled: get("gateway.tls.enabled"),
      autoGenerate: get("gateway.tls.autoGenerate"),
      certPath: file("gateway.tls.certPath"),
      keyPath: file("gateway.tls.keyPath"),
      caPath: file("gateway.tls.caPath"),
    },
    reload: { mode: get("gateway.reload.mode"), debounceMs: get("gateway.reload.debounceMs") },
    commands: { restart: get("commands.restart") },
    logging: {
      level: get("logging.level"),
      file: file("logging.file"),
      maxBytes: get("logging.maxBytes"),
      maxFiles: get("logging.maxFiles"),
    },
    warnings: [
      ...unusedSecrets(mode, { token, password }),
      ...unusedProxy(mode, Object.values(trustedProxy)),
    ],
  };
}

/**
 * The value of one key and where it came from. A key that holds others gives all of them,
 * defaults included.
 *
 * @param key as `formatKey` writes it
 * @throws {ConfigError} not a key, or a flag or variable that does not fit
 */
export function explainKey(
  key: string,
  { flags = {}, env, reading }: {
    flags?: GatewayFlags;
    env: Env;
    reading: Pick<ConfigReading, "config">;
  },
): Setting<unknown> {
  const path = parseKey(key);
  if (!path) throw new ConfigError(`Cannot read the setting ${JSON.stringify(key)}: not a key`);
  const input = { flags, env, config: reading.config };
  const isGroup = schemaAt(path)?.properties !== undefined;
  return isGroup ? gather(path, input) : lookUp(path, input);
}

type Input = Required<SettingsInput>;

/** §5.2 with D6: without any secret the gateway makes a token. */
function authMode(input: Input): Setting<AuthMode> {
  const chosen = plainLookUp(["gateway", "auth", "mode"], input) as Setting<AuthMode>;
  if (chosen.source !== "unset") return chosen;
  for (const mode of ["password", "token"] as const) {
    const key = `gateway.auth.${mode}`;
    if (plainLookUp(key.split("."), input).value !== undefined) {
      return { value: mode, source: `derived from ${key}` };
    }
  }
  return { value: "token", source: "default" };
}

function allowTailscale(input: Input): Setting<boolean> {
  const chosen = plainLookUp(["gateway", "auth", "allowTailscale"], input) as Setting<boolean>;
  if (chosen.source !== "unset") return chosen;
  const isServing = plainLookUp(["gateway", "tailscale", "mode"], input).value === "serve";
  return {
    // A proxy that names users is the one way in, unless the file names another.
    value: isServing && !["password", "trusted-proxy"].includes(authMode(input).value),
    source: "derived from gateway.tailscale.mode",
  };
}

/** Settings whose value follows from others where it is not set. */
const DERIVED: Readonly<Record<string, (input: Input) => Setting<unknown>>> = {
  "gateway.auth.mode": authMode,
  "gateway.auth.allowTailscale": allowTailscale,
};

function lookUp(path: KeyPath, input: Input): Setting<unknown> {
  const key = formatKey(path);
  return Object.hasOwn(DERIVED, key) ? DERIVED[key](input) : plainLookUp(path, input);
}

function plainLookUp(path: KeyPath, { flags, env, config }: Input): Setting<unknown> {
  const override = overrideOf(path, flags, env);
  if (override) return override;
  const inFile = valueAt(config, path);
  if (inFile !== undefined) return { value: inFile, source: "file" };
  const value = defaultAt(path);
  return { value, source: value === undefined ? "unset" : "default" };
}

function overrideOf(path: KeyPath, flags: GatewayFlags, env: Env): Setting<unknown> | undefined {
  const row = OVERRIDES.find(({ key }) => key === formatKey(path));
  if (!row) return undefined;
  const flag = row.flag && flags[row.flag];
  // Only a flag may leave the choice to the system: nobody would find what a file left open.
  if (row.flag === "port" && Number(flag) === 0) return { value: 0, source: "flag --port" };
  if (flag !== undefined) return checked(path, flag, `flag --${dashed(row.flag!)}`);
  const variable = row.env && env[row.env];
  if (variable === undefined || variable.trim() === "") return undefined;
  return checked(path, variable, `env ${row.env}`);
}

/** What comes from a command line or the environment is text, and nobody has checked it. */
function checked(
  path: KeyPath,
  given: unknown,
  source: `flag --${string}` | `env ${string}`,
): Setting<unknown> {
  const isNumeric = ["integer", "number"].includes(schemaAt(path)?.type as string);
  const value = isNumeric && typeof given === "string" && /^\s*\d+\s*$/.test(given)
    ? Number(given)
    : given;
  const nested = path.reduceRight<unknown>((inner, key) => ({ [key]: inner }), value);
  const wrong = problems(nested, Config);
  if (wrong.length === 0) return { value, source };
  throw new ConfigError(
    wrong.map((problem) => ({ ...describeProblem(problem), path: formatKey(path), file: source })),
  );
}

/** Which of the two secrets callers may prove in a mode: the password before the token. */
export function sharedMode(mode: AuthMode, password: string | undefined): "token" | "password" {
  if (mode === "trusted-proxy") return password ? "password" : "token";
  return mode === "password" ? "password" : "token";
}

/** All settings under a key. */
function gather(path: KeyPath, input: Input): Setting<Record<string, unknown>> {
  const known = Object.keys(schemaAt(path)?.properties ?? {});
  const inFile = valueAt(input.config, path);
  const further = typeof inFile === "object" && inFile !== null ? Object.keys(inFile) : [];
  const value: Record<string, unknown> = {};
  const sources = new Set<Source>();
  for (const name of new Set([...known, ...further])) {
    const at = [...path, name];
    const one = schemaAt(at)?.properties === undefined ? lookUp(at, input) : gather(at, input);
    if (one.source === "unset") continue;
    value[name] = one.value;
    sources.add(one.source);
  }
  const [source = "unset"] = sources;
  return { value, source: sources.size > 1 ? "mixed" : source };
}

function valueAt(value: unknown, path: KeyPath): unknown {
  for (const key of path) {
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, key)) {
      return undefined;
    }
    value = (value as Record<string | number, unknown>)[key];
  }
  return value;
}

/** A path whose `~` is resolved. */
function atHome(
  key: string,
  setting: Setting<string | undefined>,
  home: string | undefined,
): Setting<string | undefined> {
  const { value, source } = setting;
  if (!value?.startsWith("~")) return setting;
  try {
    return { value: resolvePath(value, { home }), source };
  } catch (cause) {
    throw new ConfigError(`Cannot use ${key}: ${(cause as Error).message}`, { cause });
  }
}

function normalizedBasePath(path: string): string {
  const inner = path.trim().replace(/^\/+|\/+$/g, "");
  return inner === "" ? "" : `/${inner}`;
}

function dashed(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

function* unusedSecrets(
  mode: Setting<AuthMode>,
  secrets: Record<"token" | "password", Setting<string | undefined>>,
): Generator<string> {
  for (const name of ["token", "password"] as const) {
    const { value, source } = secrets[name];
    if (value === undefined || !source.startsWith("flag")) continue;
    const isUsed = mode.value !== "none" && name === sharedMode(mode.value, secrets.password.value);
    if (isUsed) continue;
    yield `--${name} has no effect: gateway.auth.mode is ${mode.value} (${mode.source}); ` +
      `add --auth ${name}`;
  }
}

function* unusedProxy(
  mode: Setting<AuthMode>,
  settings: readonly Setting<unknown>[],
): Generator<string> {
  if (mode.value === "trusted-proxy" || settings.every(({ value }) => value === undefined)) return;
  yield `gateway.auth.trustedProxy has no effect: gateway.auth.mode is ${mode.value} (${mode.source})`;
}
