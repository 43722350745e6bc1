"""DoubleBackpropHessian: products of a waveform misfit by double backprop.

The reference for the Born products, and the engine where those do not hold. One graph
serves every product while all shots run together; in groups, each product builds and
drops a graph for each group, so that memory stays bounded by the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvpopt.fwi.hessian._groups import GroupRunner, Terms, counted
from hvpopt.fwi.hessian.born import WaveformHessian
from hvpopt.fwi.hessian.waveforms import Waveforms
from hvpopt.model._copies import copied_leaves
from hvpopt.model.tensors import Model, named_tensors, rebuild
from hvpopt.operators._autodiff import vjp
from hvpopt.problem.objective import Kind

#: Wave propagations of one shot: the graph; and a product, which deepwave makes of a
#: Born pass (two fields forward, two back) and one more adjoint field.
GRAPH_PROPAGATIONS = 2
PROPAGATIONS = 5


@dataclass(frozen=True)
class _Graph:
    """Data of a group and a first derivative, both differentiable."""

    group: list[int]
    leaves: list[Tensor]
    data: dict[str, Tensor]
    # exact: the gradient; Gauss-Newton: Jᵀu, whose derivative in u is J's product
    back: list[Tensor]
    dummies: list[Tensor]  # u, see autodiff.jvp


class DoubleBackpropHessian(WaveformHessian):
    """The Hessian of a waveform misfit, by double backprop.

    Made by ``WaveformMisfit.hessian``. A product takes five wave propagations for each
    shot, its graph two (once, or for each product where shots run in groups). Its
    arguments and attributes are those of ``WaveformHessian``, and ``overrides``: deepwave
    options for these propagations, such as the eager backend.
    """

    engine = "double-backprop"

    def __init__(
        self,
        waveforms: Waveforms,
        model: Model,
        kind: Kind,
        groups: Sequence[Sequence[int]],
        runner: GroupRunner,
        *,
        overrides: dict[str, Any],
        **options: Any,
    ) -> None:
        super().__init__(waveforms, model, kind, groups, runner, **options)
        self._overrides = overrides
        if overrides.get("backend") == "eager":
            self.engine = "eager"
        self._kept: _Graph | None = None
        self._closed = False

    def _product(self, vector: Tensor) -> Tensor:
        if self._closed:
            raise RuntimeError(
                "this operator is closed: its graph was released; make a new one"
            )
        self.counts.tally(products=1)
        steps = self._steps(vector)

        def part(group: list[int]) -> Terms:
            return [*self._apply(self._graph(group), steps)]

        names = list(named_tensors(self._model))
        task = self._task(part, names, PROPAGATIONS)
        return self._row(self._runner.total(task, self._groups))

    def close(self) -> None:
        """Release the graph. Products raise from now on."""
        self._kept, self._closed = None, True

    def __getstate__(self) -> dict[str, Any]:
        """Leave the graph out of pickles and deep copies; the next product builds it."""
        return {**self.__dict__, "_kept": None}

    def _forget(self) -> None:
        """Release the graph: it may hold the bad numbers, and the memory."""
        self._kept = None

    def _graph(self, group: list[int]) -> _Graph:
        if self._kept is not None and self._kept.group == group:
            return self._kept
        self._kept = None
        leaves = copied_leaves(self._model)
        propagations = GRAPH_PROPAGATIONS * len(group)
        with counted(self.counts, propagations), torch.enable_grad():
            models = self._waveforms.models(rebuild(self._model, leaves), check=False)
            data = self._waveforms.survey.propagate(models, group, **self._overrides)
            if self.kind == "exact":
                outputs = [self._waveforms.data_loss(data, group)]
                dummies = [torch.ones_like(outputs[0])]
            else:
                outputs = list(data.values())
                dummies = [torch.zeros_like(d, requires_grad=True) for d in outputs]
            back = vjp(outputs, leaves, dummies, create_graph=True)
        graph = _Graph(group, leaves, data, back, dummies)
        if self.groups == [group]:
            self._kept = graph
        return graph

    def _apply(self, graph: _Graph, steps: list[Tensor]) -> list[Tensor]:
        keep = graph is self._kept
        if self.kind == "exact":
            return vjp(graph.back, graph.leaves, steps, retain_graph=keep)
        pushed = vjp(graph.back, graph.dummies, steps, retain_graph=True)
        q = self._waveforms.gauss_newton(
            {c: d.detach() for c, d in graph.data.items()},
            dict(zip(graph.data, pushed, strict=True)),
            graph.group,
        )
        return vjp(
            list(graph.data.values()), graph.leaves, list(q.values()), retain_graph=keep
        )
