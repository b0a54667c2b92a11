// `zero security audit`: the findings of security.ts, told to people and to scripts.

import { type Command, command, EXIT_FAILURE, EXIT_OK, JSON_FLAG } from "../config/command.ts";
import type { Paths } from "../config/paths.ts";

export function securityCommands({ place }: { place: () => Paths }): Command[] {
  return [
    command({
      path: ["security", "audit"],
      aliases: [["security"]],
      summary: "Look for what makes this installation easier to break into than it need be",
      flags: {
        ...JSON_FLAG,
        level: {
          kind: "text",
          choices: ["info", "warn", "critical"],
          default: "warn",
          summary: "The exit code is 1 for findings of this level and above",
        },
        fix: { kind: "boolean", summary: "Mend file modes; everything else is yours to decide" },
      },
      details: "It looks at the bind address, authentication, proxies, settings that weaken the " +
        "gateway for a time, file modes, and secrets in service files.",
      examples: ["zero security audit", "zero security audit --level critical --json"],
      async run({ flags }, terminal) {
        const { ConfigError, readConfig } = await import("../config/load.ts");
        const { gatherFacts, judge, LEVELS } = await import("./security.ts");
        const paths = place();
        const reading = await readConfig({ path: paths.configPath, env: paths.env });
        if (!reading.valid) throw new ConfigError(reading.issues);
        const home = paths.env.HOME;
        let findings = judge(await gatherFacts({ paths, reading, home }));
        const repaired: string[] = [];
        if (flags.fix) {
          for (const { repair } of findings) {
            if (!repair) continue;
            await Deno.chmod(repair.path, repair.mode);
            repaired.push(repair.path);
          }
          findings = judge(await gatherFacts({ paths, reading, home }));
        }
        const limit = LEVELS.indexOf(flags.level);
        const isBad = findings.some(({ level }) => LEVELS.indexOf(level) >= limit);
        if (flags.json) {
          const shown = findings.map(({ repair, ...finding }) => ({
            ...finding,
            fixable: repair !== undefined,
          }));
          terminal.json({ ok: !isBad, findings: shown, repaired });
          return isBad ? EXIT_FAILURE : EXIT_OK;
        }
        for (const path of repaired) terminal.out(`Mended the mode of ${path}`);
        const { red, yellow, dim, bold } = terminal.style;
        const paint = { critical: red, warn: yellow, info: dim };
        for (const { level, title, detail, fix } of findings) {
          terminal.out(`${paint[level](level.padEnd(8))}  ${bold(title)}`);
          terminal.out(`          ${detail}`);
          terminal.out(`          ${dim("fix:")} ${fix}`);
        }
        const count = (wanted: string) => findings.filter(({ level }) => level === wanted).length;
        terminal.out(
          findings.length === 0
            ? "Nothing found"
            : `${count("critical")} critical, ${count("warn")} warnings, ${count("info")} remarks`,
        );
        return isBad ? EXIT_FAILURE : EXIT_OK;
      },
    }),
  ];
}
