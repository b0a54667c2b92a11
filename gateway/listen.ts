// The one port: HTTP and WebSocket upgrades, plain or inside TLS, on every address the gateway is bound to. Host and
// Origin are judged before anything else is looked at (D5).

import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { Buffer } from "node:buffer";
import { getRequestListener } from "@hono/node-server";
// @ts-types="npm:@types/ws@8.18.1"
import { WebSocketServer } from "ws";
import { HANDSHAKE_TIMEOUT_MS, MAX_PREAUTH_BYTES } from "../rpc/frame.ts";
import { createApp } from "./app.ts";
import type { Listening } from "./bind.ts";
import { Connection } from "./connection.ts";
import type { Gateway } from "./gateway.ts";
import { judgeNames, provenanceOf, type Verdict } from "./network.ts";

/** How long a peer has for its close frame; then the socket is dropped. */
const CLOSE_TIMEOUT_MS = 10_000;
const KEEP_ALIVE_MS = 5_000;
/** How often `node:http` looks for peers past their deadline; its own idea is every 30 s. */
const DEADLINE_CHECK_MS = 1_000;
/** Requests a connection may have open, and answers it may leave unread, before it is dropped. */
const MAX_OPEN_REQUESTS = 100;
const MAX_UNREAD_BYTES = 1_048_576;
/** A peer whose body is not wanted has this long to read the answer. */
const LAST_WORD_MS = 500;
const STATUS_TEXT = { 403: "Forbidden", 421: "Misdirected Request", 503: "Service Unavailable" };

export interface Listener extends Listening, AsyncDisposable {
  port: number;
  /** The addresses it listens on, the main one first. */
  hosts: string[];
}

/** Turns a socket that was accepted into one that is encrypted. */
export interface Secures {
  secure(raw: Socket, secured: (socket: Socket) => void): void;
}

/**
 * Listens on the first host, and on the others as far as they can be had.
 *
 * @param port 0 for any
 * @param tls speaks `wss://` and `https://` instead of the plain ones
 * @throws {Error} with `code` EADDRINUSE and the like, when the first host cannot be had
 */
export async function listen(
  gateway: Gateway,
  [first, ...others]: readonly string[],
  port: number,
  tls?: Secures,
): Promise<Listener> {
  const servers = new Map<string, Server>();
  const sockets = new Set<Socket>();
  const listenOn = async (host: string, wanted: number) => {
    const server = createGatewayServer(gateway, sockets, tls);
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host, port: wanted, backlog: 4_096 }, resolve);
    });
    servers.set(host, server);
    return (server.address() as AddressInfo).port;
  };
  const actual = await listenOn(first, port);
  const hosts = [first];
  for (const host of others) {
    try {
      await listenOn(host, actual);
      hosts.push(host);
    } catch (error) {
      gateway.log.info("cannot also listen there", { host, error: (error as Error).message });
    }
  }
  return {
    port: actual,
    hosts,
    async add(host) {
      await listenOn(host, actual);
      hosts.unshift(host);
    },
    async drop(host) {
      const server = servers.get(host);
      if (!server) return;
      servers.delete(host);
      hosts.splice(hosts.indexOf(host), 1);
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      for (const socket of sockets) if (socket.localAddress === host) socket.destroy();
      await closed;
    },
    async [Symbol.asyncDispose]() {
      const closed = [...servers.values()].map((server) =>
        new Promise<void>((resolve) => server.close(() => resolve()))
      );
      for (const socket of sockets) socket.destroy();
      await Promise.all(closed);
    },
  };
}

function createGatewayServer(gateway: Gateway, sockets: Set<Socket>, tls?: Secures): Server {
  const answer = getRequestListener(createApp(gateway).fetch, {
    overrideGlobalObjects: false,
    autoCleanupIncoming: false,
  });
  const upgrader = new WebSocketServer(
    {
      noServer: true,
      clientTracking: false,
      perMessageDeflate: false,
      maxPayload: MAX_PREAUTH_BYTES,
      handleProtocols: () => false,
      closeTimeout: CLOSE_TIMEOUT_MS,
      // `ws` has the option; its published types do not yet.
    } as ConstructorParameters<typeof WebSocketServer>[0],
  );

  const limits = { connectionsCheckingInterval: DEADLINE_CHECK_MS };
  const openRequests = new WeakMap<Socket, number>();
  const server = createServer(limits, (request, response) => {
    const { socket } = request;
    const open = (openRequests.get(socket) ?? 0) + 1;
    // `node:http` takes pipelined requests as fast as they come, whether or not anybody reads.
    if (open > MAX_OPEN_REQUESTS || socket.writableLength > MAX_UNREAD_BYTES) {
      return void socket.destroy();
    }
    openRequests.set(socket, open);
    response.on("close", () => openRequests.set(socket, (openRequests.get(socket) ?? 1) - 1));
    response.on("finish", () => {
      if (!request.complete) leaveBody(request);
    });
    const verdict = judge(request, gateway);
    if (verdict.allowed) return void answer(request, response);
    note(request, gateway, verdict.status === 421 ? "HOST_NOT_SERVED" : "ORIGIN_NOT_ALLOWED");
    response.writeHead(verdict.status, { "Content-Type": "text/plain", Connection: "close" });
    response.end(`${verdict.message}\n`);
  });
  server.headersTimeout = HANDSHAKE_TIMEOUT_MS;
  server.requestTimeout = 5 * HANDSHAKE_TIMEOUT_MS;
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  // With TLS the server gets the socket inside; what guards the door counts from the first byte.
  const [serve] = server.listeners("connection") as ((socket: Socket) => void)[];
  if (tls) server.off("connection", serve);
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    gateway.connections.arrive(socket);
    tls?.secure(socket, (inner) => {
      gateway.connections.secured(socket, inner);
      serve.call(server, inner);
    });
  });
  // A peer that speaks no HTTP gets no answer; without this it would be reported over and over.
  server.on("clientError", (_error: Error, socket: Duplex) => socket.destroy());
  server.on("upgrade", (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on("error", () => socket.destroy());
    const verdict = judge(request, gateway);
    if (!verdict.allowed) {
      note(request, gateway, verdict.status === 421 ? "HOST_NOT_SERVED" : "ORIGIN_NOT_ALLOWED");
      return refuse(socket, verdict.status, verdict.message);
    }
    if (!gateway.isReady) return refuse(socket, 503, "The gateway is stopping");
    // Not by URL: a stranger's target need not be one, and `new URL` would throw here.
    const [, query] = (request.url ?? "").split("?", 2);
    if (new URLSearchParams(query).has("token")) {
      note(request, gateway, "SECRET_IN_URL");
      return refuse(socket, 403, "Secrets do not belong in URLs; send the token in connect.params");
    }
    const provenance = provenanceOf(
      request.socket.remoteAddress,
      request.headers,
      gateway.surroundings,
    );
    // The answer and the challenge behind it go out in one write.
    socket.cork();
    upgrader.handleUpgrade(request, socket, head, (webSocket) => {
      new Connection(gateway, webSocket, request, provenance);
    });
    socket.uncork();
  });
  return server;
}

/** Answered before its body had come: a short one is let pass, of any other nothing more is read. */
function leaveBody({ headers, socket }: IncomingMessage) {
  if (Number(headers["content-length"] ?? Infinity) <= MAX_UNREAD_BYTES) return;
  setImmediate(() => socket.pause());
  const timer = setTimeout(() => socket.destroy(), LAST_WORD_MS);
  socket.on("close", () => clearTimeout(timer));
}

/** Two Host headers could mean one name here and another to a proxy in front. */
function judge({ headers, rawHeaders }: IncomingMessage, { names }: Gateway): Verdict {
  const hosts = rawHeaders.filter((name, index) => index % 2 === 0 && /^host$/i.test(name));
  if (hosts.length === 1) return judgeNames(headers, names);
  return { allowed: false, status: 421, message: "Send exactly one Host header" };
}

/** Puts a refusal on the audit trail; what the request says of itself stays out of it. */
function note({ socket, headers }: IncomingMessage, gateway: Gateway, code: string) {
  const { client, peer } = provenanceOf(socket.remoteAddress, headers, gateway.surroundings);
  gateway.audit.refuse({ code, ip: client ?? peer });
  gateway.log.warn("refused a request", { code, ip: client ?? peer });
}

function refuse(socket: Duplex, status: 403 | 421 | 503, message: string) {
  const body = `${message}\n`;
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_TEXT[status]}\r\nContent-Type: text/plain\r\n` +
      `Content-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
  );
}
