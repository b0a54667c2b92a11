// Guessing the secret (D2, X4, X5): every way of it ends in the same limiter, and who knows the
// secret never notices.

import { assert, assertEquals } from "@std/assert";
import { generateIdentity } from "../../rpc/identity.ts";
import { makePlace, startGatewayProcess, TOKEN } from "../support/process.ts";
import { connectParams, Member, type MemberOptions, RawSocket } from "./wire.ts";

const GUESSES = 1_000;
const ATTEMPTS = 10;

Deno.test("1,000 guesses of a web page lock it out, however they are made, and nobody else", async (t) => {
  await using place = await makePlace();
  await using _gateway = await startGatewayProcess({ place });
  const { port } = place;
  const headers = { Origin: `http://127.0.0.1:${port}` };
  const identity = await generateIdentity();
  const arms: Record<string, Omit<MemberOptions, "port">> = {
    "one after another": { from: "127.0.3.1" },
    "from 50 sockets at once": { from: "127.0.3.2" },
    "with a device and a junk device token": {
      from: "127.0.3.3",
      identity,
      auth: { token: "wrong", deviceToken: "0".repeat(32) },
    },
    "with a junk device token alone": {
      from: "127.0.3.4",
      identity,
      auth: { deviceToken: "0".repeat(32) },
    },
    "as a password": { from: "127.0.3.5", auth: { token: "wrong", password: "wrong" } },
    "on protocol 3": { from: "127.0.3.6", protocol: 3 },
  };
  for (const [name, options] of Object.entries(arms)) {
    await t.step(name, async () => {
      const parallel = name === "one after another" ? 1 : 50;
      const codes = await guess(GUESSES, parallel, { port, headers, ...options });
      assertEquals(codes.AUTH_TOKEN_MISMATCH, ATTEMPTS);
      assertEquals(codes.AUTH_RATE_LIMITED, GUESSES - ATTEMPTS);
    });
  }
  await t.step("HTTP knows of guesses over WebSocket, and is told when to come back", async () => {
    const { status, head } = await post(port, "wrong", { from: "127.0.3.1", headers });
    assertEquals(status, 429);
    assert(/^retry-after: \d+/im.test(head), head);
  });
  await t.step("WebSocket knows of guesses over HTTP", async () => {
    const from = "127.0.3.9";
    const answers = [];
    for (let index = 0; index < ATTEMPTS + 1; index++) {
      answers.push((await post(port, "wrong", { from, headers })).status);
    }
    assertEquals(answers, [...Array(ATTEMPTS).fill(401), 429]);
    const codes = await guess(1, 1, { port, headers, from });
    assertEquals(codes, { AUTH_RATE_LIMITED: 1 });
  });
  await t.step("the right secret does not open a locked address", async () => {
    const codes = await guess(1, 1, { port, headers, from: "127.0.3.1", auth: { token: TOKEN } });
    assertEquals(codes, { AUTH_RATE_LIMITED: 1 });
  });
  await t.step("a page elsewhere, and programs on the same address, get in at once", async () => {
    for (const options of [{ headers, from: "127.0.3.20" }, { from: "127.0.3.1" }]) {
      await using member = await Member.join({ port, ...options });
      assertEquals((await member.call("health")).ok, true);
    }
    assertEquals((await post(port, TOKEN, { from: "127.0.3.1" })).status, 200);
  });
});

Deno.test("a program on this machine that guesses is answered later and later, and never locked out", async (t) => {
  await using place = await makePlace();
  await using _gateway = await startGatewayProcess({ place });
  const { port } = place;

  await t.step("from the eleventh on an answer takes 250 ms and then twice as long", async () => {
    const waits: number[] = [];
    for (let index = 0; index < ATTEMPTS + 3; index++) {
      const begin = performance.now();
      assertEquals(await guess(1, 1, { port, from: "127.0.3.1" }), { AUTH_TOKEN_MISMATCH: 1 });
      waits.push(performance.now() - begin);
    }
    const [eleventh, twelfth, thirteenth] = waits.slice(ATTEMPTS);
    assert(eleventh >= 249 && twelfth >= 499 && thirteenth >= 999, waits.join());
  });
  await t.step(
    "parallel guesses go no faster: they queue, and the oldest are dropped",
    async () => {
      const begin = performance.now();
      const codes = await guess(200, 200, { port, from: "127.0.3.2" }, 3_000);
      const most = answersIn(performance.now() - begin);
      assert(codes.AUTH_TOKEN_MISMATCH <= most, JSON.stringify(codes));
      assert(codes.dropped >= 200 - most - 32, JSON.stringify(codes));
    },
  );
  await t.step("over HTTP neither", async () => {
    const begin = performance.now();
    const guesses = Array.from(
      { length: 200 },
      () => post(port, "wrong", { from: "127.0.3.3" }, 3_000),
    );
    const answered = (await Promise.all(guesses)).filter(({ status }) => status === 401);
    assert(answered.length <= answersIn(performance.now() - begin), `${answered.length} answered`);
  });
  await t.step("who knows the secret is let in at once, also beside the guesses", async () => {
    using guesses = new DisposableStack();
    for (let index = 0; index < 20; index++) {
      guesses.use(await sendGuess({ port, from: "127.0.3.1" }));
    }
    await using member = await Member.join({ port, from: "127.0.3.1" });
    assertEquals((await member.call("health")).ok, true);
    assertEquals((await post(port, TOKEN, { from: "127.0.3.1" })).status, 200);
  });
});

/** The most wrong guesses that may be answered in a time: 250, 500, 1000 ... ms for each after ten. */
function answersIn(ms: number): number {
  return ATTEMPTS + 1 + Math.floor(Math.log2(ms / 250 + 1));
}

/**
 * Tries wrong secrets.
 *
 * @returns how often each code came; `dropped` without an answer, `waiting` not yet
 */
async function guess(
  count: number,
  parallel: number,
  options: MemberOptions,
  deadlineMs = 30_000,
): Promise<Record<string, number>> {
  const codes: Record<string, number> = {};
  const note = (code: string) => codes[code] = (codes[code] ?? 0) + 1;
  const end = performance.now() + deadlineMs;
  let next = 0;
  const worker = async () => {
    while (next++ < count) {
      using socket = await sendGuess(options);
      await endOf(socket, end - performance.now());
      const answer = socket.texts().find(({ type }) => type === "res");
      note(answer?.error.details.code ?? (socket.isGone ? "dropped" : "waiting"));
    }
  };
  await Promise.all(Array.from({ length: parallel }, worker));
  return codes;
}

async function sendGuess(options: MemberOptions): Promise<RawSocket> {
  const socket = await RawSocket.upgraded(options.port, options);
  const [{ payload }] = socket.texts();
  const params = await connectParams({ auth: { token: "wrong" }, ...options }, payload);
  socket.send({ type: "req", id: "1", method: "connect", params });
  return socket;
}

async function post(
  port: number,
  secret: string,
  { from, headers = {} }: { from: string; headers?: Record<string, string> },
  deadlineMs = 30_000,
): Promise<{ status: number; head: string }> {
  using socket = await RawSocket.open(port, { from });
  const body = '{"jsonrpc":"2.0","id":1,"method":"health"}';
  const lines = {
    Host: `127.0.0.1:${port}`,
    Authorization: `Bearer ${secret}`,
    "Content-Type": "application/json",
    "Content-Length": String(body.length),
    Connection: "close",
    ...headers,
  };
  const head = Object.entries(lines).map(([name, value]) => `${name}: ${value}\r\n`).join("");
  socket.write(`POST /rpc HTTP/1.1\r\n${head}\r\n${body}`);
  await endOf(socket, deadlineMs);
  return { status: Number(/^HTTP\/1.1 (\d+)/.exec(socket.head)?.[1]), head: socket.head };
}

/** Waits until the connection is gone, or the time is over. */
async function endOf(socket: RawSocket, deadlineMs: number) {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, deadlineMs);
  });
  await Promise.race([socket.gone, late]);
  clearTimeout(timer);
}
