// The commands that make this machine a node of a gateway (§9). The node host itself is below node/;
// here it is given its way to a gateway, which is the same as that of every other command.

import { type Command, command, JSON_FLAG, REMOTE_FLAGS } from "../config/command.ts";
import { formatDuration, type Terminal } from "../config/terminal.ts";
import type { NamedGateway, Way } from "./node/run.ts";
import type { CallWorld } from "./reach.ts";

const CONNECT_TIMEOUT_MS = 15_000;

export function nodeCommands(world: CallWorld): Command[] {
  return [
    command({
      path: ["node", "run"],
      summary: "Be a node: let a gateway run commands on this machine, as far as you allow",
      flags: {
        host: {
          kind: "text",
          placeholder: "HOST",
          summary: "Host of the gateway",
          excludes: ["ssh", "remote"],
        },
        port: {
          kind: "integer",
          min: 1,
          max: 65_535,
          placeholder: "N",
          summary: "Port of the gateway",
          excludes: ["ssh", "remote"],
        },
        ...REMOTE_FLAGS,
        ssh: {
          ...REMOTE_FLAGS.ssh,
          summary: "Gateway on [user@]host[:port]: the node opens the ssh tunnel itself",
        },
        tls: {
          kind: "boolean",
          summary: "Connect with TLS",
          excludes: ["ssh", "remote"],
        },
        "tls-fingerprint": {
          kind: "text",
          placeholder: "SHA256",
          summary: "The certificate to expect, or several with commas between; implies --tls",
          excludes: ["ssh", "remote"],
        },
        "node-id": {
          kind: "text",
          placeholder: "ID",
          summary: "Name this installation to the gateway, instead of a random id",
        },
        "display-name": { kind: "text", placeholder: "NAME", summary: "What people see" },
      },
      details: "Without flags it goes where the other commands here go: to the gateway that " +
        '"zero join" paired with, or to the one of this machine. What the flags say is kept for ' +
        "the next start. With --ssh, or a remote that is reached through ssh, it opens the " +
        "tunnel itself, and another one whenever that breaks. It stays connected until it is stopped with Ctrl-C or SIGTERM, and tells " +
        "what to do when the gateway has to approve it first. A token or password comes from " +
        "ZERO_GATEWAY_TOKEN, ZERO_GATEWAY_PASSWORD or the configuration.\n\n" +
        "Commands run only as exec-approvals.json in the state directory allows: unless it says " +
        "otherwise, those on its allowlist, and those that a person approves.",
      examples: [
        "zero node run",
        "zero node run --host 192.168.1.5 --display-name workshop",
        "zero node run --host zero.example.org --port 443 --tls",
        "zero node run --ssh me@vps.example",
      ],
      async run({ flags }, terminal) {
        const { runNode } = await import("./node/run.ts");
        const { absolute } = await import("./reach.ts");
        return await runNode({
          version: world.version,
          paths: world.place(),
          flags: {
            host: flags.host,
            port: flags.port,
            tls: flags.tls,
            tlsFingerprint: flags["tls-fingerprint"],
            ssh: flags.ssh === undefined ? undefined : {
              target: flags.ssh,
              identity: await absolute(flags["ssh-identity"], world.place().env),
              remotePort: flags["remote-port"],
              acceptNew: flags["ssh-accept-new"] || undefined,
            },
            remote: flags.remote,
            nodeId: flags["node-id"],
            displayName: flags["display-name"],
          },
          terminal,
          cwd: Deno.cwd(),
          findWay: (named) => findWay(named, world, terminal),
        });
      },
    }),

    command({
      path: ["node", "status"],
      summary: "Whether this machine is a node, of which gateway, and what stands in the way",
      flags: JSON_FLAG,
      details: "The exit code is 0 also when no node host runs.",
      examples: ["zero node status", "zero node status --json"],
      async run({ flags }, terminal) {
        const status = await readStatus(world, terminal);
        if (flags.json) return terminal.json(status);
        showStatus(status, terminal);
      },
    }),
  ];
}

/** Decides where a node goes, as for every command; `named` stands above the configuration. */
export async function findWay(
  named: NamedGateway | undefined,
  world: CallWorld,
  terminal: Terminal,
): Promise<Way> {
  const { ownIdentity, reach, takeAim } = await import("./reach.ts");
  const { resolveTarget, wayOf } = await import("../config/target.ts");
  const { formatPin, pinsIn } = await import("../config/schema.ts");
  const flags = { timeout: CONNECT_TIMEOUT_MS, json: true, verbose: false };
  const { target: ssh, identity, remotePort, acceptNew } = named?.ssh ?? {};
  const aim = await takeAim(
    {
      ...flags,
      url: named?.url,
      remote: named?.remote,
      ssh,
      "ssh-identity": identity,
      "remote-port": remotePort,
      "ssh-accept-new": acceptNew,
    },
    world,
    terminal,
  );
  let { target } = aim;
  if (named?.url && target.problem?.code === "CREDENTIALS_REQUIRED") {
    // A node has no flag for a secret. What the environment says was meant for it; without, the
    // device asks to be paired.
    const { env } = aim.input;
    const token = env.ZERO_GATEWAY_TOKEN?.trim() || undefined;
    const password = env.ZERO_GATEWAY_PASSWORD?.trim() || undefined;
    target = token || password
      ? resolveTarget({ ...aim.input, flags: { url: named.url, token, password } })
      : { ...target, problem: undefined };
  }
  if (named?.url && named.tlsFingerprint !== undefined) {
    const pins = pinsIn(named.tlsFingerprint);
    target = { ...target, pins, way: wayOf(target.url, pins) };
  }
  // What the node stands on ends with it, and begins with it after a restart.
  if (target.ssh) target = { ...target, ssh: { ...target.ssh, isKept: false } };
  const own = { ...aim, target };
  return {
    get url() {
      return own.target.url;
    },
    ...(target.ssh && { through: `ssh ${target.ssh.target}` }),
    ...(target.pins.length > 0 && { tlsFingerprint: target.pins.map(formatPin).join() }),
    connect(extra) {
      // A command may do without a device where it brings the secret; a node is its device.
      const identity = ownIdentity(aim.paths, (message) => terminal.err(message));
      identity.catch(() => {}); // told by the connect, if it comes so far
      own.identity = identity;
      const options = { timeout: CONNECT_TIMEOUT_MS, version: world.version };
      return reach(
        own,
        { ...options, extra: { ...extra, retriesWithDeviceToken: true } },
        terminal,
      );
    },
  };
}

interface NodeStatus {
  running: boolean;
  pid?: number;
  state: string;
  sinceMs?: number;
  url?: string;
  problem?: string;
  fix?: string;
  /** What the gateway calls this node: the id of its device. */
  deviceId?: string;
  nodeId?: string;
  displayName?: string;
  commands?: string[];
  /** Where it would go if it were started now. */
  gateway?: { host: string; port: number; tls?: boolean };
  approvals: { path: string; exists: boolean };
}

async function readStatus({ place }: CallWorld, terminal: Terminal): Promise<NodeStatus> {
  const { nodeFiles, readNodeNote } = await import("./node/run.ts");
  const { isLocked } = await import("../config/file_lock.ts");
  const { readNodeFile } = await import("./node/node_file.ts");
  const { approvalsPaths } = await import("./node/approvals_file.ts");
  const paths = place();
  const { nodeFile, lockFile } = nodeFiles(paths);
  const running = await isLocked(lockFile);
  const note = running ? await readNodeNote(lockFile) : undefined;
  const known = await readNodeFile(nodeFile, (message) => terminal.err(message));
  const { file: approvalsFile } = approvalsPaths(paths);
  const { pid, state, sinceMs, url, problem, fix, commands } = note ?? {};
  return {
    running,
    pid,
    state: running ? state ?? "starting" : "stopped",
    sinceMs,
    url,
    problem,
    fix,
    deviceId: await readDeviceId(paths.deviceFile),
    nodeId: known?.nodeId,
    displayName: known?.displayName,
    commands,
    gateway: known?.gateway && {
      host: known.gateway.host,
      port: known.gateway.port,
      tls: known.gateway.tls,
    },
    approvals: { path: approvalsFile, exists: await isThere(approvalsFile) },
  };
}

function showStatus(status: NodeStatus, terminal: Terminal) {
  const { green, yellow, dim } = terminal.style;
  const { running, pid, state, sinceMs, deviceId, approvals } = status;
  const mark = state === "connected" ? green("●") : running ? yellow("●") : dim("○");
  const since = sinceMs === undefined ? "" : ` for ${formatDuration(Date.now() - sinceMs)}`;
  terminal.out(`${mark} node host ${state}${running ? `${since} (pid ${pid})` : ""}`);
  const { host, port, tls } = status.gateway ?? {};
  const saved = host &&
    `${tls ? "wss" : "ws"}://${host.includes(":") ? `[${host}]` : host}:${port}`;
  const rows = [
    ["gateway", status.url ?? saved],
    ["name", status.displayName],
    ["device", deviceId?.slice(0, 12)],
    ["commands", status.commands?.join(", ")],
    ["approvals", `${approvals.path}${approvals.exists ? "" : " (none yet)"}`],
    ["problem", status.problem],
    ["fix", status.fix ?? (running ? undefined : "zero node run")],
  ];
  for (const [name, value] of rows) {
    if (value) terminal.out(`  ${dim(name!.padEnd(10))} ${value}`);
  }
}

async function readDeviceId(file: string): Promise<string | undefined> {
  try {
    return JSON.parse(await Deno.readTextFile(file)).deviceId;
  } catch {
    return undefined; // none yet; whoever connects makes one, and says what is wrong with this
  }
}

async function isThere(file: string): Promise<boolean> {
  try {
    return (await Deno.stat(file)).isFile;
  } catch {
    return false;
  }
}
