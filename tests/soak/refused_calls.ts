// One connection that calls what it may not, without end (X14, D16).

import { assert, assertEquals } from "@std/assert";
import { makePlace, megabytes, startGatewayProcess } from "../support/process.ts";
import { Member } from "../security/wire.ts";

const MAX_LOG_BYTES = 1_048_576;

export async function refusedCalls({ calls }: { calls: number }) {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  await using other = await Member.join({ port: place.port, scopes: ["operator.read"] });
  await using flooder = await Member.join({ port: place.port, scopes: ["operator.read"] });
  const request = { type: "req", id: "1", method: "system-event", params: { text: "x" } };
  const frame = JSON.stringify(request);
  const begin = performance.now();

  // It does not look at what comes back, the close frame included.
  flooder.pause();
  let served = 0;
  for (let sent = 0; sent < calls; sent += 500) {
    await Promise.all(Array.from({ length: 500 }, () => flooder.push(frame)));
    if (sent % 5_000 === 0) served += (await other.call("health")).ok ? 1 : 0;
  }
  flooder.resume();
  const close = await flooder.closed;
  const ms = performance.now() - begin;

  assertEquals(close, { code: 1008, reason: "repeated unauthorized calls" });
  assert(!other.isClosed && (await other.call("health")).ok, "the other one is not affected");
  const { stderr } = await gateway.stop();
  const log = await place.log();
  assert(log.length + stderr.length < MAX_LOG_BYTES, `${log.length} bytes of log`);
  assert(log.includes("missing scope: operator.admin"), log);
  return {
    "calls sent": calls,
    "done after": `${Math.round(ms)} ms`,
    "answers to the other one meanwhile": served,
    log: megabytes(log.length),
    stderr: megabytes(stderr.length),
  };
}
