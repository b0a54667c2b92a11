import { assertEquals, assertRejects } from "@std/assert";
import {
  decodeSignature,
  deviceIdOf,
  exportPem,
  generateIdentity,
  identityFromPem,
  identityFromSeed,
  normalizeForSigning,
  normalizePublicKey,
  sign,
  signedText,
  signedToken,
  type SignedVersion,
  verify,
} from "../../rpc/identity.ts";

const SEED = Uint8Array.from({ length: 32 }, (_, index) => index);
const PUBLIC_KEY = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg";
const ID = "56475aa75463474c0285df5dbf2bcab73da651358839e9b77481b2eab107708c";
const NONCE = "5c1f4c0e-0b1d-4f57-9a53-0d7f0b6e0a11";
const SIGNED_AT_MS = 1_760_000_000_000;

/** The vectors of protocol.md §4.2. */
const VECTORS = [
  {
    version: 1 as SignedVersion,
    fields: {
      clientId: "cli",
      clientMode: "cli",
      role: "operator",
      scopes: ["operator.admin", "operator.approvals", "operator.pairing"],
      token: "sekret",
    },
    text:
      `v1|${ID}|cli|cli|operator|operator.admin,operator.approvals,operator.pairing|1760000000000|sekret`,
    signature:
      "dfdV67VnfF_EGE_sKfB6CZWreiH9q0MK1QRheh3qgM6NwQrsrAYGAvWbqV_0ne4zjR1jOXsJGWyFdzIMVR2LCg",
  },
  {
    version: 1 as SignedVersion,
    fields: { clientId: "node-host", clientMode: "node", role: "node", scopes: [] },
    text: `v1|${ID}|node-host|node|node||1760000000000|`,
    signature:
      "4G8dnB0ZN84OAjUYQb5GoMcWmn3d7TT5gtlHA2HtK1KIUqi52e_JbI994q7RNIWWqwMaovQjWiefC5-17k0oBg",
  },
  {
    version: 2 as SignedVersion,
    fields: {
      clientId: "gateway-client",
      clientMode: "backend",
      role: "operator",
      scopes: ["operator.read", "operator.write"],
      token: "sekret",
      nonce: NONCE,
    },
    text:
      `v2|${ID}|gateway-client|backend|operator|operator.read,operator.write|1760000000000|sekret|${NONCE}`,
    signature:
      "j5N3zHSOk7H6LWsrnzfRdwWuqY8I6CTE-UMT20c_rov73eDmVKqQzOw53towA7dH1HsrbxhneFqmGv736G57BA",
  },
  {
    version: 3 as SignedVersion,
    fields: {
      clientId: "node-host",
      clientMode: "node",
      role: "node",
      token: "sekret",
      nonce: ` ${NONCE} `,
      platform: " Linux",
    },
    text: `v3|${ID}|node-host|node|node||1760000000000|sekret|${NONCE}|linux|`,
    signature:
      "rz8rRM3pPEX81xZqGlqmNJttJfZPqVmH1v1BWwgLU06NPfdsLQpGjF-etg7iiUCQg3pZxDz-KyDh-I8uG7SZAA",
  },
];

for (const { version, fields, text, signature } of VECTORS) {
  Deno.test(`signing ${text.slice(0, 2)} for ${fields.clientId} gives the published signature`, async () => {
    const identity = await identityFromSeed(SEED);

    const built = signedText(version, { deviceId: ID, signedAtMs: SIGNED_AT_MS, ...fields });

    assertEquals(built, text);
    assertEquals(await sign(identity, built), signature);
    assertEquals(await verify(PUBLIC_KEY, decodeSignature(signature)!, text), true);
  });

  Deno.test(`a change of any part of ${text.slice(0, 2)} for ${fields.clientId} voids the signature`, async () => {
    const bytes = decodeSignature(signature)!;
    const parts = text.split("|");

    for (const index of parts.keys()) {
      const changed = parts.with(index, `${parts[index]}x`).join("|");
      assertEquals(await verify(PUBLIC_KEY, bytes, changed), false, changed);
    }
    for (const index of bytes.keys()) {
      const changed = bytes.with(index, bytes[index] ^ 1) as Uint8Array<ArrayBuffer>;
      assertEquals(await verify(PUBLIC_KEY, changed, text), false, `signature byte ${index}`);
    }
    const stranger = await generateIdentity();
    assertEquals(await verify(stranger.publicKey, bytes, text), false);
  });
}

Deno.test("a device id is the SHA-256 of the raw key, and PEM texts bring the same device back", async () => {
  const identity = await identityFromSeed(SEED);
  const pem = await exportPem(identity);
  const again = await identityFromPem(pem.privateKeyPem);

  assertEquals([identity.deviceId, identity.publicKey], [ID, PUBLIC_KEY]);
  assertEquals([again.deviceId, again.publicKey], [ID, PUBLIC_KEY]);
  assertEquals(await deviceIdOf(PUBLIC_KEY), ID);
  assertEquals(normalizePublicKey(pem.publicKeyPem), PUBLIC_KEY);
  assertEquals(pem.privateKeyPem.split("\n")[1].startsWith("MC4CAQAwBQYDK2VwBCIE"), true);
});

Deno.test("a private key that is no Ed25519 key is refused without quoting it", async () => {
  const { privateKeyPem, publicKeyPem } = await exportPem(await generateIdentity());
  const cut = privateKeyPem.replace(/\n.{10}/, "\n");

  for (const text of ["", "secret", cut, publicKeyPem]) {
    const error = await assertRejects(() => identityFromPem(text), TypeError);
    assertEquals(error.message, "Cannot read the private key: not Ed25519 in PKCS#8 PEM");
  }
});

Deno.test("a public key is read in either base64 and as PEM, anything else is not", () => {
  const standard = PUBLIC_KEY.replaceAll("_", "/").replaceAll("-", "+");

  assertEquals(normalizePublicKey(PUBLIC_KEY), PUBLIC_KEY);
  assertEquals(normalizePublicKey(standard), PUBLIC_KEY);
  assertEquals(normalizePublicKey(`${standard}=`), PUBLIC_KEY);
  for (
    const text of [
      "",
      "=",
      "A",
      PUBLIC_KEY.slice(1),
      `${PUBLIC_KEY}AA`,
      `${PUBLIC_KEY.slice(0, 42)}!`,
      "-----BEGIN PUBLIC KEY-----",
      `-----BEGIN PUBLIC KEY-----\n${standard}\n-----END PUBLIC KEY-----`,
      "ключ",
    ]
  ) assertEquals(normalizePublicKey(text), undefined, text);
});

Deno.test("a signature is 64 bytes in either base64, padded or not", () => {
  const { signature } = VECTORS[2];
  const standard = signature.replaceAll("_", "/").replaceAll("-", "+");

  assertEquals(decodeSignature(signature)?.length, 64);
  assertEquals(decodeSignature(`${standard}==`), decodeSignature(signature));
  for (const text of ["", signature.slice(4), `${signature}AAAA`, "not base64 at all"]) {
    assertEquals(decodeSignature(text), undefined, text);
  }
});

Deno.test("the signed token is the first of token, device token and bootstrap token", () => {
  assertEquals(signedToken({ token: "a", deviceToken: "b", bootstrapToken: "c" }), "a");
  assertEquals(signedToken({ deviceToken: "b", bootstrapToken: "c" }), "b");
  assertEquals(signedToken({ bootstrapToken: "c" }), "c");
  assertEquals(signedToken(), "");
});

Deno.test("only ASCII letters are lower-cased for signing", () => {
  assertEquals(normalizeForSigning("  MacOS 15.1 "), "macos 15.1");
  assertEquals(normalizeForSigning("İÄ"), "İÄ");
  assertEquals(normalizeForSigning(undefined), "");
});
