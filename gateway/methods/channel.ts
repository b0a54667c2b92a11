// Channels: messages out, the state of accounts, and people who wait to be let in (§7.5, §7.11).

import { RpcError } from "../../rpc/error.ts";
import {
  boolean,
  integer,
  list,
  mapOf,
  nonEmpty,
  object,
  open,
  optional,
  text,
} from "../../rpc/shape.ts";
import { type Address, DEFAULT_ACCOUNT, type OutgoingMessage } from "../channels/channel.ts";
import { type Gateway, method, nameOf } from "../gateway.ts";

/** How long `send` waits to hear what became of the message. */
const SEND_WAIT_MS = 25_000;

const Account = open({
  accountId: text(),
  configured: boolean(),
  running: boolean(),
  lastError: optional(text()),
});

const Contact = open({
  channel: text(),
  accountId: text(),
  senderId: text(),
  name: text(),
});

export const channelMethods = [
  method({
    name: "channels.status",
    summary: "The channels that are configured, and whether they run",
    scope: "operator.read",
    params: object({
      probe: optional(boolean()),
      timeoutMs: optional(integer({ min: 0 })),
    }),
    result: open({
      ts: integer(),
      channelOrder: list(text()),
      channelLabels: mapOf(text()),
      channels: mapOf(open({})),
      channelAccounts: mapOf(list(Account)),
      channelDefaultAccountId: mapOf(text()),
    }),
    async handle({ probe = false }, { gateway }) {
      const accounts = await Promise.all(
        gateway.channels.status().map(async (one) => ({
          ...one,
          ...(probe && { probe: await probed(gateway, one.channel), lastProbeAt: Date.now() }),
        })),
      );
      const byChannel = <T>(value: (one: typeof accounts[number]) => T) =>
        Object.fromEntries(accounts.map((one) => [one.channel, value(one)]));
      return {
        ts: Date.now(),
        channelOrder: accounts.map(({ channel }) => channel),
        channelLabels: byChannel(({ label }) => label),
        channels: byChannel(({ configured, running, lastError }) => ({
          configured,
          running,
          linked: running,
          ...(lastError && { lastError }),
        })),
        channelAccounts: byChannel(({ channel: _, label: __, ...account }) => [account]),
        channelDefaultAccountId: byChannel(({ accountId }) => accountId),
      };
    },
  }),
  method({
    name: "channels.logout",
    summary: "Forget the credentials of a channel",
    scope: "operator.admin",
    params: object({ channel: nonEmpty(), accountId: optional(nonEmpty()) }),
    result: object({ channel: text(), accountId: text(), cleared: boolean() }),
    async handle({ channel, accountId = DEFAULT_ACCOUNT }, { gateway, caller }) {
      if (channel !== "telegram") {
        throw new RpcError("INVALID_REQUEST", "invalid channels.logout channel");
      }
      const cleared = await gateway.channelSetup.clear(channel);
      await gateway.channels.refresh();
      if (cleared) gateway.audit.record("channel.removed", { channel, by: nameOf(caller) });
      return { channel, accountId, cleared };
    },
  }),
  method({
    name: "channels.add",
    summary: "Add a channel: its token is tried, kept in a file, and named in the configuration",
    scope: "operator.admin",
    params: object({
      channel: nonEmpty(),
      token: nonEmpty(),
      apiRoot: optional(nonEmpty()),
      allowFrom: optional(list(nonEmpty())),
    }),
    result: object({ channel: text(), accountId: text(), account: text() }),
    async handle(params, { gateway, caller }) {
      const { channel } = params;
      if (channel !== "telegram") {
        throw new RpcError("INVALID_REQUEST", `unsupported channel: ${channel}`);
      }
      const account = await gateway.channelSetup.add(params);
      await gateway.channels.refresh();
      gateway.audit.record("channel.added", {
        channel,
        displayName: account,
        by: nameOf(caller),
      });
      return { channel, accountId: DEFAULT_ACCOUNT, account };
    },
  }),
  method({
    name: "send",
    summary: "Send a message to somebody on a channel",
    scope: "operator.write",
    params: object({
      to: nonEmpty(),
      message: nonEmpty(),
      mediaUrl: optional(text()),
      mediaUrls: optional(list(text())),
      gifPlayback: optional(boolean()),
      channel: optional(text()),
      accountId: optional(text()),
      sessionKey: optional(text()),
      threadId: optional(text()),
      idempotencyKey: nonEmpty(),
    }),
    result: object({ runId: text(), messageId: text(), channel: text(), chatId: text() }),
    async handle(params, { gateway }) {
      const channel = params.channel?.trim().toLowerCase() || gateway.channels.defaultChannel;
      if (channel === undefined) {
        throw new RpcError("INVALID_REQUEST", "no channel is configured", {
          details: { fix: "zero channels add telegram" },
        });
      }
      if (!gateway.channels.status().some((one) => one.channel === channel)) {
        throw new RpcError("INVALID_REQUEST", `unsupported channel: ${channel}`);
      }
      const to: Address = {
        channel,
        accountId: params.accountId ?? DEFAULT_ACCOUNT,
        to: params.to,
        ...(params.threadId && { threadId: params.threadId }),
      };
      const urls = [params.mediaUrl, ...params.mediaUrls ?? []].filter((url) => url !== undefined);
      const message: OutgoingMessage = {
        text: params.message,
        ...(urls.length > 0 && { media: urls.map((url) => ({ url })) }),
      };
      return await sendOut(gateway, { to, message, runId: params.idempotencyKey });
    },
  }),
  method({
    name: "pairing.list",
    summary: "People who wait to be let in on a channel, and those who were",
    scope: "operator.admin",
    params: object({ channel: optional(text()) }),
    result: object({ requests: list(Contact), approved: list(Contact) }),
    handle({ channel }, { gateway }) {
      const all = gateway.contacts.list().filter((one) => !channel || one.channel === channel);
      return {
        requests: all.filter(({ code }) => code !== undefined),
        approved: all.filter(({ code }) => code === undefined),
      };
    },
  }),
  method({
    name: "pairing.approve",
    summary: "Let somebody in who was given a code on a channel",
    scope: "operator.admin",
    params: object({ channel: nonEmpty(), code: nonEmpty() }),
    result: object({ ok: boolean(), contact: Contact }),
    handle({ channel, code }, { gateway, caller }) {
      const contact = gateway.contacts.approve(channel, code, nameOf(caller));
      if (!contact) {
        throw new RpcError("INVALID_REQUEST", "unknown or expired pairing code", {
          details: { fix: `zero pairing list ${channel}` },
        });
      }
      const { accountId, senderId, name } = contact;
      gateway.audit.record("channel.paired", {
        channel,
        senderId,
        displayName: name,
        by: nameOf(caller),
      });
      gateway.events.publish("channel.pair.resolved", {
        channel,
        accountId,
        senderId,
        decision: "approved",
        ts: Date.now(),
      });
      const to = { channel, accountId, to: senderId };
      gateway.outbox.enqueue(
        to,
        { text: "You were let in. Write to me, or see what I understand: /help" },
        `paired:${channel}:${senderId}:${code}`,
      );
      const { code: _, ...approved } = contact;
      return { ok: true, contact: approved };
    },
  }),
  method({
    name: "pairing.remove",
    summary: "Let somebody in no longer",
    scope: "operator.admin",
    params: object({ channel: nonEmpty(), senderId: nonEmpty() }),
    result: object({ ok: boolean(), removed: boolean() }),
    handle({ channel, senderId }, { gateway, caller }) {
      const removed = gateway.contacts.remove({ channel, accountId: DEFAULT_ACCOUNT, senderId });
      if (removed) {
        gateway.audit.record("channel.unpaired", { channel, senderId, by: nameOf(caller) });
      }
      return { ok: true, removed };
    },
  }),
];

/**
 * Through the outbox, so that a message that was accepted is sent also when the gateway dies.
 *
 * @throws {RpcError} it failed, or nobody knows yet
 */
async function sendOut(
  { outbox }: Gateway,
  { to, message, runId }: { to: Address; message: OutgoingMessage; runId: string },
) {
  const key = `send:${runId}`;
  outbox.enqueue(to, message, key);
  const late = AbortSignal.timeout(SEND_WAIT_MS);
  const fate = await outbox.fate(key, late).catch(() => undefined);
  if (fate?.state === "sent") {
    const { messageId, chatId } = fate.delivered;
    return { runId, messageId, channel: to.channel, chatId };
  }
  const fix = `zero channels status`;
  if (!fate) {
    throw new RpcError("UNAVAILABLE", `${to.channel} takes no messages now; this one is kept`, {
      details: { delivery: "not-sent", isKept: true, fix },
    });
  }
  const delivery = fate.state === "unknown" ? "unknown" : "not-sent";
  throw new RpcError("UNAVAILABLE", fate.error, { details: { delivery, fix } });
}

async function probed({ channels }: Gateway, channel: string) {
  try {
    return { ok: true, account: await channels.probe(channel) };
  } catch (error) {
    return { ok: false, error: (error as Error).message };
  }
}
