import { assert, assertEquals } from "@std/assert";
import { AUDIT_EVENTS, type AuditEntry, AuditTrail } from "../../gateway/audit.ts";
import { Store } from "../../gateway/store.ts";
import { BOT, startBotApi, STRANGER } from "../support/bot_api.ts";
import { zero } from "../support/cli.ts";
import type { Json } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import { REMOTE, startTestGateway, type TestGateway } from "../support/gateway.ts";
import { payload, serveNode } from "../support/node.ts";

const REFUSED = { code: "AUTH_TOKEN_MISMATCH", ip: "203.0.113.7" };

/** A trail in memory, under a clock that a test moves. */
function trailAt(nowMs = 1_000_000) {
  const clock = { nowMs };
  const store = Store.open(":memory:");
  const trail = new AuditTrail(store, () => clock.nowMs);
  return {
    clock,
    trail,
    [Symbol.dispose]() {
      trail[Symbol.dispose]();
      store[Symbol.dispose]();
    },
  };
}

async function entries(gateway: TestGateway): Promise<AuditEntry[]> {
  await using operator = await gateway.connect();
  return (await operator.call("audit.list", { limit: 5_000 })).entries;
}

/** The facts of an entry without what differs from run to run. */
function factsOf({ auditId: _, ts, lastTs, ...facts }: AuditEntry) {
  assert(ts > 0 && lastTs >= ts);
  return facts;
}

Deno.test("equal refusals within a minute are one entry that counts them", () => {
  using at = trailAt();

  for (let count = 0; count < 1_000; count++) {
    at.clock.nowMs += 50;
    at.trail.refuse(REFUSED);
  }
  at.trail.refuse({ ...REFUSED, ip: "203.0.113.8" });
  at.trail.refuse({ ...REFUSED, code: "AUTH_TOKEN_MISSING" });
  at.trail.refuse({ ...REFUSED, deviceId: "d" });

  assertEquals(at.trail.list().map((one) => [one.code, one.count, one.lastTs - one.ts]), [
    ["AUTH_TOKEN_MISMATCH", 1, 0],
    ["AUTH_TOKEN_MISSING", 1, 0],
    ["AUTH_TOKEN_MISMATCH", 1, 0],
    ["AUTH_TOKEN_MISMATCH", 1_000, 49_950],
  ]);
  at.clock.nowMs += 60_000;
  at.trail.refuse(REFUSED);
  assertEquals(at.trail.list()[0].count, 1);
});

Deno.test("a flood from everywhere becomes one entry beside the first five hundred", () => {
  using at = trailAt();

  for (let count = 0; count < 10_000; count++) {
    at.trail.refuse({ ...REFUSED, ip: `198.51.${count >> 8}.${count & 255}` });
  }

  const list = at.trail.list({ limit: 5_000 });
  assertEquals(list.length, 501);
  assertEquals([list[0].reason, list[0].ip, list[0].count], [
    "from many addresses",
    undefined,
    9_500,
  ]);
});

Deno.test("the trail keeps the last twenty thousand entries, newest first", () => {
  using at = trailAt();

  for (let count = 1; count <= 20_500; count++) {
    at.clock.nowMs++;
    at.trail.record("device.renamed", { displayName: String(count) });
  }

  const list = at.trail.list({ limit: 100_000 });
  assertEquals(list.length, 20_000);
  assertEquals([list[0].displayName, list.at(-1)?.displayName], ["20500", "501"]);
});

Deno.test("a list goes back to a time and no further than its limit", () => {
  using at = trailAt(1_000);
  for (const nowMs of [1_000, 2_000, 3_000]) {
    at.clock.nowMs = nowMs;
    at.trail.record("device.renamed", {});
  }
  const times = (filter: { sinceMs?: number; limit?: number }) =>
    at.trail.list(filter).map(({ ts }) => ts);

  assertEquals(times({ sinceMs: 2_000 }), [3_000, 2_000]);
  assertEquals(times({ sinceMs: 3_001 }), []);
  assertEquals(times({ limit: 1 }), [3_000]);
});

Deno.test("the trail says of each event who did it, why and from where", async () => {
  // Whoever is refused comes from an address of its own: the proxy is trusted.
  const gatewayConfig = { trustedProxies: ["127.0.0.1"] };
  await using gateway = await startTestGateway({ config: { gateway: gatewayConfig } });
  const client = { displayName: "console" };
  const operatorDevice = await newDevice();
  const operator = await gateway.connect({ device: operatorDevice, client });
  const owner = await gateway.connect();
  const by = `device ${operatorDevice.deviceId} (console)`;
  const scopes = ["operator.read"];

  const phone = await gateway.requestPairing({ name: "phone", scopes });
  await operator.call("device.pair.approve", { requestId: phone.requestId });
  const { deviceId } = phone.device;
  await operator.call("node.rename", { nodeId: deviceId, displayName: "mine" });
  await owner.call("device.token.rotate", { deviceId, role: "operator" });
  await operator.call("device.token.revoke", { deviceId, role: "operator" });
  await operator.call("device.pair.remove", { deviceId });
  const tablet = await gateway.requestPairing({ name: "tablet", scopes });
  const wider = await gateway.requestPairing({ device: tablet.device, scopes: ["operator.write"] });
  await operator.call("device.pair.reject", { requestId: wider.requestId });
  const invite = await operator.call("device.invite.create", { scopes });
  const unused = await operator.call("device.invite.create", { scopes });
  await operator.call("device.invite.revoke", { inviteId: unused.inviteId });
  const laptop = await newDevice();
  await gateway.connect({
    device: laptop,
    client: { displayName: "laptop" },
    headers: REMOTE,
    scopes,
    auth: { bootstrapToken: invite.secret },
  });
  for (let count = 0; count < 3; count++) {
    await gateway.refused({ auth: { token: "wrong" }, headers: REMOTE, client: { id: "cli" } });
  }
  const { hash } = await owner.call("config.get", {});
  await owner.call("config.patch", { raw: "{ logging: { level: 'debug' } }", baseHash: hash });
  const { hash: baseHash } = await owner.call("exec.approvals.get", {});
  await owner.call("exec.approvals.set", { file: { version: 1 }, baseHash });

  const list = (await entries(gateway)).map(factsOf).reverse();
  const ip = "203.0.113.7";
  const clientId = "gateway-client";
  const asked = { deviceId, displayName: "phone", clientId, role: "operator", scopes, ip };
  const tabletId = tablet.device.deviceId;
  const reason = (text: string) => `pairing required: ${text}`;
  const notPaired = reason("device is not approved yet");
  const once = { count: 1 };
  assertEquals(list as Json, [
    {
      event: "device.paired",
      deviceId: operatorDevice.deviceId,
      displayName: "console",
      clientId,
      role: "operator",
      scopes: ["operator.admin"],
      reason: "on the gateway's own machine",
      ...once,
    },
    { event: "device.requested", ...asked, requestId: phone.requestId, ...once },
    {
      event: "connect.refused",
      code: "PAIRING_REQUIRED",
      reason: notPaired,
      ip,
      deviceId,
      clientId,
      role: "operator",
      ...once,
    },
    { event: "device.approved", by, ...asked, requestId: phone.requestId, ...once },
    { event: "device.renamed", by, deviceId, displayName: "mine", ...once },
    {
      event: "token.rotated",
      by: `shared secret (${clientId})`,
      deviceId,
      role: "operator",
      scopes,
      ...once,
    },
    { event: "token.revoked", by, deviceId, role: "operator", ...once },
    { event: "device.removed", by, deviceId, ...once },
    {
      event: "device.requested",
      ...asked,
      deviceId: tabletId,
      displayName: "tablet",
      requestId: tablet.requestId,
      ...once,
    },
    {
      event: "connect.refused",
      code: "PAIRING_REQUIRED",
      reason: notPaired,
      ip,
      deviceId: tabletId,
      clientId,
      role: "operator",
      count: 2,
    },
    {
      event: "device.rejected",
      requestId: tablet.requestId,
      deviceId: tabletId,
      reason: "replaced by a request for something else",
      ...once,
    },
    {
      event: "device.requested",
      deviceId: tabletId,
      clientId,
      role: "operator",
      scopes: ["operator.write"],
      ip,
      requestId: wider.requestId,
      ...once,
    },
    {
      event: "device.rejected",
      by,
      requestId: wider.requestId,
      deviceId: tabletId,
      clientId,
      role: "operator",
      scopes: ["operator.write"],
      ip,
      ...once,
    },
    {
      event: "invite.created",
      by,
      inviteId: invite.inviteId,
      role: "operator",
      scopes,
      ...once,
    },
    {
      event: "invite.created",
      by,
      inviteId: unused.inviteId,
      role: "operator",
      scopes,
      ...once,
    },
    { event: "invite.revoked", by, inviteId: unused.inviteId, ...once },
    {
      event: "invite.used",
      deviceId: laptop.deviceId,
      displayName: "laptop",
      clientId,
      role: "operator",
      scopes,
      ip,
      inviteId: invite.inviteId,
      ...once,
    },
    {
      event: "connect.refused",
      code: "AUTH_TOKEN_MISMATCH",
      reason: "unauthorized: gateway token mismatch (provide gateway auth token)",
      ip,
      clientId: "cli",
      role: "operator",
      count: 3,
    },
    {
      event: "config.changed",
      by: `shared secret (${clientId})`,
      reason: "logging.level",
      ...once,
    },
    {
      event: "approvals.changed",
      by: `shared secret (${clientId})`,
      reason: "rules replaced",
      ...once,
    },
  ]);
  const missing = AUDIT_EVENTS.filter((event) =>
    !event.startsWith("channel.") && !list.some((one) => one.event === event)
  );
  assertEquals(missing, []);
});

Deno.test("the trail says who added and removed a channel, and whom it let in and out", async () => {
  await using bot = startBotApi();
  await using gateway = await startTestGateway();
  await using operator = await gateway.connect();
  const by = "shared secret (gateway-client)";
  const channel = "telegram";
  const senderId = String(STRANGER.id);

  await operator.call("channels.add", { channel, token: bot.token, apiRoot: bot.root });
  bot.write("hello?", { from: STRANGER });
  const { params } = await bot.until(({ method, params }) =>
    method === "sendMessage" && /zero pairing approve/.test(params.text)
  );
  const [, code] = /telegram ([A-Z2-9]{8})/.exec(params.text)!;
  await operator.call("pairing.approve", { channel, code });
  await operator.call("pairing.remove", { channel, senderId });
  await operator.call("channels.logout", { channel });
  await operator.call("channels.logout", { channel });

  const list = (await entries(gateway)).map(factsOf).reverse()
    .filter(({ event }) => event.startsWith("channel."));
  const stranger = { channel, senderId, displayName: STRANGER.first_name, count: 1 };
  assertEquals(list as Json, [
    { event: "channel.added", by, channel, displayName: `@${BOT.username}`, count: 1 },
    { event: "channel.requested", ...stranger },
    { event: "channel.paired", by, ...stranger },
    { event: "channel.unpaired", by, channel, senderId, count: 1 },
    { event: "channel.removed", by, channel, count: 1 },
  ]);
  assertEquals(
    AUDIT_EVENTS.filter((event) => event.startsWith("channel.")),
    list.map(({ event }) => event),
  );
});

Deno.test("changes of what may run are on the trail, whatever way they take, with the program and no argument", async () => {
  await using gateway = await startTestGateway();
  const owner = await gateway.connect();
  const commands = ["system.run", "system.execApprovals.set"];
  await using node = await serveNode(gateway, () => payload({}), { commands });
  const { nodeId } = node;
  const decide = async (decision: string, request: Json) => {
    const id = crypto.randomUUID();
    const asking = owner.call("exec.approval.request", { id, ...request });
    await owner.event("exec.approval.requested", (one) => one.id === id);
    await owner.call("exec.approval.resolve", { id, decision });
    await asking;
  };

  await owner.call("exec.approvals.node.set", { nodeId, file: { version: 1 } });
  await owner.call("node.invoke", {
    nodeId,
    command: "system.execApprovals.set",
    params: { file: { version: 1 } },
    idempotencyKey: "1",
  });
  await decide("allow-once", { command: "id", nodeId, argv: ["id"] });
  await decide("deny", { command: "id", nodeId, argv: ["id"] });
  await decide("allow-always", {
    command: "login --password hunter2",
    nodeId,
    argv: ["login", "--password", "hunter2"],
  });
  await decide("allow-always", { command: "  git push" });

  const list = (await entries(gateway)).reverse().filter(({ event }: Json) =>
    event === "approvals.changed"
  );
  assertEquals(list.map(({ deviceId, reason }: Json) => [deviceId, reason]), [
    [nodeId, "rules replaced"],
    [nodeId, "rules replaced"],
    [nodeId, "always allowed: login"],
    [undefined, "always allowed: git"],
  ]);
});

Deno.test("the trail is for admins", async () => {
  await using gateway = await startTestGateway();
  for (const scope of ["read", "write", "approvals", "pairing"]) {
    const client = await gateway.connect({ scopes: [`operator.${scope}`] });
    const error = await client.refused("audit.list", {});
    assertEquals(error.message, "missing scope: operator.admin");
  }
});

Deno.test("the trail and its counts survive a restart", async () => {
  const stateDir = await Deno.makeTempDir({ prefix: "zero-test-" });
  try {
    {
      await using gateway = await startTestGateway({ stateDir });
      for (let count = 0; count < 5; count++) {
        await gateway.refused({ auth: { token: "wrong" }, headers: REMOTE });
      }
    }
    await using gateway = await startTestGateway({ stateDir });

    const list = await entries(gateway);

    assertEquals(list.map((one) => [one.event, one.code, one.count]), [
      ["connect.refused", "AUTH_TOKEN_MISMATCH", 5],
    ]);
  } finally {
    await Deno.remove(stateDir, { recursive: true });
  }
});

Deno.test("nothing a stranger makes up fills the trail, and no name in it moves the cursor", async () => {
  await using gateway = await startTestGateway();
  await using cli = await cliOf(gateway);
  const displayName = "\u001b[2J\u202enice";
  await gateway.connect({ device: true, client: { displayName } });
  await gateway.refused({
    auth: { token: "wrong" },
    headers: REMOTE,
    params: { client: { id: "x".repeat(50_000), mode: "cli", version: "1", platform: "p" } },
  });

  const list = await entries(gateway);
  const { stdout } = await cli.run("audit");

  assertEquals([list[0].code, list[0].clientId], ["INVALID_CONNECT_PARAMS", undefined]);
  assert(JSON.stringify(list).length < 3_000);
  assert(stdout.includes("\ufffd[2J\ufffdnice"), stdout);
});

Deno.test("zero audit shows what happened, newest first, as a table and as JSON", async () => {
  await using gateway = await startTestGateway();
  await using cli = await cliOf(gateway);
  const device = await newDevice();
  await gateway.connect({ device, client: { displayName: "console" } });
  for (let count = 0; count < 3; count++) {
    await gateway.refused({ auth: { token: "wrong" }, headers: REMOTE, client: { id: "cli" } });
  }

  const table = await cli.run("audit");
  const all = await cli.run("audit", "--json", "--since", "1h");
  const last = await cli.run("audit", "--json", "--limit", "1");
  const wrong = await cli.run("audit", "--since", "yesterday");

  const [header, ...rows] = table.stdout.trimEnd().split("\n");
  assertEquals(header.trim().split(/ {2,}/), ["WHEN (UTC)", "WHAT", "WHO", "FROM", "WHY"]);
  assertEquals(
    rows.map((row) => row.trim().split(/ {2,}/).slice(1)),
    [
      ["connect.refused ×3", "cli", "127.0.0.1", "AUTH_TOKEN_MISMATCH"],
      ["device.paired", "console", "on the gateway's own machine"],
    ],
  );
  assert(rows.every((row) => /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d {2}/.test(row)), table.stdout);
  assertEquals(all.json.entries.map((one: Json) => [one.event, one.count]), [
    ["connect.refused", 3],
    ["device.paired", 1],
  ]);
  assert(all.json.ts >= all.json.entries[0].ts);
  assertEquals(last.json.entries, all.json.entries.slice(0, 1));
  assertEquals([table.code, wrong.code], [0, 2]);
  assert(wrong.stderr.includes('Cannot read --since "yesterday": use 90s, 10m, 2h or 7d'));
});

/** The command line of somebody who knows the secret of a gateway. */
async function cliOf({ port, token }: TestGateway) {
  const home = await Deno.makeTempDir({ prefix: "zero-cli-" });
  const env = { ZERO_GATEWAY_PORT: String(port), ZERO_GATEWAY_TOKEN: token };
  return {
    run: (...args: string[]) => zero(args, { home, env }),
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
}
