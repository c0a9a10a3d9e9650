"""The size of an engine's page pool."""

from __future__ import annotations

import torch

from fathom.model.cache import PagePool
from fathom.model.decoder import Decoder
from fathom.plan.serving import CACHE_SHARE, default_cache_tokens
from fathom.spec.engine import EngineSpec
from fathom.system import available_memory


def make_pool(model: Decoder, spec: EngineSpec, *, extra_layers: int = 0) -> PagePool:
    """Reserve an engine's pages on the model's device, in the dtype it computes in unless the spec asks for another.

    On a CPU the operating system gives the memory as it is first written.
    """

    def allocate(pages: int) -> PagePool:
        return PagePool.allocate(
            model.spec,
            pages=pages,
            page_size=spec.page_size,
            extra_layers=extra_layers,
            cache_format=spec.cache_format,
            device=model.device,
            dtype=torch.bfloat16 if spec.compute_dtype == "bfloat16" else model.dtype,
        )

    if spec.cache_tokens is not None:
        return allocate(-(-spec.cache_tokens // spec.page_size))
    wanted = default_cache_tokens(model.spec.max_position_embeddings, spec.max_batch)
    most = memory_bytes(model.device) // CACHE_SHARE / allocate(1).bytes_per_token
    return allocate(max(int(min(-(-wanted // spec.page_size), most // spec.page_size)), 1))


def memory_bytes(device: torch.device) -> int:
    """Return the bytes that can still be had: of a GPU's memory, or of what this process may use of the machine's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
