// The one SQLite file of a gateway (D10): opened, migrated, and wrapped so that every question is a
// prepared statement and every change a transaction. What the tables mean is their owners' business.

import { DatabaseSync, type StatementSync } from "node:sqlite";
import { StartRefusal } from "./preflight.ts";

/** The schema, one entry a version; an entry that was released is never changed. */
const MIGRATIONS = [
  `CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
   CREATE TABLE devices (
     device_id TEXT PRIMARY KEY,
     public_key TEXT NOT NULL,
     display_name TEXT, platform TEXT, client_id TEXT, client_mode TEXT, remote_ip TEXT,
     given_name TEXT,
     roles TEXT NOT NULL,
     scopes TEXT NOT NULL,
     created_at_ms INTEGER NOT NULL,
     approved_at_ms INTEGER NOT NULL
   ) STRICT;
   CREATE TABLE device_roles (
     device_id TEXT NOT NULL REFERENCES devices ON DELETE CASCADE,
     role TEXT NOT NULL,
     scopes TEXT NOT NULL,
     created_at_ms INTEGER NOT NULL,
     rotated_at_ms INTEGER, revoked_at_ms INTEGER, last_used_at_ms INTEGER,
     PRIMARY KEY (device_id, role)
   ) STRICT, WITHOUT ROWID;
   CREATE TABLE device_tokens (
     token_id INTEGER PRIMARY KEY,
     device_id TEXT NOT NULL,
     role TEXT NOT NULL,
     hash TEXT NOT NULL,
     scopes TEXT NOT NULL,
     stage INTEGER NOT NULL,
     FOREIGN KEY (device_id, role) REFERENCES device_roles ON DELETE CASCADE
   ) STRICT;
   CREATE INDEX device_tokens_of ON device_tokens (device_id, role);
   CREATE TABLE pairing_requests (
     request_id TEXT PRIMARY KEY,
     device_id TEXT NOT NULL UNIQUE,
     request TEXT NOT NULL,
     ts INTEGER NOT NULL
   ) STRICT;
   CREATE TABLE invites (
     invite_id TEXT PRIMARY KEY,
     hash TEXT NOT NULL UNIQUE,
     role TEXT NOT NULL,
     scopes TEXT NOT NULL,
     created_at_ms INTEGER NOT NULL,
     expires_at_ms INTEGER NOT NULL,
     used_at_ms INTEGER, used_by TEXT
   ) STRICT;
   CREATE TABLE audit (
     audit_id INTEGER PRIMARY KEY,
     ts INTEGER NOT NULL,
     event TEXT NOT NULL,
     facts TEXT NOT NULL,
     count INTEGER NOT NULL,
     last_ts INTEGER NOT NULL
   ) STRICT;
   CREATE TABLE legacy_node_requests (
     request_id TEXT PRIMARY KEY,
     node_id TEXT NOT NULL UNIQUE,
     request TEXT NOT NULL,
     ts INTEGER NOT NULL
   ) STRICT;
   CREATE TABLE legacy_nodes (
     node_id TEXT PRIMARY KEY,
     node TEXT NOT NULL,
     hash TEXT NOT NULL,
     approved_at_ms INTEGER NOT NULL
   ) STRICT;
   CREATE TABLE node_queue (
     entry_id INTEGER PRIMARY KEY,
     queue_id TEXT NOT NULL UNIQUE,
     node_id TEXT NOT NULL,
     role TEXT NOT NULL,
     command TEXT NOT NULL,
     params TEXT,
     timeout_ms INTEGER NOT NULL,
     idempotency_key TEXT NOT NULL,
     caller TEXT NOT NULL,
     caller_device TEXT,
     queued_by TEXT NOT NULL,
     state TEXT NOT NULL,
     delivery TEXT NOT NULL,
     error TEXT, answer TEXT,
     created_at_ms INTEGER NOT NULL,
     expires_at_ms INTEGER NOT NULL,
     sent_at_ms INTEGER, ended_at_ms INTEGER,
     UNIQUE (caller, idempotency_key),
     FOREIGN KEY (node_id, role) REFERENCES device_roles ON DELETE CASCADE
   ) STRICT;
   CREATE INDEX node_queue_of ON node_queue (node_id, state);
   CREATE TABLE runs (
     run_row INTEGER PRIMARY KEY,
     run_id TEXT NOT NULL UNIQUE,
     session_key TEXT NOT NULL,
     request TEXT NOT NULL,
     state TEXT NOT NULL,
     attempts INTEGER NOT NULL,
     has_used_tools INTEGER NOT NULL,
     accepted_at_ms INTEGER NOT NULL,
     ended_at_ms INTEGER, outcome TEXT
   ) STRICT;
   CREATE INDEX runs_by_end ON runs (ended_at_ms);
   CREATE INDEX runs_by_state ON runs (state);
   CREATE TABLE inbox (
     channel TEXT NOT NULL,
     account_id TEXT NOT NULL,
     inbound_id TEXT NOT NULL,
     accepted_at_ms INTEGER NOT NULL,
     PRIMARY KEY (channel, account_id, inbound_id)
   ) STRICT, WITHOUT ROWID;
   CREATE INDEX inbox_by_age ON inbox (accepted_at_ms);
   CREATE TABLE channel_offsets (
     channel TEXT NOT NULL,
     account_id TEXT NOT NULL,
     bot_id TEXT NOT NULL,
     position TEXT NOT NULL,
     moved_at_ms INTEGER NOT NULL,
     PRIMARY KEY (channel, account_id)
   ) STRICT, WITHOUT ROWID;
   CREATE TABLE channel_contacts (
     channel TEXT NOT NULL,
     account_id TEXT NOT NULL,
     sender_id TEXT NOT NULL,
     name TEXT NOT NULL,
     code TEXT,
     asked_at_ms INTEGER NOT NULL,
     told_at_ms INTEGER,
     approved_at_ms INTEGER, approved_by TEXT,
     PRIMARY KEY (channel, account_id, sender_id)
   ) STRICT, WITHOUT ROWID;
   CREATE TABLE outbox (
     id INTEGER PRIMARY KEY,
     key TEXT NOT NULL UNIQUE,
     chat TEXT NOT NULL,
     address TEXT NOT NULL,
     message TEXT NOT NULL,
     state TEXT NOT NULL,
     attempts INTEGER NOT NULL,
     parts_sent INTEGER NOT NULL,
     next_at_ms INTEGER NOT NULL,
     created_at_ms INTEGER NOT NULL,
     done_at_ms INTEGER, result TEXT, error TEXT
   ) STRICT;
   CREATE INDEX outbox_by_state ON outbox (state, chat);
   CREATE TABLE system_events (
     event_id INTEGER PRIMARY KEY,
     session_key TEXT NOT NULL,
     text TEXT NOT NULL,
     ts INTEGER NOT NULL
   ) STRICT;
   CREATE TABLE cron_jobs (job_id TEXT PRIMARY KEY, job TEXT NOT NULL) STRICT;
   CREATE TABLE cron_runs (
     run_row INTEGER PRIMARY KEY,
     job_id TEXT NOT NULL,
     entry TEXT NOT NULL
   ) STRICT;
   CREATE INDEX cron_runs_of ON cron_runs (job_id, run_row);
   CREATE TABLE transcripts (
     transcript_id INTEGER PRIMARY KEY,
     session_id TEXT NOT NULL UNIQUE,
     session_key TEXT NOT NULL,
     created_at_ms INTEGER NOT NULL,
     archived_at_ms INTEGER, archived_as TEXT
   ) STRICT;
   CREATE TABLE messages (
     message_row INTEGER PRIMARY KEY,
     transcript_id INTEGER NOT NULL REFERENCES transcripts,
     seq INTEGER NOT NULL,
     bytes INTEGER NOT NULL,
     lean TEXT,
     message TEXT NOT NULL,
     UNIQUE (transcript_id, seq)
   ) STRICT;
   CREATE VIRTUAL TABLE message_text USING fts5(text, content='');
   CREATE TABLE sessions (
     session_key TEXT PRIMARY KEY,
     agent_id TEXT NOT NULL,
     session_id TEXT NOT NULL UNIQUE,
     transcript_id INTEGER NOT NULL UNIQUE REFERENCES transcripts,
     label TEXT UNIQUE,
     spawned_by TEXT,
     facts TEXT NOT NULL,
     names TEXT NOT NULL,
     created_at_ms INTEGER NOT NULL,
     updated_at_ms INTEGER NOT NULL,
     input_tokens INTEGER NOT NULL DEFAULT 0,
     output_tokens INTEGER NOT NULL DEFAULT 0,
     total_tokens INTEGER NOT NULL DEFAULT 0,
     context_tokens INTEGER,
     first_seq INTEGER NOT NULL DEFAULT 1,
     last_seq INTEGER NOT NULL DEFAULT 0,
     first_text TEXT, last_text TEXT
   ) STRICT;
   CREATE INDEX sessions_by_age ON sessions (updated_at_ms);
   CREATE INDEX sessions_of_agent ON sessions (agent_id, updated_at_ms);
   CREATE INDEX sessions_of_parent ON sessions (spawned_by, updated_at_ms);
   CREATE TABLE session_usage (
     day TEXT NOT NULL,
     session_key TEXT NOT NULL,
     model TEXT NOT NULL,
     input_tokens INTEGER NOT NULL,
     output_tokens INTEGER NOT NULL,
     turns INTEGER NOT NULL,
     PRIMARY KEY (day, session_key, model)
   ) STRICT, WITHOUT ROWID;`,
];

/** A file of up to this size is looked through at every start, which takes 1 ms a megabyte. */
const MAX_CHECKED_BYTES = 16 * 1_048_576;

export class Store {
  readonly path: string;
  readonly #db: DatabaseSync;
  #isChanging = false;
  #afterCommit: (() => void)[] = [];
  readonly #onSkipped: (error: Error) => void;

  private constructor(path: string, db: DatabaseSync, onSkipped: (error: Error) => void) {
    this.path = path;
    this.#db = db;
    this.#onSkipped = onSkipped;
  }

  /**
   * @param path a file, made with mode 0600 if it is not there, or ":memory:"
   * @param onSkipped told why a change was left out, see `attempt`
   * @throws {StartRefusal} the file is damaged, or cannot be opened for writing
   */
  static open(path: string, onSkipped: (error: Error) => void = () => {}): Store {
    let db: DatabaseSync | undefined;
    try {
      db = new DatabaseSync(path);
      // Durable against a killed process; a power cut may cost the last moments, never the file.
      db.exec(
        `PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;
         PRAGMA busy_timeout = 2000; PRAGMA cache_size = -2000;
         PRAGMA wal_autocheckpoint = 4000;`,
      );
      const store = new Store(path, db, onSkipped);
      store.#check();
      store.#migrate();
      return store;
    } catch (error) {
      db?.close();
      throw error instanceof StartRefusal ? error : unusable(path, error as Error);
    }
  }

  /** A prepared statement; its owner keeps it. */
  prepare(sql: string): StatementSync {
    return this.#db.prepare(sql);
  }

  /** Runs `work` so that either all of its changes happen or none; within another it is part of it. */
  transaction<T>(work: () => T): T {
    if (this.#isChanging) return work();
    this.#db.exec("BEGIN IMMEDIATE");
    this.#isChanging = true;
    let result: T;
    try {
      result = work();
      this.#db.exec("COMMIT");
    } catch (error) {
      this.#afterCommit = [];
      try {
        this.#db.exec("ROLLBACK");
      } catch {
        // A full disk has undone it already; what matters is the error that led here.
      }
      throw error;
    } finally {
      this.#isChanging = false;
    }
    const waiting = this.#afterCommit;
    this.#afterCommit = [];
    for (const tell of waiting) tell();
    return result;
  }

  /**
   * Runs `tell` once the change around it is durable, never if it is undone; at once where there is
   * none. It must not throw.
   */
  afterCommit(tell: () => void) {
    if (this.#isChanging) this.#afterCommit.push(tell);
    else tell();
  }

  /**
   * Makes a change that can be done without: on a full disk it is left out, because nobody who may
   * come in shall be kept out for want of a note about it.
   */
  attempt<T>(work: () => T): T | undefined {
    try {
      return work();
    } catch (error) {
      this.#onSkipped(error as Error);
      return undefined;
    }
  }

  /** A value kept under a name; made by `create` the first time. */
  meta(key: string, create: () => string): string {
    const found = this.prepare("SELECT value FROM meta WHERE key = ?").get(key);
    if (found) return String(found.value);
    const value = create();
    this.prepare("INSERT INTO meta (key, value) VALUES (?, ?)").run(key, value);
    return value;
  }

  [Symbol.dispose]() {
    this.#db.close();
  }

  #check() {
    const [pages, size] = ["page_count", "page_size"].map((name) =>
      Number(this.prepare(`PRAGMA ${name}`).get()?.[name])
    );
    if (pages * size > MAX_CHECKED_BYTES) return;
    const { quick_check: verdict } = this.prepare("PRAGMA quick_check(1)").get() ?? {};
    if (verdict !== "ok") throw new Error(String(verdict).split("\n").at(-1));
  }

  #migrate() {
    const { user_version: version } = this.prepare("PRAGMA user_version").get() as {
      user_version: number;
    };
    if (version > MIGRATIONS.length) {
      throw new StartRefusal(
        `Cannot open ${this.path}: it was written by a newer ZERO (schema ${version}, known ` +
          `${MIGRATIONS.length})`,
        "Install that version again, or use another state directory: --profile NAME",
      );
    }
    for (let next = version; next < MIGRATIONS.length; next++) {
      this.transaction(() => {
        this.#db.exec(MIGRATIONS[next]);
        this.#db.exec(`PRAGMA user_version = ${next + 1}`);
      });
    }
  }
}

/** The driver gives a text and no code, so damage and a disk that cannot be written look alike. */
function unusable(path: string, cause: Error): StartRefusal {
  const kept = `${path.slice(0, path.lastIndexOf("/"))}/damaged`;
  return new StartRefusal(
    `Cannot use the database ${path}: ${cause.message}`,
    `Make room if the disk is full. If not, put a backup in its place, or begin anew, with every ` +
      `device to be paired again: mkdir ${kept} && mv ${path}* ${kept}`,
    { cause },
  );
}
