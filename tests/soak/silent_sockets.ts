// Peers that stand at the door and say nothing, or next to nothing (X13).

import { assert } from "@std/assert";
import { eventually, makePlace, megabytes, startGatewayProcess } from "../support/process.ts";
import { Member, RawSocket, upgradeRequest } from "../security/wire.ts";

/** What the test's own end needs beside the sockets. */
const SPARE_DESCRIPTORS = 500;
const MAX_GROWTH_BYTES = 150 * 1_048_576;

/**
 * Half of the sockets never send a byte, half open a WebSocket and say nothing, and some send their
 * upgrade a byte at a time.
 */
export async function silentSockets({ sockets: wanted }: { sockets: number }) {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  const count = Math.min(wanted, descriptorLimit() - SPARE_DESCRIPTORS);
  if (count < wanted) console.log(`only ${count} sockets: the limit of open files is low`);
  const idle = gateway.descriptors();
  const before = gateway.memory().bytes;
  using stack = new DisposableStack();

  const begin = performance.now();
  const sockets: RawSocket[] = [];
  for (let done = 0; done < count; done += 100) {
    const batch = Array.from({ length: Math.min(100, count - done) }, (_, index) => {
      // No source address stands out.
      const from = `127.0.1.${1 + (done + index) % 250}`;
      return index % 2 === 0
        ? RawSocket.open(place.port, { from })
        : RawSocket.upgraded(place.port, { from });
    });
    for (const socket of await Promise.all(batch)) sockets.push(stack.use(socket));
  }
  for (let index = 0; index < 20; index++) sockets.push(stack.use(await dawdler(place.port)));
  const openedMs = performance.now() - begin;
  const operatorBegin = performance.now();
  await using operator = await Member.join({ port: place.port });
  await operator.call("health");
  const operatorMs = performance.now() - operatorBegin;
  const standing = sockets.filter((socket) => !socket.isGone).length;
  assert(standing === sockets.length, `only ${standing} stood there when the operator was served`);
  const grown = gateway.memory().bytes - before;
  assert(grown < MAX_GROWTH_BYTES, `memory grew by ${megabytes(grown)}`);

  // Its own connection is the one that stays.
  await eventually(
    "the silent sockets are let go after the deadline",
    () => gateway.descriptors() <= idle + 1,
    { deadlineMs: 40_000, everyMs: 200 },
  );
  const releasedMs = performance.now() - begin;
  await operator.call("health");
  return {
    sockets: sockets.length,
    "opened in": `${Math.round(openedMs)} ms`,
    "operator served in": `${Math.round(operatorMs)} ms`,
    "memory grown by": megabytes(grown),
    "all released after": `${(releasedMs / 1_000).toFixed(1)} s`,
  };
}

/** Sends its upgrade at one byte a second. */
async function dawdler(port: number): Promise<RawSocket> {
  const socket = await RawSocket.open(port, { from: "127.0.2.1" });
  const text = upgradeRequest(port);
  let sent = 0;
  const timer = setInterval(() => socket.write(text[sent++]), 1_000);
  socket.gone.then(() => clearInterval(timer));
  return socket;
}

function descriptorLimit(): number {
  const limits = Deno.readTextFileSync("/proc/self/limits");
  return Number(/Max open files\s+(\d+)/.exec(limits)?.[1] ?? 1_024);
}
