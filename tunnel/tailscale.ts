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

/** How long an answer is good for, and how many may be asked for at once. */
const REMEMBER_MS = 30_000;
const MAX_ASKING = 8;
const MAX_REMEMBERED = 500;

/**
 * As `whois`, for whoever stands at the door: one question an address, and never many at a time. An
 * address that would have to wait is answered as unknown.
 */
export function rememberedWhois(
  runner: ProcessRunner,
  now: () => number = Date.now,
): (address: string) => Promise<string | undefined> {
  const known = new Map<string, { login: Promise<string | undefined>; askedAtMs: number }>();
  let asking = 0;
  return (address) => {
    const found = known.get(address);
    if (found && now() - found.askedAtMs < REMEMBER_MS) return found.login;
    if (asking >= MAX_ASKING) return Promise.resolve(undefined);
    asking++;
    const login = whois(runner, address).finally(() => asking--);
    known.delete(address);
    known.set(address, { login, askedAtMs: now() });
    if (known.size > MAX_REMEMBERED) known.delete(known.keys().next().value!);
    return login;
  };
}
