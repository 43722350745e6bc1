"""Forcing terms: the formulas of their papers, safeguards, floor and cap."""

import math

import pytest
import torch

from hvpopt.methods.forcing import (
    Constant,
    EisenstatWalker2,
    Forcing,
    SquareRoot,
    as_forcing,
)

ADAPTIVE = [EisenstatWalker2(), SquareRoot()]


def after(forcing, *facts):
    state = forcing.start()
    for before, now in facts:
        state = forcing.update(state, before, now)
    return forcing.tolerance(state)


@pytest.fixture
def norms(generator):
    before, now = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return 1.0 + before, 0.1 + 0.5 * now


def test_constant_never_changes(norms):
    assert after(Constant(0.03), norms) == 0.03


def test_second_choice_measures_the_gradients_fall(norms):
    before, now = norms
    forcing = EisenstatWalker2(0.7, 1.5, initial=0.01)
    expected = 0.7 * (now / before) ** 1.5
    assert after(forcing, norms) == pytest.approx(expected, rel=1e-14)


def test_square_root_measures_from_the_first_gradient():
    facts = [(4.0, 2.0), (2.0, 0.01)]
    assert after(SquareRoot(), *facts) == pytest.approx(math.sqrt(0.01 / 4), rel=1e-14)
    assert after(SquareRoot(), facts[0]) == 0.5, "the cap"


def test_safeguard_keeps_a_large_tolerance_from_collapsing():
    forcing, lucky = EisenstatWalker2(), (1.0, 1e-6)
    kept = 0.9 * 0.5**2
    assert kept > 0.1
    assert after(forcing, lucky) == pytest.approx(kept, rel=1e-14)
    # 0.9 · 0.225² is 0.046: the safeguard no longer acts
    assert after(forcing, lucky, lucky) < 0.1


@pytest.mark.parametrize("forcing", ADAPTIVE)
def test_floor_and_cap_hold(forcing):
    exact = [(10.0**-k, 0.0) for k in range(8)]
    assert after(forcing, *exact) == forcing.floor
    assert after(forcing, (1e-200, 1e200)) <= forcing.cap


def test_a_gradient_that_grew_asks_for_no_less_accuracy():
    forcing, fell = EisenstatWalker2(), (1.0, 0.1)
    last = after(forcing, fell, fell)
    assert last < 0.1
    assert after(forcing, fell, fell, (1.0, 7.0)) == last
    slow = (1.0, 0.99)  # asks for 0.9 times 0.98
    assert after(forcing, slow) > 0.8
    assert after(forcing, slow, (1e-200, 1e200)) == 0.5


@pytest.mark.parametrize("forcing", ADAPTIVE)
@pytest.mark.parametrize("unknown", [math.nan, math.inf])
def test_what_is_not_finite_asks_for_no_accuracy(forcing, unknown):
    assert after(forcing, (1.0, unknown)) == forcing.cap


@pytest.mark.parametrize("forcing", ADAPTIVE)
def test_zero_gradient_divides_nothing(forcing):
    assert 0.0 < after(forcing, (0.0, 0.0)) < 1.0


def test_a_number_is_a_constant_and_a_forcing_itself():
    assert as_forcing(0.1) == Constant(0.1)
    mine = SquareRoot()
    assert as_forcing(mine) is mine
    assert isinstance(mine, Forcing)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(0.0),
        lambda: Constant(math.nan),
        lambda: as_forcing(1.0),
        lambda: EisenstatWalker2(cap=1.0),
        lambda: EisenstatWalker2(floor=0.0),
        lambda: EisenstatWalker2(initial=0.95),
        lambda: EisenstatWalker2(0.0),
        lambda: EisenstatWalker2(alpha=1.0),
        lambda: EisenstatWalker2(alpha=2.5),
        lambda: SquareRoot(cap=0.1, floor=0.2),
    ],
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"(is|lie)"):
        make()


@pytest.mark.parametrize("wrong", ["0.1", True, None, SquareRoot])
def test_what_is_no_forcing_term_is_refused(wrong):
    with pytest.raises(TypeError, match="EisenstatWalker2"):
        as_forcing(wrong)
