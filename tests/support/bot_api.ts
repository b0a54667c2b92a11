// A Telegram Bot API on loopback: what people write becomes updates, what the bot calls is recorded
// and answered as the real one does, as far as this family of methods goes. Tests script its moods.

export interface BotCall {
  method: string;
  // deno-lint-ignore no-explicit-any
  params: Record<string, any>;
  /** Files of a multipart request by field. */
  files: Record<string, { name: string; bytes: Uint8Array }>;
  atMs: number;
}

export interface TelegramUser {
  id: number;
  is_bot?: boolean;
  first_name: string;
  username?: string;
}

export interface TelegramChat {
  id: number;
  type: "private" | "group" | "supergroup";
  title?: string;
  first_name?: string;
  username?: string;
}

/** What is answered in place of the usual; undefined leaves it to the usual. */
export type Mood = (
  call: BotCall,
) => Response | "drop" | "hang" | undefined | Promise<Response | "drop" | "hang" | undefined>;

export interface BotApi extends AsyncDisposable {
  /** For `channels.telegram.apiRoot`. */
  readonly root: string;
  readonly token: string;
  /** Everything but `getUpdates`, in order. */
  readonly calls: BotCall[];
  /** Messages the bot sent, as the chats show them. */
  readonly sent: BotCall[];
  /** The `offset` of every poll. */
  readonly offsets: number[];
  /** The id of the update that comes next. */
  readonly nextUpdate: number;
  mood?: Mood;
  /** @returns the update's id */
  push(update: Record<string, unknown>): number;
  /** Somebody writes. @returns the message */
  write(
    text: string,
    options?: {
      from?: TelegramUser;
      chat?: TelegramChat;
      kind?: "message" | "edited_message";
      extra?: Record<string, unknown>;
    },
  ): Record<string, unknown>;
  /** Somebody presses a button of a message the bot sent. */
  press(
    data: string,
    options?: { from?: TelegramUser; chat?: TelegramChat; messageId?: number },
  ): void;
  /** A file that can be fetched. @returns its `file_id` */
  addFile(bytes: Uint8Array, name: string): string;
  /** Resolves with the first call (past or to come) that `test` accepts. */
  until(test: (call: BotCall) => boolean, what?: string): Promise<BotCall>;
  /** Resolves when updates up to this id were acknowledged. */
  acknowledged(updateId: number): Promise<void>;
}

export const OWNER: TelegramUser = { id: 1001, first_name: "Ada", username: "ada" };
export const STRANGER: TelegramUser = { id: 2002, first_name: "Mallory", username: "mallory" };
export const BOT: TelegramUser & { is_bot: true } = {
  id: 9009,
  is_bot: true,
  first_name: "Zero",
  username: "zero_test_bot",
};

/** Nothing in a test takes longer, unless it hangs. */
const DEADLINE_MS = 60_000;

export function startBotApi({ token = "9009:test-bot-token-secret" } = {}): BotApi {
  const calls: BotCall[] = [];
  const offsets: number[] = [];
  const updates: { update_id: number; [key: string]: unknown }[] = [];
  const files = new Map<string, { name: string; bytes: Uint8Array }>();
  const watchers = new Set<() => void>();
  const closing = new AbortController();
  let nextUpdate = 5000;
  let nextMessage = 100;
  let acknowledged = 0;
  let polls = 0;
  const changed = () => [...watchers].forEach((tell) => tell());
  /** Resolves when `test` holds, asked again at every change. */
  const when = (test: () => boolean, what: string, deadlineMs: number) =>
    new Promise<boolean>((resolve, reject) => {
      const finish = (isMet: boolean) => {
        clearTimeout(timer);
        watchers.delete(look);
        resolve(isMet);
      };
      const look = () => {
        if (closing.signal.aborted || test()) finish(!closing.signal.aborted);
      };
      const timer = setTimeout(() => {
        watchers.delete(look);
        if (what === "") resolve(false);
        else reject(new Error(`${what} did not come; seen: ${calls.map((one) => one.method)}`));
      }, deadlineMs);
      watchers.add(look);
      look();
    });

  const server = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen() {} },
    async (request) => {
      const { pathname } = new URL(request.url);
      const file = pathname.split(`/file/bot${token}/`)[1];
      if (file !== undefined) {
        const found = files.get(file);
        return found ? new Response(found.bytes.slice()) : refusal(404, "Not Found");
      }
      const method = pathname.split(`/bot${token}/`)[1];
      if (method === undefined) {
        await request.body?.cancel();
        return refusal(401, "Unauthorized");
      }
      const call = { method, atMs: Date.now(), ...await readParams(request) };
      if (method === "getUpdates") offsets.push(Number(call.params.offset ?? 0));
      else calls.push(call);
      changed();
      const mood = await api.mood?.(call);
      if (mood === "hang") {
        await new Promise<void>((resolve) => {
          closing.signal.addEventListener("abort", () => resolve());
        });
        return refusal(500, "the test hung up");
      }
      if (mood === "drop") {
        const beginning = new TextEncoder().encode('{"ok":');
        return new Response(
          new ReadableStream({
            start: (controller) => controller.enqueue(beginning),
            async pull(controller) {
              await new Promise((resolve) => setTimeout(resolve));
              controller.error(new Error("dropped by the test"));
            },
          }),
        );
      }
      if (mood) return mood;
      if (method === "getUpdates") return await poll(call);
      return answer(call);
    },
  );

  async function poll({ params }: BotCall): Promise<Response> {
    const number = ++polls;
    const offset = Number(params.offset ?? 0);
    if (offset > 0) {
      acknowledged = Math.max(acknowledged, offset - 1);
      while (updates.length > 0 && updates[0].update_id < offset) updates.shift();
      changed();
    }
    const seconds = Number(params.timeout ?? 0);
    // As the real one: whoever asks again has given up asking before.
    await when(() => updates.length > 0 || polls > number, "", seconds * 1000);
    if (polls > number) return refusal(409, "Conflict: terminated by other getUpdates request");
    return Response.json({ ok: true, result: updates.slice(0, Number(params.limit ?? 100)) });
  }

  function answer({ method, params }: BotCall): Response {
    const ok = (result: unknown) => Response.json({ ok: true, result });
    const message = (extra: Record<string, unknown> = {}) => ({
      message_id: nextMessage++,
      date: Math.floor(Date.now() / 1000),
      from: BOT,
      chat: { id: Number(params.chat_id), type: "private" },
      ...extra,
    });
    switch (method) {
      case "getMe":
        return ok({
          ...BOT,
          can_join_groups: true,
          can_read_all_group_messages: false,
          supports_inline_queries: false,
        });
      case "sendMessage":
        return ok(message({ text: params.text }));
      case "sendPhoto":
        return ok(message({ photo: [{ file_id: "p", file_unique_id: "p", width: 1, height: 1 }] }));
      case "sendDocument":
        return ok(message({ document: { file_id: "d", file_unique_id: "d" } }));
      case "sendPoll":
        return ok(message({ poll: { id: "poll-1", question: params.question, options: [] } }));
      case "editMessageText":
        return ok(message({ message_id: Number(params.message_id), text: params.text }));
      case "getFile": {
        const found = files.get(String(params.file_id));
        return found
          ? ok({
            file_id: params.file_id,
            file_unique_id: params.file_id,
            file_size: found.bytes.length,
            file_path: params.file_id,
          })
          : refusal(400, "Bad Request: invalid file_id");
      }
      default:
        return ok(true);
    }
  }

  const privateChat = (user: TelegramUser): TelegramChat => ({
    id: user.id,
    type: "private",
    first_name: user.first_name,
    username: user.username,
  });
  const api: BotApi = {
    root: `http://127.0.0.1:${server.addr.port}`,
    token,
    calls,
    offsets,
    get nextUpdate() {
      return nextUpdate;
    },
    get sent() {
      return calls.filter(({ method }) => /^send(Message|Photo|Document|Poll)$/.test(method));
    },
    push(update) {
      const update_id = nextUpdate++;
      updates.push({ update_id, ...update });
      changed();
      return update_id;
    },
    write(text, { from = OWNER, chat = privateChat(from), kind = "message", extra = {} } = {}) {
      const message = {
        message_id: nextMessage++,
        date: Math.floor(Date.now() / 1000),
        from: { is_bot: false, ...from },
        chat,
        ...(text !== "" && { text }),
        ...(text.startsWith("/") &&
          { entities: [{ type: "bot_command", offset: 0, length: text.split(/\s/)[0].length }] }),
        ...(kind === "edited_message" && { edit_date: Math.floor(Date.now() / 1000) }),
        ...extra,
      };
      api.push({ [kind]: message });
      return message;
    },
    press(data, { from = OWNER, chat = privateChat(from), messageId = nextMessage - 1 } = {}) {
      api.push({
        callback_query: {
          id: String(nextUpdate),
          from: { is_bot: false, ...from },
          chat_instance: "1",
          data,
          message: {
            message_id: messageId,
            date: 1,
            chat,
            from: BOT,
            text: "…",
          },
        },
      });
    },
    addFile(bytes, name) {
      const id = `file-${files.size}-${name}`;
      files.set(id, { name, bytes });
      return id;
    },
    async until(test, what = "the call") {
      await when(() => calls.some(test), what, DEADLINE_MS);
      const found = calls.find(test);
      if (!found) throw new Error(`${what} did not come before the end`);
      return found;
    },
    async acknowledged(updateId) {
      await when(() => acknowledged >= updateId, `acknowledgement of ${updateId}`, DEADLINE_MS);
    },
    async [Symbol.asyncDispose]() {
      closing.abort();
      changed();
      await server.shutdown();
    },
  };
  return api;
}

/** An error as the Bot API words it. */
export function refusal(
  code: number,
  description: string,
  parameters?: Record<string, unknown>,
): Response {
  return Response.json({ ok: false, error_code: code, description, parameters }, { status: code });
}

async function readParams(request: Request): Promise<Pick<BotCall, "params" | "files">> {
  const type = request.headers.get("content-type") ?? "";
  if (type.startsWith("multipart/form-data")) {
    const params: BotCall["params"] = {};
    const files: BotCall["files"] = {};
    for (const [name, value] of await request.formData()) {
      if (typeof value === "string") params[name] = unpacked(value);
      else files[name] = { name: value.name, bytes: new Uint8Array(await value.arrayBuffer()) };
    }
    return { params, files };
  }
  const text = await request.text();
  return { params: text === "" ? {} : JSON.parse(text), files: {} };
}

/** Multipart fields hold JSON where the method takes more than text. */
function unpacked(text: string): unknown {
  try {
    return /^[[{]/.test(text) ? JSON.parse(text) : text;
  } catch {
    return text;
  }
}
