// The message field: Enter sends, Shift+Enter starts a line, and what is typed survives a reload and an error.
import { byId, icon } from "./dom.js";
import { name, say } from "./i18n.js";
import { Images } from "./images.js";
import { loadSetting, remember } from "./store.js";

const COMPLAINT_MS = 8000;

export class Composer {
  #input = byId("input");
  #button = byId("send");
  #complaint = byId("complaint");
  #running = false;
  #timer;
  #act;

  constructor(act) {
    this.#act = act;
    this.images = new Images((key, parameters) => this.complain(key, parameters));
    this.#input.value = loadSetting("draft", "");
    this.#input.addEventListener("input", () => this.#typed());
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    this.#input.addEventListener("paste", (event) => this.#paste(event));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) act.stop();
      else this.#send();
    });
    this.run(false);
    this.#fit();
  }

  focus() {
    this.#input.focus();
  }

  /** Say what the field is for, by the key of a sentence. */
  ask(key) {
    say(this.#input, key, {}, "i18nPlaceholder");
  }

  /** Where a keyboard would cover the page, wait for a tap. */
  focusIfTyping() {
    if (matchMedia("(hover: hover)").matches) this.focus();
  }

  /** While an answer runs, the button stops it. */
  run(running) {
    this.#running = running;
    name(this.#button, running ? "stop" : "send");
    this.#button.replaceChildren(icon(running ? "stop" : "send"));
    this.#button.classList.toggle("stop", running);
  }

  complain(key, parameters = {}) {
    say(this.#complaint, key, parameters);
    this.#complaint.hidden = false;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => (this.#complaint.hidden = true), COMPLAINT_MS);
  }

  #typed() {
    remember("draft", this.#input.value);
    this.#fit();
  }

  #fit() {
    this.#input.style.height = "auto";
    this.#input.style.height = `${this.#input.scrollHeight}px`;
  }

  /** An input method ends its own composition with Enter; that one is not ours (Safari sends it as key code 229). */
  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    if (!this.#running) this.#send();
  }

  #send() {
    const text = this.#input.value;
    const images = this.images.list;
    if (!text.trim() && images.length === 0) return this.focus();
    this.#input.value = "";
    this.images.clear();
    this.#typed();
    this.#act.say(text.trim(), images);
  }

  #paste(event) {
    const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    if (files.length === 0) return;
    event.preventDefault();
    this.images.add(files);
  }
}
