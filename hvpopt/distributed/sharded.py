"""ShardedMisfit: a waveform misfit whose shots are shared out over ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from hvpopt.distributed._checksum import checksum
from hvpopt.distributed._exchange import Exchange, Part
from hvpopt.distributed._shares import shares
from hvpopt.distributed.products import ShardedHessian
from hvpopt.distributed.ranks import Ranks
from hvpopt.errors import BadShotError, RankError
from hvpopt.fwi.data.data_misfits import Constants
from hvpopt.fwi.hessian.born import WaveformHessian
from hvpopt.fwi.hessian.waveforms import Waveforms
from hvpopt.fwi.misfit.shot_misfit import ShotMisfit
from hvpopt.fwi.misfit.waveform_misfit import WaveformMisfit
from hvpopt.fwi.survey.survey import Survey
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model, copy_model, named_tensors, rebuild
from hvpopt.problem.objective import Kind
from hvpopt.problem.processes import Processes


@dataclass
class Traffic:
    """The bytes of this rank's vectors in sums, of a misfit and those derived from it."""

    bytes_reduced: int = 0


class ShardedMisfit(ShotMisfit):
    """A waveform misfit as the sum of the parts of each rank's shots.

    ``shard`` makes it. Value, gradient and products (exact and Gauss-Newton, of all shots
    and of encoded ones) are those of all ranks' shots, the same bits on every rank.

    Values, gradients and products count once, as in the misfit itself; propagations are
    summed over ranks. Counts are the same on all ranks. Every rank must make the same
    calls.

    Attributes:
        part: The misfit of this rank's shots, normalised like that of all shots; its
            ``counts`` are those of this rank alone. On a rank without shots, that of a
            shot of another rank, which is never evaluated.
        survey: The survey of all ranks' shots.
        numbers: Number of each shot of the survey.
        exchange: The exchange with the other ranks.
        traffic: Traffic to add to.
    """

    def __init__(
        self,
        part: WaveformMisfit,
        survey: Survey,
        numbers: Sequence[int],
        own: Sequence[int],
        exchange: Exchange,
        traffic: Traffic | None = None,
    ) -> None:
        super().__init__(part.name)
        self.part, self.survey, self.exchange = part, survey, exchange
        self.numbers = tuple(numbers)
        self._own = list(own)
        self.traffic = Traffic() if traffic is None else traffic

    @property
    def sizes_are_units(self) -> bool:
        """True without a parameterisation, as of one process."""
        return self.part.sizes_are_units

    @property
    def bytes_reduced(self) -> int:
        """Total size of this rank's vectors in sums, bytes.

        One model vector for each gradient and product, including those of misfits derived
        from this one; 0 without a process group. The rank sends 2 (W − 1)/W of that, and
        48 bytes to each other rank for every sum. The data of encoded shots, summed once,
        are not included.
        """
        return self.traffic.bytes_reduced

    @property
    def processes(self) -> Processes:
        """The ranks."""
        return Ranks(self.exchange)

    @property
    def on_bad_shot(self) -> str:
        """``"raise"`` or ``"drop"``; see ``WaveformMisfit``."""
        return self.part.on_bad_shot

    @property
    def shots(self) -> list[int]:
        """Numbers of this rank's shots."""
        return [self.numbers[place] for place in self._own]

    # -- derived misfits --------------------------------------------------------

    def without(self, parts: Mapping[str, str]) -> ShardedMisfit:
        """Return the misfit of the survey without some shots; see ``WaveformMisfit``.

        Shots stay on their ranks, so that a rank may have none afterwards. The constants
        that normalise the misfit are merged over ranks. Every rank must call it.

        Args:
            parts: Why each shot is dropped, by name: ``{"shot 3": "the misfit is nan"}``.

        Raises:
            TypeError: If ``parts`` is not such a mapping.
            ValueError: If there is no such shot, or none would remain.
            RankError: If a rank failed, or is lost.
        """
        names = replace(self.part.waveforms.shots, numbers=self.numbers)
        left = names.rest(parts, self.name)
        part, own = self._part_of(left)
        constants = common_constants(part, not own, self.exchange)
        return self._of(left, part, own, constants=constants)

    def encode(self, codes: Tensor) -> ShardedMisfit:
        """Return the misfit of simultaneous sources; see ``WaveformMisfit.encode``.

        The data of encoded shots are summed over ranks. Encoded shots are shared out like
        others; a single one runs on rank 0. Every rank must call it.

        Args:
            codes: Factor of each shot in each encoded one, ``[encoded shot, shot]``.

        Raises:
            ValueError: If the shots cannot be encoded, or for codes of another shape.
            RankError: If a rank failed, or is lost.
        """
        waveforms = self._of_all()
        empty = {channel: d[:0] for channel, d in waveforms.observed.items()}
        waveforms.encode(
            codes, empty
        )  # raises before any message if it cannot be encoded
        shapes = {channel: (len(codes), *d.shape[1:]) for channel, d in empty.items()}

        def work() -> Part:
            own = codes[:, self._own] if self._own else torch.zeros(len(codes), 1)
            rows = [d.reshape(-1) for d in waveforms.coded(own).values()]
            return Part(0.0, torch.cat(rows))

        found = self.total("data", checksum(codes.double()), work, self.part.counts)
        assert found.vector is not None
        rows = torch.split(found.vector, [math.prod(s) for s in shapes.values()])
        coded = {c: row.reshape(shapes[c]) for c, row in zip(shapes, rows, strict=True)}
        misfit = self.part.with_waveforms(waveforms.encode(codes, coded))
        own = shares([1.0] * len(codes), self.exchange.size)[self.exchange.rank]
        return self._made(
            misfit.select(own or [0]), misfit.survey, range(len(codes)), own
        )

    def draw(self, n_shots: int, *, seed: int = 0) -> ShardedMisfit:
        """Return the misfit of some drawn shots; see ``WaveformMisfit.draw``.

        They run on the ranks that have their data.

        Args:
            n_shots: Number of shots, drawn without replacement.
            seed: Seed of the draw. Default 0.

        Raises:
            ValueError: If the misfit has fewer shots.
        """
        n_all, waveforms = len(self.numbers), self.part.waveforms
        drawn = self.survey.draw(n_shots, seed=seed)
        n_shots = len(drawn)
        return self._of(
            drawn,
            *self._part_of(drawn),
            weight=waveforms.weight * (n_all / n_shots),
            cost=waveforms.cost * n_shots / n_all,
        )

    def why_not_encoded(self) -> str:
        """Return why the shots cannot be encoded; empty where they can."""
        return self._of_all().why_not_encoded()

    def _of_all(self) -> Waveforms:
        """Return the waveforms of this rank, with the survey of all ranks' shots."""
        return replace(self.part.waveforms, survey=self.survey)

    def _part_of(self, places: list[int]) -> tuple[WaveformMisfit, list[int]]:
        """Return this rank's part of some shots, and the indices of its shots in them."""
        own = [i for i, place in enumerate(self._own) if place in places]
        part = self.part.select(own or [0])
        return part, [places.index(self._own[i]) for i in own]

    def _of(
        self, places: list[int], part: WaveformMisfit, own: list[int], **changes: Any
    ) -> ShardedMisfit:
        """Return the misfit of some shots, with other fields of ``Waveforms``."""
        return self._made(
            part.with_waveforms(replace(part.waveforms, **changes)),
            self.survey.select(places),
            [self.numbers[place] for place in places],
            own,
        )

    def _made(
        self,
        part: WaveformMisfit,
        survey: Survey,
        numbers: Sequence[int],
        own: Sequence[int],
    ) -> ShardedMisfit:
        """Return a misfit on the same ranks, whose evaluations count here too."""
        made = ShardedMisfit(part, survey, numbers, own, self.exchange, self.traffic)
        made.counts = self.counts.child()
        return made

    # -- value, gradient and products -------------------------------------------

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the misfit as a differentiable scalar; for a single rank only.

        Raises:
            RuntimeError: If there are other ranks, which the graph would not include.
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
            model: The model, the same on every rank.

        Raises:
            BadShotError: If shots of any rank fail repeatedly; the same on every rank.
            RankError: If a rank failed, is lost, or holds another model.
        """

        def work() -> Part:
            if self._own:
                return Part(self.part.value(model))
            self._refuse(model)
            return Part()

        self.counts.tally(values=1)
        return self.total("value", self._agreed(model), work, self.part.counts).value

    def value_and_gradient(self, model: Model) -> tuple[float, Model]:
        """Return the misfit of all shots and its gradient, shaped like the model.

        Args:
            model: The model, the same on every rank.

        Raises:
            BadShotError: If shots of any rank fail repeatedly; the same on every rank.
            RankError: If a rank failed, is lost, or holds another model.
        """
        tensors = _tensors(model)

        def work() -> Part:
            if self._own:
                value, gradient = self.part.value_and_gradient(model)
                return Part(value, torch.cat([g.reshape(-1) for g in _tensors(gradient)]))
            self._refuse(model)
            zeros = [torch.zeros_like(t.detach()).reshape(-1) for t in tensors]
            return Part(0.0, torch.cat(zeros))

        self.counts.tally(gradients=1)
        agreed = self._agreed(model)
        found = self.total("gradient", agreed, work, self.part.counts)
        assert found.vector is not None
        rows = torch.split(found.vector, [t.numel() for t in tensors])
        return found.value, rebuild(
            model,
            [r.reshape(t.shape).to(t.dtype) for r, t in zip(rows, tensors, strict=True)],
        )

    def hessian(
        self, model: Model, kind: Kind = "exact", *, space: ModelSpace | None = None
    ) -> ShardedHessian:
        """Return the Hessian of all shots, by products; see ``WaveformMisfit.hessian``.

        Args:
            model: Where to linearise, the same on every rank.
            kind: ``"exact"`` or ``"gauss-newton"``.
            space: Flat coordinates. Default ``ModelSpace(model)``.

        Raises:
            ValueError: For an unknown kind, a model that does not fit, or an engine that
                does not apply, if it is raised on all ranks.
            RankError: If a rank failed, is lost, or holds another model.
        """
        made: list[WaveformHessian] = []

        def work() -> Part:
            made.append(self.part.hessian(model, kind, space=space))
            return Part()

        agreed = self._agreed(model)
        self.total("hessian", agreed, work, self.part.counts)
        wire = reduce(torch.promote_types, [t.dtype for t in _tensors(model)])
        return ShardedHessian(made[0], self, agreed, wire)

    # -- sums over ranks --------------------------------------------------------

    def total(
        self,
        what: str,
        agreed: int,
        work: Callable[[], Part],
        own: Counts,
        counts: Counts | None = None,
    ) -> Part:
        """Return the sum of every rank's part, or raise the same error on every rank."""
        # See ``Exchange.total``. By default propagations of all ranks count in this
        # misfit.
        counts = self.counts if counts is None else counts
        try:
            found = self.exchange.total(what, agreed, work, own=own, total=counts)
        except (RankError, BadShotError) as error:
            if isinstance(error, RankError) and error.ends_run:
                raise
            if bad := self._bad_shots(error):
                raise bad from error
            raise
        if self.exchange.size > 1 and found.vector is not None and what != "data":
            self.traffic.bytes_reduced += found.vector.nbytes
        return found

    def _bad_shots(self, error: Exception) -> BadShotError | None:
        """Return an error naming the bad shots of all ranks, or None; two messages."""
        # ``error`` is this rank's own, or a RankError.
        own = error.__cause__ if isinstance(error, RankError) else error
        bad: list[Any] = []
        if isinstance(own, BadShotError):
            bad = [own.quantity, own.reasons, own.group, own.parameter, own.unit]
        every = [json.loads(text) for text in self.exchange.tell(json.dumps(bad))]
        every = [bad for bad in every if bad]
        if not every:
            return None
        quantity, _, group, parameter, unit = every[0]
        reasons = {int(n): why for _, some, *_ in every for n, why in some.items()}
        return BadShotError(
            quantity,
            reasons,
            group=group,
            parameter=parameter,
            unit=unit,
            to_blame=len(reasons) < len(self.numbers),
            may_drop=self.on_bad_shot == "drop",
        )

    def _refuse(self, model: Model) -> None:
        """Raise the same error as ranks with shots for a model that does not fit."""
        with torch.no_grad():
            self.part.waveforms.models(copy_model(model))

    def _agreed(self, model: Model) -> int:
        return 0 if self.exchange.size == 1 else checksum(*_tensors(model))


def common_constants(misfit: WaveformMisfit, idle: bool, exchange: Exchange) -> Constants:
    """Return the constants that normalise a misfit, from the data of all ranks."""
    # A rank without shots is ``idle``: its misfit's data are not used.
    data_misfit, observed = misfit.waveforms.data_misfit, misfit.waveforms.observed
    found: list[Constants] = []

    def work() -> Part:
        if not idle:
            data_misfit.check_merges(observed)
            found.append(data_misfit.take_constants(observed))
        return Part()

    exchange.total("constants", 0, work)
    texts = exchange.tell(json.dumps([dict(some) for some in found]))
    constants = [some for text in texts for some in json.loads(text)]
    return constants[0] if len(constants) == 1 else data_misfit.merged(constants)


def _tensors(model: Model) -> list[Tensor]:
    return list(named_tensors(model).values())
