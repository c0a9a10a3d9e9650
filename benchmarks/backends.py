"""The engines that benchmarks let decode side by side: ours and transformers, on the same weights.

A contestant fills its cache with the prompts untimed, then decodes ``steps`` tokens of every prompt greedily, timed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from benchmarks.timing import Backend
from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.model import Decoder
from fathom.model.moe import MoELayer
from fathom.spec import EngineSpec, SamplingParams

Prompts = Sequence[Sequence[int]]
_SPARE = 80


def engine_for(model: Decoder, prompts: Prompts, steps: int, **changes: Any) -> Engine:
    """Make an engine with a cache for the prompts and their answers."""
    longest = max(map(len, prompts)) + steps + _SPARE
    cache_tokens = len(prompts) * (longest + 64)
    given = {"max_batch": len(prompts), "cache_tokens": cache_tokens, "step_tokens": max(512, len(prompts))} | changes
    return Engine(model, spec=EngineSpec(**given))


def fathom(engine: Engine, prompts: Prompts, steps: int) -> Backend:
    """Continuous batching as it is served; one step draws one token of every request."""
    # the first prompts to be read draw while the others are read: none may end before it is timed
    params = SamplingParams(max_tokens=steps + _SPARE, temperature=0.0, ignore_eos=True)
    running: list[int] = []

    def prepare() -> None:
        for request in running:
            engine.cancel(request)
        running[:] = [engine.submit(Request(prompt=tuple(prompt), params=params)) for prompt in prompts]
        drawn: set[int] = set()
        while len(drawn) < len(prompts):
            drawn |= {output.request_id for output in engine.step() if output.tokens}

    def run() -> None:
        for _ in range(steps):
            if len(engine.step()) != len(prompts):
                raise RuntimeError("a step drew for only some of the requests")

    return Backend(run, prepare)


def transformers(model: PreTrainedModel, prompts: Prompts, steps: int) -> Backend:
    """The loop inside ``generate``: one forward a token over its cache."""
    prompt_BT = torch.tensor([list(prompt) for prompt in prompts])
    length = prompt_BT.shape[1]
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        for start in range(0, length - 1, 256):
            model(prompt_BT[:, start : min(start + 256, length - 1)], past_key_values=cache, logits_to_keep=1)

    @torch.inference_mode()
    def run() -> None:
        last_B1 = prompt_BT[:, -1:]
        for _ in range(steps):
            last_B1 = model(last_B1, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)

    @torch.inference_mode()
    def prepare() -> None:
        held = cache.get_seq_length()
        if held > length - 1:
            cache.crop(length - 1 - held)

    return Backend(run, prepare)


@torch.inference_mode()
def generate(model: PreTrainedModel, prompts: Prompts, steps: int) -> None:
    """transformers' ``generate``, prompt included."""
    prompt_BT = torch.tensor([list(prompt) for prompt in prompts])
    mask_BT = torch.ones_like(prompt_BT)
    model.generate(
        prompt_BT, attention_mask=mask_BT, max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=0
    )


def continuous(model: PreTrainedModel, prompts: Prompts, steps: int) -> tuple[Backend | None, str]:
    """transformers' continuous batching, prompt included; None, and why, where it does not run on this machine."""
    settings = GenerationConfig(max_new_tokens=steps, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def run() -> None:
        answers = model.generate_batch([list(p) for p in prompts], generation_config=settings, progress_bar=False)
        got = [len(answer.generated_tokens) for answer in answers.values()]
        if got != [steps] * len(prompts):
            raise RuntimeError(f"drew {got} tokens instead of {steps} of each prompt")

    try:
        run()
    except Exception as error:  # whatever it lacks here is the answer
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return Backend(run), ""


def matmuls_only(model: Decoder, steps: int) -> Backend:
    """The matrix-vector products of one request's step and nothing else: what no engine on these operators can beat."""
    moe = model.spec.moe
    assert moe is not None
    draw = random.Random(0)
    weights = [[w for w in map(_matrix, layer.named_parameters()) if w is not None] for layer in model.layers]
    inputs = {width: torch.randn(1, width) for group in weights for p in group for width in p.shape}
    experts = [layer.mlp.experts if isinstance(layer.mlp, MoELayer) else None for layer in model.layers]
    inputs[moe.moe_intermediate_size] = torch.randn(1, moe.moe_intermediate_size)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(steps):
            for group, routed in zip(weights, experts, strict=True):
                for weight in group:
                    F.linear(inputs[weight.shape[1]], weight)
                for expert in draw.sample(range(moe.n_routed_experts), moe.num_experts_per_tok) if routed else ():
                    torch.mv(routed.gate_up_proj[expert].flatten(0, 1), inputs[model.spec.hidden_size][0])
                    torch.mv(routed.down_proj[expert], inputs[moe.moe_intermediate_size][0])
            model.logits(inputs[model.spec.hidden_size])

    return Backend(run)


def _matrix(named: tuple[str, torch.Tensor]) -> torch.Tensor | None:
    """A parameter as the matrix that one product reads; None for vectors and stacked experts."""
    name, parameter = named
    if name.endswith("gate_up_proj.weight"):
        return parameter.flatten(0, 1)
    return parameter if parameter.dim() == 2 and not name.endswith(".bias") else None


def prompts_for(vocab_size: int, batch: int, context: int) -> list[list[int]]:
    """Draw the same prompts every time."""
    drawn_BT: Tensor = torch.randint(0, vocab_size, (batch, context), generator=torch.Generator().manual_seed(0))
    return [[int(token) for token in row] for row in drawn_BT]
