"""Information of shots and of sets of shots, against dense log-determinants."""

from itertools import combinations

import pytest
import torch
from tolerances import SOLVE

from hvpopt import MatrixOperator
from hvpopt.analysis import MaternPrior, Noise, shot_information

F64 = torch.float64
SHOTS, ROWS, SHAPE, STD = 5, 4, (5, 6), 0.3


def survey_of(generator):
    """Per-shot Jacobians, their Hessians, prior, noise, and I + A of a set."""
    prior = MaternPrior(SHAPE, length=2.0, std=1.5)
    jacobians = torch.randn(SHOTS, ROWS, prior.size, generator=generator, dtype=F64)
    jacobians *= torch.logspace(0, -1.5, SHOTS, dtype=F64)[:, None, None]
    noise = Noise(STD, SHOTS * ROWS)
    hessians = [MatrixOperator(2.0 / noise.n_samples * j.mT @ j) for j in jacobians]
    factor = prior.factor(torch.eye(prior.latent_size, dtype=F64))

    def information(shots):
        rows = torch.cat([jacobians[s] for s in shots]) @ factor / STD
        eye = torch.eye(rows.shape[1], dtype=F64)
        return 0.5 * float(torch.logdet(eye + rows.mT @ rows))

    traces = torch.stack([(j @ factor / STD).square().sum() for j in jacobians])
    return hessians, prior, noise, information, traces


def test_whole_space_gives_every_set_exactly(generator, seed):
    hessians, prior, noise, information, _ = survey_of(generator)
    found = shot_information(hessians, prior, noise, n_products=30, seed=seed)
    for size in range(1, SHOTS + 1):
        for shots in combinations(range(SHOTS), size):
            assert found.information(shots) == pytest.approx(information(shots), rel=1e-7)
    everything = information(range(SHOTS))
    for s in range(SHOTS):
        rest = [other for other in range(SHOTS) if other != s]
        assert float(found.loss[s]) == pytest.approx(
            everything - information(rest), rel=1e-6, abs=1e-7
        )
    assert sorted(found.order) == list(range(SHOTS))
    for k in range(1, SHOTS + 1):
        assert float(found.gain[k - 1]) == pytest.approx(
            information(found.order[:k]), rel=1e-7
        )
        best = max(
            information([*found.order[: k - 1], s])
            for s in range(SHOTS)
            if s not in found.order[: k - 1]
        )
        assert float(found.gain[k - 1]) == pytest.approx(best, rel=1e-7)


@pytest.mark.parametrize("n_products", [1, 4, 9])
def test_few_products_bound_the_information_on_both_sides(n_products, generator, seed):
    hessians, prior, noise, information, traces = survey_of(generator)
    found = shot_information(
        hessians, prior, noise, n_products=n_products, traces=traces, seed=seed
    )
    assert found.n_products == n_products * SHOTS
    assert [h.counts.products for h in hessians] == [n_products] * SHOTS
    for s in range(SHOTS):
        assert float(found.lower[s]) <= information([s]) * (1 + SOLVE)
        assert float(found.upper[s]) >= information([s]) * (1 - SOLVE)
    for k in range(1, SHOTS + 1):
        true = information(found.order[:k])
        assert float(found.gain[k - 1]) <= true * (1 + SOLVE)
        assert float(found.gain_upper[k - 1]) >= true * (1 - SOLVE)


def test_bad_input_is_refused(generator):
    hessians, prior, noise, _, traces = survey_of(generator)
    with pytest.raises(ValueError, match="shots"):
        shot_information([], prior, noise)
    with pytest.raises(TypeError, match="noise"):
        shot_information(hessians, prior, None)
    with pytest.raises(ValueError, match="rows"):
        shot_information(hessians, MaternPrior((3,), length=1.0, std=1.0), noise)
    with pytest.raises(ValueError, match="traces"):
        shot_information(hessians, prior, noise, traces=traces[:2])
