// X19: whoever holds another certificate learns nothing. A TLS server with the wrong one counts what is
// said to it inside the encryption, on every way a client has.

import { createServer } from "node:tls";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { encodeLink } from "../../gateway/join.ts";
import { Client } from "../../rpc/client.ts";
import { dial } from "../../tunnel/dial.ts";
import { CERTIFICATE, FINGERPRINT, PRIVATE_KEY } from "../support/certificate.ts";
import { type CliResult, spawnZero, zero } from "../support/cli.ts";
import { eventually } from "../support/process.ts";

const PIN = "ab".repeat(32);
const TOKEN = "canary-token-0123456789abcdef";
const MISMATCH = "gateway tls fingerprint mismatch";

/** Speaks TLS with a certificate nobody expects. */
async function startSink() {
  const seen = { bytes: 0, dials: 0 };
  const server = createServer({ cert: CERTIFICATE, key: PRIVATE_KEY }, (socket) => {
    socket.on("data", (data) => seen.bytes += data.length);
    socket.on("error", () => {}); // a client that goes away at once
  });
  server.on("connection", () => seen.dials++);
  server.on("tlsClientError", () => {});
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
  const { port } = server.address() as { port: number };
  return {
    port,
    url: `wss://127.0.0.1:${port}`,
    seen,
    async [Symbol.asyncDispose]() {
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** A home whose configuration says where to go. */
async function machine(config: unknown, env: Record<string, string> = {}) {
  const home = await Deno.makeTempDir({ prefix: "zero-sink-" });
  await Deno.mkdir(`${home}/state`, { mode: 0o700 });
  const file = `${home}/state/zero.json`;
  await Deno.writeTextFile(file, JSON.stringify(config), { mode: 0o600 });
  return {
    home,
    env,
    run: (args: string[], stdin?: string): Promise<CliResult> => zero(args, { home, env, stdin }),
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
}

function remoteTo(url: string, tlsFingerprint: unknown = PIN) {
  return { gateway: { mode: "remote", remote: { url, token: TOKEN, tlsFingerprint } } };
}

Deno.test("every command that calls a gateway stops at the wrong certificate, and says so", async (t) => {
  await using sink = await startSink();
  await using at = await machine({
    ...remoteTo(sink.url),
    remotes: { box: { url: sink.url, token: TOKEN, tlsFingerprint: [PIN, { sha256: PIN }] } },
  });
  const commands = [
    ["health"],
    ["call", "status"],
    ["devices", "list"],
    ["devices", "invite"],
    ["nodes", "status"],
    ["logs"],
    ["health", "--remote", "box"],
    ["health", "--url", sink.url],
    ["health", "--url", sink.url, "--tls-fingerprint", `${PIN},sha256:${PIN}`, "--token", TOKEN],
  ];

  for (const command of commands) {
    await t.step(command.slice(0, 2).join(" "), async () => {
      const before = sink.seen.dials;
      const { code, stderr } = await at.run(command);

      assertEquals(code, 1, stderr);
      assertStringIncludes(stderr, MISMATCH);
      assertStringIncludes(stderr, "layer: tls");
      assert(!stderr.includes(TOKEN));
      assert(sink.seen.dials > before, "the sink was not even dialled");
      assertEquals(sink.seen.bytes, 0);
    });
  }
});

Deno.test("status and probe report the wrong certificate, and send nothing", async () => {
  await using sink = await startSink();
  await using at = await machine(remoteTo(sink.url));

  const status = await at.run(["status", "--json"]);
  const probe = await at.run(["gateway", "probe", "--json"]);

  assertEquals(status.json.gateway.error, MISMATCH);
  const target = probe.json.targets.find(({ kind }: { kind: string }) => kind === "configRemote");
  assertStringIncludes(target.connect.error, MISMATCH);
  assert(sink.seen.dials >= 2);
  assertEquals(sink.seen.bytes, 0);
});

Deno.test("the gateway of this machine is expected to have its own certificate", async () => {
  await using sink = await startSink();
  await using at = await machine(
    { gateway: { tls: { enabled: true } } },
    { ZERO_GATEWAY_PORT: String(sink.port), ZERO_GATEWAY_TOKEN: TOKEN },
  );
  const directory = `${at.home}/state/gateway/tls`;
  await Deno.mkdir(directory, { recursive: true, mode: 0o700 });
  const { makeCertificate } = await import("../../gateway/tls_certificate.ts");
  const { cert } = await makeCertificate({ dns: ["localhost"], ip: [] }, Date.now());
  await Deno.writeTextFile(`${directory}/gateway-cert.pem`, cert);

  const health = await at.run(["health"]);
  const status = await at.run(["gateway", "status", "--json"]);

  assertEquals(health.code, 1);
  assertStringIncludes(health.stderr, MISMATCH);
  assertEquals([status.json.rpc.ok, status.json.rpc.error], [false, MISMATCH]);
  assertEquals(status.json.service.runtime.status, "stopped");
  assertEquals(sink.seen.bytes, 0);
});

Deno.test("zero join stops at the wrong certificate, and writes nothing", async () => {
  await using sink = await startSink();
  await using at = await machine({});
  const link = encodeLink({
    v: 1,
    url: sink.url,
    secret: TOKEN,
    role: "operator",
    scopes: ["operator.read"],
    pin: PIN,
    nextPin: "cd".repeat(32),
  });

  const { code, stderr } = await at.run(["join"], link);

  assertEquals(code, 1);
  assertStringIncludes(stderr, MISMATCH);
  assertEquals(await Deno.readTextFile(`${at.home}/state/zero.json`), "{}");
  assertEquals([sink.seen.dials > 0, sink.seen.bytes], [true, 0]);
});

Deno.test("a node host stops at the wrong certificate, by configuration and by flags", async () => {
  await using sink = await startSink();
  await using at = await machine(remoteTo(sink.url));
  const flags = ["--host", "127.0.0.1", "--port", String(sink.port), "--tls-fingerprint", PIN];

  for (const args of [[], flags]) {
    const child = spawnZero(["node", "run", ...args], at);
    const output = child.output();
    try {
      await eventually("it has told why it waits", async () => {
        const { json } = await at.run(["node", "status", "--json"]);
        return json.problem === MISMATCH;
      });
    } finally {
      child.kill("SIGTERM");
      await output;
    }
    assertStringIncludes(new TextDecoder().decode((await output).stderr), MISMATCH);
  }
  assertEquals([sink.seen.dials > 0, sink.seen.bytes], [true, 0]);
});

Deno.test("a client that reconnects does not do so after the wrong certificate", async () => {
  await using sink = await startSink();
  const downs: (number | undefined)[] = [];

  const error = await Client.connect({
    open: (signal) => dial(sink.url, { pins: [PIN], signal }),
    client: { id: "cli", mode: "cli", version: "0.0.0", platform: "test" },
    auth: { token: TOKEN },
    reconnect: true,
    onDown: (_error, retryInMs) => downs.push(retryInMs),
  }).catch((error) => error);

  await eventually("it was dialled", () => sink.seen.dials > 0);
  assertEquals([error.message, downs], [MISMATCH, [undefined]]);
  assertEquals([sink.seen.dials, sink.seen.bytes], [1, 0]);
});

Deno.test("a pin that has expired does not count, is named, and never means no pin", async () => {
  await using sink = await startSink();
  const over = { sha256: FINGERPRINT, until: "2026-01-01" };
  await using at = await machine(remoteTo(sink.url, [over]));

  const { code, stderr } = await at.run(["health"]);

  const hex = FINGERPRINT.replaceAll(":", "").toLowerCase();
  assertEquals(code, 1);
  assertStringIncludes(stderr, MISMATCH);
  assertStringIncludes(stderr, `sha256:${hex} counted until 2026-01-01`);
  assertEquals([sink.seen.dials > 0, sink.seen.bytes], [true, 0]);
});
