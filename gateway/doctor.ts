// `zero doctor`: walks the way to a gateway hop by hop and stops at the first that is broken, with what
// it saw there and what mends it. It leaves everything as it found it: credentials are checked without
// a device, or with a token that the device has already, so nothing is ever paired or asked for.

import { EXIT_FAILURE } from "../config/command.ts";
import { DeviceTokenFile } from "../config/identity_store.ts";
import type { Paths } from "../config/paths.ts";
import { fingerprintIn, formatKey, type KeyPath, LOCAL_NAME } from "../config/schema.ts";
import {
  isLoopbackUrl,
  resolveTarget,
  type SshWay,
  type Target,
  TargetError,
  type TargetInput,
} from "../config/target.ts";
import { printable, type Terminal } from "../config/terminal.ts";
import {
  Client,
  ClosedError,
  type ConnectOptions,
  type Credential,
  type DeviceToken,
  GatewayTimeoutError,
} from "../rpc/client.ts";
import { RpcError } from "../rpc/error.ts";
import type { Identity } from "../rpc/identity.ts";
import { coversScopes } from "../rpc/scope.ts";
import {
  dial,
  type HttpAnswer,
  plainEndpoint,
  resolveName,
  shownFingerprint,
} from "../tunnel/dial.ts";
import { TunnelError, type TunnelErrorKind } from "../tunnel/error.ts";
import { checkPin, readPins } from "../tunnel/pin.ts";
import {
  type CallFlags,
  type CallWorld,
  CLI_SCOPES,
  isTyped,
  needsDevice,
  readCredential,
  readEdgeHeaders,
  readIdentity,
  readTargetInput,
  startCommand,
  waysOf,
} from "./reach.ts";

export type HopName =
  | "config"
  | "dns"
  | "ssh"
  | "ssh-host-key"
  | "ssh-auth"
  | "ssh-forward"
  | "tcp"
  | "tls"
  | "proxy"
  | "host-origin"
  | "protocol"
  | "credential"
  | "pairing"
  | "scope"
  | "latency";

/** One stage of the way. */
export interface Hop {
  name: HopName;
  ok: boolean;
  /** What was seen; never a secret. */
  detail: string;
  /** The one command or step that mends it; only with `ok: false`. */
  fix?: string;
}

/** Looks at one stretch of the way: its hops, of which only the last may be broken. */
interface Step {
  /** What is going on meanwhile. */
  doing: string;
  look(walk: Walk): Promise<Hop[]>;
}

/** What is known of the way so far. */
interface Walk {
  flags: CallFlags;
  version: string;
  paths: Paths;
  input: TargetInput;
  /** Behind a tunnel at the port it got. */
  target: Target;
  /** What is dialled: a name that was checked has its address in its place. */
  endpoint: URL;
  warn(message: string): void;
  /** Closed when the walk ends. */
  parts: AsyncDisposableStack;
  client?: Client;
  connectMs: number;
  /** The headers of the answer say that something stands in front of the gateway. */
  proxy?: string;
  /** The device was let in by its own token. */
  isKnownDevice: boolean;
}

const STEPS: readonly Step[] = [
  { doing: "reading the configuration", look: lookAtConfig },
  { doing: "looking up the name", look: lookUpName },
  { doing: "connecting through ssh", look: lookAtSsh },
  { doing: "connecting", look: lookAtPort },
  { doing: "looking at the certificate", look: lookAtCertificate },
  { doing: "logging in", look: lookAtGateway },
  { doing: "looking for this machine among the devices", look: lookAtPairing },
  { doing: "asking how it is", look: lookAtScope },
  { doing: "measuring", look: measure },
];

export async function runDoctor(
  flags: CallFlags,
  world: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const hops: Hop[] = [];
  using progress = terminal.progress("reading the configuration");
  for await (const hop of examine(flags, world, terminal, (doing) => progress.update(doing))) {
    hops.push(hop);
    if (!flags.json) show(hop, terminal);
  }
  const ok = hops.every((hop) => hop.ok);
  if (flags.json) terminal.json({ ok, hops });
  return ok ? undefined : EXIT_FAILURE;
}

/**
 * Yields hop after hop, up to and with the first that is broken.
 *
 * @param onStep told what is looked at next
 * @throws {UsageError} on flags that name no gateway or no readable secret
 */
export async function* examine(
  flags: CallFlags,
  { place, version }: CallWorld,
  terminal: Terminal,
  onStep: (doing: string) => void = () => {},
): AsyncGenerator<Hop> {
  const paths = place();
  const input = await readTargetInput(flags, paths, terminal);
  const target = resolveTarget(input);
  await using parts = new AsyncDisposableStack();
  const walk: Walk = {
    flags,
    version,
    paths,
    input,
    target,
    endpoint: new URL(target.url || "ws://127.0.0.1"),
    warn: (message) => terminal.err(message),
    parts,
    connectMs: 0,
    isKnownDevice: false,
  };
  for (const { doing, look } of STEPS) {
    onStep(doing);
    for (const hop of await look(walk)) {
      yield hop;
      if (!hop.ok) return;
    }
  }
}

const NAME_COLUMNS = 14;
/** Enough to tell a slow way from one slow answer. */
const LATENCY_CALLS = 5;
/** What stands in the log of a proxy or a server as its name is cut off here. */
const MAX_SHOWN_CHARS = 60;
const SSH_HOPS: readonly HopName[] = ["ssh", "ssh-host-key", "ssh-auth", "ssh-forward"];
/** The hop that each trouble of a tunnel belongs to; all others are ssh itself. */
const HOP_OF: Partial<Record<TunnelErrorKind, HopName>> = {
  dns: "dns",
  "host-key": "ssh-host-key",
  "host-key-changed": "ssh-host-key",
  auth: "ssh-auth",
  "forward-failed": "ssh-forward",
  "local-port": "ssh-forward",
  "no-answer": "ssh-forward",
  "gateway-down": "tcp",
  tls: "tls",
};
/** The hop that each layer of a refusal belongs to (D13). */
const LAYERS: Record<string, HopName> = {
  network: "tcp",
  proxy: "proxy",
  tls: "tls",
  auth: "credential",
  device: "credential",
  pairing: "pairing",
  scope: "scope",
  protocol: "protocol",
};
const PASS_TOKEN = "Pass the gateway's token with --token-file: `zero gateway token` on the " +
  "gateway's host prints it";

function fine(name: HopName, detail: string): Hop {
  return { name, ok: true, detail };
}

function broken(name: HopName, detail: string, fix: string): Hop {
  return { name, ok: false, detail, fix };
}

function show({ name, ok, detail, fix }: Hop, terminal: Terminal): void {
  const { green, red, bold } = terminal.style;
  const mark = ok ? green("✓") : red("✗");
  terminal.out(`${mark} ${name.padEnd(NAME_COLUMNS)}${printable(detail)}`);
  if (fix) terminal.out(`  ${bold("fix".padEnd(NAME_COLUMNS))}${printable(fix)}`);
}

async function lookAtConfig(walk: Walk): Promise<Hop[]> {
  const { target: { problem, url, urlSource, ssh, pins }, input: { reading } } = walk;
  // Without a secret the way can be looked at all the same, up to where one is asked for.
  if (problem && problem.code !== "CREDENTIALS_REQUIRED") {
    return [broken("config", problem.message.split("\n")[0], problem.fix)];
  }
  try {
    readPins(pins);
    if (url.startsWith("ws:") && !ssh) {
      if (pins.length > 0) return [fingerprintWithoutTls(walk)];
      // A name that may turn out to be private is looked up in the next hop.
      await plainEndpoint(walk.endpoint, { ...plainOptions(walk), resolve: loopbackOnly });
    }
  } catch (error) {
    if (!(error instanceof TunnelError)) throw error;
    const { kind, message, fix } = error;
    return [broken("config", message, kind === "address" ? plainFix(walk) : fix)];
  }
  const where = ssh ? `ssh ${ssh.target}, port ${ssh.remotePort} there` : url;
  const note = reading.valid ? "" : "; the file has mistakes that do not matter for this one";
  return [fine("config", `${where} (${urlSource})${note}`)];
}

function fingerprintWithoutTls(walk: Walk): Hop {
  const reason = "gateway tls fingerprint requires wss:// gateway url";
  return broken("config", reason, addressFix(walk, walk.target.url.replace(/^ws:/, "wss:")));
}

async function lookUpName(walk: Walk): Promise<Hop[]> {
  const { target, endpoint, flags: { timeout } } = walk;
  const host = hostOf(endpoint);
  // ssh looks names up by its own configuration.
  if (target.ssh || host === "localhost" || isAddress(host)) return [];
  let addresses: string[];
  try {
    addresses = await withDeadline(resolveName(host), timeout);
  } catch {
    const fix = `Correct the name: ${addressFix(walk, "wss://HOST")}`;
    return [broken("dns", `${host} has no address`, fix)];
  }
  try {
    if (endpoint.protocol === "ws:") {
      const resolve = () => Promise.resolve(addresses);
      walk.endpoint = await plainEndpoint(endpoint, { ...plainOptions(walk), resolve });
    }
  } catch (error) {
    if (!(error instanceof TunnelError)) throw error;
    return [broken("dns", `${error.message} (${addresses.join(", ")})`, plainFix(walk))];
  }
  return [fine("dns", `${host} is ${addresses.slice(0, 3).join(", ")}`)];
}

/** Opens the tunnel that a command would open, or uses the one that is open. */
async function lookAtSsh(walk: Walk): Promise<Hop[]> {
  const { target, paths, version, flags: { timeout } } = walk;
  if (!target.ssh) return [];
  const { isKept: _, ...ssh } = target.ssh;
  const { openTunnel } = await import("../tunnel/tunnels.ts");
  try {
    const tunnel = walk.parts.use(
      await openTunnel({ ...ssh, pins: target.pins, anyPort: true }, {
        paths,
        version,
        // A question would be about something that is then kept: a host key.
        isInteractive: false,
        say() {},
        timings: { connectTimeoutS: Math.ceil(timeout / 1_000), loginMs: timeout },
        signal: AbortSignal.timeout(3 * timeout),
      }),
    );
    const url = new URL(target.url);
    url.port = String(tunnel.localPort);
    walk.target = { ...target, url: url.href.replace(/\/$/, "") };
    walk.endpoint = url;
    const forward = `port ${tunnel.localPort} here is port ${ssh.remotePort} there`;
    return tunnel.isReused
      ? [fine("ssh-forward", `the tunnel that is up is used: ${forward}`)]
      : [...sshHops(ssh), fine("ssh-forward", forward)];
  } catch (error) {
    if (error instanceof DOMException && error.name === "TimeoutError") {
      const reason = `${ssh.target} was not reached within ${3 * timeout} ms`;
      return [broken("ssh", reason, `See what ssh waits for: ssh -v ${ssh.target} exit`)];
    }
    if (!(error instanceof TunnelError)) throw error;
    const { kind, message, fix } = error;
    const name = HOP_OF[kind] ?? "ssh";
    const isBehind = kind === "gateway-down" || kind === "tls";
    const forward = isBehind ? [fine("ssh-forward", "ssh takes the forward")] : [];
    return [...sshHops(ssh, name), ...forward, broken(name, message, fix)];
  }
}

/** What ssh must have got past on its way to a hop. */
function sshHops({ target }: Pick<SshWay, "target">, upTo: HopName = "ssh-forward"): Hop[] {
  const passed = [
    fine("ssh", `${target} answers`),
    fine("ssh-host-key", "its host key is the known one"),
    fine("ssh-auth", "it lets this user in"),
  ];
  if (upTo === "dns") return [];
  const end = SSH_HOPS.indexOf(upTo);
  return end < 0 ? passed : passed.slice(0, end);
}

async function lookAtPort(walk: Walk): Promise<Hop[]> {
  const { endpoint, target, flags: { timeout } } = walk;
  // Through a tunnel a gateway has answered already.
  if (target.ssh) return [fine("tcp", "something answers at the other end of it")];
  const [hostname, port] = [hostOf(endpoint), portOf(endpoint)];
  const at = `${hostname.includes(":") ? `[${hostname}]` : hostname}:${port}`;
  const begin = performance.now();
  try {
    const connection = await withDeadline(Deno.connect({ hostname, port }), timeout, close);
    close(connection);
  } catch (error) {
    if (error instanceof Deno.errors.ConnectionRefused) {
      return [broken("tcp", `nobody listens on ${at}`, startFix(walk))];
    }
    const reason = error instanceof Late
      ? `${at} did not answer within ${timeout} ms; a firewall may drop what is sent to it`
      : `${at} cannot be reached: ${(error as Error).message}`;
    return [broken("tcp", reason, `Go through ssh: ${throughSsh(walk)}`)];
  }
  return [fine("tcp", `${at} takes connections, in ${since(begin)}`)];
}

/** Nothing is said inside the encryption: the connection ends with the handshake. */
async function lookAtCertificate(walk: Walk): Promise<Hop[]> {
  const { target: { pins, url, isRemote }, endpoint, flags: { timeout } } = walk;
  if (endpoint.protocol !== "wss:") return [];
  let reason: string | undefined;
  if (pins.length === 0) {
    reason = await authorityFault(endpoint, timeout);
    if (reason === undefined) return [fine("tls", "the certificate is signed by an authority")];
  }
  let shown: string | undefined;
  try {
    shown = await shownFingerprint(url, AbortSignal.timeout(timeout));
  } catch {
    const plain = url.replace(/^wss:/, "ws:");
    const fix = isRemote
      ? addressFix(walk, plain)
      : `Restart the gateway of this machine: ${startCommand(walk.target)}`;
    return [broken("tls", "what listens there does not speak TLS", fix)];
  }
  if (reason !== undefined) {
    const detail = `no authority vouches for its certificate (${reason}), sha256:${shown}`;
    return [broken("tls", detail, pinFix(walk, shown))];
  }
  try {
    checkPin(shown, readPins(pins));
  } catch (error) {
    if (!(error instanceof TunnelError)) throw error;
    if (!shown) return [broken("tls", error.message, error.fix)];
    const expected = pins.map((pin) => `sha256:${fingerprintIn(pin)}`).join(" or ");
    const detail = `${error.message}: it showed sha256:${shown}, expected is ${expected}`;
    return [broken("tls", detail, pinFix(walk, shown))];
  }
  return [fine("tls", "the certificate is the expected one")];
}

/** @returns why the authorities do not vouch for what is shown; undefined when they do */
async function authorityFault(endpoint: URL, timeoutMs: number): Promise<string | undefined> {
  const options = {
    hostname: hostOf(endpoint),
    port: portOf(endpoint),
    alpnProtocols: ["http/1.1"],
  };
  try {
    const connection = await withDeadline(Deno.connectTls(options), timeoutMs, close);
    try {
      await withDeadline(connection.handshake(), timeoutMs);
    } finally {
      close(connection);
    }
  } catch (error) {
    return (error as Error).message;
  }
}

/** What is presented to the gateway, and what came of it. */
interface Attempt {
  client?: Client;
  error?: unknown;
  answer?: HttpAnswer;
}

async function lookAtGateway(walk: Walk): Promise<Hop[]> {
  const { target, paths, warn } = walk;
  let headers: Record<string, string> | undefined;
  try {
    headers = await readEdgeHeaders(target, paths, warn);
  } catch (error) {
    if (!(error instanceof TargetError)) throw error;
    return [broken("proxy", error.message, error.fix)];
  }
  let secret: Credential = {};
  let missing = target.problem;
  try {
    secret = await readCredential(target, paths, warn);
  } catch (error) {
    if (!(error instanceof TargetError)) throw error;
    missing = error;
  }
  const hasSecret = Boolean(secret.token || secret.password);
  const sources = sourcesOf(target);
  const begin = performance.now();
  // Without a device: a secret alone pairs nobody, and asks for nothing.
  const first = hasSecret ? await knock(walk, { auth: secret }, headers) : undefined;
  const isWrong = isRefusedSecret(first?.error) && !isTyped(target);
  const second = first && !isWrong ? undefined : await knockAsDevice(walk, headers);
  // Where no secret is asked for, a program of the same machine needs no device either.
  const third = !first && isRefusedSecret(second?.error)
    ? await knock(walk, { client: backend(walk) }, headers)
    : undefined;
  walk.connectMs = performance.now() - begin;
  const last = [third, second, first].find((one) => one?.client) ?? first ?? second!;
  const { client, answer } = last;
  if (!client) {
    if (!first && isRefusedSecret(last.error) && !second?.wasKnown) {
      const reason = missing?.code === "SECRET_UNAVAILABLE"
        ? missing.message
        : "the gateway asks for one, and here is neither a secret nor a device token for it";
      const fix = missing?.code === "SECRET_UNAVAILABLE" ? missing.fix : PASS_TOKEN;
      return [...greeted(walk, answer), broken("credential", reason, fix)];
    }
    return await explain(last, walk, headers);
  }
  walk.client = walk.parts.use(client);
  walk.isKnownDevice = last === second;
  const how = last === third
    ? "none is asked for"
    : last === first
    ? sources
    : first
    ? `${sources} is refused, the device token of this machine is taken`
    : "device token of this machine";
  const { protocol, server: { version = "?", host = "?" } } = client.hello;
  return [
    ...served(walk, answer),
    fine("protocol", `protocol ${protocol}, ZERO ${version} on ${host}`),
    fine("credential", how),
  ];
}

/** One connect, without reconnecting. */
async function knock(
  { target, endpoint, version, warn, paths, flags: { timeout } }: Walk,
  extra: Partial<ConnectOptions>,
  headers: Record<string, string> | undefined,
): Promise<Attempt> {
  const { pins } = target;
  const attempt: Attempt = {};
  try {
    attempt.client = await Client.connect({
      open: (signal) =>
        dial(endpoint.href, {
          pins,
          headers,
          signal,
          warn,
          allowInsecure: allowsInsecure(paths),
          onAnswer: (answer) => attempt.answer = answer,
        }),
      client: clientOf(version),
      role: "operator",
      scopes: CLI_SCOPES,
      timeoutMs: timeout,
      ...extra,
    });
  } catch (error) {
    attempt.error = error;
  }
  return attempt;
}

/** As the device of this machine, where that holds a token of the gateway; as nobody otherwise. */
async function knockAsDevice(
  walk: Walk,
  headers: Record<string, string> | undefined,
): Promise<Attempt & { wasKnown: boolean }> {
  const { target, paths } = walk;
  const device = await readIdentity(paths);
  const presented = Promise.withResolvers<Identity | undefined>();
  let wasKnown = false;
  const tokens = {
    async find(gatewayId: string | undefined, role: string) {
      const token = device && await storedToken(device, gatewayId, role, target, paths);
      wasKnown = token !== undefined;
      presented.resolve(token && device);
      return token;
    },
    keep: () => Promise.resolve(),
    drop: () => Promise.resolve(),
  };
  const attempt = await knock(walk, { tokens, identity: presented.promise }, headers);
  return { ...attempt, wasKnown };
}

async function storedToken(
  { deviceId }: Identity,
  gatewayId: string | undefined,
  role: string,
  target: Target,
  { deviceAuthFile: file }: Paths,
): Promise<DeviceToken | undefined> {
  if (target.way === undefined) return undefined;
  const [way, ...otherWays] = waysOf(target);
  const options = { file, deviceId, way, otherWays, nowMs: Date.now, isReadOnly: true };
  return await new DeviceTokenFile({ ...options, warn() {} }).find(gatewayId, role);
}

/** Where an attempt that came to nothing broke off. */
async function explain(
  { error, answer }: Attempt,
  walk: Walk,
  headers: Record<string, string> | undefined,
): Promise<Hop[]> {
  const { flags: { timeout }, target, endpoint } = walk;
  if (answer && answer.status !== 101) return await explainAnswer(answer, walk, headers);
  if (error instanceof ClosedError && error.refusal) {
    const { details, refusal, reason } = error;
    const name = LAYERS[details.layer ?? ""] ?? "credential";
    const fix = details.fix ?? PASS_TOKEN;
    if (name === "protocol") {
      return [...served(walk, answer), broken("protocol", ...versionFault(refusal, fix))];
    }
    return [...greeted(walk, answer), broken(name, refusal.message || reason, fix)];
  }
  if (answer) {
    // It upgraded, so it speaks WebSocket; but it does not say what a gateway says.
    const reason = error instanceof GatewayTimeoutError
      ? `it speaks WebSocket, and did not answer within ${timeout} ms`
      : (error as Error).message;
    return [...served(walk, answer), broken("protocol", reason, foreignFix(walk))];
  }
  const isPlain = endpoint.protocol === "ws:";
  if (isPlain && await speaksTls(endpoint, timeout)) {
    const reason = "what listens there speaks TLS, and the address says ws://";
    return [broken("tls", reason, addressFix(walk, target.url.replace(/^ws:/, "wss:")))];
  }
  if (error instanceof ClosedError || error instanceof GatewayTimeoutError) {
    const reason = error instanceof GatewayTimeoutError
      ? `what listens there did not answer within ${timeout} ms`
      : "what listens there does not speak HTTP";
    return [broken("protocol", reason, foreignFix(walk))];
  }
  if (error instanceof TunnelError) {
    return [broken(error.kind === "tls" ? "tls" : "tcp", error.message, error.fix)];
  }
  throw error;
}

/** Something spoke HTTP, and did not upgrade. */
async function explainAnswer(
  answer: HttpAnswer,
  walk: Walk,
  headers: Record<string, string> | undefined,
): Promise<Hop[]> {
  const { endpoint } = walk;
  const { status, text } = answer;
  const proxy = proxyOf(answer);
  const behind = proxy ? ` through ${proxy}` : "";
  const host = hostOf(endpoint);
  // The two refusals of a gateway that come before any protocol name the setting that decides.
  if (status === 421) {
    // An address is served always: then a name was put in its place on the way.
    const isReplaced = host === "localhost" || isAddress(host);
    const setting = `zero config set gateway.allowedHosts '["${isReplaced ? "NAME" : host}"]'`;
    const note = isReplaced ? ", with the name that the proxy sends as Host" : "";
    return [broken(
      "host-origin",
      `the gateway does not serve the name it was asked for${behind} (421)`,
      `On the gateway's host, beside the names it has: ${setting}${note}`,
    )];
  }
  if (status === 403 && text.includes("gateway.controlUi.allowedOrigins")) {
    return [broken(
      "host-origin",
      `the gateway refuses an Origin that was added on the way${behind} (403)`,
      "In the proxy's configuration: remove the line that sets Origin",
    )];
  }
  if (status >= 300 && status < 500 && status !== 400 && status !== 404 && status !== 426) {
    const to = oneOf(answer.headers.location);
    const led = to && URL.canParse(to) ? `, which leads to ${new URL(to).host}` : "";
    const path = settingOf(walk);
    return [broken(
      "proxy",
      `${proxy ?? "what listens there"} answers ${status}${led}: it wants to know who is there`,
      path
        ? `Give it the header it asks for: zero config set ${path}.edgeAuth.headers.NAME env:VARIABLE`
        : "Name the gateway (zero remote add) and give it remotes.NAME.edgeAuth.headers",
    )];
  }
  if (status >= 500 && proxy) {
    return [broken(
      "proxy",
      `${proxy} answers ${status}: it does not reach the gateway behind it`,
      "On the gateway's host: zero gateway",
    )];
  }
  // A proxy that passes on everything but the upgrade still passes on this.
  const health = new URL(endpoint);
  health.pathname = `${endpoint.pathname.replace(/\/$/, "")}/healthz`;
  const second = await knock({ ...walk, endpoint: health }, {}, headers);
  if (second.answer?.status === 200 && isLiveness(second.answer.text)) {
    return [broken(
      "proxy",
      `${proxy ?? "a proxy"} passes requests on to a gateway, but not the upgrade to WebSocket ` +
        `(${status})`,
      "Take the proxy's lines from docs/security.md: those with Upgrade and Connection are missing",
    )];
  }
  const who = clipped(oneOf(answer.headers.server));
  return [broken(
    "protocol",
    `what listens there is no gateway: it answers ${status}${who ? ` as ${who}` : ""}`,
    foreignFix(walk),
  )];
}

/** The hops before the connect, as far as this way has them. */
function served(walk: Walk, answer: HttpAnswer | undefined): Hop[] {
  walk.proxy = answer && proxyOf(answer);
  const { proxy, endpoint, target: { edge } } = walk;
  const sent = edge ? ` takes ${edge.map(({ name }) => name).join(", ")} and` : "";
  return [
    ...proxy || edge ? [fine("proxy", `${proxy ?? "it"}${sent} passes WebSocket on`)] : [],
    fine("host-origin", `the name ${hostOf(endpoint)} is served`),
  ];
}

function greeted(walk: Walk, answer: HttpAnswer | undefined): Hop[] {
  return [...served(walk, answer), fine("protocol", "it greets as a gateway does")];
}

function versionFault({ message, details }: RpcError, fix: string): [string, string] {
  const { expectedProtocol: expected } = (details ?? {}) as { expectedProtocol?: unknown };
  if (typeof expected !== "number") return [message, fix];
  const reason = `the gateway speaks protocol ${expected}, this program 3 and 4`;
  return [reason, expected < 3 ? "Update the gateway on its host" : "Update zero on this machine"];
}

/** With a secret, asks the gateway what it knows of this machine; reading changes nothing. */
async function lookAtPairing(walk: Walk): Promise<Hop[]> {
  const { target, client, isKnownDevice, paths } = walk;
  const device = await readIdentity(paths);
  if (isKnownDevice) return [fine("pairing", `this machine is device ${short(device!.deviceId)}`)];
  // A command that has the token of its own machine's gateway comes without a device.
  if (!needsDevice(target)) return [];
  const list = await ask(client!, "device.pair.list", walk) as DeviceList | undefined;
  if (!list) return []; // it does not tell: commands find out
  const isThis = ({ deviceId }: { deviceId: string }) => deviceId === device?.deviceId;
  const paired = list.paired?.find(isThis);
  const isOperator = paired?.roles?.includes("operator") ?? false;
  const held = isOperator ? paired?.scopes ?? [] : [];
  if (isOperator && coversScopes(held, CLI_SCOPES)) {
    return [fine("pairing", `this machine is device ${short(paired!.deviceId)}`)];
  }
  if (await pairsSilently(walk)) {
    return [fine("pairing", "not paired yet; the first command pairs this machine by itself")];
  }
  const waiting = list.pending?.find(isThis);
  if (waiting) {
    const fix = `On the gateway's host: zero devices approve ${waiting.requestId}`;
    return [broken("pairing", "this machine waits to be approved", fix)];
  }
  if (isOperator) {
    const reason = `this machine is approved for ${listed(held)}, commands ask for ` +
      listed(CLI_SCOPES);
    return [broken("scope", reason, INVITE)];
  }
  return [broken("pairing", "this machine is not paired there, and has not asked to be", INVITE)];
}

const INVITE =
  "On the gateway's host: zero devices invite; here: zero join, with the link it prints";

interface DeviceList {
  paired?: { deviceId: string; roles?: string[]; scopes?: string[] }[];
  pending?: { deviceId: string; requestId: string }[];
}

/** Whether the gateway takes this machine for its own (§4.4): nobody is asked then. */
async function pairsSilently(walk: Walk): Promise<boolean> {
  const { client, endpoint, proxy } = walk;
  if (!isLoopbackUrl(endpoint.href) || proxy) return false;
  const answer = await ask(client!, "config.get", walk) as {
    config?: { gateway?: { auth?: { silentPairing?: boolean } } };
  } | undefined;
  return answer?.config?.gateway?.auth?.silentPairing !== false;
}

/** @returns undefined where the answer is a refusal */
async function ask(client: Client, method: string, { flags: { timeout } }: Walk): Promise<unknown> {
  try {
    return await client.call(method, {}, { timeoutMs: timeout });
  } catch (error) {
    if (error instanceof RpcError) return undefined;
    throw error;
  }
}

async function lookAtScope({ client, flags: { timeout } }: Walk): Promise<Hop[]> {
  const held = client!.hello.auth?.scopes ?? [];
  try {
    await client!.call("health", {}, { timeoutMs: timeout });
  } catch (error) {
    if (error instanceof RpcError) {
      const reason = `${error.message}; this machine has ${listed(held)}`;
      return [broken("scope", reason, INVITE)];
    }
    return [lost(error)];
  }
  const isWhole = coversScopes(held, CLI_SCOPES);
  return [fine("scope", `${listed(held)}${isWhole ? "" : "; what needs more is refused"}`)];
}

async function measure({ client, connectMs, flags: { timeout } }: Walk): Promise<Hop[]> {
  const times: number[] = [];
  for (let count = 0; count < LATENCY_CALLS; count++) {
    const begin = performance.now();
    try {
      await client!.call("health", {}, { timeoutMs: timeout });
    } catch (error) {
      return [lost(error)];
    }
    times.push(performance.now() - begin);
  }
  const median = times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
  return [fine("latency", `a call takes ${rounded(median)}, logging in ${rounded(connectMs)}`)];
}

function lost(error: unknown): Hop {
  const fix = "See what the gateway was doing, on its host: zero logs";
  return broken("latency", (error as Error).message, fix);
}

function clientOf(version: string): ConnectOptions["client"] {
  return {
    id: "cli",
    mode: "cli",
    version,
    platform: Deno.build.os,
    instanceId: crypto.randomUUID(),
  };
}

/** What a gateway in mode none lets in without a device, from its own machine only (§4.6). */
function backend({ version }: Walk): ConnectOptions["client"] {
  return { ...clientOf(version), id: "gateway-client", mode: "backend" };
}

function isRefusedSecret(error: unknown): boolean {
  if (!(error instanceof ClosedError) || !error.refusal) return false;
  const { layer } = error.details;
  return layer === "auth" || layer === "device";
}

/** Something in front of the gateway, by what it writes into answers; a gateway writes neither. */
function proxyOf({ headers }: HttpAnswer): string | undefined {
  return clipped(oneOf(headers.via)?.replace(/^[\d.]+ /, "") ?? oneOf(headers.server));
}

function isLiveness(text: string): boolean {
  try {
    return JSON.parse(text).status === "live";
  } catch {
    return false; // another program's page
  }
}

async function speaksTls(endpoint: URL, timeoutMs: number): Promise<boolean> {
  const url = new URL(endpoint);
  url.protocol = "wss:";
  url.port = String(portOf(endpoint));
  try {
    return await shownFingerprint(url.href, AbortSignal.timeout(timeoutMs)) !== undefined;
  } catch {
    return false; // it said no to that as well
  }
}

/** Where the configuration has this gateway: `remotes.home`, `gateway.remote`. */
function settingOf({ target: { urlSource }, input }: Walk): string | undefined {
  const { flags, env, reading } = input;
  const names: Record<string, string | undefined> = {
    "cli --remote": flags.remote,
    "env ZERO_REMOTE": env.ZERO_REMOTE?.trim(),
    "config gateway.remote.name": reading.config.gateway?.remote?.name,
  };
  const name = names[urlSource];
  const path: KeyPath | undefined = name && name !== LOCAL_NAME
    ? ["remotes", name]
    : urlSource.startsWith("config gateway.remote.")
    ? ["gateway", "remote"]
    : undefined;
  return path && formatKey(path);
}

function addressFix(walk: Walk, right: string): string {
  const path = settingOf(walk);
  if (path) return `zero config set ${path}.url ${right}`;
  const { urlSource, isRemote } = walk.target;
  if (urlSource === "env ZERO_GATEWAY_URL") return `export ZERO_GATEWAY_URL=${right}`;
  return isRemote || urlSource === "cli --url"
    ? `zero doctor --url ${right}`
    : "zero gateway status";
}

function pinFix(walk: Walk, fingerprint: string | undefined): string {
  const path = settingOf(walk);
  const set = path
    ? `zero config set ${path}.tlsFingerprint ${fingerprint}`
    : `zero doctor --url ${walk.target.url} --tls-fingerprint ${fingerprint}`;
  return `Only if "zero gateway cert show" on the gateway's host prints the same: ${set}`;
}

/** The way that needs neither TLS nor an open port. */
function throughSsh({ endpoint }: Walk): string {
  const { port } = endpoint;
  const there = port && port !== "18789" ? ` --remote-port ${port}` : "";
  return `zero doctor --ssh ${hostOf(endpoint)}${there}`;
}

function plainFix(walk: Walk): string {
  return `Go through ssh: ${throughSsh(walk)}`;
}

function startFix(walk: Walk): string {
  const { target } = walk;
  if (!target.isRemote) return startCommand(target);
  return isLoopbackUrl(target.url)
    ? "zero gateway"
    : `Start the gateway on its host (zero gateway); if it is bound to loopback there: ${
      throughSsh(walk)
    }`;
}

function foreignFix(walk: Walk): string {
  const { ssh } = walk.target;
  if (ssh) return "Name the gateway's port with --remote-port N";
  return walk.target.isRemote ? addressFix(walk, "wss://HOST:PORT") : "zero gateway status";
}

function plainOptions({ paths }: Walk) {
  return { allowInsecure: allowsInsecure(paths), warn() {} };
}

function allowsInsecure({ env }: Paths): boolean {
  return env.ZERO_ALLOW_INSECURE_WS?.trim() === "1";
}

function loopbackOnly(): Promise<string[]> {
  return Promise.resolve(["127.0.0.1"]);
}

/** Where the secrets of a target come from. */
function sourcesOf({ tokenSource, passwordSource }: Target): string {
  return [
    ...tokenSource ? [`token from ${tokenSource}`] : [],
    ...passwordSource ? [`password from ${passwordSource}`] : [],
  ].join(", ");
}

function listed(scopes: readonly string[]): string {
  return scopes.join(", ") || "no scope";
}

function short(deviceId: string): string {
  return deviceId.slice(0, 12);
}

function oneOf(value: string | string[] | undefined): string | undefined {
  return Array.isArray(value) ? value[0] : value;
}

function clipped(text: string | undefined): string | undefined {
  const clean = text === undefined ? "" : printable(text).trim().slice(0, MAX_SHOWN_CHARS);
  return clean || undefined;
}

function hostOf(url: URL): string {
  return url.hostname.toLowerCase().replace(/^\[|\]$/g, "");
}

function portOf(url: URL): number {
  return Number(url.port || (url.protocol === "wss:" ? 443 : 80));
}

function isAddress(host: string): boolean {
  return host.includes(":") || /^\d+(\.\d+){3}$/.test(host);
}

function since(beginMs: number): string {
  return rounded(performance.now() - beginMs);
}

function rounded(ms: number): string {
  return ms < 1 ? "less than 1 ms" : `${Math.round(ms)} ms`;
}

/** It took too long. */
class Late extends Error {}

/** @param discard gets what comes too late */
async function withDeadline<T>(
  promise: Promise<T>,
  timeoutMs: number,
  discard: (late: T) => void = () => {},
): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    promise.then(discard, () => {});
    late.reject(new Late(`it took more than ${timeoutMs} ms`));
  }, timeoutMs);
  try {
    return await Promise.race([promise, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

function close(connection: { close(): void }): void {
  try {
    connection.close();
  } catch {
    // The other end was faster.
  }
}
