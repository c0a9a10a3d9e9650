// Reading what the browser's storage holds: other versions of this page wrote it, or other pages of this address, or anyone.
//
// A chat is {id, title, named, updated, summary, messages}: `named` where its title was given by the user, `summary` of an
// earlier conversation that it goes on from. A message of the user is {role, content, images, first}; of the assistant
// {role, content, thinking, thinkingMs, firstMs, elapsedMs, totalMs, tokens, usage, finish, error}. Either may have other
// versions (conversation.js).
import { ERROR_KINDS } from "./api.js";
import { KINDS } from "./images.js";

const MAX_DEPTH = 500; // versions within versions
const MAX_TITLE = 200;
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
  const messages = asMessages(value.messages, 0);
  if (messages === null) return null;
  const chat = { id, title: isText(value.title) ? value.title.slice(0, MAX_TITLE) : "", updated: isNumber(value.updated) ? value.updated : 0, messages };
  if (value.named === true && chat.title) chat.named = true;
  if (isText(value.summary) && value.summary) chat.summary = value.summary;
  return chat;
}

function asMessages(values, depth) {
  const messages = values.map((value) => asMessage(value, depth));
  return messages.includes(null) ? null : messages;
}

function asMessage(value, depth) {
  if (!isObject(value) || !isText(value.content)) return null;
  const message = value.role === "user" ? asQuestion(value) : value.role === "assistant" ? asAnswer(value) : null;
  if (message === null || value.others === undefined) return message;
  if (!Array.isArray(value.others) || depth >= MAX_DEPTH) return null;
  const others = value.others.map((version) => (Array.isArray(version) && version.length ? asMessages(version, depth + 1) : null));
  if (others.includes(null)) return null;
  const place = Number.isInteger(value.place) ? Math.max(0, Math.min(value.place, others.length)) : others.length;
  return others.length ? { ...message, others, place } : message;
}

function asQuestion({ role, content, images, first }) {
  const found = Array.isArray(images) ? images.filter(isImage) : [];
  const message = { role, content, images: found.map(({ url, name }) => ({ url, name: isText(name) ? name : "" })) };
  return first === true ? { ...message, first } : message;
}

function asAnswer(value) {
  const { role, content } = value;
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
