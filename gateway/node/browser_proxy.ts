// `browser.proxy` (§9.3): passes requests on to one browser control server and to nothing else. Where
// that server listens is the owner's to say, never the caller's; it may do everything in a browser, so
// it is on this machine, or has a token and is reached over https or inside the tailnet.

import type { Env } from "../../config/paths.ts";
import type { Config } from "../../config/schema.ts";
import { isLoopbackUrl } from "../../config/target.ts";
import { AddressSet, isTailnetAddress, normalizeAddress } from "../network.ts";
import {
  anything,
  explain,
  mapOf,
  nonEmpty,
  nullable,
  number,
  open,
  optional,
  problems,
  text,
} from "../../rpc/shape.ts";
import { CommandError } from "./command_error.ts";

const ProxyParams = open({
  path: nonEmpty(),
  method: optional(nullable(text())),
  query: optional(nullable(mapOf(anything()))),
  body: anything(),
  profile: optional(nullable(text())),
  timeoutMs: optional(nullable(number())),
});

interface ProxyParams {
  path: string;
  method?: string | null;
  query?: Record<string, unknown> | null;
  body?: unknown;
  profile?: string | null;
  timeoutMs?: number | null;
}

interface AttachedFile {
  path: string;
  base64: string;
  mimeType?: string;
}

export interface ProxyAnswer {
  result: unknown;
  files?: AttachedFile[];
}

export interface BrowserControl {
  /** `http(s)://host:port` and perhaps a path. */
  url: string;
  /** Elsewhere there are other files, and other names for them. */
  isOnThisMachine: boolean;
  token?: string;
  /** Empty: every profile may be used. */
  allowProfiles: readonly string[];
  defaultProfile?: string;
  /** Every address of a name, as the system resolves it. */
  resolve?(name: string): Promise<string[]>;
}

const DEFAULT_TIMEOUT_MS = 20_000;
const MAX_TIMEOUT_MS = 2_147_483_647;
const LOOK_TIMEOUT_MS = 1_000;
const MAX_FILE_BYTES = 10 * 1024 * 1024;
const MAX_ANSWER_BYTES = 20 * 1024 * 1024;
const METHODS = new Set(["GET", "POST", "PUT", "PATCH", "DELETE"]);

/** @returns undefined where this machine lends no browser */
export function browserControl(
  { browser, nodeHost }: Config,
  env: Env,
): BrowserControl | undefined {
  const url = env.ZERO_BROWSER_CONTROL_URL?.trim() || browser?.controlUrl;
  const isOn = browser?.enabled !== false && nodeHost?.browserProxy?.enabled !== false;
  if (!isOn || !url || !/^https?:\/\//.test(url)) return undefined;
  const token = env.ZERO_BROWSER_CONTROL_TOKEN?.trim() || browser?.controlToken;
  const isOnThisMachine = isLoopbackUrl(url.replace(/^http/, "ws"));
  if (!isOnThisMachine && (!token || !mayBeElsewhere(url))) return undefined;
  const { defaultProfile } = browser ?? {};
  return {
    url: url.replace(/\/+$/, ""),
    isOnThisMachine,
    ...(token && { token }),
    ...(defaultProfile && { defaultProfile }),
    allowProfiles: nodeHost?.browserProxy?.allowProfiles ?? [],
  };
}

/** Over https anywhere; without encryption inside the tailnet alone. */
function mayBeElsewhere(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const url = new URL(text);
  const host = normalizeAddress(url.hostname);
  if (FORBIDDEN.has(host)) return false;
  return url.protocol === "https:" || isTailnetAddress(host) || host.endsWith(".ts.net");
}

/**
 * Where machines of a cloud and of a tailnet ask for their own secrets, link-local addresses, and
 * those that mean no particular machine.
 */
const FORBIDDEN = new AddressSet([
  "0.0.0.0/8",
  "100.100.100.100",
  "100.100.100.200",
  "168.63.129.16",
  "169.254.0.0/16",
  "192.0.0.192",
  "::",
  "fd00:ec2::254",
  "fe80::/10",
]);

/** Whether the control server answers, whatever it says. */
export async function answers(control: BrowserControl, signal: AbortSignal): Promise<boolean> {
  try {
    const response = await ask(control, `${control.url}/`, {
      signal: AbortSignal.any([signal, AbortSignal.timeout(LOOK_TIMEOUT_MS)]),
    });
    await response.body?.cancel();
    return true;
  } catch {
    return false; // it is off, or starting: it is looked for again later
  }
}

/** @throws {CommandError} */
export async function proxyRequest(
  value: unknown,
  control: BrowserControl,
  signal: AbortSignal,
): Promise<ProxyAnswer> {
  const wrong = problems(value, ProxyParams);
  if (wrong.length > 0) {
    throw new CommandError("INVALID_REQUEST", `invalid browser.proxy params: ${explain(wrong)}`);
  }
  const params = value as ProxyParams;
  const method = (params.method?.trim() || "GET").toUpperCase();
  if (!METHODS.has(method)) throw new CommandError("INVALID_REQUEST", "method not supported");
  const url = urlOf(params, control);
  const isProfileList = url.pathname === new URL(`${control.url}/profiles`).pathname;
  mustBeAllowed(params, url, control, { isProfileList });
  const timeoutMs = params.timeoutMs && params.timeoutMs > 0
    ? Math.min(params.timeoutMs, MAX_TIMEOUT_MS)
    : DEFAULT_TIMEOUT_MS;
  const hasBody = params.body !== undefined && params.body !== null && method !== "GET";
  const result = await resultOf(control, url, {
    method,
    ...(hasBody && { body: JSON.stringify(params.body) }),
    headers: hasBody ? { "content-type": "application/json" } : {},
    signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
  });
  const files = control.isOnThisMachine ? await attachedFiles(result) : [];
  return {
    result: isProfileList ? allowedProfiles(result, control) : result,
    ...(files.length > 0 && { files }),
  };
}

/** A path of the control server and nothing beyond it. */
function urlOf({ path, query, profile }: ProxyParams, { url }: BrowserControl): URL {
  const base = new URL(`${url}/`);
  const whole = `${url}/${path.trim().replace(/^\/+/, "")}`;
  const target = URL.canParse(whole) ? new URL(whole) : undefined;
  if (!target || target.origin !== base.origin || !target.pathname.startsWith(base.pathname)) {
    throw new CommandError("INVALID_REQUEST", "path required");
  }
  for (const [name, one] of Object.entries(query ?? {})) {
    if (one !== undefined && one !== null) target.searchParams.set(name, String(one));
  }
  if (profile?.trim()) target.searchParams.set("profile", profile.trim());
  return target;
}

function mustBeAllowed(
  { body }: ProxyParams,
  { searchParams }: URL,
  { allowProfiles, defaultProfile }: BrowserControl,
  { isProfileList }: { isProfileList: boolean },
) {
  if (allowProfiles.length === 0) return;
  const inBody = (body as { profile?: unknown } | null | undefined)?.profile;
  const named = [
    ...searchParams.getAll("profile"),
    ...inBody === undefined ? [] : [String(inBody)],
  ];
  const used = named.length > 0 || isProfileList ? named : [defaultProfile ?? ""];
  if (used.every((one) => allowProfiles.includes(one.trim()))) return;
  throw new CommandError("INVALID_REQUEST", "browser profile not allowed");
}

async function resultOf(control: BrowserControl, url: URL, init: RequestInit): Promise<unknown> {
  let response: Response;
  let body: string;
  try {
    response = await ask(control, url, init);
    body = await textOf(response);
  } catch (error) {
    if (error instanceof CommandError) throw error;
    throw new CommandError("UNAVAILABLE", `browser request failed: ${(error as Error).message}`);
  }
  if (!response.ok) {
    const reason = body.trim().slice(0, 500) || `HTTP ${response.status}`;
    throw new CommandError("UNAVAILABLE", reason);
  }
  try {
    return JSON.parse(body);
  } catch {
    return body;
  }
}

/** Redirects lead away from the one server that may be asked. */
async function ask(
  control: BrowserControl,
  url: string | URL,
  init: RequestInit,
): Promise<Response> {
  const { token } = control;
  return await fetch(await checkedEndpoint(new URL(url), control), {
    ...init,
    redirect: "error",
    headers: { ...init.headers, ...(token && { authorization: `Bearer ${token}` }) },
  });
}

/**
 * What is dialled: a name in the tailnet is replaced by the address that was checked, so that another
 * answer a moment later changes nothing. Over https it is the certificate that holds to the name.
 *
 * @throws {CommandError} the name leads where no control server is
 */
async function checkedEndpoint(
  url: URL,
  { isOnThisMachine, resolve = resolveName }: BrowserControl,
): Promise<URL> {
  const host = normalizeAddress(url.hostname);
  if (isOnThisMachine) return url;
  const addresses = (await resolve(host)).map(normalizeAddress);
  const isSafe = (address: string) =>
    !FORBIDDEN.has(address) && (url.protocol === "https:" || isTailnetAddress(address));
  if (addresses.length === 0 || !addresses.every(isSafe)) {
    throw new CommandError(
      "UNAVAILABLE",
      "browser request refused: browser.controlUrl leads to an address where no control server may be",
    );
  }
  if (url.protocol === "https:") return url;
  const [address] = addresses;
  const checked = new URL(url);
  checked.hostname = address.includes(":") ? `[${address}]` : address;
  return checked;
}

async function resolveName(name: string): Promise<string[]> {
  const { lookup } = await import("node:dns/promises");
  return (await lookup(name, { all: true })).map(({ address }) => address);
}

async function textOf(response: Response): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  let bytes = 0;
  for await (const chunk of response.body ?? []) {
    bytes += chunk.length;
    if (bytes > MAX_ANSWER_BYTES) throw new CommandError("UNAVAILABLE", "browser answer too large");
    text += decoder.decode(chunk, { stream: true });
  }
  return text + decoder.decode();
}

/** The files that an answer names: screenshots, PDFs, downloads. */
async function attachedFiles(result: unknown): Promise<AttachedFile[]> {
  const { path, imagePath, download } = (result ?? {}) as Record<string, unknown>;
  const named = [path, imagePath, (download as { path?: unknown } | null | undefined)?.path];
  const files: AttachedFile[] = [];
  for (const one of new Set(named)) {
    if (typeof one !== "string" || one.trim() === "") continue;
    const { isFile, size } = await Deno.stat(one).catch(() => ({ isFile: false, size: 0 }));
    if (!isFile) continue;
    if (size > MAX_FILE_BYTES) throw new CommandError("UNAVAILABLE", "browser file exceeds 10MB");
    const mimeType = MIME_TYPES[/\.(\w+)$/.exec(one)?.[1].toLowerCase() ?? ""];
    const base64 = (await Deno.readFile(one)).toBase64();
    files.push({ path: one, base64, ...(mimeType && { mimeType }) });
  }
  return files;
}

const MIME_TYPES: Record<string, string | undefined> = {
  png: "image/png",
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  webp: "image/webp",
  gif: "image/gif",
  pdf: "application/pdf",
  json: "application/json",
  txt: "text/plain",
  html: "text/html",
  zip: "application/zip",
  webm: "video/webm",
  mp4: "video/mp4",
};

function allowedProfiles(result: unknown, { allowProfiles }: BrowserControl): unknown {
  const { profiles } = (result ?? {}) as { profiles?: unknown };
  if (allowProfiles.length === 0 || !Array.isArray(profiles)) return result;
  const isAllowed = (one: unknown) =>
    allowProfiles.includes(String((one as { name?: unknown } | null)?.name ?? one));
  return { ...result as object, profiles: profiles.filter(isAllowed) };
}
