// The conversation that is open: sending, answering, versions, and keeping it in the browser's storage.
import { emptyAnswer, streamInto, toMessages, toText } from "./answer.js";
import { addVersion, sentMessages, showVersion } from "./conversation.js";
import { byId } from "./dom.js";
import { say, t } from "./i18n.js";
import { Pace } from "./pace.js";
import { deleteChat, hasChat, loadChat, newChat, remember, saveChat, setAside } from "./store.js";

const SAVE_EVERY_MS = 1000;
const ANNOUNCED_CHARS = 4000;
const CONTINUED_TOKENS = 256; // where the settings name no limit

export class Session {
  chat = newChat();
  #page; // {api, settings, server, thread, composer, changed(), finished(message)}
  #running = null; // {abort, chat, message}
  #leaving = false;

  constructor(page) {
    this.#page = page;
    addEventListener("beforeunload", () => this.#leave());
    addEventListener("pagehide", () => this.#leave());
    addEventListener("pageshow", () => (this.#leaving = false));
  }

  get isRunning() {
    return this.#running !== null;
  }

  // What the reader asks for.

  send(text, images = []) {
    this.stop();
    const message = { role: "user", content: text, images };
    this.chat.messages.push(message);
    this.#page.thread.add(message);
    this.#page.thread.follow();
    this.answer();
  }

  stop() {
    this.#running?.abort.abort();
  }

  /** Answer once more, in a new version. */
  regenerate(message) {
    this.stop();
    this.answer(this.chat.messages.indexOf(message));
  }

  /** Ask in other words, in a new version. */
  resend(message, text) {
    this.stop();
    const { messages } = this.chat;
    const { images, first } = message;
    addVersion(messages, messages.indexOf(message), { role: "user", content: text.trim(), images, ...(first ? { first } : {}) });
    this.#page.thread.show(this.chat);
    this.answer();
  }

  showVersion(message, place) {
    this.stop();
    const index = this.chat.messages.indexOf(message);
    showVersion(this.chat.messages, index, place);
    this.#page.thread.show(this.chat, this.chat.messages[index]);
    this.save(this.chat, false);
    this.#page.changed();
  }

  /** Go on with an answer that ended before the model did. */
  goOn(message) {
    this.stop();
    this.#stream(message, true);
  }

  open(chat) {
    this.chat = chat;
    remember("current", chat.id);
    this.#page.thread.show(chat);
    this.#page.changed();
  }

  /** Open a stored chat, a new one where there is none; one that cannot be shown is set aside and named. */
  openStored(id) {
    const report = (title) => this.#page.composer.showError("setAside", { name: title });
    const chat = loadChat(id, report);
    try {
      if (!chat) deleteChat(id);
      this.open(chat ?? newChat());
    } catch {
      report(setAside(id));
      this.open(newChat());
    }
  }

  // Answering.

  /** Answer the messages before an index; what stands there stays as another version. */
  async answer(index = this.chat.messages.length) {
    const { messages } = this.chat;
    const message = emptyAnswer();
    if (index < messages.length) {
      addVersion(messages, index, message);
      this.#page.thread.show(this.chat);
    } else {
      messages.push(message);
      this.#page.thread.add(message);
      this.#page.thread.follow();
    }
    await this.#stream(message, false);
  }

  async #stream(message, continues) {
    const { api, server, thread, composer } = this.#page;
    const { chat } = this;
    const sent = sentMessages(continues ? chat.messages : chat.messages.slice(0, -1));
    const body = this.request(sent, continues);
    const abort = new AbortController();
    const parts = server.completes ? api.complete(body, abort.signal) : api.chat(body, abort.signal);
    this.#running = { abort, chat, message };
    composer.run(true);
    Object.assign(message, { finish: null, error: null });
    this.save(chat);
    say(byId("announcer"), "answering");
    const before = message.elapsedMs ?? 0;
    const painter = this.#paint((waited) => thread.update(message, waited === null ? null : before + waited));
    await streamInto(message, parts, abort.signal, () => painter.changed(chat));
    painter.end();
    if (this.#running?.message === message) this.#finish(message);
    this.save(chat);
  }

  /** The request for an answer to messages. */
  request(messages, continues = false) {
    const { settings, server } = this.#page;
    const length = server.completes ? { max_tokens: CONTINUED_TOKENS } : {};
    const final = continues && !server.completes ? { continue_final_message: true } : {};
    return { ...this.prompt(messages, continues), ...length, ...final, ...settings.request() };
  }

  /** The model, and what it is given for an answer to messages. */
  prompt(messages, continues = false) {
    const { server } = this.#page;
    const model = server.model ? { model: server.model.id } : {};
    if (server.completes) return { ...model, prompt: toText(messages) };
    return { ...model, messages: toMessages(messages, this.#system(), continues) };
  }

  #system() {
    const { summary } = this.chat;
    const parts = [this.#page.settings.system.trim() && this.#page.settings.system, summary && `${t("summaryForModel")}\n${summary}`];
    return parts.filter(Boolean).join("\n\n");
  }

  #finish(message) {
    this.#running = null;
    this.#page.composer.run(false);
    const text = this.#page.thread.nodeOf(message)?.querySelector(":scope > .prose").textContent.slice(0, ANNOUNCED_CHARS);
    if (text) say(byId("announcer"), "answered", { text });
    this.#page.finished(message);
  }

  /** Run what streams text into the chat beside an answer, with the button that stops it. */
  async during(work) {
    this.stop();
    const abort = new AbortController();
    const running = { abort, chat: this.chat, message: null };
    this.#running = running;
    this.#page.composer.run(true);
    try {
      return await work(abort.signal);
    } finally {
      if (this.#running === running) {
        this.#running = null;
        this.#page.composer.run(false);
      }
    }
  }

  /** Render a streaming answer as it grows, its clock every second, and save it now and then. */
  #paint(show) {
    const began = performance.now();
    let saved = began;
    const pace = new Pace(() => show(performance.now() - began));
    const clock = setInterval(() => pace.ask(), SAVE_EVERY_MS);
    pace.ask();
    return {
      changed: (chat) => {
        pace.ask();
        if (performance.now() - saved < SAVE_EVERY_MS) return;
        saved = performance.now();
        this.save(chat);
      },
      end: () => {
        clearInterval(clock);
        pace.end();
        show(null);
      },
    };
  }

  // Keeping.

  /** Save the answer as unfinished: a stream that ends because the page closes is not a connection error. */
  #leave() {
    if (this.#running) this.save(this.#running.chat);
    this.#leaving = true;
  }

  save(chat = this.chat, isNew = true) {
    if (this.#leaving) return;
    if (!(chat.messages.length || chat.summary) || (chat !== this.chat && !hasChat(chat.id))) return; // deleted while it was answered
    const kept = saveChat(chat, isNew);
    if (kept === "images") this.#page.composer.showError("storageFull");
    if (kept === "nothing") this.#page.composer.showError("storageNone");
    this.#page.saved();
  }
}
