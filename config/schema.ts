// The shape of the configuration file: the one place a setting is named. Type, description, default
// and secrecy of a key stand together; the list of defaults, of secret paths, the hints for forms
// and the JSON schema are all derived from here. Reading the file is the matter of load.ts.

import {
  annotated,
  boolean,
  either,
  type Infer,
  integer,
  type JsonSchema,
  list,
  mapOf,
  nonEmpty,
  number,
  object,
  oneOf,
  open,
  optional,
  rule,
  schemaOf,
  type Shape,
  text,
} from "../rpc/shape.ts";

/** What stands in the place of a secret wherever a configuration is shown. */
export const REDACTED = "__REDACTED__";

/** The name by which `--remote` and `ZERO_REMOTE` mean the gateway of this installation. */
export const LOCAL_NAME = "local";

/** The keys and indexes that lead to a value. */
export type KeyPath = (string | number)[];

/** A certificate that is expected: its fingerprint, and until when it counts. */
export type Pin = string | { sha256: string; until?: string };
/** As it is configured. */
export type PinSetting = Pin | Pin[];

/** What a form needs to show one setting (§7.7). */
export interface UiHint {
  label?: string;
  help?: string;
  group?: string;
  order?: number;
  advanced?: boolean;
  sensitive?: boolean;
  placeholder?: string;
  itemTemplate?: unknown;
}

/** A rule over several keys that a configuration breaks. */
export interface RuleIssue {
  path: KeyPath;
  message: string;
  /** What would be right. */
  fix: string;
}

/** A secret that stands elsewhere. */
export type SecretSource = { env: string } | { file: string } | { exec: string[] };
/** A secret, or where it stands: `env:NAME`, `file:PATH`, `exec:PROGRAM ARG…` are such text, too. */
export type SecretRef = string | SecretSource;

/**
 * What a client keeps a secret in: the secret itself or a reference. For keys that are read with
 * `resolveSecret` (secrets.ts); what the gateway itself asks for stays plain text.
 */
export const secretRef: Shape<SecretRef> = annotated(
  either<SecretRef>(
    [
      rule(nonEmpty(), (text) => secretSourceOf(text) !== undefined || "no such reference"),
      object({ env: text({ pattern: /^[A-Za-z_][A-Za-z0-9_]*$/, what: "a variable" }) }),
      object({ file: text({ pattern: /^(~\/|\/)/, what: "an absolute path" }) }),
      object({ exec: list(nonEmpty(), { min: 1 }) }),
    ] as Shape<SecretRef>[],
    'text, {env: "NAME"}, {file: "/path"} or {exec: ["program", "argument"]}',
  ),
  { examples: ["env:ZERO_REMOTE_TOKEN"] },
);

const port = integer({ min: 1, max: 65_535 });
const milliseconds = integer({ min: 0 });
const bytes = integer({ min: 1 });
const filePath = nonEmpty();
const secretText = nonEmpty();
const ipv4 = textLike("192.168.1.10", (text) => isIpv4(text) || "must be an IPv4 address");
const address = textLike(
  "10.0.0.5",
  (text) => isAddressOrRange(text) || "must be an IP address or CIDR",
);
const hostName = textLike("gateway.example", (text) => isHostName(text) || "must be a host name");
const origin = textLike(
  "https://ui.example",
  (text) => isOrigin(text) || "must be a web origin: scheme, host and port",
);
const webSocketUrl = textLike(
  "ws://127.0.0.1:18789",
  (text) => isUrl(text, ["ws:", "wss:"]) || "must be a ws:// or wss:// URL",
);
const apiUrl = textLike(
  "https://api.example/v1",
  (text) => isUrl(text, ["http:", "https:"]) || "must be an http:// or https:// URL",
);
const httpUrl = textLike("http://127.0.0.1:18791", controlUrlVerdict);
const fingerprint = textLike(
  "sha256:5f70…",
  (text) =>
    normalizedFingerprint(text).length === 64 || "must be a SHA-256 fingerprint of 64 hex digits",
);
const day = text({
  pattern: /^\d{4}-\d\d-\d\d(T[\d:.]+(Z|[+-]\d\d:\d\d))?$/,
  what: "a date",
});
const pinEntry = object({ sha256: fingerprint, until: optional(rule(day, isDate)) });
const pin = either<Pin>([fingerprint, pinEntry] as unknown as Shape<Pin>[], "a pin");
const pins = annotated(
  either<PinSetting>(
    [pin, list(pin, { min: 1 })] as unknown as Shape<PinSetting>[],
    "a SHA-256 fingerprint of 64 hex digits, {sha256, until}, or a list of such",
  ),
  { examples: ["sha256:5f70…"] },
);
const sshTarget = textLike(
  "user@host:22",
  (text) => isSshTarget(text) || "must be [user@]host[:port] without white space or a leading '-'",
);

const headerName = textLike(
  "X-Forwarded-User",
  (text) => isFreeHeader(text) || "must be the name of a header a proxy may set",
);
/** Of what a proxy must send; text is the value it must have, and a secret. */
const requiredHeaders = annotated(
  either<string[] | Record<string, string | true>>(
    [
      list(headerName, { min: 1 }),
      rule(
        mapOf(either<string | true>([nonEmpty(), oneOf([true])] as Shape<string | true>[], "text")),
        (map) =>
          (Object.keys(map).length > 0 && Object.keys(map).every(isFreeHeader)) || "no such map",
      ),
    ] as Shape<string[] | Record<string, string | true>>[],
    "a list of header names, or an object of names with a value or true",
  ),
  {
    examples: [{ "X-Proxy-Secret": "…", "X-Request-Id": true }],
    additionalProperties: {
      description: "The value it must have, or true where any will do",
      sensitive: true,
    },
    items: {},
  },
);

/** The scopes that open methods (§6.1). */
const OPERATOR_SCOPES = [
  "operator.admin",
  "operator.read",
  "operator.write",
  "operator.approvals",
  "operator.pairing",
] as const;

/** How a client reaches a gateway that runs elsewhere. */
const remoteFields = {
  url: setting(webSocketUrl, "Address of the remote gateway: ws:// or wss://"),
  transport: setting(oneOf(["direct", "ssh"]), "How the remote gateway is reached", {
    default: "direct",
  }),
  token: secret(secretRef, "Token of the remote gateway, or where it stands"),
  password: secret(secretRef, "Password of the remote gateway, or where it stands"),
  tlsFingerprint: setting(
    pins,
    "SHA-256 fingerprint the remote certificate must have, or a list: one of them, each until a date",
  ),
  sshTarget: setting(sshTarget, "[user@]host[:port] to tunnel through"),
  sshIdentity: setting(filePath, "Private key file for ssh"),
  sshHostKeyPolicy: setting(oneOf(["strict", "accept-new"]), "What to do about unknown host keys", {
    default: "strict",
  }),
  remotePort: setting(port, "Port of the gateway on the machine ssh reaches", { default: 18_789 }),
  edgeAuth: section("What a proxy in front of the remote gateway asks for; over wss:// only", {
    headers: setting(
      mapOf(
        annotated(secretRef, {
          description: "Value of a header that is sent to the proxy, or where it stands",
          sensitive: true,
        }),
      ),
      "Headers of the connect, by name",
    ),
  }),
};

const gateway = open({
  mode: setting(
    oneOf(["local", "remote"]),
    "remote: commands go to gateway.remote, and no gateway starts on this machine",
  ),
  port: setting(port, "Port for WebSocket and HTTP", { default: 18_789 }),
  bind: setting(
    oneOf(["loopback", "lan", "tailnet", "auto", "custom"]),
    "Which addresses of this machine the gateway listens on",
    { default: "loopback" },
  ),
  customBindHost: setting(ipv4, 'IPv4 address to listen on with bind "custom"'),
  allowedHosts: setting(list(hostName), "Further names a request may have in its Host header", {
    default: [],
  }),
  trustedProxies: setting(
    list(address),
    "Addresses of reverse proxies whose forwarding headers count",
    { default: [] },
  ),
  auth: section("Who may call the gateway", {
    mode: setting(
      oneOf(["token", "password", "trusted-proxy", "none"]),
      "What callers prove; unset: password if there is one, else token",
    ),
    token: secret(secretText, "The shared token"),
    password: secret(secretText, "The shared password"),
    allowTailscale: setting(
      boolean(),
      "Accept the identity Tailscale Serve adds; unset: yes when serving, unless mode is password",
    ),
    trustedProxy: section("The proxy that says who its user is, with mode trusted-proxy", {
      userHeader: setting(headerName, "Header in which the proxy names the user"),
      requiredHeaders: setting(
        requiredHeaders,
        "Headers the proxy adds to every request: a list of names, or an object with their values",
      ),
      allowUsers: setting(
        list(nonEmpty()),
        'Users who are let in, as the proxy names them; ["*"]: everybody it names',
      ),
      scopes: setting(
        list(oneOf(OPERATOR_SCOPES)),
        "Scopes of such a user without a device of their own; unset: operator.read",
      ),
    }),
    silentPairing: setting(boolean(), "Pair devices on this machine without asking", {
      default: true,
    }),
    rateLimit: section("When failed logins lock an address out", {
      maxAttempts: setting(integer({ min: 1 }), "Wrong secrets allowed within windowMs", {
        default: 10,
      }),
      windowMs: setting(integer({ min: 1 }), "How long a wrong secret counts", { default: 60_000 }),
      lockoutMs: setting(milliseconds, "How long an address stays locked out", {
        default: 300_000,
      }),
    }),
  }),
  tailscale: section("Publishing the gateway through Tailscale", {
    mode: setting(
      oneOf(["off", "serve", "funnel"]),
      "serve: inside the tailnet; funnel: on the public internet",
      { default: "off" },
    ),
    resetOnExit: setting(boolean(), "Take the Tailscale route down when the gateway stops", {
      default: false,
    }),
  }),
  controlUi: section("The web page the gateway serves", {
    enabled: setting(boolean(), "Serve the Control UI", { default: true }),
    basePath: setting(text(), "Path prefix of the Control UI", { default: "" }),
    allowInsecureAuth: setting(
      boolean(),
      "Accept the Control UI without a device key over plain HTTP",
      { default: false },
    ),
    allowInsecureAuthUntil: setting(
      text({ pattern: /^\d{4}-\d\d-\d\d(T[\d:.]+(Z|[+-]\d\d:\d\d))?$/, what: "a date" }),
      "When that ends: an ISO 8601 date",
    ),
    allowedOrigins: setting(
      list(origin),
      "Further web origins that may open a WebSocket or call over HTTP",
      { default: [] },
    ),
  }),
  remote: section("The gateway that mode remote talks to", {
    name: setting(nonEmpty(), "Which of remotes it is; the keys beside it then do not count"),
    ...remoteFields,
  }),
  reload: section("What a change of the file does to a running gateway", {
    mode: setting(
      oneOf(["off", "restart", "hot", "hybrid"]),
      "off: nothing; hot: apply what can be applied; restart: always; hybrid: hot, else restart",
      { default: "hybrid" },
    ),
    debounceMs: setting(milliseconds, "How long the file must rest before it is read again", {
      default: 300,
    }),
  }),
  tls: section("Encryption on the gateway's own port", {
    enabled: setting(boolean(), "Serve https:// and wss://", { default: false }),
    autoGenerate: setting(
      boolean(),
      "Make a self-signed certificate when none is set and there is none",
      { default: true },
    ),
    certPath: setting(filePath, "Certificate chain (PEM)"),
    keyPath: setting(filePath, "Private key (PEM)"),
    caPath: setting(filePath, "Further certificates of the chain (PEM), sent after it"),
  }),
  http: section("HTTP endpoints beside the WebSocket", {
    endpoints: section("Which of them are served", {
      chatCompletions: section("POST /v1/chat/completions", {
        enabled: setting(boolean(), "Serve the endpoint", { default: false }),
      }),
      responses: section("POST /v1/responses", {
        enabled: setting(boolean(), "Serve the endpoint", { default: false }),
        maxBodyBytes: setting(bytes, "Largest request body", { default: 20 * 1024 * 1024 }),
        files: section("Files in a request", {
          allowUrl: setting(boolean(), "Fetch files by URL", { default: true }),
          allowedMimes: setting(list(nonEmpty()), "Media types accepted"),
          maxBytes: setting(bytes, "Largest file", { default: 5 * 1024 * 1024 }),
          maxChars: setting(integer({ min: 1 }), "Characters kept of a file", { default: 200_000 }),
          maxRedirects: setting(integer({ min: 0 }), "Redirects followed", { default: 3 }),
          timeoutMs: setting(integer({ min: 1 }), "Deadline of a fetch", { default: 10_000 }),
          pdf: section("PDF files", {
            maxPages: setting(integer({ min: 1 }), "Pages read", { default: 4 }),
            maxPixels: setting(integer({ min: 1 }), "Pixels of a rendered page", {
              default: 4_000_000,
            }),
            minTextChars: setting(integer({ min: 0 }), "Fewer characters: render the page", {
              default: 200,
            }),
          }),
        }),
        images: section("Images in a request", {
          allowUrl: setting(boolean(), "Fetch images by URL", { default: true }),
          allowedMimes: setting(list(nonEmpty()), "Media types accepted"),
          maxBytes: setting(bytes, "Largest image", { default: 10 * 1024 * 1024 }),
          maxRedirects: setting(integer({ min: 0 }), "Redirects followed", { default: 3 }),
          timeoutMs: setting(integer({ min: 1 }), "Deadline of a fetch", { default: 10_000 }),
        }),
      }),
    }),
  }),
  cors: section("Cross-origin rules of the HTTP endpoints", {
    enabled: setting(boolean(), "Answer cross-origin requests", { default: false }),
    allowedOrigins: setting(list(origin), "Origins answered", {
      default: ["http://localhost:3000"],
    }),
    allowedMethods: setting(list(nonEmpty()), "HTTP methods answered", {
      default: ["GET", "POST", "OPTIONS"],
    }),
    allowCredentials: setting(boolean(), "Let browsers send credentials"),
  }),
  nodes: section("What the gateway lets nodes do", {
    allowCommands: setting(list(nonEmpty()), "Commands allowed beyond the platform's own list"),
    denyCommands: setting(list(nonEmpty()), "Commands refused on every node"),
    browser: section("Which node serves browser tools", {
      mode: setting(oneOf(["auto", "manual", "off"]), "How the node is chosen", {
        default: "auto",
      }),
      node: setting(nonEmpty(), "Node id or name"),
    }),
  }),
});

const exec = open({
  host: setting(oneOf(["sandbox", "gateway", "node"]), "Where commands run"),
  security: setting(oneOf(["deny", "allowlist", "full"]), "Which commands may run"),
  ask: setting(oneOf(["off", "on-miss", "always"]), "When to ask for approval"),
  node: setting(nonEmpty(), "The node commands are pinned to"),
  pathPrepend: setting(list(nonEmpty()), "Directories put in front of PATH"),
  safeBins: setting(list(nonEmpty()), "Programs that need no approval"),
  timeoutSec: setting(integer({ min: 1 }), "Deadline of a command in seconds"),
  backgroundMs: setting(milliseconds, "When a command goes on in the background"),
});

const heartbeat = {
  every: setting(
    text({ pattern: /^\s*\d+(\.\d+)?\s*(ms|s|m|h|d)?\s*$/, what: "a duration such as 30m" }),
    "How often the agent looks after what happened, such as 30m; 0 = never",
  ),
  prompt: setting(text(), "What it is told then; without it, it wakes only if something happened"),
  model: setting(nonEmpty(), "Its model then as <name>/<id>, instead of the agent's"),
  target: setting(oneOf(["last", "none"]), "last: what it says goes to the chat used last", {
    default: "last",
  }),
  ackMaxChars: setting(integer({ min: 0 }), "Characters beside HEARTBEAT_OK that say nothing", {
    default: 300,
  }),
};

const hookMapping = object({
  path: annotated(
    text({ pattern: /^[A-Za-z0-9._~-]+(\/[A-Za-z0-9._~-]+)*$/, what: "a path" }),
    { description: "What follows hooks.path" },
  ),
  action: setting(oneOf(["agent", "wake"]), "agent: a run; wake: told to the main session", {
    default: "agent",
  }),
  message: annotated(nonEmpty(), {
    description: "What the agent is told; {{a.b}} is a field of the request, {{.}} all of it",
  }),
  name: setting(nonEmpty(), "What it is called where it is reported"),
  sessionKey: setting(nonEmpty(), "Session of the run, with {{a.b}} as in message"),
  wakeMode: setting(oneOf(["now", "next-heartbeat"]), "When the main session is told", {
    default: "now",
  }),
  deliver: setting(boolean(), "Send the answer to a chat", { default: true }),
  channel: setting(nonEmpty(), "Channel of that chat; last: the chat used last", {
    default: "last",
  }),
  to: setting(nonEmpty(), "That chat"),
  model: setting(nonEmpty(), "Model of the run as <name>/<id>"),
  thinking: setting(nonEmpty(), "How much the model thinks"),
  timeoutSeconds: setting(integer({ min: 1, max: 86_400 }), "Deadline of the run"),
});

const agents = open({
  defaults: section("What every agent has unless it says otherwise", {
    heartbeat: section("When agents wake by themselves", heartbeat),
    timeoutSeconds: setting(integer({ min: 1 }), "Deadline of a run", { default: 600 }),
    model: setting(nonEmpty(), "Provider and model as <name>/<id>; unset: the built-in agent"),
    fallbacks: setting(list(nonEmpty()), "Models tried when the first fails"),
  }),
  list: setting(
    list(open({
      id: annotated(nonEmpty(), { description: "What the agent is called in calls and sessions" }),
      default: setting(boolean(), "The agent used when none is named"),
      name: setting(text(), "Display name"),
      model: setting(nonEmpty(), "Its model as <name>/<id>, instead of agents.defaults.model"),
      identity: setting(open({}), "Name and emoji of the agent"),
      heartbeat: section("When the agent wakes by itself", heartbeat),
      tools: setting(open({ exec: setting(exec, "Commands of this agent") }), "Tools it has"),
    })),
    "The agents",
  ),
});

const models = open({
  providers: setting(
    mapOf(open({
      api: setting(
        oneOf(["openai-completions", "anthropic-messages"]),
        "Protocol of the provider",
        {
          default: "openai-completions",
        },
      ),
      baseUrl: setting(apiUrl, "Address of the provider, as far as the version: …/v1"),
      apiKey: secret(secretRef, "Key for the provider, or where it stands; unset: none is sent"),
      models: setting(
        list(open({
          id: annotated(nonEmpty(), { description: "What the provider calls it" }),
          name: setting(text(), "What people call it"),
          contextWindow: setting(integer({ min: 1024 }), "Tokens it can read at once", {
            default: 128_000,
          }),
          maxTokens: setting(integer({ min: 1 }), "Most tokens of one answer"),
          reasoning: setting(boolean(), "Whether it can be told how long to think"),
          cost: section("US dollars for a million tokens", {
            input: setting(number({ min: 0 }), "Read"),
            output: setting(number({ min: 0 }), "Written"),
          }),
        })),
        "Models offered",
      ),
      idleTimeoutSeconds: setting(
        integer({ min: 1 }),
        "Silence after which an answer is given up",
        {
          default: 120,
        },
      ),
    })),
    "Model providers by name",
  ),
});

/** People of a channel: their number there, `@name`, or `*` for everybody. */
const people = list(either<string | number>(
  [
    integer({ min: 1 }),
    textLike("@ada", (text) => /^(@\w+|\d+|\*)$/.test(text) || "must be a number, @name or *"),
  ] as Shape<string | number>[],
  "a number, @name or *",
));

const telegram = open({
  enabled: setting(boolean(), "Run this channel", { default: true }),
  botToken: secret(secretRef, "Token of the bot from @BotFather, or where it stands"),
  tokenFile: setting(filePath, "File with the token, instead of botToken"),
  apiRoot: setting(apiUrl, "Bot API server", { default: "https://api.telegram.org" }),
  mode: setting(oneOf(["polling"]), "How messages come: the gateway asks for them", {
    default: "polling",
  }),
  dmPolicy: setting(
    oneOf(["pairing", "allowlist", "open", "disabled"]),
    "Who may write: those approved by a code, those in allowFrom, everybody, nobody",
    { default: "pairing" },
  ),
  allowFrom: setting(people, "Who may write without being asked for a code"),
  owners: setting(people, "Who may give owner commands; unset: those in allowFrom"),
  requireMention: setting(boolean(), "In groups, listen only when spoken to", { default: true }),
  groups: setting(
    mapOf(open({
      requireMention: setting(boolean(), "Listen only when spoken to"),
      allowFrom: setting(people, "Who is listened to in this group; unset: every member"),
    })),
    'Groups the bot listens in, by chat number; "*" for any',
  ),
});

/** The configuration file, `$include` and `${VAR}` resolved. Undefined = not set. */
export const Config = object({
  $schema: setting(text(), "Where an editor finds the schema"),
  gateway: setting(gateway, "The gateway: where it listens, who may call, how it is reached"),
  discovery: setting(
    open({
      mdns: section("Being found on the local network", {
        mode: setting(
          oneOf(["off", "minimal", "full"]),
          "minimal: a gateway the network can reach says so; full: also one on loopback, with more",
          { default: "minimal" },
        ),
      }),
      wideArea: section("Unicast DNS-SD", {
        enabled: setting(boolean(), "Announce in the zone zero.internal.", { default: false }),
      }),
    }),
    "How gateways are found",
  ),
  nodeHost: setting(
    open({
      browserProxy: section("The browser this machine lends as a node", {
        enabled: setting(boolean(), "Offer the browser", { default: true }),
        allowProfiles: setting(list(nonEmpty()), "Browser profiles offered"),
      }),
      fs: section("The files this machine lends as a node", {
        roots: setting(
          list(object({
            path: text({ pattern: /^(\/|~\/|~$)/, what: "an absolute path" }),
            write: optional(boolean()),
          })),
          "Directories lent with everything in them, for reading, or also for writing",
        ),
      }),
    }),
    "This machine as a node",
  ),
  browser: setting(
    open({
      enabled: setting(boolean(), "Offer browser tools", { default: true }),
      controlUrl: setting(httpUrl, "Address of the browser control server"),
      controlToken: secret(secretText, "Token of the browser control server"),
      defaultProfile: setting(nonEmpty(), "Browser profile used when none is named"),
    }),
    "The browser tools",
  ),
  canvasHost: setting(
    open({
      enabled: setting(boolean(), "Serve the canvas", { default: true }),
      root: setting(filePath, "Directory that is served"),
      port: setting(port, "Port of the canvas server"),
      liveReload: setting(boolean(), "Reload pages when a file changes", { default: true }),
    }),
    "Pages that agents show on nodes",
  ),
  agents: setting(agents, "The agents"),
  models: setting(models, "Models and their providers"),
  channels: setting(open({ telegram: setting(telegram, "The Telegram bot") }), "Channels"),
  session: setting(
    open({
      mainKey: setting(nonEmpty(), "Key of the main session", { default: "main" }),
      scope: setting(oneOf(["per-sender", "global"]), "Who shares a session", {
        default: "per-sender",
      }),
      store: setting(nonEmpty(), "Where sessions are kept (path template)"),
    }),
    "Conversations",
  ),
  tools: setting(open({ exec: setting(exec, "Commands agents run") }), "Tools of the agents"),
  hooks: setting(
    open({
      enabled: setting(boolean(), "Serve the hooks", { default: false }),
      token: secret(secretText, "Token callers of hooks prove"),
      path: setting(nonEmpty(), "Path of the hooks", { default: "/hooks" }),
      maxBodyBytes: setting(bytes, "Largest request body", { default: 262_144 }),
      trusted: setting(
        boolean(),
        "Let hooks act as an owner: tools, owner commands and every session",
        { default: false },
      ),
      mappings: setting(list(hookMapping), "Hooks of your own"),
    }),
    "Incoming webhooks",
  ),
  cron: setting(
    open({ enabled: setting(boolean(), "Run scheduled jobs", { default: true }) }),
    "Scheduled jobs",
  ),
  logging: setting(
    open({
      level: setting(
        oneOf(["trace", "debug", "info", "warn", "error", "silent"]),
        "Least severe lines that are written",
        { default: "info" },
      ),
      file: setting(filePath, "Log file; unset: logs/gateway.log in the state directory"),
      maxBytes: setting(integer({ min: 4096 }), "Size at which a new log file is begun", {
        default: 10 * 1024 * 1024,
      }),
      maxFiles: setting(integer({ min: 1, max: 100 }), "Log files kept, the current one included", {
        default: 5,
      }),
    }),
    "The log",
  ),
  ui: setting(open({}), "Looks of the Control UI"),
  commands: setting(
    open({
      restart: setting(boolean(), "Let SIGUSR1 from outside restart the gateway", {
        default: false,
      }),
    }),
    "Commands from outside",
  ),
  messages: setting(open({}), "How messages are handled"),
  talk: setting(open({ apiKey: secret(secretText, "Key of the speech provider") }), "Speech"),
  skills: setting(open({}), "Skills of the agents"),
  remotes: setting(mapOf(open(remoteFields)), "Remote gateways by name"),
  identity: setting(open({}), "Name of this installation"),
});
export type Config = Infer<typeof Config>;

/** Keys that hold a secret wherever they stand, even where the schema does not name them. */
const SECRET_NAMES = new Set(["token", "password", "secret", "apikey", "bottoken"]);

/** The JSON schema of the file, for editors and `config.schema`. */
export function configSchema(): JsonSchema {
  const schema = schemaOf(Config);
  const include = {
    anyOf: [{ type: "string" }, { type: "array", items: { type: "string" } }],
    description: "Files that are merged under this object",
  };
  return {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    ...schema,
    properties: { ...schema.properties as JsonSchema, $include: include },
  };
}

/** What a form needs to show each setting, by dotted path; `[]` and `*` stand for any entry. */
export function uiHints(schema: JsonSchema = schemaOf(Config)): Record<string, UiHint> {
  const hints: Record<string, UiHint> = {};
  let order = 0;
  for (const { path, schema: one } of settingsOf(schema)) {
    if (typeof one.description !== "string") continue;
    const hint: UiHint = {
      label: labelOf(path.at(-1)!),
      help: one.description,
      group: path[0],
      order: order++,
    };
    if (one.sensitive === true) hint.sensitive = true;
    if (one.default !== undefined && one.type !== "array") hint.placeholder = String(one.default);
    hints[joined(path)] = hint;
  }
  return hints;
}

/** Dotted paths of the settings that hold secrets; `[]` and `*` stand for any entry. */
export function sensitivePaths(schema: JsonSchema = schemaOf(Config)): string[] {
  return [...settingsOf(schema)].filter((one) => one.schema.sensitive === true)
    .map(({ path }) => joined(path));
}

/** Every default of the schema, as the configuration that would say the same. */
export function defaults(): Config {
  return defaultsIn(schemaOf(Config)) as Config ?? {};
}

/** What the schema says of the setting at a path; undefined where it names none. */
export function schemaAt(path: KeyPath): JsonSchema | undefined {
  let schema: JsonSchema | undefined = schemaOf(Config);
  for (const key of path) {
    const { properties, items, additionalProperties } = schema as SchemaParts;
    // Where either a list or a map may stand, the key says which it is.
    const isEntry = items !== undefined && (typeof key === "number" || !additionalProperties);
    schema = typeof key === "string" && properties && Object.hasOwn(properties, key)
      ? properties[key]
      : isEntry
      ? items
      : additionalProperties || undefined;
    if (!schema) return undefined;
  }
  return schema;
}

/** The names of the settings directly under a path. */
export function settingNames(path: KeyPath): string[] {
  return Object.keys((schemaAt(path) as SchemaParts | undefined)?.properties ?? {});
}

/** The default of the setting at a path; undefined where it has none. */
export function defaultAt(path: KeyPath): unknown {
  return defaultsIn(schemaAt(path) ?? {});
}

/** Whether what stands at a path must not be shown. */
export function isSecret(path: KeyPath): boolean {
  if (schemaAt(path)?.sensitive === true) return true;
  const name = path.findLast((key) => typeof key === "string");
  return typeof name === "string" && SECRET_NAMES.has(name.toLowerCase());
}

/**
 * A copy with every secret replaced by `REDACTED`.
 *
 * @param at where in the configuration the value stands
 */
export function redact<T>(value: T, at: KeyPath = []): T {
  return redacted(value, at) as T;
}

/** What a configuration of the right shape still says that cannot be. */
export function crossFieldIssues(config: Config): RuleIssue[] {
  return [...brokenRules(config)];
}

/** A path as it is written for people: `agents.list[0].id`, `remotes["my.host"].url`. */
export function formatKey(path: KeyPath): string {
  let text = "";
  for (const key of path) {
    if (typeof key === "number") text += `[${key}]`;
    else if (!/^[^.\[\]"'\s]+$/.test(key)) text += `[${JSON.stringify(key)}]`;
    else text += text === "" ? key : `.${key}`;
  }
  return text;
}

/**
 * The reverse of `formatKey`.
 *
 * @returns undefined when the text is not a path
 */
export function parseKey(text: string): KeyPath | undefined {
  const path: KeyPath = [];
  let rest = text.trim();
  while (rest !== "") {
    const match = PATH_STEP.exec(rest);
    if (!match) return undefined;
    const [whole, dot, name, index, quoted] = match;
    if (name !== undefined && (dot === ".") === (path.length === 0)) return undefined;
    if (name === undefined && dot === ".") return undefined;
    if (name !== undefined) path.push(name);
    else if (index !== undefined) path.push(Number(index));
    else {
      const key = unquoted(quoted);
      if (key === undefined) return undefined;
      path.push(key);
    }
    rest = rest.slice(whole.length);
  }
  return path.length > 0 ? path : undefined;
}

const PATH_STEP = /^(\.?)(?:([^.\[\]"'\s]+)|\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\])/;

/**
 * Where a secret stands, or the secret itself for text that is no reference.
 *
 * @returns undefined for text that begins like a reference and is none
 */
export function secretSourceOf(ref: SecretRef): SecretRef | undefined {
  if (typeof ref !== "string") return ref;
  const [, kind, rest] = /^(env|file|exec):(.*)$/s.exec(ref) ?? [];
  if (!kind) return ref;
  if (kind === "env") return /^[A-Za-z_][A-Za-z0-9_]*$/.test(rest) ? { env: rest } : undefined;
  if (kind === "file") return /^(~\/|\/)/.test(rest) ? { file: rest } : undefined;
  const words = rest.trim().split(/\s+/).filter(Boolean);
  return words.length > 0 ? { exec: words } : undefined;
}

/** A reference as text for people. */
export function formatSecretRef(source: SecretSource): string {
  if ("env" in source) return `env:${source.env}`;
  // Arguments may hold what is nobody's business.
  return "file" in source ? `file:${source.file}` : `exec:${source.exec[0]}`;
}

/** 64 hex digits of a SHA-256 fingerprint, however it was written (§11.2). */
export function normalizedFingerprint(text: string): string {
  return text.trim().replace(/^sha-?256[:\s]/i, "").replace(/[^0-9a-f]/gi, "").toLowerCase();
}

/**
 * The pins of a setting or flag, normalised; text may name several, with commas between, each with
 * ` until <date>` behind it.
 */
export function pinsIn(given: PinSetting | undefined): Pin[] {
  if (given === undefined) return [];
  return [given].flat().flatMap((pin): Pin[] =>
    typeof pin === "string"
      ? pin.split(",").map(pinOf)
      : [{ ...pin, sha256: normalizedFingerprint(pin.sha256) }]
  );
}

/** A pin as text, which `pinsIn` reads again. */
export function formatPin(pin: Pin): string {
  return typeof pin === "string" || !pin.until
    ? fingerprintIn(pin)
    : `${pin.sha256} until ${pin.until}`;
}

function pinOf(text: string): Pin {
  const [, fingerprint = text, until] = /^(.*\S)\s+until\s+(\S+)\s*$/is.exec(text) ?? [];
  const sha256 = normalizedFingerprint(fingerprint);
  return until === undefined ? sha256 : { sha256, until };
}

/** The fingerprint of a pin, without the date. */
export function fingerprintIn(pin: Pin): string {
  return typeof pin === "string" ? pin : pin.sha256;
}

function isDate(text: string): true | string {
  return !Number.isNaN(Date.parse(text)) || "must be a date that exists";
}

export function isIpv4(text: string): boolean {
  const parts = text.split(".");
  return parts.length === 4 &&
    parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part) && Number(part) <= 255);
}

type SchemaParts = {
  properties?: Record<string, JsonSchema>;
  items?: JsonSchema;
  additionalProperties?: JsonSchema | false;
};

function* settingsOf(
  schema: JsonSchema,
  path: string[] = [],
): Generator<{ path: string[]; schema: JsonSchema }> {
  if (path.length > 0) yield { path, schema };
  const { properties, items, additionalProperties } = schema as SchemaParts;
  for (const [key, one] of Object.entries(properties ?? {})) {
    yield* settingsOf(one, [...path, key]);
  }
  if (items) yield* settingsOf(items, [...path, "[]"]);
  if (additionalProperties) yield* settingsOf(additionalProperties, [...path, "*"]);
}

function joined(path: string[]): string {
  return path.join(".").replaceAll(".[]", "[]");
}

function labelOf(key: string): string {
  const words = key.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function defaultsIn(schema: JsonSchema): unknown {
  if (schema.default !== undefined) return structuredClone(schema.default);
  const entries = Object.entries((schema as SchemaParts).properties ?? {})
    .map(([key, one]) => [key, defaultsIn(one)] as const)
    .filter(([, value]) => value !== undefined);
  return entries.length > 0 ? Object.fromEntries(entries) : undefined;
}

function redacted(value: unknown, at: KeyPath): unknown {
  if (value !== undefined && value !== null && isSecret(at)) return REDACTED;
  if (Array.isArray(value)) return value.map((one, index) => redacted(one, [...at, index]));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, one]) => [key, redacted(one, [...at, key])]),
  );
}

function* brokenRules(config: Config): Generator<RuleIssue> {
  const { gateway = {}, hooks = {} } = config;
  if (gateway.bind === "custom" && gateway.customBindHost === undefined) {
    yield {
      path: ["gateway", "bind"],
      message: '"custom" needs gateway.customBindHost',
      fix: "set gateway.customBindHost to an IPv4 address of this machine",
    };
  }
  yield* tlsRules(gateway.tls ?? {});
  yield* remoteRules(gateway.remote ?? {}, ["gateway", "remote"]);
  yield* nameRules(gateway.remote ?? {}, config.remotes ?? {});
  for (const [name, remote] of Object.entries(config.remotes ?? {})) {
    yield* remoteRules(remote, ["remotes", name]);
  }
  if (hooks.enabled === true && hooks.token === undefined) {
    yield {
      path: ["hooks", "enabled"],
      message: "hooks.enabled requires hooks.token",
      fix: "set hooks.token, or set hooks.enabled to false",
    };
  }
  if (hooks.path !== undefined && /^\/*$/.test(hooks.path.trim())) {
    yield {
      path: ["hooks", "path"],
      message: "hooks.path may not be '/'",
      fix: 'use a path of its own, such as "/hooks"',
    };
  }
  yield* breakGlassRules(gateway.controlUi ?? {});
  yield* placeholders(config, []);
}

/** What weakens the gateway is allowed for a time, never for good. */
function* breakGlassRules(
  { allowInsecureAuth, allowInsecureAuthUntil }: NonNullable<
    NonNullable<Config["gateway"]>["controlUi"]
  >,
): Generator<RuleIssue> {
  const path = ["gateway", "controlUi", "allowInsecureAuthUntil"];
  if (allowInsecureAuth === true && allowInsecureAuthUntil === undefined) {
    yield {
      path: ["gateway", "controlUi", "allowInsecureAuth"],
      message: "needs gateway.controlUi.allowInsecureAuthUntil",
      fix: 'set when it ends, such as "2026-12-01"',
    };
  }
  if (allowInsecureAuthUntil !== undefined && Number.isNaN(Date.parse(allowInsecureAuthUntil))) {
    yield { path, message: "is no date", fix: 'use an ISO 8601 date, such as "2026-12-01"' };
  }
}

function* tlsRules(
  { enabled, autoGenerate, certPath, keyPath }: NonNullable<
    NonNullable<Config["gateway"]>["tls"]
  >,
): Generator<RuleIssue> {
  const path = ["gateway", "tls"];
  if (certPath !== undefined && keyPath === undefined) {
    yield {
      path: [...path, "certPath"],
      message: "needs gateway.tls.keyPath",
      fix: "set gateway.tls.keyPath to the key of this certificate",
    };
  }
  if (keyPath !== undefined && certPath === undefined) {
    yield {
      path: [...path, "keyPath"],
      message: "needs gateway.tls.certPath",
      fix: "set gateway.tls.certPath to the certificate of this key",
    };
  }
  if (enabled === true && autoGenerate === false && certPath === undefined) {
    yield {
      path: [...path, "autoGenerate"],
      message: "false leaves gateway.tls without a certificate",
      fix: "set gateway.tls.certPath and gateway.tls.keyPath, or remove autoGenerate",
    };
  }
}

function* remoteRules(
  { url, tlsFingerprint, transport, sshTarget, edgeAuth }: NonNullable<
    NonNullable<Config["gateway"]>["remote"]
  >,
  path: KeyPath,
): Generator<RuleIssue> {
  if (tlsFingerprint !== undefined && url !== undefined && !/^wss:/i.test(url)) {
    yield {
      path: [...path, "tlsFingerprint"],
      message: "gateway tls fingerprint requires wss:// gateway url",
      fix: `let ${formatKey([...path, "url"])} begin with wss://, or remove the fingerprint`,
    };
  }
  const headers = Object.keys(edgeAuth?.headers ?? {});
  if (headers.length > 0 && (transport === "ssh" || !/^wss:/i.test(url ?? ""))) {
    yield {
      path: [...path, "edgeAuth"],
      message: "is sent over wss:// only",
      fix: `let ${formatKey([...path, "url"])} begin with wss://, or remove edgeAuth`,
    };
  }
  for (const name of headers) {
    if (isFreeHeader(name)) continue;
    yield {
      path: [...path, "edgeAuth", "headers", name],
      message: "is no header that can be set",
      fix: "remove it",
    };
  }
  if (transport === "ssh" && sshTarget === undefined && url === undefined) {
    yield {
      path: [...path, "transport"],
      message: `"ssh" needs ${formatKey([...path, "sshTarget"])}`,
      fix: `set ${formatKey([...path, "sshTarget"])} to [user@]host[:port]`,
    };
  }
}

function* nameRules(
  { name }: { name?: string },
  remotes: NonNullable<Config["remotes"]>,
): Generator<RuleIssue> {
  if (name !== undefined && !Object.hasOwn(remotes, name)) {
    yield {
      path: ["gateway", "remote", "name"],
      message: "names no entry of remotes",
      fix: "add it with zero remote add, or remove gateway.remote.name",
    };
  }
  if (Object.hasOwn(remotes, LOCAL_NAME)) {
    yield {
      path: ["remotes", LOCAL_NAME],
      message: `${LOCAL_NAME} is the gateway of this machine`,
      fix: "give it another name",
    };
  }
}

/** Headers that belong to the WebSocket itself. */
const OWN_HEADERS = /^(host|connection|upgrade|origin|content-length|transfer-encoding|sec-.*)$/i;

/** A header name (RFC 9110 §5.1) that is free to be set. */
function isFreeHeader(text: string): boolean {
  return /^[!#$%&'*+.^_`|~0-9a-z-]+$/i.test(text) && !OWN_HEADERS.test(text);
}

/** Whether ssh can be given it as the machine to connect to (D8). */
export function isSshTarget(text: string): boolean {
  return text !== "" && !/^-|[\s\u0000-\u001f\u007f]/.test(text);
}

/** A redacted configuration that was written back would lock everybody out. */
function* placeholders(value: unknown, path: KeyPath): Generator<RuleIssue> {
  if (value === REDACTED) {
    yield {
      path,
      message: `holds ${REDACTED}, which is shown in place of a secret`,
      fix: "write the secret itself, or leave this key as it was",
    };
  }
  if (typeof value !== "object" || value === null) return;
  const isList = Array.isArray(value);
  for (const [key, one] of Object.entries(value)) {
    yield* placeholders(one, [...path, isList ? Number(key) : key]);
  }
}

/** Text with a rule of its own and an example of what is right. */
function textLike(example: string, verdict: (text: string) => true | string) {
  return annotated(rule(nonEmpty(), verdict), { examples: [example] });
}

/** Optional, with what a reader of the documentation needs. */
function setting<T>(shape: Shape<T>, description: string, notes: JsonSchema = {}) {
  return annotated(optional(shape), { description, ...notes });
}

function secret<T>(shape: Shape<T>, description: string) {
  return setting(shape, description, { sensitive: true });
}

/** Settings that belong together. Keys it does not know are kept and ignored. */
function section<F extends Parameters<typeof open>[0]>(description: string, fields: F) {
  return setting(open(fields), description);
}

function isAddressOrRange(text: string): boolean {
  const [address, bits, ...rest] = text.split("/");
  if (rest.length > 0) return false;
  const isV4 = isIpv4(address);
  if (!isV4 && !(address.includes(":") && isUrl(`http://[${address}]/`, ["http:"]))) return false;
  return bits === undefined || (/^\d{1,3}$/.test(bits) && Number(bits) <= (isV4 ? 32 : 128));
}

function isHostName(text: string): boolean {
  return /^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$/i.test(text);
}

function isOrigin(text: string): boolean {
  try {
    const url = new URL(text);
    return url.origin !== "null" && url.origin === text.replace(/\/$/, "").toLowerCase();
  } catch {
    return false; // not a URL at all
  }
}

function isUrl(text: string, protocols: string[]): boolean {
  try {
    return protocols.includes(new URL(text).protocol);
  } catch {
    return false; // not a URL at all
  }
}

function controlUrlVerdict(text: string): true | string {
  try {
    const { protocol } = new URL(text);
    return ["http:", "https:"].includes(protocol) ||
      `browser.controlUrl must be http(s), got: ${protocol.slice(0, -1)}`;
  } catch {
    const port = /^https?:\/\/[^/]*:([^/]*)/i.exec(text)?.[1];
    return port === undefined
      ? "must be an http(s) URL"
      : `browser.controlUrl has invalid port: ${port}`;
  }
}

function unquoted(text: string): string | undefined {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // an escape JSON does not know
  }
}
