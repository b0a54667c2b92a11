import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { browserControl, proxyRequest } from "../../../gateway/node/browser_proxy.ts";
import { CommandError } from "../../../gateway/node/command_error.ts";
import type { Config } from "../../../config/schema.ts";
import { startTestGateway } from "../../support/gateway.ts";
import { eventually } from "../../support/process.ts";
import { invoke, refusedBy, startTestNode, tempHome } from "./support.ts";

interface Seen {
  url: string;
  method: string;
  authorization: string | null;
  body: string;
}

/** A browser control server on loopback. */
function startControl(answer: (request: Request) => unknown, port = 0) {
  const seen: Seen[] = [];
  const server = Deno.serve(
    { hostname: "127.0.0.1", port, onListen: () => {} },
    async (request) => {
      const { pathname, search } = new URL(request.url);
      seen.push({
        url: pathname + search,
        method: request.method,
        authorization: request.headers.get("authorization"),
        body: await request.text(),
      });
      const given = answer(request);
      return given instanceof Response ? given : Response.json(given);
    },
  );
  const url = `http://127.0.0.1:${server.addr.port}`;
  return { seen, url, port: server.addr.port, [Symbol.asyncDispose]: () => server.shutdown() };
}

const PROXY = "browser.proxy";

Deno.test("the browser is lent while its control server answers, and passed on with its token", async () => {
  await using control = startControl(() => ({ tabs: 2 }));
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, {
    config: { browser: { controlUrl: control.url, controlToken: "control-token-0123456789" } },
  });
  const operator = await gateway.connect();

  const answer = await invoke(operator, node, PROXY, {
    path: "/tabs?x=1",
    method: "post",
    query: { limit: 3, none: null },
    profile: "work",
    body: { url: "about:blank" },
  });

  assertEquals(answer, { result: { tabs: 2 } });
  assertEquals(control.seen.at(-1), {
    url: "/tabs?x=1&limit=3&profile=work",
    method: "POST",
    authorization: "Bearer control-token-0123456789",
    body: '{"url":"about:blank"}',
  });
  const { nodes: [{ caps }] } = await operator.call("node.list", {});
  assertEquals(caps, ["browser", "invoke.progress", "system"]);
});

Deno.test("a browser that comes later is declared then, and taken back when it goes", async () => {
  await using gateway = await startTestGateway();
  const operator = await gateway.connect();
  const has = async () => (await operator.call("node.list", {})).nodes[0]?.commands.includes(PROXY);
  const first = startControl(() => ({}));
  const { port, url } = first;
  await first[Symbol.asyncDispose]();
  await using _node = await startTestNode(gateway, {
    config: { browser: { controlUrl: url } },
    browserCheckMs: 20,
  });
  assertEquals(await has(), false);

  const control = startControl(() => ({}), port);
  await eventually("the browser is declared", has);
  await control[Symbol.asyncDispose]();

  await eventually("the browser is taken back", async () => await has() === false);
});

Deno.test("a request stays with the control server", async () => {
  await using other = startControl(() => ({ secret: true }));
  await using control = startControl((request) =>
    new URL(request.url).pathname === "/away" ? Response.redirect(`${other.url}/x`) : {}
  );
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, {
    config: { browser: { controlUrl: `${control.url}/api` } },
  });
  const operator = await gateway.connect();
  for (const path of ["/../x", "../x", "/..%2f..//../x", "/a/../../x"]) {
    const call = { nodeId: node.nodeId, command: PROXY, params: { path }, idempotencyKey: path };
    await operator.request("node.invoke", call);
  }
  await invoke(operator, node, PROXY, { path: `${other.url}/x` });
  await invoke(operator, node, PROXY, { path: "//evil.example/x" });

  const beyond = control.seen.filter(({ url }) => !url.startsWith("/api/"));
  assertEquals(beyond, []);
  assertEquals(other.seen, []);
});

Deno.test("a redirect of the control server is not followed", async () => {
  await using other = startControl(() => ({ secret: true }));
  await using control = startControl((request) =>
    new URL(request.url).pathname === "/away" ? Response.redirect(`${other.url}/x`) : {}
  );
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, {
    config: { browser: { controlUrl: control.url } },
  });
  const operator = await gateway.connect();

  const message = await refusedBy(operator, node, PROXY, { path: "/away" });

  assertEquals(message.startsWith("browser request failed: "), true, message);
  assertEquals(other.seen, []);
});

Deno.test("only the profiles that are offered are used and listed", async () => {
  const profiles = [{ name: "work" }, { name: "private" }];
  await using control = startControl(() => ({ profiles }));
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, {
    config: {
      browser: { controlUrl: control.url },
      nodeHost: { browserProxy: { allowProfiles: ["work"] } },
    },
  });
  const operator = await gateway.connect();
  const refused = (params: object) => refusedBy(operator, node, PROXY, params);
  const text = "browser profile not allowed";

  assertEquals(await refused({ path: "/tabs", profile: "private" }), text);
  assertEquals(await refused({ path: "/tabs" }), text);
  assertEquals(await refused({ path: "/tabs?profile=private" }), text);
  assertEquals(await refused({ path: "/tabs", query: { profile: "private" } }), text);
  assertEquals(
    await refused({ path: "/tabs", method: "POST", profile: "work", body: { profile: "private" } }),
    text,
  );
  assertEquals(await invoke(operator, node, PROXY, { path: "/profiles" }), {
    result: { profiles: [{ name: "work" }] },
  });
  assertEquals((await invoke(operator, node, PROXY, { path: "/x", profile: "work" })).result, {
    profiles,
  });
});

Deno.test("files that an answer names come along", async () => {
  await using home = await tempHome();
  await Deno.writeTextFile(`${home.path}/shot.png`, "png");
  await Deno.writeTextFile(`${home.path}/load.bin`, "bin");
  const result = {
    imagePath: `${home.path}/shot.png`,
    download: { path: `${home.path}/load.bin` },
    path: `${home.path}/none`,
  };
  await using control = startControl(() => result);
  await using gateway = await startTestGateway();
  await using node = await startTestNode(gateway, {
    config: { browser: { controlUrl: control.url } },
  });
  const operator = await gateway.connect();

  const answer = await invoke(operator, node, PROXY, { path: "/shot" });

  assertEquals(answer.files, [
    { path: result.imagePath, base64: btoa("png"), mimeType: "image/png" },
    { path: result.download.path, base64: btoa("bin") },
  ]);
  await Deno.truncate(result.imagePath, 10 * 1024 * 1024 + 1);
  assertEquals(
    await refusedBy(operator, node, PROXY, { path: "/shot" }),
    "browser file exceeds 10MB",
  );
});

Deno.test("a browser is lent from this machine, or with a token over https or the tailnet", () => {
  const url = "http://127.0.0.1:18791";
  const is = (config: object, env = {}) => browserControl(config as Config, env) !== undefined;
  const at = (controlUrl: string, controlToken?: string) =>
    is({ browser: { controlUrl, controlToken } });

  assertEquals(at(url), true);
  assertEquals(is({}, { ZERO_BROWSER_CONTROL_URL: url }), true);
  assertEquals(is({}), false);
  assertEquals(is({ browser: { controlUrl: url, enabled: false } }), false);
  assertEquals(
    is({ browser: { controlUrl: url }, nodeHost: { browserProxy: { enabled: false } } }),
    false,
  );
  for (
    const elsewhere of ["https://browser.example", "http://100.64.0.9:18791", "http://b.t.ts.net"]
  ) {
    assertEquals([at(elsewhere), at(elsewhere, "token")], [false, true], elsewhere);
  }
  for (
    const never of [
      "http://192.168.1.5:18791",
      "http://browser.example",
      "http://b.ts.net.example",
      "http://169.254.169.254/",
      "https://169.254.169.254/",
      "https://[fe80::1]/",
      "https://[::ffff:169.254.169.254]/",
      "http://100.100.100.200/",
      "ftp://127.0.0.1",
    ]
  ) {
    assertEquals(at(never, "token"), false, never);
  }
});

/** A control server in the tailnet whose name has these addresses, one after the other. */
function elsewhere(url: string, ...answers: string[][]) {
  const asked: string[] = [];
  return {
    asked,
    control: {
      url,
      token: "token",
      isOnThisMachine: false,
      allowProfiles: [],
      resolve(name: string) {
        asked.push(name);
        return Promise.resolve(answers.length > 1 ? answers.shift()! : answers[0]);
      },
    },
  };
}

Deno.test("a name that leads to a machine's own secrets, or out of the tailnet, is not asked", async () => {
  const rows: [string, string[]][] = [
    ["http://b.t.ts.net:9", ["169.254.169.254"]],
    ["http://b.t.ts.net:9", ["100.64.0.9", "127.0.0.1"]],
    ["http://b.t.ts.net:9", ["100.100.100.200"]],
    ["http://b.t.ts.net:9", ["::ffff:169.254.169.254"]],
    ["http://b.t.ts.net:9", []],
    ["https://browser.example:9", ["169.254.169.254"]],
    ["https://browser.example:9", ["93.184.216.34", "fe80::1%eth0"]],
    ["https://browser.example:9", ["fd00:ec2::254"]],
  ];
  for (const [url, addresses] of rows) {
    const { control, asked } = elsewhere(url, addresses);

    const error = await assertRejects(
      () => proxyRequest({ path: "/tabs" }, control, AbortSignal.timeout(20_000)),
      CommandError,
    );

    assertStringIncludes(error.message, "browser request refused");
    assertEquals(asked.length, 1);
  }
});

Deno.test("a redirect is not followed, wherever it leads", async (t) => {
  await using other = startControl(() => ({ secret: true }));
  for (const location of ["http://169.254.169.254/latest", `${other.url}/x`, "/same"]) {
    await t.step(location === "/same" ? location : new URL(location).hostname, async () => {
      await using control = startControl(() => Response.redirect(new URL(location, other.url)));
      const here = { url: control.url, isOnThisMachine: true, allowProfiles: [] };

      await assertRejects(
        () => proxyRequest({ path: "/tabs" }, here, AbortSignal.timeout(20_000)),
        CommandError,
        "browser request failed",
      );

      assertEquals(other.seen, []);
    });
  }
});
