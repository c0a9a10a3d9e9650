"""The losses of post-training, as functions of tensors: no model, tokenizer, logging or collectives.

Tokens are flat: N tokens of B packed answers, ``row_N`` saying which answer each belongs to.
"""

from __future__ import annotations

from fathom.posttrain.losses.advantages import Advantages, TokenAdvantages, group_advantages, process_advantages
from fathom.posttrain.losses.distill import distillation_advantages, divergence
from fathom.posttrain.losses.kl import kl_estimate, penalised_advantages, penalised_rewards
from fathom.posttrain.losses.logprobs import chosen_logprobs, entropy, token_loss
from fathom.posttrain.losses.policy import PolicyTerms, policy_loss, token_weights
from fathom.posttrain.losses.preference import (
    PreferenceTerms,
    answer_logprobs,
    dpo_loss,
    pairwise_loss,
    pointwise_loss,
)
from fathom.posttrain.losses.statistics import answer_statistics, policy_statistics

__all__ = [
    "Advantages",
    "PolicyTerms",
    "PreferenceTerms",
    "TokenAdvantages",
    "answer_logprobs",
    "answer_statistics",
    "chosen_logprobs",
    "distillation_advantages",
    "divergence",
    "dpo_loss",
    "entropy",
    "group_advantages",
    "kl_estimate",
    "pairwise_loss",
    "penalised_advantages",
    "penalised_rewards",
    "pointwise_loss",
    "policy_loss",
    "policy_statistics",
    "process_advantages",
    "token_loss",
    "token_weights",
]
