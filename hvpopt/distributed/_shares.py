"""Which rank runs which shots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

#: Costs whose largest is less than this many times the smallest count as equal: timings
#: of equal shots differ by as much.
EVEN = 1.25


def shares(costs: Sequence[float], n_ranks: int) -> list[list[int]]:
    """Return the places of ``costs`` that each rank takes, in order.

    Equal costs give neighbours, in numbers that differ by one at most. Others are dealt
    out from the dearest to the cheapest, each to the rank that has least so far: the
    slowest rank then takes at most 4/3 of the best possible (Graham, SIAM J. Appl.
    Math. 17, 1969).

    Args:
        costs: Of each shot, positive.
        n_ranks: Ranks; where there are more of them than shots, the last have none.

    Returns:
        One list for each rank.
    """
    n = len(costs)
    if not n or max(costs) < EVEN * min(costs):
        size, more = divmod(n, n_ranks)
        ends = [0]
        for rank in range(n_ranks):
            ends.append(ends[-1] + size + (rank < more))
        return [list(range(a, b)) for a, b in pairwise(ends)]
    dealt: list[list[int]] = [[] for _ in range(n_ranks)]
    load = [0.0] * n_ranks
    for place in sorted(range(n), key=lambda i: (-costs[i], i)):
        least = load.index(min(load))
        dealt[least].append(place)
        load[least] += costs[place]
    return [sorted(places) for places in dealt]
