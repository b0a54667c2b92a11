// A configuration file that is written, badly, under a running gateway (§12.1).

import { assert, assertEquals } from "@std/assert";
import { eventually, makePlace, pause, startGatewayProcess } from "../support/process.ts";
import { Member } from "../security/wire.ts";

const REPORT = "the changed configuration is not used";

/** Half-written files, again and again; then a whole one. */
export async function truncatedConfigs({ writes }: { writes: number }) {
  const whole = JSON.stringify({ agents: { list: [{ id: "first" }] }, gateway: { port: 1 } });
  await using place = await makePlace({ config: { agents: { list: [{ id: "first" }] } } });
  await using gateway = await startGatewayProcess({ place });
  await using member = await Member.join({ port: place.port });
  const agent = async () => (await member.call("health", { probe: true })).defaultAgentId;
  const reports = async () => (await place.log()).split(REPORT).length - 1;

  for (let index = 0; index < writes; index++) {
    await place.configure(whole.slice(0, 1 + index % (whole.length - 1)));
    // Now and then it is left alone long enough to be looked at.
    if (index % 25 === 0) await eventually("the file was looked at", reports);
    if (index % 25 === 1) await pause(700);
    else await pause(5);
    assertEquals(await agent(), "first");
  }
  assertEquals(await reports(), 1, "it is reported once");
  await place.configure({ agents: { list: [{ id: "second" }] } });
  await eventually("a good file is taken over", async () => await agent() === "second");
  await place.configure("{ agents: ");
  await eventually("the next bad one is reported again", async () => await reports() === 2);

  assertEquals(await agent(), "second");
  assert(!member.isClosed, "nobody was disconnected");
  const { code, stdout } = await gateway.stop();
  assertEquals([code, stdout.includes("restarted")], [0, false]);
  return { writes, reports: await reports() };
}
