import { assertEquals } from "@std/assert";
import type { Config } from "../../config/schema.ts";
import { agentsOf, durationMs, normalizeAgentId, sessionDefaults } from "../../gateway/agents.ts";

function listing(...list: Record<string, unknown>[]): Config {
  return { agents: { list } } as Config;
}

Deno.test("without a list there is the agent main", () => {
  assertEquals(agentsOf({}), [{ agentId: "main", isDefault: true }]);
  assertEquals(agentsOf(listing()), [{ agentId: "main", isDefault: true }]);
});

Deno.test("the default agent comes first: the marked one, else the first", () => {
  const ids = (config: Config) => agentsOf(config).map((one) => [one.agentId, one.isDefault]);

  assertEquals(ids(listing({ id: "a" }, { id: "b" })), [["a", true], ["b", false]]);
  assertEquals(ids(listing({ id: "a" }, { id: "b", default: true }, { id: "c" })), [
    ["b", true],
    ["a", false],
    ["c", false],
  ]);
});

Deno.test("an agent shows its name and how often it wakes, where these are set", () => {
  const [agent] = agentsOf(listing({ id: "A", name: "Anna", heartbeat: { every: "30m" } }));

  assertEquals(agent, { agentId: "a", name: "Anna", isDefault: true, every: "30m" });
});

Deno.test("an id is in lower case, foreign characters are dashes, and it is never empty", () => {
  const rows = [
    ["Main", "main"],
    ["My Agent!", "my-agent"],
    ["a__b--c", "a__b--c"],
    ["  x  ", "x"],
    ["-x", "x"],
    ["___", "main"],
    ["Ünïcode", "n-code"],
    ["", "main"],
    ["a".repeat(100), "a".repeat(64)],
  ];

  for (const [id, expected] of rows) assertEquals(normalizeAgentId(id), expected, id);
});

Deno.test("the main session is named after the default agent, or global", () => {
  assertEquals(sessionDefaults({}), {
    defaultAgentId: "main",
    mainKey: "main",
    mainSessionKey: "agent:main:main",
    scope: "per-sender",
  });
  const config = { ...listing({ id: "anna" }), session: { mainKey: "home" } } as Config;
  assertEquals(sessionDefaults(config).mainSessionKey, "agent:anna:home");
  assertEquals(sessionDefaults({ session: { scope: "global" } }).mainSessionKey, "global");
});

Deno.test("a duration is read with its unit, minutes without one, and nonsense is none", () => {
  const rows: [string | undefined, number | null][] = [
    ["30m", 1_800_000],
    ["30", 1_800_000],
    [" 1.5h ", 5_400_000],
    ["45s", 45_000],
    ["250ms", 250],
    ["2d", 172_800_000],
    ["0m", null],
    ["0", null],
    ["", null],
    [undefined, null],
    ["soon", null],
    ["-5m", null],
    ["5 weeks", null],
  ];

  for (const [text, expected] of rows) assertEquals(durationMs(text), expected, String(text));
});
