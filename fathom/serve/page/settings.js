// The drawer of sampling controls. An empty field is left to the server's default.
import { byId, el } from "./dom.js";
import { say } from "./i18n.js";
import { loadSetting, remember } from "./store.js";

const FIELDS = {
  temperature: { min: 0, max: 2, step: 0.1 },
  top_p: { min: 0.01, max: 1, step: 0.05 },
  top_k: { min: 0, max: 100000, step: 1 },
  min_p: { min: 0, max: 1, step: 0.01 },
  max_tokens: { min: 1, max: 16777216, step: 1 },
  seed: { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
  thinking_budget: { min: 0, max: 16777216, step: 1 },
};
const EMPTY = { system: "", thinking: "auto" };

const THINKING = ["auto", "on", "off"];

/** Stored settings, those that this page could have made. */
function checked({ system, thinking, ...stored }) {
  const values = { ...EMPTY };
  if (typeof system === "string") values.system = system;
  if (THINKING.includes(thinking)) values.thinking = thinking;
  for (const [field, { min, max }] of Object.entries(FIELDS)) {
    if (typeof stored[field] === "number" && stored[field] >= min && stored[field] <= max) values[field] = stored[field];
  }
  return values;
}

export class Settings {
  #values = checked(loadSetting("settings", {}));
  #inputs = new Map();
  #system = byId("system");
  #thinking = byId("thinking-choice");
  #canThink = false;

  constructor() {
    for (const [field, range] of Object.entries(FIELDS)) {
      byId(field === "thinking_budget" ? "thinking-fields" : "fields").append(this.#row(field, range));
    }
    this.#system.addEventListener("input", () => this.#set("system", this.#system.value));
    this.#thinking.addEventListener("change", () => this.#set("thinking", this.#thinking.value));
    byId("reset").addEventListener("click", () => {
      this.#values = { ...EMPTY };
      remember("settings", this.#values);
      this.#show();
    });
    this.#show();
  }

  get system() {
    return this.#values.system;
  }

  /** Show the controls that the model has a use for. */
  allow({ thinking, system }) {
    this.#canThink = thinking;
    byId("thinking-fields").hidden = !thinking;
    byId("system-field").hidden = !system;
  }

  /** What the request carries beside the messages. */
  request() {
    const asked = {};
    for (const field of Object.keys(FIELDS)) {
      const isUsed = field !== "thinking_budget" || (this.#canThink && this.#values.thinking !== "off");
      if (isUsed && typeof this.#values[field] === "number") asked[field] = this.#values[field];
    }
    if (this.#canThink && this.#values.thinking !== "auto") {
      asked.thinking = { type: this.#values.thinking === "on" ? "enabled" : "disabled" };
    }
    return asked;
  }

  #row(field, range) {
    const hint = say(el("small", { id: `${field}-hint` }), `${field}Hint`);
    const wrong = el("small", { class: "wrong", role: "alert", hidden: true });
    const attributes = { ...range, step: Number.isInteger(range.step) ? 1 : "any" };
    const input = el("input", { id: field, type: "number", inputmode: "decimal", "aria-describedby": hint.id, ...attributes });
    say(input, "unset", {}, "i18nPlaceholder");
    input.addEventListener("input", () => {
      const valid = input.validity.valid;
      input.setAttribute("aria-invalid", String(!valid));
      wrong.hidden = valid;
      if (!valid) say(wrong, "notUsed", range);
      this.#set(field, valid && input.value !== "" ? Number(input.value) : undefined);
    });
    this.#inputs.set(field, { input, wrong });
    const label = say(el("label", { for: field }), field);
    return el("div", { class: "field" }, label, input, hint, wrong);
  }

  #set(field, value) {
    this.#values[field] = value;
    remember("settings", this.#values);
  }

  #show() {
    this.#system.value = this.#values.system;
    this.#thinking.value = this.#values.thinking;
    for (const [field, { input, wrong }] of this.#inputs) {
      input.value = this.#values[field] ?? "";
      input.removeAttribute("aria-invalid");
      wrong.hidden = true;
    }
  }
}
