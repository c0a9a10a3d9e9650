"""The kinds of recipes there are templates of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fathom.pipeline.recipe_templates.posttrain import distill, dpo, finetune, grpo
from fathom.pipeline.recipe_templates.pretrain import pretrain
from fathom.pipeline.recipe_templates.request import Request

KINDS: Mapping[str, Callable[[Request], str]] = MappingProxyType(
    {"pretrain": pretrain, "finetune": finetune, "grpo": grpo, "distill": distill, "dpo": dpo}
)
"""Kind -> what writes its recipe."""
