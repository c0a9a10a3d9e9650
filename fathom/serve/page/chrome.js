// What surrounds the conversation: theme and language, the settings drawer, and keys that work anywhere.
import { byId } from "./dom.js";
import { language, name, preferredLanguage, setLanguage } from "./i18n.js";
import { loadSetting, remember } from "./store.js";

const THEMES = ["auto", "light", "dark"];
const THEME_NAMES = { auto: "themeAuto", light: "themeLight", dark: "themeDark" };
const TYPING = "input, textarea, select, [contenteditable]";

export class Chrome {
  #app;
  #sidebar;
  #composer;
  #drawer = byId("drawer");
  #opener = byId("open-drawer");

  constructor(app, sidebar, composer) {
    this.#app = app;
    this.#sidebar = sidebar;
    this.#composer = composer;
    setLanguage(preferredLanguage(loadSetting("language", ""), navigator.language));
    this.#setTheme(loadSetting("theme", "auto"));
    byId("theme").addEventListener("click", () => {
      this.#setTheme(THEMES[(THEMES.indexOf(loadSetting("theme", "auto")) + 1) % THEMES.length]);
    });
    byId("language").addEventListener("click", () => {
      const next = language() === "en" ? "zh" : "en";
      remember("language", next);
      setLanguage(next);
    });
    this.#opener.addEventListener("click", () => this.#openDrawer(this.#drawer.hidden));
    byId("close-drawer").addEventListener("click", () => this.#openDrawer(false));
    for (const id of ["new-chat", "new-chat-narrow"]) byId(id).addEventListener("click", () => app.newChat());
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  #setTheme(theme) {
    const known = THEMES.includes(theme) ? theme : "auto";
    remember("theme", known);
    if (known === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = known;
    name(byId("theme"), "theme", { theme: { key: THEME_NAMES[known] } });
  }

  #openDrawer(open) {
    this.#drawer.hidden = !open;
    this.#opener.setAttribute("aria-expanded", String(open));
    (open ? byId("close-drawer") : this.#opener).focus();
  }

  #key(event) {
    if (event.isComposing || event.defaultPrevented || byId("key-dialog").open) return;
    if (event.key === "k" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      this.#app.newChat();
    } else if (event.key === "Escape") this.#escape();
    else if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest?.(TYPING)) {
      event.preventDefault();
      this.#composer.focus();
    }
  }

  /** Escape closes what lies on top first, and only then stops the answer. */
  #escape() {
    if (this.#sidebar.escape()) return;
    if (document.querySelector(":popover-open")) return; // the browser closes it
    if (this.#sidebar.isOver) this.#sidebar.open(false);
    else if (!this.#drawer.hidden && this.#drawer.contains(document.activeElement)) this.#openDrawer(false);
    else if (this.#app.isRunning) this.#app.stop();
    else if (!this.#drawer.hidden) this.#openDrawer(false);
  }
}
