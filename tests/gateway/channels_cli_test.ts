import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { OWNER, refusal, startBotApi, STRANGER } from "../support/bot_api.ts";
import { type CliResult, zero } from "../support/cli.ts";
import { startTestGateway } from "../support/gateway.ts";

/** A gateway without channels, a Telegram, and somebody who runs commands. */
async function host() {
  await using parts = new AsyncDisposableStack();
  const bot = parts.use(startBotApi());
  const gateway = parts.use(await startTestGateway());
  const home = await Deno.makeTempDir({ prefix: "zero-cli-" });
  parts.defer(() => Deno.remove(home, { recursive: true }));
  const env = { ZERO_GATEWAY_PORT: String(gateway.port), ZERO_GATEWAY_TOKEN: gateway.token };
  const run = (args: string[], stdin?: string): Promise<CliResult> =>
    zero(args, { home, env, stdin });
  const owned = parts.move();
  return {
    bot,
    gateway,
    run,
    add: (token = bot.token, ...more: string[]) =>
      run(["channels", "add", "telegram", "--api-root", bot.root, ...more], token),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

Deno.test("zero channels add takes the token from standard input, tries it, and starts the channel", async () => {
  await using at = await host();

  const none = await at.run(["channels", "status"]);
  const wrong = await at.add("1:not-the-token-1234");
  const junk = await at.add("hello");
  const nothing = await at.add("");
  const other = await at.run(["channels", "add", "smoke-signals"], at.bot.token);
  const added = await at.add(undefined, "--allow-from", String(OWNER.id));
  at.bot.write("/whoami");
  await at.bot.until(({ method, params }) => method === "sendMessage" && /owner/.test(params.text));
  const status = await at.run(["channels", "status", "--probe", "--json"]);
  const shown = await at.run(["channels", "status"]);

  assertEquals(none.stdout, "No channels. Add one: zero channels add telegram\n");
  assertEquals([wrong.code, junk.code, nothing.code, other.code], [1, 1, 2, 2]);
  assertStringIncludes(wrong.stderr, "Telegram does not know this token");
  assertStringIncludes(junk.stderr, "that is no token of a Telegram bot");
  assertEquals(added.code, 0, added.stderr);
  assertEquals(
    added.stdout,
    "Added telegram as @zero_test_bot\nWrite to it: https://t.me/zero_test_bot\n",
  );
  const [account] = status.json.channelAccounts.telegram;
  assertEquals([account.running, account.account, account.probe.ok], [
    true,
    "@zero_test_bot",
    true,
  ]);
  assertMatch(shown.stdout, /Telegram +@zero_test_bot +running/i);
  for (const { stdout, stderr } of [wrong, junk, added, status, shown]) {
    assert(!`${stdout}${stderr}`.includes(at.bot.token) && !stderr.includes("not-the-token"));
  }
});

Deno.test("another token in place of the first one is used at once", async () => {
  await using at = await host();
  await at.add(undefined, "--allow-from", String(OWNER.id));
  await using second = startBotApi({ token: "9010:the-token-of-another-bot" });
  // Both are numbered alike, as two bots may well be.
  at.bot.write("/whoami");
  await at.bot.until(({ method }) => method === "sendMessage");

  const added = await at.run(
    ["channels", "add", "telegram", "--api-root", second.root],
    second.token,
  );
  second.write("/whoami");
  const { params } = await second.until(({ method }) => method === "sendMessage");
  const same = await at.run(
    ["channels", "add", "telegram", "--api-root", second.root],
    second.token,
  );

  assertEquals([added.code, same.code], [0, 0]);
  assertStringIncludes(params.text, "an owner of this gateway");
  assertEquals(second.offsets[0], 0);
});

Deno.test("zero channels logout stops the channel and forgets its token", async () => {
  await using at = await host();
  await at.add();
  const file = `${at.gateway.paths.stateDir}/credentials/telegram.token`;
  const before = (await Deno.stat(file)).mode! & 0o777;

  const out = await at.run(["channels", "logout", "telegram"]);
  const again = await at.run(["channels", "logout", "telegram"]);
  const other = await at.run(["channels", "logout", "pigeon"]);
  const short = await at.run(["channels"]);
  const status = await at.run(["channels", "status"]);
  const health = await at.run(["health"]);

  assertEquals(before, 0o600);
  assertEquals([other.code, other.stderr], [
    2,
    "error: Cannot log out of pigeon: the one channel is telegram\n",
  ]);
  assertEquals([short.code, short.stdout], [0, status.stdout]);
  assertMatch(health.stdout, /^Channels +none configured$/m);
  assertEquals(out.stdout, "Forgot the token of telegram\n");
  assertEquals(again.stdout, "telegram had no token\n");
  assertEquals(status.stdout, "No channels. Add one: zero channels add telegram\n");
  assertEquals(await Deno.stat(file).catch(() => undefined), undefined);
});

Deno.test("zero pairing shows who waits, lets them in, and out again; operators and the trail hear of it", async () => {
  await using at = await host();
  await using operator = await at.gateway.connect();
  const nobody = await at.run(["pairing", "list"]);
  await at.add();

  at.bot.write("hello", { from: STRANGER });
  const requested = await operator.event("channel.pair.requested");
  const list = await at.run(["pairing", "list", "telegram"]);
  const wrong = await at.run(["pairing", "approve", "telegram", "AAAAAAAA"]);
  const approved = await at.run(["pairing", "approve", "telegram", requested.code]);
  const resolved = await operator.event("channel.pair.resolved");
  await at.bot.until(({ params }) => /You were let in/.test(params.text));
  const after = await at.run(["pairing", "list", "--json"]);
  const removed = await at.run(["pairing", "remove", "telegram", String(STRANGER.id)]);
  const twice = await at.run(["pairing", "remove", "telegram", String(STRANGER.id)]);
  const { entries } = await operator.call("audit.list", {});
  const audit = await at.run(["audit"]);

  assertMatch(audit.stdout, new RegExp(`channel\\.unpaired +${STRANGER.id} +by shared secret`));
  assertEquals(nobody.stdout, "Nobody has asked\n");
  assertMatch(list.stdout, new RegExp(`telegram +${STRANGER.id} +Mallory +${requested.code}`));
  assertEquals(wrong.code, 1);
  assertStringIncludes(wrong.stderr, "unknown or expired pairing code");
  assertStringIncludes(wrong.stderr, "zero pairing list telegram");
  assertEquals(approved.stdout, `Let Mallory (${STRANGER.id}) in; not as an owner\n`);
  assertEquals([resolved.senderId, resolved.decision], [String(STRANGER.id), "approved"]);
  assertEquals([after.json.requests.length, after.json.approved[0].name], [0, "Mallory"]);
  assertEquals([removed.stdout, twice.stdout], [
    `Removed ${STRANGER.id}\n`,
    `${STRANGER.id} was not known\n`,
  ]);
  const trail = entries.map(({ event }: { event: string }) => event)
    .filter((event: string) => event.startsWith("channel."));
  assertEquals(trail, [
    "channel.unpaired",
    "channel.paired",
    "channel.requested",
    "channel.added",
  ]);
});

Deno.test("zero message send says what became of the message", async () => {
  await using at = await host();
  const unknown = await at.run(["message", "send", "--to", "1", "--message", "hi"]);
  await at.add();

  const sent = await at.run(["message", "send", "--to", "1001", "--message", "Dinner *is* ready"]);
  const piped = await at.run(["message", "send", "--to", "1001", "--message", "-"], "from a pipe");
  at.bot.mood = ({ method }) =>
    method === "sendMessage" ? refusal(403, "Forbidden: bot was blocked by the user") : undefined;
  const blocked = await at.run(["message", "send", "--to", "1001", "--message", "hi"]);
  at.bot.mood = undefined;
  const next = await at.run(["message", "send", "--to", "1001", "--message", "again"]);
  const usage = await at.run(["message", "send", "--to", "1001"]);

  assertStringIncludes(unknown.stderr, "zero channels add telegram");
  assertMatch(sent.stdout, /^Sent \(telegram message \d+\)\n$/);
  assertEquals([piped.code, blocked.code, next.code, usage.code], [0, 1, 0, 2]);
  assertStringIncludes(blocked.stderr, "bot was blocked by the user");
  assertEquals(at.bot.sent.map(({ params }) => params.text), [
    "Dinner <i>is</i> ready",
    "from a pipe",
    "hi",
    "again",
  ]);
});
