import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  accessOf,
  Dispatcher,
  type DispatchOptions,
  lastOutcome,
  MAX_PROBLEMS,
  type Outcome,
} from "../../rpc/dispatch.ts";
import { RpcError } from "../../rpc/error.ts";
import {
  type Answer,
  type CallContext,
  type Method,
  type MethodSpec,
  type Requester,
  TwoAnswers,
} from "../../rpc/method.ts";
import { integer, list, object, optional, text } from "../../rpc/shape.ts";

type Spec = Partial<MethodSpec<CallContext, Record<string, unknown>, unknown>>;

const OPERATOR: Requester = { role: "operator", scopes: ["operator.admin"], protocol: 4 };
const NODE: Requester = { role: "node", scopes: [], protocol: 4 };

function entry(name: string, spec: Spec = {}): Method<CallContext> {
  return {
    name,
    summary: "A method",
    scope: "operator.read",
    params: object({ n: optional(integer({ min: 1 })) }),
    result: object({ n: optional(integer()) }),
    handle: (params: unknown) => params,
    ...spec,
  } as Method<CallContext>;
}

const TABLE = [
  entry("read.it"),
  entry("write.it", { scope: "operator.write" }),
  entry("relaxed", { scope: "operator.admin", scopeOnV4: "operator.read" }),
  entry("open.it", { scope: "any" }),
  entry("node.list"),
  entry("node.event", { scope: "node" }),
  entry("gateway.own"),
];

function dispatcherOf(methods = TABLE, options: Partial<DispatchOptions> = {}) {
  const faults: { error: unknown; method: string }[] = [];
  const dispatcher = new Dispatcher(methods, {
    onFault(error, method) {
      faults.push({ error, method });
      return `fault-${faults.length}`;
    },
    ...options,
  });
  const call = async (name: string, params?: unknown, caller = OPERATOR): Promise<Outcome> =>
    await dispatcher.dispatch(name, params, { caller });
  return { dispatcher, faults, call };
}

/** The text of the refusal, or "ok". */
function said(outcome: Outcome): string {
  return outcome.ok ? "ok" : outcome.error.message;
}

function refusal(outcome: Outcome): Extract<Outcome, { ok: false }> {
  if (outcome.ok) throw new Error("the call was not refused");
  return outcome;
}

Deno.test("role, existence and scope are checked in the order of the protocol", async () => {
  const reader = { ...OPERATOR, scopes: ["operator.read"] };
  const nobody = { ...OPERATOR, scopes: [] };
  const rows: [string, Requester, string][] = [
    ["node.event", OPERATOR, "unauthorized role: operator"],
    ["node.event", nobody, "unauthorized role: operator"],
    ["node.event", NODE, "ok"],
    ["read.it", NODE, "unauthorized role: node"],
    ["open.it", NODE, "unauthorized role: node"],
    ["no.such", NODE, "unknown method: no.such"],
    ["node.invoke.progress", NODE, "unknown method: node.invoke.progress"],
    ["no.such", OPERATOR, "unknown method: no.such"],
    ["no.such", reader, "missing scope: operator.admin"],
    ["no.such", nobody, "missing scope: operator.admin"],
    ["read.it", reader, "ok"],
    ["read.it", nobody, "missing scope: operator.read"],
    ["write.it", reader, "missing scope: operator.write"],
    ["relaxed", reader, "ok"],
    ["relaxed", { ...reader, protocol: 3 }, "missing scope: operator.admin"],
    ["relaxed", nobody, "missing scope: operator.read"],
    ["open.it", nobody, "ok"],
    ["connect", OPERATOR, "connect is only valid as the first request"],
    ["connect", NODE, "connect is only valid as the first request"],
    ["toString", OPERATOR, "unknown method: toString"],
    ["__proto__", OPERATOR, "unknown method: __proto__"],
    ["", OPERATOR, "unknown method: "],
  ];
  const { call } = dispatcherOf();

  for (const [name, caller, expected] of rows) {
    const outcome = await call(name, { n: 1 }, caller);

    assertEquals(said(outcome), expected, `${name} by ${caller.role} ${caller.scopes}`);
    assertEquals(outcome.ok || outcome.refused, true, "it was let through to a method");
  }
});

Deno.test("what is not allowed is refused before params are looked at", async () => {
  const { call } = dispatcherOf();

  const outcome = await call("write.it", { wrong: 1 }, { ...OPERATOR, scopes: [], protocol: 3 });

  assertEquals(said(outcome), "missing scope: operator.write");
});

Deno.test("a missing scope is FORBIDDEN with details, for protocol 3 a plain refusal", async () => {
  const { call } = dispatcherOf();

  const outcome = await call("write.it", {}, { ...OPERATOR, scopes: ["operator.read"] });

  assertEquals(refusal(outcome).error.toWire(4), {
    code: "FORBIDDEN",
    message: "missing scope: operator.write",
    details: {
      code: "MISSING_SCOPE",
      missingScope: "operator.write",
      requiredScopes: ["operator.write"],
    },
  });
  assertEquals(refusal(outcome).error.toWire(3), {
    code: "INVALID_REQUEST",
    message: "missing scope: operator.write",
  });
});

Deno.test("methods outside node.* also answer under gateway.*, and nothing else does", async () => {
  const { dispatcher, call } = dispatcherOf();

  assertEquals(dispatcher.names, [
    ...TABLE.map(({ name }) => name),
    "gateway.read.it",
    "gateway.write.it",
    "gateway.relaxed",
    "gateway.open.it",
  ]);
  assertEquals(said(await call("gateway.read.it", { n: 2 })), "ok");
  assertEquals(said(await call("gateway.node.list")), "unknown method: gateway.node.list");
  assertEquals(said(await call("gateway.gateway.own")), "unknown method: gateway.gateway.own");
  assertEquals(
    said(await call("gateway.write.it", {}, { ...OPERATOR, scopes: [] })),
    "missing scope: operator.write",
  );
});

Deno.test("a method that has the name of an alias keeps it", async () => {
  const { call } = dispatcherOf([
    entry("call", { handle: () => ({ n: 1 }) }),
    entry("gateway.call", { handle: () => ({ n: 2 }) }),
  ]);

  assertEquals(await call("gateway.call"), { ok: true, payload: { n: 2 } });
});

Deno.test("a table with two methods of one name is refused", () => {
  assertThrows(() => dispatcherOf([entry("a"), entry("a")]), Error, "method a is declared twice");
});

Deno.test("bad params are named, under the name the caller used", async () => {
  const { call } = dispatcherOf();

  const outcome = await call("gateway.read.it", { n: 0, x: 1 }, { ...OPERATOR, protocol: 3 });

  assertEquals(
    said(outcome),
    "invalid gateway.read.it params: at /n: must be >= 1; at root: unexpected property 'x'",
  );
  assertEquals(refusal(outcome).refused, false);
  assertEquals(refusal(outcome).error.toWire(3).code, "INVALID_REQUEST");
  assertEquals(refusal(outcome).error.toJsonRpc(), {
    code: -32602,
    message: said(outcome),
    data: {
      code: "INVALID_REQUEST",
      issues: [
        { path: "/n", message: "must be >= 1" },
        { path: "", message: "unexpected property 'x'" },
      ],
    },
  });
});

Deno.test("unknown params are refused on protocol 3 and let pass on protocol 4", async () => {
  const { call } = dispatcherOf();

  assertEquals(said(await call("read.it", { n: 1, extra: 1 })), "ok");
  assertEquals(
    said(await call("read.it", { n: 1, extra: 1 }, { ...OPERATOR, protocol: 3 })),
    "invalid read.it params: at root: unexpected property 'extra'",
  );
});

Deno.test("missing params are an empty object, and null is not", async () => {
  const { call } = dispatcherOf();

  assertEquals(await call("read.it", undefined), { ok: true, payload: {} });
  for (const params of [null, [], 1, "x", true]) {
    assertEquals(said(await call("read.it", params)), "invalid read.it params: must be object");
  }
});

Deno.test("a method with a text of its own for bad params says that one", async () => {
  const { call } = dispatcherOf([entry("a", { badParams: "a requires b: string[]" })]);

  const outcome = await call("a", { n: "x" });

  assertEquals(said(outcome), "a requires b: string[]");
  assertEquals(refusal(outcome).error.number, -32602);
});

Deno.test("params that are wrong a million times are answered with the first few", async () => {
  const { call } = dispatcherOf([entry("a", { params: object({ all: list(text()) }) as never })]);

  const outcome = await call("a", { all: Array(1_000_000).fill(0) });

  assertEquals(said(outcome).split("; ").length, MAX_PROBLEMS);
});

Deno.test("an error meant for the caller arrives as it is, thrown or rejected", async () => {
  const error = new RpcError("UNAVAILABLE", "node not connected", { details: { code: "X" } });
  const { call, faults } = dispatcherOf([
    entry("throws", {
      handle: () => {
        throw error;
      },
    }),
    entry("rejects", { handle: () => Promise.reject(error) }),
  ]);

  for (const name of ["throws", "rejects"]) {
    assertEquals(await call(name), { ok: false, error, refused: false });
  }
  assertEquals(faults, []);
});

Deno.test("a fault is logged in full, and its caller learns only the id", async () => {
  const secret = new TypeError("password is hunter2");
  const { call, faults } = dispatcherOf([
    entry("throws", {
      handle: () => {
        throw secret;
      },
    }),
    entry("rejects", { handle: () => Promise.reject(secret) }),
    entry("odd", { handle: () => Promise.reject("hunter2") }),
  ]);

  for (const [index, name] of ["throws", "rejects", "odd"].entries()) {
    const outcome = await call(name);

    assertEquals(refusal(outcome).error.toWire(4), {
      code: "UNAVAILABLE",
      message: `internal error in ${name} (id fault-${index + 1})`,
    });
    assertEquals(refusal(outcome).error.toJsonRpc().code, -32603);
    assert(!JSON.stringify(refusal(outcome).error.toJsonRpc()).includes("hunter2"));
    assertEquals(refusal(outcome).refused, false);
  }
  assertEquals(faults.map(({ method }) => method), ["throws", "rejects", "odd"]);
  assertEquals(faults[0].error, secret);
});

Deno.test("a method that answers at once is answered at once", () => {
  const { dispatcher } = dispatcherOf([
    entry("now", { handle: () => ({ n: 1 }) }),
    entry("later", { handle: () => Promise.resolve({ n: 1 }) }),
  ]);
  const call = { caller: OPERATOR };

  assertEquals(dispatcher.dispatch("now", {}, call), { ok: true, payload: { n: 1 } });
  assertEquals(
    said(dispatcher.dispatch("no.such", {}, call) as Outcome),
    "unknown method: no.such",
  );
  assert(dispatcher.dispatch("later", {}, call) instanceof Promise);
});

Deno.test("with results checked, a result that breaks its shape is a fault", async () => {
  const methods = [
    entry("wrong", { handle: () => ({ n: "secret" }) }),
    entry("extra", { handle: () => ({ n: 1, extra: 1 }) }),
    entry("absent", { handle: () => ({ n: undefined }) }),
    entry("nothing", { handle: () => undefined }),
    entry("later", { handle: () => Promise.resolve({ n: "secret" }) }),
  ];
  const checked = dispatcherOf(methods, { checkResults: true });
  const unchecked = dispatcherOf(methods);

  for (const name of ["wrong", "extra", "nothing", "later"]) {
    const outcome = await checked.call(name);
    assert(!refusal(outcome).error.message.includes("secret"));
    assertEquals((await unchecked.call(name)).ok, true, name);
  }
  assertEquals((await checked.call("absent")).ok, true);
  assertEquals(
    String((checked.faults[1].error as Error).message),
    "bad result of extra: at root: unexpected property 'extra'",
  );
});

Deno.test("the scope asked for may be a lesser one on protocol 4", () => {
  const relaxed = { scope: "operator.admin", scopeOnV4: "operator.read" } as const;

  assertEquals(accessOf(relaxed, 3), "operator.admin");
  assertEquals(accessOf(relaxed, 4), "operator.read");
  assertEquals(accessOf({ scope: "operator.write" }, 4), "operator.write");
});

Deno.test("a method that answers twice gives the first at once and the last when it is there", async () => {
  const last = Promise.withResolvers<Answer>();
  const twice = entry("twice", { handle: () => new TwoAnswers({ n: 1 }, last.promise) });
  const { dispatcher } = dispatcherOf([twice]);

  const first = dispatcher.dispatch("twice", {}, { caller: OPERATOR }) as Outcome;
  const final = lastOutcome(first);
  last.resolve({ ok: true, payload: { n: 2 } });

  assert(first.ok);
  assertEquals(first.payload, { n: 1 });
  assertEquals(await final, { ok: true, payload: { n: 2 } });
});

Deno.test("a last answer that failed keeps what it has to tell, and is no refused call", async () => {
  const error = new RpcError("UNAVAILABLE", "it failed");
  const failed = Promise.resolve<Answer>({ ok: false, error, payload: { n: 3 } });
  const twice = entry("twice", { handle: () => new TwoAnswers({ n: 1 }, failed) });

  const outcome = await lastOutcome(
    dispatcherOf([twice]).dispatcher.dispatch("twice", {}, { caller: OPERATOR }),
  );

  assertEquals(outcome, { ok: false, error, payload: { n: 3 }, refused: false });
});

Deno.test("both answers are checked against the shape of the result", async () => {
  const odd = Promise.resolve<Answer>({ ok: true, payload: { n: "two" } });
  const twice = entry("twice", { handle: () => new TwoAnswers({ n: 1 }, odd) });

  const outcome = await lastOutcome(
    dispatcherOf([twice], { checkResults: true }).dispatcher.dispatch("twice", {}, {
      caller: OPERATOR,
    }),
  );

  assert(!outcome.ok && outcome.error.code === "UNAVAILABLE");
});
