// Giving memory back. A frame of many megabytes leaves three times its size behind as garbage, which
// V8 collects only when it needs the room, so that an idle gateway would keep it for hours.

import v8 from "node:v8";
import vm from "node:vm";

/** Messages of this size are worth a collection of their own, which takes about 10 ms. */
export const LARGE_MESSAGE_BYTES = 4 * 1_048_576;

/** Strangers can cause a collection; not more often than this. */
const PAUSE_MS = 500;

export class Collector {
  readonly #collect = findCollector();
  #timer?: ReturnType<typeof setTimeout>;

  /** Collects garbage now. */
  now() {
    this.#collect();
  }

  /** Collects once in a while, however often it is asked. */
  soon() {
    if (this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#collect();
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
