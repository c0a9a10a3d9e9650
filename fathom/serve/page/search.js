// Search over all stored conversations: those that hold every word, with what stands around the first.
import { allMessages } from "./conversation.js";
import { listChats, peekChat } from "./store.js";

const AROUND = 12; // characters of a snippet before what was found
const SNIPPET = 110;

/** The stored chats that hold every word of `query`, latest first, as {id, title, snippet: {text, at, length}}. */
export function search(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  return listChats().flatMap(({ id, title }) => {
    const texts = [title, ...textsOf(id)];
    const lower = texts.map((text) => text.toLowerCase());
    const holds = words.every((word) => lower.some((text) => text.includes(word)));
    return holds ? [{ id, title, snippet: snippetOf(texts, lower, words) }] : [];
  });
}

function textsOf(id) {
  const chat = peekChat(id);
  return chat ? [chat.summary ?? "", ...Array.from(allMessages(chat.messages), ({ content }) => content)] : [];
}

/** Where most of the words are found first, outside the title; null where the title alone holds them. */
function snippetOf(texts, lower, words) {
  const counts = lower.map((text, i) => (i === 0 ? 0 : words.filter((word) => text.includes(word)).length));
  const best = counts.indexOf(Math.max(...counts));
  if (counts[best] === 0) return null;
  const word = words.find((each) => lower[best].includes(each));
  const found = lower[best].indexOf(word);
  const from = Math.max(0, found - AROUND);
  const text = (from ? "…" : "") + texts[best].slice(from, from + SNIPPET).replace(/\s/g, " ");
  return { text, at: found - from + (from ? 1 : 0), length: word.length };
}
