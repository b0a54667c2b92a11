import { assert, assertEquals } from "@std/assert";
import { startTestGateway, type TestGateway, TOKEN } from "../support/gateway.ts";
import { connectParams, type Json } from "../support/client.ts";
import { frameBytes, type RawFrame, RawSocket } from "../support/raw_socket.ts";

/** A raw connection up to its challenge. */
async function knock(gateway: TestGateway): Promise<{ raw: RawSocket; connect: string }> {
  const raw = await RawSocket.upgraded(gateway.port);
  const { payload } = await raw.readJson();
  const params = await connectParams({ auth: { token: TOKEN } }, payload);
  return { raw, connect: request("connect", "connect", params) };
}

/** A raw connection that is in. */
async function enter(gateway: TestGateway): Promise<RawSocket> {
  const { raw, connect } = await knock(gateway);
  await raw.send(connect);
  assertEquals((await raw.readJson()).payload.type, "hello-ok");
  return raw;
}

function request(id: string, method: string, params?: unknown): string {
  return JSON.stringify({ type: "req", id, method, params });
}

/** The answer to a request, whatever events come before it. */
async function read(raw: RawSocket, id: string): Promise<Json> {
  while (true) {
    const frame = await raw.readJson();
    if (frame.id === id) return frame;
  }
}

const PADDING = "x".repeat(70_000);

Deno.test("frames that break the rules of WebSocket end the connection with the code that says which", async () => {
  await using gateway = await startTestGateway();
  const rows: [string, RawFrame, number][] = [
    ["not masked", { payload: "{}", isMasked: false }, 1002],
    ["a reserved bit", { payload: "{}", reserved: 4 }, 1002],
    ["another reserved bit", { payload: "{}", reserved: 1 }, 1002],
    ["an unknown opcode", { opcode: 3, payload: "{}" }, 1002],
    ["an unknown control opcode", { opcode: 11 }, 1002],
    ["a continuation of nothing", { opcode: 0, payload: "{}" }, 1002],
    ["a fragmented ping", { opcode: 9, isFinal: false }, 1002],
    ["a ping that is too long", { opcode: 9, payload: "x".repeat(126) }, 1002],
    ["text that is no UTF-8", { payload: Uint8Array.of(0xff, 0xfe) }, 1007],
    ["a close with half a code", { opcode: 8, payload: Uint8Array.of(3) }, 1002],
    ["a close with a code that is none", { opcode: 8, payload: Uint8Array.of(0, 7) }, 1002],
    ["more than 64 KiB before connect", { payload: PADDING }, 1009],
    ["a length of 4 GB", { announcedBytes: 2 ** 32 }, 1009],
    ["a length that no number holds", { announcedBytes: Number.MAX_SAFE_INTEGER }, 1009],
  ];

  for (const [name, frame, code] of rows) {
    await using raw = await RawSocket.upgraded(gateway.port);
    await raw.readFrame();
    await raw.send(frame);
    assertEquals((await raw.readClose()).code, code, name);
  }
  assertEquals((await (await gateway.connect()).call("health")).ok, true);
});

Deno.test("before connect 64 KiB are taken in one frame or in pieces, and not a byte more", async () => {
  await using gateway = await startTestGateway();
  const padded = (connect: string, bytes: number) => {
    const frame = JSON.parse(connect);
    frame.params.userAgent = "";
    frame.params.userAgent = "x".repeat(bytes - JSON.stringify(frame).length);
    return JSON.stringify(frame);
  };
  const halves = (text: string): RawFrame[] => [
    { payload: text.slice(0, 40_000), isFinal: false },
    { opcode: 0, payload: text.slice(40_000) },
  ];

  for (const split of [(text: string) => [{ payload: text }], halves]) {
    const { raw, connect } = await knock(gateway);
    for (const frame of split(padded(connect, 65_536))) await raw.send(frame);
    assertEquals((await raw.readJson()).payload.type, "hello-ok");
    raw.close();

    const other = await knock(gateway);
    for (const frame of split(padded(other.connect, 65_537))) await other.raw.send(frame);
    assertEquals((await other.raw.readClose()).code, 1009);
    other.raw.close();
  }
});

Deno.test("after connect large frames are taken, up to the limit that was told", async () => {
  await using gateway = await startTestGateway();
  await using raw = await enter(gateway);

  await raw.send(request("big", "wake", { mode: "now", text: " ".repeat(2_000_000) }));
  assertEquals((await read(raw, "big")).payload, { ok: false });
  await raw.send({ announcedBytes: 26_214_401 });

  assertEquals((await raw.readClose()).code, 1009);
});

Deno.test("a message in pieces is put together, with pings answered in between", async () => {
  await using gateway = await startTestGateway();
  await using raw = await enter(gateway);
  const text = request("p", "gateway.call", { method: "last-heartbeat" });

  await raw.send({ payload: text.slice(0, 5), isFinal: false });
  await raw.send({ opcode: 9, payload: "are you there" });
  await raw.send({ opcode: 0, payload: text.slice(5, 20), isFinal: false });
  await raw.send({ opcode: 0, payload: text.slice(20) });

  let pong;
  for (let frame; (frame = await raw.readFrame());) {
    if (frame.opcode === 10) pong = frame.text;
    if (frame.opcode === 1 && JSON.parse(frame.text).id === "p") break;
  }
  assertEquals(pong, "are you there");
});

Deno.test("a gateway masks nothing and compresses nothing, whatever a client offers", async () => {
  await using gateway = await startTestGateway();
  await using raw = await RawSocket.open(gateway.port);

  const { status, headers } = await raw.upgrade({
    headers: {
      "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
      "Sec-WebSocket-Protocol": "zero, chat",
    },
  });
  const challenge = await raw.readFrame();

  assertEquals(status, 101);
  assertEquals(headers.get("sec-websocket-extensions"), null);
  assertEquals(headers.get("sec-websocket-protocol"), null);
  assertEquals([challenge?.opcode, challenge?.isMasked, challenge?.isFinal], [1, false, true]);
});

Deno.test("a close is answered with a close", async () => {
  await using gateway = await startTestGateway();
  await using raw = await enter(gateway);

  await raw.send({ opcode: 8, payload: Uint8Array.of(0x03, 0xe8) });

  assertEquals((await raw.readClose()).code, 1000);
});

Deno.test("frames sent behind connect are served after it, in their order", async () => {
  await using gateway = await startTestGateway();
  const { raw, connect } = await knock(gateway);
  await using _raw = raw;
  const frames = [connect, request("1", "last-heartbeat"), "no json", request("2", "no.such")];
  const bytes = frames.map((payload) => [...frameBytes({ payload })]).flat();

  await raw.write(Uint8Array.from(bytes));

  const answers: string[] = [];
  while (answers.at(-1) !== "2") {
    const frame = await raw.readJson();
    if (frame.type === "res") answers.push(frame.id);
  }
  assertEquals(answers, ["connect", "1", "2"]);
});

Deno.test("a connect that comes in the same packet as the upgrade is answered", async () => {
  await using gateway = await startTestGateway();
  await using raw = await RawSocket.open(gateway.port);
  const params = await connectParams({ auth: { token: TOKEN } }, { nonce: "", ts: 0 });
  const upgrade = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n" +
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
  const frame = frameBytes({ payload: request("c", "connect", params) });

  await raw.write(Uint8Array.from([...new TextEncoder().encode(upgrade), ...frame]));

  assertEquals((await raw.readHead()).status, 101);
  assertEquals((await read(raw, "c")).payload.type, "hello-ok");
});

Deno.test("nothing that was sent behind a refused connect is served", async () => {
  await using gateway = await startTestGateway();
  await using raw = await RawSocket.upgraded(gateway.port);
  const { payload } = await raw.readJson();
  const params = await connectParams({ auth: { token: "wrong" } }, payload);
  const frames = [
    request("connect", "connect", params),
    request("1", "wake", { mode: "now", text: "smuggled" }),
  ];

  for (const frame of frames) await raw.send(frame);

  const refusal = await raw.readJson();
  assertEquals([refusal.id, refusal.ok], ["connect", false]);
  assertEquals((await raw.readClose()).code, 1008);
  const operator = await gateway.connect();
  assertEquals((await operator.call("status", {})).queuedSystemEvents, []);
});

Deno.test("who sends more than 64 KiB behind a connect that is not decided yet is cut off", async () => {
  await using gateway = await startTestGateway();
  // Ten wrong secrets make the eleventh wait for its answer.
  for (let count = 0; count < 10; count++) await gateway.refused({ auth: { token: "wrong" } });
  await using raw = await RawSocket.upgraded(gateway.port);
  const { payload } = await raw.readJson();
  const params = await connectParams({ auth: { token: "wrong" } }, payload);

  await raw.send(request("connect", "connect", params));
  for (let count = 0; count < 3; count++) await raw.send("y".repeat(30_000));

  assertEquals(await raw.readClose(), { code: 1009, reason: "preauth payload too large" });
});

Deno.test("a second connect is refused and the connection goes on", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();

  const error = await client.refused("connect", {});

  assertEquals(error, {
    code: "INVALID_REQUEST",
    message: "connect is only valid as the first request",
  });
  assertEquals((await client.call("health")).ok, true);
});

Deno.test("binary frames are dropped, before connect and after it", async () => {
  await using gateway = await startTestGateway();
  const { raw, connect } = await knock(gateway);
  await using _raw = raw;

  await raw.send({ opcode: 2, payload: connect });
  await raw.send(connect);
  assertEquals((await raw.readJson()).payload.type, "hello-ok");
  await raw.send({ opcode: 2, payload: request("b", "health") });
  await raw.send(request("t", "last-heartbeat"));

  const ids: string[] = [];
  while (ids.at(-1) !== "t") {
    const { type, id } = await raw.readJson();
    if (type === "res") ids.push(id);
  }
  assertEquals(ids, ["t"]);
});

Deno.test("a frame that is no request is answered, one that is no JSON is not, and both leave the connection open", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();
  const rows: [string, string, string][] = [
    [`[]`, "invalid", "must be object"],
    [`{"type":"res","id":"a","ok":true}`, "a", "at /type: must be 'req'"],
    [`{"type":"req","method":"health"}`, "invalid", "at /id: must be a non-empty string"],
    [`{"type":"req","id":"b"}`, "b", "at /method: must be a non-empty string"],
    [`{"type":"req","id":"c","method":{}}`, "c", "at /method: must be a non-empty string"],
    [`null`, "invalid", "must be object"],
  ];

  for (const [text, id, problem] of rows) {
    client.socket.send("{ no json");
    client.socket.send(text);
    const frame = await client.socket.take((one) => one.type === "res");
    assertEquals([frame.id, frame.ok], [id, false]);
    assertEquals(frame.error, {
      code: "INVALID_REQUEST",
      message: `invalid request frame: ${problem}`,
    });
  }
  assertEquals((await client.call("health")).ok, true);
  assert((await gateway.log()).includes("ignored a frame that is no JSON"));
});

Deno.test("nesting, prototypes and odd texts in params are values like others", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();
  const deep = `${"[".repeat(20_000)}${"]".repeat(20_000)}`;
  const rows = [
    `{"mode":"now","text":"t","__proto__":{"isAdmin":true}}`,
    `{"mode":"now","text":"t","constructor":{"prototype":{"isAdmin":true}}}`,
    `{"mode":"now","text":"t","deep":${deep}}`,
    `{"mode":"now","text":${JSON.stringify("\u0000\ud800😀\u2028")}}`,
    `{"mode":"now","text":"t","text":"twice"}`,
  ];

  for (const [index, params] of rows.entries()) {
    client.socket.send(`{"type":"req","id":"o${index}","method":"wake","params":${params}}`);
    const frame = await client.socket.take(({ id }) => id === `o${index}`);
    assertEquals(frame.payload, { ok: true }, params.slice(0, 80));
  }
  client.socket.send(`{"type":"req","id":"d","method":"wake","params":{"text":${deep}}}`);
  const { error } = await client.socket.take(({ id }) => id === "d");
  assert(error.message.startsWith("invalid wake params: "), error.message);
  assertEquals(({} as Json).isAdmin, undefined);
});

Deno.test("requests run side by side: a slow one does not hold up the next", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();
  client.socket.send(request("slow", "config.get"));
  client.socket.send(request("quick", "last-heartbeat"));

  const first = await client.socket.take(({ type }) => type === "res");
  const second = await client.socket.take(({ type }) => type === "res");

  assertEquals([first.id, second.id], ["quick", "slow"]);
});

Deno.test("an id may be used again, and any text is one", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();

  for (const id of ["same", "same", 'é\n"', "x".repeat(5_000)]) {
    client.socket.send({ type: "req", id, method: "last-heartbeat" });
    assertEquals((await client.socket.take((frame) => frame.id === id)).payload, null);
  }
});

Deno.test("the fiftieth refused call within a minute ends the connection", async () => {
  await using gateway = await startTestGateway();
  const nobody = await gateway.connect({ scopes: [] });
  const refused = ["health", "no.such", "gateway.call", "node.invoke.result"];

  for (let count = 0; count < 49; count++) {
    const method = refused[count % refused.length];
    await nobody.refused(method, method === "gateway.call" ? { method: "status" } : {});
  }
  assert(!nobody.socket.isClosed);
  await nobody.refused("health");

  assertEquals(await nobody.closed, { code: 1008, reason: "repeated unauthorized calls" });
});

Deno.test("calls that fail for other reasons do not count towards the end", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect();

  for (let count = 0; count < 60; count++) await client.refused("wake", { mode: "never" });

  assertEquals((await client.call("health")).ok, true);
});

Deno.test("a JSON-RPC connection ends after fifty refused calls as well, also in one batch", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect({ jsonrpc: true, scopes: [] });
  const call = (id: number) => ({ jsonrpc: "2.0", id, method: "health" });

  client.socket.send(Array.from({ length: 60 }, (_, id) => call(id)));

  assertEquals(await client.closed, { code: 1008, reason: "repeated unauthorized calls" });
});

Deno.test("a JSON-RPC connection answers batches, notifications and what is no call", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect({ jsonrpc: true });
  const call = (id: unknown, method: string) => ({ jsonrpc: "2.0", id, method });

  client.socket.send({ jsonrpc: "2.0", method: "wake", params: { mode: "now", text: "told" } });
  client.socket.send([call(1, "last-heartbeat"), call(2, "no.such"), call(3, "connect")]);
  const batch = await client.socket.take(Array.isArray);
  client.socket.send("no json");
  const unparsed = await client.socket.take(({ id }) => id === null);
  client.socket.send({ type: "req", id: "native", method: "health" });
  const native = await client.socket.take(({ id }) => id === "native");

  assertEquals(batch.map((one: Json) => one.error?.code ?? one.result), [null, -32601, -32600]);
  assertEquals([unparsed.error.code, native.error.code], [-32700, -32600]);
  assertEquals((await client.call("status")).queuedSystemEvents, ["told"]);
});

Deno.test("a request for an upgrade that is none gets an answer, and nothing breaks", async () => {
  await using gateway = await startTestGateway();
  const targets = ["*", "//", "//:80", "/\\", "http://[", "/%ff%00"];

  for (const target of targets) {
    await using raw = await RawSocket.open(gateway.port);
    const { status } = await raw.upgrade({ target });
    assert(status === 101 || status >= 400, `${target}: ${status}`);
  }
  await using nameless = await RawSocket.open(gateway.port);
  assertEquals((await nameless.upgrade({ host: null })).status, 421);
  for (
    const noise of [
      "\x16\x03\x01\x02\x00\x01\x00\x01 no http\r\n\r\n",
      "GET /\u00e9 HTTP/9\r\n\r\n",
    ]
  ) {
    await using raw = await RawSocket.open(gateway.port);
    await raw.write(noise);
    await raw.readAll();
  }
  assertEquals((await (await gateway.connect()).call("health")).ok, true);
});
