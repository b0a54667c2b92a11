// Between the client and the gateway: reverse proxies and what they say of the client, web pages and
// names that are not ours, Tailscale (X2, X3, X10, X11, D3–D5). nginx and Caddy are real ones, with
// the lines that the documentation gives; without them those tests are left out and say so.

import { assert, assertEquals } from "@std/assert";
import { systemRunner } from "../../tunnel/process.ts";
import { whois } from "../../tunnel/tailscale.ts";
import { handshake, type Json, TestClient, within } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import { startTestGateway, type TestGateway, TOKEN } from "../support/gateway.ts";
import {
  CADDY,
  knock,
  NAME,
  NGINX,
  OWN_ADDRESS,
  type Proxy,
  startCaddy,
  startNginx,
} from "../support/proxy.ts";
import { RawSocket } from "../support/raw_socket.ts";

const READ = ["operator.read"];

/** A gateway that is configured as the documentation says, behind one proxy or several. */
async function startBehind(
  { proxies = 1, start = startNginx, gateway = {} }: {
    proxies?: number;
    start?: (port: number) => Promise<Proxy>;
    gateway?: Record<string, unknown>;
  } = {},
) {
  await using parts = new AsyncDisposableStack();
  const settings = { trustedProxies: ["127.0.0.1"], allowedHosts: [NAME], ...gateway };
  const running = parts.use(await startTestGateway({ config: { gateway: settings } }));
  let port = running.port;
  for (let count = 0; count < proxies; count++) port = parts.use(await start(port)).port;
  const owned = parts.move();
  return { gateway: running, port, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** How the gateway sees who is connected: the address in its presence list. */
async function presenceOf(gateway: TestGateway): Promise<string | undefined> {
  await using operator = await gateway.connect({ client: { mode: "cli" } });
  const list: Json[] = await operator.call("system-presence", {});
  return list.find(({ host }) => host === "visitor")?.ip;
}

/** Header lines of the client, and who it is for all that: what the last proxy saw. */
const SPOOFS: Record<string, string[]> = {
  "nothing": [],
  "a forged address": ["X-Forwarded-For: 127.0.0.1"],
  "a forged chain": ["X-Forwarded-For: 203.0.113.9, 127.0.0.1"],
  "a doubled header": ["X-Forwarded-For: 127.0.0.1", "X-Forwarded-For: ::1"],
  "forged IPv6": ["X-Forwarded-For: [::1]:443", "X-Forwarded-For: ::ffff:127.0.0.1"],
  "garbage": ["X-Forwarded-For: localhost, unknown, _hidden"],
  "Forwarded": ["Forwarded: for=127.0.0.1;host=localhost;proto=http"],
  "X-Real-IP": ["X-Real-IP: 127.0.0.1"],
  "everything at once": [
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-Host: localhost",
    "X-Real-IP: ::1",
    "True-Client-IP: 127.0.0.1",
    "CF-Connecting-IP: 127.0.0.1",
    "Via: 1.1 localhost",
    "Forwarded: for=127.0.0.1",
  ],
};

for (
  const { name, proxies, start, isThere } of [
    { name: "one nginx", proxies: 1, start: startNginx, isThere: NGINX },
    { name: "two nginx", proxies: 2, start: startNginx, isThere: NGINX },
    { name: "Caddy", proxies: 1, start: startCaddy, isThere: CADDY },
  ]
) {
  Deno.test(`behind ${name} the real client is seen, whatever it says of itself`, {
    ignore: !isThere || !OWN_ADDRESS,
  }, async (t) => {
    await using at = await startBehind({ proxies, start });
    const address = OWN_ADDRESS!;
    for (const [name, lines] of Object.entries(SPOOFS)) {
      await t.step(name, async () => {
        const open = await knock(at.port, { lines, address });
        assertEquals(open.answer.ok, true, JSON.stringify(open.answer));
        assertEquals(await presenceOf(at.gateway), address);
        open.socket.close();
        const stranger = await knock(at.port, { lines, address, device: true });
        stranger.socket.close();
        assertEquals(stranger.answer.error?.details.code, "PAIRING_REQUIRED");
      });
    }
    await t.step("a local name and an address make nobody local", async () => {
      for (const host of ["localhost", "127.0.0.1", `127.0.0.1:${at.gateway.port}`]) {
        const { socket, answer } = await knock(at.port, { host, device: true });
        socket.close();
        assertEquals(answer.error?.details.code, "PAIRING_REQUIRED", host);
      }
    });
    await t.step("request and trail name it too", async () => {
      await using operator = await at.gateway.connect();
      const { pending } = await operator.call("device.pair.list", {});
      const known = pending.filter(({ remoteIp }: Json) => remoteIp === address);
      assertEquals(known.length, Object.keys(SPOOFS).length);
      const { entries } = await operator.call("audit.list", {});
      const refused = entries.filter(({ event }: Json) => event === "connect.refused");
      assertEquals(
        new Set(refused.map(({ ip }: Json) => ip)),
        new Set([address, "127.0.0.1"]),
      );
    });
  });
}

Deno.test("over IPv6 nginx tells the address, and it counts as one network", {
  ignore: !NGINX,
}, async () => {
  await using at = await startBehind();

  const { socket, answer } = await knock(at.port, { address: "::1", device: true });
  socket.close();

  assertEquals(answer.error?.details.code, "PAIRING_REQUIRED");
  await using operator = await at.gateway.connect();
  const { pending: [{ remoteIp }] } = await operator.call("device.pair.list", {});
  assertEquals(remoteIp, "::1");
});

Deno.test("behind nginx who guesses is locked out under every name, and nobody else", {
  ignore: !NGINX || !OWN_ADDRESS,
}, async () => {
  await using at = await startBehind();
  const address = OWN_ADDRESS!;
  const codes = [];
  for (let count = 0; count < 12; count++) {
    const lines = [`X-Forwarded-For: 198.51.100.${count}`];
    const { socket, answer } = await knock(at.port, { lines, address, auth: { token: "wrong" } });
    socket.close();
    codes.push(answer.error?.details.code);
  }
  const http = await fetch(`http://${address}:${at.port}/rpc`, {
    method: "POST",
    headers: { authorization: `Bearer ${TOKEN}`, "content-type": "application/json" },
    body: "{}",
  });
  await http.body?.cancel();
  const locked = await knock(at.port, { address });
  locked.socket.close();
  const other = await knock(at.port);
  other.socket.close();

  assertEquals(codes, [
    ...Array(10).fill("AUTH_TOKEN_MISMATCH"),
    "AUTH_RATE_LIMITED",
    "AUTH_RATE_LIMITED",
  ]);
  assertEquals([http.status, locked.answer.error?.details.code], [429, "AUTH_RATE_LIMITED"]);
  assertEquals(other.answer.ok, true);
  await using _local = await at.gateway.connect();
});

Deno.test("a page behind nginx connects from its own address, on any port, and from no other", {
  ignore: !NGINX,
}, async () => {
  await using at = await startBehind();
  const own = `http://${NAME}:${at.port}`;
  const outcomes: Record<string, unknown> = {};
  for (const origin of [own, `http://${NAME}`, "https://evil.example", "null"]) {
    const { socket, answer } = await knock(at.port, { lines: [`Origin: ${origin}`] });
    socket.close();
    outcomes[origin === own ? "own" : origin] = answer.ok ?? answer.status;
  }

  assertEquals(outcomes, {
    own: true,
    [`http://${NAME}`]: 403,
    "https://evil.example": 403,
    null: 403,
  });
  const { answer } = await knock(at.port, { host: "evil.example" });
  assertEquals(answer.status, 421);
});

Deno.test("a proxy that nobody configured opens nothing silently, and its guesses share a lock", {
  ignore: !NGINX || !OWN_ADDRESS,
}, async () => {
  await using at = await startBehind({ gateway: { trustedProxies: [] } });
  const { socket, answer } = await knock(at.port, { device: true });
  socket.close();
  assertEquals(answer.error?.details.code, "PAIRING_REQUIRED");
  for (let count = 0; count < 10; count++) {
    (await knock(at.port, { auth: { token: "wrong" }, address: OWN_ADDRESS })).socket.close();
  }

  const locked = await knock(at.port);
  locked.socket.close();

  assertEquals(locked.answer.error?.details.code, "AUTH_RATE_LIMITED");
  await using _local = await at.gateway.connect();
});

const CLIENTS = [
  { id: "cli", mode: "cli" },
  { id: "zero-control-ui", mode: "ui" },
  { id: "openclaw-control-ui", mode: "ui" },
  { id: "webchat-ui", mode: "webchat" },
  { id: "node-host", mode: "node" },
];

Deno.test("what a client calls itself opens no door to a foreign page or name", async (t) => {
  await using gateway = await startTestGateway();
  const { port } = gateway;
  const own = `127.0.0.1:${port}`;
  const rows: [origin: string | undefined, host: string, status: number][] = [
    [undefined, own, 101],
    [`http://${own}`, own, 101],
    [`http://localhost:${port}`, own, 101],
    [`http://127.0.0.1:${port}`, `localhost:${port}`, 101],
    ["null", own, 403],
    ["", own, 403],
    ["https://evil.example", own, 403],
    ["http://127.0.0.1", own, 403],
    [`http://127.0.0.1:${port + 1}`, own, 403],
    [`http://localhost.evil:${port}`, own, 403],
    [`http://127.0.0.1.nip.io:${port}`, own, 403],
    [`http://${own}@evil.example`, own, 403],
    ["file://", own, 403],
    ["chrome-extension://abcdef", own, 403],
    [undefined, "evil.example", 421],
    [undefined, `evil.example:${port}`, 421],
    [undefined, "127.0.0.1.nip.io", 421],
    [undefined, "localhost.evil", 421],
    [undefined, `localhost.:${port}`, 421],
    [undefined, "127.0.0.1.", 421],
    [undefined, "", 421],
    [undefined, `127.0.0.1:${port}@evil.example`, 421],
    [`http://evil.example:${port}`, `evil.example:${port}`, 421],
    [undefined, "127.0.0.1:1", 101],
  ];
  for (const [origin, host, status] of rows) {
    await t.step(`${origin} to ${host || "no name"}`, async () => {
      const lines = origin === undefined ? [] : [`Origin: ${origin}`];
      for (const path of ["/", "/any/path"]) {
        await using socket = await RawSocket.open(port);
        const head = await socket.upgrade({ host, lines, target: path });
        assertEquals(head.status, status, `upgrade of ${path}`);
      }
      for (const [method, path] of [["GET", "/health"], ["POST", "/rpc"], ["GET", "/none"]]) {
        await using socket = await RawSocket.open(port);
        const all = [`Host: ${host}`, ...lines, "Content-Length: 0", "Connection: close"];
        await socket.write(`${method} ${path} HTTP/1.1\r\n${all.join("\r\n")}\r\n\r\n`);
        const { status: got } = await socket.readHead();
        const usual = path === "/health" ? 200 : path === "/rpc" ? 401 : 404;
        assertEquals(got, status === 101 ? usual : status, `${method} ${path}`);
      }
      if (origin === undefined || status === 101) return;
      const device = await newDevice();
      for (const client of CLIENTS) {
        const outcome = await handshake(gateway.url, {
          headers: { origin, host },
          client,
          device,
          auth: { token: TOKEN },
        }).catch((error) => error.status);
        assertEquals(outcome, status, client.id);
      }
    });
  }
  await using operator = await gateway.connect();
  assertEquals((await operator.call("device.pair.list", {})).paired, []);
});

const LOGIN = "ada@example.org";
const SERVE = {
  "x-forwarded-for": "100.64.0.9",
  "x-forwarded-proto": "https",
  "x-forwarded-host": "zero.tail.ts.net",
  "tailscale-user-login": LOGIN,
};

/** Puts a `tailscale` of our own in front of every other. */
async function withTailscale(script: string | undefined, run: () => Promise<void>) {
  const directory = await Deno.makeTempDir({ prefix: "zero-tailscale-" });
  const path = Deno.env.get("PATH")!;
  if (script !== undefined) {
    const text = `#!/bin/sh\necho "$@" >> ${directory}/asked\n${script}\n`;
    await Deno.writeTextFile(`${directory}/tailscale`, text, { mode: 0o755 });
    Deno.env.set("PATH", `${directory}:${path}`);
  }
  try {
    await run();
    if (script === undefined) return;
    const asked = await Deno.readTextFile(`${directory}/asked`);
    assertEquals(new Set(asked.trim().split("\n")), new Set(["whois --json 100.64.0.9"]));
  } finally {
    Deno.env.set("PATH", path);
    await Deno.remove(directory, { recursive: true });
  }
}

function naming(login: string): string {
  return `echo '${JSON.stringify({ UserProfile: { LoginName: login } })}'`;
}

Deno.test("Tailscale's word counts only as far as whois gives it too", async (t) => {
  const gateway = { auth: { token: TOKEN, allowTailscale: true } };
  const rows: [name: string, script: string | undefined, isIn: boolean][] = [
    ["agreeing", naming(LOGIN), true],
    ["naming another", naming("eve@example.org"), false],
    ["naming nobody", "echo '{}'", false],
    ["agreeing and failing", `${naming(LOGIN)}; exit 1`, false],
    ["answering nonsense", "echo 'not json'", false],
    ["silent", "true", false],
    ["absent", undefined, false],
  ];
  for (const [name, script, isIn] of rows) {
    await t.step(name, () =>
      withTailscale(script, async () => {
        await using running = await startTestGateway({
          config: { gateway },
          runner: systemRunner,
        });
        const scopes = READ;
        const device = await newDevice();
        const outcome = await handshake(running.url, { headers: SERVE, device, scopes });
        if (outcome instanceof TestClient) throw new Error("it was paired without a question");
        const { code } = outcome.error.details;
        assertEquals(code, isIn ? "PAIRING_REQUIRED" : "AUTH_TOKEN_MISSING");
        if (!isIn) return;
        await using operator = await running.connect();
        const { requestId } = outcome.error.details;
        await operator.call("device.pair.approve", { requestId });
        const client = await handshake(running.url, { headers: SERVE, device, scopes });
        if (!(client instanceof TestClient)) throw new Error(JSON.stringify(client));
        assertEquals(client.auth.method, "tailscale");
        await client.close();
      }));
  }
});

Deno.test("a whois that hangs, and its children, are given up after the deadline", () =>
  withTailscale("sleep 30 & wait", async () => {
    assertEquals(await within(whois(systemRunner, "100.64.0.9"), "the end of whois"), undefined);
  }));

Deno.test("Tailscale headers that are not Serve's own open nothing", async (t) => {
  const asked: string[] = [];
  const runner = {
    run(_command: string, args: readonly string[]) {
      asked.push(args.at(-1)!);
      const stdout = JSON.stringify({ UserProfile: { LoginName: LOGIN } });
      // Only the address the request really came from belongs to the login.
      return Promise.resolve({ code: args.at(-1) === "100.64.0.9" ? 0 : 1, stdout, stderr: "" });
    },
  };
  const auth = { token: TOKEN, allowTailscale: true };
  await using gateway = await startTestGateway({ config: { gateway: { auth } }, runner });
  const { "x-forwarded-proto": _proto, ...withoutProto } = SERVE;
  const { "x-forwarded-for": _for, ...withoutFor } = SERVE;
  const rows: Record<string, Record<string, string>> = {
    "a login alone": { "tailscale-user-login": LOGIN },
    "without the protocol": withoutProto,
    "without the address": withoutFor,
    "an address that the client put first": { ...SERVE, "x-forwarded-for": "100.64.0.9, 10.0.0.1" },
    "no address": { ...SERVE, "x-forwarded-for": "-h" },
    "another login": { ...SERVE, "tailscale-user-login": "eve@example.org" },
    "an empty login": { ...SERVE, "tailscale-user-login": "" },
  };
  for (const [name, headers] of Object.entries(rows)) {
    await t.step(name, async () => {
      const { error } = await gateway.refused({ headers, device: true, auth: null });
      assertEquals(error.details.code, "AUTH_TOKEN_MISSING");
    });
  }
  assert(asked.every((address) => !address.startsWith("-")), String(asked));
});
