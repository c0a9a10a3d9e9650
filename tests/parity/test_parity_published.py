"""Whole directories passed between Fathom and transformers: weights bit for bit, FP8, tokenizer, chat, generation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.quantizers import quantizer_finegrained_fp8

from fathom.chat.encoding import encode_chat, render
from fathom.checkpoint.fp8 import dequantize
from fathom.checkpoint.hf import HFCheckpoint, load_hf, save_hf, write_hf
from fathom.checkpoint.weights import StateWeights
from fathom.model import build
from fathom.tokenizer.bpe import Tokenizer
from fathom.tokenizer.training import train_bpe

from .conftest import V3, Pair, config_of, randomize

CHAT = [
    {"role": "system", "content": "You answer in verse."},
    {"role": "user", "content": "Why is the sea salt?  Say it twice,\ntwice."},
    {"role": "assistant", "content": "<think>rivers</think>Rivers bring it."},
    {"role": "user", "content": "Größer als 深度?"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ours_to_theirs_to_ours_is_bit_for_bit(pair: Pair, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: (tensor.flip(0) + 0.01).to(dtype) for name, tensor in pair.ours.state_dict().items()}
    save_hf(tmp_path / "ours", pair.spec, state)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    spec, found = load_hf(tmp_path / "theirs")
    assert dataclasses.replace(spec, name=pair.spec.name) == pair.spec
    assert found.keys() == state.keys()
    assert {name for name in state if not torch.equal(found[name], state[name])} == set()
    assert {found[name].dtype for name in state if "e_score" not in name} == {dtype}


def test_a_promise_of_prediction_modules_without_them_is_read_as_transformers_does(tmp_path: Path) -> None:
    fields = {name: value for name, value in V3.items() if name != "num_nextn_predict_layers"}
    theirs = AutoModelForCausalLM.from_config(config_of("deepseek_v3", fields)).eval()
    randomize(theirs, seed=3)
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs/config.json").read_text())["num_nextn_predict_layers"] == 1
    source = HFCheckpoint.open(tmp_path / "theirs")
    assert source.spec.num_nextn_predict_layers == 0
    ours = build(source.spec, seed=None).eval()
    ours.load_state_dict(dict(source.stream()))
    tokens_BT = torch.randint(0, source.spec.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens_BT).hidden_BTD), theirs(tokens_BT).logits, rtol=0, atol=1e-5)
    write_hf(tmp_path / "again", source, carried=source.carried)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "again")]
    assert configs[0] == configs[1]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").config.num_nextn_predict_layers == 1


FP8 = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "moe_intermediate_size": 128,
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DeepSeek-V3 in FP8, all its matrices whole blocks or within one: their reading knows no cut blocks."""
    root = tmp_path_factory.mktemp("fp8")
    theirs = AutoModelForCausalLM.from_config(config_of("deepseek_v3", V3 | FP8))
    randomize(theirs, seed=5)
    theirs.save_pretrained(root / "wide")
    source = HFCheckpoint.open(root / "wide")
    return write_hf(root / "fp8", source, carried=source.carried, dtype="fp8")


def test_every_fp8_block_is_read_as_transformers_reads_it(quantized: Path) -> None:
    stored = load_file(quantized / "model.safetensors")
    scales = [name for name in stored if name.endswith("_scale_inv")]
    assert len({stored[name].shape for name in scales}) > 3
    for name in scales:
        weight = stored[name.removesuffix("_scale_inv")]
        given = {"weight": weight, "weight_scale_inv": stored[name]}
        expected = Fp8Dequantize(None).convert(given)["weight"]
        assert torch.equal(dequantize(weight, stored[name], dtype=torch.float32), expected)


def test_transformers_runs_the_fp8_we_write(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for a library that places modules on devices, which dequantizing on the CPU does not use."""
    monkeypatch.setattr(quantizer_finegrained_fp8, "is_accelerate_available", lambda: True)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        quantized, dtype=torch.bfloat16, attn_implementation="eager", output_loading_info=True
    )
    assert {name: keys for name, keys in report.items() if keys} == {}
    spec, state = load_hf(quantized)
    ours = build(spec, seed=None)
    ours.load_state_dict(state)
    tokens_BT = torch.randint(0, spec.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.float().eval()(tokens_BT).logits
        found = ours.logits(ours.eval()(tokens_BT).hidden_BTD)
    assert 0.3 < expected.std() < 3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = "Why is the sea salt? Say it twice. Rivers bring it. You answer in verse. Größer als 深度?"
    return train_bpe([text] * 4, vocab_size=400)


@pytest.fixture(scope="module")
def dialogue(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can chat, with several ends."""
    root = tmp_path_factory.mktemp("chat")
    fields = V3 | {"vocab_size": tokenizer.vocab_size}
    AutoModelForCausalLM.from_config(config_of("deepseek_v3", fields)).save_pretrained(root / "theirs")
    spec, state = load_hf(root / "theirs")
    spec = dataclasses.replace(spec, pad_token_id=tokenizer.pad_id)
    return write_hf(root / "ours", StateWeights(spec, state), tokenizer=tokenizer, eos_ids={4, 1, 9})


def test_transformers_lays_out_and_encodes_a_chat_as_we_do(
    dialogue: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    source = HFCheckpoint.open(dialogue)
    copied = write_hf(tmp_path / "copied", source, carried=source.carried, tokenizer=dialogue)
    for directory in (dialogue, copied):
        theirs = AutoTokenizer.from_pretrained(directory)
        for prompted in (True, False):
            text = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompted)
            assert text == render(CHAT, add_generation_prompt=prompted)
            ids = theirs.apply_chat_template(CHAT, add_generation_prompt=prompted)["input_ids"]
            assert ids == encode_chat(tokenizer, CHAT, add_generation_prompt=prompted)
        assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
            tokenizer.bos_id,
            tokenizer.eos_id,
            tokenizer.pad_id,
        )


def test_transformers_reads_every_end_and_stops_at_it(dialogue: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = HFCheckpoint.open(dialogue)
    copied = write_hf(tmp_path / "copied", source, tokenizer=dialogue, eos_ids=source.eos_ids)
    for directory in (dialogue, copied):
        settings: Any = GenerationConfig.from_pretrained(directory)
        assert (settings.bos_token_id, settings.pad_token_id) == (0, tokenizer.pad_id)
        assert settings.eos_token_id == [1, 4, 9]
        assert HFCheckpoint.open(directory).eos_ids == {1, 4, 9}
        model = AutoModelForCausalLM.from_pretrained(directory)
        assert model.generation_config.eos_token_id == [1, 4, 9]
