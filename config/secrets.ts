// Secrets that the configuration names instead of holding: a variable of the environment, a file, or
// the output of a program. What is read here is handed on and never logged; what goes wrong is told
// without a character of it.

import { ConfigError } from "./load.ts";
import { type Env, resolvePath } from "./paths.ts";
import { formatSecretRef, type SecretRef, type SecretSource, secretSourceOf } from "./schema.ts";

export interface SecretOptions {
  /** For `env` references, for `~`, and what a program is started with. */
  env: Env;
  /** What the secret is for, in messages: `gateway.remote.token`. */
  name: string;
  /** Told of a file that other users can read. */
  warn?(message: string): void;
  /** How long a program may take; 15 s unless told. */
  timeoutMs?: number;
  signal?: AbortSignal;
}

/** A secret is a line of text; what is larger is something else. */
export const MAX_SECRET_BYTES = 64 * 1024;
const EXEC_TIMEOUT_MS = 15_000;

/**
 * The secret a reference stands for; text that is no reference is the secret itself.
 *
 * @throws {ConfigError} there is none: the message names the reference, never what it holds
 */
export async function resolveSecret(ref: SecretRef, options: SecretOptions): Promise<string> {
  const source = secretSourceOf(ref);
  if (source === undefined) throw new ConfigError(`Cannot read ${options.name}: no such reference`);
  return typeof source === "string" ? source : await readSecretSource(source, options);
}

/** As `resolveSecret`, for what is known to be a reference. */
export async function readSecretSource(
  source: SecretSource,
  options: SecretOptions,
): Promise<string> {
  const text = "env" in source
    ? options.env[source.env]
    : "file" in source
    ? await readFile(source, options)
    : await readOutput(source, options);
  const secret = text?.trim() ?? "";
  if (secret === "") {
    throw refused(source, options, "env" in source ? "it is not set" : "it holds nothing");
  }
  // deno-lint-ignore no-control-regex
  if (/[\u0000-\u001f\u007f]/.test(secret)) {
    throw refused(source, options, "it holds more than one line of text");
  }
  return secret;
}

async function readFile(source: { file: string }, options: SecretOptions): Promise<string> {
  const { env, name, warn } = options;
  try {
    const path = resolvePath(source.file, { home: env.HOME });
    using file = await Deno.open(path);
    const { isDirectory, mode } = await file.stat();
    if (isDirectory) throw refused(source, options, "it is a directory");
    if (mode !== null && (mode & 0o077) !== 0) {
      warn?.(`${path} holds ${name}, and other users may read it; fix: chmod 600 ${path}`);
    }
    return await readText(file.readable, source, options);
  } catch (cause) {
    if (cause instanceof ConfigError) throw cause;
    const reason = cause instanceof Deno.errors.NotFound
      ? "there is no such file"
      : cause instanceof Deno.errors.PermissionDenied
      ? "it may not be read"
      : "it cannot be read";
    throw refused(source, options, reason, cause);
  }
}

/** Without a shell, without standard input; what the program says on stderr is for nobody. */
async function readOutput(source: { exec: string[] }, options: SecretOptions): Promise<string> {
  const { env, timeoutMs = EXEC_TIMEOUT_MS, signal } = options;
  const [program, ...args] = source.exec;
  const deadline = AbortSignal.timeout(timeoutMs);
  const over = signal ? AbortSignal.any([signal, deadline]) : deadline;
  let child: Deno.ChildProcess;
  try {
    const path = program.startsWith("~") ? resolvePath(program, { home: env.HOME }) : program;
    child = new Deno.Command(path, {
      args,
      env: Object.fromEntries(
        Object.entries(env).filter((one): one is [string, string] => one[1] !== undefined),
      ),
      clearEnv: true,
      stdin: "null",
      stdout: "piped",
      stderr: "null",
    }).spawn();
  } catch (cause) {
    const isMissing = cause instanceof Deno.errors.NotFound;
    const reason = isMissing ? "there is no such program" : "it does not start";
    throw refused(source, options, reason, cause);
  }
  const kill = () => {
    try {
      child.kill("SIGKILL");
    } catch {
      // It has ended by itself.
    }
  };
  over.addEventListener("abort", kill);
  try {
    const text = await readText(child.stdout, source, options, over);
    const { code } = await child.status;
    if (code !== 0) throw refused(source, options, `it ended with code ${code}`);
    return text;
  } catch (cause) {
    kill();
    await child.status;
    signal?.throwIfAborted();
    if (deadline.aborted) throw refused(source, options, `it took more than ${timeoutMs} ms`);
    throw cause;
  } finally {
    over.removeEventListener("abort", kill);
  }
}

async function readText(
  stream: ReadableStream<Uint8Array>,
  source: SecretSource,
  options: SecretOptions,
  signal?: AbortSignal,
): Promise<string> {
  const parts: Uint8Array[] = [];
  let size = 0;
  const take = new WritableStream<Uint8Array>({
    write(part) {
      size += part.length;
      if (size > MAX_SECRET_BYTES) {
        throw refused(source, options, `it holds more than ${MAX_SECRET_BYTES / 1024} KiB`);
      }
      parts.push(part);
    },
  });
  await stream.pipeTo(take, { signal });
  const whole = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return new TextDecoder().decode(whole);
}

function refused(
  source: SecretSource,
  { name }: SecretOptions,
  reason: string,
  cause?: unknown,
): ConfigError {
  const what = formatSecretRef(source);
  return new ConfigError(`Cannot read the secret ${name} from ${what}: ${reason}`, { cause });
}
