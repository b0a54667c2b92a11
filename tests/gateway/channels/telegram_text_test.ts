import { assert, assertEquals } from "@std/assert";
import { MAX_TEXT, telegramTexts } from "../../../gateway/channels/telegram_text.ts";

Deno.test("markdown becomes the tags that Telegram knows, and nothing else", async () => {
  const rows: [string, string][] = [
    ["plain text", "plain text"],
    ["a **bold** and *soft* ~~gone~~ word", "a <b>bold</b> and <i>soft</i> <s>gone</s> word"],
    ["`a < b && c`", "<code>a &lt; b &amp;&amp; c</code>"],
    ["```ts\nif (a < b) {}\n```", '<pre><code class="language-ts">if (a &lt; b) {}</code></pre>'],
    ["# Title\n\ntext", "<b>Title</b>\n\ntext"],
    ["> quoted\n> twice", "<blockquote>quoted\ntwice</blockquote>"],
    ["- one\n- two\n  - deep", "• one\n• two\n  • deep"],
    ["3. c\n4. d", "3. c\n4. d"],
    ["[zero](https://example.org/?a=1&b=2)", '<a href="https://example.org/?a=1&amp;b=2">zero</a>'],
    ["[bad](javascript:alert(1))", "bad"],
    ["<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"],
    ["a <b>tag</b> of theirs", "a &lt;b&gt;tag&lt;/b&gt; of theirs"],
    ["5 < 6 & 7 > 2", "5 &lt; 6 &amp; 7 &gt; 2"],
    ["`unclosed", "`unclosed"],
    ["**unclosed", "**unclosed"],
    ["snake_case_name", "snake_case_name"],
    ["\\*escaped\\*", "*escaped*"],
    ['`x" onclick="y`', "<code>x&quot; onclick=&quot;y</code>"],
    ['```a"><b>\nx\n```', '<pre><code class="language-a">x</code></pre>'],
    ["- [x] done\n- [ ] open", "☑ done\n☐ open"],
  ];

  for (const [markdown, html] of rows) {
    assertEquals((await telegramTexts(markdown)).map((one) => one.html), [html], markdown);
  }
});

Deno.test("a table is shown with even columns", async () => {
  const [{ html }] = await telegramTexts(
    "| Node | State |\n|---|---|\n| n1 | on |\n| phone | off |",
  );

  assertEquals(html, "<pre>Node   State\n-----  -----\nn1     on\nphone  off</pre>");
});

Deno.test("a long text is split between its paragraphs, and loses nothing", async () => {
  const paragraphs = Array.from(
    { length: 40 },
    (_, index) => `Paragraph ${index} ${"x".repeat(300)}`,
  );

  const parts = await telegramTexts(paragraphs.join("\n\n"));

  assert(parts.length > 2);
  assert(parts.every(({ plain }) => plain.length <= MAX_TEXT));
  assertEquals(parts.map(({ plain }) => plain).join("\n\n"), paragraphs.join("\n\n"));
});

Deno.test("a paragraph longer than a message is split at words, a letter is never cut", async () => {
  const words = Array.from({ length: 2_000 }, (_, index) => `word${index}`).join(" ");
  const faces = "😀".repeat(5_000);
  const code = Array.from({ length: 900 }, (_, index) => `line ${index}`).join("\n");

  const [text, letters, block] = await Promise.all([
    telegramTexts(words),
    telegramTexts(faces),
    telegramTexts(`\`\`\`\n${code}\n\`\`\``),
  ]);

  assertEquals(text.map(({ plain }) => plain).join(" "), words);
  assertEquals(letters.map(({ plain }) => plain).join(""), faces);
  assert(letters.every(({ plain }) => plain.length <= MAX_TEXT && plain.isWellFormed()));
  assertEquals(block.map(({ plain }) => plain).join("\n"), code);
  assert(block.every(({ html }) => html.startsWith("<pre>") && html.endsWith("</pre>")));
});

Deno.test("a caption is shorter than a message", async () => {
  const parts = await telegramTexts("word ".repeat(600).trim(), { first: 1_024 });

  assert(parts[0].plain.length <= 1_024 && parts[1].plain.length > 1_024);
});

Deno.test("nothing comes of nothing", async () => {
  assertEquals(await telegramTexts(" \n\n "), []);
});
