// `deno task soak`: the robustness tests at many times their size, one after another, with figures.
// `deno task soak -- fuzz kill` runs only those.

import { truncatedConfigs } from "./config_writes.ts";
import { killFlow } from "./flow.ts";
import { fuzzFrames } from "./fuzz.ts";
import { killRounds } from "./kill.ts";
import { lifetime } from "./lifetime.ts";
import { droppedNodes, resultsBeforeClose, silentNode } from "./nodes.ts";
import { refusedCalls } from "./refused_calls.ts";
import { silentSockets } from "./silent_sockets.ts";
import { slowReader } from "./slow_reader.ts";
import { connectionStorm } from "./storm.ts";
import { tunnelChaos } from "./tunnel_chaos.ts";

type Figures = Record<string, string | number>;

const RUNS: Record<string, () => Promise<Figures>> = {
  silent: () => silentSockets({ sockets: 9_000 }),
  slow: () => slowReader({ readers: 199 }),
  refused: () => refusedCalls({ calls: 1_000_000 }),
  storm: () => connectionStorm({ clients: 5_000, watchers: 50 }),
  config: () => truncatedConfigs({ writes: 2_000 }),
  kill: () => killRounds({ rounds: 200 }),
  flow: () => killFlow({ points: 200 }),
  fuzz: async () => {
    let figures: Figures = {};
    for (let seed = 1; seed <= 10; seed++) figures = await fuzzFrames({ frames: 20_000, seed });
    return { ...figures, seed: "1 to 10" };
  },
  results: () => resultsBeforeClose({ rounds: 10_000 }),
  dropped: () => droppedNodes({ nodes: 200, times: 20 }),
  "silent-node": () => silentNode(),
  tunnel: () => tunnelChaos({ rounds: 50, lanes: 5 }),
  lifetime: () => lifetime({ rounds: 30, clients: 500 }),
};

if (import.meta.main) {
  const chosen = Deno.args.filter((name) => name !== "--");
  const unknown = chosen.find((name) => !Object.hasOwn(RUNS, name));
  if (unknown !== undefined) {
    console.error(`Cannot run ${unknown}: there are ${Object.keys(RUNS).join(", ")}`);
    Deno.exit(2);
  }
  let failures = 0;
  for (const name of chosen.length > 0 ? chosen : Object.keys(RUNS)) {
    const begin = performance.now();
    try {
      const figures = await RUNS[name]();
      console.log(`\n${name}: ${Math.round((performance.now() - begin) / 1_000)} s`);
      for (const [what, value] of Object.entries(figures)) {
        console.log(`  ${what.padEnd(38)} ${value}`);
      }
    } catch (error) {
      failures++;
      console.error(`\n${name}: FAILED`, error);
    }
  }
  Deno.exit(failures > 0 ? 1 : 0);
}
