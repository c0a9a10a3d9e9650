"""Adapters that PEFT opens and adapters that PEFT made: equal logits over one published base model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from fathom.checkpoint.peft import CONFIG, WEIGHTS, read_peft, write_peft
from fathom.checkpoint.weights import load_weights
from fathom.errors import CheckpointError
from fathom.inference.loading import open_source
from fathom.model import Decoder, build
from fathom.model.adapters.adapter import Adapter
from fathom.model.adapters.attach import adapter_from_state, attach, learned_state, with_adapter
from fathom.spec.adapter import LoraSpec

pytestmark = [
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
]
TOKENS = torch.randint(3, 300, (1, 12), generator=torch.Generator().manual_seed(1))
FAMILIES = ["llama", "qwen2", "deepseek_v2"]
LORA = LoraSpec(rank=3, alpha=5.0)


def opened(directory: Path) -> Decoder:
    source = open_source(directory)
    model = build(source.spec, seed=None).eval()
    load_weights(model, source)
    return model


def trained(base: Decoder, lora: LoraSpec = LORA) -> Adapter:
    """An adapter with random B, as training leaves it."""
    model = copy.deepcopy(base)
    attach(model, lora, seed=2)
    generator = torch.Generator().manual_seed(4)
    state = {
        name: torch.randn(tensor.shape, generator=generator) * 0.1 if name.endswith("B") else tensor.detach()
        for name, tensor in learned_state(model).items()
    }
    state = {name: tensor + 0.01 if name.endswith("weight") else tensor for name, tensor in state.items()}
    return adapter_from_state(state, lora.scaling)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        if isinstance(model, Decoder):
            return model.logits(model(TOKENS).hidden_BTD)
        return model(TOKENS).logits


def base_of_peft(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_opens_ours_and_ours_reads_it_back(family: str, publish: Callable[..., Path], tmp_path: Path) -> None:
    directory = publish(f"tiny-{family}")
    base = opened(directory)
    adapter = trained(base)
    expected = logits(with_adapter(base, adapter))
    assert (expected - logits(base)).abs().max() > 0.1
    written = write_peft(tmp_path / "adapter", base.spec, adapter, base=str(directory))
    theirs = peft.PeftModel.from_pretrained(base_of_peft(directory), str(written))
    torch.testing.assert_close(logits(theirs), expected, atol=1e-4, rtol=1e-4)
    assert {name.split("lora_")[0] for name in theirs.state_dict() if "lora_" in name}
    again = read_peft(written, base.spec)
    assert again.updates.keys() == adapter.updates.keys()
    for name, update in adapter.updates.items():
        assert torch.equal(again.updates[name].a, update.a), name
        assert torch.equal(again.updates[name].b, update.b), name
        assert again.updates[name].scaling == update.scaling


@pytest.mark.parametrize("family", FAMILIES)
def test_ours_opens_what_peft_made(family: str, publish: Callable[..., Path], tmp_path: Path) -> None:
    directory = publish(f"tiny-{family}")
    dense = ["gate_proj", "up_proj", "down_proj"]
    attention = ["q_proj", "o_proj", *(["kv_a_proj_with_mqa", "kv_b_proj"] if family == "deepseek_v2" else ["v_proj"])]
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        init_lora_weights=False,
        use_rslora=family == "llama",
        target_modules=attention if family == "deepseek_v2" else [*attention, *dense],
        target_parameters=["experts.gate_up_proj", "experts.down_proj", "shared_experts.down_proj.weight"]
        if family == "deepseek_v2"
        else None,
        rank_pattern={} if family == "llama" else {"q_proj": 2},
        modules_to_save=["lm_head"] if family == "llama" else None,
    )
    torch.manual_seed(3)
    theirs = peft.get_peft_model(base_of_peft(directory), config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.1)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    base = opened(directory)
    found = logits(with_adapter(base, read_peft(tmp_path / "adapter", base.spec)))
    assert (found - logits(base)).abs().max() > 0.1
    torch.testing.assert_close(found, logits(theirs), atol=1e-4, rtol=1e-4)


def test_experts_of_families_without_stacked_ones_are_written_one_by_one(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    base = opened(publish("tiny-deepseek"))
    adapter = trained(base)
    written = write_peft(tmp_path / "adapter", base.spec, adapter)
    config = json.loads((written / CONFIG).read_text())
    assert config["target_parameters"] is None
    assert config["rank_pattern"] == {}
    torch.testing.assert_close(
        logits(with_adapter(base, read_peft(written, base.spec))), logits(with_adapter(base, adapter))
    )


@pytest.fixture(scope="module")
def llama_adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Path]:
    from tests.published import SPECS

    base = build(SPECS["tiny-llama"], seed=1)
    return base, write_peft(tmp_path_factory.mktemp("peft") / "adapter", base.spec, trained(base))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"use_dora": True}, "use_dora = True is an option that Fathom does not compute"),
        ({"bias": "all"}, "bias = 'all' is an option"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the weights of its base"),
        ({"r": 5}, "has rank 3, and the config says 5"),
        ({"r": "3"}, "r is '3', no number above 0"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "a regular expression"),
        ({"new_option": {"x": 1}}, "new_option = .* is an option"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    change: dict[str, Any], problem: str, llama_adapter: tuple[Decoder, Path], tmp_path: Path
) -> None:
    base, written = llama_adapter
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / CONFIG).write_text(json.dumps(json.loads((written / CONFIG).read_text()) | change))
    (changed / WEIGHTS).symlink_to(written / WEIGHTS)
    with pytest.raises(CheckpointError, match=problem):
        read_peft(changed, base.spec)


def test_an_adapter_of_another_model_is_refused(llama_adapter: tuple[Decoder, Path]) -> None:
    from tests.published import SPECS

    _, written = llama_adapter
    with pytest.raises(CheckpointError, match=r"does not fit .*no linear layer model\.layers\.0\.self_attn\.k_proj"):
        read_peft(written, SPECS["tiny-deepseek_v2"])
