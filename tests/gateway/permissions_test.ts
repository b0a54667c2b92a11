import { assert, assertEquals } from "@std/assert";
import { refuseForeignState } from "../../gateway/permissions.ts";
import { StartRefusal } from "../../gateway/preflight.ts";
import { generateIdentity } from "../../rpc/identity.ts";
import { makePlace, type Place, startGatewayProcess, startRefused } from "../support/process.ts";
import { type Json, Member, type MemberOptions } from "../security/wire.ts";

async function modeOf(path: string): Promise<number> {
  return ((await Deno.stat(path)).mode ?? 0) & 0o777;
}

/** A place where a gateway has run already. */
async function usedPlace(): Promise<Place> {
  const place = await makePlace();
  await using gateway = await startGatewayProcess({ place, token: null });
  await gateway.stop();
  return place;
}

/** What a remote device connects with, through nobody the gateway trusts. */
const REMOTE = { "X-Forwarded-For": "203.0.113.7" };

async function refusal(options: MemberOptions): Promise<Json> {
  return await Member.join(options).then(() => {
    throw new Error("the connect was not refused");
  }, ({ error }) => error);
}

Deno.test("a state directory that others can look into is not used, and the fix is a command that works", async () => {
  await using place = await usedPlace();
  const { stateDir } = place;
  await Deno.chmod(stateDir, 0o755);

  const refused = await startRefused({ place, token: null });

  assertEquals(refused.code, 78);
  assertEquals(refused.stderr.trim().split("\n"), [
    `Gateway failed to start: others on this machine may look at ${stateDir} (mode 0755)`,
    `Fix: chmod -R go-rwx ${stateDir}`,
  ]);
  const [command, ...args] = `chmod -R go-rwx ${stateDir}`.split(" ");
  await new Deno.Command(command, { args }).output();
  await using gateway = await startGatewayProcess({ place, token: null });
  assertEquals((await gateway.stop()).code, 0);
});

Deno.test("a file of the state directory that others can read is not used either", async () => {
  await using place = await usedPlace();
  for (const name of ["zero.sqlite", "gateway.token"]) {
    const path = `${place.stateDir}/${name}`;
    await Deno.chmod(path, 0o644);

    const { code, stderr } = await startRefused({ place, token: null });

    assertEquals(code, 78);
    assert(stderr.includes(`may look at ${path} (mode 0644)`), stderr);
    assert(stderr.includes(`Fix: chmod -R go-rwx ${place.stateDir}`), stderr);
    await Deno.chmod(path, 0o600);
  }
});

Deno.test("an empty state directory is closed to others, whatever the umask says", async () => {
  await using place = await makePlace();
  await Deno.mkdir(place.stateDir, { mode: 0o755 });
  await Deno.chmod(place.stateDir, 0o755);

  const modes: Record<string, number> = {};
  const look = async () => {
    for await (const path of filesBelow(place.stateDir)) {
      modes[path.slice(place.stateDir.length + 1)] = await modeOf(path);
    }
  };
  await using gateway = await startGatewayProcess({ place, token: null });

  await look();
  await gateway.stop();
  await look();

  assertEquals(await modeOf(place.stateDir), 0o700);
  const open = Object.entries(modes).filter(([, mode]) => (mode & 0o077) !== 0);
  assertEquals(open, []);
  for (const name of ["zero.sqlite", "zero.sqlite-wal", "gateway.token", "logs/gateway.log"]) {
    assertEquals(modes[name], 0o600, `${name} in ${Object.keys(modes)}`);
  }
});

Deno.test("a state directory of another user is refused with both ways out", {
  ignore: Deno.uid() !== 0,
}, async () => {
  await using place = await usedPlace();
  await Deno.chown(place.stateDir, 65_534, 65_534);

  const { code, stderr } = await startRefused({ place, token: null });

  assertEquals(code, 78);
  assert(stderr.includes(`${place.stateDir} belongs to another user (uid 65534)`), stderr);
  assert(stderr.includes("sudo chown -R") && stderr.includes("--profile NAME"), stderr);
});

Deno.test("a directory with nothing of a gateway is tightened, one with something is refused", async () => {
  const stateDir = await Deno.makeTempDir();
  try {
    await Deno.chmod(stateDir, 0o750);
    await refuseForeignState(stateDir);
    assertEquals(await modeOf(stateDir), 0o700);
    await Deno.mkdir(`${stateDir}/identity`, { mode: 0o700 });
    await Deno.writeTextFile(`${stateDir}/identity/device.json`, "{}", { mode: 0o600 });
    await Deno.chmod(stateDir, 0o750);

    const error = await refuseForeignState(stateDir).then(() => undefined, (error) => error);

    assert(error instanceof StartRefusal);
    assertEquals(await modeOf(stateDir), 0o750);
  } finally {
    await Deno.remove(stateDir, { recursive: true });
  }
});

Deno.test("what was acknowledged is there after a kill -9 in the same moment", async () => {
  await using place = await makePlace();
  const { port } = place;
  const phone = await generateIdentity();
  const laptop = await generateIdentity();
  const scopes = ["operator.read"];
  const atOnce = async (act: (owner: Member) => Promise<Json>) => {
    await using gateway = await startGatewayProcess({ place });
    await using owner = await Member.join({ port });
    const answer = await act(owner);
    await gateway.stop("SIGKILL");
    return answer;
  };

  const requestId = await atOnce(async () => {
    const error = await refusal({ port, headers: REMOTE, identity: phone, scopes });
    return error.details.requestId;
  });
  const approved = await atOnce((owner) => owner.call("device.pair.approve", { requestId }));
  assertEquals(approved.device.scopes, scopes);
  const { deviceId } = phone;
  const { token } = await atOnce((owner) =>
    owner.call("device.token.rotate", { deviceId, role: "operator" })
  );
  const { secret } = await atOnce((owner) => owner.call("device.invite.create", { scopes }));
  await atOnce(async () => {
    const remote = { port, headers: REMOTE, scopes };
    await using member = await Member.join({
      ...remote,
      identity: phone,
      auth: { deviceToken: token },
    });
    // The signature covers whatever secret is sent; an invitation is the last of them.
    await using guest = await Member.join({
      ...remote,
      identity: laptop,
      auth: { bootstrapToken: secret },
    });
    assertEquals([member.hello.auth.method, guest.hello.auth.scopes], ["device-token", scopes]);
  });
  const trail = await atOnce((owner) => owner.call("audit.list", {}));

  await using _gateway = await startGatewayProcess({ place });
  const { details } = await refusal({
    port,
    headers: REMOTE,
    identity: await generateIdentity(),
    scopes,
    auth: { bootstrapToken: secret },
  });
  assertEquals(details.code, "INVITE_INVALID");
  const happened = trail.entries.map(({ event }: Json) => event).reverse();
  assertEquals(happened, [
    "device.requested",
    "connect.refused",
    "device.approved",
    "token.rotated",
    "invite.created",
    "invite.used",
  ]);
});

async function* filesBelow(directory: string): AsyncGenerator<string> {
  for await (const { name, isDirectory } of Deno.readDir(directory)) {
    const path = `${directory}/${name}`;
    yield path;
    if (isDirectory) yield* filesBelow(path);
  }
}
