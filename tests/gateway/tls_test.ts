import { createPrivateKey, X509Certificate } from "node:crypto";
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { gatewaySettings } from "../../config/settings.ts";
import { StartRefusal } from "../../gateway/preflight.ts";
import {
  activateNext,
  type CertificateFiles,
  certificateFiles,
  describeCertificate,
  loadCertificate,
  loadNext,
  makeCertificate,
  ownNames,
  storeCertificate,
  storeNext,
} from "../../gateway/tls_certificate.ts";
import { Client, reconnectDelayMs } from "../../rpc/client.ts";
import { dial, shownFingerprint } from "../../tunnel/dial.ts";
import { TunnelError } from "../../tunnel/error.ts";
import { CERTIFICATE, LEAF_CERTIFICATE, LEAF_KEY, PRIVATE_KEY } from "../support/certificate.ts";
import { zero } from "../support/cli.ts";
import { startTestGateway, type TestGateway, type TestGatewayOptions } from "../support/gateway.ts";
import { eventually } from "../support/process.ts";
import { RawSocket } from "../support/raw_socket.ts";
import { startRelay } from "../support/relay.ts";
import { startTestNode } from "./node/support.ts";

const TLS = { gateway: { tls: { enabled: true } } };
const NAMES = { dns: ["localhost"], ip: ["127.0.0.1"] };

function startTls(options: TestGatewayOptions = {}): Promise<TestGateway> {
  return startTestGateway({ config: TLS, ...options });
}

function filesOf({ paths, running }: TestGateway): CertificateFiles {
  return certificateFiles(running.settings.tls, paths.stateDir);
}

async function tempFiles() {
  const dir = await Deno.makeTempDir({ prefix: "zero-tls-" });
  const { tls } = gatewaySettings({ env: {}, config: {} });
  return {
    dir,
    files: certificateFiles(tls, dir),
    [Symbol.asyncDispose]: () => Deno.remove(dir, { recursive: true }),
  };
}

/** Makes the next certificate. @returns its fingerprint */
async function makeNext(gateway: TestGateway): Promise<string> {
  const pair = await makeCertificate(NAMES, Date.now());
  await storeNext(filesOf(gateway), pair);
  return describeCertificate(pair.cert).fingerprint;
}

function connectClient(url: string, pins: string[], token: string) {
  const downs: Error[] = [];
  const client = Client.connect({
    open: (signal) => dial(url, { pins, signal }),
    client: { id: "cli", mode: "cli", version: "0.0.0", platform: "test" },
    auth: { token },
    scopes: ["operator.admin"],
    reconnect: { delayMs: (error) => reconnectDelayMs(error, 0) === undefined ? undefined : 1 },
    onDown: (error) => downs.push(error),
  });
  return { client, downs };
}

Deno.test("a made certificate is for this machine's names, valid for years, and its key private", async () => {
  await using temp = await tempFiles();
  const names = ownNames(
    { addresses: ["127.0.0.1", "10.1.2.3", "fe80::1", "fd7a:115c:a1e0::7"], hostname: "Box" },
    { tailnetName: "box.tail1.ts.net", allowedHosts: ["zero.example.org"] },
  );

  const pair = await makeCertificate(names, Date.now());
  await storeCertificate(temp.files, pair);
  const { cert } = (await loadCertificate(temp.files))!;
  const certificate = new X509Certificate(cert);
  const { names: shown, notAfterMs, notBeforeMs, isSelfSigned, subject } = describeCertificate(
    cert,
  );

  assertEquals(shown, [
    "localhost",
    "box",
    "box.local",
    "box.tail1.ts.net",
    "zero.example.org",
    "127.0.0.1",
    "::1",
    "10.1.2.3",
    "fd7a:115c:a1e0::7",
  ]);
  assertEquals([isSelfSigned, subject, certificate.ca], [true, "CN=zero-gateway", false]);
  assert(notBeforeMs < Date.now() && notAfterMs > Date.now() + 3_600 * 86_400_000);
  assert(certificate.checkPrivateKey(createPrivateKey(pair.key)));
  for (const file of [temp.files.cert, temp.files.key]) {
    assertEquals((await Deno.stat(file)).mode! & 0o777, 0o600, file);
  }
  assertEquals((await Deno.stat(`${temp.dir}/gateway/tls`)).mode! & 0o777, 0o700);
});

Deno.test("a rotation that was cut off between its two files is finished by the next reader", async () => {
  await using temp = await tempFiles();
  await storeCertificate(temp.files, { cert: CERTIFICATE, key: PRIVATE_KEY });
  const next = await makeCertificate(NAMES, Date.now());
  await storeNext(temp.files, next);

  await Deno.rename(temp.files.nextCert, temp.files.cert);

  assertEquals(await loadCertificate(temp.files), next);
  assertEquals(await Deno.readTextFile(temp.files.key), next.key);
  assertEquals(await loadNext(temp.files), undefined);
});

Deno.test("wss:// and https:// are served on one port, with a certificate that was made", async () => {
  await using gateway = await startTls();
  const { fingerprint } = gateway.running;
  const client = await gateway.connect();

  const health = await client.call("health", {});
  const shown = await shownFingerprint(gateway.url);
  const { status, text } = await overTls(gateway, "GET /healthz HTTP/1.1");

  assertEquals(shown, fingerprint);
  assertEquals(health.tls.fingerprint, fingerprint);
  assertEquals([status, text.includes('{"ok":true,"status":"live"}')], [200, true]);
});

Deno.test("a client on this machine is local under TLS as well: the address is that of the peer", async () => {
  await using gateway = await startTls();

  const client = await gateway.connect({ device: true, auth: { token: gateway.token } });
  const log = await gateway.log();

  assertEquals((await client.call("device.pair.list", {})).pending, []);
  assertStringIncludes(log, '"ip":"127.0.0.1"');
});

Deno.test("a stranger's message over 64 KiB closes 1009 under TLS as well", async () => {
  await using gateway = await startTls();
  const socket = await gateway.open();

  socket.send("x".repeat(65_537));

  assertEquals((await socket.closed).code, 1009);
});

Deno.test("a plain client at the TLS port is answered and ended, and the gateway goes on", async () => {
  await using gateway = await startTls();
  await using plain = await RawSocket.open(gateway.port);

  const { status } = await plain.upgrade();

  assertEquals(status, 400);
  await using client = await gateway.connect();
  assertEquals((await client.call("health", {})).ok, true);
});

Deno.test("another certificate is served without dropping anybody, and a client with both pins stays", async () => {
  await using gateway = await startTls();
  await using relay = await startRelay(gateway.port);
  const url = `wss://127.0.0.1:${relay.port}`;
  const before = gateway.running.fingerprint!;
  const after = await makeNext(gateway);
  const both = connectClient(url, [before, after], gateway.token);
  await using client = await both.client;
  const single = connectClient(gateway.url, [before], gateway.token);
  await using old = await single.client;

  await activateNext(filesOf(gateway));
  await eventually("it is served", async () => await shownFingerprint(gateway.url) === after);
  const whileUp = [await client.call("health"), await old.call("health")] as { ok: boolean }[];
  const noDowns = [...both.downs, ...single.downs];
  relay.cut();
  await eventually(
    "it is connected again",
    () => client.call("health").then(() => both.downs.length > 0, () => false),
  );
  const refused = await assertRejects(
    () => dial(gateway.url, { pins: [before] }),
    TunnelError,
    "gateway tls fingerprint mismatch",
  );

  assertEquals([whileUp.map(({ ok }) => ok), noDowns], [[true, true], []]);
  assert(both.downs.every((error) => !(error instanceof TunnelError)), String(both.downs));
  assertStringIncludes(refused.fix, `It showed sha256:${after}`);
});

Deno.test("a node with two pins comes back after the certificate was rotated under it", async () => {
  await using gateway = await startTls();
  await using relay = await startRelay(gateway.port);
  const before = gateway.running.fingerprint!;
  const after = await makeNext(gateway);
  const remote = {
    url: `wss://127.0.0.1:${relay.port}`,
    token: gateway.token,
    tlsFingerprint: [before, { sha256: after }],
  };
  await using _node = await startTestNode(gateway, {
    config: { gateway: { mode: "remote", remote } },
    flags: {},
    random: () => 0,
  });
  await using operator = await gateway.connect();
  const [{ connectedAtMs }] = (await operator.call("node.list", {})).nodes;

  await activateNext(filesOf(gateway));
  await eventually("it is served", async () => await shownFingerprint(gateway.url) === after);
  relay.cut();

  await eventually("the node is back", async () => {
    const [node] = (await operator.call("node.list", {})).nodes;
    return node.connected && node.connectedAtMs !== connectedAtMs;
  });
});

Deno.test("files that do not belong together are not served: the certificate before stays", async () => {
  await using gateway = await startTls();
  const { fingerprint } = gateway.running;

  await Deno.writeTextFile(filesOf(gateway).cert, CERTIFICATE);

  await using operator = await gateway.connect();
  await eventually("it is told", async () => {
    const { degraded = [] } = await operator.call("health", { probe: true });
    return degraded.some(({ part }: { part: string }) => part === "tls");
  });
  assertEquals(await shownFingerprint(gateway.url), fingerprint);
});

Deno.test("a certificate of one's own is served from where it is, and never replaced", async () => {
  await using temp = await tempFiles();
  const own = { certPath: `${temp.dir}/own.pem`, keyPath: `${temp.dir}/own.key` };
  await Deno.writeTextFile(own.certPath, CERTIFICATE);
  await Deno.writeTextFile(own.keyPath, PRIVATE_KEY, { mode: 0o600 });

  await using gateway = await startTls({
    config: { gateway: { tls: { enabled: true, ...own } } },
  });

  assertEquals(
    await shownFingerprint(gateway.url),
    describeCertificate(CERTIFICATE).fingerprint,
  );
  const { tls } = gatewaySettings({ env: {}, config: {} });
  assertEquals(await loadCertificate(certificateFiles(tls, gateway.paths.stateDir)), undefined);
});

Deno.test("a chain that was replaced beside its certificate is served without a restart", async () => {
  await using temp = await tempFiles();
  const own = {
    certPath: `${temp.dir}/own.pem`,
    keyPath: `${temp.dir}/own.key`,
    caPath: `${temp.dir}/chain.pem`,
  };
  await Deno.writeTextFile(own.certPath, LEAF_CERTIFICATE);
  await Deno.writeTextFile(own.keyPath, LEAF_KEY, { mode: 0o600 });
  await Deno.writeTextFile(own.caPath, "");
  await using gateway = await startTls({ config: { gateway: { tls: { enabled: true, ...own } } } });
  const { connect } = await import("node:tls");
  const isTrusted = () =>
    new Promise<boolean>((resolve) => {
      const socket = connect({ port: gateway.port, host: "127.0.0.1", rejectUnauthorized: false });
      socket.once("secureConnect", () => {
        // Only with the chain is there somebody who signed it.
        resolve(Object.keys(socket.getPeerCertificate(true).issuerCertificate ?? {}).length > 0);
        socket.destroy();
      });
      socket.once("error", () => resolve(false));
    });
  assertEquals(await isTrusted(), false);

  await Deno.writeTextFile(own.caPath, CERTIFICATE);

  await eventually("the chain is served", isTrusted);
});

Deno.test("a start without a usable certificate is refused with what stands in the way", async () => {
  await using temp = await tempFiles();
  const key = `${temp.dir}/key.pem`;
  const cert = `${temp.dir}/cert.pem`;
  const other = await makeCertificate(NAMES, Date.now());
  await Deno.writeTextFile(key, other.key);
  const rows: [tls: Record<string, unknown>, written: string | null, text: string][] = [
    [
      { certPath: `${temp.dir}/none.pem`, keyPath: `${temp.dir}/none.key` },
      null,
      "cert/key missing",
    ],
    [{ certPath: cert, keyPath: key }, null, "cert/key missing"],
    [{ certPath: cert, keyPath: key }, CERTIFICATE, "failed to load cert"],
    [{ certPath: cert, keyPath: key }, "no certificate", "failed to load cert"],
    [{ caPath: `${temp.dir}/none.pem` }, null, "failed to load cert"],
  ];

  for (const [tls, written, text] of rows) {
    if (written !== null) await Deno.writeTextFile(cert, written);
    const refusal = await assertRejects(
      () => startTls({ config: { gateway: { tls: { enabled: true, ...tls } } } }),
      StartRefusal,
      `gateway tls: ${text}`,
    );
    assert(refusal.fix.includes(temp.dir), refusal.fix);
  }
});

Deno.test("a certificate near its end is told of in health, with what mends it", async () => {
  await using temp = await tempFiles();
  const tenYearsAgo = Date.now() - 3_640 * 86_400_000;
  await storeCertificate(temp.files, await makeCertificate(NAMES, tenYearsAgo));

  await using gateway = await startTls({ stateDir: temp.dir });
  const client = await gateway.connect();
  const { degraded } = await client.call("health", {});

  assertEquals(degraded.length, 1);
  assertEquals([degraded[0].part, degraded[0].fix], ["tls", "zero gateway cert rotate"]);
  assertStringIncludes(degraded[0].message, "The TLS certificate expires on ");
});

Deno.test("commands on the gateway's machine expect its own certificate, also while it changes", async () => {
  await using gateway = await startTls();
  const options = {
    home: gateway.paths.stateDir,
    env: {
      ZERO_STATE_DIR: gateway.paths.stateDir,
      ZERO_GATEWAY_PORT: String(gateway.port),
      ZERO_GATEWAY_TOKEN: gateway.token,
    },
  };

  const { fingerprint } = gateway.running;
  const first = await zero(["health", "--json", "--verbose"], options);
  await makeNext(gateway);
  await activateNext(filesOf(gateway));
  const during = await zero(["health", "--json"], options);
  await Deno.remove(filesOf(gateway).cert);
  await Deno.remove(filesOf(gateway).previousCert);
  const without = await zero(["health"], options);

  assertEquals([first.code, first.json.ok], [0, true], first.stderr);
  assertStringIncludes(first.stderr, `TLS fingerprint: ${fingerprint}`);
  assertEquals([during.code, during.json.ok], [0, true], during.stderr);
  assertEquals(without.code, 1);
});

Deno.test("a command that meets TLS where it expects none, or a certificate nobody knows, says what to do", async () => {
  await using gateway = await startTls();
  const home = await Deno.makeTempDir({ prefix: "zero-tls-" });
  await using _home = { [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }) };
  const { port } = gateway;
  const secret = ["--json", "--token", gateway.token];

  const plain = await zero(["health", "--port", String(port), ...secret], { home });
  const unknown = await zero(["health", "--url", `wss://127.0.0.1:${port}`, ...secret], { home });
  const blank = await zero([
    "health",
    "--url",
    `wss://127.0.0.1:${port}`,
    "--tls-fingerprint",
    "",
    ...secret,
  ], { home });

  assertEquals([plain.code, plain.json.error.code, plain.json.error.fix], [
    1,
    "GATEWAY_TLS",
    `--url wss://127.0.0.1:${port}`,
  ]);
  assertStringIncludes(plain.stderr, "speaks TLS");
  assertEquals([unknown.code, unknown.json.error.code], [1, "GATEWAY_TLS"]);
  assertStringIncludes(unknown.json.error.fix, `sha256:${gateway.running.fingerprint}`);
  assertEquals([blank.code, blank.json.error.message], [1, "gateway tls fingerprint missing"]);
});

async function overTls({ port }: TestGateway, request: string) {
  const { connect } = await import("node:tls");
  const socket = connect({ port, host: "127.0.0.1", rejectUnauthorized: false });
  let text = "";
  socket.on("data", (bytes) => text += String(bytes));
  socket.write(`${request}\r\nHost: 127.0.0.1:${port}\r\nConnection: close\r\n\r\n`);
  await new Promise((resolve, reject) => socket.on("close", resolve).on("error", reject));
  return { status: Number(text.split(" ")[1]), text };
}
