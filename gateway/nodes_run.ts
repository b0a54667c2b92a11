// `zero nodes run`: a program on a node, approved where the rules ask for it (§10.4, D18), its output
// and exit code passed through.

import { EXIT_FAILURE, UsageError } from "../config/command.ts";
import type { Config } from "../config/schema.ts";
import { formatDuration, printable, type Terminal } from "../config/terminal.ts";
import type { Client } from "../rpc/client.ts";
import { RpcError } from "../rpc/error.ts";
import { normalizeAgentId, sessionDefaults } from "./agents.ts";
import type { Decision } from "./approvals.ts";
import {
  APPROVAL_TIMEOUT_MS,
  policyIn,
  REPORT_MS,
  runApproved,
  type RunPayload,
} from "./approved_run.ts";
import type { Policy, Strictness } from "./node/policy.ts";
import { type Piece, PROGRESS, PROGRESS_CAP, type Stream } from "./node/progress.ts";
import { joinArgv } from "./node/splitter.ts";
import { findNode, invoke, nameOf, type NodeInfo, nodeList, takeWords } from "./nodes_commands.ts";
import { type CallFlags, type CallWorld, withGateway } from "./reach.ts";

interface RunFlags extends CallFlags {
  node?: string;
  cwd?: string;
  env: string[];
  raw?: string;
  agent?: string;
  session?: string;
  ask?: Policy["ask"];
  security?: Policy["security"];
  "command-timeout"?: number;
  "needs-screen-recording": boolean;
  "invoke-timeout": number;
}

interface Run {
  node: NodeInfo;
  argv: string[];
  rawCommand?: string;
  cwd?: string;
  env?: Record<string, string>;
  agentId: string;
  sessionKey?: string;
  runId: string;
}

/** @returns the exit code of the remote program */
export function runRun(
  { flags, args, given }: {
    flags: RunFlags;
    args: readonly string[];
    given: ReadonlySet<string>;
  },
  world: CallWorld,
  terminal: Terminal,
): Promise<number | void> {
  const [query] = takeWords([], [["NODE", flags.node]]);
  if ((flags.raw === undefined) === (args.length === 0)) {
    throw new UsageError(
      args.length === 0
        ? "Cannot run nothing: the command line is missing"
        : "Cannot take ARGV and --raw together: give one of them",
      { hint: "zero nodes run --node NODE -- uname -a" },
    );
  }
  if (flags.raw !== undefined && flags.raw.trim() === "") {
    throw new UsageError("Cannot run nothing: --raw is empty");
  }
  const env = readEnv(flags.env);
  return withGateway(flags, world, terminal, async (client, { input }) => {
    const { config } = input.reading;
    const node = findNode(await nodeList(client, flags), query);
    const run: Run = {
      node,
      argv: flags.raw === undefined ? [...args] : shellOf(node, flags.raw),
      rawCommand: flags.raw,
      cwd: flags.cwd,
      env,
      agentId: flags.agent === undefined
        ? sessionDefaults(config).defaultAgentId
        : normalizeAgentId(flags.agent),
      sessionKey: flags.session,
      runId: crypto.randomUUID(),
    };
    const live = new LiveOutput(terminal);
    const result = await runOnNode(client, run, { flags, given, config, live }, terminal);
    const payload = (result.payload ?? {}) as RunPayload;
    if (flags.json) {
      terminal.json(result);
      return exitCodeOf(payload);
    }
    return show(payload, live, terminal);
  });
}

async function runOnNode(
  client: Client,
  run: Run,
  { flags, given, config, live }: {
    flags: RunFlags;
    given: ReadonlySet<string>;
    config: Config;
    live: LiveOutput;
  },
  terminal: Terminal,
) {
  const { node, agentId } = run;
  const commandTimeout = flags["command-timeout"];
  const invokeTimeout = given.has("invoke-timeout") || commandTimeout === undefined
    ? flags["invoke-timeout"]
    : Math.max(flags["invoke-timeout"], commandTimeout + REPORT_MS);
  const isLive = !flags.json && canStream(client, node);
  const attempt = async () => {
    const idempotencyKey = crypto.randomUUID();
    using _ = isLive ? live.follow(client, idempotencyKey) : undefined;
    return await invoke(client, {
      nodeId: node.nodeId,
      command: "system.run",
      params: {
        command: run.argv,
        rawCommand: run.rawCommand,
        cwd: run.cwd,
        env: run.env,
        agentId,
        sessionKey: run.sessionKey,
        runId: run.runId,
        timeoutMs: commandTimeout,
        needsScreenRecording: flags["needs-screen-recording"] || undefined,
      },
      timeoutMs: invokeTimeout,
      idempotencyKey,
      ...(isLive && { progress: true }),
    }, flags);
  };
  // Nobody is to be asked about what cannot happen: the gateway says why.
  if (!node.connected || !node.commands?.includes("system.run")) return await attempt();

  return await runApproved({
    config,
    agentId,
    wish: { security: flags.security ?? "full", ask: flags.ask ?? "off" },
    theirs: await policyOfNode(client, run, flags),
    attempt,
    request: (policy) => approve(client, run, policy, terminal),
    unanswered: "approval UI not available",
  });
}

/**
 * Asks for the approval of exactly this run, and waits for the answer.
 *
 * @returns false when nobody gave one
 * @throws {RpcError} when the answer is no
 */
async function approve(
  client: Client,
  { node, argv, rawCommand, cwd, env, agentId, sessionKey, runId }: Run,
  { security, ask }: Strictness,
  terminal: Terminal,
): Promise<boolean> {
  const id = crypto.randomUUID();
  const command = rawCommand ?? joinArgv(argv);
  const { errStyle: { bold } } = terminal;
  terminal.err(
    `Waiting ${formatDuration(APPROVAL_TIMEOUT_MS)} at most for approval to run on ` +
      `${nameOf(node)}: ${printable(command)}\n` +
      `Answer with: ${bold(`zero approvals allow ${id}`)} (with --always for good), ` +
      `or zero approvals deny ${id}`,
  );
  using _ = terminal.progress("Waiting for approval");
  const { decision } = await client.call("exec.approval.request", {
    id,
    command,
    cwd: cwd ?? null,
    host: "node",
    security,
    ask,
    agentId,
    sessionKey: sessionKey ?? null,
    nodeId: node.nodeId,
    argv,
    env: env ?? {},
    runId,
    timeoutMs: APPROVAL_TIMEOUT_MS,
  }, { timeoutMs: APPROVAL_TIMEOUT_MS + REPORT_MS }) as { decision: Decision | null };
  if (decision === "deny") throw new RpcError("FORBIDDEN", "exec denied: user denied");
  return decision !== null;
}

/** Whether the node tells what a command writes while it runs, and the gateway passes it on. */
function canStream({ hello }: Client, { caps }: NodeInfo): boolean {
  return hello.features.events?.includes(PROGRESS) === true &&
    caps?.includes(PROGRESS_CAP) === true;
}

/** Shows what a run writes as it comes, and in the end what has not come; nothing twice. */
class LiveOutput {
  readonly #terminal: Terminal;
  readonly #shown: Record<Stream, string> = { stdout: "", stderr: "" };

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  /** Shows the pieces of one invocation, up to the first that is missing. */
  follow(client: Client, idempotencyKey: string): Disposable {
    let nextSeq = 0;
    const stop = client.on(PROGRESS, (payload) => {
      const piece = payload as Piece & { idempotencyKey: string };
      if (piece.idempotencyKey !== idempotencyKey || piece.seq !== nextSeq) return;
      nextSeq++;
      this.#show(piece.stream, piece.data);
    });
    return { [Symbol.dispose]: stop };
  }

  /** @param whole all that was written, as the result has it */
  finish(stream: Stream, whole: string) {
    const shown = this.#shown[stream];
    if (whole.startsWith(shown)) this.#show(stream, whole.slice(shown.length));
  }

  #show(stream: Stream, data: string) {
    if (data === "") return;
    this.#shown[stream] += data;
    if (stream === "stdout") this.#terminal.write(data);
    else this.#terminal.writeErr(data);
  }
}

/** @returns the exit code */
function show(payload: RunPayload, live: LiveOutput, terminal: Terminal): number {
  const { stdout = "", stderr = "", error } = payload;
  live.finish("stdout", stdout);
  live.finish("stderr", stderr);
  const code = exitCodeOf(payload);
  if (code === 0) return code;
  if (stderr !== "" && !stderr.endsWith("\n")) terminal.err();
  if (payload.timedOut) terminal.err("run timed out");
  else if (typeof payload.exitCode === "number") terminal.err(`run exit ${payload.exitCode}`);
  else terminal.err(`run failed: ${printable(error ?? "the node tells no exit code")}`);
  return code;
}

function exitCodeOf({ timedOut, exitCode, success }: RunPayload): number {
  if (timedOut) return EXIT_FAILURE;
  if (typeof exitCode === "number") return exitCode;
  return success === true ? 0 : EXIT_FAILURE;
}

function shellOf({ platform = "" }: NodeInfo, text: string): string[] {
  return /^win/i.test(platform.trim())
    ? ["cmd.exe", "/d", "/s", "/c", text]
    : ["/bin/sh", "-lc", text];
}

/** @throws {UsageError} on what is not NAME=VALUE */
function readEnv(pairs: readonly string[]): Record<string, string> | undefined {
  if (pairs.length === 0) return undefined;
  return Object.fromEntries(pairs.map((pair) => {
    const at = pair.indexOf("=");
    // Not the pair itself: it may hold a secret.
    if (at < 1) throw new UsageError("Cannot read --env: write NAME=VALUE");
    return [pair.slice(0, at), pair.slice(at + 1)];
  }));
}

/**
 * The rules of the node, where the gateway can ask for them and the node tells them.
 *
 * @returns undefined where they stay unknown
 */
async function policyOfNode(
  client: Client,
  { node: { nodeId, commands }, agentId }: Run,
  { timeout: timeoutMs }: CallFlags,
): Promise<Policy | undefined> {
  const method = "exec.approvals.node.get";
  const canAsk = client.hello.features.methods?.includes(method) === true;
  if (!canAsk || !commands?.includes("system.execApprovals.get")) return undefined;
  return policyIn(await client.call(method, { nodeId }, { timeoutMs }), agentId);
}
