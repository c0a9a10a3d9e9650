// Markdown as DOM nodes, and a view of a streaming text that renders only its last block again.
import { parseBlocks } from "./blocks.js";
import { copyText, el, fill, icon } from "./dom.js";
import { colour } from "./highlight.js";
import { say } from "./i18n.js";
import { renderInline } from "./inline.js";
import { formula } from "./math.js";

const COPIED_MS = 1500;
const MAX_CHARS = 300_000; // a longer text is shown as it is

export class MarkdownView {
  #root;
  #done = 0; // characters of the text whose blocks can no longer change
  #kept = 0; // and how many nodes show them
  #nodes = []; // one per block
  #plain = false; // shown as it is, without Markdown

  constructor(root) {
    this.#root = root;
  }

  /** Show `source`, which begins with what was shown before; as plain text where rendering fails. */
  update(source) {
    this.#plain ||= source.length > MAX_CHARS;
    try {
      if (!this.#plain) this.#render(source);
    } catch {
      this.#plain = true;
    }
    if (this.#plain) this.#root.replaceChildren(el("p", { class: "plain" }, source));
  }

  #render(source) {
    const text = source.replace(/\r\n?/g, "\n");
    const lines = text.slice(this.#done).split("\n");
    const blocks = parseBlocks(lines);
    blocks.forEach((block, i) => this.#place(this.#kept + i, block));
    while (this.#nodes.length > this.#kept + blocks.length) this.#nodes.pop().remove();
    this.#settle(lines, blocks);
  }

  #place(index, block) {
    const old = this.#nodes[index];
    if (old && refreshCode(old, block)) return;
    const node = (this.#nodes[index] = renderBlock(block));
    if (old) old.replaceWith(node);
    else this.#root.append(node);
  }

  /** A block is settled once the first line of a later one is complete: until then it may still grow. */
  #settle(lines, blocks) {
    let last = blocks.length - 1;
    while (last > 0 && blocks[last].start >= lines.length - 1) last--;
    if (last < 1) return;
    const before = lines.slice(0, blocks[last].start);
    this.#done += before.reduce((sum, line) => sum + line.length + 1, 0);
    this.#kept += last;
  }
}

export function renderMarkdown(source) {
  const root = el("div", { class: "prose" });
  new MarkdownView(root).update(source);
  return root;
}

function renderBlock(block, tight = false) {
  switch (block.kind) {
    case "paragraph":
      return tight ? renderInline(block.text) : el("p", {}, renderInline(block.text));
    case "heading": // the page's own headings come first in the outline
      return el(`h${Math.min(block.level + 2, 6)}`, { class: `level-${block.level}` }, renderInline(block.text));
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", {}, block.blocks.map((part) => renderBlock(part)));
    case "list":
      return renderList(block);
    case "table":
      return renderTable(block);
    case "formula":
      return renderFormula(block);
    default:
      return renderCode(block);
  }
}

function renderFormula({ closed, text, after }) {
  if (!closed) return el("p", { class: "unclosed" }, text);
  return el("div", { class: "formula" }, formula(text, true), after ? el("span", { class: "after" }, after) : null);
}

function renderList({ ordered, number, items, loose }) {
  const list = el(ordered ? "ol" : "ul", { start: ordered && number !== 1 ? String(number) : null });
  for (const parts of items) list.append(renderItem(parts, loose));
  return list;
}

function renderItem(parts, loose) {
  const task = parts[0]?.kind === "paragraph" && /^\[([ xX])\] /.exec(parts[0].text);
  if (!task) return el("li", {}, parts.map((part) => renderBlock(part, !loose)));
  const [first, ...others] = parts;
  const box = el("input", { type: "checkbox", disabled: true, checked: task[1] !== " " });
  const rest = { ...first, text: first.text.slice(4) };
  return el("li", { class: "task" }, box, [rest, ...others].map((part) => renderBlock(part, !loose)));
}

function renderTable({ head, sides, rows }) {
  const row = (tag, cells) => el("tr", {}, cells.map((cell, i) => el(tag, { class: sides[i] }, renderInline(cell))));
  const table = el("table", {}, el("thead", {}, row("th", head)), el("tbody", {}, rows.map((cells) => row("td", cells))));
  return el("div", { class: "wide", tabindex: "0" }, table);
}

function renderCode({ language, info, text }) {
  const code = el("code", {}, colour(text, language));
  const button = el("button", { type: "button", class: "quiet copy-code" }, icon("copy"));
  const caption = say(el("span"), "copy");
  button.append(caption);
  button.addEventListener("click", async () => {
    say(caption, (await copyText(code.textContent)) ? "copied" : "copyFailed");
    setTimeout(() => say(caption, "copy"), COPIED_MS);
  });
  const bar = el("figcaption", {}, el("span", { class: "language" }, info), button);
  return el("figure", { class: "code", "data-language": language }, bar, el("pre", { tabindex: "0" }, code));
}

/** Change the code inside a figure that is already shown, so that its scroll position and button live on. */
function refreshCode(node, block) {
  if (block.kind !== "code" || !node.matches("figure.code") || node.querySelector(".language").textContent !== block.info) return false;
  const code = node.querySelector("code");
  if (code.textContent !== block.text) fill(code, colour(block.text, block.language));
  return true;
}
