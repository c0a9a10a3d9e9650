// Parser of server-sent events from chunks of any size (WHATWG HTML, section 9.2).

export class EventParser {
  #rest = "";
  #data = [];
  #event = "";
  #begun = false;

  /** Add a chunk; return the events it completes, as {event, data}. */
  push(chunk) {
    let text = this.#rest + chunk;
    if (!this.#begun && text.length > 0) {
      this.#begun = true;
      if (text.startsWith("\uFEFF")) text = text.slice(1);
    }
    const events = [];
    let start = 0;
    for (;;) {
      const end = lineEnd(text, start);
      if (end === null) break;
      const done = this.#line(text.slice(start, end.at));
      if (done) events.push(done);
      start = end.next;
    }
    this.#rest = text.slice(start);
    return events;
  }

  /** End the stream: return the events of a last line without line end or a last event without blank line. */
  end() {
    const events = [];
    const last = this.#rest.replace(/\r$/, "");
    this.#rest = "";
    for (const line of last ? [last, ""] : [""]) {
      const done = this.#line(line);
      if (done) events.push(done);
    }
    return events;
  }

  #line(line) {
    if (line === "") {
      const done = this.#data.length ? { event: this.#event || "message", data: this.#data.join("\n") } : null;
      this.#data = [];
      this.#event = "";
      return done;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#event = value;
    return null;
  }
}

/** Where the line from `start` ends and the next begins; null while that is unknown (a final CR may be half of CRLF). */
function lineEnd(text, start) {
  const lf = text.indexOf("\n", start);
  const before = lf < 0 ? text.length : lf;
  const cr = text.slice(start, before).indexOf("\r");
  if (cr < 0) return lf < 0 ? null : { at: lf, next: lf + 1 };
  const at = start + cr;
  if (at + 1 === text.length) return null;
  return { at, next: text[at + 1] === "\n" ? at + 2 : at + 1 };
}
