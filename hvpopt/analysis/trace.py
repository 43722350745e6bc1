"""The trace of a symmetric operator, from its products.

Of whole products the exchangeable estimator XTrace (Epperly, Tropp and Webber, SIAM J.
Matrix Anal. Appl. 45, 2024) makes most: what the images of the other probes span is
counted exactly, and only the rest is sampled. XNysTrace, of the same paper, does so for
positive semidefinite operators at one product a probe. Of an objective's cheap samples,
such as encoded shots, each with a probe of its own, the mean of ``zᵀ H z`` is the trace
on average (Hutchinson): samples cannot be squared, as XTrace would.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.estimate import CONFIDENCE, Estimate, skewed_margin, student_factor
from hvpopt.analysis.probes import (
    FEWEST,
    LeaveOneOut,
    independent_seeds,
    jackknife,
    leave_one_out,
    random_normals,
    rounding_of,
    sampled_operators,
    sign_probes,
)
from hvpopt.model._scale import unit_of
from hvpopt.model.counts import metered
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator
from hvpopt.problem.objective import Kind, Objective


def trace(
    target: SymmetricOperator | Objective,
    model: Model | None = None,
    *,
    n_products: int = 30,
    hessian: Kind | None = None,
    space: ModelSpace | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    positive: bool = False,
) -> Estimate[float]:
    """Estimate the trace of an operator, or of an objective's Hessian by samples.

    Args:
        target: A symmetric operator on ``[n]``, whose products are whole; or an
            objective, whose ``sketch`` is multiplied.
        model: Where to linearise an objective.
        n_products: Products to spend, at least 6 of an operator and 2 of an objective. At
            least n of an operator give the trace to rounding.
        hessian: Of an objective. Default ``"gauss-newton"`` where it has one.
        space: Flat coordinates of an objective's Hessian. Default ``ModelSpace(model)``.
        seed: Of the probes and samples.
        confidence: Probability that ``interval`` holds the trace.
        positive: True for an operator that is known to be positive semidefinite, such as
            a Gauss-Newton matrix: each probe then takes one product, not two. Not read
            for an objective. Default False.

    Returns:
        The trace with its standard error; of an operator that of the jackknife, which is
        rather too large than too small.

    Raises:
        TypeError: For an argument of the wrong type, an objective without a model, or an
            operator with one.
        ValueError: For a number out of range, or an operator that is not positive
            semidefinite with ``positive=True``.

    Example:
        >>> import torch, hvpopt
        >>> from hvpopt import analysis
        >>> H = hvpopt.MatrixOperator(torch.diag(torch.arange(5.0).double()))
        >>> analysis.trace(H, n_products=6).value  # no more rows than products: exact
        10.0
    """
    checks.flag("positive", positive)
    confidence = checks.number("confidence", confidence, above=0.0, below=1.0)
    seed = checks.seed("seed", seed)
    if isinstance(target, Objective):
        n_products = checks.integer("n_products", n_products, least=2)
        model = model_of(target, model)
        return _of_samples(target, model, n_products, hessian, space, seed, confidence)
    operator = checked_operator(target)
    without_model(model, hessian, space)
    n_products = checks.integer("n_products", n_products, least=2 * FEWEST)
    with metered(operator.counts, pass_on=True) as counts:
        if n_products >= operator.size:
            diagonal = exact_diagonal(operator)
            value, error, norm = float(diagonal.sum()), 0.0, float(diagonal.abs().max())
            m = operator.size
            message = f"the trace is the sum of all {operator.size} diagonal entries"
        else:
            m = n_products if positive else n_products // 2
            probes = random_normals(operator, m, seed)
            if positive:
                images = operator.matmat(probes)
                value, error, norm = _exchangeable_nystrom(probes, images, operator.noise)
            else:
                found = leave_one_out(operator, probes)
                value, error = _exchangeable(found)
                norm = found.norm
            name = "XNysTrace" if positive else "XTrace"
            message = f"{name} with {m} probes and an error by the jackknife"
    margin = student_factor(confidence, m) * error if error else 0.0
    rounding = rounding_of(operator, norm)
    if rounding > error:
        message += "; the error is that of the products' own rounding"
    return Estimate(
        value=value,
        standard_error=math.hypot(error, rounding),
        margin=margin + rounding,
        confidence=confidence,
        n_products=counts.products,
        n_propagations=counts.propagations,
        message=message,
    )


def model_of(objective: Objective, model: Model | None) -> Model:
    """Return the model at which an objective is sampled, or raise TypeError."""
    if model is None:
        raise TypeError(
            f"{objective.name!r} is an objective, which has a Hessian at a model; pass "
            "the model as second argument"
        )
    return model


def without_model(model: object, hessian: object, space: object) -> None:
    """Raise TypeError if an operator was given with what only an objective needs."""
    given = {"model": model, "hessian": hessian, "space": space}
    for name, value in given.items():
        if value is not None:
            raise TypeError(f"an operator is at a model already; leave {name} out")


def exact_diagonal(operator: SymmetricOperator) -> Tensor:
    """Return the diagonal ``[n]`` in float64, by n products with unit vectors."""
    n, device = operator.size, operator.device
    diagonal = torch.zeros(n, dtype=torch.float64, device=device)
    for i in range(n):
        unit = torch.zeros(n, dtype=torch.float64, device=device)
        unit[i] = 1.0
        diagonal[i] = operator.matvec(unit)[i]
    return diagonal


def _exchangeable(found: LeaveOneOut) -> tuple[float, float]:
    """Return the trace and its standard error."""
    # The probes are normal: what is left of one, μ, has a uniformly random direction in
    # the space orthogonal to Q_i, whose dimension d is known, so that d μᵀHμ / μᵀμ
    # estimates the trace there with no error from its length.
    (n, m), s, g = found.basis.shape, found.left_out, found.projection
    mu, h_mu = found.rests, found.rest_products
    lengths, curvatures = (mu * mu).sum(0), (mu * h_mu).sum(0)
    spanned = g.trace() - (s * (g @ s)).sum(0)
    estimates = spanned + (n - m + 1) * curvatures / lengths
    crossed = (h_mu.mT @ found.basis).mT
    without = []
    for j in range(m):
        # μ_i grows by its part along the direction b that Q_i loses, which is ⟂ μ_i
        b = found.also_left_out(j)
        along = (b * found.coordinates).sum(0)
        lost = (b * (g @ b)).sum(0)
        grown = curvatures + 2 * along * (b * crossed).sum(0) + along.square() * lost
        each = spanned - lost + (n - m + 2) * grown / (lengths + along.square())
        without.append((each.sum() - each[j]) / (m - 1))
    return float(estimates.mean()), float(jackknife(torch.stack(without)))


def _exchangeable_nystrom(
    probes: Tensor, images: Tensor, noise: float
) -> tuple[float, float, float]:
    """Return the trace of H ≥ 0, its error, and a norm, from normal probes ``[n, m]``."""
    # With K = (Ωᵀ HΩ)⁻¹ and B = HΩ K, the Nyström approximation from all probes but i has
    # the trace tr (HΩ Bᵀ) − ‖B_i‖² / K_ii, and what it leaves of H has the quadratic form
    # 1 / K_ii at probe i. A multiple of the identity keeps K within rounding.
    (n, m), unit = probes.shape, unit_of(images)
    images = images / unit
    if not bool(images.any()):
        return 0.0, 0.0, 0.0
    shift = noise * float(torch.linalg.matrix_norm(images)) / math.sqrt(m)
    for _ in range(3):
        shift *= 10.0
        shifted = images + shift * probes
        lower, failed = torch.linalg.cholesky_ex(probes.mT @ shifted)
        if not bool(failed):
            break
    else:
        raise ValueError(
            "the operator is not positive semidefinite: a combination of the probes has "
            "negative curvature; leave positive=True out"
        )
    identity = torch.eye(m, dtype=probes.dtype, device=probes.device)
    root = torch.linalg.solve_triangular(lower, identity, upper=False)
    factor = shifted @ root.mT
    k, w = root.mT @ root, torch.linalg.inv(probes.mT @ probes)
    g = root.mT @ (factor.mT @ factor) @ root
    squares = factor.square().sum()
    k_i, w_i, g_i = (matrix.diagonal() for matrix in (k, w, g))
    # 1 / w_i is the square of what is left of probe i, whose direction is random
    estimates = squares + ((n - m + 1) * w_i - g_i) / k_i
    # the same without probe j as well, in column j
    ratio = k / k_i
    k_ij = k_i[:, None] - k * ratio
    w_ij = w_i[:, None] - w.square() / w_i
    g_ij = g_i[:, None] - 2 * ratio * g + ratio.square() * g_i
    each = squares - g_i / k_i + ((n - m + 2) * w_ij - g_ij) / k_ij
    each.fill_diagonal_(0.0)
    error = unit * float(jackknife(each.sum(0) / (m - 1)))
    norm = unit * float(torch.linalg.matrix_norm(factor, 2)) ** 2
    return unit * (float(estimates.mean()) - n * shift), error, norm


def _of_samples(
    objective: Objective,
    model: Model,
    n_products: int,
    kind: Kind | None,
    space: ModelSpace | None,
    seed: int,
    confidence: float,
) -> Estimate[float]:
    """Return the mean of ``zᵀ H z`` over samples and probes drawn together."""
    seeds = independent_seeds(seed, 2 * n_products)
    kind = objective.preferred_kind if kind is None else kind
    found, norm, noise = [], 0.0, 0.0
    with metered(objective.counts, pass_on=True) as counts:
        operators = sampled_operators(objective, model, kind, space, seeds[::2])
        for operator, own in zip(operators, seeds[1::2], strict=True):
            (z,) = sign_probes(operator, 1, own).unbind(1)
            product = operator.matvec(z)
            found.append(float(z @ product))
            norm = max(norm, float(product.norm() / z.norm()))
            noise = rounding_of(operator, norm)
    values = torch.tensor(found, dtype=torch.float64)
    value, error = float(values.mean()), math.sqrt(float(values.var()) / n_products)
    # no sample of a Gauss-Newton matrix is below 0
    above = value if kind == "gauss-newton" else math.inf
    margin = float(skewed_margin(above, error, n_products, confidence))
    message = f"the mean over {n_products} samples, each with a probe of its own"
    if noise > error:
        message += "; the error is that of the products' own rounding"
    return Estimate(
        value=value,
        standard_error=math.hypot(error, noise),
        margin=margin + noise,
        confidence=confidence,
        n_products=counts.products,
        n_propagations=counts.propagations,
        message=message,
    )
