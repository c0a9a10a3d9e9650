"""Evaluations: bits per byte, needle in a haystack, multiple choice, word problems, pass@k and majority@k."""
