import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { ModelError } from "../../../gateway/agent/model.ts";
import { Models } from "../../../gateway/agent/models.ts";
import { usageCost } from "../../../gateway/agent/usage.ts";
import { openLog } from "../../../config/log.ts";
import { parseConfig } from "../../../config/load.ts";
import { startModelApi } from "../../support/model_api.ts";

Deno.test("without a model the built-in agent answers", async () => {
  await using at = await modelsOf(`{}`);

  assertEquals(at.models.pick({ agentId: "main" }), []);
  assertEquals(at.models.list(), []);
});

Deno.test("the model is that of the call, else of the agent, else of all agents; then the fallbacks", async () => {
  await using at = await modelsOf(`{
    models: { providers: { p: { baseUrl: "http://127.0.0.1:1/v1", models: [{ id: "x/y" }] } } },
    agents: {
      defaults: { model: "p/a", fallbacks: ["p/b", "p/c"] },
      list: [{ id: "main" }, { id: "Other", model: "p/c" }],
    },
  }`);
  const ids = (choice: { agentId: string; sessionModel?: string }) =>
    at.models.pick(choice).map(({ id }) => id);

  assertEquals(ids({ agentId: "main" }), ["p/a", "p/b", "p/c"]);
  assertEquals(ids({ agentId: "other" }), ["p/c", "p/b"]);
  assertEquals(ids({ agentId: "main", sessionModel: "p/x/y" }), ["p/x/y", "p/b", "p/c"]);
});

Deno.test("a model of a provider that is not configured says how to add it", async () => {
  await using at = await modelsOf(`{ agents: { defaults: { model: "nope/m" } } }`);

  const error = assertThrows(() => at.models.pick({ agentId: "main" }), ModelError);

  assertEquals(error.fix, "zero auth add nope");
});

Deno.test("a fallback that cannot be used is left out, and a model without its provider is explained", async () => {
  await using at = await modelsOf(`{
    models: { providers: { p: { baseUrl: "http://127.0.0.1:1/v1" } } },
    agents: { defaults: { model: "p/a", fallbacks: ["gone/b", "p/c"] } },
  }`);

  const picked = at.models.pick({ agentId: "main" }).map(({ id }) => id);
  const error = assertThrows(
    () => at.models.pick({ agentId: "main", sessionModel: "gpt-5" }),
    ModelError,
  );

  assertEquals(picked, ["p/a", "p/c"]);
  assertEquals([error.message, error.fix], [
    "Cannot use the model gpt-5: its provider is not named, as in openai/gpt-5",
    "zero models",
  ]);
});

Deno.test("a key is read when it is needed, read again when it was refused, and kept from the log", async () => {
  await using server = startModelApi([{ text: "ok" }], { key: "second-key-5678" });
  const keyFile = await Deno.makeTempFile();
  await Deno.writeTextFile(keyFile, "first-key-1234\n");
  await Deno.chmod(keyFile, 0o600);
  await using at = await modelsOf(`{
    models: { providers: { p: { baseUrl: "${server.baseUrl}", apiKey: { file: "${keyFile}" } } } },
  }`);
  const [model] = at.models.pick({ agentId: "main", sessionModel: "p/test-model" });
  const ask = () =>
    Array.fromAsync(model.respond({
      system: "",
      messages: [{ role: "user", content: [{ type: "text", text: "hi" }], timestamp: 1 }],
      tools: [],
      signal: new AbortController().signal,
    }));

  const error = await assertRejects(ask, ModelError, "refused the key");
  await Deno.writeTextFile(keyFile, "second-key-5678\n");
  const parts = await ask();
  at.log.info("about second-key-5678 and first-key-1234");
  await Deno.remove(keyFile);

  assertEquals(error.kind, "auth");
  assert(parts.some(({ type }) => type === "end"));
  assert(at.lines.length > 0);
  assert(!at.lines.join("\n").match(/second-key|first-key/), at.lines.join("\n"));
});

Deno.test("a key that cannot be read names its provider", async () => {
  await using at = await modelsOf(`{
    models: { providers: { p: { baseUrl: "http://127.0.0.1:1/v1", apiKey: "env:NO_SUCH_KEY" } } },
  }`);
  const [model] = at.models.pick({ agentId: "main", sessionModel: "p/m" });

  const error = await assertRejects(
    () =>
      Array.fromAsync(model.respond({
        system: "",
        messages: [],
        tools: [],
        signal: new AbortController().signal,
      })),
    ModelError,
    "NO_SUCH_KEY",
  );

  assertEquals([error.kind, error.fix], ["auth", "zero auth add p"]);
});

Deno.test("models are listed as the configuration names them, with their price", async () => {
  await using at = await modelsOf(`{
    models: { providers: { p: { baseUrl: "http://127.0.0.1:1/v1", models: [
      { id: "a", name: "Model A", contextWindow: 32000, reasoning: true, cost: { input: 2, output: 8 } },
      { id: "b" },
    ] } } },
  }`);

  assertEquals(at.models.list(), [
    { id: "a", name: "Model A", provider: "p", contextWindow: 32_000, reasoning: true },
    { id: "b", name: "b", provider: "p", contextWindow: 128_000 },
  ]);
  const tokens = { inputTokens: 1_000_000, outputTokens: 500_000 };
  assertEquals(at.models.cost("p/a", tokens), 6);
  assertEquals(at.models.cost("p/b", tokens), undefined);
});

Deno.test("usage is summed by day and by model; what has no price is counted apart", () => {
  const row = (day: string, model: string, inputTokens: number) => ({
    day,
    key: "agent:main:main",
    model,
    inputTokens,
    outputTokens: 1,
    turns: 1,
  });
  const rows = [
    row("2026-01-02", "p/a", 10),
    row("2026-01-01", "p/a", 20),
    row("2026-01-02", "p/b", 5),
  ];

  const answer = usageCost(rows, {
    days: 30,
    now: 7,
    price: (model, { inputTokens }) => model === "p/a" ? inputTokens : undefined,
  });

  assertEquals(answer.daily.map(({ date, totalTokens }) => [date, totalTokens]), [
    ["2026-01-01", 21],
    ["2026-01-02", 17],
  ]);
  assertEquals(answer.models.map(({ model, costUsd }) => [model, costUsd]), [
    ["p/a", 30],
    ["p/b", null],
  ]);
  assertEquals(answer.totals, {
    inputTokens: 35,
    outputTokens: 3,
    totalTokens: 38,
    turns: 3,
    costUsd: 30,
    turnsWithoutPrice: 1,
  });
});

async function modelsOf(text: string) {
  const folder = await Deno.makeTempDir();
  const reading = await parseConfig(text, { path: `${folder}/zero.json`, env: {} });
  assert(reading.valid, JSON.stringify(reading.issues));
  const lines: string[] = [];
  const log = openLog({ level: "debug", mirror: (line) => lines.push(line) });
  return {
    log,
    models: new Models({ config: { reading }, env: {}, log }),
    lines,
    async [Symbol.asyncDispose]() {
      await log[Symbol.asyncDispose]();
      await Deno.remove(folder, { recursive: true });
    },
  };
}
