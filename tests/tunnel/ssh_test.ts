import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { classify, readTarget, sshArguments, SshProcess } from "../../tunnel/ssh.ts";
import { TunnelError } from "../../tunnel/error.ts";
import { Supervisor } from "../../tunnel/supervisor.ts";
import { eventually } from "../support/process.ts";

const FORWARD = {
  target: "box",
  localPort: 18_789,
  remotePort: 18_790,
  isInteractive: false,
  connectTimeoutS: 10,
};

/** A directory with an `ssh` that writes down how it was called, one word a line, then does `then`. */
async function fakeSsh(then = "exit 255") {
  const dir = await Deno.makeTempDir({ prefix: "zero-fake-ssh-" });
  await Deno.writeTextFile(
    `${dir}/ssh`,
    `#!/bin/sh\nprintf '%s\\n' "$@" > "${dir}/argv.part"\nmv "${dir}/argv.part" "${dir}/argv"\n` +
      `env > "${dir}/env"\n${then}\n`,
    { mode: 0o755 },
  );
  return {
    dir,
    env: { PATH: `${dir}:/usr/bin:/bin`, HOME: dir },
    argv: async () => (await Deno.readTextFile(`${dir}/argv`)).trimEnd().split("\n"),
    wasRun: async () => {
      try {
        await Deno.stat(`${dir}/argv`);
        return true;
      } catch {
        return false;
      }
    },
    [Symbol.asyncDispose]: () => Deno.remove(dir, { recursive: true }),
  };
}

Deno.test("a target that could be an option or a shell's word never reaches ssh", async () => {
  await using ssh = await fakeSsh();
  const refused = [
    "-oProxyCommand=touch /tmp/x",
    "-oProxyCommand=x",
    "-h",
    "user@-h",
    "user@-oProxyCommand=x:22",
    "a@b@-h",
    "",
    "user@",
    "@host",
    "host name",
    "host\nProxyCommand x",
    "host\u0000",
    "host\u0085",
    "host\u2028x",
    "`id`",
    "user@`id`",
    "$(id)",
    "host;id",
    "host|id",
    "user@'host'",
    "host:0",
    "host:65536",
    "[-h]:22",
  ];

  for (const target of refused) {
    const error = assertThrows(() => readTarget(target), TunnelError, "", JSON.stringify(target));
    assertEquals(error.kind, "target");
    assert(error.fix !== "");
    assertThrows(() => sshArguments({ ...FORWARD, target }), TunnelError);
    assertThrows(
      () => new Supervisor({ ...FORWARD, name: "x", target, env: ssh.env }),
      TunnelError,
    );
  }
  assertEquals(await ssh.wasRun(), false);
});

Deno.test("an alias reaches ssh byte for byte, behind --, and only the port of host:port is taken off", async () => {
  const targets: [target: string, destination: string, port?: number][] = [
    ["box", "box"],
    ["Box_1.lan", "Box_1.lan"],
    ["me@box", "me@box"],
    ["DOM\\me@box", "DOM\\me@box"],
    ["größe", "größe"],
    ["a:b", "a:b"],
    ["me@10.0.0.1:2222", "me@10.0.0.1", 2222],
    ["::1", "::1"],
    ["me@[::1]:22", "me@::1", 22],
    ["[fe80::1]", "fe80::1"],
    ["ssh://me@box:2222", "ssh://me@box:2222"],
  ];
  for (const [target, destination, port] of targets) {
    await using ssh = await fakeSsh();
    const child = new SshProcess({ ...FORWARD, target }, { env: ssh.env });
    await child.ended;
    const argv = await ssh.argv();

    assertEquals(argv.slice(-2), ["--", destination]);
    assertEquals(argv.includes("-p") ? argv[argv.indexOf("-p") + 1] : undefined, port && `${port}`);
  }
});

Deno.test("ssh is told to forward, to fail when it cannot, to notice silence, and to ask nobody", async () => {
  await using ssh = await fakeSsh();
  const env = { ...ssh.env, ZERO_GATEWAY_TOKEN: "token-of-the-gateway", SSH_AUTH_SOCK: "/agent" };
  await new SshProcess({ ...FORWARD, identity: "/keys/a b" }, { env }).ended;
  const argv = await ssh.argv();
  const seen = await Deno.readTextFile(`${ssh.dir}/env`);

  assertEquals(argv.slice(0, 3), ["-N", "-L", "127.0.0.1:18789:127.0.0.1:18790"]);
  for (
    const option of [
      "ExitOnForwardFailure=yes",
      "ServerAliveInterval=10",
      "ServerAliveCountMax=3",
      "ControlPath=none",
      "StrictHostKeyChecking=yes",
      "BatchMode=yes",
    ]
  ) {
    assertEquals(argv[argv.indexOf(option) - 1], "-o", option);
  }
  assertEquals(argv[argv.indexOf("-i") + 1], "/keys/a b");
  assertStringIncludes(seen, "SSH_AUTH_SOCK=/agent");
  assertEquals(seen.includes("token-of-the-gateway"), false);
});

Deno.test("host keys are strict without a terminal, asked for on one, and new ones accepted only on demand", () => {
  const optionOf = (forward: object) =>
    sshArguments({ ...FORWARD, ...forward }).find((word) => word.startsWith("StrictHost"));

  assertEquals(optionOf({}), "StrictHostKeyChecking=yes");
  assertEquals(optionOf({ isInteractive: true }), "StrictHostKeyChecking=ask");
  assertEquals(optionOf({ acceptNew: true }), "StrictHostKeyChecking=accept-new");
  assertEquals(sshArguments({ ...FORWARD, isInteractive: true }).includes("BatchMode=yes"), false);
});

Deno.test("what ssh said last is told by kind, with a fix, and ends the tunnel only where a person must act", () => {
  const cases: [stderr: string, code: number | null, kind: string, isFinal: boolean][] = [
    ["ssh: 1: exec: ssh: not found", 127, "ssh-missing", true],
    ["me@box: Permission denied (publickey).\r\n", 255, "auth", true],
    ["Received disconnect from 1.2.3.4: Too many authentication failures", 255, "auth", true],
    [
      "Permissions 0644 for '/k/id' are too open.\nWARNING: UNPROTECTED PRIVATE KEY FILE!",
      255,
      "auth",
      true,
    ],
    [
      "No ED25519 host key is known for box and you have requested strict checking.\r\nHost key verification failed.",
      255,
      "host-key",
      true,
    ],
    [
      "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nOffending ED25519 key in /h/known_hosts:3\nHost key for [box]:22 has changed and you have requested strict checking.\nHost key verification failed.",
      255,
      "host-key-changed",
      true,
    ],
    [
      "/h/.ssh/config: line 3: Bad configuration option: foo\n/h/.ssh/config: terminating, 1 bad configuration options",
      255,
      "config",
      true,
    ],
    ["Bad owner or permissions on /h/.ssh/config", 255, "config", true],
    ["ssh: Could not resolve hostname box: Name or service not known", 255, "dns", false],
    ["ssh: connect to host box port 22: Connection refused", 255, "refused", false],
    ["ssh: connect to host box port 22: Connection timed out", 255, "timeout", false],
    ["ssh: connect to host box port 22: No route to host", 255, "timeout", false],
    ["Connection timed out during banner exchange", 255, "timeout", false],
    ["Timeout, server box not responding.", 255, "timeout", false],
    [
      "bind [127.0.0.1]:18789: Address already in use\nchannel_setup_fwd_listener_tcpip: cannot listen to port: 18789\nCould not request local forwarding.",
      255,
      "local-port",
      false,
    ],
    [
      "bind [127.0.0.1]:8080: Address already in use\nCould not request local forwarding.",
      255,
      "forward-failed",
      true,
    ],
    [
      "channel 2: open failed: administratively prohibited: open failed",
      null,
      "forward-failed",
      true,
    ],
    ["Connection to box closed by remote host.", 255, "lost", false],
    ["client_loop: send disconnect: Broken pipe", 255, "lost", false],
    ["", null, "lost", false],
    ["", 255, "lost", false],
  ];

  for (const [stderr, code, kind, isFinal] of cases) {
    const failure = classify({ code, stderr }, FORWARD);
    assertEquals([failure.kind, failure.isFinal], [kind, isFinal], stderr);
    assert(failure.message.startsWith("Cannot ") && !failure.message.endsWith("."), stderr);
    assert(failure.fix !== "", stderr);
  }
});

Deno.test("the fix for a changed host key names the host and the file that ssh named", () => {
  const { fix } = classify({
    code: 255,
    stderr: "REMOTE HOST IDENTIFICATION HAS CHANGED!\nOffending ED25519 key in /h/known hosts:3\n" +
      "Host key for [box]:2222 has changed and you have requested strict checking.\n",
  }, FORWARD);

  assertStringIncludes(fix, "ssh-keygen -R '[box]:2222' -f '/h/known hosts'");
});

Deno.test("control characters in what ssh says do not reach the terminal", () => {
  const { message } = classify({ code: 1, stderr: "oops \u001b[2J\u0007" }, FORWARD);

  assertStringIncludes(message, "oops \ufffd[2J\ufffd");
});

Deno.test("an ssh that outlives its program's wish is killed, also when it is stopped", async () => {
  await using ssh = await fakeSsh("exec sleep 1000");
  const child = new SshProcess(FORWARD, { env: ssh.env });
  Deno.kill(child.pid, "SIGSTOP");
  child.kill();

  assertEquals((await child.ended).code, null);
});

Deno.test("ssh ends when the program that started it is killed", async () => {
  await using ssh = await fakeSsh("exec sleep 1000");
  const code = `
    import { SshProcess } from ${
    JSON.stringify(new URL("../../tunnel/ssh.ts", import.meta.url).href)
  };
    const child = new SshProcess(${JSON.stringify(FORWARD)}, { env: ${JSON.stringify(ssh.env)} });
    console.log(child.pid);
    setTimeout(() => {}, 1e6);`;
  const file = `${ssh.dir}/parent.ts`;
  await Deno.writeTextFile(file, code);
  const parent = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", "--config", CONFIG, file],
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const reader = parent.stdout.getReader();
  const { value } = await reader.read();
  const pid = Number(new TextDecoder().decode(value));
  assert(await isAlive(pid));

  parent.kill("SIGKILL");
  await parent.status;
  await reader.cancel();

  await eventually("ssh has ended", async () => !await isAlive(pid));
});

const CONFIG = new URL("../../deno.json", import.meta.url).pathname;

async function isAlive(pid: number): Promise<boolean> {
  const { stdout } = await new Deno.Command("ps", { args: ["-o", "stat=", "-p", `${pid}`] })
    .output();
  const state = new TextDecoder().decode(stdout).trim();
  return state !== "" && !state.startsWith("Z");
}
