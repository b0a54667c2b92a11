import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  ConfigError,
  type ConfigReading,
  formatIssue,
  loadConfig,
  parseConfig,
  readConfig,
  sha256,
} from "../../config/load.ts";

const SAMPLES = new URL("../golden/config/", import.meta.url).pathname;
const SAMPLE_ENV = {
  SAMPLE_TOKEN: "from-the-environment",
  SAMPLE_HOST: "home.example",
  SAMPLE_EMPTY: "",
};

function parse(raw: string, files: Record<string, string> = {}): Promise<ConfigReading> {
  return parseConfig(raw, {
    path: "/conf/zero.json",
    env: { HOME: "/home/me" },
    readText: (path) => Promise.resolve(files[path] ?? null),
  });
}

Deno.test("every sample loads to what its golden file says", async (t) => {
  for await (const { name, isFile } of Deno.readDir(SAMPLES)) {
    if (!isFile || !name.endsWith(".json5")) continue;
    await t.step(name, async () => {
      const { valid, config, issues, warnings, files } = await readConfig({
        path: `${SAMPLES}${name}`,
        env: SAMPLE_ENV,
      });
      const said = {
        valid,
        ...(valid && { config }),
        ...(issues.length > 0 && { issues: issues.map(formatIssue) }),
        ...(warnings.length > 0 && { warnings }),
        ...(files.length > 1 && { files }),
      };
      const text = `${JSON.stringify(said, null, 2).replaceAll(SAMPLES, "")}\n`;
      const golden = `${SAMPLES}${name.replace(/json5$/, "loaded.json")}`;
      if (Deno.args.includes("--update")) await Deno.writeTextFile(golden, text);
      assertEquals(text, await Deno.readTextFile(golden));
    });
  }
});

Deno.test("a file that is not there is an empty configuration with the hash of nothing", async () => {
  const reading = await readConfig({
    path: "/conf/zero.json",
    env: {},
    readText: () => Promise.resolve(null),
  });

  assertEquals([reading.exists, reading.raw, reading.valid], [false, null, true]);
  assertEquals(reading.config, {});
  assertEquals(
    reading.hash,
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
  );
});

Deno.test("the hash is the one of the file, byte order mark and all", async () => {
  const path = `${SAMPLES}byte_order_mark.json5`;
  const digest = await crypto.subtle.digest("SHA-256", await Deno.readFile(path));
  const hex = Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0"));

  assertEquals((await readConfig({ path, env: {} })).hash, hex.join(""));
});

Deno.test("every beginning of a configuration is valid or says in which line it is not", async () => {
  for (const name of ["everything", "includes", "wrong_values", "variables"]) {
    const whole = await Deno.readTextFile(`${SAMPLES}${name}.json5`);
    for (let length = 0; length < whole.length; length++) {
      const reading = await parse(whole.slice(0, length));
      assertEquals(reading.valid, reading.issues.length === 0, whole.slice(0, length));
      for (const { line, file, message } of reading.issues) {
        assert(line !== undefined && line >= 1, `${length}: ${message}`);
        assertEquals(file, "/conf/zero.json");
      }
    }
  }
});

Deno.test("seeded junk never makes reading a configuration throw", async () => {
  const pieces = ["{", "}", "[", "]", ":", ",", "gateway", "port", '"', "'", "\\", "//", "/*"];
  pieces.push("*/", "\n", "1", "${A}", "$include", "__proto__", "\ud800", "-", " ");
  let seed = 20_250_101;
  for (let round = 0; round < 3_000; round++) {
    let text = "";
    for (let left = round % 25; left > 0; left--) {
      seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648;
      text += pieces[Math.floor(seed / 65_536) % pieces.length];
    }
    const { valid, issues } = await parse(text);
    assertEquals(valid, issues.length === 0, text);
  }
});

Deno.test("loadConfig throws every mistake at once, one in a line with file, line and key", async () => {
  const error: ConfigError = await assertRejects(
    () =>
      loadConfig({
        path: "/conf/zero.json",
        env: {},
        readText: () => Promise.resolve('{\n gateway: { port: 0, bind: "moon" },\n hoks: {} }'),
      }),
    ConfigError,
  );

  assertEquals(error.message.split("\n"), [
    "/conf/zero.json:2: gateway.port: must be >= 1; " +
    "use a whole number from 1 to 65535, such as 18789",
    "/conf/zero.json:2: gateway.bind: must be equal to one of the allowed values; " +
    'use one of "loopback", "lan", "tailnet", "auto", "custom"',
    "/conf/zero.json:3: hoks: unknown key; did you mean hooks?",
  ]);
  assertEquals(error.issues.map(({ column }) => column), [13, 22, 2]);
});

Deno.test("a mistake never quotes the value it is about", async () => {
  const reading = await parse(
    '{ gateway: { auth: { token: ["s3cret"], password: {a: "s3cret"}, mode: "s3cret" } } }',
  );

  assertEquals(reading.issues.length, 3);
  assert(!JSON.stringify(reading.issues).includes("s3cret"));
});

Deno.test("a file that cannot be read is a reading that says why", async (t) => {
  const folder = await Deno.makeTempDir();
  const cases: [string, (path: string) => Promise<void>, string][] = [
    ["a directory", (path) => Deno.mkdir(path), "it is a directory"],
    ["not UTF-8", (path) => Deno.writeFile(path, new Uint8Array([0x7b, 0xff])), "not UTF-8 text"],
    [
      "larger than 1 MiB",
      (path) => Deno.writeTextFile(path, " ".repeat(1024 * 1024 + 1)),
      "larger than 1 MiB",
    ],
  ];
  for (const [name, make, message] of cases) {
    await t.step(name, async () => {
      const path = `${folder}/${name}`;
      await make(path);

      const reading = await readConfig({ path, env: {} });

      assertEquals([reading.exists, reading.valid, reading.raw], [true, false, null]);
      assertEquals(reading.issues.map((issue) => issue.message), [message]);
      assert(reading.issues[0].fix);
    });
  }
  await Deno.remove(folder, { recursive: true });
});

Deno.test("a file of exactly 1 MiB is read, and a large one is checked in reasonable time", async () => {
  const path = await Deno.makeTempFile();
  const text = `{ ${Array.from({ length: 50_000 }, (_, n) => `k${n}: 1`).join(", ")}`;
  await Deno.writeTextFile(path, `${text} ${" ".repeat(1024 * 1024 - text.length - 2)}}`);

  const reading = await readConfig({ path, env: {} });

  assertEquals(reading.raw?.length, 1024 * 1024);
  assertEquals(reading.issues.length, 100);
  await Deno.remove(path);
});

Deno.test("a text nested without end is refused", async () => {
  for (const text of [`{ ui: ${"[".repeat(1e5)}${"]".repeat(1e5)} }`, "[".repeat(1e5)]) {
    const reading = await parse(text);

    assertEquals(reading.valid, false);
    assertEquals(reading.issues.length, 1);
  }
});

Deno.test("__proto__ in a file or an included one pollutes nothing and is refused", async () => {
  for (const key of ["__proto__", '"__proto__"', "\\u005f_proto__"]) {
    const reading = await parse(`{ ui: { ${key}: { polluted: 1 } } }`);
    assertEquals(reading.issues.map(({ message }) => message), ["__proto__ is not a key"]);
  }
  const reading = await parse('{ $include: "x.json5", ui: {} }', {
    "/conf/x.json5": "{\n ui: { __proto__: { polluted: 1 } } }",
  });

  assertEquals(reading.issues.map(formatIssue), [
    "/conf/x.json5:2: __proto__ is not a key; remove it",
  ]);
  assertEquals(({} as { polluted?: number }).polluted, undefined);
});

Deno.test("includes are relative to the file they stand in, and ~ is the home directory", async () => {
  const reading = await parse('{ $include: "a/one.json5" }', {
    "/conf/a/one.json5": '{ $include: ["two.json5", "../three.json5", "~/four.json5"] }',
    "/conf/a/two.json5": "{ gateway: { port: 2 } }",
    "/conf/three.json5": "{ gateway: { port: 3, bind: 'lan' } }",
    "/home/me/four.json5": "{ logging: { level: 'warn' } }",
  });

  assertEquals(reading.issues, []);
  assertEquals(reading.config, {
    gateway: { port: 3, bind: "lan" },
    logging: { level: "warn" },
  });
  assertEquals(reading.files, [
    "/conf/zero.json",
    "/conf/a/one.json5",
    "/conf/a/two.json5",
    "/conf/three.json5",
    "/home/me/four.json5",
  ]);
});

Deno.test("ten files may include one another, eleven may not", async () => {
  const files: Record<string, string> = {};
  for (let n = 1; n <= 11; n++) files[`/conf/${n}`] = `{ $include: "${n + 1}" }`;

  files["/conf/10"] = "{ gateway: { port: 10 } }";
  assertEquals((await parse('{ $include: "1" }', files)).config, { gateway: { port: 10 } });

  files["/conf/10"] = '{ $include: "11" }';
  const { issues } = await parse('{ $include: "1" }', files);
  assertEquals(issues.map(({ file }) => file), ["/conf/10"]);
  assert(issues[0].message.includes("nested more than 10 deep"));
});

Deno.test("files that include each other many times over end at a hundred", async () => {
  const files: Record<string, string> = {};
  for (let n = 1; n <= 10; n++) {
    files[`/conf/${n}`] = n === 10 ? "{}" : `{ $include: ["${n + 1}", "${n + 1}", "${n + 1}"] }`;
  }

  const { valid, issues } = await parse('{ $include: "1" }', files);

  assertEquals(valid, false);
  assert(issues[0].message.includes("more than 100 includes"));
});

Deno.test("a variable named like something every object has is not set", async () => {
  const { issues } = await parse('{ identity: { name: "${constructor}" } }');

  assertEquals(issues.map(({ message }) => message), [
    "environment variable constructor is not set",
  ]);
});

Deno.test("where a key is repeated the last one counts, also for the line of a mistake", async () => {
  const { issues } = await parse("{\n gateway: { port: 1 },\n gateway: {\n  port: 0 } }");

  assertEquals(issues.map(({ line }) => line), [4]);
});

Deno.test("sha256 gives the test vector of FIPS 180-4", async () => {
  assertEquals(
    await sha256("abc"),
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
  );
});
