// kill -9 along the way of a message: from Telegram to the agent, to a model and a node, and back. Seen
// from the chats: everything that was written is answered, or told of once; nothing is said twice.

import { assert, assertEquals } from "@std/assert";
import { DatabaseSync } from "node:sqlite";
import { MAYBE_LOST } from "../../gateway/channels/outbox.ts";
import { type BotApi, type BotCall, startBotApi, type TelegramUser } from "../support/bot_api.ts";
import { handshake, TestClient } from "../support/client.ts";
import { type Identity, newDevice } from "../support/device.ts";
import {
  type ModelApi,
  type ModelRequest,
  type Reply,
  startModelApi,
} from "../support/model_api.ts";
import {
  before,
  GatewayProcess,
  makePlace,
  pause,
  type Place,
  startGatewayProcess,
  TOKEN,
} from "../support/process.ts";

/** Where it is killed, and which messages come by there. */
const SPOTS = {
  "a message arrives": ["plain", "tool"],
  "it is acknowledged": ["plain", "tool"],
  "the model is asked": ["plain", "tool", "long"],
  "the model speaks": ["long"],
  "the node is asked": ["tool"],
  "the node has answered": ["tool"],
  "the model has the result": ["tool"],
  "a question is asked": ["run"],
  "the question is answered": ["run"],
  "the approved command runs": ["run"],
  "the reply arrives": ["plain", "tool", "long"],
  "the reply is lost": ["plain", "tool", "long"],
  "the reply has arrived": ["plain", "tool", "long"],
  "a part of the reply has arrived": ["long"],
  "some moment": ["plain", "tool", "long", "run"],
} as const;
export type Spot = keyof typeof SPOTS;
type Kind = (typeof SPOTS)[Spot][number];

/** Where it is killed again while it deals with what it finds. */
const AGAIN = ["the start", "a notice arrives", "the reply arrives", "some moment"] as const;

/** One person's chat with the bot. */
interface Chat {
  who: TelegramUser;
  kind: Kind;
  /** What the chat shows of the bot, in order. */
  shown: string[];
  hasPressed: boolean;
  /** A second kill came while its notice was being sent, and nobody knows whether it left. */
  isInDoubt: boolean;
}

const DEADLINE_MS = 90_000;
const FIRST_USER = 10_001;
/** Longer than the way of a message takes. */
const WAY_MS = 300;
const PARTS = 3;
const NODE = "n1";

export async function killFlow(
  { points, spots, seed = 1 }: { points: number; spots?: readonly Spot[]; seed?: number },
) {
  const random = randomOf(seed);
  const one = <T>(list: readonly T[]) => list[Math.floor(random() * list.length)];
  const names = spots ?? Object.keys(SPOTS) as Spot[];
  await using flow = await Flow.open(points * 2 + 1);
  const waits: number[] = [];
  let times = 0;
  for (let point = 0; point < points; point++) {
    const spot = names[point % names.length];
    const isTwice = !spots && random() < 0.3;
    times += isTwice ? 2 : 1;
    const begin = performance.now();
    await flow.kill(spot, {
      kinds: [one<Kind>(SPOTS[spot]), one<Kind>(["plain", "tool"])],
      again: isTwice ? one(AGAIN) : undefined,
      momentMs: random() * WAY_MS,
    });
    waits.push(performance.now() - begin);
  }
  const { replies, notices, doubts, messages } = await flow.verify();
  waits.sort((a, b) => a - b);
  return {
    "points": points,
    "kills meant": times,
    "kills": flow.kills,
    "messages": messages,
    "answered": replies,
    "told of once": notices,
    "notice in doubt after a second kill": doubts,
    "lost, said twice": 0,
    "killed, started, settled (median)": `${(waits[waits.length >> 1] / 1_000).toFixed(2)} s`,
    "killed, started, settled (most)": `${(waits.at(-1)! / 1_000).toFixed(2)} s`,
  };
}

class Flow implements AsyncDisposable {
  kills = 0;
  readonly #place: Place;
  readonly #bot: BotApi;
  readonly #model: ModelApi;
  readonly #device: Identity;
  readonly #owned: AsyncDisposableStack;
  readonly #chats = new Map<string, Chat>();
  #gateway!: GatewayProcess;
  #node?: AsyncDisposable;
  /** Where it is killed next. */
  #trap?: string;
  /** It is about to be killed. */
  #isDoomed = false;
  /** Resolves when the gateway waits for messages. */
  #polling = Promise.withResolvers<void>();
  /** Tells of a kill, and of what a chat shows. */
  #news = Promise.withResolvers<void>();

  private constructor(
    parts: { place: Place; bot: BotApi; device: Identity; owned: AsyncDisposableStack },
  ) {
    this.#place = parts.place;
    this.#bot = parts.bot;
    this.#device = parts.device;
    this.#owned = parts.owned;
    this.#model = this.#owned.use(startModelApi((request) => this.#answer(request)));
    this.#bot.mood = (call) => this.#see(call);
  }

  /** @param people how many may write */
  static async open(people: number): Promise<Flow> {
    await using parts = new AsyncDisposableStack();
    const place = parts.use(await makePlace());
    const bot = parts.use(startBotApi());
    const device = await newDevice();
    const flow = new Flow({ place, bot, device, owned: parts.move() });
    await place.configure({
      channels: {
        telegram: {
          botToken: bot.token,
          apiRoot: bot.root,
          allowFrom: Array.from({ length: people }, (_, index) => FIRST_USER + index),
        },
      },
      models: {
        providers: {
          test: {
            baseUrl: flow.#model.baseUrl,
            apiKey: "test-key",
            models: [{ id: "test-model" }],
          },
        },
      },
      agents: { defaults: { model: "test/test-model" } },
    });
    await flow.#start();
    return flow;
  }

  /** Two people write; the gateway dies on the way, and perhaps once more; then both have been told. */
  async kill(
    spot: Spot,
    { kinds, again, momentMs }: {
      kinds: readonly Kind[];
      again?: (typeof AGAIN)[number];
      momentMs: number;
    },
  ) {
    await before(DEADLINE_MS, this.#polling.promise, () => "the gateway does not poll");
    this.#trap = spot;
    const written = kinds.map((kind) => this.#write(kind));
    if (spot === "a message arrives") this.#pass(spot);
    if (spot === "some moment") await this.#atMoment(momentMs);
    let next = again;
    while (!written.every(isSettled) || this.#isDoomed) {
      await this.#nextNews(written);
      if (!this.#gateway.isOver) continue;
      this.#trap = next;
      await this.#start({ dieAfterMs: next === "the start" ? momentMs * 4 : undefined });
      if (next === "some moment") void this.#atMoment(momentMs);
      next = undefined;
    }
    // A spot that was not come by, such as a notice that was not needed.
    this.#trap = undefined;
    if (this.#gateway.isOver) await this.#start();
  }

  /** After one more start nothing is left to do, and nothing was said that should not. */
  async verify() {
    await this.#gateway.stop("SIGKILL");
    await this.#start();
    const probe = this.#write("plain");
    while (!isSettled(probe)) await this.#nextNews([probe]);
    await this.#settled();
    assertEquals((await this.#gateway.stop()).code, 0);
    let [messages, replies, notices, doubts] = [0, 0, 0, 0];
    for (const chat of this.#chats.values()) {
      const { who, kind, shown, hasPressed } = chat;
      const about = `${who.first_name} (${kind}): ${JSON.stringify(shown.map(shortened))}`;
      const asked = hasPressed ? 2 : 1;
      const told = shown.filter(isNotice).length;
      const answers = shown.filter((text) => !isNotice(text) && !isQuestion(text));
      assertEquals(new Set(answers).size, answers.length, `said twice to ${about}`);
      const parts = kind === "long" ? PARTS : 1;
      assert(answers.length <= parts * asked, `more than was asked for by ${about}`);
      assert(told <= asked, `told more than once: ${about}`);
      const isWhole = answers.length >= parts * asked;
      assert(isWhole || told > 0 || chat.isInDoubt, `lost: ${about}`);
      if (!isWhole && told === 0) doubts++;
      messages += asked;
      replies += Math.floor(answers.length / parts);
      notices += told;
    }
    return { messages, replies, notices, doubts };
  }

  async [Symbol.asyncDispose]() {
    this.#trap = undefined;
    await this.#node?.[Symbol.asyncDispose]();
    await this.#gateway?.[Symbol.asyncDispose]();
    await this.#owned.disposeAsync();
  }

  /** @param dieAfterMs a first start dies so soon after its begin */
  async #start({ dieAfterMs }: { dieAfterMs?: number } = {}) {
    await this.#node?.[Symbol.asyncDispose]();
    await this.#gateway?.ended;
    if (dieAfterMs !== undefined) {
      await using dying = new GatewayProcess({ place: this.#place });
      await pause(dieAfterMs);
      await dying.stop("SIGKILL");
      this.kills++;
    }
    this.#polling = Promise.withResolvers();
    this.#gateway = await startGatewayProcess({ place: this.#place });
    this.#node = await this.#connectNode();
    this.#noteDoubts();
  }

  /** A notice is sent at most once: one that was on its way at a second kill is not sent again. */
  #noteDoubts() {
    const db = new DatabaseSync(this.#place.database, { readOnly: true });
    try {
      const notices = db.prepare(
        `SELECT address ->> '$.to' AS chat FROM outbox
         WHERE state = 'unknown' AND message ->> '$.isNotice'`,
      );
      for (const { chat } of notices.all()) {
        const found = this.#chats.get(String(chat));
        if (found) found.isInDoubt = true;
      }
    } finally {
      db.close();
    }
  }

  #write(kind: Kind): Chat {
    const id = FIRST_USER + this.#chats.size;
    const chat: Chat = {
      who: { id, first_name: `Person ${id}` },
      kind,
      shown: [],
      hasPressed: false,
      isInDoubt: false,
    };
    this.#chats.set(String(id), chat);
    const text = kind === "run" ? `/run ${NODE} echo ${id}` : `${kind} ${id}`;
    this.#bot.write(text, { from: chat.who });
    return chat;
  }

  /** The gateway dies here if this is where it is meant to. @returns whether it does */
  #pass(spot: string): boolean {
    if (this.#trap !== spot || !this.#gateway) return false;
    this.#trap = undefined;
    this.#isDoomed = true;
    this.kills++;
    this.#gateway.signal("SIGKILL");
    void this.#gateway.ended.then(() => {
      this.#isDoomed = false;
      this.#tell();
    });
    return true;
  }

  async #atMoment(ms: number) {
    await pause(ms);
    this.#pass("some moment");
  }

  #tell() {
    this.#news.resolve();
    this.#news = Promise.withResolvers();
  }

  async #nextNews(waiting: readonly Chat[]) {
    if (this.#gateway.isOver) return;
    await before(DEADLINE_MS, this.#news.promise, () => {
      const chats = waiting.map(({ who, kind, shown }) => ({ id: who.id, kind, shown }));
      return `nothing more came: ${JSON.stringify(chats)}\n${this.#gateway.stderr}`;
    });
  }

  /** Everything that was accepted is dealt with. */
  async #settled() {
    const db = new DatabaseSync(this.#place.database, { readOnly: true });
    try {
      const unsettled = db.prepare(
        `SELECT (SELECT count(*) FROM outbox WHERE state IN ('waiting', 'sending')) +
           (SELECT count(*) FROM runs WHERE state <> 'done') AS count`,
      );
      const begin = performance.now();
      while (Number(unsettled.get()?.count) > 0) {
        assert(performance.now() - begin < DEADLINE_MS, "something is never dealt with");
        await pause(20);
      }
    } finally {
      db.close();
    }
  }

  /** What the Bot API is called for. What reaches it counts as shown, answered or not. */
  #see({ method, params }: BotCall): "hang" | undefined {
    if (method === "getUpdates" && params.timeout > 0) this.#polling.resolve();
    if (method === "getUpdates" && this.#bot.offsets.at(-1) === this.#bot.nextUpdate) {
      return this.#pass("it is acknowledged") ? "hang" : undefined;
    }
    const chat = this.#chats.get(String(params.chat_id));
    if (method !== "sendMessage" || !chat) return undefined;
    const text = String(params.text);
    if (isNotice(text)) {
      chat.shown.push(text);
      this.#tell();
      return this.#pass("a notice arrives") ? "hang" : undefined;
    }
    if (isQuestion(text)) {
      chat.shown.push(text);
      if (this.#pass("a question is asked")) return "hang";
      chat.hasPressed = true;
      this.#bot.press(params.reply_markup.inline_keyboard[0][0].callback_data, { from: chat.who });
      this.#pass("the question is answered");
      return undefined;
    }
    if (this.#pass("the reply is lost")) return "hang";
    chat.shown.push(text);
    this.#tell();
    if (this.#pass("the reply arrives")) return "hang";
    if (text.startsWith("Part 2") && this.#pass("a part of the reply has arrived")) return "hang";
    if (this.#trap === "the reply has arrived") {
      this.#isDoomed = true;
      // The answer is on its way then.
      setTimeout(() => this.#pass("the reply has arrived"));
    }
    return undefined;
  }

  #answer({ body: { messages } }: ModelRequest): Reply {
    const at = messages.findLastIndex(({ role }) => role === "user");
    const [, kind, id] = /(plain|tool|long) (\d+)/.exec(textOf(messages[at].content)) ?? [];
    const result = messages.slice(at).find(({ role }) => role === "tool");
    this.#pass(result ? "the model has the result" : "the model is asked");
    if (kind === "tool" && !result) {
      const args = { node: NODE, command: "system.which", params: { bins: [id] } };
      return { calls: [{ name: "node_invoke", args }] };
    }
    if (kind !== "long") return { text: `Reply to ${id}`, pieces: [`Reply `, `to ${id}`] };
    const parts = Array.from({ length: PARTS }, (_, part) => `Part ${part + 1} for ${id} ${FILL}`);
    if (this.#trap === "the model speaks") setTimeout(() => this.#pass("the model speaks"), 15);
    const text = parts.join("\n\n");
    return { text, pieces: [text], chunkBytes: 2_000, dripMs: 5 };
  }

  async #connectNode(): Promise<AsyncDisposable> {
    const client = await handshake(this.#gateway.url, {
      role: "node",
      device: this.#device,
      auth: { token: TOKEN },
      client: { displayName: NODE },
      params: { commands: ["system.run", "system.which"], caps: ["system"] },
    });
    if (!(client instanceof TestClient)) throw new Error(JSON.stringify(client));
    const serving = this.#serve(client);
    return {
      async [Symbol.asyncDispose]() {
        await client[Symbol.asyncDispose]();
        await serving;
      },
    };
  }

  async #serve(client: TestClient) {
    while (!client.socket.isClosed) {
      // A deadline that passes while nobody asks anything is not a failure.
      const asked = await client.event("node.invoke.request").catch(() => undefined);
      if (!asked) continue;
      const isRun = asked.command === "system.run";
      if (this.#pass(isRun ? "the approved command runs" : "the node is asked")) continue;
      const payload = isRun
        ? { exitCode: 0, success: true, timedOut: false, stdout: "done\n", stderr: "" }
        : { bins: {} };
      const { id, nodeId } = asked;
      client.call("node.invoke.result", { id, nodeId, ok: true, payload }).catch(() => {});
      this.#pass("the node has answered");
    }
  }
}

const FILL = "x".repeat(3_900);

function isSettled({ kind, shown, isInDoubt }: Chat): boolean {
  if (isInDoubt || shown.some(isNotice)) return true;
  switch (kind) {
    case "long":
      return shown.some((text) => text.startsWith(`Part ${PARTS}`));
    case "run":
      return shown.some((text) => !isQuestion(text) && !/^(It may run|Nobody waits)/.test(text));
    default:
      return shown.length > 0;
  }
}

function isNotice(text: string): boolean {
  return text === MAYBE_LOST || text.startsWith("I was interrupted");
}

function isQuestion(text: string): boolean {
  return text.startsWith("May this run");
}

function shortened(text: string): string {
  return text.replace(/x{9,}/, "x…");
}

function textOf(content: unknown): string {
  return typeof content === "string" ? content : JSON.stringify(content);
}

/** Numbers in [0, 1) that are the same for an equal seed. */
function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
