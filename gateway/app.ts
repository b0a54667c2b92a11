// The HTTP side of the port (§13): probes, JSON-RPC calls, and what is not there.

import type { HttpBindings } from "@hono/node-server";
import { type Context, Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { MAX_PAYLOAD_BYTES } from "../rpc/frame.ts";
import { answerJsonRpc } from "../rpc/jsonrpc.ts";
import { ADMIN_SCOPES } from "../rpc/scope.ts";
import { checkSharedSecret } from "./admission.ts";
import type { Call, Gateway } from "./gateway.ts";
import { provenanceOf } from "./network.ts";

type Env = { Bindings: HttpBindings };

const PROBES = {
  live: ["/health", "/healthz"],
  ready: ["/ready", "/readyz"],
  started: ["/startupz"],
};
const UNAUTHORIZED = { error: { message: "Unauthorized", type: "unauthorized" } };
const RATE_LIMITED = {
  error: { message: "Too many failed authentication attempts", type: "rate_limited" },
};

export function createApp(gateway: Gateway): Hono<Env> {
  const app = new Hono<Env>();

  for (const path of PROBES.live) {
    app.get(path, (context) => context.json({ ok: true, status: "live" }));
  }
  for (const path of PROBES.ready) {
    app.get(
      path,
      (context) =>
        gateway.isReady
          ? context.json({ ok: true, status: "ready" })
          : context.json({ ok: false, status: "stopping" }, 503),
    );
  }
  for (const path of PROBES.started) {
    app.get(path, (context) => context.json({ ok: true, status: "started" }));
  }
  for (const path of Object.values(PROBES).flat()) {
    app.all(path, (context) => notAllowed(context, "GET, HEAD"));
  }

  app.post(
    "/rpc",
    async (context, next) => {
      const refusal = await authorize(context, gateway);
      if (refusal) return refusal;
      const type = context.req.header("content-type")?.split(";")[0].trim().toLowerCase();
      if (type !== "application/json") {
        return context.json(
          { error: { message: "Send application/json", type: "unsupported_media_type" } },
          415,
        );
      }
      await next();
    },
    bodyLimit({
      maxSize: MAX_PAYLOAD_BYTES,
      onError: (context) =>
        context.json(
          { error: { message: `Body over ${MAX_PAYLOAD_BYTES} bytes`, type: "too_large" } },
          413,
        ),
    }),
    async (context) => {
      const call = httpCall(gateway);
      const answer = await answerJsonRpc(
        await context.req.text(),
        ({ method, params }) => gateway.dispatcher.dispatch(method, params, call),
      );
      if (answer === undefined) return context.body(null, 204);
      return context.body(answer, 200, { "Content-Type": "application/json" });
    },
  );
  app.all("/rpc", (context) => notAllowed(context, "POST"));

  app.notFound((context) => context.text("Not Found", 404));
  app.onError((error, context) => {
    const id = crypto.randomUUID();
    gateway.log.error("request failed", { id, path: context.req.path, error: String(error) });
    return context.json({ error: { message: `Internal error (id ${id})`, type: "internal" } }, 500);
  });
  return app;
}

/**
 * Bearer authentication with the shared secret, under the same limits as a connect (D2). Without a
 * secret (mode `none`) nobody is let in this way.
 */
async function authorize(
  context: Context<Env>,
  { admission: { auth, limiter }, surroundings, audit, log }: Gateway,
): Promise<Response | undefined> {
  const { incoming } = context.env;
  const from = provenanceOf(incoming.socket.remoteAddress, incoming.headers, surroundings);
  const note = (code: string) => {
    const ip = from.client ?? from.peer;
    audit.refuse({ code, ip, reason: "over HTTP" });
    log.warn("refused a request", { code, ip });
  };
  const isNeverLocked = from.isLocalDirect && !from.hasOrigin;
  const lockedForMs = isNeverLocked ? 0 : limiter.lockedForMs(from.limiterKey);
  if (lockedForMs > 0) {
    note("AUTH_RATE_LIMITED");
    context.header("Retry-After", String(Math.ceil(lockedForMs / 1_000)));
    return context.json(RATE_LIMITED, 429);
  }
  const [, secret = ""] = /^Bearer +(.+)$/i.exec(context.req.header("authorization") ?? "") ?? [];
  const verdict = auth.mode === "none" ? "missing" : checkSharedSecret({ token: secret }, auth);
  if (verdict === "ok") return undefined;
  if (verdict === "mismatch") {
    note("AUTH_TOKEN_MISMATCH");
    if (!isNeverLocked) limiter.fail(from.limiterKey);
    // Too many of its guesses wait already: an early answer would let parallel ones go faster.
    else if (!await limiter.failLate(from.limiterKey)) incoming.socket.destroy();
  }
  return context.json(UNAUTHORIZED, 401);
}

/** The shared secret acts as an operator with every scope, and has no connection. */
function httpCall(gateway: Gateway): Call {
  return {
    gateway,
    caller: {
      role: "operator",
      scopes: ADMIN_SCOPES,
      protocol: 4,
      connId: crypto.randomUUID(),
      client: { id: "gateway-client", version: "http", platform: "http", mode: "backend" },
      isSharedSecret: true,
    },
  };
}

function notAllowed(context: Context<Env>, allow: string): Response {
  return context.json(
    { error: { message: "Method Not Allowed", type: "method_not_allowed" } },
    405,
    { Allow: allow },
  );
}
