// The message field: Enter sends, Shift+Enter starts a line, and what is typed survives a reload and an error.
import { byId, icon } from "./dom.js";
import { name, say } from "./i18n.js";
import { Images } from "./images.js";
import { loadSetting, remember } from "./store.js";

const ERROR_MS = 12_000;

export class Composer {
  #input = byId("input");
  #button = byId("send");
  #error = byId("composer-error");
  #running = false;
  #timer;
  #handlers;

  constructor(handlers) {
    this.#handlers = handlers;
    this.images = new Images((key, parameters) => this.showError(key, parameters));
    this.#input.value = loadSetting("draft", "");
    this.#input.addEventListener("input", () => this.#typed());
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    this.#input.addEventListener("paste", (event) => this.#paste(event));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) handlers.stop();
      else this.#send();
    });
    this.run(false);
    this.#fit();
  }

  focus() {
    this.#input.focus();
  }

  /** Set the placeholder, by the key of its text. */
  setPlaceholder(key) {
    say(this.#input, key, {}, "i18nPlaceholder");
  }

  /** Not on touch screens, where the on-screen keyboard would cover the page. */
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

  showError(key, parameters = {}) {
    this.#say("wrong", key, parameters);
  }

  showNotice(key, parameters = {}) {
    this.#say("notice", key, parameters);
  }

  #say(kind, key, parameters) {
    this.#error.className = kind;
    say(this.#error, key, parameters);
    this.#error.hidden = false;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => (this.#error.hidden = true), ERROR_MS);
  }

  #typed() {
    remember("draft", this.#input.value);
    this.#fit();
  }

  #fit() {
    this.#input.style.height = "auto";
    this.#input.style.height = `${this.#input.scrollHeight}px`;
  }

  /** An input method ends its own composition with Enter; that one must not send (Safari sends it as key code 229). */
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
    this.#handlers.sendMessage(text.trim(), images);
  }

  #paste(event) {
    const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    if (files.length === 0) return;
    event.preventDefault();
    this.images.add(files);
  }
}
