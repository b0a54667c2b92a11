// A tunnel that comes back with the login or the machine: a unit of systemd's user manager, or an agent
// of launchd. Neither holds a secret; ssh finds its keys as it does on a command line.

import type { Env } from "../config/paths.ts";
import { TunnelError } from "./error.ts";
import type { ProcessRunner } from "./process.ts";

export interface ServiceSpec {
  /** Of the tunnel. */
  name: string;
  profile?: string;
  /** What keeps it up, in the foreground. */
  argv: readonly string[];
  /** What the unit sets; no secrets. */
  env: Readonly<Record<string, string>>;
}

export interface ServiceWorld {
  os: string;
  env: Env;
  uid: number | null;
  runner: ProcessRunner;
}

/** What came of an installation. */
export interface Installed {
  file: string;
  /** It runs now, and will after the next login. */
  isEnabled: boolean;
  /** Commands that are left to the user, in this order. */
  next: string[];
}

/** What a unit must not restart after: wrong usage, and what only a person can mend. */
const FINAL_EXIT_CODES = [2, 78];
const RESTART_S = 5;
const RUN_TIMEOUT_MS = 20_000;

/** @throws {TunnelError} kind `state`: this system has neither systemd nor launchd */
export async function installService(spec: ServiceSpec, world: ServiceWorld): Promise<Installed> {
  const { file, text, label } = describeService(spec, world);
  await Deno.mkdir(file.slice(0, file.lastIndexOf("/")), { recursive: true });
  await Deno.writeTextFile(file, text, { mode: 0o644 });
  if (world.os === "darwin") {
    const domain = `gui/${world.uid}`;
    await succeeds(world, "launchctl", ["bootout", `${domain}/${label}`]);
    const isEnabled = await succeeds(world, "launchctl", ["bootstrap", domain, file]);
    return { file, isEnabled, next: isEnabled ? [] : [`launchctl bootstrap ${domain} ${file}`] };
  }
  const isEnabled = await succeeds(world, "systemctl", ["--user", "daemon-reload"]) &&
    await succeeds(world, "systemctl", ["--user", "enable", label]) &&
    await succeeds(world, "systemctl", ["--user", "restart", label]);
  const next = isEnabled
    ? []
    : ["systemctl --user daemon-reload", `systemctl --user enable --now ${label}`];
  const user = world.env.USER ?? world.env.LOGNAME;
  const linger = user === undefined ? undefined : await world.runner.run(
    "loginctl",
    ["show-user", user, "--property=Linger", "--value"],
    { timeoutMs: RUN_TIMEOUT_MS },
  );
  // Without it the user's units end with the last session, and do not start before the first.
  if (linger?.stdout.trim() !== "yes") next.push("loginctl enable-linger");
  return { file, isEnabled, next };
}

/** @returns the file that was there; undefined when there was none */
export async function uninstallService(
  spec: Pick<ServiceSpec, "name" | "profile">,
  world: ServiceWorld,
): Promise<string | undefined> {
  const { file, label } = describeService({ ...spec, argv: [], env: {} }, world);
  if (!await exists(file)) return undefined;
  if (world.os === "darwin") {
    await succeeds(world, "launchctl", ["bootout", `gui/${world.uid}/${label}`]);
    await Deno.remove(file);
    return file;
  }
  await succeeds(world, "systemctl", ["--user", "disable", "--now", label]);
  await Deno.remove(file);
  await succeeds(world, "systemctl", ["--user", "daemon-reload"]);
  return file;
}

/** The file of a service, and what stands in it. */
export function describeService(
  { name, profile, argv, env }: ServiceSpec,
  { os, env: { HOME: home, XDG_CONFIG_HOME: configHome } }: Pick<ServiceWorld, "os" | "env">,
): { file: string; label: string; text: string } {
  if (!home) {
    throw new TunnelError(
      "state",
      "Cannot install the tunnel: there is no home directory",
      "Set HOME",
    );
  }
  const words = ["tunnel", ...profile === undefined ? [] : [profile], name];
  if (os === "darwin") {
    const label = ["zero", ...words].join(".");
    const file = `${home}/Library/LaunchAgents/${label}.plist`;
    return { file, label, text: launchAgent(label, argv, env) };
  }
  if (os === "linux") {
    const label = `${["zero", ...words].join("-")}.service`;
    const file = `${configHome || `${home}/.config`}/systemd/user/${label}`;
    return { file, label, text: systemdUnit(name, argv, env) };
  }
  throw new TunnelError(
    "state",
    `Cannot install the tunnel: ${os} has neither systemd nor launchd`,
    `Start it with the system's own means: zero tunnel up ${name} --foreground`,
  );
}

function systemdUnit(
  name: string,
  argv: readonly string[],
  env: Readonly<Record<string, string>>,
): string {
  return [
    "[Unit]",
    `Description=ZERO tunnel ${name}`,
    // It looks after its own pauses: never give it up for having failed often.
    "StartLimitIntervalSec=0",
    "",
    "[Service]",
    `ExecStart=${argv.map(systemdWord).join(" ")}`,
    ...Object.entries(env).map(([key, value]) => `Environment=${systemdWord(`${key}=${value}`)}`),
    "Restart=on-failure",
    `RestartSec=${RESTART_S}`,
    `RestartPreventExitStatus=${FINAL_EXIT_CODES.join(" ")}`,
    "",
    "[Install]",
    "WantedBy=default.target",
    "",
  ].join("\n");
}

/** In quotes, with what systemd would expand doubled. */
function systemdWord(word: string): string {
  return `"${word.replace(/["\\]/g, "\\$&").replaceAll("%", "%%").replaceAll("$", "$$$$")}"`;
}

function launchAgent(
  label: string,
  argv: readonly string[],
  env: Readonly<Record<string, string>>,
): string {
  const text = (value: string) =>
    `<string>${
      value.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")
    }</string>`;
  const key = (name: string) => `<key>${name}</key>`;
  const variables = Object.entries(env).map(([name, value]) => `${key(name)}${text(value)}`);
  return [
    '<?xml version="1.0" encoding="UTF-8"?>',
    '<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">',
    '<plist version="1.0"><dict>',
    `${key("Label")}${text(label)}`,
    `${key("ProgramArguments")}<array>${argv.map(text).join("")}</array>`,
    `${key("EnvironmentVariables")}<dict>${variables.join("")}</dict>`,
    `${key("RunAtLoad")}<true/>`,
    `${key("KeepAlive")}<dict>${key("SuccessfulExit")}<false/></dict>`,
    `${key("ThrottleInterval")}<integer>60</integer>`,
    "</dict></plist>",
    "",
  ].join("\n");
}

async function succeeds(
  { runner }: ServiceWorld,
  program: string,
  args: readonly string[],
): Promise<boolean> {
  return (await runner.run(program, args, { timeoutMs: RUN_TIMEOUT_MS }))?.code === 0;
}

async function exists(file: string): Promise<boolean> {
  try {
    await Deno.lstat(file);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}
