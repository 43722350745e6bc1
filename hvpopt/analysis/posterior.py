"""Posterior: the error bars of a linearised inversion, bracketed from both sides.

With G the Gauss-Newton matrix of a misfit, R = C⁻¹ the prior's precision and L Lᵀ = C,

    (R + ωG)⁻¹ = L (I + A)⁻¹ Lᵀ,    A = ω Lᵀ G L ≥ 0,    ω = N / (2σ²)

is the posterior covariance, and uᵀ (I + A)⁻¹ u with u = Lᵀ t the variance of t·m. One
subspace keeps all products with A (``subspace.py``); from it follow brackets of the
variance of any functional (``functionals.py``) and of every cell (``pointwise.py``), and
samples of a posterior of low rank whose variance is never too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.estimate import Estimate
from hvpopt.analysis.functionals import (
    FunctionalVariance,
    Questions,
    answer,
    block_of,
    bracket,
)
from hvpopt.analysis.noise import Noise, checked_noise
from hvpopt.analysis.pointwise import (
    PointwiseVariance,
    pointwise_answer,
    remainder_bound,
)
from hvpopt.analysis.prior import MaternPrior, white_block
from hvpopt.analysis.subspace import Subspace
from hvpopt.analysis.whitened import WhitenedHessian
from hvpopt.krylov.cg import flat_cg
from hvpopt.krylov.diagonal import estimate_diagonal, smooth_diagonal
from hvpopt.model.counts import Counts, metered
from hvpopt.model.tensors import Model, named_tensors, rebuild
from hvpopt.operators.symmetric import (
    FunctionOperator,
    SymmetricOperator,
    checked_operator,
)
from hvpopt.problem.objective import Objective
from hvpopt.run.result import MinimizeResult

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


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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
            no product and takes less than half as many where illumination is uneven. The
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
        self._space = Subspace(self._operator)
        self._remainder: tuple[float, float] | None = None

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
            block_of(t, self.prior).to(self._operator.device)
        )
        norms = right.square().sum(0)
        if not bool((norms > 0.0).all()):
            raise ValueError("a question weighs no free cell; give t that is not zero")
        with metered(self.hessian.counts) as spent:
            found = bracket(self._space, right)
            before = self._space.size
            while self._space.size - before < max_products:
                ratio = found.upper / found.lower
                worst = int(ratio.argmax())
                if float(ratio[worst]) <= (1.0 + tol) ** 2:
                    break
                if not self._space.add(self._direction(found.residual[:, worst])):
                    break
                found = bracket(self._space, right)
        return answer(found, norms, self.noise, tol, spent)

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
            seed: Of the random start. ``explore`` starts elsewhere, also with this seed.
        """
        n_products = checks.integer("n_products", n_products, least=1)
        remainder, confidence = remainder_bound(
            self._space, self._operator, n_products, confidence, seed
        )
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
        return pointwise_answer(
            self._space, self.prior, self.noise, remainder, confidence, spent
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
                probed = estimate_diagonal(sketch, n_probes=1, seed=k)
            total += smooth_diagonal(probed.double(), space, SMOOTH)
    mean = total / SKETCHES
    diagonal = mean.clamp(min=FLOOR * float(mean.max().clamp(min=0.0)))
    posterior = Posterior(hessian, prior, noise, diagonal=diagonal)
    posterior.setup = setup
    return posterior


def _sum_of(model: Model, step: Model) -> Model:
    """Return a model plus a step of its shape."""
    pairs = zip(named_tensors(model).values(), named_tensors(step).values(), strict=True)
    return rebuild(model, [entry.detach() + change for entry, change in pairs])
