import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { type CliResult, spawnZero, zero } from "../support/cli.ts";
import { within } from "../support/client.ts";
import { newDevice } from "../support/device.ts";
import { REMOTE, startTestGateway, type TestConnectOptions } from "../support/gateway.ts";
import { hasScript, zeroOnTerminal } from "../support/pty.ts";

const READ = ["operator.read"];
/** Also the address is known of what comes through it. */
const TRUSTING = { config: { gateway: { trustedProxies: ["127.0.0.1"] } } };

/** A gateway, and somebody on its machine who runs commands. */
async function host() {
  const gateway = await startTestGateway(TRUSTING);
  const home = await Deno.makeTempDir({ prefix: "zero-cli-" });
  const env = { ZERO_GATEWAY_PORT: String(gateway.port), ZERO_GATEWAY_TOKEN: gateway.token };
  return {
    gateway,
    place: { home, env },
    run: (...args: string[]): Promise<CliResult> => zero(["devices", ...args], { home, env }),
    async paired(name: string | undefined, options: TestConnectOptions = {}) {
      const device = await newDevice();
      const client = { ...(name !== undefined && { displayName: name }) };
      const connection = await gateway.connect({ device, scopes: READ, client, ...options });
      return { device, connection, id: device.deviceId, short: device.deviceId.slice(0, 12) };
    },
    async [Symbol.asyncDispose]() {
      await gateway[Symbol.asyncDispose]();
      await Deno.remove(home, { recursive: true });
    },
  };
}

/** Rows of a table as lists of cells. */
function cells(text: string): string[][] {
  return text.trimEnd().split("\n").map((row) => row.trim().split(/ {2,}/));
}

Deno.test("zero devices lists who waits and who is paired, as tables and as JSON", async () => {
  await using at = await host();
  const phone = await at.paired("phone");
  const { requestId, device } = await at.gateway.requestPairing({ name: "tablet", scopes: READ });

  const { stdout, code } = await at.run("list");
  const json = (await at.run("--json")).json;

  const [waiting, paired] = stdout.split("\n\n").map(cells);
  assertEquals(code, 0);
  assertEquals(waiting[0], ["WAITING", "DEVICE", "ROLE", "SCOPES", "FROM", "ASKED"]);
  assertEquals(waiting[1].slice(0, 5), [
    requestId,
    `tablet (${device.deviceId.slice(0, 12)})`,
    "operator",
    "read",
    "203.0.113.7",
  ]);
  assertEquals(paired[0], ["PAIRED", "NAME", "ROLES", "SCOPES", "TOKEN USED", "FROM"]);
  assertEquals(paired[1], [phone.short, "phone", "operator", "read", "never"]);
  assertEquals([json.pending.length, json.paired.length], [1, 1]);
});

Deno.test("zero devices pending says so when nobody waits, and shows what a proxy hides as not known", async () => {
  await using gateway = await startTestGateway();
  const home = await Deno.makeTempDir({ prefix: "zero-cli-" });
  const env = { ZERO_GATEWAY_PORT: String(gateway.port), ZERO_GATEWAY_TOKEN: gateway.token };
  try {
    const none = await zero(["devices", "pending"], { home, env });
    await gateway.requestPairing({ headers: REMOTE });
    const some = await zero(["devices", "pending"], { home, env });

    assertEquals([none.code, none.stdout], [0, "No device waits for approval\n"]);
    assertEquals(cells(some.stdout)[1][4], "not known");
  } finally {
    await Deno.remove(home, { recursive: true });
  }
});

Deno.test("zero devices approve takes an id or its beginning, and --yes the single one", async () => {
  await using at = await host();
  const byId = await at.gateway.requestPairing({ name: "one", scopes: READ });
  assertEquals((await at.run("approve", byId.requestId)).code, 0);
  const byPrefix = await at.gateway.requestPairing({ name: "two", scopes: READ });
  const approved = await at.run("approve", byPrefix.requestId.slice(0, 8).toUpperCase());
  const single = await at.gateway.requestPairing({ name: "three", role: "node" });
  const yes = await at.run("approve", "--yes");
  const last = await at.gateway.requestPairing({ name: "four", scopes: READ });
  const json = await at.run("approve", "--yes", "--json");

  const short = byPrefix.device.deviceId.slice(0, 12);
  assertEquals(approved.stdout, `Approved two (${short}) as operator: read\n`);
  assertStringIncludes(yes.stdout, "Approved three");
  assertStringIncludes(yes.stdout, "as node: none");
  assertEquals(json.json.requestId, last.requestId);
  for (const one of [byId, byPrefix, single, last]) await (await one.connect()).close();
});

Deno.test("zero devices approve approves nobody who was not named or shown", async () => {
  await using at = await host();
  const none = await at.run("approve", "--yes");
  const first = await at.gateway.requestPairing({ name: "one" });
  const unasked = await at.run("approve");
  const blank = await at.run("approve", "");
  const unknown = await at.run("approve", "zzzz");
  await at.gateway.requestPairing({ name: "two" });
  const several = await at.run("approve", "--yes");

  assertEquals([none.code, none.stderr], [1, "No device waits for approval\n"]);
  assertEquals(unasked.code, 2);
  assertStringIncludes(unasked.stderr, `name it: zero devices approve ${first.requestId}`);
  assertEquals([blank.code, unknown.code, several.code], [1, 1, 2]);
  assertStringIncludes(unknown.stderr, "error: unknown requestId: zzzz");
  assertStringIncludes(unknown.stderr, "fix:   zero devices pending");
  assertStringIncludes(several.stderr, "name it: zero devices approve REQUEST");
  assertStringIncludes(several.stdout, first.requestId);
  const { pending } = (await at.run("pending", "--json")).json;
  assertEquals(pending.length, 2);
});

Deno.test("on a terminal zero devices approve shows the request and asks", {
  ignore: !hasScript,
}, async () => {
  await using at = await host();
  const approve = (...answers: [string, string][]) =>
    zeroOnTerminal(["devices", "approve"], at.place, answers);
  const first = await at.gateway.requestPairing({ name: "one", scopes: READ });

  const no = await approve(["Approve it? [y/N]", "\n"]);
  const yes = await approve(["Approve it? [y/N]", "y\n"]);

  assertEquals(no.code, 1);
  assertStringIncludes(no.output, first.requestId);
  assert(!no.output.includes("Approved"));
  assertEquals(yes.code, 0);
  assertStringIncludes(yes.output, "Approved one");
  await at.gateway.requestPairing({ name: "two", scopes: READ });
  const third = await at.gateway.requestPairing({ name: "three", scopes: READ });
  const chosen = await approve(["Which one?", `${third.requestId.slice(0, 8)}\n`]);
  assertStringIncludes(chosen.output, "Approved three");
  const { pending } = (await at.run("pending", "--json")).json;
  assertEquals(pending.map((one: { displayName: string }) => one.displayName), ["two"]);
});

Deno.test("zero devices reject turns the request away", async () => {
  await using at = await host();
  const { requestId, device } = await at.gateway.requestPairing({ name: "tablet" });

  const { code, stdout } = await at.run("reject", requestId.slice(0, 8));

  assertEquals([code, stdout], [0, `Rejected tablet (${device.deviceId.slice(0, 12)})\n`]);
  assertEquals((await at.run("pending", "--json")).json.pending, []);
});

Deno.test("zero devices pending --watch shows requests as they come and what becomes of them", async () => {
  for (const flags of [[], ["--json"]]) {
    await using at = await host();
    const operator = await at.gateway.connect();
    const first = await at.gateway.requestPairing({ name: "first", scopes: READ });
    const child = spawnZero(["devices", "pending", "--watch", ...flags], at.place);
    const errors = new Response(child.stderr).text();
    const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    const shown = async (part: string) => {
      while (!text.includes(part)) {
        const { value, done } = await within(reader.read(), `${part} after ${text}`);
        if (done) throw new Error(`it ended without ${part}: ${text}`);
        text += value;
      }
    };

    await shown(first.requestId);
    const second = await at.gateway.requestPairing({ name: "second", scopes: READ });
    await shown(second.requestId);
    await operator.call("device.pair.approve", { requestId: second.requestId });
    await shown("approved");
    await operator.call("device.pair.reject", { requestId: first.requestId });
    await shown("rejected");

    child.kill("SIGINT");
    await child.status;
    await errors;
    await reader.cancel();
    const lines = text.trim().split("\n");
    if (flags.length > 0) {
      assertEquals(lines.map((line) => JSON.parse(line).requestId), [
        first.requestId,
        second.requestId,
        second.requestId,
        first.requestId,
      ]);
    } else {
      const short = second.device.deviceId.slice(0, 12);
      assertEquals(lines.slice(1), [
        `${second.requestId}  second (${short}) from 203.0.113.7  operator: read`,
        `${second.requestId}  approved`,
        `${first.requestId}  rejected`,
      ]);
    }
  }
});

Deno.test("a device is named by its id, its beginning, its name or its address", async () => {
  await using at = await host();
  const { device, id, short } = await at.paired("Büro 2. Stock");
  await (await at.gateway.connect({
    device,
    scopes: READ,
    headers: { "x-forwarded-for": "198.51.100.4" },
  })).close();

  for (const query of [id, id.slice(0, 6), "büro 2-stock", "198.51.100.4", `  ${short} `]) {
    const { code, stdout, stderr } = await at.run("rename", query, "Büro 2. Stock");
    assertEquals([code, stdout], [0, `Renamed ${short} to Büro 2. Stock\n`], stderr);
  }
});

Deno.test("what names no device, or several, changes nothing and says which there are", async () => {
  await using at = await host();
  const one = await at.paired("twin");
  const two = await at.paired("Twin!");
  const cyrillic = await at.paired("телефон");
  const nameless = await at.paired(undefined);

  const ambiguous = await at.run("remove", "twin");
  assertEquals(ambiguous.code, 1);
  const names = `Twin! (${two.short}), twin (${one.short})`;
  assertStringIncludes(
    ambiguous.stderr,
    `error: ambiguous device: twin (matches: ${names})`,
  );
  for (const query of ["", "!!!", "планшет", one.id.slice(0, 5), `${one.id}0`]) {
    const { code, stderr } = await at.run("remove", query);
    assertEquals(code, 1, query);
    assertStringIncludes(stderr, `error: unknown device: ${query} (known: `);
    assertStringIncludes(stderr, `gateway-client (${nameless.short})`);
  }
  assertEquals((await at.run("list", "--json")).json.paired.length, 4);
  const right = await at.run("remove", "ТЕЛЕФОН");
  assertEquals(right.stdout, `Removed телефон (${cyrillic.short})\n`);
});

Deno.test("rotate, revoke and remove say what they did, and show a token only with --json", async () => {
  await using at = await host();
  const { device, connection, id, short } = await at.paired("laptop");

  const rotated = await at.run("rotate", "laptop", "--scope", "operator.read");
  const asJson = await at.run("rotate", "laptop", "--json");
  const revoked = await at.run("revoke", "laptop");
  const closed = await connection.closed;
  const list = cells((await at.run("list")).stdout);
  await at.gateway.connect({ device, scopes: READ });
  const node = await at.gateway.connect({ device, role: "node" });
  const unsure = await at.run("rotate", "laptop");
  const removed = await at.run("remove", id);

  assertEquals(rotated.stdout, `Rotated the operator token of laptop (${short})\n`);
  assertEquals(Object.keys(asJson.json), ["deviceId", "role", "token", "scopes", "rotatedAtMs"]);
  for (const { stdout } of [rotated, revoked]) assert(!stdout.includes(asJson.json.token));
  assertEquals(revoked.stdout, `Revoked the operator tokens of laptop (${short})\n`);
  assertEquals(closed, { code: 4001, reason: "device token revoked" });
  assertEquals(list.find(([head]) => head === short)?.[4], "revoked");
  assertEquals(unsure.code, 2);
  assertStringIncludes(unsure.stderr, `Cannot tell which role of ${short} is meant: pass --role`);
  assertEquals(removed.stdout, `Removed laptop (${short})\n`);
  assertEquals((await node.closed).code, 4001);
});
