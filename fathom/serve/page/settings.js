// The drawer of sampling controls. What is not set is left to the server, whose defaults are shown.
import { byId } from "./dom.js";
import { NumberField, StopField } from "./fields.js";
import { loadSetting, remember } from "./store.js";

const FIELDS = {
  temperature: { min: 0, max: 2, step: 0.05, slider: true },
  top_p: { min: 0.01, max: 1, step: 0.01, slider: true },
  min_p: { min: 0, max: 1, step: 0.01, slider: true },
  top_k: { min: 0, max: 100000, step: 1 },
  repetition_penalty: { min: 0.5, max: 2, step: 0.05, slider: true },
  max_tokens: { min: 1, max: 16777216, step: 1 },
  seed: { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, unset: "unsetSeed" },
  thinking_budget: { min: 0, max: 16777216, step: 1, unset: "unsetBudget" },
};
const EMPTY = { system: "", thinking: "auto", stop: "" };
const THINKING = ["auto", "on", "off"];

/** Stored settings, those that this page could have made. */
function checked({ system, thinking, stop, ...stored }) {
  const values = { ...EMPTY };
  if (typeof system === "string") values.system = system;
  if (typeof stop === "string") values.stop = stop;
  if (THINKING.includes(thinking)) values.thinking = thinking;
  for (const [field, { min, max }] of Object.entries(FIELDS)) {
    if (typeof stored[field] === "number" && stored[field] >= min && stored[field] <= max) values[field] = stored[field];
  }
  return values;
}

export class Settings {
  #values = checked(loadSetting("settings", {}));
  #fields = new Map();
  #stop;
  #system = byId("system");
  #thinking = byId("thinking-choice");
  #canThink = false;

  constructor() {
    for (const [field, range] of Object.entries(FIELDS)) {
      const row = new NumberField(field, range, (value) => this.#set(field, value));
      this.#fields.set(field, row);
      byId(field === "thinking_budget" ? "thinking-fields" : "fields").append(row.node);
    }
    this.#stop = new StopField((text) => this.#set("stop", text));
    this.#fields.get("seed").node.before(this.#stop.node);
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

  /** Show the controls that the model has a use for, and what it does where they are not set. */
  allow({ thinking, system, limit, defaults = {} }) {
    this.#canThink = thinking;
    byId("thinking-fields").hidden = !thinking;
    byId("system-field").hidden = !system;
    for (const [field, row] of this.#fields) row.setDefault(defaults[field]);
    this.#fields.get("max_tokens").setDefault(undefined, system && limit ? "unsetAll" : undefined);
  }

  /** What the request carries beside the messages. */
  request() {
    const asked = {};
    for (const field of Object.keys(FIELDS)) {
      const isUsed = field !== "thinking_budget" || (this.#canThink && this.#values.thinking !== "off");
      if (isUsed && typeof this.#values[field] === "number") asked[field] = this.#values[field];
    }
    if (this.#stop.list.length) asked.stop = this.#stop.list;
    if (this.#canThink && this.#values.thinking !== "auto") {
      asked.thinking = { type: this.#values.thinking === "on" ? "enabled" : "disabled" };
    }
    return asked;
  }

  #set(field, value) {
    this.#values[field] = value;
    remember("settings", this.#values);
  }

  #show() {
    this.#system.value = this.#values.system;
    this.#thinking.value = this.#values.thinking;
    this.#stop.show(this.#values.stop);
    for (const [field, row] of this.#fields) row.show(this.#values[field]);
  }
}
