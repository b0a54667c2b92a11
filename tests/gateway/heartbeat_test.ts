import { assertEquals, assertStringIncludes } from "@std/assert";
import { hasAck, worthSaying } from "../../gateway/agent/quiet.ts";
import { OWNER, startBotApi } from "../support/bot_api.ts";
import type { Json, TestClient } from "../support/client.ts";
import { startTestGateway } from "../support/gateway.ts";
import { hangs, lastText, only, says, scriptedModel } from "../support/scripted_model.ts";

function wake(client: TestClient, text: string, mode = "now") {
  return client.call("wake", { mode, text });
}

/** A gateway whose owner has written before, so that there is a last chat. */
async function withChat(model: ReturnType<typeof scriptedModel>, config = {}) {
  await using parts = new AsyncDisposableStack();
  const bot = parts.use(startBotApi());
  const gateway = parts.use(
    await startTestGateway({
      models: only(model),
      config: {
        channels: { telegram: { botToken: bot.token, apiRoot: bot.root, allowFrom: [OWNER.id] } },
        ...config,
      },
    }),
  );
  bot.write("hi");
  await bot.until(({ method }) => method === "sendMessage");
  const client = await gateway.connect();
  const owned = parts.move();
  return { bot, client, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

Deno.test("woken, the agent hears what happened, and what it says reaches the last chat", async () => {
  const model = scriptedModel((_, turns) => says(turns === 0 ? "hello" : "The door is open!"));
  await using at = await withChat(model);

  await wake(at.client, "Door opened");
  const news = await at.client.event("heartbeat");
  const sent = await at.bot.until(({ params }) => params.text === "The door is open!");

  const { ts: _, durationMs: __, ...rest } = news;
  assertEquals(rest, {
    status: "sent",
    channel: "telegram",
    to: String(OWNER.id),
    preview: "The door is open!",
    indicatorType: "alert",
  });
  assertEquals(sent.params.chat_id, String(OWNER.id));
  assertStringIncludes(lastText(model.turns[1]), "Door opened");
  assertEquals(await at.client.call("last-heartbeat", {}), news);
  assertEquals((await at.client.call("status", {})).queuedSystemEvents, []);
});

Deno.test("an agent with nothing to say, and one that fails, disturb nobody", async () => {
  const model = scriptedModel((turn, turns) => {
    if (turns === 0) return says("hello");
    if (lastText(turn).includes("fail")) throw new Error("broken");
    return says(turns === 1 ? "**HEARTBEAT_OK**" : "");
  });
  await using at = await withChat(model);

  const outcomes: Json[] = [];
  for (const text of ["one", "two", "fail"]) {
    await wake(at.client, text);
    outcomes.push(await at.client.event("heartbeat"));
  }
  at.bot.write("still there?");
  await at.bot.until(() => at.bot.sent.length >= 2);

  assertEquals(outcomes.map(({ status }) => status), ["ok-token", "ok-empty", "failed"]);
  assertStringIncludes(outcomes[2].reason, "internal error");
  assertEquals(at.bot.sent.length, 2);
});

Deno.test("without a model nothing runs: what waits is reported, and stays", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();
  assertEquals(await client.call("last-heartbeat", {}), null);

  await wake(client, "Door opened");
  const { ts: _, ...news } = await client.event("heartbeat");

  assertEquals(news, { status: "skipped", reason: "no-model", preview: "Door opened" });
  assertEquals((await client.call("status", {})).queuedSystemEvents, ["Door opened"]);
  assertEquals((await client.call("sessions.list", {})).count, 0);
});

Deno.test("what happens while the agent is awake is one more look, however much it is", async () => {
  const gate = Promise.withResolvers<void>();
  const model = scriptedModel(async function* (_, turns) {
    if (turns === 0) await gate.promise;
    yield* says("HEARTBEAT_OK");
  });
  await using gateway = await startTestGateway({ models: only(model) });
  const client = await gateway.connect();

  await wake(client, "first");
  await client.event("agent", ({ data }) => data.phase === "start");
  for (let count = 0; count < 5; count++) await wake(client, `more ${count}`);
  gate.resolve();
  await client.event("heartbeat");
  await client.event("heartbeat");

  assertEquals(model.turns.length, 2);
  assertStringIncludes(lastText(model.turns[1]), "more 4");
});

Deno.test("what is said where no chat is known stays in the session", async () => {
  const model = scriptedModel(() => says("Look at this"));
  await using gateway = await startTestGateway({ models: only(model) });
  const client = await gateway.connect();

  await wake(client, "x");
  const { status, reason, preview } = await client.event("heartbeat");

  assertEquals([status, reason, preview], ["skipped", "no-target", "Look at this"]);
  const { messages } = await client.call("chat.history", { sessionKey: "main" });
  assertEquals(messages.at(-1).content[0].text, "Look at this");
});

Deno.test("an agent wakes by itself, for what waits or for what it is told to look after", async () => {
  const model = scriptedModel(() => says("HEARTBEAT_OK"));
  const gatewayWith = (heartbeat: Record<string, unknown>) =>
    startTestGateway({
      models: only(model),
      config: { agents: { defaults: { heartbeat: { every: "50ms", ...heartbeat } } } },
    });
  await using bare = await gatewayWith({});
  await using told = await gatewayWith({ prompt: "Water the plants?", model: "x/y" });
  const idle = await bare.connect();
  const busy = await told.connect();

  const nothing = await idle.event("heartbeat");
  const looked = await busy.event("heartbeat");
  await wake(idle, "rain", "next-heartbeat");
  const rained = await idle.event("heartbeat", ({ status }) => status !== "skipped");

  assertEquals([nothing.status, nothing.reason], ["skipped", "nothing-queued"]);
  assertEquals([looked.status, rained.status], ["ok-token", "ok-token"]);
  const heard = model.turns.map((turn) => lastText(turn)).join("\n");
  assertStringIncludes(heard, "Water the plants?");
  assertStringIncludes(heard, "rain");
  const { agents: [{ heartbeat }] } = await busy.call("health", { probe: true });
  assertEquals([heartbeat.everyMs, heartbeat.prompt, heartbeat.target], [
    50,
    "Water the plants?",
    "last",
  ]);
});

Deno.test("an agent that wakes by itself does not queue behind a conversation", async () => {
  const model = scriptedModel((turn) => hangs(turn.signal, "hm"));
  await using gateway = await startTestGateway({
    models: only(model),
    config: { agents: { defaults: { heartbeat: { every: "50ms", prompt: "Look" } } } },
  });
  const client = await gateway.connect();
  await client.call("set-heartbeats", { enabled: false });

  await client.call("chat.send", { sessionKey: "main", message: "hi", idempotencyKey: "k" });
  await client.call("set-heartbeats", { enabled: true });
  const { status, reason } = await client.event("heartbeat", (one) => one.reason === "busy");

  assertEquals([status, reason], ["skipped", "busy"]);
  await client.call("chat.abort", { sessionKey: "main" });
});

Deno.test("switched off, nobody wakes, also not for a wake", async () => {
  const model = scriptedModel(() => says("never"));
  await using gateway = await startTestGateway({
    models: only(model),
    config: { agents: { defaults: { heartbeat: { every: "1h" } } } },
  });
  const client = await gateway.connect();

  await client.call("set-heartbeats", { enabled: false });
  await wake(client, "x");
  const { status, reason } = await client.event("heartbeat");

  assertEquals([status, reason, model.turns.length], ["skipped", "disabled", 0]);
  assertEquals((await client.call("status", {})).heartbeat.agents[0].enabled, false);
});

Deno.test("HEARTBEAT_OK at either end says nothing, unless much stands beside it", () => {
  const rows: [string, string][] = [
    ["HEARTBEAT_OK", ""],
    ["  **HEARTBEAT_OK**.\n", ""],
    ["HEARTBEAT_OK All fine.", ""],
    ["All fine. HEARTBEAT_OK", ""],
    [`HEARTBEAT_OK ${"x".repeat(301)}`, "x".repeat(301)],
    ["Water the plants", "Water the plants"],
    ["The word HEARTBEAT_OK in the middle", "The word HEARTBEAT_OK in the middle"],
    ["HEARTBEAT_OKAY", "HEARTBEAT_OKAY"],
    [" ", ""],
  ];

  for (const [text, expected] of rows) {
    assertEquals(worthSaying(text, { ackMaxChars: 300 }), expected, text);
  }
  assertEquals([hasAck("HEARTBEAT_OK"), hasAck("fine")], [true, false]);
});
