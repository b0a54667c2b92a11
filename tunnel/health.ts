// Whether a gateway answers at a port: its own answer counts, not that something takes connections.

export interface Probe {
  /**
   * `answered`: a gateway did, be it with a refusal. `refused`: nobody listens. `closed`: the
   * connection ended without a word. `foreign`: something answered that is no gateway. `timeout`:
   * nothing came.
   */
  verdict: "answered" | "refused" | "closed" | "foreign" | "timeout";
  latencyMs: number;
}

export interface ProbeOptions {
  timeoutMs: number;
  signal?: AbortSignal;
}

const MAX_ANSWER_BYTES = 65_536;
/** A login that was refused is an answer too. */
const REFUSALS = [401, 403, 421, 429];

/** Asks what listens at a port of 127.0.0.1; at most `timeoutMs` altogether. */
export async function probeGateway(port: number, options: ProbeOptions): Promise<Probe> {
  const begin = performance.now();
  const ending = new AbortController();
  const { signal } = ending;
  const abort = () => ending.abort();
  const late = setTimeout(abort, options.timeoutMs);
  options.signal?.addEventListener("abort", abort);
  if (options.signal?.aborted) abort();
  try {
    const verdict = await ask(port, signal);
    const isLate = signal.aborted && verdict !== "answered";
    return {
      verdict: isLate ? "timeout" : verdict,
      latencyMs: Math.round(performance.now() - begin),
    };
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
  const socket = new WebSocket(`ws://${name}:${port}`);
  return new Promise((resolve) => {
    const end = (isGateway: boolean) => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", giveUp);
      socket.onmessage = socket.onerror = socket.onclose = null;
      if (socket.readyState <= WebSocket.OPEN) socket.close();
      resolve(isGateway);
    };
    const giveUp = () => end(false);
    const timer = setTimeout(giveUp, timeoutMs);
    signal?.addEventListener("abort", giveUp);
    socket.onmessage = ({ data }) => end(String(data).includes('"connect.challenge"'));
    socket.onerror = socket.onclose = giveUp;
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
  const greets = await answersAsGateway("127.0.0.1", port, { timeoutMs: MAX_TIMER_MS, signal });
  return greets ? "answered" : "foreign";
}

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
  return await new Promise((resolve) => {
    let answer = "";
    // It is asked whether it lives; who it is, is checked by those who tell it secrets.
    const socket = connect({ host: "127.0.0.1", port, rejectUnauthorized: false });
    const end = () => {
      signal.removeEventListener("abort", end);
      socket.on("error", () => {}); // it is given up
      socket.destroy();
      resolve(answer);
    };
    signal.addEventListener("abort", end);
    socket.once("secureConnect", () => socket.write(requestTo(port)));
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
