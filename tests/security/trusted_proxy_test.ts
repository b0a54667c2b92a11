// A proxy that logs people in and vouches for them (`gateway.auth.mode: "trusted-proxy"`): whom it
// lets in with what, and everything that only pretends to be it. nginx is a real one with the lines
// of the documentation; without it those tests are left out and say so.

import { assert, assertEquals } from "@std/assert";
import { zero } from "../support/cli.ts";
import { type ConnectOptions, handshake, type Json, TestClient } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import { startTestGateway, type TestGatewayOptions, TOKEN } from "../support/gateway.ts";
import {
  documented,
  knock,
  type KnockOptions,
  NAME,
  NGINX,
  OWN_ADDRESS,
  startNginx,
} from "../support/proxy.ts";

const ADA = "ada@example.org";
const EVE = "eve@example.org";
const PROOF = "a-proof-of-the-proxy-that-nobody-guesses";
const READ = ["operator.read"];
const HEADING = "Behind a proxy that knows its users";
/** What a proxy on this machine adds to a request, when there is none in the test. */
const ADDED = [
  "X-Forwarded-For: 203.0.113.7",
  `X-Forwarded-User: ${ADA}`,
  `X-Proxy-Secret: ${PROOF}`,
];

/** A gateway that is configured as the documentation says. */
async function startGateway(
  { auth = {}, trustedProxy = {}, gateway = {}, ...options }: TestGatewayOptions & {
    auth?: Json;
    trustedProxy?: Json;
    gateway?: Json;
  } = {},
) {
  const page = await Deno.readTextFile(new URL("../../docs/security.md", import.meta.url));
  const [, block] = page.split(`## ${HEADING}\n`)[1].match(/```json5\n([\s\S]*?)```/)!;
  const { default: json5 } = await import("json5");
  const config = json5.parse(block.replace("${ZERO_PROXY_SECRET}", PROOF));
  const documentedAuth = config.gateway.auth;
  Object.assign(config.gateway, gateway);
  Object.assign(documentedAuth.trustedProxy, trustedProxy);
  Object.assign(documentedAuth, auth);
  return await startTestGateway({ config, ...options });
}

/**
 * The nginx of the documentation, which knows ada and eve by their names as passwords.
 *
 * @param edit changes its lines
 */
function startLogin(target: number, edit: (block: string) => string = (block) => block) {
  return startNginx(target, async (directory) => {
    const users = `${directory}/htpasswd`;
    await Deno.writeTextFile(users, `${ADA}:{PLAIN}${ADA}\n${EVE}:{PLAIN}${EVE}\n`);
    const block = (await documented("nginx", target, HEADING))
      .replace("/etc/nginx/zero.htpasswd", users)
      .replace("the value of ZERO_PROXY_SECRET", PROOF);
    // Its workers are another user's than the one that made the directory.
    await Deno.chmod(directory, 0o755);
    await Deno.chmod(users, 0o644);
    return edit(block);
  });
}

function login(user: string): { authorization: string } {
  return { authorization: `Basic ${btoa(`${user}:${user}`)}` };
}

/** Connects through nginx as somebody who has logged in there. */
async function come(port: number, user: string, options: ConnectOptions = {}) {
  return await handshake(`ws://127.0.0.1:${port}`, {
    scopes: READ,
    ...options,
    headers: { host: `${NAME}:${port}`, ...login(user), ...options.headers },
  });
}

function member(outcome: Awaited<ReturnType<typeof come>>): TestClient {
  if (outcome instanceof TestClient) return outcome;
  throw new Error(`refused: ${JSON.stringify(outcome)}`);
}

function detailsOf(outcome: Awaited<ReturnType<typeof come>>): Json {
  if (outcome instanceof TestClient) throw new Error("it was let in");
  return outcome.error.details;
}

/** A call over HTTP through a proxy, as somebody who has logged in there. */
async function post(
  { port, path = "/rpc", address = "127.0.0.1", method = "health", headers = {} }: {
    port: number;
    path?: string;
    address?: string;
    method?: string;
    headers?: Record<string, string>;
  },
): Promise<{ status: number; json: Json }> {
  const response = await fetch(`http://${address}:${port}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify({ jsonrpc: "2.0", id: 1, method, params: {} }),
  });
  const text = await response.text();
  return { status: response.status, json: text.startsWith("{") ? JSON.parse(text) : text };
}

/** Straight to the gateway, with the header lines of a proxy. */
async function pretend(
  port: number,
  lines: string[],
  options: KnockOptions = {},
): Promise<Json> {
  const { socket, answer } = await knock(port, { auth: null, lines, ...options });
  socket.close();
  return answer;
}

Deno.test("who logs in at nginx is asked for no token, and is paired only when somebody approves", {
  ignore: !NGINX,
}, async () => {
  await using gateway = await startGateway({ auth: { token: TOKEN } });
  await using nginx = await startLogin(gateway.port);
  await using operator = await gateway.connect();
  const device = await newDevice();
  const client = { displayName: "phone", mode: "ui" };

  const first = detailsOf(await come(nginx.port, ADA, { device, client }));
  assertEquals([first.code, first.layer], ["PAIRING_REQUIRED", "pairing"]);
  await operator.call("device.pair.approve", { requestId: first.requestId });
  await using phone = member(await come(nginx.port, ADA, { device, client }));

  assertEquals(phone.auth, { method: "trusted-proxy", role: "operator", scopes: READ });
  assertEquals(phone.hello.snapshot.authMode, "trusted-proxy");
  const present: Json[] = await operator.call("system-presence", {});
  const { user, ip, deviceId } = present.find(({ host }) => host === "phone");
  assertEquals([user, ip, deviceId], [ADA, "127.0.0.1", device.deviceId]);
  const { entries } = await operator.call("audit.list", {});
  const requested = entries.find(({ event }: Json) => event === "device.requested");
  assertEquals([requested.user, requested.displayName], [ADA, "phone"]);
  assert((await gateway.log()).includes(ADA));
  assert(!(await gateway.log()).includes(PROOF));
});

Deno.test("what a client says of itself does not get past nginx", {
  ignore: !NGINX,
}, async (t) => {
  await using gateway = await startGateway({ auth: { token: TOKEN } });
  await using nginx = await startLogin(gateway.port);
  const claims: Record<string, Record<string, string>> = {
    "another user": { "x-forwarded-user": ADA },
    "another user and a guess": { "x-forwarded-user": ADA, "x-proxy-secret": "guess" },
    "another address": { "x-forwarded-for": "127.0.0.1", "x-forwarded-user": ADA },
  };
  for (const [name, headers] of Object.entries(claims)) {
    await t.step(name, async () => {
      const details = detailsOf(
        await come(nginx.port, EVE, { headers, device: await newDevice() }),
      );
      assertEquals(details.code, "AUTH_PROXY_USER_NOT_ALLOWED");
      assertEquals([details.layer, details.retryable, details.user], ["proxy", false, EVE]);
      assert(details.fix.includes("gateway.auth.trustedProxy.allowUsers"));
    });
  }
  await t.step("the shared token", async () => {
    const auth = { token: TOKEN };
    const details = detailsOf(await come(nginx.port, EVE, { auth }));
    assertEquals(details.code, "AUTH_PROXY_USER_NOT_ALLOWED");
    const bearer = await post({
      port: nginx.port,
      headers: { host: `${NAME}:${nginx.port}`, authorization: `Bearer ${TOKEN}` },
    });
    assertEquals(bearer.status, 401);
  });
  await t.step("the trail has who it was", async () => {
    await using operator = await gateway.connect();
    const { entries } = await operator.call("audit.list", {});
    const refused = entries.filter(({ code }: Json) => code === "AUTH_PROXY_USER_NOT_ALLOWED");
    assert(refused.length > 0);
    assertEquals(new Set(refused.map(({ user }: Json) => user)), new Set([EVE]));
  });
});

Deno.test("a proxy that adds to the header of its client, or forgets its own, lets nobody in", {
  ignore: !NGINX,
}, async (t) => {
  await using gateway = await startGateway({ auth: { token: TOKEN } });
  const set = "proxy_set_header X-Forwarded-User $remote_user;";
  const rows: [name: string, edit: (block: string) => string, code: string][] = [
    [
      "adding",
      (block) => block.replace(set, `${set} proxy_set_header X-Forwarded-User $http_x_claimed;`),
      "AUTH_PROXY_USER_AMBIGUOUS",
    ],
    [
      "joining",
      (block) => block.replace("$remote_user;", '"$http_x_claimed, $remote_user";'),
      "AUTH_PROXY_USER_AMBIGUOUS",
    ],
    ["naming nobody", (block) => block.replace(set, ""), "AUTH_PROXY_USER_MISSING"],
    [
      "without its proof",
      (block) => block.replace(/proxy_set_header X-Proxy-Secret.*/, ""),
      "AUTH_PROXY_HEADER_MISSING",
    ],
    [
      "with a proof of its own",
      (block) => block.replace(PROOF, "another"),
      "AUTH_PROXY_HEADER_MISMATCH",
    ],
    [
      "without saying whom it forwards",
      (block) => block.replace(/proxy_set_header X-Forwarded-For.*/, ""),
      "AUTH_TOKEN_MISSING",
    ],
  ];
  for (const [name, edit, code] of rows) {
    await t.step(name, async () => {
      await using nginx = await startLogin(gateway.port, edit);
      const headers = { "x-claimed": ADA };
      const details = detailsOf(
        await come(nginx.port, EVE, { headers, device: await newDevice() }),
      );
      assertEquals(details.code, code);
      const { status } = await post({
        port: nginx.port,
        headers: { host: `${NAME}:${nginx.port}`, ...headers, ...login(ADA) },
      });
      assertEquals(status, 401);
    });
  }
});

Deno.test("whoever does not come from the proxy forges in vain", {
  ignore: !OWN_ADDRESS,
}, async (t) => {
  const address = OWN_ADDRESS!;
  const gateway = { bind: "lan", allowedHosts: [NAME] };
  await t.step("with a shared secret it is asked for that", async () => {
    await using running = await startGateway({ gateway, auth: { token: TOKEN } });
    for (const device of [false, true]) {
      const { error } = await pretend(running.port, ADDED, {
        address,
        device,
        auth: { token: "wrong" },
      });
      assertEquals(error.details.code, "AUTH_TOKEN_MISMATCH");
    }
    const { error } = await pretend(running.port, ADDED, { address, device: true });
    assertEquals([error.details.code, error.details.layer], ["AUTH_TOKEN_MISSING", "auth"]);
    const { answer, socket } = await knock(running.port, { address });
    socket.close();
    assertEquals(answer.payload.auth.method, "token");
    assertEquals((await post({ port: running.port, address })).status, 401);
  });
  await t.step("without one it is sent to the proxy", async () => {
    await using running = await startGateway({ gateway });
    for (const options of [{}, { device: true }, { auth: { token: TOKEN } }]) {
      const { error } = await pretend(running.port, ADDED, { address, ...options });
      assertEquals([error.details.code, error.details.layer], ["AUTH_PROXY_REQUIRED", "proxy"]);
      assert(error.details.fix.includes("zero config set gateway.auth.token"));
    }
    const headers = { authorization: `Bearer ${TOKEN}` };
    const { status, json } = await post({ port: running.port, address, headers });
    assertEquals([status, json.error.layer], [401, "proxy"]);
  });
});

Deno.test("on the gateway's own machine only the proof makes a request the proxy's", async (t) => {
  await using gateway = await startGateway({ auth: { token: TOKEN } });
  const [forwarded, user, proof] = ADDED;
  const rows: Record<string, [lines: string[], code: string]> = {
    "everything right, and a device nobody approved": [ADDED, "PAIRING_REQUIRED"],
    "no proof": [[forwarded, user], "AUTH_PROXY_HEADER_MISSING"],
    "a wrong proof": [[forwarded, user, "X-Proxy-Secret: x"], "AUTH_PROXY_HEADER_MISMATCH"],
    "two proofs": [[...ADDED, "X-Proxy-Secret: x"], "AUTH_PROXY_HEADER_MISSING"],
    "two users": [[...ADDED, `X-Forwarded-User: ${EVE}`], "AUTH_PROXY_USER_AMBIGUOUS"],
    "no user": [[forwarded, proof], "AUTH_PROXY_USER_MISSING"],
    "an empty user": [[forwarded, proof, "X-Forwarded-User:"], "AUTH_PROXY_USER_MISSING"],
    "not forwarded": [[user, proof], "AUTH_TOKEN_MISSING"],
  };
  for (const [name, [lines, code]] of Object.entries(rows)) {
    await t.step(name, async () => {
      const { error } = await pretend(gateway.port, lines, { device: true });
      assertEquals(error.details.code, code);
    });
  }
});

Deno.test("wrong proofs lock nobody out, whatever address they name", async () => {
  await using gateway = await startGateway({ auth: { token: TOKEN } });
  const [forwarded, user] = ADDED;
  for (let count = 0; count < 11; count++) {
    const { error } = await pretend(gateway.port, [forwarded, user, "X-Proxy-Secret: x"]);
    assertEquals(error.details.code, "AUTH_PROXY_HEADER_MISMATCH");
  }

  const answer = await pretend(gateway.port, ADDED);

  assertEquals(answer.payload.auth.method, "trusted-proxy");
});

Deno.test("without a device a user has no more than the configured scopes", async (t) => {
  const rows: [scopes: string[] | undefined, asked: string[], granted: string[]][] = [
    [undefined, ["operator.read"], ["operator.read"]],
    [undefined, ["operator.admin"], ["operator.read"]],
    [undefined, ["operator.write", "operator.approvals"], ["operator.read"]],
    [undefined, [], []],
    [[], ["operator.admin"], []],
    [["operator.write"], ["operator.admin"], ["operator.write"]],
    [["operator.write", "operator.pairing"], ["operator.read", "operator.pairing"], [
      "operator.pairing",
      "operator.read",
    ]],
  ];
  for (const [scopes, asked, granted] of rows) {
    await t.step(`${scopes ?? "unset"}: ${asked.join(", ") || "none"}`, async () => {
      await using gateway = await startGateway({ trustedProxy: { ...(scopes && { scopes }) } });
      const { payload } = await pretend(gateway.port, ADDED, { scopes: asked });
      assertEquals(payload.auth, { method: "trusted-proxy", role: "operator", scopes: granted });
    });
  }
  await t.step("on protocol 3, where no scopes are all of them", async () => {
    await using gateway = await startGateway();
    const { socket, answer } = await knock(gateway.port, {
      auth: null,
      lines: ADDED,
      protocol: 3,
      scopes: [],
    });
    assertEquals(answer.ok, true);
    await socket.send(JSON.stringify({ type: "req", id: "1", method: "audit.list", params: {} }));
    for (;;) {
      const frame = await socket.readJson();
      if (frame.id !== "1") continue;
      assertEquals(frame.error.message, "missing scope: operator.admin");
      break;
    }
    socket.close();
  });
  await t.step("a node needs one, and so does the Control UI", async () => {
    await using gateway = await startGateway({
      gateway: { controlUi: { allowInsecureAuth: true, allowInsecureAuthUntil: "2999-01-01" } },
    });
    const node = await pretend(gateway.port, ADDED, {
      role: "node",
      scopes: [],
      auth: { token: "anything" },
    });
    assertEquals(node.error.details.code, "DEVICE_IDENTITY_REQUIRED");
    const client = { id: "zero-control-ui", mode: "ui" };
    const page = await pretend(gateway.port, ADDED, { client });
    assertEquals(page.error.details.code, "CONTROL_UI_DEVICE_IDENTITY_REQUIRED");
    const weakened = await pretend(gateway.port, ADDED, {
      client,
      scopes: ["operator.admin"],
      auth: { token: "anything" },
    });
    assertEquals(weakened.payload.auth.scopes, READ);
  });
});

Deno.test("POST /rpc takes the user of nginx too, and acts with the configured scopes", {
  ignore: !NGINX,
}, async (t) => {
  await using gateway = await startGateway({
    auth: { token: TOKEN },
    trustedProxy: { scopes: ["operator.pairing"] },
  });
  await using nginx = await startLogin(gateway.port);
  const host = `${NAME}:${nginx.port}`;
  const call = (user: string, rest: { method?: string; path?: string } = {}) =>
    post({ port: nginx.port, headers: { host, ...login(user) }, ...rest });

  await t.step("what the scopes open", async () => {
    const listed = await call(ADA, { method: "device.pair.list" });
    assertEquals([listed.status, listed.json.result.pending], [200, []]);
  });
  await t.step("and nothing else", async () => {
    const { status, json } = await call(ADA, { method: "audit.list" });
    assertEquals([status, json.error.message], [200, "missing scope: operator.admin"]);
  });
  await t.step("whoever is not allowed", async () => {
    const { status, json } = await call(EVE, { method: "device.pair.list" });
    assertEquals(status, 401);
    assertEquals([json.error.code, json.error.layer], ["AUTH_PROXY_USER_NOT_ALLOWED", "proxy"]);
    assert(json.error.fix.includes("allowUsers"));
  });
  await t.step("endpoints that act for the owner", async () => {
    const { status, json } = await call(ADA, { path: "/tools/invoke" });
    assertEquals([status, json.error.message], [403, "Forbidden: missing scope: operator.admin"]);
  });
  await t.step("which are open with that scope", async () => {
    await using open = await startGateway({ trustedProxy: { scopes: ["operator.admin"] } });
    await using proxy = await startLogin(open.port);
    const headers = { host: `${NAME}:${proxy.port}`, ...login(ADA) };
    const { status, json } = await post({ port: proxy.port, path: "/tools/invoke", headers });
    assertEquals([status, json.error.type], [400, "invalid_request"]);
  });
  await t.step("and the trail has the user's name", async () => {
    await using operator = await gateway.connect();
    const device = await newDevice();
    const waiting = detailsOf(await come(nginx.port, ADA, { device }));
    const response = await fetch(`http://127.0.0.1:${nginx.port}/rpc`, {
      method: "POST",
      headers: { host, ...login(ADA), "content-type": "application/json" },
      body: JSON.stringify({
        jsonrpc: "2.0",
        id: 1,
        method: "device.pair.reject",
        params: { requestId: waiting.requestId },
      }),
    });
    assertEquals((await response.json()).error, undefined);
    const { entries } = await operator.call("audit.list", {});
    const rejected = entries.find(({ event }: Json) => event === "device.rejected");
    assertEquals(rejected.by, `user ${ADA} (gateway-client)`);
  });
});

Deno.test("past the proxy the shared secret works as ever, the password before the token", async (t) => {
  const password = "a-password-for-commands-on-this-host";
  await t.step("the token", async () => {
    await using gateway = await startGateway({ auth: { token: TOKEN } });
    await using operator = await gateway.connect();
    assertEquals(operator.auth.method, "token");
    const device = await newDevice();
    await using paired = await gateway.connect({ device });
    const { deviceToken } = paired.auth;
    await using again = await gateway.connect({ device, auth: { deviceToken } });
    assertEquals(again.auth.method, "device-token");
    const { error } = await gateway.refused({ auth: { token: "wrong" } });
    assertEquals(error.details.code, "AUTH_TOKEN_MISMATCH");
    assertEquals((await gateway.rpc({ jsonrpc: "2.0", id: 1, method: "health" })).status, 200);
  });
  await t.step("the password", async () => {
    await using gateway = await startGateway({ auth: { token: TOKEN, password } });
    await using operator = await gateway.connect({ auth: { password } });
    assertEquals(operator.auth.method, "password");
    const { error } = await gateway.refused({ auth: { token: TOKEN } });
    assertEquals(error.details.code, "AUTH_PASSWORD_MISMATCH");
  });
});

Deno.test("a device token opens nothing behind the proxy, nor past it without a shared secret", async () => {
  const stateDir = await Deno.makeTempDir({ prefix: "zero-proxy-" });
  const device = await newDevice();
  let deviceToken = "";
  {
    await using gateway = await startGateway({ stateDir, auth: { token: TOKEN } });
    await using paired = await gateway.connect({ device, scopes: READ });
    deviceToken = paired.auth.deviceToken;
    const lines = ADDED.map((line) => line.replace(ADA, EVE));
    const { error } = await pretend(gateway.port, lines, { device, auth: { deviceToken } });
    assertEquals(error.details.code, "AUTH_PROXY_USER_NOT_ALLOWED");
  }
  {
    await using gateway = await startGateway({ stateDir });
    const { error } = await gateway.refused({ device, scopes: READ, auth: { deviceToken } });
    assertEquals(error.details.code, "AUTH_PROXY_REQUIRED");
    const { payload } = await pretend(gateway.port, ADDED, { device });
    assertEquals(payload.auth.method, "trusted-proxy");
  }
  await Deno.remove(stateDir, { recursive: true });
});

Deno.test("an invitation pairs a user's device, and is no login", async () => {
  await using gateway = await startGateway({ auth: { token: TOKEN } });
  await using operator = await gateway.connect();
  const { secret } = await operator.call("device.invite.create", { scopes: READ });
  const device = await newDevice();
  const auth = { bootstrapToken: secret };
  const eve = ADDED.map((line) => line.replace(ADA, EVE));

  const refused = await pretend(gateway.port, eve, { device, auth });
  const { payload } = await pretend(gateway.port, ADDED, { device, auth });
  const later = await pretend(gateway.port, ADDED, { device });

  assertEquals(refused.error.details.code, "AUTH_PROXY_USER_NOT_ALLOWED");
  assertEquals(payload.auth, { method: "trusted-proxy", role: "operator", scopes: READ });
  assertEquals(later.ok, true);
  const { entries } = await operator.call("audit.list", {});
  const used = entries.find(({ event }: Json) => event === "invite.used");
  assertEquals([used.user, used.deviceId], [ADA, device.deviceId]);
  const home = await Deno.makeTempDir({ prefix: "zero-cli-" });
  const env = { ZERO_GATEWAY_PORT: String(gateway.port), ZERO_GATEWAY_TOKEN: TOKEN };
  const { stdout } = await zero(["audit"], { home, env });
  assert(stdout.includes(`${ADA} (visitor)`), stdout);
  await Deno.remove(home, { recursive: true });
});

Deno.test("a gateway behind a proxy says how to get in past it, and prints the token that does", async () => {
  const home = await Deno.makeTempDir({ prefix: "zero-cli-" });
  const state = `${home}/.zero`;
  await Deno.mkdir(state, { mode: 0o700 });
  const configured = async (token?: string) => {
    const trustedProxy = { userHeader: "X-Forwarded-User", allowUsers: [ADA] };
    const auth = { mode: "trusted-proxy", trustedProxy, ...(token && { token }) };
    const config = JSON.stringify({ gateway: { trustedProxies: ["10.0.0.5"], auth } });
    await Deno.writeTextFile(`${state}/zero.json`, config, { mode: 0o600 });
    return await zero(["gateway", "token"], { home, env: { ZERO_STATE_DIR: state } });
  };

  const without = await configured();
  const found = await configured(TOKEN);

  assertEquals(without.code, 1);
  assert(without.stderr.includes("asks for what its proxy says"), without.stderr);
  assertEquals([found.code, found.stdout.trim()], [0, TOKEN]);
  await Deno.remove(home, { recursive: true });
});
