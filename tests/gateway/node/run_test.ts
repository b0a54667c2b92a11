import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { UsageError } from "../../../config/command.ts";
import type { Config } from "../../../config/schema.ts";
import { nameGateway, retryDelayMs } from "../../../gateway/node/run.ts";
import { ClosedError, REFUSED_WAIT_MS } from "../../../rpc/client.ts";
import { RpcError } from "../../../rpc/error.ts";
import { TunnelError } from "../../../tunnel/error.ts";
import { spawnZero, zero } from "../../support/cli.ts";
import { startTestGateway } from "../../support/gateway.ts";
import { eventually } from "../../support/process.ts";
import { invoke, startTestNode, tempHome } from "./support.ts";

function refused(code: "INVALID_REQUEST" | "NOT_PAIRED", details: Record<string, unknown>) {
  const refusal = new RpcError(code, "no", { details });
  return new ClosedError(1008, "no", { refusal });
}

Deno.test("a lost connection is tried again within 1 s to 30 s, anywhere between", () => {
  const lost = new ClosedError(1006, "");

  for (let attempt = 0; attempt < 40; attempt++) {
    const ceilingMs = Math.min(30_000, 1_000 * 2 ** (attempt + 1));
    assertEquals(retryDelayMs(lost, attempt, () => 0), 1_000);
    assertEquals(retryDelayMs(lost, attempt, () => 1), ceilingMs);
  }
});

Deno.test("a refused secret waits a minute, a pending approval does not, and nothing is final", () => {
  const mismatch = refused("INVALID_REQUEST", { code: "AUTH_TOKEN_MISMATCH", layer: "auth" });
  const pairing = refused("NOT_PAIRED", { code: "PAIRING_REQUIRED", layer: "pairing" });
  const older = refused("NOT_PAIRED", { requestId: "r" });
  const pin = new TunnelError("tls", "gateway tls fingerprint mismatch", "Compare them");

  assert(retryDelayMs(mismatch, 0, () => 0) >= REFUSED_WAIT_MS);
  assertEquals(retryDelayMs(pairing, 0, () => 0), 1_000);
  assertEquals(retryDelayMs(older, 9, () => 1), 30_000);
  assert(retryDelayMs(pin, 0, () => 0) >= REFUSED_WAIT_MS);
});

Deno.test("the gateway is named by flags, then by what was typed the last time, else looked up", () => {
  const config = {} as Config;
  const tls = { gateway: { tls: { enabled: true } } } as Config;
  const saved = { host: "box", port: 1234, tls: true, tlsFingerprint: "ab" };
  const pin = { tlsFingerprint: "ab" };

  assertEquals(nameGateway({}, undefined, config), undefined);
  assertEquals(nameGateway({}, { ...saved, from: "config" }, config), undefined);
  assertEquals(nameGateway({}, saved, config), { url: "wss://box:1234", ...pin });
  assertEquals(nameGateway({ port: 5 }, saved, config), { url: "wss://box:5", ...pin });
  assertEquals(nameGateway({ host: "other" }, saved, config), { url: "wss://other:1234" });
  assertEquals(nameGateway({ port: 5 }, undefined, config), { url: "ws://127.0.0.1:5" });
  assertEquals(nameGateway({ port: 5 }, undefined, tls), { url: "wss://127.0.0.1:5" });
  assertEquals(nameGateway({ host: "a" }, undefined, config), { url: "ws://a:18789" });
  assertEquals(nameGateway({ host: "::1", tls: true }, undefined, config), {
    url: "wss://[::1]:18789",
  });
  assertEquals(nameGateway({ host: "a", tlsFingerprint: "cd" }, undefined, config), {
    url: "wss://a:18789",
    tlsFingerprint: "cd",
  });
  for (const host of ["", "a/b", "user@a", "a b", "ws://a", "a?token=x", "a#b"]) {
    assertThrows(() => nameGateway({ host }, undefined, config), UsageError, "--host");
  }
});

Deno.test("a node waits for its approval, says once what to do, and comes in without a restart", async () => {
  await using gateway = await startTestGateway({
    config: { gateway: { auth: { mode: "token", token: TOKEN, silentPairing: false } } },
  });
  const operator = await gateway.connect();
  await using node = await startTestNode({ port: gateway.port, token: TOKEN }, {
    isWaiting: true,
    random: () => 0,
  });
  await eventually("the operator is told what to do", () => node.stderr().includes("approve"));
  const { pending: [request] } = await operator.call("device.pair.list", {});
  await eventually("it has asked again", async () => {
    const { entries } = await operator.call("audit.list", {});
    return entries.some((one: { event: string; count: number }) =>
      one.event === "connect.refused" && one.count > 1
    );
  });

  const told = node.stderr();
  await operator.call("device.pair.approve", { requestId: request.requestId });
  await eventually("the node is in", () => node.stdout().includes("connected to"));

  assertEquals(told.match(/zero devices approve/g)?.length, 1, told);
  assertMatch(told, new RegExp(`zero devices approve ${request.requestId}`));
  assertMatch(told, /^node host gateway connect failed: pairing required/m);
  assertMatch(told, /^node host gateway closed \(1008\): pairing required/m);
});

const TOKEN = "a-token-that-was-chosen-0123456789";

Deno.test("a refused secret is not tried again, but a changed one is at once", async () => {
  await using gateway = await startTestGateway({ flags: { token: TOKEN } });
  await using node = await startTestNode({ port: gateway.port, token: TOKEN }, {
    isWaiting: true,
    env: { ZERO_GATEWAY_TOKEN: undefined },
    config: { gateway: { auth: { token: "wrong-token-0123456789abcdef" } } },
  });
  await eventually("it was refused", () => node.stderr().includes("token mismatch"));
  const { stderr } = node;

  const config = { gateway: { auth: { token: TOKEN } } };
  await Deno.writeTextFile(`${node.stateDir}/zero.json`, JSON.stringify(config));
  await eventually("the node is in", () => node.stdout().includes("connected to"));

  assertEquals(stderr().match(/connect failed/g)?.length, 1);
  assertMatch(stderr(), /"zero devices invite --role node" .*"zero join".*ZERO_GATEWAY_TOKEN/);
  assert(!stderr().includes("--token-file"), "advice for other commands");
  assert(!stderr().includes("wrong-token"), "a secret was printed");
});

Deno.test("a node comes back after its gateway was gone, and keeps the token it was given", async () => {
  await using home = await tempHome();
  const stateDir = `${home.path}/gateway`;
  await Deno.mkdir(stateDir);
  const first = await startTestGateway({ stateDir });
  const { port } = first;
  await using node = await startTestNode(first, { random: () => 0 });
  await first.farewell();
  await first[Symbol.asyncDispose]();
  await eventually("it is told", () =>
    /gateway closed \(1012\): service restart/.test(
      node.stderr(),
    ));

  await using gateway = await startTestGateway({ stateDir, flags: { port } });
  const operator = await gateway.connect();
  await eventually(
    "the node is back",
    async () => (await operator.call("node.list", {})).nodes[0]?.connected,
  );

  const { bins } = await invoke(operator, node, "system.which", { bins: ["sh"] });
  assertMatch(bins.sh, /sh$/);
  const tokens = await Deno.readTextFile(`${node.stateDir}/identity/device-auth.json`);
  assertEquals((await Deno.stat(`${node.stateDir}/node.json`)).mode! & 0o777, 0o600);
  assert(tokens.includes('"node"'), "no device token was kept");
});

Deno.test("without flags a node goes where the configuration leads, and on to where it leads later", async () => {
  await using gateway = await startTestGateway();
  const url = `ws://127.0.0.1:${gateway.port}`;
  const remote = { url, token: gateway.token };
  await using home = await tempHome();
  const options = {
    home: home.path,
    flags: {},
    env: { ZERO_GATEWAY_TOKEN: undefined },
    config: { gateway: { mode: "remote", remote } },
  };
  await using node = await startTestNode(gateway, options);
  assertEquals(await node.stop(), 0);
  const saved = JSON.parse(await Deno.readTextFile(`${node.stateDir}/node.json`));

  assertEquals(saved.gateway, {
    host: "127.0.0.1",
    port: gateway.port,
    tls: false,
    from: "config",
  });
  await using other = await startTestGateway({ flags: { token: TOKEN } });
  options.config.gateway.remote = { url: `ws://127.0.0.1:${other.port}`, token: TOKEN };
  await using again = await startTestNode(other, options);
  assertMatch(again.stdout(), new RegExp(`connected to ws://127.0.0.1:${other.port}`));
  assertEquals(again.nodeId, node.nodeId);
});

Deno.test("a process: it connects, is the only one of its state directory, and stops on SIGTERM", async () => {
  await using gateway = await startTestGateway();
  await using home = await tempHome();
  const world = { home: home.path, env: { ZERO_GATEWAY_TOKEN: gateway.token } };
  const operator = await gateway.connect();
  const run = ["node", "run", "--port", String(gateway.port), "--display-name", "box"];
  const idle = (await zero(["node", "status", "--json"], world)).json;

  await using stack = new AsyncDisposableStack();
  const child = spawnZero(run, world);
  const output = child.output();
  stack.defer(async () => {
    try {
      child.kill("SIGKILL");
    } catch {
      // It has ended.
    }
    await output;
  });
  await eventually(
    "it is connected",
    async () => (await operator.call("node.list", {})).nodes[0]?.connected,
  );
  const { json: status } = await zero(["node", "status", "--json"], world);
  const shown = await zero(["node", "status"], world);
  const second = await zero(run, world);
  child.kill("SIGTERM");
  const { code, stdout, stderr } = await output;
  const text = new TextDecoder().decode(stdout);

  assertEquals([idle.running, idle.state], [false, "stopped"]);
  assertEquals([status.running, status.state, status.pid], [true, "connected", child.pid]);
  assertEquals([status.displayName, status.url], ["box", `ws://127.0.0.1:${gateway.port}`]);
  assertMatch(shown.stdout, /● node host connected for /);
  assertEquals(second.code, 78);
  assertMatch(second.stderr, /one is already running \(pid \d+\)/);
  assertEquals(code, 0, new TextDecoder().decode(stderr));
  assertMatch(text, /^node host PATH: \/.*\nnode host connected to ws:.* as box\n/);
  assert(!text.includes(gateway.token) && !shown.stdout.includes(gateway.token));
});

Deno.test("a configuration that is not valid is told at the start", async () => {
  await using home = await tempHome();
  await Deno.mkdir(`${home.path}/state`);
  await Deno.writeTextFile(`${home.path}/state/zero.json`, "{ gateway: { port: 'x' } }");

  const { code, stderr } = await zero(["node", "run"], { home: home.path });

  assertEquals(code, 1);
  assertMatch(stderr, /gateway\.port/);
});
