"""A decoder sharded by FSDP over this process alone: every weight is whole only while the module that owns it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fathom.model.decoder import Decoder


@pytest.fixture
def one_rank() -> Iterator[Any]:
    """A process group of this process alone, on the CPU."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(model: Decoder, mesh: Any) -> Decoder:
    """Every part's weights are there only while the part runs: outside they are shards, which no product takes."""
    tied = model.spec.tie_word_embeddings
    parts: list[Any] = [[model.embed_tokens, model.lm_head]] if tied else [model.embed_tokens, model.lm_head]
    for part in (*model.layers, *model.mtp, *parts):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return fully_shard(model, mesh=mesh)


def whole_gradients(model: Decoder) -> dict[str, Tensor]:
    """Return every parameter's gradient, shards gathered."""
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in found.items()}
