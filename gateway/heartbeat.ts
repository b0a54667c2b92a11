// Heartbeats (§7.2): an agent looks after what happened without anybody writing to it. It wakes when
// something happened, or from time to time if it is told what to look after; what it says reaches the
// chat used last, and only where there is something to say.

import type { Log } from "../config/log.ts";
import { hasAck, HEARTBEAT_OK, worthSaying } from "./agent/quiet.ts";
import type { ModelSource, RunOutcome, Runs } from "./agent/runs.ts";
import { agentsOf, type Heartbeat, heartbeatOf } from "./agents.ts";
import { chatFor } from "./delivery.ts";
import type { CurrentConfig } from "./gateway.ts";
import type { After } from "./limiter.ts";
import type { Sessions } from "./sessions.ts";
import type { SystemEvents } from "./system_events.ts";

/** What came of one heartbeat (§8.1). */
export interface HeartbeatNews {
  ts: number;
  status: "sent" | "ok-empty" | "ok-token" | "skipped" | "failed";
  /** Chat it was sent to. */
  to?: string;
  channel?: string;
  /** The beginning of what was said, or of what waits to be told. */
  preview?: string;
  durationMs?: number;
  hasMedia?: boolean;
  /** Of what was skipped or failed. */
  reason?: string;
  indicatorType?: "ok" | "alert" | "error";
}

export interface HeartbeatOptions {
  config: CurrentConfig;
  sessions: Sessions;
  systemEvents: SystemEvents;
  models: ModelSource;
  /** Asked for when an agent wakes. */
  runs(): Runs;
  publish(news: HeartbeatNews): void;
  log: Log;
  now?(): number;
  after?: After;
}

const WHAT_HAPPENED =
  "Something happened, see the events above. Do what they call for, and say only what the owner " +
  "should know.";
const NOTHING_TO_SAY = `If there is nothing to say, answer ${HEARTBEAT_OK} and nothing else.`;
const PREVIEW_CHARS = 200;
/** The longest a timer can wait; an agent that sleeps longer wakes this often. */
const MAX_TIMER_MS = 2 ** 31 - 1;

export class Heartbeats implements Disposable {
  readonly #options: HeartbeatOptions;
  readonly #now: () => number;
  readonly #after: After;
  /** By agent: how often it wakes, and how to prevent the next time. */
  readonly #timers = new Map<string, { everyMs: number; cancel: () => void }>();
  /** Agents that are awake, and whether something happened since they woke. */
  readonly #awake = new Map<string, { isAgain: boolean }>();
  #last: HeartbeatNews | null = null;
  #areEnabled = true;
  #isStarted = false;

  constructor(options: HeartbeatOptions) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
    this.#after = options.after ?? afterTimeout;
  }

  get last(): HeartbeatNews | null {
    return this.#last;
  }

  get areEnabled(): boolean {
    return this.#areEnabled;
  }

  /** Switched off, agents neither wake by themselves nor when they are told to. */
  set areEnabled(areEnabled: boolean) {
    this.#areEnabled = areEnabled;
    this.refresh();
  }

  start() {
    this.#isStarted = true;
    this.refresh();
  }

  /** Brings what is planned in line with the configuration. */
  refresh() {
    const wanted = this.#isStarted && this.#areEnabled ? this.#wanted() : new Map<string, number>();
    for (const [agentId, { everyMs, cancel }] of this.#timers) {
      if (wanted.get(agentId) === everyMs) continue;
      cancel();
      this.#timers.delete(agentId);
    }
    for (const [agentId, everyMs] of wanted) {
      if (!this.#timers.has(agentId)) this.#plan(agentId, everyMs);
    }
  }

  /**
   * Has an agent look at what its main session is yet to be told. Many calls while it is awake are one
   * more look.
   *
   * @param agentId the default agent unless given
   */
  wake(agentId?: string) {
    void this.#beat(agentId ?? agentsOf(this.#config)[0].agentId, { isCalled: true });
  }

  [Symbol.dispose]() {
    this.#isStarted = false;
    for (const { cancel } of this.#timers.values()) cancel();
    this.#timers.clear();
  }

  get #config() {
    return this.#options.config.reading.config;
  }

  #wanted(): Map<string, number> {
    const config = this.#config;
    return new Map(
      agentsOf(config).flatMap(({ agentId }): [string, number][] => {
        const { everyMs } = heartbeatOf(config, agentId);
        return everyMs === null ? [] : [[agentId, everyMs]];
      }),
    );
  }

  #plan(agentId: string, everyMs: number) {
    const cancel = this.#after(Math.min(everyMs, MAX_TIMER_MS), () => {
      this.#plan(agentId, everyMs);
      void this.#beat(agentId, { isCalled: false });
    });
    this.#timers.set(agentId, { everyMs, cancel });
  }

  /** Never rejects. */
  async #beat(agentId: string, { isCalled }: { isCalled: boolean }): Promise<void> {
    if (!this.#isStarted) return;
    const awake = this.#awake.get(agentId);
    if (awake) {
      awake.isAgain ||= isCalled;
      return;
    }
    const state = { isAgain: false };
    this.#awake.set(agentId, state);
    try {
      this.#tell(await this.#look(agentId, isCalled));
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.#tell({ ts: this.#now(), status: "failed", reason, indicatorType: "error" });
    } finally {
      this.#awake.delete(agentId);
    }
    const { sessions, systemEvents } = this.#options;
    const isLeft = systemEvents.queued(sessions.mainKey(agentId)).length > 0;
    if (state.isAgain && isLeft) await this.#beat(agentId, { isCalled: true });
  }

  /** @returns undefined when the gateway stopped meanwhile */
  async #look(agentId: string, isCalled: boolean): Promise<HeartbeatNews | undefined> {
    const { sessions, systemEvents, models } = this.#options;
    const ts = this.#now();
    const heartbeat = heartbeatOf(this.#config, agentId);
    const key = sessions.mainKey(agentId);
    const events = systemEvents.queued(key);
    const waiting = events.length === 0 ? {} : { preview: beginningOf(events.join("\n")) };
    const skipped = (reason: string): HeartbeatNews => ({
      ts,
      status: "skipped",
      reason,
      ...waiting,
    });
    if (!this.#areEnabled) return skipped("disabled");
    if (events.length === 0 && (isCalled || heartbeat.prompt === "")) {
      return skipped("nothing-queued");
    }
    const sessionModel = heartbeat.model ?? sessions.get(key)?.entry.model;
    if (models.pick({ agentId, sessionModel }).length === 0) return skipped("no-model");
    // Whatever runs there now is not kept waiting; what is called for has its turn after it.
    if (!isCalled && this.#options.runs().isBusy(key)) return skipped("busy");
    return await this.#run(agentId, key, heartbeat, ts);
  }

  async #run(
    agentId: string,
    key: string,
    { prompt, target, model, ackMaxChars }: Heartbeat,
    ts: number,
  ): Promise<HeartbeatNews | undefined> {
    const { sessions } = this.#options;
    const to = target === "last" ? chatFor({}, key, sessions) : undefined;
    const quiet = { ackMaxChars, failuresToo: true };
    const { done } = this.#options.runs().start({
      runId: `heartbeat:${agentId}:${crypto.randomUUID()}`,
      sessionKey: key,
      message: `${prompt || WHAT_HAPPENED}\n${NOTHING_TO_SAY}`,
      origin: { kind: "cron", isOwner: true, mayApprove: false, callerName: "heartbeat" },
      model,
      deliverTo: to,
      quiet,
    });
    const outcome = await done;
    if (!this.#isStarted) return undefined;
    const durationMs = this.#now() - ts;
    const said = worthSaying(outcome.text, quiet);
    const hasMedia = outcome.media !== undefined;
    const news = { ts, durationMs, ...(hasMedia && { hasMedia }) };
    if (outcome.status !== "ok") {
      return { ...news, status: "failed", reason: reasonOf(outcome), indicatorType: "error" };
    }
    if (said === "" && !hasMedia) {
      const status = hasAck(outcome.text) ? "ok-token" : "ok-empty";
      return { ...news, status, indicatorType: "ok" };
    }
    const preview = beginningOf(said);
    // It stays in the session, where whoever opens it finds it.
    if (!to) return { ...news, status: "skipped", reason: "no-target", preview };
    const { channel, to: chat } = to;
    return { ...news, status: "sent", channel, to: chat, preview, indicatorType: "alert" };
  }

  #tell(news: HeartbeatNews | undefined) {
    if (!news) return;
    this.#last = news;
    const { log, publish } = this.#options;
    const { status, reason } = news;
    if (status === "failed") log.warn("a heartbeat failed", { reason });
    else log.debug("heartbeat", { status, reason });
    publish(news);
  }
}

function reasonOf({ status, error, stopReason }: RunOutcome): string {
  return status === "aborted" ? `aborted (${stopReason})` : error ?? "the run failed";
}

function beginningOf(text: string): string {
  return text.length > PREVIEW_CHARS ? `${text.slice(0, PREVIEW_CHARS - 1)}…` : text;
}

function afterTimeout(ms: number, wake: () => void): () => void {
  const timer = setTimeout(wake, ms);
  return () => clearTimeout(timer);
}
