// Telegram, through its Bot API. Updates are fetched one batch at a time and acknowledged only after
// they are durable; what is sent either certainly did not arrive, or is not sent again.

import { pause } from "../../config/pause.ts";
import type { Api } from "grammy";
import type { InlineKeyboardMarkup, MaybeInaccessibleMessage, Message, Update } from "grammy/types";
import type { Log } from "../../config/log.ts";
import { type AccessRules, judge } from "./access.ts";
import {
  type Address,
  type Channel,
  type ChannelStatus,
  type Delivered,
  DeliveryError,
  type IncomingMessage,
  type OutgoingMessage,
  type PartProgress,
} from "./channel.ts";
import { MAX_CAPTION, type TelegramText, telegramTexts } from "./telegram_text.ts";

export interface TelegramOptions {
  accountId: string;
  token: string;
  apiRoot: string;
  /** As the configuration says now. */
  rules(): AccessRules;
  intake: Intake;
  log: Log;
  /** Names of the commands people are offered. */
  commands: readonly { name: string; summary: string }[];
  /** Told when it has come up, and whenever its status changes. */
  onChange(): void;
  timing?: Partial<Timing>;
}

/** What becomes of updates. */
export interface Intake {
  /** The last update that was dealt with; undefined where it says nothing about the next one. */
  position(): number | undefined;
  /**
   * Notes that an update was dealt with, and what it brought: a message, a stranger, or nothing.
   * Durable when it returns.
   */
  take(updateId: number, brought?: Brought): void;
  isPaired(senderId: string): boolean;
}

export type Brought = { message: IncomingMessage } | { stranger: Stranger };

/** Somebody who wrote without being known. */
export interface Stranger {
  from: Address;
  sender: { id: string; name: string };
}

/** Milliseconds. */
export interface Timing {
  /** Between attempts. */
  firstRetry: number;
  longestRetry: number;
  conflict: number;
  /** While the token is refused. */
  refused: number;
  /** How long Telegram holds a poll that has nothing to answer. */
  hold: number;
  /** Beyond it a poll, a call, the fetching of a file is given up. */
  poll: number;
  call: number;
  file: number;
}

const TIMING: Timing = {
  firstRetry: 1_000,
  longestRetry: 30_000,
  conflict: 10_000,
  refused: 300_000,
  hold: 25_000,
  poll: 45_000,
  call: 60_000,
  file: 20_000,
};
const MAX_IMAGE_BYTES = 5_000_000;
const UPDATES = ["message", "edited_message", "callback_query"] as const;

export class TelegramChannel implements Channel {
  readonly id = "telegram";
  readonly label = "Telegram";
  readonly accountId: string;
  /** Whose updates and messages are numbered anew. */
  readonly botId: string;
  readonly #options: TelegramOptions;
  readonly #timing: Timing;
  readonly #stop = new AbortController();
  readonly #work: Promise<void>;
  /** Calls nobody waits for. */
  readonly #loose = new Set<Promise<unknown>>();
  #api?: Api;
  #me?: { id: number; username: string };
  #isRunning = false;
  #isReachable = false;
  #lastError?: string;
  #lastInboundAtMs?: number;
  #lastOutboundAtMs?: number;

  constructor(options: TelegramOptions) {
    this.accountId = options.accountId;
    this.botId = botIdOf(options.token);
    this.#options = options;
    this.#timing = { ...TIMING, ...options.timing };
    this.#work = this.#run();
  }

  status(): ChannelStatus {
    return {
      configured: true,
      running: this.#isRunning,
      ...(this.#me && { account: `@${this.#me.username}` }),
      ...(this.#lastError && { lastError: this.#lastError }),
      ...(this.#lastInboundAtMs && { lastInboundAtMs: this.#lastInboundAtMs }),
      ...(this.#lastOutboundAtMs && { lastOutboundAtMs: this.#lastOutboundAtMs }),
    };
  }

  get isReachable(): boolean {
    return this.#isReachable;
  }

  async send(to: Address, message: OutgoingMessage, progress: PartProgress): Promise<Delivered> {
    const api = await this.#loaded();
    const parts = await partsOf(message);
    let first: Delivered | undefined;
    progress.begin();
    for (let index = progress.sent; index < parts.length; index++) {
      const isLast = index === parts.length - 1;
      const sent = await this.#sendPart(api, to, parts[index], {
        replyTo: index === 0 ? message.replyTo : undefined,
        keyboard: isLast ? keyboardOf(message) : undefined,
      });
      first ??= { messageId: String(sent.message_id), chatId: to.to };
      this.#lastOutboundAtMs = Date.now();
      progress.note(index + 1);
    }
    return first ?? { messageId: "", chatId: to.to };
  }

  async typing({ to, threadId }: Address): Promise<void> {
    try {
      const api = await this.#loaded();
      await api.sendChatAction(
        to,
        "typing",
        { ...(threadId && { message_thread_id: Number(threadId) }) },
        this.#deadline(this.#timing.call),
      );
    } catch {
      // Nobody waits for it.
    }
  }

  /** Asks who the bot is. @throws {Error} in one sentence, without the token */
  async whoami(): Promise<string> {
    const api = await this.#loaded();
    try {
      const { username } = await api.getMe(this.#deadline(this.#timing.call));
      return `@${username}`;
    } catch (error) {
      throw new Error((await explain(error)).text);
    }
  }

  async [Symbol.asyncDispose]() {
    this.#stop.abort(new Error("the gateway is stopping"));
    await this.#work;
    await Promise.all(this.#loose);
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    let failures = 0;
    while (!signal.aborted) {
      try {
        const api = await this.#loaded();
        if (!this.#me) await this.#introduce(api);
        const updates = await this.#poll(api);
        failures = 0;
        if (!this.#isRunning) this.#show({ isRunning: true, isReachable: true });
        for (const update of updates) await this.#take(api, update);
      } catch (error) {
        if (signal.aborted) return;
        const { kind, text, retryAfterMs } = await explain(error);
        const isReachable = kind === "conflict" || kind === "rateLimit" || kind === "kept";
        this.#show({ isRunning: false, isReachable, error: text });
        failures++;
        const { firstRetry, longestRetry, conflict, refused } = this.#timing;
        const waitMs = retryAfterMs ??
          (kind === "conflict"
            ? conflict
            : kind === "auth"
            ? refused
            : Math.min(firstRetry * 2 ** Math.min(failures - 1, 10), longestRetry));
        this.#options.log.warn("cannot fetch messages from Telegram; trying again", {
          error: text,
          inMs: waitMs,
        });
        await pause(waitMs * (0.75 + Math.random() / 2), signal);
      }
    }
  }

  /** A webhook that was set once would keep all updates away from polling. */
  async #introduce(api: Api): Promise<void> {
    const signal = this.#deadline(this.#timing.call);
    const me = await api.getMe(signal);
    await api.deleteWebhook({ drop_pending_updates: false }, signal);
    const commands = this.#options.commands.map(({ name, summary }) => ({
      command: name,
      description: summary,
    }));
    await api.setMyCommands(commands, {}, signal);
    this.#me = { id: me.id, username: me.username };
  }

  async #poll(api: Api): Promise<Update[]> {
    const position = this.#options.intake.position();
    return await api.getUpdates(
      {
        // After trouble nobody shall wait for news to learn that it is over.
        timeout: this.#isRunning ? this.#timing.hold / 1_000 : 0,
        allowed_updates: [...UPDATES],
        ...(position !== undefined && { offset: position + 1 }),
      },
      this.#deadline(this.#timing.poll),
    );
  }

  /** An update that cannot be understood is passed over; one that cannot be written down waits. */
  async #take(api: Api, update: Update): Promise<void> {
    const { intake, log } = this.#options;
    let brought: Brought | undefined;
    try {
      brought = await this.#read(api, update);
    } catch (error) {
      this.#stop.signal.throwIfAborted();
      log.error("an update of Telegram could not be read; it is passed over", {
        update: update.update_id,
        error: (error as Error).message,
      });
    }
    try {
      intake.take(update.update_id, brought);
    } catch (cause) {
      throw new NotKept((cause as Error).message, { cause });
    }
    if (brought && "message" in brought) this.#lastInboundAtMs = Date.now();
  }

  /** @returns undefined for what is not for the agent */
  async #read(api: Api, update: Update): Promise<Brought | undefined> {
    if (update.callback_query) return this.#readButton(api, update.callback_query);
    const message = update.message ?? update.edited_message;
    if (message?.migrate_to_chat_id !== undefined) this.#noteMigration(message);
    if (!message?.from || message.from.is_bot) return undefined;
    const isEdited = update.edited_message !== undefined;
    const from = this.#addressOf(message);
    const sender = senderOf(message.from);
    const kind = message.chat.type === "private" ? "direct" as const : "group" as const;
    const verdict = judge(this.#options.rules(), {
      sender,
      chat: { id: from.to, kind },
      isSecondHand: isEdited || isForwarded(message),
      isMentioned: this.#isSpokenTo(message),
      isPaired: this.#options.intake.isPaired(sender.id),
    });
    if (verdict.kind === "pair") return { stranger: { from, sender } };
    if (verdict.kind !== "accept") return undefined;
    const { images, remarks } = await this.#pictures(api, message);
    const said = this.#withoutMention(message.text ?? message.caption ?? "");
    const text = [
      ...remarks,
      isEdited ? `[edited] ${said}` : isForwarded(message) ? `[forwarded] ${said}` : said,
    ].join("\n").trim();
    if (text === "" && images.length === 0) return undefined;
    const edition = isEdited ? `:${message.edit_date}` : "";
    const chat = { kind, ...("title" in message.chat && { title: message.chat.title }) };
    return {
      message: {
        from,
        inboundId: `${this.botId}:${from.to}:${message.message_id}${edition}`,
        messageId: String(message.message_id),
        text,
        images,
        sender,
        chat,
        isOwner: verdict.isOwner,
        receivedAtMs: Date.now(),
      },
    };
  }

  /** A button says what it stands for, as the one who pressed it. */
  #readButton(
    api: Api,
    query: NonNullable<Update["callback_query"]>,
  ): Brought | undefined {
    const { message, data, from: presser } = query;
    // Unanswered, the button keeps spinning; that is no reason to wait, or to lose what it says.
    this.#loosely(api.answerCallbackQuery(query.id, {}, this.#deadline(this.#timing.call)));
    if (!message || !data) return undefined;
    const kind = message.chat.type === "private" ? "direct" as const : "group" as const;
    const sender = senderOf(presser);
    const from = this.#addressOf(message);
    const verdict = judge(this.#options.rules(), {
      sender,
      chat: { id: from.to, kind },
      isSecondHand: false,
      isMentioned: true,
      isPaired: this.#options.intake.isPaired(sender.id),
    });
    if (verdict.kind !== "accept") return undefined;
    return {
      message: {
        from,
        inboundId: `${this.botId}:button:${query.id}`,
        messageId: String(message.message_id),
        text: data,
        images: [],
        sender,
        chat: { kind },
        isOwner: verdict.isOwner,
        receivedAtMs: Date.now(),
      },
    };
  }

  /** The group has another number from now on, under which the configuration does not know it. */
  #noteMigration({ chat, migrate_to_chat_id }: Message) {
    this.#options.log.warn("a group of Telegram has a new number", {
      before: chat.id,
      now: migrate_to_chat_id,
      fix: `If channels.telegram.groups names ${chat.id}, name ${migrate_to_chat_id} there`,
    });
  }

  #loosely(call: Promise<unknown>) {
    const settled = call.catch(() => {}).finally(() => this.#loose.delete(settled));
    this.#loose.add(settled);
  }

  #addressOf(message: MaybeInaccessibleMessage): Address {
    const isTopic = "is_topic_message" in message && message.is_topic_message === true;
    return {
      channel: this.id,
      accountId: this.accountId,
      to: String(message.chat.id),
      ...(isTopic && { threadId: String(message.message_thread_id) }),
    };
  }

  #isSpokenTo(message: Message): boolean {
    const me = this.#me;
    if (!me) return false;
    if (message.reply_to_message?.from?.id === me.id) return true;
    const text = (message.text ?? message.caption ?? "").toLowerCase();
    return new RegExp(`@${me.username.toLowerCase()}(?!\\w)`).test(text);
  }

  #withoutMention(text: string): string {
    if (!this.#me) return text;
    return text.replace(new RegExp(`@${this.#me.username}(?!\\w)`, "gi"), "").trim();
  }

  /** The picture of a message, in its largest size that is not too large. */
  async #pictures(api: Api, message: Message) {
    const photo = message.photo?.findLast(({ file_size = 0 }) => file_size <= MAX_IMAGE_BYTES);
    const document = message.document?.mime_type?.startsWith("image/")
      ? message.document
      : undefined;
    const remarks: string[] = [];
    if (message.document && !document) {
      remarks.push(`[a file I cannot read: ${message.document.file_name ?? "unnamed"}]`);
    }
    if (message.voice || message.audio || message.video) {
      remarks.push("[sound or video, which I cannot hear or see]");
    }
    const file = photo ?? document;
    if (!file) return { images: [], remarks };
    try {
      const content = await this.#download(api, file.file_id);
      return { images: [{ mimeType: document?.mime_type ?? "image/jpeg", content }], remarks };
    } catch (error) {
      this.#stop.signal.throwIfAborted();
      this.#options.log.warn("a picture could not be fetched from Telegram", {
        error: (await explain(error)).text,
      });
      return { images: [], remarks: [...remarks, "[a picture that could not be fetched]"] };
    }
  }

  /** @returns base64 */
  async #download(api: Api, fileId: string): Promise<string> {
    const { apiRoot, token } = this.#options;
    const signal = this.#deadline(this.#timing.file);
    const { file_path: path } = await api.getFile(fileId, signal);
    const response = await fetch(`${apiRoot}/file/bot${token}/${path}`, {
      signal,
      redirect: "error",
    });
    if (!response.ok || !response.body) throw new Error(`HTTP ${response.status}`);
    const chunks: Uint8Array[] = [];
    let size = 0;
    for await (const chunk of response.body) {
      size += chunk.length;
      if (size > MAX_IMAGE_BYTES) throw new Error("it is larger than 5 MB");
      chunks.push(chunk);
    }
    return new Uint8Array(await new Blob(chunks as BlobPart[]).arrayBuffer()).toBase64();
  }

  async #sendPart(
    api: Api,
    { to, threadId }: Address,
    part: Part,
    { replyTo, keyboard }: { replyTo?: string; keyboard?: InlineKeyboardMarkup },
  ): Promise<Message> {
    const options = {
      ...(threadId && { message_thread_id: Number(threadId) }),
      ...(keyboard && { reply_markup: keyboard }),
      ...(replyTo && {
        reply_parameters: { message_id: Number(replyTo), allow_sending_without_reply: true },
      }),
    };
    const attempt = async (isPlain: boolean, chat = to): Promise<Message> => {
      // What is being sent when the channel stops may still arrive.
      const signal = AbortSignal.timeout(this.#timing.call) as ApiSignal;
      const text = isPlain ? part.text?.plain : part.text?.html;
      const mode = isPlain ? {} : { parse_mode: "HTML" as const };
      if (part.media === undefined) {
        const preview = { link_preview_options: { is_disabled: true } };
        return await api.sendMessage(chat, text ?? "", { ...options, ...mode, ...preview }, signal);
      }
      const file = await fileOf(part.media);
      const captioned = { ...options, ...(text && { caption: text, ...mode }) };
      return part.isPhoto
        ? await api.sendPhoto(chat, file, captioned, signal)
        : await api.sendDocument(chat, file, captioned, signal);
    };
    try {
      return await attempt(false);
    } catch (error) {
      const { kind, newChat } = await explain(error);
      if (kind !== "markup" && newChat === undefined) throw await asDeliveryError(error);
      try {
        return await attempt(kind === "markup", newChat);
      } catch (again) {
        throw await asDeliveryError(again);
      }
    }
  }

  async #loaded(): Promise<Api> {
    if (this.#api) return this.#api;
    const { Api } = await import("grammy/web");
    const { token, apiRoot } = this.#options;
    const longest = Math.max(this.#timing.poll, this.#timing.call);
    return this.#api ??= new Api(token, {
      apiRoot,
      // A last resort: each call has a deadline of its own.
      timeoutSeconds: longest / 1_000 + 30,
      canUseWebhookReply: () => false,
      baseFetchConfig: { redirect: "error" },
    });
  }

  /** For what is given up when the channel stops. */
  #deadline(ms: number): ApiSignal {
    return AbortSignal.any([this.#stop.signal, AbortSignal.timeout(ms)]) as ApiSignal;
  }

  #show(
    { isRunning, isReachable, error }: { isRunning: boolean; isReachable: boolean; error?: string },
  ) {
    this.#isRunning = isRunning;
    this.#isReachable = isReachable;
    this.#lastError = error;
    this.#options.onChange();
  }
}

/** An update could not be written down; it comes again. */
class NotKept extends Error {
  override name = "NotKept";
}

/** The number of a bot, with which its token begins. */
export function botIdOf(token: string): string {
  return token.split(":")[0];
}

/** The library declares a signal of its own, which the platform's one is. */
type ApiSignal = AbortSignal & NonNullable<Parameters<Api["getMe"]>[0]>;

/** One call of the Bot API. */
interface Part {
  text?: TelegramText;
  media?: NonNullable<OutgoingMessage["media"]>[number];
  isPhoto?: boolean;
}

/** Media first, the first with the beginning of the text; then what is left of the text. */
async function partsOf({ text, media = [] }: OutgoingMessage): Promise<Part[]> {
  const texts = await telegramTexts(text, media.length > 0 ? { first: MAX_CAPTION } : {});
  const captions = media.length > 0 ? texts.splice(0, 1) : [];
  return [
    ...media.map((one, index): Part => ({
      media: one,
      isPhoto: /^image\/(jpeg|png|webp)$/.test(one.mimeType ?? typeOf(one.url)),
      text: captions[index],
    })),
    ...texts.map((one): Part => ({ text: one })),
  ];
}

function keyboardOf({ buttons }: OutgoingMessage): InlineKeyboardMarkup | undefined {
  return buttons && {
    inline_keyboard: buttons.map((row) =>
      row.map(({ label, command }) => ({ text: label, callback_data: command }))
    ),
  };
}

async function fileOf({ url, fileName }: NonNullable<Part["media"]>) {
  if (!url.startsWith("data:")) return url;
  const { InputFile } = await import("grammy/web");
  const data = url.slice(url.indexOf(",") + 1);
  const extension = typeOf(url).split("/")[1]?.replace(/[^a-z0-9]/g, "") || "bin";
  return new InputFile(Uint8Array.fromBase64(data), fileName ?? `file.${extension}`);
}

function typeOf(url: string): string {
  return /^data:([\w.+-]+\/[\w.+-]+)/.exec(url)?.[1] ?? "application/octet-stream";
}

function senderOf(
  { id, first_name, last_name, username }: NonNullable<Message["from"]>,
): { id: string; name: string; username?: string } {
  const name = [first_name, last_name].filter(Boolean).join(" ").slice(0, 100);
  return { id: String(id), name, ...(username && { username }) };
}

function isForwarded(message: Message): boolean {
  return message.forward_origin !== undefined || message.is_automatic_forward === true ||
    message.via_bot !== undefined;
}

/** A token that was refused may be mended: what waits is sent then. */
async function asDeliveryError(error: unknown): Promise<DeliveryError> {
  const { kind, text, outcome, retryAfterMs } = await explain(error);
  return new DeliveryError(`Cannot send to Telegram: ${text}`, {
    outcome,
    isTransient: kind !== "refused" && kind !== "markup",
    retryAfterMs,
  });
}

interface Explanation {
  kind:
    | "auth"
    | "conflict"
    | "rateLimit"
    | "markup"
    | "refused"
    | "service"
    | "network"
    /** What Telegram brought could not be written down. */
    | "kept";
  /** Without the token, which the errors of libraries may quote with the address. */
  text: string;
  outcome: "not-sent" | "unknown";
  retryAfterMs?: number;
  /** The number a group has now. */
  newChat?: string;
}

async function explain(error: unknown): Promise<Explanation> {
  if (error instanceof NotKept) {
    const text = `a message could not be written down: ${error.message}`;
    return { kind: "kept", outcome: "not-sent", text };
  }
  const { GrammyError, HttpError } = await import("grammy/web");
  if (error instanceof GrammyError) {
    const { error_code: code, description, parameters } = error;
    // It has answered that it did not do it.
    const outcome = "not-sent" as const;
    if (code === 401 || code === 404) {
      return {
        kind: "auth",
        outcome,
        text: "Telegram does not know the bot's token; fix: zero channels add telegram",
      };
    }
    if (code === 409) {
      return {
        kind: "conflict",
        outcome,
        text: "another program fetches the messages of this bot: stop it, or give this gateway a " +
          "bot of its own",
      };
    }
    if (code === 429) {
      const retryAfterMs = (parameters.retry_after ?? 1) * 1_000;
      return { kind: "rateLimit", outcome, text: "Telegram asks to wait", retryAfterMs };
    }
    const text = `Telegram answered ${code} ${description}`;
    // What stands before Telegram does not know what happened behind it.
    const isGateway = code === 502 || code === 504;
    if (code >= 500) return { kind: "service", outcome: isGateway ? "unknown" : outcome, text };
    const isMarkup = /can't parse (entities|caption)|unsupported start tag/i.test(description);
    const newChat = parameters.migrate_to_chat_id?.toString();
    return { kind: isMarkup ? "markup" : "refused", outcome, text, newChat };
  }
  const inner = error instanceof HttpError ? error.error : error;
  const isBefore = hadNoConnection(inner);
  return {
    kind: "network",
    outcome: isBefore ? "not-sent" : "unknown",
    text: isBefore ? "Telegram cannot be reached" : "the connection to Telegram broke",
  };
}

/**
 * Whether a `fetch` failed before there was a connection, so that nothing was sent. The platform says
 * so in words only; should they change, the outcome counts as unknown, and nothing is sent twice.
 */
function hadNoConnection(error: unknown): boolean {
  const { cause } = error as { cause?: unknown };
  return cause instanceof Error && cause.message.includes("client error (Connect)");
}
