// Clients that come, work and go, round after round: what a gateway keeps of them must not grow.

import { assert } from "@std/assert";
import { generateIdentity } from "../../rpc/identity.ts";
import { eventually, makePlace, megabytes, startGatewayProcess } from "../support/process.ts";
import { Member, type MemberOptions } from "../security/wire.ts";

/** What the second half of the rounds may add to the first. */
const MAX_GROWTH_BYTES = 30 * 1_048_576;
const PARALLEL = 32;

export async function lifetime({ rounds, clients }: { rounds: number; clients: number }) {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  const idle = gateway.descriptors();
  const memory: number[] = [];
  let calls = 0;
  for (let round = 0; round < rounds; round++) {
    let next = 0;
    const live = async () => {
      while (next < clients) {
        const index = next++;
        await using member = await Member.join(await kindOf(index, round, place.port));
        if (index % 10 === 9) continue; // a node calls nothing
        for (const method of ["health", "status", "system-presence"]) await member.call(method);
        await member.call("talk.mode", { enabled: true, phase: "x".repeat(1_000) });
        await member.call("system-event", { text: `Node: client-${round}-${index} · mode ui` });
        await member.ask("no.such.method");
        calls += 6;
      }
    };
    await Promise.all(Array.from({ length: PARALLEL }, live));
    await eventually("everybody is gone", () => gateway.descriptors() <= idle);
    memory.push(gateway.memory().bytes);
  }
  const half = Math.ceil(memory.length / 2);
  const grown = Math.max(...memory.slice(half)) - Math.max(...memory.slice(0, half));
  assert(grown < MAX_GROWTH_BYTES, `memory: ${memory.map(megabytes).join(", ")}`);
  return {
    rounds,
    "clients a round": clients,
    calls,
    "memory after the first round": megabytes(memory[0]),
    "after half of them": megabytes(memory[half - 1]),
    "after the last": megabytes(memory.at(-1)!),
    log: megabytes((await place.log()).length),
  };
}

/** Devices, programs with the shared secret, and nodes. */
async function kindOf(index: number, round: number, port: number): Promise<MemberOptions> {
  if (index % 10 === 9) {
    return {
      port,
      role: "node",
      identity: await generateIdentity(),
      client: { id: "node-host", mode: "node" },
    };
  }
  if (index % 2 === 0) return { port, client: { instanceId: `instance-${round}-${index}` } };
  return { port, identity: await generateIdentity(), client: { id: "gateway-client", mode: "ui" } };
}
