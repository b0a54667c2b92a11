// Many at once: those who do not read, and those who all come together.

import { connectionStorm } from "../soak/storm.ts";
import { slowReader } from "../soak/slow_reader.ts";

Deno.test("a reader that stops reading is closed with a reason it gets, and 99 others miss nothing", async () => {
  await slowReader({ readers: 99 });
});

Deno.test("2,000 arrivals cost 20 watchers one presence and one health event a second at most", async () => {
  await connectionStorm({ clients: 2_000, watchers: 20 });
});
