// `system.notify`: offered where there is a notifier, and text stays text on its way to it.

import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { CommandError } from "../../../gateway/node/command_error.ts";
import { findNotifier, notify } from "../../../gateway/node/notify.ts";
import { zero } from "../../support/cli.ts";
import { startTestGateway } from "../../support/gateway.ts";
import { startTestNode } from "./support.ts";

/** A directory for PATH with a notifier that notes its arguments, NUL behind each. */
async function fakeNotifier(name: string, script = "exit 0") {
  const home = await Deno.makeTempDir({ prefix: "zero-notify-" });
  const text = `#!/bin/sh\nprintf '%s\\0' "$@" > "${home}/args"\n${script}\n`;
  await Deno.writeTextFile(`${home}/${name}`, text, { mode: 0o755 });
  return {
    home,
    options(os: "linux" | "darwin" = "linux") {
      const env = { PATH: `${home}:/usr/bin:/bin`, DBUS_SESSION_BUS_ADDRESS: "unix:path=/none" };
      return { env, cwd: home, os };
    },
    args: async () => (await Deno.readTextFile(`${home}/args`)).split("\0").slice(0, -1),
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
}

Deno.test("a notification is shown by notify-send, with options only where they are ours", async () => {
  await using fake = await fakeNotifier("notify-send");

  const answer = await notify({
    title: "--icon=/etc/passwd",
    body: "-u critical <b>bold</b> & \\n $(id) `id`\nsecond line\u001b[31m",
    sound: "bell",
    priority: "timeSensitive",
    delivery: "auto",
  }, fake.options());

  assertEquals(answer, { shown: true, by: "notify-send" });
  assertEquals(await fake.args(), [
    "--app-name=ZERO",
    "--urgency=critical",
    "--hint=string:sound-name:bell",
    "--",
    "--icon=/etc/passwd",
    "-u critical &lt;b&gt;bold&lt;/b&gt; &amp; \\\\n $(id) `id`\nsecond line [31m",
  ]);
});

Deno.test("a body alone stands where the title would, and long texts are cut", async () => {
  await using fake = await fakeNotifier("notify-send");

  await notify({ title: "", body: "only this", sound: null }, fake.options());
  const alone = await fake.args();
  await notify({ title: "ü".repeat(500), body: "😀".repeat(9_000) }, fake.options());
  const [, , , title, body] = await fake.args();

  assertEquals(alone, ["--app-name=ZERO", "--urgency=normal", "--", "only this"]);
  assertEquals([[...title].length, [...body].length], [200, 4_000]);
});

Deno.test("osascript gets a fixed script, and every text as an argument behind it", async () => {
  await using fake = await fakeNotifier("osascript");

  await notify({
    title: '" & (do shell script "id") & "',
    body: "-e do shell script",
    sound: "Glass",
  }, fake.options("darwin"));
  const args = await fake.args();

  assertEquals(args.slice(-4), [
    "ZERO",
    '" & (do shell script "id") & "',
    "-e do shell script",
    "Glass",
  ]);
  const script = args.slice(0, -4);
  assertEquals(script.filter((_, index) => index % 2 === 0), Array(script.length / 2).fill("-e"));
  assertEquals(script[1], "on run argv");
  assertEquals(script.join("\n").includes("do shell script"), false);
});

Deno.test("without a notifier, or without anybody to see it, nothing is offered", async () => {
  await using fake = await fakeNotifier("notify-send");
  const { env, cwd } = fake.options();
  const { DBUS_SESSION_BUS_ADDRESS: _, ...headless } = env;
  const listener = Deno.listen({ transport: "unix", path: `${fake.home}/bus` });

  assertEquals(await findNotifier({ env, cwd, os: "linux" }), `${fake.home}/notify-send`);
  assertEquals(await findNotifier({ env: headless, cwd, os: "linux" }), undefined);
  assertEquals(
    await findNotifier({ env: { ...headless, XDG_RUNTIME_DIR: fake.home }, cwd, os: "linux" }),
    `${fake.home}/notify-send`,
  );
  assertEquals(await findNotifier({ env: { ...env, PATH: "/none" }, cwd, os: "linux" }), undefined);
  assertEquals(await findNotifier({ env, cwd, os: "darwin" }), undefined);
  assertEquals(await findNotifier({ env, cwd, os: "windows" }), undefined);
  listener.close();
});

Deno.test("a notifier that fails says why, and params that say nothing are refused", async () => {
  await using fake = await fakeNotifier("notify-send", "echo no bus >&2; exit 3");
  const refusal = async (params: unknown) => {
    const error = await assertRejects(() => notify(params, fake.options()), CommandError);
    return [error.code, error.message];
  };

  assertEquals(await refusal({ title: "x" }), [
    "UNAVAILABLE",
    "Cannot show the notification: notify-send: no bus",
  ]);
  assertEquals(await refusal({ title: " ", body: "\u0000" }), [
    "INVALID_REQUEST",
    "INVALID_REQUEST: title or body required",
  ]);
  assertEquals(await refusal({ title: "x", sound: "a:b" }), [
    "INVALID_REQUEST",
    "INVALID_REQUEST: sound is not the name of a sound",
  ]);
  assertEquals(await refusal({ title: "x", delivery: "overlay" }), [
    "UNAVAILABLE",
    "this node shows no overlays",
  ]);
  assertMatch((await refusal({ title: 7 }))[1], /^INVALID_REQUEST: system\.notify: /);
});

Deno.test({
  name: "zero nodes notify shows something on a node that has a notifier",
  ignore: Deno.build.os !== "linux",
  async fn() {
    await using fake = await fakeNotifier("notify-send");
    await using gateway = await startTestGateway();
    await using node = await startTestNode(gateway, { env: fake.options().env });
    const home = await Deno.makeTempDir({ prefix: "zero-notify-" });
    const env = {
      ZERO_GATEWAY_PORT: String(gateway.port),
      ZERO_GATEWAY_TOKEN: gateway.token,
    };

    const { code, stdout } = await zero(
      ["nodes", "notify", "--node", node.nodeId, "--title", "Done", "--body", "-- green"],
      { home, env },
    );

    assertEquals([code, stdout.startsWith("Shown on n1")], [0, true]);
    assertEquals((await fake.args()).slice(-3), ["--", "Done", "-- green"]);
    await Deno.remove(home, { recursive: true });
  },
});
