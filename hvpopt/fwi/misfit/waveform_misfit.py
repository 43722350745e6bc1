"""WaveformMisfit: the misfit of simulated waveforms, an Objective of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvpopt.fwi.data.trace_misfits import as_data_misfit
from hvpopt.fwi.hessian.born import BornHessian, WaveformHessian
from hvpopt.fwi.hessian.double_backprop import DoubleBackpropHessian
from hvpopt.fwi.hessian.encoding import encode, random_codes, why_not_encoded
from hvpopt.fwi.hessian.engine import Engine, check_engine, choose_engine, plan_product
from hvpopt.fwi.hessian.groups import MemoryPlan, groups_of, plan_memory
from hvpopt.fwi.hessian.peak_memory import PeakMemory
from hvpopt.fwi.hessian.product_shots import ProductShots
from hvpopt.fwi.hessian.subsets import ShotSubset
from hvpopt.fwi.hessian.waveforms import Waveforms, check_observed, check_parameterisation
from hvpopt.fwi.misfit.shot_sum import ShotSum, detached
from hvpopt.fwi.survey.arguments import instance, text, whole
from hvpopt.fwi.survey.survey import Survey
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model
from hvpopt.problem.objective import Kind, check_kind


class WaveformMisfit(ShotSum):
    """φ(m) = ℓ(F(V(m))): how far a model's waveforms are from the observed ones.

    Values, gradients and products run over groups of shots, with no graph kept between
    groups or calls. Normalisation is global: grouping changes rounding, nothing else.
    A group that runs out of memory is halved, for good. What is not finite is run again
    shot by shot, and a shot that is not finite then either is bad (see ``bad_shots``).

    Args:
        survey: The acquisition, F.
        observed: ``[shot, receiver, time]`` at the survey's ``dt``, of its dtype and on
            its device; a mapping by channel where there are several. Not copied.
        misfit: ℓ: ``"l2"`` (the mean of squares over all samples), ``"huber"``,
            ``"envelope"``, ``"normalised-correlation"``, a ``DataMisfit``, a function of
            ``deepwave.misfits``, or any function of (simulated, observed) that sums
            over shots. It is given copies and may work in place on them.
        parameterisation: V, any differentiable map from the unknowns (called ``V(t)``,
            ``V(a, b)`` or ``V(name=a)``, as they are arranged) to the propagator's
            models: a tensor, a tuple in its order, or a dict by its names. Products
            include its second derivative, by autograd: see ``parameterisation`` for when
            to run ``check_hessian``. Default the unknowns are the models.
        shots_per_group: Shots that run together. Default: on a CPU as many as torch has
            threads, since more take memory and save no time; on a GPU all. Products by
            double backprop run all together by default, for one graph to serve them.
        memory_limit: Bytes, or a string such as ``"2GB"``, that a product may use on top
            of what the process holds. The groups follow from a measurement, taken at
            the first use and told by ``memory_plan``; it runs a few products.
        engine: Of products: ``"auto"`` (Born where it holds, else double backprop),
            ``"born"`` or ``"double-backprop"``.
        product_shots: Shots of the products alone: a sequence, or ``"rotating"`` or
            ``"random"``, which take ``shots_per_product`` others at each linearisation,
            scaled up for those left out; or ``"encoded"``, which fires all sources at
            once with random signs (see ``encoded_hessian``). The mean of such products
            is the whole. Default all.
        shots_per_product: For ``"rotating"``, ``"random"`` and ``"encoded"``.
        seed: For ``"random"`` and ``"encoded"``. Default 0.
        on_bad_shot: What becomes of a shot that keeps failing. ``"raise"`` (default):
            ``BadShotError`` names it. ``"drop"``: it is left out, with a warning, and
            the misfit is that of the survey without it from then on. Not in a trial of
            ``minimize``, where it shortens the step; if no trial is left, the point that
            they started from is looked at, and what is bad there is dropped.
        name: What its part is called in a sum. Default ``"waveforms"``.

    Attributes:
        survey: As given.
        engine: As given; what a Hessian took is in its ``engine`` and ``engine_reason``.
        waveforms: The misfit in its parts.
        memory_plan: The groups, and what was estimated and measured for them.

    Raises:
        TypeError: For observed data or a misfit of the wrong type.
        ValueError: For observed data of another shape, sampling, dtype or device, with
            NaN or for an unknown channel; a misfit that does not add over shots; bad
            options.
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
        engine: str = "auto",
        product_shots: str | Sequence[int] | None = None,
        shots_per_product: int | None = None,
        seed: int = 0,
        on_bad_shot: str = "raise",
        name: str = "waveforms",
    ) -> None:
        instance("survey", survey, Survey, "a hvpopt.fwi.Survey")
        check_engine(engine)
        check_parameterisation(parameterisation)
        seed, name = whole("seed", seed, 0), text("name", name)
        self.engine = engine
        data = check_observed(survey, observed)
        data_misfit = as_data_misfit(misfit)
        data_misfit.check_writes(data)
        data_misfit.check_adds(data)
        super().__init__(
            Waveforms(
                survey,
                parameterisation,
                data_misfit,
                data,
                data_misfit.take_constants(data),
            ),
            name,
            shots_per_group=shots_per_group,
            memory_limit=memory_limit,
            on_bad_shot=on_bad_shot,
        )
        self._product_shots = ProductShots(
            self.waveforms, product_shots, shots_per_product, seed
        )

    @property
    def has_gauss_newton(self) -> bool:
        """True: every data misfit has some curvature in the data."""
        return True

    @property
    def misfit(self) -> Any:
        """The data misfit ℓ."""
        return self.waveforms.data_misfit

    def hessian(
        self,
        model: Model,
        kind: Kind = "exact",
        *,
        space: ModelSpace | None = None,
        shots: Sequence[int] | None = None,
    ) -> WaveformHessian:
        """Return the Hessian at a model, by products.

        For Gauss-Newton the curvature in the data is ``2 JᵀJ`` of the residual where the
        misfit is a sum of squares (L2, envelope, normalised correlation), and ``∇²ℓ`` as
        it is otherwise: never negative for a convex misfit, perhaps indefinite for one
        that is not. The operator's ``curvature`` says which.

        Args:
            model: Where to linearise; copied.
            kind: ``"exact"`` or ``"gauss-newton"``.
            space: Flat coordinates. Default ``ModelSpace(model)``.
            shots: Those that take part, with the product scaled up for the others.
                Default what ``product_shots`` says.

        Returns:
            An operator; its products count in ``counts`` here too. A product raises
            ``BadShotError`` where shots keep failing, or ``ShotDropped`` where they are
            dropped.

        Raises:
            ValueError: For an unknown kind or shot, a model that does not fit, or an
                engine that does not hold.
        """
        check_kind(kind)
        if shots is None and self._product_shots.n_encoded:
            return self.encoded_hessian(
                model,
                kind,
                self._product_shots.n_encoded,
                space=space,
                seed=self._product_shots.next_seed(),
            )
        live = self.live_shots
        taken = (
            self._product_shots.next(live)
            if shots is None
            else self._product_shots.check(shots, live)
        )
        operator = self._operator(
            model,
            kind,
            self.groups(model, taken),
            scale=len(live) / len(taken),
            space=space,
            counts=self.counts.child(),
            settle=self._settle if self._live.may_drop else None,
        )
        operator.cost = len(taken) / len(live)
        return operator

    def state(self) -> dict[str, int]:
        """Return how many subsets and codes have been drawn."""
        return self._product_shots.state()

    def restore(self, state: dict[str, int]) -> None:
        """Go back to a state."""
        self._product_shots.restore(state, self.live_shots)

    def encoded_hessian(
        self,
        model: Model,
        kind: Kind = "gauss-newton",
        n_encoded: int = 1,
        *,
        space: ModelSpace | None = None,
        seed: int = 0,
    ) -> WaveformHessian:
        """Return an estimate of the Hessian from simultaneous sources of random signs.

        Its mean over seeds is the Hessian; a product propagates ``n_encoded`` shots.

        Args:
            model: Where to linearise; copied.
            kind: ``"gauss-newton"`` or ``"exact"``.
            n_encoded: Encoded shots, each with signs of its own. Default 1.
            space: Flat coordinates. Default ``ModelSpace(model)``.
            seed: Of the signs.

        Raises:
            ValueError: If the shots cannot be encoded: another misfit than an L2 without
                weights, receivers that differ from shot to shot, initial wavefields.
        """
        check_kind(kind)
        whole("n_encoded", n_encoded, 1, self.survey.n_shots)
        live = self.live_shots
        codes = torch.zeros(n_encoded, self.survey.n_shots, dtype=torch.float64)
        codes[:, live] = random_codes(n_encoded, len(live), seed)
        operator = self._operator(
            model,
            kind,
            groups_of(range(n_encoded), self.memory_plan.shots_per_group),
            waveforms=encode(self.waveforms, codes),
            scale=1.0 / n_encoded,
            space=space,
            counts=self.counts.child(),
            unit="encoded shot",
        )
        operator.cost = n_encoded / len(live)
        return operator

    def sketch(
        self,
        model: Model,
        kind: Kind = "gauss-newton",
        *,
        space: ModelSpace | None = None,
        seed: int = 0,
    ) -> WaveformHessian:
        """Return a cheap estimate of the Hessian: one encoded shot, or a third of them.

        Args:
            model: Where to linearise; copied.
            kind: ``"gauss-newton"`` or ``"exact"``.
            space: Flat coordinates. Default ``ModelSpace(model)``.
            seed: Of the signs, or of the choice of shots.

        Returns:
            An operator whose mean over seeds is the Hessian; ``cost`` says what a product
            costs relative to the Hessian's.
        """
        if not why_not_encoded(self.waveforms):
            return self.encoded_hessian(model, kind, space=space, seed=seed)
        live = self.live_shots
        drawn = ShotSubset(len(live), "random", -(-len(live) // 3), seed).next()
        shots = [live[place] for place in drawn]
        return self.hessian(model, kind, space=space, shots=shots)

    # -- inside -----------------------------------------------------------------

    def _operator(
        self, model: Model, kind: Kind, groups: list[list[int]], **options: Any
    ) -> WaveformHessian:
        models = self.waveforms.models(detached(model))
        engine: Engine = choose_engine(self.survey, models, self.engine)
        options["reason"] = engine.reason
        options.setdefault("runner", self._runner)
        waveforms = options.pop("waveforms", self.waveforms)
        if engine.name == "born":
            return BornHessian(waveforms, model, kind, groups, **options)
        if self._default_groups:
            groups = [[shot for group in groups for shot in group]]
        return DoubleBackpropHessian(
            waveforms, model, kind, groups, overrides=engine.overrides, **options
        )

    def _measured_plan(self, model: Model, limit: int) -> MemoryPlan:
        models = self.waveforms.models(detached(model))
        shots = self.live_shots
        estimated = plan_product(self.survey, models, shots[:1])
        # the first product also pays for libraries and thread pools
        self._peak_of_product(model, shots[:1])
        measured, how = self._peak_of_product(model, shots[:1])
        plan = plan_memory(limit, len(shots), estimated, measured, how)
        while plan.shots_per_group > 1:
            used, _ = self._peak_of_product(model, shots[: plan.shots_per_group])
            plan = replace(plan, group=used)
            if used <= limit:
                break
            smaller = max(1, int(plan.shots_per_group * limit / used))
            plan = replace(plan, shots_per_group=smaller, group=None)
        # memory may have run out on the way
        largest = min(plan.shots_per_group, self._runner.largest or len(shots))
        return replace(plan, measured=measured, shots_per_group=largest)

    def _peak_of_product(self, model: Model, shots: list[int]) -> tuple[int, str]:
        counts = Counts()
        operator = self._operator(model, "exact", [shots], counts=counts)
        vector = torch.ones(operator.size, dtype=operator.dtype, device=operator.device)
        # numbers that are not finite take as much memory as others
        with PeakMemory(operator.device) as peak, suppress(FloatingPointError):
            operator.matvec(vector)
        operator.close()
        self.counts.tally(propagations=counts.propagations)
        return peak.bytes, peak.how
