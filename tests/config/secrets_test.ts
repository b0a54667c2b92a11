import { assertEquals, assertRejects } from "@std/assert";
import { ConfigError } from "../../config/load.ts";
import { Config, type SecretRef, secretSourceOf } from "../../config/schema.ts";
import { MAX_SECRET_BYTES, resolveSecret, type SecretOptions } from "../../config/secrets.ts";
import { problems } from "../../rpc/shape.ts";

const CANARY = "canary-secret-3141";
const PATH = Deno.env.get("PATH") ?? "/usr/bin:/bin";

async function folder(): Promise<AsyncDisposable & { path: string }> {
  const path = await Deno.makeTempDir({ prefix: "zero-secrets-" });
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

function resolve(ref: SecretRef, options: Partial<SecretOptions> = {}): Promise<string> {
  return resolveSecret(ref, { env: { PATH }, name: "remotes.home.token", ...options });
}

/** What a reference that cannot be read says. */
async function complaint(ref: SecretRef, options: Partial<SecretOptions> = {}): Promise<string> {
  const { message } = await assertRejects(() => resolve(ref, options), ConfigError);
  return message;
}

Deno.test("a text that is no reference is the secret itself", async () => {
  for (const text of ["seu-token", "a:b", "envy:X", "http://x", "$x y", "ENV:X", " padded "]) {
    assertEquals(await resolve(text), text);
  }
});

Deno.test("a reference is a variable, a file or a program, as text or as an object", async () => {
  await using at = await folder();
  const file = `${at.path}/token`;
  await Deno.writeTextFile(file, `${CANARY}\n`, { mode: 0o600 });
  const env = { PATH, HOME: at.path, TOKEN: ` ${CANARY} ` };

  for (
    const ref of [
      "env:TOKEN",
      { env: "TOKEN" },
      `file:${file}`,
      { file },
      "file:~/token",
      { file: "~/token" },
      `exec:cat ${file}`,
      { exec: ["cat", file] },
      { exec: ["sh", "-c", "printf '\\n%s \\n' \"$TOKEN\""] },
    ]
  ) assertEquals(await resolve(ref, { env }), CANARY, JSON.stringify(ref));
});

Deno.test("a program is started without a shell, without stdin, and with the environment given", async () => {
  assertEquals(await resolve("exec:printf %s $HOME;id"), "$HOME;id");
  assertEquals(await resolve({ exec: ["sh", "-c", "cat; echo end"] }), "end");
  assertEquals(
    await resolve({ exec: ["sh", "-c", "echo ${ONLY-unset}${HOME-unset}"] }, {
      env: { PATH, ONLY: "only" },
    }),
    "onlyunset",
  );
});

Deno.test("a secret that cannot be read is told by its reference, without a character of it", async () => {
  await using at = await folder();
  const file = `${at.path}/token`;
  await Deno.writeTextFile(file, `${CANARY}\nsecond line\n`, { mode: 0o600 });
  await Deno.writeTextFile(`${at.path}/empty`, " \n", { mode: 0o600 });
  const fail = `echo ${CANARY}; echo ${CANARY} >&2; exit 3`;
  const at_ = "Cannot read the secret remotes.home.token from";

  assertEquals(await complaint("env:NOT_THERE"), `${at_} env:NOT_THERE: it is not set`);
  assertEquals(
    await complaint({ env: "BLANK" }, { env: { BLANK: " " } }),
    `${at_} env:BLANK: it is not set`,
  );
  assertEquals(
    await complaint({ file: `${at.path}/none` }),
    `${at_} file:${at.path}/none: there is no such file`,
  );
  assertEquals(await complaint({ file: at.path }), `${at_} file:${at.path}: it is a directory`);
  assertEquals(
    await complaint({ file }),
    `${at_} file:${file}: it holds more than one line of text`,
  );
  assertEquals(
    await complaint({ file: `${at.path}/empty` }),
    `${at_} file:${at.path}/empty: it holds nothing`,
  );
  assertEquals(
    await complaint({ exec: ["sh", "-c", fail] }),
    `${at_} exec:sh: it ended with code 3`,
  );
  assertEquals(
    await complaint({ exec: ["zero-no-such-program", CANARY] }),
    `${at_} exec:zero-no-such-program: there is no such program`,
  );
  assertEquals(await complaint("exec:true"), `${at_} exec:true: it holds nothing`);
});

Deno.test("a program that does not end is killed, and one that prints without end is cut off", async () => {
  const slow = await complaint({ exec: ["sleep", "600"] }, { timeoutMs: 50 });
  const endless = await complaint({ exec: ["yes", CANARY] });

  assertEquals(
    slow,
    "Cannot read the secret remotes.home.token from exec:sleep: it took more than 50 ms",
  );
  assertEquals(
    endless,
    "Cannot read the secret remotes.home.token from exec:yes: it holds more than " +
      `${MAX_SECRET_BYTES / 1024} KiB`,
  );
});

Deno.test("a caller that goes away ends the program it waits for", async () => {
  const controller = new AbortController();

  const waiting = resolve({ exec: ["sleep", "600"] }, { signal: controller.signal });
  controller.abort(new Error("gone"));

  await assertRejects(() => waiting, Error, "gone");
});

Deno.test("a file that other users may read works, with a warning that names the mend", async () => {
  await using at = await folder();
  const file = `${at.path}/token`;
  await Deno.writeTextFile(file, CANARY);
  const warnings: string[] = [];
  const warn = (message: string) => warnings.push(message);

  for (const mode of [0o644, 0o640, 0o604, 0o600, 0o400]) {
    await Deno.chmod(file, mode);
    assertEquals(await resolve({ file }, { warn }), CANARY);
  }

  const warning = `${file} holds remotes.home.token, and other users may read it; ` +
    `fix: chmod 600 ${file}`;
  assertEquals(warnings, [warning, warning, warning]);
});

Deno.test("the configuration takes references for remote secrets and says what is none", () => {
  const issues = (token: unknown) =>
    problems({ remotes: { home: { token } } }, Config).map(({ message }) => message);

  for (
    const ref of ["plain", "env:A_1", "file:/x", "file:~/x", "exec:pass zero", { env: "A" }, {
      file: "/x",
    }, { exec: ["a", "b c"] }]
  ) assertEquals(issues(ref), [], JSON.stringify(ref));
  for (
    const wrong of [
      "",
      1,
      null,
      [],
      {},
      "env:A B",
      "env:",
      "file:x",
      "exec: ",
      { env: "A-B" },
      {
        file: "x",
      },
      { exec: [] },
      { exec: "pass" },
      { env: "A", file: "/x" },
    ]
  ) {
    assertEquals(issues(wrong), [
      'must be text, {env: "NAME"}, {file: "/path"} or {exec: ["program", "argument"]}',
    ], JSON.stringify(wrong));
  }
  assertEquals(secretSourceOf("env:A B"), undefined);
});
