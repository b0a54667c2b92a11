import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import type { ModelSource } from "../../gateway/agent/runs.ts";
import { ModelError } from "../../gateway/agent/model.ts";
import { spawnZero, zero } from "../support/cli.ts";
import { startTestGateway } from "../support/gateway.ts";
import { hasScript, zeroOnTerminal } from "../support/pty.ts";
import { hangs, lastText, only, says, scriptedModel } from "../support/scripted_model.ts";

/** A gateway, and command lines that call it. */
async function withGateway(models?: ModelSource) {
  await using parts = new AsyncDisposableStack();
  const gateway = parts.use(await startTestGateway({ models }));
  const home = await Deno.makeTempDir({ prefix: "zero-cli-" });
  parts.defer(() => Deno.remove(home, { recursive: true }));
  const owned = parts.move();
  const env = { ZERO_GATEWAY_URL: gateway.url, ZERO_GATEWAY_TOKEN: gateway.token };
  return {
    gateway,
    home,
    env,
    run: (args: string[], stdin?: string) => zero(args, { home, env, stdin }),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

Deno.test("zero agent prints the run's id, and with --wait its answer", async () => {
  const model = scriptedModel((turn) => says(`You said: ${lastText(turn)}`));
  await using setup = await withGateway(only(model));

  const accepted = await setup.run(["agent", "--message", "one", "--idempotency-key", "k"]);
  const waited = await setup.run(["agent", "--message", "two", "--session", "work", "--wait"]);
  const json = await setup.run(["gateway", "agent", "--message", "three", "--wait", "--json"]);
  const missing = await setup.run(["agent"]);

  assertEquals([accepted.code, accepted.stdout], [0, "Accepted: k\n"]);
  assertEquals([waited.code, waited.stdout], [0, "You said: two\n"]);
  assertEquals(json.json.result.payloads, [{ text: "You said: three" }]);
  assertEquals(missing.code, 2);
  const client = await setup.gateway.connect();
  const { messages } = await client.call("chat.history", { sessionKey: "agent:main:work" });
  assertEquals(messages.length, 2);
});

Deno.test("zero agent --wait ends with 1 and the reason when the run fails", async () => {
  const model = scriptedModel(() => {
    throw new ModelError("auth", "The key is refused", false, "zero auth add test");
  });
  await using setup = await withGateway(only(model));

  const { code, stderr } = await setup.run(["agent", "--message", "one", "--wait"]);

  assertEquals(code, 1);
  assertStringIncludes(
    stderr,
    "The key is refused. Run this on the gateway's machine: zero auth add test",
  );
});

Deno.test("zero chat sends each line of a pipe, and shows the answers in their order", async () => {
  const model = scriptedModel((turn) => says(`You said: ${lastText(turn)}`));
  await using setup = await withGateway(only(model));

  const { code, stdout } = await setup.run(["chat", "--session", "work"], "one\n\ntwo\n/whoami");

  const lines = stdout.split("\n");
  assertEquals([code, lines.slice(0, 2)], [0, ["You said: one", "You said: two"]]);
  assertMatch(lines[2], /Conversation: agent:main:work$/);
  assertEquals(model.turns.length, 2);
});

Deno.test("zero chat --json writes one line an answer, and ends with 1 when one failed", async () => {
  const model = scriptedModel((_, turns) => {
    if (turns === 0) throw new ModelError("network", "It is away", false, "Look at the cable");
    return says("Here\u001b[2J I am");
  });
  await using setup = await withGateway(only(model));

  const { code, stdout } = await setup.run(["chat", "--json"], "one\ntwo\n");

  const [failed, fine] = stdout.trim().split("\n").map((line) => JSON.parse(line));
  assertEquals([failed.state, failed.errorMessage], ["error", "It is away. Look at the cable"]);
  assertEquals([fine.state, fine.text], ["final", "Here\u001b[2J I am"]);
  assertEquals(code, 1);
});

Deno.test("what a model says cannot steer the terminal", async () => {
  await using setup = await withGateway(only(scriptedModel(() => says("a\u001b[2J\tb\nc"))));

  const { stdout } = await setup.run(["chat"], "one\n");
  const agent = await setup.run(["agent", "--wait", "--message", "one"]);

  assertEquals([stdout, agent.stdout], ["a\ufffd[2J\tb\nc\n", "a\ufffd[2J\tb\nc\n"]);
});

for (const args of [["agent", "--wait", "--message", "go", "--session", "work"], ["chat"]]) {
  Deno.test(`Ctrl-C in zero ${args[0]} stops the run itself, and ends with 130`, async () => {
    const begun = Promise.withResolvers<void>();
    const model = scriptedModel((turn) => {
      begun.resolve();
      return hangs(turn.signal);
    });
    await using setup = await withGateway(only(model));
    const client = await setup.gateway.connect();
    const child = spawnZero(args, setup, "piped");
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode("go\n"));
    await begun.promise;

    child.kill("SIGINT");
    const { code } = await child.output();
    await writer.close().catch(() => {}); // it may be gone already

    const { stopReason } = await client.event("chat", ({ state }) => state === "aborted");
    assertEquals([code, stopReason], [130, "rpc"]);
  });
}

Deno.test("on a terminal Ctrl-C stops the answer, and the chat goes on", {
  ignore: !hasScript && skipped("script(1) is not here"),
}, async () => {
  const model = scriptedModel((turn) =>
    lastText(turn) === "go" ? hangs(turn.signal, "I begin") : says(`You said: ${lastText(turn)}`)
  );
  await using setup = await withGateway(only(model));

  const { code, output } = await zeroOnTerminal(["chat"], setup, [
    ["> ", "go\n"],
    ["I begin", "\x03"],
    ["stopped (rpc)\r\n> ", "two\n"],
    ["You said: two\r\n> ", "\x03"],
  ]);

  assertEquals(code, 130, output);
});

/** Says why a test does not run. */
function skipped(reason: string): true {
  console.log(`skipped: ${reason}`);
  return true;
}
