// What lets a device in stays where it belongs (X21): invitations, links and device tokens go through
// every command that makes, uses or voids them, and are then looked for in all that was written.

import { assert, assertEquals } from "@std/assert";
import { decodeLink } from "../../gateway/join.ts";
import { type CliResult, zero } from "../support/cli.ts";
import type { Json } from "../support/client.ts";
import { makePlace, startGatewayProcess, TOKEN } from "../support/process.ts";

Deno.test("an invitation and the tokens it leads to are in no log, output, file or command line but their own", async () => {
  await using place = await makePlace({ config: { logging: { level: "debug" } } });
  await using gateway = await startGatewayProcess({ place, args: ["--verbose"] });
  const { port } = gateway;
  await using laptop = await makeHome();
  await using thief = await makeHome();
  const { stateDir: ZERO_STATE_DIR, configPath: ZERO_CONFIG_PATH } = place;
  const own = { ZERO_STATE_DIR, ZERO_CONFIG_PATH, ZERO_GATEWAY_PORT: String(port) };
  const env = { ...own, ZERO_GATEWAY_TOKEN: TOKEN };
  const onHost = (...args: string[]) => zero(args, { home: place.home, env });
  const onLaptop = (...args: string[]) => zero(args, { home: laptop.path });
  const { link } = (await onHost("devices", "invite", "--json")).json;
  const revoked = (await onHost("devices", "invite", "--json")).json;
  const { secret } = decodeLink(link)!;
  await using commandLines = watchCommandLines();
  const join = (home: string, stdin: string) => zero(["join", "--verbose"], { home, stdin });

  const outputs: CliResult[] = [
    await join(laptop.path, link),
    await join(thief.path, link),
    await onHost("devices", "invite", "--revoke", revoked.inviteId),
    await join(thief.path, revoked.link),
    await join(thief.path, `${link}x`),
    await join(thief.path, secret),
    await onHost("devices", "invite", "--list"),
  ];
  const deviceId = readJson(`${laptop.path}/state/identity/device.json`).deviceId;
  const tokenOf = (home: string) => {
    const { gateways } = readJson(`${home}/identity/device-auth.json`);
    return Object.values<Json>(gateways).map(({ operator }) => operator.token);
  };
  const tokens = tokenOf(`${laptop.path}/state`);
  outputs.push(
    await onLaptop("status", "--json", "--verbose"),
    await onLaptop("health", "--json", "--verbose"),
    await onLaptop("devices", "list", "--json"),
    await onLaptop("call", "no.such", "--json", "--verbose"),
    await onLaptop("audit", "--json"),
    await onLaptop("logs", "--json"),
    await onHost("devices", "rotate", deviceId, "--json"),
    await onHost("devices", "revoke", deviceId),
    await onLaptop("health", "--json", "--verbose"),
    await onHost("devices", "remove", deviceId),
    await onHost("security", "audit"),
    await onHost("audit", "--json"),
  );
  const { stdout, stderr } = await gateway.stop();

  assertEquals(outputs.map(({ code }) => code).slice(0, 7), [0, 1, 0, 1, 2, 2, 0]);
  assertEquals(tokens.length, 1);
  assert((await place.log()).includes("INVITE_INVALID"), "the log was not read");
  const texts = [stdout, stderr, await place.log(), ...commandLines.seen];
  for (const { stdout, stderr } of outputs) texts.push(stdout, stderr);
  const secrets = [link, secret, revoked.link, decodeLink(revoked.link)!.secret, ...tokens];
  for (const one of secrets) {
    assert(one.length >= 32);
    for (const text of texts) assert(!text.includes(one), text);
  }
  assert(commandLines.seen.size > 3, "no command line was seen");
  const holders = [place.home, laptop.path, thief.path].flatMap((directory) =>
    [...filesBelow(directory)].filter((path) => {
      const content = new TextDecoder("latin1").decode(Deno.readFileSync(path));
      return secrets.some((one) => content.includes(one));
    })
  );
  const ownFile = `${laptop.path}/state/identity/device-auth.json`;
  assertEquals(holders.filter((path) => path !== ownFile), []);
});

async function makeHome() {
  const path = await Deno.makeTempDir({ prefix: "zero-canary-" });
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

function readJson(path: string): Json {
  return JSON.parse(Deno.readTextFileSync(path));
}

function* filesBelow(directory: string): Generator<string> {
  for (const { name, isDirectory, isFile } of Deno.readDirSync(directory)) {
    if (isDirectory) yield* filesBelow(`${directory}/${name}`);
    else if (isFile) yield `${directory}/${name}`;
  }
}

/** Every command line and environment-free argument list that runs meanwhile, by anybody. */
function watchCommandLines() {
  const seen = new Set<string>();
  const look = () => {
    for (const { name } of Deno.readDirSync("/proc")) {
      if (!/^\d+$/.test(name)) continue;
      try {
        const line = Deno.readTextFileSync(`/proc/${name}/cmdline`);
        if (line.includes("main.ts")) seen.add(line);
      } catch {
        // It has ended.
      }
    }
  };
  const timer = setInterval(look, 5);
  return {
    seen,
    [Symbol.asyncDispose]() {
      clearInterval(timer);
      return Promise.resolve();
    },
  };
}
