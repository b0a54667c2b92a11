import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { type CliResult, zero } from "../support/cli.ts";
import { startTestGateway } from "../support/gateway.ts";

/** A gateway, and somebody on its machine who runs commands. */
async function host() {
  const gateway = await startTestGateway();
  const home = await Deno.makeTempDir({ prefix: "zero-cli-" });
  const env = { ZERO_GATEWAY_PORT: String(gateway.port), ZERO_GATEWAY_TOKEN: gateway.token };
  return {
    client: await gateway.connect(),
    run: (...args: string[]): Promise<CliResult> => zero(["cron", ...args], { home, env }),
    async [Symbol.asyncDispose]() {
      await gateway[Symbol.asyncDispose]();
      await Deno.remove(home, { recursive: true });
    },
  };
}

Deno.test("a job is added, listed, run, looked at, switched off and on, and removed", async () => {
  await using at = await host();

  const none = await at.run();
  const added = await at.run("add", "--name", "Tea time", "--every", "1h", "--event", "Tea");
  const listed = await at.run("list");
  const ran = await at.run("run", "tea time");
  await at.client.event("cron", ({ action }) => action === "finished");
  const runs = await at.run("runs", "tea time");
  const off = await at.run("disable", "tea time");
  const on = await at.run("enable", "tea time");
  const removed = await at.run("rm", "tea time");
  const gone = await at.run("rm", "tea time");

  assertEquals(none.stdout, "No jobs. Add one: zero cron add --help tells how\n");
  assertMatch(added.stdout, /^Added Tea time \([0-9a-f]{8}\): in /);
  const rows = listed.stdout.trimEnd().split("\n").map((row) => row.trim().split(/ {2,}/));
  assertEquals(rows[0], ["JOB", "NAME", "WHEN", "NEXT", "LAST"]);
  assertEquals(rows[1].slice(1, 3), ["Tea time", "every 1h"]);
  assertEquals(ran.stdout, "Running Tea time\n");
  assertMatch(runs.stdout.split("\n")[1], /ok +Tea/);
  assertEquals(off.stdout, "Tea time: off\n");
  assertMatch(on.stdout, /^Tea time: in /);
  assertEquals([removed.stdout, removed.code], ["Removed Tea time\n", 0]);
  assertEquals(gone.code, 1);
  assertStringIncludes(gone.stderr, "unknown job: tea time (known: none)");
});

Deno.test("what the flags say is what the gateway keeps", async () => {
  await using at = await host();

  const { json: turn } = await at.run(
    ..."add --json --name n --tz Europe/Berlin --wake next-heartbeat --model a/b".split(" "),
    ..."--run-timeout 30 --deliver --channel telegram --to 7 --delete-after-run".split(" "),
    ...["--disabled", "--cron", "0 9 * * 1-5", "--message", "look around"],
  );
  const before = Date.now();
  const { json: once } = await at.run("add", "--json", "--name", "o", "--at", "2h", "--event", "e");

  assertEquals([turn.schedule, turn.payload, turn.sessionTarget, turn.wakeMode], [
    { kind: "cron", expr: "0 9 * * 1-5", tz: "Europe/Berlin" },
    {
      kind: "agentTurn",
      message: "look around",
      model: "a/b",
      timeoutSeconds: 30,
      deliver: true,
      channel: "telegram",
      to: "7",
    },
    "isolated",
    "next-heartbeat",
  ]);
  assertEquals([turn.deleteAfterRun, turn.enabled, turn.state], [true, false, {}]);
  assertEquals([once.schedule.kind, once.payload, once.sessionTarget], [
    "at",
    { kind: "systemEvent", text: "e" },
    "main",
  ]);
  assertEquals(once.schedule.atMs >= before + 7_200_000, true);
});

Deno.test("a command line that says too little or too much is answered with what is wrong", async () => {
  await using at = await host();
  const rows: [string[], number, string][] = [
    [["--every", "1h", "--event", "e"], 2, "--name is missing"],
    [["--name", "n", "--event", "e"], 2, "--at, --every or --cron is missing"],
    [["--name", "n", "--every", "1h"], 2, "--message or --event is missing"],
    [["--name", "n", "--every", "often", "--event", "e"], 2, 'Cannot read --every "often"'],
    [["--name", "n", "--at", "soon", "--event", "e"], 2, 'Cannot read --at "soon"'],
    [["--name", "n", "--every", "1h", "--tz", "UTC", "--event", "e"], 2, "--tz without --cron"],
    [["--name", "n", "--every", "1h", "--event", "e", "--to", "7"], 2, "--to with --event"],
    [["--name", "n", "--cron", "often", "--event", "e"], 1, 'invalid cron expression "often"'],
  ];

  const results = await Promise.all(rows.map(([args]) => at.run("add", ...args)));

  for (const [index, { code, stderr }] of results.entries()) {
    assertEquals(code, rows[index][1], stderr);
    assertStringIncludes(stderr, rows[index][2]);
  }
});
