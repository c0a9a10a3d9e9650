// Browser storage: conversations, draft and settings in localStorage; the API key, for this tab, in sessionStorage.
import { allMessages } from "./conversation.js";
import { asChat, isEntry } from "./stored.js";

const INDEX = "fathom.chats";
const CHAT = "fathom.chat.";
const ASIDE = "fathom.aside.";
const TITLE_CHARS = 60;
const LOCAL = () => localStorage; // which throws where storage is forbidden
const SESSION = () => sessionStorage;

function read(storage, key) {
  try {
    return JSON.parse(storage().getItem(key));
  } catch {
    return undefined;
  }
}

/** Write a value; return false where storage is full or forbidden. */
function write(storage, key, value) {
  return attempt(() => storage().setItem(key, JSON.stringify(value)));
}

const remove = (key) => attempt(() => LOCAL().removeItem(key));

function attempt(action) {
  try {
    action();
    return true;
  } catch {
    return false;
  }
}

function keys(...prefixes) {
  let found = [];
  attempt(() => (found = Object.keys(LOCAL())));
  return found.filter((key) => prefixes.some((prefix) => key.startsWith(prefix)));
}

/** What was remembered by a name; the fallback where that is nothing, or of another type than it. */
function recall(storage, key, fallback) {
  const value = read(storage, key);
  const fits = value !== null && typeof value === typeof fallback && !Array.isArray(value);
  return fits ? value : fallback;
}

export const loadSetting = (name, fallback) => recall(LOCAL, `fathom.${name}`, fallback);
export const remember = (name, value) => write(LOCAL, `fathom.${name}`, value);
export const loadApiKey = () => recall(SESSION, "fathom.key", "");
export const saveApiKey = (key) => write(SESSION, "fathom.key", key);

// Not crypto.randomUUID, which exists in secure contexts only.
export const newChat = () => ({ id: `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`, title: "", messages: [] });

/** All stored chats as {id, title, updated}, latest first; those that the list of them lacks are found by their keys. */
export function listChats() {
  const stored = new Set(keys(CHAT).map((key) => key.slice(CHAT.length)));
  const list = read(LOCAL, INDEX);
  const entries = Array.isArray(list) ? list.filter((value) => isEntry(value) && stored.delete(value.id)) : [];
  for (const id of stored) entries.push(entryOf(id));
  return entries.sort((a, b) => b.updated - a.updated);
}

function entryOf(id) {
  const { title, updated = 0 } = peekChat(id) ?? {};
  return { id, title: title ?? id, updated };
}

export const hasChat = (id) => rawChat(id) !== null;

/** A stored chat as it can be read; null otherwise. */
export const peekChat = (id) => asChat(read(LOCAL, CHAT + id), id);

/** A stored chat, or null. One that cannot be read is set aside, and `onBroken` called with its title. */
export function loadChat(id, onBroken) {
  const stored = rawChat(id);
  const chat = stored === null ? null : peekChat(id);
  if (stored !== null && chat === null) onBroken(setAside(id));
  return chat;
}

function rawChat(id) {
  let stored = null;
  attempt(() => (stored = LOCAL().getItem(CHAT + id)));
  return stored;
}

/** Move a chat to where this page does not read; return its title. */
export function setAside(id) {
  const stored = rawChat(id);
  const title = listChats().find((chat) => chat.id === id)?.title || id;
  deleteChat(id); // first, since there may be no room for both
  attempt(() => LOCAL().setItem(ASIDE + id, stored));
  return title;
}

export const hasAside = () => keys(ASIDE).length > 0;

/** Save a chat, which comes first in the list if it says something new; return "whole", "images" where its images did not fit and are not kept, or "nothing" where none of it did. */
export function saveChat(chat, isNew = true) {
  if (isNew) chat.updated = Date.now();
  if (!chat.named) chat.title = titleOf(chat);
  const kept = storeChat(chat);
  if (kept !== "nothing" || hasChat(chat.id)) list(chat);
  return kept;
}

/** Give a chat a title; an empty one stands for the beginning of its first message. */
export function renameChat(chat, title) {
  chat.named = Boolean(title.trim());
  chat.title = chat.named ? asTitle(title) : titleOf(chat);
  if (storeChat(chat) === "whole") list(chat);
}

function storeChat(chat) {
  if (write(LOCAL, CHAT + chat.id, chat)) return "whole";
  return write(LOCAL, CHAT + chat.id, withoutImages(chat)) ? "images" : "nothing";
}

function list({ id, title, updated }) {
  write(LOCAL, INDEX, [{ id, title, updated }, ...listChats().filter((each) => each.id !== id)]);
}

const asTitle = (text) => text.trim().slice(0, 10 * TITLE_CHARS).replace(/\s+/g, " ").slice(0, TITLE_CHARS);
const titleOf = ({ messages }) => asTitle(messages.find((message) => message.role === "user")?.content ?? "");

function withoutImages(chat) {
  const bare = structuredClone(chat);
  for (const message of allMessages(bare.messages)) if (message.images) message.images = [];
  return bare;
}

/** Add a chat that came from elsewhere, as it is; return whether it fits. */
export function addChat(chat) {
  if (!write(LOCAL, CHAT + chat.id, chat)) return false;
  list(chat);
  return true;
}

export function deleteChat(id) {
  remove(CHAT + id);
  write(LOCAL, INDEX, listChats().filter((chat) => chat.id !== id));
}

export function deleteAllChats() {
  for (const key of keys(CHAT, ASIDE)) remove(key);
  remove(INDEX);
}
