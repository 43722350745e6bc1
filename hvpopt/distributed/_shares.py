"""Distribution of shots over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

#: Ratio of the largest cost to the smallest below which costs count as equal: timings of
#: equal shots differ by as much.
EVEN = 1.25


def shares(costs: Sequence[float], n_ranks: int) -> list[list[int]]:
    """Return the ascending indices of the shots of each rank; the last may have none.

    For equal costs the shots of a rank are adjacent, and their numbers differ by at most
    one. Otherwise shots are assigned in descending order of cost, each to the rank with
    the least cost so far: the largest cost of a rank is then at most 4/3 of the optimum
    (Graham, SIAM J. Appl. Math. 17, 1969).
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
