import { assertEquals, assertThrows } from "@std/assert";
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
