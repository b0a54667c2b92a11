// Who is listened to, and who may command (D21, X24): a pure function of the channel's settings and of
// what is known of a message.

/** As the configuration has it, with its defaults put in. */
export interface AccessRules {
  dmPolicy: "pairing" | "allowlist" | "open" | "disabled";
  allowFrom: readonly (string | number)[];
  /** Undefined: those in `allowFrom`. */
  owners?: readonly (string | number)[];
  requireMention: boolean;
  groups: Readonly<
    Record<string, { requireMention?: boolean; allowFrom?: readonly (string | number)[] }>
  >;
}

export interface Approach {
  sender: { id: string; username?: string };
  chat: { id: string; kind: "direct" | "group" };
  /** The words of somebody else, or words that were changed after they were said. */
  isSecondHand: boolean;
  /** In a group: whether the bot was spoken to. */
  isMentioned: boolean;
  /** Whether somebody approved the sender's code. */
  isPaired: boolean;
}

export type Verdict =
  | { kind: "accept"; isOwner: boolean }
  /** A stranger who may ask to be let in. */
  | { kind: "pair" }
  | { kind: "ignore" };

export function judge(rules: AccessRules, approach: Approach): Verdict {
  const { sender, chat, isSecondHand, isMentioned, isPaired } = approach;
  if (chat.kind === "group") {
    const group = Object.hasOwn(rules.groups, chat.id) ? rules.groups[chat.id] : rules.groups["*"];
    const needsMention = group?.requireMention ?? rules.requireMention;
    const isHeard = group !== undefined && (isMentioned || !needsMention) &&
      (group.allowFrom === undefined || isListed(group.allowFrom, sender));
    // What is said in a group is said among others: nobody commands there.
    return isHeard ? { kind: "accept", isOwner: false } : { kind: "ignore" };
  }
  if (rules.dmPolicy === "disabled") return { kind: "ignore" };
  const isKnown = isListed(rules.allowFrom, sender);
  if (isKnown || rules.dmPolicy === "open" || (rules.dmPolicy === "pairing" && isPaired)) {
    const owners = (rules.owners ?? rules.allowFrom).filter((one) => one !== "*");
    return { kind: "accept", isOwner: !isSecondHand && isListed(owners, sender) };
  }
  return rules.dmPolicy === "pairing" ? { kind: "pair" } : { kind: "ignore" };
}

function isListed(
  people: readonly (string | number)[],
  { id, username }: { id: string; username?: string },
): boolean {
  const name = username && `@${username.toLowerCase()}`;
  return people.some((one) => {
    const text = String(one).toLowerCase();
    return text === "*" || text === id || (name !== undefined && text === name);
  });
}
