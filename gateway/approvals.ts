// Questions to a person: may this command run? (§7.10) Who asked waits for the answer; the question
// is withdrawn when its asker goes away, and lapses when nobody answers in time.

import { RpcError } from "../rpc/error.ts";
import {
  type Infer,
  integer,
  list,
  mapOf,
  nullable,
  object,
  oneOf,
  optional,
  text,
} from "../rpc/shape.ts";
import { joinArgv } from "./node/splitter.ts";

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
  /** What runs to the letter, and where, as far as the asker said so. */
  nodeId: optional(text()),
  argv: optional(list(text())),
  env: optional(mapOf(text())),
  runId: optional(text()),
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
  /** Whose rules hold, and whose list "always" adds to; the asker without an argv is not held to it. */
  agentId?: string | null;
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

  find(id: string): PendingApproval | undefined {
    return this.#waiting.get(id)?.approval;
  }

  /**
   * Asks, and resolves with what was decided; `null` when nobody answered in time or the asker left.
   *
   * @param askerLeft settles when there is nobody any more who wants to know
   * @throws {RpcError} when the id is taken already, too much is being asked, or the text that would
   *   be shown is not that of the argv
   */
  ask(
    id: string,
    { request, binding, timeoutMs, askerLeft }: {
      request: ApprovalRequest;
      binding: Binding;
      timeoutMs: number;
      askerLeft?: Promise<void>;
    },
  ): Promise<ApprovalAnswer> {
    if (this.#waiting.has(id)) throw new RpcError("INVALID_REQUEST", "approval id already pending");
    if (this.#waiting.size >= MAX_PENDING) {
      throw new RpcError("UNAVAILABLE", `${MAX_PENDING} approvals are pending already`);
    }
    if (binding.argv && !isTextOf(binding.command, binding.argv)) {
      throw new RpcError("INVALID_REQUEST", "command does not match argv");
    }
    const createdAtMs = Date.now();
    const approval = { id, request, createdAtMs, expiresAtMs: createdAtMs + timeoutMs };
    const { promise, resolve } = Promise.withResolvers<ApprovalAnswer>();
    const settle = (decision: Decision | null) => {
      const { expiresAtMs } = approval;
      resolve({ id, decision, createdAtMs, expiresAtMs });
    };
    const timer = setTimeout(() => this.#end(id, null), timeoutMs);
    const waiting = { approval, binding, timer, settle };
    this.#waiting.set(id, waiting);
    // By then the id may belong to somebody else's question.
    askerLeft?.then(() => this.#waiting.get(id) === waiting && this.#end(id, null));
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
  const { command, argv, cwd, env = {}, nodeId, sessionKey, agentId = null } = binding;
  if (cwd !== call.cwd || !isSameEnv(env, call.env ?? {})) return false;
  if (call.rawCommand !== undefined && !isTextOf(call.rawCommand, call.argv)) return false;
  if (argv) {
    return nodeId === call.nodeId && sessionKey === call.sessionKey &&
      agentId === (call.agentId ?? null) && isSameList(argv, call.argv);
  }
  return binding.caller === call.caller && isTextOf(command, call.argv) &&
    (call.rawCommand === undefined || call.rawCommand === command) &&
    (nodeId === undefined || nodeId === call.nodeId);
}

/**
 * Whether a text says which arguments a command has: the text a shell is given, or all words in a
 * row, quoted where a space would leave open how many they are.
 */
export function isTextOf(text: string, argv: readonly string[]): boolean {
  const isOwnText =
    SHELLS.some((shell) =>
      argv.length === shell.length + 1 && shell.every((word, at) => word === argv[at])
    ) && text === argv.at(-1);
  return isOwnText || text === joinArgv(argv) || text === argv.map(doublyQuoted).join(" ");
}

/** How a text is handed to a shell (§9.4). */
const SHELLS = [["/bin/sh", "-lc"], ["cmd.exe", "/d", "/s", "/c"]];
/** No white space and no quotes: one word however it is read. */
const PLAIN_WORD = /^[^\s"'\\]+$/;

function doublyQuoted(word: string): string {
  return PLAIN_WORD.test(word) ? word : `"${word.replace(/["\\]/g, "\\$&")}"`;
}

function isSameList(one: readonly string[], other: readonly string[]): boolean {
  return one.length === other.length && one.every((text, at) => text === other[at]);
}

function isSameEnv(
  one: Readonly<Record<string, string>>,
  other: Readonly<Record<string, string>>,
): boolean {
  const names = Object.keys(one);
  return names.length === Object.keys(other).length &&
    names.every((name) => Object.hasOwn(other, name) && one[name] === other[name]);
}
