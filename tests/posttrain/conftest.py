"""A tiny mixture of experts, a tokenizer, problems with one-token answers, a simple judge, and a sandbox or a skip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from fathom.engine.engine import Engine
from fathom.errors import ResourceError
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.pipeline.rollouts import rollout_engine
from fathom.posttrain.grpo import PolicyTrainer
from fathom.posttrain.problem_stream import ProblemStream
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.rewards.base import Judgement, RewardInput
from fathom.posttrain.sandbox import check_sandbox
from fathom.spec import GroupedQueryAttention, LatentAttention, MixtureOfExperts, ModelSpec
from fathom.spec.engine import EngineSpec
from fathom.spec.posttrain import KlPenalty, PolicyLoss
from fathom.spec.problem import Problem, Split
from fathom.spec.rollout import PolicySpec, RolloutSpec, TextPrompt
from fathom.spec.train import AdamWSpec, Checkpointing
from fathom.tokenizer import Tokenizer, train_bpe

CPU = torch.device("cpu")
MODEL = ModelSpec(
    name="tiny",
    family="deepseek_v2",
    vocab_size=320,
    hidden_size=32,
    num_hidden_layers=2,
    attention=LatentAttention(num_heads=2, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8),
    max_position_embeddings=64,
    intermediate_size=48,
    first_k_dense_replace=1,
    initializer_range=0.2,
    moe=MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1),
)
DENSE = ModelSpec(
    name="dense",
    family="llama",
    vocab_size=320,
    hidden_size=32,
    num_hidden_layers=1,
    attention=GroupedQueryAttention(num_heads=2, num_kv_heads=1, head_dim=16),
    max_position_embeddings=64,
    intermediate_size=48,
    initializer_range=0.2,
)


def reference_tokenizer() -> Tokenizer:
    """The tokenizer of all tests here, for other processes too."""
    return train_bpe(["What is 1 + 2? The answer is 3. " * 20], vocab_size=320)


@pytest.fixture(scope="session")
def sandbox_works() -> None:
    """Skip where no sandbox can be made."""
    try:
        check_sandbox()
    except ResourceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return reference_tokenizer()


class Endless:
    """Problems without end: say the letter."""

    def __init__(self, name: str = "letters") -> None:
        self.name = name

    def problems(self, split: Split, start: int, count: int, *, seed: int = 0) -> list[Problem]:
        """The n-th asks for one of four letters."""
        return [
            Problem(id=f"{self.name}-{i}", task=self.name, question=f"{(i * 7 + seed) % 4}?", answer="abcd"[i % 4])
            for i in range(start, start + count)
        ]

    def size(self, split: Split) -> int | None:
        """No end."""
        return None


def even_characters(answers: Sequence[RewardInput]) -> list[Judgement]:
    """Reward the share of characters with an even code: every answer has some, and few groups agree."""
    totals = [sum(ord(c) % 2 == 0 for c in a.answer) / max(len(a.answer), 1) for a in answers]
    return [Judgement(total=total, parts={"even": total}, correct=total > 0.5) for total in totals]


SPEC = PolicySpec(
    optimizer=AdamWSpec(lr=1e-2, weight_decay=0.0),
    rollouts=4,
    rollout=RolloutSpec(questions=3, group_size=4, max_tokens=6, prompt=TextPrompt(text="Q {question} A")),
    micro_batch_tokens=64,
    max_logprob_difference=1e-3,
    checkpoint=Checkpointing(every_steps=1, every_seconds=None, keep=10),
    loss=PolicyLoss(kl=KlPenalty(beta=0.05)),
    reference_every=2,
)

MakePolicy = Callable[..., PolicyTrainer]


def new_policy(
    tokenizer: Tokenizer,
    directory: Path,
    spec: PolicySpec = SPEC,
    *,
    judge: object = even_characters,
    model: Decoder | None = None,
    engine: EngineSpec | None = None,
) -> PolicyTrainer:
    """A policy over the tiny mixture; its engine computes in the update's precision unless another is given."""
    decoder = build(MODEL) if model is None else model
    sampler = Engine(decoder, eos_ids=[tokenizer.eos_id], spec=engine or rollout_engine(spec, CPU))
    prompt_formatter = PromptFormatter(tokenizer, spec.rollout.prompt)
    questions = ProblemStream([Endless(), Endless("more")], seed=spec.seed)
    return PolicyTrainer(decoder, spec, sampler, prompt_formatter, questions, directory, judge=judge)  # type: ignore[arg-type]


@pytest.fixture
def make_policy(tokenizer: Tokenizer) -> MakePolicy:
    return partial(new_policy, tokenizer)
