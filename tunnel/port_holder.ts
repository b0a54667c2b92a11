// Who has the port that a gateway or a tunnel wants (D20): a gateway, or some other program.

import { answersAsGateway } from "./health.ts";
import type { Pin } from "./pin.ts";
import { type ProcessRunner, systemRunner } from "./process.ts";

export interface PortHolder {
  /** It answers like a gateway of this family. */
  isGateway: boolean;
  /** Absent when the system does not say. */
  pid?: number;
  program?: string;
}

const PROBE_MS = 800;

/** @param pins where it may speak TLS: certificates a gateway of this installation has */
export async function findPortHolder(
  host: string,
  port: number,
  { runner = systemRunner, pins = [] }: { runner?: ProcessRunner; pins?: readonly Pin[] } = {},
): Promise<PortHolder> {
  const [isPlain, isEncrypted, listening, open] = await Promise.all([
    answersAsGateway(host, port, { timeoutMs: PROBE_MS }),
    pins.length > 0 && answersEncrypted(host, port, pins),
    runner.run("ss", ["-ltnpH", `sport = :${port}`], { timeoutMs: PROBE_MS }),
    runner.run("lsof", ["-nP", `-iTCP:${port}`, "-sTCP:LISTEN", "-Fpc"], { timeoutMs: PROBE_MS }),
  ]);
  const fromSs = /users:\(\("([^"]+)",pid=(\d+)/.exec(listening?.stdout ?? "");
  const pid = fromSs?.[2] ?? /^p(\d+)/m.exec(open?.stdout ?? "")?.[1];
  const program = fromSs?.[1] ?? /^c(.+)/m.exec(open?.stdout ?? "")?.[1];
  const isGateway = isPlain || isEncrypted;
  return { isGateway, ...(pid && { pid: Number(pid) }), ...(program && { program }) };
}

/**
 * Whether a port of 127.0.0.1 is listened at by another user of this machine; false where the system
 * does not say.
 */
export async function isOthersPort(
  port: number,
  { runner = systemRunner, uid = Deno.uid() }: { runner?: ProcessRunner; uid?: number | null } = {},
): Promise<boolean> {
  const listening = await runner.run("ss", ["-ltneH", `src 127.0.0.1:${port}`], {
    timeoutMs: PROBE_MS,
  });
  // The superuser is not named, and could do anything anyway.
  const [, user] = /\buid:(\d+)/.exec(listening?.stdout ?? "") ?? [];
  return user !== undefined && uid !== null && Number(user) !== uid;
}

/** Whoever has the key of such a certificate is a gateway. */
async function answersEncrypted(
  host: string,
  port: number,
  pins: readonly Pin[],
): Promise<boolean> {
  const { shownFingerprint } = await import("./dial.ts");
  const { fingerprintIn } = await import("../config/schema.ts");
  const name = host === "0.0.0.0" ? "127.0.0.1" : host.includes(":") ? `[${host}]` : host;
  try {
    const shown = await shownFingerprint(`wss://${name}:${port}`, AbortSignal.timeout(PROBE_MS));
    return pins.some((pin) => fingerprintIn(pin) === shown);
  } catch {
    return false; // nobody there, or nobody who speaks TLS
  }
}
