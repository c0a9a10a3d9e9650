"""What is said of a checkpoint agrees with the model it builds, whatever its form, and no tensor is read for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fathom.checkpoint.gguf.container import Container
from fathom.checkpoint.tensorfile import TensorFile
from fathom.inference.conversion import Conversion
from fathom.inference.inspection import inspect_source, summary
from fathom.inference.loading import open_source
from fathom.model import StaticCache, build
from fathom.model.cache import PagePool
from tests.published import SPECS, Publish

FORMS = {"hf": None, "gguf": "F16", "fathom": "bfloat16"}
KINDS = {"hf": "F32", "gguf": "F16", "fathom": "BF16"}


def only(read: Any, name: str) -> Any:
    """Let a reader read one tensor, the divisors that a spec follows from."""

    def checked(self: Container, asked: str) -> Tensor:
        assert asked == name
        tensor: Tensor = read(self, asked)
        return tensor

    return checked


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SPECS)
def test_every_form_is_described_by_its_headers_alone(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    source, spec = publish(name), SPECS[name]
    if FORMS[form] is not None:
        source = Conversion.prepare(open_source(source), tmp_path / f"m.{form}", form, dtype=FORMS[form]).run()
    monkeypatch.setattr(TensorFile, "read", None)
    monkeypatch.setattr(Container, "read", only(Container.read, "rope_freqs.weight"))
    found = inspect_source(open_source(source))
    assert json.loads(json.dumps(found)) == found
    assert (found["form"], found["spec"]["num_hidden_layers"]) == (form, spec.num_hidden_layers)
    model = build(spec, seed=0)
    count = found["parameters"]
    assert count["total"] + count["mtp"] == sum(tensor.numel() for tensor in model.state_dict().values())
    assert found["tensors"][0]["kind"] == KINDS[form]
    cached = StaticCache.allocate(spec, batch_size=1, max_length=1).bytes_per_token
    pools = {kind: PagePool.allocate(spec, pages=1, page_size=1, cache_format=kind) for kind in ("int8", "int6")}
    assert found["cache"]["bytes_per_token"] == {"float32": cached, "bfloat16": cached // 2} | {
        kind: pool.bytes_per_token for kind, pool in pools.items()
    }
    assert found["eos_ids"] == [1]
    tokenizer = found["tokenizer"]
    assert (tokenizer["bos_id"], tokenizer["eos_id"], tokenizer["pad_id"]) == (0, 1, 2)
    assert tokenizer["kind"] == "byte-level BPE"
    assert "messages" in found["chat_template"]
    assert sum(file["bytes"] for file in found["files"]) > sum(row["bytes"] for row in found["tensors"])


def test_full_context_stops_at_the_window(publish: Publish) -> None:
    cache = inspect_source(open_source(publish("tiny-mistral")))["cache"]
    assert cache["bytes_at_full_context"]["float32"] == cache["bytes_per_token"]["float32"] * 24
    cache = inspect_source(open_source(publish("tiny-mixtral")))["cache"]
    assert cache["bytes_at_full_context"]["float32"] == cache["bytes_per_token"]["float32"] * 128


def test_the_summary_names_what_differs_between_families() -> None:
    v3, mistral, llama = (summary(SPECS[f"tiny-{name}"]) for name in ("deepseek_v3", "mistral", "llama"))
    assert v3["attention"] == "MLA-32+16, 4 heads, keys 16 + 16 rotated, values 16, queries of rank 32"
    assert v3["experts"] == "2 of 8 per token and 1 shared, 32 wide"
    assert v3["router"] == (
        "sigmoid scores with selection bias, from 2 of 4 groups (top2_sum), weights normalised, scaled by 2.5"
    )
    assert v3["layers"] == "2, 1 of them mixtures of experts, 1 dense, 96 wide"
    assert v3["predicts ahead"] == "1 multi-token-prediction module"
    assert mistral["attention"] == "GQA-2 window 24, 4 heads of 16"
    assert "experts" not in mistral
    assert llama["positions"] == "rotary, theta 10,000, half layout, llama3 x4"
    assert llama["context"] == "128, extended from 32"
    assert summary(SPECS["tiny-qwen2"])["attention"].endswith("biases on q, k, v")
    assert summary(SPECS["tiny-deepseek_v2"])["positions"].endswith("yarn x4, mscale 0.707, mscale_all_dim 0.707")


def test_exports_say_what_is_lost(publish: Publish, tmp_path: Path) -> None:
    exports = inspect_source(open_source(publish("tiny-deepseek_v2")))["exports"]
    assert exports["hf"] == exports["fathom"] == {"obstacle": None, "losses": []}
    assert any("initializer_range" in loss for loss in exports["gguf"]["losses"])
    small = Conversion.prepare(open_source(publish("tiny-llama")), tmp_path / "m.gguf", "gguf", dtype="Q8_0").run()
    widened = "Q8_0 tensors become float32, number for number; --dtype bfloat16 is smaller but rounds"
    assert inspect_source(open_source(small))["exports"]["hf"]["losses"] == [widened]


def test_a_tokenizer_that_cannot_be_used_is_told(publish: Publish, tmp_path: Path) -> None:
    broken = Conversion.prepare(open_source(publish("tiny-llama")), tmp_path / "broken", "hf").run()
    (broken / "tokenizer.json").write_text("{")
    found = inspect_source(open_source(broken))
    assert "not a usable tokenizer" in found["tokenizer"]["problem"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).unlink()
    found = inspect_source(open_source(broken))
    assert (found["tokenizer"], found["chat_template"], found["eos_ids"]) == (None, None, [1])
