import { assert, assertEquals, assertMatch, assertNotMatch } from "@std/assert";
import { createProgram, main, versionOf } from "../../main.ts";
import { pathsOf, runProgram } from "../../config/command.ts";
import { captureTerminal } from "../support/captured_terminal.ts";

const CANARY = "canary-7f3a9c";
const FILE = `{
  // Where it listens
  gateway: {
    port: 18790, // not the usual one
    auth: { token: "${CANARY}" },
  },
}
`;

Deno.test("config get shows what the file says, without its secrets", async () => {
  await using home = await temporary(FILE);

  const plain = await home.zero("config get");
  const full = await home.zero("config get --show-secrets");

  const said = (token: string) => ({ gateway: { port: 18790, auth: { token } } });
  assertEquals(JSON.parse(plain.stdout), said("__REDACTED__"));
  assertEquals(JSON.parse(full.stdout), said(CANARY));
});

Deno.test("config get KEY shows the value that counts, and can say which won", async (t) => {
  await using home = await temporary(FILE);
  const get = async (key: string, env: Record<string, string> = {}) => {
    const { stdout, code } = await home.zero(`config get ${key} --json`, { env });
    const { value, source } = JSON.parse(stdout);
    return [value, source, code];
  };

  await t.step("the file", async () => {
    assertEquals(await get("gateway.port"), [18790, "file", 0]);
  });
  await t.step("the environment over the file", async () => {
    const env = { ZERO_GATEWAY_PORT: "1234" };
    assertEquals(await get("gateway.port", env), [1234, "env ZERO_GATEWAY_PORT", 0]);
  });
  await t.step("the default", async () => {
    assertEquals(await get("gateway.bind"), ["loopback", "default", 0]);
  });
  await t.step("nothing", async () => {
    assertEquals(await get("gateway.remote.url"), [null, "unset", 1]);
  });
  await t.step("a secret", async () => {
    assertEquals(await get("gateway.auth.token"), ["__REDACTED__", "file", 0]);
    const { stdout } = await home.zero("config get gateway.auth.token --show-secrets");
    assertEquals(stdout, `${CANARY}\n`);
  });
  await t.step("the port of the profile dev", async () => {
    const { stdout } = await home.zero("--dev config get gateway.port --json");
    assertEquals(JSON.parse(stdout).value, 19001);
  });
});

Deno.test("config get KEY prints the bare value for scripts, and its source for people", async () => {
  await using home = await temporary(FILE);

  const piped = await home.zero("config get gateway.port");
  const verbose = await home.zero("config get gateway.port --verbose");
  const seen = await home.zero("config get gateway.port", { isTerminal: true });
  const unset = await home.zero("config get gateway.remote.url");
  const group = await home.zero("config get gateway.tls");

  assertEquals([piped.stdout, piped.stderr, piped.code], ["18790\n", "", 0]);
  assertEquals([verbose.stdout, verbose.stderr], ["18790\n", "gateway.port comes from: file\n"]);
  assertEquals(seen.stdout, "18790  \x1b[2mfrom: file\x1b[22m\n");
  assertEquals([unset.stdout, unset.stderr, unset.code], [
    "",
    "gateway.remote.url is not set\n",
    1,
  ]);
  assertEquals(JSON.parse(group.stdout).enabled, false);
});

Deno.test("config get of a key that cannot be suggests the near one", async () => {
  await using home = await temporary(FILE);

  const unknown = await home.zero("config get gateway.prot");
  const broken = await home.zero("config get gateway..port");

  assertEquals(unknown.code, 2);
  assertEquals(
    unknown.stderr,
    "error: Cannot find gateway.prot: there is no such setting\nDid you mean gateway.port?\n",
  );
  assertEquals(broken.code, 2);
  assertMatch(broken.stderr, /^error: Cannot read the key "gateway\.\.port": /);
});

Deno.test("config set keeps comments and layout, and says what changed", async () => {
  await using home = await temporary(FILE);

  const changed = await home.zero("config set gateway.port 19000");
  const same = await home.zero("config set gateway.port 19000");
  const added = await home.zero("config set gateway.bind lan --verbose");

  assertEquals(changed.stdout, "gateway.port: 18790 → 19000\n");
  assertEquals(same.stdout, "gateway.port was 19000 already\n");
  assertEquals(added.stdout, 'gateway.bind: set to "lan"\n');
  const text = await Deno.readTextFile(home.config);
  assertMatch(text, /\/\/ Where it listens\n/);
  assertMatch(text, /port: 19000, \/\/ not the usual one\n/);
  assertEquals((await Deno.stat(home.config)).mode! & 0o777, 0o600);
});

Deno.test("config set makes the file and its directory where there are none", async () => {
  await using home = await temporary();

  const { code } = await home.zero("--profile work config set gateway.port 19000");

  assertEquals(code, 0);
  const directory = `${home.directory}/.zero-work`;
  assertEquals((await Deno.stat(directory)).mode! & 0o777, 0o700);
  assertMatch(await Deno.readTextFile(`${directory}/zero.json`), /19000/);
});

Deno.test("config set reads its value as JSON5, as text, as JSON, or from standard input", async () => {
  await using home = await temporary();
  const cases: [argv: string[], key: string, value: unknown, stdin?: string][] = [
    [["gateway.port", "19000"], "gateway.port", 19000],
    [["gateway.remote", '{ url: "ws://127.0.0.1:1" }'], "gateway.remote.url", "ws://127.0.0.1:1"],
    [["gateway.bind", "lan"], "gateway.bind", "lan"],
    [["gateway.bind", '"auto"', "--json"], "gateway.bind", "auto"],
    [["gateway.tls.enabled", "--json", "true"], "gateway.tls.enabled", true],
    [["gateway.auth.token", "0123456789"], "gateway.auth.token", "0123456789"],
    [["gateway.auth.token", "--", "-abc-"], "gateway.auth.token", "-abc-"],
    [["gateway.auth.token", "-"], "gateway.auth.token", "from-stdin", "from-stdin\n"],
  ];
  for (const [argv, key, value, stdin] of cases) {
    const { code, stderr } = await home.zero(["config", "set", ...argv], { stdin });
    assertEquals([code, stderr], [0, ""], argv.join(" "));
    const { stdout } = await home.zero(["config", "get", key, "--json", "--show-secrets"]);
    assertEquals(JSON.parse(stdout).value, value, argv.join(" "));
  }
});

Deno.test("config set --json answers with one document", async () => {
  await using home = await temporary(FILE);

  const port = await home.zero("config set gateway.port 19000 --json");
  const token = await home.zero(["config", "set", "gateway.auth.token", '"new-one"', "--json"]);
  const wrong = await home.zero(["config", "set", "gateway.auth.token", "new-one", "--json"]);

  assertEquals(JSON.parse(port.stdout), {
    ok: true,
    key: "gateway.port",
    changed: true,
    before: 18790,
    value: 19000,
    path: home.config,
  });
  assertEquals(JSON.parse(token.stdout).value, "__REDACTED__");
  assertEquals(wrong.code, 2);
  assertEquals(JSON.parse(wrong.stdout).error.code, "USAGE");
  assertNotMatch(wrong.stdout + wrong.stderr, /new-one/);
});

Deno.test("config set writes nothing that makes the configuration wrong", async () => {
  await using home = await temporary(FILE);

  const wrong = await home.zero("config set gateway.port soon");
  const json = await home.zero(["config", "set", "gateway.port", "99999", "--json"]);

  assertEquals(wrong.code, 1);
  assertMatch(wrong.stderr, /^error: .*zero\.json:4: gateway\.port: must be integer; use /);
  assertEquals(json.code, 1);
  const { ok, error } = JSON.parse(json.stdout);
  assertEquals([ok, error.code, error.details.issues[0].path], [
    false,
    "CONFIG_INVALID",
    "gateway.port",
  ]);
  assertEquals(await Deno.readTextFile(home.config), FILE);
});

Deno.test("config set says when the environment wins over what was set", async () => {
  await using home = await temporary(FILE);

  const env = { ZERO_GATEWAY_PORT: "1234" };
  const { stderr } = await home.zero("config set gateway.port 19000", { env });

  assertEquals(stderr, "note: ZERO_GATEWAY_PORT in the environment wins over the file\n");
});

Deno.test("a secret without a value is wrong usage where nobody can be asked", async () => {
  await using home = await temporary(FILE);

  const { code, stderr } = await home.zero("config set gateway.auth.token");

  assertEquals(code, 2);
  assertMatch(stderr, /^error: Cannot set gateway\.auth\.token: VALUE is missing\nUsage: /);
});

Deno.test("config unset removes a value, and may be repeated", async () => {
  await using home = await temporary(FILE);

  const first = await home.zero("config unset gateway.auth.token");
  const second = await home.zero("config unset gateway.auth.token");

  assertEquals([first.stdout, first.code], ["gateway.auth.token: removed (was (secret))\n", 0]);
  assertEquals([second.stdout, second.code], ["gateway.auth.token was not set\n", 0]);
  assertNotMatch(await Deno.readTextFile(home.config), new RegExp(CANARY));
});

Deno.test("config validate tells a right configuration from a wrong one", async (t) => {
  await t.step("right", async () => {
    await using home = await temporary(FILE);
    const { stdout, code } = await home.zero("config validate");
    assertEquals([stdout, code], [`${home.config} is valid\n`, 0]);
  });
  await t.step("not there", async () => {
    await using home = await temporary();
    const { stdout, code } = await home.zero("config validate --json");
    const { ok, exists } = JSON.parse(stdout);
    assertEquals([ok, exists, code], [true, false, 0]);
  });
  await t.step("wrong", async () => {
    await using home = await temporary(`{\n  gatway: { port: 1 },\n  ui: 7,\n}`);
    const human = await home.zero("config validate");
    assertEquals([human.stdout, human.code], ["", 1]);
    assertMatch(human.stderr, /zero\.json:2: gatway: unknown key; did you mean gateway\?\n/);
    assertMatch(human.stderr, /zero\.json:3: ui: /);
    const machine = await home.zero("config validate --json");
    const { ok, valid, issues } = JSON.parse(machine.stdout);
    assertEquals([ok, valid, issues.length, machine.code], [false, false, 2, 1]);
  });
  await t.step("wrong in the environment", async () => {
    await using home = await temporary(FILE);
    const env = { ZERO_GATEWAY_PORT: "abc" };
    const { stderr, code } = await home.zero("config validate", { env });
    assertEquals(code, 1);
    assertMatch(stderr, /env ZERO_GATEWAY_PORT: gateway\.port: must be integer/);
  });
});

Deno.test("config path says where the file is, for each profile", async () => {
  await using home = await temporary();

  const paths = await Promise.all([
    home.zero("config path"),
    home.zero("--profile work config path"),
    home.zero("config path --dev"),
    home.zero("config path", { env: { ZERO_CONFIG_PATH: "/etc/zero.json" } }),
  ]);

  assertEquals(paths.map(({ stdout }) => stdout.trim()), [
    `${home.directory}/.zero/zero.json`,
    `${home.directory}/.zero-work/zero.json`,
    `${home.directory}/.zero-dev/zero.json`,
    "/etc/zero.json",
  ]);
  assertEquals(JSON.parse((await home.zero("config path --json")).stdout), {
    path: `${home.directory}/.zero/zero.json`,
    stateDir: `${home.directory}/.zero`,
  });
});

Deno.test("config edit puts what was edited in place of the file", async () => {
  await using home = await temporary(FILE);

  const { code, stdout } = await home.zero("config edit", {
    env: { EDITOR: "sed -i s/18790/19000/" },
  });

  assertEquals([code, stdout], [0, `${home.config} was written\n`]);
  assertEquals(await Deno.readTextFile(home.config), FILE.replace("18790", "19000"));
  assertEquals(await home.leftovers(), []);
});

Deno.test("config edit begins with an empty configuration where there is none", async () => {
  await using home = await temporary();

  const unchanged = await home.zero("config edit", { env: { VISUAL: "true", EDITOR: "false" } });
  const changed = await home.zero("config edit", {
    env: { VISUAL: "sed -i 's/{/{ gateway: { port: 5 },/'" },
  });

  assertEquals([unchanged.code, unchanged.stdout], [0, "Nothing was changed\n"]);
  assertEquals(changed.code, 0);
  assertEquals((await home.zero("config get gateway.port")).stdout, "5\n");
});

Deno.test("config edit offers to go on where the result is wrong", async () => {
  await using home = await temporary(FILE);
  // The first time it makes a mistake, the second time it mends it.
  const editor = `${home.directory}/editor`;
  await Deno.writeTextFile(
    editor,
    '#!/bin/sh\nif grep -q soon "$1"; then sed -i s/soon/19000/ "$1"; ' +
      'else sed -i s/18790/soon/ "$1"; fi\n',
    { mode: 0o700 },
  );

  const env = { EDITOR: editor };
  const { code, stderr } = await home.zero("config edit", { env, isTerminal: true, stdin: "y\n" });

  assertEquals(code, 0);
  assertMatch(stderr, /zero\.json:4: .*\nEdit again\? \[Y\/n\] $/);
  assertEquals(await Deno.readTextFile(home.config), FILE.replace("18790", "19000"));
  assertEquals(await home.leftovers(), []);
});

Deno.test("config edit keeps what was written when it is given up, and the file as it was", async () => {
  await using home = await temporary(FILE);

  const { code, stderr } = await home.zero("config edit", {
    env: { EDITOR: "sed -i s/18790/soon/" },
  });

  assertEquals(code, 1);
  const [kept] = await home.leftovers();
  assert(stderr.includes(`What you wrote is kept in ${kept}\n`), stderr);
  assertEquals((await Deno.stat(kept)).mode! & 0o777, 0o600);
  assertEquals(await Deno.readTextFile(kept), FILE.replace("18790", "soon"));
  assertEquals(await Deno.readTextFile(home.config), FILE);
});

Deno.test("config edit changes nothing when the editor fails or there is none", async () => {
  await using home = await temporary(FILE);

  const failed = await home.zero("config edit", { env: { EDITOR: "false" } });
  const none = await home.zero("config edit");

  assertEquals([failed.code, none.code], [1, 2]);
  assertMatch(failed.stderr, /^error: Cannot edit the configuration: the editor ended with /);
  assertMatch(none.stderr, /^error: .*: neither VISUAL nor EDITOR is set\n/);
  assertEquals(await home.leftovers(), []);
});

Deno.test("no config command shows a secret unless it is asked to", async () => {
  await using home = await temporary(FILE);
  const lines = [
    "config get",
    "config get gateway",
    "config get gateway.auth --json",
    "config get gateway.auth.token --verbose",
    "config set gateway.auth.token other-canary",
    `config set gateway.auth.token ${CANARY} --verbose`,
    `config set gateway.auth.token.deeper ${CANARY}`,
    `config set gateway.auth.mode ${CANARY}`,
    `config set gateway.auth {token:"${CANARY}"}`,
    `config set gateway.auth {token:"${CANARY}"}`,
    `config set gateway.auth {trustedProxy:{requiredHeaders:{"X-Proxy":"${CANARY}"}}}`,
    "config unset gateway.auth",
    `config set gateway.auth.token ${CANARY}`,
    `config set gateway.auth.token {${CANARY} --json`,
    "config validate --json",
    "config path --json --verbose",
    "config unset gateway.auth.token --json",
    `config set gateway.auth.token=${CANARY}`,
    `config get --token ${CANARY}`,
  ];
  for (const line of lines) {
    for (const isTerminal of [false, true]) {
      const { stdout, stderr } = await home.zero(line, { isTerminal });
      assertNotMatch(stdout + stderr, /canary/, line);
    }
  }
});

Deno.test("errors are a line on stderr, an exit code, and with --json one document", async () => {
  await using home = await temporary("{ gateway: ");

  const usage = await home.zero("confg --json");
  const flagFirst = await home.zero("--json confg");
  const config = await home.zero("config get --json");

  assertEquals([usage.code, usage.stderr], [
    2,
    'error: Unknown command: zero confg\nDid you mean "zero config"?\n',
  ]);
  assertEquals(flagFirst, usage);
  assertEquals(JSON.parse(usage.stdout), {
    ok: false,
    error: {
      code: "USAGE",
      message: "Unknown command: zero confg",
      details: { hint: 'Did you mean "zero config"?' },
    },
  });
  assertEquals(config.code, 1);
  const { error } = JSON.parse(config.stdout);
  assertEquals([error.code, error.details.issues[0].line], ["CONFIG_INVALID", 1]);
});

Deno.test("a bad profile name and --dev beside --profile are wrong usage", async () => {
  await using home = await temporary();

  const name = await home.zero("--profile ../x config path");
  const both = await home.zero("--dev --profile x config path");

  assertEquals([name.code, both.code], [2, 2]);
  assertMatch(name.stderr, /^error: Cannot use --profile "\.\.\/x": /);
  assertMatch(both.stderr, /^error: Cannot take --profile and --dev together/);
});

Deno.test("each command is among those that its first word loads, behind a profile too", async () => {
  const create = (...argv: string[]) => createProgram({ argv, env: {}, cwd: "/" });
  const all = await create();
  const words = new Set(all.commands.flatMap(pathsOf).map(([word]) => word));
  for (const word of words) {
    const expected = all.commands.flatMap(pathsOf).filter(([first]) => first === word).sort();
    for (const argv of [[word, "x"], ["--profile", "node", word], ["--dev", word]]) {
      const found = (await create(...argv)).commands.flatMap(pathsOf);
      assertEquals(found.filter(([first]) => first === word).sort(), expected, argv.join(" "));
    }
  }
  assertEquals(words.size > 20, true);
  // Where the word could be the value of an option, nothing is left out.
  assertEquals((await create("--remote", "node", "health")).commands.length, all.commands.length);
});

Deno.test("help and version need neither a home nor a configuration", async () => {
  const { terminal, stdout } = captureTerminal();
  const program = await createProgram({ argv: [], env: {}, cwd: "/" });

  assertEquals(await runProgram(program, ["--help"], terminal), 0);
  assertEquals(await runProgram(program, ["--version"], terminal), 0);

  assertMatch(stdout(), /\nThe gateway\n {2}gateway /);
  assertMatch(stdout(), /\nzero \d+\.\d+\.\d+\n$/);
  assertEquals(versionOf({ ZERO_VERSION: " 9.9.9 " }), "9.9.9");
});

Deno.test("colours appear on a terminal, and not with NO_COLOR or --no-color", async () => {
  await using home = await temporary(FILE);
  const line = "config get gateway.port";

  const colored = await home.zero(line, { isTerminal: true });
  const byVariable = await home.zero(line, { isTerminal: true, env: { NO_COLOR: "1" } });
  const byFlag = await home.zero(`${line} --no-color`, { isTerminal: true });

  assertMatch(colored.stdout, /\x1b\[/);
  assertNotMatch(byVariable.stdout + byFlag.stdout, /\x1b\[/);
});

Deno.test("the program itself ends quietly when its reader goes away", async () => {
  await using home = await temporary(FILE);

  const { code, stdout, stderr } = await new Deno.Command("bash", {
    args: ["-c", 'set -o pipefail; "$@" | true', "bash", ...home.program("--help")],
    env: { ZERO_STATE_DIR: `${home.directory}/.zero` },
  }).output();

  assertEquals([code, stdout.length, new TextDecoder().decode(stderr)], [0, 0, ""]);
});

Deno.test("the program itself answers on the right streams with the right exit code", async () => {
  await using home = await temporary(FILE);
  const run = async (...argv: string[]) => {
    const [program, ...args] = home.program(...argv);
    const { code, stdout, stderr } = await new Deno.Command(program, {
      args,
      env: { ZERO_STATE_DIR: `${home.directory}/.zero` },
    }).output();
    const decoder = new TextDecoder();
    return [code, decoder.decode(stdout), decoder.decode(stderr)];
  };

  assertEquals(await run("config", "get", "gateway.port"), [0, "18790\n", ""]);
  assertEquals(await run("--bad"), [
    2,
    "",
    'error: Unknown option: --bad\n"zero --help" lists the options there are\n',
  ]);
});

/** A home directory, with a configuration if one is given, and the program run in it. */
async function temporary(config?: string) {
  const directory = await Deno.makeTempDir({ prefix: "zero-cli-" });
  const stateDir = `${directory}/.zero`;
  const path = `${stateDir}/zero.json`;
  if (config !== undefined) {
    await Deno.mkdir(stateDir, { mode: 0o700 });
    await Deno.writeTextFile(path, config, { mode: 0o600 });
  }
  return {
    directory,
    config: path,
    async zero(
      line: string | string[],
      { env = {}, isTerminal = false, stdin }: {
        env?: Record<string, string>;
        isTerminal?: boolean;
        stdin?: string;
      } = {},
    ) {
      const captured = captureTerminal({ isTerminal, stdin });
      const code = await main({
        argv: typeof line === "string" ? line.split(" ") : line,
        env: { HOME: directory, ...env },
        cwd: directory,
        streams: captured.streams,
      });
      return { code, stdout: captured.stdout(), stderr: captured.stderr() };
    },
    program(...argv: string[]): string[] {
      const entry = new URL("../../main.ts", import.meta.url).pathname;
      return [Deno.execPath(), "run", "-A", "--no-check", entry, ...argv];
    },
    /** Copies of the configuration that an edit left behind. */
    async leftovers(): Promise<string[]> {
      const names: string[] = [];
      for await (const { name } of Deno.readDir(stateDir)) {
        if (name.startsWith(".edit-")) names.push(`${stateDir}/${name}`);
      }
      return names;
    },
    [Symbol.asyncDispose]: () => Deno.remove(directory, { recursive: true }),
  };
}
