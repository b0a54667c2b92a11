// Reading and changing the configuration over the wire (§7.7). A change is checked as a whole before
// anything is written, and only on top of what its author has read.

import JSON5 from "json5";
import { mergePatch, redactText, restoreSecrets, writeConfig } from "../../config/edit.ts";
import { ConfigError, type ConfigReading, parseConfig, readConfig } from "../../config/load.ts";
import { configSchema, redact, REDACTED, uiHints } from "../../config/schema.ts";
import { RpcError } from "../../rpc/error.ts";
import { hasScope } from "../../rpc/scope.ts";
import {
  anything,
  boolean,
  integer,
  list,
  mapOf,
  nonEmpty,
  nullable,
  object,
  open,
  optional,
  text,
} from "../../rpc/shape.ts";
import { type Caller, type Gateway, method, nameOf } from "../gateway.ts";
import { changedPaths } from "../reload.ts";

const DEFAULT_RESTART_DELAY_MS = 2_000;
const MAX_RESTART_DELAY_MS = 60_000;

const Issue = open({ path: text(), message: text() });
const Change = object({
  raw: nonEmpty(),
  baseHash: optional(text()),
  sessionKey: optional(text()),
  note: optional(text()),
  restartDelayMs: optional(integer({ min: 0 })),
});
const Written = object({ ok: boolean(), path: text(), config: anything() });
const Restarting = object({
  ok: boolean(),
  path: text(),
  config: anything(),
  restart: object({
    ok: boolean(),
    pid: integer(),
    signal: text(),
    delayMs: integer(),
    reason: text(),
    mode: text(),
  }),
  sentinel: object({ path: nullable(text()), payload: anything() }),
});

export const configMethods = [
  method({
    name: "config.get",
    summary: "The configuration file, its hash, and what is wrong with it",
    scope: "operator.admin",
    scopeOnV4: "operator.read",
    params: object({}),
    result: object({
      path: text(),
      exists: boolean(),
      raw: nullable(text()),
      parsed: anything(),
      valid: boolean(),
      config: anything(),
      hash: text(),
      issues: list(Issue),
      warnings: list(text()),
      legacyIssues: list(Issue),
    }),
    async handle(_, { gateway, caller }) {
      const { path, exists, raw, parsed, valid, config, hash, issues, warnings } = await read(
        gateway,
      );
      const isOwner = hasScope(caller.scopes, "operator.admin");
      return {
        path,
        exists,
        raw: isOwner || raw === null ? raw : redactText(raw),
        parsed: isOwner ? parsed : redact(parsed),
        valid,
        config: isOwner ? config : redact(config),
        hash,
        issues,
        warnings,
        legacyIssues: [],
      };
    },
  }),
  method({
    name: "config.schema",
    summary: "The JSON schema of the configuration, with hints for editors",
    scope: "operator.admin",
    params: object({}),
    result: object({
      schema: open({}),
      uiHints: mapOf(open({})),
      version: text(),
      generatedAt: text(),
    }),
    handle: (_, { gateway }) => ({
      schema: configSchema(),
      uiHints: uiHints() as Record<string, Record<string, unknown>>,
      version: gateway.version,
      generatedAt: new Date().toISOString(),
    }),
  }),
  method({
    name: "config.set",
    summary: "Replace the configuration file; what needs a restart restarts when it is noticed",
    scope: "operator.admin",
    params: object({ raw: nonEmpty(), baseHash: optional(text()) }),
    result: Written,
    async handle({ raw, baseHash }, { gateway, caller }) {
      const current = await readOnTopOf(gateway, baseHash);
      const { path, config } = await write(gateway, caller, current, raw);
      return { ok: true, path, config };
    },
  }),
  method({
    name: "config.patch",
    summary: "Merge a JSON5 patch into the configuration (RFC 7396), and restart if it takes one",
    scope: "operator.admin",
    params: Change,
    result: Restarting,
    async handle({ raw, baseHash, note, restartDelayMs }, { gateway, caller }) {
      const current = await readOnTopOf(gateway, baseHash);
      if (!current.valid) {
        throw new RpcError("INVALID_REQUEST", "invalid config; fix before patching", {
          details: { issues: current.issues },
        });
      }
      const patch = parseJson5(raw);
      if (typeof patch !== "object" || patch === null || Array.isArray(patch)) {
        throw new RpcError("INVALID_REQUEST", "config.patch raw must be an object");
      }
      const merged = merge(current.raw ?? "", patch);
      const written = await write(gateway, caller, current, merged);
      return restarting(gateway, written, { reason: "config.patch", note, restartDelayMs });
    },
  }),
  method({
    name: "config.apply",
    summary: "Replace the configuration, and restart if it takes one",
    scope: "operator.admin",
    params: Change,
    result: Restarting,
    async handle({ raw, baseHash, note, restartDelayMs }, { gateway, caller }) {
      const current = await readOnTopOf(gateway, baseHash);
      const written = await write(gateway, caller, current, raw);
      return restarting(gateway, written, { reason: "config.apply", note, restartDelayMs });
    },
  }),
];

function read({ paths }: Gateway): Promise<ConfigReading> {
  return readConfig({ path: paths.configPath, env: paths.env });
}

/** The file as it is, which must be the one the caller has read. */
async function readOnTopOf(gateway: Gateway, baseHash?: string): Promise<ConfigReading> {
  const current = await read(gateway);
  if (!current.exists) return current;
  if (!baseHash) {
    throw new RpcError(
      "INVALID_REQUEST",
      "config base hash required; re-run config.get and retry",
    );
  }
  if (baseHash !== current.hash) throw stale();
  return current;
}

async function write(
  gateway: Gateway,
  caller: Caller,
  current: ConfigReading,
  raw: string,
): Promise<ConfigReading> {
  const { paths, audit } = gateway;
  // First of all: what stands in place of a secret is no valid value.
  const complete = withSecrets(raw, current);
  const next = await parseConfig(complete, { path: paths.configPath, env: paths.env });
  if (!next.valid) {
    // Text that is no JSON5 has no keys to name; what its reader says is the message.
    const syntax = next.parsed === null ? next.issues[0] : undefined;
    throw new RpcError("INVALID_REQUEST", syntax?.message ?? "invalid config", {
      details: { issues: next.issues.map(({ path, message }) => ({ path, message })) },
    });
  }
  try {
    gateway.preflight(next);
  } catch (error) {
    // A gateway that could not start with it would be gone at the next start.
    const { message } = error as Error;
    throw new RpcError("INVALID_REQUEST", "invalid config", {
      cause: error,
      details: { issues: [{ path: "gateway", message }] },
    });
  }
  try {
    const written = await writeConfig(paths.configPath, complete, {
      env: paths.env,
      expectedHash: current.hash,
    });
    const changed = changedPaths(current.config, written.config).slice(0, 20).join(", ");
    audit.record("config.changed", { by: nameOf(caller), reason: changed || "nothing but layout" });
    return written;
  } catch (error) {
    throw refused(error);
  }
}

function merge(raw: string, patch: object): string {
  try {
    return mergePatch(raw, patch);
  } catch (error) {
    throw refused(error);
  }
}

/** What is wrong with a change is its author's to know. */
function refused(error: unknown): unknown {
  if (!(error instanceof ConfigError)) return error;
  return new RpcError("INVALID_REQUEST", error.message, { cause: error });
}

/** An editor that was shown the file without its secrets gives them back unchanged. */
function withSecrets(raw: string, current: ConfigReading): string {
  if (current.raw === null || !raw.includes(REDACTED)) return raw;
  try {
    return restoreSecrets(raw, current.raw);
  } catch (error) {
    throw refused(error);
  }
}

function restarting(
  gateway: Gateway,
  written: ConfigReading,
  { reason, note, restartDelayMs = DEFAULT_RESTART_DELAY_MS }: {
    reason: string;
    note?: string;
    restartDelayMs?: number;
  },
) {
  const delayMs = Math.min(restartDelayMs, MAX_RESTART_DELAY_MS);
  const needsRestart = gateway.adoptConfig(written, reason, delayMs);
  return {
    ok: true,
    path: written.path,
    config: written.config,
    restart: {
      ok: true,
      pid: Deno.pid,
      signal: "SIGUSR1",
      delayMs: needsRestart ? delayMs : 0,
      reason,
      mode: needsRestart ? "in-process" : "none",
    },
    sentinel: { path: null, payload: { kind: reason, ts: Date.now(), note: note ?? null } },
  };
}

function parseJson5(raw: string): unknown {
  try {
    return JSON5.parse(raw);
  } catch (error) {
    throw new RpcError("INVALID_REQUEST", (error as Error).message, { cause: error });
  }
}

function stale(): RpcError {
  return new RpcError(
    "INVALID_REQUEST",
    "config changed since last load; re-run config.get and retry",
  );
}
