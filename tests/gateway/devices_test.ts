import { assert, assertEquals } from "@std/assert";
import { type DeviceClaim, DeviceStore, PENDING_TTL_MS } from "../../gateway/devices.ts";
import { Store } from "../../gateway/store.ts";

const PHONE: DeviceClaim = {
  deviceId: "a".repeat(64),
  publicKey: "key-of-the-phone",
  role: "operator",
  scopes: ["operator.read"],
  displayName: "Phone",
  platform: "ios 18.2",
  clientId: "zero-ios",
  clientMode: "ui",
  remoteIp: "203.0.113.7",
};
const OTHER: DeviceClaim = { ...PHONE, deviceId: "b".repeat(64), publicKey: "key-of-the-other" };

/** Devices in memory, under a clock that a test moves. */
function devicesAt(nowMs = 1_000_000) {
  const clock = { nowMs };
  const store = Store.open(":memory:");
  const devices = new DeviceStore(store, () => clock.nowMs);
  return { clock, devices, [Symbol.dispose]: () => store[Symbol.dispose]() };
}

function asking(change: Partial<DeviceClaim>): DeviceClaim {
  return { ...PHONE, ...change };
}

Deno.test("a device nobody knows must be paired, one that is may come again", () => {
  using at = devicesAt();

  assertEquals(at.devices.pairingReason(PHONE), "not-paired");
  at.devices.pair(PHONE);

  assertEquals(at.devices.pairingReason(PHONE), undefined);
  assertEquals(at.devices.pairingReason(OTHER), "not-paired");
});

Deno.test("another key, another role and more scopes each need a new approval", () => {
  using at = devicesAt();
  at.devices.pair(asking({ scopes: ["operator.write", "operator.talk"] }));
  const rows: [Partial<DeviceClaim>, string | undefined][] = [
    [{ publicKey: "another" }, "not-paired"],
    [{ role: "node", scopes: [] }, "role-upgrade"],
    [{ scopes: ["operator.admin"] }, "scope-upgrade"],
    [{ scopes: ["operator.write", "operator.pairing"] }, "scope-upgrade"],
    [{ scopes: ["operator.questions"] }, "scope-upgrade"],
    [{ scopes: ["operator.write"] }, undefined],
    [{ scopes: ["operator.read"] }, undefined],
    [{ scopes: ["operator.talk"] }, undefined],
    [{ scopes: [] }, undefined],
  ];

  for (const [change, reason] of rows) {
    assertEquals(at.devices.pairingReason(asking(change)), reason, JSON.stringify(change));
  }
});

Deno.test("an approval grants what was asked, beside what was granted before", () => {
  using at = devicesAt();
  at.devices.pair(PHONE);
  at.clock.nowMs += 5_000;

  at.devices.pair(asking({ role: "node", scopes: [] }));
  at.devices.pair(asking({ scopes: ["operator.pairing"] }));
  const device = at.devices.find(PHONE.deviceId)!;

  assertEquals(device.roles, ["node", "operator"]);
  assertEquals(device.scopes, ["operator.pairing", "operator.read"]);
  assertEquals([device.createdAtMs, device.approvedAtMs], [1_000_000, 1_005_000]);
});

Deno.test("a device under another key starts from nothing: its grants and tokens are gone", () => {
  using at = devicesAt();
  at.devices.pair(asking({ scopes: ["operator.admin"] }));
  const { token } = at.devices.issue(PHONE.deviceId, "operator", ["operator.admin"]);

  at.devices.pair(asking({ publicKey: "another", scopes: ["operator.read"] }));

  const device = at.devices.find(PHONE.deviceId)!;
  assertEquals([device.publicKey, device.scopes], ["another", ["operator.read"]]);
  const claim = asking({ publicKey: "another", scopes: [] });
  assertEquals(at.devices.verify(claim, token), { ok: false, reason: "token-mismatch" });
});

Deno.test("a device asks once: the same wish keeps its id, and its time is renewed", () => {
  using at = devicesAt();

  const first = at.devices.request(PHONE);
  at.clock.nowMs += PENDING_TTL_MS - 1;
  const again = at.devices.request(asking({ displayName: "Phone 2" }));

  assert(first.isNew && !again.isNew);
  assertEquals(again.request.requestId, first.request.requestId);
  assertEquals(at.devices.pending().map(({ ts, displayName }) => [ts, displayName]), [
    [at.clock.nowMs, "Phone 2"],
  ]);
  assertEquals(again.superseded, undefined);
});

Deno.test("a different wish takes the place of the pending one, which can no longer be approved", () => {
  const wishes: Partial<DeviceClaim>[] = [
    { scopes: ["operator.admin"] },
    { role: "node" },
    { publicKey: "another" },
    { scopes: [] },
  ];
  for (const wish of wishes) {
    using at = devicesAt();
    const first = at.devices.request(PHONE);

    const second = at.devices.request(asking(wish));

    assertEquals(second.superseded, first.request.requestId, JSON.stringify(wish));
    assert(second.isNew);
    assertEquals(at.devices.approve(first.request.requestId), undefined);
    assertEquals(at.devices.pending().map(({ requestId }) => requestId), [
      second.request.requestId,
    ]);
  }
});

Deno.test("approving grants exactly what the request showed", () => {
  using at = devicesAt();
  const { request } = at.devices.request(PHONE);

  const device = at.devices.approve(request.requestId)!;

  assertEquals([device.roles, device.scopes], [["operator"], ["operator.read"]]);
  assertEquals(device.displayName, "Phone");
  assertEquals(at.devices.pending(), []);
  assertEquals(at.devices.approve(request.requestId), undefined);
});

Deno.test("a request expires five minutes after the device last asked", () => {
  using at = devicesAt();
  const { request } = at.devices.request(PHONE);

  at.clock.nowMs += PENDING_TTL_MS;
  assertEquals(at.devices.pending().length, 1);
  at.clock.nowMs += 1;

  assertEquals(at.devices.pending(), []);
  assertEquals(at.devices.findPending(request.requestId), undefined);
  assertEquals(at.devices.approve(request.requestId), undefined);
  assertEquals(at.devices.reject(request.requestId), undefined);
  assert(at.devices.request(PHONE).request.requestId !== request.requestId);
});

Deno.test("a rejected request is gone, and the device may ask again", () => {
  using at = devicesAt();
  const { request } = at.devices.request(PHONE);

  assertEquals(at.devices.reject(request.requestId)?.deviceId, PHONE.deviceId);

  assertEquals(at.devices.reject(request.requestId), undefined);
  assertEquals(at.devices.find(PHONE.deviceId), undefined);
  assert(at.devices.request(PHONE).isNew);
});

Deno.test("requests are listed newest first, devices last approved first", () => {
  using at = devicesAt();

  for (const claim of [PHONE, OTHER]) {
    at.devices.request(claim);
    at.clock.nowMs += 1_000;
  }
  assertEquals(at.devices.pending().map(({ deviceId }) => deviceId[0]), ["b", "a"]);
  at.devices.pair(OTHER);
  at.clock.nowMs += 1_000;
  at.devices.pair(PHONE);

  assertEquals(at.devices.list().map(({ deviceId }) => deviceId[0]), ["a", "b"]);
});

Deno.test("a request of a paired device is a repair", () => {
  using at = devicesAt();

  assertEquals(at.devices.request(PHONE).request.isRepair, false);
  at.devices.pair(PHONE);

  assertEquals(at.devices.request(asking({ role: "node" })).request.isRepair, true);
});

Deno.test("what a paired device says of itself is kept up to date, its grants are not touched", () => {
  using at = devicesAt();
  at.devices.pair(PHONE);

  at.devices.touch(asking({
    displayName: undefined,
    platform: "ios 19",
    remoteIp: undefined,
    scopes: ["operator.admin"],
    role: "node",
  }));
  at.devices.touch(OTHER);

  const device = at.devices.find(PHONE.deviceId)!;
  assertEquals([device.displayName, device.platform, device.remoteIp], [
    "Phone",
    "ios 19",
    undefined,
  ]);
  assertEquals([device.roles, device.scopes], [["operator"], ["operator.read"]]);
  assertEquals(at.devices.list().length, 1);
});

Deno.test("a token is 32 hex digits, opens for its device, key and role, and is kept only as a hash", () => {
  using at = devicesAt();
  at.devices.pair(PHONE);
  at.devices.pair(OTHER);
  const { token, scopes, issuedAtMs } = at.devices.issue(PHONE.deviceId, "operator", [
    "operator.read",
  ]);

  assert(/^[0-9a-f]{32}$/.test(token));
  assertEquals(at.devices.verify(PHONE, token), { ok: true, scopes, issuedAtMs });
  const rows: [DeviceClaim, string, string][] = [
    [OTHER, token, "token-mismatch"],
    [asking({ deviceId: "c".repeat(64) }), token, "device-not-paired"],
    [asking({ publicKey: "another" }), token, "device-not-paired"],
    [asking({ role: "node" }), token, "role-missing"],
    [PHONE, token.toUpperCase(), "token-mismatch"],
    [PHONE, token.slice(1), "token-mismatch"],
    [PHONE, "", "token-mismatch"],
    [asking({ scopes: ["operator.write"] }), token, "scope-mismatch"],
  ];
  for (const [claim, presented, reason] of rows) {
    assertEquals(at.devices.verify(claim, presented), { ok: false, reason });
  }
  assert(!JSON.stringify([at.devices.list(), at.devices.pending()]).includes(token));
});

Deno.test("a request for no scopes always passes, and write covers read", () => {
  using at = devicesAt();
  at.devices.pair(PHONE);
  const { token } = at.devices.issue(PHONE.deviceId, "operator", ["operator.write"]);

  for (const scopes of [[], ["operator.read"], ["operator.write"]]) {
    assert(at.devices.verify(asking({ scopes }), token).ok, String(scopes));
  }
});

Deno.test("a new token leaves the last used one valid until it is used itself", () => {
  using at = devicesAt();
  at.devices.pair(PHONE);
  const issue = () => at.devices.issue(PHONE.deviceId, "operator", []).token;
  const opens = (token: string) => at.devices.verify(asking({ scopes: [] }), token).ok;
  const used = issue();
  assert(opens(used));

  const unused = issue();
  const newest = issue();

  assertEquals([opens(used), opens(unused)], [true, false]);
  assert(opens(newest));
  assertEquals([opens(used), opens(newest)], [false, true]);
});

Deno.test("of tokens that were never used two stay valid, however many are made", () => {
  using at = devicesAt();
  at.devices.pair(PHONE);
  const issue = () => at.devices.issue(PHONE.deviceId, "operator", []).token;
  const opens = (token: string) => at.devices.verify(asking({ scopes: [] }), token).ok;

  const tokens = Array.from({ length: 20 }, issue);

  assertEquals(tokens.slice(0, -2).filter(opens), []);
  assert(opens(tokens.at(-2)!));
  assert(opens(tokens.at(-1)!));
});

Deno.test("tokens of one role are not touched by those of another", () => {
  using at = devicesAt();
  at.devices.pair(PHONE);
  at.devices.pair(asking({ role: "node", scopes: [] }));
  const operator = at.devices.issue(PHONE.deviceId, "operator", []);
  const node = at.devices.issue(PHONE.deviceId, "node", []);

  assert(at.devices.verify(asking({ role: "node", scopes: [] }), node.token).ok);
  at.devices.revoke(PHONE.deviceId, "node");

  assert(at.devices.verify(asking({ scopes: [] }), operator.token).ok);
  assertEquals(at.devices.verify(asking({ role: "node", scopes: [] }), operator.token), {
    ok: false,
    reason: "token-revoked",
  });
});

Deno.test("a revoked role has no valid token until a new one is made", () => {
  using at = devicesAt();
  at.devices.pair(PHONE);
  const { token } = at.devices.issue(PHONE.deviceId, "operator", []);
  at.clock.nowMs += 10;

  assertEquals(at.devices.revoke(PHONE.deviceId, "operator"), at.clock.nowMs);
  const claim = asking({ scopes: [] });
  assertEquals(at.devices.verify(claim, token), { ok: false, reason: "token-revoked" });
  assertEquals(at.devices.find(PHONE.deviceId)!.tokens[0].revokedAtMs, at.clock.nowMs);

  const next = at.devices.issue(PHONE.deviceId, "operator", []);
  assertEquals(at.devices.verify(claim, token), { ok: false, reason: "token-mismatch" });
  assert(at.devices.verify(claim, next.token).ok);
  assertEquals(at.devices.find(PHONE.deviceId)!.tokens[0].revokedAtMs, undefined);
});

Deno.test("rotating keeps the scopes unless others are given, which the device then has too", () => {
  using at = devicesAt();
  at.devices.pair(PHONE);
  at.devices.issue(PHONE.deviceId, "operator", ["operator.read"]);
  at.clock.nowMs += 10;

  const same = at.devices.rotate(PHONE.deviceId, "operator")!;
  const more = at.devices.rotate(PHONE.deviceId, "operator", ["operator.write", "operator.write"])!;

  assertEquals(same.scopes, ["operator.read"]);
  assertEquals(more.scopes, ["operator.write"]);
  const device = at.devices.find(PHONE.deviceId)!;
  assertEquals(device.scopes, ["operator.read", "operator.write"]);
  assertEquals(device.tokens[0].rotatedAtMs, at.clock.nowMs);
  assert(at.devices.verify(asking({ scopes: ["operator.write"] }), more.token).ok);
});

Deno.test("a rotation nobody heard of locks nobody out", () => {
  using at = devicesAt();
  at.devices.pair(PHONE);
  const { token } = at.devices.issue(PHONE.deviceId, "operator", []);
  assert(at.devices.verify(asking({ scopes: [] }), token).ok);

  for (let count = 0; count < 5; count++) at.devices.rotate(PHONE.deviceId, "operator");

  assert(at.devices.verify(asking({ scopes: [] }), token).ok);
});

Deno.test("devices and roles that are not there cannot be rotated, revoked or removed", () => {
  using at = devicesAt();
  at.devices.pair(PHONE);

  assertEquals(at.devices.rotate(PHONE.deviceId, "node"), undefined);
  assertEquals(at.devices.rotate(OTHER.deviceId, "operator"), undefined);
  assertEquals(at.devices.revoke(PHONE.deviceId, "node"), undefined);
  assertEquals(at.devices.scopesOf(OTHER.deviceId, "operator"), undefined);
  assertEquals(at.devices.remove(OTHER.deviceId), false);
});

Deno.test("a removed device is unknown, with its tokens and its pending request", () => {
  using at = devicesAt();
  at.devices.pair(PHONE);
  const { token } = at.devices.issue(PHONE.deviceId, "operator", []);
  at.devices.request(asking({ role: "node" }));

  assertEquals(at.devices.remove(PHONE.deviceId), true);

  assertEquals(at.devices.list(), []);
  assertEquals(at.devices.pending(), []);
  assertEquals(at.devices.verify(PHONE, token), { ok: false, reason: "device-not-paired" });
  at.devices.pair(PHONE);
  assertEquals(at.devices.verify(PHONE, token).ok, false);
});

Deno.test("everything survives the end of the process, and no file holds a token", async () => {
  const path = await Deno.makeTempFile({ suffix: ".sqlite" });
  let token: string;
  let requestId: string;
  {
    using store = Store.open(path);
    const devices = new DeviceStore(store);
    devices.pair(PHONE);
    token = devices.issue(PHONE.deviceId, "operator", ["operator.read"]).token;
    requestId = devices.request(OTHER).request.requestId;
  }

  {
    using store = Store.open(path);
    const devices = new DeviceStore(store);
    assertEquals(devices.pairingReason(PHONE), undefined);
    assertEquals(devices.pending().map((one) => one.requestId), [requestId]);
    assert(devices.verify(PHONE, token).ok);
    assertEquals(devices.approve(requestId)?.deviceId, OTHER.deviceId);
    for (const file of [path, `${path}-wal`]) {
      assert(!(await Deno.readTextFile(file)).includes(token), file);
    }
  }
  await Deno.remove(path);
});
