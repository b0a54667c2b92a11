// `zero nodes`: which machines lend their hands, and having them do something. What the commands do
// is in nodes_commands.ts, loaded when one runs.

import { type Command, command, type Flags, RPC_FLAGS } from "../config/command.ts";
import type { CallWorld } from "./reach.ts";

const NODE_FLAG = {
  node: {
    kind: "text",
    placeholder: "NODE",
    summary: "Its id or the beginning of it (6 characters), its name or its address",
  },
} as const satisfies Flags;

const FILTER_FLAGS = {
  connected: { kind: "boolean", summary: "Only those that are connected" },
  "last-connected": {
    kind: "text",
    placeholder: "1d",
    summary: "Only those that connected within: 90s, 10m, 2h, 7d",
  },
} as const satisfies Flags;

const MAX_TIMEOUT_MS = 86_400_000;

export function nodesCommands(world: CallWorld): Command[] {
  const bodies = () => import("./nodes_commands.ts");
  return [
    command({
      path: ["nodes", "status"],
      aliases: [["nodes"]],
      summary: "Nodes that are connected or paired, and what each offers",
      flags: { ...RPC_FLAGS, ...FILTER_FLAGS },
      examples: ["zero nodes status", "zero nodes status --connected --json"],
      run: async ({ flags }, terminal) => await (await bodies()).runStatus(flags, world, terminal),
    }),

    command({
      path: ["nodes", "list"],
      summary: "Nodes that are paired, and nodes that ask to be",
      flags: { ...RPC_FLAGS, ...FILTER_FLAGS },
      run: async ({ flags }, terminal) => await (await bodies()).runList(flags, world, terminal),
    }),

    command({
      path: ["nodes", "describe"],
      summary: "All there is to know of one node",
      usage: "[NODE]",
      flags: { ...RPC_FLAGS, ...NODE_FLAG },
      examples: ["zero nodes describe kitchen"],
      run: async ({ flags, args }, terminal) =>
        await (await bodies()).runDescribe(flags, args, world, terminal),
    }),

    command({
      path: ["nodes", "pending"],
      summary: "Nodes that wait for approval",
      flags: RPC_FLAGS,
      run: async ({ flags }, terminal) => await (await bodies()).runPending(flags, world, terminal),
    }),

    command({
      path: ["nodes", "approve"],
      summary: "Let a waiting node in",
      usage: "REQUEST",
      flags: RPC_FLAGS,
      details: "REQUEST is the id of a request or its beginning. The answer is always JSON.",
      examples: ["zero nodes approve 3f2a9c1e"],
      run: async ({ flags, args: [query] }, terminal) =>
        await (await bodies()).runDecision("approve", query, flags, world, terminal),
    }),

    command({
      path: ["nodes", "reject"],
      summary: "Turn a waiting node away",
      usage: "REQUEST",
      flags: RPC_FLAGS,
      details: "REQUEST is the id of a request or its beginning. The answer is always JSON.",
      run: async ({ flags, args: [query] }, terminal) =>
        await (await bodies()).runDecision("reject", query, flags, world, terminal),
    }),

    command({
      path: ["nodes", "rename"],
      summary: "Give a node a name of your own",
      usage: "[NODE] [NAME]",
      flags: {
        ...RPC_FLAGS,
        ...NODE_FLAG,
        name: { kind: "text", placeholder: "NAME", summary: "The name it gets" },
      },
      examples: ["zero nodes rename --node 3f2a9c1e --name kitchen"],
      run: async ({ flags, args }, terminal) =>
        await (await bodies()).runRename(flags, args, world, terminal),
    }),

    command({
      path: ["nodes", "remove"],
      summary: "Forget a node and disconnect it",
      usage: "[NODE]",
      flags: { ...RPC_FLAGS, ...NODE_FLAG },
      run: async ({ flags, args }, terminal) =>
        await (await bodies()).runRemove(flags, args, world, terminal),
    }),

    command({
      path: ["nodes", "invoke"],
      summary: "Have a node run one of its commands, and print what it answers",
      usage: "[NODE] [COMMAND] [PARAMS]",
      flags: {
        ...RPC_FLAGS,
        timeout: { ...RPC_FLAGS.timeout, default: 30_000 },
        ...NODE_FLAG,
        command: { kind: "text", placeholder: "COMMAND", summary: "Which of its commands" },
        params: { kind: "text", placeholder: "JSON", summary: "The params; same as PARAMS" },
        "invoke-timeout": {
          kind: "integer",
          min: 1,
          max: MAX_TIMEOUT_MS,
          default: 15_000,
          placeholder: "MS",
          summary: "How long the node may take",
        },
        "idempotency-key": {
          kind: "text",
          placeholder: "KEY",
          summary: "Sent along, for nodes that do the same thing only once",
        },
        queue: {
          kind: "text",
          placeholder: "10m",
          summary: "If the node is not connected, let it wait that long for it: 90s, 10m, 2h, 7d",
        },
      },
      details:
        'PARAMS is JSON; - reads it from standard input. "zero nodes describe" tells which ' +
        "commands a node has.",
      examples: [
        `zero nodes invoke kitchen system.which '{"bins":["sh"]}'`,
        "zero nodes invoke --node kitchen --command system.execApprovals.get",
        `zero nodes invoke --queue 2h laptop system.notify '{"title":"Backup is due"}'`,
      ],
      run: async ({ flags, args }, terminal) =>
        await (await bodies()).runInvoke(flags, args, world, terminal),
    }),

    command({
      path: ["nodes", "queue", "list"],
      aliases: [["nodes", "queue"]],
      summary: "Invocations that wait for their node, and what became of the last ones",
      usage: "[ID]",
      flags: { ...RPC_FLAGS, ...NODE_FLAG },
      details: "ID is the beginning of the id of one of them; it is then printed as JSON, with " +
        "what the node answered if you are the one who queued it.",
      examples: ["zero nodes queue", "zero nodes queue list 3f2a9c1e"],
      run: async ({ flags, args: [query] }, terminal) =>
        await (await bodies()).runQueueList(flags, query, world, terminal),
    }),

    command({
      path: ["nodes", "queue", "cancel"],
      summary: "Take an invocation back that has not been sent yet",
      usage: "ID",
      flags: RPC_FLAGS,
      details: "ID is its id or the beginning of it.",
      examples: ["zero nodes queue cancel 3f2a9c1e"],
      run: async ({ flags, args: [query] }, terminal) =>
        await (await bodies()).runQueueCancel(flags, query, world, terminal),
    }),

    command({
      path: ["nodes", "run"],
      summary: "Run a program on a node, with its output and exit code passed through",
      usage: "[--] [ARGV...]",
      takesArgv: true,
      flags: {
        ...RPC_FLAGS,
        timeout: { ...RPC_FLAGS.timeout, default: 35_000 },
        ...NODE_FLAG,
        cwd: { kind: "text", placeholder: "DIR", summary: "Directory on the node to run it in" },
        env: { kind: "list", placeholder: "K=V", summary: "A variable of its environment" },
        raw: {
          kind: "text",
          placeholder: "TEXT",
          summary: "A line for the node's shell, instead of ARGV",
        },
        agent: { kind: "text", placeholder: "ID", summary: "Whose rules hold" },
        session: {
          kind: "text",
          placeholder: "KEY",
          summary: "The conversation that is told of it",
        },
        ask: {
          kind: "text",
          choices: ["off", "on-miss", "always"],
          summary: "When to ask for approval; the stricter of this and the node's rules holds",
        },
        security: {
          kind: "text",
          choices: ["deny", "allowlist", "full"],
          summary: "What may run; the stricter of this and the node's rules holds",
        },
        "command-timeout": {
          kind: "integer",
          min: 1,
          max: MAX_TIMEOUT_MS,
          placeholder: "MS",
          summary: "When the node ends the program",
        },
        "needs-screen-recording": {
          kind: "boolean",
          summary: "Run it only where the screen may be recorded",
        },
        "invoke-timeout": {
          kind: "integer",
          min: 1,
          max: MAX_TIMEOUT_MS,
          default: 30_000,
          placeholder: "MS",
          summary: "How long to wait for the result; waiting for an approval does not count",
        },
      },
      details: "The first word that is no option begins the remote command line; everything from " +
        "there on goes to the node as it is. Put -- in front of it to be sure.\n\n" +
        "What the node's rules do not allow has to be approved first: zero approvals.",
      examples: [
        "zero nodes run --node kitchen uname -a",
        "zero nodes run --node kitchen --cwd /srv --env LANG=C -- git status --short",
        "zero nodes run --node kitchen --raw 'df -h | head -3'",
      ],
      run: async ({ flags, args, given }, terminal) =>
        await (await import("./nodes_run.ts")).runRun({ flags, args, given }, world, terminal),
    }),

    command({
      path: ["nodes", "notify"],
      summary: "Show a notification on a node",
      usage: "[NODE]",
      flags: {
        ...RPC_FLAGS,
        timeout: { ...RPC_FLAGS.timeout, default: 30_000 },
        ...NODE_FLAG,
        title: { kind: "text", summary: "Its title" },
        body: { kind: "text", summary: "Its text" },
        sound: { kind: "text", placeholder: "NAME", summary: "A sound to play" },
        priority: {
          kind: "text",
          choices: ["passive", "active", "timeSensitive"],
          summary: "How much it may disturb",
        },
        delivery: {
          kind: "text",
          choices: ["system", "overlay", "auto"],
          default: "system",
          summary: "How it is shown",
        },
        "invoke-timeout": {
          kind: "integer",
          min: 1,
          max: MAX_TIMEOUT_MS,
          default: 15_000,
          placeholder: "MS",
          summary: "How long the node may take",
        },
      },
      examples: ['zero nodes notify --node desk --title "Done" --body "The build is green"'],
      run: async ({ flags, args }, terminal) =>
        await (await bodies()).runNotify(flags, args, world, terminal),
    }),
  ];
}
