import { assertEquals, assertRejects } from "@std/assert";
import { announce, type Announcement, browse, type MdnsOptions } from "../../tunnel/mdns.ts";
import { freePort } from "../support/process.ts";

const BOX: Announcement = {
  service: "_zero-gw._tcp",
  instance: "box (ZERO)",
  host: "box.local",
  port: 18_789,
  txt: { role: "gateway", note: "a=b", long: "x".repeat(300) },
};
const obstacle = await findObstacle();
if (obstacle) console.log(`no multicast on loopback here, ${obstacle}: its tests are left out`);
const ignore = obstacle !== undefined;

/** Real multicast, on the loopback interface and a port of its own: no test hears another. */
function onLoopback(): MdnsOptions {
  return { interfaces: ["127.0.0.1"], port: freePort() };
}

async function findObstacle(): Promise<string | undefined> {
  const network = onLoopback();
  try {
    await using _box = await announce(BOX, network);
    const found = await browse(BOX.service, { ...network, timeoutMs: 1_000 });
    if (found.length === 0) return "nothing comes through";
  } catch (error) {
    return (error as Error).message;
  }
}

/** What is found, as soon as there is so much of it. */
async function found(network: MdnsOptions, count: number) {
  for (let timeoutMs = 250;; timeoutMs *= 2) {
    const claims = await browse(BOX.service, { ...network, timeoutMs });
    if (claims.length === count || timeoutMs > 10_000) return claims;
  }
}

Deno.test({
  name: "a service is found with its name, address and text, until it says goodbye",
  ignore,
  async fn() {
    const network = onLoopback();
    const box = await announce(BOX, network);

    const there = await found(network, 1);
    await box[Symbol.asyncDispose]();
    const gone = await browse(BOX.service, { ...network, timeoutMs: 300 });

    assertEquals(there.map((claim) => ({ ...claim, txt: { ...claim.txt } })), [{
      instance: "box (ZERO)",
      host: "box.local",
      port: 18_789,
      txt: { role: "gateway", note: "a=b" },
      addresses: ["127.0.0.1"],
    }]);
    assertEquals(gone, []);
  },
});

Deno.test({
  name: "who comes second with a name gets a number; who comes back keeps it",
  ignore,
  async fn() {
    const network = onLoopback();
    await using first = await announce({ ...BOX, instance: "Büro v1.2" }, network);
    await using second = await announce(
      { ...BOX, instance: "Büro v1.2", host: "other.local" },
      network,
    );
    await using again = await announce({ ...BOX, instance: "Büro v1.2" }, network);

    assertEquals([first, second, again].map(({ instance }) => instance), [
      "Büro v1-2",
      "Büro v1-2 2",
      "Büro v1-2",
    ]);
  },
});

Deno.test({
  name: "a name too long for a label is shortened between characters",
  ignore,
  async fn() {
    const network = onLoopback();
    await using box = await announce({ ...BOX, instance: `x${"ü".repeat(60)}` }, network);

    assertEquals(box.instance, `x${"ü".repeat(28)}`);
    assertEquals((await found(network, 1))[0].instance, box.instance);
  },
});

Deno.test({
  name: "an announcement that is called off ends at once, and nothing is left open",
  ignore,
  async fn() {
    const end = new AbortController();
    const announced = announce(BOX, { ...onLoopback(), signal: end.signal });
    end.abort();

    await assertRejects(() => announced, DOMException);
  },
});

Deno.test({
  name: "packets that are none, and answers that make no sense, are passed over",
  ignore,
  async fn() {
    const network = onLoopback();
    await using _box = await announce(BOX, network);
    const { createSocket } = await import("node:dgram");
    const socket = createSocket("udp4");
    await new Promise<void>((resolve) => socket.bind(0, "127.0.0.1", () => resolve()));
    socket.setMulticastInterface("127.0.0.1");
    const { default: createMdns } = await import("multicast-dns");
    const stranger = createMdns({ interface: "127.0.0.1", bind: "0.0.0.0", port: network.port });
    const flood = setInterval(() => {
      for (const bytes of [new Uint8Array([1, 2, 3]), crypto.getRandomValues(new Uint8Array(99))]) {
        socket.send(bytes, network.port!, "224.0.0.251");
      }
      // A pointer to nothing, and one that leads out of the service.
      for (const data of ["ghost._zero-gw._tcp.local", "printer._ipp._tcp.local"]) {
        stranger.respond([{ name: "_zero-gw._tcp.local", type: "PTR", data }]);
      }
    }, 20);

    const claims = await found(network, 1);
    clearInterval(flood);
    await new Promise<void>((resolve) => socket.close(() => resolve()));
    await new Promise<void>((resolve) => stranger.destroy(() => resolve()));

    assertEquals(claims.map(({ instance }) => instance), ["box (ZERO)"]);
  },
});

Deno.test("no network, and one that cannot be joined, are errors with their reason", async () => {
  await assertRejects(() => announce(BOX, { interfaces: [] }), Error, "no network with IPv4");
  await assertRejects(
    () => browse(BOX.service, { interfaces: ["203.0.113.77"], port: freePort(), timeoutMs: 1 }),
    Error,
    "addMembership",
  );
});
