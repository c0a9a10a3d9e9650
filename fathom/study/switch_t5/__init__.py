"""Switch Transformers as published: a T5 encoder-decoder with a mixture of experts in every second layer.

The same encoder-decoder with another router is GShard's (``fathom.study.gshard``).
"""

from __future__ import annotations

from fathom.study.switch_t5.checkpoint import load, save
from fathom.study.switch_t5.generate import generate
from fathom.study.switch_t5.model import EncoderDecoder, EncoderDecoderOutput, build
from fathom.study.switch_t5.spec import EncoderDecoderSpec, spec_from_config, spec_to_config

__all__ = [
    "EncoderDecoder",
    "EncoderDecoderOutput",
    "EncoderDecoderSpec",
    "build",
    "generate",
    "load",
    "save",
    "spec_from_config",
    "spec_to_config",
]
