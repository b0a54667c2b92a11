// How a method is written, and what the dispatcher sees of it: name, access, shapes and behaviour
// stand together, so that nobody keeps a second list.

import type { RpcError } from "./error.ts";
import type { Access, Role, Scope } from "./scope.ts";
import type { Shape } from "./shape.ts";

/** Who calls, as far as the right to call goes. */
export interface Requester {
  role: Role;
  scopes: readonly string[];
  /** The negotiated protocol version, 3 or 4. */
  protocol: number;
}

/** What every handler is given; a program adds its own members. */
export interface CallContext {
  caller: Requester;
}

/** How a call ended; a failure may still have something to tell. */
export type Answer =
  | { ok: true; payload: unknown }
  | { ok: false; error: RpcError; payload?: unknown };

/** What a handler returns that answers twice: at once, and when the work it began has ended (§7.3). */
export class TwoAnswers<First = unknown> {
  /** @param final never rejects */
  constructor(readonly first: First, readonly final: Promise<Answer>) {}
}

export interface MethodSpec<Call extends CallContext, Params, Result> {
  name: string;
  /** One line for `rpc.discover` and for people. */
  summary: string;
  scope: Access;
  /** The lesser scope that v4 clients expect (§6.2). */
  scopeOnV4?: Scope;
  params: Shape<Params>;
  result: Shape<Result>;
  /** The whole text for bad params, where the protocol has a literal one. */
  badParams?: string;
  handle(
    params: Params,
    call: Call,
  ): Result | TwoAnswers<Result> | Promise<Result | TwoAnswers<Result>>;
}

// A table holds methods of many params and results; each was checked where it was written.
// deno-lint-ignore no-explicit-any
export type Method<Call extends CallContext> = MethodSpec<Call, any, any>;
