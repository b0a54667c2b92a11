import { assertEquals } from "@std/assert";
import { coversScopes, hasScope, type Scope, unionScopes } from "../../rpc/scope.ts";

const SCOPES: Scope[] = [
  "operator.admin",
  "operator.read",
  "operator.write",
  "operator.approvals",
  "operator.pairing",
];

Deno.test("admin implies every scope, write implies read, and nothing else implies anything", () => {
  const implied: Record<Scope, Scope[]> = {
    "operator.admin": SCOPES,
    "operator.read": ["operator.read"],
    "operator.write": ["operator.read", "operator.write"],
    "operator.approvals": ["operator.approvals"],
    "operator.pairing": ["operator.pairing"],
  };

  for (const held of SCOPES) {
    const open = SCOPES.filter((wanted) => hasScope([held], wanted));
    assertEquals(open.sort(), [...implied[held]].sort(), held);
  }
});

Deno.test("who holds nothing, or only scopes without effect, has none", () => {
  for (const wanted of SCOPES) {
    assertEquals(hasScope([], wanted), false);
    assertEquals(hasScope(["operator.talk", "operator.questions", "operator"], wanted), false);
  }
});

Deno.test("a list covers another when it holds or implies each of it", () => {
  const rows: [string[], string[], boolean][] = [
    [[], [], true],
    [[], ["operator.read"], false],
    [["operator.write"], ["operator.read"], true],
    [["operator.read"], ["operator.write"], false],
    [["operator.read", "operator.pairing"], ["operator.pairing", "operator.read"], true],
    [["operator.admin"], ["operator.pairing", "operator.approvals"], true],
    [["operator.pairing"], ["operator.admin"], false],
    [["operator.talk"], ["operator.talk"], true],
    [["operator.read"], ["operator.talk"], false],
    [["operator.read"], ["operator.read", "operator.admin"], false],
  ];

  for (const [held, wanted, expected] of rows) {
    assertEquals(coversScopes(held, wanted), expected, `${held} ⊇ ${wanted}`);
  }
});

Deno.test("a union is sorted and holds each scope once", () => {
  assertEquals(unionScopes(["b", "a"], [], ["a", "c"]), ["a", "b", "c"]);
  assertEquals(unionScopes(), []);
});
