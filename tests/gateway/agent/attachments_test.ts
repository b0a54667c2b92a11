import { assertEquals, assertThrows } from "@std/assert";
import { readImages } from "../../../gateway/agent/attachments.ts";

const PNG = "iVBORw0KGgoAAAAA";

Deno.test("pictures are taken with their kind: stated, of their data URL, or by their first bytes", () => {
  const dropped: unknown[] = [];
  const images = readImages([
    { mimeType: "image/PNG", content: PNG },
    { content: `data:image/webp;base64,${PNG}` },
    { content: PNG },
    { fileName: "a.txt", mimeType: "text/plain", content: "aGk=" },
    { type: "file", content: "aGk=" },
  ], (...what) => dropped.push(what));

  assertEquals(images.map(({ mimeType }) => mimeType), ["image/png", "image/webp", "image/png"]);
  assertEquals(images[1].content, PNG);
  assertEquals(dropped, [["a.txt", "text/plain"], ["file", undefined]]);
});

Deno.test("an attachment that is no base64, or too large, is refused by its name", () => {
  const big = "A".repeat(4 * Math.ceil(5_000_001 / 3));
  const wrong: [Record<string, unknown>, string][] = [
    [{ fileName: "a.png", content: "***" }, "attachment a.png: invalid base64 content"],
    [{ type: "image", content: "abc" }, "attachment image: invalid base64 content"],
    [{ content: "" }, "attachment attachment-1: invalid base64 content"],
    [{ content: { a: 1 } }, "attachment attachment-1: content must be base64 string"],
    [
      { fileName: "b.png", content: big },
      `attachment b.png: exceeds size limit (${big.length / 4 * 3} > 5000000 bytes)`,
    ],
  ];
  for (const [attachment, message] of wrong) {
    assertThrows(() => readImages([attachment as never]), Error, message);
  }
});
