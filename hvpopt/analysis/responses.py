"""Products with random vectors, kept, for several statistics of one Hessian.

A probe is a vector of independent random signs in the cells of one parameter, and zero in
those of the others. From the products with a few of them follow resolution lengths and
the coupling of parameters (Fichtner and van Leeuwen, J. Geophys. Res. 120, 2015), at no
further product.

Whole products square as they are. Of sampled ones, ``Ĥ z`` with the mean ``H z``, a
square would have the variance of the sample as a bias: then two or more independent
samples serve each probe, and different ones are multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.probes import random_signs
from hvpopt.model.counts import Counts, metered
from hvpopt.model.space import ModelSpace, checked_space
from hvpopt.model.tensors import Model
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator
from hvpopt.problem.objective import Objective


@dataclass(frozen=True, eq=False)
class ParameterGrid:
    """Where the cells of one parameter are in a flat vector."""

    name: str
    free: Tensor  # shaped like the parameter: True for cells of the flat vector
    first: int  # index of its first cell in the flat vector

    @property
    def size(self) -> int:
        """Number of its cells in the flat vector."""
        return int(self.free.sum())

    @property
    def cells(self) -> slice:
        """The parameter's part of a flat vector."""
        return slice(self.first, self.first + self.size)

    def scatter(self, flat: Tensor, fill: float = 0.0) -> Tensor:
        """Return this parameter's part of vectors ``[..., n]``, ``[..., *shape]``."""
        full = flat.new_full((*flat.shape[:-1], *self.free.shape), fill)
        full[..., self.free] = flat[..., self.cells]
        return full

    def index(self, cell: tuple[int, ...]) -> int:
        """Return the index of a cell in the flat vector, or raise ValueError."""
        shape = tuple(self.free.shape)
        if len(cell) != len(shape) or not all(
            0 <= i < n for i, n in zip(cell, shape, strict=True)
        ):
            raise ValueError(
                f"there is no cell {cell} in parameter {self.name!r} of shape {shape}"
            )
        if not bool(self.free[cell]):
            raise ValueError(f"cell {cell} of parameter {self.name!r} is frozen")
        before = self.free.reshape(-1).cumsum(0)
        flat = 0
        for i, n in zip(cell, shape, strict=True):
            flat = flat * n + i
        return self.first + int(before[flat]) - 1


def grids_of(space: ModelSpace) -> dict[str, ParameterGrid]:
    """Return the grid of each parameter of a space, by name and in order."""
    grids, first = {}, 0
    for name, mask in space.free.items():
        free = mask.cpu()
        grids[name] = ParameterGrid(name, free, first)
        first += int(free.sum())
    return grids


class ProductSource:
    """Products with one Hessian: its own, or those of independent samples of it."""

    # Of an operator (which takes no model) products are as they are. Of an objective each
    # is of a Gauss-Newton matrix of ``sample`` parts, drawn anew;
    # ``objective.sketch_size`` by default. ``whole`` is True if all products are of the
    # same matrix.

    def __init__(
        self,
        target: SymmetricOperator | Objective,
        model: Model | None,
        *,
        space: ModelSpace | None,
        sample: int | None,
        seed: int,
    ) -> None:
        # drawn shots of consecutive seeds are not independent: they visit all in turn
        self._seeds = torch.Generator().manual_seed(checks.seed("seed", seed))
        self._objective = target if isinstance(target, Objective) else None
        self._model = model
        self._size = 0
        self._counts: Counts = target.counts if self._objective else Counts()
        if isinstance(target, Objective):
            if model is None:
                raise TypeError("an objective needs the model to linearise at: model=…")
            self.space = checked_space(space, model)
            self.whole = target.n_parts == 1
            least = target.sketch_size
            given = checks.optional(checks.integer, "sample", sample, least=1)
            self._size = least if given is None else given
            self._operator = self._draw() if self.whole else None
            self.noise = float(torch.finfo(self.space.dtype).eps)
            self.noise = max(self.noise, self.space.eps)
        else:
            operator = checked_operator(target)
            if model is not None or sample is not None:
                raise TypeError(
                    "model and sample are for objectives; an operator has its model"
                )
            space = operator.space if space is None else space
            if space is None:
                raise ValueError(
                    "this operator has no ModelSpace, so that it is not known which "
                    "cells are neighbours; pass space=hvpopt.ModelSpace(model)"
                )
            checks.instance("space", space, ModelSpace, "pass hvpopt.ModelSpace(model)")
            if space.size != operator.size:
                raise ValueError(
                    f"space has {space.size} cells, the operator {operator.size}"
                )
            self.space, self.whole, self.noise = space, True, operator.noise
            self._operator, self._counts = operator, operator.counts

    def _draw(self) -> SymmetricOperator:
        assert self._objective is not None
        assert self._model is not None
        seed = int(torch.randint(2**31, (), generator=self._seeds))
        part = self._objective.sample(self._size, seed=seed)
        return part.hessian(self._model, "gauss-newton", space=self.space)

    def product(self, vector: Tensor) -> Tensor:
        """Return the product with a flat vector ``[n]``, of a new sample if sampled."""
        if self._operator is not None:
            return self._operator.matvec(vector)
        with self._draw() as operator:
            return operator.matvec(vector)

    @contextmanager
    def metered(self) -> Iterator[Counts]:
        """Count what a block spends; at its end release an operator of one's own."""
        try:
            with metered(self._counts) as spent:
                yield spent
        finally:
            if self._objective is not None and self._operator is not None:
                self._operator.close()


@dataclass(frozen=True, eq=False, kw_only=True)
class Probes:
    """Products with random vectors in one parameter each.

    Attributes:
        responses: ``[p, k, r, n]``: of parameter, probe and sample, the flat product. On
            the CPU. ``r`` is 1 where the products are whole.
        grids: The grid of each parameter, by name and in order.
        whole: True if products were whole, so that they square as they are.
        noise: Relative rounding error of a product.
        n_products: Products spent, sampled ones included.
        n_propagations: Wave propagations spent.
    """

    responses: Tensor
    grids: dict[str, ParameterGrid]
    whole: bool
    noise: float
    n_products: int
    n_propagations: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(self.grids)

    @property
    def n_probes(self) -> int:
        """Probes of each parameter."""
        return self.responses.shape[1]

    def grid(self, name: str | None) -> ParameterGrid:
        """Return the grid of a parameter; of the only one for None.

        Args:
            name: Of the parameter.

        Raises:
            ValueError: If there is no such parameter, or None leaves it open.
        """
        if name is None and len(self.grids) == 1:
            (only,) = self.grids.values()
            return only
        if name not in self.grids:
            raise ValueError(
                f"parameter is {checks.shown(name)}; it must be one of {self.names}"
            )
        return self.grids[name]


def random_probes(
    target: SymmetricOperator | Objective,
    model: Model | None = None,
    *,
    n_probes: int = 5,
    n_samples: int = 3,
    space: ModelSpace | None = None,
    seed: int = 0,
) -> Probes:
    """Multiply a Hessian with random signs in one parameter at a time.

    An operator is asked for ``p · n_probes`` products, for p parameters. An objective
    that is a sum, of shots for instance, is sampled: ``p · n_probes · n_samples``
    products of as many independent samples, each of ``objective.sketch_size`` parts: one
    encoded shot where shots can be encoded.

    Args:
        target: A symmetric operator, or an objective.
        model: Where an objective is linearised (Gauss-Newton).
        n_probes: Probes of each parameter, at least 2 for a standard error. Default 5.
        n_samples: Independent samples for each probe, at least 2. Default 3. Not read
            where products are whole.
        space: Flat coordinates, whose scale the coupling of parameters is measured in.
            Default the operator's, or ``ModelSpace(model)``.
        seed: Of probes and samples.

    Returns:
        The products, for ``resolution_lengths`` and ``cross_talk``.

    Raises:
        TypeError: For an argument of the wrong type, or an objective without a model.
        ValueError: For a number out of range, or an operator without a space.
    """
    n_probes = checks.integer("n_probes", n_probes, least=1)
    n_samples = checks.integer("n_samples", n_samples, least=2)
    source = ProductSource(target, model, space=space, sample=None, seed=seed)
    generator = torch.Generator().manual_seed(checks.seed("seed", seed, spare=1) + 1)
    grids, n = grids_of(source.space), source.space.size
    repeats = 1 if source.whole else n_samples
    found = torch.empty(len(grids), n_probes, repeats, n, dtype=source.space.dtype)
    with source.metered() as spent:
        for i, grid in enumerate(grids.values()):
            for k in range(n_probes):
                z = torch.zeros(n, dtype=source.space.dtype, device=source.space.device)
                z[grid.cells] = random_signs(
                    (grid.size,), generator, device=z.device, dtype=z.dtype
                )
                for r in range(repeats):
                    found[i, k, r] = source.product(z)
    return Probes(
        responses=found,
        grids=grids,
        whole=source.whole,
        noise=source.noise,
        n_products=spent.products,
        n_propagations=spent.propagations,
    )


def mean_of_products(a: Tensor, b: Tensor) -> Tensor:
    """Return a product of two fields ``[k, ...]``, unbiased, from ``[k, r, ...]``."""
    # the mean of a_i b_j over all samples i ≠ j; the product of the two for r = 1
    r = a.shape[1]
    same = (a * b).sum(1)
    return same if r == 1 else (a.sum(1) * b.sum(1) - same) / (r * (r - 1))
