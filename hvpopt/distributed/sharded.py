"""ShardedMisfit: a waveform misfit whose shots run on many ranks, each its own."""

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
from hvpopt.fwi.misfit.waveform_misfit import WaveformMisfit, random_codes
from hvpopt.fwi.survey.survey import Survey
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model, copy_model, named_tensors, rebuild
from hvpopt.problem.objective import Kind, Objective
from hvpopt.problem.processes import Processes


@dataclass
class Traffic:
    """What a misfit and those made of it have sent.

    Attributes:
        bytes_reduced: Sizes of the vectors that this rank has put into sums.
    """

    bytes_reduced: int = 0


class ShardedMisfit(Objective):
    """A waveform misfit as the sum of what each rank's shots contribute.

    Made by ``shard``. Value, gradient and products (exact and Gauss-Newton, of all shots
    and encoded) are those of the whole survey, the same bits on every rank.

    Values, gradients and products count once, as in the misfit itself; propagations are
    summed over ranks. All ranks count the same. Every rank must make the same calls.

    Args:
        part: The misfit of this rank's shots, normalised like the whole. On a rank with
            no shot that of a shot that runs elsewhere, which is never evaluated.
        survey: The whole survey.
        numbers: What each shot of the survey is called.
        own: Places in ``numbers`` of this rank's shots.
        exchange: With the other ranks.
        traffic: Is told what is sent. Default a new one.

    Attributes:
        part: As given; its ``counts`` are this rank's own work.
        survey: As given.
        numbers: As given.
        exchange: As given.
        traffic: As given.
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
    def bytes_reduced(self) -> int:
        """Sizes of the vectors that this rank has put into sums.

        One model vector for each gradient and product, those of misfits made of this one
        included; none without a process group. What leaves the rank is 2 (W − 1)/W of
        that, and 48 bytes to each other rank for every sum. The data of encoded shots,
        summed once, are not in it.
        """
        return self.traffic.bytes_reduced

    @property
    def has_gauss_newton(self) -> bool:
        """True, as of every waveform misfit."""
        return True

    @property
    def processes(self) -> Processes:
        """The ranks."""
        return Ranks(self.exchange)

    @property
    def on_bad_shot(self) -> str:
        """``"raise"`` or ``"drop"``, as of the misfit."""
        return self.part.on_bad_shot

    @property
    def shots(self) -> list[int]:
        """The numbers of this rank's shots."""
        return [self.numbers[place] for place in self._own]

    # -- misfits made of it -----------------------------------------------------

    def without(self, parts: Mapping[str, str]) -> ShardedMisfit:
        """Return the misfit of the survey without some shots; see ``WaveformMisfit``.

        Shots stay on their ranks, so that a rank may be left with none. What normalises
        the misfit is reduced over ranks. Every rank must call it.

        Args:
            parts: Why each shot is dropped, by name: ``{"shot 3": "the misfit is nan"}``.

        Raises:
            TypeError: If the parts are no such mapping.
            ValueError: If there is no such shot, or none would be left.
            RankError: If a rank failed, or is lost.
        """
        names = replace(self.part.waveforms.shots, numbers=self.numbers)
        left = names.rest(parts, self.name)
        part, own = self._part_of(left)
        constants = common_constants(part, not own, self.exchange)
        return self._of(left, part, own, constants=constants)

    def encode(self, codes: Tensor) -> ShardedMisfit:
        """Return the misfit of simultaneous sources; see ``WaveformMisfit.encode``.

        The data of encoded shots are summed over ranks. They are shared out like others,
        so that one alone runs on rank 0. Every rank must call it.

        Args:
            codes: Factor of each shot in each encoded one, ``[encoded shot, shot]``.

        Raises:
            ValueError: If the shots cannot be encoded, or for codes of another shape.
            RankError: If a rank failed, or is lost.
        """
        whole = self._of_all()
        empty = {channel: d[:0] for channel, d in whole.observed.items()}
        whole.encode(codes, empty)  # refuses what cannot be encoded before any message
        shapes = {channel: (len(codes), *d.shape[1:]) for channel, d in empty.items()}

        def work() -> Part:
            own = codes[:, self._own] if self._own else torch.zeros(len(codes), 1)
            return Part(
                0.0, torch.cat([d.reshape(-1) for d in whole.coded(own).values()])
            )

        found = self.total("data", checksum(codes), work, self.part.counts)
        assert found.vector is not None
        rows = torch.split(found.vector, [math.prod(s) for s in shapes.values()])
        coded = {c: row.reshape(shapes[c]) for c, row in zip(shapes, rows, strict=True)}
        misfit = self.part.with_waveforms(whole.encode(codes, coded))
        own = shares([1.0] * len(codes), self.exchange.size)[self.exchange.rank]
        return self._made(
            misfit.select(own or [0]), misfit.survey, range(len(codes)), own
        )

    def draw(self, n_shots: int, *, seed: int = 0) -> ShardedMisfit:
        """Return the misfit of some drawn shots; see ``WaveformMisfit.draw``.

        They run on the ranks that have them.

        Args:
            n_shots: How many, none twice.
            seed: Of the choice.

        Raises:
            ValueError: If there are not so many.
        """
        there, waveforms = len(self.numbers), self.part.waveforms
        drawn = self.survey.draw(n_shots, seed=seed)
        return self._of(
            drawn,
            *self._part_of(drawn),
            weight=waveforms.weight * (there / n_shots),
            cost=waveforms.cost * n_shots / there,
        )

    def sample(self, size: int, *, seed: int = 0) -> ShardedMisfit:
        """Return the misfit of a sample of shots; see ``WaveformMisfit.sample``.

        Args:
            size: Encoded or drawn shots, at most as many as there are shots.
            seed: Of the signs, or of the choice of shots.

        Raises:
            ValueError: If there are not so many shots.
        """
        if self._of_all().why_not_encoded():
            return self.draw(size, seed=seed)
        return self.encode(random_codes(size, len(self.numbers), seed))

    def _of_all(self) -> Waveforms:
        """Return the misfit in its parts with the whole survey, without others' data."""
        return replace(self.part.waveforms, survey=self.survey)

    def _part_of(self, places: list[int]) -> tuple[WaveformMisfit, list[int]]:
        """Return this rank's part of some shots, and its places among them."""
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
        """Return another misfit on the same ranks, which counts here too."""
        made = ShardedMisfit(part, survey, numbers, own, self.exchange, self.traffic)
        made.counts = self.counts.child()
        return made

    # -- value, gradient and products -------------------------------------------

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
            BadShotError: If shots of any rank keep failing; the same on every rank.
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
            model: The unknowns, the same on every rank.

        Raises:
            BadShotError: If shots of any rank keep failing; the same on every rank.
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
                does not hold, if all ranks refuse it.
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

    def encoded_hessian(
        self,
        model: Model,
        kind: Kind = "gauss-newton",
        n_encoded: int = 1,
        *,
        space: ModelSpace | None = None,
        seed: int = 0,
    ) -> ShardedHessian:
        """Return an estimate of the Hessian from simultaneous sources; see ``encode``.

        Args:
            model: Where to linearise, the same on every rank.
            kind: ``"gauss-newton"`` or ``"exact"``.
            n_encoded: Encoded shots. Default 1.
            space: Flat coordinates. Default ``ModelSpace(model)``.
            seed: Of the signs.
        """
        codes = random_codes(n_encoded, len(self.numbers), seed)
        return self.encode(codes).hessian(model, kind, space=space)

    def sketch(
        self,
        model: Model,
        kind: Kind = "gauss-newton",
        *,
        space: ModelSpace | None = None,
        seed: int = 0,
    ) -> ShardedHessian:
        """Return a cheap estimate of the Hessian; see ``WaveformMisfit.sketch``."""
        can_encode = not self._of_all().why_not_encoded()
        size = 1 if can_encode else -(-len(self.numbers) // 3)
        return self.sample(size, seed=seed).hessian(model, kind, space=space)

    # -- sums over ranks --------------------------------------------------------

    def total(
        self,
        what: str,
        agreed: int,
        work: Callable[[], Part],
        own: Counts,
        counts: Counts | None = None,
    ) -> Part:
        """Return the sum of every rank's part, or raise what all ranks must raise.

        Args:
            what: One of ``SUMS``.
            agreed: Checksum of what all ranks must hold alike.
            work: Returns this rank's part.
            own: Counts the propagations of this rank's work.
            counts: Is told those of all ranks. Default the misfit's.

        Raises:
            BadShotError: If shots of any rank are bad: the same on every rank.
            RankError: If a rank failed, is lost, or differs.
        """
        counts = self.counts if counts is None else counts
        try:
            found = self.exchange.total(what, agreed, work, own=own, whole=counts)
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
        """Return the error that names the bad shots of all ranks; two messages.

        Args:
            error: What a sum raised here: on every rank its own, or a RankError.
        """
        own = error.__cause__ if isinstance(error, RankError) else error
        bad: list[Any] = []
        if isinstance(own, BadShotError):
            bad = [own.quantity, own.reasons, own.group, own.parameter, own.unit]
        told = [json.loads(text) for text in self.exchange.tell(json.dumps(bad))]
        told = [bad for bad in told if bad]
        if not told:
            return None
        quantity, _, group, parameter, unit = told[0]
        reasons = {int(n): why for _, some, *_ in told for n, why in some.items()}
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
        """Raise what ranks with shots raise for a model that does not fit."""
        with torch.no_grad():
            self.part.waveforms.models(copy_model(model))

    def _agreed(self, model: Model) -> int:
        return 0 if self.exchange.size == 1 else checksum(*_tensors(model))


def common_constants(misfit: WaveformMisfit, idle: bool, exchange: Exchange) -> Constants:
    """Return what normalises a misfit, from the data of all ranks.

    Args:
        misfit: Of this rank's shots.
        idle: True if it has none, and the misfit's data are not to be looked at.
        exchange: With the other ranks.

    Raises:
        ValueError: If constants of the data misfit do not merge.
        RankError: If a rank failed, or is lost.
    """
    data_misfit, observed = misfit.waveforms.data_misfit, misfit.waveforms.observed
    found: list[Constants] = []

    def work() -> Part:
        if not idle:
            data_misfit.check_merges(observed)
            found.append(data_misfit.take_constants(observed))
        return Part()

    exchange.total("constants", 0, work)
    told = exchange.tell(json.dumps([dict(some) for some in found]))
    constants = [some for text in told for some in json.loads(text)]
    return constants[0] if len(constants) == 1 else data_misfit.merged(constants)


def _tensors(model: Model) -> list[Tensor]:
    return list(named_tensors(model).values())
