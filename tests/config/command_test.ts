import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { createProgram } from "../../main.ts";
import {
  command,
  findCommand,
  type Flags,
  helpText,
  type Invocation,
  nearest,
  nextWords,
  pathsOf,
  type Program,
  readCommandLine,
  readGlobals,
  RPC_FLAGS,
  runProgram,
  UsageError,
} from "../../config/command.ts";
import { alignColumns, OutputClosed, printable, Terminal } from "../../config/terminal.ts";
import { captureTerminal } from "../support/captured_terminal.ts";

Deno.test("the longest path that the words name is the command", () => {
  const cases: [line: string, path: string | undefined, rest: string][] = [
    ["gateway", "gateway", ""],
    ["gateway call health", "gateway call", "health"],
    ["call health", "gateway call", "health"],
    ["gateway --port 1234 call health", "gateway call", "--port 1234 health"],
    ["--profile gateway config get", "config get", "--profile gateway"],
    ["--profile=x config get gateway", "config get", "--profile=x gateway"],
    ["--json config get", "config get", "--json"],
    ["config", undefined, ""],
    ["nonsense", undefined, "nonsense"],
    ["config get -- set", "config get", "-- set"],
  ];
  for (const [line, path, rest] of cases) {
    const found = findCommand(program(), line.split(" "));
    assertEquals([found.command?.path.join(" "), found.rest.join(" ")], [path, rest], line);
  }
});

Deno.test("flags are read by their table", () => {
  const cases: [argv: string[], name: string, value: unknown][] = [
    [["--port", "1234"], "port", 1234],
    [["--port=1234"], "port", 1234],
    [["--port", "1", "--port", "2"], "port", 2],
    [[], "port", undefined],
    [[], "timeout", 10_000],
    [["--json"], "json", true],
    [[], "json", false],
    [["--no-color"], "no-color", true],
    [["--token", "-begins-with-a-dash"], "token", "-begins-with-a-dash"],
    [["--token", "--begins-with-two"], "token", "--begins-with-two"],
    [["--token=--json"], "token", "--json"],
    [["--token=a=b"], "token", "a=b"],
    [["--token="], "token", ""],
    [["--token", "0123"], "token", "0123"],
    [["--token", "line\nline"], "token", "line\nline"],
    [["--scope", "a", "--scope=b"], "scope", ["a", "b"]],
    [[], "scope", []],
    [["--mode", "fast"], "mode", "fast"],
  ];
  for (const [argv, name, value] of cases) {
    const { flags } = read(["gateway", "call", "health", ...argv]);
    assertEquals((flags as Record<string, unknown>)[name], value, argv.join(" "));
  }
});

Deno.test("a switch does not take the next word, and what follows -- is passed as it is", () => {
  const cases: [argv: string[], args: string[]][] = [
    [["--json", "true"], ["true"]],
    [["true", "--no-color"], ["true"]],
    [["0123", "{}"], ["0123", "{}"]],
    [["-"], ["-"]],
    [["a", "--", "--json"], ["a", "--json"]],
    [["--", "--json", "--"], ["--json", "--"]],
  ];
  for (const [argv, args] of cases) {
    assertEquals(read(["gateway", "call", ...argv]).args, args, argv.join(" "));
  }
  assertEquals(read(["gateway", "call", "a", "--", "--json"]).flags.json, false);
});

Deno.test("what was given is told from what is merely the default", () => {
  const { given } = read(["call", "health", "--timeout", "10000", "--no-color"]);

  assertEquals([...given].sort(), ["no-color", "timeout"]);
});

Deno.test("a command line that is wrong is refused with what would be right", () => {
  const cases: [line: string, message: string, hint: string | undefined][] = [
    ["helth", "Unknown command: zero helth", 'Did you mean "zero health"?'],
    ["confg get", "Unknown command: zero confg", 'Did you mean "zero config"?'],
    ["config gte", "Unknown command: zero config gte", 'Did you mean "zero config get"?'],
    ["gateway cal", "Unknown command: zero gateway cal", 'Did you mean "zero gateway call"?'],
    ["xyzzy", "Unknown command: zero xyzzy", '"zero --help" lists the commands there are'],
    [
      "config",
      'Cannot run "zero config": which of its commands?',
      "One of: get",
    ],
    ["health --jsn", "Unknown option: --jsn", "Did you mean --json?"],
    [
      "health --frobnicate=SECRET",
      "Unknown option: --frobnicate",
      '"zero health --help" lists the options there are',
    ],
    ["health -x", "Unknown option: -x", '"zero health --help" lists the options there are'],
    ["call x -1", "Unknown option: -1", "To pass -1 as it is, write -- before it"],
    ["health --__proto__=1", "Unknown option: --__proto__", undefined],
    ["health --constructor", "Unknown option: --constructor", undefined],
    [
      "health --port abc",
      'Cannot read --port "abc": it must be a whole number from 1 to 65535',
      undefined,
    ],
    [
      "health --port 0",
      'Cannot read --port "0": it must be a whole number from 1 to 65535',
      undefined,
    ],
    [
      "health --port 1e3",
      'Cannot read --port "1e3": it must be a whole number from 1 to 65535',
      undefined,
    ],
    ["health --port", "Cannot read --port: its value is missing", "Write --port N"],
    [
      "health --token --json",
      "Cannot read --token: its value is missing",
      "If --json is the value, write --token=--json",
    ],
    ["health --json=yes", "Cannot read --json=yes: --json takes no value", undefined],
    [
      "call x --mode fsat",
      'Cannot read --mode "fsat": it must be one of slow, fast',
      "Did you mean --mode fast?",
    ],
    [
      "health --url ws://h --port 1",
      "Cannot take --url and --port together: give one of them",
      undefined,
    ],
    [
      "health --token a --token-file b",
      "Cannot take --token and --token-file together: give one of them",
      undefined,
    ],
    [
      "health now",
      'Cannot run "zero health": it takes no arguments, 1 given',
      "Usage: zero health",
    ],
    ["call", 'Cannot run "zero call": METHOD is missing', "Usage: zero call METHOD [PARAMS]"],
    [
      "gateway call a b c",
      'Cannot run "zero gateway call": it takes at most 2 arguments, 3 given',
      "Usage: zero gateway call METHOD [PARAMS]",
    ],
  ];
  for (const [line, message, hint] of cases) {
    const error = assertThrows(() => readCommandLine(program(), line.split(" ")), UsageError);
    assertEquals(error.message, message, line);
    if (hint !== undefined) assertEquals(error.hint, hint, line);
  }
});

Deno.test("no command line makes the parser fail in any way but a usage error", () => {
  const random = seeded(7);
  const words = ["gateway", "call", "config", "get", "--", "-", "--port", "--url=", "--no-", "-h"]
    .concat([
      "--json",
      "--token",
      "-hV",
      "--no-color",
      "=",
      "--=",
      "---",
      "\0",
      "é",
      "",
      "1",
      "--x.y",
    ]);
  for (let round = 0; round < 3_000; round++) {
    const argv = Array.from({ length: random(7) }, () => words[random(words.length)]);
    try {
      readCommandLine(program(), argv);
    } catch (error) {
      assert(error instanceof UsageError, JSON.stringify(argv));
    }
  }
});

Deno.test("--help, -h and help ask for help wherever they stand, --version for the version", () => {
  const kindOf = (line: string) => {
    const request = readCommandLine(program(), line === "" ? [] : line.split(" "));
    return request.kind === "help" ? request.path : request.kind;
  };

  assertEquals(kindOf(""), []);
  assertEquals(kindOf("--help"), []);
  assertEquals(kindOf("help config get"), ["config", "get"]);
  assertEquals(kindOf("config --help"), ["config"]);
  assertEquals(kindOf("-h gateway call"), ["gateway", "call"]);
  assertEquals(kindOf("gateway call --help"), ["gateway", "call"]);
  assertEquals(kindOf("-V"), "version");
  assertEquals(kindOf("--version health"), "version");
});

Deno.test("help of something that does not exist is a usage error", async () => {
  const { terminal } = captureTerminal();

  const error = await runProgram(program(), ["help", "confgi"], terminal).catch((error) => error);

  assert(error instanceof UsageError);
  assertEquals(error.hint, 'Did you mean "zero config"?');
});

Deno.test("a command gets what was given, and its exit code is the program's", async () => {
  const seen: Invocation[] = [];
  const { terminal, stdout } = captureTerminal();

  const code = await runProgram(
    program((invocation) => seen.push(invocation)),
    ["call", "health", "--port", "5"],
    terminal,
  );

  assertEquals([code, stdout()], [7, "health\n"]);
  assertEquals(seen[0].path, ["call"]);
});

Deno.test("--profile and --dev are read before there are commands", () => {
  assertEquals(readGlobals(["config", "--profile", "a", "get"]), { profile: "a", dev: false });
  assertEquals(readGlobals(["--profile=a", "--profile=b"]), { profile: "b", dev: false });
  assertEquals(readGlobals(["--dev"]), { dev: true });
  assertEquals(readGlobals(["run", "--", "--dev", "--profile", "x"]), { dev: false });
  assertThrows(() => readGlobals(["--profile"]), UsageError);
});

Deno.test("the near word is suggested, a far one is not", () => {
  const words = ["health", "gateway", "config", "completions", "set"];

  assertEquals(nearest("helth", words), "health");
  assertEquals(nearest("HEALTH", words), "health");
  assertEquals(nearest("gatewya", words), "gateway");
  assertEquals(nearest("comp", words), "completions");
  assertEquals(nearest("ste", words), "set");
  assertEquals(nearest("zzz", words), undefined);
  assertEquals(nearest("x", words), undefined);
});

Deno.test("help texts are the golden ones; rewrite them with deno task test -- --update", async (t) => {
  const folder = new URL("../golden/help/", import.meta.url);
  const zero = await createProgram({ argv: [], env: {}, cwd: "/" });
  const expected = new Set<string>();
  for (const path of allPaths(zero)) {
    const name = `${["zero", ...path].join("_")}.txt`;
    expected.add(name);
    await t.step(name, async () => {
      const text = `${helpText(zero, path, { width: 80 })}\n`;
      const file = new URL(name, folder);
      if (Deno.args.includes("--update")) await Deno.writeTextFile(file, text);
      assertEquals(text, await Deno.readTextFile(file));
      for (const line of text.split("\n")) assert(line.length <= 80, line);
      assertEquals(text, text.split("\n").map((line) => line.trimEnd()).join("\n"));
    });
  }
  await t.step("and there are no others", async () => {
    for await (const { name } of Deno.readDir(folder)) {
      if (expected.has(name)) continue;
      if (Deno.args.includes("--update")) await Deno.remove(new URL(name, folder));
      else throw new Error(`${name} is the help of no command`);
    }
  });
});

Deno.test("the help of the program shows every command once, under a heading of its own", async () => {
  const zero = await createProgram({ argv: [], env: {}, cwd: "/" });
  const titled = zero.sections!.flatMap(({ words }) => words);

  const text = helpText(zero, []);
  const other = helpText({ ...zero, sections: zero.sections!.slice(1) }, []);

  assertEquals(titled.toSorted(), nextWords(zero, []).toSorted());
  for (const word of titled) {
    assertEquals(text.split("\n").filter((line) => line.startsWith(`  ${word} `)).length, 1, word);
  }
  assert(!text.includes("Other commands"));
  assertMatch(other, /\nOther commands\n {2}gateway /);
});

Deno.test("columns are aligned by what the eye sees", () => {
  const rows = [["NAME", "STATE"], ["\x1b[1mlaptop\x1b[0m", "on"], ["机器", "off"], ["é", ""]];

  assertEquals(alignColumns(rows), [
    "NAME    STATE",
    "\x1b[1mlaptop\x1b[0m  on",
    "机器    off",
    "é",
  ]);
});

Deno.test("a name from elsewhere cannot forge a line or move the cursor", () => {
  assertEquals(printable("a\nb\x1b[2Jc\u202ed"), "a\ufffdb\ufffd[2Jc\ufffdd");
  assertEquals(alignColumns([["a\r\n", "b\x1b[31m"]]), ["a\ufffd\ufffd  b\x1b[31m"]);
});

Deno.test("colours are for a terminal that wants them", () => {
  const colored = captureTerminal({ isTerminal: true, isColorless: false });
  const colorless = captureTerminal({ isTerminal: true, isColorless: true });
  const piped = captureTerminal({ isTerminal: false, isColorless: false });

  for (const { terminal } of [colored, colorless, piped]) {
    terminal.fields([["name", "value"], ["absent", undefined]]);
  }

  assertMatch(colored.stdout(), /^\x1b\[2mname\x1b\[22m {2}value\n$/);
  assertEquals([colorless.stdout(), piped.stdout()], ["name  value\n", "name  value\n"]);
});

Deno.test("output nobody reads ends the program quietly, errors nobody reads do not", () => {
  const gone = {
    isTerminal: () => false,
    writeSync(): number {
      throw new Deno.errors.BrokenPipe();
    },
  };
  const { streams } = captureTerminal();
  const terminal = new Terminal({ ...streams, stdout: gone, stderr: gone });

  assertThrows(() => terminal.out("hello"), OutputClosed);
  terminal.err("hello");
});

Deno.test("lines are asked for on a terminal only", async () => {
  const asked = captureTerminal({ isTerminal: true, stdin: "yes\r\nthe rest\n" });
  const piped = captureTerminal({ stdin: "yes\n" });

  assertEquals(await asked.terminal.ask("Sure?"), "yes");
  assertEquals(asked.stderr(), "Sure? ");
  assertEquals(await asked.terminal.readStdin(), "the rest");
  assertEquals(await piped.terminal.ask("Sure?"), null);
  assertEquals(await piped.terminal.askSecret("Token:"), null);
});

Deno.test("standard input is read whole, and refused when it is too long", async () => {
  const text = "é".repeat(100_000);

  assertEquals(await captureTerminal({ stdin: `${text}\n` }).terminal.readStdin(), text);
  const { terminal } = captureTerminal({ stdin: text });
  const error = await terminal.readStdin({ maxBytes: 1_000 }).catch((error) => error);
  assertEquals(error.message, "Cannot read standard input: it is longer than 1000 bytes");
});

Deno.test("progress leaves no trace where it was over within a second, or nobody sees it", () => {
  const seen = captureTerminal({ isTerminal: true });
  const piped = captureTerminal();

  for (const { terminal } of [seen, piped]) {
    using progress = terminal.progress("Asking");
    progress.update("Still asking");
    terminal.out("done");
  }

  assertEquals([seen.stderr(), piped.stderr()], ["", ""]);
});

/** A program with commands like ours. */
function program(ran: (invocation: Invocation) => void = () => {}): Program {
  const run = () => Promise.resolve();
  const callFlags = {
    ...RPC_FLAGS,
    mode: { kind: "text", choices: ["slow", "fast"], summary: "Pace" },
    scope: { kind: "list", summary: "Scopes" },
  } as const satisfies Flags;
  return {
    name: "zero",
    summary: "A program",
    version: "1.2.3",
    commands: [
      command({ path: ["gateway"], summary: "Run", flags: { port: RPC_FLAGS.port }, run }),
      command({
        path: ["gateway", "call"],
        aliases: [["call"]],
        summary: "Call",
        usage: "METHOD [PARAMS]",
        flags: callFlags,
        run(invocation, terminal) {
          // The types follow from the table.
          const pace: "slow" | "fast" | undefined = invocation.flags.mode;
          const timeoutMs: number = invocation.flags.timeout;
          assertEquals([pace, timeoutMs], [undefined, 10_000]);
          ran(invocation);
          terminal.out(invocation.args[0]);
          return Promise.resolve(7);
        },
      }),
      command({ path: ["health"], summary: "Health", flags: RPC_FLAGS, run }),
      command({ path: ["config", "get"], summary: "Get", usage: "[KEY]", flags: {}, run }),
    ],
  };
}

function read(argv: string[]): Invocation<typeof RPC_FLAGS> {
  const request = readCommandLine(program(), argv);
  if (request.kind !== "run") throw new Error(`"${argv.join(" ")}" runs nothing`);
  return request.invocation as unknown as Invocation<typeof RPC_FLAGS>;
}

/** The program, its groups and its commands, under each of their names. */
function allPaths(zero: Program): string[][] {
  const paths: string[][] = [[]];
  for (const path of paths) {
    for (const word of nextWords(zero, path)) paths.push([...path, word]);
  }
  assert(zero.commands.flatMap(pathsOf).length < paths.length);
  return paths;
}

/** Whole numbers below a limit, the same ones each time. */
function seeded(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor(state / 2 ** 32 * limit);
  };
}
