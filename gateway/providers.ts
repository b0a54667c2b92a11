// Adding, listing and removing model providers in the configuration of this machine. A key is tried
// before it is kept, and kept in a file of its own.

import { writePrivateFile } from "../config/private_file.ts";
import { UsageError } from "../config/command.ts";
import { setKey, unsetKey, writeConfig } from "../config/edit.ts";
import { ConfigError, type ConfigReading, readConfig } from "../config/load.ts";
import { type Paths, resolvePath } from "../config/paths.ts";
import { type Config, type SecretRef, secretSourceOf } from "../config/schema.ts";
import { resolveSecret } from "../config/secrets.ts";
import { printable, type Terminal } from "../config/terminal.ts";
import { RpcError } from "../rpc/error.ts";
import { isPrivateAddress } from "../tunnel/dial.ts";
import type { ProviderApi } from "./agent/provider.ts";
import type { UsageCost } from "./agent/usage.ts";

/** Providers whose address need not be typed. */
const KNOWN: Record<string, { api: ProviderApi; baseUrl: string; needsKey: boolean }> = {
  anthropic: {
    api: "anthropic-messages",
    baseUrl: "https://api.anthropic.com/v1",
    needsKey: true,
  },
  openai: { api: "openai-completions", baseUrl: "https://api.openai.com/v1", needsKey: true },
  openrouter: {
    api: "openai-completions",
    baseUrl: "https://openrouter.ai/api/v1",
    needsKey: true,
  },
  ollama: { api: "openai-completions", baseUrl: "http://127.0.0.1:11434/v1", needsKey: false },
};

const ANTHROPIC_VERSION = "2023-06-01";
const ASK_TIMEOUT_MS = 20_000;
/** More are not offered as a list to choose from. */
const MAX_CHOICES = 40;

export interface AddFlags {
  json: boolean;
  "base-url"?: string;
  api?: ProviderApi;
  key?: string;
  model?: string;
  default: boolean;
  "no-verify": boolean;
}

type ProviderConfig = NonNullable<NonNullable<Config["models"]>["providers"]>[string];

/** @throws {UsageError} | {ConfigError} | {Error} the provider refuses the key or is not there */
export async function addProvider(
  { name, paths, flags }: { name: string; paths: Paths; flags: AddFlags },
  terminal: Terminal,
): Promise<void> {
  if (!/^[a-z0-9][a-z0-9_-]{0,63}$/.test(name)) {
    throw new UsageError(
      `Cannot add the provider ${
        JSON.stringify(name)
      }: a name is lower case letters, digits, - and _`,
    );
  }
  const reading = await readValid(paths);
  const before: ProviderConfig = reading.config.models?.providers?.[name] ?? {};
  const known = KNOWN[name];
  const baseUrl = flags["base-url"] ?? before.baseUrl ?? known?.baseUrl;
  const api = flags.api ?? before.api ?? known?.api ?? "openai-completions";
  if (baseUrl === undefined) {
    throw new UsageError(`Cannot add ${name}: its address is not known`, {
      hint: `Say it: zero auth add ${name} --base-url https://…/v1`,
    });
  }
  if (!URL.canParse(baseUrl) || !/^https?:/.test(baseUrl)) {
    throw new UsageError(`Cannot add ${name}: ${printable(baseUrl)} is no address`, {
      hint: "Write it with its version: --base-url https://api.example/v1",
    });
  }
  // Another model of a provider that is there goes with the key that is there.
  const isKeyKept = flags.key === undefined && flags.model !== undefined &&
    (flags["base-url"] ?? before.baseUrl) === before.baseUrl;
  const given = isKeyKept && before.apiKey !== undefined
    ? { ref: before.apiKey }
    : await keyOf({ name, flags, needsKey: known?.needsKey ?? true }, terminal);
  const key = given.ref === undefined
    ? given.text
    : await resolveSecret(given.ref, { env: paths.env, name: `of ${name}` });
  refusePlainText(baseUrl, key);

  const offered = flags["no-verify"]
    ? undefined
    : await withProgress(terminal, `Asking ${name}`, () => offerOf({ name, api, baseUrl, key }));
  const isProven = offered !== undefined && key !== undefined &&
    !(await isOpen({ name, api, baseUrl }));
  const model = flags.model ?? await chosenModel(name, offered, terminal, flags.json);
  if (offered && model !== undefined && offered.length > 0 && !offered.includes(model)) {
    throw new UsageError(`Cannot use ${model}: ${name} does not offer it`, {
      hint: `See what it offers: zero models ${name} (or add it as it is: --no-verify)`,
    });
  }

  const apiKey: SecretRef | undefined = given.ref ??
    (given.text === undefined ? undefined : { file: await keepKey(paths, name, given.text) });
  const models = before.models ?? [];
  const provider: ProviderConfig = {
    ...before,
    api,
    baseUrl,
    ...(apiKey !== undefined && { apiKey }),
    ...(model !== undefined && !models.some(({ id }) => id === model)
      ? { models: [...models, { id: model }] }
      : {}),
  };
  let text = setKey(reading.raw ?? "", ["models", "providers", name], provider);
  const isDefault = model !== undefined &&
    (flags.default || reading.config.agents?.defaults?.model === undefined);
  if (isDefault) text = setKey(text, ["agents", "defaults", "model"], `${name}/${model}`);
  await writeConfig(paths.configPath, text, { env: paths.env, expectedHash: reading.hash });

  if (flags.json) {
    terminal.json({ ok: true, provider: name, api, baseUrl, model: model ?? null, isDefault });
    return;
  }
  const verdict = offered === undefined ? "" : isProven ? "; the key is good" : "; it answers";
  terminal.out(`Added ${name} (${baseUrl})${verdict}`);
  if (isDefault) terminal.out(`Agents now use ${name}/${model}`);
  else if (model !== undefined) {
    if (reading.config.agents?.defaults?.model === `${name}/${model}`) {
      return terminal.out(`Agents use ${name}/${model}`);
    }
    terminal.out(`To use it: zero config set agents.defaults.model ${name}/${model}`);
  } else {
    terminal.out(`Choose a model: zero models ${name}, then zero auth add ${name} --model ID`);
  }
}

export async function listProviders(
  { paths, isJson }: { paths: Paths; isJson: boolean },
  terminal: Terminal,
): Promise<void> {
  const { config } = await readValid(paths);
  const providers = Object.entries(config.models?.providers ?? {}).map(([name, one]) => ({
    name,
    api: one.api ?? "openai-completions",
    baseUrl: one.baseUrl ?? null,
    key: whereKeyStands(one.apiKey),
    models: (one.models ?? []).map(({ id }) => id),
  }));
  if (isJson) return terminal.json({ providers });
  if (providers.length === 0) {
    return terminal.out(
      "No providers; the built-in agent answers. Add one: zero auth add PROVIDER",
    );
  }
  terminal.table(
    providers.map((one) => [one.name, one.baseUrl ?? "", one.key, one.models.join(", ")]),
    { header: ["PROVIDER", "ADDRESS", "KEY", "MODELS"] },
  );
}

export async function removeProvider(
  { name, paths, isJson }: { name: string; paths: Paths; isJson: boolean },
  terminal: Terminal,
): Promise<void> {
  const reading = await readValid(paths);
  if (!reading.config.models?.providers?.[name]) {
    throw new UsageError(`Cannot remove ${name}: there is no such provider`, {
      hint: "See which there are: zero auth list",
    });
  }
  let text = unsetKey(reading.raw ?? "", ["models", "providers", name]);
  const { model, fallbacks = [] } = reading.config.agents?.defaults ?? {};
  const isOfIt = (id: string) => id.startsWith(`${name}/`);
  const wasDefault = model !== undefined && isOfIt(model);
  if (wasDefault) text = unsetKey(text, ["agents", "defaults", "model"]);
  if (fallbacks.some(isOfIt)) {
    const left = fallbacks.filter((id) => !isOfIt(id));
    text = setKey(text, ["agents", "defaults", "fallbacks"], left);
  }
  await writeConfig(paths.configPath, text, { env: paths.env, expectedHash: reading.hash });
  try {
    await Deno.remove(keyFile(paths, name));
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  if (isJson) return terminal.json({ ok: true, provider: name, wasDefault });
  terminal.out(`Removed ${name}${wasDefault ? "; the built-in agent answers now" : ""}`);
}

export async function showOffer(
  { name, paths, isJson }: { name: string; paths: Paths; isJson: boolean },
  terminal: Terminal,
): Promise<void> {
  const { config } = await readValid(paths);
  const provider = config.models?.providers?.[name];
  if (!provider?.baseUrl) {
    throw new UsageError(`Cannot ask ${name}: no such provider is configured`, {
      hint: `Add it: zero auth add ${name}`,
    });
  }
  const { api = "openai-completions", baseUrl, apiKey } = provider;
  const key = apiKey === undefined
    ? undefined
    : await resolveSecret(apiKey, { env: paths.env, name: `models.providers.${name}.apiKey` });
  refusePlainText(baseUrl, key);
  const models = await withProgress(
    terminal,
    `Asking ${name}`,
    () => offerOf({ name, api, baseUrl, key }),
  );
  if (isJson) return terminal.json({ provider: name, models });
  for (const id of models) terminal.out(printable(id));
}

export function tellUsage(answer: unknown, isJson: boolean, terminal: Terminal): void {
  if (isJson) return terminal.json(answer);
  const { days, totals, models } = answer as UsageCost;
  if (totals.turns === 0) return terminal.out(`No model was used in the last ${days} days`);
  const row = (name: string, one: UsageCost["totals"]) => [
    name,
    String(one.turns),
    String(one.inputTokens),
    String(one.outputTokens),
    one.costUsd === null ? "no price" : `$${one.costUsd.toFixed(2)}`,
  ];
  terminal.table(
    [...models.map((one) => row(one.model, one)), row("all", totals)],
    { header: ["MODEL", "TURNS", "TOKENS IN", "TOKENS OUT", "COST"] },
  );
}

async function readValid({ configPath, env }: Paths): Promise<ConfigReading> {
  const reading = await readConfig({ path: configPath, env });
  if (!reading.valid) throw new ConfigError(reading.issues);
  return reading;
}

/** The key as it was given: where it stands, or itself; neither where none is needed. */
async function keyOf(
  { name, flags, needsKey }: { name: string; flags: AddFlags; needsKey: boolean },
  terminal: Terminal,
): Promise<{ ref?: SecretRef; text?: string }> {
  if (flags.key === "-") return { text: (await terminal.readStdin()).trim() };
  if (flags.key !== undefined) {
    if (typeof secretSourceOf(flags.key) !== "object") {
      throw new UsageError("Cannot take a key from the command line: others could see it", {
        hint: "Leave --key out to be asked, or name where it stands: --key env:NAME",
      });
    }
    return { ref: flags.key };
  }
  if (!needsKey) return {};
  if (terminal.canAsk) {
    const text = (await terminal.askSecret(`Key of ${name}:`))?.trim();
    if (text) return { text };
  }
  throw new UsageError(`Cannot add ${name}: there is no key`, {
    hint: `Pipe it in: zero auth add ${name} --key - < FILE, or name it: --key env:NAME`,
  });
}

/** A key goes in the clear only where nobody else listens (D9). */
function refusePlainText(baseUrl: string, key: string | undefined): void {
  const { protocol, hostname } = new URL(baseUrl);
  const host = hostname.replace(/^\[|\]$/g, "");
  if (key === undefined || protocol === "https:") return;
  if (host === "localhost" || isPrivateAddress(host)) return;
  throw new UsageError(`Cannot send a key to ${baseUrl}: http:// is not encrypted`, {
    hint: "Use its https:// address",
  });
}

/** The ids of the models a provider offers, which it tells only to those with a good key. */
async function offerOf(
  { name, api, baseUrl, key }: {
    name: string;
    api: ProviderApi;
    baseUrl: string;
    key?: string;
  },
): Promise<string[]> {
  const headers: Record<string, string> = api === "anthropic-messages"
    ? { "anthropic-version": ANTHROPIC_VERSION, ...(key && { "x-api-key": key }) }
    : { ...(key && { authorization: `Bearer ${key}` }) };
  let response: Response;
  try {
    response = await fetch(`${baseUrl.replace(/\/+$/, "")}/models`, {
      headers,
      redirect: "manual", // the key is for this address only
      signal: AbortSignal.timeout(ASK_TIMEOUT_MS),
    });
  } catch (cause) {
    const reason = (cause as Error).name === "TimeoutError"
      ? "it does not answer"
      : "no connection";
    throw new RpcError("UNAVAILABLE", `Cannot reach ${name} at ${baseUrl}: ${reason}`, {
      details: { fix: "Look at its address, and whether it runs" },
      cause,
    });
  }
  if (!response.ok) {
    await response.body?.cancel();
    const isKey = response.status === 401 || response.status === 403;
    throw isKey
      ? new RpcError(
        "UNAVAILABLE",
        `Cannot use ${name}: it refused the key (HTTP ${response.status})`,
        {
          details: { fix: `zero auth add ${name}, with another key` },
        },
      )
      : new RpcError(
        "UNAVAILABLE",
        `Cannot use ${name}: ${baseUrl}/models answered HTTP ${response.status}`,
        { details: { fix: "Look at its address, which ends with the version: https://…/v1" } },
      );
  }
  try {
    const { data } = await response.json() as { data: { id: string }[] };
    return data.map(({ id }) => String(id)).sort();
  } catch (cause) {
    throw new RpcError("UNAVAILABLE", `Cannot use ${name}: ${baseUrl} does not speak ${api}`, {
      details: { fix: "Look at its address, or name its protocol: --api" },
      cause,
    });
  }
}

/** Whether the models are told to anybody, so that being told them says nothing of a key. */
async function isOpen(provider: Parameters<typeof offerOf>[0]): Promise<boolean> {
  try {
    await offerOf(provider);
    return true;
  } catch {
    return false; // refused, as it should be
  }
}

async function chosenModel(
  name: string,
  offered: string[] | undefined,
  terminal: Terminal,
  isJson: boolean,
): Promise<string | undefined> {
  if (!offered || offered.length === 0) return undefined;
  if (offered.length === 1) return offered[0];
  if (isJson || !terminal.isInteractive || !terminal.canAsk) return undefined;
  const shown = offered.slice(0, MAX_CHOICES);
  shown.forEach((id, index) => terminal.out(`${String(index + 1).padStart(3)}  ${printable(id)}`));
  if (offered.length > shown.length) {
    terminal.out(`     and ${offered.length - shown.length} more: zero models ${name}`);
  }
  const answer = (await terminal.ask("Which model? (number or name; empty: none)"))?.trim();
  if (!answer) return undefined;
  const number = /^\d+$/.test(answer) ? Number(answer) : NaN;
  return shown[number - 1] ?? answer;
}

async function withProgress<T>(
  terminal: Terminal,
  text: string,
  work: () => Promise<T>,
): Promise<T> {
  using _ = terminal.progress(text);
  return await work();
}

function keyFile({ stateDir }: Paths, name: string): string {
  return `${stateDir}/credentials/${name}.key`;
}

/** Only its owner can read it, from its first byte on. */
async function keepKey(paths: Paths, name: string, key: string): Promise<string> {
  const path = keyFile(paths, name);
  await writePrivateFile(path, `${key}\n`);
  return resolvePath(path, { home: paths.env.HOME, cwd: Deno.cwd() });
}

function whereKeyStands(ref: SecretRef | undefined): string {
  if (ref === undefined) return "none";
  const source = secretSourceOf(ref);
  if (source === undefined || typeof source === "string") return "in the configuration";
  if ("env" in source) return `env ${source.env}`;
  return "file" in source ? `file ${source.file}` : `program ${source.exec[0]}`;
}
