// Frames that are not what they should be, before and after the handshake (§1, §2, X15).

import { assert, assertEquals } from "@std/assert";
import { Buffer } from "node:buffer";
import { fuzzFrames } from "../soak/fuzz.ts";
import { refusedCalls } from "../soak/refused_calls.ts";
import { makePlace, startGatewayProcess, TOKEN } from "../support/process.ts";
import {
  type Close,
  encodeFrame,
  type Json,
  Member,
  OPCODE,
  RawSocket,
  upgradeRequest,
} from "./wire.ts";

const MIB = 1_048_576;

const BROKEN_FRAMES: [name: string, bytes: Uint8Array, close: Close][] = [
  ["invalid UTF-8", encodeFrame({ payload: Buffer.from([0x22, 0xff, 0xfe, 0x22]) }), {
    code: 1007,
    reason: "",
  }],
  ...([
    ["an unmasked frame", { payload: "{}", isMasked: false }],
    ["the first reserved bit, as a compressed frame has it", { payload: "{}", reserved: 4 }],
    ["the other reserved bits", { payload: "{}", reserved: 3 }],
    ["a ping of 126 bytes", { opcode: OPCODE.ping, payload: "x".repeat(126) }],
    ["a fragmented ping", { opcode: OPCODE.ping, isLast: false }],
    ["an unknown opcode", { opcode: 11 }],
    ["a continuation of nothing", { opcode: OPCODE.continuation, payload: "{}" }],
    ["a close frame of one byte", { opcode: OPCODE.close, payload: "x" }],
    ["a close code that is none", { opcode: OPCODE.close, payload: Buffer.from([0, 99]) }],
  ] as const).map(([name, options]): [string, Uint8Array, Close] => [
    name,
    encodeFrame(options),
    { code: 1002, reason: "" },
  ]),
];

const ODD_FIRST_TEXTS: [name: string, text: string, close: Close][] = [
  ["malformed JSON", '{"type":"req",', { code: 1000, reason: "" }],
  ["nothing", "", { code: 1000, reason: "" }],
  ["30,000 brackets", "[".repeat(30_000), { code: 1000, reason: "" }],
  ["an array", "[1,2]", invalidFrame()],
  ["a number", "1e999", invalidFrame()],
  ["null", "null", invalidFrame()],
  ["30,000 nested arrays", `${"[".repeat(30_000)}${"]".repeat(30_000)}`, invalidFrame()],
  ["no method", '{"type":"req","id":"1"}', invalidFrame()],
  ["an id that is no string", '{"type":"req","id":{"a":1},"method":"connect"}', invalidFrame()],
  ["an inherited method", '{"type":"req","id":"1","__proto__":{"method":"connect"}}', {
    code: 1008,
    reason: "invalid request frame",
  }],
  ["another method", '{"type":"req","id":"1","method":"health"}', {
    code: 1008,
    reason: "invalid handshake: first request must be connect",
  }],
];

Deno.test("a frame that breaks the rules closes the connection with the code for it", async (t) => {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  const base = gateway.memory().bytes;
  for (const [name, bytes, close] of BROKEN_FRAMES) {
    await t.step(name, async () => {
      using socket = await RawSocket.upgraded(place.port);
      socket.write(bytes);
      assertEquals(await socket.end(), close);
    });
  }
  for (const [name, text, close] of ODD_FIRST_TEXTS) {
    await t.step(`as its first message ${name}`, async () => {
      using socket = await RawSocket.upgraded(place.port);
      socket.write(encodeFrame({ payload: text }));
      assertEquals(await socket.end(), close);
    });
  }
  await t.step("connect params nested 15,000 deep are refused with an answer", async () => {
    using socket = await RawSocket.upgraded(place.port);
    const deep = `${"[".repeat(15_000)}${"]".repeat(15_000)}`;
    const params = `{"minProtocol":3,"maxProtocol":3,"client":${deep},"auth":${deep}}`;
    socket.write(
      encodeFrame({ payload: `{"type":"req","id":"1","method":"connect","params":${params}}` }),
    );
    assertEquals((await socket.end())?.code, 1008);
    assertEquals(socket.texts().at(-1)?.error.code, "INVALID_REQUEST");
  });
  await t.step("nothing of it is left, and others are served", async () => {
    await using operator = await Member.join({ port: place.port });
    assertEquals((await operator.call("health")).ok, true);
    assert(gateway.memory().bytes - base < 30 * MIB);
  });
});

Deno.test("binary frames before the handshake are ignored", async () => {
  await using place = await makePlace();
  await using _gateway = await startGatewayProcess({ place });
  using socket = await RawSocket.upgraded(place.port);

  socket.write(encodeFrame({ opcode: OPCODE.binary, payload: '{"type":"req"}' }));
  socket.send(connectRequest());
  await socket.until("hello-ok", () => socket.frames.length > 1);

  assertEquals(socket.texts()[1].payload.type, "hello-ok");
});

Deno.test("a member that sends nonsense is answered or ignored, and stays", async (t) => {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  using socket = await RawSocket.upgraded(place.port);
  socket.send(connectRequest());
  await socket.until("hello-ok", () => socket.frames.length > 1);
  let nextId = 1;
  /** Sends a text, and gives the answers up to that of a call sent behind it. */
  const answersTo = async (text: string | Uint8Array, opcode: number = OPCODE.text) => {
    const known = socket.texts().length;
    const id = `after-${nextId++}`;
    socket.write(encodeFrame({ payload: text, opcode }));
    socket.send({ type: "req", id, method: "last-heartbeat" });
    const fresh = () => socket.texts().slice(known).filter(({ type }) => type === "res");
    await socket.until("an answer", () => fresh().some((answer) => answer.id === id));
    return fresh().filter((answer) => answer.id !== id);
  };
  /** The answer to a call, however long it takes. */
  const answerTo = async (method: string, params: string) => {
    const id = `call-${nextId++}`;
    const text = `{"type":"req","id":"${id}","method":"${method}","params":${params}}`;
    socket.write(encodeFrame({ payload: text }));
    const found = () => socket.texts().find((answer) => answer.id === id);
    await socket.until(`the answer to ${method}`, () => found() !== undefined);
    return found();
  };
  const request = (fields: string) => `{"type":"req","id":"1",${fields}}`;

  await t.step("malformed JSON and binary frames are ignored", async () => {
    assertEquals(await answersTo('{"type":'), []);
    assertEquals(await answersTo("[".repeat(5_000_000)), []);
    assertEquals(await answersTo(new Uint8Array(100_000), OPCODE.binary), []);
  });
  await t.step("what is no request is answered as such", async () => {
    for (const text of ["[]", "null", "3", '"x"', '{"type":"res","id":"7"}']) {
      const [{ ok, error }] = await answersTo(text);
      assertEquals([ok, error.code], [false, "INVALID_REQUEST"]);
      assert(error.message.startsWith("invalid request frame: "), error.message);
    }
  });
  await t.step("a second connect is refused", async () => {
    const [{ error }] = await answersTo(JSON.stringify(connectRequest()));
    assertEquals(error.message, "connect is only valid as the first request");
  });
  await t.step("params nested 100,000 deep are refused, not recursed into", async () => {
    const depth = 100_000;
    const deep = `${"[".repeat(depth)}${"]".repeat(depth)}`;
    const objects = `${'{"a":'.repeat(depth)}1${"}".repeat(depth)}`;
    for (const nested of [deep, objects]) {
      for (const method of ["health", "voicewake.set", "system-event", "rpc.discover"]) {
        await answersTo(request(`"method":"${method}","params":${nested}`));
        await answersTo(request(`"method":"${method}","params":{"text":"x","tags":${nested}}`));
      }
      await answersTo(
        request(`"method":"gateway.call","params":{"method":"status","params":${nested}}`),
      );
    }
    const raw = JSON.stringify(`${"{a:".repeat(5_000)}1${"}".repeat(5_000)}`);
    const patch = await answerTo("config.patch", `{"raw":${raw}}`);
    const set = await answerTo("config.set", `{"raw":${raw}}`);
    assertEquals([patch.ok, set.ok], [false, false]);
    assertEquals([patch.error.code, set.error.code], ["INVALID_REQUEST", "INVALID_REQUEST"]);
  });
  await t.step("__proto__ and constructor change nothing for anybody", async () => {
    const poison = '{"text":"polluted","triggers":["polluted"],"enabled":true,"scope":"any"}';
    for (const key of ['"__proto__"', '"constructor":{"prototype"', '"\\u005f_proto__"']) {
      const nested = key.includes("constructor") ? `{${key}:${poison}}}` : `{${key}:${poison}}`;
      await answersTo(`{${nested.slice(1, -1)},"type":"req","id":"1","method":"status"}`);
      for (const method of ["system-event", "health", "voicewake.set", "talk.mode"]) {
        await answerTo(method, nested);
      }
      await answerTo("config.patch", `{"raw":${JSON.stringify(nested)}}`);
    }
    const event = await answerTo("system-event", "{}");
    const wake = await answerTo("voicewake.set", "{}");
    const words = await answerTo("voicewake.get", "{}");
    assertEquals([event.ok, wake.ok], [false, false]);
    assert(!words.payload.triggers.includes("polluted"));
  });
  await t.step("of keys that come twice the last one counts, also for scopes", async () => {
    const [answer] = await answersTo(request(`"method":"no.such","method":"voicewake.get"`));
    assertEquals(answer.ok, true);
    using double = await RawSocket.upgraded(place.port);
    const text = JSON.stringify(connectRequest(["operator.read"]));
    double.write(encodeFrame({
      payload: text.replace('"scopes"', '"scopes":["operator.admin"],"scopes"'),
    }));
    await double.until("hello-ok", () => double.frames.length > 1);
    assertEquals(double.texts()[1].payload.auth.scopes, ["operator.read"]);
  });
  await t.step("an id of 10 MB comes back as it was", async () => {
    const id = "i".repeat(10 * MIB);
    const [answer] = await answersTo(`{"type":"req","id":"${id}","method":"voicewake.get"}`);
    assertEquals(answer.id.length, id.length);
  });
  await t.step("no call failed in a way nobody thought of", async () => {
    assert(!socket.isGone);
    const { stderr } = await gateway.stop();
    const log = await place.log();
    assert(!log.includes("a method failed"), stderr);
  });
});

Deno.test("permessage-deflate is offered in vain", async () => {
  await using place = await makePlace();
  await using _gateway = await startGatewayProcess({ place });
  using socket = await RawSocket.open(place.port);

  socket.write(
    upgradeRequest(place.port, {
      "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits, x-webkit-deflate",
      "Sec-WebSocket-Protocol": "zero",
    }),
  );
  await socket.until("the challenge", () => socket.frames.length > 0);

  assert(!/^sec-websocket-(extensions|protocol)/im.test(socket.head), socket.head);
});

Deno.test("thousands of odd frames leave no fault behind and no memory taken", async () => {
  await fuzzFrames({ frames: 4_000, seed: 20_261_122 });
});

Deno.test("100,000 forbidden calls end one connection, fill no log and disturb nobody", async () => {
  await refusedCalls({ calls: 100_000 });
});

function invalidFrame(): Close {
  return { code: 1008, reason: "invalid request frame" };
}

function connectRequest(scopes = ["operator.admin"]): Json {
  return {
    type: "req",
    id: "connect",
    method: "connect",
    params: {
      minProtocol: 3,
      maxProtocol: 4,
      client: { id: "cli", mode: "cli", version: "1", platform: "linux" },
      scopes,
      auth: { token: TOKEN },
    },
  };
}
