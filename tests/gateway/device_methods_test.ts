import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Json } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import { REMOTE, startTestGateway } from "../support/gateway.ts";

const PAIRING = { scopes: ["operator.pairing"] };
const HEX_TOKEN = /^[0-9a-f]{32}$/;

Deno.test("device.pair.list shows who waits and who is paired, and no token", async () => {
  await using gateway = await startTestGateway();
  const device = await newDevice();
  const { auth } = await gateway.connect({ device, client: { displayName: "Laptop" } });
  const operator = await gateway.connect(PAIRING);
  const phone = await gateway.requestPairing({ name: "Phone", scopes: ["operator.read"] });

  const list = await operator.call("device.pair.list", {});

  const [pending] = list.pending;
  assertEquals(
    [pending.requestId, pending.deviceId, pending.displayName, pending.role, pending.scopes],
    [phone.requestId, phone.device.deviceId, "Phone", "operator", ["operator.read"]],
  );
  const [paired] = list.paired;
  assertEquals([paired.deviceId, paired.displayName, paired.roles, paired.scopes], [
    device.deviceId,
    "Laptop",
    ["operator"],
    ["operator.admin"],
  ]);
  assertEquals(paired.tokens.map((one: Json) => [one.role, one.scopes]), [
    ["operator", ["operator.admin"]],
  ]);
  assert(!JSON.stringify(list).includes(auth.deviceToken));
});

Deno.test("device.pair.approve lets the device in, and only the device learns its token", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect({ scopes: ["operator.pairing", "operator.read"] });
  const phone = await gateway.requestPairing({ name: "phone", scopes: ["operator.read"] });

  const answer = await operator.call("device.pair.approve", { requestId: phone.requestId });
  const resolved = await operator.event("device.pair.resolved");
  const { auth } = await phone.connect();

  assertEquals([answer.requestId, answer.device.deviceId], [
    phone.requestId,
    phone.device.deviceId,
  ]);
  assertEquals([resolved.requestId, resolved.decision], [phone.requestId, "approved"]);
  assertMatch(auth.deviceToken, HEX_TOKEN);
  assert(!JSON.stringify(answer).includes(auth.deviceToken));
  await gateway.connect({
    device: phone.device,
    headers: REMOTE,
    scopes: ["operator.read"],
    auth: { deviceToken: auth.deviceToken },
  });
});

Deno.test("device.pair.reject turns the device away", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect(PAIRING);
  const { requestId, device, refused } = await gateway.requestPairing();

  const answer = await operator.call("device.pair.reject", { requestId });
  const resolved = await operator.event("device.pair.resolved");

  assertEquals(answer, { requestId, deviceId: device.deviceId });
  assertEquals([resolved.requestId, resolved.decision], [requestId, "rejected"]);
  assert((await refused()).error.details.requestId !== requestId);
});

Deno.test("device.pair.remove forgets the device and closes its connections", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const device = await newDevice();
  const one = await gateway.connect({ device });
  const two = await gateway.connect({ device, role: "node" });

  const answer = await operator.call("device.pair.remove", { deviceId: device.deviceId });

  assertEquals(answer, { deviceId: device.deviceId });
  for (const client of [one, two]) {
    assertEquals(await client.closed, { code: 4001, reason: "device removed" });
  }
  assertEquals((await operator.call("device.pair.list", {})).paired, []);
});

Deno.test("device.token.rotate makes a token that opens, beside the one in use until it is used", async () => {
  await using gateway = await startTestGateway();
  const owner = await gateway.connect();
  const device = await newDevice();
  const { auth: { deviceToken: first } } = await gateway.connect({ device });
  const { deviceId } = device;
  const opens = async (token: string) =>
    await gateway.connect({ device, auth: { token } }).then(() => true, () => false);
  assertEquals(await opens(first), true);

  const rotated = await owner.call("device.token.rotate", { deviceId, role: "operator" });

  assertEquals([rotated.deviceId, rotated.role, rotated.scopes], [
    deviceId,
    "operator",
    ["operator.admin"],
  ]);
  assertMatch(rotated.token, HEX_TOKEN);
  assert(Number.isSafeInteger(rotated.rotatedAtMs));
  assertEquals(await opens(first), true);
  assertEquals(await opens(rotated.token), true);
  assertEquals(await opens(first), false);
});

Deno.test("another device that rotates a token does not learn it, the device itself does", async () => {
  await using gateway = await startTestGateway();
  const device = await newDevice();
  const self = await gateway.connect({ device });
  const other = await gateway.connect({ device: true });
  const params = { deviceId: device.deviceId, role: "operator" };

  assertEquals("token" in await other.call("device.token.rotate", params), false);
  assertMatch((await self.call("device.token.rotate", params)).token, HEX_TOKEN);
});

Deno.test("device.token.revoke voids the tokens of a role and closes its connections", async () => {
  await using gateway = await startTestGateway();
  const owner = await gateway.connect();
  const device = await newDevice();
  const { deviceId } = device;
  const operator = await gateway.connect({ device });
  const node = await gateway.connect({ device, role: "node" });

  const answer = await owner.call("device.token.revoke", { deviceId, role: "operator" });

  assertEquals([answer.deviceId, answer.role], [deviceId, "operator"]);
  assertEquals(await operator.closed, { code: 4001, reason: "device token revoked" });
  assertEquals((await node.call("skills.bins", {})).bins, []);
  const { error } = await gateway.refused({
    device,
    auth: operator.auth.deviceToken && {
      token: operator.auth.deviceToken,
    },
  });
  assertEquals(error.details.code, "AUTH_TOKEN_MISMATCH");
  const again = await gateway.connect({ device });
  assert(again.auth.deviceToken !== operator.auth.deviceToken);
});

Deno.test("ids that are not there are told as such, and bad params by their path", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const { deviceId } = await newDevice();
  const rows: [string, unknown, string][] = [
    ["device.pair.approve", { requestId: "none" }, "unknown requestId"],
    ["device.pair.reject", { requestId: "none" }, "unknown requestId"],
    ["device.pair.remove", { deviceId }, "unknown deviceId"],
    ["device.token.rotate", { deviceId, role: "operator" }, "unknown deviceId/role"],
    ["device.token.revoke", { deviceId, role: "node" }, "unknown deviceId/role"],
    [
      "device.pair.approve",
      {},
      "invalid device.pair.approve params: must have required property 'requestId'",
    ],
    [
      "device.pair.reject",
      { requestId: "" },
      "invalid device.pair.reject params: at /requestId: must NOT have fewer than 1 characters",
    ],
    [
      "device.pair.remove",
      { deviceId: 1 },
      "invalid device.pair.remove params: at /deviceId: must be string",
    ],
    [
      "device.token.rotate",
      { deviceId, role: "admin", scopes: [""] },
      "invalid device.token.rotate params: " +
      "at /role: must be equal to one of the allowed values; " +
      "at /scopes/0: must NOT have fewer than 1 characters",
    ],
    ["device.pair.list", 1, "invalid device.pair.list params: must be object"],
  ];

  for (const [method, params, message] of rows) {
    assertEquals(await operator.refused(method, params), { code: "INVALID_REQUEST", message });
  }
});

Deno.test("nobody grants, rotates, revokes or removes what they do not hold themselves", async () => {
  await using gateway = await startTestGateway();
  const pairer = await gateway.connect(PAIRING);
  const device = await newDevice();
  const { deviceId } = device;
  await gateway.connect({ device });
  await gateway.connect({ device, role: "node" });
  const admin = await gateway.requestPairing({ scopes: ["operator.admin"] });
  const node = await gateway.requestPairing({ role: "node" });
  const rows: [string, Record<string, unknown>][] = [
    ["device.pair.approve", { requestId: admin.requestId }],
    ["device.pair.approve", { requestId: node.requestId }],
    ["device.token.rotate", { deviceId, role: "operator" }],
    ["device.token.rotate", { deviceId, role: "operator", scopes: ["operator.admin"] }],
    ["device.token.rotate", { deviceId, role: "node", scopes: ["operator.read"] }],
    ["device.token.revoke", { deviceId, role: "operator" }],
    ["device.pair.remove", { deviceId }],
  ];

  for (const [method, params] of rows) {
    const { code, message, details } = await pairer.refused(method, params);
    assertEquals([code, details.code], ["FORBIDDEN", "MISSING_SCOPE"], method);
    assertMatch(message, /^missing scope: operator\.(admin|read)$/);
  }
  const { pending, paired } = await pairer.call("device.pair.list", {});
  assertEquals([pending.length, paired.length], [2, 1]);
});

Deno.test("an approval by the id of an older wish grants nothing", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const phone = await gateway.requestPairing({ scopes: ["operator.read"] });
  await gateway.refused({ device: phone.device, headers: REMOTE, scopes: ["operator.admin"] });

  const { message } = await operator.refused("device.pair.approve", {
    requestId: phone.requestId,
  });

  assertEquals(message, "unknown requestId");
  assertEquals((await operator.call("device.pair.list", {})).paired, []);
});

Deno.test("what was paired is there after a restart, and its token still opens", async () => {
  const stateDir = await Deno.makeTempDir();
  const device = await newDevice();
  let token = "";
  {
    await using gateway = await startTestGateway({ stateDir });
    token = (await gateway.connect({ device })).auth.deviceToken;
  }

  {
    await using gateway = await startTestGateway({ stateDir });
    const client = await gateway.connect({ device, auth: { token }, headers: REMOTE });
    assertEquals(client.auth.method, "device-token");
  }
  await Deno.remove(stateDir, { recursive: true });
});
