"""The published dense script against matrix-free steps: time, memory, agreement.

At 600 cells all three of the script's steps; at 1200 and 2400 cells its first, since a
dense step costs a product for each cell.
"""

import pytest
import torch
from test_published import EIGENVALUES, LOSSES
from two_layer import matrix_free, published_newton, two_layer

import hvpopt

pytestmark = pytest.mark.filterwarnings("ignore::deepwave.ZeroWidthFaceWarning")

#: Cells to depth, width and steps.
SIZES = {600: (20, 30, 3), 1200: (30, 40, 1), 2400: (40, 60, 1)}


def warm_up(experiment):
    """Touch every code path and its memory once, so that neither side pays for it."""
    with hvpopt.HessianOperator(experiment.loss, experiment.v_start) as operator:
        operator @ torch.ones_like(experiment.v_start)
    operator = experiment.misfit.hessian(experiment.v_start)
    operator @ torch.ones_like(experiment.v_start)


@pytest.mark.parametrize("cells", SIZES)
def test_dense_against_matrix_free(benchmark, cells):
    ny, nx, steps = SIZES[cells]
    experiment = two_layer(ny, nx)
    warm_up(experiment)
    plain = matrix_free(
        "double backprop", experiment.loss, experiment.v_start, max_iter=steps
    )
    born = matrix_free("Born pass", experiment.misfit, experiment.v_start, max_iter=steps)
    dense, _ = benchmark.pedantic(
        published_newton, (experiment.loss, experiment.v_start, steps), rounds=1
    )
    for run in (plain, born):
        for ours, reference in zip(run.rows[1:], dense.rows[1:], strict=True):
            assert ours.loss == pytest.approx(reference.loss, rel=1e-3)
            assert ours.smallest_eigenvalue == pytest.approx(
                reference.smallest_eigenvalue, rel=1e-2
            )
    benchmark.extra_info.update(
        cells=cells,
        steps=steps,
        dense_seconds=dense.seconds,
        dense_peak_bytes=dense.peak_bytes,
        dense_losses=[row.loss for row in dense.rows],
        dense_eigenvalues=[row.smallest_eigenvalue for row in dense.rows[1:]],
        runs=[
            {
                "engine": run.name,
                "seconds": run.seconds,
                "peak_bytes": run.peak_bytes,
                "products": run.rows[-1].products,
                "losses": [row.loss for row in run.rows],
                "eigenvalues": [row.smallest_eigenvalue for row in run.rows[1:]],
            }
            for run in (plain, born)
        ],
    )


@pytest.mark.parametrize("solver", hvpopt.methods.shifted.SOLVERS)
def test_solvers(benchmark, solver):
    experiment = two_layer()
    warm_up(experiment)
    result = benchmark.pedantic(
        hvpopt.minimize,
        (experiment.misfit, experiment.v_start),
        {"method": hvpopt.ShiftedNewton(solver=solver), "max_iter": 3},
        rounds=1,
    )
    losses = [record.value for record in result.history]
    lowest = [record.smallest_eigenvalue for record in result.history[1:]]
    assert losses == pytest.approx(LOSSES, rel=1e-3)
    assert lowest == pytest.approx(EIGENVALUES, rel=1e-2)
    benchmark.extra_info.update(
        solver=solver,
        losses=losses,
        eigenvalues=lowest,
        **result.counts.as_dict(),
    )
