import { assert, assertEquals } from "@std/assert";
import {
  Coalescer,
  EVENT_NAMES,
  EventHub,
  type EventName,
  PreparedEvent,
  type Subscriber,
} from "../../gateway/events.ts";
import { MAX_BUFFERED_BYTES } from "../../rpc/frame.ts";
import type { Role } from "../../rpc/scope.ts";

/** A connection that keeps what it is given. */
class Listener implements Subscriber {
  readonly role: Role;
  readonly scopes: string[];
  protocol = 4;
  bufferedBytes = 0;
  isClosed = false;
  // deno-lint-ignore no-explicit-any
  readonly got: any[] = [];
  #seq = 0;

  constructor(role: Role = "operator", ...scopes: string[]) {
    this.role = role;
    this.scopes = scopes;
  }

  nextSeq(): number {
    return ++this.#seq;
  }

  deliver(event: PreparedEvent, seq: number) {
    this.got.push(JSON.parse(event.frame(seq).toString()));
  }

  closeAsSlow() {
    this.isClosed = true;
  }
}

function hubOf(...listeners: Listener[]): EventHub {
  const hub = new EventHub();
  for (const one of listeners) hub.add(one);
  return hub;
}

/** §8.1: who gets what beside admins, who get everything that operators get. */
const RECEIVERS: Record<EventName, string[]> = {
  "connect.challenge": ["none", "read", "write", "approvals", "pairing", "node"],
  "agent": ["read", "write"],
  "chat": ["read", "write"],
  "presence": ["none", "read", "write", "approvals", "pairing"],
  "tick": ["none", "read", "write", "approvals", "pairing", "node"],
  "talk.mode": ["none", "read", "write", "approvals", "pairing", "node"],
  "shutdown": ["none", "read", "write", "approvals", "pairing", "node"],
  "health": ["none", "read", "write", "approvals", "pairing"],
  "heartbeat": ["none", "read", "write", "approvals", "pairing", "node"],
  "cron": ["none", "read", "write", "approvals", "pairing", "node"],
  "node.pair.requested": ["pairing"],
  "node.pair.resolved": ["pairing"],
  "node.invoke.request": ["none", "read", "write", "approvals", "pairing", "node"],
  "node.invoke.progress": ["write"],
  "node.queue.changed": ["read", "write"],
  "device.pair.requested": ["pairing"],
  "device.pair.resolved": ["pairing"],
  "channel.pair.requested": [],
  "channel.pair.resolved": [],
  "voicewake.changed": ["none", "read", "write", "approvals", "pairing", "node"],
  "exec.approval.requested": ["approvals"],
  "exec.approval.resolved": ["approvals"],
  "system.panic": ["none", "read", "write", "approvals", "pairing", "node"],
};
const UNDROPPABLE = [
  "agent",
  "chat",
  "shutdown",
  "health",
  "connect.challenge",
  "node.invoke.request",
  "system.panic",
];

Deno.test("the catalogue lists the events of the protocol", () => {
  const names = "connect.challenge agent chat presence tick talk.mode shutdown health heartbeat " +
    "cron node.pair.requested node.pair.resolved node.invoke.request device.pair.requested " +
    "device.pair.resolved voicewake.changed exec.approval.requested exec.approval.resolved";

  for (const name of names.split(" ")) assert(EVENT_NAMES.includes(name as EventName), name);
});

Deno.test("an event reaches those who may see it and nobody else", () => {
  for (const [name, receivers] of Object.entries(RECEIVERS) as [EventName, string[]][]) {
    const listeners: Record<string, Listener> = {
      none: new Listener("operator"),
      read: new Listener("operator", "operator.read"),
      write: new Listener("operator", "operator.write"),
      approvals: new Listener("operator", "operator.approvals"),
      pairing: new Listener("operator", "operator.pairing"),
      admin: new Listener("operator", "operator.admin"),
      node: new Listener("node", "operator.admin"),
    };

    hubOf(...Object.values(listeners)).publish(name, { a: 1 });

    const got = Object.entries(listeners).filter(([, one]) => one.got.length > 0).map(([who]) =>
      who
    );
    assertEquals(got.sort(), [...receivers, "admin"].sort(), name);
  }
});

Deno.test("each connection counts only the events it may see, from 1 and without a gap", () => {
  const reader = new Listener("operator", "operator.read");
  const pairer = new Listener("operator", "operator.pairing");
  const hub = hubOf(reader, pairer);

  for (const name of ["tick", "device.pair.requested", "chat", "tick", "chat"] as const) {
    hub.publish(name, {});
  }

  assertEquals(reader.got.map(({ event, seq }) => [event, seq]), [
    ["tick", 1],
    ["chat", 2],
    ["tick", 3],
    ["chat", 4],
  ]);
  assertEquals(pairer.got.map(({ seq }) => seq), [1, 2, 3]);
});

Deno.test("who is behind misses what can be missed, and its count says so", () => {
  const slow = new Listener("operator", "operator.admin");
  const hub = hubOf(slow);

  hub.publish("tick", {});
  slow.bufferedBytes = MAX_BUFFERED_BYTES + 1;
  hub.publish("tick", {});
  hub.publish("presence", {});
  slow.bufferedBytes = MAX_BUFFERED_BYTES;
  hub.publish("tick", {});

  assertEquals(slow.isClosed, false);
  assertEquals(slow.got.map(({ seq }) => seq), [1, 4]);
});

Deno.test("who is behind is closed for what must not be missed, and others lose nothing", () => {
  for (const name of EVENT_NAMES) {
    const slow = new Listener("operator", "operator.admin");
    const quick = new Listener("operator", "operator.admin");
    slow.bufferedBytes = MAX_BUFFERED_BYTES + 1;

    hubOf(slow, quick).publish(name, {});

    assertEquals(slow.got.length, 0);
    assertEquals(slow.isClosed, UNDROPPABLE.includes(name), name);
    assertEquals([quick.got.length, quick.isClosed], [1, false]);
  }
});

Deno.test("who was removed gets nothing more", () => {
  const listener = new Listener();
  const hub = hubOf(listener);

  hub.remove(listener);

  assertEquals(hub.publish("tick", { ts: 1 }), 0);
  assertEquals([listener.got, hub.size], [[], 0]);
});

Deno.test("a frame carries payload, state version and number; a notification the payload alone", () => {
  const event = new PreparedEvent("presence", { presence: [] }, { presence: 2, health: 3 });

  assertEquals(JSON.parse(event.frame(7).toString()), {
    type: "event",
    event: "presence",
    payload: { presence: [] },
    stateVersion: { presence: 2, health: 3 },
    seq: 7,
  });
  assertEquals(JSON.parse(event.notification().toString()), {
    jsonrpc: "2.0",
    method: "presence",
    params: { presence: [] },
  });
  assertEquals(
    "stateVersion" in JSON.parse(new PreparedEvent("tick", {}).frame(1).toString()),
    false,
  );
});

Deno.test("an event is written once for all who share a number", () => {
  const event = new PreparedEvent("tick", {});

  assert(event.frame(5) === event.frame(5));
  assert(event.frame(5) !== event.frame(6));
  assert(event.notification() === event.notification());
});

Deno.test("publishing tells about how many bytes went out", () => {
  const payload = { text: "x".repeat(1_000) };
  const bytes = JSON.stringify(payload).length;

  const sent = hubOf(new Listener(), new Listener(), new Listener("node")).publish(
    "health",
    payload,
  );

  assertEquals(sent, 2 * bytes);
});

Deno.test("changes that come together go out together, as the state is then", async () => {
  let state = 0;
  const published = Promise.withResolvers<number>();
  let count = 0;
  using news = new Coalescer(() => {
    count++;
    published.resolve(state);
    return 0;
  });

  for (; state < 100; state++) news.schedule();

  assertEquals(await published.promise, 100);
  assertEquals(count, 1);
});

Deno.test("what must go out at once takes the place of what was scheduled", () => {
  let count = 0;
  {
    using news = new Coalescer(() => ++count);
    news.schedule();
    news.now();
    assertEquals(count, 1);
  }

  assertEquals(count, 1);
});

Deno.test("nothing goes out after the end", () => {
  let count = 0;
  {
    using news = new Coalescer(() => ++count);
    news.schedule();
  }

  assertEquals(count, 0);
});
