// Markdown blocks from lines: the parts of CommonMark and its tables that models write.
//
// Where the standard and what chat models mean differ, the latter wins: a line of dashes is always a rule (no underlined
// headings), two spaces nest a list item, and HTML is text.

const MAX_DEPTH = 16;
const MAX_COLUMNS = 200; // a wider table stays text
const MAX_LANGUAGE = 40;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])([ \t]+(?=\S)|[ \t]*$)/;
const ENVIRONMENT = /^\\begin\{((?:equation|align|alignat|gather|multline|eqnarray|aligned|gathered|split|cases|array|[pbvBV]?matrix)\*?)\}/;
const FORMULAS = { "\\[": "\\]", $$: "$$" };
const AFTER_FORMULA = /^[\s.,;:!?。，；：！？]*$/;

const blank = (line) => line.trim() === "";

/** Columns of white space before the text; a tab counts as four. */
function indent(line) {
  let columns = 0;
  for (const mark of line) {
    if (mark === " ") columns += 1;
    else if (mark === "\t") columns += 4;
    else break;
  }
  return columns;
}

function dedent(line, columns) {
  let at = 0;
  for (let left = columns; left > 0 && (line[at] === " " || line[at] === "\t"); at++) left -= line[at] === "\t" ? 4 : 1;
  return line.slice(at);
}

/** Return the blocks of `lines`; each knows the line it starts at. */
export function parseBlocks(lines, depth = 0) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (blank(lines[at])) {
      at += 1;
      continue;
    }
    const [block, next] = (depth < MAX_DEPTH && special(lines, at, depth)) || paragraph(lines, at, depth);
    blocks.push({ ...block, start: at });
    at = next;
  }
  return blocks;
}

function special(lines, at, depth) {
  return (
    fence(lines, at) ||
    formula(lines, at) ||
    heading(lines, at) ||
    (RULE.test(lines[at]) && [{ kind: "rule" }, at + 1]) ||
    quote(lines, at, depth) ||
    list(lines, at, depth) ||
    table(lines, at) ||
    indented(lines, at, depth)
  );
}

function fence(lines, at) {
  const mark = opensFence(lines[at]);
  if (!mark) return null;
  const margin = indent(lines[at]);
  const info = lines[at].trim().slice(mark.length).trim();
  const [language] = info.slice(0, MAX_LANGUAGE).split(/\s/);
  const body = [];
  let next = at + 1;
  for (; next < lines.length; next++) {
    const trimmed = lines[next].trim();
    const closes = trimmed.length >= mark.length && trimmed === mark[0].repeat(trimmed.length) && indent(lines[next]) < 4;
    if (closes) return [{ kind: "code", language, info, text: body.join("\n") }, next + 1];
    body.push(dedent(lines[next], margin));
  }
  return [{ kind: "code", language, info, text: body.join("\n") }, next];
}

/** The mark of a fence that begins in a line; null where a backtick follows it, which makes it code in a line. */
function opensFence(line) {
  const found = FENCE.exec(line);
  return found && !line.includes("`", found[0].length) ? found[1] : null;
}

/** A formula in lines of its own: between marks, or an environment of LaTeX. It may be open still while it streams in. */
function formula(lines, at) {
  const first = lines[at].trim();
  const environment = first.startsWith("\\begin") && ENVIRONMENT.exec(first);
  const open = environment ? environment[0] : Object.keys(FORMULAS).find((mark) => first.startsWith(mark));
  if (!open) return null;
  const close = environment ? `\\end{${environment[1]}}` : FORMULAS[open];
  if (!environment && first.includes(close, open.length)) return null;
  let next = at;
  while (next < lines.length && !lines[next].includes(close, next === at ? open.length : 0)) next++;
  const body = [first, ...lines.slice(at + 1, next + 1)];
  if (next >= lines.length) return [{ kind: "formula", closed: false, text: body.join("\n") }, next];
  const last = body.pop();
  const end = last.indexOf(close, next === at ? open.length : 0);
  const after = last.slice(end + close.length);
  if (!AFTER_FORMULA.test(after)) return null;
  const whole = [...body, last.slice(0, end)].join("\n");
  const text = environment ? whole + close : whole.slice(open.length);
  return [{ kind: "formula", closed: true, text: text.trim(), after: after.trim() }, next + 1];
}

function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  let text = lines[at].trim().slice(found[1].length).trim();
  let end = text.length;
  while (end > 0 && text[end - 1] === "#") end--;
  if (end === 0 || text[end - 1] === " ") text = text.slice(0, end).trim();
  return [{ kind: "heading", level: found[1].length, text }, at + 1];
}

function quote(lines, at, depth) {
  if (!QUOTE.test(lines[at])) return null;
  const body = [];
  let next = at;
  for (; next < lines.length; next++) {
    if (QUOTE.test(lines[next])) body.push(lines[next].replace(QUOTE, ""));
    else if (!blank(lines[next]) && !blank(body.at(-1)) && !starts(lines, next, depth)) body.push(lines[next]);
    else break;
  }
  return [{ kind: "quote", blocks: parseBlocks(body, depth + 1) }, next];
}

function marker(line, depth) {
  const found = ITEM.exec(line);
  if (!found || (depth === 0 && indent(line) > 3) || RULE.test(line)) return null;
  const [, space, mark, gap] = found;
  const before = indent(space);
  const after = line.slice(space.length + mark.length);
  const inner = blank(after) || gap.length > 4 ? 1 : indent(gap);
  const numbers = { ordered: /\d/.test(mark), number: parseInt(mark, 10), type: mark.at(-1) };
  return { before, inner: before + mark.length + inner, text: dedent(after, inner), ...numbers };
}

function list(lines, at, depth) {
  const first = marker(lines[at], depth);
  if (!first) return null;
  const items = [];
  let next = at;
  let loose = false;
  while (next < lines.length) {
    const own = marker(lines[next], depth);
    if (!own || own.type !== first.type || own.before >= first.before + 2) break;
    const body = [own.text];
    next = gather(lines, next + 1, own, body, depth);
    const parts = parseBlocks(trimmed(body), depth + 1);
    const gaps = body.length > trimmed(body).length && next < lines.length && marker(lines[next], depth)?.type === first.type;
    loose ||= gaps || parts.slice(1).some((part) => blank(body[part.start - 1]));
    items.push(parts);
  }
  return [{ kind: "list", ordered: first.ordered, number: first.number, items, loose }, next];
}

/** Add to `body` the lines that belong to an item; return the first that does not. */
function gather(lines, from, own, body, depth) {
  const margin = Math.min(own.inner, own.before + 2);
  let next = from;
  for (; next < lines.length; next++) {
    const line = lines[next];
    if (blank(line)) body.push("");
    else if (indent(line) >= margin) body.push(dedent(line, own.inner));
    else if (!blank(body.at(-1)) && !marker(line, 1) && !starts(lines, next, depth)) body.push(line);
    else break;
  }
  return next;
}

function trimmed(body) {
  let end = body.length;
  while (end > 0 && blank(body[end - 1])) end--;
  return body.slice(0, end);
}

function cells(line) {
  const bare = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return bare.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, at) {
  const rule = lines[at + 1];
  if (!lines[at].includes("|") || !rule || !rule.includes("-")) return null;
  const [head, marks] = [cells(lines[at]), cells(rule)];
  if (head.length > MAX_COLUMNS || head.length !== marks.length || !marks.every((mark) => /^:?-+:?$/.test(mark))) return null;
  if (marks.length === 1 && !rule.includes("|")) return null;
  const sides = marks.map((m) => (m.endsWith(":") ? (m.startsWith(":") ? "center" : "right") : "left"));
  const rows = [];
  let next = at + 2;
  for (; next < lines.length && !blank(lines[next]) && lines[next].includes("|"); next++) {
    const row = cells(lines[next]);
    if (row.length > head.length) row.push(row.splice(head.length - 1).join(" | ")); // the last column has the rest
    const missing = 2 * row.length < head.length ? 0 : head.length - row.length; // a row far too short stays so
    rows.push([...row, ...Array(missing).fill("")]);
  }
  return [{ kind: "table", head, sides, rows }, next];
}

function indented(lines, at, depth) {
  if (depth > 0 || indent(lines[at]) < 4) return null;
  let next = at;
  const body = [];
  while (next < lines.length && (blank(lines[next]) || indent(lines[next]) >= 4)) body.push(dedent(lines[next++], 4));
  return [{ kind: "code", language: "", info: "", text: trimmed(body).join("\n") }, next];
}

/** Whether a line begins a block that may stand right under a paragraph. */
function starts(lines, at, depth) {
  if (depth >= MAX_DEPTH) return false;
  const line = lines[at];
  const item = marker(line, depth);
  const interrupts = item && !blank(item.text) && (!item.ordered || item.number === 1);
  return Boolean(
    opensFence(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || interrupts || formula(lines, at) || table(lines, at),
  );
}

function paragraph(lines, at, depth) {
  let next = at + 1;
  while (next < lines.length && !blank(lines[next]) && !starts(lines, next, depth)) next++;
  const text = lines.slice(at, next).map((line) => line.trimStart()).join("\n").trimEnd();
  return [{ kind: "paragraph", text }, next];
}
