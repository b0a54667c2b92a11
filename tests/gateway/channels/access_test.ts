import { assertEquals } from "@std/assert";
import { type AccessRules, type Approach, judge } from "../../../gateway/channels/access.ts";

const RULES: AccessRules = {
  dmPolicy: "pairing",
  allowFrom: [1001, "@Grace"],
  requireMention: true,
  groups: {},
};
const ADA = { id: "1001", username: "ada" };
const GRACE = { id: "1002", username: "gRaCe" };
const MALLORY = { id: "2002", username: "mallory" };
const GROUP = { id: "-7", kind: "group" as const };

const OWNER = { kind: "accept", isOwner: true };
const GUEST = { kind: "accept", isOwner: false };
const PAIR = { kind: "pair" };
const IGNORE = { kind: "ignore" };

type Row = [what: string, Partial<AccessRules>, Partial<Approach>, verdict: unknown];

const DIRECT: Row[] = [
  ["one of allowFrom, by number", {}, {}, OWNER],
  ["one of allowFrom, by name in any case", {}, { sender: GRACE }, OWNER],
  ["a number in quotes", { allowFrom: ["1001"] }, {}, OWNER],
  ["a name without @ is none", { allowFrom: ["ada"] }, {}, PAIR],
  ["a stranger", {}, { sender: MALLORY }, PAIR],
  ["a stranger without a name", {}, { sender: { id: "5" } }, PAIR],
  ["a number that begins as an owner's", {}, { sender: { id: "10010" } }, PAIR],
  ["a name that is an owner's number", {}, { sender: { id: "5", username: "1001" } }, PAIR],
  ["a stranger with a code that was approved", {}, { sender: MALLORY, isPaired: true }, GUEST],
  ["an owner's words that are second hand", {}, { isSecondHand: true }, GUEST],
  ["allowlist: a stranger", { dmPolicy: "allowlist" }, { sender: MALLORY }, IGNORE],
  [
    "allowlist: one who was paired before",
    { dmPolicy: "allowlist" },
    { sender: MALLORY, isPaired: true },
    IGNORE,
  ],
  ["allowlist: one of it", { dmPolicy: "allowlist" }, {}, OWNER],
  ["open: a stranger", { dmPolicy: "open" }, { sender: MALLORY }, GUEST],
  ["open: one of allowFrom", { dmPolicy: "open" }, {}, OWNER],
  ["everybody in allowFrom: nobody is an owner by it", { allowFrom: ["*"] }, {}, GUEST],
  ["everybody, and one by number", { allowFrom: ["*", 1001] }, {}, OWNER],
  ["disabled: an owner", { dmPolicy: "disabled" }, {}, IGNORE],
  ["owners: one of them", { owners: [1001] }, {}, OWNER],
  ["owners: one of allowFrom who is none", { owners: [1001] }, { sender: GRACE }, GUEST],
  ["owners: nobody", { owners: [] }, {}, GUEST],
  ["owners: everybody is nobody", { owners: ["*"] }, {}, GUEST],
  ["owners: one who is not let in", { owners: [2002] }, { sender: MALLORY }, PAIR],
  [
    "owners: one who was let in by a code",
    { owners: [2002] },
    { sender: MALLORY, isPaired: true },
    OWNER,
  ],
  ["nobody is allowed", { allowFrom: [] }, {}, PAIR],
];

const GROUPS: Row[] = [
  ["a group nobody named", {}, { isMentioned: true }, IGNORE],
  ["spoken to", { groups: { "-7": {} } }, { isMentioned: true }, GUEST],
  ["not spoken to", { groups: { "-7": {} } }, {}, IGNORE],
  ["any group", { groups: { "*": {} } }, { isMentioned: true }, GUEST],
  ["no mention needed there", { groups: { "-7": { requireMention: false } } }, {}, GUEST],
  ["no mention needed anywhere", { requireMention: false, groups: { "-7": {} } }, {}, GUEST],
  [
    "needed there only",
    { requireMention: false, groups: { "-7": { requireMention: true } } },
    {},
    IGNORE,
  ],
  [
    "its own entry wins over any",
    { groups: { "*": { requireMention: false }, "-7": {} } },
    {},
    IGNORE,
  ],
  [
    "a member who is not listed",
    { groups: { "-7": { allowFrom: [1001] } } },
    { sender: MALLORY, isMentioned: true },
    IGNORE,
  ],
  [
    "a member who is listed",
    { groups: { "-7": { allowFrom: [1001] } } },
    { isMentioned: true },
    GUEST,
  ],
  [
    "direct messages are disabled",
    { dmPolicy: "disabled", groups: { "-7": {} } },
    { isMentioned: true },
    GUEST,
  ],
  [
    "a group that is called as what every object has",
    {},
    { chat: { id: "constructor", kind: "group" }, isMentioned: true },
    IGNORE,
  ],
];

Deno.test("in a direct chat it depends on who writes, and owners are named", () => {
  for (const [what, rules, approach, verdict] of DIRECT) {
    const chat = { id: "1", kind: "direct" as const };
    assertEquals(judged(rules, { chat, ...approach }), verdict, what);
  }
});

Deno.test("in a group nobody is an owner, and the bot listens where it was told to", () => {
  for (const [what, rules, approach, verdict] of GROUPS) {
    assertEquals(judged(rules, { chat: GROUP, ...approach }), verdict, what);
  }
});

function judged(rules: Partial<AccessRules>, approach: Partial<Approach>) {
  return judge({ ...RULES, ...rules }, {
    sender: ADA,
    chat: GROUP,
    isSecondHand: false,
    isMentioned: false,
    isPaired: false,
    ...approach,
  });
}
