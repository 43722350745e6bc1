"""CrossGradient: two parameters whose gradients should be parallel.

With gradients p and q of the two, ``t_ab = p_a q_b − p_b q_a`` for each pair of axes is
the part of their cross product in the plane of those axes, and the density is ``Σ t²``.
t is bilinear in the parameters, so with δt its derivative along a step, a product is

    exact:          2 (∇t)ᵀ δt + 2 (∇δt)ᵀ t
    Gauss-Newton:   2 (∇t)ᵀ δt

Gradients are taken in the middle of the 2^d cells that meet in a corner, where all their
parts are of second order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.model.space import PerParameter
from hvpopt.model.tensors import Model
from hvpopt.problem.objective import Kind
from hvpopt.problem.regularisers.cells import Cells, mean, mean_transposed
from hvpopt.problem.regularisers.regulariser import Grid, Regulariser, Units

#: A gradient at the corners, by axis.
Gradient: TypeAlias = "dict[int, Tensor]"


class CrossGradient(Regulariser):
    """The cross product of two parameters' gradients, squared and integrated.

    ``∫ w |∇u₁ × ∇u₂|² dx`` with ``u = (m − reference) / scale`` of each: zero where the
    two have the same structure, or one has none (Gallardo and Meju, J. Geophys. Res. 109,
    B03311, 2004). In two dimensions the product has one component, in three it has three.
    Other parameters of the model take no part. Give ``scale``: the value goes with the
    fourth power of the units.

    Args:
        first: Name of one parameter; of a tuple its place.
        second: Name of the other, on the same grid.
        spacing: Size of a cell, metres: a number, or one per axis as a tuple; by
            parameter as a mapping.
        scale: Size of one unit of each parameter; see ``Tikhonov``. Default 1.
        weight: w of each cell, or a Boolean mask: one for both. Default 1.
        reference: The model that deviations are measured from; copied. Default none.
        name: Name of its part in a sum. Default ``"cross-gradient"``.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a number out of range, or one parameter named twice. When it meets
            a model, for one without these two, grids that differ, or of a single axis.

    Example:
        >>> import torch, hvpopt
        >>> x = torch.arange(4.0, dtype=torch.float64).expand(4, 4)
        >>> alike = hvpopt.CrossGradient("vp", "vs", spacing=1.0)
        >>> alike.value({"vp": x, "vs": -2 * x}), alike.value({"vp": x, "vs": 2 * x.T})
        (0.0, 36.0)
    """

    def __init__(
        self,
        first: str | int,
        second: str | int,
        *,
        spacing: Any,
        scale: PerParameter = None,
        weight: float | Tensor | None = None,
        reference: Model | None = None,
        name: str = "cross-gradient",
    ) -> None:
        super().__init__(
            spacing=spacing, scale=scale, weight=weight, reference=reference, name=name
        )
        self.pair = _name("first", first), _name("second", second)
        if self.pair[0] == self.pair[1]:
            raise ValueError(
                f"both parameters are {first!r}; a gradient is parallel to itself"
            )
        if isinstance(weight, (dict, list, tuple)):
            raise TypeError(
                f"weight is {checks.kind(weight)}; a cross-gradient has one for both "
                "parameters: pass a number or a tensor"
            )

    def penalty(self, grid: Grid, units: Units) -> Tensor:
        """Return the integral."""
        state = self._state(grid, units)
        squares = [(state.weight * t.square()).sum() for t in state.cross.values()]
        return 0.5 * torch.stack(squares).sum()

    def slopes(self, grid: Grid, units: Units) -> Units:
        """Return the derivatives in ``units``."""
        state = self._state(grid, units)
        return self._pulled(grid, units, _spread(state, state.cross, state.gradients))

    def curvature(self, grid: Grid, units: Units, kind: Kind) -> Any:
        """Return both gradients and their cross product, and whether it is read."""
        return self._state(grid, units), kind

    def bend(self, grid: Grid, kept: Any, steps: Units) -> Units:
        """Return the second derivatives times ``steps``."""
        state, kind = kept
        p, q = state.gradients
        pushed = dp, dq = self._gradients(grid, steps)
        cross = {
            (a, b): dp[a] * q[b] + p[a] * dq[b] - dp[b] * q[a] - p[b] * dq[a]
            for a, b in state.cross
        }
        rows = _spread(state, cross, state.gradients)
        if kind == "exact":
            more = _spread(state, state.cross, pushed)
            rows = [
                {axis: row[axis] + extra[axis] for axis in row}
                for row, extra in zip(rows, more, strict=True)
            ]
        return self._pulled(grid, steps, rows)

    def _state(self, grid: Grid, units: Units) -> _State:
        self._check(grid)
        p, q = gradients = self._gradients(grid, units)
        cells = grid[self.pair[0]]
        weight = 2.0 * cells.volume * cells.weight_between(cells.axes)
        pairs = combinations(cells.axes, 2)
        cross = {(a, b): p[a] * q[b] - p[b] * q[a] for a, b in pairs}
        return _State(gradients, cross, weight)

    def _gradients(self, grid: Grid, units: Units) -> tuple[Gradient, Gradient]:
        first, second = (_gradient(grid[name], units[name]) for name in self.pair)
        return first, second

    def _pulled(self, grid: Grid, like: Units, rows: Sequence[Gradient]) -> Units:
        """Return the transpose of ``_gradients`` times ``rows``, zero elsewhere."""
        found = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
        for name, row in zip(self.pair, rows, strict=True):
            cells = grid[name]
            for axis, part in row.items():
                edges = mean_transposed(part, cells.others(axis))
                found[name] += cells.difference_transposed(edges, (axis,))
        return found

    def _check(self, grid: Grid) -> None:
        for name in self.pair:
            if name not in grid:
                raise ValueError(
                    f"{self.name!r} is of parameters {list(self.pair)}; the model has "
                    f"{list(grid)}"
                )
        first, second = (grid[name] for name in self.pair)
        if first.shape != second.shape or first.spacing != second.spacing:
            raise ValueError(
                f"parameters {list(self.pair)} lie on different grids, {first.shape} of "
                f"{first.spacing} m and {second.shape} of {second.spacing} m; a "
                "cross-gradient needs one"
            )
        if len(first.axes) < 2:
            raise ValueError(
                f"parameter {self.pair[0]!r} has shape {first.shape}: gradients along a "
                "single axis are always parallel; a cross-gradient needs two axes"
            )


@dataclass(frozen=True)
class _State:
    """What products at one model share."""

    gradients: tuple[Gradient, Gradient]  # of both parameters
    cross: dict[tuple[int, int], Tensor]  # t of each pair of axes
    weight: float | Tensor  # twice the weight of t²


def _spread(
    state: _State,
    cross: dict[tuple[int, int], Tensor],
    gradients: tuple[Gradient, Gradient],
) -> list[Gradient]:
    """Return ``(∇t)ᵀ cross`` in both gradients, ∇t being taken at ``gradients``."""
    p, q = gradients
    in_p = {axis: torch.zeros_like(part) for axis, part in p.items()}
    in_q = {axis: torch.zeros_like(part) for axis, part in q.items()}
    for (a, b), t in cross.items():
        weighted = state.weight * t
        in_p[a] += weighted * q[b]
        in_p[b] -= weighted * q[a]
        in_q[b] += weighted * p[a]
        in_q[a] -= weighted * p[b]
    return [in_p, in_q]


def _gradient(cells: Cells, units: Tensor) -> Gradient:
    return {
        axis: mean(cells.difference(units, (axis,)), cells.others(axis))
        for axis in cells.axes
    }


def _name(what: str, given: object) -> str:
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        raise TypeError(
            f"the {what} parameter is {checks.shown(given)}; pass its name, or its place "
            "in a tuple"
        )
    return str(given)
