// Browser storage: conversations, draft and settings in localStorage; the API key, for this tab, in sessionStorage.
//
// A chat is {id, title, updated, messages}. A message of the user is {role, content, images}; of the assistant
// {role, content, thinking, thinkingMs, firstMs, elapsedMs, tokens, usage, finish, error}.

const INDEX = "fathom.chats";
const chatKey = (id) => `fathom.chat.${id}`;
const TITLE_CHARS = 60;

function read(storage, key, fallback) {
  try {
    return JSON.parse(storage.getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Write a value; return false where storage is full or forbidden. */
function write(storage, key, value) {
  try {
    storage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export const loadSetting = (name, fallback) => read(localStorage, `fathom.${name}`, fallback);
export const remember = (name, value) => write(localStorage, `fathom.${name}`, value);
export const loadApiKey = () => read(sessionStorage, "fathom.key", "");
export const saveApiKey = (key) => write(sessionStorage, "fathom.key", key);

// Not crypto.randomUUID, which exists in secure contexts only.
export const newChat = () => ({ id: `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`, title: "", messages: [] });

/** All chats as {id, title, updated}, latest first. */
export function listChats() {
  const list = read(localStorage, INDEX, []);
  return (Array.isArray(list) ? list : []).sort((a, b) => b.updated - a.updated);
}

export function loadChat(id) {
  const chat = read(localStorage, chatKey(id), null);
  return Array.isArray(chat?.messages) ? chat : null;
}

/** Save a chat; return false where its images did not fit and were dropped. */
export function saveChat(chat) {
  chat.updated = Date.now();
  const first = chat.messages.find((message) => message.role === "user");
  chat.title = (first?.content ?? "").trim().replace(/\s+/g, " ").slice(0, TITLE_CHARS);
  const others = listChats().filter((each) => each.id !== chat.id);
  const whole = write(localStorage, chatKey(chat.id), chat);
  if (!whole) write(localStorage, chatKey(chat.id), withoutImages(chat));
  write(localStorage, INDEX, [{ id: chat.id, title: chat.title, updated: chat.updated }, ...others]);
  return whole;
}

const withoutImages = (chat) => ({ ...chat, messages: chat.messages.map((message) => ({ ...message, images: [] })) });

export function deleteChat(id) {
  localStorage.removeItem(chatKey(id));
  write(localStorage, INDEX, listChats().filter((chat) => chat.id !== id));
}

export function deleteAllChats() {
  for (const { id } of listChats()) localStorage.removeItem(chatKey(id));
  localStorage.removeItem(INDEX);
}
