import { assertEquals } from "@std/assert";
import { findPortHolder, isOthersPort } from "../../tunnel/port_holder.ts";
import type { ProcessRunner } from "../../tunnel/process.ts";
import { startTestGateway } from "../support/gateway.ts";

/** Programs that print what they are told to; others are not there. */
function printing(outputs: Record<string, string>): ProcessRunner {
  return {
    run(command) {
      const stdout = outputs[command];
      return Promise.resolve(stdout === undefined ? undefined : { code: 0, stdout, stderr: "" });
    },
  };
}

/** A listener that takes connections and says nothing that a gateway would. */
function strangerOn(answer: string) {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const served = (async () => {
    for await (const connection of listener) {
      await connection.read(new Uint8Array(1_024));
      await connection.write(new TextEncoder().encode(answer));
      connection.close();
    }
  })();
  return {
    port: listener.addr.port,
    async [Symbol.asyncDispose]() {
      listener.close();
      await served;
    },
  };
}

Deno.test("a gateway on the port is known by its greeting, and its process by what the system says", async () => {
  await using gateway = await startTestGateway();
  const ss = `LISTEN 0 511 127.0.0.1:1 0.0.0.0:* users:(("deno",pid=4711,fd=12))\n`;

  assertEquals(await findPortHolder("127.0.0.1", gateway.port, { runner: printing({ ss }) }), {
    isGateway: true,
    pid: 4711,
    program: "deno",
  });
  assertEquals(
    await findPortHolder("127.0.0.1", gateway.port, {
      runner: printing({ lsof: "p4712\ncdeno\nf12\n" }),
    }),
    { isGateway: true, pid: 4712, program: "deno" },
  );
  assertEquals(await findPortHolder("0.0.0.0", gateway.port, { runner: printing({}) }), {
    isGateway: true,
  });
});

Deno.test("another program on the port is told apart, whatever it answers", async () => {
  for (
    const answer of ["", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]
  ) {
    await using stranger = strangerOn(answer);
    const ss = `users:(("python3",pid=99,fd=3))`;

    assertEquals(await findPortHolder("127.0.0.1", stranger.port, { runner: printing({ ss }) }), {
      isGateway: false,
      pid: 99,
      program: "python3",
    });
  }
});

Deno.test("a port that another user listens at is told apart, where the system says so", async () => {
  const row = (user: string) => `LISTEN 0 128 127.0.0.1:40000 0.0.0.0:* ${user} ino:1 sk:1 <->\n`;
  const cases: [stdout: string, uid: number | null, isOthers: boolean][] = [
    [row("uid:1000"), 1_000, false],
    [row("uid:1001"), 1_000, true],
    [row("uid:1001"), 0, true],
    [row(""), 1_000, false],
    ["", 1_000, false],
    [row("uid:1001"), null, false],
  ];
  for (const [ss, uid, isOthers] of cases) {
    const runner = printing({ ss });
    assertEquals(await isOthersPort(40_000, { runner, uid }), isOthers, `${ss} ${uid}`);
  }
  assertEquals(await isOthersPort(40_000, { runner: printing({}) }), false);

  await using own = strangerOn("");
  assertEquals(await isOthersPort(own.port), false);
});
