"""Waveforms: what makes a model into a misfit, for the objective and its products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.data.data_misfits import L2, Constants, DataMisfit, Huber
from hvpopt.fwi.data.mutes import RecordedSamples
from hvpopt.fwi.data.trace_misfits import Envelope
from hvpopt.fwi.data.transforms import DataTransform, Processing
from hvpopt.fwi.hessian.bad_shots import ShotNames
from hvpopt.fwi.survey.acquisition import Shots, take
from hvpopt.fwi.survey.survey import Data, Survey
from hvpopt.model._copies import call_with_graph, copied_leaves, new_leaves, writes
from hvpopt.model._scale import power_of_two
from hvpopt.model.tensors import Model, named_tensors, rebuild
from hvpopt.operators.autograd import IN_PLACE
from hvpopt.problem.objective import Kind


@dataclass(frozen=True)
class Waveforms:
    """φ(m) = ℓ(T F(V(m))) in its parts."""

    survey: Survey  # F
    # V; None where unknowns are the propagator's models
    parameterisation: Callable[..., Any] | None
    data_misfit: DataMisfit  # ℓ
    observed: Data  # [shot, receiver, time] by channel: T of what was recorded
    constants: Constants  # what normalises ℓ
    shots: ShotNames
    # of value, gradient and products, for a sample that stands for all shots
    weight: float = 1.0
    cost: float = 1.0  # of a product, relative to one with all shots
    # T, which acts on simulated data in each evaluation
    processing: Processing = field(default_factory=Processing)

    def transformed(self, transforms: Sequence[DataTransform]) -> Waveforms:
        """Return the misfit of data that other transforms act on after those here."""
        shots = self.shots
        moved = shots.rows_of(None) != list(range(self.survey.n_shots))
        added = Processing.fitted(transforms, self.survey)
        if shots.some or shots.unit != "shot" or (moved and added.why_not_same()):
            raise ValueError(
                "this is the misfit of some shots or of a sample; transform the misfit "
                "of all shots, and select, encode or draw after that"
            )
        observed = added.of_observed(self.observed)
        if all(one.multiplies for one in self.processing.transforms):
            rows = shots.rows_of(None)
            added = masked(added, self.data_misfit, self.observed, rows)
        return replace(
            self,
            observed=observed,
            constants=self.data_misfit.take_constants(observed),
            processing=self.processing.then(added),
        )

    def select(self, shots: Sequence[int]) -> Waveforms:
        """Return what some shots contribute to the sum, normalised like the whole."""
        survey = self.survey.select(shots)
        shots = [int(shot) for shot in shots]
        return replace(
            self,
            survey=survey,
            observed={channel: take(d, shots) for channel, d in self.observed.items()},
            shots=self.shots.select(shots, some=True),
        )

    def only(self, shots: Sequence[int]) -> Waveforms:
        """Return the misfit of some shots, normalised as if there were no others."""
        part = self.select(shots)
        return replace(
            part,
            constants=self.data_misfit.take_constants(part.observed),
            shots=self.shots.select(shots, some=self.shots.some),
        )

    def coded(self, codes: Tensor) -> Data:
        """Return coded sums of the observed data ``[encoded shot, receiver, time]``."""
        return {
            channel: torch.einsum("ks,srt->krt", codes.to(d), d)
            for channel, d in self.observed.items()
        }

    def encode(self, codes: Tensor, coded: Data | None = None) -> Waveforms:
        """Return the mean over shots encoded by factors ``[encoded shot, shot]``."""
        # One encoded shot records Σ_s c_s F_s(V). For a misfit that is quadratic in the
        # data, with the same weights for every shot, the mean of the encoded misfit over
        # random signs is the whole one, and so with its Hessian and Gauss-Newton matrix:
        # the cross-talk of two shots averages out (Krebs et al., Geophysics 74, 2009; as
        # a stochastic estimate of the trace: Haber, Chung and Herrmann, SIAM J. Optim.
        # 22, 2012).
        if reason := self.why_not_encoded():
            raise ValueError(f"sources cannot be encoded: {reason}")
        survey = self.survey.encode(codes)
        n_encoded, n_shots = codes.shape
        return replace(
            self,
            survey=survey,
            observed=self.coded(codes) if coded is None else coded,
            shots=ShotNames(tuple(range(n_encoded)), "encoded shot"),
            weight=self.weight / n_encoded,
            cost=self.cost * n_encoded / n_shots,
        )

    def why_not_encoded(self) -> str:
        """Return why the shots cannot be encoded, a clause; empty where they can."""
        misfit = self.data_misfit
        if self.survey.n_shots == 1:
            return "there is one shot alone"
        if not misfit.same_square_for_every_shot:
            return f"the misfit {misfit.name!r} is not one quadratic for every shot"
        if reason := self.processing.why_not_same():
            return reason
        return self.survey.why_not_encoded()

    def models(self, model: Model, *, check: bool = True) -> tuple[Tensor, ...]:
        """Return V(m) in the propagator's order, with a graph where ``model`` has one."""
        models = self.survey.arrange(self._mapped(model))
        if check:
            self.survey.check(models)
        return models

    def _mapped(self, model: Model) -> Any:
        """Return what the parameterisation returns; it is given copies."""
        function = self.parameterisation
        if function is None:
            return model
        name = getattr(function, "__name__", type(function).__name__)
        what = f"the parameterisation {name}"
        if not torch.is_grad_enabled() or not any(
            t.requires_grad for t in named_tensors(model).values()
        ):
            mapped, wrote = writes(function, model, what)
            if wrote:  # unseen by a graph too?
                leaves = rebuild(model, new_leaves(model))
                call_with_graph(function, leaves, what, IN_PLACE)
            return mapped
        return call_with_graph(function, model, what, IN_PLACE)

    def check_connected(self, model: Model) -> bool:
        """Return True if V's derivative depends on the unknowns; else V is linear."""
        # a ValueError tells of no graph, or of an unknown that V ignores, whose block of
        # the Hessian would be zero, with no error
        named = named_tensors(model)
        leaves = copied_leaves(model)
        with torch.enable_grad():
            models = self.models(rebuild(model, leaves), check=False)
        live = live_models(models)
        used = torch.autograd.grad(
            live,
            leaves,
            [torch.zeros_like(m) for m in live],
            allow_unused=True,
            create_graph=True,
        )
        return any(u.requires_grad for u in every_gradient(named, used))

    def loss(self, models: Sequence[Tensor], shots: Shots = None) -> Tensor:
        """Return the part of ``ℓ(T F(V))`` that some shots contribute, without weight."""
        return self.data_loss(self.survey.propagate(models, shots), shots)

    def data_loss(self, data: Data, shots: Shots = None) -> Tensor:
        """Return the part of ``ℓ(T d)`` that some shots contribute, a scalar."""
        rows = self.shots.rows_of(shots)
        return self.data_misfit.evaluate(
            self.processing(data, rows), self._rows(shots), rows, self.constants
        )

    def derivatives(
        self, data: Data, perturbation: Data, shots: Shots
    ) -> tuple[Data, Data]:
        """Return ``Tᵀ∇ℓ(T d)`` and its derivative along δd, for some shots' rows."""
        r, q, back = self._derivatives(data, perturbation, shots, "exact")
        return (r, q) if back is None else (back(r), back(q))

    def gauss_newton(self, data: Data, perturbation: Data, shots: Shots) -> Data:
        """Return the Gauss-Newton curvature of ``ℓ(T d)`` times δd, for those rows."""
        _, q, back = self._derivatives(data, perturbation, shots, "gauss-newton")
        return q if back is None else back(q)

    def _derivatives(
        self, data: Data, perturbation: Data, shots: Shots, kind: Kind
    ) -> tuple[Data, Data, Callable[[Data], Data] | None]:
        """Return derivatives in ``T d``, and what applies ``Tᵀ``; None for no T."""
        rows = self.shots.rows_of(shots)
        processing, back = self.processing, None
        if processing.steps:
            data, back = processing.transposed(data, rows)
            perturbation = processing(perturbation, rows)
        r, q = self.data_misfit.derivatives(
            data, perturbation, self._rows(shots), rows, self.constants, kind
        )
        return r, q, back

    def residual(self, data: Data, shots: Shots) -> Data:
        """Return ρ with ``φ = Σ ρ²`` for the rows of some shots, with a graph."""
        rows, misfit = self.shots.rows_of(shots), self.data_misfit
        found = misfit.take_residual(data, self._rows(shots), rows, self.constants)
        if found is None:
            raise ValueError(
                f"the misfit {misfit.name!r} is no sum of squares, so that it has no "
                "residual to linearise; use misfit='l2', or weighted=False for the "
                "derivative of the data themselves"
            )
        shapes = [tuple(d.shape) for d in data.values()]
        if [tuple(r.shape) for r in found] != shapes:
            raise ValueError(
                f"the residual of {misfit.name!r} has shapes "
                f"{[tuple(r.shape) for r in found]}, the data {shapes}; a Jacobian needs "
                "one of each channel's shape"
            )
        root = self.weight**0.5
        return {
            c: r if root == 1.0 else root * r for c, r in zip(data, found, strict=True)
        }

    def _rows(self, shots: Shots) -> Data:
        return {channel: take(d, shots) for channel, d in self.observed.items()}


def masked(
    processing: Processing, data_misfit: DataMisfit, observed: Data, rows: Sequence[int]
) -> Processing:
    """Return transforms with a mask of what was recorded before the first filter."""
    # the weights of the data misfit say what was not recorded; ``rows`` are theirs. On
    # the observed data, which are zero there, the mask does nothing
    filters = [k for k, t in enumerate(processing.transforms) if not t.multiplies]
    recorded = data_misfit.recorded(observed, rows)
    if not filters or all(bool(part.all()) for part in recorded.values()):
        return processing
    own = RecordedSamples(recorded)
    mask, first = Processing((own,), (own.of_rows(rows),)), filters[0]
    before, after = (
        Processing(processing.transforms[part], processing.steps[part])
        for part in (slice(first), slice(first, None))
    )
    return before.then(mask).then(after)


def check_parameterisation(function: object) -> None:
    """Raise TypeError unless a parameterisation is None or can be called."""
    if function is not None and not callable(function):
        raise TypeError(
            f"parameterisation is {checks.shown(function)}; it must be callable"
        )
    if isinstance(function, type):
        raise TypeError(
            f"parameterisation is {checks.kind(function)}; pass an instance, "
            f"{function.__name__}(...)"
        )


def detached(model: Model) -> Model:
    """Return a model without its graph."""
    return rebuild(model, [t.detach() for t in named_tensors(model).values()])


def live_models(models: Sequence[Tensor]) -> list[Tensor]:
    """Return the models that depend on the unknowns, or raise ValueError if none does."""
    live = [m for m in models if m.requires_grad]
    if not live:
        raise ValueError(
            "the parameterisation's models carry no graph: they do not depend on "
            "the unknowns; check for .detach(), .item() or torch.no_grad()"
        )
    return live


def every_gradient(
    names: Iterable[str], gradients: Sequence[Tensor | None]
) -> list[Tensor]:
    """Return gradients, or raise ValueError naming the unknowns that have none."""
    ignored = [n for n, g in zip(names, gradients, strict=True) if g is None]
    if ignored:
        raise ValueError(
            f"the parameterisation ignores {', '.join(map(repr, ignored))}; use it, "
            "or leave it out of the unknowns"
        )
    return [g for g in gradients if g is not None]


def check_observed(survey: Survey, observed: Tensor | Mapping[str, Tensor]) -> Data:
    """Return observed data ``[shot, receiver, time]`` in the survey's channel order."""
    shapes = survey.data_shapes
    if isinstance(observed, Tensor):
        if len(shapes) > 1:
            raise ValueError(
                f"the survey records channels {list(shapes)}; give the observed data as "
                "a dict by channel"
            )
        observed = {next(iter(shapes)): observed}
    if not isinstance(observed, Mapping):
        raise TypeError(
            f"the observed data are a {type(observed).__name__}; give a tensor [shot, "
            "receiver, time], or a dict of them by channel"
        )
    if set(observed) != set(shapes):
        raise ValueError(
            f"the observed data have channels {list(observed)}, the survey records "
            f"{list(shapes)}"
        )
    for channel, shape in shapes.items():
        _check_recording(survey, f"observed[{channel!r}]", observed[channel], shape)
    return {channel: observed[channel].detach() for channel in shapes}


def check_size(data_misfit: DataMisfit, observed: Data) -> None:
    """Raise ValueError unless the dtype of data that are squared holds their squares."""
    if not isinstance(data_misfit, (L2, Huber, Envelope)):
        return
    norm = torch.linalg.vector_norm  # the largest entry, with no copy of the data
    sizes = [float(norm(d, torch.inf)) for d in observed.values() if d.numel()]
    dtype = next(iter(observed.values())).dtype
    info = torch.finfo(dtype)
    size = max(sizes, default=0.0)
    if 0.0 < size < (info.tiny / info.eps) ** 0.5:
        raise ValueError(
            f"the largest of the observed data is {size:.2g}, whose square {dtype} "
            "holds to few digits or none; multiply wavelets and observed data by "
            f"{power_of_two(1.0 / size):.1g}, or use float64"
        )


def _check_recording(
    survey: Survey, what: str, data: object, shape: tuple[int, int, int]
) -> None:
    if not isinstance(data, Tensor) or not data.is_floating_point():
        raise TypeError(
            f"{what} must be a floating-point torch.Tensor, got "
            f"{data.dtype if isinstance(data, Tensor) else type(data).__name__}"
        )
    if data.ndim == 3 and data.shape[:2] == shape[:2] and data.shape[2] != shape[2]:
        raise ValueError(
            f"{what} has {data.shape[2]} samples, the survey records {shape[2]} of "
            f"{survey.resolved.dt:g} s; resample or cut the data"
        )
    if data.shape != shape:
        raise ValueError(
            f"{what} has shape {tuple(data.shape)}, the survey records {shape}: [shot, "
            "receiver, time]"
        )
    if data.dtype != survey.dtype or data.device != survey.device:
        raise ValueError(
            f"{what} is {data.dtype} on {data.device}, the survey {survey.dtype} on "
            f"{survey.device}; convert it, or use survey.to(dtype=, device=)"
        )
    if not bool(torch.isfinite(data).all()):
        raise ValueError(
            f"{what} has {int((~torch.isfinite(data)).sum())} NaN or infinite samples; "
            "mend them, or leave dead traces out with L2(trace_weights=...) after zeroing"
        )
