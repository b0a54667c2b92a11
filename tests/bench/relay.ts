// What invocations are measured against: `ws` on `node:http` that passes messages on, unread. The
// socket of /caller/1 and the socket of /node/1 are one another's other end. A node's result gets an
// answer of its own, which the protocol asks for: the same three messages are written.

import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import type { Duplex } from "node:stream";
import type { Buffer } from "node:buffer";
// @ts-types="npm:@types/ws@8.18.1"
import { type WebSocket, WebSocketServer } from "ws";

const upgrader = new WebSocketServer({
  noServer: true,
  clientTracking: false,
  perMessageDeflate: false,
});
const ANSWER = `{"type":"res","id":"${crypto.randomUUID()}","ok":true,"payload":{"ok":true}}`;
const sockets = new Map<string, WebSocket>();
const server = createServer();

server.on("upgrade", (request: IncomingMessage, socket: Duplex, head: Buffer) => {
  upgrader.handleUpgrade(request, socket, head, (client) => {
    const [, side, number] = (request.url ?? "").split("/");
    const other = `${side === "node" ? "caller" : "node"}/${number}`;
    sockets.set(`${side}/${number}`, client);
    client.on("error", () => client.terminate());
    client.on("message", (data: Buffer, isBinary: boolean) => {
      if (side === "node") client.send(ANSWER);
      sockets.get(other)?.send(data, { binary: isBinary });
    });
  });
});
server.listen({ host: "127.0.0.1", port: 0, backlog: 4_096 }, () => {
  console.log(`ws://127.0.0.1:${(server.address() as AddressInfo).port}`);
});
