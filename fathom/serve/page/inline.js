// Markdown inside a block: emphasis, code, links, line breaks. Builds nodes; HTML in the text stays text.
import { el } from "./dom.js";

const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'" };
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const BARE_URL = /https?:\/\/[^\s<>"`\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]+/y;
const ENTITY = /&(#39|[a-z]{2,4});/y;
const ANGLED = /<([a-z][a-z0-9+.-]{1,31}:[^\s<>]*)>/iy;
const BREAK = /<br ?\/?>/iy;
const TARGET = /\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\([^\s()]*\))*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const LINK_INSIDE = /(?:^|[^!])\[[^[\]]*\]\(/;
const DOLLARS = /\$(?=[^\s$\d])([^$\n]{0,199}[^\s$\\])?\$(?!\d)/y;
const MATH = { "\\(": "\\)", "\\[": "\\]", $$: "$$" };

/** The address if a link may go there, null otherwise. Relative addresses are refused: a model knows no site of ours. */
export function safeAddress(raw) {
  try {
    return SCHEMES.has(new URL(raw).protocol) ? raw : null;
  } catch {
    return null;
  }
}

export function renderInline(text, inLink = false) {
  const scan = new Scanner(text, inLink);
  const fragment = document.createDocumentFragment();
  fragment.append(...pairEmphasis(scan.items()).map(asNode));
  return fragment;
}

const asNode = (item) => item.node ?? document.createTextNode(item.text ?? item.mark.repeat(item.count));

class Scanner {
  #text;
  #at = 0;
  #plain = "";
  #items = [];
  #inLink;
  #brackets;
  #ticks;
  #unclosed = new Set();

  constructor(text, inLink) {
    this.#text = text;
    this.#inLink = inLink;
    this.#brackets = matchBrackets(text);
    this.#ticks = matchTicks(text);
  }

  items() {
    while (this.#at < this.#text.length) {
      if (!this.#special(this.#text[this.#at])) this.#plain += this.#text[this.#at++];
    }
    this.#flush();
    return this.#items;
  }

  #special(mark) {
    switch (mark) {
      case "\\": return this.#math("\\(") || this.#math("\\[") || this.#escape();
      case "$": return this.#math("$$") || this.#dollars();
      case "`": return this.#code();
      case "*": case "_": case "~": return this.#run(mark);
      case "!": return this.#text[this.#at + 1] === "[" && this.#link(1);
      case "[": return this.#link(0);
      case "<": return this.#lineBreak() || this.#angled();
      case "&": return this.#entity();
      case "h": return this.#bare();
      case "\n": return this.#newline();
      default: return false;
    }
  }

  #flush() {
    if (this.#plain) this.#items.push({ text: this.#plain });
    this.#plain = "";
  }

  #add(node, next) {
    this.#flush();
    this.#items.push({ node });
    this.#at = next;
    return true;
  }

  #match(pattern) {
    pattern.lastIndex = this.#at;
    return pattern.exec(this.#text);
  }

  #escape() {
    const next = this.#text[this.#at + 1];
    if (next === "\n") return this.#add(el("br"), this.#at + 2);
    if (next === undefined || !ESCAPABLE.test(next)) return false;
    this.#plain += next;
    this.#at += 2;
    return true;
  }

  /** Formulas are shown as written: nothing inside them is Markdown. */
  #math(open) {
    if (!this.#text.startsWith(open, this.#at) || this.#unclosed.has(open)) return false;
    const end = this.#text.indexOf(MATH[open], this.#at + 2);
    if (end < 0) this.#unclosed.add(open);
    if (end <= this.#at + 2) return false;
    const node = el("code", { class: "math" }, this.#text.slice(this.#at + 2, end).trim());
    return this.#add(node, end + 2);
  }

  #dollars() {
    const found = this.#match(DOLLARS);
    return found?.[1] ? this.#add(el("code", { class: "math" }, found[1]), DOLLARS.lastIndex) : false;
  }

  #code() {
    const { length, close } = this.#ticks.get(this.#at) ?? { length: 1, close: undefined };
    if (close === undefined) {
      this.#plain += "`".repeat(length);
      this.#at += length;
      return true;
    }
    let body = this.#text.slice(this.#at + length, close).replaceAll("\n", " ");
    if (body.startsWith(" ") && body.endsWith(" ") && body.trim()) body = body.slice(1, -1);
    return this.#add(el("code", {}, body), close + length);
  }

  #run(mark) {
    let end = this.#at;
    while (this.#text[end] === mark) end++;
    const count = end - this.#at;
    if (mark === "~" && count > 2) return false;
    this.#flush();
    this.#items.push({ mark, count, ...flanks(mark, this.#text[this.#at - 1], this.#text[end]) });
    this.#at = end;
    return true;
  }

  /** [label](address); an image becomes a link to it, since the page loads nothing from elsewhere. */
  #link(bang) {
    const close = this.#brackets.get(this.#at + bang);
    if (close === undefined || (this.#inLink && !bang)) return false;
    TARGET.lastIndex = close + 1;
    const found = TARGET.exec(this.#text);
    const address = found && safeAddress((found[1] ?? found[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1"));
    const label = this.#text.slice(this.#at + bang + 1, close);
    if (!address || LINK_INSIDE.test(label)) return false;
    if (this.#inLink) return this.#add(renderInline(label, true), TARGET.lastIndex);
    return this.#add(anchor(address, label ? renderInline(label, true) : address), TARGET.lastIndex);
  }

  #lineBreak() {
    return this.#match(BREAK) ? this.#add(el("br"), BREAK.lastIndex) : false;
  }

  #angled() {
    const found = this.#match(ANGLED);
    if (!found || this.#inLink || !safeAddress(found[1])) return false;
    return this.#add(anchor(found[1], found[1]), ANGLED.lastIndex);
  }

  #entity() {
    const found = this.#match(ENTITY);
    if (!found || !(found[1] in ENTITIES)) return false;
    this.#plain += ENTITIES[found[1]];
    this.#at = ENTITY.lastIndex;
    return true;
  }

  #bare() {
    if (this.#inLink || /[\w/]/.test(this.#text[this.#at - 1] ?? " ")) return false;
    const found = this.#match(BARE_URL);
    if (!found) return false;
    const address = withoutTail(found[0]);
    return safeAddress(address) ? this.#add(anchor(address, address), this.#at + address.length) : false;
  }

  /** In a chat a line break is meant: every newline is one. */
  #newline() {
    this.#plain = this.#plain.trimEnd();
    let next = this.#at + 1;
    while (this.#text[next] === " ") next++;
    return this.#add(el("br"), next);
  }
}

const anchor = (href, label) => el("a", { href, target: "_blank", rel: "noopener noreferrer" }, label);

function withoutTail(address) {
  let end = address.length;
  for (; end > 0; end--) {
    const last = address[end - 1];
    const body = address.slice(0, end);
    if (last === ")" && body.split("(").length >= body.split(")").length) break;
    if (!".,;:!?)]}*_~'".includes(last)) break;
  }
  return address.slice(0, end);
}

function matchBrackets(text) {
  const pairs = new Map();
  const open = [];
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "[") open.push(i);
    else if (text[i] === "]" && open.length) pairs.set(open.pop(), i);
  }
  return pairs;
}

function matchTicks(text) {
  const runs = [...text.matchAll(/`+/g)].map((run) => ({ at: run.index, length: run[0].length }));
  const next = new Map();
  const pairs = new Map();
  for (const { at, length } of runs.reverse()) {
    pairs.set(at, { length, close: next.get(length) });
    next.set(length, at);
  }
  return pairs;
}

const SPACE = /^\s?$/u;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const CJK = /[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]/;

/** Which way a run of marks may face. Chinese and Japanese write no spaces, so their letters count as borders too. */
function flanks(mark, before = "", after = "") {
  const [spaceBefore, spaceAfter] = [SPACE.test(before), SPACE.test(after)];
  const border = (side, space) => space || PUNCTUATION.test(side) || CJK.test(side);
  const left = !spaceAfter && (!PUNCTUATION.test(after) || border(before, spaceBefore));
  const right = !spaceBefore && (!PUNCTUATION.test(before) || border(after, spaceAfter));
  if (mark !== "_") return { opens: left, closes: right };
  return { opens: left && (!right || border(before, spaceBefore)), closes: right && (!left || border(after, spaceAfter)) };
}

/** Turn runs of marks into nested elements (the delimiter algorithm of CommonMark, section 6.2). */
function pairEmphasis(items) {
  const floors = new Map(); // per kind of closer: no opener for it stands before this place
  for (let at = 0; at < items.length; at++) {
    const closer = items[at];
    if (!closer.closes) continue;
    const kind = `${closer.mark}${closer.opens}${closer.count % 3}`;
    const floor = floors.get(kind) ?? 0;
    let from = at - 1;
    while (from >= floor && !mayPair(items[from], closer)) from--;
    if (from < floor) {
      floors.set(kind, at);
      continue;
    }
    const opener = items[from];
    const width = closer.mark === "~" ? closer.count : Math.min(opener.count, closer.count, 2);
    const tag = closer.mark === "~" ? "del" : width === 2 ? "strong" : "em";
    const node = el(tag, {}, ...items.slice(from + 1, at).map(asNode));
    opener.count -= width;
    closer.count -= width;
    const replaced = [opener.count ? opener : null, { node }, closer.count ? closer : null].filter(Boolean);
    items.splice(from, at - from + 1, ...replaced);
    for (const [key, value] of floors) floors.set(key, Math.min(value, from + 1));
    at = from + replaced.length - (closer.count ? 2 : 1);
  }
  return items;
}

function mayPair(opener, closer) {
  if (opener.mark !== closer.mark || !opener.opens || !opener.count) return false;
  if (closer.mark === "~") return opener.count === closer.count;
  if (!opener.closes && !closer.opens) return true;
  return (opener.count + closer.count) % 3 !== 0 || (opener.count % 3 === 0 && closer.count % 3 === 0);
}
