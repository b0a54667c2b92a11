// What works less well than configured while the gateway runs: told in the log when it begins and
// when it ends, and shown in health until then. Nothing here stops the gateway.

import type { Log } from "../config/log.ts";
import { type Infer, object, text } from "../rpc/shape.ts";

export const Degradation = object({
  /** Which part it is: `tailscale`, `bind`, `discovery`. */
  part: text(),
  message: text(),
  fix: text(),
});
export type Degradation = Infer<typeof Degradation>;

export class Degradations {
  readonly #parts = new Map<string, Degradation>();
  readonly #log: Log;
  readonly #changed: () => void;

  /** @param changed told after every change of the list */
  constructor(log: Log, changed: () => void) {
    this.#log = log;
    this.#changed = changed;
  }

  get list(): Degradation[] {
    return [...this.#parts.values()];
  }

  /** @param trouble what is wrong with the part; undefined: it is as configured */
  report(part: string, trouble: { message: string; fix: string } | undefined) {
    const known = this.#parts.get(part);
    if (known?.message === trouble?.message) return;
    if (trouble) {
      const { message, fix } = trouble;
      this.#parts.set(part, { part, message, fix });
      this.#log.warn("degraded", { part, reason: message, fix });
    } else {
      this.#parts.delete(part);
      this.#log.info("no longer degraded", { part });
    }
    this.#changed();
  }
}
