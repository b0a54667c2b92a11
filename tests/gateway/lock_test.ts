import { assert, assertEquals, assertRejects } from "@std/assert";
import { acquireInstanceLock, readLock } from "../../gateway/lock.ts";
import { StartRefusal } from "../../gateway/preflight.ts";

async function lockFile() {
  const dir = await Deno.makeTempDir();
  return {
    path: `${dir}/gateway.lock`,
    [Symbol.asyncDispose]: () => Deno.remove(dir, { recursive: true }),
  };
}

Deno.test("the second to take a lock is told who has it, where, and what to do", async () => {
  await using file = await lockFile();
  using lock = await acquireInstanceLock(file.path);
  lock.note({ pid: Deno.pid, url: "ws://127.0.0.1:18789", startedAtMs: 1 });

  const refusal = await assertRejects(
    () => acquireInstanceLock(file.path),
    StartRefusal,
    `gateway already running (pid ${Deno.pid}) on ws://127.0.0.1:18789; it holds ${file.path}`,
  ) as StartRefusal;

  assert(refusal.fix.includes("zero gateway status"));
});

Deno.test("a lock that was let go can be taken again, and its file says nothing stale", async () => {
  await using file = await lockFile();
  {
    using _first = await acquireInstanceLock(file.path);
    assertEquals(readLock(file.path)?.pid, Deno.pid);
  }
  assertEquals(readLock(file.path), undefined);

  using _second = await acquireInstanceLock(file.path);

  assertEquals(readLock(file.path)?.pid, Deno.pid);
});

Deno.test("what a dead gateway left in the file does not matter", async () => {
  await using file = await lockFile();
  await Deno.writeTextFile(file.path, `{"pid":1,"url":"ws://x","startedAtMs":0}${"x".repeat(900)}`);

  using lock = await acquireInstanceLock(file.path);
  lock.note({ pid: 7, startedAtMs: 8 });

  assertEquals(readLock(file.path), { pid: 7, startedAtMs: 8 });
});

Deno.test("a file that is no note, or not there, names nobody", async () => {
  await using file = await lockFile();

  assertEquals(readLock(file.path), undefined);
  await Deno.writeTextFile(file.path, "half a no");
  assertEquals(readLock(file.path), undefined);
});

Deno.test("the lock file is for its owner alone", async () => {
  await using file = await lockFile();

  using _lock = await acquireInstanceLock(file.path);

  assertEquals((await Deno.stat(file.path)).mode! & 0o777, 0o600);
});
