"""ShotSum: a misfit as a sum over shots, its value and gradient group by group."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvpopt.fwi.hessian.bad_shots import (
    BadShotError,
    LiveShots,
    ShotDropped,
    constants_without,
)
from hvpopt.fwi.hessian.groups import MemoryPlan, default_group, groups_of, parse_bytes
from hvpopt.fwi.hessian.runner import GroupRunner, Task, Terms
from hvpopt.fwi.hessian.waveforms import Waveforms, every_gradient, live_models
from hvpopt.fwi.survey.arguments import instance, whole
from hvpopt.fwi.survey.survey import Survey
from hvpopt.methods.points import in_trial
from hvpopt.model.tensors import Model, named_tensors, rebuild
from hvpopt.problem.objective import Objective

#: Told by the memory plan once a group has run out of memory.
SMALLER = "; made smaller when memory ran out"


class ShotSum(Objective):
    """What a waveform misfit is without its Hessian.

    Args:
        waveforms: The misfit in its parts.
        name: What its part is called in a sum.
        shots_per_group: As for ``WaveformMisfit``.
        memory_limit: Likewise.
        on_bad_shot: Likewise.

    Attributes:
        survey: The acquisition.
        waveforms: As given; with other constants after shots were dropped.
        memory_plan: The groups, and what was estimated and measured for them.

    Raises:
        ValueError: For options out of range.
    """

    def __init__(
        self,
        waveforms: Waveforms,
        name: str,
        *,
        shots_per_group: int | None,
        memory_limit: str | float | None,
        on_bad_shot: str,
    ) -> None:
        super().__init__(name)
        self.survey: Survey = waveforms.survey
        self.waveforms = waveforms
        self._live = LiveShots(self.survey.n_shots, on_bad_shot)
        self._runner = GroupRunner(self._shrink)
        if shots_per_group is not None and memory_limit is not None:
            raise ValueError("give shots_per_group or memory_limit, not both")
        if shots_per_group is not None:
            shots_per_group = whole("shots_per_group", shots_per_group, 1)
        self._default_groups = shots_per_group is None and memory_limit is None
        size = min(shots_per_group or default_group(self.survey), self.survey.n_shots)
        self._limit = None if memory_limit is None else parse_bytes(memory_limit)
        self.memory_plan = MemoryPlan(self._limit, size)

    @property
    def on_bad_shot(self) -> str:
        """``"raise"`` or ``"drop"``."""
        return "drop" if self._live.may_drop else "raise"

    @property
    def live_shots(self) -> list[int]:
        """Those that take part: all but the dropped ones."""
        return list(self._live.indices)

    @property
    def dropped_shots(self) -> list[int]:
        """Those that were dropped, in order; ``why_dropped`` says what failed."""
        return sorted(self._live.reasons)

    @property
    def why_dropped(self) -> dict[int, str]:
        """What failed, for each dropped shot."""
        return dict(sorted(self._live.reasons.items()))

    @property
    def left_out(self) -> dict[str, str]:
        """What is no longer part of the sum, and why, for reports."""
        return {f"shot {shot}": why for shot, why in self.why_dropped.items()}

    def leave_out(self, what: Mapping[str, str]) -> None:
        """Drop the shots that another run of this misfit has dropped.

        Args:
            what: From ``left_out``.

        Raises:
            ValueError: If a shot is not in the survey, or none would be left.
        """
        parts = {name: name.removeprefix("shot ") for name in what}
        if unknown := [name for name, shot in parts.items() if not shot.isdecimal()]:
            raise ValueError(f"{self.name!r} has shots to leave out, and no {unknown}")
        reasons = {int(parts[name]): why for name, why in what.items()}
        if reasons.keys() - self._live.reasons.keys():
            self.drop(reasons)

    def drop(self, reasons: Mapping[int, str]) -> None:
        """Leave shots out of the misfit from now on.

        Value, gradient and the products of new Hessians are those of the survey without
        them: what normalises the misfit is taken anew from the data that are left. Not
        to be compared with what was evaluated before.

        Args:
            reasons: What is wrong, for each shot.

        Raises:
            ValueError: If a shot is not in the survey, or none would be left.
        """
        instance("reasons", reasons, Mapping, "a dict {shot: why}")
        self._live.drop(reasons)
        parts = self.waveforms
        constants = constants_without(
            parts.data_misfit, parts.observed, self._live.indices
        )
        self.waveforms = replace(parts, constants=constants)

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the misfit as a differentiable scalar; all shots share one graph.

        Not counted, and without checkpointing twice differentiable. Bad shots are not
        looked for.

        Args:
            *args: The unknowns, one tensor or several.
            **kwargs: The unknowns by name.

        Returns:
            A scalar.

        Raises:
            TypeError: If unknowns are given both ways.
        """
        if bool(args) == bool(kwargs):
            raise TypeError("give the unknowns by position or by name, not both")
        model: Model = kwargs or (args[0] if len(args) == 1 else args)
        shots = self.live_shots if self.dropped_shots else None
        return self.waveforms.loss(self.waveforms.models(model), shots)

    def value(self, model: Model) -> float:
        """Return the misfit, building no graph and storing no history.

        Args:
            model: The unknowns.

        Returns:
            The value.

        Raises:
            ValueError: For models that are not physical or do not fit the survey.
            BadShotError: If shots keep failing.
            MemoryError: If one shot does not fit in memory.
        """
        with torch.no_grad():
            models = self.waveforms.models(detached(model))

            def part(group: list[int]) -> Terms:
                return [float(self.waveforms.loss(models, group))]

            self.counts.tally(values=1)
            (value,) = self._sum(model, "value", part, [""], 1)
        return float(value)

    def value_and_gradient(self, model: Model) -> tuple[float, Model]:
        """Return the misfit and its gradient, shaped like the model.

        Args:
            model: The unknowns.

        Returns:
            The value and the gradient.

        Raises:
            ValueError: For models that are not physical or do not fit the survey, or a
                parameterisation that ignores an unknown.
            BadShotError: If shots keep failing.
            MemoryError: If one shot does not fit in memory.
        """
        named = named_tensors(model)
        leaves = [t.detach().clone().requires_grad_() for t in named.values()]
        with torch.enable_grad():
            models = self.waveforms.models(rebuild(model, leaves))
            live_models(models)
            inputs = [m.detach().requires_grad_(m.requires_grad) for m in models]

            def part(group: list[int]) -> Terms:
                for i in inputs:
                    i.grad = None
                loss = self.waveforms.loss(inputs, group)
                # .backward(), because reentrant checkpointing refuses autograd.grad
                loss.backward()  # type: ignore[no-untyped-call]
                return [float(loss.detach()), *(i.grad for i in inputs)]

            self.counts.tally(gradients=1)
            names = ["", *self.survey.model_names]
            value, *grads = self._sum(model, "gradient", part, names, 2)
        found = [(m, g) for m, g in zip(models, grads, strict=True) if m.requires_grad]
        gradient = torch.autograd.grad(
            [m for m, _ in found], leaves, [g for _, g in found], allow_unused=True
        )
        return float(value), rebuild(model, every_gradient(named, gradient))

    def groups(self, model: Model, shots: Sequence[int] | None = None) -> list[list[int]]:
        """Return the groups that shots run in; measured first under a memory limit.

        Args:
            model: Where to measure.
            shots: Indices. Default all that take part.
        """
        if self._limit is not None and self.memory_plan.measured is None:
            self.memory_plan = self._measured_plan(model, self._limit)
        taken = self.live_shots if shots is None else shots
        return groups_of(taken, self.memory_plan.shots_per_group)

    # -- inside -----------------------------------------------------------------

    @abstractmethod
    def _measured_plan(self, model: Model, limit: int) -> MemoryPlan:
        """Return the groups that fit, by what products at a model really use."""

    def _sum(
        self,
        model: Model,
        quantity: str,
        part: Callable[[list[int]], Terms],
        names: Sequence[str],
        cost: int,
    ) -> list[Any]:
        """Return the sum over the shots that take part; without those dropped in it."""
        task = Task(quantity, part, names, cost, self.counts)
        while True:
            groups = self.groups(model)
            try:
                return self._runner.total(task, groups, thorough=not in_trial())
            except BadShotError as error:
                if not self._live.dropping or not error.to_blame:
                    raise
                self.drop(error.reasons)

    def _settle(self, error: BadShotError) -> None:
        """Drop the bad shots of a product, and tell its caller."""
        if not self._live.dropping or not error.to_blame:
            return
        self.drop(error.reasons)
        raise ShotDropped(
            error.quantity, error.reasons, group=error.group, parameter=error.parameter
        ) from error

    def _shrink(self, size: int) -> None:
        plan = self.memory_plan
        size = min(size, plan.shots_per_group)
        how = plan.how.removesuffix(SMALLER) + SMALLER
        self.memory_plan = replace(plan, shots_per_group=size, group=None, how=how)


def detached(model: Model) -> Model:
    """Return a model without its graph."""
    return rebuild(model, [t.detach() for t in named_tensors(model).values()])
