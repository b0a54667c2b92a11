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
 * starts, what programs run before, besides or instead of the command, with which options of their
 * own, and where they look for code.
 */
const OWNERS_ONLY = new Set(
  [
    // Who one is, and what a shell makes of a line.
    "CDPATH ENV FPATH GLOBIGNORE HOME IFS LOGNAME NULLCMD PROMPT_COMMAND PS4 READNULLCMD SHELL",
    "SHELLOPTS USER",
    // The system's libraries.
    "CHARSET GCONV_PATH GETCONF_DIR GLIBC_TUNABLES HOSTALIASES KRB5_CONFIG LOCALDOMAIN LOCPATH",
    "NIS_PATH NLSPATH RESOLV_HOST_CONF RES_OPTIONS SASL_PATH SSLKEYLOGFILE TERMCAP TERMINFO",
    "TERMINFO_DIRS",
    // Programs that start others, or take options from here.
    "AWKLIBPATH AWKPATH EXINIT FZF_DEFAULT_COMMAND GNUPGHOME HGRCPATH INPUTRC LESS LESSCLOSE",
    "LESSKEY LESSKEYIN LESSKEY_CONTENT LESSOPEN MORE MYVIMRC NETRC POSIXLY_CORRECT PSQLRC",
    "RIPGREP_CONFIG_PATH RSYNC_CONNECT_PROG SCREENRC TAPE TAR_OPTIONS TEXINPUTS UNZIP VIMINIT",
    "VIMRUNTIME WGETRC XZ_DEFAULTS XZ_OPT ZIPOPT",
    // Building.
    "AR AS CC CLASSPATH CPP CXX FC GCC_EXEC_PREFIX GNUMAKEFLAGS GOENV GOFLAGS GOPATH GOROOT",
    "GOTOOLCHAIN JAVA_HOME LD MAKE MAKEFILES MAKEFLAGS MFLAGS RUSTC RUSTC_WRAPPER RUSTDOC",
    "RUSTFLAGS COMPILER_PATH",
    // Where programs keep their settings.
    "CURL_HOME DOCKER_CONFIG DOCKER_CONTEXT DOCKER_HOST KUBECONFIG MYSQL_HOME PGSERVICEFILE",
    "PGSYSCONFDIR PHPRC",
  ].join(" ").split(" "),
);
const OWNERS_ONLY_PREFIXES = [
  "ANSIBLE_",
  "BASH",
  "BUNDLE_",
  "CARGO_",
  "CORECLR_",
  "CURL_CA_",
  "DENO_",
  "DOTNET_",
  "GEM_",
  "GIO_",
  "GIT_",
  "GTK_",
  "JDK_JAVA_",
  "LUA_",
  "MAGICK_",
  "MALLOC_",
  "NODE_",
  "NPM_CONFIG_",
  "OPENSSL_",
  "PERL",
  "PHP_",
  "PIP_",
  "PYTHON",
  "QT_",
  "RUBY",
  "RUSTUP_",
  "SSH_",
  "SSL_CERT_",
  "SUDO_",
  "SYSTEMD_",
  "UV_",
  "XDG_",
  "ZERO_",
];
/** A pager, an editor, a browser or a remote shell of one program or another, or its options. */
const OWNERS_ONLY_ENDINGS =
  /(?:PAGER|EDITOR|VISUAL|BROWSER|ASKPASS|ZDOTDIR|JAVA_OPTIONS|_OPTIONS|_OPTS|_RSH|_SSH|_ARGS)$/;
/** Of these families, those that only say how a program goes about it. */
const HARMLESS = new Set(
  [
    "NODE_ENV NODE_NO_WARNINGS PYTHONDONTWRITEBYTECODE PYTHONHASHSEED PYTHONIOENCODING",
    "PYTHONUNBUFFERED PYTHONUTF8",
  ].join(" ").split(" "),
);

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
  if (HARMLESS.has(upper)) return false;
  return OWNERS_ONLY.has(upper) || OWNERS_ONLY_ENDINGS.test(upper) ||
    OWNERS_ONLY_PREFIXES.some((prefix) => upper.startsWith(prefix));
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
