// The page: connects its parts, and asks the server which models it serves.
import { Api } from "./api.js";
import { Chrome } from "./chrome.js";
import { Composer } from "./composer.js";
import { sendFrom } from "./conversation.js";
import { byId, drawIcons } from "./dom.js";
import { Files } from "./files.js";
import { bytes, say, t } from "./i18n.js";
import { CacheMeter, ContextMeter } from "./meters.js";
import { Room } from "./room.js";
import { Session } from "./session.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { loadApiKey, loadSetting, newChat, remember, saveApiKey } from "./store.js";
import { Thread } from "./thread.js";

class App {
  api = new Api();
  settings = new Settings();
  composer = new Composer(this);
  thread = new Thread(this);
  #context = new ContextMeter();
  #cache = new CacheMeter(this.api);
  #session = new Session(this);
  #room = new Room(this, this.#session);
  #sidebar = new Sidebar(this);
  #chrome = new Chrome(this, this.#sidebar, this.composer);
  #files = new Files(this);
  #models = [];

  async start() {
    this.api.key = loadApiKey();
    byId("model").addEventListener("change", () => this.#choose(byId("model").value));
    byId("retry-models").addEventListener("click", () => this.#connect());
    byId("key-form").addEventListener("submit", (event) => this.#useKey(event));
    addEventListener("storage", () => this.saved());
    this.#session.openStored(loadSetting("current", ""));
    this.composer.focusIfTyping();
    await this.#connect();
  }

  // What the parts call.

  sendMessage(text, images) {
    this.#session.send(text, images);
  }

  stop() {
    this.#session.stop();
  }

  get isRunning() {
    return this.#session.isRunning;
  }

  get chat() {
    return this.#session.chat;
  }

  regenerate(message) {
    this.#session.regenerate(message);
  }

  resend(message, text) {
    this.#session.resend(message, text);
  }

  goOn(message) {
    this.#session.goOn(message);
  }

  showVersion(message, place) {
    this.#session.showVersion(message, place);
  }

  /** Have the model given all turns again. */
  sendAll() {
    this.#session.stop();
    sendFrom(this.chat.messages, 0);
    this.thread.show(this.chat);
    this.#session.save();
  }

  waysToRoom() {
    return this.#room.ways();
  }

  newChat() {
    this.stop();
    this.#session.open(newChat());
    this.#sidebar.open(false);
    this.composer.focusIfTyping();
  }

  openChat(id) {
    this.stop();
    this.#session.openStored(id);
    this.#sidebar.open(false);
  }

  /** The stored chats are others than before. */
  saved() {
    this.#sidebar.show(this.chat);
    byId("export").hidden = this.chat.messages.length === 0 && !this.chat.summary;
  }

  /** Another chat, or another version of it, is shown. */
  changed() {
    this.saved();
    this.#showContext();
  }

  finished(message) {
    this.#showContext();
    if (message.error?.kind === "Unauthorized") this.#askKey();
    else if (!message.error && this.#models.length === 0) this.#connect();
  }

  /** Whether an answer ended because the context is full. */
  isFull({ finish, usage }) {
    return finish === "length" && Boolean(this.server.limit) && usage?.total_tokens >= this.server.limit - 1;
  }

  #showContext() {
    const last = this.chat.messages.findLast((message) => message.usage);
    const latest = this.chat.messages.at(-1);
    const used = last?.usage.total_tokens;
    this.#context.show(used, this.server.limit);
    this.#room.warn(used, this.server.limit, !latest || latest.error || this.isFull(latest) || this.isRunning);
  }

  // The server.

  /** The chosen model, how long a context it has, and whether it continues texts and has not been trained to converse. */
  get server() {
    const model = this.#models.find(({ id }) => id === byId("model").value) ?? this.#models[0];
    const completes = model?.fathom?.suggestions?.kind === "completion";
    return { model, completes, limit: model?.fathom?.context ?? model?.max_model_len };
  }

  async #connect() {
    try {
      this.#models = await this.api.models();
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
    const { model, completes, limit } = this.server;
    const { supports_images: images, supports_reasoning: reasoning, suggestions, sampling_defaults: defaults } = model?.fathom ?? {};
    this.composer.images.allow(Boolean(images) && !completes);
    this.composer.setPlaceholder(completes ? "placeholderText" : "placeholder");
    this.settings.allow({ thinking: Boolean(reasoning) && !completes, system: !completes, limit, defaults });
    this.thread.suggest(suggestions);
    this.#showContext();
    this.#showModelInfo(model);
  }

  #showModelInfo(model) {
    const perToken = model?.fathom?.cache_bytes_per_token;
    byId("per-token").hidden = !perToken;
    if (perToken) say(byId("per-token"), "perToken", { bytes: bytes(perToken) });
  }

  #askKey() {
    byId("key-wrong").hidden = !this.api.key;
    if (!byId("key-dialog").open) byId("key-dialog").showModal();
    byId("key").focus();
  }

  /** Retry with the key what the server refused. */
  async #useKey(event) {
    event.preventDefault();
    this.api.key = byId("key").value.trim();
    saveApiKey(this.api.key);
    byId("key").value = "";
    byId("key-dialog").close();
    await this.#connect();
    if (byId("key-dialog").open) return;
    const last = this.chat.messages.at(-1);
    if (last?.error?.kind === "Unauthorized") this.regenerate(last);
    else this.composer.focusIfTyping();
  }
}

drawIcons(document);
document.title = t("title");
new App().start();
