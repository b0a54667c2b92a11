// What the gateway is measured against: `ws` on `node:http` and nothing else. It echoes every
// message; what comes in on the path /broadcast goes to all others instead.

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
const clients = new Set<WebSocket>();
const server = createServer();

server.on("upgrade", (request: IncomingMessage, socket: Duplex, head: Buffer) => {
  upgrader.handleUpgrade(request, socket, head, (client) => {
    clients.add(client);
    client.on("close", () => clients.delete(client));
    client.on("error", () => client.terminate());
    const isCaller = request.url === "/broadcast";
    client.on("message", (data: Buffer, isBinary: boolean) => {
      if (!isCaller) return client.send(data, { binary: isBinary });
      for (const other of clients) if (other !== client) other.send(data, { binary: isBinary });
    });
  });
});
server.listen({ host: "127.0.0.1", port: 0, backlog: 4_096 }, () => {
  console.log(`ws://127.0.0.1:${(server.address() as AddressInfo).port}`);
});
