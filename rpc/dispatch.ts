// One request, one outcome: look up, check role and scope, check params, invoke, map the error. The
// only place where an exception becomes a wire error.

import { JSON_RPC, RpcError } from "./error.ts";
import {
  type Answer,
  type CallContext,
  type Method,
  type Requester,
  TwoAnswers,
} from "./method.ts";
import { hasScope, type Scope } from "./scope.ts";
import { explain, pointer, type Problem, problems } from "./shape.ts";

/**
 * `refused` marks calls that were not let through to a method at all (D16); `final` is the second
 * answer of a method that gives two, and never rejects.
 */
export type Outcome =
  | { ok: true; payload: unknown; final?: Promise<Outcome> }
  | { ok: false; error: RpcError; payload?: unknown; refused: boolean };

/** The last answer of a call, for those who take only one. */
export async function lastOutcome(outcome: Outcome | Promise<Outcome>): Promise<Outcome> {
  const first = await outcome;
  return first.ok && first.final ? await first.final : first;
}

export interface DispatchOptions {
  /** Called with every fault; returns the id under which it was logged. */
  onFault(error: unknown, method: string): string;
  /** Also check results against their shapes: in tests and during development. */
  checkResults?: boolean;
}

/** How many things wrong with one request its caller is told. */
export const MAX_PROBLEMS = 20;

/** Methods outside `node.*` also answer under this prefix (D11). */
const ALIAS_PREFIX = "gateway.";

export class Dispatcher<Call extends CallContext> {
  readonly methods: readonly Method<Call>[];
  readonly #byName = new Map<string, Method<Call>>();
  readonly #options: DispatchOptions;

  constructor(methods: readonly Method<Call>[], options: DispatchOptions) {
    this.methods = methods;
    this.#options = options;
    for (const method of methods) {
      if (this.#byName.has(method.name)) throw new Error(`method ${method.name} is declared twice`);
      this.#byName.set(method.name, method);
    }
    for (const method of methods) {
      const alias = ALIAS_PREFIX + method.name;
      const hasAlias = !method.name.startsWith("node.") && !method.name.startsWith(ALIAS_PREFIX);
      if (hasAlias && !this.#byName.has(alias)) this.#byName.set(alias, method);
    }
  }

  /** Every callable name, aliases included. */
  get names(): string[] {
    return [...this.#byName.keys()];
  }

  /** Never throws and never rejects; synchronous where the method is. */
  dispatch(name: string, params: unknown, call: Call): Outcome | Promise<Outcome> {
    try {
      const method = this.#admit(name, call.caller);
      const given = params === undefined ? {} : params;
      if (!method.params.is(given)) this.#checkParams(method, name, given, call.caller);
      const result = method.handle(given, call);
      return result instanceof Promise
        ? result.then((payload) => this.#succeed(method, payload))
          .catch((error) => this.#fail(error, name))
        : this.#succeed(method, result);
    } catch (error) {
      return this.#fail(error, name);
    }
  }

  /** The order of §6.3. */
  #admit(name: string, { role, scopes, protocol }: Requester): Method<Call> {
    if (name === "connect") {
      throw new Refused("INVALID_REQUEST", "connect is only valid as the first request", {
        number: JSON_RPC.INVALID_REQUEST,
      });
    }
    const method = this.#byName.get(name);
    const isForNodes = method?.scope === "node";
    if (isForNodes !== (role === "node")) {
      if (!method) throw unknownMethod(name);
      throw new Refused("INVALID_REQUEST", `unauthorized role: ${role}`);
    }
    if (role === "operator") {
      const access = method ? accessOf(method, protocol) : "operator.admin";
      if (access !== "any" && access !== "node" && !hasScope(scopes, access)) {
        throw missingScope(access);
      }
    }
    if (!method) throw unknownMethod(name);
    return method;
  }

  #checkParams(method: Method<Call>, name: string, params: unknown, { protocol }: Requester) {
    const found = problems(params, method.params, {
      ignoreUnknown: protocol >= 4,
      max: MAX_PROBLEMS,
    });
    if (found.length > 0) throw invalidParams(name, found, method.badParams);
  }

  #succeed(method: Method<Call>, result: unknown): Outcome {
    if (!(result instanceof TwoAnswers)) return this.#check(method, result);
    const first = this.#check(method, result.first);
    if (!first.ok) return first;
    return { ...first, final: result.final.then((answer) => this.#finish(method, answer)) };
  }

  #finish(method: Method<Call>, answer: Answer): Outcome {
    return answer.ok ? this.#check(method, answer.payload) : { ...answer, refused: false };
  }

  #check(method: Method<Call>, payload: unknown): Outcome {
    if (this.#options.checkResults) {
      // What the other end reads is the JSON, in which undefined members are absent.
      const found = problems(JSON.parse(JSON.stringify(payload ?? null)), method.result);
      if (found.length > 0) {
        return this.#fail(
          new Error(`bad result of ${method.name}: ${explain(found)}`),
          method.name,
        );
      }
    }
    return { ok: true, payload };
  }

  #fail(error: unknown, method: string): Outcome {
    if (error instanceof RpcError) return { ok: false, error, refused: error instanceof Refused };
    const id = this.#options.onFault(error, method);
    return {
      ok: false,
      error: new RpcError("UNAVAILABLE", `internal error in ${method} (id ${id})`, {
        cause: error,
        number: JSON_RPC.INTERNAL_ERROR,
      }),
      refused: false,
    };
  }
}

/** The scope a method asks of an operator on this protocol version. */
export function accessOf(
  { scope, scopeOnV4 }: Pick<Method<CallContext>, "scope" | "scopeOnV4">,
  protocol: number,
) {
  return protocol >= 4 ? scopeOnV4 ?? scope : scope;
}

/** "invalid <name> params: <list>" (§2.1), or the literal text a method has for it. */
export function invalidParams(name: string, found: Problem[], literal?: string): RpcError {
  return new RpcError("INVALID_REQUEST", literal ?? `invalid ${name} params: ${explain(found)}`, {
    number: JSON_RPC.INVALID_PARAMS,
    data: { issues: found.map(({ path, message }) => ({ path: pointer(path), message })) },
  });
}

/** A call that was not let through. */
class Refused extends RpcError {}

function unknownMethod(name: string): RpcError {
  return new Refused("INVALID_REQUEST", `unknown method: ${name}`, {
    number: JSON_RPC.METHOD_NOT_FOUND,
  });
}

/** As the protocol words it (§6.3). */
export function missingScope(scope: Scope): RpcError {
  return new Refused("FORBIDDEN", `missing scope: ${scope}`, {
    details: { code: "MISSING_SCOPE", missingScope: scope, requiredScopes: [scope] },
  });
}
