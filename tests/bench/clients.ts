// Clients of the two servers: how a connection becomes ready, with and without a device. The bare
// server's clients send a message of the same size and do the same signing; it is echoed.

import { createHash, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { Buffer } from "node:buffer";
import { signedText } from "../../rpc/identity.ts";
import type { Server } from "./servers.ts";
import { TOKEN } from "./servers.ts";
import { requestText, textFrame, Wire } from "./wire.ts";

/** A kind of server: how a connection to it gets ready for use. */
export type Knock = (server: Server, as?: Guest) => Promise<Wire>;

/** Who connects. Presence lists clients of mode `backend`, but no command lines. */
export interface Guest {
  mode?: "cli" | "backend";
  device?: Device;
}

export interface Device {
  id: string;
  publicKey: string;
  privateKey: KeyObject;
}

export function newDevice(): Device {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const { x = "" } = publicKey.export({ format: "jwk" });
  const id = createHash("sha256").update(Buffer.from(x, "base64url")).digest("hex");
  return { id, publicKey: x, privateKey };
}

export function guestsWithDevices(count: number): Guest[] {
  return Array.from({ length: count }, () => ({ device: newDevice() }));
}

/** Connect, upgrade, one message each way. */
export const knockBare: Knock = async ({ port }, guest = {}) => {
  const wire = await Wire.open(port);
  await wire.send(connectFrame(guest, "00000000-0000-0000-0000-000000000000", Date.now()));
  wire.greetingBytes = (await wire.next()).length;
  return wire;
};

/** Connect, upgrade, challenge, connect, hello-ok. */
export const knockGateway: Knock = async ({ port }, guest = {}) => {
  const wire = await Wire.open(port);
  const { payload: { nonce, ts } } = JSON.parse(await wire.nextText());
  await wire.send(connectFrame(guest, nonce, ts));
  const hello = await wire.next();
  if (!HELLO.every((byte, at) => hello[at] === byte)) {
    throw new Error(`Refused: ${new TextDecoder().decode(hello)}`);
  }
  wire.greetingBytes = hello.length;
  return wire;
};

const HELLO = new TextEncoder().encode('{"type":"res","id":"1","ok":true');
const SCOPES = ["operator.read", "operator.write"];

function connectFrame({ mode = "cli", device }: Guest, nonce: string, nowMs: number): Uint8Array {
  const id = mode === "cli" ? "cli" : "gateway-client";
  const signed = device && signedText(2, {
    deviceId: device.id,
    clientId: id,
    clientMode: mode,
    role: "operator",
    scopes: SCOPES,
    signedAtMs: nowMs,
    token: TOKEN,
    nonce,
  });
  return textFrame(requestText("1", "connect", {
    minProtocol: 3,
    maxProtocol: 4,
    client: { id, version: "1.0.0", platform: "linux", mode },
    role: "operator",
    scopes: SCOPES,
    auth: { token: TOKEN },
    ...(device && {
      device: {
        id: device.id,
        publicKey: device.publicKey,
        signature: sign(null, Buffer.from(signed!), device.privateKey).toString("base64url"),
        signedAt: nowMs,
        nonce,
      },
    }),
  }));
}
