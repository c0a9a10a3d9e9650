// Light colouring of code: comments, strings, numbers and keywords, by one pass of patterns. Not a parser.
import { el } from "./dom.js";

const words = (list) => new Set(list.split(" "));

const PYTHON = words(
  "and as assert async await break case class continue def del elif else except False finally for from global if import in is " +
    "lambda match None nonlocal not or pass raise return self True try while with yield",
);
const SCRIPT = words(
  "async await break case catch class const continue default delete do else export extends false finally for from function if " +
    "implements import in instanceof interface let new null of return static super switch this throw true try type typeof " +
    "undefined var void while yield",
);
const SHELL = words("case do done elif else esac export fi for function if in local return set then until while");
const CURLY = words(
  "auto bool break case catch char class const constexpr continue default defer delete do double else enum extern false final " +
    "float fn for func func go goto if impl import include inline int interface let long match mod mut namespace new nil null " +
    "nullptr package private protected pub public return self short signed sizeof static string struct super switch template " +
    "this throw true try type typedef typename union unsigned use using var virtual void volatile where while",
);
const QUERY = words(
  "and as asc between by case create delete desc distinct drop else end exists from full group having in inner insert into is " +
    "join left like limit not null on or order outer right select set table then union update values when where with",
);

const QUOTED = String.raw`"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?`;
const NUMBER = String.raw`\b\d[\w.]*`;
const WORD = String.raw`[A-Za-z_$][\w$]*`;

const grammar = (comment, string, keywords) => ({
  pattern: new RegExp(`(${comment})|(${string})|(${NUMBER})|(${WORD})`, "g"),
  keywords,
});

const HASH = String.raw`#[^\n]*`;
const SLASHES = String.raw`\/\/[^\n]*|\/\*(?:[^*]|\*(?!\/))*(?:\*\/)?`;
const GRAMMARS = {
  python: grammar(HASH, String.raw`"""(?:[^"\\]|\\[^]|"(?!""))*(?:""")?|'''(?:[^'\\]|\\[^]|'(?!''))*(?:''')?|` + QUOTED, PYTHON),
  script: grammar(SLASHES, QUOTED + "|`(?:[^`\\\\]|\\\\[^])*`?", SCRIPT),
  json: grammar(SLASHES, String.raw`"(?:[^"\\\n]|\\.)*"?`, words("true false null")),
  shell: grammar(String.raw`(?<![\w$&{])#[^\n]*`, QUOTED, SHELL),
  curly: grammar(SLASHES, QUOTED, CURLY),
  query: grammar(String.raw`--[^\n]*`, QUOTED, QUERY),
  settings: grammar(HASH, QUOTED, words("true false null yes no")),
};

const ALIASES = {
  python: "python py python3 ipython",
  script: "javascript js jsx mjs typescript ts tsx",
  json: "json jsonc json5",
  shell: "sh bash shell zsh console",
  curly: "c cpp c++ h hpp cc cuda cu java kotlin kt go rust rs cs csharp swift scala php dart zig proto",
  query: "sql",
  settings: "toml yaml yml ini",
};
const BY_NAME = new Map(Object.entries(ALIASES).flatMap(([name, list]) => list.split(" ").map((alias) => [alias, name])));
const KINDS = ["comment", "string", "number"];
const MAX_CHARS = 60_000;

/** Return the code as nodes; plain text where the language is unknown or the code is very long. */
export function colour(code, language) {
  const grammarName = BY_NAME.get(language.toLowerCase());
  if (!grammarName || code.length > MAX_CHARS) return [document.createTextNode(code)];
  const { pattern, keywords } = GRAMMARS[grammarName];
  const ignoreCase = grammarName === "query";
  const nodes = [];
  let from = 0;
  for (const found of code.matchAll(pattern)) {
    const word = found[4];
    const isKeyword = word !== undefined && keywords.has(ignoreCase ? word.toLowerCase() : word);
    const kind = word === undefined ? KINDS[found.slice(1, 4).findIndex((part) => part !== undefined)] : "keyword";
    if (word !== undefined && !isKeyword) continue;
    if (found.index > from) nodes.push(document.createTextNode(code.slice(from, found.index)));
    nodes.push(el("span", { class: `code-${kind}` }, found[0]));
    from = found.index + found[0].length;
  }
  if (from < code.length) nodes.push(document.createTextNode(code.slice(from)));
  return nodes;
}
