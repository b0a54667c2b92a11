import { assert, assertEquals } from "@std/assert";
import {
  AddressSet,
  type Headers,
  isLoopbackAddress,
  isTailnetAddress,
  judgeNames,
  lastHop,
  type NameRules,
  normalizeAddress,
  provenanceOf,
} from "../../gateway/network.ts";

const OWN_TAILNET = "100.101.102.103";

function provenance(
  peer: string,
  headers: Headers = {},
  trustedProxies: string[] = [],
) {
  return provenanceOf(peer, { host: "127.0.0.1:18789", ...headers }, {
    trustedProxies: new AddressSet(trustedProxies),
    ownAddresses: [OWN_TAILNET],
  });
}

Deno.test("an address is normalized: no brackets, no zone, no IPv4 in IPv6, lower case", () => {
  const rows = [
    ["127.0.0.1", "127.0.0.1"],
    ["::ffff:127.0.0.1", "127.0.0.1"],
    ["::FFFF:10.0.0.1", "10.0.0.1"],
    ["[::1]", "::1"],
    ["FE80::1%eth0", "fe80::1"],
    [" 10.0.0.1 ", "10.0.0.1"],
    ["::ffff:7f00:1", "::ffff:7f00:1"],
  ];

  for (const [address, expected] of rows) assertEquals(normalizeAddress(address), expected);
});

Deno.test("loopback is 127.0.0.0/8 and ::1, and nothing that only looks like it", () => {
  for (const one of ["127.0.0.1", "127.255.0.9", "::1"]) assert(isLoopbackAddress(one), one);
  for (const one of ["", "0.0.0.0", "128.0.0.1", "127.0.0.1.nip.io", "localhost", "::2", "127.1"]) {
    assert(!isLoopbackAddress(one), one);
  }
});

Deno.test("a tailnet address is one of 100.64.0.0/10 or fd7a:115c:a1e0::/48", () => {
  for (const one of ["100.64.0.0", "100.127.255.255", "fd7a:115c:a1e0::1"]) {
    assert(isTailnetAddress(one), one);
  }
  for (const one of ["100.63.255.255", "100.128.0.0", "fd7a:115c:a1e1::1", "10.0.0.1", "x"]) {
    assert(!isTailnetAddress(one), one);
  }
});

Deno.test("an address set holds addresses and blocks of both families, and skips what is neither", () => {
  const set = new AddressSet([
    "10.0.0.1",
    " 192.168.0.0/16",
    "fd00::/8",
    "::ffff:10.9.9.9",
    "proxy",
  ]);

  assertEquals(set.size, 4);
  for (const one of ["10.0.0.1", "192.168.255.1", "fd12::1", "10.9.9.9"]) assert(set.has(one), one);
  for (const one of ["10.0.0.2", "192.169.0.1", "fe80::1", "proxy", ""]) assert(!set.has(one), one);
  assert(!new AddressSet().has("127.0.0.1"));
});

Deno.test("a direct client is who its socket says; loopback and own tailnet addresses are local", () => {
  const rows: [string, boolean, boolean][] = [
    ["127.0.0.1", true, true],
    ["127.8.8.8", true, true],
    ["::1", true, true],
    ["::ffff:127.0.0.1", true, true],
    [OWN_TAILNET, true, false],
    ["100.101.102.104", false, false],
    ["10.0.0.1", false, false],
    ["203.0.113.7", false, false],
    ["2001:db8::1", false, false],
  ];

  for (const [peer, isLocal, isLocalDirect] of rows) {
    const from = provenance(peer);

    assertEquals(from.client, normalizeAddress(peer));
    assertEquals([from.isForwarded, from.isLocal, from.isLocalDirect], [
      false,
      isLocal,
      isLocalDirect,
    ], peer);
  }
});

Deno.test("loopback is local only under a loopback name or one of the tailnet", () => {
  const rows: [string | undefined, boolean][] = [
    ["localhost", true],
    ["localhost:9999", true],
    ["127.0.0.1:18789", true],
    ["[::1]:18789", true],
    ["0.0.0.0", true],
    ["box.tail1234.ts.net", true],
    ["LOCALHOST", true],
    ["gateway.example", false],
    ["192.168.0.5", false],
    ["localhost.", false],
    ["localhost.evil.example", false],
    ["evil.example/localhost", false],
    ["", false],
    [undefined, false],
  ];

  for (const [host, expected] of rows) {
    const { isLocalDirect, isLocal } = provenance("127.0.0.1", { host });
    assertEquals([isLocalDirect, isLocal], [expected, expected], String(host));
  }
});

Deno.test("each forwarding header makes a request not local, from a trusted proxy or another", () => {
  const headers: Headers[] = [
    { "x-forwarded-for": "127.0.0.1" },
    { "x-forwarded-for": "" },
    { "x-real-ip": "127.0.0.1" },
    { "x-forwarded-host": "localhost" },
    { "x-forwarded-proto": "https" },
    { forwarded: "for=127.0.0.1" },
    { via: "1.1 proxy" },
    { "cf-connecting-ip": "127.0.0.1" },
    { "true-client-ip": "::1" },
  ];

  for (const header of headers) {
    for (const trusted of [[], ["127.0.0.1"], ["127.0.0.0/8", "::1"]]) {
      const from = provenance("127.0.0.1", header, trusted);
      const what = `${Object.keys(header)} trusting ${trusted}`;
      assertEquals(
        [from.isForwarded, from.isLocal, from.isLocalDirect],
        [true, false, false],
        what,
      );
      assertEquals(from.isFromProxy, trusted.length > 0, what);
    }
  }
});

Deno.test("only what a trusted proxy passed on is from it: not what it asks itself, nor what others say", () => {
  const forwarded = { "x-forwarded-for": "203.0.113.7" };
  const isFromProxy = (peer: string, headers: Headers) =>
    provenance(peer, headers, ["10.0.0.0/8"]).isFromProxy;

  assertEquals(isFromProxy("10.0.0.1", forwarded), true);
  assertEquals(isFromProxy("::ffff:10.0.0.1", forwarded), true);
  assertEquals(isFromProxy("10.0.0.1", {}), false);
  assertEquals(isFromProxy("11.0.0.1", forwarded), false);
  assertEquals(isFromProxy("11.0.0.1", { "x-forwarded-for": "10.0.0.1" }), false);
  assertEquals(isFromProxy("127.0.0.1", forwarded), false);
});

Deno.test("who forwards without being trusted has no known client, and one bucket for all", () => {
  for (const header of [{ "x-forwarded-for": "203.0.113.7" }, { forwarded: "for=1.2.3.4" }]) {
    for (const peer of ["127.0.0.1", "10.0.0.9"]) {
      const { client, limiterKey } = provenance(peer, header);
      assertEquals([client, limiterKey], [undefined, "forwarded"]);
    }
  }
});

Deno.test("behind trusted proxies the client is the first untrusted hop from the right", () => {
  const trusted = ["10.0.0.1", "10.1.0.0/16", "fd00::/8"];
  const rows: [Headers, string][] = [
    [{ "x-forwarded-for": "203.0.113.7" }, "203.0.113.7"],
    [{ "x-forwarded-for": "198.51.100.1, 203.0.113.7" }, "203.0.113.7"],
    [{ "x-forwarded-for": "127.0.0.1, 203.0.113.7" }, "203.0.113.7"],
    [{ "x-forwarded-for": "203.0.113.7, 10.1.2.3" }, "203.0.113.7"],
    [{ "x-forwarded-for": "198.51.100.1,203.0.113.7 ,10.1.2.3,10.0.0.1" }, "203.0.113.7"],
    [{ "x-forwarded-for": "10.1.0.1, 10.1.0.2" }, "10.1.0.1"],
    [{ "x-forwarded-for": ["198.51.100.1", "203.0.113.7"] }, "203.0.113.7"],
    [{ "x-forwarded-for": "203.0.113.7:4711" }, "203.0.113.7"],
    [{ "x-forwarded-for": "2001:DB8::7" }, "2001:db8::7"],
    [{ "x-forwarded-for": "[2001:db8::7]" }, "2001:db8::7"],
    [{ "x-forwarded-for": "[2001:db8::7]:4711, fd00::1" }, "2001:db8::7"],
    [{ "x-forwarded-for": "::ffff:203.0.113.7" }, "203.0.113.7"],
    [{ "x-forwarded-for": ", ,203.0.113.7,," }, "203.0.113.7"],
    [{ "x-forwarded-for": "203.0.113.7", "x-real-ip": "198.51.100.1" }, "203.0.113.7"],
    [{ "x-real-ip": "203.0.113.7" }, "203.0.113.7"],
    [{ "x-forwarded-for": "", "x-real-ip": "[2001:db8::7]" }, "2001:db8::7"],
    [{ "x-forwarded-for": "203.0.113.7, unknown" }, "10.0.0.1"],
    [{ "x-forwarded-proto": "https" }, "10.0.0.1"],
    [{ "x-real-ip": "localhost" }, "10.0.0.1"],
  ];

  for (const [headers, client] of rows) {
    const from = provenance("10.0.0.1", headers, trusted);
    assertEquals(from.client, client, JSON.stringify(headers));
    assert(!from.isLocal);
  }
});

Deno.test("failed logins are counted per client, for IPv6 per network", () => {
  const rows: [string, string, string][] = [
    ["203.0.113.7", "203.0.113.7", "203.0.113.8"],
    ["2001:db8:1:2::7", "2001:db8:1:2:ffff::9", "2001:db8:1:3::7"],
    ["2001:db8::7", "2001:db8:0:0:1:2:3:4", "2001:db8:0:1::7"],
  ];

  for (const [one, same, other] of rows) {
    assertEquals(provenance(one).limiterKey, provenance(same).limiterKey, `${one} ${same}`);
    assert(provenance(one).limiterKey !== provenance(other).limiterKey, `${one} ${other}`);
  }
});

Deno.test("a page on this machine has another bucket than its programs, one elsewhere has not", () => {
  const origin = { origin: "http://localhost:18789" };

  assert(provenance("127.0.0.1").limiterKey !== provenance("127.0.0.1", origin).limiterKey);
  assertEquals(provenance("10.0.0.5").limiterKey, provenance("10.0.0.5", origin).limiterKey);
  assertEquals(provenance("127.0.0.1", origin).hasOrigin, true);
});

Deno.test("the last hop is the one that the proxy added, whatever the client wrote before it", () => {
  assertEquals(lastHop({ "x-forwarded-for": "100.1.1.1, 100.64.0.9" }), "100.64.0.9");
  assertEquals(lastHop({ "x-forwarded-for": "100.64.0.9:1234" }), "100.64.0.9");
  assertEquals(lastHop({ "x-forwarded-for": "100.64.0.9, unknown" }), undefined);
  assertEquals(lastHop({ "x-forwarded-for": "" }), undefined);
  assertEquals(lastHop({}), undefined);
});

const NAMES: NameRules = {
  bindHost: "gateway.lan",
  allowedHosts: ["Proxy.Example"],
  allowedOrigins: ["https://ui.example", "http://ui.example:8080", "app://zero"],
  hostname: "Box",
  tailnetName: "special.tail9.ts.net",
};

function judged(headers: Headers, rules: NameRules = NAMES): number {
  const verdict = judgeNames(headers, rules);
  return verdict.allowed ? 200 : verdict.status;
}

Deno.test("the name in Host must be one of this gateway's, whatever its port", () => {
  const good = [
    "localhost",
    "LocalHost:1",
    "127.0.0.1",
    "127.9.9.9:65535",
    "0.0.0.0:18789",
    "[::1]",
    "[::1]:18789",
    "192.168.1.5:18789",
    "[2001:db8::1]:80",
    "203.0.113.7",
    "gateway.lan:18789",
    "proxy.example",
    "PROXY.EXAMPLE:443",
    "box.local",
    "box.local:18789",
    "special.tail9.ts.net",
    "box.tail1234.ts.net:443",
  ];
  const bad = [
    undefined,
    "",
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "localhost.",
    "127.0.0.1.",
    "box.local.",
    "box",
    "box.local.evil.example",
    "other.local",
    "other.tail1234.ts.net",
    "box.ts.net",
    "box.a.b.ts.net",
    "box.tail1234.ts.net.evil.example",
    "sub.proxy.example",
    "localhost:notaport",
    "localhost:",
    "localhost:123456",
    "user@localhost",
    "localhost/path",
    "localhost localhost",
    "localhost,evil.example",
    "[::1",
    "::1:18789x",
    "[localhost]",
  ];

  for (const host of good) assertEquals(judged({ host }), 200, host);
  for (const host of bad) assertEquals(judged({ host }), 421, String(host));
});

Deno.test("an Origin must equal Host in name and port, or be listed", () => {
  const rows: [string, string, number][] = [
    ["localhost:18789", "http://localhost:18789", 200],
    ["localhost:18789", "http://127.0.0.1:18789", 200],
    ["127.0.0.1:18789", "http://[::1]:18789", 200],
    ["[::1]:18789", "http://localhost:18789", 200],
    ["localhost:18789", "HTTP://LOCALHOST:18789", 200],
    ["localhost:18789", "https://localhost:18789", 200],
    ["localhost:18789", "http://localhost:18790", 403],
    ["localhost:18789", "http://localhost", 403],
    ["localhost", "http://localhost", 200],
    ["localhost:80", "http://localhost", 200],
    ["proxy.example", "https://proxy.example", 200],
    ["proxy.example:443", "https://proxy.example", 200],
    ["proxy.example", "https://proxy.example:8443", 403],
    ["proxy.example", "http://proxy.example:443", 403],
    ["192.168.1.5:18789", "http://192.168.1.5:18789", 200],
    ["192.168.1.5:18789", "http://localhost:18789", 403],
    ["localhost:18789", "http://192.168.1.5:18789", 403],
    ["localhost:18789", "http://evil.example", 403],
    ["localhost:18789", "http://evil.example:18789", 403],
    ["localhost:18789", "http://localhost.evil:18789", 403],
    ["localhost:18789", "http://localhost:18789.evil.example", 403],
    ["localhost:18789", "http://evil@localhost:18789", 403],
    ["localhost:18789", "http://localhost:18789/", 403],
    ["localhost:18789", "http://localhost:18789/path", 403],
    ["localhost:18789", "http://localhost.:18789", 403],
    ["localhost:18789", "null", 403],
    ["localhost:18789", "", 403],
    ["localhost:18789", "file://", 403],
    ["localhost:18789", "chrome-extension://abc", 403],
    ["localhost:18789", "localhost:18789", 403],
    ["localhost:18789", "ws://localhost:18789", 403],
    ["localhost:18789", "https://ui.example", 200],
    ["localhost:18789", "https://UI.example", 200],
    ["localhost:18789", "https://ui.example:444", 403],
    ["localhost:18789", "http://ui.example", 403],
    ["localhost:18789", "http://ui.example:8080", 200],
    ["localhost:18789", "app://zero", 200],
    ["localhost:18789", "app://other", 403],
    ["evil.example", "http://localhost:18789", 421],
    ["evil.example", "http://evil.example", 421],
  ];

  for (const [host, origin, status] of rows) {
    assertEquals(judged({ host, origin }), status, `${origin} at ${host}`);
  }
});

Deno.test("the origin null is refused even where it is listed, and a refusal names the key", () => {
  const rules = { ...NAMES, allowedOrigins: ["null"] };
  const host = judgeNames({ host: "evil.example" }, NAMES);
  const origin = judgeNames({ host: "localhost", origin: "null" }, NAMES);

  assertEquals(judged({ host: "localhost", origin: "null" }, rules), 403);
  assert(!host.allowed && host.message.includes("gateway.allowedHosts"));
  assert(!origin.allowed && origin.message.includes("gateway.controlUi.allowedOrigins"));
});

Deno.test("a header that came twice is judged by the first, and two origins are none", () => {
  assertEquals(judged({ host: "localhost", origin: ["http://localhost", "http://evil"] }), 200);
  assertEquals(judged({ host: "localhost", origin: "http://localhost, http://evil" }), 403);
});
