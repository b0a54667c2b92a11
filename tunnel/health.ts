// Whether a gateway answers at a port: its own answer counts, not that something takes connections.

import type { TLSSocket } from "node:tls";
import type { DialledSocket } from "./dial.ts";
import { TunnelError } from "./error.ts";
import { type Pin, readPins } from "./pin.ts";

export interface Probe {
  /**
   * `answered`: a gateway did, be it with a refusal. `refused`: nobody listens. `closed`: the
   * connection ended without a word. `foreign`: something answered that is no gateway. `stranger`: it
   * has not the certificate that is expected, and was told nothing. `timeout`: nothing came.
   */
  verdict: "answered" | "refused" | "closed" | "foreign" | "stranger" | "timeout";
  latencyMs: number;
  /** What is wrong with a `stranger`. */
  trouble?: { message: string; fix: string };
}

export interface ProbeOptions {
  timeoutMs: number;
  signal?: AbortSignal;
}

type Answer = Omit<Probe, "latencyMs">;

const MAX_ANSWER_BYTES = 65_536;
/** A login that was refused is an answer too. */
const REFUSALS = [401, 403, 421, 429];

/**
 * Asks what listens at a port of 127.0.0.1; at most `timeoutMs` altogether.
 *
 * @param options.pins certificates it is expected to have: nothing is said to anybody else
 */
export async function probeGateway(
  port: number,
  { pins = [], ...options }: ProbeOptions & { pins?: readonly Pin[] },
): Promise<Probe> {
  const begin = performance.now();
  const ending = new AbortController();
  const { signal } = ending;
  const abort = () => ending.abort();
  const late = setTimeout(abort, options.timeoutMs);
  options.signal?.addEventListener("abort", abort);
  if (options.signal?.aborted) abort();
  try {
    const answer = pins.length > 0
      ? await askPinned(port, pins, signal)
      : { verdict: await ask(port, signal) };
    const isLate = signal.aborted && answer.verdict !== "answered";
    const latencyMs = Math.round(performance.now() - begin);
    return isLate ? { verdict: "timeout", latencyMs } : { ...answer, latencyMs };
  } finally {
    clearTimeout(late);
    options.signal?.removeEventListener("abort", abort);
  }
}

/** A gateway greets every socket with a challenge. */
export function answersAsGateway(
  host: string,
  port: number,
  { timeoutMs, signal }: ProbeOptions,
): Promise<boolean> {
  const name = host === "0.0.0.0" ? "127.0.0.1" : host.includes(":") ? `[${host}]` : host;
  return greets(new WebSocket(`ws://${name}:${port}`), { timeoutMs, signal });
}

function greets(
  socket: DialledSocket,
  { timeoutMs, signal }: ProbeOptions,
): Promise<boolean> {
  return new Promise((resolve) => {
    let isOver = false;
    const end = (isGateway: boolean) => {
      if (isOver) return;
      isOver = true;
      clearTimeout(timer);
      signal?.removeEventListener("abort", giveUp);
      if (socket.readyState <= WebSocket.OPEN) socket.close();
      resolve(isGateway);
    };
    const giveUp = () => end(false);
    const timer = setTimeout(giveUp, timeoutMs);
    signal?.addEventListener("abort", giveUp);
    socket.addEventListener(
      "message",
      ({ data }) => end(String(data).includes('"connect.challenge"')),
    );
    socket.addEventListener("error", giveUp);
    socket.addEventListener("close", giveUp);
    if (signal?.aborted) giveUp();
  });
}

async function ask(port: number, signal: AbortSignal): Promise<Probe["verdict"]> {
  let answer: string;
  try {
    using connection = await Deno.connect({ hostname: "127.0.0.1", port });
    answer = await exchange(connection, port, signal);
  } catch (error) {
    return error instanceof Deno.errors.ConnectionRefused ? "refused" : "closed";
  }
  if (isOwnAnswer(answer)) return "answered";
  if (signal.aborted) return "timeout";
  // What speaks TLS ends a plain request without a word, with an alert, or calls it a bad request.
  if (answer === "" || answer.startsWith("\x15") || answer.startsWith("HTTP/1.1 400")) {
    if (isOwnAnswer(await askEncrypted(port, signal))) return "answered";
    if (signal.aborted) return "timeout";
    if (answer === "") return "closed";
  }
  // A gateway of this family that has no such page still greets.
  const isGateway = await answersAsGateway("127.0.0.1", port, { timeoutMs: MAX_TIMER_MS, signal });
  return isGateway ? "answered" : "foreign";
}

async function askPinned(
  port: number,
  given: readonly Pin[],
  signal: AbortSignal,
): Promise<Answer> {
  const { dial, DialFailure, openPinned } = await import("./dial.ts");
  const url = `wss://127.0.0.1:${port}`;
  try {
    const pins = readPins(given);
    const socket = await openPinned(new URL(url), pins, signal);
    if (isOwnAnswer(await exchangeEncrypted(socket, port, signal))) return { verdict: "answered" };
    if (signal.aborted) return { verdict: "timeout" };
    // A gateway of this family that has no such page still greets.
    const greeting = await dial(url, { pins, signal });
    const isGateway = await greets(greeting, { timeoutMs: MAX_TIMER_MS, signal });
    return { verdict: isGateway ? "answered" : "foreign" };
  } catch (error) {
    if (error instanceof TunnelError) {
      const { message, fix } = error;
      return { verdict: "stranger", trouble: { message, fix } };
    }
    if (!(error instanceof DialFailure)) throw error;
    const { code = "" } = error.cause as { code?: string };
    if (code === "ECONNREFUSED") return { verdict: "refused" };
    if (!code.startsWith("ERR_SSL")) return { verdict: "closed" };
    return { verdict: "stranger", trouble: NO_TLS };
  }
}

/** What is wrong with who has no certificate although one is expected. */
export const NO_TLS = {
  message: "gateway tls fingerprint unavailable: what answers there does not speak TLS",
  fix: "On the gateway's machine: zero config set gateway.tls.enabled true",
} as const;

const MAX_TIMER_MS = 2_147_483_647;

/** @returns what came until the end, as far as it is needed; "" for nothing */
async function exchange(connection: Deno.Conn, port: number, signal: AbortSignal): Promise<string> {
  let answer = "";
  const close = () => {
    try {
      connection.close();
    } catch {
      // Closed already.
    }
  };
  signal.addEventListener("abort", close);
  if (signal.aborted) close();
  try {
    await connection.write(new TextEncoder().encode(requestTo(port)));
    const buffer = new Uint8Array(4_096);
    while (answer.length < MAX_ANSWER_BYTES && !isOwnAnswer(answer)) {
      const count = await connection.read(buffer);
      if (count === null) break;
      answer += String.fromCharCode(...buffer.subarray(0, count));
    }
  } catch {
    // Reset, or closed by the deadline: what came before counts.
  } finally {
    signal.removeEventListener("abort", close);
    close();
  }
  return answer;
}

async function askEncrypted(port: number, signal: AbortSignal): Promise<string> {
  if (signal.aborted) return "";
  const { connect } = await import("node:tls");
  // It is asked whether it lives; who it is, is checked by those who tell it secrets.
  const socket = connect({ host: "127.0.0.1", port, rejectUnauthorized: false });
  return await exchangeEncrypted(socket, port, signal);
}

/** As `exchange`, as soon as the encryption stands. */
function exchangeEncrypted(socket: TLSSocket, port: number, signal: AbortSignal): Promise<string> {
  return new Promise((resolve) => {
    let answer = "";
    const end = () => {
      signal.removeEventListener("abort", end);
      socket.on("error", () => {}); // it is given up
      socket.destroy();
      resolve(answer);
    };
    signal.addEventListener("abort", end);
    if (signal.aborted) end();
    // What is written earlier goes out when the handshake is done.
    socket.write(requestTo(port));
    socket.on("data", (bytes) => {
      answer += String(bytes);
      if (isOwnAnswer(answer) || answer.length > MAX_ANSWER_BYTES) end();
    });
    socket.once("error", end);
    socket.once("close", end);
  });
}

function requestTo(port: number): string {
  return `GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nConnection: close\r\n\r\n`;
}

/** The whole of a gateway's answer, or the refusal of one. */
function isOwnAnswer(text: string): boolean {
  const [, status] = /^HTTP\/1\.[01] (\d{3})/.exec(text) ?? [];
  if (status === undefined) return false;
  return REFUSALS.includes(Number(status)) ||
    (status === "200" && /\{"ok":(?:true|false)/.test(text));
}
