// `deno run -A tests/bench/sessions.ts`: what conversations cost as they become more. Databases with
// more and more sessions of 20 messages are made, a gateway is started on each, and all answer the
// same calls in turns. One session of each has as many messages as all the others together.
// --quick: fewer calls and starts.

import { parseConfig } from "../../config/load.ts";
import { type Message, Sessions } from "../../gateway/sessions.ts";
import { Store } from "../../gateway/store.ts";
import { knockGateway } from "./clients.ts";
import { median } from "./report.ts";
import { freePort, pinLoad, startGateway } from "./servers.ts";
import { requestText, textFrame, type Wire } from "./wire.ts";

const SIZES = [10, 100, 1_000];
const MESSAGES = 20;
const WORDS = "the node answers that its kernel is six and its load is low today".split(" ");

const CALLS: [name: string, method: string, params: (size: number) => unknown][] = [
  ["sessions.list, 10 rows", "sessions.list", () => ({ limit: 10 })],
  ["sessions.list, all rows", "sessions.list", () => ({})],
  ["sessions.list, searched, 10 rows", "sessions.list", () => ({ search: "talk-", limit: 10 })],
  ["chat.history, 20 messages", "chat.history", () => ({ sessionKey: "talk-3" })],
  ["chat.history, 200 messages of the long one", "chat.history", () => ({ sessionKey: "long" })],
  ["sessions.preview, 10 sessions", "sessions.preview", () => ({
    keys: Array.from({ length: 10 }, (_, index) => `talk-${index}`),
  })],
  ["sessions.search, a word of one message", "sessions.search", (size) => ({
    query: `word${size - 1}x3`,
  })],
  ["status", "status", () => ({})],
];

/** Milliseconds by size. */
type Times = Map<number, number[]>;

if (import.meta.main) {
  const isQuick = Deno.args.includes("--quick");
  const cores = await pinLoad();
  // What the gateway finds must be for its owner alone.
  Deno.umask(0o077);
  const root = await Deno.makeTempDir({ prefix: "zero-bench-" });
  const rows: string[][] = [];
  try {
    const appends: Times = new Map();
    const bytes: number[] = [];
    for (const size of SIZES) {
      const dir = `${root}/${size}`;
      await Deno.mkdir(dir);
      appends.set(size, await fill(`${dir}/zero.sqlite`, size));
      bytes.push((await Deno.stat(`${dir}/zero.sqlite`)).size);
    }
    rows.push(row("one more message, durable", appends, "µs"));
    for (const times of await measureCalls(cores.server, root, isQuick ? 30 : 200)) {
      rows.push(row(times.name, times.times, "ms"));
    }
    const starts: Times = new Map(SIZES.map((size) => [size, []]));
    for (let round = 0; round < (isQuick ? 2 : 7); round++) {
      for (const size of SIZES) {
        const begin = performance.now();
        const options = { port: freePort(), stateDir: `${root}/${size}` };
        await using gateway = await startGateway(cores.all, options);
        (await knockGateway(gateway)).close();
        starts.get(size)!.push(performance.now() - begin);
      }
    }
    rows.push(row("start to the first hello-ok", starts, "ms"));
    const mebibytes = bytes.map((one) => `${(one / 1_048_576).toFixed(1)} MiB`);
    rows.push(["size of the database", ...mebibytes, ""]);
  } finally {
    await Deno.remove(root, { recursive: true });
  }
  console.log(table(rows));
}

/** @returns milliseconds of single appends once all is there */
async function fill(path: string, size: number): Promise<number[]> {
  using store = Store.open(path);
  const reading = await parseConfig("{}", { path: "/zero.json", env: {} });
  const sessions = new Sessions(store, { reading });
  for (let session = 0; session < size; session++) {
    store.transaction(() => {
      for (let index = 0; index < MESSAGES; index++) {
        sessions.append(`talk-${session}`, messageOf(`word${session}x${index}`, index));
        sessions.append("long", messageOf("long", index));
      }
    });
  }
  return Array.from({ length: 500 }, (_, index) => {
    const begin = performance.now();
    sessions.append(`talk-${index % size}`, messageOf("more", index));
    return performance.now() - begin;
  });
}

function messageOf(word: string, index: number): Message {
  const text = Array.from({ length: 40 }, (_, at) => WORDS[(at * 7 + index) % WORDS.length]);
  return {
    role: index % 2 === 0 ? "user" : "assistant",
    content: [{ type: "text", text: `${word} ${text.join(" ")}` }],
    timestamp: Date.now(),
  };
}

async function measureCalls(
  cores: string[],
  root: string,
  calls: number,
): Promise<{ name: string; times: Times }[]> {
  await using gateways = new AsyncDisposableStack();
  const wires: [number, Wire][] = [];
  for (const size of SIZES) {
    const gateway = gateways.use(await startGateway(cores, { stateDir: `${root}/${size}` }));
    const wire = await knockGateway(gateway);
    gateways.defer(() => wire.close());
    wires.push([size, wire]);
  }
  const found: { name: string; times: Times }[] = [];
  for (const [name, method, paramsOf] of CALLS) {
    const times: Times = new Map(SIZES.map((size) => [size, []]));
    for (let round = 0; round < calls; round++) {
      for (const [size, wire] of wires) {
        const took = await timeOf(wire, method, paramsOf(size));
        // What the first calls find cold is not what a session more costs.
        if (round >= calls / 10) times.get(size)!.push(took);
      }
    }
    found.push({ name, times });
  }
  return found;
}

async function timeOf(wire: Wire, method: string, params: unknown): Promise<number> {
  const begin = performance.now();
  await wire.send(textFrame(requestText("c", method, params)));
  for (;;) {
    const text = await wire.nextText();
    if (text.startsWith('{"type":"event"')) continue;
    if (!text.startsWith('{"type":"res","id":"c","ok":true')) throw new Error(text.slice(0, 300));
    return performance.now() - begin;
  }
}

function row(name: string, times: Times, unit: "ms" | "µs"): string[] {
  const medians = SIZES.map((size) => median(times.get(size)!));
  const scale = unit === "ms" ? 1 : 1_000;
  const shown = medians.map((one) => `${(one * scale).toPrecision(3)} ${unit}`);
  return [name, ...shown, `${(medians.at(-1)! / medians[0]).toFixed(2)} ×`];
}

function table(rows: string[][]): string {
  const head = ["", ...SIZES.map((size) => `${size} × ${MESSAGES}`), "growth"];
  const all = [head, ...rows];
  const widths = head.map((_, column) => Math.max(...all.map((one) => one[column].length), 3));
  const line = (cells: string[]) => {
    const padded = cells.map((cell, at) =>
      at === 0 ? cell.padEnd(widths[at]) : cell.padStart(widths[at])
    );
    return `| ${padded.join(" | ")} |`;
  };
  const rule = widths.map((width, at) =>
    at === 0 ? "-".repeat(width) : `${"-".repeat(width - 1)}:`
  );
  return [line(head), line(rule), ...rows.map(line)].join("\n");
}
