import { assert, assertEquals } from "@std/assert";
import { InviteStore } from "../../gateway/invites.ts";
import { Store } from "../../gateway/store.ts";
import type { Json } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import {
  REMOTE,
  startTestGateway,
  type TestConnectOptions,
  type TestGateway,
  TOKEN,
} from "../support/gateway.ts";

const SCOPES = ["operator.read"];

/** A remote device that comes with an invitation and nothing else. */
function guest(secret: string, options: TestConnectOptions = {}): TestConnectOptions {
  const auth = { bootstrapToken: secret };
  return { headers: REMOTE, device: true, scopes: SCOPES, ...options, auth };
}

async function invite(gateway: TestGateway, params: Json = { scopes: SCOPES }): Promise<Json> {
  await using operator = await gateway.connect();
  return await operator.call("device.invite.create", params);
}

/** Invitations in memory, under a clock that a test moves. */
function invitesAt(nowMs = 1_000_000) {
  const clock = { nowMs };
  const store = Store.open(":memory:");
  const invites = new InviteStore(store, () => clock.nowMs);
  return { clock, invites, [Symbol.dispose]: () => store[Symbol.dispose]() };
}

async function everyFile(directory: string): Promise<string[]> {
  const texts: string[] = [];
  for await (const { name, isDirectory } of Deno.readDir(directory)) {
    const path = `${directory}/${name}`;
    if (isDirectory) texts.push(...await everyFile(path));
    else texts.push(new TextDecoder("latin1").decode(await Deno.readFile(path)));
  }
  return texts;
}

Deno.test("an invitation pairs a device from elsewhere without asking, on both protocols", async () => {
  await using gateway = await startTestGateway();
  await using operator = await gateway.connect();

  for (const protocol of [3, 4] as const) {
    const { inviteId, secret } = await invite(gateway);
    const device = await newDevice();
    const { auth } = await gateway.connect(guest(secret, { protocol, device }));

    assert(/^[0-9a-f]{32}$/.test(auth.deviceToken));
    assertEquals(auth.scopes, SCOPES);
    const { invites } = await operator.call("device.invite.list", {});
    const used = invites.find((one: Json) => one.inviteId === inviteId);
    assertEquals(used.usedBy, device.deviceId);
    const { deviceToken } = auth;
    const again = { headers: REMOTE, device, scopes: SCOPES, auth: { deviceToken } };
    assertEquals((await gateway.connect(again)).auth.method, "device-token");
  }
});

Deno.test("an invitation works once: the second is refused with a code and the fix", async () => {
  await using gateway = await startTestGateway();
  const { secret } = await invite(gateway);
  await gateway.connect(guest(secret));

  const { error, closed } = await gateway.refused(guest(secret));

  assertEquals(error, {
    code: "INVALID_REQUEST",
    message: "unauthorized: invitation unknown, used or expired",
    retryable: false,
    details: {
      code: "INVITE_INVALID",
      layer: "auth",
      retryable: false,
      fix: "Make another invitation on the gateway's host: zero devices invite",
    },
  });
  assertEquals(closed, { code: 1008, reason: error.message });
});

Deno.test("of eight that come with one invitation at the same time one gets in", async () => {
  await using gateway = await startTestGateway();
  await using operator = await gateway.connect();
  const { secret } = await invite(gateway);

  const outcomes = await Promise.all(
    Array.from(
      { length: 8 },
      () =>
        gateway.connect(guest(secret)).then(
          () => "in",
          ({ message }) => /INVITE_INVALID/.exec(message)?.[0],
        ),
    ),
  );

  assertEquals(outcomes.sort(), [...Array(7).fill("INVITE_INVALID"), "in"]);
  assertEquals((await operator.call("device.pair.list", {})).paired.length, 1);
});

Deno.test("an invitation that was revoked opens nothing", async () => {
  await using gateway = await startTestGateway();
  await using operator = await gateway.connect();
  const { inviteId, secret } = await invite(gateway);

  assertEquals(await operator.call("device.invite.revoke", { inviteId }), { inviteId });

  const { error } = await gateway.refused(guest(secret));
  assertEquals(error.details.code, "INVITE_INVALID");
  const twice = await operator.refused("device.invite.revoke", { inviteId });
  assertEquals([twice.code, twice.message], ["INVALID_REQUEST", "unknown inviteId"]);
});

Deno.test("an invitation for another role or fewer scopes opens nothing, and stays open", async () => {
  await using gateway = await startTestGateway();
  const { secret } = await invite(gateway, { scopes: ["operator.write"] });

  const asked: TestConnectOptions[] = [
    { role: "node", scopes: [] },
    { scopes: ["operator.admin"] },
    { scopes: ["operator.write", "operator.approvals"] },
    { protocol: 3, scopes: [] },
  ];
  for (const options of asked) {
    const { error } = await gateway.refused(guest(secret, options));
    assertEquals(error.details.code, "INVITE_INVALID", JSON.stringify(options));
  }

  const { auth } = await gateway.connect(guest(secret, { scopes: ["operator.read"] }));
  assertEquals(auth.scopes, ["operator.read"]);
});

Deno.test("an invitation is no secret for who has no device, and none for HTTP", async () => {
  await using gateway = await startTestGateway();
  const { secret } = await invite(gateway);

  const { error } = await gateway.refused(guest(secret, { device: false }));
  const asToken = await gateway.refused({ headers: REMOTE, auth: { token: secret } });
  const http = await gateway.rpc({ jsonrpc: "2.0", id: 1, method: "health" }, {
    authorization: `Bearer ${secret}`,
  });

  assertEquals(error.details.code, "DEVICE_IDENTITY_REQUIRED");
  assertEquals(asToken.error.details.code, "AUTH_TOKEN_MISMATCH");
  assertEquals(http.status, 401);
});

Deno.test("a device that is paired gets more with an invitation", async () => {
  await using gateway = await startTestGateway();
  await using operator = await gateway.connect();
  const device = await newDevice();
  await gateway.connect({ device, scopes: ["operator.read"] });
  const { secret } = await invite(gateway, { role: "node" });

  await gateway.connect(guest(secret, { device, role: "node", scopes: [] }));

  const { paired: [{ roles, scopes }] } = await operator.call("device.pair.list", {});
  assertEquals([roles, scopes], [["node", "operator"], ["operator.read"]]);
});

Deno.test("who is let in by Tailscale may come with an invitation too", async () => {
  const login = "ada@example.org";
  const runner = {
    run: () =>
      Promise.resolve({
        code: 0,
        stdout: JSON.stringify({ UserProfile: { LoginName: login } }),
        stderr: "",
      }),
  };
  const auth = { token: TOKEN, allowTailscale: true };
  await using gateway = await startTestGateway({ config: { gateway: { auth } }, runner });
  const { secret } = await invite(gateway);
  const headers = {
    "x-forwarded-for": "100.64.0.9",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "zero.tail.ts.net",
    "tailscale-user-login": login,
  };

  const { auth: told } = await gateway.connect(guest(secret, { headers }));

  assertEquals([told.method, told.scopes], ["tailscale", SCOPES]);
  const { error } = await gateway.refused(guest(secret, { headers }));
  assertEquals(error.details.code, "PAIRING_REQUIRED");
});

Deno.test("wrong invitations count as wrong secrets", async () => {
  await using gateway = await startTestGateway();
  const codes = [];
  for (let count = 0; count < 11; count++) {
    codes.push((await gateway.refused(guest(`wrong${count}`))).error.details.code);
  }

  assertEquals(codes, [...Array(10).fill("INVITE_INVALID"), "AUTH_RATE_LIMITED"]);
});

Deno.test("nobody invites to more than they hold, and a node takes admin", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect({ scopes: ["operator.pairing", "operator.write"] });
  const refused: [Json, string][] = [
    [{ scopes: ["operator.admin"] }, "operator.admin"],
    [{ scopes: ["operator.read", "operator.approvals"] }, "operator.approvals"],
    [{ role: "node" }, "operator.admin"],
  ];

  for (const [params, scope] of refused) {
    const error = await operator.refused("device.invite.create", params);
    assertEquals([error.code, error.message], ["FORBIDDEN", `missing scope: ${scope}`]);
  }
  const own = await operator.call("device.invite.create", {});
  assertEquals([own.role, own.scopes], ["operator", ["operator.pairing", "operator.write"]]);
  const less = await operator.call("device.invite.create", { scopes: ["operator.read"] });
  assertEquals(less.scopes, ["operator.read"]);
  for (const scopes of [["operator.read"], ["operator.write"], ["operator.approvals"]]) {
    const stranger = await gateway.connect({ scopes });
    const error = await stranger.refused("device.invite.create", {});
    assertEquals(error.message, "missing scope: operator.pairing");
  }
});

Deno.test("the secret of an invitation is told once, and in no file, log line or list again", async () => {
  await using gateway = await startTestGateway();
  await using operator = await gateway.connect();
  const { inviteId, secret, createdAtMs, expiresAtMs } = await invite(gateway);
  const open = await invite(gateway);
  await gateway.connect(guest(secret));
  await gateway.refused(guest(secret));

  const told = JSON.stringify([
    await operator.call("device.invite.list", {}),
    await operator.call("audit.list", {}),
    await operator.call("device.pair.list", {}),
  ]);
  const kept = [told, await gateway.log(), ...await everyFile(gateway.paths.stateDir)];

  assertEquals(secret.length, 32);
  assertEquals(expiresAtMs - createdAtMs, 600_000);
  assert(kept.length > 4, "the state directory was not read");
  assert(kept.some((text) => text.includes(inviteId)));
  for (const text of kept) assert(!text.includes(secret) && !text.includes(open.secret));
});

Deno.test("a lifetime is ten seconds to a week, and a hundred invitations are open at most", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  for (const ttlMs of [9_999, 604_800_001, 0, -1, 1.5]) {
    const error = await operator.refused("device.invite.create", { ttlMs });
    assert(error.message.startsWith("invalid device.invite.create params: at /ttlMs"));
  }

  const made = [];
  for (let count = 0; count < 100; count++) {
    made.push(await operator.call("device.invite.create", { ttlMs: 604_800_000 }));
  }

  const error = await operator.refused("device.invite.create", {});
  assertEquals(error.code, "UNAVAILABLE");
  await operator.call("device.invite.revoke", { inviteId: made[0].inviteId });
  await operator.call("device.invite.create", {});
});

Deno.test("an invitation ends when its time is over, and is listed for a day more", () => {
  using at = invitesAt();
  const { inviteId, secret } = at.invites.create("operator", SCOPES, 60_000)!;
  const isOpen = () => at.invites.find(secret, "operator", SCOPES) !== undefined;

  at.clock.nowMs += 59_999;
  assert(isOpen());
  at.clock.nowMs += 1;

  assert(!isOpen());
  assertEquals(at.invites.list().map((one) => one.inviteId), [inviteId]);
  at.clock.nowMs += 86_400_001;
  const { inviteId: next } = at.invites.create("operator", SCOPES, 60_000)!;
  assertEquals(at.invites.list().map((one) => one.inviteId), [next]);
});

Deno.test("expired and used invitations make room for new ones", () => {
  using at = invitesAt();
  for (let count = 0; count < 100; count++) at.invites.create("operator", SCOPES, 60_000);
  assertEquals(at.invites.create("operator", SCOPES, 60_000), undefined);

  at.clock.nowMs += 60_000;

  assert(at.invites.create("operator", SCOPES, 60_000));
});
