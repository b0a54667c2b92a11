// From a command line to a gateway that answers: target, credential, identity, connection, and what a
// failure says on the terminal and to a machine (protocol.md §11.2, D13, D15).

import { EXIT_FAILURE, UsageError } from "../config/command.ts";
import { DeviceTokenFile, openDevice, readDevice } from "../config/identity_store.ts";
import { ConfigError, readConfig } from "../config/load.ts";
import type { Paths } from "../config/paths.ts";
import { fingerprintIn } from "../config/schema.ts";
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
  ssh?: string;
  "ssh-identity"?: string;
  "ssh-accept-new"?: boolean;
  "remote-port"?: number;
  remote?: string;
  "tls-fingerprint"?: string;
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
export const CLI_SCOPES = ["operator.admin", "operator.approvals", "operator.pairing"];
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
  const input = await readTargetInput(flags, paths, terminal);
  const target = resolveTarget(input);
  const canAsk = terminal.isInteractive && terminal.canAsk && !flags.json;
  if (target.problem?.code === "CREDENTIALS_REQUIRED" && canAsk) {
    const token = await terminal.askSecret(`Token of ${target.url}:`);
    if (token) {
      const typed = { ...input.flags, token, tokenSource: "prompt" as const };
      const asked: TargetInput = { ...input, flags: typed };
      return aimAt(resolveTarget(asked), asked, paths, terminal);
    }
  }
  return aimAt(target, input, paths, terminal);
}

/** Everything a target is chosen from. @throws {UsageError} a secret that cannot be read */
export async function readTargetInput(
  flags: CallFlags,
  paths: Paths,
  terminal: Terminal,
): Promise<TargetInput> {
  const { configPath, env, tokenFile } = paths;
  const [reading, made, typed] = await Promise.all([
    readConfig({ path: configPath, env }),
    readMadeToken(tokenFile),
    readFlags(flags, paths, terminal),
  ]);
  return {
    flags: typed,
    env,
    reading,
    made,
    localFingerprint: await localFingerprint(reading.config.gateway?.tls, paths),
    tailnetAddress,
  };
}

/** With the token of a gateway on this machine a device would say nothing more (§4.6, §15.2). */
export function needsDevice({ isRemote, token }: Target): boolean {
  return isRemote || !token;
}

function aimAt(target: Target, input: TargetInput, paths: Paths, terminal: Terminal): Aim {
  const identity = needsDevice(target)
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
 * Connects to a target. Through a tunnel, the target of the aim has its address from then on.
 *
 * @throws {TargetError} | {TunnelError} | {ClosedError} | {GatewayTimeoutError}
 */
export async function reach(
  aim: Aim,
  options: {
    timeout: number;
    version: string;
    mode?: "cli" | "probe";
    extra?: Partial<ConnectOptions>;
  },
  terminal: Terminal,
): Promise<Client> {
  const { paths, identity } = aim;
  if (aim.target.problem) throw aim.target.problem;
  const warn = (message: string) => terminal.err(message);
  const auth = options.extra?.auth ?? await readCredential(aim.target, paths, warn);
  const headers = await readEdgeHeaders(aim.target, paths, warn);
  const tunnel = await openWay(aim, { ...options, signal: options.extra?.signal }, terminal);
  const { target } = aim;
  const { url, pins, way } = target;
  return await Client.connect({
    open: (signal) =>
      dial(url, {
        pins,
        headers,
        signal,
        warn,
        allowInsecure: paths.env.ZERO_ALLOW_INSECURE_WS?.trim() === "1",
      }),
    owned: tunnel,
    client: {
      id: "cli",
      mode: options.mode ?? "cli",
      version: options.version,
      platform: Deno.build.os,
      instanceId: crypto.randomUUID(),
    },
    role: "operator",
    scopes: CLI_SCOPES,
    auth,
    // Who types a secret wants to know whether that one is right.
    retriesWithDeviceToken: !isTyped(target),
    timeoutMs: options.timeout,
    identity,
    tokens: way === undefined ? undefined : tokensOf(paths, identity, waysOf(target), warn),
    ...options.extra,
  });
}

/** Opens the tunnel of a target, or finds it open. @returns what ends with the connection */
async function openWay(
  aim: Aim,
  { version, signal }: { version: string; signal?: AbortSignal },
  terminal: Terminal,
): Promise<AsyncDisposable | undefined> {
  const { target, paths } = aim;
  if (!target.ssh) return undefined;
  const { isKept, ...ssh } = target.ssh;
  const { ensureTunnel, openTunnel } = await import("../tunnel/tunnels.ts");
  const spec = { ...ssh, pins: target.pins, anyPort: true };
  const options = {
    paths,
    version,
    isInteractive: terminal.canAsk,
    say: (message: string) => terminal.err(message),
    signal,
  };
  const tunnel = isKept ? await ensureTunnel(spec, options) : await openTunnel(spec, options);
  const url = new URL(target.url);
  url.port = String(tunnel.localPort);
  aim.target = { ...target, url: url.href.replace(/\/$/, "") };
  return Symbol.asyncDispose in tunnel ? tunnel as AsyncDisposable : undefined;
}

/** The secrets of a target, read from where they stand. @throws {TargetError} one cannot be read */
export async function readCredential(
  { token, tokenSource = "", password, passwordSource = "" }: Target,
  { env }: Pick<Paths, "env">,
  warn: (message: string) => void,
): Promise<{ token?: string; password?: string }> {
  const read = (ref: Target["token"], source: string) =>
    ref === undefined
      ? undefined
      : readSecret(ref, { env, name: source.replace(/^config /, ""), warn });
  // One after the other: a program that asks for a passphrase asks alone.
  return {
    token: await read(token, tokenSource),
    password: await read(password, passwordSource),
  };
}

/** What the proxy in front of a target asks for. @throws {TargetError} one cannot be read */
export async function readEdgeHeaders(
  { edge }: Target,
  { env }: Pick<Paths, "env">,
  warn: (message: string) => void,
): Promise<Record<string, string> | undefined> {
  if (!edge) return undefined;
  const headers: Record<string, string> = {};
  for (const { name, value, source } of edge) {
    headers[name] = await readSecret(value, { env, name: source, warn });
  }
  return headers;
}

/** @throws {TargetError} it cannot be read */
async function readSecret(
  ref: NonNullable<Target["token"]>,
  options: { env: Paths["env"]; name: string; warn(message: string): void },
): Promise<string> {
  if (typeof ref === "string") return ref;
  const { readSecretSource } = await import("../config/secrets.ts");
  try {
    return await readSecretSource(ref, options);
  } catch (cause) {
    if (!(cause instanceof ConfigError)) throw cause;
    const fix = "Mend that, or pass --token-file for this once";
    throw new TargetError("SECRET_UNAVAILABLE", cause.message, fix);
  }
}

/** What went wrong between a command and its gateway; undefined for what is none of that. */
export async function describeFailure(
  error: unknown,
  { target, paths }: Aim,
  timeoutMs: number,
): Promise<Failure | undefined> {
  const failure = await failureOf(error, target, timeoutMs);
  // What another machine is told to do is not done in a profile of this one.
  const isHere = !target.isRemote || error instanceof TargetError || error instanceof TunnelError;
  if (failure?.fix === undefined || !isHere) return failure;
  const { inProfile } = await import("../config/paths.ts");
  return { ...failure, fix: inProfile(failure.fix, paths.profile) };
}

async function failureOf(
  error: unknown,
  target: Target,
  timeoutMs: number,
): Promise<Failure | undefined> {
  if (error instanceof TargetError) {
    const { code, message, fix } = error;
    const isAuth = code === "CREDENTIALS_REQUIRED" || code === "SECRET_UNAVAILABLE";
    const layer = isAuth ? "auth" : "network";
    return { code, message, layer, retryable: false, fix };
  }
  if (error instanceof TunnelError) {
    const { kind, message, fix, isTransient } = error;
    const layer = kind === "tls" ? "tls" : "network";
    const word = kind.replace(/^gateway-/, "").replaceAll("-", "_");
    const code = `GATEWAY_${word.toUpperCase()}`;
    return { code, message, layer, retryable: isTransient, fix };
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
  const { url, urlSource, tokenSource, passwordSource, ssh } = target;
  terminal.json({
    ok: false,
    error: { code, message, details, layer, retryable, fix },
    gateway: { url, urlSource, ssh: ssh?.target, tokenSource, passwordSource },
  });
}

/** Nothing that speaks WebSocket: says whether anything is there at all. */
async function unreachable(message: string, target: Target): Promise<Failure> {
  const base = { layer: "network", retryable: true };
  if (target.ssh) {
    const { target: host, remotePort } = target.ssh;
    const fix = `Start the gateway on ${host}: zero gateway`;
    const code = "GATEWAY_UNREACHABLE";
    return { ...base, code, message: `no gateway answers on port ${remotePort} of ${host}`, fix };
  }
  const found = await lookAt(target.url);
  if (found === "taken") {
    const known = await tlsTrouble(target);
    if (known) return known;
  }
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

/** What listens there speaks TLS where that was not expected, or with a certificate nobody knows. */
async function tlsTrouble({ url, pins, isRemote }: Target): Promise<Failure | undefined> {
  if (pins.length > 0) return undefined;
  const secure = url.replace(/^ws:/, "wss:");
  let shown: string | undefined;
  try {
    const { shownFingerprint } = await import("../tunnel/dial.ts");
    shown = await shownFingerprint(secure, AbortSignal.timeout(LOOK_MS));
  } catch {
    return undefined; // no TLS: something else is wrong
  }
  if (url.startsWith("wss:") && await isSigned(new URL(url))) return undefined;
  const base = { code: "GATEWAY_TLS", layer: "tls", retryable: false };
  const compare = `once "zero gateway cert show" on the gateway's machine shows the same: ` +
    `--tls-fingerprint sha256:${shown}`;
  return url.startsWith("ws:")
    ? {
      ...base,
      message: `Cannot connect to ${url}: what listens there speaks TLS`,
      fix: `--url ${secure}${isRemote ? `, and ${compare}` : ""}`,
    }
    : {
      ...base,
      message: `Cannot connect to ${url}: no authority known here has signed its certificate`,
      fix: `Expect this one, ${compare}`,
    };
}

/** Whether an authority that is known here stands behind a certificate. */
async function isSigned({ hostname, port }: URL): Promise<boolean> {
  try {
    const connection = await Deno.connectTls({
      hostname: hostname.replace(/^\[|\]$/g, ""),
      port: Number(port || 443),
    });
    using _closed = connection;
    await connection.handshake();
    return true;
  } catch (error) {
    return !(error instanceof Deno.errors.InvalidData);
  }
}

/** Whether the secret was typed for this command. */
export function isTyped({ tokenSource = "", passwordSource = "" }: Target): boolean {
  return [tokenSource, passwordSource].some((source) => /^(flag|prompt)/.test(source));
}

/** What starts the gateway of this machine that a target means. */
export function startCommand({ url, urlSource }: Target): string {
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

/** The ways to a gateway: it is the same one under each of the certificates it is expected to have. */
export function waysOf({ way = "", pins }: Target): [string, ...string[]] {
  const others = way.startsWith("tls:") ? pins.map((pin) => `tls:${fingerprintIn(pin)}`) : [];
  return [way, ...others.filter((other) => other !== way)];
}

/** The tokens this installation has for the ways to one gateway. */
function tokensOf(
  { deviceAuthFile: file }: Paths,
  identity: Promise<Identity | undefined>,
  [way, ...otherWays]: [string, ...string[]],
  warn: (message: string) => void,
): DeviceTokens {
  const store = async () => {
    const device = await identity;
    return device &&
      new DeviceTokenFile({
        file,
        deviceId: device.deviceId,
        way,
        otherWays,
        warn,
        nowMs: Date.now,
      });
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

/** The device of this installation where it has one; none is made. */
export async function readIdentity({ deviceFile }: Paths): Promise<Identity | undefined> {
  try {
    return await readDevice({ file: deviceFile, keys: { read: identityFromPem } });
  } catch (error) {
    if (error instanceof Deno.errors.PermissionDenied) return undefined;
    throw error;
  }
}

function isUnwritable(error: unknown): boolean {
  return error instanceof Deno.errors.PermissionDenied ||
    error instanceof Deno.errors.NotCapable ||
    (error as { code?: string }).code === "EROFS";
}

/** A file of the command line as whoever runs ssh from elsewhere can find it. */
export async function absolute(
  file: string | undefined,
  { HOME: home }: Paths["env"],
): Promise<string | undefined> {
  if (file === undefined) return undefined;
  const { resolvePath } = await import("../config/paths.ts");
  return resolvePath(file, { home, cwd: Deno.cwd() });
}

async function readFlags(
  flags: CallFlags,
  { env }: Paths,
  terminal: Terminal,
): Promise<TargetFlags> {
  const { url, port, ssh, remote, token, password } = flags;
  const file = flags["token-file"];
  return {
    url,
    port,
    ssh,
    sshIdentity: await absolute(flags["ssh-identity"], env),
    // Not given means as it is configured.
    sshAcceptNew: flags["ssh-accept-new"] || undefined,
    remotePort: flags["remote-port"],
    remote,
    tlsFingerprint: flags["tls-fingerprint"],
    password,
    ...file === undefined
      ? { token }
      : { token: await readTokenFile(file, terminal), tokenSource: "flag --token-file" },
  };
}

/** A token from a file, or with `-` from standard input. @throws {UsageError} there is none */
export async function readTokenFile(file: string, terminal: Terminal): Promise<string> {
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

/** What the gateway of this machine shows: now, after a rotation, and until it has noticed one. */
export async function localFingerprint(
  tls: { enabled?: boolean; certPath?: string } | undefined,
  { stateDir, env }: Paths,
): Promise<string[]> {
  if (!tls?.enabled) return [];
  const { resolvePath } = await import("../config/paths.ts");
  const { fingerprintOf } = await import("../tunnel/pin.ts");
  const directory = `${stateDir}/gateway/tls`;
  const files = [
    tls.certPath ? resolvePath(tls.certPath, { home: env.HOME }) : `${directory}/gateway-cert.pem`,
    `${directory}/next-cert.pem`,
    `${directory}/previous-cert.pem`,
  ];
  const found = await Promise.all(files.map(async (file) => {
    try {
      return await fingerprintOf(await Deno.readTextFile(file));
    } catch {
      // Not made yet. Without any pin the certificate must be one that authorities signed.
      return undefined;
    }
  }));
  return found.filter((one) => one !== undefined);
}

/** The first tailnet IPv4 of this machine: 100.64.0.0/10. */
export function tailnetAddress(): string | undefined {
  return Deno.networkInterfaces().map(({ address }) => address).find((address) => {
    const [first, second] = address.split(".").map(Number);
    return first === 100 && second >= 64 && second <= 127;
  });
}
