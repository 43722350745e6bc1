"""Current: the objective of the current stage, without the parts that proved bad."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hvpopt.errors import BadPartError, StateError
from hvpopt.methods.method import SampledMethod
from hvpopt.methods.points import Problem
from hvpopt.model.space import ModelSpace
from hvpopt.problem.objective import Objective
from hvpopt.run._account import Account
from hvpopt.run._fingerprint import check_same_value
from hvpopt.run._samples import Best
from hvpopt.run._saving import Saving
from hvpopt.run._state import RunState

logger = logging.getLogger(__name__)


class Current:
    """The problem that steps are taken on; another replaces it where a part is dropped.

    Attributes:
        problem: The objective in flat coordinates.
        dropped: Why each dropped part was bad, by name.
    """

    def __init__(
        self,
        space: ModelSpace,
        account: Account,
        saving: Saving,
        best: Best,
        after_evaluation: Callable[[], None],
    ) -> None:
        self.problem: Problem
        self.dropped: dict[str, str] = {}
        self._space, self._account, self._saving = space, account, saving
        self._best, self._after_evaluation = best, after_evaluation

    def begin_stage(self, number: int) -> None:
        """Make a stage's objective the current one, and count its evaluations.

        A stage of the objective of the one before goes on without the same parts.
        """
        stages = self._account.stages
        objective = stages[number].objective
        if number > 0 and objective is stages[number - 1].objective and self.dropped:
            objective = objective.without(self.dropped)
        else:
            self.dropped = {}
        self._account.begin_stage(number)
        self._become(objective)

    def go_on_without(self, dropped: Mapping[str, str]) -> None:
        """Drop the parts that a saved run had dropped."""
        if dropped:
            self._become(self.problem.objective.without(dropped))
        self.dropped = dict(dropped)

    def _become(self, objective: Objective) -> None:
        self.problem = Problem(objective, self._space, self._account.meter)
        self.problem.after = self._after_evaluation
        self.problem.check_kept = self._saving.check_kept
        if self._saving.saves:
            self.problem.wrap = self._saving.products.wrap

    def sampled(self, state: Any) -> Problem:
        """Return the problem at which a point is evaluated: that of its sample."""
        method = self._account.method
        if isinstance(method, SampledMethod):
            return method.sample(self.problem, state)
        return self.problem

    # -- values -----------------------------------------------------------------

    def first_value(self, vector: Tensor) -> float:
        """Return the loss where a stage begins ``[n]``; ValueError if not finite."""
        value = self.problem.objective.value(self._space.to_model(vector))
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} at the starting model; start where it is finite"
            )
        return value

    def whole_value(self, vector: Tensor) -> tuple[float, Exception | None]:
        """Return the whole objective, and why it is infinite; bad parts are dropped."""
        while True:
            value = self.problem.value(vector)
            error = self.problem.last_error if value == math.inf else None
            if not isinstance(error, BadPartError):
                return value, error
            self.drop(error)

    def check_same(self, state: RunState) -> None:
        """Raise StateError if a later stage's loss is not that of the saved run."""
        model = self._space.to_model(state.point.vector)
        try:
            value = self.sampled(state.method).objective.value(model)
        except BadPartError as error:
            message = f"the loss of stage {state.stage + 1} cannot be evaluated: {error}"
            raise StateError(message) from error
        check_same_value(
            state.point.value, value, where=f"where stage {state.stage + 1} was saved"
        )

    # -- bad parts --------------------------------------------------------------

    def raise_bad_part(self, vector: Tensor) -> None:
        """Raise BadPartError if a part that failed in the trials fails at ``[n]`` too."""
        # The trials began there.
        error = self.problem.last_error
        # a RankError that does not end the run: some processes rejected the trial model
        refused = getattr(error, "ends_run", None) is False
        if not (refused or isinstance(error, FloatingPointError)):
            return
        model = self._space.to_model(vector)
        if self._account.method.samples:  # whose trials are by gradients too
            self.problem.objective.value_and_gradient(model)
        self.problem.objective.value(model)

    def located(self, error: BadPartError, vector: Tensor) -> BadPartError:
        """Return an error that names the bad parts that an encoded sample has met."""
        if error.parts or not self._account.method.samples:
            return error
        problem = self.problem
        try:
            point = problem.linearise(vector, None)
            with problem.hessian(point, problem.objective.preferred_kind) as hessian:
                hessian.matvec(point.gradient)
        except BadPartError as whole:
            return whole
        return error

    def drop(self, error: BadPartError) -> None:
        """Replace the objective by one without its bad parts, or raise ``error``."""
        if error.parts.keys() <= self.dropped.keys():
            raise error  # none, or none that is not dropped yet
        objective = self.problem.objective.without(error.parts)
        for part, why in error.parts.items():
            message = f"{part} is dropped from the objective from now on: {why}"
            logger.warning(message)
            warnings.warn(message, RuntimeWarning, stacklevel=5)
        self.dropped = {**self.dropped, **error.parts}
        self._become(objective)
        if self._account.method.samples:
            self._best.evaluate_again(self.problem.value)
        else:
            self._best.known = None
