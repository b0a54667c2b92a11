import { assert, assertEquals, assertThrows } from "@std/assert";
import { parseConfig } from "../../config/load.ts";
import {
  canonicalKey,
  MAX_HISTORY_BYTES,
  type Message,
  type SessionNews,
  Sessions,
  textOf,
} from "../../gateway/sessions.ts";
import { Store } from "../../gateway/store.ts";
import { RpcError } from "../../rpc/error.ts";

async function configOf(raw: string) {
  const reading = await parseConfig(raw, { path: "/zero.json", env: {} });
  assert(reading.valid, JSON.stringify(reading.issues));
  return { reading };
}

/** Sessions on a database in memory, a clock, and what was told of them. */
async function sessionsOf(raw = "{}") {
  const clock = { nowMs: 1_700_000_000_000 };
  const store = Store.open(":memory:");
  const news: string[] = [];
  const listener: SessionNews = {
    appended: ({ key }, { seq }, message) => news.push(`${key} ${seq} ${textOf(message)}`),
    changed: (key, reason, session) => news.push(`${key} ${reason} ${session ? "there" : "gone"}`),
  };
  const sessions = new Sessions(store, await configOf(raw), listener, () => clock.nowMs);
  return { clock, store, news, sessions, [Symbol.dispose]: () => store[Symbol.dispose]() };
}

function says(role: Message["role"], text: string, timestamp = 1_700_000_000_000): Message {
  return { role, content: [{ type: "text", text }], timestamp };
}

function textsIn(messages: readonly Message[]): string[] {
  return messages.map(textOf);
}

Deno.test("session keys have one canonical form", async () => {
  const cases: [config: string, key: string, canonical: string, agentId: string][] = [
    ["{}", "main", "agent:main:main", "main"],
    ["{}", " MAIN ", "agent:main:main", "main"],
    ["{}", "agent:main:main", "agent:main:main", "main"],
    ["{}", "Phone", "agent:main:phone", "main"],
    ["{}", "agent:Anna B:Chat", "agent:anna-b:chat", "anna-b"],
    ["{}", "agent:anna:telegram:group:7", "agent:anna:telegram:group:7", "anna"],
    ["{}", "agent:anna", "agent:main:agent:anna", "main"],
    ["{}", "global", "global", "main"],
    ["{}", "unknown", "unknown", "main"],
    ['{ session: { mainKey: "Home" } }', "main", "agent:main:home", "main"],
    ['{ session: { mainKey: "Home" } }', "home", "agent:main:home", "main"],
    ['{ session: { mainKey: "Home" } }', "agent:anna:main", "agent:anna:home", "anna"],
    ['{ session: { scope: "global" } }', "main", "global", "main"],
    ['{ session: { scope: "global" } }', "agent:anna:main", "global", "main"],
    ['{ session: { scope: "global" } }', "phone", "agent:main:phone", "main"],
    ['{ agents: { list: [{ id: "anna" }] } }', "phone", "agent:anna:phone", "anna"],
  ];
  for (const [raw, key, canonical, agentId] of cases) {
    const { reading: { config } } = await configOf(raw);

    assertEquals(canonicalKey(key, config), { key: canonical, agentId }, `${key} with ${raw}`);
    assertEquals(canonicalKey(canonical, config).key, canonical, `${canonical} with ${raw}`);
  }
});

Deno.test("a session key as long as a book is refused", async () => {
  const { reading: { config } } = await configOf("{}");

  assertThrows(() => canonicalKey("x".repeat(513), config), RpcError, "invalid session key");
});

Deno.test("a transcript is read back in order, under each form of its key", async () => {
  using at = await sessionsOf();

  const one = at.sessions.append("main", says("user", "one"));
  const two = at.sessions.append("agent:main:main", says("assistant", "two"));

  const { sessionId, messages } = at.sessions.history("MAIN");
  assertEquals(textsIn(messages), ["one", "two"]);
  assertEquals([one.sessionId, two.sessionId], [sessionId, sessionId]);
  assertEquals([one.seq, two.seq], [1, 2]);
  assert(/^[0-9a-f]{8}$/.test(one.messageId) && one.messageId !== two.messageId);
});

Deno.test("history holds the last messages, as many as were asked for", async () => {
  using at = await sessionsOf();
  for (let i = 1; i <= 250; i++) at.sessions.append("main", says("user", `${i}`));

  assertEquals(at.sessions.history("main").messages.length, 200);
  assertEquals(textsIn(at.sessions.history("main", { limit: 2 }).messages), ["249", "250"]);
  assertEquals(at.sessions.history("nobody"), { sessionKey: "nobody", messages: [] });
});

Deno.test("history drops the oldest to stay below its size, and of a giant its images", async () => {
  using at = await sessionsOf();
  const text = "x".repeat(MAX_HISTORY_BYTES / 4);
  for (let i = 1; i <= 5; i++) at.sessions.append("main", says("user", `${i}${text}`));

  const { messages } = at.sessions.history("main");
  assertEquals(messages.map((one) => textOf(one)[0]), ["3", "4", "5"]);
  assert(JSON.stringify(messages).length <= MAX_HISTORY_BYTES);

  const data = "A".repeat(MAX_HISTORY_BYTES);
  const image = { type: "image" as const, mimeType: "image/png", data };
  const look = says("user", "look");
  at.sessions.append("main", { ...look, content: [...look.content, image] });
  const [last] = at.sessions.history("main", { limit: 1 }).messages;
  assertEquals(last.content, [
    { type: "text", text: "look" },
    { type: "text", text: "[image left out: image/png]" },
  ]);
});

Deno.test("a model is told all texts and the last images, however many images there were", async () => {
  using at = await sessionsOf();
  const image = (size: number) => ({
    type: "image" as const,
    mimeType: "image/png",
    data: "A".repeat(size),
  });
  for (let i = 1; i <= 6; i++) {
    const look = says("user", `look ${i}`);
    at.sessions.append("main", { ...look, content: [...look.content, image(1_000)] });
  }

  const { messages } = at.sessions.history("main", { maxBytes: 1_500, maxImageBytes: 2_500 });

  assertEquals(
    messages.map((one) => one.content[0]),
    [1, 2, 3, 4, 5, 6].map((i) => (
      { type: "text", text: `look ${i}` }
    )),
  );
  assertEquals(messages.map(({ content }) => content[1].type), [
    ...["text", "text", "text", "text"],
    ...["image", "image"],
  ]);
});

Deno.test("what a transaction undoes was never in the transcript, and nobody was told", async () => {
  using at = await sessionsOf();

  assertThrows(() =>
    at.store.transaction(() => {
      at.sessions.append("main", says("user", "lost"));
      throw new Error("undone");
    })
  );
  at.store.transaction(() => {
    at.sessions.append("main", says("user", "kept"));
    assertEquals(at.news, []);
  });

  assertEquals(textsIn(at.sessions.history("main").messages), ["kept"]);
  assertEquals(at.news, ["agent:main:main create there", "agent:main:main 1 kept"]);
});

Deno.test("a patch settles, null clears, and a wrong value is refused with the right ones", async () => {
  using at = await sessionsOf();

  at.sessions.patch("x", { thinkingLevel: "HIGH", label: " Mine ", model: "p/m" });
  const { entry } = at.sessions.patch("agent:main:x", { model: null });

  assertEquals([entry.thinkingLevel, entry.label, entry.model], ["high", "Mine", undefined]);
  const wrong: [string, string, string][] = [
    ["thinkingLevel", "cosmic", "invalid thinkingLevel (use off|minimal|low|medium|high|xhigh)"],
    ["sendPolicy", "perhaps", "invalid sendPolicy (use allow|deny)"],
    ["execHost", "moon", "invalid execHost (use sandbox|gateway|node)"],
    ["groupActivation", "", "invalid groupActivation (use mention|always)"],
    ["label", "l".repeat(65), "invalid label (use 1 to 64 characters)"],
    ["execNode", " ", "invalid execNode (use a text or null)"],
  ];
  for (const [field, value, message] of wrong) {
    const error = assertThrows(() => at.sessions.patch("new", { [field]: value }), RpcError);
    assertEquals(error.message, message);
  }
  assertEquals(at.sessions.get("new"), undefined);
});

Deno.test("a label belongs to one session, and a parent stays", async () => {
  using at = await sessionsOf();
  at.sessions.patch("a", { label: "mine", spawnedBy: "agent:main:main" });

  const taken = assertThrows(() => at.sessions.patch("b", { label: "mine" }), RpcError);
  assertEquals(taken.message, "label already in use: mine");
  for (const spawnedBy of ["agent:main:other", null]) {
    const moved = assertThrows(() => at.sessions.patch("a", { spawnedBy }), RpcError);
    assertEquals(moved.message, "spawnedBy cannot be changed once set");
  }
  at.sessions.patch("a", { label: "mine", spawnedBy: "agent:main:main" });
  at.sessions.patch("a", { label: null });
  assertEquals(at.sessions.patch("b", { label: "mine" }).entry.label, "mine");
});

Deno.test("a reset keeps settings and the old transcript, and begins at nothing", async () => {
  using at = await sessionsOf();
  const before = at.sessions.append("x", says("user", "old"));
  at.sessions.patch("x", { label: "mine", thinkingLevel: "low" });
  at.sessions.ensure("x", { deliveryContext: { channel: "telegram", to: "7" }, systemSent: true });
  at.sessions.recordUsage("x", { inputTokens: 5, outputTokens: 6, model: "p/m" });

  const { entry } = at.sessions.reset("x");

  assert(entry.sessionId !== before.sessionId);
  assertEquals([entry.label, entry.thinkingLevel], ["mine", "low"]);
  assertEquals([entry.inputTokens, entry.outputTokens, entry.totalTokens], [0, 0, 0]);
  assertEquals([entry.deliveryContext?.to, entry.systemSent], ["7", undefined]);
  assertEquals(at.sessions.history("x").messages, []);
  assertEquals(at.sessions.append("x", says("user", "new")).seq, 1);
  assertEquals(at.sessions.list({ search: before.sessionId }), []);
  const old = at.sessions.exportPage({ sessionId: before.sessionId });
  assertEquals(JSON.parse(old!.lines[1]).message, says("user", "old"));
});

Deno.test("what a run still says after a reset or delete goes to the transcript it belongs to", async () => {
  using at = await sessionsOf();
  const { sessionId } = at.sessions.append("x", says("user", "question"));
  at.sessions.reset("x");

  const late = at.sessions.append("x", says("assistant", "late"), { sessionId });
  at.sessions.delete("x");
  const later = at.sessions.append("x", says("assistant", "later"), { sessionId });

  assertEquals([late.seq, later.seq], [2, 3]);
  assertEquals(at.sessions.get("x"), undefined);
  assertEquals(at.sessions.exportPage({ sessionId })!.lines.length, 4);
  assertThrows(() => at.sessions.append("x", says("user", "?"), { sessionId: "never was" }));
});

Deno.test("a deleted session is gone from everything but the export; the main one stays", async () => {
  using at = await sessionsOf();
  const { sessionId } = at.sessions.append("x", says("user", "pineapple"));

  assertEquals(at.sessions.delete("X"), true);

  assertEquals(at.sessions.delete("x"), false);
  assertEquals([at.sessions.get("x"), at.sessions.findById(sessionId)], [undefined, undefined]);
  assertEquals([at.sessions.list(), at.sessions.search("pineapple")], [[], []]);
  assertEquals(at.sessions.exportPage({ sessionId })?.key, "agent:main:x");
  const error = assertThrows(() => at.sessions.delete("main"), RpcError);
  assertEquals(error.message, "Cannot delete the main session (agent:main:main).");
});

Deno.test("compacting leaves the last messages in the conversation and all in the export", async () => {
  using at = await sessionsOf();
  for (let i = 1; i <= 10; i++) at.sessions.append("x", says("user", `${i}`));

  assertEquals(at.sessions.compact("x", 10), { compacted: false, kept: 10 });
  assertEquals(at.sessions.compact("x", 3), { compacted: true, kept: 3 });

  assertEquals(textsIn(at.sessions.history("x").messages), ["8", "9", "10"]);
  assertEquals(at.sessions.get("x")?.messageCount, 3);
  assertEquals(at.sessions.append("x", says("user", "11")).seq, 11);
  assertEquals(at.sessions.exportPage({ key: "x" })!.lines.length, 12);
  assertEquals(at.sessions.compact("nobody").compacted, false);
});

Deno.test("lists are newest first and take every filter of the protocol", async () => {
  using at = await sessionsOf();
  const minute = 60_000;
  at.sessions.ensure("global");
  at.sessions.ensure("unknown");
  at.sessions.patch("first", { label: "L1" });
  at.clock.nowMs += 10 * minute;
  at.sessions.ensure("agent:anna:second", { displayName: "Anna's Phone", chatType: "group" });
  at.clock.nowMs += minute;
  at.sessions.patch("third", { spawnedBy: "agent:main:first" });
  const keys = (query: Parameters<Sessions["list"]>[0]) =>
    at.sessions.list(query).map(({ key }) => key.replace("agent:main:", ""));

  assertEquals(keys({}), ["third", "agent:anna:second", "first"]);
  assertEquals(keys({ limit: 1 }), ["third"]);
  assertEquals(keys({ activeMinutes: 5 }), ["third", "agent:anna:second"]);
  assertEquals(keys({ includeGlobal: true, includeUnknown: true }).length, 5);
  assertEquals(keys({ label: "L1" }), ["first"]);
  assertEquals(keys({ agentId: "Anna" }), ["agent:anna:second"]);
  assertEquals(keys({ spawnedBy: "agent:main:first" }), ["third"]);
  for (const search of ["PHONE", " anna's ", "agent:anna:SEC"]) {
    assertEquals(keys({ search }), ["agent:anna:second"], search);
  }
  assertEquals(keys({ search: "l1" }), ["first"]);
  assertEquals(keys({ search: "%" }), []);
  assertEquals(at.sessions.list({ agentId: "anna" })[0].kind, "group");
  assertEquals([at.sessions.count(), at.sessions.count("anna")], [3, 1]);
  at.clock.nowMs += 1;
  at.sessions.append("first", says("user", "again"));
  assertEquals(keys({ limit: 1 }), ["first"]);
});

Deno.test("a clock that goes back does not send a session down the list", async () => {
  using at = await sessionsOf();
  at.sessions.append("old", says("user", "1"));
  at.clock.nowMs += 5;
  at.sessions.append("new", says("user", "1"));
  at.clock.nowMs -= 1_000_000;

  at.sessions.append("new", says("user", "2"));

  assertEquals(at.sessions.list().map(({ key }) => key), ["agent:main:new", "agent:main:old"]);
});

Deno.test("a preview shows the last texts, who said them, and no more of them than asked", async () => {
  using at = await sessionsOf();
  const call = { type: "toolCall" as const, id: "1", name: "node_list", arguments: {} };
  const image = { type: "image" as const, mimeType: "image/png", data: "AAAA" };
  at.sessions.append("x", says("system", "be brief"));
  at.sessions.append("x", { ...says("user", ""), content: [image] });
  at.sessions.append("x", { ...says("assistant", ""), content: [call] });
  at.sessions.append("x", says("toolResult", "n1"));
  at.sessions.append("x", says("assistant", "a".repeat(50)));

  assertEquals(at.sessions.preview("x", 12, 20), [
    { role: "system", text: "be brief" },
    { role: "user", text: "[image]" },
    { role: "tool", text: "call node_list" },
    { role: "tool", text: "n1" },
    { role: "assistant", text: `${"a".repeat(19)}…` },
  ]);
  assertEquals(at.sessions.preview("x", 1, 20)?.length, 1);
  assertEquals(at.sessions.preview("nobody", 1, 20), undefined);
});

Deno.test("a search finds the messages that hold every word, the newest first", async () => {
  using at = await sessionsOf();
  at.sessions.append("a", says("user", "which Kernel is this?"));
  at.sessions.append("a", says("assistant", `${"word ".repeat(100)}the kernel is 6.8`));
  at.sessions.append("b", says("user", "Käse und Brot"));
  at.sessions.append("a", { ...says("user", ""), content: [] });
  const found = (query: string, where = {}) =>
    at.sessions.search(query, where).map(({ key, seq }) => `${key.at(-1)}${seq}`);

  assertEquals(found("KERNEL"), ["a2", "a1"]);
  assertEquals(found("kernel which"), ["a1"]);
  assertEquals(found("kern"), ["a2", "a1"]);
  assertEquals(found("kase"), ["b1"]);
  assertEquals(found("kernel", { key: "b" }), []);
  assertEquals(found("kernel", { limit: 1 }), ["a2"]);
  const [hit] = at.sessions.search("6.8");
  assert(hit.snippet.includes("kernel is 6.8") && hit.snippet.length < 200, hit.snippet);
  for (const odd of ['"', "AND", "NEAR(", "a*b -c", "col:x", "", "   ", "(", "🙂", "^x", "{a b}"]) {
    at.sessions.search(odd);
  }
  at.sessions.reset("a");
  assertEquals(found("kernel"), []);
});

Deno.test("an export is the transcript as JSON lines, page by page", async () => {
  using at = await sessionsOf();
  const count = 2_345;
  for (let i = 1; i <= count; i++) at.sessions.append("x", says("user", `${i}`, 1_000 * i));

  const lines: string[] = [];
  let pages = 0;
  for (let after: number | undefined = undefined, done = false; !done; pages++) {
    const page: ReturnType<Sessions["exportPage"]> = at.sessions.exportPage({ key: "x" }, after);
    lines.push(...page!.lines);
    done = page!.next === null;
    after = page!.next ?? undefined;
  }

  const [head, ...rest] = lines.map((line) => JSON.parse(line));
  assertEquals(pages, 3);
  assertEquals(head, {
    type: "session",
    version: 1,
    id: at.sessions.get("x")!.entry.sessionId,
    timestamp: "2023-11-14T22:13:20.000Z",
    cwd: ":memory:",
  });
  assertEquals(rest.map(({ message }) => textOf(message)), [
    ...Array.from({ length: count }, (_, i) => `${i + 1}`),
  ]);
  assertEquals([rest[0].type, rest[0].timestamp], ["message", "1970-01-01T00:00:01.000Z"]);
  assertEquals(new Set(rest.map(({ id }) => id)).size, count);
  assertEquals(at.sessions.exportPage({ key: "nobody" }), undefined);
});

Deno.test("usage adds up for the session and by day and model, and outlives the session", async () => {
  using at = await sessionsOf();
  const turn = { inputTokens: 10, outputTokens: 1, model: "p/m", contextTokens: 1_000 };
  at.sessions.ensure("x");
  at.sessions.recordUsage("x", turn);
  at.sessions.recordUsage("x", { ...turn, inputTokens: 20 });
  at.clock.nowMs += 86_400_000;
  at.sessions.recordUsage("x", { ...turn, model: "p/other", contextTokens: undefined });

  const { entry } = at.sessions.get("x")!;
  assertEquals([entry.inputTokens, entry.outputTokens, entry.totalTokens], [40, 3, 11]);
  assertEquals(entry.contextTokens, 1_000);
  at.sessions.delete("x");
  at.sessions.recordUsage("x", { ...turn, model: "p/late" });
  assertEquals(at.sessions.get("x"), undefined);
  const key = "agent:main:x";
  const [one, two] = at.sessions.usage(0);
  assertEquals(one, {
    ...{ day: "2023-11-14", key, model: "p/m", inputTokens: 30, outputTokens: 2, turns: 2 },
  });
  assertEquals([two.day, two.model], ["2023-11-15", "p/late"]);
  assertEquals(at.sessions.usage(at.clock.nowMs).length, 2);
});
