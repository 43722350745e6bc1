"""What a run of the race costs and reaches: one currency for every method.

Costs are in gradients of the same problem: a gradient counts 1, a value ``r_v`` and a
Hessian-vector product ``r_p``, both measured. The misfit's own tally does the counting,
so a method cannot be counted otherwise than its neighbour, whatever library it is from.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

import hvpopt
from hvpopt.model.tensors import Model

#: Calls of each kind that a median is taken over.
ROUNDS = 5
#: Shots, at least, of a larger survey whose evaluations are timed.
MEASURED_SHOTS = 8


@dataclass(frozen=True)
class Prices:
    """What evaluations of one problem cost.

    Attributes:
        gradient_seconds: CPU seconds of one gradient, with one thread.
        value: r_v, of a value without gradient, in gradients.
        product: r_p, of a product with the exact Hessian, in gradients.
        misfit_at_true: Misfit of the true model, relative to the start's.
    """

    gradient_seconds: float
    value: float
    product: float
    misfit_at_true: float = 0.0


class BudgetSpent(BaseException):
    """Ends a run whose budget is spent.

    No Exception, so that no library takes it for a failure of the loss.
    """


@dataclass(frozen=True)
class Improvement:
    """A new best model of a run.

    Attributes:
        cost: Spent so far, in gradients.
        seconds: Since the run began.
        misfit: Of the model, relative to the start's.
        error: Of the model, relative to the start's.
    """

    cost: float
    seconds: float
    misfit: float
    error: float

    def as_row(self) -> list[float]:
        """Return the numbers, rounded to what a curve can show."""
        return [float(f"{number:.5g}") for number in asdict(self).values()]


@dataclass
class Meter(hvpopt.Counts):
    """A tally with prices that ends the run when its budget is spent.

    What costs is propagations, at the price of the evaluation that runs them: of a
    sample of shots, encoded or drawn, an evaluation costs the share of a whole one that
    its propagations are. Work that counts propagations alone, such as source
    illumination, is charged as a product is. The evaluation that passes the budget is
    done, and not recorded if it is of the whole survey.

    Attributes:
        prices: Of value and product.
        n_shots: Of the whole survey.
        budget: In gradients.
    """

    prices: Prices = field(default_factory=lambda: Prices(0.0, 0.0, 0.0))
    n_shots: int = 1
    budget: float = float("inf")
    # propagations of values and of gradients; the others are of products
    _of_values: int = field(default=0, repr=False)
    _of_gradients: int = field(default=0, repr=False)
    _is_value: bool = field(default=False, repr=False)
    _expected: int = field(default=0, repr=False)

    @property
    def cost(self) -> float:
        """Spent so far, in gradients of the whole survey."""
        of_products = self.propagations - self._of_values - self._of_gradients
        return (
            self._of_gradients / (2 * self.n_shots)
            + self.prices.value * self._of_values / self.n_shots
            + self.prices.product * of_products / (4 * self.n_shots)
        )

    def tally(
        self,
        *,
        values: int = 0,
        gradients: int = 0,
        products: int = 0,
        propagations: int = 0,
    ) -> None:
        """Add work done, and its price."""
        begins = bool(values or gradients or products)
        if begins and self.cost > self.budget:
            raise BudgetSpent
        super().tally(
            values=values,
            gradients=gradients,
            products=products,
            propagations=propagations,
        )
        # An evaluation counts as it begins, and its propagations as they are run, for a
        # whole survey so many: a forward field of each shot for a value, a
        # back-propagated one too for a gradient.
        if begins:
            self._is_value = values > 0
            self._expected = self.n_shots * (values + 2 * gradients)
        own = min(propagations, self._expected)
        self._expected -= own
        if self._is_value:
            self._of_values += own
        else:
            self._of_gradients += own
        if propagations and not self._expected and self.cost > self.budget:
            raise BudgetSpent


class RacedMisfit(hvpopt.fwi.WaveformMisfit):
    """A waveform misfit that calls an observer with every model it evaluates."""

    observer: Callable[[Model, float], None] | None = None

    def value(self, model: Model) -> float:
        """Return the misfit; the observer sees it."""
        value = super().value(model)
        self._observe(model, value)
        return value

    def value_and_gradient(self, model: Model) -> tuple[float, Model]:
        """Return the misfit and its gradient; the observer sees the misfit."""
        value, gradient = super().value_and_gradient(model)
        self._observe(model, value)
        return value, gradient

    def _observe(self, model: Model, value: float) -> None:
        if self.observer is not None:
            self.observer(model, value)


class Trace:
    """Records the best models of one run, from the moment it is made.

    Args:
        misfit: To watch. It counts on a Meter from now on.
        model_error: Of a model, relative to the start's.
        prices: Of the problem.
        budget: In gradients.
        first: Misfit at the start.

    Attributes:
        meter: What was spent.
        improvements: One for each new best model.
    """

    def __init__(
        self,
        misfit: RacedMisfit,
        model_error: Callable[[Model], float],
        prices: Prices,
        budget: float,
        first: float,
    ) -> None:
        self.meter = Meter(prices=prices, n_shots=misfit.survey.n_shots, budget=budget)
        self.improvements: list[Improvement] = []
        self._model_error = model_error
        self._first = first
        self._best = float("inf")
        misfit.counts = self.meter
        misfit.observer = self._see
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.perf_counter() - self._began

    def _see(self, model: Model, value: float) -> None:
        if value < self._best:
            self._best = value
            self.improvements.append(
                Improvement(
                    self.meter.cost,
                    self.seconds,
                    value / self._first,
                    self._model_error(model),
                )
            )


def measure(misfit: RacedMisfit, start: Model, true: Model) -> Prices:
    """Return the prices of a problem: medians over rounds of each kind in turn.

    CPU time of the process, since a second race beside this one must not change them.
    Of many shots, some are measured: a price is of one shot relative to another of it.

    Args:
        misfit: Of the problem.
        start: Where to measure.
        true: The true model.
    """
    n_shots = misfit.survey.n_shots
    shots = list(range(0, n_shots, max(1, n_shots // MEASURED_SHOTS)))
    part = misfit.select(shots)
    operator = part.hessian(start)
    ones = torch.ones(operator.size, dtype=operator.dtype)
    kinds: dict[str, Callable[[], Any]] = {
        "gradient": lambda: part.value_and_gradient(start),
        "value": lambda: part.value(start),
        "product": lambda: operator.matvec(ones),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(1 + ROUNDS):
        for name, run in kinds.items():
            began = time.process_time()
            run()
            times[name].append(time.process_time() - began)
    operator.close()
    # the first round also pays for memory and code that the others find in place
    median = {name: statistics.median(row[1:]) for name, row in times.items()}
    return Prices(
        gradient_seconds=median["gradient"] * n_shots / len(shots),
        value=median["value"] / median["gradient"],
        product=median["product"] / median["gradient"],
        misfit_at_true=misfit.value(true) / misfit.value(start),
    )


def prices_from(data: dict[str, Any]) -> Prices:
    """Return prices as they were saved."""
    return Prices(**{entry.name: data[entry.name] for entry in fields(Prices)})
