// kill -9 in the middle of work, and what the next start finds.

import { assert, assertEquals } from "@std/assert";
import { DatabaseSync } from "node:sqlite";
import { generateIdentity, type Identity } from "../../rpc/identity.ts";
import { makePlace, pause, type Place, startGatewayProcess } from "../support/process.ts";
import { type Json, Member } from "../security/wire.ts";

/** What a gateway has said yes to. */
interface Acknowledged {
  devices: { identity: Identity; deviceToken: string }[];
  /** Wake words as they were last confirmed, and those that were asked for when it died. */
  words: Json[];
  events: string[];
}

const WORKERS = 4;

export async function killRounds({ rounds }: { rounds: number }) {
  await using place = await makePlace();
  const acknowledged: Acknowledged = { devices: [], words: [], events: [] };
  let slowestStartMs = 0;
  let checked = 0;
  for (let round = 0; round < rounds; round++) {
    const begin = performance.now();
    await using gateway = await startGatewayProcess({ place });
    slowestStartMs = Math.max(slowestStartMs, performance.now() - begin);
    checked += await check(place, acknowledged, { isThorough: false });

    const storm = keepBusy(place, round, acknowledged);
    // Long enough for some of everything to be acknowledged, and never at rest.
    await pause(60 + (round * 37) % 120);
    const { signal } = await gateway.stop("SIGKILL");
    await storm;

    assertEquals(signal, "SIGKILL");
    assertIntact(place);
  }
  await using gateway = await startGatewayProcess({ place });
  checked += await check(place, acknowledged, { isThorough: true });
  assertEquals((await gateway.stop()).code, 0);
  assert(acknowledged.devices.length > rounds, "hardly anything was acknowledged");
  return {
    "killed and started": rounds,
    "devices paired": acknowledged.devices.length,
    "device tokens checked": checked,
    "system events queued": acknowledged.events.length,
    "slowest start": `${Math.round(slowestStartMs)} ms`,
  };
}

/** Pairs, sets and queues until the gateway is gone; notes only what was answered. */
async function keepBusy(place: Place, round: number, acknowledged: Acknowledged) {
  const untilGone = async (work: (index: number) => Promise<void>) => {
    try {
      for (let index = 0;; index++) await work(index);
    } catch {
      // The gateway was killed: what was under way has not been acknowledged.
    }
  };
  const pairing = Array.from({ length: WORKERS }, () =>
    untilGone(async () => {
      const identity = await generateIdentity();
      await using member = await Member.join({ port: place.port, identity });
      acknowledged.devices.push({ identity, deviceToken: member.hello.auth.deviceToken });
    }));
  const talking = untilGone(async () => {
    await using member = await Member.join({ port: place.port });
    for (let index = 0;; index++) {
      const text = `event ${round}-${index}`;
      const { ok } = await member.call("wake", { mode: "next-heartbeat", text });
      if (ok) acknowledged.events.push(text);
      const triggers = [`word ${round}-${index}`];
      acknowledged.words.push(triggers);
      await member.call("voicewake.set", { triggers });
      acknowledged.words = [triggers];
    }
  });
  await Promise.all([...pairing, talking]);
}

/** @returns how many device tokens were tried */
async function check(
  place: Place,
  { devices, words, events }: Acknowledged,
  { isThorough }: { isThorough: boolean },
): Promise<number> {
  await using member = await Member.join({ port: place.port });
  const { triggers } = await member.call("voicewake.get");
  const isKnown = words.some((one) => JSON.stringify(one) === JSON.stringify(triggers));
  assert(isKnown || words.length === 0, `the wake words became ${triggers}`);
  const { queuedSystemEvents } = await member.call("status");
  const queued = new Set(queuedSystemEvents);
  // The queue keeps the last thousand.
  const lost = events.slice(-500).filter((text) => !queued.has(text));
  assertEquals(lost, [], "acknowledged events are gone");
  const tried = isThorough ? devices : devices.slice(-10);
  for (const { identity, deviceToken } of tried) {
    await using device = await Member.join({
      port: place.port,
      identity,
      auth: { deviceToken },
    });
    assertEquals(device.hello.auth.method, "device-token");
  }
  return tried.length;
}

/** Looks at a copy, so that the gateway finds the files as they were left. */
function assertIntact({ home, database }: Place) {
  const copy = `${home}/copy.sqlite`;
  for (const suffix of ["", "-wal"]) Deno.copyFileSync(database + suffix, copy + suffix);
  const db = new DatabaseSync(copy);
  try {
    assertEquals(db.prepare("PRAGMA integrity_check").get()?.integrity_check, "ok");
    assertEquals(db.prepare("PRAGMA foreign_key_check").all(), []);
  } finally {
    db.close();
    for (const suffix of ["", "-wal", "-shm"]) {
      try {
        Deno.removeSync(copy + suffix);
      } catch {
        // Closing took it away.
      }
    }
  }
}
