// Runs one command as a child with a process group of its own, so that a deadline ends all of it.

import type { Stream } from "./progress.ts";

export interface RunRequest {
  /** The program by its path, then its arguments. */
  argv: readonly string[];
  cwd?: string;
  env: Record<string, string>;
  /** After which everything the command started is killed; 0 or absent: never. */
  timeoutMs?: number;
  /** Aborted when the node stops. */
  signal?: AbortSignal;
  /** Told what is written as it comes, as far as the outcome will have it. */
  onOutput?(stream: Stream, data: string): void;
}

/** As `system.run` answers it (§9.3). */
export interface RunOutcome {
  /** Absent for a command that was killed or never began. */
  exitCode?: number;
  timedOut: boolean;
  success: boolean;
  stdout: string;
  stderr: string;
  error: string | null;
}

/** Of standard output and standard error together. */
export const MAX_OUTPUT_BYTES = 200_000;
const TRUNCATED = "... (truncated)";
/** What a background process may go on writing after its command has ended. */
const DRAIN_MS = 250;
const MAX_TIMER_MS = 2_147_483_647;

export async function runCommand(request: RunRequest): Promise<RunOutcome> {
  const { argv: [program, ...args], cwd, env, timeoutMs = 0, signal, onOutput } = request;
  const outcome = { timedOut: false, success: false, stdout: "", stderr: "" };
  if (signal?.aborted) return { ...outcome, error: "the node is stopping" };
  let child: Deno.ChildProcess;
  try {
    child = new Deno.Command(program, {
      args,
      cwd,
      env,
      clearEnv: true,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      detached: true, // a session of its own, hence a group that bears its pid
    }).spawn();
  } catch (error) {
    return { ...outcome, error: spawnProblem(error as Error, program, cwd) };
  }
  const budget = { bytes: MAX_OUTPUT_BYTES, isSpent: false };
  const stdout = new Capture(child.stdout, budget, (data) => onOutput?.("stdout", data));
  const stderr = new Capture(child.stderr, budget, (data) => onOutput?.("stderr", data));
  const kill = () => killGroup(child.pid);
  const timer = timeoutMs > 0
    ? setTimeout(() => {
      outcome.timedOut = true;
      kill();
    }, Math.min(timeoutMs, MAX_TIMER_MS))
    : undefined;
  signal?.addEventListener("abort", kill);
  const status = await child.status;
  clearTimeout(timer);
  signal?.removeEventListener("abort", kill);
  await drained(stdout, stderr);

  const code = status.signal === null ? status.code : undefined;
  if (budget.isSpent) {
    const last = stderr.text === "" ? stdout : stderr;
    last.text += `${last.text === "" || last.text.endsWith("\n") ? "" : "\n"}${TRUNCATED}`;
  }
  return {
    ...(code !== undefined && { exitCode: code }),
    timedOut: outcome.timedOut,
    success: code === 0 && !outcome.timedOut,
    stdout: stdout.text,
    stderr: stderr.text,
    error: signal?.aborted
      ? "the node stopped"
      : status.signal !== null && !outcome.timedOut
      ? `it was ended by ${status.signal}`
      : null,
  };
}

/** In words of people: it is shown to whoever wanted the command. */
function spawnProblem({ name, message }: Error, program: string, cwd?: string): string {
  // The system has one word for both; Deno tells them apart in the text alone.
  if (name === "NotFound" && cwd !== undefined && message.includes("No such cwd")) {
    return `there is no directory ${cwd} on this node`;
  }
  if (name === "NotFound") {
    return program.includes("/")
      ? `there is no program ${program} on this node`
      : `there is no program ${program} on the PATH of this node`;
  }
  return message;
}

/** The streams end with the command, unless something it left running still holds them. */
async function drained(...captures: Capture[]): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<void>((resolve) => timer = setTimeout(resolve, DRAIN_MS));
  await Promise.race([Promise.all(captures.map(({ done }) => done)), late]);
  clearTimeout(timer);
  await Promise.all(captures.map((one) => one.stop()));
}

function killGroup(pid: number) {
  try {
    Deno.kill(-pid, "SIGKILL");
  } catch {
    // Nobody of the group is left, which is what was wanted.
  }
}

/** What a stream gives, as far as the budget goes; the rest is read and dropped. */
class Capture {
  text = "";
  readonly done: Promise<void>;
  readonly #reader: ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>>;
  readonly #onText: (text: string) => void;

  constructor(
    stream: ReadableStream<Uint8Array<ArrayBuffer>>,
    budget: { bytes: number; isSpent: boolean },
    onText: (text: string) => void,
  ) {
    this.#reader = stream.getReader();
    this.#onText = onText;
    this.done = this.#read(budget);
  }

  async stop(): Promise<void> {
    await this.#reader.cancel();
    await this.done;
  }

  async #read(budget: { bytes: number; isSpent: boolean }): Promise<void> {
    const decoder = new TextDecoder();
    for (;;) {
      const { value, done } = await this.#reader.read();
      if (done) break;
      const taken = value.subarray(0, budget.bytes);
      budget.bytes -= taken.length;
      if (taken.length < value.length) budget.isSpent = true;
      this.#add(decoder.decode(taken, { stream: true }));
    }
    // Half a character where the budget ended is left out; one the program wrote is shown as such.
    if (!budget.isSpent) this.#add(decoder.decode());
  }

  #add(text: string) {
    this.text += text;
    this.#onText(text);
  }
}
