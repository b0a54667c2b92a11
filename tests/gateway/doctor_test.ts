// `zero doctor` against real gateways, servers that are none, TLS, nginx and sshd: each failure stops
// the walk at its own hop, with the step that mends it, and nothing is changed on either side.

import type { Socket } from "node:net";
import { createServer } from "node:tls";
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { resolvePaths } from "../../config/paths.ts";
import { examine, type Hop, runDoctor } from "../../gateway/doctor.ts";
import { type CallFlags, reach, takeAim } from "../../gateway/reach.ts";
import { captureTerminal } from "../support/captured_terminal.ts";
import { CERTIFICATE, FINGERPRINT, PRIVATE_KEY } from "../support/certificate.ts";
import { zero } from "../support/cli.ts";
import { startTestGateway, type TestGatewayOptions, TOKEN } from "../support/gateway.ts";
import { eventually, freePort } from "../support/process.ts";
import { startScriptedGateway } from "../support/scripted_gateway.ts";
import { sshdObstacle, startSshd } from "../support/sshd.ts";

const NGINX = await findNginx();
const WRONG_PIN = "ab".repeat(32);
const SHOWN = FINGERPRINT.replaceAll(":", "").toLowerCase();

async function findNginx(): Promise<string | undefined> {
  for (const command of ["nginx", "/usr/sbin/nginx"]) {
    const isThere = await new Deno.Command(command, { args: ["-v"] }).output()
      .then(({ success }) => success, () => false);
    if (isThere) return command;
  }
  console.log("skipped: zero doctor behind nginx, it is not installed");
}
if (sshdObstacle) console.log(`skipped: zero doctor through ssh, ${sshdObstacle}`);

/** A machine with a state directory of its own. */
async function machine({ config, env = {} }: { config?: unknown; env?: object } = {}) {
  const home = await Deno.makeTempDir({ prefix: "zero-doctor-" });
  const stateDir = `${home}/state`;
  await Deno.mkdir(stateDir, { mode: 0o700 });
  const configure = (config: unknown) =>
    Deno.writeTextFile(`${stateDir}/zero.json`, JSON.stringify(config), { mode: 0o600 });
  if (config !== undefined) await configure(config);
  const paths = resolvePaths({ env: { ZERO_STATE_DIR: stateDir, HOME: home, ...env }, home });
  const world = { place: () => paths, version: "0.0.0-test" };
  const { terminal } = captureTerminal();
  const flagsOf = (given: Partial<CallFlags>): CallFlags => ({
    timeout: 10_000,
    json: false,
    verbose: false,
    ...given,
  });
  return {
    home,
    world,
    configure,
    /** The hops, after a look that the machine is as it was. */
    async doctor(given: Partial<CallFlags> = {}): Promise<Hop[]> {
      const before = await contentOf(home);
      const hops = [];
      for await (const hop of examine(flagsOf(given), world, terminal)) hops.push(hop);
      assertEquals(await contentOf(home), before, "something was written");
      assert(!JSON.stringify(hops).includes(TOKEN), "a secret was shown");
      return hops;
    },
    /** Goes there as a command does, which may pair this machine. */
    async visit(given: Partial<CallFlags>, scopes?: string[]): Promise<void> {
      const flags = flagsOf(given);
      const aim = await takeAim(flags, world, terminal);
      const extra = scopes && { scopes };
      await using _client = await reach(aim, { ...flags, version: "0.0.0-test", extra }, terminal);
    },
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
}

async function contentOf(directory: string): Promise<Record<string, string>> {
  const content: Record<string, string> = {};
  for await (const { name, isDirectory } of Deno.readDir(directory)) {
    const path = `${directory}/${name}`;
    if (isDirectory) Object.assign(content, { [path]: "" }, await contentOf(path));
    else content[path] = await Deno.readTextFile(path);
  }
  return content;
}

function namesOf(hops: readonly Hop[]): string[] {
  return hops.map(({ name }) => name);
}

/** The walk stopped at this hop, all hops before it were fine, and only it has a fix. */
function assertStops(hops: readonly Hop[], name: string, detail: string | RegExp, fix: string) {
  const last = hops.at(-1)!;
  assertEquals([last.name, last.ok], [name, false], JSON.stringify(hops));
  assert(hops.slice(0, -1).every((hop) => hop.ok && hop.fix === undefined), JSON.stringify(hops));
  if (typeof detail === "string") assertStringIncludes(last.detail, detail);
  else assertMatch(last.detail, detail);
  assertStringIncludes(last.fix!, fix);
}

/** A remote at an address, as `zero remote add` writes it. */
function remoteAt(url: string, fields: object = { token: TOKEN }) {
  return { remotes: { box: { url, ...fields } } };
}

async function devicesOf(gateway: Awaited<ReturnType<typeof startTestGateway>>) {
  await using operator = await gateway.connect();
  const { pending, paired } = await operator.call("device.pair.list", {});
  return { pending, paired };
}

/** A gateway, and a machine for which it is the remote `box`. */
async function withBox(options: TestGatewayOptions = {}, fields?: object) {
  await using stack = new AsyncDisposableStack();
  const gateway = stack.use(await startTestGateway(options));
  const at = stack.use(await machine({ config: remoteAt(gateway.url, fields) }));
  const owned = stack.move();
  return { gateway, at, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

Deno.test("the way to the gateway of this machine is walked to its end", async () => {
  await using gateway = await startTestGateway();
  await using at = await machine();

  const hops = await at.doctor({ port: gateway.port, token: TOKEN });

  assertEquals(namesOf(hops), [
    "config",
    "tcp",
    "host-origin",
    "protocol",
    "credential",
    "scope",
    "latency",
  ]);
  assert(hops.every(({ ok }) => ok));
  assertEquals((await devicesOf(gateway)).paired, []);
});

Deno.test("a remote that has not met this machine is checked without being told of it", async () => {
  await using box = await withBox();

  const hops = await box.at.doctor({ remote: "box" });

  assertEquals(namesOf(hops).slice(-4), ["credential", "pairing", "scope", "latency"]);
  assertEquals(
    hops.find(({ name }) => name === "credential")!.detail,
    [
      "token from config remotes.box.token",
    ][0],
  );
  assertMatch(hops.find(({ name }) => name === "pairing")!.detail, /^not paired yet/);
  assertEquals(await devicesOf(box.gateway), { pending: [], paired: [] });
});

Deno.test("a paired machine is recognised, by the secret and by its own token", async () => {
  await using box = await withBox();
  await box.at.visit({ remote: "box" });

  const bySecret = await box.at.doctor({ remote: "box" });
  await box.at.configure(remoteAt(box.gateway.url, {}));
  const byToken = await box.at.doctor({ remote: "box" });
  await box.at.configure(remoteAt(box.gateway.url, { token: "an-old-token-0123456789" }));
  const byFallback = await box.at.doctor({ remote: "box" });

  const detailOf = (hops: Hop[], name: string) => hops.find((hop) => hop.name === name)?.detail;
  for (const hops of [bySecret, byToken, byFallback]) {
    assert(hops.every(({ ok }) => ok), JSON.stringify(hops));
    assertMatch(detailOf(hops, "pairing")!, /^this machine is device [0-9a-f]{12}$/);
  }
  assertEquals(detailOf(byToken, "credential"), "device token of this machine");
  assertMatch(detailOf(byFallback, "credential")!, /is refused, the device token .* is taken$/);
});

Deno.test("nobody listens: it stops at tcp, with the command that starts a gateway there", async () => {
  await using at = await machine();
  const port = freePort();

  const hops = await at.doctor({ port });

  assertStops(
    hops,
    "tcp",
    `nobody listens on 127.0.0.1:${port}`,
    `zero gateway --port ${port}`,
  );
});

Deno.test("a name without an address: it stops at dns, with the setting that has the name", async () => {
  await using at = await machine({ config: remoteAt("wss://nowhere.invalid") });

  const hops = await at.doctor({ remote: "box" });

  assertStops(
    hops,
    "dns",
    "nowhere.invalid has no address",
    "zero config set remotes.box.url wss://HOST",
  );
});

Deno.test("plain ws:// to a public name: it stops at config, and names the way through ssh", async () => {
  await using at = await machine();

  const hops = await at.doctor({ url: "ws://gateway.example.org:4000", token: TOKEN });

  assertStops(
    hops,
    "config",
    "ws:// is not encrypted",
    "zero doctor --ssh gateway.example.org --remote-port 4000",
  );
});

Deno.test("a configuration that leads nowhere: it stops at config, with the setting", async () => {
  await using at = await machine({ config: { gateway: { mode: "remote" } } });
  await using mistaken = await machine({ config: { gateway: { port: "x" } } });

  assertStops(await at.doctor(), "config", "gateway.remote.url missing", "set gateway.remote.url");
  assertStops(await mistaken.doctor(), "config", "gateway.port", "zero config validate");
  assertStops(
    await at.doctor({ url: "ws://127.0.0.1:1", "tls-fingerprint": SHOWN, token: TOKEN }),
    "config",
    "fingerprint requires wss://",
    "zero doctor --url wss://127.0.0.1:1",
  );
});

Deno.test("a web server that is no gateway: it stops at protocol, and says who answered", async () => {
  await using server = serve(() =>
    new Response("hello", { status: 404, headers: { server: "attic-web/2" } })
  );
  await using at = await machine({ config: remoteAt(server.url) });

  const hops = await at.doctor({ remote: "box" });

  assertStops(
    hops,
    "protocol",
    "no gateway: it answers 404 as attic-web/2",
    "zero config set remotes.box.url",
  );
});

Deno.test("what takes connections and says nothing, or no HTTP: it stops at protocol", async () => {
  await using silent = listen(() => {});
  await using other = listen(async (connection) => {
    await connection.write(new TextEncoder().encode("SSH-2.0-OpenSSH_9.9\r\n"));
  });
  await using at = await machine();

  assertStops(
    await at.doctor({ port: silent.port, timeout: 1_500 }),
    "protocol",
    "did not answer within 1500 ms",
    "zero gateway status",
  );
  assertStops(
    await at.doctor({ port: other.port }),
    "protocol",
    "does not speak HTTP",
    "zero gateway status",
  );
});

Deno.test("a wrong token: it stops at credential, with the command that prints the right one", async () => {
  await using box = await withBox({}, { token: "wrong-token-0123456789" });

  const hops = await box.at.doctor({ remote: "box" });

  assertStops(hops, "credential", "gateway token mismatch", "zero gateway token");
  assert(!JSON.stringify(hops).includes("wrong-token"));
  assertEquals(await devicesOf(box.gateway), { pending: [], paired: [] });
});

Deno.test("no token: it stops at credential, and nobody is paired or asked", async () => {
  await using box = await withBox({}, {});
  await using at = await machine();

  const remote = await box.at.doctor({ remote: "box" });
  const local = await at.doctor({ port: box.gateway.port });

  for (const hops of [remote, local]) {
    assertStops(hops, "credential", "neither a secret nor a device token", "--token-file");
  }
  assertEquals(await devicesOf(box.gateway), { pending: [], paired: [] });
});

Deno.test("a secret that cannot be read: it stops at credential, and names the setting", async () => {
  await using box = await withBox({}, { token: { env: "NOT_SET_ANYWHERE" } });

  const hops = await box.at.doctor({ remote: "box" });

  assertStops(hops, "credential", "NOT_SET_ANYWHERE", "--token-file");
});

Deno.test("a device token that was revoked: it stops at credential, and is kept all the same", async () => {
  await using box = await withBox();
  await box.at.visit({ remote: "box" });
  await box.at.configure(remoteAt(box.gateway.url, {}));
  await using operator = await box.gateway.connect();
  const { paired: [{ deviceId }] } = await operator.call("device.pair.list", {});
  await operator.call("device.token.revoke", { deviceId, role: "operator" });

  const hops = await box.at.doctor({ remote: "box" });

  assertStops(hops, "credential", "gateway token m", "zero gateway token");
});

Deno.test("a gateway that asks for no secret pairs nobody either", async () => {
  await using gateway = await startTestGateway({
    config: { gateway: { auth: { mode: "none" } } },
  });
  await using at = await machine();

  const hops = await at.doctor({ port: gateway.port });

  assertEquals(hops.find(({ name }) => name === "credential")!.detail, "none is asked for");
  assert(hops.every(({ ok }) => ok), JSON.stringify(hops));
  const list = await at.doctor({ port: gateway.port });
  assertMatch(list.find(({ name }) => name === "pairing")!.detail, /^not paired yet/);
});

Deno.test("pairing required: it stops at pairing and asks for nothing; once asked, it names the request", async () => {
  const auth = { silentPairing: false, token: TOKEN };
  await using box = await withBox({ config: { gateway: { auth } } });

  const before = await box.at.doctor({ remote: "box" });
  assertStops(before, "pairing", "not paired there", "zero devices invite");
  assertEquals(await devicesOf(box.gateway), { pending: [], paired: [] });

  await box.at.visit({ remote: "box" }).catch(() => {}); // refused: it asks to be paired
  const { pending: [{ requestId }] } = await devicesOf(box.gateway);
  const waiting = await box.at.doctor({ remote: "box" });
  assertStops(waiting, "pairing", "waits to be approved", `zero devices approve ${requestId}`);

  await using operator = await box.gateway.connect();
  await operator.call("device.pair.approve", { requestId });
  const after = await box.at.doctor({ remote: "box" });
  assert(after.every(({ ok }) => ok), JSON.stringify(after));
});

Deno.test("a missing scope: it stops at scope, and says what this machine may do", async () => {
  const auth = { silentPairing: true, token: TOKEN };
  await using box = await withBox({ config: { gateway: { auth } } });
  await box.at.visit({ remote: "box" }, ["operator.pairing"]);
  await box.at.configure(remoteAt(box.gateway.url, {}));

  const hops = await box.at.doctor({ remote: "box" });

  assertStops(
    hops,
    "scope",
    /missing scope: operator\.read; this machine has operator\.pairing/,
    "zero devices invite",
  );
});

Deno.test("a machine that is approved for less than commands ask for: it stops at scope", async () => {
  const auth = { silentPairing: false, token: TOKEN };
  await using box = await withBox({ config: { gateway: { auth } } });
  await box.at.visit({ remote: "box" }, ["operator.read"]).catch(() => {}); // it asks to be paired
  const { pending: [{ requestId }] } = await devicesOf(box.gateway);
  await using operator = await box.gateway.connect();
  await operator.call("device.pair.approve", { requestId });

  const hops = await box.at.doctor({ remote: "box" });

  assertStops(hops, "scope", "this machine is approved for operator.read", "zero devices invite");
  assertEquals((await devicesOf(box.gateway)).pending, []);
});

Deno.test("a pin that does not match: it stops at tls, and not one byte is said inside", async () => {
  await using sink = await startTlsSink();
  const fields = { token: TOKEN, tlsFingerprint: WRONG_PIN };
  await using at = await machine({ config: remoteAt(sink.url, fields) });

  const hops = await at.doctor({ remote: "box" });

  assertStops(
    hops,
    "tls",
    "gateway tls fingerprint mismatch",
    `zero config set remotes.box.tlsFingerprint ${SHOWN}`,
  );
  assertStringIncludes(hops.at(-1)!.detail, `expected is sha256:${WRONG_PIN}`);
  assertStringIncludes(hops.at(-1)!.fix!, "zero gateway cert show");
  assertEquals([sink.seen.dials > 1, sink.seen.bytes], [true, 0]);
});

Deno.test("a certificate nobody vouches for: it stops at tls, and names the pin to compare", async () => {
  await using sink = await startTlsSink();
  await using at = await machine();

  const hops = await at.doctor({ url: sink.url, token: TOKEN });

  assertStops(hops, "tls", "no authority vouches", `--tls-fingerprint ${SHOWN}`);
  assertEquals(sink.seen.bytes, 0);
});

Deno.test("the wrong scheme: it stops at tls, and names the address with the right one", async () => {
  await using gateway = await startTestGateway();
  await using sink = await startTlsSink();
  const isPlain = gateway.url.replace("ws:", "wss:");
  const isTls = sink.url.replace("wss:", "ws:");
  await using at = await machine({ config: remoteAt(isPlain) });
  await using other = await machine({ config: remoteAt(isTls) });

  assertStops(
    await at.doctor({ remote: "box" }),
    "tls",
    "does not speak TLS",
    `zero config set remotes.box.url ${gateway.url}`,
  );
  assertStops(
    await other.doctor({ remote: "box" }),
    "tls",
    "speaks TLS, and the address says ws://",
    `zero config set remotes.box.url ${sink.url}`,
  );
});

Deno.test("a gateway with the expected certificate is walked to its end", async () => {
  await using gateway = await startTestGateway({
    config: { gateway: { tls: { enabled: true } } },
  });
  const file = `${gateway.paths.stateDir}/gateway/tls/gateway-cert.pem`;
  const { fingerprintOf } = await import("../../tunnel/pin.ts");
  const tlsFingerprint = await fingerprintOf(await Deno.readTextFile(file));
  await using at = await machine({
    config: remoteAt(gateway.url, { token: TOKEN, tlsFingerprint }),
  });

  const hops = await at.doctor({ remote: "box" });

  assert(hops.every(({ ok }) => ok), JSON.stringify(hops));
  assertEquals(namesOf(hops).slice(0, 4), ["config", "tcp", "tls", "host-origin"]);
});

Deno.test("a protocol that is too old: it stops at protocol, and says which side to update", async () => {
  const turnAway = (expectedProtocol: number) =>
    startScriptedGateway((peer) =>
      peer.turnAway({
        code: "INVALID_REQUEST",
        message: "protocol mismatch",
        details: { layer: "protocol", expectedProtocol },
      }, 1002)
    );
  await using old = await turnAway(2);
  await using newer = await turnAway(5);
  await using at = await machine();

  assertStops(
    await at.doctor({ port: old.port, token: TOKEN }),
    "protocol",
    "the gateway speaks protocol 2, this program 3 and 4",
    "Update the gateway",
  );
  assertStops(
    await at.doctor({ port: newer.port, token: TOKEN }),
    "protocol",
    "the gateway speaks protocol 5",
    "Update zero on this machine",
  );
});

Deno.test("an answer to connect that is none: it stops at protocol", async () => {
  await using gateway = await startScriptedGateway((peer) =>
    peer.welcome({ hello: { protocol: 2 } })
  );
  await using at = await machine();

  const hops = await at.doctor({ port: gateway.port, token: TOKEN });

  assertStops(hops, "protocol", "no hello-ok of protocol 3 or 4", "zero gateway status");
});

Deno.test("a name that is not served: it stops at host-origin, with the setting for it", async () => {
  await using gateway = await startTestGateway();
  await using proxy = await startRewriter(
    gateway.port,
    (head) => head.replace(/^Host: .*$/m, "Host: zero.example.org"),
  );
  await using at = await machine({ config: remoteAt(`ws://127.0.0.1:${proxy.port}`) });

  const hops = await at.doctor({ remote: "box" });

  assertStops(
    hops,
    "host-origin",
    "does not serve the name it was asked for (421)",
    "zero config set gateway.allowedHosts '[\"NAME\"]', with the name that the proxy sends as Host",
  );
});

Deno.test("an Origin added on the way: it stops at host-origin", async () => {
  await using gateway = await startTestGateway();
  await using proxy = await startRewriter(
    gateway.port,
    (head) => head.replace("\r\n", "\r\nOrigin: https://elsewhere.example\r\n"),
  );
  await using at = await machine({ config: remoteAt(`ws://127.0.0.1:${proxy.port}`) });

  const hops = await at.doctor({ remote: "box" });

  assertStops(hops, "host-origin", "(403)", "remove the line that sets Origin");
});

Deno.test("a proxy that wants a login: it stops at proxy, with the header to configure", async () => {
  await using server = serve(() =>
    new Response(null, {
      status: 302,
      headers: { location: "https://login.example.org/start?secret=1" },
    })
  );
  await using at = await machine({ config: remoteAt(server.url) });

  const hops = await at.doctor({ remote: "box" });

  assertStops(
    hops,
    "proxy",
    "answers 302, which leads to login.example.org: it wants to know",
    "zero config set remotes.box.edgeAuth.headers.NAME",
  );
  assert(!JSON.stringify(hops).includes("secret="));
});

Deno.test({
  name:
    "nginx in front: fine with the documented lines, else it stops at proxy and says which lack",
  ignore: NGINX === undefined,
  async fn(t) {
    await using gateway = await startTestGateway({
      config: { gateway: { trustedProxies: ["127.0.0.1"], auth: { token: TOKEN } } },
    });
    const upgrade = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; " +
      'proxy_set_header Connection "upgrade"; proxy_set_header X-Forwarded-For $remote_addr;';
    const through = async (target: number, lines: string) => {
      await using nginx = await startNginx(target, lines);
      await using at = await machine({ config: remoteAt(`ws://127.0.0.1:${nginx.port}`) });
      return await at.doctor({ remote: "box" });
    };

    await t.step("passing everything on", async () => {
      const hops = await through(gateway.port, upgrade);
      assertMatch(
        hops.find(({ name }) => name === "proxy")!.detail,
        /^nginx\S* passes WebSocket on/,
      );
      // What comes through a proxy is not taken for the gateway's own machine.
      assertStops(hops, "pairing", "not paired there", "zero devices invite");
    });
    await t.step("not passing the upgrade on", async () => {
      const hops = await through(gateway.port, "");
      assertStops(hops, "proxy", "but not the upgrade to WebSocket", "docs/security.md");
    });
    await t.step("with nobody behind it", async () => {
      const hops = await through(freePort(), upgrade);
      assertStops(hops, "proxy", /^nginx\S* answers 502/, "zero gateway");
    });
    assertEquals(await devicesOf(gateway), { pending: [], paired: [] });
  },
});

const ssh = { ignore: sshdObstacle !== undefined };

/** A gateway, an sshd in front of it, and a machine that is told to go through that. */
async function behindSsh(port?: number) {
  await using stack = new AsyncDisposableStack();
  const gateway = stack.use(await startTestGateway());
  const sshd = stack.use(await startSshd());
  const at = stack.use(await machine({ env: { PATH: sshd.env.PATH } }));
  const owned = stack.move();
  const flags = { ssh: sshd.alias, "remote-port": port ?? gateway.port, token: TOKEN };
  return {
    gateway,
    sshd,
    doctor: (given: Partial<CallFlags> = {}) => at.doctor({ ...flags, ...given }),
    /** No connection through sshd is left. */
    quiet: () =>
      eventually("nobody is connected", async () => (await sshd.children()).length === 0),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

Deno.test("through ssh: every hop of it is told, and the tunnel is gone afterwards", {
  ...ssh,
}, async () => {
  await using at = await behindSsh();

  const hops = await at.doctor();

  assertEquals(namesOf(hops), [
    "config",
    "ssh",
    "ssh-host-key",
    "ssh-auth",
    "ssh-forward",
    "tcp",
    "host-origin",
    "protocol",
    "credential",
    "pairing",
    "scope",
    "latency",
  ]);
  assert(hops.every(({ ok }) => ok), JSON.stringify(hops));
  await at.quiet();
  assertEquals(await devicesOf(at.gateway), { pending: [], paired: [] });
});

Deno.test("a host key that has changed: it stops at ssh-host-key, with ssh-keygen -R", {
  ...ssh,
}, async () => {
  await using at = await behindSsh();
  await at.sshd.changeHostKey();

  const hops = await at.doctor();

  assertStops(hops, "ssh-host-key", "its host key is another than before", "ssh-keygen -R");
  assertEquals(namesOf(hops), ["config", "ssh", "ssh-host-key"]);
});

Deno.test("an ssh server that does not let in: it stops at ssh-auth, with ssh-copy-id", {
  ...ssh,
}, async () => {
  await using at = await behindSsh();
  await at.sshd.acceptKeys(false);

  const hops = await at.doctor();

  assertStops(hops, "ssh-auth", "does not accept the keys", `ssh-copy-id ${at.sshd.alias}`);
  assertEquals(namesOf(hops), ["config", "ssh", "ssh-host-key", "ssh-auth"]);
});

Deno.test("no ssh server: it stops at ssh", { ...ssh }, async () => {
  await using at = await behindSsh();
  await at.sshd.stop();

  const hops = await at.doctor();

  assertStops(hops, "ssh", "no ssh server listens there", `ssh -G ${at.sshd.alias}`);
});

Deno.test("no gateway behind ssh: it stops at tcp, and names the start on the other machine", {
  ...ssh,
}, async () => {
  await using at = await behindSsh(freePort());

  const hops = await at.doctor();

  assertStops(hops, "tcp", "no gateway listens on port", `ssh ${at.sshd.alias} zero gateway`);
  assertEquals(namesOf(hops).slice(-2), ["ssh-forward", "tcp"]);
  await at.quiet();
});

Deno.test("another certificate behind ssh: it stops at tls, and not one byte is said inside", {
  ...ssh,
}, async () => {
  const heard = { bytes: 0, dials: 0 };
  const server = createServer({ cert: CERTIFICATE, key: PRIVATE_KEY }, (socket) => {
    socket.on("data", (bytes) => heard.bytes += bytes.length);
    socket.on("error", () => {}); // a client that goes away at once
  });
  server.on("connection", () => heard.dials++);
  server.on("tlsClientError", () => {});
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
  await using _server = {
    [Symbol.asyncDispose]: () => new Promise<void>((resolve) => server.close(() => resolve())),
  };
  await using at = await behindSsh((server.address() as { port: number }).port);

  const hops = await at.doctor({ "tls-fingerprint": WRONG_PIN });

  assertStops(hops, "tls", "gateway tls fingerprint mismatch", SHOWN);
  assertEquals(namesOf(hops).slice(-2), ["ssh-forward", "tls"]);
  assertEquals([heard.dials > 0, heard.bytes], [true, 0]);
  await at.quiet();
});

Deno.test("zero doctor prints a line for each hop, and with --json one document", async () => {
  await using gateway = await startTestGateway();
  await using at = await machine();
  const { home } = at;
  const env = { ZERO_GATEWAY_TOKEN: TOKEN };
  const port = freePort();

  const fine = await zero(["doctor", "--port", String(gateway.port)], { home, env });
  const text = await zero(["doctor", "--port", String(port)], { home, env });
  const json = await zero(["doctor", "--port", String(port), "--json"], { home, env });

  assertEquals([fine.code, fine.stderr], [0, ""]);
  assertMatch(fine.stdout, /^✓ config {8}ws:.*\n(✓ .*\n)+✓ latency {7}a call takes .*\n$/);
  assertEquals([text.code, text.stderr], [1, ""]);
  assertEquals(
    text.stdout,
    `✓ config        ws://127.0.0.1:${port} (cli --port)\n` +
      `✗ tcp           nobody listens on 127.0.0.1:${port}\n` +
      `  fix           zero gateway --port ${port}\n`,
  );
  assertEquals([json.code, json.stderr], [1, ""]);
  assertEquals(json.json, {
    ok: false,
    hops: [
      { name: "config", ok: true, detail: `ws://127.0.0.1:${port} (cli --port)` },
      {
        name: "tcp",
        ok: false,
        detail: `nobody listens on 127.0.0.1:${port}`,
        fix: `zero gateway --port ${port}`,
      },
    ],
  });
});

Deno.test("on a terminal the marks are coloured, and nothing turns that is fast", async () => {
  await using at = await machine();
  const captured = captureTerminal({ isTerminal: true, isColorless: false });
  const flags = { port: freePort(), timeout: 10_000, json: false, verbose: false };

  const code = await runDoctor(flags, at.world, captured.terminal);

  assertEquals(code, 1);
  assertMatch(captured.stdout(), /^\x1b\[32m✓\x1b\[39m config .*\n\x1b\[31m✗\x1b\[39m tcp/);
});

function serve(answer: () => Response) {
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, answer);
  const { port } = server.addr as Deno.NetAddr;
  return { url: `ws://127.0.0.1:${port}`, [Symbol.asyncDispose]: () => server.shutdown() };
}

/** Takes connections, and lets them go when it ends. */
function listen(meet: (connection: Deno.Conn) => void | Promise<void>) {
  const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const open: Deno.Conn[] = [];
  const done = (async () => {
    for await (const connection of listener) {
      open.push(connection);
      await Promise.resolve(meet(connection)).catch(() => {}); // the doctor has left already
    }
  })();
  return {
    port: (listener.addr as Deno.NetAddr).port,
    async [Symbol.asyncDispose]() {
      listener.close();
      await done;
      for (const connection of open) connection.close();
    },
  };
}

/** A proxy that leaves no trace but what it does to the head of a request. */
async function startRewriter(target: number, rewrite: (head: string) => string) {
  const { createServer, connect } = await import("node:net");
  const open = new Set<Socket>();
  const server = createServer((socket) => {
    const upstream = connect(target, "127.0.0.1");
    for (const [one, other] of [[socket, upstream], [upstream, socket]]) {
      open.add(one);
      one.on("error", () => {}); // `close` follows
      one.on("close", () => other.destroy());
    }
    socket.once("data", (data) => {
      upstream.write(rewrite(String(data)));
      socket.pipe(upstream).pipe(socket);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
  return {
    port: (server.address() as { port: number }).port,
    async [Symbol.asyncDispose]() {
      for (const socket of open) socket.destroy();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

/** Speaks TLS with a certificate nobody knows, and counts what is said inside it. */
async function startTlsSink() {
  const seen = { bytes: 0, dials: 0 };
  const server = createServer({ cert: CERTIFICATE, key: PRIVATE_KEY }, (socket) => {
    socket.on("data", (data) => seen.bytes += data.length);
    socket.on("error", () => {}); // the doctor has left
  });
  server.on("connection", () => seen.dials++);
  server.on("tlsClientError", () => {});
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
  const { port } = server.address() as { port: number };
  return {
    url: `wss://127.0.0.1:${port}`,
    seen,
    [Symbol.asyncDispose]: () => new Promise<void>((resolve) => server.close(() => resolve())),
  };
}

async function startNginx(target: number, lines: string) {
  const directory = await Deno.makeTempDir({ prefix: "zero-nginx-" });
  const port = freePort();
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((name) => `${name}_temp_path ${directory}/${name};`).join(" ");
  await Deno.writeTextFile(
    `${directory}/nginx.conf`,
    `daemon off; worker_processes 1; pid ${directory}/pid; error_log ${directory}/error.log;
     events { worker_connections 64; }
     http {
       access_log off; ${temporary}
       server {
         listen 127.0.0.1:${port};
         location / { proxy_pass http://127.0.0.1:${target}; ${lines} }
       }
     }`,
  );
  const child = new Deno.Command(NGINX!, {
    args: ["-p", directory, "-c", `${directory}/nginx.conf`],
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  await eventually("nginx listens", () =>
    Deno.connect({ port, hostname: "127.0.0.1" })
      .then((connection) => (connection.close(), true), () => false));
  return {
    port,
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      await child.status;
      await Deno.remove(directory, { recursive: true });
    },
  };
}
