// The certificate a running gateway serves: made at the first start where there is none, and replaced
// without dropping anybody when its files change. Connections keep what they began with; whoever comes
// afterwards is shown the new one.

import type { Socket } from "node:net";
import { createSecureContext, type SecureContext } from "node:tls";
import type { Log } from "../config/log.ts";
import type { GatewaySettings } from "../config/settings.ts";
import { HANDSHAKE_TIMEOUT_MS } from "../rpc/frame.ts";
import type { Degradation } from "./degraded.ts";
import type { TlsHealth } from "./health.ts";
import { StartRefusal } from "./preflight.ts";
import {
  CertificateError,
  type CertificateFiles,
  type CertificateInfo,
  chainOf,
  describeCertificate,
  expiryTrouble,
  type KeyPair,
  loadCertificate,
  loadNext,
  makeCertificate,
  storeCertificate,
} from "./tls_certificate.ts";
import { secure } from "./tls_socket.ts";

export interface TlsOptions {
  settings: GatewaySettings["tls"];
  files: CertificateFiles;
  /** What a certificate that is made here is for. */
  names: { dns: string[]; ip: string[] };
  log: Log;
  /** Told of what its owner should know; undefined: nothing. */
  report(trouble: Omit<Degradation, "part"> | undefined): void;
  /** Told when another certificate is served, or announced. */
  changed(): void;
  /** How often the files are looked at. */
  lookMs?: number;
  now?(): number;
}

const LOOK_MS = 1_000;

export class ServedCertificate implements Disposable {
  readonly #options: TlsOptions;
  readonly #now: () => number;
  #context: SecureContext;
  #info: CertificateInfo;
  #next?: CertificateInfo;
  #timer?: ReturnType<typeof setTimeout>;
  #seen: string;
  #isStopped = false;

  private constructor(
    options: TlsOptions,
    pair: KeyPair,
    { chain, next }: { chain: string; next?: KeyPair },
  ) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
    this.#context = contextOf(chain, pair);
    this.#info = describeCertificate(pair.cert);
    this.#next = next && describeCertificate(next.cert);
    this.#seen = signatureOf(options.files);
    this.#judge();
    this.#schedule();
  }

  /**
   * Reads the certificate, or makes one where that is wanted.
   *
   * @throws {StartRefusal} with the texts of §12
   */
  static async open(options: TlsOptions): Promise<ServedCertificate> {
    try {
      const pair = await loadCertificate(options.files) ?? await make(options);
      const chain = await chainOf(pair, options.files);
      return new ServedCertificate(options, pair, { chain, next: await loadNext(options.files) });
    } catch (error) {
      if (!(error instanceof CertificateError)) throw error;
      throw new StartRefusal(error.message, error.fix, { cause: error });
    }
  }

  get health(): TlsHealth {
    const { fingerprint, notAfterMs } = this.#info;
    return {
      fingerprint,
      notAfterMs,
      ...this.#next && { nextFingerprint: this.#next.fingerprint },
    };
  }

  /** Speaks TLS on a socket that was just accepted; see {@link secure}. */
  secure(raw: Socket, secured: (socket: Socket) => void) {
    secure(raw, { context: this.#context, timeoutMs: HANDSHAKE_TIMEOUT_MS, secured });
  }

  [Symbol.dispose]() {
    this.#isStopped = true;
    clearTimeout(this.#timer);
  }

  #schedule() {
    if (this.#isStopped) return;
    this.#timer = setTimeout(
      () => this.#look().finally(() => this.#schedule()),
      this.#options.lookMs ?? LOOK_MS,
    );
  }

  async #look() {
    const { files, log, report, changed } = this.#options;
    const signature = signatureOf(files);
    if (signature === this.#seen) return this.#judge();
    try {
      const [pair, next] = [await loadCertificate(files), await loadNext(files)];
      // Written again while it was read: the next look finds both halves.
      if (this.#isStopped || signatureOf(files) !== signature) return;
      if (!pair) throw new CertificateError("gateway tls: cert/key missing", "zero gateway");
      const chain = await chainOf(pair, files);
      const info = describeCertificate(pair.cert);
      this.#context = contextOf(chain, pair);
      this.#seen = signature;
      this.#next = next && describeCertificate(next.cert);
      if (info.fingerprint !== this.#info.fingerprint) {
        log.info("serving another certificate", {
          fingerprint: info.fingerprint,
          before: this.#info.fingerprint,
        });
        this.#info = info;
      }
      this.#judge();
      changed();
    } catch (error) {
      const { message } = error as Error;
      report({
        message: `The changed certificate is not served, the one before still is: ${message}`,
        fix: error instanceof CertificateError ? error.fix : "zero gateway cert show",
      });
    }
  }

  /** A certificate near its end is told of long before it locks anybody out. */
  #judge() {
    const { files, report } = this.#options;
    report(expiryTrouble(this.#info, files, this.#now()));
  }
}

/** @throws {CertificateError} */
async function make({ settings, files, names, log, now = Date.now }: TlsOptions): Promise<KeyPair> {
  if (files.isOwn || !settings.autoGenerate.value) {
    throw new CertificateError(
      "gateway tls: cert/key missing",
      files.isOwn
        ? `Put the certificate at ${files.cert} and its key at ${files.key}`
        : "zero config set gateway.tls.autoGenerate true",
    );
  }
  try {
    const pair = await makeCertificate(names, now());
    await storeCertificate(files, pair);
    log.info("made a certificate", { cert: files.cert });
    return pair;
  } catch (error) {
    throw new CertificateError(
      `gateway tls: failed to generate cert (${(error as Error).message})`,
      `Make room for ${files.cert}, or set gateway.tls.certPath and gateway.tls.keyPath`,
      { cause: error },
    );
  }
}

function contextOf(cert: string, { key }: KeyPair): SecureContext {
  return createSecureContext({ cert, key, minVersion: "TLSv1.2" });
}

function signatureOf({ cert, key, ca, nextCert, nextKey }: CertificateFiles): string {
  return [cert, key, ca ?? "", nextCert, nextKey].map((file) => {
    try {
      const { mtime, size, ino } = Deno.statSync(file);
      return `${mtime?.getTime()} ${size} ${ino}`;
    } catch {
      return "absent";
    }
  }).join("; ");
}
