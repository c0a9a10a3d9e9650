"""Evaluation of a model alone: bits per byte of text, and needle in a haystack."""
