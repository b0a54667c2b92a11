// A model provider on loopback, speaking the chat completions of OpenAI and the messages of
// Anthropic: every request is answered as the test scripted it, byte for byte if need be.

/** What the model says at one turn. */
export type Reply =
  | {
    text?: string;
    /** Tool calls after the text. */
    calls?: { id?: string; name: string; args: unknown; rawArgs?: string }[];
    /** How the text is cut into events; one letter each unless told. */
    pieces?: readonly string[];
    usage?: { input: number; output: number };
    /** Splits the bytes of the stream anywhere, also within letters and lines. */
    chunkBytes?: number;
    /** Ends the connection after so many bytes. */
    dropAfterBytes?: number;
    /** Ends the stream cleanly, without the events that say it is over. */
    isUnfinished?: boolean;
    /** Says so much and then nothing, until the client goes away. */
    stallAfterBytes?: number;
    /** Waits this long between chunks. */
    dripMs?: number;
  }
  | { status: number; body?: unknown; headers?: Record<string, string> }
  /** The body as it is, with status 200. */
  | { raw: string };

export interface ModelRequest {
  path: string;
  headers: Headers;
  body: {
    model: string;
    messages: { role: string; content: unknown; tool_calls?: unknown[]; tool_call_id?: string }[];
    system?: unknown;
    tools?: unknown[];
    [key: string]: unknown;
  };
}

export type Script = (request: ModelRequest, index: number) => Reply | Promise<Reply>;

export interface ModelApi extends AsyncDisposable {
  /** With the version: `http://127.0.0.1:PORT/v1`. */
  readonly baseUrl: string;
  readonly requests: ModelRequest[];
  /** Streams that their reader gave up. */
  readonly abandoned: number;
  /** What is answered from now on. */
  script: Script;
}

/** @param script the replies in their order (the last one stays), or what answers each request */
export function startModelApi(
  script: readonly Reply[] | Script,
  { key = "test-key", models = ["test-model"], isOpen = false }: {
    key?: string;
    models?: readonly string[];
    /** Tells its models to anybody. */
    isOpen?: boolean;
  } = {},
): ModelApi {
  const requests: ModelRequest[] = [];
  let abandoned = 0;
  const server = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen() {} },
    async (request) => {
      const { pathname: path } = new URL(request.url);
      const isKeyGood = request.headers.get("authorization") === `Bearer ${key}` ||
        request.headers.get("x-api-key") === key;
      if (!isKeyGood && !(isOpen && path === "/v1/models")) {
        await request.body?.cancel();
        const sent = request.headers.get("authorization") ?? request.headers.get("x-api-key");
        const message = `Incorrect API key provided: ${sent}`;
        return Response.json({ error: { message } }, { status: 401 });
      }
      if (path === "/v1/models") return Response.json({ data: models.map((id) => ({ id })) });
      const body = await request.json();
      const seen = { path, headers: request.headers, body };
      requests.push(seen);
      const reply = await api.script(seen, requests.length - 1);
      if ("status" in reply) {
        return new Response(
          typeof reply.body === "string" ? reply.body : JSON.stringify(reply.body ?? {}),
          { status: reply.status, headers: reply.headers },
        );
      }
      const headers = { "content-type": "text/event-stream" };
      if ("raw" in reply) return new Response(reply.raw, { headers });
      const text = path.endsWith("/messages") ? anthropicStream(reply) : openaiStream(reply);
      return new Response(streamOf(text, reply, () => abandoned++), { headers });
    },
  );
  const api: ModelApi = {
    baseUrl: `http://127.0.0.1:${server.addr.port}/v1`,
    requests,
    get abandoned() {
      return abandoned;
    },
    script: typeof script === "function"
      ? script
      : (_, index) => script[Math.min(index, script.length - 1)],
    async [Symbol.asyncDispose]() {
      await server.shutdown();
    },
  };
  return api;
}

type Spoken = Exclude<Reply, { status: number } | { raw: string }>;

function openaiStream({ text = "", calls = [], pieces = [...text], usage, isUnfinished }: Spoken) {
  const events: unknown[] = [];
  const say = (delta: unknown, finish_reason: string | null = null) =>
    events.push({
      id: "chat-1",
      object: "chat.completion.chunk",
      created: 1,
      model: "test-model",
      choices: [{ index: 0, delta, finish_reason }],
    });
  say({ role: "assistant", content: "" });
  for (const content of pieces) say({ content });
  calls.forEach(({ id = `call-${crypto.randomUUID()}`, name, args, rawArgs }, index) => {
    const text = rawArgs ?? JSON.stringify(args);
    const middle = Math.floor(text.length / 2);
    say({
      tool_calls: [{ index, id, type: "function", function: { name, arguments: "" } }],
    });
    for (const part of [text.slice(0, middle), text.slice(middle)]) {
      say({ tool_calls: [{ index, function: { arguments: part } }] });
    }
  });
  if (!isUnfinished) {
    say({}, calls.length > 0 ? "tool_calls" : "stop");
    const { input, output } = usage ?? { input: 10, output: 5 };
    events.push({
      id: "chat-1",
      object: "chat.completion.chunk",
      created: 1,
      model: "test-model",
      choices: [],
      usage: { prompt_tokens: input, completion_tokens: output, total_tokens: input + output },
    });
  }
  return events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join("") +
    (isUnfinished ? "" : "data: [DONE]\n\n");
}

function anthropicStream(
  { text = "", calls = [], pieces = [...text], usage, isUnfinished }: Spoken,
) {
  const { input, output } = usage ?? { input: 10, output: 5 };
  const events: { type: string; [key: string]: unknown }[] = [{
    type: "message_start",
    message: {
      id: "msg_1",
      type: "message",
      role: "assistant",
      model: "test-model",
      content: [],
      stop_reason: null,
      stop_sequence: null,
      usage: { input_tokens: input, output_tokens: 1 },
    },
  }];
  let index = 0;
  if (pieces.length > 0) {
    events.push({ type: "content_block_start", index, content_block: { type: "text", text: "" } });
    for (const text of pieces) {
      events.push({ type: "content_block_delta", index, delta: { type: "text_delta", text } });
    }
    events.push({ type: "content_block_stop", index: index++ });
  }
  for (const { id = `toolu_${crypto.randomUUID()}`, name, args, rawArgs } of calls) {
    const partial_json = rawArgs ?? JSON.stringify(args);
    events.push(
      {
        type: "content_block_start",
        index,
        content_block: { type: "tool_use", id, name, input: {} },
      },
      { type: "content_block_delta", index, delta: { type: "input_json_delta", partial_json } },
      { type: "content_block_stop", index: index++ },
    );
  }
  if (!isUnfinished) {
    events.push(
      {
        type: "message_delta",
        delta: { stop_reason: calls.length > 0 ? "tool_use" : "end_turn", stop_sequence: null },
        usage: { output_tokens: output },
      },
      { type: "message_stop" },
    );
  }
  return events.map((event) => `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`).join("");
}

function streamOf(
  text: string,
  { chunkBytes = 4096, dropAfterBytes, stallAfterBytes, dripMs }: Spoken,
  onAbandoned: () => void,
): ReadableStream<Uint8Array<ArrayBuffer>> {
  const bytes = new TextEncoder().encode(text);
  let at = 0;
  return new ReadableStream({
    async pull(controller) {
      if (dripMs) await new Promise((resolve) => setTimeout(resolve, dripMs));
      if (dropAfterBytes !== undefined && at >= dropAfterBytes) {
        return controller.error(new Error("dropped by the test"));
      }
      if (stallAfterBytes !== undefined && at >= stallAfterBytes) {
        return await new Promise<void>(() => {});
      }
      if (at >= bytes.length) return controller.close();
      const end = Math.min(
        at + chunkBytes,
        dropAfterBytes ?? Infinity,
        stallAfterBytes ?? Infinity,
        bytes.length,
      );
      controller.enqueue(bytes.slice(at, end));
      at = end;
    },
    cancel() {
      onAbandoned();
    },
  });
}
