// A `tailscale` that keeps routes as the real one does: in this process for a runner, and as a program
// on PATH. Both record what they were asked.

import type { ProcessResult, ProcessRunner } from "../../tunnel/process.ts";

export const NAME = "box.tail1234.ts.net";
export const LOGIN = "peter@example.com";

/** As `tailscale serve status --json` prints it. */
export interface ServeConfig {
  TCP?: Record<string, { HTTPS?: boolean; TCPForward?: string }>;
  Web?: Record<string, { Handlers: Record<string, { Proxy?: string; Path?: string }> }>;
  AllowFunnel?: Record<string, boolean>;
  Foreground?: Record<string, ServeConfig>;
}

export const RUNNING = {
  BackendState: "Running",
  TailscaleIPs: ["100.64.0.7"],
  CertDomains: [NAME],
  Self: { DNSName: `${NAME}.`, TailscaleIPs: ["100.64.0.7"] },
};

/** What one path of port 443 leads to. */
export function web(handlers: Record<string, string>, { isPublic = false } = {}): ServeConfig {
  const at = `${NAME}:443`;
  const proxied = Object.entries(handlers).map(([path, Proxy]) => [path, { Proxy }]);
  return {
    TCP: { "443": { HTTPS: true } },
    Web: { [at]: { Handlers: Object.fromEntries(proxied) } },
    ...isPublic && { AllowFunnel: { [at]: true } },
  };
}

export class FakeTailscale implements ProcessRunner {
  readonly asked: string[] = [];
  status: object = RUNNING;
  routes: ServeConfig;
  /** What `serve` and `funnel` fail with. */
  failure?: ProcessResult;
  /** Set to false: `funnel` sets a route up and does not publish it. */
  mayFunnel = true;

  constructor(routes: ServeConfig = {}) {
    this.routes = routes;
  }

  /** What was asked, without the questions that change nothing. */
  get changes(): string[] {
    return this.asked.filter((line) => !/^(status|serve status|whois) /.test(line));
  }

  run(command: string, args: readonly string[]): Promise<ProcessResult | undefined> {
    if (command !== "tailscale") return Promise.resolve(undefined);
    const line = args.join(" ");
    this.asked.push(line);
    return Promise.resolve(this.#answer(line));
  }

  #answer(line: string): ProcessResult {
    if (line === "status --json") return said(this.status);
    if (line === "serve status --json") return said(this.routes);
    if (line.startsWith("whois ")) return said({ UserProfile: { LoginName: LOGIN } });
    if (this.failure) return this.failure;
    const at = `${NAME}:443`;
    const handlers = this.routes.Web?.[at]?.Handlers ?? {};
    const [, mode, target] = /^(serve|funnel) --bg --yes (\S+)$/.exec(line) ?? [];
    if (target) {
      const Proxy = /^\d+$/.test(target) ? `http://127.0.0.1:${target}` : target;
      const isPublic = mode === "funnel" && this.mayFunnel;
      this.routes = {
        ...this.routes,
        TCP: { ...this.routes.TCP, "443": { HTTPS: true } },
        Web: { ...this.routes.Web, [at]: { Handlers: { ...handlers, "/": { Proxy } } } },
        AllowFunnel: isPublic ? { [at]: true } : {},
      };
      return said({});
    }
    if (/^(serve|funnel) --yes --https=443 --set-path=\/ off$/.test(line)) {
      const { "/": _, ...rest } = handlers;
      this.routes = Object.keys(rest).length > 0
        ? { ...this.routes, Web: { [at]: { Handlers: rest } } }
        : {};
      return said({});
    }
    return { code: 2, stdout: "", stderr: `unknown command: ${line}` };
  }
}

function said(answer: object): ProcessResult {
  return { code: 0, stdout: JSON.stringify(answer), stderr: "" };
}

/** A program called `tailscale` in a directory of its own, to be put in front of PATH. */
export async function makeTailscaleProgram(directory: string) {
  const file = (name: string) => `${directory}/${name}`;
  const proxy = String.raw`{"TCP":{"443":{"HTTPS":true}},"Web":{"${NAME}:443":{"Handlers":` +
    String.raw`{"/":{"Proxy":"http://127.0.0.1:%s"}}}}}`;
  const script = `#!/bin/sh
echo "$*" >> '${file("asked")}'
case "$*" in
"status --json") cat '${file("status.json")}' ;;
"serve status --json") cat '${file("routes.json")}' ;;
"serve --bg --yes "*) printf '${proxy}' "$4" > '${file("routes.json")}' ;;
*" off") echo '{}' > '${file("routes.json")}' ;;
"whois --json 100.64.0.9") echo '{"UserProfile":{"LoginName":"${LOGIN}"}}' ;;
*) echo "unknown: $*" >&2; exit 2 ;;
esac
`;
  await Deno.mkdir(directory, { recursive: true });
  await Deno.writeTextFile(file("tailscale"), script, { mode: 0o755 });
  await Deno.writeTextFile(file("status.json"), JSON.stringify(RUNNING));
  await Deno.writeTextFile(file("routes.json"), "{}");
  return {
    asked: async () => (await Deno.readTextFile(file("asked")).catch(() => "")).trim().split("\n"),
    routes: async () => JSON.parse(await Deno.readTextFile(file("routes.json"))) as ServeConfig,
    setStatus: (status: object) => Deno.writeTextFile(file("status.json"), JSON.stringify(status)),
    setRoutes: (routes: ServeConfig) =>
      Deno.writeTextFile(file("routes.json"), JSON.stringify(routes)),
  };
}
