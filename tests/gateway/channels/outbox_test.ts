import { assert, assertEquals } from "@std/assert";
import { openLog } from "../../../config/log.ts";
import {
  type Address,
  DeliveryError,
  type OutgoingMessage,
  type PartProgress,
} from "../../../gateway/channels/channel.ts";
import { MAYBE_LOST, Outbox, type Sender } from "../../../gateway/channels/outbox.ts";
import { Store } from "../../../gateway/store.ts";

const ADA: Address = { channel: "test", accountId: "default", to: "1" };
const BOB: Address = { channel: "test", accountId: "default", to: "2" };

Deno.test("messages of a chat go out in their order, one at a time", async () => {
  await using at = open();
  const first = Promise.withResolvers<void>();
  at.onSend = async (_, { text }) => {
    if (text === "one") await first.promise;
  };
  at.outbox.start();

  for (const text of ["one", "two", "three"]) at.outbox.enqueue(ADA, { text }, text);
  at.outbox.enqueue(BOB, { text: "other" }, "other");
  await at.outbox.fate("other");
  const before = at.texts(ADA);
  first.resolve();
  await at.outbox.fate("three");

  assertEquals([before, at.texts(ADA)], [["one"], ["one", "two", "three"]]);
});

Deno.test("an equal key is taken once, also after it was sent", async () => {
  await using at = open();
  at.outbox.start();

  at.outbox.enqueue(ADA, { text: "hi" }, "k");
  await at.outbox.fate("k");
  at.outbox.enqueue(ADA, { text: "hi again" }, "k");
  const fate = await at.outbox.fate("k");

  assertEquals([fate.state, at.texts(ADA)], ["sent", ["hi"]]);
});

Deno.test("what was certainly not sent is sent again, as late as the service asks", async () => {
  await using at = open();
  let refusals = 2;
  at.onSend = () => {
    if (refusals-- > 0) {
      throw new DeliveryError("Cannot send: too many requests", {
        outcome: "not-sent",
        isTransient: true,
        retryAfterMs: 1,
      });
    }
  };
  at.outbox.start();

  at.outbox.enqueue(ADA, { text: "hi" }, "k");
  const fate = await at.outbox.fate("k");

  assertEquals([fate.state, at.attempts], ["sent", 3]);
});

Deno.test("parts that were sent are not sent again with the rest", async () => {
  await using at = open();
  const sent: number[] = [];
  at.onParts = (progress) => {
    for (let part = progress.sent; part < 3; part++) {
      if (part === 1 && sent.length === 1) {
        sent.push(-1);
        throw new DeliveryError("Cannot send: too many requests", {
          outcome: "not-sent",
          isTransient: true,
          retryAfterMs: 1,
        });
      }
      sent.push(part);
      progress.note(part + 1);
    }
  };
  at.outbox.start();

  at.outbox.enqueue(ADA, { text: "long" }, "k");
  await at.outbox.fate("k");

  assertEquals(sent, [0, -1, 1, 2]);
});

Deno.test("what may have arrived is not sent again; its chat is told once", async () => {
  await using at = open();
  at.onSend = () => {
    throw broken();
  };
  at.outbox.start();

  at.outbox.enqueue(ADA, { text: "hi", ifUnsure: "tell" }, "k");
  const fate = await at.outbox.fate("k");
  const notice = await at.outbox.fate("maybe-lost:k");

  assertEquals([fate.state, notice.state], ["unknown", "unknown"]);
  assertEquals(at.texts(ADA), ["hi", MAYBE_LOST]);
});

Deno.test("what may be said twice is sent until it certainly arrived; other words are left", async () => {
  await using at = open();
  let breaks = 2;
  at.onSend = () => {
    if (breaks-- > 0) throw broken({ retryAfterMs: 1 });
  };
  at.outbox.start();

  at.outbox.enqueue(ADA, { text: "May this run?", ifUnsure: "again" }, "question");
  const question = await at.outbox.fate("question");
  breaks = 1;
  at.outbox.enqueue(ADA, { text: "by the way" }, "remark");
  const remark = await at.outbox.fate("remark");

  assertEquals([question.state, remark.state], ["sent", "unknown"]);
  assertEquals(at.texts(ADA), [...Array(3).fill("May this run?"), "by the way"]);
});

Deno.test("what can never be delivered is given up, and the next message goes out", async () => {
  await using at = open();
  at.onSend = (_, { text }) => {
    if (text === "bad") {
      throw new DeliveryError("Cannot send: chat not found", {
        outcome: "not-sent",
        isTransient: false,
      });
    }
  };
  at.outbox.start();

  at.outbox.enqueue(ADA, { text: "bad" }, "bad");
  at.outbox.enqueue(ADA, { text: "good" }, "good");

  assertEquals((await at.outbox.fate("bad")).state, "failed");
  assertEquals((await at.outbox.fate("good")).state, "sent");
});

Deno.test("a message whose transaction fails is not sent", async () => {
  await using at = open();
  at.outbox.start();

  try {
    at.store.transaction(() => {
      at.outbox.enqueue(ADA, { text: "undone" }, "undone");
      throw new Error("the transaction fails");
    });
  } catch {
    // as meant
  }
  at.outbox.enqueue(ADA, { text: "after" }, "after");
  await at.outbox.fate("after");

  assertEquals(at.texts(ADA), ["after"]);
});

Deno.test("messages wait for their channel, across restarts", async () => {
  await using at = open();
  at.isThere = false;
  at.outbox.start();
  at.outbox.enqueue(ADA, { text: "hi" }, "k");
  await at.restart();
  const before = at.attempts;

  at.isThere = true;
  at.outbox.poke();
  const fate = await at.outbox.fate("k");

  assertEquals([before, fate.state], [0, "sent"]);
});

Deno.test("what was on its way when the process died is not sent again; its chat is told once", async () => {
  await using at = open();
  const never = new Promise<void>(() => {});
  const begun = Promise.withResolvers<void>();
  at.onSend = (_, { text }) => {
    if (text !== "hi") return;
    begun.resolve();
    return never;
  };
  at.outbox.start();
  at.outbox.enqueue(ADA, { text: "hi", ifUnsure: "tell" }, "k");
  at.outbox.enqueue(ADA, { text: "later" }, "later");
  await begun.promise;

  at.crash();
  await at.outbox.fate("maybe-lost:k");
  await at.outbox.fate("later");

  assertEquals(at.texts(ADA), ["hi", "later", MAYBE_LOST]);
  assertEquals((await at.outbox.fate("k")).state, "unknown");
});

Deno.test("killed while its notice is sent, a chat is not told again, nor of a question", async () => {
  await using at = open();
  const never = new Promise<void>(() => {});
  const begun: Record<string, PromiseWithResolvers<void>> = {};
  for (const text of ["hi", MAYBE_LOST, "May this run?"]) begun[text] = Promise.withResolvers();
  at.onSend = (_, { text }) => {
    begun[text]?.resolve();
    return text in begun ? never : undefined;
  };
  at.outbox.start();
  at.outbox.enqueue(ADA, { text: "hi", ifUnsure: "tell" }, "k");
  at.outbox.enqueue(BOB, { text: "May this run?", ifUnsure: "again" }, "question");
  await Promise.all([begun.hi.promise, begun["May this run?"].promise]);

  at.crash();
  await begun[MAYBE_LOST].promise;
  at.crash();
  at.outbox.enqueue(ADA, { text: "after" }, "after");
  at.outbox.enqueue(BOB, { text: "after" }, "after for Bob");
  await Promise.all([at.outbox.fate("after"), at.outbox.fate("after for Bob")]);

  assertEquals(at.texts(ADA), ["hi", MAYBE_LOST, "after"]);
  assertEquals(at.texts(BOB), ["May this run?", "after"]);
});

Deno.test("killed while a message was prepared, nothing was sent: it goes out after the next start", async () => {
  await using at = open();
  const never = new Promise<void>(() => {});
  at.onPrepare = () => at.attempts === 1 ? never : undefined;
  at.outbox.start();
  at.outbox.enqueue(ADA, { text: "hi", ifUnsure: "tell" }, "k");
  const before = at.attempts;

  at.crash();

  assertEquals((await at.outbox.fate("k")).state, "sent");
  assertEquals([before, at.texts(ADA)], [1, ["hi"]]);
});

Deno.test("notices go out one at a time: a kill can cost the one that is on its way", async () => {
  await using at = open();
  let [now, most] = [0, 0];
  at.onSend = async () => {
    most = Math.max(most, ++now);
    await new Promise((resolve) => setTimeout(resolve));
    now--;
  };
  const chats = Array.from({ length: 5 }, (_, to) => ({ ...ADA, to: String(to) }));
  chats.forEach((to, index) => {
    at.outbox.enqueue(to, { text: "I was interrupted", isNotice: true }, `k${index}`);
  });

  at.outbox.start();
  await Promise.all(chats.map((_, index) => at.outbox.fate(`k${index}`)));

  assertEquals(most, 1);
});

Deno.test("a start with a full chat tells of what may be lost there", async () => {
  await using at = open();
  const never = new Promise<void>(() => {});
  const begun = Promise.withResolvers<void>();
  at.onSend = (_, { text }) => {
    if (text !== "hi") return;
    begun.resolve();
    return never;
  };
  at.outbox.start();
  at.outbox.enqueue(ADA, { text: "hi", ifUnsure: "tell" }, "k");
  await begun.promise;
  at.isThere = false;
  for (let count = 0; count < 500; count++) at.outbox.enqueue(ADA, { text: "x" }, `x${count}`);

  at.crash();
  at.isThere = true;
  at.outbox.poke();

  assertEquals((await at.outbox.fate("maybe-lost:k")).state, "sent");
});

Deno.test("a chat that takes nothing does not fill the disk", async () => {
  await using at = open();
  let accepted = 0;
  let refusal = "";

  try {
    for (; accepted < 2_000; accepted++) {
      at.outbox.enqueue(ADA, { text: "hi" }, `k${accepted}`);
    }
  } catch (error) {
    refusal = (error as Error).message;
  }

  assertEquals(accepted, 500);
  assert(refusal.includes("500 messages wait"), refusal);
});

function broken({ retryAfterMs }: { retryAfterMs?: number } = {}): DeliveryError {
  return new DeliveryError("Cannot send: the connection broke", {
    outcome: "unknown",
    isTransient: true,
    retryAfterMs,
  });
}

function open() {
  const path = Deno.makeTempDirSync();
  const log = openLog({ level: "silent" });
  const sent: { to: Address; message: OutgoingMessage }[] = [];
  const sender: Sender = {
    async send(to, message, progress) {
      at.attempts++;
      await at.onPrepare();
      progress.begin();
      at.onParts(progress);
      sent.push({ to, message });
      await at.onSend(to, message);
      return { messageId: String(sent.length), chatId: to.to };
    },
  };
  const make = () => {
    at.store = Store.open(`${path}/zero.sqlite`);
    at.outbox = new Outbox({
      store: at.store,
      log,
      sender: () => at.isThere ? sender : undefined,
    });
  };
  const at = {
    store: undefined as unknown as Store,
    outbox: undefined as unknown as Outbox,
    attempts: 0,
    isThere: true,
    onPrepare: (): Promise<void> | void => {},
    onParts: (_progress: PartProgress): void => {},
    onSend: (_to: Address, _message: OutgoingMessage): Promise<void> | void => {},
    texts: ({ to }: Address) =>
      sent.filter((one) => one.to.to === to).map(({ message }) => message.text),
    async restart() {
      await at.outbox[Symbol.asyncDispose]();
      at.store[Symbol.dispose]();
      make();
      at.outbox.start();
    },
    /** The old one is left as it is, with a database of its own from now on. */
    crash() {
      at.store[Symbol.dispose]();
      make();
      at.outbox.start();
    },
    async [Symbol.asyncDispose]() {
      if (at.isThere) at.store[Symbol.dispose]();
      await log[Symbol.asyncDispose]();
      await Deno.remove(path, { recursive: true });
    },
  };
  make();
  return at;
}
