import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { shownFingerprint } from "../../tunnel/dial.ts";
import { CERTIFICATE, PRIVATE_KEY } from "../support/certificate.ts";
import { type CliResult, zero } from "../support/cli.ts";
import { makePlace, type Place, startGatewayProcess } from "../support/process.ts";

const TLS = { gateway: { tls: { enabled: true } } };

function cert(place: Place, ...args: string[]): Promise<CliResult> {
  const { home, stateDir, configPath } = place;
  const env = { ZERO_STATE_DIR: stateDir, ZERO_CONFIG_PATH: configPath };
  return zero(["gateway", "cert", ...args], { home, env });
}

Deno.test("without a certificate there is nothing to show or rotate, and it says what makes one", async () => {
  await using off = await makePlace();
  await using on = await makePlace({ config: TLS });

  const results = await Promise.all([
    cert(off, "show"),
    cert(on, "show", "--json"),
    cert(on, "rotate"),
    cert(on, "rotate", "--activate", "--json"),
  ]);

  assertEquals(results.map(({ code }) => code), [1, 1, 1, 1]);
  assertStringIncludes(results[0].stderr, "zero config set gateway.tls.enabled true");
  assertEquals(results[1].json.error.code, "NO_CERTIFICATE");
  assertStringIncludes(
    results[2].stderr,
    "fix:   Start the gateway, which makes one: zero gateway",
  );
  assertEquals(results[3].json.error.code, "NO_CERTIFICATE");
});

Deno.test("rotate makes the next certificate once, both pins are shown, and --activate serves it", async () => {
  await using place = await makePlace({ config: TLS });
  await using gateway = await startGatewayProcess({ place });
  const url = `wss://127.0.0.1:${place.port}`;

  const first = (await cert(place, "show", "--json")).json;
  const early = await cert(place, "rotate", "--activate", "--json");
  const made = (await cert(place, "rotate", "--json")).json;
  const again = await cert(place, "rotate");
  const meanwhile = await shownFingerprint(url);
  const { code, json: activated } = await cert(place, "rotate", "--activate", "--json");
  const shown = await cert(place);

  assertEquals([first.enabled, first.source, first.next], [true, "generated", null]);
  assertEquals(first.pins, [`sha256:${first.current.fingerprint}`]);
  assert(first.current.names.includes("localhost") && first.current.isSelfSigned);
  assertEquals(early.json.error.code, "NO_NEXT_CERTIFICATE");
  assertEquals([made.made, made.current], [true, first.current]);
  assertEquals(made.pins, [...first.pins, `sha256:${made.next.fingerprint}`]);
  assertStringIncludes(again.stdout, JSON.stringify(made.pins));
  assertStringIncludes(again.stderr, "The next certificate was made already");
  assertEquals(meanwhile, first.current.fingerprint);
  assertEquals([code, activated.served, activated.next], [0, true, null]);
  assertEquals(activated.current, made.next);
  assertEquals(await shownFingerprint(url), made.next.fingerprint);
  assertStringIncludes(shown.stdout, `sha256:${made.next.fingerprint}`);
  await gateway.printed(new RegExp(`pin +${first.pins[0]}`));
});

Deno.test("without a running gateway the next certificate is served from its next start", async () => {
  await using place = await makePlace({ config: TLS });
  const gateway = await startGatewayProcess({ place });
  await gateway.stop();
  const { json: made } = await cert(place, "rotate", "--json");

  const activated = await cert(place, "rotate", "--activate");
  await using _again = await startGatewayProcess({ place });

  assertEquals([activated.code, activated.stderr], [
    0,
    "It is served from the next start of the gateway\n",
  ]);
  assertEquals(await shownFingerprint(`wss://127.0.0.1:${place.port}`), made.next.fingerprint);
});

Deno.test("a certificate of one's own is shown, and rotated by its owner alone", async () => {
  await using place = await makePlace();
  const [certPath, keyPath] = [`${place.home}/own.pem`, `${place.home}/own.key`];
  await place.configure({ gateway: { tls: { enabled: true, certPath, keyPath } } });
  await Deno.writeTextFile(certPath, CERTIFICATE);
  await Deno.writeTextFile(keyPath, PRIVATE_KEY);

  const shown = (await cert(place, "show", "--json")).json;
  const rotated = await cert(place, "rotate", "--json");
  const { home, stateDir, configPath } = place;
  const env = { ZERO_STATE_DIR: stateDir, ZERO_CONFIG_PATH: configPath };
  const audit = (await zero(["security", "audit", "--json"], { home, env })).json;

  assertEquals([shown.source, shown.certPath, shown.keyPath], ["own", certPath, keyPath]);
  assertEquals(rotated.json.error.code, "OWN_CERTIFICATE");
  await Deno.writeTextFile(keyPath, "no key");
  const broken = (await cert(place, "show", "--json")).json;

  assertEquals(broken.error.code, "UNUSABLE_CERTIFICATE");
  assertStringIncludes(broken.error.fix, keyPath);
  assertEquals(await Deno.readTextFile(certPath), CERTIFICATE);
  const open = audit.findings.find(({ detail }: { detail: string }) => detail.includes(keyPath));
  assertEquals(open?.id, "files.mode");
});
