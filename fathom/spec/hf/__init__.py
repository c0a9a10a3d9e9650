"""Hugging Face config.json to ModelSpec and back. Standard library only."""

from __future__ import annotations

from fathom.spec.hf.convert import Carried, HFConfig, spec_from_hf, spec_to_hf

__all__ = ["Carried", "HFConfig", "spec_from_hf", "spec_to_hf"]
