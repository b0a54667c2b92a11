// Reads a shell line the way §10.3 asks: which programs it would start, and with which words. It knows
// less than a shell and says so: what it is not sure of is no answer at all.

/** One word of a command, without its quotes. */
export interface Word {
  text: string;
  /** Stands for itself: the shell puts nothing else in its place, save a leading `~`. */
  isLiteral: boolean;
  /** Begins with an unquoted `~` that stands for the home directory. */
  hasTilde: boolean;
}

/** The words of one command of a line; the first names the program. */
export type Segment = readonly Word[];

/**
 * Splits at `&&`, `||`, `;` and `|`. Everything else that could start a program, redirect, or be read
 * differently by one shell and another makes the line unreadable: other operators, substitutions also
 * inside double quotes, `$'…'`, `${…}` with more than a name in it, comments, open quotes.
 *
 * @returns undefined for a line that cannot be read
 */
export function splitLine(line: string): Segment[] | undefined {
  if (line.includes("\0")) return undefined; // no program could be given it
  const segments: Word[][] = [];
  let words: Word[] = [];
  let word: Word | undefined;
  let at = 0;

  const add = (text: string, expands = false) => {
    word ??= { text: "", isLiteral: true, hasTilde: false };
    word.text += text;
    if (expands) word.isLiteral = false;
  };
  const endWord = () => {
    if (word) words.push(word);
    word = undefined;
  };
  /** @returns whether there was a command before the operator */
  const endSegment = () => {
    endWord();
    segments.push(words);
    words = [];
    return segments.at(-1)!.length > 0;
  };

  while (at < line.length) {
    const char = line[at];
    switch (char) {
      case " ":
      case "\t":
        endWord();
        at++;
        continue;
      case "'": {
        const end = line.indexOf("'", at + 1);
        if (end < 0) return undefined;
        add(line.slice(at + 1, end));
        at = end + 1;
        continue;
      }
      case '"': {
        const quoted = readDoubleQuotes(line, at + 1);
        if (!quoted) return undefined;
        add(quoted.text, quoted.expands);
        at = quoted.end;
        continue;
      }
      case "\\": {
        const escaped = line[at + 1];
        if (escaped === undefined || BREAKS.test(escaped)) return undefined;
        add(escaped);
        at += 2;
        continue;
      }
      case "$":
        if (!isPlainDollar(line, at) || /["']/.test(line[at + 1] ?? "")) return undefined;
        add(char, true);
        at++;
        continue;
      case "|":
        if (!endSegment() || line[at + 1] === "&") return undefined;
        at += line[at + 1] === "|" ? 2 : 1;
        continue;
      case "&":
        if (line[at + 1] !== "&" || !endSegment()) return undefined;
        at += 2;
        continue;
      case ";":
        if (!endSegment()) return undefined;
        at++;
        continue;
    }
    if (FORBIDDEN.test(char) || (char === "#" && !word)) return undefined;
    if (char === "~" && !word) {
      const isHome = /^~(?:[/ \t;|&]|$)/.test(line.slice(at, at + 2));
      add(char, !isHome);
      word!.hasTilde = isHome;
    } else {
      // A `~` after `=` or `:` stands for the home directory in some shells.
      add(char, /[*?[\]{}~]/.test(char));
    }
    at++;
  }
  return endSegment() ? segments : undefined;
}

/** Redirections, subshells, substitutions, and characters that shells disagree about. */
const FORBIDDEN = /[<>`()\x01-\x1f\x7f]|[^\S ]/;
const BREAKS = /[\r\n]/;

/** @param at behind the opening quote */
function readDoubleQuotes(line: string, at: number) {
  let text = "";
  let expands = false;
  for (; at < line.length; at++) {
    const char = line[at];
    if (char === '"') return { text, expands, end: at + 1 };
    if (char === "`") return undefined;
    if (char === "$") {
      if (!isPlainDollar(line, at)) return undefined;
      expands = true;
    }
    if (char === "\\") {
      const next = line[at + 1];
      if (next === undefined || next === "\n") return undefined;
      if (/["$`\\]/.test(next)) {
        text += next;
        at++;
        continue;
      }
    }
    text += char;
  }
  return undefined;
}

/** Whether `$` begins at most the name of a variable: neither `$(`, `$[` nor `${name-word}`. */
function isPlainDollar(line: string, at: number): boolean {
  const next = line[at + 1];
  if (next === "(" || next === "[") return false;
  return next !== "{" || /^\$\{(?:\w{1,200}|[#?@*!$-])\}/.test(line.slice(at, at + 210));
}

/** A command line as one text: words that a shell would take apart are quoted. */
export function joinArgv(argv: readonly string[]): string {
  return argv.map((word) =>
    /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`
  ).join(" ");
}
