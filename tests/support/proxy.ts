// Real reverse proxies in front of a port, with the lines that the documentation gives; and raw
// clients that go through them. Where a proxy is not installed, what needs it is left out.

import { assert } from "@std/assert";
import { type ConnectOptions, connectParams, type Json } from "./client.ts";
import { type Identity, newDevice } from "./device.ts";
import { TOKEN } from "./gateway.ts";
import { freePort } from "./process.ts";
import { RawSocket } from "./raw_socket.ts";

/** The name the documentation gives a gateway. */
export const NAME = "zero.example.org";

export const NGINX = await findProxy(["nginx", "/usr/sbin/nginx"], "-v");
export const CADDY = await findProxy(["caddy"], "version");
/** An address of this machine that is not loopback: whoever uses it comes from there. */
export const OWN_ADDRESS = Deno.networkInterfaces().find(({ family, address }) =>
  family === "IPv4" && !address.startsWith("127.")
)?.address;

export interface Proxy extends AsyncDisposable {
  readonly port: number;
}

async function findProxy(commands: string[], version: string): Promise<string | undefined> {
  for (const command of commands) {
    const found = await new Deno.Command(command, { args: [version] }).output()
      .then(({ success }) => success, () => false);
    if (found) return command;
  }
  console.log(`skipped: what stands behind ${commands[0]}, it is not installed`);
}

/** The block in a language under a heading of docs/security.md, in front of another port. */
export async function documented(
  language: string,
  port: number,
  heading = "Behind a reverse proxy",
): Promise<string> {
  const page = await Deno.readTextFile(new URL("../../docs/security.md", import.meta.url));
  const [, section] = page.split(`## ${heading}\n`);
  const [, block] = section.split("```" + language + "\n")[1].match(/^([\s\S]*?)```/)!;
  assert(block.includes("127.0.0.1:18789"), block);
  return block.replace("127.0.0.1:18789", `127.0.0.1:${port}`);
}

/**
 * A real nginx that passes everything on to a port, on all addresses.
 *
 * @param edit changes the lines of the documentation; files they name stand in `directory`
 */
export async function startNginx(
  target: number,
  edit: (directory: string) => string | Promise<string> = () => documented("nginx", target),
): Promise<Proxy> {
  const directory = await Deno.makeTempDir({ prefix: "zero-nginx-" });
  const port = freePort();
  await Deno.writeTextFile(
    `${directory}/nginx.conf`,
    `daemon off; worker_processes 1; pid ${directory}/pid; error_log ${directory}/error.log;
     events { worker_connections 64; }
     http {
       access_log off; client_body_temp_path ${directory}/body; proxy_temp_path ${directory}/proxy;
       fastcgi_temp_path ${directory}/f; uwsgi_temp_path ${directory}/u; scgi_temp_path ${directory}/s;
       server {
         listen ${port}; listen [::]:${port};
         ${await edit(directory)}
       }
     }`,
  );
  return await runProxy(NGINX!, ["-p", directory, "-c", `${directory}/nginx.conf`], {
    port,
    directory,
  });
}

/** A real Caddy that passes everything on to a port, on all addresses and without TLS. */
export async function startCaddy(target: number): Promise<Proxy> {
  const directory = await Deno.makeTempDir({ prefix: "zero-caddy-" });
  const port = freePort();
  const site = await documented("caddyfile", target);
  assert(site.startsWith(`${NAME} {`), site);
  await Deno.writeTextFile(
    `${directory}/Caddyfile`,
    `{\n admin off\n auto_https off\n}\n${site.replace(NAME, `:${port}`)}`,
  );
  return await runProxy(CADDY!, ["run", "--config", `${directory}/Caddyfile`], {
    port,
    directory,
  });
}

async function runProxy(
  command: string,
  args: string[],
  { port, directory }: { port: number; directory: string },
): Promise<Proxy> {
  const child = new Deno.Command(command, {
    args,
    env: { HOME: directory, XDG_DATA_HOME: directory, XDG_CONFIG_HOME: directory },
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  for (let isUp = false; !isUp;) {
    isUp = await Deno.connect({ port, hostname: "127.0.0.1" })
      .then((connection) => (connection.close(), true), () => false);
    const ended = await Promise.race([child.status, new Promise((go) => setTimeout(go, 20))]);
    if (ended) throw new Error(`${command} ended; what it was given is in ${directory}`);
  }
  return {
    port,
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      await child.status;
      await Deno.remove(directory, { recursive: true });
    },
  };
}

export type KnockOptions = Omit<ConnectOptions, "auth" | "device" | "headers"> & {
  /** Header lines as they stand; also the same one twice. */
  lines?: string[];
  host?: string;
  address?: string;
  /** The shared token unless given; `null`: no `auth` at all. */
  auth?: ConnectOptions["auth"] | null;
  /** `true`: one nobody has seen before. */
  device?: Identity | boolean;
};

/** Connects through whatever listens there. @returns the answer to `connect`, or the HTTP status */
export async function knock(
  port: number,
  { lines = [], host = `${NAME}:${port}`, address = "127.0.0.1", ...options }: KnockOptions = {},
): Promise<{ socket: RawSocket; answer: Json }> {
  const { auth, device, client, ...rest } = options;
  const socket = await RawSocket.open(port, address);
  const { status } = await socket.upgrade({ host, lines });
  if (status !== 101) {
    socket.close();
    return { socket, answer: { status } };
  }
  const { payload } = await socket.readJson();
  const params = await connectParams({
    scopes: ["operator.read"],
    ...rest,
    auth: auth === null ? undefined : auth ?? { token: TOKEN },
    client: { displayName: "visitor", ...client },
    device: device === true ? await newDevice() : device || undefined,
  }, payload);
  await socket.send(JSON.stringify({ type: "req", id: "c", method: "connect", params }));
  for (;;) {
    const frame = await socket.readJson();
    if (frame.id === "c") return { socket, answer: frame };
  }
}
