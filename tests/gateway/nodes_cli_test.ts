import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { findNode } from "../../gateway/nodes_commands.ts";
import { RpcError } from "../../rpc/error.ts";
import { type CliResult, zero } from "../support/cli.ts";
import type { Json, TestClient } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import { startTestGateway, type TestGateway } from "../support/gateway.ts";
import {
  type Asked,
  connectNode,
  failure,
  nodesOnce,
  payload,
  type Reply,
  serveNode,
  type TestNode,
} from "../support/node.ts";

const POLICY = ["system.run", "system.which", "system.execApprovals.get"];

/** A gateway, and `zero` that knows it. */
async function setUp(config?: Json) {
  const gateway = await startTestGateway();
  const home = await Deno.makeTempDir({ prefix: "zero-nodes-" });
  if (config) {
    await Deno.mkdir(`${home}/state`);
    await Deno.writeTextFile(`${home}/state/zero.json`, JSON.stringify(config));
  }
  const env = {
    ZERO_GATEWAY_PORT: String(gateway.port),
    ZERO_GATEWAY_TOKEN: gateway.token,
  };
  return {
    gateway,
    run: (...args: string[]): Promise<CliResult> => zero(args, { home, env }),
    async [Symbol.asyncDispose]() {
      await gateway[Symbol.asyncDispose]();
      await Deno.remove(home, { recursive: true });
    },
  };
}

interface RunnerOptions {
  /** What the node's own rules say. */
  file?: Json;
  /** Commands that run without being approved. */
  allowed?: (argv: string[]) => boolean;
  commands?: string[];
  result?: Json;
}

/** A node that judges as §9.4 says and answers with a result. */
function runner(gateway: TestGateway, options: RunnerOptions = {}): Promise<TestNode> {
  const { file = { version: 1 }, allowed = () => false, commands = POLICY } = options;
  const { result = { exitCode: 0, success: true, stdout: "out\n", stderr: "" } } = options;
  return serveNode(gateway, ({ command, params }: Asked): Reply => {
    if (command === "system.execApprovals.get") {
      return payload({ path: "/x", exists: true, hash: "0", file });
    }
    const isMine = params.approved || allowed(params.command);
    return isMine ? payload(result) : failure("SYSTEM_RUN_DENIED: approval required");
  }, { name: "Kitchen Pi", commands });
}

/** Waits for the question and answers it. */
async function decide(approver: TestClient, decision: string): Promise<Json> {
  const approval = await approver.event("exec.approval.requested");
  await approver.call("exec.approval.resolve", { id: approval.id, decision });
  return approval;
}

function runsOf({ asked }: TestNode): Json[] {
  return asked.filter(({ command }) => command === "system.run").map(({ params }) => params);
}

Deno.test("a node is found by id, address, name or the beginning of its id", () => {
  const kitchen = { nodeId: "abcdef0123", displayName: "Kitchen Pi", remoteIp: "192.0.2.7" };
  const attic = { nodeId: "abcdef9999", displayName: "Büro (oben)" };
  const bare = { nodeId: "abcdef" };
  const nodes = [kitchen, attic];
  const text = (query: string, among: readonly Json[] = nodes) =>
    assertThrows(() => findNode(among, query), RpcError).message;

  for (const query of ["abcdef0123", "192.0.2.7", "kitchen-pi", "KITCHEN  pi", " abcdef0 "]) {
    assertEquals(findNode(nodes, query), kitchen, query);
  }
  assertEquals(findNode(nodes, "büro oben"), attic);
  assertEquals(findNode([...nodes, bare], "abcdef"), bare);
  assertEquals(
    text("abcdef"),
    "ambiguous node: abcdef (matches: Kitchen Pi (abcdef0123), Büro (oben) (abcdef9999))",
  );
  assertEquals(
    text("abcde"),
    "unknown node: abcde (known: Kitchen Pi (abcdef0123), Büro (oben) (abcdef9999))",
  );
  for (const query of ["", " ", "---", "kitchen"]) assertMatch(text(query), /^unknown node: /);
  assertEquals(text("x", []), "unknown node: x (known: none)");
});

Deno.test("zero nodes status --json is the payload of node.list, and its filters drop nodes", async () => {
  await using setup = await setUp();
  const operator = await setup.gateway.connect();
  await using node = await connectNode(setup.gateway, { name: "Kitchen" });
  const gone = await connectNode(setup.gateway, { name: "Attic" });
  await gone.client.close();

  const all = await setup.run("nodes", "status", "--json");
  const connected = await setup.run("nodes", "status", "--connected", "--json");
  const recent = await setup.run("nodes", "status", "--last-connected", "1h", "--json");
  const text = await setup.run("nodes");
  const { nodes } = await operator.call("node.list", {});

  const bare = (list: Json[]) => list.map(({ latencyMs: _, ...rest }) => rest);
  assertEquals([all.code, all.stderr, typeof all.json.ts], [0, "", "number"]);
  assertEquals(bare(all.json.nodes), bare(nodes));
  assertEquals(connected.json.nodes.map((one: Json) => one.nodeId), [node.nodeId]);
  assertEquals(recent.json.nodes.length, 2);
  assertMatch(text.stdout, /^NODE +NAME +PLATFORM/);
  assertMatch(text.stdout, /Kitchen +linux .*connected .*system\.run, system\.which/);
});

Deno.test("zero nodes list, pending, approve and reject go through the pairing of nodes", async () => {
  await using setup = await setUp();
  const wanted = await setup.gateway.requestPairing({ name: "wanted", role: "node" });
  const unwanted = await setup.gateway.requestPairing({ name: "unwanted", role: "node" });

  const pending = await setup.run("nodes", "pending", "--json");
  const approved = await setup.run("nodes", "approve", wanted.requestId.slice(0, 8));
  const rejected = await setup.run("nodes", "reject", unwanted.requestId);
  const unknown = await setup.run("nodes", "approve", "00000000", "--json");
  const list = await setup.run("nodes", "list", "--json");
  const offline = await setup.run("nodes", "list", "--connected", "--json");

  assertEquals(pending.json.pending.length, 2);
  assertEquals([approved.code, approved.json.requestId, approved.json.node.nodeId], [
    0,
    wanted.requestId,
    wanted.device.deviceId,
  ]);
  assertEquals(rejected.json, {
    requestId: unwanted.requestId,
    nodeId: unwanted.device.deviceId,
  });
  assertEquals([unknown.code, unknown.json.error.message], [1, "unknown requestId: 00000000"]);
  assertEquals(list.json.pending, []);
  assertEquals(list.json.paired.map((one: Json) => one.nodeId), [wanted.device.deviceId]);
  assertEquals(offline.json.paired, []);
});

Deno.test("zero nodes describe, rename and remove take the node as option or as first word", async () => {
  await using setup = await setUp();
  const node = await connectNode(setup.gateway, { name: "Kitchen Pi" });
  const { nodeId } = node;

  const described = await setup.run("nodes", "describe", "kitchen-pi", "--json");
  const renamed = await setup.run("nodes", "rename", "--node", nodeId, "--name", "Attic", "--json");
  const again = await setup.run("nodes", "rename", "attic", "Cellar");
  const removed = await setup.run("nodes", "remove", nodeId.slice(0, 8), "--json");
  const unknown = await setup.run("nodes", "describe", "--node", "nobody");
  const missing = await setup.run("nodes", "describe");

  assertEquals([described.json.nodeId, described.json.connected], [nodeId, true]);
  assertEquals(renamed.json, { nodeId, displayName: "Attic" });
  assertStringIncludes(again.stdout, "Cellar");
  assertEquals(removed.json, { nodeId });
  assertEquals((await node.client.closed).code, 4001);
  assertEquals(unknown.code, 1);
  assertStringIncludes(unknown.stderr, "unknown node: nobody (known: none)");
  assertEquals(missing.code, 2);
});

Deno.test("zero nodes invoke prints what node.invoke answers", async () => {
  await using setup = await setUp();
  await using node = await serveNode(
    setup.gateway,
    ({ command, params }) =>
      command === "system.which" ? payload({ bins: params }) : failure("no such thing"),
    { name: "n1" },
  );
  const { nodeId } = node;

  const named = await setup.run(
    ...["nodes", "invoke", "--node", "n1", "--command", "system.which"],
    ...["--params", '{"bins":["sh"]}', "--json"],
  );
  const placed = await setup.run("nodes", "invoke", "n1", "system.which", '{"a":1}');
  const failing = await setup.run("nodes", "invoke", "n1", "system.run", "--json");
  const refused = await setup.run("nodes", "invoke", "n1", "camera.snap");
  const broken = await setup.run("nodes", "invoke", "n1", "system.which", "{half");

  assertEquals(named.json, {
    ok: true,
    nodeId,
    command: "system.which",
    payload: { bins: { bins: ["sh"] } },
    payloadJSON: '{"bins":{"bins":["sh"]}}',
  });
  assertEquals(placed.json.payload, { bins: { a: 1 } });
  assertEquals(node.asked[0].timeoutMs, 15_000);
  assertEquals([failing.code, failing.json.error.message], [1, "no such thing"]);
  assertEquals(failing.json.error.details.delivery, "done");
  assertStringIncludes(refused.stderr, "node command not allowed");
  assertStringIncludes(refused.stderr, "command not allowlisted");
  assertStringIncludes(refused.stderr, "fix:   gateway.nodes.allowCommands");
  assertEquals(broken.code, 2);
});

Deno.test("zero nodes notify shows a notification", async () => {
  await using setup = await setUp();
  await using node = await serveNode(setup.gateway, () => ({ payload: {} }), {
    name: "desk",
    commands: ["system.notify"],
  });

  const { code } = await setup.run(
    ...["nodes", "notify", "desk", "--title", "Done", "--priority", "passive"],
  );
  const empty = await setup.run("nodes", "notify", "desk");

  assertEquals([code, empty.code], [0, 2]);
  const { params } = node.asked[0];
  assertEquals(params, { title: "Done", body: "", priority: "passive", delivery: "system" });
});

Deno.test("what a node lets run needs no question; output and exit code are passed through", async () => {
  await using setup = await setUp();
  const result = { exitCode: 7, success: false, stdout: "a\tß\n\nb", stderr: "oh\r\n no" };
  await using node = await runner(setup.gateway, { allowed: () => true, result });

  const plain = await setup.run("nodes", "run", "--node", "kitchen-pi", "uname", "-a", "--json");
  const json = await setup.run(
    "nodes",
    "run",
    "--json",
    "--node",
    "kitchen-pi",
    "--",
    "x",
    "--",
    "",
  );

  assertEquals(plain.code, 7);
  assertEquals(plain.stdout, "a\tß\n\nb");
  assertEquals(plain.stderr, "oh\r\n no\nrun exit 7\n");
  assertEquals([json.code, json.json.payload], [7, result]);
  assertEquals(runsOf(node).map(({ command }) => command), [
    ["uname", "-a", "--json"],
    ["x", "--", ""],
  ]);
});

Deno.test("options of the remote command line are its own, also where zero has the same", async () => {
  await using setup = await setUp();
  await using node = await runner(setup.gateway, { allowed: () => true });

  const { code, stdout } = await setup.run(
    ...["nodes", "run", "--node", "kitchen-pi", "cargo", "build"],
    ...["--profile", "release", "--dev", "--help", "--node", "x", "--no-color"],
  );

  assertEquals([code, stdout], [0, "out\n"]);
  assertEquals(runsOf(node)[0].command, [
    ...["cargo", "build", "--profile", "release", "--dev", "--help", "--node", "x", "--no-color"],
  ]);
});

Deno.test("what a node does not know is asked about, and runs as it was approved", async () => {
  await using setup = await setUp();
  const approver = await setup.gateway.connect();
  await using node = await runner(setup.gateway);
  const running = setup.run(
    ...["nodes", "run", "--node", "kitchen-pi", "--cwd", "/srv", "--env", "A=1=2"],
    ...["--session", "agent:main:main", "ls", "a b"],
  );

  const { request, id } = await decide(approver, "allow-always");
  const { code, stdout, stderr } = await running;

  assertEquals([code, stdout], [0, "out\n"]);
  assertStringIncludes(stderr, `zero approvals allow ${id}`);
  assertStringIncludes(stderr, "ls 'a b'");
  assertEquals(
    [request.command, request.argv, request.cwd, request.env, request.nodeId, request.host],
    ["ls 'a b'", ["ls", "a b"], "/srv", { A: "1=2" }, node.nodeId, "node"],
  );
  const [denied, run] = runsOf(node);
  assertEquals([denied.approved, run.approved, run.approvalDecision], [
    undefined,
    true,
    "allow-always",
  ]);
  assertEquals([run.runId, run.sessionKey], [request.runId, "agent:main:main"]);
});

Deno.test("--raw goes to the node's shell, as one text", async () => {
  await using setup = await setUp();
  const approver = await setup.gateway.connect();
  await using node = await runner(setup.gateway);
  const running = setup.run("nodes", "run", "--node", "kitchen-pi", "--raw", "df -h | head -3");

  const { request } = await decide(approver, "allow-once");
  const { code } = await running;
  const both = await setup.run("nodes", "run", "--node", "kitchen-pi", "--raw", "a", "b");
  const none = await setup.run("nodes", "run", "--node", "kitchen-pi");

  assertEquals([code, request.command], [0, "df -h | head -3"]);
  const { command, rawCommand } = runsOf(node)[1];
  assertEquals([command, rawCommand], [["/bin/sh", "-lc", "df -h | head -3"], "df -h | head -3"]);
  assertEquals([both.code, none.code], [2, 2]);
});

Deno.test("a refused run does not run", async () => {
  await using setup = await setUp();
  const approver = await setup.gateway.connect();
  await using node = await runner(setup.gateway);
  const running = setup.run("nodes", "run", "--node", "kitchen-pi", "--json", "rm", "-r", "/");

  await decide(approver, "deny");
  const { code, json } = await running;

  assertEquals([code, json.error.message], [1, "exec denied: user denied"]);
  assert(runsOf(node).every(({ approved }) => approved === undefined));
  assertEquals(runsOf(node).length, 1);
});

Deno.test("the stricter of flags, configuration and node holds", async () => {
  const config = { tools: { exec: { security: "full", ask: "off" } } };
  await using setup = await setUp(config);
  const approver = await setup.gateway.connect();
  const free = { version: 1, defaults: { security: "full", ask: "off" } };
  await using lax = await runner(setup.gateway, { file: free, allowed: () => true });
  const run = (...args: string[]) =>
    setup.run("nodes", "run", "--node", lax.nodeId, ...args, "true");

  const open = await run();
  const closed = await run("--security", "deny");
  const asking = run("--ask", "always");
  const asked = await decide(approver, "deny");
  const listed = run("--security", "allowlist", "--ask", "on-miss");
  await decide(approver, "allow-once");

  assertEquals(open.code, 0);
  assertEquals(closed.code, 1);
  assertStringIncludes(closed.stderr, "exec denied: host=node security=deny");
  assertEquals([asked.request.ask, asked.request.security], ["always", "full"]);
  assertEquals((await asking).code, 1);
  assertEquals((await listed).code, 0);
  assertEquals(runsOf(lax).map(({ approved }) => approved), [undefined, true]);
});

Deno.test("a node whose rules say deny is not asked to run anything", async () => {
  await using setup = await setUp();
  const file = { version: 1, agents: { main: { security: "deny" } } };
  await using node = await runner(setup.gateway, { file, allowed: () => true });

  const { code, stderr } = await setup.run("nodes", "run", "--node", node.nodeId, "true");

  assertEquals(code, 1);
  assertStringIncludes(stderr, "exec denied: host=node security=deny");
  assertEquals(runsOf(node), []);
});

Deno.test("a node that tells no rules is asked about first", async () => {
  await using setup = await setUp();
  const approver = await setup.gateway.connect();
  await using node = await runner(setup.gateway, {
    commands: ["system.run"],
    allowed: () => true,
  });
  const running = setup.run("nodes", "run", "--node", node.nodeId, "true");

  await decide(approver, "allow-once");

  assertEquals((await running).code, 0);
  assertEquals(runsOf(node).map(({ approved }) => approved), [true]);
});

Deno.test("a run that takes too long says so, and what cannot run asks nobody", async () => {
  await using setup = await setUp();
  const timedOut = { exitCode: null, timedOut: true, success: false, stdout: "half", stderr: "" };
  await using slow = await runner(setup.gateway, { allowed: () => true, result: timedOut });
  await using bare = await connectNode(setup.gateway, { commands: ["system.which"] });
  const gone = await connectNode(setup.gateway);
  await gone.client.close();

  const late = await setup.run(
    ...["nodes", "run", "--node", slow.nodeId, "--command-timeout", "40000", "sleep", "9"],
  );
  const unable = await setup.run("nodes", "run", "--node", bare.nodeId, "true");
  const away = await setup.run("nodes", "run", "--node", gone.nodeId, "true");

  assertEquals([late.code, late.stdout, late.stderr], [1, "half", "run timed out\n"]);
  const run = slow.asked.find(({ command }) => command === "system.run")!;
  assertEquals([run.params.timeoutMs, run.timeoutMs], [40_000, 45_000]);
  assertEquals([unable.code, away.code], [1, 1]);
  assertStringIncludes(unable.stderr, "node command not allowed");
  assertStringIncludes(unable.stderr, "fix:   zero nodes describe NODE");
  assertStringIncludes(away.stderr, "node not connected");
});

Deno.test("zero nodes invoke --queue leaves it to the gateway, and zero nodes queue shows and cancels it", async () => {
  await using setup = await setUp();
  const { gateway, run } = setup;
  const device = await newDevice();
  const before = await connectNode(gateway, { device, name: "Attic" });
  await before.client.close();
  const operator = await gateway.connect();
  await nodesOnce(operator, ([node]) => node?.connected === false);
  const words = ["--node", "attic", "--command", "system.which", "--params", '{"bins":["sh"]}'];

  const queued = await run("nodes", "invoke", ...words, "--queue", "10m");
  const second = await run("nodes", "invoke", ...words, "--queue", "10m");
  const wrong = await run("nodes", "invoke", ...words, "--queue", "soon");
  const without = await run("nodes", "invoke", ...words);
  const cancelled = await run("nodes", "queue", "cancel", second.json.queueId.slice(0, 8));
  const text = await run("nodes", "queue");
  await using node = await connectNode(gateway, { device, name: "Attic" });
  const { id } = await node.client.event("node.invoke.request");
  await node.client.call("node.invoke.result", { id, nodeId: node.nodeId, ok: true, payload: 7 });
  const one = await run("nodes", "queue", "list", queued.json.queueId);
  const list = await run("nodes", "queue", "list", "--node", "attic", "--json");
  const unknown = await run("nodes", "queue", "cancel", "00000000", "--json");

  assertEquals([queued.code, queued.json.queued, queued.json.payload], [0, true, null]);
  assertEquals(wrong.code, 2);
  assertMatch(wrong.stderr, /Cannot read --queue "soon"/);
  assertEquals(without.code, 1);
  assertMatch(without.stderr, /node not connected/);
  assertEquals([cancelled.code, cancelled.stdout], [0, "Cancelled system.which\n"]);
  assertMatch(text.stdout, /^QUEUED +NODE +COMMAND +STATE +BY/);
  assertMatch(text.stdout, /Attic \([0-9a-f]{12}\) +system\.which +waiting, \d+ min left/);
  assertMatch(text.stdout, /system\.which +cancelled /);
  assertEquals([one.json.state, one.json.payload], ["done", 7]);
  assertEquals(list.json.entries.map(({ state }: Json) => state), ["done", "cancelled"]);
  assertEquals([unknown.code, unknown.json.error.message], [1, "unknown queueId: 00000000"]);
});
