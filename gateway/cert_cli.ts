// `zero gateway cert`: the certificate of this machine's gateway, what clients are to expect, and how
// the next one takes its place without locking anybody out.

import { type Command, command, EXIT_FAILURE, JSON_FLAG } from "../config/command.ts";
import type { Paths } from "../config/paths.ts";
import type { Terminal } from "../config/terminal.ts";
import type { CertificateFiles, CertificateInfo, KeyPair } from "./tls_certificate.ts";

/** A running gateway notices a new certificate within a second; a busy one may take longer. */
const TAKE_OVER_MS = 10_000;
const LOOK_EVERY_MS = 200;
const LOOK_MS = 2_000;

interface Certificates {
  enabled: boolean;
  files: CertificateFiles;
  current?: CertificateInfo;
  next?: CertificateInfo;
}

/** A step that was not taken, and what would be the right one. */
interface Refusal {
  code: "NO_CERTIFICATE" | "UNUSABLE_CERTIFICATE" | "OWN_CERTIFICATE" | "NO_NEXT_CERTIFICATE";
  message: string;
  fix: string;
}

export function certCommands({ place }: { place: () => Paths }): Command[] {
  return [
    command({
      path: ["gateway", "cert", "show"],
      aliases: [["gateway", "cert"]],
      summary: "The certificate of this machine's gateway, and the pins clients are to expect",
      flags: JSON_FLAG,
      details: "The fingerprint is the SHA-256 of the certificate. Clients keep it in " +
        "gateway.remote.tlsFingerprint, or get it with the link of zero devices invite.",
      examples: ["zero gateway cert show", "zero gateway cert show --json"],
      async run({ flags }, terminal) {
        const found = await read(place());
        if ("code" in found) return refuse(found, flags, terminal);
        if (!found.current) return refuse(noCertificate(found), flags, terminal);
        if (flags.json) return terminal.json(documentOf(found));
        show(found, terminal);
      },
    }),

    command({
      path: ["gateway", "cert", "rotate"],
      summary: "Make the next certificate, and later put it in the place of the current one",
      flags: {
        ...JSON_FLAG,
        activate: { kind: "boolean", summary: "Serve the next certificate from now on" },
      },
      details: "The first step makes the next certificate and changes nothing else: give its pin " +
        "to the clients, beside the current one. The second step, with --activate, lets the " +
        "gateway serve it; a running one does so without dropping a connection. A certificate of " +
        "your own (gateway.tls.certPath) is replaced where it is, and noticed there.",
      examples: ["zero gateway cert rotate", "zero gateway cert rotate --activate"],
      async run({ flags }, terminal) {
        const paths = place();
        const found = await read(paths);
        if ("code" in found) return refuse(found, flags, terminal);
        const refusal = refusalOf(found, flags.activate);
        if (refusal) return refuse(refusal, flags, terminal);
        if (!flags.activate) {
          const isNew = found.next === undefined;
          const prepared = isNew ? await prepare(found, paths) : found;
          if (flags.json) return terminal.json({ ...documentOf(prepared), made: isNew });
          if (!isNew) terminal.err("The next certificate was made already");
          show(prepared, terminal);
          terminal.err("When the clients have both pins: zero gateway cert rotate --activate");
          return;
        }
        const { activateNext } = await import("./tls_certificate.ts");
        await activateNext(found.files);
        const now = { ...found, current: found.next, next: undefined };
        const served = now.enabled ? await takenOver(now.current!.fingerprint, paths) : undefined;
        if (flags.json) return terminal.json({ ...documentOf(now), served: served ?? null });
        show(now, terminal);
        terminal.err(SERVED[String(served) as keyof typeof SERVED]);
      },
    }),
  ];
}

const SERVED = {
  true: "The running gateway serves it now",
  false: "The running gateway does not serve it yet: see zero logs",
  undefined: "It is served from the next start of the gateway",
};

async function read({ configPath, env, stateDir }: Paths): Promise<Certificates | Refusal> {
  const { ConfigError, readConfig } = await import("../config/load.ts");
  const { gatewaySettings } = await import("../config/settings.ts");
  const { CertificateError, certificateFiles, describeCertificate, loadCertificate, loadNext } =
    await import("./tls_certificate.ts");
  const reading = await readConfig({ path: configPath, env });
  if (!reading.valid) throw new ConfigError(reading.issues);
  const { tls } = gatewaySettings({ env, config: reading.config });
  const files = certificateFiles(tls, stateDir);
  const describe = (pair: KeyPair | undefined) => pair && describeCertificate(pair.cert);
  try {
    return {
      enabled: tls.enabled.value,
      files,
      current: describe(await loadCertificate(files)),
      next: files.isOwn ? undefined : describe(await loadNext(files)),
    };
  } catch (error) {
    if (!(error instanceof CertificateError)) throw error;
    return { code: "UNUSABLE_CERTIFICATE", message: error.message, fix: error.fix };
  }
}

function refusalOf(found: Certificates, isActivation: boolean): Refusal | undefined {
  const { files, current, next } = found;
  if (files.isOwn) {
    return {
      code: "OWN_CERTIFICATE",
      message: `Cannot rotate ${files.cert}: it is your own, set in gateway.tls.certPath`,
      fix: "Give the clients the pin of the new one beside the current, then replace both files; " +
        "a running gateway notices",
    };
  }
  if (!current) return noCertificate(found);
  if (!isActivation || next) return undefined;
  return {
    code: "NO_NEXT_CERTIFICATE",
    message: "Cannot activate the next certificate: none was made",
    fix: "zero gateway cert rotate",
  };
}

function noCertificate({ enabled, files }: Certificates): Refusal {
  return {
    code: "NO_CERTIFICATE",
    message: `Cannot find a certificate: there is none in ${files.cert}`,
    fix: enabled
      ? "Start the gateway, which makes one: zero gateway"
      : "zero config set gateway.tls.enabled true, then start the gateway",
  };
}

async function prepare(found: Certificates, { env }: Paths): Promise<Certificates> {
  const { readInterfaces } = await import("./bind.ts");
  const { describeCertificate, makeCertificate, namesOf, ownNames, storeNext } = await import(
    "./tls_certificate.ts"
  );
  const own = ownNames(readInterfaces(), { tailnetName: env.ZERO_TAILNET_DNS, allowedHosts: [] });
  // What the current one is good for, the next one is good for, too.
  const pair = await makeCertificate(namesOf(own, found.current!.names), Date.now());
  await storeNext(found.files, pair);
  return { ...found, next: describeCertificate(pair.cert) };
}

/** Whether the running gateway shows the new certificate; undefined when none runs. */
async function takenOver(fingerprint: string, { lockFile }: Paths): Promise<boolean | undefined> {
  const { readLock } = await import("./lock.ts");
  const { shownFingerprint } = await import("../tunnel/dial.ts");
  const url = readLock(lockFile)?.url;
  if (!url?.startsWith("wss:")) return undefined;
  const target = new URL(url);
  if (target.hostname === "0.0.0.0") target.hostname = "127.0.0.1";
  const untilMs = performance.now() + TAKE_OVER_MS;
  while (performance.now() < untilMs) {
    try {
      if (await shownFingerprint(target.href, AbortSignal.timeout(LOOK_MS)) === fingerprint) {
        return true;
      }
    } catch {
      return undefined; // its note outlived it
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
  }
  return false;
}

function documentOf({ enabled, files, current, next }: Certificates) {
  return {
    enabled,
    source: files.isOwn ? "own" : "generated",
    certPath: files.cert,
    keyPath: files.key,
    current: current ?? null,
    next: next ?? null,
    pins: pinsOf({ current, next }),
  };
}

function pinsOf({ current, next }: Pick<Certificates, "current" | "next">): string[] {
  return [current, next].filter((one) => one !== undefined).map(({ fingerprint }) =>
    `sha256:${fingerprint}`
  );
}

function show({ enabled, files, current, next }: Certificates, terminal: Terminal) {
  const { bold, yellow } = terminal.style;
  const rows = (info: CertificateInfo): [string, string][] => [
    ["Pin", `sha256:${info.fingerprint}`],
    ["Names", info.names.join(", ")],
    ["Valid", `${dayOf(info.notBeforeMs)} to ${dayOf(info.notAfterMs)}`],
    ["Signed by", info.isSelfSigned ? "itself: clients need the pin" : "an authority"],
  ];
  if (!enabled) terminal.out(yellow("Not served: gateway.tls.enabled is false"));
  terminal.out(bold("Certificate"));
  terminal.fields([...rows(current!), ["File", files.cert]]);
  if (!next) return;
  terminal.out(`\n${bold("Next certificate")}`);
  terminal.fields(rows(next));
  const [now, later] = pinsOf({ current, next });
  terminal.out(`\nOn every client: ${clientCommand([now, later])}`);
}

function clientCommand(pins: string[]): string {
  return `zero config set gateway.remote.tlsFingerprint '${JSON.stringify(pins)}'`;
}

function dayOf(ms: number): string {
  return new Date(ms).toISOString().slice(0, 10);
}

function refuse(
  { code, message, fix }: Refusal,
  { json }: { json: boolean },
  terminal: Terminal,
): number {
  terminal.err(`${terminal.errStyle.red("error:")} ${message}\nfix:   ${fix}`);
  if (json) terminal.json({ ok: false, error: { code, message, fix } });
  return EXIT_FAILURE;
}
