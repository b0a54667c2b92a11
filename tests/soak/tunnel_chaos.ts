// An ssh tunnel under a real sshd and a real gateway, broken in every way that breaks one: is the
// verdict right, how soon is the trouble found, and how soon does the gateway answer again? It runs in
// a network namespace of its own, so that packets can be dropped without anybody else noticing.

import { assert } from "@std/assert";
import {
  eventually,
  type GatewayProcess,
  makePlace,
  type Place,
  startGatewayProcess,
} from "../support/process.ts";
import { sshdObstacle, startSshd, type TestSshd } from "../support/sshd.ts";
import type { TunnelStatus } from "../../tunnel/state.ts";
import { Supervisor, type Timings } from "../../tunnel/supervisor.ts";

export const KINDS = [
  "kill ssh",
  "SIGSTOP ssh",
  "kill sshd's child",
  "drop all packets",
  "occupy the local port",
  "change the host key",
  "stop the gateway",
] as const;
export type Kind = typeof KINDS[number];
/** Found only when the gateway is asked the next time. */
const SLOW: readonly Kind[] = ["SIGSTOP ssh", "drop all packets", "stop the gateway"];

export interface Round {
  kind: Kind;
  /** From the trouble to the verdict. */
  foundMs: number;
  /** From the end of the trouble to the gateway's answer. */
  backMs: number;
}

export interface ChaosOptions {
  rounds: number;
  kinds?: readonly Kind[];
  /** Side by side, for the kinds that take longest. */
  lanes?: number;
  /** How long packets go on being dropped after that was found: any time up to this. */
  holdMs?: number;
  timings?: Partial<Timings>;
}

const DEADLINE_MS = 90_000;
const MAX_FOUND_MS = 45_000;
const MAX_BACK_MS = 5_000;
const EDGES_MS = [250, 500, 1_000, 2_000, 3_000, 4_000, 5_000];

/** @returns every round, and why packets cannot be dropped here, if so */
export async function tunnelRounds(
  options: ChaosOptions,
): Promise<{ rounds: Round[]; left?: string }> {
  if (sshdObstacle) throw new Error(`Cannot break tunnels: ${sshdObstacle}`);
  const obstacle = await namespaceObstacle();
  if (obstacle) {
    const kinds = (options.kinds ?? KINDS).filter((kind) => kind !== "drop all packets");
    return { rounds: await breakTunnels({ ...options, kinds }), left: obstacle };
  }
  const config = new URL("../../deno.json", import.meta.url).pathname;
  const program = [Deno.execPath(), "run", "-A", "--no-check", "--config", config];
  const child = new Deno.Command("unshare", {
    args: [
      "-n",
      "sh",
      "-c",
      'ip link set lo up && exec "$@"',
      "sh",
      ...program,
      new URL(import.meta.url).pathname,
      JSON.stringify(options),
    ],
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  const { success, stdout } = await child.output();
  const text = new TextDecoder().decode(stdout);
  if (!success) throw new Error(`the rounds failed: ${text}`);
  return { rounds: JSON.parse(text) };
}

/** For `deno task soak`. */
export async function tunnelChaos(options: ChaosOptions): Promise<Record<string, string | number>> {
  const { rounds, left } = await tunnelRounds(options);
  const figures: Record<string, string | number> = {};
  if (left) figures["drop all packets"] = `left out: ${left}`;
  for (const kind of KINDS) {
    const own = rounds.filter((round) => round.kind === kind);
    if (own.length === 0) continue;
    const found = spread(own.map(({ foundMs }) => foundMs));
    const back = spread(own.map(({ backMs }) => backMs));
    figures[`${kind}: rounds`] = own.length;
    figures[`${kind}: found after`] = found;
    figures[`${kind}: answers again after`] = back;
    figures[`${kind}: histogram`] = histogram(own.map(({ backMs }) => backMs));
  }
  for (const { kind, foundMs, backMs } of rounds) {
    assert(foundMs <= MAX_FOUND_MS, `${kind}: found after ${foundMs} ms`);
    assert(backMs <= MAX_BACK_MS, `${kind}: answers again after ${backMs} ms`);
  }
  return figures;
}

async function breakTunnels(options: ChaosOptions): Promise<Round[]> {
  const { rounds, kinds = KINDS, lanes = 1 } = options;
  await using place = await makePlace();
  await using _gateway = await startGatewayProcess({ place });
  const done = await Promise.all(kinds.flatMap((kind) => {
    const count = SLOW.includes(kind) ? Math.min(lanes, rounds) : 1;
    return Array.from({ length: count }, (_, lane) => {
      const share = Math.floor(rounds / count) + (lane < rounds % count ? 1 : 0);
      return breakOne(kind, { ...options, rounds: share }, place);
    });
  }));
  return done.flat();
}

/** All rounds of one kind, on a tunnel of its own. */
async function breakOne(kind: Kind, options: ChaosOptions, shared: Place): Promise<Round[]> {
  await using stack = new AsyncDisposableStack();
  const sshd = stack.use(await startSshd());
  const ownPlace = kind === "stop the gateway" ? stack.use(await makePlace()) : undefined;
  const bench: Bench = { sshd, remotePort: (ownPlace ?? shared).port, options, stack };
  if (ownPlace) bench.gateway = stack.use(await startGatewayProcess({ place: ownPlace }));
  stack.defer(async () => await bench.gateway?.[Symbol.asyncDispose]());
  bench.tunnel = await open(bench);
  const results: Round[] = [];
  for (let round = 0; round < options.rounds; round++) {
    const { foundMs, backMs } = await TROUBLES[kind](bench, bench.tunnel);
    results.push({ kind, foundMs: Math.round(foundMs), backMs: Math.round(backMs) });
    await until(bench.tunnel, "it is up", ({ state }) => state === "up");
  }
  return results;
}

interface Bench {
  sshd: TestSshd;
  remotePort: number;
  options: ChaosOptions;
  stack: AsyncDisposableStack;
  gateway?: GatewayProcess;
  tunnel?: Supervisor;
}

type Trouble = (bench: Bench, tunnel: Supervisor) => Promise<{ foundMs: number; backMs: number }>;

const TROUBLES: Record<Kind, Trouble> = {
  async "kill ssh"(_, tunnel) {
    return await broken(tunnel, ["lost"], () => Deno.kill(tunnel.sshPid!, "SIGKILL"));
  },

  async "SIGSTOP ssh"(_, tunnel) {
    return await broken(tunnel, ["no-answer"], () => Deno.kill(tunnel.sshPid!, "SIGSTOP"));
  },

  async "kill sshd's child"({ sshd }, tunnel) {
    return await broken(tunnel, ["lost"], () => sshd.killChildren());
  },

  async "drop all packets"({ sshd, options: { holdMs = 10_000 } }, tunnel) {
    const rules = ["--dport", "--sport"];
    const iptables = async (what: "-A" | "-D") => {
      for (const side of rules) {
        await run("iptables", "-w", what, "INPUT", "-p", "tcp", side, `${sshd.port}`, "-j", "DROP");
      }
    };
    const begin = performance.now();
    await iptables("-A");
    let foundMs: number;
    try {
      await until(
        tunnel,
        "the black hole is found",
        ({ state, lastError }) =>
          state !== "up" && ["no-answer", "timeout", "lost"].includes(lastError?.kind ?? ""),
      );
      foundMs = performance.now() - begin;
      // The path comes back at any moment of an attempt.
      await new Promise((resolve) => setTimeout(resolve, Math.random() * holdMs));
    } finally {
      await iptables("-D");
    }
    const back = performance.now();
    await until(tunnel, "it is up", ({ state }) => state === "up");
    return { foundMs, backMs: performance.now() - back };
  },

  async "occupy the local port"(_, tunnel) {
    const begin = performance.now();
    Deno.kill(tunnel.sshPid!, "SIGKILL");
    const { localPort } = tunnel.status;
    const stranger = await listenSoon(localPort);
    await until(
      tunnel,
      "the stranger is seen",
      ({ lastError }) => lastError?.kind === "local-port",
    );
    const foundMs = performance.now() - begin;
    assert(tunnel.status.lastError?.message.includes(`port ${localPort}`));
    stranger.close();
    const back = performance.now();
    await until(tunnel, "it is up", ({ state }) => state === "up");
    return { foundMs, backMs: performance.now() - back };
  },

  async "change the host key"(bench, tunnel) {
    const begin = performance.now();
    await bench.sshd.changeHostKey();
    await until(tunnel, "it gave up", ({ state }) => state === "failed");
    const foundMs = performance.now() - begin;
    const { kind, fix } = tunnel.status.lastError!;
    assert(kind === "host-key-changed", `the verdict was ${kind}`);
    assert(fix.includes("ssh-keygen -R"), fix);
    await tunnel.ended();
    await bench.sshd.trust();
    const back = performance.now();
    bench.tunnel = await open(bench);
    return { foundMs, backMs: performance.now() - back };
  },

  async "stop the gateway"(bench, tunnel) {
    const { generation } = tunnel.status;
    const begin = performance.now();
    await bench.gateway!.stop("SIGKILL");
    await until(
      tunnel,
      "the gateway is missed",
      ({ state, lastError }) => state === "down" && lastError?.kind === "gateway-down",
    );
    const foundMs = performance.now() - begin;
    bench.gateway = await startGatewayProcess({ place: bench.gateway!.place });
    const back = performance.now();
    await until(tunnel, "it is up", ({ state }) => state === "up");
    assert(tunnel.status.generation === generation, "ssh was not at fault, and was started anew");
    return { foundMs, backMs: performance.now() - back };
  },
};

/** Trouble that is over as soon as it was made: what is measured is a new ssh. */
async function broken(
  tunnel: Supervisor,
  kinds: readonly string[],
  make: () => void | Promise<void>,
): Promise<{ foundMs: number; backMs: number }> {
  const { generation } = tunnel.status;
  const begin = performance.now();
  await make();
  const { lastError } = await until(tunnel, "the trouble is found", ({ state }) => state !== "up");
  const found = performance.now();
  assert(kinds.includes(lastError?.kind ?? ""), `the verdict was ${lastError?.kind}`);
  await until(
    tunnel,
    "it is up",
    (status) => status.state === "up" && status.generation > generation,
  );
  return { foundMs: found - begin, backMs: performance.now() - found };
}

async function open({ sshd, remotePort, options, stack }: Bench): Promise<Supervisor> {
  const tunnel = stack.use(
    new Supervisor({
      name: "chaos",
      target: sshd.alias,
      remotePort,
      isInteractive: false,
      env: sshd.env,
      localPort: 0,
      timings: options.timings,
    }),
  );
  tunnel.start();
  await tunnel.whenUp();
  return tunnel;
}

async function until(
  tunnel: Supervisor,
  what: string,
  isSo: (status: TunnelStatus) => boolean,
): Promise<TunnelStatus> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new Error(`Waited in vain: ${what}: ${JSON.stringify(tunnel.status)}`));
    }, DEADLINE_MS);
  });
  try {
    for (;;) {
      const { status } = tunnel;
      if (isSo(status)) return status;
      await Promise.race([tunnel.changed(), late]);
    }
  } finally {
    clearTimeout(timer);
  }
}

/** Takes a port as soon as its former holder is gone. */
async function listenSoon(port: number): Promise<Deno.Listener> {
  let listener: Deno.Listener | undefined;
  await eventually("the port is free", () => {
    try {
      return listener = Deno.listen({ hostname: "127.0.0.1", port });
    } catch {
      return false;
    }
  }, { everyMs: 2 });
  return listener!;
}

async function namespaceObstacle(): Promise<string | undefined> {
  if (Deno.build.os !== "linux") return "this is no Linux";
  if (Deno.uid() !== 0) return "this is not root";
  try {
    await run("unshare", "-n", "sh", "-c", "ip link set lo up && iptables -w -L -n");
  } catch (error) {
    return (error as Error).message;
  }
}

async function run(program: string, ...args: string[]): Promise<void> {
  let result: Deno.CommandOutput;
  try {
    result = await new Deno.Command(program, { args }).output();
  } catch {
    throw new Error(`${program} is not installed`);
  }
  const { success, stderr } = result;
  if (!success) throw new Error(`${program}: ${new TextDecoder().decode(stderr).trim()}`);
}

function spread(values: number[]): string {
  const sorted = values.toSorted((one, other) => one - other);
  const at = (part: number) => seconds(sorted[Math.floor((sorted.length - 1) * part)]);
  return `${at(0)} / ${at(0.5)} / ${at(1)} (least, median, most)`;
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(2)} s`;
}

function histogram(values: number[]): string {
  const counts = new Array(EDGES_MS.length + 1).fill(0);
  for (const value of values) {
    const at = EDGES_MS.findIndex((edge) => value < edge);
    counts[at < 0 ? EDGES_MS.length : at]++;
  }
  return counts.map((count, index) => {
    const label = index < EDGES_MS.length
      ? `<${EDGES_MS[index] / 1_000}s`
      : `≥${EDGES_MS.at(-1)! / 1_000}s`;
    return `${label} ${count}`;
  }).join("  ");
}

if (import.meta.main) {
  console.log(JSON.stringify(await breakTunnels(JSON.parse(Deno.args[0]))));
}
