// Many clients at once: what their coming and going costs those who are there already.

import { assert, assertEquals } from "@std/assert";
import { makePlace, megabytes, startGatewayProcess } from "../support/process.ts";
import { Member } from "../security/wire.ts";

const MAX_HELLO_BYTES = 65_536;
/** Connects under way at a time. */
const PARALLEL = 64;

export async function connectionStorm(
  { clients, watchers }: { clients: number; watchers: number },
) {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  await using stack = new AsyncDisposableStack();
  const counts = Array.from({ length: watchers }, () => ({ presence: 0, health: 0, bytes: 0 }));
  const begin = performance.now();
  for (const count of counts) {
    const onText = (text: { length: number; subarray(from: number, to: number): unknown }) => {
      const [, name] = /"event":"(\w+)"/.exec(String(text.subarray(0, 64))) ?? [];
      if (name === "presence" || name === "health") count[name]++;
      count.bytes += text.length;
    };
    stack.use(await Member.join({ port: place.port, scopes: ["operator.read"], onText }));
  }

  const largest = { hello: 0 };
  const refusals: unknown[] = [];
  const arrived: Member[] = [];
  let next = 0;
  const arrive = async () => {
    while (next < clients) {
      const index = next++;
      try {
        const member = await Member.join({
          port: place.port,
          from: `127.0.1.${1 + index % 250}`,
          scopes: ["operator.read"],
          client: {
            id: "gateway-client",
            mode: "backend",
            displayName: `A client of the storm with the number ${index}`,
            instanceId: `storm-${index}`,
          },
        });
        largest.hello = Math.max(largest.hello, JSON.stringify(member.hello).length);
        arrived.push(stack.use(member));
      } catch (error) {
        refusals.push(error);
      }
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, arrive));
  const arrivedMs = performance.now() - begin;
  const memory = gateway.memory().bytes;
  await Promise.all(arrived.map((member) => member[Symbol.asyncDispose]()));
  await using last = await Member.join({ port: place.port });
  await last.call("health");
  const seconds = (performance.now() - begin) / 1_000;

  assertEquals(refusals, []);
  assert(largest.hello < MAX_HELLO_BYTES, `hello-ok of ${largest.hello} bytes`);
  for (const { presence, health } of counts) {
    // One a second, and one at either end.
    const most = Math.ceil(seconds) + 1;
    assert(presence > 0, "nobody was told of anybody");
    assert(presence <= most, `${presence} presence events in ${seconds} s`);
    assert(health <= most, `${health} health events in ${seconds} s`);
  }
  return {
    clients,
    watchers,
    "arrived in": `${Math.round(arrivedMs)} ms`,
    "presence events a watcher got": counts[0].presence,
    "health events a watcher got": counts[0].health,
    "sent to all watchers": megabytes(counts.reduce((sum, { bytes }) => sum + bytes, 0)),
    "largest hello-ok": `${largest.hello} bytes`,
    "memory with all connected": megabytes(memory),
  };
}
