// Who comes in, with which role, scopes and token (§3.5 steps 5–11, §4, §5). Decides from what it is
// given; it sends nothing, and every refusal says what is wrong and what mends it (D13).

import type { Buffer } from "node:buffer";
import { createHash, timingSafeEqual } from "node:crypto";
import { type AuthMode, sharedMode } from "../config/settings.ts";
import { type ConnectParams, type DeviceProof, isControlUi, isWebchat } from "../rpc/connect.ts";
import { type ErrorCode, type RefusalDetails, RpcError } from "../rpc/error.ts";
import { decodeSignature, normalizePublicKey, signedText, signedToken } from "../rpc/identity.ts";
import { ADMIN_SCOPES, commonScopes, type Role } from "../rpc/scope.ts";
import { deviceIdOf, isSignedBy } from "./proof.ts";
import type { DeviceClaim, DeviceStore, PairingReason, PairingRequest } from "./devices.ts";
import type { InviteStore } from "./invites.ts";
import type { LoginLimiter } from "./limiter.ts";
import { type Headers, isLoopbackAddress, lastHop, type Provenance } from "./network.ts";
import {
  judgeProxyUser,
  PROXY_FAILURES,
  type ProxyFailure,
  type ProxyRules,
} from "./proxy_user.ts";

export type AuthMethod = AuthMode | "tailscale" | "device-token";

/** What the admission of one gateway rests on. */
export interface AdmissionRules {
  auth: {
    mode: AuthMode;
    token?: string;
    password?: string;
    /** In mode `trusted-proxy`. */
    proxy?: ProxyRules;
    allowTailscale: boolean;
    silentPairing: boolean;
  };
  /** `gateway.controlUi.allowInsecureAuth`, until it ends. */
  readonly allowInsecureControlUi: boolean;
  devices: DeviceStore;
  invites: InviteStore;
  limiter: LoginLimiter;
  /** The login that `tailscale whois` names for an address; undefined when it names none. */
  whois(address: string): Promise<string | undefined>;
  /** Told of a pairing request before its refusal is sent, and of what became of one. */
  onPairing(news: PairingNews): void;
}

export type PairingNews =
  | { kind: "requested"; request: PairingRequest; user?: string }
  | { kind: "superseded"; requestId: string; deviceId: string }
  | { kind: "approved"; requestId: string; claim: DeviceClaim; inviteId?: string; user?: string };

/** Somebody at the door. */
export interface Knock {
  params: ConnectParams;
  protocol: number;
  /** The nonce of this connection's challenge. */
  nonce: string;
  provenance: Provenance;
  headers: Headers;
  /** Names and values in turn, as they came. */
  rawHeaders: readonly string[];
  nowMs: number;
}

export interface Admission {
  role: Role;
  scopes: readonly string[];
  method: AuthMethod;
  /** Whom a proxy or Tailscale vouches for. */
  user?: string;
  /** Absent for clients without a device. */
  deviceId?: string;
  deviceToken?: { token: string; scopes: string[]; issuedAtMs: number };
}

/** A refused connect: the error response, and the close that follows it. */
export class Refusal extends RpcError {
  override name = "Refusal";
  declare readonly details: RefusalDetails;
  readonly closeCode: number;
  readonly closeReason: string;
  /** Close without a word: too many wrong secrets of this client are still waiting. */
  readonly isSilent: boolean;

  constructor(
    code: ErrorCode,
    message: string,
    details: RefusalDetails,
    { closeCode = 1008, closeReason = message, retryAfterMs, isSilent = false }: {
      closeCode?: number;
      closeReason?: string;
      retryAfterMs?: number;
      isSilent?: boolean;
    } = {},
  ) {
    super(code, message, { details, retryable: details.retryable, retryAfterMs });
    this.closeCode = closeCode;
    this.closeReason = closeReason;
    this.isSilent = isSilent;
  }
}

/** A signature made further from now than this is stale (§4.3). */
export const MAX_CLOCK_SKEW_MS = 600_000;

/**
 * Lets a client in or says why not.
 *
 * @throws {Refusal}
 */
export async function admit(knock: Knock, rules: AdmissionRules): Promise<Admission> {
  const role = readRole(knock.params.role);
  const scopes = scopesOf(role, knock);
  const { device } = knock.params;
  if (!device) checkDeviceless(role, knock, rules);
  const claim = device && provenClaim(device, role, scopes, knock);
  const { method, user, deviceToken, inviteId } = await authenticate(claim, knock, rules);
  if (!claim) return { role, scopes: guestScopes(role, scopes, method, rules), method, user };
  const admission = { role, scopes, method, user, deviceId: claim.deviceId };
  const isExcused = isControlUi(knock.params.client.id) && rules.allowInsecureControlUi &&
    (method === "token" || method === "password");
  const isNew = inviteId !== undefined ||
    (!isExcused && mayPairSilently(claim, user, knock, rules));
  if (isNew) {
    const issued = pairNow(claim, { inviteId, user }, rules);
    return { ...admission, ...(method !== "trusted-proxy" && { deviceToken: issued }) };
  }
  rules.devices.touch(claim);
  // A token would be a second way in, past the proxy.
  if (method === "trusted-proxy") return admission;
  if (deviceToken) return { ...admission, deviceToken };
  // A Control UI excused from pairing has no record that could hold a token.
  const isPaired = !isExcused || rules.devices.pairingReason(claim) === undefined;
  const issued = isPaired ? rules.devices.issueAtConnect(claim.deviceId, role, scopes) : undefined;
  return { ...admission, ...(issued && { deviceToken: issued }) };
}

/** Whether a text is the secret; takes the same time whatever it is. */
export function isSecret(given: string, secret: string): boolean {
  return timingSafeEqual(digest(given), digest(secret));
}

/**
 * Checks a shared secret that came in the field of the mode or, when that is absent, in the other
 * (§5.3).
 */
export function checkSharedSecret(
  given: { token?: string; password?: string },
  { mode, token, password }: AdmissionRules["auth"],
): "ok" | "missing" | "mismatch" | "missing_config" {
  const isPassword = sharedMode(mode, password) === "password";
  const secret = isPassword ? password : token;
  if (!secret) return "missing_config";
  const [first, second] = isPassword
    ? [given.password, given.token]
    : [given.token, given.password];
  const presented = first || second;
  if (!presented) return "missing";
  return isSecret(presented, secret) ? "ok" : "mismatch";
}

function readRole(role = "operator"): Role {
  if (role === "operator" || role === "node") return role;
  throw new Refusal("INVALID_REQUEST", "invalid role", {
    code: "INVALID_ROLE",
    layer: "protocol",
    retryable: false,
    fix: "Connect with role operator or node",
  });
}

function scopesOf(role: Role, { params, protocol }: Knock): readonly string[] {
  const asked = params.scopes ?? [];
  return role === "operator" && protocol === 3 && asked.length === 0 ? ADMIN_SCOPES : asked;
}

/** What somebody may do who brings no device: a user of the proxy no more than its rules say. */
function guestScopes(
  role: Role,
  scopes: readonly string[],
  method: AuthMethod,
  { auth }: AdmissionRules,
): readonly string[] {
  if (method !== "trusted-proxy") return scopes;
  if (role === "node") throw deviceRequired();
  return commonScopes(scopes, auth.proxy?.scopes ?? []);
}

/** §4.6; of a user of the proxy see `guestScopes`. */
function checkDeviceless(role: Role, knock: Knock, rules: AdmissionRules) {
  const { params: { client, auth }, protocol, provenance } = knock;
  const hasToken = Boolean(auth?.token);
  const hasSecret = hasToken || Boolean(auth?.password);
  if (isControlUi(client.id)) {
    if (rules.allowInsecureControlUi && hasSecret) return;
    throw new Refusal(
      "INVALID_REQUEST",
      "control ui requires HTTPS or localhost (secure context)",
      {
        code: "CONTROL_UI_DEVICE_IDENTITY_REQUIRED",
        layer: "device",
        retryable: false,
        fix: "Open the Control UI over https:// or through http://localhost",
      },
    );
  }
  if (hasToken || (role === "operator" && protocol >= 4 && hasSecret)) return;
  const isLocalBackend = client.id === "gateway-client" && client.mode === "backend" &&
    role === "operator" && protocol >= 4 && rules.auth.mode === "none" && provenance.isLocal &&
    !provenance.hasOrigin;
  if (isLocalBackend || isForProxy(provenance, rules.auth)) return;
  throw deviceRequired();
}

function deviceRequired(): Refusal {
  return new Refusal("NOT_PAIRED", "device identity required", {
    code: "DEVICE_IDENTITY_REQUIRED",
    layer: "device",
    retryable: false,
    fix: "Connect with a device identity, or with the secret that `zero gateway token` prints on " +
      "the gateway's host",
  });
}

/** Whether nothing but what the proxy says decides: it sent the request, or there is no secret. */
export function isForProxy({ isFromProxy }: Provenance, auth: AdmissionRules["auth"]): boolean {
  return auth.mode === "trusted-proxy" && (isFromProxy || !(auth.token || auth.password));
}

const PROOF_FAILURES = {
  identity: {
    message: "device identity mismatch",
    code: "DEVICE_AUTH_DEVICE_ID_MISMATCH",
    reason: "device-id-mismatch",
    fix: "Send the SHA-256 of the raw public key as device.id",
  },
  expired: {
    message: "device signature expired",
    code: "DEVICE_AUTH_SIGNATURE_EXPIRED",
    reason: "device-signature-stale",
    fix: "Set the clock of this machine, or sign with the ts of the challenge",
  },
  nonceRequired: {
    message: "device nonce required",
    code: "DEVICE_AUTH_NONCE_REQUIRED",
    reason: "device-nonce-missing",
    fix: "Wait for connect.challenge and sign its nonce",
  },
  nonceMismatch: {
    message: "device nonce mismatch",
    code: "DEVICE_AUTH_NONCE_MISMATCH",
    reason: "device-nonce-mismatch",
    fix: "Sign the nonce of this connection's challenge",
  },
  signature: {
    message: "device signature invalid",
    code: "DEVICE_AUTH_SIGNATURE_INVALID",
    reason: "device-signature",
    fix: "Sign exactly what is sent: client, role, scopes, token and nonce",
  },
  publicKey: {
    message: "device public key invalid",
    code: "DEVICE_AUTH_PUBLIC_KEY_INVALID",
    reason: "device-public-key",
    fix: "Send the raw Ed25519 public key as base64url",
  },
};

/** §4.3 */
function provenClaim(
  device: DeviceProof,
  role: Role,
  scopes: readonly string[],
  { params, protocol, nonce, provenance, nowMs }: Knock,
): DeviceClaim {
  const fail = (failure: keyof typeof PROOF_FAILURES) => {
    const { message, code, reason, fix } = PROOF_FAILURES[failure];
    return new Refusal("INVALID_REQUEST", message, {
      code,
      layer: "device",
      retryable: false,
      fix,
      ...(protocol >= 4 && { reason }),
    });
  };
  const publicKey = normalizePublicKey(device.publicKey);
  if (!publicKey) throw fail("publicKey");
  if (deviceIdOf(publicKey) !== device.id) throw fail("identity");
  if (Math.abs(nowMs - device.signedAt) > MAX_CLOCK_SKEW_MS) throw fail("expired");
  const given = device.nonce?.trim() ?? "";
  if (!given && !(protocol === 3 && provenance.isLocal)) throw fail("nonceRequired");
  if (given && given !== nonce) throw fail("nonceMismatch");
  const signature = decodeSignature(device.signature);
  const { client } = params;
  const fields = {
    deviceId: device.id,
    clientId: client.id,
    clientMode: client.mode,
    role,
    scopes: params.scopes,
    signedAtMs: device.signedAt,
    token: signedToken(params.auth),
    nonce: given,
    platform: client.platform,
    deviceFamily: client.deviceFamily,
  };
  // Whoever also speaks protocol 3 most likely signed version 2; a wrong guess costs one more check.
  const versions = params.minProtocol < 4 ? [2, 3] as const : [3, 2] as const;
  const texts = (given ? versions : [1] as const).map((one) => signedText(one, fields));
  if (!signature || !isSignedBy(publicKey, signature, texts)) throw fail("signature");
  return {
    deviceId: device.id,
    publicKey,
    role,
    scopes,
    displayName: client.displayName,
    platform: client.platform,
    clientId: client.id,
    clientMode: client.mode,
    ...(!provenance.isLocal && provenance.client && { remoteIp: provenance.client }),
  };
}

/** §5.3, with the limiter of D2 around it. */
async function authenticate(
  claim: DeviceClaim | undefined,
  knock: Knock,
  rules: AdmissionRules,
): Promise<Pick<Admission, "method" | "user" | "deviceToken"> & { inviteId?: string }> {
  const { auth: rule, limiter, devices } = rules;
  const { params: { auth = {} }, provenance } = knock;
  const isNeverLocked = provenance.isLocalDirect && !provenance.hasOrigin;
  const lockedForMs = isNeverLocked ? 0 : limiter.lockedForMs(provenance.limiterKey);
  if (lockedForMs > 0) throw rateLimited(lockedForMs, knock);
  const { inviteId } = claim && auth.bootstrapToken
    ? rules.invites.find(auth.bootstrapToken, claim.role, claim.scopes) ?? {}
    : {};
  if (rule.allowTailscale && !provenance.isLocalDirect) {
    const user = await tailscaleUser(knock, rules);
    if (user !== undefined) return { method: "tailscale", user, inviteId };
  }
  if (rule.mode === "none") return { method: "none", inviteId };
  if (isForProxy(provenance, rule)) {
    return { method: "trusted-proxy", user: await proxyUser(knock, rules), inviteId };
  }
  const mode = sharedMode(rule.mode, rule.password);
  const verdict = checkSharedSecret(auth, rule);
  if (verdict === "ok") {
    // A token that came along is echoed, not replaced (D10).
    const token = claim && auth.deviceToken ? devices.verify(claim, auth.deviceToken) : undefined;
    const deviceToken = token?.ok ? { token: auth.deviceToken!, ...token } : undefined;
    return { method: mode, inviteId, ...(deviceToken && { deviceToken }) };
  }
  const candidate = auth.deviceToken || auth.token;
  if (claim && candidate) {
    const token = devices.verify(claim, candidate);
    if (token.ok) {
      return { method: "device-token", deviceToken: { token: candidate, ...token } };
    }
  }
  if (inviteId) return { method: "device-token", inviteId };
  const isWrong = verdict === "mismatch" || Boolean(auth.deviceToken || auth.bootstrapToken);
  if (isWrong && isNeverLocked) {
    const isAnswered = await limiter.failLate(provenance.limiterKey);
    if (!isAnswered) throw unauthorized("mismatch", knock, mode, { isSilent: true });
  } else if (isWrong) {
    limiter.fail(provenance.limiterKey);
  }
  if (auth.bootstrapToken && verdict === "missing") throw inviteUnknown();
  throw unauthorized(isWrong ? "mismatch" : verdict, knock, mode);
}

/**
 * The user a trusted proxy vouches for.
 *
 * @throws {Refusal}
 */
async function proxyUser({ provenance, rawHeaders, protocol }: Knock, rules: AdmissionRules) {
  const verdict = await checkProxyUser({ provenance, rawHeaders }, rules);
  if (verdict.ok) return verdict.user;
  const { code, message, reason, fix } = PROXY_FAILURES[verdict.failure];
  throw new Refusal("INVALID_REQUEST", message, {
    code,
    layer: "proxy",
    retryable: false,
    fix,
    ...(verdict.user !== undefined && { user: verdict.user }),
    ...(protocol >= 4 && {
      authReason: reason,
      canRetryWithDeviceToken: false,
      recommendedNextStep: "review_auth_configuration",
    }),
  }, { isSilent: !verdict.isAnswered });
}

/**
 * What the proxy in front says of its user, over WebSocket and HTTP alike. Wrong values of a header
 * that proves the proxy are answered late, like a wrong secret of this machine: the address such a
 * request names is what its sender likes, and must not be locked out for it.
 *
 * @returns with `isAnswered: false` when too many wrong ones wait already, and this one gets no word
 */
export async function checkProxyUser(
  { provenance, rawHeaders }: Pick<Knock, "provenance" | "rawHeaders">,
  { auth: { proxy }, limiter }: Pick<AdmissionRules, "auth" | "limiter">,
): Promise<
  | { ok: true; user: string }
  | { ok: false; failure: ProxyFailure; user?: string; isAnswered: boolean }
> {
  if (!proxy || !provenance.isFromProxy) {
    return { ok: false, failure: "not-proxied", isAnswered: true };
  }
  const verdict = judgeProxyUser(rawHeaders, proxy, isSecret);
  if (verdict.ok) return verdict;
  const isAnswered = verdict.failure !== "header-mismatch" ||
    await limiter.failLate(`proxy ${provenance.peer}`);
  return { ...verdict, isAnswered };
}

/** D3: the headers count only as far as `tailscale whois` confirms them. */
async function tailscaleUser(
  { headers, provenance }: Knock,
  rules: AdmissionRules,
): Promise<string | undefined> {
  const login = headers["tailscale-user-login"];
  const hasAll = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"]
    .every((name) => headers[name] !== undefined);
  const address = lastHop(headers);
  if (typeof login !== "string" || login === "" || !hasAll || !address) return undefined;
  if (!isLoopbackAddress(provenance.peer)) return undefined;
  return await rules.whois(address) === login ? login : undefined;
}

/**
 * Whether a device is to be paired without asking anybody; false where it is paired already.
 *
 * @throws {Refusal} where somebody must be asked
 */
function mayPairSilently(
  claim: DeviceClaim,
  user: string | undefined,
  { params, protocol, provenance }: Knock,
  rules: AdmissionRules,
): boolean {
  const { devices, onPairing } = rules;
  const reason = devices.pairingReason(claim);
  if (!reason) return false;
  const isBrowserOfOurs = isControlUi(params.client.id) || isWebchat(params.client);
  const isSilent = provenance.isLocal && rules.auth.silentPairing &&
    (!provenance.hasOrigin || isBrowserOfOurs);
  if (isSilent) return true;
  const approved = devices.find(claim.deviceId);
  const { request, isNew, superseded } = devices.request(claim);
  if (superseded) {
    onPairing({ kind: "superseded", requestId: superseded, deviceId: claim.deviceId });
  }
  if (isNew) onPairing({ kind: "requested", request, user });
  throw pairingRequired(request, reason, protocol, approved);
}

/** Pairs a device and makes its token, both or neither. An invitation is the approval, once. */
function pairNow(
  claim: DeviceClaim,
  { inviteId, user }: { inviteId?: string; user?: string },
  { devices, invites, onPairing }: AdmissionRules,
) {
  const issued = devices.atomically(() => {
    if (inviteId && !invites.use(inviteId, claim.deviceId)) throw inviteUnknown();
    devices.pair(claim);
    return devices.issue(claim.deviceId, claim.role, claim.scopes);
  });
  onPairing({ kind: "approved", requestId: crypto.randomUUID(), claim, inviteId, user });
  return issued;
}

function inviteUnknown(): Refusal {
  return new Refusal("INVALID_REQUEST", "unauthorized: invitation unknown, used or expired", {
    code: "INVITE_INVALID",
    layer: "auth",
    retryable: false,
    fix: "Make another invitation on the gateway's host: zero devices invite",
  });
}

const REQUIREMENTS: Record<PairingReason, string> = {
  "not-paired": "device is not approved yet",
  "role-upgrade": "device is asking for a higher role than currently approved",
  "scope-upgrade": "device is asking for more scopes than currently approved",
};

function pairingRequired(
  { requestId, deviceId, role, scopes }: PairingRequest,
  reason: PairingReason,
  protocol: number,
  approved: { roles: string[]; scopes: string[] } | undefined,
): Refusal {
  const fix = `On the gateway's host: zero devices approve ${requestId}`;
  const details: RefusalDetails = {
    code: "PAIRING_REQUIRED",
    layer: "pairing",
    retryable: true,
    fix,
    requestId,
  };
  if (protocol === 3) return new Refusal("NOT_PAIRED", "pairing required", details);
  const message = `pairing required: ${REQUIREMENTS[reason]}`;
  return new Refusal("NOT_PAIRED", message, {
    ...details,
    reason,
    remediationHint: fix,
    deviceId,
    requestedRole: role,
    requestedScopes: scopes,
    ...(approved && { approvedRoles: approved.roles, approvedScopes: approved.scopes }),
  }, { closeReason: `${message} (requestId: ${requestId})` });
}

function rateLimited(retryAfterMs: number, { protocol }: Knock): Refusal {
  const message = protocol === 3
    ? "unauthorized"
    : "unauthorized: too many failed authentication attempts (retry later)";
  return new Refusal("INVALID_REQUEST", message, {
    code: "AUTH_RATE_LIMITED",
    layer: "auth",
    retryable: false,
    retryAfterMs,
    fix: `Wait ${Math.ceil(retryAfterMs / 1_000)} s, then connect with the right secret`,
    ...(protocol >= 4 && {
      authReason: "rate_limited",
      canRetryWithDeviceToken: false,
      recommendedNextStep: "wait_then_retry",
    }),
  }, { retryAfterMs });
}

/** §5.4 */
function unauthorized(
  verdict: "missing" | "mismatch" | "missing_config",
  { params: { client, device, auth }, protocol }: Knock,
  mode: "token" | "password",
  { isSilent = false } = {},
): Refusal {
  const hint = client.mode === "cli"
    ? `set gateway.remote.${mode} to match gateway.auth.${mode}`
    : isControlUi(client.id) || isWebchat(client)
    ? mode === "token"
      ? "open a tokenized dashboard URL or paste token in Control UI settings"
      : "enter the password in Control UI settings"
    : `provide gateway auth ${mode}`;
  const message = verdict === "missing_config"
    ? `unauthorized: gateway ${mode} not configured on gateway (set gateway.auth.${mode})`
    : `unauthorized: gateway ${mode} ${verdict} (${hint})`;
  const suffix = { missing: "MISSING", mismatch: "MISMATCH", missing_config: "NOT_CONFIGURED" };
  const canRetryWithDeviceToken = mode === "token" && verdict === "mismatch" &&
    device !== undefined && !auth?.deviceToken;
  const where = mode === "token"
    ? "`zero gateway token` on the gateway's host prints the right one"
    : "the gateway's host has it in gateway.auth.password or ZERO_GATEWAY_PASSWORD";
  return new Refusal("INVALID_REQUEST", message, {
    code: `AUTH_${mode.toUpperCase()}_${suffix[verdict]}`,
    layer: "auth",
    retryable: false,
    fix: verdict === "missing_config"
      ? `On the gateway's host: zero config set gateway.auth.${mode}`
      : `Pass the gateway's ${mode} (--${mode === "token" ? "token-file" : mode}): ${where}`,
    ...(protocol >= 4 && {
      authReason: `${mode}_${verdict}`,
      canRetryWithDeviceToken,
      recommendedNextStep: canRetryWithDeviceToken
        ? "retry_with_device_token"
        : verdict === "missing_config"
        ? "update_auth_configuration"
        : "update_auth_credentials",
    }),
  }, { isSilent });
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
