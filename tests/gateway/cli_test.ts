import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { type CliResult, spawnZero, zero } from "../support/cli.ts";
import { startTestGateway, type TestGateway, type TestGatewayOptions } from "../support/gateway.ts";
import { startScriptedGateway } from "../support/scripted_gateway.ts";

const CANARY = "canary-4b1d-secret";
const REMOTE_HOST = "gateway.example";

/** A home directory for `zero`, without a gateway in it. */
class Home implements AsyncDisposable {
  constructor(readonly path: string) {}

  static async make(config?: unknown): Promise<Home> {
    const home = new Home(await Deno.makeTempDir({ prefix: "zero-cli-" }));
    if (config !== undefined) {
      await Deno.mkdir(`${home.path}/state`);
      const text = typeof config === "string" ? config : JSON.stringify(config);
      await Deno.writeTextFile(`${home.path}/state/zero.json`, text);
    }
    return home;
  }

  run(args: string[], env: Record<string, string> = {}, stdin?: string): Promise<CliResult> {
    return zero(args, { home: this.path, env, stdin });
  }

  /** Every file below the home directory. */
  files(directory = this.path): string[] {
    return [...Deno.readDirSync(directory)].flatMap(({ name, isDirectory }) => {
      const path = `${directory}/${name}`;
      return isDirectory ? this.files(path) : [path.slice(this.path.length + 1)];
    }).sort();
  }

  async [Symbol.asyncDispose]() {
    await Deno.remove(this.path, { recursive: true });
  }
}

/** A home directory and a gateway that its configuration knows by port and token. */
async function withGateway(options: TestGatewayOptions = {}) {
  const gateway = await startTestGateway(options);
  const home = await Home.make();
  const env = {
    ZERO_GATEWAY_PORT: String(gateway.port),
    ZERO_GATEWAY_TOKEN: gateway.token,
    ZERO_DISABLE_BONJOUR: "1",
  };
  return {
    gateway,
    home,
    run: (...args: string[]) => home.run(args, env),
    async [Symbol.asyncDispose]() {
      await home[Symbol.asyncDispose]();
      await gateway[Symbol.asyncDispose]();
    },
  };
}

/** Counts what arrives, and answers nothing. */
function startSink() {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  let bytes = 0;
  let connections = 0;
  const done = (async () => {
    for await (const connection of listener) {
      connections++;
      const buffer = new Uint8Array(4096);
      for (let count; (count = await connection.read(buffer)) !== null;) bytes += count;
      connection.close();
    }
  })();
  return {
    port: listener.addr.port,
    get heard() {
      return { connections, bytes };
    },
    async [Symbol.asyncDispose]() {
      listener.close();
      await done;
    },
  };
}

function freePort(): number {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();
  return port;
}

function remoteConfig({ url }: Pick<TestGateway, "url">, token = CANARY) {
  return { gateway: { mode: "remote", remote: { url, token } } };
}

Deno.test("zero health --json prints the health of the gateway and nothing else", async () => {
  await using setup = await withGateway();

  const { code, json, stderr } = await setup.run("health", "--json");

  assertEquals([code, json.ok, json.defaultAgentId, stderr], [0, true, "main", ""]);
});

Deno.test("zero health is a few lines for people, with the target on stderr under --verbose", async () => {
  await using setup = await withGateway();

  const plain = await setup.run("gateway", "health");
  const verbose = await setup.run("health", "--verbose");

  assertEquals(plain.code, 0);
  assert(/^Gateway {4}ok, answered in \d+ ms\nVersion {4}\S+ \(protocol 4\)$/m.test(plain.stdout));
  assertEquals(plain.stderr, "");
  assertStringIncludes(verbose.stderr, `Gateway target: ${setup.gateway.url}`);
  assertStringIncludes(verbose.stderr, "Credential: token from env ZERO_GATEWAY_TOKEN");
  assert(!(verbose.stderr + verbose.stdout).includes(setup.gateway.token));
});

Deno.test("zero call prints the result, with params from the argument, a flag or standard input", async () => {
  await using setup = await withGateway();
  const { home, gateway } = setup;
  const env = { ZERO_GATEWAY_PORT: String(gateway.port), ZERO_GATEWAY_TOKEN: gateway.token };

  const status = await setup.run("call", "status");
  const argument = await setup.run("call", "talk.mode", '{"enabled":true}');
  const flag = await setup.run("gateway", "call", "talk.mode", "--params", '{"enabled":false}');
  const stdin = await home.run(["call", "voicewake.set", "-"], env, '{"triggers":["hello"]}\n');

  assertEquals([status.code, Array.isArray(status.json.sessions.recent)], [0, true]);
  assertEquals([argument.json.enabled, flag.json.enabled], [true, false]);
  assertEquals(stdin.json, { triggers: ["hello"] });
});

Deno.test("zero call with params that are no JSON, or given twice, is wrong usage", async () => {
  await using home = await Home.make();

  const broken = await home.run(["call", "status", "{half"]);
  const twice = await home.run(["call", "status", "{}", "--params", "{}"]);

  assertEquals([broken.code, twice.code], [2, 2]);
  assertStringIncludes(broken.stderr, "Cannot read the params: they are not valid JSON");
});

Deno.test("an unknown method ends with exit code 1 and the gateway's own words", async () => {
  await using setup = await withGateway();

  const { code, json, stderr } = await setup.run("gateway", "call", "no.such", "--json");

  assertEquals([code, json.ok, json.error.code], [1, false, "INVALID_REQUEST"]);
  assertEquals(json.error.message, "unknown method: no.such");
  assertStringIncludes(stderr, "unknown method: no.such");
});

Deno.test("send without a channel names the command that adds one", async () => {
  await using setup = await withGateway();

  const send = await setup.run("gateway", "send", "--to", "x", "--message", "y");
  const missing = await setup.run("gateway", "send", "--message", "y");

  assertEquals([send.code, missing.code], [1, 2]);
  assertStringIncludes(send.stderr, "zero channels add telegram");
});

Deno.test("a wrong token ends with code, layer, fix and target, and no secret", async () => {
  await using setup = await withGateway();
  const { url, token } = setup.gateway;
  // A device token of an earlier success must not hide that the typed one is wrong.
  await setup.run("health");

  const { code, json, stdout, stderr } = await setup.run(
    ...["health", "--json", "--url", url, "--token", CANARY],
  );

  assertEquals([code, json.ok], [1, false]);
  assertEquals(json.error.code, "AUTH_TOKEN_MISMATCH");
  assertEquals([json.error.layer, json.error.retryable], ["auth", false]);
  assertEquals(json.error.details.code, "AUTH_TOKEN_MISMATCH");
  assert(json.error.fix.length > 0);
  const lines = stderr.split("\n");
  assertStringIncludes(
    lines[0],
    "gateway closed (1008 policy violation): unauthorized: gateway token mismatch",
  );
  assertEquals(lines.slice(1, 3), [`Gateway target: ${url}`, "Source: cli --url"]);
  assert(/^Config: .*zero\.json$/.test(lines[3]));
  assertStringIncludes(stderr, "layer: auth");
  assertStringIncludes(stderr, "fix:   ");
  for (const secret of [CANARY, token]) assert(!(stdout + stderr).includes(secret));
});

Deno.test("a token file and standard input keep the token off the command line", async () => {
  await using setup = await withGateway();
  const { gateway, home } = setup;
  await Deno.writeTextFile(`${home.path}/token`, `${gateway.token}\n`);
  const port = ["--port", String(gateway.port)];

  const file = await home.run(["health", "--json", ...port, "--token-file", `${home.path}/token`]);
  const stdin = await home.run(
    ["health", "--json", ...port, "--token-file", "-"],
    {},
    gateway.token,
  );
  const missing = await home.run(["health", ...port, "--token-file", `${home.path}/none`]);

  assertEquals([file.code, stdin.code, missing.code], [0, 0, 2]);
  assertStringIncludes(missing.stderr, "there is no such file");
});

Deno.test("the second command gets in with the device token of the first, without any secret", async () => {
  await using gateway = await startTestGateway();
  const remote = { gateway: { mode: "remote", remote: { url: gateway.url } } };
  await using home = await Home.make(remote);

  const before = await home.run(["health", "--json"]);
  await home.run(["health"], { ZERO_GATEWAY_TOKEN: gateway.token });
  const after = await home.run(["health", "--json"]);

  assertEquals([before.code, before.json.error.code], [1, "AUTH_TOKEN_MISSING"]);
  assertEquals([after.code, after.json.ok], [0, true]);
});

Deno.test("with the token of the gateway on this machine no device is made and none is paired", async () => {
  await using setup = await withGateway();

  const { code } = await setup.run("health");

  const { paired } = await (await setup.gateway.connect()).call("device.pair.list", {}) as {
    paired: unknown[];
  };
  assertEquals([code, setup.home.files(), paired], [0, [], []]);
});

Deno.test("the users' sample of remote mode sends every command to the remote gateway and writes only identity/", async () => {
  await using gateway = await startTestGateway();
  await using trap = startSink();
  await using home = await Home.make(
    `{ gateway: { mode: "remote", port: ${trap.port}, remote: { url: "${gateway.url}", token: "${gateway.token}" } } }`,
  );

  const results = await Promise.all([
    home.run(["health", "--json"]),
    home.run(["call", "status"]),
    home.run(["status", "--json"]),
    home.run(["logs", "--json", "--limit", "1"]),
    home.run(["call", "no.such"]),
  ]);

  assertEquals(results.map(({ code }) => code), [0, 0, 0, 0, 1]);
  assertEquals(results[2].json.gateway.urlSource, "config gateway.remote.url");
  assertEquals(results[2].json.gateway.reachable, true);
  assertEquals(home.files(), [
    "state/identity/device-auth.json",
    "state/identity/device.json",
    "state/zero.json",
  ]);
  assertEquals(trap.heard, { connections: 0, bytes: 0 });
});

Deno.test("a remote gateway that is down gets no offer to start a local one", async () => {
  const port = freePort();
  const url = `ws://127.0.0.1:${port}`;
  await using home = await Home.make(remoteConfig({ url }));

  const { code, stderr } = await home.run(["health"]);

  assertEquals(code, 1);
  assertStringIncludes(stderr, "nobody listens there");
  assertStringIncludes(stderr, `fix:   Start the gateway at ${url}`);
  assert(!stderr.includes("zero gateway"));
  assert(!stderr.includes(CANARY));
});

Deno.test("remote mode without an address fails with its literal text and sends nothing", async () => {
  await using home = await Home.make({ gateway: { mode: "remote" } });

  const { code, stderr } = await home.run(["health"]);
  const status = await home.run(["status", "--json"]);

  assertEquals(code, 1);
  assertStringIncludes(
    stderr,
    "gateway remote mode misconfigured: gateway.remote.url missing\n" +
      `Config: ${home.path}/state/zero.json\n` +
      "Fix: set gateway.remote.url, or set gateway.mode=local.\n",
  );
  assertEquals(status.code, 0);
  assertEquals(status.json.gateway.misconfigured, true);
  assertEquals(
    status.json.gateway.urlSource,
    "missing gateway.remote.url (fallback local)",
  );
});

Deno.test("--url of a foreign host without a secret is refused before anything is sent", async () => {
  await using sink = startSink();
  await using home = await Home.make({ gateway: { auth: { token: CANARY } } });
  // Foreign to the rules, and yet it leads to the sink.
  const url = `ws://0.0.0.0:${sink.port}`;
  const env = { ZERO_GATEWAY_TOKEN: CANARY, ZERO_ALLOW_INSECURE_WS: "1" };

  const { code, stdout, stderr } = await home.run(["health", "--json", "--url", url], env);
  const heardWithout = { ...sink.heard };
  await home.run(["health", "--url", url, "--token", "typed", "--timeout", "200"], env);

  assertEquals(code, 1);
  assertStringIncludes(
    stderr,
    "gateway url override requires explicit credentials\nFix: pass --token or --password\n",
  );
  assertEquals(JSON.parse(stdout).error.code, "CREDENTIALS_REQUIRED");
  assertEquals(heardWithout, { connections: 0, bytes: 0 });
  assertEquals(sink.heard.connections, 1, "the sink can be reached at all");
  assert(!(stdout + stderr).includes(CANARY));
});

Deno.test("plain text to a public host is refused, and the text says what to do", async () => {
  await using home = await Home.make();

  const { code, stderr } = await home.run(
    ["health", "--url", `ws://${REMOTE_HOST}:18789`, "--token", CANARY],
  );

  assertEquals(code, 1);
  assertStringIncludes(stderr, `Cannot dial ws://${REMOTE_HOST}:18789: ws:// is not encrypted`);
  assertStringIncludes(stderr, "fix:   Use a wss:// address");
  assert(!stderr.includes(CANARY));
});

Deno.test("--url and --port exclude one another", async () => {
  await using home = await Home.make();

  const { code, stderr } = await home.run(["health", "--url", "ws://127.0.0.1:1", "--port", "1"]);

  assertEquals(code, 2);
  assertStringIncludes(stderr, "--url and --port together");
});

Deno.test("a port nobody listens on is told as such, with the command that starts a gateway", async () => {
  await using home = await Home.make();
  const port = freePort();

  const named = await home.run(["health", "--port", String(port), "--json"]);
  const configured = await home.run(["health"], { ZERO_GATEWAY_PORT: String(port) });

  assertEquals([named.code, named.json.error.code], [1, "GATEWAY_UNREACHABLE"]);
  assertEquals(named.json.error.layer, "network");
  assertEquals(named.json.error.fix, `zero gateway --port ${port}`);
  assertStringIncludes(configured.stderr, "nobody listens there");
  assertStringIncludes(configured.stderr, "fix:   zero gateway\n");
});

Deno.test("a program that is no gateway is not taken for one that is down", async () => {
  await using server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    () => new Response("hello", { status: 404 }),
  );
  await using home = await Home.make();

  const { json } = await home.run(["health", "--json", "--port", String(server.addr.port)]);

  assertEquals(json.error.code, "GATEWAY_UNREACHABLE");
  assertStringIncludes(json.error.fix, "does not answer as a gateway");
});

Deno.test("a gateway that says nothing ends the command at --timeout", async () => {
  await using gateway = await startScriptedGateway(() => {});
  await using home = await Home.make();

  const { code, json } = await home.run(
    ["health", "--json", "--timeout", "60", "--url", gateway.url],
  );

  assertEquals([code, json.error.code, json.error.message], [
    1,
    "GATEWAY_TIMEOUT",
    "gateway timeout after 60ms",
  ]);
});

Deno.test("zero status is 0 without a gateway, and 1 with --deep", async () => {
  await using home = await Home.make();
  const env = { ZERO_GATEWAY_PORT: String(freePort()) };

  const plain = await home.run(["status", "--json"], env);
  const deep = await home.run(["status", "--deep", "--json"], env);
  const human = await home.run(["status"], env);

  assertEquals([plain.code, deep.code, human.code], [0, 1, 0]);
  const { gateway } = plain.json;
  assertEquals([gateway.reachable, gateway.connectLatencyMs, gateway.self], [false, null, null]);
  assertStringIncludes(gateway.error, "nobody listens there");
  assertEquals(deep.json.error.code, "GATEWAY_UNREACHABLE");
  assertStringIncludes(human.stdout, "not reached");
});

Deno.test("zero status --json has the fields other programs read", async () => {
  await using setup = await withGateway();

  const { json } = await setup.run("status", "--json");
  const deep = await setup.run("status", "--json", "--deep");
  const human = await setup.run("status", "--all");

  for (
    const key of [
      "heartbeat",
      "channelSummary",
      "queuedSystemEvents",
      "sessions",
      "os",
      "update",
      "updateChannel",
      "updateChannelSource",
      "memory",
      "memoryPlugin",
      "gateway",
      "gatewayService",
      "nodeService",
      "agents",
      "securityAudit",
    ]
  ) assert(key in json, key);
  assertEquals([json.gateway.mode, json.gateway.reachable], ["local", true]);
  assertEquals(json.gateway.self.version, "0.0.0-test");
  assertEquals(typeof json.gateway.connectLatencyMs, "number");
  assertEquals([deep.code, deep.json.health.ok], [0, true]);
  assertStringIncludes(human.stdout, "reached in");
  assertStringIncludes(human.stdout, "Present");
});

Deno.test("zero gateway status is about this machine's gateway, in remote mode too", async () => {
  await using setup = await withGateway();
  const { gateway } = setup;
  await using remote = await Home.make({
    gateway: {
      mode: "remote",
      port: gateway.port,
      auth: { token: gateway.token },
      remote: { url: `wss://${REMOTE_HOST}`, token: CANARY },
    },
  });

  const here = await setup.run("gateway", "status", "--json");
  const elsewhere = await remote.run(["gateway", "status", "--json"]);
  const unprobed = await setup.run("gateway", "status", "--no-probe", "--json");
  const human = await remote.run(["gateway", "status"]);

  assertEquals([here.code, here.json.rpc], [0, { ok: true, url: gateway.url }]);
  assertEquals(here.json.gateway.port, gateway.port);
  assertEquals(here.json.gateway.portSource, "env ZERO_GATEWAY_PORT");
  assertEquals(here.json.port.status, "busy");
  assertEquals(elsewhere.json.rpc, { ok: true, url: gateway.url });
  assertStringIncludes(elsewhere.json.gateway.probeNote, "gateway.mode is remote");
  assertEquals("rpc" in unprobed.json, false);
  assertStringIncludes(human.stdout, `Commands go elsewhere: wss://${REMOTE_HOST}`);
});

Deno.test("zero gateway status is 0 without a gateway", async () => {
  await using home = await Home.make();
  const env = { ZERO_GATEWAY_PORT: String(freePort()) };

  const { code, json } = await home.run(["gateway", "status", "--json"], env);

  assertEquals([code, json.rpc.ok, json.port.status], [0, false, "free"]);
  assertEquals(json.service.runtime, { status: "stopped" });
  assertStringIncludes(json.lastError, "nobody listens there");
});

Deno.test("zero gateway probe tries what the command line and the configuration know", async () => {
  await using setup = await withGateway();
  const { gateway } = setup;
  await using remote = await Home.make({
    gateway: {
      port: freePort(),
      mode: "remote",
      remote: { url: gateway.url, token: gateway.token },
    },
  });

  const local = await setup.run("gateway", "probe", "--json");
  const alone = { ZERO_DISABLE_BONJOUR: "1" };
  const both = await remote.run(["gateway", "probe", "--json"], alone);
  const none = await remote.run(
    ["gateway", "probe", "--json", "--token", CANARY, "--port", String(freePort())],
    alone,
  );

  assertEquals([local.code, local.json.ok, local.json.primaryTargetId], [0, true, "localLoopback"]);
  const [target] = local.json.targets;
  assertEquals([target.active, target.tunnel, target.connect.ok], [true, null, true]);
  assertEquals(target.config.gateway.authTokenConfigured, false);
  assertEquals([target.health.ok, target.self.version], [true, "0.0.0-test"]);
  assertEquals(local.json.discovery, { timeoutMs: 0, count: 0, beacons: [] });
  assertEquals([both.code, both.json.primaryTargetId], [0, "configRemote"]);
  assertEquals(
    both.json.targets.map(({ kind, active }: { kind: string; active: boolean }) => [kind, active]),
    [["configRemote", true], ["localLoopback", false]],
  );
  assertStringIncludes(both.json.targets[1].connect.error, "connect failed: ");
  assertEquals([none.code, none.json.ok, none.json.primaryTargetId], [1, false, null]);
  assertEquals(none.json.targets[0].kind, "explicit");
  assert(!none.stdout.includes(CANARY));
});

Deno.test("zero gateway token prints the token the gateway asks for, and only that", async () => {
  await using home = await Home.make();
  await using configured = await Home.make({ gateway: { auth: { token: "from-config" } } });
  await using password = await Home.make({
    gateway: { auth: { mode: "password", password: "p" } },
  });
  await using made = await startTestGateway({ flags: { token: undefined } });

  const none = await home.run(["gateway", "token"]);
  const fromConfig = await configured.run(["gateway", "token"]);
  const fromEnv = await configured.run(["gateway", "token", "--json"], {
    ZERO_GATEWAY_TOKEN: "from-env",
  });
  const byPassword = await password.run(["gateway", "token"]);
  const fromFile = await home.run(["gateway", "token"], { ZERO_STATE_DIR: made.paths.stateDir });
  const health = await home.run(["health", "--json"], {
    ZERO_STATE_DIR: made.paths.stateDir,
    ZERO_GATEWAY_PORT: String(made.port),
  });

  assertEquals([none.code, none.stdout], [1, ""]);
  assertStringIncludes(none.stderr, "fix:   zero gateway");
  assertEquals([fromConfig.code, fromConfig.stdout], [0, "from-config\n"]);
  assertEquals(fromEnv.json, { token: "from-env", source: "env ZERO_GATEWAY_TOKEN" });
  assertEquals([byPassword.code, byPassword.stdout], [1, ""]);
  assertEquals(fromFile.stdout, `${made.token}\n`);
  assertEquals([health.code, health.json.ok], [0, true]);
});

Deno.test("zero logs prints whole lines as the gateway wrote them when nobody watches", async () => {
  await using setup = await withGateway();
  await setup.run("health");

  const { code, stdout } = await setup.run("logs", "--limit", "2");
  const document = await setup.run("logs", "--json", "--limit", "1");

  const lines = stdout.trimEnd().split("\n");
  assertEquals([code, lines.length], [0, 2]);
  for (const line of lines) assertEquals(typeof JSON.parse(line).message, "string");
  assertEquals(document.json.lines.length, 1);
});

Deno.test("zero logs --follow goes on with what the gateway writes meanwhile", async () => {
  await using setup = await withGateway();
  const { gateway, home } = setup;
  const child = spawnZero(["logs", "--follow", "--limit", "1"], {
    home: home.path,
    env: { ZERO_GATEWAY_PORT: String(gateway.port), ZERO_GATEWAY_TOKEN: gateway.token },
  });
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  const stderr = child.stderr.cancel();

  let text = (await reader.read()).value ?? "";
  await gateway.refused({ auth: { token: "wrong" } });
  while (!text.includes("AUTH_TOKEN_MISMATCH")) {
    const { value, done } = await reader.read();
    assert(!done, `the command ended: ${text}`);
    text += value;
  }
  child.kill("SIGTERM");
  await reader.cancel();
  await Promise.all([child.status, stderr]);

  const lines = text.trimEnd().split("\n");
  assertEquals(new Set(lines).size, lines.length, "no line came twice");
});

Deno.test("a damaged device file costs a warning, not the command", async () => {
  await using gateway = await startTestGateway();
  const { url, token } = gateway;
  await using home = await Home.make({ gateway: { mode: "remote", remote: { url, token } } });
  await home.run(["health"]);
  await Deno.writeTextFile(`${home.path}/state/identity/device.json`, "{ half");

  const { code, stderr } = await home.run(["health"]);

  assertEquals(code, 0);
  assertStringIncludes(stderr, "it is damaged");
});

Deno.test("a configuration with mistakes stops commands that would need it", async () => {
  await using setup = await withGateway();
  await using home = await Home.make("{ gateway: { mode: 'remotely' } }");

  const blind = await home.run(["health", "--json"]);
  const named = await home.run(["health", "--json", "--port", String(setup.gateway.port)], {
    ZERO_GATEWAY_TOKEN: setup.gateway.token,
  });

  assertEquals([blind.code, blind.json.error.code], [1, "CONFIG_INVALID"]);
  assertEquals(blind.json.error.fix, "zero config validate");
  assertEquals([named.code, named.json.ok], [0, true]);
});

Deno.test("a start that is refused names what mends it for the profile it was tried in", async () => {
  await using home = await Home.make();

  const { code, stderr } = await home.run(["--profile", "work", "gateway", "--bind", "lan"]);

  assertEquals(code, 78);
  assertStringIncludes(stderr, "\nFix: zero --profile work config set gateway.auth.token\n");
});
