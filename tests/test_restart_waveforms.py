"""Waveform runs that are stopped and resumed."""

import torch
from waves import arguments, models_of, one_thread

import hvpopt
from hvpopt.fwi import Survey, WaveformMisfit

__all__ = ["one_thread"]


def test_resumed_run_is_bitwise_the_uninterrupted_one(generator, tmp_path):
    survey = Survey("scalar", **arguments("scalar", 3))
    observed = survey.simulate(models_of("scalar", generator))
    (start,) = models_of("scalar", generator)

    def run(**options):
        misfit = WaveformMisfit(survey, observed)
        return hvpopt.minimize(
            misfit,
            start,
            method=hvpopt.TrustRegionNewton("gauss-newton", tol=0.3),
            lower=1550.0,
            upper=2250.0,
            **options,
        )

    whole = run(max_iter=4)
    path = tmp_path / "state"
    run(max_iter=2, checkpoint=path)
    misfit = WaveformMisfit(survey, observed)
    resumed = hvpopt.resume(
        path,
        misfit,
        method=hvpopt.TrustRegionNewton("gauss-newton", tol=0.3),
        max_iter=4,
    )
    assert torch.equal(resumed.x, whole.x)
    assert resumed.counts == whole.counts
