// Controls of the drawer: a number, with a slider where its range is small, and the stop sequences.
import { el, icon } from "./dom.js";
import { name, say } from "./i18n.js";

const MAX_STOPS = 16;
const MAX_STOP_CHARS = 256;

/** A number that may be left unset; `changed` is called with it, or with undefined. */
export class NumberField {
  #field;
  #range;
  #unset; // the key of what an empty field says
  #changed;
  #input;
  #slider = null;
  #reset;
  #wrong = el("small", { class: "wrong", role: "alert", hidden: true });
  #default;

  constructor(field, { slider, unset = "unset", ...range }, changed) {
    this.#unset = unset;
    this.#field = field;
    this.#range = range;
    this.#changed = changed;
    const hint = say(el("small", { id: `${field}-hint` }), `${field}Hint`);
    const label = say(el("label", { for: field }), field);
    const attributes = { ...range, step: range.step === 1 ? 1 : "any", inputmode: range.step === 1 ? "numeric" : "decimal" };
    this.#input = el("input", { id: field, type: "number", "aria-describedby": hint.id, ...attributes, input: () => this.#typed() });
    this.#reset = el("button", { type: "button", class: "quiet reset", click: () => this.#clear() }, icon("undo"));
    name(this.#reset, "resetField", { field: { key: field } });
    if (slider) {
      this.#slider = el("input", { type: "range", ...range, "aria-describedby": hint.id, input: () => this.#slid() });
      say(this.#slider, field, {}, "i18nLabel");
    }
    this.node = el("div", { class: "field" }, label, el("div", { class: "value" }, this.#reset, this.#input), this.#slider, hint, this.#wrong);
    this.setDefault(undefined);
  }

  /** What holds where nothing is set: a number, or a text by its key. */
  setDefault(value, key) {
    this.#default = typeof value === "number" ? value : undefined;
    if (this.#default === undefined) say(this.#input, key ?? this.#unset, {}, "i18nPlaceholder");
    else say(this.#input, "unsetValue", { value: this.#default }, "i18nPlaceholder");
    this.#mark();
  }

  show(value) {
    this.#input.value = value ?? "";
    this.#input.removeAttribute("aria-invalid");
    this.#wrong.hidden = true;
    this.#mark();
  }

  #typed() {
    const valid = this.#input.validity.valid;
    this.#input.setAttribute("aria-invalid", String(!valid));
    this.#wrong.hidden = valid;
    if (!valid) say(this.#wrong, "notUsed", this.#range);
    this.#changed(valid && this.#input.value !== "" ? Number(this.#input.value) : undefined);
    this.#mark();
  }

  #slid() {
    this.#input.value = this.#slider.value;
    this.#typed();
  }

  #clear() {
    this.show(undefined);
    this.#changed(undefined);
    this.#input.focus();
  }

  /** Move the slider along, and offer to reset what is set. */
  #mark() {
    const isSet = this.#input.value !== "" || !this.#input.validity.valid;
    this.#reset.hidden = !isSet;
    if (!this.#slider) return;
    this.#slider.value = this.#input.value === "" ? String(this.#default ?? this.#range.min) : this.#input.value;
    this.#slider.classList.toggle("unset", !isSet);
    const { min, max } = this.#range;
    this.#slider.style.setProperty("--at", `${(100 * (Number(this.#slider.value) - min)) / (max - min)}%`);
  }
}

/** Stop sequences, one on each line. */
export class StopField {
  list = [];
  #area;
  #wrong = el("small", { class: "wrong", role: "alert", hidden: true });

  constructor(changed) {
    const hint = say(el("small", { id: "stop-hint" }), "stopSequencesHint");
    const label = say(el("label", { for: "stop" }), "stopSequences");
    this.#area = el("textarea", { id: "stop", rows: "2", dir: "auto", spellcheck: "false", "aria-describedby": hint.id });
    this.#area.addEventListener("input", () => {
      this.#read();
      changed(this.#area.value);
    });
    this.node = el("div", { class: "field" }, label, this.#area, hint, this.#wrong);
  }

  show(text) {
    this.#area.value = text;
    this.#read();
  }

  #read() {
    const lines = this.#area.value.split("\n").map((line) => line.replaceAll("\\n", "\n")).filter(Boolean);
    const valid = lines.length <= MAX_STOPS && lines.every((line) => line.length <= MAX_STOP_CHARS);
    this.list = valid ? lines : [];
    this.#area.setAttribute("aria-invalid", String(!valid));
    this.#wrong.hidden = valid;
    if (!valid) say(this.#wrong, "stopNotUsed");
  }
}
