"""WaveformJacobian: the derivative of waveforms, and its transpose, by shot groups.

With data d = F(V(m)) and a misfit φ = Σ ρ(d)², it is the derivative of the residual,

    J w  = ρ'(d) F'(V) V'(m) w          a Born pass: two fields forward
    Jᵀ u = V'(m)ᵀ F'(V)ᵀ ρ'(d)ᵀ u       one field forward, one back

so that ``2 JᵀJ`` is the Gauss-Newton matrix. F'(V)ᵀ is the gradient of ``⟨q, F(V)⟩`` in
V, q held constant. Where there is no Born pass, J w is taken by double backprop, of the
gradient's derivative in q.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hvpopt.fwi.hessian._engine import choose_engine, make_hessian
from hvpopt.fwi.hessian._groups import GroupRunner, Task, Terms
from hvpopt.fwi.hessian.born import pull_back, pulled
from hvpopt.fwi.hessian.waveforms import Waveforms, detached
from hvpopt.fwi.survey.acquisition import take
from hvpopt.fwi.survey.survey import Data
from hvpopt.model._copies import copied_leaves
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace, checked_space
from hvpopt.model.tensors import Model, copy_model, named_tensors, rebuild
from hvpopt.operators._autodiff import jvp, vjp
from hvpopt.operators.jacobian import Jacobian
from hvpopt.operators.symmetric import SymmetricOperator

#: Wave propagations of one shot: in a product with J by a Born pass; or by double
#: backprop, a field forward and one back, then a Born pass of two forward and two back;
#: in a product with Jᵀ; and in a residual.
BORN, DOUBLE_BACKPROP, TRANSPOSED, RESIDUAL = 2, 6, 2, 1


class WaveformJacobian(Jacobian):
    """The derivative of a waveform misfit's residual.

    Made by ``WaveformMisfit.jacobian``. Its arguments are those of ``WaveformHessian``,
    and ``asked``, the engine: ``"auto"``, ``"born"`` or ``"double-backprop"``.

    Attributes:
        engine: ``"born"`` or ``"double-backprop"``: what makes products with J.

    Raises:
        ValueError: For a model that does not fit, a misfit that is no sum of squares, or
            an engine that does not hold.
    """

    def __init__(
        self,
        waveforms: Waveforms,
        model: Model,
        groups: Sequence[Sequence[int]],
        runner: GroupRunner,
        asked: str,
        *,
        space: ModelSpace | None = None,
        counts: Counts,
    ) -> None:
        space = checked_space(space, model)
        space.match(model, "model")
        survey = waveforms.survey
        super().__init__(space, survey.data_shapes, survey.dtype, counts)
        models = waveforms.models(detached(model))
        engine = choose_engine(survey, models, asked)
        # of the observed data, where they fit: refuses what is no sum of squares
        first = {channel: take(d, [0]) for channel, d in waveforms.observed.items()}
        waveforms.residual(first, [0])
        if waveforms.parameterisation is not None:
            waveforms.check_connected(model)
        self.engine = engine.name
        self._overrides = engine.overrides
        self._waveforms, self._model = waveforms, copy_model(model)
        self._groups, self._runner, self._asked = groups, runner, asked

    def residual(self) -> Tensor | Data:
        """Return observed minus simulated data at the model, weighted as J is.

        ``‖J w − J.residual()‖²`` is the linearised misfit of a step w, and
        ``-2 J.T @ J.residual()`` the misfit's gradient. Takes a propagation of each shot.

        Raises:
            BadShotError: If shots keep failing.
            MemoryError: If one shot does not fit in memory.
        """
        self.counts.tally(values=1)
        with torch.no_grad():
            models = self._waveforms.models(self._model, check=False)

            def rows(group: list[int]) -> Data:
                data = self._waveforms.survey.propagate(models, group)
                residual = self._waveforms.residual(data, group)
                return {channel: -r for channel, r in residual.items()}

            return self._answer(self._collected(rows, RESIDUAL))

    def _push(self, step: Model) -> Data:
        self.counts.tally(products=1)
        survey, leaves = self._waveforms.survey, copied_leaves(self._model)
        with torch.enable_grad():
            models = self._waveforms.models(rebuild(self._model, leaves), check=False)
        steps = list(named_tensors(self.space.arrange(step)).values())
        pushes = [p.detach() for p in jvp(models, leaves, steps)]
        inputs = [m.detach() for m in models]

        def rows(group: list[int]) -> Data:
            if self.engine == "born":
                with torch.no_grad():
                    data, scattered, _ = survey.propagate_born(inputs, pushes, group)
            else:
                live = [i.clone().requires_grad_() for i in inputs]
                with torch.enable_grad():
                    data = survey.propagate(live, group, **self._overrides)
                found = jvp(list(data.values()), live, pushes)
                scattered = dict(zip(data, found, strict=True))
            with torch.enable_grad():
                at = {c: d.detach().requires_grad_() for c, d in data.items()}
                residual = self._waveforms.residual(at, group)
            weighted = jvp(
                list(residual.values()), list(at.values()), [scattered[c] for c in at]
            )
            return dict(zip(at, weighted, strict=True))

        return self._collected(rows, BORN if self.engine == "born" else DOUBLE_BACKPROP)

    def _pull(self, data: Data) -> Model:
        self.counts.tally(products=1)
        survey, leaves = self._waveforms.survey, copied_leaves(self._model)
        with torch.enable_grad():
            models = self._waveforms.models(rebuild(self._model, leaves), check=False)
        inputs = [m.detach().requires_grad_(m.requires_grad) for m in models]

        def part(group: list[int]) -> Terms:
            for leaf in inputs:
                leaf.grad = None
            with torch.enable_grad():
                simulated = survey.propagate(inputs, group)
                at = {c: d.detach().requires_grad_() for c, d in simulated.items()}
                residual = self._waveforms.residual(at, group)
                q = vjp(
                    list(residual.values()),
                    list(at.values()),
                    [take(data[channel], group) for channel in at],
                )
                pull_back(list(simulated.values()), q, [])
            return [leaf.grad for leaf in inputs]

        names = survey.model_names
        gradients = self._runner.total(self._task(part, names, TRANSPOSED), self._groups)
        return rebuild(self._model, pulled(models, leaves, gradients))

    def _normal(self) -> SymmetricOperator:
        hessian = make_hessian(
            self._waveforms,
            self._model,
            "gauss-newton",
            self._groups,
            self._runner,
            self._asked,
            space=self.space,
            counts=self.counts.child(),
        )
        return 0.5 * hessian

    def _collected(self, rows: Callable[[list[int]], Data], cost: int) -> Data:
        """Return what groups of shots record, each in its rows."""
        data = {
            channel: torch.empty(shape, dtype=self.data_dtype, device=self.device)
            for channel, shape in self.data_shapes.items()
        }

        def part(group: list[int]) -> Terms:
            found = rows(group)
            for channel, recorded in found.items():
                take(data[channel], group).copy_(recorded)  # a view, of consecutive shots
            # sums over shots: finite where every sample is
            return [d.sum(0, dtype=torch.float64) for d in found.values()]

        self._runner.total(self._task(part, list(data), cost), self._groups)
        return data

    def _task(
        self, part: Callable[[list[int]], Terms], names: Sequence[str], cost: int
    ) -> Task:
        shots = self._waveforms.shots
        return Task("product", part, names, cost, self.counts, shots)
