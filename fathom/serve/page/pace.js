// Work that is repeated as often as there is something new, and seldom enough to leave the page most of its time.

const REST = 3; // times as long as the work took

export class Pace {
  #work;
  #busy = false;
  #asked = false;
  #ended = false;

  constructor(work) {
    this.#work = work;
  }

  /** Do the work in the next frame, or once it has rested from the last time. */
  ask() {
    this.#asked = true;
    if (!this.#busy) this.#begin();
  }

  end() {
    this.#ended = true;
  }

  #begin() {
    this.#busy = true;
    this.#asked = false;
    requestAnimationFrame(() => {
      if (this.#ended) return;
      const began = performance.now();
      this.#work();
      setTimeout(() => setTimeout(() => this.#rested(), REST * (performance.now() - began))); // once it is painted
    });
  }

  #rested() {
    this.#busy = false;
    if (this.#asked && !this.#ended) this.#begin();
  }
}
