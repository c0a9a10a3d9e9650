"""The native decoding step: a decoder's modules walked once into the structures of ``csrc/step.h``."""

from __future__ import annotations

from fathom.model.native.native_model import NativeModel, StepOutput
from fathom.model.native.walk import Refusal

__all__ = ["NativeModel", "Refusal", "StepOutput"]
