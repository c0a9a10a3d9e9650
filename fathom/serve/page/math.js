// Formulas: LaTeX as MathML, which browsers lay out themselves. Until one is converted, and where it cannot be, its source is shown.
//
// Conversion happens apart from the rendering of an answer, a few milliseconds at a time, and each formula once.
import { el } from "./dom.js";
import { toMathML } from "./mathml.js";

const MAX_CHARS = 3000; // of one formula
const MAX_KEPT = 1000;
const SLICE_MS = 8;
const DEFINITIONS = /\\(?:[gex]?def|(?:future)?let|global|(?:re)?newcommand|providecommand)(?![a-zA-Z])/;
const OPTIONS = { throwOnError: true, trust: false, strict: false, maxSize: [5, 20], maxExpand: 500 };

const kept = new Map(); // key -> <math>, or null where there is only the source
const waiting = new Map(); // key -> the nodes that show it
let converter; // the promise of Temml
let working = null; // the promise of a conversion of all that waits

/** The node of a formula: its source now, mathematics as soon as it is converted. */
export function formula(source, display) {
  const node = el("span", { class: display ? "math display" : "math" }, el("code", {}, source));
  if (source.length > MAX_CHARS || DEFINITIONS.test(source)) return node; // a definition may stand for any amount of text
  const key = `${display ? "D" : "I"}${source}`;
  if (kept.has(key)) {
    show(node, key);
    return node;
  }
  if (!waiting.has(key)) waiting.set(key, new Set());
  waiting.get(key).add(node);
  working ??= convertAll().finally(() => (working = null));
  return node;
}

/** Wait until nothing waits to be converted. */
export async function settled() {
  while (working) await working;
}

async function convertAll() {
  converter ??= import("./vendor/temml.mjs").then((module) => module.default);
  const temml = await converter.catch(() => null);
  while (waiting.size) {
    const until = performance.now() + SLICE_MS;
    for (const [key, nodes] of waiting) {
      keep(key, temml && convert(temml, key));
      waiting.delete(key);
      for (const node of nodes) show(node, key);
      if (performance.now() > until) break;
    }
    await new Promise((resolve) => setTimeout(resolve));
  }
}

function convert(temml, key) {
  try {
    const math = toMathML(temml.__renderToMathMLTree(key.slice(1), { ...OPTIONS, displayMode: key[0] === "D" }));
    math?.setAttribute("data-tex", key.slice(1));
    return math;
  } catch {
    return null; // not LaTeX that Temml knows, or nested deeper than its parser goes
  }
}

function keep(key, math) {
  if (kept.size >= MAX_KEPT) kept.delete(kept.keys().next().value);
  kept.set(key, math);
}

function show(node, key) {
  const math = kept.get(key);
  if (math) node.replaceChildren(math.cloneNode(true));
}
