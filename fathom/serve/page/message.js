// One turn on the page: the user's with its images and editor, or an answer with thinking, notes, errors and figures.
import { canContinue, speed } from "./answer.js";
import { versionsOf } from "./conversation.js";
import { copyText, el, icon } from "./dom.js";
import { amount, name, number, say } from "./i18n.js";
import { MarkdownView } from "./markdown.js";

const COPIED_MS = 1500;
const NOTES = { stopped: "stopped", length: "atLength", tool_calls: "calledTool", interrupted: "interrupted" };
const seconds = (ms) => number(ms / 1000, ms < 10_000 ? 1 : 0);

function action(drawing, key, onClick) {
  return name(el("button", { type: "button", class: "quiet", click: onClick }, icon(drawing)), key);
}

/** A button that copies what `text` returns, and says for a moment whether it did. */
function copyButton(text) {
  const button = action("copy", "copy", async () => {
    const key = (await copyText(text())) ? "copied" : "copyFailed";
    button.replaceChildren(icon(key === "copied" ? "check" : "close"));
    name(button, key);
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      name(button, "copy");
    }, COPIED_MS);
  });
  return button;
}

/** Which version of a message is shown, and buttons for the one before and after; null where there is one. */
function versionSwitch(message, handlers) {
  const { count, shown } = versionsOf(message);
  if (count < 2) return null;
  const step = (drawing, key, by) => {
    const button = action(drawing, key, () => handlers.showVersion(message, shown + by));
    button.dataset.step = String(by);
    button.disabled = shown + by < 0 || shown + by >= count;
    return button;
  };
  const text = el("span", { "aria-hidden": "true" }, `${number(shown + 1)} / ${number(count)}`);
  const group = el("div", { class: "versions", role: "group" }, step("back", "previousVersion", -1), text, step("fold", "nextVersion", 1));
  return say(group, "versionOf", { shown: number(shown + 1), count: number(count) }, "i18nLabel");
}

export class UserView {
  #message;
  #handlers;

  constructor(message, handlers) {
    this.#message = message;
    this.#handlers = handlers;
    this.node = el("article", { class: "turn user" });
    this.#read();
  }

  #read() {
    const { content, images = [] } = this.#message;
    const pictures = images.map(({ url }, i) => say(el("img", { src: url }), "imageAlt", { number: i + 1 }, "i18nAlt"));
    this.node.replaceChildren(
      say(el("h2", { class: "unseen" }), "you"),
      el("div", { class: "bubble" }, pictures.length ? el("div", { class: "pictures" }, ...pictures) : null, content),
      el("div", { class: "actions" }, versionSwitch(this.#message, this.#handlers), copyButton(() => content), action("edit", "edit", () => this.edit())),
    );
  }

  edit() {
    const field = say(el("textarea", { class: "editor", rows: "3", dir: "auto" }), "editMessage", {}, "i18nLabel");
    field.value = this.#message.content;
    const cancel = () => {
      this.#read();
      this.node.querySelector(".actions > button:last-child").focus();
    };
    const send = (event) => {
      event?.preventDefault();
      if (field.value.trim() || this.#message.images?.length) this.#handlers.resend(this.#message, field.value);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
      if (event.key === "Escape" && !event.isComposing) {
        event.stopPropagation();
        cancel();
      }
    });
    const buttons = el(
      "div",
      { class: "choices" },
      say(el("button", { type: "button", click: cancel }), "cancel"),
      say(el("button", { type: "submit", class: "main" }), "resend"),
    );
    this.node.replaceChildren(say(el("h2", { class: "unseen" }), "you"), el("form", { submit: send }, field, buttons));
    field.focus();
  }
}

export class AnswerView {
  #message;
  #handlers;
  #prose = el("div", { class: "prose", dir: "auto" });
  #thoughts = el("div", { class: "prose", dir: "auto" });
  #summary = el("span");
  #fold = el("details", { class: "thinking", hidden: true });
  #note = el("div", { class: "note" });
  #figures = el("span", { class: "figures" });
  #body = new MarkdownView(this.#prose);
  #thinkingBody = new MarkdownView(this.#thoughts);
  #actions;
  #countdown;
  #waitingMs = null;

  constructor(message, handlers) {
    this.#message = message;
    this.#handlers = handlers;
    this.#fold.append(el("summary", {}, icon("fold"), this.#summary), this.#thoughts);
    this.#fold.addEventListener("toggle", () => this.#think());
    this.#actions = [copyButton(() => message.content), action("again", "regenerate", () => handlers.regenerate(message))];
    const foot = el("div", { class: "actions" }, versionSwitch(message, handlers), ...this.#actions, this.#figures);
    const heading = say(el("h2", { class: "unseen" }), "assistant");
    this.node = el("article", { class: "turn answer" }, heading, this.#fold, this.#prose, this.#note, foot);
  }

  /** Render the message; `waitingMs` is the time since the request while it streams, else null. */
  update(waitingMs = null) {
    const streaming = waitingMs !== null;
    this.node.classList.toggle("streaming", streaming);
    this.node.setAttribute("aria-busy", String(streaming));
    for (const button of this.#actions) button.hidden = streaming;
    this.#actions[0].hidden ||= !this.#message.content;
    this.#actions[1].hidden ||= Boolean(this.#message.error);
    this.#waitingMs = waitingMs;
    this.#body.update(this.#message.content);
    this.#think();
    this.#measure();
    if (!streaming) this.#conclude();
  }

  #think() {
    const { thinking, thinkingMs, firstMs, elapsedMs } = this.#message;
    this.#fold.hidden = !thinking;
    if (!thinking) return;
    const live = thinkingMs === undefined && this.#waitingMs !== null;
    if (live) say(this.#summary, "thinking", { seconds: number(Math.max(0, this.#waitingMs - firstMs) / 1000) });
    else say(this.#summary, "thought", { seconds: seconds(thinkingMs ?? elapsedMs - firstMs) });
    this.#fold.classList.toggle("live", live);
    if (this.#fold.open) this.#thinkingBody.update(thinking);
  }

  #measure() {
    const { firstMs, tokens, usage } = this.#message;
    const parts = [];
    const add = (key, values) => parts.push(say(el("span"), key, values));
    if (firstMs === undefined && this.#waitingMs !== null) add("waiting", { seconds: number(this.#waitingMs / 1000) });
    const rate = speed(this.#message);
    if (rate !== null) add("speed", { rate: number(rate, rate < 100 ? 1 : 0) });
    if (firstMs !== undefined) add("first", { seconds: number(firstMs / 1000, 2) });
    if (tokens) add("tokens", { tokens: amount(tokens) });
    const cached = usage?.prompt_tokens_details?.cached_tokens;
    if (cached) add("reused", { cached: amount(cached), prompt: amount(usage.prompt_tokens) });
    this.#figures.replaceChildren(...parts);
  }

  #conclude() {
    const { error, finish } = this.#message;
    if (error) return this.#fail(error);
    if (this.#handlers.isFull(this.#message)) return this.#note.replaceChildren(el("div", { class: "last-only" }, say(el("p"), "contextFull"), this.#handlers.waysToRoom()));
    const note = Object.hasOwn(NOTES, finish ?? "interrupted") && NOTES[finish ?? "interrupted"];
    this.#note.replaceChildren(...(note ? [say(el("p"), note)] : []), ...this.#goOn());
  }

  #goOn() {
    if (!canContinue(this.#message)) return [];
    return [say(el("button", { type: "button", class: "last-only", click: () => this.#handlers.goOn(this.#message) }), "goOn")];
  }

  #fail({ kind, detail, retryAt }) {
    const regenerate = () => this.#handlers.regenerate(this.#message);
    const retry = el("button", { type: "button", class: kind === "Context" ? null : "main", click: regenerate });
    const sentence = say(el("p"), `error${kind}`);
    const own = detail ? el("p", { class: "detail" }, detail) : null;
    const ways = kind === "Context" ? this.#handlers.waysToRoom() : null;
    this.#note.replaceChildren(el("div", { class: "failure", role: "alert" }, sentence, own, ways, retry, ...this.#goOn()));
    const tick = () => {
      const left = Math.ceil((retryAt - Date.now()) / 1000);
      retry.disabled = left > 0;
      if (left > 0) say(retry, "retryIn", { seconds: left });
      else {
        clearInterval(this.#countdown);
        say(retry, "retry");
      }
    };
    clearInterval(this.#countdown);
    this.#countdown = setInterval(tick, 250);
    tick();
  }
}
