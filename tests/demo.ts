// `deno task demo`: the whole way of a message on this machine, with real programs. A gateway and a
// headless node run as processes; Telegram and the provider of the model are servers on loopback. Each
// step is printed as it happens. Ends with 0 when both questions were answered with what the node said.

// @ts-types="npm:@types/ws@8.18.1"
import { WebSocket, WebSocketServer } from "ws";
import { type BotApi, type BotCall, OWNER, startBotApi } from "./support/bot_api.ts";
import { spawnZero } from "./support/cli.ts";
import { handshake, type Json, TestClient } from "./support/client.ts";
import { type ModelRequest, type Reply, startModelApi } from "./support/model_api.ts";
import { before, makePlace, startGatewayProcess, TOKEN } from "./support/process.ts";

type Print = (line: string) => void;

const NODE = "n1";
const DEADLINE_MS = 60_000;
const NAME_WIDTH = 20;

/** @returns whether both replies arrived */
export async function demo(print: Print): Promise<boolean> {
  const uname = await which("uname");
  const kernel = await outputOf("uname", "-r");
  const everything = await outputOf("uname", "-a");

  print(`\nA model is configured, and ${NODE} lets uname run without asking\n`);
  const isFirst = await scene(print, {
    question: `what kernel is ${NODE}?`,
    answer: (request) => askNode(request),
    approvals: { version: 1, agents: { main: { allowlist: [{ pattern: uname }] } } },
    expected: kernel,
  });
  print(`\nNo model: the built-in agent, and a node where a person is asked first\n`);
  const isSecond = await scene(print, {
    question: `/run ${NODE} uname -a`,
    expected: everything,
  });
  print(isFirst && isSecond ? "\nBoth replies arrived" : "\nA reply did not arrive");
  return isFirst && isSecond;
}

interface Scene {
  /** What Ada writes. */
  question: string;
  /** What the model says; absent: there is none. */
  answer?: (request: ModelRequest) => Reply;
  /** The node's exec-approvals.json. */
  approvals?: unknown;
  /** What the reply must hold. */
  expected: string;
}

async function scene(
  print: Print,
  { question, answer, approvals, expected }: Scene,
): Promise<boolean> {
  await using parts = new AsyncDisposableStack();
  const begin = performance.now();
  const tell = (from: string, to: string, text: string) => {
    const seconds = ((performance.now() - begin) / 1_000).toFixed(2).padStart(6);
    const way = `${from} → ${to}`.padEnd(NAME_WIDTH);
    const [first, ...more] = text.trim().split("\n");
    print(`${seconds} s  ${way}  ${first}`);
    for (const line of more) print(`${" ".repeat(NAME_WIDTH + 12)}${line}`);
  };
  const bot = parts.use(startBotApi());
  bot.mood = (call) => showCall(call, tell);
  const model = answer && parts.use(startModelApi((request) => {
    tell("gateway", "model", lastOf(request));
    const reply = answer(request);
    if ("calls" in reply) tell("model", "gateway", `tool ${JSON.stringify(reply.calls![0])}`);
    if ("text" in reply) tell("model", "gateway", reply.text!);
    return reply;
  }));
  const place = parts.use(
    await makePlace({
      config: {
        channels: {
          telegram: { botToken: bot.token, apiRoot: bot.root, allowFrom: [OWNER.id] },
        },
        ...(model && {
          models: {
            providers: {
              demo: {
                baseUrl: model.baseUrl,
                apiKey: "test-key",
                models: [{ id: "test-model" }],
              },
            },
          },
          agents: { defaults: { model: "demo/test-model" } },
        }),
      },
    }),
  );
  const gateway = parts.use(await startGatewayProcess({ place }));
  const tap = parts.use(await startTap(gateway.port, (event) => showFrame(event, tell)));
  const operator = await handshake(gateway.url, { auth: { token: TOKEN } });
  if (!(operator instanceof TestClient)) throw new Error(JSON.stringify(operator));
  parts.use(operator);
  parts.use(await startNode(tap.port, approvals));
  await operator.event("presence", ({ presence }) => JSON.stringify(presence).includes(NODE));
  tell("n1", "gateway", "connected");

  tell("Ada", "Telegram", question);
  bot.write(question);
  const { runId } = await operator.event("agent", isPhase("start"));
  tell("gateway", "agent", `run ${runId} begins`);
  if (!answer) await allow(bot, tell);
  const end = await operator.event("agent", isPhase("end", runId));
  const reply = await bot.until(
    ({ method, params }) =>
      method === "sendMessage" && String(params.text).includes(expected.slice(0, 60)),
    "the reply",
  );
  tell("agent", "gateway", `run ends after ${end.data.endedAt - end.data.startedAt} ms`);
  return String(reply.params.chat_id) === String(OWNER.id);
}

/** What the model of the demo does: asks the node, and says what it said. */
function askNode({ body: { messages } }: ModelRequest): Reply {
  const last = messages.at(-1)!;
  if (last.role !== "tool") {
    return { calls: [{ name: "node_run", args: { node: NODE, argv: ["uname", "-r"] } }] };
  }
  return { text: `**${NODE}** runs kernel \`${textOf(last.content).trim()}\`.` };
}

/** Ada presses the first button of the question. */
async function allow(bot: BotApi, tell: Tell) {
  const question = await bot.until(({ params }) => params.reply_markup !== undefined, "a question");
  const [[button]] = question.params.reply_markup.inline_keyboard;
  tell("Ada", "Telegram", `presses [${button.text}]: ${button.callback_data}`);
  bot.press(button.callback_data);
}

type Tell = (from: string, to: string, text: string) => void;

function showCall({ method, params }: BotCall, tell: Tell): undefined {
  if (method !== "sendMessage") return;
  const buttons = (params.reply_markup?.inline_keyboard ?? []).flat()
    .map(({ text }: { text: string }) => `[${text}]`);
  tell(
    "Telegram",
    "Ada",
    [params.text, ...buttons.length > 0 ? [buttons.join(" ")] : []].join("\n"),
  );
}

/** What concerns an invocation, of all that gateway and node say to each other. */
function showFrame(frame: Json, tell: Tell) {
  if (frame.event === "node.invoke.request") {
    const { command, paramsJSON } = frame.payload;
    const { command: argv } = JSON.parse(paramsJSON ?? "{}");
    tell("gateway", NODE, `node.invoke ${command} ${argv ? JSON.stringify(argv) : ""}`);
  }
  if (frame.method === "node.invoke.result") {
    const { ok, payloadJSON, error } = frame.params;
    const { exitCode, stdout } = JSON.parse(payloadJSON ?? "{}");
    const came = exitCode === undefined ? "" : `, exit code ${exitCode}: ${stdout}`;
    tell(NODE, "gateway", ok ? `result${came}` : `refused: ${error.message}`);
  }
}

/** A way to the gateway on which every frame is seen. */
async function startTap(toPort: number, see: (frame: Json) => void) {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  await new Promise<void>((resolve) => server.once("listening", () => resolve()));
  server.on("connection", (node: WebSocket) => {
    const gateway = new WebSocket(`ws://127.0.0.1:${toPort}`);
    const opened = new Promise<void>((resolve) => gateway.once("open", () => resolve()));
    const relay = (from: WebSocket, to: WebSocket) => {
      from.on("message", async (data: unknown) => {
        const text = String(data);
        see(JSON.parse(text));
        await opened;
        to.send(text);
      });
      from.on("close", () => to.terminate());
      from.on("error", () => to.terminate());
    };
    relay(node, gateway);
    relay(gateway, node);
  });
  return {
    port: (server.address() as { port: number }).port,
    async [Symbol.asyncDispose]() {
      for (const client of server.clients) client.terminate();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** `zero node run`, with a home of its own. */
async function startNode(port: number, approvals: unknown): Promise<AsyncDisposable> {
  const home = await Deno.makeTempDir({ prefix: "zero-demo-" });
  await Deno.mkdir(`${home}/state`);
  if (approvals) {
    await Deno.writeTextFile(`${home}/state/exec-approvals.json`, JSON.stringify(approvals));
  }
  const child = spawnZero(
    ["node", "run", "--port", String(port), "--display-name", NODE],
    { home, env: { ZERO_GATEWAY_TOKEN: TOKEN } },
  );
  const output = child.output();
  return {
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      await before(DEADLINE_MS, output, () => "the node does not stop");
      await Deno.remove(home, { recursive: true });
    },
  };
}

function isPhase(phase: string, run?: string) {
  return ({ runId, stream, data }: Json) =>
    stream === "lifecycle" && data.phase === phase && (run ?? runId) === runId;
}

function lastOf({ body: { messages } }: ModelRequest): string {
  const { role, content } = messages.at(-1)!;
  return `${role}: ${textOf(content)}`;
}

function textOf(content: unknown): string {
  if (typeof content === "string") return content;
  return (content as { text?: string }[]).map(({ text = "" }) => text).join("");
}

async function which(program: string): Promise<string> {
  const { stdout } = await new Deno.Command("sh", { args: ["-c", `command -v ${program}`] })
    .output();
  return await Deno.realPath(new TextDecoder().decode(stdout).trim());
}

async function outputOf(program: string, ...args: string[]): Promise<string> {
  const { stdout } = await new Deno.Command(program, { args }).output();
  return new TextDecoder().decode(stdout).trim();
}

if (import.meta.main) Deno.exit(await demo(console.log) ? 0 : 1);
