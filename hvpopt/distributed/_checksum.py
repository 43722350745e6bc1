"""A checksum of tensors in eight bytes, by which ranks compare what they hold."""

from __future__ import annotations

import torch
from torch import Tensor

#: Entries at a time, which bounds the memory that a checksum takes.
BLOCK = 1 << 20
#: 2⁶⁴/φ, odd, as a signed number: neighbours get very different factors.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(*tensors: Tensor, start: int = 0) -> int:
    """Return a number that tensors of other bits have with a chance of about 2⁻⁶⁴.

    The bits of entry i are multiplied by an odd number that depends on i and added
    modulo 2⁶⁴. Integer sums are the same in any order, so the checksum does not depend
    on the device. A single entry that differs always changes it.

    Args:
        *tensors: Of real floating-point dtypes, on any device.
        start: A checksum of what came before. Default of nothing.

    Returns:
        A signed integer of 64 bits.
    """
    total = start
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        bits = flat.contiguous().view(_INTEGERS[flat.element_size()])
        mixed = torch.zeros((), dtype=torch.int64, device=bits.device)
        for first in range(0, bits.numel(), BLOCK):
            block = bits[first : first + BLOCK].long()
            place = torch.arange(first, first + block.numel(), device=bits.device)
            # tensors of 64-bit integers wrap around
            mixed += (block * (place * _GOLDEN | 1)).sum()
        total = (31 * total + int(mixed)) % (1 << 64)
        total -= (1 << 64) if total >= 1 << 63 else 0
    return total
