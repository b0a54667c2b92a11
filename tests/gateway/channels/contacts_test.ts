import { assert, assertEquals, assertMatch } from "@std/assert";
import { CODE_TTL_MS, Contacts } from "../../../gateway/channels/contacts.ts";
import { Store } from "../../../gateway/store.ts";

const ACCOUNT = { channel: "telegram", accountId: "default" };
const MALLORY = { id: "2002", name: "Mallory" };
const MINUTE = 60_000;

Deno.test("a stranger is told one code, and again after ten minutes", () => {
  using at = open();

  const first = at.contacts.ask(ACCOUNT, MALLORY);
  const tooSoon = at.contacts.ask(ACCOUNT, MALLORY);
  at.nowMs += 10 * MINUTE;
  const later = at.contacts.ask(ACCOUNT, MALLORY);

  assertMatch(first!.contact.code!, /^[A-HJ-NP-Z2-9]{8}$/);
  assertEquals([first!.isNew, tooSoon, later!.isNew], [true, undefined, false]);
  assertEquals(later!.contact.code, first!.contact.code);
});

Deno.test("a code is good for an hour, for its channel, once", () => {
  using at = open();
  const code = at.ask(MALLORY);

  const elsewhere = at.contacts.approve("other", code, "me");
  const contact = at.contacts.approve("telegram", ` ${code.toLowerCase()} `, "me");
  const again = at.contacts.approve("telegram", code, "me");
  const late = at.ask({ id: "2003", name: "Late" });
  at.nowMs += CODE_TTL_MS + 1;
  const expired = at.contacts.approve("telegram", late, "me");

  assertEquals([elsewhere, contact?.senderId, again, expired], [
    undefined,
    MALLORY.id,
    undefined,
    undefined,
  ]);
  assert(at.contacts.isApproved(ACCOUNT, MALLORY.id));
  assert(!at.contacts.isApproved(ACCOUNT, "2003"));
  assert(!at.contacts.isApproved({ ...ACCOUNT, accountId: "second" }, MALLORY.id));
});

Deno.test("one who was let in stays in, until removed", () => {
  using at = open();
  at.contacts.approve("telegram", at.ask(MALLORY), "me");

  at.nowMs += 1_000 * CODE_TTL_MS;
  const [listed] = at.contacts.list();
  const removed = at.contacts.remove({ ...ACCOUNT, senderId: MALLORY.id });
  const twice = at.contacts.remove({ ...ACCOUNT, senderId: MALLORY.id });

  assertEquals([listed.name, listed.code, listed.approvedBy], ["Mallory", undefined, "me"]);
  assertEquals([removed, twice], [true, false]);
  assert(!at.contacts.isApproved(ACCOUNT, MALLORY.id));
});

Deno.test("fifty may wait at a time; a place is free again when a code has expired", () => {
  using at = open();
  const codes = new Set<string>();
  for (let id = 1; id <= 50; id++) codes.add(at.ask({ id: String(id), name: `N${id}` }));

  const tooMany = at.contacts.ask(ACCOUNT, MALLORY);
  const other = at.contacts.ask({ ...ACCOUNT, accountId: "second" }, MALLORY);
  at.contacts.approve("telegram", [...codes][0], "me");
  const next = at.contacts.ask(ACCOUNT, { id: "51", name: "N51" });
  at.nowMs += CODE_TTL_MS + 1;
  const after = at.contacts.ask(ACCOUNT, MALLORY);

  assertEquals(codes.size, 50);
  assertEquals([tooMany, other?.isNew, next?.isNew, after?.isNew], [undefined, true, true, true]);
  assertEquals(at.contacts.list().map(({ senderId }) => senderId), [MALLORY.id, "1"]);
});

function open() {
  const store = Store.open(":memory:");
  const clock = { nowMs: 1_700_000_000_000 };
  const contacts = new Contacts(store, () => clock.nowMs);
  return {
    contacts,
    get nowMs() {
      return clock.nowMs;
    },
    set nowMs(ms: number) {
      clock.nowMs = ms;
    },
    ask: (sender: { id: string; name: string }) => contacts.ask(ACCOUNT, sender)!.contact.code!,
    [Symbol.dispose]: () => store[Symbol.dispose](),
  };
}
