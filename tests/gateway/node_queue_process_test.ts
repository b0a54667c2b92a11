// The queue for sleeping nodes in a gateway that is killed at the worst moments.

import { assert, assertEquals } from "@std/assert";
import { generateIdentity, type Identity } from "../../rpc/identity.ts";
import { type Json, Member } from "../security/wire.ts";
import { eventually, makePlace, type Place, startGatewayProcess } from "../support/process.ts";

const CALLS = 30;
const KILLED_AFTER = 7;

/**
 * A node of this device.
 *
 * @param seen told of each invocation as it comes, and whether it is to be answered
 */
async function joinNode(
  { port }: Place,
  identity: Identity,
  seen: (word: string, count: number) => boolean,
): Promise<Member> {
  let count = 0;
  const joining: Promise<Member> = Member.join({
    port,
    identity,
    role: "node",
    scopes: [],
    client: { id: "node-host", mode: "node", platform: "linux", version: "1" },
    extra: { commands: ["system.which"], caps: ["system"] },
    onText(text) {
      const { event, payload } = JSON.parse(text.toString());
      if (event !== "node.invoke.request") return;
      const { id, nodeId, paramsJSON } = payload;
      if (!seen(JSON.parse(paramsJSON).word, ++count)) return;
      const params = { id, nodeId, ok: true, payloadJSON: paramsJSON };
      const frame = { type: "req", id: `result-${id}`, method: "node.invoke.result", params };
      joining.then((member) => member.push(JSON.stringify(frame)));
    },
  });
  return await joining;
}

Deno.test("a gateway that is killed while it queues and while it sends loses nothing and sends nothing twice", async () => {
  await using place = await makePlace();
  const identity = await generateIdentity();
  const acknowledged = new Map<string, string>();
  const received: string[] = [];

  // Paired, and gone.
  {
    await using gateway = await startGatewayProcess({ place });
    await using _node = await joinNode(place, identity, () => true);
    await gateway.stop();
  }
  // Killed while it takes invocations in.
  {
    await using gateway = await startGatewayProcess({ place });
    await using operator = await Member.join({ port: place.port });
    const enough = Promise.withResolvers<void>();
    const calls = Array.from({ length: CALLS }, async (_, index) => {
      const word = `word-${index}`;
      const { ok, payload } = await operator.ask("node.invoke", {
        nodeId: identity.deviceId,
        command: "system.which",
        params: { word },
        idempotencyKey: word,
        queue: { ttlMs: 3_600_000 },
      });
      if (!ok) return;
      assertEquals(payload.queued, true);
      acknowledged.set(payload.queueId, word);
      if (acknowledged.size === KILLED_AFTER) enough.resolve();
    });
    await enough.promise;
    await gateway.stop("SIGKILL");
    await Promise.all(calls);
  }
  // Killed while it sends: one has been received and not answered.
  {
    await using gateway = await startGatewayProcess({ place });
    await using operator = await Member.join({ port: place.port });
    const { entries } = await operator.call("node.queue.list");
    const waiting = entries.filter((entry: Json) => entry.state === "waiting");
    for (const queueId of acknowledged.keys()) {
      assert(waiting.some((entry: Json) => entry.queueId === queueId), "an invocation is lost");
    }
    const enough = Promise.withResolvers<void>();
    await using _node = await joinNode(place, identity, (word, count) => {
      received.push(word);
      if (count === 3) enough.resolve();
      return count < 3;
    });
    await enough.promise;
    await gateway.stop("SIGKILL");
  }

  await using _gateway = await startGatewayProcess({ place });
  await using operator = await Member.join({ port: place.port });
  await using _node = await joinNode(place, identity, (word) => {
    received.push(word);
    return true;
  });
  let entries: Json[] = [];
  await eventually("everything has ended", async () => {
    entries = (await operator.call("node.queue.list")).entries;
    return entries.every(({ state }) => state === "done" || state === "failed");
  });

  const failed = entries.filter(({ state }) => state === "failed");
  assertEquals(failed.map(({ delivery }) => delivery), ["unknown"]);
  assertEquals(new Set(received).size, received.length, "an invocation was sent twice");
  assertEquals(received.length, entries.length);
  for (const word of acknowledged.values()) assert(received.includes(word), `${word} is lost`);
});
