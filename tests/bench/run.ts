// `deno task bench`: the gateway against a bare `ws` server, in the same run. The servers stand on
// one core and the load on another, and they take turns, so that whatever else the machine does
// happens to both. Each section below is one kind of load.
//
// --only NAME   one section: requests, handshakes, devices, ramp, fanout, start, health
// --quick       fewer and shorter rounds
//
// With ZERO_BINARY set to a compiled binary, its start and its memory are measured beside those of
// `deno run`.

import { cpuUsage } from "node:process";
// @ts-types="../../config/std_cli.d.ts"
import { parseArgs } from "@std/cli/parse-args";
import { type Guest, guestsWithDevices, type Knock, knockBare, knockGateway } from "./clients.ts";
import {
  fanOut,
  ramp,
  request,
  shakeHands,
  type Speed,
  TALK_MODE_CALL,
  TALK_MODE_EVENT,
} from "./loads.ts";
import { type Finding, formatTable, isMet, median } from "./report.ts";
import {
  type Cores,
  denoRun,
  environment,
  freePort,
  pinLoad,
  type Server,
  startBare,
  startGateway,
  wallTime,
  zeroFromSources,
} from "./servers.ts";
import { Wire } from "./wire.ts";

interface Bench {
  isQuick: boolean;
  cores: Cores;
  /**
   * How busy load and server were in each turn of `requests`, 0–1. A server that is not busy all the
   * time waits for the load, and then it is the load that was measured.
   */
  effort: { load: number; server: number }[];
  notes: string[];
}

const SECTIONS: Record<string, (bench: Bench) => Promise<Finding[]>> = {
  requests: measureRequests,
  handshakes: measureHandshakes,
  devices: measureDevices,
  ramp: measureRamp,
  fanout: measureFanOut,
  start: measureStart,
  health: measureHealth,
};
const SHAPES = [
  { connections: 1, inFlight: 1, atLeast: 0.85 },
  { connections: 32, inFlight: 1, atLeast: 0.75 },
  { connections: 32, inFlight: 16, atLeast: 0.75 },
  { connections: 256, inFlight: 1, atLeast: 0.75 },
];
const RAMP_CONNECTIONS = 2_000;
const FAN_OUT_CLIENTS = 500;
/** By then news of presence and health have gone out and a collection of garbage may have come. */
const SETTLE_MS = 2_500;
const MEBIBYTE = 1_048_576;

if (import.meta.main) {
  const { only, quick } = parseArgs(Deno.args, { string: ["only"], boolean: ["quick"] });
  const names = only ? [String(only)] : Object.keys(SECTIONS);
  if (!SECTIONS[names[0]]) {
    console.error(`There is no ${only}; there are ${Object.keys(SECTIONS).join(", ")}`);
    Deno.exit(2);
  }
  await run(names, Boolean(quick));
}

async function run(names: string[], isQuick: boolean) {
  const begin = performance.now();
  const bench: Bench = { isQuick, cores: await pinLoad(), effort: [], notes: [] };
  console.log(
    bench.cores.isPinned ? "Servers on core 0, load on core 1" : "Nothing is pinned here",
  );
  const findings: Finding[] = [];
  for (const name of names) {
    const from = performance.now();
    findings.push(...await SECTIONS[name](bench));
    console.log(`${name}: ${((performance.now() - from) / 1_000).toFixed(1)} s`);
  }
  console.log(`\n${formatTable(findings)}\n`);
  for (const note of bench.notes) console.log(note);
  if (bench.effort.length > 0) {
    const percent = (side: "load" | "server") =>
      `${(median(bench.effort.map((one) => one[side])) * 100).toFixed(0)} %`;
    console.log(`Busy during requests: servers ${percent("server")}, load ${percent("load")}`);
  }
  const missed = findings.filter((finding) => isMet(finding) === false).length;
  const seconds = ((performance.now() - begin) / 1_000).toFixed(0);
  console.log(
    `${missed === 0 ? "Every target is met" : `${missed} targets are missed`}; ${seconds} s`,
  );
}

async function measureRequests(bench: Bench): Promise<Finding[]> {
  const { isQuick } = bench;
  await using bare = await startBare(bench.cores);
  await using gateway = await startGateway(bench.cores.server);
  const findings: Finding[] = [];
  for (const { connections, inFlight, atLeast } of SHAPES) {
    const guests = Array.from({ length: connections }, (): Guest => ({}));
    const echoes = await connectAll(bare, knockBare, guests);
    const callers = await connectAll(gateway, knockGateway, guests);
    const turnMs = isQuick ? 300 : 800;
    const speeds = await compare({
      rounds: isQuick ? 3 : 7,
      bare: () => watch(bench, bare, () => request(echoes, inFlight, turnMs)),
      ours: () => watch(bench, gateway, () => request(callers, inFlight, turnMs)),
    });
    for (const wire of [...echoes, ...callers]) wire.close();
    const of = (name: keyof Speed) => ({
      bare: speeds.bare.map((speed) => speed[name]),
      ours: speeds.ours.map((speed) => speed[name]),
      target: { ratioAtLeast: atLeast },
    });
    const shape = `last-heartbeat ${connections}×${inFlight}`;
    findings.push(
      { metric: `${shape}, rate`, unit: "/s", isRate: true, ...of("perSecond") },
      { metric: `${shape}, p50`, unit: "ms", ...of("p50") },
      { metric: `${shape}, p99`, unit: "ms", ...of("p99") },
    );
  }
  return findings;
}

async function measureHandshakes(bench: Bench): Promise<Finding[]> {
  await using bare = await startBare(bench.cores);
  await using gateway = await startGateway(bench.cores.server);
  const findings: Finding[] = [];
  for (const mode of ["cli", "backend"] as const) {
    const guests = Array.from({ length: bench.isQuick ? 300 : 1_000 }, (): Guest => ({ mode }));
    const rates = await compare({
      rounds: bench.isQuick ? 2 : 5,
      bare: () => shakeHands(bare, knockBare, guests),
      ours: () => shakeHands(gateway, knockGateway, guests),
    });
    const metric = mode === "cli" ? "handshake with the token" : "the same, listed in presence";
    findings.push({
      metric,
      unit: "/s",
      isRate: true,
      ...rates,
      target: { ratioAtLeast: 0.5 },
    });
  }
  return findings;
}

async function measureDevices(bench: Bench): Promise<Finding[]> {
  await using bare = await startBare(bench.cores);
  await using gateway = await startGateway(bench.cores.server);
  const perRound = bench.isQuick ? 300 : 1_000;
  let guests: Guest[] = [];
  const rates = await compare({
    rounds: bench.isQuick ? 2 : 7,
    prepare: () => guests = guestsWithDevices(perRound),
    bare: () => shakeHands(bare, knockBare, guests),
    ours: () => shakeHands(gateway, knockGateway, guests),
  });
  const shares = rates.ours.map((rate, round) => rate / rates.bare[round]);
  const few = Math.max(1, Math.floor(shares.length / 3));
  const perSecond = (rate: number) => `${Math.round(rate)}/s`;
  bench.notes.push(
    `The first ${perRound} new devices came in at ${perSecond(rates.ours[0])}, the last at ` +
      `${perSecond(rates.ours.at(-1)!)}; the bare server's clients beside them at ` +
      `${perSecond(rates.bare[0])} and ${perSecond(rates.bare.at(-1)!)}`,
  );
  return [
    {
      metric: "handshake of a new device",
      unit: "/s",
      isRate: true,
      ...rates,
      target: { ratioAtLeast: 0.5 },
    },
    {
      metric: `that ratio at ${perRound * shares.length} devices, to that at the start`,
      unit: "×",
      ours: [median(shares.slice(-few)) / median(shares.slice(0, few))],
    },
  ];
}

/** Until 2,000 clients that presence lists are ready, what they take then, and what they are sent. */
async function measureRamp(bench: Bench): Promise<Finding[]> {
  const { cores, isQuick } = bench;
  const connections = isQuick ? 500 : RAMP_CONNECTIONS;
  const guests = Array.from({ length: connections }, (): Guest => ({ mode: "backend" }));
  const climb = async (server: Server, knock: Knock) => {
    await using _ = server;
    await shakeHands(server, knock, guests.slice(0, 200));
    await settle();
    const before = server.memory();
    const { wires, tookMs } = await ramp(server, knock, guests);
    await settle();
    const memory = (server.memory() - before) / connections;
    const sentBytes = wires.reduce((sum, { receivedBytes }) => sum + receivedBytes, 0);
    const greetingBytes = Math.max(...wires.map((wire) => wire.greetingBytes));
    for (const wire of wires) wire.close();
    return { tookMs, memory, sentBytes, greetingBytes };
  };
  const { bare, ours } = await compare({
    rounds: isQuick ? 1 : 3,
    bare: async () => climb(await startBare(cores), knockBare),
    ours: async () => climb(await startGateway(cores.server), knockGateway),
  });
  const sent = median(ours.map(({ sentBytes }) => sentBytes)) / MEBIBYTE;
  const hello = Math.max(...ours.map(({ greetingBytes }) => greetingBytes)) / 1_024;
  bench.notes.push(
    `While ${connections} clients arrived the gateway sent ${sent.toFixed(1)} MiB in all; ` +
      `the largest hello-ok was ${hello.toFixed(1)} KiB`,
  );
  return [
    {
      metric: `ramp to ${connections} connections`,
      unit: "ms",
      bare: bare.map(({ tookMs }) => tookMs),
      ours: ours.map(({ tookMs }) => tookMs),
      target: { ratioAtMost: 3 },
    },
    {
      metric: `memory of an idle connection at ${connections}`,
      unit: "KiB",
      bare: bare.map(({ memory }) => memory / 1_024),
      ours: ours.map(({ memory }) => memory / 1_024),
      target: { ratioAtMost: 1.5 },
    },
  ];
}

async function measureFanOut(bench: Bench): Promise<Finding[]> {
  await using bare = await startBare(bench.cores);
  await using gateway = await startGateway(bench.cores.server);
  const guests = Array.from({ length: FAN_OUT_CLIENTS }, (): Guest => ({}));
  const echoes = await connectAll(bare, knockBare, guests);
  const clients = await connectAll(gateway, knockGateway, guests);
  const broadcaster = await Wire.open(bare.port, "/broadcast");
  const caller = await knockGateway(gateway);
  const drained = [broadcaster.drain(), caller.drain()];
  await settle();
  const times = bench.isQuick ? 10 : 30;
  const took = await compare({
    rounds: bench.isQuick ? 3 : 7,
    bare: async () => median(await fanOut(echoes, () => broadcaster.send(TALK_MODE_EVENT), times)),
    ours: async () => median(await fanOut(clients, () => caller.send(TALK_MODE_CALL), times)),
  });
  for (const wire of [...echoes, ...clients, broadcaster, caller]) wire.close();
  await Promise.all(drained);
  return [{
    metric: `event to ${FAN_OUT_CLIENTS} clients, last has it`,
    unit: "ms",
    ...took,
    target: { ratioAtMost: 1.2 },
  }];
}

/** From the start of the process, on a new state directory, to the first hello-ok. */
async function measureStart({ cores, isQuick }: Bench): Promise<Finding[]> {
  const binary = Deno.env.get("ZERO_BINARY");
  const programs = [
    ...(binary ? [{ name: "binary", program: [binary], isJudged: true }] : []),
    { name: "deno run", program: zeroFromSources(), isJudged: false },
  ];
  const findings: Finding[] = [];
  for (const { name, program, isJudged } of programs) {
    const starts: number[] = [];
    const memory: number[] = [];
    for (let round = 0; round < (isQuick ? 2 : 5); round++) {
      const begin = performance.now();
      await using gateway = await startGateway(cores.all, { program, port: freePort() });
      const wire = await knockGateway(gateway);
      starts.push(performance.now() - begin);
      wire.close();
      await settle();
      memory.push(gateway.memory() / MEBIBYTE);
    }
    findings.push(
      {
        metric: `start to the first hello-ok, ${name}`,
        unit: "ms",
        ours: starts,
        ...(isJudged && { target: { atMost: 250 } }),
      },
      {
        metric: `idle memory, ${name}`,
        unit: "MiB",
        ours: memory,
        ...(isJudged && { target: { atMost: 80 } }),
      },
    );
  }
  return findings;
}

async function measureHealth(bench: Bench): Promise<Finding[]> {
  const { cores, isQuick } = bench;
  await using gateway = await startGateway(cores.server);
  const clientDir = await Deno.makeTempDir({ prefix: "zero-bench-" });
  const env = environment(clientDir);
  const health = [...zeroFromSources(), "health", "--json", "--port", String(gateway.port)];
  const took = await compare({
    rounds: isQuick ? 5 : 15,
    bare: () => wallTime([...cores.all, ...denoRun("empty.ts")], env),
    ours: () => wallTime([...cores.all, ...health], env),
  });
  await Deno.remove(clientDir, { recursive: true });
  return [{
    metric: "zero health --json, and an empty program",
    unit: "ms",
    ...took,
    target: { ratioAtMost: 3 },
  }];
}

/** Lets both have their turn in each round; who begins changes from one to the next. */
async function compare<T>(
  { rounds, prepare, bare, ours }: {
    rounds: number;
    prepare?: () => void;
    bare: () => Promise<T>;
    ours: () => Promise<T>;
  },
): Promise<{ bare: T[]; ours: T[] }> {
  const found = { bare: [] as T[], ours: [] as T[] };
  const turns = [{ take: bare, into: found.bare }, { take: ours, into: found.ours }];
  for (let round = 0; round < rounds; round++) {
    prepare?.();
    for (const { take, into } of round % 2 === 0 ? turns : turns.toReversed()) {
      into.push(await take());
    }
  }
  return found;
}

/** Notes how busy both sides are during `work`. */
async function watch<T>({ effort }: Bench, server: Server, work: () => Promise<T>): Promise<T> {
  const before = { usage: cpuUsage(), workedMs: server.workedMs(), ms: performance.now() };
  const result = await work();
  const tookMs = performance.now() - before.ms;
  const { user, system } = cpuUsage(before.usage);
  effort.push({
    load: (user + system) / 1_000 / tookMs,
    server: (server.workedMs() - before.workedMs) / tookMs,
  });
  return result;
}

async function connectAll(server: Server, knock: Knock, guests: Guest[]) {
  const wires: Wire[] = [];
  for (const guest of guests) wires.push(await knock(server, guest));
  return wires;
}

function settle(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
}
