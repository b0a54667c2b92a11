// Roles and scopes: who may hold what, which scope implies which (§6.1).

export type Role = "operator" | "node";

/** The scopes that open methods. Others may be stored and granted; they open nothing. */
export type Scope =
  | "operator.admin"
  | "operator.read"
  | "operator.write"
  | "operator.approvals"
  | "operator.pairing";

/** What a method asks of its caller: a scope, the role operator alone (`any`), or the role node. */
export type Access = Scope | "any" | "node";

/** What v3 operators without scopes get, and what `POST /rpc` acts with. */
export const ADMIN_SCOPES: readonly string[] = ["operator.admin"];

export function hasScope(held: readonly string[], wanted: Scope): boolean {
  if (held.includes("operator.admin") || held.includes(wanted)) return true;
  return wanted === "operator.read" && held.includes("operator.write");
}

/** Whether everything in `wanted` is held; scopes that open nothing must be held by name. */
export function coversScopes(held: readonly string[], wanted: readonly string[]): boolean {
  return wanted.every((scope) => held.includes(scope) || hasScope(held, scope as Scope));
}

/** What both lists allow. */
export function commonScopes(one: readonly string[], other: readonly string[]): string[] {
  const both = [
    ...one.filter((scope) => hasScope(other, scope as Scope)),
    ...other.filter((scope) => hasScope(one, scope as Scope)),
  ];
  return [...new Set(both)].sort();
}

export function unionScopes(...lists: (readonly string[])[]): string[] {
  return [...new Set(lists.flat())].sort();
}
