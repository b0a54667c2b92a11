import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { ownToken } from "../../gateway/secret.ts";

async function place() {
  const dir = await Deno.makeTempDir();
  return {
    dir,
    path: `${dir}/state/gateway.token`,
    [Symbol.asyncDispose]: () => Deno.remove(dir, { recursive: true }),
  };
}

Deno.test("a token is made once: 32 random bytes, in a file for the owner alone", async () => {
  await using at = await place();

  const token = await ownToken(at.path);

  assertMatch(token, /^[A-Za-z0-9_-]{43}$/);
  assertEquals(await ownToken(at.path), token);
  assertEquals((await Deno.stat(at.path)).mode! & 0o777, 0o600);
  assertEquals([...Deno.readDirSync(`${at.dir}/state`)].map(({ name }) => name), ["gateway.token"]);
});

Deno.test("two gateways make two tokens", async () => {
  await using one = await place();
  await using two = await place();

  assertEquals(await ownToken(one.path) === await ownToken(two.path), false);
});

Deno.test("an empty file counts as none, white space around a token does not matter", async () => {
  await using at = await place();
  await Deno.mkdir(`${at.dir}/state`);

  await Deno.writeTextFile(at.path, " \n");
  assertMatch(await ownToken(at.path), /^[A-Za-z0-9_-]{43}$/);
  await Deno.writeTextFile(at.path, "\n chosen \n");

  assertEquals(await ownToken(at.path), "chosen");
});

Deno.test("a token that is there and cannot be read is not replaced", async () => {
  await using at = await place();
  await Deno.mkdir(at.path, { recursive: true });

  await assertRejects(() => ownToken(at.path));

  assertEquals((await Deno.stat(at.path)).isDirectory, true);
});
