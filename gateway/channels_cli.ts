// `zero channels`, `zero pairing` and `zero message`: how people reach the agent from elsewhere.

import { type Command, command, RPC_FLAGS, UsageError } from "../config/command.ts";
import { formatDuration, printable, type Terminal } from "../config/terminal.ts";
import { calling } from "./calling.ts";
import type { CallWorld } from "./reach.ts";

interface Account {
  accountId: string;
  account?: string;
  configured: boolean;
  running: boolean;
  lastError?: string;
  lastInboundAtMs?: number;
  lastOutboundAtMs?: number;
}

interface Contact {
  channel: string;
  senderId: string;
  name: string;
  code?: string;
  askedAtMs: number;
  approvedAtMs?: number;
}

const MESSAGE_FLAGS = {
  to: { kind: "text", placeholder: "CHAT", summary: "Chat it goes to, as the channel numbers it" },
  message: { kind: "text", placeholder: "TEXT", summary: "What to say; - for standard input" },
  channel: { kind: "text", placeholder: "NAME", summary: "Which channel" },
  account: { kind: "text", placeholder: "ID", summary: "Which account of the channel" },
  "media-url": {
    kind: "list",
    placeholder: "URL",
    summary: "An https address of a picture or file; may be repeated",
  },
  "idempotency-key": {
    kind: "text",
    placeholder: "KEY",
    summary: "Send at most once for this key",
  },
} as const;

export function channelsCommands(world: CallWorld): Command[] {
  return [
    command({
      path: ["channels", "status"],
      aliases: [["channels"]],
      summary: "Show the channels, and whether they run",
      flags: {
        ...RPC_FLAGS,
        probe: { kind: "boolean", summary: "Ask the services themselves" },
      },
      run: ({ flags }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const answer = await client.call("channels.status", { probe: flags.probe }, {
            timeoutMs: flags.timeout,
          }) as {
            channelAccounts: Record<string, Account[]>;
            channelLabels: Record<string, string>;
          };
          if (flags.json) return terminal.json(answer);
          showAccounts(answer, terminal);
        }),
    }),
    command({
      path: ["channels", "add"],
      summary: "Add a channel: ask for the token of its bot, try it, and start it",
      usage: "CHANNEL",
      flags: {
        ...RPC_FLAGS,
        "allow-from": {
          kind: "list",
          placeholder: "WHO",
          summary: "Owner who may write at once: a number or @name; may be repeated",
        },
        "api-root": { kind: "text", placeholder: "URL", summary: "Bot API server of your own" },
      },
      details:
        "The token comes from @BotFather. It is asked for without being shown, or read from " +
        "standard input; the gateway keeps it in a file that only its user can read. Telegram is " +
        "the one channel there is.",
      examples: ["zero channels add telegram --allow-from @ada"],
      async run({ args: [channel], flags }, terminal) {
        checkChannel("add", channel);
        const token = (terminal.canAsk
          ? await terminal.askSecret("Token of the bot, from @BotFather:")
          : await terminal.readStdin())?.trim();
        if (!token) {
          throw new UsageError("Cannot add telegram: there is no token", {
            hint: "Pipe it in: zero channels add telegram < FILE",
          });
        }
        const allowFrom = flags["allow-from"];
        const apiRoot = flags["api-root"];
        return await calling(flags, world, terminal, async (client) => {
          const answer = await client.call("channels.add", {
            channel,
            token,
            ...(apiRoot && { apiRoot }),
            ...(allowFrom.length > 0 && { allowFrom }),
          }, { timeoutMs: Math.max(flags.timeout, 30_000) }) as { account: string };
          if (flags.json) {
            return terminal.json(answer);
          }
          terminal.out(`Added telegram as ${printable(answer.account)}`);
          terminal.out(
            allowFrom.length > 0
              ? `Write to it: https://t.me/${printable(answer.account.replace("@", ""))}`
              : "Write to it; it answers with a code to approve: zero pairing approve telegram CODE",
          );
        });
      },
    }),
    command({
      path: ["channels", "logout"],
      summary: "Stop a channel and forget its token",
      usage: "CHANNEL",
      flags: RPC_FLAGS,
      run: ({ args: [channel], flags }, terminal) => {
        checkChannel("log out of", channel);
        return calling(flags, world, terminal, async (client) => {
          const answer = await client.call("channels.logout", { channel }, {
            timeoutMs: flags.timeout,
          }) as { cleared: boolean };
          if (flags.json) return terminal.json(answer);
          terminal.out(
            answer.cleared
              ? `Forgot the token of ${printable(channel)}`
              : `${printable(channel)} had no token`,
          );
        });
      },
    }),
    command({
      path: ["pairing", "list"],
      aliases: [["pairing"]],
      summary: "List who waits to be let in on a channel, and who was",
      usage: "[CHANNEL]",
      flags: RPC_FLAGS,
      run: ({ args: [channel], flags }, terminal) => {
        if (channel !== undefined) checkChannel("look at", channel);
        return calling(flags, world, terminal, async (client) => {
          const answer = await client.call("pairing.list", { ...(channel && { channel }) }, {
            timeoutMs: flags.timeout,
          }) as { requests: Contact[]; approved: Contact[] };
          if (flags.json) return terminal.json(answer);
          showContacts(answer, terminal);
        });
      },
    }),
    command({
      path: ["pairing", "approve"],
      summary: "Let somebody in who was given a code",
      usage: "CHANNEL CODE",
      flags: RPC_FLAGS,
      examples: ["zero pairing approve telegram K7QM2XWP"],
      run: ({ args: [channel, code], flags }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const answer = await client.call("pairing.approve", { channel, code }, {
            timeoutMs: flags.timeout,
          }) as { contact: Contact };
          if (flags.json) return terminal.json(answer);
          const { name, senderId } = answer.contact;
          terminal.out(`Let ${printable(name)} (${senderId}) in; not as an owner`);
        }),
    }),
    command({
      path: ["pairing", "remove"],
      summary: "Let somebody in no longer",
      usage: "CHANNEL NUMBER",
      flags: RPC_FLAGS,
      run: ({ args: [channel, senderId], flags }, terminal) =>
        calling(flags, world, terminal, async (client) => {
          const answer = await client.call("pairing.remove", { channel, senderId }, {
            timeoutMs: flags.timeout,
          }) as { removed: boolean };
          if (flags.json) return terminal.json(answer);
          terminal.out(answer.removed ? `Removed ${senderId}` : `${senderId} was not known`);
        }),
    }),
    command({
      path: ["message", "send"],
      aliases: [["gateway", "send"]],
      summary: "Send a message to a chat of a channel",
      flags: { ...RPC_FLAGS, ...MESSAGE_FLAGS },
      examples: ['zero message send --to 1001 --message "Dinner is ready"'],
      async run({ flags }, terminal) {
        const { to, message, channel, account } = flags;
        const missing = !to ? "--to" : !message ? "--message" : undefined;
        if (missing) throw new UsageError(`Cannot send a message: ${missing} is missing`);
        const urls = flags["media-url"];
        const text = message === "-" ? await terminal.readStdin() : message;
        return await calling(flags, world, terminal, async (client) => {
          const answer = await client.call("send", {
            to,
            message: text,
            ...(channel && { channel }),
            ...(account && { accountId: account }),
            ...(urls.length > 0 && { mediaUrls: urls }),
            idempotencyKey: flags["idempotency-key"] ?? crypto.randomUUID(),
          }, { timeoutMs: Math.max(flags.timeout, 30_000) }) as {
            messageId: string;
            channel: string;
          };
          if (flags.json) return terminal.json(answer);
          terminal.out(`Sent (${answer.channel} message ${answer.messageId})`);
        });
      },
    }),
  ];
}

/** @throws {UsageError} for anything but the one channel there is */
function checkChannel(what: string, channel: string): void {
  if (channel === "telegram") return;
  throw new UsageError(`Cannot ${what} ${printable(channel)}: the one channel is telegram`);
}

function showAccounts(
  { channelAccounts, channelLabels }: {
    channelAccounts: Record<string, Account[]>;
    channelLabels: Record<string, string>;
  },
  terminal: Terminal,
): void {
  const rows = Object.entries(channelAccounts).flatMap(([channel, accounts]) =>
    accounts.map((one) => [
      channelLabels[channel] ?? channel,
      printable(one.account ?? one.accountId),
      one.running ? terminal.style.green("running") : terminal.style.red("not running"),
      ago(one.lastInboundAtMs),
      printable(one.lastError ?? ""),
    ])
  );
  if (rows.length === 0) return terminal.out("No channels. Add one: zero channels add telegram");
  terminal.table(rows, { header: ["CHANNEL", "ACCOUNT", "STATE", "LAST MESSAGE", "PROBLEM"] });
}

function showContacts(
  { requests, approved }: { requests: Contact[]; approved: Contact[] },
  terminal: Terminal,
): void {
  if (requests.length + approved.length === 0) return terminal.out("Nobody has asked");
  terminal.table(
    [...requests, ...approved].map(({ channel, senderId, name, code, askedAtMs, approvedAtMs }) => [
      channel,
      senderId,
      printable(name),
      code ?? "let in",
      ago(approvedAtMs ?? askedAtMs),
    ]),
    { header: ["CHANNEL", "NUMBER", "NAME", "CODE", "SINCE"] },
  );
}

function ago(ms: number | undefined): string {
  return ms === undefined ? "" : `${formatDuration(Math.max(0, Date.now() - ms))} ago`;
}
