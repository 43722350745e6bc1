"""shard: shares out the shots of a waveform misfit over ranks."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from hvpopt import checks
from hvpopt.distributed._checksum import checksum
from hvpopt.distributed._exchange import Exchange, Part
from hvpopt.distributed._shares import shares
from hvpopt.distributed.ranks import current_exchange
from hvpopt.distributed.sharded import ShardedMisfit, common_constants
from hvpopt.fwi.misfit.waveform_misfit import WaveformMisfit
from hvpopt.fwi.survey.survey import Survey
from hvpopt.model.counts import Counts
from hvpopt.model.tensors import Model, copy_model, named_tensors

logger = logging.getLogger(__name__)


def own_shots(n_shots: int, costs: Sequence[float] | None = None) -> list[int]:
    """Return the shots of this rank in a survey, so that it can load only their data.

    The number of shots need not be a multiple of that of ranks. No message is sent.

    Args:
        n_shots: Number of shots of the survey.
        costs: Relative cost of each shot, the same on every rank. Default equal costs.

    Returns:
        Ascending indices; empty on the last ranks if there are more ranks than shots.

    Raises:
        TypeError: If costs are not numbers.
        ValueError: If costs are not positive, or not one for each shot.
    """
    n_shots = checks.integer("n_shots", n_shots, least=1)
    exchange = current_exchange()
    return shares(_checked_costs(costs, n_shots), exchange.size)[exchange.rank]


def shard(
    misfit: WaveformMisfit,
    model: Model | None = None,
    *,
    costs: Sequence[float] | None = None,
    survey: Survey | None = None,
    shots: Sequence[int] | None = None,
) -> ShardedMisfit:
    """Return a waveform misfit whose shots are shared out over the ranks.

    Call it on every rank, with the same misfit of the whole survey: each rank keeps a
    copy of the data of its own shots only. The number of shots need not be a multiple of
    that of ranks; if there are more ranks than shots, the last ranks are idle and a
    warning is logged. Without a process group it behaves like the misfit itself.

    A rank need not load the data of the others. Then pass the misfit of its own shots,
    with the survey of all shots and the indices of its own:

        shots = distributed.own_shots(survey.n_shots)
        own = fwi.WaveformMisfit(survey.select(shots), load(shots))
        misfit = distributed.shard(own, survey=survey, shots=shots)

    The constants that normalise the misfit are then merged over ranks. This works for
    every data misfit of this package, and for others whose ``constants`` are sums over
    shots or whose ``merged`` merges them. Weights are those of the rank's own shots.
    Every rank needs at least one shot, and every shot must be on exactly one rank.

    Args:
        misfit: The misfit of the whole survey, whose constants and weights remain those
            of all shots; or, with ``survey`` and ``shots``, of this rank's own shots.
        model: The model at which to measure the seconds of each shot, by one value on
            one of the ranks, to balance the ranks. Default none: costs are equal.
        costs: Relative cost of each shot, instead of a measurement. Default equal costs.
        survey: The survey of all shots. Default that of ``misfit``.
        shots: Indices in ``survey`` of the misfit's shots, in their order. Default all.

    Returns:
        An objective, summed over ranks.

    Raises:
        TypeError: If ``misfit`` is not a WaveformMisfit, or costs are not numbers.
        ValueError: For costs that do not fit; a survey with ``survey_pad`` on several
            ranks, whose waves depend on which shots run together; own shots that do not
            fit the survey or do not cover it.
        RankError: If ranks pass different misfits, or one failed or is lost.
    """
    if not isinstance(misfit, WaveformMisfit):
        raise TypeError(
            f"shard() takes a WaveformMisfit, got {type(misfit).__name__}; of a sum "
            "shard the waveform terms and add the others, which run on every rank"
        )
    exchange = current_exchange()
    if exchange.size > 1 and misfit.survey.options.get("survey_pad") is not None:
        raise ValueError(
            "a survey with survey_pad cannot be shared out: its waves depend on which "
            "shots run together; cut the models instead"
        )
    if costs is not None and model is not None:
        raise ValueError("give costs, or a model to measure them at, not both")
    if (survey is None) != (shots is None):
        raise ValueError("give survey and shots together, for a misfit of own shots")
    if survey is not None and shots is not None:
        if costs is not None or model is not None:
            raise ValueError(
                "own shots have been shared out already; give costs to own_shots()"
            )
        return _of_own(misfit, survey, list(shots), exchange)
    return _of_whole(
        misfit, model, _checked_costs(costs, misfit.survey.n_shots), exchange
    )


def _of_whole(
    misfit: WaveformMisfit, model: Model | None, costs: list[float], exchange: Exchange
) -> ShardedMisfit:
    n_shots, size, rank = len(costs), exchange.size, exchange.rank
    counts = Counts()
    if size > 1:
        exchange.total("shots", checksum(*misfit.waveforms.observed.values()), Part)
        if model is not None:
            costs = _measured(misfit, model, exchange, counts)
    if size > n_shots and rank == 0:
        logger.warning("%d of %d ranks have no shot and stay idle", size - n_shots, size)
    own = shares(costs, size)[rank]
    part = misfit.select(own or [0])
    if size > 1:  # a view would hold the memory of all shots' data
        rows = {channel: d.clone() for channel, d in part.waveforms.observed.items()}
        part = part.with_waveforms(replace(part.waveforms, observed=rows))
    numbers = misfit.waveforms.shots.numbers
    sharded = ShardedMisfit(part, misfit.survey, numbers, own, exchange)
    sharded.counts.tally(**counts.as_dict())
    return sharded


def _of_own(
    misfit: WaveformMisfit, survey: Survey, shots: list[int], exchange: Exchange
) -> ShardedMisfit:
    checks.instance("survey", survey, Survey, "pass the whole hvpopt.fwi.Survey")

    def work() -> Part:
        expected = survey.select(shots).data_shapes
        if misfit.survey.data_shapes != expected:
            raise ValueError(
                f"the misfit's survey records {misfit.survey.data_shapes}; shots {shots} "
                f"of the whole one record {expected}"
            )
        return Part()

    exchange.total("shots", survey.n_shots, work)
    shots = [int(shot) for shot in shots]
    held = [json.loads(text) for text in exchange.tell(json.dumps(shots))]
    every = sorted(shot for some in held for shot in some)
    if every != list(range(survey.n_shots)):
        raise ValueError(
            f"ranks have shots {held}; each of the {survey.n_shots} must be on one rank"
        )
    waveforms = replace(
        misfit.waveforms,
        constants=common_constants(misfit, False, exchange),
        shots=misfit.waveforms.shots.renamed(shots),
    )
    part = misfit.with_waveforms(waveforms)
    return ShardedMisfit(part, survey, range(survey.n_shots), shots, exchange)


def _measured(
    misfit: WaveformMisfit, model: Model, exchange: Exchange, counts: Counts
) -> list[float]:
    """Return the seconds of each shot's value, each measured on one rank.

    This takes one propagation a shot, and one more on each rank, since the first value
    includes the time to load libraries.
    """
    n_shots, own = misfit.survey.n_shots, Counts()

    def work() -> Part:
        seconds = torch.zeros(n_shots, dtype=torch.float64)
        mine = shares([1.0] * n_shots, exchange.size)[exchange.rank]
        with torch.no_grad():
            models = misfit.waveforms.models(copy_model(model))
            for shot in [*mine[:1], *mine]:
                began = time.perf_counter()
                own.tally(propagations=1)
                float(misfit.waveforms.loss(models, [shot]))
                seconds[shot] = time.perf_counter() - began
        return Part(0.0, seconds)

    agreed = checksum(*named_tensors(model).values())
    total = exchange.total("costs", agreed, work, own=own, total=counts)
    assert total.vector is not None
    return [float(s) for s in total.vector.clamp(min=1e-9)]


def _checked_costs(costs: Sequence[float] | None, n_shots: int) -> list[float]:
    given = [1.0] * n_shots
    if costs is not None:
        given = [float(c) for c in checks.numbers_of("costs", costs).reshape(-1)]
    if len(given) != n_shots or not all(0 < c < math.inf for c in given):
        raise ValueError(f"costs must be {n_shots} positive numbers, one for each shot")
    return given
