"""Numbers of 11 bits packed without a gap: 16 of them in 22 bytes.

Dimensions: N rows, M codes of a row, Y bytes of a row, J blocks of 16 codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

CODES_PER_GROUP = 16
BLOCK_BYTES = 22


def pack_11(codes_NM: Tensor) -> Tensor:
    """Pack the low 11 bits of each code, signed or not; rows are filled up to whole blocks with zeros: uint8 (N, Y).

    A row is 11 planes of J little-endian 16-bit words. Word j of plane p holds code p J + j in its low 11 bits. The
    five planes of codes that are left lie in the bits above: of plane 11 + i the low five in plane i, the next five
    in plane 5 + i, and the highest in bit 11 + i of plane 10. So most of a row is unpacked by one mask.
    """
    rows, count = codes_NM.shape
    blocks = -(-count // CODES_PER_GROUP)
    codes = torch.zeros(rows, CODES_PER_GROUP * blocks, dtype=torch.int32, device=codes_NM.device)
    codes[:, :count] = codes_NM
    codes = codes.view(rows, CODES_PER_GROUP, blocks).bitwise_and_(2047)
    words, rest = codes.split_with_sizes((11, 5), 1)
    low, middle, high = words.split_with_sizes((5, 5, 1), 1)
    low.add_(rest, alpha=1 << 11)  # the bits beyond a word are cut off below
    middle.add_(rest >> 5, alpha=1 << 11)
    places = torch.arange(11, 16, dtype=torch.int32, device=codes.device)[:, None]
    high.add_((rest >> 10 << places).sum(1, keepdim=True, dtype=torch.int32))
    return words.to(torch.int16).view(torch.uint8).view(rows, BLOCK_BYTES * blocks)


def unpack_11(packed_NY: Tensor) -> Tensor:
    """Return the codes as 0 to 2047, int32 (N, M), those that filled the last block included.

    Rows may lie apart, at even distances from an even address.
    """
    rows, blocks = packed_NY.shape[0], packed_NY.shape[1] // BLOCK_BYTES
    words = packed_NY.view(torch.uint16).to(torch.int32).view(rows, 11, blocks)
    low, middle, high = (words >> 11).split_with_sizes((5, 5, 1), 1)
    lifts = 1 << torch.arange(10, 5, -1, dtype=torch.int32, device=packed_NY.device)
    rest = (high * lifts[:, None]).bitwise_and_(1 << 10).add_(low)  # products are faster than shifts by a tensor
    rest = rest.add_(middle, alpha=1 << 5)
    return torch.cat((words, rest), 1).bitwise_and_(2047).view(rows, CODES_PER_GROUP * blocks)
