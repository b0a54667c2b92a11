import { assertEquals } from "@std/assert";
import {
  permittedCommands,
  type PlatformClass,
  platformClass,
  refuseCommand,
} from "../../gateway/command_policy.ts";
import { startTestGateway } from "../support/gateway.ts";
import { connectNode, serveNode } from "../support/node.ts";

const SYSTEM = [
  "system.run",
  "system.which",
  "system.notify",
  "system.execApprovals.get",
  "system.execApprovals.set",
  "browser.proxy",
];
const CANVAS = ["present", "hide", "navigate", "eval", "snapshot"].map((one) => `canvas.${one}`)
  .concat(["push", "pushJSONL", "reset"].map((one) => `canvas.a2ui.${one}`));
const CAMERA = ["camera.list", "camera.snap", "camera.clip"];
const APPS = [...CANVAS, ...CAMERA, "screen.record", "location.get"];
const FOREIGN = ["system.run.prepare", "fs.listDir", "fs.read", "system.runs", "SYSTEM.RUN", ""];

Deno.test("each kind of machine may offer the commands of its table, and no others", async (t) => {
  const allowed: Record<PlatformClass, string[]> = {
    ios: APPS,
    android: [...APPS, "sms.send"],
    macos: [...APPS, ...SYSTEM],
    linux: SYSTEM,
    windows: SYSTEM,
    unknown: [...APPS, "sms.send", ...SYSTEM],
  };
  const all = [...APPS, "sms.send", ...SYSTEM, ...FOREIGN];
  for (const [kind, expected] of Object.entries(allowed) as [PlatformClass, string[]][]) {
    await t.step(kind, () => {
      assertEquals(permittedCommands(all, kind, {}), expected.toSorted());
      for (const command of all) {
        const isAllowed = refuseCommand(command, all, kind, {}) === undefined;
        assertEquals(isAllowed, expected.includes(command), command);
      }
    });
  }
});

Deno.test("the kind of a machine is told by its platform, else by its family", () => {
  const table: [platform: string, family: string | undefined, kind: PlatformClass][] = [
    ["ios", undefined, "ios"],
    [" iOS 26.1 ", undefined, "ios"],
    ["Android 16", undefined, "android"],
    ["macOS 26", undefined, "macos"],
    ["mac", undefined, "macos"],
    ["darwin", undefined, "macos"],
    ["win32", undefined, "windows"],
    ["Windows 12", undefined, "windows"],
    ["linux", undefined, "linux"],
    ["Linux-6.9", undefined, "linux"],
    ["", "iPhone", "ios"],
    ["", "my iPad", "ios"],
    ["test", "Android", "android"],
    ["test", "MacBook", "macos"],
    ["test", "windows", "windows"],
    ["test", "Linux", "linux"],
    ["freebsd", undefined, "unknown"],
    ["", undefined, "unknown"],
    // The platform comes first: a family cannot make more of it.
    ["linux", "Android", "linux"],
    ["ios", "MacBook", "ios"],
  ];
  for (const [platform, family, kind] of table) {
    assertEquals(platformClass(platform, family), kind, `${platform} / ${family}`);
  }
});

Deno.test("the configuration adds commands and takes some away, and what it takes away wins", () => {
  const rules = {
    allowCommands: ["fs.read", "fs.write", "camera.snap"],
    denyCommands: ["fs.write", "system.run"],
  };
  const declared = ["fs.read", "fs.write", "fs.list", "camera.snap", "system.run", "system.which"];

  assertEquals(permittedCommands(declared, "linux", rules), [
    "camera.snap",
    "fs.read",
    "system.which",
  ]);
  assertEquals(permittedCommands(["fs.read", "fs.read"], "linux", rules), ["fs.read"]);
});

Deno.test("a refusal names its reason", () => {
  const reason = (command: string, declared: string[], rules = {}) =>
    refuseCommand(command, declared, "linux", rules);

  assertEquals(reason(" ", ["system.run"]), "command required");
  assertEquals(reason("camera.snap", ["camera.snap"]), "command not allowlisted");
  assertEquals(reason("system.which", ["system.run"]), "command not declared by node");
  assertEquals(reason("system.run", []), "node did not declare commands");
  assertEquals(
    reason("system.run", ["system.run"], { denyCommands: ["system.run"] }),
    "command not allowlisted",
  );
  assertEquals(reason("system.run", ["system.run"]), undefined);
});

Deno.test("a node that declares commands outside the policy has them filtered", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  await using node = await connectNode(gateway, {
    commands: ["system.run", "system.run.prepare", "fs.listDir", "camera.snap", "system.which"],
  });
  const invoke = (command: string) =>
    operator.refused("node.invoke", { nodeId: node.nodeId, command, idempotencyKey: "1" });

  const { nodes } = await operator.call("node.list", {});
  const foreign = await invoke("fs.listDir");
  const missing = await invoke("system.notify");
  const blank = await invoke(" ");

  assertEquals(nodes[0].commands, ["system.run", "system.which"]);
  assertEquals([foreign.code, foreign.message, foreign.details], [
    "INVALID_REQUEST",
    "node command not allowed",
    { reason: "command not allowlisted", command: "fs.listDir" },
  ]);
  assertEquals(missing.details, {
    reason: "command not declared by node",
    command: "system.notify",
  });
  assertEquals(blank.details.reason, "command required");
});

Deno.test("a change of the allow and deny lists holds at once, for nodes that are connected", async () => {
  await using gateway = await startTestGateway({ config: {} });
  const operator = await gateway.connect();
  await using node = await serveNode(gateway, () => ({ payload: {} }), {
    commands: ["system.which", "fs.read"],
  });
  const invoke = (command: string) =>
    operator.request("node.invoke", { nodeId: node.nodeId, command, idempotencyKey: "1" });
  const commands = async () => (await operator.call("node.list", {})).nodes[0].commands;
  const patch = async (nodes: unknown) => {
    const { hash } = await operator.call("config.get", {});
    await operator.call("config.patch", {
      raw: JSON.stringify({ gateway: { nodes } }),
      baseHash: hash,
    });
  };

  const before = [
    await commands(),
    (await invoke("fs.read")).ok,
    (await invoke("system.which")).ok,
  ];
  await patch({ allowCommands: ["fs.read"], denyCommands: ["system.which"] });
  const after = [await commands(), (await invoke("fs.read")).ok, (await invoke("system.which")).ok];
  await patch({ allowCommands: null, denyCommands: null });
  const again = [await commands(), (await invoke("fs.read")).ok, (await invoke("system.which")).ok];

  assertEquals(before, [["system.which"], false, true]);
  assertEquals(after, [["fs.read"], true, false]);
  assertEquals(again, before);
  assertEquals(gateway.restarts, []);
});
