import { assert, assertEquals } from "@std/assert";
import type { Outcome } from "../../rpc/dispatch.ts";
import { JSON_RPC, RpcError } from "../../rpc/error.ts";
import {
  answerJsonRpc,
  encodeAnswer,
  encodeResultJson,
  isJsonRpc,
  type JsonRpcCall,
  MAX_BATCH,
  readCall,
} from "../../rpc/jsonrpc.ts";

/** Echoes params; the method `fail` is refused. */
function invoke({ method, params }: JsonRpcCall): Outcome | Promise<Outcome> {
  if (method === "later") return Promise.resolve({ ok: true, payload: params });
  if (method !== "fail") return { ok: true, payload: params };
  const error = new RpcError("INVALID_REQUEST", "unknown method: fail", {
    number: JSON_RPC.METHOD_NOT_FOUND,
  });
  return { ok: false, error, refused: true };
}

async function answer(message: unknown) {
  const text = typeof message === "string" ? message : JSON.stringify(message);
  const answered = await answerJsonRpc(text, invoke);
  return answered === undefined ? undefined : JSON.parse(answered);
}

function invalid(id: unknown, problem: string) {
  return { jsonrpc: "2.0", id, error: { code: -32600, message: `invalid request: ${problem}` } };
}

const FAILED = {
  code: -32601,
  message: "unknown method: fail",
  data: { code: "INVALID_REQUEST" },
};

Deno.test("a call is answered with its result under its id", async () => {
  for (const id of ["a", "", 7, 0, -1.5, null]) {
    assertEquals(await answer({ jsonrpc: "2.0", id, method: "echo", params: [1] }), {
      jsonrpc: "2.0",
      id,
      result: [1],
    });
  }
});

Deno.test("a result that is nothing is null, for the standard wants a result", async () => {
  assertEquals(await answer({ jsonrpc: "2.0", id: 1, method: "echo" }), {
    jsonrpc: "2.0",
    id: 1,
    result: null,
  });
});

Deno.test("a failure carries the standard's number and the protocol's word", async () => {
  assertEquals(await answer({ jsonrpc: "2.0", id: 1, method: "fail" }), {
    jsonrpc: "2.0",
    id: 1,
    error: FAILED,
  });
});

Deno.test("a notification is invoked and not answered, not even when it fails", async () => {
  const invoked: string[] = [];

  for (const method of ["echo", "fail"]) {
    const answered = await answerJsonRpc(JSON.stringify({ jsonrpc: "2.0", method }), (call) => {
      invoked.push(call.method);
      return invoke(call);
    });
    assertEquals(answered, undefined);
  }

  assertEquals(invoked, ["echo", "fail"]);
});

Deno.test("what is no JSON is a parse error under a null id", async () => {
  for (const text of ["", "{", "undefined", '{"jsonrpc":"2.0"', "\u0000"]) {
    assertEquals(await answer(text), {
      jsonrpc: "2.0",
      id: null,
      error: { code: -32700, message: "parse error" },
    });
  }
});

Deno.test("an invalid request answers with its id where that can be read", async () => {
  const rows: [unknown, unknown, string][] = [
    [1, null, "must be object"],
    ["text", null, "must be object"],
    [null, null, "must be object"],
    [{}, null, "jsonrpc must be '2.0'"],
    [{ jsonrpc: "1.0", id: 4, method: "m" }, 4, "jsonrpc must be '2.0'"],
    [{ jsonrpc: 2, id: "4", method: "m" }, "4", "jsonrpc must be '2.0'"],
    [{ jsonrpc: "2.0", id: 4 }, 4, "method must be a non-empty string"],
    [{ jsonrpc: "2.0", id: 4, method: "" }, 4, "method must be a non-empty string"],
    [{ jsonrpc: "2.0", id: 4, method: 1 }, 4, "method must be a non-empty string"],
    [{ jsonrpc: "2.0", id: {}, method: "m" }, null, "id must be string, number or null"],
    [{ jsonrpc: "2.0", id: [1], method: "m" }, null, "id must be string, number or null"],
    [{ jsonrpc: "2.0", id: true, method: "m" }, null, "id must be string, number or null"],
  ];

  for (const [message, id, problem] of rows) {
    assertEquals(await answer(JSON.stringify(message)), invalid(id, problem));
  }
});

Deno.test("a batch is answered call by call, in its order, without its notifications", async () => {
  const answered = await answer([
    { jsonrpc: "2.0", id: 1, method: "later", params: { a: 1 } },
    { jsonrpc: "2.0", method: "echo" },
    { jsonrpc: "2.0", id: 2, method: "fail" },
    7,
    { jsonrpc: "2.0", id: 3, method: "echo", params: "three" },
  ]);

  assertEquals(answered, [
    { jsonrpc: "2.0", id: 1, result: { a: 1 } },
    { jsonrpc: "2.0", id: 2, error: FAILED },
    invalid(null, "must be object"),
    { jsonrpc: "2.0", id: 3, result: "three" },
  ]);
});

Deno.test("a batch of notifications is not answered", async () => {
  const notification = { jsonrpc: "2.0", method: "echo" };

  assertEquals(await answer([notification, notification]), undefined);
});

Deno.test("an empty batch and one that is too large are refused as a whole", async () => {
  let invocations = 0;
  const call = { jsonrpc: "2.0", id: 1, method: "echo" };
  const large = JSON.stringify(Array(MAX_BATCH + 1).fill(call));

  const refused = await answerJsonRpc(large, (one) => {
    invocations++;
    return invoke(one);
  });

  assertEquals(await answer([]), invalid(null, "empty batch"));
  assertEquals(JSON.parse(refused!), invalid(null, "more than 1000 calls in a batch"));
  assertEquals(invocations, 0);
  assertEquals((await answer(Array(MAX_BATCH).fill(call))).length, MAX_BATCH);
});

Deno.test("a batch inside a batch is an invalid request", async () => {
  const call = { jsonrpc: "2.0", id: 1, method: "echo" };

  assertEquals(await answer([[call]]), [invalid(null, "must be object")]);
});

Deno.test("a call is read with its id, or without one", () => {
  assertEquals(readCall({ jsonrpc: "2.0", id: null, method: "m" }), {
    id: null,
    method: "m",
    params: undefined,
  });
  assert(!("id" in readCall({ jsonrpc: "2.0", method: "m", params: [] })));
});

Deno.test("a first message opens JSON-RPC by its version alone", () => {
  assert(isJsonRpc({ jsonrpc: "2.0" }));
  for (const message of [null, 1, "2.0", [], {}, { jsonrpc: 2 }, { jsonrpc: "1.0" }]) {
    assert(!isJsonRpc(message), JSON.stringify(message));
  }
});

Deno.test("answers are written with ids of any characters", () => {
  const id = '"\n\u2028';

  assertEquals(JSON.parse(encodeResultJson(id, undefined)), { jsonrpc: "2.0", id, result: null });
  assertEquals(JSON.parse(encodeResultJson(id, "[1]")), { jsonrpc: "2.0", id, result: [1] });
  assertEquals(JSON.parse(encodeAnswer(id, { ok: true, payload: "p" })).id, id);
});
