// `zero nodes run`: a program on a node, approved where the rules ask for it (§10.4, D18), its output
// and exit code passed through.

import { EXIT_FAILURE, UsageError } from "../config/command.ts";
import type { Config } from "../config/schema.ts";
import { formatDuration, printable, type Terminal } from "../config/terminal.ts";
import type { Client } from "../rpc/client.ts";
import { RpcError } from "../rpc/error.ts";
import { normalizeAgentId, sessionDefaults } from "./agents.ts";
import type { Decision } from "./approvals.ts";
import { ApprovalsFile, ASKS, SECURITIES } from "./node/approvals_file.ts";
import { effectivePolicy, type Policy } from "./node/policy.ts";
import { joinArgv } from "./node/splitter.ts";
import { findNode, invoke, nameOf, type NodeInfo, nodeList, takeWords } from "./nodes_commands.ts";
import { type CallFlags, type CallWorld, withGateway } from "./reach.ts";

/** Whose wishes are combined: each may make it stricter. */
type Strictness = Pick<Policy, "security" | "ask">;

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

interface RunPayload {
  exitCode?: number | null;
  timedOut?: boolean;
  success?: boolean;
  stdout?: string;
  stderr?: string;
  error?: string | null;
}

const APPROVAL_TIMEOUT_MS = 120_000;
/** For a command that ends at its own deadline, to tell of it. */
const REPORT_MS = 5_000;
/** What a node says when a person has to decide (§9.4). */
const MISSES = ["SYSTEM_RUN_DENIED: approval required", "SYSTEM_RUN_DENIED: allowlist miss"];

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
    const result = await runOnNode(client, run, { flags, given, config }, terminal);
    const payload = (result.payload ?? {}) as RunPayload;
    if (flags.json) {
      terminal.json(result);
      return exitCodeOf(payload);
    }
    return show(payload, terminal);
  });
}

async function runOnNode(
  client: Client,
  run: Run,
  { flags, given, config }: { flags: RunFlags; given: ReadonlySet<string>; config: Config },
  terminal: Terminal,
) {
  const { node, agentId } = run;
  const commandTimeout = flags["command-timeout"];
  const invokeTimeout = given.has("invoke-timeout") || commandTimeout === undefined
    ? flags["invoke-timeout"]
    : Math.max(flags["invoke-timeout"], commandTimeout + REPORT_MS);
  const attempt = () =>
    invoke(client, {
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
    }, flags);
  // Nobody is to be asked about what cannot happen: the gateway says why.
  if (!node.connected || !node.commands?.includes("system.run")) return await attempt();

  const theirs = await policyOfNode(client, run, flags);
  const policy = strictest(
    effectivePolicy({ version: 1 }, config, agentId),
    { security: flags.security ?? "full", ask: flags.ask ?? "off" },
    ...theirs ? [theirs] : [],
  );
  if (policy.security === "deny") {
    throw new RpcError("FORBIDDEN", "exec denied: host=node security=deny");
  }
  // A node that keeps a list of what may run is the one to say whether this is on it. One that lets
  // everything run, or says nothing, would not ask on behalf of whoever wants it stricter.
  const isJudge = theirs?.security === "allowlist";
  const asksFirst = policy.ask === "always" ||
    (policy.ask === "on-miss" && policy.security === "allowlist" && !isJudge);
  const request = () => approve(client, run, policy, terminal);
  const isApproved = asksFirst && await request();
  if (asksFirst && !isApproved && (theirs?.askFallback ?? "deny") === "deny") {
    throw nobodyAnswered();
  }
  try {
    return await attempt();
  } catch (error) {
    if (!isMiss(error) || isApproved || policy.ask === "off") throw error;
    if (asksFirst || !await request()) throw nobodyAnswered();
    return await attempt();
  }
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

/** @returns the exit code */
function show(payload: RunPayload, terminal: Terminal): number {
  const { stdout = "", stderr = "", error } = payload;
  if (stdout !== "") terminal.write(stdout);
  if (stderr !== "") terminal.writeErr(stderr);
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
  const answer = await client.call(method, { nodeId }, { timeoutMs }) as { file?: unknown };
  return effectivePolicy(ApprovalsFile.is(answer.file) ? answer.file : undefined, {}, agentId);
}

function strictest(...policies: Strictness[]): Strictness {
  const least = Math.min(...policies.map(({ security }) => SECURITIES.indexOf(security)));
  const most = Math.max(...policies.map(({ ask }) => ASKS.indexOf(ask)));
  return { security: SECURITIES[least], ask: ASKS[most] };
}

function isMiss(error: unknown): boolean {
  const { nodeError } = (error instanceof RpcError ? error.details ?? {} : {}) as {
    nodeError?: { message?: string } | null;
  };
  return MISSES.includes(nodeError?.message ?? "");
}

function nobodyAnswered(): RpcError {
  return new RpcError(
    "FORBIDDEN",
    "exec denied: approval required (approval UI not available)",
  );
}
