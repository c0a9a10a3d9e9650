// Ways out of a full context: a new conversation with the last turns, leaving out the oldest ones, or a summary of them.
import { canContinue } from "./answer.js";
import { isEmpty, sendFrom, sentMessages, shownCopies } from "./conversation.js";
import { byId, el } from "./dom.js";
import { amount, say, t } from "./i18n.js";
import { deleteChat, newChat } from "./store.js";

const NEARLY_FULL = 0.9;
const KEPT = 0.5; // share of the context that what is kept may take
const CHARS_PER_TOKEN = 3; // where the server does not count
const SUMMARY_TOKENS = 400;
const WAYS = ["lastTurns", "leaveOut", "summarise"];

/** A chat that goes on from another. */
const continued = ({ title }) => ({ ...newChat(), ...(title ? { title: t("continuedTitle", { title }), named: true } : {}) });

export class Room {
  #page;
  #session;
  #notice = byId("room");

  /** `page` is what the session has too. */
  constructor(page, session) {
    this.#page = page;
    this.#session = session;
  }

  /** Buttons for what can be done. */
  ways() {
    const offered = WAYS.filter((way) => way !== "summarise" || !this.#page.server.completes);
    const button = (way) => say(el("button", { type: "button", click: () => this.#go(way) }), `room_${way}`);
    return el("div", { class: "ways" }, offered.map(button));
  }

  /** Say beforehand that the context is nearly full; `used` tokens of `limit`. */
  warn(used, limit, failed) {
    const near = Boolean(used && limit) && used >= NEARLY_FULL * limit && !failed;
    this.#notice.hidden = !near;
    if (near) this.#notice.replaceChildren(say(el("p"), "roomNear", { used: amount(used), total: amount(limit) }), this.ways());
  }

  async #go(way) {
    if (this.#session.isRunning) this.#session.stop();
    this.#notice.hidden = true;
    try {
      await { lastTurns: () => this.#lastTurns(), leaveOut: () => this.#leaveOut(), summarise: () => this.#summarise() }[way]();
    } catch (error) {
      if (error.name !== "AbortError") this.#page.composer.showError(`error${error.kind ?? "Server"}`);
    }
  }

  /** A copy of the turns that fit, in a conversation of its own; this one stays as it is. */
  async #lastTurns() {
    const { chat } = this.#session;
    const from = await this.#firstThatFits(chat.messages, this.#limit * KEPT);
    if (from === null || this.#session.chat !== chat) return; // or another was opened in the meantime
    const messages = shownCopies(chat.messages.slice(from)).filter((message) => !isEmpty(message));
    this.#session.open({ ...continued(chat), ...(chat.summary ? { summary: chat.summary } : {}), messages });
    this.#answerOrContinue();
  }

  async #leaveOut() {
    const { chat } = this.#session;
    const from = await this.#firstThatFits(chat.messages, this.#limit * KEPT);
    if (from === null || this.#session.chat !== chat) return;
    sendFrom(chat.messages, from);
    this.#page.thread.show(chat);
    if (from === 0) this.#page.composer.showNotice("roomFits");
    this.#answerOrContinue();
  }

  /** Have the model sum up, in a new conversation, what came before the last question, if that waits for its answer. */
  async #summarise() {
    const { chat } = this.#session;
    const last = chat.messages.findLastIndex((message) => message.role === "user");
    const waits = !chat.messages.slice(last + 1).some((message) => message.content);
    const earlier = sentMessages(chat.messages.slice(0, waits ? last : undefined)).filter((message) => !isEmpty(message));
    const room = Math.max(1, Math.min(SUMMARY_TOKENS, Math.floor(this.#limit / 4)));
    const question = { role: "user", content: t("summariseRequest", { words: Math.floor(room / 2) }) };
    if (!earlier.length) return this.#page.composer.showError("roomNothing");
    const from = await this.#firstThatFits([...earlier, question], this.#limit - room - 1);
    if (from === null || this.#session.chat !== chat) return;
    if (from >= earlier.length) return this.#page.composer.showError("roomTooLong");
    const pending = waits ? shownCopies(chat.messages.slice(last, last + 1)) : [];
    const body = { ...this.#session.request([...earlier.slice(from), question]), max_tokens: room };
    const fresh = { ...continued(chat), summary: "" };
    this.#session.open(fresh);
    try {
      await this.#stream(fresh, body);
    } catch (error) {
      deleteChat(fresh.id);
      if (this.#session.chat === fresh) this.#session.open(chat);
      throw error;
    }
    if (this.#session.chat !== fresh) return;
    fresh.messages.push(...pending);
    this.#page.thread.show(fresh);
    if (from > 0) this.#page.composer.showError("roomLeftOut", { count: from });
    this.#session.save(fresh);
    if (pending.length) await this.#session.answer();
  }

  #stream(fresh, body) {
    return this.#session.during(async (signal) => {
      try {
        for await (const part of this.#page.api.chat(body, signal)) {
          if (part.content) fresh.summary += part.content;
          this.#page.thread.showSummary(fresh.summary);
        }
      } catch (error) {
        if (!signal.aborted || !fresh.summary) throw error;
      }
    });
  }

  #answerOrContinue() {
    const { messages } = this.#session.chat;
    this.#session.save();
    const last = messages.at(-1);
    if (last.role === "user") this.#session.answer();
    else if (isEmpty(last)) this.#session.regenerate(last);
    else if (canContinue(last) && last.finish === "length") this.#session.goOn(last);
    else this.#page.finished(last);
  }

  get #limit() {
    return this.#page.server.limit ?? Infinity;
  }

  /** The index of the earliest question from which on the messages take at most `most` tokens; null, and said so, if none. */
  async #firstThatFits(messages, most) {
    const starts = messages.flatMap(({ role }, i) => (role === "user" ? [i] : []));
    let [low, high] = [0, starts.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((await this.#count(messages.slice(starts[middle]))) <= most) high = middle;
      else low = middle + 1;
    }
    const used = await this.#count(messages.slice(starts[low]));
    if (used < this.#limit) return starts[low];
    this.#page.composer.showError("roomNone", { used: amount(used), total: amount(this.#limit) });
    return null;
  }

  /** Tokens of messages and of what is sent with them, as the server counts them. */
  async #count(messages) {
    const texts = messages.filter((message) => !isEmpty(message));
    try {
      return await this.#page.api.countTokens(this.#session.prompt(texts));
    } catch {
      return Math.ceil(texts.reduce((sum, { content }) => sum + content.length, 0) / CHARS_PER_TOKEN);
    }
  }
}
