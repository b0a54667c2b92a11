import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { startTestGateway, type TestGateway, TOKEN } from "../support/gateway.ts";
import { asked, connectNode, reply } from "../support/node.ts";

function invoke(gateway: TestGateway, body: unknown, headers: Record<string, string> = {}) {
  return gateway.http("/tools/invoke", {
    method: "POST",
    headers: { authorization: `Bearer ${TOKEN}`, "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
}

Deno.test("a tool is called by its name, and answers in words and as values", async () => {
  await using gateway = await startTestGateway();
  await using _node = await connectNode(gateway, { name: "n1" });

  const { status, json } = await invoke(gateway, { tool: "node_list" });

  assertEquals([status, json.ok, json.result.content[0].type], [200, true, "text"]);
  assertEquals(json.result.details.nodes.map(({ node }: { node: string }) => node), ["n1"]);
  assertEquals(JSON.parse(json.result.content[0].text), json.result.details);
});

Deno.test("a node does what it is asked to through a tool", async () => {
  await using gateway = await startTestGateway();
  await using node = await connectNode(gateway, { name: "n1" });

  const working = invoke(gateway, {
    tool: "node_invoke",
    args: { node: "n1", command: "system.which", params: { bins: ["git"] } },
  });
  const request = await asked(node);
  await reply(node, request, { ok: true, payload: { bins: { git: "/usr/bin/git" } } });
  const { status, json } = await working;

  assertEquals([status, request.command], [200, "system.which"]);
  assertStringIncludes(json.result.content[0].text, "/usr/bin/git");
});

Deno.test("a dry run checks and does nothing", async () => {
  await using gateway = await startTestGateway();
  const args = { session: "desk", message: "hello" };

  const fine = await invoke(gateway, { tool: "session_send", args, dryRun: true });
  const wrong = await invoke(gateway, { tool: "session_send", args: { x: 1 }, dryRun: true });
  const { json: { result } } = await gateway.rpc({
    jsonrpc: "2.0",
    id: 1,
    method: "sessions.list",
  });

  assertEquals([fine.status, fine.json], [200, {
    ok: true,
    result: { dryRun: true, tool: "session_send", args },
  }]);
  assertEquals([wrong.status, wrong.json.error.type], [400, "tool_error"]);
  assertEquals(result.count, 0);
});

Deno.test("what cannot be called says why", async () => {
  await using gateway = await startTestGateway();

  const missing = await invoke(gateway, { tool: "no_such_tool" });
  assertEquals([missing.status, missing.json], [404, {
    ok: false,
    error: { type: "not_found", message: "Tool not available: no_such_tool" },
  }]);
  for (const body of ["no json", {}, { tool: "" }, { tool: "node_list", extra: 1 }, []]) {
    const { status, json } = await invoke(gateway, body);
    assertEquals([status, json.ok, json.error.type], [400, false, "invalid_request"]);
  }
  const bad = await invoke(gateway, { tool: "node_invoke", args: { node: 1 } });
  assertEquals([bad.status, bad.json.error.type], [400, "tool_error"]);
  assertMatch(bad.json.error.message, /^invalid node_invoke arguments: /);
  const unknown = await invoke(gateway, { tool: "node_describe", args: { node: "nowhere" } });
  assertEquals([unknown.status, unknown.json.error.message], [
    400,
    "unknown node: nowhere (known: none)",
  ]);
  const large = await invoke(gateway, " ".repeat(2_097_153));
  assertEquals([large.status, large.json.error.type], [413, "too_large"]);
  const get = await gateway.http("/tools/invoke");
  assertEquals([get.status, get.headers.get("allow")], [405, "POST"]);
});

Deno.test("only the shared secret calls tools, and nobody in mode none", async () => {
  await using gateway = await startTestGateway();
  await using open = await startTestGateway({ flags: { auth: "none" } });

  for (const authorization of ["", "Bearer wrong", TOKEN]) {
    const { status, json } = await invoke(gateway, { tool: "node_list" }, { authorization });
    assertEquals([status, json], [401, {
      error: { message: "Unauthorized", type: "unauthorized" },
    }]);
  }
  assertEquals((await invoke(open, { tool: "node_list" })).status, 401);
});
