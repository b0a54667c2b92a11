import { assertEquals } from "@std/assert";
import { browserControl } from "../../../gateway/node/browser_proxy.ts";
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
  assertEquals(caps, ["browser", "system"]);
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

Deno.test("a browser is lent only from loopback, and only where that is switched on", () => {
  const url = "http://127.0.0.1:18791";
  const is = (config: object, env = {}) => browserControl(config as Config, env) !== undefined;

  assertEquals(is({ browser: { controlUrl: url } }), true);
  assertEquals(is({}, { ZERO_BROWSER_CONTROL_URL: url }), true);
  assertEquals(is({}), false);
  assertEquals(is({ browser: { controlUrl: "http://192.168.1.5:18791" } }), false);
  assertEquals(is({ browser: { controlUrl: "http://169.254.169.254/" } }), false);
  assertEquals(is({ browser: { controlUrl: url, enabled: false } }), false);
  assertEquals(
    is({ browser: { controlUrl: url }, nodeHost: { browserProxy: { enabled: false } } }),
    false,
  );
});
