// `zero` as a child process, as its users run it: an environment of its own, output kept whole.

const MAIN = new URL("../../main.ts", import.meta.url).pathname;
const CONFIG = new URL("../../deno.json", import.meta.url).pathname;

export interface CliOptions {
  /** HOME of the child, and its state directory unless `env` says otherwise. */
  home: string;
  env?: Readonly<Record<string, string>>;
  stdin?: string;
  /** The network namespace it runs in. */
  namespace?: string;
}

export interface CliResult {
  code: number;
  stdout: string;
  stderr: string;
  /** Standard output as one JSON document. */
  // deno-lint-ignore no-explicit-any
  readonly json: any;
}

export async function zero(
  args: readonly string[],
  { stdin, ...options }: CliOptions,
): Promise<CliResult> {
  const child = spawnZero(args, options, stdin === undefined ? "null" : "piped");
  if (stdin !== undefined) {
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(stdin));
    await writer.close();
  }
  const { code, stdout, stderr } = await child.output();
  const decoder = new TextDecoder();
  const text = decoder.decode(stdout);
  return {
    code,
    stdout: text,
    stderr: decoder.decode(stderr),
    get json() {
      return JSON.parse(text);
    },
  };
}

/** For what runs until it is stopped. */
export function spawnZero(
  args: readonly string[],
  { home, env = {}, namespace }: Omit<CliOptions, "stdin">,
  stdin: "null" | "piped" = "null",
): Deno.ChildProcess {
  const inherited = Deno.env.toObject();
  const cache = inherited.DENO_DIR ??
    `${inherited.XDG_CACHE_HOME ?? `${inherited.HOME}/.cache`}/deno`;
  const program = [Deno.execPath(), "run", "-A", "--no-check", "--config", CONFIG, MAIN];
  const within = namespace ? ["ip", "netns", "exec", namespace] : [];
  const [command, ...before] = [...within, ...program];
  return new Deno.Command(command, {
    args: [...before, ...args],
    cwd: home,
    clearEnv: true,
    env: {
      PATH: inherited.PATH ?? "/usr/bin:/bin",
      HOME: home,
      DENO_DIR: cache,
      NO_COLOR: "1",
      ZERO_STATE_DIR: `${home}/state`,
      ...env,
    },
    stdin,
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}
