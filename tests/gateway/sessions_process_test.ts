// Transcripts in a gateway that is killed while messages come in.

import { assert, assertEquals } from "@std/assert";
import { type Json, Member } from "../security/wire.ts";
import { makePlace, startGatewayProcess } from "../support/process.ts";

const ROUNDS = 3;
const SESSIONS = 4;
const KILLED_AFTER = 40;

Deno.test("after kill -9 in the middle of conversations every acknowledged message is in its place", async () => {
  await using place = await makePlace();
  /** Session → texts that were acknowledged, in their order. */
  const acknowledged = Array.from({ length: SESSIONS }, () => [] as string[]);
  for (let round = 0; round < ROUNDS; round++) {
    await using gateway = await startGatewayProcess({ place });
    await using member = await Member.join({ port: place.port });
    const enough = Promise.withResolvers<void>();
    let count = 0;
    const talks = acknowledged.map(async (texts, session) => {
      const sessionKey = `talk-${session}`;
      try {
        await member.call("sessions.patch", { key: sessionKey, verboseLevel: "on" });
        for (let index = 0;; index++) {
          const message = `${session}.${round}.${index}`;
          await member.call("chat.inject", { sessionKey, message });
          texts.push(message);
          if (++count === KILLED_AFTER) enough.resolve();
        }
      } catch {
        // The gateway was killed: what was under way has not been acknowledged.
      }
    });
    await enough.promise;
    await gateway.stop("SIGKILL");
    await Promise.all(talks);
  }

  await using _gateway = await startGatewayProcess({ place });
  await using member = await Member.join({ port: place.port });
  for (const [session, texts] of acknowledged.entries()) {
    const sessionKey = `talk-${session}`;
    const { messages } = await member.call("chat.history", { sessionKey, limit: 1_000 });
    const kept: string[] = messages.map((one: Json) => one.content[0].text);
    const answered = new Set(texts);
    assertEquals(kept.filter((text) => answered.has(text)), texts);
    // One a round may have been kept and not been acknowledged.
    assert(kept.length <= texts.length + ROUNDS, `${kept.length} of ${texts.length}`);
    const { hits } = await member.call("sessions.search", {
      query: texts.at(-1)!,
      key: sessionKey,
    });
    assertEquals(hits.length > 0, true, "the last one is not found");
  }
});
