import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { resolvePaths } from "../../config/paths.ts";
import { openTunnel } from "../../tunnel/tunnels.ts";
import { type CliResult, spawnZero, zero } from "../support/cli.ts";
import { startTestGateway, type TestGateway } from "../support/gateway.ts";
import { eventually, freePort } from "../support/process.ts";
import { hasScript, zeroOnTerminal } from "../support/pty.ts";
import { sshdObstacle, type SshdOptions, startSshd, type TestSshd } from "../support/sshd.ts";

if (sshdObstacle) console.log(`skipped: tunnels through a real sshd, ${sshdObstacle}`);

interface World extends AsyncDisposable {
  gateway: TestGateway;
  sshd: TestSshd;
  home: string;
  env: Record<string, string>;
  run(...args: string[]): Promise<CliResult>;
  /** `zero tunnel up box` to the gateway, on a port of its own. */
  up(...args: string[]): Promise<CliResult>;
  // deno-lint-ignore no-explicit-any
  status(name?: string): Promise<any>;
}

async function makeWorld(options: SshdOptions = {}): Promise<World> {
  await using stack = new AsyncDisposableStack();
  const gateway = stack.use(await startTestGateway());
  const sshd = stack.use(await startSshd(options));
  const home = await Deno.makeTempDir({ prefix: "zero-tunnel-" });
  stack.defer(() => Deno.remove(home, { recursive: true }));
  const env = { PATH: sshd.env.PATH };
  const run = (...args: string[]) => zero(args, { home, env });
  stack.defer(async () => {
    await run("tunnel", "down", "--all");
  });
  const owned = stack.move();
  return {
    gateway,
    sshd,
    home,
    env,
    run,
    up: (...args) =>
      run(
        "tunnel",
        "up",
        "box",
        "--ssh",
        sshd.alias,
        "--remote-port",
        String(gateway.port),
        "--local-port",
        "0",
        ...args,
      ),
    async status(name = "box") {
      const { json } = await run("tunnel", "status", "--json");
      return json.tunnels.find((one: { name: string }) => one.name === name);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function tunnelTest(name: string, fn: () => Promise<void>, ignore = false): void {
  Deno.test({ name, ignore: sshdObstacle !== undefined || ignore, fn });
}

tunnelTest(
  "zero tunnel up ends with 0 once the gateway has answered, and zero health goes through it",
  async () => {
    await using world = await makeWorld();

    const up = await world.up();
    assertEquals(up.code, 0, up.stderr);
    const status = await world.status();
    const health = await world.run(
      "health",
      "--json",
      "--port",
      String(status.localPort),
      "--token",
      world.gateway.token,
    );

    assertEquals(health.code, 0, health.stderr);
    assertEquals(health.json.ok, true);
    assertEquals(Object.keys(status), [
      "name",
      "target",
      "state",
      "localPort",
      "remotePort",
      "pid",
      "generation",
      "since",
      "restarts",
      "lastProbe",
      "lastError",
    ]);
    assertEquals([status.state, status.generation, status.restarts], ["up", 1, 0]);
    assertEquals([status.target, status.remotePort], [world.sshd.alias, world.gateway.port]);
    assertEquals([status.lastProbe.ok, status.lastError], [true, null]);
    const { mode } = await Deno.stat(`${world.home}/state/tunnels/box.json`);
    assertEquals(mode! & 0o777, 0o600);
  },
);

tunnelTest(
  "a second zero tunnel up uses the tunnel that is there, and down closes it",
  async () => {
    await using world = await makeWorld();
    await world.up();
    const before = await world.status();

    const again = await world.up("--json");
    const down = await world.run("tunnel", "down", "box", "--json");
    const after = await world.status();

    assertEquals([again.code, again.json.isReused], [0, true], again.stderr);
    assertEquals(again.json.tunnel.pid, before.pid);
    assertEquals([down.code, down.json], [0, { ok: true, closed: ["box"] }]);
    assertEquals([after.state, after.pid], ["down", null]);
    // Its name is enough from now on.
    const byName = await world.run("tunnel", "up", "box", "--json");
    assertEquals(byName.code, 0, byName.stderr);
    assertEquals(byName.json.tunnel.localPort, before.localPort);
    assertEquals(byName.json.tunnel.generation, before.generation + 1);
  },
);

tunnelTest(
  "a host key nobody knows stops the tunnel without a terminal, and --ssh-accept-new takes it",
  async () => {
    await using world = await makeWorld({ isTrusted: false });

    const refused = await world.up("--json");
    const status = await world.status();
    const accepted = await world.up("--ssh-accept-new");

    assertEquals(refused.code, 1);
    assertEquals(refused.json.error.code, "TUNNEL_HOST_KEY");
    assertStringIncludes(refused.json.error.details.fix, "--ssh-accept-new");
    assertEquals([status.state, status.pid, status.lastError.kind], ["failed", null, "host-key"]);
    assertEquals(accepted.code, 0, accepted.stderr);
  },
);

tunnelTest(
  "on a terminal ssh asks about the host key itself, and the tunnel outlives the terminal",
  async () => {
    await using world = await makeWorld({ isTrusted: false });
    const { home, env, sshd, gateway } = world;
    const port = String(freePort());

    const { code, output } = await zeroOnTerminal(
      [
        "tunnel",
        "up",
        "box",
        "--ssh",
        sshd.alias,
        `--remote-port=${gateway.port}`,
        "--local-port",
        port,
      ],
      { home, env },
      [["(yes/no", "yes\n"]],
    );

    assertEquals(code, 0, output);
    assertStringIncludes(output, "fingerprint");
    assertStringIncludes(output, `on port ${port}`);
    // With this terminal its session ended, and with that the first ssh: another has to take over.
    await eventually("the gateway answers", async () => {
      const { code } = await world.run("health", "--port", port, "--token", gateway.token);
      return code === 0;
    });
    assert((await Deno.readTextFile(sshd.knownHosts)).includes(`${sshd.port}`));
  },
  !hasScript,
);

tunnelTest(
  "a key that is not accepted is told with its fix, and nothing is left running",
  async () => {
    await using world = await makeWorld();
    await world.sshd.acceptKeys(false);

    const refused = await world.up();

    assertEquals(refused.code, 1);
    assertStringIncludes(refused.stderr, "it does not accept the keys of this user");
    assertStringIncludes(refused.stderr, `ssh-copy-id ${world.sshd.alias}`);
    assertEquals((await world.status()).state, "failed");
  },
);

tunnelTest(
  "a tunnel whose process was killed is down, its ssh is gone, and it can be opened again",
  async () => {
    await using world = await makeWorld();
    await world.up();
    const before = await world.status();

    Deno.kill(before.pid, "SIGKILL");
    await eventually("it is down", async () => (await world.status()).state === "down");
    const after = await world.status();
    await eventually("the port is free", () => {
      try {
        Deno.listen({ hostname: "127.0.0.1", port: before.localPort }).close();
        return true;
      } catch {
        return false;
      }
    });
    const again = await world.up();

    assertEquals([after.pid, after.lastError.kind], [null, "lost"]);
    assertEquals(again.code, 0, again.stderr);
    assert((await world.status()).generation > before.generation);
  },
);

tunnelTest(
  "a process that did not start the tunnel is never ended, whatever the file says",
  async () => {
    await using world = await makeWorld();
    await world.up();
    await world.run("tunnel", "down", "box");
    const file = `${world.home}/state/tunnels/box.json`;
    const record = JSON.parse(await Deno.readTextFile(file));
    const stranger = new Deno.Command("sleep", { args: ["1000"] }).spawn();
    try {
      record.status.pid = stranger.pid;
      record.status.state = "up";
      await Deno.writeTextFile(file, JSON.stringify(record));

      assertEquals((await world.status()).state, "down");
      assertEquals((await world.run("tunnel", "down", "box", "--json")).json.closed, []);

      // Somebody holds the lock, but it is not the process that the file names.
      record.ownerStart = { afterBootS: 1, bootS: 1 };
      await Deno.writeTextFile(file, JSON.stringify(record));
      using lock = await Deno.open(`${world.home}/state/tunnels/box.lock`, {
        write: true,
        create: true,
      });
      await lock.lock(true);
      const down = await world.run("tunnel", "down", "box");

      assertEquals(down.code, 1);
      assertStringIncludes(down.stderr, "is not the one that started it");
      const { stdout } = await new Deno.Command("ps", {
        args: ["-o", "stat=", "-p", String(stranger.pid)],
      }).output();
      assert(/^[SRD]/.test(new TextDecoder().decode(stdout).trim()), "the stranger lives");
    } finally {
      stranger.kill("SIGKILL");
      await stranger.status;
    }
  },
);

tunnelTest(
  "a wanted port that is taken is told with who has it, and --any-port takes a free one",
  async () => {
    await using world = await makeWorld();
    const { port } = world.gateway;
    const args = [
      "tunnel",
      "up",
      "box",
      "--ssh",
      world.sshd.alias,
      `--remote-port=${port}`,
      `--local-port=${port}`,
    ];

    const refused = await world.run(...args, "--json");
    const moved = await world.run(...args, "--any-port", "--json");

    assertEquals([refused.code, refused.json.error.code], [1, "TUNNEL_LOCAL_PORT"]);
    assertStringIncludes(
      refused.json.error.message,
      `port ${port} of this machine is taken by a gateway`,
    );
    assertStringIncludes(refused.json.error.details.fix, "--any-port");
    assertEquals(moved.code, 0, moved.stderr);
    assert(moved.json.tunnel.localPort !== port);
  },
);

tunnelTest("a gateway that is not there is told apart from a machine that is not", async () => {
  await using world = await makeWorld();
  const box = ["tunnel", "up", "box", "--local-port", "0", "--json"];

  const noGateway = await world.run(
    ...box,
    "--ssh",
    world.sshd.alias,
    `--remote-port=${freePort()}`,
  );
  const noSshd = await world.run(...box, "--ssh", `127.0.0.1:${freePort()}`);
  const noName = await world.run(...box, "--ssh", "no-such-host.invalid");

  assertEquals(noGateway.json.error.code, "TUNNEL_GATEWAY_DOWN");
  assertStringIncludes(noGateway.json.error.details.fix, `ssh ${world.sshd.alias} zero gateway`);
  assertEquals(noSshd.json.error.code, "TUNNEL_REFUSED");
  assertEquals(noName.json.error.code, "TUNNEL_DNS");
});

tunnelTest("a forward that the server forbids is told with the line that allows it", async () => {
  await using world = await makeWorld({ server: ["AllowTcpForwarding no"] });

  const refused = await world.up("--json");

  assertEquals(refused.json.error.code, "TUNNEL_FORWARD_FAILED");
  assertStringIncludes(refused.json.error.details.fix, "AllowTcpForwarding local");
});

tunnelTest(
  "--foreground keeps the tunnel up until SIGTERM, and exits with 78 when only a person can help",
  async () => {
    await using world = await makeWorld();
    const { home, env, sshd, gateway } = world;
    const args = [
      "tunnel",
      "up",
      "box",
      "--foreground",
      "--ssh",
      sshd.alias,
      `--remote-port=${gateway.port}`,
      "--local-port=0",
    ];
    const child = spawnZero(args, { home, env });
    await eventually("it is up", async () => (await world.status())?.state === "up");
    child.kill("SIGTERM");
    const stopped = await child.output();
    assertEquals(stopped.code, 0, new TextDecoder().decode(stopped.stderr));
    assertEquals((await world.status()).state, "down");

    await sshd.acceptKeys(false);
    const refused = await world.run(...args);

    assertEquals(refused.code, 78);
    assertStringIncludes(refused.stderr, "fix:   ssh-copy-id");
  },
);

tunnelTest("zero tunnel logs shows what became of the tunnel, without any secret", async () => {
  await using world = await makeWorld();
  const up = await zero(
    [
      "tunnel",
      "up",
      "box",
      "--ssh",
      world.sshd.alias,
      `--remote-port=${world.gateway.port}`,
      "--local-port=0",
    ],
    { home: world.home, env: { ...world.env, ZERO_GATEWAY_TOKEN: "canary-of-the-token" } },
  );
  assertEquals(up.code, 0, up.stderr);
  const { pid } = await world.status();
  const { stdout } = await new Deno.Command("ps", { args: ["eww", "-p", String(pid)] }).output();
  await world.run("tunnel", "down");

  const logs = await world.run("tunnel", "logs", "box");

  assertStringIncludes(logs.stdout, "the gateway answers through the tunnel");
  assertStringIncludes(logs.stdout, "the tunnel is no longer kept up");
  assertEquals((logs.stdout + new TextDecoder().decode(stdout)).includes("canary"), false);
});

tunnelTest(
  "a command's own tunnel is gone with it, and is not opened where the background has one",
  async () => {
    await using world = await makeWorld();
    const { sshd, home, gateway } = world;
    const said: string[] = [];
    const paths = resolvePaths({ env: { ...sshd.env, ZERO_STATE_DIR: `${home}/state` }, home });
    const options = {
      paths,
      version: "1",
      isInteractive: false,
      say: (message: string) => said.push(message),
    };
    const spec = { name: "once", target: sshd.alias, remotePort: gateway.port };

    let port: number;
    {
      await using own = await openTunnel(spec, options);
      port = own.localPort;
      assertEquals((await (await fetch(`http://127.0.0.1:${port}/healthz`)).json()).ok, true);
      assertEquals(own.isReused, false);
    }
    Deno.listen({ hostname: "127.0.0.1", port }).close(); // free again
    await world.up();
    {
      await using shared = await openTunnel(spec, options);
      assertEquals(shared.isReused, true);
    }

    assertEquals((await world.status()).state, "up");
    assertStringIncludes(said[0], "Opened a tunnel");
    assertStringIncludes(said[1], "Using the tunnel box");
  },
);

tunnelTest(
  "zero tunnel list shows remotes that ssh reaches beside the tunnels that were opened",
  async () => {
    await using world = await makeWorld();
    await Deno.mkdir(`${world.home}/state`, { recursive: true });
    await Deno.writeTextFile(
      `${world.home}/state/zero.json`,
      JSON.stringify({
        remotes: {
          work: { transport: "ssh", sshTarget: world.sshd.alias, remotePort: world.gateway.port },
          web: { url: "wss://gateway.example" },
        },
      }),
    );

    const listed = await world.run("tunnel", "list", "--json");
    const up = await world.run("tunnel", "up", "work", "--local-port", "0", "--json");

    assertEquals(
      listed.json.tunnels.map((one: { name: string; state: string }) => [one.name, one.state]),
      [["work", "down"]],
    );
    assertEquals(up.code, 0, up.stderr);
    assertEquals(up.json.tunnel.name, "work");
  },
);

Deno.test("zero tunnel up says what is missing when nothing names a machine", async () => {
  const home = await Deno.makeTempDir();
  try {
    const nothing = await zero(["tunnel", "up"], { home });
    const unknown = await zero(["tunnel", "up", "nowhere"], { home });
    const option = await zero(["tunnel", "up", "x", "--ssh=-oProxyCommand=id"], { home });
    const down = await zero(["tunnel", "down", "nowhere"], { home });

    assertEquals([nothing.code, unknown.code, option.code, down.code], [2, 2, 2, 1]);
    assertStringIncludes(nothing.stderr, "--ssh [user@]host");
    assertStringIncludes(option.stderr, "Cannot use --ssh");
    assertStringIncludes(down.stderr, "zero tunnel list");
    assertEquals((await zero(["tunnel", "status", "--json"], { home })).json, { tunnels: [] });
  } finally {
    await Deno.remove(home, { recursive: true });
  }
});
