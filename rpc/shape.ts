// Shapes: superstruct structs that also know their JSON schema, so that one declaration checks a
// value, words the refusal as JSON-schema validators do, and documents itself. Everything that is
// read from outside (frames, params, the configuration file) is declared with these.

// @ts-types="npm:superstruct@2.0.2"
import { type Infer, Struct } from "superstruct";

export type { Infer };
// A struct's second parameter is its inner schema, which only superstruct itself looks at.
// deno-lint-ignore no-explicit-any
export type Shape<T> = Struct<T, any>;
// deno-lint-ignore no-explicit-any
type AnyShape = Struct<any, any>;
/** A JSON schema (draft 2020-12) as a plain object. */
export type JsonSchema = { [key: string]: unknown };

/** One thing wrong with a value. */
export interface Problem {
  /** The keys and indexes that lead to the value; for a missing or unknown key, to its parent. */
  path: (string | number)[];
  /** In the words of JSON-schema validators: "must be integer", "must be >= 1". */
  message: string;
  /** The key that should not be there. */
  unexpected?: string;
  /** The key that should be there. */
  missing?: string;
  /** What the schema says of the value at fault. */
  schema?: JsonSchema;
}

type Fields = Record<string, AnyShape>;
type OptionalKeys<F extends Fields> = {
  [K in keyof F]: undefined extends Infer<F[K]> ? K : never;
}[keyof F];
type Merged<T> = { [K in keyof T]: T[K] };
export type ObjectOf<F extends Fields> = Merged<
  & { [K in Exclude<keyof F, OptionalKeys<F>>]: Infer<F[K]> }
  & { [K in OptionalKeys<F>]?: Infer<F[K]> }
>;

const schemas = new WeakMap<object, JsonSchema>();
const optionals = new WeakSet<object>();

/** The JSON schema of a shape. */
export function schemaOf(shape: AnyShape): JsonSchema {
  return schemas.get(shape) ?? {};
}

/** The same shape with a title, description, default or other annotation in its schema. */
export function annotated<T>(shape: Shape<T>, notes: JsonSchema): Shape<T> {
  const copy = quick(new Struct({ ...shape }) as Shape<T>, shape.is);
  schemas.set(copy, { ...schemaOf(shape), ...notes });
  if (optionals.has(shape)) optionals.add(copy);
  return copy;
}

/** @param min the least number of UTF-16 code units */
export function text(
  { min = 0, max, pattern, what }: { min?: number; max?: number; pattern?: RegExp; what?: string } =
    {},
): Shape<string> {
  const schema: JsonSchema = { type: "string" };
  if (min > 0) schema.minLength = min;
  if (max !== undefined) schema.maxLength = max;
  if (pattern) schema.pattern = pattern.source;
  return shape<string>("string", schema, (value) => {
    if (typeof value !== "string") return "must be string";
    if (value.length < min) return `must NOT have fewer than ${min} characters`;
    if (max !== undefined && value.length > max) {
      return `must NOT have more than ${max} characters`;
    }
    if (pattern && !pattern.test(value)) return `must be ${what ?? `like ${pattern.source}`}`;
    return true;
  });
}

/** Text of at least one character: the protocol's `NES`. */
export function nonEmpty(): Shape<string> {
  return text({ min: 1 });
}

export function integer({ min, max }: { min?: number; max?: number } = {}): Shape<number> {
  return numeric("integer", Number.isSafeInteger, min, max);
}

export function number({ min, max }: { min?: number; max?: number } = {}): Shape<number> {
  return numeric("number", Number.isFinite, min, max);
}

export function boolean(): Shape<boolean> {
  return shape<boolean>(
    "boolean",
    { type: "boolean" },
    (value) => typeof value === "boolean" || "must be boolean",
  );
}

export function oneOf<const T extends string | number | boolean>(values: readonly T[]): Shape<T> {
  return shape<T>(
    "enums",
    { enum: [...values] },
    (value) => values.includes(value as T) || "must be equal to one of the allowed values",
  );
}

export function anything(): Shape<unknown> {
  const any = shape<unknown>("unknown", {}, () => true);
  optionals.add(any);
  return any;
}

export function list<T>(
  item: Shape<T>,
  { min = 0, max }: { min?: number; max?: number } = {},
): Shape<T[]> {
  const schema: JsonSchema = { type: "array", items: schemaOf(item) };
  if (min > 0) schema.minItems = min;
  if (max !== undefined) schema.maxItems = max;
  const struct = new Struct({
    type: "array",
    schema: item,
    *entries(value: unknown) {
      if (Array.isArray(value)) {
        for (const [index, one] of value.entries()) yield [index, one, item];
      }
    },
    validator(value: unknown) {
      if (!Array.isArray(value)) return { message: "must be array" };
      if (value.length < min) return { message: `must NOT have fewer than ${min} items` };
      if (max !== undefined && value.length > max) {
        return { message: `must NOT have more than ${max} items` };
      }
      return true;
    },
  }) as unknown as Shape<T[]>;
  quick(
    struct,
    (value) =>
      Array.isArray(value) && value.length >= min && (max === undefined || value.length <= max) &&
      value.every((one) => item.is(one)),
  );
  schemas.set(struct, schema);
  return struct;
}

/** An object whose keys are free and whose values are alike. */
export function mapOf<T>(value: Shape<T>): Shape<Record<string, T>> {
  const struct = objectStruct(undefined, value);
  schemas.set(struct, { type: "object", additionalProperties: schemaOf(value) });
  return struct as unknown as Shape<Record<string, T>>;
}

/** A closed object: a key that is not declared is reported. */
export function object<F extends Fields>(fields: F): Shape<ObjectOf<F>> {
  const struct = objectStruct(fields, never);
  schemas.set(struct, { ...objectSchema(fields), additionalProperties: false });
  return struct as unknown as Shape<ObjectOf<F>>;
}

/** An open object: keys that are not declared are kept. */
export function open<F extends Fields>(fields: F): Shape<ObjectOf<F>> {
  const struct = objectStruct(fields, undefined);
  schemas.set(struct, objectSchema(fields));
  return struct as unknown as Shape<ObjectOf<F>>;
}

export function optional<T>(inner: Shape<T>): Shape<T | undefined> {
  const struct = unless(inner, (value) => value === undefined) as Shape<T | undefined>;
  schemas.set(struct, schemaOf(inner));
  optionals.add(struct);
  return struct;
}

export function nullable<T>(inner: Shape<T>): Shape<T | null> {
  const struct = unless(inner, (value) => value === null) as Shape<T | null>;
  schemas.set(struct, { anyOf: [schemaOf(inner), { type: "null" }] });
  return struct;
}

/** The first shape that fits; the refusal names what `what` says. */
export function either<T>(shapes: Shape<T>[], what: string): Shape<T> {
  return shape<T>(
    "union",
    { anyOf: shapes.map(schemaOf) },
    (value) => shapes.some((one) => one.is(value)) || `must be ${what}`,
  );
}

/** A shape with a rule of its own, worded as the end of "must …". */
export function rule<T>(
  inner: Shape<T>,
  test: (value: T) => true | string,
): Shape<T> {
  const struct = new Struct({
    ...inner,
    *refiner(value: T, context) {
      yield* inner.refiner(value, context);
      const verdict = test(value);
      if (verdict !== true) yield { ...refinement(context, value), message: verdict };
    },
  }) as Shape<T>;
  quick(struct, (value) => inner.is(value) && test(value) === true);
  schemas.set(struct, schemaOf(inner));
  if (optionals.has(inner)) optionals.add(struct);
  return struct;
}

/**
 * Everything that is wrong with a value, each thing once.
 *
 * @param ignoreUnknown leave keys that are not declared out of the list (protocol 4, section 0)
 * @param max stop looking after so many: a stranger's value may be wrong a million times
 */
export function problems(
  value: unknown,
  shape: AnyShape,
  { ignoreUnknown = false, max = Infinity } = {},
): Problem[] {
  if (shape.is(value)) return [];
  const found = new Map<string, Problem>();
  for (const failure of failuresOf(value, shape, [])) {
    if (ignoreUnknown && failure.type === never.type) continue;
    const problem = toProblem(failure, shape);
    found.set(JSON.stringify([problem.path, problem.message]), problem);
    if (found.size >= max) break;
  }
  return [...found.values()];
}

/** The list of problems as one line: `at /client: must have required property 'id'; …`. */
export function explain(list: Problem[]): string {
  return list.map(({ path, message, unexpected }) => {
    if (path.length > 0) return `at ${pointer(path)}: ${message}`;
    return unexpected === undefined ? message : `at root: ${message}`;
  }).join("; ");
}

/** A JSON pointer (RFC 6901). */
export function pointer(path: (string | number)[]): string {
  return path.map((key) => `/${String(key).replaceAll("~", "~0").replaceAll("/", "~1")}`).join("");
}

type Failure = {
  path: unknown[];
  value: unknown;
  type: string;
  message: string;
  refinement?: string;
};

/** One failure after the other, for whoever has seen enough; superstruct makes the whole list. */
function* failuresOf(value: unknown, shape: AnyShape, path: unknown[]): Generator<Failure> {
  const context = { path, branch: [] };
  let isRefinable = true;
  for (const failure of shape.validator(value, context)) {
    isRefinable = false;
    yield failure;
  }
  for (const [key, inner, itsShape] of shape.entries(value, context)) {
    for (const failure of failuresOf(inner, itsShape as AnyShape, [...path, key])) {
      isRefinable &&= failure.refinement !== undefined;
      yield failure;
    }
  }
  if (isRefinable) yield* shape.refiner(value, context);
}

function toProblem(failure: Failure, root: AnyShape): Problem {
  const path = failure.path as (string | number)[];
  const key = path.at(-1);
  const parentPath = path.slice(0, -1);
  if (failure.type === never.type) {
    return {
      path: parentPath,
      message: `unexpected property '${key}'`,
      unexpected: String(key),
      schema: schemaAt(root, parentPath),
    };
  }
  if (failure.value === undefined && typeof key === "string") {
    return {
      path: parentPath,
      message: `must have required property '${key}'`,
      missing: key,
      schema: schemaAt(root, path),
    };
  }
  return { path, message: failure.message, schema: schemaAt(root, path) };
}

function schemaAt(shape: AnyShape, path: (string | number)[]): JsonSchema | undefined {
  let schema: JsonSchema | undefined = schemaOf(shape);
  for (const key of path) {
    const { properties, items, additionalProperties } = schema as {
      properties?: Record<string, JsonSchema>;
      items?: JsonSchema;
      additionalProperties?: JsonSchema | false;
    };
    schema = typeof key === "number"
      ? items
      : properties && Object.hasOwn(properties, key)
      ? properties[key]
      : additionalProperties || undefined;
    if (!schema) return undefined;
  }
  return schema;
}

function shape<T>(
  type: string,
  schema: JsonSchema,
  check: (value: unknown) => boolean | string,
): Shape<T> {
  const struct = new Struct({ type, schema: null, validator: check }) as Shape<T>;
  schemas.set(struct, schema);
  return quick(struct, (value) => check(value) === true);
}

/** Lets `is` only look; superstruct's own makes the list of what is wrong to find it empty. */
function quick<T>(struct: Shape<T>, fits: (value: unknown) => boolean): Shape<T> {
  struct.is = fits as Shape<T>["is"];
  return struct;
}

function numeric(
  type: "integer" | "number",
  fits: (value: unknown) => boolean,
  min?: number,
  max?: number,
): Shape<number> {
  const schema: JsonSchema = { type };
  if (min !== undefined) schema.minimum = min;
  if (max !== undefined) schema.maximum = max;
  return shape<number>(type, schema, (value) => {
    if (!fits(value)) return `must be ${type}`;
    if (min !== undefined && (value as number) < min) return `must be >= ${min}`;
    if (max !== undefined && (value as number) > max) return `must be <= ${max}`;
    return true;
  });
}

const never: Shape<unknown> = quick(
  new Struct({
    type: "never",
    schema: null,
    // With a message of its own, or superstruct would print the value, however long or deep it is.
    validator: () => "must not be there",
  }),
  () => false,
);

/** @param rest what undeclared keys must be; absent = anything */
function objectStruct(fields: Fields | undefined, rest: AnyShape | undefined) {
  const known = fields ? Object.keys(fields) : [];
  const names = new Set(known);
  const struct = new Struct<unknown, null>({
    type: "object",
    schema: null,
    *entries(value: unknown) {
      if (!isObject(value)) return;
      for (const key of known) {
        yield [key, Object.hasOwn(value, key) ? value[key] : undefined, fields![key]];
      }
      if (!rest) return;
      for (const key of Object.keys(value)) if (!names.has(key)) yield [key, value[key], rest];
    },
    validator: (value: unknown) => isObject(value) || "must be object",
  });
  return quick(
    struct,
    (value) =>
      isObject(value) &&
      known.every((key) => fields![key].is(Object.hasOwn(value, key) ? value[key] : undefined)) &&
      (!rest || Object.keys(value).every((key) => names.has(key) || rest.is(value[key]))),
  );
}

function objectSchema(fields: Fields): JsonSchema {
  const properties = Object.fromEntries(
    Object.entries(fields).map(([key, field]) => [key, schemaOf(field)]),
  );
  const required = Object.keys(fields).filter((key) => !optionals.has(fields[key]));
  return { type: "object", properties, ...(required.length > 0 && { required }) };
}

function unless<T>(inner: Shape<T>, exempt: (value: unknown) => boolean): Shape<unknown> {
  const struct = new Struct({
    ...inner,
    validator: (value: unknown, context) => exempt(value) || [...inner.validator(value, context)],
    refiner: (value: unknown, context) => exempt(value) || [...inner.refiner(value as T, context)],
    *entries(value: unknown, context) {
      if (!exempt(value)) yield* inner.entries(value as T, context);
    },
  }) as unknown as Shape<unknown>;
  return quick(struct, (value) => exempt(value) || inner.is(value));
}

function refinement(context: { path: unknown[]; branch: unknown[] }, value: unknown) {
  return {
    value,
    key: context.path.at(-1),
    type: "rule",
    refinement: "rule",
    path: context.path,
    branch: context.branch,
    explanation: undefined,
  };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
