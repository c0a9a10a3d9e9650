"""Copies of what is to be written, so that training may go on meanwhile."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fathom.checkpoint.allocation import empty_cpu_tensor
from fathom.checkpoint.sharded.pieces import Piece


class Staging:
    """CPU memory that is used again for every save; pinned where the tensors are on an accelerator."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def copied(self, pieces: list[Piece]) -> list[Piece]:
        """Return pieces whose memory are copies; they are whole when this returns."""
        buffers = {(piece.key, piece.offset): self._buffer(piece) for piece in pieces}
        self._buffers = buffers
        devices = set()
        for piece in pieces:
            buffer = buffers[piece.key, piece.offset]
            buffer.copy_(piece.memory, non_blocking=buffer.is_pinned())
            devices.add(piece.memory.device)
        for device in devices:
            if device.type != "cpu":
                torch.accelerator.current_stream(device).synchronize()
        return [replace(piece, memory=buffers[piece.key, piece.offset]) for piece in pieces]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def release(self) -> None:
        """Give the memory back."""
        self._buffers = {}

    def _buffer(self, piece: Piece) -> Tensor:
        found = self._buffers.get((piece.key, piece.offset))
        if found is not None and found.shape == piece.memory.shape and found.dtype == piece.memory.dtype:
            return found
        if piece.memory.device.type == "cpu":
            return empty_cpu_tensor(piece.memory.shape, piece.memory.dtype)
        return torch.empty(piece.memory.shape, dtype=piece.memory.dtype, pin_memory=True)
