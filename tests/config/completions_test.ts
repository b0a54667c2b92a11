import { assertEquals, assertMatch } from "@std/assert";
import { command, type Flags, type Program, RPC_FLAGS } from "../../config/command.ts";
import { completionsCommand, completionScript, type Shell } from "../../config/completions.ts";
import { captureTerminal } from "../support/captured_terminal.ts";

const run = () => Promise.resolve();
const GATEWAY_FLAGS = {
  bind: { kind: "text", choices: ["loopback", "lan"], summary: "Where it listens: an address" },
  port: { kind: "integer", summary: "It's a port" },
  secret: { kind: "text", hidden: true, summary: "Hidden" },
} as const satisfies Flags;
const PROGRAM: Program = {
  name: "zero",
  summary: "A program",
  version: "1.2.3",
  commands: [
    command({ path: ["gateway"], summary: "Run it; it's quick", flags: GATEWAY_FLAGS, run }),
    command({
      path: ["gateway", "call"],
      aliases: [["call"]],
      summary: "Call a method",
      usage: "METHOD",
      flags: RPC_FLAGS,
      run,
    }),
    command({ path: ["gateway", "status"], summary: "Show it", flags: RPC_FLAGS, run }),
    command({ path: ["config", "get"], summary: "Show: the value", usage: "KEY", flags: {}, run }),
    command({ path: ["config", "set"], summary: "Change it", usage: "KEY", flags: {}, run }),
  ],
};

/** What is typed up to where Tab is pressed, and what is offered. */
const CASES: [line: string, offered: string[]][] = [
  ["zero ", ["call", "config", "gateway"]],
  ["zero ga", ["gateway"]],
  ["zero gateway ", ["call", "status"]],
  ["zero gateway st", ["status"]],
  ["zero config ", ["get", "set"]],
  ["zero --profile gateway con", ["config"]],
  ["zero --dev con", ["config"]],
  ["zero gateway --b", ["--bind"]],
  ["zero gateway --bind l", ["lan", "loopback"]],
  ["zero gateway --bind lan st", ["status"]],
  ["zero call --to", ["--token", "--token-file"]],
  ["zero gateway call --tim", ["--timeout"]],
  ["zero gateway --sec", []],
  ["zero config get --tok", []],
];

Deno.test("bash completes commands, options and the values of options", async (t) => {
  if (!await isInstalled("bash")) return console.log("skipped: bash is not installed");
  const script = completionScript(PROGRAM, "bash");
  const cases: typeof CASES = [
    ...CASES,
    // bash hands these over in pieces.
    ["zero gateway --bind = lo", ["loopback"]],
    ["zero gateway --bind =", ["lan", "loopback"]],
    ["zero call --url ws : //host : 1 --to", ["--token", "--token-file"]],
  ];
  for (const [line, offered] of cases) {
    await t.step(line, async () => {
      const words = line.split(" ");
      const output = await shell("bash", [
        "--norc",
        "-c",
        `source /dev/stdin
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _zero
        printf '%s\\n' "\${COMPREPLY[@]}"`,
        "bash",
        ...words,
      ], script);
      assertEquals(output, offered);
    });
  }
});

Deno.test("the bash script registers itself for the program", async () => {
  if (!await isInstalled("bash")) return console.log("skipped: bash is not installed");
  const script = completionScript(PROGRAM, "bash");

  const output = await shell("bash", ["--norc", "-c", "source /dev/stdin; complete -p"], script);

  assertEquals(output, ["complete -o default -F _zero zero"]);
});

Deno.test("zsh completes commands, options and the values of options", async (t) => {
  if (!await isInstalled("zsh")) return console.log("skipped: zsh is not installed");
  const script = completionScript(PROGRAM, "zsh");
  // What the completion system of zsh would do with the answer, without its terminal.
  const system = `
    compdef() { :; }
    _files() { :; }
    _describe() {
      local entry
      for entry in "\${(@P)2}"; do
        entry="\${entry//\\\\:/;}"
        compadd -- "\${entry%%:*}"
      done
    }
    compadd() {
      shift
      print -rl -- \${(M)@:#\${words[CURRENT]}*}
    }
    `;
  for (const [line, offered] of CASES) {
    await t.step(line, async () => {
      const call = `words=("$@"); CURRENT=$#; _zero`;
      const output = await shell(
        "zsh",
        ["-f", "-c", `${system}; source /dev/stdin; ${call}`, "zsh", ...line.split(" ")],
        script,
      );
      assertEquals(output, offered);
    });
  }
});

Deno.test("fish completes commands, options and the values of options", async (t) => {
  if (!await isInstalled("fish")) return console.log("skipped: fish is not installed");
  const script = completionScript(PROGRAM, "fish");
  for (const [line, offered] of CASES) {
    await t.step(line, async () => {
      const args = ["--no-config", "-c", `source; complete -C ${JSON.stringify(line)}`];
      const output = await shell("fish", args, script);
      assertEquals(output.map((entry) => entry.split("\t")[0]).sort(), offered);
    });
  }
  await t.step("with the summaries beside them", async () => {
    const args = ["--no-config", "-c", 'source; complete -C "zero gate"'];
    assertEquals(await shell("fish", args, script), ["gateway\tRun it; it's quick"]);
  });
});

Deno.test("zero completions prints the script of the shell that is named", async () => {
  const { terminal, stdout } = captureTerminal();
  const { run } = completionsCommand(() => PROGRAM);
  const invocation = { path: ["completions"], args: ["bash"], given: new Set<string>() };

  await run({ ...invocation, flags: {} as never }, terminal);

  assertEquals(stdout(), completionScript(PROGRAM, "bash"));
});

Deno.test("zero completions for a shell nobody knows is wrong usage", async () => {
  const { terminal } = captureTerminal();
  const { run } = completionsCommand(() => PROGRAM);
  const invocation = { path: ["completions"], args: ["zhs"], given: new Set<string>() };

  const error = await Promise.resolve()
    .then(() => run({ ...invocation, flags: {} as never }, terminal))
    .catch((error) => error);

  assertEquals([error.name, error.hint], ["UsageError", "Did you mean zsh?"]);
  assertMatch(error.message, /^Cannot complete for "zhs": /);
});

async function isInstalled(shell: Shell): Promise<boolean> {
  try {
    return (await new Deno.Command(shell, { args: ["-c", "exit"] }).output()).success;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Lines of output of a shell that is given a script on standard input; it must say nothing else. */
async function shell(program: Shell, args: string[], script: string): Promise<string[]> {
  const home = await Deno.makeTempDir({ prefix: "zero-shell-" });
  try {
    const child = new Deno.Command(program, {
      args,
      cwd: home,
      env: { HOME: home, XDG_CONFIG_HOME: home, XDG_DATA_HOME: home, XDG_CACHE_HOME: home },
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(script));
    await writer.close();
    const { stdout, stderr } = await child.output();
    assertEquals(new TextDecoder().decode(stderr), "");
    return new TextDecoder().decode(stdout).split("\n").filter((line) => line !== "").sort();
  } finally {
    await Deno.remove(home, { recursive: true });
  }
}
