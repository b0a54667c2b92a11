// What went wrong on the way to a gateway, before a gateway could say anything.

/** Which part of the way failed. */
export type TunnelErrorKind =
  | "address"
  | "dial"
  | "tls"
  /** What stopped an ssh tunnel, see tunnel/ssh.ts. */
  | SshErrorKind;

export type SshErrorKind =
  | "ssh-missing"
  | "target"
  | "auth"
  | "host-key"
  | "host-key-changed"
  | "config"
  | "dns"
  | "refused"
  | "timeout"
  | "forward-failed"
  | "local-port"
  | "gateway-down"
  | "no-answer"
  | "lost"
  | "state";

/** The network and the other side come and go. */
const TRANSIENT: ReadonlySet<TunnelErrorKind> = new Set([
  "dns",
  "refused",
  "timeout",
  "gateway-down",
  "no-answer",
  "lost",
]);

/** What was asked for, or what was found, must change, unless it says `isTransient`. */
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

  /** Whether another attempt may fare better with nothing changed. */
  get isTransient(): boolean {
    return TRANSIENT.has(this.kind);
  }
}
