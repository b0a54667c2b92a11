// Which one is meant: a device, a node or a request, by what people call it.

import { printable } from "../config/terminal.ts";
import { RpcError } from "../rpc/error.ts";

/** What people know one of several things by. */
export interface Labels {
  id: string;
  name?: string;
  address?: string;
  /** How it is shown among others. */
  shown: string;
}

/** What an id must have of its beginning to be found by it. */
const MIN_PREFIX = 6;
const MAX_KNOWN = 20;

/**
 * By exact id, by address, by name (case and punctuation aside), or by the beginning of the id.
 *
 * @param what "node", "device"
 * @throws {RpcError} with the texts of §11.3 when none fits, or several do
 */
export function findNamed<T>(
  things: readonly T[],
  query: string,
  what: string,
  labelsOf: (thing: T) => Labels,
): T {
  const wanted = query.trim();
  const labelled = things.map((thing) => ({ thing, ...labelsOf(thing) }));
  const exact = labelled.find(({ id }) => id === wanted);
  if (exact) return exact.thing;
  const plain = normalized(wanted);
  const matches = wanted === ""
    ? []
    : labelled.filter(({ id, name = "", address }) =>
      address === wanted || (plain !== "" && normalized(name) === plain) ||
      (wanted.length >= MIN_PREFIX && id.startsWith(wanted.toLowerCase()))
    );
  if (matches.length === 1) return matches[0].thing;
  const known = matches.length > 0 ? matches : labelled;
  const names = known.slice(0, MAX_KNOWN).map(({ shown }) => shown);
  if (known.length > MAX_KNOWN) names.push(`and ${known.length - MAX_KNOWN} more`);
  const list = names.join(", ") || "none";
  throw new RpcError(
    "INVALID_REQUEST",
    matches.length > 0
      ? `ambiguous ${what}: ${printable(query)} (matches: ${list})`
      : `unknown ${what}: ${printable(query)} (known: ${list})`,
  );
}

/**
 * By the beginning of an id that only machines make up.
 *
 * @param fix the command that lists them
 * @throws {RpcError} when none begins like that, or several do
 */
export function findByBeginning<T>(
  things: readonly T[],
  query: string,
  idOf: (thing: T) => string,
  { what, idName, fix }: { what: string; idName: string; fix: string },
): T {
  const wanted = query.trim().toLowerCase();
  const matches = wanted === "" ? [] : things.filter((thing) => idOf(thing).startsWith(wanted));
  if (matches.length === 1) return matches[0];
  throw new RpcError(
    "INVALID_REQUEST",
    matches.length > 1
      ? `ambiguous ${what}: ${printable(query)}`
      : `unknown ${idName}: ${printable(query)}`,
    { details: { fix } },
  );
}

/** A request to be let in. @param fix the command that lists them */
export function findRequest<T extends { requestId: string }>(
  pending: readonly T[],
  query: string,
  fix: string,
): T {
  const words = { what: "request", idName: "requestId", fix };
  return findByBeginning(pending, query, ({ requestId }) => requestId, words);
}

/** Names are equal when only case and punctuation differ; a name without a letter is none. */
function normalized(name: string): string {
  return name.toLowerCase().replace(/[^\p{L}\p{M}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
}
