// `zero` on a terminal of its own, by script(1): for what is only asked where somebody can answer.

import type { CliOptions } from "./cli.ts";
import { within } from "./client.ts";

const MAIN = new URL("../../main.ts", import.meta.url).pathname;
const CONFIG = new URL("../../deno.json", import.meta.url).pathname;

export const hasScript = await new Deno.Command("script", { args: ["--version"] }).output()
  .then(({ success }) => success, () => false);

/**
 * Runs a command on a terminal and answers what it asks.
 *
 * @param answers what to type once a text has been shown, in this order
 */
export async function zeroOnTerminal(
  args: readonly string[],
  { home, env = {} }: CliOptions,
  answers: readonly [shown: string, typed: string][],
): Promise<{ code: number; output: string }> {
  const inherited = Deno.env.toObject();
  const words = [Deno.execPath(), "run", "-A", "--no-check", "--config", CONFIG, MAIN, ...args];
  const command = words.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(" ");
  const child = new Deno.Command("script", {
    args: ["-qec", command, "/dev/null"],
    cwd: home,
    clearEnv: true,
    env: {
      PATH: inherited.PATH ?? "/usr/bin:/bin",
      HOME: home,
      DENO_DIR: inherited.DENO_DIR ??
        `${inherited.XDG_CACHE_HOME ?? `${inherited.HOME}/.cache`}/deno`,
      SHELL: "/bin/sh",
      TERM: "xterm",
      NO_COLOR: "1",
      ZERO_STATE_DIR: `${home}/state`,
      ...env,
    },
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const writer = child.stdin.getWriter();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let output = "";
  const read = async () => {
    const { value, done } = await within(reader.read(), `more than this: ${output}`);
    output += value ?? "";
    return !done;
  };
  try {
    for (const [shown, typed] of answers) {
      const from = output.length;
      while (!output.slice(from > 0 ? from - 1 : 0).includes(shown)) {
        if (!await read()) throw new Error(`it ended without ${shown}: ${output}`);
      }
      await writer.write(new TextEncoder().encode(typed));
    }
    while (await read());
  } catch (error) {
    child.kill("SIGKILL");
    throw error;
  } finally {
    await writer.close().catch(() => {}); // it has ended already
    reader.releaseLock();
  }
  const { code } = await child.status;
  return { code, output: output.replaceAll("\r\n", "\n") };
}
