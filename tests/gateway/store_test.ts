import { assertEquals, assertThrows } from "@std/assert";
import { DatabaseSync } from "node:sqlite";
import { Store } from "../../gateway/store.ts";

async function databaseFile() {
  const dir = await Deno.makeTempDir();
  return {
    path: `${dir}/zero.sqlite`,
    [Symbol.asyncDispose]: () => Deno.remove(dir, { recursive: true }),
  };
}

/** The version of a file's schema, changed if one is given. */
function schemaVersion(path: string, version?: number): number {
  const db = new DatabaseSync(path);
  try {
    if (version !== undefined) db.exec(`PRAGMA user_version = ${version}`);
    return Number(db.prepare("PRAGMA user_version").get()?.user_version);
  } finally {
    db.close();
  }
}

Deno.test("a new file gets the whole schema, and opening it again changes nothing", async () => {
  await using file = await databaseFile();
  {
    using store = Store.open(file.path);
    assertEquals(store.meta("k", () => "first"), "first");
  }
  const version = schemaVersion(file.path);

  using again = Store.open(file.path);

  assertEquals(version > 0, true);
  assertEquals(schemaVersion(file.path), version);
  assertEquals(again.meta("k", () => "second"), "first");
});

Deno.test("a file of a newer program is refused and stays as it is", async () => {
  await using file = await databaseFile();
  Store.open(file.path)[Symbol.dispose]();
  schemaVersion(file.path, 1_000);

  assertThrows(
    () => Store.open(file.path),
    Error,
    `Cannot open ${file.path}: it was written by a newer ZERO (schema 1000, known `,
  );
  assertEquals(schemaVersion(file.path), 1_000);
});

Deno.test("a transaction happens as a whole or not at all", () => {
  using store = Store.open(":memory:");
  const put = store.prepare("INSERT INTO meta (key, value) VALUES (?, 'v')");
  const count = () => Number(store.prepare("SELECT count(*) AS n FROM meta").get()?.n);

  assertThrows(
    () =>
      store.transaction(() => {
        put.run("a");
        throw new Error("halfway");
      }),
    Error,
    "halfway",
  );
  assertEquals(count(), 0);
  assertEquals(store.transaction(() => put.run("b").changes), 1);
  assertEquals(count(), 1);
});

Deno.test("a file that is no database is refused", async () => {
  await using file = await databaseFile();
  await Deno.writeTextFile(
    file.path,
    "not a database, but long enough to be read as a header".repeat(9),
  );

  assertThrows(() => Store.open(file.path));
});
