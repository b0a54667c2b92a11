// What a client keeps of itself: its key pair (`identity/device.json`) and the tokens gateways gave
// it (`identity/device-auth.json`), protocol.md §4.1 and D15. Keys are made and read by whoever is
// passed in; here they are texts in a file that only their owner may read.

import {
  integer,
  list,
  mapOf,
  nonEmpty,
  oneOf,
  open,
  optional,
  type Shape,
  text,
} from "../rpc/shape.ts";

/** How keys are made and read; `D` is a device as the caller knows it. */
export interface Keys<D extends { deviceId: string }> {
  generate(): Promise<D>;
  /** Rejects a text that is no private key. */
  read(privateKeyPem: string): Promise<D>;
  write(device: D): Promise<{ publicKeyPem: string; privateKeyPem: string }>;
}

export interface StoreOptions {
  file: string;
  /** Told what was wrong with a file, in one sentence without its content. */
  warn(message: string): void;
  /** Milliseconds since the epoch. */
  nowMs(): number;
  /** Nothing is written or moved, whatever is found. */
  isReadOnly?: boolean;
}

/** A token as `device-auth.json` holds it. */
export interface StoredToken {
  token: string;
  role: string;
  /** Sorted. */
  scopes: string[];
  updatedAtMs: number;
}

/**
 * The device of this installation, made when there is none. A file that cannot be used is kept beside
 * a new one: its owner may know what happened to it.
 */
export async function openDevice<D extends { deviceId: string }>(
  options: StoreOptions & { keys: Keys<D> },
): Promise<D> {
  const { file, keys, nowMs } = options;
  const stored = await readJson(file, DeviceFile, options);
  if (stored) {
    const device = await keys.read(stored.privateKeyPem).catch(() => undefined);
    if (!device) await setAside(file, options);
    else if (device.deviceId === stored.deviceId) return device;
    else {
      const { createdAtMs } = stored;
      await replace(file, { version: 1, ...await describe(device, keys), createdAtMs });
      return device;
    }
  }
  const device = await keys.generate();
  const description = { version: 1, ...await describe(device, keys), createdAtMs: nowMs() };
  if (await create(file, description)) return device;
  // Another process of ours was first: its device is the one from now on.
  const first = await readJson(file, DeviceFile, options);
  return first ? await keys.read(first.privateKeyPem) : device;
}

/** The device of this installation as it is; undefined where there is none that can be used. */
export async function readDevice<D extends { deviceId: string }>(
  { file, keys }: { file: string; keys: Pick<Keys<D>, "read"> },
): Promise<D | undefined> {
  const options = { file, warn() {}, nowMs: Date.now, isReadOnly: true };
  const stored = await readJson(file, DeviceFile, options);
  return stored && await keys.read(stored.privateKeyPem).catch(() => undefined);
}

export interface DeviceTokenOptions extends StoreOptions {
  deviceId: string;
  /** How the gateway is reached, see `Target.way`. */
  way: string;
  /** Ways that lead to the same gateway: the other certificates it is expected to have. */
  otherWays?: readonly string[];
}

/** The tokens of one device, on the ways to one gateway. */
export class DeviceTokenFile {
  readonly #options: DeviceTokenOptions;

  constructor(options: DeviceTokenOptions) {
    this.#options = options;
  }

  /** What is known on one of the ways is kept on all: the first may be gone the next time. */
  async find(gatewayId: string | undefined, role: string): Promise<StoredToken | undefined> {
    const { gateways } = await this.#read();
    const keys = this.#keys(gatewayId);
    const found = keys.map((key) => gateways[key]?.[role]);
    const token = found.filter((one) => one !== undefined)
      .toSorted((a, b) => b.updatedAtMs - a.updatedAtMs)[0];
    const isSpread = found.every((one) => one?.token === token?.token);
    if (token && !isSpread && !this.#options.isReadOnly) {
      await this.#spread(keys, role, token);
    }
    return token;
  }

  async keep(
    gatewayId: string | undefined,
    { token, role, scopes }: Omit<StoredToken, "updatedAtMs">,
  ): Promise<void> {
    const updatedAtMs = this.#options.nowMs();
    const entry = { token, role, scopes: [...scopes].sort(), updatedAtMs };
    await this.#spread(this.#keys(gatewayId), role, entry);
  }

  async drop(gatewayId: string | undefined, role: string): Promise<void> {
    await this.#change((gateways) => {
      for (const key of this.#keys(gatewayId)) {
        delete gateways[key]?.[role];
        if (gateways[key] && Object.keys(gateways[key]).length === 0) delete gateways[key];
      }
    });
  }

  /** Gateway and way must agree before a token is presented (D15). */
  #keys(gatewayId: string | undefined): string[] {
    const { way, otherWays = [] } = this.#options;
    return [way, ...otherWays].map((one) => `${gatewayId ?? "unnamed"}@${one}`);
  }

  #spread(keys: readonly string[], role: string, token: StoredToken): Promise<void> {
    return this.#change((gateways) => {
      for (const key of keys) gateways[key] = { ...gateways[key], [role]: token };
    });
  }

  async #change(change: (gateways: Gateways) => void): Promise<void> {
    const content = await this.#read();
    change(content.gateways);
    await replace(this.#options.file, content);
  }

  async #read() {
    const { file, deviceId } = this.#options;
    const stored = await readJson(file, AuthFile, this.#options);
    const gateways: Gateways = stored?.deviceId === deviceId ? stored.gateways ?? {} : {};
    return { version: 1, deviceId, gateways };
  }
}

type Gateways = Record<string, Record<string, StoredToken>>;

const DeviceFile = open({
  version: oneOf([1]),
  deviceId: nonEmpty(),
  publicKeyPem: nonEmpty(),
  privateKeyPem: nonEmpty(),
  createdAtMs: integer({ min: 0 }),
});

const AuthFile = open({
  version: oneOf([1]),
  deviceId: nonEmpty(),
  gateways: optional(mapOf(mapOf(open({
    token: nonEmpty(),
    role: nonEmpty(),
    scopes: list(text()),
    updatedAtMs: integer({ min: 0 }),
  })))),
});

async function describe<D extends { deviceId: string }>(device: D, keys: Keys<D>) {
  const { publicKeyPem, privateKeyPem } = await keys.write(device);
  return { deviceId: device.deviceId, publicKeyPem, privateKeyPem };
}

/** @returns undefined without a file; also when it cannot be used, after it was set aside */
async function readJson<T>(
  file: string,
  shape: Shape<T>,
  options: StoreOptions,
): Promise<T | undefined> {
  let content: string;
  try {
    content = await Deno.readTextFile(file);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
  try {
    const value = JSON.parse(content);
    if (shape.is(value)) return value;
  } catch {
    // Not even JSON: like any other content that is not ours, it is set aside below.
  }
  if (!options.isReadOnly) await setAside(file, options);
}

async function setAside(file: string, { warn, nowMs }: StoreOptions): Promise<void> {
  const kept = `${file}.corrupt-${nowMs()}`;
  await Deno.rename(file, kept);
  warn(`Cannot use ${file}: it is damaged; it was kept as ${kept} and a new one is made`);
}

/** Atomic; @returns false when the file was there already */
async function create(file: string, value: unknown): Promise<boolean> {
  const part = await writePart(file, value);
  try {
    await Deno.link(part, file);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.AlreadyExists) return false;
    throw error;
  } finally {
    await Deno.remove(part);
  }
}

async function replace(file: string, value: unknown): Promise<void> {
  await Deno.rename(await writePart(file, value), file);
}

async function writePart(file: string, value: unknown): Promise<string> {
  const directory = file.slice(0, file.lastIndexOf("/"));
  await Deno.mkdir(directory, { recursive: true, mode: 0o700 });
  if (Deno.build.os !== "windows") await Deno.chmod(directory, 0o700);
  const part = `${file}.${crypto.randomUUID()}.part`;
  // A few hundred bytes. Its asynchronous sister costs 2 ms to load, which every command would pay.
  Deno.writeTextFileSync(part, `${JSON.stringify(value, null, 2)}\n`, {
    mode: 0o600,
    createNew: true,
  });
  return part;
}
