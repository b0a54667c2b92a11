// `deno run -A tests/bench/nodes.ts`: an invocation through the gateway, against the same sockets
// wired by a bare relay. Callers and nodes are in this process, the server in another; both servers
// take turns. --quick: fewer and shorter rounds.

import { Buffer } from "node:buffer";
import { sign } from "node:crypto";
import { signedText } from "../../rpc/identity.ts";
import { type Device, knockGateway, newDevice } from "./clients.ts";
import type { Speed } from "./loads.ts";
import { type Finding, formatTable, isMet, quantile } from "./report.ts";
import { pinLoad, type Server, startGateway, startRelay, TOKEN } from "./servers.ts";
import { requestText, textFrame, Wire } from "./wire.ts";

const SHAPES = [
  { pairs: 1, inFlight: 1 },
  { pairs: 16, inFlight: 1 },
  { pairs: 16, inFlight: 4 },
];
const decoder = new TextDecoder();

interface Turn extends Speed {
  /** Processor time of the server for one invocation; on a busy machine the steadiest figure. */
  workedUs: number;
}

/** A caller, and the node it invokes. */
interface Pair {
  caller: Wire;
  node: Wire;
  nodeId: string;
}

if (import.meta.main) {
  const isQuick = Deno.args.includes("--quick");
  const rounds = isQuick ? 3 : 7;
  const turnMs = isQuick ? 400 : 1_000;
  const cores = await pinLoad();
  await using relay = await startRelay(cores);
  await using gateway = await startGateway(cores.server);
  const findings: Finding[] = [];
  let path = 0;
  for (const { pairs, inFlight } of SHAPES) {
    const bare: Pair[] = [];
    const ours: Pair[] = [];
    for (let index = 0; index < pairs; index++) {
      bare.push(await pairAtRelay(relay, path++));
      ours.push(await pairAtGateway(gateway));
    }
    const nodes = [...bare, ...ours].map(serve);
    const turns = [
      { server: relay, side: bare, turns: [] as Turn[] },
      { server: gateway, side: ours, turns: [] as Turn[] },
    ];
    for (const { server, side } of turns) await measure(server, side, inFlight, turnMs / 2);
    for (let round = 0; round < rounds; round++) {
      for (const { server, side, turns: into } of round % 2 === 0 ? turns : turns.toReversed()) {
        into.push(await measure(server, side, inFlight, turnMs));
      }
    }
    for (const { caller, node } of [...bare, ...ours]) [caller, node].forEach((it) => it.close());
    await Promise.all(nodes);
    const of = (name: keyof Turn) => ({
      bare: turns[0].turns.map((turn) => turn[name]),
      ours: turns[1].turns.map((turn) => turn[name]),
    });
    const metric = `node.invoke ${pairs}×${inFlight}`;
    findings.push(
      {
        metric: `${metric}, rate`,
        unit: "/s",
        isRate: true,
        ...of("perSecond"),
        target: { ratioAtLeast: 0.7 },
      },
      { metric: `${metric}, p50`, unit: "ms", ...of("p50"), target: { ratioAtMost: 1.5 } },
      { metric: `${metric}, p99`, unit: "ms", ...of("p99") },
      { metric: `${metric}, server's processor`, unit: "µs", ...of("workedUs") },
    );
  }
  console.log(`\n${formatTable(findings)}\n`);
  const missed = findings.filter((finding) => isMet(finding) === false).length;
  console.log(missed === 0 ? "Every target is met" : `${missed} targets are missed`);
}

async function pairAtRelay({ port }: Server, number: number): Promise<Pair> {
  const node = await Wire.open(port, `/node/${number}`);
  const caller = await Wire.open(port, `/caller/${number}`);
  return { caller, node, nodeId: newDevice().id };
}

async function pairAtGateway(server: Server): Promise<Pair> {
  const device = newDevice();
  const node = await Wire.open(server.port);
  const { payload: { nonce, ts } } = JSON.parse(await node.nextText());
  await node.send(connectFrame(device, nonce, ts));
  const hello = JSON.parse(await node.nextText());
  if (!hello.ok) throw new Error(`Refused: ${JSON.stringify(hello.error)}`);
  return { caller: await knockGateway(server), node, nodeId: device.id };
}

function connectFrame({ id, publicKey, privateKey }: Device, nonce: string, signedAtMs: number) {
  const client = { id: "node-host", version: "1.0.0", platform: "linux", mode: "node" };
  const text = signedText(2, {
    deviceId: id,
    clientId: client.id,
    clientMode: client.mode,
    role: "node",
    scopes: [],
    signedAtMs,
    token: TOKEN,
    nonce,
  });
  const signature = sign(null, Buffer.from(text), privateKey).toString("base64url");
  return textFrame(requestText("1", "connect", {
    minProtocol: 3,
    maxProtocol: 4,
    client,
    role: "node",
    scopes: [],
    commands: ["system.which"],
    auth: { token: TOKEN },
    device: { id, publicKey, signature, signedAt: signedAtMs, nonce },
  }));
}

/** Answers whatever the node is asked, until it is closed. */
async function serve({ node, nodeId }: Pair) {
  for (;;) {
    if (!await node.fill().catch(() => false)) return;
    for (let frame = node.take(); frame; frame = node.take()) {
      const text = decoder.decode(frame);
      // Requests to a node, of the gateway and of the relay, name the command; nothing else does.
      if (!text.includes('"command":"system.which"')) continue;
      const id = /"id":"([^"]+)"/.exec(text)![1];
      const payloadJSON = '{"bins":{"sh":"/bin/sh"}}';
      const result = { id, nodeId, ok: true, payloadJSON };
      await node.send(textFrame(requestText(id, "node.invoke.result", result)));
    }
  }
}

async function measure(
  server: Server,
  pairs: Pair[],
  inFlight: number,
  durationMs: number,
): Promise<Turn> {
  const workedMs = server.workedMs();
  const begin = performance.now();
  const latencies: number[] = [];
  await Promise.all(
    pairs.map((pair) => keepInvoking(pair, inFlight, begin + durationMs, latencies)),
  );
  const tookMs = performance.now() - begin;
  const sorted = Float64Array.from(latencies).sort();
  return {
    perSecond: latencies.length / tookMs * 1_000,
    p50: quantile(sorted, 0.5),
    p99: quantile(sorted, 0.99),
    workedUs: (server.workedMs() - workedMs) / latencies.length * 1_000,
  };
}

/** Answers come in the order of the requests: there is one node, which answers in order. */
async function keepInvoking(
  { caller, nodeId }: Pair,
  inFlight: number,
  untilMs: number,
  latencies: number[],
) {
  const sentAtMs: number[] = [];
  const frame = textFrame(requestText("invoke", "node.invoke", {
    nodeId,
    command: "system.which",
    params: { bins: ["sh"] },
    timeoutMs: 15_000,
    idempotencyKey: "key",
  }));
  const ask = async () => {
    sentAtMs.push(performance.now());
    await caller.send(frame);
  };
  for (let count = 0; count < inFlight; count++) await ask();
  while (sentAtMs.length > 0) {
    if (!await caller.fill()) throw new Error("The server hung up");
    for (let answer = caller.take(); answer; answer = caller.take()) {
      // News that nobody asked for: `{"type":"event"`.
      if (answer[9] === 0x65) continue;
      const now = performance.now();
      latencies.push(now - sentAtMs.shift()!);
      if (now < untilMs) await ask();
    }
  }
}
