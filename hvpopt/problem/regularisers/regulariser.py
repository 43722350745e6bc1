"""Regulariser: a penalty on the model alone, with closed-form derivatives.

A regulariser is an integral over the grid, in metres, of a density of the parameters and
of their differences, so that one weight serves grids of every spacing. Parameters enter
as deviations from a reference model in units of a scale. Gradient and products are
written out: no graph is built, and what belongs to a linearisation is computed once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace, PerParameter, checked_space, per_parameter
from hvpopt.model.tensors import Model, check_tensors, copy_model, named_tensors, rebuild
from hvpopt.operators.autograd import check_scalar, model_noise
from hvpopt.operators.symmetric import SymmetricOperator
from hvpopt.problem.objective import Kind, Objective, check_kind
from hvpopt.problem.regularisers.cells import Cells

#: Cells of each parameter, by name; and tensors of each, in units of their scales.
Grid: TypeAlias = "dict[str, Cells]"
Units: TypeAlias = "dict[str, Tensor]"


class Regulariser(Objective):
    """A penalty on the model, an integral over its grid; for sums with misfits.

    A subclass supplies ``penalty`` in differentiable torch operations, its derivatives
    ``slopes``, and ``curvature`` and ``bend`` for the products.

    Args:
        spacing: Size of a cell, metres: a number, or one per axis as a tuple; by
            parameter as a mapping.
        scale: Size of one unit of each parameter, a number or a tensor that broadcasts
            to it; per parameter as a sequence or mapping. Default 1.
        weight: Of each cell, zero or positive, a number or a tensor (a Boolean mask too)
            that broadcasts to the parameter; per parameter like ``scale``. A difference
            has the geometric mean of the weights of its cells. Default 1.
        reference: The model that deviations are measured from, arranged like the models
            to come; copied. Default none: the model itself is penalised.
        name: Name of its part in a sum.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a number out of range. When it meets a model, for parameters that
            it does not name alike, or shapes that do not fit.
    """

    def __init__(
        self,
        *,
        spacing: Any,
        scale: PerParameter = None,
        weight: PerParameter = None,
        reference: Model | None = None,
        name: str,
    ) -> None:
        super().__init__(checks.text("name", name))
        self._spacing = _spacing(spacing)
        self._scale = checked_positive("scale", scale)
        self._weight = _each("weight", weight, partial(_sizes, zero=True))
        #: Cells of the last model's parameters, and what they depend on
        self._last: tuple[Any, Grid] | None = None
        self._reference: dict[str, Tensor] | None = None
        if reference is not None:
            tensors = named_tensors(copy_model(reference))
            check_tensors(tensors)
            self._reference = tensors

    # -- what a subclass supplies -------------------------------------------------

    @abstractmethod
    def penalty(self, grid: Grid, units: Units) -> Tensor:
        """Return the value, a differentiable scalar.

        Args:
            grid: The cells of each parameter, by name.
            units: Each parameter's deviation from the reference, in units of its scale.
        """

    @abstractmethod
    def slopes(self, grid: Grid, units: Units) -> Units:
        """Return the derivatives of ``penalty`` in ``units``, by parameter."""

    @abstractmethod
    def curvature(self, grid: Grid, units: Units, kind: Kind) -> Any:
        """Return what ``bend`` needs of a linearisation."""

    @abstractmethod
    def bend(self, grid: Grid, kept: Any, steps: Units) -> Units:
        """Return the second derivatives in ``units`` times ``steps``, by parameter.

        Args:
            grid: The cells of each parameter, by name.
            kept: What ``curvature`` returned.
            steps: Shaped like ``units``.
        """

    # -- an objective -------------------------------------------------------------

    @property
    def has_gauss_newton(self) -> bool:
        """True."""
        return True

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the penalty as a differentiable torch scalar, not counted."""
        model: Model = kwargs or (args[0] if len(args) == 1 else args)
        return self.penalty(*self._units(model))

    def value(self, model: Model) -> float:
        """Return the penalty. NaN and infinity are returned."""
        self.counts.tally(values=1)
        with torch.no_grad():
            return float(self.penalty(*self._units(model)))

    def value_and_gradient(self, model: Model) -> tuple[float, Model]:
        """Return the penalty and its gradient, shaped like the model.

        Args:
            model: Where to evaluate.

        Returns:
            The value and the gradient.

        Raises:
            ValueError: If the value is not finite.
        """
        self.counts.tally(gradients=1)
        with torch.no_grad():
            grid, units = self._units(model)
            value = self.penalty(grid, units)
            check_scalar(value)
            slopes = self.slopes(grid, units)
            rows = [slopes[n] / cells.scale for n, cells in grid.items()]
        return float(value), rebuild(model, rows)

    def hessian(
        self, model: Model, kind: Kind = "exact", *, space: ModelSpace | None = None
    ) -> RegulariserHessian:
        """Return the Hessian at a model, by closed-form products.

        Args:
            model: Where to linearise.
            kind: ``"exact"`` or ``"gauss-newton"``.
            space: Flat coordinates. Default ``ModelSpace(model)``.
        """
        check_kind(kind)
        space = checked_space(space, model)
        space.match(model, "model")
        with torch.no_grad():
            grid, units = self._units(model)
            kept = self.curvature(grid, units, kind)
        noise = model_noise(model)
        return RegulariserHessian(self, grid, kept, space, noise, self.counts.child())

    def _units(self, model: Model) -> tuple[Grid, Units]:
        """Return the cells of each parameter of a model, and the scaled deviations."""
        tensors = named_tensors(model)
        for name, tensor in tensors.items():
            checks.tensor(f"parameter {name!r}", tensor)
        key = tuple((n, t.shape, t.dtype, t.device) for n, t in tensors.items())
        last = self._last  # other threads may replace it
        if last is None or last[0] != key:
            self._last = last = key, self._grid_of(tensors)
        grid = last[1]
        return grid, {n: cells.units(tensors[n]) for n, cells in grid.items()}

    def _grid_of(self, tensors: dict[str, Tensor]) -> Grid:
        names = tuple(tensors)
        reference = self._reference
        if reference is not None and set(reference) != set(names):
            raise ValueError(
                f"the reference of {self.name!r} has parameters {list(reference)}, the "
                f"model {list(names)}"
            )
        spacings = [self._spacing] * len(names)
        if isinstance(self._spacing, Mapping):
            spacings = per_parameter("spacing", self._spacing, names)
        scales = per_parameter("scale", self._scale, names)
        weights = per_parameter("weight", self._weight, names)
        grid = {}
        for i, (name, tensor) in enumerate(tensors.items()):
            of, shape = f"of parameter {name!r}", tuple(tensor.shape)
            if spacings[i] is None:
                raise ValueError(f"spacing gives none {of}; name every parameter")
            if isinstance(self._weight, Mapping) and weights[i] is None:
                raise ValueError(
                    f"weight gives none {of}; name every parameter, with 0 for one that "
                    "takes no part"
                )
            centre = None
            if reference is not None:
                centre = checks.tensor(f"the reference {of}", reference[name], shape)
            grid[name] = Cells(
                shape,
                checks.per_axis(f"spacing {of}", spacings[i], tensor.ndim),
                fitted(f"scale {of}", scales[i], tensor),
                fitted(f"weight {of}", weights[i], tensor),
                None if centre is None else centre.to(tensor),
            )
        return grid


class RegulariserHessian(SymmetricOperator):
    """The Hessian of a regulariser; made by ``Regulariser.hessian``. Holds no graph."""

    def __init__(
        self,
        regulariser: Regulariser,
        grid: Grid,
        kept: Any,
        space: ModelSpace,
        noise: float,
        counts: Counts,
    ) -> None:
        super().__init__(space=space, noise=noise, counts=counts)
        self._space = space
        self._regulariser, self._grid, self._kept = regulariser, grid, kept

    def _product(self, vector: Tensor) -> Tensor:
        self.counts.tally(products=1)
        step = self._space.step_to_model(vector.to(self.dtype))
        with torch.no_grad():
            steps = {
                name: tensor / self._grid[name].scale
                for name, tensor in named_tensors(step).items()
            }
            rows = self._regulariser.bend(self._grid, self._kept, steps)
            rows = {name: row / self._grid[name].scale for name, row in rows.items()}
        return self._space.gradient_to_vector(
            rebuild(step, [rows[name] for name in named_tensors(step)])
        )


# -- options ------------------------------------------------------------------------


def _spacing(given: Any) -> Any:
    """Return a spacing whose entries are positive; their number is not known yet."""
    if isinstance(given, Mapping):
        return {
            name: _entries(f"spacing of parameter {name!r}", s)
            for name, s in given.items()
        }
    return _entries("spacing", given)


def _entries(what: str, given: Any) -> Any:
    many = isinstance(given, (tuple, list))
    entries = checks.per_axis(what, given, len(given) if many else 1)
    return entries if many else entries[0]


def checked_positive(what: str, option: PerParameter) -> Any:
    """Return a copy of a per-parameter option whose entries are all positive."""
    return _each(what, option, _sizes)


def _each(what: str, option: Any, check: Callable[[str, Any], Any]) -> Any:
    """Return an option with a check applied to each entry."""
    if option is None:
        return None
    if isinstance(option, Mapping):
        return {
            name: _each(f"{what} of parameter {name!r}", entry, check)
            for name, entry in option.items()
        }
    if isinstance(option, (tuple, list)):
        return [_each(f"an entry of {what}", entry, check) for entry in option]
    return check(what, option)


def _sizes(what: str, given: Any, *, zero: bool = False) -> float | Tensor:
    """Return a number, or a copy of a tensor: positive, or zero where that is allowed."""
    if not isinstance(given, Tensor) or not given.ndim:
        least, above = (0.0, None) if zero else (None, 0.0)
        return checks.number(what, given, least=least, above=above, below=math.inf)
    if zero and given.dtype is torch.bool:
        return given.detach().clone()
    checks.tensor(what, given)
    enough = given >= 0 if zero else given > 0
    if not bool((enough & torch.isfinite(given)).all()):
        sign = "zero or positive" if zero else "positive"
        raise ValueError(f"{what} must be {sign} and finite in every cell")
    return given.detach().clone()


def fitted(what: str, given: Any, tensor: Tensor) -> float | Tensor:
    """Return an option's entry in a parameter's shape, dtype and device; None means 1."""
    if not isinstance(given, Tensor):
        return 1.0 if given is None else float(given)
    try:
        return given.to(tensor).broadcast_to(tensor.shape)
    except RuntimeError:
        raise ValueError(
            f"{what} has shape {tuple(given.shape)}, which does not fit the model's "
            f"{tuple(tensor.shape)}"
        ) from None
