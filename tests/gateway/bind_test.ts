import { assertEquals, assertThrows } from "@std/assert";
import type { BindMode } from "../../config/settings.ts";
import {
  bindHost,
  type Interfaces,
  listenHosts,
  primaryAddress,
  readInterfaces,
  tailnetAddresses,
  TailnetFollower,
} from "../../gateway/bind.ts";
import { openLog } from "../../config/log.ts";
import { StartRefusal } from "../../gateway/preflight.ts";
import { zero } from "../support/cli.ts";
import { makeNamespace, namespaceObstacle } from "../support/namespace.ts";
import { eventually, makePlace, startGatewayProcess, TOKEN } from "../support/process.ts";

const obstacle = await namespaceObstacle();
if (obstacle) {
  console.log(`no network of its own can be made here, ${obstacle}: a test is left out`);
}

const BOX: Interfaces = {
  hostname: "box",
  addresses: ["127.0.0.1", "::1", "192.168.1.5", "fe80::1", "100.64.0.7", "fd7a:115c:a1e0::7"],
};
const OFFLINE: Interfaces = { hostname: "box", addresses: ["127.0.0.1", "::1"] };

function host(bind: BindMode, custom?: string, interfaces = BOX) {
  return bindHost({
    bind: { value: bind, source: "file" },
    customBindHost: { value: custom, source: "file" },
  }, interfaces);
}

Deno.test("each bind mode has its address", () => {
  const rows: [BindMode, string | undefined, Interfaces, string][] = [
    ["loopback", undefined, BOX, "127.0.0.1"],
    ["lan", undefined, BOX, "0.0.0.0"],
    ["auto", undefined, BOX, "127.0.0.1"],
    ["auto", undefined, { hostname: "box", addresses: [] }, "0.0.0.0"],
    ["tailnet", undefined, BOX, "100.64.0.7"],
    ["custom", "192.168.1.5", BOX, "192.168.1.5"],
    ["custom", "0.0.0.0", BOX, "0.0.0.0"],
    ["custom", "127.0.0.2", BOX, "127.0.0.2"],
  ];

  for (const [bind, custom, interfaces, expected] of rows) {
    assertEquals(host(bind, custom, interfaces), { host: expected }, `${bind} ${custom}`);
  }
});

Deno.test("a tailnet that is not there means loopback, never everywhere", () => {
  assertEquals(host("tailnet", undefined, OFFLINE), { host: "127.0.0.1" });
});

Deno.test("a custom address that this machine does not have is refused", () => {
  for (const custom of ["10.9.9.9", "", undefined, "box.example"]) {
    assertThrows(() => host("custom", custom), StartRefusal, "no address of this machine");
  }
});

Deno.test("loopback and everywhere are served under IPv6 too", () => {
  assertEquals(listenHosts("loopback", "127.0.0.1"), ["127.0.0.1", "::1"]);
  assertEquals(listenHosts("lan", "0.0.0.0"), ["0.0.0.0", "::1"]);
  assertEquals(listenHosts("custom", "192.168.1.5"), ["192.168.1.5"]);
  assertEquals(listenHosts("tailnet", "100.64.0.7"), ["127.0.0.1", "::1"]);
});

Deno.test("the address for display is the first that others can reach", () => {
  assertEquals(primaryAddress(BOX), "192.168.1.5");
  assertEquals(primaryAddress(OFFLINE), "127.0.0.1");
  assertEquals(tailnetAddresses(BOX), ["100.64.0.7", "fd7a:115c:a1e0::7"]);
});

Deno.test("this machine has loopback and a name without .local", () => {
  const { addresses, hostname } = readInterfaces();

  assertEquals(addresses.includes("127.0.0.1"), true);
  assertEquals(/./.test(hostname) && !hostname.endsWith(".local"), true);
});

/** A listener that writes down what it is told; `taken` cannot be had. */
function recording(taken: readonly string[] = []) {
  const told: string[] = [];
  return {
    told,
    add(host: string) {
      if (taken.includes(host)) return Promise.reject(new Error("address in use"));
      told.push(`add ${host}`);
      return Promise.resolve();
    },
    drop(host: string) {
      told.push(`drop ${host}`);
      return Promise.resolve();
    },
  };
}

Deno.test("a gateway follows its tailnet address: absent, there, another, gone", async () => {
  const listener = recording();
  await using log = openLog({ mirror: () => {} });
  const troubles: (string | undefined)[] = [];
  let interfaces = OFFLINE;
  await using follower = new TailnetFollower({
    listener,
    log,
    read: () => interfaces,
    report: (trouble) => troubles.push(trouble?.message),
    everyMs: 5,
  });

  await follower.start();
  assertEquals(troubles.at(-1)?.includes("no tailnet address"), true);
  for (const address of ["100.64.0.7", "100.64.0.8", undefined]) {
    interfaces = { ...OFFLINE, addresses: [...OFFLINE.addresses, ...address ? [address] : []] };
    const isSeen = () => address ? listener.told.at(-1) === `add ${address}` : listener.told[3];
    await eventually(`${address} is seen`, isSeen);
    await eventually("the trouble is told", () => (troubles.at(-1) === undefined) === !!address);
  }

  assertEquals(listener.told, [
    "add 100.64.0.7",
    "drop 100.64.0.7",
    "add 100.64.0.8",
    "drop 100.64.0.8",
  ]);
});

Deno.test("a tailnet address whose port is taken is trouble, and loopback goes on", async () => {
  const listener = recording(["100.64.0.7"]);
  await using log = openLog({ mirror: () => {} });
  const troubles: (string | undefined)[] = [];
  await using follower = new TailnetFollower({
    listener,
    log,
    read: () => BOX,
    report: (trouble) => troubles.push(trouble?.message),
  });

  await follower.start();

  assertEquals(troubles, ["cannot listen on the tailnet address 100.64.0.7: address in use"]);
});

Deno.test({
  name: "a gateway bound to the tailnet answers there from the moment the address appears",
  ignore: obstacle !== undefined,
  async fn() {
    await using network = await makeNamespace();
    await using place = await makePlace({ config: { gateway: { bind: "tailnet" } } });
    await using gateway = await startGatewayProcess({ place, namespace: network.name });
    const { port } = gateway;
    const { home } = place;
    const health = async (address: string) => {
      const args = ["health", "--url", `ws://${address}:${port}`, "--token", TOKEN, "--json"];
      return await zero(args, { home, namespace: network.name });
    };
    const logged = (text: string) =>
      eventually(`the log says ${text}`, async () => (await place.log()).includes(text));

    await logged("no tailnet address");
    const before = await health("127.0.0.1");
    await network.ip("address", "add", "100.64.0.7/32", "dev", "lo");
    await logged('"host":"100.64.0.7"');
    const [there, loopback] = [await health("100.64.0.7"), await health("127.0.0.1")];
    await network.ip("address", "add", "100.64.0.8/32", "dev", "lo");
    await network.ip("address", "delete", "100.64.0.7/32", "dev", "lo");
    await logged("left a tailnet address");
    await logged('"host":"100.64.0.8"');
    const moved = await health("100.64.0.8");

    assertEquals(before.json.degraded[0].part, "bind");
    assertEquals([there.code, there.json.degraded], [0, undefined], there.stderr);
    assertEquals([loopback.code, moved.code], [0, 0], moved.stderr);
    await gateway.stop();
  },
});
