import { assert, assertEquals } from "@std/assert";
import { Presence, type SystemEvent } from "../../gateway/presence.ts";

const SELF = { host: "box", ip: "10.0.0.1", version: "1.2.3", platform: "linux" };

function presenceAt(nowMs = 1_000_000) {
  const clock = { nowMs };
  const presence = new Presence(SELF, () => clock.nowMs);
  /** The entries beside the gateway's own, newest first. */
  const others = () => presence.list().slice(1);
  return { clock, presence, others };
}

Deno.test("the gateway itself is always listed, with the time of the listing", () => {
  const { clock, presence } = presenceAt();
  clock.nowMs += 1_000_000;

  assertEquals(presence.list(), [{
    ...SELF,
    mode: "gateway",
    reason: "self",
    text: "Gateway: box (10.0.0.1) · app 1.2.3 · mode gateway · reason self",
    ts: 2_000_000,
  }]);
});

Deno.test("a connection is listed when it joins and stays a while after it left", () => {
  const { clock, presence, others } = presenceAt();

  presence.join("Key", { host: "Phone", mode: "ui", ip: undefined, deviceId: "Key" });
  const joined = others();
  clock.nowMs += 1_000;
  presence.leave("Key");

  assertEquals(joined, [{
    host: "Phone",
    mode: "ui",
    deviceId: "Key",
    reason: "connect",
    text: "Node: Phone · mode ui",
    ts: 1_000_000,
  }]);
  assertEquals(others().map(({ reason, ts }) => [reason, ts]), [["disconnect", 1_001_000]]);
});

Deno.test("two connections of one device are one entry, which leaves with the last of them", () => {
  const { presence, others } = presenceAt();

  presence.join("a", { host: "one" });
  presence.join(" A ", { host: "two" });
  presence.leave("a");
  const still = others();
  presence.leave("a");

  assertEquals(still.map(({ host, reason }) => [host, reason]), [["two", "connect"]]);
  assertEquals(others().map(({ reason }) => reason), ["disconnect"]);
});

Deno.test("every change raises the version", () => {
  const { presence } = presenceAt();
  const versions = [presence.version];

  presence.join("a", {});
  versions.push(presence.version);
  presence.leave("a");
  versions.push(presence.version);
  presence.report({ text: "hello" });
  versions.push(presence.version);
  presence.list();
  versions.push(presence.version);

  assertEquals(versions, [1, 2, 3, 4, 4]);
});

Deno.test("an entry expires after five minutes, unless its connection is still there", () => {
  const { clock, presence, others } = presenceAt();
  presence.join("here", { host: "here" });
  presence.report({ text: "Node: gone · mode ui", host: "gone" });

  clock.nowMs += 299_999;
  assertEquals(others().length, 2);
  clock.nowMs += 1;

  assertEquals(others().map(({ host }) => host), ["here"]);
  presence.leave("here");
  clock.nowMs += 300_000;
  assertEquals(others(), []);
});

Deno.test("at most two hundred are listed, the oldest give way", () => {
  const { presence, others } = presenceAt();

  for (let count = 1; count <= 1_000; count++) presence.join(`n${count}`, { host: `n${count}` });

  assertEquals(presence.list().length, 200);
  assertEquals([others()[0].host, others().at(-1)!.host], ["n1000", "n802"]);
  presence.leave("n1");
  assertEquals(others()[0].host, "n1000");
});

Deno.test("a presence line is read field by field", () => {
  const rows: [string, Record<string, unknown>][] = [
    [
      "Node: Peter's Mac (192.168.1.5) · app 2.0.1 · last input 42s ago · mode local · reason launch",
      {
        host: "Peter's Mac",
        ip: "192.168.1.5",
        version: "2.0.1",
        lastInputSeconds: 42,
        mode: "local",
        reason: "launch",
      },
    ],
    ["Node: mac · mode ui", { host: "mac", mode: "ui" }],
    ["Node: mac", { host: "mac" }],
    ["Node:mac(10.0.0.2)", { host: "mac", ip: "10.0.0.2" }],
    ["  Node: mac · app 1 beta · reason a b  ", { host: "mac", version: "1 beta", reason: "a b" }],
    ["Node: mac · last input soon ago", { host: "mac" }],
  ];

  for (const [text, fields] of rows) {
    const { presence, others } = presenceAt();

    presence.report({ text });

    assertEquals(others(), [{ ...fields, text: text.trim(), ts: 1_000_000 }]);
  }
});

Deno.test("what an event says beside its text stands above the line, and nothing foreign is kept", () => {
  const { presence, others } = presenceAt();
  const event = JSON.parse(`{
    "text": "Node: mac (10.0.0.2) · mode ui", "host": "given", "tags": ["a"], "roles": ["node"],
    "scopes": ["s"], "lastInputSeconds": 7, "secret": "x", "__proto__": {"polluted": true}
  }`) as SystemEvent;

  presence.report(event);

  assertEquals(others(), [{
    host: "given",
    ip: "10.0.0.2",
    mode: "ui",
    tags: ["a"],
    roles: ["node"],
    scopes: ["s"],
    lastInputSeconds: 7,
    text: "Node: mac (10.0.0.2) · mode ui",
    ts: 1_000_000,
  }]);
});

Deno.test("an event is of the device it names, else of the instance, the host, the line, the address", () => {
  const rows: [SystemEvent, SystemEvent][] = [
    [{ text: "one", deviceId: "D" }, { text: "two", deviceId: "d", host: "h" }],
    [{ text: "one", instanceId: "I" }, { text: "two", instanceId: "i " }],
    [{ text: "one", host: "H" }, { text: "two", host: "h" }],
    [{ text: "Node: mac · mode a" }, { text: "Node: Mac · mode b" }],
    [{ text: "one", ip: "10.0.0.1" }, { text: "two", ip: "10.0.0.1" }],
  ];

  for (const [first, second] of rows) {
    const { presence, others } = presenceAt();
    presence.report(first);
    presence.report(second);
    assertEquals(others().map(({ text }) => text), [second.text]);
  }
});

Deno.test("a line is told to the main session only when something but the time changed", () => {
  const { presence } = presenceAt();
  const line = (rest: string) => presence.report({ text: `Node: mac (10.0.0.2) · ${rest}` });

  const told = [
    line("app 1 · last input 1s ago · mode ui · reason launch"),
    line("app 1 · last input 9s ago · mode ui · reason launch"),
    line("app 1 · last input 9s ago · mode ui · reason periodic"),
    line("app 1 · last input 9s ago · mode ui · reason periodic-60"),
    line("app 1 · last input 9s ago · mode ui · reason heartbeat"),
    line("app 2 · last input 9s ago · mode ui · reason heartbeat"),
    line("app 2 · last input 9s ago · mode other · reason heartbeat"),
    line("app 2 · last input 9s ago · mode other · reason wake"),
  ].map((text) => text !== undefined);

  assertEquals(told, [true, false, false, false, false, true, true, true]);
});

Deno.test("any other text is told as it is, each time", () => {
  const { presence } = presenceAt();

  assertEquals(presence.report({ text: " Battery low " }), "Battery low");
  assertEquals(presence.report({ text: "Battery low" }), "Battery low");
  assertEquals(presence.report({ text: "Nodes: not a line" }), "Nodes: not a line");
});

Deno.test("a report of a connected device keeps what the connection said", () => {
  const { presence, others } = presenceAt();
  presence.join("d", { host: "Phone", version: "1", deviceId: "d" });

  presence.report({ text: "Node: Phone · mode ui · reason wake", deviceId: "d" });

  const [entry] = others();
  assertEquals([entry.version, entry.mode, entry.reason], ["1", "ui", "wake"]);
  assert(entry.text.startsWith("Node: Phone"));
});
