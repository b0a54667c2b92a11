import { assertEquals } from "@std/assert";
import { withoutProxy } from "../../config/forward_proxy.ts";
import { zero } from "../support/cli.ts";
import { startTestGateway } from "../support/gateway.ts";

Deno.test("private networks are kept from a proxy, beside what the user keeps from it", () => {
  assertEquals(withoutProxy({}), undefined);
  assertEquals(withoutProxy({ NO_PROXY: "a.example", HTTP_PROXY: " " }), undefined);
  const list = withoutProxy({ all_proxy: "http://proxy", no_proxy: "a.example" })?.split(",") ?? [];
  assertEquals(list[0], "a.example");
  assertEquals(list.includes("127.0.0.0/8"), true);
});

Deno.test("a command reaches a gateway without encryption although a proxy is named, and the proxy hears nothing", async () => {
  await using gateway = await startTestGateway();
  const home = await Deno.makeTempDir({ prefix: "zero-proxy-" });
  await using _home = { [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }) };
  const proxy = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  let dials = 0;
  const served = (async () => {
    for await (const connection of proxy) {
      dials++;
      connection.close();
    }
  })();
  const at = `http://127.0.0.1:${proxy.addr.port}`;

  for (const name of ["HTTP_PROXY", "http_proxy", "ALL_PROXY"]) {
    const { code, json, stderr } = await zero([
      "health",
      "--json",
      "--port",
      String(gateway.port),
      "--token",
      gateway.token,
    ], { home, env: { [name]: at } });
    assertEquals([code, json.ok], [0, true], `${name}: ${stderr}`);
  }

  proxy.close();
  await served;
  assertEquals(dials, 0);
});
