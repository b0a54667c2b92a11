import { assertEquals } from "@std/assert";
import { Store } from "../../gateway/store.ts";
import { SystemEvents } from "../../gateway/system_events.ts";

Deno.test("events of a session are queued in their order, apart from those of others", () => {
  using store = Store.open(":memory:");
  const events = new SystemEvents(store);

  events.enqueue("agent:main:main", "one");
  events.enqueue("agent:other:main", "theirs");
  events.enqueue("agent:main:main", "two");

  assertEquals(events.queued("agent:main:main"), ["one", "two"]);
  assertEquals(events.queued("agent:other:main"), ["theirs"]);
  assertEquals(events.queued("nobody"), []);
});

Deno.test("beyond a thousand the oldest give way", () => {
  using store = Store.open(":memory:");
  const events = new SystemEvents(store);

  for (let count = 1; count <= 1_005; count++) events.enqueue("s", String(count));

  const queued = events.queued("s");
  assertEquals([queued.length, queued[0], queued.at(-1)], [1_000, "6", "1005"]);
});

Deno.test("what was accepted survives the end of the process", async () => {
  const path = await Deno.makeTempFile({ suffix: ".sqlite" });
  {
    using store = Store.open(path);
    new SystemEvents(store).enqueue("s", "kept");
  }

  {
    using store = Store.open(path);
    assertEquals(new SystemEvents(store).queued("s"), ["kept"]);
  }
  await Deno.remove(path);
});
