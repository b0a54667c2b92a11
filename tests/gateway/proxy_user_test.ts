import { assertEquals } from "@std/assert";
import type { Config } from "../../config/schema.ts";
import { gatewaySettings } from "../../config/settings.ts";
import {
  judgeProxyUser,
  ownAddressAmong,
  proofsIn,
  proxyRules,
  type ProxyVerdict,
} from "../../gateway/proxy_user.ts";

const PROOF = "a-proof-of-the-proxy-that-nobody-guesses";
type TrustedProxy = NonNullable<
  NonNullable<NonNullable<Config["gateway"]>["auth"]>["trustedProxy"]
>;

function rulesOf(trustedProxy: TrustedProxy = {}) {
  const config: Config = {
    gateway: {
      auth: {
        mode: "trusted-proxy",
        trustedProxy: {
          userHeader: "X-Forwarded-User",
          requiredHeaders: { "X-Proxy-Secret": PROOF },
          allowUsers: ["ada@example.org"],
          ...trustedProxy,
        },
      },
    },
  };
  return proxyRules(gatewaySettings({ env: {}, config }).auth)!;
}

/** @param lines as a proxy sends them: `Name: value` */
function judged(lines: string[], trustedProxy?: TrustedProxy): ProxyVerdict {
  const raw = lines.flatMap((line) => {
    const [name, ...value] = line.split(":");
    return [name, value.join(":").trim()];
  });
  return judgeProxyUser(raw, rulesOf(trustedProxy), (given, secret) => given === secret);
}

function outcomeOf(verdict: ProxyVerdict): string {
  return verdict.ok ? verdict.user : verdict.failure;
}

Deno.test("a user counts when the proxy names exactly one that is allowed", async (t) => {
  const proof = `X-Proxy-Secret: ${PROOF}`;
  const user = "X-Forwarded-User: ada@example.org";
  const rows: [name: string, lines: string[], outcome: string][] = [
    ["named once", [proof, user], "ada@example.org"],
    ["in other letters", [proof, "X-Forwarded-User: ADA@example.org"], "user-not-allowed"],
    ["with header names in capitals", [
      `X-PROXY-SECRET: ${PROOF}`,
      "X-FORWARDED-USER: ada@example.org",
    ], "ada@example.org"],
    ["without the proof", [user], "header-missing"],
    ["with an empty proof", ["X-Proxy-Secret:", user], "header-missing"],
    ["with the proof twice", [proof, proof, user], "header-missing"],
    ["with another proof first", ["X-Proxy-Secret: guess", proof, user], "header-missing"],
    ["with a wrong proof", ["X-Proxy-Secret: guess", user], "header-mismatch"],
    ["nobody named", [proof], "user-missing"],
    ["an empty name", [proof, "X-Forwarded-User: "], "user-missing"],
    ["named twice, the same", [proof, user, user], "user-ambiguous"],
    ["named twice, an empty one first", [proof, "X-Forwarded-User:", user], "user-ambiguous"],
    ["two joined by a comma", [proof, `${user}, eve@example.org`], "user-ambiguous"],
    ["a comma behind it", [proof, `${user},`], "user-ambiguous"],
    ["a control character in it", [proof, `${user}\u0007`], "user-ambiguous"],
    ["endless", [proof, `X-Forwarded-User: ${"a".repeat(257)}`], "user-ambiguous"],
    ["somebody else", [proof, "X-Forwarded-User: eve@example.org"], "user-not-allowed"],
    ["part of an allowed name", [proof, "X-Forwarded-User: ada"], "user-not-allowed"],
    ["a star", [proof, "X-Forwarded-User: *"], "user-not-allowed"],
    [
      "a header that only looks alike",
      [proof, "X_Forwarded_User: ada@example.org"],
      "user-missing",
    ],
  ];
  for (const [name, lines, outcome] of rows) {
    await t.step(name, () => assertEquals(outcomeOf(judged(lines)), outcome));
  }
});

Deno.test("a star allows everybody the proxy names, and still one at a time", () => {
  const open = { allowUsers: ["*"], requiredHeaders: undefined };

  assertEquals(outcomeOf(judged(["X-Forwarded-User: Eve Example"], open)), "Eve Example");
  assertEquals(outcomeOf(judged(["X-Forwarded-User: eve, ada"], open)), "user-ambiguous");
  assertEquals(outcomeOf(judged([], open)), "user-missing");
});

Deno.test("required headers are a list of names, or values of which true is any", () => {
  const user = "X-Forwarded-User: ada@example.org";
  const names = { requiredHeaders: ["X-Auth-Request", "X-Other"] };
  const values = { requiredHeaders: { "X-Auth-Request": "yes", "X-Other": true as const } };

  assertEquals(
    outcomeOf(judged([user, "X-Auth-Request: 1", "X-Other: 2"], names)),
    "ada@example.org",
  );
  assertEquals(outcomeOf(judged([user, "X-Auth-Request: 1"], names)), "header-missing");
  assertEquals(
    outcomeOf(judged([user, "X-Auth-Request: yes", "X-Other: 2"], values)),
    "ada@example.org",
  );
  assertEquals(
    outcomeOf(judged([user, "X-Auth-Request: no", "X-Other: 2"], values)),
    "header-mismatch",
  );
});

Deno.test("only long values prove a proxy", () => {
  assertEquals(proofsIn({ "X-A": PROOF, "X-B": "https", "X-C": true }), [PROOF]);
  assertEquals(proofsIn(["X-A-Name-Of-More-Than-Twenty-Characters"]), []);
  assertEquals(proofsIn(undefined), []);
});

Deno.test("a proxy that stands for this machine is found, whichever way it is written", () => {
  const own = ["10.0.0.7", "fd00::7"];
  const rows: [entry: string, isOwn: boolean][] = [
    ["127.0.0.1", true],
    ["127.0.0.53", true],
    ["127.1.0.0/16", true],
    ["::1", true],
    ["::ffff:127.0.0.1", true],
    ["0.0.0.0/0", true],
    ["::/0", true],
    ["126.0.0.0/7", true],
    ["10.0.0.7", true],
    ["10.0.0.0/24", true],
    ["fd00::/64", true],
    ["10.0.0.5", false],
    ["10.1.0.0/16", false],
    ["fd01::/64", false],
  ];
  for (const [entry, isOwn] of rows) {
    assertEquals(ownAddressAmong(["192.0.2.1", entry], own), isOwn ? entry : undefined, entry);
  }
});

Deno.test("without a device a user may read, unless the file says otherwise; other modes have no rules", () => {
  assertEquals(rulesOf().scopes, ["operator.read"]);
  assertEquals(rulesOf({ scopes: [] }).scopes, []);
  assertEquals(rulesOf({ scopes: ["operator.write"] }).scopes, ["operator.write"]);
  const config: Config = {
    gateway: { auth: { mode: "token", trustedProxy: { userHeader: "X" } } },
  };
  assertEquals(proxyRules(gatewaySettings({ env: {}, config }).auth), undefined);
});
