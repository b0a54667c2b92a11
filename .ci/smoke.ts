// Does the compiled program start, answer, refuse and stop? One gateway, a few command lines.
//
//   deno run -A .ci/smoke.ts dist/zero

const zero = await Deno.realPath(Deno.args[0]);
const home = await Deno.makeTempDir({ prefix: "zero-smoke-" });
const env = { HOME: home, NO_COLOR: "1", PATH: Deno.env.get("PATH") ?? "" };
const port = freePort();
const checks: [string, boolean, string][] = [];

const gateway = new Deno.Command(zero, {
  args: ["gateway", "--port", String(port)],
  clearEnv: true,
  env,
  stdin: "null",
  stdout: "piped",
  stderr: "inherit",
}).spawn();
try {
  const banner = await firstText(gateway.stdout);
  check("gateway starts and says where it listens", banner.includes(`127.0.0.1:${port}`), banner);

  const health = await run("health", "--json", "--port", String(port));
  check("health", health.code === 0 && JSON.parse(health.out).ok === true, health.out + health.err);

  const status = await run("call", "status", "--port", String(port), "--json");
  check("call status", status.code === 0 && "sessions" in JSON.parse(status.out), status.err);

  const unknown = await run("gateway", "call", "no.such", "--port", String(port), "--json");
  const said = unknown.out + unknown.err;
  check("an unknown method", unknown.code === 1 && said.includes("unknown method: no.such"), said);

  const url = `ws://127.0.0.1:${port}`;
  const wrong = await run("health", "--url", url, "--token", "WRONG-SECRET", "--json");
  const refusal = wrong.out + wrong.err;
  const isClear = wrong.code === 1 && refusal.includes("AUTH_TOKEN_MISMATCH") &&
    !refusal.includes("WRONG-SECRET");
  check("a wrong token", isClear, refusal);

  const twin = await run("gateway", "--port", String(port));
  check("a second gateway exits 78", twin.code === 78, `${twin.code} ${twin.err}`);

  gateway.kill("SIGTERM");
  const { code } = await gateway.status;
  check("SIGTERM stops it with exit code 0", code === 0, String(code));
} finally {
  try {
    gateway.kill("SIGKILL");
  } catch {
    // It has stopped, as it should.
  }
  await Deno.remove(home, { recursive: true });
}

for (const [name, isOk, why] of checks) {
  console.log(`  ${isOk ? "ok  " : "FAIL"} ${name}`);
  if (!isOk) console.log(why.replace(/^/gm, "       "));
}
const failed = checks.filter(([, isOk]) => !isOk).length;
console.log(`${checks.length - failed} passed, ${failed} failed`);
Deno.exit(failed === 0 ? 0 : 1);

function check(name: string, isOk: boolean, why: string) {
  checks.push([name, isOk, why]);
}

async function run(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const { code, stdout, stderr } = await new Deno.Command(zero, {
    args,
    clearEnv: true,
    env,
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return { code, out: decoder.decode(stdout), err: decoder.decode(stderr) };
}

/** What a stream holds by the time it names an address. */
async function firstText(stream: ReadableStream<Uint8Array>): Promise<string> {
  let text = "";
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  while (!text.includes("listening")) {
    const { done, value } = await reader.read();
    if (done) break;
    text += value;
  }
  // What comes later is not needed, and must not fill the pipe.
  (async () => {
    while (!(await reader.read()).done);
  })();
  return text;
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return (listener.addr as Deno.NetAddr).port;
}
