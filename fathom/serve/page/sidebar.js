// The list of conversations, beside the thread on wide screens and over it on narrow ones: search, rename, delete.
import { byId, el, icon } from "./dom.js";
import { name, say, t } from "./i18n.js";
import { search } from "./search.js";
import { deleteAllChats, deleteChat, hasAside, listChats, peekChat, renameChat } from "./store.js";

const SEARCH_MS = 120;

export class Sidebar {
  #node = byId("sidebar");
  #backdrop = byId("backdrop");
  #toggle = byId("open-sidebar");
  #search = byId("search");
  #narrow = matchMedia("(max-width: 60rem)");
  #handlers;
  #renamed = null; // the id of the chat whose title is being changed
  #timer;

  constructor(handlers) {
    this.#handlers = handlers;
    this.#toggle.addEventListener("click", () => this.open(true));
    byId("close-sidebar").addEventListener("click", () => this.open(false));
    this.#backdrop.addEventListener("click", () => this.open(false));
    this.#narrow.addEventListener("change", () => this.open(false));
    this.#search.addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.show(handlers.chat), SEARCH_MS);
    });
    byId("delete-all").addEventListener("click", () => {
      if (!confirm(t("confirmDeleteAll"))) return;
      deleteAllChats();
      handlers.newChat();
    });
    this.open(false);
  }

  get isOver() {
    return this.#narrow.matches && !this.#node.inert;
  }

  /** On a narrow screen the list lies over the conversation; closed, nothing in it can be reached. */
  open(open) {
    const hadFocus = this.#node.contains(document.activeElement);
    const over = this.#narrow.matches && open;
    this.#node.inert = this.#narrow.matches && !open;
    this.#node.classList.toggle("open", over);
    this.#backdrop.hidden = !over;
    byId("main").inert = over;
    this.#toggle.setAttribute("aria-expanded", String(over));
    if (over) byId("close-sidebar").focus();
    else if (hadFocus && this.#narrow.matches) this.#toggle.focus();
  }

  /** Escape: close what was begun here; return whether something was. */
  escape() {
    if (document.activeElement !== this.#search || !this.#search.value) return false;
    this.#search.value = "";
    this.show(this.#handlers.chat);
    return true;
  }

  /** Show the list, or what was searched for. A title that is being changed stays as it is. */
  show(current) {
    if (this.#renamed !== null) return;
    const query = this.#search.value.trim();
    const all = listChats();
    const found = query ? search(query) : all;
    byId("chats").replaceChildren(...found.map((entry) => this.#item(entry, current)));
    byId("delete-all").hidden = all.length === 0 && !hasAside();
    byId("export-all").hidden = all.length === 0;
    byId("search-field").hidden = all.length < 2 && !query;
    byId("no-results").hidden = found.length > 0 || !query;
    if (query) say(byId("no-results"), "noResults", { query });
  }

  #item({ id, title, snippet }, current) {
    const go = el("button", { type: "button", class: "chat", click: () => this.#handlers.openChat(id) });
    const label = el("span", { class: "title" });
    if (title) label.textContent = title;
    else say(label, "untitled");
    go.append(label);
    if (snippet) go.append(marked(snippet));
    if (id === current.id) go.setAttribute("aria-current", "true");
    const remove = () => {
      deleteChat(id);
      if (id === current.id) this.#handlers.newChat();
      else this.show(current);
    };
    const called = { title: title || { key: "untitled" } };
    const item = el("li", {}, go);
    const rename = el("button", { type: "button", class: "quiet", click: () => this.#rename(item, id, title) }, icon("edit"));
    const trash = el("button", { type: "button", class: "quiet", click: remove }, icon("trash"));
    item.append(el("div", { class: "tools" }, name(rename, "rename", called), name(trash, "deleteChat", called)));
    return item;
  }

  /** Change a title in place: Enter and leaving the field keep it, Escape does not. */
  #rename(item, id, title) {
    this.#renamed = id;
    const field = say(el("input", { type: "text", class: "rename", maxlength: "60" }), "renameLabel", {}, "i18nLabel");
    field.value = title;
    const end = (keep) => {
      if (this.#renamed !== id) return;
      this.#renamed = null;
      const chat = id === this.#handlers.chat.id ? this.#handlers.chat : peekChat(id);
      if (keep && chat && field.value.trim() !== title) renameChat(chat, field.value);
      this.show(this.#handlers.chat);
    };
    field.addEventListener("blur", () => end(true));
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      end(event.key === "Enter");
      byId("chats").querySelector("[aria-current]")?.focus();
    });
    item.replaceChildren(field);
    field.select();
  }
}

function marked({ text, at, length }) {
  const mark = el("mark", {}, text.slice(at, at + length));
  return el("span", { class: "snippet" }, text.slice(0, at), mark, text.slice(at + length));
}
