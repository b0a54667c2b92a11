import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import {
  ApprovalsError,
  type ApprovalsFile,
  approvalsPaths,
  ApprovalsStore,
} from "../../../gateway/node/approvals_file.ts";
import { sha256 } from "../../../config/load.ts";
import { startTestGateway } from "../../support/gateway.ts";
import { startTestNode, tempHome } from "./support.ts";

async function makeStore(content?: unknown) {
  const home = await tempHome();
  const file = `${home.path}/sub/approvals.json`;
  if (content !== undefined) {
    await Deno.mkdir(`${home.path}/sub`);
    await Deno.writeTextFile(
      file,
      typeof content === "string" ? content : JSON.stringify(content),
    );
  }
  return {
    file,
    store: new ApprovalsStore({ file, socket: `${home.path}/approvals.sock` }),
    read: async () => JSON.parse(await Deno.readTextFile(file)),
    [Symbol.asyncDispose]: () => home[Symbol.asyncDispose](),
  };
}

Deno.test("reading makes the file, for its owner alone, and never shows the socket's token", async () => {
  await using made = await makeStore();

  const snapshot = await made.store.snapshot();

  const raw = await Deno.readTextFile(made.file);
  const { socket: { path, token } } = JSON.parse(raw);
  assertEquals(snapshot, {
    path: made.file,
    exists: true,
    hash: await sha256(raw),
    file: { version: 1, agents: {}, socket: { path } },
  });
  assertMatch(token, /^[\w-]{32}$/);
  assertEquals((await Deno.stat(made.file)).mode! & 0o777, 0o600);
  assertEquals((await made.store.snapshot()).hash, snapshot.hash);
});

Deno.test("ids are filled in, and default is folded into main", async () => {
  await using made = await makeStore({
    version: 1,
    socket: { path: "/s", token: "t" },
    agents: {
      default: { security: "full", ask: "off", allowlist: [{ pattern: "/a" }, { pattern: "/b" }] },
      main: { security: "deny", allowlist: [{ id: "1", pattern: "/a" }] },
    },
    extra: { kept: true },
  });

  const { file } = await made.store.snapshot();

  assertEquals(Object.keys(file.agents!), ["main"]);
  const { security, ask, allowlist } = file.agents!.main;
  assertEquals([security, ask], ["deny", "off"]);
  assertEquals(allowlist!.map(({ pattern }) => pattern), ["/a", "/b"]);
  assertEquals(allowlist![0].id, "1");
  assertMatch(allowlist![1].id!, /^[0-9a-f-]{36}$/);
  const written = await made.read();
  assertEquals(written.agents.main.allowlist[1].id, allowlist![1].id);
  assertEquals([written.extra, written.socket], [{ kept: true }, { path: "/s", token: "t" }]);
});

Deno.test("a content is taken only on top of what its author has read", async () => {
  await using made = await makeStore();
  const before = await made.store.snapshot();
  const { socket } = await made.read();
  const file = { version: 1, agents: { main: { allowlist: [{ pattern: "/bin/ls" }] } } };
  const fault = async (content: unknown, hash?: string) =>
    (await assertRejects(() => made.store.replace(content, hash), ApprovalsError)).fault;

  assertEquals(await fault(undefined, before.hash), "file required");
  assertEquals(await fault(file), "base hash required");
  assertEquals(await fault(file, "0".repeat(64)), "changed");
  assertEquals(await fault({ version: 2 }, before.hash), "file invalid");
  assertEquals(
    await fault({ version: 1, defaults: { security: "maybe" } }, before.hash),
    "file invalid",
  );
  const after = await made.store.replace(file, before.hash);

  assertEquals(after.file.agents!.main.allowlist![0].pattern, "/bin/ls");
  assertEquals((await made.read()).socket, socket);
  assert(after.hash !== before.hash);
  assertEquals(await fault(file, before.hash), "changed");
});

Deno.test("a file that cannot be understood is kept, and can be replaced", async () => {
  for (const raw of ["{", "[]", '{"version":1,"defaults":{"security":"maybe"}}']) {
    await using made = await makeStore(raw);

    const snapshot = await made.store.snapshot();

    assertEquals(await made.store.load(), undefined, raw);
    assertEquals(await Deno.readTextFile(made.file), raw);
    assertEquals(snapshot.hash, await sha256(raw));
    await made.store.replace({ version: 1 }, snapshot.hash);
    assertEquals((await made.store.load())?.version, 1);
  }
});

Deno.test("changes of many at once are all there afterwards", async () => {
  await using made = await makeStore();
  const other = new ApprovalsStore({ file: made.file, socket: "unused" });
  const add = (pattern: string) => (file: ApprovalsFile) => {
    const agents = file.agents ??= {};
    const main = agents.main ??= {};
    (main.allowlist ??= []).push({ id: pattern, pattern });
  };

  await Promise.all(
    Array.from(
      { length: 40 },
      (_, index) => (index % 2 ? made.store : other).update(add(`/${index}`)),
    ),
  );

  assertEquals((await made.read()).agents.main.allowlist.length, 40);
});

Deno.test("the environment can name another file and another socket", () => {
  const env = { ZERO_EXEC_APPROVALS_PATH: "/x/file", ZERO_EXEC_APPROVALS_SOCKET: "/x/socket" };

  assertEquals(approvalsPaths({ stateDir: "/s", env }), { file: "/x/file", socket: "/x/socket" });
  assertEquals(approvalsPaths({ stateDir: "/s", env: {} }), {
    file: "/s/exec-approvals.json",
    socket: "/s/exec-approvals.sock",
  });
});

Deno.test("exec.approvals.get and set work on the gateway's own file, in its words", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const before = await operator.call("exec.approvals.get", {});
  const file = { ...before.file, agents: { main: { allowlist: [{ pattern: "/bin/ls" }] } } };
  const refused = async (params: object) =>
    (await operator.refused("exec.approvals.set", params)).message;

  assertEquals(before.path, `${gateway.paths.stateDir}/exec-approvals.json`);
  assertEquals(await refused({ baseHash: before.hash }), "exec approvals file is required");
  assertEquals(
    await refused({ file }),
    "exec approvals base hash required; re-run exec.approvals.get and retry",
  );
  assertEquals(
    await refused({ file, baseHash: "0" }),
    "exec approvals changed since last load; re-run exec.approvals.get and retry",
  );
  const after = await operator.call("exec.approvals.set", { file, baseHash: before.hash });

  assertEquals(after, await operator.call("exec.approvals.get", {}));
  assertMatch(after.file.agents.main.allowlist[0].id, /^[0-9a-f-]{36}$/);
  assertEquals(after.file.socket.token, undefined);
});

Deno.test("the rules of a node are read and written through the gateway", async () => {
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway);
  const operator = await gateway.connect();
  const { nodeId } = node;
  const before = await operator.call("exec.approvals.node.get", { nodeId });
  const file = { ...before.file, defaults: { security: "full", ask: "off" } };
  const refused = async (params: object) =>
    (await operator.refused("exec.approvals.node.set", { nodeId, ...params })).message;

  assertEquals(before.path, node.approvalsFile);
  assertEquals(
    await refused({ baseHash: before.hash }),
    "INVALID_REQUEST: exec approvals file required",
  );
  assertEquals(
    await refused({ file }),
    "INVALID_REQUEST: exec approvals base hash required; reload and retry",
  );
  assertEquals(
    await refused({ file, baseHash: "0" }),
    "INVALID_REQUEST: exec approvals changed; reload and retry",
  );
  await operator.call("exec.approvals.node.set", { nodeId, file, baseHash: before.hash });
  const { payload } = await operator.call("node.invoke", {
    nodeId,
    command: "system.run",
    params: { command: ["echo", "hi"] },
    idempotencyKey: "k",
  });

  assertEquals(payload.stdout, "hi\n");
  const unknown = await operator.refused("exec.approvals.node.get", { nodeId: "nobody" });
  assertEquals([unknown.code, unknown.message], ["UNAVAILABLE", "node not connected"]);
});

Deno.test("exec.approvals.* are refused without operator.admin, and say what is wrong with params", async () => {
  await using gateway = await startTestGateway();
  const writer = await gateway.connect({
    protocol: 3,
    scopes: ["operator.write", "operator.approvals"],
  });
  const operator = await gateway.connect({ protocol: 3 });
  const methods = ["get", "set", "node.get", "node.set"].map((name) => `exec.approvals.${name}`);

  for (const method of methods) {
    assertEquals((await writer.refused(method, {})).message, "missing scope: operator.admin");
    const message = (await operator.refused(method, { x: 1 })).message;
    assertMatch(message, new RegExp(`^invalid ${method} params: .*unexpected property 'x'`));
  }
});
