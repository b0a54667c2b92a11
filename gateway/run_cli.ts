// `zero gateway`: the command that is the gateway. The commands that talk to one are in cli.ts.

import { type Command, command } from "../config/command.ts";
import type { Paths } from "../config/paths.ts";

export interface RunCommandOptions {
  place: () => Paths;
  version: string;
}

export function runCommand({ place, version }: RunCommandOptions): Command {
  return command({
    path: ["gateway", "run"],
    aliases: [["gateway"]],
    summary: "Run the gateway in the foreground",
    details: "It listens on loopback, port 18789, and makes itself a token on its first start. " +
      "Flags stand above the environment, which stands above the configuration file. It stops on " +
      "Ctrl-C or SIGTERM. A start that is refused for a reason that starting again would not mend " +
      "exits with 78.",
    flags: {
      port: {
        kind: "integer",
        min: 0,
        max: 65_535,
        placeholder: "N",
        summary: "Port for WebSocket and HTTP; 0 is any free one",
      },
      bind: {
        kind: "text",
        choices: ["loopback", "lan", "tailnet", "auto", "custom"],
        summary: "Where to listen",
      },
      auth: {
        kind: "text",
        choices: ["token", "password", "trusted-proxy", "none"],
        summary: "What clients prove",
      },
      token: {
        kind: "text",
        placeholder: "TOKEN",
        summary: "The token (other users of this machine can see it: see --token-file)",
        excludes: ["token-file"],
      },
      "token-file": {
        kind: "text",
        placeholder: "FILE",
        summary: "Read the token from FILE; - is standard input",
      },
      password: { kind: "text", placeholder: "TEXT", summary: "The password" },
      tailscale: {
        kind: "text",
        choices: ["off", "serve", "funnel"],
        hidden: true,
        summary: "Only off starts: this version does not set Tailscale up",
      },
      force: { kind: "boolean", summary: "Stop the gateway that has the port first" },
      "allow-unconfigured": {
        kind: "boolean",
        hidden: true,
        summary: "Accepted and ignored: a gateway needs no configuration file",
      },
    },
    examples: [
      "zero gateway",
      "zero gateway --port 18800 --verbose",
      "zero gateway --bind lan --token-file ~/gateway-token",
    ],
    async run({ flags }, terminal) {
      const { runGateway } = await import("./run.ts");
      const paths = place();
      return await runGateway({
        version,
        paths,
        flags: {
          port: flags.port,
          bind: flags.bind,
          auth: flags.auth,
          token: flags.token ?? await readSecret(flags["token-file"], terminal),
          password: flags.password,
          tailscale: flags.tailscale,
        },
        terminal,
        isVerbose: flags.verbose,
        isForced: flags.force,
        checkResults: paths.profile === "dev",
      });
    },
  });
}

async function readSecret(
  file: string | undefined,
  terminal: { readStdin(): Promise<string> },
): Promise<string | undefined> {
  if (file === undefined) return undefined;
  const text = file === "-" ? await terminal.readStdin() : await Deno.readTextFile(file);
  return text.trim();
}
