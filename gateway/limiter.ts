// Failed logins (D2): who guesses is locked out or slowed down, who knows the secret never notices.
// One limiter serves WebSocket and HTTP. It only counts and says how long; sockets are others' work.

export interface LimiterOptions {
  /** Failures within the window that lock an address. */
  maxAttempts: number;
  windowMs: number;
  lockoutMs: number;
}

/** What is known of one address. */
interface Bucket {
  /** When each counted failure happened, oldest first; at most `maxAttempts` + the doublings. */
  failures: number[];
  lockedUntilMs: number;
  /** When the last of its delayed answers goes out. */
  answeredUntilMs: number;
  waiting: Waiting[];
}

interface Waiting {
  cancel: () => void;
  settle: (isAnswered: boolean) => void;
}

/** Calls `wake` once, when the time has passed; the result is how to prevent that. */
export type After = (ms: number, wake: () => void) => () => void;

/** The first delayed failure waits this long, each further one twice as long. */
const FIRST_DELAY_MS = 250;
const LONGEST_DELAY_MS = 5_000;
/** Delayed answers one address may have outstanding. */
const MAX_WAITING = 32;
/** Addresses remembered at a time; beyond it the longest quiet ones are forgotten. */
const MAX_BUCKETS = 10_000;

export class LoginLimiter {
  readonly #options: LimiterOptions;
  readonly #now: () => number;
  readonly #after: After;
  readonly #buckets = new Map<string, Bucket>();

  constructor(
    options: LimiterOptions,
    now: () => number = Date.now,
    after: After = afterTimeout,
  ) {
    this.#options = options;
    this.#now = now;
    this.#after = after;
  }

  /** Milliseconds until `key` may try again; 0 when it may now. */
  lockedForMs(key: string): number {
    const bucket = this.#buckets.get(key);
    return bucket ? Math.max(0, bucket.lockedUntilMs - this.#now()) : 0;
  }

  /** Counts a wrong secret of an address that can be locked out. */
  fail(key: string) {
    const bucket = this.#count(key);
    if (bucket.failures.length < this.#options.maxAttempts) return;
    bucket.lockedUntilMs = this.#now() + this.#options.lockoutMs;
    bucket.failures.length = 0;
  }

  /**
   * Counts a wrong secret of a client on this machine, which is only slowed down. Its failures are
   * answered one behind another; one that gives up waiting keeps its place in the queue.
   *
   * @returns resolves when the refusal may be answered; `false` when it should be dropped instead
   */
  failLate(key: string): Promise<boolean> {
    const bucket = this.#count(key);
    const excess = bucket.failures.length - this.#options.maxAttempts;
    if (excess <= 0) return Promise.resolve(true);
    const delayMs = Math.min(FIRST_DELAY_MS * 2 ** (excess - 1), LONGEST_DELAY_MS);
    const now = this.#now();
    const latest = now + MAX_WAITING * LONGEST_DELAY_MS;
    bucket.answeredUntilMs = Math.min(Math.max(now, bucket.answeredUntilMs) + delayMs, latest);
    return new Promise((resolve) => {
      const waiting: Waiting = {
        cancel: this.#after(bucket.answeredUntilMs - now, () => waiting.settle(true)),
        settle: (isAnswered) => {
          waiting.cancel();
          const index = bucket.waiting.indexOf(waiting);
          if (index >= 0) bucket.waiting.splice(index, 1);
          resolve(isAnswered);
        },
      };
      bucket.waiting.push(waiting);
      if (bucket.waiting.length > MAX_WAITING) bucket.waiting[0].settle(false);
    });
  }

  [Symbol.dispose]() {
    for (const { waiting } of this.#buckets.values()) {
      for (const one of [...waiting]) one.settle(false);
    }
    this.#buckets.clear();
  }

  #count(key: string): Bucket {
    const now = this.#now();
    const bucket = this.#buckets.get(key) ??
      { failures: [], lockedUntilMs: 0, answeredUntilMs: 0, waiting: [] };
    const since = now - this.#options.windowMs;
    while (bucket.failures.length > 0 && bucket.failures[0] <= since) bucket.failures.shift();
    bucket.failures.push(now);
    // 5 doublings reach the longest delay; more entries would change nothing.
    if (bucket.failures.length > this.#options.maxAttempts + 8) bucket.failures.splice(0, 1);
    this.#buckets.delete(key);
    this.#buckets.set(key, bucket);
    if (this.#buckets.size > MAX_BUCKETS) this.#forgetOldest();
    return bucket;
  }

  #forgetOldest() {
    const now = this.#now();
    for (const [key, bucket] of this.#buckets) {
      if (bucket.lockedUntilMs > now || bucket.waiting.length > 0) continue;
      this.#buckets.delete(key);
      return;
    }
  }
}

function afterTimeout(ms: number, wake: () => void): () => void {
  const timer = setTimeout(wake, ms);
  return () => clearTimeout(timer);
}
