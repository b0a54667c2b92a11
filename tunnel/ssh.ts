// The `ssh` of this machine as the carrier of one forward: what it is told, how it is started and
// ended, and what its last words mean (D8). What becomes of a tunnel over time is in supervisor.ts.

import type { Env } from "../config/paths.ts";
import { type SshErrorKind, TunnelError } from "./error.ts";

export interface Forward {
  /** `[user@]host[:port]`, or an alias of the user's ssh configuration. */
  target: string;
  /** A private key file. */
  identity?: string;
  /** On 127.0.0.1 of this machine. */
  localPort: number;
  /** On 127.0.0.1 of the other one. */
  remotePort: number;
  /** Accept the host key of a machine that was never met. */
  acceptNew?: boolean;
  /** ssh may ask on the terminal of this process. */
  isInteractive: boolean;
  /** How long ssh may take for connecting and the exchange of keys, in seconds. */
  connectTimeoutS: number;
}

/** What stopped ssh, with the command that mends it. */
export interface SshFailure {
  kind: SshErrorKind;
  message: string;
  fix: string;
  /** Another attempt would end alike: a person has to do something first. */
  isFinal: boolean;
}

/** How often ssh asks the other side for a sign of life, and how many may go unanswered. */
const ALIVE_EVERY_S = 10;
const ALIVE_COUNT = 3;
const MAX_STDERR_CHARS = 16_384;
/** What ssh gets to close its connection before it is killed. */
const TERM_MS = 500;

/**
 * Reads a target as ssh is to be given it. An alias stays as it is, byte for byte; only the port of
 * `host:port`, which ssh itself does not know, is taken off.
 *
 * @throws {TunnelError} kind `target`: what could be taken for an option, or for a shell's words
 */
export function readTarget(target: string): { destination: string; port?: number } {
  const refuse = (reason: string): never => {
    throw new TunnelError(
      "target",
      `Cannot use ${JSON.stringify(shown(target))} as an ssh target: ${reason}`,
      "Write it as [user@]host[:port], or as an alias of ~/.ssh/config",
    );
  };
  if (target === "") refuse("it is empty");
  if (/[\s\u0000-\u001f\u007f-\u009f]/.test(target)) {
    refuse("it has white space or a control character in it");
  }
  if (/['"`$;&<>|(){}]/.test(target)) refuse("it has a character in it that a shell could act on");
  if (target.startsWith("-")) refuse("it begins with -");
  const isUri = target.startsWith("ssh://");
  const at = target.lastIndexOf("@");
  const host = target.slice(at + 1);
  if (at === 0 || host === "") refuse("the user or the host is missing");
  if (host.startsWith("-") || /@-/.test(target)) refuse("its host begins with -");
  if (isUri) return { destination: target };
  const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d+)$/.exec(host) ?? [];
  if (digits === undefined) {
    const [, alone] = /^\[([^\]]+)\]$/.exec(host) ?? [];
    return { destination: alone ? target.slice(0, at + 1) + alone : target };
  }
  const port = Number(digits);
  if (port < 1 || port > 65_535) refuse(`${digits} is no port`);
  const name = bracketed ?? plain;
  if (name.startsWith("-")) refuse("its host begins with -");
  return { destination: target.slice(0, at + 1) + name, port };
}

/** The words behind `ssh`. */
export function sshArguments(forward: Forward): string[] {
  const { target, identity, localPort, remotePort, acceptNew, isInteractive } = forward;
  const { destination, port } = readTarget(target);
  const hostKeys = acceptNew ? "accept-new" : isInteractive ? "ask" : "yes";
  const options = [
    "ExitOnForwardFailure=yes",
    `ServerAliveInterval=${ALIVE_EVERY_S}`,
    `ServerAliveCountMax=${ALIVE_COUNT}`,
    `ConnectTimeout=${forward.connectTimeoutS}`,
    // A connection of its own: whoever ends the shared one would end the tunnel.
    "ControlMaster=no",
    "ControlPath=none",
    `StrictHostKeyChecking=${hostKeys}`,
    // What is said at a lower level is needed to tell what went wrong.
    "LogLevel=INFO",
    ...isInteractive ? [] : ["BatchMode=yes"],
  ];
  return [
    "-N",
    "-L",
    `127.0.0.1:${localPort}:127.0.0.1:${remotePort}`,
    ...options.flatMap((option) => ["-o", option]),
    ...identity === undefined ? [] : ["-i", identity],
    ...port === undefined ? [] : ["-p", String(port)],
    "--",
    destination,
  ];
}

/** What the command line of ssh has for the same target, for fixes that a person types. */
export function typedTarget(target: string): string {
  const { destination, port } = readTarget(target);
  return port === undefined ? destination : `-p ${port} ${destination}`;
}

/**
 * Becomes ssh (`exec`: one process, whose id is the child's), and leaves a watcher behind that ends it
 * when the program that started it is gone, however that ended. `$1` is what the watcher kills.
 */
const WATCHED = `
exec 3<&0 </dev/null
target=$$; [ "$1" = group ] && target=-$$; shift
{ trap '' TERM
  if ! read -r word <&3; then
    kill -TERM "$target"; sleep 1; kill -KILL "$target"
  fi; } >/dev/null 2>&1 &
exec ssh "$@" 3<&-
`;
/** Not for a program that needs none of them. */
const SECRETS = ["ZERO_GATEWAY_TOKEN", "ZERO_GATEWAY_PASSWORD"];

/** One run of ssh. */
export class SshProcess {
  readonly pid: number;
  /** Resolves when ssh has ended and all it said was read; never rejects. */
  readonly ended: Promise<{ code: number | null; stderr: string }>;
  readonly #child: Deno.ChildProcess;
  readonly #isGroup: boolean;
  readonly #onText?: (text: string) => void;
  #stderr = "";
  #isOver = false;

  /** @param onText is given what ssh says on standard error, as it comes */
  constructor(
    forward: Forward,
    { env, cwd, onText }: { env: Env; cwd?: string; onText?: (text: string) => void },
  ) {
    this.#onText = onText;
    // A session of its own has no terminal that ssh could ask on.
    this.#isGroup = !forward.isInteractive;
    this.#child = new Deno.Command("/bin/sh", {
      args: ["-c", WATCHED, "ssh", this.#isGroup ? "group" : "alone", ...sshArguments(forward)],
      clearEnv: true,
      env: withoutSecrets(env),
      ...cwd !== undefined && { cwd },
      detached: this.#isGroup,
      stdin: "piped",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    this.pid = this.#child.pid;
    this.ended = this.#end();
  }

  /** The last of what ssh has said. */
  get stderr(): string {
    return this.#stderr;
  }

  /** Forgets what was said so far, so that it does not explain what comes later. */
  forget(): void {
    this.#stderr = "";
  }

  /** SIGKILL, which also ends a process that is stopped. */
  kill(): void {
    if (this.#isOver) return;
    try {
      Deno.kill(this.#isGroup ? -this.pid : this.pid, "SIGKILL");
    } catch {
      // It has ended this moment.
    }
  }

  /** Lets ssh say goodbye, for a moment. */
  async stop(): Promise<void> {
    if (!this.#isOver) {
      try {
        Deno.kill(this.pid, "SIGTERM");
      } catch {
        // It has ended this moment.
      }
    }
    const timer = setTimeout(() => this.kill(), TERM_MS);
    await this.ended;
    clearTimeout(timer);
  }

  async #end(): Promise<{ code: number | null; stderr: string }> {
    const read = this.#read();
    const { code, signal } = await this.#child.status;
    this.#isOver = true;
    // A word, so that the watcher does not look for somebody to kill.
    const writer = this.#child.stdin.getWriter();
    await writer.write(new TextEncoder().encode("over\n")).catch(() => {}); // killed with the group
    await writer.close().catch(() => {});
    await read;
    return { code: signal === null ? code : null, stderr: this.#stderr };
  }

  async #read(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const bytes of this.#child.stderr) {
      const text = decoder.decode(bytes, { stream: true });
      this.#stderr = (this.#stderr + text).slice(-MAX_STDERR_CHARS);
      this.#onText?.(text);
    }
  }
}

/**
 * What ssh's end means.
 *
 * @param stderr everything it said, or the end of that
 * @param code null when a signal ended it
 */
export function classify(
  { code, stderr }: { code: number | null; stderr: string },
  forward: Pick<Forward, "target" | "localPort" | "remotePort" | "identity">,
): SshFailure {
  const { target, localPort, remotePort, identity } = forward;
  const typed = typedTarget(target);
  const failure = (
    kind: SshErrorKind,
    reason: string,
    fix: string,
    { isFinal = false } = {},
  ): SshFailure => ({
    kind,
    message: `Cannot keep up the tunnel to ${target}: ${reason}`,
    fix,
    isFinal,
  });
  const says = (pattern: RegExp) => pattern.test(stderr);
  const said = lastLine(stderr);

  if (code === 127 && says(/not found/i)) {
    return failure("ssh-missing", "there is no ssh on PATH", "Install OpenSSH's client", {
      isFinal: true,
    });
  }
  if (says(/REMOTE HOST IDENTIFICATION HAS CHANGED|host key for .* has changed/i)) {
    const [, host] = /host key for (\S+) has changed/i.exec(stderr) ?? [];
    const [, file] = /Offending \S+ key in (.+):\d+/i.exec(stderr) ?? [];
    const name = host ?? destinationHost(target);
    return failure(
      "host-key-changed",
      "its host key is another than before; it may be another machine",
      `Once its owner confirmed the new key: ssh-keygen -R '${name}'${file ? ` -f '${file}'` : ""}`,
      { isFinal: true },
    );
  }
  if (says(/Host key verification failed|No \S+ host key is known for/i)) {
    return failure(
      "host-key",
      "its host key is not known here",
      `Compare the key it shows: ssh ${typed} exit (scripts: add --ssh-accept-new)`,
      { isFinal: true },
    );
  }
  if (says(/bad permissions|UNPROTECTED PRIVATE KEY FILE/i)) {
    const [, file] = /(?:for|key) '?"?([^'"\s]+)'?"? are too open/i.exec(stderr) ?? [];
    return failure(
      "auth",
      "the private key can be read by others, so ssh does not use it",
      `chmod 600 ${file ?? identity ?? "KEY"}`,
      { isFinal: true },
    );
  }
  if (
    says(/Permission denied \(|Too many authentication failures|No more authentication methods/i)
  ) {
    const key = identity === undefined ? "" : `-i '${identity}' `;
    return failure(
      "auth",
      "it does not accept the keys of this user",
      `ssh-copy-id ${key}${typed} (a key with a passphrase: ssh-add${
        identity === undefined ? "" : ` '${identity}'`
      })`,
      { isFinal: true },
    );
  }
  if (
    says(
      /Bad configuration option|bad configuration options|Bad owner or permissions on|Unsupported option|command-line(?: line \d+)?:|illegal option|unknown option|no argument after keyword|[Mm]issing argument|keyword .* extra arguments|hostname contains invalid characters|Can't open user config file|Unknown (?:cipher|key type)|Bad (?:SSH2 )?(?:cipher|Mac|key types)/,
    )
  ) {
    return failure(
      "config",
      `ssh does not take its configuration: ${said}`,
      `Mend what this names: ssh -G ${typed}`,
      { isFinal: true },
    );
  }
  const [, boundPort] = /bind \[?[^\]\s]*\]?:(\d+): /i.exec(stderr) ?? [];
  if (boundPort !== undefined && Number(boundPort) !== localPort) {
    return failure(
      "forward-failed",
      `the ssh configuration of this target also forwards port ${boundPort}, which is taken`,
      `Use a target without LocalForward; this one has: ssh -G ${typed}`,
      { isFinal: true },
    );
  }
  if (says(/Address already in use|cannot listen to port|Could not request local forwarding/i)) {
    return localPortFailure(target, localPort, undefined);
  }
  if (says(/administratively prohibited/i)) {
    return failure(
      "forward-failed",
      `its ssh server does not allow a forward to 127.0.0.1:${remotePort}`,
      `In its sshd_config: AllowTcpForwarding local, and PermitOpen 127.0.0.1:${remotePort}`,
      { isFinal: true },
    );
  }
  if (says(/Could not resolve hostname|Name or service not known|nodename nor servname/i)) {
    return failure(
      "dns",
      "its name has no address",
      `Check the name: ssh -G ${typed} shows the one that is looked up`,
    );
  }
  if (says(/Connection refused/i)) {
    return failure(
      "refused",
      "no ssh server listens there",
      `See which host and port ssh takes, and start sshd there: ssh -G ${typed}`,
    );
  }
  if (
    says(/timed out|Timeout, server|No route to host|Network is unreachable|Network is down/i)
  ) {
    return failure(
      "timeout",
      says(/Timeout, server/i) ? "it fell silent" : "it does not answer",
      `See whether this machine reaches it: ssh -v ${typed} exit`,
    );
  }
  return failure(
    "lost",
    code === null ? "ssh was killed" : `ssh ended with code ${code}${said ? `: ${said}` : ""}`,
    `See what ssh says: ssh -v ${typed} exit`,
  );
}

/** @param holder who has it, as far as that is known: `nginx (pid 17)` */
export function localPortFailure(
  target: string,
  port: number,
  holder: string | undefined,
): SshFailure {
  return {
    kind: "local-port",
    message: `Cannot keep up the tunnel to ${target}: port ${port} of this machine is taken` +
      (holder ? ` by ${holder}` : ""),
    fix: "Take a free port with --any-port, or another one with --local-port N",
    isFinal: false,
  };
}

/** ssh told, while it goes on running, that nothing takes connections at the other end. */
export function isOpenFailure(stderr: string): boolean {
  return /open failed: (?:connect failed|unknown channel type|resource shortage)/i.test(stderr);
}

/** ssh told, while it goes on running, that the other side forbids the forward. */
export function isProhibited(stderr: string): boolean {
  return /open failed: administratively prohibited/i.test(stderr);
}

/** The environment for a child that has no use for the gateway's secrets. */
export function withoutSecrets(env: Env): Record<string, string> {
  return Object.fromEntries(
    Object.entries(env).flatMap(([name, value]) =>
      value === undefined || SECRETS.includes(name) ? [] : [[name, value]]
    ),
  );
}

function destinationHost(target: string): string {
  const { destination, port } = readTarget(target);
  const host = destination.slice(destination.lastIndexOf("@") + 1);
  return port === undefined || port === 22 ? host : `[${host}]:${port}`;
}

/** The last thing that was said, without what a terminal could act on. */
function lastLine(text: string): string {
  const line = text.split(/\r?\n/).map((one) => one.trim()).filter((one) => one !== "").at(-1) ??
    "";
  return shown(line.replace(/\.$/, ""));
}

function shown(text: string): string {
  // deno-lint-ignore no-control-regex
  const clean = text.replace(/[\u0000-\u001f\u007f-\u009f]/g, "\ufffd");
  return clean.length > 200 ? `${clean.slice(0, 200)}…` : clean;
}
