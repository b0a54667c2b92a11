import { assertEquals, assertStringIncludes } from "@std/assert";
import type { ProcessRunner } from "../../tunnel/process.ts";
import { readServeRoutes } from "../../tunnel/tailscale.ts";
import {
  judgeRoutes,
  type OwnRoute,
  TailscaleRoute,
  type TailscaleRouteOptions,
  type Trouble,
  type WantedRoute,
} from "../../gateway/tailscale.ts";
import { openLog } from "../../config/log.ts";
import { zero } from "../support/cli.ts";
import { startTestGateway, TOKEN } from "../support/gateway.ts";
import { eventually, makePlace, startGatewayProcess } from "../support/process.ts";
import {
  FakeTailscale,
  LOGIN,
  makeTailscaleProgram,
  NAME,
  RUNNING,
  type ServeConfig,
  web,
} from "../support/tailscale.ts";

const PORT = 18_789;
const OURS = `http://127.0.0.1:${PORT}`;
const THEIRS = "http://127.0.0.1:3000";
const SERVE: WantedRoute = { host: NAME, mode: "serve", target: OURS, argument: String(PORT) };
const FUNNEL: WantedRoute = { ...SERVE, mode: "funnel" };

async function judge(config: ServeConfig, wanted = SERVE, own?: OwnRoute) {
  const runner: ProcessRunner = {
    run: () => Promise.resolve({ code: 0, stdout: JSON.stringify(config), stderr: "" }),
  };
  return judgeRoutes((await readServeRoutes(runner))!, wanted, own);
}

Deno.test("a route is made where nobody else has one", async () => {
  const elsewhere: ServeConfig = {
    TCP: { "8443": { HTTPS: true }, "22": { TCPForward: "127.0.0.1:2222" } },
    Web: {
      [`${NAME}:8443`]: { Handlers: { "/": { Proxy: THEIRS } } },
      "old-name.tail1234.ts.net:443": { Handlers: { "/": { Proxy: THEIRS } } },
    },
  };

  assertEquals(await judge({}), { kind: "free" });
  assertEquals(await judge(elsewhere), { kind: "free" });
  assertEquals(await judge(elsewhere, FUNNEL), { kind: "free" });
  assertEquals(await judge(web({ "/docs": THEIRS })), { kind: "free" });
  assertEquals(await judge(web({ "/": OURS })), { kind: "there" });
  assertEquals(await judge(web({ "/": OURS }, { isPublic: true }), FUNNEL), { kind: "there" });
});

Deno.test("what this gateway made earlier may be replaced", async () => {
  const old = { host: NAME, mode: "serve", target: "http://127.0.0.1:9999" } as const;
  const open = { ...SERVE, mode: "funnel" } as const;

  assertEquals(await judge(web({ "/": old.target }), SERVE, old), { kind: "free" });
  assertEquals(await judge(web({ "/": OURS }, { isPublic: true }), SERVE, open), { kind: "free" });
  assertEquals(await judge(web({ "/": OURS }), FUNNEL, SERVE), { kind: "free" });
});

Deno.test("another's route is named with what frees it, whatever would happen to it", async (t) => {
  const rows: [string, ServeConfig, WantedRoute, string, string][] = [
    [
      "the path is taken",
      web({ "/": THEIRS }),
      SERVE,
      `/ to ${THEIRS} has the path /`,
      "tailscale serve --https=443 --set-path=/ off",
    ],
    [
      "the port is forwarded",
      { TCP: { "443": { TCPForward: "127.0.0.1:8080" } } },
      SERVE,
      "tcp 127.0.0.1:8080 has port 443",
      "tailscale serve --tcp=443 off",
    ],
    [
      "a terminal has the port",
      { Foreground: { abc: web({ "/": THEIRS }) } },
      SERVE,
      "has port 443",
      "Stop the tailscale command that runs in a terminal",
    ],
    [
      "funnel would publish another path",
      web({ "/": OURS, "/private": THEIRS }),
      FUNNEL,
      `/private to ${THEIRS} would be put on the internet`,
      "--set-path=/private off",
    ],
    [
      "serve would hide another path",
      web({ "/site": THEIRS }, { isPublic: true }),
      SERVE,
      `/site to ${THEIRS} would be taken off the internet`,
      "tailscale funnel --https=443 --set-path=/site off",
    ],
    [
      "somebody published this port by hand",
      web({ "/": OURS }, { isPublic: true }),
      SERVE,
      "is on the internet by Funnel",
      "tailscale funnel --https=443 --set-path=/ off",
    ],
  ];
  for (const [name, config, wanted, message, fix] of rows) {
    await t.step(name, async () => {
      const verdict = await judge(config, wanted) as { kind: string } & Trouble;

      assertEquals(verdict.kind, "taken");
      assertStringIncludes(verdict.message, message);
      assertStringIncludes(verdict.fix, fix);
    });
  }
});

async function withRoute(
  tailscale: ProcessRunner,
  options: Partial<TailscaleRouteOptions>,
  use: (route: TailscaleRoute, told: () => Trouble | undefined) => Promise<void>,
) {
  const directory = options.stateFile ? undefined : await Deno.makeTempDir();
  await using log = openLog({ mirror: () => {} });
  let trouble: Trouble | undefined;
  try {
    await using route = new TailscaleRoute({
      runner: tailscale,
      mode: "serve",
      port: PORT,
      hasTls: false,
      resetOnExit: false,
      stateFile: `${directory}/tailscale.json`,
      log,
      report: (now) => trouble = now,
      ...options,
    });
    await route.start();
    await use(route, () => trouble);
  } finally {
    if (directory) await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("a route is made once, known again, and stays when the gateway stops", async () => {
  const tailscale = new FakeTailscale();
  const directory = await Deno.makeTempDir();
  const stateFile = `${directory}/tailscale.json`;

  for (let start = 0; start < 2; start++) {
    await withRoute(tailscale, { stateFile }, (route, told) => {
      assertEquals(told(), undefined);
      assertEquals(route.name, NAME);
      return Promise.resolve();
    });
  }

  assertEquals(tailscale.changes, [`serve --bg --yes ${PORT}`]);
  assertEquals(tailscale.routes.Web, web({ "/": OURS }).Web);
  await Deno.remove(directory, { recursive: true });
});

Deno.test("with resetOnExit the own route goes, and another's path stays", async () => {
  const tailscale = new FakeTailscale(web({ "/docs": THEIRS }));

  await withRoute(tailscale, { resetOnExit: true }, () => Promise.resolve());

  assertEquals(tailscale.changes, [
    `serve --bg --yes ${PORT}`,
    "serve --yes --https=443 --set-path=/ off",
  ]);
  assertEquals(tailscale.routes.Web, web({ "/docs": THEIRS }).Web);
});

Deno.test("a route somebody made by hand is used, and not taken down", async () => {
  const tailscale = new FakeTailscale(web({ "/": OURS }));

  await withRoute(tailscale, { resetOnExit: true }, (_, told) => {
    assertEquals(told(), undefined);
    return Promise.resolve();
  });

  assertEquals(tailscale.changes, []);
});

Deno.test("an own route that somebody has changed meanwhile is left alone at the end", async () => {
  const tailscale = new FakeTailscale();

  await withRoute(tailscale, { resetOnExit: true }, () => {
    tailscale.routes = web({ "/": THEIRS });
    return Promise.resolve();
  });

  assertEquals(tailscale.routes, web({ "/": THEIRS }));
  assertEquals(tailscale.changes, [`serve --bg --yes ${PORT}`]);
});

Deno.test("a foreign route is never touched, and the trouble names it", async () => {
  const tailscale = new FakeTailscale(web({ "/": THEIRS }));

  await withRoute(tailscale, { resetOnExit: true }, (_, told) => {
    assertStringIncludes(told()!.message, THEIRS);
    return Promise.resolve();
  });

  assertEquals(tailscale.changes, []);
});

Deno.test("switched off, a route of an earlier run is taken down, and only that", async () => {
  const tailscale = new FakeTailscale();
  const directory = await Deno.makeTempDir();
  const stateFile = `${directory}/tailscale.json`;
  await withRoute(tailscale, { stateFile }, () => Promise.resolve());

  for (let start = 0; start < 2; start++) {
    await withRoute(tailscale, { stateFile, mode: "off" }, () => Promise.resolve());
  }

  assertEquals(tailscale.routes, {});
  assertEquals(tailscale.changes.length, 2);
  // The second start found nothing kept, and asked nothing.
  assertEquals(tailscale.asked.at(-1), "serve --yes --https=443 --set-path=/ off");
  await Deno.remove(directory, { recursive: true });
});

Deno.test("from funnel to serve the gateway leaves the internet", async () => {
  const tailscale = new FakeTailscale();
  const directory = await Deno.makeTempDir();
  const stateFile = `${directory}/tailscale.json`;

  await withRoute(tailscale, { stateFile, mode: "funnel" }, () => {
    assertEquals(tailscale.routes.AllowFunnel, { [`${NAME}:443`]: true });
    return Promise.resolve();
  });
  await withRoute(tailscale, { stateFile }, (_, told) => {
    assertEquals(told(), undefined);
    return Promise.resolve();
  });

  assertEquals(tailscale.routes.AllowFunnel, {});
  await Deno.remove(directory, { recursive: true });
});

Deno.test("a gateway with TLS is served as one", async () => {
  const tailscale = new FakeTailscale();

  await withRoute(tailscale, { hasTls: true }, (_, told) => {
    assertEquals(told(), undefined);
    return Promise.resolve();
  });

  assertEquals(tailscale.changes, [`serve --bg --yes https+insecure://127.0.0.1:${PORT}`]);
});

Deno.test("each thing in the way is named with its fix", async (t) => {
  const rows: [string, (fake: FakeTailscale) => ProcessRunner | void, string, string][] = [
    ["no program", () => ({ run: () => Promise.resolve(undefined) }), "not there", "Install"],
    [
      "not connected",
      (fake) => {
        fake.status = { ...RUNNING, BackendState: "NeedsLogin" };
      },
      "not connected: NeedsLogin",
      "tailscale up",
    ],
    [
      "no name",
      (fake) => {
        fake.status = { ...RUNNING, Self: {} };
      },
      "no name in its tailnet",
      "MagicDNS",
    ],
    [
      "no certificates",
      (fake) => {
        fake.status = { ...RUNNING, CertDomains: null };
      },
      "no HTTPS certificates",
      "HTTPS certificates",
    ],
    [
      "refused",
      (fake) => {
        fake.failure = { code: 1, stdout: "", stderr: "usage\naccess denied\u001b[31m" };
      },
      "serve did not bring the route about: access denied\ufffd[31m",
      "sudo tailscale set --operator=$USER",
    ],
  ];
  for (const [name, change, message, fix] of rows) {
    await t.step(name, async () => {
      const fake = new FakeTailscale();
      const runner = change(fake) ?? fake;

      await withRoute(runner, {}, (_, told) => {
        assertStringIncludes(told()!.message, message);
        assertStringIncludes(told()!.fix, fix);
        return Promise.resolve();
      });
    });
  }
});

Deno.test("a funnel that does not publish is trouble, not success", async () => {
  const tailscale = new FakeTailscale();
  tailscale.mayFunnel = false;

  await withRoute(tailscale, { mode: "funnel" }, (_, told) => {
    assertStringIncludes(told()!.message, "tailscale funnel did not bring the route about");
    return Promise.resolve();
  });
});

Deno.test("what was in the way is tried again until it is gone", async () => {
  const tailscale = new FakeTailscale();
  tailscale.status = { ...RUNNING, BackendState: "Starting" };
  const published = Promise.withResolvers<void>();
  let isDegraded = false;
  const report = (trouble: Trouble | undefined) => {
    if (trouble) isDegraded = true;
    else published.resolve();
  };

  await withRoute(tailscale, { retryMs: 5, report }, async () => {
    assertEquals(isDegraded, true);
    tailscale.status = RUNNING;
    await published.promise;
  });

  assertEquals(tailscale.routes.Web, web({ "/": OURS }).Web);
});

Deno.test("a route that is gone comes back", async () => {
  const tailscale = new FakeTailscale();

  await withRoute(tailscale, { checkMs: 5 }, async () => {
    tailscale.routes = {};
    await eventually("the route is made again", () => tailscale.changes.length >= 2);
  });

  assertEquals(tailscale.routes.Web, web({ "/": OURS }).Web);
});

Deno.test("a gateway whose tailscale fails is up on loopback and says degraded", async () => {
  await using gateway = await startTestGateway({
    config: { gateway: { tailscale: { mode: "serve" }, auth: { token: TOKEN } } },
  });
  const client = await gateway.connect();

  // deno-lint-ignore no-explicit-any
  let health: any;
  await eventually("health says degraded", async () => {
    health = await client.call("health", { probe: true });
    return health.degraded;
  });

  const [{ part, message, fix }] = health.degraded;
  assertEquals(part, "tailscale");
  assertStringIncludes(message, "the tailscale command is not there");
  assertStringIncludes(fix, "Install Tailscale");
  const log = await gateway.log();
  assertStringIncludes(log, '"message":"degraded"');
  assertStringIncludes(log, "Install Tailscale");
});

const SERVED = {
  host: NAME,
  "tailscale-user-login": LOGIN,
  "x-forwarded-for": "100.64.0.9",
  "x-forwarded-proto": "https",
  "x-forwarded-host": NAME,
};

Deno.test({
  name: "zero gateway --tailscale serve: route, identity, status and reset, end to end",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using place = await makePlace({
      config: { gateway: { tailscale: { mode: "serve", resetOnExit: true } } },
    });
    const tailscale = await makeTailscaleProgram(`${place.home}/bin`);
    const env = { PATH: `${place.home}/bin:${Deno.env.get("PATH")}` };
    await using gateway = await startGatewayProcess({ place, env, args: ["--verbose"] });
    const connect = async (headers: Record<string, string>) => {
      const { handshake, TestClient } = await import("../support/client.ts");
      const { newDevice } = await import("../support/device.ts");
      const outcome = await handshake(gateway.url, { headers, device: await newDevice() });
      if (!(outcome instanceof TestClient)) return outcome.error.details.code;
      await outcome.close();
      return "let in";
    };
    await eventually(
      "the route is up",
      async () => (await place.log()).includes("published through tailscale"),
    );

    // Let in by Serve and whois, a new device still has to be paired.
    assertEquals(await connect(SERVED), "PAIRING_REQUIRED");
    const forged = { ...SERVED, "x-forwarded-for": "100.64.0.66" };
    assertEquals(await connect(forged), "AUTH_TOKEN_MISSING");
    assertEquals(
      await connect({ ...SERVED, "tailscale-user-login": "eve@example.com" }),
      "AUTH_TOKEN_MISSING",
    );
    assertEquals((await tailscale.routes()).Web, {
      [`${NAME}:443`]: { Handlers: { "/": { Proxy: `http://127.0.0.1:${place.port}` } } },
    });

    const { code } = await gateway.stop();

    assertEquals(code, 0);
    assertEquals(await tailscale.routes(), {});
    const asked = await tailscale.asked();
    assertEquals(asked.slice(0, 3), [
      "status --json",
      "serve status --json",
      `serve --bg --yes ${place.port}`,
    ]);
    assertEquals(asked.at(-1), "serve --yes --https=443 --set-path=/ off");
  },
});

Deno.test({
  name: "zero status says degraded and names the foreign route with the fix",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using place = await makePlace({ config: { gateway: { tailscale: { mode: "serve" } } } });
    const tailscale = await makeTailscaleProgram(`${place.home}/bin`);
    await tailscale.setRoutes(web({ "/": THEIRS }));
    const env = { PATH: `${place.home}/bin:${Deno.env.get("PATH")}` };
    await using gateway = await startGatewayProcess({ place, env });
    await eventually(
      "the log says degraded",
      async () => (await place.log()).includes('"degraded"'),
    );

    const args = ["--port", String(gateway.port), "--token", gateway.token];
    const [status, document, health] = await Promise.all([
      zero(["status", ...args], { home: place.home }),
      zero(["status", "--json", ...args], { home: place.home }),
      zero(["health", "--verbose", ...args], { home: place.home }),
    ]);

    for (const { stdout } of [status, health]) {
      assertStringIncludes(stdout, "Degraded");
      assertStringIncludes(stdout, `/ to ${THEIRS} has the path /`);
      assertStringIncludes(stdout, "tailscale serve --https=443 --set-path=/ off");
    }
    assertEquals(document.json.degraded[0].part, "tailscale");
    assertEquals(await tailscale.routes(), web({ "/": THEIRS }));
    await gateway.stop();
  },
});
