// Runs: a message comes in, a model answers it with the help of tools, and everybody who listens hears
// how it goes (§7.3, §8.2, §8.3). One run per session at a time; what was accepted survives a crash.

import type { StatementSync } from "node:sqlite";
import type { Log } from "../../config/log.ts";
import { RpcError } from "../../rpc/error.ts";
import type { Address, OutgoingMessage } from "../channels/channel.ts";
import type { CurrentConfig } from "../gateway.ts";
import type { Message, MessagePart, Sessions, ToolCallPart } from "../sessions.ts";
import type { Store } from "../store.ts";
import type { SystemEvents } from "../system_events.ts";
import type { Audience } from "./audience.ts";
import { type Command, type CommandCall, NO_MODEL, readCommand } from "./builtin.ts";
import { type AgentModel, ModelError, type Turn, type TurnPart } from "./model.ts";
import { contentOf, conversation, hasOldImages, systemPrompt, withoutOldImages } from "./prompt.ts";
import { type Quiet, worthSaying } from "./quiet.ts";
import { type Ending, RunNews } from "./run_news.ts";
import type { AgentTool, GatewayCall, ToolContext, ToolResult } from "./tools.ts";

/** Who caused a run, as far as it matters for what the run may do. */
export interface RunOrigin {
  kind: "operator" | "channel" | "node" | "cron" | "hook" | "http";
  /** Whether it may give owner commands and reach nodes (D21). */
  isOwner: boolean;
  /** Whether it may answer approval questions; as {@link isOwner} unless it says otherwise. */
  mayApprove?: boolean;
  /** The chat it came from. */
  address?: Address;
  senderName?: string;
  /** Whom the audit trail names, and whose approvals count. */
  callerName?: string;
}

export interface RunRequest {
  /** Unique; the idempotency key of the request that started it. */
  runId: string;
  /** As it was sent, in any of its forms. */
  sessionKey: string;
  message: string;
  /** `content` is base64 without a `data:` prefix. */
  images?: readonly { mimeType: string; content: string }[];
  origin: RunOrigin;
  /** From the moment it begins to work; 600 000 unless given. */
  timeoutMs?: number;
  thinking?: string;
  extraSystemPrompt?: string;
  /** `<provider>/<model>`, in place of the session's. */
  model?: string;
  /** Where the reply goes when the run ends. */
  deliverTo?: Address;
  /** Message of the service that the reply answers. */
  replyTo?: string;
  /** How many sessions have passed it on to another one. */
  hops?: number;
  /** Nobody has asked: the reply is delivered only where it says something. */
  quiet?: Quiet;
  /** Which session is told what came of it, where no chat was told. */
  report?: Report;
}

/** How a session hears of a run of another one. */
export interface Report {
  sessionKey: string;
  /** Who has something to report. */
  title: string;
  /** Whether the session is to look at it at once. */
  isUrgent: boolean;
}

/** Why a run was ended from outside (`stopReason` of §8.3). */
export type AbortReason = "rpc" | "stop" | "timeout" | "EMERGENCY PANIC";

export interface RunOutcome {
  status: "ok" | "error" | "aborted";
  /** The last thing the agent said; "" for nothing. */
  text: string;
  /** Everything it said, one entry a message; the last is `text`. */
  texts: readonly string[];
  /** Pictures that tools brought, as `data:` URLs. */
  media?: readonly { url: string; mimeType?: string; fileName?: string }[];
  error?: string;
  usage?: { inputTokens: number; outputTokens: number };
  /** Of the model; of an aborted run the {@link AbortReason}. */
  stopReason?: string;
  startedAtMs?: number;
  endedAtMs: number;
}

/** A run from outside. */
export interface Run {
  readonly runId: string;
  /** As it was sent. */
  readonly sessionKey: string;
  /** Canonical. */
  readonly key: string;
  /** False for a run that was known already: nothing was started. */
  readonly isNew: boolean;
  /** Of a run that had ended when it was asked for. */
  readonly outcome?: RunOutcome;
  /** Never rejects. */
  readonly done: Promise<RunOutcome>;
}

/** Which models to ask: the first, then its fallbacks; none = the built-in agent answers. */
export interface ModelSource {
  pick(wanted: { agentId: string; sessionModel?: string }): AgentModel[];
}

/**
 * Where replies leave. Called within the transaction that ends the run: durable with it or not at
 * all; an equal `key` is taken once.
 */
export interface ReplyPort {
  enqueue(to: Address, message: OutgoingMessage, key: string): void;
}

export interface RunsOptions {
  store: Store;
  sessions: Sessions;
  config: CurrentConfig;
  systemEvents: SystemEvents;
  audience: Audience;
  models: ModelSource;
  tools: readonly AgentTool[];
  commands: readonly Command[];
  callGateway: GatewayCall;
  /** Has an agent look at what its main session is to be told. */
  wake?(agentId: string): void;
  /** Asked for when a run has something to say in a chat. */
  replies(): ReplyPort | undefined;
  /** Of the gateway, as the agent tells it. */
  version: string;
  log: Log;
}

/** Beyond it a session takes no more, until a run has ended. */
const MAX_WAITING = 50;
/** How long the outcome of a run is known (§7.3). */
const KEPT_MS = 600_000;
/** Turns of the model in one run. */
const MAX_STEPS = 40;
/** A run that was there each time the process died is left alone after so many. */
const MAX_ATTEMPTS = 3;
/** What a model may say in one run, in characters. */
const MAX_TEXT = 2_000_000;
/** Of one result, for the model and for listeners. */
const MAX_RESULT = 60_000;
/** Tools that a model may ask for in one message. */
const MAX_CALLS = 100;
/** Of what another session is told, in characters. */
const MAX_REPORT = 2_000;
const MAX_MEDIA = 10;
/** A model that answers faster than the loop turns must not keep everybody else waiting. */
const MAX_BUSY_MS = 10;
const MAX_TIMEOUT_MS = 86_400_000;
const DEFAULT_TIMEOUT_SECONDS = 600;
/** What a model is told of a conversation; of its images as many of the last ones. */
const HISTORY = { limit: 400, maxBytes: 2_000_000, maxImageBytes: 6_000_000 };

const INTERRUPTED =
  "I was interrupted while working on your last message, and some of it may have been done. " +
  "Please look before you ask again.";

/** One run, from its acceptance to its end. */
class LiveRun {
  readonly stopper = new AbortController();
  readonly finished = Promise.withResolvers<RunOutcome>();
  news?: RunNews;
  startedAtMs?: number;
  timer?: ReturnType<typeof setTimeout>;
  /** The transcript it writes to, also when the session is begun anew meanwhile. */
  sessionId?: string;
  /** Of the message the model is at. */
  said = "";
  readonly texts: string[] = [];
  readonly media: { url: string; mimeType: string }[] = [];
  usage?: { inputTokens: number; outputTokens: number };
  /** In the transcript, and without a result. */
  openCalls: ToolCallPart[] = [];
  hasUsedTools = false;
  /** Events the session is told of with this message. */
  eventsUpTo = 0;
  /** Which of the models answers. */
  modelAt = 0;
  /** A provider has refused the conversation with the images of earlier messages. */
  hidesOldImages = false;
  hasBegun = false;
  isOver = false;

  constructor(
    readonly request: RunRequest,
    readonly key: string,
    readonly agentId: string,
    /** Begins without waiting for others. */
    readonly isImmediate: boolean,
    /** Its message is part of the conversation. */
    readonly isRecorded: boolean,
    readonly attempts: number,
  ) {}

  get seen(): Omit<Run, "isNew" | "outcome"> {
    const { request: { runId, sessionKey }, key, finished: { promise: done } } = this;
    return { runId, sessionKey, key, done };
  }
}

/** How the work of a run came out. */
interface Finish {
  text: string;
  stopReason?: string;
  /** Where the text is no part of the transcript yet. */
  model?: string;
  usage?: { inputTokens: number; outputTokens: number };
}

interface Tokens {
  inputTokens: number;
  outputTokens: number;
}

/** One message of a model. */
interface Said {
  text: string;
  calls: Extract<TurnPart, { type: "toolCall" }>[];
  stopReason: string;
  usage?: { inputTokens: number; outputTokens: number };
  model: AgentModel;
}

export class Runs implements AsyncDisposable {
  readonly #options: RunsOptions;
  /** Everything that has not ended, by run id. */
  readonly #live = new Map<string, LiveRun>();
  /** By canonical key; the first one works, the others wait. */
  readonly #lanes = new Map<string, LiveRun[]>();
  readonly #working = new Set<Promise<void>>();
  /** Who waits for the end of a run, by run id. */
  readonly #waiters = new Map<string, Set<(outcome: RunOutcome) => void>>();
  /** Turns of the event loop that are yet to begin something. */
  readonly #starts = new Set<ReturnType<typeof setTimeout>>();
  readonly #add: StatementSync;
  readonly #begun: StatementSync;
  readonly #usedTools: StatementSync;
  readonly #ended: StatementSync;
  readonly #prune: StatementSync;
  readonly #byId: StatementSync;
  readonly #unended: StatementSync;
  #isStopping = false;

  constructor(options: RunsOptions) {
    this.#options = options;
    const { store } = options;
    this.#add = store.prepare(
      `INSERT INTO runs (run_id, session_key, request, state, attempts, has_used_tools, accepted_at_ms)
       VALUES (?, ?, ?, 'accepted', 0, 0, ?)`,
    );
    this.#begun = store.prepare(
      "UPDATE runs SET state = 'running', attempts = attempts + 1 WHERE run_id = ?",
    );
    this.#usedTools = store.prepare("UPDATE runs SET has_used_tools = 1 WHERE run_id = ?");
    this.#ended = store.prepare(
      `UPDATE runs SET state = 'done', request = '', outcome = ?, ended_at_ms = ?
       WHERE run_id = ?`,
    );
    this.#prune = store.prepare("DELETE FROM runs WHERE ended_at_ms < ?");
    this.#byId = store.prepare(
      "SELECT session_key, outcome FROM runs WHERE run_id = ? AND state = 'done'",
    );
    this.#unended = store.prepare(
      `SELECT run_id, request, state, attempts, has_used_tools FROM runs
       WHERE state IN ('accepted', 'running') ORDER BY run_row`,
    );
  }

  /**
   * Takes a message: durable when it returns, also as part of a transaction around it. It runs when
   * the runs before it in its session have ended; a few commands (`/stop`, `/approve`) at once.
   *
   * @throws {RpcError} too many wait in this session
   */
  start(request: RunRequest): Run {
    const known = this.find(request.runId);
    if (known) return known;
    if (this.#isStopping) throw new RpcError("UNAVAILABLE", "gateway stopping");
    const { store, sessions } = this.#options;
    const { key } = sessions.canonicalKey(request.sessionKey);
    const waiting = (this.#lanes.get(key)?.length ?? 0) - 1;
    const run = this.#accept(request, 0);
    if (!run.isImmediate && waiting >= MAX_WAITING) {
      throw new RpcError("UNAVAILABLE", "too many messages wait in this session", {
        details: { code: "SESSION_BUSY", waiting, fix: "Wait for an answer, or send /stop" },
        retryable: true,
        retryAfterMs: 5_000,
      });
    }
    store.transaction(() => {
      this.#prune.run(Date.now() - KEPT_MS);
      this.#add.run(request.runId, key, JSON.stringify(request), Date.now());
      store.afterCommit(() => this.#enqueue(run));
    });
    return { ...run.seen, isNew: true };
  }

  /** A run that waits, works or ended within the last 600 s. */
  find(runId: string): Run | undefined {
    const live = this.#live.get(runId);
    if (live) return { ...live.seen, isNew: false };
    const row = this.#byId.get(runId);
    if (!row) return undefined;
    const key = String(row.session_key);
    const outcome = JSON.parse(String(row.outcome)) as RunOutcome;
    if (outcome.endedAtMs < Date.now() - KEPT_MS) return undefined;
    return { runId, sessionKey: key, key, isNew: false, outcome, done: Promise.resolve(outcome) };
  }

  /**
   * The end of a run, also of one that is yet to be accepted.
   *
   * @returns undefined when it did not come within the time
   */
  async end(runId: string, timeoutMs: number): Promise<RunOutcome | undefined> {
    const row = this.#live.has(runId) ? undefined : this.find(runId);
    if (row) return await row.done;
    if (timeoutMs <= 0) return undefined;
    const waiters = this.#waiters.get(runId) ?? new Set();
    this.#waiters.set(runId, waiters);
    const { promise, resolve } = Promise.withResolvers<RunOutcome | undefined>();
    waiters.add(resolve);
    const timer = setTimeout(() => resolve(undefined), Math.min(timeoutMs, MAX_TIMEOUT_MS));
    this.#starts.add(timer);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#starts.delete(timer);
      waiters.delete(resolve);
      if (waiters.size === 0) this.#waiters.delete(runId);
    }
  }

  /** Whether something runs or waits in this session. */
  isBusy(sessionKey: string): boolean {
    return this.#lanes.has(this.#options.sessions.canonicalKey(sessionKey).key);
  }

  /** Runs that wait or work, in all sessions. */
  get size(): number {
    return this.#live.size;
  }

  /**
   * Ends what runs and waits in a session, or one run of it.
   *
   * @returns the ids of the runs that were ended
   * @throws {RpcError} "runId does not match sessionKey"
   */
  abort(
    { sessionKey, runId }: { sessionKey: string; runId?: string },
    reason: AbortReason,
  ): string[] {
    const { key } = this.#options.sessions.canonicalKey(sessionKey);
    if (runId !== undefined) {
      const run = this.#live.get(runId);
      if (!run) return [];
      if (run.key !== key) throw new RpcError("INVALID_REQUEST", "runId does not match sessionKey");
      this.#abort(run, reason);
      return [runId];
    }
    // The one that works last: else the next one would begin, only to be ended.
    const runs = [...this.#lanes.get(key) ?? []].reverse();
    for (const run of runs) this.#abort(run, reason);
    return runs.map(({ request }) => request.runId).reverse();
  }

  /** @returns how many runs were ended */
  abortAll(reason: AbortReason): number {
    const runs = [...this.#live.values()].reverse();
    for (const run of runs) this.#abort(run, reason);
    return runs.length;
  }

  /**
   * Goes on with what was accepted before the process died; to be called once, when all is built. What
   * had not begun runs, and so does what had not used a tool. The rest ends, and its chat is told once.
   */
  recover() {
    for (const row of this.#unended.all()) {
      if (this.#live.has(String(row.run_id))) continue;
      const request = JSON.parse(String(row.request)) as RunRequest;
      const attempts = Number(row.attempts);
      const run = this.#accept(request, attempts);
      const isUnsafe = row.state === "running" && (row.has_used_tools || attempts >= MAX_ATTEMPTS);
      if (isUnsafe) this.#giveUp(run);
      else this.#enqueue(run);
    }
  }

  /** What has not ended by now goes on after the next start. */
  async [Symbol.asyncDispose]() {
    this.#isStopping = true;
    for (const timer of this.#starts) clearTimeout(timer);
    for (const run of this.#live.values()) {
      run.isOver = true;
      clearTimeout(run.timer);
      run.news?.[Symbol.dispose]();
      run.stopper.abort(new Error("gateway stopping"));
      const endedAtMs = Date.now();
      this.#settle(run, {
        status: "error",
        text: "",
        texts: [],
        error: "gateway stopping",
        endedAtMs,
      });
    }
    for (const waiters of this.#waiters.values()) {
      for (const resolve of waiters) {
        resolve({ status: "error", text: "", texts: [], error: "gateway stopping", endedAtMs: 0 });
      }
    }
    await Promise.all(this.#working);
  }

  #accept(request: RunRequest, attempts: number): LiveRun {
    const { key, agentId } = this.#options.sessions.canonicalKey(request.sessionKey);
    const command = readCommand(request.message, this.#options.commands);
    const isBusy = this.#lanes.has(key);
    const isImmediate = command?.command.waits === "never" ||
      (command?.command.waits === "unless-busy" && isBusy);
    return new LiveRun(request, key, agentId, isImmediate, !isImmediate, attempts);
  }

  /** In its own turn of the event loop: whoever started it answers first. */
  #enqueue(run: LiveRun) {
    this.#live.set(run.request.runId, run);
    if (!run.isImmediate) {
      const lane = this.#lanes.get(run.key);
      if (lane) return void lane.push(run);
      this.#lanes.set(run.key, [run]);
    }
    const timer = setTimeout(() => {
      this.#starts.delete(timer);
      if (!run.isOver) this.#begin(run);
    });
    this.#starts.add(timer);
  }

  #begin(run: LiveRun) {
    if (run.hasBegun) return;
    const { request, key } = run;
    const { store, sessions, audience, log } = this.#options;
    run.hasBegun = true;
    run.startedAtMs = Date.now();
    run.timer = setTimeout(() => this.#abort(run, "timeout"), this.#timeoutOf(request));
    let obstacle: unknown;
    try {
      store.transaction(() => {
        this.#begun.run(request.runId);
        if (run.isRecorded) run.sessionId = this.#record(run);
      });
    } catch (error) {
      obstacle = error;
      log.error("a run could not begin", { runId: request.runId, error: String(error) });
    }
    const { verboseLevel } = sessions.get(key)?.entry ?? {};
    run.news = new RunNews({
      runId: request.runId,
      sessionKey: request.sessionKey,
      key,
      isVerbose: verboseLevel !== undefined && verboseLevel !== "off",
      audience,
    });
    run.news.started(run.startedAtMs);
    const working = obstacle === undefined ? this.#work(run) : Promise.reject(obstacle);
    const work = working.then(
      (finish) => this.#finish(run, finish),
      (error) => this.#fail(run, error),
    ).finally(() => this.#working.delete(work));
    this.#working.add(work);
  }

  /** The message becomes part of the conversation. @returns the id of the transcript */
  #record({ request, key, attempts }: LiveRun): string {
    const { sessions } = this.#options;
    const { deliverTo } = request;
    const { entry } = sessions.ensure(key, {
      ...(deliverTo && { deliveryContext: deliverTo, channel: deliverTo.channel }),
    });
    // An attempt before this one has written it down.
    if (attempts > 0) return entry.sessionId;
    return sessions.append(key, {
      role: "user",
      content: contentOf(request),
      timestamp: Date.now(),
      ...senderOf(request),
    }).sessionId;
  }

  async #work(run: LiveRun): Promise<Finish> {
    const { request, key, agentId } = run;
    const { commands, models, sessions } = this.#options;
    const found = readCommand(request.message, commands);
    if (found) return await this.#command(run, found.command, found.rest);
    const chosen = models.pick({
      agentId,
      sessionModel: request.model ?? sessions.get(key)?.entry.model,
    });
    if (chosen.length === 0) {
      run.news!.says(NO_MODEL);
      return { text: NO_MODEL };
    }
    return await this.#converse(run, chosen);
  }

  async #command(run: LiveRun, command: Command, rest: string): Promise<Finish> {
    const { request: { origin, runId, sessionKey }, key } = run;
    const { sessions } = this.#options;
    const call: CommandCall = {
      rest,
      origin,
      sessionKey: key,
      isGroup: /:(group|channel):/.test(key),
      use: async (name, args) => {
        const id = crypto.randomUUID();
        return await this.#useTool(run, { type: "toolCall", id, name, args });
      },
      gateway: (method, params) =>
        this.#options.callGateway(method, params, this.#contextOf(run, () => {})),
      stop: () => this.abort({ sessionKey }, "stop").filter((id) => id !== runId).length,
      reset: () => void sessions.reset(key),
      lastReply: () => lastReply(sessions.history(key, { ...HISTORY, maxImageBytes: 0 }).messages),
    };
    const text = command.isOwnerOnly && !origin.isOwner
      ? `/${command.name} is for the owner of this gateway.`
      : await orAborted(command.run(call), run.stopper.signal);
    run.news?.says(text);
    return { text };
  }

  /** Model, tools, model, … until the model has nothing more to ask for. */
  async #converse(run: LiveRun, models: AgentModel[]): Promise<Finish> {
    const { request, key, agentId } = run;
    const { sessions, systemEvents, config, version } = this.#options;
    // What happened on the owner's machines is not for others to hear, nor to be heard away by them.
    const { events, upTo } = request.origin.isOwner
      ? systemEvents.pending(key)
      : { events: [], upTo: 0 };
    run.eventsUpTo = upTo;
    const tools = this.#options.tools.filter((tool) => this.#isOffered(tool, run));
    const messages = conversation(sessions.history(key, HISTORY).messages, { request, events });
    const system = systemPrompt({
      config: config.reading.config,
      agentId,
      request,
      version,
      hasTools: tools.length > 0,
      now: new Date(),
    });
    const thinking = request.thinking ?? sessions.get(key)?.entry.thinkingLevel;
    for (let step = 0; step < MAX_STEPS; step++) {
      const shown = run.hidesOldImages ? withoutOldImages(messages) : messages;
      const turn = { system, messages: shown, tools, thinking, signal: run.stopper.signal };
      const said = await this.#ask(run, models, turn);
      run.stopper.signal.throwIfAborted();
      if (said.calls.length === 0) {
        const { text, stopReason, usage, model } = said;
        return { text, stopReason, usage, model: model.id };
      }
      messages.push(this.#recordCalls(run, said));
      if (said.text !== "") run.texts.push(said.text);
      run.said = "";
      run.news!.turns();
      for (const call of said.calls) {
        const result = await this.#useTool(run, call);
        run.stopper.signal.throwIfAborted();
        const message = resultMessage(call, result);
        run.openCalls = run.openCalls.filter(({ id }) => id !== call.id);
        sessions.append(key, message, { sessionId: run.sessionId });
        messages.push(message);
      }
    }
    throw new RpcError("UNAVAILABLE", `it is not done after ${MAX_STEPS} steps`, {
      details: { fix: "Ask for less at a time" },
    });
  }

  /** One message of the first model that gives one; who has begun to speak is not talked over. */
  async #ask(run: LiveRun, models: AgentModel[], turn: Turn) {
    for (;;) {
      const model = models[run.modelAt];
      try {
        return await this.#listen(run, model, turn);
      } catch (error) {
        if (!(error instanceof ModelError) || run.said !== "" || run.isOver) throw error;
        // An image that no provider takes must not spoil the conversation for good.
        if (error.kind === "badRequest" && hasOldImages(turn.messages)) {
          run.hidesOldImages = true;
          turn = { ...turn, messages: withoutOldImages(turn.messages) };
          continue;
        }
        if (!error.isTransient || run.modelAt + 1 >= models.length) throw error;
        this.#options.log.warn("a model failed; asking the next", {
          runId: run.request.runId,
          model: model.id,
          next: models[run.modelAt + 1].id,
          error: error.message,
        });
        run.modelAt++;
      }
    }
  }

  async #listen(run: LiveRun, model: AgentModel, turn: Turn): Promise<Said> {
    const { signal } = run.stopper;
    const calls: Said["calls"] = [];
    let usage: Said["usage"];
    let stopReason: string | undefined;
    let length = 0;
    let turnedAtMs = performance.now();
    const parts = model.respond(turn)[Symbol.asyncIterator]();
    try {
      while (stopReason === undefined) {
        const { done, value: part } = await orAborted(parts.next(), signal);
        signal.throwIfAborted();
        if (done) break;
        switch (part.type) {
          case "text":
            length += part.delta.length;
            if (length > MAX_TEXT) throw tooLong(model);
            run.said += part.delta;
            run.news!.says(part.delta);
            break;
          case "toolCall":
            length += JSON.stringify(part.args).length;
            if (length > MAX_TEXT || calls.length >= MAX_CALLS) throw tooLong(model);
            calls.push(part);
            break;
          case "usage":
            usage = part;
            break;
          case "end":
            stopReason = part.stopReason;
        }
        if (performance.now() - turnedAtMs < MAX_BUSY_MS) continue;
        await turnOfLoop();
        turnedAtMs = performance.now();
      }
    } finally {
      // One that hangs is left behind: the signal is all it can be told.
      parts.return?.()?.catch(() => {});
      // What was used is to be paid for, also where the turn came to nothing.
      if (usage) this.#spend(run, model, usage);
    }
    signal.throwIfAborted();
    return { text: run.said, calls, stopReason: stopReason ?? "other", usage, model };
  }

  #spend(run: LiveRun, model: AgentModel, { inputTokens, outputTokens }: Tokens) {
    run.usage = {
      inputTokens: (run.usage?.inputTokens ?? 0) + inputTokens,
      outputTokens: (run.usage?.outputTokens ?? 0) + outputTokens,
    };
    this.#options.sessions.recordUsage(run.key, {
      inputTokens,
      outputTokens,
      model: model.id,
      contextTokens: model.contextTokens,
    }, { sessionId: run.sessionId });
  }

  /** From here on nothing of this run may be done again by itself. */
  #recordCalls(run: LiveRun, { text, calls, usage, model }: Said): Message {
    const { store, sessions } = this.#options;
    const parts = calls.map(({ id, name, args }): ToolCallPart => ({
      type: "toolCall",
      id,
      name,
      arguments: args,
    }));
    const message: Message = {
      role: "assistant",
      content: [...text === "" ? [] : [{ type: "text" as const, text }], ...parts],
      timestamp: Date.now(),
      stopReason: "toolUse",
      ...(usage && { usage: usageOf(usage) }),
      model: model.id,
    };
    store.transaction(() => {
      this.#markTools(run);
      sessions.append(run.key, message, { sessionId: run.sessionId });
    });
    run.openCalls = parts;
    return message;
  }

  #markTools(run: LiveRun) {
    if (run.hasUsedTools) return;
    this.#usedTools.run(run.request.runId);
    run.hasUsedTools = true;
  }

  /** What goes wrong is told to whoever asked for it; only an abort passes through. */
  async #useTool(
    run: LiveRun,
    { id, name, args, problem }: Extract<TurnPart, { type: "toolCall" }>,
  ): Promise<ToolResult> {
    const { stopper: { signal }, news } = run;
    signal.throwIfAborted();
    this.#markTools(run);
    const tool = this.#options.tools.find((one) => one.name === name);
    news!.toolStarted(name, id, args);
    let result: ToolResult;
    if (!tool || !this.#isOffered(tool, run)) {
      result = { text: `there is no tool ${name} here`, isError: true };
    } else if (problem !== undefined) {
      result = { text: `${name} was not run: ${problem}`, isError: true };
    } else {
      const update = (partial: unknown) => {
        if (!run.isOver) news!.toolUpdated(name, id, partial);
      };
      try {
        const working = tool.run(args, this.#contextOf(run, update));
        result = await orAborted(working, signal);
      } catch (error) {
        signal.throwIfAborted();
        result = this.#toolFailure(name, error);
      }
      signal.throwIfAborted();
    }
    const text = shortened(result.text);
    for (const { mimeType, content } of result.images ?? []) {
      if (run.media.length >= MAX_MEDIA) break;
      run.media.push({ mimeType, url: `data:${mimeType};base64,${content}` });
    }
    news!.toolEnded(name, id, { text, isError: result.isError === true });
    return { ...result, text };
  }

  #toolFailure(name: string, error: unknown): ToolResult {
    if (error instanceof RpcError) {
      return { text: `${name} failed: ${error.message}${noteOf(error.details)}`, isError: true };
    }
    const id = crypto.randomUUID();
    const text = error instanceof Error ? error.stack ?? error.message : String(error);
    this.#options.log.error("a tool failed", { id, tool: name, error: text });
    return { text: `${name} failed inside the gateway (id ${id})`, isError: true };
  }

  #isOffered(tool: AgentTool, { request: { origin } }: LiveRun): boolean {
    return (origin.isOwner || !tool.isOwnerOnly) && (tool.isThere?.() ?? true);
  }

  #contextOf(
    { request, key, agentId, stopper: { signal }, finished }: LiveRun,
    update: (partialResult: unknown) => void,
  ): ToolContext {
    const { runId, origin, deliverTo, hops = 0 } = request;
    const ended = finished.promise.then(() => {});
    return {
      runId,
      sessionKey: key,
      agentId,
      origin,
      deliverTo,
      hops,
      signal,
      ended,
      update,
      say: (message, name) => this.#deliver(request, message, name),
    };
  }

  #finish(run: LiveRun, { text, stopReason, model, usage }: Finish) {
    if (text !== "") run.texts.push(text);
    this.#end(
      run,
      { status: "ok", text: run.texts.at(-1) ?? "", stopReason },
      {
        state: "final",
        text,
        ...(run.usage && { usage: usageOf(run.usage) }),
        stopReason,
      },
      text === "" ? undefined : {
        role: "assistant",
        content: [{ type: "text", text }],
        timestamp: Date.now(),
        ...(stopReason && { stopReason }),
        ...(usage && { usage: usageOf(usage) }),
        ...(model && { model }),
      },
    );
  }

  #fail(run: LiveRun, error: unknown) {
    if (run.isOver) return;
    const message = this.#explain(run, error);
    this.#end(
      run,
      { status: "error", text: "", error: message },
      { state: "error", error: message },
      saidUntil(run, "error"),
    );
  }

  #explain({ request: { runId } }: LiveRun, error: unknown): string {
    const { log } = this.#options;
    if (error instanceof ModelError) {
      log.warn("a run failed", { runId, kind: error.kind, error: error.message, fix: error.fix });
      return `${error.message}. ${fixOf(error.fix)}`;
    }
    if (error instanceof RpcError) return `${error.message}${noteOf(error.details)}`;
    const id = crypto.randomUUID();
    const text = error instanceof Error ? error.stack ?? error.message : String(error);
    log.error("a run failed", { id, runId, error: text });
    return `internal error (id ${id})`;
  }

  #abort(run: LiveRun, reason: AbortReason) {
    if (run.isOver) return;
    const text = run.said;
    if (text !== "") run.texts.push(text);
    this.#end(
      run,
      { status: "aborted", text, stopReason: reason },
      { state: "aborted", reason },
      saidUntil(run, "aborted"),
    );
  }

  /** Once for each run: the transcript, the outcome and the reply change together. */
  #end(
    run: LiveRun,
    came: Pick<RunOutcome, "status" | "text" | "error" | "stopReason">,
    ending: Ending,
    last?: Message,
  ) {
    if (run.isOver) return;
    run.isOver = true;
    clearTimeout(run.timer);
    const { request: { runId }, key, startedAtMs } = run;
    const { store, log } = this.#options;
    const outcome: RunOutcome = {
      ...came,
      texts: run.texts,
      ...(run.media.length > 0 && { media: run.media }),
      ...(run.usage && { usage: run.usage }),
      startedAtMs,
      endedAtMs: Date.now(),
    };
    try {
      store.transaction(() => {
        this.#close(run, outcome, last);
      });
    } catch (error) {
      log.error("the end of a run could not be kept", { runId, error: String(error) });
    }
    run.stopper.abort(new Error(`the run has ended: ${came.status}`));
    run.news ??= new RunNews({ ...run.request, key, isVerbose: false, ...this.#options });
    run.news.ended(ending, outcome.endedAtMs);
    this.#live.delete(runId);
    this.#settle(run, outcome);
    if (!run.isImmediate) this.#advance(run);
  }

  /** The part of an end that must last. */
  #close(run: LiveRun, outcome: RunOutcome, last: Message | undefined) {
    const { request, key } = run;
    const { sessions, systemEvents } = this.#options;
    if (run.isRecorded && run.sessionId !== undefined) {
      for (const { id, name } of run.openCalls) {
        const result = { text: "it was stopped, and may have been done in part", isError: true };
        const message = resultMessage({ id, name }, result);
        sessions.append(key, message, { sessionId: run.sessionId });
      }
      if (last) sessions.append(key, last, { sessionId: run.sessionId });
      const abortedLastRun = outcome.status === "aborted";
      if (sessions.get(key)?.entry.abortedLastRun !== abortedLastRun && abortedLastRun) {
        sessions.ensure(key, { abortedLastRun });
      }
    }
    if (outcome.status === "ok" && run.eventsUpTo > 0) systemEvents.clear(key, run.eventsUpTo);
    const { media: _, ...kept } = outcome;
    this.#ended.run(JSON.stringify(kept), outcome.endedAtMs, request.runId);
    const reply = replyOf(outcome, request);
    if (reply) this.#deliver(request, reply, "reply");
    if (request.report && !request.deliverTo) this.#report(request.report, outcome, request.quiet);
  }

  #report({ sessionKey, title, isUrgent }: Report, outcome: RunOutcome, quiet?: Quiet) {
    const { store, systemEvents, sessions } = this.#options;
    const { status, text, error = status } = outcome;
    const words = status === "ok" ? (quiet ? worthSaying(text, quiet) : text) : `failed: ${error}`;
    if (words === "") return;
    const { key, agentId } = sessions.canonicalKey(sessionKey);
    systemEvents.enqueue(key, `${title}: ${words.slice(0, MAX_REPORT)}`);
    if (isUrgent) store.afterCommit(() => this.#options.wake?.(agentId));
  }

  /** Part of the change around it. A chat that takes nothing any more does not undo the run. */
  #deliver({ runId, deliverTo }: RunRequest, message: OutgoingMessage, name: string) {
    if (!deliverTo) return;
    try {
      this.#options.replies()?.enqueue(deliverTo, message, `${runId}:${name}`);
    } catch (error) {
      // A disk that is full undoes the end of the run: it comes again after the next start.
      if ((error as { code?: unknown }).code === "ERR_SQLITE_ERROR") throw error;
      this.#options.log.warn("a chat could not be told", { runId, error: String(error) });
    }
  }

  /** The next of the session begins. */
  #advance(run: LiveRun) {
    const lane = this.#lanes.get(run.key)?.filter((one) => one !== run) ?? [];
    if (lane.length === 0) return void this.#lanes.delete(run.key);
    this.#lanes.set(run.key, lane);
    if (!lane[0].hasBegun) this.#begin(lane[0]);
  }

  /** What was cut off in the middle of something ends, and says so. */
  #giveUp(run: LiveRun) {
    const { request, key } = run;
    const { store, sessions, log } = this.#options;
    log.warn("a run was interrupted", { runId: request.runId, sessionKey: key });
    const outcome: RunOutcome = {
      status: "error",
      text: "",
      texts: [],
      error: "interrupted by a restart of the gateway",
      endedAtMs: Date.now(),
    };
    store.transaction(() => {
      if (run.isRecorded) {
        sessions.append(key, {
          role: "assistant",
          content: [{ type: "text", text: INTERRUPTED }],
          timestamp: Date.now(),
          stopReason: "interrupted",
        });
      }
      this.#ended.run(JSON.stringify(outcome), outcome.endedAtMs, request.runId);
      if (!request.quiet?.failuresToo) {
        this.#deliver(request, {
          text: INTERRUPTED,
          replyTo: request.replyTo,
          isNotice: true,
        }, "reply");
      }
      if (request.report && !request.deliverTo) this.#report(request.report, outcome);
    });
    this.#settle(run, outcome);
  }

  #settle(run: LiveRun, outcome: RunOutcome) {
    run.finished.resolve(outcome);
    for (const resolve of this.#waiters.get(run.request.runId) ?? []) resolve(outcome);
  }

  #timeoutOf({ timeoutMs }: RunRequest): number {
    const { agents } = this.#options.config.reading.config;
    const seconds = agents?.defaults?.timeoutSeconds ?? DEFAULT_TIMEOUT_SECONDS;
    return Math.min(timeoutMs || seconds * 1_000, MAX_TIMEOUT_MS);
  }
}

/** What the chat is told at the end; undefined: nothing. */
function replyOf(
  { status, text, error, stopReason, media }: RunOutcome,
  { origin, replyTo, quiet }: RunRequest,
): OutgoingMessage | undefined {
  const say = (words: string) => ({ text: words, media, replyTo, ifUnsure: "tell" as const });
  if (quiet && status === "ok") {
    const words = worthSaying(text, quiet);
    return words === "" && !media ? undefined : say(words);
  }
  if (quiet?.failuresToo) return undefined;
  switch (status) {
    case "ok":
      return say(text === "" && !media ? "I have nothing to say to that." : text);
    case "error":
      return say(
        origin.isOwner
          ? `I could not do that: ${error}`
          : "I could not do that just now. The owner of this gateway finds the reason in its log.",
      );
    case "aborted":
      // Whoever says stop is answered by that command.
      if (stopReason === "stop") return undefined;
      return say(stopReason === "timeout" ? "I took too long, and was stopped." : "I was stopped.");
  }
}

function resultMessage(
  { id, name }: { id: string; name: string },
  { text, images = [], isError }: ToolResult,
): Message {
  return {
    role: "toolResult",
    content: [
      { type: "text", text },
      ...images.map(({ mimeType, content }): MessagePart => ({
        type: "image",
        mimeType,
        data: content,
      })),
    ],
    timestamp: Date.now(),
    toolCallId: id,
    toolName: name,
    ...(isError && { isError }),
  };
}

/** What a run was cut off in the middle of saying, for the transcript. */
function saidUntil({ said, isRecorded }: LiveRun, stopReason: string): Message | undefined {
  if (said === "" || !isRecorded) return undefined;
  const content = [{ type: "text" as const, text: said }];
  return { role: "assistant", content, timestamp: Date.now(), stopReason };
}

/** Who wrote a message, where that is not plainly the owner at the gateway's own client. */
function senderOf({ origin, hops }: RunRequest): Pick<Message, "sender"> {
  const { kind, isOwner, senderName, callerName } = origin;
  if (kind === "operator" && !hops) return {};
  const name = senderName ?? (kind === "node" ? callerName : undefined);
  return { sender: { kind: hops ? "session" : kind, ...(name && { name }), isOwner } };
}

function usageOf({ inputTokens, outputTokens }: Tokens) {
  return { inputTokens, outputTokens, totalTokens: inputTokens + outputTokens };
}

function lastReply(messages: readonly Message[]): string | undefined {
  for (const { role, content } of messages.toReversed()) {
    const text = content.flatMap((part) => part.type === "text" ? [part.text] : []).join("\n");
    if (role === "assistant" && text !== "") return text;
  }
}

/** What else is worth knowing of a refusal: whether it may have been done (D22), and what mends it. */
function noteOf(details: unknown): string {
  const { delivery, fix, reason } = (details ?? {}) as Record<string, unknown>;
  return [
    typeof reason === "string" ? ` (${reason})` : "",
    delivery === "unknown" ? " (it may have been done)" : "",
    typeof fix === "string" ? `. ${fixOf(fix)}` : "",
  ].join("");
}

/** What mends it, as part of what is said to a person. */
function fixOf(fix: string): string {
  return fix.startsWith("zero ") ? `Run this on the gateway's machine: ${fix}` : fix;
}

function shortened(text: string): string {
  if (text.length <= MAX_RESULT) return text;
  return `${text.slice(0, MAX_RESULT)}\n… (${text.length - MAX_RESULT} more characters left out)`;
}

function tooLong({ id }: AgentModel): ModelError {
  return new ModelError(
    "protocol",
    `${id} does not stop talking (${MAX_TEXT} characters)`,
    false,
    "Ask for something shorter, or choose another model",
  );
}

/** Settles as the promise does, or with the abort, whichever comes first. */
function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  if (signal.aborted) {
    promise.catch(() => {});
    return Promise.reject(signal.reason);
  }
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** Everything else that is ready goes first. */
function turnOfLoop(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve));
}
