"""The one-token program against whole forward passes: run as plain Python here, compiled where there is time."""

from __future__ import annotations

import pytest
import torch

from fathom.model import build
from fathom.model.cache import PagedStep, PagePool, SequenceChunk
from fathom.model.compiled import CompiledDecoding
from fathom.model.quantize import quantize
from fathom.spec import MixtureOfExperts, ModelSpec, WeightFormat

PAGES = (7, 2, 9, 4, 0, 5, 3, 1, 8, 6)


def decoded(spec: ModelSpec, read: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read some tokens as usual, decode more by the program; return its hidden states and the whole pass's."""
    model = build(spec, seed=4).eval()
    pool = PagePool.allocate(spec, pages=10, page_size=4)
    program = CompiledDecoding(model, pool)
    tokens = torch.randint(0, spec.vocab_size, (read + count,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        model(tokens[None, :read], cache=PagedStep(pool, [SequenceChunk(PAGES, 0, read)], window=model.window))
        got = [program(int(tokens[i]), SequenceChunk(PAGES, i, 1)) for i in range(read, read + count)]
        return torch.cat(got), model(tokens[None]).hidden_BTD[0, read:]


@pytest.mark.parametrize("read", [1, 2, 7, 8])
def test_each_token_gets_the_hidden_state_of_the_whole_pass(spec: ModelSpec, read: int) -> None:
    with torch.compiler.set_stance("force_eager"):
        got, expected = decoded(spec, read, 20)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_it_gives_the_same_numbers_at_any_length(spec: ModelSpec) -> None:
    got, expected = decoded(spec, 1, 30)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_packed_weights_compile_too(latent_spec, form: WeightFormat) -> None:  # type: ignore[no-untyped-def]
    moe = MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1)
    model = build(latent_spec(intermediate_size=64, moe=moe), seed=4).eval()
    quantize(model, form)
    pool = PagePool.allocate(model.spec, pages=10, page_size=4)
    program, tokens = CompiledDecoding(model, pool), [3, 14, 15, 92]
    with torch.inference_mode():
        got = [program(token, SequenceChunk(PAGES, i, 1)) for i, token in enumerate(tokens)]
        eager = [
            model(torch.tensor([[token]]), cache=PagedStep(pool, [SequenceChunk(PAGES, i, 1)])).hidden_BTD[0]
            for i, token in enumerate(tokens)
        ]
    torch.testing.assert_close(torch.cat(got), torch.cat(eager), atol=0.02, rtol=0.01)  # bfloat16 between products


def test_warming_up_leaves_nothing_in_the_pool(latent_spec) -> None:  # type: ignore[no-untyped-def]
    model = build(latent_spec(), seed=4).eval()
    pool = PagePool.allocate(model.spec, pages=4, page_size=4)
    with torch.compiler.set_stance("force_eager"), torch.inference_mode():
        CompiledDecoding(model, pool).warm_up()
        (rows,) = (pages.read(slice(0, 4), pool.scratch[0]) for pages in pool.layers[0])
    assert not rows.any()
