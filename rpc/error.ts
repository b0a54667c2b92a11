// What a caller may learn of a failure: the word in the program, and its form on each wire.

/** The words of `error.code` (protocol.md §2.1). */
export type ErrorCode =
  | "INVALID_REQUEST"
  | "NOT_PAIRED"
  | "UNAVAILABLE"
  | "FORBIDDEN"
  | "APPROVAL_NOT_FOUND"
  | "INTERNAL_ERROR"
  | "TIMEOUT";

/** `error` of a response frame (§2.1). */
export interface WireError {
  code: string;
  message: string;
  details?: unknown;
  retryable?: boolean;
  /** Milliseconds. */
  retryAfterMs?: number;
}

/** Which part of the way in refused a connect (D13). */
export type Layer =
  | "network"
  | "proxy"
  | "tls"
  | "auth"
  | "device"
  | "pairing"
  | "scope"
  | "protocol";

/** What D13 asks of every refused connect; `fix` is one command or one sentence. */
export interface RefusalDetails {
  code: string;
  layer: Layer;
  retryable: boolean;
  fix: string;
  [key: string]: unknown;
}

export interface RpcErrorOptions {
  cause?: unknown;
  details?: unknown;
  retryable?: boolean;
  retryAfterMs?: number;
  /** The JSON-RPC number, where it is not the one of the code. */
  number?: number;
  /** What only JSON-RPC carries in `data`, beside the code. */
  data?: Record<string, unknown>;
}

/** A failure whose text the caller may see. */
export class RpcError extends Error {
  override name = "RpcError";
  readonly details?: unknown;
  readonly retryable?: boolean;
  readonly retryAfterMs?: number;
  readonly #number?: number;
  readonly #data?: Record<string, unknown>;

  constructor(readonly code: ErrorCode, message: string, options: RpcErrorOptions = {}) {
    super(message, { cause: options.cause });
    this.details = options.details;
    this.retryable = options.retryable;
    this.retryAfterMs = options.retryAfterMs;
    this.#number = options.number;
    this.#data = options.data;
  }

  /** The JSON-RPC 2.0 error number (D12). */
  get number(): number {
    return this.#number ?? APPLICATION_NUMBERS[this.code];
  }

  /**
   * @param protocol version 3 knows neither `FORBIDDEN` and `APPROVAL_NOT_FOUND` nor retry hints
   */
  toWire(protocol: number): WireError {
    const { message, details, retryable, retryAfterMs } = this;
    if (protocol === 3) {
      const isV4Only = this.code === "FORBIDDEN" || this.code === "APPROVAL_NOT_FOUND";
      const code = isV4Only ? "INVALID_REQUEST" : this.code;
      return isV4Only || details === undefined ? { code, message } : { code, message, details };
    }
    return withoutUndefined({ code: this.code, message, details, retryable, retryAfterMs });
  }

  /** The error object of JSON-RPC 2.0 with the word of the protocol in `data`. */
  toJsonRpc(): { code: number; message: string; data: unknown } {
    const { code, message, details, retryable, retryAfterMs, number } = this;
    const data = withoutUndefined({ code, details, retryable, retryAfterMs, ...this.#data });
    return { code: number, message, data };
  }
}

/** JSON-RPC numbers of the standard (D12). */
export const JSON_RPC = {
  PARSE_ERROR: -32700,
  INVALID_REQUEST: -32600,
  METHOD_NOT_FOUND: -32601,
  INVALID_PARAMS: -32602,
  INTERNAL_ERROR: -32603,
} as const;

const APPLICATION_NUMBERS: Record<ErrorCode, number> = {
  INVALID_REQUEST: -32000,
  NOT_PAIRED: -32001,
  UNAVAILABLE: -32002,
  FORBIDDEN: -32003,
  APPROVAL_NOT_FOUND: -32004,
  TIMEOUT: -32005,
  INTERNAL_ERROR: JSON_RPC.INTERNAL_ERROR,
};

function withoutUndefined<T extends object>(value: T): T {
  return Object.fromEntries(
    Object.entries(value).filter(([, member]) => member !== undefined),
  ) as T;
}
