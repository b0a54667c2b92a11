import { assert, assertEquals, assertRejects } from "@std/assert";
import { ModelError, type Turn, type TurnPart } from "../../../gateway/agent/model.ts";
import {
  ApiModel,
  type ModelTraits,
  type Provider,
  type ProviderApi,
} from "../../../gateway/agent/provider.ts";
import type { Message } from "../../../gateway/sessions.ts";
import { type ModelApi, type Reply, startModelApi } from "../../support/model_api.ts";

const APIS: ProviderApi[] = ["openai-completions", "anthropic-messages"];

for (const api of APIS) {
  Deno.test(`${api}: text comes as it is written, however the bytes are cut`, async () => {
    const text = "Grüße 👋, a longer answer";
    await using server = startModelApi([{ text, chunkBytes: 3, usage: { input: 7, output: 9 } }]);

    const parts = await spoken(modelOf(server, { api }), turn());

    const deltas = parts.filter(({ type }) => type === "text");
    assert(deltas.length > 5, `${deltas.length} parts`);
    assertEquals(textOf(parts), text);
    assertEquals(parts.slice(-2), [
      { type: "usage", inputTokens: 7, outputTokens: 9 },
      { type: "end", stopReason: "stop" },
    ]);
  });

  Deno.test(`${api}: the provider is told system, transcript and tools`, async () => {
    await using server = startModelApi([{ text: "ok" }]);
    const result: Message = {
      role: "toolResult",
      content: [{ type: "text", text: "Linux" }, {
        type: "image",
        mimeType: "image/png",
        data: "aGk=",
      }],
      timestamp: 3,
      toolCallId: "c1",
      toolName: "node_run",
    };

    await spoken(
      modelOf(server, { api }),
      turn({
        messages: [
          user("what kernel?"),
          {
            role: "assistant",
            content: [
              { type: "text", text: "Looking." },
              { type: "toolCall", id: "c1", name: "node_run", arguments: { node: "n1" } },
              { type: "toolCall", id: "c2", name: "node_list", arguments: {} },
            ],
            timestamp: 2,
          },
          result,
          user("and now?"),
        ],
      }),
    );

    const [{ body, headers }] = server.requests;
    const sent = JSON.stringify(body);
    for (
      const part of [
        "be brief",
        "what kernel?",
        "Looking.",
        "node_run",
        "Linux",
        "aGk=",
        "and now?",
      ]
    ) {
      assert(sent.includes(part), `${part} is missing`);
    }
    assert(sent.includes("interrupted"), "a call without a result has one");
    assertEquals(body.tools?.length, 1);
    const key = headers.get("authorization") ?? headers.get("x-api-key");
    assertEquals(key?.replace("Bearer ", ""), "test-key");
  });

  Deno.test(`${api}: tool calls come with their arguments, after the text`, async () => {
    await using server = startModelApi([{
      text: "One moment",
      calls: [
        { id: "c1", name: "node_run", args: { node: "n1", argv: ["uname"] } },
        { id: "c2", name: "node_list", args: {} },
      ],
    }]);

    const parts = await spoken(modelOf(server, { api }), turn());

    assertEquals(parts.filter(({ type }) => type === "toolCall"), [
      {
        type: "toolCall",
        id: "c1",
        name: "node_run",
        args: { node: "n1", argv: ["uname"] },
      },
      { type: "toolCall", id: "c2", name: "node_list", args: {} },
    ]);
    assertEquals(parts.at(-1), { type: "end", stopReason: "toolUse" });
  });

  Deno.test(`${api}: arguments that are no JSON object are handed on as such`, async () => {
    await using server = startModelApi([
      { calls: [{ id: "c1", name: "node_run", args: null, rawArgs: '{"node": "n1", ' }] },
    ]);

    const parts = await spoken(modelOf(server, { api }), turn());

    const call = parts.find((part) => part.type === "toolCall");
    assertEquals(call?.name, "node_run");
    assert(call?.problem, "the problem is named");
  });

  Deno.test(`${api}: what fails before a word was heard is tried again`, async () => {
    const failures: Reply[] = [
      { status: 500, body: { error: { message: "oh no" } } },
      { status: 529, body: "<html>busy</html>" },
      { status: 429, body: {}, headers: { "retry-after": "0" } },
      { text: "half", dropAfterBytes: 0 },
    ];
    for (const failure of failures) {
      await using server = startModelApi([failure, failure, { text: "there" }]);
      const pauses: number[] = [];

      const parts = await spoken(modelOf(server, { api, pauses }), turn());

      assertEquals(textOf(parts), "there", JSON.stringify(failure));
      assertEquals([server.requests.length, pauses.length], [3, 2]);
    }
  });

  Deno.test(`${api}: refusals say what to do, and nothing of the key`, async () => {
    const rows: [Reply, Partial<ModelError>, number][] = [
      [{ status: 400, body: { error: { message: "no such thing" } } }, {
        kind: "badRequest",
        isTransient: false,
      }, 1],
      [{ status: 404, body: {} }, { kind: "badRequest", isTransient: false }, 1],
      [{ status: 503, body: {} }, { kind: "overloaded", isTransient: true }, 3],
      [
        { status: 429, body: {}, headers: { "retry-after": "3600" } },
        { kind: "rateLimit", isTransient: true },
        1,
      ],
      [{ raw: "data: {not json\n\n" }, { kind: "protocol", isTransient: true }, 3],
    ];
    for (const [reply, { kind, isTransient }, requests] of rows) {
      await using server = startModelApi([reply]);

      const error = await assertRejects(
        () => spoken(modelOf(server, { api }), turn()),
        ModelError,
      );

      assertEquals([error.kind, error.isTransient, server.requests.length], [
        kind,
        isTransient,
        requests,
      ], JSON.stringify(reply));
      assert(error.fix.length > 0);
    }
    await using server = startModelApi([{ text: "never" }]);
    const error = await assertRejects(
      () => spoken(modelOf(server, { api, key: "wrong-key-1234" }), turn()),
      ModelError,
      "refused the key",
    );
    assertEquals([error.kind, error.fix], ["auth", "zero auth add test"]);
    assert(!Deno.inspect(error).includes("wrong-key-1234"), Deno.inspect(error));
  });

  Deno.test(`${api}: an answer that breaks off is an error, and is not begun again`, async () => {
    for (const how of [{ dropAfterBytes: 700 }, { isUnfinished: true }]) {
      await using server = startModelApi([{ text: "a long answer ".repeat(20), ...how }]);
      const heard: TurnPart[] = [];

      const error = await assertRejects(async () => {
        for await (const part of modelOf(server, { api }).respond(turn())) heard.push(part);
      }, ModelError);

      assertEquals([error.isTransient, server.requests.length], [true, 1], JSON.stringify(how));
      assert(!heard.some(({ type }) => type === "end"));
    }
  });

  Deno.test(`${api}: a provider that falls silent is given up`, async () => {
    await using server = startModelApi([{ text: "hello there", stallAfterBytes: 900 }]);

    const error = await assertRejects(
      () => spoken(modelOf(server, { api, idleTimeoutMs: 200 }), turn()),
      ModelError,
      "said nothing",
    );

    assertEquals(error.kind, "network");
  });

  Deno.test(`${api}: one that drips is listened to as long as it speaks`, async () => {
    await using server = startModelApi([{ text: "drip drop", chunkBytes: 400, dripMs: 60 }]);

    const parts = await spoken(modelOf(server, { api, idleTimeoutMs: 5_000 }), turn());

    assertEquals(textOf(parts), "drip drop");
  });

  Deno.test(`${api}: stopping it ends the request`, async () => {
    await using server = startModelApi([{ text: "hello there", stallAfterBytes: 900 }]);
    const stop = new AbortController();
    const reason = new Error("stopped by the test");

    const error = await assertRejects(async () => {
      const model = modelOf(server, { api });
      for await (const _ of model.respond(turn({ signal: stop.signal }))) stop.abort(reason);
    });

    assertEquals(error, reason);
  });
}

Deno.test("an image of a kind that providers refuse is named, not sent", async () => {
  await using server = startModelApi([{ text: "ok" }]);
  const image = { type: "image" as const, mimeType: "image/svg+xml", data: "PHN2Zz4=" };
  const look = user("look");

  await spoken(
    modelOf(server),
    turn({ messages: [{ ...look, content: [...look.content, image] }] }),
  );

  const sent = JSON.stringify(server.requests[0].body.messages);
  assert(sent.includes("an image that cannot be read: image/svg+xml"), sent);
  assert(!sent.includes("PHN2Zz4="), sent);
});

Deno.test("anthropic-messages: thinking is not asked for between a tool and its answer", async () => {
  await using server = startModelApi([{ text: "ok" }]);
  const traits = { isReasoning: true, maxTokens: 8_000 };
  const model = modelOf(server, { api: "anthropic-messages" }, traits);
  const call = { type: "toolCall" as const, id: "c1", name: "node_list", arguments: {} };
  const result = { ...user("none"), role: "toolResult" as const, toolCallId: "c1" };
  const middle = [
    user("which nodes?"),
    { ...user(""), role: "assistant" as const, content: [call] },
    result,
  ];

  await spoken(model, turn({ thinking: "low" }));
  await spoken(model, turn({ thinking: "low", messages: middle }));

  assertEquals(server.requests.map(({ body }) => body.thinking), [
    { type: "enabled", budget_tokens: 2_048 },
    undefined,
  ]);
});

Deno.test("a provider that is not there is named with its address setting", async () => {
  const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const { port } = listener.addr as Deno.NetAddr;
  listener.close();
  const model = modelOf({ baseUrl: `http://127.0.0.1:${port}/v1` }, { api: "openai-completions" });

  const error = await assertRejects(() => spoken(model, turn()), ModelError, "Cannot reach test");

  assert(error.fix.includes("models.providers.test.baseUrl"));
});

Deno.test("a transcript longer than the model can read loses its oldest turns", async () => {
  await using server = startModelApi([{ text: "ok" }]);
  const messages = Array.from({ length: 200 }, (_, index): Message[] => [
    user(`question ${index} ${"x".repeat(200)}`),
    { role: "assistant", content: [{ type: "text", text: "answer" }], timestamp: 1 },
  ]).flat();

  await spoken(
    modelOf(server, { api: "openai-completions", contextTokens: 2_000 }),
    turn({ messages: [...messages, user("the last one")] }),
  );

  const [{ body }] = server.requests;
  const sent = JSON.stringify(body.messages);
  assert(sent.includes("the last one") && sent.includes("question 199"));
  assert(!sent.includes("question 0 "));
  assertEquals(body.messages[1].role, "user");
});

function modelOf(
  { baseUrl }: Pick<ModelApi, "baseUrl">,
  {
    api = "openai-completions",
    key = "test-key",
    pauses = [],
    idleTimeoutMs = 30_000,
    contextTokens = 128_000,
  }: {
    api?: ProviderApi;
    key?: string;
    pauses?: number[];
    idleTimeoutMs?: number;
    contextTokens?: number;
  } = {},
  traits: Partial<ModelTraits> = {},
): ApiModel {
  const provider: Provider = {
    name: "test",
    api,
    baseUrl,
    idleTimeoutMs,
    key: () => Promise.resolve(key),
    forgetKey() {},
  };
  return new ApiModel(provider, { id: "test-model", contextTokens, ...traits }, {
    pause(ms) {
      pauses.push(ms);
      return Promise.resolve();
    },
  });
}

function turn(part: Partial<Turn> = {}): Turn {
  return {
    system: "be brief",
    messages: [user("hello")],
    tools: [{
      name: "node_run",
      description: "Run a command",
      parameters: { type: "object", properties: { node: { type: "string" } } },
    }],
    signal: new AbortController().signal,
    ...part,
  };
}

function user(text: string): Message {
  return { role: "user", content: [{ type: "text", text }], timestamp: 1 };
}

async function spoken(model: ApiModel, turn: Turn): Promise<TurnPart[]> {
  return await Array.fromAsync(model.respond(turn));
}

function textOf(parts: readonly TurnPart[]): string {
  return parts.map((part) => part.type === "text" ? part.delta : "").join("");
}
