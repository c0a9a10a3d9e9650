// The server's interface as this page uses it: models, streamed answers, and the gauges of the cache.
import { EventParser } from "./sse.js";

/** What went wrong, in a word the page has a sentence for; `detail` is the server's own. */
export class ApiError extends Error {
  constructor(kind, detail = "", retryAfter = 0) {
    super(detail || kind);
    this.kind = kind;
    this.detail = detail;
    this.retryAfter = retryAfter;
  }
}

/** Every kind of error; the page has a sentence for each. */
export const ERROR_KINDS = ["Unreachable", "Unauthorized", "Busy", "Unavailable", "Context", "Large", "Invalid", "Server", "Cut"];
const KINDS = { 401: "Unauthorized", 403: "Unauthorized", 413: "Large", 429: "Busy", 502: "Unavailable", 503: "Unavailable" };
const GAUGE = /^fathom_(pages_used|pages_cached|pages_total|requests_running|requests_waiting)(?:\{[^}]*\})? (\S+)/;

function kindOf(status, code) {
  if (code === "context_length_exceeded") return "Context";
  return KINDS[status] ?? (status >= 500 ? "Server" : "Invalid");
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const { message, code } = body.error ?? {};
  const seconds = Number.parseFloat(response.headers.get("retry-after") ?? "0");
  return new ApiError(kindOf(response.status, code), message ?? "", Number.isFinite(seconds) ? Math.ceil(seconds) : 0);
}

export class Api {
  key = "";

  async #ask(path, options = {}) {
    const headers = { ...options.headers, ...(this.key ? { Authorization: `Bearer ${this.key}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    } catch (error) {
      throw error.name === "AbortError" ? error : new ApiError("Unreachable");
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }

  /** The served models, without the other names that some of them have. */
  async models() {
    const { data } = await (await this.#ask("v1/models")).json();
    return data.filter(({ id, root }) => !root || root === id);
  }

  /** Pages and requests of all models together as {pages_used, ...}; null where the server does not say. */
  async gauges() {
    const text = await (await this.#ask("metrics")).text();
    const found = text.split("\n").map((line) => GAUGE.exec(line)).filter(Boolean);
    const sums = {};
    for (const [, name, value] of found) sums[name] = (sums[name] ?? 0) + Number(value);
    return found.length ? sums : null;
  }

  /** How many tokens the prompt of a conversation, or of a text, has. */
  async countTokens(body) {
    const headers = { "Content-Type": "application/json" };
    return (await (await this.#ask("tokenize", { method: "POST", headers, body: JSON.stringify(body) })).json()).count;
  }

  /** Yield the parts of an answer to a conversation: {thinking}, {content}, {finish}, {usage}. */
  chat(body, signal) {
    return this.#streamed("v1/chat/completions", body, signal);
  }

  /** Yield the parts of a text's continuation: {text}, {finish}, {usage}. */
  complete(body, signal) {
    return this.#streamed("v1/completions", body, signal);
  }

  async *#streamed(path, body, signal) {
    const asked = { ...body, stream: true, stream_options: { include_usage: true } };
    const headers = { "Content-Type": "application/json" };
    const response = await this.#ask(path, { method: "POST", headers, body: JSON.stringify(asked), signal });
    let finished = false;
    for await (const { data } of events(response.body)) {
      if (data === "[DONE]") return;
      const parts = partsOf(data);
      finished ||= parts.some((part) => part.finish);
      yield* parts;
    }
    if (!finished) throw new ApiError("Cut");
  }
}

async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      yield* parser.push(decoder.decode(value, { stream: !done }));
      if (done) break;
    }
    yield* parser.end();
  } catch (error) {
    throw error.name === "AbortError" || error instanceof ApiError ? error : new ApiError("Cut");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function partsOf(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ApiError("Cut", data.slice(0, 200));
  }
  if (chunk.error) throw new ApiError(kindOf(Number(chunk.error.status) || 500, chunk.error.code), chunk.error.message ?? "");
  const parts = [];
  const choice = chunk.choices?.[0];
  const thinking = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning;
  if (thinking) parts.push({ thinking });
  if (choice?.delta?.content) parts.push({ content: choice.delta.content });
  if (choice?.text) parts.push({ text: choice.text });
  if (choice?.finish_reason) parts.push({ finish: choice.finish_reason });
  if (chunk.usage) parts.push({ usage: chunk.usage });
  return parts;
}
