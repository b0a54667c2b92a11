// Giving memory back. A frame of many megabytes leaves three times its size behind as garbage, which
// V8 collects only when it needs the room, so that an idle gateway would keep it for hours.

import v8 from "node:v8";
import vm from "node:vm";

/** Messages of this size are worth a collection of their own. */
export const LARGE_MESSAGE_BYTES = 4 * 1_048_576;

/**
 * A collection stops everything, for 10 ms or, on a large heap, for much longer. So many may come in a
 * row, and then one every so often: nobody can make the gateway do nothing else.
 */
const BURST = 20;
const REFILL_MS = 2_000;
/** What many ask for at about the same time is done once. */
const PAUSE_MS = 200;

export class Collector {
  readonly #collect = findCollector();
  #timer?: ReturnType<typeof setTimeout>;
  #credit = BURST;
  #countedAtMs = performance.now();

  /** Collects garbage now, unless that was done too often of late. */
  now() {
    const now = performance.now();
    this.#credit = Math.min(BURST, this.#credit + (now - this.#countedAtMs) / REFILL_MS);
    this.#countedAtMs = now;
    if (this.#credit < 1) return;
    this.#credit--;
    this.#collect();
  }

  /** Collects in a moment, once for all who ask until then. */
  soon() {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.now();
    }, PAUSE_MS);
  }

  [Symbol.dispose]() {
    clearTimeout(this.#timer);
  }
}

/** Does nothing on a runtime that does not let itself be asked. */
function findCollector(): () => void {
  try {
    v8.setFlagsFromString("--expose-gc");
    const collect: unknown = vm.runInNewContext("gc");
    return typeof collect === "function" ? () => collect() : () => {};
  } catch {
    // The runtime will collect in its own time.
    return () => {};
  }
}
