"""The program that tries a pattern of a tokenizer.json on hostile texts; ``pattern_trial`` starts it by its path.

It needs the standard library and tokenizers only. Standard input holds the pattern as JSON. It ends with 0 where all
texts are split in time, with 1 and a reason where the pattern cannot be used, and by a signal where it takes too long.
"""

from __future__ import annotations

import json
import signal
import sys
from itertools import pairwise

CHARS = 40_000
PROCESSOR_SECONDS = 3.0
_MOST_LITERALS = 24


def texts(pattern: str) -> list[str]:
    """Return texts that patterns may go back and forth in: runs of one or two characters, and an end unlike them."""
    usual = " aA1\n!.\u5929_"
    literals = dict.fromkeys(char for char in pattern if char not in "\\()[]{}|*+?^$")
    chars = [*dict.fromkeys(usual), *[char for char in literals if char not in usual][:_MOST_LITERALS]]
    end = "\u2603" + "".join(chars)  # an engine looks first whether what a pattern must have is there at all
    runs = [char * CHARS + after for char in chars for after in (end, "")]
    pairs = [(one + other) * (CHARS // 2) + end for one, other in pairwise(chars)]
    return [*runs, *pairs]


def limit(memory_bytes: int) -> None:
    """Limit processor time and address space, where the system can."""
    if sys.platform == "win32":
        return
    import resource

    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
    for kind, most in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):  # macOS knows some of them by name only
            continue


def main(folder: str, memory_bytes: int) -> int:
    """Try the pattern of standard input."""
    sys.path.append(folder)
    from tokenizers import Regex, pre_tokenizers

    pattern = json.load(sys.stdin)
    limit(memory_bytes)
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        for text in texts(pattern):
            split.pre_tokenize_str(text)
    except BaseException as error:  # the library panics where its engine gives up
        sys.stdout.write(" ".join(str(error).split()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
