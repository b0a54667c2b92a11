import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import type { TurnPart } from "../../gateway/agent/model.ts";
import type { Json } from "../support/client.ts";
import { startTestGateway, type TestGateway, TOKEN } from "../support/gateway.ts";
import {
  calls,
  hangs,
  lastText,
  only,
  says,
  type ScriptedModel,
  scriptedModel,
} from "../support/scripted_model.ts";

const PATH = "/v1/chat/completions";
const CONFIG = {
  gateway: { http: { endpoints: { chatCompletions: { enabled: true } } } },
  agents: { list: [{ id: "main" }, { id: "night" }] },
};

function start(model: ScriptedModel): Promise<TestGateway> {
  return startTestGateway({ models: only(model), config: CONFIG });
}

function ask(body: unknown, headers: Record<string, string> = {}): RequestInit {
  return {
    method: "POST",
    headers: { authorization: `Bearer ${TOKEN}`, "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  };
}

function user(content: unknown) {
  return [{ role: "user", content }];
}

/** The chunks of a stream as they come. */
async function* chunksOf(response: Response): AsyncGenerator<Json> {
  let text = "";
  for await (const part of response.body!.pipeThrough(new TextDecoderStream())) {
    text += part;
    for (let at = text.indexOf("\n\n"); at >= 0; at = text.indexOf("\n\n")) {
      const line = text.slice(0, at);
      text = text.slice(at + 2);
      if (!line.startsWith("data: ")) continue;
      yield line === "data: [DONE]" ? "[DONE]" : JSON.parse(line.slice(6));
    }
  }
}

async function sessionKeys(gateway: TestGateway): Promise<string[]> {
  const { json } = await gateway.rpc({ jsonrpc: "2.0", id: 1, method: "sessions.list" });
  return json.result.sessions.map(({ key }: Json) => key).sort();
}

Deno.test("a completion is the answer of one run, in the shape of OpenAI", async () => {
  const model = scriptedModel((turn) => says(`you said ${lastText(turn)}`));
  await using gateway = await start(model);

  const { status, json } = await gateway.http(PATH, ask({ model: "zero", messages: user("hi") }));

  assertEquals(status, 200);
  assertMatch(json.id, /^chatcmpl-/);
  assertEquals([json.object, json.model], ["chat.completion", "zero"]);
  assert(Number.isInteger(json.created));
  assertEquals(json.choices, [{
    index: 0,
    message: { role: "assistant", content: "you said hi" },
    finish_reason: "stop",
  }]);
  assertEquals(json.usage, { prompt_tokens: 10, completion_tokens: 5, total_tokens: 15 });
});

Deno.test("a stream tells words while the model says them, then [DONE]", async () => {
  const gate = Promise.withResolvers<void>();
  async function* script(): AsyncGenerator<TurnPart> {
    yield { type: "text", delta: "one " };
    await gate.promise;
    yield { type: "text", delta: "two" };
    yield { type: "usage", inputTokens: 3, outputTokens: 2 };
    yield { type: "end", stopReason: "length" };
  }
  await using gateway = await start(scriptedModel(() => script()));

  const response = await fetch(
    `http://127.0.0.1:${gateway.port}${PATH}`,
    ask({
      model: "zero",
      messages: user("count"),
      stream: true,
      stream_options: { include_usage: true },
    }),
  );
  const chunks: Json[] = [];
  for await (const chunk of chunksOf(response)) {
    chunks.push(chunk);
    // The second word comes only after the first one was read here.
    if (chunk.choices?.[0]?.delta.content === "one ") gate.resolve();
  }

  assertMatch(response.headers.get("content-type")!, /^text\/event-stream/);
  assertEquals(chunks.pop(), "[DONE]");
  assertEquals(chunks.pop().usage.total_tokens, 5);
  assertEquals(
    chunks.map(({ choices: [{ delta, finish_reason }] }) => [delta, finish_reason]),
    [
      [{ role: "assistant", content: "" }, null],
      [{ content: "one " }, null],
      [{ content: "two" }, null],
      [{}, "length"],
    ],
  );
  assertEquals(new Set(chunks.map(({ id, object }) => `${id} ${object}`)).size, 1);
});

Deno.test("what is said around a tool reads the same as a whole and as a stream", async () => {
  const model = scriptedModel((turn) =>
    turn.messages.at(-1)!.role === "user"
      ? calls("gateway_status", {}, "Let me look.")
      : says("All is well.")
  );
  await using gateway = await start(model);
  const body = { model: "zero", messages: user("how are you?") };

  const { json } = await gateway.http(PATH, ask(body));
  const response = await fetch(
    `http://127.0.0.1:${gateway.port}${PATH}`,
    ask({ ...body, stream: true }),
  );
  const streamed: string[] = [];
  for await (const chunk of chunksOf(response)) {
    streamed.push(chunk.choices?.[0]?.delta.content ?? "");
  }

  assertEquals(json.choices[0].message.content, "Let me look.\n\nAll is well.");
  assertEquals(streamed.join(""), "Let me look.\n\nAll is well.");
});

Deno.test("the conversation so far, system words and pictures reach the model", async () => {
  const model = scriptedModel(() => says("fine"));
  await using gateway = await start(model);
  const picture = "iVBORw0KGgo=";

  await gateway.http(
    PATH,
    ask({
      messages: [
        { role: "system", content: "Speak like a sailor." },
        { role: "user", content: "first" },
        { role: "assistant", content: "answer" },
        { role: "user", content: "second" },
        {
          role: "user",
          content: [
            { type: "text", text: "third" },
            { type: "image_url", image_url: { url: `data:image/png;base64,${picture}` } },
          ],
        },
      ],
    }),
  );

  const [{ system, messages }] = model.turns;
  assertStringIncludes(system, "Speak like a sailor.");
  assertEquals(messages.map(({ role }) => role), ["user", "assistant", "user"]);
  assertEquals(
    messages.map(({ content }) => content.find(({ type }) => type === "text")),
    ["first", "answer", "second\n\nthird"].map((text) => ({ type: "text", text })) as never,
  );
  const image = messages[2].content.find(({ type }) => type === "image");
  assertEquals(image, { type: "image", mimeType: "image/png", data: picture });
});

Deno.test("sessions: one a request, one a user, or the one a header names; agents by model or header", async () => {
  const model = scriptedModel(() => says("ok"));
  await using gateway = await start(model);
  const send = (body: Record<string, unknown>, headers = {}) =>
    gateway.http(PATH, ask({ messages: user("hi"), ...body }, headers));

  await send({ user: "Ada" });
  await send({ user: "Ada" });
  await send({ model: "zero:night", user: "Ada" });
  await send({ model: "zero/night", user: "b" });
  await send({ model: "agent:night", user: "c" });
  await send({ model: "gpt-4o", user: "d" });
  await send({ model: "zero" }, { "x-zero-session-key": "home" });
  await send({ model: "zero" }, { "x-zero-agent-id": "night", "x-zero-session-key": "desk" });
  await send({ model: "zero" }, { "x-zero-agent": "night", "x-zero-session-key": "lap" });
  const named = await sessionKeys(gateway);
  await send({});
  await send({});
  const fresh = (await sessionKeys(gateway)).filter((key) => !named.includes(key));

  assertEquals(named, [
    "agent:main:home",
    "agent:main:openai-user:ada",
    "agent:main:openai-user:d",
    "agent:night:desk",
    "agent:night:lap",
    "agent:night:openai-user:ada",
    "agent:night:openai-user:b",
    "agent:night:openai-user:c",
  ]);
  assertEquals(fresh.length, 2);
  for (const key of fresh) assertMatch(key, /^agent:main:openai:[0-9a-f-]{36}$/);
  // A session that goes on remembers by itself; what is sent along again is not said twice.
  const again = [
    { role: "user", content: "hi" },
    { role: "assistant", content: "ok" },
    { role: "user", content: "more" },
  ];
  await send({ user: "Ada", messages: again });
  assertEquals(
    model.turns.at(-1)!.messages.map(({ role }) => role).join(),
    [
      "user,assistant",
      "user,assistant",
      "user",
    ].join(),
  );
});

Deno.test("requests that cannot be answered say why", async () => {
  await using gateway = await start(scriptedModel(() => says("never")));
  const rows: [unknown, string][] = [
    ["no json", "The body is no JSON"],
    [{}, "must have required property 'messages'"],
    [{ messages: "hi" }, "at /messages: must be array"],
    [{ messages: [] }, "Missing user message in `messages`."],
    [{ messages: [{ role: "system", content: "x" }] }, "Missing user message in `messages`."],
    [{ messages: user("") }, "Missing user message in `messages`."],
    [{ messages: user("x"), stream: "yes" }, "at /stream: must be boolean"],
    [{ model: "zero:nobody", messages: user("x") }, 'unknown agent id "nobody"'],
    [
      { messages: user([{ type: "image_url", image_url: { url: "https://a.example/b.png" } }]) },
      "image_url must be a data: URL",
    ],
    [
      { user: "u".repeat(600), messages: user("x") },
      "invalid session key (at most 512 characters)",
    ],
  ];

  for (const [body, message] of rows) {
    const { status, json } = await gateway.http(PATH, ask(body));
    assertEquals([status, json], [400, { error: { message, type: "invalid_request_error" } }]);
  }
  const large = await gateway.http(PATH, ask({ messages: user("x".repeat(1_048_576)) }));
  assertEquals([large.status, large.json.error.type], [413, "too_large"]);
  const get = await gateway.http(PATH);
  assertEquals([get.status, get.headers.get("allow")], [405, "POST"]);
});

Deno.test("a run that fails is a 500, or the last word of a stream", async () => {
  const model = scriptedModel(function* () {
    yield { type: "text", delta: "I will" };
    throw new Error("broken");
  });
  await using gateway = await start(model);
  const body = { messages: user("go") };

  const { status, json } = await gateway.http(PATH, ask(body));
  const response = await fetch(
    `http://127.0.0.1:${gateway.port}${PATH}`,
    ask({ ...body, stream: true }),
  );
  const chunks: Json[] = [];
  for await (const chunk of chunksOf(response)) chunks.push(chunk);

  assertEquals([status, json.error.type], [500, "api_error"]);
  assertMatch(json.error.message, /^internal error \(id /);
  assertEquals(chunks.at(-1), "[DONE]");
  assertEquals(chunks.at(-2).error.type, "api_error");
});

Deno.test("a client that goes away ends its run, streaming or not", async () => {
  for (const stream of [true, false]) {
    const begun = Promise.withResolvers<void>();
    const ended = Promise.withResolvers<void>();
    const model = scriptedModel((turn) => {
      turn.signal.addEventListener("abort", () => ended.resolve());
      begun.resolve();
      return hangs(turn.signal, "well");
    });
    await using gateway = await start(model);
    const leaving = new AbortController();

    const asked = fetch(`http://127.0.0.1:${gateway.port}${PATH}`, {
      ...ask({ messages: user("think"), stream }),
      signal: leaving.signal,
    }).then((response) => response.body?.cancel()).catch(() => {});
    await begun.promise;
    leaving.abort();

    await ended.promise;
    await asked;
  }
});

Deno.test("only the shared secret opens it, and it is not there unless it is switched on", async () => {
  await using gateway = await start(scriptedModel(() => says("ok")));
  await using off = await startTestGateway();
  await using open = await startTestGateway({ config: CONFIG, flags: { auth: "none" } });
  const body = { messages: user("hi") };

  for (const authorization of ["", "Bearer wrong", `Basic ${btoa(`:${TOKEN}`)}`]) {
    const { status, json } = await gateway.http(PATH, ask(body, { authorization }));
    assertEquals([status, json.error.type], [401, "unauthorized"]);
  }
  assertEquals((await open.http(PATH, ask(body))).status, 401);
  const { status, text } = await off.http(PATH, ask(body));
  assertEquals([status, text], [404, "Not Found"]);
});

Deno.test("without a model the built-in agent answers, commands included", async () => {
  await using gateway = await startTestGateway({ config: CONFIG });

  const said = async (content: string) =>
    (await gateway.http(PATH, ask({ messages: user(content) }))).json.choices[0].message.content;

  assertStringIncludes(await said("hello"), "zero auth add <provider>");
  assertMatch(await said("/whoami"), /an owner of this gateway/);
});
