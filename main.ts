// ZERO on the command line: which commands there are, and what becomes of their exit codes and
// errors. Everything else is loaded by the command that needs it.

import project from "./deno.json" with { type: "json" };
import {
  type Command,
  EXIT_FAILURE,
  EXIT_OK,
  EXIT_USAGE,
  hasSwitch,
  ownWords,
  type Program,
  readGlobals,
  runProgram,
  UsageError,
} from "./config/command.ts";
import { withoutProxy } from "./config/forward_proxy.ts";
import { type Env, inProfile, type Paths, resolvePaths } from "./config/paths.ts";
import { gatewayCommands } from "./gateway/cli.ts";
import { OutputClosed, Terminal, type TerminalOptions } from "./config/terminal.ts";
import { RpcError } from "./rpc/error.ts";
import { TunnelError } from "./tunnel/error.ts";

/** What the program is given by the system. */
export interface World {
  argv: readonly string[];
  env: Env;
  cwd: string;
  streams: Pick<TerminalOptions, "stdin" | "stdout" | "stderr" | "columns">;
}

/** Commands that stand in one file, which is loaded when one of them may be meant. */
interface Family {
  /** What their paths begin with. */
  words: readonly string[];
  /**
   * A name that the loader does not see beforehand: else it would look at everything that any command
   * could ever load, each time. The compiled program is told of it (.ci/compile.ts).
   */
  file?: string;
  // deno-lint-ignore no-explicit-any -- what the file exports
  commands(parts: Parts, module: any): Command | Command[];
}

/** What commands are given. */
interface Parts {
  place(): Paths;
  version: string;
  program(): Program;
}

/** In the order of the help. */
export const FAMILIES: readonly Family[] = [
  {
    words: ["gateway"],
    file: "./gateway/run_cli.ts",
    commands: (parts, { runCommand }) => runCommand(parts),
  },
  // What is used most stands in the program itself.
  { words: ["health", "gateway", "status", "call", "logs"], commands: gatewayCommands },
  {
    words: ["doctor"],
    file: "./gateway/doctor_cli.ts",
    commands: (parts, { doctorCommands }) => doctorCommands(parts),
  },
  {
    words: ["agent", "gateway", "chat"],
    file: "./gateway/agent_cli.ts",
    commands: (parts, { agentCommands }) => agentCommands(parts),
  },
  {
    words: ["gateway"],
    file: "./gateway/cert_cli.ts",
    commands: (parts, { certCommands }) => certCommands(parts),
  },
  {
    words: ["remote"],
    file: "./gateway/remote_cli.ts",
    commands: (parts, { remoteCommands }) => remoteCommands(parts),
  },
  {
    words: ["tunnel"],
    file: "./gateway/tunnel_cli.ts",
    commands: (parts, { tunnelCommands }) => tunnelCommands(parts),
  },
  {
    words: ["devices", "join", "audit"],
    file: "./gateway/devices_cli.ts",
    commands: (parts, { devicesCommands }) => devicesCommands(parts),
  },
  {
    words: ["node"],
    file: "./gateway/node_cli.ts",
    commands: (parts, { nodeCommands }) => nodeCommands(parts),
  },
  {
    words: ["nodes"],
    file: "./gateway/nodes_cli.ts",
    commands: (parts, { nodesCommands }) => nodesCommands(parts),
  },
  {
    words: ["approvals"],
    file: "./gateway/approvals_cli.ts",
    commands: (parts, { approvalsCommands }) => approvalsCommands(parts),
  },
  {
    words: ["channels", "pairing", "message", "gateway"],
    file: "./gateway/channels_cli.ts",
    commands: (parts, { channelsCommands }) => channelsCommands(parts),
  },
  {
    words: ["auth", "models", "gateway"],
    file: "./gateway/auth_cli.ts",
    commands: (parts, { authCommands }) => authCommands(parts),
  },
  {
    words: ["sessions"],
    file: "./gateway/sessions_cli.ts",
    commands: (parts, { sessionsCommands }) => sessionsCommands(parts),
  },
  {
    words: ["cron"],
    file: "./gateway/cron_cli.ts",
    commands: (parts, { cronCommands }) => cronCommands(parts),
  },
  {
    words: ["security"],
    file: "./gateway/security_cli.ts",
    commands: (parts, { securityCommands }) => securityCommands(parts),
  },
  {
    words: ["config"],
    file: "./config/cli.ts",
    commands: (parts, { configCommands }) => configCommands(parts),
  },
  {
    words: ["completions"],
    file: "./config/completions.ts",
    commands: ({ program }, { completionsCommand }) => completionsCommand(program),
  },
];

/** In the order of the help: what is used first stands first. */
const SECTIONS: Program["sections"] = [
  { title: "The gateway", words: ["gateway", "status", "health", "logs", "doctor", "config"] },
  { title: "The agent", words: ["chat", "agent", "sessions", "cron", "auth", "models"] },
  { title: "People who write to it", words: ["channels", "pairing", "message"] },
  { title: "Machines that lend their hands", words: ["node", "nodes", "approvals"] },
  { title: "A gateway elsewhere", words: ["remote", "tunnel", "join"] },
  { title: "Who may come in", words: ["devices", "audit", "security"] },
  { title: "Scripts", words: ["call", "completions"] },
];

if (import.meta.main) {
  const { stdin, stdout, stderr } = Deno;
  const columns = () => Deno.consoleSize().columns;
  const env = Deno.env.toObject();
  const direct = withoutProxy(env);
  if (direct) {
    // The runtime reads it there; the rest of the program goes by `env`.
    Deno.env.set("NO_PROXY", direct);
    Deno.env.set("no_proxy", direct);
  }
  Deno.exit(
    await main({
      argv: Deno.args,
      env,
      cwd: Deno.cwd(),
      streams: { stdin, stdout, stderr, columns },
    }),
  );
}

/** Runs one command line; returns the exit code. */
export async function main({ argv, env, cwd, streams }: World): Promise<number> {
  const isColorless = Boolean(env.NO_COLOR) || hasSwitch(argv, "no-color");
  const terminal = new Terminal({ ...streams, isColorless });
  const program = await createProgram({ argv, env, cwd });
  try {
    return await runProgram(program, argv, terminal);
  } catch (error) {
    return await report(error, ownWords(program, argv), terminal);
  }
}

/** The commands a command line may mean, in the order the help shows them; where none is named, all. */
export async function createProgram(
  { argv, env, cwd }: Omit<World, "streams">,
): Promise<Program> {
  const place = () => placeOf({ argv: ownWords(program, argv), env, cwd });
  const version = versionOf(env);
  const program: Program = {
    name: "zero",
    summary: "A gateway for personal agents: run it, reach it, call it.",
    version,
    groups: {
      gateway: "Run the gateway, and talk to one",
      remote: "Gateways on other machines, by name",
      tunnel: "Ways to gateways on other machines, kept up through ssh",
      devices: "Paired devices, and those that ask to be",
      node: "Lend this machine's hands to a gateway",
      nodes: "The machines there are, and what each can do",
      approvals: "Commands that wait for a person's answer",
      channels: "Messengers through which people reach the agent",
      pairing: "People who want to write to the agent",
      message: "Messages to people",
      auth: "Model providers and their keys",
      sessions: "Conversations, and what was said in them",
      cron: "Jobs that run at a time, or time and again",
      security: "How safe this installation is",
      config: "Read, check and change the configuration",
    },
    firstSteps: [
      ["zero gateway", "Run the gateway, and leave it running"],
      ["zero chat", "Talk with the agent, in another terminal"],
      ["zero auth add anthropic", "Give it a model; openai, ollama and others as well"],
      ["zero channels add telegram", "Write to it from your phone"],
    ],
    sections: SECTIONS,
    commands: [],
  };
  const parts = { place, version, program: () => program };
  const loaded = await Promise.all(
    familiesOf(argv).map(async ({ file, commands }) => commands(parts, file && await import(file))),
  );
  return Object.assign(program, { commands: loaded.flat() });
}

/** Those that a command line begins with; all of them where that does not tell. */
function familiesOf(argv: readonly string[]): readonly Family[] {
  const [first, second, third] = argv;
  // Of other options nobody knows yet whether the next word is their value.
  const word = first === "--profile" ? third : /^--(dev$|profile=)/.test(first) ? second : first;
  const named = FAMILIES.filter(({ words }) => words.includes(word));
  return named.length > 0 && word !== "completions" ? named : FAMILIES;
}

/** The version as peers and people see it (protocol §3.6). */
export function versionOf(env: Env): string {
  return env.ZERO_VERSION?.trim() || project.version || "dev";
}

/** Where this command line keeps its files; `--profile` and `--dev` have a say (§11.1). */
function placeOf({ argv, env, cwd }: Omit<World, "streams">): Paths {
  const { profile, dev } = readGlobals(argv);
  try {
    return resolvePaths({ env, home: env.HOME, profile, dev, cwd });
  } catch (cause) {
    throw new UsageError((cause as Error).message, { cause });
  }
}

/** How an error ends the program. */
interface Failure {
  exitCode: number;
  /** For machines: stable, upper case. */
  code: string;
  message: string;
  details?: unknown;
  /** Lines below the message: what to do about it. */
  notes: string[];
}

/** Tells of an error on stderr, with `--json` also on stdout; returns the exit code. */
async function report(error: unknown, argv: readonly string[], terminal: Terminal) {
  if (error instanceof OutputClosed) return EXIT_OK;
  const isVerbose = hasSwitch(argv, "verbose");
  const { exitCode, code, message, details, notes } = await failureOf(error, { argv, isVerbose });
  const { red, dim } = terminal.errStyle;
  terminal.err([`${red("error:")} ${message}`, ...notes.map(dim)].join("\n"));
  if (hasSwitch(argv, "json")) {
    try {
      terminal.json({ ok: false, error: { code, message, details } });
    } catch (closed) {
      if (!(closed instanceof OutputClosed)) throw closed;
    }
  }
  return exitCode;
}

async function failureOf(
  error: unknown,
  { argv, isVerbose }: { argv: readonly string[]; isVerbose: boolean },
): Promise<Failure> {
  const { ConfigError } = await import("./config/load.ts");
  if (error instanceof UsageError) {
    const { message } = error;
    const hint = error.hint && inProfile(error.hint, profileOf(argv));
    const details = hint && { hint };
    return { exitCode: EXIT_USAGE, code: "USAGE", message, details, notes: hint ? [hint] : [] };
  }
  if (error instanceof ConfigError) {
    const { message, issues, reason } = error;
    const code = `CONFIG_${reason.toUpperCase()}`;
    return { exitCode: EXIT_FAILURE, code, message, details: { issues }, notes: [] };
  }
  if (error instanceof RpcError) {
    const { code, message, details } = error;
    return { exitCode: EXIT_FAILURE, code, message, details, notes: refusalNotes(details) };
  }
  if (error instanceof TunnelError) {
    const { kind, message } = error;
    const fix = inProfile(error.fix, profileOf(argv));
    const code = `TUNNEL_${kind.toUpperCase().replaceAll("-", "_")}`;
    const notes = [`code:  ${code}`, `fix:   ${fix}`];
    return { exitCode: EXIT_FAILURE, code, message, details: { kind, fix }, notes };
  }
  const notes = isVerbose ? stacksOf(error) : ["Run it again with --verbose for the stack"];
  const message = error instanceof Error ? error.message : String(error);
  return { exitCode: EXIT_FAILURE, code: "FAULT", message, notes };
}

function profileOf(argv: readonly string[]): string | undefined {
  try {
    const { profile, dev } = readGlobals(argv);
    return dev ? "dev" : profile;
  } catch {
    return undefined; // a command line that is wrong about it: that is what is being told
  }
}

/** What a refusal says of itself (D13): its code, where it arose, and what mends it. */
function refusalNotes(details: unknown): string[] {
  const { code, layer, fix, reason, delivery } = (details ?? {}) as Record<string, unknown>;
  return [
    ...typeof reason === "string" ? [`reason: ${reason}`] : [],
    ...delivery === "unknown" ? ["It may have been done, or may still be"] : [],
    ...typeof code === "string" ? [`code:  ${code}`] : [],
    ...typeof layer === "string" ? [`layer: ${layer}`] : [],
    ...typeof fix === "string" ? [`fix:   ${fix}`] : [],
  ];
}

function stacksOf(error: unknown): string[] {
  const stacks: string[] = [];
  for (let at = error; at instanceof Error; at = at.cause) stacks.push(at.stack ?? at.message);
  return stacks;
}
