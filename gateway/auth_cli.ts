// `zero auth` and `zero models`: keys of model providers, and what these providers offer. They change
// the configuration of this machine, so they are run where the gateway is.

import { type Command, command, JSON_FLAG, RPC_FLAGS } from "../config/command.ts";
import type { Paths } from "../config/paths.ts";
import { printable } from "../config/terminal.ts";
import { calling } from "./calling.ts";

const KNOWN_NAMES =
  "anthropic, openai, openrouter and ollama are known by name; others take --base-url.";

export function authCommands(
  world: { place: () => Paths; version: string },
): Command[] {
  const { place } = world;
  return [
    command({
      path: ["auth", "add"],
      summary: "Add a model provider: ask for its key, try it, choose a model",
      usage: "PROVIDER",
      flags: {
        ...JSON_FLAG,
        "base-url": {
          kind: "text",
          placeholder: "URL",
          summary: "Address of the provider, as far as the version: https://api.example/v1",
        },
        api: {
          kind: "text",
          choices: ["openai-completions", "anthropic-messages"],
          summary: "Protocol it speaks",
        },
        key: {
          kind: "text",
          placeholder: "REF",
          summary: "Where the key stands: env:NAME, file:PATH, exec:PROGRAM, or - for stdin",
        },
        model: { kind: "text", placeholder: "ID", summary: "Model to use" },
        default: { kind: "boolean", summary: "Use it even when another model is the default" },
        "no-verify": {
          kind: "boolean",
          summary: "Do not ask the provider whether the key is good",
        },
      },
      details: `The key is asked for without being shown, tried, and kept in a file that only ` +
        `you can read; the configuration names that file. ${KNOWN_NAMES} ` +
        `Run it on the machine of the gateway; a running one notices.`,
      examples: [
        "zero auth add anthropic",
        "zero auth add openai --key env:OPENAI_API_KEY --model gpt-5",
        "zero auth add local --base-url http://127.0.0.1:8080/v1 --model qwen3",
      ],
      async run({ args: [name], flags }, terminal) {
        const { addProvider } = await import("./providers.ts");
        await addProvider({ name, paths: place(), flags }, terminal);
      },
    }),
    command({
      path: ["auth", "list"],
      aliases: [["auth"]],
      summary: "List model providers, and where their keys stand",
      flags: JSON_FLAG,
      async run({ flags }, terminal) {
        const { listProviders } = await import("./providers.ts");
        await listProviders({ paths: place(), isJson: flags.json }, terminal);
      },
    }),
    command({
      path: ["auth", "remove"],
      summary: "Remove a model provider and the key that was kept for it",
      usage: "PROVIDER",
      flags: JSON_FLAG,
      async run({ args: [name], flags }, terminal) {
        const { removeProvider } = await import("./providers.ts");
        await removeProvider({ name, paths: place(), isJson: flags.json }, terminal);
      },
    }),
    command({
      path: ["models"],
      summary: "The models that agents can use, or all that a provider offers",
      usage: "[PROVIDER]",
      flags: RPC_FLAGS,
      details: "Without PROVIDER the gateway is asked. With it the provider is, with the key of " +
        "this machine.",
      examples: ["zero models", "zero models anthropic"],
      async run({ args: [provider], flags }, terminal) {
        if (provider !== undefined) {
          const { showOffer } = await import("./providers.ts");
          return await showOffer({ name: provider, paths: place(), isJson: flags.json }, terminal);
        }
        return await calling(flags, world, terminal, async (client) => {
          const answer = await client.call("models.list", {}) as {
            models: { id: string; name: string; provider: string; contextWindow?: number }[];
          };
          if (flags.json) return terminal.json(answer);
          if (answer.models.length === 0) {
            terminal.out("No models; the built-in agent answers. Add one: zero auth add PROVIDER");
            return;
          }
          const hasNames = answer.models.some(({ id, name }) => name !== id);
          terminal.table(
            answer.models.map(({ id, name, provider, contextWindow }) => [
              printable(`${provider}/${id}`),
              contextWindow === undefined ? "" : `${Math.round(contextWindow / 1000)}k tokens`,
              name === id ? "" : printable(name),
            ]),
            { header: ["MODEL", "CONTEXT", ...hasNames ? ["NAME"] : []] },
          );
        });
      },
    }),
    command({
      path: ["gateway", "usage-cost"],
      summary: "Show which models were used in the last days, and what that cost",
      flags: {
        ...RPC_FLAGS,
        days: { kind: "integer", min: 1, max: 3_660, default: 30, summary: "How far back" },
      },
      async run({ flags }, terminal) {
        return await calling(flags, world, terminal, async (client) => {
          const { tellUsage } = await import("./providers.ts");
          tellUsage(await client.call("usage.cost", { days: flags.days }), flags.json, terminal);
        });
      },
    }),
  ];
}
