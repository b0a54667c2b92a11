// What a run found, as one table. A ratio is taken within a round, where both servers had the same
// machine, and the median of all rounds is shown; so it is not quite the quotient of the columns.

/** What is asked of a figure: of its ratio to the bare server, or of itself. */
export type Target = { ratioAtLeast: number } | { ratioAtMost: number } | { atMost: number };

/** One line of the table, with what each round found. */
export interface Finding {
  metric: string;
  unit: string;
  bare?: number[];
  ours: number[];
  /** Of rates and of what is measured against "at least", more is better. */
  isRate?: boolean;
  target?: Target;
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((one, other) => one - other);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

export function quantile(sorted: ArrayLike<number>, share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
}

/** Whether a finding meets its target; undefined when it has none. */
export function isMet(finding: Finding): boolean | undefined {
  const { target } = finding;
  if (!target) return undefined;
  if ("atMost" in target) return median(finding.ours) <= target.atMost;
  const ratio = ratioOf(finding)!;
  return "ratioAtLeast" in target ? ratio >= target.ratioAtLeast : ratio <= target.ratioAtMost;
}

/**
 * Against a target "at least" the share of the bare server's performance that is left, against "at
 * most" the multiple of what the bare server takes.
 */
export function ratioOf({ bare, ours, isRate, target }: Finding): number | undefined {
  if (!bare) return undefined;
  const isShare = target && "ratioAtLeast" in target;
  const isInverse = isShare && !isRate;
  return median(ours.map((one, round) => isInverse ? bare[round] / one : one / bare[round]));
}

const HEADINGS = ["metric", "bare", "ours", "ratio", "target", "verdict"];

/** A Markdown table whose columns also align as plain text. */
export function formatTable(findings: readonly Finding[]): string {
  const rows = [HEADINGS, ...findings.map(rowOf)];
  const widths = HEADINGS.map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  const line = (cells: string[]) => {
    const padded = cells.map((cell, column) =>
      column === 0 || column === 5 ? cell.padEnd(widths[column]) : cell.padStart(widths[column])
    );
    return `| ${padded.join(" | ")} |`;
  };
  const rule = widths.map((width, column) => {
    const dashes = "-".repeat(width - 1);
    return column === 0 || column === 5 ? `-${dashes}` : `${dashes}:`;
  });
  return [line(rows[0]), line(rule), ...rows.slice(1).map(line)].join("\n");
}

function rowOf(finding: Finding): string[] {
  const { metric, unit, bare, ours, target } = finding;
  const verdict = isMet(finding);
  return [
    metric,
    bare ? `${number(median(bare))} ${unit}` : "",
    `${number(median(ours))} ${unit}`,
    ratioOf(finding)?.toFixed(2) ?? "",
    target ? describe(target, unit) : "",
    verdict === undefined ? "" : verdict ? "met" : "missed",
  ];
}

function describe(target: Target, unit: string): string {
  if ("atMost" in target) return `≤ ${target.atMost} ${unit}`;
  return "ratioAtLeast" in target ? `≥ ${target.ratioAtLeast}` : `≤ ${target.ratioAtMost}`;
}

function number(value: number): string {
  if (value >= 1_000) return Math.round(value).toLocaleString("en").replaceAll(",", " ");
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
