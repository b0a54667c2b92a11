// A real node host in this process, and what an operator does with one.

import { resolvePaths } from "../../../config/paths.ts";
import { findWay } from "../../../gateway/node_cli.ts";
import { runNode, type RunNodeOptions } from "../../../gateway/node/run.ts";
import type { Json, TestClient } from "../../support/client.ts";
import { captureTerminal } from "../../support/captured_terminal.ts";
import type { TestGateway } from "../../support/gateway.ts";
import { eventually } from "../../support/process.ts";

export interface TestNodeOptions extends Partial<Omit<RunNodeOptions, "terminal" | "paths">> {
  /** Beside HOME, ZERO_STATE_DIR, PATH and the token of the gateway; `undefined` leaves one out. */
  env?: Record<string, string | undefined>;
  config?: unknown;
  /** `exec-approvals.json` to begin with. */
  approvals?: unknown;
  /** A home that outlives the node. */
  home?: string;
  /** Do not wait until it is connected. */
  isWaiting?: boolean;
}

export interface TestNode extends AsyncDisposable {
  home: string;
  stateDir: string;
  approvalsFile: string;
  nodeId: string;
  stdout(): string;
  stderr(): string;
  /** Stops it as SIGTERM does. @returns the exit code */
  stop(): Promise<number>;
}

export async function startTestNode(
  gateway: Pick<TestGateway, "port" | "token">,
  options: TestNodeOptions = {},
): Promise<TestNode> {
  const { env, config, approvals, isWaiting = false, ...rest } = options;
  const home = options.home ?? await Deno.makeTempDir({ prefix: "zero-node-" });
  const stateDir = `${home}/state`;
  await Deno.mkdir(stateDir, { recursive: true });
  const approvalsFile = `${stateDir}/exec-approvals.json`;
  if (config) await Deno.writeTextFile(`${stateDir}/zero.json`, JSON.stringify(config));
  if (approvals) await Deno.writeTextFile(approvalsFile, JSON.stringify(approvals));
  const paths = resolvePaths({
    env: {
      PATH: Deno.env.get("PATH"),
      HOME: home,
      USER: "tester",
      SHELL: "/bin/sh",
      ZERO_STATE_DIR: stateDir,
      ZERO_GATEWAY_TOKEN: gateway.token,
      ...env,
    },
    home,
  });
  const { terminal, stdout, stderr } = captureTerminal();
  const stop = new AbortController();
  const world = { place: () => paths, version: "0.0.0-test" };
  const running = runNode({
    version: world.version,
    flags: { port: gateway.port, displayName: "n1" },
    cwd: home,
    findWay: (named) => findWay(named, world, terminal),
    newsCheckMs: 20,
    ...rest,
    paths,
    terminal,
    signal: stop.signal,
  });
  running.catch(() => {}); // told by `stop`
  const deviceFile = `${stateDir}/identity/device.json`;
  const node: TestNode = {
    home,
    stateDir,
    approvalsFile,
    nodeId: "",
    stdout,
    stderr,
    async stop() {
      stop.abort();
      return await running;
    },
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running.catch(() => {});
      if (!options.home) await Deno.remove(home, { recursive: true });
    },
  };
  try {
    if (!isWaiting) {
      await eventually("the node is connected", () => stdout().includes("connected to"));
    }
    if (!isWaiting) node.nodeId = JSON.parse(await Deno.readTextFile(deviceFile)).deviceId;
  } catch (error) {
    await node[Symbol.asyncDispose]();
    throw error;
  }
  return node;
}

/** Calls a command of a node; the payload of its result. */
export async function invoke(
  operator: TestClient,
  { nodeId }: Pick<TestNode, "nodeId">,
  command: string,
  params: unknown,
): Promise<Json> {
  const call = { nodeId, command, params, idempotencyKey: crypto.randomUUID() };
  return (await operator.call("node.invoke", call)).payload;
}

/** The text of the error of a command that must fail. */
export async function refusedBy(
  operator: TestClient,
  { nodeId }: Pick<TestNode, "nodeId">,
  command: string,
  params: unknown,
): Promise<string> {
  const call = { nodeId, command, params, idempotencyKey: crypto.randomUUID() };
  return (await operator.refused("node.invoke", call)).message;
}

/** Has a person agree to exactly this command. */
export async function approve(
  operator: TestClient,
  { nodeId }: Pick<TestNode, "nodeId">,
  argv: string[],
  decision: "allow-once" | "allow-always",
  further: { cwd?: string; env?: Record<string, string>; command?: string } = {},
): Promise<void> {
  const id = crypto.randomUUID();
  const asking = operator.call("exec.approval.request", {
    id,
    command: argv.join(" "),
    host: "node",
    nodeId,
    argv,
    ...further,
  });
  await operator.event("exec.approval.requested", (payload) => payload.id === id);
  await operator.call("exec.approval.resolve", { id, decision });
  await asking;
}

/** A directory that is gone when it is disposed of. */
export async function tempHome(): Promise<AsyncDisposable & { path: string }> {
  const path = await Deno.makeTempDir({ prefix: "zero-node-" });
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}
