import { assertEquals } from "@std/assert";
import { DEFAULT_TRIGGERS, VoiceWake } from "../../gateway/voicewake.ts";

async function settingsFile() {
  const dir = await Deno.makeTempDir();
  return {
    path: `${dir}/settings/voicewake.json`,
    [Symbol.asyncDispose]: () => Deno.remove(dir, { recursive: true }),
  };
}

Deno.test("without a file the default words wake", async () => {
  await using file = await settingsFile();

  assertEquals((await VoiceWake.open(file.path)).triggers, ["zero", "claude", "computer"]);
});

Deno.test("words are trimmed, blanks dropped, at most 32 of at most 64 characters", async () => {
  await using file = await settingsFile();
  const voicewake = await VoiceWake.open(file.path);
  const many = Array.from({ length: 40 }, (_, index) => `word ${index}`);

  assertEquals(await voicewake.set(["  hey  ", "", "   ", "x".repeat(70)]), [
    "hey",
    "x".repeat(64),
  ]);
  assertEquals(await voicewake.set(many), many.slice(0, 32));
  assertEquals(await voicewake.set(["", ...many]), many.slice(0, 32));
});

Deno.test("no words means the default ones", async () => {
  await using file = await settingsFile();
  const voicewake = await VoiceWake.open(file.path);
  await voicewake.set(["hey"]);

  for (const none of [[], ["", " "]]) assertEquals(await voicewake.set(none), DEFAULT_TRIGGERS);
});

Deno.test("words are kept for the next start, in a file for the owner alone", async () => {
  await using file = await settingsFile();
  await (await VoiceWake.open(file.path)).set(["hey zero"]);

  assertEquals((await VoiceWake.open(file.path)).triggers, ["hey zero"]);
  assertEquals((await Deno.stat(file.path)).mode! & 0o777, 0o600);
  const left = [...Deno.readDirSync(file.path.replace(/\/[^/]*$/, ""))].map(({ name }) => name);
  assertEquals(left, ["voicewake.json"]);
});

Deno.test("a file that cannot be read means the default words", async () => {
  await using file = await settingsFile();
  await (await VoiceWake.open(file.path)).set(["hey"]);

  for (const text of ["", "{", "null", "[]", `{"triggers":"hey"}`, `{"triggers":[1,null]}`]) {
    await Deno.writeTextFile(file.path, text);
    assertEquals((await VoiceWake.open(file.path)).triggers, DEFAULT_TRIGGERS, text);
  }
});
