"""Pack 11-bit codes without gaps: 16 of them in 22 bytes.

X codes and Y bytes of a row, J groups of 16 codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

CODES_PER_GROUP = 16
GROUP_BYTES = 22


def pack_11(codes_NX: Tensor) -> Tensor:
    """Pack the low 11 bits of each code, signed or not; rows are filled up to whole groups with zeros: uint8 (N, Y).

    A row is 11 planes of J little-endian 16-bit words. Word j of plane p holds code p J + j in its low 11 bits. The
    five planes of codes that are left lie in the bits above: of plane 11 + i the low five in plane i, the next five
    in plane 5 + i, and the highest in bit 11 + i of plane 10. So most of a row is unpacked by one mask.
    """
    rows, count = codes_NX.shape
    groups = -(-count // CODES_PER_GROUP)
    codes = torch.zeros(rows, CODES_PER_GROUP * groups, dtype=torch.int32, device=codes_NX.device)
    codes[:, :count] = codes_NX
    codes = codes.view(rows, CODES_PER_GROUP, groups).bitwise_and_(2047)
    words, rest = codes.split_with_sizes((11, 5), 1)
    low, middle, high = words.split_with_sizes((5, 5, 1), 1)
    low.add_(rest, alpha=1 << 11)  # the bits beyond a word are cut off below
    middle.add_(rest >> 5, alpha=1 << 11)
    places = torch.arange(11, 16, dtype=torch.int32, device=codes.device)[:, None]
    high.add_((rest >> 10 << places).sum(1, keepdim=True, dtype=torch.int32))
    return words.to(torch.int16).view(torch.uint8).view(rows, GROUP_BYTES * groups)


def unpack_11(packed_NY: Tensor) -> Tensor:
    """Return the codes as 0 to 2047, int32 (N, X), those that filled the last group included.

    Rows may lie apart, at even distances from an even address.
    """
    rows, groups = packed_NY.shape[0], packed_NY.shape[1] // GROUP_BYTES
    words = packed_NY.view(torch.uint16).to(torch.int32).view(rows, 11, groups)
    low, middle, high = (words >> 11).split_with_sizes((5, 5, 1), 1)
    lifts = 1 << torch.arange(10, 5, -1, dtype=torch.int32, device=packed_NY.device)
    rest = (high * lifts[:, None]).bitwise_and_(1 << 10).add_(low)  # products are faster than shifts by a tensor
    rest = rest.add_(middle, alpha=1 << 5)
    return torch.cat((words, rest), 1).bitwise_and_(2047).view(rows, CODES_PER_GROUP * groups)
