import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  Client,
  ClosedError,
  type ConnectOptions,
  type DeviceToken,
  GatewayTimeoutError,
  reconnectDelayMs,
} from "../../rpc/client.ts";
import { RpcError } from "../../rpc/error.ts";
import { decodeSignature, identityFromSeed, signedText, verify } from "../../rpc/identity.ts";
import {
  CHALLENGE,
  helloOk,
  NONCE,
  type Peer,
  type ScriptedGateway,
  startScriptedGateway,
} from "../support/scripted_gateway.ts";

const IDENTITY = await identityFromSeed(new Uint8Array(32).fill(7));
const CLIENT = { id: "cli", mode: "cli", version: "1.2.3", platform: "linux" };
const MISMATCH = {
  code: "INVALID_REQUEST",
  message: "unauthorized: gateway token mismatch (provide gateway auth token)",
  details: {
    code: "AUTH_TOKEN_MISMATCH",
    layer: "auth",
    retryable: false,
    fix: "zero gateway token",
    canRetryWithDeviceToken: true,
  },
};

function connect(gateway: ScriptedGateway, options: Partial<ConnectOptions> = {}) {
  return Client.connect({
    open: () => new WebSocket(gateway.url),
    client: CLIENT,
    scopes: ["operator.read", "operator.write"],
    ...options,
  });
}

/** Device tokens in memory, with a record of what was asked. */
function tokensOf(...kept: [gatewayId: string, token: string][]) {
  const stored = new Map(kept);
  const log: string[] = [];
  return {
    stored,
    log,
    find(gatewayId: string | undefined, role: string) {
      log.push(`find ${gatewayId} ${role}`);
      const token = stored.get(String(gatewayId));
      return Promise.resolve(token ? { token, role, scopes: ["operator.read"] } : undefined);
    },
    keep(gatewayId: string | undefined, { token }: DeviceToken) {
      stored.set(String(gatewayId), token);
      return Promise.resolve();
    },
    drop(gatewayId: string | undefined) {
      stored.delete(String(gatewayId));
      return Promise.resolve();
    },
  };
}

async function isSignedBy(
  params: { device: Record<string, string & number>; scopes: string[] },
  version: 1 | 2,
  token?: string,
) {
  const { id, publicKey, signature, signedAt, nonce } = params.device;
  const text = signedText(version, {
    deviceId: id,
    clientId: "cli",
    clientMode: "cli",
    role: "operator",
    scopes: params.scopes,
    signedAtMs: signedAt,
    token,
    nonce,
  });
  return await verify(publicKey, decodeSignature(signature)!, text);
}

Deno.test("connect answers the challenge with payload v2, its nonce and its clock", async () => {
  let params;
  await using gateway = await startScriptedGateway(async (peer) => params = await peer.welcome());

  await using client = await connect(gateway, { identity: IDENTITY, auth: { token: "sekret" } });

  const { device, ...rest } = params as never as Record<string, Record<string, unknown>>;
  assertEquals(rest, {
    minProtocol: 3,
    maxProtocol: 4,
    client: CLIENT,
    caps: [],
    role: "operator",
    scopes: ["operator.read", "operator.write"],
    auth: { token: "sekret" },
  } as never);
  assertEquals([device.nonce, device.signedAt], [NONCE, CHALLENGE.ts]);
  assert(await isSignedBy(params!, 2, "sekret"));
  assertEquals(client.hello.server.host, "scripted");
});

Deno.test("connect without a challenge is sent after a while, signed with payload v1 and the own clock", async () => {
  let params;
  await using gateway = await startScriptedGateway(async (peer) => {
    const { id, params: got } = await peer.receive();
    params = got;
    peer.answer(id, helloOk({ protocol: 3 }));
  });

  await using client = await connect(gateway, { identity: IDENTITY, now: () => 1234 });

  assertEquals(client.hello.protocol, 3);
  assertEquals((params as never as { device: object }).device, {
    ...(params as never as { device: object }).device,
    signedAt: 1234,
  });
  assert(!("nonce" in (params as never as { device: object }).device));
  assert(await isSignedBy(params!, 1));
});

Deno.test("connect takes its own clock when the challenge has no usable one", async () => {
  let params;
  await using gateway = await startScriptedGateway(async (peer) => {
    params = await peer.welcome({ challenge: { nonce: NONCE, ts: "soon" } });
  });

  await using _client = await connect(gateway, { identity: IDENTITY, now: () => 4321 });

  assertEquals((params as never as { device: { signedAt: number } }).device.signedAt, 4321);
});

Deno.test("a refused connect tells close code, reason and the details of the refusal", async () => {
  await using gateway = await startScriptedGateway((peer) => peer.turnAway(MISMATCH));

  const error = await assertRejects(() => connect(gateway, { auth: { token: "x" } }), ClosedError);

  assertEquals(error.message, `gateway closed (1008 policy violation): ${MISMATCH.message}`);
  assertEquals([error.code, error.hint, error.wasOpen], [1008, "policy violation", true]);
  assertEquals(error.refusal?.code, "INVALID_REQUEST");
  assertEquals(error.details.fix, "zero gateway token");
});

Deno.test("a gateway that refuses and does not close is left with 4008 connect failed", async () => {
  const left = Promise.withResolvers<unknown>();
  await using gateway = await startScriptedGateway(async (peer) => {
    peer.event("connect.challenge", CHALLENGE);
    const { id } = await peer.receive();
    peer.refuse(id, { code: "NOT_PAIRED", message: "pairing required" });
    left.resolve(await peer.closed);
  });

  const error = await assertRejects(() => connect(gateway), ClosedError);

  assertEquals([error.code, error.reason], [1008, "pairing required"]);
  assertEquals(await left.promise, { code: 4008, reason: "connect failed" });
});

Deno.test("a connection that ends before hello-ok fails connect with its code", async () => {
  await using gateway = await startScriptedGateway((peer) => peer.close(1012, "service restart"));

  const error = await assertRejects(() => connect(gateway), ClosedError);

  assertEquals(error.message, "gateway closed (1012 service restart): service restart");
});

Deno.test("a port nobody listens on fails connect without ever being open", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();

  const error = await assertRejects(
    () => Client.connect({ open: () => new WebSocket(`ws://127.0.0.1:${port}`), client: CLIENT }),
    ClosedError,
  );

  assertEquals([error.code, error.wasOpen, error.refusal], [1006, false, undefined]);
  assert(error.reason.includes("connect"), error.reason);
});

Deno.test("a peer that never says hello-ok fails connect at the deadline", async () => {
  await using gateway = await startScriptedGateway((peer) => {
    peer.event("connect.challenge", CHALLENGE);
  });

  const error = await assertRejects(
    () => connect(gateway, { timeoutMs: 50 }),
    GatewayTimeoutError,
  );

  assertEquals(error.message, "gateway timeout after 50ms");
});

Deno.test("an answer that is no hello-ok of protocol 3 or 4 fails connect", async () => {
  await using gateway = await startScriptedGateway((peer) =>
    peer.welcome({ hello: { protocol: 5 } })
  );

  const error = await assertRejects(() => connect(gateway), ClosedError);

  assertEquals(error.code, 1002);
});

Deno.test("calls are answered by id, in whatever order the answers come", async () => {
  await using gateway = await startScriptedGateway(async (peer) => {
    await peer.welcome();
    const [first, second] = [await peer.receive(), await peer.receive()];
    peer.send("{ not json");
    peer.answer("nobody asked", {});
    peer.answer(second.id, { method: second.method });
    peer.answer(first.id, { params: first.params });
  });
  await using client = await connect(gateway);

  const answers = await Promise.all([client.call("one", { a: 1 }), client.call("two")]);

  assertEquals(answers, [{ params: { a: 1 } }, { method: "two" }]);
});

Deno.test("an error response rejects the call with its code and details", async () => {
  await using gateway = await startScriptedGateway(async (peer) => {
    await peer.welcome();
    const { id } = await peer.receive();
    peer.refuse(id, {
      code: "UNAVAILABLE",
      message: "not now",
      details: { a: 1 },
      retryable: true,
      retryAfterMs: 5,
    });
  });
  await using client = await connect(gateway);

  const error = await assertRejects(() => client.call("health"), RpcError, "not now");

  assertEquals(
    [error.code, error.details, error.retryable, error.retryAfterMs],
    ["UNAVAILABLE", { a: 1 }, true, 5],
  );
});

Deno.test("a call without answer ends at its deadline, and its late answer changes nothing", async () => {
  await using gateway = await startScriptedGateway(async (peer) => {
    await peer.welcome();
    const slow = await peer.receive();
    const next = await peer.receive();
    peer.answer(slow.id, "late");
    peer.answer(next.id, "in time");
  });
  await using client = await connect(gateway);

  await assertRejects(() => client.call("slow", {}, { timeoutMs: 20 }), GatewayTimeoutError);

  assertEquals(await client.call("next"), "in time");
});

Deno.test("a call that expects the final answer waits past accepted, another takes the first", async () => {
  await using gateway = await startScriptedGateway(async (peer) => {
    await peer.welcome();
    for (let count = 0; count < 2; count++) {
      const { id } = await peer.receive();
      peer.answer(id, { status: "accepted" });
      peer.answer(id, { status: "ok" });
    }
  });
  await using client = await connect(gateway);

  const final = await client.call("agent", {}, { expectFinal: true });
  const first = await client.call("agent");

  assertEquals([final, first], [{ status: "ok" }, { status: "accepted" }]);
});

Deno.test("a connection that ends rejects the calls in flight and those after it", async () => {
  await using gateway = await startScriptedGateway(async (peer) => {
    await peer.welcome();
    await peer.receive();
    peer.terminate();
  });
  await using client = await connect(gateway);

  const inFlight = await assertRejects(() => client.call("health"), ClosedError);
  const end = await client.closed;
  const after = await assertRejects(() => client.call("health"), ClosedError);

  assertEquals([inFlight.code, after], [1006, end as ClosedError]);
});

Deno.test("events reach their listeners, and a gap in their numbers is reported", async () => {
  const gaps: unknown[] = [];
  await using gateway = await startScriptedGateway(async (peer) => {
    await peer.welcome();
    await peer.receive();
    for (const seq of [7, 8, 11, undefined, 12]) peer.event("presence", { seq }, { seq });
    peer.event("done", {});
  });
  await using client = await connect(gateway, { onGap: (gap) => gaps.push(gap) });
  const seen: unknown[] = [];
  const stop = client.on("presence", (payload) => seen.push((payload as { seq: number }).seq));
  const all: string[] = [];
  client.on("*", (_payload, frame) => all.push(frame.event));
  const done = new Promise((resolve) => client.on("done", resolve));

  client.call("start").catch(() => {}); // never answered: the script only sends events
  await done;
  stop();

  assertEquals(seen, [7, 8, 11, undefined, 12]);
  assertEquals(gaps, [{ expected: 9, received: 11 }]);
  assertEquals(all.length, 6);
});

Deno.test("an event that follows hello-ok at once comes after onHello and is not lost", async () => {
  const order: string[] = [];
  await using gateway = await startScriptedGateway(async (peer) => {
    await peer.welcome();
    peer.event("voicewake.changed", {});
  });
  const seen = Promise.withResolvers<void>();

  await using _client = await connect(gateway, {
    onHello: () => order.push("hello"),
    onEvent: ({ event }) => {
      order.push(event);
      seen.resolve();
    },
  });
  await seen.promise;

  assertEquals(order, ["hello", "voicewake.changed"]);
});

Deno.test("a gateway whose ticks stop is left with 4000 tick timeout", async () => {
  const left = Promise.withResolvers<unknown>();
  await using gateway = await startScriptedGateway(async (peer) => {
    await peer.welcome({ hello: { policy: { tickIntervalMs: 20 } } });
    peer.event("tick", { ts: 1 }, { seq: 1 });
    left.resolve(await peer.closed);
  });
  await using client = await connect(gateway);

  const end = await client.closed as ClosedError;

  assertEquals([end.code, end.reason], [4000, "tick timeout"]);
  assertEquals(await left.promise, { code: 4000, reason: "tick timeout" });
});

Deno.test("a stored device token is presented when nothing was configured, for the scopes it was made for", async () => {
  let params;
  const tokens = tokensOf(["gateway-1", "stored"]);
  await using gateway = await startScriptedGateway(async (peer) => params = await peer.welcome());

  await using _client = await connect(gateway, { identity: IDENTITY, tokens });

  const { auth, scopes } = params as never as Record<string, unknown>;
  assertEquals([auth, scopes], [{ token: "stored" }, ["operator.read"]]);
  assert(await isSignedBy(params!, 2, "stored"));
  assertEquals(tokens.log, ["find gateway-1 operator"]);
});

Deno.test("a stored device token stays at home while a credential is configured", async () => {
  let params;
  const tokens = tokensOf(["gateway-1", "stored"]);
  await using gateway = await startScriptedGateway(async (peer) => params = await peer.welcome());

  await using _client = await connect(gateway, { tokens, auth: { password: "given" } });

  assertEquals((params as never as { auth: unknown }).auth, { password: "given" });
  assertEquals(tokens.log, []);
});

Deno.test("a refused token is followed by one attempt with the stored device token", async () => {
  const presented: unknown[] = [];
  const tokens = tokensOf(["gateway-1", "stored"]);
  await using gateway = await startScriptedGateway(async (peer) => {
    const params = peer.number === 1 ? await peer.turnAway(MISMATCH) : await peer.welcome();
    presented.push(params.auth);
  });

  await using client = await connect(gateway, { tokens, auth: { token: "old" } });

  assertEquals(client.hello.protocol, 4);
  assertEquals(presented, [{ token: "old" }, { token: "stored" }]);
});

Deno.test("a refused token and a refused device token end in the first refusal, after two attempts", async () => {
  const tokens = tokensOf(["gateway-1", "stored"]);
  await using gateway = await startScriptedGateway((peer) =>
    peer.turnAway({ ...MISMATCH, message: `refused ${peer.number}` })
  );

  const error = await assertRejects(
    () => connect(gateway, { tokens, auth: { token: "old" } }),
    ClosedError,
  );

  assertEquals([error.reason, gateway.connections], ["refused 1", 2]);
  assertEquals([...tokens.stored], []);
});

Deno.test("a client told not to retry takes the refusal of its token as it is", async () => {
  const tokens = tokensOf(["gateway-1", "stored"]);
  await using gateway = await startScriptedGateway((peer) => peer.turnAway(MISMATCH));

  await assertRejects(
    () => connect(gateway, { tokens, auth: { token: "typed" }, retriesWithDeviceToken: false }),
    ClosedError,
  );

  assertEquals([gateway.connections, [...tokens.stored]], [1, [["gateway-1", "stored"]]]);
});

Deno.test("a gateway nobody has a token for gets no second attempt", async () => {
  await using gateway = await startScriptedGateway((peer) => peer.turnAway(MISMATCH));

  await assertRejects(() => connect(gateway, { auth: { token: "old" } }), ClosedError);

  assertEquals(gateway.connections, 1);
});

Deno.test("the device token of hello-ok is kept under the gateway's id", async () => {
  const tokens = tokensOf();
  await using gateway = await startScriptedGateway((peer) =>
    peer.welcome({ hello: { auth: { deviceToken: "new", role: "operator", scopes: ["b", "a"] } } })
  );

  await using _client = await connect(gateway, { tokens, auth: { token: "x" } });

  assertEquals([...tokens.stored], [["gateway-1", "new"]]);
});

Deno.test("a client that reconnects says hello again and keeps its listeners", async () => {
  const downs: unknown[] = [];
  await using gateway = await startScriptedGateway(async (peer: Peer) => {
    await peer.welcome();
    if (peer.number === 1) return peer.close(1012, "service restart");
    peer.event("presence", { connection: peer.number }, { seq: 1 });
  });
  const hellos: unknown[] = [];
  const seen = Promise.withResolvers<unknown>();
  await using client = await connect(gateway, {
    reconnect: { delayMs: () => 0 },
    onHello: ({ protocol }) => hellos.push(protocol),
    onDown: (error, retryInMs) => downs.push([(error as ClosedError).code, retryInMs]),
  });
  client.on("presence", seen.resolve);

  assertEquals(await seen.promise, { connection: 2 });
  assertEquals([hellos, downs], [[4, 4], [[1012, 0]]]);
});

Deno.test("the backoff goes on growing through short sessions and starts anew after a stable one", async () => {
  // When each of the three sessions began and ended, by the client's clock.
  const clock = [0, 10, 20, 30, 40, 3_600_000];
  const attempts: number[] = [];
  await using gateway = await startScriptedGateway(async (peer) => {
    if (peer.number >= 3 && peer.number <= 5) await peer.welcome();
    peer.close(1012);
  });
  const client = await connect(gateway, {
    now: () => clock.shift()!,
    reconnect: {
      delayMs(_error, attempt) {
        attempts.push(attempt);
        return attempts.length < 6 ? 0 : undefined;
      },
    },
  });

  await client.closed;

  assertEquals(attempts, [0, 1, 2, 3, 0, 1]);
});

Deno.test("closing ends a client that is waiting to reconnect", async () => {
  const down = Promise.withResolvers<void>();
  await using gateway = await startScriptedGateway(async (peer) => {
    await peer.welcome();
    peer.terminate();
  });
  const client = await connect(gateway, {
    reconnect: { delayMs: () => 3_600_000 },
    onDown: () => down.resolve(),
  });
  await down.promise;

  await client.close();

  assertEquals(gateway.connections, 1);
});

Deno.test("a signal ends a connect that is still trying", async () => {
  const stop = new AbortController();
  const attempt = Client.connect({
    open: () => Promise.reject(new ClosedError(1006, "nobody there", { wasOpen: false })),
    client: CLIENT,
    signal: stop.signal,
    reconnect: { delayMs: () => 3_600_000 },
    onDown: () => stop.abort(),
  });

  await assertRejects(() => attempt, ClosedError, "nobody there");
});

Deno.test("reconnect delays stay within 1 s and 30 s, grow, and use the whole range", () => {
  const lost = new ClosedError(1006, "");
  const attempts = [0, 1, 2, 3, 4, 5, 50];

  assertEquals(
    attempts.map((attempt) => reconnectDelayMs(lost, attempt, () => 0)),
    attempts.map(() => 1_000),
  );
  assertEquals(
    attempts.map((attempt) => reconnectDelayMs(lost, attempt, () => 1)),
    [2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000],
  );
  assertEquals(reconnectDelayMs(new GatewayTimeoutError(5), 0, () => 0.5), 1_500);
});

Deno.test("a refusal of the credentials is not repeated within a minute", () => {
  const refused = (details: unknown, code = "INVALID_REQUEST", retryAfterMs?: number) =>
    new ClosedError(1008, "", {
      refusal: new RpcError(code as "NOT_PAIRED", "no", { details, retryAfterMs }),
    });
  const delay = (error: Error) => reconnectDelayMs(error, 0, () => 0)!;

  for (
    const error of [
      refused({ layer: "auth", retryable: true }),
      refused({ layer: "device", retryable: false }),
      refused({ layer: "protocol", retryable: false }),
      refused(undefined),
      refused(undefined, "NOT_PAIRED"),
    ]
  ) assert(delay(error) >= 60_000);
  assertEquals(delay(refused({ layer: "pairing", retryable: true }, "NOT_PAIRED")), 1_000);
  assertEquals(delay(refused(undefined, "UNAVAILABLE", 7_000)), 7_000);
  assertEquals(delay(refused({ layer: "auth" }, "INVALID_REQUEST", 300_000)), 300_000);
});

Deno.test("what is wrong on this side, such as a certificate, is not tried again", () => {
  assertEquals(
    reconnectDelayMs(new TypeError("gateway tls fingerprint mismatch"), 0),
    undefined,
  );
});
