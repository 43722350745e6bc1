"""BornHessian: exact and Gauss-Newton products by one Born pass for each shot group.

With φ(m) = ℓ(F(V(m))), r = ∇ℓ(d), q = ∇²ℓ(d) δd, δV = V'(m) w and δd = F'(V) δV,

    H w = ∇_m [ ⟨r, F'(V(m)) δV(m)⟩ + ⟨q, F(V(m))⟩ ]      r, q held constant
    G w = ∇_m   ⟨q, F(V(m))⟩                               Gauss-Newton

One call of a Born propagator gives F(V) and F'(V) δV; its first-order backward, the
gradient of both sums in V and in δV. V's own derivatives are taken once for all groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvpopt.counts import Counts
from hvpopt.fwi.autodiff import jvp, vjp
from hvpopt.fwi.survey import Data
from hvpopt.fwi.waveforms import Waveforms
from hvpopt.hessian import model_noise
from hvpopt.models import Model, copy_model, named_tensors, rebuild
from hvpopt.objective import Kind
from hvpopt.operators import SymmetricOperator
from hvpopt.space import ModelSpace

#: Wave propagations of one shot in one product: two fields forward and two back, or for
#: Gauss-Newton two forward, then one forward and one back.
PROPAGATIONS = 4


class WaveformHessian(SymmetricOperator):
    """What the products of a waveform misfit have in common.

    Args:
        waveforms: The misfit in its parts.
        model: Where to linearise; it is copied.
        kind: ``"exact"`` or ``"gauss-newton"``.
        groups: Shots that run together, group by group.
        scale: Factor of the product, for a subset of shots. Default 1.
        space: Flat coordinates. Default ``ModelSpace(model)``.
        counts: The tally to advance. Default a new one.
        reason: Why this engine was taken.

    Attributes:
        kind: As given.
        shots: Those that take part.
        engine: ``"born"``, ``"double-backprop"`` or ``"eager"``.
        engine_reason: Why this one.
        curvature: What serves as the curvature in the data.
    """

    engine = ""

    def __init__(
        self,
        waveforms: Waveforms,
        model: Model,
        kind: Kind,
        groups: Sequence[Sequence[int]],
        *,
        scale: float = 1.0,
        space: ModelSpace | None = None,
        counts: Counts | None = None,
        reason: str = "",
    ) -> None:
        space = ModelSpace(model) if space is None else space
        super().__init__(
            space.size,
            dtype=space.dtype,
            device=space.device,
            space=space,
            counts=counts,
            noise=model_noise(model),
        )
        space.match(model, "model")
        self.kind = kind
        self.engine_reason = reason
        self.groups = [list(group) for group in groups]
        self.shots = [shot for group in self.groups for shot in group]
        self._waveforms = waveforms
        self._model = copy_model(model)
        self._scale = scale
        if waveforms.parameterisation is not None:
            waveforms.check_connected(self._model)

    @property
    def curvature(self) -> str:
        """What serves as the curvature in the data."""
        misfit = self._waveforms.data_misfit
        return f"∇²ℓ of {misfit.name}" if self.kind == "exact" else misfit.gauss_newton

    def _leaves(self) -> list[Tensor]:
        return [
            t.requires_grad_() for t in named_tensors(copy_model(self._model)).values()
        ]

    def _steps(self, vector: Tensor) -> list[Tensor]:
        assert self.space is not None
        step = self.space.step_to_model(vector.to(self.dtype))
        return list(named_tensors(step).values())

    def _row(self, rows: Sequence[Tensor]) -> Tensor:
        assert self.space is not None
        flat = self.space.gradient_to_vector(rebuild(self._model, rows))
        return flat if self._scale == 1.0 else flat * self._scale


class BornHessian(WaveformHessian):
    """The Hessian of a waveform misfit, by Born passes; holds no graph.

    Made by ``WaveformMisfit.hessian``. A product takes four wave propagations for each
    shot. Its arguments and attributes are those of ``WaveformHessian``.
    """

    engine = "born"

    def _product(self, vector: Tensor) -> Tensor:
        leaves = self._leaves()
        with torch.enable_grad():
            models = self._waveforms.models(rebuild(self._model, leaves), check=False)
        # inputs of the waves, cut from V's graph so that groups can add to one gradient
        inputs = [m.detach().requires_grad_(m.requires_grad) for m in models]
        deltas = self._deltas(models, leaves, self._steps(vector))
        pushes = [d.detach().requires_grad_(d.requires_grad) for d in deltas]
        for group in self.groups:
            if self.kind == "exact":
                self._add_exact(inputs, pushes, group)
            else:
                self._add_gauss_newton(inputs, pushes, group)
        self.counts.tally(products=1, propagations=PROPAGATIONS * len(self.shots))
        found = [
            (through, cut.grad)
            for through, cut in zip([*models, *deltas], [*inputs, *pushes], strict=True)
            if cut.grad is not None
        ]
        return self._row(vjp([t for t, _ in found], leaves, [g for _, g in found]))

    def _deltas(
        self, models: Sequence[Tensor], leaves: list[Tensor], steps: list[Tensor]
    ) -> Sequence[Tensor]:
        """Return δV = V'(m) w, differentiable in m where it depends on it."""
        if self._waveforms.parameterisation is None:
            return self._waveforms.survey.arrange(rebuild(self._model, steps))
        # Gauss-Newton differentiates V once only
        return jvp(models, leaves, steps, create_graph=self.kind == "exact")

    def _add_exact(
        self, inputs: list[Tensor], pushes: list[Tensor], group: list[int]
    ) -> None:
        survey = self._waveforms.survey
        with torch.enable_grad():
            data, scattered = survey.propagate_born(inputs, pushes, group)
            r, q = self._waveforms.derivatives(
                _detached(data), _detached(scattered), group, "exact"
            )
            _pull_back([*scattered.values(), *data.values()], [*r.values(), *q.values()])

    def _add_gauss_newton(
        self, inputs: list[Tensor], pushes: list[Tensor], group: list[int]
    ) -> None:
        survey = self._waveforms.survey
        with torch.no_grad():
            data, scattered = survey.propagate_born(inputs, pushes, group)
        _, q = self._waveforms.derivatives(data, scattered, group, "gauss-newton")
        with torch.enable_grad():
            data = survey.propagate(inputs, group)
            _pull_back(list(data.values()), [q[channel] for channel in data])


def _pull_back(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Add the gradient of ``Σ ⟨weights, outputs⟩`` to the leaves, forming no product."""
    # not autograd.grad, which reentrant checkpointing refuses
    torch.autograd.backward(
        [o for o in outputs if o.requires_grad],
        [w for o, w in zip(outputs, weights, strict=True) if o.requires_grad],
    )


def _detached(data: Data) -> Data:
    return {channel: d.detach() for channel, d in data.items()}
