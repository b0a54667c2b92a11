import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  annotated,
  anything,
  boolean,
  either,
  explain,
  integer,
  list,
  mapOf,
  nonEmpty,
  nullable,
  number,
  object,
  oneOf,
  open,
  optional,
  pointer,
  problems,
  rule,
  schemaOf,
  type Shape,
  text,
} from "../../rpc/shape.ts";

// deno-lint-ignore no-explicit-any
type AnyShape = Shape<any>;

function wording(value: unknown, shape: AnyShape, options?: { ignoreUnknown?: boolean }) {
  return explain(problems(value, shape, options));
}

Deno.test("what fits has no problems", () => {
  const rows: [AnyShape, unknown][] = [
    [text(), ""],
    [text({ min: 2, max: 3 }), "ab"],
    [text({ pattern: /^a+$/ }), "aaa"],
    [integer({ min: 0, max: 5 }), 5],
    [integer(), Number.MAX_SAFE_INTEGER],
    [number(), -1.5],
    [boolean(), false],
    [oneOf(["a", 1, true]), 1],
    [list(text()), []],
    [list(integer(), { min: 1, max: 2 }), [1, 2]],
    [mapOf(boolean()), { any: true, "a/b~c": false }],
    [object({ a: optional(text()) }), {}],
    [object({ a: optional(text()) }), { a: undefined }],
    [object({ a: nullable(text()) }), { a: null }],
    [object({ a: anything() }), {}],
    [object({ a: anything() }), { a: null }],
    [open({ a: text() }), { a: "", further: 1 }],
    [either([text(), integer()] as AnyShape[], "text or number"), 7],
    [rule(integer(), (value) => value % 2 === 0 || "must be even"), 4],
    [annotated(optional(text()), { title: "T" }), undefined],
  ];

  for (const [shape, value] of rows) {
    assertEquals(wording(value, shape), "", JSON.stringify(value));
    assert(shape.is(value), JSON.stringify(value));
  }
});

Deno.test("what does not fit is worded as JSON-schema validators do", () => {
  const person = object({
    name: nonEmpty(),
    age: optional(integer({ min: 1, max: 150 })),
    tags: optional(list(text({ max: 3 }), { max: 2 })),
    address: optional(object({ "street/no": text() })),
    flags: optional(mapOf(boolean())),
  });
  const rows: [unknown, AnyShape, string][] = [
    [1, text(), "must be string"],
    ["", nonEmpty(), "must NOT have fewer than 1 characters"],
    ["abcd", text({ max: 3 }), "must NOT have more than 3 characters"],
    ["b", text({ pattern: /^a$/ }), "must be like ^a$"],
    ["b", text({ pattern: /^a$/, what: "an a" }), "must be an a"],
    ["1", integer(), "must be integer"],
    [1.5, integer(), "must be integer"],
    [2 ** 53, integer(), "must be integer"],
    [0, integer({ min: 1 }), "must be >= 1"],
    [9, integer({ max: 8 }), "must be <= 8"],
    [Infinity, number(), "must be number"],
    [NaN, number(), "must be number"],
    ["true", boolean(), "must be boolean"],
    ["c", oneOf(["a", "b"]), "must be equal to one of the allowed values"],
    [{}, list(text()), "must be array"],
    [[], list(text(), { min: 1 }), "must NOT have fewer than 1 items"],
    [["a", "b"], list(text(), { max: 1 }), "must NOT have more than 1 items"],
    [["a", 2], list(text()), "at /1: must be string"],
    [[], object({}), "must be object"],
    [null, object({}), "must be object"],
    ["x", mapOf(text()), "must be object"],
    [{ a: 1 }, mapOf(text()), "at /a: must be string"],
    [{}, person, "must have required property 'name'"],
    [{ name: undefined }, person, "must have required property 'name'"],
    [{ name: "" }, person, "at /name: must NOT have fewer than 1 characters"],
    [{ name: "n", nmae: 1 }, person, "at root: unexpected property 'nmae'"],
    [{ name: "n", age: 0 }, person, "at /age: must be >= 1"],
    [{ name: "n", age: null }, person, "at /age: must be integer"],
    [{ name: "n", tags: ["long"] }, person, "at /tags/0: must NOT have more than 3 characters"],
    [{ name: "n", address: {} }, person, "at /address: must have required property 'street/no'"],
    [{ name: "n", address: { "street/no": 1 } }, person, "at /address/street~1no: must be string"],
    [
      { name: "n", address: { "street/no": "", "a~": 1 } },
      person,
      "at /address: unexpected property 'a~'",
    ],
    [{ name: "n", flags: { on: 1 } }, person, "at /flags/on: must be boolean"],
    [{ a: 1 }, object({ a: nullable(text()) }), "at /a: must be string"],
    [true, either([text(), integer()] as AnyShape[], "text or number"), "must be text or number"],
    [3, rule(integer(), (value) => value % 2 === 0 || "must be even"), "must be even"],
    ["3", rule(integer(), () => "must be even"), "must be integer"],
    [
      { age: 0, tags: {} },
      person,
      "must have required property 'name'; at /age: must be >= 1; at /tags: must be array",
    ],
  ];

  for (const [value, shape, expected] of rows) {
    assertEquals(wording(value, shape), expected, JSON.stringify(value));
    assert(!shape.is(value), JSON.stringify(value));
  }
});

Deno.test("keys of every object's prototype are keys like others", () => {
  const closed = object({ toString: optional(text()) });
  const open1 = open({});

  assertEquals(wording({}, closed), "");
  assertEquals(
    wording(JSON.parse('{"__proto__": 1}'), closed),
    "at root: unexpected property '__proto__'",
  );
  assertEquals(
    wording(JSON.parse('{"constructor": 1}'), closed),
    "at root: unexpected property 'constructor'",
  );
  assertEquals(wording(JSON.parse('{"toString": 1}'), closed), "at /toString: must be string");
  assertEquals(wording(JSON.parse('{"__proto__": {"a": 1}}'), open1), "");
  assertEquals(
    wording({}, object({ hasOwnProperty: text() })),
    "must have required property 'hasOwnProperty'",
  );
});

Deno.test("unknown keys can be left out of the list, at any depth, and nothing else is", () => {
  const shape = object({ a: object({ b: integer() }) });

  assertEquals(wording({ a: { b: 1, c: 2 }, d: 3 }, shape, { ignoreUnknown: true }), "");
  assertEquals(
    wording({ a: { b: "1", c: 2 }, d: 3 }, shape, { ignoreUnknown: true }),
    "at /a/b: must be integer",
  );
});

Deno.test("a problem names the path, what is missing or unexpected, and the schema at fault", () => {
  const shape = object({ list: list(object({ port: integer({ min: 1 }) })) });

  const [wrong] = problems({ list: [{ port: 0 }] }, shape);
  const [missing] = problems({ list: [{}] }, shape);
  const [unexpected] = problems({ list: [], lits: 1 }, shape);

  assertEquals(wrong.path, ["list", 0, "port"]);
  assertEquals(wrong.schema, { type: "integer", minimum: 1 });
  assertEquals([missing.path, missing.missing], [["list", 0], "port"]);
  assertEquals(missing.schema, { type: "integer", minimum: 1 });
  assertEquals([unexpected.path, unexpected.unexpected], [[], "lits"]);
});

Deno.test("equal problems of one place are told once", () => {
  const twice = rule(rule(integer(), () => "must be even"), () => "must be even");

  assertEquals(wording(3, twice), "must be even");
});

Deno.test("a pointer escapes what RFC 6901 says", () => {
  assertEquals(pointer(["a/b", "c~d", 0]), "/a~1b/c~0d/0");
  assertEquals(pointer([]), "");
});

Deno.test("every shape knows its JSON schema", () => {
  const rows: [AnyShape, Record<string, unknown>][] = [
    [text(), { type: "string" }],
    [nonEmpty(), { type: "string", minLength: 1 }],
    [text({ max: 9, pattern: /^x/ }), { type: "string", maxLength: 9, pattern: "^x" }],
    [integer({ min: 0, max: 9 }), { type: "integer", minimum: 0, maximum: 9 }],
    [number(), { type: "number" }],
    [boolean(), { type: "boolean" }],
    [oneOf(["a", "b"]), { enum: ["a", "b"] }],
    [anything(), {}],
    [list(text(), { min: 1, max: 2 }), {
      type: "array",
      items: { type: "string" },
      minItems: 1,
      maxItems: 2,
    }],
    [mapOf(boolean()), { type: "object", additionalProperties: { type: "boolean" } }],
    [object({ a: text(), b: optional(integer()), c: anything() }), {
      type: "object",
      properties: { a: { type: "string" }, b: { type: "integer" }, c: {} },
      required: ["a"],
      additionalProperties: false,
    }],
    [open({ a: optional(text()) }), { type: "object", properties: { a: { type: "string" } } }],
    [nullable(text()), { anyOf: [{ type: "string" }, { type: "null" }] }],
    [either([text(), integer()] as AnyShape[], "x"), {
      anyOf: [{ type: "string" }, { type: "integer" }],
    }],
    [rule(text(), () => true), { type: "string" }],
    [annotated(text(), { title: "T", default: "d" }), {
      type: "string",
      title: "T",
      default: "d",
    }],
  ];

  for (const [shape, expected] of rows) assertEquals(schemaOf(shape), expected);
});

Deno.test("what is optional stays optional under an annotation and a rule", () => {
  const shape = object({
    a: annotated(optional(text()), { title: "A" }),
    b: rule(optional(text()), () => true),
  });

  assertEquals(schemaOf(shape).required, undefined);
  assertEquals(wording({}, shape), "");
});

Deno.test("an annotation leaves the shape it was made from as it was", () => {
  const plain = text();

  annotated(plain, { title: "T" });

  assertEquals(schemaOf(plain), { type: "string" });
});

Deno.test("a shape can also throw, as superstruct's do", () => {
  assertThrows(() => integer().assert("1"));
});

Deno.test("odd values of any kind are judged without throwing", () => {
  const shape = object({
    a: optional(list(nullable(object({ b: mapOf(oneOf([1])) })))),
    c: optional(either([text(), boolean()] as AnyShape[], "x")),
  });
  const atoms = [null, undefined, 0, "", "a", true, [], {}, [[]], [{}], { a: [] }, { a: [null] }];
  const deep = JSON.parse("[".repeat(5_000) + "]".repeat(5_000));

  for (const one of [...atoms, deep]) {
    for (const key of ["a", "b", "c", "length"]) {
      const found = problems({ [key]: one }, shape);
      assertEquals(found.length === 0, shape.is({ [key]: one }), JSON.stringify([key]));
    }
  }
});
