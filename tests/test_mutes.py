"""Mutes, offset limits and tapers: sample by sample, and what they refuse."""

import math

import deepwave
import pytest
import torch
from transformed import KINDS, T_END, made_with, streamer, times, transforms_of
from waves import DT, NT, SHAPE, SPACING, D, arguments, one_thread, rand, relative

from hvpopt.fwi import (
    CosineTaper,
    LinearMoveout,
    Mute,
    OffsetLimits,
    RecordedSamples,
    Survey,
)

__all__ = ["one_thread"]


def half_cosine(x, length):
    """From 0 at 0 to 1 at a length, as a person writes it."""
    if length == 0:
        return 1.0 if x >= 0 else 0.0
    return 0.5 * (1 - math.cos(math.pi * min(max(x / length, 0.0), 1.0)))


def distances(given):
    """Offsets by loops over the arguments of a survey."""
    (channel,) = given["receivers"]
    sources = next(iter(given["sources"].values()))[1]
    cells, spacing = given["receivers"][channel], given["grid_spacing"]
    return [
        [
            math.hypot(
                *(
                    spacing[a] * float(cell[a] - sources[shot][:, a].double().mean())
                    for a in range(2)
                )
            )
            for cell in cells[shot]
        ]
        for shot in range(len(cells))
    ]


def test_offsets_are_distances_in_metres():
    given = streamer()
    found = Survey("scalar", **given).offsets()["u"]
    assert relative(found, torch.tensor(distances(given), dtype=D)) < 1e-15


def test_offsets_of_several_sources_and_of_selected_shots():
    given = streamer()
    amplitudes, cells = given["sources"]["u"]
    both = torch.cat([cells, cells + 2], 1)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    given["sources"] = {"u": (amplitudes.repeat(1, 2, 1), both, mask)}
    there = Survey("scalar", **given)
    single_source = {**given, "sources": {"u": (amplitudes, cells)}}
    offsets = there.offsets()["u"]
    assert (
        relative(offsets[1], torch.tensor(distances(single_source)[1], dtype=D)) < 1e-15
    )
    pairs = {**given, "sources": {"u": (amplitudes, both)}}
    assert relative(offsets[2], torch.tensor(distances(pairs)[2], dtype=D)) < 1e-15
    assert torch.equal(there.select([2, 0]).offsets()["u"], offsets[[2, 0]])


def test_offsets_of_hicks_points_are_to_the_places_asked_for():
    given = arguments("scalar", 2)
    places = torch.tensor([[[5.25, 6.5], [5.5, 9.0]], [[5.0, 6.25], [5.5, 9.5]]], dtype=D)
    at = torch.tensor([[[5.5, 4.25]], [[6.25, 4.0]]], dtype=D)
    hicks = [
        deepwave.Hicks(x, halfwidth=2, model_shape=SHAPE, dtype=D) for x in (places, at)
    ]
    amplitudes = given["sources"]["u"][0]
    there = Survey(
        "scalar",
        **{
            **given,
            "sources": {"u": (amplitudes, hicks[1])},
            "receivers": {"u": hicks[0]},
        },
    )
    plain_given = {
        **given,
        "sources": {"u": (amplitudes, at)},
        "receivers": {"u": places},
    }
    expected = torch.tensor(distances(plain_given), dtype=D)
    assert relative(there.offsets()["u"], expected) < 1e-15
    assert relative(there.select([1]).offsets()["u"], expected[1:]) < 1e-15


@pytest.mark.parametrize("kind", KINDS[:6])
def test_factors_sample_by_sample(kind, generator):
    given = streamer()
    there = Survey("scalar", **given)
    transform = transforms_of(generator, 3)[kind]
    offsets = distances(given)

    def factor(shot, receiver, t):
        if isinstance(transform, Mute):
            found = 1.0
            for limit, sign in ((transform.top, 1), (transform.bottom, -1)):
                if isinstance(limit, LinearMoveout):
                    limit = limit.time + offsets[shot][receiver] / limit.velocity
                elif isinstance(limit, torch.Tensor):
                    limit = float(
                        limit[receiver] if limit.ndim == 1 else limit[shot, receiver]
                    )
                if limit is not None:
                    found *= half_cosine(sign * (t - limit), transform.taper)
            return found
        if isinstance(transform, OffsetLimits):
            x = offsets[shot][receiver]
            rising = half_cosine(x - transform.nearest, transform.taper)
            return rising * half_cosine(transform.farthest - x, transform.taper)
        return (
            half_cosine(t, transform.start)
            * half_cosine(T_END - t, transform.end)
            * half_cosine(receiver + 1, transform.first + 1)
            * half_cosine(4 - receiver, transform.last + 1)
        )

    expected = torch.tensor(
        [[[factor(s, r, i * DT) for i in range(NT)] for r in range(4)] for s in range(3)],
        dtype=D,
    )
    data = {"u": rand((3, 4, NT), generator, -1)}
    step = transform.fit(there)
    got = step(data, None)["u"]
    # at a ramp's ends the cosine is flat: t and i * DT may differ by their rounding
    assert (got - expected * data["u"]).abs().max() < 1e-12
    assert 0 < float(expected.mean()) < 1
    rows = {"u": data["u"][[2, 0]]}
    assert torch.equal(step(rows, [2, 0])["u"], got[[2, 0]])


def test_infinite_times_mute_a_trace_or_leave_it(generator):
    there = Survey("scalar", **streamer())
    for taper in (0.0, 0.002):
        top = times(generator, 3)
        top[1, 2], top[0, 3] = math.inf, -math.inf
        data = {"u": rand((3, 4, NT), generator, 0.5)}
        got = Mute(top=top, taper=taper).fit(there)(data, None)["u"]
        assert not got[1, 2].any()
        assert torch.equal(got[0, 3], data["u"][0, 3])


def test_grid_spacing_of_the_offsets_is_the_surveys():
    given = arguments("scalar", 1)
    assert given["grid_spacing"] == [SPACING, SPACING + 1]
    nearest = float(Survey("scalar", **given).offsets()["u"].min())
    assert nearest == pytest.approx(math.hypot(2 * SPACING, 1 * (SPACING + 1)))


# -- bad input -------------------------------------------------------------------------

NAN = torch.full((2, 4), math.nan)
WRONG = {
    "mute without time": (lambda: Mute(), ValueError, "give top=, bottom= or both"),
    "mute text": (lambda: Mute("0.3"), TypeError, "is a str; give seconds as a number"),
    "mute nan": (lambda: Mute(top=NAN), ValueError, "8 NaN; give inf"),
    "mute integers": (lambda: Mute(top=torch.ones(2, 4).int()), TypeError, "int32; give"),
    "mute negative taper": (lambda: Mute(0.1, taper=-1), ValueError, "taper is -1"),
    "mute ramps": (
        lambda: Mute(0.1, 0.2, taper=0.3),
        ValueError,
        r"two tapers of 0.3 s do not fit in a window of 0.1 s",
    ),
    "offset ramps": (
        lambda: OffsetLimits(100.0, 200.0, taper=500.0),
        ValueError,
        r"two tapers of 500 m do not fit in a range of offsets of 100 m",
    ),
    "recorded text": (
        lambda: RecordedSamples("all"),
        TypeError,
        "recorded is a str; pass a tensor, or one by channel",
    ),
    "recorded shape": (
        lambda: made_with(RecordedSamples(torch.ones(3))),
        ValueError,
        r"recorded has shape \(3,\) for channel 'u'; expected \(72,\) or \(2, 4, 72\)",
    ),
    "recorded channel": (
        lambda: made_with(RecordedSamples({"p": torch.ones(3)})),
        ValueError,
        r"recorded has channels \['p'\]; the survey records \['u'\]",
    ),
    "mute shape": (
        lambda: made_with(Mute(top=torch.zeros(3, 4))),
        ValueError,
        r"top of the mute has shape \(3, 4\).*expected \(4,\) or \(2, 4\)",
    ),
    "mute channel": (
        lambda: made_with(Mute(bottom={"p": 0.3})),
        ValueError,
        r"bottom of the mute has channels \['p'\]; the survey records \['u'\]",
    ),
    "mute in milliseconds": (
        lambda: made_with(Mute(top=300.0)),
        ValueError,
        "the mute leaves nothing.*times are in seconds",
    ),
    "moveout slowness": (lambda: LinearMoveout(0.0), ValueError, "velocity is 0"),
    "moveout text": (lambda: LinearMoveout("2"), TypeError, "velocity is '2'; pass"),
    "moveout time": (lambda: LinearMoveout(2e3, math.nan), ValueError, "time is nan"),
    "offsets none": (lambda: OffsetLimits(), ValueError, "give nearest=, farthest="),
    "offsets order": (lambda: OffsetLimits(90, 30), ValueError, "nearest is 90 m and"),
    "offsets negative": (lambda: OffsetLimits(-1.0), ValueError, "nearest is -1"),
    "offsets text": (lambda: OffsetLimits(farthest="3"), TypeError, "farthest is '3'"),
    "offsets in kilometres": (
        lambda: made_with(OffsetLimits(farthest=0.003)),
        ValueError,
        "offset limits leaves nothing.*offsets in metres",
    ),
    "taper none": (lambda: CosineTaper(), ValueError, "needs a length"),
    "taper traces": (lambda: CosineTaper(first=1.5), ValueError, "first is 1.5; it"),
    "taper in milliseconds": (
        lambda: made_with(CosineTaper(end=4.0)),
        ValueError,
        "do not fit in a record of 0.0355 s",
    ),
    "taper too wide": (
        lambda: made_with(CosineTaper(first=3, last=2)),
        ValueError,
        "3 and 2 traces do not fit in 4 receivers",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        call()
