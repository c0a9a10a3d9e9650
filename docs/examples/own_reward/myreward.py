"""A reward of one's own: short answers."""


def brevity(prompt: str, answer: str, reference: str) -> float:
    """Return 1 for an answer of no word, and the less the more words it has."""
    return 1.0 / (1 + len(answer.split()))
