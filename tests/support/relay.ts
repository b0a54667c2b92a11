// A TCP relay between a client and a server, which can stop passing bytes on and cut connections: for
// what happens to a peer that does not read, and to one whose network went away.

import { connect, createServer, type Socket } from "node:net";

export interface Relay extends AsyncDisposable {
  port: number;
  /** Bytes that clients have sent so far. */
  readonly sentBytes: number;
  /** Takes nothing more from the server until `resume`. */
  pause(): void;
  resume(): void;
  /** Ends every connection there is. */
  cut(): void;
}

export async function startRelay(toPort: number): Promise<Relay> {
  const pairs = new Set<[Socket, Socket]>();
  let isPaused = false;
  let sentBytes = 0;
  const server = createServer((client) => {
    const upstream = connect(toPort, "127.0.0.1");
    const pair: [Socket, Socket] = [client, upstream];
    pairs.add(pair);
    const end = () => {
      pairs.delete(pair);
      for (const socket of pair) socket.destroy();
    };
    for (const socket of pair) {
      socket.on("error", end);
      socket.on("close", end);
    }
    client.on("data", (bytes) => {
      sentBytes += bytes.length;
      upstream.write(bytes);
    });
    upstream.pipe(client);
    if (isPaused) upstream.pause();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
  return {
    port: (server.address() as { port: number }).port,
    get sentBytes() {
      return sentBytes;
    },
    pause() {
      isPaused = true;
      for (const [client, upstream] of pairs) upstream.unpipe(client).pause();
    },
    resume() {
      isPaused = false;
      for (const [client, upstream] of pairs) upstream.pipe(client);
    },
    cut() {
      for (const [client] of pairs) client.destroy();
    },
    async [Symbol.asyncDispose]() {
      for (const [client] of pairs) client.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
