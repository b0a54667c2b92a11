import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { DatabaseSync } from "node:sqlite";
import type { AgentModel, TurnPart } from "../../../gateway/agent/model.ts";
import {
  type BotApi,
  type BotCall,
  OWNER,
  refusal,
  startBotApi,
  STRANGER,
} from "../../support/bot_api.ts";
import {
  startTestGateway,
  type TestGateway,
  type TestGatewayOptions,
} from "../../support/gateway.ts";
import { asked, connectNode, payload, reply as answer, serveNode } from "../../support/node.ts";

Deno.test("what an owner writes is answered, and acknowledged once it is durable", async () => {
  await using at = await open();

  const { message_id } = at.bot.write("/whoami");
  const { params } = await at.bot.until(isSent(/owner/i));

  assertEquals(params.chat_id, String(OWNER.id));
  await at.bot.acknowledged(5000);
  assert(typeof message_id === "number");
});

Deno.test("a stranger is told a code and nothing else; approved, they are heard but are no owner", async () => {
  await using at = await open();
  await using operator = await at.gateway.connect();

  at.bot.write("/nodes", { from: STRANGER });
  const { params } = await at.bot.until(isSent(/zero pairing approve telegram/));
  const code = /telegram ([A-Z2-9]{8})/.exec(params.text)![1];
  at.bot.write("hello?", { from: STRANGER });
  at.bot.write("/whoami");
  await at.bot.until(isSent(/owner/i));
  const beforeApproval = at.bot.sent.filter((one) => one.params.chat_id === String(STRANGER.id));
  const { requests } = await operator.call("pairing.list", {});
  await operator.call("pairing.approve", { channel: "telegram", code: code.toLowerCase() });
  await at.bot.until(isSent(/You were let in/));
  at.bot.write("/nodes", { from: STRANGER });
  const refused = await at.bot.until(
    (call) =>
      isSent(/./)(call) && call.params.chat_id === String(STRANGER.id) &&
      !/let in|approve/.test(call.params.text),
  );

  assertEquals(beforeApproval.length, 1, "told once");
  assertEquals(
    requests.map(({ senderId, name }: { senderId: string; name: string }) => [
      senderId,
      name,
    ]),
    [[String(STRANGER.id), STRANGER.first_name]],
  );
  assertStringIncludes(refused.params.text.toLowerCase(), "owner");
});

Deno.test("a node is run from a chat after the owner allowed it with a button", async () => {
  await using at = await open();
  await using node = await connectNode(at.gateway, { name: "n1" });

  at.bot.write("/run n1 uname -a");
  const question = await at.bot.until((call) => call.params.reply_markup !== undefined);
  const [[{ callback_data: allow }]] = question.params.reply_markup.inline_keyboard;
  at.bot.press(allow);
  const request = await asked(node);
  await answer(node, request, {
    ok: true,
    payload: { exitCode: 0, success: true, timedOut: false, stdout: "Linux n1 6.1\n", stderr: "" },
  });
  const reply = await at.bot.until(isSent(/Linux n1 6\.1/));

  assertEquals(request.params.command, ["uname", "-a"]);
  assertEquals(reply.params.chat_id, String(OWNER.id));
});

Deno.test("forwarded and edited messages, groups and strangers reach no owner command and no node", async () => {
  await using at = await open({
    channels: { telegram: { dmPolicy: "open", groups: { "-77": {} } } },
  });
  await using node = await connectNode(at.gateway, { name: "n1" });
  const group = { id: -77, type: "supergroup" as const, title: "Friends" };
  const run = "/run n1 rm -rf /";
  // An owner's own question waits for its answer meanwhile.
  at.bot.write("/run n1 uname");
  const question = await at.bot.until((call) => call.params.reply_markup !== undefined);
  const [[{ callback_data: allow }]] = question.params.reply_markup.inline_keyboard;

  for (const text of [run, allow]) {
    at.bot.write(text, { extra: { forward_origin: { type: "user", date: 1 } } });
    at.bot.write(text, { extra: { via_bot: { id: 5, is_bot: true, first_name: "Inline" } } });
    at.bot.write(text, { extra: { is_automatic_forward: true } });
    at.bot.write(text, { kind: "edited_message" });
    at.bot.write(text, { from: STRANGER });
    at.bot.write(text, { from: { ...STRANGER, first_name: "Ada", username: "Ada\u200b" } });
    at.bot.write(text, { from: STRANGER, kind: "edited_message" });
    const said = `${text} @zero_test_bot`;
    at.bot.write(said, { chat: group });
    at.bot.write(said, { chat: group, from: STRANGER });
    at.bot.write(text, { chat: { ...group, id: -78 } });
    at.bot.press(text, { from: STRANGER });
    at.bot.press(text, { from: STRANGER, chat: group });
    at.bot.press(text, { chat: group });
    at.bot.write(text, { from: { ...OWNER, is_bot: true } });
  }
  at.bot.write("/help");
  await at.bot.until(isSent(/\/invoke/));

  assertEquals(node.asked, []);
  const questions = at.bot.sent.filter((call) => call.params.reply_markup !== undefined);
  assertEquals(questions.length, 1);
  assert(!at.bot.sent.some((call) => call.params.chat_id === "-78"));
  await using operator = await at.gateway.connect();
  assertEquals((await operator.call("exec.approval.list", {})).pending.length, 1);
});

Deno.test("in a group the bot speaks when it is spoken to, in the same topic", async () => {
  await using at = await open({ channels: { telegram: { groups: { "*": {} } } } });
  const chat = { id: -5, type: "supergroup" as const, title: "Topics" };

  at.bot.write("nobody asked you", { chat, from: STRANGER });
  const spoken = at.bot.write("@zero_test_bot /whoami", {
    chat,
    from: STRANGER,
    extra: { is_topic_message: true, message_thread_id: 42 },
  });
  const { params } = await at.bot.until((call) => call.method === "sendMessage");

  assertEquals([params.chat_id, params.message_thread_id], ["-5", 42]);
  assertEquals(params.reply_parameters.message_id, spoken.message_id);
  assertEquals(at.bot.sent.length, 1);
});

Deno.test("a photo reaches the model", async () => {
  let seen: unknown;
  const model = scripted(async function* (turn) {
    seen = turn.messages.at(-1)?.content;
    yield { type: "text", delta: "A **cat**." };
    yield { type: "end", stopReason: "stop" };
  });
  await using at = await open({}, { models: { pick: () => [model] } });
  const file_id = at.bot.addFile(new Uint8Array([1, 2, 3]), "cat.jpg");

  at.bot.write("", {
    extra: {
      caption: "what is this?",
      photo: [{ file_id, file_unique_id: "u", width: 9, height: 9, file_size: 3 }],
    },
  });
  const { params } = await at.bot.until(isSent(/cat/));

  assertEquals(params.text, "A <b>cat</b>.");
  assertEquals(params.parse_mode, "HTML");
  assertStringIncludes(JSON.stringify(seen), "what is this?");
  assertStringIncludes(JSON.stringify(seen), "AQID");
});

Deno.test("the photo of a node's camera reaches the chat", async () => {
  await using at = await open({ gateway: { nodes: { allowCommands: ["camera.snap"] } } });
  await using _ = await serveNode(
    at.gateway,
    () => payload({ format: "jpg", base64: "/9j/4AAQ", width: 640, height: 480 }),
    {
      name: "phone",
      commands: ["camera.snap"],
      client: { id: "zero-ios", platform: "ios", deviceFamily: "iPhone" },
      params: { caps: ["camera"] },
    },
  );

  at.bot.write('/invoke phone camera.snap {"facing":"front"}');
  const sent = await at.bot.until(({ method }) => /^send(Photo|Message)$/.test(method));

  assertEquals(sent.method, "sendPhoto", sent.params.text);
  assertEquals(sent.params.chat_id, String(OWNER.id));
  const [photo] = Object.values(sent.files);
  assertEquals(photo.bytes.toBase64(), "/9j/4AAQ");
});

Deno.test("a long answer comes in parts, and Telegram's wish to wait is honoured", async () => {
  const long = Array.from({ length: 30 }, (_, index) => `Paragraph ${index} ${"x".repeat(300)}`);
  const model = scripted(async function* () {
    yield { type: "text", delta: long.join("\n\n") };
    yield { type: "end", stopReason: "stop" };
  });
  await using at = await open({}, { models: { pick: () => [model] } });
  let refusals = 1;
  at.bot.mood = ({ method, params }) =>
    method === "sendMessage" && params.text.includes("Paragraph 20") && refusals-- > 0
      ? refusal(429, "Too Many Requests: retry after 0", { retry_after: 0 })
      : undefined;

  at.bot.write("tell me everything");
  await at.bot.until(isSent(/Paragraph 29/));

  const texts = at.bot.sent.map(({ params }) => params.text as string);
  const told = long.filter((one) => texts.filter((text) => text.includes(one)).length > 0);
  assertEquals(told.length, long.length);
  assertEquals(texts.filter((text) => text.includes("Paragraph 0 ")).length, 1);
});

Deno.test("markup that Telegram does not take is sent as plain text", async () => {
  const model = scripted(async function* () {
    yield { type: "text", delta: "some **bold** text" };
    yield { type: "end", stopReason: "stop" };
  });
  await using at = await open({}, { models: { pick: () => [model] } });
  at.bot.mood = ({ method, params }) =>
    method === "sendMessage" && params.parse_mode
      ? refusal(400, "Bad Request: can't parse entities: unsupported start tag")
      : undefined;

  at.bot.write("hi");
  const { params } = await at.bot.until(
    (call) => call.method === "sendMessage" && !call.params.parse_mode,
  );

  assertEquals(params.text, "some bold text");
});

Deno.test("a token that Telegram refuses stops the channel with its fix; it is nowhere in the log", async () => {
  await using at = await open({ channels: { telegram: { botToken: "1234:wrong-token-abcdef" } } });
  await using operator = await at.gateway.connect();

  const account = await until(async () => {
    const { channelAccounts } = await operator.call("channels.status", {});
    return channelAccounts.telegram[0].lastError && channelAccounts.telegram[0];
  });

  assertStringIncludes(account.lastError, "zero channels add telegram");
  assertEquals(account.running, false);
  assert(!(await at.gateway.log()).includes("wrong-token-abcdef"));
});

Deno.test("a message sent over the gateway arrives once, however often it is asked for", async () => {
  await using at = await open();
  await using operator = await at.gateway.connect();
  const params = { to: "1001", message: "Dinner *is* ready", idempotencyKey: "k1" };

  const first = await operator.call("send", params);
  const second = await operator.call("send", params);

  assertEquals(first, second);
  assertEquals([first.runId, first.channel, first.chatId], ["k1", "telegram", "1001"]);
  assertEquals(at.bot.sent.map((call) => call.params.text), ["Dinner <i>is</i> ready"]);
});

Deno.test("a channel is added while the gateway runs: tried, kept apart, and started", async () => {
  await using bot = startBotApi();
  await using gateway = await startTestGateway();
  await using operator = await gateway.connect();

  const wrong = await operator.refused("channels.add", {
    channel: "telegram",
    token: "1:not-the-token-1234",
    apiRoot: bot.root,
  });
  const answer = await operator.call("channels.add", {
    channel: "telegram",
    token: bot.token,
    apiRoot: bot.root,
    allowFrom: ["1001"],
  });
  bot.write("/whoami");
  await bot.until(isSent(/owner/i));

  assertStringIncludes(wrong.message, "does not know this token");
  assertEquals(answer.account, "@zero_test_bot");
  const config = await Deno.readTextFile(gateway.paths.configPath);
  assert(!config.includes(bot.token) && config.includes("telegram.token"), config);
  assert(!(await gateway.log()).includes(bot.token));
});

Deno.test("the same update twice is one message", async () => {
  await using at = await open();
  const message = at.bot.write("/whoami");
  await at.bot.until(isSent(/owner/i));

  at.bot.push({ message });
  at.bot.write("/help");
  await at.bot.until(isSent(/\/help/));

  assertEquals(at.bot.sent.filter(isSent(/owner/i)).length >= 1, true);
  assertEquals(at.bot.sent.length, 2);
});

Deno.test("after a quiet week updates are asked for from wherever they begin, and none is done twice", async () => {
  await using bot = startBotApi();
  const stateDir = await Deno.makeTempDir();
  const config = {
    channels: { telegram: { botToken: bot.token, apiRoot: bot.root, allowFrom: [OWNER.id] } },
  };
  const message = bot.write("/whoami");
  const positions: number[] = [];
  for (const age of [0, 7 * 24 * 3_600_000]) {
    const db = new DatabaseSync(`${stateDir}/zero.sqlite`);
    const isThere = db.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'channel_offsets'").get();
    if (isThere) db.prepare("UPDATE channel_offsets SET moved_at_ms = moved_at_ms - ?").run(age);
    db.close();
    const polls = bot.offsets.length;
    await using _ = await startTestGateway({ stateDir, config });
    bot.push({ message });
    bot.write(`/help ${age}`);
    await bot.until(({ method, params }) => method === "sendMessage" && /invoke/.test(params.text));
    await bot.acknowledged(bot.nextUpdate - 1);
    positions.push(bot.offsets[polls]);
  }

  assertEquals(positions, [0, 0]);
  assertEquals(bot.sent.filter(isSent(/an owner of/)).length, 1);
  await Deno.remove(stateDir, { recursive: true });
});

interface Opened extends AsyncDisposable {
  bot: BotApi;
  gateway: TestGateway;
}

async function open(
  config: { channels?: { telegram?: Record<string, unknown> }; gateway?: unknown } = {},
  options: TestGatewayOptions = {},
): Promise<Opened> {
  await using parts = new AsyncDisposableStack();
  const bot = parts.use(startBotApi());
  const gateway = parts.use(
    await startTestGateway({
      ...options,
      config: {
        ...config,
        channels: {
          telegram: {
            botToken: bot.token,
            apiRoot: bot.root,
            allowFrom: [OWNER.id],
            ...config.channels?.telegram,
          },
        },
      },
    }),
  );
  const owned = parts.move();
  return { bot, gateway, [Symbol.asyncDispose]: () => owned[Symbol.asyncDispose]() };
}

function isSent(pattern: RegExp) {
  return ({ method, params }: BotCall) =>
    method === "sendMessage" && pattern.test(String(params.text));
}

function scripted(
  respond: (turn: Parameters<AgentModel["respond"]>[0]) => AsyncIterable<TurnPart>,
): AgentModel {
  return { id: "test/scripted", respond };
}

async function until<T>(look: () => Promise<T | undefined>): Promise<T> {
  while (true) {
    const found = await look();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
