// The channel alone, without a gateway: what it does when Telegram is not as it should be.

import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { openLog } from "../../../config/log.ts";
import { type Address, DeliveryError } from "../../../gateway/channels/channel.ts";
import { type Brought, TelegramChannel, type Timing } from "../../../gateway/channels/telegram.ts";
import { type BotApi, OWNER, refusal, startBotApi } from "../../support/bot_api.ts";
import { freePort } from "../../support/process.ts";

const CHAT: Address = { channel: "telegram", accountId: "default", to: String(OWNER.id) };
const FAST: Partial<Timing> = {
  firstRetry: 5,
  longestRetry: 20,
  conflict: 5,
  refused: 5,
  hold: 50,
};
/** Nothing here takes longer, unless it hangs. */
const DEADLINE_MS = 60_000;

Deno.test("another poller of the same bot is named, and polling goes on when it is gone", async () => {
  await using at = open();
  let conflicts = 2;
  at.bot.mood = ({ method }) =>
    method === "getUpdates" && conflicts-- > 0
      ? refusal(409, "Conflict: terminated by other getUpdates request")
      : undefined;

  at.bot.write("hello");
  await at.taken();

  assertStringIncludes(at.problems[0]!, "another program fetches the messages of this bot");
  assertEquals(at.channel.status().running, true);
  assertEquals(at.texts(), ["hello"]);
});

Deno.test("messages can be sent while another program fetches those of the bot", async () => {
  await using at = open();
  at.bot.mood = ({ method }) => method === "getUpdates" ? refusal(409, "Conflict") : undefined;
  await at.until(() => at.channel.status().lastError !== undefined);

  const { messageId } = await at.send("hi");

  assertEquals([at.channel.isReachable, messageId !== ""], [true, true]);
});

Deno.test("a token that is refused is tried again, for it may be a mistake of Telegram", async () => {
  await using at = open();
  let refusals = 3;
  at.bot.mood = ({ method }) =>
    method === "getMe" && refusals-- > 0 ? refusal(401, "Unauthorized") : undefined;

  at.bot.write("hello");
  await at.taken();

  assertStringIncludes(at.problems[0]!, "zero channels add telegram");
  assertEquals([at.channel.status().running, at.channel.status().lastError], [true, undefined]);
});

Deno.test("an update that cannot be written down is not acknowledged, and comes again", async () => {
  await using at = open();
  at.refusals = 3;

  at.bot.write("hello");
  at.bot.write("and again");
  await at.taken(2);
  await at.bot.acknowledged(5001);

  assertEquals(at.texts(), ["hello", "and again"]);
  assertStringIncludes(at.problems[0]!, "could not be written down: the disk is full");
  const acknowledging = at.bot.offsets.findIndex((offset) => offset > 5000);
  assert(at.bot.offsets.slice(0, acknowledging).length >= 3, `polled at ${at.bot.offsets}`);
});

Deno.test("a poll that hangs is given up, and the next one brings what came", async () => {
  await using at = open({ poll: 100 });
  let hangs = 1;
  at.bot.mood = ({ method }) => method === "getUpdates" && hangs-- > 0 ? "hang" : undefined;

  at.bot.write("hello");
  await at.taken();

  assertEquals(at.texts(), ["hello"]);
  assertStringIncludes(at.problems[0]!, "the connection to Telegram broke");
});

Deno.test("where nobody listens, nothing was sent and it is tried again", async () => {
  const log = openLog({ level: "silent" });
  await using channel = new TelegramChannel({
    ...optionsOf({ root: `http://127.0.0.1:${freePort()}`, token: "1:token" }),
    log,
  });

  const error = await assertRejects(() => sendOn(channel, "hi"), DeliveryError);

  assertEquals([error.details.outcome, error.details.isTransient], ["not-sent", true]);
  assertEquals(channel.isReachable, false);
  assert(!error.message.includes("1:token"));
  await log[Symbol.asyncDispose]();
});

const OUTCOMES: [what: string, answer: () => Response | "drop" | "hang", string, boolean][] = [
  ["the connection ends in the middle of the answer", () => "drop", "unknown", true],
  ["no answer comes", () => "hang", "unknown", true],
  ["the answer is no JSON", () => new Response("<html>", { status: 200 }), "unknown", true],
  ["a proxy lost sight of it", () => refusal(502, "Bad Gateway"), "unknown", true],
  ["Telegram has a fault", () => refusal(500, "Internal Server Error"), "not-sent", true],
  [
    "it is too much at once",
    () => refusal(429, "Too Many Requests", { retry_after: 3 }),
    "not-sent",
    true,
  ],
  [
    "the user has blocked the bot",
    () => refusal(403, "Forbidden: bot was blocked by the user"),
    "not-sent",
    false,
  ],
  ["there is no such chat", () => refusal(400, "Bad Request: chat not found"), "not-sent", false],
  ["the token is refused", () => refusal(401, "Unauthorized"), "not-sent", true],
];

for (const [what, answer, outcome, isTransient] of OUTCOMES) {
  Deno.test(`when ${what}, a message is ${outcome}, ${isTransient ? "for now" : "for good"}`, async () => {
    await using at = open({ call: 200 });
    at.bot.mood = ({ method }) => method === "sendMessage" ? answer() : undefined;

    const error = await assertRejects(() => at.send("hi"), DeliveryError);

    const { details } = error;
    assertEquals([details.outcome, details.isTransient], [outcome, isTransient]);
    assertEquals(details.retryAfterMs, what.startsWith("it is too much") ? 3_000 : undefined);
    assert(!error.message.includes(at.bot.token), error.message);
  });
}

Deno.test("a group that became a supergroup gets its messages under its new number", async () => {
  await using at = open();
  at.bot.mood = ({ method, params }) =>
    method === "sendMessage" && params.chat_id === "-5"
      ? refusal(400, "Bad Request: group chat was upgraded to a supergroup chat", {
        migrate_to_chat_id: -100_5,
      })
      : undefined;

  await sendOn(at.channel, "hi", { ...CHAT, to: "-5" });

  assertEquals(at.bot.sent.map(({ params }) => params.chat_id), ["-5", "-1005"]);
});

Deno.test("a picture that hangs does not hold up what else came", async () => {
  await using at = open({ file: 100 });
  at.bot.mood = ({ method }) => method === "getFile" ? "hang" : undefined;

  at.bot.write("", {
    extra: { photo: [{ file_id: "f", file_unique_id: "f", width: 1, height: 1 }] },
  });
  at.bot.write("next");
  await at.taken(2);

  assertEquals(at.texts(), ["[a picture that could not be fetched]", "next"]);
});

Deno.test("a button whose press cannot be answered says what it stands for all the same", async () => {
  await using at = open();
  at.bot.mood = ({ method }) => method === "answerCallbackQuery" ? "hang" : undefined;

  at.bot.press("/approve 1 allow-once");
  await at.taken();

  assertEquals(at.texts(), ["/approve 1 allow-once"]);
});

interface Opened extends AsyncDisposable {
  bot: BotApi;
  channel: TelegramChannel;
  /** What was written down. */
  brought: Brought[];
  /** Each different problem its status has shown. */
  problems: (string | undefined)[];
  /** How often writing down fails from now on. */
  refusals: number;
  texts(): string[];
  send(text: string): Promise<{ messageId: string }>;
  taken(count?: number): Promise<void>;
  until(isSo: () => boolean): Promise<void>;
}

function open(timing: Partial<Timing> = {}): Opened {
  const bot = startBotApi();
  const log = openLog({ level: "silent" });
  const watchers = new Set<() => void>();
  const changed = () => watchers.forEach((look) => look());
  let position: number | undefined;
  const at: Opened = {
    bot,
    brought: [],
    problems: [],
    refusals: 0,
    texts: () => at.brought.flatMap((one) => "message" in one ? [one.message.text] : []),
    send: (text) => sendOn(at.channel, text),
    taken: (count = 1) => at.until(() => at.brought.length >= count),
    until: (isSo) =>
      new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          reject(new Error(`waited in vain; brought: ${at.texts()}, problems: ${at.problems}`));
        }, DEADLINE_MS);
        const look = () => {
          if (!isSo()) return;
          clearTimeout(timer);
          watchers.delete(look);
          resolve();
        };
        watchers.add(look);
        look();
      }),
    channel: new TelegramChannel({
      ...optionsOf(bot),
      log,
      intake: {
        position: () => position,
        take(updateId, one) {
          if (at.refusals-- > 0) throw new Error("the disk is full");
          position = updateId;
          if (one) at.brought.push(one);
          changed();
        },
        isPaired: () => false,
      },
      onChange() {
        const { lastError } = at.channel.status();
        if (lastError !== at.problems.at(-1)) at.problems.push(lastError);
        changed();
      },
      timing: { ...FAST, ...timing },
    }),
    async [Symbol.asyncDispose]() {
      await bot[Symbol.asyncDispose]();
      await at.channel[Symbol.asyncDispose]();
      await log[Symbol.asyncDispose]();
    },
  };
  return at;
}

function optionsOf({ root, token }: { root: string; token: string }) {
  return {
    accountId: "default",
    token,
    apiRoot: root,
    rules: () => ({
      dmPolicy: "pairing" as const,
      allowFrom: [OWNER.id],
      requireMention: true,
      groups: {},
    }),
    intake: { position: () => undefined, take() {}, isPaired: () => false },
    commands: [],
    onChange() {},
    timing: FAST,
  };
}

function sendOn(channel: TelegramChannel, text: string, to = CHAT) {
  return channel.send(to, { text }, { sent: 0, begin() {}, note() {} });
}
