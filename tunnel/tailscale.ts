// The `tailscale` command of this machine: who is behind an address, what this machine is called, and
// which routes `serve` and `funnel` have. What to make of the answers is for the gateway to say.

import type { ProcessRunner } from "./process.ts";

const WHOIS_TIMEOUT_MS = 3_000;
const STATUS_TIMEOUT_MS = 5_000;
/** It may have a certificate to fetch. */
const PUBLISH_TIMEOUT_MS = 20_000;

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

/** This machine in its tailnet. */
export interface TailnetSelf {
  /** `Running`, `Stopped`, `NeedsLogin`, … */
  state: string;
  /** `box.tail1234.ts.net`, without a dot at the end. */
  name?: string;
  addresses: string[];
  /** Whether the tailnet has HTTPS certificates, without which nothing can be served. */
  hasCertificates: boolean;
}

/** @returns undefined when the command is not there, fails, or says nothing that can be read */
export async function readTailnetSelf(runner: ProcessRunner): Promise<TailnetSelf | undefined> {
  const status = record(await json(runner, ["status", "--json"], STATUS_TIMEOUT_MS));
  if (!status) return undefined;
  const self = record(status.Self) ?? {};
  const name = String(self.DNSName ?? "").replace(/\.$/, "").toLowerCase();
  return {
    state: String(status.BackendState ?? "unknown"),
    ...name !== "" && { name },
    addresses: texts(status.TailscaleIPs ?? self.TailscaleIPs),
    hasCertificates: texts(status.CertDomains).length > 0,
  };
}

/** One thing `tailscale serve` or `funnel` does on this machine. */
export interface ServeRoute {
  /** The name it is served under; absent where every name of the port is meant. */
  host?: string;
  port: number;
  /** Absent for a port that is forwarded whole. */
  path?: string;
  /** `http://127.0.0.1:3000`, a file, a text, or an address that TCP is forwarded to. */
  target: string;
  /** On the internet, by Funnel. */
  isPublic: boolean;
  /** Lasts as long as somebody's command in a terminal. */
  isForeground: boolean;
}

/** @returns undefined when the command fails or says nothing that can be read */
export async function readServeRoutes(
  runner: ProcessRunner,
  timeoutMs: number = STATUS_TIMEOUT_MS,
): Promise<ServeRoute[] | undefined> {
  const answer = await json(runner, ["serve", "status", "--json"], timeoutMs);
  if (answer === null) return [];
  const config = record(answer);
  if (!config) return undefined;
  const sessions = Object.values(record(config.Foreground) ?? {});
  return [
    ...routesOf(config, false),
    ...sessions.flatMap((session) => [...routesOf(record(session) ?? {}, true)]),
  ];
}

/** @param target a port of this machine, or `https+insecure://127.0.0.1:<port>` */
export async function publishRoute(
  runner: ProcessRunner,
  mode: "serve" | "funnel",
  target: string,
): Promise<{ isDone: boolean; said: string }> {
  const result = await runner.run("tailscale", [mode, "--bg", "--yes", target], {
    timeoutMs: PUBLISH_TIMEOUT_MS,
  });
  const said = result?.stderr.trim() || result?.stdout.trim() || "";
  return { isDone: result?.code === 0, said };
}

/** Takes one path of one port down, and nothing beside it. */
export async function unpublishRoute(
  runner: ProcessRunner,
  mode: "serve" | "funnel",
  { port, path }: { port: number; path: string },
  timeoutMs: number,
): Promise<boolean> {
  const args = [mode, "--yes", `--https=${port}`, `--set-path=${path}`, "off"];
  const result = await runner.run("tailscale", args, { timeoutMs });
  return result?.code === 0;
}

function* routesOf(config: Fields, isForeground: boolean): Generator<ServeRoute> {
  const published = record(config.AllowFunnel) ?? {};
  const isPublic = (at: string) => published[at] === true;
  for (const [at, handler] of Object.entries(record(config.TCP) ?? {})) {
    const forward = record(handler)?.TCPForward;
    if (typeof forward !== "string") continue;
    const port = Number(at);
    const isAnyPublic = Object.keys(published).some((one) => one.endsWith(`:${at}`));
    yield { port, target: `tcp ${forward}`, isPublic: isAnyPublic, isForeground };
  }
  for (const [at, server] of Object.entries(record(config.Web) ?? {})) {
    const [, host, port] = /^(.*):(\d+)$/.exec(at) ?? [];
    for (const [path, handler] of Object.entries(record(record(server)?.Handlers) ?? {})) {
      const { Proxy: proxy, Path: file } = record(handler) ?? {};
      const target = typeof proxy === "string" ? proxy : typeof file === "string" ? file : "a text";
      yield {
        host: host?.toLowerCase(),
        port: Number(port),
        path,
        target,
        isPublic: isPublic(at),
        isForeground,
      };
    }
  }
}

type Fields = Record<string, unknown>;

/** @returns undefined when there is no answer, or none in JSON; `null` is an answer */
async function json(runner: ProcessRunner, args: string[], timeoutMs: number): Promise<unknown> {
  const result = await runner.run("tailscale", args, { timeoutMs });
  if (result?.code !== 0) return undefined;
  try {
    return JSON.parse(result.stdout);
  } catch {
    return undefined; // as good as no answer
  }
}

function record(value: unknown): Fields | undefined {
  return typeof value === "object" && value !== null ? value as Fields : undefined;
}

function texts(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((one) => typeof one === "string") : [];
}
