// What others on this machine and on the network can see of a gateway (X26, X27).

import { assert, assertEquals, assertMatch } from "@std/assert";
import { generateIdentity } from "../../rpc/identity.ts";
import {
  type GatewayProcess,
  makePlace,
  startGatewayProcess,
  startRefused,
} from "../support/process.ts";
import { Member } from "./wire.ts";

Deno.test("a default start listens on 127.0.0.1 and ::1 and nowhere else", async () => {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place, token: null });

  const addresses = listening(gateway);

  assert(addresses.includes(`0100007F:${hex(place.port)}`), addresses.join());
  const loopback = [
    `0100007F:${hex(place.port)}`,
    `00000000000000000000000001000000:${hex(place.port)}`,
  ];
  assertEquals(addresses.filter((address) => !loopback.includes(address)), []);
});

Deno.test("whatever the umask, files of the state directory are 0600 and directories 0700", async () => {
  await using place = await makePlace();
  const umask = Deno.umask(0);
  let gateway: GatewayProcess;
  try {
    gateway = await startGatewayProcess({ place, token: null });
  } finally {
    Deno.umask(umask);
  }
  await using _gateway = gateway;
  const token = (await Deno.readTextFile(`${place.stateDir}/gateway.token`)).trim();
  await using member = await Member.join({
    port: place.port,
    auth: { token },
    identity: await generateIdentity(),
  });
  await member.call("voicewake.set", { triggers: ["a"] });
  await member.call("config.patch", { raw: "{ logging: { level: 'debug' } }" });
  await member.call("config.patch", {
    raw: "{ logging: { level: 'info' } }",
    baseHash: (await member.call("config.get")).hash,
  });
  await member.call("logs.tail");

  const modes = [
    ...walk(place.stateDir),
    ...walk(place.home).filter(({ path }) => {
      return path.startsWith(place.configPath);
    }),
  ];

  assert(modes.some(({ path }) => path.endsWith("zero.sqlite-wal")), "it is running");
  assert(modes.some(({ path }) => path.endsWith("zero.json")), "there is a configuration");
  const wrong = modes.filter(({ isDirectory, mode }) => mode !== (isDirectory ? 0o700 : 0o600));
  assertEquals(wrong, []);
});

Deno.test("a state directory that others can read is closed while it is empty, and refused after", async () => {
  await using place = await makePlace();
  await Deno.mkdir(place.stateDir);
  await Deno.chmod(place.stateDir, 0o755);
  {
    await using gateway = await startGatewayProcess({ place });
    assertEquals((await Deno.stat(place.stateDir)).mode! & 0o777, 0o700);
    await gateway.stop();
  }
  await Deno.chmod(place.database, 0o644);

  const { code, stderr } = await startRefused({ place });

  assertEquals(code, 78);
  assertMatch(
    stderr,
    /others on this machine may look at .+zero\.sqlite.+\n?Fix: chmod -R go-rwx /,
  );
});

/** Addresses and ports as `/proc` writes them, of every socket the gateway listens on. */
function listening(gateway: GatewayProcess): string[] {
  const inodes = new Set<string>();
  for (const { name } of Deno.readDirSync(`/proc/${gateway.pid}/fd`)) {
    try {
      const [, inode] = /^socket:\[(\d+)\]$/.exec(
        Deno.readLinkSync(`/proc/${gateway.pid}/fd/${name}`),
      ) ?? [];
      if (inode) inodes.add(inode);
    } catch {
      // Closed since it was listed.
    }
  }
  const LISTEN = "0A";
  return ["tcp", "tcp6"].flatMap((table) => {
    const lines = Deno.readTextFileSync(`/proc/net/${table}`).trim().split("\n").slice(1);
    return lines.map((line) => line.trim().split(/\s+/))
      .filter(([, , , state, , , , , , inode]) => state === LISTEN && inodes.has(inode))
      .map(([, local]) => local);
  });
}

function hex(port: number): string {
  return port.toString(16).toUpperCase().padStart(4, "0");
}

interface Found {
  path: string;
  isDirectory: boolean;
  mode: number;
}

/** A directory and everything in it. */
function walk(path: string): Found[] {
  const { isDirectory, mode } = Deno.lstatSync(path);
  const inside = isDirectory
    ? [...Deno.readDirSync(path)].flatMap(({ name }) => walk(`${path}/${name}`))
    : [];
  return [{ path, isDirectory, mode: mode! & 0o777 }, ...inside];
}
