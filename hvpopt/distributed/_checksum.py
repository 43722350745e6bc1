"""A 64-bit checksum of tensors, with which ranks compare models and vectors."""

from __future__ import annotations

import torch
from torch import Tensor

#: Entries to process at a time, which bounds the memory of a checksum.
BLOCK = 1 << 20
#: 2⁶⁴/φ, odd, as a signed integer: adjacent entries get very different factors.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(*tensors: Tensor, start: int = 0) -> int:
    """Return a signed 64-bit checksum of real tensors, equal for others with p ≈ 2⁻⁶⁴.

    The bits of entry i are multiplied by an odd number that depends on i and added modulo
    2⁶⁴. Integer sums are the same in any order, so the checksum does not depend on the
    device. A change of a single entry always changes it. ``start`` is the checksum of
    preceding tensors.
    """
    total = start
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        bits = flat.contiguous().view(_INTEGERS[flat.element_size()])
        mixed = torch.zeros((), dtype=torch.int64, device=bits.device)
        for first in range(0, bits.numel(), BLOCK):
            block = bits[first : first + BLOCK].long()
            place = torch.arange(first, first + block.numel(), device=bits.device)
            # 64-bit integers wrap around
            mixed += (block * (place * _GOLDEN | 1)).sum()
        total = (31 * total + int(mixed)) % (1 << 64)
        total -= (1 << 64) if total >= 1 << 63 else 0
    return total
