// All texts of the page in English and Chinese, and functions that put them into nodes.

const ENGLISH = {
  title: "Fathom",
  skip: "Skip to the message field",
  newChat: "New chat",
  chats: "Conversations",
  openChats: "Show conversations",
  closeChats: "Hide conversations",
  deleteChat: "Delete “{title}”",
  deleteAll: "Delete all",
  confirmDeleteAll: "Delete all conversations from this browser?",
  untitled: "New conversation",
  settings: "Settings",
  closeSettings: "Close settings",
  theme: "Theme: {theme}",
  themeAuto: "automatic",
  themeLight: "light",
  themeDark: "dark",
  language: "中文",
  model: "Model",
  context: "Context",
  contextOf: "{used} of {total} tokens of context",
  cache: "Cache",
  cacheOf: "{used} pages in use, {cached} kept, {total} in all",
  cacheShort: "{used} in use · {cached} kept · {total} pages",
  running: "{running} running, {waiting} waiting",
  perToken: "{bytes} per token",
  welcome: "What would you like to know?",
  welcomeHint: "Your words go to this server and nowhere else. Conversations stay in this browser.",
  continues: "This model continues texts. It has not learned to converse.",
  question1: "What is the capital of France?",
  question2: "Write a short poem about the sea.",
  question3: "Write a Python function that reverses a string.",
  start1: "Once upon a time",
  start2: "The capital of France is",
  start3: "def reverse(text):",
  conversation: "Conversation",
  message: "Message",
  placeholder: "Write a message",
  placeholderText: "Write the start of a text",
  hint: "Enter sends · Shift+Enter starts a line",
  send: "Send",
  stop: "Stop",
  attach: "Add images",
  removeImage: "Remove {name}",
  imageAlt: "Image {number}",
  imageTooLarge: "{name} is larger than {limit}. Choose a smaller image.",
  imageTooMany: "At most {limit} images fit in one message.",
  imageKind: "{name} is not a PNG, JPEG, WebP or GIF image.",
  imageUnread: "{name} could not be read.",
  imageUnsupported: "This model does not accept images.",
  dropHere: "Drop images here",
  you: "You",
  assistant: "Answer",
  copy: "Copy",
  copied: "Copied",
  copyFailed: "Not copied",
  regenerate: "Regenerate",
  edit: "Edit",
  editMessage: "Edit your message",
  resend: "Send again",
  cancel: "Cancel",
  latest: "To the latest",
  thinking: "Thinking… {seconds} s",
  thought: "Thought for {seconds} s",
  waiting: "Waiting for the first token… {seconds} s",
  speed: "{rate} tokens/s",
  first: "first token {seconds} s",
  tokens: "{tokens} tokens",
  reused: "{cached} of {prompt} prompt tokens cached",
  answering: "Answering",
  answered: "Answer: {text}",
  stopped: "Stopped.",
  interrupted: "The page was closed before this answer was complete.",
  atLength: "The answer reached its length limit. Raise “Max tokens” in the settings, or ask it to go on.",
  calledTool: "The model asked for a tool; this page has none.",
  systemPrompt: "System prompt",
  systemHint: "Comes first in every conversation",
  temperature: "Temperature",
  temperatureHint: "0 is greedy decoding",
  top_p: "Top-p",
  top_pHint: "Sample from the most likely tokens up to this probability",
  top_k: "Top-k",
  top_kHint: "Sample from this many most likely tokens",
  min_p: "Min-p",
  min_pHint: "Drop tokens below this fraction of the most likely one",
  max_tokens: "Max tokens",
  max_tokensHint: "Length limit of an answer",
  seed: "Seed",
  seedHint: "The same seed gives the same answer",
  thinkingChoice: "Thinking",
  thinkingAuto: "Automatic",
  thinkingOn: "On",
  thinkingOff: "Off",
  thinking_budget: "Thinking budget",
  thinking_budgetHint: "Maximum tokens of thinking",
  unset: "default",
  reset: "Reset to defaults",
  notUsed: "Outside {min} to {max}: not used.",
  keyTitle: "This server asks for a key",
  keyHint: "It is kept for this tab only and forgotten when the tab closes.",
  keyWrong: "The server did not accept this key.",
  key: "API key",
  keySave: "Use key",
  retry: "Try again",
  retryIn: "Try again in {seconds} s",
  noScript: "This page needs JavaScript.",
  storageFull: "This browser's storage is full: images of this conversation are not kept. Delete old conversations.",
  setAside: "The stored conversation “{name}” cannot be read and was set aside. “Delete all” removes it.",
  errorUnreachable: "The server cannot be reached. Check that it is running.",
  errorUnauthorized: "The server asks for a valid key.",
  errorBusy: "The server is busy: its queue is full.",
  errorUnavailable: "The server takes no requests now. It may be starting or shutting down.",
  errorContext: "This conversation no longer fits the model's context. Start a new chat, or shorten your message.",
  errorLarge: "This message is larger than the server takes. Remove an image or shorten the text.",
  errorInvalid: "The server did not accept the request.",
  errorServer: "The server failed while answering.",
  errorCut: "The connection broke before the answer was complete.",
};

const CHINESE = {
  title: "Fathom",
  skip: "跳到输入框",
  newChat: "新对话",
  chats: "对话",
  openChats: "显示对话列表",
  closeChats: "隐藏对话列表",
  deleteChat: "删除“{title}”",
  deleteAll: "全部删除",
  confirmDeleteAll: "要从此浏览器删除所有对话吗？",
  untitled: "新的对话",
  settings: "设置",
  closeSettings: "关闭设置",
  theme: "主题：{theme}",
  themeAuto: "自动",
  themeLight: "浅色",
  themeDark: "深色",
  language: "English",
  model: "模型",
  context: "上下文",
  contextOf: "上下文已用 {used} / {total} 个词元",
  cache: "缓存",
  cacheOf: "使用中 {used} 页，保留 {cached} 页，共 {total} 页",
  cacheShort: "使用 {used} · 保留 {cached} · 共 {total} 页",
  running: "{running} 个运行中，{waiting} 个等待",
  perToken: "每词元 {bytes}",
  welcome: "想了解些什么？",
  welcomeHint: "你的内容只会发送到这台服务器；对话只保存在此浏览器中。",
  continues: "此模型只会续写文本，没有学过对话。",
  question1: "法国的首都是哪里？",
  question2: "写一首关于大海的短诗。",
  question3: "写一个反转字符串的 Python 函数。",
  start1: "从前，",
  start2: "法国的首都是",
  start3: "def reverse(text):",
  conversation: "对话内容",
  message: "消息",
  placeholder: "输入消息",
  placeholderText: "输入文本的开头",
  hint: "Enter 发送 · Shift+Enter 换行",
  send: "发送",
  stop: "停止",
  attach: "添加图片",
  removeImage: "移除 {name}",
  imageAlt: "图片 {number}",
  imageTooLarge: "{name} 超过 {limit}，请选择较小的图片。",
  imageTooMany: "一条消息最多 {limit} 张图片。",
  imageKind: "{name} 不是 PNG、JPEG、WebP 或 GIF 图片。",
  imageUnread: "无法读取 {name}。",
  imageUnsupported: "此模型不支持图片。",
  dropHere: "把图片拖到这里",
  you: "你",
  assistant: "回答",
  copy: "复制",
  copied: "已复制",
  copyFailed: "复制失败",
  regenerate: "重新生成",
  edit: "编辑",
  editMessage: "编辑你的消息",
  resend: "重新发送",
  cancel: "取消",
  latest: "回到最新",
  thinking: "思考中… {seconds} 秒",
  thought: "思考了 {seconds} 秒",
  waiting: "等待首个词元… {seconds} 秒",
  speed: "{rate} 词元/秒",
  first: "首个词元 {seconds} 秒",
  tokens: "{tokens} 个词元",
  reused: "提示 {prompt} 个词元中 {cached} 个来自缓存",
  answering: "正在回答",
  answered: "回答：{text}",
  stopped: "已停止。",
  interrupted: "回答完成之前页面已关闭。",
  atLength: "回答已达到长度上限。可在设置中提高“最多词元数”，或让它继续。",
  calledTool: "模型请求调用工具，而此页面没有工具。",
  systemPrompt: "系统提示",
  systemHint: "放在每个对话的最前面",
  temperature: "温度",
  temperatureHint: "0 表示贪心解码",
  top_p: "Top-p",
  top_pHint: "从累计概率达到此值的词元中抽取",
  top_k: "Top-k",
  top_kHint: "从最可能的若干个词元中抽取",
  min_p: "Min-p",
  min_pHint: "舍去低于最大概率这一比例的词元",
  max_tokens: "最多词元数",
  max_tokensHint: "一次回答的长度上限",
  seed: "随机种子",
  seedHint: "相同的种子得到相同的回答",
  thinkingChoice: "思考",
  thinkingAuto: "自动",
  thinkingOn: "开",
  thinkingOff: "关",
  thinking_budget: "思考预算",
  thinking_budgetHint: "思考最多使用的词元数",
  unset: "默认",
  reset: "恢复默认",
  notUsed: "不在 {min} 到 {max} 之间，不会使用。",
  keyTitle: "此服务器需要密钥",
  keyHint: "密钥只保留在此标签页中，关闭后即被遗忘。",
  keyWrong: "服务器没有接受这个密钥。",
  key: "API 密钥",
  keySave: "使用密钥",
  retry: "重试",
  retryIn: "{seconds} 秒后可重试",
  noScript: "此页面需要 JavaScript。",
  storageFull: "浏览器存储已满：此对话的图片不会被保存。请删除旧对话。",
  setAside: "已保存的对话“{name}”无法读取，已搁置。“全部删除”会将其移除。",
  errorUnreachable: "无法连接服务器。请确认它正在运行。",
  errorUnauthorized: "服务器需要有效的密钥。",
  errorBusy: "服务器繁忙：队列已满。",
  errorUnavailable: "服务器暂不接受请求，可能正在启动或关闭。",
  errorContext: "对话已超出模型的上下文长度。请开始新对话，或缩短消息。",
  errorLarge: "消息超过了服务器允许的大小。请移除图片或缩短文字。",
  errorInvalid: "服务器没有接受这个请求。",
  errorServer: "服务器在回答时出错。",
  errorCut: "回答完成之前连接中断了。",
};

export const LANGUAGES = { en: ENGLISH, zh: CHINESE };
const TAGS = { en: "en", zh: "zh-CN" };
const PLACES = { i18n: "textContent", i18nLabel: "aria-label", i18nTitle: "title", i18nPlaceholder: "placeholder", i18nAlt: "alt" };

let current = "en";
const values = new WeakMap(); // node -> what its sentence's braces stand for

export const language = () => current;

/** The language to begin with: the one chosen here before, else the browser's. */
export function preferredLanguage(chosen, browser) {
  if (Object.hasOwn(LANGUAGES, chosen)) return chosen;
  return browser.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export function t(key, parameters = {}) {
  return LANGUAGES[current][key].replace(/\{(\w+)\}/g, (_, name) => parameters[name] ?? "");
}

/** Give a node a text that follows the language; `place` is one of i18n, i18nLabel, i18nTitle, i18nPlaceholder, i18nAlt. */
export function say(node, key, parameters = {}, place = "i18n") {
  node.dataset[place] = key;
  values.set(node, { ...values.get(node), ...parameters });
  put(node, place);
  return node;
}

/** Label a control for screen readers and as a tooltip. */
export function name(node, key, parameters = {}) {
  return say(say(node, key, parameters, "i18nLabel"), key, parameters, "i18nTitle");
}

export function setLanguage(next, root = document) {
  current = next;
  document.documentElement.lang = TAGS[next];
  for (const place of Object.keys(PLACES)) {
    const selector = `[data-${place.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}]`;
    for (const node of root.querySelectorAll(selector)) put(node, place);
  }
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(TAGS[current], { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

function put(node, place) {
  const sentence = t(node.dataset[place], translated(values.get(node)));
  if (place === "i18n") {
    if (node.textContent !== sentence) node.textContent = sentence;
  } else node.setAttribute(PLACES[place], sentence);
}

/** Parameters that are themselves sentences are given as {key}. */
function translated(parameters = {}) {
  return Object.fromEntries(Object.entries(parameters).map(([name, value]) => [name, value?.key ? t(value.key) : value]));
}
