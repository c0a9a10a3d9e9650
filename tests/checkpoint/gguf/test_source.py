from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fathom.checkpoint.gguf import GGUFFile
from fathom.checkpoint.weights import load_weights
from fathom.errors import CheckpointError, SpecError
from fathom.model.build import build, parameter_shapes
from tests.fuzz import gguf_files as files

HIDDEN, WIDTH, VOCAB = files.HIDDEN, files.WIDTH, files.VOCAB
KINDS = gguf.GGMLQuantizationType


@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.F16, KINDS.BF16, KINDS.Q8_0, KINDS.Q4_0, KINDS.Q4_1, KINDS.Q5_1])
def test_logits_are_those_of_transformers_reading_the_same_file(
    tmp_path: Path, kind: gguf.GGMLQuantizationType
) -> None:
    path = files.write_model(tmp_path / "tiny.gguf", kind=kind)
    source = GGUFFile.open(path)
    model = build(source.spec, device=torch.device("cpu"), dtype=torch.float32, seed=None).eval()
    load_weights(model, source)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    tokens_BT = torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        ours_BTV = model.logits(model(tokens_BT).hidden_BTD)
        torch.testing.assert_close(ours_BTV, theirs(tokens_BT).logits, atol=2e-5, rtol=2e-5)


def test_a_file_says_what_it_holds_before_a_tensor_is_read(tmp_path: Path) -> None:
    source = GGUFFile.open(files.write_model(tmp_path / "tiny.gguf", kind=KINDS.Q4_0))
    assert (source.form, source.path, source.carried) == ("gguf", tmp_path / "tiny.gguf", None)
    assert list(source.dtypes) == list(parameter_shapes(source.spec))
    assert set(source.dtypes.values()) == {torch.float32}
    kinds = {entry.name: (entry.kind, entry.shape, entry.nbytes) for entry in source.stored}
    assert kinds["blk.1.ffn_down.weight"] == ("Q4_0", (HIDDEN, WIDTH), HIDDEN * WIDTH // 32 * 18)
    assert kinds["output_norm.weight"] == ("F32", (HIDDEN,), HIDDEN * 4)
    assert source.eos_ids == {1, 2}


@pytest.mark.parametrize("kind", [KINDS.F16, KINDS.BF16, KINDS.Q8_0])
def test_tensors_stream_in_our_order_with_the_types_announced(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    source = GGUFFile.open(files.write_model(tmp_path / "tiny.gguf", kind=kind))
    streamed = dict(source.stream())
    assert list(streamed) == list(parameter_shapes(source.spec))
    assert {name: tensor.dtype for name, tensor in streamed.items()} == source.dtypes
    assert {name: tuple(tensor.shape) for name, tensor in streamed.items()} == parameter_shapes(source.spec)


def test_the_tokenizer_is_that_of_the_file_or_none(tmp_path: Path) -> None:
    tokenizer = GGUFFile.open(files.write_model(tmp_path / "with.gguf")).tokenizer()
    assert tokenizer is not None
    assert tokenizer.encode("a天") == [259, 260, *(3 + byte for byte in "天".encode())]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.chat_template) == (1, 2, "{{ messages[0].content }}")
    bare = GGUFFile.open(files.write_model(tmp_path / "without.gguf", tokens=None))
    assert bare.tokenizer() is None
    assert bare.eos_ids == frozenset()


def test_what_does_not_fit_is_refused_with_the_file_named(tmp_path: Path) -> None:
    path = files.write_model(tmp_path / "tiny.gguf", without="blk.1.attn_v.weight")
    with pytest.raises(CheckpointError, match=r"tiny\.gguf: .*1 missing \(blk\.1\.attn_v\.weight\)"):
        GGUFFile.open(path)
    content = files.write_model(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "other.gguf").write_bytes(
        content.replace(b"llama.attention.head_count\x04", b"llama.attention.head_cornt\x04")
    )
    with pytest.raises(SpecError, match=r"other\.gguf.*head_count"):
        GGUFFile.open(tmp_path / "other.gguf")
    (tmp_path / "kind.gguf").write_bytes(content.replace(b"general.architecture", b"general.architectvre"))
    with pytest.raises(SpecError, match=r"kind\.gguf.*general\.architecture"):
        GGUFFile.open(tmp_path / "kind.gguf")


@pytest.mark.parametrize("layers", [3, 2**31])
def test_layers_that_the_file_does_not_have_are_refused_at_once(tmp_path: Path, layers: int) -> None:
    content = files.write_model(tmp_path / "tiny.gguf").read_bytes()
    key = b"llama.block_count" + struct.pack("<I", 4)
    (tmp_path / "tiny.gguf").write_bytes(content.replace(key + struct.pack("<I", 2), key + struct.pack("<I", layers)))
    with pytest.raises(CheckpointError, match=r"tiny\.gguf: (the tensors do not fit|block_count: 2147483648 layers)"):
        GGUFFile.open(tmp_path / "tiny.gguf")


def test_a_kind_that_is_not_read_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((3, 66), dtype=np.uint8), raw_dtype=KINDS.IQ2_XXS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        CheckpointError, match=r"token_embd\.weight is of type IQ2_XXS; use a file of F32, F16, BF16, Q8_0"
    ):
        GGUFFile.open(path)
