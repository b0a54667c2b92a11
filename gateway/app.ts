// The HTTP side of the port (§13): which routes there are, in which order, and what is not there.

import { Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { MAX_PAYLOAD_BYTES } from "../rpc/frame.ts";
import { answerJsonRpc } from "../rpc/jsonrpc.ts";
import { ADMIN_SCOPES } from "../rpc/scope.ts";
import type { Call, Gateway } from "./gateway.ts";
import { serveHooks } from "./hooks.ts";
import { serveChatCompletions } from "./http_agent.ts";
import { serveTools } from "./http_agent_tools.ts";
import { authorize, type HttpEnv, notAllowed } from "./http_auth.ts";

const PROBES = {
  live: ["/health", "/healthz"],
  ready: ["/ready", "/readyz"],
  started: ["/startupz"],
};

export function createApp(gateway: Gateway): Hono<HttpEnv> {
  const app = new Hono<HttpEnv>();

  serveHooks(app, gateway);
  serveTools(app, gateway);
  const { chatCompletions } = gateway.config.reading.config.gateway?.http?.endpoints ?? {};
  if (chatCompletions?.enabled) serveChatCompletions(app, gateway);
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
      const refusal = await authorize(context, gateway, "any");
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
      const call = httpCall(gateway, context.get("user"));
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
 * The shared secret acts as an operator with every scope, a user of the proxy with those of its
 * rules; neither has a connection.
 */
function httpCall(gateway: Gateway, user: string | undefined): Call {
  const { proxy } = gateway.admission.auth;
  return {
    gateway,
    caller: {
      role: "operator",
      scopes: user === undefined ? ADMIN_SCOPES : proxy?.scopes ?? [],
      ...(user !== undefined && { user }),
      protocol: 4,
      connId: crypto.randomUUID(),
      client: { id: "gateway-client", version: "http", platform: "http", mode: "backend" },
      isSharedSecret: user === undefined,
    },
  };
}
