// Secrets and users that come over HTTP, under the same limits as a connect (D2).

import type { HttpBindings } from "@hono/node-server";
import type { Context } from "hono";
import { type Access, hasScope } from "../rpc/scope.ts";
import { checkProxyUser, checkSharedSecret, isForProxy } from "./admission.ts";
import type { Gateway } from "./gateway.ts";
import { type Provenance, provenanceOf } from "./network.ts";
import { PROXY_FAILURES } from "./proxy_user.ts";

export type HttpEnv = {
  Bindings: HttpBindings;
  /** Whom the proxy vouched for; absent for who proved the shared secret. */
  Variables: { user?: string };
};

/** Why a request is not let in; what it is told of that is up to the route. */
export interface Turned {
  status: 401 | 429;
  retryAfterSeconds?: number;
}

const UNAUTHORIZED = { error: { message: "Unauthorized", type: "unauthorized" } };
const RATE_LIMITED = {
  error: { message: "Too many failed authentication attempts", type: "rate_limited" },
};

/**
 * Bearer authentication with the shared secret, or what a trusted proxy says of its user. Without a
 * secret (mode `none`) nobody is let in this way.
 *
 * @param needs what a user of the proxy must be allowed; `any` where the route asks by itself
 * @returns the refusal; undefined for who may come in
 */
export async function authorize(
  context: Context<HttpEnv>,
  gateway: Gateway,
  needs: Exclude<Access, "node"> = "operator.admin",
): Promise<Response | undefined> {
  const { auth } = gateway.admission;
  if (isForProxy(provenanceIn(context, gateway), auth)) {
    return await authorizeUser(context, gateway, needs);
  }
  const turned = await checkSecret(context, gateway, () => {
    if (auth.mode === "none") return "missing";
    return checkSharedSecret({ token: bearerOf(context) }, auth);
  });
  if (!turned) return undefined;
  return turned.status === 401
    ? context.json(UNAUTHORIZED, 401)
    : rateLimited(context, turned.retryAfterSeconds);
}

function rateLimited(context: Context<HttpEnv>, retryAfterSeconds?: number): Response {
  context.header("Retry-After", String(retryAfterSeconds));
  return context.json(RATE_LIMITED, 429);
}

/** @returns the refusal; undefined for a user who may come in, and then stands in the context */
async function authorizeUser(
  context: Context<HttpEnv>,
  gateway: Gateway,
  needs: Exclude<Access, "node">,
): Promise<Response | undefined> {
  const { incoming } = context.env;
  const locked = lockedOut(context, gateway);
  if (locked) return rateLimited(context, locked.retryAfterSeconds);
  const verdict = await checkProxyUser(
    { provenance: provenanceIn(context, gateway), rawHeaders: incoming.rawHeaders },
    gateway.admission,
  );
  if (!verdict.ok) {
    const { code, message, fix } = PROXY_FAILURES[verdict.failure];
    noteRefusal(context, gateway, code, verdict.user);
    if (!verdict.isAnswered) incoming.socket.destroy();
    return context.json(
      { error: { message, type: "unauthorized", code, layer: "proxy", fix } },
      401,
    );
  }
  const { user } = verdict;
  if (needs !== "any" && !hasScope(gateway.admission.auth.proxy?.scopes ?? [], needs)) {
    const code = "AUTH_PROXY_USER_SCOPE";
    noteRefusal(context, gateway, code, user);
    const message = `Forbidden: missing scope: ${needs}`;
    const fix = "On the gateway's host, add it to gateway.auth.trustedProxy.scopes";
    return context.json({ error: { message, type: "forbidden", code, layer: "scope", fix } }, 403);
  }
  context.set("user", user);
  return undefined;
}

/**
 * Judges a secret unless its sender is locked out, and counts a wrong one.
 *
 * @param judge not asked for a sender that is locked out
 */
export async function checkSecret(
  context: Context<HttpEnv>,
  gateway: Gateway,
  judge: () => "ok" | "missing" | "mismatch" | "missing_config",
): Promise<Turned | undefined> {
  const { admission: { limiter } } = gateway;
  const from = provenanceIn(context, gateway);
  const isNeverLocked = from.isLocalDirect && !from.hasOrigin;
  const locked = lockedOut(context, gateway);
  if (locked) return locked;
  const verdict = judge();
  if (verdict === "ok") return undefined;
  if (verdict === "mismatch") {
    noteRefusal(context, gateway, "AUTH_TOKEN_MISMATCH");
    if (!isNeverLocked) limiter.fail(from.limiterKey);
    // Too many of its guesses wait already: an early answer would let parallel ones go faster.
    else if (!await limiter.failLate(from.limiterKey)) context.env.incoming.socket.destroy();
  }
  return { status: 401 };
}

function lockedOut(context: Context<HttpEnv>, gateway: Gateway): Turned | undefined {
  const from = provenanceIn(context, gateway);
  const isNeverLocked = from.isLocalDirect && !from.hasOrigin;
  const lockedForMs = isNeverLocked ? 0 : gateway.admission.limiter.lockedForMs(from.limiterKey);
  if (lockedForMs === 0) return undefined;
  noteRefusal(context, gateway, "AUTH_RATE_LIMITED");
  return { status: 429, retryAfterSeconds: Math.ceil(lockedForMs / 1_000) };
}

/** Who asked, as a run and the audit trail name them. */
export function callerNameOf(context: Context<HttpEnv>): string {
  const user = context.get("user");
  return `${user === undefined ? "shared secret" : `user ${user}`} (HTTP)`;
}

/** The secret of an `Authorization: Bearer` header, "" without one. */
export function bearerOf(context: Context<HttpEnv>): string {
  const header = context.req.header("authorization") ?? "";
  const [, secret = ""] = /^Bearer +(.+)$/i.exec(header) ?? [];
  return secret;
}

/** Puts a refusal on the audit trail and into the log. */
export function noteRefusal(
  context: Context<HttpEnv>,
  gateway: Gateway,
  code: string,
  user?: string,
) {
  const from = provenanceIn(context, gateway);
  const ip = from.client ?? from.peer;
  gateway.audit.refuse({ code, ip, user, reason: "over HTTP" });
  gateway.log.warn("refused a request", { code, ip });
}

export function notAllowed(context: Context<HttpEnv>, allow: string): Response {
  return context.json(
    { error: { message: "Method Not Allowed", type: "method_not_allowed" } },
    405,
    { Allow: allow },
  );
}

function provenanceIn({ env: { incoming } }: Context<HttpEnv>, gateway: Gateway): Provenance {
  return provenanceOf(incoming.socket.remoteAddress, incoming.headers, gateway.surroundings);
}
