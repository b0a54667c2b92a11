// `zero tunnel`: ways to gateways on other machines that stay up. What the commands do is in
// tunnel_run.ts, which is loaded when one runs.

import { type Command, command, JSON_FLAG, RPC_FLAGS } from "../config/command.ts";
import type { CallWorld } from "./reach.ts";

const WISH_FLAGS = {
  ssh: {
    kind: "text",
    placeholder: "TARGET",
    summary: "The machine of the gateway: [user@]host[:port], or an alias of your ssh",
  },
  identity: {
    kind: "text",
    placeholder: "FILE",
    summary: "Private key for ssh, instead of those it finds itself",
  },
  "remote-port": {
    ...RPC_FLAGS["remote-port"],
    summary: "Port of the gateway on that machine; 18789 unless told",
  },
  "local-port": {
    kind: "integer",
    min: 0,
    max: 65_535,
    placeholder: "N",
    summary: "Port on this machine; 18789 unless told, 0 is any free one",
  },
  "any-port": { kind: "boolean", summary: "Take a free port where the wanted one is taken" },
  "ssh-accept-new": { ...RPC_FLAGS["ssh-accept-new"] },
  "tls-fingerprint": {
    ...RPC_FLAGS["tls-fingerprint"],
    summary: "The certificate to expect of the gateway; as configured for the target unless told",
  },
} as const;

export function tunnelCommands(world: CallWorld): Command[] {
  return [
    command({
      path: ["tunnel", "up"],
      summary: "Open a tunnel to a gateway, and keep it up in the background",
      usage: "[NAME]",
      flags: {
        ...WISH_FLAGS,
        foreground: {
          kind: "boolean",
          summary: "Keep it up in this process, until Ctrl-C",
          excludes: ["json"],
        },
        "may-ask": {
          kind: "boolean",
          hidden: true,
          summary: "ssh may ask on the terminal this process was started from",
        },
        ...JSON_FLAG,
      },
      details:
        "NAME is a remote of the configuration that is reached through ssh, a tunnel that was " +
        "opened before, or a name for what --ssh leads to. Without both it is the remote gateway of " +
        "the configuration. It ends with 0 once the gateway has answered through the tunnel; on a " +
        "terminal ssh asks its own questions first.\n\n" +
        "From then on the gateway is asked every 15 seconds and after the machine has slept, and ssh " +
        "is started anew when nothing comes through. What only a person can mend (a key, a host key, " +
        "the configuration) ends it: --foreground then exits with 78.",
      examples: [
        "zero tunnel up --ssh me@vps.example",
        "zero tunnel up home --ssh desktop --remote-port 18800 --any-port",
        "zero tunnel up home --foreground",
      ],
      run: async ({ args: [name], flags }, terminal) => {
        const { tunnelUp } = await import("./tunnel_run.ts");
        return await tunnelUp(name, flags, world, terminal);
      },
    }),

    command({
      path: ["tunnel", "down"],
      summary: "Close a tunnel that is kept up",
      usage: "[NAME]",
      flags: { all: { kind: "boolean", summary: "Close all of them" }, ...JSON_FLAG },
      details:
        "Only a process that zero tunnel up has started is ever ended. NAME may be left out " +
        "where there is one tunnel only.",
      examples: ["zero tunnel down home", "zero tunnel down --all"],
      run: async ({ args: [name], flags }, terminal) => {
        const { tunnelDown } = await import("./tunnel_run.ts");
        return await tunnelDown(name, flags, world, terminal);
      },
    }),

    command({
      path: ["tunnel", "status"],
      summary: "What each tunnel does: state, port, last answer, last trouble with its fix",
      usage: "[NAME]",
      flags: JSON_FLAG,
      examples: ["zero tunnel status", "zero tunnel status home --json"],
      run: async ({ args: [name], flags }, terminal) => {
        const { showTunnels } = await import("./tunnel_run.ts");
        return await showTunnels(name, flags, world, terminal);
      },
    }),

    command({
      path: ["tunnel", "list"],
      aliases: [["tunnel"]],
      summary: "Tunnels that were opened, and remotes that could be reached through one",
      flags: JSON_FLAG,
      run: async ({ flags }, terminal) => {
        const { listTunnels } = await import("./tunnel_run.ts");
        return await listTunnels(flags, world, terminal);
      },
    }),

    command({
      path: ["tunnel", "logs"],
      summary: "The last lines of a tunnel's log",
      usage: "[NAME]",
      flags: {
        follow: { kind: "boolean", short: "f", summary: "Go on with new lines until stopped" },
        limit: {
          kind: "integer",
          min: 1,
          max: 5_000,
          default: 200,
          summary: "How many lines to begin with",
        },
      },
      details: "On a terminal the lines are written for people, elsewhere as they stand in the " +
        "file: one JSON object each.",
      examples: ["zero tunnel logs home --follow"],
      run: async ({ args: [name], flags }, terminal) => {
        const { showTunnelLog } = await import("./tunnel_run.ts");
        return await showTunnelLog(name, flags, world, terminal);
      },
    }),

    command({
      path: ["tunnel", "install"],
      summary: "Keep a tunnel up across logins and restarts of this machine",
      usage: "[NAME]",
      flags: { ...WISH_FLAGS, ...JSON_FLAG },
      details:
        "It writes a unit for systemd's user manager, on macOS an agent for launchd, without " +
        "any secret in it, and starts it where that can be done. ssh must get in without asking.",
      examples: ["zero tunnel install home", "zero tunnel install --ssh me@vps.example"],
      run: async ({ args: [name], flags }, terminal) => {
        const { installTunnel } = await import("./tunnel_run.ts");
        return await installTunnel(name, flags, world, terminal);
      },
    }),

    command({
      path: ["tunnel", "uninstall"],
      summary: "Take back what zero tunnel install has set up",
      usage: "[NAME]",
      flags: JSON_FLAG,
      run: async ({ args: [name], flags }, terminal) => {
        const { uninstallTunnel } = await import("./tunnel_run.ts");
        return await uninstallTunnel(name, flags, world, terminal);
      },
    }),
  ];
}
