// The channels of a gateway: started as the configuration says, what comes in handed to the agent, and
// what the agent says handed out. A message that was accepted becomes a run in one and the same
// transaction that notes it as dealt with, so that none is lost and none runs twice.

import { type Config, defaultAt } from "../../config/schema.ts";
import { resolveSecret } from "../../config/secrets.ts";
import type { Env } from "../../config/paths.ts";
import type { Log } from "../../config/log.ts";
import { RpcError } from "../../rpc/error.ts";
import type { Runs } from "../agent/runs.ts";
import { COMMANDS } from "../agent/builtin.ts";
import type { CurrentConfig } from "../gateway.ts";
import type { Sessions } from "../sessions.ts";
import type { Store } from "../store.ts";
import type { AccessRules } from "./access.ts";
import {
  type Channel,
  type ChannelStatus,
  DEFAULT_ACCOUNT,
  type IncomingMessage,
} from "./channel.ts";
import type { Contact, Contacts } from "./contacts.ts";
import type { Outbox, Sender } from "./outbox.ts";
import { botIdOf, type Brought, type Intake, type Stranger, TelegramChannel } from "./telegram.ts";

export interface ChannelsOptions {
  store: Store;
  config: CurrentConfig;
  env: Env;
  log: Log;
  sessions: Sessions;
  contacts: Contacts;
  outbox: Outbox;
  /** Asked for when the first message comes. */
  runs(): Runs;
  /** Told when the status of a channel has changed. */
  onChange(): void;
  /** Told of somebody who waits to be let in. */
  onRequest(contact: Contact): void;
}

export interface AccountStatus extends ChannelStatus {
  channel: string;
  label: string;
  accountId: string;
}

type TelegramConfig = NonNullable<NonNullable<Config["channels"]>["telegram"]>;

/** A message that was seen is known for so long. */
const SEEN_MS = 7 * 24 * 3_600_000;
/** Telegram numbers its updates anew when there were none for a week. */
const POSITION_MS = 6 * 24 * 3_600_000;
/** "Typing" is shown anew in this time, as long as a run lasts, but not for ever. */
const TYPING_MS = 4_000;
const MAX_TYPING_MS = 300_000;

export class Channels implements AsyncDisposable {
  readonly #options: ChannelsOptions;
  readonly #sql;
  #telegram?: TelegramChannel;
  /** What the running one was started with. */
  #startedWith = "";
  #problem?: string;
  #changing: Promise<void> = Promise.resolve();
  readonly #typing = new Set<ReturnType<typeof setInterval>>();
  #isStopped = false;

  constructor(options: ChannelsOptions) {
    const { store } = options;
    this.#options = options;
    this.#sql = {
      position: store.prepare(
        `SELECT position FROM channel_offsets
         WHERE channel = ? AND account_id = ? AND bot_id = ? AND moved_at_ms > ?`,
      ),
      move: store.prepare(
        `INSERT INTO channel_offsets (channel, account_id, bot_id, position, moved_at_ms)
         VALUES (?, ?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET bot_id = excluded.bot_id, position = excluded.position,
           moved_at_ms = excluded.moved_at_ms`,
      ),
      see: store.prepare(
        `INSERT INTO inbox (channel, account_id, inbound_id, accepted_at_ms) VALUES (?, ?, ?, ?)
         ON CONFLICT DO NOTHING`,
      ),
      forget: store.prepare("DELETE FROM inbox WHERE accepted_at_ms < ?"),
    };
  }

  /** Brings what runs in line with the configuration. Never rejects. */
  refresh(): Promise<void> {
    this.#changing = this.#changing.then(() => this.#apply()).catch((error) => {
      this.#problem = (error as Error).message;
      this.#options.log.error("a channel could not be started", { error: this.#problem });
      this.#options.onChange();
    });
    return this.#changing;
  }

  sender(channel: string, accountId: string): Sender | undefined {
    const found = this.#telegram;
    if (found?.id !== channel || found.accountId !== accountId) return undefined;
    return found.isReachable ? found : undefined;
  }

  /** Accounts that are configured. */
  status(): AccountStatus[] {
    const { telegram } = this.#options.config.reading.config.channels ?? {};
    if (!isConfigured(telegram)) return [];
    const at = { channel: "telegram", label: "Telegram", accountId: DEFAULT_ACCOUNT };
    if (this.#telegram) return [{ ...at, ...this.#telegram.status() }];
    const lastError = this.#problem;
    return [{ ...at, configured: true, running: false, ...(lastError && { lastError }) }];
  }

  /** The channel a message goes to when none is named. */
  get defaultChannel(): string | undefined {
    return this.status()[0]?.channel;
  }

  /** Asks the service who the bot is. @throws {Error} in one sentence */
  async probe(channel: string): Promise<string> {
    if (channel !== "telegram" || !this.#telegram) throw new Error(`${channel} does not run`);
    return await this.#telegram.whoami();
  }

  async [Symbol.asyncDispose]() {
    this.#isStopped = true;
    for (const timer of this.#typing) clearInterval(timer);
    await this.#changing;
    await this.#telegram?.[Symbol.asyncDispose]();
  }

  async #apply(): Promise<void> {
    if (this.#isStopped) return;
    const { telegram } = this.#options.config.reading.config.channels ?? {};
    const wanted = isConfigured(telegram) && telegram.enabled !== false ? telegram : undefined;
    let token = "";
    let problem: string | undefined;
    try {
      // The file of the token may hold another one now.
      if (wanted) token = await this.#tokenOf(wanted);
    } catch (error) {
      problem = (error as Error).message;
    }
    const apiRoot = (wanted?.apiRoot ?? defaultOf("apiRoot")).replace(/\/+$/, "");
    const start = token && JSON.stringify([token, apiRoot]);
    if (start === this.#startedWith && problem === this.#problem) return;
    await this.#telegram?.[Symbol.asyncDispose]();
    this.#telegram = undefined;
    this.#startedWith = start;
    this.#problem = problem;
    if (problem) this.#options.log.error("a channel could not be started", { error: problem });
    if (token) this.#telegram = this.#startTelegram(token, apiRoot);
    this.#options.onChange();
    this.#options.outbox.poke();
  }

  async #tokenOf({ botToken, tokenFile }: TelegramConfig): Promise<string> {
    const { env, log } = this.#options;
    const token = await resolveSecret(botToken ?? { file: tokenFile! }, {
      env,
      name: botToken === undefined ? "channels.telegram.tokenFile" : "channels.telegram.botToken",
      warn: (message) => log.warn(message),
    });
    log.addSecret(token);
    return token;
  }

  #startTelegram(token: string, apiRoot: string): TelegramChannel {
    const { log, onChange, outbox } = this.#options;
    return new TelegramChannel({
      accountId: DEFAULT_ACCOUNT,
      token,
      apiRoot,
      rules: () => rulesOf(this.#options.config.reading.config.channels?.telegram ?? {}),
      intake: this.#intake("telegram", DEFAULT_ACCOUNT, botIdOf(token)),
      log: log.child("telegram"),
      commands: COMMANDS.map(({ name, summary }) => ({ name, summary })),
      onChange: () => {
        onChange();
        outbox.poke();
      },
    });
  }

  #intake(channel: string, accountId: string, botId: string): Intake {
    const { store, contacts } = this.#options;
    return {
      position: () => {
        const row = this.#sql.position.get(channel, accountId, botId, Date.now() - POSITION_MS);
        return row && Number(row.position);
      },
      take: (updateId, brought?: Brought) => {
        store.transaction(() => {
          this.#sql.move.run(channel, accountId, botId, String(updateId), Date.now());
          if (!brought) return;
          if ("message" in brought) this.#accept(brought.message);
          else this.#greet(brought.stranger);
        });
      },
      isPaired: (senderId) => contacts.isApproved({ channel, accountId }, senderId),
    };
  }

  /** Within the transaction that notes its update as dealt with. */
  #greet({ from, sender }: Stranger) {
    const { contacts, outbox, store, onRequest } = this.#options;
    const asked = contacts.ask(from, sender);
    if (!asked) return;
    const { contact, isNew } = asked;
    outbox.enqueue(
      from,
      {
        text: "I do not know you. If you know who runs me, have them let you in within the hour; " +
          `they run this:\n\n\`zero pairing approve ${from.channel} ${contact.code}\`\n\n` +
          `You are number ${sender.id} here.`,
      },
      `pairing:${from.channel}:${from.accountId}:${sender.id}:${crypto.randomUUID()}`,
    );
    if (isNew) store.afterCommit(() => onRequest(contact));
  }

  /** Within the transaction that notes its update as dealt with. */
  #accept(message: IncomingMessage) {
    const { from, inboundId, sender, chat, images, text, isOwner } = message;
    const { changes } = this.#sql.see.run(from.channel, from.accountId, inboundId, Date.now());
    if (changes === 0) return;
    this.#sql.forget.run(Date.now() - SEEN_MS);
    const { sessions, outbox } = this.#options;
    const sessionKey = this.#sessionOf(message);
    sessions.ensure(sessionKey, {
      channel: from.channel,
      chatType: chat.kind,
      displayName: chat.title ?? sender.name,
      deliveryContext: from,
    });
    const runId = `${from.channel}:${from.accountId}:${inboundId}`;
    try {
      const run = this.#options.runs().start({
        runId,
        sessionKey,
        message: text,
        images,
        origin: { kind: "channel", isOwner, address: from, senderName: sender.name },
        deliverTo: from,
        ...(chat.kind === "group" && { replyTo: message.messageId }),
      });
      this.#options.store.afterCommit(() => this.#showTyping(message, run.done));
    } catch (error) {
      const isBusy = error instanceof RpcError &&
        (error.details as { code?: string } | undefined)?.code === "SESSION_BUSY";
      if (!isBusy) throw error;
      outbox.enqueue(
        from,
        { text: "I have too much to do in this chat already: wait for an answer, or send /stop." },
        `busy:${runId}`,
      );
    }
  }

  /** Owners share the main session with the gateway's own chat; everybody else has one of their own. */
  #sessionOf({ from, sender, chat, isOwner }: IncomingMessage): string {
    const { sessions } = this.#options;
    const main = sessions.mainKey();
    if (chat.kind === "direct" && isOwner) return main;
    const { agentId } = sessions.canonicalKey(main);
    const topic = from.threadId ? `:topic:${from.threadId}` : "";
    return chat.kind === "group"
      ? `agent:${agentId}:${from.channel}:group:${from.to}${topic}`
      : `agent:${agentId}:${from.channel}:direct:${sender.id}`;
  }

  #showTyping({ from }: IncomingMessage, done: Promise<unknown>) {
    const channel: Channel | undefined = this.#telegram;
    if (!channel || this.#isStopped) return;
    const startedAtMs = performance.now();
    const show = () => {
      if (performance.now() - startedAtMs > MAX_TYPING_MS) stop();
      else void channel.typing(from);
    };
    const timer = setInterval(show, TYPING_MS);
    const stop = () => {
      clearInterval(timer);
      this.#typing.delete(timer);
    };
    this.#typing.add(timer);
    show();
    done.finally(stop);
  }
}

function isConfigured(telegram: TelegramConfig | undefined): telegram is TelegramConfig {
  return telegram?.botToken !== undefined || telegram?.tokenFile !== undefined;
}

function rulesOf(settings: TelegramConfig): AccessRules {
  const { dmPolicy, allowFrom = [], owners, requireMention, groups = {} } = settings;
  return {
    dmPolicy: dmPolicy ?? defaultOf("dmPolicy"),
    allowFrom,
    owners,
    requireMention: requireMention ?? defaultOf("requireMention"),
    groups,
  };
}

/** As the schema says. */
function defaultOf<K extends keyof TelegramConfig>(key: K): NonNullable<TelegramConfig[K]> {
  return defaultAt(["channels", "telegram", key]) as NonNullable<TelegramConfig[K]>;
}
