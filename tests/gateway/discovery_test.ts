import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { Config } from "../../config/schema.ts";
import { gatewaySettings } from "../../config/settings.ts";
import {
  type AnnouncedGateway,
  announcementOf,
  Announcer,
  beaconOf,
  discover,
} from "../../gateway/discovery.ts";
import type { Claim, MdnsOptions } from "../../tunnel/mdns.ts";
import { zero } from "../support/cli.ts";
import { makeNamespace, namespaceObstacle } from "../support/namespace.ts";
import { freePort, makePlace, startGatewayProcess } from "../support/process.ts";

const DIGEST = "ab".repeat(32);
const obstacle = await namespaceObstacle();
if (obstacle) {
  console.log(`no network of its own can be made here, ${obstacle}: a test is left out`);
}

function announced(
  config: Config,
  { env = {}, ...rest }: Partial<AnnouncedGateway> = {},
) {
  return announcementOf({
    settings: gatewaySettings({ config, env }),
    env,
    host: "0.0.0.0",
    port: 18_789,
    hostname: "box",
    ...rest,
  });
}

Deno.test("a gateway the network can reach says what is needed to find it, and no more", () => {
  assertEquals(announced({}), {
    service: "_zero-gw._tcp",
    instance: "box (ZERO)",
    host: "box.local",
    port: 18_789,
    txt: {
      role: "gateway",
      transport: "gateway",
      gatewayPort: "18789",
      lanHost: "box.local",
      displayName: "box",
    },
  });
});

Deno.test("with mode full it says more, with TLS its fingerprint", () => {
  const full: Config = {
    discovery: { mdns: { mode: "full" } },
    gateway: { tls: { enabled: true } },
  };
  const env = {
    ZERO_SSH_PORT: "2222",
    ZERO_CLI_PATH: "/usr/bin/zero",
    ZERO_TAILNET_DNS: "box.tail1.ts.net",
  };

  const txt = announced(full, {
    env,
    host: "127.0.0.1",
    fingerprint: `sha256:${DIGEST}`,
  })?.txt;

  assertEquals(txt, {
    role: "gateway",
    transport: "gateway",
    gatewayPort: "18789",
    lanHost: "box.local",
    displayName: "box",
    gatewayTls: "1",
    gatewayTlsSha256: DIGEST,
    sshPort: "2222",
    tailnetDns: "box.tail1.ts.net",
    cliPath: "/usr/bin/zero",
  });
});

Deno.test("a gateway that nobody on the network can reach says nothing, unless it is told to", () => {
  const off: Config = { discovery: { mdns: { mode: "off" } } };
  const full: Config = { discovery: { mdns: { mode: "full" } } };

  assertEquals(announced({}, { host: "127.0.0.1" }), undefined);
  assertEquals(announced({}, { host: "100.64.0.7" }), undefined);
  assertEquals(announced(off), undefined);
  assertEquals(announced(full, { env: { ZERO_DISABLE_BONJOUR: "1" } }), undefined);
  assert(announced(full, { host: "127.0.0.1" }));
});

function claim(txt: Record<string, string>, rest: Partial<Claim> = {}): Claim {
  return {
    instance: "box (ZERO)",
    host: "box.local",
    port: 18_789,
    addresses: ["192.168.1.5"],
    txt,
    ...rest,
  };
}

Deno.test("a beacon has what was claimed, and the tailnet name goes first", () => {
  const txt = {
    role: "gateway",
    transport: "gateway",
    gatewayPort: "19001",
    lanHost: "Box.local.",
    tailnetDns: "box.tail1.ts.net",
    displayName: "Büro",
    sshPort: "22",
    gatewayTls: "1",
    gatewayTlsSha256: DIGEST.toUpperCase(),
    cliPath: "/usr/bin/zero",
  };

  assertEquals(beaconOf(claim(txt)), {
    instanceName: "box (ZERO)",
    displayName: "Büro",
    domain: "local.",
    host: "box.local",
    port: 18_789,
    lanHost: "box.local",
    tailnetDns: "box.tail1.ts.net",
    gatewayPort: 19_001,
    sshPort: 22,
    gatewayTls: true,
    gatewayTlsFingerprintSha256: DIGEST,
    cliPath: "/usr/bin/zero",
    role: "gateway",
    transport: "gateway",
    wsUrl: "wss://box.tail1.ts.net:19001",
  });
  assertEquals(beaconOf(claim({})).wsUrl, "ws://box.local:18789");
});

Deno.test("what a stranger claims cannot lead out of the network, or move the cursor", async (t) => {
  const rows: [string, Partial<Claim>, Record<string, string>, string | null][] = [
    ["a public name", { host: "evil.example" }, { lanHost: "evil.example" }, null],
    ["a tailnet name that is none", {}, { tailnetDns: "evil.example" }, "ws://box.local:18789"],
    ["a suffix alone", { host: ".local" }, { lanHost: "x.ts.net" }, null],
    ["user info in a name", {}, { lanHost: "a@evil.local" }, "ws://box.local:18789"],
    ["a path in a name", {}, { lanHost: "evil.example/x.local" }, "ws://box.local:18789"],
    ["a port that is none", {}, { gatewayPort: "99999" }, "ws://box.local:18789"],
    ["no port at all", { port: 0 }, { gatewayPort: "1e3" }, null],
  ];
  for (const [name, rest, txt, wsUrl] of rows) {
    await t.step(name, () => assertEquals(beaconOf(claim(txt, rest)).wsUrl, wsUrl));
  }
  await t.step("escape sequences", () => {
    const beacon = beaconOf(claim(
      { displayName: "a\u001b[2Jb", cliPath: "x\ny", gatewayTls: "1", gatewayTlsSha256: "zz" },
      { instance: "n\u009b1m" },
    ));

    assert(!/[\u0000-\u001f\u007f-\u009f]/.test(Object.values(beacon).join("")));
    assertEquals(beacon.gatewayTlsFingerprintSha256, undefined);
  });
});

Deno.test("a gateway that cannot be announced is trouble with a fix, and nothing worse", async () => {
  const told: string[] = [];
  await using announcer = new Announcer(
    announced({}),
    (trouble) => told.push(trouble?.message ?? "", trouble?.fix ?? ""),
    { interfaces: [] },
  );

  await announcer.start();

  assertStringIncludes(told[0], "cannot be found on the local network: ");
  assertStringIncludes(told[1], "zero config set discovery.mdns.mode off");
});

Deno.test("an announced gateway is discovered over real multicast", async (t) => {
  const network: MdnsOptions = { interfaces: ["127.0.0.1"], port: freePort() };
  const told: string[] = [];
  await using announcer = new Announcer(
    announced({}),
    (trouble) => told.push(trouble?.message ?? ""),
    network,
  );
  await announcer.start();
  let beacons = await discover(300, network);
  for (let ms = 600; beacons.length === 0 && ms < 10_000; ms *= 2) {
    beacons = await discover(ms, network);
  }
  if (told.length > 0 || beacons.length === 0) {
    console.log(`no multicast on loopback here (${told[0] ?? "nothing comes through"}): left out`);
    return;
  }

  await t.step("with its address", () => {
    assertEquals(beacons.map(({ wsUrl }) => wsUrl), ["ws://box.local:18789"]);
  });
});

Deno.test({
  name: "zero gateway discover finds a gateway of the network, keeps and connects nothing",
  ignore: obstacle !== undefined,
  async fn() {
    await using network = await makeNamespace();
    const namespace = network.name;
    await using place = await makePlace({
      config: { gateway: { bind: "lan" }, discovery: { mdns: { mode: "full" } } },
    });
    await using laptop = await makePlace();
    await using gateway = await startGatewayProcess({ place, namespace });
    const run = (...args: string[]) => zero(args, { home: laptop.home, namespace });

    let found = await run("gateway", "discover", "--json", "--timeout", "1500");
    for (let tries = 0; found.json.count === 0 && tries < 5; tries++) {
      found = await run("gateway", "discover", "--json", "--timeout", "3000");
    }
    const shown = await run("gateway", "discover", "--timeout", "1500");

    const { domains, count, beacons, timeoutMs } = found.json;
    assertEquals([domains, count], [["local."], 1], found.stderr);
    assert(timeoutMs >= 1_500);
    assertEquals(beacons[0].gatewayPort, gateway.port);
    assertEquals(beacons[0].sshPort, 22);
    assertStringIncludes(shown.stdout, beacons[0].wsUrl);
    assertStringIncludes(shown.stderr, "Nobody has checked these claims");
    const kept = await Array.fromAsync(Deno.readDir(laptop.home), ({ name }) => name);
    assertEquals(kept.filter((name) => name !== ".cache"), []);
    assert(!(await place.log()).includes("HOST_NOT_SERVED"));

    await gateway.stop();
    const none = await run("gateway", "discover", "--timeout", "300");

    assertEquals([none.code, none.stdout], [0, ""]);
    assertStringIncludes(none.stderr, "No gateway on the local network");
  },
});
