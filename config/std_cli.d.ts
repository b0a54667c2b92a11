// The types of what is used of @std/cli and @std/fmt: the package they are mapped to ships none.

/** @std/cli/parse-args, as far as `command.ts` uses it. */
export interface ParseOptions {
  "--"?: boolean;
  alias?: Record<string, string>;
  boolean?: string[];
  string?: string[];
  collect?: string[];
  /** Sees each undeclared flag with its key, and each positional without one. */
  unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}

export interface ParsedArgs {
  _: (string | number)[];
  "--"?: string[];
  [name: string]: unknown;
}

export function parseArgs(args: string[], options?: ParseOptions): ParsedArgs;

/** @std/cli/prompt-secret: null where stdin is no terminal. */
export function promptSecret(
  message?: string,
  options?: { mask?: string; clear?: boolean },
): string | null;

/** @std/fmt/colors. */
export function bold(text: string): string;
export function dim(text: string): string;
export function red(text: string): string;
export function green(text: string): string;
export function yellow(text: string): string;
export function cyan(text: string): string;
