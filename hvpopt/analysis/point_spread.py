"""Columns of a Hessian at chosen cells, and of the resolution of a regularised solution.

A comb has a random sign ``s_j`` in each of several cells ``c_j``. Then

    s_j H comb = H e_j + Σ_{i≠j} s_i s_j H e_i,

column j on average, and a leakage from the other cells, which is small around cell j
where the cells of a comb are far from each other. The signs are rows of a Hadamard
matrix, of P rows, the power of two at or above the number of cells: P draws leave no
leakage. D of them are a sample without replacement, and the variance of its mean is
``(1 − D/P) s² / D``, s the scatter over draws. A few draws may all agree by chance, with
a scatter of 0. So the margin is made of the scatter or of what the other columns as
estimated would leak, whichever is larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.estimate import CONFIDENCE, Estimate, student_factor
from hvpopt.analysis.prior import MaternPrior
from hvpopt.analysis.probes import random_signs
from hvpopt.analysis.responses import ParameterGrid, ProductSource, grids_of
from hvpopt.krylov.cg import CGStatus, flat_cg
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model
from hvpopt.operators.symmetric import FunctionOperator, SymmetricOperator
from hvpopt.problem.objective import Objective

#: A cell by its indices, or by its parameter's name and its indices.
Cell = tuple[int, ...] | tuple[str, tuple[int, ...]]
#: Where a combined distance counts cells of two parameters: never at the same place.
OTHER_PARAMETER = 0.5


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PointSpread(Estimate[Tensor]):
    """Answers to a change of one unit in each of m cells.

    Attributes:
        value: ``[m, n]``, flat: column of each cell.
        standard_error: ``[m, n]``: of the leakage from other cells of a comb, and of the
            sampling of products. 0 where products were whole and nothing leaks: of a cell
            that was alone, or after draws enough.
        cells: Name of the parameter and indices of each cell.
        near: Boolean ``[m, n]``: entries nearer to the cell than to any other of its
            comb, where leakage is least; all for a cell to which nothing leaks.
        leakage: ``[m]``: root mean square of the standard errors near each cell, relative
            to the largest entry there.
        grids: The grid of each parameter, by name and in order.
    """

    cells: tuple[tuple[str, tuple[int, ...]], ...]
    near: Tensor
    leakage: Tensor
    grids: dict[str, ParameterGrid]

    @property
    def interval(self) -> tuple[Tensor, Tensor]:
        """Both ends of each entry's interval, ``value ± margin`` or the bounds."""
        if isinstance(self.lower, Tensor):
            return super().interval
        return self.value - self.margin, self.value + self.margin

    def picture(self, number: int, parameter: str | None = None) -> Tensor:
        """Return a column on the grid of a parameter; NaN where frozen or not near.

        Args:
            number: Of the cell in ``cells``.
            parameter: Whose answer. Default that of the changed parameter.
        """
        grid = self.grids[self.cells[number][0] if parameter is None else parameter]
        column = self.value[number].masked_fill(~self.near[number], torch.nan)
        return grid.scatter(column, torch.nan)


def point_spread(
    target: SymmetricOperator | Objective,
    cells: Sequence[Cell],
    model: Model | None = None,
    *,
    n_combs: int = 1,
    n_draws: int = 4,
    sample: int | None = None,
    space: ModelSpace | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> PointSpread:
    """Estimate columns of a Hessian at chosen cells, from signed combs of them.

    It takes ``n_combs · n_draws`` products. Of whole products a comb takes no more draws
    than the power of two at or above the number of its cells: then it is exact. The
    standard error is right on average, and rough for each entry where draws are few.

    Args:
        target: A symmetric operator; or an objective, whose sampled products serve as
            well, since a column is linear in the Hessian.
        cells: Each by its indices, ``(depth, distance)``; with several parameters by
            ``("vp", (depth, distance))``.
        model: Where an objective is linearised (Gauss-Newton).
        n_combs: Combs that the cells are shared out among, far from each other in each.
            As many as there are cells leave no leakage. Default 1.
        n_draws: Draws of the signs for each comb, and of the sample. Default 4. With one
            draw that is not exact there is no error, NaN.
        sample: Parts in each sample. Default ``objective.sketch_size``.
        space: Flat coordinates. Default the operator's, or ``ModelSpace(model)``.
        seed: Of the signs and samples.
        confidence: Of the margins. Default 0.95.

    Returns:
        The columns and their leakage.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For no cell, one that is frozen, not there or named twice, or numbers
            out of range.
    """
    n_combs = checks.integer("n_combs", n_combs, least=1)
    n_draws = checks.integer("n_draws", n_draws, least=1)
    source = ProductSource(target, model, space=space, sample=sample, seed=seed)
    generator = torch.Generator().manual_seed(checks.seed("seed", seed, spare=1) + 1)
    grids, n = grids_of(source.space), source.space.size
    named = _named_cells(cells, grids)
    places = torch.tensor([grids[name].index(cell) for name, cell in named])
    value = torch.zeros(len(named), n, dtype=source.space.dtype)
    error, margin = torch.zeros_like(value), torch.zeros_like(value)
    near = torch.ones_like(value, dtype=torch.bool)
    with source.metered() as spent:
        for comb in _share_out(named, n_combs):
            rows = _signs(len(comb), n_draws, source.whole, generator)
            draws, largest = [], 0.0
            for row in rows:
                z = torch.zeros(n, dtype=source.space.dtype, device=source.space.device)
                signs = row.to(z)
                z[places[comb].to(z.device)] = signs
                product = source.product(z)
                draws.append((signs[:, None] * product[None]).cpu())
                largest = max(largest, float(product.norm()))
            stacked = torch.stack(draws)
            value[comb] = stacked.mean(0)
            own, squared = _leakage(len(comb), len(rows), source.whole)
            if own:
                # one draw tells nothing of its scatter
                error[comb] = stacked.std(0) * own if len(rows) > 1 else torch.nan
                near[comb] = _nearest([named[i] for i in comb], grids, n)
            squares = value[comb].square()
            others = (squared * (squares.sum(0) - squares).clamp(min=0.0)).sqrt()
            factor = student_factor(confidence, len(rows)) if own else 0.0
            margin[comb] = factor * torch.maximum(error[comb], others)
            margin[comb] += source.noise * largest
    leakage = _rms(error, near) / (value.abs() * near).amax(1)
    sampled = bool((error != 0).any())
    message = (
        f"{len(named)} columns; leakage and sampling leave a standard error of "
        f"{float(leakage.nanmean()):.2g} of a column's largest entry, near its cell"
        if sampled
        else f"{len(named)} columns, exact but for the products' rounding"
    ) + f" (relative rounding of a product {source.noise:.1g})"
    return PointSpread(
        value=value,
        standard_error=error,
        margin=margin,
        confidence=confidence if sampled else 1.0,
        n_products=spent.products,
        n_propagations=spent.propagations,
        message=message,
        cells=named,
        near=near,
        leakage=leakage,
        grids=grids,
    )


def _signs(n_cells: int, n_draws: int, whole: bool, generator: torch.Generator) -> Tensor:
    """Return signs ``[draws, cells]``: rows of Hadamard matrices in random order."""
    # no more draws of whole products than are exact; the generator is on the host
    size = 1 << (n_cells - 1).bit_length()
    matrix = torch.from_numpy(scipy.linalg.hadamard(size, dtype=float))
    columns = torch.randperm(size, generator=generator)[:n_cells]
    # a sign of each cell, so that what leaks has either sign
    kept = matrix[:, columns] * random_signs(
        (n_cells,), generator, device=torch.device("cpu")
    )
    n_rounds = 1 if whole else -(-n_draws // size)
    rounds = [torch.randperm(size, generator=generator) for _ in range(n_rounds)]
    return kept[torch.cat(rounds)[:n_draws]]


def _leakage(n_cells: int, n_draws: int, whole: bool) -> tuple[float, float]:
    """Return the factors of a mean's standard error and leakage; 0, 0 where exact."""
    # The standard error relative to the scatter over draws, and the mean square of the
    # part of another cell's column that leaks. Of whole products all scatter is leakage.
    size = 1 << (n_cells - 1).bit_length()
    odd = n_draws % size  # of whole rounds nothing leaks
    squared = odd * (size - odd) / (max(size - 1, 1) * n_draws**2)
    free = 1.0 - n_draws / size if whole else 1.0
    return math.sqrt(free / n_draws), squared


def regularised_spread(
    operator: SymmetricOperator,
    prior: MaternPrior,
    cells: Sequence[Cell],
    *,
    weight: float = 1.0,
    tol: float = 0.02,
    max_products: int | None = None,
    space: ModelSpace | None = None,
) -> PointSpread:
    """Return what a regularised inversion makes of a change of one unit in each cell.

    That is a column of the resolution matrix ``(W H + R)⁻¹ W H``, R the precision of the
    prior: near the identity where data decide, near zero where the prior does. With
    ``C = L Lᵀ`` for the inverse of R it is ``L (I + W Lᵀ H L)⁻¹ W Lᵀ H e``, solved for by
    conjugate gradients. Their matrix is at least the identity, so a residual r leaves an
    error of at most ‖r‖, and an entry of the column one of at most its prior standard
    deviation times ‖r‖.

    Args:
        operator: H, positive semidefinite: a Gauss-Newton matrix.
        prior: A ``MaternPrior``, or what has its square roots.
        cells: As for ``point_spread``.
        weight: W, what makes the misfit minus the logarithm of the likelihood: a noise
            model's ``weight``. Default 1.
        tol: Stop when the bound on the error at the cell itself is this small. Default
            0.02.
        max_products: For each cell; the bounds hold wherever it ends. Default twice the
            number of cells.
        space: Flat coordinates. Default the operator's.

    Returns:
        The columns, ``[m, n]``, with bounds on each entry.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a prior of another size, an operator that is not positive
            semidefinite, no cell or a frozen one.
    """
    checks.having("prior", prior, "factor", "pass a hvpopt.analysis.MaternPrior")
    weight = checks.number("weight", weight, above=0.0, below=math.inf)
    tol = checks.number("tol", tol, above=0.0, below=math.inf)
    most = checks.optional(checks.integer, "max_products", max_products, least=1)
    source = ProductSource(operator, None, space=space, sample=None, seed=0)
    grids, n = grids_of(source.space), source.space.size
    if prior.size != n:
        raise ValueError(f"the prior has {prior.size} cells, the operator {n}")
    named = _named_cells(cells, grids)
    deviation = prior.standard_deviation
    value = torch.zeros(len(named), n, dtype=source.space.dtype)
    reach = torch.zeros_like(value)
    unfinished, widest = 0, 0.0
    with source.metered() as spent:
        for place, (name, cell) in enumerate(named):
            index = grids[name].index(cell)
            unit = torch.zeros(n, dtype=source.space.dtype, device=source.space.device)
            unit[index] = 1.0
            rhs = weight * prior.factor_transposed(operator.matvec(unit))

            def whitened(white: Tensor) -> Tensor:
                answer = operator.matvec(prior.factor(white))
                return white + weight * prior.factor_transposed(answer)

            enough = tol / float(deviation[index])
            found = flat_cg(
                FunctionOperator(
                    whitened, rhs.numel(), dtype=rhs.dtype, device=rhs.device
                ),
                rhs,
                tol=min(0.5, max(enough / max(float(rhs.norm()), enough), 1e-14)),
                max_products=2 * n if most is None else most - 1,
            )
            if found.status is CGStatus.NEGATIVE_CURVATURE:
                raise ValueError(
                    "the operator is not positive semidefinite; pass a Gauss-Newton "
                    'matrix, misfit.hessian(model, "gauss-newton")'
                )
            value[place] = prior.factor(found.x).cpu()
            reach[place] = (found.residual_norm * deviation).cpu()
            own = float(reach[place, index])
            widest, unfinished = max(widest, own), unfinished + (own > tol)
    note = f"; {unfinished} did not reach {tol:g}" if unfinished else ""
    return PointSpread(
        value=value,
        lower=value - reach,
        upper=value + reach,
        n_products=spent.products,
        n_propagations=spent.propagations,
        message=(
            f"{len(named)} columns of the resolution matrix; at its own cell each is "
            f"within {widest:.1g}{note}"
        ),
        cells=named,
        near=torch.ones_like(value, dtype=torch.bool),
        leakage=torch.zeros(len(named), dtype=value.dtype),
        grids=grids,
    )


def _named_cells(
    cells: Sequence[Cell], grids: dict[str, ParameterGrid]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    checks.instance("cells", cells, (tuple, list), "pass a list of cells")  # type: ignore[arg-type]
    if not cells:
        raise ValueError("there is no cell to look at; give at least one")
    named: list[tuple[str, tuple[int, ...]]] = []
    for cell in cells:
        checks.instance("a cell", cell, (tuple, list), "pass (depth, distance)")  # type: ignore[arg-type]
        if len(cell) == 2 and isinstance(cell[0], str):
            name, where = cell
        elif len(grids) == 1:
            name, where = next(iter(grids)), cell
        else:
            raise ValueError(
                f"cell {cell} names no parameter; pass (name, indices), with a name of "
                f"{tuple(grids)}"
            )
        if name not in grids:
            raise ValueError(f"cell {cell} is of none of the parameters {tuple(grids)}")
        indices = tuple(checks.integer("an index", i, least=0) for i in where)
        grids[name].index(indices)
        named.append((name, indices))
    if len(set(named)) < len(named):
        raise ValueError("a cell is named twice; name each once")
    return tuple(named)


def _share_out(
    named: Sequence[tuple[str, tuple[int, ...]]], n_combs: int
) -> list[list[int]]:
    """Return cells by comb, each in turn where its nearest neighbour is farthest."""
    combs: list[list[int]] = [[] for _ in range(min(n_combs, len(named)))]
    for place, cell in enumerate(named):
        gaps = [
            min((_distance(cell, named[i]) for i in comb), default=math.inf)
            for comb in combs
        ]
        # of equally far ones the smallest
        best = max(range(len(combs)), key=lambda b: (gaps[b], -len(combs[b])))
        combs[best].append(place)
    return combs


def _distance(a: tuple[str, tuple[int, ...]], b: tuple[str, tuple[int, ...]]) -> float:
    if len(a[1]) != len(b[1]):
        return 0.0
    return math.dist(a[1], b[1]) + (OTHER_PARAMETER if a[0] != b[0] else 0.0)


def _nearest(
    comb: Sequence[tuple[str, tuple[int, ...]]], grids: dict[str, ParameterGrid], n: int
) -> Tensor:
    """Return True ``[cells of the comb, n]`` for what is nearest to each cell."""
    # where cells are of two parameters at one place, both are nearest
    near = torch.ones(len(comb), n, dtype=torch.bool)
    for grid in grids.values():
        if any(len(cell) != grid.free.ndim for _, cell in comb):
            continue
        at = grid.free.nonzero().double()
        to = torch.tensor([cell for _, cell in comb], dtype=torch.float64)
        gaps = torch.cdist(to, at, compute_mode="donot_use_mm_for_euclid_dist")
        near[:, grid.cells] = gaps == gaps.amin(0)
    return near


def _rms(field: Tensor, where: Tensor) -> Tensor:
    return ((field * where).square().sum(1) / where.sum(1)).sqrt()
