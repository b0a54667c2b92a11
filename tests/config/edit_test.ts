import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  mergePatch,
  redactText,
  restoreSecrets,
  setKey,
  unsetKey,
  writeConfig,
} from "../../config/edit.ts";
import { parseText } from "../../config/document.ts";
import { ConfigError, sha256 } from "../../config/load.ts";
import { type KeyPath, REDACTED } from "../../config/schema.ts";

const DOCUMENT = `// My gateway
{
  // where it listens
  gateway: {
    port: 18789, // the usual one
    bind: 'loopback',
    /* who may come in */
    auth: {
      token: '\${TOKEN}', // never here
    },
    // trustedProxies: [],
  },
  $include: ['./more.json5'],
  empty: {},
  one: { a: 1, b: 2 },
  list: [
    'a', // first
    'b', // second
  ],
}
// the end
`;

/** The document with one piece of it replaced: what an edit should come to. */
function with_(piece: string, replacement: string): string {
  assert(DOCUMENT.split(piece).length === 2, piece);
  return DOCUMENT.replace(piece, () => replacement);
}

Deno.test("setKey changes what it must and nothing else", async (t) => {
  const cases: [string, KeyPath, unknown, string][] = [
    ["a number", ["gateway", "port"], 9000, with_("port: 18789", "port: 9000")],
    ["text, in the author's quotes", ["gateway", "bind"], "lan", with_("'loopback'", "'lan'")],
    ["text with a quote in it", ["gateway", "bind"], "it's", with_("'loopback'", "'it\\'s'")],
    [
      "a variable",
      ["gateway", "auth", "token"],
      "${OTHER}",
      with_("'${TOKEN}'", "'${OTHER}'"),
    ],
    [
      "a new key, behind what is said about the last one",
      ["gateway", "auth", "mode"],
      "token",
      with_("// never here\n", "// never here\n      mode: 'token',\n"),
    ],
    [
      "a key whose parents are missing",
      ["gateway", "remote", "url"],
      "ws://a",
      with_(
        "    },\n    // trusted",
        "    },\n    remote: {\n      url: 'ws://a',\n    },\n    // trusted",
      ),
    ],
    [
      "a key in an empty object",
      ["empty", "a"],
      { b: [1, 2] },
      with_("empty: {}", "empty: {\n    a: {\n      b: [1, 2],\n    },\n  }"),
    ],
    [
      "a key in an object on one line",
      ["one", "c"],
      { d: null },
      with_("b: 2 }", "b: 2, c: { d: null } }"),
    ],
    ["a key that needs quotes", ["one", "c d"], 3, with_("b: 2 }", "b: 2, 'c d': 3 }")],
    ["an item", ["list", 1], "B", with_("'b'", "'B'")],
    [
      "one more item",
      ["list", 2],
      "c",
      with_("// second\n", "// second\n    'c',\n"),
    ],
    [
      "a whole object, keeping what stays",
      ["gateway", "auth"],
      { token: "${TOKEN}", mode: "token" },
      with_("// never here\n", "// never here\n      mode: 'token',\n"),
    ],
    [
      "another kind of value",
      ["gateway", "auth"],
      false,
      with_("{\n      token: '${TOKEN}', // never here\n    }", "false"),
    ],
    ["the same value", ["gateway", "port"], 18789, DOCUMENT],
  ];
  for (const [name, path, value, said] of cases) {
    await t.step(name, () => assertEquals(setKey(DOCUMENT, path, value), said));
  }
});

Deno.test("unsetKey takes a key with its remark, and keeps the comments above it", async (t) => {
  const cases: [string, KeyPath, string][] = [
    ["a line", ["gateway", "port"], with_("    port: 18789, // the usual one\n", "")],
    [
      "the only key",
      ["gateway", "auth", "token"],
      with_(
        "{\n      token: '${TOKEN}', // never here\n    }",
        "{}",
      ),
    ],
    ["the last key of a line", ["one", "b"], with_("a: 1, b: 2", "a: 1")],
    ["the first key of a line", ["one", "a"], with_("a: 1, b: 2", "b: 2")],
    ["an item", ["list", 0], with_("    'a', // first\n", "")],
    [
      "an object",
      ["gateway", "auth"],
      with_(
        "    auth: {\n      token: '${TOKEN}', // never here\n    },\n",
        "",
      ),
    ],
    ["what is not there", ["gateway", "nothing", "at", "all"], DOCUMENT],
    ["what is inherited", ["toString"], DOCUMENT],
  ];
  for (const [name, path, said] of cases) {
    await t.step(name, () => assertEquals(unsetKey(DOCUMENT, path), said));
  }
});

Deno.test("other layouts are kept as well", async (t) => {
  const port: KeyPath = ["gateway", "port"];
  const set = (raw: string, path = port, value: unknown = 1) => setKey(raw, path, value);
  const fresh = '{\n  "gateway": {\n    "port": 1\n  }\n}';
  const cases: [string, string, string][] = [
    ["an empty file", set(""), `${fresh}\n`],
    ["an empty object", set("{}"), fresh],
    ["only a comment", set("// c"), `// c\n${fresh}\n`],
    [
      "only a comment on a Windows line",
      set("/* c */\r\n"),
      `/* c */\r\n${fresh.replaceAll("\n", "\r\n")}\r\n`,
    ],
    ["a byte order mark", set("\ufeff{gateway:{port:2}}"), "\ufeff{gateway:{port:1}}"],
    ["a byte order mark alone", set("\ufeff"), `\ufeff${fresh}\n`],
    [
      "JSON stays JSON",
      set('{\n  "gateway": {\n    "bind": "lan"\n  }\n}\n'),
      '{\n  "gateway": {\n    "bind": "lan",\n    "port": 1\n  }\n}\n',
    ],
    [
      "JSON stays JSON when the last key goes",
      unsetKey('{\n  "a": 1,\n  "b": 2\n}\n', ["b"]),
      '{\n  "a": 1\n}\n',
    ],
    [
      "tabs and Windows line ends",
      set("{\r\n\tgateway: {\r\n\t\tbind: 'lan', // b\r\n\t},\r\n}\r\n"),
      "{\r\n\tgateway: {\r\n\t\tbind: 'lan', // b\r\n\t\tport: 1,\r\n\t},\r\n}\r\n",
    ],
    [
      "the users' sample on one line",
      set('{ gateway: { mode: "remote", remote: { url: "ws://a", token: "seu-token" } } }', [
        "gateway",
        "remote",
        "sshTarget",
      ], "me@b"),
      '{ gateway: { mode: "remote", remote: { url: "ws://a", token: "seu-token", sshTarget: "me@b" } } }',
    ],
    [
      "a comment before the comma",
      set("{a: 1 /* x */, b: 2}", ["c"]),
      "{a: 1 /* x */, b: 2, c: 1}",
    ],
    ["a comment before the brace", set("{a: 1 // x\n}", ["c"]), "{a: 1, c: 1 // x\n}"],
    [
      "a missing comma before a remark",
      set("{\n  a: 1 // x\n}", ["c"]),
      "{\n  a: 1, // x\n  c: 1\n}",
    ],
    [
      "a comment inside an empty object",
      set("{\n  gateway: {\n    // nothing yet\n  },\n}"),
      "{\n  gateway: {\n    // nothing yet\n    port: 1,\n  },\n}",
    ],
    [
      "commas in front",
      unsetKey("{\n  a: 1\n  , b: 2\n  , c: 3\n}", ["a"]),
      "{\n  b: 2\n  , c: 3\n}",
    ],
    [
      "a comment over several lines belongs to what follows",
      set("{\n  a: 1, /* about\n  b */\n  b: 2,\n}", ["a"], 5),
      "{\n  a: 5, /* about\n  b */\n  b: 2,\n}",
    ],
    ["a repeated key", unsetKey("{a: 1, b: 2, a: 3}", ["a"]), "{b: 2}"],
    ["a repeated key that is set", set("{a: 1, a: 3}", ["a"], 4), "{a: 1, a: 4}"],
    ["escaped keys", set("{\\u0061: 1, 'b\\\nc': 2}", ["a"], 4), "{\\u0061: 4, 'b\\\nc': 2}"],
    ["null as a parent", set("{gateway: null}"), "{gateway: { port: 1 }}"],
    ["a list that is missing", set("{ a: 1 }", ["l", 0, "id"], "x"), '{ a: 1, l: [{ id: "x" }] }'],
  ];
  for (const [name, said, wanted] of cases) {
    await t.step(name, () => assertEquals(said, wanted));
  }
});

Deno.test("mergePatch deletes with null, merges objects and replaces lists", () => {
  const patched = mergePatch(DOCUMENT, {
    list: ["z", "a", "m", "b"],
    empty: null,
    gateway: { port: 1, auth: { token: null, mode: "none" } },
    logging: { level: "debug", file: null },
  });

  assertEquals(
    patched,
    DOCUMENT.replace("port: 18789", "port: 1")
      .replace("token: '${TOKEN}', // never here", "mode: 'none',")
      .replace("  empty: {},\n", "")
      .replace("    'a', // first", "    'z',\n    'a', // first\n    'm',")
      .replace("  ],\n}", "  ],\n  logging: {\n    level: 'debug',\n  },\n}"),
  );
});

Deno.test("mergePatch gives the results of the examples in RFC 7396", () => {
  const cases: [string, unknown, unknown][] = [
    ['{"a":"b"}', { a: "c" }, { a: "c" }],
    ['{"a":"b"}', { b: "c" }, { a: "b", b: "c" }],
    ['{"a":"b"}', { a: null }, {}],
    ['{"a":"b","b":"c"}', { a: null }, { b: "c" }],
    ['{"a":["b"]}', { a: "c" }, { a: "c" }],
    ['{"a":"c"}', { a: ["b"] }, { a: ["b"] }],
    ['{"a":{"b":"c"}}', { a: { b: "d", c: null } }, { a: { b: "d" } }],
    ['{"a":[{"b":"c"}]}', { a: [1] }, { a: [1] }],
    ['{"e":null}', { a: 1 }, { e: null, a: 1 }],
    ["{}", { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
  ];
  for (const [raw, patch, result] of cases) {
    assertEquals(parseText(mergePatch(raw, patch)), result, raw);
  }
});

Deno.test("an edit that cannot be is refused, and the text says why", () => {
  const refused = (work: () => string, text: string) => assertThrows(work, ConfigError, text);

  refused(() => setKey("{ gateway: 5 }", ["gateway", "port"], 1), "gateway is not an object");
  refused(() => setKey("{ l: [1] }", ["l", 5], 1), "the list has 1 items");
  refused(() => setKey("{ l: [1] }", ["l", "x"], 1), "x is not one of them");
  refused(() => setKey("{\n a: }", ["a"], 1), "line 2");
  refused(() => setKey("[1]", [0], 1), "it is no object");
  refused(() => mergePatch("{}", [1]), "it is no object");
  refused(() => setKey("{}", ["__proto__", "x"], 1), "__proto__ is not a key");
  refused(() => mergePatch("{}", JSON.parse('{"__proto__":{"x":1}}')), "__proto__ is not a key");
  refused(() => setKey("{}", ["a"], () => 1), "JSON5 cannot say");
  assertEquals(({} as { x?: number }).x, undefined);
});

Deno.test("seeded documents keep their value but for the edit, and keep every comment", () => {
  const random = generator(7_396);
  const pick = <T>(list: readonly T[]): T => list[random(list.length)];
  const trivia = () =>
    pick([
      "",
      "",
      "",
      " ",
      "\t",
      "\n  ",
      " /*#*/ ",
      " //#\n",
      "\r\n//#\r\n  ",
      "/*#\n*/",
      "/*{,:*/",
    ]);
  const scalar = () =>
    pick(["1", "-0x1F", "+.5", "NaN", "'x'", '"y\\"z"', "'//n'", "null", "'a\\\nb'", "'😀/*'"]);
  const key = () => pick(["a", "b", "'c d'", '"e"', "$f", "\\u0067", "ünï", "'q\\'s'", "null"]);
  const value = (depth: number): string => {
    const kind = random(depth > 3 ? 1 : 3);
    if (kind === 0) return scalar();
    const members = Array.from({ length: random(4) }, () => {
      const name = kind === 1 ? `${key()}${trivia()}:` : "";
      return `${trivia()}${name}${trivia()}${value(depth + 1)}${trivia()}`;
    });
    const comma = members.length > 0 && random(2) ? `,${trivia()}` : trivia();
    const [open, close] = kind === 1 ? "{}" : "[]";
    return `${open}${members.join(",")}${comma}${close}`;
  };
  const document = () => {
    let text = "";
    while (!text.startsWith("{")) text = value(0);
    return `${trivia()}${text}${trivia()}`;
  };
  const comments = (text: string) => text.split("#").length;

  for (let round = 0; round < 4_000; round++) {
    const text = document();
    const have = parseText(text) as Record<string, unknown>;
    const added = setKey(text, ["added"], pick([1, "s", {}, [], { x: { y: [1, { z: 2 }] } }]));
    const { added: _, ...rest } = parseText(added) as Record<string, unknown>;
    assertEquals(rest, have);
    assert(comments(added) >= comments(text), JSON.stringify([text, added]));

    const wanted = parseText(document()) as Record<string, unknown>;
    const merged = { ...have, ...wanted };
    let edited = text;
    for (const [name, one] of Object.entries(wanted)) edited = setKey(edited, [name], one);
    assertEquals(parseText(edited), merged);
    for (const name of Object.keys(merged)) edited = unsetKey(edited, [name]);
    assertEquals(parseText(edited), {});
  }
});

Deno.test("a text is shown without its secrets and gets them back", () => {
  const raw = DOCUMENT.replace("empty: {}", "hooks: { token: 'h00k', path: '/h' /* # */ }")
    .replace("'${TOKEN}'", "'s3cret'");

  const shown = redactText(raw)!;

  assert(!/h00k|s3cret/.test(shown));
  assertEquals(
    shown,
    raw.replace("'h00k'", `'${REDACTED}'`).replace("'s3cret'", `'${REDACTED}'`),
  );
  assertEquals(restoreSecrets(shown, raw), raw);
  assertEquals(
    restoreSecrets(setKey(shown, ["gateway", "port"], 1), raw),
    setKey(raw, ["gateway", "port"], 1),
  );
  assertEquals(redactText("{ token: 's3cret'"), null);
});

Deno.test("writeConfig makes a file only its owner reads, in a directory of the same kind", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/new/deep/zero.json`;

  const reading = await writeConfig(path, "{ gateway: { port: 1 } }", { env: {} });

  assertEquals(reading.config, { gateway: { port: 1 } });
  assertEquals(reading.hash, await sha256("{ gateway: { port: 1 } }"));
  assertEquals((await Deno.stat(path)).mode! & 0o777, 0o600);
  assertEquals((await Deno.stat(`${folder.path}/new/deep`)).mode! & 0o777, 0o700);
  assertEquals(await folder.names("new/deep"), ["zero.json"]);
});

Deno.test("writeConfig keeps the valid text before it, and no invalid one in its place", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/zero.json`;
  await Deno.writeTextFile(path, "{ gateway: { port: 1 } }", { mode: 0o644 });

  await writeConfig(path, "{ gateway: { port: 2 } }", { env: {} });
  assertEquals(await Deno.readTextFile(`${path}.last-good`), "{ gateway: { port: 1 } }");
  assertEquals((await Deno.stat(`${path}.last-good`)).mode! & 0o777, 0o600);
  assertEquals((await Deno.stat(path)).mode! & 0o777, 0o600);

  await Deno.writeTextFile(path, "{ gateway: ");
  await writeConfig(path, "{ gateway: { port: 3 } }", { env: {} });
  assertEquals(await Deno.readTextFile(`${path}.last-good`), "{ gateway: { port: 1 } }");
  assertEquals(await Deno.readTextFile(`${path}.bak`), "{ gateway: ");
  assertEquals(await folder.names(), ["zero.json", "zero.json.bak", "zero.json.last-good"]);
});

Deno.test("writeConfig writes nothing when the text is wrong in any way", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/zero.json`;
  await Deno.writeTextFile(path, "{}");
  const wrong = [
    "{",
    "{ gatewy: {} }",
    '{ gateway: { bind: "custom" } }',
    `${" ".repeat(2 ** 20)}{}`,
  ];

  for (const text of wrong) {
    await assertRejects(() => writeConfig(path, text, { env: {}, backup: true }), ConfigError);
  }

  assertEquals(await Deno.readTextFile(path), "{}");
  assertEquals(await folder.names(), ["zero.json"]);
});

Deno.test("writeConfig refuses a symbolic link and names what to do", async () => {
  await using folder = await temporaryFolder();
  await Deno.writeTextFile(`${folder.path}/real.json`, "{}");
  await Deno.symlink("real.json", `${folder.path}/zero.json`);

  const error: ConfigError = await assertRejects(
    () => writeConfig(`${folder.path}/zero.json`, "{ ui: {} }", { env: {} }),
    ConfigError,
    "symbolic link to real.json",
  );

  assert(error.message.includes("ZERO_CONFIG_PATH"));
  assertEquals(error.reason, "unwritable");
  assertEquals(await Deno.readTextFile(`${folder.path}/real.json`), "{}");
  assertEquals(await folder.names(), ["real.json", "zero.json"]);
});

Deno.test("of writers who start from the same text, one wins and the others are told", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/zero.json`;
  await Deno.writeTextFile(path, "{}");
  const expectedHash = await sha256("{}");
  const texts = Array.from({ length: 8 }, (_, index) => `{ gateway: { port: ${index + 1} } }`);

  const outcomes = await Promise.allSettled(
    texts.map((text) => writeConfig(path, text, { env: {}, expectedHash })),
  );

  const lost = outcomes.filter(({ status }) => status === "rejected") as PromiseRejectedResult[];
  assertEquals(lost.map(({ reason }) => reason.reason), Array(7).fill("changed"));
  assertEquals(
    lost[0].reason.message,
    "config changed since last load; re-run config.get and retry",
  );
  const winner = outcomes.findIndex(({ status }) => status === "fulfilled");
  assertEquals(await Deno.readTextFile(path), texts[winner]);
});

Deno.test("a reader beside a writer sees whole texts only", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/zero.json`;
  const texts = ["a", "b"].map((letter) => `{ ui: { x: "${letter.repeat(200_000)}" } }`);
  await writeConfig(path, texts[0], { env: {} });

  const writing = (async () => {
    for (let round = 1; round <= 10; round++) {
      await writeConfig(path, texts[round % 2], { env: {} });
    }
  })();
  const seen = new Set<string>();
  for (let round = 0; round < 50; round++) seen.add(await Deno.readTextFile(path));
  await writing;

  assert([...seen].every((text) => texts.includes(text)));
});

Deno.test("a folder that cannot be made is a ConfigError with the reason of the system", async () => {
  await using folder = await temporaryFolder();
  await Deno.writeTextFile(`${folder.path}/file`, "");

  const error: ConfigError = await assertRejects(
    () => writeConfig(`${folder.path}/file/zero.json`, "{}", { env: {} }),
    ConfigError,
    "Cannot write",
  );

  assertEquals(error.reason, "unwritable");
});

async function temporaryFolder() {
  const path = await Deno.makeTempDir();
  return {
    path,
    async names(under = ".") {
      const entries = await Array.fromAsync(Deno.readDir(`${path}/${under}`));
      return entries.map(({ name }) => name).sort();
    },
    [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }),
  };
}

/** Numbers below `below`, the same ones in every run. */
function generator(seed: number) {
  return (below: number) => {
    seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648;
    return Math.floor(seed / 65_536) % below;
  };
}
