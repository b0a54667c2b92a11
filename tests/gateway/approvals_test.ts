import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import {
  type ApprovalRequest,
  Approvals,
  type Binding,
  type BoundCall,
  type Decision,
  isTextOf,
} from "../../gateway/approvals.ts";
import { RpcError } from "../../rpc/error.ts";
import type { Json, TestClient } from "../support/client.ts";
import { startTestGateway, type TestGateway } from "../support/gateway.ts";
import { connectNode, payload, serveNode, type TestNode } from "../support/node.ts";

const ARGV = ["git", "push", "--force", "origin", "main branch", "ü"];
const COMMAND = "git push --force origin 'main branch' 'ü'";
const ENV = { LANG: "C", GIT_DIR: "/srv/repo" };

const CALL: BoundCall = {
  caller: "device a",
  nodeId: "node-1",
  argv: ARGV,
  cwd: "/srv/work",
  env: ENV,
  sessionKey: "agent:main:main",
  agentId: "main",
};

function request(command = COMMAND): ApprovalRequest {
  return {
    command,
    cwd: null,
    host: null,
    security: null,
    ask: null,
    agentId: null,
    resolvedPath: null,
    sessionKey: null,
  };
}

/** Approvals in which one question was asked and answered. */
async function decided(binding: Partial<Binding> = {}, decision: Decision = "allow-once") {
  const approvals = new Approvals({ requested() {}, resolved() {} });
  const bound = { ...CALL, command: COMMAND, ...binding };
  const answer = approvals.ask("1", {
    request: request(bound.command),
    binding: bound,
    timeoutMs: 60_000,
  });
  approvals.resolve("1", decision);
  await answer;
  return approvals;
}

/** Every text that differs from this one in one bit, or by one character more or less. */
function* mutations(text: string): Generator<string> {
  for (let at = 0; at < text.length; at++) {
    for (let bit = 0; bit < 8; bit++) {
      const code = text.charCodeAt(at) ^ (1 << bit);
      yield text.slice(0, at) + String.fromCharCode(code) + text.slice(at + 1);
    }
    yield text.slice(0, at) + text.slice(at + 1);
    yield `${text.slice(0, at)} ${text.slice(at)}`;
  }
  yield `${text} `;
  yield `${text}\0`;
  yield "";
}

function* mutatedCalls(): Generator<[what: string, call: BoundCall]> {
  for (const [index, word] of ARGV.entries()) {
    for (const text of mutations(word)) {
      yield [`argv ${index}: ${JSON.stringify(text)}`, { ...CALL, argv: ARGV.with(index, text) }];
    }
    yield [`argv without ${index}`, { ...CALL, argv: ARGV.toSpliced(index, 1) }];
    yield [`argv with ${index} twice`, { ...CALL, argv: ARGV.toSpliced(index, 0, word) }];
  }
  yield ["argv with one more", { ...CALL, argv: [...ARGV, ""] }];
  yield ["argv split otherwise", { ...CALL, argv: ARGV.join(" ").split(" ") }];
  yield ["argv as one word", { ...CALL, argv: [ARGV.join(" ")] }];
  yield ["argv in another order", { ...CALL, argv: ARGV.toReversed() }];
  for (const text of mutations(CALL.cwd!)) yield [`cwd ${text}`, { ...CALL, cwd: text }];
  yield ["no cwd", { ...CALL, cwd: null }];
  for (const [name, value] of Object.entries(ENV)) {
    for (const text of mutations(value)) {
      yield [`${name}=${text}`, { ...CALL, env: { ...ENV, [name]: text } }];
    }
    const { [name as keyof typeof ENV]: _, ...rest } = ENV;
    yield [`env without ${name}`, { ...CALL, env: rest }];
    for (const text of mutations(name)) {
      yield [`env ${text}`, { ...CALL, env: { ...rest, [text]: value } }];
    }
  }
  yield ["no env", { ...CALL, env: undefined }];
  yield ["env with one more", { ...CALL, env: { ...ENV, PATH: "/tmp" } }];
  yield ["env with values swapped", { ...CALL, env: { LANG: "/srv/repo", GIT_DIR: "C" } }];
  for (const text of mutations(CALL.nodeId)) yield [`node ${text}`, { ...CALL, nodeId: text }];
  for (const text of mutations(CALL.sessionKey!)) {
    yield [`session ${text}`, { ...CALL, sessionKey: text }];
  }
  yield ["no session", { ...CALL, sessionKey: null }];
  // "Always" would add to the list of whichever agent the call names.
  yield ["every agent", { ...CALL, agentId: "*" }];
  yield ["no agent", { ...CALL, agentId: null }];
  yield ["another text beside it", { ...CALL, rawCommand: "git status" }];
}

Deno.test("an approval is good for nothing that differs in one byte from what was asked", async () => {
  using approvals = await decided();
  let count = 0;

  for (const [what, call] of mutatedCalls()) {
    assertEquals(approvals.take(call), undefined, what);
    count++;
  }

  assert(count > 800, `${count} mutations`);
  assertEquals(approvals.take(CALL), "allow-once");
  assertEquals(approvals.take(CALL), undefined);
});

Deno.test("names of the environment may come in any order, and none is the same as an empty one", async () => {
  using ordered = await decided();
  using empty = await decided({ env: {} });

  const turned = Object.fromEntries(Object.entries(ENV).toReversed());

  assertEquals(ordered.take({ ...CALL, env: turned }), "allow-once");
  assertEquals(empty.take({ ...CALL, env: undefined }), "allow-once");
});

Deno.test("allow-always holds on, deny and no answer allow nothing", async () => {
  using always = await decided({}, "allow-always");
  using denied = await decided({}, "deny");
  using open = new Approvals({ requested() {}, resolved() {} });
  open.ask("1", {
    request: request(),
    binding: { ...CALL, command: COMMAND },
    timeoutMs: 60_000,
  });

  assertEquals([always.take(CALL), always.take(CALL)], ["allow-always", "allow-always"]);
  assertEquals([denied.take(CALL), open.take(CALL)], [undefined, undefined]);
});

Deno.test("an approval that nobody makes use of expires", async () => {
  const now = Date.now;
  try {
    using approvals = await decided({}, "allow-always");
    const begin = now();

    Date.now = () => begin + 119_000;
    const soon = approvals.take(CALL);
    Date.now = () => begin + 121_000;
    const late = approvals.take(CALL);

    assertEquals([soon, late], ["allow-always", undefined]);
  } finally {
    Date.now = now;
  }
});

Deno.test("a request without argv holds for its text and directory, of the same caller", async () => {
  const bound = { argv: undefined, nodeId: undefined, env: undefined, command: "uname -a" };
  const call = { ...CALL, argv: ["uname", "-a"], env: {} };
  const shell = { ...call, argv: ["/bin/sh", "-lc", "uname -a"], rawCommand: "uname -a" };
  const taken = async (one: BoundCall) => (await decided(bound)).take(one);

  assertEquals(await taken(call), "allow-once");
  assertEquals(await taken(shell), "allow-once");
  assertEquals(await taken({ ...call, nodeId: "node-2" }), "allow-once");
  assertEquals(await taken({ ...call, caller: "device b" }), undefined);
  assertEquals(await taken({ ...call, cwd: "/" }), undefined);
  assertEquals(await taken({ ...call, env: { PATH: "/tmp" } }), undefined);
  assertEquals(await taken({ ...call, argv: ["uname -a"] }), undefined);
  assertEquals(await taken({ ...call, argv: ["uname", "-a", ""] }), undefined);
  assertEquals(
    await taken({ ...call, argv: ["rm", "-r", "/"], rawCommand: "uname -a" }),
    undefined,
  );
  assertEquals(await taken({ ...shell, argv: [...shell.argv, "more"] }), undefined);
  assertEquals(await taken({ ...shell, argv: ["/bin/sh", "-c", "uname -a"] }), undefined);
});

Deno.test("a text belongs to an argv when there is only one way to read it", () => {
  const fitting: [string, string[]][] = [
    ["ls -l", ["ls", "-l"]],
    ["ls 'a b'", ["ls", "a b"]],
    ['ls "a b"', ["ls", "a b"]],
    ["echo 'it'\\''s'", ["echo", "it's"]],
    ["echo ''", ["echo", ""]],
    ["df | head", ["/bin/sh", "-lc", "df | head"]],
    ["dir & ver", ["cmd.exe", "/d", "/s", "/c", "dir & ver"]],
  ];
  const foreign: [string, string[]][] = [
    ["ls a b", ["ls", "a b"]],
    ["ls  -l", ["ls", "-l"]],
    ["ls -l ", ["ls", "-l"]],
    ["ls", ["ls", ""]],
    ["", []],
    ["df | head", ["/bin/bash", "-lc", "df | head"]],
    ["df | head", ["/bin/sh", "-lc", "df | head", "x"]],
    ["df | head", ["x", "/bin/sh", "-lc", "df | head"]],
    ["df | head", ["/bin/sh", "-lc", "df |  head"]],
  ];
  for (const [text, argv] of fitting) assert(isTextOf(text, argv), text);
  for (const [text, argv] of foreign.filter(([, argv]) => argv.length > 0)) {
    assert(!isTextOf(text, argv), `${text} / ${argv}`);
  }
});

Deno.test("a question whose text is not that of its argv is not asked", () => {
  using approvals = new Approvals({ requested() {}, resolved() {} });
  const ask = (command: string) =>
    approvals.ask("1", {
      request: request(command),
      binding: { ...CALL, command },
      timeoutMs: 60_000,
    });

  const error = assertThrows(() => ask("git status"), RpcError);

  assertEquals(error.message, "command does not match argv");
  assertEquals(approvals.list(), []);
});

Deno.test("the end of an asker does not end the question of another under the same id", async () => {
  using approvals = new Approvals({ requested() {}, resolved() {} });
  const gone = Promise.withResolvers<void>();
  const ask = (askerLeft?: Promise<void>) =>
    approvals.ask("1", {
      request: request(),
      binding: { ...CALL, command: COMMAND },
      timeoutMs: 60_000,
      askerLeft,
    });

  const first = ask(gone.promise);
  approvals.resolve("1", "deny");
  ask();
  gone.resolve();
  await first;

  assertEquals(approvals.list().length, 1);
});

// Over real sockets.

async function setUp(): Promise<{ gateway: TestGateway; asker: TestClient; approver: TestClient }> {
  const gateway = await startTestGateway();
  const asker = await gateway.connect();
  const approver = await gateway.connect({ scopes: ["operator.approvals"] });
  return { gateway, asker, approver };
}

/** Asks, has it answered, and runs it; what the node was asked to do is in `node.asked`. */
async function approve(
  { asker, approver }: { asker: TestClient; approver: TestClient },
  params: Record<string, unknown>,
  decision = "allow-once",
) {
  const id = crypto.randomUUID();
  const asking = asker.call("exec.approval.request", { id, ...params });
  await approver.event("exec.approval.requested", (one) => one.id === id);
  await approver.call("exec.approval.resolve", { id, decision });
  return await asking;
}

function run(asker: TestClient, { nodeId }: TestNode, params: unknown) {
  const idempotencyKey = crypto.randomUUID();
  return asker.request("node.invoke", { nodeId, command: "system.run", params, idempotencyKey });
}

/** A node that tells which params it was sent. */
function echoNode(gateway: TestGateway, commands = ["system.run"]) {
  return serveNode(gateway, ({ params }) => payload({ params: params ?? null }), { commands });
}

Deno.test("the gateway vouches for exactly the run that was approved, once", async () => {
  const setup = await setUp();
  await using gateway = setup.gateway;
  await using node = await echoNode(gateway);
  const params = { command: ["uname", "-a"], cwd: "/srv", env: { A: "1" }, sessionKey: "main" };
  const { command: argv, ...rest } = params;

  const answer = await approve(setup, {
    command: "uname -a",
    argv,
    ...rest,
    nodeId: node.nodeId,
    runId: "run-1",
  });
  const other = await run(setup.asker, node, { ...params, env: { A: "2" } });
  const first = await run(setup.asker, node, { ...params, timeoutMs: 5 });
  const second = await run(setup.asker, node, params);

  assertEquals(answer.decision, "allow-once");
  assertEquals(other.payload.payload.params, { ...params, env: { A: "2" } });
  assertEquals(first.payload.payload.params, {
    ...params,
    timeoutMs: 5,
    approved: true,
    approvalDecision: "allow-once",
  });
  assertEquals(second.payload.payload.params, params);
});

Deno.test("an approval that a caller claims for itself is stripped", async () => {
  const { gateway: made, asker } = await setUp();
  await using gateway = made;
  await using node = await echoNode(gateway);
  const claims = { approved: true, approvalDecision: "allow-always" };

  const seen = await run(asker, node, { command: ["uname"], ...claims });
  const odd = await run(asker, node, { command: "uname", ...claims });
  const nested = await run(asker, node, {
    command: ["uname"],
    cwd: 5,
    ["__proto__"]: claims,
    ...claims,
  });
  const raw = await asker.request("gateway.call", {
    method: "node.invoke",
    params: {
      nodeId: node.nodeId,
      command: "system.run",
      params: { command: ["uname"], ...claims },
      idempotencyKey: "1",
    },
  });

  assertEquals(seen.payload.payload.params, { command: ["uname"] });
  assertEquals(odd.payload.payload.params, { command: "uname" });
  assertEquals(nested.payload.payload.params, { command: ["uname"], cwd: 5 });
  assertEquals(raw.payload.payload.params, { command: ["uname"] });
});

Deno.test("a text that is not what the argv runs is refused before the node sees it", async () => {
  const setup = await setUp();
  await using gateway = setup.gateway;
  await using node = await echoNode(gateway);
  await approve(setup, { command: "uname -a" });
  const params = { command: ["rm", "-r", "/"], rawCommand: "uname -a" };

  const plain = await run(setup.asker, node, params);
  const odd = await run(setup.asker, node, { ...params, cwd: 5 });

  assertEquals([plain.error.code, plain.error.message], [
    "INVALID_REQUEST",
    "rawCommand does not match command",
  ]);
  assertEquals(odd.error.message, "rawCommand does not match command");
  assertEquals(node.asked, []);
});

Deno.test("nodes that prepare their runs are told of no approval", async () => {
  const setup = await setUp();
  await using gateway = setup.gateway;
  await using node = await echoNode(gateway, ["system.run", "system.run.prepare"]);
  const { nodeId } = node;
  await approve(setup, { command: "uname", argv: ["uname"], nodeId });

  const seen = await run(setup.asker, node, { command: ["uname"] });

  assertEquals(seen.payload.payload.params, { command: ["uname"] });
});

Deno.test("an approval asked for by a client that has left still holds for its next connection", async () => {
  const setup = await setUp();
  await using gateway = setup.gateway;
  await using node = await echoNode(gateway);
  await approve(setup, { command: "uname -a", cwd: "/srv" });
  await setup.asker.close();
  const next = await gateway.connect();
  await using stranger = await gateway.connect({ device: true });

  const foreign = await run(stranger, node, { command: ["uname", "-a"], cwd: "/srv" });
  const own = await run(next, node, { command: ["uname", "-a"], cwd: "/srv" });

  assertEquals(foreign.payload.payload.params.approved, undefined);
  assertEquals(own.payload.payload.params.approved, true);
});

Deno.test("a question shows the argv, the node and the environment it is about", async () => {
  const { gateway: made, asker, approver } = await setUp();
  await using _gateway = made;
  const params = {
    id: "question-1",
    command: "rm 'a b'",
    argv: ["rm", "a b"],
    nodeId: "node-1",
    env: { A: "1" },
  };
  const asking = asker.call("exec.approval.request", params);

  const { request, expiresAtMs, createdAtMs } = await approver.event("exec.approval.requested");
  const { pending } = await approver.call("exec.approval.list", {});
  await approver.call("exec.approval.resolve", { id: "question-1", decision: "deny" });
  await asking;

  const { id: _, ...asked } = params;
  assertEquals(request, { ...pending[0].request });
  assertEquals({ ...request, ...asked }, request);
  assertEquals(expiresAtMs - createdAtMs, 120_000);
});

Deno.test("a question is withdrawn when its asker's socket closes", async () => {
  const { gateway: made, asker, approver } = await setUp();
  await using _gateway = made;
  asker.request("exec.approval.request", { id: "1", command: "uname" }).catch(() => {});
  await approver.event("exec.approval.requested");

  await asker.socket.terminate();
  const resolved = await approver.event("exec.approval.resolved");
  const late = await approver.refused("exec.approval.resolve", { id: "1", decision: "allow-once" });

  assertEquals([resolved.id, resolved.decision], ["1", null]);
  assertEquals([late.code, late.message], ["APPROVAL_NOT_FOUND", "unknown approval id"]);
  assertEquals((await approver.call("exec.approval.list", {})).pending, []);
});

Deno.test("a question lapses when nobody answers, and then nothing is allowed", async () => {
  const { gateway: made, asker } = await setUp();
  await using gateway = made;
  await using node = await echoNode(gateway);

  const { nodeId } = node;
  const answer = await asker.call("exec.approval.request", {
    command: "uname",
    argv: ["uname"],
    nodeId,
    timeoutMs: 20,
  });
  const seen = await run(asker, node, { command: ["uname"] });

  assertEquals(answer.decision, null);
  assertEquals(seen.payload.payload.params, { command: ["uname"] });
});

Deno.test("questions are listed oldest first, and an id can wait only once", async () => {
  const { gateway: made, asker, approver } = await setUp();
  await using _gateway = made;
  for (const id of ["c", "a", "b"]) {
    asker.request("exec.approval.request", { id, command: `echo ${id}` }).catch(() => {});
    await approver.event("exec.approval.requested", (one: Json) => one.id === id);
  }

  const { pending } = await approver.call("exec.approval.list", {});
  const twice = await asker.refused("exec.approval.request", { id: "a", command: "echo" });
  const foreign = await approver.refused("exec.approval.resolve", { id: "a", decision: "maybe" });

  assertEquals(pending.map(({ id }: Json) => id), ["c", "a", "b"]);
  assertEquals(twice.message, "approval id already pending");
  assertEquals(foreign.message, "invalid decision");
});

Deno.test("readers hear nothing of what is asked", async () => {
  const { gateway: made, asker, approver } = await setUp();
  await using gateway = made;
  const reader = await gateway.connect({ scopes: ["operator.read", "operator.write"] });
  await using node = await connectNode(gateway);

  const refused = await reader.refused("exec.approval.list", {});
  await approve({ asker, approver }, { command: "secret" });
  await reader.call("health", {});
  await node.client.refused("exec.approval.list", {});

  assertMatch(refused.message, /^missing scope: operator.approvals$/);
  for (const one of [reader, node.client]) {
    assertEquals(one.untakenEvents.filter((name) => name.startsWith("exec.")), []);
  }
  await assertRejects(() => reader.call("exec.approval.request", { command: "x" }));
});
