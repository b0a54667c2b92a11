// Who has the port that a gateway wants (D20): another gateway, or some other program.

import { type ProcessRunner, systemRunner } from "../tunnel/process.ts";

export interface PortHolder {
  /** It answers like a gateway of this family. */
  isGateway: boolean;
  /** Absent when the system does not say. */
  pid?: number;
  program?: string;
}

const PROBE_MS = 800;

export async function findPortHolder(
  host: string,
  port: number,
  runner: ProcessRunner = systemRunner,
): Promise<PortHolder> {
  const [isGateway, listening, open] = await Promise.all([
    answersAsGateway(host, port),
    runner.run("ss", ["-ltnpH", `sport = :${port}`], { timeoutMs: PROBE_MS }),
    runner.run("lsof", ["-nP", `-iTCP:${port}`, "-sTCP:LISTEN", "-Fpc"], { timeoutMs: PROBE_MS }),
  ]);
  const fromSs = /users:\(\("([^"]+)",pid=(\d+)/.exec(listening?.stdout ?? "");
  const pid = fromSs?.[2] ?? /^p(\d+)/m.exec(open?.stdout ?? "")?.[1];
  const program = fromSs?.[1] ?? /^c(.+)/m.exec(open?.stdout ?? "")?.[1];
  return { isGateway, ...(pid && { pid: Number(pid) }), ...(program && { program }) };
}

/** A gateway greets every socket with a challenge. */
function answersAsGateway(host: string, port: number): Promise<boolean> {
  const name = host === "0.0.0.0" ? "127.0.0.1" : host.includes(":") ? `[${host}]` : host;
  const socket = new WebSocket(`ws://${name}:${port}`);
  return new Promise((resolve) => {
    const timer = setTimeout(() => end(false), PROBE_MS);
    const end = (isGateway: boolean) => {
      clearTimeout(timer);
      socket.onmessage = socket.onerror = socket.onclose = null;
      if (socket.readyState <= WebSocket.OPEN) socket.close();
      resolve(isGateway);
    };
    socket.onmessage = ({ data }) => end(String(data).includes('"connect.challenge"'));
    socket.onerror = socket.onclose = () => end(false);
  });
}
