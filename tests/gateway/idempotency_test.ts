import { assertEquals } from "@std/assert";
import { IdempotencyCache } from "../../gateway/idempotency.ts";

const answer = (payload: unknown) => ({ ok: true as const, payload });

Deno.test("an answer is known for 300 s, to its own method alone", () => {
  let now = 0;
  const cache = new IdempotencyCache(() => now);
  cache.remember("agent", "key", answer(1));

  now = 299_999;
  assertEquals(cache.find("agent", "key"), answer(1));
  assertEquals(cache.find("chat", "key"), undefined);
  now = 300_000;
  assertEquals(cache.find("agent", "key"), undefined);
});

Deno.test("of more than a thousand answers the oldest are forgotten", () => {
  const cache = new IdempotencyCache(() => 0);
  for (let count = 0; count < 1_001; count++) cache.remember("chat", `${count}`, answer(count));

  assertEquals(cache.find("chat", "0"), undefined);
  assertEquals(cache.find("chat", "1"), answer(1));
});
