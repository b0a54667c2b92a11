// Frames that look like requests and are not quite: made from the method table of the gateway itself,
// bent in every place, in an order that a seed repeats (X15).

import { assert, assertEquals } from "@std/assert";
import { Buffer } from "node:buffer";
import { makePlace, megabytes, startGatewayProcess } from "../support/process.ts";
import { type Json, Member, RawSocket } from "../security/wire.ts";

const MAX_GROWTH_BYTES = 100 * 1_048_576;
const BATCH = 50;

export async function fuzzFrames({ frames, seed }: { frames: number; seed: number }) {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  const random = randomOf(seed);
  await using watcher = await Member.join({ port: place.port });
  const methods: string[] = watcher.hello.features.methods;
  const before = gateway.memory().bytes;

  let sent = 0;
  let strangers = 0;
  while (sent < frames) {
    await using member = await Member.join({ port: place.port });
    const texts = Array.from({ length: BATCH }, () => oddRequest(random, methods));
    await Promise.all(texts.map((text) => member.push(text)));
    // Requests are taken in the order they come: what was sent has been read when this is answered.
    if (!member.isClosed) await Promise.race([member.ask("health"), member.closed]);
    sent += BATCH;
    strangers += await knock(place.port, random);
  }

  assertEquals((await watcher.call("health")).ok, true, `seed ${seed}`);
  const grown = gateway.memory().bytes - before;
  assert(grown < MAX_GROWTH_BYTES, `memory grew by ${megabytes(grown)}`);
  const { code, stdout, stderr } = await gateway.stop();
  const log = await place.log();
  assertEquals(code, 0, stderr);
  for (const fault of ["a method failed", "handshake failed", "Uncaught"]) {
    assert(!(log + stderr).includes(fault), `seed ${seed}: ${stderr}`);
  }
  assertEquals([...stdout.matchAll(/ZERO /g)].length, 1, "it was never restarted");
  return { seed, frames: sent, handshakes: strangers, "memory grown by": megabytes(grown) };
}

/** One connection of a stranger: an odd connect, or bytes with some of them changed. */
async function knock(port: number, random: Random): Promise<number> {
  using socket = await RawSocket.upgraded(port);
  const text = JSON.stringify({
    type: "req",
    id: "1",
    method: "connect",
    params: {
      minProtocol: 3,
      maxProtocol: random.below(6),
      client: { id: "cli", mode: "cli", version: "1", platform: "linux" },
      scopes: ["operator.read"],
      role: random.pick(["operator", "node", "OPERATOR", ""]),
      ...random.below(2) === 0 && { [random.pick(KEYS)]: oddValue(random, 3) },
    },
  });
  const bytes = Buffer.from(text);
  for (let changes = random.below(4); changes > 0; changes--) {
    bytes[random.below(bytes.length)] = random.below(256);
  }
  const first = random.below(3) === 0 ? [random.below(256), random.below(256)] : [0x81, 0xfe];
  const length = [bytes.length >> 8, bytes.length & 0xff];
  socket.write(Buffer.concat([Buffer.from([...first, ...length, 0, 0, 0, 0]), bytes]));
  socket.write(Buffer.from(Array.from({ length: random.below(64) }, () => random.below(256))));
  await Promise.race([socket.gone, new Promise((resolve) => setTimeout(resolve, 20))]);
  return 1;
}

/** A request in which something is wrong, or almost. */
function oddRequest(random: Random, methods: readonly string[]): string {
  // What changes the configuration may rightly restart the gateway, and is tested elsewhere.
  const safe = methods.filter((name) => !/config\.(set|patch|apply)$/.test(name));
  const frame: Json = {
    type: "req",
    id: random.pick(["1", "", "x".repeat(random.below(5_000)), oddValue(random, 1)]),
    method: random.below(20) === 0 ? oddValue(random, 1) : random.pick(safe),
    params: random.below(3) === 0 ? oddValue(random, 5) : oddParams(random),
  };
  if (random.below(10) === 0) delete frame[random.pick(Object.keys(frame))];
  if (random.below(10) === 0) frame[random.pick(KEYS)] = oddValue(random, 4);
  const text = JSON.stringify(frame);
  switch (random.below(12)) {
    case 0:
      return text.slice(0, random.below(text.length));
    case 1:
      return text.replace("{", `{"method":"status","__proto__":{"text":"x"},`);
    case 2:
      return text.replaceAll('"', random.pick(["'", '\\"', ""]));
    case 3:
      return `${"[".repeat(random.below(20_000))}${text}`;
    default:
      return text;
  }
}

function oddParams(random: Random): Json {
  const params: Json = {};
  for (let index = random.below(6); index > 0; index--) {
    // Defined, not assigned: `__proto__` shall be a key like any other.
    Object.defineProperty(params, random.pick(KEYS), {
      value: oddValue(random, 4),
      enumerable: true,
      configurable: true,
    });
  }
  return params;
}

function oddValue(random: Random, depth: number): Json {
  const kind = random.below(depth > 0 ? 12 : 9);
  if (kind === 0) return null;
  if (kind === 1) return random.below(2) === 0;
  if (kind === 2) return random.pick([0, -0, -1, 1e308, -1e308, 2 ** 53, 0.1, 5e-324, 9_999_999]);
  if (kind < 7) return random.pick(STRINGS);
  if (kind < 9) return "y".repeat(random.below(2_000));
  if (kind < 10) {
    return Array.from({ length: random.below(20) }, () => oddValue(random, depth - 1));
  }
  const value: Json = {};
  for (let index = random.below(8); index > 0; index--) {
    const options = { value: oddValue(random, depth - 1), enumerable: true, configurable: true };
    Object.defineProperty(value, random.pick(KEYS), options);
  }
  return value;
}

const KEYS = [
  ..."text mode enabled phase triggers probe cursor limit maxBytes method params id role scopes"
    .split(
      " ",
    ),
  ..."deviceId requestId instanceId host ip tags reason lastInputSeconds auth device client".split(
    " ",
  ),
  "__proto__",
  "constructor",
  "prototype",
  "toString",
  "hasOwnProperty",
  "",
  "a.b",
  "\0",
  "0",
];

const STRINGS = [
  "",
  " ",
  "now",
  "operator.admin",
  "__proto__",
  "\ud800",
  "\udc00\ud800",
  "\u202e\u0000\u001b[31m",
  "../../../etc/passwd",
  "' OR 1=1; DROP TABLE devices; --",
  "${HOME}",
  "%s%n%x",
  "🦀".repeat(50),
  "Node: a (b) · app c · last input 9s ago · mode d · reason e",
  `Node: ${"·".repeat(500)}`,
  `Node: ${" (".repeat(500)}`,
  "1e999",
];

interface Random {
  /** From 0 to `limit` - 1. */
  below(limit: number): number;
  pick<T>(from: readonly T[]): T;
}

/** Mulberry32: small, and the same on every machine. */
function randomOf(seed: number): Random {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const below = (limit: number) => Math.floor(next() * limit);
  return { below, pick: (from) => from[below(from.length)] };
}
