// The environment of a command (§9.7): the node's own with what the caller adds, save what would make
// a program load or run something else.

import type { Env } from "../../config/paths.ts";

export const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** Neither inherited nor taken from a caller. */
const BLOCKED = new Set([
  "NODE_OPTIONS",
  "PYTHONHOME",
  "PYTHONPATH",
  "PERL5LIB",
  "PERL5OPT",
  "RUBYOPT",
]);
const BLOCKED_PREFIXES = ["DYLD_", "LD_"];

/** The node's own secrets: no business of the programs it starts. */
const SECRETS = [
  "ZERO_GATEWAY_TOKEN",
  "ZERO_GATEWAY_PASSWORD",
  "ZERO_BROWSER_CONTROL_TOKEN",
];

/**
 * What a caller may not set, though the owner of the machine may: whose files a shell reads when it
 * starts, what it runs before or besides the command, and where programs look for code of their own.
 */
const OWNERS_ONLY = new Set([
  "HOME",
  "USER",
  "LOGNAME",
  "SHELL",
  "ENV",
  "BASH_ENV",
  "ZDOTDIR",
  "PROMPT_COMMAND",
  "SHELLOPTS",
  "BASHOPTS",
  "PS4",
  "IFS",
  "CDPATH",
  "FPATH",
  "GLOBIGNORE",
  "EDITOR",
  "VISUAL",
  "PAGER",
  "MANPAGER",
  "BROWSER",
  "LESSOPEN",
  "LESSCLOSE",
  "GREP_OPTIONS",
  "PYTHONSTARTUP",
  "PYTHONBREAKPOINT",
  "PYTHONUSERBASE",
  "PYTHONINSPECT",
  "PERL5DB",
  "RUBYLIB",
  "GEM_HOME",
  "GEM_PATH",
  "BUNDLE_GEMFILE",
  "NODE_PATH",
  "JAVA_TOOL_OPTIONS",
  "_JAVA_OPTIONS",
  "JDK_JAVA_OPTIONS",
  "CLASSPATH",
  "GCONV_PATH",
  "HOSTALIASES",
  "LOCPATH",
  "NLSPATH",
  "TERMINFO",
  "TERMINFO_DIRS",
  "INPUTRC",
  "MAKEFLAGS",
  "MAKEFILES",
  "RUSTC_WRAPPER",
  "GOFLAGS",
  "OPENSSL_CONF",
  "OPENSSL_MODULES",
  "OPENSSL_ENGINES",
  "SSH_ASKPASS",
  "SUDO_ASKPASS",
  "WGETRC",
  "CURL_HOME",
]);
const OWNERS_ONLY_PREFIXES = [
  "BASH_FUNC_",
  "XDG_",
  "GIT_",
  "NPM_CONFIG_",
  "DENO_",
  "ZERO_",
  "PIP_",
  "CARGO_",
  "MALLOC_",
];

/** @param nodeEnv the environment the node was started with */
export function childEnv(
  nodeEnv: Env,
  overrides: Readonly<Record<string, string>> = {},
): Record<string, string> {
  const env: Record<string, string> = {};
  for (const [name, value] of Object.entries(nodeEnv)) {
    if (value === undefined || isBlocked(name) || SECRETS.includes(name)) continue;
    env[name] = value;
  }
  const path = pathOf(nodeEnv);
  env.PATH = path;
  for (const [name, value] of Object.entries(overrides)) {
    const upper = name.toUpperCase();
    if (upper === "PATH") {
      // Something may be put in front of the node's own PATH, never in its place.
      if (name === "PATH" && (value === path || value.endsWith(`:${path}`))) env.PATH = value;
      continue;
    }
    const isNamed = /^[^=\0]+$/.test(name) && !value.includes("\0");
    if (isNamed && !isBlocked(name) && !isOwnersOnly(upper)) env[name] = value;
  }
  return withUser(env);
}

/** PATH as the node has it; where it has none, the usual one. */
export function pathOf({ PATH }: Env): string {
  return PATH?.trim() ? PATH : DEFAULT_PATH;
}

function isBlocked(name: string): boolean {
  const upper = name.toUpperCase();
  return BLOCKED.has(upper) || BLOCKED_PREFIXES.some((prefix) => upper.startsWith(prefix));
}

function isOwnersOnly(upper: string): boolean {
  return OWNERS_ONLY.has(upper) || OWNERS_ONLY_PREFIXES.some((prefix) => upper.startsWith(prefix));
}

/** A service may have been started without them, and programs count on them. */
function withUser(env: Record<string, string>): Record<string, string> {
  env.SHELL ||= "/bin/sh";
  if (env.HOME && env.USER) return env;
  const account = accountOf(Deno.uid());
  env.HOME ||= account?.home ?? "/";
  env.USER ||= account?.name ?? String(Deno.uid());
  return env;
}

function accountOf(uid: number | null): { name: string; home: string } | undefined {
  try {
    const lines = Deno.readTextFileSync("/etc/passwd").split("\n").map((line) => line.split(":"));
    const [name, , , , , home] = lines.find((parts) => parts[2] === String(uid)) ?? [];
    return name && home ? { name, home } : undefined;
  } catch {
    return undefined; // accounts are kept elsewhere here: what is missing stays general
  }
}
