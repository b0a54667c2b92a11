// Which commands a node may offer (§9.5): by the kind of machine it is, and what the configuration
// adds or takes away. Pure functions; the configuration is asked anew at every invocation.

const CANVAS = [
  "canvas.present",
  "canvas.hide",
  "canvas.navigate",
  "canvas.eval",
  "canvas.snapshot",
  "canvas.a2ui.push",
  "canvas.a2ui.pushJSONL",
  "canvas.a2ui.reset",
];
const CAMERA = ["camera.list", "camera.snap", "camera.clip"];
const SCREEN = ["screen.record"];
const LOCATION = ["location.get"];
const SMS = ["sms.send"];
const SYSTEM = [
  "system.run",
  "system.which",
  "system.notify",
  "system.execApprovals.get",
  "system.execApprovals.set",
  "browser.proxy",
];

export type PlatformClass = "ios" | "android" | "macos" | "linux" | "windows" | "unknown";

const ALLOWED: Record<PlatformClass, readonly string[]> = {
  ios: [...CANVAS, ...CAMERA, ...SCREEN, ...LOCATION],
  android: [...CANVAS, ...CAMERA, ...SCREEN, ...LOCATION, ...SMS],
  macos: [...CANVAS, ...CAMERA, ...SCREEN, ...LOCATION, ...SYSTEM],
  linux: SYSTEM,
  windows: SYSTEM,
  unknown: [...CANVAS, ...CAMERA, ...SCREEN, ...LOCATION, ...SMS, ...SYSTEM],
};

export interface NodeRules {
  /** `gateway.nodes.allowCommands` */
  allowCommands?: readonly string[];
  /** `gateway.nodes.denyCommands`, which win. */
  denyCommands?: readonly string[];
}

/** Why a command is not sent (§7.8). */
export type PolicyRefusal =
  | "command required"
  | "command not allowlisted"
  | "command not declared by node"
  | "node did not declare commands";

export function platformClass(platform: string, deviceFamily = ""): PlatformClass {
  const name = platform.trim().toLowerCase();
  if (name.startsWith("ios")) return "ios";
  if (name.startsWith("android")) return "android";
  if (name.startsWith("mac") || name.startsWith("darwin")) return "macos";
  if (name.startsWith("win")) return "windows";
  if (name.startsWith("linux")) return "linux";
  const family = deviceFamily.toLowerCase();
  if (/iphone|ipad|ios/.test(family)) return "ios";
  if (family.includes("android")) return "android";
  if (family.includes("mac")) return "macos";
  if (family.includes("windows")) return "windows";
  return family.includes("linux") ? "linux" : "unknown";
}

/** Of the commands a node declares, those it may be asked to run. */
export function permittedCommands(
  declared: readonly string[],
  kind: PlatformClass,
  rules: NodeRules,
): string[] {
  return [...new Set(declared)].filter((command) => isAllowed(command, kind, rules)).sort();
}

/** @returns undefined for a command that may be sent */
export function refuseCommand(
  command: string,
  declared: readonly string[],
  kind: PlatformClass,
  rules: NodeRules,
): PolicyRefusal | undefined {
  if (command.trim() === "") return "command required";
  if (!isAllowed(command, kind, rules)) return "command not allowlisted";
  if (declared.length === 0) return "node did not declare commands";
  return declared.includes(command) ? undefined : "command not declared by node";
}

function isAllowed(command: string, kind: PlatformClass, rules: NodeRules): boolean {
  if (rules.denyCommands?.includes(command)) return false;
  return ALLOWED[kind].includes(command) || rules.allowCommands?.includes(command) === true;
}
