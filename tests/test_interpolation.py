"""Interpolation off the grid: against deepwave's own, and a field that is known."""

import math
import warnings

import deepwave
import pytest
import torch
from waves import D, rand

from hvpopt.fwi.survey.interpolation import Interpolation

pytestmark = pytest.mark.filterwarnings("ignore::deepwave.MigrationWarning")

SIZE = (24, 26, 25)


def places(dimensions, generator, shots=3, points=5):
    """Random places in sixty-fourths of a cell, some of them on nodes and shared."""
    low, high = 4 * 64, 19 * 64
    found = torch.randint(low, high, (shots, points, dimensions), generator=generator)
    found[1, 0] = found[0, 0]
    found[0, 2] = found[0, 1] // 64 * 64
    return found.to(D) / 64


def made(where, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return deepwave.Hicks(where, dtype=D, **options)


OPTIONS = {
    "plain": {},
    "narrow": {"halfwidth": 2},
    "staggered": {"offset": [0.5, 0.0]},
    "free": {"free_surfaces": [True, False, False, False], "model_shape": SIZE[:2]},
    "rigid": {"rigid_surfaces": [False, False, True, False], "model_shape": SIZE[:2]},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("ours", ["of", "at"])
def test_as_deepwave_interpolates(ours, name, generator):
    options = dict(OPTIONS[name])
    where = places(2, generator)
    if name in ("free", "rigid"):
        where[2] -= 3.5  # across the face
    hicks = made(where, **options)
    if ours == "of":
        mine = Interpolation.of(hicks)
        assert torch.equal(mine.cells, hicks.get_locations())
    else:
        options["shape"] = options.pop("model_shape", None)
        mine = Interpolation.at(where, **options)
    assert torch.equal(mine.locations, where)
    field = rand((3, *SIZE[:2], 7), generator, -1)
    expected = hicks.receiver(recorded(field, hicks.get_locations()))
    found = mine.gather(recorded(field, mine.cells), range(3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    amplitudes = rand((3, 5, 7), generator, -1)
    torch.testing.assert_close(
        injected(mine.spread(amplitudes), mine.cells),
        injected(hicks.source(amplitudes), hicks.get_locations()),
        rtol=0,
        atol=1e-13,
    )


def recorded(field, cells):
    """Return a field ``[shot, y, x, time]`` at cells, zero where one is ignored."""
    live = cells != deepwave.IGNORE_LOCATION
    y, x = torch.where(live, cells, 0).unbind(-1)
    return field[torch.arange(3)[:, None], y, x] * live.all(-1)[..., None]


def injected(amplitudes, cells):
    """Return the field ``[shot, y, x, time]`` of amplitudes at cells."""
    field = torch.zeros(3, *SIZE[:2], amplitudes.shape[2], dtype=D)
    for shot in range(3):
        for amplitude, cell in zip(amplitudes[shot], cells[shot], strict=True):
            if cell[0] != deepwave.IGNORE_LOCATION:
                field[shot, cell[0], cell[1]] += amplitude
    return field


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_field_that_is_known(dimensions, generator):
    """A plane wave of eight cells: the window's sum of it is right to 0.43 % an axis."""
    tolerance = 1.0043**dimensions - 1
    where = places(dimensions, generator)
    mine = Interpolation.at(where)
    wave = torch.randn(dimensions, generator=generator, dtype=D)
    wave *= 2 * math.pi / 8 / wave.norm()

    def field(cells):
        known = (cells.double() @ wave).cos()
        live = (cells != deepwave.IGNORE_LOCATION).all(-1)
        return torch.where(live, known, 0.0)[..., None]

    found = mine.gather(field(mine.cells), range(3))
    torch.testing.assert_close(
        found[..., 0], (where @ wave).cos(), rtol=0, atol=tolerance
    )


def test_every_derivative_is_the_matrix(generator):
    mine = Interpolation.at(places(2, generator, shots=2, points=3), halfwidth=1)
    data = rand((2, mine.cells.shape[1], 2), generator, -1).requires_grad_()

    def gathered(x):
        return mine.gather(x, [1, 0])

    assert torch.autograd.gradcheck(gathered, data)
    assert torch.autograd.gradgradcheck(lambda x: gathered(x).square(), data)


def test_points_that_do_not_exist_record_nothing(generator):
    where = places(2, generator)
    exists = torch.ones(3, 5, dtype=torch.bool)
    exists[0, 1:], exists[2, 3] = False, False
    where[0, 4] = math.nan
    mine = Interpolation.at(where, exists)
    whole = Interpolation.at(where[1:])
    field = rand((3, *SIZE[:2], 4), generator, -1)
    found = mine.gather(recorded(field, mine.cells), range(3))
    assert float(found[~exists].abs().max()) == 0
    assert bool((mine.locations[~exists] == deepwave.IGNORE_LOCATION).all())
    live = (whole.cells != deepwave.IGNORE_LOCATION).all(-1)
    y, x = torch.where(live[..., None], whole.cells, 0).unbind(-1)
    alone = field[torch.arange(1, 3)[:, None], y, x] * live[..., None]
    expected = whole.gather(alone, range(2))
    torch.testing.assert_close(found[1], expected[0], rtol=0, atol=1e-14)


def test_single_precision_data_stay_so(generator):
    mine = Interpolation.at(places(2, generator))
    data = torch.ones(3, mine.cells.shape[1], 2)
    assert mine.gather(data, range(3)).dtype == torch.float32
    assert mine.spread(torch.ones(3, 5, 2)).dtype == torch.float32
