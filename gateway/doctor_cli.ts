// `zero doctor`: the way to a gateway, hop by hop. What it looks at is in doctor.ts, which is loaded
// when it runs.

import { type Command, command, RPC_FLAGS } from "../config/command.ts";
import type { CallWorld } from "./reach.ts";

export function doctorCommands(world: CallWorld): Command[] {
  return [
    command({
      path: ["doctor"],
      summary: "Where the way to the gateway breaks, and what mends it",
      flags: {
        ...RPC_FLAGS,
        timeout: { ...RPC_FLAGS.timeout, summary: "Longest time for each hop, in milliseconds" },
      },
      details:
        "The hops are config, dns, ssh, ssh-host-key, ssh-auth, ssh-forward, tcp, tls, proxy, " +
        "host-origin, protocol, credential, pairing, scope and latency. Those that a way does not " +
        "have are left out, and nothing is looked at behind the first that is broken: the exit " +
        "code is then 1.\n\n" +
        "It changes nothing: no device is paired or asked to be, no token is kept, a tunnel it " +
        "opens is closed again, and nobody is asked anything. A secret that is wrong counts as a " +
        "failed login, as it does in every command.",
      examples: [
        "zero doctor",
        "zero doctor --remote home",
        "zero doctor --url wss://zero.example.org --token-file token --json",
      ],
      async run({ flags }, terminal) {
        const { runDoctor } = await import("./doctor.ts");
        return await runDoctor(flags, world, terminal);
      },
    }),
  ];
}
