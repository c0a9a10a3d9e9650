// Which dollar signs stand around a formula, and which before an amount of money or a variable of a shell.

const MAX_CHARS = 1000;
const BEGINNING = 100; // characters that tell money and prose from a formula
const CLOSED_BEFORE = /(?:st|nd|rd|th|s)\b/y; // the $n$th, two $x$s
const MARKS = /[\\^_={}<>]/;
const MONEY = /^\d[\d.,]*\s*(?:[-–—/]\s*)?(?:\S*\s+)?[A-Za-z]{2,}/; // 5 and US, 10/month, 20 million
const PROSE = /(?:^|\s)[A-Za-z]{3,}\s+(?:\S+\s+)?[A-Za-z]{2,}/;
const CHINESE = /[\u3400-\u9fff\uff00-\uffef]/;

/** Where the dollar sign is that closes the one at a place; 0 where they are no formula's. */
export function closingDollar(text, at) {
  if (/[\w$]/.test(text[at - 1] ?? " ") || /^[\s$]?$/.test(text[at + 1] ?? "")) return 0;
  const end = nextDollar(text, at + 1);
  if (end <= at + 1 || /\s/.test(text[end - 1])) return 0;
  CLOSED_BEFORE.lastIndex = end + 1;
  if (/[\w$]/.test(text[end + 1] ?? " ") && !CLOSED_BEFORE.test(text)) return 0;
  const inner = text.slice(at + 1, Math.min(end, at + BEGINNING));
  return !MARKS.test(inner) && (MONEY.test(inner) || PROSE.test(inner) || CHINESE.test(inner)) ? 0 : end;
}

function nextDollar(text, from) {
  for (let i = from; i < Math.min(text.length, from + MAX_CHARS); i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "\n" || text[i] === "`") return 0;
    else if (text[i] === "$") return i;
  }
  return 0;
}
