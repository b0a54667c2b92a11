import { assert, assertEquals } from "@std/assert";
import { ClientInfo, ConnectParams, isControlUi, isWebchat, negotiate } from "../../rpc/connect.ts";
import { explain, problems } from "../../rpc/shape.ts";

const CLIENT = { id: "cli", version: "1", platform: "linux", mode: "cli" };
const PARAMS = { minProtocol: 3, maxProtocol: 4, client: CLIENT };

Deno.test("the highest version that both ends speak is agreed on", () => {
  const rows: [number, number, number | undefined][] = [
    [3, 3, 3],
    [4, 4, 4],
    [3, 4, 4],
    [1, 3, 3],
    [1, 99, 4],
    [4, 9, 4],
    [2, 2, undefined],
    [1, 2, undefined],
    [5, 5, undefined],
    [5, 9, undefined],
    [4, 3, undefined],
  ];

  for (const [min, max, agreed] of rows) {
    assertEquals(negotiate(min, max), agreed, `${min}–${max}`);
  }
});

Deno.test("client ids of the protocol and of its family are taken, others are not", () => {
  const families = ["control-ui", "macos", "ios", "android", "probe"];
  const good = [
    ...["webchat-ui", "webchat", "cli", "gateway-client", "node-host", "test", "fingerprint"],
    ...families.flatMap((name) => [`zero-${name}`, `clawdbot-${name}`, `openclaw-${name}`]),
    ...["openclaw-tui", "openclaw-linux", "openclaw-watchos", "openclaw-browser-copilot"],
    "openclaw-worker",
  ];
  const bad = [
    "",
    "CLI",
    "cli ",
    "zero",
    "zero-",
    "other-app",
    "zero-Mac",
    "zero-a1",
    "xcli",
    "clix",
  ];

  for (const id of good) assert(ClientInfo.is({ ...CLIENT, id }), id);
  for (const id of bad) assert(!ClientInfo.is({ ...CLIENT, id }), id);
});

Deno.test("client modes are those of the protocol", () => {
  const modes = ["webchat", "cli", "ui", "backend", "node", "probe", "test", "worker"];

  for (const mode of modes) assert(ClientInfo.is({ ...CLIENT, mode }), mode);
  for (const mode of ["", "CLI", "desktop"]) assert(!ClientInfo.is({ ...CLIENT, mode }), mode);
});

Deno.test("connect params take everything the protocol lists", () => {
  const params = {
    ...PARAMS,
    client: {
      ...CLIENT,
      displayName: "d",
      deviceFamily: "Mac",
      modelIdentifier: "m",
      instanceId: "i",
    },
    caps: ["system"],
    commands: ["system.run"],
    permissions: { camera: true },
    pathEnv: "",
    role: "node",
    scopes: ["operator.read"],
    device: { id: "d", publicKey: "k", signature: "s", signedAt: 0, nonce: "" },
    auth: {
      token: "",
      password: "",
      deviceToken: "",
      bootstrapToken: "",
      approvalRuntimeToken: "",
      agentRuntimeIdentityToken: "",
    },
    locale: "",
    userAgent: "",
  };

  assertEquals(explain(problems(params, ConnectParams)), "");
  assertEquals(explain(problems(PARAMS, ConnectParams)), "");
});

Deno.test("bad connect params are named one by one", () => {
  const rows: [Record<string, unknown>, string][] = [
    [{ minProtocol: undefined }, "must have required property 'minProtocol'"],
    [{ minProtocol: 0 }, "at /minProtocol: must be >= 1"],
    [{ maxProtocol: 3.5 }, "at /maxProtocol: must be integer"],
    [{ client: undefined }, "must have required property 'client'"],
    [
      { client: { ...CLIENT, id: "nope" } },
      "at /client/id: must be equal to one of the allowed values",
    ],
    [
      { client: { ...CLIENT, mode: "nope" } },
      "at /client/mode: must be equal to one of the allowed values",
    ],
    [
      { client: { ...CLIENT, version: "" } },
      "at /client/version: must NOT have fewer than 1 characters",
    ],
    [
      { client: { ...CLIENT, platform: undefined } },
      "at /client: must have required property 'platform'",
    ],
    [{ role: "" }, "at /role: must NOT have fewer than 1 characters"],
    [{ role: ["node"] }, "at /role: must be string"],
    [{ scopes: "operator.admin" }, "at /scopes: must be array"],
    [{ scopes: [""] }, "at /scopes/0: must NOT have fewer than 1 characters"],
    [{ permissions: { a: "yes" } }, "at /permissions/a: must be boolean"],
    [
      { device: {} },
      "at /device: must have required property 'id'; at /device: must have required property 'publicKey'; at /device: must have required property 'signature'; at /device: must have required property 'signedAt'",
    ],
    [{ auth: { token: 7 } }, "at /auth/token: must be string"],
    [{ auth: null }, "at /auth: must be object"],
    [{ extra: 1 }, "at root: unexpected property 'extra'"],
    [{ client: { ...CLIENT, buildId: "b" } }, "at /client: unexpected property 'buildId'"],
  ];

  for (const [change, expected] of rows) {
    assertEquals(explain(problems({ ...PARAMS, ...change }, ConnectParams)), expected);
  }
});

Deno.test("the Control UI is known under each of its names, and browser chats by mode or id", () => {
  for (const name of ["zero", "clawdbot", "openclaw"]) assert(isControlUi(`${name}-control-ui`));
  for (const id of ["control-ui", "zero-control-ui2", "xzero-control-ui", "webchat-ui"]) {
    assert(!isControlUi(id), id);
  }
  assert(isWebchat({ id: "cli", mode: "webchat" }));
  assert(isWebchat({ id: "webchat-ui", mode: "ui" }));
  assert(!isWebchat({ id: "webchat", mode: "ui" }));
});
