import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { type CliResult, zero } from "../support/cli.ts";
import { startTestGateway } from "../support/gateway.ts";

/** A gateway with a conversation, and somebody on its machine who runs commands. */
async function host() {
  const gateway = await startTestGateway();
  const home = await Deno.makeTempDir({ prefix: "zero-cli-" });
  const env = { ZERO_GATEWAY_PORT: String(gateway.port), ZERO_GATEWAY_TOKEN: gateway.token };
  const client = await gateway.connect();
  await client.call("sessions.patch", { key: "phone", label: "mine" });
  for (const message of ["the kernel is 6.8", "line one\nline \u001b[31mtwo"]) {
    await client.call("chat.inject", { sessionKey: "phone", message });
  }
  const { session } = await client.call("sessions.describe", { key: "phone" });
  return {
    ...{ client, home, key: "agent:main:phone", sessionId: session.sessionId as string },
    run: (...args: string[]): Promise<CliResult> => zero(["sessions", ...args], { home, env }),
    async [Symbol.asyncDispose]() {
      await gateway[Symbol.asyncDispose]();
      await Deno.remove(home, { recursive: true });
    },
  };
}

Deno.test("zero sessions lists conversations, as a table and as the payload", async () => {
  await using at = await host();

  const { stdout, code } = await at.run();
  const { json } = await at.run("list", "--search", "MINE", "--json");
  const none = await at.run("list", "--search", "nothing like it");

  const rows = stdout.trimEnd().split("\n").map((row) => row.trim().split(/ {2,}/));
  assertEquals(code, 0);
  assertEquals(rows[0], ["SESSION", "LABEL", "ACTIVE", "TOKENS", "ABOUT"]);
  assertEquals(rows[1].slice(0, 2), [at.key, "mine"]);
  assertEquals([json.count, json.sessions[0].key], [1, at.key]);
  assertEquals(none.stdout, "No conversations\n");
});

Deno.test("zero sessions show takes a key, a label or an id, and prints nothing that moves the cursor", async () => {
  await using at = await host();

  for (const query of ["phone", "mine", at.sessionId]) {
    const { json } = await at.run("show", query, "--limit", "1", "--json");
    assertEquals([json.session.key, json.history.messages.length], [at.key, 1], query);
  }
  const { stdout } = await at.run("show", "phone");
  const missing = await at.run("show", "nobody");

  assertStringIncludes(stdout, `${at.key} (mine)`);
  assertStringIncludes(stdout, "the kernel is 6.8");
  assertStringIncludes(stdout, "line one\nline \ufffd[31mtwo");
  assertEquals(missing.code, 1);
  assertStringIncludes(missing.stderr, "No session found: nobody");
  assertStringIncludes(missing.stderr, "zero sessions list");
});

Deno.test("zero sessions search finds words, in one conversation or in all", async () => {
  await using at = await host();
  await at.client.call("sessions.patch", { key: "other" });

  const found = await at.run("search", "kernel", "6");
  const { json } = await at.run("search", "kernel", "--session", "mine", "--json");
  const none = await at.run("search", "kernel", "--session", "other");

  assertStringIncludes(found.stdout, "the kernel is 6.8");
  assertEquals(json.hits.map((hit: { key: string }) => hit.key), [at.key]);
  assertEquals(none.stdout, "Nothing found\n");
});

Deno.test("zero sessions export writes JSON lines, to a new file that only its owner reads", async () => {
  await using at = await host();
  const file = `${at.home}/out.jsonl`;

  const { stdout } = await at.run("export", "phone");
  const saved = await at.run("export", at.sessionId, "--out", file);
  const again = await at.run("export", "phone", "--out", file);
  const { json } = await at.run("export", "phone", "--json");

  const lines = stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
  assertEquals(lines.map(({ type }) => type), ["session", "message", "message"]);
  assertEquals(lines[0].id, at.sessionId);
  assertEquals(saved.stdout, `Wrote 2 messages to ${file}\n`);
  assertEquals(await Deno.readTextFile(file), stdout);
  assertEquals((await Deno.stat(file)).mode! & 0o777, 0o600);
  assertEquals(again.code, 1);
  assertStringIncludes(again.stderr, `Cannot write ${file}`);
  assertEquals(json, lines);
});

Deno.test("zero sessions renames, compacts, resets and deletes", async () => {
  await using at = await host();

  const renamed = await at.run("rename", "phone", "yours");
  const unnamed = await at.run("rename", "yours");
  const compacted = await at.run("compact", "phone", "--keep", "1");
  const small = await at.run("compact", "phone", "--json");
  const reset = await at.run("reset", "phone");
  const old = await at.run("export", at.sessionId);
  const deleted = await at.run("delete", "phone", "--json");
  const main = await at.run("delete", "main");

  assertEquals(renamed.stdout, `${at.key} is labelled yours\n`);
  assertEquals(unnamed.stdout, `${at.key} has no label now\n`);
  assertEquals(compacted.stdout, `Compacted ${at.key} to its last 1 messages\n`);
  assertEquals(small.json, { ok: true, key: at.key, compacted: false, kept: 1 });
  assertEquals(reset.stdout, `Reset ${at.key}; what was said is in ${at.sessionId}\n`);
  assertEquals(old.stdout.trimEnd().split("\n").length, 3);
  assertEquals(deleted.json, { ok: true, key: at.key, deleted: true, archived: [] });
  assert(main.code === 1 && main.stderr.includes("No session found: main"), main.stderr);
});
