// From a command line to a gateway that answers: target, credential, identity, connection, and what a
// failure says on the terminal and to a machine (protocol.md §11.2, D13, D15).

import { EXIT_FAILURE, UsageError } from "../config/command.ts";
import { DeviceTokenFile, openDevice } from "../config/identity_store.ts";
import { readConfig } from "../config/load.ts";
import type { Paths } from "../config/paths.ts";
import {
  credentialLine,
  explainTarget,
  localTarget,
  resolveTarget,
  type Target,
  TargetError,
  type TargetFlags,
  type TargetInput,
  targetLines,
} from "../config/target.ts";
import type { Terminal } from "../config/terminal.ts";
import {
  Client,
  ClosedError,
  type ConnectOptions,
  type DeviceTokens,
  GatewayTimeoutError,
} from "../rpc/client.ts";
import type { RefusalDetails } from "../rpc/error.ts";
import { exportPem, generateIdentity, type Identity, identityFromPem } from "../rpc/identity.ts";
import { dial, DialFailure } from "../tunnel/dial.ts";
import { TunnelError } from "../tunnel/error.ts";

/** What commands that call a gateway are given. */
export interface CallWorld {
  /** Where this command line keeps its files. */
  place(): Paths;
  version: string;
}

/** The flags of every command that calls a gateway, as they were parsed. */
export interface CallFlags {
  url?: string;
  port?: number;
  token?: string;
  "token-file"?: string;
  password?: string;
  timeout: number;
  json: boolean;
  verbose: boolean;
}

/** What a command finds out before it dials: its paths, its configuration, its target. */
export interface Aim {
  paths: Paths;
  input: TargetInput;
  target: Target;
  /** Being read or made meanwhile; none where the state directory cannot be written. */
  identity: Promise<Identity | undefined>;
}

/** What a failure says, to people and to machines. */
export interface Failure {
  code: string;
  message: string;
  details?: unknown;
  layer?: string;
  retryable?: boolean;
  fix?: string;
}

/** What the CLI may do on a gateway (§11.2). */
const CLI_SCOPES = ["operator.admin", "operator.approvals", "operator.pairing"];
/** How long a failed command looks for what listens in the gateway's place. */
const LOOK_MS = 500;

/**
 * Decides where a command goes. A missing secret is asked for where somebody can be asked.
 *
 * @throws {UsageError} on flags that name no gateway or no readable secret
 */
export async function takeAim(
  flags: CallFlags,
  { place }: CallWorld,
  terminal: Terminal,
): Promise<Aim> {
  const paths = place();
  const { configPath, env, tokenFile } = paths;
  const [reading, made, typed] = await Promise.all([
    readConfig({ path: configPath, env }),
    readMadeToken(tokenFile),
    readFlags(flags, terminal),
  ]);
  const input: TargetInput = {
    flags: typed,
    env,
    reading,
    made,
    localFingerprint: await localFingerprint(reading.config.gateway?.tls, paths),
    tailnetAddress,
  };
  const target = resolveTarget(input);
  const canAsk = terminal.isInteractive && terminal.canAsk && !flags.json;
  if (target.problem?.code === "CREDENTIALS_REQUIRED" && canAsk) {
    const token = await terminal.askSecret(`Token of ${target.url}:`);
    if (token) {
      const asked: TargetInput = { ...input, flags: { ...typed, token, tokenSource: "prompt" } };
      return aimAt(resolveTarget(asked), asked, paths, terminal);
    }
  }
  return aimAt(target, input, paths, terminal);
}

/** With the token of a gateway on this machine a device would say nothing more (§4.6, §15.2). */
function aimAt(target: Target, input: TargetInput, paths: Paths, terminal: Terminal): Aim {
  const needsDevice = target.isRemote || !target.token;
  const identity = needsDevice
    ? ownIdentity(paths, (message) => terminal.err(message))
    : Promise.resolve(undefined);
  identity.catch(() => {}); // told by whoever connects with it
  return { paths, input, target, identity };
}

/** The same aim, at the gateway of this installation whatever the configuration prefers. */
export function aimLocally(aim: Aim): Aim {
  return { ...aim, target: localTarget(aim.input) };
}

/**
 * Connects, does something, and disconnects. What goes wrong on the way is told and ends with exit
 * code 1; errors of calls pass through.
 */
export async function withGateway(
  flags: CallFlags,
  world: CallWorld,
  terminal: Terminal,
  use: (client: Client, aim: Aim) => Promise<number | void>,
): Promise<number | void> {
  const aim = await takeAim(flags, world, terminal);
  if (flags.verbose) terminal.err(explainTarget(aim.target));
  try {
    await using client = await reach(aim, { ...flags, version: world.version }, terminal);
    return await use(client, aim);
  } catch (error) {
    const failure = await describeFailure(error, aim, flags.timeout);
    if (!failure) throw error;
    tellFailure(failure, aim.target, { isJson: flags.json }, terminal);
    return EXIT_FAILURE;
  }
}

/**
 * Connects to a target.
 *
 * @throws {TargetError} | {TunnelError} | {ClosedError} | {GatewayTimeoutError}
 */
export async function reach(
  { target, paths, identity }: Aim,
  options: {
    timeout: number;
    version: string;
    mode?: "cli" | "probe";
    extra?: Partial<ConnectOptions>;
  },
  terminal: Terminal,
): Promise<Client> {
  if (target.problem) throw target.problem;
  const warn = (message: string) => terminal.err(message);
  const { url, token, password, pins, way } = target;
  return await Client.connect({
    open: (signal) =>
      dial(url, {
        pins,
        signal,
        warn,
        allowInsecure: paths.env.ZERO_ALLOW_INSECURE_WS?.trim() === "1",
      }),
    client: {
      id: "cli",
      mode: options.mode ?? "cli",
      version: options.version,
      platform: Deno.build.os,
      instanceId: crypto.randomUUID(),
    },
    role: "operator",
    scopes: CLI_SCOPES,
    auth: { token, password },
    // Who types a secret wants to know whether that one is right.
    retriesWithDeviceToken: !isTyped(target),
    timeoutMs: options.timeout,
    identity,
    tokens: way === undefined ? undefined : tokensOf(paths, identity, way, warn),
    ...options.extra,
  });
}

/** What went wrong between a command and its gateway; undefined for what is none of that. */
export async function describeFailure(
  error: unknown,
  { target }: Aim,
  timeoutMs: number,
): Promise<Failure | undefined> {
  if (error instanceof TargetError) {
    const { code, message, fix } = error;
    const layer = code === "CREDENTIALS_REQUIRED" ? "auth" : "network";
    return { code, message, layer, retryable: false, fix };
  }
  if (error instanceof TunnelError) {
    const { kind, message, fix } = error;
    const layer = kind === "tls" ? "tls" : "network";
    return { code: `GATEWAY_${kind.toUpperCase()}`, message, layer, retryable: false, fix };
  }
  if (error instanceof GatewayTimeoutError) {
    return {
      code: "GATEWAY_TIMEOUT",
      message: `gateway timeout after ${timeoutMs}ms`,
      layer: "network",
      retryable: true,
      fix: "Wait longer with --timeout, or see what it is busy with: zero logs",
    };
  }
  if (error instanceof DialFailure) return await unreachable(error.message, target);
  if (!(error instanceof ClosedError)) return undefined;
  if (!error.refusal && !error.wasOpen) return await unreachable(error.message, target);
  const { message, refusal } = error;
  const details = refusal?.details as Partial<RefusalDetails> | undefined;
  return {
    code: details?.code ?? refusal?.code ?? "GATEWAY_CLOSED",
    message,
    details,
    layer: details?.layer ?? (refusal ? "auth" : "network"),
    retryable: details?.retryable ?? refusal?.retryable ?? !refusal,
    fix: details?.fix,
  };
}

/** Tells a failure: the text of §11.2 on stderr, with `--json` a document on stdout as well. */
export function tellFailure(
  failure: Failure,
  target: Target,
  { isJson }: { isJson: boolean },
  terminal: Terminal,
): void {
  const { code, message, details, layer, retryable, fix } = failure;
  const { red, dim } = terminal.errStyle;
  // Texts that end in their own "Fix:" line are literal and complete.
  const isComplete = /^Fix: /m.test(message);
  const lines = [
    `${red("error:")} ${message}`,
    ...isComplete ? [] : [...targetLines(target), credentialLine(target)],
    dim(`code:  ${code}`),
    ...layer ? [dim(`layer: ${layer}`)] : [],
    ...fix && !isComplete ? [dim(`fix:   ${fix}`)] : [],
  ];
  terminal.err(lines.join("\n"));
  if (!isJson) return;
  const { url, urlSource, tokenSource, passwordSource } = target;
  terminal.json({
    ok: false,
    error: { code, message, details, layer, retryable, fix },
    gateway: { url, urlSource, tokenSource, passwordSource },
  });
}

/** Nothing that speaks WebSocket: says whether anything is there at all. */
async function unreachable(message: string, target: Target): Promise<Failure> {
  const base = { layer: "network", retryable: true };
  const found = await lookAt(target.url);
  if (found === "refused") {
    return {
      ...base,
      code: "GATEWAY_UNREACHABLE",
      message: `gateway closed (1006 abnormal closure (no close frame)): nobody listens there`,
      fix: target.isRemote ? `Start the gateway at ${target.url}` : startCommand(target),
    };
  }
  return {
    ...base,
    code: "GATEWAY_UNREACHABLE",
    message,
    fix: found === "taken"
      ? `Check the address: what listens at ${target.url} does not answer as a gateway`
      : `Check that ${target.url} can be reached from here`,
  };
}

function isTyped({ tokenSource = "", passwordSource = "" }: Target): boolean {
  return [tokenSource, passwordSource].some((source) => /^(flag|prompt)/.test(source));
}

function startCommand({ url, urlSource }: Target): string {
  const { port } = new URL(url);
  return urlSource.startsWith("cli ") && port ? `zero gateway --port ${port}` : "zero gateway";
}

async function lookAt(url: string): Promise<"refused" | "taken" | "unknown"> {
  const { hostname, port, protocol } = new URL(url);
  const attempt = Deno.connect({
    hostname: hostname.replace(/^\[|\]$/g, ""),
    port: Number(port || (protocol === "wss:" ? 443 : 80)),
  });
  const timeout = Promise.withResolvers<"unknown">();
  const timer = setTimeout(() => timeout.resolve("unknown"), LOOK_MS);
  const looked = attempt.then((connection) => {
    connection.close();
    return "taken" as const;
  }, (error) => error instanceof Deno.errors.ConnectionRefused ? "refused" as const : "unknown");
  const found = await Promise.race([looked, timeout.promise]);
  clearTimeout(timer);
  return found;
}

/** The tokens this installation has for one way to a gateway. */
function tokensOf(
  { deviceAuthFile: file }: Paths,
  identity: Promise<Identity | undefined>,
  way: string,
  warn: (message: string) => void,
): DeviceTokens {
  const store = async () => {
    const device = await identity;
    return device &&
      new DeviceTokenFile({ file, deviceId: device.deviceId, way, warn, nowMs: Date.now });
  };
  return {
    find: async (gatewayId, role) => await (await store())?.find(gatewayId, role),
    drop: async (gatewayId, role) => await (await store())?.drop(gatewayId, role),
    async keep(gatewayId, token) {
      try {
        await (await store())?.keep(gatewayId, token);
      } catch (error) {
        warn(`Cannot keep the device token in ${file}: ${(error as Error).message}`);
      }
    },
  };
}

/** The device of this installation; none where its state directory cannot be written. */
export async function ownIdentity(
  { deviceFile }: Paths,
  warn: (message: string) => void,
): Promise<Identity | undefined> {
  const keys = { generate: generateIdentity, read: identityFromPem, write: exportPem };
  try {
    return await openDevice({ file: deviceFile, keys, warn, nowMs: Date.now });
  } catch (error) {
    if (!isUnwritable(error)) throw error;
    warn(`Cannot keep a device identity in ${deviceFile}: ${(error as Error).message}`);
    return undefined;
  }
}

function isUnwritable(error: unknown): boolean {
  return error instanceof Deno.errors.PermissionDenied ||
    error instanceof Deno.errors.NotCapable ||
    (error as { code?: string }).code === "EROFS";
}

async function readFlags(flags: CallFlags, terminal: Terminal): Promise<TargetFlags> {
  const { url, port, password } = flags;
  const file = flags["token-file"];
  if (file === undefined) return { url, port, token: flags.token, password };
  const token = await readTokenFile(file, terminal);
  return { url, port, password, token, tokenSource: "flag --token-file" };
}

async function readTokenFile(file: string, terminal: Terminal): Promise<string> {
  let text: string;
  try {
    text = file === "-" ? await terminal.readStdin() : await Deno.readTextFile(file);
  } catch (cause) {
    const reason = cause instanceof Deno.errors.NotFound ? "there is no such file" : "unreadable";
    throw new UsageError(`Cannot read --token-file ${file}: ${reason}`, { cause });
  }
  const token = text.trim();
  if (token === "") throw new UsageError(`Cannot read --token-file ${file}: it is empty`);
  return token;
}

async function readMadeToken(file: string): Promise<TargetInput["made"]> {
  try {
    const token = (await Deno.readTextFile(file)).trim();
    return token === "" ? undefined : { token, file };
  } catch {
    // No gateway has started here yet, or it belongs to another user: either way not ours to use.
    return undefined;
  }
}

async function localFingerprint(
  tls: { enabled?: boolean; certPath?: string } | undefined,
  { stateDir, env }: Paths,
): Promise<string | undefined> {
  if (!tls?.enabled) return undefined;
  const { resolvePath } = await import("../config/paths.ts");
  const { fingerprintOf } = await import("../tunnel/pin.ts");
  const file = resolvePath(tls.certPath ?? `${stateDir}/gateway/tls/gateway-cert.pem`, {
    home: env.HOME,
  });
  try {
    return await fingerprintOf(await Deno.readTextFile(file));
  } catch {
    // Not made yet: without a pin the certificate must be one that authorities signed.
    return undefined;
  }
}

/** The first tailnet IPv4 of this machine: 100.64.0.0/10. */
export function tailnetAddress(): string | undefined {
  return Deno.networkInterfaces().map(({ address }) => address).find((address) => {
    const [first, second] = address.split(".").map(Number);
    return first === 100 && second >= 64 && second <= 127;
  });
}
