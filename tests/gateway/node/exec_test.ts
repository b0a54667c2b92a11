import { assert, assertEquals } from "@std/assert";
import { MAX_OUTPUT_BYTES, runCommand } from "../../../gateway/node/exec.ts";
import { eventually } from "../../support/process.ts";

const ENV = { PATH: "/usr/local/bin:/usr/bin:/bin" };
const sh = (script: string, options: { timeoutMs?: number; signal?: AbortSignal } = {}) =>
  runCommand({ argv: ["/bin/sh", "-c", script], env: ENV, ...options });

function isAlive(pid: number): boolean {
  try {
    // A process that ended and was not waited for still has a pid, and state Z.
    return !/^State:\s+Z/m.test(Deno.readTextFileSync(`/proc/${pid}/status`));
  } catch {
    return false;
  }
}

Deno.test("a command answers with its exit code and both of its outputs", async () => {
  assertEquals(await sh("echo out; echo err >&2; exit 7"), {
    exitCode: 7,
    timedOut: false,
    success: false,
    stdout: "out\n",
    stderr: "err\n",
    error: null,
  });
  assertEquals((await sh("exit 0")).success, true);
});

Deno.test("a command has no standard input, and the environment it was given alone", async () => {
  assertEquals((await sh("cat; env | grep -c TEST_OF_THE_PARENT")).stdout, "0\n");
});

Deno.test("a program that is not there and a directory that is not there are told as errors", async () => {
  const missing = await runCommand({ argv: ["/nosuch/program"], env: ENV });
  const nowhere = await runCommand({ argv: ["/bin/sh"], cwd: "/nosuch", env: ENV });

  for (const outcome of [missing, nowhere]) {
    assertEquals(outcome.success, false);
    assertEquals(outcome.exitCode, undefined);
  }
  assertEquals(missing.error, "there is no program /nosuch/program on this node");
  assertEquals(nowhere.error, "there is no directory /nosuch on this node");
});

Deno.test("a command killed by a signal has no exit code, and says which signal it was", async () => {
  const outcome = await sh("kill -9 $$");

  assertEquals(outcome.error, "it was ended by SIGKILL");
  assertEquals([outcome.exitCode, outcome.success, outcome.timedOut], [undefined, false, false]);
});

Deno.test("a deadline ends the command and all that it started", async () => {
  const outcome = await sh("sleep 600 & echo $!; sleep 600 & echo $!; wait", { timeoutMs: 400 });
  const pids = outcome.stdout.trim().split("\n").map(Number);

  assertEquals(outcome.timedOut, true);
  assertEquals([outcome.success, outcome.exitCode], [false, undefined]);
  assertEquals(pids.length, 2);
  await eventually("the grandchildren are gone", () => !pids.some(isAlive));
});

Deno.test("a node that stops ends what runs, grandchildren too", async () => {
  const stop = new AbortController();
  const file = await Deno.makeTempFile();
  const running = sh(`sleep 600 & echo $! >${file}; wait`, { signal: stop.signal });
  let pid = 0;
  await eventually("the grandchild runs", () => {
    pid = Number(Deno.readTextFileSync(file));
    return pid > 0;
  });

  stop.abort();
  const outcome = await running;

  assertEquals(outcome.success, false);
  assertEquals(outcome.error, "the node stopped");
  await eventually("the grandchild is gone", () => !isAlive(pid));
  await Deno.remove(file);
});

Deno.test("something left in the background does not hold up the answer", async () => {
  const outcome = await sh("sleep 600 & echo $!");
  const pid = Number(outcome.stdout);

  assertEquals(outcome.success, true);
  assert(isAlive(pid), "what was left in the background is the caller's");
  Deno.kill(pid, "SIGKILL");
});

Deno.test("output ends at its limit, and says so where people look", async () => {
  const many = `head -c ${MAX_OUTPUT_BYTES + 1} /dev/zero | tr '\\0' x`;
  const note = "\n... (truncated)";

  const onlyOut = await sh(many);
  const both = await sh(`echo warn >&2; sleep 0.2; ${many}`);
  const exact = await sh(`head -c ${MAX_OUTPUT_BYTES} /dev/zero | tr '\\0' x`);

  assertEquals(onlyOut.stdout.length, MAX_OUTPUT_BYTES + note.length);
  assert(onlyOut.stdout.endsWith(`x${note}`));
  assertEquals(onlyOut.stderr, "");
  assertEquals(both.stdout.length, MAX_OUTPUT_BYTES - "warn\n".length);
  assertEquals(both.stderr, "warn\n... (truncated)");
  assertEquals(exact.stdout.length, MAX_OUTPUT_BYTES);
  assertEquals(exact.success, true);
});

Deno.test("half a character at the limit is left out", async () => {
  const { stdout } = await sh(`head -c ${MAX_OUTPUT_BYTES - 1} /dev/zero | tr '\\0' x; echo é`);

  assert(stdout.startsWith("xxx") && stdout.endsWith("x\n... (truncated)"), stdout.slice(-40));
});

Deno.test("output that is no UTF-8 comes through with marks in its place", async () => {
  assertEquals((await sh("printf 'a\\377b'")).stdout, "a\ufffdb");
});
