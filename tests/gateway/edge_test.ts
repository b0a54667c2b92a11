// A proxy that asks for headers of its own in front of the gateway, reached over TLS: who gets to see
// them, and who never does.

import { assertEquals, assertStringIncludes } from "@std/assert";
import { createServer } from "node:https";
import { connect } from "node:net";
import type { AddressInfo } from "node:net";
import { CERTIFICATE, LEAF_CERTIFICATE, LEAF_KEY } from "../support/certificate.ts";
import { zero } from "../support/cli.ts";
import { startTestGateway, TOKEN } from "../support/gateway.ts";
import { fingerprintOf } from "../../tunnel/pin.ts";

const SECRET = "canary-edge-secret-2718";
const PIN = (await fingerprintOf(LEAF_CERTIFICATE))!;

/** Asks for a header and passes the rest on to a port; or sends everybody elsewhere. */
async function startEdge(answer: { passTo: number } | { redirectTo: string }) {
  const seen: (string | undefined)[] = [];
  const sockets = new Set<{ destroy(): void }>();
  const server = createServer({ cert: LEAF_CERTIFICATE, key: LEAF_KEY });
  server.on("upgrade", (request, socket) => {
    const given = request.headers["cf-access-client-secret"];
    seen.push(given?.toString());
    sockets.add(socket);
    socket.on("error", () => {});
    if ("redirectTo" in answer) {
      socket.end(
        `HTTP/1.1 302 Found\r\nLocation: ${answer.redirectTo}\r\nContent-Length: 0\r\n\r\n`,
      );
    } else if (given === SECRET) {
      const lines = [`GET ${request.url} HTTP/1.1`];
      for (let at = 0; at < request.rawHeaders.length; at += 2) {
        const [name, value] = request.rawHeaders.slice(at, at + 2);
        if (!/^cf-/i.test(name)) lines.push(`${name}: ${value}`);
      }
      const behind = connect(answer.passTo, "127.0.0.1");
      sockets.add(behind);
      behind.on("error", () => socket.destroy());
      behind.write(`${lines.join("\r\n")}\r\n\r\n`);
      behind.pipe(socket).pipe(behind);
    } else socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `wss://127.0.0.1:${port}`,
    seen,
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

/** A machine that trusts the authority of the tests and keeps the secret in a file. */
async function laptop(remotes: Record<string, { url: string; tlsFingerprint?: string }>) {
  const home = await Deno.makeTempDir({ prefix: "zero-edge-" });
  await Deno.mkdir(`${home}/state`);
  const file = `${home}/edge`;
  await Deno.writeTextFile(file, `${SECRET}\n`, { mode: 0o600 });
  await Deno.writeTextFile(`${home}/ca.pem`, CERTIFICATE);
  const edgeAuth = { headers: { "CF-Access-Client-Secret": { file } } };
  const all = Object.entries(remotes).map(([name, remote]) => [
    name,
    { ...remote, token: TOKEN, edgeAuth },
  ]);
  await Deno.writeTextFile(
    `${home}/state/zero.json`,
    JSON.stringify({ remotes: Object.fromEntries(all) }),
  );
  return {
    file,
    run: (...args: string[]) => zero(args, { home, env: { DENO_CERT: `${home}/ca.pem` } }),
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
}

Deno.test("a proxy that asks for headers is passed with those of the remote, pinned or not", async () => {
  await using gateway = await startTestGateway({
    config: { gateway: { auth: { token: TOKEN }, allowedHosts: ["127.0.0.1"] } },
  });
  await using edge = await startEdge({ passTo: gateway.port });
  const { url } = edge;
  await using at = await laptop({ plain: { url }, pinned: { url, tlsFingerprint: PIN } });

  const plain = await at.run("health", "--remote", "plain", "--verbose");
  const pinned = await at.run("health", "--remote", "pinned", "--json");

  assertEquals([plain.code, pinned.code], [0, 0], plain.stderr + pinned.stderr);
  assertEquals(edge.seen, [SECRET, SECRET]);
  assertStringIncludes(plain.stderr, "Proxy headers: CF-Access-Client-Secret");
  for (const { stdout, stderr } of [plain, pinned]) {
    assertEquals(`${stdout}${stderr}`.includes(SECRET), false);
  }
});

Deno.test("a redirect takes no header along, and a --url of another address gets none", async () => {
  await using elsewhere = await startEdge({ passTo: 1 });
  await using edge = await startEdge({ redirectTo: elsewhere.url.replace("wss", "https") });
  const { url } = edge;
  await using at = await laptop({ plain: { url }, pinned: { url, tlsFingerprint: PIN } });

  const redirected = [
    await at.run("health", "--remote", "plain"),
    await at.run("health", "--remote", "pinned"),
  ];
  const seenElsewhere = elsewhere.seen.length;
  const other = await at.run("health", "--url", elsewhere.url, "--token", TOKEN);

  assertEquals(redirected.map(({ code }) => code), [1, 1]);
  assertEquals([edge.seen.length, seenElsewhere], [2, 0]);
  assertEquals([other.code, elsewhere.seen], [1, [undefined]]);
});

Deno.test("a header that cannot be read is told before anything is dialled", async () => {
  await using edge = await startEdge({ passTo: 1 });
  await using at = await laptop({ plain: { url: edge.url } });
  await Deno.remove(at.file);

  const { code, json } = await at.run("health", "--remote", "plain", "--json");

  assertEquals([code, json.error.code, edge.seen], [1, "SECRET_UNAVAILABLE", []]);
  assertStringIncludes(
    json.error.message,
    "Cannot read the secret remotes.plain.edgeAuth.headers.CF-Access-Client-Secret from file:",
  );
});
