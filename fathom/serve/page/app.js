// The page: connects its parts, sends messages and streams answers into the conversation.
import { emptyAnswer, streamInto, toMessages, toText } from "./answer.js";
import { Api } from "./api.js";
import { Chrome } from "./chrome.js";
import { Composer } from "./composer.js";
import { byId, drawIcons } from "./dom.js";
import { say, t } from "./i18n.js";
import { CacheMeter, ContextMeter, bytes } from "./meters.js";
import { Pace } from "./pace.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { deleteChat, hasChat, loadApiKey, loadChat, loadSetting, newChat, remember, saveApiKey, saveChat, setAside } from "./store.js";
import { Thread } from "./thread.js";

const SAVE_EVERY_MS = 1000;
const ANNOUNCED_CHARS = 4000;
const CONTINUED_TOKENS = 256; // where the settings name no limit

class App {
  #api = new Api();
  #settings = new Settings();
  #context = new ContextMeter();
  #cache = new CacheMeter(this.#api);
  #composer = new Composer(this);
  #thread = new Thread(this);
  #sidebar = new Sidebar(this);
  #chrome = new Chrome(this, this.#sidebar, this.#composer);
  #models = [];
  #chat = newChat();
  #running = null; // {abort, chat, message}
  #leaving = false;

  async start() {
    this.#api.key = loadApiKey();
    byId("model").addEventListener("change", () => this.#choose(byId("model").value));
    byId("retry-models").addEventListener("click", () => this.#connect());
    byId("key-form").addEventListener("submit", (event) => this.#useKey(event));
    addEventListener("beforeunload", () => this.#leave());
    addEventListener("pagehide", () => this.#leave());
    addEventListener("pageshow", () => (this.#leaving = false));
    addEventListener("storage", () => this.#sidebar.show(this.#chat.id));
    this.#openStored(loadSetting("current", ""));
    this.#composer.focusIfTyping();
    await this.#connect();
  }

  // Handlers that the parts call.

  sendMessage(text, images = []) {
    this.stop();
    this.#push({ role: "user", content: text, images });
    this.#answer();
  }

  stop() {
    this.#running?.abort.abort();
  }

  get isRunning() {
    return this.#running !== null;
  }

  regenerate() {
    this.#cutFrom(this.#chat.messages.findLastIndex((message) => message.role === "user") + 1);
    this.#answer();
  }

  resend(message, text) {
    this.#cutFrom(this.#chat.messages.indexOf(message));
    this.sendMessage(text.trim(), message.images);
  }

  newChat() {
    this.stop();
    this.#open(newChat());
    this.#sidebar.open(false);
    this.#composer.focusIfTyping();
  }

  openChat(id) {
    this.stop();
    this.#openStored(id);
    this.#sidebar.open(false);
  }

  // The conversation.

  #open(chat) {
    this.#chat = chat;
    remember("current", chat.id);
    this.#thread.show(chat.messages);
    this.#sidebar.show(chat.id);
    this.#showContext();
  }

  /** Open a stored chat, a new one where there is none; one that cannot be shown is set aside and named. */
  #openStored(id) {
    const report = (title) => this.#composer.showError("setAside", { name: title });
    const chat = loadChat(id, report);
    try {
      if (!chat) deleteChat(id);
      this.#open(chat ?? newChat());
    } catch {
      report(setAside(id));
      this.#open(newChat());
    }
  }

  #push(message) {
    this.#chat.messages.push(message);
    this.#thread.add(message);
    this.#thread.follow();
  }

  #cutFrom(index) {
    this.stop();
    this.#chat.messages.length = index;
    this.#thread.show(this.#chat.messages);
  }

  async #answer() {
    const chat = this.#chat;
    const model = this.#model ? { model: this.#model.id } : {};
    const asked = this.#completes
      ? { max_tokens: CONTINUED_TOKENS, prompt: toText(chat.messages) }
      : { messages: toMessages(chat.messages, this.#settings.system) };
    const body = { ...model, ...asked, ...this.#settings.request() };
    const message = emptyAnswer();
    this.#push(message);
    const abort = new AbortController();
    this.#running = { abort, chat, message };
    this.#composer.run(true);
    this.#save(chat);
    say(byId("announcer"), "answering");
    const painter = this.#paint(message);
    const parts = this.#completes ? this.#api.complete(body, abort.signal) : this.#api.chat(body, abort.signal);
    await streamInto(message, parts, abort.signal, () => painter.changed(chat));
    painter.end();
    if (this.#running?.message === message) this.#finish(message);
    this.#save(chat);
  }

  #finish(message) {
    this.#running = null;
    this.#composer.run(false);
    this.#showContext();
    const node = this.#thread.nodeOf(message);
    const text = node?.querySelector(":scope > .prose").textContent.slice(0, ANNOUNCED_CHARS);
    if (text) say(byId("announcer"), "answered", { text });
    if (message.error?.kind === "Unauthorized") this.#askKey();
    else if (!message.error && this.#models.length === 0) this.#connect();
  }

  /** Render a streaming answer as it grows, update its clock every second, and save it now and then. */
  #paint(message) {
    const began = performance.now();
    let saved = began;
    const pace = new Pace(() => this.#thread.update(message, performance.now() - began));
    const clock = setInterval(() => pace.ask(), SAVE_EVERY_MS);
    pace.ask();
    return {
      changed: (chat) => {
        pace.ask();
        if (performance.now() - saved < SAVE_EVERY_MS) return;
        saved = performance.now();
        this.#save(chat);
      },
      end: () => {
        clearInterval(clock);
        pace.end();
        this.#thread.update(message, null);
      },
    };
  }

  /** Save the answer as unfinished: a stream that ends because the page closes is not a connection error. */
  #leave() {
    if (this.#running) this.#save(this.#running.chat);
    this.#leaving = true;
  }

  #save(chat) {
    if (this.#leaving) return;
    if (!chat.messages.length || (chat !== this.#chat && !hasChat(chat.id))) return; // deleted while it was answered
    if (!saveChat(chat)) this.#composer.showError("storageFull");
    this.#sidebar.show(this.#chat.id);
  }

  #showContext() {
    const last = this.#chat.messages.findLast((message) => message.usage);
    this.#context.show(last?.usage.total_tokens, this.#model?.fathom?.context ?? this.#model?.max_model_len);
  }

  // The server.

  get #model() {
    return this.#models.find((model) => model.id === byId("model").value) ?? this.#models[0];
  }

  /** Whether the model continues texts and has not been trained to converse. */
  get #completes() {
    return this.#model?.fathom?.suggestions?.kind === "completion";
  }

  async #connect() {
    try {
      this.#models = await this.#api.models();
    } catch (error) {
      if (error.kind === "Unauthorized") return this.#askKey();
      say(byId("banner-text"), `error${error.kind ?? "Server"}`);
      byId("banner").hidden = false;
      return;
    }
    byId("banner").hidden = true;
    byId("model").replaceChildren(...this.#models.map(({ id }) => new Option(id, id)));
    byId("model").hidden = this.#models.length < 2;
    byId("model-name").hidden = this.#models.length !== 1;
    byId("model-name").textContent = this.#models[0]?.id ?? "";
    this.#choose(loadSetting("model", ""));
    this.#cache.start();
  }

  #choose(id) {
    if (this.#models.some((model) => model.id === id)) byId("model").value = id;
    remember("model", byId("model").value);
    const { supports_images: images, supports_reasoning: reasoning, suggestions } = this.#model?.fathom ?? {};
    this.#composer.images.allow(Boolean(images) && !this.#completes);
    this.#composer.setPlaceholder(this.#completes ? "placeholderText" : "placeholder");
    this.#settings.allow({ thinking: Boolean(reasoning) && !this.#completes, system: !this.#completes });
    this.#thread.suggest(suggestions);
    this.#showContext();
    this.#showModelInfo();
  }

  #showModelInfo() {
    const perToken = this.#model?.fathom?.cache_bytes_per_token;
    byId("per-token").hidden = !perToken;
    if (perToken) say(byId("per-token"), "perToken", { bytes: bytes(perToken) });
  }

  #askKey() {
    byId("key-wrong").hidden = !this.#api.key;
    if (!byId("key-dialog").open) byId("key-dialog").showModal();
    byId("key").focus();
  }

  /** Retry with the key what the server refused. */
  async #useKey(event) {
    event.preventDefault();
    this.#api.key = byId("key").value.trim();
    saveApiKey(this.#api.key);
    byId("key").value = "";
    byId("key-dialog").close();
    await this.#connect();
    if (!byId("key-dialog").open && this.#chat.messages.at(-1)?.error?.kind === "Unauthorized") this.regenerate();
    else if (!byId("key-dialog").open) this.#composer.focusIfTyping();
  }
}

drawIcons(document);
document.title = t("title");
new App().start();
