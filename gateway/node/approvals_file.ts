// `exec-approvals.json` (§10.1): which commands may run here, for which agent. It is read anew each
// time and changed under a lock, because operators, agents and other processes change it too.

import { writePrivateFile } from "../../config/private_file.ts";
import { sha256 } from "../../config/load.ts";
import type { Paths } from "../../config/paths.ts";
import { encodeBase64Url } from "../../rpc/identity.ts";
import {
  boolean,
  explain,
  type Infer,
  list,
  mapOf,
  nonEmpty,
  nullable,
  number,
  oneOf,
  open,
  optional,
  problems,
  text,
} from "../../rpc/shape.ts";

export const SECURITIES = ["deny", "allowlist", "full"] as const;
export const ASKS = ["off", "on-miss", "always"] as const;

const rules = {
  security: optional(oneOf(SECURITIES)),
  ask: optional(oneOf(ASKS)),
  /** What holds when nobody can be asked. */
  askFallback: optional(oneOf(SECURITIES)),
  /** Programs that skills bring along need no entry. */
  autoAllowSkills: optional(boolean()),
};

export const AllowEntry = open({
  id: optional(nonEmpty()),
  /** A path with `*`, `**`, `?` and `~`. */
  pattern: text(),
  /** Milliseconds since the epoch. */
  lastUsedAt: optional(nullable(number())),
  lastUsedCommand: optional(nullable(text())),
  lastResolvedPath: optional(nullable(text())),
});
export type AllowEntry = Infer<typeof AllowEntry>;

const AgentRules = open({ ...rules, allowlist: optional(list(AllowEntry)) });
export type AgentRules = Infer<typeof AgentRules>;

export const ApprovalsFile = open({
  version: oneOf([1]),
  socket: optional(open({ path: optional(text()), token: optional(text()) })),
  defaults: optional(open(rules)),
  /** By agent id; `*` is every agent. */
  agents: optional(mapOf(AgentRules)),
});
export type ApprovalsFile = Infer<typeof ApprovalsFile>;

/** What operators see of the file: never the token of the socket. */
export interface ApprovalsSnapshot {
  path: string;
  exists: boolean;
  /** SHA-256 of the file's text, 64 hex digits. */
  hash: string;
  file: ApprovalsFile;
}

/** Why a new content was not taken; the two ends of §7.10 and §9.3 word it differently. */
export type ApprovalsFault = "file required" | "file invalid" | "base hash required" | "changed";

export class ApprovalsError extends Error {
  override name = "ApprovalsError";

  constructor(readonly fault: ApprovalsFault, message: string = fault) {
    super(`Cannot change the exec approvals: ${message}`);
  }
}

export interface ApprovalsPaths {
  file: string;
  /** Where programs of this machine may ask. */
  socket: string;
}

export function approvalsPaths({ stateDir, env }: Pick<Paths, "stateDir" | "env">): ApprovalsPaths {
  return {
    file: env.ZERO_EXEC_APPROVALS_PATH?.trim() || `${stateDir}/exec-approvals.json`,
    socket: env.ZERO_EXEC_APPROVALS_SOCKET?.trim() || `${stateDir}/exec-approvals.sock`,
  };
}

export class ApprovalsStore {
  readonly #paths: ApprovalsPaths;
  /** One change after the other, also among those of this process. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(paths: ApprovalsPaths) {
    this.#paths = paths;
  }

  /** Everything that is in the file; undefined for a file that cannot be understood. */
  async load(): Promise<ApprovalsFile | undefined> {
    return (await this.#ensured()).file;
  }

  async snapshot(): Promise<ApprovalsSnapshot> {
    return this.#show(await this.#ensured());
  }

  /**
   * Replaces the content; path and token of the socket stay where the new one has none.
   *
   * @param baseHash of the content that the new one was made from
   * @throws {ApprovalsError}
   */
  replace(content: unknown, baseHash: string | undefined): Promise<ApprovalsSnapshot> {
    return this.#exclusively(async () => {
      if (typeof content !== "object" || content === null) {
        throw new ApprovalsError("file required");
      }
      const current = await this.#read();
      if (current.exists && !baseHash) throw new ApprovalsError("base hash required");
      if (current.exists && baseHash !== current.hash) throw new ApprovalsError("changed");
      const wrong = problems(content, ApprovalsFile);
      if (wrong.length > 0) throw new ApprovalsError("file invalid", explain(wrong));
      const next = content as ApprovalsFile;
      const socket = { ...this.#socket(current.file), ...withoutBlanks(next.socket) };
      return this.#show(await this.#write({ ...tidied(next), socket }));
    });
  }

  /** Changes entries in place; nothing happens to a file that cannot be understood. */
  async update(change: (file: ApprovalsFile) => void): Promise<void> {
    await this.#exclusively(async () => {
      const { file } = await this.#read();
      if (!file) return;
      const before = JSON.stringify(file);
      change(file);
      if (JSON.stringify(file) !== before) await this.#write(file);
    });
  }

  /** Reads the file; makes it when there is none, and writes back what was filled in. */
  async #ensured(): Promise<Content> {
    const found = await this.#read();
    if (!found.needsWriting) return found;
    return await this.#exclusively(async () => {
      const again = await this.#read();
      return again.needsWriting ? await this.#write(again.file!) : again;
    });
  }

  async #read(): Promise<Content> {
    let raw: string;
    try {
      raw = await Deno.readTextFile(this.#paths.file);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      const file = { version: 1 as const, socket: this.#socket(), agents: {} };
      return { exists: false, hash: await sha256(""), file, needsWriting: true };
    }
    const hash = await sha256(raw);
    const parsed = parse(raw);
    if (!parsed) return { exists: true, hash, file: undefined, needsWriting: false };
    const file = { ...tidied(parsed), socket: this.#socket(parsed) };
    const needsWriting = JSON.stringify(file) !== JSON.stringify(parsed);
    return { exists: true, hash, file, needsWriting };
  }

  async #write(file: ApprovalsFile): Promise<Content> {
    const raw = `${JSON.stringify(file, null, 2)}\n`;
    await writePrivateFile(this.#paths.file, raw);
    return { exists: true, hash: await sha256(raw), file, needsWriting: false };
  }

  #socket(file?: ApprovalsFile) {
    const { path, token, ...rest } = file?.socket ?? {};
    return {
      ...rest,
      path: path || this.#paths.socket,
      token: token || encodeBase64Url(crypto.getRandomValues(new Uint8Array(24))),
    };
  }

  #show({ exists, hash, file = { version: 1, agents: {} } }: Content): ApprovalsSnapshot {
    const { socket: { token: _, ...socket } = {}, ...rest } = file;
    return {
      path: this.#paths.file,
      exists,
      hash,
      file: { ...rest, ...(Object.keys(socket).length > 0 && { socket }) },
    };
  }

  #exclusively<T>(act: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(async () => {
      const { file } = this.#paths;
      const directory = file.slice(0, file.lastIndexOf("/"));
      if (directory) await Deno.mkdir(directory, { recursive: true, mode: 0o700 });
      // A gateway and a node host of one state directory share the file.
      using lock = await Deno.open(`${file}.lock`, { write: true, create: true, mode: 0o600 });
      await lock.lock(true);
      return await act();
    });
    this.#last = turn.catch(() => {}); // told to whoever asked for this change
    return turn;
  }
}

interface Content {
  exists: boolean;
  hash: string;
  /** Undefined when the text cannot be understood. */
  file: ApprovalsFile | undefined;
  /** There is none yet, or something in it was filled in. */
  needsWriting: boolean;
}

function parse(raw: string): ApprovalsFile | undefined {
  try {
    const value = JSON.parse(raw);
    return problems(value, ApprovalsFile).length === 0 ? value : undefined;
  } catch {
    return undefined;
  }
}

/** Every entry with an id, and what stands under `default` under `main`. */
function tidied(file: ApprovalsFile): ApprovalsFile {
  const { default: older, ...agents } = file.agents ?? {};
  if (older) {
    const { main } = agents;
    const patterns = new Set(main?.allowlist?.map(({ pattern }) => pattern));
    const further = older.allowlist?.filter(({ pattern }) => !patterns.has(pattern)) ?? [];
    const allowlist = [...main?.allowlist ?? [], ...further];
    agents.main = { ...older, ...main, ...(allowlist.length > 0 && { allowlist }) };
  }
  for (const [name, agent] of Object.entries(agents)) {
    const isComplete = agent.allowlist?.every(({ id }) => id) ?? true;
    if (isComplete) continue;
    const allowlist = agent.allowlist?.map((entry) => ({
      ...entry,
      id: entry.id ?? crypto.randomUUID(),
    }));
    agents[name] = { ...agent, allowlist };
  }
  return { ...file, ...(file.agents && { agents }) };
}

function withoutBlanks(socket: ApprovalsFile["socket"] = {}) {
  return Object.fromEntries(Object.entries(socket).filter(([, value]) => value));
}
