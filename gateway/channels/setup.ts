// Adding and removing the credentials of a channel while the gateway runs: the token is tried, kept in
// a file of its own that only the owner can read, and the configuration names that file.

import { writePrivateFile } from "../../config/private_file.ts";
import { setKey, unsetKey, writeConfig } from "../../config/edit.ts";
import { ConfigError, readConfig } from "../../config/load.ts";
import type { Paths } from "../../config/paths.ts";
import type { ConfigReading } from "../../config/load.ts";
import { defaultAt } from "../../config/schema.ts";
import { RpcError } from "../../rpc/error.ts";

export interface ChannelSetupOptions {
  paths: Paths;
  /** Makes a configuration that was just written the current one. */
  adopt(reading: ConfigReading, reason: string): void;
}

const TRY_TIMEOUT_MS = 20_000;

export class ChannelSetup {
  readonly #options: ChannelSetupOptions;

  constructor(options: ChannelSetupOptions) {
    this.#options = options;
  }

  /**
   * @returns the name of the bot
   * @throws {RpcError} the service does not take the token, or the configuration cannot be written
   */
  async add(
    { channel, token, apiRoot, allowFrom }: {
      channel: "telegram" | string;
      token: string;
      apiRoot?: string;
      allowFrom?: string[];
    },
  ): Promise<string> {
    const account = await nameOfBot(
      token.trim(),
      apiRoot ?? String(defaultAt(["channels", "telegram", "apiRoot"])),
    );
    const file = await this.#keep(channel, token.trim());
    await this.#change("channels.add", (raw, { config }) => {
      const { botToken: _, ...before } = config.channels?.telegram ?? {};
      return setKey(raw, ["channels", channel], {
        ...before,
        enabled: true,
        tokenFile: file,
        ...(apiRoot && { apiRoot }),
        ...(allowFrom && {
          allowFrom: allowFrom.map((one) => /^\d+$/.test(one) ? Number(one) : one),
        }),
      });
    });
    return account;
  }

  /** @returns whether there was anything to forget */
  async clear(channel: string): Promise<boolean> {
    let had = false;
    await this.#change("channels.logout", (raw, { config }) => {
      const { botToken, tokenFile } = config.channels?.telegram ?? {};
      had = botToken !== undefined || tokenFile !== undefined;
      let text = raw;
      if (botToken !== undefined) text = unsetKey(text, ["channels", channel, "botToken"]);
      if (tokenFile !== undefined) text = unsetKey(text, ["channels", channel, "tokenFile"]);
      return text;
    });
    await Deno.remove(this.#file(channel)).catch((error) => {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    });
    return had;
  }

  async #change(reason: string, edit: (raw: string, reading: ConfigReading) => string) {
    const { paths: { configPath, env }, adopt } = this.#options;
    try {
      const reading = await readConfig({ path: configPath, env });
      if (!reading.valid) throw new ConfigError(reading.issues);
      const text = edit(reading.raw ?? "", reading);
      if (text === (reading.raw ?? "")) return;
      adopt(await writeConfig(configPath, text, { env, expectedHash: reading.hash }), reason);
    } catch (cause) {
      if (!(cause instanceof ConfigError)) throw cause;
      throw new RpcError("INVALID_REQUEST", cause.message, { cause });
    }
  }

  async #keep(channel: string, token: string): Promise<string> {
    const path = this.#file(channel);
    await writePrivateFile(path, `${token}\n`);
    return path;
  }

  #file(channel: string): string {
    return `${this.#options.paths.stateDir}/credentials/${channel}.token`;
  }
}

/** Asks Telegram whose token it is. */
async function nameOfBot(token: string, apiRoot: string): Promise<string> {
  const fix = "Get a token from @BotFather, and run again: zero channels add telegram";
  if (!/^\d+:[\w-]{10,}$/.test(token)) {
    throw new RpcError("INVALID_REQUEST", "that is no token of a Telegram bot", {
      details: { fix },
    });
  }
  let answer: { ok?: boolean; result?: { username?: string } };
  try {
    const response = await fetch(`${apiRoot.replace(/\/+$/, "")}/bot${token}/getMe`, {
      redirect: "error",
      signal: AbortSignal.timeout(TRY_TIMEOUT_MS),
    });
    answer = await response.json();
  } catch {
    // What went wrong quotes the address, and that holds the token.
    throw new RpcError("UNAVAILABLE", `Telegram cannot be reached at ${apiRoot}`, {
      details: { fix: "Check that this machine reaches it, and run the command again" },
    });
  }
  if (answer.ok !== true || !answer.result?.username) {
    throw new RpcError("INVALID_REQUEST", "Telegram does not know this token", {
      details: { fix },
    });
  }
  return `@${answer.result.username}`;
}
