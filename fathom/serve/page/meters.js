// The two gauges: how much of the context a conversation uses, and how full the server's cache is.
import { byId } from "./dom.js";
import { amount, number, say } from "./i18n.js";

const EVERY_MS = 1000;
const AFTER_ERROR_MS = 10_000;

const share = (part, whole) => (whole > 0 ? Math.min(100, (100 * part) / whole) : 0);

export class ContextMeter {
  #node = byId("context");

  /** `used` tokens of `total`; hidden where either is unknown. */
  show(used, total) {
    this.#node.hidden = !used || !total;
    if (this.#node.hidden) return;
    const percent = share(used, total);
    byId("context-bar").style.width = `${percent}%`;
    byId("context-text").textContent = `${amount(used)} / ${amount(total)}`;
    byId("context-share").textContent = `${number(percent)} %`;
    this.#node.classList.toggle("full", percent > 90);
    this.#node.setAttribute("aria-valuenow", String(Math.round(percent)));
    const values = { used: number(used), total: number(total) };
    say(this.#node, "contextOf", values, "i18nLabel");
    say(this.#node, "contextOf", values, "i18nTitle");
  }
}

export class CacheMeter {
  #api;
  #node = byId("cache");
  #timer;

  constructor(api) {
    this.#api = api;
    document.addEventListener("visibilitychange", () => this.start());
  }

  /** Ask once a second while the page can be seen. */
  start() {
    clearTimeout(this.#timer);
    if (!document.hidden) this.#ask();
  }

  #again(milliseconds) {
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.#ask(), milliseconds);
  }

  async #ask() {
    try {
      this.#show(await this.#api.gauges());
      this.#again(EVERY_MS);
    } catch {
      this.#show(null);
      this.#again(AFTER_ERROR_MS);
    }
  }

  #show(gauges) {
    this.#node.hidden = !gauges?.pages_total;
    if (this.#node.hidden) return;
    const { pages_used: used, pages_cached: cached, pages_total: total } = gauges;
    byId("cache-used").style.width = `${share(used, total)}%`;
    byId("cache-kept").style.width = `${share(cached, total)}%`;
    const values = { used: number(used), cached: number(cached), total: number(total) };
    say(byId("cache-text"), "cacheShort", values);
    say(byId("cache-meter"), "cacheOf", values, "i18nLabel");
    say(byId("cache-meter"), "cacheOf", values, "i18nTitle");
    byId("cache-meter").setAttribute("aria-valuenow", String(Math.round(share(used + cached, total))));
    const { requests_running: running = 0, requests_waiting: waiting = 0 } = gauges;
    say(byId("queue-text"), "running", { running: number(running), waiting: number(waiting) });
  }
}
