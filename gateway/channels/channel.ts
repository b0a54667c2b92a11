// What a channel is to the gateway: a way for people to write to the agent and to be answered. A
// channel knows its service; sessions, runs and what must not be lost are not its business.

/** The one account a channel has as long as none is named. */
export const DEFAULT_ACCOUNT = "default";

/** Where a message goes, or came from. */
export interface Address {
  /** Channel id, such as `telegram`. */
  channel: string;
  accountId: string;
  /** Chat of the service. */
  to: string;
  /** Topic or thread within the chat. */
  threadId?: string;
}

export interface OutgoingMessage {
  /** Markdown. */
  text: string;
  /** Images and files, as `data:` URLs or https addresses. */
  media?: readonly { url: string; mimeType?: string; fileName?: string }[];
  /** Message of the service that is answered. */
  replyTo?: string;
  /** Rows of buttons; pressing one comes back as the text of its command. */
  buttons?: readonly (readonly { label: string; command: string }[])[];
  /**
   * What happens when nobody knows whether it arrived. `tell`: the chat hears so, once. `again`: it is
   * sent again, for as long as this process lives; for what may be said twice. Else nothing.
   */
  ifUnsure?: "tell" | "again";
  /** Tells what may have been lost. Nobody tells of its own loss, so these go out one at a time. */
  isNotice?: boolean;
}

/** One message, as the service names it. */
export interface Delivered {
  messageId: string;
  chatId: string;
}

export interface IncomingMessage {
  from: Address;
  /** Unique within the account, for dedupe: the same for a message that is delivered again. */
  inboundId: string;
  messageId: string;
  text: string;
  images: readonly { mimeType: string; content: string }[];
  sender: { id: string; name?: string; username?: string };
  chat: { kind: "direct" | "group"; title?: string };
  /** Whether it may give owner commands and reach nodes (D21); never for forwarded or edited text. */
  isOwner: boolean;
  receivedAtMs: number;
}

/** A long message is sent in several parts; none of them twice. */
export interface PartProgress {
  /**
   * To be called before anything leaves for the service, when all is prepared: what happens from then on
   * cannot be undone. Durable when it returns.
   *
   * @throws {Error} it cannot be written down, and nothing may leave
   */
  begin(): void;
  /** Parts that were sent by an earlier attempt. */
  readonly sent: number;
  /** Durable when it returns. */
  note(sent: number): void;
}

/** Why a message could not be handed to the service. */
export class DeliveryError extends Error {
  override name = "DeliveryError";

  constructor(
    message: string,
    readonly details: {
      /** `unknown`: it may have arrived; sending it again might say it twice. */
      outcome: "not-sent" | "unknown";
      isTransient: boolean;
      retryAfterMs?: number;
    },
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

export interface ChannelStatus {
  configured: boolean;
  running: boolean;
  /** Of the last failure, one sentence with its fix. */
  lastError?: string;
  /** Its name at the service, such as `@name`. */
  account?: string;
  lastInboundAtMs?: number;
  lastOutboundAtMs?: number;
}

/** A running account of a channel. Disposing stops it; what was accepted is kept. */
export interface Channel extends AsyncDisposable {
  readonly id: string;
  readonly label: string;
  readonly accountId: string;
  status(): ChannelStatus;
  /** Whether the service answers; what is to be sent waits until it does. */
  readonly isReachable: boolean;
  /**
   * Sends all parts of a message but those that were sent before.
   *
   * @returns the first part of those it sent
   * @throws {DeliveryError} of the part that failed
   */
  send(to: Address, message: OutgoingMessage, progress: PartProgress): Promise<Delivered>;
  /** Shows that somebody is typing, for some seconds; failures do not matter. */
  typing(to: Address): Promise<void>;
}
