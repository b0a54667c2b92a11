// The gateway as a process: who else is there, what its signals do, what a changed file does to it,
// and what it makes of a disk that is full, closed or damaged (§12.1, D20).

import { assert, assertEquals, assertMatch } from "@std/assert";
import { truncatedConfigs } from "../soak/config_writes.ts";
import { killRounds } from "../soak/kill.ts";
import { generateIdentity } from "../../rpc/identity.ts";
import {
  eventually,
  freePort,
  makePlace,
  type Place,
  startGatewayProcess,
  startRefused,
} from "../support/process.ts";
import { ConnectRefused, Member, RawSocket } from "../security/wire.ts";

const EXIT_REFUSED = 78;
const STOP_DEADLINE_MS = 5_000;

Deno.test("after kill -9 in the middle of work the next start has all that was acknowledged, 20 times", async () => {
  await killRounds({ rounds: 20 });
});

Deno.test("another program on the port is named, with exit code 78", async () => {
  await using place = await makePlace();
  const listener = Deno.listen({ hostname: "127.0.0.1", port: place.port });
  const talking = (async () => {
    for await (const connection of listener) connection.close();
  })();

  const { code, stderr } = await startRefused({ place });
  listener.close();
  await talking;

  assertEquals(code, EXIT_REFUSED);
  assertMatch(stderr, new RegExp(`port ${place.port} is taken by another program`));
  if (await hasPortTools()) {
    assertMatch(stderr, new RegExp(`\\(deno, pid ${Deno.pid}\\)`));
  }
  assertMatch(stderr, /Fix: .+zero gateway --port \d+/);
});

Deno.test("a web server on the port is not mistaken for a gateway", async () => {
  await using place = await makePlace();
  await using server = Deno.serve(
    { hostname: "127.0.0.1", port: place.port, onListen() {} },
    () => new Response("a page"),
  );

  const { code, stderr } = await startRefused({ place });
  await server.shutdown();

  assertEquals(code, EXIT_REFUSED);
  assertMatch(stderr, /is taken by another program/);
});

Deno.test("a second gateway on the same state directory or port exits 78 and names the first", async (t) => {
  await using first = await makePlace();
  await using gateway = await startGatewayProcess({ place: first });

  await t.step("the state directory", async () => {
    const place = { ...first, port: freePort() };
    const { code, stderr } = await startRefused({ place });

    assertEquals(code, EXIT_REFUSED);
    assertMatch(stderr, new RegExp(`already running \\(pid ${gateway.pid}\\) on ${gateway.url}`));
  });
  await t.step("the port", async () => {
    await using other = await makePlace();
    const { code, stderr } = await startRefused({ place: { ...other, port: first.port } });

    assertEquals(code, EXIT_REFUSED);
    assertMatch(stderr, new RegExp(`another gateway instance .+ on ${gateway.url}`));
    if (await hasPortTools()) assertMatch(stderr, new RegExp(`pid ${gateway.pid}`));
  });
  await t.step("the first one does not notice", async () => {
    await using member = await Member.join({ port: first.port });
    assertEquals((await member.call("health")).ok, true);
    assertMatch(await Deno.readTextFile(first.lockFile), new RegExp(`"pid":${gateway.pid}`));
  });
});

Deno.test("what a dead gateway left in the lock file keeps nobody out", async () => {
  await using place = await makePlace();
  await Deno.mkdir(place.stateDir, { mode: 0o700 });
  for (
    const left of ['{"pid":1,"url":"ws://127.0.0.1:1"}', '{"pid":99999', "", "\0".repeat(4096)]
  ) {
    await Deno.writeTextFile(place.lockFile, left, { mode: 0o600 });
    await using gateway = await startGatewayProcess({ place });
    assertEquals((await gateway.stop()).code, 0);
  }
});

Deno.test("a configuration truncated 100 times never stops or changes the gateway, and is reported once", async () => {
  await truncatedConfigs({ writes: 100 });
});

Deno.test("a changed gateway setting restarts it in place: goodbye, 1012, and back on the same port", async () => {
  await using place = await makePlace({ config: {} });
  await using gateway = await startGatewayProcess({ place });
  await using member = await Member.join({ port: place.port });

  await place.configure({ gateway: { controlUi: { enabled: false } } });
  const close = await member.closed;
  await gateway.printed(/restarted in/);

  assertEquals(close, { code: 1012, reason: "service restart" });
  assertEquals(member.events.at(-1).event, "shutdown");
  assertEquals(member.events.at(-1).payload, {
    reason: "gateway restarting",
    restartExpectedMs: 1_500,
  });
  await using again = await Member.join({ port: place.port });
  assertEquals((await again.call("health")).ok, true);
  assertMatch(await Deno.readTextFile(place.lockFile), new RegExp(`"pid":${gateway.pid}`));
});

Deno.test("a change that a start would refuse changes nothing and is reported", async () => {
  await using place = await makePlace({ config: {} });
  await using gateway = await startGatewayProcess({ place, token: null });
  const token = (await Deno.readTextFile(`${place.stateDir}/gateway.token`)).trim();
  await using member = await Member.join({ port: place.port, auth: { token } });

  await place.configure({ gateway: { bind: "lan" } });
  await eventually(
    "the refusal is in the log",
    async () => (await place.log()).includes("refusing to bind gateway to 0.0.0.0"),
  );

  assertEquals((await member.call("health")).ok, true);
  assert(!gateway.stdout.includes("restarted"));
});

Deno.test("a restart onto a port that is taken goes back to the last good configuration", async () => {
  await using place = await makePlace();
  await place.configure({ gateway: { port: place.port } });
  await using gateway = await startGatewayProcess({ place, isPortInFile: true });
  const taken = freePort();
  using _listener = Deno.listen({ hostname: "127.0.0.1", port: taken });

  // What ran is what it goes back to, also the second time.
  for (const times of [1, 2]) {
    await using member = await Member.join({ port: place.port });
    const controlUi = { basePath: `/${times}` };
    await place.configure({ gateway: { port: taken, controlUi } });
    await member.closed;
    await gateway.printed(/restarted in/, { times });
    await using again = await Member.join({ port: place.port });
    assertEquals((await again.call("health")).ok, true);
  }
  assertMatch(await place.log(), /cannot start with the changed configuration/);
});

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  Deno.test(`${signal} ends it within 5 s with exit code 0, however stubborn its peers`, async () => {
    await using place = await makePlace();
    await using gateway = await startGatewayProcess({ place });
    await using polite = await Member.join({ port: place.port });
    await using _stack = await stubbornPeers(place);

    const begin = performance.now();
    const { code } = await gateway.stop(signal, STOP_DEADLINE_MS);

    assertEquals(code, 0, `after ${performance.now() - begin} ms`);
    assertEquals(await polite.closed, { code: 1012, reason: "service restart" });
    assertEquals(polite.events.at(-1).payload, {
      reason: "gateway stopping",
      restartExpectedMs: null,
    });
    assertEquals(await Deno.readTextFile(place.lockFile), "", "it left no word of itself");
  });
}

Deno.test("a second SIGINT ends it at once", async () => {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  await using polite = await Member.join({ port: place.port });
  await using _stack = await stubbornPeers(place);

  gateway.signal("SIGINT");
  await polite.closed;
  const { code } = await gateway.stop("SIGINT");

  // A stop that waits for the stubborn ones would have ended with 0.
  assertEquals(code, 1);
});

Deno.test("SIGUSR1 restarts only where commands.restart allows it, also since a moment ago", async () => {
  await using place = await makePlace({ config: {} });
  await using gateway = await startGatewayProcess({ place });
  await using member = await Member.join({ port: place.port });

  gateway.signal("SIGUSR1");
  await eventually(
    "it is ignored",
    async () => (await place.log()).includes("ignored SIGUSR1"),
  );
  assertEquals((await member.call("health")).ok, true);
  await place.configure({ commands: { restart: true } });
  await eventually(
    "the change is taken over",
    async () => (await place.log()).includes("configuration reloaded"),
  );
  assert(!member.isClosed);
  gateway.signal("SIGUSR1");

  assertEquals((await member.closed).code, 1012);
  await gateway.printed(/restarted in/);
  await using again = await Member.join({ port: place.port });
  assertEquals((await again.call("health")).ok, true);
});

Deno.test("a full disk costs what cannot be written and nothing else", async (t) => {
  await using disk = await mountSmallDisk();
  if (!disk) return;
  await using place = await makePlace({ stateDir: disk.path });
  const identity = await generateIdentity();
  const device = { port: place.port, identity };
  const words = { triggers: ["before"] };
  let deviceToken: string;
  {
    await using gateway = await startGatewayProcess({ place });
    await using member = await Member.join({ ...device });
    deviceToken = member.hello.auth.deviceToken;
    assertEquals(await member.call("voicewake.set", words), words);
    assertEquals(await member.call("wake", { mode: "next-heartbeat", text: "before" }), {
      ok: true,
    });
    await disk.fill();

    await t.step("what reads goes on", async () => {
      for (const method of ["health", "status", "system-presence", "voicewake.get", "config.get"]) {
        assert((await member.ask(method)).ok, method);
      }
    });
    await t.step("what cannot be kept is not acknowledged", async () => {
      for (
        const [method, params] of [
          ["voicewake.set", { triggers: ["during"] }],
          ["wake", { mode: "next-heartbeat", text: `during ${"x".repeat(20_000)}` }],
        ] as const
      ) {
        const { ok, error } = await member.ask(method, params);
        assertEquals([ok, error?.code], [false, "UNAVAILABLE"], method);
      }
      assertEquals(await member.call("voicewake.get"), words);
    });
    await t.step("who was let in before is let in again, with either secret", async () => {
      for (const auth of [undefined, { deviceToken }]) {
        await using again = await Member.join({ ...device, ...auth && { auth } });
        assertEquals((await again.call("health")).ok, true);
      }
    });
    await t.step("wrong secrets are refused as ever", async () => {
      const error = await refusalOf(Member.join({ port: place.port, auth: { token: "wrong" } }));
      assertEquals(error.details.code, "AUTH_TOKEN_MISMATCH");
    });
    await t.step("a new device is answered, and not let in half", async () => {
      for (let index = 0; index < 20; index++) {
        const stranger = { port: place.port, identity: await generateIdentity() };
        const error = await refusalOf(Member.join(stranger));
        if (error) assertEquals(error.code, "UNAVAILABLE");
      }
    });
    await t.step("it says so, once", () => {
      assertMatch(gateway.stderr, /Cannot write the log .+No space left/);
      assertMatch(gateway.stderr, /Make room on the disk/);
      assert(gateway.stderr.length < 50_000, gateway.stderr);
    });
    await t.step("with room again everything works again", async () => {
      await disk.free();
      const after = { triggers: ["after"] };
      assertEquals(await member.call("voicewake.set", after), after);
      assertEquals(await member.call("wake", { mode: "next-heartbeat", text: "after" }), {
        ok: true,
      });
      await using _new = await Member.join({
        port: place.port,
        identity: await generateIdentity(),
      });
    });
    await t.step("it stops as ever on a full disk", async () => {
      await disk.fill();
      assertEquals((await gateway.stop()).code, 0);
    });
  }
  await t.step("a start on a full disk says what to do", async () => {
    await Deno.remove(place.lockFile);
    await disk.fill();
    const { code, stderr } = await startRefused({ place });
    assertEquals(code, EXIT_REFUSED, stderr);
    assertMatch(stderr, /No space left[^]*Fix: Make room/);
  });
  await t.step("nothing that was acknowledged is lost", async () => {
    await disk.free();
    await using _gateway = await startGatewayProcess({ place });
    await using member = await Member.join({ ...device, auth: { deviceToken } });
    assertEquals(await member.call("voicewake.get"), { triggers: ["after"] });
    const { queuedSystemEvents } = await member.call("status");
    assertEquals(queuedSystemEvents, ["before", "after"]);
  });
});

Deno.test("a state directory that cannot be written is refused with what to do", async () => {
  await using disk = await mountSmallDisk();
  if (!disk) return;
  await disk.readOnly();
  await using place = await makePlace({ stateDir: disk.path });

  const { code, stderr } = await startRefused({ place });

  assertEquals(code, EXIT_REFUSED, stderr);
  assertMatch(
    stderr,
    new RegExp(`cannot write the state directory ${disk.path}[^]*Fix: Make room`),
  );
});

Deno.test("a damaged database is refused by name with what to do, and the file is left alone", async (t) => {
  await using place = await makePlace();
  {
    await using gateway = await startGatewayProcess({ place });
    await using _member = await Member.join({
      port: place.port,
      identity: await generateIdentity(),
    });
    await _member[Symbol.asyncDispose]();
    assertEquals((await gateway.stop()).code, 0);
  }
  const whole = await Deno.readFile(place.database);
  const overwritten = whole.slice();
  overwritten.fill(0x5a, 4_096, 3 * 4_096);
  const damages = {
    garbage: new TextEncoder().encode("this is no database at all, whoever wrote it".repeat(100)),
    "half of it": whole.slice(0, whole.length / 2),
    "a few bytes": whole.slice(0, 100),
    "pages overwritten": overwritten,
  };
  for (const [name, bytes] of Object.entries(damages)) {
    await t.step(name, async () => {
      await Deno.writeFile(place.database, bytes);

      const { code, stderr } = await startRefused({ place });

      assertEquals(code, EXIT_REFUSED, stderr);
      assert(stderr.includes(`Cannot use the database ${place.database}: `), stderr);
      assertMatch(stderr, /Fix: .+ mkdir .+ && mv /);
      assertEquals(await Deno.readFile(place.database), bytes);
    });
  }
  await t.step("what the refusal advises works", async () => {
    const { stderr } = await startRefused({ place });
    const [command] = /mkdir .+$/m.exec(stderr)!;
    const { success } = await new Deno.Command("sh", { args: ["-c", command] }).output();
    assert(success, command);
    await using gateway = await startGatewayProcess({ place });
    assertEquals((await gateway.stop()).code, 0);
  });
});

Deno.test("a device whose clock is wrong by more than ten minutes is told so, either way", async () => {
  await using place = await makePlace();
  await using _gateway = await startGatewayProcess({ place });
  const identity = await generateIdentity();
  const minute = 60_000;

  for (const minutes of [-11, 11, -5e6, 5e6]) {
    const late = Member.join({ port: place.port, identity, skewMs: minutes * minute });
    const { details, message } = await refusalOf(late);
    assertEquals([details.code, message], [
      "DEVICE_AUTH_SIGNATURE_EXPIRED",
      "device signature expired",
    ]);
  }
  for (const minutes of [-9, 9]) {
    await using member = await Member.join({
      port: place.port,
      identity,
      skewMs: minutes * minute,
    });
    assertEquals((await member.call("health")).ok, true);
  }
});

/** Peers that do not react to a goodbye: one reads nothing, others are in the middle of something. */
async function stubbornPeers({ port }: Place): Promise<AsyncDisposableStack> {
  const stack = new AsyncDisposableStack();
  const deaf = stack.use(await Member.join({ port }));
  deaf.pause();
  for (let index = 0; index < 20; index++) {
    stack.use(await RawSocket.upgraded(port)).pause();
  }
  stack.use(await RawSocket.open(port));
  stack.use(await RawSocket.open(port)).write("GET /healthz HTTP/1.1\r\nHost: 127");
  stack.use(await RawSocket.open(port)).write(
    "POST /rpc HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n{",
  );
  return stack;
}

/** The wire error of a connect that was refused; undefined when it was not. */
async function refusalOf(joining: Promise<Member>) {
  try {
    await using _member = await joining;
  } catch (error) {
    if (error instanceof ConnectRefused) return error.error;
    throw error;
  }
}

async function hasPortTools(): Promise<boolean> {
  for (const tool of ["ss", "lsof"]) {
    try {
      await new Deno.Command(tool, { args: ["-v"], stdout: "null", stderr: "null" }).output();
      return true;
    } catch {
      // Not installed: the holder of a port cannot be found out.
    }
  }
  return false;
}

interface SmallDisk extends AsyncDisposable {
  path: string;
  /** Leaves no byte. */
  fill(): Promise<void>;
  free(): Promise<void>;
  readOnly(): Promise<void>;
}

/** A file system of 2 MB; undefined, with a word about it, where that needs rights we lack. */
async function mountSmallDisk(): Promise<SmallDisk | undefined> {
  const path = await Deno.makeTempDir({ prefix: "zero-disk-" });
  const mount = (options: string) =>
    succeeds("mount", ["-t", "tmpfs", "-o", options, "zero", path]);
  if (!await mount("size=2m,mode=0700")) {
    await Deno.remove(path);
    console.log("skipped: mounting a small file system needs root");
    return undefined;
  }
  const filler = `${path}/filler`;
  return {
    path,
    async fill() {
      using file = await Deno.open(filler, { append: true, create: true, mode: 0o600 });
      for (let size = 65_536; size >= 1; size = Math.floor(size / 2)) {
        const bytes = new Uint8Array(size);
        try {
          while (await file.write(bytes) > 0);
        } catch {
          // No room for this much: less may fit.
        }
      }
    },
    free: () => Deno.remove(filler),
    async readOnly() {
      assert(await mount("remount,ro"));
    },
    async [Symbol.asyncDispose]() {
      await succeeds("umount", ["-l", path]);
      await Deno.remove(path);
    },
  };
}

async function succeeds(command: string, args: string[]): Promise<boolean> {
  try {
    const options = { args, stdout: "null", stderr: "null" } as const;
    return (await new Deno.Command(command, options).output()).success;
  } catch {
    return false;
  }
}
