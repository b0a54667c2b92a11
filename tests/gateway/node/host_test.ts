import { assert, assertEquals, assertMatch, fail } from "@std/assert";
import { DatabaseSync } from "node:sqlite";
import { ApprovalsStore } from "../../../gateway/node/approvals_file.ts";
import { NodeHost } from "../../../gateway/node/host.ts";
import type { HelloOk } from "../../../rpc/client.ts";
import { startTestGateway } from "../../support/gateway.ts";
import { eventually } from "../../support/process.ts";
import { approve, invoke, refusedBy, startTestNode, tempHome } from "./support.ts";

const OPEN = { version: 1, defaults: { security: "full", ask: "off" } };
const ALL = { scopes: ["operator.admin", "operator.approvals", "operator.write", "operator.read"] };

Deno.test("a node host pairs silently on loopback and shows what it offers", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway);
  const operator = await gateway.connect();

  const { nodes: [listed] } = await operator.call("node.list", {});

  assertEquals(listed.nodeId, node.nodeId);
  assertEquals(
    [listed.connected, listed.paired, listed.displayName, listed.platform],
    [true, true, "n1", Deno.build.os],
  );
  assertEquals(listed.caps, ["invoke.progress", "system"]);
  assertEquals(listed.commands, [
    "system.execApprovals.get",
    "system.execApprovals.set",
    "system.run",
    "system.which",
  ]);
  assertEquals(listed.pathEnv, Deno.env.get("PATH"));
  assertMatch(node.stdout(), /^node host PATH: \//);
});

Deno.test("system.which finds programs by name, and only by name", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway);
  const operator = await gateway.connect();

  const { bins } = await invoke(operator, node, "system.which", {
    bins: ["sh", "no-such-program", "/bin/sh", "../sh", "a\\b", "", 7, "__proto__"],
  });

  assertEquals(Object.keys(bins), ["sh"]);
  assertMatch(bins.sh, /^\/.*\/sh$/);
  assertEquals(
    await refusedBy(operator, node, "system.which", {}),
    "INVALID_REQUEST: bins required",
  );
});

Deno.test("a command is asked about first, and runs after allow-always with its exit code", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway);
  const operator = await gateway.connect(ALL);
  const argv = ["ls", "/no/such/directory"];
  const required = "SYSTEM_RUN_DENIED: approval required";

  assertEquals(await refusedBy(operator, node, "system.run", { command: argv }), required);
  await approve(operator, node, argv, "allow-once");
  const first = await invoke(operator, node, "system.run", { command: argv });
  assertEquals(await refusedBy(operator, node, "system.run", { command: argv }), required);
  await approve(operator, node, argv, "allow-always");
  const second = await invoke(operator, node, "system.run", { command: argv });
  const third = await invoke(operator, node, "system.run", { command: ["ls", node.home] });
  const other = await refusedBy(operator, node, "system.run", { command: ["cat", "/etc/passwd"] });

  assertEquals([first.success, second.exitCode, first.stdout], [false, first.exitCode, ""]);
  assert(first.exitCode > 0);
  assertEquals([third.exitCode, third.stdout], [0, "state\n"]);
  assertEquals(other, required);
  const { agents: { main } } = JSON.parse(await Deno.readTextFile(node.approvalsFile));
  const { bins } = await invoke(operator, node, "system.which", { bins: ["ls"] });
  assertEquals(main.allowlist.length, 1);
  assertEquals(main.allowlist[0].pattern, bins.ls);
  assertEquals(main.allowlist[0].lastUsedCommand, `ls ${node.home}`);
  assertEquals(main.allowlist[0].lastResolvedPath, bins.ls);
  assertEquals(typeof main.allowlist[0].lastUsedAt, "number");
});

Deno.test("approved and approvalDecision from a caller count for nothing", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway);
  const operator = await gateway.connect();

  const message = await refusedBy(operator, node, "system.run", {
    command: ["uname"],
    approved: true,
    approvalDecision: "allow-always",
  });

  assertEquals(message, "SYSTEM_RUN_DENIED: approval required");
});

Deno.test("always for a shell line means the programs in it, never the shell", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway);
  const operator = await gateway.connect(ALL);
  const line = "uname && pwd | cat";
  const argv = ["/bin/sh", "-lc", line];

  await approve(operator, node, argv, "allow-always", { command: line });
  await invoke(operator, node, "system.run", { command: argv, rawCommand: line });

  const { agents } = JSON.parse(await Deno.readTextFile(node.approvalsFile));
  const names = agents.main.allowlist.map(({ pattern }: { pattern: string }) =>
    pattern.replace(/.*\//, "")
  );
  assertEquals(names, ["uname", "pwd", "cat"]);
  const again = { command: ["/bin/sh", "-lc", "cat | uname"], rawCommand: "cat | uname" };
  assertEquals((await invoke(operator, node, "system.run", again)).exitCode, 0);
  const further = { command: ["/bin/sh", "-lc", "uname; id"], rawCommand: "uname; id" };
  assertEquals(
    await refusedBy(operator, node, "system.run", further),
    "SYSTEM_RUN_DENIED: approval required",
  );
});

Deno.test("a shell that was always allowed is still asked about", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway);
  const operator = await gateway.connect(ALL);
  // Another name of a shell is a shell.
  await Deno.symlink("/bin/sh", `${node.home}/tool`);
  const argvs = [["bash", "-c", "id"], ["/bin/sh", "script"], ["env", "id"], [
    "find",
    "-maxdepth",
    "0",
  ]];
  for (const argv of [...argvs, [`${node.home}/tool`, "-c", "id"]]) {
    await approve(operator, node, argv, "allow-always");
    await invoke(operator, node, "system.run", { command: argv });

    const { agents } = JSON.parse(await Deno.readTextFile(node.approvalsFile));
    assertEquals(agents.main?.allowlist ?? [], [], argv.join(" "));
  }
});

Deno.test("always adds nothing for what was allowed as it is", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway);
  const operator = await gateway.connect(ALL);
  const line = "uname | head -1";
  const argv = ["/bin/sh", "-lc", line];

  await approve(operator, node, argv, "allow-always", { command: line });
  await invoke(operator, node, "system.run", { command: argv, rawCommand: line });

  const { agents } = JSON.parse(await Deno.readTextFile(node.approvalsFile));
  const patterns = agents.main.allowlist.map(({ pattern }: { pattern: string }) => pattern);
  assertEquals(patterns.length, 1);
  assertMatch(patterns[0], /\/uname$/);
  assertEquals(
    await refusedBy(operator, node, "system.run", { command: ["head", "/etc/passwd"] }),
    "SYSTEM_RUN_DENIED: approval required",
  );
});

Deno.test("a text beside the argv that says something else is refused by the node itself", async () => {
  await using home = await tempHome();
  await Deno.writeTextFile(`${home.path}/approvals.json`, JSON.stringify(OPEN));
  const results = new Map<string, { ok: boolean; error?: { code: string; message: string } }>();
  await using host = new NodeHost({
    env: { PATH: "/usr/bin:/bin", HOME: home.path },
    cwd: home.path,
    approvals: new ApprovalsStore({ file: `${home.path}/approvals.json`, socket: "unused" }),
    config: () => Promise.resolve({}),
    warn: (message) => fail(message),
  });
  const link = {
    hello: { policy: {} } as HelloOk,
    call(method: string, params: unknown) {
      const { id, ...result } = params as { id: string; ok: boolean };
      if (method === "node.invoke.result") results.set(id, result);
      return Promise.resolve({});
    },
  };
  const cases: [string[], string, boolean][] = [
    [["/bin/sh", "-lc", "echo a"], "echo a", true],
    [["/bin/sh", "-lc", "echo a"], "echo b", false],
    [["/bin/sh", "-lc", "echo a"], "echo a ", false],
    [["/bin/sh", "-lc", "echo a", "x"], "echo a", false],
    [["/bin/bash", "-lc", "echo a"], "echo a", false],
    [["echo", "a", "b"], "echo a b", true],
    [["echo", "a b"], "echo a b", false],
    [["echo", "a b"], "echo 'a b'", true],
    [["echo", "a"], "echo  a", true],
    [["echo", "$HOME"], "echo '$HOME'", true],
    [["echo", "x"], "echo $HOME", false],
  ];

  cases.forEach(([command, rawCommand], index) => {
    const paramsJSON = JSON.stringify({ command, rawCommand });
    host.take({ id: `${index}`, nodeId: "n", command: "system.run", paramsJSON }, link);
  });
  await eventually("all were answered", () => results.size === cases.length);

  for (const [index, [command, rawCommand, fits]] of cases.entries()) {
    assertEquals(
      results.get(`${index}`)?.error,
      fits ? undefined : { code: "INVALID_REQUEST", message: "rawCommand does not match command" },
      JSON.stringify([command, rawCommand]),
    );
  }
});

Deno.test("what is no invocation is left alone, and params may come as they are", async () => {
  await using home = await tempHome();
  const results: unknown[] = [];
  await using host = new NodeHost({
    env: { PATH: "/usr/bin:/bin", HOME: home.path },
    cwd: home.path,
    approvals: new ApprovalsStore({ file: `${home.path}/approvals.json`, socket: "unused" }),
    config: () => Promise.resolve({}),
    warn: (message) => fail(message),
  });
  const link = {
    hello: { policy: {} } as HelloOk,
    call(_: string, params: unknown) {
      results.push(params);
      return Promise.reject(new Error("the connection is gone"));
    },
  };
  const which = { id: "1", nodeId: "other", command: "system.which" };

  host.take({ ...which, id: " " }, link);
  host.take({ ...which, nodeId: "" }, link);
  host.take({ ...which, command: undefined }, link);
  host.take(null, link);
  host.take({ ...which, params: { bins: ["no-such-program"] } }, link);
  host.take({ ...which, id: "2", paramsJSON: "{" }, link);
  host.take({ ...which, id: "3", command: "camera.snap" }, link);
  await eventually("three were answered", () => results.length === 3);

  assertEquals(
    new Set(results.map((one) => JSON.stringify(one))),
    new Set([
      '{"id":"1","nodeId":"other","ok":true,"payloadJSON":"{\\"bins\\":{}}"}',
      '{"id":"2","nodeId":"other","ok":false,"error":{"code":"INVALID_REQUEST",' +
      '"message":"INVALID_REQUEST: bins required"}}',
      '{"id":"3","nodeId":"other","ok":false,"error":{"code":"UNAVAILABLE",' +
      '"message":"command not supported"}}',
    ]),
  );
});

Deno.test("each refusal has its words", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const cases: [unknown, Record<string, unknown>, string][] = [
    [{ security: "deny" }, {}, "SYSTEM_RUN_DISABLED: security=deny"],
    [{ ask: "off" }, {}, "SYSTEM_RUN_DENIED: allowlist miss"],
    [{}, {}, "SYSTEM_RUN_DENIED: approval required"],
    [{ security: "full", ask: "always" }, {}, "SYSTEM_RUN_DENIED: approval required"],
    [
      { security: "full", ask: "off" },
      { needsScreenRecording: true },
      "PERMISSION_MISSING: screenRecording",
    ],
    [{ security: "full", ask: "off" }, { command: [] }, "command required"],
    [{ security: "full", ask: "off" }, { command: [" "] }, "command required"],
    [{ security: "full", ask: "off" }, { command: "uname" }, "command required"],
    [
      { security: "full", ask: "off" },
      { cwd: 7 },
      "invalid system.run params: at /cwd: must be string",
    ],
  ];
  for (const [defaults, params, wanted] of cases) {
    await using node = await startTestNode(gateway, { approvals: { version: 1, defaults } });

    const message = await refusedBy(operator, node, "system.run", {
      command: ["uname"],
      ...params,
    });

    assertEquals(message, wanted);
  }
});

Deno.test("a failing command is a result, a program that is not there too", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, { approvals: OPEN });
  const operator = await gateway.connect();
  const run = (params: object) => invoke(operator, node, "system.run", params);

  const failed = await run({ command: ["/bin/sh", "-c", "echo no >&2; exit 3"] });
  const missing = await run({ command: ["no-such-program"] });
  const late = await run({ command: ["sleep", "60"], timeoutMs: 50 });
  const elsewhere = await run({ command: ["pwd"], cwd: "state" });

  assertEquals([failed.exitCode, failed.success, failed.stderr], [3, false, "no\n"]);
  assertEquals("exitCode" in missing, false);
  assertMatch(missing.error, /no-such-program/);
  assertEquals([late.timedOut, late.success], [true, false]);
  assertEquals(elsewhere.stdout, `${await Deno.realPath(node.stateDir)}\n`);
});

Deno.test("commands run beside each other", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, { approvals: OPEN });
  const operator = await gateway.connect();
  const pipe = `${node.home}/pipe`;
  await invoke(operator, node, "system.run", { command: ["mkfifo", pipe] });

  // Each of the two waits for the other: one after the other they would wait for ever.
  const [reader, writer] = await Promise.all([
    invoke(operator, node, "system.run", { command: ["cat", pipe] }),
    invoke(operator, node, "system.run", { command: ["/bin/sh", "-c", `echo hi >${pipe}`] }),
  ]);

  assertEquals([reader.stdout, writer.exitCode], ["hi\n", 0]);
});

Deno.test("a file that a caller's variables point a shell at never runs", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, { approvals: OPEN });
  const operator = await gateway.connect();
  const evil = `${node.home}/evil`;
  await Deno.mkdir(evil);
  for (const name of [".profile", ".bash_profile", ".bashrc", ".zshenv", ".zshrc", "rc"]) {
    await Deno.writeTextFile(`${evil}/${name}`, `touch ${node.home}/canary\n`);
  }
  await Deno.writeTextFile(`${evil}/ls`, `#!/bin/sh\ntouch ${node.home}/canary\n`, {
    mode: 0o755,
  });
  const env = {
    HOME: evil,
    ZDOTDIR: evil,
    BASH_ENV: `${evil}/rc`,
    ENV: `${evil}/rc`,
    SHELL: `${evil}/ls`,
    PATH: evil,
    XDG_CONFIG_HOME: evil,
    PROMPT_COMMAND: `touch ${node.home}/canary`,
    LD_PRELOAD: `${evil}/rc`,
    MARK: "seen",
  };

  for (const shell of ["/bin/sh", "/bin/bash", "bash"]) {
    for (const flag of ["-c", "-lc"]) {
      const command = [shell, flag, "ls >/dev/null; echo $HOME $MARK"];
      const { stdout, exitCode } = await invoke(operator, node, "system.run", { command, env });
      assertEquals([stdout, exitCode], [`${node.home} seen\n`, 0], `${shell} ${flag}`);
    }
  }

  const found = await Deno.stat(`${node.home}/canary`).catch(() => undefined);
  assertEquals(found, undefined);
});

Deno.test("the gateway hears what ran and what did not before it has the result", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, {
    approvals: { version: 1, agents: { free: { security: "full", ask: "off" } } },
  });
  const operator = await gateway.connect(ALL);
  using database = new DatabaseSync(gateway.paths.database, { readOnly: true });
  const list = database.prepare("SELECT text FROM system_events ORDER BY event_id");
  const told = () => list.all().map(({ text }) => text);

  await invoke(operator, node, "system.run", {
    command: ["echo", "a b"],
    agentId: "free",
    runId: "run-1",
  });
  const ran = told();
  await refusedBy(operator, node, "system.run", { command: ["id"], runId: "run-2" });
  const denied = told().slice(ran.length);

  assertEquals(ran, [
    `Exec started (node=${node.nodeId} id=run-1): echo 'a b'`,
    `Exec finished (node=${node.nodeId} id=run-1, code 0)\na b\n`,
  ]);
  assertEquals(denied, [`Exec denied (node=${node.nodeId} id=run-2, approval-required): id`]);
});

Deno.test("a stop ends what runs and still delivers what came of it", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, { approvals: OPEN });
  const operator = await gateway.connect();
  const file = `${node.home}/pid`;
  const command = ["/bin/sh", "-c", `sleep 600 & echo $! >${file}; echo begun; wait`];
  const running = invoke(operator, node, "system.run", { command });
  await eventually("it runs", () => Deno.readTextFile(file).then(Boolean, () => false));
  const pid = Number(await Deno.readTextFile(file));

  const code = await node.stop();
  const outcome = await running;

  assertEquals(code, 0);
  assertEquals([outcome.success, outcome.stdout], [false, "begun\n"]);
  assertEquals(outcome.error, "the node stopped");
  await eventually("the grandchild is gone", async () => {
    const status = await Deno.readTextFile(`/proc/${pid}/status`).catch(() => "State:\tZ");
    return /^State:\s+Z/m.test(status);
  });
  assertMatch(node.stdout(), /node host stopped/);
});

Deno.test("a command the node does not have is refused by the node too", async () => {
  await using gateway = await startTestGateway({
    config: { gateway: { nodes: { allowCommands: ["fs.read"] } } },
  });
  await using node = await startTestNode(gateway);
  const operator = await gateway.connect();

  const error = await operator.refused("node.invoke", {
    nodeId: node.nodeId,
    command: "fs.read",
    idempotencyKey: "k",
  });

  assertEquals(error.details.reason, "command not declared by node");
});
