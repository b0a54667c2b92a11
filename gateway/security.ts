// What `zero security audit` looks at: the configuration, the files and the surroundings of this
// installation. Gathering the facts and judging them are two things; the judging is pure.

import type { ConfigReading } from "../config/load.ts";
import type { Env, Paths } from "../config/paths.ts";
import { type GatewaySettings, gatewaySettings } from "../config/settings.ts";
import { readInterfaces } from "./bind.ts";
import { ownAddressAmong, proofsIn, SHORTEST_PROOF } from "./proxy_user.ts";
import {
  certificateFiles,
  type CertificateInfo,
  describeCertificate,
  expiryTrouble,
  loadCertificate,
} from "./tls_certificate.ts";

export type Level = "info" | "warn" | "critical";
export const LEVELS: readonly Level[] = ["info", "warn", "critical"];

export interface Finding {
  /** Stable: `auth.none`, `files.mode`. */
  id: string;
  level: Level;
  title: string;
  /** What was seen; never a secret. */
  detail: string;
  /** One command or one sentence. */
  fix: string;
  /** What `--fix` does about it. */
  repair?: { path: string; mode: number };
}

export interface FileFact {
  path: string;
  isDirectory: boolean;
  /** Permission bits. */
  mode: number;
  isOwn: boolean;
  isLink: boolean;
}

export interface Facts {
  reading: ConfigReading;
  settings: GatewaySettings;
  env: Env;
  files: FileFact[];
  /** Addresses of this machine, beside loopback. */
  ownAddresses?: readonly string[];
  /** Unit files of this machine that speak of ZERO. */
  units: { path: string; text: string }[];
  /** What the gateway serves, or why it could not; absent without TLS. */
  certificate?: { path: string; info?: CertificateInfo; problem?: string };
  nowMs: number;
}

const SHORTEST_SECRET = 20;
const LOOSE_ATTEMPTS = 100;
const LONG_BREAK_GLASS_MS = 30 * 86_400_000;
/** As systemd writes it, and as launchd does. */
const SECRET_VARIABLE = /ZERO_GATEWAY_(?:TOKEN|PASSWORD)(?:\s*=\s*\S|<\/key>\s*<string>[^<])/;

/** Everything found, the worst first. */
export function judge(facts: Facts): Finding[] {
  const found = [
    ...judgeExposure(facts),
    ...judgeCertificate(facts),
    ...judgeAuth(facts),
    ...judgeProxies(facts),
    ...judgeProxyUsers(facts),
    ...judgeBreakGlass(facts),
    ...judgeFiles(facts),
    ...judgeSurroundings(facts),
  ];
  return found.sort((a, b) => LEVELS.indexOf(b.level) - LEVELS.indexOf(a.level));
}

function* judgeExposure({ settings }: Facts): Generator<Finding> {
  const bind = settings.bind.value;
  if (bind !== "loopback" && !settings.tls.enabled.value) {
    yield {
      id: "bind.plaintext",
      level: "warn",
      title: "Others on the network can read what is sent",
      detail: `gateway.bind is ${bind}, and the port speaks plain ws://`,
      fix: "zero config set gateway.tls.enabled true, or gateway.bind loopback and an SSH tunnel",
    };
  }
  if (settings.tailscale.mode.value === "funnel") {
    yield {
      id: "tailscale.funnel",
      level: "warn",
      title: "The gateway is on the public internet",
      detail: "gateway.tailscale.mode is funnel",
      fix: "zero config set gateway.tailscale.mode serve",
    };
  }
}

function* judgeCertificate({ certificate, settings, nowMs }: Facts): Generator<Finding> {
  if (!certificate) return;
  const { path, info, problem } = certificate;
  if (problem !== undefined) {
    yield {
      id: "tls.unusable",
      level: "critical",
      title: "The TLS certificate cannot be served",
      detail: problem,
      fix: "zero gateway cert show",
    };
  }
  const isOwn = settings.tls.certPath.value !== undefined;
  const trouble = info && expiryTrouble(info, { isOwn, cert: path }, nowMs);
  if (!trouble) return;
  const isOver = info.notAfterMs <= nowMs;
  yield {
    id: isOver ? "tls.expired" : "tls.expires",
    level: isOver ? "critical" : "warn",
    title: trouble.message,
    detail: path,
    fix: trouble.fix,
  };
}

function* judgeAuth({ settings: { auth } }: Facts): Generator<Finding> {
  if (auth.mode.value === "none") {
    yield {
      id: "auth.none",
      level: "critical",
      title: "Every program on this machine may connect",
      detail: `gateway.auth.mode is none (${auth.mode.source})`,
      fix: "zero config set gateway.auth.mode token",
    };
  }
  for (const name of ["token", "password"] as const) {
    const { value, source } = auth[name];
    if (!value || value.length >= SHORTEST_SECRET) continue;
    yield {
      id: `auth.short-${name}`,
      level: "warn",
      title: `The ${name} can be guessed`,
      detail: `gateway.auth.${name} (${source}) has ${value.length} characters`,
      fix: `Choose one of ${SHORTEST_SECRET} or more: zero config set gateway.auth.${name}`,
    };
  }
  const { maxAttempts } = auth.rateLimit.value;
  if (maxAttempts > LOOSE_ATTEMPTS) {
    yield {
      id: "auth.rate-limit",
      level: "warn",
      title: "Secrets may be guessed at length",
      detail: `gateway.auth.rateLimit.maxAttempts is ${maxAttempts}`,
      fix: "zero config unset gateway.auth.rateLimit.maxAttempts",
    };
  }
  if (auth.allowTailscale.value) {
    yield {
      id: "auth.tailscale-shared-host",
      level: "info",
      title: "Users of this machine can claim a Tailscale login",
      detail: "gateway.auth.allowTailscale trusts every user of the gateway's host",
      fix: "On a machine you share: zero config set gateway.auth.allowTailscale false",
    };
  }
}

function* judgeProxies({ settings }: Facts): Generator<Finding> {
  const proxies = settings.trustedProxies.value;
  for (const proxy of proxies) {
    const [, bits] = proxy.split("/");
    const isWide = bits !== undefined && Number(bits) < (proxy.includes(":") ? 48 : 16);
    if (!isWide) continue;
    yield {
      id: "proxies.wide",
      level: "critical",
      title: "Strangers may say they are a trusted proxy",
      detail: `gateway.trustedProxies holds ${proxy}`,
      fix: "List the addresses of your proxies alone",
    };
  }
  if (proxies.length > 0 && settings.auth.silentPairing.value) {
    yield {
      id: "proxies.silent-pairing",
      level: "warn",
      title: "A proxy that adds no header looks like this machine",
      detail: "gateway.trustedProxies is set, and local devices are paired without asking",
      fix: "zero config set gateway.auth.silentPairing false",
    };
  }
  for (const origin of settings.allowedOrigins.value) {
    if (!origin.startsWith("http://") || isOnThisMachine(origin)) continue;
    yield {
      id: "origins.plaintext",
      level: "warn",
      title: "A page anybody on its network can change may connect",
      detail: `gateway.controlUi.allowedOrigins holds ${origin}`,
      fix: "Serve that page over https://",
    };
  }
}

/** What a proxy that names users can do, and who can pretend to be it. */
function* judgeProxyUsers({ settings, ownAddresses = [] }: Facts): Generator<Finding> {
  const { auth: { mode, trustedProxy }, trustedProxies } = settings;
  if (mode.value !== "trusted-proxy") return;
  const { requiredHeaders, allowUsers, scopes } = trustedProxy;
  const own = ownAddressAmong(trustedProxies.value, ownAddresses);
  if (own !== undefined && proofsIn(requiredHeaders.value).length === 0) {
    yield {
      id: "proxies.forgeable",
      level: "critical",
      title: "Any program on this machine can say which user it is",
      detail: `gateway.trustedProxies holds ${own}, and no header in ` +
        `gateway.auth.trustedProxy.requiredHeaders has a value of ${SHORTEST_PROOF} characters`,
      fix: `Let the proxy send a secret of ${SHORTEST_PROOF} characters or more in a header, and ` +
        "put both into gateway.auth.trustedProxy.requiredHeaders with `zero config edit`",
    };
  }
  if (allowUsers.value?.includes("*")) {
    yield {
      id: "proxies.everybody",
      level: "warn",
      title: "Everybody the proxy knows may come in",
      detail: 'gateway.auth.trustedProxy.allowUsers is ["*"]',
      fix: "Name the users in gateway.auth.trustedProxy.allowUsers",
    };
  }
  if (scopes.value?.includes("operator.admin")) {
    yield {
      id: "proxies.admin",
      level: "warn",
      title: "Users of the proxy may do everything, without a device that was approved",
      detail: "gateway.auth.trustedProxy.scopes holds operator.admin",
      fix: "zero config unset gateway.auth.trustedProxy.scopes",
    };
  }
}

function* judgeBreakGlass({ settings, env, nowMs }: Facts): Generator<Finding> {
  const { allowInsecureAuth, allowInsecureAuthUntil } = settings.controlUi;
  if (allowInsecureAuth.value) {
    const until = allowInsecureAuthUntil.value ?? "";
    const leftMs = Date.parse(until) - nowMs;
    const isOver = !(leftMs > 0);
    yield {
      id: isOver ? "break-glass.expired" : "break-glass.open",
      level: isOver ? "warn" : "critical",
      title: isOver
        ? "A weakening setting is left over"
        : "The Control UI is let in without a device key",
      detail: `gateway.controlUi.allowInsecureAuth ${isOver ? "ended" : "holds until"} ${until}` +
        (leftMs > LONG_BREAK_GLASS_MS ? ", more than 30 days from now" : ""),
      fix: "zero config unset gateway.controlUi.allowInsecureAuth",
    };
  }
  if (env.ZERO_ALLOW_INSECURE_WS?.trim() === "1") {
    yield {
      id: "break-glass.insecure-ws",
      level: "warn",
      title: "Commands send secrets over plain ws:// to anywhere",
      detail: "ZERO_ALLOW_INSECURE_WS is 1",
      fix: "unset ZERO_ALLOW_INSECURE_WS",
    };
  }
}

function* judgeFiles({ files }: Facts): Generator<Finding> {
  for (const { path, isDirectory, mode, isOwn, isLink } of files) {
    const wanted = isDirectory ? 0o700 : 0o600;
    if (!isOwn) {
      yield {
        id: "files.owner",
        level: "critical",
        title: "Somebody else owns a file of this installation",
        detail: path,
        fix: `sudo chown "$(id -u)" ${path}`,
      };
    } else if ((mode & 0o077) !== 0) {
      yield {
        id: "files.mode",
        level: "critical",
        title: "Others on this machine may look at a file of this installation",
        detail: `${path} has mode ${mode.toString(8).padStart(4, "0")}`,
        fix: `chmod ${wanted.toString(8)} ${path}`,
        repair: { path, mode: wanted },
      };
    }
    if (isLink) {
      yield {
        id: "files.link",
        level: "warn",
        title: "A file of this installation is a symbolic link",
        detail: path,
        fix: "Put the file itself there, or name its place with ZERO_CONFIG_PATH",
      };
    }
  }
}

function* judgeSurroundings({ units, reading }: Facts): Generator<Finding> {
  for (const { path, text } of units) {
    if (!SECRET_VARIABLE.test(text)) continue;
    yield {
      id: "units.secret",
      level: "critical",
      title: "A service file holds a secret",
      detail: `${path} sets ZERO_GATEWAY_TOKEN or ZERO_GATEWAY_PASSWORD`,
      fix: "Take it out of the unit; the gateway keeps a token of its own, or reads it from a file",
    };
  }
  const { controlUrl, controlToken } = reading.config.browser ?? {};
  if (controlUrl !== undefined && !isOnThisMachine(controlUrl) && !controlToken) {
    yield {
      id: "browser.no-token",
      level: "critical",
      title: "A browser elsewhere can be driven by anybody",
      detail: "browser.controlUrl is not on this machine, and there is no browser.controlToken",
      fix: "zero config set browser.controlToken",
    };
  }
}

function isOnThisMachine(url: string): boolean {
  return URL.canParse(url) &&
    /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(new URL(url).hostname);
}

/** Looks at this installation. */
export async function gatherFacts(
  { paths, reading, home }: { paths: Paths; reading: ConfigReading; home?: string },
): Promise<Facts> {
  const { stateDir, configPath, env } = paths;
  const settings = gatewaySettings({ env, config: reading.config });
  const { keyPath } = settings.tls;
  const files = [
    ...await walk(stateDir),
    ...await factOf(configPath),
    ...keyPath.value ? await factOf(keyPath.value) : [],
  ];
  const certificate = await readCertificate(settings, stateDir);
  return {
    reading,
    settings,
    env,
    files: [...new Map(files.map((file) => [file.path, file])).values()],
    ownAddresses: readInterfaces().addresses,
    units: await readUnits([
      "/etc/systemd/system",
      ...(home ? [`${home}/.config/systemd/user`, `${home}/Library/LaunchAgents`] : []),
    ]),
    ...certificate && { certificate },
    nowMs: Date.now(),
  };
}

async function readCertificate(
  { tls }: GatewaySettings,
  stateDir: string,
): Promise<Facts["certificate"]> {
  if (!tls.enabled.value) return undefined;
  const files = certificateFiles(tls, stateDir);
  try {
    const pair = await loadCertificate(files);
    // Without one the gateway makes it at its next start.
    return { path: files.cert, ...pair && { info: describeCertificate(pair.cert) } };
  } catch (error) {
    return { path: files.cert, problem: (error as Error).message };
  }
}

/** A state directory holds some dozens of files; a wrong one may hold anything. */
const MAX_FILES = 2_000;

async function walk(path: string, files: FileFact[] = []): Promise<FileFact[]> {
  const [fact] = await factOf(path);
  if (!fact || files.length >= MAX_FILES) return files;
  files.push(fact);
  if (!fact.isDirectory || fact.isLink) return files;
  for await (const { name } of Deno.readDir(path)) await walk(`${path}/${name}`, files);
  return files;
}

async function factOf(path: string): Promise<FileFact[]> {
  try {
    const { isSymlink } = await Deno.lstat(path);
    const { isDirectory, mode, uid } = await Deno.stat(path);
    return [{
      path,
      isDirectory,
      mode: (mode ?? 0) & 0o777,
      isOwn: uid === null || uid === Deno.uid(),
      isLink: isSymlink,
    }];
  } catch {
    // Not there, so nobody can look at it.
    return [];
  }
}

async function readUnits(folders: readonly string[]): Promise<{ path: string; text: string }[]> {
  const units: { path: string; text: string }[] = [];
  for (const folder of folders) {
    try {
      for await (const { name, isFile, isDirectory } of Deno.readDir(folder)) {
        // What `systemctl edit` adds to a unit.
        const isDropIn = isDirectory && /zero.*\.d$/i.test(name);
        if (isDropIn) units.push(...await readUnits([`${folder}/${name}`]));
        if (!isFile || !/zero/i.test(`${folder.split("/").at(-1)}/${name}`)) continue;
        units.push({
          path: `${folder}/${name}`,
          text: await Deno.readTextFile(`${folder}/${name}`),
        });
      }
    } catch {
      // No such folder, or not ours to read.
    }
  }
  return units;
}
