// Models, and what using them costs (§7.11).

import { boolean, integer, list, object, open, optional, text } from "../../rpc/shape.ts";
import { UsageCost, usageCost } from "../agent/usage.ts";
import { method } from "../gateway.ts";

const DAY_MS = 86_400_000;
const DEFAULT_DAYS = 30;

export const modelMethods = [
  method({
    name: "models.list",
    summary: "The models that agents can use",
    scope: "operator.read",
    params: open({}),
    result: object({
      models: list(object({
        id: text(),
        name: text(),
        provider: text(),
        contextWindow: optional(integer()),
        reasoning: optional(boolean()),
      })),
    }),
    handle: (_, { gateway }) => ({ models: gateway.models.list() }),
  }),
  method({
    name: "usage.cost",
    summary: "What models were used in the last days, and what that cost",
    scope: "operator.read",
    params: object({ days: optional(integer({ min: 1, max: 3_660 })) }),
    result: UsageCost,
    handle({ days = DEFAULT_DAYS }, { gateway }) {
      const now = Date.now();
      return usageCost(gateway.sessions.usage(now - days * DAY_MS), {
        days,
        now,
        price: (model, tokens) => gateway.models.cost(model, tokens),
      });
    },
  }),
];
