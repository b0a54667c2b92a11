import { connect, createServer, type Socket } from "node:net";
import { connect as connectTls, createSecureContext, type TLSSocket } from "node:tls";
import { assert, assertEquals } from "@std/assert";
import { secure } from "../../gateway/tls_socket.ts";
import { CERTIFICATE, PRIVATE_KEY } from "../support/certificate.ts";
import { within } from "../support/client.ts";
import { startRelay } from "../support/relay.ts";

const MEGABYTE = 1_048_576;

/** A server that makes every socket it accepts a TLS one. */
async function startServer({ timeoutMs = 60_000 } = {}) {
  const context = createSecureContext({ cert: CERTIFICATE, key: PRIVATE_KEY });
  const arrived = Promise.withResolvers<Socket>();
  const secured = Promise.withResolvers<Socket>();
  const all = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (raw) => {
    all.add(raw);
    arrived.resolve(raw);
    secure(raw, { context, timeoutMs, secured: secured.resolve });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
  return {
    port: (server.address() as { port: number }).port,
    raw: () => within(arrived.promise, "the connection"),
    socket: () => within(secured.promise, "the handshake"),
    async [Symbol.asyncDispose]() {
      for (const raw of all) raw.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function dialTls(port: number): TLSSocket {
  const socket = connectTls({ port, host: "127.0.0.1", rejectUnauthorized: false });
  socket.on("error", () => {});
  return socket;
}

/** Everything that comes until the end. */
function readAll(socket: Socket): Promise<string> {
  let text = "";
  socket.on("data", (bytes) => text += String(bytes));
  socket.on("error", () => {});
  return within(
    new Promise((resolve) => socket.on("close", () => resolve(text))),
    "the end of the connection",
  );
}

Deno.test("what is written inside arrives at the other end, and the address is that of the peer", async () => {
  await using server = await startServer();
  const client = dialTls(server.port);
  const socket = await server.socket();

  const answer = readAll(client);
  client.write("question");
  const question = await within(
    new Promise((resolve) => socket.once("data", (bytes) => resolve(String(bytes)))),
    "the question",
  );
  socket.end("answer");

  assertEquals([question, await answer], ["question", "answer"]);
  assertEquals(socket.remoteAddress, "127.0.0.1");
});

Deno.test("plain HTTP at a TLS port is told what to use instead, and ended", async () => {
  await using server = await startServer();
  const client = connect(server.port, "127.0.0.1");

  const answer = readAll(client);
  client.write("GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
  const text = await answer;

  assert(text.startsWith("HTTP/1.1 400 Bad Request\r\n"), text);
  assert(text.endsWith("\r\n\r\nThis port speaks TLS: use https:// or wss://\n"), text);
});

Deno.test("what is neither TLS nor HTTP is ended without a word", async () => {
  for (const bytes of ["\x00\x01\x02", "SSH-2.0-OpenSSH_9.6\r\n", "\x16\x03\x01\x00\x04junk"]) {
    await using server = await startServer();
    const client = connect(server.port, "127.0.0.1");

    const answer = readAll(client);
    client.write(bytes, "latin1");

    // A record that is no handshake is answered with an alert of TLS.
    assert([0, 7].includes((await answer).length), JSON.stringify(bytes));
  }
});

Deno.test("a peer that never finishes the handshake is dropped at its deadline", async () => {
  for (const bytes of ["", "\x16", "\x16\x03\x01\x02\x00"]) {
    await using server = await startServer({ timeoutMs: 50 });
    const client = connect(server.port, "127.0.0.1");

    const answer = readAll(client);
    if (bytes) client.write(bytes, "latin1");

    assertEquals(await answer, "");
  }
});

Deno.test("a peer that leaves before it said anything is let go at once", async () => {
  await using server = await startServer();
  const client = connect(server.port, "127.0.0.1");
  const raw = await server.raw();
  const gone = within(new Promise((resolve) => raw.once("close", resolve)), "the close");

  client.end();

  await gone;
  client.destroy();
});

Deno.test("what nobody takes is not read: the flood waits at the peer, and goes on afterwards", async () => {
  await using server = await startServer();
  const client = dialTls(server.port);
  const socket = await server.socket();
  const raw = await server.raw();
  const held = new Promise((resolve) => raw.once("pause", resolve));

  client.end(new Uint8Array(32 * MEGABYTE));
  await within(held, "the pause");
  const readBytes = raw.bytesRead;
  let got = 0;
  socket.on("data", (bytes) => got += bytes.length);
  await within(new Promise((resolve) => socket.once("end", resolve)), "the end");
  client.destroy();

  assert(readBytes < MEGABYTE, `${readBytes} bytes were read for nobody`);
  assertEquals(got, 32 * MEGABYTE);
});

Deno.test("what a peer does not read counts as unsent, and goes with it", async () => {
  await using server = await startServer();
  await using relay = await startRelay(server.port);
  const client = dialTls(relay.port);
  const socket = await server.socket();
  const raw = await server.raw();
  relay.pause();

  const stuck = new Promise<void>((resolve) => {
    // Sent as long as the network takes it: then nothing comes back.
    const more = () => socket.write(new Uint8Array(MEGABYTE), () => resolve());
    for (let i = 0; i < 64; i++) more();
  });
  await within(stuck, "the first megabyte");
  const unsent = socket.writableLength;
  const gone = new Promise((resolve) => raw.once("close", resolve));
  socket.destroy();
  await within(gone, "the close");
  client.destroy();

  assert(unsent > 32 * MEGABYTE, `${unsent} bytes count as unsent`);
});
