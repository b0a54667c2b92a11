import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { describeService, installService, type ServiceWorld } from "../../tunnel/service.ts";
import type { ProcessResult } from "../../tunnel/process.ts";
import { checkName, nameOf, type TunnelStatus } from "../../tunnel/state.ts";
import { probeGateway } from "../../tunnel/health.ts";
import { TunnelError } from "../../tunnel/error.ts";
import { Supervisor, TIMINGS } from "../../tunnel/supervisor.ts";
import { startTestGateway } from "../support/gateway.ts";
import { eventually } from "../support/process.ts";
import { startScriptedGateway } from "../support/scripted_gateway.ts";
import { sshdObstacle, startSshd } from "../support/sshd.ts";

if (sshdObstacle) console.log(`skipped: supervised tunnels, ${sshdObstacle}`);

/** Something on a port of 127.0.0.1 that answers each connection as it is told. */
function answering(answer: string | "silence") {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const open: Deno.Conn[] = [];
  const served = (async () => {
    for await (const connection of listener) {
      open.push(connection);
      if (answer === "silence") continue;
      await connection.read(new Uint8Array(4_096)).catch(() => {});
      await connection.write(new TextEncoder().encode(answer)).catch(() => {});
      connection.close();
    }
  })();
  return {
    port: listener.addr.port,
    async [Symbol.asyncDispose]() {
      listener.close();
      await served;
      for (const connection of open) {
        try {
          connection.close();
        } catch {
          // Closed after its answer.
        }
      }
    },
  };
}

Deno.test("a gateway is known by its own answer, a refusal included, and nothing else passes for one", async () => {
  await using gateway = await startTestGateway();
  await using greeting = await startScriptedGateway(async (peer) => {
    await peer.welcome();
  });
  const http = (status: string, body: string) =>
    `HTTP/1.1 ${status}\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`;
  const ask = async (port: number, timeoutMs = 10_000) =>
    (await probeGateway(port, { timeoutMs })).verdict;

  assertEquals(await ask(gateway.port), "answered");
  assertEquals(await ask(greeting.port), "answered");
  const cases: [answer: string, verdict: string][] = [
    [http("401 Unauthorized", "{}"), "answered"],
    [http("502 Bad Gateway", "no"), "foreign"],
    [http("200 OK", "<html>"), "foreign"],
    ["SSH-2.0-OpenSSH_9.2\r\n", "foreign"],
    ["", "closed"],
  ];
  for (const [answer, verdict] of cases) {
    await using stranger = answering(answer);
    assertEquals(await ask(stranger.port), verdict, answer);
  }
  await using silent = answering("silence");
  assertEquals(await ask(silent.port, 100), "timeout");
  const gone = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  gone.close();
  assertEquals(await ask(gone.addr.port), "refused");
});

Deno.test("a black hole is found within 45 seconds, whatever it begins with", () => {
  const { probeEveryMs, probeTimeoutMs, secondTimeoutMs } = TIMINGS;

  assert(probeEveryMs <= 15_000);
  assert(probeEveryMs + probeTimeoutMs + secondTimeoutMs < 45_000);
  assert(TIMINGS.maxBackoffMs <= 4_000);
});

Deno.test({
  name: "a tunnel that slept is looked at when the machine wakes, not fifteen seconds later",
  ignore: sshdObstacle !== undefined,
  async fn() {
    await using gateway = await startTestGateway();
    await using sshd = await startSshd();
    let sleptMs = 0;
    const clocks = {
      wallMs: () => Date.now() + sleptMs,
      monotonicMs: () => performance.now(),
    };
    const hour = 3_600_000;
    await using tunnel = new Supervisor({
      name: "laptop",
      target: sshd.alias,
      remotePort: gateway.port,
      isInteractive: false,
      env: sshd.env,
      clocks,
      // Never asked again by itself.
      timings: { probeEveryMs: hour, tickMs: 20 },
    });
    tunnel.start();
    await tunnel.whenUp();
    const { atMs } = tunnel.status.lastProbe!;

    sleptMs = hour;

    await eventually("it was looked at", () => tunnel.status.lastProbe!.atMs >= atMs + hour);
    assertEquals(tunnel.status.state, "up");
  },
});

Deno.test({
  name: "a tunnel that is disposed of while ssh is connecting ends at once, and leaves nothing",
  ignore: sshdObstacle !== undefined,
  async fn() {
    await using silent = answering("silence");
    await using sshd = await startSshd();
    const tunnel = new Supervisor({
      name: "slow",
      target: `127.0.0.1:${silent.port}`,
      remotePort: 1,
      isInteractive: false,
      env: sshd.env,
    });
    tunnel.start();
    await eventually("ssh was started", () => tunnel.sshPid !== undefined);
    const waiting = assertRejects(() => tunnel.whenUp(), TunnelError);
    await tunnel[Symbol.asyncDispose]();

    await waiting;
    assertEquals(tunnel.sshPid, undefined);
  },
});

Deno.test({
  name: "a tunnel that may take any port moves on when a stranger takes its own",
  ignore: sshdObstacle !== undefined,
  async fn() {
    await using gateway = await startTestGateway();
    await using sshd = await startSshd();
    const seen: TunnelStatus[] = [];
    await using tunnel = new Supervisor({
      name: "mover",
      target: sshd.alias,
      remotePort: gateway.port,
      isInteractive: false,
      env: sshd.env,
      anyPort: true,
      onChange: (status) => seen.push(status),
    });
    tunnel.start();
    await tunnel.whenUp();
    const { localPort, generation } = tunnel.status;
    Deno.kill(tunnel.sshPid!, "SIGKILL");
    let stranger: Deno.Listener | undefined;
    await eventually("the port was taken", () => {
      try {
        return stranger = Deno.listen({ hostname: "127.0.0.1", port: localPort });
      } catch {
        return false;
      }
    }, { everyMs: 1 });
    await eventually(
      "it is up elsewhere",
      () => tunnel.status.state === "up" && tunnel.status.generation > generation,
    );
    stranger!.close();

    assert(tunnel.status.localPort !== localPort);
    assertEquals(seen.at(-1), tunnel.status);
  },
});

Deno.test("names of tunnels are plain words, and a target gets one of its own", () => {
  assertEquals(nameOf("me@vps.example:2222"), "vps.example-2222");
  assertEquals(nameOf("ssh://me@box"), "box");
  assertEquals(nameOf("[::1]"), "1-");
  assertEquals(nameOf("größe"), "gr-e");
  for (const name of ["../x", "", "a/b", "-x", "a".repeat(65)]) {
    let kind: string | undefined;
    try {
      checkName(name);
    } catch (error) {
      kind = (error as TunnelError).kind;
    }
    assertEquals(kind, "state", name);
  }
});

/** A world whose programs succeed, and write down what they were asked. */
function scripted(os: string, home: string, result?: Partial<ProcessResult>) {
  const asked: string[] = [];
  const world: ServiceWorld = {
    os,
    env: { HOME: home, USER: "me" },
    uid: 1_000,
    runner: {
      run(command, args) {
        asked.push([command, ...args].join(" "));
        return Promise.resolve(
          result === undefined ? undefined : { code: 0, stdout: "", stderr: "", ...result },
        );
      },
    },
  };
  return { world, asked };
}

const SERVICE = {
  name: "work",
  argv: ["/opt/my zero", "tunnel", "up", "work", "--foreground", '--identity=/k/100%$x"y'],
  env: { ZERO_STATE_DIR: "/home/me/.zero" },
};

Deno.test("zero tunnel install writes a unit that starts with the login, and starts it", async () => {
  const home = await Deno.makeTempDir();
  try {
    const { world, asked } = scripted("linux", home, { stdout: "no\n" });

    const { file, isEnabled, next } = await installService(SERVICE, world);
    const unit = await Deno.readTextFile(file);

    assertEquals(file, `${home}/.config/systemd/user/zero-tunnel-work.service`);
    assertStringIncludes(unit, `ExecStart="/opt/my zero" "tunnel" "up" "work" "--foreground"`);
    assertStringIncludes(unit, `"--identity=/k/100%%$$x\\"y"`);
    assertStringIncludes(unit, "RestartPreventExitStatus=2 78");
    assertStringIncludes(unit, "WantedBy=default.target");
    assertEquals(isEnabled, true);
    assertEquals(next, ["loginctl enable-linger"]);
    assertEquals(asked.slice(0, 3), [
      "systemctl --user daemon-reload",
      "systemctl --user enable zero-tunnel-work.service",
      "systemctl --user restart zero-tunnel-work.service",
    ]);
  } finally {
    await Deno.remove(home, { recursive: true });
  }
});

Deno.test("where systemd cannot be reached the commands are left to the user", async () => {
  const home = await Deno.makeTempDir();
  try {
    const { isEnabled, next } = await installService(SERVICE, scripted("linux", home).world);

    assertEquals(isEnabled, false);
    assertEquals(next, [
      "systemctl --user daemon-reload",
      "systemctl --user enable --now zero-tunnel-work.service",
      "loginctl enable-linger",
    ]);
  } finally {
    await Deno.remove(home, { recursive: true });
  }
});

Deno.test("on macOS it is an agent of launchd", () => {
  const { file, text, label } = describeService(
    { ...SERVICE, profile: "dev" },
    scripted("darwin", "/Users/me").world,
  );

  assertEquals(label, "zero.tunnel.dev.work");
  assertEquals(file, "/Users/me/Library/LaunchAgents/zero.tunnel.dev.work.plist");
  assertStringIncludes(text, "<key>RunAtLoad</key><true/>");
  assertStringIncludes(text, "<string>/opt/my zero</string><string>tunnel</string>");
});
