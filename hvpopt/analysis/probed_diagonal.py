"""The diagonal of a symmetric operator, each entry with its own standard error.

With P_i the projector on what the images of all probes but i span,

    H = P_i H + H P_i − P_i H P_i + (I − P_i) H (I − P_i)

and the diagonal of all but the last term is known; the last is sampled by probe i, of
entries ±1: ``ω_i ⊙ (I − P_i) H (I − P_i) ω_i`` on average. This is XDiag (Epperly, Tropp
and Webber, SIAM J. Matrix Anal. Appl. 45, 2024) with projectors on both sides, by H's
symmetry. On a matrix that is nearly diagonal plain probes are better
(``estimate_diagonal``); the mean over an objective's samples takes these too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.estimate import CONFIDENCE, Estimate, student_factor
from hvpopt.analysis.probes import (
    FEWEST,
    LeaveOneOut,
    independent_seeds,
    jackknife,
    leave_one_out,
    sampled_operators,
    sign_probes,
)
from hvpopt.analysis.trace import exact_diagonal, model_of, without_model
from hvpopt.model._scale import unit_of
from hvpopt.model.counts import metered
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator
from hvpopt.problem.objective import Kind, Objective


def diagonal(
    target: SymmetricOperator | Objective,
    model: Model | None = None,
    *,
    n_products: int = 30,
    hessian: Kind | None = None,
    space: ModelSpace | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate[Tensor]:
    """Estimate the diagonal of an operator, or of an objective's Hessian by samples.

    Args:
        target: A symmetric operator on ``[n]``, whose products are whole; or an
            objective, whose ``sketch`` is multiplied.
        model: Where to linearise an objective.
        n_products: Products to spend, at least 6 of an operator and 2 of an objective. At
            least n of an operator give the diagonal to rounding.
        hessian: Of an objective. Default ``"gauss-newton"`` where it has one.
        space: Flat coordinates of an objective's Hessian. Default ``ModelSpace(model)``.
        seed: Of the probes and samples.
        confidence: Probability that ``interval`` holds an entry, on average over entries.
            Single ones are held less often where few entries are large: 0.415 of the
            seeds at worst, where 0.95 was asked for.

    Returns:
        Value, standard error and margin ``[n]`` in float64. Work grows like
        ``n·n_products³`` beside the products. Entries may be negative, also of an
        operator that is positive definite.

    Raises:
        TypeError: For an argument of the wrong type, an objective without a model, or an
            operator with one.
        ValueError: For a number out of range.
    """
    confidence = checks.number("confidence", confidence, above=0.0, below=1.0)
    seed = checks.seed("seed", seed)
    if isinstance(target, Objective):
        n_samples = checks.integer("n_products", n_products, least=2)
        with metered(target.counts, pass_on=True) as counts:
            model = model_of(target, model)
            value, error, rounding = _of_samples(
                target, model, n_samples, hessian, space, seed
            )
        message = f"the mean over {n_samples} samples, each with a probe of its own"
    else:
        operator = checked_operator(target)
        without_model(model, hessian, space)
        n_products = checks.integer("n_products", n_products, least=2 * FEWEST)
        n_samples = n_products // 2
        with metered(operator.counts, pass_on=True) as counts:
            if n_products >= operator.size:
                value = exact_diagonal(operator)
                error = torch.zeros_like(value)
                rounding = operator.noise * float(value.abs().max())
                message = f"one product for each of the {operator.size} entries"
            else:
                probes = sign_probes(operator, n_samples, seed)
                found = leave_one_out(operator, probes)
                value, error = _exchangeable(found)
                rounding = operator.noise * found.norm
                message = (
                    f"leave-one-out deflation with {n_samples} probes and an error by "
                    "the jackknife"
                )
    if rounding > float(error.max()):
        message += "; the error is that of the products' own rounding"
    factor = student_factor(confidence, n_samples)
    return Estimate(
        value=value,
        standard_error=torch.hypot(error, torch.full_like(error, rounding)),
        margin=factor * error + rounding,
        confidence=confidence,
        n_products=counts.products,
        n_propagations=counts.propagations,
        message=message,
    )


def _exchangeable(found: LeaveOneOut) -> tuple[Tensor, Tensor]:
    """Return the diagonal ``[n]`` and the standard error of its entries."""
    q, z, g, s = found.basis, found.products, found.projection, found.left_out
    m, mu, h_mu = q.shape[1], found.rests, found.rest_products
    # diag(2 PH − PHP) of the whole space, then without the direction Q s of each probe
    whole = 2 * (q * z).sum(1) - ((q @ g) * q).sum(1)
    known = whole[:, None] - _lost(q, z, g, s)
    value = (known + mu * h_mu).mean(1)
    without = torch.empty_like(known)
    for j in range(m):
        b = found.also_left_out(j)
        along = (b * found.coordinates).sum(0)
        # what Q_i loses further, within the space that s_i has left already
        further = _lost(q, z, g, b, s)
        each = (mu + along * (q @ b)) * (h_mu + along * (z @ b)) + known - further
        without[:, j] = (each.sum(1) - each[:, j]) / (m - 1)
    return value, jackknife(without)


def _lost(q: Tensor, z: Tensor, g: Tensor, b: Tensor, s: Tensor | None = None) -> Tensor:
    """Return what diag(2 PH − PHP) loses with each direction Q b, ``[n, m]``."""
    # z = HQ, g = QᵀHQ; columns of b are unit vectors, as those of s ⟂ b, which P is
    # without
    qb, gb = q @ b, g @ b
    if s is not None:
        gb = gb - s * (s * gb).sum(0)
    return 2 * qb * (z @ b) - 2 * qb * (q @ gb) + qb.square() * (b * (g @ b)).sum(0)


def _of_samples(
    objective: Objective,
    model: Model,
    n_products: int,
    kind: Kind | None,
    space: ModelSpace | None,
    seed: int,
) -> tuple[Tensor, Tensor, float]:
    """Return mean and standard error of ``z ⊙ H z``, and the rounding of products."""
    seeds = independent_seeds(seed, 2 * n_products)
    estimates, rounding = [], 0.0
    operators = sampled_operators(objective, model, kind, space, seeds[::2])
    for operator, own in zip(operators, seeds[1::2], strict=True):
        (z,) = sign_probes(operator, 1, own).unbind(1)
        estimates.append(z * operator.matvec(z))
        rounding = max(rounding, operator.noise * float(estimates[-1].norm() / z.norm()))
    stacked = torch.stack(estimates)
    unit = unit_of(stacked)  # squares of small entries underflow
    error = unit * ((stacked / unit).var(0) / n_products).sqrt()
    return stacked.mean(0), error, rounding
