// Helpers for building DOM nodes. Text is always set as text: nothing on this page parses HTML.

/** An element. A child is a node, a text, null, or an array of such of any length. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  fill(node, children);
  return node;
}

/** Make `children` all that a node holds; one by one, since a call takes only so many arguments. */
export function fill(node, children) {
  node.replaceChildren();
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child);
}

export const byId = (id) => document.getElementById(id);

const SHAPES = {
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01",
  sliders: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 13l4 4L19 7",
  again: "M19 12a7 7 0 1 1-2.1-5M19 4v4h-4",
  edit: "M5 19h3L19 8l-3-3L5 16z",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  globe: "M12 4a8 8 0 1 0 0 16 8 8 0 1 0 0-16M4 12h16M12 4c-5 5-5 11 0 16M12 4c5 5 5 11 0 16",
  down: "M12 5v14M6 13l6 6 6-6",
  fold: "M9 6l6 6-6 6",
  back: "M15 6l-6 6 6 6",
  export: "M12 4v11M7 10l5 5 5-5M5 20h14",
  undo: "M9 14L4 9l5-5M4 9h9a6 6 0 0 1 0 12h-2",
};

/** One line drawing from the list above, hidden from screen readers: its button carries the label. */
export function icon(name) {
  const SVG = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("class", `icon icon-${name}`);
  drawing.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", SHAPES[name]);
  drawing.append(path);
  return drawing;
}

/** Put drawings where the document asks for them with data-icon. */
export function drawIcons(root) {
  for (const node of root.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
}

/** Copy text; falls back to a selection where the page is not a secure context (plain HTTP on a local network). */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { class: "unseen", readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}
