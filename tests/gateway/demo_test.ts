import { assert, assertEquals, assertMatch } from "@std/assert";

Deno.test("deno task demo prints the way of two messages, and ends well when both are answered", async () => {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", new URL("../demo.ts", import.meta.url).pathname],
    clearEnv: true,
    env: { ...Deno.env.toObject(), NO_COLOR: "1" },
  }).output();

  const text = new TextDecoder().decode(stdout);
  assertEquals(code, 0, text + new TextDecoder().decode(stderr));
  const { release } = await import("node:os").then((os) => ({ release: os.release() }));
  for (
    const step of [
      "Ada → Telegram +what kernel is n1\\?",
      "gateway → agent +run telegram:",
      "model → gateway +tool .*node_run",
      'gateway → n1 +node.invoke system.run \\["uname","-r"\\]',
      `n1 → gateway +result, exit code 0: ${release}`,
      `Telegram → Ada +<b>n1</b> runs kernel <code>${release}`,
      "Ada → Telegram +presses \\[Allow once\\]: /approve",
      'gateway → n1 +node.invoke system.run \\["uname","-a"\\]',
      `Telegram → Ada +<pre>.* ${release}`,
    ]
  ) {
    assertMatch(text, new RegExp(step));
  }
  assert(text.endsWith("Both replies arrived\n"), text);
});
