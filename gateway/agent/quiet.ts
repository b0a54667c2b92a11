// How an agent says that it has nothing to say, when nobody has asked it anything.

/** What an answer holds that needs no reader. */
export const HEARTBEAT_OK = "HEARTBEAT_OK";
/** Characters beside the word that still count as nothing. */
export const ACK_MAX_CHARS = 300;

/** Whose reply is delivered only where there is something to say. */
export interface Quiet {
  /** Characters beside {@link HEARTBEAT_OK} that still count as nothing. */
  ackMaxChars: number;
  /** Nobody is told that it failed, either. */
  failuresToo?: boolean;
}

/** What there is to deliver of a reply; "" for nothing. */
export function worthSaying(text: string, { ackMaxChars }: Quiet): string {
  const trimmed = text.trim();
  if (!hasAck(trimmed)) return trimmed;
  const rest = trimmed.replace(ACK, "").trim();
  return rest.length <= ackMaxChars ? "" : rest;
}

/** Whether a reply says that there is nothing to say, at its beginning or its end. */
export function hasAck(text: string): boolean {
  return ACK.test(text.trim());
}

/** Alone, or at either end, however a model decorates it. */
const ACK = /^[*_`"'\s]*HEARTBEAT_OK\b[*_`"'.!\s]*|[*_`"'\s]*\bHEARTBEAT_OK[*_`"'.!\s]*$/;
