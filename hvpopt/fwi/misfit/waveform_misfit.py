"""WaveformMisfit: the misfit of simulated waveforms, an Objective of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.data.data_misfits import Differences
from hvpopt.fwi.data.trace_misfits import as_data_misfit
from hvpopt.fwi.data.transforms import DataTransform, Processing
from hvpopt.fwi.hessian._engine import ENGINES, make_hessian, measure
from hvpopt.fwi.hessian._groups import GroupRunner, Task, Terms, groups_of
from hvpopt.fwi.hessian.bad_shots import ShotNames
from hvpopt.fwi.hessian.born import WaveformHessian
from hvpopt.fwi.hessian.memory import MemoryPlan
from hvpopt.fwi.hessian.waveform_jacobian import WaveformJacobian
from hvpopt.fwi.hessian.waveforms import (
    Waveforms,
    check_observed,
    check_parameterisation,
    check_size,
    detached,
    every_gradient,
    live_models,
    masked,
)
from hvpopt.fwi.misfit.shot_misfit import ShotMisfit
from hvpopt.fwi.survey.survey import Survey
from hvpopt.model._copies import copied_leaves
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model, named_tensors, rebuild
from hvpopt.problem.objective import Kind, check_kind


class WaveformMisfit(ShotMisfit):
    """φ(m) = ℓ(T F(V(m))): how far a model's waveforms are from the observed ones.

    Values, gradients and products run over groups of shots, with no graph kept between
    groups or calls. Normalisation is global: grouping changes rounding, nothing else.
    A group that runs out of memory is halved, for good. What is not finite is run again
    shot by shot, and a shot that is not finite then either is bad.

    Args:
        survey: The acquisition, F.
        observed: ``[shot, receiver, time]`` at the survey's ``dt``, of its dtype and on
            its device; a mapping by channel where there are several. Not copied.
        misfit: ℓ: ``"l2"`` (the mean of squares over all samples), ``"huber"``,
            ``"envelope"``, ``"normalised-correlation"``, a ``DataMisfit``, a function of
            ``deepwave.misfits``, or any function of (simulated, observed), or of
            (simulated, observed, shots), that sums over shots. It is given copies and may
            work in place on them; see ``FunctionMisfit``.
        parameterisation: V, any differentiable map from the unknowns (called ``V(t)``,
            ``V(a, b)`` or ``V(name=a)``, as they are arranged) to the propagator's
            models: a tensor, a tuple in its order, or a dict by its names. Products
            include its second derivative, by autograd: see ``parameterisation`` for when
            to run ``check_hessian``. Default the unknowns are the models.
        shots_per_group: Shots that run together. Default: on a GPU all. On a CPU as many
            as torch has threads, since more take memory and save no time; but small
            shots, whose calls cost more than their waves, as many as have 32 MiB of
            wavefield histories together (of a product: 2 × models × cells × inner time
            steps × bytes of a number for each shot, boundary included). Products by
            double backprop run all together by default, for one graph to serve them.
        memory_limit: Bytes, or a string such as ``"2GB"``, that a product may use on top
            of what the process holds. The groups follow from a measurement, taken at
            the first use and told by ``memory_plan``; it runs a few products.
        transforms: T, on simulated and observed data alike: mutes, tapers, filters (see
            ``DataTransform``), in the order in which they act. They act on the observed
            data once, here, and the misfit keeps the result: one more copy of the data.
            ``misfit`` and what normalises it then see transformed data alone. Default
            none.
        engine: Of products: ``"auto"`` (Born where it holds, else double backprop),
            ``"born"`` or ``"double-backprop"``.
        on_bad_shot: What ``minimize`` does about a shot that keeps failing. ``"raise"``
            (default): it ends. ``"drop"``: it may go on without the shot, as a new stage,
            with a misfit that ``without`` makes. This misfit itself never changes: its
            evaluations raise ``BadShotError``, which names the shots, either way.
        name: What its part is called in a sum. Default ``"waveforms"``.

    Attributes:
        survey: As given.
        engine: As given; what a Hessian took is in its ``engine`` and ``engine_reason``.
        waveforms: The misfit in its parts.
        memory_plan: The groups, and what was estimated and measured for them.

    Raises:
        TypeError: For observed data, a misfit or a transform of the wrong type.
        ValueError: For observed data of another shape, sampling, dtype or device, with
            NaN or for an unknown channel; a transform that does not fit, or leaves
            nothing; a misfit that does not add over shots; bad options.

    Example:
        >>> import torch
        >>> from hvpopt import fwi
        >>> survey = fwi.Survey(
        ...     "scalar", grid_spacing=10.0, dt=0.001, max_vel=2000.0, pml_freq=20.0,
        ...     sources={"u": (torch.ones(1, 1, 40), torch.tensor([[[2, 2]]]))},
        ...     receivers={"u": torch.tensor([[[2, 7], [2, 8]]])}, pml_width=4)
        >>> true, v = torch.full((6, 10), 1600.0), torch.full((6, 10), 1500.0)
        >>> misfit = fwi.WaveformMisfit(survey, survey.simulate(true))
        >>> misfit.value(true), misfit.value(v) > 0
        (0.0, True)
        >>> (misfit.hessian(v) @ torch.ones_like(v)).shape
        torch.Size([6, 10])
    """

    def __init__(
        self,
        survey: Survey,
        observed: Tensor | Mapping[str, Tensor],
        misfit: Any = "l2",
        parameterisation: Callable[..., Any] | None = None,
        *,
        shots_per_group: int | None = None,
        memory_limit: str | float | None = None,
        transforms: Sequence[DataTransform] = (),
        engine: str = "auto",
        on_bad_shot: str = "raise",
        name: str = "waveforms",
    ) -> None:
        checks.instance("survey", survey, Survey, "pass a hvpopt.fwi.Survey")
        engine = checks.choice("engine", engine, ENGINES)
        check_parameterisation(parameterisation)
        name = checks.text("name", name)
        processing = Processing.fitted(transforms, survey)
        data = check_observed(survey, observed)
        data_misfit = as_data_misfit(misfit)
        data_misfit.check(data)
        check_size(data_misfit, data)
        shots = range(survey.n_shots)
        given, data = data, processing.of_observed(data)
        processing = masked(processing, data_misfit, given, shots)
        constants = data_misfit.take_constants(data)
        checks.choice("on_bad_shot", on_bad_shot, ("raise", "drop"))
        if shots_per_group is not None and memory_limit is not None:
            raise ValueError("give shots_per_group or memory_limit, not both")
        if shots_per_group is not None:
            shots_per_group = checks.integer("shots_per_group", shots_per_group, least=1)
        by_default = shots_per_group is None and memory_limit is None
        runner = GroupRunner(
            survey.n_shots,
            shots_per_group or _default_group(survey),
            checks.optional(checks.memory, "memory_limit", memory_limit),
            one_graph=by_default,
            joins_small=by_default,
        )
        names = ShotNames(tuple(shots), may_drop=on_bad_shot == "drop")
        waveforms = Waveforms(
            survey,
            parameterisation,
            data_misfit,
            data,
            constants,
            names,
            processing=processing,
        )
        self._set_up(name, waveforms, engine, runner)

    def _set_up(
        self, name: str, waveforms: Waveforms, engine: str, runner: GroupRunner
    ) -> None:
        super().__init__(name)
        self.survey = waveforms.survey
        self.waveforms = waveforms
        self.engine = engine
        self._runner = runner

    @property
    def sizes_are_units(self) -> bool:
        """True without a parameterisation, when models are quantities of own units."""
        return self.waveforms.parameterisation is None

    @property
    def on_bad_shot(self) -> str:
        """``"raise"`` or ``"drop"``."""
        return "drop" if self.waveforms.shots.may_drop else "raise"

    @property
    def memory_plan(self) -> MemoryPlan:
        """The groups, and what was estimated and measured for them."""
        return self._runner.plan

    # -- misfits made of it -----------------------------------------------------

    def with_waveforms(self, waveforms: Waveforms) -> WaveformMisfit:
        """Return a misfit with these options and memory plan, which counts here too.

        Args:
            waveforms: The new misfit in its parts.
        """
        misfit = WaveformMisfit.__new__(WaveformMisfit)
        misfit._set_up(self.name, waveforms, self.engine, self._runner)
        misfit.counts = self.counts.child()
        return misfit

    def transformed(self, *transforms: DataTransform) -> WaveformMisfit:
        """Return this misfit of data that are transformed further; this one stays.

        They act after those that there are. The misfit is normalised anew, by the
        transformed data; it keeps a copy of the observed ones. What it evaluates counts
        in ``counts`` here too.

        Args:
            *transforms: In the order in which they act.

        Raises:
            TypeError: If they are no data transforms.
            ValueError: If one does not fit the survey, or leaves nothing; for the misfit
                of some shots or of a sample, which is to be taken after the transform.
        """
        return self.with_waveforms(self.waveforms.transformed(transforms))

    def select(self, shots: Sequence[int]) -> WaveformMisfit:
        """Return what some shots contribute to this misfit, a misfit of its own.

        Normalised as here, so that the parts of all shots add up to this misfit. What it
        evaluates counts in ``counts`` here too, and its errors name shots as here.

        Args:
            shots: Indices in ``survey``, each once.

        Raises:
            TypeError: If they are no integers in a sequence.
            ValueError: If there is none, one repeats, or one is not in the survey.
        """
        return self.with_waveforms(self.waveforms.select(shots))

    def without(self, parts: Mapping[str, str]) -> WaveformMisfit:
        """Return the misfit of the survey without some shots; this one stays as it is.

        It is normalised by the data that are left, so its values are not to be compared
        with those here. What it evaluates counts in ``counts`` here too, and its errors
        name shots by their numbers in the survey that the first misfit was made with.

        Args:
            parts: Why each shot is dropped, by name, as ``BadShotError.parts`` has it:
                ``{"shot 3": "the misfit is nan"}``.

        Raises:
            TypeError: If the parts are no such mapping.
            ValueError: If there is no such shot, or none would be left.
        """
        left = self.waveforms.shots.rest(parts, self.name)
        return self.with_waveforms(self.waveforms.only(left))

    def encode(self, codes: Tensor) -> WaveformMisfit:
        """Return the misfit of simultaneous sources, their mean over the encoded shots.

        Its mean over random signs is this misfit; see ``Waveforms.encode``.

        Args:
            codes: Factor of each shot in each encoded one, ``[encoded shot, shot]``, such
                as ``random_codes`` returns.

        Raises:
            ValueError: If the shots cannot be encoded: another misfit than an L2 without
                weights, receivers that differ from shot to shot, initial wavefields; or
                for codes of another shape.
        """
        return self.with_waveforms(self.waveforms.encode(codes))

    def draw(self, n_shots: int, *, seed: int = 0) -> WaveformMisfit:
        """Return the misfit of some shots drawn at random, scaled up for the others.

        They are spread evenly along the line; see ``Survey.draw``. Their mean over seeds
        is this misfit.

        Args:
            n_shots: How many, none twice.
            seed: Of the choice.

        Raises:
            ValueError: If there are not so many.
        """
        there = self.survey.n_shots
        drawn = self.survey.draw(n_shots, seed=seed)
        n_shots, part = len(drawn), self.waveforms.select(drawn)
        weight, cost = part.weight * (there / n_shots), part.cost * n_shots / there
        return self.with_waveforms(replace(part, weight=weight, cost=cost))

    def why_not_encoded(self) -> str:
        """Return why the shots cannot be encoded; empty where they can."""
        return self.waveforms.why_not_encoded()

    # -- value, gradient and products -------------------------------------------

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the misfit as a differentiable scalar; all shots share one graph.

        Not counted, and without checkpointing twice differentiable. Bad shots are not
        looked for.

        Raises:
            TypeError: If unknowns are given both ways.
        """
        if bool(args) == bool(kwargs):
            raise TypeError("give the unknowns by position or by name, not both")
        model: Model = kwargs or (args[0] if len(args) == 1 else args)
        loss = self.waveforms.loss(self.waveforms.models(model))
        weight = self.waveforms.weight
        return loss if weight == 1.0 else loss * weight

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
        waveforms = self.waveforms
        with torch.no_grad():
            models = waveforms.models(detached(model))

            def part(group: list[int]) -> Terms:
                data = self.survey.propagate(models, group)
                return [float(waveforms.data_loss(data, group))]

            self.counts.tally(values=1)
            task = Task("value", part, [""], 1, self.counts, waveforms.shots)
            (value,) = self._runner.total(task, self.groups(model))
        return float(value) * waveforms.weight

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
        waveforms, named = self.waveforms, named_tensors(model)
        leaves = copied_leaves(model)
        with torch.enable_grad():
            models = waveforms.models(rebuild(model, leaves))
            live_models(models)
            inputs = [m.detach().requires_grad_(m.requires_grad) for m in models]

            def part(group: list[int]) -> Terms:
                for i in inputs:
                    i.grad = None
                data = self.survey.propagate(inputs, group)
                loss = waveforms.data_loss(data, group)
                # .backward(), because reentrant checkpointing refuses autograd.grad
                loss.backward()  # type: ignore[no-untyped-call]
                return [float(loss.detach()), *(i.grad for i in inputs)]

            self.counts.tally(gradients=1)
            names = ["", *self.survey.model_names]
            task = Task("gradient", part, names, 2, self.counts, waveforms.shots)
            value, *grads = self._runner.total(task, self.groups(model))
        weight = waveforms.weight
        found = [
            (m, g if weight == 1.0 else g * weight)
            for m, g in zip(models, grads, strict=True)
            if m.requires_grad
        ]
        gradient = torch.autograd.grad(
            [m for m, _ in found], leaves, [g for _, g in found], allow_unused=True
        )
        return float(value) * weight, rebuild(model, every_gradient(named, gradient))

    def hessian(
        self, model: Model, kind: Kind = "exact", *, space: ModelSpace | None = None
    ) -> WaveformHessian:
        """Return the Hessian at a model, by products.

        For Gauss-Newton the curvature in the data is ``2 JᵀJ`` of the residual where the
        misfit is a sum of squares (L2, envelope, normalised correlation), and ``∇²ℓ`` as
        it is otherwise: never negative for a convex misfit, perhaps indefinite for one
        that is not.

        Args:
            model: Where to linearise; copied.
            kind: ``"exact"`` or ``"gauss-newton"``.
            space: Flat coordinates. Default ``ModelSpace(model)``.

        Returns:
            An operator; its products count in ``counts`` here too. A product raises
            ``BadShotError`` where shots keep failing.

        Raises:
            ValueError: For an unknown kind, a model that does not fit, or an engine that
                does not hold.
        """
        check_kind(kind)
        return make_hessian(
            self.waveforms,
            model,
            kind,
            self.groups(model),
            self._runner,
            self.engine,
            space=space,
            counts=self.counts.child(),
        )

    def jacobian(
        self, model: Model, *, weighted: bool = True, space: ModelSpace | None = None
    ) -> WaveformJacobian:
        """Return the derivative J of the waveforms at a model, for least squares.

        ``J @ w`` is the data that a step w adds, by a Born pass, and ``J.T @ d`` the
        migrated image of data d; both, and the residual, carry the misfit's weights and
        the root of its mean unless ``weighted`` is False. Least-squares migration of what
        the model does not explain:

            J = misfit.jacobian(model)
            found = hvpopt.cg(J.normal(damping), J.T @ J.residual(), max_products=20)
            image = found.x

        or by ``scipy.sparse.linalg.lsqr(hvpopt.as_scipy(J), ...)``.

        Args:
            model: Where to linearise; copied.
            weighted: True (default) for the derivative of the residual that the misfit
                squares, weights and means included: ``2 JᵀJ`` is the misfit's
                Gauss-Newton matrix. False for that of the data as they are recorded.
            space: Flat coordinates. Default ``ModelSpace(model)``.

        Returns:
            An operator. Its products count in ``counts`` here too, two propagations of
            each shot for J and two for Jᵀ; they raise ``BadShotError`` where shots keep
            failing.

        Raises:
            TypeError: If ``weighted`` is neither True nor False.
            ValueError: For a model that does not fit, a misfit that is no sum of squares,
                or an engine that does not hold.
        """
        waveforms = self.waveforms
        if not checks.flag("weighted", weighted):
            plain = Differences()
            waveforms = replace(waveforms, data_misfit=plain, constants={}, weight=1.0)
        return WaveformJacobian(
            waveforms,
            model,
            self.groups(model),
            self._runner,
            self.engine,
            space=space,
            counts=self.counts.child(),
        )

    # -- groups -----------------------------------------------------------------

    def groups(self, model: Model) -> list[list[int]]:
        """Return the groups that shots run in; planned at the first use.

        Args:
            model: Where to measure.

        Raises:
            MemoryError: If one shot does not fit under the limit.
        """
        if self._runner.unmeasured:
            measure(self.waveforms, model, self._runner, self.engine, self.counts)
        elif self._runner.joins_small:
            models = self.waveforms.models(detached(model))
            self._runner.join_small(self.survey.history_bytes(models))
        return groups_of(range(self.survey.n_shots), self.memory_plan.shots_per_group)


def _default_group(survey: Survey) -> int:
    """Return how many shots run together unless a caller says otherwise."""
    # Deepwave runs shots on a CPU in parallel threads: unless shots are small, a larger
    # group saves no time, and fresh memory for its histories costs some
    # (benchmarks/RESULTS.md). A GPU is filled by many shots. With ``survey_pad`` results
    # depend on the group, so it stays whole.
    if survey.device.type == "cpu" and survey.options.get("survey_pad") is None:
        return min(torch.get_num_threads(), survey.n_shots)
    return survey.n_shots
