// Markdown inside a block: emphasis, code, links, line breaks. Builds nodes; HTML in the text stays text.
import { closingDollar } from "./dollars.js";
import { el } from "./dom.js";
import { formula } from "./math.js";

const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'" };
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const MAX_NESTED = 4; // labels within labels
const MAX_EMPHASIS = 16; // emphasis within emphasis
const BARE_URL = /https?:\/\/[^\s<>"`\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]{1,2048}/y;
const ENTITY = /&(#39|[a-z]{2,4});/y;
const ANGLED = /<([a-z][a-z0-9+.-]{1,31}:[^\s<>]{0,2048})>/iy;
const BREAK = /<br ?\/?>/iy;
const SPACES = /\s*/y;
const ADDRESS = /<([^<>\n]{0,2048})>|((?:[^\s()\\]|\\.|\([^\s()]{0,2048}\)){0,2048})/y;
const TITLE = /"[^"]{0,2048}"|'[^']{0,2048}'/y;
const MATH = { "\\(": "\\)", "\\[": "\\]", $$: "$$" };

/** The address if a link may go there, null otherwise. Relative addresses are refused: a model knows no site of ours. */
export function safeAddress(raw) {
  try {
    return SCHEMES.has(new URL(raw).protocol) ? raw : null;
  } catch {
    return null;
  }
}

/** The nodes of a text; `depth` counts the links whose label it is part of. */
export function renderInline(text, depth = 0) {
  return pairEmphasis(new Scanner(text, depth).items()).map(asNode);
}

const asNode = (item) => item.node ?? document.createTextNode(item.text ?? item.mark.repeat(item.count));

class Scanner {
  #text;
  #at = 0;
  #plain = "";
  #items = [];
  #depth;
  #brackets;
  #links;
  #ticks;
  #unclosed = new Set();

  constructor(text, depth) {
    this.#text = text;
    this.#depth = depth;
    [this.#brackets, this.#links] = matchBrackets(text);
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

  /** A formula; nothing inside it is Markdown. */
  #math(open) {
    if (!this.#text.startsWith(open, this.#at) || this.#unclosed.has(open)) return false;
    const end = this.#text.indexOf(MATH[open], this.#at + 2);
    if (end < 0) this.#unclosed.add(open);
    if (end <= this.#at + 2) return false;
    const display = open !== "\\(";
    const node = formula(this.#text.slice(this.#at + 2, end).trim(), display);
    this.#flush();
    if (display && this.#items.at(-1)?.node?.localName === "br") this.#items.pop(); // a displayed formula breaks lines itself
    return this.#add(node, end + 2 + (display && this.#text[end + 2] === "\n"));
  }

  #dollars() {
    const end = closingDollar(this.#text, this.#at);
    return end ? this.#add(formula(this.#text.slice(this.#at + 1, end), false), end + 1) : false;
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
    if (mark === "~" && count > 2) {
      this.#plain += mark.repeat(count);
      this.#at = end;
      return true;
    }
    this.#flush();
    this.#items.push({ mark, count, ...flanks(mark, this.#text[this.#at - 1], this.#text[end]) });
    this.#at = end;
    return true;
  }

  /** [label](address); an image becomes a link to it, since the page loads nothing from elsewhere. */
  #link(bang) {
    const close = this.#brackets.get(this.#at + bang);
    if (close === undefined || (this.#depth && !bang)) return false;
    const from = this.#at + bang + 1;
    const [raw, next, title] = target(this.#text, close + 1) ?? [];
    const address = next && safeAddress(raw.replace(/\\([!-/:-@[-`{-~])/g, "$1"));
    if (!address || hasWithin(this.#links, from, close)) return false;
    const label = this.#text.slice(from, close);
    const nodes = this.#depth < MAX_NESTED ? renderInline(label, this.#depth + 1) : [document.createTextNode(label)];
    return this.#add(this.#depth ? el("span", { title: address }, nodes) : anchor(address, label ? nodes : address, title), next);
  }

  #lineBreak() {
    return this.#match(BREAK) ? this.#add(el("br"), BREAK.lastIndex) : false;
  }

  #angled() {
    const found = this.#match(ANGLED);
    if (!found || this.#depth || !safeAddress(found[1])) return false;
    return this.#add(anchor(found[1], found[1]), ANGLED.lastIndex);
  }

  #entity() {
    const found = this.#match(ENTITY);
    if (!found || !Object.hasOwn(ENTITIES, found[1])) return false;
    this.#plain += ENTITIES[found[1]];
    this.#at = ENTITY.lastIndex;
    return true;
  }

  #bare() {
    if (this.#depth || /[\w/]/.test(this.#text[this.#at - 1] ?? " ")) return false;
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

/** A link; behind words of the model's own stands where it really goes. */
function anchor(address, label, title = "") {
  const { host, pathname, username, href } = new URL(address);
  const isPlain = label === address && address.includes(host) && !username && !/\p{Cf}/u.test(address);
  const to = { "data-to": isPlain ? null : host || pathname, title: `${href} ${title}` };
  return el("a", { href: address, target: "_blank", rel: "noopener noreferrer", ...to }, label);
}

/** Read (address "title") from a place; return the address, where the text goes on and the title, or null. */
function target(text, at) {
  const read = (pattern, from) => {
    pattern.lastIndex = from;
    return pattern.exec(text);
  };
  const spaces = (from) => from + read(SPACES, from)[0].length;
  if (text[at] !== "(") return null;
  const start = spaces(at + 1);
  const found = read(ADDRESS, start);
  const end = start + found[0].length;
  let next = spaces(end);
  const title = next > end && read(TITLE, next);
  if (title) next = spaces(next + title[0].length);
  return text[next] === ")" ? [found[1] ?? found[2], next + 1, title ? title[0].slice(1, -1) : ""] : null;
}

function withoutTail(address) {
  const count = (mark) => address.split(mark).length;
  const opened = count("(");
  let closed = count(")");
  let end = address.length;
  for (; end > 0; end--) {
    const last = address[end - 1];
    if (last === ")" && opened >= closed--) break;
    if (!".,;:!?)]}*_~'".includes(last)) break;
  }
  return address.slice(0, end);
}

/** The closing bracket of each opening one, and where links begin whose labels have no brackets. */
function matchBrackets(text) {
  const pairs = new Map();
  const links = [];
  const open = [];
  let last = -1; // the bracket before
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "[") open.push((last = i));
    else if (text[i] === "]") {
      const start = open.pop();
      if (start !== undefined) pairs.set(start, i);
      if (start === last && text[i + 1] === "(" && text[start - 1] !== "!") links.push(start);
      last = i;
    }
  }
  return [pairs, links];
}

/** Whether one of the ascending `places` is in [from, to). */
function hasWithin(places, from, to) {
  let [low, high] = [0, places.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (places[middle] < from) low = middle + 1;
    else high = middle;
  }
  return places[low] < to;
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

/** Turn runs of marks into nested elements (the delimiter algorithm of CommonMark, section 6.2), no deeper than MAX_EMPHASIS. */
function pairEmphasis(items) {
  const done = [];
  const floors = new Map(); // per kind of closer: no opener for it stands before this place
  let closed = 0; // nor any at all before this one
  for (const closer of items) {
    while (closer.closes && closer.count) {
      const kind = `${closer.mark}${closer.opens}${closer.count % 3}`;
      const floor = Math.max(floors.get(kind) ?? 0, closed);
      let from = done.length - 1;
      while (from >= floor && !mayPair(done[from], closer)) from--;
      if (from < floor) {
        floors.set(kind, done.length);
        break;
      }
      const inside = done.splice(from + 1);
      const depth = 1 + inside.reduce((most, item) => Math.max(most, item.depth ?? 0), 0);
      if (depth > MAX_EMPHASIS) {
        for (const item of inside) done.push(item);
        closed = done.length;
        break;
      }
      wrap(done, closer, inside, depth);
      for (const [key, value] of floors) floors.set(key, Math.min(value, from + 1));
    }
    if (!closer.mark || closer.count) done.push(closer);
  }
  return done;
}

/** Replace the opener at the end of `done` and what is `inside` by an element. */
function wrap(done, closer, inside, depth) {
  const opener = done.at(-1);
  const width = closer.mark === "~" ? closer.count : Math.min(opener.count, closer.count, 2);
  const tag = closer.mark === "~" ? "del" : width === 2 ? "strong" : "em";
  opener.count -= width;
  closer.count -= width;
  if (!opener.count) done.pop();
  done.push({ node: el(tag, {}, inside.map(asNode)), depth });
}

function mayPair(opener, closer) {
  if (opener.mark !== closer.mark || !opener.opens || !opener.count) return false;
  if (closer.mark === "~") return opener.count === closer.count;
  if (!opener.closes && !closer.opens) return true;
  return (opener.count + closer.count) % 3 !== 0 || (opener.count % 3 === 0 && closer.count % 3 === 0);
}
