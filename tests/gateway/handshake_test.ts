import { assert, assertEquals, assertMatch } from "@std/assert";
import { exportPem } from "../../rpc/identity.ts";
import type { Json, Refused } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import {
  REMOTE,
  startTestGateway,
  type TestConnectOptions,
  type TestGateway,
  TOKEN,
} from "../support/gateway.ts";

const CLI = { client: { id: "cli", mode: "cli" } };
const CONTROL_UI = { client: { id: "zero-control-ui", mode: "ui" } };
const WRONG = "wrong-secret-canary";
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

/** D13: whatever was refused, it says what, where, whether again, and what mends it. */
function assertExplained({ error }: Refused, code: string, layer: string) {
  const { details } = error;
  assertEquals([details.code, details.layer], [code, layer]);
  assertEquals(typeof details.retryable, "boolean");
  assert(/\w/.test(details.fix) && !details.fix.includes("\n"), `fix: ${details.fix}`);
  const text = JSON.stringify(error);
  assert(!text.includes(TOKEN) && !text.includes(WRONG), "a secret is in the refusal");
}

Deno.test("the first frame is a challenge with a nonce, the time and the gateway's lasting id", async () => {
  const stateDir = await Deno.makeTempDir();
  const challenge = async () => {
    await using gateway = await startTestGateway({ stateDir });
    const socket = await gateway.open();
    return await socket.take(() => true);
  };

  const [first, second] = [await challenge(), await challenge()];
  await Deno.remove(stateDir, { recursive: true });

  assertEquals(Object.keys(first).sort(), ["event", "payload", "type"]);
  assertEquals([first.type, first.event], ["event", "connect.challenge"]);
  assertMatch(first.payload.nonce, UUID);
  assert(first.payload.nonce !== second.payload.nonce);
  assert(
    Number.isSafeInteger(first.payload.ts) && Math.abs(Date.now() - first.payload.ts) < 60_000,
  );
  assertMatch(first.payload.gatewayId, UUID);
  assertEquals(first.payload.gatewayId, second.payload.gatewayId);
});

Deno.test("protocol 4 is greeted with version, features, snapshot, policy and what was granted", async () => {
  await using gateway = await startTestGateway();

  const { hello } = await gateway.connect({ scopes: ["operator.read", "operator.write"] });

  assertEquals([hello.type, hello.protocol, hello.server.version], ["hello-ok", 4, "0.0.0-test"]);
  assertMatch(hello.server.connId, UUID);
  assertEquals(hello.auth, {
    method: "token",
    role: "operator",
    scopes: ["operator.read", "operator.write"],
  });
  assertEquals(hello.policy, {
    maxPayload: 26_214_400,
    maxBufferedBytes: 52_428_800,
    tickIntervalMs: 30_000,
  });
  for (const method of ["health", "gateway.health", "gateway.call", "config.get"]) {
    assert(hello.features.methods.includes(method), method);
  }
  assert(hello.features.events.includes("shutdown"));
  assertEquals(hello.snapshot.authMode, "token");
  assertEquals(hello.snapshot.health.ok, true);
  assertEquals(hello.snapshot.stateDir, gateway.paths.stateDir);
  assertEquals(hello.snapshot.presence[0].mode, "gateway");
});

Deno.test("protocol 3 is greeted without what it does not know", async () => {
  await using gateway = await startTestGateway();

  const { hello } = await gateway.connect({ protocol: 3, scopes: [] });

  assertEquals([hello.type, hello.protocol], ["hello-ok", 3]);
  assertEquals(["auth" in hello, "authMode" in hello.snapshot], [false, false]);
});

Deno.test("an operator of protocol 3 without scopes is an admin, one of protocol 4 has none", async () => {
  await using gateway = await startTestGateway();
  const old = await gateway.connect({ protocol: 3, scopes: [] });
  const absent = await gateway.connect({ protocol: 3, params: { scopes: undefined } });
  const recent = await gateway.connect({ protocol: 4, scopes: [] });

  await old.call("set-heartbeats", { enabled: true });
  await absent.call("set-heartbeats", { enabled: true });

  assertEquals((await recent.refused("health")).message, "missing scope: operator.read");
});

Deno.test("of the versions a client offers the highest that both speak is taken", async () => {
  await using gateway = await startTestGateway();

  for (const [minProtocol, maxProtocol, agreed] of [[3, 4, 4], [1, 3, 3], [4, 99, 4]]) {
    const client = await gateway.connect({ params: { minProtocol, maxProtocol } });
    assertEquals(client.hello.protocol, agreed);
  }
});

Deno.test("JSON-RPC is spoken from the first frame to the last", async () => {
  await using gateway = await startTestGateway();
  const client = await gateway.connect({ jsonrpc: true });

  const health = await client.call("health");
  const refused = await client.refused("no.such");
  const presence = await client.call("system-event", { text: "hello" });
  const event = await client.eventFrame("presence");

  assertEquals([client.hello.type, health.ok, presence.ok], ["hello-ok", true, true]);
  assertEquals(refused, {
    code: -32601,
    message: "unknown method: no.such",
    data: { code: "INVALID_REQUEST" },
  });
  assertEquals(Object.keys(event).sort(), ["jsonrpc", "method", "params"]);
});

Deno.test("a JSON-RPC connect is refused in the words of that standard", async () => {
  await using gateway = await startTestGateway();

  const { error, closed } = await gateway.refused({ jsonrpc: true, auth: { token: WRONG } });

  assertEquals([error.code, error.data.code], [-32000, "INVALID_REQUEST"]);
  assertEquals([error.data.details.code, error.data.details.layer], [
    "AUTH_TOKEN_MISMATCH",
    "auth",
  ]);
  assertEquals(closed.code, 1008);
});

interface Row {
  options: TestConnectOptions;
  error?: string;
  message: string;
  code: string;
  layer: string;
  closeCode?: number;
}

const PROOF = { device: true } as const;

/** What is refused alike on both versions. */
const REFUSALS: Record<string, Row> = {
  "another role": {
    options: { params: { role: "admin" } },
    message: "invalid role",
    code: "INVALID_ROLE",
    layer: "protocol",
  },
  "params that are wrong": {
    options: { params: { client: { id: "cli" } } },
    message: "invalid connect params: at /client: must have required property 'version'; " +
      "at /client: must have required property 'platform'; " +
      "at /client: must have required property 'mode'",
    code: "INVALID_CONNECT_PARAMS",
    layer: "protocol",
  },
  "no device and no secret": {
    options: { auth: null },
    error: "NOT_PAIRED",
    message: "device identity required",
    code: "DEVICE_IDENTITY_REQUIRED",
    layer: "device",
  },
  "a node without device and secret": {
    options: { auth: null, role: "node" },
    error: "NOT_PAIRED",
    message: "device identity required",
    code: "DEVICE_IDENTITY_REQUIRED",
    layer: "device",
  },
  "a Control UI without device": {
    options: CONTROL_UI,
    message: "control ui requires HTTPS or localhost (secure context)",
    code: "CONTROL_UI_DEVICE_IDENTITY_REQUIRED",
    layer: "device",
  },
  "a Control UI of another name": {
    options: { client: { id: "openclaw-control-ui", mode: "ui" } },
    message: "control ui requires HTTPS or localhost (secure context)",
    code: "CONTROL_UI_DEVICE_IDENTITY_REQUIRED",
    layer: "device",
  },
  "a public key that is none": {
    options: { ...PROOF, proof: { publicKey: "AAAA" } },
    message: "device public key invalid",
    code: "DEVICE_AUTH_PUBLIC_KEY_INVALID",
    layer: "device",
  },
  "an id of another key": {
    options: { ...PROOF, proof: { id: "0".repeat(64) } },
    message: "device identity mismatch",
    code: "DEVICE_AUTH_DEVICE_ID_MISMATCH",
    layer: "device",
  },
  "a signature that is too old": {
    options: { ...PROOF, signedAtMs: Date.now() - 700_000 },
    message: "device signature expired",
    code: "DEVICE_AUTH_SIGNATURE_EXPIRED",
    layer: "device",
  },
  "a signature of the future": {
    options: { ...PROOF, signedAtMs: Date.now() + 700_000 },
    message: "device signature expired",
    code: "DEVICE_AUTH_SIGNATURE_EXPIRED",
    layer: "device",
  },
  "no nonce from elsewhere": {
    options: { ...PROOF, withoutNonce: true, headers: REMOTE },
    message: "device nonce required",
    code: "DEVICE_AUTH_NONCE_REQUIRED",
    layer: "device",
  },
  "a nonce of another connection": {
    options: { ...PROOF, proof: { nonce: crypto.randomUUID() } },
    message: "device nonce mismatch",
    code: "DEVICE_AUTH_NONCE_MISMATCH",
    layer: "device",
  },
  "a signature over something else": {
    options: { ...PROOF, params: { scopes: ["operator.pairing"] } },
    message: "device signature invalid",
    code: "DEVICE_AUTH_SIGNATURE_INVALID",
    layer: "device",
  },
  "a signature that is none": {
    options: { ...PROOF, proof: { signature: "AAAA" } },
    message: "device signature invalid",
    code: "DEVICE_AUTH_SIGNATURE_INVALID",
    layer: "device",
  },
  "a device without secret": {
    options: { ...PROOF, auth: null },
    message: "unauthorized: gateway token missing (provide gateway auth token)",
    code: "AUTH_TOKEN_MISSING",
    layer: "auth",
  },
  "a command line with a wrong token": {
    options: { ...CLI, auth: { token: WRONG } },
    message: "unauthorized: gateway token mismatch " +
      "(set gateway.remote.token to match gateway.auth.token)",
    code: "AUTH_TOKEN_MISMATCH",
    layer: "auth",
  },
  "a chat page with a wrong token": {
    options: { client: { id: "webchat-ui", mode: "webchat" }, auth: { token: WRONG } },
    message: "unauthorized: gateway token mismatch " +
      "(open a tokenized dashboard URL or paste token in Control UI settings)",
    code: "AUTH_TOKEN_MISMATCH",
    layer: "auth",
  },
  "any other client with a wrong token": {
    options: { auth: { token: WRONG } },
    message: "unauthorized: gateway token mismatch (provide gateway auth token)",
    code: "AUTH_TOKEN_MISMATCH",
    layer: "auth",
  },
  "a wrong secret in the other field": {
    options: { ...PROOF, auth: { password: WRONG } },
    message: "unauthorized: gateway token mismatch (provide gateway auth token)",
    code: "AUTH_TOKEN_MISMATCH",
    layer: "auth",
  },
  "a wrong token beside a right device": {
    options: { ...PROOF, auth: { token: WRONG } },
    message: "unauthorized: gateway token mismatch (provide gateway auth token)",
    code: "AUTH_TOKEN_MISMATCH",
    layer: "auth",
  },
  "a device token nobody made": {
    options: { ...PROOF, auth: { deviceToken: WRONG } },
    message: "unauthorized: gateway token mismatch (provide gateway auth token)",
    code: "AUTH_TOKEN_MISMATCH",
    layer: "auth",
  },
};

Deno.test("every refused connect explains itself, on both versions", async (t) => {
  await using gateway = await startTestGateway();
  for (const [name, row] of Object.entries(REFUSALS)) {
    for (const protocol of [3, 4] as const) {
      await t.step(`${name}, protocol ${protocol}`, async () => {
        const refusal = await gateway.refused({ protocol, ...row.options });

        const { error, closed } = refusal;
        assertEquals([error.code, error.message], [row.error ?? "INVALID_REQUEST", row.message]);
        assertExplained(refusal, row.code, row.layer);
        assertEquals(closed.code, 1008);
        assertEquals(closed.reason, row.message.slice(0, 120));
        assertEquals("retryable" in error, protocol === 4);
      });
    }
  }
});

Deno.test("no common version is refused with the one to come back with", async () => {
  await using gateway = await startTestGateway();
  const rows: [number, number, number][] = [[1, 2, 3], [5, 6, 4], [4, 3, 4]];

  for (const [minProtocol, maxProtocol, expectedProtocol] of rows) {
    const refusal = await gateway.refused({ params: { minProtocol, maxProtocol } });

    assertExplained(refusal, "PROTOCOL_MISMATCH", "protocol");
    const { error, closed } = refusal;
    assertEquals([error.code, error.message], ["INVALID_REQUEST", "protocol mismatch"]);
    assertEquals(
      [error.details.expectedProtocol, error.details.minimumProbeProtocol],
      [expectedProtocol, 3],
    );
    assertEquals(
      [error.details.clientMinProtocol, error.details.clientMaxProtocol],
      [minProtocol, maxProtocol],
    );
    assertEquals(closed, { code: 1002, reason: "protocol mismatch" });
  }
});

Deno.test("a refused proof says on protocol 4 what was wrong with it", async () => {
  await using gateway = await startTestGateway();

  const recent = await gateway.refused({ ...PROOF, proof: { id: "0".repeat(64) } });
  const old = await gateway.refused({ ...PROOF, proof: { id: "0".repeat(64) }, protocol: 3 });

  assertEquals(recent.error.details.reason, "device-id-mismatch");
  assertEquals("reason" in old.error.details, false);
});

Deno.test("a wrong token says on protocol 4 whether a device token may be tried", async () => {
  await using gateway = await startTestGateway();
  const detailsOf = async (options: TestConnectOptions) =>
    (await gateway.refused(options)).error.details;

  const withDevice = await detailsOf({ device: true, auth: { token: WRONG } });
  const withToken = await detailsOf({ device: true, auth: { token: WRONG, deviceToken: WRONG } });
  const without = await detailsOf({ auth: { token: WRONG } });
  const missing = await detailsOf({ device: true, auth: null });

  const told = [withDevice, withToken, without, missing].map((details) => [
    details.authReason,
    details.canRetryWithDeviceToken,
    details.recommendedNextStep,
  ]);
  assertEquals(told, [
    ["token_mismatch", true, "retry_with_device_token"],
    ["token_mismatch", false, "update_auth_credentials"],
    ["token_mismatch", false, "update_auth_credentials"],
    ["token_missing", false, "update_auth_credentials"],
  ]);
});

Deno.test("a first request that is not connect is refused, whatever method it names", async () => {
  await using gateway = await startTestGateway();

  for (const method of ["health", "config.apply", "no.such", "gateway.connect"]) {
    const socket = await gateway.open();
    socket.send({ type: "req", id: "1", method, params: {} });

    const { error } = await socket.take((frame) => frame.id === "1");

    assertEquals(error.message, "invalid handshake: first request must be connect");
    assertEquals([error.details.code, error.details.layer], ["CONNECT_REQUIRED", "protocol"]);
    assertEquals(await socket.end(), {
      code: 1008,
      reason: "invalid handshake: first request must be connect",
    });
  }
});

Deno.test("a first frame that is no request closes without an answer", async () => {
  await using gateway = await startTestGateway();
  const rows: [string, number, string][] = [
    ["no json", 1000, ""],
    ["", 1000, ""],
    ["[]", 1008, "invalid request frame"],
    ["7", 1008, "invalid request frame"],
    [`{"type":"event","event":"x"}`, 1008, "invalid request frame"],
    [`{"type":"req","id":"","method":"connect"}`, 1008, "invalid request frame"],
    [`{"jsonrpc":"2.0","id":1}`, 1008, "invalid request frame"],
    [`[{"jsonrpc":"2.0","id":1,"method":"connect"}]`, 1008, "invalid request frame"],
  ];

  for (const [text, code, reason] of rows) {
    const socket = await gateway.open();
    await socket.take((frame) => frame.event === "connect.challenge");
    socket.send(text);

    assertEquals(await socket.end(), { code, reason }, text);
    assertEquals(socket.waiting, []);
  }
});

Deno.test("connect params of any kind are refused and break nothing", async () => {
  await using gateway = await startTestGateway();
  const odd = [
    undefined,
    null,
    [],
    7,
    "connect",
    {},
    { minProtocol: "4", maxProtocol: "4", client: null },
    { maxProtocol: 4, client: [], scopes: {} },
    JSON.parse(`{"__proto__":{"role":"operator"},"maxProtocol":4}`),
    JSON.parse(`{"maxProtocol":4,"client":${"[".repeat(5_000)}${"]".repeat(5_000)}}`),
    JSON.parse(`{"maxProtocol":3,"extra":${"[".repeat(5_000)}${"]".repeat(5_000)}}`),
    { maxProtocol: 4, caps: Array(20_000).fill(0) },
  ];

  for (const params of odd) {
    const socket = await gateway.open();
    socket.send({ type: "req", id: "1", method: "connect", params });
    const { error } = await socket.take((frame) => frame.id === "1");
    assertEquals(error.details.code, "INVALID_CONNECT_PARAMS");
    assert(error.message.length < 4_000, `${error.message.length} characters`);
    assertEquals((await socket.end()).code, 1008);
  }
  assertEquals((await (await gateway.connect()).call("health")).ok, true);
});

Deno.test("protocol 3 refuses params it does not know, protocol 4 lets them pass at any depth", async () => {
  await using gateway = await startTestGateway();
  const client = { id: "cli", mode: "cli", version: "1", platform: "linux", buildId: "b" };

  const refusal = await gateway.refused({ protocol: 3, params: { client, computerUse: {} } });
  await gateway.connect({ protocol: 4, params: { client, computerUse: {}, workerRuns: [] } });

  assertEquals(
    refusal.error.message,
    "invalid connect params: at /client: unexpected property 'buildId'; " +
      "at root: unexpected property 'computerUse'",
  );
});

Deno.test("a protocol 4 client without device on loopback with the shared token keeps its scopes", async () => {
  await using gateway = await startTestGateway();
  const scopes = ["operator.read", "operator.pairing"];

  for (const client of [{ id: "cli", mode: "cli" }, { id: "gateway-client", mode: "backend" }]) {
    const { auth } = await gateway.connect({ client, scopes });
    assertEquals(auth, { method: "token", role: "operator", scopes });
  }
});

Deno.test("the shared secret opens in either field", async () => {
  await using gateway = await startTestGateway();

  for (const auth of [{ token: TOKEN }, { password: TOKEN }, { token: "", password: TOKEN }]) {
    assertEquals((await gateway.connect({ device: true, auth })).auth.method, "token");
  }
  assertEquals((await gateway.connect({ auth: { password: TOKEN } })).auth.method, "token");
});

Deno.test("mode password takes the password, in either field, and says what it wants", async () => {
  await using gateway = await startTestGateway({ flags: { password: "correct horse" } });
  const at = { device: true } as const;

  for (const auth of [{ password: "correct horse" }, { token: "correct horse" }]) {
    assertEquals((await gateway.connect({ ...at, auth })).auth.method, "password");
  }
  const missing = await gateway.refused({ ...at, auth: null });
  const wrong = await gateway.refused({ ...at, ...CLI, auth: { password: WRONG } });

  assertEquals(
    missing.error.message,
    "unauthorized: gateway password missing (provide gateway auth password)",
  );
  assertExplained(missing, "AUTH_PASSWORD_MISSING", "auth");
  assertEquals(
    wrong.error.message,
    "unauthorized: gateway password mismatch " +
      "(set gateway.remote.password to match gateway.auth.password)",
  );
  assertExplained(wrong, "AUTH_PASSWORD_MISMATCH", "auth");
});

Deno.test("mode none still asks for a device, but of local programs of protocol 4", async () => {
  await using gateway = await startTestGateway({ flags: { auth: "none" } });
  const backend = { auth: null, client: { id: "gateway-client", mode: "backend" } };
  const required = async (options: TestConnectOptions) =>
    assertEquals(
      (await gateway.refused({ ...backend, ...options })).error.message,
      "device identity required",
    );

  assertEquals((await gateway.connect({ auth: null, device: true })).auth.method, "none");
  assertEquals((await gateway.connect(backend)).auth.method, "none");
  await required({ protocol: 3 });
  await required({ headers: REMOTE });
  await required({ headers: { origin: `http://127.0.0.1:${gateway.port}` } });
  await required({ client: { id: "cli", mode: "cli" } });
  await required({ role: "node" });
});

Deno.test("without a secret of its owner a gateway makes one, keeps it, and asks for it", async () => {
  const stateDir = await Deno.makeTempDir();
  const token = async () => {
    await using gateway = await startTestGateway({ stateDir, config: "{ /* no auth */ }" });
    await gateway.connect();
    await gateway.refused({ auth: { token: WRONG } });
    return gateway.token;
  };

  const [first, second] = [await token(), await token()];
  const file = await Deno.stat(`${stateDir}/gateway.token`);
  await Deno.remove(stateDir, { recursive: true });

  assertMatch(first, /^[A-Za-z0-9_-]{43}$/);
  assertEquals(second, first);
  assertEquals(file.mode! & 0o777, 0o600);
});

Deno.test("a local device is paired without asking and gets a token", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect({ scopes: ["operator.pairing"] });
  const device = await newDevice();

  for (const protocol of [3, 4] as const) {
    const client = await gateway.connect({ device, protocol });
    assertMatch(client.auth.deviceToken, /^[0-9a-f]{32}$/);
    assertEquals(client.auth.scopes, ["operator.admin"]);
    assert(Number.isSafeInteger(client.auth.issuedAtMs));
  }

  const resolved = await operator.event("device.pair.resolved");
  assertEquals([resolved.deviceId, resolved.decision], [device.deviceId, "approved"]);
  assertEquals(operator.untakenEvents.includes("device.pair.resolved"), false);
});

Deno.test("a device token opens in place of the secret, and is echoed", async () => {
  await using gateway = await startTestGateway();
  const device = await newDevice();
  const { auth: { deviceToken } } = await gateway.connect({ device });

  for (const auth of [{ token: deviceToken }, { deviceToken }, { token: WRONG, deviceToken }]) {
    const again = await gateway.connect({ device, auth, protocol: 4 });
    assertEquals([again.auth.method, again.auth.deviceToken], ["device-token", deviceToken]);
  }
  const old = await gateway.connect({ device, auth: { token: deviceToken }, protocol: 3 });
  assertEquals(old.auth.deviceToken, deviceToken);
});

Deno.test("a device token is worthless without its device, for another role and for more scopes", async () => {
  await using gateway = await startTestGateway();
  const device = await newDevice();
  const { auth: { deviceToken } } = await gateway.connect({ device, scopes: ["operator.read"] });
  const auth = { token: deviceToken };
  const attempts: TestConnectOptions[] = [
    { auth },
    { auth, device: true },
    { auth, device, role: "node" },
    { auth, device, scopes: ["operator.admin"] },
    { auth, device, scopes: ["operator.write"] },
    { auth: { token: deviceToken.toUpperCase() }, device, scopes: ["operator.read"] },
  ];

  for (const attempt of attempts) {
    const refusal = await gateway.refused(attempt);
    assertExplained(refusal, "AUTH_TOKEN_MISMATCH", "auth");
  }
  await gateway.connect({ auth, device, scopes: ["operator.read"] });
});

Deno.test("a device elsewhere must be approved, and is told how", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect({ scopes: ["operator.pairing"] });

  const phone = await gateway.requestPairing({ name: "Phone", scopes: ["operator.read"] });
  const asked = await operator.event("device.pair.requested");

  const { error, closed } = phone.refusal;
  assertExplained(phone.refusal, "PAIRING_REQUIRED", "pairing");
  assertEquals([error.code, error.message], [
    "NOT_PAIRED",
    "pairing required: device is not approved yet",
  ]);
  const { reason, deviceId, requestedRole, requestedScopes } = error.details;
  assertEquals([reason, deviceId, requestedRole, requestedScopes], [
    "not-paired",
    phone.device.deviceId,
    "operator",
    ["operator.read"],
  ]);
  assert(error.details.fix.includes(phone.requestId));
  assertEquals(closed, {
    code: 1008,
    reason: "pairing required: device is not approved yet " + `(requestId: ${phone.requestId})`,
  });
  assertEquals([asked.requestId, asked.displayName, asked.isRepair], [
    phone.requestId,
    "Phone",
    false,
  ]);
});

Deno.test("protocol 3 hears of a needed pairing in its own words", async () => {
  await using gateway = await startTestGateway();

  const { refusal, requestId } = await gateway.requestPairing({ protocol: 3 });

  assertEquals([refusal.error.code, refusal.error.message], ["NOT_PAIRED", "pairing required"]);
  assertEquals(refusal.error.details.requestId, requestId);
  assertEquals(refusal.closed, { code: 1008, reason: "pairing required" });
});

Deno.test("a paired device elsewhere that asks for more is told what it has and what it asks", async () => {
  await using gateway = await startTestGateway();
  const device = await newDevice();
  await gateway.connect({ device, scopes: ["operator.read"] });
  const ask = async (options: TestConnectOptions) =>
    (await gateway.refused({ device, headers: REMOTE, ...options })).error;

  const scopes = await ask({ scopes: ["operator.admin"] });
  const role = await ask({ role: "node" });

  assertEquals(
    [scopes.message, scopes.details.reason],
    [
      "pairing required: device is asking for more scopes than currently approved",
      "scope-upgrade",
    ],
  );
  assertEquals([scopes.details.approvedScopes, scopes.details.requestedScopes], [
    ["operator.read"],
    ["operator.admin"],
  ]);
  assertEquals(
    [role.message, role.details.reason, role.details.approvedRoles],
    [
      "pairing required: device is asking for a higher role than currently approved",
      "role-upgrade",
      ["operator"],
    ],
  );
  await gateway.connect({ device, headers: REMOTE, scopes: ["operator.read"] });
});

Deno.test("a device that asks again keeps its request, one that asks for more gets another", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect({ scopes: ["operator.pairing"] });
  const phone = await gateway.requestPairing({ scopes: ["operator.read"] });

  const same = await phone.refused();
  const more = await gateway.refused({
    device: phone.device,
    headers: REMOTE,
    scopes: ["operator.admin"],
  });
  const withdrawn = await operator.event("device.pair.resolved");
  const { pending } = await operator.call("device.pair.list", {});

  assertEquals(same.error.details.requestId, phone.requestId);
  assert(more.error.details.requestId !== phone.requestId);
  assertEquals([withdrawn.requestId, withdrawn.decision], [phone.requestId, "rejected"]);
  assertEquals(pending.map((one: Json) => one.requestId), [more.error.details.requestId]);
});

Deno.test("a device elsewhere is not paired silently by anything it says of itself", async () => {
  await using gateway = await startTestGateway();
  const headers: Record<string, string>[] = [
    { "x-forwarded-for": "127.0.0.1" },
    { "x-real-ip": "127.0.0.1" },
    { forwarded: "for=127.0.0.1" },
    { via: "1.1 proxy" },
    { "x-forwarded-proto": "https" },
    { "x-forwarded-host": "localhost" },
    { "cf-connecting-ip": "127.0.0.1" },
    { "true-client-ip": "127.0.0.1" },
  ];

  for (const forwarded of headers) {
    const { error } = await gateway.refused({ headers: forwarded, device: true });
    assertEquals(error.details.code, "PAIRING_REQUIRED", JSON.stringify(forwarded));
  }
});

Deno.test("behind a trusted proxy the client's own address is what counts and is shown", async () => {
  await using gateway = await startTestGateway({
    config: { gateway: { trustedProxies: ["127.0.0.1"], auth: { token: TOKEN } } },
  });
  const operator = await gateway.connect({ scopes: ["operator.pairing"] });

  await gateway.requestPairing({ headers: { "x-forwarded-for": "127.0.0.1, 198.51.100.9" } });
  const spoofed = await gateway.refused({ device: true, headers: { "x-forwarded-for": "::1" } });

  assertEquals((await operator.event("device.pair.requested")).remoteIp, "198.51.100.9");
  assertEquals(spoofed.error.details.code, "PAIRING_REQUIRED");
});

Deno.test("a page is not paired silently unless it is a chat or control page of this gateway", async () => {
  await using gateway = await startTestGateway();
  const headers = { origin: `http://127.0.0.1:${gateway.port}` };

  const cli = await gateway.refused({ headers, device: true, ...CLI });
  assertEquals(cli.error.details.code, "PAIRING_REQUIRED");
  for (const client of [CONTROL_UI.client, { id: "webchat-ui", mode: "webchat" }]) {
    await gateway.connect({ headers, device: true, client });
  }
});

Deno.test("silent pairing can be switched off", async () => {
  await using gateway = await startTestGateway({
    config: { gateway: { auth: { token: TOKEN, silentPairing: false } } },
  });

  const { error } = await gateway.refused({ device: true });

  assertEquals(error.details.code, "PAIRING_REQUIRED");
});

Deno.test("a local client of protocol 3 may sign without nonce, one of protocol 4 may not", async () => {
  await using gateway = await startTestGateway();

  await gateway.connect({ protocol: 3, device: true, withoutNonce: true });
  const { error } = await gateway.refused({ protocol: 4, device: true, withoutNonce: true });

  assertEquals(error.message, "device nonce required");
});

Deno.test("a device may sign payload 2 or 3, with its key in any of the known forms", async () => {
  await using gateway = await startTestGateway();
  const device = await newDevice();
  const { publicKeyPem } = await exportPem(device);
  const standard = device.publicKey.replaceAll("-", "+").replaceAll("_", "/") + "=";
  const client = { platform: " macOS 15.1 ", deviceFamily: "Mac" };

  for (const publicKey of [device.publicKey, standard, publicKeyPem]) {
    for (const signs of [2, 3] as const) {
      await gateway.connect({ device, signs, client, proof: { publicKey } });
    }
  }
  const { error } = await gateway.refused({ device, signs: 1 });

  assertEquals(error.message, "device signature invalid");
  const operator = await gateway.connect({ scopes: ["operator.pairing"] });
  const { paired } = await operator.call("device.pair.list", {});
  assertEquals(paired.map((one: Json) => one.publicKey), [device.publicKey]);
});

Deno.test("a captured connect cannot be played again", async () => {
  await using gateway = await startTestGateway();
  const device = await newDevice();
  const first = await gateway.connect({ device });
  const { nonce, ts } = first.challenge;

  const { error } = await gateway.refused({ device, signedAtMs: ts, proof: { nonce } });

  assertEquals(error.message, "device nonce mismatch");
});

Deno.test("the Control UI may come without device where its owner allowed that, with the secret", async () => {
  const until = new Date(Date.now() + 3_600_000).toISOString();
  await using gateway = await startTestGateway({
    config: {
      gateway: {
        auth: { token: TOKEN },
        controlUi: { allowInsecureAuth: true, allowInsecureAuthUntil: until },
      },
    },
  });

  await gateway.connect(CONTROL_UI);
  const missing = await gateway.refused({ ...CONTROL_UI, auth: null });
  const wrong = await gateway.refused({ ...CONTROL_UI, auth: { token: WRONG } });

  assertEquals(missing.error.details.code, "CONTROL_UI_DEVICE_IDENTITY_REQUIRED");
  assertEquals(wrong.error.details.code, "AUTH_TOKEN_MISMATCH");
});

Deno.test("ten wrong secrets lock an address out, whichever door they come to", async () => {
  await using gateway = await startTestGateway({
    config: { gateway: { trustedProxies: ["127.0.0.1"], auth: { token: TOKEN } } },
  });
  const from = (address: string) => ({ headers: { "x-forwarded-for": address } });
  const guess = { ...from("203.0.113.5"), auth: { token: WRONG } };

  for (let count = 0; count < 3; count++) await gateway.refused({ ...guess, auth: null });
  for (let count = 0; count < 3; count++) await gateway.refused(guess);
  for (let count = 0; count < 3; count++) {
    await gateway.refused({ ...guess, device: true, auth: { token: WRONG, deviceToken: WRONG } });
  }
  for (let count = 0; count < 4; count++) {
    const { status } = await gateway.rpc("{}", {
      authorization: `Bearer ${WRONG}`,
      ...guess.headers,
    });
    assertEquals(status, 401);
  }

  const locked = await gateway.refused(from("203.0.113.5"));
  assertExplained(locked, "AUTH_RATE_LIMITED", "auth");
  assertEquals(
    locked.error.message,
    "unauthorized: too many failed authentication attempts (retry later)",
  );
  assert(locked.error.retryAfterMs > 290_000 && locked.error.retryAfterMs <= 300_000);
  assertEquals(locked.error.retryable, false);
  const old = await gateway.refused({ ...from("203.0.113.5"), protocol: 3 });
  assertEquals([old.error.message, "retryAfterMs" in old.error], ["unauthorized", false]);
  const http = await gateway.rpc("{}", from("203.0.113.5").headers);
  assertEquals([http.status, Number(http.headers.get("retry-after")) > 290], [429, true]);
  await gateway.connect(from("203.0.113.6"));
  await gateway.connect();
});

Deno.test("forwarded guesses share one bucket, and whoever is local is never locked out", async () => {
  await using gateway = await startTestGateway();
  const guesses = Array.from({ length: 10 }, (_, index) =>
    gateway.refused({
      headers: { "x-forwarded-for": `203.0.113.${index}` },
      auth: { token: WRONG },
    }));
  await Promise.all(guesses);

  const forwarded = await gateway.refused({ headers: { "x-forwarded-for": "198.51.100.1" } });
  for (let count = 0; count < 10; count++) await gateway.refused({ auth: { token: WRONG } });

  assertEquals(forwarded.error.details.code, "AUTH_RATE_LIMITED");
  await gateway.connect();
});

Deno.test("a page on this machine that guesses is locked out, the programs beside it are not", async () => {
  await using gateway = await startTestGateway();
  const headers = { origin: `http://localhost:${gateway.port}` };
  for (let count = 0; count < 10; count++) {
    await gateway.refused({ headers, auth: { token: WRONG } });
  }

  const { error } = await gateway.refused({ headers });

  assertEquals(error.details.code, "AUTH_RATE_LIMITED");
  await gateway.connect();
});

interface Whois {
  gateway: TestGateway;
  asked: string[][];
}

async function tailscaleGateway(login: string | null, config = {}): Promise<Whois> {
  const asked: string[][] = [];
  const gateway = await startTestGateway({
    config: { gateway: { auth: { token: TOKEN, allowTailscale: true }, ...config } },
    runner: {
      run(command, args) {
        asked.push([command, ...args]);
        const stdout = JSON.stringify({ UserProfile: { LoginName: login } });
        return Promise.resolve(login === null ? undefined : { code: 0, stdout, stderr: "" });
      },
    },
  });
  return { gateway, asked };
}

const SERVED = {
  "tailscale-user-login": "peter@example.com",
  "x-forwarded-for": "1.2.3.4, 100.64.0.9",
  "x-forwarded-proto": "https",
  "x-forwarded-host": "box.tail1.ts.net",
};

Deno.test("a Tailscale user is let in when whois names the same login for the last hop", async () => {
  const { gateway, asked } = await tailscaleGateway("peter@example.com");
  await using _gateway = gateway;

  const { error } = await gateway.refused({ headers: SERVED, auth: null, device: true });

  assertEquals(error.details.code, "PAIRING_REQUIRED");
  assertEquals(asked, [["tailscale", "whois", "--json", "100.64.0.9"]]);
});

Deno.test("Tailscale headers alone open nothing", async (t) => {
  const without = (name: keyof typeof SERVED) =>
    Object.fromEntries(Object.entries(SERVED).filter(([key]) => key !== name));
  const rows: [string, string | null, Record<string, string>, object][] = [
    ["whois names another", "mallory@example.com", SERVED, {}],
    ["there is no tailscale", null, SERVED, {}],
    ["no login", "peter@example.com", without("tailscale-user-login"), {}],
    ["no address", "peter@example.com", without("x-forwarded-for"), {}],
    ["no scheme", "peter@example.com", without("x-forwarded-proto"), {}],
    ["no host", "peter@example.com", without("x-forwarded-host"), {}],
    ["a last hop that is none", "p", { ...SERVED, "x-forwarded-for": "100.64.0.9, x" }, {}],
    ["not allowed", "peter@example.com", SERVED, { auth: { token: TOKEN, allowTailscale: false } }],
  ];
  for (const [name, login, headers, config] of rows) {
    await t.step(name, async () => {
      const { gateway } = await tailscaleGateway(login, config);
      await using _gateway = gateway;

      const { error } = await gateway.refused({ headers, auth: null, device: true });

      assertEquals(error.details.code, "AUTH_TOKEN_MISSING");
    });
  }
});

Deno.test("a token in the URL is refused before the upgrade, with the way it should come", async () => {
  await using gateway = await startTestGateway();

  for (const path of ["/?token=x", "/any?a=1&token=", "/?TOKEN=x&token=y", "//?token=x"]) {
    const error: Json = await gateway.open({ path }).catch((error) => error);
    assertEquals(error.status, 403, path);
    assert(error.body.includes("connect.params"), error.body);
  }
  await gateway.open({ path: "/any/path?tokens=1" });
});

Deno.test("a foreign Host or Origin is refused before the upgrade", async () => {
  await using gateway = await startTestGateway();
  const rows: [Record<string, string>, number][] = [
    [{ host: "evil.example" }, 421],
    [{ host: `127.0.0.1.nip.io:${gateway.port}` }, 421],
    [{ host: "localhost." }, 421],
    [{ origin: "http://evil.example" }, 403],
    [{ origin: "null" }, 403],
    [{ origin: `http://localhost:${gateway.port + 1}` }, 403],
    [{ origin: "http://localhost.evil" }, 403],
  ];

  for (const [headers, status] of rows) {
    const error: Json = await gateway.open({ headers }).catch((error) => error);
    assertEquals(error.status, status, JSON.stringify(headers));
  }
  await gateway.connect({ headers: { host: "localhost:1" } });
  await gateway.connect({ headers: { origin: `http://localhost:${gateway.port}` } });
});
