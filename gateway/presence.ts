// Who is here (§7.2): the gateway itself, connections that are not command lines, and what others
// report by `system-event`. At most 200 entries; the oldest give way.

import { type Infer, integer, list, number, object, open, optional, text } from "../rpc/shape.ts";

export const PresenceEntry = object({
  host: optional(text()),
  /** Whom a proxy or Tailscale vouches for. */
  user: optional(text()),
  ip: optional(text()),
  version: optional(text()),
  platform: optional(text()),
  deviceFamily: optional(text()),
  modelIdentifier: optional(text()),
  mode: optional(text()),
  lastInputSeconds: optional(number()),
  reason: optional(text()),
  tags: optional(list(text())),
  text: text(),
  ts: integer(),
  deviceId: optional(text()),
  roles: optional(list(text())),
  scopes: optional(list(text())),
  instanceId: optional(text()),
});
export type PresenceEntry = Infer<typeof PresenceEntry>;

/** What `system-event` may say of its sender. */
export const SystemEvent = open({
  text: text(),
  deviceId: optional(text()),
  instanceId: optional(text()),
  host: optional(text()),
  ip: optional(text()),
  mode: optional(text()),
  version: optional(text()),
  platform: optional(text()),
  deviceFamily: optional(text()),
  modelIdentifier: optional(text()),
  lastInputSeconds: optional(number()),
  reason: optional(text()),
  roles: optional(list(text())),
  scopes: optional(list(text())),
  tags: optional(list(text())),
});
export type SystemEvent = Infer<typeof SystemEvent>;

export type Description = Omit<PresenceEntry, "ts" | "text"> & { text?: string };

const TTL_MS = 300_000;
const MAX_ENTRIES = 200;
/** Reasons that come again and again and say nothing new. */
const ROUTINE_REASON = /^(periodic|heartbeat)/;
const LINE = /^Node:\s*([^·(]+?)\s*(?:\(([^)]*)\))?\s*(?:·|$)/;

export class Presence {
  readonly #self: Omit<PresenceEntry, "ts">;
  readonly #now: () => number;
  /** Oldest first: an entry that changes moves to the end. */
  readonly #entries = new Map<string, PresenceEntry>();
  /** How many connections stand behind an entry. */
  readonly #connected = new Map<string, number>();
  #version = 1;

  constructor(
    { host, ip, version, platform }: {
      host: string;
      ip: string;
      version: string;
      platform: string;
    },
    now: () => number = Date.now,
  ) {
    this.#self = {
      host,
      ip,
      version,
      platform,
      mode: "gateway",
      reason: "self",
      text: `Gateway: ${host} (${ip}) · app ${version} · mode gateway · reason self`,
    };
    this.#now = now;
  }

  /** Rises with every change. */
  get version(): number {
    return this.#version;
  }

  /** A connection that is listed while it lasts. */
  join(key: string, description: Description) {
    this.#connected.set(keyOf(key), (this.#connected.get(keyOf(key)) ?? 0) + 1);
    this.#put(key, { ...description, reason: "connect" });
  }

  leave(key: string) {
    const left = (this.#connected.get(keyOf(key)) ?? 1) - 1;
    if (left > 0) return void this.#connected.set(keyOf(key), left);
    this.#connected.delete(keyOf(key));
    const entry = this.#entries.get(keyOf(key));
    if (entry) this.#put(key, { ...entry, reason: "disconnect" });
  }

  /**
   * Takes a report. A presence line (`Node: …`) describes a device; it is worth telling the main
   * session only when something but the time changed.
   *
   * @returns the text to tell the main session, undefined for none
   */
  report(event: SystemEvent): string | undefined {
    const said = event.text.trim();
    const line = LINE.exec(said);
    const key = event.deviceId || event.instanceId || event.host || line?.[1] || event.ip ||
      said.slice(0, 64);
    const before = this.#entries.get(keyOf(key));
    const fromLine = line ? readLine(said) : {};
    this.#put(key, { ...before, ...fromLine, ...describedBy(event), text: said });
    if (!line) return said;
    const after = this.#entries.get(keyOf(key))!;
    const isRoutine = ROUTINE_REASON.test(after.reason ?? "");
    const changed = (["host", "ip", "version", "mode"] as const)
      .some((field) => before?.[field] !== after[field]) ||
      (!isRoutine && before?.reason !== after.reason);
    return changed ? said : undefined;
  }

  /** Newest first, the gateway itself among them. */
  list(): PresenceEntry[] {
    this.#prune();
    const now = this.#now();
    return [{ ...this.#self, ts: now }, ...[...this.#entries.values()].reverse()];
  }

  #put(key: string, description: Description) {
    this.#prune();
    const { text: said, ...fields } = withoutUndefined(description);
    const entry: PresenceEntry = {
      ...fields,
      text: said ?? `Node: ${description.host ?? key} · mode ${description.mode ?? "unknown"}`,
      ts: this.#now(),
    };
    this.#entries.delete(keyOf(key));
    this.#entries.set(keyOf(key), entry);
    // One place is the gateway's own.
    if (this.#entries.size >= MAX_ENTRIES) {
      this.#entries.delete(this.#entries.keys().next().value!);
    }
    this.#version++;
  }

  #prune() {
    const now = this.#now();
    for (const [key, entry] of this.#entries) {
      if (entry.ts > now - TTL_MS) return;
      this.#entries.delete(key);
      // Who is still connected is still here.
      if (this.#connected.has(key)) this.#entries.set(key, { ...entry, ts: now });
    }
  }
}

/** `Node: <host> (<ip>) · app <version> · last input <n>s ago · mode <mode> · reason <reason>` */
function readLine(line: string): Partial<PresenceEntry> {
  const [, host, ip] = LINE.exec(line) ?? [];
  const part = (pattern: RegExp) => pattern.exec(line)?.[1]?.trim();
  const seconds = part(/last input (\d+)s ago/);
  return withoutUndefined({
    host,
    ip,
    version: part(/· app ([^·]+)/),
    mode: part(/· mode ([^·]+)/),
    reason: part(/· reason ([^·]+)/),
    lastInputSeconds: seconds === undefined ? undefined : Number(seconds),
  });
}

/** What an event says of its sender; whatever else it carries is nobody's business. */
function describedBy(event: SystemEvent): Partial<PresenceEntry> {
  const { deviceId, instanceId, host, ip, mode, version, platform, reason, roles, scopes } = event;
  const { deviceFamily, modelIdentifier, lastInputSeconds, tags } = event;
  return withoutUndefined({
    ...{ deviceId, instanceId, host, ip, mode, version, platform, reason, roles, scopes },
    ...{ deviceFamily, modelIdentifier, lastInputSeconds, tags },
  });
}

function keyOf(key: string): string {
  return key.trim().toLowerCase();
}

function withoutUndefined<T extends object>(value: T): T {
  return Object.fromEntries(
    Object.entries(value).filter(([, member]) => member !== undefined),
  ) as T;
}
