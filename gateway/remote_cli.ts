// `zero remote`: gateways on other machines by name, and which of them commands go to (D15). What the
// commands do is in remotes.ts, which is loaded when one runs.

import { type Command, command, JSON_FLAG, RPC_FLAGS } from "../config/command.ts";
import type { CallWorld } from "./reach.ts";

const { timeout } = RPC_FLAGS;

export function remoteCommands(world: CallWorld): Command[] {
  return [
    command({
      path: ["remote", "add"],
      summary: "Give a gateway elsewhere a name: an address, or a machine that ssh reaches",
      usage: "NAME",
      flags: {
        url: {
          kind: "text",
          placeholder: "URL",
          summary: "Its address: wss://host, or ws://host:port in a private network",
          excludes: ["ssh"],
        },
        ssh: {
          kind: "text",
          placeholder: "TARGET",
          summary: "The machine it runs on: [user@]host[:port], or an alias of your ssh",
        },
        "ssh-identity": { ...RPC_FLAGS["ssh-identity"] },
        "ssh-accept-new": { ...RPC_FLAGS["ssh-accept-new"] },
        "remote-port": {
          ...RPC_FLAGS["remote-port"],
          summary: "Port of the gateway on that machine; 18789 unless told",
        },
        "tls-fingerprint": {
          kind: "text",
          placeholder: "SHA256",
          summary: "The certificate to expect, or several with commas between",
        },
        "token-file": {
          ...RPC_FLAGS["token-file"],
          summary: "Take the token from FILE into the configuration; - is standard input",
          excludes: ["token-from", "no-token"],
        },
        "token-from": {
          kind: "text",
          placeholder: "REF",
          summary: "Read the token each time: env:NAME, file:PATH or exec:PROGRAM",
          excludes: ["no-token"],
        },
        "password-from": {
          kind: "text",
          placeholder: "REF",
          summary: "Read a password each time, in the same way",
        },
        "no-token": { kind: "boolean", summary: "Do not ask for a token" },
        use: { kind: "boolean", summary: "Let commands go there from now on" },
        force: { kind: "boolean", summary: "Replace a remote that has this name" },
        ...JSON_FLAG,
      },
      details:
        "On a terminal it asks for the token, hidden. Without one, this machine asks to be " +
        "paired as a device; behind ssh the gateway wants its token all the same, once.\n\n" +
        "A reference keeps the secret out of the configuration: env:NAME is a variable, file:PATH " +
        "a file, exec:PROGRAM ARG the output of a program, which is started without a shell.",
      examples: [
        "zero remote add home --ssh me@home.example --use",
        "zero remote add work --url wss://zero.example.org --token-from env:WORK_TOKEN",
      ],
      async run({ args: [name], flags }, terminal) {
        const { addRemote } = await import("./remotes.ts");
        return await addRemote(name, flags, world.place(), terminal);
      },
    }),

    command({
      path: ["remote", "list"],
      aliases: [["remote"]],
      summary: "The gateways that have a name, and which of them commands go to",
      flags: JSON_FLAG,
      async run({ flags }, terminal) {
        const { listRemotes } = await import("./remotes.ts");
        await listRemotes(flags, world.place(), terminal);
      },
    }),

    command({
      path: ["remote", "use"],
      summary: "Let commands go to a remote from now on; local is the gateway of this machine",
      usage: "NAME",
      flags: {
        force: { kind: "boolean", summary: "Also where a gateway runs on this machine" },
        ...JSON_FLAG,
      },
      details: "It sets gateway.mode and gateway.remote.name. In mode remote no gateway starts " +
        "here, so beside one that runs it refuses. For one command there is --remote NAME, for " +
        "one shell ZERO_REMOTE.",
      examples: ["zero remote use home", "zero remote use local"],
      async run({ args: [name], flags }, terminal) {
        const { useRemote } = await import("./remotes.ts");
        return await useRemote(name, flags, world.place(), terminal);
      },
    }),

    command({
      path: ["remote", "show"],
      summary: "How a remote is reached, and where its secrets come from",
      usage: "[NAME]",
      flags: JSON_FLAG,
      details: "Without NAME it is the gateway that commands go to. No secret is shown.",
      async run({ args: [name], flags }, terminal) {
        const { showRemote } = await import("./remotes.ts");
        return await showRemote(name, flags, world, terminal);
      },
    }),

    command({
      path: ["remote", "remove"],
      summary: "Forget a remote",
      usage: "NAME",
      flags: {
        force: { kind: "boolean", summary: "Also the one that commands go to" },
        ...JSON_FLAG,
      },
      async run({ args: [name], flags }, terminal) {
        const { removeRemote } = await import("./remotes.ts");
        return await removeRemote(name, flags, world.place(), terminal);
      },
    }),

    command({
      path: ["remote", "test"],
      summary: "Connect to a remote and ask how it is",
      usage: "[NAME]",
      flags: { timeout, ...JSON_FLAG },
      details: "Without NAME it is the gateway that commands go to. The exit code is 1 when it " +
        "cannot be reached or does not let this machine in.",
      examples: ["zero remote test home"],
      async run({ args: [name], flags }, terminal) {
        const { testRemote } = await import("./remotes.ts");
        return await testRemote(name, flags, world, terminal);
      },
    }),
  ];
}
