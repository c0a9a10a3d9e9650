// Conversations as files: JSON that this page reads again, and Markdown for people. What is imported may come from anyone.
import { el } from "./dom.js";
import { t } from "./i18n.js";
import { addChat, hasChat, listChats, newChat, peekChat } from "./store.js";
import { asChat } from "./stored.js";

const FORMAT = "fathom-conversations";
const VERSION = 1;
const MAX_BYTES = 64_000_000;

/** What is wrong with a file, as the key of a sentence. */
export class ImportError extends Error {
  constructor(key) {
    super(key);
    this.key = key;
  }
}

export function toJson(chats) {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations: chats }, null, 1);
}

/** The chats of a file's text, and how many of its conversations are none. */
export function fromJson(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new ImportError("importNotJson");
  }
  if (value?.format !== FORMAT || !Array.isArray(value.conversations)) throw new ImportError("importOtherFormat");
  if (value.version !== VERSION) throw new ImportError("importOtherVersion");
  const read = value.conversations.map(readChat);
  const chats = read.filter((chat) => chat?.messages.length || chat?.summary);
  return { chats, broken: read.length - chats.length };
}

function readChat(value) {
  try {
    return asChat(value, /^[\w-]{1,64}$/.test(value?.id) ? String(value.id) : newChat().id);
  } catch {
    return null; // nested deeper than any conversation
  }
}

/** Store the conversations of a file; return how many were {added, known already, broken, without room}. */
export async function importFile(file) {
  if (file.size > MAX_BYTES) throw new ImportError("importTooLarge");
  const { chats, broken } = fromJson(await file.text());
  const counts = { added: 0, known: 0, broken, full: 0 };
  for (const chat of chats) {
    if (isKnown(chat)) counts.known += 1;
    else if (addChat(hasChat(chat.id) ? { ...chat, id: newChat().id } : chat)) counts.added += 1;
    else counts.full += 1;
  }
  return counts;
}

const isKnown = (chat) => hasChat(chat.id) && JSON.stringify(peekChat(chat.id)?.messages) === JSON.stringify(chat.messages);

/** Every stored chat that can be read. */
export const storedChats = () => listChats().map(({ id }) => peekChat(id)).filter(Boolean);

/** The shown version of a chat as Markdown, in the page's language. */
export function toMarkdown({ title, summary, messages }) {
  const parts = [`# ${title || t("untitled")}`];
  if (summary) parts.push(`## ${t("summary")}`, summary);
  for (const { role, content, thinking, images = [] } of messages) {
    parts.push(`## ${t(role === "user" ? "you" : "assistant")}`);
    parts.push(...images.map(({ url, name }) => `![${name.replace(/[[\]\\\n]/g, " ")}](${url})`));
    if (thinking) parts.push(quoted(thinking));
    if (content) parts.push(content);
  }
  return `${parts.join("\n\n")}\n`;
}

const quoted = (text) => text.split("\n").map((line) => `> ${line}`.trimEnd()).join("\n");

/** Hand a text to the browser as a file to keep. */
export function download(text, name, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** A file's name from a title: what every system allows in one. */
export function fileName(title, extension) {
  const safe = title.replace(/[^\p{L}\p{N} _-]+/gu, " ").replace(/\s+/g, " ").trim().slice(0, 60).trim();
  return `${safe || "conversation"}.${extension}`;
}
