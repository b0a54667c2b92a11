// Giving memory back. A frame of many megabytes leaves three times its size behind as garbage, which
// V8 collects only when it needs the room, so that an idle gateway would keep it for hours.

import v8 from "node:v8";
import vm from "node:vm";

/** Messages of this size are worth a collection of their own. */
export const LARGE_MESSAGE_BYTES = 4 * 1_048_576;

/** A collection stops everything for 10 ms and, on a large heap, for much longer: not more often. */
const INTERVAL_MS = 3_000;
const PAUSE_MS = 300;

export class Collector {
  readonly #collect = findCollector();
  #timer?: ReturnType<typeof setTimeout>;
  #collectedAtMs = -INTERVAL_MS;
  /** More than one was asked for within the interval. */
  #isBurst = false;

  /** Collects garbage now, unless that was done a moment ago. */
  now() {
    if (performance.now() - this.#collectedAtMs >= INTERVAL_MS) this.#run();
  }

  /** Collects once in a while, however often it is asked. */
  soon() {
    if (this.#timer !== undefined) return;
    const sinceMs = performance.now() - this.#collectedAtMs;
    const waitMs = this.#isBurst ? Math.max(PAUSE_MS, INTERVAL_MS - sinceMs) : PAUSE_MS;
    this.#isBurst = sinceMs < INTERVAL_MS;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#run();
    }, waitMs);
  }

  #run() {
    this.#collectedAtMs = performance.now();
    this.#collect();
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
