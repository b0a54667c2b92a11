// Where something is told that was not asked for in a chat: the chat that is named, or the last one
// of a session.

import type { Config } from "../config/schema.ts";
import { type Address, DEFAULT_ACCOUNT } from "./channels/channel.ts";
import type { Sessions } from "./sessions.ts";

/** Channels that every gateway knows; `last` and `webchat` name none. */
const CHANNELS = ["telegram", "last", "webchat"];

/** How a caller names a chat. */
export interface ChatName {
  channel?: string;
  to?: string;
  accountId?: string;
  threadId?: string;
}

export function isKnownChannel(channel: string, { channels = {} }: Config): boolean {
  return [...CHANNELS, ...Object.keys(channels)].includes(channel.trim().toLowerCase());
}

/** @param sessionKey whose last chat it is where none is named */
export function chatFor(
  { channel: given, to, accountId, threadId }: ChatName,
  sessionKey: string,
  sessions: Sessions,
): Address | undefined {
  const channel = given?.trim().toLowerCase();
  if (channel === "webchat") return undefined;
  if (channel && channel !== "last" && to) {
    return { channel, accountId: accountId ?? DEFAULT_ACCOUNT, to, threadId };
  }
  const last = sessions.get(sessionKey)?.entry.deliveryContext;
  return last && { ...last, accountId: last.accountId ?? DEFAULT_ACCOUNT };
}
