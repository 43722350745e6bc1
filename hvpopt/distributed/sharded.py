"""ShardedMisfit: a waveform misfit whose shots run on many ranks, each its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from hvpopt.distributed.checksum import checksum
from hvpopt.distributed.dropping import Dropping
from hvpopt.distributed.exchange import Exchange, Part, RankError
from hvpopt.distributed.part import MisfitOfShots
from hvpopt.distributed.products import ShardedHessian
from hvpopt.distributed.ranks import Ranks
from hvpopt.distributed.shares import shares
from hvpopt.fwi.hessian.bad_shots import BadShotError
from hvpopt.fwi.hessian.born import WaveformHessian
from hvpopt.fwi.hessian.waveforms import Waveforms
from hvpopt.fwi.misfit.waveform_misfit import WaveformMisfit
from hvpopt.fwi.survey.survey import Survey
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model, copy_model, named_tensors, rebuild
from hvpopt.problem.objective import Kind, Objective
from hvpopt.problem.processes import Processes


class ShardedMisfit(Objective):
    """A waveform misfit as the sum of what each rank's shots contribute.

    Made by ``shard``. Value, gradient, products (exact and Gauss-Newton, of all shots,
    of subsets and encoded) are those of the whole survey, the same bits on every rank.

    Values, gradients and products count once, as in the misfit itself; propagations are
    summed over ranks. All ranks count the same.

    Args:
        misfit: Of the whole survey.
        costs: Of each shot.
        exchange: With the other ranks.

    Attributes:
        part: This rank's shots; its ``counts`` are this rank's own work.
        costs: As given, or measured, seconds.
        bytes_reduced: Sizes of the vectors that this rank has put into sums: one model
            vector for each gradient and product, none without a process group. What
            leaves the rank is 2 (W − 1)/W of that, and 48 bytes to each other rank for
            every sum.
    """

    def __init__(
        self,
        misfit: WaveformMisfit,
        costs: list[float],
        exchange: Exchange,
    ) -> None:
        super().__init__(misfit.name)
        self.exchange = exchange
        self.costs = costs
        live = misfit.live_shots
        places = shares([costs[shot] for shot in live], exchange.size)[exchange.rank]
        mine = None if exchange.size == 1 else [live[place] for place in places]
        self.part = MisfitOfShots(misfit, mine)
        self._dropping = Dropping(self.part, exchange, misfit.on_bad_shot)
        self.bytes_reduced = 0

    @property
    def has_gauss_newton(self) -> bool:
        """True, as of every waveform misfit."""
        return self.part.has_gauss_newton

    @property
    def processes(self) -> Processes:
        """The ranks."""
        return Ranks(self.exchange)

    @property
    def on_bad_shot(self) -> str:
        """As of the misfit: ``"raise"``, or ``"drop"`` on all ranks."""
        return self._dropping.on_bad_shot

    @property
    def shots(self) -> list[int]:
        """Those of this rank."""
        return self.part.shots

    @property
    def left_out(self) -> dict[str, str]:
        """The dropped shots of all ranks, and why."""
        return self.part.left_out

    def leave_out(self, what: Mapping[str, str]) -> None:
        """Drop the shots that another run of this misfit has dropped."""
        self.part.leave_out(what)

    def state(self) -> dict[str, int]:
        """Return how many subsets and codes have been drawn, the same on every rank."""
        return self.part.state()

    def restore(self, state: dict[str, int]) -> None:
        """Go back to a state."""
        self.part.restore(state)

    @property
    def survey(self) -> Survey:
        """The whole survey."""
        return self.part.survey

    @property
    def waveforms(self) -> Waveforms:
        """The misfit in its parts, of the whole survey."""
        return self.part.waveforms

    def groups(self, model: Model, shots: Sequence[int] | None = None) -> list[list[int]]:
        """Return the groups that shots run in here; see ``WaveformMisfit.groups``.

        Args:
            model: Where to measure.
            shots: Indices. Default those of this rank.
        """
        return self.part.groups(model, shots)

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the misfit as a differentiable scalar; without other ranks only.

        Raises:
            RuntimeError: If there are other ranks: no graph reaches them, and second
                derivatives through a reduction would be wrong.
        """
        if self.exchange.size > 1:
            raise RuntimeError(
                "a misfit on several ranks has no graph; use value, value_and_gradient "
                "and hessian"
            )
        return self.part(*args, **kwargs)

    def value(self, model: Model) -> float:
        """Return the misfit of all shots, building no graph.

        Args:
            model: The unknowns, the same on every rank.

        Raises:
            RankError: If a rank failed, is lost, or holds another model.
        """

        def work() -> Part:
            if self.shots:
                return Part(self.part.value(model))
            self._check(model)
            return Part()

        self.counts.tally(values=1)
        total = self._total("value", self._agreed(model), work)
        return total.value

    def value_and_gradient(self, model: Model) -> tuple[float, Model]:
        """Return the misfit of all shots and its gradient, shaped like the model.

        Args:
            model: The unknowns, the same on every rank.

        Raises:
            RankError: If a rank failed, is lost, or holds another model.
        """
        tensors = _tensors(model)

        def work() -> Part:
            if self.shots:
                value, gradient = self.part.value_and_gradient(model)
                rows = [row.reshape(-1) for row in _tensors(gradient)]
                return Part(value, torch.cat(rows))
            self._check(model)
            zeros = [torch.zeros_like(t.detach()).reshape(-1) for t in tensors]
            return Part(0.0, torch.cat(zeros))

        self.counts.tally(gradients=1)
        total = self._total("gradient", self._agreed(model), work)
        self._note_reduced(total.vector)
        assert total.vector is not None
        rows = torch.split(total.vector, [t.numel() for t in tensors])
        return total.value, rebuild(
            model,
            [r.reshape(t.shape).to(t.dtype) for r, t in zip(rows, tensors, strict=True)],
        )

    def hessian(
        self,
        model: Model,
        kind: Kind = "exact",
        *,
        space: ModelSpace | None = None,
        shots: Sequence[int] | None = None,
    ) -> ShardedHessian:
        """Return the Hessian of all shots, by products; see ``WaveformMisfit.hessian``.

        Args:
            model: Where to linearise, the same on every rank.
            kind: ``"exact"`` or ``"gauss-newton"``.
            space: Flat coordinates. Default ``ModelSpace(model)``.
            shots: Those that take part, shared out anew. Default as for the misfit.
        """
        return self._share_out(
            model, lambda: self.part.hessian(model, kind, space=space, shots=shots)
        )

    def encoded_hessian(
        self,
        model: Model,
        kind: Kind = "gauss-newton",
        n_encoded: int = 1,
        *,
        space: ModelSpace | None = None,
        seed: int = 0,
    ) -> ShardedHessian:
        """Return the estimate of ``WaveformMisfit.encoded_hessian``.

        Encoded shots are shared out like others: one alone runs on rank 0.

        Args:
            model: Where to linearise, the same on every rank.
            kind: ``"gauss-newton"`` or ``"exact"``.
            n_encoded: Encoded shots. Default 1.
            space: Flat coordinates. Default ``ModelSpace(model)``.
            seed: Of the signs.
        """
        return self._share_out(
            model,
            lambda: self.part.encoded_hessian(
                model, kind, n_encoded, space=space, seed=seed
            ),
        )

    def sketch(
        self,
        model: Model,
        kind: Kind = "gauss-newton",
        *,
        space: ModelSpace | None = None,
        seed: int = 0,
    ) -> ShardedHessian:
        """Return a cheap estimate of the Hessian; see ``WaveformMisfit.sketch``."""
        return self._share_out(
            model, lambda: self.part.sketch(model, kind, space=space, seed=seed)
        )

    def measure(self, model: Model) -> list[float]:
        """Return the seconds of each shot's value, measured on the rank that runs it.

        Args:
            model: Where to measure. It takes one propagation a shot, and one on top.
        """

        def work() -> Part:
            return Part(0.0, self.part.seconds(model, self.shots))

        total = self._total("costs", self._agreed(model), work)
        assert total.vector is not None
        return [float(s) for s in total.vector.clamp(min=1e-9)]

    # -- inside -----------------------------------------------------------------

    def _check(self, model: Model) -> None:
        # an idle rank refuses a model as the others do
        with torch.no_grad():
            self.waveforms.models(copy_model(model))

    def _total(self, what: str, agreed: int, work: Callable[[], Part]) -> Part:
        """Return a sum over ranks, without the shots that were dropped in it."""
        try:
            return self.exchange.total(
                what, agreed, work, own=self.part.counts, whole=self.counts
            )
        except (RankError, BadShotError) as error:
            if not self._dropping.settle(error):
                raise
        return self._total(what, agreed, work)

    def _note_reduced(self, vector: Tensor | None) -> None:
        if vector is not None and self.exchange.size > 1:
            self.bytes_reduced += vector.numel() * vector.element_size()

    def _share_out(
        self, model: Model, make: Callable[[], WaveformHessian]
    ) -> ShardedHessian:
        made: list[WaveformHessian] = []

        def work() -> Part:
            made[:] = [make()]
            return Part()

        agreed = self._agreed(model)
        self._total("hessian", agreed, work)
        (operator,) = made
        encoded = operator._waveforms.survey is not self.survey
        costs = [1.0 if encoded else self.costs[shot] for shot in operator.shots]
        return ShardedHessian(
            operator,
            shares(costs, self.exchange.size)[self.exchange.rank],
            self.exchange,
            agreed=agreed,
            wire=reduce(torch.promote_types, [t.dtype for t in _tensors(model)]),
            counts=self.counts.child(),
            note_reduced=self._note_reduced,
            dropping=self._dropping,
        )

    def _agreed(self, model: Model) -> int:
        alone = self.exchange.size == 1
        return 0 if alone else checksum(*_tensors(model))


def _tensors(model: Model) -> list[Tensor]:
    return list(named_tensors(model).values())
