// `hello-ok` (§3.6). Most of it is the same for everybody and is kept as JSON text, so that a storm of
// connects stays cheap.

import { Buffer } from "node:buffer";
import type { AuthMode } from "../config/settings.ts";
import { MAX_BUFFERED_BYTES, MAX_PAYLOAD_BYTES, TICK_INTERVAL_MS } from "../rpc/frame.ts";
import type { Admission } from "./admission.ts";
import { EVENT_NAMES } from "./events.ts";
import type { HealthMonitor } from "./health.ts";
import type { PresenceEntry } from "./presence.ts";

export interface HelloFacts {
  version: string;
  host: string;
  methods: readonly string[];
  startedAtMs: number;
  configPath: string;
  stateDir: string;
  authMode: AuthMode;
  sessionDefaults(): { defaultAgentId: string; mainKey: string; mainSessionKey: string };
}

/** What of the presence list goes into a hello-ok; `system-presence` has the rest. */
const MAX_PRESENCE_BYTES = 8_192;

export class Hello {
  readonly #facts: HelloFacts;
  readonly #health: HealthMonitor;
  readonly #features: string;
  readonly #policy = JSON.stringify({
    maxPayload: MAX_PAYLOAD_BYTES,
    maxBufferedBytes: MAX_BUFFERED_BYTES,
    tickIntervalMs: TICK_INTERVAL_MS,
  });
  #presence: { list: PresenceEntry[]; version: number; json?: string } = { list: [], version: 0 };

  constructor(facts: HelloFacts, health: HealthMonitor) {
    this.#facts = facts;
    this.#health = health;
    this.#features = JSON.stringify({
      methods: facts.methods,
      events: EVENT_NAMES,
      capabilities: [],
    });
  }

  /**
   * The list as it was last told to everybody. Newcomers get the same one; what has changed since is
   * on its way to them and to all others, with a higher version.
   */
  showPresence(list: PresenceEntry[], version: number) {
    this.#presence = { list, version };
  }

  /** The payload as JSON text. */
  json(connId: string, protocol: number, admission: Admission): string {
    const { version, host, startedAtMs, configPath, stateDir, authMode } = this.#facts;
    const rest = JSON.stringify({
      stateVersion: { presence: this.#presence.version, health: this.#health.version },
      uptimeMs: Date.now() - startedAtMs,
      configPath,
      stateDir,
      sessionDefaults: this.#facts.sessionDefaults(),
      ...(protocol >= 4 && { authMode }),
    }).slice(1);
    const auth = authOf(protocol, admission);
    return `{"type":"hello-ok","protocol":${protocol},` +
      `"server":${JSON.stringify({ version, host, connId })},` +
      `"features":${this.#features},` +
      `"snapshot":{"presence":${this.#presenceJson()},"health":${this.#health.json},${rest},` +
      (auth ? `"auth":${JSON.stringify(auth)},` : "") +
      `"policy":${this.#policy}}`;
  }

  #presenceJson(): string {
    const { list, json } = this.#presence;
    if (json !== undefined) return json;
    const entries: string[] = [];
    let bytes = 0;
    for (const entry of list) {
      const text = JSON.stringify(entry);
      bytes += Buffer.byteLength(text);
      if (bytes > MAX_PRESENCE_BYTES) break;
      entries.push(text);
    }
    return this.#presence.json = `[${entries.join()}]`;
  }
}

function authOf(protocol: number, { method, role, scopes, deviceToken }: Admission) {
  const token = deviceToken &&
    { deviceToken: deviceToken.token, issuedAtMs: deviceToken.issuedAtMs };
  if (protocol >= 4) return { method, role, scopes, ...token };
  return token && { role, scopes: deviceToken.scopes, ...token };
}
