// Who a proxy in front of the gateway says its user is (`gateway.auth.mode: "trusted-proxy"`). Only
// looks at header lines; that they come from a trusted proxy is for network.ts to say.

import type { GatewaySettings } from "../config/settings.ts";
import { AddressSet, isLoopbackAddress, normalizeAddress } from "./network.ts";

/** Header names in lower case. */
export interface ProxyRules {
  userHeader: string;
  /** A value of `true`: any will do. */
  requiredHeaders: [name: string, value: string | true][];
  /** `["*"]`: everybody. */
  allowUsers: readonly string[];
  /** What a user without a device may do. */
  scopes: readonly string[];
}

export type ProxyFailure =
  | "not-proxied"
  | "header-missing"
  | "header-mismatch"
  | "user-missing"
  | "user-ambiguous"
  | "user-not-allowed";

export type ProxyVerdict =
  | { ok: true; user: string }
  | { ok: false; failure: ProxyFailure; user?: string };

/** What each failure is called, and what mends it. */
export const PROXY_FAILURES: Record<
  ProxyFailure,
  { code: string; reason: string; message: string; fix: string }
> = {
  "not-proxied": {
    code: "AUTH_PROXY_REQUIRED",
    reason: "proxy_required",
    message: "unauthorized: this gateway is reached through its proxy only",
    fix: "Connect to the address of the proxy; for commands on the gateway's own machine: " +
      "zero config set gateway.auth.token",
  },
  "header-missing": {
    code: "AUTH_PROXY_HEADER_MISSING",
    reason: "proxy_header_missing",
    message: "unauthorized: the proxy left out a header that it must send",
    fix: "Let the proxy set each of gateway.auth.trustedProxy.requiredHeaders, once",
  },
  "header-mismatch": {
    code: "AUTH_PROXY_HEADER_MISMATCH",
    reason: "proxy_header_mismatch",
    message: "unauthorized: a header of the proxy has the wrong value",
    fix: "Let the proxy send the values in gateway.auth.trustedProxy.requiredHeaders",
  },
  "user-missing": {
    code: "AUTH_PROXY_USER_MISSING",
    reason: "proxy_user_missing",
    message: "unauthorized: the proxy named no user",
    fix: "Log in at the proxy; it has to set gateway.auth.trustedProxy.userHeader",
  },
  "user-ambiguous": {
    code: "AUTH_PROXY_USER_AMBIGUOUS",
    reason: "proxy_user_ambiguous",
    message: "unauthorized: the proxy did not name exactly one user",
    fix: "Let the proxy replace the header in gateway.auth.trustedProxy.userHeader, not add to it",
  },
  "user-not-allowed": {
    code: "AUTH_PROXY_USER_NOT_ALLOWED",
    reason: "proxy_user_not_allowed",
    message: "unauthorized: this user of the proxy is not allowed",
    fix: "On the gateway's host, add the user to gateway.auth.trustedProxy.allowUsers",
  },
};

const DEFAULT_SCOPES = ["operator.read"];
const MAX_USER_CHARS = 256;
/** One name: no comma, by which headers are joined, and nothing that would spoil a log line. */
const USER = /^[^\s,\p{C}]([^,\p{C}]*[^\s,\p{C}])?$/u;

/** A shorter value of a header can be guessed, or is none that anybody keeps to himself. */
export const SHORTEST_PROOF = 20;

/** The values of required headers by which a proxy proves that it is one. */
export function proofsIn(
  required: GatewaySettings["auth"]["trustedProxy"]["requiredHeaders"]["value"],
): string[] {
  return Object.values(Array.isArray(required) ? {} : required ?? {})
    .filter((value) => typeof value === "string" && value.length >= SHORTEST_PROOF) as string[];
}

/** @returns undefined in every other mode */
export function proxyRules(
  { mode, trustedProxy }: GatewaySettings["auth"],
): ProxyRules | undefined {
  const { userHeader, requiredHeaders: { value: required = [] }, allowUsers, scopes } =
    trustedProxy;
  if (mode.value !== "trusted-proxy") return undefined;
  const entries: [string, string | true][] = Array.isArray(required)
    ? required.map((name) => [name, true])
    : Object.entries(required);
  return {
    userHeader: userHeader.value?.toLowerCase() ?? "",
    requiredHeaders: entries.map(([name, value]) => [name.toLowerCase(), value]),
    allowUsers: allowUsers.value ?? [],
    scopes: scopes.value ?? DEFAULT_SCOPES,
  };
}

/**
 * @param rawHeaders names and values in turn, as they came: `node:http` joins or drops what is
 *   there twice
 * @param isSame compares secrets in constant time
 */
export function judgeProxyUser(
  rawHeaders: readonly string[],
  { userHeader, requiredHeaders, allowUsers }: ProxyRules,
  isSame: (given: string, secret: string) => boolean,
): ProxyVerdict {
  const fail = (failure: ProxyFailure, user?: string): ProxyVerdict => ({
    ok: false,
    failure,
    user,
  });
  for (const [name, wanted] of requiredHeaders) {
    const [value, ...more] = valuesOf(rawHeaders, name);
    if (!value || more.length > 0) return fail("header-missing");
    if (wanted !== true && !isSame(value, wanted)) return fail("header-mismatch");
  }
  const users = valuesOf(rawHeaders, userHeader);
  if (users.length > 1) return fail("user-ambiguous");
  const [user = ""] = users;
  if (user === "") return fail("user-missing");
  if (user.length > MAX_USER_CHARS || !USER.test(user)) return fail("user-ambiguous");
  const isAllowed = allowUsers.includes("*") || allowUsers.includes(user);
  return isAllowed ? { ok: true, user } : fail("user-not-allowed", user);
}

/** The first of `gateway.trustedProxies` that also stands for this machine itself. */
export function ownAddressAmong(
  trustedProxies: readonly string[],
  ownAddresses: readonly string[],
): string | undefined {
  const own = ["127.0.0.1", "::1", ...ownAddresses.map(normalizeAddress)];
  return trustedProxies.find((entry) => {
    if (isLoopbackAddress(normalizeAddress(entry.split("/")[0]))) return true;
    const proxies = new AddressSet([entry]);
    return own.some((address) => proxies.has(address));
  });
}

function valuesOf(rawHeaders: readonly string[], name: string): string[] {
  const values: string[] = [];
  for (let index = 0; index + 1 < rawHeaders.length; index += 2) {
    if (rawHeaders[index].toLowerCase() === name) values.push(rawHeaders[index + 1].trim());
  }
  return values;
}
