// The commands that run a gateway and that call one (protocol.md §11, D14). What they say is put
// together in overview.ts, how they get there is in reach.ts: most commands need the one, and loading
// both with the program takes less time than looking for them later.

import {
  type Command,
  command,
  EXIT_FAILURE,
  type Flags,
  JSON_FLAG,
  RPC_FLAGS,
  UsageError,
} from "../config/command.ts";
import type { Terminal } from "../config/terminal.ts";
import type { Client } from "../rpc/client.ts";
import { calling } from "./calling.ts";
import { findToken, runGatewayStatus, runStatus, showHealth } from "./overview.ts";
import type { CallFlags, CallWorld } from "./reach.ts";

/** How often `logs --follow` asks for more. */
const FOLLOW_EVERY_MS = 1_000;
const MAX_LOG_LINES = 5_000;

const EXPECT_FINAL = {
  "expect-final": {
    kind: "boolean",
    summary: "Wait for the last of two answers (calls that only start something)",
  },
} as const satisfies Flags;

const PROBE_FLAG = {
  probe: { kind: "boolean", hidden: true, summary: "Ask the channels too; part of --verbose" },
} as const satisfies Flags;

export function gatewayCommands(world: CallWorld): Command[] {
  return [
    command({
      path: ["health"],
      aliases: [["gateway", "health"]],
      summary: "Whether the gateway is well",
      flags: { ...RPC_FLAGS, ...EXPECT_FINAL, ...PROBE_FLAG },
      details:
        "With --verbose the channels are asked as well, and not only what the gateway last " +
        "heard of them. The exit code is 1 when the gateway does not answer; trouble in a channel " +
        "does not change it.",
      examples: ["zero health", "zero health --json --port 19001"],
      run: ({ flags }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const params = flags.verbose || flags.probe ? { probe: true } : {};
          const begin = performance.now();
          const health = await client.call("health", params, { timeoutMs: flags.timeout });
          const latencyMs = Math.round(performance.now() - begin);
          if (flags.json) return terminal.json(health);
          showHealth({ health, hello: client.hello, latencyMs }, terminal);
        }),
    }),

    command({
      path: ["status"],
      summary: "An overview of this installation and its gateway",
      flags: {
        ...RPC_FLAGS,
        deep: { kind: "boolean", summary: "Also ask for a fresh health report; 1 if that fails" },
        all: { kind: "boolean", summary: "Show every detail, to paste into a report" },
      },
      details:
        "A gateway that does not answer is part of the overview, not an error; with --deep " +
        "it is one.",
      examples: ["zero status", "zero status --deep --json"],
      run: async ({ flags }, terminal) => {
        return await runStatus(flags, world, terminal);
      },
    }),

    command({
      path: ["gateway", "call"],
      aliases: [["call"]],
      summary: "Call a method of the gateway and print its result",
      usage: "METHOD [PARAMS]",
      flags: {
        ...RPC_FLAGS,
        ...EXPECT_FINAL,
        params: { kind: "text", placeholder: "JSON", summary: "The params; same as PARAMS" },
      },
      details: 'PARAMS is JSON; - reads it from standard input. "zero call rpc.discover" lists ' +
        "every method with its scope and its params.",
      examples: [
        "zero call status",
        `zero call system-event '{"text":"hello"}'`,
        "zero gateway call logs.tail --params '{\"limit\":10}' --json",
      ],
      run: async ({ args: [method, given], flags }, terminal) => {
        const params = await readParams(given, flags.params, terminal);
        return await calling(flags, world, terminal, async (client) => {
          const payload = await client.call(method, params, {
            timeoutMs: flags.timeout,
            expectFinal: flags["expect-final"],
          });
          terminal.json(payload ?? null);
        });
      },
    }),

    command({
      path: ["logs"],
      summary: "The last lines of the gateway's log",
      flags: {
        ...RPC_FLAGS,
        follow: { kind: "boolean", short: "f", summary: "Go on with new lines until stopped" },
        limit: {
          kind: "integer",
          min: 1,
          max: MAX_LOG_LINES,
          default: 200,
          summary: "How many lines to begin with",
        },
      },
      details: "On a terminal the lines are written for people, elsewhere as the gateway wrote " +
        "them: one JSON object each. With --json it is the answer of logs.tail; with --follow one " +
        "such answer a line.",
      examples: ["zero logs --limit 20", "zero logs --follow"],
      run: ({ flags }, terminal) =>
        calling(flags, world, terminal, (client) => showLogs(client, flags, terminal)),
    }),

    command({
      path: ["gateway", "status"],
      summary: "The gateway of this machine: what is configured, what runs, what answers",
      flags: {
        ...RPC_FLAGS,
        "no-probe": { kind: "boolean", summary: "Do not call the gateway" },
        deep: { kind: "boolean", summary: "Also ask for a fresh health report" },
      },
      details: "It is about this machine even where commands go to a remote gateway. The exit " +
        "code is 0 also when nothing answers.",
      examples: ["zero gateway status", "zero gateway status --no-probe --json"],
      run: async ({ flags }, terminal) => {
        return await runGatewayStatus(flags, world, terminal);
      },
    }),

    command({
      path: ["gateway", "probe"],
      summary: "Try every gateway the configuration knows of",
      flags: {
        ...RPC_FLAGS,
        "ssh-auto": {
          kind: "boolean",
          summary: "Where no machine is configured for ssh, try the first gateway of the network",
        },
        timeout: { ...RPC_FLAGS.timeout, default: 3_000 },
      },
      details: "Each is connected to and asked for health, status, presence and configuration; " +
        "gateways of the local network are only listed. The exit code is 1 when none answers in full.",
      examples: [
        "zero gateway probe",
        "zero gateway probe --url ws://192.168.1.5:18789 --json",
        "zero gateway probe --ssh me@vps.example",
      ],
      run: async ({ flags }, terminal) => {
        const { runProbe } = await import("./probe.ts");
        return await runProbe(flags, world, terminal);
      },
    }),

    command({
      path: ["gateway", "discover"],
      summary: "Gateways that make themselves known on the local network",
      flags: {
        ...JSON_FLAG,
        timeout: {
          kind: "integer",
          min: 1,
          max: 60_000,
          placeholder: "MS",
          default: 2_000,
          summary: "How long to listen",
        },
      },
      details:
        "Whoever is on the network can claim anything this way: nothing is connected to, and " +
        "nothing of it is kept. A gateway is known by its certificate or its host key.",
      examples: ["zero gateway discover", "zero gateway discover --timeout 5000 --json"],
      run: async ({ flags }, terminal) => {
        const { runDiscover } = await import("./discovery.ts");
        return await runDiscover(flags, terminal);
      },
    }),

    command({
      path: ["gateway", "token"],
      summary: "Print the token of this machine's gateway",
      flags: JSON_FLAG,
      details: "It is the token a gateway on this machine asks for: the one of the environment, " +
        "of the configuration, or the one it made for itself.",
      examples: ["zero gateway token"],
      run: async ({ flags }, terminal) => {
        const found = await findToken(world.place());
        if (found.token === undefined) {
          terminal.err(`${terminal.errStyle.red("error:")} ${found.problem}\nfix:   ${found.fix}`);
          if (flags.json) {
            const { problem: message, fix } = found;
            terminal.json({ ok: false, error: { code: "NO_TOKEN", message, fix } });
          }
          return EXIT_FAILURE;
        }
        if (flags.json) terminal.json({ token: found.token, source: found.source });
        else terminal.out(found.token);
        if (flags.verbose) terminal.err(`The token comes from: ${found.source}`);
      },
    }),
  ];
}

/** @throws {UsageError} when both are given, or it is no JSON */
async function readParams(
  argument: string | undefined,
  flag: string | undefined,
  terminal: Terminal,
): Promise<unknown> {
  if (argument !== undefined && flag !== undefined) {
    throw new UsageError("Cannot take PARAMS and --params together: give one of them");
  }
  const given = argument ?? flag;
  if (given === undefined) return {};
  const text = given === "-" ? await terminal.readStdin() : given;
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new UsageError("Cannot read the params: they are not valid JSON", {
      hint: `Write them like '{"limit":10}'`,
      cause,
    });
  }
}

interface LogTail {
  file: string;
  cursor: number;
  lines: string[];
  reset: boolean;
}

async function showLogs(
  client: Client,
  { follow, limit, json, timeout }: CallFlags & { follow: boolean; limit: number },
  terminal: Terminal,
): Promise<void> {
  const { formatLogLine } = await import("../config/log.ts");
  const tail = async (params: object) =>
    await client.call("logs.tail", params, { timeoutMs: timeout }) as LogTail;
  const show = (part: LogTail) => {
    if (json && follow) return terminal.out(JSON.stringify(part));
    if (json) return terminal.json(part);
    if (part.lines.length === 0) return;
    const lines = terminal.isInteractive
      ? part.lines.map((line) => formatLogLine(line, terminal.style))
      : part.lines;
    terminal.out(lines.join("\n"));
  };
  let part = await tail({ limit });
  show(part);
  if (!follow) {
    if (part.lines.length === 0 && !json) terminal.err(`The log is empty: ${part.file}`);
    return;
  }
  for (;;) {
    // A line more or less a second: the deadline of the connection is watched meanwhile.
    const end = await Promise.race([client.closed, pause(FOLLOW_EVERY_MS)]);
    if (end) throw end;
    part = await tail({ cursor: part.cursor, limit: MAX_LOG_LINES });
    if (part.reset) terminal.err("The log was begun anew");
    if (part.lines.length > 0) show(part);
  }
}

function pause(ms: number): Promise<undefined> {
  return new Promise((resolve) => setTimeout(() => resolve(undefined), ms));
}
