import { assert, assertEquals } from "@std/assert";
import { METHODS } from "../../gateway/methods/mod.ts";
import type { Call } from "../../gateway/gateway.ts";
import { accessOf, Dispatcher, type Outcome } from "../../rpc/dispatch.ts";
import { startTestGateway } from "../support/gateway.ts";

type Access = "any" | "node" | "read" | "write" | "approvals" | "pairing" | "admin";

/** Protocol §6.2 with D11 and D23, as they stand there: scope → methods. */
const TABLE: Record<Access, string> = {
  any: "gateway.call rpc.discover",
  node: "node.invoke.result node.invoke.progress node.event skills.bins",
  approvals: "exec.approval.request exec.approval.resolve exec.approval.list",
  pairing: "node.pair.request node.pair.list node.pair.approve node.pair.reject node.pair.verify " +
    "node.pair.remove node.rename device.pair.list device.pair.approve device.pair.reject " +
    "device.pair.remove device.token.rotate device.token.revoke " +
    "device.invite.create device.invite.list device.invite.revoke",
  read: "health status logs.tail channels.status usage.status usage.cost tts.status " +
    "tts.providers models.list agents.list agent.identity.get skills.status voicewake.get " +
    "sessions.list sessions.preview sessions.describe sessions.search sessions.export " +
    "sessions.subscribe sessions.messages.subscribe sessions.messages.unsubscribe " +
    "cron.list cron.status cron.runs system-presence " +
    "last-heartbeat node.list node.describe chat.history telemetry.summary memory.search " +
    "system.smartScan docs.list docs.get tasks.list node.queue.list events.replay",
  write: "send agent agent.wait wake talk.mode tts.enable tts.disable tts.convert " +
    "tts.setProvider voicewake.set node.invoke chat.send sessions.send chat.abort system.panic " +
    "node.queue.cancel",
  admin: "config.get config.schema config.set config.patch config.apply update.run " +
    "update.status exec.approvals.get exec.approvals.set exec.approvals.node.get " +
    "exec.approvals.node.set channels.logout channels.add skills.install skills.update " +
    "cron.add cron.update cron.remove cron.run sessions.patch sessions.reset sessions.delete " +
    "sessions.compact sessions.resolve chat.inject poll system-event set-heartbeats audit.list " +
    "wizard.start wizard.next wizard.cancel wizard.status web.login.start web.login.wait " +
    "system.applyRecommendations system.applyPersona pairing.list pairing.approve pairing.remove",
};
/** §6.2: what protocol 4 clients expect with less. */
const READ_ON_V4 = ["config.get", "sessions.resolve"];

const SCOPES = ["read", "write", "approvals", "pairing", "admin"] as const;

function expected(method: string, protocol: number): Access | undefined {
  if (protocol >= 4 && READ_ON_V4.includes(method)) return "read";
  const rows = Object.entries(TABLE) as [Access, string][];
  return rows.find(([, methods]) => methods.split(" ").includes(method))?.[0];
}

/** Whether a caller with this one scope may come through to a method that asks for `access`. */
function isOpen(access: Access, held: string): boolean {
  if (held === "node") return access === "node";
  if (access === "node") return false;
  if (access === "any" || held === "admin" || held === access) return true;
  return access === "read" && held === "write";
}

/** What a caller that is not let through hears. */
function refusal(access: Access, held: string): string {
  if (held === "node") return "unauthorized role: node";
  return access === "node" ? "unauthorized role: operator" : `missing scope: operator.${access}`;
}

Deno.test("every method declares the scope that the protocol gives it", () => {
  for (const method of METHODS) {
    for (const protocol of [3, 4]) {
      const access = expected(method.name, protocol);
      const declared = accessOf(method, protocol).replace("operator.", "");
      assertEquals(declared, access, `${method.name} on protocol ${protocol}`);
    }
  }
});

Deno.test("no method is named twice, and every one says what it is for", () => {
  const names = METHODS.map(({ name }) => name);

  assertEquals(names.length, new Set(names).size);
  for (const { name, summary } of METHODS) {
    assert(/^[A-Z].*[^.]$/.test(summary) && summary.length < 100, `${name}: ${summary}`);
  }
});

Deno.test("each method, under each of its names, opens to exactly the scope it declares", async () => {
  const dispatcher = new Dispatcher<Call>(METHODS, { onFault: (error) => String(error) });
  for (const name of dispatcher.names) {
    const isAlias = !METHODS.some((method) => method.name === name);
    for (const protocol of [3, 4]) {
      const access = expected(isAlias ? name.replace("gateway.", "") : name, protocol)!;
      for (const held of [...SCOPES, "talk", "node"]) {
        const caller = held === "node"
          ? { role: "node", scopes: [], protocol }
          : { role: "operator", scopes: [`operator.${held}`], protocol };

        // No method takes a number, so that none of them runs.
        const outcome: Outcome = await dispatcher.dispatch(name, 7, { caller } as never as Call);

        assert(!outcome.ok);
        const { message } = (outcome as Extract<Outcome, { ok: false }>).error;
        const wasRefused = (outcome as Extract<Outcome, { ok: false }>).refused;
        const what = `${name} by ${held} on protocol ${protocol}: ${message}`;
        assertEquals(wasRefused, !isOpen(access, held), what);
        if (wasRefused) assertEquals(message, refusal(access, held), what);
      }
    }
  }
});

Deno.test("over the wire each scope opens exactly its methods, directly and through gateway.call", async () => {
  await using gateway = await startTestGateway();
  for (const held of [...SCOPES, "node"]) {
    const role = held === "node" ? "node" as const : "operator" as const;
    const scopes = held === "node" ? [] : [`operator.${held}`];
    let client = await gateway.connect({ role, scopes });
    let refusals = 0;
    for (const { name } of METHODS) {
      const access = expected(name, 4)!;
      const calls: [string, unknown][] = [[name, 7], ["gateway.call", { method: name, params: 7 }]];
      for (const [method, params] of calls) {
        const { code, message, details } = await client.refused(method, params);

        const isThrough = !/^(missing scope|unauthorized role)/.test(message);
        const isExpected = isOpen(access, held) && (role === "operator" || method === name);
        assertEquals(isThrough, isExpected, `${method} ${name} by ${held}: ${message}`);
        if (message.startsWith("missing scope")) {
          const missingScope = `operator.${access}`;
          assertEquals([code, details], [
            "FORBIDDEN",
            { code: "MISSING_SCOPE", missingScope, requiredScopes: [missingScope] },
          ]);
        }
        // The fiftieth would end the connection.
        if (isThrough || ++refusals % 45 > 0) continue;
        await client.close();
        client = await gateway.connect({ role, scopes });
      }
    }
    await client.close();
  }
});

Deno.test("a method nobody has needs admin from operators, and is unknown to nodes", async () => {
  await using gateway = await startTestGateway();
  const reader = await gateway.connect({ scopes: ["operator.read"] });
  const old = await gateway.connect({ protocol: 3, scopes: ["operator.read"] });
  const admin = await gateway.connect();
  const node = await gateway.connect({ role: "node" });

  const messages = await Promise.all(
    [reader, old, admin, node].map((one) => one.refused("node.skills.update", {})),
  );

  assertEquals(messages.map(({ code, message }) => [code, message]), [
    ["FORBIDDEN", "missing scope: operator.admin"],
    ["INVALID_REQUEST", "missing scope: operator.admin"],
    ["INVALID_REQUEST", "unknown method: node.skills.update"],
    ["INVALID_REQUEST", "unknown method: node.skills.update"],
  ]);
});
