// One answer: the request's messages or prompt, and streaming the response with its timings into a message.

const TEXT = { type: "text" };
const MIN_MS = 50;

/** The conversation as the request's messages; reasoning is sent back only where it is itself to be continued. */
export function toMessages(messages, system, continues = false) {
  const turns = system.trim() ? [{ role: "system", content: system }] : [];
  for (const message of messages) {
    const { role, content, images, thinking } = message;
    if (continues && message === messages.at(-1) && !content) turns.push({ role, content, reasoning_content: thinking });
    else if (role === "assistant" && !content) continue;
    else if (!images?.length) turns.push({ role, content });
    else {
      const pictures = images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
      turns.push({ role, content: content ? [...pictures, { ...TEXT, text: content }] : pictures });
    }
  }
  return turns;
}

/** All turns as one prompt for /v1/completions. */
export const toText = (messages) => messages.map(({ content }) => content).join("");

export const emptyAnswer = () => ({ role: "assistant", content: "", thinking: "", tokens: 0, finish: null, error: null });

/** Whether an answer ended before the model did, with something to continue. */
export const canContinue = ({ role, content, thinking, finish, error }) =>
  role === "assistant" && Boolean(content || thinking) && (error?.kind === "Cut" || (!error && [null, "length", "stopped"].includes(finish)));

/** Stream `parts` into `message`, behind what it holds, calling `changed` after each; errors are stored in the message. */
export async function streamInto(message, parts, signal, changed) {
  const began = performance.now();
  const before = { ms: message.elapsedMs, tokens: message.tokens };
  let first; // when the first part came that continues an answer: the wait for it is not counted
  const clock = () => {
    const now = performance.now() - began;
    if (before.ms === undefined) return now;
    first ??= now;
    return before.ms + now - first;
  };
  Object.assign(message, { finish: null, error: null });
  try {
    for await (const part of parts) {
      take(message, part, clock(), before.tokens);
      changed();
    }
  } catch (error) {
    if (signal.aborted) message.finish = "stopped";
    else message.error = toStoredError(error);
  }
  if (!message.finish && !message.error) message.finish = "stop";
  if (message.thinking && message.thinkingMs === undefined) message.thinkingMs = clock() - message.firstMs;
  message.totalMs = clock();
}

const toStoredError = ({ kind = "Server", detail = "", retryAfter = 0 }) => ({ kind, detail, retryAt: Date.now() + retryAfter * 1000 });

function take(message, part, now, tokensBefore) {
  if (part.thinking || part.content || part.text) {
    message.firstMs ??= now;
    message.elapsedMs = now;
    message.tokens += 1;
  }
  if (part.thinking) message.thinking += part.thinking;
  if (part.content) {
    if (message.thinking && message.thinkingMs === undefined) message.thinkingMs = now - message.firstMs;
    message.content += message.content ? part.content : part.content.trimStart();
  }
  if (part.text) message.content += part.text;
  if (part.finish) message.finish = part.finish;
  if (part.usage) {
    message.usage = part.usage;
    message.tokens = tokensBefore + part.usage.completion_tokens;
  }
}

/** Tokens per second after the first; null while that is too short a time to tell. */
export function speed({ tokens, firstMs, elapsedMs }) {
  return tokens > 1 && elapsedMs - firstMs > MIN_MS ? ((tokens - 1) * 1000) / (elapsedMs - firstMs) : null;
}
