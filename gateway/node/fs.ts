// Files that a node lends: `fs.list`, `fs.read` and `fs.write` inside the roots that its owner
// configured (`nodeHost.fs.roots`), and nowhere else. A path is resolved to the place it really leads
// to, and what is opened there counts only if no directory on the way to it changed meanwhile: a link
// that is put in the way leads to a refusal, not out of the root.

import { Buffer } from "node:buffer";
import { constants, promises as fs } from "node:fs";
import { resolvePath } from "../../config/paths.ts";
import {
  boolean,
  explain,
  integer,
  nonEmpty,
  object,
  oneOf,
  optional,
  problems,
  type Shape,
  text,
} from "../../rpc/shape.ts";
import { CommandError } from "./command_error.ts";

/** A directory, or a single file, with everything below it. */
export interface FileRoot {
  /** Absolute, or beginning with `~/`. */
  path: string;
  /** Whether it may be changed, too. */
  write?: boolean;
}

export interface NodeFilesOptions {
  /** As configured at the moment. */
  roots(): Promise<readonly FileRoot[]>;
  home?: string;
  /** Of the node itself: never lent, whatever root they lie in. */
  kept: readonly string[];
}

export interface ListAnswer {
  path: string;
  /** By name. */
  entries: {
    name: string;
    kind: Kind;
    size?: number;
    modifiedAtMs?: number;
  }[];
  /** Whether there are more. */
  truncated: boolean;
}

export interface ReadAnswer {
  path: string;
  encoding: Encoding;
  content: string;
  /** Where the content begins, and how many bytes of the file it is. */
  offset: number;
  bytes: number;
  /** Of the whole file. */
  size: number;
  modifiedAtMs: number;
  /** Whether the file goes on behind it. */
  truncated: boolean;
}

export interface WriteAnswer {
  path: string;
  bytes: number;
  /** Whether there was no such file before. */
  created: boolean;
}

type Kind = "file" | "directory" | "symlink" | "other";
const ENCODINGS = ["utf8", "base64"] as const;
type Encoding = (typeof ENCODINGS)[number];
interface RealRoot {
  path: string;
  isWritable: boolean;
}

export const MAX_READ_BYTES = 4_194_304;
export const MAX_WRITE_BYTES = 8_388_608;
const DEFAULT_READ_BYTES = 1_048_576;
export const MAX_ENTRIES = 10_000;
const DEFAULT_ENTRIES = 1_000;
const MAX_PATH = 4_096;
/** Longer than a tick of any clock that file systems go by. */
const REST_MS = 25;
const MAX_WAIT_MS = 3_000;

const ListParams = object({
  path: optional(nonEmpty()),
  limit: optional(integer({ min: 1, max: MAX_ENTRIES })),
});
const ReadParams = object({
  path: nonEmpty(),
  encoding: optional(oneOf(ENCODINGS)),
  offset: optional(integer({ min: 0 })),
  maxBytes: optional(integer({ min: 1, max: MAX_READ_BYTES })),
});
const WriteParams = object({
  path: nonEmpty(),
  content: text(),
  encoding: optional(oneOf(ENCODINGS)),
  overwrite: optional(boolean()),
});

export class NodeFiles {
  readonly #options: NodeFilesOptions;

  constructor(options: NodeFilesOptions) {
    this.#options = options;
  }

  /** Those of the three commands that can be of use. */
  async commands(): Promise<string[]> {
    const roots = await this.#roots();
    if (roots.length === 0) return [];
    return ["fs.list", "fs.read", ...roots.some((one) => one.isWritable) ? ["fs.write"] : []];
  }

  /**
   * Lists a directory; without a path, the roots.
   *
   * @throws {CommandError}
   */
  async list(params: unknown): Promise<ListAnswer> {
    const { path, limit = DEFAULT_ENTRIES } = readParams("fs.list", params, ListParams);
    if (path === undefined) return await this.#listRoots();
    return await attempt("list", path, async () => {
      const { real, root } = await this.#locate(path);
      const { isDirectory } = await Deno.lstat(real);
      if (!isDirectory) throw new Refusal("it is no directory");
      return await steadily(root, real, async () => {
        const found: Deno.DirEntry[] = [];
        for await (const entry of Deno.readDir(real)) found.push(entry);
        found.sort((one, other) => one.name < other.name ? -1 : 1);
        const shown = found.slice(0, limit);
        const entries = await Promise.all(shown.map((one) => describe(`${real}/${one.name}`, one)));
        return { path: real, entries, truncated: found.length > shown.length };
      });
    });
  }

  /** @throws {CommandError} */
  async read(params: unknown): Promise<ReadAnswer> {
    const { path, encoding = "utf8", offset = 0, maxBytes = DEFAULT_READ_BYTES } = readParams(
      "fs.read",
      params,
      ReadParams,
    );
    return await attempt("read", path, async () => {
      const { real, root } = await this.#locate(path);
      // Not through a link, and without waiting for the other end of a pipe.
      const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants;
      const open = () => fs.open(real, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
      const file = real === root
        ? await open()
        : await steadily(root, parentOf(real), open, (opened) => opened.close());
      try {
        const opened = await file.stat();
        if (!opened.isFile()) throw new Refusal("it is no regular file");
        const { size, mtimeMs } = opened;
        const wanted = Math.max(0, Math.min(maxBytes, size - offset));
        const read = await readFully(file, wanted, offset);
        const isCut = offset + read.length < size;
        const taken = encoding === "utf8" ? wholeCharacters(read, isCut) : read;
        return {
          path: real,
          encoding,
          content: encode(taken, encoding),
          offset,
          bytes: taken.length,
          size,
          modifiedAtMs: Math.trunc(mtimeMs),
          truncated: isCut || taken.length < read.length,
        };
      } finally {
        await file.close();
      }
    });
  }

  /**
   * Replaces a file as a whole, or makes it: at no moment is there half of one.
   *
   * @throws {CommandError}
   */
  async write(params: unknown): Promise<WriteAnswer> {
    const { path, content, encoding = "utf8", overwrite = true } = readParams(
      "fs.write",
      params,
      WriteParams,
    );
    return await attempt("write", path, async () => {
      const bytes = decode(content, encoding);
      if (bytes.length > MAX_WRITE_BYTES) {
        throw new Refusal(
          `the content has ${bytes.length} bytes, ${MAX_WRITE_BYTES} may be written`,
        );
      }
      const { directory, name, root } = await this.#locateTarget(path);
      const target = within(directory, name);
      const old = await lstatOf(target);
      if (old && !old.isFile) {
        throw new Refusal(old.isSymlink ? "it is a symbolic link" : "it is no regular file");
      }
      if (old && !overwrite) throw new Refusal("it is there already");
      const part = within(directory, `.zero-${crypto.randomUUID()}.part`);
      const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
      const mode = old ? 0o600 : 0o666;
      const open = () => fs.open(part, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode);
      const abandon = async (opened: fs.FileHandle) => {
        await opened.close();
        await Deno.remove(part).catch(() => {}); // empty; it may be where nobody finds it any more
      };
      // The directory itself changes by this, those above it must not.
      const file = directory === root
        ? await open()
        : await steadily(root, parentOf(directory), open, abandon);
      try {
        await file.writeFile(bytes);
        if (old) await file.chmod((old.mode ?? 0o600) & 0o777);
        await file.sync();
        // Elsewhere there is no file of that name to be moved, and a link is only made where nothing
        // has the name of the target.
        if (overwrite) await Deno.rename(part, target);
        else await Deno.link(part, target);
      } finally {
        await file.close();
        await Deno.remove(part).catch(() => {}); // moved away, in the best case
      }
      return { path: target, bytes: bytes.length, created: !old };
    });
  }

  async #listRoots(): Promise<ListAnswer> {
    const roots = await this.#roots();
    const entries = await Promise.all(roots.map(async ({ path }) => {
      return await describe(path, { ...await Deno.lstat(path), name: path });
    }));
    return { path: "", entries, truncated: false };
  }

  /** The roots that are there, by the place they really are at. */
  async #roots(): Promise<RealRoot[]> {
    const roots: RealRoot[] = [];
    for (const { path, write = false } of await this.#options.roots()) {
      try {
        const real = await Deno.realPath(resolvePath(path, { home: this.#options.home }));
        roots.push({ path: real, isWritable: write });
      } catch {
        // Not there at the moment, like a disk that is not plugged in: nothing is lent of it.
      }
    }
    return roots;
  }

  /**
   * Where a path really leads, if that is inside a root, and the outermost root it is in.
   *
   * @throws {Refusal} outside of all roots, whether there is anything or not
   */
  async #locate(path: string): Promise<{ real: string; root: string }> {
    const roots = await this.#roots();
    await this.#mustLookInside(path, roots);
    const real = await Deno.realPath(path);
    const inside = roots.filter((root) => isWithin(real, root.path));
    if (inside.length === 0) throw outside();
    await this.#mustNotBeKept(real);
    return { real, root: outermost(inside) };
  }

  /** The directory that a file is to be in, by the place it really is at. */
  async #locateTarget(path: string): Promise<{ directory: string; name: string; root: string }> {
    const name = path.slice(path.lastIndexOf("/") + 1);
    if (name === "" || name === ".") throw new Refusal("it names no file");
    const roots = await this.#roots();
    await this.#mustLookInside(path, roots);
    const directory = await Deno.realPath(parentOf(path));
    const target = within(directory, name);
    const inside = roots.filter((root) => isWithin(target, root.path));
    if (inside.length === 0) throw outside();
    const writable = inside.filter(({ isWritable }) => isWritable);
    if (writable.length === 0) {
      throw new Refusal('its root is lent for reading only ("write": true would allow it)');
    }
    const around = writable.filter((root) => isWithin(directory, root.path));
    if (around.length === 0) {
      throw new Refusal("its root is a single file, and replacing one takes its directory");
    }
    await this.#mustNotBeKept(target);
    return { directory, name, root: outermost(around) };
  }

  /** Before the file system is asked: what there is elsewhere is nobody's business. */
  async #mustLookInside(path: string, roots: readonly RealRoot[]) {
    if (!path.startsWith("/")) throw new Refusal("the path is not absolute");
    if (path.includes("\0") || path.length > MAX_PATH) throw new Refusal("that is no path");
    if (path.split("/").includes("..")) throw new Refusal('the path has a ".." in it');
    const named = (await this.#options.roots()).map((root) =>
      resolvePath(root.path, { home: this.#options.home })
    );
    const plain = resolvePath(path, {});
    const isInside = [...named, ...roots.map((root) => root.path)].some((root) =>
      isWithin(plain, root)
    );
    if (!isInside) throw outside();
  }

  async #mustNotBeKept(real: string) {
    for (const kept of this.#options.kept) {
      // In some file systems upper and lower case are the same.
      const paths = [kept, await realOrNamed(kept)].map((one) => one.toLowerCase());
      if (paths.some((one) => isWithin(real.toLowerCase(), one))) {
        throw new Refusal("it belongs to the node itself, which lends none of its own files");
      }
    }
  }
}

/** Why a path is not served: shown with the path in front. */
class Refusal extends Error {
  override name = "Refusal";
}

/** A directory on the way. */
interface Step {
  dev: number;
  ino: number;
  /** When it last got or lost an entry; whoever may change it can also set this. */
  modifiedAtMs: number;
  /** When anything of it was last changed, in whole seconds; nobody can set that. */
  changedAtMs: number;
  /** Whether others than the node's own user may change it. */
  isShared: boolean;
}

/**
 * Does something below a directory while all directories from the root to it stay as they are: a
 * change leaves its time behind, which must have been old enough before for that to show.
 *
 * @param undo undoes what was done on a way that has changed
 * @throws {Refusal} when they do not come to rest
 */
async function steadily<T>(
  root: string,
  directory: string,
  work: () => Promise<T>,
  undo: (done: T) => Promise<unknown> = () => Promise.resolve(),
): Promise<T> {
  const begin = performance.now();
  while (performance.now() - begin < MAX_WAIT_MS) {
    const before = await stepsTo(root, directory);
    if (before?.every((step) => isAtRest(step, Date.now()))) {
      const done = await work();
      if (JSON.stringify(before) === JSON.stringify(await stepsTo(root, directory))) return done;
      await undo(done);
    }
    await new Promise((resolve) => setTimeout(resolve, REST_MS));
  }
  throw changed();
}

/** Whether a change from now on would show in its times. */
function isAtRest({ modifiedAtMs, changedAtMs, isShared }: Step, nowMs: number): boolean {
  if (Math.abs(nowMs - modifiedAtMs) <= REST_MS) return false;
  return !isShared || Math.abs(nowMs - changedAtMs) > 1_000 + REST_MS;
}

/** @returns undefined where one of them is no directory any more */
async function stepsTo(root: string, directory: string): Promise<Step[] | undefined> {
  const names = directory.slice(root.length).split("/").filter((name) => name !== "");
  const steps: Step[] = [];
  let path = root;
  for (const name of [undefined, ...names]) {
    if (name !== undefined) path = within(path, name);
    const info = await fs.lstat(path).catch(() => undefined);
    if (!info?.isDirectory()) return undefined;
    const { dev, ino, mtimeMs, ctimeMs, uid, mode } = info;
    const isShared = uid !== Deno.uid() || (mode & 0o022) !== 0;
    steps.push({ dev, ino, modifiedAtMs: mtimeMs, changedAtMs: ctimeMs, isShared });
  }
  return steps;
}

function outside(): Refusal {
  return new Refusal("it is outside the roots of this node (nodeHost.fs.roots)");
}

function changed(): Refusal {
  return new Refusal("what leads to it is being changed all the time");
}

/** @throws {CommandError} in place of whatever went wrong */
async function attempt<T>(verb: string, path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const shown = path.length > 200 ? `${path.slice(0, 200)}…` : path;
    const reason = error instanceof Refusal ? error.message : reasonOf(error as Error);
    throw new CommandError("INVALID_REQUEST", `Cannot ${verb} ${JSON.stringify(shown)}: ${reason}`);
  }
}

const REASONS: Record<string, string> = {
  ENOENT: "there is no such file or directory",
  ENOTDIR: "a part of the path is no directory",
  EISDIR: "it is a directory",
  EACCES: "the node may not (permission denied)",
  EPERM: "the node may not (not permitted)",
  ELOOP: "it is a symbolic link by now",
  EEXIST: "it is there already",
  EROFS: "the file system is read-only",
  ENOSPC: "the disk is full",
  EDQUOT: "the disk quota is used up",
  ENAMETOOLONG: "the name is too long",
};

/** Without the text of the system, which may name where a link leads. */
function reasonOf(error: Error): string {
  const { code } = error as { code?: unknown };
  return typeof code === "string" ? REASONS[code] ?? `the system says ${code}` : "it failed";
}

function readParams<T>(command: string, params: unknown, shape: Shape<T>): T {
  const value = params ?? {};
  const wrong = problems(value, shape);
  if (wrong.length > 0) {
    throw new CommandError("INVALID_REQUEST", `INVALID_REQUEST: ${command}: ${explain(wrong)}`);
  }
  return value as T;
}

function parentOf(path: string): string {
  return path.slice(0, path.lastIndexOf("/")) || "/";
}

function within(directory: string, name: string): string {
  return `${directory === "/" ? "" : directory}/${name}`;
}

function outermost(roots: readonly RealRoot[]): string {
  return roots.map(({ path }) => path).reduce((one, other) => isWithin(one, other) ? other : one);
}

function isWithin(path: string, root: string): boolean {
  return root === "/" || path === root || path.startsWith(`${root}/`);
}

/** Where a file is, or would be. */
async function realOrNamed(path: string): Promise<string> {
  try {
    return await Deno.realPath(path);
  } catch {
    const directory = await Deno.realPath(parentOf(path)).catch(() => parentOf(path));
    return within(directory, path.slice(path.lastIndexOf("/") + 1));
  }
}

async function lstatOf(path: string): Promise<Deno.FileInfo | undefined> {
  try {
    return await Deno.lstat(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

async function describe(
  path: string,
  entry: Pick<Deno.DirEntry, "name" | "isFile" | "isDirectory" | "isSymlink">,
): Promise<ListAnswer["entries"][number]> {
  const { name, isFile, isDirectory, isSymlink } = entry;
  const kind = isFile ? "file" : isDirectory ? "directory" : isSymlink ? "symlink" : "other";
  // Gone since the directory was read.
  const info = await lstatOf(path).catch(() => undefined);
  return {
    name,
    kind,
    ...(isFile && info && { size: info.size }),
    ...(info?.mtime && { modifiedAtMs: info.mtime.getTime() }),
  };
}

async function readFully(
  file: Pick<fs.FileHandle, "read">,
  length: number,
  offset: number,
): Promise<Uint8Array> {
  const buffer = Buffer.alloc(length);
  let at = 0;
  while (at < length) {
    const { bytesRead } = await file.read(buffer, at, length - at, offset + at);
    if (bytesRead === 0) break; // it has become shorter
    at += bytesRead;
  }
  return buffer.subarray(0, at);
}

/** Without the beginning of a character whose rest is behind the cut. */
function wholeCharacters(bytes: Uint8Array, isCut: boolean): Uint8Array {
  if (!isCut) return bytes;
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back];
    if ((byte & 0xc0) === 0x80) continue;
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return length > back ? bytes.subarray(0, bytes.length - back) : bytes;
  }
  return bytes;
}

function encode(bytes: Uint8Array, encoding: Encoding): string {
  if (encoding === "base64") return Buffer.from(bytes).toString("base64");
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new Refusal('it is no UTF-8 text; ask for it with "encoding": "base64"');
  }
}

function decode(content: string, encoding: Encoding): Uint8Array {
  if (encoding === "utf8") return new TextEncoder().encode(content);
  if (!/^[A-Za-z0-9+/]*={0,2}$/.test(content) || content.length % 4 !== 0) {
    throw new Refusal("the content is no base64");
  }
  return Buffer.from(content, "base64");
}
