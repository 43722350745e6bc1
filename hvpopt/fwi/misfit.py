"""WaveformMisfit: the misfit of simulated waveforms, an Objective of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvpopt.counts import Counts
from hvpopt.fwi.born import BornHessian, WaveformHessian
from hvpopt.fwi.double_backprop import DoubleBackpropHessian
from hvpopt.fwi.encoding import encode, random_codes, why_not_encoded
from hvpopt.fwi.engine import Engine, check_engine, choose_engine, plan_product
from hvpopt.fwi.groups import (
    MemoryPlan,
    default_group,
    groups_of,
    parse_bytes,
    plan_memory,
)
from hvpopt.fwi.subsets import ShotSubset
from hvpopt.fwi.survey import Survey
from hvpopt.fwi.trace_misfits import as_data_misfit
from hvpopt.fwi.waveforms import (
    Waveforms,
    check_observed,
    every_gradient,
    live_models,
)
from hvpopt.memory import PeakMemory
from hvpopt.models import Model, named_tensors, rebuild
from hvpopt.objective import Kind, Objective, check_kind
from hvpopt.space import ModelSpace


class WaveformMisfit(Objective):
    """φ(m) = ℓ(F(V(m))): how far a model's waveforms are from the observed ones.

    Values, gradients and products run over groups of shots, with no graph kept between
    groups or calls. Normalisation is global: grouping changes rounding, nothing else.

    Args:
        survey: The acquisition, F.
        observed: ``[shot, receiver, time]`` at the survey's ``dt``, of its dtype and on
            its device; a mapping by channel where there are several. Not copied.
        misfit: ℓ: ``"l2"`` (the mean of squares over all samples), ``"huber"``,
            ``"envelope"``, ``"normalised-correlation"``, a ``DataMisfit``, a function of
            ``deepwave.misfits``, or any function of (simulated, observed) that sums
            over shots.
        parameterisation: V, any differentiable map from the unknowns (called ``V(t)``,
            ``V(a, b)`` or ``V(name=a)``, as they are arranged) to the propagator's
            models: a tensor, a tuple in its order, or a dict by its names. Products
            include its second derivative. Default the unknowns are the models.
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
        name: str = "waveforms",
    ) -> None:
        super().__init__(name)
        check_engine(engine)
        self.survey = survey
        self.engine = engine
        data = check_observed(survey, observed)
        data_misfit = as_data_misfit(misfit)
        data_misfit.check_adds(data)
        self.waveforms = Waveforms(
            survey, parameterisation, data_misfit, data, data_misfit.constants(data)
        )
        self._seed, self._drawn, self._encoded = seed, 0, 0
        if isinstance(product_shots, str) and product_shots == "encoded":
            self._encoded = self._check_encoded(shots_per_product)
            product_shots = shots_per_product = None
        self._subset = ShotSubset(survey.n_shots, product_shots, shots_per_product, seed)
        if shots_per_group is not None and memory_limit is not None:
            raise ValueError("give shots_per_group or memory_limit, not both")
        if shots_per_group is not None and shots_per_group < 1:
            raise ValueError(
                f"shots_per_group is {shots_per_group}; it must be at least 1"
            )
        self._default_groups = shots_per_group is None and memory_limit is None
        size = min(shots_per_group or default_group(survey), survey.n_shots)
        self._limit = None if memory_limit is None else parse_bytes(memory_limit)
        self.memory_plan = MemoryPlan(self._limit, size)

    @property
    def has_gauss_newton(self) -> bool:
        """True: every data misfit has some curvature in the data."""
        return True

    @property
    def misfit(self) -> Any:
        """The data misfit ℓ."""
        return self.waveforms.data_misfit

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the misfit as a differentiable scalar; all shots share one graph.

        Not counted, and without checkpointing twice differentiable.

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
        return self.waveforms.loss(self.waveforms.models(model))

    def value(self, model: Model) -> float:
        """Return the misfit, building no graph and storing no history.

        Args:
            model: The unknowns.

        Returns:
            The value.

        Raises:
            ValueError: For models that are not physical or do not fit the survey.
        """
        with torch.no_grad():
            models = self.waveforms.models(_detached(model))
            parts = [
                float(self.waveforms.loss(models, group)) for group in self.groups(model)
            ]
        self.counts.tally(values=1, propagations=self.survey.n_shots)
        return sum(parts)

    def value_and_gradient(self, model: Model) -> tuple[float, Model]:
        """Return the misfit and its gradient, shaped like the model.

        Args:
            model: The unknowns.

        Returns:
            The value and the gradient.

        Raises:
            ValueError: For models that are not physical or do not fit the survey, or a
                parameterisation that ignores an unknown.
        """
        named = named_tensors(model)
        leaves = [t.detach().clone().requires_grad_() for t in named.values()]
        with torch.enable_grad():
            models = self.waveforms.models(rebuild(model, leaves))
            live_models(models)
            inputs = [m.detach().requires_grad_(m.requires_grad) for m in models]
            value = 0.0
            for group in self.groups(model):
                part = self.waveforms.loss(inputs, group)
                # .backward(), because reentrant checkpointing refuses autograd.grad
                part.backward()  # type: ignore[no-untyped-call]
                value += float(part.detach())
        self.counts.tally(gradients=1, propagations=2 * self.survey.n_shots)
        found = [
            (m, i.grad) for m, i in zip(models, inputs, strict=True) if i.requires_grad
        ]
        gradient = torch.autograd.grad(
            [m for m, _ in found], leaves, [g for _, g in found], allow_unused=True
        )
        return value, rebuild(model, every_gradient(named, gradient))

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
            An operator; its products count in ``counts`` here too.

        Raises:
            ValueError: For an unknown kind or shot, a model that does not fit, or an
                engine that does not hold.
        """
        check_kind(kind)
        if shots is None and self._encoded:
            self._drawn += 1
            return self.encoded_hessian(
                model, kind, self._encoded, space=space, seed=self._seed + self._drawn
            )
        taken = self._subset.next() if shots is None else self._subset.check(shots)
        operator = self._operator(
            model,
            kind,
            self.groups(model, taken),
            scale=self.survey.n_shots / len(taken),
            space=space,
            counts=self.counts.child(),
        )
        operator.cost = len(taken) / self.survey.n_shots
        return operator

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
        n_shots = self.survey.n_shots
        codes = random_codes(n_encoded, n_shots, seed)
        operator = self._operator(
            model,
            kind,
            groups_of(range(n_encoded), self.memory_plan.shots_per_group),
            waveforms=encode(self.waveforms, codes),
            scale=1.0 / n_encoded,
            space=space,
            counts=self.counts.child(),
        )
        operator.cost = n_encoded / n_shots
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
        n_shots = self.survey.n_shots
        size = -(-n_shots // 3)
        shots = ShotSubset(n_shots, "random", size, seed).next()
        return self.hessian(model, kind, space=space, shots=shots)

    def groups(self, model: Model, shots: Sequence[int] | None = None) -> list[list[int]]:
        """Return the groups that shots run in; measured first under a memory limit.

        Args:
            model: Where to measure.
            shots: Indices. Default all.
        """
        if self._limit is not None and self.memory_plan.measured is None:
            self._measure(model, self._limit)
        taken = range(self.survey.n_shots) if shots is None else shots
        return groups_of(taken, self.memory_plan.shots_per_group)

    # -- inside -----------------------------------------------------------------

    def _check_encoded(self, n_encoded: int | None) -> int:
        reason = why_not_encoded(self.waveforms)
        if reason:
            raise ValueError(f"product_shots is 'encoded', but {reason}")
        if n_encoded is None or not 1 <= n_encoded <= self.survey.n_shots:
            raise ValueError(
                f"shots_per_product is {n_encoded}; with product_shots='encoded' it is "
                f"the number of encoded shots, from 1 to {self.survey.n_shots}"
            )
        return n_encoded

    def _operator(
        self, model: Model, kind: Kind, groups: list[list[int]], **options: Any
    ) -> WaveformHessian:
        models = self.waveforms.models(_detached(model))
        engine: Engine = choose_engine(self.survey, models, self.engine)
        options["reason"] = engine.reason
        waveforms = options.pop("waveforms", self.waveforms)
        if engine.name == "born":
            return BornHessian(waveforms, model, kind, groups, **options)
        if self._default_groups:
            groups = [[shot for group in groups for shot in group]]
        return DoubleBackpropHessian(
            waveforms, model, kind, groups, overrides=engine.overrides, **options
        )

    def _measure(self, model: Model, limit: int) -> None:
        """Plan the groups by deepwave's estimate and by what products really use."""
        models = self.waveforms.models(_detached(model))
        estimated = plan_product(self.survey, models, [0])
        # the first product also pays for libraries and thread pools
        self._peak_of_product(model, [0])
        measured, how = self._peak_of_product(model, [0])
        plan = plan_memory(limit, self.survey.n_shots, estimated, measured, how)
        while plan.shots_per_group > 1:
            used, _ = self._peak_of_product(model, range(plan.shots_per_group))
            plan = replace(plan, group=used)
            if used <= limit:
                break
            smaller = max(1, int(plan.shots_per_group * limit / used))
            plan = replace(plan, shots_per_group=smaller, group=None)
        self.memory_plan = replace(plan, measured=measured)

    def _peak_of_product(self, model: Model, shots: Sequence[int]) -> tuple[int, str]:
        counts = Counts()
        operator = self._operator(model, "exact", [list(shots)], counts=counts)
        vector = torch.ones(operator.size, dtype=operator.dtype, device=operator.device)
        with PeakMemory(operator.device) as peak:
            operator.matvec(vector)
        operator.close()
        self.counts.tally(propagations=counts.propagations)
        return peak.bytes, peak.how


def _detached(model: Model) -> Model:
    return rebuild(model, [t.detach() for t in named_tensors(model).values()])
