"""Worked solutions of some reasoning-gym problems, written out from their metadata as training text.

Each is short text of small steps that ends with the answer. A text that does not is withheld: what is taught is right.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from fathom.data.problems.arithmetic import linear_steps, tree_steps
from fathom.spec.problem import Problem

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def worked_solution(problem: Problem) -> str | None:
    """Return a worked solution of a reasoning-gym problem; None where we write none, or none that ends with the answer.

    The last characters are the answer itself, after a space or a line's end.
    """
    write = _WRITERS.get(str(problem.details.get("dataset")))
    if write is None or not problem.answer:
        return None
    text = write(problem.details["metadata"], problem)
    if text is None or not text.endswith(problem.answer):
        return None
    before = text[: -len(problem.answer)]
    return text if not before or before[-1].isspace() else None


def _chain_sum(metadata: Mapping[str, Any], problem: Problem) -> str:
    first, *rest = metadata["expression"].split()
    total, steps = Decimal(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = total + Decimal(term) if sign == "+" else total - Decimal(term)
        steps.append(f"{total} {sign} {term} = {result}")
        total = result
    return "; ".join(steps) or f"{total}"


def _basic_arithmetic(metadata: Mapping[str, Any], problem: Problem) -> str | None:
    return tree_steps(metadata["expression"])


def _products(metadata: Mapping[str, Any], problem: Problem) -> str:
    """Multiply by each digit of the next factor, then add."""
    first, *rest = (int(term) for term in metadata["expression"].split(" * "))
    product, steps = first, []
    for factor in rest:
        digits = str(abs(factor))
        sign = -1 if factor < 0 else 1
        places = [sign * int(d) * 10 ** (len(digits) - 1 - i) for i, d in enumerate(digits) if d != "0"] or [0]
        total = 0
        for place in places:
            steps.append(f"{product} * {place} = {product * place}")
            if place != places[0]:
                steps.append(f"{total} + {product * place} = {total + product * place}")
            total += product * place
        product = total
    return "; ".join(steps) or f"{product}"


def _euclid(a: int, b: int) -> tuple[int, list[str]]:
    steps = []
    while b:
        steps.append(f"{a} = {a // b} * {b} + {a % b}")
        a, b = b, a % b
    return a, steps


def _gcd(metadata: Mapping[str, Any], problem: Problem) -> str:
    divisor, *rest = metadata["numbers"]
    steps = []
    for number in rest:
        divisor, found = _euclid(max(divisor, number), min(divisor, number))
        steps += [*found, f"gcd {divisor}"]
    return "; ".join(steps)


def _lcm(metadata: Mapping[str, Any], problem: Problem) -> str:
    multiple, *rest = metadata["numbers"]
    steps = []
    for number in rest:
        divisor, found = _euclid(max(multiple, number), min(multiple, number))
        steps += [*found, f"gcd {divisor}", f"{number} / {divisor} = {number // divisor}"]
        steps.append(f"{multiple} * {number // divisor} = {multiple * number // divisor}")
        multiple = multiple * number // divisor
    return "; ".join(steps)


def _letter_counting(metadata: Mapping[str, Any], problem: Problem) -> str:
    count, steps = 0, []
    for word in metadata["span"]:
        count += word.lower().count(metadata["target_letter"])
        steps.append(f"{' '.join(word)}: {count}")
    return "; ".join(steps)


def _leg_counting(metadata: Mapping[str, Any], problem: Problem) -> str:
    """Begin each kind of animal with its count, as the question does; then add up, one kind after another."""
    legs_of = importlib.import_module("reasoning_gym.arithmetic.leg_counting").ANIMALS
    total, steps = 0, []
    for animal, count in metadata["animals"].items():
        legs = count * legs_of[animal]
        steps.append(f"{count} {animal}: {count} * {legs_of[animal]} = {legs}")
        if len(steps) > 1:
            steps.append(f"{total} + {legs} = {total + legs}")
        total += legs
    return "; ".join(steps)


def _number_sorting(metadata: Mapping[str, Any], problem: Problem) -> str:
    superlative = "smallest" if metadata["direction"] == "ascending" else "largest"
    return _chosen(metadata["sorted_numbers"], superlative, problem.answer)


def _word_sorting(metadata: Mapping[str, Any], problem: Problem) -> str:
    superlative = "first" if metadata["direction"] == "ascending" else "last"
    return _chosen(metadata["sorted_words"], superlative, problem.answer)


def _chosen(ordered: list[str], superlative: str, answer: str) -> str:
    """Sort by choosing: one item after another, from what is left."""
    steps = [f"{superlative} of {len(ordered) - done} left: {item}" for done, item in enumerate(ordered)]
    return "\n".join([*steps, answer])


def _number_filtering(metadata: Mapping[str, Any], problem: Problem) -> str:
    """Apply the rule to one number after another, and say it again each time."""
    limit, kept = Decimal(metadata["filter_value"]), set(metadata["result"])
    verb, side = metadata["operation"].split("_")
    rule = f"{verb} {'>' if side == 'larger' else '<'}"
    steps = []
    for number in metadata["original_numbers"]:
        value = Decimal(number)
        relation = "<" if value < limit else ">" if value > limit else "="
        steps.append(f"{rule}, {number} {relation} {limit}: {'keep' if number in kept else 'remove'}")
    return "\n".join([*steps, problem.answer])


def _spell_backward(metadata: Mapping[str, Any], problem: Problem) -> str:
    word = metadata["word"]
    return f"{' '.join(word)}; backward {' '.join(reversed(word))}; {word[::-1]}"


def _word_sequence_reversal(metadata: Mapping[str, Any], problem: Problem) -> str:
    words = metadata["words"]
    numbered = "; ".join(f"{number} {word}" for number, word in enumerate(words, start=1))
    return f"{numbered}\nfrom {len(words)} to 1: {', '.join(reversed(words))}"


def _simple_equations(metadata: Mapping[str, Any], problem: Problem) -> str | None:
    return linear_steps(metadata["equation"], metadata["variable"])


def _gsm_symbolic(metadata: Mapping[str, Any], problem: Problem) -> str:
    text, _, _ = metadata["answer_cot"].rpartition("####")
    return f"{text.strip()}\nThe answer is {problem.answer}"


def _count_bits(metadata: Mapping[str, Any], problem: Problem) -> str:
    binary, count, steps = metadata["binary"], 0, []
    padded = binary.zfill(-(-len(binary) // 4) * 4)
    for start in range(0, len(padded), 4):
        count += padded[start : start + 4].count("1")
        steps.append(f"{padded[start : start + 4]}: {count}")
    return f"{metadata['number']} is {binary}; " + "; ".join(steps)


def _base_conversion(metadata: Mapping[str, Any], problem: Problem) -> str:
    """To base 10 digit by digit, then divide by the target base; the remainders are the digits, the last one first."""
    source, target, steps, value = metadata["source_base"], metadata["target_base"], [], 0
    for place, digit in enumerate(metadata["source_repr"].lower()):
        added = _DIGITS.index(digit)
        if place:
            steps.append(f"{value} * {source} + {added} = {value * source + added}")
        value = value * source + added
    left = value
    while left:
        steps.append(f"{left} = {left // target} * {target} + {left % target}, digit {_DIGITS[left % target]}")
        left //= target
    return "; ".join([*steps, problem.answer])


def _prime_factorization(metadata: Mapping[str, Any], problem: Problem) -> str:
    left, steps = metadata["number"], []
    for factor in metadata["factors"]:
        steps.append(f"{left} / {factor} = {left // factor}")
        left //= factor
    return "; ".join([*steps, problem.answer])


def _needle_haystack(metadata: Mapping[str, Any], problem: Problem) -> str | None:
    asked = re.fullmatch(r"Who (.+)\? Reply only with a name\.", metadata["question"])
    sentence = f"{problem.answer} {asked[1]}." if asked else ""
    if not sentence or sentence not in problem.question:
        return None
    return f"The text says: {sentence} The name is {problem.answer}"


def _coin_flip(metadata: Mapping[str, Any], problem: Problem) -> str:
    flips, heads = metadata["num_trials"], metadata["k_heads"]
    counts = range(heads, heads + 1 if metadata["problem_type"] == "exact" else flips + 1)
    steps = [f"2^{flips} = {2**flips}", *(f"C({flips}, {k}) = {math.comb(flips, k)}" for k in counts)]
    ways = sum(math.comb(flips, k) for k in counts)
    if len(counts) > 1:
        steps.append(f"{' + '.join(str(math.comb(flips, k)) for k in counts)} = {ways}")
    exact = Fraction(ways, 2**flips)
    return "; ".join([*steps, f"{ways} / {2**flips} = {float(exact):.10g}"])


_WRITERS: Mapping[str, Callable[[Mapping[str, Any], Problem], str | None]] = MappingProxyType(
    {
        "base_conversion": _base_conversion,
        "basic_arithmetic": _basic_arithmetic,
        "chain_sum": _chain_sum,
        "coin_flip": _coin_flip,
        "count_bits": _count_bits,
        "decimal_chain_sum": _chain_sum,
        "gcd": _gcd,
        "gsm_symbolic": _gsm_symbolic,
        "lcm": _lcm,
        "leg_counting": _leg_counting,
        "letter_counting": _letter_counting,
        "needle_haystack": _needle_haystack,
        "number_filtering": _number_filtering,
        "number_sorting": _number_sorting,
        "prime_factorization": _prime_factorization,
        "products": _products,
        "simple_equations": _simple_equations,
        "spell_backward": _spell_backward,
        "word_sequence_reversal": _word_sequence_reversal,
        "word_sorting": _word_sorting,
    }
)
SOLVED_DATASETS = frozenset(_WRITERS)
"""Data sets whose problems come with a worked solution."""
