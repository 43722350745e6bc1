"""Waveform runs that are stopped and go on."""

import pytest
import torch
from waves import arguments, models_of, one_thread

import hvpopt
from hvpopt.fwi import Survey, WaveformMisfit

__all__ = ["one_thread"]

METHODS = {
    "trust region": lambda: hvpopt.TrustRegionNewton(hessian="gauss-newton", tol=0.3),
    # its probes are of encoded shots
    "quasi-Newton": lambda: hvpopt.QuasiNewton(refresh=2),
}


@pytest.mark.parametrize("method", METHODS)
def test_resumed_run_is_bitwise_the_uninterrupted_one(method, generator, tmp_path):
    survey = Survey("scalar", **arguments("scalar", 3))
    observed = survey.simulate(models_of("scalar", generator))
    (start,) = models_of("scalar", generator)

    def run(**options):
        return hvpopt.minimize(
            WaveformMisfit(survey, observed),
            start,
            method=METHODS[method](),
            lower=1550.0,
            upper=2250.0,
            **options,
        )

    whole = run(max_iter=4)
    path = tmp_path / "state"
    run(max_iter=2, checkpoint=path)
    resumed = run(max_iter=4, checkpoint=path)
    assert torch.equal(resumed.x, whole.x)
    assert resumed.counts == whole.counts
