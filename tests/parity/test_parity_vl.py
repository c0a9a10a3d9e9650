"""DeepSeek-VL against transformers: image tokens, logits, greedy tokens, gradients, and files both ways."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageTextToText

import fathom
from fathom.checkpoint.hf import HFCheckpoint, load_hf, save_hf
from fathom.errors import SpecError
from fathom.model import Decoder, StaticCache, build
from fathom.model.vision import ImageBatch
from fathom.spec import ModelSpec

IMAGE = 9
TEXT = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
SAM = {
    "model_type": "sam_vision_model",
    "hidden_size": 16,
    "output_channels": 6,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 40,
    "patch_size": 8,
    "window_size": 3,
    "global_attn_indexes": [1, 3],
    "mlp_dim": 28,
}
"""Five patches a side in windows of three: the second window of each row and column is padded by one."""

CASES: dict[str, dict[str, Any]] = {
    "low": {"vision_config": SIGLIP},
    "low, exact gelu, no head, tied": {
        "vision_config": SIGLIP | {"hidden_act": "gelu", "vision_use_head": False, "layer_norm_eps": 1e-4},
        "tie_word_embeddings": True,
    },
    "hybrid, padded windows": {"vision_config": SIGLIP, "high_res_vision_config": SAM},
    "hybrid, whole windows": {
        "vision_config": SIGLIP | {"image_size": 24, "vision_use_head": False},
        "high_res_vision_config": SAM | {"image_size": 48, "layer_norm_eps": 1e-4, "global_attn_indexes": [3, 0]},
    },
    "hybrid, no relative positions": {
        "vision_config": SIGLIP | {"image_size": 40},
        "high_res_vision_config": SAM | {"use_rel_pos": False, "window_size": 7, "global_attn_indexes": [2]},
    },
}
EXACT = {"rtol": 0, "atol": 1e-5}


@dataclass(frozen=True)
class VisionPair:
    """The same weights twice, three images, and two texts of the same length with one and two of them."""

    theirs: Any
    ours: Decoder
    spec: ModelSpec
    directory: Path
    images: ImageBatch
    tokens_BT: Tensor

    @property
    def pixels(self) -> dict[str, Tensor]:
        high = {} if self.images.high_IAXY is None else {"high_res_pixel_values": self.images.high_IAXY}
        return {"pixel_values": self.images.low_IAXY, **high}

    def features_ND(self) -> Tensor:
        assert self.ours.vision is not None
        features_IND: Tensor = self.ours.vision(self.images)
        return features_IND.flatten(0, 1)


def randomize(model: Any, seed: int) -> None:
    """Draw weights that keep every part in play; biases, norms, positions and the weight of the second neck too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            drawn = torch.randn(tensor.shape, generator=generator)
            if name.endswith("bias") or re.search(r"embed_tokens|pos|probe", name):
                tensor.copy_(0.3 * drawn)
            elif name.endswith("alpha"):
                tensor.fill_(0.7)
            elif "norm" in name:
                tensor.copy_(1 + 0.2 * drawn)
            else:
                tensor.copy_(drawn * tensor[0].numel() ** -0.5)


def make_pair(name: str, directory: Path) -> VisionPair:
    fields = {"tie_word_embeddings": False} | CASES[name]
    text = TEXT | {"tie_word_embeddings": fields["tie_word_embeddings"]}
    kind = "deepseek_vl_hybrid" if "high_res_vision_config" in fields else "deepseek_vl"
    fields = {key: dict(value) if isinstance(value, dict) else value for key, value in fields.items()}
    config = AutoConfig.for_model(kind, text_config=text, image_token_id=IMAGE, **fields)
    theirs = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    randomize(theirs, seed=len(name))
    theirs.save_pretrained(directory)
    spec, state = load_hf(directory)
    ours = build(spec, seed=None)
    ours.load_state_dict(state)
    assert spec.vision is not None
    generator = torch.Generator().manual_seed(7)
    low_IAXY = torch.randn(3, 3, spec.vision.low.image_size, spec.vision.low.image_size, generator=generator)
    high = spec.vision.high
    high_IAXY = None if high is None else torch.randn(3, 3, high.image_size, high.image_size, generator=generator)
    count = spec.vision.tokens_per_image
    tokens_BT = torch.randint(IMAGE + 1, 97, (2, 2 * count + 12), generator=generator)
    tokens_BT[0, 5 : 5 + count] = IMAGE
    tokens_BT[1, 2 : 2 + count] = IMAGE
    tokens_BT[1, 8 + count : 8 + 2 * count] = IMAGE
    return VisionPair(theirs, ours.eval(), spec, directory, ImageBatch(low_IAXY, high_IAXY), tokens_BT)


@pytest.fixture(scope="module", params=CASES)
def vision(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VisionPair:
    return make_pair(request.param, tmp_path_factory.mktemp("theirs") / "model")


def test_image_tokens_agree(vision) -> None:
    with torch.no_grad():
        theirs_IND = vision.theirs.model.get_image_features(**vision.pixels).pooler_output
        ours_ND = vision.features_ND()
    assert theirs_IND.shape[1] == vision.spec.vision.tokens_per_image
    torch.testing.assert_close(ours_ND, theirs_IND.flatten(0, 1), **EXACT)


def test_logits_agree_at_every_position(vision) -> None:
    with torch.no_grad():
        theirs = vision.theirs(input_ids=vision.tokens_BT, **vision.pixels).logits
        hidden_BTD = vision.ours(vision.tokens_BT, features_ND=vision.features_ND()).hidden_BTD
        blind_BTD = vision.ours(vision.tokens_BT).hidden_BTD
    torch.testing.assert_close(vision.ours.logits(hidden_BTD), theirs, **EXACT)
    assert not torch.allclose(hidden_BTD, blind_BTD, atol=1e-2), "the images must matter"


def test_greedy_tokens_agree_after_reading_in_chunks_that_cut_images(vision) -> None:
    tokens_BT, features_ND = vision.tokens_BT, vision.features_ND().detach()
    expected = vision.theirs.generate(
        input_ids=tokens_BT,
        attention_mask=torch.ones_like(tokens_BT),
        **vision.pixels,
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[:, tokens_BT.shape[1] :]
    cache = StaticCache.allocate(vision.spec, batch_size=2, max_length=tokens_BT.shape[1] + 20)
    first, second = features_ND.split([vision.spec.vision.tokens_per_image, 2 * vision.spec.vision.tokens_per_image])
    found = []
    with torch.no_grad():
        for chunk_BT in tokens_BT.split(7, dim=1):
            counts = (chunk_BT == IMAGE).sum(1).tolist()
            here, first = first.split([counts[0], len(first) - counts[0]])
            there, second = second.split([counts[1], len(second) - counts[1]])
            hidden_BTD = vision.ours(chunk_BT, features_ND=torch.cat([here, there]), cache=cache).hidden_BTD
        for _ in range(20):
            new_B1 = vision.ours.logits(hidden_BTD[:, -1:]).argmax(-1)
            found.append(new_B1)
            hidden_BTD = vision.ours(new_B1, cache=cache).hidden_BTD
    assert torch.equal(torch.cat(found, dim=1), expected)


def test_gradients_of_the_connector_and_both_towers_agree(vision, tmp_path: Path) -> None:
    def loss(logits_BTV: Tensor) -> Tensor:
        return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), vision.tokens_BT[:, 1:].flatten())

    loss(vision.theirs(input_ids=vision.tokens_BT, **vision.pixels).logits).backward()
    kept = {name: parameter.data for name, parameter in vision.theirs.named_parameters()}
    for parameter in vision.theirs.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    vision.theirs.save_pretrained(tmp_path / "gradients")
    for name, parameter in vision.theirs.named_parameters():
        parameter.data, parameter.grad = kept[name], None
    expected = load_hf(tmp_path / "gradients")[1]
    loss(vision.ours.logits(vision.ours(vision.tokens_BT, features_ND=vision.features_ND()).hidden_BTD)).backward()
    for name, parameter in vision.ours.named_parameters():
        if ".head." in name:
            assert parameter.grad is None
            assert not expected[name].any()
            continue
        assert parameter.grad is not None, name
        error = (parameter.grad - expected[name]).norm() / expected[name].norm().clamp_min(1e-3)
        assert error < 1e-4, name
    vision.ours.zero_grad(set_to_none=True)


def test_files_go_there_and_back_bit_for_bit(vision, tmp_path: Path) -> None:
    published = HFCheckpoint.open(vision.directory)
    save_hf(tmp_path / "ours", vision.spec, vision.ours.state_dict(), carried=published.carried)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "ours", vision.directory))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "ours", vision.directory)]
    for config in configs:
        config.pop("dtype", None), config.pop("torch_dtype", None)
    assert configs[0] == configs[1]
    again, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {name: keys for name, keys in report.items() if keys} == {}
    again.save_pretrained(tmp_path / "again")
    spec, state = load_hf(tmp_path / "again")
    assert spec == vision.spec
    expected = vision.ours.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_what_we_write_without_anything_carried_runs_in_transformers(vision, tmp_path: Path) -> None:
    ours = build(vision.spec, seed=3).eval()
    ours.load_state_dict({name: tensor.flip(0) + 0.01 for name, tensor in vision.ours.state_dict().items()})
    save_hf(tmp_path / "ours", vision.spec, ours.state_dict())
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    with torch.no_grad():
        features_ND = ours.vision(vision.images).flatten(0, 1)
        hidden_BTD = ours(vision.tokens_BT, features_ND=features_ND).hidden_BTD
        expected = theirs(input_ids=vision.tokens_BT, **vision.pixels).logits
    torch.testing.assert_close(ours.logits(hidden_BTD), expected, rtol=1e-5, atol=1e-5)


def test_a_published_directory_opens_as_a_language_model(vision) -> None:
    opened = fathom.load(vision.directory, device="cpu", dtype="float32")
    assert opened.spec == vision.spec
    text = [5, 12, 44, 71]
    with torch.no_grad():
        expected = vision.theirs(input_ids=torch.tensor([text])).logits[0]
    torch.testing.assert_close(opened.logits(text), expected, **EXACT)


def test_the_names_of_transformers_4_open_too(vision, tmp_path: Path) -> None:
    """It put one more vision_model into SigLIP's names, as the conversions of the released weights have them."""
    old = tmp_path / "old"
    old.mkdir()
    named = load_file(vision.directory / "model.safetensors")
    renamed = {name.replace("model.vision_model.", "model.vision_model.vision_model."): t for name, t in named.items()}
    assert renamed.keys() != named.keys()
    save_file(renamed, old / "model.safetensors", metadata={"format": "pt"})
    (old / "config.json").write_text((vision.directory / "config.json").read_text())
    _, report = AutoModelForImageTextToText.from_pretrained(old, output_loading_info=True)
    assert {name: keys for name, keys in report.items() if keys} == {}, "transformers 5 still reads them"
    spec, state = load_hf(old)
    expected = vision.ours.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert HFCheckpoint.open(old).dtypes == dict.fromkeys(state, torch.float32)
    assert spec == vision.spec


def test_a_stored_head_is_a_head_whatever_the_default_says(tmp_path: Path) -> None:
    """transformers 4 wrote no tie_word_embeddings for untied models, which transformers 5 takes for tied ones."""
    pair = make_pair("low", tmp_path / "theirs")
    config = json.loads((pair.directory / "config.json").read_text())
    del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]
    (pair.directory / "config.json").write_text(json.dumps(config))
    published = HFCheckpoint.open(pair.directory)
    assert published.spec == replace(pair.spec, name=published.spec.name)
    assert torch.equal(dict(published.stream())["lm_head.weight"], pair.ours.state_dict()["lm_head.weight"])
    theirs = AutoModelForImageTextToText.from_pretrained(pair.directory)
    assert torch.equal(theirs.lm_head.weight, pair.theirs.lm_head.weight)


def test_images_of_other_sizes_and_features_of_other_counts_are_refused(vision) -> None:
    low_IAXY, high_IAXY = vision.images.low_IAXY, vision.images.high_IAXY
    count = 3 * vision.spec.vision.tokens_per_image
    with pytest.raises(SpecError, match=rf"{count - 1} rows for {count} image tokens \({IMAGE}\)"):
        vision.ours(vision.tokens_BT, features_ND=vision.features_ND()[1:])
    with pytest.raises(SpecError, match=r"low_IAXY: is \(3, 3, 8, 8\)"):
        vision.ours.vision(ImageBatch(low_IAXY[..., :8, :8], high_IAXY))
    with pytest.raises(SpecError, match="high_IAXY"):
        vision.ours.vision(ImageBatch(low_IAXY, low_IAXY if high_IAXY is None else None))
