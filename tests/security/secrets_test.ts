// Secrets stay where they belong (X21): one that is like no other text goes through every refusal and
// every error, and is then looked for in everything that was written anywhere.

import { assert, assertEquals } from "@std/assert";
import { generateIdentity } from "../../rpc/identity.ts";
import {
  eventually,
  makePlace,
  type Place,
  startGatewayProcess,
  startRefused,
} from "../support/process.ts";
import { encodeFrame, Member, type MemberOptions, RawSocket } from "./wire.ts";

const CANARY = "canary-7Hq/2+xV_secret=9";

Deno.test("the shared token is found in no log, output, file or command line, whatever goes wrong", async () => {
  await using place = await makePlace({ config: { logging: { level: "debug" } } });
  await using watch = watchCommandLines([CANARY]);
  await using gateway = await startGatewayProcess({ place, token: CANARY, args: ["--verbose"] });
  await provoke(place, { token: CANARY });
  await place.configure(`{ gateway: { auth: { token: "${CANARY}", mode: ["${CANARY}"] } } }`);
  await eventually(
    "the mistake is reported",
    async () => (await place.log()).includes("is not used"),
  );
  // Two more who want the same port and state directory.
  const second = await startRefused({ place, token: CANARY });
  const { stdout, stderr } = await gateway.stop();

  assertAbsent(CANARY, { stdout, stderr, second: second.stdout + second.stderr });
  assertEquals(filesWith(place, CANARY), [place.configPath]);
  assertEquals(watch.seen(), []);
});

Deno.test("the password and the token a gateway makes itself stay in their own files", async (t) => {
  await t.step("the password", async () => {
    const config = { gateway: { auth: { mode: "password", password: CANARY } } };
    await using place = await makePlace({ config });
    await using watch = watchCommandLines([CANARY]);
    await using gateway = await startGatewayProcess({ place, token: null });
    await provoke(place, { password: CANARY });
    const { stdout, stderr } = await gateway.stop();

    assertAbsent(CANARY, { stdout, stderr });
    assertEquals(filesWith(place, CANARY), [place.configPath]);
    assertEquals(watch.seen(), []);
  });
  await t.step("its own token", async () => {
    await using place = await makePlace();
    await using gateway = await startGatewayProcess({ place, token: null });
    const file = `${place.stateDir}/gateway.token`;
    const token = (await Deno.readTextFile(file)).trim();
    await using watch = watchCommandLines([token]);
    await provoke(place, { token });
    const { stdout, stderr } = await gateway.stop();

    assertAbsent(token, { stdout, stderr });
    assertEquals(filesWith(place, token), [file]);
    assertEquals(watch.seen(), []);
  });
});

Deno.test("a device token is kept nowhere, and in no log however it is used", async () => {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  const identity = await generateIdentity();
  const other = await generateIdentity();
  const { port } = place;
  await using owner = await Member.join({ port, identity });
  const { deviceToken } = owner.hello.auth;
  const { deviceId } = identity;

  const attempts: Omit<MemberOptions, "port">[] = [
    { identity, auth: { deviceToken } },
    { identity, auth: { token: deviceToken } },
    { identity, auth: { deviceToken }, scopes: ["no.such.scope"] },
    { identity, auth: { deviceToken }, role: "node" },
    { identity, auth: { deviceToken }, skewMs: 1e9 },
    { identity: other, auth: { deviceToken } },
    { auth: { token: deviceToken } },
    { auth: { password: deviceToken } },
    { auth: { [deviceToken]: "x" } },
    { client: { mode: deviceToken } },
    { role: deviceToken as "node" },
    { headers: { Authorization: `Bearer ${deviceToken}` }, auth: {} },
  ];
  for (const attempt of attempts) await attemptToJoin({ port, ...attempt });
  const { token } = await owner.call("device.token.rotate", { deviceId, role: "operator" });
  await owner.ask("device.token.rotate", { deviceId, role: "operator", token });
  await owner.ask("device.token.revoke", { deviceId: deviceToken, role: "operator" });
  await owner.ask("device.token.revoke", { deviceId, role: "operator" });
  const { stdout, stderr } = await gateway.stop();

  for (const secret of [deviceToken, token]) {
    assert(secret.length === 32, "there is something to look for");
    assertAbsent(secret, { stdout, stderr });
    assertEquals(filesWith(place, secret), []);
  }
});

Deno.test("a refused start tells nothing of the secrets in its configuration", async () => {
  const starts = [
    `{ gateway: { auth: { token: ["${CANARY}"] } } }`,
    `{ gateway: { auth: { token: { a: "${CANARY}" }, password: 7 } } }`,
    `{ gateway: { auth: { token: "${CANARY}" "x" } } }`,
    `{ gateway: { auth: { token: "${CANARY}`,
    `{ gateway: { auth: { token: '${CANARY}', } }, gatewai: {} }`,
    `{ gateway: { auth: { tokken: '${CANARY}', mode: "token" }, bind: "nowhere" } }`,
    `{ gateway: { remote: { token: "${CANARY}", url: 3 } } }`,
    `{ hooks: { enabled: true, token: ["${CANARY}"] } }`,
    `{ gateway: { mode: "remote", auth: { token: "${CANARY}" } } }`,
    `{ gateway: { auth: { mode: "none", token: "${CANARY}" }, trustedProxies: ["10.0.0.1"] } }`,
    `{ channels: { telegram: { botToken: ["${CANARY}"] } }, nothing: 1 }`,
  ];
  for (const config of starts) {
    await using place = await makePlace({ config });
    const { code, stdout, stderr } = await startRefused({ place, token: null });

    assertEquals(code, 78, `${config}\n${stderr}`);
    assertAbsent(CANARY, { stdout, stderr });
    assertEquals(filesWith(place, CANARY), [place.configPath], config);
  }
});

/** Presents the secret, and wrong ones made of it, in every way that ends in a refusal or an error. */
async function provoke(place: Place, secret: { token?: string; password?: string }) {
  const { port } = place;
  const text = secret.token ?? secret.password!;
  const identity = await generateIdentity();
  const right: MemberOptions = { port, auth: { ...secret } };
  const attempts: Omit<MemberOptions, "port">[] = [
    {},
    { auth: {} },
    { auth: { token: `${text}x` } },
    { auth: { password: `x${text}` } },
    { auth: { ...secret, deviceToken: "0".repeat(32) }, identity, skewMs: 1e9 },
    { auth: { deviceToken: text }, identity },
    { role: "observer" as "node" },
    { role: "node", auth: {} },
    { client: { id: text } },
    { client: { mode: text } },
    { client: { displayName: text, mode: "ui" } },
    { extra: { minProtocol: 9, maxProtocol: 9 } },
    { extra: { [text]: text } },
    { extra: { [text]: text }, protocol: 3 },
    { extra: { locale: [text] } },
    { headers: { Origin: "http://evil.example" } },
    { headers: { Authorization: `Bearer ${text}`, Cookie: `token=${text}` }, auth: {} },
    { headers: { "X-Forwarded-For": text }, auth: { token: `${text}y` } },
    { client: { id: "zero-control-ui", mode: "ui" } },
  ];
  for (const attempt of attempts) await attemptToJoin({ ...right, ...attempt });

  await using member = await Member.join(right);
  for (
    const [method, params] of [
      [text, {}],
      ["gateway.call", { method: text, params: { text } }],
      ["health", [text]],
      ["voicewake.set", { triggers: text }],
      ["logs.tail", { cursor: text }],
      ["talk.mode", { enabled: text, [text]: 1 }],
      ["device.pair.approve", { requestId: text }],
      ["device.token.rotate", { deviceId: text, role: text }],
      ["config.patch", { raw: `{ gateway: { auth: { token: ["${text}"] } } }`, baseHash: text }],
      ["config.set", { raw: text, baseHash: text }],
    ] as const
  ) await member.ask(method, params);
  await member.push(`{"token":"${text}`);
  await member.push(JSON.stringify({ type: "res", id: text }));

  using raw = await RawSocket.upgraded(port);
  raw.write(encodeFrame({ payload: `{"auth":"${text}"` }));
  await raw.end();
  const query = encodeURIComponent(text);
  for (
    const request of [
      `GET /?token=${query} HTTP/1.1\r\nHost: 127.0.0.1\r\n`,
      `GET /?token=${query} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n` +
      "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
      `POST /rpc?token=${query} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ${text}z\r\n`,
      `POST /rpc HTTP/1.1\r\nHost: ${text}\r\nAuthorization: Basic ${btoa(text)}\r\n`,
      `DELETE /${query} HTTP/1.1\r\nHost: 127.0.0.1\r\n`,
      `${text} / HTTP/1.1\r\n`,
    ]
  ) {
    using http = await RawSocket.open(port);
    http.write(`${request}Content-Length: 0\r\n\r\n`);
    await Promise.race([http.gone, http.until("an answer", () => http.head !== "")]);
  }
}

/** A connect whose outcome does not matter. */
async function attemptToJoin(options: MemberOptions) {
  try {
    await using _member = await Member.join(options);
  } catch {
    // Refused, as most of them are; what is looked at is what was written about it.
  }
}

/** Every form in which a secret could stand in a text. */
function formsOf(secret: string): string[] {
  return [...new Set([secret, encodeURIComponent(secret), JSON.stringify(secret).slice(1, -1)])];
}

function assertAbsent(secret: string, texts: Record<string, string>) {
  for (const [name, text] of Object.entries(texts)) {
    for (const form of formsOf(secret)) assert(!text.includes(form), `in ${name}: ${text}`);
  }
}

/** The files under the home of a gateway in which a secret stands. */
function filesWith({ home }: Place, secret: string): string[] {
  const forms = formsOf(secret);
  const look = (path: string): string[] => {
    if (Deno.lstatSync(path).isDirectory) {
      return [...Deno.readDirSync(path)].flatMap(({ name }) => look(`${path}/${name}`));
    }
    const text = new TextDecoder("latin1").decode(Deno.readFileSync(path));
    return forms.some((form) => text.includes(form)) ? [path] : [];
  };
  return look(home);
}

/** Looks at the command lines of all processes until it is disposed of. */
function watchCommandLines(secrets: string[]) {
  const seen = new Set<string>();
  const look = () => {
    for (const { name } of Deno.readDirSync("/proc")) {
      if (!/^\d+$/.test(name)) continue;
      try {
        const line = Deno.readTextFileSync(`/proc/${name}/cmdline`);
        if (secrets.some((secret) => line.includes(secret))) seen.add(line);
      } catch {
        // Gone since it was listed.
      }
    }
  };
  const timer = setInterval(look, 10);
  return {
    seen() {
      look();
      return [...seen];
    },
    [Symbol.asyncDispose]() {
      clearInterval(timer);
      return Promise.resolve();
    },
  };
}
