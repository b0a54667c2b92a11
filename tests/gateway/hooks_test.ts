import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { filled } from "../../gateway/hooks.ts";
import type { Json } from "../support/client.ts";
import { OWNER, startBotApi } from "../support/bot_api.ts";
import { REMOTE, startTestGateway, type TestGateway, TOKEN } from "../support/gateway.ts";
import { calls, lastText, only, says, scriptedModel } from "../support/scripted_model.ts";

const HOOK_TOKEN = "hook-token-0123456789";
const HOOKS = { enabled: true, token: HOOK_TOKEN };

function post(
  gateway: TestGateway,
  path: string,
  body: unknown,
  headers: Record<string, string> = { authorization: `Bearer ${HOOK_TOKEN}` },
) {
  return gateway.http(path, {
    method: "POST",
    headers,
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
}

async function call(gateway: TestGateway, method: string, params: unknown = {}): Promise<Json> {
  return (await gateway.rpc({ jsonrpc: "2.0", id: 1, method, params })).json.result;
}

Deno.test("wake tells the main session something", async () => {
  await using gateway = await startTestGateway({ config: { hooks: HOOKS } });

  const now = await post(gateway, "/hooks/wake", { text: " The door bell rang " });
  const later = await post(gateway, "/hooks/wake", { text: "Rain", mode: "next-heartbeat" }, {
    "x-zero-token": HOOK_TOKEN,
  });
  const blank = await post(gateway, "/hooks/wake", { text: "  " });
  const wrong = await post(gateway, "/hooks/wake", { text: "x", mode: "later" });

  assertEquals([now.status, now.json], [200, { ok: true, mode: "now" }]);
  assertEquals([later.status, later.json], [200, { ok: true, mode: "next-heartbeat" }]);
  assertEquals([blank.status, blank.json], [400, { ok: false, error: "text required" }]);
  assertEquals([wrong.status, wrong.json.ok], [400, false]);
  const { queuedSystemEvents } = await call(gateway, "status");
  assertEquals(queuedSystemEvents, ["The door bell rang", "Rain"]);
});

Deno.test("agent starts a run in a session of hooks, and the main session is told what came of it", async () => {
  const model = scriptedModel(() => says("Build 7 is broken"));
  await using gateway = await startTestGateway({ models: only(model), config: { hooks: HOOKS } });
  const client = await gateway.connect();

  const { status, json } = await post(gateway, "/hooks/agent", {
    message: "build 7 failed",
    name: "CI",
    sessionKey: "hook:ci",
    wakeMode: "next-heartbeat",
  });
  const { status: ended } = await client.call("agent.wait", { runId: json.runId });

  assertEquals([status, json.ok, ended], [202, true, "ok"]);
  const { messages } = await client.call("chat.history", { sessionKey: "agent:main:hook:ci" });
  assertEquals(messages.map(({ role }: Json) => role), ["user", "assistant"]);
  const { queuedSystemEvents } = await client.call("status", {});
  assertEquals(queuedSystemEvents, ["CI: Build 7 is broken"]);
});

Deno.test("what a hook's run says reaches the chat that is named, and not the main session as well", async () => {
  const bot = startBotApi();
  await using _bot = bot;
  await using gateway = await startTestGateway({
    models: only(scriptedModel(() => says("The build is broken"))),
    config: {
      hooks: HOOKS,
      channels: { telegram: { botToken: bot.token, apiRoot: bot.root, allowFrom: [OWNER.id] } },
    },
  });

  await post(gateway, "/hooks/agent", { message: "x", channel: "telegram", to: "55" });
  const { params } = await bot.until(({ method }) => method === "sendMessage");
  const unknown = await post(gateway, "/hooks/agent", { message: "x", channel: "pigeon" });

  assertEquals([params.chat_id, params.text], ["55", "The build is broken"]);
  assertEquals((await call(gateway, "status")).queuedSystemEvents, []);
  assertEquals([unknown.status, unknown.json.error], [400, "unknown channel: pigeon"]);
});

Deno.test("hooks have no tools and reach only sessions of hooks, unless they are trusted", async () => {
  const model = scriptedModel((turn) =>
    turn.messages.at(-1)!.role === "user" ? calls("node_list", {}) : says(lastText(turn))
  );
  const run = async (hooks: Record<string, unknown>, body: Record<string, unknown>) => {
    await using gateway = await startTestGateway({
      models: only(model),
      config: { hooks: { ...HOOKS, ...hooks } },
    });
    const client = await gateway.connect();
    const { status, json } = await post(gateway, "/hooks/agent", body);
    if (status !== 202) return [status, json.error];
    const { runId } = json;
    await client.call("agent.wait", { runId });
    const { messages } = await client.call("chat.history", { sessionKey: body.sessionKey });
    return messages.at(-1).content[0].text;
  };

  const refused = "sessionKey must begin with hook: unless hooks.trusted is set";
  assertEquals(await run({}, { message: "go", sessionKey: "main" }), [400, refused]);
  assertEquals(await run({}, { message: "go", sessionKey: "agent:main:main" }), [400, refused]);
  assertEquals(
    await run({}, { message: "/nodes", sessionKey: "hook:x" }),
    "/nodes is for the owner of this gateway.",
  );
  assertEquals(
    await run({}, { message: "go", sessionKey: "hook:x" }),
    "there is no tool node_list here",
  );
  assertEquals(await run({ trusted: true }, { message: "go", sessionKey: "main" }), '{"nodes":[]}');
});

Deno.test("a mapping puts fields of the request into words", async () => {
  const model = scriptedModel(() => says("noted"));
  await using gateway = await startTestGateway({
    models: only(model),
    config: {
      hooks: {
        ...HOOKS,
        path: "/in/",
        mappings: [
          {
            path: "github",
            message: "{{pull.user}} opened #{{pull.number}}: {{labels.0}} {{missing}}",
            sessionKey: "hook:gh:{{repo}}",
            deliver: false,
          },
          { path: "door/bell", action: "wake", name: "Door", message: "{{who}}" },
        ],
      },
    },
  });
  const client = await gateway.connect();

  const { status, json } = await post(gateway, "/in/github", {
    pull: { user: "ada", number: 7 },
    labels: [{ name: "bug" }],
    repo: "zero",
  });
  await client.call("agent.wait", { runId: json.runId });
  const rang = await post(gateway, "/in/door/bell", { who: "Bob" });
  const nobody = await post(gateway, "/in/door/bell", {});

  assertEquals(status, 202);
  const { messages } = await client.call("chat.history", { sessionKey: "agent:main:hook:gh:zero" });
  assertEquals(messages[0].content[0].text, 'ada opened #7: {"name":"bug"}');
  assertEquals([rang.status, rang.json], [200, { ok: true, mode: "now" }]);
  assertEquals([nobody.status, nobody.text], [204, ""]);
  const told = model.turns.map((turn) => lastText(turn)).concat(
    (await client.call("status", {})).queuedSystemEvents,
  );
  assert(told.some((text) => text.includes("Door: Bob")), told.join("\n"));
});

Deno.test("templates take what is there, whole or in part, and nothing of the object's own kind", () => {
  const body = { a: { b: ["x", { c: 1 }] }, t: "{{a.b.0}}", n: null };
  const rows: [string, string][] = [
    ["plain", "plain"],
    ["{{a.b.0}}", "x"],
    ["{{ a.b.1.c }}", "1"],
    ["{{a.b}}", '["x",{"c":1}]'],
    ["{{.}}", JSON.stringify(body)],
    ["{{t}}", "{{a.b.0}}"],
    ["<{{n}}{{a.x.y}}{{constructor}}{{a.__proto__}}{{a.b.2}}>", "<>"],
    ["{{}}{{ }", "{{ }"],
  ];

  for (const [template, expected] of rows) assertEquals(filled(template, body), expected, template);
});

Deno.test("only the token of hooks opens them, in a header and never in the address", async () => {
  await using gateway = await startTestGateway({ config: { hooks: HOOKS } });
  const body = { text: "x" };
  const rows: Record<string, string>[] = [
    {},
    { authorization: "Bearer wrong" },
    { authorization: `Bearer ${TOKEN}` },
    { "x-zero-token": `${HOOK_TOKEN}x` },
    { cookie: `token=${HOOK_TOKEN}` },
  ];

  for (const headers of rows) {
    const { status, text } = await post(gateway, "/hooks/wake", body, headers);
    assertEquals([status, text], [401, "Unauthorized"], JSON.stringify(headers));
  }
  const inUrl = await post(gateway, `/hooks/wake?token=${HOOK_TOKEN}`, body);
  assertEquals(inUrl.status, 403);
  assertStringIncludes(inUrl.json.fix, "x-zero-token");
  assertEquals((await call(gateway, "status")).queuedSystemEvents, []);
  assert(!(await gateway.log()).includes(HOOK_TOKEN));
  const rpc = await gateway.rpc({ jsonrpc: "2.0", id: 1, method: "health" }, {
    authorization: `Bearer ${HOOK_TOKEN}`,
  });
  assertEquals(rpc.status, 401);
});

Deno.test("guesses at the token are counted with all others", async () => {
  await using gateway = await startTestGateway({ config: { hooks: HOOKS } });
  const guess = (token: string) =>
    post(gateway, "/hooks/wake", { text: "x" }, { ...REMOTE, authorization: `Bearer ${token}` });

  for (let count = 0; count < 10; count++) assertEquals((await guess("wrong")).status, 401);
  const locked = await guess(HOOK_TOKEN);

  assertEquals(locked.status, 429);
  assertMatch(locked.headers.get("retry-after")!, /^\d+$/);
});

Deno.test("other verbs, paths, bodies and sizes are turned away", async () => {
  await using gateway = await startTestGateway({
    config: { hooks: { ...HOOKS, maxBodyBytes: 100 } },
  });
  await using off = await startTestGateway();
  const headers = { authorization: `Bearer ${HOOK_TOKEN}` };

  const get = await gateway.http("/hooks/wake", { headers });
  assertEquals([get.status, get.headers.get("allow")], [405, "POST"]);
  for (const path of ["/hooks", "/hooks/", "/hooks/other", "/hooks/wake/x", "/hooksx"]) {
    const { status, text } = await post(gateway, path, { text: "x" });
    assertEquals([status, text], [404, "Not Found"], path);
  }
  for (const body of ["no json", "[]", "1", "null"]) {
    const { status, json } = await post(gateway, "/hooks/wake", body);
    assertEquals([status, json.ok], [400, false], body);
  }
  const large = await post(gateway, "/hooks/wake", { text: "x".repeat(100) });
  assertEquals([large.status, large.json.ok], [413, false]);
  const message = await post(gateway, "/hooks/agent", {});
  assertEquals([message.status, message.json.error], [400, "message required"]);
  assertEquals((await post(off, "/hooks/wake", { text: "x" })).status, 404);
});
