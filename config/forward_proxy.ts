// The proxy a machine has for its way out, as its environment names it. What goes without encryption
// goes to this machine and to private networks alone (protocol.md D9), and never to a proxy instead.

import type { Env } from "./paths.ts";

const PROXIES = [
  "HTTP_PROXY",
  "HTTPS_PROXY",
  "ALL_PROXY",
  "http_proxy",
  "https_proxy",
  "all_proxy",
];
const DIRECT = [
  "localhost",
  "127.0.0.0/8",
  "::1/128",
  "10.0.0.0/8",
  "172.16.0.0/12",
  "192.168.0.0/16",
  "169.254.0.0/16",
  "100.64.0.0/10",
  "fc00::/7",
  "fe80::/10",
];

/**
 * What `NO_PROXY` has to be for this process, and is to be told before its first connection.
 *
 * @returns undefined where no proxy is named, and none is avoided
 */
export function withoutProxy(env: Env): string | undefined {
  if (!PROXIES.some((name) => env[name]?.trim())) return undefined;
  const given = env.NO_PROXY?.trim() || env.no_proxy?.trim();
  return [...given ? [given] : [], ...DIRECT].join(",");
}
