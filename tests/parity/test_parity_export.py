"""What Fathom writes, transformers loads: the same logits and the same greedy tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fathom.checkpoint.hf import load_hf, save_hf
from fathom.model import StaticCache, build
from fathom.spec import YarnScaling


def greedy(model: Any, spec: Any, prompt_BT: torch.Tensor, count: int) -> torch.Tensor:
    cache = StaticCache.allocate(spec, batch_size=prompt_BT.shape[0], max_length=prompt_BT.shape[1] + count)
    found, new_BT = [], prompt_BT
    with torch.no_grad():
        for _ in range(count):
            new_BT = model.logits(model(new_BT, cache=cache).hidden_BTD[:, -1:]).argmax(-1)
            found.append(new_BT)
    return torch.cat(found, dim=1)


def test_transformers_runs_what_we_write(pair, tmp_path: Path) -> None:
    ours = build(pair.spec, seed=4).eval()
    state = {name: tensor.flip(0) + 0.01 for name, tensor in pair.ours.state_dict().items()}
    ours.load_state_dict(state)
    save_hf(tmp_path / "ours", pair.spec, ours.state_dict())
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert {name: keys for name, keys in report.items() if keys} == {}
    assert type(theirs) is type(pair.theirs)
    prompt_BT = pair.tokens_BT[:, :20]
    with torch.no_grad():
        logits = theirs.eval()(pair.tokens_BT).logits
        generated = theirs.generate(
            prompt_BT, max_new_tokens=30, min_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        hidden = ours(pair.tokens_BT).hidden_BTD
    torch.testing.assert_close(ours.logits(hidden), logits, rtol=0, atol=1e-5)
    assert torch.equal(greedy(ours, pair.spec, prompt_BT, 30), generated[:, 20:])


def test_reading_what_we_write_gives_the_same_model(pair, tmp_path: Path) -> None:
    save_hf(tmp_path / "ours", pair.spec, pair.ours.state_dict(), max_shard_bytes=40_000)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 1
    spec, state = load_hf(tmp_path / "ours")
    expected = pair.ours.state_dict()
    assert spec == pair.spec
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_names_on_disk_are_those_transformers_writes(pair, tmp_path: Path) -> None:
    save_hf(tmp_path / "ours", pair.spec, pair.ours.state_dict())
    ours, theirs = (load_file(d / "model.safetensors") for d in (tmp_path / "ours", pair.directory))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_config_in_the_fields_of_the_release_loads(published_v2_config: dict[str, Any], tmp_path: Path) -> None:
    """Released DeepSeek-V2 files say rope_scaling.type and rope_theta, which transformers 5 no longer writes."""
    directory = tmp_path / "released"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(published_v2_config))
    theirs = AutoModelForCausalLM.from_config(transformers_config(directory), attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    theirs.save_pretrained(tmp_path / "saved")
    shutil.copy(tmp_path / "saved" / "model.safetensors", directory)
    spec, state = load_hf(directory)
    scaling = spec.rope.scaling
    assert isinstance(scaling, YarnScaling)
    assert (scaling.mscale, scaling.mscale_all_dim, spec.rope.theta) == (0.707, 0.707, 100.0)
    assert spec.rope.layout == "interleaved"
    ours = build(spec, seed=None).eval()
    ours.load_state_dict(state)
    tokens_BT = torch.randint(0, 97, (2, 70), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens_BT).hidden_BTD), theirs(tokens_BT).logits, rtol=0, atol=1e-5)


def transformers_config(directory: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(directory)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_survive_and_are_named_in_the_config(latent_pair, tmp_path: Path, dtype: torch.dtype) -> None:
    model = build(latent_pair.spec, dtype=dtype)
    save_hf(tmp_path / "ours", latent_pair.spec, model.state_dict())
    assert json.loads((tmp_path / "ours/config.json").read_text())["torch_dtype"] == str(dtype).split(".")[1]
    _, state = load_hf(tmp_path / "ours")
    expected = model.state_dict()
    assert {n: t.dtype for n, t in state.items()} == {n: t.dtype for n, t in expected.items()}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert theirs.get_input_embeddings().weight.dtype == dtype
