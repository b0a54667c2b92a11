// Calls about calls: every method through one name, and the table describing itself (D11, D23).

import { accessOf } from "../../rpc/dispatch.ts";
import { RpcError } from "../../rpc/error.ts";
import { TwoAnswers } from "../../rpc/method.ts";
import { anything, list, nonEmpty, object, open, schemaOf, text } from "../../rpc/shape.ts";
import { method } from "../gateway.ts";

export const gatewayMethods = [
  method({
    name: "gateway.call",
    summary: "Call another method, with the scope that one asks for",
    scope: "any",
    params: object({ method: nonEmpty(), params: anything() }),
    result: anything(),
    async handle({ method: name, params }, call) {
      if (name === "gateway.call") {
        throw new RpcError("INVALID_REQUEST", "gateway.call cannot call itself");
      }
      const outcome = await call.gateway.dispatcher.dispatch(name, params, call);
      if (!outcome.ok) throw outcome.error;
      return outcome.final ? new TwoAnswers(outcome.payload, outcome.final) : outcome.payload;
    },
  }),
  method({
    name: "rpc.discover",
    summary: "Every method with its scope and the JSON schemas of its params and result",
    scope: "any",
    params: object({}),
    result: object({
      version: text(),
      methods: list(open({ name: text(), summary: text(), scope: text() })),
    }),
    handle(_, { gateway: { dispatcher, version }, caller }) {
      const methods = dispatcher.methods.map((one) => ({
        name: one.name,
        summary: one.summary,
        scope: accessOf(one, caller.protocol),
        params: schemaOf(one.params),
        result: schemaOf(one.result),
      }));
      return { version, methods: methods.sort((a, b) => a.name < b.name ? -1 : 1) };
    },
  }),
];
