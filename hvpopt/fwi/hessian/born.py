"""BornHessian: exact and Gauss-Newton products by one Born pass for each shot group.

With φ(m) = ℓ(F(V(m))), r = ∇ℓ(d), q = ∇²ℓ(d) δd, δV = V'(m) w and δd = F'(V) δV,

    H w = ∇_m [ ⟨r, F'(V(m)) δV(m)⟩ + ⟨q, F(V(m))⟩ ]      r, q held constant
    G w = ∇_m   ⟨q, F(V(m))⟩                               Gauss-Newton

One call of a Born propagator gives F(V) and F'(V) δV; its first-order backward, the
gradient of both sums in V and in δV. V's own derivatives are taken once for all groups.
Of the first sum, what δV contributes through m is, with g = F'(V)ᵀ r held constant,
``∇_m ⟨g, V'(m) w⟩ = ∇_m ⟨V'(m)ᵀ g, w⟩``, made of two reverse passes as on the right: on
the left is a third derivative to autograd, which omits parts of it, with no error, for
layer and batch normalisation. On a GPU the columns of a block propagate together, each
with a copy of the model of its own for each shot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hvpopt.fwi.hessian._groups import GroupRunner, Task, Terms
from hvpopt.fwi.hessian.waveforms import Waveforms
from hvpopt.fwi.survey.survey import Data
from hvpopt.model._copies import copied_leaves
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

    def _task(
        self, part: Callable[[list[int]], Terms], names: Sequence[str], cost: int
    ) -> Task:
        """Return the sum over groups that a product is."""
        return Task(
            "product", part, names, cost, self.counts, self._waveforms.shots, self._forget
        )

    def _forget(self) -> None:
        """Release what a failed product has kept."""

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

    @property
    def columns_at_once(self) -> int:
        """How many columns of a block propagate together; on a GPU as many as fill it."""
        return self._runner.copies(self._groups) if self.device.type == "cuda" else 1

    def _product(self, vector: Tensor) -> Tensor:
        self.counts.tally(products=1)
        task, products = self._pass([vector])
        return products(self._runner.total(task, self._groups))[0]

    def _block_product(self, block: Tensor) -> Tensor:
        at_once = self.columns_at_once
        if at_once < block.shape[1]:  # memory has run out before
            parts = block[:, :at_once], block[:, at_once:]
            return torch.cat([self._block_product(part) for part in parts], 1)
        columns = [column.contiguous() for column in block.unbind(1)]
        task, products = self._pass(columns)
        gradients = self._runner.try_total(task, self._groups)
        if gradients is not None:
            self.counts.tally(products=len(columns))
            return torch.stack(products(gradients), 1)
        if self.columns_at_once < len(columns):
            return self._block_product(block)
        # one by one it fits, or says which shot is bad
        return super()._block_product(block)

    def _pass(
        self, vectors: list[Tensor]
    ) -> tuple[Task, Callable[[list[Any]], list[Tensor]]]:
        """Return the task for k vectors ``[n]``, and what makes products of its sum."""
        # the sum is of gradients in V and δV
        leaves, k = copied_leaves(self._model), len(vectors)
        with torch.enable_grad():
            models = self._waveforms.models(rebuild(self._model, leaves), check=False)
        steps = [self._steps(vector) for vector in vectors]
        deltas = [self._deltas(models, leaves, step) for step in steps]
        curved = self._curved and self.kind == "exact"
        # detached from V's graph, so that groups of shots add to one gradient
        inputs = [_stacked(k * [m]).requires_grad_(m.requires_grad) for m in models]
        pushes = [
            _stacked(columns).requires_grad_(curved and m.requires_grad)
            for m, *columns in zip(models, *deltas, strict=True)
        ]
        part = self._exact if self.kind == "exact" else self._gauss_newton
        names = 2 * self._waveforms.survey.model_names
        task = self._task(partial(part, k, inputs, pushes), names, PROPAGATIONS * k)
        task = replace(task, columns=k)

        def products(gradients: list[Any]) -> list[Tensor]:
            return [
                self._row(
                    _pulled_back(models, leaves, step, _column(gradients, j, k), curved)
                )
                for j, step in enumerate(steps)
            ]

        return task, products

    def _deltas(
        self, models: Sequence[Tensor], leaves: list[Tensor], steps: list[Tensor]
    ) -> Sequence[Tensor]:
        """Return δV = V'(m) w."""
        if self._waveforms.parameterisation is None:
            return self._waveforms.survey.arrange(rebuild(self._model, steps))
        return jvp(models, leaves, steps)

    def _exact(
        self, k: int, inputs: list[Tensor], pushes: list[Tensor], group: list[int]
    ) -> Terms:
        """Return a group's gradients in the models, and in δV where asked for."""
        survey, rows = self._waveforms.survey, k * group
        _clear(inputs, pushes)
        with torch.enable_grad():
            data, scattered, fields = survey.propagate_born(
                _of_each_shot(inputs, k, group), _of_each_shot(pushes, k, group), rows
            )
            r, q = self._waveforms.derivatives(
                _detached(data), _detached(scattered), rows
            )
            outputs = [*scattered.values(), *data.values()]
            weights = [*r.values(), *q.values()]
            # what the backward pass does not read must not lie beside its histories
            del data, scattered, r, q
            pull_back(outputs, weights, fields)
        return [leaf.grad for leaf in (*inputs, *pushes)]

    def _gauss_newton(
        self, k: int, inputs: list[Tensor], pushes: list[Tensor], group: list[int]
    ) -> Terms:
        """Return a group's gradients in the models; none in δV."""
        survey, rows = self._waveforms.survey, k * group
        _clear(inputs, pushes)
        with torch.no_grad():
            data, scattered, _ = survey.propagate_born(
                _of_each_shot(inputs, k, group), _of_each_shot(pushes, k, group), rows
            )
        q = self._waveforms.gauss_newton(data, scattered, rows)
        with torch.enable_grad():
            data = survey.propagate(_of_each_shot(inputs, k, group), rows)
            pull_back(list(data.values()), [q[channel] for channel in data], [])
        return [leaf.grad for leaf in (*inputs, *pushes)]


def _pulled_back(
    models: Sequence[Tensor],
    leaves: list[Tensor],
    step: list[Tensor],
    gradients: list[Tensor | None],
    curved: bool,
) -> list[Tensor]:
    """Return a product from its gradients in V and, where V is curved, in δV."""
    in_models, in_pushes = gradients[: len(models)], gradients[len(models) :]
    rows = pulled(models, leaves, in_models, retain_graph=True)
    if not curved:
        return rows
    with torch.enable_grad():
        back = pulled(models, leaves, in_pushes, create_graph=True)
    seconds = vjp(back, leaves, step)
    return [row + second for row, second in zip(rows, seconds, strict=True)]


def _stacked(columns: list[Tensor]) -> Tensor:
    """Return one tensor detached, or several as one with an axis before the others."""
    return columns[0].detach() if len(columns) == 1 else torch.stack(columns).detach()


def _column(gradients: list[Any], j: int, k: int) -> list[Tensor | None]:
    """Return those of column j of k; None where there is none."""
    return gradients if k == 1 else [None if g is None else g[j] for g in gradients]


def _of_each_shot(columns: list[Tensor], k: int, group: list[int]) -> list[Tensor]:
    """Return one model for all shots, or with k columns one for each shot of each."""
    if k == 1:
        return columns
    return [column.repeat_interleave(len(group), 0) for column in columns]


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
    """``Σ ⟨weights, outputs⟩`` for its gradient alone: its value is not formed."""

    # It holds no output, hands the weights over, and gives the outputs that have no
    # weight one zero tensor for each shape, where autograd would make one for each
    # output.

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
