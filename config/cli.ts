// The `zero config` commands: look at the configuration file, change it, check it.

import { type Command, command, EXIT_FAILURE, JSON_FLAG, UsageError } from "./command.ts";
import type { ConfigReading } from "./load.ts";
import type { Env, Paths } from "./paths.ts";
import type { KeyPath } from "./schema.ts";
import type { Terminal } from "./terminal.ts";

/** @param place where this command line keeps its files, asked when a command runs */
export function configCommands({ place }: { place: () => Paths }): Command[] {
  return [
    command({
      path: ["config", "get"],
      summary: "Show the configuration, or one setting and where its value comes from",
      usage: "[KEY]",
      flags: {
        ...JSON_FLAG,
        "show-secrets": { kind: "boolean", summary: "Show tokens and passwords too" },
      },
      details: "Without KEY it is what the file says, with its includes and variables put in. " +
        "With KEY it is the value that counts: a variable of the environment wins over the file, " +
        "the file over the default. A setting that has no value ends with exit code 1.",
      examples: ["zero config get", "zero config get gateway.port --json"],
      async run({ args: [key], flags }, terminal) {
        const { configPath, env } = place();
        const { loadConfig } = await import("./load.ts");
        const { redact } = await import("./schema.ts");
        const reading = await loadConfig({ path: configPath, env });
        if (key === undefined) {
          terminal.json(flags["show-secrets"] ? reading.config : redact(reading.config));
          return;
        }
        const path = await readKey(key);
        const { explainKey } = await import("./settings.ts");
        const { value, source } = explainKey(key, { env, reading });
        if (value === undefined) {
          await refuseUnknown(path);
          terminal.err(`${key} is not set`);
          if (flags.json) terminal.json({ key, value: null, source });
          return EXIT_FAILURE;
        }
        const shown = flags["show-secrets"] ? value : redact(value, path);
        if (flags.json) {
          terminal.json({ key, value: shown, source });
          return;
        }
        const text = typeof shown === "string" ? shown : JSON.stringify(shown, null, 2);
        const origin = terminal.isInteractive ? `  ${terminal.style.dim(`from: ${source}`)}` : "";
        terminal.out(text + origin);
        if (flags.verbose && !terminal.isInteractive) terminal.err(`${key} comes from: ${source}`);
      },
    }),

    command({
      path: ["config", "set"],
      summary: "Set a value; comments and layout of the file stay",
      usage: "KEY [VALUE]",
      flags: JSON_FLAG,
      details:
        "VALUE is read as JSON5, and as plain text where it is none; with --json it must be " +
        "JSON, and the answer is. VALUE - is read from standard input. A secret may be left out: " +
        "it is asked for, so that it is not seen on the command line. The whole configuration is " +
        "checked before anything is written.",
      examples: [
        "zero config set gateway.port 18790",
        "zero config set gateway.remote '{ url: \"wss://gate.example\" }'",
        "zero config set gateway.auth.token",
      ],
      async run({ args: [key, given], flags }, terminal) {
        const path = await readKey(key);
        const text = await readValueText({ path, key, given }, terminal);
        const value = await parseValue(text, path, { isStrict: flags.json });
        const { setKey } = await import("./edit.ts");
        const edit = (raw: string) => setKey(raw, path, value);
        await change({ key, path, edit, isJson: flags.json, paths: place() }, terminal);
      },
    }),

    command({
      path: ["config", "unset"],
      summary: "Remove a value, so that its default counts again",
      usage: "KEY",
      flags: JSON_FLAG,
      examples: ["zero config unset gateway.remote.url"],
      async run({ args: [key], flags }, terminal) {
        const path = await readKey(key);
        const { unsetKey } = await import("./edit.ts");
        const edit = (raw: string) => unsetKey(raw, path);
        await change({ key, path, edit, isJson: flags.json, paths: place() }, terminal);
      },
    }),

    command({
      path: ["config", "validate"],
      summary: "Check the configuration; exit code 1 when something is wrong",
      flags: JSON_FLAG,
      async run({ flags }, terminal) {
        const { configPath, env } = place();
        const { ConfigError, formatIssue, readConfig } = await import("./load.ts");
        const { gatewaySettings } = await import("./settings.ts");
        const { valid, exists, config, issues, warnings } = await readConfig({
          path: configPath,
          env,
        });
        const all = [...issues];
        try {
          if (valid) gatewaySettings({ env, config });
        } catch (error) {
          if (!(error instanceof ConfigError)) throw error;
          all.push(...error.issues);
        }
        const isRight = all.length === 0;
        if (flags.json) {
          terminal.json({ ok: isRight, path: configPath, exists, valid, issues: all, warnings });
          return isRight ? undefined : EXIT_FAILURE;
        }
        for (const issue of all) terminal.err(formatIssue(issue));
        tellWarnings(warnings, terminal);
        if (!isRight) return EXIT_FAILURE;
        terminal.out(exists ? `${configPath} is valid` : `${configPath}: no file, defaults count`);
      },
    }),

    command({
      path: ["config", "path"],
      summary: "Show where the configuration file is",
      flags: JSON_FLAG,
      run({ flags }, terminal) {
        const { configPath: path, stateDir } = place();
        if (flags.json) terminal.json({ path, stateDir });
        else terminal.out(path);
        return Promise.resolve();
      },
    }),

    command({
      path: ["config", "edit"],
      summary: "Edit the configuration file in your editor",
      flags: {},
      details:
        "Opens a copy in $VISUAL or $EDITOR. When the editor ends, the copy is checked, and " +
        "only a configuration that is right takes the place of the file.",
      async run(_invocation, terminal) {
        await editFile(place(), terminal);
      },
    }),
  ];
}

interface Change {
  key: string;
  path: KeyPath;
  edit: (raw: string) => string;
  isJson: boolean;
  paths: Paths;
}

/** Edits the file, and says what changed. */
async function change({ key, path, edit, isJson, paths }: Change, terminal: Terminal) {
  const { configPath, env } = paths;
  const { ConfigError, readConfig } = await import("./load.ts");
  const { writeConfig } = await import("./edit.ts");
  const { isSecret, redact } = await import("./schema.ts");
  const reading = await readConfig({ path: configPath, env });
  if (reading.raw === null && reading.exists) throw new ConfigError(reading.issues);
  const text = edit(reading.raw ?? "");
  const before = valueAt(reading.parsed, path);
  const isChanged = text !== (reading.raw ?? "");
  const written = isChanged
    ? await writeConfig(configPath, text, { env, expectedHash: reading.hash })
    : reading;
  const after = valueAt(written.parsed, path);

  tellWarnings(written.warnings, terminal);
  if (after !== undefined) await tellWinner(key, { env, reading: written }, terminal);
  if (isJson) {
    const shown = { before: redact(before, path), value: redact(after, path) };
    terminal.json({ ok: true, key, changed: isChanged, ...shown, path: configPath });
    return;
  }
  const show = (value: unknown) =>
    isSecret(path) ? "(secret)" : shorten(JSON.stringify(redact(value, path)));
  if (!isChanged) {
    terminal.out(after === undefined ? `${key} was not set` : `${key} was ${show(after)} already`);
  } else if (after === undefined) {
    terminal.out(`${key}: removed (was ${show(before)})`);
  } else if (before === undefined) {
    terminal.out(`${key}: set to ${show(after)}`);
  } else {
    const text = isSecret(path) ? "replaced" : `${show(before)} → ${show(after)}`;
    terminal.out(`${key}: ${text}`);
  }
}

/** A value in the file that something else overrules is worth a word. */
async function tellWinner(
  key: string,
  { env, reading }: { env: Env; reading: ConfigReading },
  terminal: Terminal,
): Promise<void> {
  const { explainKey } = await import("./settings.ts");
  const { source } = explainKey(key, { env, reading });
  const { yellow } = terminal.errStyle;
  if (!source.startsWith("env ")) return;
  terminal.err(`${yellow("note:")} ${source.slice(4)} in the environment wins over the file`);
}

/** Runs the editor on a copy until it is right, unchanged or given up. */
async function editFile({ configPath, env }: Paths, terminal: Terminal): Promise<void> {
  const editor = env.VISUAL?.trim() || env.EDITOR?.trim();
  if (!editor) {
    throw new UsageError("Cannot edit the configuration: neither VISUAL nor EDITOR is set", {
      hint: `Set one, or change single values with "zero config set"`,
    });
  }
  const { formatIssue, parseConfig, readConfig } = await import("./load.ts");
  const { writeConfig } = await import("./edit.ts");
  const { raw, exists, hash, issues } = await readConfig({ path: configPath, env });
  const { ConfigError } = await import("./load.ts");
  if (raw === null && exists) throw new ConfigError(issues);
  const original = raw ?? "{\n}\n";

  // Beside the file, not in a shared directory: it holds the same secrets.
  const directory = configPath.slice(0, configPath.lastIndexOf("/")) || "/";
  await Deno.mkdir(directory, { recursive: true, mode: 0o700 });
  const copy = await Deno.makeTempFile({ dir: directory, prefix: ".edit-", suffix: ".json5" });
  await Deno.writeTextFile(copy, original);
  let isKept = false;
  try {
    while (true) {
      await runEditor(editor, copy);
      const text = await Deno.readTextFile(copy);
      if (text === original) {
        terminal.out("Nothing was changed");
        return;
      }
      const reading = await parseConfig(text, { path: configPath, env });
      if (reading.valid) {
        isKept = true;
        await writeConfig(configPath, text, { env, expectedHash: hash });
        isKept = false;
        tellWarnings(reading.warnings, terminal);
        terminal.out(`${configPath} was written`);
        return;
      }
      for (const issue of reading.issues) terminal.err(formatIssue(issue));
      const answer = await terminal.ask("Edit again? [Y/n]");
      if (answer === null || /^n/i.test(answer)) {
        isKept = true;
        throw new ConfigError(`Cannot write ${configPath}: what was edited is not right`);
      }
    }
  } finally {
    if (isKept) terminal.err(`What you wrote is kept in ${copy}`);
    else await Deno.remove(copy);
  }
}

async function runEditor(editor: string, file: string): Promise<void> {
  // As git does: the variable may hold options, and so is a command of the shell.
  const { code } = await new Deno.Command("sh", {
    args: ["-c", `${editor} "$1"`, "sh", file],
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  }).output();
  if (code !== 0) {
    throw new Error(`Cannot edit the configuration: the editor ended with exit code ${code}`);
  }
}

async function readKey(key: string): Promise<KeyPath> {
  const { parseKey } = await import("./schema.ts");
  const path = parseKey(key);
  if (path) return path;
  throw new UsageError(
    `Cannot read the key ${JSON.stringify(key)}: it is not the name of a setting`,
    {
      hint: 'Write it as gateway.port, agents.list[0].id or remotes["my.host"].url',
    },
  );
}

/** @throws {UsageError} when the schema knows no such setting, with the near one */
async function refuseUnknown(path: KeyPath): Promise<void> {
  const { formatKey, schemaAt, settingNames } = await import("./schema.ts");
  const { nearest } = await import("./command.ts");
  const depth = path.findIndex((_, index) => schemaAt(path.slice(0, index + 1)) === undefined);
  const names = depth < 0 ? [] : settingNames(path.slice(0, depth));
  if (names.length === 0) return;
  const near = nearest(String(path[depth]), names);
  throw new UsageError(`Cannot find ${formatKey(path)}: there is no such setting`, {
    hint: near && `Did you mean ${formatKey([...path.slice(0, depth), near])}?`,
  });
}

async function readValueText(
  { path, key, given }: { path: KeyPath; key: string; given?: string },
  terminal: Terminal,
): Promise<string> {
  if (given === "-") return await terminal.readStdin();
  if (given !== undefined) return given;
  if (key.includes("=")) {
    // What follows the = may be a secret: it is not repeated.
    throw new UsageError("Cannot set a value: KEY and VALUE are two words, without =", {
      hint: "Usage: zero config set KEY VALUE",
    });
  }
  const { isSecret } = await import("./schema.ts");
  const asked = isSecret(path) ? await terminal.askSecret(`${key}:`) : null;
  if (asked) return asked;
  throw new UsageError(`Cannot set ${key}: VALUE is missing`, {
    hint: `Usage: zero config set KEY VALUE, or "-" to read the value from standard input`,
  });
}

async function parseValue(
  text: string,
  path: KeyPath,
  { isStrict }: { isStrict: boolean },
): Promise<unknown> {
  if (isStrict) {
    try {
      return JSON.parse(text);
    } catch {
      // The reason would quote the value, which may be a secret.
      throw new UsageError("Cannot read the value: with --json it must be JSON", {
        hint: `Text is written in quotes of its own: '"text"'`,
      });
    }
  }
  const { default: JSON5 } = await import("json5");
  const { schemaAt } = await import("./schema.ts");
  let value: unknown;
  try {
    value = JSON5.parse(text);
  } catch {
    // Plain text, as the help says.
    return text;
  }
  // A token of nothing but digits is a text all the same.
  const isText = schemaAt(path)?.type === "string" && typeof value !== "string";
  return isText && value !== null ? text : value;
}

function tellWarnings(warnings: readonly string[], terminal: Terminal): void {
  for (const warning of warnings) {
    terminal.err(`${terminal.errStyle.yellow("warning:")} ${warning}`);
  }
}

function valueAt(value: unknown, path: KeyPath): unknown {
  for (const key of path) {
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, key)) return undefined;
    value = (value as Record<string | number, unknown>)[key];
  }
  return value;
}

function shorten(text: string): string {
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}
