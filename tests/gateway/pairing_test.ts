import { assert, assertEquals } from "@std/assert";
import { connectParams, type Json, type TestClient } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import { REMOTE, startTestGateway, type TestGateway, TOKEN } from "../support/gateway.ts";

const PAIRING = { scopes: ["operator.pairing"] };

/** Everything the gateway had to say to a client before has come. */
async function settle(...clients: TestClient[]) {
  for (const client of clients) await client.socket.ping();
}

function pairNews(client: TestClient): string[] {
  return client.untakenEvents.filter((name) => name.startsWith("device.pair."));
}

/** A paired device with a connection and the token it was given. */
async function pairedDevice(gateway: TestGateway, scopes = ["operator.read"]) {
  const device = await newDevice();
  const client = await gateway.connect({ device, scopes });
  return { device, client, token: client.auth.deviceToken as string };
}

Deno.test("a pending request can be approved before its refusal was even read", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect({ scopes: ["operator.pairing", "operator.read"] });
  const device = await newDevice();
  const socket = await gateway.open({ headers: REMOTE });
  const { payload } = await socket.take(({ event }) => event === "connect.challenge");
  const options = { auth: { token: TOKEN }, scopes: ["operator.read"], device };
  socket.pause();
  socket.send({
    type: "req",
    id: "connect",
    method: "connect",
    params: await connectParams(options, payload),
  });

  const told = await operator.event("device.pair.requested");
  const { pending } = await operator.call("device.pair.list", {});
  await operator.call("device.pair.approve", { requestId: told.requestId });
  socket.resume();
  const refusal = await socket.take(({ id }) => id === "connect");

  assertEquals(pending, [told]);
  assertEquals(refusal.error.details.requestId, told.requestId);
  assertEquals((await gateway.connect({ ...options, headers: REMOTE })).auth.scopes, [
    "operator.read",
  ]);
});

Deno.test("the same wish keeps its id and is told once, another one takes its place", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect({ scopes: ["operator.admin"] });
  const first = await gateway.requestPairing({ scopes: ["operator.read"] });
  const again = await first.refused();
  const { device } = first;

  const second = await gateway.requestPairing({ device, scopes: ["operator.write"] });

  assertEquals(again.error.details.requestId, first.requestId);
  assert(second.requestId !== first.requestId);
  const resolved = await operator.event("device.pair.resolved");
  assertEquals([resolved.requestId, resolved.deviceId, resolved.decision], [
    first.requestId,
    device.deviceId,
    "rejected",
  ]);
  const requested = [];
  for (let count = 0; count < 2; count++) {
    requested.push((await operator.event("device.pair.requested")).requestId);
  }
  await settle(operator);
  assertEquals(requested, [first.requestId, second.requestId]);
  assertEquals(pairNews(operator), []);
  const old = await operator.refused("device.pair.approve", { requestId: first.requestId });
  assertEquals([old.code, old.message], ["INVALID_REQUEST", "unknown requestId"]);
  const { device: stamped } = await operator.call("device.pair.approve", {
    requestId: second.requestId,
  });
  assertEquals(stamped.scopes, ["operator.write"]);
});

Deno.test("one scope that is written like two is another wish, under another id", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const harmless = await gateway.requestPairing({ scopes: ["operator.read,operator.admin"] });

  const { device } = harmless;
  const real = await gateway.requestPairing({
    device,
    scopes: ["operator.read", "operator.admin"],
  });

  assert(real.requestId !== harmless.requestId);
  const { requestId } = harmless;
  const refused = await operator.refused("device.pair.approve", { requestId });
  assertEquals(refused.message, "unknown requestId");
});

Deno.test("an approval stamps exactly what was asked, and nobody approves more than they hold", async () => {
  await using gateway = await startTestGateway();
  const admin = await gateway.connect();
  const reader = await gateway.connect({ scopes: ["operator.pairing", "operator.write"] });
  const oldReader = await gateway.connect({ protocol: 3, ...PAIRING });
  const asks = (options: Json) => gateway.requestPairing(options).then((one) => one.requestId);
  const read = await asks({ scopes: ["operator.read"] });
  const all = await asks({ scopes: ["operator.admin"] });
  const byDefault = await asks({ protocol: 3, scopes: [] });
  const node = await asks({ role: "node" });
  const approve = (client: TestClient, requestId: string) =>
    client.request("device.pair.approve", { requestId });

  const missing = await approve(reader, all);
  assertEquals([missing.error.code, missing.error.message, missing.error.details.code], [
    "FORBIDDEN",
    "missing scope: operator.admin",
    "MISSING_SCOPE",
  ]);
  const old = await approve(oldReader, all);
  assertEquals(old.error, {
    code: "INVALID_REQUEST",
    message: "missing scope: operator.admin",
  });
  for (const requestId of [byDefault, node]) {
    const { error } = await approve(reader, requestId);
    assertEquals(error.message, "missing scope: operator.admin");
  }
  const scopesOf = async (client: TestClient, requestId: string) => {
    const { payload } = await approve(client, requestId);
    return [payload.device.roles, payload.device.scopes];
  };
  assertEquals(await scopesOf(reader, read), [["operator"], ["operator.read"]]);
  assertEquals(await scopesOf(admin, all), [["operator"], ["operator.admin"]]);
  assertEquals(await scopesOf(admin, byDefault), [["operator"], ["operator.admin"]]);
  assertEquals(await scopesOf(admin, node), [["node"], []]);
});

Deno.test("pairing events reach operators with the pairing scope and nobody else", async () => {
  await using gateway = await startTestGateway();
  const told = [
    await gateway.connect(PAIRING),
    await gateway.connect({ scopes: ["operator.admin"] }),
  ];
  const deaf: TestClient[] = [await gateway.connect({ role: "node", device: true })];
  for (const scopes of [["operator.read"], ["operator.write"], ["operator.approvals"], []]) {
    deaf.push(await gateway.connect({ scopes }));
  }
  // Those who connected before have heard of each other.
  await settle(...told, ...deaf);
  for (const client of told) {
    while (pairNews(client).length > 0) await client.event("device.pair.resolved");
  }

  const { requestId } = await gateway.requestPairing();
  await told[0].call("device.pair.reject", { requestId });

  await settle(...told, ...deaf);
  const expected = ["device.pair.requested", "device.pair.resolved"];
  assertEquals(told.map(pairNews), [expected, expected]);
  assertEquals(deaf.flatMap(pairNews), []);
});

Deno.test("a rejected device may ask again, under a new id", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect(PAIRING);
  const first = await gateway.requestPairing({ name: "phone" });
  const { requestId, device: { deviceId } } = first;

  const answer = await operator.call("device.pair.reject", { requestId });
  const again = await first.refused();

  assertEquals(answer, { requestId, deviceId });
  assert(again.error.details.requestId !== requestId);
  const twice = await operator.refused("device.pair.reject", { requestId });
  assertEquals(twice.message, "unknown requestId");
});

Deno.test("a device on this machine is paired without a question, and operators are told", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect(PAIRING);

  const device = await newDevice();
  const client = await gateway.connect({ device, scopes: ["operator.read"] });

  const { deviceId, decision } = await operator.event("device.pair.resolved");
  assertEquals([deviceId, decision], [device.deviceId, "approved"]);
  const more = await gateway.connect({ device, scopes: ["operator.write"] });
  assertEquals([client, more].map(({ auth }) => auth.scopes), [
    ["operator.read"],
    ["operator.write"],
  ]);
});

Deno.test("what claims to come through a proxy is not paired silently, whoever the proxy is", async () => {
  for (const trustedProxies of [[], ["127.0.0.1"]]) {
    const config = { gateway: { auth: { token: TOKEN }, trustedProxies } };
    await using gateway = await startTestGateway({ config });
    for (const value of ["203.0.113.7", "127.0.0.1", "::1", "garbage", ""]) {
      const headers = { "x-forwarded-for": value };
      const { refusal } = await gateway.requestPairing({ headers });
      assertEquals(refusal.error.details.code, "PAIRING_REQUIRED", `${trustedProxies} ${value}`);
    }
  }
});

Deno.test("a rotated token is told to its device and to the owner of the shared secret alone", async () => {
  await using gateway = await startTestGateway();
  const { device, client } = await pairedDevice(gateway, ["operator.pairing"]);
  const { deviceId } = device;
  const owner = await gateway.connect();
  const lesserOwner = await gateway.connect(PAIRING);
  const otherDevice = await gateway.connect({ device: true });
  const rotate = async (caller: TestClient) => {
    const answer = await caller.call("device.token.rotate", { deviceId, role: "operator" });
    const { token, ...rest } = answer;
    assertEquals(rest, {
      deviceId,
      role: "operator",
      scopes: ["operator.pairing"],
      rotatedAtMs: rest.rotatedAtMs,
    });
    return typeof token;
  };

  assertEquals(await rotate(client), "string");
  assertEquals(await rotate(owner), "string");
  assertEquals(await rotate(lesserOwner), "undefined");
  assertEquals(await rotate(otherDevice), "undefined");
});

Deno.test("the old token opens until the new one was used, then no more", async () => {
  await using gateway = await startTestGateway();
  const owner = await gateway.connect();
  const { device, client, token: old } = await pairedDevice(gateway);
  await client.close();
  const scopes = ["operator.read"];
  const comeWith = (token: string) =>
    gateway.connect({ headers: REMOTE, device, scopes, auth: { deviceToken: token } });
  await (await comeWith(old)).close();
  const { deviceId } = device;

  const { token } = await owner.call("device.token.rotate", { deviceId, role: "operator" });

  assertEquals((await comeWith(old)).auth.deviceToken, old);
  assertEquals((await comeWith(token)).auth.deviceToken, token);
  const refused = await gateway.refused({
    headers: REMOTE,
    device,
    scopes,
    auth: { deviceToken: old },
  });
  assertEquals(refused.error.details.code, "AUTH_TOKEN_MISMATCH");
  assertEquals((await comeWith(token)).auth.method, "device-token");
});

Deno.test("revoking closes the connections of that device and role with 4001, and no others", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const { device, client, token } = await pairedDevice(gateway);
  const node = await gateway.connect({ device, role: "node" });
  const bystander = await gateway.connect({ device: true });
  const { deviceId } = device;

  const answer = await operator.call("device.token.revoke", { deviceId, role: "operator" });

  assert(answer.revokedAtMs > 0);
  assertEquals(await client.closed, { code: 4001, reason: "device token revoked" });
  await settle(node, bystander);
  const { error } = await gateway.refused({
    device,
    scopes: ["operator.read"],
    auth: { deviceToken: token },
  });
  assertEquals(error.details.code, "AUTH_TOKEN_MISMATCH");
  const next = await gateway.connect({ device, scopes: ["operator.read"] });
  assert(next.auth.deviceToken !== token, "a revoked token is replaced");
});

Deno.test("removing a device closes all its connections, and it must be approved again", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const { device, client } = await pairedDevice(gateway);
  const node = await gateway.connect({ device, role: "node" });
  const { deviceId } = device;

  assertEquals(await operator.call("device.pair.remove", { deviceId }), { deviceId });

  for (const one of [client, node]) {
    assertEquals(await one.closed, { code: 4001, reason: "device removed" });
  }
  const again = await gateway.requestPairing({ device, scopes: ["operator.read"] });
  assertEquals(again.refusal.error.details.reason, "not-paired");
  const unknown = await operator.refused("device.pair.remove", { deviceId });
  assertEquals([unknown.code, unknown.message], ["INVALID_REQUEST", "unknown deviceId"]);
});

Deno.test("who revokes or removes itself gets the answer before it is closed", async () => {
  for (const jsonrpc of [false, true]) {
    for (const method of ["device.token.revoke", "device.pair.remove"]) {
      await using gateway = await startTestGateway();
      const device = await newDevice();
      const client = await gateway.connect({ device, jsonrpc });
      const { deviceId } = device;
      const params = method.endsWith("revoke") ? { deviceId, role: "operator" } : { deviceId };

      assertEquals((await client.call(method, params)).deviceId, deviceId);

      assertEquals((await client.closed).code, 4001, method);
    }
  }
});

Deno.test("a name somebody gave a device stands above the one it calls itself", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const device = await newDevice();
  await gateway.connect({ device, client: { displayName: "localhost" } });
  const nodeId = device.deviceId;

  await operator.call("node.rename", { nodeId, displayName: "  Kitchen  " });
  await gateway.connect({ device, client: { displayName: "localhost" } });

  const { paired } = await operator.call("device.pair.list", {});
  assertEquals(paired.map(({ displayName }: Json) => displayName), ["Kitchen"]);
  const blank = await operator.refused("node.rename", { nodeId, displayName: "  " });
  assertEquals(blank.message, "displayName required");
  const unknown = await operator.refused("node.rename", { nodeId: "none", displayName: "x" });
  assertEquals(unknown.message, "unknown nodeId");
});
