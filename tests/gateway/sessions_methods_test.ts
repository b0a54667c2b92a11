import { assert, assertEquals } from "@std/assert";
import type { Json } from "../support/client.ts";
import { startTestGateway, type TestGateway } from "../support/gateway.ts";
import { startModelApi } from "../support/model_api.ts";

const READ = { scopes: ["operator.read"] };

/** A gateway with a conversation of some words. */
async function gatewayWith(
  key: string,
  words: readonly string[],
  config?: Record<string, unknown>,
) {
  const gateway = await startTestGateway({ config });
  const client = await gateway.connect();
  await client.call("sessions.patch", { key });
  for (const message of words) {
    await client.call("chat.inject", { sessionKey: key, message });
  }
  return { gateway, client, [Symbol.asyncDispose]: () => gateway[Symbol.asyncDispose]() };
}

async function messageOf(gateway: TestGateway, method: string, params: Json): Promise<string> {
  return (await (await gateway.connect()).refused(method, params)).message;
}

Deno.test("sessions.list shows rows of the protocol, with titles and last messages on demand", async () => {
  const config = {
    agents: { defaults: { model: "local/org/m1" } },
    models: {
      providers: {
        local: {
          baseUrl: "http://127.0.0.1:1/v1",
          models: [{ id: "org/m1", contextWindow: 4096 }],
        },
      },
    },
  };
  await using at = await gatewayWith("x", ["hello", "and more"], config);
  await at.client.call("sessions.patch", { key: "x", model: "other/m2", label: "mine" });

  const { sessions: [plain], ...rest } = await at.client.call("sessions.list", {});
  const { sessions: [full] } = await at.client.call("sessions.list", {
    includeDerivedTitles: true,
    includeLastMessage: true,
  });

  assertEquals([rest.count, rest.path], [1, at.gateway.paths.database]);
  assertEquals(rest.defaults, { modelProvider: "local", model: "org/m1", contextTokens: 4096 });
  assertEquals([plain.key, plain.kind, plain.label], ["agent:main:x", "direct", "mine"]);
  assertEquals([plain.modelProvider, plain.model, plain.totalTokens], ["other", "m2", 0]);
  assertEquals([plain.derivedTitle, plain.lastMessagePreview], [undefined, undefined]);
  assertEquals(full.lastMessagePreview, "and more");
});

Deno.test("sessions.resolve finds by key, id and label, and names what it did not find", async () => {
  await using at = await gatewayWith("agent:anna:x", []);
  const { entry } = await at.client.call("sessions.patch", { key: "agent:anna:x", label: "mine" });
  const key = "agent:anna:x";

  for (
    const by of [
      { key },
      { key: "x", agentId: "anna" },
      { sessionId: entry.sessionId },
      { label: "mine" },
      { label: "mine", agentId: "Anna" },
    ]
  ) {
    assertEquals(await at.client.call("sessions.resolve", by), { ok: true, key });
  }
  const wrong: [Json, string][] = [
    [{}, "Either key, sessionId, or label is required"],
    [{ key: " " }, "Either key, sessionId, or label is required"],
    [{ key, label: "mine" }, "Provide either key, sessionId, or label (not multiple)"],
    [{ key: "x" }, "No session found: x"],
    [{ label: "mine", agentId: "main" }, "No session found: mine"],
    [{ label: "mine", spawnedBy: "agent:main:main" }, "No session found: mine"],
  ];
  for (const [params, message] of wrong) {
    assertEquals(await messageOf(at.gateway, "sessions.resolve", params), message);
  }
  const reader = await at.gateway.connect(READ);
  assertEquals(await reader.call("sessions.resolve", { key }), { ok: true, key });
  const old = await at.gateway.connect({ ...READ, protocol: 3 });
  const { message } = await old.refused("sessions.resolve", { key });
  assertEquals(message, "missing scope: operator.admin");
});

Deno.test("sessions.preview answers for 64 keys, whatever they are", async () => {
  await using at = await gatewayWith("x", ["one", "two"]);
  await at.client.call("sessions.patch", { key: "quiet" });
  const keys = ["x", "quiet", "nobody", "k".repeat(600), ...Array(70).fill("x")];

  const { previews } = await at.client.call("sessions.preview", { keys, limit: 1 });

  assertEquals(previews.length, 64);
  assertEquals(previews.slice(0, 4).map((one: Json) => one.status), [
    ...["ok", "empty", "missing", "error"],
  ]);
  assertEquals(previews[0], {
    key: "x",
    status: "ok",
    items: [{ role: "assistant", text: "two" }],
  });
});

Deno.test("sessions.describe shows one session to a reader, and null for none", async () => {
  await using at = await gatewayWith("x", ["hello"]);
  const reader = await at.gateway.connect(READ);

  const { session } = await reader.call("sessions.describe", { key: "X", agentId: "main" });
  assertEquals([session.key, session.lastMessagePreview], ["agent:main:x", "hello"]);
  assertEquals(await reader.call("sessions.describe", { key: "y" }), { session: null });
});

Deno.test("a session is reset, compacted and deleted over the wire", async () => {
  await using at = await gatewayWith("x", ["1", "2", "3"]);
  const { client } = at;
  const key = "agent:main:x";

  const few = await client.call("sessions.compact", { key: "x" });
  const compacted = await client.call("sessions.compact", { key: "x", maxLines: 1 });
  const { messages } = await client.call("chat.history", { sessionKey: "x" });
  const before = (await client.call("sessions.describe", { key })).session.sessionId;
  const reset = await client.call("sessions.reset", { key: "x" });
  const empty = await client.call("sessions.compact", { key: "x" });
  const deleted = await client.call("sessions.delete", { key: "x" });

  assertEquals(few, { ok: true, key, compacted: false, kept: 3 });
  assertEquals(compacted, { ok: true, key, compacted: true, kept: 1, archived: [] });
  assertEquals(messages.map((one: Json) => one.content[0].text), ["3"]);
  assert(reset.entry.sessionId !== before);
  assertEquals(empty, { ok: true, key, compacted: false, reason: "no transcript" });
  assertEquals(deleted, { ok: true, key, deleted: true, archived: [] });
  const message = await messageOf(at.gateway, "sessions.delete", { key: "main" });
  assertEquals(message, "Cannot delete the main session (agent:main:main).");
});

Deno.test("deleting and resetting a session stop what runs in it, and it does not come back", async () => {
  const asked = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  await using api = startModelApi((_request, index) => {
    asked[index]?.resolve();
    return { text: "never said to its end", stallAfterBytes: 1 };
  });
  await using gateway = await startTestGateway({
    config: {
      agents: { defaults: { model: "local/m1" } },
      models: {
        providers: { local: { baseUrl: api.baseUrl, apiKey: "test-key", models: [{ id: "m1" }] } },
      },
    },
  });
  const client = await gateway.connect();
  const say = async (message: string) => {
    const params = { key: "x", message, idempotencyKey: message };
    return (await client.call("sessions.send", params)).runId as string;
  };

  const first = await say("one");
  await asked[0].promise;
  await client.call("sessions.reset", { key: "x" });
  const stopped = await client.event("chat", ({ state }) => state === "aborted");
  const second = await say("two");
  await asked[1].promise;
  const { deleted } = await client.call("sessions.delete", { key: "x" });
  const stoppedToo = await client.event("chat", ({ state }) => state === "aborted");

  assertEquals([stopped.runId, stoppedToo.runId, deleted], [first, second, true]);
  assertEquals(await client.call("sessions.describe", { key: "x" }), { session: null });
});

Deno.test("with one session for all, main means global", async () => {
  await using at = await gatewayWith("main", ["hello"], { session: { scope: "global" } });

  const { messages } = await at.client.call("chat.history", { sessionKey: "agent:main:main" });
  const listed = await at.client.call("sessions.list", {});
  const all = await at.client.call("sessions.list", { includeGlobal: true });

  assertEquals(messages.length, 1);
  assertEquals([listed.count, all.sessions[0].key, all.sessions[0].kind], [0, "global", "global"]);
  const message = await messageOf(at.gateway, "sessions.delete", { key: "main" });
  assertEquals(message, "Cannot delete the main session (global).");
});

Deno.test("chat.inject adds to a session that is there, and readers hear of it", async () => {
  await using at = await gatewayWith("x", []);
  const reader = await at.gateway.connect(READ);

  const { messageId } = await at.client.call("chat.inject", {
    sessionKey: "x",
    message: "words",
    label: "note",
  });
  const event = await reader.event("chat");

  assert(/^[0-9a-f]{8}$/.test(messageId), messageId);
  assertEquals([event.runId, event.seq, event.state], [`inject-${messageId}`, 0, "final"]);
  assertEquals(event.sessionKey, "x");
  assertEquals(event.message.content, [{ type: "text", text: "[note]\n\nwords" }]);
  const { messages } = await reader.call("chat.history", { sessionKey: "x" });
  assertEquals(messages, [event.message]);
  const none = { sessionKey: "nobody", message: "words" };
  assertEquals(await messageOf(at.gateway, "chat.inject", none), "session not found");
});

Deno.test("who watches a session gets its messages, and nobody else's", async () => {
  await using at = await gatewayWith("x", []);
  await at.client.call("sessions.patch", { key: "other" });
  const reader = await at.gateway.connect(READ);

  const { key } = await reader.call("sessions.messages.subscribe", { key: "x", agentId: "main" });
  await at.client.call("chat.inject", { sessionKey: "other", message: "not for you" });
  const { messageId } = await at.client.call("chat.inject", { sessionKey: "x", message: "one" });
  const frame = await reader.eventFrame("session.message");
  await reader.call("sessions.messages.unsubscribe", { key });
  await at.client.call("chat.inject", { sessionKey: "x", message: "two" });
  await reader.event("chat", ({ message }) => message.content[0].text === "two");

  assertEquals(key, "agent:main:x");
  assertEquals([frame.payload.sessionKey, frame.payload.messageId], [key, messageId]);
  assertEquals([frame.payload.messageSeq, frame.seq], [1, undefined]);
  assertEquals(frame.payload.message.content[0].text, "one");
  assert(!reader.untakenEvents.includes("session.message"));
});

Deno.test("who watches all sessions hears of every change", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();
  const reader = await gateway.connect(READ);

  assertEquals(await reader.call("sessions.subscribe", {}), { subscribed: true });
  await client.call("sessions.patch", { key: "x", label: "mine" });
  await client.call("chat.inject", { sessionKey: "x", message: "one" });
  await client.call("sessions.reset", { key: "x" });
  await client.call("sessions.delete", { key: "x" });

  const heard: Json[] = [];
  while (heard.at(-1)?.reason !== "delete") heard.push(await reader.event("sessions.changed"));
  assertEquals(heard.map(({ reason }) => reason), [
    "create",
    "patch",
    "message",
    "reset",
    "delete",
  ]);
  assertEquals(heard[1].session.label, "mine");
  assertEquals([heard[4].session, heard[4].sessionKey], [null, "agent:main:x"]);
});

Deno.test("a call without a connection cannot subscribe", async () => {
  await using gateway = await startTestGateway();

  const { json } = await gateway.rpc({ jsonrpc: "2.0", id: 1, method: "sessions.subscribe" });

  assertEquals(json.error.message, "Cannot subscribe: this call has no connection");
});

Deno.test("sessions.search and sessions.export answer readers, and say what is missing", async () => {
  await using at = await gatewayWith("x", ["the kernel is 6.8"]);
  const reader = await at.gateway.connect(READ);

  const { hits } = await reader.call("sessions.search", { query: "kernel" });
  const page = await reader.call("sessions.export", { key: "x" });

  assertEquals([hits.length, hits[0].key, hits[0].role], [1, "agent:main:x", "assistant"]);
  assertEquals([page.key, page.lines.length, page.next], ["agent:main:x", 2, null]);
  const missing = await messageOf(at.gateway, "sessions.export", { key: "nobody" });
  assertEquals(missing, "No session found: nobody");
  const both = { key: "x", sessionId: page.sessionId };
  for (const params of [{}, both]) {
    const message = await messageOf(at.gateway, "sessions.export", params);
    assertEquals(message, "Provide either key or sessionId");
  }
});

Deno.test("health and status count the sessions and show the latest", async () => {
  await using gateway = await startTestGateway({
    config: { agents: { list: [{ id: "anna" }, { id: "bob" }] } },
  });
  const client = await gateway.connect();
  for (let i = 0; i < 12; i++) await client.call("sessions.patch", { key: `agent:bob:${i}` });
  await client.call("sessions.patch", { key: "main", thinkingLevel: "high" });
  await client.call("sessions.patch", { key: "global" });

  const health = await client.call("health", { probe: true });
  const { sessions } = await client.call("status", {});

  assertEquals([health.sessions.count, health.sessions.recent.length], [13, 5]);
  assertEquals(health.sessions.recent[0].key, "agent:anna:main");
  const counts = health.agents.map((one: Json) => [one.agentId, one.sessions.count]);
  assertEquals(counts, [["anna", 1], ["bob", 12]]);
  assertEquals([sessions.count, sessions.recent.length], [13, 10]);
  assertEquals(sessions.recent[0].flags, ["think:high"]);
  assertEquals(sessions.byAgent.map((one: Json) => one.recent.length), [1, 10]);
});
