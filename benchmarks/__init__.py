"""Fathom beside transformers: same weights, same machine, alternating rounds of one run."""
