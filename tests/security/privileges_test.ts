// Who may do what, in any order (X8): random devices, operators and invitations act on one gateway,
// and a model of its own says after each step what must never have happened.

import { assert, assertEquals } from "@std/assert";
// @ts-types="npm:@types/ws@8.18.1"
import { WebSocket } from "ws";
import { type ConnectOptions, connectParams, type Json, within } from "../support/client.ts";
import { type Identity, newDevice } from "../support/device.ts";
import { REMOTE, startTestGateway, TOKEN } from "../support/gateway.ts";

const SEQUENCES = 200;
const STEPS = 50;
const SCOPES = [
  "operator.admin",
  "operator.read",
  "operator.write",
  "operator.approvals",
  "operator.pairing",
  "operator.talk",
];
type Role = "operator" | "node";

Deno.test("no sequence of calls gives anybody more than was approved, or somebody else's secret", async () => {
  // Guessing is part of it, and must not end in a lockout.
  const auth = { token: TOKEN, rateLimit: { maxAttempts: 1_000_000 } };
  await using gateway = await startTestGateway({ config: { gateway: { auth } } });
  const happened: Record<string, number> = {};

  for (let seed = 1; seed <= SEQUENCES; seed++) {
    const world = await World.make(gateway.url, seed, happened);
    try {
      for (let step = 0; step < STEPS; step++) await world.step();
      await world.end();
    } catch (error) {
      const { message } = error as Error;
      throw new Error(`seed ${seed}: ${message}\n${world.trace.join("\n")}`, { cause: error });
    } finally {
      await world.close();
    }
  }

  const rare = USUAL.filter((name) => (happened[name] ?? 0) < 5);
  assertEquals(rare, [], `hardly tried: ${JSON.stringify(happened)}`);
});

/** What must have happened again and again, or the test would show nothing. */
const USUAL = [
  "connect shared ok",
  "connect shared refused",
  "connect own token ok",
  "connect own token refused",
  "connect foreign token refused",
  "connect invite ok",
  "connect invite refused",
  "connect foreign id refused",
  "approve ok",
  "approve refused",
  "approve dead refused",
  "reject ok",
  "remove ok",
  "remove refused",
  "rotate told",
  "rotate untold",
  "rotate refused",
  "revoke ok",
  "revoke refused",
  "invite ok",
  "invite refused",
  "invite revoke ok",
  "rename ok",
];

interface Device {
  name: string;
  identity: Identity;
  /** What its owner or somebody who holds them has granted; empty again when it is removed. */
  approved: Set<string>;
  roles: Set<Role>;
}

interface Token {
  text: string;
  device: Device;
  role: Role;
  scopes: string[];
  isVoid: boolean;
}

interface Request {
  requestId: string;
  device: Device;
  role: Role;
  scopes: string[];
  isDead: boolean;
}

interface Invite {
  inviteId: string;
  secret: string;
  maker: Party;
  role: Role;
  scopes: string[];
  isOpen: boolean;
}

/** Everything one device, or one operator without a device, was ever sent. */
interface Party {
  device?: Device;
  texts: string[];
}

interface Session {
  line: Line;
  party: Party;
  role: Role;
  scopes: string[];
}

/** Some hundred calls of some devices on the gateway, and what they may have led to. */
class World {
  readonly trace: string[] = [];
  readonly #url: string;
  readonly #random: () => number;
  readonly #happened: Record<string, number>;
  readonly #devices: Device[];
  readonly #parties: Party[] = [];
  readonly #tokens: Token[] = [];
  readonly #requests: Request[] = [];
  readonly #invites: Invite[] = [];
  #sessions: Session[] = [];

  private constructor(
    url: string,
    random: () => number,
    happened: Record<string, number>,
    devices: Device[],
  ) {
    this.#url = url;
    this.#random = random;
    this.#happened = happened;
    this.#devices = devices;
    for (const device of devices) this.#parties.push({ device, texts: [] });
  }

  static async make(url: string, seed: number, happened: Record<string, number>): Promise<World> {
    const devices: Device[] = [];
    for (const name of ["A", "B", "C"]) {
      devices.push({ name, identity: await newDevice(), approved: new Set(), roles: new Set() });
    }
    return new World(url, randomOf(seed), happened, devices);
  }

  async step() {
    const steps: [number, () => Promise<void>][] = [
      [3, () => this.#connectOperator()],
      [10, () => this.#connectDevice()],
      [5, () => this.#approve()],
      [1, () => this.#reject()],
      [2, () => this.#remove()],
      [4, () => this.#rotate()],
      [2, () => this.#revoke()],
      [3, () => this.#invite()],
      [1, () => this.#revokeInvite()],
      [1, () => this.#rename()],
    ];
    let at = this.#random() * steps.reduce((sum, [weight]) => sum + weight, 0);
    for (const [weight, run] of steps) if ((at -= weight) < 0) return await run();
  }

  /** Looks through everything everybody was ever sent. */
  async end() {
    for (const { line } of this.#sessions) await line.flush();
    for (const { device, texts } of this.#parties) {
      const all = texts.join("\n");
      assert(!all.includes(TOKEN), `${device?.name ?? "an operator"} was sent the shared secret`);
      for (const [found] of all.matchAll(/(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])/g)) {
        const token = this.#tokens.find(({ text }) => text === found);
        if (!device) assert(token, "an operator was sent a token that no call told");
        else assertEquals(token?.device.name, device.name, `${device.name} was sent a token of`);
      }
      for (const { secret, maker } of this.#invites) {
        if (maker.texts !== texts) {
          assert(!all.includes(secret), "somebody was sent an invitation of somebody else");
        }
      }
    }
  }

  async close() {
    // Open invitations are limited; the next sequence begins without these.
    const owner = await Line.open(this.#url, {}, []);
    await owner.connect({ auth: { token: TOKEN }, scopes: ["operator.admin"] });
    for (const { inviteId, isOpen } of this.#invites) {
      if (isOpen) await owner.call("device.invite.revoke", { inviteId });
    }
    await Promise.all([owner, ...this.#sessions.map(({ line }) => line)].map((one) => one.close()));
  }

  /** The shared secret without a device: it gets whatever it asks for. */
  async #connectOperator() {
    const scopes = this.#someScopes();
    const party: Party = { texts: [] };
    this.#parties.push(party);
    const line = await Line.open(this.#url, this.#chance(0.5) ? REMOTE : {}, party.texts);
    const answer = await line.connect({ auth: { token: TOKEN }, scopes });
    this.#note(`operator with ${scopes}`, answer.ok);
    assert(answer.ok, answer.error?.message);
    assertEquals(answer.payload.auth.scopes, scopes);
    this.#sessions.push({ line, party, role: "operator", scopes });
  }

  async #connectDevice() {
    const device = this.#pick(this.#devices);
    const role: Role = this.#chance(0.75) ? "operator" : "node";
    const asked = role === "node" && this.#chance(0.7) ? [] : this.#someScopes();
    const protocol = this.#chance(0.25) ? 3 : 4;
    const isLocal = this.#chance(0.25);
    const own = this.#tokens.filter((token) => token.device === device);
    const stale = own.filter(({ isVoid }) => isVoid);
    const foreign = this.#tokens.filter((token) => token.device !== device);
    const isStale = stale.length > 0 && this.#chance(0.4);
    const invite = this.#pick(this.#invites);
    const ways = [
      "shared",
      "shared",
      ...own.length > 0 ? ["own token", "own token"] : [],
      ...foreign.length > 0 ? ["foreign token"] : [],
      ...invite ? ["invite"] : [],
    ];
    const way = this.#chance(0.05) ? "foreign id" : this.#pick(ways);
    const token = this.#pick(way === "foreign token" ? foreign : isStale ? stale : own);
    const isLikely = this.#chance(0.7);
    const suits = way === "own token" ? token : way === "invite" ? invite : undefined;
    const fit = isLikely && suits
      ? { role: suits.role, asked: suits.scopes }
      // What stands in the way of a foreign token must be the token alone.
      : isLikely && way === "foreign token" && device.roles.has(token!.role)
      ? { role: token!.role, asked: [] }
      : { role, asked };
    const auth = way === "shared" || way === "foreign id"
      ? { token: TOKEN }
      : way === "invite"
      ? { bootstrapToken: invite!.secret }
      : this.#chance(0.5)
      ? { token: token!.text }
      : { deviceToken: token!.text };
    const other = this.#devices.find((one) => one !== device)!;
    const party = this.#partyOf(device);
    const line = await Line.open(this.#url, isLocal ? {} : REMOTE, party.texts);
    const answer = await line.connect({
      auth,
      protocol,
      role: fit.role,
      scopes: fit.asked,
      device: device.identity,
      ...(way === "foreign id" && { proof: { id: other.identity.deviceId } }),
    });
    // What it asks for in effect: protocol 3 has a default.
    const scopes = protocol === 3 && fit.role === "operator" && fit.asked.length === 0
      ? ["operator.admin"]
      : fit.asked;
    const what = `connect ${way}`;
    this.#note(what, answer.ok, `${device.name} as ${fit.role} v${protocol} with ${scopes}`);
    if (!answer.ok) {
      this.#noteRequest(answer.error.details?.requestId, device, fit.role, scopes);
      return await line.close();
    }
    if (way === "invite") {
      assert(invite!.isOpen, "an invitation served twice, or after it was revoked");
      assertEquals(fit.role, invite!.role);
      assert(covers(invite!.scopes, scopes), "an invitation gave more than it holds");
      invite!.isOpen = false;
      this.#grant(device, fit.role, scopes);
    } else if (way === "shared" && isLocal) {
      // Whoever needs no approval gets none, and what it asked for elsewhere goes on waiting.
      const isNew = !device.roles.has(fit.role) || !covers(device.approved, scopes);
      if (isNew) this.#grant(device, fit.role, scopes);
    } else if (way !== "shared") {
      assertEquals(way, "own token", "let in with what is not its own");
      assert(!token!.isVoid, "a void token still opens");
      assertEquals(fit.role, token!.role);
      assert(covers(token!.scopes, scopes), "a token opened more than it holds");
    }
    assert(device.roles.has(fit.role), `${device.name} is in as ${fit.role}, approved by nobody`);
    assert(covers(device.approved, scopes), `${device.name} has ${scopes}, approved by nobody`);
    const told = answer.payload.auth;
    if (protocol === 4) assertEquals(told.scopes, scopes);
    if (way.endsWith("token")) assertEquals(told.deviceToken, token!.text);
    else this.#addToken({ text: told.deviceToken, device, role: fit.role, scopes });
    if (fit.role === "node") await this.#leave(device);
    this.#sessions.push({ line, party, role: fit.role, scopes });
  }

  /** A node has one connection: the new one takes the place of the old. */
  async #leave(device: Device) {
    const isOld = ({ party, role }: Session) => party.device === device && role === "node";
    for (const { line } of this.#sessions.filter(isOld)) await line.close();
    this.#sessions = this.#sessions.filter((session) => !isOld(session));
  }

  async #approve() {
    const caller = this.#pick(this.#sessions);
    const request = this.#pick(this.#requests);
    if (!caller || !request) return;
    const answer = await caller.line.call("device.pair.approve", { requestId: request.requestId });
    const { device, role, scopes } = request;
    const what = request.isDead ? "approve dead" : "approve";
    this.#note(what, answer.ok, `${told(caller)} for ${device.name} as ${role} with ${scopes}`);
    if (!answer.ok) return;
    assert(!request.isDead, "a request that was withdrawn was approved");
    this.#mayActOn(caller, scopes, role);
    this.#grant(device, role, scopes);
    assertEquals(answer.payload.device.scopes, [...device.approved].sort());
    assertEquals(answer.payload.device.roles, [...device.roles].sort());
    this.#endRequests(device);
  }

  async #reject() {
    const caller = this.#pick(this.#sessions);
    const request = this.#pick(this.#requests.filter(({ isDead }) => !isDead));
    if (!caller || !request) return;
    const answer = await caller.line.call("device.pair.reject", { requestId: request.requestId });
    this.#note("reject", answer.ok, told(caller));
    if (!answer.ok) return;
    this.#mayActOn(caller, [], "operator");
    request.isDead = true;
  }

  async #remove() {
    const caller = this.#pick(this.#sessions);
    const device = this.#pick(this.#devices.filter(({ roles }) => roles.size > 0));
    if (!caller || !device) return;
    const held = [...device.approved];
    const { deviceId } = device.identity;
    const answer = await caller.line.call("device.pair.remove", { deviceId });
    this.#note("remove", answer.ok, `${told(caller)} of ${device.name}`);
    if (!answer.ok) return;
    this.#mayActOn(caller, held, "operator");
    device.approved.clear();
    device.roles.clear();
    this.#endRequests(device);
    await this.#shut(device);
  }

  async #rotate() {
    const caller = this.#pick(this.#sessions);
    const device = this.#pick(this.#devices.filter(({ roles }) => roles.size > 0));
    if (!caller || !device) return;
    const role = this.#pick([...device.roles])!;
    const scopes = this.#chance(0.5) ? this.#someScopes() : undefined;
    const { deviceId } = device.identity;
    const answer = await caller.line.call("device.token.rotate", { deviceId, role, scopes });
    const who = `${told(caller)} for ${device.name} as ${role} with ${scopes}`;
    if (!answer.ok) return this.#count("rotate refused", who);
    const { token, scopes: granted } = answer.payload;
    this.#count(token === undefined ? "rotate untold" : "rotate told", who);
    this.#mayActOn(caller, granted, "operator");
    for (const scope of scopes ?? []) device.approved.add(scope);
    assert(covers(device.approved, granted), `${device.name} got a token for ${granted}`);
    const isOwn = caller.party.device === device;
    const isOwner = !caller.party.device && caller.scopes.includes("operator.admin");
    assertEquals(token !== undefined, isOwn || isOwner, `who learnt it: ${who}`);
    if (token) this.#addToken({ text: token, device, role, scopes: granted });
  }

  async #revoke() {
    const caller = this.#pick(this.#sessions);
    const device = this.#pick(this.#devices.filter(({ roles }) => roles.size > 0));
    if (!caller || !device) return;
    const role = this.#pick([...device.roles])!;
    const { deviceId } = device.identity;
    const answer = await caller.line.call("device.token.revoke", { deviceId, role });
    this.#note("revoke", answer.ok, `${told(caller)} of ${device.name} as ${role}`);
    if (!answer.ok) return;
    this.#mayActOn(caller, [], "operator");
    await this.#shut(device, role);
  }

  async #invite() {
    const caller = this.#pick(this.#sessions);
    if (!caller) return;
    const role: Role = this.#chance(0.7) ? "operator" : "node";
    const scopes = this.#chance(0.7) ? this.#someScopes() : undefined;
    const answer = await caller.line.call("device.invite.create", { role, scopes });
    this.#note("invite", answer.ok, `${told(caller)} as ${role} with ${scopes}`);
    if (!answer.ok) return;
    const { inviteId, secret, scopes: granted } = answer.payload;
    this.#mayActOn(caller, granted, role);
    if (scopes) assertEquals(granted, scopes);
    const maker = caller.party;
    this.#invites.push({ inviteId, secret, maker, role, scopes: granted, isOpen: true });
  }

  async #revokeInvite() {
    const caller = this.#pick(this.#sessions);
    const invite = this.#pick(this.#invites);
    if (!caller || !invite) return;
    const { inviteId } = invite;
    const answer = await caller.line.call("device.invite.revoke", { inviteId });
    this.#note("invite revoke", answer.ok, told(caller));
    if (!answer.ok) return;
    this.#mayActOn(caller, [], "operator");
    assert(invite.isOpen, "an invitation was revoked after it was used");
    invite.isOpen = false;
  }

  async #rename() {
    const caller = this.#pick(this.#sessions);
    const device = this.#pick(this.#devices.filter(({ roles }) => roles.size > 0));
    if (!caller || !device) return;
    const nodeId = device.identity.deviceId;
    const answer = await caller.line.call("node.rename", { nodeId, displayName: "another" });
    this.#note("rename", answer.ok, told(caller));
    if (answer.ok) this.#mayActOn(caller, [], "operator");
  }

  /** Nobody gives or takes what they do not hold themselves, nor without the scope for it. */
  #mayActOn(caller: Session, scopes: Iterable<string>, role: Role) {
    assertEquals(caller.role, "operator", `${told(caller)} did it`);
    assert(covers(caller.scopes, ["operator.pairing"]), `${told(caller)} did it without pairing`);
    assert(covers(caller.scopes, scopes), `${told(caller)} gave ${[...scopes]}`);
    if (role === "node") assert(caller.scopes.includes("operator.admin"), "a node needs admin");
  }

  #grant(device: Device, role: Role, scopes: Iterable<string>) {
    device.roles.add(role);
    for (const scope of scopes) device.approved.add(scope);
    this.#endRequests(device);
  }

  #addToken(token: Omit<Token, "isVoid">) {
    assert(/^[0-9a-f]{32}$/.test(token.text), "no token came");
    assert(covers(token.device.approved, token.scopes), "a token exceeds what was approved");
    this.#tokens.push({ ...token, isVoid: false });
  }

  /** A request id stands for one wish, for ever (X9). */
  #noteRequest(requestId: string | undefined, device: Device, role: Role, scopes: string[]) {
    if (!requestId) return;
    const known = this.#requests.find((one) => one.requestId === requestId);
    if (known) {
      assertEquals([known.device.name, known.role, known.scopes], [device.name, role, scopes]);
      assert(!known.isDead, "a request that was withdrawn came back");
      return;
    }
    this.#endRequests(device);
    this.#requests.push({ requestId, device, role, scopes, isDead: false });
  }

  #endRequests(device: Device) {
    for (const request of this.#requests) if (request.device === device) request.isDead = true;
  }

  /** Its tokens are void, and its connections are closed. */
  async #shut(device: Device, role?: Role) {
    const isMeant = (one: { role: Role }) => role === undefined || one.role === role;
    for (const token of this.#tokens) {
      if (token.device === device && isMeant(token)) token.isVoid = true;
    }
    const [closed, open] = [[] as Session[], [] as Session[]];
    for (const session of this.#sessions) {
      (session.party.device === device && isMeant(session) ? closed : open).push(session);
    }
    for (const { line } of closed) assertEquals(await line.closed(), 4001);
    this.#sessions = open;
  }

  #partyOf(device: Device): Party {
    return this.#parties.find((party) => party.device === device)!;
  }

  #note(what: string, isOk: boolean, who = "") {
    this.#count(`${what} ${isOk ? "ok" : "refused"}`, who);
  }

  #count(what: string, who: string) {
    this.#happened[what] = (this.#happened[what] ?? 0) + 1;
    this.trace.push(`${what}: ${who}`);
  }

  #someScopes(): string[] {
    if (this.#chance(0.25)) return ["operator.admin"];
    const few = SCOPES.slice(1).filter(() => this.#chance(0.35));
    return this.#chance(0.6) && !few.includes("operator.pairing")
      ? [...few, "operator.pairing"]
      : few;
  }

  #chance(probability: number): boolean {
    return this.#random() < probability;
  }

  #pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.#random() * list.length)];
  }
}

/** A connection that keeps every text it was sent. */
class Line {
  readonly #socket: WebSocket;
  readonly #closed: Promise<number>;
  readonly #answers = new Map<string, (answer: Json) => void>();
  readonly #challenge = Promise.withResolvers<Json>();
  #isClosed = false;
  #next = 1;

  private constructor(url: string, headers: Record<string, string>, texts: string[]) {
    this.#socket = new WebSocket(url, { headers, perMessageDeflate: false });
    this.#socket.on("message", (data: unknown) => {
      const text = String(data);
      texts.push(text);
      const frame = JSON.parse(text);
      if (frame.event === "connect.challenge") this.#challenge.resolve(frame.payload);
      this.#answers.get(frame.id)?.(frame);
    });
    this.#socket.on("error", () => {}); // `close` follows
    this.#closed = new Promise((resolve) =>
      this.#socket.on("close", (code: number, reason: unknown) => {
        this.#isClosed = true;
        texts.push(String(reason));
        resolve(code);
      })
    );
  }

  static async open(
    url: string,
    headers: Record<string, string>,
    texts: string[],
  ): Promise<Line> {
    const line = new Line(url, headers, texts);
    await within(line.#challenge.promise, "the challenge");
    return line;
  }

  async connect(options: ConnectOptions): Promise<Json> {
    const params = await connectParams(options, await this.#challenge.promise);
    return await this.call("connect", params);
  }

  call(method: string, params: unknown): Promise<Json> {
    const id = String(this.#next++);
    const answer = new Promise<Json>((resolve) => this.#answers.set(id, resolve));
    this.#socket.send(JSON.stringify({ type: "req", id, method, params }));
    return within(answer, `the answer to ${method}`);
  }

  /** Everything sent so far has come when the pong has. */
  async flush() {
    if (this.#isClosed) return;
    const pong = new Promise<void>((resolve) => this.#socket.once("pong", () => resolve()));
    this.#socket.ping();
    await within(Promise.race([pong, this.#closed]), "the pong");
  }

  /** The code it is closed with. */
  closed(): Promise<number> {
    return within(this.#closed, "the close frame");
  }

  async close() {
    this.#socket.terminate();
    await this.closed();
  }
}

function covers(held: Iterable<string>, wanted: Iterable<string>): boolean {
  const has = new Set(held);
  if (has.has("operator.write")) has.add("operator.read");
  return has.has("operator.admin")
    ? [...wanted].every((scope) => SCOPES.includes(scope))
    : [...wanted].every((scope) => has.has(scope));
}

function told({ party, role, scopes }: Session): string {
  return `${party.device?.name ?? "an operator"} (${role}, ${scopes})`;
}

/** Numbers from 0 to 1, the same ones for the same seed (xorshift32). */
function randomOf(seed: number): () => number {
  let state = seed * 2_654_435_761 >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}
