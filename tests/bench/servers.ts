// The processes that are measured, and what can be seen of a process from outside. Servers get a core
// of their own where the machine has two.

import project from "../../deno.json" with { type: "json" };

const ROOT = new URL("../../", import.meta.url);
const SERVER_CORE = "0";
const LOAD_CORE = "1";
const START_DEADLINE_MS = 10_000;
/** What the gateways of a run let in. */
export const TOKEN = "a-token-for-the-bench-alone";

/** Words to put before a command so that it runs on certain cores. */
export interface Cores {
  isPinned: boolean;
  server: string[];
  all: string[];
}

/** A server in a process of its own. */
export interface Server extends AsyncDisposable {
  readonly port: number;
  /** Resident bytes. */
  memory(): number;
  /** Milliseconds of processor time so far, to the nearest ten. */
  workedMs(): number;
}

/** Keeps this process, which makes the load, to its core. */
export async function pinLoad(): Promise<Cores> {
  const pin = ["-a", "-c", "-p", LOAD_CORE, String(Deno.pid)];
  const isPinned = navigator.hardwareConcurrency > 1 &&
    await new Deno.Command("taskset", { args: pin, stdout: "null" }).output()
      .then(({ success }) => success, () => false);
  if (!isPinned) return { isPinned, server: [], all: [] };
  const last = navigator.hardwareConcurrency - 1;
  return { isPinned, server: ["taskset", "-c", SERVER_CORE], all: ["taskset", "-c", `0-${last}`] };
}

/** The command line that runs a file of the bench. */
export function denoRun(path: string): string[] {
  return [Deno.execPath(), "run", "-A", new URL(path, import.meta.url).pathname];
}

/** `zero` from the sources, with the flags that its task in `deno.json` has. */
export function zeroFromSources(): string[] {
  const [, ...words] = project.tasks.zero.split(" ");
  const at = words.indexOf("main.ts");
  return [Deno.execPath(), ...words.slice(0, at), new URL("main.ts", ROOT).pathname];
}

export function startBare({ server }: Cores): Promise<Server> {
  return startServer([...server, ...denoRun("bare.ts")], {});
}

export function startRelay({ server }: Cores): Promise<Server> {
  return startServer([...server, ...denoRun("relay.ts")], {});
}

/**
 * A gateway with a new state directory, from the sources if `program` does not say otherwise.
 *
 * @param port 0 for any
 * @param stateDir one that is there already, and stays
 */
export async function startGateway(
  cores: string[],
  { program = zeroFromSources(), port = 0, stateDir: own }: {
    program?: string[];
    port?: number;
    stateDir?: string;
  } = {},
): Promise<Server> {
  const stateDir = own ?? await Deno.makeTempDir({ prefix: "zero-bench-" });
  const env = environment(stateDir);
  const command = [...cores, ...program, "gateway", "run", "--port", String(port)];
  const server = await startServer(command, env);
  return {
    ...server,
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      if (own === undefined) await Deno.remove(stateDir, { recursive: true });
    },
  };
}

/** What a program of ours sees of this machine: nothing of a gateway that really runs here. */
export function environment(stateDir: string): Record<string, string> {
  const foreign = Object.entries(Deno.env.toObject()).filter(([name]) => !name.startsWith("ZERO_"));
  return { ...Object.fromEntries(foreign), ZERO_STATE_DIR: stateDir, ZERO_GATEWAY_TOKEN: TOKEN };
}

/** Milliseconds that a command takes, which must succeed. */
export async function wallTime([file, ...args]: string[], env = {}): Promise<number> {
  const begin = performance.now();
  const { success } = await new Deno.Command(file, { args, env, stdout: "null" }).output();
  if (!success) throw new Error(`${args.join(" ")} failed`);
  return performance.now() - begin;
}

/** Starts a program that prints its address, and waits for it. */
async function startServer(
  [file, ...args]: string[],
  env: Record<string, string>,
): Promise<Server> {
  const clearEnv = Object.keys(env).length > 0;
  const process = new Deno.Command(file, { args, env, clearEnv, stdin: "null", stdout: "piped" })
    .spawn();
  const stop = async () => {
    try {
      process.kill("SIGKILL");
    } catch {
      // It has ended by itself.
    }
    await process.status;
  };
  try {
    const port = await readPort(process.stdout);
    return {
      port,
      memory: () => residentBytes(process.pid),
      workedMs: () => processorMs(process.pid),
      [Symbol.asyncDispose]: stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function readPort(output: ReadableStream<Uint8Array>): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const deadline = setTimeout(
    () => reject(new Error("The server does not start")),
    START_DEADLINE_MS,
  );
  let said = "";
  const reading = output.pipeThrough(new TextDecoderStream()).pipeTo(
    new WritableStream({
      write(text) {
        if (said.length > 10_000) return;
        said += text;
        const address = /ws:\/\/127\.0\.0\.1:(\d+)/.exec(said);
        if (address) resolve(Number(address[1]));
      },
    }),
  );
  reading.finally(() => reject(new Error(`The server ended: ${said}`))).catch(() => {});
  try {
    return await promise;
  } finally {
    clearTimeout(deadline);
  }
}

/** A port that nobody listens on at the moment. */
export function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

function residentBytes(pid: number): number {
  const status = Deno.readTextFileSync(`/proc/${pid}/status`);
  return Number(/VmRSS:\s*(\d+) kB/.exec(status)?.[1]) * 1_024;
}

function processorMs(pid: number): number {
  const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
  // Behind the name, which may hold anything, come state and numbers: utime and stime in 1/100 s.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10;
}
