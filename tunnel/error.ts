// What went wrong on the way to a gateway, before a gateway could say anything.

/** Which part of the way failed. */
export type TunnelErrorKind = "address" | "dial" | "tls";

/** Not worth another attempt as things stand: what was asked for, or what was found, must change. */
export class TunnelError extends Error {
  override name = "TunnelError";

  constructor(
    readonly kind: TunnelErrorKind,
    message: string,
    /** One command or one sentence that mends it. */
    readonly fix: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}
