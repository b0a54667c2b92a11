import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { TunnelError } from "../../tunnel/error.ts";
import { checkPin, fingerprintOf, readPins } from "../../tunnel/pin.ts";
import { CERTIFICATE, FINGERPRINT } from "../support/certificate.ts";

const PIN = FINGERPRINT.replaceAll(":", "").toLowerCase();
const OTHER = "ab".repeat(32);

Deno.test("a pin reads the same however people write it", () => {
  const spellings = [
    PIN,
    FINGERPRINT,
    `sha256:${PIN}`,
    `SHA-256 ${FINGERPRINT}`,
    ` ${PIN.match(/../g)!.join(" ")} `,
  ];

  assertEquals(readPins(spellings), spellings.map(() => PIN));
});

Deno.test("a pin that is no SHA-256 is an error, never no pin", () => {
  for (const text of ["", "sha256:", PIN.slice(2), `${PIN}00`, "not a fingerprint"]) {
    assertThrows(() => readPins([text]), TunnelError, "gateway tls fingerprint missing");
  }
});

Deno.test("a certificate matches any of several pins, so that two may overlap", () => {
  checkPin(FINGERPRINT, [OTHER, PIN]);
  checkPin(FINGERPRINT, [PIN]);

  const error = assertThrows(() => checkPin(FINGERPRINT, [OTHER]), TunnelError);
  assertEquals([error.kind, error.message], ["tls", "gateway tls fingerprint mismatch"]);
  assertThrows(() => checkPin(FINGERPRINT, []), TunnelError, "mismatch");
});

Deno.test("a server that shows no certificate matches nothing", () => {
  assertThrows(
    () => checkPin(undefined, [PIN]),
    TunnelError,
    "gateway tls fingerprint unavailable",
  );
  assertThrows(() => checkPin("", [PIN]), TunnelError, "gateway tls fingerprint unavailable");
});

Deno.test("the fingerprint of a PEM certificate is the one openssl prints", async () => {
  assertEquals(await fingerprintOf(CERTIFICATE), PIN);
  assertEquals(await fingerprintOf("no certificate"), undefined);
});

Deno.test("a pin counts until its date, and is named when nothing else matches", () => {
  const nowMs = Date.parse("2026-11-22T12:00:00Z");
  const until = (date: string) => ({ sha256: PIN, until: date });

  checkPin(FINGERPRINT, [OTHER, until("2026-11-23")], nowMs);
  checkPin(FINGERPRINT, [until("2026-11-22T12:00:01Z"), { sha256: OTHER }], nowMs);
  for (const date of ["2026-11-22", "2026-11-22T12:00:00Z", "2020-01-01"]) {
    const error = assertThrows(
      () => checkPin(FINGERPRINT, [OTHER, until(date)], nowMs),
      TunnelError,
      "gateway tls fingerprint mismatch",
    ) as TunnelError;
    assertStringIncludes(error.fix, `no longer expected here: sha256:${PIN} counted until ${date}`);
  }
});

Deno.test("a pin with a date reads like one without, and a date that is none is an error", () => {
  assertEquals(readPins([{ sha256: FINGERPRINT, until: "2027-01-01" }, { sha256: PIN }]), [
    { sha256: PIN, until: "2027-01-01" },
    { sha256: PIN },
  ]);
  for (const pin of [{ sha256: "ab" }, { sha256: PIN, until: "soon" }]) {
    assertThrows(() => readPins([pin]), TunnelError, "gateway tls fingerprint missing");
  }
});
