// The controls that export and import conversations.
import { byId } from "./dom.js";
import { download, fileName, importFile, ImportError, storedChats, toJson, toMarkdown } from "./transfer.js";

export class Files {
  #app;

  constructor(app) {
    this.#app = app;
    byId("export-markdown").addEventListener("click", () => this.#export("md", "text/markdown", toMarkdown));
    byId("export-json").addEventListener("click", () => this.#export("json", "application/json", (chat) => toJson([chat])));
    byId("export-all").addEventListener("click", () => download(toJson(this.#all()), "fathom-conversations.json", "application/json"));
    byId("import").addEventListener("click", () => byId("import-picker").click());
    byId("import-picker").addEventListener("change", () => this.#add());
  }

  #export(extension, type, write) {
    const { chat } = this.#app;
    byId("export-menu").hidePopover();
    download(write(chat), fileName(chat.title, extension), type);
  }

  /** The stored chats, and the open one even where there was no room to store it. */
  #all() {
    const { chat } = this.#app;
    const stored = storedChats();
    return (chat.messages.length || chat.summary) && !stored.some(({ id }) => id === chat.id) ? [chat, ...stored] : stored;
  }

  async #add() {
    const [file] = byId("import-picker").files;
    byId("import-picker").value = "";
    if (!file) return;
    try {
      const counts = await importFile(file);
      const whole = counts.known + counts.broken + counts.full === 0;
      this.#app.composer.showNotice(whole ? "imported" : "importedPart", counts);
      this.#app.saved();
    } catch (error) {
      this.#app.composer.showError(error instanceof ImportError ? error.key : "importNotJson");
    }
  }
}
