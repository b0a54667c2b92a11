import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { Client } from "../../rpc/client.ts";
import { RpcError } from "../../rpc/error.ts";
import { generateIdentity } from "../../rpc/identity.ts";
import { makePlace, startGatewayProcess, TOKEN } from "../support/process.ts";

/** Deep enough that it can be read as JSON and not be written again. */
const DEPTH = 20_000;

Deno.test("an answer nested too deep costs its caller an error, and nobody the gateway", async () => {
  await using place = await makePlace();
  await using gateway = await startGatewayProcess({ place });
  const open = () => new WebSocket(`ws://127.0.0.1:${gateway.port}`);
  const identity = await generateIdentity();
  const base = { open, auth: { token: TOKEN } };
  await using operator = await Client.connect({
    ...base,
    client: { id: "test", mode: "test", version: "1", platform: "linux" },
    scopes: ["operator.admin"],
  });
  const deep = `${'{"1":'.repeat(DEPTH)}1${"}".repeat(DEPTH)}`;
  let answered: Promise<unknown> = Promise.resolve();
  await using node = await Client.connect({
    ...base,
    identity,
    role: "node",
    client: { id: "node-host", mode: "node", version: "1", platform: "linux" },
    commands: ["system.which"],
    onEvent({ event, payload }) {
      if (event !== "node.invoke.request") return;
      const { id, nodeId } = payload as { id: string; nodeId: string };
      const params = { id, nodeId, ok: true, payloadJSON: deep };
      answered = node.call("node.invoke.result", params);
    },
  });

  const error = await assertRejects(
    () =>
      operator.call("node.invoke", {
        nodeId: identity.deviceId,
        command: "system.which",
        idempotencyKey: "k",
      }),
    RpcError,
  );

  assertStringIncludes(error.message, "internal error");
  await answered;
  assertEquals(((await operator.call("health", {})) as { ok: boolean }).ok, true);
});
