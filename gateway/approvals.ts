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

/** What exactly was asked for; an approval is good for nothing else (D18). */
export interface Binding {
  /** Device of the asker, or that it came with the shared secret. */
  caller: string;
  command: string;
  cwd: string | null;
  nodeId?: string;
  argv?: readonly string[];
  env?: Readonly<Record<string, string>>;
  sessionKey: string | null;
}

/** An invocation that may have been approved. */
export interface BoundCall extends Omit<Binding, "command"> {
  nodeId: string;
  argv: readonly string[];
  /** The shell text, where the command came as one. */
  rawCommand?: string;
}

interface Grant {
  binding: Binding;
  decision: "allow-once" | "allow-always";
  expiresAtMs: number;
}

/** An approval must be made use of within this time. */
const GRANT_TTL_MS = 120_000;
const MAX_GRANTS = 500;

interface Waiting {
  approval: PendingApproval;
  binding: Binding;
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
  #grants: Grant[] = [];

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
    { request, binding, timeoutMs, askerLeft }: {
      request: ApprovalRequest;
      binding: Binding;
      timeoutMs: number;
      askerLeft?: Promise<void>;
    },
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
    this.#waiting.set(id, { approval, binding, timer, settle });
    askerLeft?.then(() => this.#end(id, null));
    this.#news.requested(approval);
    return promise;
  }

  /** @returns whether there was such a question */
  resolve(id: string, decision: Decision, resolvedBy?: string): boolean {
    const binding = this.#waiting.get(id)?.binding;
    if (binding && decision !== "deny") {
      const expiresAtMs = Date.now() + GRANT_TTL_MS;
      this.#grants = [...this.#grants.slice(1 - MAX_GRANTS), { binding, decision, expiresAtMs }];
    }
    return this.#end(id, decision, resolvedBy);
  }

  /** The approval that fits this call to the letter; one that holds for once is used up by it. */
  take(call: BoundCall): Grant["decision"] | undefined {
    const now = Date.now();
    this.#grants = this.#grants.filter(({ expiresAtMs }) => expiresAtMs > now);
    const found = this.#grants.find(({ binding }) => fits(binding, call));
    if (found?.decision === "allow-once") {
      this.#grants = this.#grants.filter((grant) => grant !== found);
    }
    return found?.decision;
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

/** Any changed byte voids it. Who asked without an argv is held to the text that was shown. */
function fits(binding: Binding, call: BoundCall): boolean {
  if ((binding.cwd ?? null) !== (call.cwd ?? null)) return false;
  if (binding.argv === undefined) {
    const text = call.rawCommand ?? call.argv.join(" ");
    const isPlain = Object.keys(call.env ?? {}).length === 0;
    return isPlain && binding.caller === call.caller && binding.command === text &&
      (binding.nodeId === undefined || binding.nodeId === call.nodeId);
  }
  return binding.nodeId === call.nodeId && binding.sessionKey === call.sessionKey &&
    canonical(binding.argv) === canonical(call.argv) &&
    canonical(Object.entries(binding.env ?? {}).sort()) ===
      canonical(Object.entries(call.env ?? {}).sort());
}

function canonical(value: unknown): string {
  return JSON.stringify(value);
}
