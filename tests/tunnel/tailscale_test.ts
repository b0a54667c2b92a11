import { assertEquals } from "@std/assert";
import type { ProcessRunner } from "../../tunnel/process.ts";
import {
  publishRoute,
  readServeRoutes,
  readTailnetSelf,
  unpublishRoute,
} from "../../tunnel/tailscale.ts";
import { FakeTailscale, NAME, web } from "../support/tailscale.ts";

/** A `tailscale` that prints this, whatever it is asked. */
function printing(stdout: string, code = 0): ProcessRunner {
  return { run: () => Promise.resolve({ code, stdout, stderr: "" }) };
}

const ABSENT: ProcessRunner = { run: () => Promise.resolve(undefined) };

Deno.test("the machine's name in its tailnet comes without the dot", async () => {
  assertEquals(await readTailnetSelf(new FakeTailscale()), {
    state: "Running",
    name: NAME,
    addresses: ["100.64.0.7"],
    hasCertificates: true,
  });
});

Deno.test("a status with gaps says what it says, and nonsense says nothing", async () => {
  const nobody = { state: "unknown", addresses: [], hasCertificates: false };

  assertEquals(await readTailnetSelf(printing("{}")), nobody);
  assertEquals(await readTailnetSelf(printing('{"Self":null,"CertDomains":null}')), nobody);
  assertEquals(
    await readTailnetSelf(printing('{"BackendState":"Stopped","TailscaleIPs":[1,"100.64.0.7"]}')),
    { state: "Stopped", addresses: ["100.64.0.7"], hasCertificates: false },
  );
  for (const runner of [ABSENT, printing("{}", 1), printing("not json"), printing("null")]) {
    assertEquals(await readTailnetSelf(runner), undefined);
  }
});

Deno.test("every kind of route is read, those of a terminal too", async () => {
  const routes = await readServeRoutes(printing(JSON.stringify({
    TCP: { "443": { HTTPS: true }, "22": { TCPForward: "127.0.0.1:2222" } },
    Web: {
      "box.tail1234.ts.net:443": {
        Handlers: { "/": { Proxy: "http://127.0.0.1:3000" }, "/docs": { Path: "/srv/docs" } },
      },
    },
    AllowFunnel: { "box.tail1234.ts.net:443": true },
    Foreground: {
      abc: { Web: { "box.tail1234.ts.net:8443": { Handlers: { "/": { Text: "hello" } } } } },
    },
  })));

  const open = { host: NAME, port: 443, isPublic: true, isForeground: false };
  assertEquals(routes, [
    { port: 22, target: "tcp 127.0.0.1:2222", isPublic: false, isForeground: false },
    { ...open, path: "/", target: "http://127.0.0.1:3000" },
    { ...open, path: "/docs", target: "/srv/docs" },
    {
      host: NAME,
      port: 8_443,
      path: "/",
      target: "a text",
      isPublic: false,
      isForeground: true,
    },
  ]);
});

Deno.test("no routes and no answer are two things", async () => {
  assertEquals(await readServeRoutes(printing("{}")), []);
  assertEquals(await readServeRoutes(printing("null")), []);
  for (const runner of [ABSENT, printing("{}", 1), printing("No serve config"), printing("7")]) {
    assertEquals(await readServeRoutes(runner), undefined);
  }
  for (const odd of ['{"Web":7}', '{"Web":{"x":{"Handlers":null}}}', '{"TCP":{"1":null}}']) {
    assertEquals(await readServeRoutes(printing(odd)), [], odd);
  }
});

Deno.test("a route is made and unmade by exactly these commands", async () => {
  const tailscale = new FakeTailscale(web({ "/docs": "http://127.0.0.1:3000" }));

  const { isDone } = await publishRoute(tailscale, "serve", "18789");
  const isGone = await unpublishRoute(tailscale, "serve", { port: 443, path: "/" }, 1_000);

  assertEquals([isDone, isGone], [true, true]);
  assertEquals(tailscale.asked, [
    "serve --bg --yes 18789",
    "serve --yes --https=443 --set-path=/ off",
  ]);
  assertEquals(tailscale.routes.Web, web({ "/docs": "http://127.0.0.1:3000" }).Web);
});
