"""LoRA adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

from fathom.checkpoint.peft.config import CONFIG, WEIGHTS
from fathom.checkpoint.peft.read import read_peft
from fathom.checkpoint.peft.write import write_peft

__all__ = ["CONFIG", "WEIGHTS", "read_peft", "write_peft"]
