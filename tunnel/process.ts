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
      const { code, stdout, stderr } = await new Deno.Command(command, {
        args: [...args],
        stdin: "null",
        signal: AbortSignal.timeout(timeoutMs),
      }).output();
      const decoder = new TextDecoder();
      return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
    } catch {
      // Not installed, not permitted, or killed by the deadline: there is no result either way.
      return undefined;
    }
  },
};
