// How children are started: one place, so that tests can hand in scripted ones.

export interface ProcessResult {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs programs to their end. */
export interface ProcessRunner {
  /**
   * @param timeoutMs after which the child is killed
   * @returns undefined when the program is not there, may not be run, or took too long
   */
  run(
    command: string,
    args: readonly string[],
    options: { timeoutMs: number },
  ): Promise<ProcessResult | undefined>;
}

/** Children of this process, without a shell and without standard input. */
export const systemRunner: ProcessRunner = {
  async run(command, args, { timeoutMs }) {
    try {
      const deadline = AbortSignal.timeout(timeoutMs);
      const child = new Deno.Command(command, {
        args: [...args],
        stdin: "null",
        stdout: "piped",
        stderr: "piped",
        signal: deadline,
      }).spawn();
      // The streams end with the deadline too: a child of the child may hold them open much longer.
      const [{ code }, stdout, stderr] = await Promise.all([
        child.status,
        textOf(child.stdout, deadline),
        textOf(child.stderr, deadline),
      ]);
      return { code, stdout, stderr };
    } catch {
      // Not installed, not permitted, or killed by the deadline: there is no result either way.
      return undefined;
    }
  },
};

async function textOf(
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
  signal: AbortSignal,
): Promise<string> {
  let text = "";
  const append = new WritableStream<string>({
    write(chunk) {
      text += chunk;
    },
  });
  await stream.pipeThrough(new TextDecoderStream()).pipeTo(append, { signal });
  return text;
}
