// Who is asked whether a gateway lives, and what is said to whom: where a certificate is expected, nobody
// else is told a byte.

import { createServer } from "node:tls";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { Pin } from "../../config/schema.ts";
import { NO_TLS, probeGateway } from "../../tunnel/health.ts";
import { Supervisor } from "../../tunnel/supervisor.ts";
import { CERTIFICATE, FINGERPRINT, PRIVATE_KEY } from "../support/certificate.ts";
import { startTestGateway } from "../support/gateway.ts";
import { eventually } from "../support/process.ts";
import { sshdObstacle, startSshd } from "../support/sshd.ts";

if (sshdObstacle) console.log(`skipped: pins behind a real sshd, ${sshdObstacle}`);

const OTHER = "ab".repeat(32);
const TLS = { gateway: { tls: { enabled: true } } };

/** Speaks TLS with the certificate of the tests, and answers what it is asked with `answer`. */
async function startTls(answer = "") {
  const heard = { bytes: 0, dials: 0 };
  const server = createServer({ cert: CERTIFICATE, key: PRIVATE_KEY }, (socket) => {
    socket.on("error", () => {}); // a client that goes away at once
    socket.on("data", (bytes) => {
      heard.bytes += bytes.length;
      if (answer) socket.end(answer);
    });
  });
  server.on("connection", () => heard.dials++);
  server.on("tlsClientError", () => {});
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
  return {
    port: (server.address() as { port: number }).port,
    heard,
    async [Symbol.asyncDispose]() {
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** A plain server that keeps what it hears. */
function startPlain() {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const heard: Uint8Array[] = [];
  const served = (async () => {
    for await (const connection of listener) {
      const buffer = new Uint8Array(4_096);
      const count = await connection.read(buffer).catch(() => null);
      if (count !== null) heard.push(buffer.slice(0, count));
      await connection.write(new TextEncoder().encode("HTTP/1.1 400 Bad Request\r\n\r\n"))
        .catch(() => {});
      connection.close();
    }
  })();
  return {
    port: listener.addr.port,
    heard,
    async [Symbol.asyncDispose]() {
      listener.close();
      await served;
    },
  };
}

const ask = (port: number, pins?: readonly Pin[]) =>
  probeGateway(port, { timeoutMs: 30_000, pins });

Deno.test("a gateway that speaks TLS is known with its pin and without one", async () => {
  await using gateway = await startTestGateway({ config: TLS });
  const pin = gateway.running.fingerprint!;

  assertEquals((await ask(gateway.port)).verdict, "answered");
  assertEquals((await ask(gateway.port, [OTHER, pin])).verdict, "answered");
});

Deno.test("who has another certificate than the pinned one is told no byte", async () => {
  await using sink = await startTls();
  const cases: [Pin[], string][] = [
    [[OTHER], "gateway tls fingerprint mismatch"],
    [[{ sha256: FINGERPRINT, until: "2020-01-01" }], "gateway tls fingerprint mismatch"],
    [[""], "gateway tls fingerprint missing"],
  ];

  for (const [pins, message] of cases) {
    const { verdict, trouble } = await ask(sink.port, pins);
    assertEquals([verdict, trouble?.message], ["stranger", message], JSON.stringify(pins));
  }

  assert(sink.heard.dials > 0);
  assertEquals(sink.heard.bytes, 0);
});

Deno.test("who has the pinned certificate and is no gateway is told apart", async () => {
  await using other = await startTls("HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n");

  const { verdict } = await ask(other.port, [FINGERPRINT]);

  assertEquals(verdict, "foreign");
  assert(other.heard.bytes > 0);
});

Deno.test("who speaks no TLS although it is pinned hears nothing but the beginning of TLS", async () => {
  await using plain = startPlain();

  const { verdict, trouble } = await ask(plain.port, [OTHER]);

  assertEquals([verdict, trouble], ["stranger", NO_TLS]);
  assertEquals(plain.heard.map(([first]) => first), [0x16]);
});

Deno.test("a pinned port nobody listens on is refused, and a silent one times out", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;

  assertEquals((await probeGateway(port, { timeoutMs: 100, pins: [OTHER] })).verdict, "timeout");
  listener.close();
  assertEquals((await ask(port, [OTHER])).verdict, "refused");
});

Deno.test({
  name:
    "a tunnel says that the certificate behind it is another one, and is up once that is expected",
  ignore: sshdObstacle !== undefined,
  async fn() {
    await using gateway = await startTestGateway({ config: TLS });
    await using sshd = await startSshd();
    let expected: Pin[] = [OTHER];
    await using tunnel = new Supervisor({
      name: "pinned",
      target: sshd.alias,
      remotePort: gateway.port,
      isInteractive: false,
      env: sshd.env,
      pins: expected,
      currentPins: () => Promise.resolve(expected),
      timings: { downEveryMs: 50 },
    });
    tunnel.start();
    await eventually("it is looked at", () => tunnel.status.lastError !== null);
    const { state, lastError, generation } = tunnel.status;

    expected = [OTHER, gateway.running.fingerprint!];
    await tunnel.whenUp({ isPatient: true });

    assertEquals([state, lastError?.kind], ["down", "tls"]);
    assertEquals(lastError?.message, "gateway tls fingerprint mismatch");
    assertStringIncludes(lastError!.fix, `sha256:${gateway.running.fingerprint}`);
    // The connection of ssh itself was left alone.
    assertEquals([tunnel.status.generation, tunnel.status.lastError], [generation, null]);
  },
});

Deno.test({
  name: "a tunnel to a gateway without TLS, where TLS is expected, says so and not that it is gone",
  ignore: sshdObstacle !== undefined,
  async fn() {
    await using gateway = await startTestGateway();
    await using sshd = await startSshd();
    await using tunnel = new Supervisor({
      name: "plain",
      target: sshd.alias,
      remotePort: gateway.port,
      isInteractive: false,
      env: sshd.env,
      pins: [OTHER],
    });
    tunnel.start();
    await eventually("it is looked at", () => tunnel.status.lastError !== null);
    const plain = tunnel.status;
    await gateway[Symbol.asyncDispose]();
    await eventually("it is gone", () => tunnel.status.lastError?.kind === "gateway-down");

    assertEquals([plain.state, plain.lastError], ["down", { kind: "tls", ...NO_TLS }]);
  },
});
