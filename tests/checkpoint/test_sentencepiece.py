"""tokenizer.model beside the weights and no tokenizer.json, against transformers' reading of the same file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers
from tokenizers import Tokenizer as Library
from transformers import LlamaTokenizer
from transformers.tokenization_utils_base import generate_merges
from transformers.utils import sentencepiece_model_pb2_new as protobuf

from fathom.checkpoint.hf import save_hf
from fathom.checkpoint.hf.sentencepiece import read_sentencepiece
from fathom.errors import DataError
from fathom.inference.conversion import Conversion
from fathom.inference.loading import open_source
from fathom.model.build import build
from fathom.spec import GroupedQueryAttention, ModelSpec

WORDS = ["▁", *"abcdefghiklnoqrtuwx", "th", "he", "▁th", "▁the", "qu", "▁qu", "ick", "▁f", "▁fo", "ck", "ic", "▁fox"]
PIECES = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{i:02X}>", 6) for i in range(256)), ("<tool>", 4)]
PIECES += [(word, 1) for word in WORDS]
SPEC = ModelSpec(
    name="tiny",
    family="llama",
    vocab_size=len(PIECES),
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    attention=GroupedQueryAttention(num_heads=1, num_kv_heads=1, head_dim=8),
    max_position_embeddings=64,
)


def publish(folder: Path, *, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a model whose tokenizer is a SentencePiece file only."""
    model = protobuf.ModelProto()
    for index, (piece, kind) in enumerate(PIECES):
        model.pieces.add(piece=piece, score=-float(index) if kind == 1 else 0.0, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.pad_id = 2, True, -1
    normalizer.name, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = "identity", True, False
    for name, value in changes.items():
        setattr(normalizer if name in ("precompiled_charsmap", "add_dummy_prefix") else trainer, name, value)
    save_hf(folder, SPEC, build(SPEC, seed=1).state_dict())
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def theirs(*, legacy: bool) -> Callable[[str], list[int]]:
    """Encode as transformers 5 does without ``legacy``, and as the converter of transformers 4 with it."""
    vocab = {piece: index for index, (piece, _) in enumerate(PIECES)}
    merges = generate_merges(vocab)
    if not legacy:
        tokenizer = LlamaTokenizer(vocab=vocab, merges=merges)
        tokenizer.add_tokens(["<tool>"])
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False))
    library = Library(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.add_tokens([AddedToken("<tool>", normalized=False)])
    return lambda text: list(library.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module", params=[{}, {"legacy": True}, {"legacy": False}], ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = publish(tmp_path_factory.mktemp("model") / "model", config=request.param)
    return read_sentencepiece(folder), theirs(legacy=request.param.get("legacy", False))


texts = st.lists(
    st.sampled_from(["the", " the", " quick", "  ", " ", "fox", "é", "\n", "<s>", "<tool>", "天"]) | st.text(max_size=2)
)


@settings(max_examples=100, deadline=None)
@given(text=texts.map(lambda parts: "".join(parts).replace("▁", "_")))
def test_ids_are_those_of_transformers(pair: Any, text: str) -> None:
    ours, other = pair
    assert ours.encode(text, allow_special=True) == other(text)
    assert not ours.special_ids & set(ours.encode(text))
    if not text.startswith(" "):  # without ``legacy`` a space at the start is the one that is added
        assert ours.decode(ours.encode(text), skip_special=False) == text


def test_a_directory_of_weights_and_a_sentencepiece_file_opens_and_converts(tmp_path: Path) -> None:
    source = open_source(publish(tmp_path / "model", config={"add_bos_token": True}))
    tokenizer = source.tokenizer()
    assert tokenizer is not None
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.prefix_ids, source.eos_ids) == (1, 2, (1,), {2})
    written = open_source(Conversion.prepare(source, tmp_path / "again", "hf").run()).tokenizer()
    assert written is not None
    assert written.encode("the quick fox") == tokenizer.encode("the quick fox")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": 1}, r"only BPE with byte fallback is"),
        ({"byte_fallback": False}, r"only BPE with byte fallback is"),
        ({"precompiled_charsmap": b"map"}, r"only BPE without normalisation is"),
    ],
)
def test_other_kinds_are_refused_with_the_command_that_converts_them(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = open_source(publish(tmp_path / "model", **changes))
    with pytest.raises(
        DataError, match=rf"tokenizer.model: is not read \({message}\); only tokenizer.model; make"
    ) as caught:
        source.tokenizer()
    assert "pip install transformers sentencepiece protobuf" in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60) | st.integers(0, 4000).map(lambda n: -n))
def test_damaged_files_are_refused_in_one_line(damage: Any, data: bytes | int) -> None:
    whole, folder = damage
    (folder / "tokenizer.model").write_bytes(data if isinstance(data, bytes) else whole[: data - 1])
    with pytest.raises(DataError, match=r"tokenizer.model: is not read \(") as caught:
        read_sentencepiece(folder)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def damage(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    folder = publish(tmp_path_factory.mktemp("damaged") / "model")
    return (folder / "tokenizer.model").read_bytes(), folder
