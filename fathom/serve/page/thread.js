// The conversation on the page: its turns, auto-scroll while the reader is at the end, and the empty state.
import { byId, el } from "./dom.js";
import { say } from "./i18n.js";
import { MarkdownView } from "./markdown.js";
import { AnswerView, UserView } from "./message.js";

const NEAR_END = 64;
const NEUTRAL = { chat: ["question1", "question2", "question3"], completion: ["start1", "start2", "start3"] };

export class Thread {
  #scroller = byId("thread");
  #turns = byId("turns");
  #empty = byId("empty");
  #jump = byId("jump");
  #views = new Map();
  #summary = byId("summary");
  #summaryBody = null;
  #handlers;
  #following = true;

  constructor(handlers) {
    this.#handlers = handlers;
    this.#scroller.addEventListener("scroll", () => this.#updateFollowing(), { passive: true });
    this.#jump.addEventListener("click", () => this.follow());
    new ResizeObserver(() => this.#scrollToEnd()).observe(this.#turns);
    new ResizeObserver(() => this.#scrollToEnd()).observe(this.#scroller);
  }

  /** Offer prompts of the model's own, or neutral ones where it has none. */
  suggest({ kind = "chat", prompts = [] } = {}) {
    const button = (text) => el("button", { type: "button", click: ({ target }) => this.#handlers.sendMessage(text ?? target.textContent) });
    const own = prompts.map(({ label, text }) => Object.assign(button(text), { textContent: label }));
    const shown = own.length ? own : NEUTRAL[kind].map((key) => say(button(), key));
    byId("suggestions").replaceChildren(...shown.map((each) => el("li", {}, each)));
    byId("continues").hidden = kind !== "completion";
  }

  /** Show a conversation; at its end, or at `place`, one of its messages whose version was changed. */
  show({ messages, summary }, place = null) {
    const pressed = document.activeElement?.dataset?.step;
    this.#views.clear();
    this.#turns.replaceChildren();
    this.#summaryBody = null;
    this.showSummary(summary);
    for (const message of messages) this.add(message).update?.(null);
    this.#markUnsent(messages);
    this.#empty.hidden = messages.length > 0 || Boolean(summary);
    if (!place) return this.follow();
    this.#following = false;
    const { node } = this.#views.get(place);
    node.scrollIntoView({ block: "nearest" });
    (node.querySelector(`[data-step="${pressed}"]:enabled`) ?? node.querySelector("[data-step]:enabled"))?.focus({ preventScroll: true });
  }

  /** What an earlier conversation came to, above the turns. */
  showSummary(text) {
    this.#summary.hidden = text === undefined;
    if (text === undefined) return;
    if (!this.#summaryBody) {
      const prose = el("div", { class: "prose", dir: "auto" });
      this.#summary.replaceChildren(say(el("summary"), "summary"), prose);
      this.#summaryBody = new MarkdownView(prose);
    }
    this.#empty.hidden = true;
    this.#summaryBody.update(text);
    this.#scrollToEnd();
  }

  add(message) {
    const view = message.role === "user" ? new UserView(message, this.#handlers) : new AnswerView(message, this.#handlers);
    this.#views.set(message, view);
    this.#turns.append(view.node);
    this.#empty.hidden = true;
    return view;
  }

  /** A line above the first turn that the model is still given, where the earlier ones are left out. */
  #markUnsent(messages) {
    const first = messages.findLast((message) => message.first);
    if (!first) return;
    const { node } = this.#views.get(first);
    for (let before = node.previousElementSibling; before; before = before.previousElementSibling) before.classList.add("unsent");
    const again = say(el("button", { type: "button", class: "text", click: () => this.#handlers.sendAll() }), "sendAll");
    node.before(el("div", { class: "divider" }, say(el("span"), "leftOut"), again));
  }

  /** Show a message as it stands; nothing happens where it is no longer part of the conversation. */
  update(message, waitingMs) {
    this.#views.get(message)?.update(waitingMs);
  }

  nodeOf(message) {
    return this.#views.get(message)?.node;
  }

  follow() {
    this.#following = true;
    this.#scrollToEnd();
  }

  #scrollToEnd() {
    if (this.#following) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#updateFollowing();
  }

  #updateFollowing() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    this.#following = scrollHeight - scrollTop - clientHeight < NEAR_END;
    this.#jump.hidden = this.#following;
  }
}
