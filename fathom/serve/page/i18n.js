// The page's language: functions that put texts, numbers and sizes into nodes. The texts are in i18n-en.js and i18n-zh.js.
import { ENGLISH } from "./i18n-en.js";
import { CHINESE } from "./i18n-zh.js";

export const LANGUAGES = { en: ENGLISH, zh: CHINESE };
const TAGS = { en: "en", zh: "zh-CN" };
const PLACES = { i18n: "textContent", i18nLabel: "aria-label", i18nTitle: "title", i18nPlaceholder: "placeholder", i18nAlt: "alt" };

let current = "en";
const values = new WeakMap(); // node -> what its sentence's braces stand for

export const language = () => current;

/** The language to begin with: the one chosen here before, else the browser's. */
export function preferredLanguage(chosen, browser) {
  if (Object.hasOwn(LANGUAGES, chosen)) return chosen;
  return browser.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export function t(key, parameters = {}) {
  return LANGUAGES[current][key].replace(/\{(\w+)\}/g, (_, name) => parameters[name] ?? "");
}

/** Give a node a text that follows the language; `place` is one of i18n, i18nLabel, i18nTitle, i18nPlaceholder, i18nAlt. */
export function say(node, key, parameters = {}, place = "i18n") {
  node.dataset[place] = key;
  values.set(node, { ...values.get(node), ...parameters });
  put(node, place);
  return node;
}

/** Label a control for screen readers and as a tooltip. */
export function name(node, key, parameters = {}) {
  return say(say(node, key, parameters, "i18nLabel"), key, parameters, "i18nTitle");
}

export function setLanguage(next, root = document) {
  current = next;
  document.documentElement.lang = TAGS[next];
  for (const place of Object.keys(PLACES)) {
    const selector = `[data-${place.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}]`;
    for (const node of root.querySelectorAll(selector)) put(node, place);
  }
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(TAGS[current], { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

/** A count as Fathom's commands write it: 950, 12.3k, 4.56M. */
export function amount(value) {
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${Number((value / size).toPrecision(3))}${letter}`;
  }
  return number(value);
}

/** A size: 27648 -> "27.6 kB". */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  let [value, unit] = [count, 0];
  for (; value >= 1000 && unit < units.length - 1; unit++) value /= 1000;
  return `${number(value, value < 100 && unit > 0 && value % 1 ? 1 : 0)} ${units[unit]}`;
}

function put(node, place) {
  const sentence = t(node.dataset[place], translated(values.get(node)));
  if (place === "i18n") {
    if (node.textContent !== sentence) node.textContent = sentence;
  } else node.setAttribute(PLACES[place], sentence);
}

/** Parameters that are themselves sentences are given as {key}. */
function translated(parameters = {}) {
  return Object.fromEntries(Object.entries(parameters).map(([name, value]) => [name, value?.key ? t(value.key) : value]));
}
