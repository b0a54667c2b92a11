// What a peer can do that has not said who it is: stand there, dawdle, and send too much (D1, X13).

import { assert, assertEquals } from "@std/assert";
import { silentSockets } from "../soak/silent_sockets.ts";
import { makePlace, megabytes, startGatewayProcess } from "../support/process.ts";
import { type Close, encodeFrame, Member, OPCODE, RawSocket, upgradeRequest } from "./wire.ts";

const MIB = 1_048_576;
const MAX_GROWTH_BYTES = 20 * MIB;
/** What a flood may come to; the kernel's buffers at both ends take the first few. */
const FLOOD_BYTES = 960 * MIB;
const ACCEPTED_BYTES = 64 * MIB;

Deno.test("5,000 silent sockets and slow upgrades delay no operator, and are let go after the deadline", async () => {
  await silentSockets({ sockets: 5_000 });
});

Deno.test("more silent sockets than there are files for push out one another, and no member", async () => {
  await using place = await makePlace();
  await using _gateway = await startGatewayProcess({ place, maxFiles: 1_024 });
  await using member = await Member.join({ port: place.port });
  using stack = new DisposableStack();
  let connected = 0;

  for (let index = 0; index < 2_000; index++) {
    const socket = stack.use(await RawSocket.open(place.port, { from: "127.0.1.1" }));
    if (!socket.isGone) connected++;
  }
  await using newcomer = await Member.join({ port: place.port });

  assertEquals(connected, 2_000, "nobody was refused");
  assertEquals((await member.call("health")).ok, true);
  assertEquals((await newcomer.call("health")).ok, true);
});

interface Flood {
  name: string;
  /** Sent once. */
  opening?: Uint8Array;
  /** Sent again and again, until the gateway has had enough. */
  chunk: Uint8Array;
  times?: number;
  /** Any of these; undefined: dropped without a word. */
  close: (Close | undefined)[];
}

const tooLarge = { code: 1009, reason: "" };

const FLOODS: Flood[] = [
  {
    name: "60 fragments of 16 MiB",
    chunk: encodeFrame({ payload: new Uint8Array(16 * MIB), isLast: false }),
    times: 60,
    close: [tooLarge],
  },
  {
    name: "fragments of 32 KiB",
    opening: encodeFrame({ payload: "{", isLast: false }),
    chunk: encodeFrame({ payload: " ".repeat(32_768), opcode: 0, isLast: false }),
    close: [tooLarge],
  },
  {
    name: "one frame of 64 KiB and a byte",
    chunk: encodeFrame({ payload: " ".repeat(65_537) }),
    times: 1,
    close: [tooLarge],
  },
  {
    name: "a frame that announces 2^62 bytes",
    chunk: encodeFrame({ announcedBytes: 1n << 62n }),
    times: 1,
    close: [tooLarge],
  },
  {
    name: "fragments of one byte",
    opening: encodeFrame({ payload: "{", isLast: false }),
    chunk: repeated(encodeFrame({ payload: " ", opcode: 0, isLast: false }), 10_000),
    close: [tooLarge, { code: 1008, reason: "" }],
  },
  {
    name: "fragments of nothing",
    opening: encodeFrame({ payload: "{", isLast: false }),
    chunk: repeated(encodeFrame({ opcode: 0, isLast: false }), 10_000),
    close: [tooLarge, { code: 1008, reason: "" }],
  },
  {
    name: "binary frames",
    chunk: repeated(encodeFrame({ opcode: OPCODE.binary, payload: new Uint8Array(60_000) }), 50),
    close: [{ code: 1009, reason: "preauth payload too large" }],
  },
  {
    name: "pings",
    chunk: repeated(encodeFrame({ opcode: OPCODE.ping, payload: "x".repeat(125) }), 5_000),
    close: [undefined],
  },
];

Deno.test("a stranger who sends more than 64 KiB is cut off, and memory grows by less than 20 MB", async (t) => {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  for (const flood of FLOODS) {
    await t.step(flood.name, async () => {
      gateway.resetPeak();
      const before = gateway.memory().bytes;
      using socket = await RawSocket.upgraded(place.port);

      if (flood.opening) socket.write(flood.opening);
      const times = flood.times ?? FLOOD_BYTES / flood.chunk.length;
      let accepted = 0;
      for (let index = 0; index < times && !socket.isGone; index++) {
        await socket.push(flood.chunk);
        accepted += flood.chunk.length;
      }
      const close = await socket.end();

      assert(
        flood.close.some((one) => one?.code === close?.code && one?.reason === close?.reason),
        JSON.stringify(close),
      );
      assert(accepted < ACCEPTED_BYTES, `${megabytes(accepted)} were taken`);
      const grown = gateway.memory().peakBytes - before;
      assert(grown < MAX_GROWTH_BYTES, `memory grew by ${megabytes(grown)}`);
    });
  }
});

Deno.test("empty frames behind a connect whose refusal is delayed are cut off", async () => {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  const connect = {
    type: "req",
    id: "1",
    method: "connect",
    params: {
      minProtocol: 3,
      maxProtocol: 4,
      client: { id: "cli", mode: "cli", version: "1", platform: "linux" },
      auth: { token: "wrong" },
    },
  };
  using guesses = new DisposableStack();
  // From the eleventh on answers are late.
  for (let index = 0; index < 12; index++) {
    guesses.use(await RawSocket.upgraded(place.port)).send(connect);
  }
  using socket = await RawSocket.upgraded(place.port);
  const before = gateway.memory().bytes;

  socket.send(connect);
  const chunk = repeated(encodeFrame({}), 10_000);
  for (let sent = 0; sent < 64 * MIB && !socket.isGone; sent += chunk.length) {
    await socket.push(chunk);
  }

  assertEquals(await socket.end(), { code: 1009, reason: "preauth payload too large" });
  const grown = gateway.memory().peakBytes - before;
  assert(grown < MAX_GROWTH_BYTES, `memory grew by ${megabytes(grown)}`);
});

Deno.test("headers without end, garbage and pipelined requests that nobody reads are cut off", async (t) => {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  const head = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n";
  const encoder = new TextEncoder();
  const floods = {
    "one header without end": [`${head}X-Long: `, "y".repeat(65_536)],
    "headers without end": [head, "a: b\r\n".repeat(10_000)],
    "a request line without end": ["GET /", "z".repeat(65_536)],
    "bytes that are no HTTP": ["", "\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".repeat(5_000)],
    "an unauthorized body without end": [
      "POST /rpc HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" +
      "Content-Length: 9000000000\r\n\r\n",
      " ".repeat(65_536),
    ],
    "pipelined requests": ["", "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".repeat(2_000)],
  };
  for (const [name, [opening, again]] of Object.entries(floods)) {
    await t.step(name, async () => {
      gateway.resetPeak();
      const before = gateway.memory().bytes;
      using socket = await RawSocket.open(place.port);

      socket.pause();
      socket.write(opening);
      const chunk = encoder.encode(again);
      let accepted = 0;
      while (accepted < FLOOD_BYTES && !socket.isGone) {
        await socket.push(chunk);
        accepted += chunk.length;
      }
      socket.resume();
      await socket.end();

      assert(accepted < FLOOD_BYTES, `${megabytes(accepted)} were taken`);
      const grown = gateway.memory().peakBytes - before;
      assert(grown < MAX_GROWTH_BYTES, `memory grew by ${megabytes(grown)}`);
    });
  }
  await t.step("10,000 bytes of headers are refused or served, and hold nothing up", async () => {
    for (const length of [10_000, 20_000, 1_000_000]) {
      using socket = await RawSocket.open(place.port);
      socket.write(upgradeRequest(place.port, { "X-Long": "y".repeat(length) }));
      await Promise.race([socket.until("an answer", () => socket.head !== ""), socket.gone]);
      assert(length < 16_384 || socket.isGone || !socket.head.startsWith("HTTP/1.1 101"));
    }
    await using operator = await Member.join({ port: place.port });
    assertEquals((await operator.call("health")).ok, true);
  });
});

Deno.test("a refused body is not waited for, the answer to it is read, and a short one costs no connection", async () => {
  await using place = await makePlace();
  await using _gateway = await startGatewayProcess({ place });
  const post = (length: number) =>
    `POST /rpc HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: ${length}\r\n\r\n`;
  using long = await RawSocket.open(place.port);
  using short = await RawSocket.open(place.port);

  long.write(post(5_000_000));
  await long.end();
  for (let answers = 0; answers < 3; answers++) {
    const before = short.bytesRead;
    short.write(post(2));
    await short.until("the refusal", () => short.bytesRead > before);
    short.write("{}");
  }

  assert(long.head.startsWith("HTTP/1.1 401"), long.head);
  assert(short.head.startsWith("HTTP/1.1 401"), short.head);
  assert(!short.isGone);
});

Deno.test("one connection may make any number of HTTP requests, one after another", async () => {
  await using place = await makePlace();
  await using _gateway = await startGatewayProcess({ place });
  using socket = await RawSocket.open(place.port);

  for (let index = 0; index < 500; index++) {
    const before = socket.bytesRead;
    socket.write("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    await socket.until("the answer", () => socket.bytesRead > before);
  }

  assert(!socket.isGone);
});

function repeated(bytes: Uint8Array, times: number): Uint8Array {
  const all = new Uint8Array(bytes.length * times);
  for (let index = 0; index < times; index++) all.set(bytes, index * bytes.length);
  return all;
}
