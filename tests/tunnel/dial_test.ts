import { createServer as createHttpsServer } from "node:https";
import { createServer as createTlsServer } from "node:tls";
import { assert, assertEquals, assertRejects } from "@std/assert";
// @ts-types="npm:@types/ws@8.18.1"
import { WebSocketServer } from "ws";
import { dial, DialFailure, isPrivateAddress, plainEndpoint } from "../../tunnel/dial.ts";
import { TunnelError } from "../../tunnel/error.ts";
import { CERTIFICATE, FINGERPRINT, PRIVATE_KEY } from "../support/certificate.ts";

const TLS = { cert: CERTIFICATE, key: PRIVATE_KEY };

/** Resolves names from a table, and remembers which were asked for. */
function resolver(table: Record<string, string[]>) {
  const asked: string[] = [];
  const resolve = (name: string) => {
    asked.push(name);
    return name in table ? Promise.resolve(table[name]) : Promise.reject(new Error("no such name"));
  };
  return { asked, resolve };
}

Deno.test("plain text goes to literal private addresses and localhost, without asking for names", async () => {
  const { asked, resolve } = resolver({});

  for (
    const host of [
      "127.0.0.1",
      "127.9.9.9",
      "localhost",
      "LOCALHOST",
      "10.1.2.3",
      "172.16.0.1",
      "172.31.255.255",
      "192.168.1.5",
      "169.254.1.1",
      "100.64.0.1",
      "100.127.255.254",
      "[::1]",
      "[fe80::1]",
      "[fd7a:115c:a1e0::1]",
      "[fc00::1]",
      "[::ffff:192.168.0.1]",
      "0x7f.1", // the URL parser makes 127.0.0.1 of it
    ]
  ) {
    const endpoint = await plainEndpoint(new URL(`ws://${host}:18789`), { resolve });
    assertEquals(endpoint.href, new URL(`ws://${host}:18789`).href);
  }
  assertEquals(asked, []);
});

Deno.test("plain text goes to no public address and to no name that merely looks private", async () => {
  const { asked, resolve } = resolver({});

  for (
    const host of [
      "8.8.8.8",
      "172.15.0.1",
      "172.32.0.1",
      "192.169.0.1",
      "100.63.0.1",
      "100.128.0.1",
      "0.0.0.0",
      "[2001:db8::1]",
      "[::]",
      "[::ffff:8.8.8.8]",
      "[fec0::1]",
      "gateway.example",
      "127.0.0.1.nip.io",
      "localhost.evil.example",
      "localhost.",
      "gateway",
      "evil-local",
      "ts.net.evil.example",
    ]
  ) {
    await assertRejects(
      () => plainEndpoint(new URL(`ws://${host}:18789`), { resolve }),
      TunnelError,
      "ws:// is not encrypted",
      host,
    );
  }
  assertEquals(asked, []);
});

Deno.test("a .local or .ts.net name is dialled at exactly the address that was checked", async () => {
  const { resolve } = resolver({
    "pi.local": ["192.168.1.7"],
    "box.tail1.ts.net": ["fd7a:115c:a1e0::7", "100.100.1.7"],
  });

  const local = await plainEndpoint(new URL("ws://Pi.local:18789/path"), { resolve });
  const tailnet = await plainEndpoint(new URL("ws://box.tail1.ts.net:18789"), { resolve });

  assertEquals(local.href, "ws://192.168.1.7:18789/path");
  assertEquals(tailnet.href, "ws://[fd7a:115c:a1e0::7]:18789/");
});

Deno.test("a .local name with a public, unusable or missing address is refused", async () => {
  const { resolve } = resolver({
    "public.local": ["93.184.216.34"],
    "mixed.local": ["192.168.1.7", "93.184.216.34"],
    "zone.local": ["fe80::1%eth0"],
    "empty.local": [],
  });

  for (const name of ["public", "mixed", "zone", "empty"]) {
    await assertRejects(
      () => plainEndpoint(new URL(`ws://${name}.local`), { resolve }),
      TunnelError,
      "not encrypted",
    );
  }
  await assertRejects(
    () => plainEndpoint(new URL("ws://nobody.local"), { resolve }),
    TunnelError,
    "Cannot dial nobody.local: the name has no address",
  );
});

Deno.test("ZERO_ALLOW_INSECURE_WS lifts the rule with a warning, and only where it was needed", async () => {
  const warnings: string[] = [];
  const options = { allowInsecure: true, warn: (message: string) => warnings.push(message) };

  await plainEndpoint(new URL("ws://127.0.0.1:1"), options);
  assertEquals(warnings, []);
  const endpoint = await plainEndpoint(new URL("ws://gateway.example:1"), options);

  assertEquals(endpoint.host, "gateway.example:1");
  assertEquals(warnings, [
    "ZERO_ALLOW_INSECURE_WS: talking to gateway.example:1 without encryption",
  ]);
});

Deno.test("an address is private only as a literal", () => {
  for (const text of ["", "localhost", "10.0.0", "010.0.0.1", "10.0.0.256", "::g", "10.0.0.1:80"]) {
    assertEquals(isPrivateAddress(text), false, text);
  }
});

Deno.test("dial refuses what is no WebSocket address, and a pin without TLS", async () => {
  for (const url of ["", "127.0.0.1:18789", "http://127.0.0.1", "ws://"]) {
    await assertRejects(() => dial(url), TunnelError, "its address is no ws:// or wss:// URL");
  }
  await assertRejects(
    () => dial("ws://127.0.0.1:1", { pins: [FINGERPRINT] }),
    TunnelError,
    "gateway tls fingerprint requires wss:// gateway url",
  );
});

Deno.test("a pinned dial talks to the server that has the certificate", async () => {
  await using server = await startTlsGateway();

  const socket = await dial(server.url, { pins: ["00".repeat(32), FINGERPRINT] });
  const greeting = await new Promise((resolve, reject) => {
    socket.addEventListener("message", ({ data }) => resolve(data));
    socket.addEventListener("error", reject);
  });
  const closed = new Promise((resolve) => socket.addEventListener("close", resolve));
  socket.close(1000, "");
  await closed;

  assertEquals(greeting, "hello over TLS");
});

Deno.test("a wrong pin is told before one byte of HTTP is sent", async () => {
  await using sink = await startTlsSink();

  const error = await assertRejects(
    () => dial(sink.url, { pins: ["00".repeat(32)] }),
    TunnelError,
    "gateway tls fingerprint mismatch",
  );
  await sink.left;

  assertEquals([error.kind, sink.bytes], ["tls", 0]);
});

Deno.test("without a pin a certificate nobody signed is not accepted", async () => {
  await using sink = await startTlsSink();

  const socket = await dial(sink.url);
  await new Promise((resolve) => socket.addEventListener("close", resolve));

  assertEquals(sink.bytes, 0);
});

Deno.test("a pinned dial to nobody fails with the address and may be tried again", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();

  const error = await assertRejects(
    () => dial(`wss://127.0.0.1:${port}`, { pins: [FINGERPRINT] }),
    DialFailure,
    `Cannot dial wss://127.0.0.1:${port}`,
  );

  assert(error.isTransient);
});

Deno.test("a pinned dial to a peer that never speaks TLS ends with its signal", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const stop = new AbortController();
  const attempt = dial(`wss://127.0.0.1:${listener.addr.port}`, {
    pins: [FINGERPRINT],
    signal: stop.signal,
  });
  using _silent = await listener.accept();

  stop.abort();

  await assertRejects(() => attempt, DialFailure);
});

async function startTlsGateway() {
  const server = createHttpsServer(TLS);
  const sockets = new WebSocketServer({ server });
  sockets.on("connection", (socket) => socket.send("hello over TLS"));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
  return {
    url: `wss://127.0.0.1:${(server.address() as { port: number }).port}`,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets.clients) socket.terminate();
      await new Promise((resolve) => sockets.close(resolve));
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** A TLS server that counts what is said to it inside the encryption. */
async function startTlsSink() {
  let bytes = 0;
  const left = Promise.withResolvers<void>();
  const server = createTlsServer(TLS, (socket) => {
    socket.on("data", (data) => bytes += data.length);
    socket.on("error", () => {}); // a client that goes away during the handshake
    socket.on("close", () => left.resolve());
  });
  server.on("tlsClientError", () => {});
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
  return {
    url: `wss://127.0.0.1:${(server.address() as { port: number }).port}`,
    left: left.promise,
    get bytes() {
      return bytes;
    },
    async [Symbol.asyncDispose]() {
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
