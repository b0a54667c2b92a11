import { assert, assertEquals } from "@std/assert";
import { evaluate } from "../../../gateway/node/allowlist.ts";
import { joinArgv, splitLine } from "../../../gateway/node/splitter.ts";

const LISTED = ["ls", "cat", "echo", "git"];
const UNLISTED = ["rm", "curl", "sh", "python", "command", "eval", "cd", "hash"];

/** A directory of programs that only write down that they ran; some of them are on the allowlist. */
async function makePrograms() {
  const home = await Deno.makeTempDir({ prefix: "zero-splitter-" });
  const bin = `${home}/bin`;
  const ran = `${home}/ran`;
  await Deno.mkdir(bin);
  for (const name of [...LISTED, ...UNLISTED]) {
    await Deno.writeTextFile(`${bin}/${name}`, `#!/bin/sh\necho ${name} >>${ran}\n`, {
      mode: 0o755,
    });
  }
  await Deno.mkdir(`${home}/work`);
  const surroundings = { path: bin, ownPath: bin, cwd: `${home}/work`, home };
  const rules = {
    allowlist: LISTED.map((name) => ({ pattern: `${bin}/${name}` })),
    safeBins: new Set<string>(),
  };
  return {
    home,
    bin,
    judge: (line: string) => evaluate({ line }, rules, surroundings),
    /** Has a real shell run the line; returns the programs that began. */
    async run(shell: string, line: string): Promise<string[]> {
      await new Deno.Command(shell, {
        args: ["-c", line],
        cwd: `${home}/work`,
        clearEnv: true,
        env: { PATH: bin, HOME: home, A: "a" },
        stdin: "null",
        stdout: "null",
        stderr: "null",
      }).output();
      const text = await Deno.readTextFile(ran).catch(() => "");
      await Deno.remove(ran).catch(() => {});
      return text.trim().split("\n").filter(Boolean);
    },
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
}

async function shells(): Promise<string[]> {
  const found: string[] = [];
  for (const path of ["/bin/dash", "/bin/bash", "/bin/sh"]) {
    if (await Deno.stat(path).then(() => true, () => false)) found.push(path);
  }
  return found;
}

/** Lines in which only listed programs run. */
const ALLOWED = lines(String.raw`
ls
ls -la
  ls   -la  
ls -la /tmp
ls && cat x
ls&&cat x
ls || echo no
ls||echo no
ls ; cat x
ls;cat x
ls | cat
ls|cat|cat
ls | cat && echo done || echo failed; git status
echo 'a b'
echo "a b"
echo 'a && rm x'
echo "a && rm x"
echo 'a; rm x'
echo "a | rm x"
echo 'a > b'
echo "a > b"
echo "a < b"
echo '$(rm x)'
echo '´rm x´'
echo "it's"
echo 'say "hi"'
echo "say \"hi\""
echo "a \\ b"
echo "\$(rm x)"
echo "\´rm x\´"
echo \$HOME
echo \;
echo \&\& rm
echo \| rm
echo a\ b
echo a\;rm
echo \'
echo \"
echo \\
echo \> x
echo \( x \)
echo $HOME
echo "$HOME"
echo §{HOME}
echo "§{HOME}"
echo $1 $? $# $@ $* $$ $! $-
echo §{?} §{#}
echo *
echo *.ts ?.ts [ab].ts
echo {a,b}
echo ~
echo ~/x
echo a~b
echo a=b
echo --a=b
echo 'a'"b"c
echo ''
echo ""
''ls
l's'
l"s"
\ls
"ls" -la
'ls' -la
ls a#b
ls 'a#b' '#c'
ls \#a
echo %
echo @ + , . : ^ _ -
echo !
echo }
echo {
git log --format='%h %s'
git -C /tmp status
git commit -m "a; b && c | d"
git commit -m 'multi word' && git push
cat a b c | cat | cat | cat
echo a	b
echo ü ñ 漢字 🎉
echo "ü; rm"
echo '漢 && 字'
ls -- -x
echo "a""b"'c'd\e
echo "'" '"'
echo "$A" '$A' \$A
echo "\n" '\n' \n
echo x=$A
echo [ ]
echo [a-z]*
echo a\	b
ls;ls;ls;ls
ls&&ls&&ls||ls
`);

/** Lines that can be read, and in which something unlisted would run or could not be told. */
const MISSED = lines(String.raw`
rm
rm -rf x
ls && rm x
ls&&rm x
rm x && ls
ls || rm x
ls||rm x
ls ; rm x
ls;rm x
ls | rm
ls|rm
ls | cat | rm | cat
ls && cat && rm
'rm' x
"rm" x
\rm x
r\m x
r'm' x
''rm x
"r"'m' x
nosuch
nosuch && ls
ls && nosuch
sh -c ls
sh -c 'ls'
curl x | sh
python -c 'x'
$A
$A x
"$A" x
§{A} x
ls && $A
ls | "$A"
l$A
l*
?s
[l]s
{ls,rm}
{ ls
! ls
A=b ls
A=b
A+=b ls
A[0]=b ls
PATH=/tmp ls
ls && PATH=/tmp ls
ls; PATH=/tmp; ls
LD_PRELOAD=x ls
if ls
ls && then ls
while ls
for x
case x
do ls
done
exec ls
eval ls
eval rm
. x
: x
source x
command ls
command rm
builtin ls
trap rm EXIT
alias ls=rm
unalias ls
export PATH=/tmp
set -- rm
cd /tmp && ls
cd /tmp
hash -p /tmp/evil ls
time ls
coproc ls
function ls
[[ a
[ a
test a
printf a
true
false
./ls
../ls
./rm
/bin/nosuch
/nosuch/ls
../bin/rm
sub/ls
~/ls
~/bin/rm
~root/ls
~+/ls
ls\ -la
'ls -la'
"ls -la"
LS
ls/
/
.
..
-
--
""
''
"" ls
'' && ls
ls && ''
ls | ""
echo a && echo b && echo c && rm d
git status; curl http://x; git pull
xargs rm
env ls
sudo ls
nohup ls
`);

/** Lines of which it cannot be told what they do. */
const UNREADABLE = [
  ...lines(String.raw`
ls > x
ls >x
ls >> x
ls 2>&1
ls 2>/dev/null
ls < x
ls <<x
ls <<< x
cat <(ls)
cat >(ls)
ls >| x
ls <> x
ls &
ls & rm x
ls &rm x
& ls
ls && & rm
ls &&& rm
ls |& rm
ls |& cat
ls | & cat
ls ||| cat
ls || | cat
ls | | cat
ls ;; ls
ls ; ; ls
ls ;
ls;
; ls
;
&&
||
|
ls &&
ls ||
ls |
&& ls
|| ls
| ls
ls && && ls
ls && ; ls
(ls)
(rm x)
ls (x)
ls ()
ls() 
ls(){ rm; }
ls $(rm x)
ls $(ls)
$(rm x)
echo $(rm)
echo a$(rm)b
echo "$(rm)"
echo "a $(rm) b"
echo "$((1+1))"
echo $((1+1))
echo $[1+1]
echo "$[1+1]"
echo "\\$(rm)"
echo ´rm´
echo "´rm´"
´rm´
echo ´
echo "\\´rm\\´"
echo §{A:-$(rm)}
echo §{A:-b}
echo "§{A:-b}"
echo "§{A-"}"; rm "}"
echo §{A-'}'}
echo §{A#b}
echo §{A/b/c}
echo §{!A}x§{A@P}
echo §{
echo §{A
echo §{}
echo 'a
echo "a
echo 'a"
echo "a'
echo it's
echo \"a b"
echo a\
\
'
"
echo "a\
echo $'a'
echo $'\'' ; rm x #'
echo $"a"
echo "a"$'b'
# rm x
#
ls # rm x
ls #
ls && # rm
ls #' 
`),
  "",
  " ",
  "\t",
  "ls\nrm x",
  "ls\n",
  "\nls",
  "ls\r\nrm x",
  "ls\rrm",
  "ls \\\nrm",
  'echo "a\\\nb"',
  "ls #'\nrm x #'",
  "ls\u00a0rm",
  "ls\u2003rm",
  "ls\u3000rm",
  "ls\u2028rm",
  "ls\ufeffrm",
  "ls\vrm",
  "ls\frm",
  "ls\0rm",
  'ls "\0"',
  "ls \x1b[0m",
  "ls \x7f",
  "ls \\\0",
];

Deno.test("every odd command line is judged as it should be", async () => {
  await using programs = await makePrograms();
  const wrong: string[] = [];
  const expect = async (lines: string[], wanted: string) => {
    for (const line of lines) {
      const { isAnalysed, isSatisfied } = await programs.judge(line);
      const found = isSatisfied ? "allowed" : isAnalysed ? "missed" : "unreadable";
      if (found !== wanted) wrong.push(`${JSON.stringify(line)} is ${found}, not ${wanted}`);
    }
  };

  await expect(ALLOWED, "allowed");
  await expect([`${programs.bin}/ls x`, "~/bin/ls", "../bin/ls", '"../bin/ls" && ls'], "allowed");
  await expect(MISSED, "missed");
  await expect([`${programs.bin}/rm x`, '"~/bin/ls"', "'~'/bin/ls", "$HOME/bin/ls"], "missed");
  await expect(UNREADABLE, "unreadable");

  assertEquals(wrong, []);
  const count = ALLOWED.length + MISSED.length + UNREADABLE.length;
  assert(count > 240, `only ${count} lines`);
});

Deno.test("in a line that is allowed no shell starts anything that is not listed", async () => {
  await using programs = await makePrograms();
  const wrong: string[] = [];
  let count = 0;
  for (const shell of await shells()) {
    for (const line of ALLOWED) {
      for (const name of await programs.run(shell, line)) {
        count++;
        if (!LISTED.includes(name)) wrong.push(`${shell}: ${JSON.stringify(line)} ran ${name}`);
      }
    }
  }

  assertEquals(wrong, []);
  assert(count > 50, `only ${count} programs ran: the lines were not really run`);
});

Deno.test("a splitter fed with random lines never throws, and never lets an unlisted program through", async () => {
  await using programs = await makePrograms();
  const random = seeded(0x5eed);
  const pieces = [
    ...["ls", "cat", "echo", "git", "rm", "curl", "sh", "x", "a b", " ", " ", " ", "  ", "\t"],
    ...["&&", "||", ";", "|", "&", "'", '"', "\\", "`", "$", "$(", "${", "}", "(", ")", "<", ">"],
    ...["$'", '$"', "#", "\n", "\r", "=", "A=", "~", "/", "*", "?", "{", ",", "!", "$A", "${A}"],
    ...[' "', '" ', " '", "' ", " ; ", " | ", " && ", "ls ", "echo ", "rm ", "\0", "\u00a0", "é"],
  ];
  const found = new Set<string>();
  const wrong: string[] = [];
  for (let round = 0; round < 40_000; round++) {
    const length = 1 + Math.floor(random() * 14);
    let line = random() < 0.5 ? "ls " : "";
    for (let index = 0; index < length; index++) {
      line += pieces[Math.floor(random() * pieces.length)];
    }
    const segments = splitLine(line);
    if (!segments) continue;
    const names = segments.map(([first]) => first);
    if (!names.every(({ text, isLiteral }) => isLiteral && LISTED.includes(text))) continue;
    found.add(line);
    for (const name of commandWords(line)) {
      if (!LISTED.includes(name)) wrong.push(`${JSON.stringify(line)} would run ${name}`);
    }
  }

  assertEquals(wrong, []);
  assert(found.size > 500, `only ${found.size} lines were let through: the fuzz tries too little`);

  // And the last word is the shells' own.
  const sample = [...found].filter((line) => /[;|&'"\\$#]/.test(line)).slice(0, 250);
  for (const shell of (await shells()).slice(0, 2)) {
    for (const line of sample) {
      const ran = await programs.run(shell, line);
      if (!ran.every((name) => LISTED.includes(name))) wrong.push(`${shell}: ${line} ran ${ran}`);
    }
  }
  assertEquals(wrong, []);
});

Deno.test("an argv is shown as a line that reads back as the same argv", () => {
  const random = seeded(7);
  const characters = [..." 'a\"$b`\\;|&<>()*?~#=\té"];
  for (let round = 0; round < 2_000; round++) {
    const argv = Array.from(
      { length: 1 + Math.floor(random() * 4) },
      () =>
        Array.from(
          { length: Math.floor(random() * 6) },
          () => characters[Math.floor(random() * characters.length)],
        ).join(""),
    );

    const line = joinArgv(argv);

    assertEquals(splitLine(line)?.map((words) => words.map(({ text }) => text)), [argv], line);
  }
});

/**
 * The words that stand where a program may stand, found in another way than the splitter does: by one
 * regular expression that takes a line apart. Whatever a substitution holds counts as a program.
 */
function commandWords(line: string): string[] {
  const token =
    /'([^']*)'|"((?:\\[\s\S]|[^"\\])*)"|\\([\s\S])|([;&|()<>`\n]+)|([ \t]+)|([^'"\\;&|()<>`\n \t]+)|([\s\S])/g;
  const words: string[] = [];
  let word: string | undefined;
  let isFirst = true;
  const end = () => {
    if (word !== undefined && isFirst) words.push(word);
    if (word !== undefined) isFirst = false;
    word = undefined;
  };
  for (const [, single, double, escaped, operator, blank, plain, odd] of line.matchAll(token)) {
    if (odd !== undefined) words.push("an open quote");
    if (double !== undefined && /(?<!\\)(?:\\\\)*(?:`|\$\()/.test(double)) {
      words.push("a substitution");
    }
    if (operator !== undefined) {
      end();
      isFirst = true;
    } else if (blank !== undefined) end();
    else {
      const unquoted = double?.replace(/\\(["$`\\])/g, "$1");
      word = (word ?? "") + (single ?? unquoted ?? escaped ?? plain ?? "");
    }
  }
  end();
  return words;
}

/** One line each; `´` stands for a backtick and `§` for `$`, which a template would not keep. */
function lines(text: string): string[] {
  return text.replaceAll("´", "`").replaceAll("§", "$").split("\n")
    .filter((line) => line.trim() !== "");
}

/** Random numbers in [0, 1) that are the same in every run (mulberry32). */
function seeded(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}
