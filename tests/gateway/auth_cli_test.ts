import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { zero } from "../support/cli.ts";
import { startModelApi } from "../support/model_api.ts";

const KEY = "secret-key-4711";

Deno.test("a provider is added with its key in a file of its own, and its only model is used", async () => {
  await using at = await home();

  const { code, stdout, stderr } = await at.zero(
    ["auth", "add", "local", "--base-url", at.api.baseUrl, "--key", "-"],
    KEY,
  );

  assertEquals(code, 0, stderr);
  assertStringIncludes(stdout, "Agents now use local/test-model");
  const file = `${at.state}/credentials/local.key`;
  assertEquals((await Deno.readTextFile(file)).trim(), KEY);
  assertEquals((await Deno.stat(file)).mode! & 0o777, 0o600);
  const config = await Deno.readTextFile(`${at.state}/zero.json`);
  assert(!config.includes(KEY) && config.includes("credentials/local.key"), config);
  const listed = await at.zero(["auth", "list", "--json"]);
  assertEquals(listed.json.providers, [{
    name: "local",
    api: "openai-completions",
    baseUrl: at.api.baseUrl,
    key: `file ${file}`,
    models: ["test-model"],
  }]);
  const offered = await at.zero(["models", "local"]);
  assertEquals(offered.stdout, "test-model\n");
  const again = await at.zero(["auth", "add", "local", "--model", "test-model"]);
  assertMatch(again.stdout, /^Added local .*\nAgents use local\/test-model\n$/);
});

Deno.test("a key that the provider refuses is not kept, and not shown", async () => {
  await using at = await home();

  const { code, stdout, stderr } = await at.zero(
    ["auth", "add", "local", "--base-url", at.api.baseUrl, "--key", "-", "--verbose"],
    "wrong-key-4711",
  );

  assertEquals(code, 1);
  assertStringIncludes(stderr, "refused the key");
  assert(!`${stdout}${stderr}`.includes("wrong-key-4711"));
  const left = await Array.fromAsync(Deno.readDir(at.home));
  assertEquals(left, []);
});

Deno.test("removing a provider removes its key, and the built-in agent answers again", async () => {
  await using at = await home();
  await at.zero(["auth", "add", "local", "--base-url", at.api.baseUrl, "--key", "-"], KEY);
  await at.zero(["config", "set", "agents.defaults.fallbacks", '["local/x","other/y"]']);

  const { stdout } = await at.zero(["auth", "remove", "local"]);

  assertStringIncludes(stdout, "the built-in agent answers now");
  const { json } = await at.zero(["config", "get", "--json"]);
  assertEquals([json.models?.providers?.local, json.agents?.defaults], [
    undefined,
    { fallbacks: ["other/y"] },
  ]);
  assertEquals(await Array.fromAsync(Deno.readDir(`${at.state}/credentials`)), []);
});

Deno.test("another model of a provider goes with the key that is there", async () => {
  await using at = await home();
  await at.zero(["auth", "add", "local", "--base-url", at.api.baseUrl, "--key", "-"], KEY);

  const unknown = await at.zero(["auth", "add", "local", "--model", "other"]);
  const known = await at.zero(["auth", "add", "local", "--model", "other", "--no-verify"]);

  assertEquals([unknown.code, known.code], [2, 0]);
  assertStringIncludes(unknown.stderr, "local does not offer it");
  const { json } = await at.zero(["auth", "list", "--json"]);
  assertEquals(json.providers[0].models, ["test-model", "other"]);
  assertStringIncludes(json.providers[0].key, "credentials/local.key");
});

Deno.test("a provider that is not there is told with what to look at", async () => {
  await using at = await home();
  const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const { port } = listener.addr as Deno.NetAddr;
  listener.close();

  const { code, stderr } = await at.zero(
    ["auth", "add", "local", "--base-url", `http://127.0.0.1:${port}/v1`, "--key", "-"],
    KEY,
  );

  assertEquals(code, 1);
  assertStringIncludes(stderr, "fix:   Look at its address");
});

Deno.test("a key is not called good by a provider that tells its models to anybody", async () => {
  await using at = await home();
  await using open = startModelApi([{ text: "hi" }], { isOpen: true });

  const { stdout } = await at.zero(
    ["auth", "add", "open", "--base-url", open.baseUrl, "--key", "-"],
    "any-key-at-all",
  );

  assertStringIncludes(stdout, "it answers");
  assert(!stdout.includes("the key is good"));
});

Deno.test("what cannot be right is refused before anything is asked", async () => {
  await using at = await home();
  const rows: [string[], string][] = [
    [["Bad Name"], "lower case"],
    [["nobody"], "--base-url"],
    [["local", "--base-url", "api.example/v1", "--key", "env:KEY"], "no address"],
    [["local", "--base-url", at.api.baseUrl], "--key -"],
    [["local", "--base-url", at.api.baseUrl, "--key", KEY], "others could see it"],
    [["local", "--base-url", "http://api.example/v1", "--key", "env:KEY"], "not encrypted"],
  ];

  for (const [args, hint] of rows) {
    const { code, stderr } = await zero(["auth", "add", ...args], {
      home: at.home,
      env: { KEY },
    });
    assertEquals(code, 2, stderr);
    assertStringIncludes(stderr, hint);
    assert(!stderr.includes(KEY), stderr);
  }
  assertEquals(at.api.requests.length, 0);
});

async function home() {
  const home = await Deno.makeTempDir();
  const api = startModelApi([{ text: "hi" }], { key: KEY });
  return {
    home,
    state: `${home}/state`,
    api,
    zero: (args: string[], stdin?: string) => zero(args, { home, stdin }),
    async [Symbol.asyncDispose]() {
      await api[Symbol.asyncDispose]();
      await Deno.remove(home, { recursive: true });
    },
  };
}
