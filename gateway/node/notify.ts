// `system.notify`: shows a notification by the notifier of this machine, where there is one. What is
// shown is text to it and nothing else: no option, no markup, no script.

import type { Env } from "../../config/paths.ts";
import {
  explain,
  type Infer,
  nullable,
  oneOf,
  open,
  optional,
  problems,
  text,
} from "../../rpc/shape.ts";
import { CommandError } from "./command_error.ts";
import { childEnv, pathOf } from "./env.ts";
import { runCommand } from "./exec.ts";
import { findProgram } from "./which.ts";

const maybe = <T>(shape: Parameters<typeof nullable<T>>[0]) => optional(nullable(shape));

const NotifyParams = open({
  title: maybe(text()),
  body: maybe(text()),
  /** The name of a sound of the system. */
  sound: maybe(text()),
  priority: maybe(oneOf(["passive", "active", "timeSensitive"])),
  delivery: maybe(oneOf(["system", "overlay", "auto"])),
});
type NotifyParams = Infer<typeof NotifyParams>;

export interface NotifierOptions {
  env: Env;
  cwd: string;
  /** The system this runs on. */
  os?: typeof Deno.build.os;
  signal?: AbortSignal;
}

export interface NotifyAnswer {
  shown: true;
  /** The program that shows it. */
  by: string;
}

const MAX_TITLE = 200;
const MAX_BODY = 4_000;
const TIMEOUT_MS = 10_000;
const SOUND = /^[A-Za-z0-9][\w .-]{0,63}$/;
const URGENCY = { passive: "low", active: "normal", timeSensitive: "critical" };
/** Everything variable comes as an argument. */
const APPLESCRIPT = [
  "on run argv",
  'if item 4 of argv is "" then',
  "display notification (item 3 of argv) with title (item 2 of argv)",
  "else",
  "display notification (item 3 of argv) with title (item 2 of argv) sound name (item 4 of argv)",
  "end if",
  "end run",
];

/** The notifier of this machine; undefined without one, or where nobody would see it. */
export async function findNotifier(options: NotifierOptions): Promise<string | undefined> {
  const { env, cwd, os = Deno.build.os } = options;
  const search = { path: pathOf(env), cwd };
  if (os === "darwin") return await findProgram("osascript", search);
  if (os !== "linux" || !await hasSessionBus(env)) return undefined;
  return await findProgram("notify-send", search);
}

/** @throws {CommandError} what is wrong with the params, or why it was not shown */
export async function notify(params: unknown, options: NotifierOptions): Promise<NotifyAnswer> {
  const wrong = problems(params ?? {}, NotifyParams);
  if (wrong.length > 0) {
    throw new CommandError("INVALID_REQUEST", `INVALID_REQUEST: system.notify: ${explain(wrong)}`);
  }
  const wish = (params ?? {}) as NotifyParams;
  const title = shown(wish.title, MAX_TITLE);
  const body = shown(wish.body, MAX_BODY);
  if (title === "" && body === "") {
    throw new CommandError("INVALID_REQUEST", "INVALID_REQUEST: title or body required");
  }
  if (wish.sound && !SOUND.test(wish.sound)) {
    throw new CommandError("INVALID_REQUEST", "INVALID_REQUEST: sound is not the name of a sound");
  }
  if (wish.delivery === "overlay") {
    throw new CommandError("UNAVAILABLE", "this node shows no overlays");
  }
  const program = await findNotifier(options);
  if (!program) throw new CommandError("UNAVAILABLE", "command not supported");
  const { os = Deno.build.os, env, signal, cwd } = options;
  const args = os === "darwin"
    ? osascriptArgs(title, body, wish)
    : notifySendArgs(title, body, wish);
  const outcome = await runCommand({
    argv: [program, ...args],
    cwd,
    env: childEnv(env, {}),
    timeoutMs: TIMEOUT_MS,
    signal,
  });
  const by = program.slice(program.lastIndexOf("/") + 1);
  if (outcome.success) return { shown: true, by };
  const reason = outcome.timedOut
    ? `no answer within ${TIMEOUT_MS / 1_000} s`
    : outcome.error ?? (outcome.stderr.trim().slice(0, 500) || `exit code ${outcome.exitCode}`);
  throw new CommandError("UNAVAILABLE", `Cannot show the notification: ${by}: ${reason}`);
}

function notifySendArgs(title: string, body: string, { sound, priority }: NotifyParams): string[] {
  return [
    "--app-name=ZERO",
    `--urgency=${URGENCY[priority ?? "active"]}`,
    ...sound ? [`--hint=string:sound-name:${sound}`] : [],
    "--",
    title || body,
    ...title !== "" && body !== "" ? [plainBody(body)] : [],
  ];
}

/** osascript takes no options any more behind its first argument, which is "ZERO". */
function osascriptArgs(title: string, body: string, { sound }: NotifyParams): string[] {
  const script = APPLESCRIPT.flatMap((line) => ["-e", line]);
  return [...script, "ZERO", title || "ZERO", body, sound ?? ""];
}

/** notify-send reads backslashes as C does, and what shows the body reads markup. */
function plainBody(body: string): string {
  return body.replaceAll("\\", "\\\\").replaceAll("&", "&amp;").replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;");
}

/** Without control characters, save line breaks. */
function shown(value: string | null | undefined, max: number): string {
  // deno-lint-ignore no-control-regex
  const plain = (value ?? "").replace(/[\x00-\x09\x0b-\x1f\x7f]/g, " ").trim();
  return [...plain].slice(0, max).join("");
}

/** Where notifications of a Linux desktop go. */
async function hasSessionBus(env: Env): Promise<boolean> {
  if (env.DBUS_SESSION_BUS_ADDRESS?.trim()) return true;
  const directory = env.XDG_RUNTIME_DIR?.trim();
  if (!directory) return false;
  return await Deno.stat(`${directory}/bus`).then(({ isSocket }) => isSocket === true, () => false);
}
