// The configuration under a running gateway (§12.1): the file is looked at, a change is checked as a
// whole, and then taken over, or answered with a restart. A bad file changes nothing and is reported
// once.

import { type ConfigReading, formatIssue, readConfig } from "../config/load.ts";
import type { Log } from "../config/log.ts";
import type { Env } from "../config/paths.ts";
import type { ReloadMode } from "../config/settings.ts";
import type { CurrentConfig } from "./gateway.ts";

export interface ReloadOptions {
  /** The configuration of this start. */
  reading: ConfigReading;
  env: Env;
  log: Log;
  /** As the configuration says now. */
  settings(reading: ConfigReading): { mode: ReloadMode; debounceMs: number };
  /** Throws what would stand in the way of a start with this configuration. */
  preflight(reading: ConfigReading): void;
  /** Told of a configuration that is current from now on. */
  adopted?(reading: ConfigReading): void;
  restart(reason: string, delayMs: number): void;
}

/** What a changed setting takes. */
export type Action = "none" | "hot" | "restart";

/** The longest prefix that fits decides; what is not listed takes a restart. */
const ACTIONS: Record<string, Action> = {
  ...actions("none", [
    "gateway.remote",
    "gateway.reload",
    "gateway.nodes",
    "identity",
    "wizard",
    "logging",
    "models",
    "agents",
    "tools",
    "bindings",
    "audio",
    "agent",
    "routing",
    "messages",
    "session",
    "talk",
    "skills",
    "ui",
    "remotes",
    "commands",
    "$schema",
  ]),
  ...actions("hot", ["hooks", "agents.defaults.heartbeat", "agent.heartbeat", "cron", "browser"]),
  ...actions("hot", ["channels"]),
};

/** How often the files are looked at, and how long a change must have been left alone. */
const LOOK_MS = 250;

/**
 * How young a file may be, in milliseconds, for its time and size to stand for its content. The clock
 * of a file system ticks in steps: two writes within one step leave the same time behind.
 */
const SETTLED_MS = 100;

export class ConfigWatcher implements CurrentConfig {
  readonly #options: ReloadOptions;
  #reading: ConfigReading;
  /** Changes of the running configuration that wait for a restart are judged against this one. */
  #started: ConfigReading;
  #timer?: ReturnType<typeof setTimeout>;
  #seen = "";
  /** The last state of the files that was read here, good or bad: at first none. */
  #handled = "";
  #isReported = false;
  #isStopped = false;

  constructor(options: ReloadOptions) {
    this.#options = options;
    this.#reading = options.reading;
    this.#started = options.reading;
    this.#schedule(LOOK_MS);
  }

  get reading(): ConfigReading {
    return this.#reading;
  }

  /** @returns whether it takes a restart, which is then on its way */
  adopt(reading: ConfigReading, reason: string, delayMs: number): boolean {
    const { log, settings } = this.#options;
    const changed = changedPaths(this.#started.config, reading.config);
    const needs = actionFor(changed);
    const { mode } = settings(reading);
    this.#reading = reading;
    this.#options.adopted?.(reading);
    this.#isReported = false;
    if (changed.length === 0 || mode === "off") return false;
    const restarts = mode === "restart" || (needs === "restart" && mode === "hybrid");
    const keys = changed.slice(0, 10).join(", ");
    if (needs === "restart" && !restarts) {
      log.warn("a changed setting waits for a restart", { keys });
    } else if (!restarts) {
      log.info("configuration reloaded", { keys });
      this.#started = reading;
    } else {
      log.info("restarting for a changed configuration", { keys, reason });
      this.#options.restart(reason, delayMs);
    }
    return restarts;
  }

  [Symbol.dispose]() {
    this.#isStopped = true;
    clearTimeout(this.#timer);
  }

  #schedule(ms: number) {
    if (this.#isStopped) return;
    this.#timer = setTimeout(() => this.#look().catch((error) => this.#report(String(error))), ms);
  }

  async #look() {
    try {
      const now = signatureOf(this.#reading.files);
      const isStable = now === this.#seen;
      this.#seen = now;
      if (isStable && now !== this.#handled) await this.#check(now);
    } finally {
      // Whatever went wrong this time, the next change is noticed.
      this.#schedule(LOOK_MS);
    }
  }

  async #check(signature: string) {
    const { env, settings } = this.#options;
    const { debounceMs } = settings(this.#reading);
    if (debounceMs > LOOK_MS) await this.#pause(debounceMs - LOOK_MS);
    if (this.#isStopped || signatureOf(this.#reading.files) !== signature) return;
    const reading = await readConfig({ path: this.#reading.path, env });
    // Written again while it was read: what was read may be half of it.
    if (this.#isStopped || signatureOf(this.#reading.files) !== signature) return;
    this.#handled = signature;
    if (settings(this.#reading).mode === "off") return;
    // Whoever wants the defaults can say {}: this is a write that was cut off at its beginning.
    if (reading.raw?.trim() === "") return this.#report("the file is empty");
    if (!reading.valid) return this.#report(reading.issues.map(formatIssue).join("; "));
    try {
      this.#options.preflight(reading);
    } catch (error) {
      return this.#report((error as Error).message);
    }
    // Read a second time, by whoever adopted it or because its files were only touched.
    if (changedPaths(this.#reading.config, reading.config).length === 0) {
      this.#reading = reading;
      this.#isReported = false;
      return;
    }
    this.adopt(reading, "the configuration file changed", 0);
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => this.#timer = setTimeout(resolve, ms));
  }

  /** Once until the file is good again. */
  #report(problem: string) {
    if (this.#isReported) return;
    this.#isReported = true;
    this.#options.log.error("the changed configuration is not used; the last good one stays", {
      problem,
      fix: "zero config validate",
    });
  }
}

/**
 * Dotted paths of the leaves in which two configurations differ. A section that appears or goes
 * changes what is in it.
 */
export function changedPaths(before: unknown, after: unknown, at = ""): string[] {
  if (before === after) return [];
  if (!isSection(before) || !isSection(after)) {
    return JSON.stringify(before) === JSON.stringify(after) ? [] : [at];
  }
  const keys = new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})]);
  const inside = [...keys].flatMap((key) => {
    const path = at === "" ? key : `${at}.${key}`;
    return changedPaths(before?.[key], after?.[key], path);
  });
  return inside.length > 0 || (before && after) ? inside : [at];
}

/** The strongest action that any of the paths asks for. */
export function actionFor(paths: readonly string[]): Action {
  const found = new Set(paths.map(actionOf));
  return found.has("restart") ? "restart" : found.has("hot") ? "hot" : "none";
}

function actionOf(path: string): Action {
  for (let prefix = path; prefix !== ""; prefix = prefix.slice(0, prefix.lastIndexOf("."))) {
    if (Object.hasOwn(ACTIONS, prefix)) return ACTIONS[prefix];
    if (!prefix.includes(".")) break;
  }
  return "restart";
}

function actions(action: Action, prefixes: string[]): Record<string, Action> {
  return Object.fromEntries(prefixes.map((prefix) => [prefix, action]));
}

/** Changes whenever one of the files does; of a file that was written just now, with every look. */
function signatureOf(files: readonly string[]): string {
  const now = Date.now();
  return files.map((file) => {
    try {
      const { mtime, size, ino } = Deno.statSync(file);
      const writtenAt = mtime?.getTime() ?? 0;
      const isSettled = Math.abs(now - writtenAt) > SETTLED_MS;
      return `${writtenAt} ${size} ${ino}${isSettled ? "" : ` at ${performance.now()}`}`;
    } catch {
      return "absent";
    }
  }).join("; ");
}

function isSection(value: unknown): value is Record<string, unknown> | undefined {
  return value === undefined ||
    (typeof value === "object" && value !== null && !Array.isArray(value));
}
