import { assertEquals } from "@std/assert";
import { childEnv, DEFAULT_PATH } from "../../../gateway/node/env.ts";

const NODE = { PATH: "/usr/bin:/bin", HOME: "/home/me", USER: "me", SHELL: "/bin/sh" };

Deno.test("a command inherits the node's environment with what its caller adds", () => {
  assertEquals(childEnv({ ...NODE, LANG: "C" }, { FOO: "1", LANG: "de" }), {
    ...NODE,
    LANG: "de",
    FOO: "1",
  });
});

Deno.test("what makes programs load foreign code is neither inherited nor taken", () => {
  const names = [
    ...["NODE_OPTIONS", "PYTHONHOME", "PYTHONPATH", "PERL5LIB", "PERL5OPT", "RUBYOPT"],
    ...["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "DYLD_X"],
    ...["ld_preload", "Node_Options", "dyld_x"],
  ];
  const values = Object.fromEntries(names.map((name) => [name, "/evil"]));

  assertEquals(childEnv({ ...NODE, ...values }, {}), NODE);
  assertEquals(childEnv(NODE, values), NODE);
});

Deno.test("which files a shell or program reads when it starts is not for callers to say", () => {
  const names = [
    ...["HOME", "ZDOTDIR", "BASH_ENV", "ENV", "SHELL", "USER", "PROMPT_COMMAND", "PS4", "IFS"],
    ...["XDG_CONFIG_HOME", "GIT_SSH_COMMAND", "GIT_CONFIG_GLOBAL", "BASH_FUNC_ls%%", "PAGER"],
    ...["SHELLOPTS", "PYTHONSTARTUP", "ZERO_STATE_DIR", "npm_config_prefix", "home", "EDITOR"],
    ...["TAR_OPTIONS", "RSYNC_RSH", "RIPGREP_CONFIG_PATH", "FZF_DEFAULT_COMMAND", "LESSOPEN"],
    ...["GH_PAGER", "SVN_SSH", "KUBE_EDITOR", "MAVEN_OPTS", "SUDO_ASKPASS", "BASH_LOADABLES_PATH"],
    ...["PYTHONWARNINGS", "PYTHONPYCACHEPREFIX", "PERLLIB", "RUBYLIB", "NODE_PATH", "LUA_INIT"],
    ...["DOTNET_STARTUP_HOOKS", "GLIBC_TUNABLES", "SSLKEYLOGFILE", "CC", "GOROOT", "JAVA_HOME"],
  ];
  const values = Object.fromEntries(names.map((name) => [name, "/evil"]));

  assertEquals(childEnv(NODE, values), NODE);
  assertEquals(childEnv({ ...NODE, ZDOTDIR: "/home/me/zsh" }, {}).ZDOTDIR, "/home/me/zsh");
});

Deno.test("what only says how a program goes about it may be set", () => {
  const wanted = { NODE_ENV: "test", PYTHONUNBUFFERED: "1", LC_ALL: "C", TZ: "UTC", DEBUG: "*" };

  assertEquals(childEnv(NODE, wanted), { ...NODE, ...wanted });
});

Deno.test("PATH can only be added to in front", () => {
  const path = (PATH: string) => childEnv(NODE, { PATH }).PATH;

  assertEquals(path("/opt/bin:/usr/bin:/bin"), "/opt/bin:/usr/bin:/bin");
  assertEquals(path("/usr/bin:/bin"), "/usr/bin:/bin");
  for (const refused of ["", "  ", "/evil", "/usr/bin:/bin:/evil", "/evil/usr/bin:/bin"]) {
    assertEquals(path(refused), NODE.PATH, refused);
  }
  assertEquals(childEnv(NODE, { Path: "/evil", path: "/evil" }), NODE);
});

Deno.test("what a node was started without is filled in", () => {
  const env = childEnv({});

  assertEquals(env.PATH, DEFAULT_PATH);
  assertEquals(env.SHELL, "/bin/sh");
  assertEquals(env.HOME.startsWith("/"), true);
  assertEquals(env.USER.length > 0, true);
});

Deno.test("the node's own secrets stay with the node", () => {
  const secrets = {
    ZERO_GATEWAY_TOKEN: "a",
    ZERO_GATEWAY_PASSWORD: "b",
    ZERO_BROWSER_CONTROL_TOKEN: "c",
  };

  assertEquals(childEnv({ ...NODE, ...secrets }), NODE);
});

Deno.test("a variable that no program could be given is left out", () => {
  assertEquals(childEnv(NODE, { "": "1", "A=B": "1", "A\0": "1", A: "\0", B: "1" }), {
    ...NODE,
    B: "1",
  });
});
