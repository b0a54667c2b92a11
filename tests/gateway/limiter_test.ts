import { assert, assertEquals } from "@std/assert";
import { LoginLimiter } from "../../gateway/limiter.ts";

const OPTIONS = { maxAttempts: 10, windowMs: 60_000, lockoutMs: 300_000 };
const KEY = "203.0.113.7";

/** A limiter whose time stands still until it is told to pass. */
function limiterAt(options = OPTIONS) {
  let nowMs = 1_000_000;
  const timers = new Set<{ atMs: number; wake: () => void }>();
  const limiter = new LoginLimiter(options, () => nowMs, (ms, wake) => {
    const timer = { atMs: nowMs + ms, wake };
    timers.add(timer);
    return () => timers.delete(timer);
  });
  return {
    limiter,
    get timers() {
      return timers.size;
    },
    /** Lets time pass, and whoever waited for its answer. */
    async pass(ms: number) {
      const untilMs = nowMs + ms;
      const due = () => [...timers].filter(({ atMs }) => atMs <= untilMs);
      for (let next; (next = due().sort((a, b) => a.atMs - b.atMs)[0]);) {
        nowMs = next.atMs;
        timers.delete(next);
        next.wake();
      }
      nowMs = untilMs;
      await settled();
    },
  };
}

/** Runs what promises that are resolved already have to do. */
async function settled() {
  for (let turn = 0; turn < 5; turn++) await Promise.resolve();
}

/** A delayed answer, and what has become of it so far. */
function watch(answer: Promise<boolean>) {
  const watched: { verdict?: boolean } = {};
  answer.then((verdict) => watched.verdict = verdict);
  return watched;
}

/** Failures up to the last one that is answered at once. */
async function useUp(limiter: LoginLimiter, key = KEY) {
  for (let count = 0; count < OPTIONS.maxAttempts; count++) await limiter.failLate(key);
}

Deno.test("ten wrong secrets within a minute lock an address for five minutes", async () => {
  const time = limiterAt();
  const { limiter } = time;

  for (let count = 1; count < 10; count++) {
    limiter.fail(KEY);
    assertEquals(limiter.lockedForMs(KEY), 0, `after ${count}`);
    await time.pass(5_000);
  }
  limiter.fail(KEY);

  assertEquals(limiter.lockedForMs(KEY), 300_000);
  await time.pass(299_999);
  assertEquals(limiter.lockedForMs(KEY), 1);
  await time.pass(1);
  assertEquals(limiter.lockedForMs(KEY), 0);
});

Deno.test("failures that are further apart than the window never lock", async () => {
  const time = limiterAt();

  for (let count = 0; count < 50; count++) {
    time.limiter.fail(KEY);
    await time.pass(6_667);
  }

  assertEquals(time.limiter.lockedForMs(KEY), 0);
});

Deno.test("after a lockout the counting begins anew", async () => {
  const time = limiterAt();
  for (let count = 0; count < 10; count++) time.limiter.fail(KEY);
  await time.pass(300_000);

  for (let count = 0; count < 9; count++) time.limiter.fail(KEY);
  const before = time.limiter.lockedForMs(KEY);
  time.limiter.fail(KEY);

  assertEquals([before, time.limiter.lockedForMs(KEY)], [0, 300_000]);
});

Deno.test("addresses are counted apart, and one that nobody knows is free", () => {
  const { limiter } = limiterAt();

  for (let count = 0; count < 10; count++) limiter.fail(KEY);

  assert(limiter.lockedForMs(KEY) > 0);
  for (const other of ["203.0.113.8", "forwarded", "browser 127.0.0.1", ""]) {
    assertEquals(limiter.lockedForMs(other), 0);
  }
});

Deno.test("the configured numbers count", () => {
  const { limiter } = limiterAt({ maxAttempts: 1, windowMs: 10, lockoutMs: 77 });

  limiter.fail(KEY);

  assertEquals(limiter.lockedForMs(KEY), 77);
});

Deno.test("ten failures on this machine are answered at once, the next ones late", async () => {
  const time = limiterAt();

  for (let count = 0; count < 10; count++) assertEquals(await time.limiter.failLate(KEY), true);
  const late = watch(time.limiter.failLate(KEY));

  await time.pass(249);
  assertEquals(late.verdict, undefined);
  await time.pass(1);
  assertEquals(late.verdict, true);
  assertEquals(time.limiter.lockedForMs(KEY), 0);
});

Deno.test("each delay is twice the one before, up to five seconds", async () => {
  const time = limiterAt({ ...OPTIONS, windowMs: 600_000 });
  await useUp(time.limiter);

  for (const delayMs of [250, 500, 1_000, 2_000, 4_000, 5_000, 5_000, 5_000, 5_000, 5_000]) {
    const late = watch(time.limiter.failLate(KEY));
    await time.pass(delayMs - 1);
    assertEquals(late.verdict, undefined, `before ${delayMs}`);
    await time.pass(1);
    assertEquals(late.verdict, true, `after ${delayMs}`);
  }
});

Deno.test("failures sent at the same time are answered one behind another", async () => {
  const time = limiterAt();
  await useUp(time.limiter);

  const late = Array.from({ length: 4 }, () => watch(time.limiter.failLate(KEY)));

  for (const [index, atMs] of [250, 500, 1_000, 2_000].entries()) {
    await time.pass(atMs - 1);
    assertEquals(late.filter(({ verdict }) => verdict).length, index);
    await time.pass(1);
    assertEquals(late.filter(({ verdict }) => verdict).length, index + 1);
  }
});

Deno.test("one that gives up waiting keeps its place: those behind it do not move up", async () => {
  const time = limiterAt();
  await useUp(time.limiter);

  // Nobody looks at this answer any more, as after a socket was closed.
  time.limiter.failLate(KEY);
  const second = watch(time.limiter.failLate(KEY));

  await time.pass(250 + 499);
  assertEquals(second.verdict, undefined);
  await time.pass(1);
  assertEquals(second.verdict, true);
});

Deno.test("at most 32 wait: one more drops the oldest, and saves itself no time", async () => {
  const time = limiterAt();
  await useUp(time.limiter);

  const late = Array.from({ length: 33 }, () => watch(time.limiter.failLate(KEY)));
  await settled();

  assertEquals(late.map(({ verdict }) => verdict).filter((one) => one === false).length, 1);
  assertEquals(late[0].verdict, false);
  assertEquals(time.timers, 32);
  await time.pass(250 + 500 + 1_000 + 2_000 + 4_000 + 27 * 5_000);
  assertEquals(late[32].verdict, undefined);
  await time.pass(5_000);
  assertEquals(late.map(({ verdict }) => verdict), [false, ...Array(32).fill(true)]);
});

Deno.test("the queue of one address delays no other", async () => {
  const time = limiterAt();
  await useUp(time.limiter);
  for (let count = 0; count < 20; count++) time.limiter.failLate(KEY);

  const other = watch(time.limiter.failLate("browser 127.0.0.1"));
  await settled();

  assertEquals(other.verdict, true);
});

Deno.test("who was slow for a minute is answered at once again", async () => {
  const time = limiterAt();
  await useUp(time.limiter);
  const late = watch(time.limiter.failLate(KEY));
  await time.pass(60_000);

  const next = watch(time.limiter.failLate(KEY));
  await settled();

  assertEquals([late.verdict, next.verdict], [true, true]);
});

Deno.test("whoever waits when the gateway ends is dropped, and no timer is left", async () => {
  const time = limiterAt();
  await useUp(time.limiter);
  const late = [1, 2, 3].map(() => watch(time.limiter.failLate(KEY)));

  time.limiter[Symbol.dispose]();
  await settled();

  assertEquals(late.map(({ verdict }) => verdict), [false, false, false]);
  assertEquals(time.timers, 0);
});

Deno.test("ten thousand addresses later the locked ones are still locked, the others forgotten", () => {
  const { limiter } = limiterAt();
  for (let count = 0; count < 10; count++) limiter.fail(KEY);
  for (let count = 0; count < 9; count++) limiter.fail("quiet");

  for (let count = 0; count < 10_050; count++) limiter.fail(`10.0.${count >> 8}.${count & 255}`);
  limiter.fail("quiet");

  assert(limiter.lockedForMs(KEY) > 0);
  assertEquals(limiter.lockedForMs("quiet"), 0);
});
