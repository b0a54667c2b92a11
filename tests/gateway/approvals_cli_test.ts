import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { spawnZero, zero } from "../support/cli.ts";
import type { Json, TestClient } from "../support/client.ts";
import { startTestGateway } from "../support/gateway.ts";
import { hasScript, zeroOnTerminal } from "../support/pty.ts";

async function setUp() {
  const gateway = await startTestGateway();
  const home = await Deno.makeTempDir({ prefix: "zero-approvals-" });
  const env = {
    ZERO_GATEWAY_PORT: String(gateway.port),
    ZERO_GATEWAY_TOKEN: gateway.token,
  };
  return {
    gateway,
    home,
    env,
    asker: await gateway.connect(),
    run: (...args: string[]) => zero(args, { home, env }),
    async [Symbol.asyncDispose]() {
      await gateway[Symbol.asyncDispose]();
      await Deno.remove(home, { recursive: true });
    },
  };
}

/** Asks, and resolves with a promise of the answer once the question is there. */
async function ask(asker: TestClient, id: string, command: string, more = {}) {
  const params = { id, command, timeoutMs: 60_000, ...more };
  const answer = asker.call("exec.approval.request", params);
  await asker.event("exec.approval.requested", (one: Json) => one.id === id);
  return { answer };
}

Deno.test("zero approvals list --json tells of what waits, oldest first", async () => {
  await using setup = await setUp();
  const none = await setup.run("approvals");
  const env = { LANG: "C" };
  const first = await ask(setup.asker, "bbbb-1", "uname -a", { cwd: "/srv", host: "node", env });
  const second = await ask(setup.asker, "aaaa-2", "echo \u001b[31mred");

  const { code, json } = await setup.run("approvals", "list", "--json");
  const text = await setup.run("approvals", "list");
  await setup.run("approvals", "deny", "bbbb-1");
  await setup.run("approvals", "deny", "aaaa-2");

  assertEquals(none.stdout, "No command waits for an answer\n");
  assertEquals([code, Object.keys(json)], [0, ["pending"]]);
  const [one] = json.pending;
  assertEquals(Object.keys(one).toSorted(), ["createdAtMs", "expiresAtMs", "id", "request"]);
  assertEquals(json.pending.map(({ id }: Json) => id), ["bbbb-1", "aaaa-2"]);
  assertEquals([one.request.command, one.request.cwd, one.expiresAtMs - one.createdAtMs], [
    "uname -a",
    "/srv",
    60_000,
  ]);
  assertMatch(text.stdout, /bbbb-1 .*cwd=\/srv LANG=C +uname -a$/m);
  assert(!text.stdout.includes("\u001b"));
  assertEquals([(await first.answer).decision, (await second.answer).decision], ["deny", "deny"]);
});

Deno.test("zero approvals allow and deny answer by id or the beginning of it", async () => {
  await using setup = await setUp();
  const once = await ask(setup.asker, "11112222-a", "one");
  const always = await ask(setup.asker, "33334444-b", "two");
  const twin = await ask(setup.asker, "33335555-c", "three");

  const allowed = await setup.run("approvals", "allow", "1111", "--json");
  const ambiguous = await setup.run("approvals", "allow", "3333");
  const short = await setup.run("approvals", "deny", "333");
  const good = await setup.run("approvals", "allow", "33334444-b", "--always");
  const denied = await setup.run("approvals", "deny", "33335");
  const unknown = await setup.run("approvals", "allow", "11112222-a", "--json");

  assertEquals(allowed.json, { ok: true, id: "11112222-a", decision: "allow-once" });
  assertStringIncludes(ambiguous.stderr, "ambiguous approval id: 3333");
  assertStringIncludes(short.stderr, "unknown approval id: 333");
  assertEquals([good.stdout, denied.stdout], ["Allowed for good: two\n", "Denied: three\n"]);
  assertEquals([unknown.code, unknown.json.error.code], [1, "APPROVAL_NOT_FOUND"]);
  assertEquals(
    [(await once.answer).decision, (await always.answer).decision, (await twin.answer).decision],
    ["allow-once", "allow-always", "deny"],
  );
});

Deno.test("zero approvals allow --always says what it is not kept for", async () => {
  await using setup = await setUp();
  const argv = ["sh", "-c", "id"];
  const shell = await ask(setup.asker, "shell", "sh -c id", { argv });
  const plain = await ask(setup.asker, "plain", "id -u", { argv: ["id", "-u"] });

  const asked = await setup.run("approvals", "allow", "shell", "--always");
  const kept = await setup.run("approvals", "allow", "plain", "--always");

  assertMatch(asked.stdout, /^Allowed now, and to be asked about again, .*: sh -c id\n$/);
  assertEquals(kept.stdout, "Allowed for good: id -u\n");
  assertEquals((await shell.answer).decision, "allow-always");
  assertEquals((await plain.answer).decision, "allow-always");
});

Deno.test("zero approvals watch --json is one document a line, questions and answers", async () => {
  await using setup = await setUp();
  const { home, env, asker, gateway } = setup;
  const one = await ask(asker, "first", "one");
  await using child = spawnZero(["approvals", "watch", "--json"], { home, env });
  const lines = readLines(child.stdout);

  const first = await lines();
  const two = await ask(asker, "second", "two");
  const second = await lines();
  const approver = await gateway.connect();
  await approver.call("exec.approval.resolve", { id: "second", decision: "deny" });
  const resolved = await lines();

  assertEquals([first.id, first.request.command], ["first", "one"]);
  assertEquals([second.id, second.request.command], ["second", "two"]);
  assertEquals([resolved.id, resolved.decision], ["second", "deny"]);
  await approver.call("exec.approval.resolve", { id: "first", decision: "deny" });
  await Promise.all([one.answer, two.answer]);
  child.kill();
  await child.stderr.cancel();
});

Deno.test({
  name: "zero approvals watch asks on a terminal, and never takes an answer for another question",
  ignore: !hasScript,
  async fn() {
    await using setup = await setUp();
    const { home, env, asker } = setup;
    const once = await ask(asker, "q-1", "first command", { cwd: "/srv", env: { A: "1" } });
    const good = await ask(asker, "q-2", "second command");
    const bad = await ask(asker, "q-3", "third command");

    const { output } = await zeroOnTerminal(["approvals", "watch"], { home, env }, [
      ["deny]", "maybe\n"],
      ["deny]", "y\n"],
      ["second command", "a\n"],
      ["third command", "n\n"],
      ["Denied", "\u0003"],
    ]);

    assertEquals(
      [(await once.answer).decision, (await good.answer).decision, (await bad.answer).decision],
      ["allow-once", "allow-always", "deny"],
    );
    assertStringIncludes(output, "A=1");
    assertStringIncludes(output, "/srv");
  },
});

/** One JSON document after the other. */
function readLines(stream: ReadableStream<Uint8Array>): () => Promise<Json> {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  return async () => {
    while (!rest.includes("\n")) {
      const { value, done } = await reader.read();
      if (done) throw new Error(`the output ended: ${rest}`);
      rest += value;
    }
    const [line, ...others] = rest.split("\n");
    rest = others.join("\n");
    return JSON.parse(line);
  };
}
