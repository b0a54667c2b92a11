import { assertEquals } from "@std/assert";
import { evaluate, matchesPattern } from "../../../gateway/node/allowlist.ts";
import { effectivePolicy, refusal, SAFE_BINS, safeBinsOf } from "../../../gateway/node/policy.ts";
import type { Config } from "../../../config/schema.ts";

async function makeHome(...programs: string[]) {
  const home = await Deno.makeTempDir({ prefix: "zero-allowlist-" });
  await Deno.mkdir(`${home}/bin`);
  await Deno.mkdir(`${home}/work`);
  for (const path of programs) {
    await Deno.mkdir(`${home}/${path}`.replace(/\/[^/]*$/, ""), { recursive: true });
    await Deno.writeTextFile(`${home}/${path}`, "#!/bin/sh\n", { mode: 0o755 });
  }
  return {
    home,
    surroundings: {
      path: `${home}/bin`,
      ownPath: `${home}/bin`,
      cwd: `${home}/work`,
      home,
    },
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
}

const NO_RULES = { allowlist: [], safeBins: new Set<string>() };

Deno.test("a pattern matches paths, whole ones, and never mere names", () => {
  const home = "/home/me";
  const cases: [string, string, boolean][] = [
    ["/usr/bin/ls", "/usr/bin/ls", true],
    ["/usr/bin/LS", "/usr/bin/ls", true],
    ["/usr/bin/ls", "/usr/bin/lsof", false],
    ["/usr/bin/ls", "/evil/usr/bin/ls", false],
    ["ls", "/usr/bin/ls", false],
    ["*", "/usr/bin/ls", false],
    ["**", "/usr/bin/ls", false],
    ["", "", false],
    ["/usr/bin/*", "/usr/bin/ls", true],
    ["/usr/bin/*", "/usr/bin/sub/ls", false],
    ["/usr/*/ls", "/usr/bin/ls", true],
    ["/usr/*", "/usr/bin/ls", false],
    ["/usr/**", "/usr/bin/ls", true],
    ["/**/ls", "/usr/bin/ls", true],
    ["**/ls", "/usr/bin/ls", true],
    ["/usr/bin/?s", "/usr/bin/ls", true],
    ["/usr/bin?ls", "/usr/bin/ls", false],
    ["/usr/bin/l?", "/usr/bin/l", false],
    ["~/bin/x", "/home/me/bin/x", true],
    ["~/bin/*", "/home/me/bin/x", true],
    ["~", "/home/me", true],
    ["~/x", "/home/you/x", false],
    ["/usr/bin/g++", "/usr/bin/g++", true],
    ["/usr/bin/a.b", "/usr/bin/aXb", false],
    ["/usr/bin/[", "/usr/bin/[", true],
    ["/usr/bin/[a-z]s", "/usr/bin/ls", false],
    ["/usr/bin/(ls|rm)", "/usr/bin/rm", false],
    ["  /usr/bin/ls  ", "/usr/bin/ls", true],
  ];

  for (const [pattern, path, wanted] of cases) {
    assertEquals(matchesPattern(pattern, path, home), wanted, `${pattern} on ${path}`);
  }
});

Deno.test("an argv is one command, whatever its words look like", async () => {
  await using place = await makeHome("bin/ls", "bin/rm");
  const rules = { ...NO_RULES, allowlist: [{ pattern: `${place.home}/bin/ls` }] };
  const judge = async (...argv: string[]) =>
    (await evaluate({ argv }, rules, place.surroundings)).isSatisfied;

  assertEquals(await judge("ls", "&&", "rm", "$(rm)", "`rm`", "> x"), true);
  assertEquals(await judge("rm"), false);
  assertEquals(await judge("~/bin/ls"), false);
  assertEquals(await judge("ls "), false);
  assertEquals(await judge("../bin/ls"), true);
  assertEquals(await judge("./ls"), false);
});

Deno.test("a `..` behind a link leads where the system goes, not where the text seems to", async () => {
  await using place = await makeHome("good/bin/ls", "evil/bin/ls", "evil/deep/x");
  await Deno.symlink(`${place.home}/evil/deep`, `${place.home}/good/link`);
  const rules = { ...NO_RULES, allowlist: [{ pattern: `${place.home}/good/**` }] };

  const [segment] =
    (await evaluate({ argv: [`${place.home}/good/link/../bin/ls`] }, rules, place.surroundings))
      .segments;

  assertEquals(segment.path?.endsWith("/evil/bin/ls"), true);
  assertEquals(segment.isAllowed, false);
});

Deno.test("a program that the caller's PATH puts in front is judged by where it is", async () => {
  await using place = await makeHome("bin/jq", "evil/jq", "bin/ls", "evil/ls");
  const { home } = place;
  const surroundings = { ...place.surroundings, path: `${home}/evil:${home}/bin` };
  const rules = { allowlist: [{ pattern: `${home}/bin/ls` }], safeBins: new Set(["jq"]) };
  const judge = async (line: string, at = surroundings) =>
    (await evaluate({ line }, rules, at)).isSatisfied;

  assertEquals(await judge("ls", place.surroundings), true);
  assertEquals(await judge("jq .a", place.surroundings), true);
  assertEquals(await judge("ls"), false);
  assertEquals(await judge("jq .a"), false);
  assertEquals(await judge(`${home}/evil/jq .a`, place.surroundings), false);
});

Deno.test("safe programs are safe only on their standard input", async () => {
  await using place = await makeHome(...SAFE_BINS.map((name) => `bin/${name}`), "work/notes");
  const rules = { allowlist: [], safeBins: new Set(SAFE_BINS) };
  const judge = async (line: string) =>
    (await evaluate({ line }, rules, place.surroundings)).isSatisfied;
  const safe = [
    "head -n 5",
    "head -5",
    "tail -",
    "grep -i error",
    "grep -e 'a/b'",
    "grep --color=never x",
    "sort -k2 -n",
    "sort -u | uniq -c | head",
    "cut -d: -f1",
    "cut -d , -f 1,2",
    "tr a-z A-Z",
    "wc -l",
    "jq .",
    "jq -r '.a | .b'",
    "jq -c --arg name value '.[]'",
    "uniq -d",
    "grep no-such-file",
  ];
  const unsafe = [
    "head notes",
    "head ./notes",
    "head ./nothing",
    "head ../x",
    "head ..",
    "head ~/x",
    "head ~",
    "head /etc/passwd",
    "head C:/x",
    'head "C:\\x"',
    "head -- notes",
    "head $HOME/.ssh/id",
    'head "$HOME"',
    "head *",
    "head no?es",
    "head [n]otes",
    "head {notes,x}",
    "grep x notes",
    "grep --file=/etc/passwd",
    "grep --file=notes",
    "grep --fil=zzz",
    "grep -fzzz",
    "grep -ifzzz",
    "grep -r x",
    "grep -R x",
    "grep --recursive x",
    "grep -drecurse x",
    "sort -o out",
    "sort -uo out",
    "sort --output=out",
    "sort --outp out",
    "sort -T/tmp",
    "sort --compress-program=rm",
    "sort --comp=rm",
    "sort --files0-from=-",
    "wc --files0-from=-",
    "wc --files=-",
    "uniq - out",
    "uniq out",
    "jq -f prog",
    "jq --from-file prog",
    "jq -L lib .",
    "jq --rawfile a b .",
    "jq --slurpfile a b .",
    "jq env",
    "jq -n '$ENV.PATH'",
    "jq 'include \"x\"; .'",
    "jq 'import \"x\" as $y; .'",
    "tail --retry=/etc/passwd",
  ];

  for (const line of safe) assertEquals(await judge(line), true, line);
  for (const line of unsafe) assertEquals(await judge(line), false, line);
});

Deno.test("programs of skills pass where they are allowed to, and are asked for only if it matters", async () => {
  await using place = await makeHome("bin/ls", "bin/gog", "work/gog");
  let questions = 0;
  const rules = {
    allowlist: [{ pattern: `${place.home}/bin/ls` }],
    safeBins: new Set<string>(),
    skillBins: () => {
      questions++;
      return Promise.resolve(new Set(["gog"]));
    },
  };
  const judge = async (line: string) =>
    (await evaluate({ line }, rules, place.surroundings)).isSatisfied;

  assertEquals(await judge("ls"), true);
  assertEquals(questions, 0);
  assertEquals(await judge("ls && gog mail"), true);
  assertEquals(questions, 1);
  assertEquals(await judge("./gog"), false);
  assertEquals((await evaluate({ line: "gog" }, NO_RULES, place.surroundings)).isSatisfied, false);
});

Deno.test("each field of the policy comes from the nearest place that says something", () => {
  const config = {
    agents: { list: [{ id: "Ops", tools: { exec: { ask: "always" } } }] },
    tools: { exec: { security: "deny", ask: "off", safeBins: ["ls"] } },
  } as unknown as Config;
  const file = {
    version: 1 as const,
    defaults: { askFallback: "allowlist" as const },
    agents: {
      "*": { autoAllowSkills: true, allowlist: [{ pattern: "/a" }] },
      ops: { security: "full" as const, allowlist: [{ pattern: "/b" }] },
    },
  };
  const empty = { version: 1 as const };

  assertEquals(effectivePolicy(empty, {} as Config), {
    security: "allowlist",
    ask: "on-miss",
    askFallback: "deny",
    autoAllowSkills: false,
    allowlist: [],
  });
  assertEquals(effectivePolicy(file, config, "ops"), {
    security: "full",
    ask: "always",
    askFallback: "allowlist",
    autoAllowSkills: true,
    allowlist: [{ pattern: "/a" }, { pattern: "/b" }],
  });
  assertEquals(effectivePolicy(file, config, "main").security, "deny");
  assertEquals(effectivePolicy(file, config, "main").ask, "off");
  assertEquals(effectivePolicy(file, config, "main").allowlist, [{ pattern: "/a" }]);
  assertEquals([...safeBinsOf(config)], ["ls"]);
  assertEquals([...safeBinsOf({} as Config)], SAFE_BINS);
});

Deno.test("a file of rules that cannot be understood lets nothing run", () => {
  const config = { tools: { exec: { security: "full", ask: "off" } } } as unknown as Config;

  assertEquals(effectivePolicy(undefined, config).security, "deny");
});

Deno.test("what may run without asking, what must ask, and what never runs", () => {
  const hit = { isAnalysed: true, isSatisfied: true };
  const miss = { isAnalysed: true, isSatisfied: false };
  const odd = { isAnalysed: false, isSatisfied: false };
  const yes = { approved: true };
  const once = { decision: "allow-once" as const };
  const none = {};
  const cases = [
    ["deny", "off", hit, yes, "security=deny"],
    ["deny", "always", hit, once, "security=deny"],
    ["allowlist", "off", hit, none, undefined],
    ["allowlist", "off", miss, none, "allowlist-miss"],
    ["allowlist", "off", odd, none, "allowlist-miss"],
    ["allowlist", "off", miss, yes, undefined],
    ["allowlist", "on-miss", hit, none, undefined],
    ["allowlist", "on-miss", miss, none, "approval-required"],
    ["allowlist", "on-miss", odd, none, "approval-required"],
    ["allowlist", "on-miss", miss, once, undefined],
    ["allowlist", "always", hit, none, "approval-required"],
    ["allowlist", "always", hit, yes, undefined],
    ["full", "off", miss, none, undefined],
    ["full", "on-miss", odd, none, undefined],
    ["full", "always", hit, none, "approval-required"],
    ["full", "always", miss, once, undefined],
  ] as const;

  for (const [security, ask, evaluation, consent, wanted] of cases) {
    const policy = effectivePolicy(
      { version: 1, defaults: { security, ask } },
      {} as Config,
    );
    assertEquals(
      refusal(policy, evaluation, consent)?.reason,
      wanted,
      JSON.stringify([security, ask, evaluation, consent]),
    );
  }
});
