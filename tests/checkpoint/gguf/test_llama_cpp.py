"""llama.cpp itself as the oracle: it opens our files, computes our logits and splits text as we do.

Needs the package llama-cpp-python; without it these are skipped.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.checkpoint.gguf.container import Container
from fathom.checkpoint.gguf.conversion_warnings import conversion_warnings
from fathom.checkpoint.gguf.metadata import spec_from_metadata
from fathom.checkpoint.gguf.names import check
from fathom.checkpoint.gguf.write import write_gguf
from fathom.checkpoint.weights import StateWeights
from fathom.model import Decoder, build
from fathom.spec import GroupedQueryAttention, GroupLimited, LatentAttention, ModelSpec, YarnScaling
from fathom.tokenizer import Tokenizer, train_bpe

library = pytest.importorskip("llama_cpp").llama_cpp
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SpecOf = Callable[[str], ModelSpec]
MakeModel = Callable[[ModelSpec], Decoder]
LENGTH = 200
"""Tokens compared: several times the 32 of the original context."""


@library.llama_log_callback
def _quiet(level: int, text: bytes, data: object) -> None:
    """Say nothing."""


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    library.llama_log_set(_quiet, None)
    library.llama_backend_init()


@contextmanager
def _opened(path: Path, *, vocabulary_only: bool = False) -> Iterator[Any]:
    parameters = library.llama_model_default_params()
    parameters.vocab_only = vocabulary_only
    model = library.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise RuntimeError(f"llama.cpp does not open {path.name}")
    try:
        yield model
    finally:
        library.llama_model_free(model)


def _theirs(path: Path, tokens: Sequence[int]) -> Tensor:
    """Logits at every position, computed with a float32 cache and without flash attention."""
    parameters = library.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 256
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.type_k = parameters.type_v = 0
    parameters.flash_attn_type = 0
    with _opened(path) as model:
        context = library.llama_init_from_model(model, parameters)
        batch = library.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for place, token in enumerate(tokens):
                batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, place, 1
                batch.seq_id[place][0], batch.logits[place] = 0, 1
            assert library.llama_decode(context, batch) == 0
            vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
            size = len(tokens) * vocabulary
            buffer = ctypes.cast(library.llama_get_logits(context), ctypes.POINTER(ctypes.c_float * size)).contents
            return torch.frombuffer(bytearray(buffer), dtype=torch.float32).view(len(tokens), vocabulary)
        finally:
            library.llama_batch_free(batch)
            library.llama_free(context)


def _tokens(spec: ModelSpec) -> list[int]:
    generator = torch.Generator().manual_seed(2)  # with 1, a token of Mixtral's is torn between two experts
    return torch.randint(0, spec.vocab_size, (LENGTH,), generator=generator).tolist()  # type: ignore[no-any-return]


def _ours(model: Decoder, tokens: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return model.logits(model(torch.tensor([tokens])).hidden_BTD)[0]


def _compared(spec: ModelSpec, model: Decoder, path: Path) -> tuple[Tensor, Tensor]:
    write_gguf(path, StateWeights(spec, model.state_dict()), kind="F32")
    tokens = _tokens(spec)
    return _ours(model, tokens), _theirs(path, tokens)


def test_llama_cpp_computes_our_logits_at_every_position(
    spec: ModelSpec, random_model: MakeModel, tmp_path: Path
) -> None:
    ours, theirs = _compared(spec, random_model(spec), tmp_path / "m.gguf")
    same = slice(0, 24) if spec.family == "mistral" else slice(None)  # its window, which llama.cpp has not
    torch.testing.assert_close(theirs[same], ours[same], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mscale", "all_dim", "attention_factor"), [(None, None, None), (1.0, 0.707, None), (None, 1.0, 1.3)]
)
def test_any_yarn_scales_alike(
    mscale: float | None,
    all_dim: float | None,
    attention_factor: float | None,
    spec_of: SpecOf,
    random_model: MakeModel,
    tmp_path: Path,
) -> None:
    for name in ("deepseek_v2", "qwen2"):
        spec = spec_of(name)
        yarn = YarnScaling(
            factor=4.0,
            original_max_position_embeddings=32,
            mscale=mscale,
            mscale_all_dim=all_dim,
            attention_factor=attention_factor,
        )
        spec = replace(spec, rope=replace(spec.rope, theta=100.0, scaling=yarn))
        ours, theirs = _compared(spec, random_model(spec), tmp_path / f"{name}.gguf")
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [2, 26, 27])
def test_models_without_query_rank_open_at_any_depth(
    layers: int, spec_of: SpecOf, random_model: MakeModel, tmp_path: Path
) -> None:
    dense = spec_of("deepseek_v2 dense")
    assert isinstance(dense.attention, LatentAttention)
    spec = replace(dense, num_hidden_layers=layers, attention=replace(dense.attention, q_lora_rank=None))
    ours, theirs = _compared(spec, random_model(spec), tmp_path / "m.gguf")
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


def test_what_losses_say_llama_cpp_cannot_open_it_does_not_open(
    spec_of: SpecOf, random_model: MakeModel, tmp_path: Path
) -> None:
    v2, moe16 = spec_of("deepseek_v2"), spec_of("deepseek")
    assert moe16.moe is not None
    specs = [
        replace(v2, num_hidden_layers=26),
        replace(moe16, moe=replace(moe16.moe, n_shared_experts=0)),
        replace(moe16, attention=GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=8)),
    ]
    for number, spec in enumerate(specs):
        assert any("llama.cpp cannot open the file" in sentence for sentence in conversion_warnings(spec))
        with pytest.raises(RuntimeError, match="does not open"):
            _compared(spec, random_model(spec), tmp_path / f"{number}.gguf")


def test_what_losses_say_llama_cpp_computes_differently_it_does(
    spec_of: SpecOf, random_model: MakeModel, tmp_path: Path
) -> None:
    v2, moe16 = spec_of("deepseek_v2"), spec_of("deepseek")
    assert v2.moe is not None
    assert moe16.moe is not None
    assert isinstance(v2.rope.scaling, YarnScaling)
    grouped = replace(v2.moe.router, select=GroupLimited(n_group=4, topk_group=2))
    specs = [
        spec_of("mistral"),
        replace(v2, moe=replace(v2.moe, router=grouped)),
        replace(v2, rope=replace(v2.rope, scaling=replace(v2.rope.scaling, beta_fast=2.0))),
        replace(moe16, moe=replace(moe16.moe, router=replace(moe16.moe.router, normalize=True))),
    ]
    for number, spec in enumerate(specs):
        assert any("llama.cpp" in sentence for sentence in conversion_warnings(spec))
        ours, theirs = _compared(spec, random_model(spec), tmp_path / f"{number}.gguf")
        assert (ours - theirs).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16"])
@pytest.mark.parametrize("name", ["llama", "deepseek_v2", "deepseek_v3"])
def test_both_read_a_file_in_fewer_bits_alike(
    kind: Any, name: str, spec_of: SpecOf, random_model: MakeModel, tmp_path: Path
) -> None:
    """llama.cpp rounds activations too: to 8 bits beside quantized weights, to the weights' type beside halves.

    So their logits differ from ours at most positions by that much, and where it tips the choice of an expert, by more.
    """
    spec = spec_of(name)
    if isinstance(spec.attention, LatentAttention):
        spec = replace(spec, attention=replace(spec.attention, q_lora_rank=32, v_head_dim=32))
    model = random_model(spec)
    path = write_gguf(tmp_path / "m.gguf", StateWeights(spec, model.state_dict()), kind=kind)
    container = Container.open(path)
    shapes = {entry.name: entry.shape for entry in container.tensors.values()}
    assert spec_from_metadata(container.metadata, shapes) == spec
    read = build(spec).eval()
    read.load_state_dict({rule.param_name: rule.assemble(container.read).float() for rule in check(spec, shapes)})
    tokens = _tokens(spec)
    exact, ours, theirs = _ours(model, tokens), _ours(read, tokens), _theirs(path, tokens)
    apart, lost = _distance(theirs, ours), _distance(ours, exact)
    assert apart < {"F16": 4e-3, "BF16": 4e-2}.get(kind, 1e-1)
    if kind == "Q4_0":
        assert apart < 0.1 * lost


def _distance(one: Tensor, other: Tensor) -> float:
    """Half of the positions are nearer than this, relative to the length of their logits."""
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).median())


CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog barks back at it's 2024 fox.\n\n",
    "def area(width, height):\n    return width * height\n\n\nprint(area(3, 14) == 42)  # \t ok\r\n",
    "天下大势，分久必合，合久必分。2024年。こんにちは、世界！ 안녕하세요 세계 天下大势。\n",
    "Überall in Ελλάδα и Москве: €1.000,50 – «да»… ½ ² ١٢٣ ١٢ é e\u0301 e\u0301 👩‍👩‍👧 \u00a0\u3000 x\n",
    Path(__file__).read_text(encoding="utf-8"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(CORPUS * 4, vocab_size=1200)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    attention = GroupedQueryAttention(num_heads=1, num_kv_heads=1, head_dim=32)
    spec = ModelSpec(
        name="tokens",
        family="llama",
        vocab_size=1216,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        attention=attention,
        max_position_embeddings=64,
    )
    path = tmp_path_factory.mktemp("tokens") / "m.gguf"
    write_gguf(path, StateWeights(spec, build(spec).state_dict()), kind="F16", tokenizer=tokenizer)
    with _opened(path, vocabulary_only=True) as model:
        yield library.llama_model_get_vocab(model)


def _encoded(vocabulary: Any, text: str, *, special: bool = False) -> list[int]:
    raw = text.encode()
    buffer = (ctypes.c_int32 * (len(raw) + 8))()
    count = library.llama_tokenize(vocabulary, raw, len(raw), buffer, len(buffer), False, special)
    assert count >= 0
    return list(buffer[:count])


pieces = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "123", "4567", "١٢٣", "½", "天下", "ア", "세계"]
    ),
    st.sampled_from(["'s", "don't", "_x", "a.b", "é", "e\u0301", "👩‍👩‍👧", "–", "«", "print(", "==", "…", "<think>"]),
)


def test_llama_cpp_opens_a_model_in_parts(spec_of: SpecOf, random_model: MakeModel, tmp_path: Path) -> None:
    spec = spec_of("llama")
    weights = StateWeights(spec, random_model(spec).state_dict())
    whole = write_gguf(tmp_path / "m.gguf", weights, kind="F32")
    first = write_gguf(tmp_path / "parts" / "m.gguf", weights, kind="F32", max_part_bytes=60_000)
    assert len(list(first.parent.iterdir())) > 2
    assert torch.equal(_theirs(first, _tokens(spec)), _theirs(whole, _tokens(spec)))


@given(text=st.lists(pieces, max_size=10).map("".join))
@settings(max_examples=4000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_llama_cpp_gives_our_tokens(text: str, tokenizer: Tokenizer, vocabulary: Any) -> None:
    assert _encoded(vocabulary, text) == tokenizer.encode(text)


def test_llama_cpp_gives_our_tokens_of_real_text_and_special_ones(tokenizer: Tokenizer, vocabulary: Any) -> None:
    root = Path(__file__).parents[3]
    for path in [*root.glob("*.md"), *root.glob("fathom/*/*.py")]:
        text = path.read_text(encoding="utf-8")
        assert _encoded(vocabulary, text) == tokenizer.encode(text), path.name
    chat = "<｜begin▁of▁sentence｜><｜User｜>你好<｜Assistant｜><think>\n2+2=4</think>"
    assert _encoded(vocabulary, chat, special=True) == tokenizer.encode(chat, allow_special=True)
    assert _encoded(vocabulary, chat) == tokenizer.encode(chat)
    assert library.llama_vocab_bos(vocabulary) == tokenizer.bos_id
    assert library.llama_vocab_eos(vocabulary) == tokenizer.eos_id
    assert library.llama_vocab_get_add_bos(vocabulary)
