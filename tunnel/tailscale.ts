// The `tailscale` command of this machine.

import type { ProcessRunner } from "./process.ts";

const WHOIS_TIMEOUT_MS = 3_000;

/**
 * The login behind a tailnet address (D3).
 *
 * @returns undefined when the command is not there, fails, or names nobody
 */
export async function whois(runner: ProcessRunner, address: string): Promise<string | undefined> {
  const result = await runner.run("tailscale", ["whois", "--json", address], {
    timeoutMs: WHOIS_TIMEOUT_MS,
  });
  if (result?.code !== 0) return undefined;
  try {
    const login = JSON.parse(result.stdout)?.UserProfile?.LoginName;
    return typeof login === "string" && login !== "" ? login : undefined;
  } catch {
    // An answer that cannot be read names nobody.
    return undefined;
  }
}
