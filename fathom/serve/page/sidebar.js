// The list of conversations, beside the thread on wide screens and over it on narrow ones.
import { byId, el, icon } from "./dom.js";
import { name, say, t } from "./i18n.js";
import { deleteAllChats, deleteChat, hasAside, listChats } from "./store.js";

export class Sidebar {
  #node = byId("sidebar");
  #backdrop = byId("backdrop");
  #toggle = byId("open-sidebar");
  #narrow = matchMedia("(max-width: 60rem)");
  #handlers;

  constructor(handlers) {
    this.#handlers = handlers;
    this.#toggle.addEventListener("click", () => this.open(true));
    byId("close-sidebar").addEventListener("click", () => this.open(false));
    this.#backdrop.addEventListener("click", () => this.open(false));
    this.#narrow.addEventListener("change", () => this.open(false));
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

  show(currentId) {
    const items = listChats().map(({ id, title }) => {
      const go = el("button", { type: "button", class: "chat", click: () => this.#handlers.openChat(id) });
      if (title) go.textContent = title;
      else say(go, "untitled");
      if (id === currentId) go.setAttribute("aria-current", "true");
      const remove = () => {
        deleteChat(id);
        if (id === currentId) this.#handlers.newChat();
        else this.show(currentId);
      };
      const button = el("button", { type: "button", class: "quiet", click: remove }, icon("trash"));
      return el("li", {}, go, name(button, "deleteChat", { title: title || { key: "untitled" } }));
    });
    byId("chats").replaceChildren(...items);
    byId("delete-all").hidden = items.length === 0 && !hasAside();
  }
}
