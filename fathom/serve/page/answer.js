// One answer: the request's messages or prompt, and streaming the response with its timings into a message.

const TEXT = { type: "text" };
const MIN_MS = 50;

/** The conversation as the request's messages; reasoning is not sent back. */
export function toMessages(messages, system) {
  const turns = system.trim() ? [{ role: "system", content: system }] : [];
  for (const { role, content, images } of messages) {
    if (role === "assistant" && !content) continue;
    if (!images?.length) turns.push({ role, content });
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

/** Stream `parts` into `message`, calling `changed` after each; errors are stored in the message. */
export async function streamInto(message, parts, signal, changed) {
  const began = performance.now();
  const since = () => performance.now() - began;
  try {
    for await (const part of parts) {
      take(message, part, since());
      changed();
    }
  } catch (error) {
    if (signal.aborted) message.finish = "stopped";
    else message.error = toStoredError(error);
  }
  if (!message.finish && !message.error) message.finish = "stop";
  if (message.thinking && message.thinkingMs === undefined) message.thinkingMs = since() - message.firstMs;
  message.totalMs = since();
}

const toStoredError = ({ kind = "Server", detail = "", retryAfter = 0 }) => ({ kind, detail, retryAt: Date.now() + retryAfter * 1000 });

function take(message, part, now) {
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
    message.tokens = part.usage.completion_tokens;
  }
}

/** Tokens per second after the first; null while that is too short a time to tell. */
export function speed({ tokens, firstMs, elapsedMs }) {
  return tokens > 1 && elapsedMs - firstMs > MIN_MS ? ((tokens - 1) * 1000) / (elapsedMs - firstMs) : null;
}
