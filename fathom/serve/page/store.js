// Browser storage: conversations, draft and settings in localStorage; the API key, for this tab, in sessionStorage.
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

/** All chats as {id, title, updated}, latest first; found again by their keys where the list of them is lost. */
export function listChats() {
  const list = read(LOCAL, INDEX);
  const entries = Array.isArray(list) ? list.filter(isEntry) : keys(CHAT).map((key) => entryOf(key.slice(CHAT.length)));
  return entries.sort((a, b) => b.updated - a.updated);
}

function entryOf(id) {
  const { title = id, updated = 0 } = asChat(read(LOCAL, CHAT + id), id) ?? {};
  return { id, title, updated };
}

export const hasChat = (id) => rawChat(id) !== null;

/** A stored chat, or null. One that cannot be read is set aside, and `onBroken` called with its title. */
export function loadChat(id, onBroken) {
  const stored = rawChat(id);
  const chat = stored === null ? null : asChat(read(LOCAL, CHAT + id), id);
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

/** Save a chat; return false where its images did not fit and were dropped. */
export function saveChat(chat) {
  chat.updated = Date.now();
  const first = chat.messages.find((message) => message.role === "user");
  chat.title = (first?.content ?? "").trim().slice(0, 10 * TITLE_CHARS).replace(/\s+/g, " ").slice(0, TITLE_CHARS);
  const others = listChats().filter((each) => each.id !== chat.id);
  const whole = write(LOCAL, CHAT + chat.id, chat);
  if (!whole) write(LOCAL, CHAT + chat.id, withoutImages(chat));
  write(LOCAL, INDEX, [{ id: chat.id, title: chat.title, updated: chat.updated }, ...others]);
  return whole;
}

const withoutImages = (chat) => ({ ...chat, messages: chat.messages.map((message) => ({ ...message, images: [] })) });

export function deleteChat(id) {
  remove(CHAT + id);
  write(LOCAL, INDEX, listChats().filter((chat) => chat.id !== id));
}

export function deleteAllChats() {
  for (const key of keys(CHAT, ASIDE)) remove(key);
  remove(INDEX);
}
