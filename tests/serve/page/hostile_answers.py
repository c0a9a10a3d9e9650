"""Answers made to break the page, Markdown of every kind mixed with HTML and cut up, and what they may become."""

from __future__ import annotations

import random
import re

WORD = re.compile(r"w\d+z")
"""Words of an answer, each of which the page must still show."""
_MARKS = r"""
* ** *** _ __ ~~ ~ ` `` ``` ~~~ $ $$ \( \) \[ \] $ \frac{ } \left( \right) \begin{cases} \end{cases}
\href{javascript: \url{ \style{ \class{ \color{red} \rule{99em}{99em} \hspace{-99em} \raisebox{99em}{ \text{
\def\a{\a\a} ^ _ & \ \* [ ] ( ) ![ ]( ](https://a.org/ ](javascript: ](data:text/html, ](<
>) ') ") "x <script> </script> <svg/onload= <iframe/src=//x> <a/href= <br> <!-- --> <style> <base/href=//x> <https://
<javascript: https:// http://a@b.org:80/ mailto: &lt; &#39; | |-|-| |a|b| --- {{ ${ __proto__ constructor 模型 🌊 é
"""
_PIECES = (
    *_MARKS.split(),
    *("<img src=x onerror=", "> ", ">> ", "- ", "* ", "+ ", "1. ", "9) ", "- [x] ", "# ", "###### ", "    ", ' "'),
    *("\n", "\n\n", "\r\n", "\t", " ", "  ", "\x00", "\x1b[31m", "\u2028", "\u202e", "\u2066", "\u200d", "\ufeff"),
)
_ELEMENTS = """
p h3 h4 h5 h6 hr blockquote ol ul li input figure figcaption span svg path button pre code div table thead tbody tr th
td a em strong del br
math mrow mi mn mo ms mtext mspace msup msub msubsup munder mover munderover mmultiscripts mprescripts none mfrac
msqrt mroot mtable mtr mtd mpadded mphantom menclose mstyle
"""
_ATTRIBUTES = """
class href target rel title data-to start type disabled checked tabindex data-language data-i18n viewBox aria-hidden d
display form mathvariant scriptlevel columnspan displaystyle stretchy fence separator symmetric largeop movablelimits
accent accentunder lspace rspace width height depth voffset minsize maxsize linethickness data-tex style
"""
MAX_DEPTH = 150
CHECK = r"""async ({ text, words, elements, attributes, depth }) => {
    const { renderMarkdown } = await import("/page/markdown.js");
    const { settled } = await import("/page/math.js");
    const root = renderMarkdown(text);
    await settled();
    document.getElementById("turns").replaceChildren(root);
    root.getBoundingClientRect();
    const faults = [];
    if (root.querySelector(":scope > .plain")) faults.push("rendering failed");
    let seen = root.textContent;
    for (const node of root.querySelectorAll("*")) {
        if (!elements.includes(node.localName)) faults.push(`element ${node.localName}`);
        for (const { name, value } of node.attributes) {
            if (!attributes.includes(name)) faults.push(`attribute ${name} of ${node.localName}`);
            if (name === "style" && !/^(?:[a-z-]+: [\w. %]+; ?)+$/.test(value)) faults.push(`style ${value}`);
            if (name === "href" && !/^(https?|mailto):/i.test(value)) faults.push(`href ${value}`);
            seen += ` ${value}`;
        }
    }
    for (let [nodes, level] = [[root], 0]; nodes.length; nodes = nodes.flatMap((node) => [...node.children]), level++) {
        if (level > depth) { faults.push(`deeper than ${depth}`); break; }
    }
    faults.push(...words.filter((word) => !seen.includes(word)).map((word) => `${word} is lost`));
    document.getElementById("turns").replaceChildren();
    return [...new Set(faults)];
}"""


def make_answer(rng: random.Random) -> str:
    """Return an answer of up to a few thousand characters."""
    parts: list[str] = []
    for index in range(rng.choice((3, 20, 80, 200))):
        piece = rng.choice(_PIECES)
        kind = rng.random()
        if kind < 0.06:
            piece *= rng.choice((2, 7, 40, 300))
        elif kind < 0.12:
            piece = "".join(rng.choices(_PIECES, k=rng.randrange(2, 5))) * rng.choice((2, 20, 60))
        elif kind < 0.4:
            piece += f"w{index}z"
        parts.append(piece)
    return "".join(parts)


def check_arguments(text: str) -> dict[str, object]:
    """Return what ``CHECK`` takes for an answer; it returns the faults of what is shown."""
    return {
        "text": text,
        "words": sorted(set(WORD.findall(text))),
        "elements": _ELEMENTS.split(),
        "attributes": _ATTRIBUTES.split(),
        "depth": MAX_DEPTH,
    }
