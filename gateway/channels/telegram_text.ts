// Markdown as Telegram shows it: the few HTML tags its Bot API knows, everything else as the text it
// is, in parts that are short enough to be sent.

import type { Token, Tokens } from "marked";

/** One message: HTML for `parse_mode: "HTML"`, and the same without it. */
export interface TelegramText {
  html: string;
  plain: string;
}

/** Longest text of a message and of a caption, in UTF-16 code units without the tags. */
export const MAX_TEXT = 4_096;
export const MAX_CAPTION = 1_024;

/** @param first most of the first part, which may be a caption */
export async function telegramTexts(
  markdown: string,
  { first = MAX_TEXT }: { first?: number } = {},
): Promise<TelegramText[]> {
  const { lexer } = await import("marked");
  const parts: TelegramText[] = [];
  let current: TelegramText = { html: "", plain: "" };
  const most = () => parts.length === 0 ? first : MAX_TEXT;
  const close = () => {
    if (current.plain.trim() !== "") parts.push(current);
    current = { html: "", plain: "" };
  };
  for (const token of lexer(markdown)) {
    if (token.type === "space") continue;
    const block = blockOf(token);
    if (block.plain.trim() === "") continue;
    const gap = current.plain === "" ? "" : "\n\n";
    if (current.plain.length + gap.length + block.plain.length <= most()) {
      current = { html: current.html + gap + block.html, plain: current.plain + gap + block.plain };
      continue;
    }
    close();
    if (block.plain.length <= most()) {
      current = block;
      continue;
    }
    for (const piece of cut(block.plain, most(), MAX_TEXT)) {
      const isCode = token.type === "code";
      parts.push({ html: isCode ? `<pre>${escape(piece)}</pre>` : escape(piece), plain: piece });
    }
  }
  close();
  return parts;
}

function blockOf(token: Token): TelegramText {
  switch (token.type) {
    case "heading":
      return wrapped("b", inlines((token as Tokens.Heading).tokens));
    case "code": {
      const { text, lang = "" } = token as Tokens.Code;
      const name = /^[\w+#-]{1,30}/.exec(lang)?.[0];
      const inner = name ? `<code class="language-${name}">${escape(text)}</code>` : escape(text);
      return { html: `<pre>${inner}</pre>`, plain: text };
    }
    case "blockquote":
      return wrapped("blockquote", joined((token as Tokens.Blockquote).tokens.map(blockOf), "\n"));
    case "list":
      return listOf(token as Tokens.List, "");
    case "table":
      return tableOf(token as Tokens.Table);
    case "hr":
      return literal("———");
    case "paragraph":
      return inlines((token as Tokens.Paragraph).tokens);
    case "text": {
      const { tokens, text } = token as Tokens.Text;
      return tokens ? inlines(tokens) : literal(unescaped(text));
    }
    default:
      // HTML, definitions and whatever else: as it was written.
      return literal(token.raw.trimEnd());
  }
}

function listOf({ ordered, start, items }: Tokens.List, indent: string): TelegramText {
  return joined(
    items.map((item, index) => {
      const mark = item.task
        ? item.checked ? "☑ " : "☐ "
        : ordered
        ? `${Number(start || 1) + index}. `
        : "• ";
      const inner = item.tokens.filter(({ type }) => !["space", "checkbox"].includes(type)).map(
        (token) =>
          token.type === "list"
            ? prefixed("\n", listOf(token as Tokens.List, `${indent}  `))
            : blockOf(token),
      );
      return prefixed(`${indent}${mark}`, joined(inner, ""));
    }),
    "\n",
  );
}

/** Telegram has no tables: columns of even width in a block of code. */
function tableOf({ header, rows }: Tokens.Table): TelegramText {
  const cells = [header, ...rows].map((row) => row.map(({ tokens }) => inlines(tokens).plain));
  const widths = cells[0].map((_, column) =>
    Math.max(...cells.map((row) => (row[column] ?? "").length))
  );
  const lines = cells.map((row) =>
    row.map((cell, column) => cell.padEnd(widths[column])).join("  ").trimEnd()
  );
  lines.splice(1, 0, widths.map((width) => "-".repeat(width)).join("  "));
  const plain = lines.join("\n");
  return { html: `<pre>${escape(plain)}</pre>`, plain };
}

function inlines(tokens: readonly Token[] = []): TelegramText {
  return joined(tokens.map(inlineOf), "");
}

function inlineOf(token: Token): TelegramText {
  switch (token.type) {
    case "strong":
      return wrapped("b", inlines((token as Tokens.Strong).tokens));
    case "em":
      return wrapped("i", inlines((token as Tokens.Em).tokens));
    case "del":
      return wrapped("s", inlines((token as Tokens.Del).tokens));
    case "codespan":
      return wrapped("code", literal(unescaped((token as Tokens.Codespan).text)));
    case "br":
      return literal("\n");
    case "link": {
      const { href, tokens } = token as Tokens.Link;
      const label = inlines(tokens);
      if (!isSafeLink(href)) return label;
      return { html: `<a href="${escape(href)}">${label.html}</a>`, plain: label.plain };
    }
    case "image":
      return literal((token as Tokens.Image).text || (token as Tokens.Image).href);
    case "escape":
      return literal((token as Tokens.Escape).text);
    case "text": {
      const { tokens, text } = token as Tokens.Text;
      return tokens ? inlines(tokens) : literal(unescaped(text));
    }
    default:
      return literal(token.raw);
  }
}

function wrapped(tag: string, { html, plain }: TelegramText): TelegramText {
  return plain === "" ? { html, plain } : { html: `<${tag}>${html}</${tag}>`, plain };
}

function literal(text: string): TelegramText {
  return { html: escape(text), plain: text };
}

function prefixed(text: string, { html, plain }: TelegramText): TelegramText {
  return { html: escape(text) + html, plain: text + plain };
}

function joined(parts: readonly TelegramText[], gap: string): TelegramText {
  return {
    html: parts.map(({ html }) => html).join(gap),
    plain: parts.map(({ plain }) => plain).join(gap),
  };
}

/** Cuts at the last line end, else the last space, else anywhere but inside a letter. */
function* cut(text: string, first: number, most: number): Generator<string> {
  let rest = text;
  let limit = first;
  while (rest.length > limit) {
    const window = rest.slice(0, limit + 1);
    const line = window.lastIndexOf("\n");
    const space = window.lastIndexOf(" ");
    let end = line > limit / 2 ? line : space > limit / 2 ? space : limit;
    const code = rest.charCodeAt(end - 1);
    if (code >= 0xd800 && code <= 0xdbff) end--; // the first half of a letter
    yield rest.slice(0, end);
    rest = rest.slice(end).replace(/^[ \n]/, "");
    limit = most;
  }
  if (rest !== "") yield rest;
}

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;");
}

/** The lexer leaves entities as they were written. */
function unescaped(text: string): string {
  return text.replace(
    /&(amp|lt|gt|quot|#39);/g,
    (_, name: keyof typeof ENTITIES) => ENTITIES[name],
  );
}

const ENTITIES = { "amp": "&", "lt": "<", "gt": ">", "quot": '"', "#39": "'" };

function isSafeLink(href: string): boolean {
  return URL.canParse(href) &&
    ["http:", "https:", "mailto:", "tg:"].includes(new URL(href).protocol);
}
