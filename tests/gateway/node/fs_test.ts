// Files a node lends: what is inside its roots, as configured, and nothing by any way out of them.

import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { CommandError } from "../../../gateway/node/command_error.ts";
import { type FileRoot, MAX_WRITE_BYTES, NodeFiles } from "../../../gateway/node/fs.ts";
import { startTestGateway } from "../../support/gateway.ts";
import { eventually, pause } from "../../support/process.ts";
import { invoke, refusedBy, startTestNode } from "./support.ts";

/** A home with `lent`, which is writable, `shown`, which is not, and `secret`, which is not lent. */
async function makeHome(further: { roots?: FileRoot[]; kept?: string[] } = {}) {
  const home = await Deno.realPath(await Deno.makeTempDir({ prefix: "zero-fs-" }));
  for (const name of ["lent", "lent/inner", "shown", "secret", "state"]) {
    await Deno.mkdir(`${home}/${name}`);
  }
  await Deno.writeTextFile(`${home}/lent/a.txt`, "grün\n");
  await Deno.writeTextFile(`${home}/shown/b.txt`, "b");
  await Deno.writeTextFile(`${home}/secret/key`, "the key");
  await Deno.writeTextFile(`${home}/state/node.json`, "{}");
  let roots: FileRoot[] = further.roots ??
    [{ path: "~/lent", write: true }, { path: `${home}/shown` }];
  const files = new NodeFiles({
    home,
    roots: () => Promise.resolve(roots),
    kept: [`${home}/state`, ...further.kept ?? []],
  });
  return {
    home,
    files,
    lend: (next: FileRoot[]) => roots = next,
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
}

async function refusal(work: Promise<unknown>): Promise<string> {
  const error = await assertRejects(() => work, CommandError);
  assertEquals(error.code, "INVALID_REQUEST");
  return error.message;
}

Deno.test("files inside a root are listed, read and written", async () => {
  await using place = await makeHome();
  const { files, home } = place;

  const roots = await files.list({});
  const list = await files.list({ path: `${home}/lent` });
  const read = await files.read({ path: `${home}/lent/a.txt` });
  const created = await files.write({ path: `${home}/lent/inner/new.txt`, content: "new" });
  const replaced = await files.write({
    path: `${home}/lent/a.txt`,
    content: "YWJj",
    encoding: "base64",
  });

  assertEquals(roots.entries.map(({ name, kind }) => [name, kind]), [
    [`${home}/lent`, "directory"],
    [`${home}/shown`, "directory"],
  ]);
  assertEquals([list.path, list.truncated], [`${home}/lent`, false]);
  assertEquals(list.entries.map(({ name, kind, size }) => [name, kind, size]), [
    ["a.txt", "file", 6],
    ["inner", "directory", undefined],
  ]);
  const { modifiedAtMs, ...rest } = read;
  assert(Math.abs(modifiedAtMs - Date.now()) < 600_000);
  assertEquals(rest, {
    path: `${home}/lent/a.txt`,
    encoding: "utf8",
    content: "grün\n",
    offset: 0,
    bytes: 6,
    size: 6,
    truncated: false,
  });
  assertEquals(created, { path: `${home}/lent/inner/new.txt`, bytes: 3, created: true });
  assertEquals([replaced.bytes, replaced.created], [3, false]);
  assertEquals(await Deno.readTextFile(`${home}/lent/a.txt`), "abc");
  assertEquals([...Deno.readDirSync(`${home}/lent/inner`)].map(({ name }) => name), ["new.txt"]);
});

Deno.test("no path leads out of the roots, and none tells what there is outside", async () => {
  await using place = await makeHome();
  const { files, home } = place;
  const lent = `${home}/lent`;
  await Deno.symlink(`${home}/secret`, `${lent}/way`);
  await Deno.symlink(`${home}/secret/key`, `${lent}/key`);
  await Deno.symlink("../secret/key", `${lent}/relative`);
  await Deno.symlink(`${home}/secret/none`, `${lent}/dangling`);
  await Deno.symlink(`${home}/shown`, `${lent}/sideways`);
  await Deno.mkdir(`${home}/lent-not`);
  await Deno.writeTextFile(`${home}/lent-not/x`, "x");
  const out = "it is outside the roots of this node (nodeHost.fs.roots)";
  const cases: [string, string][] = [
    [`${home}/secret/key`, out],
    [`${home}/secret/none`, out],
    [`${home}/lent-not/x`, out],
    ["/", out],
    [`${lent}/key`, out],
    [`${lent}/relative`, out],
    [`${lent}/way/key`, out],
    [`${lent}/../secret/key`, 'the path has a ".." in it'],
    [`${lent}/inner/../a.txt`, 'the path has a ".." in it'],
    ["lent/a.txt", "the path is not absolute"],
    ["~/lent/a.txt", "the path is not absolute"],
    [`${lent}/a.txt\0`, "that is no path"],
    [`${lent}/${"x".repeat(5_000)}`, "that is no path"],
    [`${lent}/${"x".repeat(300)}`, "the name is too long"],
    [`${lent}/none`, "there is no such file or directory"],
    [`${lent}/dangling`, "there is no such file or directory"],
    [`${lent}/a.txt/b`, "a part of the path is no directory"],
    [lent, "it is no regular file"],
  ];

  for (const [path, reason] of cases) {
    const message = await refusal(files.read({ path }));
    assert(message.startsWith("Cannot read ") && message.endsWith(`: ${reason}`), message);
    assert(path.includes("secret") || !message.includes("secret"), message);
  }
  for (const path of [`${lent}/way`, `${home}/secret`, home, "/"]) {
    assertStringIncludes(await refusal(files.list({ path })), out);
  }
  for (const path of [`${lent}/way/key`, `${lent}/way/new`, `${home}/secret/key`, `${home}/x`]) {
    assertStringIncludes(await refusal(files.write({ path, content: "x" })), out);
  }
  assertEquals(await Deno.readTextFile(`${home}/secret/key`), "the key");
  assertEquals([...Deno.readDirSync(`${home}/secret`)].length, 1);
  // A link from one root into another leads to what is lent, by the rules of where it leads.
  assertEquals((await files.read({ path: `${lent}/sideways/b.txt` })).content, "b");
  assertMatch(
    await refusal(files.write({ path: `${lent}/sideways/b.txt`, content: "x" })),
    /lent for reading only/,
  );
});

Deno.test("a link in the place of the file is not written through, and not replaced", async () => {
  await using place = await makeHome();
  const { files, home } = place;
  await Deno.symlink(`${home}/secret/key`, `${home}/lent/link`);
  await Deno.symlink(`${home}/lent/a.txt`, `${home}/lent/inward`);

  for (const path of [`${home}/lent/link`, `${home}/lent/inward`]) {
    assertMatch(await refusal(files.write({ path, content: "x" })), /it is a symbolic link$/);
  }

  assertEquals(await Deno.readTextFile(`${home}/secret/key`), "the key");
  assertEquals(await Deno.readTextFile(`${home}/lent/a.txt`), "grün\n");
});

Deno.test("a directory that is exchanged for a link all the time never leads out", async () => {
  await using place = await makeHome();
  const { files, home } = place;
  const directory = `${home}/lent/dir`;
  await Deno.mkdir(directory);
  await Deno.writeTextFile(`${directory}/key`, "mine");
  let isOver = false;
  // `dir` is a directory and a link to the secret one by turns, now fast, now with time between.
  const exchange = (async () => {
    for (let round = 0; !isOver; round++) {
      await Deno.rename(directory, `${directory}.away`);
      await Deno.symlink(`${home}/secret`, directory);
      await Deno.remove(directory);
      await Deno.rename(`${directory}.away`, directory);
      if (round % 20 === 0) await pause(40);
    }
  })();

  const seen = new Set<string>();
  for (let round = 0; round < 40; round++) {
    const path = `${directory}/key`;
    const read = () => files.read({ path }).then(({ content }) => content, () => "refused");
    const [one, other] = await Promise.all([
      read(),
      read(),
      files.write({ path, content: "mine" }).catch(() => {}),
      files.list({ path: directory }).catch(() => {}),
    ]);
    seen.add(one).add(other);
  }
  isOver = true;
  await exchange;

  assert(!seen.has("the key"), [...seen].join());
  assertEquals(await Deno.readTextFile(`${home}/secret/key`), "the key");
  assertEquals((await files.read({ path: `${directory}/key` })).content, "mine");
});

Deno.test("the node lends none of its own files, whatever root they lie in", async () => {
  await using place = await makeHome({ roots: [{ path: "~", write: true }] });
  const { files, home } = place;
  await Deno.symlink(`${home}/state`, `${home}/lent/state`);
  const own = "it belongs to the node itself, which lends none of its own files";

  for (const path of [`${home}/state/node.json`, `${home}/lent/state/node.json`]) {
    assertStringIncludes(await refusal(files.read({ path })), own);
    assertStringIncludes(await refusal(files.write({ path, content: "{}" })), own);
  }
  for (const name of ["exec-approvals.json", "identity"]) {
    const path = `${home}/state/${name}`;
    assertStringIncludes(await refusal(files.write({ path, content: "" })), own);
  }
  assertStringIncludes(await refusal(files.list({ path: `${home}/state` })), own);
  assertEquals(await Deno.readTextFile(`${home}/state/node.json`), "{}");
  assertEquals((await files.read({ path: `${home}/secret/key` })).content, "the key");
});

Deno.test("a file of the node's that is not there yet cannot be made either", async () => {
  await using place = await makeHome();
  const files = new NodeFiles({
    home: place.home,
    roots: () => Promise.resolve([{ path: "~/lent", write: true }]),
    kept: [`${place.home}/lent/approvals.json`],
  });

  for (const name of ["approvals.json", "APPROVALS.json"]) {
    const path = `${place.home}/lent/${name}`;
    assertStringIncludes(
      await refusal(files.write({ path, content: "{}" })),
      "belongs to the node",
    );
  }
});

Deno.test("parts of a file are read at whole characters, and bytes as base64", async () => {
  await using place = await makeHome();
  const { files, home } = place;
  const path = `${home}/lent/text`;
  await Deno.writeTextFile(path, "aä€😀z");
  await Deno.writeFile(`${home}/lent/bytes`, new Uint8Array([0xff, 0x00, 0xfe]));

  let text = "";
  let offset = 0;
  for (;;) {
    const part = await files.read({ path, offset, maxBytes: 4 });
    text += part.content;
    offset += part.bytes;
    if (!part.truncated) break;
    assert(part.bytes > 0);
  }
  const bytes = await files.read({ path: `${home}/lent/bytes`, encoding: "base64", offset: 1 });
  const noText = await refusal(files.read({ path: `${home}/lent/bytes` }));
  const behind = await files.read({ path, offset: 1_000 });

  assertEquals(text, "aä€😀z");
  assertEquals([bytes.content, bytes.bytes, bytes.size, bytes.truncated], ["AP4=", 2, 3, false]);
  assertMatch(noText, /it is no UTF-8 text; ask for it with "encoding": "base64"$/);
  assertEquals([behind.content, behind.bytes, behind.truncated], ["", 0, false]);
});

Deno.test("sizes are bounded", async () => {
  await using place = await makeHome();
  const { files, home } = place;
  for (let index = 0; index < 5; index++) {
    await Deno.writeTextFile(`${home}/shown/f${index}`, "");
  }

  const list = await files.list({ path: `${home}/shown`, limit: 2 });
  const content = "x".repeat(MAX_WRITE_BYTES + 1);
  const large = await refusal(files.write({ path: `${home}/lent/large`, content }));

  assertEquals([list.entries.map(({ name }) => name), list.truncated], [["b.txt", "f0"], true]);
  assertMatch(large, /8388608 may be written$/);
  for (
    const params of [{ maxBytes: 4_194_305 }, { maxBytes: 0 }, { encoding: "latin1" }, { x: 1 }]
  ) {
    assertMatch(
      await refusal(files.read({ path: `${home}/lent/a.txt`, ...params })),
      /^INVALID_REQUEST: fs\.read: /,
    );
  }
  assertMatch(await refusal(files.write({ path: "/x" })), /^INVALID_REQUEST: fs\.write: /);
  assertMatch(await refusal(files.list({ limit: 10_001 })), /^INVALID_REQUEST: fs\.list: /);
  const path = `${home}/lent/c`;
  const noBase64 = await refusal(files.write({ path, content: "a b=", encoding: "base64" }));
  assertMatch(noBase64, /the content is no base64$/);
});

Deno.test("what is no file is not read: a pipe keeps nobody waiting", async () => {
  await using place = await makeHome();
  const { files, home } = place;
  const path = `${home}/lent/pipe`;
  const { success } = await new Deno.Command("mkfifo", { args: [path] }).output();
  assert(success);

  assertMatch(await refusal(files.read({ path })), /it is no regular file$/);
  assertMatch(await refusal(files.write({ path, content: "x" })), /it is no regular file$/);
  assertMatch(await refusal(files.list({ path })), /it is no directory$/);
});

Deno.test("a file keeps its mode when it is replaced, and with overwrite false it is left alone", async () => {
  await using place = await makeHome();
  const { files, home } = place;
  const path = `${home}/lent/a.txt`;
  await Deno.chmod(path, 0o750);

  const kept = await refusal(files.write({ path, content: "x", overwrite: false }));
  await files.write({ path: `${home}/lent/fresh`, content: "fresh", overwrite: false });
  await files.write({ path, content: "x" });

  assertMatch(kept, /it is there already$/);
  assertEquals((await Deno.stat(path)).mode! & 0o777, 0o750);
  assertEquals(await Deno.readTextFile(`${home}/lent/fresh`), "fresh");
  assertEquals([...Deno.readDirSync(`${home}/lent`)].map(({ name }) => name).sort(), [
    "a.txt",
    "fresh",
    "inner",
  ]);
});

Deno.test("what a root is decides what may be done with it", async () => {
  await using place = await makeHome({ roots: [] });
  const { files, home, lend } = place;

  const none = await files.commands();
  lend([{ path: "~/shown" }, { path: "~/not-there", write: false }]);
  const readOnly = await files.commands();
  const written = await refusal(files.write({ path: `${home}/shown/x`, content: "" }));
  lend([{ path: "~/lent/a.txt", write: true }]);
  const single = await files.read({ path: `${home}/lent/a.txt` });
  const beside = await refusal(files.write({ path: `${home}/lent/b.txt`, content: "" }));
  const itself = await refusal(files.write({ path: `${home}/lent/a.txt`, content: "" }));
  lend([{ path: "~/lent", write: true }]);

  assertEquals(none, []);
  assertEquals(readOnly, ["fs.list", "fs.read"]);
  assertMatch(written, /lent for reading only/);
  assertEquals(single.content, "grün\n");
  assertMatch(beside, /outside the roots/);
  assertMatch(itself, /a single file/);
  assertEquals(await files.commands(), ["fs.list", "fs.read", "fs.write"]);
});

Deno.test("a node offers its files only where roots are configured, and a gateway asks for them only where it allows that", async () => {
  await using gateway = await startTestGateway({ config: {} });
  const shared = await Deno.realPath(await Deno.makeTempDir({ prefix: "zero-fs-" }));
  await Deno.writeTextFile(`${shared}/a`, "text");
  await using node = await startTestNode(gateway, {
    config: { nodeHost: { fs: { roots: [{ path: shared, write: true }] } } },
  });
  const operator = await gateway.connect();
  const path = `${shared}/a`;

  const forbidden = await refusedBy(operator, node, "fs.read", { path });
  const { hash } = await operator.call("config.get", {});
  await operator.call("config.patch", {
    baseHash: hash,
    raw: JSON.stringify({
      gateway: { nodes: { allowCommands: ["fs.read", "fs.list", "fs.write"] } },
    }),
  });
  const read = await invoke(operator, node, "fs.read", { path });
  await invoke(operator, node, "fs.write", { path, content: "changed" });
  const list = await invoke(operator, node, "fs.list", { path: shared });
  const own = await refusedBy(operator, node, "fs.read", { path: `${node.stateDir}/node.json` });
  const { nodes } = await operator.call("node.list", {});

  assertEquals(forbidden, "node command not allowed");
  assertEquals(read.content, "text");
  assertEquals(await Deno.readTextFile(path), "changed");
  assertEquals(list.entries.length, 1);
  assertStringIncludes(own, "outside the roots of this node");
  assertEquals(nodes[0].commands.filter((name: string) => name.startsWith("fs.")), [
    "fs.list",
    "fs.read",
    "fs.write",
  ]);
  await Deno.remove(shared, { recursive: true });
});

Deno.test("roots that are taken back are not served any more, at once and also in what is offered", async () => {
  await using gateway = await startTestGateway({
    config: { gateway: { nodes: { allowCommands: ["fs.read", "fs.list"] } } },
  });
  await using place = await makeHome();
  await using node = await startTestNode(gateway, {
    config: { nodeHost: { fs: { roots: [{ path: `${place.home}/lent` }] } } },
    browserCheckMs: 20,
  });
  const operator = await gateway.connect();
  const path = `${place.home}/lent/a.txt`;
  await invoke(operator, node, "fs.read", { path });

  await Deno.writeTextFile(`${node.stateDir}/zero.json`, "{}");

  await eventually("the node offers no files", async () => {
    const { nodes } = await operator.call("node.list", {});
    return nodes[0].connected && !nodes[0].commands.includes("fs.read");
  });
  assertEquals(await refusedBy(operator, node, "fs.read", { path }), "node command not allowed");
});
