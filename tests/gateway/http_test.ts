import { assert, assertEquals } from "@std/assert";
import { startTestGateway, TOKEN } from "../support/gateway.ts";
import { RawSocket } from "../support/raw_socket.ts";

const BATCH = [
  { jsonrpc: "2.0", id: 1, method: "health" },
  { jsonrpc: "2.0", id: 2, method: "no.such" },
  { jsonrpc: "2.0", id: 3, method: "logs.tail", params: { limit: 0 } },
];

Deno.test("probes answer anybody, with GET and HEAD", async () => {
  await using gateway = await startTestGateway();
  const bodies = {
    "/health": { ok: true, status: "live" },
    "/healthz": { ok: true, status: "live" },
    "/ready": { ok: true, status: "ready" },
    "/readyz": { ok: true, status: "ready" },
    "/startupz": { ok: true, status: "started" },
  };

  for (const [path, body] of Object.entries(bodies)) {
    const got = await gateway.http(path);
    const head = await gateway.http(path, { method: "HEAD" });
    const posted = await gateway.http(path, { method: "POST" });
    assertEquals([got.status, got.json], [200, body]);
    assertEquals([head.status, head.text], [200, ""]);
    assertEquals([posted.status, posted.headers.get("allow")], [405, "GET, HEAD"]);
  }
});

Deno.test("while it says goodbye a gateway is alive, not ready, and takes no newcomers", async () => {
  await using gateway = await startTestGateway();

  await gateway.farewell();

  assertEquals((await gateway.http("/healthz")).status, 200);
  const ready = await gateway.http("/readyz");
  assertEquals([ready.status, ready.json], [503, { ok: false, status: "stopping" }]);
  const error = await gateway.open().catch((error) => error);
  assertEquals(error.status, 503);
});

Deno.test("what is not there is 404, in plain text", async () => {
  await using gateway = await startTestGateway();

  for (const path of ["/", "/rpc/", "/nothing", "/healthz/", "/..%2f..%2fetc/passwd"]) {
    const { status, text, headers } = await gateway.http(path);
    assertEquals([status, text], [404, "Not Found"], path);
    assert(headers.get("content-type")!.startsWith("text/plain"));
  }
});

Deno.test("a batch of calls is answered in one document, refused calls among them", async () => {
  await using gateway = await startTestGateway();

  const { status, headers, json } = await gateway.rpc(BATCH);

  assertEquals([status, headers.get("content-type")], [200, "application/json"]);
  const [health, unknown, params] = json;
  assertEquals([health.id, health.result.ok], [1, true]);
  assertEquals([unknown.id, unknown.error.code, unknown.error.message], [
    2,
    -32601,
    "unknown method: no.such",
  ]);
  assertEquals([params.id, params.error.code, params.error.data], [3, -32602, {
    code: "INVALID_REQUEST",
    issues: [{ path: "/limit", message: "must be >= 1" }],
  }]);
});

Deno.test("a single call, and what is no call, are answered with status 200", async () => {
  await using gateway = await startTestGateway();
  const rows: [unknown, unknown, number | undefined][] = [
    [BATCH[0], 1, undefined],
    [{ jsonrpc: "2.0", id: "x", method: "connect" }, "x", -32600],
    [{ jsonrpc: "2.0", id: "x", method: "node.event" }, "x", -32000],
    [{ id: 7, method: "health" }, 7, -32600],
    ["{ no json", null, -32700],
    ["", null, -32700],
    [[], null, -32600],
  ];

  for (const [body, id, code] of rows) {
    const { status, json } = await gateway.rpc(body);
    assertEquals([status, json.jsonrpc, json.id, json.error?.code], [200, "2.0", id, code]);
  }
});

Deno.test("notifications are carried out and answered with 204", async () => {
  await using gateway = await startTestGateway();
  const wake = { jsonrpc: "2.0", method: "wake", params: { mode: "now", text: "told" } };

  const one = await gateway.rpc(wake);
  const batch = await gateway.rpc([wake, wake]);
  const status = await gateway.rpc({ jsonrpc: "2.0", id: 1, method: "status" });

  assertEquals([one.status, one.text, batch.status, batch.text], [204, "", 204, ""]);
  assertEquals(status.json.result.queuedSystemEvents, ["told", "told", "told"]);
});

Deno.test("only the right secret opens, and neither query nor cookie nor basic auth carries it", async () => {
  await using gateway = await startTestGateway();
  const init = { method: "POST", body: JSON.stringify(BATCH[0]) };
  const json = { "content-type": "application/json" };
  const headers: Record<string, string>[] = [
    {},
    { authorization: "" },
    { authorization: "Bearer " },
    { authorization: "Bearer wrong" },
    { authorization: TOKEN },
    { authorization: `Basic ${btoa(`:${TOKEN}`)}` },
    { authorization: `Bearer ${TOKEN}x` },
    { cookie: `token=${TOKEN}` },
    { "x-zero-token": TOKEN },
  ];

  for (const one of headers) {
    const answer = await gateway.http(`/rpc?token=${TOKEN}`, {
      ...init,
      headers: { ...json, ...one },
    });
    assertEquals([answer.status, answer.json], [401, {
      error: { message: "Unauthorized", type: "unauthorized" },
    }]);
  }
  assertEquals((await gateway.rpc(BATCH[0])).status, 200);
});

Deno.test("a device token is no secret for HTTP", async () => {
  await using gateway = await startTestGateway();
  const { auth: { deviceToken } } = await gateway.connect({ device: true });

  const { status } = await gateway.rpc(BATCH[0], { authorization: `Bearer ${deviceToken}` });

  assertEquals(status, 401);
});

Deno.test("mode password takes the password, mode none nobody", async () => {
  await using locked = await startTestGateway({ flags: { password: "correct horse" } });
  await using open = await startTestGateway({ flags: { auth: "none" } });

  assertEquals((await locked.rpc(BATCH[0])).status, 200);
  assertEquals((await locked.rpc(BATCH[0], { authorization: "Bearer wrong" })).status, 401);
  for (const authorization of ["", "Bearer ", "Bearer x"]) {
    assertEquals((await open.rpc(BATCH[0], { authorization })).status, 401);
  }
});

Deno.test("other verbs, other types and large bodies are turned away", async () => {
  await using gateway = await startTestGateway();

  for (const method of ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"]) {
    const { status, headers, json } = await gateway.http("/rpc", { method });
    assertEquals([status, headers.get("allow"), json.error.type], [
      405,
      "POST",
      "method_not_allowed",
    ]);
  }
  for (const type of ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""]) {
    const { status, json } = await gateway.rpc(BATCH[0], { "content-type": type });
    assertEquals([status, json.error.type], [415, "unsupported_media_type"], type);
  }
  const typed = await gateway.rpc(BATCH[0], { "content-type": "Application/JSON; charset=utf-8" });
  assertEquals(typed.status, 200);
  const large = await gateway.rpc(" ".repeat(26_214_401));
  assertEquals([large.status, large.json.error.type], [413, "too_large"]);
});

Deno.test("a body that does not say how long it is stops at the limit too", async () => {
  await using gateway = await startTestGateway();
  const megabyte = new Uint8Array(1_048_576).fill(0x20);
  let sent = 0;
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      if (++sent > 27) controller.close();
      else controller.enqueue(megabyte);
    },
  });

  const { status } = await gateway.http("/rpc", {
    method: "POST",
    headers: { authorization: `Bearer ${TOKEN}`, "content-type": "application/json" },
    body,
  });

  assertEquals(status, 413);
});

Deno.test("a body of a stranger is not read before the secret is", async () => {
  await using gateway = await startTestGateway();
  await using raw = await RawSocket.open(gateway.port);

  await raw.write(
    "POST /rpc HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
      "Authorization: Bearer wrong\r\nContent-Length: 26000000\r\n\r\n",
  );

  assertEquals((await raw.readHead()).status, 401);
});

Deno.test("a foreign Host or Origin is turned away before any route", async () => {
  await using gateway = await startTestGateway();
  const rows: [string[], number][] = [
    [["Host: evil.example"], 421],
    [["Host: localhost."], 421],
    [[`Host: 127.0.0.1.nip.io:${gateway.port}`], 421],
    [["Host: localhost", "Origin: http://evil.example"], 403],
    [["Host: localhost", "Origin: null"], 403],
    [["Host: localhost"], 200],
    [[`Host: localhost:${gateway.port}`, `Origin: http://127.0.0.1:${gateway.port}`], 200],
  ];

  for (const [lines, status] of rows) {
    await using raw = await RawSocket.open(gateway.port);
    await raw.write(`GET /healthz HTTP/1.1\r\n${lines.join("\r\n")}\r\n\r\n`);
    assertEquals((await raw.readHead()).status, status, lines.join());
  }
});

Deno.test("targets that are no paths are answered and break nothing", async () => {
  await using gateway = await startTestGateway();

  for (const target of ["*", "//", "http://[", "/%", "/%00", `/${"a".repeat(9_000)}`]) {
    await using raw = await RawSocket.open(gateway.port);
    await raw.write(`GET ${target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`);
    const answer = await raw.readAll();
    assert(/^HTTP\/1\.1 4\d\d /.test(answer), `${target.slice(0, 20)}: ${answer.slice(0, 60)}`);
  }
  assertEquals((await gateway.http("/healthz")).status, 200);
});

Deno.test("HTTP acts with every scope of an operator and none of a node", async () => {
  await using gateway = await startTestGateway();
  const call = async (method: string, params?: unknown) =>
    (await gateway.rpc({ jsonrpc: "2.0", id: 1, method, params })).json;

  assertEquals((await call("set-heartbeats", { enabled: true })).result.ok, true);
  assertEquals((await call("device.pair.list", {})).result.pending, []);
  assertEquals(
    (await call("node.event", { event: "x" })).error.message,
    "unauthorized role: operator",
  );
});
