// Why a node did not do what it was asked to, as its result says it (§9.3).

export class CommandError extends Error {
  override name = "CommandError";

  constructor(readonly code: "INVALID_REQUEST" | "UNAVAILABLE", message: string) {
    super(message);
  }
}
