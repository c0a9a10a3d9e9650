"""Preferences: pairs of answers, a loader that keeps them together, and direct preference optimization."""

from __future__ import annotations

from fathom.posttrain.preferences.batched_forward import batched_hidden_states
from fathom.posttrain.preferences.dpo import PreferenceObjective, pair_groups, reference_logprobs
from fathom.posttrain.preferences.forms import PREFERENCE_FORMS, Preference
from fathom.posttrain.preferences.judged import (
    JudgedAnswer,
    as_preference,
    pair_best_with_worst,
    pairs_from_token_ids,
    read_judged,
    subset_of_problems,
)
from fathom.posttrain.preferences.loader import GroupLoader, TrainingExample, pack_groups
from fathom.posttrain.preferences.pairs import PreferencePair, encode_pairs, read_preferences

__all__ = [
    "PREFERENCE_FORMS",
    "GroupLoader",
    "JudgedAnswer",
    "Preference",
    "PreferenceObjective",
    "PreferencePair",
    "TrainingExample",
    "as_preference",
    "batched_hidden_states",
    "encode_pairs",
    "pack_groups",
    "pair_best_with_worst",
    "pair_groups",
    "pairs_from_token_ids",
    "read_judged",
    "read_preferences",
    "reference_logprobs",
    "subset_of_problems",
]
