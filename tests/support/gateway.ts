// A real gateway in this process, on a port of the system's choice and with a state directory of its
// own, both gone when it is disposed; and clients of it.

import { readConfig } from "../../config/load.ts";
import { openLog } from "../../config/log.ts";
import { type Paths, resolvePaths } from "../../config/paths.ts";
import type { GatewayFlags } from "../../config/settings.ts";
import { type Interfaces, readInterfaces } from "../../gateway/bind.ts";
import { type Farewell, type RunningGateway, startGateway } from "../../gateway/start.ts";
import type { ModelSource } from "../../gateway/agent/runs.ts";
import type { ProcessRunner } from "../../tunnel/process.ts";
import { type ConnectOptions, handshake, type Json, type Refused } from "./client.ts";
import { TestClient, TestSocket } from "./client.ts";
import { type Identity, newDevice } from "./device.ts";

export const TOKEN = "test-token-of-the-gateway-0123456789";

/** Makes a request through a loopback socket look forwarded, hence remote (D4). */
export const REMOTE = { "x-forwarded-for": "203.0.113.7" };

export interface TestGatewayOptions {
  /** The text of the configuration file, or its value; absent: no file. */
  config?: string | Record<string, unknown>;
  /** Beside `port: 0`; the secret is {@link TOKEN} unless these or the configuration say otherwise. */
  flags?: GatewayFlags;
  env?: Record<string, string>;
  /** Stands in for every child the gateway starts; absent: no program is there. */
  runner?: ProcessRunner;
  /** What the agent thinks with; absent: what the configuration names. */
  models?: ModelSource;
  /** How often silent peers are pinged. */
  pingIntervalMs?: number;
  /** A directory that outlives the gateway. */
  stateDir?: string;
  interfaces?: Interfaces;
}

/** A restart the gateway asked its process for. */
export interface RestartWish {
  reason: string;
  delayMs: number;
}

/** A client without what a test leaves to {@link TestGateway}: `auth: null` sends none. */
export type TestConnectOptions = Omit<ConnectOptions, "auth" | "device"> & {
  auth?: ConnectOptions["auth"] | null;
  /** `true`: one nobody has seen before. */
  device?: Identity | boolean;
};

export interface HttpAnswer {
  status: number;
  headers: Headers;
  text: string;
  /** The text as JSON. */
  readonly json: Json;
}

export interface Applicant {
  requestId: string;
  device: Identity;
  refusal: Refused;
  /** Asks to come in again. */
  connect(): Promise<TestClient>;
  refused(): Promise<Refused>;
}

export interface TestGateway extends AsyncDisposable {
  readonly running: RunningGateway;
  readonly paths: Paths;
  /** `ws://127.0.0.1:<port>`, with TLS `wss://` */
  readonly url: string;
  readonly port: number;
  /** The shared secret; "" where there is none. */
  readonly token: string;
  readonly restarts: RestartWish[];
  /** Resolves with the first restart the gateway asks for. */
  readonly restart: Promise<RestartWish>;
  /** With the shared token, as an operator of every scope, on protocol 4, unless told otherwise. */
  connect(options?: TestConnectOptions): Promise<TestClient>;
  /** A connect that must be refused. */
  refused(options?: TestConnectOptions): Promise<Refused>;
  /** A bare socket that has not said anything. */
  open(options?: { headers?: Record<string, string>; path?: string }): Promise<TestSocket>;
  /** A remote device that asks to be paired, with the shared token. */
  requestPairing(
    options?: TestConnectOptions & { name?: string },
  ): Promise<Applicant>;
  http(path: string, init?: RequestInit): Promise<HttpAnswer>;
  /** A call or batch to `POST /rpc` with the shared secret. */
  rpc(body: unknown, headers?: Record<string, string>): Promise<HttpAnswer>;
  /** Everything logged so far. */
  log(): Promise<string>;
  /** Says goodbye as a stop or restart does. */
  farewell(farewell?: Farewell): Promise<void>;
}

const STOPPING: Farewell = { reason: "gateway stopping", restartExpectedMs: null };
const NO_PROGRAMS: ProcessRunner = { run: () => Promise.resolve(undefined) };

export async function startTestGateway(options: TestGatewayOptions = {}): Promise<TestGateway> {
  await using parts = new AsyncDisposableStack();
  const stateDir = options.stateDir ?? await Deno.makeTempDir({ prefix: "zero-test-" });
  if (!options.stateDir) parts.defer(() => Deno.remove(stateDir, { recursive: true }));
  const env = { HOME: stateDir, ZERO_STATE_DIR: stateDir, ...options.env };
  const paths = resolvePaths({ env, home: stateDir });
  if (options.config !== undefined) {
    const { config } = options;
    const text = typeof config === "string" ? config : JSON.stringify(config, null, 2);
    await Deno.writeTextFile(paths.configPath, text, { mode: 0o600 });
  }
  const reading = await readConfig({ path: paths.configPath, env: paths.env });
  if (!reading.valid) {
    throw new Error(`bad test configuration: ${reading.issues.map((one) => one.message)}`);
  }
  const log = parts.use(openLog({ file: paths.logFile, level: "debug", subsystem: "gateway" }));
  const restarts: RestartWish[] = [];
  const firstRestart = Promise.withResolvers<RestartWish>();
  const flags = { port: 0, ...defaultSecret(options), ...options.flags };
  const running = parts.use(
    await startGateway({
      version: "0.0.0-test",
      paths,
      flags,
      reading,
      log,
      logFile: paths.logFile,
      interfaces: options.interfaces ?? readInterfaces(),
      restart(reason, delayMs) {
        restarts.push({ reason, delayMs });
        firstRestart.resolve({ reason, delayMs });
      },
      runner: options.runner ?? NO_PROGRAMS,
      models: options.models,
      pingIntervalMs: options.pingIntervalMs,
      checkResults: true,
    }),
  );
  // What a test connects and does not close must not outlive the gateway.
  const clients = parts.use(new AsyncDisposableStack());
  const { port, settings: { auth } } = running;
  const url = `${running.settings.tls.enabled.value ? "wss" : "ws"}://127.0.0.1:${port}`;
  const token = auth.token.value ??
    (auth.mode.value === "token" ? (await Deno.readTextFile(paths.tokenFile)).trim() : "");
  const password = auth.password.value;
  const sharedAuth = auth.mode.value === "password" ? { password } : token ? { token } : undefined;

  async function knock({ auth, device, ...rest }: TestConnectOptions) {
    const identity = device === true ? await newDevice() : device || undefined;
    return await handshake(url, {
      ...rest,
      auth: auth === null ? undefined : auth ?? sharedAuth,
      device: identity,
    });
  }
  async function connect(options: TestConnectOptions = {}): Promise<TestClient> {
    const outcome = await knock(options);
    if (outcome instanceof TestClient) return clients.use(outcome);
    throw new Error(`the connect was refused: ${JSON.stringify(outcome)}`);
  }
  async function refused(options: TestConnectOptions = {}): Promise<Refused> {
    const outcome = await knock(options);
    if (!(outcome instanceof TestClient)) return outcome;
    await outcome.close();
    throw new Error("the connect was not refused");
  }
  async function http(path: string, init?: RequestInit): Promise<HttpAnswer> {
    const response = await fetch(`http://127.0.0.1:${port}${path}`, init);
    const text = await response.text();
    const { status, headers } = response;
    return {
      status,
      headers,
      text,
      get json() {
        return JSON.parse(text);
      },
    };
  }

  const owned = parts.move();
  return {
    running,
    paths,
    url,
    port,
    token,
    restarts,
    restart: firstRestart.promise,
    connect,
    refused,
    open: async (options) => clients.use(await TestSocket.open(url, options)),
    async requestPairing({ name, ...options } = {}) {
      const device = typeof options.device === "object" ? options.device : await newDevice();
      const application = {
        headers: REMOTE,
        ...options,
        client: { ...(name && { displayName: name }), ...options.client },
        device,
      };
      const refusal = await refused(application);
      const { requestId } = refusal.error.details ?? {};
      if (!requestId) throw new Error(`no pairing was asked for: ${JSON.stringify(refusal)}`);
      return {
        requestId,
        device,
        refusal,
        connect: () => connect(application),
        refused: () => refused(application),
      };
    },
    http,
    rpc: (body, headers) =>
      http("/rpc", {
        method: "POST",
        headers: {
          authorization: `Bearer ${token || password}`,
          "content-type": "application/json",
          ...headers,
        },
        body: typeof body === "string" ? body : JSON.stringify(body),
      }),
    async log() {
      await log.flush();
      return await Deno.readTextFile(paths.logFile);
    },
    farewell: (farewell = STOPPING) => running.farewell(farewell, 2_000),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** A token that tests know, unless the configuration or the flags decide about authentication. */
function defaultSecret({ config, flags }: TestGatewayOptions): GatewayFlags {
  const text = typeof config === "string" ? config : JSON.stringify(config ?? {});
  const isDecided = flags?.auth || flags?.token || flags?.password || /\bauth\b/.test(text);
  return isDecided ? {} : { token: TOKEN };
}
