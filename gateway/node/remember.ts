// What "always" leaves behind on an allowlist: the programs of the command that a person said it to,
// save those that an entry would allow everything with.

import type { Evaluation } from "./allowlist.ts";
import { splitLine } from "./splitter.ts";

const SHELLS =
  /^(?:(?:a|ba|c|da|fi|k|lk|mk|oil?|po|pw|rba|rk|rz|tc|ya|z)?sh|busybox|elvish|nu|rc|toybox|xonsh)[\d.-]*$/;
/** They start another program, which they find among their arguments. */
const LAUNCHERS = new Set(
  [
    "chroot chrt command cpulimit dbus-run-session doas entr env eval exec faketime find firejail",
    "flock gdb ionice ltrace nice nohup npx nsenter numactl parallel pkexec rlwrap runcon runuser",
    "screen script setarch setpriv setsid ssh sshpass start-stop-daemon stdbuf strace su sudo",
    "systemd-run taskset time timeout tmux unbuffer unshare uvx valgrind watch xargs xvfb-run",
  ].join(" ").split(" "),
);
/** Languages: what they run is among their arguments. */
const INTERPRETERS =
  /^(?:[gmn]?awk|bun|deno|expect|guile|irb|jshell|julia|lua|luajit|node|nodejs|osascript|perl|php|pypy|python|rscript|ruby|tclsh|tsx|wish)[\d.]*$/;
/** One file that is many programs, and goes by the name it is started with. */
const MANY_IN_ONE = /^(?:busybox|toybox|coreutils)$/;

/**
 * The programs that somebody who says "always" to this command means: by their paths, and only those
 * that are not allowed as it is.
 */
export async function toRemember(evaluations: readonly Evaluation[]): Promise<string[]> {
  // Of a line for a shell the programs in it, not the shell.
  const { segments } = evaluations.at(-1)!;
  const paths = new Set(
    segments.flatMap(({ path, isAllowed }) => path && !isAllowed ? [path] : []),
  );
  const kept: string[] = [];
  for (const path of paths) {
    // In a pattern `*` and `?` would stand for other files too.
    if (!runsAnything(nameIn(path)) && !await isAliasOfOne(path) && !/[*?]/.test(path)) {
      kept.push(path);
    }
  }
  return kept;
}

/** Whether "always" leaves nothing behind for a command, going by its words alone. */
export function isNeverRemembered(argv: readonly string[]): boolean {
  const line = shellLine(argv);
  const segments = line === undefined ? [argv.map((text) => ({ text }))] : splitLine(line);
  return segments?.some(([first]) => !first || runsAnything(nameIn(first.text))) ?? true;
}

/** What a shell is given, where the argv is nothing but that. */
export function shellLine([program, option, line, ...rest]: readonly string[]): string | undefined {
  const isShell = program === "/bin/sh" && /^-l?c$/.test(option ?? "") && rest.length === 0;
  return isShell ? line : undefined;
}

function runsAnything(name: string): boolean {
  const plain = name.toLowerCase();
  return SHELLS.test(plain) || LAUNCHERS.has(plain) || INTERPRETERS.test(plain);
}

/** Whether a path is another name of one of these. */
async function isAliasOfOne(path: string): Promise<boolean> {
  const name = nameIn(await Deno.realPath(path).catch(() => path));
  return !MANY_IN_ONE.test(name) && runsAnything(name);
}

function nameIn(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}
