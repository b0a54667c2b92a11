import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { DeviceTokenFile, openDevice } from "../../config/identity_store.ts";
import { exportPem, generateIdentity, type Identity, identityFromPem } from "../../rpc/identity.ts";

const KEYS = { generate: generateIdentity, read: identityFromPem, write: exportPem };
const IS_UNIX = Deno.build.os !== "windows";

class StateDir implements AsyncDisposable {
  readonly warnings: string[] = [];
  nowMs = 1_000;

  constructor(readonly path: string) {}

  static async make(): Promise<StateDir> {
    return new StateDir(await Deno.makeTempDir());
  }

  get deviceFile(): string {
    return `${this.path}/identity/device.json`;
  }

  get authFile(): string {
    return `${this.path}/identity/device-auth.json`;
  }

  open(): Promise<Identity> {
    return openDevice({ file: this.deviceFile, keys: KEYS, ...this.#shared });
  }

  tokens(way: string, deviceId = "device-1", otherWays?: string[]): DeviceTokenFile {
    return new DeviceTokenFile({ file: this.authFile, deviceId, way, otherWays, ...this.#shared });
  }

  get names(): string[] {
    return [...Deno.readDirSync(`${this.path}/identity`)].map(({ name }) => name).sort();
  }

  get #shared() {
    return {
      warn: (message: string) => this.warnings.push(message),
      nowMs: () => this.nowMs,
    };
  }

  async [Symbol.asyncDispose]() {
    await Deno.remove(this.path, { recursive: true });
  }
}

async function mode(path: string): Promise<number> {
  return (await Deno.stat(path)).mode! & 0o777;
}

Deno.test("a device is made once, for its owner's eyes only", async () => {
  await using state = await StateDir.make();

  const first = await state.open();
  const second = await state.open();

  const stored = JSON.parse(await Deno.readTextFile(state.deviceFile));
  assertEquals(second.deviceId, first.deviceId);
  assertEquals([stored.version, stored.deviceId, stored.createdAtMs], [1, first.deviceId, 1_000]);
  assertEquals(stored.publicKeyPem, (await exportPem(first)).publicKeyPem);
  assertEquals([state.names, state.warnings], [["device.json"], []]);
  if (IS_UNIX) {
    assertEquals(await mode(state.deviceFile), 0o600);
    assertEquals(await mode(`${state.path}/identity`), 0o700);
  }
});

Deno.test("processes that start together agree on one device", async () => {
  await using state = await StateDir.make();

  const devices = await Promise.all(Array.from({ length: 8 }, () => state.open()));

  assertEquals(new Set(devices.map(({ deviceId }) => deviceId)).size, 1);
  assertEquals(state.names, ["device.json"]);
});

Deno.test("a stored id that is not the key's is written anew", async () => {
  await using state = await StateDir.make();
  const device = await state.open();
  const stored = JSON.parse(await Deno.readTextFile(state.deviceFile));
  await Deno.writeTextFile(state.deviceFile, JSON.stringify({ ...stored, deviceId: "other" }));
  state.nowMs = 9_000;

  assertEquals((await state.open()).deviceId, device.deviceId);

  const repaired = JSON.parse(await Deno.readTextFile(state.deviceFile));
  assertEquals([repaired.deviceId, repaired.createdAtMs], [device.deviceId, 1_000]);
});

Deno.test("a damaged device file is kept aside, told of, and replaced", async () => {
  for (
    const damage of [
      () => "{ half a",
      () => "null",
      (text: string) => text.replace('"version": 1', '"version": 2'),
      (text: string) => text.replace("PRIVATE KEY-----\\n", "PRIVATE KEY-----\\nAAAA"),
    ]
  ) {
    await using state = await StateDir.make();
    const lost = await state.open();
    const damaged = damage(await Deno.readTextFile(state.deviceFile));
    await Deno.writeTextFile(state.deviceFile, damaged);

    const fresh = await state.open();

    assertNotEquals(fresh.deviceId, lost.deviceId);
    assertEquals(state.names, ["device.json", "device.json.corrupt-1000"]);
    assertEquals(await Deno.readTextFile(`${state.deviceFile}.corrupt-1000`), damaged);
    assertEquals(state.warnings.length, 1);
    assert(state.warnings[0].startsWith(`Cannot use ${state.deviceFile}: it is damaged`));
    assert(!state.warnings[0].includes("PRIVATE"));
    assertEquals((await state.open()).deviceId, fresh.deviceId);
  }
});

Deno.test("a device token is found only for its gateway, way and role", async () => {
  await using state = await StateDir.make();
  const tokens = state.tokens("ws://127.0.0.1:18789");

  await tokens.keep("gateway-1", { token: "t1", role: "operator", scopes: ["b", "a"] });
  await tokens.keep("gateway-1", { token: "t2", role: "node", scopes: [] });
  await tokens.keep(undefined, { token: "t3", role: "operator", scopes: [] });

  assertEquals(await tokens.find("gateway-1", "operator"), {
    token: "t1",
    role: "operator",
    scopes: ["a", "b"],
    updatedAtMs: 1_000,
  });
  assertEquals((await tokens.find("gateway-1", "node"))?.token, "t2");
  assertEquals((await tokens.find(undefined, "operator"))?.token, "t3");
  assertEquals(await tokens.find("gateway-2", "operator"), undefined);
  assertEquals(await state.tokens("wss://other").find("gateway-1", "operator"), undefined);
  if (IS_UNIX) assertEquals(await mode(state.authFile), 0o600);
});

Deno.test("a dropped device token is gone, the others stay", async () => {
  await using state = await StateDir.make();
  const tokens = state.tokens("ws://a");
  await tokens.keep("g", { token: "t1", role: "operator", scopes: [] });
  await state.tokens("ws://b").keep("g", { token: "t2", role: "operator", scopes: [] });

  await tokens.drop("g", "operator");
  await tokens.drop("nobody", "operator");

  const stored = JSON.parse(await Deno.readTextFile(state.authFile));
  assertEquals(Object.keys(stored.gateways), ["g@ws://b"]);
});

Deno.test("tokens of another device are not used", async () => {
  await using state = await StateDir.make();
  await state.tokens("ws://a", "old").keep("g", { token: "t", role: "operator", scopes: [] });

  assertEquals(await state.tokens("ws://a", "new").find("g", "operator"), undefined);

  await state.tokens("ws://a", "new").keep("g", { token: "n", role: "operator", scopes: [] });
  const stored = JSON.parse(await Deno.readTextFile(state.authFile));
  assertEquals([stored.version, stored.deviceId], [1, "new"]);
});

Deno.test("a damaged token file is kept aside and costs only the tokens", async () => {
  await using state = await StateDir.make();
  await state.tokens("ws://a").keep("g", { token: "t", role: "operator", scopes: [] });
  await Deno.writeTextFile(state.authFile, '{"version":1,"deviceId":"device-1","gateways":[]}');

  assertEquals(await state.tokens("ws://a").find("g", "operator"), undefined);

  assertEquals(state.names, ["device-auth.json.corrupt-1000"]);
  assertEquals(state.warnings.length, 1);
});

Deno.test("a token goes along from one certificate to the next, by way of both", async () => {
  await using state = await StateDir.make();
  const token = { token: "t1", role: "operator", scopes: [] };
  await state.tokens("tls:aa").keep("g1", token);
  const both = state.tokens("tls:aa", "device-1", ["tls:bb"]);

  const before = await state.tokens("tls:bb").find("g1", "operator");
  const during = await both.find("g1", "operator");
  const after = await state.tokens("tls:bb").find("g1", "operator");
  state.nowMs = 2_000;
  await both.keep("g1", { ...token, token: "t2" });
  const renewed = await Promise.all(
    ["tls:aa", "tls:bb"].map((way) => state.tokens(way).find("g1", "operator")),
  );
  await both.drop("g1", "operator");
  const dropped = await state.tokens("tls:bb").find("g1", "operator");

  assertEquals([before, during?.token, after?.token], [undefined, "t1", "t1"]);
  assertEquals(renewed.map((one) => one?.token), ["t2", "t2"]);
  assertEquals(dropped, undefined);
  assertEquals(await state.tokens("tls:bb").find("g2", "operator"), undefined);
});
