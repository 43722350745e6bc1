"""Which engine makes the products: Born where it holds, double backprop elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import deepwave
import torch
from torch import Tensor

from hvpopt.fwi.hessian._groups import GroupRunner
from hvpopt.fwi.hessian.born import BornHessian, WaveformHessian
from hvpopt.fwi.hessian.double_backprop import DoubleBackpropHessian
from hvpopt.fwi.hessian.memory import PeakMemory
from hvpopt.fwi.hessian.waveforms import Waveforms, detached
from hvpopt.fwi.survey.physics import SECOND_ORDER, born_twin
from hvpopt.fwi.survey.survey import Survey
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model
from hvpopt.problem.objective import Kind

ENGINES = ("auto", "born", "double-backprop")


@dataclass(frozen=True)
class Engine:
    """What makes the products, and why: a sentence."""

    name: str  # "born" or "double-backprop"
    reason: str
    # deepwave options that it needs, such as the eager backend
    overrides: dict[str, Any] = field(default_factory=dict)


def choose_engine(survey: Survey, models: Sequence[Tensor], asked: str) -> Engine:
    """Return the engine for a survey's products, or raise if ``asked`` does not hold."""
    # "auto" is Born where it holds, else double backprop, on deepwave's eager backend
    # where the compiled one has no second order
    obstacle = "asked for"
    if asked != "double-backprop":
        found = _born_obstacle(survey, models)
        if found is None:
            return Engine("born", f"{survey.propagator}_born takes the survey as it is")
        if asked == "born":
            raise ValueError(
                f"engine='born' does not hold here: {found}; use engine='auto'"
            )
        obstacle = found
    if survey.options.get("checkpoint_segments") not in (None, 1):
        raise ValueError(
            "double backprop cannot run through checkpoint_segments, and the Born engine "
            f"is not used ({obstacle}); leave checkpoint_segments out and bound memory "
            "with shots_per_group= or memory_limit="
        )
    if survey.propagator in SECOND_ORDER:
        return Engine("double-backprop", obstacle)
    return Engine(
        "double-backprop",
        f"{obstacle}; the compiled {survey.propagator} has no second order",
        {"backend": "eager"},
    )


def _plan_product(survey: Survey, models: Sequence[Tensor]) -> int:
    """Return deepwave's estimate of the bytes of one shot's product; a lower bound."""
    # Of the Born pass where there is one, else of the gradient; with a graph also where a
    # value is computed without one, since a product has histories.
    with torch.enable_grad():
        if born_twin(survey.propagator) is not None:
            try:
                return _bytes(_plan_born(survey, models))
            except (deepwave.DeepwaveError, TypeError):
                pass  # the gradient's is a lower bound too
        live = [m.detach().requires_grad_() for m in models]
        return _bytes(deepwave.plan(survey.propagator, *live, **survey.arguments([0])))


def make_hessian(
    waveforms: Waveforms,
    model: Model,
    kind: Kind,
    groups: Sequence[Sequence[int]],
    runner: GroupRunner,
    asked: str,
    *,
    space: ModelSpace | None = None,
    counts: Counts | None = None,
) -> WaveformHessian:
    """Return the Hessian of a waveform misfit, by the engine that holds for it."""
    models = waveforms.models(detached(model))
    engine = choose_engine(waveforms.survey, models, asked)
    made: Callable[..., WaveformHessian] = BornHessian
    if engine.name != "born":
        made = partial(DoubleBackpropHessian, overrides=engine.overrides)
        if runner.one_graph:
            groups = [[shot for group in groups for shot in group]]
    return made(
        waveforms,
        model,
        kind,
        groups,
        runner,
        space=space,
        counts=counts,
        reason=engine.reason,
    )


def measure(
    waveforms: Waveforms, model: Model, runner: GroupRunner, asked: str, counts: Counts
) -> None:
    """Let a runner with a limit plan its groups by what products at a model use."""
    # products are not counted, the propagations that they take are

    def peak(n_shots: int) -> tuple[int, str]:
        groups = [list(range(n_shots))]
        operator = make_hessian(waveforms, model, "exact", groups, runner, asked)
        vector = torch.ones(operator.size, dtype=operator.dtype, device=operator.device)
        # numbers that are not finite take as much memory as others
        with PeakMemory(operator.device) as used, suppress(FloatingPointError):
            operator.matvec(vector)
        operator.close()
        counts.tally(propagations=operator.counts.propagations)
        return used.bytes, used.how

    models = waveforms.models(detached(model))
    estimated = _plan_product(waveforms.survey, models)
    runner.measure(waveforms.survey.n_shots, estimated, peak)


def _bytes(plan: Any) -> int:
    return int(plan.memory["total_bytes_lower_bound"])


def _plan_born(survey: Survey, models: Sequence[Tensor]) -> Any:
    live = [m.detach().requires_grad_() for m in models]
    zeros = [torch.zeros_like(m) for m in models]
    call = survey.born_arguments(zeros, [0])
    return deepwave.plan(f"{survey.propagator}_born", *live, **call)


def _born_obstacle(survey: Survey, models: Sequence[Tensor]) -> str | None:
    """Return why the Born engine does not hold, or None."""
    twin = born_twin(survey.propagator)
    if twin is None:
        return f"deepwave has no {survey.propagator}_born"
    if {"forward_callback", "backward_callback"} & set(survey.options):
        return "callbacks expect the one wavefield of a plain propagation"
    zeros = [torch.zeros_like(m) for m in models]
    unknown = set(survey.born_arguments(zeros, [0])) - set(
        inspect.signature(twin).parameters
    )
    if unknown:
        return f"{twin.__name__} has no option {', '.join(sorted(unknown))}"
    try:
        _plan_born(survey, models)
    except deepwave.DeepwaveError as error:
        return f"{twin.__name__} refuses the survey: {error}"
    return None
