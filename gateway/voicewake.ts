// The words that wake a listening device (§7.2), kept in a file of their own.

import { writePrivateFile } from "../config/private_file.ts";

export const DEFAULT_TRIGGERS = ["zero", "claude", "computer"];
const MAX_TRIGGERS = 32;
const MAX_LENGTH = 64;

export class VoiceWake {
  readonly #path: string;
  #triggers: string[];

  private constructor(path: string, triggers: string[]) {
    this.#path = path;
    this.#triggers = triggers;
  }

  /** A missing or unreadable file means the default words. */
  static async open(path: string): Promise<VoiceWake> {
    let triggers: unknown;
    try {
      triggers = JSON.parse(await Deno.readTextFile(path)).triggers;
    } catch {
      // Nothing was set, or what was set cannot be read; both are mended by setting it.
    }
    return new VoiceWake(path, clean(triggers));
  }

  get triggers(): readonly string[] {
    return this.#triggers;
  }

  /** Cleans and keeps the words. @returns what they are now */
  async set(triggers: readonly string[]): Promise<readonly string[]> {
    const cleaned = clean(triggers);
    const text = JSON.stringify({ triggers: cleaned, updatedAtMs: Date.now() }, null, 2);
    await writePrivateFile(this.#path, `${text}\n`);
    this.#triggers = cleaned;
    return cleaned;
  }
}

function clean(triggers: unknown): string[] {
  if (!Array.isArray(triggers)) return DEFAULT_TRIGGERS;
  const words = triggers.filter((word) => typeof word === "string")
    .map((word) => word.trim().slice(0, MAX_LENGTH))
    .filter((word) => word !== "")
    .slice(0, MAX_TRIGGERS);
  return words.length > 0 ? words : DEFAULT_TRIGGERS;
}
