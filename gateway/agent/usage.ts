// What models were used, by day and by model, and what that cost (§7.11 `usage.cost`).

import { type Infer, integer, list, nullable, number, object, text } from "../../rpc/shape.ts";
import type { UsageRow } from "../sessions.ts";

const Amount = {
  inputTokens: integer(),
  outputTokens: integer(),
  totalTokens: integer(),
  turns: integer(),
  /** US dollars; null where no price is configured for any of it. */
  costUsd: nullable(number()),
  /** Turns of models without a price, which `costUsd` leaves out. */
  turnsWithoutPrice: integer(),
};

export const UsageCost = object({
  ts: integer(),
  days: integer(),
  totals: object(Amount),
  /** Oldest first; days without use are left out. */
  daily: list(object({ date: text(), ...Amount })),
  /** Most used first. */
  models: list(object({ model: text(), ...Amount })),
});
export type UsageCost = Infer<typeof UsageCost>;

type Tokens = { inputTokens: number; outputTokens: number };
export type UsagePrice = (model: string, tokens: Tokens) => number | undefined;

export function usageCost(
  rows: readonly UsageRow[],
  { days, price, now }: { days: number; price: UsagePrice; now: number },
): UsageCost {
  const byDay = Map.groupBy(rows, ({ day }) => day);
  const byModel = Map.groupBy(rows, ({ model }) => model);
  return {
    ts: now,
    days,
    totals: sum(rows, price),
    daily: [...byDay].sort(([one], [other]) => one < other ? -1 : 1)
      .map(([date, some]) => ({ date, ...sum(some, price) })),
    models: [...byModel].map(([model, some]) => ({ model, ...sum(some, price) }))
      .sort((one, other) => other.totalTokens - one.totalTokens),
  };
}

function sum(rows: readonly UsageRow[], price: UsagePrice): UsageCost["totals"] {
  const total = {
    inputTokens: 0,
    outputTokens: 0,
    totalTokens: 0,
    turns: 0,
    costUsd: null as number | null,
    turnsWithoutPrice: 0,
  };
  for (const { model, inputTokens, outputTokens, turns } of rows) {
    total.inputTokens += inputTokens;
    total.outputTokens += outputTokens;
    total.totalTokens += inputTokens + outputTokens;
    total.turns += turns;
    const cost = price(model, { inputTokens, outputTokens });
    if (cost === undefined) total.turnsWithoutPrice += turns;
    else total.costUsd = (total.costUsd ?? 0) + cost;
  }
  return total;
}
