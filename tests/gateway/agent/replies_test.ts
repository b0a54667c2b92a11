import { assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { Audience } from "../../../gateway/agent/audience.ts";
import { COMMANDS } from "../../../gateway/agent/builtin.ts";
import { ModelError } from "../../../gateway/agent/model.ts";
import { type ModelSource, type RunRequest, Runs } from "../../../gateway/agent/runs.ts";
import type { AgentTool } from "../../../gateway/agent/tools.ts";
import type { OutgoingMessage } from "../../../gateway/channels/channel.ts";
import { EventHub } from "../../../gateway/events.ts";
import { Sessions } from "../../../gateway/sessions.ts";
import { SessionWatchers } from "../../../gateway/sessions_events.ts";
import { Store } from "../../../gateway/store.ts";
import { SystemEvents } from "../../../gateway/system_events.ts";
import { openLog } from "../../../config/log.ts";
import { calls, hangs, lastText, only, says, scriptedModel } from "../../support/scripted_model.ts";

const CHAT = { channel: "telegram", accountId: "default", to: "7" };

interface Reply {
  to: string;
  message: OutgoingMessage;
  key: string;
}

/** Runs on a database of their own, and what they say in chats. */
async function setup(
  models: ModelSource,
  { path = ":memory:", tools = [] }: { path?: string; tools?: AgentTool[] } = {},
) {
  await using parts = new AsyncDisposableStack();
  const store = parts.use(Store.open(path));
  const dir = await Deno.makeTempDir();
  parts.defer(() => Deno.remove(dir, { recursive: true }));
  const log = parts.use(openLog({ file: `${dir}/log`, level: "debug" }));
  const config = { reading: { config: {} } } as never;
  const sessions = new Sessions(store, config, new SessionWatchers());
  const replies: Reply[] = [];
  const runs = parts.use(
    new Runs({
      store,
      sessions,
      config,
      systemEvents: new SystemEvents(store),
      audience: new Audience(new EventHub()),
      models,
      tools,
      commands: COMMANDS,
      callGateway: () => Promise.reject(new Error("no gateway is here")),
      replies: () => ({
        enqueue: ({ to }, message, key) => void replies.push({ to, message, key }),
      }),
      version: "test",
      log,
    }),
  );
  const owned = parts.move();
  return { store, sessions, runs, replies, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

function request(message: string, more: Partial<RunRequest> = {}): RunRequest {
  return {
    runId: `telegram:${message}`,
    sessionKey: "agent:main:telegram:7",
    message,
    origin: { kind: "channel", isOwner: true, address: CHAT, senderName: "Ada" },
    deliverTo: CHAT,
    replyTo: "99",
    ...more,
  };
}

Deno.test("the reply enters the chat once, together with the end of the run", async () => {
  const model = scriptedModel((turn) => says(`re: ${lastText(turn)}`));
  await using it = await setup(only(model));

  const run = it.runs.start(request("hello"));
  const again = it.runs.start(request("hello"));
  await run.done;
  const late = it.runs.start(request("hello"));

  assertEquals([run.isNew, again.isNew, late.isNew], [true, false, false]);
  assertEquals(late.outcome?.text, "re: hello");
  const message = { text: "re: hello", media: undefined, replyTo: "99", ifUnsure: "tell" as const };
  assertEquals(it.replies, [{ to: "7", message, key: "telegram:hello:reply" }]);
  assertEquals(model.turns.length, 1);
  assertMatch(model.turns[0].system, /came through "telegram" from "Ada"/);
});

Deno.test("a message whose acceptance is undone does not run", async () => {
  const model = scriptedModel(() => says("never"));
  await using it = await setup(only(model));

  assertThrows(() =>
    it.store.transaction(() => {
      it.runs.start(request("hello"));
      throw new Error("the disk is full");
    })
  );

  const next = it.runs.start(request("hello"));
  assertEquals([next.isNew, (await next.done).text], [true, "never"]);
  assertEquals(model.turns.length, 1);
});

Deno.test("what failed is told to an owner with its reason, and to others without", async () => {
  const model = scriptedModel(() => {
    throw new ModelError("auth", "The key is refused", false, "zero auth add test");
  });
  await using it = await setup(only(model));

  await it.runs.start(request("one")).done;
  await it.runs.start(request("two", { origin: { kind: "channel", isOwner: false } })).done;

  const [owner, other] = it.replies.map(({ message }) => message.text);
  assertEquals(owner, "I could not do that: The key is refused. zero auth add test");
  assertMatch(other, /^I could not do that just now\./);
});

Deno.test("whoever is no owner is offered no tool, and can call none", async () => {
  let count = 0;
  const tool: AgentTool = {
    name: "dangerous",
    description: "",
    parameters: {},
    isOwnerOnly: true,
    run: () => Promise.resolve({ text: String(++count) }),
  };
  const model = scriptedModel((turn) =>
    turn.messages.at(-1)!.role === "user" ? calls("dangerous", {}) : says(lastText(turn))
  );
  await using it = await setup(only(model), { tools: [tool] });
  const stranger = { kind: "channel", isOwner: false } as const;

  const outcome = await it.runs.start(request("go", { origin: stranger })).done;
  const commands = ["/run n1 id", "/invoke n1 x", "/nodes", "/status", "/approve 1 allow-once"];
  const said: string[] = [];
  for (const command of commands) {
    said.push((await it.runs.start(request(command, { origin: stranger })).done).text);
  }

  assertEquals([outcome.text, count], ["there is no tool dangerous here", 0]);
  assertEquals(model.turns[0].tools, []);
  for (const text of said) assertMatch(text, /^\/\w+ is for the owner of this gateway\.$/);
});

Deno.test("/stop ends what runs and what waits, and is answered itself", async () => {
  const model = scriptedModel((turn) => hangs(turn.signal));
  await using it = await setup(only(model));
  const one = it.runs.start(request("one"));
  const two = it.runs.start(request("two"));

  const stop = await it.runs.start(request("/stop@zero_bot")).done;
  const nothing = await it.runs.start(request("/stop")).done;

  assertEquals([(await one.done).stopReason, (await two.done).stopReason], ["stop", "stop"]);
  assertEquals([stop.text, nothing.text], ["Stopped.", "There is nothing to stop."]);
  assertEquals(it.replies.map(({ message }) => message.text), [stop.text, nothing.text]);
});

Deno.test("in a group only owners stop what runs or begin anew", async () => {
  const model = scriptedModel((turn) => hangs(turn.signal));
  await using it = await setup(only(model));
  const sessionKey = "agent:main:telegram:group:-5";
  it.runs.start(request("go", { sessionKey }));
  const member = { kind: "channel", isOwner: false } as const;

  for (const command of ["/stop", "/new"]) {
    const { text } = await it.runs.start(request(command, { sessionKey, origin: member })).done;
    assertEquals(text, "In a group that is for the owner of this gateway.");
  }

  assertEquals(it.runs.isBusy(sessionKey), true);
});

Deno.test("of a run that was cut off after a tool the chat gets one notice", async () => {
  const dir = await Deno.makeTempDir();
  try {
    const path = `${dir}/zero.sqlite`;
    const used = Promise.withResolvers<void>();
    const tool: AgentTool = {
      name: "act",
      description: "",
      parameters: {},
      isOwnerOnly: true,
      run: () => {
        used.resolve();
        return new Promise(() => {});
      },
    };
    {
      await using it = await setup(only(scriptedModel(() => calls("act", {}))), {
        path,
        tools: [tool],
      });
      it.runs.start(request("one"));
      it.runs.start(request("two"));
      await used.promise;
    }

    const model = scriptedModel((turn) => says(`re: ${lastText(turn)}`));
    await using it = await setup(only(model), { path });
    it.runs.recover();
    const two = await it.runs.find("telegram:two")!.done;
    it.runs.recover();

    assertEquals(two.text, "re: two");
    assertEquals(it.replies.map(({ key }) => key), ["telegram:one:reply", "telegram:two:reply"]);
    assertStringIncludes(it.replies[0].message.text, "I was interrupted");
    assertEquals(model.turns.length, 1);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test("a run that was there each time the process died is given up", async () => {
  const dir = await Deno.makeTempDir();
  try {
    const path = `${dir}/zero.sqlite`;
    for (let start = 0; start < 3; start++) {
      const begun = Promise.withResolvers<void>();
      const model = scriptedModel((turn) => {
        begun.resolve();
        return hangs(turn.signal);
      });
      await using it = await setup(only(model), { path });
      if (start === 0) it.runs.start(request("poison"));
      else it.runs.recover();
      await begun.promise;
    }

    const model = scriptedModel(() => says("never"));
    await using it = await setup(only(model), { path });
    it.runs.recover();

    assertEquals(model.turns.length, 0);
    assertEquals(it.replies.length, 1);
    const { messages } = it.sessions.history("agent:main:telegram:7");
    assertEquals(messages.map(({ role }) => role), ["user", "assistant"]);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});
