// A real sshd on a loopback port, with keys, host keys and a client configuration of its own in a
// temporary directory; and the `ssh` that knows it. ssh takes the home directory from the system's
// list of users and not from HOME, so the `ssh` on the PATH of a test is one that names the
// configuration file.

import { eventually, freePort } from "./process.ts";

/** Why no sshd can be started here; undefined when one can. */
export const sshdObstacle: string | undefined = await findObstacle();

export interface TestSshd extends AsyncDisposable {
  /** An alias of the client configuration that leads here. */
  readonly alias: string;
  readonly port: number;
  readonly dir: string;
  /** The environment whose `ssh` knows the alias. */
  readonly env: Record<string, string>;
  readonly configFile: string;
  readonly knownHosts: string;
  /** Everything sshd has said. */
  readonly log: string;
  /** Makes the host key of this moment the known one. */
  trust(): Promise<void>;
  /** A new host key, in use from the next connection on. */
  changeHostKey(): Promise<void>;
  /** Nobody's key is accepted any more, or the right one is again. */
  acceptKeys(isAccepted: boolean): Promise<void>;
  /** The processes that serve connections. */
  children(): Promise<number[]>;
  killChildren(): Promise<void>;
  stop(): Promise<void>;
  start(): Promise<void>;
}

export interface SshdOptions {
  /** Lines of the server's configuration, in front of all others. */
  server?: readonly string[];
  /** Lines below the alias in the client's. */
  client?: readonly string[];
  isTrusted?: boolean;
}

export async function startSshd(options: SshdOptions = {}): Promise<TestSshd> {
  const { server = [], client = [], isTrusted = true } = options;
  await using stack = new AsyncDisposableStack();
  const dir = await Deno.makeTempDir({ prefix: "zero-sshd-" });
  stack.defer(() => Deno.remove(dir, { recursive: true }));
  const port = freePort();
  const alias = `box-${port}`;
  const configFile = `${dir}/ssh_config`;
  const knownHosts = `${dir}/known_hosts`;
  await keygen(`${dir}/user_key`);
  await keygen(`${dir}/host_key`);
  await Deno.copyFile(`${dir}/user_key.pub`, `${dir}/authorized_keys`);
  await Deno.writeTextFile(knownHosts, "");
  await Deno.writeTextFile(
    `${dir}/sshd_config`,
    [
      ...server,
      `Port ${port}`,
      "ListenAddress 127.0.0.1",
      `HostKey ${dir}/host_key`,
      `AuthorizedKeysFile ${dir}/authorized_keys`,
      `PidFile ${dir}/sshd.pid`,
      "StrictModes no",
      "UsePAM no",
      "PasswordAuthentication no",
      "KbdInteractiveAuthentication no",
      "PermitRootLogin yes",
      "MaxStartups 100",
      "",
    ].join("\n"),
  );
  await Deno.writeTextFile(
    configFile,
    [
      `Host ${alias}`,
      ...client.map((line) => `  ${line}`),
      "  HostName 127.0.0.1",
      `  Port ${port}`,
      `  IdentityFile ${dir}/user_key`,
      "  IdentitiesOnly yes",
      "  IdentityAgent none",
      "Host *",
      `  UserKnownHostsFile ${knownHosts}`,
      "  GlobalKnownHostsFile /dev/null",
      "",
    ].join("\n"),
    { mode: 0o600 },
  );
  await Deno.mkdir(`${dir}/bin`);
  const { PATH = "/usr/bin:/bin" } = Deno.env.toObject();
  await Deno.writeTextFile(
    `${dir}/bin/ssh`,
    `#!/bin/sh\nexec ${await whereIs("ssh")} -F ${configFile} "$@"\n`,
    { mode: 0o755 },
  );
  const daemon = new Daemon(dir);
  stack.defer(() => daemon.stop());
  const sshd: Omit<TestSshd, keyof AsyncDisposable> = {
    alias,
    port,
    dir,
    env: { ...Deno.env.toObject(), HOME: dir, PATH: `${dir}/bin:${PATH}` },
    configFile,
    knownHosts,
    get log() {
      return daemon.log;
    },
    async trust() {
      const [type, key] = (await Deno.readTextFile(`${dir}/host_key.pub`)).split(" ");
      await Deno.writeTextFile(knownHosts, `[127.0.0.1]:${port} ${type} ${key}\n`);
    },
    async changeHostKey() {
      await Deno.remove(`${dir}/host_key`);
      await Deno.remove(`${dir}/host_key.pub`);
      await keygen(`${dir}/host_key`);
      await daemon.stop();
      await daemon.start();
    },
    async acceptKeys(isAccepted) {
      const key = await Deno.readTextFile(`${dir}/user_key.pub`);
      await Deno.writeTextFile(`${dir}/authorized_keys`, isAccepted ? key : "");
    },
    children: () => daemon.children(),
    async killChildren() {
      for (const pid of await daemon.children()) kill(pid);
    },
    stop: () => daemon.stop(),
    start: () => daemon.start(),
  };
  if (isTrusted) await sshd.trust();
  await daemon.start();
  const owned = stack.move();
  return Object.defineProperties({} as TestSshd, {
    ...Object.getOwnPropertyDescriptors(sshd),
    [Symbol.asyncDispose]: { value: () => owned.disposeAsync() },
  });
}

class Daemon {
  log = "";
  readonly #dir: string;
  #child?: Deno.ChildProcess;
  #read?: Promise<void>;

  constructor(dir: string) {
    this.#dir = dir;
  }

  async start(): Promise<void> {
    const from = this.log.length;
    this.#child = new Deno.Command(await whereIs("sshd"), {
      args: ["-D", "-e", "-f", `${this.#dir}/sshd_config`],
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    this.#read = this.#collect(this.#child.stderr);
    await eventually(
      "sshd listens",
      () => this.log.slice(from).includes("Server listening on"),
    ).catch((error) => {
      throw new Error(`${error.message}: ${this.log}`);
    });
  }

  /** The daemon and those who serve its connections. */
  async stop(): Promise<void> {
    const child = this.#child;
    if (!child) return;
    this.#child = undefined;
    const pids = await childrenOf(child.pid);
    child.kill("SIGKILL");
    pids.forEach(kill);
    await child.status;
    await this.#read;
  }

  children(): Promise<number[]> {
    return this.#child ? childrenOf(this.#child.pid) : Promise.resolve([]);
  }

  async #collect(stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<void> {
    const decoder = new TextDecoder();
    for await (const bytes of stream) this.log += decoder.decode(bytes, { stream: true });
  }
}

/** With the privilege separation of sshd there are two for a connection. */
async function childrenOf(pid: number): Promise<number[]> {
  const { stdout } = await new Deno.Command("ps", { args: ["-eo", "pid=,ppid="] }).output();
  const rows = new TextDecoder().decode(stdout).trim().split("\n")
    .map((line) => line.trim().split(/\s+/).map(Number));
  const below = (parent: number): number[] =>
    rows.filter(([, ppid]) => ppid === parent).flatMap(([child]) => [child, ...below(child)]);
  return below(pid);
}

function kill(pid: number): void {
  try {
    Deno.kill(pid, "SIGKILL");
  } catch {
    // It has ended by itself.
  }
}

async function keygen(file: string): Promise<void> {
  const { success, stderr } = await new Deno.Command("ssh-keygen", {
    args: ["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", file],
  }).output();
  if (!success) throw new Error(`ssh-keygen: ${new TextDecoder().decode(stderr)}`);
}

async function findObstacle(): Promise<string | undefined> {
  for (const program of ["ssh", "sshd", "ssh-keygen", "ps"]) {
    if (!await whereIs(program).catch(() => undefined)) return `${program} is not installed`;
  }
  if (Deno.uid() === 0) {
    // What sshd wants to have before it starts as root.
    await Deno.mkdir("/run/sshd", { recursive: true, mode: 0o755 }).catch(() => {});
  }
}

async function whereIs(program: string): Promise<string> {
  const { success, stdout } = await new Deno.Command("sh", {
    args: ["-c", `PATH="$PATH:/usr/sbin:/sbin" command -v ${program}`],
  }).output();
  if (!success) throw new Error(`${program} is not installed`);
  return new TextDecoder().decode(stdout).trim();
}
