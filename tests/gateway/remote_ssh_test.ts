// Commands and nodes that reach their gateway through a real sshd, on a machine that knows nothing of it
// but what its configuration or command line says.

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { type CliResult, spawnZero, zero } from "../support/cli.ts";
import { within } from "../support/client.ts";
import { startTestGateway, type TestGatewayOptions, TOKEN } from "../support/gateway.ts";
import { eventually } from "../support/process.ts";
import { sshdObstacle, type SshdOptions, startSshd } from "../support/sshd.ts";

if (sshdObstacle) console.log(`skipped: gateways behind ssh, ${sshdObstacle}`);
const ignore = sshdObstacle !== undefined;

/** A gateway and an sshd in front of it, and another machine. */
async function away(options: SshdOptions = {}, behind: TestGatewayOptions = {}) {
  await using stack = new AsyncDisposableStack();
  const gateway = stack.use(await startTestGateway(behind));
  const sshd = stack.use(await startSshd(options));
  const home = await Deno.makeTempDir({ prefix: "zero-away-" });
  stack.defer(() => Deno.remove(home, { recursive: true }));
  await Deno.mkdir(`${home}/state`, { mode: 0o700 });
  const env = { PATH: sshd.env.PATH };
  const run = (args: string[], { stdin, ...more }: {
    env?: Record<string, string>;
    stdin?: string;
  } = {}): Promise<CliResult> => zero(args, { home, env: { ...env, ...more.env }, stdin });
  stack.defer(async () => {
    await run(["tunnel", "down", "--all"]);
  });
  const owned = stack.move();
  return {
    gateway,
    sshd,
    home,
    env,
    run,
    to: ["--ssh", sshd.alias, "--remote-port", String(gateway.port)],
    async configure(config: object) {
      await Deno.writeTextFile(`${home}/state/zero.json`, JSON.stringify(config), { mode: 0o600 });
    },
    /** No connection through sshd is left. */
    quiet: () =>
      eventually("nobody is connected", async () => (await sshd.children()).length === 0),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

Deno.test({
  name: "remote mode with transport ssh needs one command from an empty state, and says so once",
  ignore,
  async fn() {
    await using at = await away();
    const { sshd: { alias }, gateway: { port } } = at;
    await at.configure({
      gateway: {
        mode: "remote",
        remote: { transport: "ssh", sshTarget: alias, remotePort: port, token: TOKEN },
      },
    });

    const first = await at.run(["health", "--json"]);
    const second = await at.run(["health", "--json"]);
    const tunnels = (await at.run(["tunnel", "status", "--json"])).json.tunnels;

    assertEquals([first.code, first.json?.ok], [0, true], first.stderr);
    assertMatch(first.stderr, /^Opened the tunnel default to \S+ on port \d+\n$/);
    assertEquals([second.code, second.json.ok], [0, true], second.stderr);
    assertMatch(second.stderr, /^Using the tunnel default to \S+ on port \d+\n$/);
    assertEquals(
      tunnels.map(({ name, target, remotePort }: Record<string, unknown>) => [
        name,
        target,
        remotePort,
      ]),
      [["default", alias, port]],
    );
  },
});

Deno.test({
  name: "commands that begin at once in remote mode share one tunnel, whichever of them opens it",
  ignore,
  async fn() {
    await using at = await away();
    const { sshd: { alias }, gateway: { port } } = at;
    await at.configure({
      gateway: {
        mode: "remote",
        remote: { transport: "ssh", sshTarget: alias, remotePort: port, token: TOKEN },
      },
    });

    const all = await Promise.all([1, 2, 3].map(() => at.run(["health", "--json"])));

    for (const { code, stderr } of all) assertEquals(code, 0, stderr);
    const opened = all.filter(({ stderr }) => /^Opened the tunnel default /m.test(stderr));
    assertEquals(opened.length, 1, all.map(({ stderr }) => stderr).join());
  },
});

Deno.test({
  name: "a pinned gateway behind ssh is reached with its pin, and another one is told nothing",
  ignore,
  async fn() {
    await using at = await away({}, { config: { gateway: { tls: { enabled: true } } } });
    const { sshd: { alias: sshTarget }, gateway: { port: remotePort, running } } = at;
    const remote = { transport: "ssh", sshTarget, remotePort, token: TOKEN };
    const pin = running.fingerprint!;
    await at.configure({
      remotes: {
        right: { ...remote, tlsFingerprint: ["ab".repeat(32), pin] },
        wrong: { ...remote, tlsFingerprint: "ab".repeat(32) },
      },
    });

    const right = await at.run(["health", "--remote", "right", "--json"]);
    await at.run(["tunnel", "down", "--all"]);
    const wrong = await at.run(["health", "--remote", "wrong", "--json"]);
    const up = await at.run(["tunnel", "up", "wrong", "--local-port", "0", "--json"]);
    const typed = await at.run(["tunnel", "up", "typed", ...at.to, "--local-port", "0"].concat(
      "--tls-fingerprint",
      `${pin} until 2099-01-01`,
    ));

    assertEquals([right.code, right.json?.ok], [0, true], right.stderr);
    assertEquals([wrong.code, wrong.json.error.code], [1, "GATEWAY_TLS"], wrong.stderr);
    assertStringIncludes(wrong.stderr, "gateway tls fingerprint mismatch");
    assertEquals([up.code, up.json.error.code], [1, "TUNNEL_TLS"], up.stderr);
    assertEquals(typed.code, 0, typed.stderr);
    assertMatch(typed.stdout, /--url wss:\/\/127\.0\.0\.1:\d+ --tls-fingerprint sha256:/);
  },
});

Deno.test({
  name: "a remote behind ssh is added, used and tried like any other",
  ignore,
  async fn() {
    await using at = await away();
    const add = ["remote", "add", "home", ...at.to, "--token-file", "-", "--use"];

    const added = await at.run(add, { stdin: TOKEN });
    const tested = await at.run(["remote", "test", "--json"]);
    const shown = await at.run(["remote", "show", "--json"]);
    const verbose = await at.run(["health", "--verbose"]);

    const { alias } = at.sshd;
    const { port } = at.gateway;
    assertStringIncludes(added.stdout, `Added home: ssh ${alias}, port ${port} there`);
    assertEquals([tested.code, tested.json?.ok], [0, true], tested.stderr);
    assertEquals(tested.json.gateway.ssh, alias);
    assertEquals(shown.json.ssh, { target: alias, remotePort: port });
    assertEquals(shown.json.way, `ssh:${alias}:${port}`);
    assertStringIncludes(verbose.stderr, `Through: ssh ${alias}, port ${port} there`);
  },
});

Deno.test({
  name:
    "--ssh opens a tunnel for one command, and the device it pairs is known there the next time",
  ignore,
  async fn() {
    await using at = await away();

    const first = await at.run(["health", "--json", ...at.to], {
      env: { ZERO_GATEWAY_TOKEN: TOKEN },
    });
    await at.quiet();
    const second = await at.run(["health", "--json", ...at.to]);
    const { tunnels } = (await at.run(["tunnel", "status", "--json"])).json;
    const kept = await Deno.readTextFile(`${at.home}/state/identity/device-auth.json`);

    assertEquals([first.code, first.json?.ok], [0, true], first.stderr);
    assertMatch(first.stderr, /^Opened a tunnel to \S+ on port \d+\n$/);
    assertEquals([second.code, second.json?.ok], [0, true], second.stderr);
    assertEquals(tunnels, []);
    assertStringIncludes(kept, `ssh:${at.sshd.alias}:${at.gateway.port}`);
    assert(!kept.includes(TOKEN));
    await at.quiet();
  },
});

Deno.test({
  name: "a host key that nobody has seen is refused with the fix, and taken with --ssh-accept-new",
  ignore,
  async fn() {
    await using at = await away({ isTrusted: false });
    const env = { ZERO_GATEWAY_TOKEN: TOKEN };

    const refused = await at.run(["health", "--json", ...at.to], { env });
    const accepted = await at.run(["health", "--json", ...at.to, "--ssh-accept-new"], { env });

    assertEquals([refused.code, refused.json.error.code], [1, "GATEWAY_HOST_KEY"], refused.stderr);
    assertStringIncludes(refused.json.error.fix, "accept-new");
    assertEquals([accepted.code, accepted.json?.ok], [0, true], accepted.stderr);
  },
});

Deno.test({
  name: "plain ws:// to a public name is refused, and allowed once it is behind a tunnel",
  ignore,
  async fn() {
    await using at = await away();
    const remote = { url: "ws://gateway.example.org", token: TOKEN };
    const { alias: sshTarget } = at.sshd;
    const { port: remotePort } = at.gateway;
    await at.configure({
      remotes: { plain: remote, tunnelled: { ...remote, transport: "ssh", sshTarget, remotePort } },
    });

    const plain = await at.run(["health", "--remote", "plain", "--json"]);
    const tunnelled = await at.run(["health", "--remote", "tunnelled", "--json"]);

    assertEquals([plain.code, plain.json.error.code], [1, "GATEWAY_ADDRESS"]);
    assertStringIncludes(plain.stderr, "ws:// is not encrypted");
    assertEquals([tunnelled.code, tunnelled.json?.ok], [0, true], tunnelled.stderr);
  },
});

Deno.test({
  name: "where no gateway answers behind the tunnel, the failure names the machine and the start",
  ignore,
  async fn() {
    await using at = await away();
    await at.gateway[Symbol.asyncDispose]();

    const { code, json } = await at.run(["health", "--json", ...at.to, "--token", TOKEN]);

    assertEquals([code, json.error.retryable], [1, true]);
    assertStringIncludes(JSON.stringify(json.error), at.sshd.alias);
    assertEquals(json.gateway.ssh, at.sshd.alias);
  },
});

Deno.test({
  name:
    "a node keeps its way through ssh: it comes back when the connection is cut, and ends with it",
  ignore,
  async fn() {
    await using at = await away();
    const env = { ...at.env, ZERO_GATEWAY_TOKEN: TOKEN };
    const child = spawnZero(["node", "run", ...at.to, "--display-name", "away"], {
      home: at.home,
      env,
    });
    let said = "";
    const read = Promise.all([child.stdout, child.stderr].map(async (stream) => {
      for await (const text of stream.pipeThrough(new TextDecoderStream())) said += text;
    }));
    const connected = (count: number) =>
      eventually(
        `connected ${count} times`,
        () => said.split("node host connected to ").length > count,
      ).catch((error) => {
        throw new Error(`${error.message}: ${said}`);
      });
    try {
      await connected(1);
      await at.sshd.killChildren();
      await connected(2);
    } finally {
      child.kill("SIGTERM");
      await within(child.status, `it stops: ${said}`);
      await read;
    }

    assertMatch(
      said,
      new RegExp(`connected to ws://127.0.0.1:\\d+ through ssh ${at.sshd.alias} as away`),
    );
    const saved = JSON.parse(await Deno.readTextFile(`${at.home}/state/node.json`));
    assertEquals(saved.gateway.ssh, { target: at.sshd.alias, remotePort: at.gateway.port });
    assert(!JSON.stringify(saved).includes(TOKEN));
    await at.quiet();
  },
});
