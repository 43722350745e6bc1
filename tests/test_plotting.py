"""Pictures of what the data say: that they show the numbers they are given."""

import math

import numpy as np
import pytest
import torch
from matplotlib.collections import EllipseCollection

from hvpopt import IterationRecord, MatrixOperator, ModelSpace, plotting
from hvpopt.analysis.point_spread import point_spread
from hvpopt.analysis.resolution import cross_talk, resolution_lengths
from hvpopt.analysis.responses import random_probes

F64 = torch.float64
SHAPE = (8, 10)


def gaussian_operator(n_parameters=1):
    y, x = torch.meshgrid(*(torch.arange(n, dtype=F64) for n in SHAPE), indexing="ij")
    at = torch.stack([y.reshape(-1), x.reshape(-1)], 1)
    gaps = at[:, None] - at[None]
    one = torch.exp(-0.5 * ((gaps[..., 0] / 0.9) ** 2 + (gaps[..., 1] / 1.5) ** 2))
    blocks = torch.eye(n_parameters, dtype=F64) + 0.3
    return MatrixOperator(torch.kron(blocks, one))


SPACE = ModelSpace(torch.zeros(SHAPE, dtype=F64))
PAIR = ModelSpace({name: torch.zeros(SHAPE, dtype=F64) for name in ("vp", "vs")})


def drawn(figure):
    """Render a figure, so that what is broken in it raises."""
    figure.draw_without_rendering()
    return figure


def images(figure):
    return [
        np.ma.filled(a.images[0].get_array(), np.nan) for a in figure.axes if a.images
    ]


def test_eigenvalues_fall_and_those_above_the_prior_are_counted():
    values = [0.5, 100.0, -1.0, 3.0, 1e-3]
    figure = drawn(plotting.plot_eigenvalues(values, residuals=[0.1] * 5))
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata().tolist() == [100.0, 3.0, 0.5, 1e-3]
    assert axes.get_title() == "eigenvalues: 2 above the prior's line (1 not positive)"
    assert axes.get_yscale() == "log"
    bare = drawn(plotting.plot_eigenvalues(torch.tensor([2.0, 1.0]), prior=None))
    assert bare.axes[0].get_title() == "eigenvalues"


@pytest.mark.parametrize("n_runs", [1, 3, 6])
def test_the_legend_of_convergence_covers_no_curve(n_runs):
    histories = {
        f"run {k}, with a long name": [
            IterationRecord(i, 10.0 ** (-i * (k + 1)), seconds=float(i)) for i in range(4)
        ]
        for k in range(n_runs)
    }
    figure = drawn(plotting.plot_convergence(histories))
    (axes,) = figure.axes
    legend = axes.get_legend().get_window_extent()
    assert not legend.overlaps(axes.get_window_extent())
    assert not legend.overlaps(axes.xaxis.label.get_window_extent())
    assert figure.bbox.y0 <= legend.y0
    assert figure.bbox.x0 <= legend.x0
    assert legend.x1 <= figure.bbox.x1
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == list(histories)


def test_density_has_its_band():
    points, share = [1.0, 2.0, 5.0], [0.1, 0.6, 1.0]
    figure = drawn(plotting.plot_density(points, share, [0.1, 0.0, 0.05]))
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata().tolist() == share
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(-0.1)
    assert band.max() == pytest.approx(1.1)
    log = drawn(plotting.plot_density(points, share, logarithmic=True))
    assert log.axes[0].get_xscale() == "log"


def test_deviations_and_their_ratio():
    prior = torch.full(SHAPE, 4.0)
    posterior = torch.linspace(1, 4, 80).reshape(SHAPE)
    posterior[0] = torch.nan
    shown = images(drawn(plotting.plot_deviations(prior, posterior, unit="m/s")))
    assert np.allclose(shown[2], (posterior / 4).numpy(), equal_nan=True)
    with pytest.raises(ValueError, match="posterior"):
        plotting.plot_deviations(prior, posterior[1:])


def test_samples_share_their_colours(generator):
    samples = torch.randn(3, *SHAPE, generator=generator)
    figure = drawn(plotting.plot_samples(torch.zeros(SHAPE), samples))
    limits = {a.images[0].get_clim() for a in figure.axes if a.images}
    assert limits == {(float(samples.min()), float(samples.max()))}
    assert len(images(figure)) == 4
    with pytest.raises(ValueError, match="no sample"):
        plotting.plot_samples(torch.zeros(SHAPE), [])


def test_point_spreads_have_a_row_for_each_cell_and_a_column_for_each_parameter():
    spread = point_spread(
        gaussian_operator(2), [("vp", (2, 2)), ("vs", (5, 7))], space=PAIR, n_combs=2
    )
    shown = images(drawn(plotting.plot_point_spreads(spread)))
    assert len(shown) == 4
    assert np.unravel_index(shown[0].argmax(), SHAPE) == (2, 2)
    assert np.unravel_index(shown[2].argmax(), SHAPE) == (5, 7)
    # relative to the largest of the row: vs, which was changed
    assert shown[3].max() == pytest.approx(1.0)
    assert shown[2].max() == pytest.approx(0.3 / 1.3)


def test_lengths_are_drawn_in_metres_with_ellipses_along_the_longest_axis():
    probes = random_probes(gaussian_operator(), space=SPACE, n_probes=30)
    lengths = resolution_lengths(probes, spacing=(10.0, 20.0))
    figure = drawn(plotting.plot_lengths(lengths))
    shown = images(figure)
    assert np.allclose(shown[0], lengths.value[0].numpy())
    assert figure.axes[0].images[0].get_extent() == [0, 200.0, 80.0, 0]
    ellipses = [c for c in figure.axes[0].collections if isinstance(c, EllipseCollection)]
    assert len(ellipses) == 1
    # the spread is widest along distance: 1.5 cells of 20 m
    # matplotlib 3.7 keeps them to itself, in radians, as do those that have get_angles
    angles = np.rad2deg(ellipses[0]._angles)
    middle = angles[len(angles) // 2]
    assert abs(math.sin(math.radians(middle))) < 0.4
    line, cells = MatrixOperator(torch.eye(6, dtype=F64)), torch.zeros(6, dtype=F64)
    lengths = resolution_lengths(random_probes(line, space=ModelSpace(cells)))
    with pytest.raises(ValueError, match="1-D"):
        plotting.plot_lengths(lengths)


def test_cross_talk_shows_matrix_and_pairs():
    talk = cross_talk(random_probes(gaussian_operator(2), space=PAIR))
    figure = drawn(plotting.plot_cross_talk(talk))
    shown = images(figure)
    assert np.allclose(shown[0], talk.value.numpy())
    assert len(shown) == 3
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert texts[0] == "1.00"
    assert texts[1] == (
        f"{float(talk.value[0, 1]):.2f}\n± {float(talk.standard_error[0, 1]):.2f}"
    )


def test_information_rises_between_its_bounds():
    gained = [1.0, 1.8, 2.1]
    figure = drawn(
        plotting.plot_information(gained, lower=[0.9, 1.7, 2.0], upper=gained, whole=2.5)
    )
    (axes,) = figure.axes
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert axes.lines[0].get_ydata().tolist() == gained
    assert axes.lines[1].get_ydata() == [2.5, 2.5]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: plotting.plot_eigenvalues([-1.0]), ValueError, "no positive entry"),
        (lambda: plotting.plot_eigenvalues([]), ValueError, "pass a row of numbers"),
        (lambda: plotting.plot_eigenvalues("a"), TypeError, "pass a row of numbers"),
        (lambda: plotting.plot_density([1.0], [0.1, 0.2]), ValueError, "expected 1"),
        (lambda: plotting.plot_point_spreads(1), TypeError, "point_spread returned"),
        (lambda: plotting.plot_lengths(1), TypeError, "resolution_lengths returned"),
        (lambda: plotting.plot_cross_talk(1), TypeError, "cross_talk returned"),
    ],
)
def test_bad_input_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()
