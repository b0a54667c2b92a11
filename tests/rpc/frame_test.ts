import { assert, assertEquals } from "@std/assert";
import {
  closeReason,
  encodeError,
  encodeEvent,
  encodeResponse,
  encodeResponseJson,
  MAX_REASON_BYTES,
  readRequest,
} from "../../rpc/frame.ts";

Deno.test("a request frame is read as it is", () => {
  const frames = [
    { type: "req", id: "1", method: "health" },
    { type: "req", id: "x".repeat(1_000), method: "a.b", params: { deep: [1] } },
    { type: "req", id: "1", method: "health", params: null },
    { type: "req", id: "1", method: "health", traceparent: "00-1-2-03" },
  ];

  for (const frame of frames) assertEquals(readRequest(frame), frame);
});

Deno.test("what is no request frame says why, and which id to answer to", () => {
  const rows: [unknown, string, string][] = [
    [null, "invalid", "must be object"],
    [[], "invalid", "must be object"],
    ["text", "invalid", "must be object"],
    [7, "invalid", "must be object"],
    [{}, "invalid", "at /type: must be 'req'"],
    [{ type: "res", id: "5" }, "5", "at /type: must be 'req'"],
    [{ type: "req" }, "invalid", "at /id: must be a non-empty string"],
    [{ type: "req", id: "" }, "invalid", "at /id: must be a non-empty string"],
    [{ type: "req", id: 7, method: "m" }, "invalid", "at /id: must be a non-empty string"],
    [{ type: "req", id: "7" }, "7", "at /method: must be a non-empty string"],
    [{ type: "req", id: "7", method: "" }, "7", "at /method: must be a non-empty string"],
    [{ type: "req", id: "7", method: ["m"] }, "7", "at /method: must be a non-empty string"],
  ];

  for (const [frame, id, problem] of rows) {
    assertEquals(readRequest(frame), { id, problem }, JSON.stringify(frame));
  }
});

Deno.test("frames that are written leave absent members out", () => {
  const rows: [string, unknown][] = [
    [encodeResponse("1", { a: 1 }), { type: "res", id: "1", ok: true, payload: { a: 1 } }],
    [encodeResponse("1", null), { type: "res", id: "1", ok: true, payload: null }],
    [encodeResponse("1", undefined), { type: "res", id: "1", ok: true }],
    [encodeResponseJson("1", "[2]"), { type: "res", id: "1", ok: true, payload: [2] }],
    [encodeError("1", { code: "UNAVAILABLE", message: "m" }), {
      type: "res",
      id: "1",
      ok: false,
      error: { code: "UNAVAILABLE", message: "m" },
    }],
    [encodeError("1", { code: "UNAVAILABLE", message: "m" }, { runId: "r" }), {
      type: "res",
      id: "1",
      ok: false,
      payload: { runId: "r" },
      error: { code: "UNAVAILABLE", message: "m" },
    }],
    [encodeEvent("tick", { ts: 1 }), { type: "event", event: "tick", payload: { ts: 1 } }],
    [encodeEvent("tick", undefined), { type: "event", event: "tick" }],
  ];

  for (const [text, frame] of rows) assertEquals(JSON.parse(text), frame);
});

Deno.test("an id or event name of any characters comes back unharmed", () => {
  const odd = '"\\\n\u0000\u2028é😀\ud800';

  assertEquals(JSON.parse(encodeResponse(odd, 1)).id, odd);
  assertEquals(JSON.parse(encodeError(odd, { code: "c", message: "m" })).id, odd);
  assertEquals(JSON.parse(encodeEvent(odd, 1)).event, odd);
});

Deno.test("a close reason is cut to 120 bytes and never inside a character", () => {
  const bytes = (text: string) => new TextEncoder().encode(text).length;
  for (const character of ["a", "é", "€", "😀"]) {
    for (let shift = 0; shift < 4; shift++) {
      const text = "x".repeat(shift) + character.repeat(200);

      const cut = closeReason(text);

      assert(text.startsWith(cut), `${character} shifted by ${shift}: ${cut}`);
      assert(bytes(cut) <= MAX_REASON_BYTES);
      assert(bytes(cut) > MAX_REASON_BYTES - bytes(character), "more than one character was cut");
    }
  }
});

Deno.test("a close reason that fits stays as it is", () => {
  for (const text of ["", "pairing required", "a".repeat(MAX_REASON_BYTES), "é".repeat(60)]) {
    assertEquals(closeReason(text), text);
  }
});
