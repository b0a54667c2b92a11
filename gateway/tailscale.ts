// Publishing the gateway through Tailscale (§12, `gateway.tailscale`): brings the route about, keeps
// it, and takes it down again where that is asked for. It never touches a route it did not make, and
// whatever goes wrong here leaves the gateway running on loopback, degraded.

import { writePrivateFile } from "../config/private_file.ts";
import type { Log } from "../config/log.ts";
import type { TailscaleMode } from "../config/settings.ts";
import { printable } from "../config/terminal.ts";
import type { ProcessRunner } from "../tunnel/process.ts";
import {
  publishRoute,
  readServeRoutes,
  readTailnetSelf,
  type ServeRoute,
  unpublishRoute,
} from "../tunnel/tailscale.ts";

/** Where Tailscale puts a server unless told otherwise. */
const HTTPS_PORT = 443;
const PATH = "/";
/** How often a route that stands is looked at, and one that does not is tried again. */
const CHECK_MS = 60_000;
const RETRY_MS = 15_000;
/** What each step of taking a route down may take: the gateway has five seconds to stop in all. */
const UNDO_STEP_MS = 1_200;

export type PublishMode = Exclude<TailscaleMode, "off">;

/** A route this installation made, as it is kept between runs. */
export interface OwnRoute {
  host: string;
  mode: PublishMode;
  /** As Tailscale shows it. */
  target: string;
}

export interface WantedRoute extends OwnRoute {
  /** What the command is given. */
  argument: string;
}

export interface Trouble {
  message: string;
  fix: string;
}

export type RouteVerdict =
  | { kind: "there" }
  | { kind: "free" }
  | ({ kind: "taken" } & Trouble);

/**
 * Whether a route may be made beside those that are there. Nobody else's is replaced, published or
 * taken off the internet by it.
 *
 * @param own what this installation made earlier
 */
export function judgeRoutes(
  routes: readonly ServeRoute[],
  wanted: WantedRoute,
  own: OwnRoute | undefined,
): RouteVerdict {
  const { host, mode, target } = wanted;
  const wantsPublic = mode === "funnel";
  const atPort = routes.filter((one) =>
    one.port === HTTPS_PORT && (one.host === undefined || one.host === host)
  );
  const inTheWay = atPort.find(({ isForeground, path }) => isForeground || path === undefined);
  if (inTheWay) return taken(inTheWay, "has port 443");
  const root = atPort.find(({ path }) => path === PATH);
  const isOwn = root !== undefined && own?.host === host && own.target === root.target;
  if (root && root.target !== target && !isOwn) return taken(root, "has the path /");
  if (root && root.target === target && root.isPublic === wantsPublic) return { kind: "there" };
  if (root && !isOwn && root.isPublic) return taken(root, "is on the internet by Funnel");
  const beside = atPort.find(({ path, isPublic }) => path !== PATH && isPublic !== wantsPublic);
  if (beside) {
    return taken(
      beside,
      wantsPublic ? "would be put on the internet" : "would be taken off the internet",
    );
  }
  return { kind: "free" };
}

function taken({ path, target, isForeground, isPublic }: ServeRoute, why: string): RouteVerdict {
  const name = printable(path === undefined ? target : `${path} to ${target}`);
  const command = path === undefined
    ? `tailscale serve --tcp=${HTTPS_PORT} off`
    : `tailscale ${isPublic ? "funnel" : "serve"} --https=${HTTPS_PORT} --set-path=${
      printable(path)
    } off`;
  return {
    kind: "taken",
    message: `Tailscale has a route of somebody else: ${name} ${why}`,
    fix: isForeground
      ? "Stop the tailscale command that runs in a terminal, or set gateway.tailscale.mode off"
      : `If nobody needs it: ${command}; or: zero config set gateway.tailscale.mode off`,
  };
}

export interface TailscaleRouteOptions {
  runner: ProcessRunner;
  mode: TailscaleMode;
  /** The port the gateway listens on, and whether it speaks TLS there. */
  port: number;
  hasTls: boolean;
  resetOnExit: boolean;
  /** Where the own route is kept between runs. */
  stateFile: string;
  log: Log;
  /** Told of what is wrong, and with undefined that nothing is. */
  report(trouble: Trouble | undefined): void;
  checkMs?: number;
  retryMs?: number;
}

/** The route while the gateway runs. Everything happens in the background. */
export class TailscaleRoute implements AsyncDisposable {
  readonly #options: TailscaleRouteOptions;
  #name?: string;
  #isOver = false;
  #timer?: ReturnType<typeof setTimeout>;
  #working: Promise<void> = Promise.resolve();

  constructor(options: TailscaleRouteOptions) {
    this.#options = options;
  }

  /** What this machine is called in its tailnet, as soon as that is known. */
  get name(): string | undefined {
    return this.#name;
  }

  /** Resolves when the first attempt is over; later ones follow by themselves. */
  start(): Promise<void> {
    this.#working = this.#work();
    return this.#working;
  }

  async [Symbol.asyncDispose]() {
    this.#isOver = true;
    clearTimeout(this.#timer);
    await within(this.#working, UNDO_STEP_MS);
    if (this.#options.mode !== "off" && this.#options.resetOnExit) await this.#takeDown();
  }

  async #work(): Promise<void> {
    const { mode, log, report, checkMs = CHECK_MS, retryMs = RETRY_MS } = this.#options;
    let trouble: Trouble | undefined;
    try {
      // Switched off: a route that an earlier run left up is not wanted any more.
      if (mode === "off") return await this.#takeDown();
      trouble = await this.#ensure(mode);
    } catch (error) {
      log.error("cannot publish through tailscale", { error: (error as Error).message });
      trouble = { message: `Tailscale: ${(error as Error).message}`, fix: "zero logs" };
    }
    if (this.#isOver) return;
    report(trouble);
    this.#timer = setTimeout(() => this.start(), trouble ? retryMs : checkMs);
  }

  /** @returns what stands in the way */
  async #ensure(mode: PublishMode): Promise<Trouble | undefined> {
    const { runner, port, hasTls, log } = this.#options;
    const off = "zero config set gateway.tailscale.mode off";
    const self = await readTailnetSelf(runner);
    if (!self) {
      return {
        message: "the tailscale command is not there, or does not answer",
        fix: `Install Tailscale and start it, or: ${off}`,
      };
    }
    if (self.state !== "Running") {
      return {
        message: `Tailscale is not connected: ${printable(self.state)}`,
        fix: "tailscale up",
      };
    }
    const { name } = self;
    this.#name = name;
    if (!name) {
      return {
        message: "this machine has no name in its tailnet",
        fix: "Switch MagicDNS on in the DNS page of the Tailscale admin console",
      };
    }
    if (!self.hasCertificates) {
      return {
        message: "the tailnet has no HTTPS certificates",
        fix: "Switch HTTPS certificates on in the DNS page of the Tailscale admin console",
      };
    }
    const argument = hasTls ? `https+insecure://127.0.0.1:${port}` : String(port);
    const target = hasTls ? argument : `http://127.0.0.1:${port}`;
    const wanted: WantedRoute = { host: name, mode, target, argument };
    const own = await this.#kept();
    const before = await this.#judge(wanted, own);
    if ("message" in before) return before;
    if (before.kind === "there") return undefined;
    if (this.#isOver) return undefined;

    // Kept first: a route whose maker died must still be known as ours.
    await this.#keep({ host: name, mode, target });
    const { isDone, said } = await publishRoute(runner, mode, argument);
    const after = await this.#judge(wanted, own);
    if (isDone && "kind" in after && after.kind === "there") {
      log.info("published through tailscale", { mode, url: `https://${name}/` });
      return undefined;
    }
    const routes = await readServeRoutes(runner);
    const isThere = routes?.some((one) =>
      one.host === name && one.port === HTTPS_PORT && one.path === PATH && one.target === target
    );
    if (!isThere) await (own ? this.#keep(own) : this.#forget());
    else if (mode === "serve") await this.#takeDown();
    const line = printable(said.split("\n").at(-1) ?? "");
    return {
      message: `tailscale ${mode} did not bring the route about${line && `: ${line}`}`,
      fix: `See what it says: tailscale ${mode} --bg ${argument}; where it asks for more rights: ` +
        "sudo tailscale set --operator=$USER",
    };
  }

  async #judge(
    wanted: WantedRoute,
    own: OwnRoute | undefined,
  ): Promise<Exclude<RouteVerdict, Trouble> | Trouble> {
    const routes = await readServeRoutes(this.#options.runner);
    if (routes) return judgeRoutes(routes, wanted, own);
    return {
      message: "tailscale serve status gave no answer that can be read",
      fix: "Update Tailscale to 1.52 or later",
    };
  }

  /** Takes down what this installation made, if it still stands as it was made. */
  async #takeDown() {
    const { runner, log } = this.#options;
    const own = await this.#kept();
    if (!own) return;
    const { host, target, mode } = own;
    const routes = await readServeRoutes(runner, UNDO_STEP_MS);
    const fix = `tailscale ${mode} --https=${HTTPS_PORT} --set-path=${PATH} off`;
    if (!routes) return log.warn("cannot look at the tailscale route; it may still be up", { fix });
    const isOwn = routes.some((one) =>
      one.host === host && one.port === HTTPS_PORT && one.path === PATH && one.target === target &&
      !one.isForeground
    );
    if (isOwn) {
      const at = { port: HTTPS_PORT, path: PATH };
      const isDown = await unpublishRoute(runner, mode, at, UNDO_STEP_MS);
      if (!isDown) return log.warn("cannot take the tailscale route down", { fix });
      log.info("took the tailscale route down", { mode, host });
    }
    await this.#forget();
  }

  async #kept(): Promise<OwnRoute | undefined> {
    try {
      const { host, mode, target } = JSON.parse(
        await Deno.readTextFile(this.#options.stateFile),
      ) as Partial<OwnRoute>;
      const isWhole = host && target && (mode === "serve" || mode === "funnel");
      return isWhole ? { host, mode, target } : undefined;
    } catch {
      // None was made, or nobody can tell any more: then no route counts as ours.
      return undefined;
    }
  }

  async #keep(route: OwnRoute) {
    const { stateFile } = this.#options;
    await writePrivateFile(stateFile, JSON.stringify(route));
  }

  async #forget() {
    await Deno.remove(this.#options.stateFile).catch((error) => {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    });
  }
}

/** Resolves when the work is over, or the time is. */
async function within(work: Promise<unknown>, ms: number) {
  const over = Promise.withResolvers<void>();
  const timer = setTimeout(over.resolve, ms);
  await Promise.race([work, over.promise]);
  clearTimeout(timer);
}
