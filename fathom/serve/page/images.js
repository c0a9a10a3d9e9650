// Images attached to a message: chosen, pasted or dropped; checked, previewed and removable.
import { byId, el, icon } from "./dom.js";
import { bytes, name } from "./i18n.js";

export const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const MAX_BYTES = 5_000_000;
const MAX_IMAGES = 4;

export class Images {
  #list = [];
  #attachments = byId("attachments");
  #picker = byId("picker");
  #allowed = false;
  #showError;

  /** `showError(key, parameters)` tells the user why an image was rejected. */
  constructor(showError) {
    this.#showError = showError;
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
      const parameters = { name: file.name, limit: this.#list.length < MAX_IMAGES ? bytes(MAX_BYTES) : MAX_IMAGES };
      if (!this.#allowed) this.#showError("imageUnsupported");
      else if (!KINDS.includes(file.type)) this.#showError("imageKind", parameters);
      else if (this.#list.length >= MAX_IMAGES) this.#showError("imageTooMany", parameters);
      else if (file.size > MAX_BYTES) this.#showError("imageTooLarge", parameters);
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
    else this.#showError("imageUnread", { name: file.name });
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
    this.#attachments.replaceChildren(...figures);
    this.#attachments.hidden = figures.length === 0;
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
