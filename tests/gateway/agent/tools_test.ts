import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import type { Json, TestClient } from "../../support/client.ts";
import { startTestGateway, type TestGateway } from "../../support/gateway.ts";
import {
  asked,
  connectNode,
  payload,
  reply,
  serveNode,
  type TestNode,
} from "../../support/node.ts";
import { calls, lastText, only, says, scriptedModel } from "../../support/scripted_model.ts";
import { newDevice } from "../../support/device.ts";

const SESSION = "agent:main:test";
const COMMANDS = ["system.run", "system.which", "system.execApprovals.get"];

/** Says something and waits for the answer. */
async function chat(client: TestClient, message: string, sessionKey = SESSION): Promise<string> {
  const runId = crypto.randomUUID();
  await client.call("chat.send", { sessionKey, message, idempotencyKey: runId });
  const { state, message: said, errorMessage } = await client.event(
    "chat",
    (one) => one.runId === runId && one.state !== "delta",
  );
  return state === "final" ? said.content[0].text : `${state}: ${errorMessage}`;
}

/** A model that asks for one tool, and then repeats what came of it. */
function asking(name: string, args: Record<string, unknown>) {
  return scriptedModel((turn) =>
    turn.messages.at(-1)!.role === "user" ? calls(name, args) : says(lastText(turn))
  );
}

/** A node whose rules are these, and which runs what it may. */
function nodeWith(
  gateway: TestGateway,
  rules: Record<string, unknown>,
  isListed = false,
): Promise<TestNode & { runs: Json[] }> {
  const runs: Json[] = [];
  const file = { version: 1, defaults: rules };
  return serveNode(gateway, ({ command, params }) => {
    if (command === "system.execApprovals.get") {
      return payload({ path: "/x", exists: true, hash: "h", file });
    }
    runs.push(params);
    const mustAsk = rules.ask === "always" || (rules.security === "allowlist" && !isListed);
    if (mustAsk && !params.approved) {
      const message = "SYSTEM_RUN_DENIED: approval required";
      return { ok: false, error: { code: "UNAVAILABLE", message } };
    }
    return payload({ exitCode: 0, success: true, stdout: "Linux 6.1\n", stderr: "" });
  }, { name: "n1", commands: COMMANDS }).then((node) => ({ ...node, runs }));
}

Deno.test("a program on a node that lets everything run needs no approval", async () => {
  const model = asking("node_run", { node: "n1", argv: ["uname", "-a"], cwd: "/tmp" });
  await using gateway = await startTestGateway({
    models: only(model),
    config: { tools: { exec: { security: "full", ask: "off" } } },
  });
  await using node = await nodeWith(gateway, { security: "full", ask: "off" });
  const client = await gateway.connect();

  assertEquals(await chat(client, "what kernel is n1?"), "Linux 6.1");

  const [{ command, cwd, sessionKey, approved }] = node.runs;
  assertEquals([command, cwd, sessionKey, approved], [
    ["uname", "-a"],
    "/tmp",
    SESSION,
    undefined,
  ]);
});

Deno.test("a program that a node does not know asks a person, and runs once that one allows it", async () => {
  const model = asking("node_run", { node: "n1", argv: ["uname", "-a"] });
  await using gateway = await startTestGateway({ models: only(model) });
  await using node = await nodeWith(gateway, { security: "allowlist", ask: "on-miss" });
  const client = await gateway.connect();
  const said = chat(client, "what kernel is n1?");

  const { id, request } = await client.event("exec.approval.requested");
  await client.call("exec.approval.resolve", { id, decision: "allow-once" });

  assertEquals(await said, "Linux 6.1");
  assertEquals([request.command, request.nodeId, request.argv, request.sessionKey], [
    "uname -a",
    node.nodeId,
    ["uname", "-a"],
    SESSION,
  ]);
  assertEquals(node.runs.map(({ approved, approvalDecision }) => [approved, approvalDecision]), [
    [undefined, undefined],
    [true, "allow-once"],
  ]);
});

Deno.test("the person may answer in the chat itself, while the run waits", async () => {
  const model = asking("node_run", { node: "n1", argv: ["uname"] });
  await using gateway = await startTestGateway({ models: only(model) });
  await using _node = await nodeWith(gateway, { security: "allowlist", ask: "on-miss" });
  const client = await gateway.connect();
  const said = chat(client, "what kernel is n1?");
  const { id } = await client.event("exec.approval.requested");

  const wrong = await chat(client, `/approve ${id} perhaps`);
  const answer = await chat(client, `/approve ${id} allow-always`);
  const late = await chat(client, `/approve ${id} deny`);

  assertStringIncludes(wrong, "/approve <id>");
  assertEquals([answer, late], ["It may run.", "Nobody waits for that answer any more."]);
  assertEquals(await said, "Linux 6.1");
  const { messages } = await client.call("chat.history", { sessionKey: SESSION });
  assertEquals(messages.map(({ role }: Json) => role), [
    ...["user", "assistant", "toolResult", "assistant"],
  ]);
});

Deno.test("an operator without the scope for approvals cannot answer them in a chat", async () => {
  const model = asking("node_run", { node: "n1", argv: ["uname"] });
  await using gateway = await startTestGateway({ models: only(model) });
  await using node = await nodeWith(gateway, { security: "allowlist", ask: "on-miss" });
  const admin = await gateway.connect();
  const writer = await gateway.connect({ scopes: ["operator.read", "operator.write"] });
  const said = chat(writer, "what kernel is n1?");
  const { id } = await admin.event("exec.approval.requested");

  const answer = await chat(writer, `/approve ${id} allow-once`);
  await admin.call("exec.approval.resolve", { id, decision: "deny" });

  assertEquals(answer, "Answering that takes operator.approvals.");
  assertEquals(await said, "node_run failed: exec denied: user denied");
  assertEquals(node.runs.filter(({ approved }) => approved), []);
});

Deno.test("a question is withdrawn when its run is stopped", async () => {
  const model = asking("node_run", { node: "n1", argv: ["uname"] });
  await using gateway = await startTestGateway({ models: only(model) });
  await using _node = await nodeWith(gateway, { security: "allowlist", ask: "on-miss" });
  const client = await gateway.connect();
  const said = chat(client, "what kernel is n1?");
  const { id } = await client.event("exec.approval.requested");

  await client.call("chat.abort", { sessionKey: SESSION });

  const resolved = await client.event("exec.approval.resolved");
  assertEquals([resolved.id, resolved.decision], [id, null]);
  assertMatch(await said, /^aborted/);
  assertEquals((await client.call("exec.approval.list", {})).pending, []);
});

Deno.test("the strictest of configuration, session and node holds", async () => {
  const model = asking("node_run", { node: "n1", argv: ["uname"] });
  await using gateway = await startTestGateway({
    models: only(model),
    config: { tools: { exec: { security: "full", ask: "off" } } },
  });
  await using node = await nodeWith(gateway, { security: "full", ask: "off" });
  const client = await gateway.connect();
  await client.call("sessions.patch", { key: SESSION, execSecurity: "deny" });
  await client.call("sessions.patch", { key: "asking", execAsk: "always" });

  const denied = await chat(client, "go");
  const said = chat(client, "go", "asking");
  const { id } = await client.event("exec.approval.requested");
  await client.call("exec.approval.resolve", { id, decision: "allow-once" });

  assertEquals(denied, "node_run failed: exec denied: host=node security=deny");
  assertEquals(await said, "Linux 6.1");
  assertEquals(node.runs.length, 1);
});

Deno.test("node_invoke runs no programs and changes no rules about them", async () => {
  for (const command of ["system.run", "system.execApprovals.set"]) {
    const model = asking("node_invoke", { node: "n1", command, params: { command: ["id"] } });
    await using gateway = await startTestGateway({ models: only(model) });
    await using node = await nodeWith(gateway, { security: "full", ask: "off" });
    const client = await gateway.connect();

    const answer = await chat(client, "go");

    assertEquals(answer, `node_invoke does not do ${command}. Programs run with node_run`);
    assertEquals(node.runs, []);
  }
});

Deno.test("a picture of a node goes to the model as one, and into the result of the run", async () => {
  const model = scriptedModel((turn) =>
    turn.messages.at(-1)!.role === "user"
      ? calls("node_invoke", { node: "phone", command: "system.which" })
      : says("Here it is")
  );
  await using gateway = await startTestGateway({ models: only(model) });
  await using _node = await serveNode(
    gateway,
    () => payload({ format: "jpg", base64: "AAAA", width: 2 }),
    { name: "phone" },
  );
  const client = await gateway.connect({ jsonrpc: true });

  const { result } = await client.call("agent", { message: "photo", idempotencyKey: "p" });

  assertEquals(result.payloads, [{
    text: "Here it is",
    mediaUrls: ["data:image/jpeg;base64,AAAA"],
  }]);
  const shown = model.turns[1].messages.at(-1)!.content;
  assertEquals(shown[1], { type: "image", mimeType: "image/jpeg", data: "AAAA" });
  assert(!lastText(model.turns[1]).includes("AAAA"));
});

Deno.test("files that no model can read are left out of what a node answers", async () => {
  const model = asking("node_invoke", { node: "phone", command: "system.which" });
  await using gateway = await startTestGateway({ models: only(model) });
  const clip = { format: "mp4", base64: "AbC0".repeat(25_000), note: "a ".repeat(3_000) };
  await using _node = await serveNode(gateway, () => payload(clip), { name: "phone" });
  const client = await gateway.connect();

  const answer = JSON.parse(await chat(client, "clip"));

  assertEquals(answer, { ...clip, base64: "[75000 bytes of base64 left out]" });
});

Deno.test("another conversation is shown without its images", async () => {
  const model = scriptedModel((turn) => {
    if (lastText(turn) !== "look back") return says("seen");
    return calls("session_history", { session: "agent:main:other" });
  });
  await using gateway = await startTestGateway({ models: only(model) });
  const client = await gateway.connect();
  await client.call("agent", {
    message: "a picture",
    sessionKey: "other",
    idempotencyKey: "p",
    attachments: [{ mimeType: "image/png", content: "QUJD".repeat(1_000) }],
  });
  await client.call("agent.wait", { runId: "p" });

  await chat(client, "look back");

  const told = lastText(model.turns.at(-1)!);
  assertStringIncludes(told, "[image left out: image/png]");
  assertStringIncludes(told, "a picture");
  assert(!told.includes("QUJD"));
});

Deno.test("a node that is away is told of softly, at once", async () => {
  const model = asking("node_run", { node: "away", argv: ["uname"] });
  await using gateway = await startTestGateway({ models: only(model) });
  const device = await newDevice();
  await using client = await gateway.connect();
  const node = await connectNode(gateway, { name: "away", device });
  await node[Symbol.asyncDispose]();
  const isAway = async () => {
    const { nodes } = await client.call("node.list", {});
    return nodes.every(({ connected }: Json) => !connected);
  };
  while (!await isAway());

  const answer = await chat(client, "go");

  assertMatch(answer, /^away is offline, so nothing was done there\. It was last seen .* ago\.$/);
});

Deno.test("what a node refuses comes back with where it came from, and whether it was done", async () => {
  const model = asking("node_invoke", { node: "n1", command: "system.which" });
  await using gateway = await startTestGateway({ models: only(model) });
  await using node = await connectNode(gateway, { name: "n1" });
  const client = await gateway.connect();

  const refused = chat(client, "go");
  await reply(node, await asked(node), { ok: false, error: { code: "X", message: "no such bin" } });
  const refusal = await refused;
  const lost = chat(client, "go");
  await asked(node);
  await node.client.close();

  assertEquals(refusal, "node_invoke failed: no such bin");
  assertMatch(await lost, /^node_invoke failed: .*node disconnected.* \(it may have been done\)$/);
});

Deno.test("a session can be given work by another one, but not round and round", async () => {
  const model = scriptedModel((turn) => {
    if (turn.messages.at(-1)!.role === "user") {
      return calls("session_send", { session: SESSION, message: "go on" });
    }
    return says(lastText(turn));
  });
  await using gateway = await startTestGateway({ models: only(model) });
  const client = await gateway.connect();

  const first = JSON.parse(await chat(client, "go"));
  const answers: string[] = [];
  for (let count = 0; count < 3; count++) {
    const { message } = await client.event("chat", ({ state }) => state === "final");
    answers.push(message.content[0].text);
  }

  assertEquals([first.accepted, first.session], [true, SESSION]);
  assertEquals(answers.at(-1), "it has been passed on too often; answer here instead");
});

Deno.test("the built-in agent does without a model what its commands say, and is honest about the rest", async () => {
  await using gateway = await startTestGateway();
  await using node = await nodeWith(gateway, { security: "allowlist", ask: "on-miss" }, true);
  const client = await gateway.connect();

  const help = await chat(client, "/help");
  const status = await chat(client, "/status");
  const nodes = await chat(client, "/nodes");
  const ran = await chat(client, "/run n1 uname '-a b'");
  const invoked = await chat(client, '/invoke n1 system.which {"bins":["git"]}');
  const wrong = await Promise.all([
    chat(client, "/run n1"),
    chat(client, "/run n1 a | b"),
    chat(client, "/invoke n1 x {"),
  ]);
  const whoami = await chat(client, "/whoami");
  const last = await chat(client, "/last");
  const other = await chat(client, "What is the weather?");

  for (const name of ["run", "invoke", "nodes", "status", "new", "stop", "whoami", "approve"]) {
    assertStringIncludes(help, `/${name} `);
  }
  assertStringIncludes(status, "Nodes: 1 of 1 online");
  assertMatch(nodes, /^• n1 \(linux\): online, \d commands$/);
  assertEquals(ran, "```\nLinux 6.1\n```");
  assertStringIncludes(invoked, '"exitCode":0');
  assertEquals(node.runs[0].command, ["uname", "-a b"]);
  for (const answer of wrong) assertStringIncludes(answer, "Write it like this: /");
  assertStringIncludes(whoami, "an owner of this gateway");
  assertEquals(last, whoami);
  assertStringIncludes(other, "zero auth add <provider>");
});

Deno.test("/new begins a conversation without what was said, and stops what runs", async () => {
  const model = scriptedModel((turn) => says(`${turn.messages.length}`));
  await using gateway = await startTestGateway({ models: only(model) });
  const client = await gateway.connect();

  const before = [await chat(client, "one"), await chat(client, "two")];
  const answer = await chat(client, "/new");
  const after = await chat(client, "three");

  assertEquals([before, answer, after], [["1", "3"], "This is a new conversation.", "1"]);
});
