// What the world hears of one run: `agent` events as things happen, `chat` events for those who only
// want the conversation (§8.2, §8.3). Text is gathered for moments, so that a fast model costs no more
// than a slow one.

import type { Audience } from "./audience.ts";
import type { AbortReason } from "./runs.ts";

/** At most one `chat` delta in this time (§8.3). */
export const CHAT_DELTA_MS = 150;
/** What a model says within this time goes out as one `agent` event. */
const ASSISTANT_MS = 25;
/** Each event has all of the text so far: a long one goes out less often, to cost 4 MB a second. */
const CHARS_PER_MS = 4_000;

export interface RunNewsOptions {
  runId: string;
  /** As it was sent. */
  sessionKey: string;
  /** Canonical. */
  key: string;
  /** Whether clients of protocol 3 hear of tools, too. */
  isVerbose: boolean;
  audience: Audience;
}

/** How a run ended, for its listeners. */
export type Ending =
  | { state: "final"; text: string; usage?: unknown; stopReason?: string }
  | { state: "error"; error: string }
  | { state: "aborted"; reason: AbortReason };

export class RunNews {
  readonly #options: RunNewsOptions;
  #seq = 0;
  #startedAt?: number;
  /** Of the current message of the assistant. */
  #text = "";
  /** The part of it no `agent` event has told. */
  #untold = "";
  #toldAtMs = -Infinity;
  #timer?: ReturnType<typeof setTimeout>;
  /** As of the last `chat` delta. */
  #chatted = "";
  #chattedAtMs = -Infinity;
  #chatTimer?: ReturnType<typeof setTimeout>;
  /** The end was told, or nobody is there any more to tell it to. */
  #isOver = false;

  constructor(options: RunNewsOptions) {
    this.#options = options;
  }

  /** @param startedAt milliseconds since the epoch */
  started(startedAt: number) {
    this.#startedAt = startedAt;
    this.#tell("lifecycle", { phase: "start", startedAt });
  }

  /** The assistant goes on with its message. */
  says(delta: string) {
    if (delta === "" || this.#isOver) return;
    this.#text += delta;
    this.#untold += delta;
    if (this.#timer !== undefined) return;
    const waitMs = this.#toldAtMs + this.#atLeast(ASSISTANT_MS) - performance.now();
    if (waitMs <= 0) return this.#flush();
    this.#timer = setTimeout(() => this.#flush(), waitMs);
  }

  /** What follows is another message of the assistant. */
  turns() {
    this.#flush();
    this.#text = "";
  }

  toolStarted(name: string, toolCallId: string, args: unknown) {
    this.#tool({ phase: "start", name, toolCallId, args });
  }

  toolUpdated(name: string, toolCallId: string, partialResult: unknown) {
    this.#tool({ phase: "update", name, toolCallId, partialResult });
  }

  toolEnded(
    name: string,
    toolCallId: string,
    { text, isError }: { text: string; isError: boolean },
  ) {
    this.#tool({ phase: "result", name, toolCallId, isError, result: text });
  }

  /** The last thing that is said of the run. */
  ended(ending: Ending, endedAt: number) {
    this.#flush();
    this[Symbol.dispose]();
    const times = { ...(this.#startedAt !== undefined && { startedAt: this.#startedAt }), endedAt };
    switch (ending.state) {
      case "final": {
        const { text, usage, stopReason } = ending;
        this.#tell("lifecycle", { phase: "end", ...times });
        return this.#chat({
          state: "final",
          ...(text !== "" && { message: messageOf(text) }),
          ...(usage !== undefined && { usage }),
          ...(stopReason !== undefined && { stopReason }),
        });
      }
      case "error":
        this.#tell("lifecycle", { phase: "error", ...times, error: ending.error });
        return this.#chat({ state: "error", errorMessage: ending.error });
      case "aborted":
        this.#tell("lifecycle", { phase: "end", ...times, aborted: true });
        return this.#chat({ state: "aborted", stopReason: ending.reason });
    }
  }

  [Symbol.dispose]() {
    this.#isOver = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#chatTimer);
  }

  #flush() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#untold === "" || this.#isOver) return;
    const delta = this.#untold;
    this.#untold = "";
    this.#toldAtMs = performance.now();
    this.#tell("assistant", { text: this.#text, delta });
    const waitMs = this.#chattedAtMs + this.#atLeast(CHAT_DELTA_MS) - performance.now();
    if (waitMs <= 0) this.#chatDelta();
    else this.#chatTimer ??= setTimeout(() => this.#chatDelta(), waitMs);
  }

  #atLeast(ms: number): number {
    return Math.max(ms, this.#text.length / CHARS_PER_MS);
  }

  /** The newest text; what was said since the last one is part of it. */
  #chatDelta() {
    clearTimeout(this.#chatTimer);
    this.#chatTimer = undefined;
    const text = this.#text;
    if (text === "" || text === this.#chatted) return;
    const goesOn = text.startsWith(this.#chatted);
    const added = goesOn
      ? { deltaText: text.slice(this.#chatted.length) }
      : { deltaText: text, replace: true };
    this.#chatted = text;
    this.#chattedAtMs = performance.now();
    const message = messageOf(text);
    this.#chat({ state: "delta", message }, { onV4: added, isDroppable: true });
  }

  #tool(data: Record<string, unknown>) {
    if (this.#isOver) return;
    this.#flush();
    this.#tell("tool", data, { isHiddenOnV3: !this.#options.isVerbose });
  }

  #tell(stream: string, data: unknown, { isHiddenOnV3 = false } = {}) {
    const { runId, sessionKey, key, audience } = this.#options;
    const event = { runId, seq: ++this.#seq, stream, ts: Date.now(), data, sessionKey };
    audience.tell("agent", key, (protocol) => protocol < 4 && isHiddenOnV3 ? undefined : event);
  }

  #chat(facts: Record<string, unknown>, { onV4 = {}, isDroppable = false } = {}) {
    const { runId, sessionKey, key, audience } = this.#options;
    const event = { runId, sessionKey, seq: this.#seq, ...facts };
    audience.tell("chat", key, (protocol) => protocol < 4 ? event : { ...event, ...onV4 }, {
      isDroppable,
    });
  }
}

function messageOf(text: string) {
  return { role: "assistant", content: [{ type: "text", text }], timestamp: Date.now() };
}
