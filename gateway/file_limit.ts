// How many files and sockets this process may have open. The runtime does not say, a child inherits
// the limit and does.

import { type ProcessRunner, systemRunner } from "../tunnel/process.ts";

const DEADLINE_MS = 2_000;

/** @returns undefined where there is no limit or nobody to ask */
export async function readFileLimit(
  runner: ProcessRunner = systemRunner,
): Promise<number | undefined> {
  const answer = await runner.run("sh", ["-c", "ulimit -n"], { timeoutMs: DEADLINE_MS });
  const limit = Number(answer?.stdout.trim() || NaN);
  return Number.isInteger(limit) ? limit : undefined;
}
