import { assertEquals } from "@std/assert";
import { type ErrorCode, JSON_RPC, RpcError } from "../../rpc/error.ts";

Deno.test("an error keeps its code, message, details and hints on protocol 4", () => {
  const error = new RpcError("UNAVAILABLE", "not yet", {
    details: { reason: "startup-sidecars" },
    retryable: true,
    retryAfterMs: 500,
  });

  assertEquals(error.toWire(4), {
    code: "UNAVAILABLE",
    message: "not yet",
    details: { reason: "startup-sidecars" },
    retryable: true,
    retryAfterMs: 500,
  });
});

Deno.test("protocol 3 gets no retry hints, and no code it does not know", () => {
  const hints = { retryable: true, retryAfterMs: 500 };
  const rows: [RpcError, Record<string, unknown>][] = [
    [new RpcError("UNAVAILABLE", "m", hints), { code: "UNAVAILABLE", message: "m" }],
    [new RpcError("NOT_PAIRED", "m", { details: { requestId: "r" } }), {
      code: "NOT_PAIRED",
      message: "m",
      details: { requestId: "r" },
    }],
    [new RpcError("FORBIDDEN", "m", { details: { code: "MISSING_SCOPE" } }), {
      code: "INVALID_REQUEST",
      message: "m",
    }],
    [new RpcError("APPROVAL_NOT_FOUND", "m"), { code: "INVALID_REQUEST", message: "m" }],
    [new RpcError("INTERNAL_ERROR", "m"), { code: "INTERNAL_ERROR", message: "m" }],
  ];

  for (const [error, wire] of rows) assertEquals(error.toWire(3), wire);
});

Deno.test("absent members are left out on protocol 4 too", () => {
  assertEquals(new RpcError("FORBIDDEN", "m").toWire(4), { code: "FORBIDDEN", message: "m" });
  assertEquals(new RpcError("TIMEOUT", "m", { details: null }).toWire(4), {
    code: "TIMEOUT",
    message: "m",
    details: null,
  });
});

Deno.test("JSON-RPC carries the word of the protocol in data, and a number of its own", () => {
  const rows: [ErrorCode, number][] = [
    ["INVALID_REQUEST", -32000],
    ["NOT_PAIRED", -32001],
    ["UNAVAILABLE", -32002],
    ["FORBIDDEN", -32003],
    ["APPROVAL_NOT_FOUND", -32004],
    ["TIMEOUT", -32005],
    ["INTERNAL_ERROR", -32603],
  ];

  for (const [code, number] of rows) {
    assertEquals(new RpcError(code, "m").toJsonRpc(), {
      code: number,
      message: "m",
      data: { code },
    });
  }
});

Deno.test("JSON-RPC data adds details, hints and what only that standard carries", () => {
  const error = new RpcError("INVALID_REQUEST", "invalid x params: must be object", {
    number: JSON_RPC.INVALID_PARAMS,
    details: { a: 1 },
    retryable: false,
    retryAfterMs: 10,
    data: { issues: [{ path: "", message: "must be object" }] },
  });

  assertEquals(error.toJsonRpc(), {
    code: -32602,
    message: "invalid x params: must be object",
    data: {
      code: "INVALID_REQUEST",
      details: { a: 1 },
      retryable: false,
      retryAfterMs: 10,
      issues: [{ path: "", message: "must be object" }],
    },
  });
  assertEquals("issues" in error.toWire(4), false);
});

Deno.test("the cause stays in the program", () => {
  const error = new RpcError("UNAVAILABLE", "m", { cause: new Error("inner secret") });

  assertEquals((error.cause as Error).message, "inner secret");
  assertEquals(
    JSON.stringify([error.toWire(4), error.toWire(3), error.toJsonRpc()]).includes("inner"),
    false,
  );
});
