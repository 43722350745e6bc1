"""BornHessian: exact and Gauss-Newton products by one Born pass for each shot group.

With φ(m) = ℓ(F(V(m))), r = ∇ℓ(d), q = ∇²ℓ(d) δd, δV = V'(m) w and δd = F'(V) δV,

    H w = ∇_m [ ⟨r, F'(V(m)) δV(m)⟩ + ⟨q, F(V(m))⟩ ]      r, q held constant
    G w = ∇_m   ⟨q, F(V(m))⟩                               Gauss-Newton

One call of a Born propagator gives F(V) and F'(V) δV; its first-order backward, the
gradient of both sums in V and in δV. V's own derivatives are taken once for all groups.
Of the first sum, what δV contributes through m is, with g = F'(V)ᵀ r held constant,

    ∇_m ⟨g, V'(m) w⟩ = ∇_m ⟨V'(m)ᵀ g, w⟩

and is made of two reverse passes as on the right. A differentiated ``V'(m) w`` would be a
third derivative to autograd, which omits parts of it, with no error, for layer and batch
normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hvpopt.fwi.hessian._groups import GroupRunner, Task, Terms
from hvpopt.fwi.hessian.waveforms import Waveforms
from hvpopt.fwi.survey.survey import Data
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model, copy_model, named_tensors, rebuild
from hvpopt.operators._autodiff import jvp, vjp
from hvpopt.operators.autograd import model_noise
from hvpopt.operators.symmetric import SymmetricOperator
from hvpopt.problem.objective import Kind

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
        runner: Runs the groups, and knows how large they may be.
        space: Flat coordinates. Default ``ModelSpace(model)``.
        counts: The tally to advance. Default a new one.
        reason: Why this engine was taken.

    Attributes:
        kind: As given.
        shots: The numbers of those that take part.
        engine: ``"born"``, ``"double-backprop"`` or ``"eager"``.
        engine_reason: As given.
    """

    engine = ""

    def __init__(
        self,
        waveforms: Waveforms,
        model: Model,
        kind: Kind,
        groups: Sequence[Sequence[int]],
        runner: GroupRunner,
        *,
        space: ModelSpace | None = None,
        counts: Counts | None = None,
        reason: str = "",
    ) -> None:
        space = ModelSpace(model) if space is None else space
        super().__init__(space=space, counts=counts, noise=model_noise(model))
        space.match(model, "model")
        self.kind = kind
        self.engine_reason = reason
        self.cost = waveforms.cost
        self.shots = waveforms.shots.of([s for group in groups for s in group])
        self._groups, self._runner = groups, runner
        self._waveforms = waveforms
        self._space, self._model = space, copy_model(model)
        #: True if V'(m) depends on m
        self._curved = (
            waveforms.parameterisation is not None
            and waveforms.check_connected(self._model)
        )

    @property
    def groups(self) -> list[list[int]]:
        """Indices of the shots that run together; smaller after memory ran out."""
        return self._runner.split(self._groups)

    @property
    def curvature(self) -> str:
        """What serves as the curvature in the data."""
        misfit = self._waveforms.data_misfit
        return f"∇²ℓ of {misfit.name}" if self.kind == "exact" else misfit.gauss_newton

    def _task(
        self, part: Callable[[list[int]], Terms], names: Sequence[str], cost: int
    ) -> Task:
        """Return the sum over groups that a product is; it counts as begun."""
        self.counts.tally(products=1)
        return Task(
            "product", part, names, cost, self.counts, self._waveforms.shots, self._forget
        )

    def _forget(self) -> None:
        """Release what a failed product has kept."""

    def _leaves(self) -> list[Tensor]:
        return [
            t.requires_grad_() for t in named_tensors(copy_model(self._model)).values()
        ]

    def _steps(self, vector: Tensor) -> list[Tensor]:
        step = self._space.step_to_model(vector.to(self.dtype))
        return list(named_tensors(step).values())

    def _row(self, rows: Sequence[Tensor]) -> Tensor:
        flat = self._space.gradient_to_vector(rebuild(self._model, rows))
        weight = self._waveforms.weight
        return flat if weight == 1.0 else flat * weight


class BornHessian(WaveformHessian):
    """The Hessian of a waveform misfit, by Born passes; holds no graph.

    Made by ``WaveformMisfit.hessian``. A product takes four wave propagations for each
    shot. Its arguments and attributes are those of ``WaveformHessian``.
    """

    engine = "born"

    def _product(self, vector: Tensor) -> Tensor:
        leaves, steps = self._leaves(), self._steps(vector)
        with torch.enable_grad():
            models = self._waveforms.models(rebuild(self._model, leaves), check=False)
        # detached from V's graph, so that groups of shots add to one gradient
        inputs = [m.detach().requires_grad_(m.requires_grad) for m in models]
        curved = self._curved and self.kind == "exact"
        pushes = [
            d.detach().requires_grad_(curved and m.requires_grad)
            for d, m in zip(self._deltas(models, leaves, steps), models, strict=True)
        ]
        part = self._exact if self.kind == "exact" else self._gauss_newton
        names = 2 * self._waveforms.survey.model_names
        task = self._task(partial(part, inputs, pushes), names, PROPAGATIONS)
        gradients = self._runner.total(task, self._groups)
        in_models, in_pushes = gradients[: len(models)], gradients[len(models) :]
        rows = pulled(models, leaves, in_models, retain_graph=curved)
        if curved:
            with torch.enable_grad():
                back = pulled(models, leaves, in_pushes, create_graph=True)
            seconds = vjp(back, leaves, steps)
            rows = [row + second for row, second in zip(rows, seconds, strict=True)]
        return self._row(rows)

    def _deltas(
        self, models: Sequence[Tensor], leaves: list[Tensor], steps: list[Tensor]
    ) -> Sequence[Tensor]:
        """Return δV = V'(m) w."""
        if self._waveforms.parameterisation is None:
            return self._waveforms.survey.arrange(rebuild(self._model, steps))
        return jvp(models, leaves, steps)

    def _exact(
        self, inputs: list[Tensor], pushes: list[Tensor], group: list[int]
    ) -> Terms:
        """Return a group's gradients in the models, and in δV where asked for."""
        survey = self._waveforms.survey
        _clear(inputs, pushes)
        with torch.enable_grad():
            data, scattered, fields = survey.propagate_born(inputs, pushes, group)
            r, q = self._waveforms.derivatives(
                _detached(data), _detached(scattered), group
            )
            outputs = [*scattered.values(), *data.values()]
            weights = [*r.values(), *q.values()]
            # what the backward pass does not read must not lie beside its histories
            del data, scattered, r, q
            pull_back(outputs, weights, fields)
        return [leaf.grad for leaf in (*inputs, *pushes)]

    def _gauss_newton(
        self, inputs: list[Tensor], pushes: list[Tensor], group: list[int]
    ) -> Terms:
        """Return a group's gradients in the models; none in δV."""
        survey = self._waveforms.survey
        _clear(inputs, pushes)
        with torch.no_grad():
            data, scattered, _ = survey.propagate_born(inputs, pushes, group)
        q = self._waveforms.gauss_newton(data, scattered, group)
        with torch.enable_grad():
            data = survey.propagate(inputs, group)
            pull_back(list(data.values()), [q[channel] for channel in data], [])
        return [leaf.grad for leaf in (*inputs, *pushes)]


def _clear(*leaves: list[Tensor]) -> None:
    for leaf in (leaf for some in leaves for leaf in some):
        leaf.grad = None


def pulled(
    models: Sequence[Tensor],
    leaves: list[Tensor],
    weights: Sequence[Tensor | None],
    **options: bool,
) -> list[Tensor]:
    """Return ``V'ᵀ weights``; a weight that is None counts as zero."""
    found = [(m, w) for m, w in zip(models, weights, strict=True) if w is not None]
    return vjp([m for m, _ in found], leaves, [w for _, w in found], **options)


def pull_back(outputs: list[Tensor], weights: list[Tensor], unused: list[Tensor]) -> None:
    """Add the gradient of ``Σ ⟨weights, outputs⟩`` to the leaves; empties the lists."""
    total = _Weighted.apply(  # type: ignore[no-untyped-call]
        weights, len(outputs), *outputs, *unused
    )
    outputs.clear()
    unused.clear()
    # not autograd.grad, which reentrant checkpointing refuses
    total.backward()


class _Weighted(torch.autograd.Function):
    """``Σ ⟨weights, outputs⟩`` for its gradient alone: its value is not formed.

    It holds no output, hands the weights over, and gives the outputs that have no
    weight one zero tensor for each shape, where autograd would make one for each output.
    """

    @staticmethod
    def forward(
        ctx: Any, weights: list[Tensor], n_outputs: int, *outputs: Tensor
    ) -> Tensor:
        ctx.weights = weights
        ctx.unused = [(o.shape, o.dtype, o.device) for o in outputs[n_outputs:]]
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        weights, ctx.weights = [*ctx.weights], ctx.weights.clear()
        zeros = {
            kind: torch.zeros(kind[0], dtype=kind[1], device=kind[2])
            for kind in set(ctx.unused)
        }
        return None, None, *weights, *(zeros[kind] for kind in ctx.unused)


def _detached(data: Data) -> Data:
    return {channel: d.detach() for channel, d in data.items()}
