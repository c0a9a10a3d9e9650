// Reading what the browser's storage holds: other versions of this page wrote it, or other pages of this address, or anyone.
//
// A chat is {id, title, updated, messages}. A message of the user is {role, content, images}; of the assistant
// {role, content, thinking, thinkingMs, firstMs, elapsedMs, totalMs, tokens, usage, finish, error}.
import { ERROR_KINDS } from "./api.js";
import { KINDS } from "./images.js";

const TIMES = ["thinkingMs", "firstMs", "elapsedMs", "totalMs"];
const COUNTS = ["prompt_tokens", "completion_tokens", "total_tokens"];

const isText = (value) => typeof value === "string";
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isImage = (value) => isObject(value) && isText(value.url) && KINDS.some((kind) => value.url.startsWith(`data:${kind};base64,`));

export const isEntry = (value) => isObject(value) && isText(value.id) && isText(value.title) && isNumber(value.updated);

/** The chat that a value is, with the fields that are known and of their type alone; null where its messages are none. */
export function asChat(value, id) {
  if (!isObject(value) || !Array.isArray(value.messages)) return null;
  const messages = value.messages.map(asMessage);
  if (messages.includes(null)) return null;
  return { id, title: isText(value.title) ? value.title : "", updated: isNumber(value.updated) ? value.updated : 0, messages };
}

function asMessage(value) {
  if (!isObject(value) || !isText(value.content)) return null;
  const { role, content } = value;
  if (role === "user") {
    const images = Array.isArray(value.images) ? value.images.filter(isImage) : [];
    return { role, content, images: images.map(({ url, name }) => ({ url, name: isText(name) ? name : "" })) };
  }
  if (role !== "assistant") return null;
  const message = { role, content, thinking: isText(value.thinking) ? value.thinking : "", tokens: isNumber(value.tokens) ? value.tokens : 0 };
  for (const field of TIMES) if (isNumber(value[field])) message[field] = value[field];
  message.finish = isText(value.finish) ? value.finish : null;
  message.error = asError(value.error);
  const usage = asUsage(value.usage);
  return usage ? { ...message, usage } : message;
}

function asError(value) {
  if (!isObject(value)) return null;
  const { kind, detail, retryAt } = value;
  return { kind: ERROR_KINDS.includes(kind) ? kind : "Server", detail: isText(detail) ? detail : "", retryAt: isNumber(retryAt) ? retryAt : 0 };
}

function asUsage(value) {
  if (!isObject(value) || !COUNTS.every((field) => isNumber(value[field]))) return null;
  const cached = value.prompt_tokens_details?.cached_tokens;
  const details = isNumber(cached) ? { prompt_tokens_details: { cached_tokens: cached } } : {};
  return { ...Object.fromEntries(COUNTS.map((field) => [field, value[field]])), ...details };
}
