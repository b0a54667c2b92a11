import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { type CliResult, zero } from "../support/cli.ts";
import { startTestGateway, TOKEN } from "../support/gateway.ts";
import { makeNamespace, namespaceObstacle } from "../support/namespace.ts";
import { freePort, makePlace, startGatewayProcess } from "../support/process.ts";

const obstacle = await namespaceObstacle();
if (obstacle) {
  console.log(`no network of its own can be made here, ${obstacle}: a test is left out`);
}
const isWindows = Deno.build.os === "windows";

/** Forwards as ssh does: `-L 127.0.0.1:<local>:127.0.0.1:<remote>`. */
const FORWARDER = `
const [, local, , remote] = Deno.args[Deno.args.indexOf("-L") + 1].split(":");
Deno.addSignalListener("SIGTERM", () => Deno.exit(0));
const listener = Deno.listen({ hostname: "127.0.0.1", port: Number(local) });
for await (const from of listener) {
  const to = await Deno.connect({ hostname: "127.0.0.1", port: Number(remote) });
  from.readable.pipeTo(to.writable).catch(() => {});
  to.readable.pipeTo(from.writable).catch(() => {});
}
`;
const REFUSING = "echo 'me@vps: Permission denied (publickey).' >&2; exit 255";

/** A home with an `ssh` of its own in front of PATH, which writes down what it is asked. */
async function makeHome(
  config: unknown,
  { ssh, namespace }: { ssh?: "works" | "refuses"; namespace?: string } = {},
) {
  const home = await Deno.makeTempDir({ prefix: "zero-probe-" });
  const asked = `${home}/asked`;
  const run = ssh === "works"
    ? `exec '${Deno.execPath()}' run -A --no-config '${home}/forwarder.js' "$@"`
    : REFUSING;
  await Deno.mkdir(`${home}/bin`);
  await Deno.mkdir(`${home}/state`);
  await Deno.writeTextFile(`${home}/forwarder.js`, FORWARDER);
  await Deno.writeTextFile(`${home}/state/zero.json`, JSON.stringify(config), { mode: 0o600 });
  await Deno.writeTextFile(`${home}/bin/ssh`, `#!/bin/sh\necho "$*" >> '${asked}'\n${run}\n`, {
    mode: 0o755,
  });
  return {
    asked: async () => await Deno.readTextFile(asked).catch(() => ""),
    probe: (args: string[] = [], env: Record<string, string> = {}): Promise<CliResult> =>
      zero(["gateway", "probe", "--json", "--timeout", "20000", ...args], {
        home,
        namespace,
        env: {
          PATH: `${home}/bin:${Deno.env.get("PATH")}`,
          ZERO_DISABLE_BONJOUR: "1",
          USER: "me",
          ...env,
        },
      }),
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
}

const idsOf = ({ json }: CliResult) => json.targets.map(({ id }: { id: string }) => id);

Deno.test({
  name: "a tunnel that --ssh asks for stands in front, answers, and is gone afterwards",
  ignore: isWindows,
  async fn() {
    await using gateway = await startTestGateway();
    await using home = await makeHome({ gateway: { port: freePort() } }, { ssh: "works" });
    const ssh = ["--ssh", "me@vps.example", "--remote-port", String(gateway.port)];

    const found = await home.probe([...ssh, "--token", TOKEN]);

    const { ok, primaryTargetId, warnings, targets: [tunnel] } = found.json;
    assertEquals([found.code, ok, primaryTargetId], [0, true, "sshTunnel"], found.stderr);
    assertEquals([idsOf(found), warnings], [["sshTunnel", "localLoopback"], []]);
    assertEquals([tunnel.kind, tunnel.active, tunnel.connect.ok], ["sshTunnel", true, true]);
    const { kind, target, localPort, remotePort, pid } = tunnel.tunnel;
    assertEquals([kind, target, remotePort], ["ssh", "me@vps.example", gateway.port]);
    assertEquals(tunnel.url, `ws://127.0.0.1:${localPort}`);
    assert(pid > 0);
    const isOpen = await Deno.connect({ hostname: "127.0.0.1", port: localPort }).then(
      (connection) => connection.close() ?? true,
      () => false,
    );
    assertEquals(isOpen, false);
  },
});

Deno.test({
  name: "the host of a remote is tried by ssh, unless it is reached directly by intent",
  ignore: isWindows,
  async fn() {
    const remote = { url: "wss://vps.invalid:18789", token: "t" };
    const port = freePort();
    await using inferred = await makeHome({ gateway: { mode: "remote", port, remote } });
    await using direct = await makeHome({
      gateway: { mode: "remote", port, remote: { ...remote, transport: "direct" } },
    });
    await using named = await makeHome({
      gateway: { mode: "remote", port, remote: { ...remote, sshTarget: "box" } },
    });
    await using loopback = await makeHome({
      gateway: { port, remote: { url: `ws://127.0.0.1:${freePort()}` } },
    });
    const homes = [inferred, direct, named, loopback];

    const found = await Promise.all(homes.map((home) => home.probe()));
    const asked = await Promise.all(homes.map((home) => home.asked()));

    assertEquals(asked.map((text) => / -- (\S+)\n/.exec(text)?.[1]), [
      "me@vps.invalid",
      undefined,
      "box",
      undefined,
    ]);
    assertEquals(
      found.map(({ json }) => json.warnings.map(({ code }: { code: string }) => code)),
      [["ssh_tunnel_failed"], [], ["ssh_tunnel_failed"], []],
    );
    for (const one of found) assertEquals(idsOf(one), ["configRemote", "localLoopback"]);
    for (const { code, json } of found) assertEquals([code, json.ok], [1, false]);
  },
});

Deno.test({
  name: "a tunnel that does not come up is a warning with the fix; the others are tried",
  ignore: isWindows,
  async fn() {
    await using gateway = await startTestGateway();
    const config = { gateway: { port: gateway.port, auth: { token: TOKEN } } };
    await using home = await makeHome(config, { ssh: "refuses" });

    const found = await home.probe(["--ssh", "me@vps.example"]);

    const [warning] = found.json.warnings;
    assertEquals([found.code, idsOf(found)], [0, ["localLoopback"]]);
    assertEquals(warning.code, "ssh_tunnel_failed");
    assertStringIncludes(warning.message, "me@vps.example");
  },
});

Deno.test({
  name: "gateways of the network are listed and not dialled; --ssh-auto asks ssh for the first",
  ignore: obstacle !== undefined,
  async fn() {
    await using network = await makeNamespace();
    await using place = await makePlace({
      config: { gateway: { bind: "lan" }, discovery: { mdns: { mode: "full" } } },
    });
    await using gateway = await startGatewayProcess({
      place,
      namespace: network.name,
      env: { ZERO_SSH_PORT: "2222" },
    });
    const config = { gateway: { port: freePort() } };
    await using laptop = await makeHome(config, { namespace: network.name });
    const env = { ZERO_DISABLE_BONJOUR: "", ZERO_GATEWAY_TOKEN: "t" };
    const probe = async (...args: string[]) => {
      for (let tries = 0;; tries++) {
        const found = await laptop.probe(args, env);
        // Multicast may be lost, and a slow machine may miss it.
        if (found.json.discovery.count > 0 || tries === 5) return found;
      }
    };

    const listed = await probe();
    const before = await laptop.asked();
    const auto = await probe("--ssh-auto");

    assertEquals(listed.json.discovery.beacons[0].gatewayPort, gateway.port);
    assertEquals([idsOf(listed), before], [["localLoopback"], ""]);
    const { lanHost } = auto.json.discovery.beacons[0];
    assertStringIncludes(await laptop.asked(), `-p 2222 -- me@${lanHost}\n`);
    assertEquals(auto.json.warnings[0].code, "ssh_tunnel_failed");
    await gateway.stop();
  },
});
