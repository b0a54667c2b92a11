import { assert, assertEquals } from "@std/assert";
import { readConfig } from "../../config/load.ts";
import { openLog } from "../../config/log.ts";
import { gatewaySettings } from "../../config/settings.ts";
import { actionFor, changedPaths, ConfigWatcher } from "../../gateway/reload.ts";
import { within } from "../support/client.ts";

Deno.test("changed settings are named by their leaves", () => {
  const before = {
    gateway: { port: 1, auth: { token: "a" }, trustedProxies: ["1"] },
    agents: { list: [{ id: "a" }] },
    ui: {},
  };
  const rows: [unknown, string[]][] = [
    [before, []],
    [structuredClone(before), []],
    [{ ...before, ui: undefined }, ["ui"]],
    [{ ...before, hooks: { enabled: true } }, ["hooks.enabled"]],
    [{ ...before, gateway: { ...before.gateway, port: 2 } }, ["gateway.port"]],
    [{ ...before, gateway: { ...before.gateway, auth: {} } }, ["gateway.auth.token"]],
    [{ ...before, gateway: { ...before.gateway, trustedProxies: ["1", "2"] } }, [
      "gateway.trustedProxies",
    ]],
    [{ ...before, agents: { list: [{ id: "b" }] } }, ["agents.list"]],
    [{ ...before, agents: 7 }, ["agents"]],
    [{ gateway: before.gateway }, ["agents.list", "ui"]],
  ];

  for (const [after, paths] of rows) {
    assertEquals(changedPaths(before, after), paths, JSON.stringify(after));
  }
});

Deno.test("what a changed setting takes follows the longest prefix of the table", () => {
  const rows: Record<"none" | "hot" | "restart", string[]> = {
    none: [
      "gateway.nodes.denyCommands",
      "gateway.remote.url",
      "gateway.remote",
      "gateway.reload.mode",
      "identity",
      "wizard.lastRun",
      "logging.level",
      "models.default",
      "agents.list",
      "agents.defaults.timeoutSeconds",
      "tools.exec.ask",
      "bindings",
      "audio.x",
      "agent.name",
      "routing",
      "messages.prefix",
      "session.mainKey",
      "talk",
      "skills",
      "ui.theme",
    ],
    hot: [
      "hooks.enabled",
      "hooks.gmail.account",
      "agents.defaults.heartbeat.every",
      "agent.heartbeat",
      "cron.enabled",
      "browser.enabled",
      "channels.telegram.botToken",
    ],
    restart: [
      "gateway.port",
      "gateway.auth.token",
      "gateway",
      "discovery.wideArea.enabled",
      "canvasHost.port",
      "plugins.x",
      "nodeHost.browserProxy",
      "gateway.remotely",
      "somethingElse",
      "toString",
      "",
    ],
  };

  for (const [action, paths] of Object.entries(rows)) {
    for (const path of paths) assertEquals(actionFor([path]), action, path);
  }
});

Deno.test("the strongest action of all changes counts", () => {
  assertEquals(actionFor([]), "none");
  assertEquals(actionFor(["logging.level", "cron.enabled"]), "hot");
  assertEquals(actionFor(["cron.enabled", "gateway.port", "logging.level"]), "restart");
});

interface Watched extends AsyncDisposable {
  watcher: ConfigWatcher;
  path: string;
  restarts: string[];
  write(text: string): Promise<void>;
  /** Resolves with the log line of that message. */
  logged(message: string): Promise<string>;
  lines: string[];
  /** Resolves when a changed file is about to be read. */
  checked(): Promise<void>;
}

/** A watcher of a real file. */
async function watch(text: string, { refuse }: { refuse?: string } = {}): Promise<Watched> {
  const dir = await Deno.makeTempDir();
  const path = `${dir}/zero.json`;
  await Deno.writeTextFile(path, text);
  const env = { HOME: dir };
  const lines: string[] = [];
  let tell = () => {};
  let check = Promise.withResolvers<void>();
  const log = openLog({
    level: "debug",
    mirror: (line) => {
      lines.push(line);
      tell();
    },
  });
  const restarts: string[] = [];
  const watcher = new ConfigWatcher({
    reading: await readConfig({ path, env }),
    env,
    log,
    settings: ({ config }) => {
      check.resolve();
      const { reload } = gatewaySettings({ env, config });
      return { mode: reload.mode.value, debounceMs: 0 };
    },
    preflight: ({ config }) => {
      if (refuse && config.gateway?.bind === refuse) throw new Error("would not start");
    },
    restart: (reason) => void restarts.push(reason),
  });
  const find = (message: string) => lines.find((line) => line.includes(message));
  return {
    watcher,
    path,
    restarts,
    lines,
    checked() {
      check = Promise.withResolvers();
      return within(check.promise, "a look at the changed file");
    },
    write: (next) => Deno.writeTextFile(path, next),
    logged: (message) =>
      within(
        new Promise((resolve) => {
          tell = () => {
            const line = find(message);
            if (line) resolve(line);
          };
          tell();
        }),
        `the log line ${message}`,
      ),
    async [Symbol.asyncDispose]() {
      watcher[Symbol.dispose]();
      await log[Symbol.asyncDispose]();
      await Deno.remove(dir, { recursive: true });
    },
  };
}

Deno.test("a changed file is taken over without a restart where that is enough", async () => {
  await using at = await watch(`{ logging: { level: "info" } }`);

  await at.write(`{ logging: { level: "debug" }, ui: { a: 1 } }`);
  const line = await at.logged("configuration reloaded");

  assert(line.includes("logging.level, ui"), line);
  assertEquals(at.watcher.reading.config.logging?.level, "debug");
  assertEquals(at.restarts, []);
});

Deno.test("a changed file that takes a restart asks for it once", async () => {
  await using at = await watch(`{ gateway: { port: 20000 } }`);

  await at.write(`{ gateway: { port: 20001 } }`);
  await at.logged("restarting for a changed configuration");
  // The next thing that is noticed shows that nothing came in between.
  await at.write(`{ gateway: { port: 20001 }, broken`);
  await at.logged("the changed configuration is not used");

  assertEquals(at.restarts, ["the configuration file changed"]);
  assertEquals(at.watcher.reading.config.gateway?.port, 20001);
});

Deno.test("a change that leaves time and size of the file as they were is noticed", async () => {
  await using at = await watch(`{ gateway: { port: 20000 } }`);
  const { mtime } = await Deno.stat(at.path);

  await Deno.writeTextFile(at.path, `{ gateway: { port: 20001 } }`);
  await Deno.utime(at.path, mtime!, mtime!);
  await at.logged("restarting for a changed configuration");

  assertEquals(at.watcher.reading.config.gateway?.port, 20001);
});

Deno.test("a file that is broken changes nothing and is reported once, however often it is written", async () => {
  await using at = await watch(`{ logging: { level: "info" } }`);

  for (const broken of [`{ logging: `, `{ logging: { level: "loud" } }`, `{ lgging: {} }`]) {
    const checked = at.checked();
    await at.write(broken);
    await checked;
    await at.logged("the changed configuration is not used");
    assertEquals(at.watcher.reading.config.logging?.level, "info");
  }
  await at.write(`{ logging: { level: "warn" } }`);
  await at.logged("configuration reloaded");

  const reports = at.lines.filter((line) => line.includes("is not used"));
  assertEquals(reports.length, 1);
  assert(reports[0].includes("zero config validate"));
  assertEquals(at.restarts, []);
});

Deno.test("a file with which the gateway would not start changes nothing", async () => {
  await using at = await watch(`{}`, { refuse: "lan" });

  await at.write(`{ gateway: { bind: "lan" } }`);
  const line = await at.logged("the changed configuration is not used");

  assert(line.includes("would not start"), line);
  assertEquals(at.watcher.reading.config.gateway, undefined);
  assertEquals(at.restarts, []);
});

Deno.test("a file that was cut off at its beginning changes nothing, one that says {} does", async () => {
  await using at = await watch(`{ logging: { level: "debug" } }`);

  await at.write("\n");
  await at.logged("the file is empty");
  const before = at.watcher.reading.config.logging?.level;
  await at.write("{}");
  await at.logged("configuration reloaded");

  assertEquals([before, at.watcher.reading.config], ["debug", {}]);
});

Deno.test("a file that was removed counts as an empty one", async () => {
  await using at = await watch(`{ logging: { level: "debug" } }`);

  await Deno.remove(at.path);
  await at.logged("configuration reloaded");

  assertEquals(at.watcher.reading.config, {});
});

Deno.test("a file that could not be read for a while is noticed when it can be again", async () => {
  await using at = await watch(`{ logging: { level: "info" } }`);

  await Deno.remove(at.path);
  await Deno.mkdir(at.path);
  await at.logged("the changed configuration is not used");
  await Deno.remove(at.path);
  await at.write(`{ logging: { level: "debug" } }`);
  await at.logged("configuration reloaded");

  assertEquals(at.watcher.reading.config.logging?.level, "debug");
});

Deno.test("a change of an included file is noticed", async () => {
  await using at = await watch(`{ logging: { level: "info" } }`);
  const part = at.path.replace("zero.json", "part.json5");
  await Deno.writeTextFile(part, `{ level: "warn" }`);
  await at.write(`{ logging: { $include: "./part.json5" } }`);
  await at.logged(`"keys":"logging.level"`);

  await Deno.writeTextFile(part, `{ level: "error", maxFiles: 2 }`);
  await at.logged("logging.maxFiles");

  assertEquals(at.watcher.reading.config.logging?.level, "error");
});

Deno.test("what is adopted asks for a restart as the reload mode says", async () => {
  const rows: [string, string, boolean][] = [
    ["hybrid", "gateway.port", true],
    ["hybrid", "cron.enabled", false],
    ["hybrid", "logging.level", false],
    ["restart", "logging.level", true],
    ["hot", "gateway.port", false],
    ["hot", "cron.enabled", false],
    ["off", "gateway.port", false],
  ];
  const values: Record<string, string> = {
    "gateway.port": `gateway: { port: 20001, reload: { mode: "MODE" } }`,
    "cron.enabled": `gateway: { reload: { mode: "MODE" } }, cron: { enabled: true }`,
    "logging.level": `gateway: { reload: { mode: "MODE" } }, logging: { level: "warn" }`,
  };

  for (const [mode, key, restarts] of rows) {
    await using at = await watch(`{ gateway: { reload: { mode: "${mode}" } } }`);
    await at.write(`{ ${values[key].replace("MODE", mode)} }`);
    const reading = await readConfig({ path: at.path, env: {} });
    assert(reading.valid, JSON.stringify(reading.issues));

    const answer = at.watcher.adopt(reading, "config.patch", 2_000);

    assertEquals(answer, restarts, `${mode} ${key}`);
    assertEquals(at.restarts, restarts ? ["config.patch"] : []);
    assertEquals(at.watcher.reading, reading);
  }
});

Deno.test("what was adopted is not found again when the file is looked at", async () => {
  await using at = await watch(`{ logging: { level: "info" } }`);
  await at.write(`{ gateway: { port: 20001 } }`);
  at.watcher.adopt(await readConfig({ path: at.path, env: {} }), "config.patch", 0);

  await at.write(`{ gateway: { port: 20001 }, broken`);
  await at.logged("the changed configuration is not used");

  assertEquals(at.restarts, ["config.patch"]);
});

Deno.test("a change that is taken back before the restart asks for none", async () => {
  await using at = await watch(`{ gateway: { reload: { mode: "hot" } } }`);
  await at.write(`{ gateway: { reload: { mode: "hot" }, port: 20001 } }`);
  at.watcher.adopt(await readConfig({ path: at.path, env: {} }), "one", 0);
  assert(await at.logged("a changed setting waits for a restart"));

  await at.write(`{ gateway: { reload: { mode: "hybrid" } } }`);
  const answer = at.watcher.adopt(await readConfig({ path: at.path, env: {} }), "two", 0);

  assertEquals([answer, at.restarts], [false, []]);
});
