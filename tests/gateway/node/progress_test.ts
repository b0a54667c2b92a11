import { assert, assertEquals } from "@std/assert";
import { MAX_PIECE, type Piece, ProgressSender } from "../../../gateway/node/progress.ts";
import { spawnZero } from "../../support/cli.ts";
import { type Json, within } from "../../support/client.ts";
import { startTestGateway, type TestGateway } from "../../support/gateway.ts";
import { payload, serveNode, write } from "../../support/node.ts";
import { startTestNode, tempHome, type TestNode } from "./support.ts";

const OPEN = { version: 1, defaults: { security: "full", ask: "off" } };

/** A gateway that answers each piece when the test says so. */
class Receiver {
  readonly pieces: Piece[] = [];
  readonly #answers: PromiseWithResolvers<unknown>[] = [];

  send = (piece: Piece): Promise<unknown> => {
    this.pieces.push(piece);
    this.#answers.push(Promise.withResolvers());
    return this.#answers.at(-1)!.promise;
  };

  /** Answers the last piece, and lets what follows from that happen. */
  async answer(answer: unknown = { ok: true }): Promise<void> {
    this.#answers.at(-1)!.resolve(answer);
    for (let turn = 0; turn < 5; turn++) await Promise.resolve();
  }

  async fail(): Promise<void> {
    this.#answers.at(-1)!.reject(new Error("gone"));
    for (let turn = 0; turn < 5; turn++) await Promise.resolve();
  }
}

Deno.test("pieces go one at a time, and what comes meanwhile goes together", async () => {
  const receiver = new Receiver();
  const sender = new ProgressSender(receiver.send);

  sender.write("stdout", "a");
  sender.write("stdout", "b");
  sender.write("stdout", "c");
  sender.write("stderr", "d");
  sender.write("stdout", "");
  sender.write("stderr", "e");
  const sentBeforeAnswer = receiver.pieces.length;
  await receiver.answer();
  await receiver.answer();
  await receiver.answer();
  sender.write("stdout", "f");

  assertEquals(sentBeforeAnswer, 1);
  assertEquals(receiver.pieces, [
    { seq: 0, stream: "stdout", data: "a" },
    { seq: 1, stream: "stdout", data: "bc" },
    { seq: 2, stream: "stderr", data: "de" },
    { seq: 3, stream: "stdout", data: "f" },
  ]);
});

Deno.test("a long text goes in pieces that never end inside a character", async () => {
  const receiver = new Receiver();
  const text = `x${"😀".repeat(MAX_PIECE)}`;

  new ProgressSender(receiver.send).write("stdout", text);
  for (let known = 0; known < receiver.pieces.length;) {
    known = receiver.pieces.length;
    await receiver.answer();
  }

  assertEquals(receiver.pieces.map(({ data }) => data).join(""), text);
  assert(receiver.pieces.length > 2);
  for (const { data } of receiver.pieces) {
    assert(data.length <= MAX_PIECE && data.isWellFormed());
  }
});

Deno.test("nothing more is sent to who does not want it, is gone, or is about to have it all", async () => {
  const [ignoring, failing, ending] = [new Receiver(), new Receiver(), new Receiver()];
  const senders = [ignoring, failing, ending].map(({ send }) => new ProgressSender(send));

  for (const sender of senders) sender.write("stdout", "a");
  for (const sender of senders) sender.write("stderr", "b");
  senders[2].end();
  await ignoring.answer({ ok: true, ignored: true });
  await failing.fail();
  await ending.answer();
  for (const sender of senders) sender.write("stdout", "c");

  assertEquals([ignoring, failing, ending].map(({ pieces }) => pieces.length), [1, 1, 1]);
});

/** Writes `one` and half a character, and the rest when the file `go` is there. */
const SLOW_SCRIPT = "echo one; printf 'caf\\303'; while [ ! -e go ]; do sleep 0.05; done; " +
  "printf '\\251\\n'; echo two >&2; exit 7";

async function letGo({ home }: TestNode) {
  await Deno.writeTextFile(`${home}/go`, "");
}

Deno.test("a node host tells what a command writes before it ends, in whole characters", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, { approvals: OPEN });
  const operator = await gateway.connect();
  const { nodeId } = node;
  const invoking = operator.call("node.invoke", {
    nodeId,
    command: "system.run",
    params: { command: ["sh", "-c", SLOW_SCRIPT] },
    progress: true,
    idempotencyKey: "mine",
  });

  let early = "";
  while (early.length < "one\ncaf".length) {
    const piece = await operator.event("node.invoke.progress");
    assertEquals([piece.idempotencyKey, piece.nodeId, piece.stream], ["mine", nodeId, "stdout"]);
    early += piece.data;
  }
  await letGo(node);
  const { payload: { stdout, stderr, exitCode } } = await invoking;

  assertEquals(early, "one\ncaf");
  assertEquals([stdout, stderr, exitCode], ["one\ncafé\n", "two\n", 7]);
});

Deno.test("what is told while a command runs ends where its output ends", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, { approvals: OPEN });
  const operator = await gateway.connect();
  const script = "head -c 300000 /dev/zero | tr '\\0' x; " +
    "while [ ! -e go ]; do sleep 0.05; done; echo late";
  const invoking = operator.call("node.invoke", {
    nodeId: node.nodeId,
    command: "system.run",
    params: { command: ["sh", "-c", script] },
    progress: true,
    idempotencyKey: "mine",
  });

  let told = "";
  while (told.length < 200_000) told += (await operator.event("node.invoke.progress")).data;
  await letGo(node);
  const { payload: { stdout } } = await invoking;

  assertEquals(stdout, `${told}\n... (truncated)`);
  assert(!operator.untakenEvents.includes("node.invoke.progress"));
});

/** Whoever runs something there leaves it to the node what may run. */
async function homeOfOperator() {
  const home = await tempHome();
  await Deno.mkdir(`${home.path}/state`);
  const config = { tools: { exec: { security: "full", ask: "off" } } };
  await Deno.writeTextFile(`${home.path}/state/zero.json`, JSON.stringify(config));
  return home;
}

/** `zero nodes run` as a child, with its output as it comes. */
function runOnNode(gateway: TestGateway, home: string, args: string[]) {
  const env = { ZERO_GATEWAY_PORT: String(gateway.port), ZERO_GATEWAY_TOKEN: gateway.token };
  const child = spawnZero(["nodes", "run", "--node", "n1", ...args], { home, env });
  const output = { stdout: "", stderr: "" };
  let news = Promise.withResolvers<void>();
  const read = async (name: "stdout" | "stderr") => {
    for await (const text of child[name].pipeThrough(new TextDecoderStream())) {
      output[name] += text;
      news.resolve();
      news = Promise.withResolvers();
    }
  };
  let isOver = false;
  const ended = Promise.all([child.status, read("stdout"), read("stderr")]).then(([{ code }]) => {
    isOver = true;
    news.resolve();
    return { code, ...output };
  });
  return {
    ended,
    /** Resolves once stdout begins so; rejects when the command ends before. */
    async printed(text: string) {
      while (!output.stdout.startsWith(text)) {
        if (isOver) throw new Error(`it ended before: ${JSON.stringify(output)}`);
        await within(news.promise, `${text} after ${JSON.stringify(output)}`);
      }
    },
  };
}

Deno.test("zero nodes run prints what a program writes as it comes, and nothing twice", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, { approvals: OPEN });
  await using home = await homeOfOperator();
  const run = runOnNode(gateway, home.path, ["--", "sh", "-c", SLOW_SCRIPT]);

  await run.printed("one\ncaf");
  await letGo(node);

  assertEquals(await run.ended, {
    code: 7,
    stdout: "one\ncafé\n",
    stderr: "two\nrun exit 7\n",
  });
});

Deno.test("what was lost on the way is printed at the end, and --json asks for no progress", async () => {
  await using gateway = await startTestGateway();
  await using home = await homeOfOperator();
  const result = { exitCode: 0, success: true, stdout: "abcd", stderr: "no" };
  const params = { caps: ["system", "invoke.progress"] };
  const options = { name: "n1", commands: ["system.run", "system.execApprovals.get"], params };
  await using node = await serveNode(gateway, async (one) => {
    if (one.command !== "system.run") return payload({ file: OPEN });
    if (one.progress) {
      await write(node, one, { seq: 0, stream: "stdout", data: "ab" });
      await write(node, one, { seq: 2, stream: "stdout", data: "d" });
      await write(node, one, { seq: 3, stream: "stderr", data: "x" });
    }
    return payload(result);
  }, options);

  const live = await runOnNode(gateway, home.path, ["true"]).ended;
  const json = await runOnNode(gateway, home.path, ["--json", "true"]).ended;

  assertEquals(live, { code: 0, stdout: "abcd", stderr: "no" });
  assertEquals(JSON.parse(json.stdout).payload, result);
  const runs = node.asked.filter(({ command }: Json) => command === "system.run");
  assertEquals(runs.map(({ progress }) => progress), [true, undefined]);
});
