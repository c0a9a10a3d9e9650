// A conversation's versions. Its messages are the turns that are shown; the first message of a part that was answered or
// written anew holds the other versions of that part: `others`, lists of messages, and its own `place` among them.

/** How many versions begin at a message, and which of them is shown, counted from 0. */
export const versionsOf = ({ others = [], place = 0 }) => ({ count: others.length + 1, shown: place });

/** All versions that begin at an index, the shown one in its place; the conversation ends before it afterwards. */
function takeVersions(messages, index) {
  const shown = messages.splice(index);
  const { others = [], place = 0 } = shown[0];
  delete shown[0].others;
  delete shown[0].place;
  return [...others.slice(0, place), shown, ...others.slice(place)];
}

function show(messages, versions, place) {
  const [shown] = versions.splice(place, 1);
  if (versions.length) Object.assign(shown[0], { others: versions, place });
  messages.push(...shown);
}

/** Begin a new version at an index; what was there is kept as another, unless it is an answer that says nothing. */
export function addVersion(messages, index, message) {
  const old = messages[index];
  const saysNothing = (version) => version[0] === old && version.length === 1 && isEmpty(old);
  const versions = takeVersions(messages, index).filter((version) => !saysNothing(version));
  show(messages, [...versions, [message]], versions.length);
}

/** Show another version of what begins at an index. */
export function showVersion(messages, index, place) {
  const versions = takeVersions(messages, index);
  show(messages, versions, Math.max(0, Math.min(place, versions.length - 1)));
}

export const isEmpty = (message) => message.role === "assistant" && !message.content && !message.thinking;

/** The messages that the model is given: those from the last one that begins anew. */
export const sentMessages = (messages) => messages.slice(Math.max(0, messages.findLastIndex((message) => message.first)));

/** Have the model given the messages from an index on alone; 0 gives it all. */
export function sendFrom(messages, index) {
  for (const message of messages) delete message.first;
  if (index > 0) messages[index].first = true;
}

/** Every message, those of versions that are not shown too. */
export function* allMessages(messages) {
  for (const message of messages) {
    yield message;
    for (const version of message.others ?? []) yield* allMessages(version);
  }
}

/** Copies of messages, of the shown version alone. */
export const shownCopies = (messages) => structuredClone(messages.map(({ others, place, first, ...message }) => message));
