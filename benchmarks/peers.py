"""One model twice: Fathom's decoder and transformers' class, from the same published directory."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from fathom.checkpoint.hf import save_hf
from fathom.families import preset
from fathom.inference.language_model import LanguageModel
from fathom.model import Decoder, build
from fathom.spec import LatentAttention


def fathom_model(
    shape: str, *, q_lora: int | None = None, positions: int = 0, dtype: torch.dtype = torch.float32
) -> Decoder:
    """Build shape ``t``, ``s``, ``m`` or ``l`` with seeded weights, or open ``smollm2``.

    ``q_lora`` compresses the queries of a shape, which otherwise has none of it. ``positions`` is the least number of
    tokens that its context must hold.
    """
    if shape == "smollm2":
        return LanguageModel.open(
            "smollm2-135m", dtype=str(dtype).removeprefix("torch."), device="cpu", weights="plain"
        ).model
    spec = preset(f"bench-{shape}")
    if q_lora is not None:
        assert isinstance(spec.attention, LatentAttention)
        spec = replace(spec, attention=replace(spec.attention, q_lora_rank=q_lora))
    spec = replace(spec, max_position_embeddings=max(positions, spec.max_position_embeddings))
    return build(spec, seed=0, dtype=dtype)


def transformers_model(shape: str, *, q_lora: int | None = None, positions: int = 0) -> PreTrainedModel:
    """Open the same weights with transformers, float32, its default attention."""
    return in_transformers(fathom_model(shape, q_lora=q_lora, positions=positions))


def in_transformers(model: Decoder) -> PreTrainedModel:
    """Open a model's weights with transformers."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_hf(path, model.spec, model.state_dict())
        del model
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def machine() -> dict[str, object]:
    """Say what the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else "unknown",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def write(name: str, result: dict[str, object], out: Path) -> None:
    """Write and print one benchmark's JSON."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"benchmark": name, "machine": machine()} | result, indent=2)
    (out / f"{name}-cpu.json").write_text(text + "\n")
    print(text)
