// `system.run` (§9.4): may the command run here, how it runs, and what is told of it.

import type { Paths } from "../../config/paths.ts";
import type { Config } from "../../config/schema.ts";
import {
  boolean,
  explain,
  type Infer,
  list,
  mapOf,
  nullable,
  number,
  oneOf,
  open,
  optional,
  problems,
  text,
} from "../../rpc/shape.ts";
import { type CommandText, evaluate, type EvaluatedSegment, type Evaluation } from "./allowlist.ts";
import type { AllowEntry, ApprovalsStore } from "./approvals_file.ts";
import { CommandError } from "./command_error.ts";
import { childEnv, pathOf } from "./env.ts";
import { runCommand, type RunOutcome } from "./exec.ts";
import { effectivePolicy, MAIN_AGENT, refusal, safeBinsOf } from "./policy.ts";
import type { Stream } from "./progress.ts";
import { shellLine, toRemember } from "./remember.ts";
import { joinArgv, splitLine } from "./splitter.ts";

const maybe = <T>(shape: Parameters<typeof nullable<T>>[0]) => optional(nullable(shape));

const RunParams = open({
  command: list(text()),
  rawCommand: maybe(text()),
  cwd: maybe(text()),
  env: maybe(mapOf(text())),
  timeoutMs: maybe(number()),
  needsScreenRecording: maybe(boolean()),
  agentId: maybe(text()),
  sessionKey: maybe(text()),
  approved: maybe(boolean()),
  approvalDecision: maybe(oneOf(["allow-once", "allow-always"])),
  runId: maybe(text()),
});
type RunParams = Infer<typeof RunParams>;

/** The gateway a command came from. */
export interface Channel {
  /** Says what happened here, as a `node.event`. Not waited for. */
  tell(event: string, payload: Record<string, unknown>): void;
  /** Programs that skills bring along. */
  skillBins(): Promise<ReadonlySet<string>>;
  /** Takes what the command writes while it runs; absent where nobody asked for that. */
  output?(stream: Stream, data: string): void;
}

export interface SystemRunOptions {
  env: Paths["env"];
  /** What relative paths are relative to. */
  cwd: string;
  approvals: ApprovalsStore;
  /** As it is now; the last one that was valid. */
  config(): Promise<Config>;
  /** Told what went wrong beside the command itself. */
  warn(message: string): void;
  /** Ends what runs. */
  signal: AbortSignal;
}

const MAX_EVENT_OUTPUT = 20_000;
const MAX_REMEMBERED_TEXT = 500;

export class SystemRun {
  readonly #options: SystemRunOptions;

  constructor(options: SystemRunOptions) {
    this.#options = options;
  }

  /** @throws {CommandError} for a command that may not run */
  async run(value: unknown, channel: Channel): Promise<RunOutcome> {
    const params = readParams(value);
    const { argv, shown, readings } = readCommand(params);
    const { env, approvals, signal } = this.#options;
    const agentId = agentOf(params);
    const [file, config] = await Promise.all([approvals.load(), this.#options.config()]);
    const policy = effectivePolicy(file, config, agentId);
    const childEnvironment = childEnv(env, params.env ?? {});
    const cwd = this.#workingDirectory(params.cwd);
    const rules = {
      allowlist: policy.allowlist,
      safeBins: safeBinsOf(config, agentId),
      ...(policy.autoAllowSkills && { skillBins: channel.skillBins }),
    };
    const surroundings = {
      path: childEnvironment.PATH,
      ownPath: pathOf(env),
      cwd,
      home: childEnvironment.HOME,
    };
    const evaluations: Evaluation[] = [];
    for (const reading of readings) {
      evaluations.push(await evaluate(reading, rules, surroundings));
    }
    const evaluation = evaluations.find(({ isSatisfied }) => isSatisfied) ?? evaluations[0];

    const run = {
      sessionKey: params.sessionKey?.trim() || "node",
      runId: params.runId?.trim() || crypto.randomUUID(),
      host: "node",
      command: shown,
    };
    const decision = params.approvalDecision ?? undefined;
    const denial = refusal(policy, evaluation, { approved: params.approved ?? false, decision }) ??
      (params.needsScreenRecording
        ? { reason: "permission:screenRecording", message: "PERMISSION_MISSING: screenRecording" }
        : undefined);
    if (denial) {
      channel.tell("exec.denied", { ...run, reason: denial.reason });
      throw new CommandError("UNAVAILABLE", denial.message);
    }

    const isAlways = decision === "allow-always" && policy.security === "allowlist";
    const added = isAlways ? await toRemember(evaluations) : [];
    channel.tell("exec.started", run);
    const isDirect = "argv" in readings[0];
    const [outcome] = await Promise.all([
      runCommand({
        // The very file that was found, whatever another search might find.
        argv: isDirect ? [evaluations[0].segments[0]?.path ?? argv[0], ...argv.slice(1)] : argv,
        cwd,
        env: childEnvironment,
        timeoutMs: params.timeoutMs ?? 0,
        signal,
        onOutput: channel.output,
      }),
      this.#note(agentId, shown, evaluation.segments, added),
    ]);
    const { exitCode, timedOut, success } = outcome;
    channel.tell("exec.finished", {
      ...run,
      exitCode,
      timedOut,
      success,
      output: eventOutput(outcome),
    });
    return outcome;
  }

  #workingDirectory(cwd?: string | null): string {
    if (!cwd?.trim()) return this.#options.cwd;
    return cwd.startsWith("/") ? cwd : `${this.#options.cwd}/${cwd}`;
  }

  /** Writes down which entries were of use, and new ones. It failing does not stop the command. */
  async #note(
    agentId: string,
    command: string,
    segments: readonly EvaluatedSegment[],
    added: readonly string[],
  ): Promise<void> {
    const used = new Map(segments.flatMap(({ entry, path }) => entry ? [[entry.id, path]] : []));
    if (used.size === 0 && added.length === 0) return;
    const note = (path: string | undefined) => ({
      lastUsedAt: Date.now(),
      lastUsedCommand: command.slice(0, MAX_REMEMBERED_TEXT),
      ...(path && { lastResolvedPath: path }),
    });
    try {
      await this.#options.approvals.update((file) => {
        const agents = file.agents ??= {};
        for (const entry of Object.values(agents).flatMap(({ allowlist = [] }) => allowlist)) {
          if (used.has(entry.id)) Object.assign(entry, note(used.get(entry.id)));
        }
        if (added.length === 0) return;
        const own = Object.hasOwn(agents, agentId) ? agents[agentId] : agents[agentId] = {};
        const list: AllowEntry[] = own.allowlist ??= [];
        for (const path of added) {
          if (list.some(({ pattern }) => pattern === path)) continue;
          list.push({ id: crypto.randomUUID(), pattern: path, ...note(path) });
        }
      });
    } catch (error) {
      this.#options.warn(`Cannot note the use of the allowlist: ${(error as Error).message}`);
    }
  }
}

function readParams(value: unknown): RunParams {
  const { command } = (value ?? {}) as { command?: unknown };
  if (!Array.isArray(command) || command.length === 0 || !String(command[0]).trim()) {
    throw new CommandError("INVALID_REQUEST", "command required");
  }
  const wrong = problems(value, RunParams);
  if (wrong.length === 0) return value as RunParams;
  throw new CommandError("INVALID_REQUEST", `invalid system.run params: ${explain(wrong)}`);
}

interface ReadCommand {
  argv: readonly string[];
  /** For people. */
  shown: string;
  /** Ways to look at it, the most literal one first; one that is allowed is enough. */
  readings: CommandText[];
}

/** What was shown to people must be what runs: a text beside the argv has to say the same. */
function readCommand({ command: argv, rawCommand }: RunParams): ReadCommand {
  const line = shellLine(argv);
  if (!rawCommand?.trim()) {
    const asLine = line === undefined ? [] : [{ line }];
    return { argv, shown: joinArgv(argv), readings: [{ argv }, ...asLine] };
  }
  if (line !== undefined && rawCommand === line) {
    return { argv, shown: rawCommand, readings: [{ line }] };
  }
  if (saysSame(rawCommand, argv)) return { argv, shown: rawCommand, readings: [{ argv }] };
  throw new CommandError("INVALID_REQUEST", "rawCommand does not match command");
}

function saysSame(line: string, argv: readonly string[]): boolean {
  if (argv.every((word) => /^[^\s'"\\]+$/.test(word)) && line === argv.join(" ")) return true;
  const segments = splitLine(line);
  const [words] = segments ?? [];
  return segments?.length === 1 && words.length === argv.length &&
    words.every(({ text, isLiteral, hasTilde }, index) =>
      isLiteral && !hasTilde && text === argv[index]
    );
}

function agentOf({ agentId }: RunParams): string {
  const id = agentId?.trim().toLowerCase() || MAIN_AGENT;
  return id === "default" ? MAIN_AGENT : id;
}

function eventOutput({ stdout, stderr, error }: RunOutcome): string {
  const output = [stdout, stderr, error ?? ""].filter((part) => part !== "").join("\n");
  return output.length > MAX_EVENT_OUTPUT
    ? `... (truncated) ${output.slice(-MAX_EVENT_OUTPUT)}`
    : output;
}
