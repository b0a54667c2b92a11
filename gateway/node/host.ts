// What this machine does for a gateway: the commands there are, invocations as they come, and results
// as they go back (§9.2, §9.3). Which gateway, and how it is reached, is the matter of run.ts.

import type { Config } from "../../config/schema.ts";
import type { Client } from "../../rpc/client.ts";
import { ApprovalsError, type ApprovalsFault, type ApprovalsStore } from "./approvals_file.ts";
import { answers, browserControl, proxyRequest } from "./browser_proxy.ts";
import { CommandError } from "./command_error.ts";
import { pathOf } from "./env.ts";
import type { NodeFiles } from "./fs.ts";
import { findNotifier, notify } from "./notify.ts";
import { PROGRESS, PROGRESS_CAP, ProgressSender } from "./progress.ts";
import { type Channel, SystemRun, type SystemRunOptions } from "./system_run.ts";
import { which } from "./which.ts";

/** `node.invoke.request` as it came. */
interface Invocation {
  id: string;
  nodeId: string;
  command: string;
  params: unknown;
  /** Its caller wants to see what it writes while it runs. */
  progress?: boolean;
}

/** A link to a gateway: what invocations come from, and where results go. */
type Link = Pick<Client, "call" | "hello">;

export interface NodeHostOptions extends Omit<SystemRunOptions, "signal"> {
  config(): Promise<Config>;
  approvals: ApprovalsStore;
  /** What it lends of its files; absent: nothing. */
  files?: NodeFiles;
}

/** What the node offers at the moment. */
export interface Offer {
  caps: string[];
  commands: string[];
}

const SYSTEM_COMMANDS = [
  "system.run",
  "system.which",
  "system.execApprovals.get",
  "system.execApprovals.set",
];
const SKILL_BINS_TTL_MS = 90_000;
/** Left free of the largest frame for what stands around a result. */
const FRAME_MARGIN_BYTES = 4_096;
/** A character takes at most six bytes; no gateway takes less than 512 KiB. */
const SURELY_SHORT = 80_000;

export class NodeHost implements AsyncDisposable {
  readonly #options: NodeHostOptions;
  readonly #stop = new AbortController();
  readonly #systemRun: SystemRun;
  readonly #running = new Set<Promise<void>>();
  #skillBins?: { bins: Promise<ReadonlySet<string>>; expiresAtMs: number };

  constructor(options: NodeHostOptions) {
    this.#options = options;
    this.#systemRun = new SystemRun({ ...options, signal: this.#stop.signal });
  }

  /** Whether nothing is being done at the moment. */
  get isIdle(): boolean {
    return this.#running.size === 0;
  }

  /** The browser is offered only while its control server answers. */
  async offer(): Promise<Offer> {
    const control = browserControl(await this.#options.config(), this.#options.env);
    const hasBrowser = control !== undefined && await answers(control, this.#stop.signal);
    const further = [
      ...await this.#options.files?.commands() ?? [],
      ...await findNotifier(this.#options) ? ["system.notify"] : [],
    ];
    return {
      caps: ["system", PROGRESS_CAP, ...hasBrowser ? ["browser"] : []],
      commands: [...SYSTEM_COMMANDS, ...further, ...hasBrowser ? ["browser.proxy"] : []],
    };
  }

  /** Takes a `node.invoke.request`; invocations run beside each other. */
  take(payload: unknown, link: Link): void {
    const invocation = readInvocation(payload);
    if (!invocation || this.#stop.signal.aborted) return;
    const work = this.#serve(invocation, link).finally(() => this.#running.delete(work));
    this.#running.add(work);
  }

  /** Ends what runs, and waits until its results have been sent. */
  async [Symbol.asyncDispose]() {
    this.#stop.abort();
    await Promise.all(this.#running);
  }

  async #serve(invocation: Invocation, link: Link): Promise<void> {
    const { id, nodeId, command, params } = invocation;
    const progress = progressOf(invocation, link);
    let result: Record<string, unknown>;
    try {
      const channel = this.#channel(link, progress);
      const payloadJSON = JSON.stringify(await this.#do(command, params, channel));
      const { maxPayload = Infinity } = link.hello.policy;
      if (bytesInFrame(payloadJSON) > maxPayload - FRAME_MARGIN_BYTES) {
        throw new CommandError("UNAVAILABLE", "the result is too large to be sent");
      }
      result = { ok: true, payloadJSON };
    } catch (error) {
      const code = error instanceof CommandError ? error.code : "INVALID_REQUEST";
      result = { ok: false, error: { code, message: (error as Error).message || "failed" } };
    }
    progress?.end();
    // Nobody waits for it any more when the connection is gone.
    await link.call("node.invoke.result", { id, nodeId, ...result }).catch(() => {});
  }

  async #do(command: string, params: unknown, channel: Channel): Promise<unknown> {
    const { approvals, env, cwd, files } = this.#options;
    switch (command) {
      case "system.run":
        return await this.#systemRun.run(params, channel);
      case "system.which": {
        const { bins } = (params ?? {}) as { bins?: unknown };
        if (!Array.isArray(bins)) {
          throw new CommandError("INVALID_REQUEST", "INVALID_REQUEST: bins required");
        }
        const names = bins.filter((one) => typeof one === "string" && one.trim() !== "");
        return { bins: await which(names, { path: pathOf(env), cwd }) };
      }
      case "system.execApprovals.get":
        return await approvals.snapshot();
      case "system.execApprovals.set": {
        const { file, baseHash } = (params ?? {}) as { file?: unknown; baseHash?: unknown };
        const hash = typeof baseHash === "string" ? baseHash : undefined;
        return await approvals.replace(file, hash).catch((error) => {
          throw error instanceof ApprovalsError ? asCommandError(error) : error;
        });
      }
      case "system.notify":
        return await notify(params, { env, cwd, signal: this.#stop.signal });
      case "fs.list":
        if (files) return await files.list(params);
        break;
      case "fs.read":
        if (files) return await files.read(params);
        break;
      case "fs.write":
        if (files) return await files.write(params);
        break;
      case "browser.proxy": {
        const control = browserControl(await this.#options.config(), env);
        if (control) return await proxyRequest(params, control, this.#stop.signal);
      }
    }
    throw new CommandError("UNAVAILABLE", "command not supported");
  }

  #channel(link: Link, progress?: ProgressSender): Channel {
    return {
      tell(event, payload) {
        const told = link.call("node.event", { event, payloadJSON: JSON.stringify(payload) });
        told.catch(() => {}); // news that could not be sent is old news
      },
      skillBins: () => this.#askSkillBins(link),
      ...(progress && { output: (stream, data) => progress.write(stream, data) }),
    };
  }

  /** What the gateway does not tell is allowed to nobody. */
  #askSkillBins(link: Link): Promise<ReadonlySet<string>> {
    const now = performance.now();
    if (!this.#skillBins || this.#skillBins.expiresAtMs <= now) {
      const bins = link.call("skills.bins").then(
        (answer) => {
          const { bins } = (answer ?? {}) as { bins?: unknown };
          return new Set(Array.isArray(bins) ? bins.map(String) : []);
        },
        () => {
          this.#skillBins = undefined;
          return new Set<string>();
        },
      );
      this.#skillBins = { bins, expiresAtMs: now + SKILL_BINS_TTL_MS };
    }
    return this.#skillBins.bins;
  }
}

const APPROVALS_FAULTS: Record<ApprovalsFault, string> = {
  "file required": "INVALID_REQUEST: exec approvals file required",
  "file invalid": "INVALID_REQUEST: exec approvals file invalid",
  "base hash required": "INVALID_REQUEST: exec approvals base hash required; reload and retry",
  "changed": "INVALID_REQUEST: exec approvals changed; reload and retry",
};

function asCommandError({ fault, message }: ApprovalsError): CommandError {
  const detail = fault === "file invalid" ? `: ${message}` : "";
  return new CommandError("INVALID_REQUEST", `${APPROVALS_FAULTS[fault]}${detail}`);
}

/** A gateway that takes progress says so among its methods, and with each invocation. */
function progressOf({ id, nodeId, progress }: Invocation, link: Link): ProgressSender | undefined {
  if (!progress || !link.hello.features.methods?.includes(PROGRESS)) return undefined;
  return new ProgressSender((piece) => link.call(PROGRESS, { id, nodeId, ...piece }));
}

/** @returns undefined for what is no invocation */
function readInvocation(payload: unknown): Invocation | undefined {
  const given = (payload ?? {}) as Record<string, unknown>;
  const { id, nodeId, command, paramsJSON, params } = given;
  if (!isName(id) || !isName(nodeId) || !isName(command)) return undefined;
  const invocation = { id, nodeId, command, progress: given.progress === true };
  if (typeof paramsJSON !== "string") return { ...invocation, params };
  try {
    return { ...invocation, params: JSON.parse(paramsJSON) };
  } catch {
    // Each command says what it misses.
    return { ...invocation, params: undefined };
  }
}

function isName(value: unknown): value is string {
  return typeof value === "string" && value.trim() !== "";
}

/** As a string within JSON. A short text is not counted: it fits, however it is written. */
function bytesInFrame(text: string): number {
  if (text.length < SURELY_SHORT) return text.length;
  return new TextEncoder().encode(JSON.stringify(text)).length;
}
