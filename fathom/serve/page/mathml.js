// From Temml's tree to nodes of the page: known elements, attributes and lengths alone; everything else is left out.
//
// What a formula says comes from a model. It may not carry links, colours or code, cover what is beside it, or nest
// deeper than a browser lays out.

const NAMESPACE = "http://www.w3.org/1998/Math/MathML";
const MAX_NODES = 5000;
const MAX_DEPTH = 60;
const MAX_EM = 20;

const words = (list) => new Set(list.split(" "));
const ELEMENTS = words(
  "math mrow mi mn mo ms mtext mspace msup msub msubsup munder mover munderover mmultiscripts mprescripts none mfrac msqrt mroot " +
    "mtable mtr mtd mpadded mphantom menclose mstyle",
);
const CLASSES = words(
  "tml-right tml-left tml-jot tml-small tml-overline tml-underline tml-cancel upstrike downstrike tml-xcancel sout tml-fbox tml-vec " +
    "tml-sml-pad tml-med-pad tml-lrg-pad chr-sml chr-med chr-lrg chr-sml-vec chr-med-vec chr-lrg-vec tml-hat-1 tml-hat-2 tml-hat-3 " +
    "tml-hat-4 tml-tilde-2 tml-tilde-3 tml-tilde-4 mathcal",
);
const LENGTH = /^([+-]?(?:\d+\.?\d*|\.\d+))(em|ex|pt|px|mu|%)?$/;
const EM = { em: 1, ex: 0.5, pt: 0.1, px: 0.0625, mu: 0.06, "%": 0.01 };

/** Whether a value is a length that keeps a formula near its place. */
function isLength(value) {
  const [, number, unit] = LENGTH.exec(value) ?? [];
  const ems = Number(number) * (EM[unit] ?? 1);
  return ems >= -2 && ems <= MAX_EM; // false for no number
}

const among = (...values) => (value) => values.includes(value);
const FLAG = among("true", "false");
const ATTRIBUTES = {
  display: among("block"),
  form: among("prefix", "infix", "postfix"),
  mathvariant: among("normal"),
  scriptlevel: (value) => /^[+-]?[0-3]$/.test(value),
  columnspan: (value) => /^\d{1,2}$/.test(value),
};
for (const name of words("displaystyle stretchy fence separator symmetric largeop movablelimits accent accentunder")) ATTRIBUTES[name] = FLAG;
for (const name of words("lspace rspace width height depth voffset minsize maxsize linethickness")) ATTRIBUTES[name] = isLength;

const isLengths = (value) => value.split(" ").every(isLength);
const STYLES = {
  padding: isLengths,
  border: (value) => /^\d(?:\.\d+)?(?:px|em) solid$/.test(value),
  width: isLength,
  "math-depth": among("0", "1", "2"),
  "font-weight": among("bold"),
};
for (const side of ["left", "right", "top", "bottom"]) {
  STYLES[`padding-${side}`] = isLength;
  STYLES[`border-${side}`] = STYLES.border;
}
const hyphenated = (name) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

/** The node of a tree from Temml; null where it is larger or deeper than a formula is, or shows nothing. */
export function toMathML(tree) {
  const budget = { left: MAX_NODES };
  const found = convert(tree, 0, budget);
  return budget.left > 0 && found instanceof Element && found.textContent.trim() ? found : null;
}

/** A node; a list of nodes stands for an element that is not among the known ones. */
function convert(item, depth, budget) {
  budget.left -= depth > MAX_DEPTH ? Infinity : 1;
  if (budget.left <= 0) return [];
  if (typeof item.text === "string") return document.createTextNode(item.text);
  const children = (item.children ?? []).map((child) => convert(child, depth + 1, budget)).flat();
  if (!ELEMENTS.has(item.type)) return children;
  const node = document.createElementNS(NAMESPACE, item.type);
  for (const [name, value] of Object.entries(item.attributes ?? {})) {
    if (Object.hasOwn(ATTRIBUTES, name) && ATTRIBUTES[name](String(value))) node.setAttribute(name, String(value));
  }
  const classes = (item.classes ?? []).flatMap((each) => each.split(" ")).filter((each) => CLASSES.has(each));
  if (classes.length) node.setAttribute("class", classes.join(" "));
  for (const [name, value] of Object.entries(item.style ?? {})) {
    const property = hyphenated(name);
    if (Object.hasOwn(STYLES, property) && STYLES[property](String(value))) node.style.setProperty(property, String(value));
  }
  for (const child of children) node.append(child);
  return node;
}
