import { assert, assertEquals, assertThrows } from "@std/assert";
import { inProfile, type PathOptions, resolvePath, resolvePaths } from "../../config/paths.ts";

const home = "/home/me";

Deno.test("without anything said, all lives in ~/.zero", () => {
  const paths = resolvePaths({ env: {}, home });

  assertEquals(paths.stateDir, "/home/me/.zero");
  assertEquals(paths.configPath, "/home/me/.zero/zero.json");
  assertEquals(paths.lockFile, "/home/me/.zero/gateway.lock");
  assertEquals(paths.tokenFile, "/home/me/.zero/gateway.token");
  assertEquals(paths.database, "/home/me/.zero/zero.sqlite");
  assertEquals(paths.deviceFile, "/home/me/.zero/identity/device.json");
  assertEquals(paths.deviceAuthFile, "/home/me/.zero/identity/device-auth.json");
  assertEquals(paths.logFile, "/home/me/.zero/logs/gateway.log");
  assertEquals(paths.voicewakeFile, "/home/me/.zero/settings/voicewake.json");
  assertEquals(["profile" in paths, "portOverride" in paths], [false, false]);
  assertEquals(paths.env, {});
});

Deno.test("flags and environment decide where things live", async (t) => {
  type Said = [string | undefined, string, string, number | undefined];
  const cases: [string, Partial<PathOptions>, Said][] = [
    ["--profile", { profile: "work" }, [
      "work",
      "/home/me/.zero-work",
      "/home/me/.zero-work/zero.json",
      undefined,
    ]],
    ["--profile default", { profile: "default" }, [
      "default",
      "/home/me/.zero",
      "/home/me/.zero/zero.json",
      undefined,
    ]],
    ["--dev", { dev: true }, [
      "dev",
      "/home/me/.zero-dev",
      "/home/me/.zero-dev/zero.json",
      19001,
    ]],
    ["--dev beside ZERO_GATEWAY_PORT", { dev: true, env: { ZERO_GATEWAY_PORT: "7" } }, [
      "dev",
      "/home/me/.zero-dev",
      "/home/me/.zero-dev/zero.json",
      undefined,
    ]],
    ["ZERO_PROFILE", { env: { ZERO_PROFILE: "work" } }, [
      "work",
      "/home/me/.zero-work",
      "/home/me/.zero-work/zero.json",
      undefined,
    ]],
    ["--profile beside ZERO_PROFILE", { profile: "mine", env: { ZERO_PROFILE: "work" } }, [
      "mine",
      "/home/me/.zero-mine",
      "/home/me/.zero-mine/zero.json",
      undefined,
    ]],
    ["--profile beside ZERO_STATE_DIR", { profile: "work", env: { ZERO_STATE_DIR: "/s" } }, [
      "work",
      "/s",
      "/s/zero.json",
      undefined,
    ]],
    ["--profile beside ZERO_CONFIG_PATH", { profile: "work", env: { ZERO_CONFIG_PATH: "/c" } }, [
      "work",
      "/home/me/.zero-work",
      "/c",
      undefined,
    ]],
    ["~ in variables", { env: { ZERO_STATE_DIR: "~/s", ZERO_CONFIG_PATH: "~/c/z.json" } }, [
      undefined,
      "/home/me/s",
      "/home/me/c/z.json",
      undefined,
    ]],
    ["relative variables", { env: { ZERO_STATE_DIR: "../s/./t" }, cwd: "/cwd/here" }, [
      undefined,
      "/cwd/s/t",
      "/cwd/s/t/zero.json",
      undefined,
    ]],
    ["blank variables", { env: { ZERO_STATE_DIR: " ", ZERO_PROFILE: "", ZERO_CONFIG_PATH: "" } }, [
      undefined,
      "/home/me/.zero",
      "/home/me/.zero/zero.json",
      undefined,
    ]],
  ];
  for (const [name, options, said] of cases) {
    await t.step(name, () => {
      const paths = resolvePaths({ env: {}, home, ...options });

      assertEquals([paths.profile, paths.stateDir, paths.configPath, paths.portOverride], said);
    });
  }
});

Deno.test("what a profile sets is in the environment that is handed on", () => {
  const { env } = resolvePaths({ env: { OTHER: "1" }, home, dev: true });

  assertEquals(env, {
    OTHER: "1",
    ZERO_PROFILE: "dev",
    ZERO_STATE_DIR: "/home/me/.zero-dev",
    ZERO_CONFIG_PATH: "/home/me/.zero-dev/zero.json",
    ZERO_GATEWAY_PORT: "19001",
  });
});

Deno.test("a profile name that could lead elsewhere is refused, and the text says what is right", () => {
  for (const name of ["", "../x", "a/b", "-a", "_a", "a b", "é", "a".repeat(65), "a\n"]) {
    const error: Error = assertThrows(() => resolvePaths({ env: {}, home, profile: name }), Error);
    assert(error.message.startsWith("Cannot use --profile"), error.message);
    assert(error.message.includes("1 to 64 letters"), error.message);
  }
  assertThrows(() => resolvePaths({ env: { ZERO_PROFILE: "../x" }, home }), Error, "ZERO_PROFILE");
  assertEquals(resolvePaths({ env: {}, home, profile: "a".repeat(64) }).profile, "a".repeat(64));
});

Deno.test("--dev and --profile exclude one another", () => {
  assertThrows(
    () => resolvePaths({ env: {}, home, dev: true, profile: "dev" }),
    Error,
    "Cannot use --dev and --profile together",
  );
});

Deno.test("without a home directory only whole paths do", () => {
  assertThrows(() => resolvePaths({ env: {} }), Error, "there is no home directory");
  assertEquals(resolvePaths({ env: { ZERO_STATE_DIR: "/s" } }).configPath, "/s/zero.json");
});

Deno.test("paths are resolved as a shell would", () => {
  const cases: [string, string][] = [
    ["~", "/home/me"],
    ["~/a", "/home/me/a"],
    ["~other/a", "/cwd/~other/a"],
    ["a/../../b", "/b"],
    ["/../a//b/", "/a/b"],
    ["/", "/"],
  ];
  for (const [path, said] of cases) assertEquals(resolvePath(path, { home, cwd: "/cwd" }), said);
  assertEquals(resolvePath("./a/../../b", {}), "../b");
});

Deno.test("what mends something is told for the profile it is wrong in", () => {
  assertEquals(inProfile("zero gateway", undefined), "zero gateway");
  assertEquals(inProfile("zero tunnel up home", "work"), "zero --profile work tunnel up home");
  assertEquals(inProfile("zero gateway", "dev"), "zero --dev gateway");
  assertEquals(
    inProfile("Start it: ssh me@box zero gateway", "work"),
    "Start it: ssh me@box zero gateway",
  );
});
