import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { readConfig } from "../../config/load.ts";
import { type CliResult, spawnZero, zero } from "../support/cli.ts";
import { startTestGateway, TOKEN } from "../support/gateway.ts";
import { hasScript, zeroOnTerminal } from "../support/pty.ts";

const PIN = "12".repeat(32);

/** A machine without a gateway, on which commands are run; and a gateway elsewhere. */
async function laptop() {
  const gateway = await startTestGateway();
  const home = await Deno.makeTempDir({ prefix: "zero-remote-" });
  const configPath = `${home}/state/zero.json`;
  return {
    gateway,
    home,
    run: (args: string[], { env = {}, stdin }: {
      env?: Record<string, string>;
      stdin?: string;
    } = {}): Promise<CliResult> => zero(args, { home, env, stdin }),
    config: async () => {
      const { raw, config, valid } = await readConfig({ path: configPath, env: { HOME: home } });
      return { raw: raw ?? "", config, valid, mode: (await Deno.stat(configPath)).mode! & 0o777 };
    },
    async [Symbol.asyncDispose]() {
      await gateway[Symbol.asyncDispose]();
      await Deno.remove(home, { recursive: true });
    },
  };
}

Deno.test("a remote is added, tried, used for one command, for a shell and for good, and removed", async () => {
  await using at = await laptop();
  const { url } = at.gateway;
  const ZERO_REMOTE = "home";

  const added = await at.run(["remote", "add", "home", "--url", url, "--token-file", "-"], {
    stdin: `${TOKEN}\n`,
  });
  const tested = await at.run(["remote", "test", "home", "--json"]);
  const here = await at.run(["health", "--json"]);
  const once = await at.run(["health", "--remote", "home", "--json"]);
  const inShell = await at.run(["call", "status"], { env: { ZERO_REMOTE } });
  const used = await at.run(["remote", "use", "home"]);
  const always = await at.run(["health", "--json"]);
  const list = (await at.run(["remote", "--json"])).json;
  const kept = await at.run(["remote", "remove", "home"]);
  const local = await at.run(["remote", "use", "local"]);
  const removed = await at.run(["remote", "remove", "home", "--json"]);

  assertEquals([added.code, added.stdout], [0, `Added home: ${url}\n`]);
  assertEquals([tested.code, tested.json.ok, tested.json.gateway.url], [0, true, url]);
  assertEquals([here.code, here.json.error.code], [1, "GATEWAY_UNREACHABLE"]);
  assertEquals([once.code, once.json.ok], [0, true]);
  assertEquals(inShell.code, 0);
  assertStringIncludes(used.stdout, "Commands here now go to home");
  assertEquals([always.code, always.json.ok], [0, true]);
  assertEquals([list.current, list.source], ["home", "config gateway.remote.name"]);
  assertEquals(list.remotes.map((one: { name: string }) => one.name), ["local", "home"]);
  assertEquals(list.remotes[1], {
    name: "home",
    address: url,
    credential: "token",
    isCurrent: true,
  });
  assertEquals(kept.code, 2);
  assertStringIncludes(kept.stderr, "Cannot remove home: commands go there");
  assertEquals([local.code, removed.json.ok], [0, true]);
  const { config, mode } = await at.config();
  assertEquals([config.remotes, config.gateway?.mode, mode], [{}, "local", 0o600]);
});

Deno.test("no command about remotes shows a secret", async () => {
  await using at = await laptop();
  const add = ["remote", "add", "home", "--url", at.gateway.url, "--token-file", "-", "--use"];
  const shown = [
    await at.run([...add, "--json"], { stdin: TOKEN }),
    await at.run(["remote", "list"]),
    await at.run(["remote", "show"]),
    await at.run(["remote", "show", "home", "--json"]),
    await at.run(["remote", "test", "--verbose"]),
    await at.run(["health", "--verbose"]),
  ];

  for (const { code, stdout, stderr } of shown) {
    assertEquals(code, 0, stderr);
    assertEquals(`${stdout}${stderr}`.includes(TOKEN), false);
  }
  const { url, urlSource, token, ssh } = shown[3].json;
  assertEquals([url, urlSource, ssh], [at.gateway.url, "cli --remote", undefined]);
  assertEquals(token, { source: "config remotes.home.token" });
  assertStringIncludes(shown[2].stdout, "Source: config gateway.remote.name");
});

Deno.test("a token by reference is read for each command and never stands in the configuration", async () => {
  await using at = await laptop();
  const { gateway: { url }, home } = at;
  const file = `${home}/token`;
  await Deno.writeTextFile(file, TOKEN, { mode: 0o600 });
  const refs = [`file:${file}`, `exec:cat ${file}`, "env:MY_TOKEN"];
  const codes: number[] = [];
  for (const [index, ref] of refs.entries()) {
    await at.run(["remote", "add", `r${index}`, "--url", url, "--token-from", ref]);
    const env = { MY_TOKEN: TOKEN };
    codes.push((await at.run(["health", "--remote", `r${index}`], { env })).code);
  }
  const without = await at.run(["health", "--remote", "r2", "--json"]);
  const { raw, config } = await at.config();

  assertEquals(codes, [0, 0, 0]);
  assertEquals(raw.includes(TOKEN), false);
  assertEquals(Object.values(config.remotes ?? {}).map(({ token }) => token), [
    { file },
    { exec: ["cat", file] },
    { env: "MY_TOKEN" },
  ]);
  assertEquals([without.code, without.json.error.code, without.json.error.layer], [
    1,
    "SECRET_UNAVAILABLE",
    "auth",
  ]);
  assertStringIncludes(
    without.stderr,
    "Cannot read the secret remotes.r2.token from env:MY_TOKEN: it is not set",
  );
});

Deno.test("what cannot be added is refused before anything is written", async () => {
  await using at = await laptop();
  const url = "wss://gw.example";
  const refused: [string[], string][] = [
    [["local", "--url", url], 'Cannot use the name "local"'],
    [["-x", "--url", url], "-x"],
    [["a b", "--url", url], 'Cannot use the name "a b"'],
    [["home"], "Cannot add home: how is it reached?"],
    [["home", "--url", url, "--ssh", "me@h"], "--ssh"],
    [["home", "--url", "https://gw.example"], "Cannot use --url: it is no ws:// or wss:// address"],
    [["home", "--url", "wss://gw.example/?token=x"], "Cannot use --url: a secret in an address"],
    [["home", "--ssh=-oProxyCommand=x"], "Cannot use --ssh: it is no machine"],
    [["home", "--ssh", "a b"], "Cannot use --ssh: it is no machine"],
    [["home", "--url", url, "--tls-fingerprint", "ab"], "Cannot use --tls-fingerprint"],
    [["home", "--url", url, "--tls-fingerprint", ""], "Cannot use --tls-fingerprint"],
    [["home", "--url", url, "--tls-fingerprint", `${PIN} until soon`], "Cannot use --tls-finger"],
    [["home", "--url", url, "--token-from", "secret"], "Cannot use --token-from: it is no"],
    [["home", "--url", url, "--token-from", "env:x", "--no-token"], "--no-token"],
  ];

  for (const [args, message] of refused) {
    const { code, stderr } = await at.run(["remote", "add", ...args]);
    assertEquals([args, code], [args, 2], stderr);
    assertStringIncludes(stderr, message);
  }
  assertEquals(await Deno.stat(`${at.home}/state/zero.json`).catch(() => "none"), "none");
});

Deno.test("a remote is not replaced by mistake, and one that is not there is named with its likes", async () => {
  await using at = await laptop();
  await at.run(["remote", "add", "home", "--url", "wss://one.example", "--no-token"]);

  const again = await at.run(["remote", "add", "home", "--url", "wss://two.example"]);
  const forced = await at.run(["remote", "add", "home", "--ssh", "me@vps", "--force"]);
  const unknown = [
    await at.run(["remote", "use", "hme"]),
    await at.run(["remote", "remove", "hme"]),
    await at.run(["health", "--remote", "hme"]),
  ];

  assertEquals([again.code, forced.code, forced.stdout], [
    2,
    0,
    "Added home: ssh me@vps, port 18789 there\n",
  ]);
  assertEquals((await at.config()).config.remotes, {
    home: { transport: "ssh", sshTarget: "me@vps" },
  });
  for (const { code, stderr } of unknown) {
    assertEquals(code, 2);
    assertStringIncludes(stderr, "One of: home");
  }
});

Deno.test("--url, --port, --ssh and --remote exclude one another", async () => {
  await using at = await laptop();
  const flags = [["--url", "ws://127.0.0.1:1"], ["--port", "1"], ["--ssh", "h"], ["--remote", "r"]];

  for (const [index, one] of flags.entries()) {
    for (const other of flags.slice(index + 1)) {
      const { code, stderr } = await at.run(["health", ...other, ...one]);
      assertEquals(code, 2, stderr);
      for (const [name] of [one, other]) assertStringIncludes(stderr, name);
    }
  }
});

Deno.test("where a gateway runs, all commands are sent elsewhere only by force", async () => {
  await using at = await laptop();
  await at.run(["remote", "add", "home", "--url", at.gateway.url, "--no-token"]);
  const child = spawnZero(["gateway", "--port", "0"], at);
  const err = child.stderr.cancel();
  const out = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  for (let said = ""; !said.includes("ws://");) {
    const { value, done } = await out.read();
    assert(!done, `it ended: ${said}`);
    said += value;
  }

  const refused = await at.run(["remote", "use", "home"]);
  const forced = await at.run(["remote", "use", "home", "--force"]);
  child.kill("SIGTERM");
  while (!(await out.read()).done);
  await Promise.all([child.status, err]);

  assertEquals(refused.code, 2);
  assertStringIncludes(refused.stderr, `a gateway runs on this machine (pid ${child.pid})`);
  assertStringIncludes(refused.stderr, "Use --remote home or ZERO_REMOTE=home");
  assertEquals(forced.code, 0);
});

Deno.test({
  name: "zero remote add asks for the token on a terminal, and what is typed is not shown",
  ignore: !hasScript,
  async fn() {
    await using at = await laptop();
    const args = ["remote", "add", "home", "--url", at.gateway.url, "--use"];

    const { code, output } = await zeroOnTerminal(args, at, [["Token of home", `${TOKEN}\r`]]);
    const after = await at.run(["health", "--json"]);

    assertEquals([code, after.json.ok], [0, true], output);
    assert(!output.includes(TOKEN), "the token stands on the terminal");
  },
});

Deno.test("where the gateway wants a token and none was given, the test says which", async () => {
  await using at = await laptop();
  await at.run(["remote", "add", "home", "--url", at.gateway.url, "--no-token"]);

  const { code, json } = await at.run(["remote", "test", "home", "--json"]);

  assertEquals(code, 1);
  assertEquals(json.error.code, "AUTH_TOKEN_MISSING");
});

Deno.test("a remote may have several pins, and pins that end", async () => {
  await using at = await laptop();
  const next = "34".repeat(32);
  const add = (name: string, pins: string) =>
    at.run(["remote", "add", name, "--url", "wss://gw.example", "--tls-fingerprint", pins]);

  await add("one", `sha256:${PIN}`);
  await add("two", `sha256:${PIN} until 2027-01-31, ${next}`);
  const { config } = await at.config();
  const shown = await at.run(["remote", "show", "two", "--json"]);

  assertEquals(config.remotes?.one.tlsFingerprint, PIN);
  assertEquals(config.remotes?.two.tlsFingerprint, [{ sha256: PIN, until: "2027-01-31" }, next]);
  assertEquals(shown.json.tlsFingerprints, [`${PIN} until 2027-01-31`, next]);
});
