"""Posterior: the error bars of a linearised inversion, bracketed from both sides.

With G the Gauss-Newton matrix of a misfit, R = C⁻¹ the prior's precision and L Lᵀ = C,

    (R + ωG)⁻¹ = L (I + A)⁻¹ Lᵀ,    A = ω Lᵀ G L ≥ 0,    ω = N / (2σ²)

is the posterior covariance, and uᵀ (I + A)⁻¹ u with u = Lᵀ t the variance of t·m. For
every x, whatever it comes from,

    2 u·x − x·(I + A) x  ≤  uᵀ (I + A)⁻¹ u  ≤  ‖u − A x‖² + x·A x

with equality at x = (I + A)⁻¹ u. Both sides are quadratic in x, so that the best x of a
subspace needs the products with its basis alone. In a Krylov space of u they are Gauss's
rule below and Gauss-Radau's above, with the node 1 (Golub and Meurant, Matrices, Moments
and Quadrature, 2010); here they hold for any space, so that every question reads what
others found.

The best upper bound is the variance after replacing A by its Nyström approximation
F Fᵀ = A Q (QᵀA Q)⁻¹ QᵀA ≤ A, for all t at once: a posterior of low rank whose variance is
never too small. In the other direction A ≤ F Fᵀ + μ (I − Q Qᵀ) for μ at least the largest
eigenvalue of A − F Fᵀ, which a Lanczos run from a random start bounds with a stated
probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.estimate import Estimate
from hvpopt.analysis.noise import Noise, checked_noise
from hvpopt.analysis.prior import MaternPrior, white_block
from hvpopt.krylov.cg import flat_cg
from hvpopt.krylov.diagonal import estimate_diagonal, smooth_diagonal
from hvpopt.krylov.eigenvalue import smallest_eigenvalue
from hvpopt.model.counts import Counts, metered
from hvpopt.model.tensors import Model, named_tensors, rebuild
from hvpopt.operators.symmetric import (
    DerivedOperator,
    FunctionOperator,
    SymmetricOperator,
    checked_operator,
)
from hvpopt.problem.objective import Objective
from hvpopt.run.result import MinimizeResult

Questions: TypeAlias = "Model | list[Any]"

#: Ratio of the bounds of a standard deviation at which a bracket is narrow enough.
TOLERANCE = 0.1
#: Limit of the products of one call.
MAX_PRODUCTS = 200
#: Relative residual, and limit of iterations, of the solves with the diagonal.
INNER_TOLERANCE, INNER_PRODUCTS = 1e-2, 1000
#: Samples of shots that ``posterior_of`` estimates the diagonal from, the cells that it
#: is smoothed over, and its smallest entry relative to the largest. On the problem of
#: ``benchmarks/error_bars.py`` the bounds after 60 products were 28, 8, 3.8, 2.6 and
#: 2.2 % apart for smoothing over 1, 2, 4, 6 and 9 cells.
SKETCHES, SMOOTH, FLOOR = 8, 6.0, 1e-3
#: Eigenvalues of QᵀAQ under this, relative to the largest, are dropped: the bounds then
#: are those of the other directions.
CUTOFF = 1e-13


@dataclass(frozen=True, eq=False, kw_only=True)
class FunctionalVariance(Estimate[Tensor]):
    """The posterior variance of linear functionals of the model, one entry for each.

    ``value`` is the geometric mean of ``lower`` and ``upper``, which bound the variance
    with certainty, up to the rounding of the products.

    Attributes:
        prior: Their variance before any data, ``[k]``.
        rounding: Estimated error of the bounds by the rounding of the products, ``[k]``,
            from how far these are from symmetric.
    """

    prior: Tensor
    rounding: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation ``[k]``, in the units of t·m."""
        return torch.as_tensor(self.value).sqrt()

    @property
    def std_bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bound of the standard deviation, each ``[k]``."""
        lower, upper = torch.as_tensor(self.lower), torch.as_tensor(self.upper)
        return lower.sqrt(), upper.sqrt()

    @property
    def prior_std(self) -> Tensor:
        """Standard deviation before any data ``[k]``."""
        return self.prior.sqrt()


@dataclass(frozen=True, eq=False, kw_only=True)
class PointwiseVariance(Estimate[Tensor]):
    """The posterior variance of every cell, with a bracket for every cell.

    ``value`` is the geometric mean of the bounds. ``upper`` holds with certainty;
    ``lower`` for all cells together with probability ``confidence``.

    Attributes:
        prior: Variance before any data ``[n]``.
        rank: Rank of what is known of the data's information.
        remainder: Upper bound μ of what the data may say along any direction outside it,
            relative to the prior, with probability ``confidence``.
        std_model: Standard deviation of every cell, shaped like the model.
    """

    prior: Tensor
    rank: int
    remainder: float
    std_model: Model


@dataclass(frozen=True, eq=False, kw_only=True)
class PosteriorSamples(Estimate[Tensor]):
    """Models drawn from the posterior of low rank, whose variance is never too small.

    ``value`` has the samples as columns ``[n, k]``, deviations from the mean where no
    mean was given.

    Attributes:
        models: The samples, shaped like the model.
        rank: Rank of what is known of the data's information.
        remainder: Upper bound μ of what the data may say beyond it along any direction,
            relative to the prior, with probability ``confidence``: the variance of no
            functional is more than ``1 + μ`` times the true one. Infinity if it was not
            estimated.
    """

    models: list[Model]
    rank: int
    remainder: float


class Posterior:
    """The Gaussian posterior of a linearised problem, by products with its Hessian.

    It keeps all products that it was given, so that a later question costs less.

    Args:
        hessian: H, the Gauss-Newton Hessian of the misfit alone, without any regulariser,
            on the flat vectors of the prior's space. It must not be indefinite.
        prior: The prior.
        noise: The noise, which relates misfit and likelihood.
        diagonal: D, a positive estimate of the diagonal of G ``[n]``, however rough. The
            next x is then sought along (I + ω Lᵀ D L)⁻¹ times the residual, which costs
            no product and takes less than half as many where cells are lit unevenly. The
            bounds hold for any D. Default none: along the residual, a Krylov space.

    Attributes:
        hessian, prior, noise, diagonal: As given.
        setup: What was spent before the first question.

    Raises:
        TypeError: For an argument of the wrong type, or without noise.
        ValueError: If the sizes of prior and Hessian differ.
    """

    def __init__(
        self,
        hessian: SymmetricOperator,
        prior: MaternPrior,
        noise: Noise,
        *,
        diagonal: Tensor | None = None,
    ) -> None:
        self.hessian = checked_operator(hessian)
        use = (
            "pass a hvpopt.analysis.MaternPrior: without a prior nothing bounds the model"
        )
        self.prior = checks.instance("prior", prior, MaternPrior, use)
        self.noise = checked_noise(noise)
        if self.hessian.size != self.prior.size:
            raise ValueError(
                f"the Hessian has {self.hessian.size} rows, the prior {self.prior.size} "
                "free cells; make both in the same space"
            )
        if diagonal is not None:
            checks.tensor("the diagonal", diagonal, (self.prior.size,))
            if not bool((torch.isfinite(diagonal) & (diagonal >= 0.0)).all()):
                raise ValueError("the diagonal must be finite and not negative")
        self.diagonal = diagonal
        self.setup = Counts()
        self._operator = WhitenedHessian(self.hessian, self.prior, self.noise)
        self._space = _Subspace(self._operator)
        self._remainder: tuple[float, float] | None = None

    @property
    def n_products(self) -> int:
        """Products in the subspace."""
        return self._space.size

    # -- questions --------------------------------------------------------------

    def functional_variance(
        self,
        t: Questions,
        *,
        tol: float = TOLERANCE,
        max_products: int = MAX_PRODUCTS,
    ) -> FunctionalVariance:
        """Bracket the variance of linear functionals t·m of the model.

        The question whose bracket is widest decides the next product, whose result every
        other question reads too.

        Args:
            t: Weights of the cells, shaped like the model: a mask over its sum asks for
                the mean of a region, the difference of two for a contrast. Also flat
                ``[n]``, which weighs the flat vector, or a block ``[n, k]``; or a list of
                any of these, for several questions.
            tol: Stop when the upper bound of each standard deviation is at most
                ``1 + tol`` times the lower. Default 0.1.
            max_products: Stop after this many. Default 200.

        Returns:
            The bracket of each question. Not reaching ``tol`` is no error: the bounds
            hold after any number of products.

        Raises:
            TypeError: For an argument of the wrong type.
            ValueError: For questions that are zero or do not fit, or numbers out of
                range.
        """
        tol = checks.number("tol", tol, above=0.0, below=math.inf)
        max_products = checks.integer("max_products", max_products, least=0)
        right = self.prior.factor_transposed(
            _block_of(t, self.prior).to(self._operator.device)
        )
        norms = right.square().sum(0)
        if not bool((norms > 0.0).all()):
            raise ValueError("a question weighs no free cell; give t that is not zero")
        with metered(self.hessian.counts) as spent:
            bracket = self._space.bracket(right)
            before = self._space.size
            while self._space.size - before < max_products:
                ratio = bracket.upper / bracket.lower
                worst = int(ratio.argmax())
                if float(ratio[worst]) <= (1.0 + tol) ** 2:
                    break
                if not self._space.add(self._direction(bracket.residual[:, worst])):
                    break
                bracket = self._space.bracket(right)
        return self._answer(bracket, norms, tol, spent)

    def _direction(self, residual: Tensor) -> Tensor:
        """Return (I + ω Lᵀ D L)⁻¹ times a residual ``[m]``, roughly."""
        if self.diagonal is None:
            return residual
        prior, weights = self.prior, self.noise.weight * self.diagonal.to(residual)

        def product(vector: Tensor) -> Tensor:
            return vector + prior.factor_transposed(weights * prior.factor(vector))

        surrogate = FunctionOperator(product, residual.numel(), device=residual.device)
        found = flat_cg(
            surrogate, residual, tol=INNER_TOLERANCE, max_products=INNER_PRODUCTS
        )
        step: Tensor = found.x
        return step

    def _answer(
        self, bracket: _Bracket, prior: Tensor, tol: float, spent: Counts
    ) -> FunctionalVariance:
        lower, upper = bracket.lower, bracket.upper
        value = (lower * upper).sqrt()
        wide = float((upper / lower).sqrt().max()) - 1.0
        message = (
            f"the bounds of each standard deviation are within {100 * wide:.2g} % of "
            f"each other after {spent.products} products; {self.noise.source}"
        )
        if wide > tol:
            message += f"; {100 * tol:.2g} % was asked for: allow more products"
        if float((bracket.rounding / lower).max()) > 0.1 * wide:
            message += (
                "; the rounding of the products may shift them by "
                f"{50 * float((bracket.rounding / lower).max()):.2g} %: use float64"
            )
        return FunctionalVariance(
            value=value,
            lower=lower,
            upper=upper,
            n_products=spent.products,
            n_propagations=spent.propagations,
            message=message,
            prior=prior,
            rounding=bracket.rounding,
        )

    # -- all cells --------------------------------------------------------------

    def explore(self, n_products: int, *, seed: int = 0) -> int:
        """Add what the data say most of, by a Krylov space from a random start.

        Args:
            n_products: Products to spend.
            seed: Of the random start.

        Returns:
            Products spent; fewer when nothing is left to find.
        """
        n_products = checks.integer("n_products", n_products, least=0)
        start = white_block(self._operator.size, 1, seed)[:, 0]
        direction = start.to(self._operator.device)
        for spent in range(n_products):
            if not self._space.add(direction):
                return spent
            direction = self._space.images[-1]
        return n_products

    def bound_remainder(
        self, n_products: int = 20, *, confidence: float = 0.99, seed: int = 0
    ) -> float:
        """Return an upper bound of what the data say outside the subspace.

        It bounds the largest eigenvalue of A − F Fᵀ, and every later one, since the
        subspace only grows.

        Args:
            n_products: Products to spend. Default 20.
            confidence: Probability with which it is a bound. Default 0.99.
            seed: Of the random start, other than that of ``explore``.
        """
        n_products = checks.integer("n_products", n_products, least=1)
        low_rank, operator = self._space.low_rank, self._operator

        def negated(vector: Tensor) -> Tensor:
            return low_rank @ (low_rank.mT @ vector) - operator.matvec(vector) - vector

        # shifted by the prior's 1, beside which smaller eigenvalues do not matter
        rest = FunctionOperator(negated, operator.size, device=operator.device)
        rest.noise = operator.noise * (1.0 + self._space.norm_estimate)
        if self._space.size >= operator.size:
            self._remainder = 0.0, 1.0
            return 0.0
        found = smallest_eigenvalue(
            rest,
            tol=0.05,
            max_products=min(n_products, operator.size),
            confidence=confidence,
            seed=seed + 1,
        )
        remainder = max(-found.lower - 1.0, 0.0)
        self._remainder = remainder, confidence
        return remainder

    def pointwise_variance(
        self,
        *,
        n_products: int = 100,
        n_bound: int = 20,
        confidence: float = 0.99,
        seed: int = 0,
    ) -> PointwiseVariance:
        """Bracket the variance of every cell.

        Args:
            n_products: Products to spend on what the data say most of. Default 100.
            n_bound: Products to spend on a bound of the rest. Default 20.
            confidence: Probability with which the lower bounds hold, all of them at once.
            seed: Of the random starts.

        Returns:
            The bracket of each cell's variance, in the units of the flat vector.

        Raises:
            TypeError: For an argument of the wrong type.
            ValueError: For a number out of range.
        """
        with metered(self.hessian.counts) as spent:
            self.explore(n_products, seed=seed)
            remainder = self.bound_remainder(n_bound, confidence=confidence, seed=seed)
        prior = self.prior.standard_deviation.square()
        lower, upper = self._space.diagonal_bounds(self.prior, prior, remainder)
        value = (lower * upper).sqrt()
        ratio = (upper / lower).sqrt()
        return PointwiseVariance(
            value=value,
            lower=lower,
            upper=upper,
            confidence=confidence,
            n_products=spent.products,
            n_propagations=spent.propagations,
            message=(
                f"rank {self._space.size} leaves directions in which the data may say up "
                f"to {remainder:.3g} times what the prior does; the bounds of a cell's "
                f"standard deviation differ by {100 * (float(ratio.median()) - 1):.2g} % "
                f"in the middle and {100 * (float(ratio.max()) - 1):.2g} % at most; "
                f"{self.noise.source}"
            ),
            prior=prior,
            rank=self._space.size,
            remainder=remainder,
            std_model=self.prior.space.step_to_model(value.sqrt()),
        )

    def samples(
        self, n_samples: int, *, mean: Model | None = None, seed: int = 0
    ) -> PosteriorSamples:
        """Draw models from the posterior of low rank, at no product.

        Spend products by ``explore`` or ``pointwise_variance`` before.

        Args:
            n_samples: How many.
            mean: The most probable model. Default zero, for deviations from it.
            seed: Of the white numbers.

        Returns:
            The samples, and how far their covariance may be from the posterior's.

        Raises:
            TypeError: For an argument of the wrong type.
            ValueError: For a number out of range, or a mean that does not fit.
        """
        space = self.prior.space
        white = white_block(self._operator.size, n_samples, seed)
        steps = self.prior.factor(self._space.shrink(white.to(self._operator.device)))
        models = [space.step_to_model(step.contiguous()) for step in steps.unbind(1)]
        value = steps
        if mean is not None:
            centre = space.to_vector(space.arrange(mean))
            value = steps + centre[:, None]
            models = [_sum_of(space.arrange(mean), step) for step in models]
        remainder, confidence = self._remainder or (math.inf, 1.0)
        return PosteriorSamples(
            value=value,
            confidence=confidence,
            message=(
                f"samples of a posterior of rank {self._space.size}, whose variances are "
                "never below the true ones"
                + (
                    f" and at most {1.0 + remainder:.3g} times as large"
                    if math.isfinite(remainder)
                    else "; how far above was not bounded: call bound_remainder()"
                )
            ),
            models=models,
            rank=self._space.size,
            remainder=remainder,
        )


def functional_variance(
    hessian: SymmetricOperator,
    prior: MaternPrior,
    noise: Noise,
    t: Questions,
    *,
    tol: float = TOLERANCE,
    max_products: int = MAX_PRODUCTS,
    diagonal: Tensor | None = None,
) -> FunctionalVariance:
    """Bracket the posterior variance of linear functionals t·m of the model.

    Args:
        hessian: The Gauss-Newton Hessian of the misfit alone.
        prior: The prior.
        noise: The noise.
        t: The questions; see ``Posterior.functional_variance``.
        tol: Stop when the bounds of each standard deviation are this close. Default 0.1.
        max_products: Stop after this many. Default 200.
        diagonal: A positive estimate of the Hessian's diagonal ``[n]``, with which fewer
            products are needed. Default none.

    Returns:
        The bracket of each question.

    Raises:
        TypeError: For an argument of the wrong type, or without noise.
        ValueError: For questions or numbers that do not fit.

    Example:
        >>> import torch, hvpopt
        >>> from hvpopt.analysis import MaternPrior, Noise, functional_variance
        >>> H = hvpopt.MatrixOperator(2.0 * torch.eye(4, dtype=torch.float64))
        >>> prior = MaternPrior((4,), length=0.01, std=1.0)
        >>> noise = Noise.of_likelihood()
        >>> mean = torch.full((4,), 0.25, dtype=torch.float64)
        >>> round(float(functional_variance(H, prior, noise, mean).value), 4)
        0.0833
    """
    posterior = Posterior(hessian, prior, noise, diagonal=diagonal)
    return posterior.functional_variance(t, tol=tol, max_products=max_products)


def pointwise_variance(
    hessian: SymmetricOperator,
    prior: MaternPrior,
    noise: Noise,
    *,
    n_products: int = 100,
    n_bound: int = 20,
    confidence: float = 0.99,
    seed: int = 0,
) -> PointwiseVariance:
    """Bracket the posterior variance of every cell; see ``Posterior.pointwise_variance``.

    Args:
        hessian: The Gauss-Newton Hessian of the misfit alone.
        prior: The prior.
        noise: The noise.
        n_products: Products to spend on what the data say most of. Default 100.
        n_bound: Products to spend on a bound of the rest. Default 20.
        confidence: Probability with which the lower bounds hold.
        seed: Of the random starts.

    Returns:
        The bracket of each cell's variance.
    """
    return Posterior(hessian, prior, noise).pointwise_variance(
        n_products=n_products, n_bound=n_bound, confidence=confidence, seed=seed
    )


def posterior_samples(
    hessian: SymmetricOperator,
    prior: MaternPrior,
    noise: Noise,
    n_samples: int,
    *,
    mean: Model | None = None,
    n_products: int = 100,
    n_bound: int = 20,
    seed: int = 0,
) -> PosteriorSamples:
    """Draw models from the posterior of low rank; see ``Posterior.samples``.

    Args:
        hessian: The Gauss-Newton Hessian of the misfit alone.
        prior: The prior.
        noise: The noise.
        n_samples: How many.
        mean: The most probable model. Default zero, for deviations from it.
        n_products: Products to spend on what the data say most of. Default 100.
        n_bound: Products to spend on a bound of the rest. Default 20.
        seed: Of the random numbers.

    Returns:
        The samples.
    """
    posterior = Posterior(hessian, prior, noise)
    posterior.explore(n_products, seed=seed)
    if n_bound:
        posterior.bound_remainder(n_bound, seed=seed)
    return posterior.samples(n_samples, mean=mean, seed=seed + 1)


def posterior_of(
    result: MinimizeResult | Model,
    misfit: Objective,
    prior: MaternPrior,
    noise: Noise,
    *,
    seed: int = 0,
) -> Posterior:
    """Return the posterior of a minimised problem, linearised at its result.

    The diagonal that speeds up its questions is estimated from eight samples of the
    misfit, such as one encoded shot each; ``setup`` says what they cost.

    Args:
        result: What ``minimize`` returned, or a model.
        misfit: The misfit of the data alone, a mean of squares over ``noise.n_samples``,
            without the regulariser that it was minimised with.
        prior: The prior.
        noise: The noise.
        seed: Of the samples. Default 0.

    Returns:
        The posterior, which answers any number of questions.

    Raises:
        TypeError: For an argument of the wrong type, or without noise.
        ValueError: If the misfit has no Gauss-Newton matrix, or sizes do not fit.

    Example:
        ``posterior_of(result, misfit, prior, noise).functional_variance(mask /
        mask.sum())``
    """
    use = "pass the misfit as an Objective, such as hvpopt.fwi.WaveformMisfit(...)"
    checks.instance("misfit", misfit, Objective, use)
    checked_noise(noise)
    model = result.x if isinstance(result, MinimizeResult) else result
    seed = checks.seed("seed", seed, spare=SKETCHES)
    space = prior.space
    hessian = misfit.hessian(model, "gauss-newton", space=space)
    with metered(misfit.counts) as setup:
        total = torch.zeros(space.size, dtype=torch.float64, device=space.device)
        for k in range(seed, seed + SKETCHES):
            with misfit.sketch(model, "gauss-newton", space=space, seed=k) as sketch:
                probed = estimate_diagonal(sketch, n_probes=1, seed=k).diagonal
            total += smooth_diagonal(probed.double(), space, SMOOTH)
    mean = total / SKETCHES
    diagonal = mean.clamp(min=FLOOR * float(mean.max().clamp(min=0.0)))
    posterior = Posterior(hessian, prior, noise, diagonal=diagonal)
    posterior.setup = setup
    return posterior


class WhitenedHessian(DerivedOperator):
    """A = ω Lᵀ G L: what the data say relative to the prior, ``[m, m]``.

    Args:
        hessian: G, of a mean of squares.
        prior: L.
        noise: ω.
    """

    def __init__(
        self, hessian: SymmetricOperator, prior: MaternPrior, noise: Noise
    ) -> None:
        super().__init__([hessian], size=prior.latent_size)
        self._prior, self._weight = prior, noise.weight

    def _product(self, vector: Tensor) -> Tensor:
        (hessian,) = self.operators
        image = hessian.matvec(self._prior.factor(vector))
        found: Tensor = self._weight * self._prior.factor_transposed(image)
        return found


@dataclass(frozen=True, eq=False)
class _Bracket:
    """Bounds of uᵀ (I + A)⁻¹ u for the columns u of a block.

    Attributes:
        lower, upper: The bounds ``[k]``.
        rounding: Estimated error of them by the rounding of the products ``[k]``.
        residual: u − (I + A) x of the lower bound's x, ``[m, k]``, orthogonal to the
            space.
    """

    lower: Tensor
    upper: Tensor
    rounding: Tensor
    residual: Tensor


class _Subspace:
    """An orthonormal basis Q and its images A Q, as rows, and what follows from them."""

    def __init__(self, operator: SymmetricOperator) -> None:
        self._operator = operator
        self._rows = torch.empty(
            0, operator.size, dtype=torch.float64, device=operator.device
        )
        self._images = self._rows.clone()
        self._projected = self._rows.new_empty(0, 0)
        self._factor: Tensor | None = None
        self.size = 0

    @property
    def rows(self) -> Tensor:
        """Q as rows ``[k, m]``."""
        return self._rows[: self.size]

    @property
    def images(self) -> Tensor:
        """A Q as rows ``[k, m]``."""
        return self._images[: self.size]

    def add(self, direction: Tensor) -> bool:
        """Add a direction, at one product; return False if the space has it already."""
        length = float(direction.norm())
        if self.size == self._operator.size or not length:
            return False
        q = direction / length
        for _ in range(2):
            q = q - self.rows.mT @ (self.rows @ q)
            rest = float(q.norm())
            if rest < 1e-10:
                return False
            q = q / rest
        image = self._operator.matvec(q)
        k = self.size
        if len(self._rows) == k:
            room = torch.empty_like(self._rows).resize_(max(16, k), self._operator.size)
            self._rows = torch.cat([self._rows, room])
            self._images = torch.cat([self._images, room])
        self._rows[k], self._images[k] = q, image
        self.size = k + 1
        # as the products are: entry (i, j) is q_i · A q_j
        grown = self._projected.new_empty(k + 1, k + 1)
        grown[:k, :k] = self._projected
        grown[:, k] = self.rows @ image
        grown[k, :k] = self.images[:k] @ q
        self._projected, self._factor = grown, None
        return True

    @property
    def norm_estimate(self) -> float:
        """The largest entry of the diagonal of QᵀA Q, at most ‖A‖."""
        return float(self._projected.diagonal().max()) if self.size else 0.0

    @property
    def low_rank(self) -> Tensor:
        """F ``[m, r]`` of the Nyström approximation F Fᵀ ≤ A."""
        if self._factor is None:
            theta, vectors = torch.linalg.eigh(
                0.5 * (self._projected + self._projected.mT)
            )
            kept = theta > CUTOFF * float(theta.abs().max()) if self.size else theta > 0.0
            self._factor = self.images.mT @ (vectors[:, kept] / theta[kept].sqrt())
        return self._factor

    def bracket(self, right: Tensor) -> _Bracket:
        """Return the best bounds for columns u ``[m, k]`` that the space has."""
        norms = right.square().sum(0)
        if not self.size:
            # x = 0 below; (I + A)⁻¹ ≤ I above
            return _Bracket(0.0 * norms, norms, 0.0 * norms, right)
        symmetric = 0.5 * (self._projected + self._projected.mT)
        eye = torch.eye(self.size).to(symmetric)
        coordinates = self.rows @ right
        y = torch.linalg.solve(symmetric + eye, coordinates)
        lower = (coordinates * y).sum(0)
        factor = self.low_rank
        inner = torch.linalg.cholesky(
            factor.mT @ factor + torch.eye(factor.shape[1]).to(factor)
        )
        reduced = torch.linalg.solve_triangular(inner, factor.mT @ right, upper=False)
        upper = norms - reduced.square().sum(0)
        skew = (self._projected - self._projected.mT) @ y
        rounding = 3.0 * y.norm(dim=0) * skew.norm(dim=0)
        residual = right - self.rows.mT @ y - self.images.mT @ y
        return _Bracket(lower, torch.maximum(upper, lower), rounding, residual)

    def shrink(self, white: Tensor) -> Tensor:
        """Return (I + F Fᵀ)^(−1/2) times a block ``[m, k]``."""
        u, sigma, _ = torch.linalg.svd(self.low_rank, full_matrices=False)
        change = (1.0 + sigma.square()).rsqrt() - 1.0
        shrunk: Tensor = white + u @ (change[:, None] * (u.mT @ white))
        return shrunk

    def diagonal_bounds(
        self, prior: MaternPrior, variance: Tensor, remainder: float
    ) -> tuple[Tensor, Tensor]:
        """Return bounds of the diagonal of L (I + A)⁻¹ Lᵀ, for A ≤ F Fᵀ + μ (I − Q Qᵀ).

        Args:
            prior: L.
            variance: The diagonal of L Lᵀ, ``[n]``.
            remainder: μ.
        """
        if not self.size:
            return variance / (1.0 + remainder), variance
        factor = self.low_rank
        upper = variance - _row_squares(
            prior.factor(factor),
            factor.mT @ factor + torch.eye(factor.shape[1]).to(factor),
        )
        # all of F and Q lie in the span of W
        basis, _ = torch.linalg.qr(torch.cat([factor, self.rows.mT], 1))
        inside_factor, inside = basis.mT @ factor, basis.mT @ self.rows.mT
        middle = inside_factor @ inside_factor.mT - remainder * inside @ inside.mT
        most = 1.0 + remainder
        middle = middle + most * torch.eye(middle.shape[0]).to(middle)
        images = prior.factor(basis)
        outside = (variance - images.square().sum(1)).clamp(min=0.0)
        lower = outside / most + _row_squares(images, middle)
        return lower, torch.maximum(upper, lower)


def _row_squares(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return rᵀ M⁻¹ r for each row r ``[n]`` of a block, M positive definite."""
    root = torch.linalg.cholesky(matrix)
    found: Tensor = torch.linalg.solve_triangular(root, rows.mT, upper=False)
    return found.square().sum(0)


def _sum_of(model: Model, step: Model) -> Model:
    pairs = zip(named_tensors(model).values(), named_tensors(step).values(), strict=True)
    return rebuild(model, [entry.detach() + change for entry, change in pairs])


def _block_of(t: Questions, prior: MaternPrior) -> Tensor:
    """Return questions as the columns of a block ``[n, k]`` of flat vectors."""
    space = prior.space
    if isinstance(t, list):
        checks.integer("the number of questions", len(t), least=1)
        return torch.cat([_block_of(one, prior) for one in t], 1)
    if isinstance(t, (tuple, Mapping)) or (isinstance(t, Tensor) and space.accepts(t)):
        return space.gradient_to_vector(t)[:, None]
    checks.tensor("t", t)
    if t.ndim not in (1, 2) or t.shape[0] != space.size:
        raise ValueError(
            f"t has shape {tuple(t.shape)}; expected the model's shape, ({space.size},) "
            f"or ({space.size}, k)"
        )
    block = t.detach().to(space.device, torch.float64)
    if not bool(torch.isfinite(block).all()):
        raise ValueError("t has NaN or infinite entries")
    return block[:, None] if block.ndim == 1 else block
