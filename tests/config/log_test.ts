import { assert, assertEquals, assertMatch, assertNotMatch } from "@std/assert";
import { formatLogLine, type LogFields, openLog, REDACTED, tailLog } from "../../config/log.ts";

const CANARY = 'canary "7f/3a&é';
const START_MS = Date.UTC(2026, 0, 2, 3, 4, 5, 6);

Deno.test("a line is one JSON object with time, level, subsystem, message and fields", async () => {
  await using place = await temporary();
  await using log = openLog({ file: place.file, now: () => START_MS });

  log.child("gateway").child("ws").info("Listening", {
    port: 18789,
    host: undefined,
    isLocal: true,
  });
  await log.flush();

  assertEquals(await place.lines(), [{
    time: "2026-01-02T03:04:05.006Z",
    level: "info",
    subsystem: "gateway/ws",
    message: "Listening",
    port: 18789,
    isLocal: true,
  }]);
});

Deno.test("lines below the level are not written, and the level may change", async () => {
  await using place = await temporary();
  await using log = openLog({ file: place.file, level: "warn" });

  log.info("one");
  log.warn("two");
  log.level = "trace";
  log.debug("three");
  log.level = "silent";
  log.error("four");
  await log.flush();

  assertEquals(await place.messages(), ["two", "three"]);
});

Deno.test("the log file and its directory belong to their owner alone", async () => {
  await using place = await temporary();
  const file = `${place.directory}/state/logs/gateway.log`;
  await using log = openLog({ file });

  log.info("hello");
  await log.flush();

  assertEquals((await Deno.stat(file)).mode! & 0o777, 0o600);
  assertEquals((await Deno.stat(`${place.directory}/state/logs`)).mode! & 0o777, 0o700);
  assertEquals((await Deno.stat(`${place.directory}/state`)).mode! & 0o777, 0o700);
});

Deno.test("a log file others could read is closed to them", async () => {
  await using place = await temporary();
  await Deno.writeTextFile(place.file, "", { mode: 0o644 });
  await Deno.chmod(place.file, 0o644);
  await using log = openLog({ file: place.file });

  log.info("hello");
  await log.flush();

  assertEquals((await Deno.stat(place.file)).mode! & 0o777, 0o600);
});

Deno.test("a known secret is never written, in whatever form it comes", async (t) => {
  const forms: Record<string, string> = {
    plain: CANARY,
    json: JSON.stringify({ token: CANARY }),
    "json inside json": JSON.stringify({ frame: JSON.stringify({ token: CANARY }) }),
    url: `ws://host/?a=${encodeURIComponent(CANARY)}`,
    form: new URLSearchParams({ a: CANARY }).toString(),
    "upper case": CANARY.toUpperCase(),
    "escaped slash": JSON.stringify(CANARY).replaceAll("/", "\\/"),
  };
  for (const [name, text] of Object.entries(forms)) {
    await t.step(name, async () => {
      await using place = await temporary();
      const mirrored: string[] = [];
      await using log = openLog({
        file: place.file,
        secrets: () => [CANARY],
        mirror: (line) => mirrored.push(line),
      });

      log.info(`Cannot read ${text} here`, { reason: `before ${text} after`, [text]: 1 });
      await log.flush();

      const [line] = await place.lines();
      assertMatch(line.reason as string, /^before .*\[redacted\].* after$/);
      for (const raw of [await Deno.readTextFile(place.file), mirrored.join("\n")]) {
        assertMatch(raw, /\[redacted\]/);
        assertNotMatch(raw, /canary|7f.{0,3}3a/i);
      }
    });
  }
});

Deno.test("a secret that is added or changed later is not written from then on", async () => {
  await using place = await temporary();
  let secrets = ["first-secret"];
  await using log = openLog({ file: place.file, secrets: () => secrets });

  log.info("first-secret second-secret");
  secrets = ["second-secret"];
  log.info("first-secret second-secret third-secret");
  log.child("gateway").addSecret("third-secret");
  log.info("first-secret second-secret third-secret");
  await log.flush();

  assertEquals(await place.messages(), [
    `${REDACTED} second-secret`,
    `${REDACTED} ${REDACTED} third-secret`,
    `${REDACTED} ${REDACTED} ${REDACTED}`,
  ]);
});

Deno.test("a secret of digits is taken out of numbers, and the line stays JSON", async () => {
  await using place = await temporary();
  await using log = openLog({ file: place.file, secrets: () => ["18789", "ab", ""] });

  log.info("about", { port: 18789, count: 7, size: 1187890, short: "ab", odd: NaN });
  await log.flush();

  const [{ port, count, size, short, odd, message }] = await place.lines();
  assertEquals([port, count, size], [REDACTED, 7, `1${REDACTED}0`]);
  assertEquals([short, odd, message], [REDACTED, "NaN", "about"]);
});

Deno.test("tokens in URLs and headers are taken out though nobody knows them", async () => {
  await using place = await temporary();
  await using log = openLog({ file: place.file });

  const texts = [
    "http://127.0.0.1:18789/#token=sAmPle-1",
    "GET /chat?x=1&token=sAmPle-2&y=3",
    "ws://h/?deviceToken=sAmPle-3",
    "authorization: Bearer sAmPle-4",
    '{"Authorization":"Basic sAmPle5=="}',
    JSON.stringify(JSON.stringify({ url: "/?password=sAmPle-6" })),
  ];
  for (const text of texts) log.warn("Refused", { text });
  await log.flush();

  const raw = await Deno.readTextFile(place.file);
  assertNotMatch(raw, /sAmPle/);
  assertEquals(raw.split("[redacted]").length - 1, texts.length);
  assertMatch(raw, /&y=3/);
});

Deno.test("fields named like a secret are not written, counts and switches are", async () => {
  await using place = await temporary();
  await using log = openLog({ file: place.file });

  log.info("fields", {
    deviceToken: "abc-1",
    botTokens: "abc-2",
    hookPassword: "abc-3",
    apiKey: "abc-4",
    cookie: "abc-5",
    clientSecret: 12345,
    totalTokens: 77,
    hasToken: true,
    tokenSource: "env",
  });
  await log.flush();

  const [line] = await place.lines();
  assertNotMatch(JSON.stringify(line), /abc-|12345/);
  assertEquals([line.totalTokens, line.hasToken, line.tokenSource], [77, true, "env"]);
});

Deno.test("neither an object nor a reserved name gets past the types into a line", async () => {
  await using place = await temporary();
  await using log = openLog({ file: place.file, now: () => START_MS });

  const fields = { frame: { hidden: 1 }, level: "error", time: "never" } as unknown as LogFields;
  log.info("frame", fields);
  await log.flush();

  const [line] = await place.lines();
  assertEquals([line.frame, line.level], ["[object]", "info"]);
  assertEquals(line.time, new Date(START_MS).toISOString());
});

Deno.test("a very long text is cut", async () => {
  await using place = await temporary();
  await using log = openLog({ file: place.file });

  log.info("long", { text: "x".repeat(100_000) });
  await log.flush();

  const [line] = await place.lines();
  assertMatch(line.text as string, /^x{8192}… \(91808 more characters\)$/);
});

Deno.test("100,000 equal warnings are ten lines and their number", async () => {
  await using place = await temporary();
  let nowMs = START_MS;
  {
    await using log = openLog({ file: place.file, now: () => nowMs });
    const limited = log.child("gateway");
    for (let index = 0; index < 100_000; index++) {
      limited.warn("Refused", { method: `no.such.${index}` });
    }
    limited.warn("Something else");
    nowMs += 10_000;
    limited.warn("Refused", { method: "again" });
    assertEquals(log.counts.sampled, 99_990);
  }

  const messages = await place.messages();
  assertEquals(messages.length, 13);
  assertEquals(messages.slice(10), [
    "Something else",
    "Refused (99990 more in the last 10 s)",
    "Refused",
  ]);
  assert((await Deno.stat(place.file)).size < 1_000_000);
});

Deno.test("equal lines that were left out are told of when the log closes", async () => {
  await using place = await temporary();
  {
    await using log = openLog({ file: place.file, now: () => START_MS });
    for (let index = 0; index < 25; index++) log.child(String(index % 2)).info("Tick");
  }

  const messages = await place.messages();
  assertEquals(messages.filter((one) => one === "Tick").length, 20);
  assertEquals(messages.slice(20), [
    "Tick (3 more in the last 10 s)",
    "Tick (2 more in the last 10 s)",
  ]);
});

Deno.test("equal lines that were left out are told of when their window ends", async () => {
  const told = Promise.withResolvers<string>();
  await using _log = (() => {
    const mirror = (line: string) => line.includes("more") && told.resolve(line);
    const log = openLog({ mirror, sampleWindowMs: 20 });
    for (let index = 0; index < 15; index++) log.warn("Refused");
    return log;
  })();

  // The log's own timer does not keep a program alive.
  const deadline = setTimeout(() => told.reject(new Error("nothing was told")), 10_000);
  const line = await told.promise.finally(() => clearTimeout(deadline));

  assertEquals(JSON.parse(line).message, "Refused (5 more in the last 0.02 s)");
});

Deno.test("a clock that is set back does not silence a line", async () => {
  await using place = await temporary();
  let nowMs = START_MS;
  await using log = openLog({ file: place.file, now: () => nowMs });

  for (let index = 0; index < 20; index++) log.info("Tick");
  nowMs -= 3_600_000;
  log.info("Tick");
  await log.flush();

  assertEquals((await place.messages()).at(-1), "Tick");
  assertEquals(log.counts.sampled, 10);
});

Deno.test("the log rotates by size and keeps the given number of old files", async () => {
  await using place = await temporary();
  {
    await using log = openLog({ file: place.file, maxBytes: 2_000, maxFiles: 3 });
    for (let index = 0; index < 200; index++) {
      log.info(`Line ${index}`);
      if (index % 5 === 0) await log.flush();
    }
  }

  const names: string[] = [];
  for await (const { name } of Deno.readDir(place.directory)) names.push(name);
  assertEquals(names.sort(), [
    "gateway.log",
    "gateway.log.1",
    "gateway.log.2",
    "gateway.log.3",
  ]);
  const numbers: number[] = [];
  for (const name of names.reverse()) {
    const text = await Deno.readTextFile(`${place.directory}/${name}`);
    assert(text.length <= 2_000);
    assertEquals((await Deno.stat(`${place.directory}/${name}`)).mode! & 0o777, 0o600);
    numbers.push(...messagesOf(text).map((message) => Number(message.slice(5))));
  }
  const first = numbers[0];
  assertEquals(numbers, Array.from({ length: 200 - first }, (_, index) => first + index));
});

Deno.test("a log file that is deleted while it is written comes back", async () => {
  await using place = await temporary();
  await using log = openLog({ file: place.file });

  log.info("before");
  await log.flush();
  await Deno.remove(place.file);
  log.info("after");
  await log.flush();

  assertEquals(await place.messages(), ["after"]);
});

Deno.test("an error line is written without waiting for the batch", async () => {
  await using place = await temporary();
  await Deno.writeTextFile(place.file, "");
  using watcher = Deno.watchFs(place.directory);
  await using log = openLog({ file: place.file });

  log.info("first");
  log.error("second");
  for await (const _ of watcher) {
    if ((await place.messages()).length === 2) break;
  }

  assertEquals(await place.messages(), ["first", "second"]);
});

Deno.test("a full disk is told of once and never thrown at the caller", async () => {
  const told: string[] = [];
  const log = openLog({ file: "/dev/full", warn: (text) => told.push(text) });

  log.error("one");
  await log.flush();
  log.warn("two");
  await log.flush();
  await log[Symbol.asyncDispose]();

  assertEquals(told.length, 1);
  assertMatch(told[0], /^Cannot write the log \/dev\/full: .*space/i);
  assert(log.counts.failures >= 2);
  assertEquals([log.counts.written, log.counts.dropped], [0, 2]);
});

Deno.test("lines wait while the log cannot be written, and are written once it can", async () => {
  await using place = await temporary();
  const told: string[] = [];
  // A file where the directory should be: nothing can be written below it.
  await Deno.writeTextFile(`${place.directory}/logs`, "");
  const file = `${place.directory}/logs/gateway.log`;
  await using log = openLog({ file, warn: (text) => told.push(text) });

  log.info("one");
  await log.flush();
  await log.flush();
  await Deno.remove(`${place.directory}/logs`);
  log.info("two");
  await log.flush();

  assertEquals(messagesOf(await Deno.readTextFile(file)), ["one", "two"]);
  assertEquals([told.length, log.counts.failures], [1, 2]);
});

Deno.test("what waits for the disk is bounded: details go first, and their loss is told", async () => {
  await using place = await temporary();
  await Deno.writeTextFile(`${place.directory}/logs`, "");
  const file = `${place.directory}/logs/gateway.log`;
  await using log = openLog({ file, warn: () => {} });

  const text = "x".repeat(8_000);
  for (let index = 0; index < 1_000; index++) log.info(`Line ${index}`, { text });
  const { dropped } = log.counts;
  log.warn("Still taken");
  // An attempt that is under way fails with what it found; the next one succeeds.
  await log.flush();
  await Deno.remove(`${place.directory}/logs`);
  await log.flush();

  const messages = messagesOf(await Deno.readTextFile(file));
  assert(dropped > 400 && dropped < 600, `${dropped} dropped`);
  assertEquals(messages.length, 1_000 - dropped + 2);
  assertEquals(messages.slice(-2), [
    "Still taken",
    "Lines were lost because the log could not be written",
  ]);
});

Deno.test("a mirror that fails is no reason for the caller to fail", async () => {
  await using place = await temporary();
  await using log = openLog({
    file: place.file,
    mirror() {
      throw new Deno.errors.BrokenPipe();
    },
  });

  log.info("hello");
  await log.flush();

  assertEquals(await place.messages(), ["hello"]);
});

Deno.test("a process killed while it logs leaves whole lines, but for the one it was writing", async () => {
  await using place = await temporary();
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      "eval",
      `
      import { openLog } from "${new URL("../../config/log.ts", import.meta.url)}";
      const log = openLog({ file: ${JSON.stringify(place.file)}, maxBytes: 1e9 });
      for (let index = 0; ; index++) {
        log.info("Line " + index, { text: "x".repeat(500) });
        if (index % 1000 === 0) await new Promise((resolve) => setTimeout(resolve));
      }`,
    ],
  }).spawn();
  await place.until(({ size }) => size > 1_000_000);
  child.kill("SIGKILL");
  await child.status;

  const text = await Deno.readTextFile(place.file);
  // The kernel ends a write of a killed process where it is.
  const messages = messagesOf(text.slice(0, text.lastIndexOf("\n") + 1));
  assertEquals(messages.slice(0, 3), ["Line 0", "Line 1", "Line 2"]);
  assertEquals(messages.at(-1), `Line ${messages.length - 1}`);
});

Deno.test("a line that was torn off is ended before the next one", async () => {
  await using place = await temporary();
  await Deno.writeTextFile(place.file, '{"level":"info","mess');
  await using log = openLog({ file: place.file });

  log.info("next");
  await log.flush();

  const [torn, next] = (await Deno.readTextFile(place.file)).split("\n");
  assertEquals(torn, '{"level":"info","mess');
  assertEquals(JSON.parse(next).message, "next");
});

Deno.test("tailLog gives the lines after a cursor and where to go on", async () => {
  await using place = await temporary();
  await Deno.writeTextFile(place.file, "one\ntwo\n");

  const first = await tailLog({ file: place.file });
  await Deno.writeTextFile(place.file, "dréi\nvier", { append: true });
  const second = await tailLog({ file: place.file, cursor: first.cursor });
  await Deno.writeTextFile(place.file, "!\n", { append: true });
  const third = await tailLog({ file: place.file, cursor: second.cursor });
  const fourth = await tailLog({ file: place.file, cursor: third.cursor });

  const plain = { file: place.file, truncated: false, reset: false };
  assertEquals(first, { ...plain, cursor: 8, size: 8, lines: ["one", "two"] });
  assertEquals(second, { ...plain, cursor: 14, size: 18, lines: ["dréi"] });
  assertEquals(third, { ...plain, cursor: 20, size: 20, lines: ["vier!"] });
  assertEquals(fourth, { ...plain, cursor: 20, size: 20, lines: [] });
});

Deno.test("tailLog of a file that is not there is empty", async () => {
  await using place = await temporary();

  const empty = { file: place.file, cursor: 0, size: 0, lines: [], truncated: false, reset: false };
  assertEquals(await tailLog({ file: place.file }), empty);
  assertEquals(await tailLog({ file: place.file, cursor: 99 }), empty);
});

Deno.test("tailLog keeps to maxBytes and limit, drops a partial first line, and says so", async (t) => {
  await using place = await temporary();
  const { file } = place;
  await Deno.writeTextFile(file, "1111\n2222\n3333\n4444\n");
  const tail = async (options: { cursor?: number; limit?: number; maxBytes?: number }) => {
    const { lines, truncated, reset, cursor } = await tailLog({ file, ...options });
    return { lines: lines.join(" "), truncated, reset, cursor };
  };
  const plain = { truncated: false, reset: false, cursor: 20 };

  await t.step("at a line's beginning", async () => {
    assertEquals(await tail({ maxBytes: 10 }), { ...plain, lines: "3333 4444", truncated: true });
  });
  await t.step("inside a line", async () => {
    assertEquals(await tail({ maxBytes: 12 }), { ...plain, lines: "3333 4444", truncated: true });
    assertEquals(await tail({ maxBytes: 9 }), { ...plain, lines: "4444", truncated: true });
  });
  await t.step("inside the only line", async () => {
    assertEquals(await tail({ maxBytes: 3 }), { ...plain, lines: "", truncated: true });
  });
  await t.step("the limit keeps the newest", async () => {
    assertEquals(await tail({ limit: 1 }), { ...plain, lines: "4444", truncated: true });
    assertEquals(await tail({ limit: 4 }), { ...plain, lines: "1111 2222 3333 4444" });
  });
  await t.step("a cursor inside a line", async () => {
    assertEquals(await tail({ cursor: 7 }), { ...plain, lines: "3333 4444" });
  });
  await t.step("a cursor too far back", async () => {
    assertEquals(await tail({ cursor: 5, maxBytes: 10 }), {
      ...plain,
      lines: "3333 4444",
      truncated: true,
      reset: true,
    });
  });
  await t.step("a cursor beyond the file, as after a rotation", async () => {
    assertEquals(await tail({ cursor: 21 }), {
      ...plain,
      lines: "1111 2222 3333 4444",
      reset: true,
    });
  });
});

Deno.test("a log line for people shows its fields and no control characters", () => {
  const line = JSON.stringify({
    time: "2026-01-02T03:04:05.006Z",
    level: "warn",
    subsystem: "gateway/ws",
    message: "Refused \x1b[2J",
    method: "no.such",
    reason: "two words",
    count: 3,
    name: "\nforged",
  });

  assertEquals(
    formatLogLine(line),
    "2026-01-02T03:04:05.006Z warn  gateway/ws: Refused \ufffd[2J method=no.such " +
      'reason="two words" count=3 name="\\nforged"',
  );
  assertEquals(formatLogLine("not\tJSON"), "not\ufffdJSON");
  assertEquals(formatLogLine("7"), "7");
});

/** A directory with a log in it, gone at the end. */
async function temporary() {
  const directory = await Deno.makeTempDir({ prefix: "zero-log-" });
  const file = `${directory}/gateway.log`;
  return {
    directory,
    file,
    lines: async () => linesOf(await Deno.readTextFile(file)),
    messages: async () => messagesOf(await Deno.readTextFile(file)),
    async until(isEnough: (info: Deno.FileInfo) => boolean) {
      using watcher = Deno.watchFs(directory);
      for await (const _ of watcher) {
        if (isEnough(await Deno.stat(file))) return;
      }
    },
    [Symbol.asyncDispose]: () => Deno.remove(directory, { recursive: true }),
  };
}

function linesOf(text: string): Record<string, unknown>[] {
  return text.split("\n").filter((line) => line !== "").map((line) => JSON.parse(line));
}

function messagesOf(text: string): string[] {
  return linesOf(text).map(({ message }) => message as string);
}
