"""Forcing terms: the formulas of their papers, safeguards, floor and cap."""

import math

import pytest
import torch

from hvpopt.methods.forcing import (
    Constant,
    EisenstatWalker1,
    EisenstatWalker2,
    Forcing,
    ForcingFacts,
    SquareRoot,
    as_forcing,
)

ADAPTIVE = [EisenstatWalker1(), EisenstatWalker2(), SquareRoot()]


def after(forcing, *facts):
    state = forcing.start()
    for fact in facts:
        state = forcing.remember(state, fact)
    return forcing.tolerance(state)


@pytest.fixture
def norms(generator):
    before, now, linear = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    return 1.0 + before, 0.1 + 0.5 * now, 0.5 * linear


def test_constant_never_changes(norms):
    assert after(Constant(0.03), ForcingFacts(*norms)) == 0.03


def test_first_choice_measures_the_linear_models_miss(norms):
    before, now, linear = norms
    forcing = EisenstatWalker1(initial=0.01, floor=1e-12)
    expected = abs(now - linear) / before
    assert after(forcing, ForcingFacts(*norms)) == pytest.approx(expected, rel=1e-14)


def test_second_choice_measures_the_gradients_fall(norms):
    before, now, _ = norms
    forcing = EisenstatWalker2(0.7, 1.5, initial=0.01)
    expected = 0.7 * (now / before) ** 1.5
    assert after(forcing, ForcingFacts(*norms)) == pytest.approx(expected, rel=1e-14)


def test_square_root_measures_from_the_first_gradient():
    facts = [ForcingFacts(4.0, 2.0), ForcingFacts(2.0, 0.01)]
    assert after(SquareRoot(), *facts) == pytest.approx(math.sqrt(0.01 / 4), rel=1e-14)
    assert after(SquareRoot(), facts[0]) == 0.5, "the cap"


@pytest.mark.parametrize(
    ("forcing", "kept"),
    [
        (EisenstatWalker1(), 0.5 ** ((1 + math.sqrt(5)) / 2)),
        (EisenstatWalker2(), 0.9 * 0.5**2),
    ],
)
def test_safeguard_keeps_a_large_tolerance_from_collapsing(forcing, kept):
    lucky = ForcingFacts(1.0, 1e-6, 1e-6)
    assert kept > 0.1
    assert after(forcing, lucky) == pytest.approx(kept, rel=1e-14)
    # 0.9 · 0.2025² and 0.3257^1.618 are 0.04 and 0.16: only one safeguard still acts
    again = after(forcing, lucky, lucky)
    assert (again > 0.1) is isinstance(forcing, EisenstatWalker1)
    assert after(forcing, lucky, lucky, lucky) < 0.1


@pytest.mark.parametrize("forcing", ADAPTIVE)
def test_floor_and_cap_hold(forcing):
    exact = [ForcingFacts(10.0**-k, 0.0, 0.0) for k in range(8)]
    assert after(forcing, *exact) == forcing.floor
    assert after(forcing, ForcingFacts(1e-200, 1e200, 0.0)) == forcing.cap


@pytest.mark.parametrize("forcing", ADAPTIVE)
@pytest.mark.parametrize("unknown", [math.nan, math.inf])
def test_what_is_not_finite_asks_for_no_accuracy(forcing, unknown):
    assert after(forcing, ForcingFacts(1.0, unknown, unknown)) == forcing.cap


def test_unknown_linear_residual_is_no_reason_to_solve_exactly():
    assert after(EisenstatWalker1(), ForcingFacts(1.0, 0.1)) == 0.9


@pytest.mark.parametrize("forcing", ADAPTIVE)
def test_zero_gradient_divides_nothing(forcing):
    assert 0.0 < after(forcing, ForcingFacts(0.0, 0.0, 0.0)) < 1.0


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
        lambda: EisenstatWalker1(cap=1.0),
        lambda: EisenstatWalker1(floor=0.0),
        lambda: EisenstatWalker1(initial=0.95),
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
