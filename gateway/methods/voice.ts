// Wake words and talk mode (§7.2).

import { RpcError } from "../../rpc/error.ts";
import { isWebchat } from "../../rpc/connect.ts";
import { boolean, integer, list, nullable, object, optional, text } from "../../rpc/shape.ts";
import { method } from "../gateway.ts";

const Triggers = object({ triggers: list(text()) });

export const voiceMethods = [
  method({
    name: "voicewake.get",
    summary: "The words that wake a listening device",
    scope: "operator.read",
    params: object({}),
    result: Triggers,
    handle: (_, { gateway }) => ({ triggers: [...gateway.voicewake.triggers] }),
  }),
  method({
    name: "voicewake.set",
    summary: "Set the words that wake a listening device; none means the default ones",
    scope: "operator.write",
    params: Triggers,
    badParams: "voicewake.set requires triggers: string[]",
    result: Triggers,
    async handle({ triggers }, { gateway }) {
      const cleaned = { triggers: [...await gateway.voicewake.set(triggers)] };
      gateway.events.publish("voicewake.changed", cleaned);
      return cleaned;
    },
  }),
  method({
    name: "talk.mode",
    summary: "Tell everybody whether talk mode is on, and in which phase",
    scope: "operator.write",
    params: object({ enabled: boolean(), phase: optional(text()) }),
    result: object({ enabled: boolean(), phase: nullable(text()), ts: integer() }),
    handle({ enabled, phase }, { gateway, caller }) {
      if (isWebchat(caller.client) && !hasPhone(gateway.connections)) {
        throw new RpcError("UNAVAILABLE", "talk disabled: no connected iOS/Android nodes");
      }
      const mode = { enabled, phase: phase ?? null, ts: Date.now() };
      gateway.events.publish("talk.mode", mode);
      return mode;
    },
  }),
];

function hasPhone(
  connections: Iterable<{ role: string; client?: { platform: string } }>,
): boolean {
  for (const { role, client } of connections) {
    if (role === "node" && /^(ios|android)/i.test(client?.platform.trim() ?? "")) return true;
  }
  return false;
}
