"""Tikhonov and ReferenceModel: squares of deviations, slopes or second derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.model.space import PerParameter
from hvpopt.model.tensors import Model
from hvpopt.problem.objective import Kind
from hvpopt.problem.regularisers.cells import Cells
from hvpopt.problem.regularisers.regulariser import Grid, Regulariser, Units


class Tikhonov(Regulariser):
    """Squares of a model's differences, integrated over the grid and summed.

    With ``u = (m − reference) / scale`` of each parameter,

        order 0:  ∫ w u² dx,    order 1:  ∫ w |∇u|² dx,    order 2:  ∫ w |∇∇u|² dx,

    where ``|∇∇u|²`` sums the squares of all second derivatives, mixed ones included: it
    does not depend on the direction of the axes, and is zero for planes alone (Tikhonov
    and Arsenin, Solutions of Ill-Posed Problems, 1977). It is quadratic, so exact and
    Gauss-Newton products are the same. A model of 1, 2 or 3 axes (or more) may be given.

    Args:
        spacing: Size of a cell, metres: a number, or one per axis as a tuple; by
            parameter as a mapping.
        order: Of the derivative, 0, 1 or 2. Default 1.
        scale: Size of one unit of each parameter; per parameter as a sequence or mapping.
            Default 1.
        weight: w of each cell, zero or positive, a number or a tensor (a Boolean mask
            too); per parameter like ``scale``. A cell of weight 0 takes part in no
            difference. Default 1.
        reference: The model that deviations are measured from; copied. Default none.
        name: Name of its part in a sum. Default ``"tikhonov"``.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a number out of range. When it meets a model, for parameters or
            shapes that do not fit.

    Example:
        >>> import torch, hvpopt
        >>> depth = torch.arange(5.0, dtype=torch.float64)  # slope of 1/2 m/s per metre
        >>> hvpopt.Tikhonov(spacing=2.0).value(depth)  # (1/2)² over 8 m
        2.0
    """

    def __init__(
        self,
        *,
        spacing: Any,
        order: int = 1,
        scale: PerParameter = None,
        weight: PerParameter = None,
        reference: Model | None = None,
        name: str = "tikhonov",
    ) -> None:
        super().__init__(
            spacing=spacing, scale=scale, weight=weight, reference=reference, name=name
        )
        self.order = checks.integer("order", order, least=0, most=2)

    def _terms(self, cells: Cells) -> Iterator[tuple[tuple[int, ...], float | Tensor]]:
        """Yield the axes of each difference, and the weight of its squares."""
        axes = cells.axes
        if self.order == 0:
            stencils: list[tuple[int, ...]] = [()]
        elif self.order == 1:
            stencils = [(a,) for a in axes]
        else:
            stencils = [(a, b) for a in axes for b in axes if a <= b]
        for stencil in stencils:
            # a mixed derivative is twice in the matrix of second derivatives
            times = cells.volume * (2.0 if len(set(stencil)) == 2 else 1.0)
            yield stencil, cells.weight_between(stencil) * times

    def penalty(self, grid: Grid, units: Units) -> Tensor:
        """Return the integral."""
        parts = [
            (weight * cells.difference(units[name], axes).square()).sum()
            for name, cells in grid.items()
            for axes, weight in self._terms(cells)
        ]
        # of a single cell there is no difference
        zero = sum(u.sum() * 0.0 for u in units.values())
        return torch.as_tensor(sum(parts, zero))

    def slopes(self, grid: Grid, units: Units) -> Units:
        """Return the derivatives in ``units``."""
        return self.bend(grid, self.curvature(grid, units, "exact"), units)

    def curvature(self, grid: Grid, units: Units, kind: Kind) -> Any:
        """Return the differences of each parameter and their weights."""
        return {name: list(self._terms(cells)) for name, cells in grid.items()}

    def bend(self, grid: Grid, kept: Any, steps: Units) -> Units:
        """Return the second derivatives times ``steps``."""
        found = {}
        for name, cells in grid.items():
            found[name] = torch.zeros_like(steps[name])
            for axes, weight in kept[name]:
                pushed = weight * cells.difference(steps[name], axes)
                found[name] += 2.0 * cells.difference_transposed(pushed, axes)
        return found


class ReferenceModel(Tikhonov):
    """Squares of a model's deviations from a reference model, integrated over the grid.

    ``∫ w ((m − reference) / scale)² dx``: damping towards what is known, most strongly
    where ``weight`` says that it is known well. It is ``Tikhonov`` of order 0.

    Args:
        reference: The model to stay near; copied.
        spacing: Size of a cell, metres; see ``Tikhonov``. Default 1, for parameters that
            lie on no grid.
        scale: Deviation that counts as one unit; see ``Tikhonov``. Default 1.
        weight: w; see ``Tikhonov``. Default 1.
        name: Name of its part in a sum. Default ``"reference"``.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: As ``Tikhonov``.
    """

    def __init__(
        self,
        reference: Model,
        *,
        spacing: Any = 1.0,
        scale: PerParameter = None,
        weight: PerParameter = None,
        name: str = "reference",
    ) -> None:
        if reference is None:
            raise TypeError("the reference is None; pass the model to stay near")
        super().__init__(
            order=0,
            spacing=spacing,
            scale=scale,
            weight=weight,
            reference=reference,
            name=name,
        )
