import { assertEquals } from "@std/assert";
import { KINDS, tunnelRounds } from "../soak/tunnel_chaos.ts";
import { sshdObstacle } from "../support/sshd.ts";

/** Everything sooner than in earnest, but for what a busy machine needs. */
const QUICK = {
  probeEveryMs: 300,
  probeTimeoutMs: 4_000,
  secondTimeoutMs: 4_000,
  downEveryMs: 200,
};

if (sshdObstacle) console.log(`skipped: tunnels under a real sshd, ${sshdObstacle}`);

Deno.test({
  name: "a tunnel tells each trouble by its name, and comes back by itself when it is over",
  ignore: sshdObstacle !== undefined,
  async fn() {
    const { rounds, left } = await tunnelRounds({ rounds: 2, holdMs: 500, timings: QUICK });
    if (left) console.log(`skipped: dropped packets, ${left}`);

    const expected = KINDS.filter((kind) => !left || kind !== "drop all packets");
    for (const kind of expected) {
      assertEquals(rounds.filter((round) => round.kind === kind).length, 2, kind);
    }
  },
});
