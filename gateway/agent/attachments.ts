// Pictures that come along with a message (§7.3).

import { RpcError } from "../../rpc/error.ts";
import { anything, type Infer, list, open, optional, text } from "../../rpc/shape.ts";

export const Attachments = list(
  open({
    type: optional(text()),
    mimeType: optional(text()),
    fileName: optional(text()),
    content: anything(),
  }),
  { max: 100 },
);
export type Attachments = Infer<typeof Attachments>;

const MAX_BYTES = 5_000_000;
const BASE64 = /^[A-Za-z0-9+/]*={0,2}$/;

/**
 * The images among them, as base64 without a `data:` prefix; other files are left out.
 *
 * @param dropped told of each that was left out
 * @throws {RpcError} "attachment <label>: …"
 */
export function readImages(
  attachments: Attachments = [],
  dropped: (label: string, mimeType: string | undefined) => void = () => {},
): { mimeType: string; content: string }[] {
  return attachments.flatMap(({ type, mimeType, fileName, content }, index) => {
    const label = fileName || type || `attachment-${index + 1}`;
    const refuse = (why: string) =>
      new RpcError("INVALID_REQUEST", `attachment ${label.slice(0, 200)}: ${why}`);
    if (typeof content !== "string") throw refuse("content must be base64 string");
    const comma = content.startsWith("data:") ? content.indexOf(",") : -1;
    const head = comma < 0 ? "" : content.slice(0, comma);
    const data = content.slice(comma + 1).trim();
    if (data === "" || data.length % 4 !== 0 || !BASE64.test(data)) {
      throw refuse("invalid base64 content");
    }
    const bytes = data.length / 4 * 3 - (data.match(/=+$/)?.[0].length ?? 0);
    if (bytes > MAX_BYTES) throw refuse(`exceeds size limit (${bytes} > ${MAX_BYTES} bytes)`);
    const [, stated] = /^data:([^;,]+)/.exec(head) ?? [];
    const kind = (mimeType ?? stated ?? sniffed(data))?.toLowerCase();
    if (kind?.startsWith("image/")) return [{ mimeType: kind, content: data }];
    dropped(label, kind);
    return [];
  });
}

/** By the first bytes, where nobody says what it is. */
function sniffed(base64: string): string | undefined {
  const marks: [string, string][] = [
    ["iVBORw0KGgo", "image/png"],
    ["/9j/", "image/jpeg"],
    ["R0lGOD", "image/gif"],
    ["UklGR", "image/webp"],
  ];
  return marks.find(([mark]) => base64.startsWith(mark))?.[1];
}
