"""Estimate: a number, or one for each cell, with its error and its cost.

What was sampled with random probes has a standard error; what was bounded has a lower and
an upper bound. They answer different questions and are kept apart: a bound on the value
of a quadrature says nothing of the probes that were not drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.model._shown import entry, screen

Value = TypeVar("Value", float, Tensor)
Array: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"

#: Probability that an interval holds the true value, unless a caller asks for another.
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Estimate(Generic[Value]):
    """A value, how far it may be off, and what it cost.

    Attributes:
        value: The estimate, a number or a tensor.
        standard_error: Of what was sampled, shaped like ``value`` or one for all of it;
            0 where nothing was, NaN where too few samples were drawn to tell.
        margin: Half the width of the interval that holds what was sampled with
            probability ``confidence``: the standard error times a quantile of Student's
            distribution, or more where samples are skewed.
        lower: Lower bound of what was bounded; −inf where nothing was.
        upper: Upper bound of what was bounded; inf where nothing was.
        confidence: Probability with which ``interval`` holds the true value; for a tensor
            that of each entry, of a diagonal on average over entries. 1 where nothing was
            left to chance.
        n_products: Products spent, whole ones and sampled ones.
        n_propagations: Wave propagations spent; 0 where no wave was propagated.
        message: What was found, a sentence.
    """

    value: Value
    standard_error: Value | float = 0.0
    margin: Value | float = 0.0
    lower: Value | float = -math.inf
    upper: Value | float = math.inf
    confidence: float = 1.0
    n_products: int = 0
    n_propagations: int = 0
    message: str = ""

    def __repr__(self) -> str:
        """Return a text that fits a screen: of tensors dtype, shape and range."""
        rows = {}
        for field in fields(self):
            value = getattr(self, field.name)
            # what was not sampled has no error, and what was not bounded no bound
            unset = isinstance(value, (int, float)) and value == field.default
            if field.name != "message" and not unset:
                rows[field.name] = entry(value)
        return screen(f"{type(self).__name__}: {self.message}", rows)

    @property
    def interval(self) -> tuple[Value, Value]:
        """Both ends of the interval that holds the true value at ``confidence``.

        What was sampled and not bounded lies within ``margin`` of ``value``; what was
        bounded too, within ``margin`` of the bounds.
        """
        value, margin, lower, upper = (
            torch.as_tensor(entry, dtype=torch.float64)
            for entry in (self.value, self.margin, self.lower, self.upper)
        )
        sampled = (margin != 0.0) & lower.isinf() & upper.isinf()
        low = torch.where(sampled, value, lower) - margin
        high = torch.where(sampled, value, upper) + margin
        if isinstance(self.value, Tensor):
            return low.to(self.value), high.to(self.value)
        return low.item(), high.item()


def student_factor(confidence: float, n_samples: int) -> float:
    """Return how many standard errors wide a two-sided interval is on either side.

    Args:
        confidence: Probability that the interval holds the mean, in (0, 1).
        n_samples: Independent samples that mean and standard error were made from.

    Returns:
        A quantile of Student's distribution of ``n_samples − 1`` degrees of freedom; NaN
        for fewer than two samples.

    Raises:
        TypeError: If one is no number.
        ValueError: If ``confidence`` is not in (0, 1).
    """
    confidence = checks.number("confidence", confidence, above=0.0, below=1.0)
    n_samples = checks.integer("n_samples", n_samples, least=0)
    if n_samples < 2:
        return math.nan
    return float(scipy.stats.t.ppf(0.5 * (1.0 + confidence), n_samples - 1))


def skewed_margin(
    above: float | Array, error: float | Array, n_samples: int, confidence: float
) -> Array:
    """Return margins, never below Student's, of means that a floor bounds from below."""
    # A quadratic form of few large eigenvalues is skewed, and Student's interval then
    # holds the truth too seldom. The mean, ``above`` the floor (infinity without one), is
    # taken to have a gamma distribution whose shape its relative error tells, widened as
    # Student's is against the normal one. Of many eigenvalues alike it is Student's.
    student = student_factor(confidence, n_samples)
    above, error = np.asarray(above, np.float64), np.asarray(error, np.float64)
    scattered = error > 0.0
    shape = np.square(above / np.where(scattered, error, 1.0))
    skewed = scattered & (shape > 0.0) & (shape < 1e6)
    tail = 0.5 * (1.0 - confidence)
    wider = student / -float(scipy.stats.norm.ppf(tail))
    quantile = scipy.stats.gamma.ppf(tail, np.where(skewed, shape, 1.0))
    reach = np.where(skewed, shape, 1.0) / np.maximum(quantile, np.finfo(float).tiny)
    margin = wider * np.where(skewed, above, 0.0) * (reach - 1.0)
    return np.asarray(np.maximum(margin, student * error), np.float64)
