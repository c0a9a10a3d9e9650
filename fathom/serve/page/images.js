// Images on their way into a message: chosen, pasted or dropped, checked, shown and removable.
import { byId, el, icon } from "./dom.js";
import { name } from "./i18n.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const MOST_BYTES = 5 * 1024 * 1024;
const MAX_IMAGES = 4;

export class Images {
  #list = [];
  #tray = byId("tray");
  #picker = byId("picker");
  #allowed = false;
  #complain;

  /** `complain(key, parameters)` tells the user why an image was not taken. */
  constructor(complain) {
    this.#complain = complain;
    byId("attach").addEventListener("click", () => this.#picker.click());
    this.#picker.accept = KINDS.join(",");
    this.#picker.addEventListener("change", async () => {
      await this.add([...this.#picker.files]);
      this.#picker.value = "";
    });
    this.#acceptDrops(byId("main"));
  }

  get list() {
    return this.#list;
  }

  allow(allowed) {
    this.#allowed = allowed;
    byId("attach").hidden = !allowed;
  }

  clear() {
    this.#list = [];
    this.#show();
  }

  restore(list) {
    this.#list = list;
    this.#show();
  }

  async add(files) {
    for (const file of files) {
      const parameters = { name: file.name, limit: this.#list.length < MAX_IMAGES ? `${MOST_BYTES >> 20} MB` : MAX_IMAGES };
      if (!this.#allowed) this.#complain("imageBlind");
      else if (!KINDS.includes(file.type)) this.#complain("imageKind", parameters);
      else if (this.#list.length >= MAX_IMAGES) this.#complain("imageTooMany", parameters);
      else if (file.size > MOST_BYTES) this.#complain("imageTooLarge", parameters);
      else await this.#read(file);
    }
    this.#show();
  }

  async #read(file) {
    const reader = new FileReader();
    const url = await new Promise((resolve) => {
      reader.addEventListener("loadend", () => resolve(reader.result));
      reader.readAsDataURL(file);
    });
    if (url) this.#list.push({ url, name: file.name });
    else this.#complain("imageUnread", { name: file.name });
  }

  #show() {
    const figures = this.#list.map((image) => {
      const remove = () => {
        this.#list = this.#list.filter((each) => each !== image);
        this.#show();
        byId("input").focus();
      };
      const button = name(el("button", { type: "button", click: remove }, icon("close")), "removeImage", { name: image.name });
      return el("li", {}, el("img", { src: image.url, alt: image.name }), button);
    });
    this.#tray.replaceChildren(...figures);
    this.#tray.hidden = figures.length === 0;
  }

  #acceptDrops(area) {
    const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
    const mark = (dragging) => area.classList.toggle("dragging", dragging);
    area.addEventListener("dragover", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      mark(this.#allowed);
    });
    area.addEventListener("dragleave", (event) => {
      if (!area.contains(event.relatedTarget)) mark(false);
    });
    area.addEventListener("drop", (event) => {
      mark(false);
      if (!carriesFiles(event)) return;
      event.preventDefault();
      this.add([...event.dataTransfer.files]);
    });
  }
}
