// Shell completions, made from the table of commands: words, options and the values an option may
// take. The scripts hold everything they need, so that pressing Tab starts no program.

import {
  choicesOf,
  type Command,
  command,
  EXIT_OK,
  type Flag,
  type Flags,
  GLOBAL_FLAGS,
  nearest,
  nextWords,
  pathsOf,
  type Program,
  summaryOf,
  UsageError,
} from "./command.ts";

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

/** @param program asked only when the command runs: the table holds this command too */
export function completionsCommand(program: () => Program): Command {
  return command({
    path: ["completions"],
    summary: "Print a script that completes commands and options in your shell",
    usage: "SHELL",
    flags: {},
    details: "SHELL is bash, zsh or fish.",
    examples: [
      'eval "$(zero completions bash)"    # in ~/.bashrc',
      'eval "$(zero completions zsh)"     # in ~/.zshrc, after compinit',
      "zero completions fish | source    # in config.fish",
    ],
    run({ args: [shell] }, terminal) {
      if (!isShell(shell)) {
        const near = nearest(shell, SHELLS);
        throw new UsageError(
          `Cannot complete for ${JSON.stringify(shell)}: no such shell is known`,
          {
            hint: near ? `Did you mean ${near}?` : `One of: ${SHELLS.join(", ")}`,
          },
        );
      }
      terminal.write(completionScript(program(), shell));
      return Promise.resolve(EXIT_OK);
    },
  });
}

/** The script that teaches a shell the commands of a program. */
export function completionScript(program: Program, shell: Shell): string {
  const places = placesOf(program);
  switch (shell) {
    case "bash":
      return bashScript(program, places);
    case "zsh":
      return zshScript(program, places);
    case "fish":
      return fishScript(program, places);
  }
}

/** A place on the command line: the words so far, and what may come next. */
interface Place {
  path: readonly string[];
  words: { word: string; summary: string }[];
  flags: { name: string; flag: Flag }[];
}

function placesOf(program: Program): Place[] {
  const paths = new Map<string, readonly string[]>([["", []]]);
  for (const path of program.commands.flatMap(pathsOf)) {
    for (let length = 1; length <= path.length; length++) {
      const part = path.slice(0, length);
      paths.set(part.join(" "), part);
    }
  }
  return [...paths.values()].map((path) => {
    const found = program.commands.find((one) =>
      pathsOf(one).some((words) => words.join(" ") === path.join(" "))
    );
    const flags: Flags = { ...found?.flags, ...GLOBAL_FLAGS };
    return {
      path,
      words: nextWords(program, path).map((word) => ({
        word,
        summary: summaryOf(program, [...path, word]),
      })),
      flags: Object.entries(flags).filter(([, flag]) => !flag.hidden)
        .map(([name, flag]) => ({ name, flag })),
    };
  });
}

/** Options that take the next word, with or without a list of what it may be. */
function valueFlags(places: Place[]): Map<string, readonly string[]> {
  const flags = new Map<string, readonly string[]>();
  for (const { name, flag } of places.flatMap((place) => place.flags)) {
    if (flag.kind === "boolean") continue;
    flags.set(name, [...new Set([...flags.get(name) ?? [], ...choicesOf(flag)])]);
  }
  return flags;
}

function bashScript({ name }: Program, places: Place[]): string {
  const values = valueFlags(places);
  const takers = [...values.keys()].map((flag) => `--${flag}`).join("|");
  const cases = places.map(({ path, words, flags }) => {
    const options = flags.flatMap(({ name, flag }) => [
      `--${name}`,
      ...flag.short ? [`-${flag.short}`] : [],
    ]);
    return `    ${quoted(path.join(" "))})
      words=${quoted(words.map(({ word }) => word).join(" "))}
      options=${quoted(options.join(" "))}
      ;;`;
  });
  const choices = [...values].filter(([, list]) => list.length > 0).map(([flag, list]) =>
    `    --${flag})
      COMPREPLY=($(compgen -W ${quoted(list.join(" "))} -- "$current"))
      return
      ;;`
  );
  return `# bash completion for ${name}

_${name}_place() {
  case "$1" in
${cases.join("\n")}
    *)
      return 1
      ;;
  esac
}

_${name}() {
  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD-1]}"
  # bash splits words at = and :
  if [[ "$current" == = ]]; then
    current=""
  elif [[ "$previous" == = ]]; then
    previous="\${COMP_WORDS[COMP_CWORD-2]}"
  fi
  local place="" next words options index word skip=""
  COMPREPLY=()
  for ((index = 1; index < COMP_CWORD; index++)); do
    word="\${COMP_WORDS[index]}"
    if [[ "$word" == [=:] ]]; then
      skip=1
    elif [[ -n "$skip" ]]; then
      skip=""
    else
      case "$word" in
      --)
        return
        ;;
      ${takers})
        skip=1
        ;;
      -*) ;;
      *)
        next="\${place:+$place }$word"
        _${name}_place "$next" || break
        place="$next"
        ;;
      esac
    fi
  done
  case "$previous" in
${choices.join("\n")}
    ${takers})
      COMPREPLY=($(compgen -f -- "$current"))
      return
      ;;
  esac
  _${name}_place "$place"
  if [[ "$current" == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
  else
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  fi
}

complete -o default -F _${name} ${name}
`;
}

function zshScript({ name }: Program, places: Place[]): string {
  const values = valueFlags(places);
  const takers = [...values.keys()].map((flag) => `--${flag}`).join("|");
  const cases = places.map(({ path, words, flags }) => {
    const described = words.map(({ word, summary }) => `      ${describedWord(word, summary)}`);
    const options = flags.flatMap(({ name, flag }) => [
      `      ${describedWord(`--${name}`, flag.summary)}`,
      ...flag.short ? [`      ${describedWord(`-${flag.short}`, flag.summary)}`] : [],
    ]);
    return `    ${quoted(path.join(" "))})
      words_here=(
${described.join("\n")}
      )
      options_here=(
${options.join("\n")}
      )
      ;;`;
  });
  const choices = [...values].filter(([, list]) => list.length > 0).map(([flag, list]) =>
    `    --${flag})
      compadd -- ${list.map(quoted).join(" ")}
      return
      ;;`
  );
  return `#compdef ${name}
# zsh completion for ${name}

_${name}_place() {
  case "$1" in
${cases.join("\n")}
    *)
      return 1
      ;;
  esac
}

_${name}() {
  local place="" next word skip="" index
  local -a words_here options_here
  for ((index = 2; index < CURRENT; index++)); do
    word="\${words[index]}"
    if [[ -n "$skip" ]]; then
      skip=""
      continue
    fi
    case "$word" in
    --)
      _files
      return
      ;;
    ${takers})
      skip=1
      ;;
    -*) ;;
    *)
      next="\${place:+$place }$word"
      _${name}_place "$next" || break
      place="$next"
      ;;
    esac
  done
  case "\${words[CURRENT-1]}" in
${choices.join("\n")}
    ${takers})
      _files
      return
      ;;
  esac
  _${name}_place "$place"
  if [[ "\${words[CURRENT]}" == -* ]]; then
    _describe option options_here
  elif (( \${#words_here} )); then
    _describe command words_here
  else
    _files
  fi
}

compdef _${name} ${name}
`;
}

function fishScript({ name }: Program, places: Place[]): string {
  const takers = [...valueFlags(places).keys()].map((flag) => `--${flag}`).join(" ");
  const known = places.filter(({ path }) => path.length > 0).map(({ path }) =>
    quoted(path.join(" "))
  );
  const lines = places.flatMap(({ path, words, flags }) => {
    const condition = `-n ${quoted(`__${name}_at ${quotedForFish(path.join(" "))}`)}`;
    return [
      ...words.map(({ word, summary }) =>
        `complete -c ${name} ${condition} -f -a ${quotedForFish(word)} -d ${quotedForFish(summary)}`
      ),
      ...flags.map(({ name: flagName, flag }) => {
        const short = flag.short ? ` -s ${flag.short}` : "";
        const list = choicesOf(flag);
        const value = flag.kind === "boolean"
          ? ""
          : list.length > 0
          ? ` -x -a ${quotedForFish(list.join(" "))}`
          : " -r";
        const summary = quotedForFish(flag.summary);
        return `complete -c ${name} ${condition} -l ${flagName}${short}${value} -d ${summary}`;
      }),
    ];
  });
  return `# fish completion for ${name}

function __${name}_at
    set -l place ""
    set -l skip 0
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
            continue
        end
        if contains -- $word ${takers}
            set skip 1
            continue
        end
        if string match -q -- "-*" $word
            continue
        end
        set -l next (string trim "$place $word")
        if contains -- "$next" ${known.join(" ")}
            set place $next
        else
            break
        end
    end
    test "$place" = "$argv[1]"
end

${lines.join("\n")}
`;
}

/** Text as one word of bash and zsh. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function quotedForFish(text: string): string {
  return `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
}

/** A word with its description, as zsh's _describe takes it. */
function describedWord(word: string, summary: string): string {
  return quoted(`${word.replaceAll(":", "\\:")}:${summary.replaceAll(":", "\\:")}`);
}

function isShell(text: string): text is Shell {
  return (SHELLS as readonly string[]).includes(text);
}
