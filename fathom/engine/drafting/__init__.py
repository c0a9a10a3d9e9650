"""Proposing tokens ahead, so that one pass of the model may settle several (``acceptance`` says which)."""
