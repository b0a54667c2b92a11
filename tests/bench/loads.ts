// The loads themselves. Each one does exactly the same to either server and returns what it took.

import type { Guest, Knock } from "./clients.ts";
import { quantile } from "./report.ts";
import type { Server } from "./servers.ts";
import { idOf, isEvent, RequestBlock, requestText, textFrame, type Wire } from "./wire.ts";

export interface Speed {
  /** Answers a second. */
  perSecond: number;
  /** Milliseconds. */
  p50: number;
  p99: number;
}

/** Sends `inFlight` requests on each connection and a new one for every answer. */
export async function request(wires: Wire[], inFlight: number, durationMs: number): Promise<Speed> {
  const begin = performance.now();
  const latencies: number[] = [];
  await Promise.all(wires.map((wire) => keepAsking(wire, inFlight, begin + durationMs, latencies)));
  const tookMs = performance.now() - begin;
  const sorted = Float64Array.from(latencies).sort();
  return {
    perSecond: latencies.length / tookMs * 1_000,
    p50: quantile(sorted, 0.5),
    p99: quantile(sorted, 0.99),
  };
}

async function keepAsking(wire: Wire, inFlight: number, untilMs: number, latencies: number[]) {
  const block = new RequestBlock(inFlight, "last-heartbeat");
  const sentAtMs = new Float64Array(inFlight);
  let sent = 0;
  let answered = 0;
  const ask = async (count: number) => {
    const now = performance.now();
    for (let index = 0; index < count; index++) sentAtMs[(sent + index) % inFlight] = now;
    sent += count;
    await wire.send(block.numbered(sent - count, count));
  };
  await ask(inFlight);
  while (answered < sent) {
    if (!await wire.fill()) throw new Error("The server hung up");
    const now = performance.now();
    let count = 0;
    for (let frame = wire.take(); frame; frame = wire.take()) {
      if (isEvent(frame)) continue;
      if (idOf(frame) !== answered) throw new Error("The answers came out of order");
      latencies.push(now - sentAtMs[answered++ % inFlight]);
      count++;
    }
    if (count > 0 && now < untilMs) await ask(count);
  }
}

/** Opens connections and drops each as soon as it is ready. @returns handshakes a second */
export async function shakeHands(server: Server, knock: Knock, guests: Guest[]): Promise<number> {
  const begin = performance.now();
  await inParallel(guests, async (guest) => (await knock(server, guest)).close());
  return guests.length / (performance.now() - begin) * 1_000;
}

/** Opens connections and keeps them. @returns them, and the milliseconds until the last was ready */
export async function ramp(
  server: Server,
  knock: Knock,
  guests: Guest[],
): Promise<{ wires: Wire[]; tookMs: number }> {
  const begin = performance.now();
  const wires: Wire[] = [];
  await inParallel(guests, async (guest) => {
    const wire = await knock(server, guest);
    wires.push(wire);
    void wire.drain();
  });
  return { wires, tookMs: performance.now() - begin };
}

/**
 * Has one event sent to all, several times.
 *
 * @param cause sends what makes the server do it
 * @returns milliseconds from then until the last of `wires` has the event, each time
 */
export async function fanOut(
  wires: Wire[],
  cause: () => Promise<void>,
  times: number,
): Promise<number[]> {
  const took: number[] = [];
  for (let time = 0; time < times; time++) {
    const all = Promise.all(wires.map(talkMode));
    const begin = performance.now();
    await cause();
    await all;
    took.push(performance.now() - begin);
  }
  return took;
}

/** The call that makes the gateway send {@link TALK_MODE_EVENT} to everybody. */
export const TALK_MODE_CALL = textFrame(requestText("1", "talk.mode", { enabled: true }));

export const TALK_MODE_EVENT = textFrame(JSON.stringify({
  type: "event",
  event: "talk.mode",
  payload: { enabled: true, phase: null, ts: 1_760_000_000_000 },
  seq: 100,
}));

/** Waits for the event; others, such as news of the gateway's health, may come in between. */
async function talkMode(wire: Wire) {
  for (;;) {
    const frame = await wire.next();
    if (TALK_MODE_BEGIN.every((byte, at) => frame[at] === byte)) return;
  }
}

const TALK_MODE_BEGIN = new TextEncoder().encode('{"type":"event","event":"talk');

async function inParallel(guests: Guest[], work: (guest: Guest) => Promise<void>) {
  const queue = guests.values();
  const worker = async () => {
    for (const guest of queue) await work(guest);
  };
  await Promise.all(Array.from({ length: CONCURRENT_KNOCKS }, worker));
}

const CONCURRENT_KNOCKS = 32;
