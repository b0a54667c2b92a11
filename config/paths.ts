// Where the configuration and the state of an installation live, and what the files are called
// (§11.1, §12). Nothing is read or made here.

/** Environment variables by name, as the program was started with them. */
export type Env = Readonly<Record<string, string | undefined>>;

export interface PathOptions {
  env: Env;
  /** The user's home directory; what `~` stands for. */
  home?: string;
  /** `--profile <name>` */
  profile?: string;
  /** `--dev`: the profile `dev`, on a port of its own. */
  dev?: boolean;
  /** What relative paths are relative to; without it they stay relative. */
  cwd?: string;
}

export interface Paths {
  /** Absent: the default profile. */
  profile?: string;
  stateDir: string;
  configPath: string;
  /** The port that the profile `dev` sets; absent when the environment names one. */
  portOverride?: number;
  /** The environment with what the profile sets; to be used instead of the one given. */
  env: Env;
  /** Held while a gateway runs on this state directory (D20). */
  lockFile: string;
  /** The secret a gateway made for itself (D6). */
  tokenFile: string;
  database: string;
  /** Key pair of this installation as a client or node. */
  deviceFile: string;
  /** Device tokens this installation got from gateways. */
  deviceAuthFile: string;
  logFile: string;
  voicewakeFile: string;
}

/** The port of the profile `dev`, beside a gateway on the usual one. */
export const DEV_PORT = 19_001;

/**
 * A profile sets only what the environment leaves unset. A variable that is blank counts as unset.
 *
 * @throws {Error} a profile name that is none, `--dev` beside `--profile`, or no home directory
 */
export function resolvePaths({ env, home, profile, dev = false, cwd }: PathOptions): Paths {
  if (dev && profile !== undefined) {
    throw new Error("Cannot use --dev and --profile together: --dev is the profile dev");
  }
  const name = dev ? "dev" : profile ?? filled(env.ZERO_PROFILE);
  if (name !== undefined && !PROFILE_NAME.test(name)) {
    const origin = profile === undefined ? "ZERO_PROFILE" : "--profile";
    throw new Error(
      `Cannot use ${origin} ${JSON.stringify(name)}: a profile name is 1 to 64 letters, digits, ` +
        '"_" or "-", and begins with a letter or digit',
    );
  }
  const absolute = (path: string) => resolvePath(path, { home, cwd });
  const isDefault = name === undefined || name === "default";
  const stateDir = absolute(
    filled(env.ZERO_STATE_DIR) ?? (isDefault ? "~/.zero" : `~/.zero-${name}`),
  );
  const configPath = absolute(filled(env.ZERO_CONFIG_PATH) ?? `${stateDir}/zero.json`);
  const portOverride = name === "dev" && filled(env.ZERO_GATEWAY_PORT) === undefined
    ? DEV_PORT
    : undefined;

  const effective: Record<string, string | undefined> = { ...env };
  if (name !== undefined) {
    effective.ZERO_PROFILE = name;
    effective.ZERO_STATE_DIR = stateDir;
    effective.ZERO_CONFIG_PATH = configPath;
  }
  if (portOverride !== undefined) effective.ZERO_GATEWAY_PORT = String(portOverride);

  return {
    ...(name !== undefined && { profile: name }),
    ...(portOverride !== undefined && { portOverride }),
    stateDir,
    configPath,
    env: effective,
    ...stateFiles(stateDir),
  };
}

/** The files of a state directory that more than one part of the program knows. */
export function stateFiles(stateDir: string) {
  return {
    lockFile: `${stateDir}/gateway.lock`,
    tokenFile: `${stateDir}/gateway.token`,
    database: `${stateDir}/zero.sqlite`,
    deviceFile: `${stateDir}/identity/device.json`,
    deviceAuthFile: `${stateDir}/identity/device-auth.json`,
    logFile: `${stateDir}/logs/gateway.log`,
    voicewakeFile: `${stateDir}/settings/voicewake.json`,
  };
}

/**
 * A path with `~` and `.` resolved.
 *
 * @throws {Error} the path begins with `~` and there is no home directory
 */
export function resolvePath(
  path: string,
  { home, cwd }: { home?: string; cwd?: string },
): string {
  if (path === "~" || path.startsWith("~/")) {
    if (!home) throw new Error(`Cannot resolve ${path}: there is no home directory; set HOME`);
    return normalized(`${home}/${path.slice(1)}`);
  }
  return normalized(path.startsWith("/") || cwd === undefined ? path : `${cwd}/${path}`);
}

/** A command that mends something here, for the profile it is wrong in; other texts as they are. */
export function inProfile(fix: string, profile: string | undefined): string {
  if (profile === undefined) return fix;
  return fix.replace(
    /^zero (?=[a-z])/,
    `zero ${profile === "dev" ? "--dev" : `--profile ${profile}`} `,
  );
}

const PROFILE_NAME = /^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/;

function filled(value: string | undefined): string | undefined {
  return value === undefined || value.trim() === "" ? undefined : value.trim();
}

function normalized(path: string): string {
  const isAbsolute = path.startsWith("/");
  const parts: string[] = [];
  for (const part of path.split("/")) {
    if (part === "" || part === ".") continue;
    if (part === ".." && parts.length > 0 && parts.at(-1) !== "..") parts.pop();
    else if (part !== ".." || !isAbsolute) parts.push(part);
  }
  return isAbsolute ? `/${parts.join("/")}` : parts.join("/") || ".";
}
