"""Hugging Face config.json to ModelSpec and back. Standard library only."""

from __future__ import annotations

from fathom.spec.hf.convert import ExtraConfig, HFConfig, spec_from_hf, spec_to_hf

__all__ = ["ExtraConfig", "HFConfig", "spec_from_hf", "spec_to_hf"]
