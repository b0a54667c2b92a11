// One reader that stops reading among many that do not (§1.2).

import { assert, assertEquals } from "@std/assert";
import { eventually, makePlace, megabytes, startGatewayProcess } from "../support/process.ts";
import { Member } from "../security/wire.ts";

const MAX_BUFFERED_BYTES = 52_428_800;
const EVENT_BYTES = 1_048_576;

/** Events of a megabyte go to everybody until what one does not read is too much. */
export async function slowReader({ readers }: { readers: number }) {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  await using stack = new AsyncDisposableStack();
  const scopes = ["operator.read", "operator.write"];
  const read: { seqs: number[]; bytes: number }[] = [];
  for (let index = 0; index < readers; index++) {
    const one = { seqs: [] as number[], bytes: 0 };
    read.push(one);
    stack.use(
      await Member.join({
        port: place.port,
        scopes,
        onText(text) {
          one.bytes += text.length;
          // The number stands at the end, behind whatever the payload is.
          one.seqs.push(Number(/"seq":(\d+)\}$/.exec(text.subarray(-24).toString())?.[1]));
        },
      }),
    );
  }
  const stuck = stack.use(await Member.join({ port: place.port, scopes }));
  const speaker = stack.use(await Member.join({ port: place.port, scopes }));
  const before = gateway.memory().bytes;

  stuck.pause();
  const phase = "x".repeat(EVENT_BYTES);
  const begin = performance.now();
  let events = 0;
  // What the system's own buffers take comes on top of what the gateway keeps.
  const enough = Math.ceil(MAX_BUFFERED_BYTES / EVENT_BYTES) + 16;
  for (; events < enough; events++) await speaker.call("talk.mode", { enabled: true, phase });
  const grown = gateway.memory().bytes - before;
  const isStillThere = !stuck.isClosed;
  // These events may be dropped. A newcomer makes the gateway send one that may not.
  stack.use(await Member.join({ port: place.port, scopes }));
  await eventually(
    "the slow reader is closed",
    async () => (await place.log()).includes("closed a slow consumer"),
  );
  stuck.resume();
  const close = await stuck.closed;
  const total = performance.now() - begin;

  assert(isStillThere, "a reader that is behind is not closed for events that may be dropped");
  assertEquals(close, { code: 1008, reason: "slow consumer" });
  const last = () => Math.min(...read.map(({ seqs }) => seqs.at(-1) ?? 0));
  await eventually("all others have all events", () => last() >= events);
  for (const { seqs } of read) {
    const gaps = seqs.filter((seq, index) => index > 0 && seq !== seqs[index - 1] + 1);
    assertEquals(gaps, [], "an event is missing");
  }
  const bytes = read.reduce((sum, one) => sum + one.bytes, 0);
  return {
    readers,
    events,
    "delivered to the others": megabytes(bytes),
    "in": `${(total / 1_000).toFixed(1)} s`,
    "memory while one stood still": `+${megabytes(grown)}`,
    "closed with": `${close.code} ${close.reason}`,
  };
}
