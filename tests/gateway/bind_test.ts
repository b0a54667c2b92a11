import { assertEquals, assertThrows } from "@std/assert";
import type { BindMode } from "../../config/settings.ts";
import {
  bindHost,
  type Interfaces,
  listenHosts,
  primaryAddress,
  readInterfaces,
  tailnetAddresses,
} from "../../gateway/bind.ts";
import { StartRefusal } from "../../gateway/preflight.ts";

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

Deno.test("a tailnet that is not there means loopback and a warning, never everywhere", () => {
  const chosen = host("tailnet", undefined, OFFLINE);

  assertEquals(chosen.host, "127.0.0.1");
  assertEquals(chosen.warning?.includes("no tailnet address"), true);
});

Deno.test("a custom address that this machine does not have is refused", () => {
  for (const custom of ["10.9.9.9", "", undefined, "box.example"]) {
    assertThrows(() => host("custom", custom), StartRefusal, "no address of this machine");
  }
});

Deno.test("loopback and everywhere are served under IPv6 too", () => {
  assertEquals(listenHosts("127.0.0.1"), ["127.0.0.1", "::1"]);
  assertEquals(listenHosts("0.0.0.0"), ["0.0.0.0", "::1"]);
  assertEquals(listenHosts("192.168.1.5"), ["192.168.1.5"]);
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
