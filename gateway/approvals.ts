// Questions to a person: may this command run? (§7.10) Who asked waits for the answer; the question
// is withdrawn when its asker goes away, and lapses when nobody answers in time.

import { type Infer, integer, list, nullable, object, oneOf, text } from "../rpc/shape.ts";

export const DECISIONS = ["allow-once", "allow-always", "deny"] as const;
export type Decision = (typeof DECISIONS)[number];

/** What is asked, as it is shown to whoever decides. */
export const ApprovalRequest = object({
  command: text(),
  cwd: nullable(text()),
  host: nullable(text()),
  security: nullable(text()),
  ask: nullable(text()),
  agentId: nullable(text()),
  resolvedPath: nullable(text()),
  sessionKey: nullable(text()),
});
export type ApprovalRequest = Infer<typeof ApprovalRequest>;

export const PendingApproval = object({
  id: text(),
  request: ApprovalRequest,
  createdAtMs: integer(),
  expiresAtMs: integer(),
});
export type PendingApproval = Infer<typeof PendingApproval>;

export const ApprovalAnswer = object({
  id: text(),
  decision: nullable(oneOf(DECISIONS)),
  createdAtMs: integer(),
  expiresAtMs: integer(),
});
export type ApprovalAnswer = Infer<typeof ApprovalAnswer>;

export const ApprovalList = object({ pending: list(PendingApproval) });

/** Questions open at a time. */
const MAX_PENDING = 500;

interface Waiting {
  approval: PendingApproval;
  timer: ReturnType<typeof setTimeout>;
  settle(decision: Decision | null): void;
}

export interface ApprovalNews {
  requested(approval: PendingApproval): void;
  resolved(id: string, decision: Decision | null, resolvedBy?: string): void;
}

export class Approvals {
  readonly #news: ApprovalNews;
  /** Oldest first. */
  readonly #waiting = new Map<string, Waiting>();

  constructor(news: ApprovalNews) {
    this.#news = news;
  }

  /** Oldest first. */
  list(): PendingApproval[] {
    return [...this.#waiting.values()].map(({ approval }) => approval);
  }

  /**
   * Asks, and resolves with what was decided; `null` when nobody answered in time or the asker left.
   *
   * @param askerLeft settles when there is nobody any more who wants to know
   * @returns undefined when the id is taken already, or too much is being asked
   */
  ask(
    id: string,
    request: ApprovalRequest,
    timeoutMs: number,
    askerLeft?: Promise<void>,
  ): Promise<ApprovalAnswer> | undefined {
    if (this.#waiting.has(id) || this.#waiting.size >= MAX_PENDING) return undefined;
    const createdAtMs = Date.now();
    const approval = { id, request, createdAtMs, expiresAtMs: createdAtMs + timeoutMs };
    const { promise, resolve } = Promise.withResolvers<ApprovalAnswer>();
    const settle = (decision: Decision | null) => {
      const { expiresAtMs } = approval;
      resolve({ id, decision, createdAtMs, expiresAtMs });
    };
    const timer = setTimeout(() => this.#end(id, null), timeoutMs);
    this.#waiting.set(id, { approval, timer, settle });
    askerLeft?.then(() => this.#end(id, null));
    this.#news.requested(approval);
    return promise;
  }

  /** @returns whether there was such a question */
  resolve(id: string, decision: Decision, resolvedBy?: string): boolean {
    return this.#end(id, decision, resolvedBy);
  }

  [Symbol.dispose]() {
    for (const { timer, settle } of this.#waiting.values()) {
      clearTimeout(timer);
      settle(null);
    }
    this.#waiting.clear();
  }

  #end(id: string, decision: Decision | null, resolvedBy?: string): boolean {
    const waiting = this.#waiting.get(id);
    if (!waiting) return false;
    this.#waiting.delete(id);
    clearTimeout(waiting.timer);
    waiting.settle(decision);
    this.#news.resolved(id, decision, resolvedBy);
    return true;
  }
}
