// The files of the tunnels: who owns one, and what is believed of them.

import { assertEquals, assertRejects } from "@std/assert";
import { resolvePaths } from "../../config/paths.ts";
import { TunnelError } from "../../tunnel/error.ts";
import {
  forgetTunnel,
  OwnedRecord,
  readTunnel,
  tunnelFiles,
  type TunnelStatus,
} from "../../tunnel/state.ts";

async function installation() {
  const home = await Deno.makeTempDir({ prefix: "zero-tunnels-" });
  const paths = resolvePaths({ env: {}, home });
  return {
    paths,
    files: tunnelFiles(paths, "box"),
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
}

const UP: TunnelStatus = {
  name: "box",
  target: "me@box",
  state: "up",
  localPort: 40_000,
  remotePort: 18_789,
  pid: Deno.pid,
  generation: 3,
  since: 1,
  restarts: 0,
  lastProbe: null,
  lastError: null,
};

Deno.test("a tunnel has one owner, and its files are for their user alone", async () => {
  await using at = await installation();
  using owned = await OwnedRecord.claim(at.paths, "box", {});
  owned.write(UP);

  await assertRejects(() => OwnedRecord.claim(at.paths, "box", {}), TunnelError, "already");

  const modes = [at.files.record, at.files.lock, `${at.paths.stateDir}/tunnels`].map((file) =>
    Deno.statSync(file).mode! & 0o777
  );
  assertEquals(modes, [0o600, 0o600, 0o700]);
});

Deno.test("what a killed owner left is not believed because somebody else has the lock now", async () => {
  await using at = await installation();
  (await OwnedRecord.claim(at.paths, "box", {}).then((owned) => {
    owned.write(UP);
    return owned;
  }))[Symbol.dispose]();

  using next = await OwnedRecord.claim(at.paths, "box", {});

  const { status } = (await readTunnel(at.paths, "box"))!;
  assertEquals([status.state, status.pid, status.lastError?.kind], ["down", null, "lost"]);
  assertEquals(next.lastGeneration, 3);
});

Deno.test("a tunnel that is kept up is not forgotten, and a forgotten one has no owner but the next", async () => {
  await using at = await installation();
  {
    using owned = await OwnedRecord.claim(at.paths, "box", {});
    owned.write(UP);
    await forgetTunnel(at.paths, "box");
    assertEquals((await readTunnel(at.paths, "box"))?.status.state, "up");
  }

  await forgetTunnel(at.paths, "box");

  assertEquals(await readTunnel(at.paths, "box"), undefined);
  using _first = await OwnedRecord.claim(at.paths, "box", {});
  await assertRejects(() => OwnedRecord.claim(at.paths, "box", {}), TunnelError, "already");
});

Deno.test("a lock on a file that was thrown away meanwhile is none", async () => {
  await using at = await installation();
  await Deno.mkdir(`${at.paths.stateDir}/tunnels`, { recursive: true });
  // Somebody who forgets the tunnel has the file, and takes it away while others wait for it.
  const old = await Deno.open(at.files.lock, { read: true, write: true, create: true });
  await old.lock(true);
  const claiming = OwnedRecord.claim(at.paths, "box", {});
  await Deno.remove(at.files.lock);
  old.close();

  using _owned = await claiming;

  await assertRejects(() => OwnedRecord.claim(at.paths, "box", {}), TunnelError, "already");
});
